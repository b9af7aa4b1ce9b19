"""corpus.py: documents are read as written, ids are those of the encoder, no token is lost or repeated."""
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from gpt2 import corpus
from gpt2.evaluation import language_modeling
from gpt2.generation import plan
from gpt2.system import progress
from helpers.paths import SRC
from helpers.processes import SECONDS

SEPARATOR = '<|endoftext|>'


class ByteEncoder:
    """A token is a byte; 256 is the end-of-text token."""

    end_of_text = 256

    def __init__(self, bpe_ranks=()):
        self.encoder = {chr(byte): byte for byte in range(256)}
        self.encoder[SEPARATOR] = 256
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(bpe_ranks)}

    def encode(self, text):
        return list(text.encode('utf-8'))


class BrokenEncoder(ByteEncoder):
    def encode(self, text):
        if 'broken' in text:
            raise RuntimeError('broken')
        return super().encode(text)


@pytest.fixture
def write(tmpdir):
    """A function that writes bytes, or a str as UTF-8, to a file of a new folder, and returns its path."""
    def write_file(name, content):
        path = tmpdir.join(name)
        path.write_binary(content if isinstance(content, bytes) else content.encode('utf-8'), ensure=True)
        return str(path)
    return write_file


def read_documents(paths):
    """The documents of files, each whole."""
    return (''.join(pieces) for pieces in corpus.by_document(corpus.read_pieces(paths)))


def encode_documents(encoder, documents, processes=None):
    """The ids of documents, as load_tokens writes them into its cache."""
    ids = corpus._encode(encoder, corpus.in_pieces(corpus.with_ends(documents)), processes, None)
    return np.concatenate([np.zeros(0, np.uint16)] + list(ids))


def ids_of(documents):
    return [token for text in documents for token in list(text.encode('utf-8')) + [256]]


# Documents

def test_read_documents_splits_at_separators(write):
    """A text divides into the documents that it was joined from, by lines of their own or at the end of lines."""
    rng = random.Random(0)
    lines = ['', 'a', SEPARATOR + '.', SEPARATOR + ' a', 'a' + SEPARATOR + 'b', '\u2028', '\x1c', '\ufeff']
    for newline in ('\n', '\r\n'):
        for _ in range(50):
            documents = ['\n'.join(['first'] + [rng.choice(lines) for _ in range(rng.randrange(5))])
                         for _ in range(rng.randrange(1, 5))]
            joined = ''.join(
                text + rng.choice(['\n', '\n ', '\n\t '] if text.endswith('\n') else ['', '\n', '\n ']) + SEPARATOR
                + rng.choice(['\n', ' \n', '\t  \n']) for text in documents[:-1]) + documents[-1]
            path = write('a.txt', joined.replace('\n', newline))
            assert list(read_documents(path)) == documents


def test_read_documents_keeps_a_text_without_separators(write):
    for text in ('no newline', 'one\n', '\n\n two \n\n', 'a\rb', 'a' + SEPARATOR + 'b\n', SEPARATOR + 'a'):
        assert list(read_documents(write('a.txt', text))) == [text]


def test_read_documents_ends_at_a_separator_or_without(write):
    text = 'one\n%s\n\n%s\n' % (SEPARATOR, SEPARATOR)
    for ending in ('', SEPARATOR, SEPARATOR + '\n', SEPARATOR + '\r\n', SEPARATOR + '\n' + SEPARATOR + '\n'):
        assert list(read_documents(write('a.txt', text + ending))) == ['one']
        last = 'two' if ending else 'two\n'
        assert list(read_documents(write('b.txt', text + 'two\n' + ending))) == ['one', last]


def test_read_documents_says_how_often_a_separator_was_text(write, capsys):
    """Once, and with the number: where it is at the end of a line it separates documents, and elsewhere it does not."""
    path = write('a.txt', 'A frog<|endoftext|>sat.<|endoftext|>\n<|endoftext|>A bird<|endoftext|> flew.\n'
                 'A fox<|endoftext|> \n%s<|endoftext|>.\n' % ('x' * corpus.READ_BYTES))
    for _ in range(2):
        documents = list(read_documents(path))
        assert [text[:8] for text in documents] == ['A frog<|', '<|endoft', 'x' * 8]
    assert capsys.readouterr().err == ('%s: <|endoftext|> occurs 4 times inside a line, where it is text; it separates '
                                      'documents at the end of a line\n' % path)
    list(read_documents(write('b.txt', 'one<|endoftext|>\ntwo\n<|endoftext|>\n')))
    assert capsys.readouterr().err == ''


