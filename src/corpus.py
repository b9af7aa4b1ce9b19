"""Text files to token ids: documents, encoded corpora, training batches, evaluation windows.

The encoder is handed in: anything with `encode(text)`, `end_of_text`, `encoder` and `bpe_ranks` will do.
"""
import codecs
import collections
import glob
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys

import numpy as np
from tqdm import tqdm

from files import folder_lock, replacing, sha256
import process

SEPARATOR = b'<|endoftext|>'  # alone on its line; it never reaches the encoder, to which it would be text
CHUNK = 1 << 18  # characters that a process encodes at once, in a fraction of a second
LINE = 1 << 16  # bytes of a line that are read at once
MAX_VOCAB = 1 << 16  # token ids are kept as uint16


def find_files(paths):
    """Returns the list of files that `paths` names: in the order given, sorted within a folder or a glob, each once.

    paths: a file, a glob or a folder (its .txt and .jsonl files, at any depth); several as a list, or between commas.
    Raises FileNotFoundError for a path that names no file.
    """
    if not isinstance(paths, (list, tuple)):
        paths = [paths] if os.path.exists(str(paths)) else str(paths).split(',')
    files = []
    for path in map(str, paths):
        if os.path.isdir(path):
            found = [os.path.join(folder, name) for folder, _, names in os.walk(path)
                     for name in names if name.endswith(('.txt', '.jsonl'))]
        elif os.path.exists(path):  # looked up before globs, because a name may contain brackets
            found = [path]
        else:
            found = [match for match in glob.glob(path, recursive=True) if os.path.isfile(match)]
        if not found:
            raise FileNotFoundError('no file matches %r; give a file, a glob or a folder of .txt or .jsonl' % path)
        files += sorted(found)
    return list(collections.OrderedDict.fromkeys(files))


def read_documents(paths):
    """Iterate over the documents of the files that `paths` names (see `find_files`), one in memory at a time.

    A .jsonl file has a document on each line: a JSON string, or an object with the key "text". Any other file is text:
    its documents are separated by lines that are exactly <|endoftext|>, and the newline before such a line belongs to the
    separator. A byte order mark is skipped, and in a text CRLF becomes LF; nothing else is changed.
    Yields str, never empty.
    Raises FileNotFoundError, and ValueError for what is not UTF-8 (names file and byte) or not such JSON (file and line).
    """
    return (''.join(pieces) for pieces in by_document(read_pieces(paths)))


def read_pieces(paths):
    """As read_documents, but in pieces, so that a text may be larger than memory; a line of a .jsonl file may not.

    Yields str, never empty, and None where a document ends. The ids of the pieces, joined, are those of the document.
    """
    return _without_empty(itertools.chain.from_iterable(
        in_pieces(with_ends(text for _, text in read_jsonl(path)) if path.endswith('.jsonl') else _text_parts(path))
        for path in find_files(paths)))


def by_document(pieces):
    """Iterate over documents, each an iterator over its pieces; use one up before the next. pieces: as read_pieces yields."""
    return (group for is_end, group in itertools.groupby(pieces, lambda piece: piece is None) if not is_end)


def with_ends(documents):
    """Iterate over documents, with None after each."""
    return (part for document in documents for part in (document, None))


def _text_parts(path):
    """Yield the text of a file, a line or a part of a long line at a time, and None where a document ends."""
    decoder = codecs.getincrementaldecoder('utf-8')()
    with open(path, 'rb') as file:
        is_marked = file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8)  # peek, because a pipe has no seek
        n_read = len(file.read(len(codecs.BOM_UTF8))) if is_marked else 0
        last, line = '', b'\n'
        while line:
            at_line_start = line.endswith(b'\n')
            line = file.readline(LINE)
            n_read += len(line)
            if at_line_start and line in (SEPARATOR + b'\n', SEPARATOR + b'\r\n', SEPARATOR):
                yield last if last != '\n' else ''
                yield None
                last = ''
                continue
            try:
                text = last + decoder.decode(line, final=not line)
            except UnicodeDecodeError as error:
                raise ValueError('%s is not UTF-8: byte %d is 0x%02x; convert the file to UTF-8' % (
                    path, n_read - len(error.object) + error.start, error.object[error.start]))
            text = text.replace('\r\n', '\n')
            last = text[-1:]  # held back: a newline may turn out to belong to a separator, a carriage return to a newline
            yield text[:-1]
        yield last
        yield None


