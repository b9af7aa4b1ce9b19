"""detection.py: its figures equal scikit-learn, SciPy and brute force; its fits never score what they saw.

Without scikit-learn, as on the oldest Python, it is compared with brute force and NumPy alone.
"""
import importlib.util
import itertools
import os

import numpy as np
import pytest

from gpt2.evaluation import detection, outputs
from gpt2.evaluation.batches import Predictions

HAS_SCIKIT_LEARN = importlib.util.find_spec('sklearn') is not None
needs_scikit_learn = pytest.mark.skipif(not HAS_SCIKIT_LEARN, reason='needs scikit-learn: pip install scikit-learn')
STATISTICS = ['log-probability', 'log-rank (low)', 'share in the top 10', 'share in the top 100',
              'share in the top 1,000', 'entropy (low)', 'curvature']


def predictions_of(p_TV, token_T):
    """The Predictions of tokens of which these were the probabilities."""
    with np.errstate(divide='ignore'):
        nats_TV = -np.log(p_TV)
    each = np.arange(len(token_T))
    entropy_T = (p_TV * np.where(p_TV, nats_TV, 0)).sum(axis=1)
    variance_T = (p_TV * np.where(p_TV, nats_TV - entropy_T[:, None], 0) ** 2).sum(axis=1)
    rank_T = 1 + (p_TV > p_TV[each, token_T][:, None]).sum(axis=1)
    return Predictions(nats_TV[each, token_T], rank_T, entropy_T, variance_T)


def distributions(n_token, n_vocab, seed=0):
    """Probabilities [n_token, n_vocab], as uneven as a model's."""
    logits_TV = np.random.RandomState(seed).standard_normal([n_token, n_vocab]) * 3
    return np.exp(logits_TV) / np.exp(logits_TV).sum(axis=1, keepdims=True)


def documents(n, length=40, *, seed, first=0, last=500):
    """n texts of tokens between first and last, all of the same kind."""
    return list(np.random.RandomState(seed).randint(first, last, size=[n, length]))


def scores(kind, n_human=60, n_machine=40, seed=0):
    """Scores of two sides: 'apart' is without a human one above a machine's, of 'ties' most are equal."""
    random = np.random.RandomState(seed)
    human, machine = random.standard_normal(n_human), random.standard_normal(n_machine) + 0.7
    return {'real': (human, machine), 'ties': (np.round(human), np.round(machine)), 'apart': (human, machine + 10),
            'reversed': (human, machine - 10), 'equal': (0 * human, 0 * machine)}[kind]


every_kind = pytest.mark.parametrize('kind', ['real', 'ties', 'apart', 'reversed', 'equal'])


# Statistics

def test_statistics_follow_the_papers():
    p_TV = distributions(300, 2000)
    random = np.random.RandomState(1)
    token_T = np.array([random.choice(2000, p=p_V) for p_V in p_TV])
    found = detection.statistics(predictions_of(p_TV, token_T))
    place_T = np.array([1 + list(np.argsort(-p_V)).index(token) for p_V, token in zip(p_TV, token_T)])
    assert list(found) == STATISTICS
    expected = [np.mean([np.log(p_V[token]) for p_V, token in zip(p_TV, token_T)]), -np.mean(np.log(place_T))]
    expected += [np.mean(place_T < limit + 1) for limit in (10, 100, 1000)]
    expected += [np.mean(np.sum(p_TV * np.log(p_TV), axis=1))]
    np.testing.assert_allclose(list(found.values())[:6], expected, rtol=1e-9)
    assert len(set(expected)) == 6


def test_statistics_rank_classes_contain_their_limits():
    n = np.ones(6)
    found = detection.statistics(Predictions(n, [10, 11, 100, 101, 1000, 1001], n, n))
    assert [found[name] for name in STATISTICS[2:5]] == [1 / 6, 3 / 6, 5 / 6]


