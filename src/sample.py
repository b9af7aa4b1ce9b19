"""Logits to token ids: the filters, the draw, and the loops that feed each token back. Shapes as in model.py."""
from collections import namedtuple
import numbers

import numpy as np

from gpt2.fast import cache, matmul, xla
import model
from gpt2.system.tf1 import batch_gather, is_tensor, size, sizes, tf

REMOVED = -1e10  # the logit of a token that a filter took out
EMPTY = 'the prompt is empty; start from the end-of-text token'
NO_TOKEN = -1  # follows the end of a row when there is no end token


def top_k_logits(logits, k):
    """Keep the k most likely tokens, and those that tie with the k-th.

    logits: float32 [B, V].  k: number or scalar tensor; 0, or more than V, keeps all.
    Returns float32 [B, V]: kept logits as they were, the rest -1e10.
    Raises ValueError for k below 0.
    Source: Fan et al. 2018 (arXiv:1805.04833), section 5.4.
    """
    check_top_k(k)
    if isinstance(k, numbers.Number):
        if k == 0:
            return logits
        k = min(k, 2 ** 31 - 1)  # fits into an int32, and is more than any vocabulary has
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
    last_kept_B1 = batch_gather(sorted_BV, last_B[:, None])
    return keep(logits, logits >= last_kept_B1)


def as_float64(x):
    """x as a float64 tensor. TensorFlow would make a Python number float32 first, which loses half of its digits."""
    return tf.cast(x, tf.float64) if is_tensor(x) else tf.constant(np.asarray(x, np.float64))


def keep(logits, kept):
    """Logits where kept is true, REMOVED elsewhere."""
    return tf.where(kept, logits, REMOVED * tf.ones_like(logits))


def pick(logits_BV, draw_B):
    """The token of each row at which the cumulative probability first exceeds its draw: int32 [B].

    draw_B: float64 in [0, 1). An evenly spread draw picks tokens by their softmax.
    """
    # In float32 the sum over 50,257 tokens would lose the unlikely ones: 1e-8 vanishes beside 0.9. Even in float64
    # XLA, which adds in another order, draws a removed token once in 1e15 times.
    unscaled_BV = tf.exp(tf.cast(logits_BV - tf.reduce_max(logits_BV, axis=-1, keepdims=True), tf.float64))
    cumulative_BV = tf.cumsum(unscaled_BV, axis=-1)
    target_B1 = draw_B[:, None] * cumulative_BV[:, -1:]
    return count(cumulative_BV <= target_B1)


def count(x_BV):
    """The number of true elements in each row: int32 [B]."""
    # Added up in float32, because TensorFlow would add up int32 on the CPU even if there is a GPU.
    return tf.cast(tf.reduce_sum(tf.cast(x_BV, tf.float32), axis=-1), tf.int32)


def next_tokens(logits_BV, draw_B, *, temperature, top_k, top_p, from_shortlist=True):
    """One token for each row: int32 [B]. Temperature first, then top_k, then top_p; temperature 0 is the arg-max.

    from_shortlist: whether to find the k most likely tokens first, which is faster on a CPU and gives the same token.
    """
    if isinstance(temperature, numbers.Number) and temperature == 0:
        return tf.argmax(logits_BV, axis=-1, output_type=tf.int32)
    greatest_B1 = tf.reduce_max(logits_BV, axis=-1, keepdims=True)
    # From the maximum down, a temperature however low gives -inf at the most, and never NaN.
    divisor = tf.maximum(tf.cast(as_float64(temperature), tf.float32), 1e-30)

    def scale(logits):
        return (logits - greatest_B1) / divisor

    def draw(logits_BN):
        return pick(top_p_logits(top_k_logits(logits_BN, top_k), top_p), draw_B)

    is_short = isinstance(top_k, numbers.Integral) and 0 < top_k < logits_BV.shape.as_list()[-1]
    if not (from_shortlist and is_short):
        return draw(scale(logits_BV))
    return draw_from_shortlist(logits_BV, top_k, scale, draw)


