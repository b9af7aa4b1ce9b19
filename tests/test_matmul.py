"""matmul.py against NumPy: whatever way is chosen, the result is the product."""
import os

import numpy as np
import pytest

from gpt2.fast import matmul
from gpt2.system.tf1 import tf


def random(*shape):
    return np.random.RandomState(len(shape)).standard_normal(shape).astype(np.float32)


# Products

@pytest.mark.slow
@pytest.mark.parametrize('n_rows', [1, 2, 7])
@pytest.mark.parametrize('n_in, width', [(8, 5), (1, 1), (6, 3), (64, 192)])
@pytest.mark.parametrize('n', [1, 2, 3, 4])
def test_matmul_with_a_split_weight_is_the_product(sess, n, n_in, width, n_rows):
    """Of one row and of several, with an activation of the input; also where the weight cannot be split."""
    x, weight = random(n_rows, n_in), random(1, n_in, width)
    for activation, activated in ((lambda x: x, x), (tf.nn.relu, np.maximum(x, 0))):
        split = matmul.split_weight(tf.constant(weight), n)
        found = sess.run(matmul.matmul(tf.constant(x), split, input_activation=activation))
        np.testing.assert_allclose(found, activated.astype(np.float64) @ weight[0], rtol=1e-5, atol=1e-5)


