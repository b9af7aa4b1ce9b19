#!/usr/bin/env python3
"""Score texts and the benchmarks of the GPT-2 paper with a model.

    python3 src/evaluate.py text novel.txt --model_name 117M
    python3 src/evaluate.py detect novels/ samples/ --model_name 117M
    python3 src/evaluate.py lambada lambada_test.jsonl --model_name 117M
    python3 src/evaluate.py table data --chart table.png

The name of a protocol says how its figure is measured: README.md explains the names, and evaluation/benchmarks.py and
evaluation/protocols.py define them.
"""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

import contextlib
import functools
import json
import os
import re
import sys

import numpy as np

import checkpoint
import corpus
import encoder
from evaluation import benchmarks, detection
from evaluation.page import write_page
from evaluation.protocols import (
    Model, Options, Sum, document_rows, measure, predict_rows, read_tokens, score_documents, text_of, window_sizes)
from evaluation.table import draw, print_table
import files
import releases

N_SHOWN = 5  # of the likeliest tokens, on the page of a text


@contextlib.contextmanager
def load(model_name, models_dir, options, precision='float32'):
    """A Model with its weights, in a graph and a session of its own, which end with the block."""
    checkpoint.check_precision(precision)
    text_encoder, hparams = check_model(model_name, models_dir, options)
    from evaluation.scorer import guesser, predictor, scorer
    from tf1 import tf
    with tf.Graph().as_default(), checkpoint.precision(precision), checkpoint.session() as sess, \
            checkpoint.out_of_memory('give a lower --batch_size, or a lower --context where there is one'):
        score = scorer(sess, hparams)
        checkpoint.restore(sess, model_name, models_dir)
        yield Model(model_name, text_encoder, hparams, score, functools.partial(guesser, sess, hparams),
                    functools.partial(predictor, sess, hparams))


def check_model(model_name, models_dir, options):
    """Raises an error if a model is missing or damaged, or if the options do not suit it. Returns its (Encoder, HParams)."""
    checkpoint.model_dir(model_name, models_dir)
    text_encoder = encoder.get_encoder(model_name, models_dir)
    hparams = checkpoint.load_hparams(model_name, models_dir)
    window_sizes(hparams, options)
    return text_encoder, hparams


def text(*paths, model_name='117M', context: int = None, stride: int = None, per_line=False, jsonl: str = None,
         html: str = None, batch_size=2, limit: int = None, precision='float32', models_dir='models'):
    """Score UTF-8 texts: nats, perplexity, bits per byte and per character. Each token is scored once.

    Args:
        paths: files, globs or folders of .txt and .jsonl
        model_name: which model, a folder in models_dir
        context: how many tokens the model sees at most; None is all that it can
        stride: tokens from one window to the next; None is context, the fastest; with less, each token sees more before it
        per_line: take each line that is not empty as a document
        jsonl: write a line of JSON for each document to this file: its text, its tokens and their log-probabilities
        html: write a page to this file that shows the text, coloured by how likely the model found each token
        batch_size: sequences as long as the context computed at once
        limit: score only this many windows from the beginning, for a quick look
        precision: float32; or int8, weights in 8 bits: faster on a CPU, and README says by how much and what it costs
        models_dir: folder of the models, looked for here and then in the repository
    """
    options = checked(Options(context, stride, batch_size, limit))
    if not paths:
        raise ValueError('no text given; name files, globs or folders')
    paths = corpus.find_files(paths)
    check_output('jsonl', jsonl, paths)
    check_output('html', html, paths + [jsonl])
    pieces = corpus.read_pieces(paths)
    with load(model_name, models_dir, options, precision) as model:
        scored = score_documents(model, by_line(pieces) if per_line else pieces, options, label='text',
                                 n_bytes=sum(map(os.path.getsize, paths)),
                                 predict=None if html is None else model.predictor(N_SHOWN))
        if not scored.documents and not scored.interrupted:
            raise ValueError('there is no text in %s' % ', '.join(paths))
        for name, value in text_figures(model, scored) if scored.documents else []:
            print('%-26s %s' % (name, value), flush=True)
        if jsonl is not None and not keeps_old('jsonl', jsonl, scored.interrupted):
            write_jsonl(jsonl, model, scored)
        if html is not None and not keeps_old('html', html, scored.interrupted):
            names = ', '.join(map(os.path.basename, paths[:3])) + (' and %d more' % len(paths[3:]) if paths[3:] else '')
            write_page(html, model.encoder, list(zip(scored.documents, scored.predictions)), title=names,
                       model_name=model_name, share=scored.share)
    if scored.interrupted:
        raise KeyboardInterrupt


