"""checkpoint.py: models saved by TensorFlow's own Saver are read in full or rejected in plain words, and back again."""
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile

import numpy as np
import pytest

import encoder
from gpt2 import checkpoint
from gpt2 import releases
from gpt2.system import tensor_bundle
from gpt2.system.tf1 import tf
import model
from helpers import reference, tiny
from helpers.paths import SRC
from helpers.processes import finished

DATA, INDEX = 'model.ckpt.data-00000-of-00001', 'model.ckpt.index'
SEVEN_FILES = sorted(['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.meta', 'vocab.bpe', DATA, INDEX])
# What the bucket of 2019 answers today, and OpenAI's script saves under the names of the files.
ERROR_PAGE = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchBucket</Code></Error>"


@pytest.fixture
def models_dir(tiny_models, tmp_path):
    """A copy of the models_dir with the tiny model, which a test may damage."""
    folder = str(tmp_path / 'models')
    shutil.copytree(tiny_models, folder)
    return folder


def tiny_file(models_dir, name):
    return os.path.join(models_dir, 'tiny', name)


def overwrite(path, content):
    with open(path, 'wb') as file:
        file.write(content)


def content_of(path):
    with open(path, 'rb') as file:
        return file.read()


def build(models_dir='models', name='tiny', scope='model', **changes):
    """Build the network of a model on disk, with some of its sizes changed. Returns tokens and logits."""
    hparams = checkpoint.load_hparams(name, models_dir)
    hparams.override_from_dict(changes)
    tokens_BT = tf.placeholder(tf.int32, [None, None])
    return tokens_BT, model.model(hparams, tokens_BT, scope=scope)['logits']


@pytest.fixture(scope='module')
def network(tiny_models):
    """A session with the tiny model's network, shared because building it takes most of the time here."""
    with tf.Graph().as_default(), tf.Session() as sess:
        build(tiny_models)
        yield sess


def restored_weights(network, models_dir, name='tiny'):
    """{name: array} of the network after restore; before it, every variable holds something else."""
    with network.graph.as_default():
        variables = tf.trainable_variables()
    network.run([variable.initializer for variable in variables], {
        variable.initial_value: np.full(variable.shape.as_list(), np.nan) for variable in variables})
    checkpoint.restore(network, name, models_dir)
    return network.run({variable.op.name: variable for variable in variables})


def read_weights(models_dir, name='tiny'):
    """{name: array} of a model as checkpoint.reading gives them."""
    shapes = {weight: list(array.shape) for weight, array in tiny_weights().items()}
    with checkpoint.reading(checkpoint.weights_prefix(checkpoint.model_dir(name, models_dir)), shapes) as read:
        return {weight: read(weight) for weight in sorted(shapes)}


def assert_same_weights(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


def tiny_weights(**changes):
    return tiny.random_weights(tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB), **changes)


# check_modules

@pytest.mark.parametrize('name', ['model', 'sample', 'encoder'])
def test_check_modules_names_a_module_of_the_user_s_own(tmp_path, monkeypatch, name):
    """Beside the user's program it is found first, and ours would fail on it with an error that explains nothing."""
    own = tmp_path / (name + '.py')
    own.write_text('')
    checkpoint.check_modules()
    ours = importlib.import_module(name)
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint.check_modules()  # as long as ours is imported
    monkeypatch.delitem(sys.modules, name)
    for _ in ('found', 'imported'):
        with pytest.raises(ImportError) as error:
            checkpoint.check_modules()
        assert str(own) in str(error.value) and ours.__file__ in str(error.value) and 'rename' in str(error.value)
        importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, ours)


def test_check_modules_is_called_by_whatever_a_user_imports(tmp_path):
    """As README.md shows it, in a program that has an encoder.py of its own beside it."""
    (tmp_path / 'encoder.py').write_text('')
    (tmp_path / 'main.py').write_text('import sys\nsys.path.append(%r)\nfrom gpt2.sampler import load\n' % SRC)
    status, stdout, stderr = finished([sys.executable, str(tmp_path / 'main.py')])
    last = stderr.decode('utf-8').strip().split('\n')[-1]
    assert (status, stdout) == (1, b'') and last.startswith('ImportError: ') and str(tmp_path / 'encoder.py') in last