def test_statistics_curvature_is_the_distance_from_samples():
    """Bao et al., equation 3: in standard deviations of samples; each token is drawn after the text's own tokens."""
    p_TV = distributions(40, 50)
    random = np.random.RandomState(1)
    drawn_TN = np.array([random.choice(50, p=p_V, size=20000) for p_V in p_TV])
    log_p_N = np.sum([np.log(p_V)[drawn_N] for p_V, drawn_N in zip(p_TV, drawn_TN)], axis=0)
    for token_T in (p_TV.argmax(axis=1), random.randint(50, size=40), drawn_TN[:, 0]):
        own = np.sum(np.log(p_TV[np.arange(40), token_T]))
        expected = (own - log_p_N.mean()) / log_p_N.std()
        found = detection.statistics(predictions_of(p_TV, token_T))['curvature']
        assert found == pytest.approx(expected, rel=0.02, abs=0.03)


def test_statistics_are_higher_for_a_machine():
    """The most likely tokens against evenly drawn ones; for the entropy, a confident model against another."""
    p_TV = distributions(100, 3000)
    likely = detection.statistics(predictions_of(p_TV, p_TV.argmax(axis=1)))
    even = detection.statistics(predictions_of(p_TV, np.random.RandomState(0).randint(3000, size=100)))
    sharp_TV = p_TV ** 2 / (p_TV ** 2).sum(axis=1, keepdims=True)
    confident = detection.statistics(predictions_of(sharp_TV, p_TV.argmax(axis=1)))
    for name in STATISTICS:
        assert likely[name] > even[name] if name != 'entropy (low)' else confident[name] > likely[name], name


def test_statistics_curvature_is_0_without_variance():
    n = np.ones(5)
    assert detection.statistics(Predictions(n, n, n, 0 * n))['curvature'] == 0
    assert detection.statistics(Predictions(n, n, n, -1e-9 * n))['curvature'] == 0, 'a float is rounded below 0'


# Which texts

def test_select_texts_takes_equally_many_of_equal_length():
    """The first ones that are long enough."""
    random = np.random.RandomState(0)
    human, machine = ([random.randint(9, size=size) for size in random.randint(1, 400, size=n)] for n in (90, 60))
    selections = detection.select_texts(human, machine)
    assert [selection.length for selection in selections] == [32, 64, 128, 256]
    for length, numbers, tokens in selections:
        n = min(sum(len(ids) >= length for ids in side) for side in (human, machine))
        for side, found, tokens_NL in zip((human, machine), numbers, tokens):
            assert found == [number for number, ids in enumerate(side) if len(ids) >= length][:n]
            assert tokens_NL.shape == (n, length)
            assert all(np.array_equal(side[number][:length], ids_L) for number, ids_L in zip(found, tokens_NL))


def test_select_texts_leaves_out_and_warnings_name_a_rare_length():
    human = documents(20, 64, seed=0) + documents(40, 63, seed=1)
    for n, measured in ((20, [32, 64]), (19, [32])):
        machine = documents(n, 64, seed=2) + documents(41, 63, seed=3)
        selections = detection.select_texts(human, machine)
        assert [selection.length for selection in selections] == measured
        found = [line for line in detection.warnings(selections, human, machine) if 'no figures' in line]
        missing = [length for length in detection.LENGTHS if length not in measured]
        assert len(found) == len(missing) and all(' %d tokens' % length in line for length, line in zip(missing, found))
    assert all(fact in found[0] for fact in ('for 64 tokens', '20 human and 19 machine texts', '20 of each'))


