"""The decoding loop in NumPy, for a network that is no part of a TensorFlow graph (lite.Network).

A call of TensorFlow to choose a token would take a sixth of the token's time, NumPy takes a fiftieth. The filters and
the draw are those of sample.py; a test checks that both choose the same tokens. Letters are those of model.py.
"""
import numpy as np

from gpt2.fast import matmul
import sample

BLOCK = 256  # weights that are summed up before one of them is looked for


def loop(hparams, length, width=None, watch=None, *, temperature=1, top_k=0, top_p=1, end_token=None):
    """A function like sample.sample_sequence for a lite.Network. The arguments are as sample_sequence takes them.

    width: of the prompts, None if it differs.
    The function takes the network, context [B, C], its lengths [B], and draws [B, length]. Returns int32 [B, up to
    C + length].
    Both raise ValueError as sample_sequence does.
    """
    sample.check_options(length, temperature, top_k, top_p)
    sample.check_room(hparams, width or 1, length)
    filler = sample.NO_TOKEN if end_token is None else end_token

    def run(network, context_BC, length_B, draws):
        context_BC, length_B, draws = np.array(context_BC, np.int32), np.array(length_B), np.array(draws)
        is_given_BS = np.arange(context_BC.shape[1] + length) < length_B[:, None]
        check(hparams, context_BC[is_given_BS[:, :context_BC.shape[1]]], length_B, draws, length)
        text_BS = np.where(is_given_BS, np.pad(context_BC, [(0, 0), (0, length)], 'constant'), np.int32(filler))
        groups, end_B, ended_B = [], length_B.copy(), np.zeros(len(text_BS), bool)
        for n_context in sorted(set(length_B.tolist())):
            rows = np.flatnonzero(length_B == n_context)
            groups.append(Group(rows, text_BS[rows, :n_context], network.past(len(rows), n_context + length - 1)))
        column = length_B.min()  # that watch sees next; rows with longer prompts are ahead
        while groups and max(end_B - length_B) < length:
            logits_AV = network.logits(network.last_states(*zip(*[(group.fed_AT, group.past) for group in groups])))
            for row, logits_V in zip(np.concatenate([group.rows for group in groups]), logits_AV):
                if not ended_B[row]:
                    token = next_token(logits_V, draws[row][end_B[row] - length_B[row]], temperature, top_k, top_p)
                    text_BS[row, end_B[row]], ended_B[row], end_B[row] = token, token == end_token, end_B[row] + 1
            if watch is not None:
                watch(text_BS[:, column])
            column += 1
            for group in groups:
                group.go_on(text_BS, end_B, ended_B)
            groups = [group for group in groups if len(group.rows)]
        if watch is not None:
            for last in range(column, end_B.max()):
                watch(text_BS[:, last])
        return text_BS[:, :end_B.max()]

    return run


def check(hparams, tokens, length_B, draws, length):
    """Raises ValueError for what no network can continue. tokens: those of all prompts."""
    for n_context in (length_B.min(), length_B.max()):
        sample.check_room(hparams, n_context, length)
    if not (0 <= tokens).all() or not (tokens < hparams.n_vocab).all():
        raise ValueError('a token is not in the vocabulary, 0 to %d' % (hparams.n_vocab - 1))
    if draws.shape != (len(length_B), length) or not (0 <= draws).all() or not (draws < 1).all():
        raise ValueError('draws must be [%d, %d], each in [0, 1)' % (len(length_B), length))


class Group(object):
    """Texts that have equally many tokens, which a network computes together.

    rows: their numbers.  fed_AT: int32, the tokens to feed next.  past: of those before.
    """

    def __init__(self, rows, fed_AT, past):
        self.rows, self.fed_AT, self.past = rows, fed_AT, past

    def go_on(self, text_BS, end_B, ended_B):
        """Feed the last token of each text. Texts that have ended are removed once they are half of all.

        text_BS: all texts.  end_B: how many tokens each has.  ended_B: whether it has ended.
        """
        ended_A = ended_B[self.rows]
        if 2 * ended_A.sum() >= len(self.rows):
            kept = np.flatnonzero(~ended_A)
            self.past.keep(kept)
            self.rows = self.rows[kept]
        self.fed_AT = text_BS[self.rows, end_B[self.rows] - 1][:, None]


# The choice of a token