# model_dir

def test_model_dir_finds_a_complete_model(tiny_models):
    assert checkpoint.model_dir('tiny', tiny_models) == os.path.join(tiny_models, 'tiny')
    assert sorted(os.listdir(os.path.join(tiny_models, 'tiny'))) == SEVEN_FILES


@pytest.mark.parametrize('name', [name for name in SEVEN_FILES if name != 'model.ckpt.meta'])  # which nothing reads
def test_model_dir_names_a_missing_file_with_folder_and_remedy(models_dir, name):
    os.remove(tiny_file(models_dir, name))
    with pytest.raises(FileNotFoundError) as error:
        checkpoint.model_dir('tiny', models_dir)
    remedy = 'model_checkpoint_path' if name == 'checkpoint' else 'download_model.py'
    for part in (name, os.path.join(models_dir, 'tiny'), remedy):
        assert part in str(error.value)


def test_model_dir_names_all_missing_files_at_once(models_dir):
    for name in ('encoder.json', 'hparams.json', 'vocab.bpe'):
        os.remove(tiny_file(models_dir, name))
    with pytest.raises(FileNotFoundError, match='encoder.json.*vocab.bpe') as error:
        checkpoint.model_dir('tiny', models_dir)
    assert 'hparams.json' in str(error.value)


@pytest.mark.parametrize('name, command', [
    ('117M', 'download_model.py 117M'), ('1558M', 'download_model.py 1558M'), ('mine', 'download_model.py 117M')])
def test_model_dir_answers_a_missing_model_with_the_command_and_the_models_there(tiny_models, name, command):
    with pytest.raises(FileNotFoundError, match=command) as error:
        checkpoint.model_dir(name, tiny_models)
    assert name in str(error.value) and tiny_models in str(error.value) and 'tiny' in str(error.value)


def test_model_dir_looks_from_here_and_then_from_the_repository(models_dir, tmp_path, monkeypatch):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(str(elsewhere))
    monkeypatch.setattr(releases, 'REPOSITORY', str(tmp_path))
    assert os.path.samefile(checkpoint.model_dir('tiny'), os.path.join(models_dir, 'tiny'))
    shutil.copytree(models_dir, 'models')
    assert os.path.samefile(checkpoint.model_dir('tiny'), str(elsewhere / 'models' / 'tiny'))


