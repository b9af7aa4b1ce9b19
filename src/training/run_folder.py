"""A training run's folder, models/<run_name>: a model's folder that has, in `training`, what the run needs to go on.

No TensorFlow: what the flags and the folder have wrong is found before it is loaded.
"""
import contextlib
import filecmp
import os
import re
import shutil
import sys

from tqdm import tqdm

import checkpoint
import corpus
import encoder
import files
import releases


PLACES = 'run_name', 'models_dir', 'data', 'valid', 'hparams', 'vocab'  # flags that say where files are, not what is in them


def inside(folder, name):
    """The path of one of the run's own files, in `training`."""
    return os.path.join(folder, 'training', name)


def read_note(folder, name):
    """The dict in one of these files, {} if the file is not there."""
    path = inside(folder, name)
    return files.read_json(path, 'delete it to go on without what it says') if os.path.exists(path) else {}


def last_save(folder):
    """The step of the last save in a run's folder, or None if there is none.

    Raises ValueError for a folder that holds something other than a run.
    """
    if os.path.isfile(folder):
        raise ValueError('%s is a file; choose another --run_name' % folder)
    if not os.path.isdir(folder) or not os.listdir(folder):
        if os.path.basename(folder) in releases.BY_NAME:
            raise ValueError('%s is where the released model of that name belongs; choose another --run_name' % folder)
        return None
    is_run = os.path.isdir(os.path.join(folder, 'training'))
    if is_run and not os.path.exists(os.path.join(folder, 'checkpoint')):
        return None
    numbered = is_run and re.search(r'-(\d+)$', checkpoint.weights_prefix(folder))
    if not numbered:
        raise ValueError('%s exists and is not a training run; choose another --run_name' % folder)
    return int(numbered.group(1))


def remove_unfinished(folder):
    """Remove the files of saves later than the last one: it was not finished, or it would be the last."""
    last_step = last_save(folder) or 0
    for place in (folder, inside(folder, '')):
        for name in os.listdir(place):
            numbered = re.match(r'(?:model|state)\.ckpt-(\d+)\.', name)
            if numbered and int(numbered.group(1)) > last_step:
                os.remove(os.path.join(place, name))


@contextlib.contextmanager
def claimed(folder):
    """Make a run's folder, and keep other processes from training in it during a block.

    Raises ValueError if another process does, or if the folder holds something other than a run.
    """
    def refuse(holder):
        raise ValueError('%s is being trained by %s; wait until that ends, or choose another --run_name' % (folder, holder))

    last_save(folder)  # which raises, before anything is written
    os.makedirs(inside(folder, ''), exist_ok=True)
    with files.folder_lock(inside(folder, ''), refuse):
        yield


def prepare(folder, options):
    """Set up a new run in its folder, or check that the flags suit the run that is there.

    Returns (Encoder, HParams, tokens to learn from, tokens to measure or None); or None for a run that has done all its steps.
    """
    step = last_save(folder)
    before = {}
    if step is None:
        begin(folder, options)
        where = '%d steps, starting from %s' % (options.steps, options.model_name or 'nothing')
    else:
        before = read_note(folder, 'options.json')
        check_origin(folder, options, before)
        if step >= options.steps:
            tell('%s has its %d steps; raise --steps to go on' % (folder, step))
            return None
        where = 'going on from step %d of %d' % (step, options.steps)
    text_encoder = encoder.get_encoder(*releases.name_and_dir(folder))
    hparams = checkpoint.load_hparams(*releases.name_and_dir(folder))
    valid_tokens = None if options.valid is None else load_tokens(folder, text_encoder, hparams.n_ctx, options.valid)
    tokens = load_tokens(folder, text_encoder, hparams.n_ctx, options.data)
    tell('%s: %s; a step is %d tokens, and the text has %d' % (
        folder, where, batch_sequences(vars(options)) * hparams.n_ctx, len(tokens)))
    now = {name: value for name, value in vars(options).items() if name not in ('run_name', 'models_dir')}
    now.update(data_tokens=fingerprint(tokens), valid_tokens=fingerprint(valid_tokens))
    tell_changes(before, now)
    files.write_json(inside(folder, 'options.json'), now)
    return text_encoder, hparams, tokens, valid_tokens


def join(folder, options):
    """What prepare() returns, for a worker that only reads. The chief has prepared the folder, here or on another machine's disk.

    Raises ValueError if the vocabulary is neither in the folder nor in what the flags start from.
    """
    is_here = os.path.exists(os.path.join(folder, 'hparams.json'))
    hparams, source = (None, folder) if is_here else origin(options)
    if source is None:
        raise ValueError('the vocabulary that worker 0 has learnt is not in %s; copy that folder here from worker 0, or give all '
                         'workers the same disk' % folder)
    hparams = hparams or checkpoint.load_hparams(*releases.name_and_dir(folder))
    text_encoder = encoder.get_encoder(*releases.name_and_dir(source))
    os.makedirs(inside(folder, ''), exist_ok=True)  # so that this is the folder of a run, and may have its cache
    valid_tokens = None if options.valid is None else load_tokens(folder, text_encoder, hparams.n_ctx, options.valid)
    return text_encoder, hparams, load_tokens(folder, text_encoder, hparams.n_ctx, options.data), valid_tokens


