"""What a model makes of texts and benchmarks: rows of tokens, batches of rows, figures. NumPy only: a model is functions."""
from collections import namedtuple
import math
import os

import numpy as np
from tqdm import tqdm

import benchmarks
import corpus
from detokenize import CBT, detokenize

# Rows of tokens, and what they cost

Row = namedtuple('Row', 'ids first')  # int32 [T], and the first token to score
Batch = namedtuple('Batch', 'rows ids first')  # numbers of the rows, int32 [B, T], the first token to score in all of them


def document_rows(ids, end_of_text, *, n_ctx, stride, fills_last=False):
    """The Rows that score each token of a document once, the first one given an end-of-text token.

    fills_last: the last window reaches back until it is as long as the context, as that of lm-eval does.
    """
    tokens = np.concatenate([[end_of_text], ids]).astype(np.int32)
    rows = [Row(*window) for window in corpus.windows(tokens, n_ctx=n_ctx, stride=stride)]
    if fills_last and len(rows) > 1:
        n_scored = len(rows[-1].ids) - rows[-1].first
        rows[-1] = Row(tokens[-(n_ctx + 1):], n_ctx + 1 - n_scored)
    return rows


def batches(rows, n_tokens):
    """A list of Batches of rows that are equally long and scored from the same token on, of about n_tokens; longest first."""
    result, shape = [], None
    for number in sorted(range(len(rows)), key=lambda number: (-len(rows[number].ids), rows[number].first)):
        row = rows[number]
        if shape != (len(row.ids), row.first) or (len(result[-1]) + 1) * len(row.ids) > n_tokens:
            result.append([])
            shape = len(row.ids), row.first
        result[-1].append(number)
    return [Batch(numbers, np.stack([rows[number].ids for number in numbers]), rows[numbers[0]].first) for numbers in result]


def compute(function, work, *, label, running):
    """Call function(ids, first) for each Batch of work, with a progress bar. Ctrl-C ends it early.

    running: function of a batch and its output, to the Sum that the bar adds up and shows.
    Returns (results, interrupted): a list of (Batch, what function returned).
    """
    results, so_far = [], None
    with tqdm(work, desc=label, unit='batch', disable=None, leave=False) as bar:
        try:
            for batch in bar:
                output = function(batch.ids, batch.first)
                results.append((batch, output))
                so_far = running(batch, output).plus(so_far)
                bar.set_postfix_str('%s %.2f' % (so_far.measure, so_far.value()), refresh=False)
        except KeyboardInterrupt:
            return results, True
    return results, False


class Sum(namedtuple('Sum', 'measure total count')):
    """What a figure is made of. measure: 'perplexity' (of nats), 'bits' (of nats) or 'accuracy' (of hits, in percent)."""

    def plus(self, other):
        return self if other is None else self._replace(total=self.total + other.total, count=self.count + other.count)

    def value(self):
        mean = float(self.total) / self.count
        return {'perplexity': lambda: math.exp(min(mean, 700)),  # e^710 is over what a float holds
                'bits': lambda: mean / math.log(2),
                'accuracy': lambda: 100 * mean}[self.measure]()


def token_perplexity(batch, nats):
    """The Sum of a batch of the scorer's."""
    return Sum('perplexity', np.sum(nats, dtype=np.float64), nats.size)


# The benchmarks

Model = namedtuple('Model', 'name encoder hparams score guesser')
# score: function(ids [B, T], first) to nats [B, T - first], of predicting ids[:, first:]
# guesser: function of token ids to a function like score, to (nats, likeliest, likeliest that is not one of these)
Options = namedtuple('Options', 'context stride batch_size limit')
# context, stride: tokens, or None for all that the model can see.  batch_size: sequences as long as the context.
# limit: how many windows, passages or questions are measured, or None
Figure = namedtuple('Figure', 'benchmark protocol measure value share')  # share: how much of the benchmark was measured


