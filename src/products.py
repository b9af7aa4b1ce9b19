"""Products of rows with the weights as the release lays them out, in the forms in which TensorFlow reads these fastest.

Sampling reads every weight for each token and multiplies it with a row or a few: reading is what takes the time. The forms
differ by rounding alone. `make bench` measures them.

R rows  N, M any width  P pieces
"""
from collections import namedtuple
import os
import platform

from tf1 import tf

AT_ONCE = 2  # pieces of a product that run at the same time while sampling with oneDNN, which shares a product at more cost
PIECES = 4  # of a product of one row, so that no core is idle: TensorFlow 1.x would do the whole on one
BLOCKS = 32  # of a product with many rows of weights: it is short then, and its output in the cache
ALIGNED = 16  # numbers: a weight whose rows begin at multiples of 64 bytes takes three quarters of the time for many rows of x

# How product() cuts the sum:
# n: into how many pieces, a number or a tensor
# x_shape: [n, R, N / n] with -1 for the last, or None: then each piece is an operation of its own
Pieces = namedtuple('Pieces', 'n x_shape')


def pieces_of(n_rows, sampling=False):
    """The Pieces for an x of n_rows, a number or a tensor. sampling: whether it is for one token after the other."""
    if on_onednn():
        return Pieces(AT_ONCE if sampling else 1, None)
    if isinstance(n_rows, int):
        n = PIECES if n_rows == 1 else 1  # several rows are work enough for all cores
    else:
        n = tf.where(tf.equal(n_rows, 1), PIECES, 1)
    return Pieces(n, tf.stack([n, n_rows, -1]))


def product(x_RN, weight_1NM, pieces):
    """x times weight: float32 [R, M]. pieces: as pieces_of() gives it for these rows."""
    _, n_in, width = weight_1NM.shape.as_list()
    if isinstance(pieces.n, int) and (pieces.n == 1 or n_in % pieces.n) or n_in % PIECES:
        return tf.matmul(x_RN, tf.squeeze(weight_1NM, axis=0))
    weight_PNM = tf.reshape(weight_1NM, [pieces.n, -1, width])
    if pieces.x_shape is None:
        pairs = zip(tf.split(x_RN, pieces.n, axis=-1), tf.unstack(weight_PNM))
        return tf.add_n([tf.matmul(piece_RN, weight_NM) for piece_RN, weight_NM in pairs])
    return tf.reduce_sum(tf.matmul(tf.reshape(x_RN, pieces.x_shape), weight_PNM), axis=0)


def product_with_rows(x_RN, weight_MN, n_texts=None):
    """x times the transposed weight, for a weight of many rows and an x of few: float32 [R, M].

    n_texts: of how many texts the rows are, for a product that a loop makes again and again: where oneDNN multiplies, the
        weight is transposed first, outside of all loops. None: unknown, and it is left as it is.
    """
    n_rows = weight_MN.shape.as_list()[0]
    if n_texts is not None and on_onednn():
        with tf.control_dependencies(None):  # outside of the loop
            if n_texts > 1:
                nothing_MN = tf.zeros([-n_rows % ALIGNED, x_RN.shape.as_list()[-1]])
                weight_MN = tf.concat([weight_MN, nothing_MN], axis=0)  # tf.pad takes four times as long
            weight_NM = tf.transpose(weight_MN)
        return product(x_RN, weight_NM[None], pieces_of(n_texts, sampling=True))[:, :n_rows]
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
