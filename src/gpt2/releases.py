"""The released models with all their names, and the folders that models are in. No TensorFlow."""
import os
import re
import stat
from collections import namedtuple

REPOSITORY = os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))
N_VOCAB, N_CTX = 50257, 1024  # of every release


class Release(namedtuple('Release', 'names n_layer n_head n_embd')):
    """A released size. names: the current one, its folder on the servers; that of 2019; and common misnomers."""

    def hparams(self):
        """The dict in its hparams.json."""
        return dict(n_vocab=N_VOCAB, n_ctx=N_CTX, n_embd=self.n_embd, n_head=self.n_head, n_layer=self.n_layer)

    def n_parameters(self):
        """The number of trainable parameters."""
        # Matrices: 3 + 1 of attention, 4 + 4 of the MLP. Vectors: their 9 biases, and gain and bias of two layer norms.
        n_in_layer = 12 * self.n_embd ** 2 + 13 * self.n_embd
        return (N_VOCAB + N_CTX) * self.n_embd + self.n_layer * n_in_layer + 2 * self.n_embd


RELEASES = (  # smallest first
    Release(('124M', '117M'), 12, 12, 768),
    Release(('355M', '345M'), 24, 16, 1024),
    Release(('774M', '762M', '744M'), 36, 20, 1280),
    Release(('1558M', '1542M'), 48, 25, 1600))
BY_NAME = {name: release for release in RELEASES for name in release.names}
CHOICES = '117M, 345M, 774M, 1558M'  # the names that messages and the documentation use


def places(models_dir):
    """The two folders that models_dir may mean: relative to the working directory, and to the repository."""
    models_dir = os.path.expanduser(os.path.expandvars(models_dir))
    return [os.path.abspath(models_dir), os.path.join(REPOSITORY, models_dir)]


def model_folder(model_name, models_dir='models', files=()):
    """Find a model on disk. A relative models_dir is looked up in the working directory, then in the repository.

    Returns the absolute path of its folder, which holds all of files.
    Raises FileNotFoundError, with the command that downloads them, if the folder or one of the files is missing.
    """
    model_name = str(model_name)  # callers from Python may pass 7
    folders = [os.path.join(place, model_name) for place in places(models_dir)]
    folder = next((folder for folder in folders if stat.S_ISDIR(mode(folder))), None)
    if folder:
        missing = [name for name in files if not stat.S_ISREG(mode(os.path.join(folder, name)))]
        if not missing:
            return folder
        problem = '%s has no %s' % (folder, ', '.join(missing))
        hints = hints_for(os.listdir(folder), missing)
        if hints:
            raise FileNotFoundError('; '.join([problem] + hints))
    else:
        names = {name for place in places(models_dir) for name in models_in(place)}
        problem = 'no model %s in %s (models there: %s)' % (
            model_name, ' or '.join(sorted(set(places(models_dir)))), ', '.join(sorted(names)) or 'none')
    is_release = model_name in BY_NAME
    command = 'python3 download_model.py %s' % (model_name if is_release else '117M')
    if models_dir != 'models':
        command += ' --models_dir %s' % models_dir
    raise FileNotFoundError('%s; `%s` downloads %s' % (
        problem, command, 'it' if is_release else 'a released model (%s)' % CHOICES))


def hints_for(found, missing):
    """What to do about the missing files of a model folder that has files found, which may be those of another program.

    found, missing: lists of names.  Returns a list of str, empty if the files can only be downloaded.
    """
    hints = []
    if {'vocab.json', 'merges.txt'} <= set(found) and {'encoder.json', 'vocab.bpe'} & set(missing):
        hints.append('copy vocab.json to encoder.json and merges.txt to vocab.bpe, which have the same format')
    weights = sorted(name[:-len('.index')] for name in found if name.endswith('.index'))
    if weights and any(name == 'checkpoint' or name.endswith('.index') for name in missing):
        hints.append('the weights there are called %s; the file `checkpoint` must have the line model_checkpoint_path: '
                     '"%s"' % (', '.join(weights), weights[-1]))
    if not weights and {'pytorch_model.bin', 'model.safetensors'} & set(found):
        hints.append('`python3 src/convert.py from-transformers FOLDER NAME` makes a model of it; docs/convert.md')
    return hints


def models_in(folder):
    """The sorted names of the models in a folder. A training run counts once it has saved and has a `checkpoint`."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(name for name in names if os.path.isfile(os.path.join(folder, name, 'checkpoint')))


def weights_name(path):
    """The name of the weights, such as model.ckpt, that a file `checkpoint` gives, or None if it gives none."""
    with open(path, encoding='utf-8', errors='replace') as file:
        found = re.search(r'^model_checkpoint_path: "(.+)"', file.read(2 ** 20), re.MULTILINE)
    # The folder may have moved since, and Windows may have written it, with backslashes.
    return found and re.split(r'[/\\]', found.group(1))[-1]


def name_and_dir(folder):
    """The model_name and models_dir of a model's folder."""
    parent, name = os.path.split(os.path.abspath(str(folder)))
    return name, parent


def mode(path):
    """The st_mode of a file or folder, or 0 if it does not exist. Raises PermissionError if we may not look."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
