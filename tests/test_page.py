"""page.py: the page shows the text and only the text, its figures are NumPy's, its cards show the predictions.

Some tests need a browser, Debian's chromium.
"""
import base64
import html.parser
import json
import math
import os
import re

import numpy as np
import pytest

import encoder
from gpt2.evaluation import page
from gpt2.evaluation.batches import Predictions
from helpers.browser import Browser
from helpers.paths import ROOT

HOSTILE = ('</script><script>document.title = "hacked"</script><!-- <b onclick="x">bold</b> & &amp; \'quoted\' '
           '"quoted"\n--> ]]> {{title}} {{data}} <|endoftext|> '
           '\ufffd \u202eback\u202c \u200b \ufeff \x00\x01\x1b[31m\x7f\x85\r\n'
           '\ttab   spaces \n\n')
ODD = 'An emoji 😀😀, a family 👨‍👩‍👧, naïve cafe\u0301, z\u0335\u0321\u0301; שלום, مرحبا; हिन्दी; 日本語.\n'


class Text(html.parser.HTMLParser):
    """The parts of an HTML page. text: the text of main.  units: the (attributes, text) of its tokens.

    data: of the cards.  tags: the names of all elements.
    """

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.text, self.title, self.units, self.tags, self.inside, self.data = '', '', [], [], [], None
        with open(path, encoding='utf-8', newline='') as file:
            self.source = file.read()
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = [tag] if tag in ('main', 'title', 'script') else self.inside + [tag]
        if self.inside[0] == 'main' and tag == 'i':
            self.units.append([dict(attributes), ''])
        self.is_data = dict(attributes).get('id') == 'data'

    def handle_endtag(self, tag):
        self.inside = self.inside[:-1]

    def handle_data(self, data):
        outer, inner = self.inside[:1], self.inside[-1:]
        if outer == ['main'] and 'h2' not in self.inside:
            self.text += data
            if inner == ['i']:
                self.units[-1][1] += data
        elif outer == ['title']:
            self.title += data
        elif outer == ['script'] and self.is_data:
            self.data = json.loads(data)


@pytest.fixture(scope='module')
def demo():
    """The Encoder of the demo model."""
    return encoder.get_encoder('demo', os.path.join(ROOT, 'models'))


def encoder_of(*words):
    """An Encoder that has a token for each of words, besides those of the 256 bytes: a tag may be one token."""
    symbols = encoder.bytes_to_unicode()
    merges = {}
    for word in words:
        spelled = ''.join(symbols[byte] for byte in word.encode('utf-8'))
        merges.update({spelled[:end + 1]: (spelled[:end], spelled[end]) for end in range(1, len(spelled))})
    tokens = list(symbols.values()) + sorted(merges) + [encoder.END_OF_TEXT]
    return encoder.Encoder({token: number for number, token in enumerate(tokens)}, list(merges.values()))


def made_up(ids, n_vocab, seed=0):
    """Predictions as a model of n_vocab tokens might make them, drawn at random."""
    random = np.random.RandomState(seed)
    n_tokens, columns = len(ids), min(5, n_vocab)
    rank = np.minimum(np.exp(random.exponential(2.2, n_tokens)).astype(int), n_vocab)
    return Predictions(nats=np.log(rank) + random.exponential(1, n_tokens), rank=rank,
                       entropy=random.gamma(3, 1, n_tokens), variance=random.gamma(3, 1, n_tokens),
                       top_ids=random.randint(0, n_vocab, [n_tokens, columns]),
                       top_nats=np.sort(random.exponential(2, [n_tokens, columns])))


def documents_of(text_encoder, *texts):
    """Documents as write_page takes them. texts: str, or list of token ids."""
    every = [np.array(text_encoder.encode(text) if isinstance(text, str) else text, np.int32) for text in texts]
    return [(ids, made_up(ids, len(text_encoder.decoder), seed)) for seed, ids in enumerate(every)]


