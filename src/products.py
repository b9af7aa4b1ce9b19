"""Products of a few rows with a matrix, in the forms in which TensorFlow reads the weights fastest, as the release lays them out.

The forms differ by rounding alone. Sampling reads every weight for each token and multiplies it with a row or a few, so
that reading, not multiplying, is what takes the time. `make bench` measures it.

R rows  N, M any width
"""
from tf1 import tf

# TensorFlow 1.x multiplies a single row on one core. Cut into this many pieces, the product has work for as many.
PIECES = 4 if tf.__version__.startswith('1.') else 1
# Many short products keep all cores busy, and what they write in the cache. 1.x does the whole at a quarter of the speed.
BLOCKS = 32


def product(x_RN, weight_NM):
    """x times weight: float32 [R, M]."""
    n_in, width = weight_NM.shape.as_list()
    if PIECES == 1 or n_in % PIECES:
        return tf.matmul(x_RN, weight_NM)
    n_piece = tf.where(tf.equal(tf.shape(x_RN)[0], 1), PIECES, 1)  # several rows are work enough as they are
    x_PRN = tf.transpose(tf.reshape(x_RN, [-1, n_piece, n_in // n_piece]), [1, 0, 2])
    return tf.reduce_sum(tf.matmul(x_PRN, tf.reshape(weight_NM, [n_piece, n_in // n_piece, width])), axis=0)


def product_with_rows(x_RN, weight_MN):
    """x times the transposed weight, for a weight of many rows and an x of few: float32 [R, M]."""
    n_rows = weight_MN.shape.as_list()[0]
    sizes = [n_rows * (i + 1) // BLOCKS - n_rows * i // BLOCKS for i in range(BLOCKS)]
    blocks = tf.split(weight_MN, [size for size in sizes if size])
    return tf.transpose(tf.concat([tf.matmul(block_MN, x_RN, transpose_b=True) for block_MN in blocks], axis=0))