def read_jsonl(path):
    """Yield (line number, text) for each line of a .jsonl file that is not blank. Raises ValueError with file and line."""
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                line = line[len(codecs.BOM_UTF8):]
            if not line.strip():
                continue
            try:
                text = json.loads(line.decode('utf-8'))
                if isinstance(text, dict):
                    text = text.get('text')
                if not isinstance(text, str):
                    raise ValueError('there is no text')
                text.encode('utf-8')  # JSON can spell half a surrogate pair, which is not text
            except (ValueError, RecursionError) as error:  # errors of JSON and of UTF-8 are ValueErrors
                raise ValueError('%s, line %d: %s; a line must be a JSON string or {"text": "..."}'
                                 % (path, number, error))
            yield number, text


def in_pieces(parts):
    """Join and cut texts into pieces of about CHUNK characters whose ids, joined, are those of the whole.

    The cuts are before a space or newline that follows something else: the encoder cuts there itself, and no token reaches
    across. A text without such a place stays whole.
    parts: iterable of str, and None where a document ends.  Yields the same.
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
            yield text
            yield None
            text = ''
        # Twice the rest, so that a long text without a boundary is not joined and searched anew for each line.
        held, size, enough = [text], len(text), CHUNK + 2 * len(text)


def _without_empty(pieces):
    """Leave out empty pieces and empty documents."""
    for document in by_document(piece for piece in pieces if piece != ''):
        yield from document
        yield None


def encode_documents(encoder, documents, *, processes=None):
    """Encode documents: the ids that `encoder.encode` gives for each, and the end-of-text id after each.

    documents: iterable of str.  processes: None is one per core; a short text is encoded in this process.
    Returns uint16 [N].
    Raises ValueError for a vocabulary over 65,536.
    """
    return np.concatenate([np.zeros(0, np.uint16)] + list(_encode(encoder, in_pieces(with_ends(documents)), processes, None)))


def load_tokens(encoder, paths, cache_folder, *, processes=None):
    """Encode the files that `paths` names, or read their ids from `cache_folder` if they were encoded before.

    The corpus may be larger than memory. The folder is made if missing, and may be deleted to free disk space. Ids are found
    again by the bytes of the files and by the vocabulary, not by the files' names.
    Returns uint16 [N] as `encode_documents` does, read-only and memory-mapped.
    Raises as `read_documents` and `encode_documents` do, and ValueError if there is no text at all.
    """
    files = find_files(paths)
    cached = os.path.join(cache_folder, 'tokens-%s.uint16' % _cache_key(encoder, files))
    if not os.path.exists(cached):
        os.makedirs(cache_folder, exist_ok=True)

        def tell(holder):
            print('waiting for %s, which is encoding into %s' % (holder, cache_folder), file=sys.stderr, flush=True)

        with folder_lock(cache_folder, tell):
            for name in os.listdir(cache_folder):  # unfinished files: having the lock, we know that nobody is writing them
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
    """Hash what the ids depend on: the vocabulary, the bytes of the files in order, and how each is read."""
    # Raise the 1 when a change to this file or to the encoder gives other ids for the same text.
    vocabulary = [1, sorted(encoder.encoder.items()), sorted(encoder.bpe_ranks.items()), encoder.end_of_text]
    key = hashlib.sha256(json.dumps(vocabulary).encode('utf-8'))
    for path in files:
        key.update(sha256(path, b'jsonl' if path.endswith('.jsonl') else b'text').digest())
    return key.hexdigest()[:16]


def _encode(encoder, pieces, processes, total_bytes):
    """Yield the ids of documents in order, as uint16 arrays, with a progress bar. pieces: as in_pieces yields them."""
    if len(encoder.encoder) > MAX_VOCAB:
        raise ValueError('the vocabulary has %d tokens; a corpus of 16-bit ids can hold %d at most'
                         % (len(encoder.encoder), MAX_VOCAB))
    with tqdm(desc='encoding', total=total_bytes, unit='B', unit_scale=True, disable=None) as bar:
        for ids, size_bytes in _map_chunks(encoder, _chunks(pieces), processes or process.n_cores()):
            bar.update(size_bytes)
            yield ids
        bar.total = bar.n  # the files' separators and JSON quotes are not encoded


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
    """Yield `_encode_chunk` of each chunk, in order. Reads only a few chunks ahead: the corpus may be larger than memory."""
    first = list(itertools.islice(chunks, 2))
    chunks = itertools.chain(first, chunks)
    if processes == 1 or len(first) < 2:
        yield from (_encode_chunk(encoder, chunk) for chunk in chunks)
        return
    # Not pool.imap: it reads in a thread of its own and lets results pile up when they are written slowly.
    with multiprocessing.Pool(processes, _start_worker, (encoder,)) as pool:  # leaving, by Ctrl-C too, ends the workers
        pending = collections.deque()
        for chunk in chunks:
            pending.append(pool.apply_async(_work, (chunk,)))
            if len(pending) > 2 * processes:
                yield process.wait_for(pending.popleft().get)
        while pending:
            yield process.wait_for(pending.popleft().get)


def _encode_chunk(encoder, chunk):
    """Returns the ids of a chunk and the size of its text in bytes."""
    ids = [token for text in chunk for token in ([encoder.end_of_text] if text is None else encoder.encode(text))]
    return np.array(ids, np.uint16), sum(len(text.encode('utf-8', 'surrogatepass')) for text in chunk if text)


def _start_worker(encoder):
    global _encoder  # a pool has no other way to give its workers something once
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process: the parent ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by SIGTERM, for which the parent may have set a handler
    process.end_with(os.getppid())


def _work(chunk):
    return _encode_chunk(_encoder, chunk)


def training_batches(tokens, *, batch_size, n_ctx, seed, first=0):
    """Iterate without end over batches, from number `first` on; batch i depends on tokens, seed and i only.

    The corpus is a ring. Each epoch cuts it into windows, starting at a random place, and takes each window once, in random
    order. A batch may hold the last windows of one epoch and the first of the next.
    tokens: integer array [N].  seed: 0 ... 2^32 - 1.  first: the number of batches that a resumed run has seen.
    Yields int32 [batch_size, n_ctx].
    Raises ValueError for fewer than n_ctx tokens, or another seed.
    """
    if len(tokens) < n_ctx:
        raise ValueError('a corpus of %d tokens is shorter than one window of %d; give more text or a smaller context'
                         % (len(tokens), n_ctx))
    if not 0 <= seed < 2 ** 32:
        raise ValueError('seed is %s; it must be in 0 ... 4294967295' % seed)
    return _training_batches(tokens, batch_size, n_ctx, seed, first)


def _training_batches(tokens, batch_size, n_ctx, seed, first):
    n_windows = len(tokens) // n_ctx
    epoch = None
    for batch in itertools.count(first):
        starts = []
        for window in range(batch * batch_size, (batch + 1) * batch_size):
            if window // n_windows != epoch:
                epoch = window // n_windows
                # RandomState, because it gives the same numbers in every NumPy since 1.16.
                random = np.random.RandomState([seed, epoch])
                phase = random.randint(len(tokens), dtype=np.int64)
                order = random.permutation(n_windows)
            starts.append(phase + n_ctx * int(order[window % n_windows]))
        positions = np.array(starts)[:, None] + np.arange(n_ctx)
        yield tokens[positions % len(tokens)].astype(np.int32)


def windows(tokens, *, n_ctx, stride):
    """Iterate over windows of a text that together score each token once, but for the first, which nothing predicts.

    Window i begins at token i * stride and has one token more than the context: its last is predicted, never fed.
    tokens: integer array [N].  stride: 1 (every token sees as much as fits) ... n_ctx (no token is fed twice).
    Yields (ids, first_scored): int32 [T], T = n_ctx + 1 except in the last window; the tokens to score are
    ids[first_scored:]. Token p of the text sees at least the min(p, n_ctx + 1 - stride) tokens before it.
    Yields nothing for fewer than two tokens.
    Raises ValueError for a stride outside 1 ... n_ctx.
    """
    if not 1 <= stride <= n_ctx:
        raise ValueError('stride is %d; it must be in 1 ... %d, the context' % (stride, n_ctx))
    if len(tokens) < 2:
        return iter(())
    overlap = n_ctx + 1 - stride
    begins = range(0, max(1, len(tokens) - overlap), stride)  # a later window would have no token left to score
    return ((np.asarray(tokens[begin:begin + n_ctx + 1], np.int32), overlap if begin else 1) for begin in begins)