def next_token(logits_V, draw, temperature, top_k, top_p):
    """sample.next_tokens for one row: a number. draw: a number in [0, 1)."""
    if temperature == 0:
        return logits_V.argmax()
    id_N = shortlist(logits_V, top_k)
    logits_N = logits_V if len(id_N) == len(logits_V) else logits_V[id_N]
    with np.errstate(over='ignore'):  # at a temperature near 0, -inf
        scaled_N = (logits_N - logits_N.max()) / np.float32(max(temperature, 1e-30))
    is_kept_N = among_greatest(scaled_N, top_k)
    id_N, scaled_N = id_N[is_kept_N], scaled_N[is_kept_N].astype(np.float64)
    if top_p < 1:
        sorted_N = np.sort(scaled_N)[::-1]
        probability_N = np.exp(sorted_N) / np.exp(sorted_N).sum()
        mass_before_N = np.append(0, np.cumsum(probability_N)[:-1])
        is_kept_N = scaled_N >= sorted_N[max(np.count_nonzero(mass_before_N < top_p) - 1, 0)]
        id_N, scaled_N = id_N[is_kept_N], scaled_N[is_kept_N]
    return id_N[place_of(draw, np.exp(scaled_N))]


def place_of(draw, weight_N):
    """Where the sum of weights first exceeds a share of their total, draw in [0, 1).

    The cumulative sum of a whole vocabulary would take most of the time of a choice, so the sums of blocks come first.
    """
    if len(weight_N) <= BLOCK:
        cumulative_N = weight_N.cumsum()
        return np.count_nonzero(cumulative_N <= draw * cumulative_N[-1])
    cumulative_M = np.add.reduceat(weight_N, np.arange(0, len(weight_N), BLOCK)).cumsum()
    target = draw * cumulative_M[-1]
    block = np.count_nonzero(cumulative_M <= target)
    part_N = weight_N[block * BLOCK:][:BLOCK]
    place = np.count_nonzero(np.append(0, cumulative_M)[block] + part_N.cumsum() <= target)
    return block * BLOCK + min(place, np.flatnonzero(part_N)[-1])  # the sum of a block is rounded in another order


def log_probabilities(logits_AV, token_A, n):
    """(log-probabilities of tokens [A], ids [A, n] of the n most likely ones, most likely first, and theirs [A, n]).

    If n is 0, nothing is computed: they are 0 for each token, and empty arrays.
    """
    if not n:
        return np.zeros(len(token_A)), np.zeros([len(token_A), 0]), np.zeros([len(token_A), 0])
    total_A = log_totals(logits_AV)
    id_AN = np.array([id_N[np.argsort(-logits_V[id_N], kind='stable')[:n]]
                      for id_N, logits_V in zip([top_k_ids(logits_V, n) for logits_V in logits_AV], logits_AV)])
    return (np.take_along_axis(logits_AV, token_A[:, None], axis=-1)[:, 0] - total_A, id_AN,
            np.take_along_axis(logits_AV, id_AN, axis=-1) - total_A[:, None])


def log_totals(logits_AV):
    """The log of what the exponentials of each row's logits add up to: float32 [A]."""
    total_A = np.empty(len(logits_AV), np.float32)
    for row, logits_V in enumerate(logits_AV):  # one at a time, so that it stays in a processor's cache
        greatest = logits_V.max()
        total_A[row] = greatest + np.log(np.exp(logits_V - greatest).sum())
    return total_A


def top_k_ids(logits_V, k):
    """The ids of the k greatest logits, and of those that tie with the k-th, in their order. k: 0 is all."""
    id_N = shortlist(logits_V, k)
    return id_N[among_greatest(logits_V[id_N], k)]


def shortlist(logits_V, k):
    """The ids of the k greatest logits, and of a few more, in their order; of all if k is 0.

    Among them are all logits that differ from the k-th by rounding only, and may tie with it once they are scaled.
    """
    n_vocab = len(logits_V)
    if not 0 < k < n_vocab:
        return np.arange(n_vocab)
    # The k-th greatest maximum of groups is a bound: k logits or more are as great, and few of the others.
    greatest_N = logits_V.reshape(matmul.group_size(n_vocab, k), -1).max(axis=0)
    bound = np.partition(greatest_N, -k)[-k]
    return np.flatnonzero(logits_V >= bound - np.float32(1e-6) * (greatest_N.max() - bound))


def among_greatest(x_N, k):
    """Which elements are among the k greatest, or tie with the k-th: a mask, or a slice of all. k: 0 is all."""
    return x_N >= np.partition(x_N, -k)[-k] if 0 < k < len(x_N) else slice(None)
