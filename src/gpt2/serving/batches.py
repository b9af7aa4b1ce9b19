"""Continues the texts of many clients by TensorFlow: those that wait are computed together, in batches.

A batch is one run of sample.py's loop. After each token it calls BatchEngine.watch, which hands out the tokens, says
which rows have ended, and waits there until the other batches had their turns, so that each gets an equal share of the
time.
"""
import collections
import threading
import time

import numpy as np

from gpt2 import checkpoint, session
from gpt2.evaluation import scorer
from gpt2.fast import matmul
from gpt2.serving.completions import MAX_LOGPROBS
from gpt2.serving.engine import Engine, padded
import sample
from gpt2.system.tf1 import batch_gather, tf

MAX_SHORT = 100  # up to this top_k in all rows, only the most likely tokens are sorted
MAX_BATCHES = 8  # that run at the same time
PROMPT_BATCHES = 2  # that start at once; with more running, a row waits for each of them, so that others can join it
WAIT_SECONDS = 0.5
GATHER_SECONDS = 0.01  # that each row waits for others that come with it, such as those whose batch has just ended
MAX_SPREAD = 64  # tokens by which prompts of a batch may differ: this part of the longer ones is fed token by token


class RowChooser(sample.Chooser):
    """A Chooser that takes temperature, top_k and top_p of each row, tensors [B], and lets a function see each token.

    Temperature 0 is the most likely token if the row's draws are 0.
    """

    def drawn(self, logits_AV, draw_A, row_A):
        temperature_A, top_k_A, top_p_A = [
            tf.gather(x_B, row_A) for x_B in (self.temperature, self.top_k, self.top_p)]
        greatest_A1 = tf.reduce_max(logits_AV, axis=-1, keepdims=True)
        divisor_A1 = tf.maximum(tf.cast(temperature_A, tf.float32), 1e-30)[:, None]
        n_short = min(MAX_SHORT, logits_AV.shape.as_list()[-1] - 1)

        def scale(logits):
            return (logits - greatest_A1) / divisor_A1

        def keep_top_k(logits_AN):
            greatest_AN = tf.nn.top_k(logits_AN, k=tf.reduce_max(top_k_A)).values
            kth_A1 = batch_gather(greatest_AN, tf.maximum(top_k_A - 1, 0)[:, None])
            return sample.keep(logits_AN, logits_AN >= kth_A1)

        def draw(logits_AN):
            is_short_A = tf.logical_and(top_k_A > 0, top_k_A < tf.shape(logits_AN)[-1])
            kept_AN = where_on(is_short_A, keep_top_k, logits_AN)
            kept_AN = where_on(top_p_A < 1, lambda x_AN: sample.top_p_logits(x_AN, top_p_A[:, None]), kept_AN)
            return sample.pick(kept_AN, draw_A)

        all_short = tf.reduce_all(tf.logical_and(top_k_A > 0, top_k_A <= n_short))
        return tf.cond(all_short, lambda: sample.draw_from_shortlist(logits_AV, n_short, scale, draw),
                       lambda: draw(scale(logits_AV)))


def where_on(is_on_A, function, logits_AV):
    """function(logits) in the rows that it is on for. Without any, it is not computed."""
    return tf.cond(tf.reduce_any(is_on_A), lambda: tf.where(is_on_A, function(logits_AV), logits_AV),
                   lambda: logits_AV)


class Watched(object):
    """A chooser whose tokens a function sees, with their log-probabilities in the model's own distribution.

    watch: function(number, row_A, n_drawn_A, token_A, logprob_A, top_ids_AN, top_logprobs_AN) that returns which rows
        have ended, bool [A]. n_drawn_A: the tokens' places after the prompts; below 0 it is the prompt's own.
    number: int32, the batch's.  wants_top: bool, whether to compute log-probabilities; without, N is 0.
    """

    def __init__(self, chooser, watch, number, wants_top):
        self.chooser, self.function, self.number, self.wants_top = chooser, watch, number, wants_top
        self.length, self.filler = chooser.length, chooser.filler

    def choose(self, logits_AV, n_seen, row_A, given_A, ended_A):
        token_A, _ = self.chooser.choose(logits_AV, n_seen, row_A, given_A, ended_A)
        n_top = min(MAX_LOGPROBS, logits_AV.shape.as_list()[-1])

        def top():
            logprob_AV = tf.nn.log_softmax(logits_AV)
            values_AN, ids_AN = matmul.top_k(logprob_AV, n_top)
            return [batch_gather(logprob_AV, tf.maximum(token_A, 0)[:, None])[:, 0], ids_AN, values_AN]

        def nothing():
            n_rows = tf.shape(token_A)[0]
            return [tf.zeros([n_rows]), tf.zeros([n_rows, 0], tf.int32), tf.zeros([n_rows, 0])]

        n_drawn_A = n_seen - tf.gather(self.chooser.length_B, row_A)
        found = [self.number, row_A, n_drawn_A, token_A] + tf.cond(self.wants_top, top, nothing)
        ended_A = tf.py_func(self.function, found, tf.bool)
        ended_A.set_shape(token_A.shape)
        return token_A, ended_A


