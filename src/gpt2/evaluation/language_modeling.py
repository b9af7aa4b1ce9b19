"""The benchmarks that are running texts: WikiText, the Penn Treebank, One Billion Words, enwik8 and text8."""
import codecs
from collections import namedtuple
import os
import re

import numpy as np

from gpt2 import corpus
from gpt2.evaluation.batches import Sum
from gpt2.evaluation.detokenize import ONE_BILLION_WORDS, PTB, WIKITEXT, detokenize
from gpt2.evaluation.documents import score_documents

WHOLE_BYTES, TEST_BYTES = 100 * 10 ** 6, 5 * 10 ** 6  # of enwik8 and text8

# documents: list of str; each is scored by itself, after an end-of-text token.  fills_last: start the last window early
# enough to make it as long as the others, so that its tokens are predicted from more text.
Reading = namedtuple('Reading', 'name documents fills_last')
Denominator = namedtuple('Denominator', 'unit count metric')  # what to divide nats by.  metric: 'perplexity' or 'bits'


def read(benchmark, path):
    """The text to score: the whole file, or the last 5 of the 100 million bytes of enwik8 and text8.

    The paper does not say so, but others split these two like that. Half a character at either end is dropped.
    Raises ValueError for a file that is not UTF-8 (with the byte) or has no text.
    """
    size = os.path.getsize(path)
    start = size - TEST_BYTES if benchmark in ('enwik8', 'text8') and size == WHOLE_BYTES else 0
    with open(path, 'rb') as file:
        corpus.check_format(path, file.peek())
        file.seek(start)
        raw = file.read()
    if start:
        raw = raw.lstrip(bytes(range(0x80, 0xc0)))
    try:
        text = codecs.getincrementaldecoder('utf-8')().decode(raw)
    except UnicodeDecodeError as error:
        raise corpus.not_utf8(path, error, size)
    if not text.strip():
        raise ValueError('there is no text in %s' % path)
    return text


def readings(model, benchmark, text):
    """The Readings of a benchmark: a list. `denominators` is the same for all of them."""
    if benchmark in ('enwik8', 'text8'):
        return [Reading('as it is', [text], False)]
    rules = {'wikitext2': WIKITEXT, 'wikitext103': WIKITEXT, 'ptb': PTB, '1bw': ONE_BILLION_WORDS}[benchmark]
    joined = detokenize(text, rules)
    found = [Reading('as it is', [text], False), Reading('detokenized', [joined], False)]
    if benchmark == '1bw':  # its sentences are in random order
        found.append(Reading('detokenized, each sentence alone', re.findall('[^\n]*\n|[^\n]+', joined), False))
    if rules is WIKITEXT:  # as lm-eval's task wikitext
        pages = [detokenize(page, rules) for page in wikitext_pages(text)]
        found.append(Reading('detokenized, each page alone, last window filled', pages, True))
    return found


def denominators(benchmark, text, n_tokens):
    """The Denominators of a benchmark, a list: what to divide the nats of its text by.

    The paper does not say whether a line end is a word.
    text: as in the benchmark's file, not detokenized.  n_tokens: number of the model's tokens that were scored.
    """
    if benchmark == 'enwik8':
        return [Denominator('byte', len(text.encode('utf-8')), 'bits')]
    if benchmark == 'text8':
        return [Denominator('character', len(text), 'bits')]
    n_words = len(text.split())
    counts = [('word', n_words), ('word or line end', n_words + text.count('\n')), ('token', n_tokens)]
    if benchmark.startswith('wikitext'):  # lm-eval finds an empty word at both ends of a page
        n_words = sum(len(re.split(r'\s+', page)) for page in wikitext_pages(text))
        counts.append(('word as lm-eval counts', n_words))
    return [Denominator(unit, count, 'perplexity') for unit, count in counts]


def wikitext_pages(text):
    """Cut the text of a WikiText file into articles, at each title ( = Title = ). Joined, they are the text again."""
    starts = [match.start() for match in re.finditer(r'^ = [^=\n]+ = $', text, re.MULTILINE)]
    cuts = [0] + starts[1:] + [len(text)]
    return [text[start:end] for start, end in zip(cuts, cuts[1:])]


def measure(model, benchmark, text, options, reading):
    """Measure a Reading: its nats over each of the benchmark's denominators; of a part of it, over that share of them.

    Returns ([(protocol, Sum)], share, interrupted): share of the text that was measured, whether Ctrl-C ended it.
    """
    pieces = corpus.in_pieces(corpus.with_ends(reading.documents))
    n_bytes = sum(len(document.encode('utf-8')) for document in reading.documents)
    scored = score_documents(model, pieces, options, label='%s, %s' % (benchmark, reading.name), n_bytes=n_bytes,
                             fills_last=reading.fills_last)
    if not scored.share:
        return [], 0, scored.interrupted
    nats = np.concatenate([found.nats for found in scored.predictions])
    counts = denominators(benchmark, text, n_tokens=len(nats) / scored.share)
    return [('%s per %s' % (metric, unit), Sum(metric, nats.sum(dtype=np.float64), count * scored.share))
            for unit, count, metric in counts], scored.share, scored.interrupted
