"""GPT-2 as a TensorFlow graph: token ids in, logits out.

The network is the decoder of Radford et al. 2018 ("Improving Language Understanding by Generative Pre-Training") with
the changes of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"), section 2.3: layer
normalisation moves to the input of each sub-block, another follows the last block, and residual projections start
smaller. Variables carry the names and shapes of the released checkpoints.

A tensor's name ends in its shape:
B batch  T new tokens  S positions attended to  R rows, B * T  D n_embd  H n_head  K head size, D // H  N any width  V n_vocab
G heads of all texts, B * H: attention treats them alike
L what attention keeps of all layers, 2 * n_layer: keys of the first, values of the first, keys of the second ...
"""
from collections import namedtuple
import math
import zlib

from products import batched_product, n_shares, product, product_with_rows, shares
from tf1 import stateless_uniform, tf


class HParams(object):
    """The five numbers that make a GPT-2: n_vocab, n_ctx (longest text, in tokens), n_embd, n_head, n_layer."""

    names = ('n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer')

    def __init__(self, n_vocab, n_ctx, n_embd, n_head, n_layer):
        self.n_vocab = n_vocab
        self.n_ctx = n_ctx
        self.n_embd = n_embd
        self.n_head = n_head
        self.n_layer = n_layer

    def override_from_dict(self, values):
        """Set hyperparameters by name. Raises ValueError for a name that is not one of them."""
        unknown = sorted(set(values) - set(self.names))
        if unknown:
            raise ValueError('%d unknown hyperparameters (%.60s); GPT-2 has %s'
                             % (len(unknown), ', '.join(unknown), ', '.join(self.names)))
        for name, value in values.items():
            setattr(self, name, value)
        return self

    def values(self):
        """A dict of the hyperparameters, as hparams.json holds them."""
        return {name: getattr(self, name) for name in self.names}

    def check(self):
        """Raises ValueError unless a network can be built of these numbers."""
        for name in self.names:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value < 2 ** 31:  # TensorFlow counts in int32
                raise ValueError('%s is %.60r; it must be a whole number of 1 to 2147483647%s' % (
                    name, value, ': load hparams.json first' if name == 'n_vocab' and value == 0 else ''))
        if self.n_embd % self.n_head:
            raise ValueError('n_head (%d) does not divide n_embd (%d); heads share the width equally'
                             % (self.n_head, self.n_embd))

    def __repr__(self):
        return 'HParams(%s)' % ', '.join('%s=%r' % (name, getattr(self, name)) for name in self.names)


def default_hparams():
    """HParams of the smallest released model, but for n_vocab: that is 0 until hparams.json is read."""
    return HParams(n_vocab=0, n_ctx=1024, n_embd=768, n_head=12, n_layer=12)


