"""Matrix products, each in the way that is fastest on this version of TensorFlow, with and without a GPU.

Sampling reads every weight for each token, to multiply it with one row or a few, and reading takes most of the time.
On a CPU the work on a token is therefore split into parts, one for each core, which run at the same time as separate
operations: TensorFlow 2.x would spend longer on dividing each operation among the cores, and 1.12 runs a product of
one row on one core. All ways to multiply give the same result up to rounding. `make bench` measures them.

R rows  N, M any width; other letters are those of model.py
"""
import math
import os
import platform

from gpt2.system import process
from gpt2.system.tf1 import batch_gather, size, tf

MAX_PARTS = 4  # four cores saturate the memory bandwidth; more parts would only make the graph larger
MIN_TOKENS_TO_TRANSPOSE = 16  # for fewer tokens, transposing the token embedding takes longer than it saves
VOCABULARY_BLOCKS = 32  # the token embedding is multiplied in blocks whose outputs stay in the processor's cache
ALIGNMENT = 16  # float32 numbers, 64 bytes: aligned rows of a weight take three quarters of the time for many rows


def matmul(x, y, transpose_b=False, input_activation=lambda x: x):
    """input_activation(x) times y. y: a tensor, or an object with a method `product` that takes the same parameters."""
    if hasattr(y, 'product'):
        return y.product(x, transpose_b, input_activation)
    x = input_activation(x)
    if len(y.shape) > len(x.shape):  # weights in checkpoints are [1, N, M]
        y = tf.squeeze(y, axis=0)
    return tf.matmul(x, y, transpose_b=transpose_b)


def softmax(score_GTS):
    """tf.nn.softmax. For one query and a varying number of positions, oneDNN would compile a kernel for each number."""
    n_queries, n_positions = score_GTS.shape.as_list()[-2:]
    if n_queries == 1 and n_positions is None:
        return tf.exp(tf.nn.log_softmax(score_GTS))
    return tf.nn.softmax(score_GTS)


# Weights that are multiplied in a way of their own

class Weight(object):
    """A matrix in the place of a variable of the network. Operations that need a tensor take the variable itself.

    n: into how many parts it is split, which are multiplied at the same time.
    is_aligned: whether rows are padded to a multiple of ALIGNMENT, which is faster for two texts or more.
    """

    def __init__(self, variable, n=1, is_aligned=False):
        self.variable, self.n, self.is_aligned = variable, n, is_aligned


tf.register_tensor_conversion_function(Weight, lambda weight, **_: tf.convert_to_tensor(weight.variable))


