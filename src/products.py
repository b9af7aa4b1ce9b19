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
COLUMNS = 32  # of a weight, put together: oneDNN then reads memory in order
LARGE = 2 ** 21  # numbers in a weight; with smaller ones columns do not pay for several rows
ALIGNED = 16  # numbers: a weight whose rows begin at multiples of 64 bytes takes three quarters of the time, but for one row of x

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
    if on_onednn():  # which shares one row among the cores by itself
        return Pieces(1, None, n_texts)
    if isinstance(n_rows, int):
        n = PIECES if n_rows == 1 else 1
    else:
        n = tf.where(tf.equal(n_rows, 1), PIECES, 1)
    return Pieces(n, tf.stack([n, n_rows, -1]), None)


def product(x_RN, weight_1NM, pieces):
    """x times weight: float32 [R, M]. pieces: as pieces_of() gives it for these rows."""
    _, n_in, width = weight_1NM.shape.as_list()
    if pieces.n_texts is not None and width % COLUMNS == 0:
        if width <= n_in if pieces.n_texts == 1 else n_in * width >= LARGE:
            return product_by_columns(x_RN, weight_1NM)
    if n_in % PIECES or isinstance(pieces.n, int) and pieces.n == 1:
        return tf.matmul(x_RN, tf.squeeze(weight_1NM, axis=0))
    x_PRN = tf.reshape(x_RN, pieces.x_shape)
    return tf.reduce_sum(tf.matmul(x_PRN, tf.reshape(weight_1NM, [pieces.n, -1, width])), axis=0)


def product_by_columns(x_RN, weight_1NM):
    """x times weight, from a copy with COLUMNS columns together: 0.5 to 0.9 of the time for 1 to 128 rows of x."""
    _, n_in, width = weight_1NM.shape.as_list()
    with tf.control_dependencies(None):  # outside of the loop
        weight_PNC = tf.transpose(tf.reshape(weight_1NM, [n_in, -1, COLUMNS]), [1, 0, 2])
    product_PRC = tf.matmul(x_RN[None], weight_PNC)
    if x_RN.shape.as_list()[0] != 1:  # of one row the columns are in order already
        product_PRC = tf.transpose(product_PRC, [1, 0, 2])
    return tf.reshape(product_PRC, [-1, width])


def product_with_rows(x_RN, weight_MN, n_texts=None):
    """x times the transposed weight, for a weight of many rows and an x of few: float32 [R, M]. n_texts: as pieces_of() takes it."""
    n_rows = weight_MN.shape.as_list()[0]
    if n_texts is not None and on_onednn():
        with tf.control_dependencies(None):  # outside of the loop
            if n_texts > 1:
                nothing_MN = tf.zeros([-n_rows % ALIGNED, x_RN.shape.as_list()[-1]])
                weight_MN = tf.concat([weight_MN, nothing_MN], axis=0)  # tf.pad takes four times as long
            weight_NM = tf.transpose(weight_MN)
        return tf.matmul(x_RN, weight_NM)[:, :n_rows]
    ends = [n_rows * i // BLOCKS for i in range(BLOCKS + 1)]
    blocks = tf.split(weight_MN, [end - begin for begin, end in zip(ends, ends[1:]) if end > begin])
    return tf.transpose(tf.concat([tf.matmul(block_MN, x_RN, transpose_b=True) for block_MN in blocks], axis=0))


def batched_product(a_BTN, b_BNM, one_row, transpose_b=False):
    """What tf.matmul makes of many small matrices.

    one_row: whether T is 1: oneDNN then takes four times as long to begin as the product takes.
    """
    if one_row and on_onednn():
        return tf.raw_ops.BatchMatMulV3(x=a_BTN, y=b_BNM, Tout=tf.float32, adj_y=transpose_b)  # oneDNN has none of these
    return tf.matmul(a_BTN, b_BNM, transpose_b=transpose_b)


def on_onednn():
    """Whether oneDNN multiplies: in TensorFlow 2.x on x86 without a GPU, unless it is switched off."""
    return (hasattr(tf, 'config') and hasattr(tf.config, 'list_physical_devices')
            and platform.machine() in ('x86_64', 'AMD64') and os.environ['TF_ENABLE_ONEDNN_OPTS'] != '0'
            and not tf.config.list_physical_devices('GPU'))
