"""The downloader against a server on this machine that breaks in every way a real one has been seen to break."""
import hashlib
import http.server
import os
import random
import re
import signal
import socketserver
import subprocess
import sys
import threading
import time

import pytest

import download_model
import tensor_bundle

SCRIPT = os.path.abspath(download_model.__file__)
XML = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchBucket</Code></Error>"
PAGE = b'\n<!DOCTYPE html><html><body>Please log in to the proxy.</body></html>'


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves self.content {path: bytes}; the next answers for a path come from the list self.answers[path], while it lasts.

    An answer is a function of (handler, body, start): start is the first byte that was asked for.
    """
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content = {}
        self.answers = {}
        self.requests = []  # (path, Range header or None)
        self.go_on = threading.Event()  # ends what waits for it
        self.url = 'http://127.0.0.1:%d' % self.server_port

    def handle_error(self, request, client_address):
        """A client that has gone away is what some tests are about."""

    def requests_for(self, file):
        return [asked for path, asked in self.requests if path.endswith('/' + file)]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get('Range')
        self.server.requests.append((self.path, asked))
        answers = self.server.answers.get(self.path)
        body = self.server.content.get(self.path)
        start = int(re.match(r'bytes=(\d+)-$', asked).group(1)) if asked else 0
        if answers:
            answers.pop(0)(self, body, start)
        elif body is None:
            send(self, 404, XML, kind='application/xml')
        else:
            right(self, body, start)

    def log_message(self, *arguments):
        pass


def send(handler, status, body, *, kind='application/octet-stream', headers=(), length=None):
    handler.send_response(status)
    handler.send_header('Content-Type', kind)
    handler.send_header('Content-Length', str(len(body) if length is None else length))
    for header in headers:
        handler.send_header(*header)
    handler.end_headers()
    handler.wfile.write(body)


def right(handler, body, start, *, upto=None):
    """The file from start on; upto: with the headers of all of it, but the connection ends before this byte."""
    content_range = ('Content-Range', 'bytes %d-%d/%d' % (start, len(body) - 1, len(body)))
    send(handler, 206 if start else 200, body[start:upto], length=len(body) - start,
         headers=[content_range] if start else ())


def breaks_off_at(upto):
    return lambda handler, body, start: right(handler, body, start, upto=upto)


def status(code):
    return lambda handler, body, start: send(handler, code, b'', kind='text/html')


def ignores_range(handler, body, start):
    send(handler, 200, body)


def stalls_at(upto):
    def stall(handler, body, start):
        right(handler, body, start, upto=upto)
        handler.server.go_on.wait(20)
    return stall


@pytest.fixture
def server(tiny_models, monkeypatch):
    """Serves the model `tiny` as /tiny/<file>. Tries follow each other at once, and little is lost in between."""
    monkeypatch.setattr(download_model, 'FIRST_WAIT_SECONDS', 0.001)
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
    """Makes the released 124M as small as `tiny`, its known sizes and checksums included, and serves it as /124M/<file>."""
    known = {}
    for file in download_model.FILES:
        body = server.content['/124M/' + file] = server.content['/tiny/' + file]
        known[file] = (len(body), hashlib.sha256(body).hexdigest())
    monkeypatch.setitem(download_model.KNOWN, '124M', known)


@pytest.fixture
def unhashed_release(server, monkeypatch):
    """Makes the released 355M the same model, of which no checksum is known, and serves it as /355M/<file>."""
    for file in download_model.FILES:
        server.content['/355M/' + file] = server.content['/tiny/' + file]
    monkeypatch.setitem(download_model.KNOWN, '355M', {})
    monkeypatch.setitem(download_model.LAYERS_HEADS_WIDTH, '355M', (2, 2, 8))
    monkeypatch.setattr(download_model, 'N_VOCAB', 257)
    monkeypatch.setattr(download_model, 'N_CTX', 32)


def download(server, folder, name='tiny'):
    download_model.download(name, str(folder), server.url)


def assert_complete(server, folder, name='tiny'):
    """The folder holds the seven files as they are served and nothing else."""
    assert sorted(os.listdir(str(folder.joinpath(name)))) == sorted(download_model.FILES)
    for file in download_model.FILES:
        assert folder.joinpath(name, file).read_bytes() == server.content['/%s/%s' % (download_model.NAMES.get(name, name), file)]


def refuse(server, folder, name, file, words):
    """The download fails with a one-line message that has these words, and leaves nothing under the file's name."""
    with pytest.raises(OSError) as caught:
        download(server, folder, name)
    assert re.search(words, str(caught.value)), caught.value
    assert '\n' not in str(caught.value)
    assert not folder.joinpath(name, file).exists()


