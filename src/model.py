"""GPT-2 as a TensorFlow graph: token ids in, logits out.

The network is the decoder of Radford et al. 2018 ("Improving Language Understanding by Generative Pre-Training") with
the changes of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"), section 2.3: layer
normalisation moves to the input of each sub-block, another follows the last block, and residual projections start
smaller. Variables carry the names and shapes of the released checkpoints.

A tensor's name ends in its shape:
B batch  T new tokens  S positions attended to  R rows, B * T  D n_embd  H n_head  K head size, D // H  N any width  V n_vocab
G heads of all texts, B * H: attention treats them alike
L keys and values of all layers, 2 * n_layer: keys of the first layer, values of the first, keys of the second ...
"""
import functools
import math
import zlib

import kernels
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
        hidden_RD, present = transform(hparams, tokens_BT, pasts)
        logits_RV = unembed(hparams, hidden_RD)
    present = tf.reshape(tf.stack(present), [n_layer, 2, batch, n_head, n_new, head_size])
    return {'present': tf.transpose(present, [2, 0, 1, 3, 4, 5]),
            'logits': tf.reshape(logits_RV, [batch, n_new, hparams.n_vocab])}


def decode(hparams, X, cache, multiply):
    """Read more tokens of each text and predict the next one, with the variables under 'model', made if they are missing.

    X: int32 [B, T], the new tokens.  cache: the Cache of the tokens before.
    multiply: the product with the token embedding, from kernels.vocabulary_product.
    Returns the logits of the next token, float32 [B, V], and the Cache with the new tokens added.
    """
    with tf.variable_scope('model', reuse=tf.AUTO_REUSE):
        hidden_BD, present = transform(hparams, X, [cache.old, tf.unstack(cache.recent)], last_alone=True)
        logits_BV = multiply(hidden_BD, token_embedding(hparams))
    return logits_BV, cache.add(present)


def decode_in_place(hparams, token_B, n_past, past):
    """As decode(), for one new token of each text and a past of a fixed size, of which n_past positions are taken.

    past: keys and values, L tensors [G, S, K].  Returns logits, float32 [B, V], and the past with the new token in it.
    """
    with tf.variable_scope('model', reuse=True):
        hidden_BD, past = transform(hparams, token_B[:, None], [past], n_past=n_past)
        return unembed(hparams, hidden_BD), past


# The network, from token ids to logits

def no_dropout(x, site):
    """The drop function that drops nothing."""
    return x


def transform(hparams, tokens, pasts=(), drop=no_dropout, last_alone=False, run=lambda block, x_RD: block(x_RD), n_past=None):
    """The network from token ids to the hidden states from which unembed() makes logits.

    tokens: int32 [B, T].  pasts: keys and values of the tokens before, in pieces: each piece is L tensors, float32 [G, S, K].
    drop: as dropout() returns it.
    last_alone: leave out all positions but each text's last where no other position needs them: after the last attention.
    run: calls each block with its input. Training passes a function that notes both, to compute the block again.
    n_past: how much of the past is taken, where it has a fixed size and one new token is written into it.
    Returns hidden states, float32 [R, D], or with last_alone [B, D]; and the tokens' keys and values, L tensors [G, T, K], or
    with n_past those of the past, too.
    """
    hparams.check()
    tokens_BT = tf.convert_to_tensor(tokens)
    batch, n_new = sizes(tokens_BT)
    n_pasts, head_size = [size(past[0], -2) for past in pasts], hparams.n_embd // hparams.n_head
    position_T = (sum(n_pasts) if n_past is None else n_past) + tf.range(n_new)
    if n_past is None:
        heads = kernels.Heads(batch, n_new, hparams.n_head, head_size, n_pasts, causal_mask(position_T))
    else:
        heads = kernels.HeadsInPlace(batch, hparams.n_head, head_size, n_past, n_pasts[0])
    hidden_RD = drop(embed(hparams, tokens_BT, position_T), 'embed')
    present = []
    for layer in range(hparams.n_layer):
        hidden_RD, key_and_value = run(functools.partial(
            block, hparams, scope='h%d' % layer, heads=heads, past=[past[2 * layer:2 * layer + 2] for past in pasts], drop=drop,
            last_alone=last_alone and layer == hparams.n_layer - 1), hidden_RD)
        present += key_and_value
    return layer_norm(hidden_RD, 'ln_f'), present


def embed(hparams, tokens_BT, position_T):
    """Each token's vector plus that of its position: float32 [R, D]."""
    wpe_SD = tf.get_variable('wpe', [hparams.n_ctx, hparams.n_embd], initializer=tf.random_normal_initializer(stddev=0.01))
    hidden_BTD = tf.gather(token_embedding(hparams), tokens_BT) + tf.gather(wpe_SD, position_T)
    return tf.reshape(hidden_BTD, [-1, hparams.n_embd])