def test_read_documents_skips_a_byte_order_mark(write):
    assert list(read_documents(write('a.txt', b'\xef\xbb\xbfone'))) == ['one']
    assert list(read_documents(write('b.txt', b'\xef\xbb\xbf' + SEPARATOR.encode() + b'\ntwo'))) == ['two']
    assert list(read_documents(write('c.jsonl', b'\xef\xbb\xbf"one"\n"two"'))) == ['one', 'two']
    assert list(read_documents(write('d.txt', b'\xef\xbb\xbf'))) == []


def test_read_documents_reads_pipes(tmpdir):
    """As in `text <(zcat book.gz)`: a pipe has no seek and can be read only once."""
    pipe = str(tmpdir.join('pipe'))
    for content, found in ((b'\xef\xbb\xbfone\n', ['one\n']), (b'a', ['a']), (b'', [])):
        os.mkfifo(pipe)
        writer = threading.Thread(target=tmpdir.join('pipe').write_binary, args=(content,))
        writer.start()
        assert list(read_documents(pipe)) == found
        writer.join()
        os.remove(pipe)


def test_read_documents_reads_jsonl(write):
    documents = ['one', 'two\n' + SEPARATOR + '\nthree', '\u2028\x85', '\U0001f600', 'CR\r\nLF']
    for ascii_only, newline in itertools.product((True, False), ('\n', '\r\n', '\n\n')):
        rows = [text if i % 2 else {'id': i, 'text': text} for i, text in enumerate(documents)]
        path = write('a.jsonl', newline.join(json.dumps(row, ensure_ascii=ascii_only) for row in rows + ['']))
        assert list(read_documents(path)) == documents


def test_read_documents_has_the_documented_order(write, tmpdir):
    """Of files, folders, globs and lists."""
    b, a, c = write('b.txt', 'b'), write('a.jsonl', '"a"'), write('sub/c.txt', 'c')
    odd, other = write('odd, [1].txt', 'odd'), write('wiki.raw', 'raw')
    folder = str(tmpdir)
    for paths, expected in [
            (folder, ['a', 'b', 'odd', 'c']),  # not wiki.raw: a folder may hold anything
            (os.path.join(folder, '*.txt'), ['b', 'odd']),
            (os.path.join(folder, '**', '*.txt'), ['b', 'odd', 'c']),
            ([c, b, a], ['c', 'b', 'a']),
            (c + ',' + b, ['c', 'b']),
            ((b, folder, b), ['b', 'a', 'odd', 'c']),  # each once
            (odd, ['odd']),
            (other, ['raw']),
            (tmpdir.join('b.txt'), ['b'])]:
        assert list(read_documents(paths)) == expected


def test_read_documents_passes_over_what_systems_add_to_a_folder(write, tmpdir, capsys):
    """Hidden files and folders, and what is found through a second link; the rest is read, whatever its case."""
    write('folder/b.TXT', 'b')
    write('folder/._b.txt', '\0')
    write('folder/.ipynb_checkpoints/b.txt', 'old')
    write('folder/..2025/c.txt', 'c')  # a ConfigMap
    write('elsewhere/a.JSONL', '"a"')
    for target, link in (('..2025', '..data'), ('..data/c.txt', 'c.txt'), ('../elsewhere', 'more'), ('.', 'loop'),
                         ('../elsewhere', 'again'), ('b.TXT', 'copy.txt'), ('nothing', 'lost.txt')):
        os.symlink(target, str(tmpdir.join('folder', link)))
    write('folder/table.csv', 'x')
    assert list(read_documents(str(tmpdir.join('folder')))) == ['a', 'b', 'c']
    assert capsys.readouterr().err == '%s: left out: hidden (4), neither .txt nor .jsonl (2)\n' % tmpdir.join('folder')
    assert list(read_documents(str(tmpdir.join('elsewhere')))) == ['a']
    assert capsys.readouterr().err == ''


