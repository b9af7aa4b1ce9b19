"""Score documents: windows of their tokens, what each token costs, and figures of the whole. NumPy only."""
import array
import codecs
from collections import namedtuple
import itertools
import json
import math
import os
import re

import numpy as np

from gpt2 import corpus
from gpt2.evaluation.batches import Predictions, Row, Sum, add_up, group_rows, stack_rows
from gpt2.system import files
from gpt2.system.progress import Progress

Options = namedtuple('Options', 'context stride batch_size limit')
# context, stride: in tokens; None is the context of the model.  batch_size: in sequences of the context's length.
# limit: number of windows, passages or questions to measure, from the beginning; None is all


# documents: for each document the tokens that were scored, int32 [N].  predictions: their Predictions.
# share: the fraction of the text that was scored, by bytes.  interrupted: whether Ctrl-C came before the end.
Scored = namedtuple('Scored', 'documents predictions share interrupted')


def check_options(options):
    """Returns the Options. Raises ValueError for a number below 1."""
    for name, value in zip(options._fields, options):
        if value is not None and value < 1:
            raise ValueError('--%s is %d; it must be 1 or more' % (name, value))
    return options


def window_sizes(hparams, options):
    """The (context, stride) in tokens. Raises ValueError for more context than the model has, or a stride over it."""
    n_ctx = hparams.n_ctx if options.context is None else options.context
    stride = n_ctx if options.stride is None else options.stride
    if n_ctx > hparams.n_ctx:
        raise ValueError('--context is %d; the context of the model is %d tokens, give at most that'
                         % (n_ctx, hparams.n_ctx))
    if stride > n_ctx:
        raise ValueError('--stride is %d and would skip tokens; give at most %d, the context' % (stride, n_ctx))
    return n_ctx, stride


def document_rows(ids, end_of_text, *, n_ctx, stride, fills_last=False, document=0):
    """The Rows that score each token of a document once; the first one is predicted from an end-of-text token.

    fills_last: start the last window early enough to make it as long as the others, as lm-eval does.
    """
    tokens = np.concatenate([[end_of_text], ids]).astype(np.int32)
    rows = [Row(*window, document=document) for window in corpus.windows(tokens, n_ctx=n_ctx, stride=stride)]
    if fills_last and len(rows) > 1:
        n_scored = len(rows[-1].ids) - rows[-1].first
        rows[-1] = Row(tokens[-(n_ctx + 1):], n_ctx + 1 - n_scored, document)
    return rows


def score_documents(model, pieces, options, *, n_bytes, label, fills_last=False, predict=None):
    """Score each token of documents once. With a limit only the first windows are read, encoded and scored.

    pieces: as corpus.read_pieces yields them.  n_bytes: their approximate size, 0 if unknown (a pipe).
    predict: as model.predictor returns it; None for nats alone.
    Returns a Scored, without the documents of which nothing was scored.
    """
    documents, rows, is_cut = read_rows(model, pieces, options, n_bytes=n_bytes, fills_last=fills_last)
    found, interrupted = predict_rows(model, rows, options, label=label, predict=predict)
    n_whole = n_bytes if is_cut else count_bytes(model.encoder, documents)
    documents = [documents[number][:len(found[number].nats)] for number in sorted(found)]
    n_scored = count_bytes(model.encoder, documents)
    predictions = [found[number] for number in sorted(found)]
    return Scored(documents, predictions, n_scored / max(1, n_scored, n_whole), interrupted)


def predict_rows(model, rows, options, *, label, predict=None):
    """The Predictions for each document, {its number: Predictions}, and whether Ctrl-C came before the end.

    predict: as score_documents takes it.  Raises ValueError for numbers that are not finite.
    """
    parts = {}

    def predict_batch(numbers):
        ids, first = stack_rows(rows, numbers)
        arrays = [x for x in (predict(ids, first) if predict else [model.score(ids, first)]) if x is not None]
        if not all(np.isfinite(x).all() for x in arrays[:4]):  # top_nats may be infinite
            raise ValueError('the model predicts numbers that are not finite; its weights may be damaged: '
                             'fetch them again')
        for i, number in enumerate(numbers):  # group_rows keeps the rows of a document in order
            parts.setdefault(rows[number].document, []).append([x[i] for x in arrays])
        return {'nats': Sum('perplexity', np.sum(arrays[0], dtype=np.float64), arrays[0].size)}

    n_ctx, _ = window_sizes(model.hparams, options)
    batches = group_rows(rows, options.batch_size * (n_ctx + 1))
    _, interrupted = add_up(predict_batch, batches, label=label, shown='nats')
    return {number: Predictions(*map(np.concatenate, zip(*part))) for number, part in parts.items()}, interrupted


