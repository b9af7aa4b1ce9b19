"""Text to token ids and back: GPT-2's byte-level byte-pair encoding (BPE).

A text is cut into pieces: words, numbers, runs of punctuation or of white space, each with the space before it.
The UTF-8 bytes of a piece are merged pair by pair, in the order in which the pairs were learned, until no two
neighbours form a learned pair. Because all 256 bytes are tokens, any text can be encoded.

Source: Radford et al. 2019 (the GPT-2 paper), section 2.2; Sennrich et al. 2016 (arXiv:1508.07909), section 3.2.
"""
import heapq
import json
import os
import sys
import tempfile
from collections import OrderedDict

import regex

from gpt2.system import files
from gpt2 import releases

END_OF_TEXT = '<|endoftext|>'
SPECIAL = regex.compile(r'<\S+>\Z|\[[A-Z_]+\d*\]\Z')  # the form of most special tokens: <|endoftext|>, </s>, [PAD]

# The cut into pieces is part of the model: any other cut gives tokens that it never saw in training. What counts as a
# letter or a digit depends on the Unicode version of the regex library, so an older regex (or tiktoken, which has its
# own tables) may cut differently at a character that is new in Unicode.
PIECES = regex.compile(r"""'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""")

# An encoder caches this many pieces of at most this many characters: longer ones hardly ever recur.
# The cache takes about 10 MB when full of words, 65 MB when full of the longest pieces.
CACHED_PIECES = 2 ** 16
CACHED_PIECE_LENGTH = 24


def bytes_to_unicode():
    """The printable character that represents each byte in encoder.json and vocab.bpe.

    Returns an OrderedDict {byte: character} in the order of the release's first 256 token ids: first the printable
    bytes of Latin-1, as themselves; then the 68 others (space, newline, ...) as U+0100, U+0101, ...
    """
    printable = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    unprintable = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(0x100 + i) for i in range(len(unprintable))]
    return OrderedDict(zip(printable + unprintable, characters))


def spell(text):
    """Returns a text with a character for each of its bytes."""
    characters = bytes_to_unicode()
    return ''.join([characters[byte] for byte in text.encode('utf-8')])


def merge(symbols, ranks):
    """Merge neighbours until no two have a rank: the lowest rank first, equal ranks from left to right.

    symbols: n strings.  ranks: {(left, right): rank}.
    Returns the list of merged strings.

    OpenAI's loop rescans the whole word for each rank, which takes quadratic time. This takes linear time: symbols form
    a linked list, only the neighbours of a merge are looked up again, and a heap no larger than the vocabulary holds
    the ranks.
    """
    n = len(symbols)
    symbols = list(symbols) + [None]  # None is at both ends (n and -1) and replaces merged symbols: it is in no pair
    before = list(range(-1, n))
    after = list(range(1, n + 1)) + [n]
    starts = {}  # rank -> where pairs of that rank start, or did: another merge may have taken one of their symbols
    waiting = []  # heap of those ranks
    changed = range(n)
    while True:
        for left in changed:
            rank = ranks.get((symbols[left], symbols[after[left]]))
            if rank is not None:
                if rank not in starts:
                    starts[rank] = []
                    heapq.heappush(waiting, rank)
                starts[rank].append(left)
        if not waiting:
            return [symbol for symbol in symbols if symbol is not None]
        rank = heapq.heappop(waiting)
        changed = []
        for left in starts.pop(rank):  # found, and so merged, from left to right
            right = after[left]
            if ranks.get((symbols[left], symbols[right])) == rank:
                symbols[left] += symbols[right]
                symbols[right] = None
                after[left] = after[right]
                before[after[right]] = left
                changed += before[left], left


def replace_surrogates(text):
    """Make a text valid UTF-8, as tiktoken does: a surrogate pair becomes its character, a lone surrogate U+FFFD."""
    return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