def test_model_dir_may_start_with_the_home_folder(models_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert os.path.samefile(checkpoint.model_dir('tiny', '~/models'), os.path.join(models_dir, 'tiny'))


@pytest.mark.parametrize('models_dir', ['~/mine', '$MINE', '${MINE}/../mine'])
def test_new_model_dir_is_where_model_folder_finds_it(tmp_path, monkeypatch, models_dir):
    """~ and variables mean what they mean in a shell."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('MINE', str(tmp_path / 'mine'))
    (tmp_path / 'mine').mkdir()
    folder = checkpoint.new_model_dir('new', models_dir)
    assert folder == str(tmp_path / 'mine' / 'new')
    os.mkdir(folder)
    assert releases.model_folder('new', models_dir) == folder


def test_new_model_dir_is_in_models_of_the_working_directory_or_else_of_the_repository(tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(str(tmp_path / 'here'))
    monkeypatch.setattr(releases, 'REPOSITORY', str(tmp_path))
    assert checkpoint.new_model_dir('new') == str(tmp_path / 'models' / 'new')
    (tmp_path / 'here' / 'models').mkdir()
    assert checkpoint.new_model_dir('new') == str(tmp_path / 'here' / 'models' / 'new')
    assert checkpoint.new_model_dir(7, str(tmp_path / 'far')) == str(tmp_path / 'far' / '7')


# load_hparams

def test_load_hparams_reads_the_release(released_117M):
    assert checkpoint.load_hparams(*releases.name_and_dir(released_117M)).values() == {
        'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}


@pytest.mark.parametrize('content, said', [
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 2}', 'n_layer'),
    ('{}', 'n_vocab, n_ctx, n_embd, n_head, n_layer'),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2, "dropout": 0.1}', 'dropout'),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 3, "n_layer": 2}', 'n_head.*divide'),
    ('{"n_vocab": 257, "n_ctx": "32", "n_embd": 8, "n_head": 2, "n_layer": 2}', "n_ctx is '32'"),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 0, "n_layer": 2}', 'n_head is 0'),
    ('{"n_vocab": 100000000000000000000, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2}',
     'n_vocab is 1000.* 2147483647'),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 1e400, "n_head": 2, "n_layer": 2}', 'n_embd is inf'),
    ('{"n_vocab": 258, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2}', '257 tokens.*258'),
    ('{"n_vocab": 256, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2}', '257 tokens.*256'),
    ('[' * 100000 + ']' * 100000, 'nested'), ('[257, 32, 8, 2, 2]', None), ('2', None), ('null', None), ('', None),
    ('{"n_vocab": 257, ', None), (ERROR_PAGE.decode('ascii'), None)])
def test_load_hparams_rejects_what_describes_no_model(models_dir, content, said):
    path = tiny_file(models_dir, 'hparams.json')
    overwrite(path, content.encode('utf-8'))
    with pytest.raises(ValueError, match=said) as error:
        checkpoint.load_hparams('tiny', models_dir)
    assert os.path.dirname(path) in str(error.value) and 'hparams.json' in str(error.value)
    assert '\n' not in str(error.value) and len(str(error.value)) < 400


# restore

@pytest.mark.slow
def test_restore_loads_every_variable(network, tiny_models):
    assert_same_weights(restored_weights(network, tiny_models), tiny_weights())


@pytest.mark.slow
def test_restore_makes_a_model_that_equals_the_papers(sess, tiny_models):
    tokens_BT, logits_BTV = build(tiny_models)
    checkpoint.restore(sess, 'tiny', tiny_models)
    tokens = np.arange(20).reshape([2, 10])
    expected, _ = reference.forward(tiny_weights(), tokens, n_head=2)
    np.testing.assert_allclose(sess.run(logits_BTV, {tokens_BT: tokens}), expected, atol=1e-5 * np.ptp(expected))


def test_restore_into_another_scope(sess, tiny_models):
    build(tiny_models, scope='other/model')
    checkpoint.restore(sess, 'tiny', tiny_models, scope='other/model')
    found = {variable.op.name: sess.run(variable) for variable in tf.global_variables()}
    assert_same_weights(found, {'other/' + name: array for name, array in tiny_weights().items()})


def test_restore_changes_only_the_models_variables(sess, tiny_models):
    """Not an optimizer's, whose names begin alike, nor those of a scope whose name begins alike."""
    build(tiny_models)
    others = [tf.get_variable('model/wte/Adam', initializer=3.0, trainable=False),
              tf.get_variable('model_b/w', initializer=4.0), tf.get_variable('step', initializer=5.0)]
    sess.run([variable.initializer for variable in others])
    checkpoint.restore(sess, 'tiny', tiny_models)
    assert sess.run(others) == [3.0, 4.0, 5.0]


def test_restore_before_the_graph_is_built_is_an_error(sess, tiny_models):
    with pytest.raises(ValueError, match='build the model first'):
        checkpoint.restore(sess, 'tiny', tiny_models)


@pytest.mark.slow
@pytest.mark.parametrize('changes, named, n_more', [
    (dict(n_layer=4, n_ctx=16), ['model/wpe has shape [32, 8] instead of [16, 8]', 'model/h2/attn/c_attn/b is missing',
                                 'model/h2/attn/c_attn/w is missing'], 22),
    (dict(n_layer=1), ['model/h1/attn/c_attn/b is left over', 'model/h1/attn/c_attn/w is left over',
                       'model/h1/attn/c_proj/b is left over'], 9),
    (dict(n_ctx=31), ['model/wpe has shape [32, 8] instead of [31, 8]'], 0)],
    ids=['more layers', 'fewer layers', 'context'])
def test_restore_rejects_weights_of_another_model(sess, tiny_models, changes, named, n_more):
    """Before anything is restored. The message names the first three variables and counts the others."""
    build(tiny_models, **changes)
    with pytest.raises(ValueError) as error:
        checkpoint.restore(sess, 'tiny', tiny_models)
    message = str(error.value)
    assert os.path.join(tiny_models, 'tiny', 'model.ckpt') in message and 'hparams.json' in message
    assert ', '.join(named) in message and message.count('model/') == len(named)
    assert ('%d more' % n_more in message) if n_more else ('more' not in message)
    assert len(sess.run(tf.report_uninitialized_variables())) == len(tf.global_variables())


@pytest.mark.slow
def test_restore_ignores_other_variables_of_a_training_checkpoint(sess, tiny_models, tmp_path):
    """An optimizer's averages under the variables' names, a step, another network."""
    build(tiny_models)
    shutil.copytree(os.path.join(tiny_models, 'tiny'), str(tmp_path / 'tiny'))
    with tf.Graph().as_default(), tf.Session() as other:
        others = ('model/wte/Adam', 'model/h0/attn/c_attn/w/Adam_1', 'beta1_power', 'global_step', 'model_b/h5/w',
                  'other/model/w')
        weights = dict(tiny_weights(), **{name: np.zeros([2]) for name in others})
        for name, array in weights.items():
            tf.Variable(tf.placeholder(tf.float32, array.shape), name=name)
        tiny.assign(other, weights)
        tf.train.Saver().save(other, str(tmp_path / 'tiny' / 'model.ckpt'))
    checkpoint.restore(sess, 'tiny', str(tmp_path))
    assert_same_weights({variable.op.name: sess.run(variable) for variable in tf.global_variables()}, tiny_weights())


def rejection(network, models_dir):
    """The message with which restore and reading reject the tiny model, or None if every weight is right in both."""
    messages = []
    for read in (lambda: restored_weights(network, models_dir)), lambda: read_weights(models_dir):
        try:
            assert_same_weights(read(), tiny_weights())
            messages.append(None)
        except ValueError as error:
            messages.append(str(error))
    assert messages[0] == messages[1]
    return messages[0]


def assert_rejected_in_plain_words(network, models_dir):
    message = rejection(network, models_dir)
    assert message is not None
    assert 'truncated or corrupt' in message and os.path.join(models_dir, 'tiny', 'model.ckpt') in message
    assert '\n' not in message and 'node' not in message.lower() and len(message) < 400


@pytest.mark.parametrize('name', [DATA, INDEX])
@pytest.mark.parametrize('n_kept', [0, 1, 0.5, -1], ids=['empty', 'one byte', 'half', 'all but one byte'])
def test_restore_rejects_truncated_weights(network, models_dir, name, n_kept):
    path = tiny_file(models_dir, name)
    content = content_of(path)
    overwrite(path, content[:int(n_kept * len(content)) if n_kept == 0.5 else n_kept])
    assert_rejected_in_plain_words(network, models_dir)


@pytest.mark.parametrize('name', [DATA, INDEX])
def test_restore_rejects_an_error_page_in_place_of_weights(network, models_dir, name):
    overwrite(tiny_file(models_dir, name), ERROR_PAGE)
    assert_rejected_in_plain_words(network, models_dir)


@pytest.mark.parametrize('place', [0, 0.1, 0.5, 0.9, 1])
def test_restore_notices_a_wrong_byte_in_the_weights(network, models_dir, place):
    path = tiny_file(models_dir, DATA)
    content = bytearray(content_of(path))
    content[int(place * (len(content) - 1))] ^= 1
    overwrite(path, content)
    assert_rejected_in_plain_words(network, models_dir)


@pytest.mark.slow
def test_restore_with_a_wrong_byte_in_the_index_never_loads_wrong_weights(network, models_dir):
    """A few bytes have no effect, and every other one is noticed, by no other exception than ValueError."""
    path = tiny_file(models_dir, INDEX)
    content = content_of(path)
    n_rejected = 0
    footer = range(len(content) - 48, len(content))  # has no CRC
    places = list(range(0, len(content), 47)) + list(footer)
    for place in places:
        overwrite(path, content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        n_rejected += rejection(network, models_dir) is not None
    assert 0 < n_rejected < len(places)


def fail_to_restore(monkeypatch, error):
    class Saver(object):
        def restore(self, sess, prefix):
            raise error

    monkeypatch.setattr(checkpoint, 'saver', lambda graph, variables: Saver())


@pytest.mark.parametrize('error', [tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.DataLossError,
                                   tf.errors.UnavailableError, tf.errors.UnknownError])
def test_restore_calls_only_that_damage_which_the_checksums_show(network, tiny_models, monkeypatch, error):
    """TensorFlow calls much else so: too many open files are a DataLossError. Nobody is to throw sound files away."""
    fail_to_restore(monkeypatch, error(None, None, 'the server is away\nand more'))
    with pytest.raises(OSError, match='cannot read the weights in .*tiny.model.ckpt.*: the server is away$') as caught:
        with network.graph.as_default():
            checkpoint.restore(network, 'tiny', tiny_models)
    assert 'corrupt' not in str(caught.value)


PATTERNS = ['my [old] models', '[x]', 'what?', 'all*', 'back\\slash', os.fsdecode(b'mod\xe8les'),
            os.fsencode('модели').decode('ascii', 'surrogateescape')]  # the last as Python has it in a POSIX locale


@pytest.mark.parametrize('name', PATTERNS, ids=ascii)
def test_restore_and_save_in_a_folder_that_tensorflow_would_not_find(network, tiny_models, tmp_path, name):
    """It takes a path for a pattern and for UTF-8, though the folder can be made, and is found by everyone else."""
    folder = os.path.join(str(tmp_path), name)
    shutil.copytree(tiny_models, folder)
    for found in restored_weights(network, folder), read_weights(folder):
        assert_same_weights(found, tiny_weights())
    with network.graph.as_default():
        tiny.assign(network, tiny_weights(seed=1))
    source = os.path.join(tiny_models, 'tiny')
    checkpoint.save(network, os.path.join(folder, 'mine'), checkpoint.load_hparams('tiny', tiny_models), source, step=3)
    for found in restored_weights(network, folder, 'mine'), read_weights(folder, 'mine'):
        assert_same_weights(found, tiny_weights(seed=1))
    assert len(os.listdir(os.path.join(folder, 'mine'))) == len(SEVEN_FILES)


@pytest.mark.parametrize('weights', ['run[1].ckpt', 'a*', 'a?'])
def test_model_dir_rejects_weights_whose_name_tensorflow_takes_for_a_pattern(models_dir, weights):
    overwrite(tiny_file(models_dir, 'checkpoint'), ('model_checkpoint_path: "%s"\n' % weights).encode('utf-8'))
    with pytest.raises(ValueError, match='pattern; rename') as error:
        checkpoint.model_dir('tiny', models_dir)
    assert weights in str(error.value)


@pytest.mark.parametrize('name, value', [('model/wte', np.nan), ('model/h1/mlp/c_proj/b', np.inf),
                                         ('model/h0/attn/c_attn/w', -np.inf)])
def test_restore_rejects_weights_that_are_not_finite(network, tmp_path, name, value):
    """A single one: the model would print '!!!!' for ever."""
    weights = tiny_weights()
    weights[name].flat[-1] = value
    tiny.write_model(str(tmp_path / 'tiny'), tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB), weights)
    assert rejection(network, str(tmp_path)).startswith('%s in %s' % (name, tmp_path / 'tiny' / 'model.ckpt'))


def test_restore_accepts_weights_whose_sum_is_not_finite(network, tmp_path):
    weights = tiny_weights()
    weights['model/wpe'][:] = 3e38
    tiny.write_model(str(tmp_path / 'tiny'), tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB), weights)
    for found in restored_weights(network, str(tmp_path)), read_weights(str(tmp_path)):
        assert_same_weights(found, weights)