def test_matmul_with_a_split_weight_has_the_gradient_of_the_product(sess):
    x_RN, weight_1NM = tf.constant(random(1, 8)), tf.constant(random(1, 8, 3))
    loss = tf.reduce_sum(tf.square(matmul.matmul(x_RN, matmul.split_weight(weight_1NM, 4))))
    plain = tf.reduce_sum(tf.square(tf.matmul(x_RN, weight_1NM[0])))
    for ours, theirs in zip(*sess.run([tf.gradients(y, [x_RN, weight_1NM]) for y in (loss, plain)])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('n_rows', [1, 3])
@pytest.mark.parametrize('n_vocab', [1, 1000] + [matmul.VOCABULARY_BLOCKS + shift for shift in (-1, 0, 1)])
def test_matmul_with_the_token_embedding_is_the_product_with_its_transpose(sess, n_vocab, n_rows, known):
    """For vocabularies that do and do not divide into blocks."""
    x, weight = random(n_rows, 6), random(n_vocab, 6)
    x_BD = tf.placeholder(tf.float32, [n_rows if known else None, 6])
    product_BV = matmul.matmul(x_BD, matmul.BlockedEmbedding(tf.constant(weight)), transpose_b=True)
    assert product_BV.shape.as_list() == [n_rows if known else None, n_vocab]
    np.testing.assert_allclose(sess.run(product_BV, {x_BD: x}), x.astype(np.float64) @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('onednn', [True, False] if hasattr(tf, 'raw_ops') else [False])
@pytest.mark.parametrize('transpose_b', [True, False])
def test_row_product_is_the_product_of_each_pair(sess, monkeypatch, transpose_b, onednn):
    """Also where there are no positions."""
    monkeypatch.setattr(matmul, 'on_onednn', lambda: onednn)
    for n_positions in (0, 5):
        x = random(6, 1, 6 if transpose_b else n_positions)
        y = random(6, n_positions, 6)
        found = sess.run(matmul.row_product(tf.constant(x), tf.constant(y), transpose_b=transpose_b))
        expected = np.matmul(x.astype(np.float64), y.transpose(0, 2, 1) if transpose_b else y)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [[2, 3, 5], [2, 3, None], [2, 1, 5], [2, 1, None]], ids=str)
def test_softmax_is_the_softmax(sess, shape):
    """For one query and several, with a number of positions that is known and one that is not."""
    score_GTS = tf.placeholder(tf.float32, shape)
    array = random(2, shape[1], 5)
    array[0, 0, 2:] = -1e10  # as the mask leaves scores ahead
    expected = np.exp(array.astype(np.float64) - array.max(axis=-1, keepdims=True))
    found = sess.run(matmul.softmax(score_GTS), {score_GTS: array})
    np.testing.assert_allclose(found, expected / expected.sum(axis=-1, keepdims=True), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize('k', [1, 2, 7, 40, 99])
@pytest.mark.parametrize('n_vocab', [100, 101, 29 * 31])
def test_top_k_is_that_of_a_full_sort(sess, n_vocab, k):
    """A vocabulary that falls into groups, and one of a prime size; logits with ties; the greatest all side by side."""
    rng = np.random.RandomState(n_vocab + k)
    logits = np.stack([rng.standard_normal(n_vocab), rng.randint(5, size=n_vocab), np.arange(n_vocab),
                       -np.arange(n_vocab)]).astype(np.float32)
    found, ids = sess.run(matmul.top_k(tf.constant(logits), k))
    np.testing.assert_array_equal(found, -np.sort(-logits, axis=-1)[:, :k])
    np.testing.assert_array_equal(np.take_along_axis(logits, ids, axis=-1), found)
    assert all(len(set(row)) == k for row in ids.tolist())


# Weights

def test_weight_is_its_variable_where_an_operation_needs_a_tensor(sess):
    """As for looking up a token's vector."""
    array = random(6, 4)
    for weight in (matmul.BlockedEmbedding(tf.constant(array)), matmul.split_weight(tf.constant(array), 2)):
        assert isinstance(weight, matmul.Weight)
        np.testing.assert_array_equal(sess.run(tf.gather(weight, [5, 0])), array[[5, 0]])


def test_split_weights_leaves_all_but_matrices_as_they_are():
    """Biases, gains, vectors of positions and tokens, and a matrix whose rows n does not divide"""
    made = {'h0/mlp/c_fc/w': tf.zeros([1, 6, 4]), 'h0/mlp/c_fc/b': tf.zeros([6]), 'ln_f/g': tf.zeros([6]),
            'wpe': tf.zeros([6, 4]), 'wte': tf.zeros([6, 4]),
            'odd/w': tf.zeros([1, 5, 4])}
    split = {name: matmul.split_weights(2)(lambda name: made[name], name) for name in made}
    assert [name for name in made if split[name] is not made[name]] == ['h0/mlp/c_fc/w'] == [
        name for name in made if isinstance(split[name], matmul.SplitWeight)]


@pytest.mark.parametrize('gpu', [True, False])
def test_sampling_weights_multiplies_the_embedding_in_blocks_on_a_cpu(monkeypatch, gpu):
    monkeypatch.setattr(matmul, 'on_gpu', lambda: gpu)
    weight = matmul.sampling_weights()(lambda name: tf.zeros([20, 8]), 'model/wte')
    assert isinstance(weight, tf.Tensor if gpu else matmul.BlockedEmbedding)


# The parts of the work

@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='needs to set the cores that a process may use')
@pytest.mark.parametrize('n_cores, n_parts', [(1, 1), (2, 2), (64, matmul.MAX_PARTS)])
@pytest.mark.parametrize('gpus', [[], ['GPU:0']])
def test_n_parts_is_one_for_each_core(monkeypatch, gpus, n_cores, n_parts):
    """Up to a number; a GPU has all of the work, and oneDNN none."""
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(n_cores)))
    monkeypatch.setattr(matmul, 'may_have_gpu', lambda: True)
    if tf.__version__.startswith('1.'):
        monkeypatch.setattr(tf.test, 'is_built_with_cuda', lambda: bool(gpus))
    else:
        monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: gpus)
    assert matmul.n_parts() == (1 if gpus else n_parts)
    assert not (gpus and matmul.on_onednn())


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('size, n', [(1, 1), (6, 2), (7, 2), (7, 3), (1, 2)])
def test_split_parts_are_the_whole(sess, size, n, known):
    """Along either axis; also where there are more parts than numbers."""
    x = random(size, size)
    x_NN = tf.placeholder(tf.float32, [size if known else None] * 2)
    for axis in (0, -1):
        found = sess.run(matmul.split(x_NN, axis, n), {x_NN: x})
        assert len(found) == n
        assert max(part.shape[axis] for part in found) - min(part.shape[axis] for part in found) < n
        np.testing.assert_array_equal(np.concatenate(found, axis=axis), x)


# Devices

@pytest.mark.parametrize('setting, on', [('1', True), ('0', False), ('false', False), ('False', False)])
@pytest.mark.parametrize('machine, is_x86', [('x86_64', True), ('AMD64', True), ('aarch64', False), ('arm64', False)])
def test_on_onednn_only_on_x86_and_unless_switched_off(monkeypatch, machine, is_x86, setting, on):
    """The switch is read as TensorFlow reads it. AMD64 is Windows's name for x86-64."""
    monkeypatch.setattr(matmul.platform, 'machine', lambda: machine)
    monkeypatch.setattr(matmul, 'on_gpu', lambda: False)
    monkeypatch.setenv('TF_ENABLE_ONEDNN_OPTS', setting)
    assert matmul.on_onednn() == (on and is_x86 and not tf.__version__.startswith('1.'))
