"""numpy_loop.py: the loop and the choice of a token against sample.py's."""
import numpy as np
import pytest

from gpt2.fast import numpy_loop
from gpt2.system.tf1 import tf
from helpers import reference, tiny
import sample


class TextSoFar(object):
    """The past of Exact."""

    def __init__(self, batch):
        self.text_BS = np.zeros([batch, 0], np.int32)

    def keep(self, rows):
        self.text_BS = self.text_BS[rows]


class Exact(object):
    """In the place of a lite.Network: the network of the paper in float64, which reads all tokens anew."""

    def __init__(self, hparams, weights):
        self.hparams, self.weights = hparams, weights

    def past(self, batch, n_positions):
        return TextSoFar(batch)

    def last_states(self, fed, pasts):
        found = []
        for tokens_BT, past in zip(fed, pasts):
            past.text_BS = np.concatenate([past.text_BS, tokens_BT], axis=1)
            found.append(reference.forward(self.weights, past.text_BS, self.hparams.n_head)[0][:, -1])
        return np.stack([np.concatenate(found)] * 2)

    def logits(self, states_2RV):
        return states_2RV[0].astype(np.float32)


@pytest.mark.parametrize('options', [
    dict(), dict(top_k=5), dict(top_p=0.7, temperature=0.8), dict(temperature=0), dict(top_k=9, end_token=3),
    dict(end_token=3)], ids=str)
def test_loop_samples_what_sample_sequence_does(sess, options):
    """From the same logits, for prompts of the same and of different lengths, with every filter; a watcher sees it."""
    hparams = tiny.hparams()
    weights = tiny.random_weights(hparams)
    context, draws = np.random.RandomState(1).randint(0, 11, [5, 4]), np.random.RandomState(2).rand(5, 9)
    for lengths in ([4] * 5, [4, 1, 3, 2, 2]):
        seen = []
        run = numpy_loop.loop(hparams, 9, watch=seen.append, **options)
        found = run(Exact(hparams, weights), context.tolist(), lengths, draws)
        expected = sample.sample_sequence(hparams=hparams, length=9, context=context, context_lengths=lengths,
                                          draws=draws, **options)
        tiny.assign(sess, weights)
        np.testing.assert_array_equal(found, sess.run(expected))
        np.testing.assert_array_equal(np.transpose(seen), found[:, min(lengths):])


def test_loop_fills_the_context_and_adds_one_token():
    """The last one is never fed back."""
    hparams = tiny.hparams(n_ctx=8)
    run = numpy_loop.loop(hparams, 5, width=4)
    found = run(Exact(hparams, tiny.random_weights(hparams)), [[1, 2, 3, 4]], [4], np.full([1, 5], 0.5))
    assert found.shape == (1, 9)
    with pytest.raises(ValueError, match='length 5 or less'):
        numpy_loop.loop(hparams, 6, width=4)


@pytest.mark.parametrize('options', [
    dict(temperature=-1), dict(top_k=-1), dict(top_p=0), dict(length=-1), dict(length=33), dict(length=30, width=4)],
    ids=str)
def test_loop_rejects_options_as_sample_sequence_does(options):
    with pytest.raises(ValueError, match=list(options)[0]):
        numpy_loop.loop(tiny.hparams(n_ctx=32), **dict(dict(length=3), **options))


@pytest.mark.parametrize('lengths, message', [([1, 0], 'prompt is empty'), ([1, 30], r'prompt \(30 tokens\)')])
def test_loop_rejects_prompts_that_are_empty_or_too_long(lengths, message):
    run = numpy_loop.loop(tiny.hparams(n_ctx=32), 4)
    with pytest.raises(ValueError, match=message):
        run(None, np.zeros([2, 30], int), lengths, np.zeros([2, 4]))


@pytest.mark.parametrize('token, draws, message', [
    (-1, [[0] * 4] * 2, 'vocabulary, 0 to 10'), (11, [[0] * 4] * 2, 'vocabulary'), (3, [[0] * 3] * 2, r'\[2, 4\]'),
    (3, [[0] * 4] * 3, 'draws'), (3, [[0, 0, 0, 1]] * 2, 'draws'), (3, [[0, 0, 0, -1e-9]] * 2, 'draws')])
def test_loop_rejects_tokens_and_draws_out_of_range(token, draws, message):
    """But not what is behind the end of a shorter prompt."""
    run = numpy_loop.loop(tiny.hparams(n_ctx=32), 4)
    with pytest.raises(ValueError, match=message):
        run(None, [[1, 2], [token, 99]], [2, 1], draws)


