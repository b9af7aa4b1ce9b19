"""Detect generated text by a model's likelihoods: statistics, areas under ROC curves, warnings about what biases them.

A higher score always says "machine", by a rule that is fixed here and not chosen by the data: an area below 0.5 means
that the rule is wrong about these texts, and is shown as it is.
"""
from collections import Counter, OrderedDict, namedtuple
import importlib.util
import math

import numpy as np

from gpt2.chart import chart
from gpt2.evaluation.documents import document_rows, predict_rows

LENGTHS = (32, 64, 128, 256)  # tokens
MIN_TEXTS = 20  # on each side: with fewer, an interval is wider than 0.3
RESAMPLES = 1000
FOLDS = 5
FEATURES = dict(ngram_range=(1, 2), min_df=5, max_features=2 ** 21)  # OpenAI's
HEADER = ('| tokens | texts a side | statistic | AUC | 95 % interval | true positives at 1 % false ones |\n'
          '| ---: | ---: | --- | ---: | ---: | ---: |')
COLORS = '#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#777777'  # safe for colour-blind

# Each pair is of the human and the machine side, with N texts each.
# numbers: a pair of lists [N] of document numbers.  tokens: a pair of int32 [N, length].  scores: a pair of float [N]
Selection = namedtuple('Selection', 'length numbers tokens')
Result = namedtuple('Result', 'length statistic scores')


# Which texts, and whether they can be compared

def select_texts(human, machine, *, n_ctx=LENGTHS[-1]):
    """The documents to compare at each of LENGTHS: the first ones that are long enough, as many human as machine ones.

    human, machine: the token ids of the documents, a list of int arrays.  n_ctx: the model's context.
    Returns a list of Selections, without lengths above n_ctx or for which a side has fewer than MIN_TEXTS documents.
    Raises ValueError if that leaves none.
    """
    selections = []
    for length in [length for length in LENGTHS if length <= n_ctx]:
        numbers = [[number for number, ids in enumerate(side) if len(ids) >= length] for side in (human, machine)]
        n = min(map(len, numbers))
        if n >= MIN_TEXTS:
            tokens = [np.array([side[number][:length] for number in found[:n]], np.int32)
                      for side, found in zip((human, machine), numbers)]
            selections.append(Selection(length, [found[:n] for found in numbers], tokens))
    if not selections:
        raise ValueError(why_missing(human, machine, LENGTHS[0], n_ctx) + '; give more texts, or longer ones')
    return selections


def why_missing(human, machine, length, n_ctx):
    """The reason for which there are no figures at a length: str."""
    if length > n_ctx:
        return 'no figures for %d tokens: the context of the model is %d' % (length, n_ctx)
    n_human, n_machine = (sum(len(ids) >= length for ids in side) for side in (human, machine))
    return 'no figures for %d tokens: only %d human and %d machine texts are that long; %d of each are needed' % (
        length, n_human, n_machine, MIN_TEXTS)


def warnings(selections, human, machine, *, n_ctx=LENGTHS[-1]):
    """Yield a line for each length that is missing, and for each other reason to distrust the figures.

    selections: as select_texts returned them.
    """
    measured = [selection.length for selection in selections]
    yield from (why_missing(human, machine, length, n_ctx) for length in LENGTHS if length not in measured)
    longer = auc(*[[min(len(ids), LENGTHS[-1]) for ids in side] for side in (human, machine)])
    by_length, which = max((longer, 'longer'), (1 - longer, 'shorter'))
    if by_length >= 0.7:
        yield ('the lengths alone tell the sides apart, AUC %.3f: the machine texts are the %s ones. They are cut to '
               'equal lengths, but may be of different kinds' % (by_length, which))
    # The shortest length has the most texts, and a few words show a topic sooner than a machine's taste in words.
    length, _, tokens = selections[0]
    yield from duplicates(length, [Counter(ids.tobytes() for ids in tokens_NL) for tokens_NL in tokens])
    by_words = auc(*word_scores(*tokens))
    if by_words >= 0.9:
        yield ('the words alone tell the sides apart, AUC %.3f at %d tokens: the sides differ in topic, source or '
               'layout, unless the machine has words of its own, and the figures may measure that' % (by_words, length))


