"""Compare the speed of this sampler with that of other engines that sample GPT-2; `make bench` runs this program.

    python benchmarks/benchmark.py                               every installed engine: an hour or two
    python benchmarks/benchmark.py --quick                       short texts, one round: does every engine work?
    python benchmarks/benchmark.py --python OTHER/bin/python     add the TensorFlow of another Python to the table
    python benchmarks/benchmark.py --engines ours-int8 ctranslate2-int8 --workloads W1 1x1023 --rounds 9
    python benchmarks/benchmark.py --device gpu                  on a GPU, with the engines of TensorFlow and PyTorch

A shared machine may be twice as fast as it was minutes ago, so only what is measured close together is compared. For
each workload, every engine is loaded into its own process and stays loaded. In each round the engines take turns: each
computes one burst of a few seconds while the others wait, and every other round runs in reverse order. Each round gives
every engine's speed divided by ours; the table shows the median of these ratios, their quartiles, and the median speed.
The first round, in which everything is loaded and warms up, is not measured. The time from start to first token is
measured in the same order, with a new process for each burst. Peak memory is that of a process that ran only this
workload; on a GPU, what it allocated on the card. On a GPU, TensorFloat-32 is off except in the rows named after it,
and all CPU cores serve the GPU.

All engines get the same number of threads, and the same random weights in the shape of the 117M model. First, each
engine continues ten prompts greedily, with these weights and with the demo model; the table shows how many tokens equal
those of our float32, and an engine is left out if fewer than half do.

The table goes to stdout as Markdown, everything else to stderr. Ctrl-C ends the measurements and prints the results so
far. Needs Linux, and memory for all engines at once, 16 GB; --engines takes fewer. Nothing else may use the GPU.
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

from engines import END_OF_TEXT, ENGINES, KINDS, ON_DEVICE, Engine, kind

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DEMO = os.path.join(ROOT, 'models', 'demo')
TOP_K = 40
N_PROMPTS, N_PROMPT, N_GREEDY = 10, 8, 20  # of the greedy samples that are compared before anything is measured
N_COMPARED = N_PROMPTS * N_GREEDY
BURST_SECONDS = 3  # a burst samples whole texts until it has taken this long
LIMIT_SECONDS = 3600  # a worker that takes longer for one order is killed
CONTEXT_MB = 100  # less than any process takes of a GPU's memory
COLORS = OrderedDict(zip(KINDS, [('tab:blue', 'silver'), ('tab:cyan', 'lightsteelblue'), ('tab:green', 'darkseagreen'),
                                 ('tab:orange', 'gray')]))  # of the chart's bars: our rows, other engines

WORKLOADS = OrderedDict([('start', '8+1'), ('W1', '1x512'), ('first', '512+1'), ('W2', '512+128'), ('W3', '8x128'),
                         ('W4', '32x96'), ('score', 'score2x1024'), ('train', 'train4x1024')])
QUICK = OrderedDict([('start', '8+1'), ('W1', '1x32'), ('first', '64+1'), ('W2', '64+16'), ('W3', '8x16'),
                     ('W4', '32x8'), ('score', 'score2x64'), ('train', 'train2x64')])  # with --quick


class Workload(namedtuple('Workload', 'batch n_prompt length')):
    """A batch of texts: `length` tokens sampled after a prompt of n_prompt. 0: the prompt is scored. -1: trained on."""

    @classmethod
    def parse(cls, shape):
        """8x256: eight unconditional samples. 512+128: 128 tokens after a prompt of 512. score2x1024: two texts scored.

        train4x1024: a step of training on four texts, with dropout.
        Raises ValueError for anything else.
        """
        match = re.match(r'(?:(N)x(N)|(N)\+(N)|score(N)x(N)|train(N)x(N))$'.replace('N', r'[1-9]\d*'), shape)
        if not match:
            raise ValueError('%s is not a workload; give %s, or a shape such as 8x256, 512+128 or score2x1024'
                             % (shape, ', '.join(WORKLOADS)))
        batch, length, n_prompt, n_after, n_scored, scored_length, n_trained, trained_length = [
            int(group or 0) for group in match.groups()]
        if batch:
            return cls(batch, 1, length)
        if n_trained:
            return cls(n_trained, trained_length, -1)
        return cls(1, n_prompt, n_after) if n_prompt else cls(n_scored, scored_length + 1, 0)

    def n_tokens(self):
        """Number of tokens that are sampled, scored or trained on."""
        return self.batch * (self.length if self.length > 0 else self.n_prompt - 1 - self.length)

    def title(self):
        """What it is, in words, with the unit of its figures: the title of its column and of its bars."""
        if self.length == 1:
            return 'first token after a prompt of %d (s)' % self.n_prompt
        if self.n_prompt > 1 and self.length > 0:
            return '%d tokens after a prompt of %d (tokens/s)' % (self.length, self.n_prompt)
        texts = '%d text%s of %s tokens' % (self.batch, 's' * (self.batch > 1),
                                            '{:,}'.format(self.n_tokens() // self.batch))
        verb = {0: 'scoring ', -1: 'training on '}.get(self.length, '')
        return verb + texts + ' at once' * (self.batch > 1 and not verb) + ' (tokens/s)'


# seconds: mean time of one workload.  megabytes: peak memory of the process so far.
Burst = namedtuple('Burst', 'seconds megabytes')


# In a worker, a process with one engine that waits for orders. Each of these functions is an order.

def versions(engine):
    """{engine: its packages and their versions}, for the engines whose packages are all installed."""
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
    """Convert a model's folder to the engine's format. A folder of this name is complete."""
    shutil.rmtree(folder + '.part', ignore_errors=True)
    engine.convert(model, folder + '.part')
    os.replace(folder + '.part', folder)


def load(engine, folder):
    engine.prepare(folder)


def greedy(engine, prompts):
    """N_GREEDY tokens after each prompt, each the most likely one."""
    return engine.generate(np.array(prompts), N_GREEDY, 1).tolist()


def burst(engine, batch, n_prompt, length, at_least):
    """Repeat a workload for at_least seconds or more. Returns a Burst."""
    prompt_BT = np.random.RandomState(0).randint(END_OF_TEXT, size=[batch, n_prompt])
    if n_prompt == 1:
        prompt_BT[:] = END_OF_TEXT
    n, start = 0, time.time()
    while n == 0 or time.time() - start < at_least:
        if length < 0:
            result = engine.train(prompt_BT)
        else:
            result = engine.generate(prompt_BT, length, TOP_K) if length else engine.score(prompt_BT)
        if length >= 0 and result.shape != (batch, length or n_prompt - 1):
            raise RuntimeError('asked for %d x %d tokens, got %s' % (batch, length or n_prompt - 1, result.shape))
        n += 1
    seconds = (time.time() - start) / n
    with open('/proc/self/status', encoding='utf-8') as file:
        return Burst(seconds, int(re.search(r'VmHWM:\s+(\d+) kB', file.read()).group(1)) / 1024)


ORDERS = {'versions': versions, 'convert': convert, 'load': load, 'greedy': greedy, 'burst': burst}


def work(name, threads):
    """Answer each line of stdin, [order, arguments] as JSON, with {"result": ...}, or with {"error": ...} and exit."""
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


# In the parent.

class Failed(Exception):
    """A worker did not carry out an order; the message is its error, or the last line it wrote."""


class Worker(object):
    """The process of an engine, a context manager. It computes only while ask() waits for its answer."""

    def __init__(self, python, options, engine=''):
        environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL='3', PYTHONWARNINGS='ignore',
                           TOKENIZERS_PARALLELISM='false')
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
            [python, os.path.abspath(__file__), '--worker', engine, '--threads', str(options.threads)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, universal_newlines=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):  # an order that a crashed worker did not read is still buffered
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()

    def ask(self, order, **arguments):
        """What an order of ORDERS returns in the worker. Raises Failed if it raises there, or the worker exits."""
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
    """An engine in one Python: a row of the table."""

    def is_ours(self):
        return ENGINES[self.engine][0].name == 'ours'

    def kind(self):
        """One of KINDS."""
        return kind(ENGINES[self.engine][1])

    def folder(self, model, options):
        """Path of a model's folder in the engine's format."""
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
    """A field that nvidia-smi reports for a GPU, such as 'name', or 'memory.used' in MB; None without nvidia-smi.

    number: index of the GPU; by default that of the first visible one.
    """
    command = ['nvidia-smi', '--id=' + number, '--query-gpu=' + field, '--format=csv,noheader,nounits']
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, universal_newlines=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def memory_used(options):
    """MB of the GPU's memory that all processes together use; 0 on a CPU."""
    return int(card('memory.used')) if options.device == 'gpu' else 0


