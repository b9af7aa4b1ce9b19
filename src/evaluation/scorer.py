"""For each token of a text: the nats that it costs to predict, its rank, and what else the model thought in its place."""
import numpy as np

from evaluation.protocols import Predictions
import kernels
import model
import process
from tf1 import tf

LOGIT_ROWS = 512  # the logits of so many positions are in memory at once: 100 MB for the release's vocabulary


def scorer(sess, hparams):
    """A function score(ids, first=1) that returns what tokens cost to predict, in nats: float32 [B, T - first].

    ids: int [B, T], T up to n_ctx + 1: the last token is predicted, and not fed.  first: the first token to score.
    The model under 'model' is built, or reused if it is there.
    """
    run = by_position(sess, hparams, lambda logits_BNV, nats_BN, token_BN: [nats_BN])
    return lambda ids, first=1: run(ids, first)[0]


def guesser(sess, hparams, barred):
    """As scorer, but the function returns (nats, likeliest, likeliest that is not barred), each [B, T - first].

    barred: list of token ids.
    """
    penalty_V = np.zeros(hparams.n_vocab, np.float32)
    penalty_V[barred] = -1e10

    def figures(logits_BNV, nats_BN, token_BN):
        return [nats_BN, tf.argmax(logits_BNV, axis=-1, output_type=tf.int32),
                tf.argmax(logits_BNV + penalty_V, axis=-1, output_type=tf.int32)]

    return by_position(sess, hparams, figures)


def predictor(sess, hparams, n_likeliest=0):
    """As scorer, but the function returns Predictions, of arrays [B, T - first]; their likeliest are None for n_likeliest 0.

    All come of one pass over the logits, and none are kept.
    """
    n_likeliest = min(n_likeliest, hparams.n_vocab)

    def figures(logits_BNV, _, token_BN):
        below_BNV = logits_BNV - tf.reduce_max(logits_BNV, axis=-1, keepdims=True)
        share_BNV = tf.exp(below_BNV)
        total_BN = tf.reduce_sum(share_BNV, axis=-1)
        weighted_BNV = share_BNV * below_BNV
        mean_BN = tf.reduce_sum(weighted_BNV, axis=-1) / total_BN
        square_BN = tf.matmul(weighted_BNV[:, :, None], below_BNV[..., None])[..., 0, 0] / total_BN
        own_BN1 = tf.batch_gather(below_BNV, token_BN[..., None])
        n_likelier_BN = tf.reduce_sum(tf.cast(below_BNV > own_BN1, tf.float32), axis=-1)
        found = [tf.log(total_BN) - own_BN1[..., 0], 1 + tf.cast(n_likelier_BN, tf.int32), tf.log(total_BN) - mean_BN,
                 tf.maximum(square_BN - tf.square(mean_BN), 0)]
        if n_likeliest:
            values_RN, ids_RN = kernels.likeliest(tf.reshape(below_BNV, [-1, hparams.n_vocab]), n_likeliest)
            shape = tf.concat([tf.shape(token_BN), [n_likeliest]], axis=0)
            found += [tf.reshape(ids_RN, shape), tf.log(total_BN)[..., None] - tf.reshape(values_RN, shape)]
        return found

    run = by_position(sess, hparams, figures)
    return lambda ids, first=1: Predictions(*run(ids, first) + ([] if n_likeliest else [None, None]))


def by_position(sess, hparams, figures):
    """A function run(ids [B, T], first) that returns arrays [B, T - first, ...] about predicting ids[:, first:].

    figures: computes them for N positions at a time: from logits [B, N, V], nats and tokens [B, N] a list of tensors [B, N, ...].
    Only the logits from first on are computed, and few at a time: all at once would fill the memory.
    """
    with sess.graph.as_default(), tf.variable_scope('model', reuse=tf.AUTO_REUSE) as scope:
        tokens_BT, first = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.int32, [])
        n_batch, n_token = tf.unstack(tf.shape(tokens_BT))
        hidden_RD, _ = model.transform(hparams, tokens_BT[:, :-1])
        hidden_BTD = tf.reshape(hidden_RD, [n_batch, n_token - 1, hparams.n_embd])
        hidden_BTD = tf.pad(hidden_BTD, [[0, 0], [0, 1], [0, 0]])  # token_losses ignores the last position's logits
        n_piece = tf.maximum(1, LOGIT_ROWS // n_batch)

        def piece(begin, *arrays):
            end = begin + n_piece + 1
            with tf.variable_scope(scope):
                logits_RV = model.unembed(hparams, tf.reshape(hidden_BTD[:, begin:end], [-1, hparams.n_embd]))
            logits_BNV = tf.reshape(logits_RV, [n_batch, -1, hparams.n_vocab])
            nats_BN = model.token_losses(logits_BNV, tokens_BT[:, begin:end])
            found = figures(logits_BNV[:, :-1], nats_BN, tokens_BT[:, begin + 1:end])
            return [end - 1] + [array.write(array.size(), batch_second(x)) for array, x in zip(arrays, found)]

        types = [x.dtype for x in figures(tf.zeros([1, 1, hparams.n_vocab]), tf.zeros([1, 1]), tf.zeros([1, 1], tf.int32))]
        arrays = [tf.TensorArray(dtype, size=0, dynamic_size=True, infer_shape=False) for dtype in types]
        arrays = tf.while_loop(lambda begin, *_: begin < n_token - 1, piece, [first - 1] + arrays,
                               parallel_iterations=1, back_prop=False)[1:]
        outputs = [batch_second(array.concat()) for array in arrays]
    return lambda ids, first_scored=1: process.wait_for(sess.run, outputs, {tokens_BT: ids, first: first_scored})


def batch_second(x):
    """x with its first two axes exchanged, the batch and the positions: TensorArrays are joined along the first one."""
    return tf.transpose(x, tf.concat([[1, 0], tf.range(2, tf.rank(x))], axis=0))
