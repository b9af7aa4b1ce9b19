"""Logits to token ids: the filters, the draw, and the loop that feeds each token back. Shapes as in model.py."""
from collections import namedtuple
import itertools
import math
import numbers
import sys

import numpy as np

import cache
import kernels
import model
from tf1 import tf
import xla

REMOVED = -1e10  # the logit of a token that a filter took out
NO_TOKEN = -1  # follows the end of a row when there is no end token
COMPILED_STEPS = 2000  # compiling the loop takes as long as a GPU saves in so many steps, for models of any size


def top_k_logits(logits, k):
    """Keep the k likeliest tokens, and those that tie with the k-th.

    logits: float32 [B, V].  k: number or scalar tensor; 0, or more than V, keeps all.
    Returns float32 [B, V]: kept logits as they were, the rest -1e10.
    Raises ValueError for k below 0.
    Source: Fan et al. 2018 (arXiv:1805.04833), section 5.4.
    """
    check_top_k(k)
    if isinstance(k, numbers.Number):
        if k == 0:
            return logits
        k = min(k, 2 ** 31 - 1)  # what an int32 holds, and more than any vocabulary has
    n_vocab = tf.shape(logits)[-1]
    k = tf.where(tf.equal(k, 0), n_vocab, tf.minimum(tf.cast(k, tf.int32), n_vocab))
    kth_B1 = tf.nn.top_k(logits, k=k).values[:, -1:]
    return keep(logits, logits >= kth_B1)


def top_p_logits(logits, p):
    """Keep the smallest set of tokens whose probabilities sum to at least p, and those that tie with its last.

    logits: float32 [B, V].  p: number in (0, 1]; 1 keeps all.
    Returns float32 [B, V]: kept logits as they were, the rest -1e10.
    Raises ValueError for p outside (0, 1].
    Source: Holtzman et al. 2019 (arXiv:1904.09751), section 3.1.
    """
    check_top_p(p)
    if isinstance(p, numbers.Number) and p == 1:
        return logits
    sorted_BV = tf.nn.top_k(logits, k=tf.shape(logits)[-1]).values  # tf.sort is not in TensorFlow 1.12
    probability_BV = tf.nn.softmax(tf.cast(sorted_BV, tf.float64))
    mass_before_BV = tf.cumsum(probability_BV, axis=-1, exclusive=True)
    n_kept_B = count(mass_before_BV < as_float64(p))
    last_B = tf.maximum(n_kept_B - 1, 0)  # the processor may take the smallest p for 0
    last_kept_B = tf.gather_nd(sorted_BV, tf.stack([tf.range(tf.shape(logits)[0]), last_B], axis=-1))
    return keep(logits, logits >= last_kept_B[:, None])


def as_float64(x):
    """A tensor of x. A Python number would become float32 first, and lose half of its digits."""
    return tf.cast(x, tf.float64) if isinstance(x, tf.Tensor) else tf.constant(np.asarray(x, np.float64))


def keep(logits, kept):
    """Logits where kept is true, REMOVED elsewhere."""
    return tf.where(kept, logits, REMOVED * tf.ones_like(logits))


def pick(logits_BV, draw_B):
    """The token of each row at which the cumulated probability first exceeds its draw: int32 [B].

    draw_B: float64 in [0, 1). An evenly spread draw picks tokens by their softmax.
    """
    # In float32 the sum over 50,257 tokens would lose the unlikely ones: 1e-8 vanishes beside 0.9. In float64 XLA, which adds
    # in another order, draws a token that was removed once in 1e15 times.
    unscaled_BV = tf.exp(tf.cast(logits_BV - tf.reduce_max(logits_BV, axis=-1, keepdims=True), tf.float64))
    cumulated_BV = tf.cumsum(unscaled_BV, axis=-1)
    target_B1 = draw_B[:, None] * cumulated_BV[:, -1:]
    return count(cumulated_BV <= target_B1)


def count(x_BV):
    """How many of each row are true: int32 [B]. Counted in float32, since with a GPU, too, int32 is added up on the CPU."""
    return tf.cast(tf.reduce_sum(tf.cast(x_BV, tf.float32), axis=-1), tf.int32)