def write(folder, text_encoder, documents, title='a title', model_name='a model'):
    """The path of the page of documents."""
    path = str(folder.join('page.html'))
    page.write_page(path, text_encoder, documents, title=title, model_name=model_name)
    return path


def write_text(path, text):
    """The path of a file of UTF-8 text."""
    path.write_binary(text.encode('utf-8'))
    return str(path)


def visible(data):
    """UTF-8 bytes as the page should show them: other characters by their numbers."""
    text = data.decode('utf-8', 'backslashreplace')
    return re.sub('[\x00-\x08\x0b-\x1f\x7f-\x9f]', lambda match: '\\x%02x' % ord(match.group()), text)


def unpacked(packed):
    """The numbers that are base64 in the page."""
    width, text = packed
    return np.frombuffer(base64.b64decode(text), '<u%d' % width)


# Without a browser

@pytest.mark.slow
@pytest.mark.parametrize('text', [
    HOSTILE, ODD, '', 'x', '\n', ' ', '\n\n \n', 'a' * 3000, 'word ' * 5000, 'line\n' * 3000, '\u0301x'],
    ids=lambda text: ascii(text)[:12])
def test_write_page_adds_no_element_for_any_text(demo, tmpdir, text):
    """A parser gets all of the text back, and finds no element that is not on the page of an empty text."""
    parsed = Text(write(tmpdir, demo, documents_of(demo, text)))
    assert parsed.text == visible(text.encode('utf-8'))
    empty = Text(write(tmpdir, demo, documents_of(demo, '')))
    tags, expected = ([tag for tag in page.tags if tag not in ('i', 'div')] for page in (parsed, empty))
    assert tags == expected


TAGS = '</script>', '<script>', '<!--', '<b>', '&lt;', '&amp', '</i></div></main>', '"', '\x00', '\r\n'


def test_write_page_shows_a_token_that_is_a_tag_as_text(tmpdir):
    """Also a token that is a whole tag, the beginning of a comment or a character reference, and also on cards."""
    hostile = encoder_of(*TAGS)
    ids = [hostile.encoder[''.join(hostile.byte_encoder[byte] for byte in tag.encode('utf-8'))] for tag in TAGS]
    documents = documents_of(hostile, ids)
    documents[0][1].top_ids[:] = np.array(ids)[:, None]
    parsed = Text(write(tmpdir, hostile, documents))
    assert [text for _, text in parsed.units] == [visible(tag.encode('utf-8')) for tag in TAGS]
    assert 'b' not in parsed.tags and sorted(parsed.data['words']) == sorted(page.word(hostile, token) for token in ids)
    assert len(re.findall('</?script', parsed.source)) == 4  # data and script, as in the template


def test_write_page_shows_title_and_model_name_as_text(demo, tmpdir):
    """A file name may contain HTML, and bytes that are not UTF-8."""
    title = '"a\'s" </title><b>{{text}}</b> & \udcff'
    parsed = Text(write(tmpdir, demo, documents_of(demo, 'x'), title=title, model_name='<b>{{text}}'))
    assert parsed.title == title.replace('\udcff', '\\xff')
    assert 'b' not in parsed.tags and '<p class="by">as predicted by the model &lt;b&gt;{{text}}</p>' in parsed.source


def test_write_page_loads_nothing(demo, tmpdir):
    """The page names no other file, and forbids the browser to load any."""
    source = Text(write(tmpdir, demo, documents_of(demo, 'x'))).source
    assert "default-src 'none'" in source
    assert not re.search(r'https?:|//\w+\.|\bsrc=|\bhref=|url\(|@import|innerHTML|\bfetch\b|\bimport\b', source)


