"""How texts and benchmarks are measured: rows of tokens, batches of rows, figures. NumPy only: a Model holds functions."""
import codecs
from collections import namedtuple
import functools
import itertools
import math
import os

import numpy as np
from tqdm import tqdm

import corpus
from evaluation import benchmarks
from evaluation.detokenize import detokenize
import process

# Rows of tokens, and what they cost

Row = namedtuple('Row', 'ids first')  # ids: int32 [T].  first: the place of the first token to score


def document_rows(ids, end_of_text, *, n_ctx, stride, fills_last=False):
    """The Rows that score each token of a document once; an end-of-text token stands before the first one.

    fills_last: whether the last window reaches back until it is as long as the others, as in lm-eval.
    """
    tokens = np.concatenate([[end_of_text], ids]).astype(np.int32)
    rows = [Row(*window) for window in corpus.windows(tokens, n_ctx=n_ctx, stride=stride)]
    if fills_last and len(rows) > 1:
        n_scored = len(rows[-1].ids) - rows[-1].first
        rows[-1] = Row(tokens[-(n_ctx + 1):], n_ctx + 1 - n_scored)
    return rows


def batches(rows, n_tokens):
    """Group Rows of the same length and the same first token, about n_tokens in a batch, the longest first.

    Returns a list of lists of row numbers; those of one document stay in order.
    """
    result, shape = [], None
    for number in sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), rows[number].first)):
        row = rows[number]
        if shape != (len(row.ids), row.first) or (len(result[-1]) + 1) * len(row.ids) > n_tokens:
            result.append([])
            shape = len(row.ids), row.first
        result[-1].append(number)
    return result


def stack(rows, numbers):
    """The rows with these numbers, which are one batch, as (ids, first): int32 [B, T], and the first token to score."""
    return np.stack([rows[number].ids for number in numbers]), rows[numbers[0]].first


def add_up(function, work, *, label, shown):
    """Add up what function returns for each item of the list work, {name: Sum}. Ctrl-C ends it early.

    shown: the name whose value the progress bar shows. Returns ({name: Sum}, interrupted).
    """
    sums = {}
    with tqdm(work, desc=label, unit='batch', disable=None, leave=False) as bar:
        try:
            with process.interruptible():
                for item in bar:
                    sums = {name: part.plus(sums.get(name)) for name, part in function(item).items()}
                    bar.set_postfix_str('%s %.2f' % (sums[shown].metric, sums[shown].value()), refresh=False)
        except KeyboardInterrupt:
            return sums, True
    return sums, False


class Sum(namedtuple('Sum', 'metric total count')):
    """What a figure is the mean of. metric: 'perplexity' or 'bits', where nats are counted, or 'accuracy', where hits are."""

    def plus(self, other):
        """The Sum of both. other: of the same metric, or None."""
        return self if other is None else self._replace(total=self.total + other.total, count=self.count + other.count)

    def value(self):
        """The figure: a perplexity, bits, or percent."""
        mean = float(self.total) / self.count
        return {'perplexity': lambda: math.exp(min(mean, 700)),  # a float cannot hold e^710
                'bits': lambda: mean / math.log(2),
                'accuracy': lambda: 100 * mean}[self.metric]()


# Texts

Model = namedtuple('Model', 'name encoder hparams score guesser predictor')
# score: function(ids [B, T], first) that returns nats [B, T - first], of predicting ids[:, first:]
# guesser: function(barred) that returns a function like score, which returns (nats, likeliest, likeliest that is not barred)
# predictor: function(n_likeliest) that returns a function like score, which returns Predictions [B, T - first]
Options = namedtuple('Options', 'context stride batch_size limit')
# context, stride: in tokens; None for all that the model can see.  batch_size: in sequences as long as the context.
# limit: how many windows, passages or questions to measure; None for all
# What the model thought in the place of each token of a text.  nats: float [N], what the token cost to predict
# rank: int [N], one more than there were likelier tokens: 1 for the likeliest
# entropy, variance: float [N], the mean over all tokens of their nats, each weighted with its probability, and the variance
# likeliest, likeliest_nats: [N, any], the ids of the likeliest tokens, the likeliest first, and what each would have cost
# None stands for what was not asked for.
Predictions = namedtuple('Predictions', 'nats rank entropy variance likeliest likeliest_nats')