def score_documents(model, documents, options, *, label, fills_last=False):
    """Score each token of the documents once. documents: list of lists of token ids.

    Returns (nats, interrupted): a list of float32 arrays, one for each document, NaN where a token was not reached.
    Raises ValueError for a context that is over the model's.
    """
    n_ctx = model.hparams.n_ctx if options.context is None else options.context
    if n_ctx > model.hparams.n_ctx:
        raise ValueError('--context is %d, and the model %s sees %d tokens at most' % (n_ctx, model.name, model.hparams.n_ctx))
    rows, places = [], []  # places: (document, where in it the row's tokens begin)
    nats = [np.full(len(ids), np.nan, np.float32) for ids in documents]
    for document, ids in enumerate(documents):
        begin = 0
        for row in document_rows(ids, model.encoder.end_of_text, n_ctx=n_ctx, stride=options.stride or n_ctx,
                                 fills_last=fills_last):
            rows.append(row)
            places.append((document, begin))
            begin += len(row.ids) - row.first
    work = batches(rows[:options.limit], options.batch_size * (n_ctx + 1))
    results, interrupted = compute(model.score, work, label=label, running=token_perplexity)
    for batch, nats_BN in results:
        for number, nats_N in zip(batch.rows, nats_BN):
            document, begin = places[number]
            nats[document][begin:begin + len(nats_N)] = nats_N
    return nats, interrupted


def measure(model, benchmark, path, options):
    """Yield the Figures of a benchmark as they are ready. Interrupted, yield those of what is done, and raise KeyboardInterrupt."""
    if benchmark == 'lambada':
        return measure_lambada(model, path, options)
    if benchmark.startswith('cbt'):
        return measure_cbt(model, path, options)
    return measure_text(model, benchmark, path, options)


def measure_text(model, benchmark, path, options):
    """Figures of a benchmark that is a running text: for each of its readings the nats over each of its denominators."""
    text = benchmarks.read_text(benchmark, path)
    for reading in benchmarks.text_readings(benchmark, text):
        documents = [model.encoder.encode(document) for document in reading.documents]
        nats, interrupted = score_documents(model, documents, options, label='%s, %s' % (benchmark, reading.name),
                                            fills_last=reading.fills_last)
        nats = np.concatenate(nats)
        share = np.mean(~np.isnan(nats))
        for unit, count, measure in benchmarks.denominators(benchmark, text, n_tokens=len(nats)):
            if share:
                value = Sum(measure, np.nansum(nats, dtype=np.float64), count * share).value()
                yield Figure(benchmark, '%s; %s per %s' % (reading.name, measure, unit), measure, value, share)
        if interrupted:
            raise KeyboardInterrupt


def measure_lambada(model, path, options):
    """Figures of LAMBADA (Paperno et al. 2016, arXiv:1606.06031): a passage's last word, guessed by its context.

    Each reading of the text is measured on the whole last word, as the task has it, and on its last token, as OpenAI
    did; a filter bars guesses that are stop words, at the word's first token or at the last one.
    """
    passages = benchmarks.read_lambada(path)
    barred = [token for token in model.encoder.decoder
              if model.encoder.decode([token]).strip().lower() in benchmarks.STOP_WORDS]
    guess = model.guesser(barred)
    for name, prepare in benchmarks.LAMBADA_TEXTS:
        rows = [last_word_row(model, prepare(passage)) for passage in passages[:options.limit]]
        results, interrupted = compute(guess, batches(rows, options.batch_size * (model.hparams.n_ctx + 1)),
                                       label='lambada, %s' % name, running=word_accuracy)
        share = sum(len(batch.rows) for batch, _ in results) / len(passages)
        for protocol, measure, sums in lambada_sums(results):
            yield Figure('lambada', '%s; %s' % (name, protocol), measure, sums.value(), share)
        if interrupted:
            raise KeyboardInterrupt


def last_word_row(model, passage):
    """The Row that scores a passage's last word: what follows its last space, and that space."""
    context = passage.rpartition(' ')[0].rstrip(' ')
    ids = model.encoder.encode(passage)
    n_word = len(ids) - len(model.encoder.encode(context))
    ids = np.array(ids[-(model.hparams.n_ctx + 1):], np.int32)
    return Row(ids, max(1, len(ids) - n_word))


def hits(batch, outputs):
    """Whether each token of a batch was the likeliest: bool [B, N], and the likeliest that is allowed: bool [B, N]."""
    target_BN = batch.ids[:, batch.first:]
    return outputs[1] == target_BN, outputs[2] == target_BN


