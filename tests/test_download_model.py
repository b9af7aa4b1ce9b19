"""The downloader against a server on this machine that breaks in every way a real one has been seen to break."""
import contextlib
import email.utils
import glob
import hashlib
import http.server
import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import pytest
import requests

import download_model
from gpt2 import releases
from gpt2.system import files, process, tensor_bundle
from helpers.processes import SECONDS
from helpers.servers import (
    XML, Handler, Server, breaks_off_at, compressed, does_not_end, ignores_range, part_of, right, send, stalls_at,
    status)

SCRIPT = os.path.abspath(download_model.__file__)
PAGE = b'\n<!DOCTYPE html><html><body>Please log in to the proxy.</body></html>'


@pytest.fixture(autouse=True)
def signals():
    """Let Ctrl-C and SIGTERM work, even if the tests run in the background of a shell; restore them after each test."""
    before = [signal.signal(number, signal.default_int_handler) for number in process.INTERRUPTS]
    yield
    for number, handler in zip(process.INTERRUPTS, before):
        signal.signal(number, handler)


@pytest.fixture
def server(tiny_models, monkeypatch):
    """Serves the model `tiny` as /tiny/<file>. The downloader tries again at once, and writes little at a time.

    It waits for minutes, as the server may be slow on a busy machine.
    """
    monkeypatch.setattr(download_model, 'FIRST_WAIT_SECONDS', 0.001)
    monkeypatch.setattr(download_model, 'TIMEOUT_SECONDS', SECONDS / 5)
    monkeypatch.setattr(download_model, 'PIECE_BYTES', 100)
    monkeypatch.delenv('GPT2_BASE_URL', raising=False)
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)
    serving = Server()
    for file in download_model.FILES:
        with open(os.path.join(tiny_models, 'tiny', file), 'rb') as opened:
            serving.content['/tiny/' + file] = opened.read()
    thread = threading.Thread(target=serving.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    yield serving
    serving.go_on.set()
    serving.shutdown()
    thread.join()
    serving.server_close()


@pytest.fixture
def release(server, monkeypatch):
    """Makes the released 124M as small as `tiny`, with its sizes and checksums, and serves it as /124M/<file>."""
    known = {}
    for file in download_model.FILES:
        body = server.content['/124M/' + file] = server.content['/tiny/' + file]
        known[file] = (len(body), hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(download_model.KNOWN, '124M', known)


@pytest.fixture
def unhashed_release(server, monkeypatch):
    """Makes the released 355M the same model, but without known checksums, and serves it as /355M/<file>."""
    for file in download_model.FILES:
        server.content['/355M/' + file] = server.content['/tiny/' + file]
    monkeypatch.setitem(download_model.KNOWN, '355M', {})
    monkeypatch.setitem(releases.BY_NAME, '355M', releases.Release(('355M', '345M'), 2, 2, 8))
    monkeypatch.setattr(releases, 'N_VOCAB', 257)
    monkeypatch.setattr(releases, 'N_CTX', 32)


def download(server, folder, name='tiny'):
    download_model.download(name, str(folder), server.url)


def assert_complete(server, folder, name='tiny'):
    """The folder holds the seven files as they are served and nothing else."""
    assert sorted(os.listdir(str(folder.joinpath(name)))) == sorted(download_model.FILES)
    for file in download_model.FILES:
        served = releases.BY_NAME[name].names[0] if name in releases.BY_NAME else name
        assert folder.joinpath(name, file).read_bytes() == server.content['/%s/%s' % (served, file)]


def refuse(server, folder, name, file, words):
    """The download fails with a one-line message that has these words, and leaves nothing under the file's name."""
    with pytest.raises(OSError) as caught:
        download(server, folder, name)
    assert re.search(words, str(caught.value)), caught.value
    assert '\n' not in str(caught.value)
    assert not folder.joinpath(name, file).exists()


def command(*arguments):
    """(exit status, stdout, stderr) of the command line."""
    process = subprocess.Popen((sys.executable, SCRIPT) + arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=SECONDS)
    return process.returncode, stdout.decode('utf-8'), stderr.decode('utf-8')


PROGRAM = '''
import sys, time
sys.argv[0] = 'download_model.py'
sys.path.insert(0, %r)
import download_model
from gpt2.system import flags, process
process.set_up()
download_model.PIECE_BYTES = 100
download_model.TIMEOUT_SECONDS = %d
%%s
flags.run(download_model.download)
''' % (os.path.dirname(SCRIPT), SECONDS)


def start(server, folder, change='', **options):
    """`download_model.py tiny` in a process of its own. change: Python code to run first."""
    return subprocess.Popen([sys.executable, '-c', PROGRAM % change, 'tiny', '--models_dir', str(folder),
                             '--base_url', server.url], stderr=subprocess.PIPE, **options)


def finish(process):
    """(exit status, lines of stderr)."""
    error = process.communicate(timeout=SECONDS)[1].decode('utf-8')
    assert 'Traceback' not in error
    return process.returncode, error.splitlines()


def wait_until(condition):
    deadline = time.time() + SECONDS
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


# What is known of the releases

def test_the_known_checksums_are_those_of_the_released_files(released_117M, tmp_path):
    """All but the weights, which are not in ../shared, where hparams.json has lost its last newline."""
    for file in download_model.FILES[:-1]:
        with open(os.path.join(released_117M, file), 'rb') as opened:
            body = opened.read()
        body += b'\n' if file == 'hparams.json' and not body.endswith(b'\n') else b''
        path = str(tmp_path.joinpath(file))
        tmp_path.joinpath(file).write_bytes(body)
        download_model.verify(path, path, releases.BY_NAME['124M'])
        tmp_path.joinpath(file).write_bytes(body[:-1] + b' ')
        with pytest.raises(ValueError):
            download_model.verify(path, path, releases.BY_NAME['124M'])



# What is fetched, and from where

def test_a_model_arrives_whole(server, tmp_path):
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert [path for path, _ in server.requests] == ['/tiny/' + file for file in download_model.FILES]


def test_a_file_is_on_the_disk_before_its_name_is(server, tmp_path, monkeypatch):
    """Otherwise a power failure could leave an empty file under the name of a verified one."""
    calls = []
    for module, name in ((files, 'sync'), (os, 'replace')):
        def noted(path, *others, name=name, call=getattr(module, name)):
            calls.append((name, os.path.basename(path)))
            call(path, *others)
        monkeypatch.setattr(module, name, noted)
    download(server, tmp_path)
    assert calls == [(name, file + '.part') for file in download_model.FILES for name in ('sync', 'replace')]


@pytest.mark.parametrize('name, release', [('117M', '124M'), ('124M', '124M'), ('345M', '355M'), ('355M', '355M'),
                                           ('762M', '774M'), ('774M', '774M'), ('744M', '774M'), ('1542M', '1558M'),
                                           ('1558M', '1558M')])
def test_each_release_is_found_under_each_of_its_names(server, tmp_path, name, release):
    refuse(server, tmp_path, name, 'checkpoint', '404')
    assert server.requests == [('/%s/checkpoint' % release, None)]


def test_the_folder_is_called_what_the_user_called_it(server, release, tmp_path):
    download(server, tmp_path, '117M')
    assert_complete(server, tmp_path, '117M')


def test_a_correct_file_is_not_fetched_again(server, release, tmp_path):
    download(server, tmp_path, '124M')
    tmp_path.joinpath('124M', 'vocab.bpe').write_bytes(XML)  # as OpenAI's script stored it
    server.requests.clear()
    download(server, tmp_path, '124M')
    assert server.requests == [('/124M/vocab.bpe', None)]
    assert_complete(server, tmp_path, '124M')


def test_weights_of_ones_own_model_that_fit_the_index_are_not_fetched_again(server, tmp_path):
    download(server, tmp_path)
    server.content['/tiny/encoder.json'] += b'\n'
    download(server, tmp_path)
    assert len(server.requests_for(download_model.DATA)) == 1
    assert_complete(server, tmp_path)


def test_a_release_without_known_checksums_is_verified_by_its_own_checksums(server, unhashed_release, tmp_path):
    download(server, tmp_path, '355M')
    assert_complete(server, tmp_path, '355M')
    n_requests = len(server.requests)
    download(server, tmp_path, '355M')
    assert len(server.requests) == n_requests


@pytest.mark.parametrize('file, change, words', [
    ('hparams.json', lambda body: b'{"n_layer": 2}', 'instead of'),
    ('hparams.json', lambda body: body[:-1], 'hparams.json: '),
    (download_model.INDEX, lambda body: body[:-1], 'not the index'),
    (download_model.META, lambda body: body[:-1], 'protocol buffer'),
    (download_model.DATA, lambda body: body[:-1] + bytes([body[-1] ^ 1]), 'checksum of its tensor model/')])
def test_a_release_without_known_checksums_is_refused_if_it_contradicts_itself(
        server, unhashed_release, tmp_path, file, change, words):
    server.content['/355M/' + file] = change(server.content['/355M/' + file])
    refuse(server, tmp_path, '355M', file, words)


@pytest.mark.parametrize('n_ctx', [31, 33])  # the index has 32
def test_the_index_of_another_model_is_refused(server, unhashed_release, tmp_path, monkeypatch, n_ctx):
    monkeypatch.setattr(releases, 'N_CTX', n_ctx)
    server.content['/355M/hparams.json'] = (
        b'{"n_vocab": 257, "n_ctx": %d, "n_embd": 8, "n_head": 2, "n_layer": 2}' % n_ctx)
    refuse(server, tmp_path, '355M', download_model.INDEX, 'bytes of weights')


def test_a_mirror_takes_over_where_the_official_address_fails(server, release, tmp_path, monkeypatch):
    """And is asked first from then on: the address that failed is not tried again for each file."""
    for file in download_model.FILES:
        server.content['/mirror/124M/' + file] = server.content['/tiny/' + file]
        del server.content['/124M/' + file]
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url, server.url + '/mirror'))
    download_model.download('124M', str(tmp_path))
    assert [path for path, _ in server.requests] == (
        ['/124M/checkpoint'] + ['/mirror/124M/' + file for file in download_model.FILES])


