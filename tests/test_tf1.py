"""tf1.py: when TensorFlow is imported, and what becomes of a program that imports it itself."""
import ctypes
import os
import sys

import pytest

from gpt2.system.tf1 import may_have_gpu, tf
from helpers.paths import SRC
from helpers.processes import environment, finished

on_tensorflow_2 = pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 is in graph mode always')


def printed(program):
    """What a program prints that can import our modules."""
    program = 'import sys; sys.path.insert(0, %r)\n%s' % (SRC, program)
    status, stdout, stderr = finished([sys.executable, '-c', program], env=environment())
    assert status == 0, stderr.decode('utf-8')
    return stdout.decode('ascii').split()


@pytest.mark.slow
def test_tf_waits_for_another_thread_that_imports_tensorflow():
    """Half of it would be there otherwise, and 2.x without its graph mode."""
    assert printed("""
import importlib, threading, time
from gpt2.system.tf1 import tf
thread = threading.Thread(target=importlib.import_module, args=('tensorflow',))
thread.start()
while 'tensorflow' not in sys.modules:
    time.sleep(.001)
with tf.Graph().as_default(), tf.Session() as sess:
    print(sess.run(tf.constant(7)))
thread.join()
""") == ['7']


@pytest.mark.slow
@on_tensorflow_2
def test_program_that_has_imported_tensorflow_is_in_graph_mode_from_our_import_on():
    """As code written for OpenAI's modules expects that has changed its import alone."""
    assert printed("""
import tensorflow.compat.v1 as tf
import sample
k = tf.placeholder(tf.int32, [])
logits = sample.top_k_logits(tf.constant([[1., 2., 3.]]), k)
print((tf.Session().run(logits, {k: 2}) > 0).sum())
""") == ['2']


@pytest.mark.slow
@on_tensorflow_2
def test_sampling_in_litert_leaves_a_program_s_eager_mode():
    """Whatever it asks about options and errors: if TensorFlow is imported after our modules, it stays as it is."""
    assert printed("""
import sample
from gpt2 import session
import tensorflow
sample.check_options(3, 1, 40, .9)
try:
    with session.out_of_memory('take less'):
        raise tensorflow.errors.ResourceExhaustedError(None, None, '')
except ValueError as error:
    print(error)
print(tensorflow.executing_eagerly())
""") == ['out', 'of', 'memory;', 'take', 'less', 'True']


@pytest.mark.skipif(not sys.platform.startswith('linux') or os.path.exists('/dev/kfd'), reason="for NVIDIA's on Linux")
@pytest.mark.parametrize('visible, expected', [(None, True), ('0', True), ('', False), ('-1', False)])
def test_may_have_gpu_sees_that_all_are_hidden(monkeypatch, visible, expected):
    """As our error for 8-bit weights advises; the processor then samples without TensorFlow."""
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: name)  # the driver is there
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert may_have_gpu() == expected
