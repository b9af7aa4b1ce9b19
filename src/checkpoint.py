"""A model's folder on disk, models/<name>/, to and from hyperparameters and the weights in a session.

TensorFlow is imported inside the functions that need it, so that a script can report a missing model at once.
"""
import contextlib
import filecmp
import glob
import os
import re
import shutil

import files
import releases

VOCABULARY_FILES = ('encoder.json', 'vocab.bpe')
PRECISIONS = ('float32', 'int8')
WEIGHTS_SUFFIXES = ('.data-00000-of-00001', '.index', '.meta')  # renamed in this order: the index after the data it describes


def model_dir(model_name, models_dir='models'):
    """The folder of a complete model: hyperparameters, vocabulary and weights.

    A relative models_dir is looked up from the working directory, then from the repository's root.
    Raises FileNotFoundError that lists what is missing and the command that gets it.
    """
    folder = releases.model_folder(model_name, models_dir, files=('checkpoint', 'hparams.json') + VOCABULARY_FILES)
    name = os.path.basename(weights_prefix(folder))
    return releases.model_folder(model_name, models_dir, files=[name + suffix for suffix in WEIGHTS_SUFFIXES[:2]])


def new_model_dir(model_name, models_dir='models'):
    """The folder to make a model in: in models_dir of the working directory if that exists, otherwise of the repository."""
    here, repository = releases.places(models_dir)
    return os.path.join(here if os.path.isdir(here) else repository, str(model_name))


def weights_prefix(folder):
    """The beginning of the weights' paths, such as folder/model.ckpt. Raises ValueError if `checkpoint` does not name it."""
    path = os.path.join(folder, 'checkpoint')
    name = releases.weights_name(path)
    if name is None:
        raise ValueError('%s names no checkpoint; it should hold the line model_checkpoint_path: "model.ckpt"' % path)
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

    Raises FileNotFoundError as model_dir does; ValueError for a file that is not JSON, for missing, unknown or impossible
    numbers, and for an n_vocab that is not the size of the vocabulary in the folder.
    """
    folder = releases.model_folder(model_name, models_dir, files=('hparams.json',))
    path, vocabulary = os.path.join(folder, 'hparams.json'), os.path.join(folder, 'encoder.json')
    hparams = hparams_from(files.read_json(path), path)
    n_tokens = len(files.read_json(vocabulary)) if os.path.exists(vocabulary) else hparams.n_vocab
    if n_tokens != hparams.n_vocab:
        raise ValueError('%s has %d tokens, and n_vocab in the hparams.json beside it is %d; take both from the same model'
                         % (vocabulary, n_tokens, hparams.n_vocab))
    return hparams


def hparams_from(values, path):
    """The HParams of a dict that was read from path. Raises ValueError for missing, unknown or impossible numbers."""
    from model import default_hparams
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

    Raises FileNotFoundError as model_dir does, PermissionError for files that may not be read, and ValueError if the files
    are truncated or corrupt, or if variables are missing in them, have another shape, or are left over.
    """
    import int8
    rounded = {'model' + name[len(scope):]: weight for name, weight in int8.weights_of(sess.graph).items()
               if name.startswith(scope + '/')}
    restore_variables(sess, model_variables(sess.graph, scope), weights_prefix(model_dir(model_name, models_dir)), rounded)


def check_precision(name):
    """Raises ValueError for a name that is none of PRECISIONS."""
    if name not in PRECISIONS:
        raise ValueError('precision is %s; it must be one of %s' % (name, ', '.join(PRECISIONS)))


def precision(name):
    """A variable scope for a `with` in which the network is built: 'float32', or 'int8' for weights of 8 bits.

    restore() rounds the weights of any checkpoint to 8 bits for such a network, once in a session.
    Raises ValueError for another name, and where int8 cannot be computed.
    """
    check_precision(name)
    from tf1 import tf
    if name == 'float32':
        return tf.variable_scope(tf.get_variable_scope())
    import int8
    import kernels
    if kernels.on_gpu():
        raise ValueError('8-bit weights are for a CPU; use --precision float32, or hide the GPU: CUDA_VISIBLE_DEVICES=-1')
    int8.check()
    return tf.variable_scope(tf.get_variable_scope(), custom_getter=int8.getter(kernels.n_parts()))


