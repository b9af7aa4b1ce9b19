"""A training run's folder, models/<run_name>: a model, and in the subfolder `training` what else resuming needs.

No TensorFlow: errors in the flags and in the folder are found before it is loaded.
"""
import contextlib
import filecmp
import os
import re
import shutil
import sys

from gpt2 import checkpoint, corpus, releases
import encoder
from gpt2.system import files
from gpt2.system.progress import report
from model import default_hparams


LOCATIONS = 'run_name', 'models_dir', 'data', 'valid', 'hparams', 'vocab'  # flags: where files are, not what is in them
KINDS = {  # of those values that are computed with, as files.read_json takes them
    'options.json': {'accumulate': (int,), 'batch_size': (int,), 'workers': (int, None)},
    'best.json': {'step': (int,), 'valid_loss_nats': (int, float), 'text': (str, None)}}


def inside(folder, name):
    """The path of one of the run's own files, in `training`."""
    return os.path.join(folder, 'training', name)


def read_dict(folder, name):
    """The dict in one of these files; {} if the file does not exist."""
    path = inside(folder, name)
    return files.read_json(path, KINDS[name], 'move it away to continue without it') if os.path.exists(path) else {}


def last_save(folder):
    """The step of the last save in a run's folder; 0 if nothing has been saved.

    Raises ValueError for a folder that holds something other than a run.
    """
    if os.path.isfile(folder):
        raise ValueError('%s is a file; choose another --run_name' % folder)
    if not os.path.isdir(folder) or not os.listdir(folder):
        if os.path.basename(folder) in releases.BY_NAME:
            raise ValueError('%s is reserved for the released model of that name; choose another --run_name' % folder)
        return 0
    is_run = os.path.isdir(os.path.join(folder, 'training'))
    if is_run and not os.path.exists(os.path.join(folder, 'checkpoint')):
        return 0
    numbered = is_run and re.search(r'-(\d+)$', checkpoint.weights_prefix(folder))
    if not numbered:
        raise ValueError('%s exists and is not a training run; choose another --run_name' % folder)
    return int(numbered.group(1))


def describe_last_save(folder):
    """What the last save is, for a message about a run that has ended early."""
    step = last_save(folder)
    return 'the last save is that of step %d' % step if step else 'nothing is saved yet'


def remove_unfinished(folder):
    """Remove the files of saves later than the last one: they are incomplete."""
    for prefix in os.path.join(folder, 'model.ckpt'), inside(folder, 'state.ckpt'):
        checkpoint.remove_old(prefix, last_save(folder), keep=sys.maxsize)


def claimed(folder):
    """Create a run's folder, and keep other processes from training in it during a block.

    Raises ValueError if another process is training in it, or if the folder holds something other than a run.
    """
    def refuse(holder):
        raise ValueError('%s is being trained by %s; wait until it ends, or choose another --run_name'
                         % (folder, holder))

    last_save(folder)  # which raises, before anything is written
    try:
        os.fsencode(folder).decode('utf-8')
    except UnicodeDecodeError:  # TensorBoard's files could not be written
        raise ValueError('%s is not UTF-8; choose another --run_name or --models_dir' % folder)
    os.makedirs(inside(folder, ''), exist_ok=True)
    return files.folder_lock(inside(folder, ''), refuse)


@contextlib.contextmanager
def prepared(folder, options):
    """Claim a run's folder during a block, and yield what prepare() returns. If that fails, a new folder is removed."""
    is_new = not os.path.isdir(folder)
    with claimed(folder):
        try:
            inputs = prepare(folder, options)
        except Exception:
            if is_new:
                shutil.rmtree(folder)
            raise
        yield inputs


def prepare(folder, options):
    """Set up a new run in its folder, or check that the flags match the run in it.

    Returns (Encoder, HParams, training tokens, validation tokens or None); None if the run has completed all its steps.
    """
    step = last_save(folder)
    before = read_dict(folder, 'options.json') if step else {}
    if step:
        check_origin(folder, options, before)
    else:
        begin(folder, options)
    if step >= options.steps:
        report('%s has completed its %d steps; raise --steps to continue' % (folder, step))
        return None
    where = ('resuming from step %d of %d' % (step, options.steps) if step else
             '%d steps, starting from %s' % (options.steps, options.model_name or 'random weights'))
    text_encoder, hparams, tokens, valid_tokens = inputs = load_inputs(folder, options, folder, load_hparams(folder))
    report('%s: %s; a step is %d tokens, and the text has %d' % (
        folder, where, sequences_per_step(vars(options)) * hparams.n_ctx, len(tokens)))
    now = {name: value for name, value in vars(options).items() if name not in ('run_name', 'models_dir')}
    now.update(data_tokens=fingerprint(tokens), valid_tokens=fingerprint(valid_tokens))
    report_changes(before, now)
    files.write_json(inside(folder, 'options.json'), now)
    return inputs


def join(folder, options):
    """What prepare() returns, for a worker other than the chief; the chief's folder may be on another machine.

    Raises ValueError if the vocabulary is neither in the folder nor in what the flags start from.
    """
    is_here = os.path.exists(os.path.join(folder, 'hparams.json'))
    hparams, source = (load_hparams(folder), folder) if is_here else origin(options)
    if source is None:
        raise ValueError('the vocabulary that worker 0 has learned is not in %s; copy that folder from worker 0, or '
                         'let all workers use the same disk' % folder)
    os.makedirs(inside(folder, ''), exist_ok=True)  # this makes it the folder of a run, in which a cache may be kept
    return load_inputs(folder, options, source, hparams or load_hparams(source))