def read_everything(network, models_dir):
    """Read all that a script reads of the tiny model."""
    encoder.get_encoder('tiny', models_dir)
    checkpoint.load_hparams('tiny', models_dir)
    checkpoint.restore(network, 'tiny', models_dir)


@contextlib.contextmanager
def permissions(modes):
    """Set permissions {path: mode} for a block, in which root becomes an ordinary user."""
    for path in modes:
        os.chmod(path, modes[path])
    as_root = os.geteuid() == 0
    try:
        if as_root:
            os.seteuid(65534)
        yield
    finally:
        if as_root:
            os.seteuid(0)
        for path in modes:
            os.chmod(path, 0o755)


@pytest.fixture
def open_models_dir(tiny_models):
    """A copy of the models_dir that everyone may read; pytest's own folders are private."""
    folder = tempfile.mkdtemp()
    shutil.copytree(os.path.join(tiny_models, 'tiny'), os.path.join(folder, 'tiny'))
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


on_posix = pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='needs permissions as POSIX has them')


@on_posix
@pytest.mark.parametrize('name, mode', [('', 0), ('tiny', 0), ('tiny', 0o444)] + [
    (os.path.join('tiny', name), 0) for name in SEVEN_FILES if name != 'model.ckpt.meta'])
def test_restore_does_not_call_a_file_without_permission_missing_or_corrupt(network, open_models_dir, name, mode):
    """Nor a folder without permission, or one that may be listed but not entered. The message has the path."""
    path = os.path.join(open_models_dir, name) if name else open_models_dir
    read_everything(network, open_models_dir)
    with pytest.raises(PermissionError, match='Permission denied') as error, permissions({path: mode}):
        read_everything(network, open_models_dir)
    assert path in str(error.value)
    if os.path.basename(path) in (DATA, INDEX):
        with pytest.raises(PermissionError, match='Permission denied') as error, permissions({path: mode}):
            read_weights(open_models_dir)
        assert path in str(error.value)