def test_find_files_says_that_a_folder_cannot_be_read(write, tmpdir, capsys, monkeypatch):
    """Root can read every folder, so this looks at what is done about the error."""
    path, walk = write('a.txt', 'a'), os.walk

    def walk_into_a_locked_folder(folder, followlinks, onerror):
        onerror(PermissionError('locked'))
        return walk(folder, followlinks=followlinks)

    monkeypatch.setattr(corpus.os, 'walk', walk_into_a_locked_folder)
    assert corpus.find_files(str(tmpdir)) == [path]
    assert capsys.readouterr().err == '%s: left out: unreadable folders (1)\n' % tmpdir


@pytest.mark.parametrize('name, content, words', [
    ('a.txt', 'A frog.\n'.encode('utf-16'), 'UTF-16; .*iconv -f UTF-16 '),
    ('a.txt', b'\xfe\xff' + 'A frog.\n'.encode('utf-16-be'), 'UTF-16; .*iconv -f UTF-16 '),
    ('a.txt', '\nA frog.\n'.encode('utf-16-le'), 'binary, or UTF-16 without .*UTF-16LE'),
    ('a.jsonl', '"A frog."\n'.encode('utf-16'), 'UTF-16'), ('a.jsonl.gz', b'\x1f\x8b\x08\0', 'gunzip'),
    ('a.npz', b'PK\x03\x04rest', r'zip archive, as \.npz'), ('a.parquet', b'PAR1rest', 'Parquet .*jsonl'),
    ('a.csv', 'text\na frog\n', r'a table; .* \.jsonl, or rename'), ('a.TSV', 'text\na frog\n', 'a table'),
    ('a', b'%PDF-1.4', 'a PDF'), ('a', bytes(9), 'binary')])
def test_a_file_that_is_not_text_is_named_for_what_it_is(write, name, content, words):
    """With the way out, by the readers of texts, of prompts and of benchmarks."""
    path = write(name, content)
    for read in (lambda: list(read_documents(path)), lambda: plan.rows_from_prompts(path, list, 9),
                 lambda: language_modeling.read('ptb', path)):
        with pytest.raises(ValueError, match='%s is .*%s' % (path, words)):
            read()


def test_an_endless_file_is_refused(tmpdir):
    """As /dev/zero is, also by another name."""
    for name in ('a.txt', 'a.jsonl'):
        os.symlink('/dev/zero', str(tmpdir.join(name)))
        for read in (read_documents, lambda path: plan.rows_from_prompts(path, list, 9)):
            with pytest.raises(ValueError, match='is binary'):
                list(read(str(tmpdir.join(name))))


def test_find_files_sorts_by_name(write, tmpdir, monkeypatch):
    """Within a folder and within a glob."""
    names = ['b', 'a', 'd', 'c']
    for name in names:
        write(name + '.txt', name)
    listed = [str(tmpdir.join(name + '.txt')) for name in names]
    monkeypatch.setattr(corpus.os, 'walk', lambda folder, **_: [(folder, [], [name + '.txt' for name in names])])
    monkeypatch.setattr(corpus.glob, 'glob', lambda *_, **__: listed)
    for paths in (str(tmpdir), str(tmpdir.join('*.txt'))):
        assert corpus.find_files(paths) == sorted(listed)


def test_read_documents_reports_missing_files_at_once(write, tmpdir):
    a = write('a.txt', 'a')
    write('empty/notes.md', 'a')
    for missing in ('b.txt', '*.jsonl', 'empty'):
        missing = str(tmpdir.join(missing))
        for paths in (missing, [a, missing], a + ',' + missing):
            with pytest.raises(FileNotFoundError, match='no file matches') as error:
                read_documents(paths)
            assert repr(missing) in str(error.value)


def test_read_documents_reports_file_and_byte_of_bad_utf8(write):
    for before in (b'', b'\xef\xbb\xbf', b'good \xc3\xa9\r\n', b'one\n<|endoftext|>\r\ntwo\n'):
        path = write('a.txt', before + b'\xe9t\xe9\n<|endoftext|>\nlast')
        with pytest.raises(ValueError, match='byte %d is 0xe9' % len(before)) as error:
            list(read_documents(path))
        assert path in str(error.value)
    with pytest.raises(ValueError, match='byte 3 is 0xc3'):  # the end of the file has halved a character
        list(read_documents(write('a.txt', b'one\xc3')))