def past_shape(*, hparams, batch_size=None, sequence=None):
    """[B, n_layer, 2, H, S, K]: the shape of `past` and `present`; the 2 are keys and values."""
    return [batch_size, hparams.n_layer, 2, hparams.n_head, sequence, hparams.n_embd // hparams.n_head]


def model(hparams, X, past=None, scope='model', reuse=False):
    """The logits of the token that follows each position.

    X: int32 [B, T], at most n_ctx tokens with the past.  past: float32 past_shape(B, S), or None.
    Returns {'logits': float32 [B, T, V], 'present': float32 past_shape(B, T)}: present holds the new tokens only, and
    concatenated to past along axis -2 it is the past of the next call.
    Raises ValueError if hparams fit no network.
    """
    hparams.check()
    tokens_BT = tf.convert_to_tensor(X)
    batch, n_new = sizes(tokens_BT)
    n_layer, n_head, head_size = hparams.n_layer, hparams.n_head, hparams.n_embd // hparams.n_head
    pasts = []
    if past is not None:
        past = tf.transpose(past, [1, 2, 0, 3, 4, 5])
        pasts.append(tf.unstack(tf.reshape(past, [2 * n_layer, batch * n_head, -1, head_size])))
    with tf.variable_scope(scope, reuse=reuse):
        hidden_RD, present_LGTK = transform(hparams, tokens_BT, pasts)
        logits_RV = unembed(hparams, hidden_RD)
    present = tf.reshape(present_LGTK, [n_layer, 2, batch, n_head, n_new, head_size])
    return {'present': tf.transpose(present, [2, 0, 1, 3, 4, 5]),
            'logits': tf.reshape(logits_RV, [batch, n_new, hparams.n_vocab])}


# Keys and values of what was read. A token is added to `recent`, float32 [L, G, S, K], which is short, and that to `old`
# now and then: no token copies all that is there. `old` is L tensors [G, S, K], so that they are copied one by one, and
# there are never two of the whole.
Cache = namedtuple('Cache', 'old recent')


def empty_cache(hparams, batch):
    """The Cache of batch texts of which nothing was read yet."""
    nothing_LGSK = tf.zeros([2 * hparams.n_layer, batch * hparams.n_head, 0, hparams.n_embd // hparams.n_head])
    return Cache(tf.unstack(nothing_LGSK), nothing_LGSK)


def cache_shapes(hparams, batch):
    """The shapes of a Cache as it grows, in the form that tf.while_loop takes. batch: number, or None if unknown."""
    n_kept = 2 * hparams.n_layer
    any_GSK = tf.TensorShape([None if batch is None else batch * hparams.n_head, None, hparams.n_embd // hparams.n_head])
    return Cache([any_GSK] * n_kept, tf.TensorShape([n_kept]).concatenate(any_GSK))


def decode(hparams, X, cache, scope='model', reuse=tf.AUTO_REUSE, n_texts=None):
    """Read more of each text, and predict what comes next.

    X: int32 [B, T], the new tokens.  n_texts: how many texts there were at first, if many tokens of each will follow; as
        product_with_rows() takes it.
    Returns float32 [B, V], the logits that follow the last of them, and the Cache with all of them.
    """
    with tf.variable_scope(scope, reuse=reuse):
        hidden_BD, present_LGTK = transform(hparams, X, [cache.old, tf.unstack(cache.recent)], last_alone=True)
        logits_BV = product_with_rows(hidden_BD, token_embedding(hparams), n_texts)
    return logits_BV, Cache(cache.old, tf.concat([cache.recent, present_LGTK], axis=-2))


def is_due(cache):
    """Whether settle() pays: a bool scalar.

    r recent tokens, copied each time one is added, cost r / 2 a token, and s old ones, copied once, s / r. That is least
    where r * r = 2 * s.
    """
    n_old, n_recent = size(cache.old[0], -2), size(cache.recent, -2)
    return n_recent * n_recent >= 2 * n_old


def settle(hparams, cache, rows=None):
    """The Cache with all that is recent made old. rows: int32 [any], the texts that stay in it; None is all."""
    old, recent_LGSK = cache
    if rows is not None:
        heads_G = tf.reshape(rows[:, None] * hparams.n_head + tf.range(hparams.n_head), [-1])
        old, recent_LGSK = [tf.gather(old_GSK, heads_G) for old_GSK in old], tf.gather(recent_LGSK, heads_G, axis=1)
    old = [tf.concat(pieces, axis=-2) for pieces in zip(old, tf.unstack(recent_LGSK))]
    return Cache(old, recent_LGSK[:, :, :0])


def token_losses(logits, tokens):
    """What each token but the first cost to predict: float32 [B, T - 1], in nats.

    logits: float32 [B, T, V], the model's for these tokens.  tokens: int32 [B, T].
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits[:, :-1])


def no_dropout(x, site):
    """What dropout() returns, for when nothing is to be dropped."""
    return x


def dropout(rate, *, seed, step):
    """A function drop(x, site) that zeroes a share `rate` of x and scales up the rest (GPT paper, section 4.1).

    seed: a number.  step: int32 scalar tensor. What is dropped depends on them and on the site's name and variable scope
    alone: a block that is computed again drops the same, and so does a training step that is run again.
    """
    def drop(x, site):
        name = '%s %s/%s' % (seed, tf.get_variable_scope().name, site)
        site_seed = zlib.crc32(name.encode('utf-8')) % 2 ** 31
        kept = stateless_uniform(tf.shape(x), seed=tf.stack([step, site_seed])) >= rate
        return x * tf.cast(kept, tf.float32) / (1 - rate)

    return drop if rate else no_dropout


def transform(hparams, tokens, pasts=(), drop=no_dropout, last_alone=False):
    """Everything between token ids and logits.

    tokens: int32 [B, T].  pasts: what was read before them, in pieces: each is L tensors, float32 [G, S, K].
    Returns float32 [R, D], or with last_alone [B, D] of each text's last position, and what attention keeps of tokens, float32
    [L, G, T, K].
    """
    hparams.check()
    tokens_BT = tf.convert_to_tensor(tokens)
    context = context_of(hparams, tokens_BT, [size(past[0], -2) for past in pasts])
    hidden_RD = drop(embed(hparams, tokens_BT, context), 'embed')
    present = []
    for layer in range(hparams.n_layer):
        if last_alone and layer == hparams.n_layer - 1:  # of the other positions only keys and values are of use now
            context = context._replace(last_alone=True, one_query=True)
        hidden_RD, key_and_value = block(hparams, hidden_RD, 'h%d' % layer, context, drop=drop,
                                         pasts=[past[2 * layer:2 * layer + 2] for past in pasts])
        present += key_and_value
    return layer_norm(hidden_RD, 'ln_f'), tf.stack(present)


# What all blocks need to know, made once:
# batch: how many texts
# position_T: the new tokens' places in the text
# lengths: int32 [pieces], how many tokens attention finds in each piece
# qkv_shape: for what the queries, keys and values are cut out of, [B, T, 3, H, K]
# heads_shape, mixed_shape: of what goes into attention, [G, T, K], and for what comes out of it, [B, H, T, K]
# mask_TS: of attention, as causal_mask() makes it
# last_alone: whether only the last position goes on behind attention
# one_query: bool, or bool scalar, whether attention has one query a text
# n_shares: into how many the work is cut; training and scoring have work enough for all cores in each operation
Context = namedtuple(
    'Context', 'batch position_T lengths qkv_shape heads_shape mixed_shape mask_TS last_alone one_query n_shares')


def context_of(hparams, tokens_BT, n_pasts=()):
    """The Context of new tokens. n_pasts: the lengths of the pieces of the past."""
    batch, n_new = sizes(tokens_BT)
    position_T = sum(n_pasts) + tf.range(n_new)
    n_head, head_size = hparams.n_head, hparams.n_embd // hparams.n_head
    return Context(
        batch=batch, position_T=position_T,
        lengths=tf.stack(list(n_pasts[:-1]) + [sum(n_pasts[-1:]) + n_new]),
        qkv_shape=tf.stack([batch, n_new, 3, n_head, head_size]),
        heads_shape=tf.stack([batch * n_head, n_new, head_size]),
        mixed_shape=tf.stack([batch, n_head, n_new, head_size]),
        mask_TS=causal_mask(position_T), last_alone=False,
        one_query=n_new == 1 if isinstance(n_new, int) else bool(n_pasts) and tf.equal(n_new, 1),
        n_shares=n_shares() if n_pasts else 1)


def embed(hparams, tokens_BT, context):
    """Each token's vector plus that of its position: float32 [R, D]."""
    wpe_SD = tf.get_variable('wpe', [hparams.n_ctx, hparams.n_embd], initializer=tf.random_normal_initializer(stddev=0.01))
    hidden_BTD = tf.gather(token_embedding(hparams), tokens_BT) + tf.gather(wpe_SD, context.position_T)
    return tf.reshape(hidden_BTD, [-1, hparams.n_embd])


def unembed(hparams, hidden_RD):
    """Logits [R, V]: the token embedding serves both ways."""
    return tf.matmul(hidden_RD, token_embedding(hparams), transpose_b=True)


def token_embedding(hparams):
    """The variable wte [V, D], created at its first use."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        return tf.get_variable('wte', [hparams.n_vocab, hparams.n_embd],
                               initializer=tf.random_normal_initializer(stddev=0.02))


def causal_mask(position_T):
    """float32 [T, S], to be added to attention scores: 0 where a token may look, up to itself, and -1e10 beyond."""
    visible_TS = tf.range(position_T[-1] + 1)[None, :] <= position_T[:, None]
    return (1 - tf.cast(visible_TS, tf.float32)) * -1e10


def block(hparams, hidden_RD, scope, context, *, pasts=(), drop=no_dropout):
    """One transformer block: float32 [R, D], and its tokens' [key, value]. pasts: those of the tokens before, in pieces."""
    with tf.variable_scope(scope):
        attended_RD, present = attention(hparams, layer_norm(hidden_RD, 'ln_1'), 'attn', context, pasts=pasts, drop=drop)
        if context.last_alone:
            hidden_RD = tf.reshape(hidden_RD, [context.batch, -1, hparams.n_embd])[:, -1]
        hidden_RD += drop(attended_RD, 'attn')
        hidden_RD += drop(feed_forward(hparams, layer_norm(hidden_RD, 'ln_2'), 'mlp', context), 'mlp')
        return hidden_RD, present


def attention(hparams, x_RD, scope, context, *, pasts=(), drop=no_dropout):
    """Masked multi-head self-attention (Vaswani et al. 2017, section 3.2) over the pieces of the past and the new tokens."""
    with tf.variable_scope(scope):
        q_GTK, *present = heads(linear(x_RD, 'c_attn', 3 * hparams.n_embd, context.n_shares), context)
        newest = [tf.concat([past, new], axis=-2) for past, new in zip(pasts[-1], present)] if pasts else present
        k_pieces, v_pieces = zip(*list(pasts[:-1]) + [newest])
        if context.last_alone:
            q_GTK = q_GTK[:, -1:]
        q_GTK /= math.sqrt(hparams.n_embd // hparams.n_head)
        q_shares = shares(q_GTK, 0, context.n_shares)
        k_shares, v_shares = [list(zip(*[shares(x_GSK, 0, context.n_shares) for x_GSK in pieces]))
                              for pieces in (k_pieces, v_pieces)]
        n_rows = context.batch if context.one_query is True else -1

        def mixed(one_query):
            mixed_GTK = tf.concat([mix(*share, context, one_query, drop) for share in zip(q_shares, k_shares, v_shares)], axis=0)
            if not one_query:  # put the heads of each token side by side; where there is but one token, they are
                mixed_GTK = tf.concat(tf.unstack(tf.reshape(mixed_GTK, context.mixed_shape), axis=1), axis=-1)
            return tf.reshape(mixed_GTK, [n_rows, hparams.n_embd])

        if isinstance(context.one_query, bool):
            mixed_RD = mixed(context.one_query)
        else:
            mixed_RD = tf.cond(context.one_query, lambda: mixed(True), lambda: mixed(False))
        return linear(mixed_RD, 'c_proj', hparams.n_embd, context.n_shares, residual_stddev(hparams)), present


def heads(qkv_RN, context):
    """The queries, keys and values of the new tokens, each float32 [G, T, K]."""
    qkv = tf.unstack(tf.reshape(qkv_RN, context.qkv_shape), axis=2)
    return [tf.reshape(tf.transpose(x_BTHK, [0, 2, 1, 3]), context.heads_shape) for x_BTHK in qkv]


def mix(q_GTK, k_pieces, v_pieces, context, one_query, drop):
    """What each query finds, float32 [G, T, K]: the values, weighted by how well it fits their keys.

    k_pieces, v_pieces: keys and values, each float32 [G, S, K].
    one_query: whether there is one a text, of the last token, which sees all.
    """
    if not one_query:  # many queries have more scores than there are keys and values to copy
        k_pieces, v_pieces = [tf.concat(k_pieces, axis=-2)], [tf.concat(v_pieces, axis=-2)]
    score_GTS = tf.concat([batched_product(q_GTK, k_GSK, one_query, transpose_b=True) for k_GSK in k_pieces], axis=-1)
    if one_query:
        weight_GTS = tf.exp(tf.nn.log_softmax(score_GTS))  # a softmax by oneDNN would be compiled for each length
    else:
        weight_GTS = tf.nn.softmax(score_GTS + context.mask_TS)
    weight_GTS = drop(weight_GTS, 'weights')
    weights = tf.split(weight_GTS, context.lengths, axis=-1, num=len(k_pieces)) if len(k_pieces) > 1 else [weight_GTS]
    return tf.add_n([batched_product(weight, v_GSK, one_query) for weight, v_GSK in zip(weights, v_pieces)])


def feed_forward(hparams, x_RD, scope, context):
    """Two layers, four times as wide in between."""
    with tf.variable_scope(scope):
        wide_RN = linear(x_RD, 'c_fc', 4 * hparams.n_embd, context.n_shares)
        return linear(wide_RN, 'c_proj', hparams.n_embd, context.n_shares, residual_stddev(hparams), activation=gelu)


def gelu(x):
    """The tanh form, which the released weights were trained with (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    # (1 + tanh(y)) / 2 is sigmoid(2 * y), in fewer operations.
    slope = 2 * math.sqrt(2 / math.pi)
    return x * tf.sigmoid(x * (slope + slope * 0.044715 * tf.square(x)))


def layer_norm(x_RD, scope):
    """x with mean 0 and variance 1 along its last axis, scaled and shifted (Ba et al. 2016, arXiv:1607.06450)."""
    width = x_RD.shape.as_list()[-1]
    with tf.variable_scope(scope):
        gain_D = tf.get_variable('g', [width], initializer=tf.ones_initializer())
        bias_D = tf.get_variable('b', [width], initializer=tf.zeros_initializer())
    centred_RD = x_RD - tf.reduce_mean(x_RD, axis=-1, keepdims=True)
    variance_R1 = tf.reduce_mean(tf.square(centred_RD), axis=-1, keepdims=True)
    return centred_RD * tf.rsqrt(variance_R1 + 1e-5) * gain_D + bias_D


def linear(x_RN, scope, width, n, stddev=0.02, activation=None):
    """x times a matrix plus a bias: [R, width]. n, activation: as product() takes them."""
    with tf.variable_scope(scope):
        n_in = x_RN.shape.as_list()[-1]
        # The checkpoint's shape has a leading 1: OpenAI wrote the product as a convolution of width 1.
        weight_1NN = tf.get_variable('w', [1, n_in, width], initializer=tf.random_normal_initializer(stddev=stddev))
        bias_N = tf.get_variable('b', [width], initializer=tf.zeros_initializer())
    return tf.nn.bias_add(product(x_RN, weight_1NN, n, activation), bias_N)


def residual_stddev(hparams):
    """Projections into the residual stream start smaller the more of them are added up: two in each block."""
    return 0.02 / math.sqrt(2 * hparams.n_layer)


def size(x, axis):
    """x's size along an axis: a number where the graph knows it, otherwise a tensor."""
    known = x.shape.as_list()[axis]
    return tf.shape(x)[axis] if known is None else known


def sizes(x):
    """x's shape as a list: numbers where the graph knows them, otherwise tensors."""
    return [size(x, axis) for axis in range(len(x.shape))]
