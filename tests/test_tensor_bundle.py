"""The reader of a checkpoint's files against TensorFlow, against arithmetic bit by bit, and against damage."""
from concurrent import futures
import os
import random

import numpy as np
import pytest

from gpt2.system import tensor_bundle


def test_crc32c_has_the_published_check_value():
    """From the catalogue of parametrised CRC algorithms, and RFC 3720, appendix B.4."""
    assert tensor_bundle.crc32c([b'123456789']) == 0xe3069283
    assert tensor_bundle.crc32c([bytes(32)]) == 0x8a9136aa
    assert tensor_bundle.crc32c([bytes(range(32))]) == 0x46dd794e


def test_crc32c_equals_division_bit_by_bit_however_the_bytes_are_cut():
    """Also of more words than are moved at a time, and of one more, byte by byte."""
    draw = random.Random(1)
    longest = 4 * tensor_bundle.DISTANCES[-1]
    lengths = list(range(20)) + [63, 64, 65, 1000] + [n + i for n in (longest, 4 * longest) for i in range(-5, 6)]
    data = bytes(draw.randrange(256) for _ in range(8 * longest + 3))
    registers = [0xffffffff]
    for byte in data:
        register = registers[-1] ^ byte
        for _ in range(8):
            register = register >> 1 ^ (0x82f63b78 if register & 1 else 0)
        registers.append(register)
    for n_bytes in lengths + [len(data)]:
        cut = draw.randint(0, n_bytes)
        for pieces in [data[:n_bytes]], [data[:cut], b'', data[cut:n_bytes]]:
            assert tensor_bundle.crc32c(pieces) == registers[n_bytes] ^ 0xffffffff


def test_crc32c_leaves_the_bytes_as_they_are():
    data = bytearray(range(256)) * 400
    assert tensor_bundle.crc32c([memoryview(data)]) == tensor_bundle.crc32c([bytes(data)])
    assert data == bytearray(range(256)) * 400


@pytest.mark.parametrize('scale', [1, 2, 4])
def test_words_at_the_distances_cancel_modulo_the_polynomial(scale):
    """1 + y ** 4323 + ... is the same polynomial read from its end. Divided by the one that RFC 3720 gives."""
    distances = [scale * distance for distance in tensor_bundle.DISTANCES]
    exponents = {32 * (distances[-1] - distance) for distance in [0] + distances}
    total, power = 0, 1
    for exponent in range(max(exponents) + 1):  # power: x ** exponent
        total ^= power if exponent in exponents else 0
        power = power << 1 ^ (0x11edc6f41 if power >> 31 else 0)
    assert len(exponents) == 4 and total == 0


def test_index_of_the_release_is_read_as_tensorflow_reads_it(released_117M):
    from gpt2.system.tf1 import tf
    tensors = tensor_bundle.read_index(os.path.join(released_117M, 'model.ckpt.index'))
    shapes = tf.train.load_checkpoint(os.path.join(released_117M, 'model.ckpt')).get_variable_to_shape_map()
    assert {tensor.name for tensor in tensors} == set(shapes)
    for tensor in tensors:
        assert tensor.n_bytes == 4 * multiply(shapes[tensor.name])
    assert sum(tensor.n_bytes for tensor in tensors) == 497759232


def multiply(numbers):
    product = 1
    for number in numbers:
        product *= number
    return product


@pytest.fixture
def written(tmp_path, sess):
    """(data, index, TensorFlow's reader) of tensors of one piece, of several, of none and of a NaN, by TensorFlow."""
    from gpt2.system.tf1 import tf
    n_numbers = tensor_bundle.PIECE_BYTES // 4
    for name, shape in (('one', [1]), ('some', [7, 11, 13]), ('full', [n_numbers]), ('pieces', [3, n_numbers - 7]),
                        ('none', [2, 0]), ('scalar', [])):
        tf.get_variable(name, shape, initializer=tf.random_normal_initializer())
    tf.get_variable('odd', initializer=np.uint32([0x7fc12345, 0xff800000, 1, 0x80000000]).view(np.float32))
    sess.run(tf.global_variables_initializer())
    prefix = tf.train.Saver().save(sess, str(tmp_path.joinpath('model.ckpt')))
    return prefix + '.data-00000-of-00001', prefix + '.index', tf.train.load_checkpoint(prefix)


def assert_refused(data, index, tensor):
    """By both readers, with the tensor's name."""
    with pytest.raises(ValueError, match='tensor %s ' % tensor.name):
        tensor_bundle.check_data(data, index)
    with pytest.raises(ValueError, match='tensor %s ' % tensor.name):
        tensor_bundle.read_tensor(data, tensor)