def test_mirrors_are_tried_in_their_order(server, release, tmp_path, monkeypatch):
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url + '/a', server.url + '/b', server.url))
    download_model.download('124M', str(tmp_path))
    assert_complete(server, tmp_path, '124M')
    assert [path for path, _ in server.requests[:3]] == ['/a/124M/checkpoint', '/b/124M/checkpoint', '/124M/checkpoint']
    with pytest.raises(OSError, match='/a/.*; .*/b/.*; .*/c/'):
        monkeypatch.setattr(download_model, 'ADDRESSES', tuple(server.url + place for place in ('/a', '/b', '/c')))
        download_model.download('117M', str(tmp_path))


def test_another_mirror_is_tried_if_the_index_is_useless(server, unhashed_release, tmp_path, monkeypatch):
    for file in download_model.FILES:
        server.content['/mirror/355M/' + file] = server.content['/355M/' + file]
    server.content['/mirror/355M/' + download_model.INDEX] = bytes(40) + tensor_bundle.TABLE_END
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url + '/mirror', server.url))
    download_model.download('355M', str(tmp_path))
    assert_complete(server, tmp_path, '355M')


def test_a_mirror_with_other_bytes_is_refused(server, release, tmp_path, monkeypatch, capsys):
    path = '/mirror/124M/' + download_model.DATA
    for file in download_model.FILES:
        server.content['/mirror/124M/' + file] = server.content['/tiny/' + file]
    server.content[path] = server.content[path][:-1] + b'?'
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url + '/mirror', server.url))
    download_model.download('124M', str(tmp_path))
    assert_complete(server, tmp_path, '124M')
    assert 'SHA-256' in capsys.readouterr().err
    assert [path for path, _ in server.requests][-2:] == [path, '/124M/' + download_model.DATA]


def test_the_error_names_every_address_with_its_reason(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url + '/a', server.url + '/b'))
    with pytest.raises(OSError, match='/a/124M/checkpoint: .*404.*; .*/b/124M/checkpoint: .*404'):
        download_model.download('124M', str(tmp_path))


# Servers that misbehave

