"""encoder.py: compared with tiktoken, the tokenizers library, and a slow encoder written from the definition."""
import collections
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import unicodedata
from unittest import mock

import pytest

import encoder
from helpers import reference
from helpers.paths import SRC
from helpers.processes import SECONDS

# The first article of human rights, and other things that texts contain.
REAL_TEXTS = [
    'All human beings are born free and equal in dignity and rights.',
    'Alle Menschen sind frei und gleich an Würde und Rechten geboren.',
    'Tous les êtres humains naissent libres et égaux en dignité et en droits.',
    'Todos los seres humanos nacen libres e iguales en dignidad y derechos.',
    'Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.',
    'Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền.',
    'Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.',
    'Все люди рождаются свободными и равными в своем достоинстве и правах.',
    'Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.',
    'כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.',
    'يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.',
    'सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।',
    'มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ',
    '人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。',
    'すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。',
    '모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.',
    "I'm sure they'll say it's what we've said; you'd better ask 'em. DON'T they're O'Neill's 'tis ''s",
    'def f(x):\n    if x >= 10_000:\n\t\treturn [x ** 2, "a\\n"]  # 3.14159e-10\n\n\n',
    '👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 e\u0301 n\u0303 \ufeffBOM \u200bzero width \u00a0\u2003\u3000wide  spaces   ',
    ' \r\n\r\n end \x00\x1c\x85\u2028',
    '٣٤٥ ½ ⅷ ² 一二三 १२३ 0123456789 1,000.50 x²y³',
]
ALPHABETS = [range(*ends) for ends in [
    (0x00, 0x20), (0x20, 0x7F), (0x20, 0x7F), (0x61, 0x7B), (0x7F, 0x100), (0x100, 0x250), (0x2B0, 0x370),
    (0x370, 0x400), (0x400, 0x530), (0x590, 0x600), (0x600, 0x700), (0x900, 0x980), (0xE00, 0xE80), (0x1200, 0x1380),
    (0x1680, 0x1681), (0x2000, 0x2070), (0x2070, 0x20D0), (0x2100, 0x2190), (0x3000, 0x3100), (0x4E00, 0x9F00),
    (0xAC00, 0xD7A4), (0xFE00, 0xFE10), (0xFEFF, 0xFF70), (0x10400, 0x10450), (0x1D400, 0x1D800), (0x1F300, 0x1F650),
    (0xE0100, 0xE01F0), (0xF0000, 0xF0010)]]
WHITE_SPACE = [  # to Unicode, or only to some libraries
    0x20, 0x20, 0x09, 0x0A, 0x0D, 0x0B, 0x0C, 0x1C, 0x1F, 0x85, 0xA0, 0x1680, 0x180E, 0x2003, 0x200B, 0x2028, 0x3000]
SURROGATES = range(0xD800, 0xE000)


def random_texts(count, *, seed, surrogates=False):
    """A list of strings of 0 to 39 characters, most mixing a few scripts, with runs of one character here and there.

    Characters that this Python does not know are left out: libraries with Unicode tables of different ages disagree.
    """
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        alphabets = draw.sample(ALPHABETS, draw.randint(1, 3)) + [WHITE_SPACE, [0x27, 0x73, 0x74]][:draw.randint(0, 2)]
        if surrogates and draw.random() < 0.3:
            alphabets.append(SURROGATES)
        text = ''
        for _ in range(draw.randint(0, 39)):
            character = chr(draw.choice(draw.choice(alphabets)))
            if unicodedata.category(character) != 'Cn':
                text += character * (draw.randint(2, 9) if draw.random() < 0.05 else 1)
        texts.append(text)
    return texts


@pytest.fixture(scope='module')
def gpt2(vocabulary):
    return encoder.get_encoder(os.path.basename(vocabulary), os.path.dirname(vocabulary))


