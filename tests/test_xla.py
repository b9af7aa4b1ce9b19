"""xla.py with a TensorFlow that has XLA, one that does not, and where XLA fails; and the past that it needs."""
import numpy as np
import pytest

from gpt2.fast import xla
import model
from gpt2.system.tf1 import tf
from helpers import tiny
from helpers.networks import assert_close, random_tokens, run_model

on_tensorflow_2 = pytest.mark.skipif(not xla.is_supported(), reason='TensorFlow 1.12 does not compile the loop')


@pytest.fixture(autouse=True)
def fresh_cache():
    """is_usable() is computed once in a process: no answer outlives a test."""
    xla.is_usable.cache_clear()
    yield
    xla.is_usable.cache_clear()


def test_is_supported_and_usable_on_tensorflow_2():
    is_2 = not tf.__version__.startswith('1.')
    assert (xla.is_supported(), xla.is_usable()) == (is_2, is_2)


@pytest.mark.parametrize('error', ['InternalError', 'UnimplementedError', 'InvalidArgumentError', 'NotFoundError'])
def test_is_usable_is_false_where_xla_fails(monkeypatch, error):
    """With whichever of TensorFlow's errors: InternalError where CUDA's libdevice is missing, others elsewhere."""
    def run(*_):
        raise getattr(tf.errors, error)(None, None, 'libdevice not found at ./libdevice.10.bc')

    monkeypatch.setattr(tf.Session, 'run', run)
    assert not xla.is_usable()


@pytest.mark.slow
@on_tensorflow_2
@pytest.mark.parametrize('n_before', [1, 5, 11])
def test_fixed_past_equals_the_whole(sess, n_before):
    """The logits of one more token, whose keys and values take the next position. Positions behind it are ignored."""
    hparams = tiny.hparams()
    tokens = random_tokens(hparams, [3, 12])
    logits, present, _ = run_model(sess, hparams, tokens, tiny.random_weights(hparams))
    present_LGSK = present.transpose(1, 2, 0, 3, 4, 5).reshape([4, 6, 12, 4])
    before = present_LGSK.copy()
    before[:, :, n_before:] = 1e3

    @xla.compiled
    def step(tokens_B1, before, n_before):
        past = xla.FixedPast(hparams, tokens_B1, before, n_before)
        with tf.variable_scope('model', reuse=True):
            return model.unembed(hparams, model.decoder(hparams, tokens_B1, past)[-1]), past.new

    tokens_B1 = tf.constant(tokens[:, n_before:n_before + 1], tf.int32)
    found, new = sess.run(step(tokens_B1, list(map(tf.constant, before)), n_before))
    assert_close(found, logits[:, n_before])
    for ours, theirs, old in zip(new, present_LGSK, before):
        assert_close(ours[:, :n_before + 1], theirs[:, :n_before + 1])
        np.testing.assert_array_equal(ours[:, n_before + 1:], old[:, n_before + 1:])
