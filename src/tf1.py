"""TensorFlow's graph-mode API under one name, from 1.12 to 2.x: `from tf1 import tf`.

TensorFlow logs nothing unless the environment variable TF_CPP_MIN_LOG_LEVEL is less than 3 (0 logs everything).
"""
import contextlib
import gc
import os
import sys
import warnings

_quiet = os.environ.get('TF_CPP_MIN_LOG_LEVEL', '3') == '3'


@contextlib.contextmanager
def _without_stderr():
    """Keep C++ code from writing to stderr: 2.x logs while it is imported, before it reads how much to log."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, 'wb') as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _import_tensorflow():
    gc.disable()  # the import makes a million objects that stay: looking for garbage among them takes a sixth of the time
    try:
        import tensorflow.compat.v1 as tensorflow
    except ImportError:  # 1.12 is graph mode already, and its tf.compat has no v1
        import tensorflow
    finally:
        # Nor look among them later; Python before 3.7, which has no freeze, is made to look rarely.
        getattr(gc, 'freeze', lambda: gc.set_threshold(*gc.get_threshold()[:2] + (1000,)))()
        gc.enable()
    return tensorflow


# Settings that TensorFlow reads once. `make bench` shows their effect.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # 2.x uses oneDNN by itself on Intel's processors only
os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')  # keeps memory that the C library would return and fetch again
os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')  # 2.x takes all of a GPU's memory as soon as there is a tf.function
if _quiet:
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    warnings.filterwarnings('ignore', category=FutureWarning, module='tensorflow')  # 1.12 with NumPy 1.17 and later
    with _without_stderr():
        tf = _import_tensorflow()
    tf.logging.set_verbosity(tf.logging.ERROR)
    if not hasattr(tf, 'disable_v2_behavior'):  # 1.12 spends a tenth of the time of building a graph on deprecation warnings
        from tensorflow.python.util import deprecation
        deprecation._PRINT_DEPRECATION_WARNINGS = False  # the public silence() holds for a block only
else:
    tf = _import_tensorflow()
if hasattr(tf, 'disable_v2_behavior'):
    tf.disable_v2_behavior()

try:
    stateless_uniform = tf.random.stateless_uniform
except AttributeError:  # 1.12 has the operation, but its public name is in tf.contrib, which takes seconds to import
    from tensorflow.python.ops.gen_stateless_random_ops import stateless_random_uniform as stateless_uniform
try:
    from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_dynamic_update_slice  # has no public name
except ImportError:  # 1.12
    xla_dynamic_update_slice = None
from tensorflow.python.ops import collective_ops  # between the workers of a cluster; on neither floor has it a public name
