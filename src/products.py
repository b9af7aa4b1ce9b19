"""Products of rows with the weights as the release lays them out, in the forms in which TensorFlow reads these fastest.

Sampling reads every weight for each token and multiplies it with a row or a few: reading is what takes the time. The forms
differ by rounding alone. `make bench` measures them.

R rows  N, M any width  P pieces  C columns
"""
from collections import namedtuple
import os
import platform

from tf1 import tf

PIECES = 4  # of a product of one row, so that no core is idle: TensorFlow 1.x would do the whole on one
BLOCKS = 32  # of a product with many rows of weights: it is short then, and its output in the cache
COLUMNS = 16  # of a weight, put together for products of several rows: oneDNN then reads memory in order
LARGE = 2 ** 21  # numbers in a weight; with smaller ones that does not pay

# How product() goes about it:
# n: into how many pieces it cuts the sum, a number or a tensor
# x_shape: [n, R, N / n] with -1 for the last
# by_columns: bool, or bool scalar, whether it multiplies with the columns of large weights, COLUMNS at a time
Pieces = namedtuple('Pieces', 'n x_shape by_columns')


def pieces_of(n_rows, by_columns=False):
    """The Pieces for an x of n_rows, a number or a tensor. Only one row is cut; several are work enough for all cores.

    by_columns: whether to copy large weights first, which pays for many products of several rows. A tensor comes from outside
        of the loop that multiplies, since the copies are made there, once.
    """
    if by_columns is True or isinstance(n_rows, int) and n_rows != 1:
        n = 1
    elif isinstance(n_rows, int) and by_columns is False:
        n = PIECES
    else:
        n = tf.where(tf.logical_and(tf.equal(n_rows, 1), tf.logical_not(by_columns)), PIECES, 1)
    return Pieces(n, tf.stack([n, n_rows, -1]), by_columns)


def product(x_RN, weight_1NM, pieces):
    """x times weight: float32 [R, M]. pieces: as pieces_of() gives it for these rows."""
    _, n_in, width = weight_1NM.shape.as_list()
    by_columns = pieces.by_columns is not False and n_in * width >= LARGE and width % COLUMNS == 0
    if n_in % PIECES or not by_columns and isinstance(pieces.n, int) and pieces.n == 1:
        return tf.matmul(x_RN, tf.squeeze(weight_1NM, axis=0))
    x_PRN = tf.reshape(x_RN, pieces.x_shape)
    if not by_columns:
        return tf.reduce_sum(tf.matmul(x_PRN, tf.reshape(weight_1NM, [pieces.n, -1, width])), axis=0)
    with tf.control_dependencies(None):  # outside of the loop
        n_columns = tf.where(pieces.by_columns, COLUMNS, width)
        weight_PNC = tf.transpose(tf.reshape(weight_1NM, [n_in, -1, n_columns]), [1, 0, 2])  # copies nothing if P is 1
    product_PRC = tf.matmul(x_PRN, tf.reshape(weight_PNC, [-1, n_in // pieces.n, n_columns]))
    summed_PRC = tf.reduce_sum(tf.reshape(product_PRC, [pieces.n, -1, pieces.x_shape[1], n_columns]), axis=0)
    return tf.reshape(tf.transpose(summed_PRC, [1, 0, 2]), [-1, width])


def columns_pay(n_texts):
    """Whether to multiply by columns for so many texts, a number or a tensor: a bool, or a bool scalar outside of any loop.

    Where oneDNN multiplies, it takes two thirds to four fifths of the time at 2 to 256 rows. Others take longer.
    """
    if not on_onednn():
        return False
    if isinstance(n_texts, int):
        return n_texts > 1
    with tf.control_dependencies(None):
        return tf.greater(n_texts, 1)


def on_onednn():
    """Whether oneDNN multiplies: in TensorFlow 2.x on x86 without a GPU, unless it is switched off."""
    return (hasattr(tf, 'config') and hasattr(tf.config, 'list_physical_devices')
            and platform.machine() in ('x86_64', 'AMD64') and os.environ['TF_ENABLE_ONEDNN_OPTS'] != '0'
            and not tf.config.list_physical_devices('GPU'))


def product_with_rows(x_RN, weight_MN):
    """x times the transposed weight, for a weight of many rows and an x of few: float32 [R, M]."""
    n_rows = weight_MN.shape.as_list()[0]
    ends = [n_rows * i // BLOCKS for i in range(BLOCKS + 1)]
    blocks = tf.split(weight_MN, [end - begin for begin, end in zip(ends, ends[1:]) if end > begin])
    return tf.transpose(tf.concat([tf.matmul(block_MN, x_RN, transpose_b=True) for block_MN in blocks], axis=0))