def draw_from_shortlist(logits_BV, k, scale, draw):
    """draw(scale(logits)) that looks at no more than the k + 1 most likely tokens if it can: int32 [B].

    draw: function from logits [B, N] to places [B] in them; it takes none but the k greatest, and those that tie.
    scale: function of logits that keeps their order. Different logits may tie once they are scaled.
    """
    greatest_BN, ids_BN = matmul.top_k(logits_BV, k + 1)
    scaled_BN = scale(greatest_BN)
    tied = tf.reduce_any(tf.equal(scaled_BN[:, k - 1], scaled_BN[:, k]))

    def those():
        by_id = tf.nn.top_k(-ids_BN, k=k + 1)
        place_B = draw(batch_gather(scaled_BN, by_id.indices))
        return -batch_gather(by_id.values, place_B[:, None])[:, 0]

    return tf.cond(tied, lambda: draw(scale(logits_BV)), those)


class Chooser(namedtuple('Chooser', 'length length_B draws temperature top_k top_p end_token from_shortlist')):
    """What decides each row's next token, and whether the row has ended then.

    length: how many tokens each row gets.  length_B: int32, the lengths of the prompts.  draws: float64 [B, length].
    from_shortlist: as next_tokens takes it.  The others: as sample_sequence takes them.
    """

    @property
    def filler(self):
        """The token that follows the end of a row."""
        return NO_TOKEN if self.end_token is None else self.end_token

    def choose(self, logits_AV, n_seen, row_A, given_A, ended_A):
        """(tokens int32 [A], whether the rows have ended bool [A]) for some of the rows.

        n_seen: how many tokens of each text are known.  row_A: the rows' numbers.
        given_A: the prompts' tokens at this place.  ended_A: whether the rows have ended before.
        """
        n_drawn_A = n_seen - tf.gather(self.length_B, row_A)  # below 0 inside a prompt, where the next token is given
        place_A = tf.clip_by_value(n_drawn_A, 0, self.length - 1)
        drawn_A = self.drawn(logits_AV, tf.gather_nd(self.draws, tf.stack([row_A, place_A], axis=-1)), row_A)
        token_A = tf.where(n_drawn_A < 0, given_A, tf.where(ended_A, tf.fill(tf.shape(drawn_A), self.filler), drawn_A))
        ended_A = tf.logical_or(ended_A, n_drawn_A >= self.length - 1)
        if self.end_token is not None:
            ended_A = tf.logical_or(ended_A, tf.logical_and(tf.equal(drawn_A, self.end_token), n_drawn_A >= 0))
        return token_A, ended_A

    def drawn(self, logits_AV, draw_A, row_A):
        """The tokens that draws of some rows give: int32 [A]."""
        return next_tokens(logits_AV, draw_A, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
                           from_shortlist=self.from_shortlist)


