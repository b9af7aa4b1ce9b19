"""Text files to token ids: documents, encoded corpora, training batches, windows to score.

The encoder is an argument: any object with `encode(text)`, `end_of_text`, `encoder` and `bpe_ranks`.
"""
import codecs
import collections
import contextlib
import functools
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal

import numpy as np

from gpt2.system import process
from gpt2.system.files import folder_lock, parse_json, replacing, sha256
from gpt2.system.progress import Progress, report

DECODER = codecs.getincrementaldecoder('utf-8-sig')  # skips a byte order mark
SEPARATOR = '<|endoftext|>'  # at the end of a line; it never reaches the encoder, which would take it for text
END = re.compile(r'((\A|\n)[ \t]*)?<\|endoftext\|>[ \t]*\n?\Z')  # a line of its own takes the newline before it along
HELD = 64  # characters of a text that wait for the next part, because a separator may begin in them
CHUNK = 1 << 18  # characters that a process encodes at once, in a fraction of a second
READ_BYTES = 1 << 16  # a longer line is read in parts
MAX_VOCAB = 1 << 16  # token ids are stored as uint16
FORMATS = {  # {how a file begins that is not UTF-8 text: what it is, and what to do}
    b'\xff\xfe': 'UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`',
    b'\xfe\xff': 'UTF-16; convert it with `iconv -f UTF-16 -t UTF-8`',
    b'\x1f\x8b': 'compressed; unpack it with `gunzip`',
    b'\xfd7zXZ': 'compressed; unpack it with `unxz`',
    b'(\xb5/\xfd': 'compressed; unpack it with `unzstd`',
    b'PK\x03\x04': 'a zip archive, as .npz and .docx are; give its texts as .txt or .jsonl files',
    b'PAR1': 'a Parquet table; export its column of texts as .jsonl',
    b'%PDF-': 'a PDF; export its text as .txt'}
report_once = functools.lru_cache(maxsize=None)(report)  # a command may read the same files several times


def find_files(paths):
    """Returns the list of files that `paths` names: in the given order, sorted within a folder or a glob, each once.

    paths: a file, a glob or a folder (its .txt and .jsonl files, at any depth), or several as a list or with commas.
    In a folder, links are followed, and hidden files and folders are left out, which is reported.
    Raises FileNotFoundError for a path that matches no file.
    """
    if not isinstance(paths, (list, tuple)):
        paths = [paths] if os.path.exists(str(paths)) else str(paths).split(',')
    once = collections.OrderedDict()
    for path in map(str, paths):
        if os.path.isdir(path):
            found = _files_in(path)
        elif os.path.exists(path):  # checked before globs, because a name may contain brackets
            found = [path]
        else:
            found = [match for match in glob.glob(path, recursive=True) if os.path.isfile(match)]
        if not found:
            raise FileNotFoundError('no file matches %r; give a file, a glob or a folder of .txt or .jsonl' % path)
        for file in sorted(found):
            once.setdefault(os.path.realpath(file), file)
    return list(once.values())


def _files_in(folder):
    """The texts in a folder, at any depth. Reports how many files and folders are left out."""
    found, left_out, seen = [], collections.Counter(), {os.path.realpath(folder)}
    for place, folders, names in os.walk(
            folder, followlinks=True, onerror=lambda _: left_out.update(['unreadable folders'])):
        left_out['hidden'] += sum(name.startswith('.') for name in folders + names)
        visible, folders[:] = sorted(name for name in folders if name[0] != '.'), []
        for name in visible:
            target = os.path.realpath(os.path.join(place, name))
            if target not in seen:
                seen.add(target)
                folders.append(name)
        for path in (os.path.join(place, name) for name in names if name[0] != '.'):
            if path.lower().endswith(('.txt', '.jsonl')) and os.path.isfile(path):
                found.append(path)
            else:
                left_out['neither .txt nor .jsonl'] += 1
    numbers = ['%s (%d)' % item for item in sorted(left_out.items()) if item[1]]
    if numbers:
        report_once('%s: left out: %s' % (folder, ', '.join(numbers)))
    return found


