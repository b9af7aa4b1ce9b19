"""Matrix products, each in the way that is fastest on this version of TensorFlow, with and without a GPU.

Sampling reads every weight for each token, to multiply it with one row or a few, and reading takes most of the time.
On a CPU the work on a token is therefore split into parts, one for each core, which run at the same time as separate
operations: TensorFlow 2.x would spend longer on dividing each operation among the cores, and 1.12 runs a product of
one row on one core. All ways to multiply give the same result up to rounding. `make bench` measures them.

R rows  N, M any width; other letters are those of model.py
"""
import functools
import math
import os
import platform

from gpt2.system import process
from gpt2.system.tf1 import batch_gather, may_have_gpu, size, tf

MAX_PARTS = 4  # four cores saturate the memory bandwidth; more parts would only make the graph larger
VOCABULARY_BLOCKS = 32  # the token embedding is multiplied in blocks whose outputs stay in the processor's cache


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
    """A matrix in the place of a variable of the network. Operations that need a tensor take the variable itself."""

    def __init__(self, variable):
        register_weight()
        self.variable = variable


@functools.lru_cache(maxsize=None)  # once
def register_weight():
    """Tell TensorFlow that a Weight stands for its variable."""
    tf.register_tensor_conversion_function(Weight, lambda weight, **_: tf.convert_to_tensor(weight.variable))


class SplitWeight(Weight):
    """A weight [1, N, M] or [N, M] in n parts, each with N / n rows, which are multiplied at the same time."""

    def __init__(self, variable, n):
        super(SplitWeight, self).__init__(variable)
        self.n = n

    def product(self, x_RN, transpose_b, input_activation):
        with tf.control_dependencies(None):  # once, outside the loop
            weights = tf.unstack(tf.reshape(self.variable, [self.n, self.variable.shape.as_list()[-2] // self.n, -1]))
        return tf.add_n([tf.matmul(input_activation(part_RN), weight_NM)
                         for part_RN, weight_NM in zip(split(x_RN, -1, self.n), weights)])


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


def sampling_weights():
    """A custom_getter as split_weights, with the token embedding in the layout that is fastest for sampling."""
    get_split = split_weights(n_parts())

    def get(getter, name, *positional, **options):
        weight = get_split(getter, name, *positional, **options)
        return BlockedEmbedding(weight) if name.endswith('/wte') and not on_gpu() else weight

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
    if not may_have_gpu():
        return False
    if tf.__version__.startswith('1.'):
        return tf.test.is_built_with_cuda()
    return bool(tf.config.list_physical_devices('GPU'))