def test_select_texts_leaves_out_and_warnings_name_a_length_over_the_context():
    human, machine = documents(30, 256, seed=0), documents(30, 256, seed=1)
    for n_ctx, measured in ((64, [32, 64]), (255, [32, 64, 128]), (256, [32, 64, 128, 256]),
                            (1024, [32, 64, 128, 256])):
        selections = detection.select_texts(human, machine, n_ctx=n_ctx)
        assert [selection.length for selection in selections] == measured
        found = [line for line in detection.warnings(selections, human, machine, n_ctx=n_ctx) if 'no figures' in line]
        assert found == ['no figures for %d tokens: the context of the model is %d' % (length, n_ctx)
                         for length in detection.LENGTHS if length > n_ctx]
    with pytest.raises(ValueError, match='no figures for 32 tokens: the context of the model is 31'):
        detection.select_texts(human, machine, n_ctx=31)


@pytest.mark.parametrize('n_human, n_machine', [(0, 0), (0, 50), (50, 0), (19, 50)])
def test_select_texts_rejects_too_few_texts(n_human, n_machine):
    facts = '32 tokens: .*%d human and %d machine.* 20 of each.*; give more' % (n_human, n_machine)
    with pytest.raises(ValueError, match=facts):
        detection.select_texts(documents(n_human, seed=0), documents(n_machine, seed=1) + documents(9, 31, seed=2))


# Warnings

def warned(human, machine):
    """The warnings, but for the lengths that are not measured."""
    found = list(detection.warnings(detection.select_texts(human, machine), human, machine))
    return [line for line in found if not line.startswith('no figures')]


def test_warnings_are_none_for_similar_sides():
    for seed in range(5):
        assert not warned(documents(40, seed=seed), documents(40, seed=seed + 100))


def test_warnings_name_lengths_that_tell_the_sides_apart():
    for n_long, n_warning in ((15, 0), (16, 1)):
        human, machine = documents(40, seed=0), documents(40 - n_long, seed=1) + documents(n_long, 50, seed=2)
        for pair, which in (((human, machine), 'longer'), ((machine, human), 'shorter')):
            found = warned(*pair)
            expected = 'AUC 0.700: the machine texts are the %s ones' % which
            assert len(found) == n_warning and all(expected in line for line in found)


def test_warnings_do_not_compare_lengths_that_are_cut_off():
    """Texts are cut to at most 256 tokens, so longer ones do not tell the sides apart."""
    assert not warned(documents(40, 256, seed=0), documents(40, 400, seed=1))


def test_warnings_count_copies_on_one_side():
    """What follows the shortest length does not make two texts of one."""
    human, machine = documents(40, seed=0), documents(30, seed=1)
    assert not warned(human, machine)
    machine[5] = np.concatenate([machine[3][:31], [499], machine[3][32:]])
    assert not warned(human, machine)
    machine[5] = np.concatenate([machine[3][:32], [499] * 8])
    machine[6] = machine[3]
    line, = warned(human, machine)
    assert line.startswith('3 of 30 machine texts share their first 32 tokens with another one: the intervals')
    machine[8] = machine[20]
    line, = warned(machine, human)
    assert line.startswith('5 of 30 human texts')


def test_warnings_count_copies_on_both_sides():
    human, machine = documents(40, seed=0), documents(40, seed=1)
    machine[7], machine[9] = human[2], human[3]
    line, = warned(human, machine)
    assert line.startswith('2 human and 2 machine texts share their first 32 tokens with a text of the other side')


def test_warnings_name_words_that_tell_the_sides_apart():
    """Another topic, a word in every text of a side, or at the beginning of each; but not a small difference."""
    human, rest = documents(60, seed=0), documents(60, 39, seed=1)
    assert not warned(documents(60, 64, seed=0), [
        np.append(ids, 900 + np.arange(32)) for ids in documents(60, 32, seed=1)]), 'the shortest are tested'
    for machine in (documents(60, seed=1, first=250, last=750), [np.append(ids[:9], [998, *ids[9:]]) for ids in rest],
                    [np.append(7, ids) for ids in rest]):
        line, = warned(human, machine)
        area = detection.auc(*detection.word_scores(*[np.array(side)[:, :32] for side in (human, machine)]))
        assert line.startswith('the words alone tell the sides apart, AUC %.3f at 32 tokens' % area)
    assert not warned(human, documents(60, seed=1, first=20, last=520))


