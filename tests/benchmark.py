"""How fast this sampler is, beside others that sample GPT-2: the program that `make bench` runs.

    python tests/benchmark.py                                   everything that is installed: an hour or two
    python tests/benchmark.py --quick                           short texts, one round: do all engines work?
    python tests/benchmark.py --python OTHER/bin/python         the TensorFlow of another Python too, in the same table
    python tests/benchmark.py --engines ours-int8 ctranslate2-int8 --workloads W1 1x1023 --rounds 9
    python tests/benchmark.py --device gpu                      on a GPU, with what TensorFlow and PyTorch carry

A shared machine may be twice as fast as it was minutes ago, so only what is measured close together is compared. For each
workload, every engine is loaded into a process of its own and stays there. In each round every engine in turn computes one
burst of some seconds while the others wait, and every other round goes backwards. A round gives each engine's speed
divided by ours; the table has the median of these ratios and their quartiles, beside the median speed. An unmeasured round
comes first, in which everything is loaded and warms up. The time from start to first token is measured in the same order,
with a new process for each burst. Peak memory is that of the process that did this workload and nothing else; on a GPU, what it
has taken of the card's. There, TensorFloat-32 is off but in the rows that are named after it, and all cores serve the GPU.

All engines get the same threads, and the same random weights in the shape of the smallest release. First each continues
ten prompts, with these weights and with the demo model, by the likeliest tokens; the table says how many are those of
float32, and an engine is left out if they are fewer than half.

The table, in Markdown, goes to stdout, all else to stderr. Ctrl-C ends the measurements and prints what there is by then.
Needs Linux, and memory for all engines at once, 16 GB: --engines takes fewer. A GPU must be used by nobody else meanwhile.
"""
import argparse
from collections import Counter, namedtuple, OrderedDict
import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

from engines import END_OF_TEXT, ENGINES, KINDS, ON_DEVICE, kind

TESTS = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(os.path.dirname(TESTS), 'models', 'demo')
TOP_K = 40
N_PROMPTS, N_PROMPT, N_GREEDY = 10, 8, 20  # the likeliest tokens that are compared before anything is measured
N_COMPARED = N_PROMPTS * N_GREEDY
BURST_SECONDS = 3  # a burst is as many whole texts as it takes to be longer than that
LIMIT_SECONDS = 3600  # a worker that takes longer for one order is ended
CONTEXT_MB = 100  # less than any process takes of a GPU's memory
COLORS = OrderedDict(zip(KINDS, [('tab:blue', 'silver'), ('tab:cyan', 'lightsteelblue'), ('tab:green', 'darkseagreen'),
                                 ('tab:orange', 'gray')]))  # of the chart's bars: ours and others

WORKLOADS = OrderedDict([('start', '8+1'), ('W1', '1x512'), ('first', '512+1'), ('W2', '512+128'), ('W3', '8x128'),
                         ('W4', '32x96'), ('score', 'score2x1024')])
QUICK = OrderedDict([('start', '8+1'), ('W1', '1x32'), ('first', '64+1'), ('W2', '64+16'), ('W3', '8x16'),
                     ('W4', '32x8'), ('score', 'score2x64')])  # with --quick


class Workload(namedtuple('Workload', 'batch n_prompt length')):
    """Texts of `length` tokens after a prompt of n_prompt. length 0: the prompt is scored."""

    @classmethod
    def parse(cls, shape):
        """8x256: eight texts from nothing. 512+128: a prompt of 512 tokens and 128 after it. score2x1024: two texts scored.

        Raises ValueError for anything else.
        """
        match = re.match(r'(?:(N)x(N)|(N)\+(N)|score(N)x(N))$'.replace('N', r'[1-9]\d*'), shape)
        if not match:
            raise ValueError('%s is no workload; give %s, or a shape like 8x256, 512+128 or score2x1024'
                             % (shape, ', '.join(WORKLOADS)))
        batch, length, n_prompt, n_after, n_scored, scored_length = [int(group or 0) for group in match.groups()]
        if batch:
            return cls(batch, 1, length)
        return cls(1, n_prompt, n_after) if n_prompt else cls(n_scored, scored_length + 1, 0)

    def n_tokens(self):
        """How many tokens are sampled or scored."""
        return self.batch * (self.length or self.n_prompt - 1)

    def title(self):
        """What the table calls it, with the unit of its figures."""
        if self.length == 1:
            return 'first token after %d (s)' % self.n_prompt
        if self.n_prompt > 1 and self.length:
            return '%d + %d (tokens/s)' % (self.n_prompt, self.length)
        return '%s%d x %d (tokens/s)' % ('' if self.length else 'score ', self.batch, self.length or self.n_prompt - 1)