def test_weights_that_tensorflow_wrote_are_right_until_a_bit_is_wrong(written):
    """An error in the first, the last and some byte between of each tensor."""
    data, index, _ = written
    tensor_bundle.check_data(data, index)
    assert tensor_bundle.data_bytes(index) == os.path.getsize(data)
    with open(data, 'r+b') as file:
        for tensor in tensor_bundle.read_index(index):
            for place in {0, tensor.n_bytes // 3, tensor.n_bytes - 1} if tensor.n_bytes else ():
                flip(file, tensor.offset + place)
                assert_refused(data, index, tensor)
                flip(file, tensor.offset + place)
        tensor_bundle.check_data(data, index)


def test_weights_that_are_cut_short_are_refused(written):
    """Though the memory may still hold the right bytes."""
    data, index, _ = written
    tensors = [tensor for tensor in tensor_bundle.read_index(index) if tensor.n_bytes]
    for tensor in sorted(tensors, key=lambda tensor: -tensor.offset):
        tensor_bundle.read_tensor(data, tensor)
        for n_left in tensor.n_bytes - 1, 0:
            os.truncate(data, tensor.offset + n_left)
            assert_refused(data, index, tensor)


def test_read_tensor_returns_what_tensorflow_reads_in_several_threads_at_once(written):
    """Bit by bit, and all their own."""
    data, index, reader = written
    tensors = 5 * tensor_bundle.read_index(index)
    with futures.ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda tensor: tensor_bundle.read_tensor(data, tensor), tensors))
    for tensor, array in zip(tensors, arrays):
        expected = reader.get_tensor(tensor.name)
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        assert array.tobytes() == expected.tobytes() and array.flags.owndata and array.flags.writeable