# The figures

@every_kind
def test_auc_is_the_share_of_pairs_in_order(kind):
    human, machine = scores(kind)
    pairs = [(x < y) + 0.5 * (x == y) for x, y in itertools.product(human, machine)]
    assert detection.auc(human, machine) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert detection.auc(machine, human) == pytest.approx(1 - np.mean(pairs), abs=1e-12), 'an area may be below 0.5'


@every_kind
@needs_scikit_learn
def test_auc_and_roc_equal_scikit_learn_and_scipy(kind):
    import scipy.stats
    import sklearn.metrics
    human, machine = scores(kind)
    label, score = np.repeat([0, 1], [len(human), len(machine)]), np.concatenate([human, machine])
    assert detection.auc(human, machine) == pytest.approx(sklearn.metrics.roc_auc_score(label, score), abs=1e-12)
    u = scipy.stats.mannwhitneyu(machine, human).statistic
    assert detection.auc(human, machine) == pytest.approx(u / len(human) / len(machine), abs=1e-12)
    expected = sklearn.metrics.roc_curve(label, score, drop_intermediate=False)
    for found, theirs in zip(detection.roc(human, machine), expected):
        np.testing.assert_allclose(found, theirs, atol=1e-12)


@every_kind
@pytest.mark.parametrize('n_human', [20, 99, 100, 101, 250])
def test_true_positives_are_the_most_at_one_percent_false_ones(kind, n_human):
    human, machine = scores(kind, n_human=n_human)
    allowed = {20: 0, 99: 0, 100: 1, 101: 1, 250: 2}[n_human]
    thresholds = np.append(np.concatenate([human, machine]), 1e9)
    expected = max(np.mean(machine >= limit) for limit in thresholds if np.sum(human >= limit) <= allowed)
    assert detection.true_positives(human, machine) == pytest.approx(expected, abs=1e-12)


def test_true_positives_at_another_rate():
    assert detection.true_positives([1, 2, 3, 4], [0, 2.5, 3.5, 4.5], at=0.25) == 0.5
    assert detection.true_positives([1, 2, 3, 4], [0, 2.5, 3.5, 4.5], at=0.5) == 0.75
    assert detection.true_positives([1, 2, 3, 4], [0, 2.5, 3.5, 4.5], at=1) == 1


@pytest.mark.slow
def test_interval_contains_the_true_area_95_percent_of_the_time(monkeypatch):
    """Of two normal distributions, one apart by a standard deviation, the area is Phi(1 / sqrt(2)) = 0.7602."""
    monkeypatch.setattr(detection, 'RESAMPLES', 300)
    held = 0
    for seed in range(100):
        random = np.random.RandomState(seed)
        low, high = detection.interval(random.standard_normal(50), random.standard_normal(70) + 1)
        held += low <= 0.7602 <= high
        assert 0.1 < high - low < 0.25
    assert 88 <= held <= 99


@pytest.mark.slow
@needs_scikit_learn
@pytest.mark.parametrize('kind, sizes', [
    ('real', (60, 40)), ('ties', (60, 40)), ('real', (25, 200)), ('real', (200, 25))])
def test_interval_equals_scipy(kind, sizes):
    import scipy.stats
    human, machine = scores(kind, *sizes)
    expected = scipy.stats.bootstrap((human, machine), detection.auc, vectorized=False, n_resamples=4000,
                                     method='percentile', random_state=0).confidence_interval
    np.testing.assert_allclose(detection.interval(human, machine), expected, atol=0.012)


def test_interval_is_reproducible():
    """And it has no width if the sides are apart."""
    assert detection.interval(*scores('real')) == detection.interval(*scores('real'))
    assert detection.interval(*scores('apart')) == (1, 1)
    assert detection.interval(*scores('reversed')) == (0, 0)
    assert detection.interval(*scores('equal')) == (0.5, 0.5)