def check_format(path, head):
    """Raises ValueError, with what to do, for a file that is not UTF-8 text. head: its first bytes."""
    kind = next((FORMATS[start] for start in sorted(FORMATS) if head.startswith(start)), None)
    if str(path).lower().endswith(('.csv', '.tsv')):
        kind = 'a table; export its column of texts as .jsonl, or rename it to .txt to read all of it as text'
    elif kind is None and b'\0' in head:
        kind = 'binary, or UTF-16 without a byte order mark; convert that with `iconv -f UTF-16LE -t UTF-8`'
    if kind:
        raise ValueError('%s is %s' % (path, kind))


def not_utf8(path, error, end):
    """The ValueError for a UnicodeDecodeError. end: position in the file after the bytes that could not be decoded."""
    return ValueError('%s is not UTF-8: byte %d is 0x%02x; convert the file to UTF-8' % (
        path, end - len(error.object) + error.start, error.object[error.start]))


def read_pieces(paths):
    """Iterate over pieces of the documents in the files that `paths` names (see `find_files`).

    A text may be larger than memory; a line of a .jsonl file may not.
    A .jsonl file has one document per line: a JSON string, or an object with the key "text". Any other file is text:
    <|endoftext|> at the end of a line, where spaces may follow it, separates its documents. If it is alone on its line,
    the newline before it belongs to the separator. Elsewhere it is text, and how often it occurs there is reported.
    A byte order mark is skipped, and in a text file CRLF becomes LF; nothing else is changed.
    Yields str, never empty, and None at the end of a document, whose ids are the concatenated ids of its pieces.
    Raises FileNotFoundError, and ValueError for a file that is not UTF-8 text (names the format, or the byte) or a line
    that is not such JSON (names file and line).
    """
    return itertools.chain.from_iterable(
        in_pieces(with_ends(text for _, text in read_jsonl(path)) if is_jsonl(path) else _text_parts(path))
        for path in find_files(paths))


def by_document(pieces):
    """Iterate over documents, each an iterator over its pieces that must be exhausted before the next document.

    pieces: as read_pieces yields them.
    """
    return (group for is_end, group in itertools.groupby(pieces, lambda piece: piece is None) if not is_end)


def with_ends(documents):
    """Iterate over documents, with a None after each."""
    return (part for document in documents for part in (document, None))


def _text_parts(path):
    """Yield the text of a file, one line or part of a long line at a time, and None at the end of a document."""
    decoder = DECODER()
    n_read = n_inside = 0
    with open(path, 'rb') as file:
        check_format(path, file.peek())  # not read, because a pipe has no seek
        held, line = '', b'\n'
        while line:
            line = file.readline(READ_BYTES)
            n_read += len(line)
            try:
                part = decoder.decode(line, final=not line)
            except UnicodeDecodeError as error:
                raise not_utf8(path, error, n_read)
            if part == '\n' and held.endswith('\r'):  # a line was cut there
                held = held[:-1]
            text = held + part.replace('\r\n', '\n')
            found = None
            if SEPARATOR in text:
                found = (not line or line.endswith(b'\n')) and END.search(text)
                n_inside += text.count(SEPARATOR) - held.count(SEPARATOR) - bool(found)
            if found:
                yield text[:found.start()]
                yield None
            else:
                yield text[:-HELD]
            held = '' if found else text[-HELD:]
        yield held
        yield None
    if n_inside:
        report_once('%s: %s occurs %d times inside a line, where it is text; it separates documents at the end of a '
                    'line' % (path, SEPARATOR, n_inside))


def read_jsonl(path):
    """Yield (line number, text) for each non-blank line of a .jsonl file. Raises ValueError with file and line."""
    with open(path, 'rb') as file:
        check_format(path, file.peek())
        for number, line in numbered_lines(file):
            if line.strip():
                try:
                    text, _ = parse_line(line, 'text')
                except ValueError as error:
                    raise ValueError('%s, line %d: %s; expected a JSON string or {"text": "..."}' % (
                        path, number, error))
                yield number, text


def is_jsonl(path):
    """Whether a file is read as lines of JSON."""
    return str(path).lower().endswith('.jsonl')


def numbered_lines(file):
    """Yield (number, bytes) for each line of a binary file, the first without its byte order mark."""
    for number, line in enumerate(file, 1):
        is_marked = number == 1 and line.startswith(codecs.BOM_UTF8)
        yield number, line[len(codecs.BOM_UTF8):] if is_marked else line