def shortlist(logits_BV, k, scale):
    """At least the tokens that top_k_logits would keep: scaled logits, float32 [B, N], and ids, int32 [B, N], ascending.

    scale: function of logits that keeps their order. Logits that differ may tie once they are scaled.
    """
    n_vocab = logits_BV.shape.as_list()[-1]
    likeliest_BN, ids_BN = kernels.likeliest(logits_BV, k + 1)
    scaled_BN = scale(likeliest_BN)
    tied = tf.reduce_any(tf.equal(scaled_BN[:, k - 1], scaled_BN[:, k]))

    def everything():
        return scale(logits_BV), tf.tile(tf.range(n_vocab)[None, :], [tf.shape(logits_BV)[0], 1])

    def those():
        by_id = tf.nn.top_k(-ids_BN, k=k + 1)
        return tf.batch_gather(scaled_BN, by_id.indices), -by_id.values

    return tf.cond(tied, everything, those)


def next_tokens(logits_BV, draw_B, *, temperature, top_k, top_p, from_list=True):
    """One token for each row: int32 [B]. Temperature first, then top_k, then top_p; temperature 0 is the arg-max.

    from_list: whether few tokens are drawn from a list of them. A GPU is done with all before the CPU has put it together.
    """
    if isinstance(temperature, numbers.Number) and temperature == 0:
        return tf.argmax(logits_BV, axis=-1, output_type=tf.int32)
    greatest_B1 = tf.reduce_max(logits_BV, axis=-1, keepdims=True)
    # From the maximum down, a temperature however low gives -inf at the most, and never NaN.
    divisor = tf.maximum(tf.cast(as_float64(temperature), tf.float32), 1e-30)

    def scale(logits):
        return (logits - greatest_B1) / divisor

    def choose(logits_BN):
        return pick(top_p_logits(top_k_logits(logits_BN, top_k), top_p), draw_B)

    are_few = isinstance(top_k, numbers.Integral) and 0 < top_k < logits_BV.shape.as_list()[-1]
    if not from_list or not are_few:
        return choose(scale(logits_BV))
    logits_BN, ids_BN = shortlist(logits_BV, top_k, scale)
    place_B = choose(logits_BN)
    return tf.gather_nd(ids_BN, tf.stack([tf.range(tf.shape(place_B)[0]), place_B], axis=-1))


# What the decoding loop carries from one token to the next. A stands for the rows that it still works on: rows that have
# ended leave when the cache is copied anyway.
# row_A: the rows' numbers
# fed_AT: the tokens that the network reads next: the prompts first, then one token a row
# cache: keys and values so far
# ended_A: whether a row has drawn the end token or has all its tokens
# tokens_BS: all texts so far
State = namedtuple('State', 'row_A fed_AT cache ended_A tokens_BS')


def settled(hparams, state, all_stay):
    """The State with its cache settled. Rows that have ended leave, unless all_stay, which saves gathering the others."""
    if all_stay:
        return state._replace(cache=state.cache.settle(hparams.n_head))
    place_A = tf.cast(tf.where(tf.logical_not(state.ended_A))[:, 0], tf.int32)
    row_A, fed_AT, ended_A = [tf.gather(x, place_A) for x in (state.row_A, state.fed_AT, state.ended_A)]
    return State(row_A, fed_AT, state.cache.settle(hparams.n_head, place_A), ended_A, state.tokens_BS)


