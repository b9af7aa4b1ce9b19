"""The page of `evaluate.py text --html`: a text with each token coloured by its rank in the model's predictions.

In the spirit of GLTR (Gehrmann et al. 2019, arXiv:1906.04043): ranks up to 10, up to 100, up to 1,000, and beyond.

page.html is the template. The page is one file that loads nothing else. Every token is an element in it from the start,
not created by a script when it comes into view: so the text can be read without JavaScript, searched and printed, and a
browser parses 100,000 elements in a fraction of a second. Laying them out would take long, so they are grouped in
blocks, and the browser lays out those in view (content-visibility). The contents of the cards are arrays in base64,
decoded for the first card.
"""
import base64
from collections import namedtuple
import html
import json
import math
import os
import re
import unicodedata

import numpy as np

from gpt2.evaluation.batches import Predictions, Sum
from gpt2.system import files

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
TOP = 10, 100, 1000  # the last rank of each class but the last
CLASSES = '', 'b', 'c', 'd'  # their names in page.html; most tokens are in the first, which needs none
BLOCK = 400  # tokens after which a block ends with its line
LONG_BLOCK = 2000  # tokens after which it ends with a word, or with any token after twice as many
LINE = 70  # characters on a line of the page, about
MAX_MARKS = 40  # of documents' beginnings: more would only be a pattern
MAX_POINTS = 300  # of a curve, and the width of page.html's plot
ZERO_WIDTH_JOINER = '\u200d'

# What HTML cannot contain is shown by its number: control characters, and bytes that are not UTF-8, in a str surrogates
# (PEP 383).
SHOWN = {code: '\\x%02x' % (code & 0xff) for code in range(0xdd00)
         if code < 32 and code not in b'\t\n' or 0x7f <= code < 0xa0 or code >= 0xdc80}
SHOWN_SPACES = {ord(' '): '␣', ord('\t'): '⇥', ord('\n'): '↵'}

Unit = namedtuple('Unit', 'text first end')  # tokens first to end - 1 of a document, and their text


def write_page(path, encoder, documents, *, title, model_name, share=1):
    """Write the page of documents, a list of (ids int32 [N], Predictions), as one HTML file.

    title, model_name: str, the names of the text and of the model.  share: the fraction of the text that documents are.
    """
    text = []
    for number, (ids, found) in enumerate(documents, 1):
        if len(documents) > 1:
            text.append('<h2>Document {} <small>{n_tokens} tokens, perplexity {perplexity}</small></h2>'.format(
                number, **figures(found)))
        text += blocks(units(encoder, ids), found.rank)
    ids, found = joined(documents)
    values = dict(figures(found), **curves(found, np.cumsum([len(ids) for ids, _ in documents])[:-1]))
    values.update(title=escaped(title), model_name=escaped(model_name), text=''.join(text),
                  part='' if share == 1 else '; %.3g %% of the text' % (100 * share), data=data(encoder, ids, found))
    with open(TEMPLATE, encoding='utf-8') as file:
        template = file.read()
    files.write_text(path, re.sub(r'{{(\w+)}}', lambda match: values[match.group(1)], template))


def joined(documents):
    """The (ids, Predictions) of all documents, as if they were one."""
    empty = np.zeros(0, np.int32)
    ids, found = zip(*documents or [(empty, Predictions(*[empty] * 4 + [np.zeros([0, 0], np.int32)] * 2))])
    return np.concatenate(ids), Predictions(*map(np.concatenate, zip(*found)))


def escaped(text):
    """A str as HTML that shows it and does nothing else."""
    return html.escape(text.translate(SHOWN))


# The text

def units(encoder, ids):
    """Cut a document into the shortest Units that begin and end at a character, and keep a mark with its letter.

    Most are one token. But half an emoji means nothing to a reader, and an accent alone cannot be pointed at.
    """
    text = encoder.decode_bytes(ids.tolist()).decode('utf-8', 'surrogateescape')
    # The number of bytes before each character, and up to the end of each token.
    begins = np.cumsum([0] + [len(character.encode('utf-8', 'surrogateescape')) for character in text])
    ends = np.cumsum([len(encoder.decoder[token]) for token in ids.tolist()], dtype=int)
    joins = [ZERO_WIDTH_JOINER in (before, character) or unicodedata.category(character)[0] == 'M'
             for before, character in zip(' ' + text, text)] + [False]
    places = np.searchsorted(begins, ends)
    result, first, begin = [], 0, 0
    for end, (place, is_whole) in enumerate(zip(places.tolist(), (begins[places] == ends).tolist()), 1):
        if is_whole and not joins[place]:
            result.append(Unit(text[begin:place], first, end))
            first, begin = end, place
    return result


