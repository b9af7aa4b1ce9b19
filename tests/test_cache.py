"""cache.py: keys and values come back in their order, whoever asks and in whatever pieces they are kept."""
import numpy as np
import pytest

from gpt2.fast import cache
from gpt2.fast import matmul
from gpt2.system.tf1 import tf
from helpers import tiny
from helpers.networks import assert_close, decode, random_tokens, run_model


def random(*shape):
    return np.random.RandomState(len(shape)).standard_normal(shape).astype(np.float32)


# Past

def test_past_positions_follow_those_of_all_pieces(sess):
    """Also where tokens are before the new ones that are in no piece."""
    hparams, tokens_BT = tiny.hparams(), tf.zeros([2, 3], tf.int32)
    pieces = [[tf.zeros([4, n, 4])] * 4 for n in (5, 2)]
    for options, expected in (({}, [0, 1, 2]), ({'pieces': pieces}, [7, 8, 9]), ({'n_before': 4}, [4, 5, 6])):
        past = cache.Past(hparams, tokens_BT, **options)
        assert sess.run(past.position_T).tolist() == expected


def test_past_masks_what_is_ahead(sess):
    """Of all positions up to the last new token, or of a given number of positions."""
    hparams, tokens_BT, score_GTS = tiny.hparams(), tf.zeros([2, 3], tf.int32), random(1, 3, 5)
    expected = score_GTS + np.where(np.tri(3, 5, 2), 0, np.float32(-1e10))
    for past in (cache.Past(hparams, tokens_BT, [[tf.zeros([4, 2, 4])] * 4]),
                 cache.Past(hparams, tokens_BT, n_before=2, n_positions=5)):
        np.testing.assert_allclose(sess.run(past.mask(tf.constant(score_GTS))), expected, rtol=1e-6)


@pytest.mark.parametrize('n_new', [1, 3])
@pytest.mark.parametrize('known', [True, False])
def test_past_wants_the_last_token_after_the_last_layers_keys(sess, known, n_new):
    """In earlier layers every token is needed, for its keys and values; without last_only, in the last one, too."""
    hparams = tiny.hparams(n_layer=2)
    tokens_BT = tf.placeholder(tf.int32, [2, n_new] if known else [None, None])
    q_GTK, hidden_RD = random(4, n_new, 4), random(2 * n_new, 8)
    for last_only in (True, False):
        past = cache.Past(hparams, tokens_BT, last_only=last_only)
        for layer in (0, 1):
            found = sess.run([past.wanted(tf.constant(x), layer) for x in (q_GTK, hidden_RD)],
                             {tokens_BT: np.zeros([2, n_new])})
            expected = [q_GTK[:, -1:], hidden_RD[n_new - 1::n_new]] if last_only and layer else [q_GTK, hidden_RD]
            for ours, theirs in zip(found, expected):
                np.testing.assert_array_equal(ours, theirs)


def test_past_appends_new_keys_and_values_to_the_last_piece(sess):
    """Of the layer that asks. `new` holds the new ones alone, of the layers in their order."""
    arrays = [[random(4, 3, 4) + number for number in range(4)], [random(4, 2, 4) - number for number in range(4)]]
    pieces = [list(map(tf.constant, piece)) for piece in arrays]
    past = cache.Past(tiny.hparams(n_layer=2), tf.zeros([2, 1], tf.int32), pieces)
    new = [random(4, 1, 4) * number for number in range(4)]
    for layer in (0, 1):
        found = past.append(layer, *map(tf.constant, new[2 * layer:2 * layer + 2]))
        for number, pieces in enumerate(sess.run(list(map(list, found))), 2 * layer):
            np.testing.assert_array_equal(pieces[0], arrays[0][number])
            np.testing.assert_array_equal(pieces[1], np.concatenate([arrays[1][number], new[number]], axis=1))
    np.testing.assert_array_equal(sess.run(past.new), new)


