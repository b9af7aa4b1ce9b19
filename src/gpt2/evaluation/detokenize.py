"""Undo a benchmark's tokenization: from `the U.S. 's " Top 10 " ,` to `the U.S.'s "Top 10",`, and back.

Models are trained on the second kind. Nothing is lost: retokenize(detokenize(text, rules), rules) gives any text back,
so that the nats of the one are nats of the other (Radford et al. 2019, section 3.1).
"""
from collections import namedtuple
import functools
import re

# split: (pattern, replacement) pairs that separate a joined text again, in this order.
# before, after: patterns of words that are joined to the word before them, or after them.
# between: {word: replacement}, which is joined on both sides.
# quotes: (opening, closing) words that become a quotation mark, joined to the words inside.
# padded: whether each line of the benchmark has a space at both ends.
Rules = namedtuple('Rules', 'split before after between quotes padded')

ABBREVIATIONS = frozenset("""
Adm Aug Ave Bros Brig Capt Cmdr Co Col Corp Cpl Dec Dept Dr Feb Fig Gen Gov Hon Inc Jan Jr Lt Ltd Maj Messrs Mr Mrs Ms
Mt No Nos Nov Oct Op Ph Pres Prof Pvt Rep Rev Sen Sept Sep Sgt Sr St Ste Vol cf ed eds etc mm op p pp var vol vs
""".split())


def _split_full_stop(found):
    """Separate the full stop of a sentence, but not that of an abbreviation, from its word. found: a match."""
    word = found.group(1)
    abbreviation = word in ABBREVIATIONS or len(word) == 1 and word.isalpha() or '.' in word
    return word + ('.' if abbreviation else ' .')


def _english(suffixes, first, after, between, quotes, padded, before=''):
    """The Rules of an English text. suffixes: pattern of the word endings that are separated, as in do n't.

    first: the patterns that come before those of English, as in `split`.  before: alternatives for the end of `before`.
    """
    return Rules(first + (
        (r'(?<=\S)([,;:!?])(?=[\s,;:!?.]|$)', r' \1'),
        (r"(?<=\S)(%s)(?!\w)" % suffixes, r' \1'),
        (r"(?<=s)'(?=[\s,;:!?.]|$)", " '"),
        (r'(?<=[^\s.])\.\.\.(?=\s|$)', ' ...'),
        (r'(?<!\S)(\S*[^\s.])\.(?=\s|$)', _split_full_stop),
    ), r"[,;:!?.)\]%%]|\.\.\.|'|%s" % suffixes + before, after, between, quotes, padded)


_BRACKETS = ((r'(?<=\S)(["()\[\]%])', r' \1'), (r'(["()\[\]$£¥€#])(?=\S)', r'\1 '))
_OPENING = r'[(\[$£¥€#]'
_CONTRACTIONS = r"n't|'(?:s|re|ve|m|ll|d)"  # as the Penn Treebank separates them: do n't

# Its words were separated by the tokenizer of Moses: don 't
ONE_BILLION_WORDS = _english(r"'(?:s|t|re|ve|m|ll|d)", _BRACKETS, _OPENING, {}, ('"', '"'), False)
WIKITEXT = _english(r"'\w+", (  # also O 'Brien
    (r'(?<!\w)\d+(?:[,.]\d+)+(?!\w)', lambda number: re.sub('[,.]', r' @\g<0>@ ', number.group())),
    (r'(?<=[^\W_])-(?=[^\W_])', ' @-@ '),
    (r'(?<=\S)°', ' °'),
    (r'°(?=\S)', '° '),
    (r'=(?==)', '= ')) + _BRACKETS, _OPENING, {'@-@': '-', '@,@': ',', '@.@': '.', '°': '°'}, ('"', '"'), True, '|=')
PTB = Rules((
    (r'(?<=\S)(%s)(?!\w)' % _CONTRACTIONS, r' \1'),
    (r"(?<=s)'(?=\s|$)", " '"),
    (r'([$#])(?=\S)', r'\1 '),
    (r'(?<=\S)%', ' %')),
    r"'|%|" + _CONTRACTIONS, r'[$#]', {}, (), True)
CBT = _english(_CONTRACTIONS, (
    (r'(?<!\S)"', '`` '),
    (r'"', " ''"),
    (r'  +', ' ')), r'(?!)', {}, ('``', "''"), False)


def detokenize(text, rules):
    """Join what a benchmark separated, wherever `retokenize` can separate it again.

    Two spaces before a word mark it as one that `retokenize` must not split, though its rules would. A space at the
    beginning of a line marks a line that it must not change, because it could not restore it.
    """
    return re.sub('[^\n]*\n|[^\n]+', lambda line: _detokenize_line(line.group(), rules), text)


def retokenize(text, rules):
    """The benchmark's text, from what `detokenize` returned."""
    return re.sub('[^\n]*\n|[^\n]+', lambda line: _retokenize_line(line.group(), rules), text)


def _detokenize_line(line, rules):
    words, end, _ = line.partition('\n')
    joined = _join(words.strip(' ') if rules.padded else words, rules) + end
    return joined if joined and joined[0] != ' ' and _retokenize_line(joined, rules) == line else ' ' + line


def _retokenize_line(line, rules):
    if line.startswith(' '):
        return line[1:]
    joined, end, _ = line.partition('\n')
    padding = ' ' if rules.padded else ''
    return padding + _split(joined, rules.split) + (padding if joined else '') + end


def _join(line, rules):
    def comes_apart(text, *words):
        return _split_word(text, rules.split) == ' '.join(words)

    words = line.split(' ')
    joined, previous, joins_next, quoting = '', None, False, False
    for word, following in zip(words, words[1:] + [None]):
        if not comes_apart(word, word):
            joined += '  ' + word
            previous, joins_next = None, False
            continue
        shown, joins_previous, joined_by_previous, joins_next = word, False, joins_next, False
        if word in rules.between and previous and following:
            mark = rules.between[word]
            joins_previous = joins_next = comes_apart(previous + mark + following, previous, word, following)
            shown = mark if joins_next else word
        elif word in rules.quotes:
            opening = not quoting if len(set(rules.quotes)) == 1 else word == rules.quotes[0]
            shown, quoting, joins_previous, joins_next = '"', opening, not opening, opening
        elif re.fullmatch(rules.before, word):
            joins_previous = previous is not None and comes_apart(previous + word, previous, word)
        if re.fullmatch(rules.after, word):
            joins_next = following is not None and comes_apart(word + following, word, following)
        joined += shown if joined_by_previous or joins_previous or not joined else ' ' + shown
        previous = shown
    return joined


def _split(text, patterns):
    pieces = re.split(r'  (\S+)', text)  # every second piece is a word after two spaces, which must not be split
    pieces[1::2] = [' ' + word for word in pieces[1::2]]
    for pattern, replacement in patterns:
        pieces[::2] = [re.sub(pattern, replacement, piece) for piece in pieces[::2]]
    return ''.join(pieces)


_split_word = functools.lru_cache(maxsize=1 << 16)(_split)
