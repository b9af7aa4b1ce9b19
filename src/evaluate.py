#!/usr/bin/env python3
"""Score texts and the benchmarks of the GPT-2 paper with a model.

    python3 src/evaluate.py text novel.txt --model_name 117M
    python3 src/evaluate.py lambada lambada_test.jsonl --model_name 117M
    python3 src/evaluate.py table data --chart table.png

What a figure means is in the names of its protocol: README.md explains them; benchmarks.py and measure.py have each in full.
"""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

from collections import namedtuple
import contextlib
import functools
import json
import os
import sys

import numpy as np

import benchmarks
import checkpoint
import corpus
import encoder
import interrupts
from measure import Model, Options, Sum, measure, score_documents

LOGIT_ROWS = 512  # positions whose logits are in memory at once: 100 MB over the release's vocabulary


# The scorer

def scorer(sess, hparams):
    """A function score(ids, first=1) that tells what tokens cost to predict. The model under 'model' is built or reused.

    ids: int [B, T], T up to n_ctx + 1: the last token is predicted, and not fed.  first: the first token to score.
    score returns float32 [B, T - first], in nats.
    """
    run = by_position(sess, hparams, lambda logits_BNV, nats_BN: [nats_BN])
    return lambda ids, first=1: run(ids, first)[0]


def guesser(sess, hparams, barred):
    """As scorer, but the function returns (nats, likeliest, likeliest_allowed), each [B, T - first].

    barred: token ids that likeliest_allowed must not be.
    """
    from tf1 import tf
    penalty_V = np.zeros(hparams.n_vocab, np.float32)
    penalty_V[barred] = -1e10

    def figures(logits_BNV, nats_BN):
        return [nats_BN, tf.argmax(logits_BNV, axis=-1, output_type=tf.int32),
                tf.argmax(logits_BNV + penalty_V, axis=-1, output_type=tf.int32)]

    return by_position(sess, hparams, figures)