def by_line(pieces):
    """Make each line a document of its own. pieces: as corpus.read_pieces yields them. Returns the same kind of pieces."""
    return (None if part == '\n' else part for piece in pieces for part in re.findall('[^\n]+|\n', piece or '\n'))


def text_figures(model, scored):
    """What to print about the part of the texts that was scored: a list of (name, str)."""
    counts = np.zeros(3, np.int64)
    for ids in scored.documents:
        for piece in text_of(model.encoder, ids):
            counts += len(piece.split()), len(piece.encode('utf-8')), len(piece)
    counts = [('token', sum(map(len, scored.nats)))] + list(zip(('word', 'byte', 'character'), counts))
    total = sum(nats_N.sum(dtype=np.float64) for nats_N in scored.nats)
    figures = [('documents', '%d' % len(scored.documents))] + [(unit + 's', '%d' % count) for unit, count in counts]
    if scored.share < 1:
        figures.append(('share of the text', '%.3g %%' % (100 * scored.share)))
    figures.append(('nats', '%.6g' % total))
    for (unit, count), metric in zip(counts, ('perplexity', 'perplexity', 'bits', 'bits')):
        if count:
            figures.append(('%s per %s' % (metric, unit), '%.6g' % Sum(metric, total, count).value()))
    return figures


def write_jsonl(path, model, scored):
    """Write a line of JSON for each document, as far as it was scored: text, tokens, nats, log_probabilities (natural)."""
    with files.replacing(path) as part, open(part, 'w', encoding='utf-8', newline='\n') as file:
        for ids, nats_N in zip(scored.documents, scored.nats):
            line = {'text': ''.join(text_of(model.encoder, ids)), 'tokens': ids.tolist(),
                    'nats': float(nats_N.sum(dtype=np.float64)), 'log_probabilities': [-float('%.7g' % x) for x in nats_N]}
            file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + '\n')


def detect(human, machine, *, model_name='117M', chart: str = None, batch_size=2, limit: int = None, precision='float32',
           models_dir='models'):
    """Measure how well a model's likelihoods tell a machine's texts from those of people, and print one table in Markdown.

    Of each side it takes equally many texts, 20 or more, the first in the order of the files.

    Args:
        human: file, glob or folder of .txt and .jsonl, with texts that people wrote
        machine: the same with texts that a machine wrote, such as a folder that generate_dataset.py has made; without --gzip, and
            without --prompts, since each text is scored from its beginning
        model_name: which model finds the texts likely or not, a folder in models_dir
        chart: also draw the ROC curves into this PNG file; needs matplotlib
        batch_size: sequences as long as the context computed at once
        limit: take only this many texts from the beginning of each side, for a quick look
        precision: float32; or int8, weights in 8 bits: faster on a CPU, and README says by how much and what it costs
        models_dir: folder of the models, looked for here and then in the repository
    """
    options = checked(Options(None, None, batch_size, limit))
    checkpoint.check_precision(precision)
    sides = corpus.find_files(human), corpus.find_files(machine)
    check_output('chart', chart, sides[0] + sides[1])
    if chart is not None:
        import matplotlib  # noqa: F401, so that a missing package is told before hours of work
    text_encoder, hparams = check_model(model_name, models_dir, options)
    documents = [list(read_tokens(text_encoder, paths, limit)) for paths in sides]
    choices = detection.choose(*documents, n_ctx=hparams.n_ctx)
    for line in detection.warnings(choices, *documents, n_ctx=hparams.n_ctx):
        print('warning: ' + line, file=sys.stderr)
    if not detection.has_scikit_learn():
        print('the fitted baseline is left out: it needs `pip install scikit-learn`', file=sys.stderr)
    with load(model_name, models_dir, options, precision) as model:
        predictions = [predict_chosen(model, choices, side, documents[side], options) for side in (0, 1)]
        results = detection.print_table(detection.compare(choices, predictions, model.encoder.decode))
    if chart is not None:
        detection.draw(results, chart)