# Reading and encoding

def read_rows(model, pieces, options, *, n_bytes, fills_last):
    """Read and encode documents up to the limit, and cut them into Rows.

    Returns (documents, rows, is_cut). documents: list of int32 arrays.  is_cut: whether text was left over.
    """
    n_ctx, stride = window_sizes(model.hparams, options)
    documents, rows = [], []
    with encoding_progress(n_bytes) as progress:
        for document in corpus.by_document(pieces):
            n_windows = math.inf if options.limit is None else options.limit - len(rows)
            if not n_windows:
                return documents, rows, True
            ids, is_cut = encode(model.encoder, document, n_ctx + (n_windows - 1) * stride, progress)
            rows += document_rows(ids, model.encoder.end_of_text, n_ctx=n_ctx, stride=stride, fills_last=fills_last,
                                  document=len(documents))
            documents.append(ids)
            if is_cut:  # asking for the next document would read the rest of this one
                return documents, rows, True
    return documents, rows, False


def read_tokens(encoder, paths, limit=None):
    """Yield the token ids of each document in files, int32 [N]. limit: number of documents; None is all."""
    with encoding_progress(sum(map(os.path.getsize, paths))) as progress:
        for document in itertools.islice(corpus.by_document(corpus.read_pieces(paths)), limit):
            yield encode(encoder, document, math.inf, progress)[0]


def encoding_progress(n_bytes):
    """The Progress of encoding texts. n_bytes: 0 if unknown."""
    return Progress(n_bytes or None, unit='B', unit_scale=True, label='encoding', leave=False)


def encode(encoder, pieces, limit, progress):
    """The first `limit` token ids of a document's pieces, int32 [N], and whether there were more."""
    ids = array.array('i')  # a list would take several times the memory
    for piece in pieces:
        ids.extend(encoder.encode(piece))
        progress.advance(len(piece.encode('utf-8')))
        if len(ids) > limit:
            return np.array(ids[:limit], np.int32), True
    return np.array(ids, np.int32), False


def count_bytes(encoder, documents):
    """The size in bytes of the text of documents. documents: list of int arrays of token ids."""
    size_V = np.array([len(encoder.decoder[token]) for token in range(len(encoder.decoder))])  # a character per byte
    return int(sum(size_V[ids].sum() for ids in documents))


def text_of(encoder, ids):
    """Iterate over the text of token ids, in pieces that end where a word does, without half a character at the end."""
    decoder = codecs.getincrementaldecoder('utf-8')()
    parts = (decoder.decode(encoder.decode_bytes(ids[begin:begin + corpus.CHUNK].tolist()))
             for begin in range(0, len(ids), corpus.CHUNK))
    return (piece for piece in corpus.in_pieces(itertools.chain(parts, [None])) if piece)


def by_line(pieces):
    """Make each line a document of its own. pieces: as corpus.read_pieces yields them; so are those returned."""
    return (None if part == '\n' else part for piece in pieces for part in re.findall('[^\n]+|\n', piece or '\n'))


# Results

def figures(encoder, scored):
    """Yield what to print about scored documents: (name, str)."""
    counts = np.zeros(3, np.int64)
    for ids in scored.documents:
        for piece in text_of(encoder, ids):
            counts += len(piece.split()), len(piece.encode('utf-8')), len(piece)
    counts = [('token', sum(map(len, scored.documents)))] + list(zip(('word', 'byte', 'character'), counts))
    total = sum(found.nats.sum(dtype=np.float64) for found in scored.predictions)
    yield 'documents', '%d' % len(scored.documents)
    yield from ((unit + 's', '%d' % count) for unit, count in counts)
    if scored.share < 1:
        yield 'share of the text', '%.3g %%' % (100 * scored.share)
    yield 'nats', '%.6g' % total
    for (unit, count), metric in zip(counts, ('perplexity', 'perplexity', 'bits', 'bits')):
        if count:
            yield '%s per %s' % (metric, unit), '%.6g' % Sum(metric, total, count).value()


def write_jsonl(path, encoder, scored):
    """Write a line of JSON for each document, as far as it was scored.

    It has the text, the tokens, the sum of their nats, and the natural logarithms of their probabilities.
    """
    with files.replacing(path) as part, open(part, 'w', encoding='utf-8', newline='\n') as file:
        for ids, found in zip(scored.documents, scored.predictions):
            line = {'text': ''.join(text_of(encoder, ids)), 'tokens': ids.tolist(),
                    'nats': float(found.nats.sum(dtype=np.float64)),
                    'log_probabilities': [-float('%.7g' % x) for x in found.nats]}
            file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + '\n')
