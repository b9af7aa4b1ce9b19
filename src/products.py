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
LARGE = 2 ** 21  # numbers in a weight; with smaller ones columns do not pay

# How product() goes about it:
# n: into how many pieces it cuts the sum, a number or a tensor
# x_shape: [n, R, N / n] with -1 for the last
# n_texts: how many texts it copies weights for, or None to leave them as they are
Pieces = namedtuple('Pieces', 'n x_shape n_texts')


def pieces_of(n_rows, n_texts=None):
    """The Pieces for an x of n_rows, a number or a tensor. Only one row is cut; several are work enough for all cores.

    n_texts: of how many texts the rows are, for products that a loop makes again and again: where oneDNN multiplies, weights
        are copied first, outside of all loops, in the order that is read fastest. None: unknown, and they are left as they are.
    """
    if not on_onednn():
        n_texts = None
    if isinstance(n_rows, int):
        n = PIECES if n_rows == 1 else 1
    else:
        n = 1 if several(n_texts) else tf.where(tf.equal(n_rows, 1), PIECES, 1)
    return Pieces(n, tf.stack([n, n_rows, -1]), n_texts)


def several(n_texts):
    """Whether there are, for sure, more texts than one."""
    return n_texts is not None and n_texts > 1


def product(x_RN, weight_1NM, pieces):
    """x times weight: float32 [R, M]. pieces: as pieces_of() gives it for these rows."""
    _, n_in, width = weight_1NM.shape.as_list()
    if pieces.n_texts == 1 and width <= n_in:
        return product_with_transposed(x_RN, weight_1NM)
    if several(pieces.n_texts) and n_in * width >= LARGE and width % COLUMNS == 0:
        return product_by_columns(x_RN, weight_1NM)
    if n_in % PIECES or isinstance(pieces.n, int) and pieces.n == 1:
        return tf.matmul(x_RN, tf.squeeze(weight_1NM, axis=0))
    x_PRN = tf.reshape(x_RN, pieces.x_shape)
    return tf.reduce_sum(tf.matmul(x_PRN, tf.reshape(weight_1NM, [pieces.n, -1, width])), axis=0)


def product_with_transposed(x_RN, weight_1NM):
    """x times weight, from a transposed copy: oneDNN reads its rows one after the other, 0.7 of the time for one row of x."""
    with tf.control_dependencies(None):  # outside of the loop
        weight_MN = tf.transpose(tf.squeeze(weight_1NM, axis=0))
    return tf.matmul(x_RN, weight_MN, transpose_b=True)


def product_by_columns(x_RN, weight_1NM):
    """x times weight, from a copy with COLUMNS columns together: 0.5 to 0.9 of the time for 2 to 128 rows of x."""
    _, n_in, width = weight_1NM.shape.as_list()
    with tf.control_dependencies(None):  # outside of the loop
        weight_PNC = tf.transpose(tf.reshape(weight_1NM, [n_in, -1, COLUMNS]), [1, 0, 2])
    product_PRC = tf.matmul(x_RN[None], weight_PNC)
    return tf.reshape(tf.transpose(product_PRC, [1, 0, 2]), [-1, width])


def batched_product(a_BTN, b_BNM, one_row, transpose_b=False):
    """What tf.matmul makes of many small matrices.

    one_row: bool, or bool scalar, whether T is 1: oneDNN then takes four times as long to begin as the product takes.
    """
    def by_onednn():
        return tf.matmul(a_BTN, b_BNM, transpose_b=transpose_b)

    def without():
        return tf.raw_ops.BatchMatMulV3(x=a_BTN, y=b_BNM, Tout=tf.float32, adj_y=transpose_b)  # oneDNN has none of these

    if one_row is False or not on_onednn():
        return by_onednn()
    return without() if one_row is True else tf.cond(one_row, without, by_onednn)


def on_onednn():
    """Whether oneDNN multiplies: in TensorFlow 2.x on x86 without a GPU, unless it is switched off."""
    return (hasattr(tf, 'config') and hasattr(tf.config, 'list_physical_devices')
            and platform.machine() in ('x86_64', 'AMD64') and os.environ['TF_ENABLE_ONEDNN_OPTS'] != '0'
            and not tf.config.list_physical_devices('GPU'))


def product_with_rows(x_RN, weight_MN):
    """x times the transposed weight, for a weight of many rows and an x of few: float32 [R, M]."""
    if x_RN.shape.as_list()[0] == 1 and on_onednn():
        return tf.matmul(x_RN, weight_MN, transpose_b=True)
    n_rows = weight_MN.shape.as_list()[0]
    ends = [n_rows * i // BLOCKS for i in range(BLOCKS + 1)]
    blocks = tf.split(weight_MN, [end - begin for begin, end in zip(ends, ends[1:]) if end > begin])
    return tf.transpose(tf.concat([tf.matmul(block_MN, x_RN, transpose_b=True) for block_MN in blocks], axis=0))