def command(arguments, monkeypatch, capsys):
    """(exit status, stderr) of the command line."""
    monkeypatch.setattr(sys, 'argv', ['download_model.py'] + list(arguments))
    with pytest.raises(SystemExit) as ended:
        download_model.main()
    if isinstance(ended.value.code, str):  # which Python prints, with status 1
        return 1, ended.value.code
    return ended.value.code, ''.join(capsys.readouterr())


def start(server, folder, **options):
    """`download_model.py tiny` in a process of its own."""
    program = 'import sys; sys.path.insert(0, %r); import download_model; download_model.PIECE_BYTES = 100; ' \
              'download_model.main()' % os.path.dirname(SCRIPT)
    return subprocess.Popen([sys.executable, '-c', program, 'tiny', '--models_dir', str(folder), '--base_url', server.url],
                            stderr=subprocess.PIPE, **options)


def finish(process):
    """(exit status, lines of stderr)."""
    error = process.communicate(timeout=20)[1].decode('utf-8')
    assert 'Traceback' not in error
    return process.returncode, error.splitlines()


def wait_until(condition):
    deadline = time.time() + 20
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)


# Checksums and the index

def test_crc32c_has_the_published_check_value():
    """Of the catalogue of parametrised CRC algorithms, and of RFC 3720, appendix B.4."""
    assert tensor_bundle.crc32c([b'123456789']) == 0xe3069283
    assert tensor_bundle.crc32c([bytes(32)]) == 0x8a9136aa
    assert tensor_bundle.crc32c([bytes(range(32))]) == 0x46dd794e


def test_crc32c_equals_division_bit_by_bit_however_the_bytes_are_cut():
    draw = random.Random(1)
    for n_bytes in list(range(20)) + [63, 64, 65, 1000]:
        data = bytes(draw.randrange(256) for _ in range(n_bytes))
        register = 0xffffffff
        for byte in data:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0x82f63b78 if register & 1 else 0)
        cut = draw.randint(0, n_bytes)
        assert tensor_bundle.crc32c([data[:cut], data[cut:]]) == register ^ 0xffffffff


def test_index_of_the_release_is_read_as_tensorflow_reads_it(shared):
    from tf1 import tf
    folder = os.path.join(shared, '117M')
    tensors = tensor_bundle.read_index(os.path.join(folder, download_model.INDEX))
    shapes = tf.train.load_checkpoint(os.path.join(folder, 'model.ckpt')).get_variable_to_shape_map()
    assert {tensor.name for tensor in tensors} == set(shapes)
    for tensor in tensors:
        assert tensor.n_bytes == 4 * multiply(shapes[tensor.name])
    assert sum(tensor.n_bytes for tensor in tensors) == 497759232


def multiply(numbers):
    product = 1
    for number in numbers:
        product *= number
    return product


def test_weights_that_tensorflow_wrote_are_right_until_a_bit_is_wrong(tmp_path, sess):
    """Tensors of one piece, of several and of none, each with an error in its first, its last and some byte between."""
    from tf1 import tf
    n_numbers = tensor_bundle.PIECE_BYTES // 4
    for name, size in (('one', 1), ('some', 1001), ('full', n_numbers), ('pieces', 2 * n_numbers + 7), ('none', 0)):
        tf.get_variable(name, [size], initializer=tf.random_normal_initializer())
    sess.run(tf.global_variables_initializer())
    prefix = tf.train.Saver().save(sess, str(tmp_path.joinpath('model.ckpt')))
    index, data = prefix + '.index', prefix + '.data-00000-of-00001'
    tensor_bundle.check_data(data, index)
    assert tensor_bundle.data_bytes(index) == os.path.getsize(data)
    with open(data, 'r+b') as file:
        for tensor in tensor_bundle.read_index(index):
            for place in {0, tensor.n_bytes // 3, tensor.n_bytes - 1} if tensor.n_bytes else ():
                flip(file, tensor.offset + place)
                with pytest.raises(ValueError, match=r'tensor %s ' % tensor.name):
                    tensor_bundle.check_data(data, index)
                flip(file, tensor.offset + place)
        tensor_bundle.check_data(data, index)
        file.truncate(tensor_bundle.data_bytes(index) - 1)
    with pytest.raises(ValueError):
        tensor_bundle.check_data(data, index)


def flip(file, place):
    """Change one bit of an open file."""
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ 0x10]))
    file.flush()