# What a burst took: seconds for one workload, and the peak of memory of its process so far.
Burst = namedtuple('Burst', 'seconds megabytes')


# What a worker does: a process with one engine, which waits for orders. Each of these functions is one.

def versions(engine):
    """{engine: the packages that it runs on with their versions}, of the engines whose packages are all installed."""
    try:
        from importlib.metadata import version
    except ImportError:  # Python 3.7 and earlier
        from pkg_resources import get_distribution
        version = lambda name: get_distribution(name).version  # noqa: E731
    found = {}
    for name, (engine, _) in ENGINES.items():
        if all(importlib.util.find_spec(module) for module, _ in engine.packages):
            found[name] = ', '.join('%s %s' % (package, version(package)) for _, package in engine.packages)
    return found


def convert(engine, model, folder):
    """Write what the engine makes of a model's folder. What is written in part does not get the name `folder`."""
    shutil.rmtree(folder + '.part', ignore_errors=True)
    engine.convert(model, folder + '.part')
    os.replace(folder + '.part', folder)


def load(engine, folder):
    engine.prepare(folder)


def greedy(engine, prompts):
    """The likeliest N_GREEDY tokens after each prompt."""
    return engine.generate(np.array(prompts), N_GREEDY, 1).tolist()


def burst(engine, batch, n_prompt, length, at_least):
    """Repeat a workload until at_least seconds are over: a Burst."""
    prompt_BT = np.random.RandomState(0).randint(END_OF_TEXT, size=[batch, n_prompt])
    if n_prompt == 1:
        prompt_BT[:] = END_OF_TEXT
    n, start = 0, time.time()
    while n == 0 or time.time() - start < at_least:
        result = engine.generate(prompt_BT, length, TOP_K) if length else engine.score(prompt_BT)
        if result.shape != (batch, length or n_prompt - 1):
            raise RuntimeError('asked for %d x %d tokens, got %s' % (batch, length or n_prompt - 1, result.shape))
        n += 1
    seconds = (time.time() - start) / n
    with open('/proc/self/status', encoding='utf-8') as file:
        return Burst(seconds, int(re.search(r'VmHWM:\s+(\d+) kB', file.read()).group(1)) / 1024)


ORDERS = {'versions': versions, 'convert': convert, 'load': load, 'greedy': greedy, 'burst': burst}