def save(sess, folder, hparams, source, scope='model', step=None, keep=1):
    """Make folder a complete model: the weights under scope, hparams, and the vocabulary of the model folder source.

    step: of training, a part of the weights' file names (model.ckpt-100). None: plain model.ckpt, as released.
    keep: how many of the numbered saves stay, with this one.
    Files are written under other names and renamed, and `checkpoint` names the new weights only once they are on the disk:
    with numbered saves, there is a complete model in the folder at every moment.
    Raises OSError if that fails, for example because the disk is full.
    """
    describe(folder, hparams, source)
    name = 'model.ckpt' if step is None else 'model.ckpt-%d' % step
    save_variables(sess, model_variables(sess.graph, scope), os.path.join(folder, name))
    files.write_text(os.path.join(folder, 'checkpoint'),
                     'model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "%s"\n' % (name, name))
    if step is not None:
        remove_old(os.path.join(folder, 'model.ckpt'), step, keep)


def describe(folder, hparams, source):
    """Write a model folder's hparams.json, and copy the vocabulary from the folder source, which may be the same."""
    os.makedirs(folder, exist_ok=True)
    for name in VOCABULARY_FILES:
        path, original = os.path.join(folder, name), os.path.join(source, name)
        if not os.path.exists(path) or not filecmp.cmp(path, original, shallow=False):
            with files.replacing(path) as part:
                shutil.copyfile(original, part)
    files.write_json(os.path.join(folder, 'hparams.json'), hparams.values())


def session_config():
    """The ConfigProto of every session: it takes GPU memory as it needs it, and runs on the CPU what a GPU cannot."""
    from tf1 import tf
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    return config


@contextlib.contextmanager
def session(sampling=False, target='', config=None):
    """A session for a `with`.

    sampling: whether it is for sampling. TensorFlow then does not optimize the graph first, which takes half a second and
        makes sampling no faster, and the parts of the work (kernels.n_parts) run at the same time, on equal parts of the cores.
        On a GPU, products are then of float32 in full, from here on: TensorFloat-32 would not make sampling faster either.
    target: of a tf.train.Server, which runs it; '' is this process alone.  config: None is session_config().
    """
    from tf1 import tf
    import kernels
    import process
    config = config or session_config()
    if sampling:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        if hasattr(tf, 'disable_v2_behavior'):  # 1.x has no TensorFloat-32
            tf.config.experimental.enable_tensor_float_32_execution(False)
        n = kernels.n_parts()
        if not kernels.on_gpu():
            config.inter_op_parallelism_threads, config.intra_op_parallelism_threads = n, process.n_cores() // n
    sess = tf.Session(target=target, config=config)
    with sess.as_default():
        yield sess
    sess.close()  # not after Ctrl-C or an error: TensorFlow 1.12 would wait for a step that still runs


@contextlib.contextmanager
def out_of_memory(remedy):
    """Turn the error of a block that runs out of memory into a ValueError: 'out of memory; ' and the remedy.

    Not for blocks that write files: TensorFlow raises the same error for a full disk.
    """
    from tf1 import tf
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise ValueError('out of memory; ' + remedy)


def model_variables(graph, scope='model'):
    """{name in a checkpoint: variable} of the model under scope.

    Trainable ones only, because the names of an optimizer's averages begin alike.
    Raises ValueError if there are none.
    """
    from tf1 import tf
    variables = {'model' + variable.op.name[len(scope):]: variable
                 for variable in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES, re.escape(scope) + '/')}
    if not variables:
        raise ValueError('the graph has no variable under %r; build the model first' % scope)
    return variables