def test_read_tensor_refuses_a_shape_of_another_size_and_a_place_that_no_file_has(written):
    data, index, _ = written
    for tensor in tensor_bundle.read_index(index):
        with pytest.raises(ValueError, match='tensor %s has %d bytes' % (tensor.name, tensor.n_bytes)):
            tensor_bundle.read_tensor(data, tensor._replace(shape=[tensor.n_bytes // 4 + 1]))
        with pytest.raises(ValueError, match='ends before its tensor %s' % tensor.name):
            tensor_bundle.read_tensor(data, tensor._replace(offset=2 ** 70))


def flip(file, place):
    """Change one bit of an open file."""
    file.seek(place)
    byte = file.read(1)[0]
    file.seek(place)
    file.write(bytes([byte ^ 0x10]))
    file.flush()


def test_an_index_with_any_bit_wrong_or_its_end_missing_is_refused(tiny_models, tmp_path):
    """Unless it reads the same: some bytes of the format are padding."""
    with open(os.path.join(tiny_models, 'tiny', 'model.ckpt.index'), 'rb') as file:
        whole = file.read()
    path = tmp_path.joinpath('index')
    path.write_bytes(whole)
    tensors = tensor_bundle.read_index(str(path))
    n_refused = 0
    places = range(0, len(whole), 5)
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1:])
        try:
            assert tensor_bundle.read_index(str(path)) == tensors
        except ValueError:
            n_refused += 1
    assert n_refused > 0.9 * len(places)
    for n_bytes in range(len(whole)):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(ValueError):
            tensor_bundle.read_index(str(path))


# Indices as TensorFlow would not write them

HEADER = b'\x08\x01'  # one data file


def number(value):
    """A number as an index has it: 7 bits a byte, the lowest first."""
    return bytes([value & 0x7f | 0x80]) + number(value >> 7) if value > 0x7f else bytes([value])


def tensor(offset, n_bytes, checksum=b'\x35' + bytes(4)):
    return b'\x20' + number(offset) + b'\x28' + number(n_bytes) + checksum


def block(items, compression=b'\0'):
    """A block with its checksum: items is a list of (key, value), each key written in full."""
    return block_of(b''.join(b'\0' + number(len(key)) + number(len(value)) + key + value for key, value in items),
                    compression)


def block_of(body, compression=b'\0'):
    body += bytes(4) + b'\1\0\0\0'  # for searching: one place to start from, the first key
    crc = tensor_bundle.masked(tensor_bundle.crc32c([body, compression]))
    return body + compression + crc.to_bytes(4, 'little')


def place(offset, written):
    return number(offset) + number(len(written) - 5)


def write(path, items, **options):
    """Write an index of these items, and return its path: their block, one that points to it, the footer."""
    data = block(items, **options)
    pointer = block([(b'~', place(0, data))])
    footer = place(0, block([])) + place(len(data), pointer)
    path.write_bytes(data + pointer + footer.ljust(40, b'\0') + tensor_bundle.TABLE_END)
    return str(path)


def test_the_data_end_where_the_last_tensor_ends_whatever_its_name(tmp_path):
    path = write(tmp_path.joinpath('index'), [(b'', HEADER), (b'a', tensor(300, 700)), (b'b', tensor(0, 300))])
    assert tensor_bundle.data_bytes(path) == 1000


def test_a_meta_with_a_graph_is_accepted(tmp_path):
    tmp_path.joinpath('meta').write_bytes(b'\x12\x01x')
    tensor_bundle.check_meta(str(tmp_path.joinpath('meta')))


def test_tensors_are_checked_wherever_they_lie(tmp_path):
    """The first wrong one in the data file is named, not the first one by name."""
    checksums = [b'\x35' + tensor_bundle.masked(tensor_bundle.crc32c([piece])).to_bytes(4, 'little')
                 for piece in (b'first', b'last')]
    path = write(tmp_path.joinpath('index'), [(b'', HEADER), (b'a', tensor(5, 4, checksums[1])),
                                              (b'b', tensor(0, 5, checksums[0]))])
    data = tmp_path.joinpath('data')
    data.write_bytes(b'firstlast')
    tensor_bundle.check_data(str(data), path)
    for wrong, name in ((b'fir?tlast', 'b'), (b'firstla?t', 'a'), (b'fir?tla?t', 'b')):
        data.write_bytes(wrong)
        with pytest.raises(ValueError, match='tensor %s ' % name):
            tensor_bundle.check_data(str(data), path)


@pytest.mark.parametrize('items, compression, words', [
    ([(b'', b'\x08\x02'), (b'a', tensor(0, 4))], b'\0', 'several data files'),
    ([(b'', b''), (b'a', tensor(0, 4))], b'\0', 'several data files'),
    ([(b'', HEADER)], b'\0', 'no tensor'),
    ([(b'', HEADER), (b'a', tensor(0, 0))], b'\0', 'no tensor'),
    ([], b'\0', 'is empty'),
    ([(b'', HEADER), (b'a', tensor(0, 4))], b'\1', 'compressed'),
    ([(b'', HEADER), (b'a', b'\x22\x01x')], b'\0', 'damaged.*place'),  # an offset that is text
    ([(b'', HEADER), (b'a', tensor(0, 4, b'\x30\x01'))], b'\0', 'damaged.*place'),  # a checksum that is a number
    ([(b'', HEADER), (b'\xff', tensor(0, 4))], b'\0', 'utf-8')])
def test_a_complete_but_useless_index_is_refused(tmp_path, items, compression, words):
    path = write(tmp_path.joinpath('index'), items, compression=compression)
    with pytest.raises(ValueError, match=words):
        tensor_bundle.data_bytes(path)


def test_an_index_whose_footer_points_to_the_empty_block_is_refused(tmp_path):
    data = block([])
    path = tmp_path.joinpath('index')
    path.write_bytes(data + (2 * place(0, data)).ljust(40, b'\0') + tensor_bundle.TABLE_END)
    with pytest.raises(ValueError, match='is empty'):
        tensor_bundle.read_index(str(path))


@pytest.mark.parametrize('n_items, n_pointers', [(1000, 1), (10, 2000), (0, 4500)])
def test_an_index_that_unpacks_without_bound_is_refused(tmp_path, monkeypatch, n_items, n_pointers):
    """Though its checksums are right: keys that share what is before them, and a block that is read again and again."""
    monkeypatch.setattr(tensor_bundle, 'MAX_INDEX_BYTES', 50000)
    data = block_of(b''.join(number(i) + b'\1\0x' for i in range(n_items)))  # each key is longer by one x
    pointer = block([(b'', place(0, data))] * n_pointers)
    footer = place(0, block([])) + place(len(data), pointer)
    path = tmp_path.joinpath('index')
    path.write_bytes(data + pointer + footer.ljust(40, b'\0') + tensor_bundle.TABLE_END)
    assert path.stat().st_size < 50000
    with pytest.raises(ValueError, match='unpacks to over 50000 bytes'):
        tensor_bundle.read_index(str(path))


def test_an_index_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path.joinpath('index')
    with open(str(path), 'wb') as file:
        file.truncate(2 ** 40)
    with pytest.raises(ValueError, match='has over 1048576 bytes'):
        tensor_bundle.read_index(str(path))


def test_tensors_that_overlap_are_refused(tmp_path):
    """Checking them could take forever."""
    path = write(tmp_path.joinpath('index'), [(b'', HEADER), (b'a', tensor(0, 400)), (b'b', tensor(0, 400))])
    with pytest.raises(ValueError, match='its tensors overlap'):
        tensor_bundle.data_bytes(path)


def test_an_index_of_random_bytes_with_right_checksums_is_read_or_refused(tmp_path):
    """It never raises anything but ValueError, after which the next mirror is tried."""
    draw = random.Random(1)
    whole = [HEADER, tensor(0, 4), tensor(4, 300)]
    n_refused = 0
    for _ in range(300):
        values = [bytearray(value) for value in whole]
        for _ in range(draw.randint(1, 3)):
            value = draw.choice(values)
            value[draw.randrange(len(value))] = draw.randrange(256)
        items = [(bytes([97 + i]) if i else b'', bytes(value)) for i, value in enumerate(values)]
        try:
            assert tensor_bundle.data_bytes(write(tmp_path.joinpath('index'), items)) > 0
        except ValueError:
            n_refused += 1
    assert 0 < n_refused < 300


@pytest.mark.parametrize('body, words', [
    (b'', 'of a graph'), (b'Welcome to wifi', 'protocol buffer'), (b'\x08\x01', 'of a graph'),
    (b'\x10\x01', 'of a graph'), (b'\x0a\x01x', 'of a graph')])  # the last is bytes, but of another field
def test_a_meta_without_a_graph_is_refused(tmp_path, body, words):
    tmp_path.joinpath('meta').write_bytes(body)
    with pytest.raises(ValueError, match=words):
        tensor_bundle.check_meta(str(tmp_path.joinpath('meta')))