def test_a_server_that_is_busy_is_tried_again(server, tmp_path):
    server.answers['/tiny/hparams.json'] = [status(503), status(500), status(429), status(408)]
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert len(server.requests_for('hparams.json')) == 5


def test_a_server_that_always_answers_5xx_is_given_up(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download_model, 'FIRST_WAIT_SECONDS', 1)
    monkeypatch.setattr(download_model, 'time', SimpleNamespace(time=time.time, sleep=waits.append))
    server.answers['/tiny/hparams.json'] = [status(502)] * 99
    refuse(server, tmp_path, 'tiny', 'hparams.json', 'hparams.json: the server answers 502 Bad Gateway')
    assert waits == [1, 2, 4, 8]


def asks_to_wait(asked):
    return lambda handler, body, start: send(handler, 429, b'', headers=[('Retry-After', asked)])


def test_a_server_may_ask_to_wait(server, tmp_path, monkeypatch):
    """In seconds, or until a time; not for longer than anyone would watch."""
    waits = []
    monkeypatch.setattr(download_model, 'time', SimpleNamespace(time=lambda: 10 ** 9, sleep=waits.append))
    date = email.utils.formatdate(10 ** 9 + 300, usegmt=True)
    server.answers['/tiny/hparams.json'] = [asks_to_wait(asked) for asked in ('20', date, 'Tuesday', '-5')]
    download(server, tmp_path)
    assert waits[:2] == [20, 300] and max(waits[2:]) < 1 and len(waits) == 4
    for asked in ('3601', '9' * 5000):
        server.answers['/tiny/hparams.json'] = [asks_to_wait(asked)]
        refuse(server, tmp_path / asked[:4], 'tiny', 'hparams.json', r'429 .*; it asks to be .* in \d+ minutes')
    assert len(waits) == 4


def test_404_with_an_xml_body_is_not_saved_and_not_tried_again(server, tmp_path):
    """What the bucket of 2019 answers today."""
    del server.content['/tiny/checkpoint']
    refuse(server, tmp_path, 'tiny', 'checkpoint', 'the server answers 404 Not Found')
    assert len(server.requests) == 1
    assert os.listdir(str(tmp_path.joinpath('tiny'))) == []


@pytest.mark.slow
@pytest.mark.parametrize('page, kind, words', [
    (PAGE, 'text/html; charset=utf-8', 'sends a web page'),
    (b'\xef\xbb\xbf' + XML, 'application/xml', 'it is a web page|the server has')])
@pytest.mark.parametrize('file', download_model.FILES)
def test_a_page_with_status_200_is_not_saved(server, release, tmp_path, file, page, kind, words):
    for name in ('tiny', '124M'):
        path = '/%s/%s' % (name, file)
        server.answers[path] = [lambda handler, body, start: send(handler, 200, page, kind=kind)]
        refuse(server, tmp_path, name, file, words)
        assert not tmp_path.joinpath(name, file + '.part').exists()