def restore_variables(sess, variables, prefix, rounded={}):
    """Load variables {name: variable} from the checkpoint files whose paths begin with prefix. Raises as restore does.

    rounded: what is loaded in 8 bits, as int8.weights_of returns it.
    """
    from tf1 import tf
    import int8
    with damage_told(prefix):
        reader = tf.train.load_checkpoint(prefix)
        stored = reader.get_variable_to_shape_map()
        shapes = {name: variable.shape.as_list() for name, variable in variables.items()}
        shapes.update((name, shape) for name, (_, shape) in rounded.items())
        problems = ['%s has shape %s instead of %s' % (name, stored[name], shapes[name])
                    for name in sorted(shapes) if stored.get(name, shapes[name]) != shapes[name]]
        problems += ['%s is missing' % name for name in sorted(shapes) if name not in stored]
        problems += ['%s is left over' % name for name in sorted(stored)  # but an optimizer's averages are not: model/wte/Adam
                     if name.startswith('model/') and not {name, os.path.dirname(name)} & set(shapes)]
        if problems:
            raise ValueError('the weights in %s.* do not fit hparams.json: %s%s; take both from the same model'
                             % (prefix, ', '.join(problems[:3]), ' and %d more' % (len(problems) - 3) if problems[3:] else ''))
        with out_of_memory('the weights in %s.* do not fit; free some, or take a smaller model' % prefix):
            saver(sess.graph, variables).restore(sess, prefix)
            int8.load(sess, rounded, reader.get_tensor)


@contextlib.contextmanager
def damage_told(prefix):
    """What TensorFlow raises in a block for damaged checkpoint files, whose paths begin with prefix, becomes a ValueError."""
    from tf1 import tf
    try:
        yield
    except (tf.errors.OpError, RuntimeError, IndexError) as error:  # the last two: for a damaged index, in TensorFlow 2
        for suffix in WEIGHTS_SUFFIXES[:2]:  # raises PermissionError for a file that is not corrupt but may not be read
            open(prefix + suffix, 'rb').close()
        os.listdir(os.path.dirname(prefix))  # and for a folder, which TensorFlow 1.12 lists
        raise ValueError('the weights in %s.* are truncated or corrupt (%s); delete these files and fetch them again'
                         % (prefix, type(error).__name__))


def save_variables(sess, variables, prefix):
    """Write variables {name: variable} into checkpoint files whose paths begin with prefix, under other names first.

    Raises OSError if that fails, and then leaves no unfinished file.
    """
    from tf1 import tf
    part = prefix + '.part'
    try:
        saver(sess.graph, variables).save(sess, part, write_state=False)
        for suffix in WEIGHTS_SUFFIXES:
            files.sync(part + suffix)
        for suffix in WEIGHTS_SUFFIXES:
            os.replace(part + suffix, prefix + suffix)
    except tf.errors.OpError as error:
        reason = re.search(r'^%s.*?; (.+)' % re.escape(part), error.message, re.MULTILINE)
        raise OSError('%s cannot be written: %s' % (prefix, reason.group(1) if reason else type(error).__name__))
    finally:
        for path in glob.glob(glob.escape(part) + '*'):
            os.remove(path)


def saver(graph, variables):
    """The graph's Saver of these variables, made once, because each Saver adds operations to the graph."""
    from tf1 import tf
    if not hasattr(graph, 'savers'):  # not a collection of the graph: .meta holds those, and cannot hold a Saver
        graph.savers = {}
    names = tuple(sorted((name, variable.op.name) for name, variable in variables.items()))
    if names not in graph.savers:
        with graph.as_default():
            graph.savers[names] = tf.train.Saver(variables)
    return graph.savers[names]


def remove_old(prefix, step, keep):
    """Delete the numbered saves prefix-<number>.* except that of step and the keep - 1 before it.

    One with a higher number was left unfinished by a killed process.
    """
    folder, name = os.path.split(prefix)
    found = {file: re.match(re.escape(name) + r'-(\d+)\.', file) for file in os.listdir(folder)}
    steps = {file: int(numbered.group(1)) for file, numbered in found.items() if numbered}
    kept = sorted({number for number in steps.values() if number <= step})[-keep:]
    for file in steps:
        if steps[file] not in kept:
            os.remove(os.path.join(folder, file))
