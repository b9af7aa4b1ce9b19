"""The texts of many clients, continued at the same time: which wait, which are computed, and how they end."""
import contextlib
import threading
import time
import traceback

import numpy as np

from gpt2 import session
from gpt2.serving.completions import Refusal
from gpt2.system.progress import report


class Engine(object):
    """A model that continues rows, texts of clients, each as soon as there is room for it.

    hparams: the model's.  max_rows: computed at the same time.  max_waiting: rows that may wait.
    Raises as checkpoint.restore does.

    A row, such as completions.Choice, has these attributes and methods, which are called in the engine's threads:
    prompt: list of token ids.  max_tokens: maximum number of new ones, may be 0.  draws: float64 [max_tokens].
    temperature, top_k, top_p: as sample.sample_sequence takes them, but numbers.
    wants_top: whether take() needs log-probabilities.  is_scored: whether begin() does, of the prompt.
    ended: whether the row is done, which any thread may set.
    begin(predictions): computing begins. predictions: those of the prompt from its second token on; None if there is
        none, or not is_scored.
    take(token, logprob, top_ids, top_logprobs): take a new token, and set `ended` if it is the last one.
    fail(message): no more tokens come, though the row has not ended.
    """

    def __init__(self, hparams, model_name, models_dir, precision, max_rows, max_waiting):
        self.hparams, self.max_rows, self.max_waiting = hparams, max_rows, max_waiting
        self.waiting, self.running, self.stopped = [], {}, False
        self.changed = threading.Condition()
        self.build(model_name, models_dir, precision)
        threading.Thread(target=self.work, daemon=True).start()

    def build(self, model_name, models_dir, precision):
        """Load the model."""
        raise NotImplementedError

    def work(self):
        """Compute, in a thread of its own, whatever is submitted. `running` has the rows that are computed."""
        raise NotImplementedError

    def submit(self, rows):
        """Let rows wait for their turn. Raises Refusal if there is no place."""
        with self.changed:
            if self.stopped:
                raise Refusal('the server is stopping', status=503)
            if len(self.waiting) + len(rows) > self.max_waiting:
                raise Refusal('too many requests are waiting; try again later', status=503)
            for row in rows:
                row.since = time.time()
            self.waiting += rows
            self.changed.notify_all()

    def withdraw(self, rows):
        """Forget rows that nobody waits for any more."""
        with self.changed:
            for row in rows:
                row.ended = True
            self.waiting = [row for row in self.waiting if not row.ended]
            self.changed.notify_all()

    def stop(self, seconds, message):
        """Take no more rows. Those that wait fail at once, those that run after some seconds, with a message."""
        with self.changed:
            self.stopped, waiting, self.waiting = True, self.waiting, []
            for row in waiting:
                row.fail(message)
            self.changed.wait_for(lambda: not self.running, seconds)
            for row in self.rows_running():
                row.fail(message)

    def rows_running(self):
        """The rows that are computed and have not ended."""
        with self.changed:
            return [row for rows in self.running.values() for row in rows if not row.ended]

    @contextlib.contextmanager
    def report_failure(self, rows):
        """Report an error of a block to the clients of its rows, and to the log."""
        message = 'the model has failed; the log of the server says why'
        try:
            with session.out_of_memory('send shorter or fewer texts, or start the server with a lower --batch_size'):
                yield
            return
        except ValueError as error:
            message = str(error)
            report(message)
        except Exception:
            report(*traceback.format_exc().splitlines())
        with self.changed:
            for row in rows:
                if not row.ended:
                    row.fail(message)


def padded(sequences, dtype):
    """Sequences of numbers as one array [B, T], with zeros after the shorter ones."""
    found_BT = np.zeros([len(sequences), max(map(len, sequences))], dtype)
    for row, sequence in zip(found_BT, sequences):
        row[:len(sequence)] = sequence
    return found_BT