def work(name, threads):
    """Answer each line of stdin, [order, arguments] in JSON, with {"result": ...} or, before it ends, {"error": ...}."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    engine = None
    if name:
        make_engine, precision = ENGINES[name]
        engine = make_engine(threads, precision)
    for line in sys.stdin:
        order, arguments = json.loads(line)
        try:
            answer = {'result': ORDERS[order](engine, **arguments)}
        except Exception as error:
            answer = {'error': '%s: %s' % (type(error).__name__, str(error).strip().split('\n')[0])}
        answers.write(json.dumps(answer) + '\n')
        answers.flush()
        if 'error' in answer:
            sys.exit(1)


# What the parent does.

class Failed(Exception):
    """A worker did not do what it was asked; the message is its error, or the last line it wrote."""


class Worker(object):
    """An engine's process, for a `with`. It computes only while ask() waits for its answer."""

    def __init__(self, python, options, engine=''):
        environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL='3', PYTHONWARNINGS='ignore', TOKENIZERS_PARALLELISM='false')
        for name in ('OMP', 'MKL', 'OPENBLAS'):
            environment[name + '_NUM_THREADS'] = str(options.threads)
        if options.device == 'cpu':
            environment['CUDA_VISIBLE_DEVICES'] = ''
        else:
            environment['CUDA_DEVICE_ORDER'] = 'PCI_BUS_ID'  # nvidia-smi's
            if engine and kind(ENGINES[engine][1]) != 'TF32':
                environment['NVIDIA_TF32_OVERRIDE'] = '0'
        self.errors = tempfile.TemporaryFile()  # not a pipe, which would have to be read
        self.process = subprocess.Popen(
            [python, os.path.abspath(__file__), '--worker', engine, '--threads', str(options.threads)], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, universal_newlines=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()

    def ask(self, order, **arguments):
        """What this one of the ORDERS returns in the worker. Raises Failed if the worker ends instead."""
        limit = threading.Timer(LIMIT_SECONDS, self.process.kill)
        limit.start()
        try:
            self.process.stdin.write(json.dumps([order, arguments]) + '\n')
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        finally:
            limit.cancel()
        if answer:
            answer = json.loads(answer)
            if 'error' in answer:
                raise Failed(answer['error'])
            return answer['result']
        status = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode('utf-8', 'replace').strip().split('\n')
        raise Failed('status %d: %s' % (status, lines[-1]))


class Runner(namedtuple('Runner', 'engine python label')):
    """An engine in a Python: a row of the table."""

    def is_ours(self):
        return ENGINES[self.engine][0].name == 'ours'

    def kind(self):
        """One of KINDS."""
        return kind(ENGINES[self.engine][1])

    def folder(self, model, options):
        """Where its form of a model's folder is."""
        engine = ENGINES[self.engine][0]
        if not engine.converts:
            return model
        return os.path.join(os.path.abspath(options.cache), '%s-%s' % (
            os.path.basename(model), engine.name if engine.converts_alike else self.engine))

    def worker(self, options):
        return Worker(self.python, options, self.engine)


def say(*text):
    print(time.strftime('%H:%M:%S'), *text, file=sys.stderr, flush=True)


def card(field, number=os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]):
    """What nvidia-smi tells of a GPU, the first one that is visible, or None: its 'name', or 'memory.used' in MB."""
    command = ['nvidia-smi', '--id=' + number, '--query-gpu=' + field, '--format=csv,noheader,nounits']
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, universal_newlines=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def memory_used(options):
    """MB of the GPU's memory that are in use by all processes; 0 without a GPU."""
    return int(card('memory.used')) if options.device == 'gpu' else 0


def find_runners(options):
    """The Runners of the chosen engines, one for each set of versions, and [(name, 'not installed')] of the others."""
    chosen = [name for name in ON_DEVICE[options.device] if name == 'ours' or name in options.engines]
    runners = OrderedDict()
    for python in [sys.executable] + options.python:
        with Worker(python, options) as worker:
            for name, packages in worker.ask('versions').items():
                engine, precision = ENGINES[name]
                label = '%s%s, %s' % ('ours, ' if engine.name == 'ours' else '', packages, precision)
                runners.setdefault(label, Runner(name, python, label))
    runners = sorted([runner for runner in runners.values() if runner.engine in chosen],
                     key=lambda runner: chosen.index(runner.engine))
    found = [runner.engine for runner in runners]
    return runners, [(name, 'not installed') for name in chosen if name not in found]


def make_model(runner, options):
    """The folder of the random model, which is written unless it is there."""
    model = os.path.join(os.path.abspath(options.cache), '117M')
    if not os.path.isdir(model):
        say('writing', model)
        shutil.rmtree(model + '.part', ignore_errors=True)
        subprocess.check_call([runner.python, os.path.join(TESTS, 'tiny.py'), model + '.part', '--shape', '117M'])
        os.replace(model + '.part', model)
    return model