def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None, temperature=1, top_k=0, top_p=1,
                    end_token=None, context_lengths=None, draws=None, watch=None, compiled=False):
    """Continue each prompt by length tokens.

    context: int32 [B, C], the prompts; or start_token and batch_size: each prompt is that one token.
    context_lengths: int32 [B], 1 to C, for prompts of different lengths, left-aligned in context. Row i goes on from column
        context_lengths[i]; what stands there in context is ignored.
    temperature: number over 0, or a Python 0 for the likeliest token each time.  top_k, top_p: as the filters take them.
    end_token: a row ends where it is drawn, and is filled with it; when all rows have ended the loop stops, so fewer
        columns may come back. Without one, -1 follows where a shorter prompt has had its length tokens.
    draws: float [B, length] in [0, 1), the only randomness: row i picks its j-th token with draws[i, j]. None: drawn in the
        graph.
    watch: function called with each new column of tokens at once, a NumPy int32 [B].
    compiled: whether XLA makes one program of the loop, in the first run, which takes seconds; see pays_to_compile. It needs
        TensorFlow 2.x, a known number of prompts, a top_k that is a number and float32, and has no watch. Where the graph does
        not know the width of context, the program is made for prompts up to n_ctx, and each step takes as long as the last.
    Returns int32 [B, C + length]: prompts and continuations. If all prompts are shorter than C, as wide as the longest needs.
    Raises ValueError for options that contradict each other or exceed n_ctx. What only a run can tell, such as the width of a
        placeholder, raises InvalidArgumentError there.
    """
    hparams.check()
    check_options(length, temperature, top_k, top_p)
    context_BC = check_context(hparams, length, context, start_token, batch_size)
    if length == 0:
        return context_BC
    known_batch = context_BC.shape.as_list()[0]
    check_compiled(compiled, known_batch, watch, top_k)
    batch, n_context = model.sizes(context_BC)
    n_total = n_context + length
    length_B = tf.fill([batch], n_context) if context_lengths is None else check_lengths(context_lengths, n_context)
    draws = tf.random_uniform([batch, length], dtype=tf.float64) if draws is None else as_float64(draws)
    if compiled or kernels.on_gpu():
        draws = draws_after_checks(hparams, context_BC, length_B, draws, length)
    filler = NO_TOKEN if end_token is None else end_token

    def choose(logits_AV, n_seen, row_A, given_A, ended_A, from_list):
        """The rows' next tokens, and whether they have ended then."""
        n_drawn_A = n_seen - tf.gather(length_B, row_A)  # below 0 inside a prompt, where the next token is given
        draw_A = tf.gather_nd(draws, tf.stack([row_A, tf.clip_by_value(n_drawn_A, 0, length - 1)], axis=-1))
        drawn_A = next_tokens(logits_AV, draw_A, temperature=temperature, top_k=top_k, top_p=top_p, from_list=from_list)
        token_A = tf.where(n_drawn_A < 0, given_A, tf.where(ended_A, tf.fill(tf.shape(drawn_A), filler), drawn_A))
        ended_A = tf.logical_or(ended_A, n_drawn_A >= length - 1)
        if end_token is not None:
            ended_A = tf.logical_or(ended_A, tf.logical_and(tf.equal(drawn_A, end_token), n_drawn_A >= 0))
        return token_A, ended_A

    prompt_BT = context_BC if context_lengths is None else context_BC[:, :tf.reduce_min(length_B)]
    if compiled:
        return xla.decoding_loop(hparams, prompt_BT, context_BC, n_total, choose)
    multiply = kernels.vocabulary_product(known_batch, length)
    all_stay = known_batch == 1 or end_token is None and context_lengths is None  # they end together

    def unfinished(*state):
        state = State(*state)
        return tf.logical_and(tf.shape(state.tokens_BS)[1] < n_total, tf.logical_not(tf.reduce_all(state.ended_A)))

    def step(*state):
        state = State(*state)
        logits_AV, read = model.decode(hparams, state.fed_AT, state.cache, multiply)
        n_seen = tf.shape(state.tokens_BS)[1]
        given_A = tf.gather(context_BC[:, tf.minimum(n_seen, n_context - 1)], state.row_A)
        token_A, ended_A = choose(logits_AV, n_seen, state.row_A, given_A, state.ended_A, from_list=not kernels.on_gpu())
        token_B = filler + tf.scatter_nd(state.row_A[:, None], token_A - filler, [batch])
        with tf.control_dependencies([] if watch is None else [tf.py_func(watch, [token_B], [])]):
            tokens_BS = tf.concat([state.tokens_BS, token_B[:, None]], axis=1)
        fed_AT = tf.maximum(token_A, 0)[:, None]  # NO_TOKEN has no embedding, and nobody reads what follows it
        state = State(state.row_A, fed_AT, read, ended_A, tokens_BS)
        return tf.cond(read.is_due(), lambda: settled(hparams, state, all_stay), lambda: state)

    start = State(row_A=tf.range(batch), fed_AT=prompt_BT, cache=cache.empty(hparams, batch),
                  ended_A=tf.fill([batch], False), tokens_BS=prompt_BT)
    n_working = known_batch if all_stay else None
    shapes = State(
        row_A=tf.TensorShape([n_working]),
        fed_AT=tf.TensorShape([n_working, 1 if n_context == 1 else None]),
        cache=cache.shapes(hparams, n_working),
        ended_A=tf.TensorShape([n_working]),
        tokens_BS=tf.TensorShape([known_batch, None]))
    end = tf.while_loop(unfinished, step, start, shape_invariants=shapes, back_prop=False)
    return State(*end).tokens_BS


