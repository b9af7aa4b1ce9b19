"""A model that continues prompts: what both scripts, datasets and Python users start from.

    from gpt2.sampler import load
    gpt2 = load('117M')
    for text in gpt2.sample(['The best thing about graphs is'], length=40, top_k=40):
        print(text)
"""
import functools
import itertools
import math
import sys
import threading

import numpy as np

import encoder
from gpt2 import checkpoint, session
from gpt2.fast import lite, matmul, numpy_loop, xla
from gpt2.system import process
from gpt2.system.tf1 import tf
import sample

MIN_STEPS_TO_COMPILE = 2000  # compiling the loop takes as long as it saves a GPU in 2,000 steps, for models of any size


def load(model_name='117M', models_dir='models', precision='float32'):
    """The Sampler of a model. Its graph is built when it first samples. Raises as Sampler does."""
    return Sampler(model_name, models_dir, precision)


class Sampler(object):
    """A model in a graph and a session of its own, which end with a `with` block or with the object.

    Several can be used at the same time, and one from several threads.
    encoder: its Encoder.  hparams: its HParams.
    Raises FileNotFoundError or ValueError for a model that is missing or damaged, and ValueError for another
    precision than float32 and int8.
    """

    def __init__(self, model_name='117M', models_dir='models', precision='float32'):
        session.check_precision(precision)
        checkpoint.model_dir(model_name, models_dir)
        self.model_name, self.models_dir, self.precision = model_name, models_dir, precision
        self.encoder = encoder.get_encoder(model_name, models_dir)
        self.hparams = checkpoint.load_hparams(model_name, models_dir)
        self.graph, self.sess, self.functions, self.lock = None, None, {}, threading.Lock()
        self.network = None  # where LiteRT samples

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.network:
            self.functions.clear()
            self.network = None
        if kind is None and self.sess:  # after an error, TensorFlow 1.12 would wait for a step that is still running
            self.sess.close()

    def sample(self, prompts=('',), *, nsamples=1, length=None, temperature=1, top_k=0, top_p=1, stop_at_end=False,
               seed=None, batch_size=8):
        """Yield nsamples continuations of each prompt, without the prompt; of an empty prompt, unconditional samples.

        length: maximum number of tokens; None is as many as fit after the longest prompt.
        stop_at_end: whether a sample ends at the end-of-text token.
        seed: the same seed and prompts give the same samples at any batch_size; None picks a new seed.
        batch_size: number of samples computed at once.
        temperature, top_k, top_p: as sample.sample_sequence takes them.
        Raises ValueError for values that are out of range, and for prompts that leave no room for length tokens.
        """
        check_seed(seed)
        end_of_text = self.encoder.end_of_text
        rows = [self.encoder.encode(prompt) or [end_of_text] for prompt in prompts for _ in range(nsamples)]
        if not rows or isinstance(prompts, str):
            raise ValueError('prompts is %.60r, nsamples %d; give a list of texts, and 1 or more' % (prompts, nsamples))
        widths = sorted({len(row) for row in rows})
        max_length = self.hparams.n_ctx + 1 - widths[-1]  # the last token is never fed back
        if max_length < 1:
            raise ValueError('the longest prompt has %d tokens; the context of the model has room for %d'
                             % (widths[-1], self.hparams.n_ctx))
        length = max_length if length is None else length
        if not 1 <= length <= max_length:
            raise ValueError('length is %d; after the longest prompt, %d tokens, it must be 1 to %d'
                             % (length, widths[-1], max_length))
        continue_batch = self.build(
            rows_of(len(rows), batch_size), length=length, width=1 if widths == [1] else None, ragged=len(widths) > 1,
            temperature=temperature, top_k=top_k, top_p=top_p, end_token=end_of_text if stop_at_end else None,
            compiled=len(widths) == 1 and is_worth_compiling(len(rows), batch_size, length))
        return (self.encoder.decode(tokens)
                for numbers in batches(len(rows), batch_size)
                for tokens in continue_batch([rows[number] for number in numbers], random_draws(seed, numbers, length)))

    def build(self, n_rows, *, length, width=None, ragged=False, watch=None, **options):
        """A function continue_batch(prompts, draws) that samples length tokens after each of n_rows prompts.

        n_rows: None if it differs.  width: the number of tokens of every prompt, None if it differs.  ragged: whether
        it differs within a batch.  watch, options: as sample.sample_sequence takes them; `compiled` is for a GPU.
        The function takes lists of token ids, and draws as sample_sequence does. It returns for each prompt the list of
        new ids, length of them, or fewer where options' end_token was drawn, which is left out.
        Raises ValueError as sample_sequence does, and if memory is short.
        """
        key = (n_rows, length, width, ragged, watch) + tuple(sorted(options.items()))
        with self.lock:
            if key in self.functions:
                return self.functions[key]
            if lite.is_for(self.precision, self.hparams):
                run = self.in_litert(length, width, watch, **options)
            else:
                run = self.in_tensorflow(n_rows, length, width, ragged, watch, **options)

            def continue_batch(prompts, draws):
                widths = [len(prompt) for prompt in prompts]
                context = [prompt + [0] * (max(widths) - len(prompt)) for prompt in prompts]
                with out_of_memory(len(prompts), length):
                    rows = process.wait_for(run, context, widths, draws).tolist()
                return [up_to_end(row[n:n + length], options.get('end_token')) for row, n in zip(rows, widths)]

            self.functions[key] = continue_batch
            return continue_batch

    def in_tensorflow(self, n_rows, length, width, ragged, watch, **options):
        """A function of prompts int32 [B, C], their lengths [B], and draws that returns as sample_sequence does."""
        self.graph = self.graph or tf.Graph()
        with self.graph.as_default():
            context = tf.placeholder(tf.int32, [n_rows, width])
            lengths = tf.placeholder(tf.int32, [n_rows]) if ragged else None
            draws = tf.placeholder(tf.float64, [n_rows, None])
            output = sample.sample_sequence(hparams=self.hparams, length=length, context=context, draws=draws,
                                            context_lengths=lengths, watch=watch, **options)
            if self.sess is None:
                sess = session.new_session(sampling=True)
                checkpoint.restore(sess, self.model_name, self.models_dir)
                self.sess = sess

        def run(prompts, widths, batch_draws):
            fed = {context: prompts, draws: batch_draws}
            if ragged:
                fed[lengths] = widths
            return self.sess.run(output, fed)

        return run

    def in_litert(self, length, width, watch, compiled=False, **options):
        """As in_tensorflow."""
        run = numpy_loop.loop(self.hparams, length, width, watch, **options)
        self.network = self.network or checkpoint.load_network(
            self.hparams, self.model_name, self.models_dir, self.precision)
        return functools.partial(run, self.network)


