"""Progress on stderr: a bar on a terminal, and without one a line now and then, as for a log file."""
import sys
import time

from tqdm import tqdm

from gpt2.system import process

REPORT_EVERY_SECONDS = 60  # without a terminal


def report(*lines):
    """Print lines on stderr at once, above the progress bar if there is one, with control characters escaped."""
    stderr = process.whole(sys.stderr)
    tqdm.write('\n'.join(map(process.escaped, lines)), file=stderr)
    stderr.flush()


class Progress:
    """A context manager that shows how much of a task is done.

    total: number of units in the whole task, None if unknown.  initial: number of units done before.
    unit: their name in the plural, such as 'rows'.  unit_scale: print 12.3MB for 12345678 of the unit 'B'.
    label: printed at the start of the bar and of each line.
    leave: keep the bar on the terminal when the task has ended.  enabled: False shows nothing at all.
    """

    def __init__(self, total, *, unit, label=None, initial=0, unit_scale=False, leave=True, enabled=True):
        self.total, self.initial, self.done = total, initial, initial
        self.label, self.unit_scale, self.enabled = label and process.escaped(label), unit_scale, enabled
        self.unit = unit if unit_scale else ' ' + unit
        self.started = self.reported = time.time()
        self.bar = tqdm(desc=self.label, file=process.whole(sys.stderr), total=total, initial=initial, unit=self.unit,
                        unit_scale=unit_scale, leave=leave,
                        disable=None if enabled else True)  # None: a bar on a terminal only

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def advance(self, n, figures='', now=False):
        """Count n more units as done. figures: text for the end of the bar, such as '900 tokens/s'.

        now: without a terminal, print the line in any case.
        """
        self.done += n
        self.bar.set_postfix_str(figures, refresh=False)
        self.bar.update(n)
        is_due = now or time.time() - self.reported > REPORT_EVERY_SECONDS
        if is_due and self.enabled and self.bar.disable:
            self.reported = time.time()
            report(self.line(figures))

    def line(self, figures):
        """Returns '<label>: <done> of <total> <unit>: <figures>, <time> left', without what is unknown."""
        in_words = tqdm.format_sizeof if self.unit_scale else str
        amounts = [in_words(n) for n in (self.done, self.total) if n is not None]
        details = [figures]
        if self.total is not None and self.done > self.initial:
            seconds_left = (time.time() - self.started) / (self.done - self.initial) * (self.total - self.done)
            details.append('%s left' % tqdm.format_interval(seconds_left))
        parts = [self.label, ' of '.join(amounts) + self.unit, ', '.join(filter(None, details))]
        return ': '.join(filter(None, parts))
