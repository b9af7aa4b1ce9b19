"""tf1.py: the import of TensorFlow, which waits for its first use, and what becomes of programs that import it."""
import ctypes
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

from gpt2.system import tf1
from gpt2.system.lite_file import File, Graph
from gpt2.system.tf1 import tf, without_stderr
from helpers.paths import SRC
from helpers.processes import environment, finished

on_tensorflow_2 = pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 is in graph mode always')


# In the place of TensorFlow
MODULE = """
import gc
class logging(object):
    ERROR, set_verbosity = 40, print
class Tensor(object):
    pass
def disable_v2_behavior():
    print('graph mode')
collects = gc.isenabled()
"""
PROGRAM = """
import gc, sys
sys.path.insert(0, %r)
from gpt2.system.tf1 import is_tensor, tf
print(is_tensor(1), hasattr(tf, '__wrapped__'), 'tensorflow' in sys.modules)
print(tf.collects, gc.isenabled(), gc.get_freeze_count() > 0 if hasattr(gc, 'freeze') else gc.get_threshold()[2])
print(is_tensor(1), is_tensor(tf.Tensor()), 'collects' in vars(tf))
""" % SRC


@pytest.fixture
def output_with(tmp_path):
    """A function that runs PROGRAM with a text as tensorflow.py. Returns status, stdout and stderr."""
    def run(text, *flags):
        (tmp_path / 'tensorflow.py').write_text(text, encoding='utf-8')
        status, stdout, stderr = finished([sys.executable] + list(flags) + ['-c', PROGRAM],
                                          env=environment(PYTHONPATH=str(tmp_path), TF_CPP_MIN_LOG_LEVEL='3'))
        return status, stdout.decode('utf-8').split('\n'), stderr.decode('utf-8')

    return run


def test_tensorflow_is_imported_at_its_first_use_without_garbage_collection(output_with):
    """Its objects are left out later, too. Neither Python's own questions nor is_tensor are a use."""
    often = 'True' if sys.version_info >= (3, 7) else '1000'
    assert output_with(MODULE) == (0, [
        'False False False', '40', 'graph mode', 'False True ' + often, 'False True True', ''], '')


@pytest.mark.parametrize('flag, said', [('-B', 'TypeError: one is missing'), ('-OO', 'run python3 -O instead of -OO')])
def test_import_without_docstrings_has_a_message_and_other_errors_pass(output_with, flag, said):
    status, _, stderr = output_with('raise TypeError("one is missing")', flag)
    assert status == 1 and said in stderr and ('ImportError' in stderr) == (flag == '-OO')


def test_stderr_is_whole_after_two_threads_have_kept_code_from_writing_to_it():
    """One after the other. No file stays open."""
    def where():
        return os.fstat(2).st_dev, os.fstat(2).st_ino

    def next_numbers():
        numbers = [os.dup(2) for _ in range(4)]
        for number in numbers:
            os.close(number)
        return numbers

    before = where(), next_numbers()
    with without_stderr():
        assert where() != before[0]
        ended, second = threading.Event(), []

        def work():
            with without_stderr():
                second.append(where())
                ended.wait(1)

        other = threading.Thread(target=work)
        other.start()
        other.join(0.05)
        assert not second
    ended.set()
    other.join()
    assert (where(), next_numbers()) == before


def test_stderr_that_is_closed_leaves_its_number_to_no_file():
    """Or C++ code would write to that file."""
    program = ('import os, sys; sys.path.insert(0, %r)\nfrom gpt2.system.tf1 import without_stderr\n'
               'with without_stderr():\n    print(os.open(os.devnull, os.O_RDONLY) > 2)\n' % SRC)
    command = 'exec "$0" -c "$1" 2>&-'
    assert subprocess.check_output(['sh', '-c', command, sys.executable, program]) == b'True\n'


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


@pytest.mark.parametrize('platform, there, expected', [
    ('linux', '', False), ('linux', 'libcuda.so.1', True), ('linux', '/dev/kfd', False), ('linux', '/opt/rocm', False),
    ('linux', '/dev/kfd /opt/rocm', True), ('win32', 'tensorflow', True), ('win32', '', False)])
def test_may_have_gpu_unless_no_driver_is_on_linux_or_no_tensorflow_elsewhere(monkeypatch, platform, there, expected):
    """NVIDIA's driver, or AMD's with its libraries."""
    def load(name):
        if name not in there.split():
            raise OSError('%s: cannot open shared object file' % name)
        return object()

    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setattr(tf1.sys, 'platform', platform)
    monkeypatch.setattr(tf1.os.path, 'exists', lambda path: path in there.split())
    monkeypatch.setattr(tf1.importlib.util, 'find_spec', lambda name: name if name in there.split() else None)
    monkeypatch.setattr(tf1.ctypes, 'CDLL', load)
    assert tf1.may_have_gpu() == expected


@pytest.mark.skipif(not sys.platform.startswith('linux') or os.path.exists('/dev/kfd'), reason="for NVIDIA's on Linux")
@pytest.mark.parametrize('visible, expected', [(None, True), ('0', True), ('', False), ('-1', False)])
def test_may_have_gpu_sees_that_all_are_hidden(monkeypatch, visible, expected):
    """As our error for 8-bit weights advises; the processor then samples without TensorFlow."""
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: name)  # the driver is there
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert tf1.may_have_gpu() == expected


@pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 has no LiteRT')
def test_litert_of_tensorflow_computes_without_a_warning(monkeypatch):
    """Where its own package is missing. A notebook would show one, though nothing is written to stderr."""
    monkeypatch.setitem(sys.modules, 'ai_edge_litert', None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        interpreter, schema = tf1.litert.__wrapped__()
        assert interpreter is tf.lite.Interpreter
        file = File(schema)
        graph = Graph(file, 'twice')
        graph.output('y', graph.input('x', [1]) * 2.0)
        assert interpreter(model_content=file.content()).get_signature_runner('twice')(x=np.float32([3]))['y'] == 6
    assert not seen