@pytest.mark.parametrize('function', [detection.auc, detection.interval, detection.roc, detection.true_positives])
def test_figures_reject_a_side_without_texts(function):
    for human, machine in (([], [1.0]), ([1.0], []), ([], [])):
        with pytest.raises(ValueError, match='there are %d human and %d machine texts' % (len(human), len(machine))):
            function(human, machine)
    function([1.0], [2.0])


# The fits

def test_join_sides_draws_the_fifths_of_each_side():
    """Equal texts are in the same one."""
    human, machine = ['h%02d' % i for i in range(52)], ['m%02d' % i for i in range(30)] + ['h03', 'm04', 'm04']
    texts, is_machine, fold_N = detection.join_sides(human, machine)
    assert texts == human + machine and is_machine.tolist() == [False] * 52 + [True] * 33
    assert sorted(np.bincount(fold_N[:52])) == [10, 10, 10, 11, 11] and np.bincount(fold_N[52:82]).tolist() == [6] * 5
    assert len(set(fold_N[[52 + 4, 83, 84]])) == 1 and fold_N[3] == fold_N[82]
    assert not np.array_equal(fold_N[:10], np.arange(10) % 5), 'files may be sorted, so fifths are drawn'


def own_words(n, copies):
    """Each side's n texts, each with words that no other text has, and each in a number of copies."""
    sides = [['%s%dx %s%dy %s%dz' % ((name, number) * 3) for number in range(n) for _ in range(copies)]
             for name in 'hm']
    numbers = {text: number for number, text in enumerate(sides[0] + sides[1])}
    return sides, [np.array([[numbers[text]] * 32 for text in side]) for side in sides]


@needs_scikit_learn
def test_baseline_never_scores_what_it_saw():
    """A fit that had seen a text, or its copy, would know its words and put it on the right side."""
    texts, tokens = own_words(25, copies=6)
    assert detection.auc(*detection.baseline(*texts)) == 0.5
    assert detection.auc(*detection.word_scores(*tokens)) == 0.5


def test_word_scores_never_score_what_they_saw():
    _, tokens = own_words(25, copies=6)
    assert detection.auc(*detection.word_scores(*tokens)) == 0.5


def test_word_scores_do_not_tell_texts_of_one_source_apart():
    pairs = [[np.array(documents(100, seed=2 * seed + side)) for side in range(2)] for seed in range(20)]
    areas = [detection.auc(*detection.word_scores(*pair)) for pair in pairs]
    assert abs(np.mean(areas) - 0.5) < 0.03 and max(areas) < 0.65


@needs_scikit_learn
def test_word_scores_equal_naive_bayes_of_scikit_learn():
    """Each word that is in a text and differs is tested by itself. Words that are not in it make no difference."""
    from sklearn.naive_bayes import BernoulliNB
    tokens = [np.array(documents(n, seed=n, first=first, last=first + 60)) for n, first in ((40, 0), (30, 20))]
    _, is_machine, fold_N = detection.join_sides(*[[ids.tobytes() for ids in side] for side in tokens])
    found = np.concatenate(detection.word_scores(*tokens))
    occurs = np.array([np.append(np.bincount(ids, minlength=80) > 0, np.arange(80) == ids[0])
                       for side in tokens for ids in side])
    for fold in range(5):
        rest, held = fold_N != fold, fold_N == fold
        log_share = BernoulliNB(alpha=1).fit(occurs[rest], is_machine[rest]).feature_log_prob_
        difference, mean = np.exp(log_share[1]) - np.exp(log_share[0]), np.exp(log_share).mean(axis=0)
        n_human, n_machine = np.bincount(is_machine[rest]) + 2
        differs = difference ** 2 > 4 * (mean * (1 - mean) / n_human + mean * (1 - mean) / n_machine)
        assert 5 < differs.sum() < 60
        expected = occurs[held][:, differs].astype(float) @ (log_share[1] - log_share[0])[differs]
        np.testing.assert_allclose(found[held], expected, rtol=1e-9)


