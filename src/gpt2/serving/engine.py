"""Continues the texts of many clients at the same time: those that wait are computed together, in batches.

A batch is one run of sample.py's loop. After each token it calls Engine.watch, which hands out the tokens, says which
rows have ended, and waits there until the other batches had their turns, so that each gets an equal share of the time.
"""
import collections
import functools
import threading
import time
import traceback

import numpy as np

from gpt2 import checkpoint, session
from gpt2.evaluation import scorer
from gpt2.fast import lite, matmul, numpy_loop
from gpt2.serving.completions import MAX_LOGPROBS, Refusal
import sample
from gpt2.system.progress import report
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


class Engine(object):
    """A model that continues rows, texts of clients, each as soon as there is room for it.

    hparams: the model's.  max_rows: computed at the same time.  max_waiting: rows that may wait.
    Raises as checkpoint.restore does.

    A row, such as completions.Choice, has these attributes and methods, which are called in the engine's threads:
    prompt: list of token ids.  max_tokens: at most so many new ones, may be 0.  draws: float64 [max_tokens].
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
        self.changed, self.turns, self.n_batches = threading.Condition(), Turns(), 0
        with tf.Graph().as_default():
            self.build(model_name, models_dir, precision)
        threading.Thread(target=self.start_batches, daemon=True).start()

    def build(self, model_name, models_dir, precision):
        """Load the weights, and build the graph that samples with them, unless LiteRT does, and the one that scores."""
        config = session.session_config(sampling=True)
        # A batch that waits for its turn occupies a thread, and sessions would share those of the first one.
        config.inter_op_parallelism_threads += MAX_BATCHES
        config.use_per_session_threads = True
        sess, network = session.new_session(sampling=True, config=config), None
        if lite.is_for(precision, self.hparams):
            network = checkpoint.load_network(self.hparams, model_name, models_dir, precision)
            self.decode = functools.partial(self.decode_in_litert, network)
        else:
            self.decode = self.decoder_in_tensorflow(sess)
            checkpoint.restore(sess, model_name, models_dir)
        self.predict = scorer.predictor(sess, self.hparams, MAX_LOGPROBS, network)

    def decoder_in_tensorflow(self, sess):
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

    def decode_in_litert(self, network, number, rows):
        """As decoder_in_tensorflow."""
        length_B = np.array([len(row.prompt) for row in rows])

        def choose(logits_AV, n_seen, row_A, given_A, ended_A):
            token_A, n_drawn_A = given_A.copy(), n_seen - length_B[row_A]
            for i, row in enumerate(rows[place] for place in row_A):
                if n_drawn_A[i] >= 0 and not row.ended:
                    token_A[i] = numpy_loop.next_token(
                        logits_AV[i], row.draws[n_drawn_A[i]], row.temperature, row.top_k, row.top_p)
            n_top = MAX_LOGPROBS if any(row.wants_top for row in rows) else 0
            return token_A, self.watch(number, row_A, n_drawn_A, token_A,
                                       *numpy_loop.log_probabilities(logits_AV, token_A, n_top))

        numpy_loop.decode(network, padded([row.prompt for row in rows], np.int32), length_B,
                          max(row.max_tokens for row in rows), sample.NO_TOKEN, choose)

    # Which rows are computed, and when

    def submit(self, rows):
        """Let rows wait for their turn. Raises Refusal if there is no place."""
        with self.changed:
            if self.stopped or len(self.waiting) + len(rows) > self.max_waiting:
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
        """The rows of all batches that have not ended."""
        with self.changed:
            return [row for rows in self.running.values() for row in rows if not row.ended]

    def start_batches(self):
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
        message = 'the model has failed; the log of the server says why'
        try:
            with session.out_of_memory('send shorter or fewer texts, or start the server with a lower --batch_size'):
                predictions = self.score([row for row in rows if row.is_scored and len(row.prompt) > 1])
                for row in rows:
                    row.begin(predictions.get(row))
                self.sample(number, [row for row in rows if row.max_tokens and not row.ended])
        except ValueError as error:
            message = str(error)
            report(message)
        except Exception:  # of any kind: the clients wait for an answer
            report(*traceback.format_exc().splitlines())
        with self.changed:
            del self.running[number]
            self.turns.give(number)
            for row in rows:
                if not row.ended:
                    row.fail(message)
            self.changed.notify_all()

    def score(self, rows):
        """{row: Predictions of its prompt from the second token on, with the MAX_LOGPROBS most likely tokens}."""
        if not rows:
            return {}
        found = self.predict(padded([row.prompt for row in rows], np.int32))
        return {row: type(found)(*[x[i, :len(row.prompt) - 1] for x in found]) for i, row in enumerate(rows)}

    def sample(self, number, rows):
        """Continue rows, whose tokens go to watch()."""
        if not rows:
            return
        self.running[number] = rows
        self.decode(number, rows)

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


def padded(sequences, dtype):
    """Sequences of numbers as one array [B, T], with zeros after the shorter ones."""
    found_BT = np.zeros([len(sequences), max(map(len, sequences))], dtype)
    for row, sequence in zip(found_BT, sequences):
        row[:len(sequence)] = sequence
    return found_BT
