"""Benchmarks: files are read as the benchmarks define them, errors name the line, and the paper's figures are right."""
import json
import os
import re

import pytest

from gpt2.evaluation import benchmarks, cbt, lambada, language_modeling


@pytest.fixture
def write(tmpdir):
    """A function that writes bytes, or a str as UTF-8, to a file of a new folder, and returns its path."""
    def write_file(name, content):
        path = tmpdir.join(name)
        path.write_binary(content if isinstance(content, bytes) else content.encode('utf-8'))
        return str(path)
    return write_file


@pytest.mark.parametrize('name, n_words, n_pages', [('wiki.test.raw', 245569, 62), ('wiki.valid.raw', 217646, 60)])
def test_wikitext_pages_and_denominators_equal_its_authors_counts(shared, name, n_words, n_pages):
    """Merity et al. 2016 (arXiv:1609.07843), table 1: 60 articles each, and 245,569 and 217,646 words.

    Two of the articles of the test text are followed by a section with a heading of the first level.
    """
    text = language_modeling.read('wikitext2', os.path.join(shared, 'eval', name))
    counts = {unit: count for unit, count, _ in language_modeling.denominators('wikitext2', text, 7)}
    assert counts['word or line end'] == n_words
    assert counts['token'] == 7
    pages = language_modeling.wikitext_pages(text)
    assert len(pages) == n_pages and ''.join(pages) == text


def test_wikitext_pages_are_cut_at_headings_of_the_first_level():
    pages = [' \n = One = \n \n = = Part = = \n a = b \n \n', ' = Two = \n = = = Deep = = = \n']
    assert language_modeling.wikitext_pages(''.join(pages)) == pages
    assert language_modeling.wikitext_pages('no heading\n') == ['no heading\n']


@pytest.mark.parametrize('benchmark', ['enwik8', 'text8'])
def test_read_takes_the_last_twentieth_of_enwik8(write, monkeypatch, benchmark):
    """In whole characters, and only of the whole file."""
    monkeypatch.setattr(language_modeling, 'WHOLE_BYTES', 1000)
    monkeypatch.setattr(language_modeling, 'TEST_BYTES', 51)
    whole = b'a' * 948 + 'é'.encode() + b'b' * 49 + 'é'.encode()[:1]
    assert len(whole) == 1000 and whole[-51:-50] == 'é'.encode()[1:]
    assert language_modeling.read(benchmark, write('whole', whole)) == 'b' * 49
    assert language_modeling.read(benchmark, write('test', whole[900:-1])) == whole[900:-1].decode()
    assert language_modeling.read('ptb', write('ptb', whole[:-1])) == whole[:-1].decode()


def test_read_running_text_exactly(write):
    """It must be UTF-8."""
    assert language_modeling.read('ptb', write('text', 'a\r\nb\x85\n')) == 'a\r\nb\x85\n'
    with pytest.raises(ValueError, match='is not UTF-8: byte 1 is 0xff'):
        language_modeling.read('ptb', write('text', b'a\xff b'))
    with pytest.raises(ValueError, match='there is no text'):
        language_modeling.read('ptb', write('text', ' \n'))


def test_denominators_of_bits_are_of_the_original_text():
    assert language_modeling.denominators('enwik8', 'éa', 1) == [('byte', 3, 'bits')]
    assert language_modeling.denominators('text8', 'éa', 1) == [('character', 2, 'bits')]


def test_read_lambada(write):
    passages = ['He said “Go”, and', 'it\nwas']
    path = write('lambada', ''.join(json.dumps({'text': text}) + '\n' for text in passages[:1] + ['a b']))
    assert lambada.read('lambada', path) == [passages[0], 'a b']
    prepared = [prepare('‘He’ said “so” ') for _, prepare in lambada.PREPARATIONS]
    assert prepared == ['‘He’ said “so” ', '\n\'He\' said "so"']
    assert benchmarks.read('lambada', path) == [passages[0], 'a b']
    assert lambada.read('lambada', write('blank', '\ufeff{"text": "a b"}\r\n\n\n')) == ['a b']
    for wrong in ('{"text": "word"}', '{"txt": "a b"}', 'a b', '{"text": 1}', '{"text": ""}', b'{"text": "a \xff"}'):
        wrong = wrong if isinstance(wrong, bytes) else wrong.encode()
        with pytest.raises(ValueError, match='wrong, line 2: '):
            lambada.read('lambada', write('wrong', b'{"text": "a b"}\n%s\n' % wrong))
    for empty in ('', '\n'):
        with pytest.raises(ValueError, match='there is no passage in'):
            lambada.read('lambada', write('empty', empty))


