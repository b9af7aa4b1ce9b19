"""A model's folder on disk, models/<name>/, to and from hyperparameters and the weights in a session."""
from concurrent import futures
import contextlib
import filecmp
import glob
import importlib.util
import os
import re
import shutil
import tempfile

from gpt2 import releases
from gpt2.fast import lite
from gpt2.session import out_of_memory
from gpt2.system import files, tensor_bundle
from gpt2.system.tf1 import tf

VOCABULARY_FILES = ('encoder.json', 'vocab.bpe')
WEIGHTS_SUFFIXES = ('.data-00000-of-00001', '.index', '.meta')  # in the order of renaming: the index after its data


# What TensorFlow takes for a pattern, and bytes of a path that Python has not decoded: of any that are not ASCII in a
# POSIX locale.
UNKNOWN_TO_TENSORFLOW = re.compile('[][*?\udc80-\udcff%s]' % ('\\\\' if os.sep != '\\' else ''))


def check_modules():
    """Raises ImportError if Python finds other modules under the names of ours, such as a user's own model.py."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ('model', 'sample', 'encoder'):
        ours, found = os.path.join(folder, name + '.py'), importlib.util.find_spec(name)
        if found and all(map(os.path.exists, (ours, found.origin or ''))) and not os.path.samefile(found.origin, ours):
            raise ImportError('`import %s` finds %s instead of %s; rename that file, or put %s first: '
                              'sys.path.insert(0, %r)' % (name, found.origin, ours, folder, folder))


check_modules()


def model_dir(model_name, models_dir='models'):
    """The folder of a complete model: hyperparameters, vocabulary and weights.

    A relative models_dir is looked up from the working directory, then from the repository's root.
    Raises FileNotFoundError that lists what is missing and the command that gets it.
    """
    folder = releases.model_folder(model_name, models_dir, files=('checkpoint', 'hparams.json') + VOCABULARY_FILES)
    name = os.path.basename(weights_prefix(folder))
    return releases.model_folder(model_name, models_dir, files=[name + suffix for suffix in WEIGHTS_SUFFIXES[:2]])


def new_model_dir(model_name, models_dir='models'):
    """The folder of a new model: in models_dir of the working directory if that exists, or else of the repository."""
    here, repository = releases.places(models_dir)
    return os.path.join(here if os.path.isdir(here) else repository, str(model_name))


def weights_prefix(folder):
    """The prefix of the weights' paths, such as folder/model.ckpt.

    Raises ValueError if `checkpoint` names none, or one that TensorFlow would take for a pattern.
    """
    path = os.path.join(folder, 'checkpoint')
    name = releases.weights_name(path)
    if name is None:
        raise ValueError('%s names no checkpoint; it should hold the line model_checkpoint_path: "model.ckpt"' % path)
    if UNKNOWN_TO_TENSORFLOW.search(name):
        raise ValueError('%s names the checkpoint %s, which TensorFlow would take for a pattern; rename its files, and '
                         'correct the name there' % (path, name))
    return os.path.join(folder, name)


def checksum(model_name, models_dir='models'):
    """SHA-256 of a model's weights, hyperparameters and vocabulary, in hexadecimal digits. Raises as model_dir does."""
    folder = model_dir(model_name, models_dir)
    digest = b''
    for name in (os.path.basename(weights_prefix(folder)) + WEIGHTS_SUFFIXES[0], 'hparams.json') + VOCABULARY_FILES:
        digest = files.sha256(os.path.join(folder, name), digest).digest()
    return digest.hex()