def written(tokens):
    """Texts of words for tokens."""
    return [' '.join('w%d' % token for token in ids) for ids in tokens]


@needs_scikit_learn
@pytest.mark.filterwarnings('ignore')  # about arguments that are to change in later versions
def test_baseline_equals_what_openai_fitted():
    """Their settings, written out, in scikit-learn's own search for C on the fourth part."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.model_selection import PredefinedSplit
    human, machine = (written(documents(100, 20, seed=seed, first=2 * seed, last=30 + 2 * seed)) for seed in range(2))
    machine[::2] = [text.replace(' w7 ', ' w7 w8 ') for text in machine[::2]]  # pairs of words matter, too
    texts, is_machine, fold_N = detection.join_sides(human, machine)
    found, texts, chosen = np.concatenate(detection.baseline(human, machine)), np.array(texts, object), set()
    for fold in range(5):
        held, valid = fold_N == fold, fold_N == (fold + 1) % 5
        train = ~held & ~valid
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=5, max_features=2 ** 21).fit(texts[train])
        model = LogisticRegressionCV(Cs=[2.0 ** power for power in range(-6, 7)], solver='liblinear', refit=False,
                                     cv=PredefinedSplit(np.where(valid, 0, -1)[~held]))
        model.fit(vectorizer.transform(texts[~held]), is_machine[~held])
        odds = model.decision_function(vectorizer.transform(texts[held]))
        chosen.add(float(np.ravel(model.C_)[0]))
        np.testing.assert_allclose(found[held], [np.mean(odds < score) for score in odds], atol=1e-12)
    assert 1 / 64 in chosen and len(chosen) > 1, 'the choice of C was to make a difference, and reach the least'


@pytest.mark.slow
@needs_scikit_learn
def test_baseline_finds_a_word_that_tells_the_sides_apart():
    """And nothing where there is nothing to find."""
    human, machine = written(documents(50, seed=0)), written(documents(50, seed=1))
    assert detection.auc(*detection.baseline(human, [text + 10 * ' machine' for text in machine])) == 1
    assert abs(detection.auc(*detection.baseline(human, machine)) - 0.5) < 0.15
    once = [written(documents(20, seed=side, first=first, last=first + 10 ** 7))
            for side, first in enumerate((0, 10 ** 7))]
    assert detection.auc(*detection.baseline(*once)) == 0.5, 'no word is in five texts'


# The whole

def fake_predictions(human, machine):
    """Predictions of each document, a pair of dicts; the machine's are more likely."""
    random = np.random.RandomState(0)

    def of(ids, better):
        n = len(ids)
        return Predictions(random.exponential(3 - better, size=n), random.randint(1, 2000 - 1500 * better, size=n),
                           random.uniform(1, 3, size=n), random.uniform(1, 3, size=n))

    return [{number: of(ids, better) for number, ids in enumerate(side)}
            for better, side in enumerate((human, machine))]


def decode(ids):
    assert type(ids) is list and type(ids[0]) is int
    return ' '.join('w%d' % token for token in ids)


@pytest.mark.slow
@pytest.mark.parametrize('has_scikit_learn', [False, pytest.param(True, marks=needs_scikit_learn)])
def test_compare_has_each_statistic_at_each_length(has_scikit_learn, monkeypatch):
    """Of the first tokens."""
    monkeypatch.setattr(detection, 'has_scikit_learn', lambda: has_scikit_learn)
    human = documents(40, 70, seed=0)[:30] + documents(10, 40, seed=1)
    machine = documents(35, 80, seed=2, first=400, last=800)
    predictions, selections = fake_predictions(human, machine), detection.select_texts(human, machine)
    results = list(detection.compare(selections, predictions, decode))
    names = STATISTICS + (['fitted baseline'] if has_scikit_learn else [])
    assert [result[:2] for result in results] == [(length, name) for length in (32, 64) for name in names]
    for length, name, pair in results:
        n = {32: 35, 64: 30}[length]
        assert [len(side) for side in pair] == [n, n]
        if name != 'fitted baseline':
            for side, found in zip(predictions, pair):
                expected = [detection.statistics([x_N[:length] for x_N in side[number][:4]])[name]
                            for number in range(n)]
                assert found.tolist() == expected
        else:
            texts = [[decode(ids[:length].tolist()) for ids in side[:n]] for side in (human, machine)]
            expected = detection.baseline(*texts)
            assert all(np.array_equal(*pair) for pair in zip(pair, expected)) and detection.auc(*pair) > 0.7