def duplicates(length, counters):
    """Yield a line about equal texts of one side, and one about those on both. counters: of human, machine texts."""
    for name, counter in zip(('human', 'machine'), counters):
        n_equal = sum(count for count in counter.values() if count > 1)
        if n_equal:
            yield ('%d of %d %s texts share their first %d tokens with another one: the intervals assume independent '
                   'texts and are too narrow' % (n_equal, sum(counter.values()), name, length))
    n_human, n_machine = (sum(counter[text] for text in counters[0] if text in counters[1]) for counter in counters)
    if n_human:
        yield ('%d human and %d machine texts share their first %d tokens with a text of the other side: nothing can '
               'tell these apart' % (n_human, n_machine, length))


# Scores

def predict(model, selections, side, documents, options):
    """The Predictions for the beginning of each selected document, {number: Predictions}. side: 0 human, 1 machine.

    Raises KeyboardInterrupt after Ctrl-C.
    """
    # The greatest length of each comes last.
    lengths = {number: selection.length for selection in selections for number in selection.numbers[side]}
    rows = [row for number, length in lengths.items()
            for row in document_rows(documents[number][:length], model.encoder.end_of_text, n_ctx=length, stride=length,
                                     document=number)]
    predictions, interrupted = predict_rows(model, rows, options, label=('human', 'machine')[side],
                                            predict=model.predictor(0))
    if interrupted:
        raise KeyboardInterrupt
    return predictions


def compare(selections, predictions, decode):
    """Yield a Result for each length and statistic, and for the fitted baseline if scikit-learn is installed.

    selections: as select_texts returned them.  decode: function from a list of token ids to text.
    predictions: a pair of dicts from the number of a document to the Predictions for its first tokens. A token's do not
        depend on later tokens: the Predictions for the greatest length contain those for the others.
    """
    for length, numbers, tokens in selections:
        scores = [[statistics([x_N[:length] for x_N in side[number][:4]]) for number in chosen]
                  for side, chosen in zip(predictions, numbers)]
        for name in scores[0][0]:
            yield Result(length, name, [np.array([score[name] for score in side]) for side in scores])
        texts = [[decode(ids_L.tolist()) for ids_L in tokens_NL] for tokens_NL in tokens]
        if has_scikit_learn() and min(len(set(side)) for side in texts) >= MIN_TEXTS:
            yield Result(length, 'fitted baseline', baseline(*texts))


def has_scikit_learn():
    """Whether scikit-learn, which the fitted baseline needs, is installed."""
    return importlib.util.find_spec('sklearn') is not None


def statistics(predictions):
    """Statistics of a text's Predictions, OrderedDict {name: float}: the higher, the more like a machine's text.

    A machine samples likely tokens, so its texts should have higher probabilities, smaller ranks and lower entropies:
    "(low)" marks what is negated for that. Of texts sampled at temperature 1 the opposite may be true.
    Source: log-probability: Solaiman et al. 2019 (arXiv:1908.09203). Rank classes, entropy: Gehrmann et al. 2019
    (arXiv:1906.04043). Log-rank: Mitchell et al. 2023 (arXiv:2301.11305), who expect a machine's entropy to be high.
    Curvature: Bao et al. 2023 (arXiv:2310.05130), in closed form, with one model that both scores and samples.
    """
    nats, rank, entropy, variance = (np.asarray(x_N, np.float64) for x_N in predictions[:4])
    gap, spread = np.sum(entropy - nats), math.sqrt(max(0, variance.sum()))
    return OrderedDict([
        ('log-probability', -nats.mean()), ('log-rank (low)', -np.log(rank).mean()),
        ('share in the top 10', np.mean(rank <= 10)), ('share in the top 100', np.mean(rank <= 100)),
        ('share in the top 1,000', np.mean(rank <= 1000)), ('entropy (low)', -entropy.mean()),
        ('curvature', gap / spread if spread else 0.0)])  # without spread every token costs what is expected