def out_of_memory(n_rows, length):
    """session.out_of_memory with a remedy for sampling."""
    return session.out_of_memory('reduce batch_size (%d here) or length (%d)' % (n_rows, length))


def up_to_end(tokens, end_token):
    """The tokens before the first end_token, or all if there is none. end_token None is in no text."""
    return list(itertools.takewhile(lambda token: token != end_token, tokens))


# Which samples, in which batches, by which draws

def batches(n, batch_size):
    """Yield the numbers 0 ... n - 1 as ranges of batch_size, the last maybe shorter; n = 0 never ends.

    Raises ValueError for n below 0 or an impossible batch_size.
    """
    if n < 0:
        raise ValueError('nsamples is %d; it must be 1 or more, or 0 for endless samples' % n)
    if not 1 <= batch_size < 2 ** 31:  # TensorFlow counts in int32
        raise ValueError('batch_size is %d; it must be 1 to 2147483647' % batch_size)
    n = n or sys.maxsize
    return (range(first, min(first + batch_size, n)) for first in range(0, n, batch_size))


def rows_of(n, batch_size):
    """How many rows each of batches(n, batch_size) has, None if the last has fewer. A graph that knows it is faster.

    Raises ValueError as batches does.
    """
    batches(n, batch_size)
    if 0 < n < batch_size:
        return n
    return batch_size if n % batch_size == 0 else None


def is_worth_compiling(n, batch_size, length):
    """Whether compiling the loop saves time for batches(n, batch_size) of length tokens: on a GPU, for many steps."""
    n_steps = length * -(-n // batch_size) if n else math.inf
    is_long, is_even = n_steps >= MIN_STEPS_TO_COMPILE, rows_of(n, batch_size) is not None
    return is_long and is_even and matmul.on_gpu() and xla.is_usable()


def random_draws(seed, sample_numbers, length):
    """The draws that sample_sequence takes: float64 [B, length] in [0, 1).

    A row depends on seed and its sample's number alone, which may also be an array of numbers below 2^32.
    seed None: different numbers each time.
    Raises ValueError for a seed outside 0 ... 2^32 - 1, and if memory is short.
    """
    check_seed(seed)
    with out_of_memory(len(sample_numbers), length):
        draws = np.empty([len(sample_numbers), length])
    for row, number in zip(draws, sample_numbers):
        # RandomState, because its numbers are the same in all versions of NumPy.
        row[:] = np.random.RandomState(seed if seed is None else np.append(seed, number)).random_sample(length)
    return draws


def check_seed(seed):
    """Raises ValueError for a seed outside 0 ... 2^32 - 1; None stands for any."""
    if seed is not None and not 0 <= seed < 2 ** 32:
        raise ValueError('seed is %d; it must be 0 to 4294967295' % seed)
