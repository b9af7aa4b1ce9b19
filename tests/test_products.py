"""products.py against NumPy: whatever form is chosen, it is the product."""
import numpy as np
import pytest

import products
from tf1 import tf


def random(*shape):
    return np.random.RandomState(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('known', [True, False])
@pytest.mark.parametrize('n_rows', [1, 2, 7])
@pytest.mark.parametrize('n_in, width', [(8, 5), (1, 1), (6, 3), (64, 192)])
def test_product_is_the_product(sess, n_in, width, n_rows, known):
    """Of one row, which is cut, and of several; the number of rows in the graph or not; a width that cannot be cut."""
    x, weight = random(n_rows, n_in), random(1, n_in, width)
    x_RN = tf.placeholder(tf.float32, [n_rows if known else None, n_in])
    found = sess.run(products.product(x_RN, tf.constant(weight), products.pieces_of(n_rows if known else tf.shape(x_RN)[0])),
                     {x_RN: x})
    np.testing.assert_allclose(found, x.astype(np.float64) @ weight[0], rtol=1e-5, atol=1e-5)


broadcasts = pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.x has no oneDNN, nor products that broadcast')


@broadcasts
@pytest.mark.parametrize('by_columns', [True, 'true', 'false'])
@pytest.mark.parametrize('n_rows', [1, 2, 7])
@pytest.mark.parametrize('n_in, width', [(8, 48), (64, 32), (8, 40), (6, 32)])
def test_product_by_columns_is_the_product(sess, monkeypatch, n_in, width, n_rows, by_columns):
    """In a loop, too, with the choice in the graph or not; a width and a sum that cannot be cut."""
    monkeypatch.setattr(products, 'LARGE', 1)
    x, weight = random(n_rows, n_in), random(1, n_in, width)
    x_RN, choice = tf.placeholder(tf.float32, [None, n_in]), tf.placeholder(tf.bool, [])
    weight_1NM = tf.constant(weight)

    def multiply(i, _):
        pieces = products.pieces_of(tf.shape(x_RN)[0], True if by_columns is True else choice)
        return i + 1, products.product(x_RN, weight_1NM, pieces)

    _, found = tf.while_loop(lambda i, _: i < 2, multiply, (0, tf.zeros([tf.shape(x_RN)[0], width])),
                             shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, width])))
    found = sess.run(found, {x_RN: x, choice: by_columns == 'true'})
    np.testing.assert_allclose(found, x.astype(np.float64) @ weight[0], rtol=1e-5, atol=1e-5)


@broadcasts
def test_columns_are_moved_once_and_outside_of_the_loop(sess, monkeypatch):
    """A loop that copied a weight for each token would take longer than the product."""
    monkeypatch.setattr(products, 'LARGE', 1)
    weight_1NM = tf.constant(random(1, 8, 32), name='weight')
    tf.while_loop(lambda x_RN: tf.reduce_sum(x_RN) > 0,
                  lambda x_RN: products.product(x_RN, weight_1NM, products.pieces_of(2, True))[:, :8], [tf.zeros([2, 8])])
    transposed, = [operation for operation in tf.get_default_graph().get_operations()
                   if operation.type == 'Transpose' and operation.inputs[0].op.inputs[0].op.name == 'weight']
    assert [reader.type for reader in transposed.outputs[0].consumers()] == ['Enter']  # of the loop


def test_columns_pay_for_several_texts_where_onednn_multiplies(sess, monkeypatch):
    monkeypatch.setattr(products, 'on_onednn', lambda: True)
    assert [products.columns_pay(n) for n in (1, 2, 32)] == [False, True, True]
    assert sess.run([products.columns_pay(tf.constant(n)) for n in (1, 2)]) == [False, True]
    monkeypatch.setattr(products, 'on_onednn', lambda: False)
    assert products.columns_pay(32) is False


def test_only_one_row_is_cut(sess):
    """Into products of a part of the weights each, which cores can share."""
    x_RN = tf.placeholder(tf.float32, [None, 8])
    pieces = products.pieces_of(tf.shape(x_RN)[0])
    for n_rows, expected in ((1, products.PIECES), (2, 1), (100, 1)):
        assert sess.run(pieces.n, {x_RN: np.zeros([n_rows, 8])}) == expected
        assert products.pieces_of(n_rows).n == expected


def test_the_gradient_of_a_cut_product(sess):
    x_RN, weight_1NM = tf.constant(random(1, 8)), tf.constant(random(1, 8, 3))
    loss = tf.reduce_sum(tf.square(products.product(x_RN, weight_1NM, products.pieces_of(tf.shape(x_RN)[0]))))
    plain = tf.reduce_sum(tf.square(tf.matmul(x_RN, weight_1NM[0])))
    for ours, theirs in zip(*sess.run([tf.gradients(loss, [x_RN, weight_1NM]), tf.gradients(plain, [x_RN, weight_1NM])])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('n_rows', [1, 3])
@pytest.mark.parametrize('n_weight_rows', [1, products.BLOCKS - 1, products.BLOCKS, products.BLOCKS + 1, 1000])
def test_product_with_rows_is_the_product_with_the_transposed_weight(sess, n_weight_rows, n_rows):
    x, weight = random(n_rows, 6), random(n_weight_rows, 6)
    x_RN = tf.placeholder(tf.float32, [None, 6])
    product_RM = products.product_with_rows(x_RN, tf.constant(weight))
    assert product_RM.shape.as_list() == [None, n_weight_rows]
    np.testing.assert_allclose(sess.run(product_RM, {x_RN: x}), x.astype(np.float64) @ weight.T, rtol=1e-5, atol=1e-5)