def token_embedding(hparams):
    """The variable wte [V, D], created at its first use."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        return tf.get_variable('wte', [hparams.n_vocab, hparams.n_embd],
                               initializer=tf.random_normal_initializer(stddev=0.02))


def causal_mask(position_T):
    """float32 [T, S], to be added to attention scores: 0 where a token may look, up to itself, and -1e10 beyond."""
    visible_TS = tf.range(position_T[-1] + 1)[None, :] <= position_T[:, None]
    return (1 - tf.cast(visible_TS, tf.float32)) * -1e10


def block(hparams, hidden_RD, scope, heads, *, past=(), drop=no_dropout, last_alone=False):
    """One transformer block. Returns float32 [R, D], or with last_alone [B, D], and the tokens' [keys, values]."""
    with tf.variable_scope(scope):
        attended_RD, present = attention(hparams, layer_norm(hidden_RD, 'ln_1'), 'attn', heads, past, drop, last_alone)
        if last_alone:
            hidden_RD = tf.reshape(hidden_RD, [heads.batch, -1, hparams.n_embd])[:, -1]
        hidden_RD += drop(attended_RD, 'attn')
        hidden_RD += drop(feed_forward(hparams, layer_norm(hidden_RD, 'ln_2'), 'mlp', heads.n_parts), 'mlp')
        return hidden_RD, present


def attention(hparams, x_RD, scope, heads, past=(), drop=no_dropout, last_alone=False):
    """Masked multi-head self-attention (Vaswani et al. 2017, section 3.2) over the past and the new tokens."""
    with tf.variable_scope(scope):
        q_GTK, k_GTK, v_GTK = heads.split(linear(x_RD, 'c_attn', 3 * hparams.n_embd, heads.n_parts))
        mixed_RD, present = heads.attend(q_GTK, k_GTK, v_GTK, past, drop, last_alone)  # softmax(q k' / sqrt(K) + mask) v
        return linear(mixed_RD, 'c_proj', hparams.n_embd, heads.n_parts, residual_stddev(hparams)), present


def feed_forward(hparams, x_RD, scope, n_parts):
    """Two layers with GELU between them, where the network is four times as wide."""
    with tf.variable_scope(scope):
        wide_RN = linear(x_RD, 'c_fc', 4 * hparams.n_embd, n_parts)
        return linear(wide_RN, 'c_proj', hparams.n_embd, n_parts, residual_stddev(hparams), activation=gelu)


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


def linear(x_RN, scope, width, n_parts, stddev=0.02, activation=lambda x: x):
    """x times a matrix plus a bias: [R, width]. n_parts, activation: as kernels.product() takes them."""
    with tf.variable_scope(scope):
        n_in = x_RN.shape.as_list()[-1]
        # The checkpoint's shape has a leading 1: OpenAI wrote the product as a convolution of width 1.
        weight_1NN = tf.get_variable('w', [1, n_in, width], initializer=tf.random_normal_initializer(stddev=stddev))
        bias_N = tf.get_variable('b', [width], initializer=tf.zeros_initializer())
    return tf.nn.bias_add(kernels.product(x_RN, weight_1NN, n_parts, activation), bias_N)


def residual_stddev(hparams):
    """Projections into the residual stream start smaller the more of them are added up: two in each block."""
    return 0.02 / math.sqrt(2 * hparams.n_layer)


def unembed(hparams, hidden_RD):
    """Logits [R, V]: the embedding of the input tokens is the output matrix, too."""
    return kernels.product_with_rows(hidden_RD, token_embedding(hparams))


# Training and scoring

def token_losses(logits, tokens):
    """The loss of predicting each token but the first: float32 [B, T - 1], in nats.

    logits: float32 [B, T, V], what the model makes of tokens.  tokens: int32 [B, T].
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits[:, :-1])


def dropout(rate, *, seed, sequences):
    """A function drop(x, site) that zeroes each number of x with probability rate and scales up the rest.

    seed: a number.  sequences: int64 [B], a number for each sequence of the batch, which is x's first axis or a factor of it.
    These, the site's name and the variable scope alone decide what is dropped: a block that is computed again drops the same,
    and so does a sequence in another batch, or in a training step that is run again.
    Source: the GPT paper, section 4.1.
    """
    def drop(x, site):
        name = '%s %s/%s' % (seed, tf.get_variable_scope().name, site)
        site_seed = tf.constant(zlib.crc32(name.encode('utf-8')) % 2 ** 31, tf.int64)
        numbers = tf.unstack(sequences)
        draws = [stateless_uniform([tf.size(x) // len(numbers)], seed=tf.stack([number, site_seed])) for number in numbers]
        kept = tf.reshape(tf.concat(draws, axis=0), tf.shape(x)) >= rate
        return x * tf.cast(kept, tf.float32) / (1 - rate)

    return drop if rate else no_dropout


# Shapes

def size(x, axis):
    """x's size along an axis: a number where the graph knows it, otherwise a tensor."""
    known = x.shape.as_list()[axis]
    return tf.shape(x)[axis] if known is None else known


def sizes(x):
    """x's shape as a list: numbers where the graph knows them, otherwise tensors."""
    return [size(x, axis) for axis in range(len(x.shape))]
