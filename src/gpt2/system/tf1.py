"""TensorFlow's graph-mode API under one name, from 1.12 to 2.x: `from gpt2.system.tf1 import tf`.

It is imported when something of it is first used, since that takes seconds and 700 MB, and LiteRT alone can sample.
TensorFlow logs nothing unless the environment variable TF_CPP_MIN_LOG_LEVEL is less than 3 (0 logs everything).
"""
import contextlib
import ctypes
import functools
import gc
import importlib.util
import os
import sys
import threading
import types
import warnings

from gpt2.system import process

_stderr_lock = threading.Lock()
_quiet = os.environ.get('TF_CPP_MIN_LOG_LEVEL', '3') == '3'

# Settings that TensorFlow reads once. `make bench` shows their effect.
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # by default, 2.x uses oneDNN on Intel's processors only
os.environ.setdefault('TF_CPU_ALLOCATOR_USE_BFC', 'true')  # reuses memory instead of freeing and allocating it
os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')  # 2.x reserves a whole GPU for a tf.function
if _quiet:
    os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'


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
        import tensorflow  # first, so that this waits if another thread is importing it
        with contextlib.suppress(ImportError):  # 1.12 is graph mode already, and its tf.compat has no v1
            import tensorflow.compat.v1 as tensorflow
    except TypeError as error:
        if sys.flags.optimize < 2:
            raise
        raise ImportError('this TensorFlow needs its docstrings (%s); run python3 -O instead of -OO' % error)
    finally:
        # Keep the collector away from them later, too; Python before 3.7 has no freeze, so there it runs rarely.
        getattr(gc, 'freeze', lambda: gc.set_threshold(*gc.get_threshold()[:2] + (1000,)))()
        gc.enable()
    return tensorflow


@functools.lru_cache(maxsize=None)  # once
def _tensorflow():
    """TensorFlow's module for graph mode, imported without a word."""
    if _quiet:
        warnings.filterwarnings('ignore', category=FutureWarning, module='tensorflow')  # 1.12 with NumPy 1.17 and later
        with without_stderr():
            tensorflow = _import_tensorflow()
        tensorflow.logging.set_verbosity(tensorflow.logging.ERROR)
    else:
        tensorflow = _import_tensorflow()
    if hasattr(tensorflow, 'disable_v2_behavior'):
        tensorflow.disable_v2_behavior()
    elif _quiet:  # deprecation warnings take 1.12 a tenth of the time of building a graph
        from tensorflow.python.util import deprecation
        deprecation._PRINT_DEPRECATION_WARNINGS = False  # the public silence() lasts for a block only
    return tensorflow


class _Module(types.ModuleType):
    """TensorFlow, which is imported when an attribute is first asked for."""

    def __getattr__(self, name):  # only for what is not an attribute yet
        if name.startswith('__') and name != '__version__':  # Python asks any module for these
            raise AttributeError(name)
        setattr(self, name, getattr(_tensorflow(), name))
        return vars(self)[name]


tf = _Module('tensorflow')
if 'tensorflow' in sys.modules:
    _tensorflow()  # a program that has imported it may rely on graph mode from here on


def is_tensor(x):
    """Whether x is a tensor. This neither imports TensorFlow nor ends the eager mode of a program that has."""
    return isinstance(x, getattr(sys.modules.get('tensorflow'), 'Tensor', ()))


def may_have_gpu():
    """False where TensorFlow would find no GPU: its driver is missing, or it is hidden. It need not be asked then."""
    if not sys.platform.startswith('linux'):
        return importlib.util.find_spec('tensorflow') is not None
    if os.path.exists('/dev/kfd') and os.path.exists('/opt/rocm'):  # AMD's driver, and its libraries, which few have
        return True
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return False
    try:
        return bool(ctypes.CDLL('libcuda.so.1'))
    except OSError:
        return False


# What has no public name in one version or in both

def _internal(name):
    """A module inside TensorFlow; None if this version has none of this name."""
    _tensorflow()  # first, so that it is quiet
    try:
        return importlib.import_module('tensorflow.' + name)
    except ImportError:
        return None


def xla_ops():
    """XLA's own operations, such as xla_dynamic_update_slice; None in 1.12."""
    return _internal('compiler.tf2xla.ops.gen_xla_ops')


def collective_ops():
    """Operations between the workers of a cluster."""
    return _internal('python.ops.collective_ops')


def stateless_uniform(shape, seed, dtype='float32'):
    """As tf.random.stateless_uniform, also in float32 by XLA, which would take other bits of the same integers."""
    if not hasattr(tf, 'disable_v2_behavior'):  # the public name is in tf.contrib, which takes seconds to import
        return _internal('python.ops.gen_stateless_random_ops').stateless_random_uniform(shape, seed, dtype=dtype)
    if dtype != 'float32' or not tf.get_default_graph().building_function:
        return tf.random.stateless_uniform(shape, seed, dtype=dtype)
    bits = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.uint32)
    return tf.cast(tf.bitwise.bitwise_and(bits, 2 ** 23 - 1), tf.float32) * 2.0 ** -23


@functools.lru_cache(maxsize=None)  # once
def litert():
    """(LiteRT's class Interpreter, the module of its files' format): of its own package, or TensorFlow 2's; or None."""
    try:
        from ai_edge_litert import interpreter, schema_py_generated
        return interpreter.Interpreter, schema_py_generated
    except ImportError:
        schema = _internal('lite.python.schema_py_generated')  # not in 1.12
        warnings.filterwarnings('ignore', message=r'\s*Warning: tf.lite.Interpreter is deprecated')
        return schema and (tf.lite.Interpreter, schema)


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
