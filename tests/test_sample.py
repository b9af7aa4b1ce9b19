"""sample.py against brute force, models whose next token is known, and a sampler that has no cache."""
import itertools
import math

import numpy as np
import pytest

from gpt2.fast import matmul
from gpt2.fast import xla
from gpt2.sampler import batches, random_draws, up_to_end
from gpt2.system import process
from gpt2.system.tf1 import tf
import model
import sample
from helpers import reference, tiny

compiled_or_not = pytest.mark.parametrize('compiled', [False, True] if xla.is_supported() else [False])
LARGEST_DRAW = 1 - 2.0 ** -53  # the largest float64 below 1


# ---- what the samplers under test are compared with: definitions in float64, one row at a time

def plain_top_k(logits, k):
    """Which tokens stay, bool [V]: those for which fewer than k are more likely."""
    return np.array([k == 0 or np.count_nonzero(logits > logit) < k for logit in logits])


def plain_top_p(logits, p):
    """Which tokens stay, bool [V]: those for which the more likely ones do not reach p."""
    probability = softmax(logits)
    return np.array([p == 1 or math.fsum(probability[logits > logit]) < p for logit in logits])


def softmax(logits):
    shares = np.exp(logits - logits.max())
    return shares / math.fsum(shares)


def plain_pick(logits, draw):
    """The first token at which the cumulative probability exceeds the draw."""
    return int(np.searchsorted(np.cumsum(softmax(logits)), draw, side='right'))


def plain_next(logits, draw, *, temperature=1, top_k=0, top_p=1, order=('temperature', 'top_k', 'top_p')):
    logits = np.asarray(logits, dtype=np.float64)
    if temperature == 0:
        return int(logits.argmax())
    for name in order:
        if name == 'temperature':
            logits = logits / temperature
        elif name == 'top_k':
            logits = np.where(plain_top_k(logits, top_k), logits, -np.inf)
        else:
            logits = np.where(plain_top_p(logits, top_p), logits, -np.inf)
    return plain_pick(logits, draw)


def plain_sampler(sess, hparams, weights):
    """plain_sample(prompt, draws): the prompt and a token for each draw, a list. Each takes a run of the whole text."""
    tokens_BT = tf.placeholder(tf.int32, [1, None])
    logits_BTV = model.model(hparams, tokens_BT, reuse=tf.AUTO_REUSE)['logits']
    tiny.assign(sess, weights)

    def plain_sample(prompt, draws, **options):
        tokens = list(prompt)
        for draw in draws:
            tokens.append(plain_next(sess.run(logits_BTV, {tokens_BT: [tokens]})[0, -1], draw, **options))
        return tokens

    return plain_sample


# ---- models that are real networks and whose next token is known

def counting_model():
    """HParams and weights of a network that is certain of the next token: the last one plus 1, and 0 after 11.

    Tokens are unit vectors, attention is off, and the feed-forward layer shifts a unit vector by one.
    """
    hparams = tiny.hparams(n_vocab=12, n_embd=12, n_head=1, n_layer=1)
    weights = {name: np.zeros(shape) for name, shape in tiny.variable_shapes(hparams)}
    one_BV = np.eye(12)
    weights['model/wte'] = one_BV
    weights['model/h0/ln_2/g'] += 1
    weights['model/h0/mlp/c_fc/w'][0, :, :12] = 10 * one_BV  # gelu: 33 for the last token, 0 for others
    weights['model/h0/mlp/c_proj/w'][0, :12] = np.roll(one_BV, 1, axis=1)
    weights['model/ln_f/g'] += 100  # logits 360 apart: no draw finds another token
    return hparams, weights


def constant_model(logits):
    """HParams and weights of a network that gives these logits after any text."""
    hparams = tiny.hparams(n_vocab=len(logits), n_embd=1, n_head=1, n_layer=1)
    weights = {name: np.zeros(shape) for name, shape in tiny.variable_shapes(hparams)}
    weights['model/wte'][:, 0] = logits
    weights['model/ln_f/b'] += 1
    return hparams, weights


def random_model(**sizes):
    """HParams and weights of a network whose logits depend on all of the text."""
    hparams = tiny.hparams(**dict(dict(n_layer=1), **sizes))
    return hparams, tiny.random_weights(hparams, 0.6)


def sampled(sess, hparams, weights, **options):
    """What sample_sequence returns, as an array."""
    tokens = sample.sample_sequence(hparams=hparams, **options)
    tiny.assign(sess, weights)
    return sess.run(tokens)


def even_grid(n):
    """n draws, each in the middle of its n-th of [0, 1)."""
    return (np.arange(n) + 0.5) / n


# ---- filters

def random_rows():
    """float32 [200, 40]: logits, every second row with many ties."""
    rows = np.random.RandomState(0).standard_normal([200, 40]) * 3
    rows[::2] = rows[::2].round()
    return rows.astype(np.float32)


def assert_kept(filtered, logits, kept):
    """Logits as they were where kept, -1e10 elsewhere."""
    np.testing.assert_array_equal(filtered, np.where(kept, logits, np.float32(-1e10)))


