"""Products of rows with the weights as the release lays them out, in the forms in which TensorFlow reads these fastest.

Sampling reads every weight for each token and multiplies it with a row or a few: reading is what takes the time. The forms
differ by rounding alone. `make bench` measures them.

R rows  N, M any width  P pieces
"""
from collections import namedtuple
import os
import platform

from tf1 import tf

AT_ONCE = 2  # shares of the work at the same time while sampling with oneDNN, which would divide each operation at more cost
PIECES = 4  # of a product of one row, so that no core is idle: TensorFlow 1.x would do the whole on one
BLOCKS = 32  # of a product with many rows of weights: it is short then, and its output in the cache
ALIGNED = 16  # numbers: a weight whose rows begin at multiples of 64 bytes takes three quarters of the time for many rows of x

# How product() cuts the sum:
# at_once: into how many shares, each multiplied by an operation of its own, all at the same time
# batch_shape: [P, R, N / P], the shape of x as a batch for one operation; None: it is not cut
Pieces = namedtuple('Pieces', 'at_once batch_shape')


def pieces_of(n_rows, sampling=False):
    """The Pieces for an x of n_rows, a number or a tensor. sampling: whether it is for one token after the other."""
    if on_onednn():
        return Pieces(AT_ONCE if sampling else 1, None)
    if isinstance(n_rows, int):
        return Pieces(1, [PIECES, 1, -1] if n_rows == 1 else None)  # several rows are work enough for all cores
    return Pieces(1, tf.stack([tf.where(tf.equal(n_rows, 1), PIECES, 1), n_rows, -1]))


def shares(x, axis, n):
    """x in n parts along an axis, of the same size but for the first, which has what is left over as well."""
    if n == 1:
        return [x]
    known = x.shape.as_list()[axis]
    size = tf.shape(x)[axis] if known is None else known
    return tf.split(x, [size - size // n * (n - 1)] + [size // n] * (n - 1), axis=axis, num=n)


def product(x_RN, weight_1NM, pieces, activation=None):
    """x times weight: float32 [R, M].

    pieces: as pieces_of() gives it for these rows.  activation: a function of each number alone that x passes through first.
    """
    activation = activation or (lambda x: x)
    _, n_in, width = weight_1NM.shape.as_list()
    if pieces.at_once > 1 and n_in % pieces.at_once == 0:
        with tf.control_dependencies(None):  # outside of the loop
            weights = tf.unstack(tf.reshape(weight_1NM, [pieces.at_once, -1, width]))
        x_shares = shares(x_RN, -1, pieces.at_once)
        return tf.add_n([tf.matmul(activation(share_RN), weight_NM) for share_RN, weight_NM in zip(x_shares, weights)])
    x_RN = activation(x_RN)
    if pieces.batch_shape is None or n_in % PIECES:
        return tf.matmul(x_RN, tf.squeeze(weight_1NM, axis=0))
    weight_PNM = tf.reshape(weight_1NM, [pieces.batch_shape[0], -1, width])
    return tf.reduce_sum(tf.matmul(tf.reshape(x_RN, pieces.batch_shape), weight_PNM), axis=0)


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
            weight_1NM = tf.transpose(weight_MN)[None]
        return product(x_RN, weight_1NM, pieces_of(n_texts, sampling=True))[:, :n_rows]
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