@pytest.mark.parametrize('onednn', [True, False] if hasattr(tf, 'raw_ops') else [False])
@pytest.mark.parametrize('lengths', [[5], [4, 2], [0, 3], [3, 0]], ids=str)
@pytest.mark.parametrize('is_single', [True, False])
def test_pieces_are_multiplied_like_their_concatenation(sess, monkeypatch, is_single, lengths, onednn):
    """As keys, which are transposed, and as values; also where a piece is empty."""
    monkeypatch.setattr(matmul, 'on_onednn', lambda: onednn)
    arrays = [random(3, n, 4) for n in lengths]
    pieces = cache.Pieces(list(map(tf.constant, arrays)), is_single, tf.constant(lengths))
    whole, n_queries = np.concatenate(arrays, axis=1), 1 if is_single else 2
    q_GTK, weight_GTS = random(3, n_queries, 4), random(3, n_queries, sum(lengths))
    found = sess.run([matmul.matmul(tf.constant(q_GTK), pieces, transpose_b=True),
                      matmul.matmul(tf.constant(weight_GTS), pieces)])
    for ours, theirs in zip(found, [q_GTK @ whole.transpose(0, 2, 1), weight_GTS @ whole]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


# Cache

def test_cache_keeps_tokens_in_their_order(sess):
    """Empty, added to, settled, and added to again."""
    hparams = tiny.hparams(n_layer=2)
    new = [[random(6, n, 4) + number for number in range(4)] for n in (3, 1, 2)]
    found = cache.empty(hparams, 3)
    for n_added, present in enumerate(new, 1):
        found = found.add(list(map(tf.constant, present)))
        old, recent_LGSK = sess.run(found)
        np.testing.assert_array_equal(np.concatenate([old, recent_LGSK], axis=2), np.concatenate(new[:n_added], axis=2))
        if n_added == 2:
            assert old[0].shape[1] == 0
            found = found.settle(hparams.n_head)
            assert sess.run(found).recent.shape == (4, 6, 0, 4)
    assert (old[0].shape[1], recent_LGSK.shape[2]) == (4, 2)
    expected = cache.shapes(hparams, 3)
    assert [piece.as_list() for piece in expected.old] == [[6, None, 4]] * 4
    assert expected.recent.as_list() == [4, 6, None, 4]
    assert cache.shapes(hparams, None).recent.as_list() == [4, None, None, 4]


@pytest.mark.slow
def test_cache_settle_keeps_only_the_given_rows(sess):
    """The continuation of the third of four texts does not depend on which of the others are still in the batch."""
    hparams = tiny.hparams()
    weights = tiny.random_weights(hparams)
    tokens = random_tokens(hparams, [4, 12])
    whole_logits, _, _ = run_model(sess, hparams, tokens, weights)
    tokens_BT, rows = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.int32, [None])
    _, so_far = decode(hparams, tokens_BT[:, :5], cache.empty(hparams, 4))
    _, so_far = decode(hparams, tokens_BT[:, 5:6], so_far.settle(hparams.n_head))
    logits_BV, _ = decode(hparams, tf.gather(tokens_BT, rows)[:, 6:], so_far.settle(hparams.n_head, rows))
    for kept in ([2], [0, 2], [3, 2, 1], [0, 1, 2, 3]):
        found = sess.run(logits_BV, {tokens_BT: tokens, rows: kept})
        assert_close(found, whole_logits[kept, -1])


@pytest.mark.parametrize('n_old', [1, 10, 128, 1000])
def test_cache_is_due_when_settling_costs_least(sess, n_old):
    """Copying r recent tokens at each of r steps and all at the last: no other period r copies fewer for each token."""
    n_recent = tf.placeholder(tf.int32, [])
    shape = [4, 2]
    due = cache.Cache(tf.zeros(shape + [n_old, 4]), tf.zeros(tf.stack(shape + [n_recent, 4]))).is_due()
    first = [sess.run(due, {n_recent: r}) for r in range(1, n_old + 2)].index(True) + 1
    cost = {r: (r * (r + 1) / 2 + n_old + r) / r for r in range(1, n_old + 2)}
    assert cost[first] <= 1.02 * min(cost.values())