class Encoder:
    """Text <-> token ids. Text is only text: no string in it is treated as a special token.

    encoder: {symbol: id}.  bpe_merges: pairs of symbols, in the order in which they were learned.
    errors: how decode treats bytes that are not UTF-8, as in bytes.decode.
    added: special tokens that do not look like one, such as 'Alice:', spelled with a character for each byte.
    Raises ValueError unless encoder has the ids 0, 1, 2 ... for the 256 bytes, the results of the merges, the
    end-of-text symbol, and no others but special tokens, which are decoded to their name and are never in encoded text.
    """

    def __init__(self, encoder, bpe_merges, errors='replace', added=()):
        ids = list(encoder.values())
        if set(map(type, ids)) != {int} or sorted(ids) != list(range(len(ids))):
            raise ValueError('the ids of its symbols are not 0, 1, 2 ...')
        self.encoder = encoder
        self.decoder = {token: symbol for symbol, token in encoder.items()}
        self.errors = errors
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {character: byte for byte, character in self.byte_encoder.items()}
        self.bpe_ranks = {tuple(pair): rank for rank, pair in enumerate(bpe_merges)}
        self.cache = {}
        needed = set(self.byte_decoder).union(map(''.join, bpe_merges))
        missing, others = sorted(needed.difference(encoder)), set(encoder) - needed
        if missing:
            raise ValueError('%d symbols have no id, the first is %.60r' % (len(missing), missing[0]))
        foreign = sorted(set(''.join(needed)).difference(self.byte_decoder))
        if foreign:
            raise ValueError('its merges have the character %r, which stands for no byte' % foreign[0])
        # A vocab.bpe that was truncated after a line looks complete.
        spelled = {symbol: spell(symbol) for symbol in others}
        lost = [symbol for symbol in others if spelled[symbol] not in added and not SPECIAL.match(symbol) and any(
            symbol[:cut] in encoder and symbol[cut:] in encoder for cut in range(1, len(symbol)))]
        if lost:
            raise ValueError('no merge results in %d of its %d symbols' % (len(lost), len(encoder)))
        if END_OF_TEXT not in others:
            raise ValueError('it has no %s; models that end a text with another token are not supported' % END_OF_TEXT)
        self.end_of_text = encoder[END_OF_TEXT]
        self.special = sorted(others, key=encoder.get)
        self.decoder.update((encoder[symbol], spelled[symbol]) for symbol in others)

    def encode(self, text):
        """Returns the list of token ids of a str. Surrogates are replaced as in replace_surrogates."""
        if not isinstance(text, str):
            raise ValueError('encode takes a str, got %s' % type(text).__name__)
        tokens = []
        for piece in PIECES.findall(replace_surrogates(text)):
            tokens.extend(self.cache.get(piece) or self._encode_piece(piece))
        return tokens

    def decode(self, tokens):
        """Returns the str of an iterable of token ids, which may be NumPy integers.

        Tokens may end inside a character: with errors='replace', bytes that are not UTF-8 become U+FFFD.
        Raises ValueError for an id that is not in the vocabulary.
        """
        return self.decode_bytes(tokens).decode('utf-8', self.errors)

    def decode_bytes(self, tokens):
        """Like decode, but returns bytes, which may start and end inside a character."""
        try:
            symbols = ''.join([self.decoder[token] for token in tokens])
        except KeyError as error:
            raise ValueError('token id %s is not in the vocabulary: ids are 0 to %d' % (error, max(self.decoder)))
        return bytes([self.byte_decoder[character] for character in symbols])

    def _encode_piece(self, piece):
        symbols = merge([self.byte_encoder[byte] for byte in piece.encode('utf-8')], self.bpe_ranks)
        tokens = tuple([self.encoder[symbol] for symbol in symbols])
        if len(piece) <= CACHED_PIECE_LENGTH:
            if len(self.cache) >= CACHED_PIECES:
                self.cache.clear()
            self.cache[piece] = tokens
        return tokens


def get_encoder(model_name, models_dir='models'):
    """Returns the Encoder of a model, read from its encoder.json and vocab.bpe.

    Raises FileNotFoundError as model_folder does, and ValueError unless the two files are a vocabulary.
    """
    folder = releases.model_folder(model_name, models_dir, files=('encoder.json', 'vocab.bpe'))
    ids = files.read_json(os.path.join(folder, 'encoder.json'))
    try:
        merges, added = read_merges(os.path.join(folder, 'vocab.bpe'))
        return Encoder(ids, merges, added=added)
    except ValueError as error:
        raise ValueError('encoder.json and vocab.bpe in %s cannot be used: %s; take both from the same model, or fetch '
                         'them again' % (folder, error))


def read_merges(path):
    """Returns the pairs of symbols in a vocab.bpe, a list of tuples, and the added tokens, as Encoder takes them.

    Its first line holds the version of the format, and the added tokens behind it.
    """
    first, *lines = files.read_text(path).rstrip('\n').split('\n')
    merges = [tuple(line.split()) for line in lines]
    for number, pair in enumerate(merges, 2):
        if len(pair) != 2:
            raise ValueError('line %d of vocab.bpe has %d symbols instead of 2' % (number, len(pair)))
    return merges, first.split()[2:]


def learn_vocabulary(documents, vocab_size, folder):
    """Learn a byte-level BPE from documents and write it to folder/encoder.json and folder/vocab.bpe.

    documents: iterable of str.  vocab_size: number of tokens: 256 bytes, the merges and, last, the end-of-text token.
    Pairs that occur only once are not learned. The same documents give the same files. Needs the tokenizers library.
    Raises, before it writes anything, ValueError if vocab_size is under 257 or the documents have too few pairs for it,
    and ImportError without tokenizers.
    """
    if vocab_size < 257:
        raise ValueError('vocab_size is %d; it must be at least 257: 256 bytes and the end-of-text token' % vocab_size)
    # Unless this is set, the library prints a warning for every process that is forked later.
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'true')
    try:
        import tokenizers
    except ImportError:
        raise ImportError('learning a vocabulary needs the tokenizers library: pip install tokenizers')
    learner = tokenizers.Tokenizer(tokenizers.models.BPE())
    learner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # cuts as PIECES does
    learner.train_from_iterator(map(replace_surrogates, documents), tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty()))
    with tempfile.TemporaryDirectory() as temporary:  # every version of the library saves the same format
        merges, _ = read_merges(learner.model.save(temporary)[1])
    n_tokens = 256 + len(merges) + 1
    if n_tokens != vocab_size:
        raise ValueError('vocab_size is %d; the documents have pairs for %d tokens only' % (vocab_size, n_tokens))
    write_vocabulary(merges, folder)


def write_vocabulary(merges, folder, symbols=None, added=()):
    """Write folder/encoder.json and folder/vocab.bpe, byte by byte in the release's format.

    symbols: in the order of their ids; None is the 256 bytes, the result of each merge, and the end-of-text symbol.
    added: special tokens that do not look like one. Other programs skip the line that they are written to.
    """
    symbols = symbols or list(bytes_to_unicode().values()) + [''.join(pair) for pair in merges] + [END_OF_TEXT]
    os.makedirs(folder, exist_ok=True)
    ids = OrderedDict((symbol, token) for token, symbol in enumerate(symbols))
    files.write_text(os.path.join(folder, 'encoder.json'), json.dumps(ids))
    lines = [' '.join(['#version: 0.2'] + list(map(spell, added))) + '\n'] + ['%s %s\n' % pair for pair in merges]
    files.write_text(os.path.join(folder, 'vocab.bpe'), ''.join(lines))