def load_hparams(model_name, models_dir='models'):
    """The HParams of a model, from its hparams.json.

    Raises FileNotFoundError as model_dir does; ValueError for a file that is not JSON, for missing, unknown or
    impossible numbers, and for those that differ from the vocabulary or the weights in the folder, if there are any.
    """
    folder = releases.model_folder(model_name, models_dir, files=('hparams.json',))
    path, vocabulary = os.path.join(folder, 'hparams.json'), os.path.join(folder, 'encoder.json')
    hparams = hparams_from(files.read_json(path), path)
    n_tokens = len(files.read_json(vocabulary)) if os.path.exists(vocabulary) else hparams.n_vocab
    if n_tokens != hparams.n_vocab:
        raise ValueError('%s has %d tokens, and n_vocab in the hparams.json beside it is %d; take both from the same '
                         'model' % (vocabulary, n_tokens, hparams.n_vocab))
    for name, value in sorted(sizes(folder).items()):
        if getattr(hparams, name) != value:  # noticed here, before a network of a billion layers is built
            raise ValueError('%s says %s %d, and the weights beside it have %d; take both from the same model'
                             % (path, name, getattr(hparams, name), value))
    return hparams


def sizes(folder):
    """{name: value} of those hyperparameters that the weights in a folder show; {} if there are none."""
    path = os.path.join(folder, 'checkpoint')
    name = releases.weights_name(path) if os.path.exists(path) else None
    index = os.path.join(folder, name + WEIGHTS_SUFFIXES[1]) if name else ''
    if not os.path.isfile(index):
        return {}
    shapes = {weight: tensor.shape for weight, tensor in tensors_in(os.path.join(folder, name)).items()}
    layers = {name.split('/')[1] for name in shapes if re.match(r'model/h\d+/', name)}
    embeddings = shapes.get('model/wte', []) + shapes.get('model/wpe', [])[:1]
    found = dict(zip(('n_vocab', 'n_embd', 'n_ctx'), embeddings)) if len(embeddings) == 3 else {}
    return dict(found, n_layer=len(layers)) if layers else found


def hparams_from(values, path):
    """The HParams of a dict that was read from path. Raises ValueError for missing, unknown or impossible numbers."""
    from model import default_hparams  # not above, where check_modules has not been called yet
    try:
        hparams = default_hparams()
        missing = [name for name in hparams.names if name not in values]
        if missing:
            raise ValueError('%s missing' % ', '.join(missing))
        hparams.override_from_dict(values)
        hparams.check()
    except ValueError as error:
        raise ValueError('%s does not describe a model: %s' % (path, error))
    return hparams


def restore(sess, model_name, models_dir='models', scope='model'):
    """Load a model's weights into the variables under scope; the graph must have been built.

    Raises FileNotFoundError as model_dir does, OSError for files that cannot be read, and ValueError if the files are
    truncated or corrupt, if a weight is not finite, or if variables are missing, have another shape, or are left over.
    """
    restore_variables(sess, model_variables(sess.graph, scope), weights_prefix(model_dir(model_name, models_dir)))


def load_network(hparams, model_name, models_dir='models', precision='float32'):
    """The model as a lite.Network with weights of this precision. Raises as restore does."""
    with reading(weights_prefix(model_dir(model_name, models_dir)), lite.weight_shapes(hparams)) as read:
        return lite.Network(hparams, read, precision)


def save(sess, folder, hparams, source, scope='model', step=None, keep=1):
    """Make folder a complete model: the weights under scope, hparams, and the vocabulary of the model folder source.

    step: of training, a part of the weights' file names (model.ckpt-100). None: plain model.ckpt, as released.
    keep: how many of the numbered saves stay, with this one.
    Files are written under other names and renamed, and `checkpoint` names the new weights only once they are on the
    disk: with numbered saves, there is a complete model in the folder at every moment.
    Raises OSError if that fails, for example because the disk is full.
    """
    describe(folder, hparams, source)
    name = 'model.ckpt' if step is None else 'model.ckpt-%d' % step
    save_variables(sess, model_variables(sess.graph, scope), os.path.join(folder, name))
    name_weights(folder, name)
    if step is not None:
        remove_old(os.path.join(folder, 'model.ckpt'), step, keep)


def name_weights(folder, name):
    """Write a model folder's file `checkpoint`, which gives the name of the weights."""
    files.write_text(os.path.join(folder, 'checkpoint'),
                     'model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "%s"\n' % (name, name))


