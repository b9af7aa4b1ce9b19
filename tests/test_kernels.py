"""kernels.py against NumPy: whatever form is chosen, it is the product."""
import os

import numpy as np
import pytest

import kernels
import process
from tf1 import tf


def random(*shape):
    return np.random.RandomState(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('n_rows', [1, 2, 7])
@pytest.mark.parametrize('n_in, width', [(8, 5), (1, 1), (6, 3), (64, 192)])
@pytest.mark.parametrize('n', [1, 2, 3, 4])
def test_product_is_the_product(sess, n, n_in, width, n_rows):
    """Of one row and of several; in parts, and where it cannot be cut."""
    x, weight = random(n_rows, n_in), random(1, n_in, width)
    for activation, activated in ((lambda x: x, x), (tf.nn.relu, np.maximum(x, 0))):
        found = sess.run(kernels.product(tf.constant(x), tf.constant(weight), n, activation))
        np.testing.assert_allclose(found, activated.astype(np.float64) @ weight[0], rtol=1e-5, atol=1e-5)


def test_parts_are_multiplied_at_the_same_time(sess):
    """Each is an operation that waits for no other, and comes with its part of the weights, cut outside of the loop."""
    weight_1NM = tf.constant(random(1, 8, 8))
    tf.while_loop(lambda x_RN: tf.reduce_sum(x_RN) > 0, lambda x_RN: kernels.product(x_RN, weight_1NM, 2), [tf.zeros([2, 8])])
    operations = tf.get_default_graph().get_operations()
    inputs = [operation.inputs for operation in operations if operation.type == 'MatMul']
    assert [x_RN.op.type for x_RN, _ in inputs] == ['Split'] * 2
    assert [part_NM.op.type for _, part_NM in inputs] == ['Enter'] * 2
    assert [part_NM.shape.as_list() for _, part_NM in inputs] == [[4, 8]] * 2


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='this system does not say which cores a process may use')
@pytest.mark.parametrize('n_cores, n_parts', [(1, 1), (2, 2), (64, kernels.MOST_PARTS)])
@pytest.mark.parametrize('gpus', [[], ['GPU:0']])
def test_every_core_has_a_part(monkeypatch, gpus, n_cores, n_parts):
    """Up to a number; a GPU has all of the work, and oneDNN none."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(n_cores)))
    if tf.__version__.startswith('1.'):
        monkeypatch.setattr(tf.test, 'is_built_with_cuda', lambda: bool(gpus))
    else:
        monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: gpus)
    assert kernels.n_parts() == (1 if gpus else n_parts)
    assert not (gpus and kernels.on_onednn())


@pytest.mark.parametrize('setting, on', [('1', True), ('0', False), ('false', False), ('False', False)])
def test_onednn_that_is_switched_off_does_not_multiply(monkeypatch, setting, on):
    """As TensorFlow reads its own switch."""
    monkeypatch.setattr(kernels.platform, 'machine', lambda: 'x86_64')
    monkeypatch.setattr(kernels, 'on_gpu', lambda: False)
    monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', setting)
    assert kernels.on_onednn() == (on and not tf.__version__.startswith('1.'))
    monkeypatch.setattr(kernels.platform, 'machine', lambda: 'aarch64')
    assert not kernels.on_onednn()


on_onednn = pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.x has no oneDNN')


@on_onednn
@pytest.mark.parametrize('n_texts, width', [(1, 20), (2, 2 * kernels.ALIGNED)])
def test_a_weight_of_many_rows_is_copied_once_and_outside_of_the_loop(sess, monkeypatch, n_texts, width):
    """For several texts with room at the end, so that each row begins where reading it is fast."""
    monkeypatch.setattr(kernels, 'on_onednn', lambda: True)
    monkeypatch.setattr(kernels, 'n_parts', lambda: 2)
    weight_MN = tf.constant(random(20, 8))
    tf.while_loop(lambda x_RN: tf.reduce_sum(x_RN) > 0,
                  lambda x_RN: kernels.vocabulary_product(n_texts, kernels.FEW_TOKENS)(x_RN, weight_MN)[:, :8], [tf.zeros([2, 8])])
    operations = tf.get_default_graph().get_operations()
    copy, = [operation for operation in operations if operation.type == 'Transpose']
    assert copy.outputs[0].shape.as_list() == [8, width]
    enters = [operation.inputs[1].op for operation in operations if operation.type == 'MatMul']
    assert [enter.type for enter in enters] == ['Enter'] * 2  # what is multiplied comes into the loop
    assert all(enter.inputs[0].shape.as_list() == [4, width] for enter in enters)


@pytest.mark.parametrize('n_texts, n_tokens, onednn', [(1, 99, False), (3, 99, False), (None, 99, True),
                                                       (3, kernels.FEW_TOKENS - 1, True)])
def test_no_weight_is_copied_where_that_does_not_pay(sess, monkeypatch, n_texts, n_tokens, onednn):
    """TensorFlow 1.x and GPUs multiply no faster then. Nor for an unknown number of texts, nor for few tokens."""
    monkeypatch.setattr(kernels, 'on_onednn', lambda: onednn)
    weight_MN = tf.constant(random(100, 8))
    kernels.vocabulary_product(n_texts, n_tokens)(tf.zeros([2, 8]), weight_MN)
    assert {reader.type for reader in weight_MN.consumers()} <= {'Split', 'SplitV'}


def test_a_gpu_multiplies_the_vocabulary_at_once(sess, monkeypatch):
    monkeypatch.setattr(kernels, 'on_gpu', lambda: True)
    weight_VD, hidden_BD = random(100, 8), random(3, 8)
    logits_BV = kernels.vocabulary_product(3, 99)(tf.constant(hidden_BD), tf.constant(weight_VD))
    assert [operation.type for operation in sess.graph.get_operations() if operation.type != 'Const'] == ['MatMul']
    np.testing.assert_allclose(sess.run(logits_BV), hidden_BD.dot(weight_VD.T), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('onednn', [True, False] if hasattr(tf, 'raw_ops') else [False])
@pytest.mark.parametrize('n_rows', [1, 4])
@pytest.mark.parametrize('transpose_b', [True, False])
def test_batched_product_is_the_product_of_each_pair(sess, monkeypatch, transpose_b, n_rows, onednn):
    """Of one row, which oneDNN is spared, and of several; with nothing in it, too."""
    monkeypatch.setattr(kernels, 'on_onednn', lambda: onednn)
    for n_positions in (0, 5):
        a = random(2, 3, n_rows, 6 if transpose_b else n_positions)
        b = random(2, 3, n_positions, 6)
        found = sess.run(kernels.batched_product(tf.constant(a), tf.constant(b), n_rows == 1, transpose_b=transpose_b))
        expected = np.matmul(a.astype(np.float64), b.transpose(0, 1, 3, 2) if transpose_b else b)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('size, n', [(1, 1), (6, 2), (7, 2), (7, 3), (1, 2)])
def test_parts_are_the_whole(sess, size, n, known):
    """Along either axis; also where there are more parts than numbers."""
    x = random(size, size)
    x_NN = tf.placeholder(tf.float32, [size if known else None] * 2)
    for axis in (0, -1):
        found = sess.run(kernels.parts(x_NN, axis, n), {x_NN: x})
        assert len(found) == n
        assert max(part.shape[axis] for part in found) - min(part.shape[axis] for part in found) < n
        np.testing.assert_array_equal(np.concatenate(found, axis=axis), x)


def test_the_gradient_of_a_cut_product(sess):
    x_RN, weight_1NM = tf.constant(random(1, 8)), tf.constant(random(1, 8, 3))
    loss = tf.reduce_sum(tf.square(kernels.product(x_RN, weight_1NM, 4)))
    plain = tf.reduce_sum(tf.square(tf.matmul(x_RN, weight_1NM[0])))
    for ours, theirs in zip(*sess.run([tf.gradients(loss, [x_RN, weight_1NM]), tf.gradients(plain, [x_RN, weight_1NM])])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('n_rows', [1, 3])
@pytest.mark.parametrize('n_weight_rows', [1, kernels.BLOCKS - 1, kernels.BLOCKS, kernels.BLOCKS + 1, 1000])
@pytest.mark.parametrize('copied', [True, False])
def test_vocabulary_product_is_the_product_with_the_transposed_weight(sess, monkeypatch, copied, n_weight_rows, n_rows, known):
    monkeypatch.setattr(kernels, 'on_onednn', lambda: copied)
    x, weight = random(n_rows, 6), random(n_weight_rows, 6)
    x_RN = tf.placeholder(tf.float32, [n_rows if known else None, 6])
    product_RM = kernels.vocabulary_product(n_rows if copied else None, kernels.FEW_TOKENS)(x_RN, tf.constant(weight))
    assert product_RM.shape.as_list() == [n_rows if known else None, n_weight_rows]
    np.testing.assert_allclose(sess.run(product_RM, {x_RN: x}), x.astype(np.float64) @ weight.T, rtol=1e-5, atol=1e-5)
