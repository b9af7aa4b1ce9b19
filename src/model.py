"""GPT-2 as a TensorFlow graph: token ids in, logits out.

The network is the decoder of Radford et al. 2018 ("Improving Language Understanding by Generative Pre-Training") with
the changes of Radford et al. 2019 ("Language Models are Unsupervised Multitask Learners"), section 2.3: layer
normalization moves to the input of each sub-block, another follows the last block, and residual projections start
smaller. Variables carry the names and shapes of the released checkpoints.

A tensor's name ends in its shape:
B batch  T new tokens  S positions attended to  R rows, B * T  N any width
D n_embd  H n_head  K head size, D // H  G heads of all texts, B * H: attention treats them alike  V n_vocab

Two parameters are not in the papers: `past`, the tokens before the new ones (gpt2/fast/cache.py), and `drop`, which
training passes for dropout. How a product is computed fast is up to what is multiplied (gpt2/fast/matmul.py).
"""
import math

from gpt2.fast.cache import Past
from gpt2.fast.matmul import matmul, softmax
from gpt2.system.tf1 import sizes, tf


class HParams(object):
    """The five numbers that make a GPT-2: n_vocab, n_ctx (longest text, in tokens), n_embd, n_head, n_layer."""

    names = ('n_vocab', 'n_ctx', 'n_embd', 'n_head', 'n_layer')

    def __init__(self, **values):
        self.override_from_dict(values)

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
            # TensorFlow counts in int32; and building a thousand layers takes a minute.
            largest = 1000 if name == 'n_layer' else 2 ** 31 - 1
            if type(value) is not int or not 1 <= value <= largest:
                raise ValueError('%s is %.60r; it must be a whole number of 1 to %d%s' % (
                    name, value, largest, ': load hparams.json first' if name == 'n_vocab' and value == 0 else ''))
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
    pieces = []
    if past is not None:
        past = tf.transpose(past, [1, 2, 0, 3, 4, 5])
        pieces.append(tf.unstack(tf.reshape(past, [2 * n_layer, batch * n_head, -1, head_size])))
    before = Past(hparams, tokens_BT, pieces)
    with tf.variable_scope(scope, reuse=reuse, custom_getter=before.custom_getter):
        logits_RV = unembed(hparams, decoder(hparams, tokens_BT, before)[-1])
    present = tf.reshape(tf.stack(before.new), [n_layer, 2, batch, n_head, n_new, head_size])
    return {'present': tf.transpose(present, [2, 0, 1, 3, 4, 5]),
            'logits': tf.reshape(logits_RV, [batch, n_new, hparams.n_vocab])}


# The network, from token ids to logits

def no_dropout(x, site):
    """A `drop` that drops nothing. site: the name of the place in the network."""
    return x


def decoder(hparams, tokens, past=None, drop=no_dropout):
    """The hidden states: the input of each block, the output of the last, and this normalized, which unembed() takes.

    tokens: int32 [B, T].  past: a Past of these tokens; None if there are none before them.
    drop: function of a tensor and the name of its place in the network.
    Returns n_layer + 2 tensors float32 [R, D].
    """
    hparams.check()
    tokens_BT = tf.convert_to_tensor(tokens)
    past = past or Past(hparams, tokens_BT)
    hidden = [drop(embed(hparams, tokens_BT, past.position_T), 'embed')]
    for layer in range(hparams.n_layer):
        hidden.append(block(hparams, hidden[-1], layer, past, drop))
    return hidden + [layer_norm(hidden[-1], 'ln_f')]


def embed(hparams, tokens_BT, position_T):
    """Each token's vector plus that of its position: float32 [R, D]."""
    wpe_SD = tf.get_variable('wpe', [hparams.n_ctx, hparams.n_embd],
                             initializer=tf.random_normal_initializer(stddev=0.01))
    hidden_BTD = tf.gather(token_embedding(hparams), tokens_BT) + tf.gather(wpe_SD, position_T)
    return tf.reshape(hidden_BTD, [-1, hparams.n_embd])


