"""Networks in a session, run as a whole or a piece at a time, and how two results are compared."""
import numpy as np

from gpt2.fast import matmul
import model
from gpt2.system.tf1 import tf
from helpers import reference, tiny


def random_tokens(hparams, shape, *, seed=0):
    return np.random.RandomState(seed).randint(hparams.n_vocab, size=shape)


def run_model(sess, hparams, tokens, weights):
    """Build model() and its losses, give it the weights. Returns logits, present, losses as arrays."""
    tokens_BT = tf.placeholder(tf.int32, [None, None])
    output = model.model(hparams, tokens_BT)
    losses_BT = model.token_losses(output['logits'], tokens_BT)
    tiny.assign(sess, weights)
    return sess.run([output['logits'], output['present'], losses_BT], {tokens_BT: tokens})


def decode(hparams, tokens_BT, cache):
    """Feed more tokens of each text, as sample.py's loop does.

    Returns the logits of each text's next token, float32 [B, V], and the Cache with the new tokens.
    """
    past = cache.past(hparams, tokens_BT)
    with tf.variable_scope('model', reuse=tf.AUTO_REUSE, custom_getter=matmul.sampling_weights()):
        logits_BV = model.unembed(hparams, model.decoder(hparams, tokens_BT, past)[-1])
    return logits_BV, cache.add(past.new)


def assert_close(ours, theirs, *, tolerance=reference.ROUNDING):
    """Equal in shape, and within `tolerance` times the span of theirs everywhere."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours - theirs).max() / (theirs.max() - theirs.min())
    assert difference <= tolerance, 'differs by %.1e of the span; %.1e is allowed' % (difference, tolerance)