def word_accuracy(batch, outputs):
    """The Sum of whole last words guessed."""
    return Sum('accuracy', hits(batch, outputs)[0].all(axis=1).sum(), len(batch.rows))


def lambada_sums(results):
    """The protocols of LAMBADA: a list of (name, measure, Sum)."""
    found = {}
    for batch, outputs in results:
        hit_BN, allowed_BN = hits(batch, outputs)
        filtered_BN = np.concatenate([allowed_BN[:, :1], hit_BN[:, 1:]], axis=1)
        for name, measure, values in (
                ('last word; perplexity', 'perplexity', outputs[0].sum(axis=1, dtype=np.float64)),
                ('last word; accuracy', 'accuracy', hit_BN.all(axis=1)),
                ('last word, no stop words; accuracy', 'accuracy', filtered_BN.all(axis=1)),
                ('last token; perplexity', 'perplexity', outputs[0][:, -1]),
                ('last token; accuracy', 'accuracy', hit_BN[:, -1]),
                ('last token, no stop words; accuracy', 'accuracy', allowed_BN[:, -1])):
            found[name] = Sum(measure, values.sum(dtype=np.float64), len(values)).plus(found.get(name))
    return [(name, found[name].measure, found[name]) for name in sorted(found)]


def measure_cbt(model, path, options):
    """Figures of the Children's Book Test: of ten candidates for a gap, the one that makes the text likeliest is chosen.

    The text from the gap on counts (what stands before is the same for all), or the candidate alone.
    """
    benchmark = 'cbt-cn' if '_CN' in os.path.basename(path) else 'cbt-ne' if '_NE' in os.path.basename(path) else 'cbt'
    questions = benchmarks.read_cbt(path)
    for name, rules in (('as it is', None), ('detokenized', CBT)):
        work, ends = [], []
        for number, question in enumerate(questions[:options.limit]):
            ids, first, end = candidate_rows(model, question, rules)
            work.append(Batch([number], ids, first))
            ends.append(end)

        def right(batch, nats_BN, counted='text'):
            number = batch.rows[0]
            return Sum('accuracy', choice(nats_BN, ends[number][counted]) == questions[number].answer, 1)

        results, interrupted = compute(model.score, work, label='%s, %s' % (benchmark, name), running=right)
        for counted, protocol in (('text', 'whole text'), ('candidate', 'candidate alone')):
            if results:
                total = sum(right(*result, counted=counted).total for result in results)
                yield Figure(benchmark, '%s; %s; accuracy' % (name, protocol), 'accuracy',
                             Sum('accuracy', total, len(results)).value(), len(results) / len(questions))
        if interrupted:
            raise KeyboardInterrupt


def candidate_rows(model, question, rules):
    """The tokens of a question with each candidate in its gap: (ids, first, ends).

    ids: int32 [candidates, T], padded on the right.  first: the first token to score.
    ends: {'text': ..., 'candidate': ...}, for each row how many scored tokens there are up to the end of the text, and up
    to the end of the candidate.
    """
    def encode(text):
        return [model.encoder.end_of_text] + model.encoder.encode(detokenize(text, rules) if rules else text)

    start = question.context + ' ' + question.before if question.context else question.before
    texts = [encode(start + candidate + question.after) for candidate in question.candidates]
    n_shared = len(os.path.commonprefix(texts))
    longest, room = max(map(len, texts)), model.hparams.n_ctx + 1
    begin = max(0, min(longest - room, n_shared - 1))  # of a text that is too long the candidate stays, and a token before it
    ids = np.full([len(texts), min(longest - begin, room)], model.encoder.end_of_text, np.int32)
    for row, text in zip(ids, texts):
        row[:len(text) - begin] = text[begin:begin + room]
    return ids, n_shared - begin, {
        'text': [len(text) - n_shared for text in texts],
        'candidate': [len(encode(start + candidate)) - n_shared for candidate in question.candidates]}


def choice(nats_BN, ends):
    """The row of the least nats, each added up to its end."""
    return int(np.argmin([nats_N[:end].sum(dtype=np.float64) for nats_N, end in zip(nats_BN, ends)]))
