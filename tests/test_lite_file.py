"""lite_file.py: files that LiteRT reads, and what it computes by them."""
import sys

import numpy as np
import pytest

from gpt2.system import lite_file
from gpt2.system.lite_file import File, Graph
from gpt2.system.tf1 import litert, tf

pytestmark = pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 has no LiteRT')


def runner(file, name, **options):
    return litert()[0](model_content=file.content(), **options).get_signature_runner(name)


def test_functions_of_a_file_compute_what_their_operations_do():
    """For other sizes than at their first use, too, and under the names that were given."""
    file, numbers = File(litert()[1]), np.random.RandomState(0)
    rows_3K = numbers.randn(3, 4).astype(np.float32)
    graph = Graph(file, 'mixed')
    x_NK = graph.input('x', [None, 4])
    graph.output('y', (x_NK - x_NK.mean()) * 2.0 + np.float32([1, 2, 3, 4]))
    graph.output('sign', graph.add('CAST', graph.add('LESS', x_NK, 0, dtype=bool), dtype=np.int32))
    graph = Graph(file, 'taken')
    places = graph.input('places', [None], np.int32)
    graph.output('rows', graph.take(rows_3K, places).reshape([2, None]))
    for n in 1, 5, 2:
        x_NK = numbers.randn(n, 4).astype(np.float32)
        found = runner(file, 'mixed')(x=x_NK)
        np.testing.assert_allclose(found['y'], (x_NK - x_NK.mean(axis=1, keepdims=True)) * 2 + [1, 2, 3, 4], rtol=1e-5)
        np.testing.assert_array_equal(found['sign'], x_NK < 0)
        assert found['sign'].dtype == np.int32
        places = numbers.randint(0, 3, 2 * n).astype(np.int32)
        np.testing.assert_array_equal(runner(file, 'taken')(places=places)['rows'], rows_3K[places].reshape(2, -1))


def test_content_has_each_array_once_at_a_multiple_of_the_alignment():
    """Also for LiteRT's own reader of the format. An operation is listed once, too."""
    file, arrays = File(litert()[1]), [np.arange(n, dtype=np.int32) for n in (5, 200, 64, 1)]
    for name in 'first', 'second':
        graph = Graph(file, name)
        x = graph.input('x', [1], np.int32)
        for array in arrays:
            x = graph.add('ADD', array, x)
        graph.output('y', x)
    content = file.content()
    model = litert()[1].ModelT.InitFromPackedBuf(content, 0)
    buffers = model.buffers
    assert [content[buffer.offset:buffer.offset + buffer.size] for buffer in buffers[1:]] == [
        array.tobytes() for array in arrays]
    assert [buffer.offset for buffer in buffers[1:]] == [file.offset(array) for array in arrays]
    assert not any(buffer.offset % lite_file.ALIGNMENT for buffer in buffers) and buffers[0].size == 0
    assert len(model.operatorCodes) == 1


@pytest.mark.parametrize('kernels', ['AUTO', 'BUILTIN_WITHOUT_DEFAULT_DELEGATES'])
def test_matrix_of_integers_has_a_scale_for_each_row(kernels):
    """By XNNPACK, and by the kernels that LiteRT has without it; older ones, which read one scale, refuse the file."""
    file, values_MN = File(litert()[1]), np.array([[1, -2, 127], [3, 0, -127]], np.int8)
    graph = Graph(file, 'product')
    x_RN = graph.input('x', [None, 3])
    matrix_MN = graph.constant(values_MN, np.float32([0.5, 2]))
    graph.output('y', graph.add('FULLY_CONNECTED', x_RN, matrix_MN, None, shape=[None, 2],
                                asymmetricQuantizeInputs=True))
    x_RN = np.float32([[0, 255, 1], [255, 0, 0]])  # as rounding leaves them
    kernels = getattr(sys.modules[litert()[0].__module__].OpResolverType, kernels)
    found_RM = runner(file, 'product', experimental_op_resolver_type=kernels)(x=x_RN)['y']
    np.testing.assert_allclose(found_RM, x_RN @ values_MN.T * [0.5, 2], rtol=1e-6)
    assert file.root.operatorCodes[0].version == 12