def predict_chosen(model, choices, side, documents, options):
    """The Predictions of the beginnings of those documents that are in a Choice, {number: Predictions}. side: 0 human, 1 machine."""
    lengths = {number: choice.length for choice in choices for number in choice.numbers[side]}  # the greatest of each
    rows = [document_rows(documents[number][:length], model.encoder.end_of_text, n_ctx=length, stride=length)[0]
            for number, length in lengths.items()]
    predictions, interrupted = predict_rows(model, rows, list(lengths), options, label=('human', 'machine')[side],
                                            predict=model.predictor(0))
    if interrupted:
        raise KeyboardInterrupt
    return predictions


def check_output(flag, path, others=()):
    """Raises ValueError or OSError if the file that a flag names cannot be written, as far as can be seen before trying.

    path: None if the flag was not given.  others: files that it must not replace, or None.
    """
    if path is None:
        return
    if not path:
        raise ValueError('--%s is empty; give the name of a file' % flag)
    written = os.path.realpath(path) if os.path.isfile(path) else path
    folder = os.path.dirname(written) or '.'
    if not os.path.isdir(folder):
        raise FileNotFoundError('--%s is %s, and there is no folder %s; make it first' % (flag, path, folder))
    if os.path.isdir(path):
        raise IsADirectoryError('--%s is %s, a folder; give the name of a file' % (flag, path))
    if not os.access(folder, os.W_OK) and (os.path.isfile(path) or not os.path.exists(path)):  # a device is written itself
        raise PermissionError('--%s is %s, and you may not write to the folder %s; give another path' % (flag, path, folder))
    for other in others:  # files.replacing writes to path.part first
        if other is not None and os.path.realpath(other) in (os.path.realpath(path), os.path.realpath(path) + '.part'):
            raise ValueError('--%s is %s, which would replace %s; give another name' % (flag, path, other))


def keeps_old(flag, path, interrupted):
    """Whether to keep the file that is there because after Ctrl-C what would replace it is incomplete; says so."""
    if interrupted and os.path.exists(path):
        print('--%s: %s is left as it was' % (flag, path), file=sys.stderr)
        return True
    return False


def checked(options):
    """The Options. Raises ValueError for a number below 1."""
    for name, value in zip(options._fields, options):
        if value is not None and value < 1:
            raise ValueError('--%s is %d; it must be 1 or more' % (name, value))
    return options


def benchmark_command(benchmark):
    """The function that is the command of a benchmark."""
    def measure_windows(path, model_name='117M', context: int = None, stride: int = None, batch_size=2, limit: int = None,
                        precision='float32', models_dir='models'):
        print_figures(path, model_name, Options(context, stride, batch_size, limit), precision, models_dir)

    def measure_items(path, model_name='117M', batch_size=2, limit: int = None, precision='float32', models_dir='models'):
        print_figures(path, model_name, Options(None, None, batch_size, limit), precision, models_dir)

    def print_figures(path, model_name, options, precision, models_dir):
        data = benchmarks.read(benchmark, path)
        with load(model_name, models_dir, checked(options), precision) as model:
            print_table(model, measure(model, benchmark, data, options), [])

    command = measure_items if benchmark in ('lambada', 'cbt-cn', 'cbt-ne') else measure_windows
    command.__doc__ = """Measure %s by every protocol.

    Args:
        path: the benchmark's file, such as %s; %s
        model_name: which model, a folder in models_dir
        context: how many tokens the model sees at most; None is all that it can
        stride: tokens from one window to the next; None is context, so that no two overlap
        batch_size: sequences as long as the context computed at once
        limit: measure only this many windows, passages or questions from the beginning, for a quick look
        precision: float32; or int8, weights in 8 bits: faster on a CPU, and README says by how much and what it costs
        models_dir: folder of the models, looked for here and then in the repository
    """ % (benchmark, benchmarks.FILES[benchmark], benchmarks.COMMANDS[benchmark])
    return command