class Scored(namedtuple('Scored', 'documents predictions share interrupted')):
    """documents: for each document the tokens that were scored, int32 [N].  predictions: the Predictions of them.

    share: the fraction of the text that was scored, by bytes.
    """

    @property
    def nats(self):
        """For each document what its tokens cost, float32 [N]."""
        return [predictions.nats for predictions in self.predictions]


def window_sizes(hparams, options):
    """The (context, stride) in tokens. Raises ValueError if the model cannot see as much, or if tokens would be skipped."""
    n_ctx = hparams.n_ctx if options.context is None else options.context
    stride = n_ctx if options.stride is None else options.stride
    if n_ctx > hparams.n_ctx:
        raise ValueError('--context is %d, and the model sees %d tokens at most' % (n_ctx, hparams.n_ctx))
    if stride > n_ctx:
        raise ValueError('--stride is %d, and would skip tokens; give %d, the context, or less' % (stride, n_ctx))
    return n_ctx, stride


def score_documents(model, pieces, options, *, n_bytes, label, fills_last=False, predict=None):
    """Score each token of documents once. With a limit only the first windows are read, encoded and scored.

    pieces: as corpus.read_pieces yields them.  n_bytes: about how many bytes they have, 0 if unknown (of a pipe).
    predict: what model.predictor returns; None for nats alone.
    Returns a Scored, without the documents of which nothing was scored.
    """
    documents, rows, owners, cut = windows(model, pieces, options, n_bytes=n_bytes, fills_last=fills_last)
    found, interrupted = predict_rows(model, rows, owners, options, label=label, predict=predict)
    n_whole = n_bytes if cut else count_bytes(model.encoder, documents)
    documents = [documents[owner][:len(found[owner].nats)] for owner in sorted(found)]
    n_scored = count_bytes(model.encoder, documents)
    return Scored(documents, [found[owner] for owner in sorted(found)], n_scored / max(1, n_scored, n_whole), interrupted)


def predict_rows(model, rows, owners, options, *, label, predict=None):
    """The Predictions of the Rows of each document, {its number: Predictions}, and whether Ctrl-C came before the end.

    owners: for each row the number of its document.  predict: as score_documents takes it.
    Raises ValueError for numbers that are not finite.
    """
    parts = {}

    def predict_batch(numbers):
        ids, first = stack(rows, numbers)
        found = predict(ids, first) if predict else Predictions(model.score(ids, first), *[None] * 5)
        if not all(np.isfinite(array).all() for array in (found.nats, found.entropy, found.variance) if array is not None):
            raise ValueError('the model predicts numbers that are not finite; its weights may be damaged, so fetch them again')
        for i, number in enumerate(numbers):  # batches() keeps the rows of a document in order
            parts.setdefault(owners[number], []).append([None if array is None else array[i] for array in found])
        return {'nats': Sum('perplexity', np.sum(found.nats, dtype=np.float64), found.nats.size)}

    n_ctx, _ = window_sizes(model.hparams, options)
    _, interrupted = add_up(predict_batch, batches(rows, options.batch_size * (n_ctx + 1)), label=label, shown='nats')
    return {owner: Predictions(*[None if arrays[0] is None else np.concatenate(arrays) for arrays in zip(*part)])
            for owner, part in parts.items()}, interrupted


def windows(model, pieces, options, *, n_bytes, fills_last):
    """Read and encode documents up to the limit, and cut them into Rows.

    Returns (documents, rows, owners, cut). documents: int32 arrays.  owners: for each row the number of its document.
    cut: whether there was more text.
    """
    n_ctx, stride = window_sizes(model.hparams, options)
    documents, rows, owners = [], [], []
    with encoding_bar(n_bytes) as bar:
        for document in corpus.by_document(pieces):
            n_windows = math.inf if options.limit is None else options.limit - len(rows)
            if not n_windows:
                return documents, rows, owners, True
            ids, cut = encode(model.encoder, document, n_ctx + (n_windows - 1) * stride, bar)
            new = document_rows(ids, model.encoder.end_of_text, n_ctx=n_ctx, stride=stride, fills_last=fills_last)
            rows += new
            owners += [len(documents)] * len(new)
            documents.append(ids)
            if cut:
                return documents, rows, owners, True
    return documents, rows, owners, False


def read_tokens(encoder, paths, limit=None):
    """Yield the token ids of each document in files, int32 [N]. limit: only so many documents; None is all."""
    with encoding_bar(sum(map(os.path.getsize, paths))) as bar:
        for document in itertools.islice(corpus.by_document(corpus.read_pieces(paths)), limit):
            yield encode(encoder, document, math.inf, bar)[0]


