"""How well a model tells a machine's texts from a human's: statistics, areas under ROC curves, and what gives the answer away.

A higher score always says "machine", by a rule that is fixed here and not chosen by the data: where an area is below 0.5 the
rule is wrong about these texts, and that is shown as it is.
"""
from collections import Counter, OrderedDict, namedtuple
import math

import numpy as np

import files

LENGTHS = (32, 64, 128, 256)  # tokens
LEAST = 20  # texts a side: with fewer, an interval is wider than 0.3
RESAMPLES = 1000
FOLDS = 5
FEATURES = dict(ngram_range=(1, 2), min_df=5, max_features=2 ** 21)  # as OpenAI has them
HEADER = ('| tokens | texts a side | statistic | AUC | 95 % interval | true positives at 1 % false ones |\n'
          '| ---: | ---: | --- | ---: | ---: | ---: |')
COLORS = ('#000000', '#E69F00', '#56B4E9', '#009E73', '#0072B2', '#D55E00', '#CC79A7', '#777777')  # for the colour-blind, too

# Each pair is of the human and the machine side, each with N texts.
Choice = namedtuple('Choice', 'length numbers tokens')  # numbers: a pair of lists [N].  tokens: a pair of int32 [N, length]
Result = namedtuple('Result', 'length statistic scores')  # scores: a pair of float [N]


# Which texts, and whether they can be compared

def choose(human, machine, *, n_ctx=LENGTHS[-1]):
    """The documents to compare at each of LENGTHS: the first of each side that have so many tokens, equally many of both.

    human, machine: the token ids of the documents, a list of int arrays.  n_ctx: how many tokens the model sees.
    Returns a list of Choices, without the lengths for which a side has fewer than LEAST documents, or above n_ctx.
    Raises ValueError if that is all of them.
    """
    choices = []
    for length in LENGTHS:
        if length > n_ctx:
            break
        numbers = [[number for number, ids in enumerate(side) if len(ids) >= length] for side in (human, machine)]
        n = min(map(len, numbers))
        if n >= LEAST:
            tokens = [np.array([side[number][:length] for number in found[:n]], np.int32)
                      for side, found in zip((human, machine), numbers)]
            choices.append(Choice(length, [found[:n] for found in numbers], tokens))
    if not choices:
        raise ValueError(why_missing(human, machine, LENGTHS[0], n_ctx) + '; give more texts, or longer ones')
    return choices


def why_missing(human, machine, length, n_ctx):
    """Says why there are no figures for a length."""
    if length > n_ctx:
        return 'no figures for %d tokens: the model sees %d at most' % (length, n_ctx)
    n_human, n_machine = (sum(len(ids) >= length for ids in side) for side in (human, machine))
    return 'no figures for %d tokens: %d human and %d machine texts have so many, and it takes %d of each' % (
        length, n_human, n_machine, LEAST)


def warnings(choices, human, machine, *, n_ctx=LENGTHS[-1]):
    """Yield a line for each length that is missing, and each thing that gives the answer away or makes it worth less.

    choices: what choose returned for the rest.
    """
    measured = [choice.length for choice in choices]
    yield from (why_missing(human, machine, length, n_ctx) for length in LENGTHS if length not in measured)
    longer = auc(*[[min(len(ids), LENGTHS[-1]) for ids in side] for side in (human, machine)])
    by_length, which = max((longer, 'longer'), (1 - longer, 'shorter'))
    if by_length >= 0.7:
        yield ('the lengths alone tell the sides apart, AUC %.3f: the machine texts are the %s ones. They are cut to equal '
               'lengths, but may be of other kinds' % (by_length, which))
    # The shortest texts are the most, and in a few words a topic shows sooner than a machine's taste in words.
    length, _, tokens = choices[0]
    yield from repeated(length, [Counter(ids.tobytes() for ids in tokens_NL) for tokens_NL in tokens])
    by_words = auc(*word_scores(*tokens))
    if by_words >= 0.9:
        yield ('the words alone tell the sides apart, AUC %.3f at %d tokens: they differ in topic, source or layout, unless '
               'the machine has words of its own, and the figures may measure that' % (by_words, length))


def repeated(length, counters):
    """Yield a line if texts of a side are equal, and one if texts of both are. counters: of the human side, of the machine."""
    for name, counter in zip(('human', 'machine'), counters):
        n_equal = sum(count for count in counter.values() if count > 1)
        if n_equal:
            yield ('%d of %d %s texts share their first %d tokens with another of them: the intervals, which take each for a '
                   'text of its own, are too narrow' % (n_equal, sum(counter.values()), name, length))
    n_human, n_machine = (sum(counter[text] for text in counters[0] if text in counters[1]) for counter in counters)
    if n_human:
        yield ('%d human and %d machine texts share their first %d tokens with one of the other side: nothing can tell these '
               'apart' % (n_human, n_machine, length))


# Scores

