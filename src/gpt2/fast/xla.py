"""XLA, which compiles the decoding loop to one program for a GPU.

Otherwise TensorFlow runs a thousand operations for a token, and the GPU waits for each; XLA fuses them into far fewer
kernels. All sizes are fixed when the program is compiled, in the first run: the number of texts, and of positions in
their past.
"""
import functools

from gpt2.fast.cache import Past
from gpt2.system.tf1 import size, tf, xla_ops


def is_supported():
    """Whether this TensorFlow can ask XLA to compile a function: 2.x can."""
    return xla_ops() is not None


@functools.lru_cache(maxsize=None)  # once
def is_usable():
    """Whether XLA compiles for the devices here. For a GPU it needs parts of CUDA that not every installation has."""
    if not is_supported():
        return False
    with tf.Graph().as_default(), tf.Session() as sess:
        try:
            return bool(sess.run(compiled(tf.exp)(tf.constant(0, tf.float64))) == 1)
        except tf.errors.OpError:
            return False


def compiled(function):
    """The function, compiled by XLA at its first run for the sizes of its arguments. Also a decorator."""
    return tf.function(function, autograph=False, jit_compile=True)


def write_column(x_BS, column_B, number):
    """x with another column: [B, S]. number: scalar int32."""
    return xla_ops().xla_dynamic_update_slice(x_BS, column_B[:, None], tf.stack([0, number]))


class FixedPast(Past):
    """A past of a fixed size, in which the one new token of each text is written in place.

    token_B1: int32.  before: keys and values, L tensors [G, S, K].  n_before: scalar tensor, how many positions are
    taken. The attribute `new` has them with the new token, L tensors [G, S, K].
    """

    def __init__(self, hparams, token_B1, before, n_before):
        super(FixedPast, self).__init__(hparams, token_B1, n_before=n_before, n_positions=size(before[0], -2))
        self.before = before

    def append(self, layer, k_G1K, v_G1K):
        """The keys and the values of all tokens so far, and zeros for the positions after them: float32 [G, S, K]."""
        place = tf.stack([0, self.n_before, 0])
        pair = [xla_ops().xla_dynamic_update_slice(old_GSK, new_G1K, place)
                for old_GSK, new_G1K in zip(self.before[2 * layer:2 * layer + 2], (k_G1K, v_G1K))]
        self.new += pair
        return pair

    def over_heads(self, attend, q_G1K, k_GSK, v_GSK, drop):
        """attend() of all heads. Returns the heads of each token side by side: float32 [B, D]."""
        return tf.reshape(attend(q_G1K, k_GSK, v_GSK, self.mask, drop), [self.batch, self.n_head * self.head_size])
