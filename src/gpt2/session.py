"""Sessions, the precision of their weights, and running out of memory."""
import contextlib
import errno
import os
import sys

from gpt2.fast import matmul
from gpt2.system import process
from gpt2.system.tf1 import tf

PRECISIONS = ('float32', 'int8')


def check_precision(name):
    """Raises ValueError for a name that is not one of PRECISIONS."""
    if name not in PRECISIONS:
        raise ValueError('precision is %s; it must be one of %s' % (name, ', '.join(PRECISIONS)))


def session_config(sampling=False):
    """The ConfigProto of a session: it takes GPU memory as needed, and runs on the CPU what a GPU cannot.

    sampling: as session() takes it.
    """
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    if sampling:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        if not matmul.on_gpu():
            n = matmul.n_parts()
            config.inter_op_parallelism_threads, config.intra_op_parallelism_threads = n, process.n_cores() // n
    return config


@contextlib.contextmanager
def session(sampling=False, target='', config=None):
    """A session for a `with`.

    sampling: whether it is for sampling. TensorFlow then does not optimize the graph first, which takes half a second
        and makes sampling no faster, and the parts of the work (matmul.n_parts) run at the same time, on equal parts
        of the cores. On a GPU, products are then in full float32, from here on: TensorFloat-32 would not make
        sampling faster.
    target: of a tf.train.Server that runs it; '' is this process alone.  config: None is session_config(sampling).
    """
    sess = new_session(sampling, target, config)
    with sess.as_default():
        yield sess
    sess.close()  # not after Ctrl-C or an error: TensorFlow 1.12 would wait for a step that is still running


def new_session(sampling=False, target='', config=None):
    """session(), without the `with`: a tf.Session of the default graph."""
    # XLA's own products do not read the variable, which switches TensorFloat-32 off in NVIDIA's libraries.
    full = sampling or os.environ.get('NVIDIA_TF32_OVERRIDE') == '0'
    if full and hasattr(tf, 'disable_v2_behavior'):  # 1.12 has no TensorFloat-32
        tf.config.experimental.enable_tensor_float_32_execution(False)
    return tf.Session(target=target, config=config or session_config(sampling))


@contextlib.contextmanager
def out_of_memory(remedy):
    """Turn the error of a block that runs out of memory into a ValueError: 'out of memory; ' and the remedy.

    Not for blocks that write files: TensorFlow raises the same error for a full disk.
    """
    try:
        yield
    except memory_errors() as error:
        if getattr(error, 'errno', errno.ENOMEM) not in (errno.ENOMEM, errno.EFAULT):  # the latter: of a read()
            raise
        raise ValueError('out of memory; ' + remedy)


def memory_errors():
    """The types of the errors that may say that memory has run out, without importing TensorFlow for its own."""
    errors = getattr(sys.modules.get('tensorflow'), 'errors', None)
    return (MemoryError, OSError) + ((errors.ResourceExhaustedError,) if errors else ())