def up_to_end(tokens, end_token):
    """The tokens before the first end_token, or all if there is none. end_token None is in no text."""
    return list(itertools.takewhile(lambda token: token != end_token, tokens))


def batches(n, batch_size):
    """Yield the numbers 0 ... n - 1 as ranges of batch_size, the last maybe shorter; n = 0 never ends.

    Raises ValueError for n below 0 or a batch_size that cannot be.
    """
    if n < 0:
        raise ValueError('nsamples is %d; it must be 1 or more, or 0 for samples without end' % n)
    if not 1 <= batch_size < 2 ** 31:  # TensorFlow counts in int32
        raise ValueError('batch_size is %d; it must be 1 to 2147483647' % batch_size)
    n = n or sys.maxsize
    return (range(first, min(first + batch_size, n)) for first in range(0, n, batch_size))


def rows_of(n, batch_size):
    """How many rows each of batches(n, batch_size) has, or None if the last has fewer. A graph that knows it samples faster."""
    if 0 < n < batch_size:
        return n
    return batch_size if n % batch_size == 0 else None


def pays_to_compile(n, batch_size, length):
    """Whether compiling the loop first pays for batches(n, batch_size) of length tokens: on a GPU, if they are many."""
    n_steps = length * -(-n // batch_size) if n else math.inf
    return n_steps >= COMPILED_STEPS and rows_of(n, batch_size) is not None and kernels.on_gpu() and xla.works()


def random_draws(seed, sample_numbers, length):
    """What sample_sequence takes as draws: float64 [B, length] in [0, 1).

    A row depends on seed and its sample's number alone, which may also be an array of numbers below 2^32.
    seed None: other numbers each time.
    Raises ValueError for a seed outside 0 ... 2^32 - 1.
    """
    check_seed(seed)
    draws = np.empty([len(sample_numbers), length])  # if it does not fit into memory, it fails now, not hours later
    for row, number in zip(draws, sample_numbers):
        # RandomState, because NumPy keeps what it draws the same in all versions.
        row[:] = np.random.RandomState(seed if seed is None else np.append(seed, number)).random_sample(length)
    return draws


def check_seed(seed):
    """Raises ValueError for a seed outside 0 ... 2^32 - 1; None is any."""
    if seed is not None and not 0 <= seed < 2 ** 32:
        raise ValueError('seed is %d; it must be 0 to 4294967295' % seed)


def check_options(length, temperature, top_k, top_p):
    """Raises ValueError for what no sampler can do."""
    if length < 0:
        raise ValueError('length is %r; it must be 0 or more tokens' % length)
    if isinstance(temperature, numbers.Number) and not 0 <= temperature < float('inf'):
        raise ValueError('temperature is %r; it must be over 0, or 0 for the likeliest token each time' % temperature)
    check_top_k(top_k)
    check_top_p(top_p)


def check_compiled(compiled, known_batch, watch, top_k):
    """Raises ValueError if a loop is to be compiled that cannot be."""
    if compiled and not xla.is_known():
        raise ValueError('TensorFlow %s cannot compile the loop; leave out compiled, or take TensorFlow 2.x' % tf.__version__)
    if compiled and known_batch is None:
        raise ValueError('compiled needs a context with a known number of rows, such as a placeholder of [8, None]')
    if compiled and watch is not None:
        raise ValueError('what is compiled cannot be watched; leave out compiled or watch')
    if compiled and isinstance(top_k, tf.Tensor):
        raise ValueError('compiled needs top_k as a number; what is sorted has a fixed size')


def check_top_k(k):
    """Raises ValueError for what is no number of tokens; a tensor passes."""
    if not isinstance(k, tf.Tensor) and (not isinstance(k, numbers.Integral) or k < 0):
        raise ValueError('top_k is %r; it must be a whole number, 1 or more, or 0 to keep every token' % k)


def check_top_p(p):
    """Raises ValueError for what is no probability over 0; a tensor passes."""
    if not isinstance(p, tf.Tensor) and not 0 < p <= 1:
        raise ValueError('top_p is %r; it must be over 0 and at most 1, which keeps every token' % p)


def check_context(hparams, length, context, start_token, batch_size):
    """The prompts that sample_sequence is to continue, int32 [B, C]. Raises as it does."""
    if (start_token is None) == (context is None):
        raise ValueError('give either start_token and batch_size, or context')
    if context is None and batch_size is None:
        raise ValueError('start_token needs batch_size, the number of samples')
    context_BC = tf.fill([batch_size, 1], start_token) if context is None else tf.convert_to_tensor(context, tf.int32)
    if context_BC.shape.ndims != 2:
        raise ValueError('context has the shape %s; it must be [batch, tokens]' % context_BC.shape)
    known_batch = context_BC.shape.as_list()[0]
    if isinstance(batch_size, int) and known_batch not in (None, batch_size):
        raise ValueError('context has %d rows, and batch_size is %d; leave batch_size out' % (known_batch, batch_size))
    n_context = model.size(context_BC, 1)
    most = hparams.n_ctx + 1  # the last token drawn is never fed back
    if not isinstance(n_context, int):
        message = 'prompt + length (%d) is over the context of %d; shorten one of them' % (length, hparams.n_ctx)
        checks = [tf.assert_less_equal(n_context + length, most, message=message),
                  tf.assert_positive(n_context, message='the prompt has no token; start from the end-of-text token')]
        with tf.control_dependencies(checks):
            return tf.identity(context_BC)
    if n_context < 1:
        raise ValueError('the prompt has no token; start from the end-of-text token')
    if n_context + length > most:
        raise ValueError('prompt (%d tokens) + length (%d) is over the context of %d; pass length %d or less'
                         % (n_context, length, hparams.n_ctx, most - n_context))
    return context_BC


def draws_after_checks(hparams, context_BC, length_B, draws, length):
    """draws, of a run in which all rows have lengths and draws, and no token is beyond the vocabulary.

    On a CPU, a place that does not exist is an error where it is read; XLA and a GPU read another one.
    """
    n_rows, n_columns = tf.unstack(tf.shape(context_BC))
    given_BC = tf.where(tf.sequence_mask(length_B, n_columns), context_BC, tf.zeros_like(context_BC))
    checks = [tf.assert_greater_equal(tf.shape(draws), tf.stack([n_rows, length]), message='draws must be [batch, length]'),
              tf.assert_less(given_BC, hparams.n_vocab, message='a token is not in the vocabulary')]
    with tf.control_dependencies(checks):
        return tf.identity(draws)


def check_lengths(context_lengths, n_context):
    """The prompts' lengths, int32 [B]. Raises as sample_sequence does."""
    message = 'context_lengths must be 1 to the width of context'
    known = not isinstance(context_lengths, tf.Tensor) and isinstance(n_context, int)
    if known and not (1 <= np.min(context_lengths) and np.max(context_lengths) <= n_context):
        raise ValueError('%s, %d; they are %s' % (message, n_context, list(context_lengths)))
    length_B = tf.cast(context_lengths, tf.int32)
    with tf.control_dependencies([tf.assert_positive(length_B, message=message),
                                  tf.assert_less_equal(length_B, n_context, message=message)]):
        return tf.identity(length_B)
