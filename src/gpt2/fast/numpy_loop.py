"""The decoding loop in NumPy, for a network that is no part of a TensorFlow graph (lite.Network).

A call of TensorFlow to choose a token would take a sixth of the token's time, NumPy takes a fiftieth. The filters and
the draw are those of sample.py; a test holds both to the same tokens. Letters are those of model.py.
"""
import numpy as np

from gpt2.fast import matmul
import sample


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
        for n_context in (min(length_B), max(length_B)):
            sample.check_room(hparams, n_context, length)

        def choose(logits_AV, n_seen, row_A, given_A, ended_A):
            token_A, ended_A = given_A.copy(), ended_A.copy()
            for i, row in enumerate(row_A):
                n_drawn = n_seen - length_B[row]  # below 0 inside a prompt, where the next token is given
                if n_drawn >= 0 and not ended_A[i]:
                    token_A[i] = next_token(logits_AV[i], draws[row][n_drawn], temperature, top_k, top_p)
                    ended_A[i] = token_A[i] == end_token or n_drawn == length - 1
            return token_A, ended_A

        return decode(network, context_BC, length_B, length, filler, choose, watch)

    return run


def decode(network, context_BC, length_B, length, filler, choose, watch=None):
    """The loop: int32 [B, up to C + length].

    context_BC: the prompts.  length_B: their lengths.  choose: as sample.Chooser.choose, a function of arrays.
    filler: the token that follows the end of a row.  The others: as loop takes them.
    """
    context_BC, length_B = np.array(context_BC, np.int32), np.array(length_B, np.int32)
    n_total = context_BC.shape[1] + length
    is_given_BS = np.arange(n_total) < length_B[:, None]
    text_BS = np.where(is_given_BS, np.pad(context_BC, [(0, 0), (0, length)], 'constant'), np.int32(filler))
    row_A, ended_A = np.arange(len(text_BS), dtype=np.int32), np.zeros(len(text_BS), bool)
    n_seen = min(length_B)
    past, fed_AT = network.past(len(text_BS), n_total - 1), text_BS[:, :n_seen]
    while n_seen < n_total and not ended_A.all():
        if 2 * ended_A.sum() >= len(row_A) > 1:
            kept = np.flatnonzero(~ended_A)
            past.keep(kept)
            row_A, ended_A, fed_AT = row_A[kept], ended_A[kept], fed_AT[kept]
        logits_AV = network.logits(network.states(fed_AT, past)[:, :, -1])
        token_A, ended_A = choose(logits_AV, n_seen, row_A, text_BS[row_A, n_seen], ended_A)
        text_BS[row_A, n_seen] = token_A
        if watch is not None:
            watch(text_BS[:, n_seen])
        fed_AT, n_seen = np.maximum(token_A, 0)[:, None], n_seen + 1
    return text_BS[:, :n_seen]


# The choice of a token

def next_token(logits_V, draw, temperature, top_k, top_p):
    """sample.next_tokens for one row: a number. draw: a number in [0, 1)."""
    if temperature == 0:
        return logits_V.argmax()
    with np.errstate(over='ignore'):  # at a temperature near 0, -inf
        scaled_V = (logits_V - logits_V.max()) / np.float32(max(temperature, 1e-30))
    id_N = likeliest(scaled_V, top_k)
    scaled_N = scaled_V[id_N].astype(np.float64)
    if top_p < 1:
        sorted_N = np.sort(scaled_N)[::-1]
        probability_N = np.exp(sorted_N) / np.exp(sorted_N).sum()
        mass_before_N = np.append(0, np.cumsum(probability_N)[:-1])
        is_kept_N = scaled_N >= sorted_N[max(np.count_nonzero(mass_before_N < top_p) - 1, 0)]
        id_N, scaled_N = id_N[is_kept_N], scaled_N[is_kept_N]
    cumulative_N = np.exp(scaled_N).cumsum()
    return id_N[np.count_nonzero(cumulative_N <= draw * cumulative_N[-1])]


def log_probabilities(logits_AV, token_A, n):
    """The log-probabilities of tokens [A], and of the n most likely ones [A, n], whose ids [A, n] come before.

    None at all if n is 0.
    """
    if not n:
        return np.zeros(len(token_A)), np.zeros([len(token_A), 0]), np.zeros([len(token_A), 0])
    logprob_AV = logits_AV - logits_AV.max(axis=-1, keepdims=True)
    logprob_AV -= np.log(np.exp(logprob_AV).sum(axis=-1, keepdims=True))
    id_AN = [id_N[np.argsort(-logprob_V[id_N], kind='stable')[:n]]
             for id_N, logprob_V in zip([likeliest(logits_V, n) for logits_V in logits_AV], logprob_AV)]
    return (np.take_along_axis(logprob_AV, token_A[:, None], axis=-1)[:, 0], np.array(id_AN),
            np.take_along_axis(logprob_AV, np.array(id_AN), axis=-1))


def likeliest(logits_V, k):
    """The ids of the k greatest logits, and of those that tie with the k-th, in their order. k: 0 is all."""
    n_vocab = len(logits_V)
    if not 0 < k < n_vocab:
        return np.arange(n_vocab)
    # The k-th greatest maximum of groups is a bound: k logits or more are as great, and few of the others.
    bound = np.partition(logits_V.reshape(matmul.group_size(n_vocab, k), -1).max(axis=0), -k)[-k]
    id_N = np.flatnonzero(logits_V >= bound)
    return id_N[logits_V[id_N] >= np.partition(logits_V[id_N], -k)[-k]]
