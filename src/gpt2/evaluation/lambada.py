"""LAMBADA (Paperno et al. 2016, arXiv:1606.06031): guess the last word of each passage."""
import pkgutil

import numpy as np

from gpt2 import corpus
from gpt2.evaluation.batches import Row, Sum, add_up, group_rows, stack_rows

PREPARATIONS = (  # name, function that prepares a passage; the paper's authors sent out the second version on request
    ('as it is', lambda text: text),
    ('straight quotes, newline before', lambda text: '\n' + text.translate(
        {ord('\u2018'): "'", ord('\u2019'): "'", ord('\u201c'): '"', ord('\u201d'): '"'}).strip()),
)

# The GPT-2 paper filters stop words out of the model's guesses and does not give the list. This one has the closed
# classes of English words: articles, pronouns, auxiliaries, prepositions, conjunctions and the like.
STOP_WORDS = frozenset(pkgutil.get_data(__name__, 'stop_words.txt').decode('utf-8').split())


def read(benchmark, path):
    """The passages of a file: a list of str. Raises ValueError with the line that is not a passage."""
    passages = []
    for number, passage in corpus.read_jsonl(path):
        if ' ' not in passage.strip():
            raise ValueError('%s, line %d: a passage needs two words or more, and its last word is to be guessed'
                             % (path, number))
        passages.append(passage)
    if not passages:
        raise ValueError('there is no passage in %s' % path)
    return passages


def readings(model, benchmark, passages):
    """A list of (name, function that prepares a passage, function that guesses with and without stop words)."""
    decode = model.encoder.decode
    stop_words = [token for token in model.encoder.decoder if decode([token]).strip().lower() in STOP_WORDS]
    guess = model.guesser(stop_words)
    return [(name, prepare, guess) for name, prepare in PREPARATIONS]


def measure(model, benchmark, passages, options, reading):
    """Measure a reading.

    Returns ([(protocol, Sum)], share, interrupted): share of the passages that were measured, whether Ctrl-C ended it.
    """
    name, prepare, guess = reading
    rows = [last_word_row(model, prepare(passage), number) for number, passage in enumerate(passages[:options.limit])]

    def guess_words(numbers):
        ids, first = stack_rows(rows, numbers)
        return sums_of(ids[:, first:], *guess(ids, first))

    sums, interrupted = add_up(guess_words, group_rows(rows, options.batch_size * (model.hparams.n_ctx + 1)),
                               label='%s, %s' % (benchmark, name), shown='last word; accuracy')
    return sorted(sums.items()), sums['last word; accuracy'].count / len(passages) if sums else 0, interrupted


def last_word_row(model, passage, number):
    """The Row that scores the last word of a passage, with the space before it."""
    before = passage.rpartition(' ')[0].rstrip(' ')
    ids = model.encoder.encode(passage)
    n_word = len(ids) - len(model.encoder.encode(before))
    ids = np.array(ids[-(model.hparams.n_ctx + 1):], np.int32)
    return Row(ids, max(1, len(ids) - n_word), number)


def sums_of(word_BN, nats_BN, top_BN, top_allowed_BN):
    """{protocol: Sum} of a batch: of whole last words, as the task defines it, and of last tokens, as OpenAI counted.

    word_BN: the tokens of the last words.  top_BN: the most likely tokens.
    top_allowed_BN: the most likely tokens that are not stop words. They count for the first token of a word, or for its
        last one if only that one counts.
    """
    hit_BN, allowed_hit_BN = top_BN == word_BN, top_allowed_BN == word_BN
    filtered_BN = np.concatenate([allowed_hit_BN[:, :1], hit_BN[:, 1:]], axis=1)
    values = (
        ('last word', 'perplexity', nats_BN.sum(axis=1, dtype=np.float64)),
        ('last word', 'accuracy', hit_BN.all(axis=1)),
        ('last word, no stop words', 'accuracy', filtered_BN.all(axis=1)),
        ('last token', 'perplexity', nats_BN[:, -1]),
        ('last token', 'accuracy', hit_BN[:, -1]),
        ('last token, no stop words', 'accuracy', allowed_hit_BN[:, -1]))
    return {'%s; %s' % (name, metric): Sum(metric, x_B.sum(dtype=np.float64), len(x_B)) for name, metric, x_B in values}
