"""8-bit weights: each token reads a quarter of the bytes, and reading the weights takes most of the time.

Each column of a weight becomes whole numbers from -127 to 127 and one scale (Dettmers et al. 2022, arXiv:2208.07339, section
2.1). The rows that are multiplied with it keep 16 bits: a row is multiplied as two rows, its high bytes and its low bytes, and
256 times the first product plus the second is the product of the row. Both come of reading the weights once. So only the
weights are rounded, as by llama.cpp's Q8_0, and not what is multiplied with them.
"""
from collections import namedtuple
from concurrent import futures
import functools
import weakref

import numpy as np

import process
from tf1 import tf

MOST = 32639  # what a row's largest magnitude becomes in 16 bits: both its bytes, less 128, are then -128 to 127
OFFSET = 32896.5  # 128 in both bytes, and a half, so that cutting off the fraction rounds

# Some columns of a weight, or some of its rows, as variables.
# values: int8 [N, M].  bias: float32 [M], -128 times their sums, since words come as bytes of 0 to 255 and mean 128 less
# scale: float32 [M], times a row's largest magnitude: what its product of whole numbers is to be multiplied by
Part = namedtuple('Part', 'values scale bias')


class Weight(object):
    """A matrix in 8 bits.

    parts: the Parts that it is cut into along its longer side, each worked on at the same time as the others.
    axis: 0 if they are some of its rows each, 1 if columns.
    variable: the same matrix in float32, where an operation needs that, or None.
    """

    def __init__(self, parts, axis, variable=None):
        self.parts, self.axis, self.variable = parts, axis, variable
        self.sessions = weakref.WeakSet()  # that have it

    def product(self, x_RN, activation=lambda x: x):
        """activation(x) times the matrix: float32 [R, M]. activation: a function applied to each number of x."""
        if self.axis == 0:
            pieces = tf.split(x_RN, [part.values.shape.as_list()[0] for part in self.parts], axis=-1)
            return tf.add_n([words_product(words(activation(piece_RN)), part) for piece_RN, part in zip(pieces, self.parts)])
        x_words = words(activation(x_RN))
        return tf.concat([words_product(x_words, part) for part in self.parts], axis=-1)

    def feeds(self, weight_NM, name):
        """What the initial values of the parts are for a float32 matrix, rounded: {tensor: array}. Raises as rounded does."""
        values_NM, scale_M = rounded(weight_NM, name)
        pieces = np.array_split(values_NM, len(self.parts), self.axis)
        scales = np.array_split(scale_M, len(self.parts)) if self.axis == 1 else [scale_M] * len(self.parts)
        arrays = [array for piece_NM, scale_M in zip(pieces, scales)
                  for array in (piece_NM, scale_M / np.float32(MOST), -128 * piece_NM.sum(axis=0, dtype=np.float32))]
        return dict(zip([variable.initial_value for part in self.parts for variable in part], arrays))


# Rows in 16 bits.  bytes: uint8 [2R, N] or more, the words' high bytes, then the low ones.  times: how often they stand there
# magnitude: float32 [R, 1], each row's largest
Words = namedtuple('Words', 'bytes times magnitude')


def words(x_RN):
    """x as Words."""
    magnitude_R1 = tf.maximum(tf.reduce_max(tf.abs(x_RN), axis=-1, keepdims=True), 1e-30)
    word_RN = x_RN * (MOST / magnitude_R1) + OFFSET
    high_RN, low_RN = tf.cast(word_RN / 256, tf.uint8), tf.cast(tf.cast(word_RN, tf.uint16), tf.uint8)
    times = 2 if x_RN.shape.as_list()[0] == 1 else 1  # oneDNN multiplies four rows faster than two
    return Words(tf.concat([high_RN, low_RN] * times, axis=0), times, magnitude_R1)


def words_product(words, part):
    """Words times a Part: float32 [R, M]."""
    sum_RM = whole_product(words.bytes, part.values, part.bias)
    high_RM, low_RM = tf.unstack(tf.reshape(sum_RM, [2 * words.times, -1, sum_RM.shape.as_list()[1]]))[:2]
    return (256 * high_RM + low_RM) * (words.magnitude * part.scale)


tf.register_tensor_conversion_function(Weight, lambda weight, **_: tf.convert_to_tensor(weight.variable))


def whole_product(byte_RN, values_NM, bias_M):
    """byte times values plus bias, whole numbers: float32 [R, M]. byte_RN: uint8.  values_NM: int8.

    TensorFlow makes this operation of QuantizedMatMulWithBiasAndDequantize, and lets oneDNN pack the weights only once if they
    are constants. Where that is said here, variables are packed once, too, and take much less memory than constants.
    """
    inputs = [tf.bitcast(byte_RN, tf.quint8), tf.bitcast(values_NM, tf.qint8), tf.convert_to_tensor(bias_M)]
    inputs += limits()
    types = {'T1': tf.quint8, 'T2': tf.qint8, 'Tbias': tf.float32, 'Toutput': tf.float32}
    attributes = {name: tf.AttrValue(type=kind.as_datatype_enum) for name, kind in types.items()}
    attributes.update({name: tf.AttrValue(b=True) for name in ('is_weight_const', 'is_bias_const')})
    attributes.update(input_quant_mode=tf.AttrValue(s=b'MIN_FIRST'), _kernel=tf.AttrValue(s=b'QuantizedMklOp'))
    product = tf.get_default_graph().create_op('_MklQuantizedMatMulWithBiasAndDequantize', inputs, [tf.float32],
                                               attrs=attributes, name='whole_product').outputs[0]
    product.set_shape([None, values_NM.shape.as_list()[1]])
    return product