def load_inputs(folder, options, source, hparams):
    """What prepare() returns. source: the folder of the vocabulary.  folder: where the token ids are cached.

    Raises ValueError for text of fewer than n_ctx tokens.
    """
    text_encoder = encoder.get_encoder(*releases.name_and_dir(source))

    def load_tokens(paths):
        tokens = corpus.load_tokens(text_encoder, paths, os.path.join(folder, 'cache'))
        if len(tokens) < hparams.n_ctx:
            raise ValueError('%s has %d tokens, but a sequence of this model has %d; provide more text'
                             % (paths, len(tokens), hparams.n_ctx))
        return tokens

    valid_tokens = None if options.valid is None else load_tokens(options.valid)
    return text_encoder, hparams, load_tokens(options.data), valid_tokens


def facts(options, text_encoder, hparams, tokens, valid_tokens):
    """What must be the same for all workers of a run: [(name, value)]. The arguments: the flags, prepare()'s result."""
    flags = [('--' + name, value) for name, value in sorted(vars(options).items()) if name not in LOCATIONS]
    return flags + [('vocabulary', sorted(text_encoder.encoder.items()) + sorted(text_encoder.bpe_ranks.items())),
                    ('hparams.json', sorted(hparams.values().items())),
                    ('text of --data', fingerprint(tokens)), ('text of --valid', fingerprint(valid_tokens))]


def sequences_per_step(values):
    """The number of sequences in a step. values: the flags, as a dict; those of early versions lack `workers`."""
    return (values.get('workers') or 1) * values['accumulate'] * values['batch_size']


def check_origin(folder, options, before):
    """Raises ValueError if the flags start from something other than what the run in folder started from.

    before: the flags of its last start; {} if that was a version that did not save them.
    """
    def refuse(had, given):
        raise ValueError('%s has %s, but got %s; give what it has, or choose another --run_name for a new run'
                         % (folder, had, given))

    def shown(name, value):
        return 'no --' + name if value is None else '--%s %s' % (name, value)

    # Early versions had no precision.
    for name, default in (('model_name', None), ('vocab_size', None), ('train_only', None), ('precision', 'float32')):
        had, value = before.get(name, default), getattr(options, name)
        if before and had != value:
            refuse(shown(name, had), shown(name, value))
    if options.model_name is None:
        hparams, source = origin(options)
        for name, value in sorted(load_hparams(folder).values().items()):
            if hparams.values()[name] != value:
                refuse('%s %d' % (name, value), '%d' % hparams.values()[name])
        for name in checkpoint.VOCABULARY_FILES if source else ():
            if not filecmp.cmp(os.path.join(folder, name), os.path.join(source, name), shallow=False):
                refuse('a different ' + name, '--vocab ' + options.vocab)


def report_changes(before, now):
    """Report which flags and texts have changed since the last start. before, now: dicts, as prepare() saves them."""
    changed = [name for name in sorted(now) if before.get(name, now[name]) != now[name]
               and name not in ('hparams', 'vocab')]  # check_origin() has compared the contents of these two
    words = ['--%s %s -> %s' % (name, before[name], now[name]) if not name.endswith('_tokens') else
             'the text of --' + name.split('_')[0] for name in changed]
    if words:
        report('changed since the last start: ' + ', '.join(words))
    if {'seed', 'data_tokens'} & set(changed) or before and sequences_per_step(before) != sequences_per_step(now):
        report('the order of the text changes here: this epoch may repeat some parts and skip others')


def fingerprint(tokens):
    """A name that differs for different texts: of the file in which corpus.load_tokens caches them. None for None."""
    return None if tokens is None else os.path.basename(tokens.filename)


def begin(folder, options):
    """Write a new run's encoder.json, vocab.bpe and hparams.json, and remove what an earlier attempt has left."""
    hparams, source = origin(options)
    if source is None:
        pieces = filter(None, corpus.read_pieces(options.data))  # a document may be larger than memory
        encoder.learn_vocabulary(pieces, options.vocab_size, folder)
    checkpoint.describe(folder, hparams, source or folder)
    for remove, path in ((shutil.rmtree, os.path.join(folder, 'best')), (os.remove, inside(folder, 'best.json'))):
        with contextlib.suppress(FileNotFoundError):
            remove(path)


def origin(options):
    """What the flags start from: its HParams, and its vocabulary's folder, or None if that is yet to be learned."""
    if options.model_name is not None:
        model = options.model_name, options.models_dir
        source = checkpoint.model_dir(*model)
        encoder.get_encoder(*model)  # raises if the vocabulary is damaged, before it is copied
        return checkpoint.load_hparams(*model), source
    if options.vocab_size is not None:
        return read_hparams(options.hparams, options.vocab_size), None
    vocabulary = releases.name_and_dir(options.vocab)
    source = releases.model_folder(*vocabulary, files=checkpoint.VOCABULARY_FILES)
    return read_hparams(options.hparams, len(encoder.get_encoder(*vocabulary).encoder)), source


def load_hparams(folder):
    """The HParams of the model in a folder."""
    return checkpoint.load_hparams(*releases.name_and_dir(folder))


def read_hparams(path, n_vocab):
    """The HParams in a JSON file, with n_vocab replaced. Those missing from the file are 117M's. Raises ValueError."""
    values = files.read_json(path, remedy='give the path of an hparams.json')
    return checkpoint.hparams_from(dict(default_hparams().values(), **dict(values, n_vocab=n_vocab)), path)
