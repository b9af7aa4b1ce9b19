"""benchmarks.py: files are read as the benchmarks define them, and what is no such file is named by its line."""
import json
import os

import pytest

import benchmarks


@pytest.fixture
def write(tmpdir):
    """A function that writes bytes, or a str as UTF-8, to a file of a new folder, and returns its path."""
    def write_file(name, content):
        path = tmpdir.join(name)
        path.write_binary(content if isinstance(content, bytes) else content.encode('utf-8'))
        return str(path)
    return write_file


@pytest.mark.parametrize('name, n_words, n_pages', [('wiki.test.raw', 245569, 62), ('wiki.valid.raw', 217646, 60)])
def test_wikitext_has_the_words_and_articles_that_its_authors_count(shared, name, n_words, n_pages):
    """Merity et al. 2016 (arXiv:1609.07843), table 1: 60 articles each, and 245,569 and 217,646 words; two of the articles of
    the test text are followed by a section with a heading of the first level."""
    text = benchmarks.read_text('wikitext2', os.path.join(shared, 'eval', name))
    counts = {denominator.unit: denominator.count for denominator in benchmarks.denominators('wikitext2', text, 7)}
    assert counts['word or line end'] == n_words
    assert counts['token'] == 7
    pages = benchmarks.wikitext_pages(text)
    assert len(pages) == n_pages and ''.join(pages) == text


def test_pages_are_cut_at_headings_of_the_first_level_only():
    pages = [' \n = One = \n \n = = Part = = \n a = b \n \n', ' = Two = \n = = = Deep = = = \n']
    assert benchmarks.wikitext_pages(''.join(pages)) == pages
    assert benchmarks.wikitext_pages('no heading\n') == ['no heading\n']


@pytest.mark.parametrize('benchmark', ['enwik8', 'text8'])
def test_of_a_whole_file_of_enwik8_the_last_twentieth_is_read_in_whole_characters(write, monkeypatch, benchmark):
    monkeypatch.setattr(benchmarks, 'WHOLE_BYTES', 1000)
    monkeypatch.setattr(benchmarks, 'TEST_BYTES', 51)
    whole = b'a' * 948 + 'é'.encode() + b'b' * 49 + 'é'.encode()[:1]
    assert len(whole) == 1000 and whole[-51:-50] == 'é'.encode()[1:]
    assert benchmarks.read_text(benchmark, write('whole', whole)) == 'b' * 49
    assert benchmarks.read_text(benchmark, write('test', whole[900:-1])) == whole[900:-1].decode()
    assert benchmarks.read_text('ptb', write('ptb', whole[:-1])) == whole[:-1].decode()


def test_a_text_is_read_to_the_byte_and_must_be_utf8(write):
    assert benchmarks.read_text('ptb', write('text', 'a\r\nb\x85\n')) == 'a\r\nb\x85\n'
    with pytest.raises(ValueError, match='is not UTF-8: byte 1 is 0xff'):
        benchmarks.read_text('ptb', write('text', b'a\xff b'))
    with pytest.raises(ValueError, match='there is no text'):
        benchmarks.read_text('ptb', write('text', ' \n'))


def test_bits_are_by_byte_or_character_of_the_original():
    assert benchmarks.denominators('enwik8', 'éa', 1) == [('byte', 3, 'bits')]
    assert benchmarks.denominators('text8', 'éa', 1) == [('character', 2, 'bits')]


def test_lambada_is_read_line_by_line(write):
    passages = ['He said “Go”, and', 'it\nwas']
    path = write('lambada', ''.join(json.dumps({'text': text}) + '\n' for text in passages[:1] + ['a b']))
    assert benchmarks.read_lambada(path) == [passages[0], 'a b']
    assert [prepare('‘He’ said “so” ') for _, prepare in benchmarks.LAMBADA_TEXTS] == ['‘He’ said “so” ', '\n\'He\' said "so"']
    for wrong in ('{"text": "word"}', '{"txt": "a b"}', '"a b"', 'a b', '{"text": 1}'):
        with pytest.raises(ValueError, match='line 2: .*a line must be'):
            benchmarks.read_lambada(write('wrong', '{"text": "a b"}\n%s\n' % wrong))


def test_cbt_is_read_as_its_authors_wrote_it(write):
    lines = ['%d line %d .\n' % (i, i) for i in range(1, 21)] + ["21 `` XXXXX , '' he said .\tno\t\tyes|no|maybe\n", '\n']
    questions = benchmarks.read_cbt(write('cbt', ''.join(lines * 2)))
    assert questions[0] == questions[1] and len(questions) == 2
    context = ' '.join('line %d .' % i for i in range(1, 21))
    assert questions[0] == (context, '`` ', " , '' he said .", ['yes', 'no', 'maybe'], 1)
    with pytest.raises(ValueError, match='line 21: the answer is not among'):
        benchmarks.read_cbt(write('cbt', ''.join(lines).replace('\tno\t', '\tnone\t')))
    with pytest.raises(ValueError, match='does not end with a question'):
        benchmarks.read_cbt(write('cbt', ''.join(lines[:20])))


def test_the_papers_figures_are_beside_the_released_models_only():
    assert benchmarks.paper_figure('117M', 'lambada', 'accuracy') == benchmarks.paper_figure('124M', 'lambada', 'accuracy') == 45.99
    assert benchmarks.paper_figure('1542M', 'enwik8', 'bits') == benchmarks.paper_figure('1558M', 'enwik8', 'bits') == 0.93
    assert benchmarks.paper_figure('762M', 'wikitext103', 'perplexity') == benchmarks.paper_figure('774M', 'wikitext103', 'perplexity') == 22.05
    assert benchmarks.paper_figure('355M', 'cbt-ne', 'accuracy') == benchmarks.paper_figure('345M', 'cbt-ne', 'accuracy') == 87.1
    assert benchmarks.paper_figure('demo', 'ptb', 'perplexity') is None
    assert benchmarks.paper_figure('117M', 'lambada', 'bits') is None
    assert {benchmark for benchmark, _ in benchmarks.PAPER} == set(benchmarks.FILES) == set(benchmarks.COMMANDS)