def sample_sequence(*, hparams, length, start_token=None, batch_size=None, context=None, temperature=1, top_k=0,
                    top_p=1, end_token=None, context_lengths=None, draws=None, watch=None, compiled=False):
    """Continue each prompt by length tokens.

    context: int32 [B, C], the prompts; or start_token and batch_size: each prompt is that one token.
    context_lengths: int32 [B], 1 to C, for prompts of different lengths, left-aligned in context. Row i continues
        from column context_lengths[i]; the rest of its row of context is ignored.
    temperature: number over 0, or a Python 0 for the most likely token each time.
    top_k, top_p: as the filters take them.
    end_token: a row ends where it is drawn, and is filled with it; when all rows have ended the loop stops, so fewer
        columns may come back. Without one, -1 follows where a shorter prompt has had its length tokens.
    draws: float [B, length] in [0, 1), the only randomness: row i picks its j-th token with draws[i, j]. None: drawn
        in the graph.
    watch: function called with each new column of tokens at once, a NumPy int32 [B].
    compiled: whether XLA compiles the loop, in the first run, which takes seconds. Needs TensorFlow 2.x, a known
        number of prompts, a top_k that is a number, float32, and no watch. Where the graph does not know the width of
        context, the loop is compiled for prompts up to n_ctx, and each step takes as long as the last.
    Returns int32 [B, C + length]: prompts and continuations; narrower if all prompts are shorter than C.
    Raises ValueError for options that contradict each other or exceed n_ctx; a run raises InvalidArgumentError for what
        is only known then, such as the width of a placeholder.
    """
    hparams.check()
    check_options(length, temperature, top_k, top_p)
    context_BC = checked_context(hparams, length, context, start_token, batch_size)
    if length == 0:
        return context_BC
    check_compiled(compiled, context_BC, watch, top_k)
    batch, n_context = sizes(context_BC)
    length_B = tf.fill([batch], n_context) if context_lengths is None else checked_lengths(context_lengths, n_context)
    draws = tf.random_uniform([batch, length], dtype=tf.float64) if draws is None else as_float64(draws)
    if compiled or matmul.on_gpu():
        draws = checked_draws(hparams, context_BC, length_B, draws, length)
    chooser = Chooser(length, length_B, draws, temperature, top_k, top_p, end_token,
                      from_shortlist=not (compiled or matmul.on_gpu()))
    prompt_BT = context_BC if context_lengths is None else context_BC[:, :tf.reduce_min(length_B)]
    if compiled:
        return compiled_loop(hparams, prompt_BT, context_BC, chooser)
    end_together = end_token is None and context_lengths is None
    return growing_loop(hparams, prompt_BT, context_BC, chooser, end_together, watch)


# What growing_loop carries from one token to the next. A are the rows that have not ended; those that have are
# removed when the cache is copied anyway.
# row_A: the rows' numbers
# fed_AT: the next tokens to feed: the prompts first, then one token a row
# cache: keys and values so far
# ended_A: whether a row has drawn the end token or has all its tokens
# tokens_BS: all texts so far
State = namedtuple('State', 'row_A fed_AT cache ended_A tokens_BS')


def growing_loop(hparams, prompt_BT, context_BC, chooser, end_together, watch):
    """The decoding loop as TensorFlow runs it, with a cache that grows: int32 [B, up to C + length].

    prompt_BT: int32, the beginning that all prompts have.  context_BC: int32, the prompts.
    end_together: whether all rows have equally many tokens.  watch: as sample_sequence takes it.
    """
    known_batch = context_BC.shape.as_list()[0]
    batch, n_context = sizes(context_BC)
    n_total = n_context + chooser.length
    weights = matmul.sampling_weights()
    all_stay = known_batch == 1 or end_together

    def unfinished(*state):
        state = State(*state)
        return tf.logical_and(tf.shape(state.tokens_BS)[1] < n_total, tf.logical_not(tf.reduce_all(state.ended_A)))

    def step(*state):
        state = State(*state)
        past = state.cache.past(hparams, state.fed_AT)
        with tf.variable_scope('model', reuse=tf.AUTO_REUSE, custom_getter=weights):
            logits_AV = model.unembed(hparams, model.decoder(hparams, state.fed_AT, past)[-1])
        n_seen = tf.shape(state.tokens_BS)[1]
        given_A = tf.gather(context_BC[:, tf.minimum(n_seen, n_context - 1)], state.row_A)
        token_A, ended_A = chooser.choose(logits_AV, n_seen, state.row_A, given_A, state.ended_A)
        token_B = chooser.filler + tf.scatter_nd(state.row_A[:, None], token_A - chooser.filler, [batch])
        with tf.control_dependencies([] if watch is None else [tf.py_func(watch, [token_B], [])]):
            tokens_BS = tf.concat([state.tokens_BS, token_B[:, None]], axis=1)
        fed_AT = tf.maximum(token_A, 0)[:, None]  # NO_TOKEN has no embedding, and what follows it is ignored
        state = State(state.row_A, fed_AT, state.cache.add(past.new), ended_A, tokens_BS)
        return tf.cond(state.cache.is_due(), lambda: settled(hparams, state, all_stay), lambda: state)

    start = State(row_A=tf.range(batch), fed_AT=prompt_BT, cache=cache.empty(hparams, batch),
                  ended_A=tf.fill([batch], False), tokens_BS=prompt_BT)
    n_rows = known_batch if all_stay else None
    shapes = State(row_A=tf.TensorShape([n_rows]), fed_AT=tf.TensorShape([n_rows, 1 if n_context == 1 else None]),
                   cache=cache.shapes(hparams, n_rows), ended_A=tf.TensorShape([n_rows]),
                   tokens_BS=tf.TensorShape([known_batch, None]))
    return State(*tf.while_loop(unfinished, step, start, shape_invariants=shapes, back_prop=False)).tokens_BS