def facts(options, text_encoder, hparams, tokens, valid_tokens):
    """What all workers of a run must have the same: [(name, value)]. The arguments are what prepare() is given and returns."""
    flags = [('--' + name, value) for name, value in sorted(vars(options).items()) if name not in PLACES]
    return flags + [('vocabulary', sorted(text_encoder.encoder.items()) + sorted(text_encoder.bpe_ranks.items())),
                    ('hparams.json', sorted(hparams.values().items())),
                    ('text of --data', fingerprint(tokens)), ('text of --valid', fingerprint(valid_tokens))]


def batch_sequences(values):
    """How many sequences a step learns. values: the flags, as a dict; runs of a time when there were no workers have none."""
    return values.get('workers', 1) * values['accumulate'] * values['batch_size']


def check_origin(folder, options, before):
    """Raises ValueError if the flags start from something other than the run in folder did.

    before: the flags of its last start; {} if it was last started by a version that did not keep them.
    """
    def refuse(had, given):
        raise ValueError('%s has %s, and %s was given; give what it has, or another --run_name for a new run'
                         % (folder, had, given))

    def shown(name, value):
        return 'no --' + name if value is None else '--%s %s' % (name, value)

    for name in ('model_name', 'vocab_size', 'train_only'):
        value = getattr(options, name)
        if before and before.get(name) != value:
            refuse(shown(name, before.get(name)), shown(name, value))
    if options.model_name is None:
        hparams, source = origin(options)
        for name, value in sorted(checkpoint.load_hparams(*releases.name_and_dir(folder)).values().items()):
            if hparams.values()[name] != value:
                refuse('%s %d' % (name, value), '%d' % hparams.values()[name])
        for name in checkpoint.VOCABULARY_FILES if source else ():
            if not filecmp.cmp(os.path.join(folder, name), os.path.join(source, name), shallow=False):
                refuse('another ' + name, '--vocab ' + options.vocab)


def tell_changes(before, now):
    """Say which flags and texts have changed since the last start. before, now: dicts, as prepare() keeps them."""
    changed = [name for name in sorted(now) if before.get(name, now[name]) != now[name]
               and name not in ('hparams', 'vocab')]  # of these two check_origin() has compared the contents
    words = ['--%s %s -> %s' % (name, before[name], now[name]) if not name.endswith('_tokens') else
             'the text of --' + name.split('_')[0] for name in changed]
    if words:
        tell('changed since the last start: ' + ', '.join(words))
    if {'seed', 'data_tokens'} & set(changed) or before and batch_sequences(before) != batch_sequences(now):
        tell('the order of the text changes here: this pass over it may repeat some parts and leave out others')


def fingerprint(tokens):
    """A name that differs for different texts: of the file that corpus.load_tokens keeps the tokens in. None for None."""
    return None if tokens is None else os.path.basename(tokens.filename)


def begin(folder, options):
    """Give a new run's folder its encoder.json, vocab.bpe and hparams.json, and remove what an earlier attempt left there."""
    hparams, source = origin(options)
    if source is None:
        pieces = filter(None, corpus.read_pieces(options.data))  # a document may be larger than memory
        encoder.learn_vocabulary(pieces, options.vocab_size, folder)
    checkpoint.describe(folder, hparams, source or folder)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(os.path.join(folder, 'best'))
    with contextlib.suppress(FileNotFoundError):
        os.remove(inside(folder, 'best.json'))


def origin(options):
    """What the flags start from: its HParams, and the folder of its vocabulary, or None if that is still to be learnt."""
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


def read_hparams(path, n_vocab):
    """The HParams in a JSON file, but with this n_vocab. What the file lacks is as in 117M. Raises ValueError."""
    from model import default_hparams
    values = files.read_json(path, 'give the path of an hparams.json')
    return checkpoint.hparams_from(dict(default_hparams().values(), **dict(values, n_vocab=n_vocab)), path)


def load_tokens(folder, text_encoder, n_ctx, paths):
    """The token ids of the files that paths name, as corpus.load_tokens. Raises ValueError for fewer than n_ctx."""
    tokens = corpus.load_tokens(text_encoder, paths, os.path.join(folder, 'cache'))
    if len(tokens) < n_ctx:
        raise ValueError('%s has %d tokens, and the model learns and is measured in windows of %d; give more text'
                         % (paths, len(tokens), n_ctx))
    return tokens


def tell(text):
    """Print a line on stderr, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