def load(sess, weights, read):
    """Round matrices and assign them, all at the same time, and once in a session.

    weights: as weights_of returns them.  read: function that returns the float32 array of a name, as a checkpoint has it.
    Raises ValueError for a second time, and as rounded does.
    """
    if any(sess in weight.sessions for weight, _ in weights.values()):
        raise ValueError('a session takes 8-bit weights once, as oneDNN packs them once; take another session')

    def feeds(name):
        array = read(name)  # [1, N, M], or the token embedding, [M, N]
        return weights[name][0].feeds(array[0] if array.ndim == 3 else array.T, name)

    with futures.ThreadPoolExecutor(process.n_cores()) as pool:
        found = list(pool.map(feeds, weights))
    variables = [variable for weight, _ in weights.values() for part in weight.parts for variable in part]
    sess.run([variable.initializer for variable in variables], dict(pair for pairs in found for pair in pairs.items()))
    for weight, _ in weights.values():
        weight.sessions.add(sess)


def limits():
    """The least and greatest byte, value and bias, which say that they stand for themselves: made once in a graph."""
    graph = tf.get_default_graph()
    if not hasattr(graph, 'int8_limits'):
        with tf.control_dependencies(None):  # outside of every loop
            graph.int8_limits = [tf.constant(number) for number in (0.0, 255.0, -127.0, 127.0, 0.0, 0.0)]
    return graph.int8_limits


def rounded(weight_NM, name):
    """(values, scale) of a matrix: each column's largest magnitude becomes 127.

    weight_NM: float32.  Raises ValueError, with the name, for numbers that are not finite.
    """
    magnitude_M = np.maximum(weight_NM.max(axis=0), -weight_NM.min(axis=0))
    if not np.isfinite(magnitude_M).all():
        raise ValueError('%s holds numbers that are not finite; they cannot be rounded to 8 bits' % name)
    scale_M = np.where(magnitude_M > 0, magnitude_M, 1).astype(np.float32) / np.float32(127)
    steps_NM = weight_NM / scale_M
    return np.rint(steps_NM, out=steps_NM).astype(np.int8), scale_M


def getter(n_parts):
    """What tf.variable_scope takes as custom_getter so that a network is built with Weights instead of matrices.

    n_parts: of each Weight.
    """
    def get(getter, name, shape, **options):
        is_table = name.endswith('/wte')
        if not is_table and not name.endswith('/w'):
            return getter(name=name, shape=shape, **options)
        n_in, n_out = shape[::-1] if is_table else shape[1:]
        axis = 0 if n_in > n_out else 1
        parts = []
        for i, numbers in enumerate(np.array_split(np.arange(max(n_in, n_out)), n_parts)):
            shape_NM = [len(numbers), n_out] if axis == 0 else [n_in, len(numbers)]
            kinds = (tf.int8, shape_NM), (tf.float32, shape_NM[1:]), (tf.float32, shape_NM[1:])
            parts.append(Part(*[getter(**dict(options, name='%s/int8_%d/%s' % (name, i, field), shape=size, dtype=kind,
                                              initializer=tf.zeros_initializer(), trainable=False))
                                for field, (kind, size) in zip(Part._fields, kinds)]))
        weight = Weight(parts, axis, getter(name=name, shape=shape, **options) if is_table else None)
        return weights_of(tf.get_default_graph()).setdefault(name, (weight, shape))[0]

    return get


def weights_of(graph):
    """{name: (Weight, shape of the variable that it replaces)} of a graph."""
    if not hasattr(graph, 'int8_weights'):
        graph.int8_weights = {}
    return graph.int8_weights


@functools.lru_cache(maxsize=None)  # once
def check():
    """Raises ValueError where 8-bit weights cannot be computed, or would be computed wrong."""
    with tf.Graph().as_default(), tf.Session(config=tf.ConfigProto(device_count={'GPU': 0})) as sess:
        # Where a processor adds up products in 16 bits, these sums are too large for it.
        largest = tf.fill([2, 64], np.uint8(255)), tf.fill([64, 32], np.int8(127)), tf.fill([32], np.float32(-128 * 64 * 127))
        try:
            is_right = (sess.run(whole_product(*largest)) == 64 * 127 * 127).all()
        except (AttributeError, ValueError, RuntimeError, tf.errors.OpError):
            is_right = False
    if not is_right:
        raise ValueError('TensorFlow %s on this processor cannot multiply 8-bit weights; use --precision float32, or '
                         'TensorFlow 2.x on an x86 processor with AVX-512 or AVX-VNNI' % tf.__version__)
