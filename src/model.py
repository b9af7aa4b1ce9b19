"""GPT-2 as a TensorFlow graph: token ids in, logits out.

The network is the decoder of Radford et al. 2018 ("Improving Language Understanding by Generative Pre-Training") with
the changes of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"), section 2.3: layer
normalisation moves to the input of each sub-block, another follows the last block, and residual projections start
smaller. Variables carry the names and shapes of the released checkpoints.

A tensor's name ends in its shape:
B batch  T new tokens  S positions attended to  D n_embd  H n_head  K head size, D // H  N any width  V n_vocab
"""
from collections import namedtuple
import math
import zlib

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
            raise ValueError('unknown hyperparameter %s; GPT-2 has %s' % (', '.join(unknown), ', '.join(self.names)))
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
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError('%s is %r; it must be a whole number of 1 or more%s' % (
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
    with tf.variable_scope(scope, reuse=reuse):
        pasts = [] if past is None else [[tuple(tf.unstack(layer_B2HSK, num=2, axis=1))
                                          for layer_B2HSK in tf.unstack(past, num=hparams.n_layer, axis=1)]]
        hidden_BTD, presents = transform(hparams, X, pasts)
        present = tf.stack([tf.stack(present, axis=1) for present in presents], axis=1)
        return {'present': present, 'logits': unembed(hparams, hidden_BTD)}


# Keys and values of what was read, float32 [B, H, S, K] a layer: lists of n_layer (k, v).
# A token is added to `recent`; that is short, and grows into `old` a block at a time. So no token copies all that is there.
Cache = namedtuple('Cache', 'old recent')
CACHE_BLOCK = 64  # tokens


def empty_cache(hparams, batch):
    """The Cache of batch texts of which nothing was read yet."""
    nothing_BHSK = tf.zeros([batch, hparams.n_head, 0, hparams.n_embd // hparams.n_head])
    layers = [(nothing_BHSK, nothing_BHSK)] * hparams.n_layer
    return Cache(layers, layers)


def cache_shapes(hparams, batch):
    """The shapes of a Cache as it grows, in the form that tf.while_loop takes. batch: number, or None if unknown."""
    any_BHSK = tf.TensorShape([batch, hparams.n_head, None, hparams.n_embd // hparams.n_head])
    layers = [(any_BHSK, any_BHSK)] * hparams.n_layer
    return Cache(layers, layers)


def decode(hparams, X, cache, scope='model', reuse=tf.AUTO_REUSE):
    """Read more of each text, and predict what comes next.

    X: int32 [B, T], the new tokens.
    Returns float32 [B, V], the logits that follow the last of them, and the Cache with all of them.
    """
    with tf.variable_scope(scope, reuse=reuse):
        hidden_BTD, presents = transform(hparams, X, [cache.old, cache.recent])
        logits_BV = unembed(hparams, hidden_BTD[:, -1])
    recent = joined(cache.recent, presents)
    return logits_BV, tf.cond(size(recent[0][0], -2) < CACHE_BLOCK,
                              lambda: Cache(cache.old, recent),
                              lambda: Cache(joined(cache.old, recent), empty_cache(hparams, size(X, 0)).recent))


def joined(before, after):
    """Two pieces of a past as one, each a list of n_layer (k, v)."""
    return [(tf.concat([k_before, k_after], axis=-2), tf.concat([v_before, v_after], axis=-2))
            for (k_before, v_before), (k_after, v_after) in zip(before, after)]


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


def transform(hparams, tokens_BT, pasts=(), drop=no_dropout):
    """Everything between token ids and logits.

    pasts: what was read before tokens, piece by piece: each a list of n_layer (k, v), float32 [B, H, S, K].
    Returns float32 [B, T, D], and tokens' own (k, v) of each layer, float32 [B, H, T, K].
    """
    hparams.check()
    tokens_BT = tf.convert_to_tensor(tokens_BT)
    n_past = sum([size(piece[0][0], -2) for piece in pasts])
    position_T = n_past + tf.range(size(tokens_BT, 1))
    hidden_BTD = drop(embed(hparams, tokens_BT, position_T), 'embed')
    mask_TS = causal_mask(position_T)
    presents = []
    for layer in range(hparams.n_layer):
        hidden_BTD, present = block(hparams, hidden_BTD, 'h%d' % layer, mask_TS=mask_TS,
                                    pasts=[piece[layer] for piece in pasts], drop=drop)
        presents.append(present)
    return layer_norm(hidden_BTD, 'ln_f'), presents


def embed(hparams, tokens_BT, position_T):
    """Each token's vector plus that of its position: float32 [B, T, D]."""
    wpe_SD = tf.get_variable('wpe', [hparams.n_ctx, hparams.n_embd], initializer=tf.random_normal_initializer(stddev=0.01))
    return tf.gather(token_embedding(hparams), tokens_BT) + tf.gather(wpe_SD, position_T)


def unembed(hparams, hidden):
    """Logits [..., V] of hidden states [..., D]: the token embedding serves both ways."""
    logits = tf.matmul(tf.reshape(hidden, [-1, hparams.n_embd]), token_embedding(hparams), transpose_b=True)
    return tf.reshape(logits, sizes(hidden)[:-1] + [hparams.n_vocab])


def token_embedding(hparams):
    """The variable wte [V, D], created at its first use."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        return tf.get_variable('wte', [hparams.n_vocab, hparams.n_embd],
                               initializer=tf.random_normal_initializer(stddev=0.02))


def causal_mask(position_T):
    """float32 [T, S], to be added to attention scores: 0 where a token may look, up to itself, and -1e10 beyond."""
    visible_TS = tf.range(position_T[-1] + 1)[None, :] <= position_T[:, None]
    return (1 - tf.cast(visible_TS, tf.float32)) * -1e10


def block(hparams, hidden_BTD, scope, *, mask_TS, pasts=(), drop=no_dropout):
    """One transformer block: float32 [B, T, D], and the (k, v) of its tokens. pasts: (k, v) of those before, in pieces."""
    with tf.variable_scope(scope):
        attended_BTD, present = attention(hparams, layer_norm(hidden_BTD, 'ln_1'), 'attn',
                                          mask_TS=mask_TS, pasts=pasts, drop=drop)
        hidden_BTD += drop(attended_BTD, 'attn')
        hidden_BTD += drop(feed_forward(hparams, layer_norm(hidden_BTD, 'ln_2'), 'mlp'), 'mlp')
        return hidden_BTD, present


def attention(hparams, x_BTD, scope, *, mask_TS, pasts=(), drop=no_dropout):
    """Masked multi-head self-attention (Vaswani et al. 2017, section 3.2) over the pieces of the past and the new tokens."""
    n_head, head_size = hparams.n_head, hparams.n_embd // hparams.n_head
    batch, n_new = sizes(x_BTD)[:2]
    with tf.variable_scope(scope):
        qkv_BTN = linear(x_BTD, 'c_attn', 3 * hparams.n_embd)
        qkv_BT3HK = tf.reshape(qkv_BTN, [batch, n_new, 3, n_head, head_size])
        q_BHTK, *present = tf.unstack(tf.transpose(qkv_BT3HK, [2, 0, 3, 1, 4]))
        pieces = list(pasts) + [tuple(present)]
        q_BHTK /= math.sqrt(head_size)
        score_BHTS = tf.concat([tf.matmul(q_BHTK, k_BHSK, transpose_b=True) for k_BHSK, _ in pieces], axis=-1)
        weight_BHTS = drop(tf.nn.softmax(score_BHTS + mask_TS), 'weights')
        weights = tf.split(weight_BHTS, [size(k_BHSK, -2) for k_BHSK, _ in pieces], axis=-1)
        mixed_BHTK = tf.add_n([tf.matmul(weight, v_BHSK) for weight, (_, v_BHSK) in zip(weights, pieces)])
        mixed_BTD = tf.reshape(tf.transpose(mixed_BHTK, [0, 2, 1, 3]), [batch, n_new, hparams.n_embd])
        return linear(mixed_BTD, 'c_proj', hparams.n_embd, stddev=residual_stddev(hparams)), tuple(present)


def feed_forward(hparams, x_BTD, scope):
    """Two layers, four times as wide in between."""
    with tf.variable_scope(scope):
        wide_BTN = gelu(linear(x_BTD, 'c_fc', 4 * hparams.n_embd))
        return linear(wide_BTN, 'c_proj', hparams.n_embd, stddev=residual_stddev(hparams))


def gelu(x):
    """The tanh form, which the released weights were trained with (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    return 0.5 * x * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def layer_norm(x, scope):
    """x with mean 0 and variance 1 along its last axis, scaled and shifted (Ba et al. 2016, arXiv:1607.06450)."""
    with tf.variable_scope(scope):
        gain_N = tf.get_variable('g', [size(x, -1)], initializer=tf.ones_initializer())
        bias_N = tf.get_variable('b', [size(x, -1)], initializer=tf.zeros_initializer())
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * tf.rsqrt(variance + 1e-5) * gain_N + bias_N


def linear(x, scope, width, stddev=0.02):
    """x [..., N] times a matrix plus a bias: [..., width]."""
    with tf.variable_scope(scope):
        n_in = size(x, -1)
        # The checkpoint's shape has a leading 1: OpenAI wrote the product as a convolution of width 1.
        weight_1ND = tf.get_variable('w', [1, n_in, width], initializer=tf.random_normal_initializer(stddev=stddev))
        bias_N = tf.get_variable('b', [width], initializer=tf.zeros_initializer())
    product = tf.matmul(tf.reshape(x, [-1, n_in]), weight_1ND[0]) + bias_N
    return tf.reshape(product, sizes(x)[:-1] + [width])


def residual_stddev(hparams):
    """Projections into the residual stream start smaller the more of them are added up: two in each block."""
    return 0.02 / math.sqrt(2 * hparams.n_layer)


def size(x, axis):
    """x's size along an axis: a number where the graph knows it, otherwise a tensor."""
    return sizes(x)[axis]


def sizes(x):
    """x's shape as a list: numbers where the graph knows them, otherwise tensors."""
    dynamic = tf.shape(x)
    return [dynamic[axis] if known is None else known for axis, known in enumerate(x.shape.as_list())]