def encoding_bar(n_bytes):
    """A progress bar over the bytes of texts; 0 if it is not known how many there are."""
    return tqdm(desc='encoding', total=n_bytes or None, unit='B', unit_scale=True, disable=None, leave=False)


def encode(encoder, pieces, limit, bar):
    """The token ids of a document's pieces, int32 [N], but no more than the first limit; and whether there were more."""
    found, n_found = [np.zeros(0, np.int32)], 0
    for piece in pieces:
        found.append(np.array(encoder.encode(piece), np.int32))
        n_found += len(found[-1])
        bar.update(len(piece.encode('utf-8')))
        if n_found > limit:
            return np.concatenate(found)[:limit], True
    return np.concatenate(found), False


def count_bytes(encoder, documents):
    """How many bytes of text token ids stand for. documents: list of int arrays."""
    sizes = np.zeros(max(encoder.decoder) + 1, np.int64)
    for token, symbol in encoder.decoder.items():
        sizes[token] = len(symbol)  # a token is spelled with one character for each byte
    return int(sum(sizes[ids].sum() for ids in documents))


def text_of(encoder, ids):
    """Iterate over the text of token ids, in pieces that end where a word does. Half a character at the end is left out."""
    decoder = codecs.getincrementaldecoder('utf-8')()
    parts = (decoder.decode(encoder.decode_bytes(ids[begin:begin + corpus.CHUNK].tolist()))
             for begin in range(0, len(ids), corpus.CHUNK))
    return (piece for piece in corpus.in_pieces(itertools.chain(parts, [None])) if piece)


# The benchmarks

Figure = namedtuple('Figure', 'benchmark protocol metric value share')  # share: the fraction of the benchmark that was measured


def measure(model, benchmark, data, options, protocols=None):
    """Yield the Figures of a benchmark as they are ready. After Ctrl-C: those of what is done, then raise KeyboardInterrupt.

    data: what benchmarks.read returns.  protocols: the names of those wanted; None is all.
    """
    def is_wanted(protocol):
        """Whether this is one of protocols, or how one of them begins."""
        return protocols is None or any((wanted + ';').startswith(protocol + ';') for wanted in protocols)

    if benchmark == 'lambada':
        barred = [token for token in model.encoder.decoder
                  if model.encoder.decode([token]).strip().lower() in benchmarks.STOP_WORDS]
        readings, measure_reading = benchmarks.LAMBADA_READINGS, functools.partial(measure_lambada, guess=model.guesser(barred))
    elif benchmark.startswith('cbt'):
        readings, measure_reading = benchmarks.CBT_READINGS, measure_cbt
    else:
        readings, measure_reading = benchmarks.text_readings(benchmark, data), measure_text
    for reading in readings:
        if not is_wanted(reading[0]):
            continue
        figures, share, interrupted = measure_reading(model, benchmark, data, options, reading)
        for protocol, figure in figures:
            protocol = '%s; %s' % (reading[0], protocol)
            if is_wanted(protocol):
                yield Figure(benchmark, protocol, figure.metric, figure.value(), share)
        if interrupted:
            raise KeyboardInterrupt


# Each of these returns (figures, share, interrupted): a list of (protocol, Sum), the fraction that was measured, and whether
# Ctrl-C came before the end.

def measure_text(model, benchmark, text, options, reading):
    """A reading of a running text: its nats over each of the benchmark's denominators; for a part of it, over their share."""
    pieces = corpus.in_pieces(corpus.with_ends(reading.documents))
    n_bytes = sum(len(document.encode('utf-8')) for document in reading.documents)
    scored = score_documents(model, pieces, options, label='%s, %s' % (benchmark, reading.name), n_bytes=n_bytes,
                             fills_last=reading.fills_last)
    if not scored.share:
        return [], 0, scored.interrupted
    nats = np.concatenate(scored.nats)
    denominators = benchmarks.denominators(benchmark, text, n_tokens=len(nats) / scored.share)
    return [('%s per %s' % (metric, unit), Sum(metric, nats.sum(dtype=np.float64), count * scored.share))
            for unit, count, metric in denominators], scored.share, scored.interrupted