def test_write_page_shows_random_bytes(demo, tmpdir):
    """Characters as themselves, even if they are cut into several tokens, other bytes by their numbers."""
    random = np.random.RandomState(0)
    for number in range(30):
        data = ''.join(chr(random.choice([0x41, 0xe9, 0x20ac, 0x1f600])) for _ in range(30)).encode('utf-8')
        data = bytes(byte for byte in data if random.uniform() > number / 60)
        data += bytes(random.randint(0, 256, number).tolist())
        ids = [demo.encoder[demo.byte_encoder[byte]] for byte in data]
        parsed = Text(write(tmpdir, demo, documents_of(demo, ids)))
        assert parsed.text == visible(data)
        assert sum(int(attributes.get('data-n', 1)) for attributes, _ in parsed.units) == len(ids)


def test_units_join_the_parts_of_a_character(demo, tmpdir):
    """With the worst of their ranks."""
    ids = [demo.encoder[demo.byte_encoder[byte]] for byte in 'a😀e\u0301'.encode('utf-8') + b'\xf0\x9f!']
    rank = np.array([1, 2, 50, 5, 3, 1, 2000, 1, 1, 11, 1])
    parsed = Text(write(tmpdir, demo, [(np.array(ids), made_up(ids, 4096)._replace(rank=rank))]))
    assert parsed.units == [[{}, 'a'], [{'class': 'b', 'data-n': '4'}, '😀'],
                            [{'class': 'd', 'data-n': '3'}, 'e\u0301'], [{'class': 'hex'}, '\\xf0'],
                            [{'class': 'b hex'}, '\\x9f'], [{}, '!']]


def test_units_join_an_emoji_of_several_emoji(demo, tmpdir):
    """What joins characters into one joins their tokens."""
    ids = [demo.encoder[demo.byte_encoder[byte]] for byte in 'x👨‍👩‍👧y'.encode('utf-8')]
    assert [text for _, text in Text(write(tmpdir, demo, documents_of(demo, ids))).units] == ['x', '👨‍👩‍👧', 'y']


def test_element_marks_invisible_tokens(demo, tmpdir):
    """White space alone, a newline and a character without width each get the class that makes them visible."""
    singles = ['\n', ' ', '\t', '\u200b', '\r', '\u00a0', 'x']
    ids = [demo.encoder[demo.byte_encoder[byte]] for byte in ''.join(singles).encode('utf-8')]
    documents = [(np.array(ids), made_up(ids, 4096)._replace(rank=np.ones(len(ids), int)))]
    kinds = [attributes.get('class') for attributes, _ in Text(write(tmpdir, demo, documents)).units]
    assert kinds == ['line', 'space', 'space', 'nothing', 'hex', 'space', None]


def test_blocks_have_the_classes_of_the_ranks(demo, tmpdir):
    """Rank 10 is the last of the first class, 100 of the second, 1,000 of the third."""
    ids = demo.encode('\n') * 7
    documents = [(np.array(ids), made_up(ids, 4096)._replace(rank=np.array([1, 10, 11, 100, 101, 1000, 1001])))]
    kinds = [attributes['class'].split()[0] for attributes, _ in Text(write(tmpdir, demo, documents)).units]
    assert kinds == ['line', 'line', 'b', 'b', 'c', 'c', 'd']


def test_figures_equal_numpy(demo, tmpdir):
    """Shares, counts, perplexity, entropy, in all and for each document."""
    documents = documents_of(demo, HOSTILE * 3, ODD)
    source = Text(write(tmpdir, demo, documents)).source
    nats, rank, entropy = [np.concatenate([getattr(found, name) for _, found in documents])
                           for name in ('nats', 'rank', 'entropy')]
    assert '<dd>{:,}</dd>'.format(len(nats)) in source
    assert '<dd>%.6g</dd>' % np.exp(nats.mean()) in source
    for values in nats, entropy:
        assert '<dd>%.2f nats <small>= %.2f bits' % (values.mean(), values.mean() / np.log(2)) in source
    for low, high in (0, 10), (10, 100), (100, 1000), (1000, np.inf):
        count = np.sum((rank > low) & (rank <= high))
        assert '<span>{:.1f} % ({:,})</span>'.format(100 * count / len(rank), count) in source
    for number, (ids, found) in enumerate(documents, 1):
        assert '<h2>Document %d <small>%d tokens, perplexity %.6g</small></h2>' % (
            number, len(ids), np.exp(found.nats.mean())) in source


