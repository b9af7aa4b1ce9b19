"""How fast this sampler is, beside others that sample GPT-2 on a CPU in full precision: the program that `make bench` runs.

    python tests/benchmark.py                                   everything that is installed: an hour or two
    python tests/benchmark.py --quick                           short texts, one round: do all engines work?
    python tests/benchmark.py --python OTHER/bin/python         the TensorFlow of another Python too, in the same table
    python tests/benchmark.py --engines ctranslate2 --workloads W1 W2 --rounds 5

All engines get the same random weights in the shape of the smallest release, and the same threads. Each first shows that its
likeliest tokens are ours. Then every measurement is a process of its own, engine after engine, round after round, so that
a busy moment of the machine meets them all. A Markdown table of the medians goes to stdout, all else to stderr. Ctrl-C ends
the measurements, and what there is by then is printed. Needs Linux.
"""
import argparse
from collections import namedtuple, OrderedDict
import importlib.util
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np

from engines import END_OF_TEXT, ENGINES

TESTS = os.path.dirname(os.path.abspath(__file__))
TOP_K = 40
N_CHECKED = 20  # greedy tokens that every engine must agree on
SHORT_SECONDS = 30  # a run that took less is done again: what an engine does at its first call would show

Workload = namedtuple('Workload', 'batch n_prompt length')
WORKLOADS = {'start': Workload(1, 8, 1), 'W1': Workload(1, 1, 1023), 'W2': Workload(1, 512, 128),
             'W3': Workload(8, 1, 256), 'W4': Workload(32, 1, 256),
             'score': Workload(2, 1025, 0)}  # what 1,024 tokens a row cost to predict
QUICK = {'start': Workload(1, 8, 1), 'W1': Workload(1, 1, 32), 'W2': Workload(1, 64, 16),
         'W3': Workload(8, 1, 16), 'W4': Workload(32, 1, 8), 'score': Workload(2, 65, 0)}


# What a worker process does. Its last line of output is the result as JSON.

def versions():
    """{engine: the packages that it runs on with their versions, or None if they are not all installed}"""
    try:
        from importlib.metadata import version
    except ImportError:  # Python 3.7 and earlier
        from pkg_resources import get_distribution
        version = lambda name: get_distribution(name).version  # noqa: E731
    found = {}
    for name, engine in ENGINES.items():
        if all(importlib.util.find_spec(module) for module, _ in engine.packages):
            found[name] = ', '.join('%s %s' % (package, version(package)) for _, package in engine.packages)
    return found


def convert(engine, model, folder):
    shutil.rmtree(folder + '.part', ignore_errors=True)
    engine.convert(model, folder + '.part')
    os.replace(folder + '.part', folder)


def greedy(engine, folder):
    """The likeliest N_CHECKED tokens after each of two prompts."""
    engine.prepare(folder)
    return engine.generate(np.random.RandomState(1).randint(END_OF_TEXT, size=[2, 8]), N_CHECKED, 1).tolist()


def measure(engine, folder, started, batch, n_prompt, length):
    """{'start': seconds from `started` to the first token, 'first': to it once loaded, 'seconds': to all, 'mb': peak}

    length 0: the prompt is scored; then there are 'seconds' and 'mb', and the mean 'nats' to compare.
    """
    prompt_BT = np.random.RandomState(0).randint(END_OF_TEXT, size=[batch, n_prompt])
    if n_prompt == 1:
        prompt_BT[:] = END_OF_TEXT
    engine.prepare(folder)
    result = {}
    if length == 0:
        engine.score(prompt_BT)
        start = time.time()
        result['nats'] = float(np.mean(engine.score(prompt_BT), dtype=np.float64))
        result['seconds'] = time.time() - start
    else:
        engine.generate(prompt_BT, 1, TOP_K)
        result['start'] = time.time() - started
    if length > 1:
        result['first'] = seconds_for(engine, prompt_BT, 1)
        engine.build(batch, n_prompt, length, TOP_K)
        result['seconds'] = seconds_for(engine, prompt_BT, length)
        if result['seconds'] < SHORT_SECONDS:
            result['seconds'] = seconds_for(engine, prompt_BT, length)
    with open('/proc/self/status', encoding='utf-8') as file:
        result['mb'] = int(re.search(r'VmHWM:\s+(\d+) kB', file.read()).group(1)) / 1024
    return result


def seconds_for(engine, prompt_BT, length):
    start = time.time()
    tokens_BT = engine.generate(prompt_BT, length, TOP_K)
    seconds = time.time() - start
    if tokens_BT.shape != (len(prompt_BT), length):
        raise RuntimeError('asked for %d x %d tokens, got %s' % (len(prompt_BT), length, tokens_BT.shape))
    return seconds


