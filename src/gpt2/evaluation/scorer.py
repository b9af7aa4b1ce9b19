"""For each token of a text: what it costs to predict, its rank, and what else the model predicts in its place."""
import numpy as np

from gpt2.evaluation.batches import Predictions
from gpt2.fast import matmul, numpy_loop
import model
from gpt2.system import process
from gpt2.system.tf1 import batch_gather, tf

MAX_LOGIT_ROWS = 512  # positions whose logits are in memory at the same time: 100 MB with the released vocabulary
MAX_LITE_ROWS = 128  # as many for LiteRT, whose logits are copied: 26 MB partly stay in a processor's cache


def scorer(sess, hparams, network=None):
    """A function score(ids, first=1) that returns what tokens cost to predict, in nats: float32 [B, T - first].

    ids: int [B, T], T at most n_ctx + 1: the last token is predicted, but not fed.
    first: index of the first token to score.
    network: a lite.Network. None: builds the model under 'model', or uses an existing one.
    """
    if network:
        return lambda ids, first=1: np.concatenate([
            nats_in_numpy(*piece) for piece in logits_in_pieces(network, np.asarray(ids), first)], axis=1)
    run = by_position(sess, hparams, None, lambda logits_BNV, nats_BN, token_BN: [nats_BN])
    return lambda ids, first=1: run(ids, first)[0]


def nats_in_numpy(logits_BNV, token_BN):
    """What tokens [B, N + 1] but the first cost to predict: float32 [B, N]. TensorFlow takes three times as long."""
    total_BN = numpy_loop.log_totals(logits_BNV.reshape(-1, logits_BNV.shape[-1])).reshape(logits_BNV.shape[:2])
    return total_BN - np.take_along_axis(logits_BNV, token_BN[:, 1:, None], axis=-1)[..., 0]


def guesser(sess, hparams, excluded, network=None):
    """Like scorer, but the function returns (nats, most likely ids, most likely ids that are not excluded).

    Each is [B, T - first].  excluded: list of token ids.
    """
    penalty_V = np.zeros(hparams.n_vocab, np.float32)
    penalty_V[excluded] = -1e10

    def figures(logits_BNV, nats_BN, token_BN):
        return [nats_BN, tf.argmax(logits_BNV, axis=-1, output_type=tf.int32),
                tf.argmax(logits_BNV + penalty_V, axis=-1, output_type=tf.int32)]

    return by_position(sess, hparams, network, figures)


def predictor(sess, hparams, n_top=0, network=None):
    """Like scorer, but the function returns Predictions, of arrays [B, T - first], with the n_top most likely tokens.

    All are computed from the logits at once, without keeping these.
    """
    n_top = min(n_top, hparams.n_vocab)

    def figures(logits_BNV, _, token_BN):
        below_BNV = logits_BNV - tf.reduce_max(logits_BNV, axis=-1, keepdims=True)
        share_BNV = tf.exp(below_BNV)
        total_BN = tf.reduce_sum(share_BNV, axis=-1)
        weighted_BNV = share_BNV * below_BNV
        mean_BN = tf.reduce_sum(weighted_BNV, axis=-1) / total_BN
        square_BN = tf.matmul(weighted_BNV[:, :, None], below_BNV[..., None])[..., 0, 0] / total_BN
        own_BN1 = batch_gather(below_BNV, token_BN[..., None])
        n_above_BN = tf.reduce_sum(tf.cast(below_BNV > own_BN1, tf.float32), axis=-1)
        found = [tf.log(total_BN) - own_BN1[..., 0], 1 + tf.cast(n_above_BN, tf.int32), tf.log(total_BN) - mean_BN,
                 tf.maximum(square_BN - tf.square(mean_BN), 0)]
        if n_top:
            values_RN, ids_RN = matmul.top_k(tf.reshape(below_BNV, [-1, hparams.n_vocab]), n_top)
            shape = tf.concat([tf.shape(token_BN), [n_top]], axis=0)
            found += [tf.reshape(ids_RN, shape), tf.log(total_BN)[..., None] - tf.reshape(values_RN, shape)]
        return found

    run = by_position(sess, hparams, network, figures)
    return lambda ids, first=1: Predictions(*run(ids, first))