def demo_prompts():
    """N_PROMPT tokens from each of N_PROMPTS places of a text that the demo model was not trained on."""
    from encoder import get_encoder
    with open(os.path.join(TESTS, 'held_out.txt'), encoding='utf-8') as file:
        tokens = get_encoder(os.path.basename(DEMO), os.path.dirname(DEMO)).encode(file.read())
    return [tokens[start:start + N_PROMPT] for start in np.linspace(0, len(tokens) - N_PROMPT, N_PROMPTS).astype(int)]


def likeliest_tokens(runner, model, prompts, options):
    """The likeliest tokens after the prompts, from the model as the engine has it, which is converted first if need be."""
    folder = runner.folder(model, options)
    if not os.path.isdir(folder):
        say(runner.label, 'converts', model)
        with runner.worker(options) as worker:
            worker.ask('convert', model=model, folder=folder)
    before = memory_used(options)
    with runner.worker(options) as worker:
        worker.ask('load', folder=folder)
        tokens = worker.ask('greedy', prompts=prompts)
        if options.device == 'gpu' and memory_used(options) < before + CONTEXT_MB:
            raise Failed('it takes no memory of the GPU, and seems not to find it')
        return tokens


def check(runners, model, prompts, options):
    """How many of N_COMPARED greedy tokens each shares with the first, which is ours in float32.

    Returns {label: number}, and [(label, why it is left out)]. Raises Failed if it is ours that does not work.
    """
    expected = np.array(likeliest_tokens(runners[0], model, prompts, options))
    shared, absent = {runners[0].label: N_COMPARED}, []
    for runner in runners[1:]:
        try:
            tokens = np.array(likeliest_tokens(runner, model, prompts, options))
            shared[runner.label] = int(np.sum(tokens == expected))
            say('%s: %d of %d likeliest tokens as ours in float32' % (runner.label, shared[runner.label], N_COMPARED))
            if shared[runner.label] < N_COMPARED / 2:
                raise Failed('only %d of %d likeliest tokens are those of float32' % (shared[runner.label], N_COMPARED))
        except Failed as failure:
            say(runner.label, 'is left out:', failure)
            absent.append((runner.label, str(failure)))
    return shared, absent


def alternate(runners, n_rounds, measure_burst, bursts):
    """Fill bursts, {label: list of what measure_burst(runner) returned in each round}; None for one that failed.

    Every other round goes backwards. A round that is not kept comes first.
    """
    for i in range(1 + n_rounds):
        for runner in runners[::-1] if i % 2 else runners:
            if bursts.get(runner.label, []) is None:
                continue
            try:
                measured = measure_burst(runner)
            except Failed as failure:
                bursts[runner.label] = None
                say(runner.label, 'failed:', failure)
                continue
            say('round %d of %d, %s: %.3f s, %.0f MB' % (i, n_rounds, runner.label, measured.seconds, measured.megabytes))
            if i:
                bursts.setdefault(runner.label, []).append(measured)


def measure(runners, name, workload, model, options, bursts):
    """Do all rounds of a workload: fill bursts, as alternate() does."""
    say(name)
    order = dict(workload._asdict(), at_least=0 if options.quick or name == 'start' else BURST_SECONDS)
    if not workload.length:
        runners = [runner for runner in runners if ENGINES[runner.engine][0].scores]

    def start_and_burst(runner):
        start = time.time()
        with runner.worker(options) as worker:
            worker.ask('load', folder=runner.folder(model, options))
            megabytes = Burst(*worker.ask('burst', **order)).megabytes
            return Burst(time.time() - start, megabytes)

    with contextlib.ExitStack() as opened:
        workers, taken = {}, Counter()

        def burst_of_loaded(runner):
            before = memory_used(options)
            if runner not in workers:
                workers[runner] = opened.enter_context(runner.worker(options))
                workers[runner].ask('load', folder=runner.folder(model, options))
            burst = Burst(*workers[runner].ask('burst', **order))
            taken[runner] += memory_used(options) - before  # the others wait meanwhile
            return burst._replace(megabytes=taken[runner]) if options.device == 'gpu' else burst

        alternate(runners, options.rounds, start_and_burst if name == 'start' else burst_of_loaded, bursts)