def work(task):
    """What a worker is asked for. task: a dict with the parameters of call()."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:task['threads']])
    if task['function'] == 'versions':
        return versions()
    function = {'convert': convert, 'greedy': greedy, 'measure': measure}[task['function']]
    return function(ENGINES[task['engine']](task['threads']), **task['arguments'])


# What the parent does.

class Failed(Exception):
    """A worker did not do what it was asked; the message is the last line it wrote."""


Runner = namedtuple('Runner', 'engine python label folder')  # an engine in a Python, and where its weights are


def call(python, function, threads, engine=None, **arguments):
    """work() in a process of that Python. Raises Failed."""
    task = {'function': function, 'threads': threads, 'engine': engine, 'arguments': arguments}
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL='3', PYTHONWARNINGS='ignore', TOKENIZERS_PARALLELISM='false')
    for name in ('OMP', 'MKL', 'OPENBLAS'):
        environment[name + '_NUM_THREADS'] = str(threads)
    try:
        done = subprocess.run([python, os.path.abspath(__file__), '--worker', json.dumps(task)], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=3600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error))
    if done.returncode:
        lines = done.stderr.decode('utf-8', 'replace').strip().split('\n')
        raise Failed('status %d: %s' % (done.returncode, lines[-1]))
    return json.loads(done.stdout.decode('utf-8', 'replace').strip().split('\n')[-1])


def say(*text):
    print(time.strftime('%H:%M:%S'), *text, file=sys.stderr, flush=True)


def find_runners(options):
    """The Runners of the chosen engines, one for each set of versions, and [(name, 'not installed')] of the others."""
    chosen = [name for name in ENGINES if name == 'ours' or name in options.engines]
    runners = OrderedDict()
    for python in [sys.executable] + options.python:
        for name, packages in call(python, 'versions', options.threads).items():
            folder = os.path.join(os.path.abspath(options.cache), ENGINES[name].weights)
            label = packages if name != 'ours' else 'ours, ' + packages
            runners.setdefault(label, Runner(name, python, label, folder))
    runners = sorted([runner for runner in runners.values() if runner.engine in chosen],
                     key=lambda runner: chosen.index(runner.engine))
    found = [runner.engine for runner in runners]
    return runners, [(name, 'not installed') for name in chosen if name not in found]


def make_weights(runners, options):
    """Write the random model, and what each engine makes of it, unless they are there. Returns [(label, why not)]."""
    model = os.path.join(os.path.abspath(options.cache), '117M')
    if not os.path.isdir(model):
        say('writing', model)
        shutil.rmtree(model + '.part', ignore_errors=True)
        subprocess.check_call([runners[0].python, os.path.join(TESTS, 'tiny.py'), model + '.part', '--shape', '117M'])
        os.replace(model + '.part', model)
    absent = []
    for runner in runners:
        try:
            if not os.path.isdir(runner.folder):
                say(runner.label, 'converts the weights')
                call(runner.python, 'convert', options.threads, runner.engine, model=model, folder=runner.folder)
        except Failed as failure:
            say(runner.label, 'does not convert the weights:', failure)
            absent.append((runner.label, 'does not convert'))
    return absent


def check(runners, options):
    """Are everybody's greedy tokens those of the first, which is ours? Returns [(label, why not)]."""
    absent, expected = [], None
    for runner in runners:
        try:
            tokens = call(runner.python, 'greedy', options.threads, runner.engine, folder=runner.folder)
            expected = expected or tokens
            if tokens != expected:
                raise Failed('its likeliest tokens are not ours: %s, not %s' % (tokens, expected))
            say(runner.label, 'gives the same %d tokens' % N_CHECKED)
        except Failed as failure:
            say(runner.label, 'is left out:', failure)
            absent.append((runner.label, 'tokens differ'))
    return absent


def without(runners, absent):
    return [runner for runner in runners if runner.label not in dict(absent)]


def measure_all(runners, workloads, options, results):
    """Fill results, {(label, name of a workload): list of what measure() returned}; None where it failed."""
    for i in range(options.rounds):
        for name in options.workloads:
            for runner in runners[i % len(runners):] + runners[:i % len(runners)]:  # nobody is always first
                if results.get((runner.label, name), []) is None or name == 'score' and not ENGINES[runner.engine].scores:
                    continue
                try:
                    result = call(runner.python, 'measure', options.threads, runner.engine, folder=runner.folder,
                                  started=time.time(), **workloads[name]._asdict())
                    results.setdefault((runner.label, name), []).append(result)
                    figures = ' '.join('%s %.2f' % figure for figure in sorted(result.items()))
                except Failed as failure:
                    results[runner.label, name] = None
                    figures = 'failed: %s' % failure
                say('round %d of %d, %s, %s: %s' % (i + 1, options.rounds, name, runner.label, figures))