def test_a_web_page_leaves_what_was_downloaded_before_it(server, tmp_path):
    """A page of unknown length, as a hotel's network sends it; the next run continues."""
    def page(handler, body, start):
        handler.send_response(200)
        handler.send_header('Content-Type', 'text/html')
        handler.end_headers()
        handler.wfile.write(PAGE)
    server.answers['/tiny/' + download_model.DATA] = [breaks_off_at(1000), page]
    refuse(server, tmp_path, 'tiny', download_model.DATA, 'sends a web page')
    download(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=1000-', 'bytes=1000-']
    assert_complete(server, tmp_path)


NONSENSE = [b'', b'Welcome to wifi', b'[' * 100000, b'"' + b'\xff' * 50, bytes(1000)]


@pytest.mark.slow
@pytest.mark.parametrize('file, wrong', [(file, body) for file in download_model.FILES[:-1] for body in NONSENSE] + [
    ('checkpoint', b'model_checkpoint_path: "model.ckpt-100"\n'),
    ('hparams.json', b'[1, 2]'),
    ('hparams.json', b'{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": "2", "n_layer": 2}'),
    ('encoder.json', b'["a", "b"]'), ('encoder.json', b'{}'), ('encoder.json', b'{"a": 1, "b": "2"}'),
    ('vocab.bpe', b'#version: 0.2\na b c\n'), ('vocab.bpe', b'#version: 0.2\na b\n')])
def test_a_damaged_file_of_ones_own_model_is_refused(server, tmp_path, file, wrong):
    """It does not replace the file that is there, and nothing is left of it."""
    download(server, tmp_path)
    right_body, server.content['/tiny/' + file] = server.content['/tiny/' + file], wrong
    with pytest.raises(OSError) as caught:
        download(server, tmp_path)
    reason = r'cannot download http://127\.0\.0\.1:\d+/tiny/%s: [^\n]{10,120}\Z' % re.escape(file)
    assert re.match(reason, str(caught.value))
    server.content['/tiny/' + file] = right_body
    assert_complete(server, tmp_path)


def test_vocab_bpe_has_to_fit_encoder_json(server, tmp_path):
    """A merge that makes no token, and a token that no merge makes."""
    symbols = json.loads(server.content['/tiny/encoder.json'].decode('utf-8'))
    server.content['/tiny/vocab.bpe'] = b'#version: 0.2\na b\n'
    refuse(server, tmp_path, 'tiny', 'vocab.bpe', 'have no id')
    symbols['ab'] = len(symbols)
    server.content['/tiny/encoder.json'] = json.dumps(symbols).encode('utf-8')
    download(server, tmp_path)
    server.content['/tiny/vocab.bpe'] = b'#version: 0.2\n'
    with pytest.raises(OSError, match='vocab.bpe: .*no merge'):
        download(server, tmp_path)


@pytest.mark.parametrize('name', ['tiny', '124M'])
def test_a_connection_that_breaks_is_resumed_where_it_broke(server, release, tmp_path, name):
    """Even if it breaks more often than there are tries, as long as each try brings something."""
    breaks = [1000 * (i + 1) for i in range(download_model.TRIES + 2)]
    server.answers['/%s/%s' % (name, download_model.DATA)] = [breaks_off_at(upto) for upto in breaks]
    download(server, tmp_path, name)
    assert_complete(server, tmp_path, name)
    assert server.requests_for(download_model.DATA) == [None] + ['bytes=%d-' % upto for upto in breaks]


def test_a_connection_that_brings_nothing_new_is_given_up(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [breaks_off_at(1000)] * 99
    refuse(server, tmp_path, 'tiny', download_model.DATA, 'the connection broke')
    assert len(server.requests_for(download_model.DATA)) == download_model.TRIES
    assert tmp_path.joinpath('tiny', download_model.DATA + '.part').stat().st_size == 1000


def test_a_connection_that_never_gets_further_is_given_up(server, tmp_path):
    """Even if each try starts over and gets further than the last one, but not further than the best one."""
    def breaks_off_anew_at(upto):
        return lambda handler, body, start: send(handler, 200, body[:upto], length=len(body))
    server.answers['/tiny/' + download_model.DATA] = [breaks_off_anew_at(upto) for upto in (2000, 1000)] * 50
    refuse(server, tmp_path, 'tiny', download_model.DATA, 'the connection broke')
    assert len(server.requests_for(download_model.DATA)) == download_model.TRIES


def test_a_file_of_unknown_size_is_not_put_together_from_two_halves(server, tmp_path):
    server.answers['/tiny/encoder.json'] = [breaks_off_at(1000)]
    download(server, tmp_path)
    assert server.requests_for('encoder.json') == [None, None]
    assert_complete(server, tmp_path)


@pytest.mark.parametrize('file', download_model.FILES)
def test_an_endless_body_is_read_up_to_the_size_of_the_file(server, release, tmp_path, monkeypatch, file):
    """If the size is known the file may even be right. If not, reading stops at the limit and nothing is left."""
    monkeypatch.setattr(download_model, 'MAX_BYTES', 40000)
    for name in ('tiny', '124M'):
        server.answers['/%s/%s' % (name, file)] = [does_not_end]
    download(server, tmp_path, '124M')
    assert_complete(server, tmp_path, '124M')
    if file == download_model.DATA:
        download(server, tmp_path)
        assert_complete(server, tmp_path)
    else:
        refuse(server, tmp_path, 'tiny', file, 'over 40000 bytes')
        assert len(server.requests_for(file)) == 2
        assert not tmp_path.joinpath('tiny', file + '.part').exists()


def test_a_small_file_that_is_said_to_be_huge_is_not_fetched(server, tmp_path):
    server.answers['/tiny/checkpoint'] = [lambda handler, body, start: send(handler, 200, body, length=2 ** 26 + 1)]
    refuse(server, tmp_path, 'tiny', 'checkpoint', '67108865 bytes, .*limit.* %d' % download_model.MAX_BYTES)


@pytest.mark.parametrize('file', ['vocab.bpe', download_model.DATA])
def test_a_compressed_body_is_refused(server, tmp_path, file):
    server.answers['/tiny/' + file] = [compressed]
    refuse(server, tmp_path, 'tiny', file, 'compressed')
    assert len(server.requests_for(file)) == 1


def test_the_request_asks_for_an_uncompressed_body(server, tmp_path):
    """Without that, a server may compress it."""
    def as_asked(handler, body, start):
        (right if handler.headers['Accept-Encoding'] == 'identity' else compressed)(handler, body, start)
    server.answers = {'/tiny/' + file: [as_asked] for file in download_model.FILES}
    download(server, tmp_path)
    assert_complete(server, tmp_path)


@pytest.mark.parametrize('length', ['no number', '-5', '9' * 5000, '\xb2', ''])
def test_an_invalid_length_is_ignored(server, tmp_path, length):
    server.answers = {'/tiny/' + file: [lambda handler, body, start: send(handler, 200, body, length=length)]
                      for file in ('checkpoint', download_model.DATA)}
    download(server, tmp_path)
    assert_complete(server, tmp_path)


def test_a_missing_certificate_store_is_not_reported_as_a_full_disk(server, tmp_path, monkeypatch):
    monkeypatch.setenv('REQUESTS_CA_BUNDLE', str(tmp_path.joinpath('nowhere')))
    with pytest.raises(OSError) as caught:
        download_model.download('tiny', str(tmp_path), server.url.replace('http:', 'https:'))
    assert 'nowhere' in str(caught.value)
    assert 'continues' not in str(caught.value)


def test_a_body_in_chunks_that_breaks_off_is_reported_in_plain_words(server, tmp_path):
    def breaks(handler, body, start):
        handler.send_response(200)
        handler.send_header('Transfer-Encoding', 'chunked')
        handler.end_headers()
        handler.wfile.write(b'ff\r\nhalf')
    server.answers['/tiny/checkpoint'] = [breaks] * 99
    refuse(server, tmp_path, 'tiny', 'checkpoint', 'checkpoint: the connection broke$')


def test_two_lengths_are_refused(server, tmp_path):
    server.answers['/tiny/checkpoint'] = [
        lambda handler, body, start: send(handler, 200, body, headers=[('Content-Length', '5')])] * 99
    refuse(server, tmp_path, 'tiny', 'checkpoint', 'Content-Length')


def test_a_server_that_hangs_up_is_reported_in_plain_words(server, tmp_path):
    server.answers['/tiny/checkpoint'] = [lambda handler, body, start: None] * 99
    refuse(server, tmp_path, 'tiny', 'checkpoint', 'checkpoint: the server closed .*or does not speak HTTP$')


def to(place, body=b'', length=None):
    """An answer that redirects."""
    return lambda handler, _, start: send(handler, 302, body, headers=[('Location', place)], length=length)


@pytest.mark.parametrize('place, words', [
    ('http://[::1', 'the address, or'), ('http://127.0.0.1:99999/', 'the address, or'),
    ('http://a..b/', 'the address, or'),
    ('http://\xff\xfe/', 'the address, or'), ('file:///etc/passwd', 'No connection adapters'),
    ('ftp://me:secret@host/x', "No connection adapters .*'ftp://host/x'")])
def test_a_redirect_to_nowhere_is_reported_at_once(server, tmp_path, place, words):
    server.answers['/tiny/checkpoint'] = [to(place)]
    refuse(server, tmp_path, 'tiny', 'checkpoint', words)
    assert len(server.requests) == 1


def test_the_body_of_a_redirect_is_not_waited_for(server, tmp_path):
    """It may be endless."""
    def endless(handler, body, start):
        to('/elsewhere', length=10 ** 6)(handler, body, start)
        server.go_on.wait()
        server.requests.append('waited for')
    server.answers['/tiny/checkpoint'] = [endless]
    server.content['/elsewhere'] = server.content['/tiny/checkpoint']
    download(server, tmp_path)
    assert 'waited for' not in server.requests
    assert tmp_path.joinpath('tiny', 'checkpoint').read_bytes() == server.content['/elsewhere']


def test_a_proxy_that_fails_is_reported(server, tmp_path, monkeypatch):
    """Otherwise it would look as if the server refused."""
    for name in ('no_proxy', 'NO_PROXY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    refuse(server, tmp_path, 'tiny', 'checkpoint', r'the proxy: \[Errno \d+\] Connection refused$')
    monkeypatch.setenv('https_proxy', server.url)  # which does not know CONNECT
    with pytest.raises(OSError, match='checkpoint: the proxy: Tunnel connection failed: 501 '):
        download_model.download('tiny', str(tmp_path), server.url.replace('http:', 'https:'))


@pytest.mark.parametrize('error, words', [
    (requests.exceptions.SSLError("(Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] "
                                  "certificate verify failed: self-signed certificate (_ssl.c:1006)')))"),
     'not trusted: certificate verify failed: self-signed certificate; .*REQUESTS_CA_BUNDLE'),
    (requests.exceptions.SSLError('(Caused by SSLError(CertificateError("hostname \'a\' doesn\'t match \'b\'",),))'),
     "not trusted: doesn't match; .*REQUESTS_CA_BUNDLE"),
    (requests.exceptions.InvalidSchema('Missing dependencies for SOCKS support.'), 'pip install pysocks')])
def test_what_the_user_has_to_set_up_is_not_tried_again(server, tmp_path, monkeypatch, error, words):
    """A certificate of the network's own, and a SOCKS proxy."""
    def get(*_, **__):
        server.requests.append(error)
        raise error

    monkeypatch.setattr(download_model.requests, 'get', get)
    refuse(server, tmp_path, 'tiny', 'checkpoint', words)
    assert len(server.requests) == 1


def test_the_password_of_a_socks_proxy_is_never_shown(server, tmp_path, monkeypatch, capsys):
    """Neither while it is tried again nor at the end: errors of the package for SOCKS may have the proxy's address."""
    def get(*_, **__):
        raise requests.ConnectionError('Failed to reach SOCKS5 proxy socks5h://me:secret@127.0.0.1:9')

    monkeypatch.setattr(download_model.requests, 'get', get)
    refuse(server, tmp_path, 'tiny', 'checkpoint', 'proxy socks5h://127.0.0.1:9$')
    said = capsys.readouterr().err
    assert said.count('proxy socks5h://127.0.0.1:9; trying again') == download_model.TRIES - 1 and 'secret' not in said


def test_bytes_are_taken_as_they_arrive(server, tmp_path, monkeypatch):
    """However few: otherwise a slow server could not be noticed, as a piece of 64 KB may take days."""
    def first(pieces):
        raise ValueError('%d bytes arrived' % len(next(pieces)))

    monkeypatch.setattr(download_model, 'fast_enough', first)
    server.answers['/tiny/checkpoint'] = [stalls_at(10)]
    refuse(server, tmp_path, 'tiny', 'checkpoint', ': 10 bytes arrived')


class Clock:
    """Stands in for the module time, and goes on only when it is told."""

    seconds = 0

    def time(self):
        return self.seconds

    def each(self, pieces):
        for seconds, piece in pieces:
            self.seconds += seconds
            yield piece


def test_a_server_that_is_slow_for_minutes_is_given_up(monkeypatch, capsys):
    """After its rate was reported. A slow minute between others is no reason, nor is a slow network."""
    clock = Clock()
    monkeypatch.setattr(download_model, 'time', clock)
    with pytest.raises(ValueError, match='the server sends 0.333 bytes per second, for 3 minutes'):
        list(download_model.fast_enough(clock.each([(3, b'x')] * 999)))
    assert clock.seconds == 180
    assert capsys.readouterr().err.splitlines() == ['the server sends 0.333 bytes per second'] * 2
    for pieces in ([(1, bytes(1000))] * 999, ([(3, b'x')] * 39 + [(1, bytes(2000))] * 60) * 3):
        assert len(list(download_model.fast_enough(clock.each(pieces)))) == len(pieces)


def test_a_redirect_is_followed_and_one_in_a_circle_given_up_at_once(server, tmp_path):
    server.answers['/tiny/checkpoint'] = [to('/elsewhere')]
    server.content['/elsewhere'] = server.content['/tiny/checkpoint']
    server.answers['/tiny/vocab.bpe'] = [to('/tiny/vocab.bpe')] * 99
    refuse(server, tmp_path, 'tiny', 'vocab.bpe', '30 redirects')
    assert tmp_path.joinpath('tiny', 'checkpoint').exists()
    assert len(server.requests_for('vocab.bpe')) < 35


def test_a_server_that_ignores_range_is_read_from_the_beginning(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [breaks_off_at(1000), ignores_range]
    download(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=1000-']
    assert_complete(server, tmp_path)


@pytest.mark.parametrize('answer', [status(416), part_of(0), part_of(500), part_of(0, 50)])
def test_a_server_that_cannot_send_the_rest_is_asked_for_the_whole_file(server, tmp_path, answer):
    """Whether the beginning was downloaded in this run or in an earlier one."""
    path = '/tiny/' + download_model.DATA
    server.answers[path] = [breaks_off_at(1000), answer]
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    weights, part = (str(tmp_path.joinpath('tiny', download_model.DATA + end)) for end in ('', '.part'))
    os.rename(weights, part)
    os.truncate(part, 1000)
    server.answers[path] = [answer]
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=1000-', None, 'bytes=1000-', None]


def test_what_was_downloaded_is_kept_until_the_server_has_the_right_file(server, tmp_path):
    """Nothing is taken from a server that has a shorter file."""
    server.answers['/tiny/' + download_model.DATA] = [
        breaks_off_at(1000), status(416), lambda handler, body, start: send(handler, 200, b'short')]
    refuse(server, tmp_path, 'tiny', download_model.DATA, 'the server has 5 bytes')
    assert tmp_path.joinpath('tiny', download_model.DATA + '.part').stat().st_size == 1000


def test_another_part_than_was_asked_for_is_refused(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [part_of(500)] * 99
    refuse(server, tmp_path, 'tiny', download_model.DATA, 'another part')


def test_a_server_that_sends_less_than_the_rest_is_asked_for_what_is_missing(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [breaks_off_at(1000), part_of(1000, 2000)]
    download(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=1000-', 'bytes=2000-']
    assert_complete(server, tmp_path)


def test_a_server_need_not_tell_the_length(server, tmp_path):
    def without_length(handler, body, start):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)
    server.answers = {'/tiny/' + file: [without_length] for file in download_model.FILES}
    download(server, tmp_path)
    assert_complete(server, tmp_path)


def test_a_connection_that_stalls_is_resumed(server, tmp_path, monkeypatch, capsys):
    def stall(handler, body, start):
        if start < 500:  # also again, if the client was too slow to receive them
            server.answers[weights].append(stall)
            stalls_at(500)(handler, body, start)
        else:
            right(handler, body, start)

    weights = '/tiny/' + download_model.DATA
    monkeypatch.setattr(download_model, 'TRIES', 999)
    monkeypatch.setattr(download_model, 'MAX_WAIT_SECONDS', math.inf)
    monkeypatch.setattr(download_model, 'FIRST_WAIT_SECONDS', 0)
    monkeypatch.setattr(download_model, 'TIMEOUT_SECONDS', 0.5)
    server.answers[weights] = [stall]
    server.answers['/tiny/vocab.bpe'] = [lambda handler, body, start: server.go_on.wait()]
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA)[0] is None
    assert 'bytes=500-' in server.requests_for(download_model.DATA)
    assert capsys.readouterr().err.count('no answer for 0.5 seconds') >= 2


@pytest.mark.parametrize('name, words', [('tiny', 'checksum of its tensor model/'), ('124M', 'SHA-256')])
def test_wrong_bytes_of_the_right_length_are_refused(server, release, tmp_path, name, words):
    path = '/%s/%s' % (name, download_model.DATA)
    middle = len(server.content[path]) // 2
    server.content[path] = server.content[path][:middle] + b'oops' + server.content[path][middle + 4:]
    refuse(server, tmp_path, name, download_model.DATA, words)
    assert len(server.requests_for(download_model.DATA)) == 1
    assert not tmp_path.joinpath(name, download_model.DATA + '.part').exists()


def test_a_file_that_is_not_verified_does_not_replace_the_one_that_is_there(server, release, tmp_path):
    """Even a wrong one: it may be all that the user has."""
    download(server, tmp_path, '124M')
    weights = tmp_path.joinpath('124M', download_model.DATA)
    weights.write_bytes(b'old')
    server.content['/124M/' + download_model.DATA] = bytes(len(server.content['/124M/' + download_model.DATA]))
    with pytest.raises(OSError, match='SHA-256'):
        download(server, tmp_path, '124M')
    assert weights.read_bytes() == b'old'


@pytest.mark.parametrize('name', ['tiny', '124M'])
@pytest.mark.parametrize('change', [b'', b'more than there should be'])
def test_a_wrong_length_is_refused(server, release, tmp_path, name, change):
    path = '/%s/%s' % (name, download_model.DATA)
    server.content[path] = server.content[path][:-1] + change
    refuse(server, tmp_path, name, download_model.DATA, r'has %d bytes, .* has \d+' % len(server.content[path]))


# What an earlier run has left

def leave(folder, part):
    """Leave in folder what a download of `tiny` leaves that stopped after these bytes of the weights."""
    folder.joinpath('tiny').mkdir()
    folder.joinpath('tiny', download_model.DATA + '.part').write_bytes(part)


@pytest.mark.parametrize('n_bytes, n_requests', [(1000, 2), (10 ** 6, 1)])
def test_a_wrong_part_costs_one_more_request_at_most(server, tmp_path, n_bytes, n_requests):
    """Also if it is longer than the file."""
    leave(tmp_path, bytes(n_bytes))
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert len(server.requests_for(download_model.DATA)) == n_requests


def test_a_complete_part_is_only_renamed(server, tmp_path):
    leave(tmp_path, server.content['/tiny/' + download_model.DATA])
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA) == []


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_say_so_and_the_next_run_goes_on(server, tmp_path, number):
    server.answers['/tiny/' + download_model.DATA] = [stalls_at(10000)]
    process = start(server, tmp_path)
    part = tmp_path.joinpath('tiny', download_model.DATA + '.part')
    wait_until(lambda: download_model.size_of(str(part)))
    process.send_signal(number)
    code, lines = finish(process)
    assert code == 128 + number
    assert lines[-1] == 'download_model.py: stopped; the same command continues from here'
    kept = part.stat().st_size
    assert not tmp_path.joinpath('tiny', '.lock').exists()
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=%d-' % kept]


def test_ctrl_c_in_a_small_file_leaves_nothing_of_it(server, tmp_path):
    server.answers['/tiny/encoder.json'] = [stalls_at(1000)]
    process = start(server, tmp_path)
    wait_until(lambda: tmp_path.joinpath('tiny', 'encoder.json.part').exists())
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert sorted(os.listdir(str(tmp_path.joinpath('tiny')))) == ['checkpoint', 'hparams.json']


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('slow', ['requests.py', 'fire.py', 'src/encoder.py', 'src/gpt2/system/tensor_bundle.py'])
def test_ctrl_c_while_the_script_loads_is_silent(tmp_path, slow, number):
    """A slow module that says when it is loaded stands in for a slow disk."""
    shutil.copytree(os.path.join(os.path.dirname(SCRIPT), 'src'), str(tmp_path.joinpath('src')))
    program = shutil.copy(SCRIPT, str(tmp_path))
    tmp_path.joinpath(slow).write_text(u'import time\nprint("loading", flush=True)\ntime.sleep(9999)\n')
    process = subprocess.Popen([sys.executable, program, '124M'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b'loading\n'
    process.send_signal(number)
    assert process.communicate(timeout=SECONDS) == (b'', b'')
    assert process.returncode == 128 + number


@pytest.mark.slow
@pytest.mark.parametrize('package', ['requests', 'tqdm', 'regex', 'fire'])
def test_a_missing_package_is_one_line_with_how_to_install_it(tmp_path, package):
    tmp_path.joinpath(package + '.py').write_text(u'raise ImportError("No module named %r")' % package)
    process = subprocess.Popen(
        [sys.executable, SCRIPT, 'tiny', '--base_url', 'http://127.0.0.1:9', '--models_dir', str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=str(tmp_path)), stderr=subprocess.PIPE)
    code, lines = finish(process)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith("download_model.py: No module named '%s'; " % package)
    assert 'make --silent activate' in lines[0] and 'docs/install.md' in lines[0]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once(server, tmp_path):
    """Whatever keeps the first one from tidying up."""
    slow_end = '''
remove = download_model.os.remove
def slow_remove(path):
    remove(path)  # there may be nothing to remove
    print('tidying up', file=sys.stderr, flush=True)
    time.sleep(9999)
download_model.os.remove = slow_remove
'''
    server.answers['/tiny/checkpoint'] = [lambda handler, body, start: server.go_on.wait()]
    process = start(server, tmp_path, slow_end)
    wait_until(lambda: server.requests)
    process.send_signal(signal.SIGINT)
    assert b'fetching' in process.stderr.readline() and b'tidying up' in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (143, [])


@pytest.mark.slow
def test_a_signal_that_is_ignored_stays_ignored(server, tmp_path):
    """As under nohup, and Ctrl-C in the background of a shell script."""
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def when_told(handler, body, start):
        server.go_on.wait()
        right(handler, body, start)
    server.answers['/tiny/checkpoint'] = [when_told]
    process = start(server, tmp_path, preexec_fn=ignore)
    wait_until(lambda: server.requests)
    process.send_signal(signal.SIGINT)
    server.go_on.set()
    assert finish(process)[0] == 0
    assert_complete(server, tmp_path)


@pytest.mark.slow
def test_a_killed_download_is_resumed_and_leaves_no_lock(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [stalls_at(10000)]
    process = start(server, tmp_path)
    part = tmp_path.joinpath('tiny', download_model.DATA + '.part')
    wait_until(lambda: download_model.size_of(str(part)))
    process.kill()
    process.communicate(timeout=SECONDS)
    kept = part.stat().st_size
    assert tmp_path.joinpath('tiny', '.lock').exists()
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=%d-' % kept]


@pytest.mark.slow
def test_parallel_downloads_take_turns(server, tmp_path):
    """The later one waits, and then finds the weights."""
    def when_told(handler, body, start):
        server.go_on.wait()
        right(handler, body, start)
    server.answers['/tiny/' + download_model.DATA] = [when_told]
    first = start(server, tmp_path)
    wait_until(lambda: server.requests_for(download_model.DATA))
    second = start(server, tmp_path)
    line = second.stderr.readline().decode('utf-8')
    assert line == 'waiting for process %d on %s, which is downloading into %s\n' % (
        first.pid, platform.node(), tmp_path.joinpath('tiny'))
    server.go_on.set()
    assert [finish(process)[0] for process in (first, second)] == [0, 0]
    assert_complete(server, tmp_path)
    assert len(server.requests_for(download_model.DATA)) == 1


@contextlib.contextmanager
def without_rights():
    """A folder in which the tests, even if root runs them, have an ordinary user's rights."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        if root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)


@pytest.mark.parametrize('file, mode', [('vocab.bpe', 0o000), ('model.ckpt.index', 0o000), ('', 0o000), ('', 0o500)])
def test_missing_permissions_are_reported(server, release, file, mode):
    """The file is neither called damaged nor fetched again."""
    with without_rights() as folder:
        download_model.download('124M', folder, server.url)
        n_requests = len(server.requests)
        path = os.path.join(folder, '124M', file)
        os.chmod(path, mode)
        with pytest.raises(PermissionError, match='Permission denied: .*/124M/%s' % file) as caught:
            download_model.download('124M', folder, server.url)
        os.chmod(path, 0o700)
        assert 'continues' not in str(caught.value)
        assert len(server.requests) == n_requests


def test_a_part_that_cannot_be_written_is_reported(server, tmp_path):
    leave(tmp_path, b'')
    part = tmp_path.joinpath('tiny', download_model.DATA + '.part')
    part.unlink()
    part.mkdir()
    with pytest.raises(OSError) as caught:
        download(server, tmp_path)
    assert str(part) in str(caught.value)
    assert 'continues' not in str(caught.value)


@pytest.mark.slow
def test_a_full_disk_is_one_line(server, tmp_path):
    """A limit on the size of a file stands in for it, because the same call fails."""
    resource = pytest.importorskip('resource')
    limit = 8000
    process = start(server, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    code, lines = finish(process)
    assert code == 1
    assert re.search(r'\.part: File too large; .* kept, and the same command continues', lines[-1])


# The command line

def test_help_shows_every_flag_with_its_default():
    code, text, error = command('--help')
    assert (code, error) == (0, '')
    for words in ('NAME', '--models_dir', '--base_url', '124M', 'GPT2_BASE_URL'):
        assert words in text
    assert os.path.join(os.path.dirname(SCRIPT), 'models') in ''.join(text.split())  # wherever one stands


@pytest.mark.slow
@pytest.mark.parametrize('arguments, words', [
    (['118M'], '117M.*345M.*1558M'), (['345'], "'345'.*345M"), ([], 'name'),
    (['124M', '--model_dir', 'x'], '--model_dir; did you mean --models_dir'),
    (['../x', '--base_url', 'http://127.0.0.1:9'], '117M'), (['x\n', '--base_url', 'http://127.0.0.1:9'], '117M'),
    (['tiny'], '117M'), (['tiny', '--base_url', 'no/scheme'], "'no/scheme'.*http://"),
    (['tiny', '--base_url', 'user:secret@host/x'], "'host/x'.*http://")])
def test_a_wrong_call_is_one_line(monkeypatch, arguments, words):
    monkeypatch.delenv('GPT2_BASE_URL', raising=False)
    code, _, error = command(*arguments)
    assert code == 1
    assert re.match(r'download_model\.py: .*%s' % words, error)
    assert error.count('\n') == 1


@pytest.mark.slow
def test_no_network_is_one_line(server, tmp_path):
    """After those that say what is tried."""
    code, lines = finish(start(server, tmp_path, "download_model.FIRST_WAIT_SECONDS = 0.001\n"
                               "sys.argv[-1] = 'http://127.0.0.1:9'"))
    assert code == 1
    assert re.search(r'\[Errno \d+\] Connection refused$', lines[-1])
    assert len(lines[-1]) < 250


@pytest.mark.slow
@pytest.mark.parametrize('base_url', ['http://', 'http:///x', 'http://[::1', 'http://host:port/', 'http://:0/'])
def test_an_invalid_address_is_not_tried_again(tmp_path, base_url):
    code, _, error = command('124M', '--models_dir', str(tmp_path), '--base_url', base_url)
    assert code == 1
    assert len(error.splitlines()[-1]) < 300
    assert 'trying again' not in error


@pytest.mark.parametrize('address', ['http://me:secret@%s', 'http://me:sec/ret@%s', 'http://me:sec#ret@%s',
                                     'http://me:s@ecret@%s',
                                     'http://me:secret@%s:port'])
@pytest.mark.parametrize('works', [True, False])
def test_a_password_is_used_and_never_shown(server, tmp_path, monkeypatch, capsys, address, works):
    """Whether the address is valid or not."""
    if not works:
        server.answers['/tiny/checkpoint'] = [status(503), lambda handler, body, start: None, status(404)]
    sent = []
    parse_request = http.server.BaseHTTPRequestHandler.parse_request
    monkeypatch.setattr(Handler, 'parse_request', lambda handler: (
        parse_request(handler) and (sent.append(handler.headers['Authorization']) or True)))
    base_url = address % server.url.split('//')[1]
    try:
        download_model.download('tiny', str(tmp_path), base_url)
        error = ''
    except OSError as caught:
        error = str(caught)
    said = capsys.readouterr().err.replace(str(tmp_path), '') + error
    assert '127.0.0.1' in said
    for word in ('sec', 'ret', 'me:'):
        assert word not in said
    if address == 'http://me:secret@%s':
        assert set(sent) == {'Basic bWU6c2VjcmV0'}


@pytest.mark.slow
def test_the_environment_may_name_the_server(server, tmp_path):
    environment = dict(os.environ, GPT2_BASE_URL=server.url.replace('http:', 'HTTP:') + '/', LC_ALL='C')
    process = subprocess.Popen([sys.executable, SCRIPT, 'tiny', '--models_dir', str(tmp_path)], env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, error = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, error
    assert output == b''
    assert_complete(server, tmp_path)


@pytest.mark.parametrize('models_dir', ['~/models', '$PLACE/models', '${PLACE}/models'])
def test_models_dir_may_have_a_tilde_and_variables(server, tmp_path, monkeypatch, models_dir):
    """The shell does not expand the ~ in --models_dir=~/models."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('PLACE', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    download_model.download('tiny', models_dir, server.url)
    assert_complete(server, tmp_path.joinpath('models'))


@pytest.mark.slow
def test_the_images_have_what_the_downloader_imports_before_they_fetch_the_model():
    """And little other code, so that a change to it does not fetch the model again."""
    root = os.path.dirname(SCRIPT)
    program = ('import sys; sys.path.insert(0, %r); import download_model; print("\\n".join('
               'filter(None, (getattr(module, "__file__", None) for module in sys.modules.values()))))' % root)
    printed = subprocess.check_output([sys.executable, '-c', program], universal_newlines=True, timeout=SECONDS)
    files = printed.splitlines()
    imported = {os.path.relpath(file, root) for file in files if file.startswith(os.path.join(root, 'src', ''))}
    for kind in ('cpu', 'gpu'):
        with open(os.path.join(root, 'Dockerfile.' + kind), encoding='utf-8') as file:
            before_the_model = file.read().split('RUN python3 download_model.py')[0]
        copied = set()
        for path in re.findall(r' (src/[\w/.]+)', before_the_model):
            copied.update(os.path.relpath(file, root) for file in glob.glob(os.path.join(root, path, '*.py'))
                          or [os.path.join(root, path)])
        assert copied - {'src/gpt2/system/tf1.py', 'src/gpt2/system/lite_file.py'} == imported


@pytest.mark.slow
def test_messages_are_utf8_whatever_the_locale(server, tmp_path):
    arguments = [sys.executable, SCRIPT, 'tiny', '--base_url', server.url, '--models_dir', str(tmp_path) + '/\xe4']
    process = subprocess.Popen([argument.encode('utf-8') for argument in arguments], env=dict(os.environ, LC_ALL='C'),
                               stderr=subprocess.PIPE)
    error = process.communicate(timeout=SECONDS)[1].decode('utf-8')
    assert process.returncode == 0
    assert error.endswith('/\xe4/tiny is complete\n')


@pytest.mark.slow
def test_a_closed_stderr_is_no_error(server, tmp_path):
    command_line = [sys.executable, SCRIPT, 'tiny', '--models_dir', str(tmp_path), '--base_url', server.url]
    assert subprocess.call(['sh', '-c', 'exec "$@" 2>&-', 'sh'] + command_line, timeout=SECONDS) == 0
    assert_complete(server, tmp_path)


@pytest.mark.parametrize('make', [lambda path: path.write_bytes(b''), lambda path: path.symlink_to('nowhere')])
def test_a_file_in_place_of_the_folder_is_reported(server, tmp_path, make):
    make(tmp_path.joinpath('tiny'))
    with pytest.raises(ValueError, match='tiny exists and is not a folder'):
        download(server, tmp_path)


@pytest.mark.slow
def test_windows_can_import_it():
    """It has no fcntl, but msvcrt, which is replaced here."""
    program = ('import sys, types; sys.modules.update(fcntl=None, msvcrt=types.ModuleType("msvcrt")); '
               'sys.path.insert(0, sys.argv[1]); import download_model')
    subprocess.check_call([sys.executable, '-c', program, os.path.dirname(SCRIPT)], timeout=SECONDS)