def base_of(runner, runners):
    """Ours in the same Python, of the same kind if we have it. Ours itself is compared with float32, and that with None."""
    ours = [other for other in runners if other.is_ours() and other.python == runner.python]
    float32 = [other for other in ours if other.kind() == 'float32']
    alike = [] if runner.is_ours() else [other for other in ours if other.kind() == runner.kind()]
    return next((other for other in alike + float32 if other != runner), None)


def speeds(bursts, base_bursts):
    """How many times as fast as the base: first quartile, median and third quartile of the rounds' ratios."""
    return np.percentile([base.seconds / own.seconds for own, base in zip(bursts, base_bursts)], [25, 50, 75])


def rate(workload, bursts):
    """The median of the figures that the table and the chart show: tokens per second, or seconds to a single token."""
    seconds = np.median([burst.seconds for burst in bursts])
    return seconds if workload.length == 1 else workload.n_tokens() / seconds


def cell(workload, bursts, runner, base):
    """A figure and the speed beside the base's: '341 (0.83; 0.81-0.86)'. bursts: those of all runners."""
    if not bursts.get(runner.label):
        return 'failed' if bursts.get(runner.label, []) is None else '-'
    shown = '%.3g' % rate(workload, bursts[runner.label])
    if base is None or not bursts.get(base.label):
        return shown
    low, middle, high = speeds(bursts[runner.label], bursts[base.label])
    return '%s (%.2f; %.2f-%.2f)' % (shown, middle, low, high)


def table(runners, absent, workloads, results, shared):
    """All figures in Markdown. results: {workload: bursts}.  shared: {model: {label: number of equal tokens}}."""
    titles = ['%s: tokens of %d as float32' % (model, N_COMPARED) for model in shared]
    titles += ['start to first token (s)' if name == 'start' else workloads[name].title() for name in results]
    from_nothing = [name for name in results if workloads[name].n_prompt == 1]
    titles += [workloads[name].title().replace('tokens/s', 'peak MB') for name in from_nothing]
    lines = ['| engine | %s |' % ' | '.join(titles), '| --- ' * (len(titles) + 1) + '|']
    for runner in runners:
        cells = [str(counts.get(runner.label, '-')) for counts in shared.values()]
        cells += [cell(workloads[name], bursts, runner, base_of(runner, runners)) for name, bursts in results.items()]
        for name in from_nothing:
            bursts = results[name].get(runner.label)
            cells.append('%.0f' % bursts[-1].megabytes if bursts else '-')
        lines.append('| %s | %s |' % (runner.label, ' | '.join(cells)))
    lines += ['| %s | %s |' % (label, reason.replace('|', '/')[:100]) + ' |' * (len(titles) - 1) for label, reason in absent]
    return '\n'.join(lines)


def draw_chart(path, runners, workloads, results):
    """A PNG of bars: tokens per second in each workload, full precision above fewer bits."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    colors = OrderedDict((('%s, %s' % (owner, kind)), COLORS[kind][i]) for i, owner in enumerate(('ours', 'others'))
                         for kind in KINDS if kind in [runner.kind() for runner in runners])
    kinds = ['%s, %s' % ('ours' if runner.is_ours() else 'others', runner.kind()) for runner in runners]
    names = [name for name in results if workloads[name].length != 1]
    figure = Figure(figsize=(4 * len(names) + 3, 0.4 * len(runners) + 1.6))
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names):
        bursts = [results[name].get(runner.label) for runner in runners]
        axis.barh([runner.label for runner in runners], [rate(workloads[name], one) if one else 0 for one in bursts],
                  color=[colors[kind] for kind in kinds])
        axis.set_title(workloads[name].title(), fontsize=10)
    axes[0].invert_yaxis()
    figure.legend(handles=[Patch(color=colors[kind], label=kind) for kind in colors], loc='lower center', ncol=4, fontsize=9)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    figure.savefig(path)


def conditions(options):
    """Where and when, for under the table."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        processor = re.search(r'model name\s*: (.*)', file.read())
    place = processor.group(1) if processor else 'unknown processor'
    if options.device == 'gpu':
        place = '%s, driver %s, on a machine with %s' % (card('name'), card('driver_version'), place)
    return '%s, %s, threads: %d, rounds: %d, random weights of 117M, top_k %d%s. In brackets: how many times as fast as our ' \
        'float32 in the same Python, or our row of the other\'s kind (%s) where there is one: the median of the rounds; ' \
        'their quartiles.' % (
            time.strftime('%Y-%m-%d'), place, options.threads, options.rounds, TOP_K,
            ', short texts (--quick)' if options.quick else '', ', '.join(KINDS[1:]))