def test_read_cbt(write):
    lines = ['%d line %d .\n' % (i, i) for i in range(1, 21)]
    lines += ["21 `` XXXXX , '' he said .\tno\t\tyes|no|maybe\n", '\n']
    questions = cbt.read('cbt-cn', write('cbt', ''.join(lines * 2)))
    assert questions[0] == questions[1] and len(questions) == 2
    story = ' '.join('line %d .' % i for i in range(1, 21))
    assert questions[0] == (story, '`` ', " , '' he said .", ['yes', 'no', 'maybe'], 1)
    assert benchmarks.read('cbt-ne', write('cbt', ''.join(lines * 2).replace('\n', '\r\n'))) == questions
    two_gaps = cbt.read('cbt-cn', write('cbt', ''.join(lines).replace('he said', 'XXXXX said')))
    assert two_gaps[0].after == " , '' XXXXX said .", 'the first gap is the one to fill'
    with pytest.raises(ValueError, match='is not UTF-8: byte 2 is 0xff'):
        cbt.read('cbt-cn', write('cbt', b'1 \xff .\n'))
    with pytest.raises(ValueError, match='line 21: all candidates are the same'):
        cbt.read('cbt-cn', write('cbt', ''.join(lines).replace('yes|no|maybe', 'no|no')))
    with pytest.raises(ValueError, match='line 21: the answer is not among'):
        cbt.read('cbt-cn', write('cbt', ''.join(lines).replace('\tno\t', '\tnone\t')))
    with pytest.raises(ValueError, match='does not end with a question'):
        cbt.read('cbt-cn', write('cbt', ''.join(lines[:20])))


PAPERS = [(benchmark, metric, paper) for benchmark, entry in benchmarks.BENCHMARKS.items()
          for metric, paper in entry['paper'].items()]


def test_paper_protocols_are_measured():
    """A protocol that nobody measures would leave its line out of the table silently."""
    for benchmark, metric, paper in PAPERS:
        if benchmark not in ('lambada', 'cbt-cn', 'cbt-ne'):
            counts = language_modeling.denominators(benchmark, 'a b', 1)
            assert paper['protocol'] in ['%s; %s per %s' % (reading.name, metric, count.unit) for count in counts
                                      for reading in language_modeling.readings(None, benchmark, 'a b')
                                      if count.metric == metric]


PAPER = """
LAMBADA PPL  35.13 15.60 10.87 8.63
LAMBADA ACC  45.99 55.48 60.12 63.24
CBT-CN ACC   87.65 92.35 93.45 93.30
CBT-NE ACC   83.4  87.1  88.0  89.05
WikiText2    29.41 22.76 19.93 18.34
PTB          65.85 47.33 40.31 35.76
enwik8 BPB   1.16  1.01  0.97  0.93
text8 BPC    1.17  1.06  1.02  0.98
WikiText103  37.50 26.37 22.05 17.48
1BW          75.20 55.72 44.575 42.16
"""


def test_paper_figures_are_those_of_table_3():
    """Table 3 of Radford et al. 2019, typed a second time: a mistake in one of the copies is found."""
    metrics = {'PPL': 'perplexity', 'ACC': 'accuracy', 'BPB': 'bits', 'BPC': 'bits'}
    names = (('117M', '124M'), ('345M', '355M'), ('762M', '774M'), ('1542M', '1558M'))
    rows = [re.match(r'(\S+) ?([A-Z]{3})? +(.*)', line).groups() for line in PAPER.strip().splitlines()]
    for name, metric, figures in rows:
        for both, figure in zip(names, figures.split()):
            for model in both:
                assert benchmarks.paper_figure(model, name.lower(), metrics.get(metric, 'perplexity')) == float(figure)
    assert len(rows) == len(PAPERS)
    assert benchmarks.paper_figure('demo', 'ptb', 'perplexity') is None
    assert benchmarks.paper_figure('117M', 'lambada', 'bits') is None
    assert {benchmark for benchmark, _, _ in PAPERS} == set(benchmarks.BENCHMARKS)
