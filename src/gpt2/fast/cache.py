"""The keys and values of the tokens so far, which the next tokens attend to.

G heads of all texts, B * H: attention treats them alike.
L keys and values of all layers, 2 * n_layer: keys of the first layer, values of the first, keys of the second ...
"""
from collections import namedtuple

from gpt2.fast import matmul
from gpt2.system.tf1 import size, sizes, tf


class Past(object):
    """The tokens before the new ones, as the network sees them. What is the same in all layers is computed here, once.

    tokens: int32 [B, T], the new ones.
    pieces: keys and values of the tokens before, each piece L tensors float32 [G, S, K]; () if there are none.
    last_only: whether only the last token of each text is wanted: the last layer leaves out the others after attention.
    n_before: how many tokens are before the new ones but not in pieces.  n_positions: how many positions keys have;
        None is up to the last new token.
    """

    def __init__(self, hparams, tokens, pieces=(), last_only=False, n_before=0, n_positions=None):
        self.batch, self.n_new = sizes(tokens)
        self.n_head, self.head_size = hparams.n_head, hparams.n_embd // hparams.n_head
        self.pieces, self.n_before = pieces, n_before
        self.narrowed_layer = hparams.n_layer - 1 if last_only else None  # the one that leaves out tokens
        lengths = [size(piece[0], -2) for piece in pieces]
        self.position_T = sum(lengths, n_before) + tf.range(self.n_new)
        self.mask_TS = causal_mask(self.position_T, self.position_T[-1] + 1 if n_positions is None else n_positions)
        # Training and scoring, which have no past, keep all cores busy with each operation.
        self.n_parts = matmul.n_parts() if pieces else 1
        self.custom_getter = matmul.split_weights(self.n_parts) if pieces else None  # for tf.variable_scope
        # Whether each text has a single new token: a bool if that is known when the graph is built, otherwise a tensor.
        self.is_single = self.n_new == 1 if isinstance(self.n_new, int) else bool(pieces) and tf.equal(self.n_new, 1)
        self.lengths = tf.stack(lengths[:-1] + [sum(lengths[-1:]) + self.n_new])  # new tokens join the last piece
        self.qkv_shape = tf.stack([self.batch, self.n_new, 3, self.n_head, self.head_size])
        self.heads_shape = tf.stack([self.batch * self.n_head, self.n_new, self.head_size])
        self.joined_shape = tf.stack([self.batch, self.n_head, self.n_new, self.head_size])
        self.new = []  # the new tokens' keys and values: L tensors [G, T, K] when the network is built

    def split_heads(self, qkv_RN):
        """The queries, keys and values of the new tokens, each float32 [G, T, K]."""
        qkv = tf.unstack(tf.reshape(qkv_RN, self.qkv_shape), axis=2)
        if self.is_single is not True:  # one token's heads are in this order already
            qkv = [tf.transpose(x_BTHK, [0, 2, 1, 3]) for x_BTHK in qkv]
        return [tf.reshape(x, self.heads_shape) for x in qkv]

    def append(self, layer, k_GTK, v_GTK):
        """The keys and the values of all tokens so far, each in pieces float32 [G, S, K]."""
        self.new += [k_GTK, v_GTK]
        before, newest = [piece[2 * layer:2 * layer + 2] for piece in self.pieces], (k_GTK, v_GTK)
        if before:
            newest = [tf.concat([old, new], axis=-2) for old, new in zip(before.pop(), newest)]
        return zip(*before + [newest])

    def wanted(self, x, layer):
        """Of a layer's queries [G, T, K] or hidden states [R, D], those of the tokens that are wanted."""
        if layer != self.narrowed_layer or self.is_single is True:
            return x
        if len(x.shape) == 2:
            return tf.reshape(x, [self.batch, -1, x.shape.as_list()[-1]])[:, -1]
        last_G1K = x[:, -1:]
        last_G1K.set_shape([None, 1, None])
        return last_G1K

    def over_heads(self, attend, q_GTK, keys, values, drop):
        """attend() of some of the heads at a time. Returns the heads of each token side by side: float32 [R, D]."""
        is_single = q_GTK.shape.as_list()[1] == 1 or self.is_single
        n_rows = self.batch if is_single is True else -1
        q_parts = matmul.split(q_GTK, 0, self.n_parts)
        k_parts, v_parts = [list(zip(*[matmul.split(x_GSK, 0, self.n_parts) for x_GSK in pieces]))
                            for pieces in (keys, values)]

        def mixed(is_single):
            mask = (lambda score_GTS: score_GTS) if is_single else self.mask
            mixed_GTK = tf.concat([
                attend(q_GTK, Pieces(k, is_single, self.lengths), Pieces(v, is_single, self.lengths), mask, drop)
                for q_GTK, k, v in zip(q_parts, k_parts, v_parts)], axis=0)
            if not is_single:
                mixed_GTK = tf.concat(tf.unstack(tf.reshape(mixed_GTK, self.joined_shape), axis=1), axis=-1)
            return tf.reshape(mixed_GTK, [n_rows, self.n_head * self.head_size])

        if isinstance(is_single, bool):
            return mixed(is_single)
        return tf.cond(is_single, lambda: mixed(True), lambda: mixed(False))

    def mask(self, score_GTS):
        """Attention scores with -1e10 added for each position that a token must not see."""
        return score_GTS + self.mask_TS