def columns(workloads, names):
    """The table's columns: (title, workload's name, key of measure's result, tokens that the seconds are for or None)."""
    for name in names:
        batch, n_prompt, length = workloads[name]
        if name == 'start':
            yield 'start to first token (s)', name, 'start', None
        elif name == 'score':
            yield 'score %d x %d (tokens/s)' % (batch, n_prompt - 1), name, 'seconds', batch * (n_prompt - 1)
        else:
            shape = '%d x %d' % (batch, length) if n_prompt == 1 else '%d + %d' % (n_prompt, length)
            yield '%s %s (tokens/s)' % (name, shape), name, 'seconds', batch * length
        if name == 'W2':
            yield 'W2 first token (s)', name, 'first', None
    for name in ('W1', 'W4'):
        if name in names:
            yield '%s peak (MB)' % name, name, 'mb', None


def median(results, label, name, key):
    """The median of a figure; None if it was not measured."""
    measured = results.get((label, name))
    return statistics.median(result[key] for result in measured) if measured else None


def table(runners, absent, results, columns):
    """The medians in Markdown, in brackets how many times ours in the same Python is better."""
    lines = ['| engine | %s |' % ' | '.join(title for title, _, _, _ in columns), '| --- ' * (len(columns) + 1) + '|']
    for runner in runners:
        ours = ([other for other in runners if (other.engine, other.python) == ('ours', runner.python)] or runners)[0]
        cells = []
        for _, name, key, n_tokens in columns:
            value, base = median(results, runner.label, name, key), median(results, ours.label, name, key)
            if value is None:
                cells.append('failed' if results.get((runner.label, name), []) is None else '-')
                continue
            shown = n_tokens / value if n_tokens else value
            ratio = '' if runner is ours or base is None else ' (%.2f)' % (value / base)
            cells.append(('%.0f' if key == 'mb' else '%.3g') % shown + ratio)
        lines.append('| %s | %s |' % (runner.label, ' | '.join(cells)))
    lines += ['| %s | %s |' % pair + ' |' * (len(columns) - 1) for pair in absent]
    return '\n'.join(lines)


def draw_chart(path, runners, results, columns):
    """A PNG of bars: tokens per second in each workload."""
    from matplotlib.figure import Figure
    columns = [column for column in columns if column[2] == 'seconds']
    figure = Figure(figsize=(4 * len(columns) + 2, 0.4 * len(runners) + 1.2))
    axes = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (title, name, key, n_tokens) in zip(axes, columns):
        medians = [median(results, runner.label, name, key) for runner in runners]
        axis.barh([runner.label for runner in runners], [n_tokens / seconds if seconds else 0 for seconds in medians],
                  color=['tab:blue' if runner.engine == 'ours' else 'silver' for runner in runners])
        axis.set_title(title, fontsize=10)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)


def conditions(options):
    """Where and when, for under the table."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        processor = re.search(r'model name\s*: (.*)', file.read())
    return '%s, %s, %d threads, rounds: %d, fp32, random weights of 117M, top_k %d%s. In brackets: how many times ours in the ' \
        'same Python is better.' % (time.strftime('%Y-%m-%d'), processor.group(1) if processor else 'unknown processor',
                                    options.threads, options.rounds, TOP_K, ', short texts (--quick)' if options.quick else '')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--engines', nargs='+', choices=list(ENGINES), default=list(ENGINES), help='ours is always in')
    parser.add_argument('--workloads', nargs='+', choices=sorted(WORKLOADS), default=['start', 'W1', 'W2', 'W3', 'W4', 'score'])
    parser.add_argument('--rounds', type=int, help='3, or 1 with --quick')
    parser.add_argument('--quick', action='store_true', help='short texts: the figures mean little')
    parser.add_argument('--python', action='append', default=[], help='another Python, as a path; may be repeated')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--cache', default=os.path.join(os.path.dirname(TESTS), 'models', 'benchmark'),
                        help='folder for the weights in all formats, 3 GB')
    parser.add_argument('--chart', default='benchmark.png', help='where to draw the figures, if matplotlib is installed')
    parser.add_argument('--worker', type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print('\n' + json.dumps(work(options.worker)))
        return
    options.rounds = options.rounds or (1 if options.quick else 3)
    workloads = QUICK if options.quick else WORKLOADS
    os.makedirs(options.cache, exist_ok=True)
    runners, absent = find_runners(options)
    results = {}
    try:
        for step in (make_weights, check):
            absent += step(runners, options)
            runners = without(runners, absent)
        measure_all(runners, workloads, options, results)
    except KeyboardInterrupt:
        say('interrupted')
    shown = list(columns(workloads, options.workloads))
    print(table(runners, absent, results, shown) + '\n\n' + conditions(options))
    if results and importlib.util.find_spec('matplotlib'):
        draw_chart(options.chart, runners, results, shown)
        say('chart:', options.chart)


if __name__ == '__main__':
    main()