@pytest.mark.slow
@pytest.mark.parametrize('n_tokens', [1, 2, 19, 20, 21, 300, 5000])
def test_curves_are_moving_means(demo, n_tokens):
    """Each point is the mean of the tokens around it, as the axis says; a few hundred at most."""
    found = made_up(np.zeros(n_tokens), 4096)
    curves = page.curves(found, [])
    window, top = int(curves['window'].replace(',', '')), int(curves['curve_top'])
    for name, values in ('nats', found.nats), ('entropy', found.entropy):
        points = re.findall('[0-9.-]+ [0-9.-]+', curves[name + '_curve'])[:-1]
        points = [tuple(map(float, point.split())) for point in points]
        assert len(points) <= 300 and all(0 <= x <= 300 and 0 <= y <= 100 for x, y in points)
        assert points
        for x, y in points:
            means = [np.mean(values[first:first + window]) for first in range(n_tokens - window + 1)
                     if abs(300 * (first + window / 2) / n_tokens - x) <= 0.051]
            assert any(abs(100 - 100 * mean / top - y) < 0.06 for mean in means)


def test_curves_show_where_documents_begin(demo):
    """A line for each document but the first, at its share of the tokens; none for more than MAX_MARKS."""
    found = made_up(np.zeros(1000), 4096)
    assert page.curves(found, [250, 500])['begins'] == 'M75 0V100M150 0V100'
    assert page.curves(found, [])['begins'] == ''
    for n, n_marks in ((40, 40), (41, 0)):
        curves = page.curves(found, range(10, 10 + 20 * n, 20))
        assert curves['begins'].count('M') == n_marks and ('documents begin' in curves['begins_note']) == bool(n_marks)


def test_write_page_marks_where_documents_begin(demo, tmpdir):
    """The first document begins, and the last one ends, at an end of the curve, which has no mark."""
    ids = demo.encode('\n') * 4
    source = Text(write(tmpdir, demo, documents_of(demo, ids, ids, ids * 2))).source
    assert '<path class="begin" d="M75 0V100M150 0V100"/>' in source


def test_data_has_the_predictions(demo, tmpdir):
    """Ranks and ids come back as they were, nats to the nearest thousandth; words are seen, their spaces included."""
    documents = documents_of(demo, HOSTILE, '', ODD)
    documents[0][1].nats[:3] = [0.0004, 100, -1e-9]
    data = Text(write(tmpdir, demo, documents)).data
    ids = np.concatenate([ids for ids, _ in documents])
    top_ids, top_nats, nats, rank = [np.concatenate([getattr(found, name) for _, found in documents])
                                             for name in ('top_ids', 'top_nats', 'nats', 'rank')]
    words = np.array([page.word(demo, token) for token in range(len(demo.decoder))])
    shown = np.array(data['words'])
    assert (shown[unpacked(data['tokens'])] == words[ids]).all() and data['columns'] == 5
    assert (shown[unpacked(data['top'])] == words[top_ids.ravel()]).all()
    assert np.abs(unpacked(data['top_nats']) / 1000 - top_nats.ravel()).max() <= 0.00051
    assert (unpacked(data['rank']) == rank).all()
    assert unpacked(data['nats'])[:3].tolist() == [0, 65534, 0]
    assert np.abs(unpacked(data['nats']) / 1000 - nats)[3:].max() <= 0.00051


def test_word_is_visible(demo):
    """Spaces, newlines, bytes and what has no width are signs in a card; no two tokens look the same."""
    words = [page.word(demo, token) for token in range(len(demo.decoder))]
    assert len(set(words)) == len(words)
    assert all(word.isprintable() and word.strip() == word != '' for word in words)
    assert page.word(demo, demo.encode(' the')[0]) == '␣the'
    assert page.word(demo, demo.encoder[demo.byte_encoder[0xf0]]) == '\\xf0'


