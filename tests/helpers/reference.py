"""GPT-2 and byte pair encoding by the papers, in plain NumPy and plain Python: the tests compare with it.

It shares no code with src/, and is slow. The network: Radford et al. 2019 ("Language Models are
Unsupervised Multitask Learners"), section 2.3, and the paper it builds on, Radford et al. 2018 ("Improving Language
Understanding by Generative Pre-Training"), section 3.1. All arithmetic is in float64.

`weights` is a dict from a variable's name in the released checkpoints, 'model/h0/attn/c_attn/w', to its array.
Shape suffixes: B batch  T tokens  D width  H heads  K head size, D / H  V vocabulary
"""
import numpy as np

# float32 keeps 24 bits, 6e-8 of a number, and a logit is the result of a few hundred roundings, most of which cancel
# out: at most 7e-7 of the logits' span was measured. An epsilon of 1e-6 instead of 1e-5 in the layer norms changes 10
# times that.
ROUNDING = 5e-6  # of the span of the values compared


def forward(weights, tokens, n_head):
    """Run the network over complete rows of tokens.

    tokens: int [B, T].
    Returns logits [B, T, V] and present [B, n_layer, 2, H, T, K]: keys at index 0 of axis 2, values at index 1.
    """
    weights = {name: np.asarray(array, dtype=np.float64) for name, array in weights.items()}
    tokens_BT = np.asarray(tokens)
    n_token = tokens_BT.shape[1]
    token_vectors_VD = weights['model/wte']
    x_BTD = token_vectors_VD[tokens_BT] + weights['model/wpe'][:n_token]
    present = []
    while 'model/h%d/ln_1/g' % len(present) in weights:
        layer = 'model/h%d/' % len(present)
        normal_BTD = layer_norm(weights, layer + 'ln_1/', x_BTD)
        attended_BTD, keys_and_values = attention(weights, layer + 'attn/', normal_BTD, n_head)
        x_BTD = x_BTD + attended_BTD
        normal_BTD = layer_norm(weights, layer + 'ln_2/', x_BTD)
        x_BTD = x_BTD + feed_forward(weights, layer + 'mlp/', normal_BTD)
        present.append(keys_and_values)
    logits_BTV = layer_norm(weights, 'model/ln_f/', x_BTD) @ token_vectors_VD.T
    return logits_BTV, np.stack(present, axis=1)


def attention(weights, scope, x_BTD, n_head):
    """Masked multi-head self-attention (Vaswani et al. 2017, section 3.2) of one layer.

    Returns the addition to the residual stream, [B, T, D], and keys and values, [B, 2, H, T, K].
    """
    n_batch, n_token, width = x_BTD.shape
    head_size = width // n_head
    query_key_value = linear(weights, scope + 'c_attn/', x_BTD).reshape(n_batch, n_token, 3, n_head, head_size)
    attended_BTHK = np.empty([n_batch, n_token, n_head, head_size])
    for t in range(n_token):  # instead of a mask: position t is not given what comes after it
        query_BHK = query_key_value[:, t, 0]
        seen = query_key_value[:, :t + 1]
        scores = np.einsum('bhk,bshk->bhs', query_BHK, seen[:, :, 1]) / np.sqrt(head_size)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        attended_BTHK[:, t] = np.einsum('bhs,bshk->bhk', shares, seen[:, :, 2])
    attended_BTD = linear(weights, scope + 'c_proj/', attended_BTHK.reshape(n_batch, n_token, width))
    return attended_BTD, query_key_value[:, :, 1:].transpose(0, 2, 3, 1, 4)


def feed_forward(weights, scope, x_BTD):
    """The position-wise feed-forward network, whose hidden layer is four times as wide."""
    return linear(weights, scope + 'c_proj/', gelu(linear(weights, scope + 'c_fc/', x_BTD)))


def linear(weights, scope, x):
    """x W + b. The checkpoint keeps W as the kernel [1, n_in, n_out] of a convolution of width one."""
    return x @ weights[scope + 'w'][0] + weights[scope + 'b']


def layer_norm(weights, scope, x):
    """Mean 0 and variance 1 over the last axis, then a gain and a bias (Ba et al. 2016, arXiv:1607.06450)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred ** 2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-5) * weights[scope + 'g'] + weights[scope + 'b']


def gelu(x):
    """The tanh approximation of x times the normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415)."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def token_losses(logits, tokens):
    """Losses of predicting tokens[:, 1:], each from the tokens before it, in nats: [B, T-1]."""
    predicted_BTV = np.asarray(logits, dtype=np.float64)[:, :-1]
    targets = np.asarray(tokens)[:, 1:]
    largest = predicted_BTV.max(axis=-1, keepdims=True)
    log_total = largest[..., 0] + np.log(np.exp(predicted_BTV - largest).sum(axis=-1))
    return log_total - np.take_along_axis(predicted_BTV, targets[..., None], axis=-1)[..., 0]


def greedy(weights, tokens, n_head, length):
    """Append the most likely token `length` times, running the whole network for each: int [B, T + length]."""
    tokens_BT = np.asarray(tokens)
    for _ in range(length):
        logits_BTV, _ = forward(weights, tokens_BT, n_head)
        tokens_BT = np.concatenate([tokens_BT, logits_BTV[:, -1:].argmax(axis=-1)], axis=1)
    return tokens_BT


def plain_bpe(word, ranks):
    """Byte pair encoding of one word, in quadratic time (Sennrich et al. 2016, arXiv:1508.07909, section 3.2).

    word: a string or another sequence of symbols that can be added.  ranks: dict from a pair of symbols to the order
    in which the pair was learned.
    Returns the list of merged symbols: the pair learned first of all adjacent pairs is merged, everywhere and from left
    to right, until no adjacent pair is a learned one.
    """
    symbols = list(word)
    while True:
        known = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not known:
            return symbols
        first_learned = min(known, key=lambda pair: ranks[pair])
        at = 0
        while at < len(symbols) - 1:
            if (symbols[at], symbols[at + 1]) == first_learned:
                symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
            at += 1