@pytest.mark.slow
@pytest.mark.parametrize('k', [0, 1, 2, 7, 39, 40, 41, 10 ** 6])
def test_top_k_logits_keeps_what_brute_force_keeps(sess, k):
    """200 random rows; k as a number and as a tensor. Ties with the k-th stay; 0 and more than V keep all."""
    rows = random_rows()
    kept = [plain_top_k(row, k) for row in rows]
    k_fed = tf.placeholder(tf.int32, [])
    by_number, by_tensor = sess.run(
        [sample.top_k_logits(tf.constant(rows), k), sample.top_k_logits(rows, k_fed)], {k_fed: k})
    assert_kept(by_number, rows, kept)
    assert_kept(by_tensor, rows, kept)


def test_top_k_logits_beyond_int32_keeps_all(sess):
    rows = random_rows()
    assert_kept(sess.run(sample.top_k_logits(tf.constant(rows), 2 ** 31)), rows, np.ones(rows.shape, bool))


@pytest.mark.slow
@pytest.mark.parametrize('p', [1e-300, 1e-40, 1e-9, 0.1, 0.5, 0.9, 0.99, 1 - 1e-9, 1])
def test_top_p_logits_keeps_what_brute_force_keeps(sess, p):
    """200 random rows. Ties with the last stay; a tiny p keeps the most likely token, 1 keeps all."""
    rows = random_rows()
    kept = [plain_top_p(row.astype(np.float64), p) for row in rows]
    assert_kept(sess.run(sample.top_p_logits(tf.constant(rows), p)), rows, kept)


def test_top_p_logits_keeps_the_token_that_reaches_p_and_not_the_next(sess):
    """p a billionth below and above the mass of the 1, 2 ... most likely tokens."""
    row = np.array([[0.5, -1, 2, 0, 1]], np.float32)
    masses = np.cumsum(np.sort(softmax(row[0].astype(np.float64)))[::-1])[:-1]
    for n, mass in enumerate(masses, 1):
        below, above = sess.run([sample.top_p_logits(tf.constant(row), float(mass) * (1 + shift))
                                 for shift in (-1e-9, 1e-9)])
        assert_kept(below, row, plain_top_k(row[0], n))
        assert_kept(above, row, plain_top_k(row[0], n + 1))


def test_top_k_and_top_p_logits_keep_ties_with_the_last_token(sess):
    """The sum equals p exactly: four equal tokens have a quarter each."""
    row = np.array([[3, -1e10, 3, 3, 3, -1e10]], np.float32)
    for p in (0.1, 0.25, 0.5, 0.75, 0.999):
        assert_kept(sess.run(sample.top_p_logits(tf.constant(row), p)), row, row[0] == 3)
    for k in (1, 3, 4):
        assert_kept(sess.run(sample.top_k_logits(tf.constant(row), k)), row, row[0] == 3)


def test_top_k_and_top_p_logits_reject_what_is_out_of_range():
    logits = tf.zeros([1, 3])
    for k in (-1, 2.5, float('nan')):
        with pytest.raises(ValueError):
            sample.top_k_logits(logits, k)
    for p in (0, -0.1, 1.01, 90, float('nan')):
        with pytest.raises(ValueError, match='top_p'):
            sample.top_p_logits(logits, p)


# ---- the draw

def picked(sess, rows, draws):
    """pick() of every row with every draw: int [rows, draws]."""
    n_row, n_draw = len(rows), len(draws)
    logits_BV = np.repeat(np.asarray(rows, dtype=np.float32), n_draw, axis=0)
    tokens_B = sample.pick(tf.constant(logits_BV), tf.constant(np.tile(draws, n_row), tf.float64))
    assert tokens_B.dtype == tf.int32
    return sess.run(tokens_B).reshape(n_row, n_draw)


def test_pick_follows_softmax_for_evenly_spread_draws(sess):
    """Of n draws each token gets its share, give or take one: this is exact, not statistical."""
    rows, draws = random_rows()[:20], even_grid(500)
    for row, tokens in zip(rows, picked(sess, rows, draws)):
        share = np.bincount(tokens, minlength=len(row)) / len(draws)
        assert (np.abs(share - softmax(row.astype(np.float64))) <= 1 / len(draws) + 1e-6).all()
        assert (np.diff(tokens) >= 0).all()  # a larger draw picks a later token


