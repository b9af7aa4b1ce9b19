"""TensorFlow's graph-mode API under one name, from 1.12 to 2.x: `from gpt2.system.tf1 import tf`.

TensorFlow logs nothing unless the environment variable TF_CPP_MIN_LOG_LEVEL is less than 3 (0 logs everything).
"""
import contextlib
import gc
import os
import sys
import threading
import warnings

from gpt2.system import process

_stderr_lock = threading.Lock()
_quiet = os.environ.get('TF_CPP_MIN_LOG_LEVEL', '3') == '3'


@contextlib.contextmanager
def without_stderr():
    """Keep C++ code from writing to stderr: 2.x logs while it is imported, before it reads the log level."""
    process.whole(sys.stderr).flush()
    while True:
        devnull = os.open(os.devnull, os.O_WRONLY)
        if devnull > 2:
            break  # otherwise it has taken the place of a closed stream, and stays there
    with _stderr_lock:  # of two threads, one would take the other's devnull for stderr
        stderr = os.dup(2)
        os.dup2(devnull, 2)
        os.close(devnull)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _import_tensorflow():
    gc.disable()  # garbage collection would take a sixth of the time: the import makes a million objects that stay
    try:
        import tensorflow.compat.v1 as tensorflow
    except ImportError:  # 1.12 is graph mode already, and its tf.compat has no v1
        import tensorflow
    except TypeError as error:
        if sys.flags.optimize < 2:
            raise
        raise ImportError('this TensorFlow needs its docstrings (%s); run python3 -O instead of -OO' % error)
    finally:
        # Keep the collector away from them later, too; Python before 3.7 has no freeze, so there it runs rarely.
        getattr(gc, 'freeze', lambda: gc.set_threshold(*gc.get_threshold()[:2] + (1000,)))()
        gc.enable()
    return tensorflow


# Settings that TensorFlow reads once. `make bench` shows their effect.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # by default, 2.x uses oneDNN on Intel's processors only
os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')  # reuses memory instead of freeing and allocating it
os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')  # 2.x reserves a whole GPU for a tf.function
if _quiet:
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
    warnings.filterwarnings('ignore', category=FutureWarning, module='tensorflow')  # 1.12 with NumPy 1.17 and later
    with without_stderr():
        tf = _import_tensorflow()
    tf.logging.set_verbosity(tf.logging.ERROR)
    if not hasattr(tf, 'disable_v2_behavior'):  # deprecation warnings take 1.12 a tenth of the time of building a graph
        from tensorflow.python.util import deprecation
        deprecation._PRINT_DEPRECATION_WARNINGS = False  # the public silence() lasts for a block only
else:
    tf = _import_tensorflow()
if hasattr(tf, 'disable_v2_behavior'):
    tf.disable_v2_behavior()

    def stateless_uniform(shape, seed, dtype=tf.float32):
        """As tf.random.stateless_uniform, also in float32 by XLA, which would take other bits of the same integers."""
        if dtype != tf.float32 or not tf.get_default_graph().building_function:
            return tf.random.stateless_uniform(shape, seed, dtype=dtype)
        bits = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.uint32)
        return tf.cast(tf.bitwise.bitwise_and(bits, 2 ** 23 - 1), tf.float32) * 2.0 ** -23
else:  # 1.12 has the operation, but its public name is in tf.contrib, which takes seconds to import
    from tensorflow.python.ops.gen_stateless_random_ops import stateless_random_uniform as stateless_uniform  # noqa: F401
try:
    from tensorflow.compiler.tf2xla.ops.gen_xla_ops import (  # have no public names
        xla_dynamic_update_slice, xla_optimization_barrier)
except ImportError:  # 1.12
    xla_dynamic_update_slice = xla_optimization_barrier = None
try:
    from tensorflow.lite.python import schema_py_generated as lite_schema  # the format of LiteRT's files
except ImportError:  # 1.12
    lite_schema = None
# Between the workers of a cluster; public in neither version.
from tensorflow.python.ops import collective_ops  # noqa: E402, F401


def sizes(x):
    """x's shape as a list: numbers where the graph knows them, otherwise tensors."""
    return [size(x, axis) for axis in range(len(x.shape))]


def size(x, axis):
    """x's size along an axis: a number where the graph knows it, otherwise a tensor."""
    known = x.shape.as_list()[axis]
    return tf.shape(x)[axis] if known is None else known


def batch_gather(x, indices):
    """Of each row of x [..., N], the elements at its indices [..., M]. TensorFlow 2's own makes 20 operations of it."""
    if not hasattr(tf, 'disable_v2_behavior'):
        return tf.batch_gather(x, indices)
    axis = len(x.shape) - 1
    return tf.gather(x, indices, axis=axis, batch_dims=axis)