@pytest.mark.parametrize('line', [
    b'{"text": "truncated', b'[' * 100000, b'{"title": "no text"}', b'["a list"]', b'7', b'null', b'{"text": 7}',
    b'"\xe9"', b'"\\ud800"'])
def test_read_documents_reports_file_and_line_of_bad_jsonl(write, line):
    path = write('a.jsonl', b'"one"\n\n' + line + b'\n"four"')
    with pytest.raises(ValueError, match='a.jsonl, line 3: ') as error:
        list(read_documents(path))
    assert path in str(error.value)


def plain_documents(text):
    """The documents of a text, line by line."""
    documents = ['']
    for line in re.findall('[^\n]*\n|[^\n]+', text.replace('\r\n', '\n')):
        if line.rstrip(' \t\n').endswith(SEPARATOR):
            before = line.rstrip(' \t\n')[:-len(SEPARATOR)]
            documents[-1] = documents[-1] + before if before.strip(' \t') else re.sub(r'\n\Z', '', documents[-1])
            documents.append('')
        else:
            documents[-1] += line
    return [document for document in documents if document]


@pytest.mark.slow
def test_read_pieces_gives_the_documents_and_ids_of_the_whole(write, vocabulary, monkeypatch):
    """Wherever a part ends: inside a character, between CR and LF, inside and before a separator."""
    import encoder
    gpt2 = encoder.get_encoder(os.path.basename(vocabulary), os.path.dirname(vocabulary))
    monkeypatch.setattr(corpus, 'READ_BYTES', len(SEPARATOR) + 3)
    monkeypatch.setattr(corpus, 'CHUNK', 7)
    rng = random.Random(0)
    words = ['a', "don't", '\r', '\r\r', '\r\n', '\n', '\n', ' ', ' ', '  ', '\t', '中', 'é', '\U0001f600', '\u3000',
             '7', 'unbroken' * 4, '\n' + SEPARATOR + '\n', '\r\n' + SEPARATOR + '\r\n', SEPARATOR, SEPARATOR + '\n',
             SEPARATOR + ' \n', '\n\t' + SEPARATOR + '\n']
    n_documents = n_pieces = 0
    for _ in range(500):
        text = ''.join(rng.choice(words) for _ in range(rng.randrange(40)))
        path = write('a.txt', b'\xef\xbb\xbf' * rng.randrange(2) + text.encode('utf-8'))
        documents = plain_documents(text)
        assert list(read_documents(path)) == documents
        pieces = list(corpus.read_pieces(path))
        assert pieces.count(None) == len(documents) and '' not in pieces
        ids = [token for piece in pieces for token in ([256] if piece is None else gpt2.encode(piece))]
        assert ids == [token for document in documents for token in gpt2.encode(document) + [256]]
        n_documents += len(documents)
        n_pieces += len(pieces)
    assert n_documents > 600 and n_pieces > 3000  # or nothing was proven


@pytest.mark.slow
@pytest.mark.parametrize('name, text, documents', [
    ('a.jsonl', (json.dumps('x' * 999) + '\n') * 2000, ['x' * 999] * 2000),
    ('separators', ('x' * 999 + '\n' + SEPARATOR + '\n') * 2000, ['x' * 999] * 2000),
    ('lines', ('x' * 99 + '\n') * 20000, [('x' * 99 + '\n') * 20000]), ('one line', 'xé ' * 500000, ['xé ' * 500000]),
    ('CRLF', 'x x x x x\r\n' * 180000, ['x x x x x\n' * 180000])], ids=lambda value: value if len(value) < 15 else '')