def blocks(units, rank):
    """Yield a document as HTML, in blocks that end with a line; a very long line is cut into several. rank: int [N]."""
    worst = np.maximum.reduceat(rank, [unit.first for unit in units]) if units else rank  # of each unit's tokens
    elements = [element(unit, CLASSES[number]) for unit, number in zip(units, np.searchsorted(TOP, worst).tolist())]
    begin = 0
    for end, unit in enumerate(units, 1):
        n_tokens = unit.end - units[begin].first
        is_last, is_line = end == len(units), unit.text.endswith('\n')
        is_long = n_tokens >= 2 * LONG_BLOCK or n_tokens >= LONG_BLOCK and not is_last and units[end].text[0] == ' '
        if is_last or is_long or is_line and n_tokens >= BLOCK:
            lines = ''.join(unit.text for unit in units[begin:end]).split('\n')
            yield '<div%s style="--lines: %d">%s</div>' % (
                '' if is_last or is_line else ' class="cut"', sum(1 + len(line) // LINE for line in lines),
                ''.join(elements[begin:end]))
            begin = end


def element(unit, class_name):
    """A Unit as HTML. class_name: one of CLASSES, for its colour."""
    text, n_tokens = unit.text.translate(SHOWN), unit.end - unit.first
    invisible = ('line' if '\n' in text else
                 'space' if text.isspace() else
                 'nothing' if all(unicodedata.category(character) == 'Cf' for character in text) else '')
    classes = list(filter(None, [class_name, 'hex' if text != unit.text else '', invisible]))
    space = ' ' if text[0] == ' ' and len(text) > 1 else ''  # outside, so that no line ends in a coloured space
    return '%s<i%s%s>%s</i>' % (
        space, ' class="%s"' % ' '.join(classes) if classes else '', ' data-n="%d"' % n_tokens if n_tokens > 1 else '',
        html.escape(text[len(space):], quote=False))


# The figures

def figures(found):
    """The figures of Predictions for page.html, {name: str}."""
    n_tokens = len(found.nats)
    result = {'n_tokens': format(n_tokens, ','), 'perplexity': '–'}
    if n_tokens:
        result['perplexity'] = '%.6g' % Sum('perplexity', found.nats.sum(dtype=np.float64), n_tokens).value()
    for name in 'nats', 'entropy':
        mean = getattr(found, name).sum(dtype=np.float64) / max(1, n_tokens)
        result.update({name: '%.2f' % mean, name + '_bits': '%.2f' % (mean / math.log(2))})
    counts = np.bincount(np.searchsorted(TOP, found.rank), minlength=len(CLASSES))
    for number, count in enumerate(counts.tolist()):
        result['count_%d' % number] = format(count, ',')
        result['percent_%d' % number] = '%.1f' % (100 * count / max(1, n_tokens))
    return result


def curves(found, begins):
    """The curves along the text for page.html, {name: str}. begins: the first tokens of documents 2, 3, ..."""
    n_tokens = len(found.nats)
    window = min(max(20, n_tokens // 60), n_tokens)
    first = np.linspace(0, n_tokens - window, min(n_tokens, n_tokens - window + 1, MAX_POINTS)).astype(int)
    means = {}
    for name in 'nats', 'entropy':
        sums = np.cumsum(np.append(0, getattr(found, name)))
        means[name] = (sums[first + window] - sums[first]) / window
    top = max([1] + [math.ceil(y) for mean in means.values() for y in mean])
    result = {'window': format(window, ','), 'curve_top': '%d' % top, 'curve_middle': '%g' % (top / 2)}
    for name, mean in means.items():
        points = ['%.1f %.1f' % (MAX_POINTS * (x + window / 2) / n_tokens, 100 - 100 * y / top)
                  for x, y in zip(first, mean)]
        result[name + '_curve'] = 'M' + 'L'.join(points + points[-1:]) if points else ''  # a lone point becomes a dot
    marks = np.unique(MAX_POINTS * np.array(begins if len(begins) <= MAX_MARKS else [], int) // max(1, n_tokens))
    result['begins'] = ''.join('M%d 0V100' % x for x in marks)
    result['begins_note'] = '; dotted lines show where documents begin' if len(marks) else ''
    return result


# The cards

def data(encoder, ids, found):
    """The contents of the cards, as JSON that can be put into a script element."""
    tokens, places = np.unique(np.concatenate([ids, found.top_ids.ravel()]), return_inverse=True)
    arrays = {'tokens': places[:len(ids)], 'top': places[len(ids):], 'rank': found.rank,
              'nats': thousandths(found.nats), 'top_nats': thousandths(found.top_nats)}
    values = {'columns': found.top_ids.shape[1], 'words': [word(encoder, token) for token in tokens.tolist()]}
    values.update({name: packed(array) for name, array in arrays.items()})
    return json.dumps(values, sort_keys=True).replace('<', '\\u003c')  # </script> in a string would end the element


def word(encoder, token):
    """The text of a token on a card, with every character visible."""
    text = encoder.decode_bytes([token]).decode('utf-8', 'surrogateescape').translate(SHOWN).translate(SHOWN_SPACES)
    text = ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return '\u25cc' + text if unicodedata.category(text[0])[0] == 'M' else text  # a dotted circle under a mark


def thousandths(nats):
    """Nats as whole thousandths that fit in 16 bits: at most 65534, for a probability of 1e-28."""
    return np.clip(1000 * np.asarray(nats, np.float64), 0, 65534).round()


def packed(numbers):
    """Whole numbers as [width, base64]: little-endian, width bytes each."""
    width = 2 if not np.size(numbers) or np.max(numbers) < 2 ** 16 else 4
    return [width, base64.b64encode(np.ravel(numbers).astype('<u%d' % width).tobytes()).decode('ascii')]
