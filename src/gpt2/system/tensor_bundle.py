"""Read, verify and write the files of a TensorFlow checkpoint without TensorFlow.

An index is a LevelDB table: blocks of sorted keys and values, with a checksum after each block. A key is the name of a
variable; its value, a protocol buffer, gives the tensor's place in the data file and its CRC-32C.
Sources: LevelDB, doc/table_format.md; TensorFlow, core/protobuf/tensor_bundle.proto and core/lib/hash/crc32c.h.
"""
import collections
import functools
import os

import numpy as np

Tensor = collections.namedtuple('Tensor', 'name dtype shape offset n_bytes masked_crc')  # dtype: TensorFlow's number

TABLE_END = (0xdb4775248b80fb57).to_bytes(8, 'little')
CASTAGNOLI = 0x82f63b78  # the polynomial of CRC-32C, its highest power in the lowest bit
# A word of 32 bits may become 0 if the words at these distances behind it are xor-ed with it: with y = x ** 32,
# y ** 5685 = y ** (5685 - 4323) + y ** (5685 - 5259) + 1 modulo that polynomial. By squaring, the same holds for 2, 4,
# 8 ... times the distances. They were found by trying all powers of y up to 6,000.
DISTANCES = 4323, 5259, 5685
FLOAT32 = 1
TYPES = {FLOAT32: 'float32', 2: 'float64', 14: 'bfloat16', 19: 'float16'}  # TensorFlow's numbers
MAX_INDEX_BYTES = 2 ** 20  # of an index, and of what it unpacks to; the largest released one has 2 ** 14
PIECE_BYTES = 2 ** 20  # read at a time: fits into a processor's cache together with the intermediate results