def find_runners(options):
    """The Runners of the chosen engines, one for each set of versions, and [(name, 'not installed')] for the others."""
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
    """Path of the folder of the random model, which is written unless it exists."""
    model = os.path.join(os.path.abspath(options.cache), '117M')
    if not os.path.isdir(model):
        say('writing', model)
        shutil.rmtree(model + '.part', ignore_errors=True)
        program = os.path.join(ROOT, 'tests', 'helpers', 'tiny.py')
        subprocess.check_call([runner.python, program, model + '.part', '--shape', '117M'])
        os.replace(model + '.part', model)
    return model


def demo_prompts():
    """N_PROMPT tokens from each of N_PROMPTS places of a text that the demo model was not trained on."""
    from encoder import get_encoder
    with open(os.path.join(ROOT, 'tests', 'held_out.txt'), encoding='utf-8') as file:
        tokens = get_encoder(os.path.basename(DEMO), os.path.dirname(DEMO)).encode(file.read())
    return [tokens[start:start + N_PROMPT] for start in np.linspace(0, len(tokens) - N_PROMPT, N_PROMPTS).astype(int)]


def greedy_tokens(runner, model, prompts, options):
    """The engine's greedy samples after the prompts; the model is converted first if necessary."""
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
            raise Failed('it allocates no memory on the GPU, and does not seem to find it')
        return tokens