def test_an_index_with_any_bit_wrong_or_its_end_missing_is_refused(tiny_models, tmp_path):
    """Or reads the same: some bytes of the format are padding."""
    with open(os.path.join(tiny_models, 'tiny', download_model.INDEX), 'rb') as file:
        whole = file.read()
    path = tmp_path.joinpath('index')
    path.write_bytes(whole)
    tensors = tensor_bundle.read_index(str(path))
    n_refused = 0
    places = range(0, len(whole), 5)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1:])
        try:
            assert tensor_bundle.read_index(str(path)) == tensors
        except ValueError:
            n_refused += 1
    assert n_refused > 0.9 * len(places)
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(ValueError):
            tensor_bundle.read_index(str(path))


def test_the_known_checksums_are_those_of_the_released_files(shared, tmp_path):
    """All but the weights, which are not in ../shared; hparams.json has lost its last newline there."""
    for file in download_model.FILES[:-1]:
        with open(os.path.join(shared, '117M', file), 'rb') as opened:
            body = opened.read() + (b'\n' if file == 'hparams.json' else b'')
        path = str(tmp_path.joinpath(file))
        tmp_path.joinpath(file).write_bytes(body)
        download_model.prove(path, path, '124M')
        tmp_path.joinpath(file).write_bytes(body[:-1] + b' ')
        with pytest.raises(ValueError):
            download_model.prove(path, path, '124M')


@pytest.mark.parametrize('release, n_bytes', [('124M', 497759232), ('355M', 1419292672), ('774M', 3096120320),
                                              ('1558M', 6230444800)])
def test_the_released_weights_are_as_long_as_their_number_says(release, n_bytes):
    """Lengths as the servers tell them."""
    assert 4 * download_model.n_parameters(release) == n_bytes


# What is fetched, and from where

def test_a_model_arrives_whole(server, tmp_path):
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert [path for path, _ in server.requests] == ['/tiny/' + file for file in download_model.FILES]


@pytest.mark.parametrize('name, release', [('117M', '124M'), ('124M', '124M'), ('345M', '355M'), ('355M', '355M'),
                                           ('762M', '774M'), ('774M', '774M'), ('1542M', '1558M'), ('1558M', '1558M')])
def test_each_release_is_found_under_both_names(server, tmp_path, name, release):
    refuse(server, tmp_path, name, 'checkpoint', '404')
    assert server.requests == [('/%s/checkpoint' % release, None)]


def test_the_folder_is_called_what_the_user_called_it(server, release, tmp_path):
    download(server, tmp_path, '117M')
    assert_complete(server, tmp_path, '117M')


def test_what_is_there_and_right_is_not_fetched_again(server, release, tmp_path):
    download(server, tmp_path, '124M')
    tmp_path.joinpath('124M', 'vocab.bpe').write_bytes(XML)  # as OpenAI's script stored it
    server.requests.clear()
    download(server, tmp_path, '124M')
    assert server.requests == [('/124M/vocab.bpe', None)]
    assert_complete(server, tmp_path, '124M')


def test_weights_that_still_fit_the_index_of_an_own_model_are_not_fetched_again(server, tmp_path):
    download(server, tmp_path)
    server.content['/tiny/encoder.json'] += b'\n'
    download(server, tmp_path)
    assert len(server.requests_for(download_model.DATA)) == 1
    assert_complete(server, tmp_path)


def test_a_release_without_known_checksums_is_proven_by_what_it_says_itself(server, unhashed_release, tmp_path):
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