def token_embedding(hparams):
    """The variable wte [V, D], created at its first use."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        return tf.get_variable('wte', [hparams.n_vocab, hparams.n_embd],
                               initializer=tf.random_normal_initializer(stddev=0.02))


def block(hparams, hidden_RD, layer, past, drop=no_dropout):
    """A transformer block: attention and the feed-forward network, each added to the residual stream float32 [R, D]."""
    with tf.variable_scope('h%d' % layer):
        attended_RD = attention(hparams, layer_norm(hidden_RD, 'ln_1'), 'attn', layer, past, drop)
        hidden_RD = past.wanted(hidden_RD, layer) + drop(attended_RD, 'attn')
        return hidden_RD + drop(feed_forward(hparams, layer_norm(hidden_RD, 'ln_2'), 'mlp'), 'mlp')


def attention(hparams, x_RD, scope, layer, past, drop=no_dropout):
    """Masked multi-head self-attention (Vaswani et al. 2017, section 3.2) over the past and the new tokens."""
    with tf.variable_scope(scope):
        q_GTK, k_GTK, v_GTK = past.split_heads(linear(x_RD, 'c_attn', 3 * hparams.n_embd))
        k_GSK, v_GSK = past.append(layer, k_GTK, v_GTK)
        q_GTK = past.wanted(q_GTK, layer) / math.sqrt(hparams.n_embd // hparams.n_head)
        mixed_RD = past.over_heads(attend, q_GTK, k_GSK, v_GSK, drop)
        return linear(mixed_RD, 'c_proj', hparams.n_embd, residual_stddev(hparams))


def attend(q_GTK, k_GSK, v_GSK, mask, drop=no_dropout):
    """softmax(q k' + mask) v: float32 [G, T, K]. q: divided by sqrt(K) already.  mask: function of the scores."""
    score_GTS = matmul(q_GTK, k_GSK, transpose_b=True)
    weight_GTS = drop(softmax(mask(score_GTS)), 'weights')
    return matmul(weight_GTS, v_GSK)


def feed_forward(hparams, x_RD, scope):
    """Two layers with GELU between them, where the network is four times as wide."""
    with tf.variable_scope(scope):
        wide_RN = linear(x_RD, 'c_fc', 4 * hparams.n_embd)
        return linear(wide_RN, 'c_proj', hparams.n_embd, residual_stddev(hparams), input_activation=gelu)


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


def linear(x_RN, scope, width, stddev=0.02, input_activation=lambda x: x):
    """input_activation(x) times a matrix, plus a bias: float32 [R, width]. stddev: of the initial weights."""
    with tf.variable_scope(scope):
        # The checkpoint's shape has a leading 1: OpenAI wrote the product as a convolution of width 1.
        weight_1NN = tf.get_variable('w', [1, x_RN.shape.as_list()[-1], width],
                                     initializer=tf.random_normal_initializer(stddev=stddev))
        bias_N = tf.get_variable('b', [width], initializer=tf.zeros_initializer())
    return tf.nn.bias_add(matmul(x_RN, weight_1NN, input_activation=input_activation), bias_N)


def residual_stddev(hparams):
    """Projections into the residual stream start smaller the more of them are added up: two in each block."""
    return 0.02 / math.sqrt(2 * hparams.n_layer)


def unembed(hparams, hidden_RD):
    """Logits [R, V]: the embedding of the input tokens is the output matrix, too."""
    return matmul(hidden_RD, token_embedding(hparams), transpose_b=True)


def token_losses(logits, tokens):
    """The loss of predicting each token but the first: float32 [B, T - 1], in nats.

    logits: float32 [B, T, V], the model's output for tokens.  tokens: int32 [B, T].
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens[:, 1:], logits=logits[:, :-1])
