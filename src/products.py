"""Products of rows with the weights as the release lays them out, in the forms in which TensorFlow reads these fastest.

Sampling reads every weight for each token and multiplies it with a row or a few: reading is what takes the time. The forms
differ by rounding alone. `make bench` measures them.

R rows  N, M any width  P pieces
"""
from collections import namedtuple

from tf1 import tf

PIECES = 4  # of a product of one row, so that no core is idle: TensorFlow 1.x would do the whole on one
BLOCKS = 32  # of a product with many rows of weights: it is short then, and its output in the cache


# How product() cuts: n, P, a number or a tensor, and x_shape, [P, R, N / P] with -1 for the last.
Pieces = namedtuple('Pieces', 'n x_shape')


def pieces_of(n_rows):
    """The Pieces for an x of n_rows, a number or a tensor. Only one row is cut; several are work enough for all cores."""
    if isinstance(n_rows, int):
        n = PIECES if n_rows == 1 else 1
    else:
        n = tf.where(tf.equal(n_rows, 1), PIECES, 1)
    return Pieces(n, tf.stack([n, n_rows, -1]))


def product(x_RN, weight_1NM, pieces):
    """x times weight: float32 [R, M]. pieces: as pieces_of() gives it for these rows."""
    _, n_in, width = weight_1NM.shape.as_list()
    if n_in % PIECES or isinstance(pieces.n, int) and pieces.n == 1:
        return tf.matmul(x_RN, tf.squeeze(weight_1NM, axis=0))
    weight_PNM = tf.reshape(weight_1NM, [pieces.n, -1, width])
    return tf.reduce_sum(tf.matmul(tf.reshape(x_RN, pieces.x_shape), weight_PNM), axis=0)


def product_with_rows(x_RN, weight_MN):
    """x times the transposed weight, for a weight of many rows and an x of few: float32 [R, M]."""
    n_rows = weight_MN.shape.as_list()[0]
    ends = [n_rows * i // BLOCKS for i in range(BLOCKS + 1)]
    blocks = tf.split(weight_MN, [end - begin for begin, end in zip(ends, ends[1:]) if end > begin])
    return tf.transpose(tf.concat([tf.matmul(block_MN, x_RN, transpose_b=True) for block_MN in blocks], axis=0))