@pytest.mark.parametrize('n_vocab, unlikely', [(101, 1e-12), (50257, 1e-9)])
def test_pick_reaches_every_token_of_the_far_tail(sess, n_vocab, unlikely):
    """One token has nearly all of the probability; a draw in the middle of another's interval picks that one.

    In float32 those intervals vanish: numbers near 0.9 are 6e-8 apart.
    """
    row = np.full(n_vocab, np.log(unlikely), np.float32)
    row[n_vocab // 2] = 0
    share = np.exp(row.astype(np.longdouble))
    ends = np.cumsum(share) / share.sum()
    tokens = np.unique(np.linspace(0, n_vocab - 1, 101).astype(int))
    draws = (ends - share / share.sum() / 2)[tokens].astype(np.float64)
    if n_vocab == 101:
        assert picked(sess, [row], draws)[0].tolist() == tokens.tolist()
    else:  # a row for each draw would take 20 MB
        draw_B = tf.placeholder(tf.float64, [1])
        token_B = sample.pick(tf.constant(row[None]), draw_B)
        assert [sess.run(token_B, {draw_B: [draw]})[0] for draw in draws] == tokens.tolist()


def test_pick_never_takes_a_removed_token(sess):
    """Neither for the smallest draw nor for the largest, wherever in the row it is."""
    rows = random_rows()
    filtered = sess.run(sample.top_k_logits(tf.constant(rows), 3))
    filtered[1] = -1e10
    filtered[1, 17] = 2  # one token left
    draws = np.concatenate([[0, 2.0 ** -53], even_grid(20), [LARGEST_DRAW]])
    tokens = picked(sess, filtered, draws)
    assert (np.take_along_axis(filtered, tokens.astype(int), axis=1) > -1e10).all()
    for row, first, last in zip(filtered, tokens[:, 0], tokens[:, -1]):
        assert [first, last] == np.flatnonzero(row > -1e10)[[0, -1]].tolist()


def test_pick_never_takes_a_token_beyond_the_last(sess):
    """1 - 2^-53 is the last token's and 0 the first one's, however a sum of 1 to 40 equal shares rounds."""
    rows = np.where(np.tri(40), 0, -1e10)
    assert picked(sess, rows, [0, LARGEST_DRAW]).tolist() == [[0, last] for last in range(40)]
    assert picked(sess, np.full([1, 40], 7), [0, LARGEST_DRAW]).tolist() == [[0, 39]]


@pytest.mark.slow
def test_next_tokens_applies_temperature_then_top_k_then_top_p(sess):
    """With these options every other order gives other tokens.

    Except one: top_k and temperature may change places, because temperature keeps the order of logits.
    """
    logits = np.log([0.09, 0.13, 0.26, 0.28, 0.24])
    options = dict(temperature=0.5, top_k=4, top_p=0.65)
    hparams, weights = constant_model(logits)
    draws = even_grid(100)
    tokens = sampled(sess, hparams, weights, length=1, start_token=0, batch_size=100, draws=draws[:, None],
                     **options)[:, 1]
    right = [('temperature', 'top_k', 'top_p'), ('top_k', 'temperature', 'top_p')]
    for order in itertools.permutations(right[0]):
        expected = [plain_next(logits, draw, order=order, **options) for draw in draws]
        assert (tokens.tolist() == expected) == (order in right), order


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [0, 1e-3, 1e-300])
def test_next_tokens_near_temperature_0_takes_the_most_likely(sess, temperature):
    """For the largest and the smallest draw, with logits near and far apart, and without NaN on the way."""
    hparams, weights = constant_model([-3e4, 5, 5.5, -1e10, 5])
    draws = np.array([[0], [0.5], [LARGEST_DRAW]])
    tokens = sampled(sess, hparams, weights, length=1, start_token=0, batch_size=3, draws=draws,
                     temperature=temperature, top_k=4, top_p=0.9)
    assert tokens.tolist() == [[0, 2]] * 3


@pytest.mark.slow
@pytest.mark.parametrize('top_k', [0, 2])
def test_next_tokens_at_temperature_0_takes_the_first_of_the_most_likely(sess, top_k):
    hparams, weights = constant_model([1, 3, 3, 0, 3])
    tokens = sampled(sess, hparams, weights, length=1, start_token=0, batch_size=3, draws=[[0], [0.5], [LARGEST_DRAW]],
                     temperature=0, top_k=top_k)
    assert tokens.tolist() == [[0, 1]] * 3


@pytest.mark.slow
@pytest.mark.parametrize('from_shortlist', [True, False])
def test_next_tokens_draws_ties_with_the_kth_from_the_whole_vocabulary(sess, from_shortlist):
    """1 to 30 tokens of 40 tie with the third, before scaling or only after it: beside 100, 1e-8 apart is equal."""
    rows = np.zeros([3, 40], np.float32) - 1
    rows[0, [7, 30]] = 2, 1
    rows[0, 1::2] = np.maximum(rows[0, 1::2], 0)
    rows[1, [5, 6, 20]] = 3, 2, 1
    rows[2, :10] = np.arange(10) * 1e-8
    rows[2, 3] = 100
    assert len(set(rows[2])) == 11 and len(set(rows[2] - 100)) == 3
    draw_B = tf.placeholder(tf.float64, [None])
    # The third alone, too: then no row of the batch ties before scaling.
    for some, temperature in itertools.product((rows, rows[2:]), (1, 1e3)):
        token_B = sample.next_tokens(tf.constant(some), draw_B, temperature=temperature, top_k=3, top_p=1,
                                     from_shortlist=from_shortlist)
        for draw in even_grid(37):
            scaled = (some - some.max(axis=1, keepdims=True)) / np.float32(temperature)
            expected = [plain_next(row, draw, top_k=3) for row in scaled]
            assert sess.run(token_B, {draw_B: [draw] * len(some)}).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize('top_k', [1, 5, 39, 40, 10 ** 6])