def check_data(data_path, index_path):
    """Raises ValueError, naming the first tensor in the data file whose checksum is not the one in the index."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    with open(data_path, 'rb') as file:
        for tensor in sorted(read_index(index_path), key=lambda tensor: tensor.offset):
            starts = range(0, tensor.n_bytes, PIECE_BYTES)
            read_into((buffer[:tensor.n_bytes - start] for start in starts), file, tensor)


def read_tensor(data_path, tensor):
    """Returns the array of a Tensor whose type is float32. Several threads may read at the same time.

    Raises ValueError, naming the tensor, if the file ends before it does or its checksum is not the one in the index.
    """
    array = np.empty(tensor.shape, '<f4')
    if array.nbytes != tensor.n_bytes:
        raise ValueError('its tensor %s has %d bytes instead of %d' % (tensor.name, tensor.n_bytes, array.nbytes))
    content = array.reshape(-1).view(np.uint8)
    with open(data_path, 'rb') as file:
        read_into((content[start:start + PIECE_BYTES] for start in range(0, len(content), PIECE_BYTES)), file, tensor)
    return array


def read_into(pieces, file, tensor):
    """Read the bytes of a tensor into an iterable of buffers. Raises ValueError as read_tensor does."""
    if os.fstat(file.fileno()).st_size < tensor.offset + tensor.n_bytes:
        raise ValueError('the file ends before its tensor %s does' % tensor.name)
    file.seek(tensor.offset)
    if masked(crc32c(piece[:file.readinto(piece)] for piece in pieces)) != tensor.masked_crc:
        raise ValueError('the checksum of its tensor %s is not the one in the index' % tensor.name)


def is_finite(values):
    """Whether none of the values is NaN or infinity."""
    with np.errstate(all='ignore'):  # a sum takes half the time, and is rarely infinite otherwise
        return np.isfinite(values.sum()) or np.isfinite(values).all()


def first_not_finite(data_path, index_path, names):
    """The name of the first of these float32 tensors that holds NaN or infinity; None if all are finite."""
    for tensor in read_index(index_path):
        if tensor.name in names and tensor.dtype == FLOAT32 and tensor.n_bytes:
            if not is_finite(np.memmap(data_path, '<f4', 'r', tensor.offset, tensor.n_bytes // 4)):
                return tensor.name
    return None


def data_bytes(index_path):
    """Returns the size of the data file that an index describes."""
    return max(tensor.offset + tensor.n_bytes for tensor in read_index(index_path))


def read_index(path):
    """Returns the list of Tensors in an .index file, sorted by name.

    Raises ValueError if it is damaged, compressed (the released ones are not), describes several data files, or is
    over MAX_INDEX_BYTES.
    """
    with open(path, 'rb') as file:
        table = file.read(MAX_INDEX_BYTES + 1)
    if len(table) > MAX_INDEX_BYTES:
        raise ValueError('the index has over %d bytes' % MAX_INDEX_BYTES)
    if not table.endswith(TABLE_END):
        raise ValueError('it is not the index of a checkpoint, or it is incomplete')
    footer = table[-48:]
    for _ in range(2):  # the first pair points to a block that TensorFlow leaves empty
        offset, footer = varint(footer)
        n_bytes, footer = varint(footer)
    items, n_unpacked = [], 0
    for _, place in block_items(table, offset, n_bytes):
        offset, place = varint(place)
        n_bytes = varint(place)[0]
        block = block_items(table, offset, n_bytes)
        items += block
        n_unpacked += n_bytes + 5 + sum(len(key) for key, _ in block)  # 5 for the end of the block
        if n_unpacked > MAX_INDEX_BYTES:  # its blocks may overlap
            raise ValueError('the index unpacks to over %d bytes' % MAX_INDEX_BYTES)
    if not items:
        raise ValueError('the index is empty')
    (_, header), items = items[0], items[1:]  # its key is empty, so it is the first
    if dict(fields(header)).get(1) != 1:
        raise ValueError('the index describes several data files')
    tensors = []
    for key, value in items:
        # Type, shape, offset, size, checksum; a number that is 0 is left out.
        entry = {1: 0, 2: b'', 4: 0, 5: 0, 6: bytes(4)}
        entry.update(fields(value))
        if [type(entry[number]) for number in (1, 2, 4, 5, 6)] != [int, bytes, int, int, bytes]:
            raise ValueError('the index is damaged: a tensor has no place in the data file')
        shape = [dict(fields(size)).get(1, 0) for number, size in fields(entry[2]) if number == 2]
        tensors.append(Tensor(key.decode('utf-8'), entry[1], shape, entry[4], entry[5],
                              int.from_bytes(entry[6], 'little')))
    if not any(tensor.n_bytes for tensor in tensors):
        raise ValueError('the index describes no tensor')
    if sum(tensor.n_bytes for tensor in tensors) > max(tensor.offset + tensor.n_bytes for tensor in tensors):
        raise ValueError('the index is damaged: its tensors overlap')
    return tensors


def write(data_path, index_path, arrays):
    """Write float32 arrays, an iterable of (name, array) sorted by name, as a data file and its index."""
    items = [(b'', field(1, 1) + field(3, field(1, 1)))]  # one data file; version 1 of the format
    with open(data_path, 'wb') as file:
        for name, array in arrays:
            content = memoryview(np.ascontiguousarray(array, '<f4').reshape(-1)).cast('B')
            starts = range(0, len(content), PIECE_BYTES)
            checksum = masked(crc32c(content[start:start + PIECE_BYTES] for start in starts))
            shape = b''.join([field(2, field(1, size)) for size in array.shape])
            items.append((name.encode('utf-8'), field(1, FLOAT32) + field(2, shape) + field(4, file.tell())
                          + field(5, len(content)) + to_varint(6 << 3 | 5) + checksum.to_bytes(4, 'little')))
            file.write(content)
    with open(index_path, 'wb') as file:
        places = []
        # The tensors in one block; a block that TensorFlow leaves empty; and a block with the place of the first one.
        for block in items, [], [(items[-1][0], None)]:
            content = to_block([(key, places[0] if value is None else value) for key, value in block])
            places.append(to_varint(file.tell()) + to_varint(len(content) - 5))  # 5 for the end of the block
            file.write(content)
        file.write((places[1] + places[2]).ljust(40, b'\0') + TABLE_END)


def to_block(items):
    """Returns a block of a table with its end, which block_items reads. items: (key, value), bytes, sorted."""
    content, restarts = b'', [] if items else [0]
    for key, value in items:
        restarts.append(len(content))  # of each item, as none shares the beginning of its key with the one before
        content += to_varint(0) + to_varint(len(key)) + to_varint(len(value)) + key + value
    content += b''.join([number.to_bytes(4, 'little') for number in restarts + [len(restarts)]]) + b'\0'
    return content + masked(crc32c([content])).to_bytes(4, 'little')


def check_meta(path):
    """Raises ValueError if the file is not a complete .meta file, the protocol buffer of a graph."""
    with open(path, 'rb') as file:
        if not isinstance(dict(fields(file.read())).get(2), bytes):  # the graph itself
            raise ValueError('it is not the protocol buffer of a graph')


def block_items(table, offset, n_bytes):
    """Returns the list of (key, value), bytes, in a block of a table. Raises ValueError if damaged or compressed."""
    end = offset + n_bytes
    block, compression, checksum = table[offset:end], table[end:end + 1], table[end + 1:end + 5]
    if masked(crc32c([block, compression])).to_bytes(4, 'little') != checksum:
        raise ValueError('the index is damaged: the checksum of a block is wrong')
    if compression != b'\0':
        raise ValueError('the index is compressed; the released ones are not')
    n_restarts = int.from_bytes(block[-4:], 'little')
    rest = memoryview(block)[:-4 * (n_restarts + 1)]  # without the restart points, which are for binary search
    items, key, n_unpacked = [], b'', 0
    while rest:
        n_shared, rest = varint(rest)  # with the previous key
        n_own, rest = varint(rest)
        n_value, rest = varint(rest)
        key = key[:n_shared] + bytes(rest[:n_own])
        items.append((key, bytes(rest[n_own:n_own + n_value])))
        rest = rest[n_own + n_value:]
        n_unpacked += len(key)
        if n_unpacked > MAX_INDEX_BYTES:
            raise ValueError('the index unpacks to over %d bytes' % MAX_INDEX_BYTES)
    return items


def fields(message):
    """Yields the (number, value) of a protocol buffer's fields; a value is an int or bytes.

    Raises ValueError if message does not end with a field.
    """
    message = memoryview(message)  # slicing it copies nothing
    while message:
        tag, message = varint(message)
        kind = tag & 7
        if kind == 0:
            value, message = varint(message)
        else:
            n_bytes = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                n_bytes, message = varint(message)
            if n_bytes is None or n_bytes > len(message):
                raise ValueError('it is not a protocol buffer, or it is incomplete')
            value, message = bytes(message[:n_bytes]), message[n_bytes:]
        yield tag >> 3, value


def field(number, value):
    """Returns a field of a protocol buffer. value: an int, or bytes."""
    if isinstance(value, int):
        return to_varint(number << 3) + to_varint(value)
    return to_varint(number << 3 | 2) + to_varint(len(value)) + value


def to_varint(value):
    """Returns the bytes of an integer that varint() reads."""
    groups = [value >> shift & 0x7f for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def varint(data):
    """Returns the integer at the beginning of data, 7 bits a byte, the lowest first; and the rest of data."""
    value = 0
    for i, byte in enumerate(data[:10]):
        value |= (byte & 0x7f) << 7 * i
        if byte < 0x80:
            return value, data[i + 1:]
    raise ValueError('it is damaged: a number does not end')


def crc32c(pieces):
    """Returns the CRC-32C, an int, of the concatenation of an iterable of bytes.

    The register after a piece is the remainder of a polynomial over GF(2): that of the piece and 4 zero bytes, with the
    register before it added to the first 4 bytes.
    """
    register = 0xffffffff
    for piece in pieces:
        start = -len(piece) % 4  # zero bytes in front, to make whole words, change nothing
        content = bytearray().join([bytes(start), piece, bytes(4)])
        first = int.from_bytes(content[start:start + 4], 'little')
        content[start:start + 4] = (first ^ register).to_bytes(4, 'little')
        register = remainder(np.frombuffer(content, '<u4'))
    return register ^ 0xffffffff


def masked(crc):
    """Returns a CRC as TensorFlow stores it, since a CRC of data that contain CRCs is problematic."""
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff


def remainder(words):
    """Returns the remainder, an int, of the polynomial of words (uint32 [at least 1]), which it overwrites.

    Blocks of words are xor-ed into later ones until few words are left. Then the left half is advanced by as many
    words of 0 as the right half has and xor-ed into it, until one is left: NumPy is fast on long arrays, while a loop
    would take byte by byte.
    """
    for scale in (4, 1):  # long blocks first
        distances = [scale * distance for distance in DISTANCES]
        end = len(words) - distances[-1]
        for begin in range(0, end, distances[0]):
            block = words[begin:min(begin + distances[0], end)]
            for distance in distances:
                words[begin + distance:][:len(block)] ^= block
        words = words[-distances[-1]:]
    for power in reversed(range((len(words) - 1).bit_length())):
        left, words = words[:-2 ** power], words[-2 ** power:]
        words[-len(left):] ^= after_zeros(left, power)
    return int(words[0])


def after_zeros(register, power):
    """Returns CRC registers (uint32, any shape) after reading 2 ** power words of 0."""
    low, high = zeros_tables(power)
    return low[register & 0xffff] ^ high[register >> 16]


@functools.lru_cache(maxsize=None)
def zeros_tables(power):
    """Returns after_zeros of every low and of every high half of a register, uint32 [2, 65536]."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    if power == 0:
        for _ in range(32):
            bits = bits >> 1 ^ bits % 2 * np.uint32(CASTAGNOLI)
    else:
        bits = after_zeros(after_zeros(bits, power - 1), power - 1)
    tables = np.zeros([2, 1], np.uint32)
    for bit in bits.reshape(2, 16, 1).swapaxes(0, 1):  # of both halves, [2, 1]
        tables = np.concatenate([tables, tables ^ bit], axis=1)
    return tables