def causal_mask(position_T, n_positions):
    """float32 [T, S], to be added to attention scores: 0 where a token may look, up to itself, and -1e10 beyond."""
    visible_TS = tf.range(n_positions)[None, :] <= position_T[:, None]
    return (1 - tf.cast(visible_TS, tf.float32)) * -1e10


class Pieces(object):
    """Keys or values of some of the heads, in pieces along the positions.

    pieces: float32 [G, S, K].  is_single: whether there is one query, for which joining the pieces would cost more
    than it saves.  lengths: S of each piece.
    """

    def __init__(self, pieces, is_single, lengths):
        self.pieces = list(pieces) if is_single else [tf.concat(pieces, axis=-2)]
        self.is_single, self.lengths = is_single, lengths

    def product(self, x, transpose_b, input_activation):
        """As matmul.matmul: queries times the transposed keys, or attention weights times the values."""
        product = matmul.row_product if self.is_single else tf.matmul
        if not transpose_b:
            weights = tf.split(x, self.lengths, axis=-1, num=len(self.pieces)) if len(self.pieces) > 1 else [x]
            return tf.add_n([product(weight, v_GSK) for weight, v_GSK in zip(weights, self.pieces)])
        score_GTS = tf.concat([product(x, k_GSK, transpose_b=True) for k_GSK in self.pieces], axis=-1)
        if self.is_single:
            score_GTS.set_shape([None, 1, None])
        return score_GTS


class Cache(namedtuple('Cache', 'old recent')):
    """The keys and values of all tokens so far, as a decoding loop carries them.

    New ones go into the short `recent`, which is appended to the long `old` now and then, so that the long part is
    not copied for each token.
    recent: float32 [L, G, S, K].  old: L tensors [G, S, K]. They grow one by one, so that never all exist twice.
    """

    def past(self, hparams, tokens):
        """The Past of new tokens, int32 [B, T], of which the last one of each text is wanted."""
        return Past(hparams, tokens, [self.old, tf.unstack(self.recent)], last_only=True)

    def add(self, present):
        """The Cache with the keys and values of new tokens: L tensors [G, T, K]."""
        return Cache(self.old, tf.concat([self.recent, tf.stack(present)], axis=-2))

    def is_due(self):
        """Whether it is time to settle(): a bool scalar.

        With r recent tokens, copied for each new one, and s old ones, copied once, a token costs r / 2 + s / r
        copies, which is least at r * r = 2 * s.
        """
        n_old, n_recent = tf.shape(self.old[0])[-2], tf.shape(self.recent)[-2]
        return n_recent * n_recent >= 2 * n_old

    def settle(self, n_head, rows=None):
        """The Cache with `recent` appended to `old`. rows: int32 [any], the texts to keep; None keeps all."""
        old, recent_LGSK = self
        if rows is not None:
            heads_G = tf.reshape(rows[:, None] * n_head + tf.range(n_head), [-1])
            old, recent_LGSK = [tf.gather(old_GSK, heads_G) for old_GSK in old], tf.gather(recent_LGSK, heads_G, axis=1)
        old = [tf.concat(pieces, axis=-2) for pieces in zip(old, tf.unstack(recent_LGSK))]
        return Cache(old, recent_LGSK[:, :, :0])


def empty(hparams, batch):
    """The Cache of batch texts without tokens."""
    empty_LGSK = tf.zeros([2 * hparams.n_layer, batch * hparams.n_head, 0, hparams.n_embd // hparams.n_head])
    return Cache(tf.unstack(empty_LGSK), empty_LGSK)


def shapes(hparams, batch):
    """The shapes of a Cache as it grows, in the form that tf.while_loop takes. batch: number, or None if unknown."""
    n_heads, n_tensors = None if batch is None else batch * hparams.n_head, 2 * hparams.n_layer
    any_GSK = tf.TensorShape([n_heads, None, hparams.n_embd // hparams.n_head])
    return Cache([any_GSK] * n_tensors, tf.TensorShape([n_tensors]).concatenate(any_GSK))
