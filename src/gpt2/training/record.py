"""The record of a run's losses: a line per step in metrics.jsonl, the same for TensorBoard, and a plot, loss.png."""
import contextlib
import os
import time

import numpy as np

from gpt2.chart import chart
from gpt2.system import files
from gpt2.system.tf1 import tf

# Of the figures that are computed with.
KINDS = {'step': (int,), 'loss_nats': (int, float, None), 'valid_loss_nats': (int, float, None)}


class Record(object):
    """The record in a folder. Lines of first_step and later are removed: those steps were not saved and come again."""

    def __init__(self, folder, first_step):
        self.folder, self.path = folder, os.path.join(folder, 'metrics.jsonl')
        self.plotted, self.plotting_seconds = 0, 0  # when the plot was last made, and how long that took
        kept = [figures for figures in self.read() if figures['step'] < first_step]
        files.write_text(self.path, ''.join(map(files.json_line, kept)))
        # To TensorFlow, paths are UTF-8; in a POSIX locale, Python has surrogates in those that are not ASCII.
        known = os.fsencode(folder).decode('utf-8', 'surrogateescape')
        # TensorFlow names the file after the second: without the suffix, a run resumed within one would overwrite it.
        self.summaries = tf.summary.FileWriter(known, filename_suffix='.%d' % first_step)
        # This makes TensorBoard, too, ignore what earlier files hold of first_step and later.
        self.summaries.add_session_log(tf.SessionLog(status=tf.SessionLog.START), first_step)

    def read(self):
        """A list of what was added. An incomplete last line, of a killed process, is left out."""
        if not os.path.exists(self.path):
            return []
        with open(self.path, 'rb') as file:
            return [files.parse_dict(line, '%s, line %d,' % (self.path, number), KINDS, 'remove this line')
                    for number, line in enumerate(file, 1) if line.endswith(b'\n')]

    def add(self, figures):
        """Add a line: the figures {name: number} of a step, including 'step'."""
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(files.json_line(figures))
        values = [tf.Summary.Value(tag=name, simple_value=value)
                  for name, value in sorted(figures.items()) if name != 'step']
        self.summaries.add_summary(tf.Summary(value=values), figures['step'])

    def show(self, is_last):
        """Update TensorBoard, and the plot too, if it is the last time or plotting takes at most 1 % of the time."""
        self.summaries.flush()
        began = time.time()
        if is_last or began - self.plotted > 100 * self.plotting_seconds:
            plot(self.read(), os.path.join(self.folder, 'loss.png'))
            self.plotted = time.time()
            self.plotting_seconds = self.plotted - began


def plot(records, path):
    """Plot the losses over the steps into a PNG file, the training loss also smoothed. No matplotlib: do nothing."""
    with contextlib.suppress(ImportError), chart(path) as figure:
        axes = figure.add_subplot(1, 1, 1)
        steps, losses = curve(records, 'loss_nats')
        axes.plot(steps, losses, color='C0', alpha=0.3, linewidth=0.5)
        axes.plot(steps, smoothed(losses, max(1, len(losses) // 50)), color='C0', label='training, smoothed')
        steps, losses = curve(records, 'valid_loss_nats')
        if len(steps):
            axes.plot(steps, losses, color='C1', marker='.', label='validation')
        axes.set(xlabel='step', ylabel='loss (nats per token)')
        axes.legend()


def curve(records, name):
    """The steps of the records with a figure of that name, and the figures: two arrays."""
    points = [(figures['step'], figures[name]) for figures in records if name in figures]
    return np.array(points).reshape(-1, 2).T


def smoothed(values, n):
    """A moving average: of each value and up to n neighbours on either side. values: array [N]."""
    sums = np.append(0, np.cumsum(values))
    place = np.arange(len(values))
    first, end = np.maximum(place - n, 0), np.minimum(place + n + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)