@pytest.mark.parametrize('top_p', [1, 0.6])
def test_next_tokens_from_shortlist_equals_filtering_all(sess, top_k, top_p):
    rows, draws = random_rows(), np.random.RandomState(0).random_sample(200)
    token_B = sample.next_tokens(tf.constant(rows), tf.constant(draws), temperature=0.7, top_k=top_k, top_p=top_p)
    scaled = tf.constant((rows - rows.max(axis=1, keepdims=True)) / np.float32(0.7))
    plain_B = sample.pick(sample.top_p_logits(sample.top_k_logits(scaled, top_k), top_p), tf.constant(draws))
    assert np.array_equal(*sess.run([token_B, plain_B]))


# ---- the loop's bookkeeping

@pytest.mark.slow
def test_sample_sequence_feeds_each_token_back(sess):
    hparams, weights = counting_model()
    tokens = sampled(sess, hparams, weights, length=5, context=[[7, 7, 7], [0, 1, 2], [4, 11, 10]])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [[7, 7, 7, 8, 9, 10, 11, 0], [0, 1, 2, 3, 4, 5, 6, 7], [4, 11, 10, 11, 0, 1, 2, 3]]


def test_sample_sequence_of_length_0_is_the_prompt(sess):
    hparams, weights = counting_model()
    assert sampled(sess, hparams, weights, length=0, context=[[7, 3], [0, 1]]).tolist() == [[7, 3], [0, 1]]


@pytest.mark.slow
def test_sample_sequence_ends_rows_at_the_end_token_and_stops_when_all_have_ended(sess):
    """An end token inside a prompt does not count. Fewer columns than length come back."""
    hparams, weights = counting_model()
    context_BT, length = tf.placeholder(tf.int32, [None, None]), 10
    tokens_BS = sample.sample_sequence(hparams=hparams, length=length, context=context_BT, end_token=9)
    tiny.assign(sess, weights)
    assert sess.run(tokens_BS, {context_BT: [[9, 6], [1, 8], [9, 4]]}).tolist() == [
        [9, 6, 7, 8, 9, 9, 9],
        [1, 8, 9, 9, 9, 9, 9],
        [9, 4, 5, 6, 7, 8, 9]]
    assert sess.run(tokens_BS, {context_BT: [[8], [9]]}).tolist() == [
        [8] + [9] * 10, list(range(9, 12)) + list(range(8))]
    assert sess.run(tokens_BS, {context_BT: [[8]]}).tolist() == [[8, 9]]


@pytest.mark.slow
@compiled_or_not
@pytest.mark.parametrize('end_token, filler', [(None, -1), (5, 5)])
def test_sample_sequence_gives_prompts_of_different_lengths_length_tokens_each(sess, end_token, filler, compiled):
    """What follows a shorter prompt is ignored; a row that has its tokens is filled with -1 or the end token."""
    hparams, weights = counting_model()
    context = [[7, 7, 7, 7, 7],
               [1, 8, 5, 5, 5],
               [6, 3, 10, 0, 11]]
    tokens = sampled(sess, hparams, weights, length=3, context=context, context_lengths=[5, 2, 3], end_token=end_token,
                     compiled=compiled)
    assert tokens.tolist() == [[7, 7, 7, 7, 7, 8, 9, 10],
                               [1, 8, 9, 10, 11] + [filler] * 3,
                               [6, 3, 10, 11, 0, 1] + [filler] * 2]


@pytest.mark.slow
@compiled_or_not
def test_sample_sequence_may_end_a_row_inside_a_longer_prompt(sess, compiled):
    """The longer one contains the end token there, and an 8, after which the network predicts it."""
    hparams, weights = counting_model()
    tokens = sampled(sess, hparams, weights, length=9, context=[[2, 2, 9, 8, 8, 2], [7, 8, 0, 0, 0, 0]],
                     context_lengths=[6, 2], end_token=9, compiled=compiled)
    assert tokens.tolist() == [[2, 2, 9, 8, 8, 2, 3, 4, 5, 6, 7, 8, 9], [7, 8] + [9] * 11]


@pytest.mark.slow
def test_sample_sequence_row_i_picks_its_jth_token_with_draw_i_j(sess):
    """Whatever the length of its prompt. All ten tokens are equally likely, so a draw picks its first decimal."""
    hparams, weights = constant_model(np.zeros(10))
    digits = np.random.RandomState(0).randint(10, size=[3, 6])
    tokens = sampled(sess, hparams, weights, length=6, context=np.full([3, 4], 3), context_lengths=[2, 4, 1],
                     draws=(digits + 0.5) / 10)
    assert tokens.tolist() == [
        [3] * 2 + digits[0].tolist() + [-1] * 2,
        [3] * 4 + digits[1].tolist(),
        [3] * 1 + digits[2].tolist() + [-1] * 3]