def check(runners, model, prompts, options):
    """Compare the greedy tokens of each engine with those of the first one, which is ours in float32.

    Returns {label: number of equal tokens of N_COMPARED}, and [(label, why it is left out)]. Raises Failed if our
    float32 fails.
    """
    expected = np.array(greedy_tokens(runners[0], model, prompts, options))
    shared, absent = {runners[0].label: N_COMPARED}, []
    for runner in runners[1:]:
        try:
            tokens = np.array(greedy_tokens(runner, model, prompts, options))
            shared[runner.label] = int(np.sum(tokens == expected))
            say('%s: %d of %d greedy tokens equal ours in float32' % (runner.label, shared[runner.label], N_COMPARED))
            if shared[runner.label] < N_COMPARED / 2:
                raise Failed('only %d of %d greedy tokens equal those of float32' % (shared[runner.label], N_COMPARED))
        except Failed as failure:
            say(runner.label, 'is left out:', failure)
            absent.append((runner.label, str(failure)))
    return shared, absent


def alternate(runners, n_rounds, measure_burst, bursts):
    """Fill bursts, {label: list of what measure_burst(runner) returned in each round, or None if it failed}.

    Every other round runs in reverse order. The first round is not kept.
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
            say('round %d of %d, %s: %.3f s, %.0f MB'
                % (i, n_rounds, runner.label, measured.seconds, measured.megabytes))
            if i:
                bursts.setdefault(runner.label, []).append(measured)


def measure(runners, name, workload, model, options, bursts):
    """Run all rounds of a workload and fill bursts, as alternate() does."""
    say(name)
    order = dict(workload._asdict(), at_least=0 if options.quick or name == 'start' else BURST_SECONDS)
    if workload.length <= 0:
        method = 'train' if workload.length else 'score'
        runners = [runner for runner in runners
                   if getattr(ENGINES[runner.engine][0], method) is not getattr(Engine, method)]

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
    """The Runner that this one is compared with: ours in the same Python, of the same kind if there is one.

    Our own rows are compared with our float32, and that with None.
    """
    ours = [other for other in runners if other.is_ours() and other.python == runner.python]
    float32 = [other for other in ours if other.kind() == 'float32']
    alike = [] if runner.is_ours() else [other for other in ours if other.kind() == runner.kind()]
    return next((other for other in alike + float32 if other != runner), None)


def speeds(bursts, base_bursts):
    """Speed relative to the base: first quartile, median and third quartile of the rounds' ratios."""
    return np.percentile([base.seconds / own.seconds for own, base in zip(bursts, base_bursts)], [25, 50, 75])


def rate(workload, bursts):
    """The median that the table and the chart show: tokens per second, or seconds to a single token."""
    seconds = np.median([burst.seconds for burst in bursts])
    return seconds if workload.length == 1 else workload.n_tokens() / seconds


def cell(workload, bursts, runner, base):
    """A figure and the speed relative to the base's: '341 (0.83; 0.81-0.86)'. bursts: those of all runners."""
    if not bursts.get(runner.label):
        return 'failed' if bursts.get(runner.label, []) is None else '-'
    shown = '%.3g' % rate(workload, bursts[runner.label])
    if base is None or not bursts.get(base.label):
        return shown
    low, middle, high = speeds(bursts[runner.label], bursts[base.label])
    return '%s (%.2f; %.2f-%.2f)' % (shown, middle, low, high)