def parse_options():
    """The command line, with options.workloads as {name or shape: Workload}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=list(ON_DEVICE), default='cpu', help='what all compute on')
    parser.add_argument('--engines', nargs='+', choices=list(ENGINES), help='ours is always in')
    parser.add_argument('--workloads', nargs='+', default=list(WORKLOADS), metavar='WORKLOAD', help='names or shapes: %s'
                        % ', '.join('%s (%s)' % item for item in WORKLOADS.items()))
    parser.add_argument('--rounds', type=int, help='7, or 1 with --quick')
    parser.add_argument('--quick', action='store_true', help='short texts: the figures mean little')
    parser.add_argument('--python', action='append', default=[], help='another Python, as a path; may be repeated')
    parser.add_argument('--threads', type=int, help='2, or with a GPU as many as there are cores')
    parser.add_argument('--cache', default=os.path.join(os.path.dirname(TESTS), 'models', 'benchmark'),
                        help='folder for the weights in all formats, 4 GB')
    parser.add_argument('--chart', default='benchmark.png', help='where to draw the figures, if matplotlib is installed')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 7)
    options.threads = options.threads or (2 if options.device == 'cpu' else len(os.sched_getaffinity(0)))
    options.engines = options.engines or list(ON_DEVICE[options.device])
    elsewhere = [name for name in options.engines if name not in ON_DEVICE[options.device]]
    if elsewhere:
        parser.error('--device %s has %s, and not %s' % (
            options.device, ', '.join(ON_DEVICE[options.device]), ', '.join(elsewhere)))
    shapes = QUICK if options.quick else WORKLOADS
    try:
        options.workloads = OrderedDict((name, Workload.parse(shapes.get(name, name))) for name in options.workloads)
    except ValueError as error:
        parser.error(str(error))
    return options


def main():
    options = parse_options()
    if options.worker is not None:
        work(options.worker, options.threads)
        return
    if options.device == 'gpu' and not (card('memory.used') or '').isdigit():
        sys.exit('benchmark.py: there is no GPU whose memory nvidia-smi can tell; leave out --device gpu')
    os.makedirs(options.cache, exist_ok=True)
    runners, absent = find_runners(options)
    results, shared = OrderedDict(), OrderedDict()
    try:
        model = make_model(runners[0], options)
        random_prompts = np.random.RandomState(1).randint(END_OF_TEXT, size=[N_PROMPTS, N_PROMPT]).tolist()
        for name, folder, prompts in (('demo', DEMO, demo_prompts()), ('random 117M', model, random_prompts)):
            shared[name], left_out = check(runners, folder, prompts, options)
            absent += left_out
            runners = [runner for runner in runners if runner.label not in dict(absent)]
        for name, workload in options.workloads.items():
            results[name] = {}
            measure(runners, name, workload, model, options, results[name])
    except KeyboardInterrupt:
        say('interrupted')
    print(table(runners, absent, options.workloads, results, shared) + '\n\n' + conditions(options))
    if any(options.workloads[name].length != 1 for name in results) and importlib.util.find_spec('matplotlib'):
        draw_chart(options.chart, runners, options.workloads, results)
        say('chart:', options.chart)


if __name__ == '__main__':
    main()
