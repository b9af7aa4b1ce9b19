"""The benchmarks of the GPT-2 paper: its figures, the files and how to get them, and the protocols to measure them by.

The paper leaves open how to measure. The name of a protocol has parts: the reading (how the text is prepared), what is
counted, and the metric.
"""
from collections import namedtuple
import os

from gpt2 import releases
from gpt2.evaluation import cbt, lambada, language_modeling
from gpt2.system import files
from gpt2.system.progress import report

# benchmarks.json has for each benchmark its file, and the command that downloads it and compares it with its published
# checksum; and for each metric the figures of the paper's table 3, in the order of releases.RELEASES, and the protocol
# of the published replication that came nearest, or else the one that the paper describes.
BENCHMARKS = files.read_json(os.path.join(os.path.dirname(os.path.abspath(__file__)), 'benchmarks.json'))
MODULES = {'lambada': lambada, 'cbt-cn': cbt, 'cbt-ne': cbt}  # of the benchmarks that are not running texts

# share: the fraction of the benchmark that was measured
Figure = namedtuple('Figure', 'benchmark protocol metric value share')


def read(benchmark, path):
    """What the file of a benchmark holds: a text, passages or Questions.

    Raises FileNotFoundError with the command that downloads the file, ValueError for a file of something else.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError('no file %s; `%s` downloads it' % (path, BENCHMARKS[benchmark]['command']))
    return MODULES.get(benchmark, language_modeling).read(benchmark, path)


def find(folder):
    """A list of (benchmark, path, data) for each benchmark file in a folder, at any depth. data: as read returns it.

    Reports the missing ones on stderr. Raises FileNotFoundError if all are missing.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError('no folder %s; give the one with the files of the benchmarks' % folder)
    paths = {name: os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}
    found = {name: paths[about['file']] for name, about in BENCHMARKS.items() if about['file'] in paths}
    missing = sorted(set(BENCHMARKS) - set(found))
    remedy = '`python3 src/evaluate.py BENCHMARK --help` shows the name of its file and the command that downloads it'
    if not found:
        raise FileNotFoundError('no benchmark file in %s; %s' % (folder, remedy))
    if missing:
        report('not measured, because their files are not in %s: %s; %s' % (folder, ', '.join(missing), remedy))
    return [(benchmark, path, read(benchmark, path)) for benchmark, path in sorted(found.items())]


def measure(model, benchmark, data, options, protocols=None):
    """Yield the Figures of a benchmark as they are ready. After Ctrl-C: those of what is done, then KeyboardInterrupt.

    data: as read returns it.  protocols: the names of those wanted; None is all.
    """
    def is_wanted(name):
        """Whether name is one of protocols, or the beginning of one."""
        return protocols is None or any((protocol + ';').startswith(name + ';') for protocol in protocols)

    module = MODULES.get(benchmark, language_modeling)
    for reading in module.readings(model, benchmark, data):
        if not is_wanted(reading[0]):
            continue
        sums, share, interrupted = module.measure(model, benchmark, data, options, reading)
        for protocol, figure in sums:
            protocol = '%s; %s' % (reading[0], protocol)
            if is_wanted(protocol):
                yield Figure(benchmark, protocol, figure.metric, figure.value(), share)
        if interrupted:
            raise KeyboardInterrupt


def nearest(benchmark):
    """The protocols to compare with the paper's figures of a benchmark, a list."""
    return [paper['protocol'] for _, paper in sorted(BENCHMARKS[benchmark]['paper'].items())]


def paper_figure(model_name, benchmark, metric):
    """The paper's figure of a benchmark for a released model, or None."""
    release, paper = releases.BY_NAME.get(model_name), BENCHMARKS[benchmark]['paper'].get(metric)
    return paper['figures'][releases.RELEASES.index(release)] if release and paper else None