@on_posix
def test_restore_from_a_folder_that_may_be_entered_but_not_listed(network, open_models_dir):
    """TensorFlow 1.12 lists it; newer ones need not."""
    folder = os.path.join(open_models_dir, 'tiny')
    with permissions({folder: 0o111}):
        try:
            read_everything(network, open_models_dir)
        except PermissionError as error:
            assert folder in str(error)


@pytest.mark.parametrize('content', [b'', ERROR_PAGE, b'\xff\xfe\x00'])
def test_model_dir_rejects_a_checkpoint_file_that_names_no_weights(models_dir, content):
    overwrite(tiny_file(models_dir, 'checkpoint'), content)
    with pytest.raises(ValueError, match='names no checkpoint') as error:
        checkpoint.model_dir('tiny', models_dir)
    assert tiny_file(models_dir, 'checkpoint') in str(error.value)


@pytest.mark.parametrize('named', ['/home/somebody/models/old/model.ckpt', '../old/model.ckpt'])
def test_restore_finds_a_model_that_was_moved(network, models_dir, named):
    """TensorFlow's own Saver may store the path that the weights had when it saved them."""
    overwrite(tiny_file(models_dir, 'checkpoint'), ('model_checkpoint_path: "%s"\n' % named).encode('utf-8'))
    assert_same_weights(restored_weights(network, models_dir), tiny_weights())


