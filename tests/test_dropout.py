"""dropout() of gpt2.training.graph: how much is dropped, and what it depends on."""
import numpy as np

from gpt2.system.tf1 import tf
from gpt2.training.graph import dropout


def test_dropout_depends_on_seed_sequence_layer_and_site(sess):
    """And on nothing else: a recomputed block drops the same."""
    number = tf.placeholder(tf.int64, [])

    def kept(seed, scope, site):
        with tf.variable_scope(scope):
            return dropout(0.25, seed=seed, sequences=number[None])(tf.ones([50, 40]), site) > 0

    choices = [(1, 'h0', 'attn'), (1, 'h0', 'attn'), (1, 'h1', 'attn'), (1, 'h0', 'mlp'), (2, 'h0', 'attn')]
    tensors = [kept(*choice) for choice in choices]
    first, again, *others = sess.run(tensors, {number: 3}) + [sess.run(tensors[0], {number: 4})]
    assert np.array_equal(first, again)
    for other in others:
        assert 0.3 < np.mean(other != first) < 0.45  # 2 * 0.25 * 0.75 where nothing is common


def test_dropout_zeroes_a_fraction_of_its_rate_and_scales_up_the_rest(sess):
    """Independently for each site, layer, seed, step and sequence of the batch."""
    def dropped(site, scope='h0', **key):
        with tf.variable_scope(scope):
            key = dict(dict(seed=1, sequences=tf.constant([3, 9], tf.int64)), **key)
            return dropout(0.25, **key)(tf.fill([200, 200], 3.0), site)

    first, again, *others = sess.run([
        dropped('a'), dropped('a'), dropped('b'), dropped('a', scope='h1'), dropped('a', seed=2),
        dropped('a', sequences=tf.constant([4, 10], tf.int64))])
    others.append(np.concatenate([first[100:], again[:100]]))  # the other sequence of the batch
    assert np.array_equal(first, again)
    for array in [first] + others:
        assert abs((array == 0).mean() - 0.25) < 0.015  # seven standard errors
        assert np.allclose(array[array != 0], 3 / 0.75)
    for array in others:  # sites, layers, seeds and steps drop independently
        assert abs(((first == 0) & (array == 0)).mean() - 0.25 ** 2) < 0.01