def by_position(sess, hparams, network, figures):
    """A function run(ids [B, T], first) that returns arrays [B, T - first, ...] about predicting ids[:, first:].

    figures: function(logits [B, N, V], nats [B, N], tokens [B, N]) that returns a list of tensors [B, N, ...].
    It gets few positions at a time, from `first` on: the logits of all would fill the memory.
    network: as scorer takes it.
    """
    if network:
        return by_position_in_litert(sess, hparams, network, figures)
    with sess.graph.as_default(), tf.variable_scope('model', reuse=tf.AUTO_REUSE) as scope:
        tokens_BT, first = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.int32, [])
        n_batch, n_token = tf.unstack(tf.shape(tokens_BT))
        hidden_RD = model.decoder(hparams, tokens_BT[:, :-1])[-1]
        hidden_BTD = tf.reshape(hidden_RD, [n_batch, n_token - 1, hparams.n_embd])
        hidden_BTD = tf.pad(hidden_BTD, [[0, 0], [0, 1], [0, 0]])  # token_losses ignores the last position's logits
        n_piece = tf.maximum(1, MAX_LOGIT_ROWS // n_batch)

        def piece(begin, *arrays):
            end = begin + n_piece + 1
            with tf.variable_scope(scope):
                logits_RV = model.unembed(hparams, tf.reshape(hidden_BTD[:, begin:end], [-1, hparams.n_embd]))
            logits_BNV = tf.reshape(logits_RV, [n_batch, -1, hparams.n_vocab])
            nats_BN = model.token_losses(logits_BNV, tokens_BT[:, begin:end])
            found = figures(logits_BNV[:, :-1], nats_BN, tokens_BT[:, begin + 1:end])
            return [end - 1] + [array.write(array.size(), batch_second(x)) for array, x in zip(arrays, found)]

        examples = tf.zeros([1, 1, hparams.n_vocab]), tf.zeros([1, 1]), tf.zeros([1, 1], tf.int32)
        arrays = [tf.TensorArray(x.dtype, size=0, dynamic_size=True, infer_shape=False) for x in figures(*examples)]
        arrays = tf.while_loop(lambda begin, *_: begin < n_token - 1, piece, [first - 1] + arrays,
                               parallel_iterations=1, back_prop=False)[1:]
        outputs = [batch_second(array.concat()) for array in arrays]
    return lambda ids, first_scored=1: process.wait_for(sess.run, outputs, {tokens_BT: ids, first: first_scored})


def by_position_in_litert(sess, hparams, network, figures):
    """by_position() for a lite.Network."""
    with sess.graph.as_default():
        logits_BNV = tf.placeholder(tf.float32, [None, None, hparams.n_vocab])
        tokens_BT = tf.placeholder(tf.int32, [None, None])
        nats_BN = model.token_losses(tf.pad(logits_BNV, [[0, 0], [0, 1], [0, 0]]), tokens_BT)
        found = figures(logits_BNV, nats_BN, tokens_BT[:, 1:])

    def run(ids, first=1):
        pieces = [sess.run(found, {logits_BNV: piece_BNV, tokens_BT: piece_BT})
                  for piece_BNV, piece_BT in logits_in_pieces(network, np.asarray(ids), first)]
        return [np.concatenate(arrays, axis=1) for arrays in zip(*pieces)]

    return run


def logits_in_pieces(network, ids_BT, first=1):
    """Yield (logits [B, N, V], tokens [B, N + 1]) of a lite.Network: those of tokens but the last, few at a time.

    The last piece ends with ids_BT [B, T], and the first one predicts ids_BT[:, first].
    """
    n_batch, n_token = ids_BT.shape
    states_2BTD = network.states(ids_BT[:, :-1], network.past(n_batch, n_token - 1))
    n_piece = max(1, MAX_LITE_ROWS // n_batch)
    for begin in range(first - 1, n_token - 1, n_piece):
        states_2BND = states_2BTD[:, :, begin:begin + n_piece]
        logits_RV = network.logits(states_2BND.reshape(2, -1, states_2BND.shape[-1]))
        yield logits_RV.reshape(n_batch, -1, logits_RV.shape[-1]), ids_BT[:, begin:begin + n_piece + 1]


def batch_second(x):
    """x with its first two axes, batch and positions, exchanged: TensorArrays are concatenated along the first one."""
    return tf.transpose(x, tf.concat([[1, 0], tf.range(2, tf.rank(x))], axis=0))
