"""The measured figures beside the paper's: a Markdown table, and a chart."""
from collections import namedtuple

from gpt2.chart import chart
from gpt2.evaluation import benchmarks

Line = namedtuple('Line', 'model benchmark protocol metric measured paper')
HEADER = '| model | benchmark | protocol | measured | paper | difference |\n| --- | --- | --- | ---: | ---: | ---: |'


def measure_all(model, found, options, follow_all=False):
    """Yield a Line for each figure of a model as soon as it is ready.

    found: as benchmarks.find returns it.  follow_all: follow every protocol, not only those of benchmarks.nearest.
    """
    measured = {}
    for benchmark, path, data in found:
        key = path if follow_all else benchmark  # wikitext2 and wikitext103 have one file and the same protocols
        protocols = None if follow_all else benchmarks.nearest(benchmark)
        figures = measured.get(key) or benchmarks.measure(model, benchmark, data, options, protocols)
        measured[key] = []
        for figure in figures:
            measured[key].append(figure)
            yield line(model.name, figure._replace(benchmark=benchmark))


def line(model_name, figure):
    """The Line of a Figure. Its protocol says so if only a share of the benchmark was measured."""
    protocol = figure.protocol + ('' if figure.share == 1 else ' (%.3g %% of it)' % (100 * figure.share))
    paper = benchmarks.paper_figure(model_name, figure.benchmark, figure.metric)
    return Line(model_name, figure.benchmark, protocol, figure.metric, figure.value, paper)


def cells(line):
    """A Line as the cells of a row of the table."""
    def text(value):
        return {'perplexity': '%.2f', 'bits': '%.3f', 'accuracy': '%.2f %%'}[line.metric] % value

    paper = ('', '') if line.paper is None else (text(line.paper), '%+.2f' % (line.measured - line.paper))
    return line[:3] + (text(line.measured),) + paper


def draw(lines, path):
    """Draw the Lines into a PNG file, as bars on one axis for each metric, with the paper's figure as a black mark."""
    metrics = sorted({line.metric for line in lines})
    heights = [2 + sum(line.metric == metric for line in lines) for metric in metrics]
    with chart(path, 11, 1 + 0.3 * len(lines) + len(metrics)) as figure:
        axes = figure.subplots(len(metrics), 1, squeeze=False, gridspec_kw={'height_ratios': heights})
        for metric, axis in zip(metrics, axes[:, 0]):
            bars = [line for line in lines if line.metric == metric][::-1]
            axis.barh(range(len(bars)), [line.measured for line in bars])
            marks = [(line.paper, y) for y, line in enumerate(bars) if line.paper is not None]
            if marks:
                axis.plot(*zip(*marks), 'k|', markersize=12, label='paper')
                axis.legend()
            axis.set(yticks=range(len(bars)), xscale='log' if metric == 'perplexity' else 'linear',
                     xlabel=metric + (', %' if metric == 'accuracy' else ''))
            axis.set_yticklabels(['%s %s: %s' % line[:3] for line in bars], fontsize=7)