def describe(folder, hparams, source):
    """Write a model folder's hparams.json, and copy the vocabulary from the folder source, which may be the same."""
    os.makedirs(folder, exist_ok=True)
    for name in VOCABULARY_FILES:
        path, original = os.path.join(folder, name), os.path.join(source, name)
        if not os.path.exists(path) or not filecmp.cmp(path, original, shallow=False):
            with files.replacing(path) as part:
                shutil.copyfile(original, part)
    files.write_json(os.path.join(folder, 'hparams.json'), hparams.values())


def model_variables(graph, scope='model'):
    """{name in a checkpoint: variable} of the model under scope.

    Trainable ones only, because the names of an optimizer's averages begin alike.
    Raises ValueError if there are none.
    """
    variables = {'model' + variable.op.name[len(scope):]: variable
                 for variable in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES, re.escape(scope) + '/')}
    if not variables:
        raise ValueError('the graph has no variable under %r; build the model first' % scope)
    return variables


def shapes_of(variables):
    """{name: shape} of variables {name: variable}."""
    return {name: variable.shape.as_list() for name, variable in variables.items()}


def restore_variables(sess, variables, prefix):
    """Load variables {name: variable} from the checkpoint files that begin with prefix. Raises as restore does.

    Whether the weights are finite is found out beside it. Only what the checksums in the files show is called damage.
    """
    fitting_tensors(prefix, shapes_of(variables))
    data, index = data_and_index(prefix)
    try:
        with as_tensorflow_finds(prefix) as found, memory_for(prefix), futures.ThreadPoolExecutor(1) as second_core:
            checking = second_core.submit(tensor_bundle.first_not_finite, data, index, variables)
            saver(sess.graph, variables).restore(sess, found)
            not_finite = checking.result()
    except tf.errors.OpError as error:
        with damage_named(prefix):
            tensor_bundle.check_data(data, index)  # raises PermissionError for an unreadable file
        os.listdir(os.path.dirname(prefix))  # and this for a folder, which TensorFlow 1.12 lists
        raise OSError('TensorFlow cannot read the weights in %s.*: %s' % (prefix, str(error).split('\n')[0]))
    if not_finite:
        raise not_finite_error(not_finite, prefix + '.*')


def arrays(folder, variables):
    """Yield (name, float32 array) of the weights in a model's folder for variables {name: variable}, sorted by name.

    One weight at a time is in memory. Raises as reading does.
    """
    with reading(weights_prefix(folder), shapes_of(variables)) as read:
        for name in sorted(variables):
            yield name, read(name)


@contextlib.contextmanager
def reading(prefix, shapes):
    """For a block that reads weights {name: shape}: a function from a name to a float32 array, for several threads.

    Raises as restore does, and ValueError for weights of another type.
    """
    tensors = fitting_tensors(prefix, shapes)

    def read(name):
        kind = tensors[name].dtype
        if kind != tensor_bundle.FLOAT32:
            raise ValueError('%s in %s.* is %s; only float32 is supported'
                             % (name, prefix, tensor_bundle.TYPES.get(kind, 'of another type')))
        with damage_named(prefix):
            array = tensor_bundle.read_tensor(prefix + WEIGHTS_SUFFIXES[0], tensors[name])
        if not tensor_bundle.is_finite(array):
            raise not_finite_error(name, prefix + '.*')
        return array

    with memory_for(prefix):
        yield read


def memory_for(prefix):
    """session.out_of_memory with a remedy for reading weights."""
    return out_of_memory('the weights in %s.* do not fit; free some, or take a smaller model' % prefix)


def fitting_tensors(prefix, shapes):
    """As tensors_in(prefix). Raises ValueError as check_fit does for weights {name: shape}."""
    tensors = tensors_in(prefix)
    check_fit({name: tensor.shape for name, tensor in tensors.items()}, shapes, prefix + '.*', 'hparams.json')
    return tensors


def tensors_in(prefix):
    """{name: tensor_bundle.Tensor} of the weights whose paths begin with prefix."""
    with damage_named(prefix):
        return {tensor.name: tensor for tensor in tensor_bundle.read_index(prefix + WEIGHTS_SUFFIXES[1])}


