"""detokenize.py: joined texts read as people write, and any text can be restored byte by byte."""
import os
import random

import pytest

from gpt2.evaluation.detokenize import CBT, ONE_BILLION_WORDS, PTB, WIKITEXT, detokenize, retokenize

EXAMPLES = [
    (WIKITEXT, ' = = Career = = \n', '== Career ==\n'),
    (WIKITEXT, ' \n A \n', '\nA\n'),
    (WIKITEXT, ' In the U.S. , 12 @,@ 500 @.@ 5 well @-@ known men ( and women ) don \'t " Go " . \n',
     'In the U.S., 12,500.5 well-known men (and women) don\'t "Go".\n'),
    (WIKITEXT, ' a $ 5 bill ; 20 % of 30 ° C ! ? " O \'Brien \'s " , St. John said : " Yes . " [ sic ] ... \n',
     'a $5 bill; 20% of 30°C!? "O\'Brien\'s", St. John said: "Yes." [sic]...\n'),
    (PTB, " it was n't the company 's fault that shares rose $ N to N N or N % \n",
     "it wasn't the company's fault that shares rose $N to N N or N%\n"),
    (PTB, " the traders ' <unk> i 'm sure they 'll pay # N mr. smith \n",
     "the traders' <unk> i'm sure they'll pay #N mr. smith\n"),
    (CBT, "`` Why , '' said Mr. Hare , `` do n't you come ? ''\n", '"Why," said Mr. Hare, "don\'t you come?"\n'),
    (ONE_BILLION_WORDS,
     'The " U.S. " Centers ( CDC ) don \'t spend $ 5.2 million , or 5 % , Mr. Smith \'s aide said .\n',
     'The "U.S." Centers (CDC) don\'t spend $5.2 million, or 5%, Mr. Smith\'s aide said.\n'),
]


@pytest.mark.parametrize('rules, text, joined', EXAMPLES)
def test_detokenize_joins_as_people_write(rules, text, joined):
    assert detokenize(text, rules) == joined
    assert retokenize(joined, rules) == text


@pytest.mark.slow
@pytest.mark.parametrize('name', ['wiki.test.raw', 'wiki.valid.raw'])
def test_retokenize_restores_all_of_wikitext(shared, name):
    with open(os.path.join(shared, 'eval', name), encoding='utf-8', newline='') as file:
        text = file.read()
    joined = detokenize(text, WIKITEXT)
    assert retokenize(joined, WIKITEXT) == text
    unjoined = [line for line in joined.split('\n') if line.startswith(' ')]
    assert len(unjoined) < 0.002 * text.count('\n'), 'too many lines were left as they are'
    assert joined.count('  ') < 0.0002 * len(text.split()), 'too many words were left as they are'
    for apart in (' @-@ ', ' @,@ ', ' , ', ' . ', ' ; ', '( ', ' )', " 's "):
        assert joined.count(apart) < 0.02 * text.count(apart), apart


@pytest.mark.slow
@pytest.mark.parametrize('rules', [WIKITEXT, PTB, CBT, ONE_BILLION_WORDS], ids=['wikitext', 'ptb', 'cbt', '1bw'])
def test_retokenize_restores_any_text(rules):
    rng = random.Random(0)
    words = ["a", "s", "n't", "'s", "'", "''", '``', '"', '.', ',', '...', '!', '(', ')', '[', '$', '%', '°', '=', '==',
             '5', '12', '1,000th', '3.5', '@-@', '@,@', '@.@', 'x-y', 'Mr.', 'Vs.', 'U.S.', '\n', '\n', '', ' ',
             '\t', '\r', '\x85']
    n_joined = 0
    for _ in range(1500):
        text = ''.join(rng.choice(words) + rng.choice(['', ' ', ' ', ' ']) for _ in range(rng.randrange(12)))
        for line in (text, ' ' + text + ' \n'):
            joined = detokenize(line, rules)
            assert retokenize(joined, rules) == line
            n_joined += len(joined) < len(line)
    assert n_joined > 200  # or nothing was proven