def by_position(sess, hparams, figures):
    """A function run(ids [B, T], first) to arrays [B, T - first] about predicting ids[:, first:].

    figures: function of tensors, logits [B, N, V] and nats [B, N] at N of these positions, to a list of tensors [B, N].
    Logits are computed where they are needed, and few at once: they would fill the memory.
    """
    import model
    from tf1 import tf
    with sess.graph.as_default(), tf.variable_scope('model', reuse=tf.AUTO_REUSE) as scope:
        tokens_BT, first = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.int32, [])
        n_batch, n_token = tf.unstack(tf.shape(tokens_BT))
        hidden_RD, _ = model.transform(hparams, tokens_BT[:, :-1])
        hidden_BTD = tf.reshape(hidden_RD, [n_batch, n_token - 1, hparams.n_embd])
        hidden_BTD = tf.pad(hidden_BTD, [[0, 0], [0, 1], [0, 0]])  # token_losses ignores what the last token predicts
        n_piece = tf.maximum(1, LOGIT_ROWS // n_batch)

        def piece(begin, *arrays):
            end = begin + n_piece + 1
            with tf.variable_scope(scope):
                logits_RV = model.unembed(hparams, tf.reshape(hidden_BTD[:, begin:end], [-1, hparams.n_embd]))
            logits_BNV = tf.reshape(logits_RV, [n_batch, -1, hparams.n_vocab])
            nats_BN = model.token_losses(logits_BNV, tokens_BT[:, begin:end])
            found = figures(logits_BNV[:, :-1], nats_BN)
            return [end - 1] + [array.write(array.size(), tf.transpose(x_BN)) for array, x_BN in zip(arrays, found)]

        types = [x.dtype for x in figures(tf.zeros([1, 1, hparams.n_vocab]), tf.zeros([1, 1]))]
        arrays = [tf.TensorArray(dtype, size=0, dynamic_size=True, infer_shape=False) for dtype in types]
        arrays = tf.while_loop(lambda begin, *_: begin < n_token - 1, piece, [first - 1] + arrays,
                               parallel_iterations=1, back_prop=False)[1:]
        outputs = [tf.transpose(array.concat()) for array in arrays]
    return lambda ids, first_scored=1: interrupts.wait_for(sess.run, outputs, {tokens_BT: ids, first: first_scored})


# The command line

@contextlib.contextmanager
def load(model_name, models_dir):
    """A Model, restored, in a graph and a session of its own, which end with the block."""
    checkpoint.model_dir(model_name, models_dir)
    text_encoder = encoder.get_encoder(model_name, models_dir)
    hparams = checkpoint.load_hparams(model_name, models_dir)
    from tf1 import tf
    with tf.Graph().as_default(), checkpoint.session() as sess:
        score = scorer(sess, hparams)
        checkpoint.restore(sess, model_name, models_dir)
        yield Model(str(model_name), text_encoder, hparams, score, functools.partial(guesser, sess, hparams))


def text(*paths, model_name='117M', context: int = None, stride: int = None, per_line=False, jsonl=None, batch_size=2,
         limit: int = None, models_dir='models'):
    """Score UTF-8 texts: nats, perplexity, bits per byte and per character. Each token is scored once.

    Args:
        paths: files, globs or folders of .txt and .jsonl
        model_name: which model, a folder in models_dir
        context: how many tokens the model sees at most; None is all that it can
        stride: tokens from one window to the next; None is context: the fastest, and the least context for each token
        per_line: take each line that is not empty for a document
        jsonl: write a line of JSON for each document into this file: its text, its tokens and their log-probabilities
        batch_size: sequences as long as the context computed at once
        limit: score this many windows, for a quick look
        models_dir: folder of the models, looked for here and then in the repository
    """
    options = checked(Options(context, stride, batch_size, limit))
    if not paths:
        raise ValueError('no text given; name files, globs or folders')
    documents = corpus.read_documents([str(path) for path in paths])
    documents = [line for document in documents for line in (document.split('\n') if per_line else [document]) if line]
    with load(model_name, models_dir) as model:
        ids = [model.encoder.encode(document) for document in documents]
        nats, interrupted = score_documents(model, ids, options, label='text')
        if jsonl:
            write_jsonl(jsonl, documents, ids, nats)
        for name, value in text_figures(documents, nats):
            print('%-26s %s' % (name, value))
    if interrupted:
        raise KeyboardInterrupt


def text_figures(documents, nats):
    """What is said about texts: a list of (name, str). nats: NaN where a token was not scored; figures are of the rest."""
    nats = np.concatenate(nats) if nats else np.zeros(0)
    share = np.mean(~np.isnan(nats)) if len(nats) else 0
    if not share:
        raise ValueError('nothing was scored; give more text, or a higher --limit')
    total = np.nansum(nats, dtype=np.float64)
    counts = [(name, sum(map(count, documents))) for name, count in (
        ('word', lambda text: len(text.split())), ('byte', lambda text: len(text.encode('utf-8'))), ('character', len))]
    figures = [('documents', '%d' % len(documents)), ('tokens', '%d' % len(nats))]
    figures += [(name + 's', '%d' % count) for name, count in counts]
    if share < 1:
        figures += [('share scored', '%.3g %%' % (100 * share))]
    figures += [('nats', '%.6g' % total)]
    for name, count, measure in [('token', len(nats), 'perplexity'), counts[0] + ('perplexity',),
                                 counts[1] + ('bits',), counts[2] + ('bits',)]:
        if count:
            figures.append(('%s per %s' % (measure, name), '%.6g' % Sum(measure, total, count * share).value()))
    return figures


def write_jsonl(path, documents, ids, nats):
    """Write a JSON object a line for each document that was scored in full: text, tokens, log_probabilities (nats)."""
    lines = [json.dumps({'text': document, 'tokens': list(map(int, tokens)), 'nats': float(nats_T.sum(dtype=np.float64)),
                         'log_probabilities': [-float('%.7g' % x) for x in nats_T]}, ensure_ascii=False, sort_keys=True)
             for document, tokens, nats_T in zip(documents, ids, nats) if not np.isnan(nats_T).any()]
    checkpoint.replace_text(path, ''.join(line + '\n' for line in lines))


def checked(options):
    """The Options. Raises ValueError for what cannot be."""
    for name, value in zip(options._fields, options):
        if value is not None and value < 1:
            raise ValueError('--%s is %d; it must be 1 or more' % (name, value))
    return options


def data_file(benchmark, path):
    """The path. Raises FileNotFoundError with the command that gets the file if there is none."""
    if not os.path.isfile(str(path)):
        raise FileNotFoundError('no file %s; `%s` gets the one of the benchmark' % (path, benchmarks.COMMANDS[benchmark]))
    return str(path)


def text_command(benchmark):
    """The script's function for a benchmark that is a running text."""
    def command(path, model_name='117M', context: int = None, stride: int = None, batch_size=2, limit: int = None,
                models_dir='models'):
        options = checked(Options(context, stride, batch_size, limit))
        data_file(benchmark, path)
        with load(model_name, models_dir) as model:
            print_table(model, measure(model, benchmark, str(path), options), [])

    command.__doc__ = """Measure %s, in every reading of the paper.

    Args:
        path: the benchmark's file, such as %s
        model_name: which model, a folder in models_dir
        context: how many tokens the model sees at most; None is all that it can
        stride: tokens from one window to the next; None is context, so that no two overlap
        batch_size: sequences as long as the context computed at once
        limit: score this many windows, for a quick look
        models_dir: folder of the models, looked for here and then in the repository
    """ % (benchmark, benchmarks.FILES[benchmark])
    return command


def question_command(benchmark):
    """The script's function for a benchmark that is a file of questions."""
    def command(path, model_name='117M', batch_size=2, limit: int = None, models_dir='models'):
        options = checked(Options(None, None, batch_size, limit))
        data_file(benchmark, path)
        with load(model_name, models_dir) as model:
            print_table(model, measure(model, benchmark, str(path), options), [])

    command.__doc__ = """Measure %s, in every reading of the paper.

    Args:
        path: the benchmark's file, such as %s
        model_name: which model, a folder in models_dir
        batch_size: sequences as long as the context computed at once
        limit: ask this many questions, for a quick look
        models_dir: folder of the models, looked for here and then in the repository
    """ % (benchmark.split('-')[0], benchmarks.FILES[benchmark])
    return command


def table(folder, model_name=None, chart=None, batch_size=2, limit: int = None, models_dir='models'):
    """Measure every model on every benchmark that is there, and print one table in Markdown.

    Args:
        folder: where the benchmarks' files are, at any depth, by their usual names
        model_name: which models, with commas between; None is every one in models_dir
        chart: also draw the table into this PNG; needs matplotlib
        batch_size: sequences as long as the context computed at once
        limit: measure this many windows, passages or questions, for a quick look
        models_dir: folder of the models, looked for here and then in the repository
    """
    options = checked(Options(None, None, batch_size, limit))
    if chart:
        import matplotlib
        matplotlib.use('Agg')  # draws without a display
    paths = {name: os.path.join(place, name) for place, _, names in os.walk(str(folder)) for name in names}
    present = [benchmark for benchmark in sorted(benchmarks.FILES) if benchmarks.FILES[benchmark] in paths]
    for benchmark in sorted(set(benchmarks.FILES) - set(present)):
        print('%s is not measured: no %s in %s; `%s` gets it' % (
            benchmark, benchmarks.FILES[benchmark], folder, benchmarks.COMMANDS[benchmark]), file=sys.stderr)
    if not present:
        raise FileNotFoundError('no file of a benchmark in %s' % folder)
    names = models_in(models_dir) if model_name is None else model_name if isinstance(model_name, (list, tuple)) else [model_name]
    for name in names:
        checkpoint.model_dir(name, models_dir)
    lines = []
    try:
        for name in names:
            with load(name, models_dir) as model:
                measured = {}  # wikitext2 and wikitext103 share a file
                for benchmark in present:
                    path = paths[benchmarks.FILES[benchmark]]
                    if path in measured:
                        print_table(model, [figure._replace(benchmark=benchmark) for figure in measured[path]], lines)
                    else:
                        measured[path] = print_table(model, measure(model, benchmark, path, options), lines)
    finally:
        if chart and lines:
            draw(lines, chart)


def models_in(models_dir):
    """The names of the complete models in the first models_dir that is there. Raises FileNotFoundError if there are none."""
    folder = os.path.dirname(checkpoint.new_model_dir('any', models_dir))
    names = [name for name in sorted(os.listdir(folder) if os.path.isdir(folder) else [])
             if os.path.exists(os.path.join(folder, name, 'checkpoint'))]
    if not names:
        raise FileNotFoundError('no model in %s; `python3 download_model.py 124M` gets one' % folder)
    return names


# What stands in a line of the table
Line = namedtuple('Line', 'model benchmark protocol measure measured paper')
HEADER = '| model | benchmark | protocol | measured | paper | difference |\n| --- | --- | --- | ---: | ---: | ---: |'


def print_table(model, figures, lines):
    """Print figures as they come, as lines of a Markdown table, beside those of the paper; append the Lines to lines.

    Returns the list of figures.
    """
    printed = []
    for figure in figures:
        printed.append(figure)
        if not lines:
            print(HEADER, flush=True)
        protocol = figure.protocol + ('' if figure.share == 1 else ' (%.3g %% of it)' % (100 * figure.share))
        paper = benchmarks.paper_figure(model.name, figure.benchmark, figure.measure)
        lines.append(Line(model.name, figure.benchmark, protocol, figure.measure, figure.value, paper))
        print('| %s | %s | %s | %s | %s | %s |' % (
            model.name, figure.benchmark, protocol, shown(figure.measure, figure.value),
            '' if paper is None else shown(figure.measure, paper),
            '' if paper is None else '%+.2f' % (figure.value - paper)), flush=True)
    return printed


def shown(measure, value):
    """A figure as text: percent for an accuracy."""
    return {'perplexity': '%.2f', 'bits': '%.3f', 'accuracy': '%.2f %%'}[measure] % value


def draw(lines, path):
    """Draw the Lines as bars into a PNG file, each measure on an axis of its own, with the paper's figure as a black mark."""
    from matplotlib import pyplot
    measures = sorted({line.measure for line in lines})
    figure, axes = pyplot.subplots(len(measures), 1, figsize=(11, 1 + 0.3 * len(lines) + len(measures)), squeeze=False,
                                   gridspec_kw={'height_ratios': [2 + sum(line.measure == measure for line in lines)
                                                                  for measure in measures]})
    for measure, axis in zip(measures, axes[:, 0]):
        bars = [line for line in lines if line.measure == measure][::-1]
        axis.barh(range(len(bars)), [line.measured for line in bars])
        marks = [(line.paper, place) for place, line in enumerate(bars) if line.paper is not None]
        if marks:
            axis.plot(*zip(*marks), 'k|', markersize=12, label='paper')
            axis.legend()
        axis.set_yticks(range(len(bars)))
        axis.set_yticklabels(['%s %s: %s' % line[:3] for line in bars], fontsize=7)
        axis.set_xscale('log' if measure == 'perplexity' else 'linear')
        axis.set_xlabel(measure + (', %' if measure == 'accuracy' else ''))
    figure.tight_layout()
    figure.savefig(path + '.part', format='png')
    os.replace(path + '.part', path)


COMMANDS = {'text': text, 'table': table}
COMMANDS.update((name, text_command(name)) for name in ('wikitext2', 'wikitext103', 'ptb', 'enwik8', 'text8', '1bw'))
COMMANDS.update(lambada=question_command('lambada'), cbt=question_command('cbt-cn'))

if __name__ == '__main__':
    flags.run(COMMANDS)