def test_packed_numbers_of_any_size():
    """Two bytes for each number where they do, four where one is larger."""
    for numbers, width in ([], 2), ([0, 65535], 2), ([0, 65536], 4):
        packed = page.packed(np.array(numbers))
        assert packed[0] == width and unpacked(packed).tolist() == numbers


@pytest.mark.slow
@pytest.mark.parametrize('text', ['word ' * 30000, 'x\n' * 20000, 'a9' * 15000, '\n' * 20000],
                         ids=['words', 'lines', 'no space', 'newlines'])
def test_blocks_are_bounded(demo, text):
    """No block but the last has more than 4,000 tokens or fewer than 400; one that ends within a line is marked."""
    ids = np.array(demo.encode(text))
    units = page.units(demo, ids)
    found = list(page.blocks(units, np.ones(len(ids), int)))
    sizes = [block.count('<i') for block in found]
    assert len(found) > 1 and max(sizes) <= 2 * page.LONG_BLOCK and min(sizes[:-1]) >= page.BLOCK
    for block in found[:-1]:
        assert ('class="cut"' in block) != block.endswith('\n</i></div>')
    assert 'class="cut"' not in found[-1]


def test_write_page_is_small(demo, tmpdir):
    """At most 80 bytes for each token, five alternatives included; the rest, without any, under 30,000."""
    with open(os.path.join(ROOT, 'tests', 'held_out.txt'), encoding='utf-8') as file:
        documents = documents_of(demo, file.read())
    empty = os.path.getsize(write(tmpdir, demo, []))
    n_tokens = len(documents[0][0])
    assert empty < 30000 and n_tokens > 1000
    assert os.path.getsize(write(tmpdir, demo, documents)) - empty < 80 * n_tokens


