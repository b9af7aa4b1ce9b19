"""session.py: devices, threads and precision of a session, how one ends, and what is said when memory is short."""
import errno
import threading

import pytest

from gpt2 import session
from gpt2.fast import matmul
from gpt2.system import process
from gpt2.system.tf1 import tf
from helpers.processes import SECONDS


# Sessions

@pytest.mark.parametrize('gpu, n_cores, n_parts, expected', [
    (False, 2, 2, (2, 1)), (False, 9, 4, (4, 2)), (False, 1, 1, (1, 1)), (True, 8, 1, (0, 0))])
def test_session_for_sampling_divides_the_cores_among_the_parts(monkeypatch, gpu, n_cores, n_parts, expected):
    """On a GPU, and in every other session, TensorFlow decides (0).

    Every session runs on the CPU what a GPU cannot, and takes a GPU's memory as it needs it.
    """
    Session = tf.Session
    configs = []
    monkeypatch.setattr(tf, 'Session', lambda target, config: configs.append(config) or Session(config=config))
    monkeypatch.setattr(process, 'n_cores', lambda: n_cores)
    monkeypatch.setattr(matmul, 'on_gpu', lambda: gpu)
    monkeypatch.setattr(matmul, 'n_parts', lambda: n_parts)
    for sampling, threads in ((True, expected), (False, (0, 0))):
        with session.session(sampling=sampling):
            assert (configs[-1].inter_op_parallelism_threads, configs[-1].intra_op_parallelism_threads) == threads
            assert configs[-1].allow_soft_placement and configs[-1].gpu_options.allow_growth


@pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 has no TensorFloat-32')
def test_session_for_sampling_computes_in_full_float32(monkeypatch):
    """And any session if NVIDIA's variable asks for it. A setting of the process, which XLA reads when it compiles.

    Other sessions leave it as it is.
    """
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    for sampling, override, expected in ((False, None, True), (False, '1', True), (False, '0', False),
                                         (True, None, False)):
        with monkeypatch.context() as patch:
            patch.delenv('NVIDIA_TF32_OVERRIDE', raising=False)
            if override:
                patch.setenv('NVIDIA_TF32_OVERRIDE', override)
            tf.config.experimental.enable_tensor_float_32_execution(True)
            with session.session(sampling=sampling):
                assert enabled() == expected
    tf.config.experimental.enable_tensor_float_32_execution(True)


def test_session_is_closed_at_the_end_of_its_block():
    with tf.Graph().as_default():
        with session.session() as sess:
            assert sess.run(tf.constant(1)) == 1 and tf.get_default_session() is sess
        with pytest.raises(RuntimeError, match='closed'):
            sess.run(tf.constant(1))


def test_session_left_by_ctrl_c_does_not_wait_for_its_step():
    """TensorFlow 1.12 would: a user would wait for a whole batch of samples."""
    may_end, began, ended = threading.Event(), threading.Event(), threading.Event()

    def step():
        began.set()
        may_end.wait(SECONDS)
        ended.set()

    with tf.Graph().as_default():
        operation = tf.py_func(step, [], [])
        with pytest.raises(KeyboardInterrupt):
            with session.session() as sess:
                running = threading.Thread(target=sess.run, args=(operation,))
                running.start()
                assert began.wait(SECONDS)
                raise KeyboardInterrupt
    assert not ended.is_set(), 'the session waited for its step'
    may_end.set()
    running.join()


# Precision

@pytest.mark.parametrize('name', ['half', 'INT8', ''])
def test_check_precision_names_the_value_and_the_choices(name):
    with pytest.raises(ValueError, match='%s.*float32, int8' % name):
        session.check_precision(name)


# Memory

@pytest.mark.slow
def test_out_of_memory_is_reported_with_the_remedy(sess):
    """Whether TensorFlow or Python has run out of it. Other errors pass."""
    tensor = tf.random_uniform([2 ** 24, 2 ** 24])  # 1 PB: no process has that many addresses

    def fail_to_read():
        raise OSError(errno.EFAULT, 'Bad address')  # as reading a file does where memory is limited

    for fail in (lambda: sess.run(tensor), lambda: bytearray(2 ** 60), fail_to_read):
        with pytest.raises(ValueError, match='^out of memory; reduce it$'), session.out_of_memory('reduce it'):
            fail()
    for error in ZeroDivisionError(), FileNotFoundError(errno.ENOENT, 'No such file'):
        with pytest.raises(type(error)), session.out_of_memory('reduce it'):
            raise error