@pytest.mark.slow
@needs_scikit_learn
def test_compare_has_no_baseline_for_too_few_different_texts():
    """A fifth of the texts could contain all that are different."""
    human, machine = documents(30, seed=0), documents(30, seed=1)
    for n_different, n_baseline in ((20, 1), (19, 0)):
        sides = [human, machine[:n_different] + machine[:1] * (30 - n_different)]
        for pair in (sides, sides[::-1]):
            results = detection.compare(detection.select_texts(*pair), fake_predictions(*pair), decode)
            assert sum(result.statistic == 'fitted baseline' for result in results) == n_baseline


def test_cells_print_table_row_by_row(capsys):
    def results():
        yield detection.Result(32, 'curvature', scores('real', 100, 100))
        header, rule, line = capsys.readouterr().out.splitlines()
        assert header.count('|') == rule.count('|') == line.count('|') == 7 and '1 %' in header
        human, machine = scores('real', 100, 100)
        low, high = detection.interval(human, machine)
        assert line == '| 32 | 100 | curvature | %.3f | %.3f to %.3f | %.1f %% |' % (
            detection.auc(human, machine), low, high, 100 * detection.true_positives(human, machine))
        yield detection.Result(64, 'log-rank (low)', scores('apart', 99, 99))

    printed = []
    outputs.print_table(detection.HEADER, results(), detection.cells, printed)
    assert capsys.readouterr().out == '| 64 | 99 | log-rank (low) | 1.000 | 1.000 to 1.000 | 100.0 % (at 0 %) |\n'
    assert [result.length for result in printed] == [32, 64]
    outputs.print_table(detection.HEADER, [], detection.cells, [])
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_draw_writes_a_png_with_different_lines(tmpdir, monkeypatch):
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    from matplotlib.figure import Figure
    drawn = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *rest, **more: (
        drawn.append(figure) or savefig(figure, *rest, **more)))
    path = str(tmpdir.join('chart.png'))
    detection.draw([detection.Result(length, name, scores(kind)) for length, kind in ((32, 'real'), (256, 'apart'))
                    for name in STATISTICS + ['fitted baseline']], path)
    with open(path, 'rb') as file:
        assert file.read(8) == b'\x89PNG\r\n\x1a\n'
    assert os.listdir(str(tmpdir)) == ['chart.png']
    panels = drawn[0].axes
    assert [axes.get_title().split(',')[0] for axes in panels] == ['32 tokens', '256 tokens']
    for axes, kind in zip(panels, ('real', 'apart')):
        lines = axes.get_lines()
        assert [line.get_label() for line in lines] == STATISTICS + ['fitted baseline', 'chance']
        assert len({line.get_color() for line in lines}) == 9 and len({line.get_linestyle() for line in lines}) == 3
        false_positive, true_positive = detection.roc(*scores(kind))
        x, y = lines[0].get_data()
        assert axes.get_xscale() == 'log' and axes.get_xlim() == (0.5 / 60, 1) and np.array_equal(y, true_positive)
        assert np.array_equal(x, np.where(false_positive > 0, false_positive, 0.5 / 60))
        assert [axis.get_major_formatter()(0.1) for axis in (axes.xaxis, axes.yaxis)] == ['10 %', '10 %']