def parse_line(line, key):
    """Parse a line of JSON: a string, or an object that has a string at key. Returns that string and the whole value.

    Raises ValueError for another line.
    """
    value = parse_json(line.decode('utf-8'))
    text = value.get(key) if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError('it has no "%s": "..."' % key)
    text.encode('utf-8')  # JSON can contain half a surrogate pair, which is not text
    return text, value


def in_pieces(parts):
    """Join and split texts into pieces of about CHUNK characters whose concatenated ids are those of the whole text.

    Texts are split before a space or newline that follows another character: the encoder cuts there, too, so no token
    crosses the split. A text without such a place remains whole.
    parts: iterable of str, and None at the end of a document.  Yields the same, without empty pieces and documents.
    """
    boundary = re.compile(r'(?<=\S)[ \n]')
    held, size, enough = [], 0, CHUNK
    for part in parts:
        held.append(part or '')
        size += len(held[-1])
        if part is not None and size <= enough:
            continue
        text, start = ''.join(held), 0
        while len(text) - start > CHUNK:
            cut = boundary.search(text, start + CHUNK)
            if not cut:
                break
            yield text[start:cut.start()]
            start = cut.start()
        text = text[start:]
        if part is None:
            if text:
                yield text
                yield None
            text = ''
        # Twice the rest, so that a long text without a boundary is not joined and searched again for every line.
        held, size, enough = [text], len(text), CHUNK + 2 * len(text)


def load_tokens(encoder, paths, cache_folder, *, processes=None):
    """Encode the files that `paths` names, or read their ids from `cache_folder` if they were encoded before.

    The corpus may be larger than memory. The folder is created if missing, and may be deleted to free disk space. Ids
    are cached by the content of the files and by the vocabulary, not by the names of the files.
    processes: None means one per core; a short text is encoded in this process.
    Returns the ids that `encoder.encode` returns for each document, followed by the end-of-text id: uint16 [N],
    read-only and memory-mapped.
    Raises as `read_pieces` does, and ValueError for files without text and a vocabulary of more than 65,536 tokens.
    """
    files = find_files(paths)
    cached = os.path.join(cache_folder, 'tokens-%s.uint16' % _cache_key(encoder, files))
    if not os.path.exists(cached):
        os.makedirs(cache_folder, exist_ok=True)
        with folder_lock(cache_folder, lambda holder: report('waiting for %s, which is encoding into %s' % (
                holder, cache_folder))):
            for name in os.listdir(cache_folder):  # unfinished files: while we hold the lock, nobody is writing them
                if name.startswith('tokens-') and not name.endswith('.uint16'):
                    os.remove(os.path.join(cache_folder, name))
            if not os.path.exists(cached):
                with replacing(cached) as part, open(part, 'wb') as file:
                    for ids in _encode(encoder, read_pieces(files), processes, sum(map(os.path.getsize, files))):
                        file.write(ids.astype('<u2').tobytes())
                    if not file.tell():
                        raise ValueError('there is no text in %s' % ', '.join(files))
    return np.memmap(cached, dtype='<u2', mode='r')


def _cache_key(encoder, files):
    """Hash everything that the ids depend on: the vocabulary, the bytes of the files in order, and how each is read."""
    # Increment the 2 when a change to this file or to the encoder gives other ids for the same text.
    vocabulary = [2, sorted(encoder.encoder.items()), sorted(encoder.bpe_ranks.items()), encoder.end_of_text]
    key = hashlib.sha256(json.dumps(vocabulary).encode('utf-8'))
    for path in files:
        key.update(sha256(path, b'jsonl' if is_jsonl(path) else b'text').digest())
    return key.hexdigest()[:16]


def _encode(encoder, pieces, processes, total_bytes):
    """Yield the ids of documents in order, as uint16 arrays, and show progress. pieces: as in_pieces yields them."""
    if len(encoder.encoder) > MAX_VOCAB:
        raise ValueError('the vocabulary has %d tokens; a corpus of 16-bit ids can hold at most %d' % (
            len(encoder.encoder), MAX_VOCAB))
    with Progress(total_bytes, unit='B', unit_scale=True, label='encoding') as progress:
        for ids, size_bytes in _map_chunks(encoder, _chunks(pieces), processes or process.n_cores()):
            progress.advance(size_bytes)
            yield ids
        progress.advance((total_bytes or progress.done) - progress.done)  # separators and JSON quotes are not encoded