@pytest.mark.slow
def test_sample_sequence_removes_rows_that_have_ended(sess, monkeypatch):
    """At most a third of the rows fed to the network have ended: these are removed when the cache is copied anyway.

    Up to its end, a row is the one that is sampled without an end token.
    """
    hparams, weights = random_model(n_layer=2, n_ctx=64)
    rows_fed = []
    decoder = model.decoder

    def counting_decoder(hparams, tokens, past):
        counted = tf.py_func(lambda tokens_BT: rows_fed.append(len(tokens_BT)), [tokens], [])
        with tf.control_dependencies([counted]):
            return decoder(hparams, tf.identity(tokens), past)

    draws = np.random.RandomState(1).random_sample([40, 60])
    context_BT, draws_BT = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.float64, [None, 60])
    alone_BS = sample.sample_sequence(hparams=hparams, length=60, context=context_BT, draws=draws_BT)
    tiny.assign(sess, weights)
    alone = sess.run(alone_BS, {context_BT: np.full([40, 1], 3), draws_BT: draws})
    monkeypatch.setattr(model, 'decoder', counting_decoder)
    ended_BS = sample.sample_sequence(hparams=hparams, length=60, context=context_BT, draws=draws_BT, end_token=5)
    together = sess.run(ended_BS, {context_BT: np.full([40, 1], 3), draws_BT: draws})
    n_alive = 0
    for row, expected in zip(together, alone):
        places = np.flatnonzero(expected[1:] == 5)
        n_tokens = places[0] + 2 if len(places) else 61
        n_alive += n_tokens - 1
        assert row[:n_tokens].tolist() == expected[:n_tokens][:len(row)].tolist()
        assert (row[n_tokens:] == 5).all()
    assert rows_fed[0] == 40 and rows_fed[-1] < 20
    assert sum(rows_fed) <= 1.5 * n_alive


@pytest.mark.slow
@pytest.mark.parametrize('onednn', [True, False] if hasattr(tf, 'raw_ops') else [False])
@pytest.mark.parametrize('n_prompt', [1, 3])
@pytest.mark.parametrize('n_texts, n_head, n_parts', [(1, 2, 2), (3, 2, 4), (1, 1, 2), (1, 4, 3)])
def test_sample_sequence_in_parts_equals_plain_sampler(sess, monkeypatch, n_texts, n_head, n_parts, n_prompt, onednn):
    """Also where oneDNN multiplies; when only one row remains; when a part has no heads at all."""
    monkeypatch.setattr(matmul, 'on_onednn', lambda: onednn)
    monkeypatch.setattr(process, 'n_cores', lambda: n_parts)
    hparams, weights = random_model(n_layer=2, n_ctx=32, n_embd=12, n_head=n_head)
    plain_sample = plain_sampler(sess, hparams, weights)
    draws = np.random.RandomState(2).random_sample([n_texts, 20])
    prompts = [[3, 1, 4], [1, 5, 9], [2, 6, 5]]
    prompts = [prompt[:n_prompt] for prompt in prompts[:n_texts]]
    tokens_BS = sample.sample_sequence(hparams=hparams, length=20, context=prompts, draws=draws, end_token=7)
    assert any('h0/mlp' in operation.name and operation.type == 'AddN' for operation in sess.graph.get_operations())
    for row, prompt, draw_S in zip(sess.run(tokens_BS), prompts, draws):
        expected = prompt + up_to_end(plain_sample(prompt, draw_S)[len(prompt):], 7)
        assert row[:len(expected)].tolist() == expected
        assert (row[len(expected):] == 7).all()


@pytest.mark.slow
@pytest.mark.parametrize('n_texts', [1, 3, None])
def test_sample_sequence_inside_a_loop_of_the_caller(sess, n_texts):
    """Each round continues from the last token of the one before; also with an unknown batch."""
    hparams, weights = counting_model()
    start_B1 = tf.placeholder(tf.int32, [n_texts, 1])

    def go_on(i, last_B1):
        tokens_BS = sample.sample_sequence(hparams=hparams, length=2, context=last_B1, top_k=1)
        return i + 1, tf.reshape(tokens_BS[:, -1:], [-1 if n_texts is None else n_texts, 1])

    _, last_B1 = tf.while_loop(lambda i, _: i < 3, go_on, (0, start_B1),
                               shape_invariants=(tf.TensorShape([]), tf.TensorShape([n_texts, 1])))
    tiny.assign(sess, weights)
    starts = [[2], [5], [1]][:n_texts]
    assert sess.run(last_B1, {start_B1: starts}).tolist() == [[start + 6] for start, in starts]


@pytest.mark.slow
def test_sample_sequence_watch_sees_each_column(sess):
    """As soon as it is sampled, in the order of the rows, with what follows the end of a row."""
    hparams, weights = counting_model()
    seen = []
    tokens = sampled(sess, hparams, weights, length=4, context=[[5], [7], [8]], end_token=9, watch=seen.append)
    assert [column.tolist() for column in seen] == tokens[:, 1:].T.tolist() == [
        [6, 8, 9], [7, 9, 9], [8, 9, 9], [9, 9, 9]]