def check_fit(stored, shapes, weights, description):
    """Raises ValueError unless stored {name: shape} has all of shapes {name: shape}, and no other weight of a model.

    weights, description: the names of the files that the two come from.
    """
    problems = ['%s has shape %s instead of %s' % (name, stored[name], shapes[name])
                for name in sorted(shapes) if stored.get(name, shapes[name]) != shapes[name]]
    problems += ['%s is missing' % name for name in sorted(shapes) if name not in stored]
    # An optimizer's averages, such as model/wte/Adam, are not left over.
    problems += ['%s is left over' % name for name in sorted(stored)
                 if name.startswith('model/') and not {name, os.path.dirname(name)} & set(shapes)]
    if problems:
        others = ' and %d more' % (len(problems) - 3) if problems[3:] else ''
        raise ValueError('the weights in %s do not fit %s: %s%s; take both from the same model'
                         % (weights, description, ', '.join(problems[:3]), others))


def not_finite_error(name, weights):
    """The ValueError for a tensor with NaN or infinity. weights: the name of its file."""
    return ValueError('%s in %s has numbers that are not finite, as after training that has diverged; take other '
                      'weights' % (name, weights))


def data_and_index(prefix):
    """The paths of the two files that hold the weights."""
    return [prefix + suffix for suffix in WEIGHTS_SUFFIXES[:2]]


@contextlib.contextmanager
def as_tensorflow_finds(prefix):
    """The prefix of the same files, for a block, by which TensorFlow finds them: it must be UTF-8 and no pattern."""
    if not UNKNOWN_TO_TENSORFLOW.search(prefix):
        yield prefix
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = os.path.join(temporary, 'folder')
        os.symlink(os.path.abspath(os.path.dirname(prefix)), link)
        yield os.path.join(link, os.path.basename(prefix))


@contextlib.contextmanager
def damage_named(prefix):
    """Turn the ValueErrors of tensor_bundle into those that name the files."""
    try:
        yield
    except ValueError as error:
        raise ValueError('the weights in %s.* are truncated or corrupt: %s; fetch them again, or restore a copy'
                         % (prefix, error))


def save_variables(sess, variables, prefix):
    """Write variables {name: variable} into checkpoint files whose paths begin with prefix, under other names first.

    Raises OSError if that fails, and then leaves no unfinished file.
    """
    part = prefix + '.part'
    try:
        with as_tensorflow_finds(part) as found:
            saver(sess.graph, variables).save(sess, found, write_state=False)
        for suffix in WEIGHTS_SUFFIXES:
            files.sync(part + suffix)
        for suffix in WEIGHTS_SUFFIXES:
            os.replace(part + suffix, prefix + suffix)
    except tf.errors.OpError as error:
        reason = re.search(r'^%s.*?; (.+)' % re.escape(found), error.message, re.MULTILINE)
        raise OSError('%s cannot be written: %s' % (prefix, reason.group(1) if reason else type(error).__name__))
    finally:
        for path in glob.glob(glob.escape(part) + '*'):
            os.remove(path)


def saver(graph, variables):
    """The graph's Saver of these variables, made once, because each Saver adds operations to the graph."""
    if not hasattr(graph, 'savers'):  # not a collection of the graph: .meta holds those, and cannot hold a Saver
        graph.savers = {}
    names = tuple(sorted((name, variable.op.name) for name, variable in variables.items()))
    if names not in graph.savers:
        with graph.as_default():
            graph.savers[names] = tf.train.Saver(variables)
    return graph.savers[names]


def remove_old(prefix, step, keep):
    """Delete the numbered saves prefix-<number>.* except that of step and the keep - 1 before it.

    Saves with a higher number were left unfinished by a killed process.
    """
    folder, name = os.path.split(prefix)
    found = {file: re.match(re.escape(name) + r'-(\d+)\.', file) for file in os.listdir(folder)}
    steps = {file: int(numbered.group(1)) for file, numbered in found.items() if numbered}
    kept = sorted({number for number in steps.values() if number <= step})[-keep:]
    for file in steps:
        if steps[file] not in kept:
            os.remove(os.path.join(folder, file))