class Turns(object):
    """A lock that batches get in the order in which they asked for it."""

    def __init__(self):
        # asked: {batch's number: a lock that is free when its turn comes}; the first one has its turn.
        self.lock, self.asked = threading.Lock(), collections.OrderedDict()

    def take(self, number):
        mine = threading.Lock()
        with self.lock:
            if self.asked:
                mine.acquire()
            self.asked[number] = mine
        mine.acquire()

    def give(self, number):
        """Of a batch that does not have the lock, this does nothing."""
        with self.lock:
            if self.asked.pop(number, None) and self.asked:
                next(iter(self.asked.values())).release()


class BatchEngine(Engine):
    """An Engine whose rows are computed in batches, by TensorFlow."""

    def __init__(self, *arguments):
        self.turns, self.n_batches = Turns(), 0
        super(BatchEngine, self).__init__(*arguments)

    def build(self, model_name, models_dir, precision):
        with tf.Graph().as_default():
            config = session.session_config(sampling=True)
            # A batch that waits for its turn occupies a thread, and sessions would share those of the first one.
            config.inter_op_parallelism_threads += MAX_BATCHES
            config.use_per_session_threads = True
            sess = session.new_session(sampling=True, config=config)
            self.decode = self.decoder(sess)
            checkpoint.restore(sess, model_name, models_dir)
            self.predict = scorer.predictor(sess, self.hparams, MAX_LOGPROBS)

    def decoder(self, sess):
        """A function of a batch's number and rows that continues them, whose tokens go to watch()."""
        context_BC, length_B, draws, temperature_B, top_k_B, top_p_B, number, wants_top = fed = [
            tf.placeholder(kind, shape) for kind, shape in (
                (tf.int32, [None, None]), (tf.int32, [None]), (tf.float64, [None, None]), (tf.float64, [None]),
                (tf.int32, [None]), (tf.float64, [None]), (tf.int32, []), (tf.bool, []))]
        chooser = RowChooser(tf.shape(draws)[1], length_B, draws, temperature_B, top_k_B, top_p_B, None, False)
        chooser = Watched(chooser, self.watch, number, wants_top)
        output = sample.growing_loop(self.hparams, context_BC[:, :tf.reduce_min(length_B)], context_BC, chooser,
                                     end_together=False, watch=None)
        run = sess.make_callable(output.op, fed)

        def decode(number, rows):
            draws = padded([row.draws if row.temperature else 0 * row.draws for row in rows], np.float64)
            of_rows = [[getattr(row, name) for row in rows] for name in ('temperature', 'top_k', 'top_p')]
            run(padded([row.prompt for row in rows], np.int32), [len(row.prompt) for row in rows], draws, *of_rows,
                number, any(row.wants_top for row in rows))

        return decode

    # Which rows are computed, and when

    def score(self, rows):
        """{row: Predictions of its prompt from its second token on} of those rows that want them and have any."""
        rows = [row for row in rows if row.is_scored and len(row.prompt) > 1]
        if not rows:
            return {}
        found = self.predict(padded([row.prompt for row in rows], np.int32))
        return {row: type(found)(*[x[i, :len(row.prompt) - 1] for x in found]) for i, row in enumerate(rows)}

    def work(self):
        """Start a batch whenever there are rows for it."""
        while True:
            with self.changed:
                rows = self.next_rows()
                if not rows:
                    self.changed.wait(GATHER_SECONDS if self.waiting else None)
                    continue
                self.waiting = [row for row in self.waiting if row not in rows]
                self.n_batches += 1
                self.running[self.n_batches] = rows
                arguments = [self.n_batches, rows]
            threading.Thread(target=self.run, args=arguments, daemon=True).start()

    def next_rows(self):
        """The rows of a batch that is to start now: the first that waits, and others with prompts of like length."""
        n_free = self.max_rows - len(self.rows_running())
        if not self.waiting or n_free < 1 or len(self.running) >= MAX_BATCHES:
            return []
        first = self.waiting[0]
        wait_seconds = WAIT_SECONDS * len(self.running) if len(self.running) >= PROMPT_BATCHES else GATHER_SECONDS
        if time.time() - first.since < wait_seconds:
            return []
        return [row for row in self.waiting if is_worth_joining(row, first)][:n_free]

    # A batch

    def run(self, number, rows):
        """Compute a batch from its beginning to its end, whatever happens."""
        with self.report_failure(rows):
            predictions = self.score(rows)
            for row in rows:
                row.begin(predictions.get(row))
            unended = [row for row in rows if not row.ended]
            if unended:
                self.running[number] = unended
                self.decode(number, unended)
        with self.changed:
            del self.running[number]
            self.turns.give(number)
            self.changed.notify_all()

    def watch(self, number, row_A, n_drawn_A, token_A, logprob_A, top_ids_AN, top_logprobs_AN):
        """Hand out the new tokens of a batch, and wait for its next turn. Returns which rows have ended."""
        number = int(number)
        self.turns.give(number)
        rows = [self.running[number][i] for i in row_A.tolist()]
        for row, n_drawn, *found in zip(rows, n_drawn_A.tolist(), token_A.tolist(), logprob_A.tolist(),
                                        top_ids_AN.tolist(), top_logprobs_AN.tolist()):
            if n_drawn >= 0 and not row.ended:
                row.take(*found)
        ended_A = np.array([row.ended for row in rows])
        if not ended_A.all():
            self.turns.take(number)
        return ended_A


def is_worth_joining(*rows):
    """Whether to compute two rows together. While the longer prompt is fed token by token, the other row grows."""
    shorter, longer = sorted(rows, key=lambda row: len(row.prompt))
    return len(longer.prompt) - len(shorter.prompt) <= min(MAX_SPREAD, shorter.max_tokens)