WITHOUT_TENSORFLOW = """
import errno, sys
sys.path.insert(0, %r)
from gpt2 import checkpoint
fails = MemoryError, OSError(errno.EFAULT, 'Bad address')
for name, fail in ('whole', None), ('whole', fails[0]), ('whole', fails[1]), ('cut', None):
    try:
        with checkpoint.reading(%r + '/' + name + '/model.ckpt', {'model/wte': [2, 3]}) as read:
            print(read('model/wte').tolist())
            if fail:
                raise fail
    except ValueError as error:
        print(error)
print('tensorflow' in sys.modules)
"""


def test_reading_does_not_wait_for_tensorflow(tmp_path):
    """Neither to read, nor to tell that the memory has run out, or that a file is damaged."""
    for name in 'whole', 'cut':
        (tmp_path / name).mkdir()
        paths = checkpoint.data_and_index(str(tmp_path / name / 'model.ckpt'))
        tensor_bundle.write(*paths, arrays=[('model/wte', np.arange(6).reshape([2, 3]))])
    os.truncate(paths[0], 23)
    status, stdout, stderr = finished([sys.executable, '-c', WITHOUT_TENSORFLOW % (SRC, str(tmp_path))])
    assert (status, stderr) == (0, b'')
    first, second, short, third, also_short, damaged, imported = stdout.decode('ascii').splitlines()
    assert first == second == third == '[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]' and imported == 'False'
    assert 'out of memory' in short and 'whole' in short and short == also_short
    assert 'truncated or corrupt' in damaged and 'cut' in damaged