@pytest.mark.parametrize('n_vocab', [1, 7, 256, 1733 * 29])
def test_next_token_is_that_of_sample_py(sess, n_vocab):
    """For logits that tie, at once or once they are scaled, and that do not; every kind of filter; and draws from the
    first to the last number.
    """
    random = np.random.RandomState(n_vocab)
    logits_BV = (3 * random.randn(12, n_vocab)).astype(np.float32)
    logits_BV[::2] = np.round(logits_BV[::2])  # many ties
    logits_BV[3] = 0
    logits_BV[5], logits_BV[5, 0] = 1 + random.randint(0, 9, n_vocab) * 2.0 ** -23, 30
    draw_B = random.rand(12)
    draw_B[[0, 1, 2, 5]] = 0, 1 - 2.0 ** -53, 0.5, 0.8
    logits, draws = tf.placeholder(tf.float32, [None, n_vocab]), tf.placeholder(tf.float64, [None])
    for temperature in (1, 0, 0.7, 3.5, 1e-3, 1e-30, 1e-300):
        for top_k, top_p in ((0, 1), (1, 1), (5, 1), (40, 0.9), (0, 0.5), (n_vocab, 0.3), (3, 1e-300), (0, 1 - 1e-16)):
            options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
            expected_B = sess.run(sample.next_tokens(logits, draws, **options), {logits: logits_BV, draws: draw_B})
            found_B = [numpy_loop.next_token(*row, **options) for row in zip(logits_BV, draw_B)]
            assert found_B == expected_B.tolist(), options


def test_next_token_takes_no_more_than_reach_top_p():
    """Those before have exactly the share."""
    logits_V = np.arange(0, -5, -1, np.float32)
    mass_V = np.cumsum(np.exp(logits_V, dtype=float) / np.exp(logits_V, dtype=float).sum())
    for last, mass in enumerate(mass_V[:-1]):
        assert numpy_loop.next_token(logits_V, 1 - 1e-9, 1, 0, mass) == last


@pytest.mark.parametrize('n', [1, 256, 257, 512, 1000, 50257])
def test_place_of_is_where_the_cumulative_sum_exceeds_the_share(n):
    """Of whole numbers, whose sums are exact; at the first and the last of them, and between two."""
    random = np.random.RandomState(n)
    weight_N = random.randint(0, 3, n).astype(float)
    weight_N[n // 2] = 1
    cumulative_N = weight_N.cumsum()
    ends = cumulative_N[numpy_loop.BLOCK - 1::numpy_loop.BLOCK]
    shares = np.concatenate([[0, 1 - 2.0 ** -53], random.rand(200), random.choice(cumulative_N, 200) / cumulative_N[-1],
                             ends / cumulative_N[-1]])
    for draw in shares[shares < 1]:
        expected = np.count_nonzero(cumulative_N <= draw * cumulative_N[-1])
        assert numpy_loop.place_of(draw, weight_N) == expected


def test_place_of_has_a_weight_however_the_sums_are_rounded():
    """Also where a block's sum is greater than that of its weights one by one, and those behind it are 0."""
    for seed in range(300):
        weight_N = np.random.RandomState(seed).rand(600) ** 9
        weight_N[-np.random.RandomState(seed).randint(1, 300):] = 0
        assert weight_N[numpy_loop.place_of(1 - 2.0 ** -53, weight_N)] > 0
        assert numpy_loop.place_of(0, weight_N) == 0


def test_top_k_ids_keeps_ties_with_the_last():
    logits_V = np.float32([5, 1, 3, 3, 2, 3, 0, 4])
    for k, expected in ((1, [0]), (2, [0, 7]), (3, [0, 2, 3, 5, 7]), (5, [0, 2, 3, 5, 7]), (6, [0, 2, 3, 4, 5, 7])):
        assert numpy_loop.top_k_ids(logits_V, k).tolist() == expected
    for k in (0, 8, 9, 10 ** 12):
        assert numpy_loop.top_k_ids(logits_V, k).tolist() == list(range(8))


@pytest.mark.parametrize('n_vocab', [256, 1733 * 29])
def test_top_k_ids_are_those_of_a_full_sort(n_vocab):
    random = np.random.RandomState(0)
    for k in (1, 2, 3, 5, 17, 40, 255):
        logits_V = random.randn(n_vocab).astype(np.float32)
        assert numpy_loop.top_k_ids(logits_V, k).tolist() == sorted(np.argsort(-logits_V)[:k])
        assert len(numpy_loop.shortlist(logits_V, k)) < 2 * k + 3, 'few are left to sort'


def test_log_probabilities_follow_the_definition():
    """For logits that tie, of which the first ones are taken, and that exceed what exp can take; or for no tokens."""
    random = np.random.RandomState(0)
    logits_AV, token_A = np.float32(random.randint(-5, 5, [4, 300])), random.randint(0, 300, 4)
    logits_AV[1], logits_AV[2:] = random.randn(300), logits_AV[2:] + [[1000], [-1000]]
    expected_AV = logits_AV - np.logaddexp.reduce(logits_AV, axis=1, dtype=float)[:, None]
    for n in (1, 40, 300):
        found_A, id_AN, found_AN = numpy_loop.log_probabilities(logits_AV, token_A, n)
        assert id_AN.tolist() == [sorted(range(300), key=lambda i: (-logits_V[i], i))[:n] for logits_V in logits_AV]
        np.testing.assert_allclose(found_A, expected_AV[range(4), token_A], rtol=0, atol=2e-4)  # 3 steps near 1000
        np.testing.assert_allclose(found_AN, np.take_along_axis(expected_AV, id_AN, axis=1), rtol=0, atol=2e-4)
    found_A, id_AN, found_AN = numpy_loop.log_probabilities(logits_AV, token_A, 0)
    assert not found_A.any() and id_AN.shape == found_AN.shape == (4, 0)
