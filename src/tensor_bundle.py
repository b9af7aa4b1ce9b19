"""The files of a TensorFlow checkpoint, read without TensorFlow: are the weights those that their index describes?

An index is a table as LevelDB has it: blocks of sorted keys and values, with a checksum after each. A key is the name
of a variable; its value, a protocol buffer, says where the tensor lies in the data file and what its CRC-32C is.
Sources: LevelDB, doc/table_format.md; TensorFlow, core/protobuf/tensor_bundle.proto and core/lib/hash/crc32c.h.
"""
import collections
import functools

import numpy as np

Tensor = collections.namedtuple('Tensor', 'name offset n_bytes masked_crc')

TABLE_END = (0xdb4775248b80fb57).to_bytes(8, 'little')
CASTAGNOLI = 0x82f63b78  # the polynomial of CRC-32C, its highest power in the lowest bit
PIECE_BYTES = 2 ** 18  # of data at a time: with its intermediate results, what a processor's cache holds


def check_data(data_path, index_path):
    """Raises ValueError that names the first tensor of the data file whose checksum is not the one in the index."""
    with open(data_path, 'rb') as file:
        for tensor in sorted(read_index(index_path), key=lambda tensor: tensor.offset):
            file.seek(tensor.offset)
            starts = range(0, tensor.n_bytes, PIECE_BYTES)
            pieces = (file.read(min(PIECE_BYTES, tensor.n_bytes - start)) for start in starts)
            if masked(crc32c(pieces)) != tensor.masked_crc:
                raise ValueError('the checksum of its tensor %s is not the one in the index' % tensor.name)


def data_bytes(index_path):
    """How many bytes the data file of an index has."""
    return max(tensor.offset + tensor.n_bytes for tensor in read_index(index_path))


def read_index(path):
    """Returns the list of Tensors in a .index file, sorted by name.

    Raises ValueError if it is damaged, compressed (the released ones are not) or speaks of several data files.
    """
    with open(path, 'rb') as file:
        table = file.read()
    if not table.endswith(TABLE_END):
        raise ValueError('it is not the index of a checkpoint, or only a part of one')
    footer = table[-48:]
    position = 0
    for _ in range(2):  # the first pair points to a block that TensorFlow leaves empty
        offset, position = varint(footer, position)
        n_bytes, position = varint(footer, position)
    items = []
    for _, place in block_items(table, offset, n_bytes):
        offset, position = varint(place, 0)
        n_bytes, position = varint(place, position)
        items += block_items(table, offset, n_bytes)
    if not items:
        raise ValueError('it is the index of nothing')
    (_, header), items = items[0], items[1:]  # its key is empty, so it is the first
    if dict(fields(header)).get(1) != 1:
        raise ValueError('it is the index of several data files')
    tensors = []
    for key, value in items:
        entry = {4: 0, 5: 0, 6: bytes(4)}  # a number that is 0 is left out
        entry.update(fields(value))
        if [type(entry[number]) for number in (4, 5, 6)] != [int, int, bytes]:
            raise ValueError('the index is damaged: it does not say where a tensor is')
        tensors.append(Tensor(key.decode('utf-8'), entry[4], entry[5], int.from_bytes(entry[6], 'little')))
    if not any(tensor.n_bytes for tensor in tensors):
        raise ValueError('it is the index of no tensor')
    return tensors


def check_meta(path):
    """Raises ValueError if the file is not a .meta, the protocol buffer of a graph, or only a part of one."""
    with open(path, 'rb') as file:
        if not isinstance(dict(fields(file.read())).get(2), bytes):  # the graph itself
            raise ValueError('it is the protocol buffer of something else than a graph')


def block_items(table, offset, n_bytes):
    """The list of (key, value), bytes, in a block of a table. Raises ValueError if it is damaged or compressed."""
    end = offset + n_bytes
    block, compression, checksum = table[offset:end], table[end:end + 1], table[end + 1:end + 5]
    if masked(crc32c([block, compression])).to_bytes(4, 'little') != checksum:
        raise ValueError('the index is damaged: the checksum of a block is wrong')
    if compression != b'\0':
        raise ValueError('the index is compressed; the released ones are not')
    n_restarts = int.from_bytes(block[-4:], 'little')
    end = len(block) - 4 * (n_restarts + 1)  # what follows serves to search, not to read from the front
    items = []
    key = b''
    position = 0
    while position < end:
        n_shared, position = varint(block, position)  # with the key before
        n_own, position = varint(block, position)
        n_value, position = varint(block, position)
        key = key[:n_shared] + block[position:position + n_own]
        position += n_own + n_value
        items.append((key, block[position - n_value:position]))
    return items


def fields(message):
    """Generates the (number, value) of a protocol buffer's fields; a value is an int, or bytes.

    Raises ValueError if message does not end where a field does.
    """
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = varint(message, position)
        elif kind in (1, 2, 5):
            n_bytes, position = varint(message, position) if kind == 2 else (8 if kind == 1 else 4, position)
            value = message[position:position + n_bytes]
            position += n_bytes
        if kind not in (0, 1, 2, 5) or position > len(message):
            raise ValueError('it is not a protocol buffer, or only a part of one')
        yield number, value


def varint(data, position):
    """The integer that is stored from position on, 7 bits a byte and the lowest first, and the position after it."""
    value = 0
    for i, byte in enumerate(data[position:position + 10]):
        value |= (byte & 0x7f) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise ValueError('a number does not end')


def crc32c(pieces):
    """The CRC-32C of an iterable of bytes, as if they were one: an int.

    A CRC is the remainder of dividing polynomials over GF(2), and linear: the register after a message is that after
    its first part and as many zeros as the rest has bytes, xor that after the rest alone.
    """
    register = np.uint32(0xffffffff)
    for piece in pieces:
        for power in range(len(piece).bit_length()):
            if len(piece) >> power & 1:
                register = after_zeros(register, power)
        register = register ^ register_after(piece)
    return int(register) ^ 0xffffffff


def masked(crc):
    """The form in which TensorFlow stores a CRC, so that a checksum of data with checksums in it is no special case."""
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff


def register_after(piece):
    """The CRC register, uint32, that started at 0 and has read piece (bytes).

    The halves of the piece are xor-ed, the left one moved on by as many zeros as the right one has bytes, and so are
    the halves of that, until one word is left: NumPy works on long arrays where a loop would go byte by byte.
    """
    power = max(2, (len(piece) - 1).bit_length())
    padded = np.zeros(2 ** power, np.uint8)
    padded[len(padded) - len(piece):] = np.frombuffer(piece, np.uint8)  # zeros before it leave the register at 0
    words = padded.view('<u4')
    while len(words) > 1:
        power -= 1
        left, right = np.split(words, 2)
        words = after_zeros(left, power) ^ right
    return after_zeros(words[0], 2)


def after_zeros(register, power):
    """CRC registers (uint32, any shape) after 2 ** power bytes of zeros."""
    low, high = zeros_tables(power)
    return low[register & 0xffff] ^ high[register >> 16]


@functools.lru_cache(maxsize=None)
def zeros_tables(power):
    """after_zeros of every low and of every high half of a register: two arrays, uint32 [65536]."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if power == 0:
        for _ in range(8):
            bits = bits >> 1 ^ bits % 2 * np.uint32(CASTAGNOLI)
    else:
        bits = after_zeros(after_zeros(bits, power - 1), power - 1)
    tables = []
    for half in np.split(bits, 2):
        table = np.zeros(1, np.uint32)
        for bit in half:
            table = np.concatenate([table, table ^ bit])
        tables.append(table)
    return tables
