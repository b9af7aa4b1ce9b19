"""Weights that go from file to file one tensor at a time, so that a model need not fit into memory."""
import contextlib
import os
import re
import shutil

import numpy as np

from gpt2 import checkpoint
from gpt2.system import files, process, tensor_bundle
from gpt2.system.progress import Progress


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
    from gpt2.system.tf1 import tf
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


def network(hparams):
    """{name: variable} of the model in a graph of its own. Their shapes are those of the weights."""
    from model import model
    from gpt2.system.tf1 import tf
    with tf.Graph().as_default() as graph:
        model(hparams, tf.placeholder(tf.int32, [None, None]))
        return checkpoint.model_variables(graph)


def shapes_of(variables):
    """{name: shape} of variables {name: variable}."""
    return {name: variable.shape.as_list() for name, variable in variables.items()}


def stored_weights(folder, variables):
    """A function that returns the float32 array of a weight of a model's folder by its name in variables.

    Every weight is checked here: raises ValueError for damaged files, and for weights that do not fit the variables.
    """
    prefix = checkpoint.weights_prefix(folder)
    data, index = checkpoint.data_and_index(prefix)
    with checkpoint.damage_named(prefix):
        tensors = {tensor.name: tensor for tensor in tensor_bundle.read_index(index)}
        checkpoint.check_fit({name: tensor.shape for name, tensor in tensors.items()}, shapes_of(variables),
                             prefix + '.*', 'hparams.json')
        for name in variables:
            if tensors[name].dtype != tensor_bundle.FLOAT32:
                raise ValueError('%s is not float32' % name)
        tensor_bundle.check_data(data, index)
    not_finite = tensor_bundle.first_not_finite(data, index, variables)
    if not_finite:
        raise checkpoint.not_finite_error(not_finite, prefix + '.*')

    def load(name):
        return np.memmap(data, '<f4', 'r', tensors[name].offset, tuple(tensors[name].shape))

    return load


def write_checkpoint(folder, variables, load):
    """Write a model folder's weights as released: `checkpoint` and model.ckpt.*. load: as stored_weights returns it."""
    prefix = os.path.join(folder, 'model.ckpt')
    data, index = checkpoint.data_and_index(prefix)
    tensor_bundle.write(data, index, with_progress(variables, load))
    graph = next(iter(variables.values())).graph
    with graph.as_default(), checkpoint.as_tensorflow_finds(prefix) as found:
        checkpoint.saver(graph, variables).export_meta_graph(found + checkpoint.WEIGHTS_SUFFIXES[2])
    checkpoint.name_weights(folder, 'model.ckpt')


def with_progress(variables, load):
    """Yield (name, array) of all weights, in the order of their names, and show how much is done."""
    n_bytes = {name: 4 * int(np.prod(shape, dtype=np.int64)) for name, shape in shapes_of(variables).items()}
    with Progress(sum(n_bytes.values()), unit='B', unit_scale=True, label='weights', leave=False) as progress:
        for name in sorted(variables):
            yield name, load(name)
            progress.advance(n_bytes[name])


def copy(model_name, models_dir, target):
    """Write a model into the new folder target, as the seven files of a release. Raises as the functions above do."""
    check_new(target)
    source = checkpoint.model_dir(model_name, models_dir)
    hparams = checkpoint.load_hparams(model_name, models_dir)
    variables = network(hparams)
    with new_folder(target) as part:
        load = stored_weights(source, variables)
        checkpoint.describe(part, hparams, source)
        write_checkpoint(part, variables, load)