def test_reading_refuses_another_type_of_numbers_and_another_model(sess, tmp_path):
    tf.get_variable('model/wte', initializer=np.float64([[1, 2]]))
    tf.get_variable('model/wpe', initializer=np.int32([[1, 2]]))
    sess.run(tf.global_variables_initializer())
    prefix = tf.train.Saver().save(sess, str(tmp_path / 'model.ckpt'))
    with checkpoint.reading(prefix, {'model/wte': [1, 2], 'model/wpe': [1, 2]}) as read:
        for name, said in ('model/wte', 'is float64'), ('model/wpe', 'is of another type'):
            with pytest.raises(ValueError, match='%s in .*model.ckpt.* %s; only float32' % (name, said)):
                read(name)
    with pytest.raises(ValueError, match='model.ckpt.* do not fit hparams.json: model/wte has shape'):
        checkpoint.reading(prefix, {'model/wte': [2, 1], 'model/wpe': [1, 2]}).__enter__()


def test_restore_does_not_call_weights_corrupt_that_exceed_the_memory(network, tiny_models, monkeypatch):
    fail_to_restore(monkeypatch, tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor'))
    with network.graph.as_default(), pytest.raises(ValueError, match='out of memory.*tiny.model.ckpt') as error:
        checkpoint.restore(network, 'tiny', tiny_models)
    assert 'corrupt' not in str(error.value)


# load_hparams

@pytest.mark.parametrize('changes, named', [
    ({'n_layer': 2147483647}, 'n_layer is 2147483647; it must be a whole number of 1 to 1000'),
    ({'n_layer': 1000}, 'n_layer 1000, and the weights beside it have 2'),
    ({'n_layer': 1}, 'n_layer 1, .* 2'),
    ({'n_ctx': 2 ** 30}, 'n_ctx 1073741824, .* 32'), ({'n_embd': 2 ** 30}, 'n_embd 1073741824, .* 8'),
    ({'n_vocab': 2 ** 30}, 'n_vocab in the hparams.json'), ({'n_layer': 'x'}, "n_layer is 'x'; it must be a whole"),
    ({'n_layer': [2]}, 'n_layer is .2.; it must be'), ({'n_layer': True}, 'n_layer is True; it must be'),
    ({'n_head': 0}, 'n_head is 0'), ({'n_layers': 2}, 'unknown hyperparameters .n_layers')], ids=str)
def test_load_hparams_rejects_numbers_that_are_not_those_of_the_weights(models_dir, changes, named):
    """Before a network of a billion layers is built."""
    path = tiny_file(models_dir, 'hparams.json')
    overwrite(path, json.dumps(dict(json.loads(content_of(path).decode('utf-8')), **changes)).encode('utf-8'))
    with pytest.raises(ValueError, match=named) as error:
        checkpoint.load_hparams('tiny', models_dir)
    assert path in str(error.value) or 'n_vocab' in changes


def test_load_hparams_needs_no_weights(models_dir):
    """A new training run has none."""
    os.remove(tiny_file(models_dir, INDEX))
    expected = checkpoint.load_hparams('tiny', models_dir).values()
    os.remove(tiny_file(models_dir, 'checkpoint'))
    assert checkpoint.load_hparams('tiny', models_dir).values() == expected == {
        'n_vocab': 257, 'n_ctx': 32, 'n_embd': 8, 'n_head': 2, 'n_layer': 2}


# save

@pytest.fixture
def save(network, tiny_models, tmp_path):
    """save(weights, options of checkpoint.save): saves the network with these weights into tmp_path/mine."""
    hparams = checkpoint.load_hparams('tiny', tiny_models)

    def save(weights, **options):
        with network.graph.as_default():
            tiny.assign(network, weights)
        checkpoint.save(network, str(tmp_path / 'mine'), hparams, os.path.join(tiny_models, 'tiny'), **options)
    return save


def test_save_makes_a_complete_model_that_restores_to_the_same_weights(network, save, tiny_models, tmp_path):
    weights = tiny_weights(seed=1)
    save(weights)
    assert sorted(os.listdir(str(tmp_path / 'mine'))) == SEVEN_FILES
    assert checkpoint.model_dir('mine', str(tmp_path)) == str(tmp_path / 'mine')
    assert_same_weights(restored_weights(network, str(tmp_path), 'mine'), weights)
    for name in ('encoder.json', 'vocab.bpe'):
        assert content_of(str(tmp_path / 'mine' / name)) == content_of(tiny_file(tiny_models, name))
    assert json.loads(content_of(str(tmp_path / 'mine' / 'hparams.json')).decode('utf-8')) == {
        'n_vocab': 257, 'n_ctx': 32, 'n_embd': 8, 'n_head': 2, 'n_layer': 2}


def test_save_makes_a_model_that_tensorflow_itself_finds(network, save, tmp_path):
    """Also after the folder has moved. The model has the release's variables and no others."""
    save(tiny_weights())
    os.rename(str(tmp_path / 'mine'), str(tmp_path / 'moved'))
    prefix = tf.train.latest_checkpoint(str(tmp_path / 'moved'))
    assert prefix == str(tmp_path / 'moved' / 'model.ckpt')
    shapes = tiny.variable_shapes(tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB))
    assert sorted(tf.train.list_variables(prefix)) == sorted(shapes)
    assert_same_weights(restored_weights(network, str(tmp_path), 'moved'), tiny_weights())


