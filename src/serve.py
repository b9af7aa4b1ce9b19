#!/usr/bin/env python3
"""Serve a model on a web page, and to clients of OpenAI's completions API."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which python3 -I and PYTHONSAFEPATH leave out
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

import re

import encoder
from gpt2 import checkpoint, session
from gpt2.system import flags


def serve(model_name='117M', host='127.0.0.1', port=8000, api_key: str = None, no_api_key=False, batch_size=32,
          max_waiting=64, precision='float32', models_dir='models'):
    """Serve a page to type into, and the completions API. Ctrl-C ends it.

    Args:
        host: address to listen on; the default is for programs on this machine alone, 0.0.0.0 is for any machine
        port: port to listen on; 0 picks a free one
        api_key: key that clients must send; other machines may connect only with one
        no_api_key: let other machines connect without a key
        batch_size: number of completions computed at once; more take more memory
        max_waiting: number of completions that may wait; further requests are refused
    """
    is_local = host in ('localhost', '127.0.0.1', '::1')
    if not is_local and not api_key and not no_api_key:
        raise ValueError('with --host %s anybody who can reach this machine may use the server; pass --api_key KEY, or '
                         '--no_api_key if you want that' % host)
    if api_key and no_api_key:
        raise ValueError('give either --api_key or --no_api_key')
    if api_key is not None and not re.match('[!-~]([ -~]*[!-~])?\\Z', api_key):
        raise ValueError('--api_key must not be empty, nor begin or end with a space; programs send only ASCII')
    for name, value in ('batch_size', batch_size), ('max_waiting', max_waiting):
        if not 1 <= value <= 1024:
            raise ValueError('%s is %d; it must be 1 to 1024' % (name, value))
    if not 0 <= port < 2 ** 16:
        raise ValueError('port is %d; it must be 1 to 65535, or 0 for any that is free' % port)
    session.check_precision(precision)
    checkpoint.model_dir(model_name, models_dir)
    text_encoder, hparams = encoder.get_encoder(model_name, models_dir), checkpoint.load_hparams(model_name, models_dir)
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError:
        raise ImportError('serving needs Flask and waitress: pip install flask waitress')
    process.share_memory_between_threads()  # before TensorFlow starts its threads
    from gpt2.serving import loading, web
    sock = web.listening_socket(host, port)
    engine = loading.load(hparams, model_name, models_dir, precision, batch_size, max_waiting)
    web.warm_up(engine, text_encoder, model_name)
    process.stdout_is_optional = True  # who has read the address may go away
    print(process.escaped('%s: %s' % (model_name, web.url_of(host, sock))), flush=True)
    web.run(web.application(engine, text_encoder, model_name, host, api_key), engine, sock)


if __name__ == '__main__':
    flags.run(serve)