@pytest.mark.slow
def test_sample_sequence_draws_in_a_list_keep_their_digits(sess):
    """A Python number is a float64. As float32, 1 - 2^-53 would be 1, and pick a token that does not exist."""
    hparams, weights = constant_model(np.zeros(10))
    tokens = sampled(sess, hparams, weights, length=2, start_token=0, batch_size=1, draws=[[0.7 - 1e-12, LARGEST_DRAW]])
    assert tokens.tolist() == [[0, 6, 9]]


@pytest.mark.slow
def test_sample_sequence_without_draws_differs_in_every_row_and_run(sess):
    hparams, weights = constant_model(np.zeros(10))
    tokens_BS = sample.sample_sequence(hparams=hparams, length=30, start_token=0, batch_size=4)
    tiny.assign(sess, weights)
    rows = np.concatenate([sess.run(tokens_BS), sess.run(tokens_BS)])
    assert rows.min() >= 0 and rows.max() <= 9
    assert len({tuple(row) for row in rows}) == 8


# ---- against the plain sampler and the papers

@pytest.mark.slow
@compiled_or_not
@pytest.mark.parametrize('options', [
    dict(), dict(temperature=0), dict(temperature=0.7, top_k=6, top_p=0.8)], ids=str)
def test_sample_sequence_of_a_batch_equals_each_prompt_alone_and_plain_sampler(sess, options, compiled):
    """Three prompts of different lengths, in one batch and one by one: the same tokens for the same draws."""
    hparams, weights = random_model(n_layer=2)
    prompts = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]
    draws = random_draws(1, range(3), 20)
    lengths_B, draws_BT = tf.placeholder(tf.int32, [None]), tf.placeholder(tf.float64, [None, 20])
    contexts = [tf.placeholder(tf.int32, [n if compiled else None, None]) for n in (3, 1)]
    of_three, of_one = [
        sample.sample_sequence(hparams=hparams, length=20, context=context_BT, context_lengths=lengths_B,
                               draws=draws_BT, compiled=compiled, **options) for context_BT in contexts]
    plain_sample = plain_sampler(sess, hparams, weights)
    expected = [plain_sample(prompt, row, **options) for prompt, row in zip(prompts, draws)]
    together = sess.run(of_three, {contexts[0]: [prompt + [7] * (7 - len(prompt)) for prompt in prompts],
                                   lengths_B: [len(prompt) for prompt in prompts], draws_BT: draws})
    assert together.shape == (3, 27)
    for row, prompt in enumerate(prompts):
        alone = sess.run(of_one, {contexts[1]: [prompt], lengths_B: [len(prompt)], draws_BT: draws[row:row + 1]})
        assert alone[0].tolist() == expected[row]
        assert together[row].tolist() == expected[row] + [-1] * (27 - len(expected[row]))


@pytest.mark.slow
def test_sample_sequence_rows_stay_the_same_when_others_have_ended(sess):
    """Twelve prompts in one batch, of 1 to 12 tokens, some of which end soon: a row keeps its own length and draws."""
    hparams, weights = random_model(n_ctx=64, n_vocab=13)
    prompts = [list(range(12 - n)) for n in range(12)]
    draws = random_draws(2, range(12), 50)
    context_BT, lengths_B = tf.placeholder(tf.int32, [None, None]), tf.placeholder(tf.int32, [None])
    draws_BT = tf.placeholder(tf.float64, [None, 50])
    tokens_BS = sample.sample_sequence(hparams=hparams, length=50, context=context_BT, context_lengths=lengths_B,
                                       draws=draws_BT, end_token=12)
    tiny.assign(sess, weights)
    together = sess.run(tokens_BS, {context_BT: [(prompt + [7] * 11)[:12] for prompt in prompts],
                                    lengths_B: [len(prompt) for prompt in prompts], draws_BT: draws})
    n_tokens = []
    for row, prompt, draw in zip(together, prompts, draws):
        alone = sess.run(tokens_BS, {context_BT: [prompt], lengths_B: [len(prompt)], draws_BT: [draw]})[0]
        assert row[:len(alone)].tolist() == alone.tolist()
        assert (row[len(alone):] == 12).all()
        n_tokens.append(len(alone) - len(prompt))
    assert min(n_tokens) < 10 and max(n_tokens) > 20


@pytest.mark.slow
def test_sample_sequence_greedy_text_of_200_tokens_equals_the_papers(sess):
    """Each token is the arg-max of the NumPy network over all tokens before it."""
    hparams, weights = random_model(n_layer=2, n_ctx=256, n_vocab=300, n_embd=16)
    tokens = sampled(sess, hparams, weights, length=200, context=[[3, 141, 59], [2, 65, 35]], temperature=0)
    assert tokens.shape == (2, 203)
    logits_BTV, _ = reference.forward(weights, tokens, hparams.n_head)
    assert np.array_equal(tokens[:, 3:], logits_BTV[:, 2:-1].argmax(axis=-1))
    assert len(set(tokens[0])) > 10  # not one token again and again