def baseline(human, machine):
    """The detector that OpenAI fitted to its gpt-2-output-dataset: logistic regression on TF-IDF of words and pairs.

    Each text is scored by a fit to three other fifths of the texts, with the C that is most accurate on the fourth. As
    each fit has its own scale, the score is the share of the text's own fifth that is less like a machine's text.
    human, machine: lists of str.  Returns a pair of float [N].
    Source: baseline.py of github.com/openai/gpt-2-output-dataset.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    texts, is_machine, fold_N = join_sides(human, machine)
    texts, scores_N = np.array(texts, object), np.zeros(len(texts))
    for fold in range(FOLDS):
        held, valid = fold_N == fold, fold_N == (fold + 1) % FOLDS
        train, vectorizer = ~(held | valid), TfidfVectorizer(**FEATURES)
        try:
            features = vectorizer.fit_transform(texts[train])
        except ValueError:  # no word occurs in five texts: there is nothing to fit
            continue
        fits = [LogisticRegression(C=2.0 ** power, solver='liblinear').fit(features, is_machine[train])
                for power in range(-6, 7)]
        features = vectorizer.transform(texts[valid])
        best = max(fits, key=lambda fit: fit.score(features, is_machine[valid]))
        odds = best.decision_function(vectorizer.transform(texts[held]))
        scores_N[held] = np.searchsorted(np.sort(odds), odds) / len(odds)
    return scores_N[~is_machine], scores_N[is_machine]


def word_scores(human_NL, machine_NL):
    """How much the set of a text's tokens, and its first token, point to the machine: float [N] for each side.

    Naive Bayes, fitted to the other four fifths. It uses only tokens whose shares of texts differ by more than two
    standard errors: the noise of all others would drown a single one that tells the sides apart.
    """
    _, is_machine, fold_N = join_sides(*[[ids_L.tobytes() for ids_L in side] for side in (human_NL, machine_NL)])
    tokens_NL = np.concatenate([human_NL, machine_NL])
    n_vocab = int(tokens_NL.max()) + 1
    words_NW = np.concatenate([tokens_NL, tokens_NL[:, :1] + n_vocab], axis=1)
    # The number of a text and a word that occurs in it, each pair once.
    pairs_NW = np.arange(len(words_NW), dtype=np.int64)[:, None] * 2 * n_vocab + words_NW
    text, word = np.divmod(np.unique(pairs_NW), 2 * n_vocab)
    scores_N = np.zeros(len(words_NW))
    for fold in range(FOLDS):
        sides = [(fold_N != fold) & (is_machine == side) for side in (False, True)]
        n_texts = [side.sum() + 2 for side in sides]
        human_V, machine_V = ((np.bincount(word[side[text]], minlength=2 * n_vocab) + 1) / n
                              for side, n in zip(sides, n_texts))
        mean_V = (human_V + machine_V) / 2
        error_V = np.sqrt(mean_V * (1 - mean_V) * (1 / n_texts[0] + 1 / n_texts[1]))
        weight_V = np.log(machine_V / human_V) * (np.abs(machine_V - human_V) > 2 * error_V)
        scores_N[fold_N == fold] = np.bincount(text, weight_V[word], minlength=len(words_NW))[fold_N == fold]
    return scores_N[~is_machine], scores_N[is_machine]


def join_sides(human, machine):
    """(texts, is_machine, fold): the texts of both sides, bool [N], and a random number below FOLDS for each, int [N].

    Equal texts have the same number, so that no text is scored by a fit that saw it.
    """
    folds = {}
    for side in (human, machine):
        new = sorted(set(side) - set(folds))
        order = np.random.RandomState(0).permutation(len(new))
        folds.update((new[number], place % FOLDS) for place, number in enumerate(order))
    texts = list(human) + list(machine)
    return texts, np.arange(len(texts)) >= len(human), np.array([folds[text] for text in texts])


# Figures

def counts(human, machine):
    """The number of texts on each side with each score that occurs, lowest score first: a pair of int [V].

    Raises ValueError for a side without texts.
    """
    if not len(human) or not len(machine):
        raise ValueError('there are %d human and %d machine texts; both are needed' % (len(human), len(machine)))
    values, place = np.unique(np.concatenate([human, machine]), return_inverse=True)
    return [np.bincount(part, minlength=len(values)) for part in np.split(place, [len(human)])]


def area(human_V, machine_V):
    """The area under the ROC curve of counts."""
    return float(machine_V @ (np.cumsum(human_V) - human_V / 2) / (human_V.sum() * machine_V.sum()))


def auc(human, machine):
    """The probability that a text of the machine has a higher score than one of a human; equal scores count half."""
    return area(*counts(human, machine))


def interval(human, machine):
    """(low, high): the middle 95 % of auc over RESAMPLES resamples of each side's texts, the percentile bootstrap.

    It shows what other texts of the same kind could have given, not what another kind would give. If the scores of the
    sides do not overlap, it has no width, however few texts there are.
    """
    random, pair = np.random.RandomState(0), counts(human, machine)
    places = [np.repeat(np.arange(len(count_V)), count_V) for count_V in pair]
    areas = [area(*[np.bincount(place_N[random.randint(len(place_N), size=len(place_N))], minlength=len(pair[0]))
                    for place_N in places]) for _ in range(RESAMPLES)]
    return tuple(np.percentile(areas, [2.5, 97.5]).tolist())


def roc(human, machine):
    """The points of the ROC curve: the shares of human and of machine texts above a falling threshold, each 0 ... 1."""
    return [np.append(0, np.cumsum(count_V[::-1]) / count_V.sum()) for count_V in counts(human, machine)]


def true_positives(human, machine, at=0.01):
    """The largest share of machine texts above a threshold that at most the share `at` of human texts exceeds.

    If there are fewer than 1 / at human texts, none may exceed it.
    """
    false_positive, true_positive = roc(human, machine)
    return float(true_positive[false_positive <= at][-1])


def cells(result):
    """A Result as the cells of a row of the table."""
    n = len(result.scores[0])
    true = '%.1f %%%s' % (100 * true_positives(*result.scores), ' (at 0 %)' if n < 100 else '')
    return ('%d' % result.length, '%d' % n, result.statistic, '%.3f' % auc(*result.scores),
            '%.3f to %.3f' % interval(*result.scores), true)


def draw(results, path):
    """Draw the ROC curves of Results into a PNG file, a panel for each length.

    The axis of false positives is logarithmic, because only its left end is of use: most texts that a detector sees are
    human.
    """
    from matplotlib.ticker import PercentFormatter
    lengths = sorted({result.length for result in results})
    with chart(path, 4 * len(lengths) + 2.5, 4.5) as figure:
        for place, length in enumerate(lengths, 1):
            panel = [result for result in results if result.length == length]
            n = len(panel[0].scores[0])
            axes = figure.add_subplot(1, len(lengths), place)
            for number, result in enumerate(panel):
                false_positive, true_positive = roc(*result.scores)
                axes.plot(np.maximum(false_positive, 0.5 / n), true_positive, ('-', '--', ':')[number % 3],
                          color=COLORS[number], drawstyle='steps-post', label=result.statistic)
            chance = np.logspace(math.log10(0.5 / n), 0)
            axes.plot(chance, chance, color='#CCCCCC', label='chance')
            axes.set(xscale='log', xlim=(0.5 / n, 1), title='%d tokens, %d texts a side' % (length, n),
                     xlabel='human texts taken for a machine\'s', ylabel='machine texts found' if place == 1 else '')
            for axis in axes.xaxis, axes.yaxis:
                axis.set_major_formatter(PercentFormatter(1, symbol=' %'))
        named = OrderedDict((line.get_label(), line) for panel in figure.axes for line in panel.lines)  # of all panels
        axes.legend(named.values(), named.keys(), loc='center left', bbox_to_anchor=(1.05, 0.5))