def test_the_index_of_another_model_is_refused(server, unhashed_release, tmp_path, monkeypatch):
    monkeypatch.setattr(download_model, 'N_CTX', 33)
    server.content['/355M/hparams.json'] = b'{"n_vocab": 257, "n_ctx": 33, "n_embd": 8, "n_head": 2, "n_layer": 2}'
    refuse(server, tmp_path, '355M', download_model.INDEX, 'bytes of weights')


def test_a_mirror_takes_over_where_the_official_address_fails(server, release, tmp_path, monkeypatch):
    """And keeps the lead: the address that failed is not asked again for each file."""
    for file in download_model.FILES:
        server.content['/mirror/124M/' + file] = server.content['/tiny/' + file]
        del server.content['/124M/' + file]
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url, server.url + '/mirror'))
    download_model.download('124M', str(tmp_path))
    assert [path for path, _ in server.requests] == (
        ['/124M/checkpoint'] + ['/mirror/124M/' + file for file in download_model.FILES])


def test_a_mirror_with_other_bytes_is_not_believed(server, release, tmp_path, monkeypatch, capsys):
    path = '/mirror/124M/' + download_model.DATA
    for file in download_model.FILES:
        server.content['/mirror/124M/' + file] = server.content['/tiny/' + file]
    server.content[path] = server.content[path][:-1] + b'?'
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url + '/mirror', server.url))
    download_model.download('124M', str(tmp_path))
    assert_complete(server, tmp_path, '124M')
    assert 'SHA-256' in capsys.readouterr().err
    assert [path for path, _ in server.requests][-2:] == [path, '/124M/' + download_model.DATA]


def test_every_address_gets_a_word_in_the_error(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_model, 'ADDRESSES', (server.url + '/a', server.url + '/b'))
    with pytest.raises(OSError, match='/a/124M/checkpoint: .*404.*; .*/b/124M/checkpoint: .*404'):
        download_model.download('124M', str(tmp_path))


# Servers that misbehave

def test_5xx_is_tried_again(server, tmp_path):
    server.answers['/tiny/hparams.json'] = [status(503), status(500), status(429)]
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert len(server.requests_for('hparams.json')) == 4


def test_5xx_without_end_is_given_up(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download_model, 'FIRST_WAIT_SECONDS', 1)
    monkeypatch.setattr(download_model.time, 'sleep', waits.append)
    server.answers['/tiny/hparams.json'] = [status(502)] * 99
    refuse(server, tmp_path, 'tiny', 'hparams.json', 'hparams.json: the server answers 502 Bad Gateway')
    assert waits == [1, 2, 4, 8]


def test_404_with_an_xml_body_is_no_file_and_not_tried_again(server, tmp_path):
    """What the bucket of 2019 answers today."""
    del server.content['/tiny/checkpoint']
    refuse(server, tmp_path, 'tiny', 'checkpoint', 'the server answers 404 Not Found')
    assert len(server.requests) == 1
    assert os.listdir(str(tmp_path.joinpath('tiny'))) == []


@pytest.mark.parametrize('page', [PAGE, b'\xef\xbb\xbf' + XML])
@pytest.mark.parametrize('file', download_model.FILES)
def test_a_page_with_status_200_is_no_file(server, release, tmp_path, file, page):
    for name in ('tiny', '124M'):
        path = '/%s/%s' % (name, file)
        server.answers[path] = [lambda handler, body, start: send(handler, 200, page, kind='text/html')]
        refuse(server, tmp_path, name, file, 'it is a web page|bytes of text/html')
        assert not tmp_path.joinpath(name, file + '.part').exists()


@pytest.mark.parametrize('name', ['tiny', '124M'])
def test_a_connection_that_breaks_is_resumed_where_it_broke(server, release, tmp_path, name):
    """More often than there are tries: each of them brought something."""
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


def test_a_file_that_nobody_knows_is_not_put_together_from_two_halves(server, tmp_path):
    server.answers['/tiny/vocab.bpe'] = [breaks_off_at(5)]
    download(server, tmp_path)
    assert server.requests_for('vocab.bpe') == [None, None]
    assert_complete(server, tmp_path)