def test_save_again_replaces_the_weights(network, save, tmp_path):
    """But not the vocabulary, which stays the same while a model is trained."""
    inodes = []
    for seed in (1, 2):
        save(tiny_weights(seed=seed))
        inodes.append([os.stat(str(tmp_path / 'mine' / name)).st_ino for name in checkpoint.VOCABULARY_FILES])
    assert inodes[0] == inodes[1]
    assert sorted(os.listdir(str(tmp_path / 'mine'))) == SEVEN_FILES
    assert_same_weights(restored_weights(network, str(tmp_path), 'mine'), tiny_weights(seed=2))


def test_save_removes_numbered_saves_that_are_not_kept(network, save, tmp_path):
    for step in (9, 10, 100):
        save(tiny_weights(seed=step), step=step, keep=2)
    weights = sorted(name for name in os.listdir(str(tmp_path / 'mine')) if name.startswith('model.ckpt'))
    assert weights == [name.replace('ckpt', 'ckpt-%d' % step)
                       for step in (10, 100) for name in (DATA, INDEX, 'model.ckpt.meta')]
    assert_same_weights(restored_weights(network, str(tmp_path), 'mine'), tiny_weights(seed=100))


@pytest.mark.parametrize('n_done', range(5))
def test_save_that_breaks_off_leaves_a_complete_model(network, save, tmp_path, monkeypatch, n_done):
    """Whichever of the renames fails."""
    replace, renamed = os.replace, []

    def break_off(source, destination):
        if len(renamed) == n_done:
            raise OSError('no space left on device')
        renamed.append(destination)
        replace(source, destination)

    save(tiny_weights(seed=1), step=1)
    monkeypatch.setattr(os, 'replace', break_off)
    with pytest.raises(OSError, match='no space left'):
        save(tiny_weights(seed=2), step=2)
    assert_same_weights(restored_weights(network, str(tmp_path), 'mine'), tiny_weights(seed=1))


def test_save_variables_that_fails_leaves_no_unfinished_file(network, tmp_path, monkeypatch):
    """Also in a folder whose name looks like a pattern."""
    folder = tmp_path / 'my [first] model*'
    folder.mkdir()

    def fail(source, destination):
        raise OSError('no space left on device')

    monkeypatch.setattr(os, 'replace', fail)
    with network.graph.as_default():
        tiny.assign(network, tiny_weights())
    with pytest.raises(OSError, match='no space left'):
        checkpoint.save_variables(network, checkpoint.model_variables(network.graph), str(folder / 'model.ckpt'))
    assert os.listdir(str(folder)) == []


# checksum

@pytest.mark.parametrize('name', ['model.ckpt.data-00000-of-00001', 'hparams.json', 'encoder.json', 'vocab.bpe'])
def test_checksum_changes_with_each_file_that_samples_depend_on(tiny_models, tmp_path, name):
    before = checkpoint.checksum('tiny', tiny_models)
    shutil.copytree(os.path.join(tiny_models, 'tiny'), str(tmp_path / 'other'))
    assert checkpoint.checksum('other', str(tmp_path)) == before
    with open(str(tmp_path / 'other' / name), 'ab') as file:
        file.write(b' ')
    assert checkpoint.checksum('other', str(tmp_path)) != before