def compare(choices, predictions, decode):
    """Yield a Result for each length and statistic, and for the fitted baseline where scikit-learn is installed.

    choices: what choose returned.  decode: function from a list of token ids to text.
    predictions: a pair of dicts from the number of a document to the Predictions of its first tokens. What the model thinks
        of a token does not depend on those after it: the Predictions for the greatest length hold those for the others.
    """
    for length, numbers, tokens in choices:
        scores = [[statistics([x_N[:length] for x_N in side[number][:4]]) for number in chosen]
                  for side, chosen in zip(predictions, numbers)]
        for name in scores[0][0]:
            yield Result(length, name, [np.array([score[name] for score in side]) for side in scores])
        texts = [[decode(ids_L.tolist()) for ids_L in tokens_NL] for tokens_NL in tokens]
        if has_scikit_learn() and min(len(set(side)) for side in texts) >= LEAST:
            yield Result(length, 'fitted baseline', baseline(*texts))


def has_scikit_learn():
    """Whether there is what the fitted baseline needs."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError:
        return False
    return True


def statistics(predictions):
    """What the Predictions of a text say, as OrderedDict {name: float}: the higher, the more like a machine's.

    A machine draws what is likely, so its texts should be likelier, of smaller ranks, and in places where the model is surer:
    "(low)" marks what is negated for that. Of texts drawn at temperature 1 the opposite may be true.
    Source: log-probability: Solaiman et al. 2019 (arXiv:1908.09203). Rank classes, entropy: Gehrmann et al. 2019
    (arXiv:1906.04043). Log-rank: Mitchell et al. 2023 (arXiv:2301.11305), for whom high entropy is a machine's. Curvature: Bao
    et al. 2023 (arXiv:2310.05130), in closed form, where the model that scores is also the one that samples.
    """
    nats, rank, entropy, variance = (np.asarray(x_N, np.float64) for x_N in predictions[:4])
    gap, spread = np.sum(entropy - nats), math.sqrt(max(0, variance.sum()))
    return OrderedDict([
        ('log-probability', -nats.mean()), ('log-rank (low)', -np.log(rank).mean()),
        ('share in the top 10', np.mean(rank <= 10)), ('share in the top 100', np.mean(rank <= 100)),
        ('share in the top 1,000', np.mean(rank <= 1000)), ('entropy (low)', -entropy.mean()),
        ('curvature', gap / spread if spread else 0.0)])  # where all tokens cost the same, this one cost what was expected


def baseline(human, machine):
    """The detector that OpenAI fitted to its gpt-2-output-dataset: TF-IDF of words and of pairs, and logistic regression.

    Each text is scored by a fit to three other fifths of the texts, with the C that is the most accurate on the fourth. As the
    five fits have scales of their own, the score is the share of the texts of its fifth that are less like a machine's.
    human, machine: lists of str.  Returns a pair of float [N].
    Source: baseline.py of github.com/openai/gpt-2-output-dataset.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    texts, is_machine, fold_N = together(human, machine)
    texts, scores_N = np.array(texts, object), np.zeros(len(texts))
    for fold in range(FOLDS):
        held, valid = fold_N == fold, fold_N == (fold + 1) % FOLDS
        train, vectorizer = ~(held | valid), TfidfVectorizer(**FEATURES)
        try:
            features = vectorizer.fit_transform(texts[train])
        except ValueError:  # no word is in five texts: there is nothing to fit to
            continue
        fits = [LogisticRegression(C=2.0 ** power, solver='liblinear').fit(features, is_machine[train])
                for power in range(-6, 7)]
        features = vectorizer.transform(texts[valid])
        best = max(fits, key=lambda fit: fit.score(features, is_machine[valid]))
        odds = best.decision_function(vectorizer.transform(texts[held]))
        scores_N[held] = np.searchsorted(np.sort(odds), odds) / len(odds)
    return scores_N[~is_machine], scores_N[is_machine]


def word_scores(human_NL, machine_NL):
    """How much the tokens that occur in a text, and the one at its beginning, speak for the machine: float [N] for each side.

    Naive Bayes, fitted to the other four fifths. It counts only tokens whose shares of texts differ by more than two standard
    errors: the noise of all the others would drown a single one that gives the answer away.
    """
    _, is_machine, fold_N = together(*[[ids_L.tobytes() for ids_L in side] for side in (human_NL, machine_NL)])
    tokens_NL = np.concatenate([human_NL, machine_NL])
    n_vocab = int(tokens_NL.max()) + 1
    words_NW = np.concatenate([tokens_NL, tokens_NL[:, :1] + n_vocab], axis=1)
    # Each word that occurs in a text, once, with the number of the text.
    text, word = np.divmod(np.unique(np.arange(len(words_NW), dtype=np.int64)[:, None] * 2 * n_vocab + words_NW), 2 * n_vocab)
    scores_N = np.zeros(len(words_NW))
    for fold in range(FOLDS):
        sides = [(fold_N != fold) & (is_machine == side) for side in (False, True)]
        n_texts = [side.sum() + 2 for side in sides]
        human_V, machine_V = ((np.bincount(word[side[text]], minlength=2 * n_vocab) + 1) / n for side, n in zip(sides, n_texts))
        mean_V = (human_V + machine_V) / 2
        error_V = np.sqrt(mean_V * (1 - mean_V) * (1 / n_texts[0] + 1 / n_texts[1]))
        weight_V = np.log(machine_V / human_V) * (np.abs(machine_V - human_V) > 2 * error_V)
        scores_N[fold_N == fold] = np.bincount(text, weight_V[word], minlength=len(words_NW))[fold_N == fold]
    return scores_N[~is_machine], scores_N[is_machine]