class SplitWeight(Weight):
    """A weight [1, N, M] or [N, M] in n parts, each with N / n rows."""

    def product(self, x_RN, transpose_b, input_activation):
        with tf.control_dependencies(None):  # once, outside the loop
            weights = tf.unstack(tf.reshape(self.variable, [self.n, self.variable.shape.as_list()[-2] // self.n, -1]))
        return tf.add_n([tf.matmul(input_activation(part_RN), weight_NM)
                         for part_RN, weight_NM in zip(split(x_RN, -1, self.n), weights)])


class TransposedEmbedding(Weight):
    """The token embedding [V, D], transposed once before the loop: the fastest layout for oneDNN."""

    def product(self, x_BD, transpose_b, input_activation):
        weight_VD = self.variable
        n_vocab, width = weight_VD.shape.as_list()
        with tf.control_dependencies(None):  # once, outside the loop
            if self.is_aligned:
                zeros_ND = tf.zeros([-n_vocab % ALIGNMENT, width])
                weight_VD = tf.concat([weight_VD, zeros_ND], axis=0)  # tf.pad takes four times as long
            weight_DV = tf.transpose(weight_VD)
        return matmul(x_BD, split_weight(weight_DV, self.n))[:, :n_vocab]


class BlockedEmbedding(Weight):
    """The token embedding [V, D], multiplied in blocks of its rows."""

    def product(self, x_BD, transpose_b, input_activation):
        n_vocab = self.variable.shape.as_list()[0]
        ends = [n_vocab * i // VOCABULARY_BLOCKS for i in range(VOCABULARY_BLOCKS + 1)]
        blocks = tf.split(self.variable, [end - begin for begin, end in zip(ends, ends[1:]) if end > begin])
        return tf.transpose(tf.concat([tf.matmul(block_ND, x_BD, transpose_b=True) for block_ND in blocks], axis=0))


class Bfloat16Weight(Weight):
    """A matrix, or many, whose products are computed in bfloat16; they come back as float32."""

    def product(self, x, transpose_b, input_activation):
        x, y = [tf.cast(factor, tf.bfloat16) for factor in (input_activation(x), tf.convert_to_tensor(self))]
        return tf.cast(matmul(x, y, transpose_b), tf.float32)


def split_weight(weight, n):
    """The weight in n parts, or as it is if n does not divide its rows."""
    return weight if n == 1 or weight.shape.as_list()[-2] % n else SplitWeight(weight, n)


def split_weights(n):
    """A custom_getter for tf.variable_scope that splits the network's matrices into n parts."""
    def get(getter, name, *positional, **options):
        weight = getter(name, *positional, **options)
        return split_weight(weight, n) if name.endswith('/w') else weight

    return get


def bfloat16_weights(getter, name, *positional, **options):
    """A custom_getter for tf.variable_scope, with which the network's products are computed in bfloat16."""
    weight = getter(name, *positional, **options)
    return Bfloat16Weight(weight) if name.endswith(('/w', '/wte')) else weight


def sampling_weights(n_texts=None, n_tokens=0):
    """A custom_getter as split_weights, with the token embedding in the layout that is fastest for sampling.

    n_texts: how many texts are sampled, None if unknown.  n_tokens: how many tokens of each.
    Transposing is worth it if enough tokens follow, and needs to know n_texts.
    """
    n = n_parts()
    get_split, is_transposed = split_weights(n), n_texts and n_tokens >= MIN_TOKENS_TO_TRANSPOSE and on_onednn()

    def get(getter, name, *positional, **options):
        weight = get_split(getter, name, *positional, **options)
        if not name.endswith('/wte') or on_gpu():
            return weight
        return TransposedEmbedding(weight, n, n_texts > 1) if is_transposed else BlockedEmbedding(weight)

    return get


def n_parts():
    """Into how many parts the work on a token is split: one for each core, or one in all on a GPU."""
    return 1 if on_gpu() else min(process.n_cores(), MAX_PARTS)


def split(x, axis, n):
    """x in n parts of equal size along an axis, except that the first part takes the remainder, too."""
    if n == 1:
        return [x]
    n_all = size(x, axis)
    if isinstance(n_all, int) and n_all % n == 0:
        return tf.split(x, n, axis=axis)
    return tf.split(x, [n_all - n_all // n * (n - 1)] + [n_all // n] * (n - 1), axis=axis, num=n)


def row_product(x_G1N, y_GNM, transpose_b=False):
    """tf.matmul of one row and a matrix, many times. Setting up oneDNN's product would cost four times the product."""
    if on_onednn():
        # The version of the operation that oneDNN leaves to Eigen.
        return tf.raw_ops.BatchMatMulV3(x=x_G1N, y=y_GNM, Tout=tf.float32, adj_y=transpose_b)
    return tf.matmul(x_G1N, y_GNM, transpose_b=transpose_b)


def top_k(logits_BV, k):
    """tf.nn.top_k, but faster: the k greatest logits of each row, float32 [B, k], and their ids, int32 [B, k].

    The k greatest are all in those k groups of logits that have the greatest maxima, so only these groups are sorted.
    """
    n_vocab = logits_BV.shape.as_list()[-1]
    n_each = group_size(n_vocab, k)
    if n_each == 1:
        return tf.nn.top_k(logits_BV, k=k)
    n_groups = n_vocab // n_each
    maxima_BN = tf.reduce_max(tf.reshape(logits_BV, [-1, n_each, n_groups]), axis=1)
    group_BN = tf.nn.top_k(maxima_BN, k=k).indices
    ids_BN = tf.reshape(group_BN[:, :, None] + tf.range(0, n_vocab, n_groups), [-1, k * n_each])
    found = tf.nn.top_k(batch_gather(logits_BV, ids_BN), k=k)
    return found.values, batch_gather(ids_BN, found.indices)


def group_size(n, k):
    """How many of n numbers to put into a group, a divisor of n, so that few are sorted to find the k greatest."""
    return next(size for size in range(int(math.sqrt(n / k)), 0, -1) if n % size == 0)


def on_onednn():
    """Whether TensorFlow multiplies by oneDNN: 2.x does so on x86 without a GPU, unless oneDNN is switched off."""
    return (not tf.__version__.startswith('1.') and platform.machine() in ('x86_64', 'AMD64')
            and os.environ['TF_ENABLE_ONEDNN_OPTS'].lower() not in ('0', 'false') and not on_gpu())


def on_gpu():
    """Whether TensorFlow uses a GPU. 1.12 would take all of its memory to tell; there, whether it is built for one."""
    if tf.__version__.startswith('1.'):
        return tf.test.is_built_with_cuda()
    return bool(tf.config.list_physical_devices('GPU'))