@pytest.mark.slow
def test_sample_sequence_start_token_is_a_prompt_of_that_token(sess):
    hparams, weights = random_model()
    draws = random_draws(5, range(4), 9)
    from_token = sampled(sess, hparams, weights, length=9, start_token=6, batch_size=4, draws=draws)
    from_context = sampled(sess, hparams, weights, length=9, context=[[6]] * 4, draws=draws)
    assert from_token.tolist() == from_context.tolist()
    assert (from_token[:, 0] == 6).all() and from_token.shape == (4, 10)


@pytest.mark.slow
def test_sample_sequence_is_the_same_at_any_batch_size_and_adds_no_operation_in_a_run(sess):
    """Seven samples in batches of 1, 2, 3 and 7, from one finalized graph."""
    hparams, weights = random_model()
    context_BT, draws_BT = tf.placeholder(tf.int32, [None, 1]), tf.placeholder(tf.float64, [None, 12])
    tokens_BS = sample.sample_sequence(hparams=hparams, length=12, context=context_BT, draws=draws_BT)
    tiny.assign(sess, weights)
    sess.graph.finalize()
    texts = []
    for batch_size in (1, 2, 3, 7):
        texts.append([])
        for numbers in batches(7, batch_size):
            feed = {context_BT: [[0]] * len(numbers), draws_BT: random_draws(3, numbers, 12)}
            texts[-1] += sess.run(tokens_BS, feed).tolist()
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert len({tuple(text) for text in texts[0]}) == 7


# ---- errors

@pytest.mark.slow
@compiled_or_not
def test_sample_sequence_fills_the_context_and_one_token_more(sess, compiled):
    """n_ctx + 1 tokens are sampled as by plain_sample, since the last is never fed back; one more token is an error."""
    hparams, weights = random_model(n_ctx=8)
    draws = random_draws(0, [0], 6)
    context_BC = tf.placeholder(tf.int32, [1, None])
    tokens_BS = sample.sample_sequence(hparams=hparams, length=6, context=context_BC, draws=draws, compiled=compiled)
    tiny.assign(sess, weights)
    tokens = sess.run(tokens_BS, {context_BC: [[1, 2, 3]]})
    assert tokens[0].tolist() == plain_sampler(sess, hparams, weights)([1, 2, 3], draws[0])
    assert len(tokens[0]) == hparams.n_ctx + 1
    with pytest.raises(ValueError, match='length 6 or less'):
        sample.sample_sequence(hparams=hparams, length=7, context=[[1, 2, 3]])
    with pytest.raises(ValueError, match='length 8 or less'):
        sample.sample_sequence(hparams=hparams, length=9, start_token=0, batch_size=2)


@pytest.mark.slow
def test_sample_sequence_rejects_a_fed_prompt_that_is_too_long(sess):
    hparams, weights = random_model(n_ctx=8)
    context_BT = tf.placeholder(tf.int32, [None, None])
    tokens_BS = sample.sample_sequence(hparams=hparams, length=6, context=context_BT)
    tiny.assign(sess, weights)
    assert sess.run(tokens_BS, {context_BT: [[1, 2, 3]]}).shape == (1, 9)
    with pytest.raises(tf.errors.InvalidArgumentError, match='over the context of 8'):
        sess.run(tokens_BS, {context_BT: [[1, 2, 3, 4]]})


@pytest.mark.slow
@pytest.mark.parametrize('lengths', [[0, 2], [2, 4], [-1, 2]])
def test_sample_sequence_rejects_fed_lengths_out_of_range(sess, lengths):
    hparams, weights = counting_model()
    lengths_B = tf.placeholder(tf.int32, [None])
    tokens_BS = sample.sample_sequence(hparams=hparams, length=2, context=[[1, 2, 3], [4, 5, 6]],
                                       context_lengths=lengths_B)
    tiny.assign(sess, weights)
    assert sess.run(tokens_BS, {lengths_B: [1, 3]}).tolist() == [[1, 2, 3, -1, -1], [4, 5, 6, 7, 8]]
    with pytest.raises(tf.errors.InvalidArgumentError, match='context_lengths must be 1 to the width of context'):
        sess.run(tokens_BS, {lengths_B: lengths})


@pytest.mark.slow
@compiled_or_not
@pytest.mark.parametrize('changed', [
    dict(context=[[1, 99], [3, 4]]), dict(context=[[1, 12], [3, 4]]), dict(lengths=[2]),
    dict(draws=np.zeros([2, 4])), dict(draws=np.zeros([1, 5]))], ids=str)
def test_sample_sequence_rejects_fed_values_that_do_not_fit(sess, changed, compiled):
    """Such as 12, the first token that is not in the vocabulary: XLA and a GPU would read another element instead.

    What follows a prompt in its row may be anything.
    """
    hparams, weights = counting_model()
    context_BC, lengths_B = tf.placeholder(tf.int32, [2, None]), tf.placeholder(tf.int32, [None])
    draws_BS = tf.placeholder(tf.float64, [None, None])
    tokens_BS = sample.sample_sequence(hparams=hparams, length=5, context=context_BC, context_lengths=lengths_B,
                                       draws=draws_BS, compiled=compiled)
    tiny.assign(sess, weights)

    def run(context, lengths, draws):
        return sess.run(tokens_BS, {context_BC: context, lengths_B: lengths, draws_BS: draws})

    good = dict(context=[[1, 2], [3, 99]], lengths=[2, 1], draws=np.zeros([2, 5]))
    assert run(**good).shape == (2, 7)
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(**dict(good, **changed))


