"""Products of rows with the weights as the release lays them out, in the forms in which TensorFlow multiplies fastest.

Sampling reads every weight for each token and multiplies it with a row or a few: reading is what takes the time. Without a
GPU, the work on a token is cut into shares, operations that run at the same time: to divide each operation among the cores
takes TensorFlow 2.x longer, and 1.x would do a product of one row on one core. The forms differ by rounding alone. `make
bench` measures them.

R rows  N, M any width
"""
import os
import platform

from tf1 import tf

MOST_SHARES = 4  # so many cores read as much as the memory gives, and the more shares, the larger is the graph
BLOCKS = 32  # of a product with many rows of weights: it is short then, and its output in the cache
ALIGNED = 16  # numbers: a weight whose rows begin at multiples of 64 bytes takes three quarters of the time for many rows of x


def n_cores():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def n_shares():
    """Into how many shares the work on a token is cut: one for each core, or all of it for a GPU."""
    return 1 if on_gpu() else min(n_cores(), MOST_SHARES)


def shares(x, axis, n):
    """x in n parts along an axis, of the same size but for the first, which has what is left over as well."""
    if n == 1:
        return [x]
    size = x.shape.as_list()[axis]
    if size is None:
        size = tf.shape(x)[axis]
    elif size % n == 0:
        return tf.split(x, n, axis=axis)
    return tf.split(x, [size - size // n * (n - 1)] + [size // n] * (n - 1), axis=axis, num=n)


def product(x_RN, weight_1NM, n=1, activation=None):
    """x times weight: float32 [R, M].

    n: how many shares of the sum are made at the same time.  activation: a function of each number of x that comes first.
    """
    activation = activation or (lambda x: x)
    _, n_in, width = weight_1NM.shape.as_list()
    if n == 1 or n_in % n:
        return tf.matmul(activation(x_RN), tf.squeeze(weight_1NM, axis=0))
    with tf.control_dependencies(None):  # outside of the loop
        weights = tf.unstack(tf.reshape(weight_1NM, [n, -1, width]))
    return tf.add_n([tf.matmul(activation(share_RN), share_NM) for share_RN, share_NM in zip(shares(x_RN, -1, n), weights)])


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
        return product(x_RN, weight_1NM, n_shares())[:, :n_rows]
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
    return (not tf.__version__.startswith('1.') and platform.machine() in ('x86_64', 'AMD64')
            and os.environ['TF_ENABLE_ONEDNN_OPTS'].lower() not in ('0', 'false') and not on_gpu())


def on_gpu():
    """Whether there is a GPU, or for TensorFlow 1.x, which would take all of its memory to find out, whether it could use one."""
    return tf.test.is_built_with_cuda() if tf.__version__.startswith('1.') else bool(tf.config.list_physical_devices('GPU'))
