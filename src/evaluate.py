#!/usr/bin/env python3
"""Score texts and the benchmarks of the GPT-2 paper with a model, and detect generated text.

    python3 src/evaluate.py text novel.txt --model_name 117M
    python3 src/evaluate.py detect novels/ samples/ --model_name 117M
    python3 src/evaluate.py lambada lambada_test.jsonl --model_name 117M
    python3 src/evaluate.py table data --chart table.png

The name of a protocol says how its figure is measured. docs/evaluation.md explains the names, and gpt2/evaluation/
defines them.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which python3 -I and PYTHONSAFEPATH leave out
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

from gpt2 import checkpoint, corpus, releases, session
from gpt2.evaluation import benchmarks, detection, documents, page, table as tables
from gpt2.evaluation.loading import check_model, load, model_files
from gpt2.evaluation.outputs import check_output, must_keep_old_file, print_table
from gpt2.system import flags
from gpt2.system.progress import report

N_TOP = 5  # most likely tokens shown for each token on the page of a text


def text(*paths, model_name='117M', context: int = None, stride: int = None, per_line=False, jsonl: str = None,
         html: str = None, batch_size=2, limit: int = None, precision='float32', models_dir='models'):
    """Score UTF-8 texts: nats, perplexity, bits per byte and per character. Each token is scored once.

    Args:
        paths: files, globs or folders of .txt and .jsonl
        context: number of tokens the model sees at most; None is its whole context
        stride: number of tokens from one window to the next; None is context, the fastest; a smaller stride gives each
            token more context
        per_line: score each line that is not empty as a document of its own
        jsonl: write a line of JSON for each document to this file: its text, its tokens and their log-probabilities
        html: write a page to this file that shows the text with each token coloured by its rank
        batch_size: number of sequences of the full context computed at once
        limit: score only this many windows from the beginning, for a quick look
    """
    options = documents.check_options(documents.Options(context, stride, batch_size, limit))
    if not paths:
        raise ValueError('no text given; name files, globs or folders')
    paths = corpus.find_files(paths)
    check_output('jsonl', jsonl, paths)
    check_output('html', html, paths + [jsonl])
    for flag, path in ('jsonl', jsonl), ('html', html):
        check_output(flag, path, model_files(model_name, models_dir))
    pieces = corpus.read_pieces(paths)
    with load(model_name, models_dir, options, precision) as model:
        scored = documents.score_documents(
            model, documents.by_line(pieces) if per_line else pieces, options, label='text',
            n_bytes=sum(map(os.path.getsize, paths)), predict=html and model.predictor(N_TOP))
        if not scored.documents and not scored.interrupted:
            raise ValueError('there is no text in %s' % ', '.join(paths))
        for name, value in documents.figures(model.encoder, scored) if scored.documents else []:
            print('%-26s %s' % (name, value), flush=True)
        if jsonl and not must_keep_old_file('jsonl', jsonl, scored.interrupted):
            documents.write_jsonl(jsonl, model.encoder, scored)
        if html and not must_keep_old_file('html', html, scored.interrupted):
            names = ', '.join(map(os.path.basename, paths[:3])) + (' and %d more' % len(paths[3:]) if paths[3:] else '')
            page.write_page(html, model.encoder, list(zip(scored.documents, scored.predictions)), title=names,
                            model_name=model_name, share=scored.share)
    if scored.interrupted:
        raise KeyboardInterrupt


def detect(human, machine, *, model_name='117M', chart: str = None, batch_size=2, limit: int = None,
           precision='float32', models_dir='models'):
    """Measure how well a model's likelihoods tell machine texts from human ones, and print one table in Markdown.

    It compares equal numbers of texts from each side, 20 or more, the first ones in the order of the files.

    Args:
        human: file, glob or folder of .txt and .jsonl, with texts that people wrote
        machine: the same with texts that a machine wrote, such as a folder made by generate_dataset.py without --gzip
            and without --prompts, since each text is scored from its beginning
        model_name: name of the model that scores the texts, a folder in models_dir
        chart: also draw the ROC curves into this PNG file; needs matplotlib
        batch_size: number of sequences of the full context computed at once
        limit: read only this many texts from the beginning of each side, for a quick look
    """
    options = documents.check_options(documents.Options(None, None, batch_size, limit))
    session.check_precision(precision)
    sides = corpus.find_files(human), corpus.find_files(machine)
    check_output('chart', chart, sides[0] + sides[1])
    check_output('chart', chart, model_files(model_name, models_dir))
    encoder, hparams = check_model(model_name, models_dir, options)
    texts = [list(documents.read_tokens(encoder, paths, limit)) for paths in sides]
    selections = detection.select_texts(*texts, n_ctx=hparams.n_ctx)
    for line in detection.warnings(selections, *texts, n_ctx=hparams.n_ctx):
        report('warning: ' + line)
    if not detection.has_scikit_learn():
        report('the fitted baseline is left out: it needs `pip install scikit-learn`')
    results = []
    with load(model_name, models_dir, options, precision) as model:
        predictions = [detection.predict(model, selections, side, texts[side], options) for side in (0, 1)]
        print_table(detection.HEADER, detection.compare(selections, predictions, model.encoder.decode), detection.cells,
                    results)
    if chart:
        detection.draw(results, chart)


def benchmark_command(benchmark):
    """The function that is the command of a benchmark."""
    def measure_windows(path, model_name='117M', context: int = None, stride: int = None, batch_size=2,
                        limit: int = None, precision='float32', models_dir='models'):
        options = documents.check_options(documents.Options(context, stride, batch_size, limit))
        found = [(benchmark, path, benchmarks.read(benchmark, path))]
        with load(model_name, models_dir, options, precision) as model:
            print_table(tables.HEADER, tables.measure_all(model, found, options, follow_all=True), tables.cells, [])

    def measure_items(path, model_name='117M', batch_size=2, limit: int = None, precision='float32',
                      models_dir='models'):
        measure_windows(path, model_name, None, None, batch_size, limit, precision, models_dir)

    command = measure_items if benchmark in benchmarks.MODULES else measure_windows
    command.__doc__ = """Measure %(benchmark)s by every protocol.

    Args:
        path: the benchmark's file, such as %(file)s, which this command downloads: %(command)s
        context: number of tokens the model sees at most; None is its whole context
        stride: number of tokens from one window to the next; None is context, so that no two overlap
        batch_size: number of sequences of the full context computed at once
        limit: measure only this many windows, passages or questions from the beginning, for a quick look
    """ % dict(benchmarks.BENCHMARKS[benchmark], benchmark=benchmark)
    return command


def table(folder, *, model_name: str = None, all=False, chart: str = None, batch_size=2, limit: int = None,
          precision='float32', models_dir='models'):
    """Measure every model on every benchmark whose file is there, and print one table in Markdown.

    Args:
        folder: folder with the benchmarks' files, at any depth, under their usual names
        model_name: names of models, separated by commas; None is every one in models_dir
        all: follow every protocol, not only the one for each of the paper's figures that docs/evaluation.md describes
        chart: also draw the table into this PNG file; needs matplotlib
        batch_size: number of sequences of the full context computed at once
        limit: measure only this many windows, passages or questions from the beginning, for a quick look
    """
    options = documents.check_options(documents.Options(None, None, batch_size, limit))
    check_output('chart', chart)  # before the benchmarks are read
    found = benchmarks.find(folder)
    models = releases.models_in(os.path.dirname(checkpoint.new_model_dir('any', models_dir)))
    names = models if model_name is None else model_name.split(',')
    for name in names or ['124M']:  # the error for a missing model says how to get it
        check_model(name, models_dir, options)
        check_output('chart', chart, [path for _, path, _ in found] + model_files(name, models_dir))
    lines, interrupted = [], True
    try:
        for name in names:
            with load(name, models_dir, options, precision) as model:
                print_table(tables.HEADER, tables.measure_all(model, found, options, all), tables.cells, lines)
        interrupted = False
    finally:
        if chart and lines and not must_keep_old_file('chart', chart, interrupted):
            tables.draw(lines, chart)


COMMANDS = {name: benchmark_command(name) for name in benchmarks.BENCHMARKS}
COMMANDS.update(text=text, detect=detect, table=table)

if __name__ == '__main__':
    flags.run(COMMANDS, outputs=['jsonl', 'html', 'chart'])