def test_a_server_that_ignores_range_is_read_from_the_beginning(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [breaks_off_at(1000), ignores_range]
    download(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=1000-']
    assert_complete(server, tmp_path)


def test_another_range_than_was_asked_for_is_refused(server, tmp_path):
    def from_the_beginning(handler, body, start):
        send(handler, 206, body, headers=[('Content-Range', 'bytes 0-%d/%d' % (len(body) - 1, len(body)))])
    server.answers['/tiny/' + download_model.DATA] = [breaks_off_at(1000), from_the_beginning]
    refuse(server, tmp_path, 'tiny', download_model.DATA, 'another part')


def test_a_server_that_does_not_tell_the_length_will_do(server, tmp_path):
    def without_length(handler, body, start):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)
    server.answers = {'/tiny/' + file: [without_length] for file in download_model.FILES}
    download(server, tmp_path)
    assert_complete(server, tmp_path)


def test_a_stall_is_a_break(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download_model, 'TIMEOUT_SECONDS', 0.3)
    server.answers['/tiny/' + download_model.DATA] = [stalls_at(500)]
    server.answers['/tiny/vocab.bpe'] = [lambda handler, body, start: server.go_on.wait(20)]
    started = time.time()
    download(server, tmp_path)
    assert time.time() - started < 5
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA)[:2] == [None, 'bytes=500-']
    assert capsys.readouterr().err.count('no answer for 0.3 seconds') >= 2


@pytest.mark.parametrize('name, words', [('tiny', 'checksum of its tensor model/'), ('124M', 'SHA-256')])
def test_wrong_bytes_of_the_right_length_are_refused(server, release, tmp_path, name, words):
    path = '/%s/%s' % (name, download_model.DATA)
    middle = len(server.content[path]) // 2
    server.content[path] = server.content[path][:middle] + b'oops' + server.content[path][middle + 4:]
    refuse(server, tmp_path, name, download_model.DATA, words)
    assert len(server.requests_for(download_model.DATA)) == 1
    assert not tmp_path.joinpath(name, download_model.DATA + '.part').exists()


@pytest.mark.parametrize('name', ['tiny', '124M'])
@pytest.mark.parametrize('change', [b'', b'more than there should be'])
def test_a_wrong_length_is_refused(server, release, tmp_path, name, change):
    path = '/%s/%s' % (name, download_model.DATA)
    server.content[path] = server.content[path][:-1] + change
    refuse(server, tmp_path, name, download_model.DATA, r'has %d bytes .* has \d+' % len(server.content[path]))


# What an earlier run has left

def leave(folder, part):
    """Make folder that of a download of `tiny` which ended after these bytes of the weights."""
    folder.joinpath('tiny').mkdir()
    folder.joinpath('tiny', download_model.DATA + '.part').write_bytes(part)


@pytest.mark.parametrize('n_bytes, n_requests', [(1000, 2), (10 ** 6, 1)])
def test_rubbish_in_a_part_costs_one_more_fetch_at_most(server, tmp_path, n_bytes, n_requests):
    """Also more of it than the file is long."""
    leave(tmp_path, bytes(n_bytes))
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert len(server.requests_for(download_model.DATA)) == n_requests


def test_a_whole_part_only_gets_its_name(server, tmp_path):
    leave(tmp_path, server.content['/tiny/' + download_model.DATA])
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA) == []