def _chunks(pieces):
    """Group pieces into lists of about CHUNK characters."""
    chunk, size = [], 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece or '')
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _map_chunks(encoder, chunks, processes):
    """Yield `_encode_chunk` of each chunk in order. Reads only a few chunks ahead: the corpus may not fit in memory."""
    first = list(itertools.islice(chunks, 2))
    chunks = itertools.chain(first, chunks)
    if processes == 1 or len(first) < 2:
        yield from (_encode_chunk(encoder, chunk) for chunk in chunks)
        return
    # Not multiprocessing.Pool, which waits forever after it has killed a worker that was sending a result.
    workers, connections = [], collections.deque()  # to the workers, in the order in which they got their chunks
    try:
        for chunk in chunks:
            result = None
            if len(workers) < processes:
                connection, other_end = multiprocessing.Pipe()
                workers.append(multiprocessing.Process(target=_serve, args=(other_end, encoder), daemon=True))
                workers[-1].start()
                other_end.close()
            else:
                connection = connections.popleft()
                result = _receive(connection)
            connections.append(connection)
            with contextlib.suppress(OSError):  # of a killed worker, which _receive() notices
                connection.send(chunk)
            if result:
                yield result
        yield from map(_receive, connections)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _receive(connection):
    """The result of a worker. Raises the error that it sent instead, and OSError if it was killed."""
    try:
        result = connection.recv()
    except (EOFError, OSError):
        raise OSError('a process that encoded texts was killed, perhaps for lack of memory')
    if isinstance(result, Exception):
        raise result
    return result


def _encode_chunk(encoder, chunk):
    """Returns the ids of a chunk and the size of its text in bytes."""
    ids = [token for text in chunk for token in ([encoder.end_of_text] if text is None else encoder.encode(text))]
    return np.array(ids, np.uint16), sum(len(text.encode('utf-8', 'surrogatepass')) for text in chunk if text)


def _serve(connection, encoder):
    """Encode the chunks that come through a connection, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by SIGTERM, for which the parent may have set a handler
    process.end_with(os.getppid())
    while True:
        chunk = connection.recv()
        try:
            result = _encode_chunk(encoder, chunk)
        except Exception as error:
            result = error
        connection.send(result)


def training_batches(tokens, *, batch_size, n_ctx, seed, first=0):
    """Yield batches forever, starting at number `first`; batch i depends only on tokens, seed and i.

    The corpus is a ring. Each epoch divides it into windows, starting at a random position, and yields every window
    once, in random order. A batch may contain the last windows of one epoch and the first of the next.
    tokens: integer array [N], N at least n_ctx.  seed: 0 ... 2^32 - 1.
    first: the number of batches that a resumed run has already used.
    Yields int32 [batch_size, n_ctx].
    """
    n_windows = len(tokens) // n_ctx
    epoch = None
    for batch in itertools.count(first):
        starts = []
        for window in range(batch * batch_size, (batch + 1) * batch_size):
            if window // n_windows != epoch:
                epoch = window // n_windows
                # RandomState, because its numbers are the same in every NumPy since 1.16.
                random = np.random.RandomState([seed, epoch])
                phase = random.randint(len(tokens), dtype=np.int64)
                order = random.permutation(n_windows)
            starts.append(phase + n_ctx * int(order[window % n_windows]))
        positions = np.array(starts)[:, None] + np.arange(n_ctx)
        yield tokens[positions % len(tokens)].astype(np.int32)


def windows(tokens, *, n_ctx, stride):
    """Iterate over windows of a text that together score every token once, except the first, which nothing predicts.

    Window i starts at token i * stride and is one token longer than the context: its last is predicted, never fed.
    tokens: integer array [N].  stride: 1 (every token sees as much as fits) ... n_ctx (no token is fed twice).
    Yields (ids, first_scored): int32 [T], T = n_ctx + 1 except in the last window; the tokens to score are
    ids[first_scored:]. Token p of the text sees at least the min(p, n_ctx + 1 - stride) tokens before it.
    Yields nothing for fewer than two tokens.
    """
    if len(tokens) < 2:
        return iter(())
    overlap = n_ctx + 1 - stride
    starts = range(0, max(1, len(tokens) - overlap), stride)  # a later window would have no token left to score
    return ((np.asarray(tokens[start:start + n_ctx + 1], np.int32), overlap if start else 1) for start in starts)