def measure_lambada(model, benchmark, passages, options, reading, guess):
    """A reading of LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of each passage is to be guessed.

    guess: what model.guesser returns for the stop words.
    """
    name, prepare = reading
    rows = [last_word_row(model, prepare(passage)) for passage in passages[:options.limit]]

    def guess_words(numbers):
        ids, first = stack(rows, numbers)
        return lambada_sums(ids[:, first:], *guess(ids, first))

    sums, interrupted = add_up(guess_words, batches(rows, options.batch_size * (model.hparams.n_ctx + 1)),
                               label='%s, %s' % (benchmark, name), shown='last word; accuracy')
    return sorted(sums.items()), sums['last word; accuracy'].count / len(passages) if sums else 0, interrupted


def last_word_row(model, passage):
    """The Row that scores a passage's last word, with the space before it."""
    before = passage.rpartition(' ')[0].rstrip(' ')
    ids = model.encoder.encode(passage)
    n_word = len(ids) - len(model.encoder.encode(before))
    ids = np.array(ids[-(model.hparams.n_ctx + 1):], np.int32)
    return Row(ids, max(1, len(ids) - n_word))


def lambada_sums(word_BN, nats_BN, likeliest_BN, allowed_BN):
    """{protocol: Sum} of a batch. The whole last word counts, as the task has it, or its last token alone, as OpenAI did it.

    word_BN: the tokens of the last words.  allowed_BN: the likeliest tokens that are not stop words; the filter of stop words
    takes these for the first token of the word, or for the last one where that alone counts.
    """
    hit_BN, allowed_hit_BN = likeliest_BN == word_BN, allowed_BN == word_BN
    filtered_BN = np.concatenate([allowed_hit_BN[:, :1], hit_BN[:, 1:]], axis=1)
    values = (
        ('last word', 'perplexity', nats_BN.sum(axis=1, dtype=np.float64)),
        ('last word', 'accuracy', hit_BN.all(axis=1)),
        ('last word, no stop words', 'accuracy', filtered_BN.all(axis=1)),
        ('last token', 'perplexity', nats_BN[:, -1]),
        ('last token', 'accuracy', hit_BN[:, -1]),
        ('last token, no stop words', 'accuracy', allowed_hit_BN[:, -1]))
    return {'%s; %s' % (name, metric): Sum(metric, x_B.sum(dtype=np.float64), len(x_B)) for name, metric, x_B in values}


def measure_cbt(model, benchmark, questions, options, reading):
    """A reading of the Children's Book Test: of ten candidates for a gap, the one that makes the text likeliest is chosen.

    What is compared is the text from the gap on (before it all are the same), or the candidate alone.
    """
    name, rules = reading

    def answer(question):
        ids, first, ends = candidate_rows(model, question, rules)
        n_rows = max(1, options.batch_size * (model.hparams.n_ctx + 1) // ids.shape[1])
        nats_BN = np.concatenate([model.score(ids[row:row + n_rows], first) for row in range(0, len(ids), n_rows)])
        sums = {}
        for compared, end_B in ends.items():
            chosen = np.argmin([nats_N[:end].sum(dtype=np.float64) for nats_N, end in zip(nats_BN, end_B)])
            sums[compared + '; accuracy'] = Sum('accuracy', int(chosen == question.answer), 1)
        return sums

    sums, interrupted = add_up(answer, questions[:options.limit], label='%s, %s' % (benchmark, name),
                               shown='whole text; accuracy')
    share = sums['whole text; accuracy'].count / len(questions) if sums else 0
    return sorted(sums.items(), reverse=True), share, interrupted


def candidate_rows(model, question, rules):
    """The tokens of a question with each of its candidates in the gap: (ids, first, ends).

    ids: int32 [candidates, T], padded on the right.  first: the first token to score, the first that not all have.
    ends: {'whole text': ..., 'candidate alone': ...}: for each row, how many of the scored tokens belong to that.
    """
    def encode(text):
        return [model.encoder.end_of_text] + model.encoder.encode(detokenize(text, rules) if rules else text)

    start = question.story + ' ' + question.before if question.story else question.before
    texts = [encode(start + candidate + question.after) for candidate in question.candidates]
    n_common = len(os.path.commonprefix(texts))
    longest, room = max(map(len, texts)), model.hparams.n_ctx + 1
    begin = max(0, min(longest - room, n_common - 1))  # a text that is too long keeps the candidate and a token before it
    ids = np.full([len(texts), min(longest - begin, room)], model.encoder.end_of_text, np.int32)
    for row, text in zip(ids, texts):
        row[:len(text) - begin] = text[begin:begin + room]
    return ids, n_common - begin, {
        'whole text': [len(text) - n_common for text in texts],
        'candidate alone': [len(encode(start + candidate)) - n_common for candidate in question.candidates]}