def table(folder, *, model_name: str = None, all=False, chart: str = None, batch_size=2, limit: int = None,
          precision='float32', models_dir='models'):
    """Measure every model on every benchmark that is there, and print one table in Markdown.

    Args:
        folder: folder that holds the benchmarks' files, at any depth, under their usual names
        model_name: which models, with commas between; None is every one in models_dir
        all: follow every protocol, not only the one for each of the paper's figures that others came nearest with
        chart: also draw the table into this PNG file; needs matplotlib
        batch_size: sequences as long as the context computed at once
        limit: measure only this many windows, passages or questions from the beginning, for a quick look
        precision: float32; or int8, weights in 8 bits: faster on a CPU, and README says by how much and what it costs
        models_dir: folder of the models, looked for here and then in the repository
    """
    options = checked(Options(None, None, batch_size, limit))
    check_output('chart', chart)
    if chart is not None:
        import matplotlib
        matplotlib.use('Agg')  # draws without a display
    found = find(folder)
    names = models_in(models_dir) if model_name is None else model_name.split(',')
    for name in names:
        check_model(name, models_dir, options)
    lines, interrupted = [], True
    try:
        for name in names:
            with load(name, models_dir, options, precision) as model:
                measured = {}
                for benchmark, path, data in found:
                    key = path if all else benchmark  # wikitext2 and wikitext103 have one file and the same protocols
                    figures = measured.get(key) or measure(
                        model, benchmark, data, options, None if all else benchmarks.nearest(benchmark))
                    figures = (figure._replace(benchmark=benchmark) for figure in figures)
                    measured[key] = print_table(model, figures, lines)
        interrupted = False
    finally:
        if chart is not None and lines and not keeps_old('chart', chart, interrupted):
            draw(lines, chart)


def find(folder):
    """A list of (benchmark, path, what benchmarks.read returns) for the benchmarks whose files are in a folder, at any depth.

    Says which are missing. Raises FileNotFoundError if all are.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError('no folder %s; give the one that holds the files of the benchmarks' % folder)
    paths = {name: os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}
    missing = [benchmark for benchmark, name in sorted(benchmarks.FILES.items()) if name not in paths]
    remedy = '`python3 src/evaluate.py BENCHMARK --help` names the file of one and the command that gets it'
    if len(missing) == len(benchmarks.FILES):
        raise FileNotFoundError('no file of a benchmark in %s; %s' % (folder, remedy))
    if missing:
        print('not measured, as their files are not in %s: %s; %s' % (folder, ', '.join(missing), remedy), file=sys.stderr)
    return [(benchmark, paths[name], benchmarks.read(benchmark, paths[name]))
            for benchmark, name in sorted(benchmarks.FILES.items()) if name in paths]


def models_in(models_dir):
    """The names of the models in models_dir. Raises FileNotFoundError if there are none."""
    folder = os.path.dirname(checkpoint.new_model_dir('any', models_dir))
    names = releases.models_in(folder)
    if not names:
        raise FileNotFoundError('no model in %s; `python3 download_model.py 124M` gets one' % folder)
    return names


COMMANDS = dict({name: benchmark_command(name) for name in benchmarks.FILES}, text=text, detect=detect, table=table)

if __name__ == '__main__':
    flags.run(COMMANDS)