def table(runners, absent, workloads, results, shared):
    """The figures as Markdown. results: {workload: bursts}.  shared: {model: {label: number of equal tokens}}."""
    titles = ['%s: tokens of %d as float32' % (model, N_COMPARED) for model in shared]
    titles += ['start to first token (s)' if name == 'start' else workloads[name].title() for name in results]
    unconditional = [name for name in results if workloads[name].n_prompt == 1]
    titles += [workloads[name].title().replace('tokens/s', 'peak MB') for name in unconditional]
    lines = ['| engine | %s |' % ' | '.join(titles), '| --- ' * (len(titles) + 1) + '|']
    for runner in runners:
        cells = [str(counts.get(runner.label, '-')) for counts in shared.values()]
        cells += [cell(workloads[name], bursts, runner, base_of(runner, runners)) for name, bursts in results.items()]
        for name in unconditional:
            bursts = results[name].get(runner.label)
            cells.append('%.0f' % bursts[-1].megabytes if bursts else '-')
        lines.append('| %s | %s |' % (runner.label, ' | '.join(cells)))
    lines += ['| %s | %s |' % (label, reason.replace('|', '/')[:100]) + ' |' * (len(titles) - 1)
              for label, reason in absent]
    return '\n'.join(lines)


def draw_chart(path, runners, workloads, results):
    """Draw a bar chart as PNG: tokens per second in each workload, full precision above fewer bits."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    colors = OrderedDict((('%s, %s' % (owner, kind)), COLORS[kind][i]) for i, owner in enumerate(('ours', 'others'))
                         for kind in KINDS if kind in [runner.kind() for runner in runners])
    kinds = ['%s, %s' % ('ours' if runner.is_ours() else 'others', runner.kind()) for runner in runners]
    names = [name for name in results if workloads[name].length != 1]
    figure = Figure(figsize=(2.6 * len(names) + 3, 0.4 * len(runners) + 1.6))
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names):
        bursts = [results[name].get(runner.label) for runner in runners]
        bars = axis.barh([runner.label for runner in runners],
                         [rate(workloads[name], one) if one else 0 for one in bursts],
                         color=[colors[kind] for kind in kinds])
        axis.bar_label(bars, fmt='%.0f', padding=3)
        axis.set_title(workloads[name].title().replace(' (', '\n('), fontsize=10)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.margins(x=0.2)
        axis.spines[:].set_visible(False)
    axes[0].invert_yaxis()
    figure.legend(handles=[Patch(color=colors[kind], label=kind) for kind in colors], loc='lower center', ncol=4,
                  fontsize=9)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    figure.savefig(path)


def conditions(options):
    """The machine, the date and the settings, printed below the table."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        processor = re.search(r'model name\s*: (.*)', file.read())
    place = processor.group(1) if processor else 'unknown processor'
    if options.device == 'gpu':
        place = '%s, driver %s, on a machine with %s' % (card('name'), card('driver_version'), place)
    return '%s, %s, threads: %d, rounds: %d, random weights of 117M, top_k %d%s. In brackets: speed relative to our ' \
        'float32 in the same Python, or to our row of the same kind (%s) if there is one: median of the rounds; ' \
        'quartiles.' % (
            time.strftime('%Y-%m-%d'), place, options.threads, options.rounds, TOP_K,
            ', short texts (--quick)' if options.quick else '', ', '.join(KINDS[1:]))


def parse_options():
    """Parse the command line; options.workloads is {name or shape: Workload}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=list(ON_DEVICE), default='cpu', help='the device that every engine uses')
    parser.add_argument('--engines', nargs='+', choices=list(ENGINES), help='ours is always included')
    parser.add_argument('--workloads', nargs='+', default=list(WORKLOADS), metavar='WORKLOAD',
                        help='names or shapes: %s' % ', '.join('%s (%s)' % item for item in WORKLOADS.items()))
    parser.add_argument('--rounds', type=int, help='7, or 1 with --quick')
    parser.add_argument('--quick', action='store_true', help='short texts: for a check; the speeds mean little')
    parser.add_argument('--python', action='append', default=[], help='path of another Python; may be repeated')
    parser.add_argument('--threads', type=int, help='default: 2; with a GPU, the number of cores')
    parser.add_argument('--cache', default=os.path.join(ROOT, 'models', 'benchmark'),
                        help='folder for the weights in every format, 4 GB')
    parser.add_argument('--chart', default='benchmark.png', help='file for the chart, drawn if matplotlib is installed')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 7)
    options.threads = options.threads or (2 if options.device == 'cpu' else len(os.sched_getaffinity(0)))
    options.engines = options.engines or list(ON_DEVICE[options.device])
    elsewhere = [name for name in options.engines if name not in ON_DEVICE[options.device]]
    if elsewhere:
        parser.error('--device %s supports %s, not %s' % (
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
        sys.exit('benchmark.py: there is no GPU whose memory nvidia-smi reports; leave out --device gpu')
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
