"""Rows of tokens in batches, what a model predicts for them, and Sums of that, whose means are the figures."""
from collections import namedtuple
import itertools
import math

import numpy as np

from gpt2.system import process
from gpt2.system.progress import Progress

# ids: int32 [T].  first: index of the first token to score.  document: number of the document that the row is from
Row = namedtuple('Row', 'ids first document')

# What a model predicts for each of N tokens. A field that was not asked for is None.
# nats: float [N], the cost of the token: -log of its probability
# rank: int [N], 1 for the most likely token of the vocabulary, 2 for the next one
# entropy, variance: float [N], mean and variance of the nats of all tokens, weighted by their probabilities
# top_ids, top_nats: [N, k], the ids of the k most likely tokens, most likely first, and their nats
Predictions = namedtuple('Predictions', 'nats rank entropy variance top_ids top_nats')
Predictions.__new__.__defaults__ = (None,) * 5  # of all fields but nats


class Sum(namedtuple('Sum', 'metric total count')):
    """What a figure is the mean of. metric: 'perplexity' or 'bits', of nats, or 'accuracy', of hits."""

    def plus(self, other):
        """The Sum of both. other: of the same metric, or None."""
        return self if other is None else self._replace(total=self.total + other.total, count=self.count + other.count)

    def value(self):
        """The figure: a perplexity, bits, or percent."""
        mean = float(self.total) / self.count
        if self.metric == 'perplexity':
            return math.exp(min(mean, 700))  # a float cannot hold e^710
        return mean / math.log(2) if self.metric == 'bits' else 100 * mean


def group_rows(rows, max_tokens):
    """Group Rows of equal length and equal `first` into batches of at most max_tokens tokens, but at least one row.

    Returns a list of lists of row numbers, the longest rows first; rows of one document stay in order.
    """
    def shape(number):
        return -len(rows[number].ids), rows[number].first

    result = []
    for _, numbers in itertools.groupby(sorted(range(len(rows)), key=shape), shape):
        numbers = list(numbers)
        size = max(1, max_tokens // len(rows[numbers[0]].ids))
        result += [numbers[begin:begin + size] for begin in range(0, len(numbers), size)]
    return result


def stack_rows(rows, numbers):
    """The rows with these numbers, which are one batch: ids int32 [B, T], and the index of the first token to score."""
    return np.stack([rows[number].ids for number in numbers]), rows[numbers[0]].first


def add_up(function, work, *, label, shown):
    """Add up what function returns for each item of the list work, {name: Sum}. Ctrl-C ends it early.

    shown: name of the figure that the progress bar shows.  Returns ({name: Sum}, interrupted).
    """
    sums = {}
    with Progress(len(work), unit='batches', label=label, leave=False) as progress:
        try:
            with process.interruptible():
                for item in work:
                    sums = {name: part.plus(sums.get(name)) for name, part in function(item).items()}
                    progress.advance(1, '%s %.2f' % (sums[shown].metric, sums[shown].value()))
        except KeyboardInterrupt:
            return sums, True
    return sums, False