def settled(hparams, state, all_stay):
    """The State with its cache settled, and without the rows that have ended, unless all_stay."""
    if all_stay:
        return state._replace(cache=state.cache.settle(hparams.n_head))
    place_A = tf.cast(tf.where(tf.logical_not(state.ended_A))[:, 0], tf.int32)
    row_A, fed_AT, ended_A = [tf.gather(x, place_A) for x in (state.row_A, state.fed_AT, state.ended_A)]
    return State(row_A, fed_AT, state.cache.settle(hparams.n_head, place_A), ended_A, state.tokens_BS)


def compiled_loop(hparams, prompt_BT, context_BC, chooser):
    """The decoding loop as one program compiled by XLA, with a past of a fixed size: int32 [B, up to C + length].

    prompt_BT: int32, the beginning that all prompts have.  context_BC: int32, B known, the prompts.
    """
    batch, n_context = sizes(context_BC)
    n_prompt, n_total = size(prompt_BT, 1), n_context + chooser.length
    max_total = n_total if isinstance(n_total, int) else hparams.n_ctx + 1
    text_BS = tf.pad(context_BC, [[0, 0], [0, max_total - n_context]])
    text_BS.set_shape([batch, max_total])
    past = cache.Past(hparams, prompt_BT, last_only=True)
    with tf.variable_scope('model', reuse=tf.AUTO_REUSE):
        model.decoder(hparams, prompt_BT, past)
    n_free = max_total - 1 - n_prompt  # the last token is never fed
    before = [tf.pad(x_GTK, [[0, 0], [0, n_free], [0, 0]]) for x_GTK in past.new]
    for x_GSK in before:
        x_GSK.set_shape([batch * hparams.n_head, max_total - 1, hparams.n_embd // hparams.n_head])

    @xla.compiled
    def run(n_seen, n_total, text_BS, before):
        def unfinished(n_seen, ended_B, text_BS, *before):
            return tf.logical_and(n_seen < n_total, tf.logical_not(tf.reduce_all(ended_B)))

        def step(n_seen, ended_B, text_BS, *before):
            fed_B = tf.gather(text_BS, n_seen - 1, axis=1)  # of NO_TOKEN XLA takes row 0, and the result is ignored
            past = xla.FixedPast(hparams, fed_B[:, None], before, n_seen - 1)
            with tf.variable_scope('model', reuse=True):
                logits_BV = model.unembed(hparams, model.decoder(hparams, fed_B[:, None], past)[-1])
            given_B = tf.gather(text_BS, n_seen, axis=1)
            token_B, ended_B = chooser.choose(logits_BV, n_seen, tf.range(batch), given_B, ended_B)
            return [n_seen + 1, ended_B, xla.write_column(text_BS, token_B, n_seen)] + past.new

        return tf.while_loop(unfinished, step, [n_seen, tf.fill([batch], False), text_BS] + before)[:3]

    n_seen, _, text_BS = run(n_prompt, n_total, text_BS, before)
    return text_BS[:, :n_seen]


# Checks

def check_options(length, temperature, top_k, top_p):
    """Raises ValueError for options that no sampler can follow; tensors pass."""
    if length < 0:
        raise ValueError('length is %r; it must be 0 or more tokens' % length)
    if isinstance(temperature, numbers.Number) and not 0 <= temperature < float('inf'):
        raise ValueError('temperature is %r; it must be over 0, or 0 for the most likely token each time' % temperature)
    check_top_k(top_k)
    check_top_p(top_p)


def check_top_k(k):
    """Raises ValueError unless k is a number of tokens, or a tensor."""
    if not is_tensor(k) and (not isinstance(k, numbers.Integral) or k < 0):
        raise ValueError('top_k is %r; it must be a whole number, 1 or more, or 0 to keep every token' % k)


def check_top_p(p):
    """Raises ValueError unless p is a probability over 0, or a tensor."""
    if not is_tensor(p) and not 0 < p <= 1:
        raise ValueError('top_p is %r; it must be over 0 and at most 1, which keeps every token' % p)


def check_compiled(compiled, context_BC, watch, top_k):
    """Raises ValueError if the loop is to be compiled and cannot be."""
    if compiled and not xla.is_supported():
        raise ValueError('TensorFlow %s cannot compile the loop; leave out compiled, or use TensorFlow 2.x'
                         % tf.__version__)
    if compiled and context_BC.shape.as_list()[0] is None:
        raise ValueError('compiled needs a context with a known number of rows, such as a placeholder of [8, None]')
    if compiled and watch is not None:
        raise ValueError('a compiled loop cannot be watched; leave out compiled or watch')
    if compiled and is_tensor(top_k):
        raise ValueError('compiled needs a top_k that is a number, since XLA sorts a fixed number of tokens')


def checked_context(hparams, length, context, start_token, batch_size):
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
    n_context = size(context_BC, 1)
    if not isinstance(n_context, int):
        too_long = 'prompt + length (%d) is over the context of %d; shorten one of them' % (length, hparams.n_ctx)
        return after([tf.assert_less_equal(n_context + length, hparams.n_ctx + 1, message=too_long),
                      tf.assert_positive(n_context, message=EMPTY)], context_BC)
    check_room(hparams, n_context, length)
    return context_BC


def check_room(hparams, n_context, length):
    """Raises ValueError for a prompt of n_context tokens that is empty, or leaves no room for length tokens."""
    if n_context < 1:
        raise ValueError(EMPTY)
    if n_context + length > hparams.n_ctx + 1:  # the last token drawn is never fed back
        raise ValueError('prompt (%d tokens) + length (%d) is over the context of %d; pass length %d or less'
                         % (n_context, length, hparams.n_ctx, hparams.n_ctx + 1 - n_context))


def checked_lengths(context_lengths, n_context):
    """The prompts' lengths, int32 [B]. Raises as sample_sequence does."""
    message = 'context_lengths must be 1 to the width of context'
    known = not is_tensor(context_lengths) and isinstance(n_context, int)
    if known and not (1 <= np.min(context_lengths) and np.max(context_lengths) <= n_context):
        raise ValueError('%s, %d; they are %s' % (message, n_context, list(context_lengths)))
    length_B = tf.cast(context_lengths, tf.int32)
    return after([tf.assert_positive(length_B, message=message),
                  tf.assert_less_equal(length_B, n_context, message=message)], length_B)


def checked_draws(hparams, context_BC, length_B, draws, length):
    """draws, in a run in which all rows have lengths and draws, and no token is beyond the vocabulary.

    A CPU raises an error where an index is out of range; XLA and a GPU read another element.
    """
    n_rows, n_columns = tf.unstack(tf.shape(context_BC))
    given_BC = tf.where(tf.sequence_mask(length_B, n_columns), context_BC, tf.zeros_like(context_BC))
    return after([
        tf.assert_greater_equal(tf.shape(draws), tf.stack([n_rows, length]), message='draws must be [batch, length]'),
        tf.assert_less(given_BC, hparams.n_vocab, message='a token is not in the vocabulary')], draws)


def after(checks, x):
    """x, once the checks have passed."""
    with tf.control_dependencies(checks):
        return tf.identity(x)