def together(human, machine):
    """(texts, is_machine, fold): the texts of both sides, bool [N], and at random a number below FOLDS for each, int [N].

    Equal texts have the same number, so that none is scored by a fit that saw it.
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
    """How many texts of each side have each of the scores that occur, lowest first: a pair of int [V].

    Raises ValueError for a side without texts.
    """
    if not len(human) or not len(machine):
        raise ValueError('there are %d human and %d machine texts; it takes some of both' % (len(human), len(machine)))
    values, place = np.unique(np.concatenate([human, machine]), return_inverse=True)
    return [np.bincount(part, minlength=len(values)) for part in np.split(place, [len(human)])]


def area(human_V, machine_V):
    """The area under the ROC curve of counts."""
    return float(machine_V @ (np.cumsum(human_V) - human_V / 2) / (human_V.sum() * machine_V.sum()))


def auc(human, machine):
    """The probability that a text of the machine has a higher score than one of a human; equal scores count half."""
    return area(*counts(human, machine))


def interval(human, machine):
    """(low, high): where auc is for the middle 95 % of RESAMPLES of the texts of each side, the percentile bootstrap.

    It knows that other texts of the same kind might have been drawn, not that texts of another kind might be met. If no text
    of a side is among those of the other it has no width, however few they are.
    """
    random, pair = np.random.RandomState(0), counts(human, machine)
    places = [np.repeat(np.arange(len(count_V)), count_V) for count_V in pair]
    areas = [area(*[np.bincount(place_N[random.randint(len(place_N), size=len(place_N))], minlength=len(pair[0]))
                    for place_N in places]) for _ in range(RESAMPLES)]
    return tuple(np.percentile(areas, [2.5, 97.5]).tolist())


def roc(human, machine):
    """The points of the ROC curve: the shares of the human and of the machine texts above a falling threshold, 0 ... 1."""
    return [np.append(0, np.cumsum(count_V[::-1]) / count_V.sum()) for count_V in counts(human, machine)]


def true_positives(human, machine, at=0.01):
    """The largest share of the machine's texts above a threshold that no more than the share `at` of the human ones is above.

    Of fewer than 1 / at human texts that is none.
    """
    false_positive, true_positive = roc(human, machine)
    return float(true_positive[false_positive <= at][-1])


def print_table(results):
    """Print Results as lines of a Markdown table, as soon as each is there. Returns a list of them."""
    printed = []
    for result in results:
        if not printed:
            print(HEADER, flush=True)
        printed.append(result)
        n = len(result.scores[0])
        print('| %d | %d | %s | %.3f | %.3f to %.3f | %.1f %%%s |' % (
            (result.length, n, result.statistic, auc(*result.scores)) + interval(*result.scores)
            + (100 * true_positives(*result.scores), ' (at 0 %)' if n < 100 else '')), flush=True)
    return printed


def draw(results, path):
    """Draw the ROC curves of Results into a PNG file, a panel for each length.

    False positives are on a logarithmic axis, because only its left end is of use: most texts that a detector sees are human.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure
    panels = OrderedDict()
    for result in results:
        panels.setdefault(result.length, []).append(result)
    figure = Figure(figsize=(4 * len(panels) + 2.5, 4.5))
    FigureCanvasAgg(figure)
    for place, (length, panel) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        n = len(panel[0].scores[0])
        for number, result in enumerate(panel):
            false_positive, true_positive = roc(*result.scores)
            axes.plot(np.maximum(false_positive, 0.5 / n), true_positive, ('-', '--', ':')[number % 3], color=COLORS[number],
                      drawstyle='steps-post', label=result.statistic)
        axes.plot(np.logspace(math.log10(0.5 / n), 0), np.logspace(math.log10(0.5 / n), 0), color='#CCCCCC', label='chance')
        axes.set(xscale='log', xlim=(0.5 / n, 1), title='%d tokens, %d texts a side' % (length, n),
                 xlabel='human texts taken for a machine\'s', ylabel='machine texts found' if place == 1 else '')
    named = OrderedDict((line.get_label(), line) for panel in figure.axes for line in panel.lines)  # not all are in each panel
    axes.legend(named.values(), named.keys(), loc='center left', bbox_to_anchor=(1.05, 0.5))
    figure.tight_layout()
    with files.replacing(path) as part:
        figure.savefig(part, format='png')
