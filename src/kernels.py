"""How TensorFlow multiplies fastest, on either floor, with and without a GPU: products, attention, the vocabulary.

Each token that is sampled needs every weight once, for a row or a few, so that reading the weights takes most of the time.
Without a GPU the work on a token is therefore cut into parts, one for each core, that run at the same time as operations of
their own: TensorFlow 2.x would spend longer on dividing each operation among the cores, and 1.x would run a product of one row
on one core. All ways to multiply give the same result but for rounding. `make bench` measures them.

R rows  N, M any width; other letters are those of model.py
"""
import math
import os
import platform

import int8
import process
from tf1 import tf, xla_dynamic_update_slice

MOST_PARTS = 4  # four cores read as fast as the memory delivers; more parts would only make the graph larger
FEW_TOKENS = 16  # for fewer tokens, transposing the token embedding takes longer than it saves
BLOCKS = 32  # the token embedding is multiplied in so many blocks, that the output of each stays in the processor's cache
ALIGNED = 16  # numbers, 64 bytes: when a weight's rows begin at multiples of it, many rows take three quarters of the time


def n_parts():
    """Into how many parts the work on a token is cut: one for each core, or one in all for a GPU."""
    return 1 if on_gpu() else min(process.n_cores(), MOST_PARTS)


def parts(x, axis, n):
    """x in n parts along an axis. All have the same size, except that the first one takes the remainder, too."""
    if n == 1:
        return [x]
    size = x.shape.as_list()[axis]
    if size is None:
        size = tf.shape(x)[axis]
    elif size % n == 0:
        return tf.split(x, n, axis=axis)
    return tf.split(x, [size - size // n * (n - 1)] + [size // n] * (n - 1), axis=axis, num=n)


def product(x_RN, weight_1NM, n=1, activation=lambda x: x):
    """activation(x) times weight: float32 [R, M].

    n: into how many parts the sum over N is cut.  activation: a function applied to each number of x.
    """
    if isinstance(weight_1NM, int8.Weight):
        return weight_1NM.product(x_RN, activation)
    n_in = weight_1NM.shape.as_list()[1]
    if n == 1 or n_in % n:
        return tf.matmul(activation(x_RN), tf.squeeze(weight_1NM, axis=0))
    with tf.control_dependencies(None):  # outside of the loop
        weights = tf.unstack(tf.reshape(weight_1NM, [n, n_in // n, -1]))
    return tf.add_n([tf.matmul(activation(part_RN), part_NM) for part_RN, part_NM in zip(parts(x_RN, -1, n), weights)])


def product_with_rows(x_RN, weight_MN):
    """x times weight transposed: float32 [R, M]."""
    if isinstance(weight_MN, int8.Weight):
        return weight_MN.product(x_RN)
    return tf.matmul(x_RN, weight_MN, transpose_b=True)


class Heads(object):
    """Attention's heads, for new tokens and the ones before them. What is the same in all blocks is computed here, once.

    batch, n_new: how many texts, and new tokens of each, as numbers or tensors.  n_pasts: the length of each piece of the past.
    mask_TS: float32, added to the scores.
    """

    def __init__(self, batch, n_new, n_head, head_size, n_pasts, mask_TS):
        self.batch, self.n_head, self.head_size, self.mask_TS = batch, n_head, head_size, mask_TS
        self.n_parts = n_parts() if n_pasts else 1  # training and scoring keep all cores busy with each operation
        # Whether each text has one new token: a bool if that is known when the graph is built, else a tensor.
        self.one_query = n_new == 1 if isinstance(n_new, int) else bool(n_pasts) and tf.equal(n_new, 1)
        self.lengths = tf.stack(list(n_pasts[:-1]) + [sum(n_pasts[-1:]) + n_new])  # of the pieces; new tokens join the last
        self.qkv_shape = tf.stack([batch, n_new, 3, n_head, head_size])
        self.heads_shape = tf.stack([batch * n_head, n_new, head_size])
        self.joined_shape = tf.stack([batch, n_head, n_new, head_size])

    def split(self, qkv_RN):
        """The queries, keys and values of the new tokens, each float32 [G, T, K]."""
        qkv = tf.unstack(tf.reshape(qkv_RN, self.qkv_shape), axis=2)
        return [tf.reshape(tf.transpose(x_BTHK, [0, 2, 1, 3]), self.heads_shape) for x_BTHK in qkv]

    def attend(self, q_GTK, k_GTK, v_GTK, past, drop, last_alone):
        """softmax(q k' / sqrt(K) + mask) v, the heads of each token side by side: float32 [R, D]; and [k_GTK, v_GTK], to keep.

        past: the keys and values of the tokens before, in pieces, each a pair of float32 [G, S, K].
        drop: dropout for the attention weights.  last_alone: whether only the last token of each text has a query.
        """
        newest = k_GTK, v_GTK
        if past:
            newest = [tf.concat([before, new], axis=-2) for before, new in zip(past[-1], newest)]
        k_pieces, v_pieces = zip(*list(past[:-1]) + [newest])
        one_query = last_alone or self.one_query
        known_alone = one_query is True
        q_GTK = (q_GTK[:, -1:] if last_alone else q_GTK) / math.sqrt(self.head_size)
        q_parts = parts(q_GTK, 0, self.n_parts)
        k_parts, v_parts = [list(zip(*[parts(x_GSK, 0, self.n_parts) for x_GSK in pieces])) for pieces in (k_pieces, v_pieces)]

        def heads_joined(one_query):
            found = [self.attend_part(*part, one_query=one_query, drop=drop) for part in zip(q_parts, k_parts, v_parts)]
            found_GTK = tf.concat(found, axis=0)
            if not one_query:  # the heads of one token stand side by side already
                found_GTK = tf.concat(tf.unstack(tf.reshape(found_GTK, self.joined_shape), axis=1), axis=-1)
            return tf.reshape(found_GTK, [self.batch if known_alone else -1, self.n_head * self.head_size])

        if isinstance(one_query, bool):
            found_RD = heads_joined(one_query)
        else:
            found_RD = tf.cond(one_query, lambda: heads_joined(True), lambda: heads_joined(False))
        return found_RD, [k_GTK, v_GTK]

    def attend_part(self, q_GTK, k_pieces, v_pieces, one_query, drop):
        """softmax(q k' / sqrt(K) + mask) v for some of the heads, where q is divided by sqrt(K) already: float32 [G, T, K].

        k_pieces, v_pieces: each float32 [G, S, K].  one_query: whether each text has only its last token's query, which needs
        no mask.
        """
        if not one_query:  # then copying keys and values is cheaper than copying the scores of all queries
            k_pieces, v_pieces = [tf.concat(k_pieces, axis=-2)], [tf.concat(v_pieces, axis=-2)]
        score_GTS = tf.concat([batched_product(q_GTK, k_GSK, one_query, transpose_b=True) for k_GSK in k_pieces], axis=-1)
        if one_query:
            weight_GTS = tf.exp(tf.nn.log_softmax(score_GTS))  # oneDNN would compile its softmax anew for each length
        else:
            weight_GTS = tf.nn.softmax(score_GTS + self.mask_TS)
        weight_GTS = drop(weight_GTS, 'weights')
        weights = tf.split(weight_GTS, self.lengths, axis=-1, num=len(k_pieces)) if len(k_pieces) > 1 else [weight_GTS]
        return tf.add_n([batched_product(weight, v_GSK, one_query) for weight, v_GSK in zip(weights, v_pieces)])


class HeadsInPlace(object):
    """Attention's heads for one new token of each text, which is written into a past of a fixed size, as XLA needs it.

    n_past: scalar tensor, how many positions of the past are taken; the new token's is the next.  n_most: how many it has.
    """

    n_parts = 1

    def __init__(self, batch, n_head, head_size, n_past, n_most):
        self.batch, self.n_head, self.head_size, self.n_past = batch, n_head, head_size, n_past
        self.mask_S = tf.cast(tf.range(n_most) > n_past, tf.float32) * -1e10

    def split(self, qkv_BN):
        """The queries, keys and values of the new tokens, each float32 [G, 1, K]."""
        qkv = tf.unstack(tf.reshape(qkv_BN, [self.batch, 3, self.n_head, self.head_size]), axis=1)
        return [tf.reshape(x_BHK, [self.batch * self.n_head, 1, self.head_size]) for x_BHK in qkv]

    def attend(self, q_G1K, k_G1K, v_G1K, past, drop, last_alone):
        """As Heads.attend, but to keep is the past, one pair of float32 [G, S, K], with the new token in it."""
        k_GSK, v_GSK = [xla_dynamic_update_slice(before, new, tf.stack([0, self.n_past, 0]))
                        for before, new in zip(past[0], (k_G1K, v_G1K))]
        score_G1S = tf.matmul(q_G1K / math.sqrt(self.head_size), k_GSK, transpose_b=True)
        weight_G1S = drop(tf.nn.softmax(score_G1S + self.mask_S), 'weights')
        return tf.reshape(tf.matmul(weight_G1S, v_GSK), [self.batch, self.n_head * self.head_size]), [k_GSK, v_GSK]


def batched_product(a_BTN, b_BNM, one_row, transpose_b=False):
    """tf.matmul of many small matrices.

    one_row: whether T is 1. For one row, oneDNN's set-up costs four times the product.
    """
    if one_row and on_onednn():
        return tf.raw_ops.BatchMatMulV3(x=a_BTN, y=b_BNM, Tout=tf.float32, adj_y=transpose_b)  # the version oneDNN leaves alone
    return tf.matmul(a_BTN, b_BNM, transpose_b=transpose_b)


def vocabulary_product(n_texts=None, n_tokens=0):
    """The fastest function to multiply hidden states with the token embedding: (float32 [B, D], [V, D]) -> [B, V].

    n_texts: how many texts are sampled, None if that is not known.  n_tokens: how many tokens of each.
    oneDNN is faster with a transposed embedding: it is transposed once, before all loops, if enough tokens follow.
    """
    is_copied = n_texts is not None and n_tokens >= FEW_TOKENS and on_onednn()

    def multiply(hidden_BD, weight_VD):
        if isinstance(weight_VD, int8.Weight) or on_gpu():
            return product_with_rows(hidden_BD, weight_VD)
        return (transposed if is_copied else in_blocks)(hidden_BD, weight_VD)

    def transposed(hidden_BD, weight_VD):
        n_vocab, width = weight_VD.shape.as_list()
        with tf.control_dependencies(None):  # outside of the loop
            if n_texts > 1:
                nothing_ND = tf.zeros([-n_vocab % ALIGNED, width])
                weight_VD = tf.concat([weight_VD, nothing_ND], axis=0)  # tf.pad takes four times as long
            weight_1DV = tf.transpose(weight_VD)[None]
        return product(hidden_BD, weight_1DV, n_parts())[:, :n_vocab]

    def in_blocks(hidden_BD, weight_VD):
        n_vocab = weight_VD.shape.as_list()[0]
        ends = [n_vocab * i // BLOCKS for i in range(BLOCKS + 1)]
        blocks = tf.split(weight_VD, [end - begin for begin, end in zip(ends, ends[1:]) if end > begin])
        return tf.transpose(tf.concat([tf.matmul(block_ND, hidden_BD, transpose_b=True) for block_ND in blocks], axis=0))

    return multiply


def likeliest(logits_BV, k):
    """The k greatest logits of each row, float32 [B, k], and their ids, int32 [B, k], greatest first.

    Logits are put into groups. The k greatest are all in the k groups with the greatest maxima, and only these are sorted.
    """
    n_vocab = logits_BV.shape.as_list()[-1]
    # Near the root, the least has to be sorted.
    n_each = next(n for n in range(int(math.sqrt(n_vocab / k)), 0, -1) if n_vocab % n == 0)
    if n_each == 1:
        return tf.nn.top_k(logits_BV, k=k)
    n_groups = n_vocab // n_each
    maxima_BN = tf.reduce_max(tf.reshape(logits_BV, [-1, n_each, n_groups]), axis=1)
    group_BN = tf.nn.top_k(maxima_BN, k=k).indices
    ids_BN = tf.reshape(group_BN[:, :, None] + tf.range(0, n_vocab, n_groups), [-1, k * n_each])
    found = tf.nn.top_k(tf.batch_gather(logits_BV, ids_BN), k=k)
    return found.values, tf.batch_gather(ids_BN, found.indices)


def on_onednn():
    """Whether TensorFlow multiplies by oneDNN: 2.x does so on x86 without a GPU, unless that is switched off."""
    return (not tf.__version__.startswith('1.') and platform.machine() in ('x86_64', 'AMD64')
            and os.environ['TF_ENABLE_ONEDNN_OPTS'].lower() not in ('0', 'false') and not on_gpu())


def on_gpu():
    """Whether TensorFlow uses a GPU. 1.x would take all of its memory to find out: there, whether it was built to use one."""
    return tf.test.is_built_with_cuda() if tf.__version__.startswith('1.') else bool(tf.config.list_physical_devices('GPU'))