def test_ctrl_c_says_so_and_the_next_run_goes_on(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [stalls_at(10000)]
    process = start(server, tmp_path)
    part = tmp_path.joinpath('tiny', download_model.DATA + '.part')
    wait_until(lambda: download_model.size_of(str(part)))
    process.send_signal(signal.SIGINT)
    code, lines = finish(process)
    assert code == 130
    assert 'stopped' in lines[-1]
    kept = part.stat().st_size
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=%d-' % kept]


def test_a_killed_download_is_resumed_and_locks_nobody_out(server, tmp_path):
    server.answers['/tiny/' + download_model.DATA] = [stalls_at(10000)]
    process = start(server, tmp_path)
    part = tmp_path.joinpath('tiny', download_model.DATA + '.part')
    wait_until(lambda: download_model.size_of(str(part)))
    process.kill()
    process.communicate(timeout=20)
    kept = part.stat().st_size
    assert tmp_path.joinpath('tiny', '.lock').exists()
    download(server, tmp_path)
    assert_complete(server, tmp_path)
    assert server.requests_for(download_model.DATA) == [None, 'bytes=%d-' % kept]


def test_parallel_downloads_take_turns(server, tmp_path):
    """The later one waits, and then finds the weights."""
    def when_told(handler, body, start):
        server.go_on.wait(20)
        right(handler, body, start)
    server.answers['/tiny/' + download_model.DATA] = [when_told]
    first = start(server, tmp_path)
    wait_until(lambda: server.requests_for(download_model.DATA))
    second = start(server, tmp_path)
    assert b'waiting for another download' in second.stderr.readline()
    server.go_on.set()
    assert [finish(process)[0] for process in (first, second)] == [0, 0]
    assert_complete(server, tmp_path)
    assert len(server.requests_for(download_model.DATA)) == 1


def test_a_lock_that_its_owner_has_removed_meanwhile_is_none(tmp_path):
    """Else two could hold one each: on the file that is gone, and on the new one."""
    path = str(tmp_path.joinpath('.lock'))
    with open(path, 'a', encoding='utf-8') as opened_before:
        os.remove(path)
        assert not download_model.lock(opened_before)
        with open(path, 'a', encoding='utf-8') as opened_after:
            assert not download_model.lock(opened_before)
            assert download_model.lock(opened_after)


def test_a_full_disk_is_one_line(server, tmp_path):
    """A limit on the size of a file stands in for it: the same error of the same call."""
    resource = pytest.importorskip('resource')
    limit = 8000
    code, lines = finish(start(server, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))))
    assert code == 1
    assert re.search(r'\.part: File too large; what has come is kept', lines[-1])


# The command line

def test_help_shows_every_flag_with_its_default(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, text = command(['--help'], monkeypatch, capsys)
    assert code == 0
    for words in ('name', '--models_dir', '--base_url', '124M', 'GPT2_BASE_URL'):
        assert words in text
    assert os.path.join(os.path.dirname(SCRIPT), 'models') in ''.join(text.split())  # wherever one stands


@pytest.mark.parametrize('arguments, words', [
    (['118M'], '124M .*117M.*1558M'), ([], 'name'), (['124M', '--model_dir', 'x'], '--model_dir'),
    (['../x', '--base_url', 'http://127.0.0.1:9'], '124M'), (['tiny'], '124M')])
def test_a_wrong_call_is_one_line(monkeypatch, capsys, arguments, words):
    monkeypatch.delenv('GPT2_BASE_URL', raising=False)
    code, line = command(arguments, monkeypatch, capsys)
    assert code == 1
    assert re.match(r'download_model\.py: .*%s' % words, line)
    assert '\n' not in line


@pytest.mark.parametrize('base_url, words', [
    ('http://127.0.0.1:9', r'\[Errno \d+\] Connection refused$'), ('no/scheme', 'scheme')])
def test_no_network_is_one_line(server, tmp_path, monkeypatch, capsys, base_url, words):
    code, line = command(['124M', '--models_dir', str(tmp_path), '--base_url', base_url], monkeypatch, capsys)
    assert code == 1
    assert re.search(words, line)
    assert len(line) < 250 and '\n' not in line


def test_an_address_that_is_none_is_not_tried_again(tmp_path, capsys):
    with pytest.raises(OSError):
        download_model.download('124M', str(tmp_path), 'no/scheme')
    assert 'trying again' not in capsys.readouterr().err


def test_the_environment_may_name_the_server(server, tmp_path):
    environment = dict(os.environ, GPT2_BASE_URL=server.url + '/', LC_ALL='C')
    process = subprocess.Popen([sys.executable, SCRIPT, 'tiny', '--models_dir', str(tmp_path)], env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, error = process.communicate(timeout=20)
    assert process.returncode == 0, error
    assert output == b''
    assert_complete(server, tmp_path)


def test_windows_can_import_it():
    """It has no fcntl, and what it locks with is not here."""
    program = ('import sys, types; sys.modules.update(fcntl=None, msvcrt=types.ModuleType("msvcrt")); '
               'sys.path.insert(0, sys.argv[1]); import download_model')
    subprocess.check_call([sys.executable, '-c', program, os.path.dirname(SCRIPT)], timeout=20)
