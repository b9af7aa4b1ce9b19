"""Weights that go from file to file one tensor at a time, so that a model need not fit into memory."""
import contextlib
import os
import re
import shutil

from gpt2 import checkpoint
from gpt2.system import files, process, tensor_bundle
from gpt2.system.progress import Progress
from gpt2.system.tf1 import tf
from model import model


def check_new(path):
    """Raises ValueError if there is something at path, FileNotFoundError if there is no folder to create it in."""
    parent, name = os.path.split(os.path.abspath(path))
    if os.path.lexists(path) or not path:
        raise ValueError('%s exists already; give a new name, or remove it first' % (path or 'this folder'))
    if not os.path.isdir(parent):
        raise FileNotFoundError('there is no folder %s to create %s in; create it first' % (parent, name))


@contextlib.contextmanager
def new_folder(path):
    """Yields path.part, a new folder for a block to fill; it is renamed to path after it, or removed if it fails.

    Raises as check_new does, ValueError if another process is filling it, and OSError where TensorFlow cannot write.
    """
    parent, name = os.path.split(os.path.abspath(path))
    part = os.path.join(parent, name + '.part')

    def busy(holder):
        raise ValueError('%s is being written by %s; wait for it, or give another name' % (path, holder))

    with process.interruptible(), files.folder_lock(parent, busy, '.%s.lock' % name):
        check_new(path)
        files.remove_link(part)
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            os.mkdir(part)
            yield part
            for folder, _, names in os.walk(part):
                for file in names:
                    files.sync(os.path.join(folder, file))
            os.rename(part, path)
        except tf.errors.OpError as error:
            reason = re.search('; (.+)', error.message)
            raise OSError('%s cannot be written: %s' % (path, reason.group(1) if reason else type(error).__name__))
        finally:
            shutil.rmtree(part, ignore_errors=True)


def source_of(target, model_name, models_dir):
    """The (folder, HParams) of the model from which a new file or folder is made. Raises as check_new and model_dir do.

    target: the path of what is new.
    """
    check_new(target)
    return checkpoint.model_dir(model_name, models_dir), checkpoint.load_hparams(model_name, models_dir)


def network(hparams):
    """{name: variable} of the model in a graph of its own. Their shapes are those of the weights."""
    with tf.Graph().as_default() as graph:
        model(hparams, tf.placeholder(tf.int32, [None, None]))
        return checkpoint.model_variables(graph)


def write_checkpoint(folder, variables, arrays):
    """Write a model folder's weights as released: `checkpoint` and model.ckpt.*.

    arrays: iterable of (name, float32 array), sorted by name, as checkpoint.arrays yields them.
    """
    prefix = os.path.join(folder, 'model.ckpt')
    tensor_bundle.write(*checkpoint.data_and_index(prefix), arrays=with_progress(variables, arrays))
    graph = next(iter(variables.values())).graph
    with graph.as_default(), checkpoint.as_tensorflow_finds(prefix) as found:
        checkpoint.saver(graph, variables).export_meta_graph(found + checkpoint.WEIGHTS_SUFFIXES[2])
    checkpoint.name_weights(folder, 'model.ckpt')


def with_progress(variables, arrays):
    """Yield (name, array) of all weights, and show how much is done."""
    n_bytes = sum(4 * variable.shape.num_elements() for variable in variables.values())
    with Progress(n_bytes, unit='B', unit_scale=True, label='weights', leave=False) as progress:
        for name, array in arrays:
            yield name, array
            progress.advance(array.nbytes)


def copy(model_name, models_dir, target):
    """Write a model into the new folder target, as the seven files of a release. Raises as the functions above do."""
    source, hparams = source_of(target, model_name, models_dir)
    variables = network(hparams)
    with new_folder(target) as part:
        checkpoint.describe(part, hparams, source)
        write_checkpoint(part, variables, checkpoint.arrays(source, variables))
