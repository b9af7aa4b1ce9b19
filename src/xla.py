"""The decoding loop as one program, which XLA makes for a GPU.

Without it, TensorFlow runs a thousand operations for a token, and the GPU waits for each; XLA joins them to far fewer kernels.
All sizes are fixed when the program is made, in the first run: the texts' number, and the positions that their cache has.
Shapes as in model.py.
"""
import functools

import int8
import model
from tf1 import tf, xla_dynamic_update_slice


def is_known():
    """Whether this TensorFlow can ask XLA for a program: 2.x can."""
    return xla_dynamic_update_slice is not None


@functools.lru_cache(maxsize=None)  # once
def works():
    """Whether XLA makes programs for the devices here. For a GPU it needs parts of CUDA that not each installation has."""
    if not is_known():
        return False
    with tf.Graph().as_default(), tf.Session() as sess:
        exponential = tf.function(tf.exp, autograph=False, jit_compile=True)
        try:
            return bool(sess.run(exponential(tf.constant(0, tf.float64))) == 1)
        except tf.errors.OpError:
            return False


def decoding_loop(hparams, prompt_BT, context_BC, n_total, choose):
    """The loop of sample.sample_sequence as one program.

    prompt_BT: int32 [B, T], what all rows are given.  context_BC: int32, B known, all that they are given.
    n_total: number of columns of the longest row.  choose: as it stands there.
    Returns int32 [B, up to n_total].
    Raises ValueError for a network of 8-bit weights, whose products XLA does not have.
    """
    batch, n_prompt = context_BC.shape.as_list()[0], model.size(prompt_BT, 1)
    n_most = n_total if isinstance(n_total, int) else hparams.n_ctx + 1
    text_BS = tf.pad(context_BC, [[0, 0], [0, n_most - model.size(context_BC, 1)]])
    text_BS.set_shape([batch, n_most])
    with tf.variable_scope('model', reuse=tf.AUTO_REUSE):
        _, present = model.transform(hparams, prompt_BT, last_alone=True)
    if int8.weights_of(tf.get_default_graph()):
        raise ValueError('8-bit weights cannot be compiled; leave out compiled, or take float32')
    past = [tf.pad(x_GTK, [[0, 0], [0, n_most - 1 - n_prompt], [0, 0]]) for x_GTK in present]  # the last token is never fed
    for x_GSK in past:
        x_GSK.set_shape([batch * hparams.n_head, n_most - 1, hparams.n_embd // hparams.n_head])

    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def run(n_seen, n_total, text_BS, past):
        def unfinished(n_seen, ended_B, text_BS, *past):
            return tf.logical_and(n_seen < n_total, tf.logical_not(tf.reduce_all(ended_B)))

        def step(n_seen, ended_B, text_BS, *past):
            fed_B = tf.gather(text_BS, n_seen - 1, axis=1)  # for NO_TOKEN, XLA takes the first row; nobody reads what follows
            logits_BV, past = model.decode_in_place(hparams, fed_B, n_seen - 1, past)
            given_B = tf.gather(text_BS, n_seen, axis=1)
            token_B, ended_B = choose(logits_BV, n_seen, tf.range(batch), given_B, ended_B, from_list=False)
            text_BS = xla_dynamic_update_slice(text_BS, token_B[:, None], tf.stack([0, n_seen]))
            return [n_seen + 1, ended_B, text_BS] + past

        return tf.while_loop(unfinished, step, [n_seen, tf.fill([batch], False), text_BS] + past)[:3]

    n_seen, _, text_BS = run(n_prompt, n_total, text_BS, past)
    return text_BS[:, :n_seen]