def luminance(colour):
    """The relative luminance of a colour such as #fdfcf9, as WCAG 2 defines it."""
    parts = [int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize('scheme', [0, 1], ids=['light', 'dark'])
def test_template_colours_differ_without_hue(scheme):
    """Text has WCAG's contrast of 4.5, light and dark; classes differ in lightness, step by step, and in underlines."""
    with open(page.TEMPLATE, encoding='utf-8') as file:
        template = file.read()
    colours = dict(re.findall(r'--(\w+): (#\w{6});', re.findall(r':root {(.*?)\n *}', template, re.DOTALL)[scheme]))
    value = {name: luminance(colour) for name, colour in colours.items()}
    for text, ground in (('ink', 'paper'), ('quiet', 'paper'), ('ink', 'raised'), ('ink', 'c0'), ('ink', 'c1'),
                         ('ink2', 'c2'), ('ink3', 'c3')):
        low, high = sorted([value[text], value[ground]])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
    steps = [value[name] for name in ('paper', 'c0', 'c1', 'c2', 'c3')]
    assert steps == sorted(steps, reverse=not scheme)
    assert len(set(re.findall(r'i\.[bcd] {.*underline (\w+)', template))) == 3


# In a browser

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    with Browser(str(tmp_path_factory.mktemp('browser'))) as running:
        yield running


def in_browser(browser, path, script, size=(1300, 800)):
    """What a script returns that runs in the page once it was loaded. script: the body of an async function."""
    browser.forget()
    browser.look(*size)
    browser.open('file://' + path)
    return browser.run(script)


def shown_percent(nats):
    """A probability as a card should show it, given to the thousandth of a nat."""
    percent = 100 * math.exp(-round(1000 * nats) / 1000)
    return '< 0.0001 %' if percent < 1e-4 else ('%.1f %%' if percent >= 0.1 else '%#.2g %%') % percent


def expected_card(text_encoder, ids, found, token):
    """The lines of a token's card: itself, its loss and rank, the most likely tokens."""
    lines = [page.word(text_encoder, ids[token]), 'probability %s (%.2f nats), rank %s' % (
        shown_percent(found.nats[token]), found.nats[token], format(found.rank[token], ','))]
    for likely, nats in zip(found.top_ids[token], found.top_nats[token]):
        lines += [page.word(text_encoder, likely), shown_percent(nats)]
    return lines


LINES = "const lines = () => [...card.querySelectorAll('p, td')].map(element => element.textContent);"


@pytest.mark.slow
def test_browser_shows_the_card_of_a_token(browser, demo, tmpdir):
    """Every token's card shows its probability, its rank and the five most likely tokens, in several documents."""
    documents = documents_of(demo, 'Once upon a time\n\n' + HOSTILE, 'there was a King <b>.')
    for ids, found in documents:
        found.top_ids[::3, 1] = ids[::3]  # the line of the token itself is bold
    documents = [(ids, found._replace(nats=found.nats.round(2) + 0.001)) for ids, found in documents]  # far from ties
    cards = in_browser(browser, write(tmpdir, demo, documents), LINES + """
        const found = [];
        const bold = () => [...card.querySelectorAll('.it td:first-child')].map(element => element.textContent);
        for (const unit of document.querySelectorAll('main i')) {
            unit.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
            found.push([lines(), bold(), card.hidden, Number(unit.dataset.n || 1)]);
        }
        text.dispatchEvent(new MouseEvent('mouseleave'));
        return [...found, card.hidden];""")
    assert cards.pop() is True
    wanted = [expected_card(demo, ids.tolist(), found, token) for ids, found in documents for token in range(len(ids))]
    assert len(cards) > 50
    for lines, bold, hidden, n_tokens in cards:
        assert not hidden
        if n_tokens == 1:
            assert lines == wanted[0] and bold == [line for line in lines[2::2] if line == lines[0]]
        del wanted[:n_tokens]
    assert not wanted


@pytest.mark.slow
def test_browser_keeps_a_card_in_view_when_the_page_is_scrolled(browser, demo, tmpdir):
    """Below its token, or above it if there is no room, wherever on the screen the token is."""
    path = write(tmpdir, demo, documents_of(demo, 'a line of text\n' * 300))
    found = in_browser(browser, path, """
        const units = [...document.querySelectorAll('main i')], unit = units[Math.floor(units.length / 2)], found = [];
        for (const block of ['start', 'center', 'end']) {
            unit.scrollIntoView({block});
            unit.click();
            const box = card.getBoundingClientRect(), token = unit.getBoundingClientRect();
            found.push([scrollY, box.top, box.bottom, innerHeight, token.top, token.bottom]);
            hide();
        }
        return found;""")
    for scroll, top, bottom, height, token_top, token_bottom in found:
        assert scroll > 800 and 0 <= top < bottom <= height and (top > token_bottom or bottom < token_top)


@pytest.mark.slow
def test_browser_lists_the_tokens_of_a_character_on_its_card(browser, demo, tmpdir):
    """Each of the four tokens of a character; of very many, the first twenty."""
    ids = [demo.encoder[demo.byte_encoder[byte]] for byte in ('😀a' + 20 * '\u0301').encode('utf-8')]
    found = made_up(ids, 4096)
    found = found._replace(nats=found.nats.round(2) + 0.001)
    first, second = in_browser(browser, write(tmpdir, demo, [(np.array(ids), found)]), LINES + """
        return [...document.querySelectorAll('main i')].map(unit => { unit.click(); return lines(); });""")
    assert first[0].startswith('4 tokens') and second[0].startswith('41 tokens') and second[-1] == 'and 21 more'
    assert first[1:] == sum([expected_card(demo, ids, found, token) for token in range(4)], [])
    assert second[1:-1] == sum([expected_card(demo, ids, found, token) for token in range(4, 24)], [])


@pytest.mark.slow
def test_browser_keys_and_taps(browser, demo, tmpdir):
    """Arrow keys move between tokens and blocks, and stop at both ends; a tap keeps a card open, Escape closes it."""
    documents = documents_of(demo, 'a line of text\n' * 200)
    found = in_browser(browser, write(tmpdir, demo, documents), """
        const units = [...document.querySelectorAll('main i')], places = [];
        const press = key => {
            text.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
            places.push(units.indexOf(document.querySelector('.now')));
        };
        press('ArrowLeft');
        for (const unit of units) press('ArrowRight');
        press('ArrowLeft');
        const keys = places.splice(0);
        units[7].click();
        units[9].dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
        press('x');
        press('Escape');
        press('ArrowRight');
        units[3].click();
        press('x');
        units[3].click();
        press('x');
        units[3].click();
        document.querySelector('h1').click();
        press('x');
        return [keys, places, text.tabIndex, text.children.length];""")
    keys, places, tab_index, n_blocks = found
    n_units = len(page.units(demo, documents[0][0]))
    assert n_blocks > 1 and tab_index == 0
    assert keys == [0] + list(range(1, n_units)) + [n_units - 1, n_units - 2]
    assert places == [7, -1, 8, 3, -1, -1]


@pytest.mark.slow
def test_browser_runs_nothing_of_a_hostile_text(browser, demo, tmpdir):
    """A browser runs nothing of it, shows all of it, and finds it where it is."""
    text = HOSTILE + ODD
    path = write(tmpdir, demo, documents_of(demo, text), title='</title><script>x</script>')
    title, content, scripts = in_browser(browser, path, """
        return [document.title, text.textContent, document.scripts.length];""")
    assert title == '</title><script>x</script>' and scripts == 2
    assert content == visible(text.encode('utf-8'))


@pytest.mark.slow
@pytest.mark.parametrize('width', [360, 1200])
def test_browser_shows_nothing_wider_than_the_screen(browser, demo, tmpdir, width):
    """Long words break, also on a telephone, also in a card."""
    text = 'x' * 500 + ' <|endoftext|>' * 3 + HOSTILE + '\t' * 50 + ' ' * 300 + 'end'
    path = write(tmpdir, demo, documents_of(demo, text, text), title='t' * 300, model_name='m' * 300)
    inner, scroll, client, left, right = in_browser(browser, path, """
        const left = unit => unit.getBoundingClientRect().left, root = document.documentElement;
        [...document.querySelectorAll('main i')].slice(0, 800).sort((a, b) => left(b) - left(a))[0].click();
        const box = card.getBoundingClientRect();
        return [innerWidth, root.scrollWidth, root.clientWidth, box.left, box.right];""", size=(width, 800))
    assert inner == width and scroll <= client and 0 <= left < right <= client


@pytest.mark.slow
def test_browser_joins_the_pieces_of_a_long_paragraph(browser, demo, tmpdir):
    """A piece begins on the line on which the one before it ends, if there is room, and covers none of its tokens."""
    documents = documents_of(demo, 'some words of a long line ' * 2400)
    joints = in_browser(browser, write(tmpdir, demo, documents), """
        const found = [];
        for (const piece of document.querySelectorAll('.cut')) {
            const end = piece.lastChild, next = piece.nextSibling;
            piece.scrollIntoView({block: 'end'});
            for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
            const ends = end.getClientRects()[0], begins = next.firstElementChild.getClientRects()[0];
            const hit = document.elementFromPoint(ends.left + 2, ends.top + ends.height / 2) === end;
            const room = piece.getBoundingClientRect().right - ends.right;
            found.push([hit, begins.top - ends.top, begins.left - ends.right, room - begins.width]);
        }
        return found;""")
    assert len(joints) > 3 and all(hit for hit, _, _, _ in joints)
    for _, down, right, room in joints:
        assert abs(down) < 1 and 0 < right < 20 if room > 20 else abs(down) < 1 or 20 < down < 40
    assert any(room > 20 for _, _, _, room in joints)
