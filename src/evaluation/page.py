"""The page of `evaluate.py text --html`: a text in which the colour of each token tells how well the model foresaw it.

In the spirit of GLTR (Gehrmann et al. 2019, arXiv:1906.04043): ranks up to 10, up to 100, up to 1,000, and beyond.

page.html is the template. The page is one file and takes nothing from elsewhere. Every token is an element in it from the
start, not made by a script when it comes into view: so the text can be read without JavaScript, searched and printed, and a
browser makes 100,000 elements in a fraction of a second. What would take long is to lay them out, so they stand in blocks, and
the browser lays out those in view (content-visibility). What the cards show lies in packed arrays, unpacked for the first card.
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

from evaluation.protocols import Predictions, Sum
import files

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')
TOP = 10, 100, 1000  # the last rank of each class but the last
CLASSES = '', 'b', 'c', 'd'  # their names in page.html; most tokens are of the first, which needs none
BLOCK = 400  # tokens after which a block ends with its line
LONG_BLOCK = 2000  # tokens after which it ends with a word, or with any token after twice as many
LINE = 70  # characters on a line of the page, about
MOST_MARKS = 40  # of documents' beginnings: more would only be a pattern
POINTS = 300  # of a curve, which is also the width of page.html's picture
ZERO_WIDTH_JOINER = '\u200d'

# What HTML cannot hold, shown by its number: control characters, and bytes that are not UTF-8, in a str surrogates (PEP 383).
SHOWN = {code: '\\x%02x' % (code & 0xff) for code in range(0xdd00)
         if code < 32 and code not in b'\t\n' or 0x7f <= code < 0xa0 or code >= 0xdc80}
SHOWN_SPACES = {ord(' '): '␣', ord('\t'): '⇥', ord('\n'): '↵'}

Unit = namedtuple('Unit', 'text first end')  # tokens first to end - 1 of a document, and what they spell


def write_page(path, encoder, documents, *, title, model_name, share=1):
    """Write the page of documents, a list of (ids int32 [N], Predictions), as one HTML file.

    title, model_name: str, what the page calls the text and the model.  share: the fraction of the text that this is.
    """
    text = []
    for number, (ids, found) in enumerate(documents, 1):
        if len(documents) > 1:
            text.append('<h2>Document {} <small>{n_tokens} tokens, perplexity {perplexity}</small></h2>'.format(
                number, **figures(found)))
        text += blocks(units(encoder, ids), found.rank)
    ids, found = joined(documents)
    values = dict(figures(found), **curves(found, np.cumsum([len(ids) for ids, _ in documents])[:-1]))
    values['part'] = '' if share == 1 else '; this is %.3g %% of it' % (100 * share)
    values.update(title=escaped(title), model_name=escaped(model_name), text=''.join(text), data=data(encoder, ids, found))
    with open(TEMPLATE, encoding='utf-8') as file:
        template = file.read()
    files.write_text(path, re.sub(r'{{(\w+)}}', lambda match: values[match.group(1)], template))


def joined(documents):
    """The (ids, Predictions) of all documents, as if they were one."""
    nothing = np.zeros(0, np.int32), Predictions(*[np.zeros(0, np.int32)] * 4 + [np.zeros([0, 0], np.int32)] * 2)
    ids, found = zip(*documents or [nothing])
    return np.concatenate(ids), Predictions(*map(np.concatenate, zip(*found)))


def escaped(text):
    """A str as HTML that shows it and does nothing else."""
    return html.escape(text.translate(SHOWN))


# The text

def units(encoder, ids):
    """Cut a document into the shortest Units that begin and end where a character does, and a mark stays with its letter.

    Most are one token. But the halves of an emoji mean nothing to a reader, and an accent alone cannot be pointed at.
    """
    text = encoder.decode_bytes(ids.tolist()).decode('utf-8', 'surrogateescape')
    begins = np.cumsum([0] + [len(character.encode('utf-8', 'surrogateescape')) for character in text])  # bytes before each
    ends = np.cumsum([len(encoder.decoder[token]) for token in ids.tolist()], dtype=int)  # bytes up to the end of each token
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
    """Yield a document as HTML, in blocks that end with a line; a line too long for one goes on in the next. rank: int [N]."""
    worst = np.maximum.reduceat(rank, [unit.first for unit in units]) if units else rank  # of the tokens of each unit
    elements = [element(unit, CLASSES[number]) for unit, number in zip(units, np.searchsorted(TOP, worst).tolist())]
    begin = 0
    for end, unit in enumerate(units, 1):
        n_tokens = unit.end - units[begin].first
        is_last, is_line = end == len(units), unit.text.endswith('\n')
        is_long = n_tokens >= 2 * LONG_BLOCK or n_tokens >= LONG_BLOCK and not is_last and units[end].text[0] == ' '
        if is_last or is_long or is_line and n_tokens >= BLOCK:
            lines = ''.join(unit.text for unit in units[begin:end]).split('\n')
            yield '<div%s style="--lines: %d">%s</div>' % ('' if is_last or is_line else ' class="cut"',
                                                           sum(1 + len(line) // LINE for line in lines),
                                                           ''.join(elements[begin:end]))
            begin = end


def element(unit, class_name):
    """A Unit as HTML. class_name: the one of CLASSES that colours it."""
    text, n_tokens = unit.text.translate(SHOWN), unit.end - unit.first
    classes = [class_name] if class_name else []
    if text != unit.text:
        classes.append('hex')
    if '\n' in text:
        classes.append('line')
    elif text.isspace():
        classes.append('space')
    elif all(unicodedata.category(character) == 'Cf' for character in text):
        classes.append('nothing')
    space = ' ' if text[0] == ' ' and len(text) > 1 else ''  # outside: at the end of a line its colour would stand alone
    return '%s<i%s%s>%s</i>' % (space, ' class="%s"' % ' '.join(classes) if classes else '',
                                ' data-n="%d"' % n_tokens if n_tokens > 1 else '', html.escape(text[len(space):], quote=False))


# The figures

def figures(found):
    """The figures of Predictions as page.html wants them, {name: str}."""
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
    """The curves along the text as page.html wants them, {name: str}. begins: where documents begin, but for the first."""
    n_tokens = len(found.nats)
    window = min(max(20, n_tokens // 60), n_tokens)
    first = np.linspace(0, n_tokens - window, min(n_tokens - window + 1, POINTS)).astype(int)
    means = {name: moving_mean(getattr(found, name), first, window) for name in ('nats', 'entropy')}
    top = max([1] + [math.ceil(y) for mean in means.values() for y in mean[np.isfinite(mean)]])
    result = {'window': format(window, ','), 'curve_top': '%d' % top, 'curve_middle': '%g' % (top / 2)}
    for name, mean in means.items():
        points = ['%.1f %.1f' % (POINTS * (x + window / 2) / n_tokens, 100 - 100 * y / top)
                  for x, y in zip(first, mean) if np.isfinite(y)]
        result[name + '_curve'] = 'M' + 'L'.join(points + points[-1:]) if points else ''  # a lone point is drawn as a dot
    begins = begins if len(begins) <= MOST_MARKS else []
    result['begins'] = ''.join('M%d 0V100' % x for x in np.unique(POINTS * np.asarray(begins, int) // max(1, n_tokens)))
    result['begins_note'] = '; a dotted line is where a document begins' if len(begins) else ''
    return result


def moving_mean(values, first, window):
    """The means of `window` values from each of the places `first` on, but for those that are not finite."""
    is_finite = np.isfinite(values)
    sums, counts = [np.cumsum(np.concatenate([[0], x])) for x in (np.where(is_finite, values, 0), is_finite)]
    with np.errstate(invalid='ignore'):  # of nothing but NaN, NaN
        return (sums[first + window] - sums[first]) / (counts[first + window] - counts[first])


# The cards

def data(encoder, ids, found):
    """What the cards show, as JSON that may stand in a script element."""
    tokens, places = np.unique(np.concatenate([ids, found.likeliest.ravel()]), return_inverse=True)
    arrays = {'tokens': places[:len(ids)], 'likeliest': places[len(ids):], 'rank': found.rank,
              'nats': thousandths(found.nats), 'likeliest_nats': thousandths(found.likeliest_nats)}
    values = {'columns': found.likeliest.shape[1], 'words': [word(encoder, token) for token in tokens.tolist()]}
    values.update({name: packed(array) for name, array in arrays.items()})
    return json.dumps(values, sort_keys=True).replace('<', '\\u003c')  # a script element ends at </script> even within a string


def word(encoder, token):
    """A token as a card shows it: all of it can be seen."""
    text = encoder.decode_bytes([token]).decode('utf-8', 'surrogateescape').translate(SHOWN).translate(SHOWN_SPACES)
    text = ''.join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
    return '\u25cc' + text if unicodedata.category(text[0])[0] == 'M' else text  # the circle is for a mark to stand on


def thousandths(nats):
    """Nats as whole thousandths, which fit in 16 bits: up to 65.534, where a probability is 1e-28; 65535 for NaN."""
    nats = np.asarray(nats, np.float64)
    return np.where(np.isnan(nats), 65535, np.clip(1000 * np.where(np.isnan(nats), 0, nats), 0, 65534).round())


def packed(numbers):
    """Whole numbers as [width, base64]: little-endian, each of as many bytes as width says."""
    width = 2 if not np.size(numbers) or np.max(numbers) < 2 ** 16 else 4
    return [width, base64.b64encode(np.ravel(numbers).astype('<u%d' % width).tobytes()).decode('ascii')]