@pytest.fixture(scope='module')
def tiktoken_encode(vocabulary):
    """tiktoken's own pattern and merging with the release's files; its gpt2 would fetch the same two files."""
    tiktoken = pytest.importorskip('tiktoken', reason='needs tiktoken: pip install tiktoken')
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str
    with mock.patch.dict(os.environ, TIKTOKEN_CACHE_DIR=''):
        ranks = data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=os.path.join(vocabulary, 'vocab.bpe'),
                                                encoder_json_file=os.path.join(vocabulary, 'encoder.json'))
    return tiktoken.Encoding('gpt2', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def plain_pieces(text):
    """Cut a text by the definition of the pieces, character by character, without a regular expression."""
    def kind(character):
        category = unicodedata.category(character)[0]
        space = character.isspace() and not '\x1c' <= character <= '\x1f'  # spaces to Python, not to Unicode
        return 'space' if space else category if category in 'LN' else 'other'

    pieces = []
    while text:
        contraction = [ending for ending in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d") if text.startswith(ending)]
        start = int(text[0] == ' ' and len(text) > 1 and kind(text[1]) != 'space')
        end = start
        while end < len(text) and kind(text[end]) == kind(text[start]):
            end += 1
        if kind(text[start]) == 'space' and end - start > 1 and end < len(text):
            end -= 1  # the last of several spaces belongs to what follows
        end = len(contraction[0]) if contraction else end
        pieces.append(text[:end])
        text = text[end:]
    return pieces


@pytest.fixture(scope='module')
def plain_encode(vocabulary):
    """A slow encoder over the release's files, which shares nothing with encoder.py."""
    visible = [byte for byte in range(256) if chr(byte).isprintable() and byte != 0x20]
    hidden = [byte for byte in range(256) if byte not in visible]
    byte_of = dict(zip(map(chr, visible), visible))
    byte_of.update(zip(map(chr, range(256, 512)), hidden))
    with open(os.path.join(vocabulary, 'encoder.json'), encoding='utf-8') as file:
        ids = json.load(file)
    with open(os.path.join(vocabulary, 'vocab.bpe'), encoding='utf-8') as file:
        ranks = {tuple(line.split()): rank for rank, line in enumerate(file.read().splitlines()[1:])}
    symbol_of = {byte: character for character, byte in byte_of.items()}

    def encode(text):
        words = [[symbol_of[byte] for byte in piece.encode('utf-8')] for piece in plain_pieces(text)]
        return [ids[symbol] for word in words for symbol in reference.plain_bpe(word, ranks)]
    return encode


def test_encode_gives_published_ids(gpt2):
    """Ids from the tests of tiktoken: they are part of the released models and never change."""
    assert gpt2.encode('hello world') == [31373, 995]
    assert gpt2.encode('Hello world') == [15496, 995]
    assert [gpt2.encode('0' * n) for n in range(1, 11)] == [
        [15], [405], [830], [2388], [20483], [10535], [24598], [8269], [10535, 830], [8269, 405]]


@pytest.mark.parametrize('text', REAL_TEXTS, ids=range(len(REAL_TEXTS)))
def test_encode_equals_tiktoken_for_real_text(gpt2, tiktoken_encode, text):
    assert gpt2.encode(text) == tiktoken_encode(text)


def test_encode_equals_tiktoken_for_stories(gpt2, tiktoken_encode, shared):
    with open(os.path.join(shared, 'corpus', 'valid.txt'), encoding='utf-8') as file:
        text = file.read()
    assert gpt2.encode(text) == tiktoken_encode(text)


@pytest.mark.slow
def test_encode_equals_tiktoken_for_random_text(gpt2, tiktoken_encode):
    for text in random_texts(10000, seed=1, surrogates=True):
        assert gpt2.encode(text) == tiktoken_encode(text), ascii(text)


@pytest.mark.slow
def test_encode_equals_tiktoken_for_every_token(gpt2, tiktoken_encode):
    """The text of each token by itself and with a random neighbour; the ids need not be those two."""
    tokens = sorted(gpt2.decoder)[:-1]
    neighbours = random.Random(2).sample(tokens, len(tokens))
    for token, neighbour in zip(tokens, neighbours):
        text = gpt2.decode([token, neighbour])
        assert gpt2.encode(text) == tiktoken_encode(text), ascii(text)


@pytest.mark.slow
def test_encode_equals_the_definition(gpt2, plain_encode):
    for text in REAL_TEXTS + random_texts(5000, seed=3):
        assert gpt2.encode(text) == plain_encode(text), ascii(text)


def test_encode_equals_tiktoken_for_long_words(gpt2, tiktoken_encode):
    draw = random.Random(4)
    for alphabet in ('a', 'ab', 'etaoinshrdlu', '的是不了人', '=-'):
        word = ''.join(draw.choice(alphabet) for _ in range(5000))
        assert gpt2.encode(word) == tiktoken_encode(word)


def test_merge_equals_the_definition_for_any_ranks():
    """Also if a pair ranks below its parts, or two pairs merge into the same symbol, which training never produces."""
    draw = random.Random(5)
    for _ in range(1500):
        symbols = list('abc'[:draw.randint(1, 3)])
        letters = ''.join(symbols)
        pairs = []
        for _ in range(draw.randint(0, 12)):
            pairs.append((draw.choice(symbols), draw.choice(symbols)))
            symbols.append(''.join(pairs[-1]))
        draw.shuffle(pairs)
        ranks = {pair: rank for rank, pair in enumerate(pairs)}
        word = ''.join(draw.choice(letters) for _ in range(draw.randint(0, 40)))
        assert encoder.merge(word, ranks) == reference.plain_bpe(word, ranks), (word, ranks)


class CountingRanks(dict):
    """A dict that counts look-ups."""

    n_lookups = 0

    def get(self, pair, default=None):
        self.n_lookups += 1
        return dict.get(self, pair, default)

    def __contains__(self, pair):
        self.n_lookups += 1
        return dict.__contains__(self, pair)

    def __getitem__(self, pair):
        self.n_lookups += 1
        return dict.__getitem__(self, pair)


@pytest.mark.slow
@pytest.mark.parametrize('alphabet', ['a', 'etaoinshrdlu'])
def test_merge_takes_linear_time(gpt2, alphabet):
    """n look-ups at first, and two for each of at most n merges; each pair that has a rank is looked up once more."""
    draw = random.Random(6)
    for n in (100, 1000, 10000, 50000):
        ranks = CountingRanks(gpt2.bpe_ranks)
        symbols = encoder.merge([draw.choice(alphabet) for _ in range(n)], ranks)
        assert len(symbols) < n / 1.5
        assert n <= ranks.n_lookups <= 6 * n


def test_decode_inverts_encode(gpt2):
    for text in REAL_TEXTS + random_texts(2000, seed=7):
        assert gpt2.decode(gpt2.encode(text)) == text, ascii(text)


def test_decode_gives_every_byte(vocabulary):
    """Every byte is a token."""
    merges, _ = encoder.read_merges(os.path.join(vocabulary, 'vocab.bpe'))
    with open(os.path.join(vocabulary, 'encoder.json'), encoding='utf-8') as file:
        exact = encoder.Encoder(json.load(file), merges, errors='surrogateescape')
    texts = [exact.decode([token]).encode('utf-8', 'surrogateescape') for token in range(256)]
    assert sorted(texts) == [bytes([byte]) for byte in range(256)]


def test_encode_treats_end_of_text_as_text(gpt2):
    assert gpt2.end_of_text == gpt2.encoder['<|endoftext|>'] == 50256
    assert len(gpt2.encode('<|endoftext|>')) == 7
    for text in ('<|endoftext|>', 'a<|endoftext|>b', '<|endoftext|>' * 3, ' <|endoftext|>\n'):
        tokens = gpt2.encode(text)
        assert gpt2.end_of_text not in tokens
        assert gpt2.decode(tokens) == text
    assert gpt2.decode([50256]) == '<|endoftext|>'


def test_encode_replaces_surrogates(gpt2):
    """A pair becomes its character, a lone surrogate U+FFFD, as in UTF-16."""
    for text, valid in (('\ud83d\ude00', '\U0001f600'), ('a\ud800b', 'a\ufffdb'), ('\ude00\ud83d', '\ufffd\ufffd'),
                        ('\ufeff\udfff', '\ufeff\ufffd')):
        assert gpt2.decode(gpt2.encode(text)) == valid


def test_decode_replaces_half_a_character(gpt2):
    tokens = gpt2.encode('🜁')
    assert len(tokens) > 1
    assert gpt2.decode(tokens[:-1] + gpt2.encode(' a')) == '\ufffd a'


def test_decode_takes_numpy_integers(gpt2):
    numpy = pytest.importorskip('numpy', reason='needs numpy')
    for dtype in ('int32', 'int64', 'uint16'):
        assert gpt2.decode(numpy.array([15496, 995], dtype)) == 'Hello world'


@pytest.mark.parametrize('token', [-1, 50257, 10 ** 12])
def test_decode_rejects_unknown_ids(gpt2, token):
    with pytest.raises(ValueError, match='%d .* 0 to 50256' % token):
        gpt2.decode([15496, token])


@pytest.mark.parametrize('text', [b'bytes', None, 7, ['a']])
def test_encode_rejects_other_types(gpt2, text):
    with pytest.raises(ValueError, match='takes a str, got ' + type(text).__name__):
        gpt2.encode(text)


def test_encoder_cache_is_bounded(gpt2, monkeypatch):
    """By the number of pieces and by their length; forgotten pieces are encoded again as before."""
    monkeypatch.setattr(encoder, 'CACHED_PIECES', 100)
    monkeypatch.setattr(gpt2, 'cache', {})
    texts = [' word%s' % ''.join(letters) for letters in zip('abcdefghij' * 100, sorted('klmnopqrst' * 100))]
    expected = {text: gpt2.encode(text) for text in texts}
    assert len(expected) == 100
    gpt2.encode('one two three')
    assert len(gpt2.cache) <= 100
    assert {text: gpt2.encode(text) for text in texts} == expected
    gpt2.cache.clear()
    assert gpt2.decode(gpt2.encode('x' * 1000)) == 'x' * 1000
    assert gpt2.cache == {}


def test_encoder_can_be_pickled(gpt2):
    assert pickle.loads(pickle.dumps(gpt2)).encode(REAL_TEXTS[1]) == gpt2.encode(REAL_TEXTS[1])


def test_encoder_imports_little_and_reads_utf_8_in_any_locale(vocabulary):
    """In a separate process with the C locale: vocab.bpe has characters that are not ASCII."""
    program = ('import sys, encoder; e = encoder.get_encoder(sys.argv[1], sys.argv[2]); print(e.encode("Hello world"));'
               'assert not {"tensorflow", "numpy", "tokenizers"} & set(sys.modules)')
    environment = dict(os.environ, LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0', PYTHONPATH=SRC)
    output = subprocess.check_output([sys.executable, '-c', program, os.path.basename(vocabulary),
                                      os.path.dirname(vocabulary)], env=environment, timeout=SECONDS)
    assert output.decode().strip() == '[15496, 995]'


def copy_vocabulary(vocabulary, folder):
    os.makedirs(folder)
    for name in ('encoder.json', 'vocab.bpe'):
        shutil.copyfile(os.path.join(vocabulary, name), os.path.join(folder, name))


def change_ids(change):
    """Returns a function that changes the ids in encoder.json, given as bytes."""
    def damage(data):
        ids = json.loads(data.decode('utf-8'))
        change(ids)
        return json.dumps(ids).encode('utf-8')
    return damage


def damaged_encoder(vocabulary, folder, name, damage):
    """The message of get_encoder for the release's vocabulary after damage(content) to one of its files, or None."""
    copy_vocabulary(vocabulary, folder)
    with open(os.path.join(folder, name), 'rb') as file:
        data = damage(file.read())
    with open(os.path.join(folder, name), 'wb') as file:
        file.write(data)
    try:
        encoder.get_encoder(os.path.basename(folder), os.path.dirname(folder))
    except ValueError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize('name, damage', [
    ('encoder.json', lambda data: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'),
    ('encoder.json', lambda data: data[:len(data) // 2]),
    ('encoder.json', lambda data: b'[' * 100000 + b']' * 100000),
    ('encoder.json', lambda data: b'["!", "a"]'),
    ('encoder.json', lambda data: b'{}'),
    ('encoder.json', lambda data: data.replace(b'"<|endoftext|>"', b'"<|padding|>"')),
    ('encoder.json', lambda data: data.replace(b'"!": 0, ', b'')),
    ('encoder.json', change_ids(lambda ids: ids.update({'!': '0'}))),
    ('encoder.json', change_ids(lambda ids: ids.update({'!': [0]}))),
    ('encoder.json', change_ids(lambda ids: ids.update({'!': 0.0}))),
    ('encoder.json', change_ids(lambda ids: ids.update({'!': False}))),
    ('encoder.json', change_ids(lambda ids: ids.update({'!': -1}))),
    ('encoder.json', change_ids(lambda ids: ids.update({'!': 1}))),
    ('encoder.json', change_ids(lambda ids: ids.update({'!': 50257}))),
    ('encoder.json', change_ids(lambda ids: ids.update({'Ġhello!!': 50257}))),
    ('vocab.bpe', lambda data: b''),
    ('vocab.bpe', lambda data: data[:data.index(b'\n', len(data) // 2) + 1]),
    ('vocab.bpe', lambda data: data[:data.rindex(b'\n', 0, -1) + 1]),
    ('vocab.bpe', lambda data: data[data.index(b'\n') + 1:]),
    ('vocab.bpe', lambda data: data.replace(b'\nh e\n', b'\ni n\n')),
    ('vocab.bpe', lambda data: data + b'zq zq\n'),
    ('vocab.bpe', lambda data: data + b'half\n'),
    ('vocab.bpe', lambda data: data[:1000] + b'\xff' + data[1000:])],
    ids=['xml', 'truncated', 'deep', 'list', 'empty object', 'no end of text', 'missing byte', 'string id', 'list id',
         'float id', 'bool id', 'negative id', 'repeated id', 'skipped id', 'symbol without merge', 'empty file',
         'truncated after a line', 'last line missing', 'first line missing', 'repeated merge', 'other model',
         'half a line', 'not UTF-8'])
def test_get_encoder_reports_damage(vocabulary, tmp_path, name, damage):
    """In one line, with the folder and the remedy."""
    message = damaged_encoder(vocabulary, str(tmp_path / '117M'), name, damage)
    assert message is not None
    assert str(tmp_path / '117M') in message and name in message and 'fetch' in message and 'delete both' not in message
    assert '\n' not in message and len(message) < 400


def test_special_tokens_are_shown_and_never_come_out_of_text(tmp_path):
    """Wherever their ids are, of any name. A vocabulary without <|endoftext|> is not called damaged."""
    merges = [('a', 'n'), ('an', 'd'), ('<', 's')]  # the tokens <s and > do not make <s> a lost merge
    for place, special in ((0, ['<|endoftext|>', '<|pad|>', '<s>', '[CLS]', 'ein \u4e2d']),
                           (260, ['[PAD]', '<|endoftext|>'])):
        symbols = list(encoder.bytes_to_unicode().values()) + [''.join(pair) for pair in merges]
        symbols[place:place] = special
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / 'encoder.json').write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
        (folder / 'vocab.bpe').write_text('#version: 0.2\n' + ''.join('%s %s\n' % pair for pair in merges))
        found = encoder.get_encoder(folder.name, str(tmp_path))
        assert found.end_of_text == found.encoder['<|endoftext|>'] == symbols.index('<|endoftext|>')
        text = ' and '.join(special)
        tokens = found.encode(text)
        assert found.decode(tokens) == text
        assert found.encode('hand') == [found.encoder[symbol] for symbol in ('h', 'and')]
        for name in special:
            assert found.encoder[name] not in tokens and found.decode([97, found.encoder[name], 97]).count(name) == 1
            assert found.decode([found.encoder[name]]) == name
    ids = json.loads((folder / 'encoder.json').read_text())
    ids['</s>'] = ids.pop('<|endoftext|>')
    (folder / 'encoder.json').write_text(json.dumps(ids))
    with pytest.raises(ValueError, match='cannot be used: it has no <.endoftext.>; models that end .* not supported'):
        encoder.get_encoder(folder.name, str(tmp_path))


def test_symbol_that_stands_for_no_bytes_is_refused(vocabulary, tmp_path):
    """Not when it is decoded: the model may draw it at any time."""
    copy_vocabulary(vocabulary, str(tmp_path / '117M'))
    ids = change_ids(lambda ids: ids.update({'\u20ac': 50257, '\u20aca': 50258}))
    for name, damage in (('encoder.json', ids), ('vocab.bpe', lambda data: data + '\u20ac a\n'.encode('utf-8'))):
        path = tmp_path / '117M' / name
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match='117M cannot be used: its merges have the character \'\u20ac\', which stands'):
        encoder.get_encoder('117M', str(tmp_path))


def test_get_encoder_reports_the_line_of_a_bad_merge(vocabulary, tmp_path):
    message = damaged_encoder(vocabulary, str(tmp_path / '117M'), 'vocab.bpe', lambda data: data[:data.index(b'\n')]
                              + b'\na b\nhalf\n')
    assert 'line 3 of vocab.bpe has 1 symbols' in message


def test_read_merges_reads_no_giant(tmp_path):
    path = tmp_path / 'vocab.bpe'
    with open(str(path), 'wb') as file:
        file.truncate(2 ** 40)
    with pytest.raises(ValueError, match='vocab.bpe has over 134217728 bytes'):
        encoder.read_merges(str(path))


@pytest.mark.slow
@pytest.mark.parametrize('damage', [
    lambda data: data.rstrip(b'\n'), lambda data: data + b'\n\n', lambda data: data.replace(b'\n', b'\r\n')],
    ids=['no newline at the end', 'blank lines at the end', 'Windows line endings'])
def test_get_encoder_accepts_files_that_an_editor_has_saved(vocabulary, tmp_path, damage):
    assert damaged_encoder(vocabulary, str(tmp_path / '117M'), 'vocab.bpe', damage) is None


def test_get_encoder_needs_only_two_files(vocabulary, tmp_path):
    """Like OpenAI's get_encoder, it needs neither hyperparameters nor weights."""
    copy_vocabulary(vocabulary, str(tmp_path / 'words'))
    assert encoder.get_encoder('words', str(tmp_path)).encode('Hello world') == [15496, 995]


def test_write_vocabulary_reproduces_the_released_files(vocabulary, tmp_path):
    """The release's merges, written by us, give the release's two files byte by byte."""
    encoder.write_vocabulary(encoder.read_merges(os.path.join(vocabulary, 'vocab.bpe'))[0], str(tmp_path / 'new'))
    assert sorted(os.listdir(str(tmp_path / 'new'))) == ['encoder.json', 'vocab.bpe']
    for name in ('encoder.json', 'vocab.bpe'):
        with open(os.path.join(vocabulary, name), 'rb') as released, open(str(tmp_path / 'new' / name), 'rb') as ours:
            assert ours.read() == released.read()


@pytest.fixture(scope='module')
def tokenizers():
    return pytest.importorskip('tokenizers', reason='needs tokenizers: pip install tokenizers')


def learn(folder, *, vocab_size=500):
    """An Encoder of a vocabulary learned from the real texts. One of the documents has a lone surrogate in it."""
    encoder.learn_vocabulary(iter(REAL_TEXTS * 2 + ['a\ud800b']), vocab_size, str(folder))
    return encoder.get_encoder(folder.name, str(folder.parent))


def test_learn_vocabulary_gives_the_ids_of_the_tokenizers_library(tokenizers, tmp_path):
    ours = learn(tmp_path / 'learned')
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(
        str(tmp_path / 'learned' / 'encoder.json'), str(tmp_path / 'learned' / 'vocab.bpe')))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in REAL_TEXTS + random_texts(1000, seed=8):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, ascii(text)
        assert ours.decode(ours.encode(text)) == text, ascii(text)


def test_learn_vocabulary_merges_the_most_frequent_pairs(tokenizers, tmp_path):
    """By counting: no pair is more frequent than the one that is merged next."""
    ours = learn(tmp_path / 'learned', vocab_size=320)
    words = [[ours.byte_encoder[byte] for byte in piece.encode('utf-8')]
             for text in REAL_TEXTS * 2 + ['a\ufffdb'] for piece in plain_pieces(text)]
    ranks = {}
    for pair, rank in sorted(ours.bpe_ranks.items(), key=lambda item: item[1]):
        pairs = collections.Counter(pair for word in words for pair in zip(word, word[1:]))
        assert pairs[pair] == max(pairs.values())
        ranks[pair] = rank
        words = [reference.plain_bpe(word, ranks) for word in words]
    assert len(ranks) == 320 - 257


def test_learn_vocabulary_has_the_requested_size_and_order(tokenizers, tmp_path, gpt2):
    learned = learn(tmp_path / 'learned')
    assert sorted(learned.decoder) == list(range(500))
    assert learned.end_of_text == 499
    assert [learned.decoder[token] for token in range(256)] == [gpt2.decoder[token] for token in range(256)]
    by_rank = sorted(learned.bpe_ranks, key=learned.bpe_ranks.get)
    assert [learned.decoder[token] for token in range(256, 499)] == [''.join(pair) for pair in by_rank]
    assert len(learn(tmp_path / 'bytes', vocab_size=257).encode('Hello world')) == len('Hello world')


def test_learn_vocabulary_is_reproducible(tokenizers, tmp_path):
    for name in ('first', 'second'):
        learn(tmp_path / name)
    for name in ('encoder.json', 'vocab.bpe'):
        assert (tmp_path / 'first' / name).read_bytes() == (tmp_path / 'second' / name).read_bytes()


def test_learn_vocabulary_rejects_sizes_that_the_text_cannot_fill(tokenizers, tmp_path):
    with pytest.raises(ValueError, match='vocab_size is 5000'):
        learn(tmp_path / 'learned', vocab_size=5000)
    assert os.listdir(str(tmp_path)) == []


def test_learn_vocabulary_needs_two_occurrences_of_a_pair(tokenizers, tmp_path):
    encoder.learn_vocabulary(['xy', 'xy'], 258, str(tmp_path / 'twice'))
    assert encoder.get_encoder('twice', str(tmp_path)).encode('xy') == [256]
    with pytest.raises(ValueError, match='vocab_size is 258.* 257 tokens'):
        encoder.learn_vocabulary(['xy'], 258, str(tmp_path / 'once'))


def test_learn_vocabulary_rejects_fewer_tokens_than_bytes(tmp_path):
    with pytest.raises(ValueError, match='vocab_size is 256.* 257'):
        learn(tmp_path / 'learned', vocab_size=256)
    assert os.listdir(str(tmp_path)) == []


def test_learn_vocabulary_without_tokenizers_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tokenizers', None)
    with pytest.raises(ImportError, match='pip install tokenizers'):
        learn(tmp_path / 'learned')
    assert os.listdir(str(tmp_path)) == []