@pytest.mark.parametrize('n_rows, options, said', [
    (None, dict, 'known number of rows'), (1, lambda: dict(watch=print), 'cannot be watched'),
    (1, lambda: dict(top_k=tf.constant(3)), 'top_k that is a number')], ids=['rows', 'watch', 'top_k'])
def test_sample_sequence_rejects_what_cannot_be_compiled(n_rows, options, said):
    said = said if xla.is_supported() else 'TensorFlow 1.*cannot compile'
    with tf.Graph().as_default(), pytest.raises(ValueError, match=said):
        context_BC = tf.placeholder(tf.int32, [n_rows, 1])
        sample.sample_sequence(hparams=tiny.hparams(), length=3, context=context_BC, compiled=True, **options())


@pytest.mark.parametrize('options, said', [
    (dict(), 'start_token'),
    (dict(start_token=1, batch_size=1, context=[[1]]), 'start_token'),
    (dict(start_token=1), 'batch_size'),
    (dict(context=np.zeros([2, 0], np.int32)), 'prompt is empty'),
    (dict(context=[[1], [2]], batch_size=3), 'context has 2 rows, and batch_size is 3'),
    (dict(context=[[1, 2], [3, 4]], context_lengths=[0, 2]), r'1 to the width of context, 2; they are \[0, 2\]'),
    (dict(context=[[1, 2], [3, 4]], context_lengths=[1, 3]), r'1 to the width of context, 2; they are \[1, 3\]'),
    (dict(context=[[1]], length=-1), 'length is -1'),
    (dict(context=[[1]], temperature=-0.5), 'temperature is -0.5'),
    (dict(context=[[1]], temperature=float('nan')), 'temperature is nan'),
    (dict(context=[[1]], temperature=float('inf')), 'temperature is inf'),
    (dict(context=[[1]], top_k=-1), 'top_k is -1'),
    (dict(context=[[1]], top_p=0), 'top_p is 0'),
    (dict(context=[[1]], top_p=1.5), 'top_p is 1.5')], ids=str)
def test_sample_sequence_rejects_options_out_of_range_or_in_conflict(options, said):
    with tf.Graph().as_default(), pytest.raises(ValueError, match=said):
        sample.sample_sequence(**dict(dict(hparams=tiny.hparams(), length=3), **options))


def test_sample_sequence_rejects_impossible_hparams():
    with tf.Graph().as_default(), pytest.raises(ValueError, match='n_vocab is 0'):
        sample.sample_sequence(hparams=model.default_hparams(), length=1, start_token=0, batch_size=1)


# ---- code written for OpenAI's modules

def test_sample_sequence_makes_no_variables_but_the_models(sess):
    """In tf.global_variables() and a caller's Saver(), with every option in use."""
    hparams, weights = random_model()
    sample.sample_sequence(hparams=hparams, length=3, context=[[1, 2], [3, 4]], context_lengths=[1, 2], temperature=0.5,
                           top_k=2, top_p=0.5, end_token=0)
    assert sorted(variable.op.name for variable in tf.global_variables()) == sorted(weights)
    assert tf.local_variables() == []


@pytest.mark.slow
def test_sample_sequence_called_by_openais_unconditional_script(sess, tiny_models):
    """Its calls, unchanged: start_token and batch_size, the prompt cut off, the default Saver."""
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB)
    output = sample.sample_sequence(hparams=hparams, length=hparams.n_ctx, start_token=256, batch_size=2, temperature=1,
                                    top_k=40)[:, 1:]
    tf.train.Saver().restore(sess, tf.train.latest_checkpoint(tiny_models + '/tiny'))
    out = sess.run(output)
    assert out.shape == (2, hparams.n_ctx)
    assert out.min() >= 0 and out.max() < hparams.n_vocab


@pytest.mark.slow
def test_sample_sequence_called_by_openais_conditional_script(sess, tiny_models):
    """Its calls: a placeholder of known batch and unknown length, batch_size beside context, existing variables."""
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB)
    context = tf.placeholder(tf.int32, [2, None])
    past = model.model(hparams=hparams, X=context, past=None, reuse=tf.AUTO_REUSE)['present']
    assert past.shape.as_list() == model.past_shape(hparams=hparams, batch_size=2)
    output = sample.sample_sequence(hparams=hparams, length=hparams.n_ctx // 2, context=context, batch_size=2,
                                    temperature=1, top_k=0)
    tf.train.Saver().restore(sess, tf.train.latest_checkpoint(tiny_models + '/tiny'))
    for prompt in ([1, 2, 3], [5]):
        out = sess.run(output, feed_dict={context: [prompt] * 2})
        assert out[:, :len(prompt)].tolist() == [prompt] * 2
        assert out.shape == (2, len(prompt) + hparams.n_ctx // 2)
    assert sample.top_k_logits(tf.zeros([1, 3]), k=2).shape.as_list() == [1, 3]
