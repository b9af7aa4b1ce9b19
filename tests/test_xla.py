"""xla.py against a TensorFlow that has XLA, one that has not, and a machine where it fails."""
import pytest

from tf1 import tf
import xla


@pytest.fixture(autouse=True)
def asked_anew():
    """The answer is kept for a process: none is kept over a test."""
    xla.works.cache_clear()
    yield
    xla.works.cache_clear()


def test_tensorflow_2_has_xla():
    is_2 = not tf.__version__.startswith('1.')
    assert (xla.is_known(), xla.works()) == (is_2, is_2)


def test_xla_that_makes_no_program_does_not_work(monkeypatch):
    """As where CUDA's libdevice is missing."""
    def run(*_):
        raise tf.errors.InternalError(None, None, 'libdevice not found at ./libdevice.10.bc')

    monkeypatch.setattr(tf.Session, 'run', run)
    assert not xla.works()