def test_load_tokens_takes_constant_memory(write, tmpdir, monkeypatch, name, text, documents):
    """Files of 2 MB, in pieces of 4,000 characters, within 300 kB."""
    monkeypatch.setattr(corpus, 'CHUNK', 4000)
    monkeypatch.setattr(corpus, 'READ_BYTES', 4000)
    path = write(name, text)
    assert os.path.getsize(path) > 1900000
    tracemalloc.start()
    tokens = corpus.load_tokens(ByteEncoder(), path, str(tmpdir.join('cache')), processes=1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(tokens, ids_of(documents))
    assert peak_bytes < 300000


# Encoding

def test_in_pieces_keeps_the_ids_of_the_whole(vocabulary, monkeypatch):
    import encoder
    gpt2 = encoder.get_encoder(os.path.basename(vocabulary), os.path.dirname(vocabulary))
    monkeypatch.setattr(corpus, 'CHUNK', 1)  # cut wherever it is allowed
    rng = random.Random(0)
    characters = ('aeést中ا09²½' * 2 + " '.,!_" * 3 + ' \n' * 6 + '\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2007'
                  '\u200b\u2028\u3000\u0301\u200d\U0001f600\ufeff\x00')
    n_pieces = 0
    for _ in range(300):
        text = ''.join(rng.choice(characters) for _ in range(rng.randrange(1, 120)))
        *pieces, end = corpus.in_pieces([text, None])
        assert end is None and ''.join(pieces) == text
        assert [token for piece in pieces for token in gpt2.encode(piece)] == gpt2.encode(text)
        n_pieces += len(pieces)
    assert n_pieces > 2000  # or nothing was proven


def test_in_pieces_leaves_out_empty_documents():
    assert list(corpus.in_pieces(['', None, 'a', '', None, None, '', '', None])) == ['a', None]


def test_in_pieces_takes_linear_time_for_a_text_without_spaces(monkeypatch):
    """A text that arrives in 1,000 parts is searched for a boundary a few times, not once for each part."""
    class Boundary:
        n_searched = 0

        def search(self, text, start):
            self.n_searched += len(text) - start

    boundary = Boundary()
    monkeypatch.setattr(corpus.re, 'compile', lambda _: boundary)
    monkeypatch.setattr(corpus, 'CHUNK', 10)
    assert list(corpus.in_pieces(['x' * 10] * 1000 + [None])) == ['x' * 10000, None]
    assert 10000 < boundary.n_searched < 4 * 10000


def test_read_pieces_gives_the_vocabulary_of_the_whole(write, tmpdir, monkeypatch):
    pytest.importorskip('tokenizers', reason='needs tokenizers: pip install tokenizers')
    import encoder
    rng = random.Random(0)
    words = ['the', 'then', ' ', ' ', '  ', '\n', ', ', 'é', "'s", '12']
    path = write('a.txt', ''.join(rng.choice(words) for _ in range(5000)))
    documents = list(read_documents(path))
    monkeypatch.setattr(corpus, 'CHUNK', 20)
    pieces = list(filter(None, corpus.read_pieces(path)))
    assert len(pieces) > 100 > len(documents) == 1
    found = []
    for texts in (documents, pieces):
        encoder.learn_vocabulary(texts, 290, str(tmpdir.join(str(len(texts)))))
        found.append([tmpdir.join(str(len(texts)), name).read_binary() for name in ('encoder.json', 'vocab.bpe')])
    assert found[0] == found[1]


@pytest.mark.parametrize('processes', [1, 2])
def test_encode_documents_is_the_same_in_any_number_of_processes(processes, monkeypatch, capsys):
    """The ids of each document and the end-of-text id."""
    monkeypatch.setattr(corpus, 'CHUNK', 1000)
    rng = random.Random(0)
    sizes = [1, 20, 999, 1000, 1001, 30000] + [rng.randrange(1, 300) for _ in range(100)]
    documents = [''.join(rng.choice('ab é\n') for _ in range(size)) for size in sizes] + ['unbroken' * 1000]
    ids = encode_documents(ByteEncoder(), iter(documents), processes=processes)
    assert ids.dtype == np.uint16
    assert ids.tolist() == ids_of(documents)
    assert capsys.readouterr().err == ''  # a progress bar is for a terminal


def test_encode_reads_only_a_little_ahead(monkeypatch):
    monkeypatch.setattr(corpus, 'CHUNK', 10)
    read = []
    documents = (read.append(text) or text for text in ['one two three'] * 1000)
    next(corpus._encode(ByteEncoder(), documents, 2, None))
    assert len(read) < 20


def test_load_tokens_reports_its_progress_in_bytes_of_the_files(write, tmpdir, monkeypatch, capsys):
    """At the end it is all of them, though separators and JSON quotes are not encoded."""
    monkeypatch.setattr(progress, 'REPORT_EVERY_SECONDS', -1)
    path = write('a.jsonl', '"one"\n' * 20)
    corpus.load_tokens(ByteEncoder(), path, str(tmpdir.join('cache')))
    lines = capsys.readouterr().err.splitlines()
    assert re.match('encoding: 60.0 of 120B: ', lines[0]) and re.match('encoding: 120 of 120B: ', lines[-1]), lines


def test_encode_documents_of_nothing_is_empty():
    assert encode_documents(ByteEncoder(), []).shape == (0,)
    assert encode_documents(ByteEncoder(), []).dtype == np.uint16


def test_encode_documents_treats_a_separator_as_text():
    assert encode_documents(ByteEncoder(), [SEPARATOR]).tolist() == list(SEPARATOR.encode('utf-8')) + [256]


def test_encode_documents_takes_at_most_65536_tokens():
    large = ByteEncoder()
    large.encoder = {str(token): token for token in range(65536)}
    large.end_of_text = 65535
    assert encode_documents(large, ['a']).tolist() == [97, 65535]
    large.encoder['one more'] = 65536
    with pytest.raises(ValueError, match='65537 tokens; .* at most 65536'):
        encode_documents(large, ['a'])


def test_encode_documents_raises_errors_of_workers_and_of_files(monkeypatch):
    monkeypatch.setattr(corpus, 'CHUNK', 10)

    def documents():
        yield from ['one two three'] * 30
        raise ValueError('not UTF-8')
    with pytest.raises(ValueError, match='not UTF-8'):
        encode_documents(ByteEncoder(), documents(), processes=2)
    with pytest.raises(RuntimeError, match='broken'):
        encode_documents(BrokenEncoder(), ['one two three'] * 30 + ['broken'] * 30, processes=2)


class DeadlyEncoder(ByteEncoder):
    def encode(self, text):
        os._exit(9)


def test_encode_documents_reports_a_worker_that_was_killed(monkeypatch):
    """As the kernel does when memory runs out. It does not wait for its result forever."""
    monkeypatch.setattr(corpus, 'CHUNK', 10)
    with pytest.raises(OSError, match='a process that encoded texts was killed, perhaps for lack of memory'):
        encode_documents(DeadlyEncoder(), ['one two three'] * 30, processes=2)


# The cache

def test_load_tokens_caches_until_text_or_vocabulary_changes(write, tmpdir):
    a, b = write('a.txt', 'one\n%s\ntwo' % SEPARATOR), write('b.jsonl', '"three"')
    cache = str(tmpdir.join('new', 'cache'))
    tokens = corpus.load_tokens(ByteEncoder(), [a, b], cache)
    assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16
    assert tokens.tolist() == ids_of(['one', 'two', 'three'])
    with pytest.raises(ValueError):
        tokens[0] = 0

    unable = ByteEncoder()
    unable.encode = None
    assert corpus.load_tokens(unable, [a, b], cache).tolist() == tokens.tolist()
    os.rename(a, a + '.moved')  # it is the bytes that count
    assert corpus.load_tokens(unable, [a + '.moved', b], cache).tolist() == tokens.tolist()
    for other in ([b, a + '.moved'], [b], [write('b.txt', '"three"')], [write('c.jsonl', '"thref"')]):
        corpus.load_tokens(ByteEncoder(), other, cache)
        corpus.load_tokens(ByteEncoder([('t', 'h')]), other, cache)
    assert len(os.listdir(cache)) == 1 + 2 * 4
    swapped = ByteEncoder()
    swapped.encoder.update(a=98, b=97)
    corpus.load_tokens(swapped, [b], cache)
    assert len(os.listdir(cache)) == 1 + 2 * 4 + 1


def test_load_tokens_leaves_no_file_if_it_fails(write, tmpdir):
    cache = str(tmpdir.join('cache'))
    for content, failure in [('', ValueError), (SEPARATOR + '\n', ValueError), (b'one\n\xff', ValueError),
                             ('one\n' + SEPARATOR + '\nbroken', RuntimeError)]:
        with pytest.raises(failure):
            corpus.load_tokens(BrokenEncoder(), write('a.txt', content), cache)
        assert os.listdir(cache) == []


def test_load_tokens_removes_what_a_killed_process_has_left(write, tmpdir):
    cache = tmpdir.join('cache')
    for name in ('tokens-0.uint16.part', 'tokens-1.uint16.77.unfinished', 'tokens-2.uint16', 'mine.part'):
        cache.join(name).write_binary(b'', ensure=True)
    tokens = corpus.load_tokens(ByteEncoder(), write('a.txt', 'a'), str(cache))
    assert sorted(os.listdir(str(cache))) == sorted(['mine.part', 'tokens-2.uint16', os.path.basename(tokens.filename)])


SCRIPT = '''
import multiprocessing, os, signal, sys, time
sys.path.insert(0, %(src)r)
from gpt2 import corpus

corpus.CHUNK = 10

class Encoder:
    encoder, bpe_ranks, end_of_text = {}, {}, 256

    def encode(self, text):
        if 'die' in text:
            os._exit(9)
        if 'sleep' in text or 'nap' in text:
            sys.stdout.write('asleep\\n')
            sys.stdout.flush()
            while 'sleep' in text or not os.path.exists(path + '.wake'):
                time.sleep(0.1)
        return list(text.encode('utf-8'))

if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    start_method, path, cache = sys.argv[1:]
    multiprocessing.set_start_method(start_method)
    try:
        print(corpus.load_tokens(Encoder(), path, cache, processes=2).tolist())
    except KeyboardInterrupt:
        sys.exit(130)
    assert not {'tensorflow', 'encoder'} & set(sys.modules), 'encoding must not wait for TensorFlow'
'''


def run_script(write, start_method, documents, cache):
    script = write('script.py', SCRIPT % {'src': SRC})
    text = write('text.jsonl', '\n'.join(map(json.dumps, documents)))
    return subprocess.Popen([sys.executable, script, start_method, text, cache], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True, start_new_session=True)


@pytest.mark.slow
def test_load_tokens_may_spawn_its_workers(write, tmpdir):
    documents = ['one two three', 'four five six']
    out, err = run_script(write, 'spawn', documents, str(tmpdir.join('cache'))).communicate(timeout=SECONDS)
    assert (out, err) == ('%s\n' % ids_of(documents), '')


@pytest.mark.slow
def test_load_tokens_lets_python_end_after_a_worker_was_killed(write, tmpdir):
    """No thread waits for it."""
    process = run_script(write, 'fork', ['die die die'] * 30, str(tmpdir.join('cache')))
    assert 'OSError: a process that encoded texts was killed' in process.communicate(timeout=SECONDS)[1]


@pytest.mark.slow
def test_load_tokens_waits_while_another_process_encodes(write, tmpdir):
    """Neither removes the unfinished file of the other."""
    documents, cache = ['one nap'] * 4, str(tmpdir.join('cache'))
    first = run_script(write, 'fork', documents, cache)
    assert [first.stdout.readline() for _ in range(2)] == ['asleep\n'] * 2  # both of its workers
    second = run_script(write, 'fork', documents, cache)
    waiting = second.stderr.readline()
    assert re.match(r'waiting for process %d on .* encoding .*cache\n\Z' % first.pid, waiting), waiting
    write('text.jsonl.wake', '')
    assert first.communicate(timeout=SECONDS) == ('asleep\n' * 2 + '%s\n' % ids_of(documents), '')
    assert second.communicate(timeout=SECONDS) == ('%s\n' % ids_of(documents), '')


@pytest.mark.slow
@pytest.mark.parametrize('how', ['Ctrl-C', 'kill -9'])
def test_load_tokens_leaves_no_worker_when_it_is_stopped(write, tmpdir, how):
    """And no file of tokens."""
    cache = str(tmpdir.join('cache'))
    process = run_script(write, 'fork', ['one two three'] * 2 + ['sleep sleep'] * 9, cache)
    assert [process.stdout.readline() for _ in range(2)] == ['asleep\n'] * 2
    if how == 'Ctrl-C':
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
    else:
        process.kill()
    # The workers hold the other end of the pipe as well: it closes with the last of them.
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert (out, err) == ('', '')
    assert process.returncode == (130 if how == 'Ctrl-C' else -signal.SIGKILL)
    assert [name for name in os.listdir(cache) if how == 'Ctrl-C' or name.endswith('.uint16')] == []


# Batches

SHAPES = list(itertools.product((5, 12, 13, 50), (1, 3, 8), (1, 4, 5)))  # n_tokens, batch_size, n_ctx


def take(iterator, n):
    return list(itertools.islice(iterator, n))


@pytest.mark.slow
@pytest.mark.parametrize('n_tokens, batch_size, n_ctx', SHAPES)
def test_training_batches_take_each_window_once_an_epoch(n_tokens, batch_size, n_ctx):
    batches = take(corpus.training_batches(np.arange(n_tokens), batch_size=batch_size, n_ctx=n_ctx, seed=1), 200)
    assert all(batch.shape == (batch_size, n_ctx) and batch.dtype == np.int32 for batch in batches)
    windows = np.concatenate(batches)
    assert np.array_equal(windows, (windows[:, :1] + np.arange(n_ctx)) % n_tokens)
    n_windows = n_tokens // n_ctx
    for epoch in range(len(windows) // n_windows):
        seen = windows[epoch * n_windows:(epoch + 1) * n_windows].flatten()
        assert len(set(seen)) == n_windows * n_ctx
    assert set(windows.flatten()) == set(range(n_tokens))  # what one epoch leaves out another takes


@pytest.mark.slow
@pytest.mark.parametrize('n_tokens, batch_size, n_ctx', SHAPES)
def test_training_batches_can_resume(n_tokens, batch_size, n_ctx):
    """From any batch on, they are those of an uninterrupted run."""
    def batches(first):
        return corpus.training_batches(np.arange(n_tokens), batch_size=batch_size, n_ctx=n_ctx, seed=1, first=first)
    unbroken = take(batches(0), 40)
    for first in (1, 2, 7, 31):
        assert np.array_equal(take(batches(first), 9), unbroken[first:first + 9])


def test_training_batches_differ_between_epochs_and_seeds():
    """In the place where windows start and in their order."""
    steps, phases = set(), set()
    for seed in (0, 1, 2 ** 32 - 1):
        batches = corpus.training_batches(np.arange(1000), batch_size=100, n_ctx=10, seed=seed)
        for batch in take(batches, 2):  # a batch is an epoch
            phases.add(batch[0, 0] % 10)
            steps.add(tuple(np.diff(batch[:, 0]) % 1000))
    assert len(phases) > 3
    assert len(steps) == 6  # all six orders differ,
    assert all(step.count(10) < 10 for step in steps)  # and none is that of the text


def test_training_batches_of_mapped_tokens_are_plain_int32(write, tmpdir):
    path = write('tokens', np.arange(50000, 50257).astype('<u2').tobytes())
    tokens = np.memmap(path, '<u2', 'r')
    batch = next(corpus.training_batches(tokens, batch_size=2, n_ctx=256, seed=0))
    assert type(batch) is np.ndarray and batch.dtype == np.int32
    assert batch.min() >= 50000 and batch.max() <= 50256


# Windows

@pytest.mark.parametrize('n_ctx', [1, 2, 3, 8])
def test_windows_score_each_token_once_with_enough_context(n_ctx):
    """Each but the first, which nothing predicts."""
    for n_tokens, stride in itertools.product(range(30), range(1, n_ctx + 1)):
        tokens = np.arange(n_tokens, dtype=np.uint16)  # a token is its own position
        scored, fed = [], []
        all_windows = list(corpus.windows(tokens, n_ctx=n_ctx, stride=stride))
        for i, (ids, first_scored) in enumerate(all_windows):
            assert ids.dtype == np.int32
            assert ids.tolist() == list(range(i * stride, i * stride + len(ids)))
            assert len(ids) == n_ctx + 1 or (i == len(all_windows) - 1 and len(ids) <= n_ctx)
            assert 1 <= first_scored < len(ids)
            for index in range(first_scored, len(ids)):
                assert index >= min(ids[index], n_ctx + 1 - stride)
            scored.extend(ids[first_scored:])
            fed.extend(ids[:-1])
        assert scored == list(range(1, n_tokens))
        if stride == n_ctx:
            assert fed == list(range(n_tokens - 1))
