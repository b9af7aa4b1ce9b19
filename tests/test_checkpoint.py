"""checkpoint.py: models written by TensorFlow's own Saver are read whole or refused in plain words, and back again."""
import contextlib
import json
import os
import shutil
import tempfile
import threading

import numpy as np
import pytest

import checkpoint
import encoder
import int8
import kernels
import model
import process
import reference
import releases
import tiny
from tf1 import tf

DATA, INDEX = 'model.ckpt.data-00000-of-00001', 'model.ckpt.index'
SEVEN_FILES = sorted(['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.meta', 'vocab.bpe', DATA, INDEX])
# What the bucket of 2019 answers today, and what OpenAI's script stores under the names of the files.
ERROR_PAGE = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchBucket</Code></Error>"


@pytest.fixture
def models_dir(tiny_models, tmp_path):
    """A copy of the models_dir with the tiny model, for a test to damage."""
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
    """A session with the tiny model's network, shared because building it is what takes time here."""
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


def assert_same_weights(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


def tiny_weights(**changes):
    return tiny.random_weights(tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB), **changes)


# model_dir

def test_a_complete_model_is_found(tiny_models):
    assert checkpoint.model_dir('tiny', tiny_models) == os.path.join(tiny_models, 'tiny')
    assert sorted(os.listdir(os.path.join(tiny_models, 'tiny'))) == SEVEN_FILES


@pytest.mark.parametrize('name', [name for name in SEVEN_FILES if name != 'model.ckpt.meta'])  # which nothing reads
def test_a_missing_file_is_named_with_its_folder_and_the_remedy(models_dir, name):
    os.remove(tiny_file(models_dir, name))
    with pytest.raises(FileNotFoundError) as error:
        checkpoint.model_dir('tiny', models_dir)
    for part in (name, os.path.join(models_dir, 'tiny'), 'download_model.py'):
        assert part in str(error.value)


def test_all_missing_files_are_named_at_once(models_dir):
    for name in ('encoder.json', 'hparams.json', 'vocab.bpe'):
        os.remove(tiny_file(models_dir, name))
    with pytest.raises(FileNotFoundError, match='encoder.json.*vocab.bpe') as error:
        checkpoint.model_dir('tiny', models_dir)
    assert 'hparams.json' in str(error.value)


@pytest.mark.parametrize('name, command', [
    ('117M', 'download_model.py 117M'), ('1558M', 'download_model.py 1558M'), ('mine', 'download_model.py 124M')])
def test_a_missing_model_is_answered_with_the_command_and_what_there_is(tiny_models, name, command):
    with pytest.raises(FileNotFoundError, match=command) as error:
        checkpoint.model_dir(name, tiny_models)
    assert name in str(error.value) and tiny_models in str(error.value) and 'tiny' in str(error.value)


def test_a_relative_models_dir_is_looked_up_from_here_and_then_from_the_repository(models_dir, tmp_path, monkeypatch):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(str(elsewhere))
    monkeypatch.setattr(releases, 'REPOSITORY', str(tmp_path))
    assert os.path.samefile(checkpoint.model_dir('tiny'), os.path.join(models_dir, 'tiny'))
    shutil.copytree(models_dir, 'models')
    assert os.path.samefile(checkpoint.model_dir('tiny'), str(elsewhere / 'models' / 'tiny'))


def test_models_dir_may_start_with_the_home_folder(models_dir, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert os.path.samefile(checkpoint.model_dir('tiny', '~/models'), os.path.join(models_dir, 'tiny'))


@pytest.mark.parametrize('models_dir', ['~/mine', '$MINE', '${MINE}/../mine'])
def test_a_new_model_is_made_where_model_folder_finds_it(tmp_path, monkeypatch, models_dir):
    """~ and variables mean what they mean in a shell."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('MINE', str(tmp_path / 'mine'))
    (tmp_path / 'mine').mkdir()
    folder = checkpoint.new_model_dir('new', models_dir)
    assert folder == str(tmp_path / 'mine' / 'new')
    os.mkdir(folder)
    assert releases.model_folder('new', models_dir) == folder


def test_a_new_model_is_made_in_the_models_of_the_working_directory_or_else_of_the_repository(tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(str(tmp_path / 'here'))
    monkeypatch.setattr(releases, 'REPOSITORY', str(tmp_path))
    assert checkpoint.new_model_dir('new') == str(tmp_path / 'models' / 'new')
    (tmp_path / 'here' / 'models').mkdir()
    assert checkpoint.new_model_dir('new') == str(tmp_path / 'here' / 'models' / 'new')
    assert checkpoint.new_model_dir(7, str(tmp_path / 'far')) == str(tmp_path / 'far' / '7')


# load_hparams

def test_released_hparams_are_read(shared):
    assert checkpoint.load_hparams('117M', shared).values() == {
        'n_vocab': 50257, 'n_ctx': 1024, 'n_embd': 768, 'n_head': 12, 'n_layer': 12}


@pytest.mark.parametrize('content, said', [
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 2}', 'n_layer'),
    ('{}', 'n_vocab, n_ctx, n_embd, n_head, n_layer'),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2, "dropout": 0.1}', 'dropout'),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 3, "n_layer": 2}', 'n_head.*divide'),
    ('{"n_vocab": 257, "n_ctx": "32", "n_embd": 8, "n_head": 2, "n_layer": 2}', "n_ctx is '32'"),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 8, "n_head": 0, "n_layer": 2}', 'n_head is 0'),
    ('{"n_vocab": 100000000000000000000, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2}', 'n_vocab is 1000.* 2147483647'),
    ('{"n_vocab": 257, "n_ctx": 32, "n_embd": 1e400, "n_head": 2, "n_layer": 2}', 'n_embd is inf'),
    ('{"n_vocab": 258, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2}', '257 tokens.*258'),
    ('{"n_vocab": 256, "n_ctx": 32, "n_embd": 8, "n_head": 2, "n_layer": 2}', '257 tokens.*256'),
    ('[' * 100000 + ']' * 100000, 'nested'), ('[257, 32, 8, 2, 2]', None), ('2', None), ('null', None), ('', None),
    ('{"n_vocab": 257, ', None), (ERROR_PAGE.decode('ascii'), None)])
def test_hparams_that_describe_no_model_are_refused(models_dir, content, said):
    path = tiny_file(models_dir, 'hparams.json')
    overwrite(path, content.encode('utf-8'))
    with pytest.raises(ValueError, match=said) as error:
        checkpoint.load_hparams('tiny', models_dir)
    assert os.path.dirname(path) in str(error.value) and 'hparams.json' in str(error.value)
    assert '\n' not in str(error.value) and len(str(error.value)) < 400


# restore

def test_every_variable_is_restored(network, tiny_models):
    assert_same_weights(restored_weights(network, tiny_models), tiny_weights())


def test_the_restored_model_computes_what_the_papers_say(sess, tiny_models):
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


def test_restore_changes_only_the_model_s_variables(sess, tiny_models):
    """Not an optimizer's, whose names begin like the model's, nor those of a scope whose name begins like the model's."""
    build(tiny_models)
    others = [tf.get_variable('model/wte/Adam', initializer=3.0, trainable=False),
              tf.get_variable('model_b/w', initializer=4.0), tf.get_variable('step', initializer=5.0)]
    sess.run([variable.initializer for variable in others])
    checkpoint.restore(sess, 'tiny', tiny_models)
    assert sess.run(others) == [3.0, 4.0, 5.0]


def test_restore_before_the_graph_is_built_is_refused(sess, tiny_models):
    with pytest.raises(ValueError, match='build the model first'):
        checkpoint.restore(sess, 'tiny', tiny_models)


@pytest.mark.parametrize('changes, named, n_more', [
    (dict(n_layer=4, n_ctx=16), ['model/wpe has shape [32, 8] instead of [16, 8]', 'model/h2/attn/c_attn/b is missing',
                                 'model/h2/attn/c_attn/w is missing'], 22),
    (dict(n_layer=1), ['model/h1/attn/c_attn/b is left over', 'model/h1/attn/c_attn/w is left over',
                       'model/h1/attn/c_proj/b is left over'], 9),
    (dict(n_ctx=31), ['model/wpe has shape [32, 8] instead of [31, 8]'], 0)], ids=['more layers', 'fewer layers', 'context'])
def test_weights_of_another_model_are_refused(sess, tiny_models, changes, named, n_more):
    """Before anything is restored. The message names the first three variables and counts the others."""
    build(tiny_models, **changes)
    with pytest.raises(ValueError) as error:
        checkpoint.restore(sess, 'tiny', tiny_models)
    prefix = os.path.join(tiny_models, 'tiny', 'model.ckpt')
    assert str(error.value) == 'the weights in %s.* do not fit hparams.json: %s%s; take both from the same model' % (
        prefix, ', '.join(named), ' and %d more' % n_more if n_more else '')
    assert len(sess.run(tf.report_uninitialized_variables())) == len(tf.global_variables())


def test_other_variables_in_a_checkpoint_of_a_training_are_ignored(sess, tiny_models, tmp_path):
    """An optimizer's averages under the variables' names, a step, another network."""
    build(tiny_models)
    shutil.copytree(os.path.join(tiny_models, 'tiny'), str(tmp_path / 'tiny'))
    with tf.Graph().as_default(), tf.Session() as other:
        weights = dict(tiny_weights(), **{name: np.zeros([2]) for name in (
            'model/wte/Adam', 'model/h0/attn/c_attn/w/Adam_1', 'beta1_power', 'global_step', 'model_b/h5/w', 'other/model/w')})
        for name, array in weights.items():
            tf.Variable(tf.placeholder(tf.float32, array.shape), name=name)
        tiny.assign(other, weights)
        tf.train.Saver().save(other, str(tmp_path / 'tiny' / 'model.ckpt'))
    checkpoint.restore(sess, 'tiny', str(tmp_path))
    assert_same_weights({variable.op.name: sess.run(variable) for variable in tf.global_variables()}, tiny_weights())


def refusal(network, models_dir):
    """The message with which restore refuses the tiny model, or None if it restored every weight as it should be."""
    try:
        found = restored_weights(network, models_dir)
    except ValueError as error:
        return str(error)
    assert_same_weights(found, tiny_weights())


def assert_refused_in_plain_words(network, models_dir):
    message = refusal(network, models_dir)
    assert message is not None
    assert 'truncated or corrupt' in message and os.path.join(models_dir, 'tiny', 'model.ckpt') in message
    assert '\n' not in message and 'node' not in message.lower() and len(message) < 400


@pytest.mark.parametrize('name', [DATA, INDEX])
@pytest.mark.parametrize('n_kept', [0, 1, 0.5, -1], ids=['empty', 'one byte', 'half', 'all but one byte'])
def test_truncated_weights_are_refused(network, models_dir, name, n_kept):
    path = tiny_file(models_dir, name)
    content = content_of(path)
    overwrite(path, content[:int(n_kept * len(content)) if n_kept == 0.5 else n_kept])
    assert_refused_in_plain_words(network, models_dir)


@pytest.mark.parametrize('name', [DATA, INDEX])
def test_an_error_page_in_place_of_weights_is_refused(network, models_dir, name):
    overwrite(tiny_file(models_dir, name), ERROR_PAGE)
    assert_refused_in_plain_words(network, models_dir)


@pytest.mark.parametrize('place', [0, 0.1, 0.5, 0.9, 1])
def test_a_wrong_byte_in_the_weights_is_noticed(network, models_dir, place):
    path = tiny_file(models_dir, DATA)
    content = bytearray(content_of(path))
    content[int(place * (len(content) - 1))] ^= 1
    overwrite(path, content)
    assert_refused_in_plain_words(network, models_dir)


def test_a_wrong_byte_in_the_index_does_no_harm(network, models_dir):
    """A few bytes mean nothing, and any other is noticed: there are never wrong weights, and no other exception."""
    path = tiny_file(models_dir, INDEX)
    content = content_of(path)
    n_refused = 0
    places = list(range(0, len(content), 47)) + list(range(len(content) - 48, len(content)))  # the footer, which has no CRC
    for place in places:
        overwrite(path, content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        n_refused += refusal(network, models_dir) is not None
    assert 0 < n_refused < len(places)


def read_everything(network, models_dir):
    """What a script reads of the tiny model."""
    encoder.get_encoder('tiny', models_dir)
    checkpoint.load_hparams('tiny', models_dir)
    checkpoint.restore(network, 'tiny', models_dir)


@contextlib.contextmanager
def permissions(modes):
    """Set permissions {path: mode} during a block, in which root becomes an ordinary user."""
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
    """A copy of the models_dir that everybody may read; pytest's own folders are private."""
    folder = tempfile.mkdtemp()
    shutil.copytree(os.path.join(tiny_models, 'tiny'), os.path.join(folder, 'tiny'))
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


on_posix = pytest.mark.skipif(not hasattr(os, 'geteuid'), reason='this system has other permissions')


@on_posix
@pytest.mark.parametrize('name, mode', [('', 0), ('tiny', 0), ('tiny', 0o444)] + [
    (os.path.join('tiny', name), 0) for name in SEVEN_FILES if name != 'model.ckpt.meta'])
def test_a_file_without_permission_is_not_called_missing_or_corrupt(network, open_models_dir, name, mode):
    """Likewise a folder without permission, or one that may be listed but not entered. The message has the path."""
    path = os.path.join(open_models_dir, name) if name else open_models_dir
    read_everything(network, open_models_dir)
    with pytest.raises(PermissionError, match='Permission denied') as error, permissions({path: mode}):
        read_everything(network, open_models_dir)
    assert path in str(error.value)


@on_posix
def test_a_folder_that_may_be_entered_but_not_listed(network, open_models_dir):
    """TensorFlow 1.12 lists it; newer ones need not."""
    folder = os.path.join(open_models_dir, 'tiny')
    with permissions({folder: 0o111}):
        try:
            read_everything(network, open_models_dir)
        except PermissionError as error:
            assert folder in str(error)


@pytest.mark.parametrize('content', [b'', ERROR_PAGE, b'\xff\xfe\x00'])
def test_a_checkpoint_file_that_names_no_weights_is_refused(models_dir, content):
    overwrite(tiny_file(models_dir, 'checkpoint'), content)
    with pytest.raises(ValueError, match='names no checkpoint') as error:
        checkpoint.model_dir('tiny', models_dir)
    assert tiny_file(models_dir, 'checkpoint') in str(error.value)


@pytest.mark.parametrize('named', ['/home/somebody/models/old/model.ckpt', '../old/model.ckpt'])
def test_a_model_that_was_moved_is_found_where_it_is(network, models_dir, named):
    """TensorFlow's own Saver may write where the weights were when it saved them."""
    overwrite(tiny_file(models_dir, 'checkpoint'), ('model_checkpoint_path: "%s"\n' % named).encode('utf-8'))
    assert_same_weights(restored_weights(network, models_dir), tiny_weights())


# save

@pytest.fixture
def save(network, tiny_models, tmp_path):
    """Returns save(weights, options of checkpoint.save): a save of the network with these weights into tmp_path/mine."""
    hparams = checkpoint.load_hparams('tiny', tiny_models)

    def save(weights, **options):
        with network.graph.as_default():
            tiny.assign(network, weights)
        checkpoint.save(network, str(tmp_path / 'mine'), hparams, os.path.join(tiny_models, 'tiny'), **options)
    return save


def test_a_saved_model_is_complete_and_restores_to_the_same_weights(network, save, tiny_models, tmp_path):
    weights = tiny_weights(seed=1)
    save(weights)
    assert sorted(os.listdir(str(tmp_path / 'mine'))) == SEVEN_FILES
    assert checkpoint.model_dir('mine', str(tmp_path)) == str(tmp_path / 'mine')
    assert_same_weights(restored_weights(network, str(tmp_path), 'mine'), weights)
    for name in ('encoder.json', 'vocab.bpe'):
        assert content_of(str(tmp_path / 'mine' / name)) == content_of(tiny_file(tiny_models, name))
    assert json.loads(content_of(str(tmp_path / 'mine' / 'hparams.json')).decode('utf-8')) == {
        'n_vocab': 257, 'n_ctx': 32, 'n_embd': 8, 'n_head': 2, 'n_layer': 2}


def test_tensorflow_itself_finds_a_saved_model(network, save, tmp_path):
    """Also when the folder has moved. The model holds the release's variables and no others."""
    save(tiny_weights())
    os.rename(str(tmp_path / 'mine'), str(tmp_path / 'moved'))
    prefix = tf.train.latest_checkpoint(str(tmp_path / 'moved'))
    assert prefix == str(tmp_path / 'moved' / 'model.ckpt')
    shapes = tiny.variable_shapes(tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB))
    assert sorted(tf.train.list_variables(prefix)) == sorted(shapes)
    assert_same_weights(restored_weights(network, str(tmp_path), 'moved'), tiny_weights())


def test_saving_again_replaces_the_weights(network, save, tmp_path):
    """And not the vocabulary, which stays the same while a model is trained."""
    inodes = []
    for seed in (1, 2):
        save(tiny_weights(seed=seed))
        inodes.append([os.stat(str(tmp_path / 'mine' / name)).st_ino for name in checkpoint.VOCABULARY_FILES])
    assert inodes[0] == inodes[1]
    assert sorted(os.listdir(str(tmp_path / 'mine'))) == SEVEN_FILES
    assert_same_weights(restored_weights(network, str(tmp_path), 'mine'), tiny_weights(seed=2))


def test_numbered_saves_that_are_not_kept_are_removed(network, save, tmp_path):
    for step in (9, 10, 100):
        save(tiny_weights(seed=step), step=step, keep=2)
    weights = sorted(name for name in os.listdir(str(tmp_path / 'mine')) if name.startswith('model.ckpt'))
    assert weights == [name.replace('ckpt', 'ckpt-%d' % step)
                       for step in (10, 100) for name in (DATA, INDEX, 'model.ckpt.meta')]
    assert_same_weights(restored_weights(network, str(tmp_path), 'mine'), tiny_weights(seed=100))


@pytest.mark.parametrize('n_done', range(5))
def test_a_save_that_breaks_off_leaves_a_whole_model(network, save, tmp_path, monkeypatch, n_done):
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


# memory

def test_running_out_of_memory_is_reported_with_the_remedy(sess):
    """Whether TensorFlow or Python runs out of it. Other errors pass."""
    tensor = tf.random_uniform([2 ** 24, 2 ** 24])  # 1 PB: no process has so many addresses
    for fail in (lambda: sess.run(tensor), lambda: bytearray(2 ** 60)):
        with pytest.raises(ValueError) as error, checkpoint.out_of_memory('give a lower --batch_size'):
            fail()
        assert str(error.value) == 'out of memory; give a lower --batch_size'
    with pytest.raises(ZeroDivisionError), checkpoint.out_of_memory('give a lower --batch_size'):
        1 / 0


def test_weights_that_do_not_fit_into_memory_are_not_called_corrupt(network, tiny_models, monkeypatch):
    class Saver(object):
        def restore(self, sess, prefix):
            raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor with shape[50257,768]')

    monkeypatch.setattr(checkpoint, 'saver', lambda graph, variables: Saver())
    with network.graph.as_default(), pytest.raises(ValueError, match='out of memory; the weights in .*tiny.model.ckpt') as error:
        checkpoint.restore(network, 'tiny', tiny_models)
    assert 'corrupt' not in str(error.value)


# session

@pytest.mark.parametrize('gpu, n_cores, n_parts, expected', [
    (False, 2, 2, (2, 1)), (False, 9, 4, (4, 2)), (False, 1, 1, (1, 1)), (True, 8, 1, (0, 0))])
def test_the_parts_of_the_work_get_equal_parts_of_the_cores(monkeypatch, gpu, n_cores, n_parts, expected):
    """In a session for sampling. On a GPU, and in every other session, TensorFlow decides (0).

    Every session runs on the CPU what a GPU cannot, and takes a GPU's memory as it needs it.
    """
    Session = tf.Session
    configs = []
    monkeypatch.setattr(tf, 'Session', lambda target, config: configs.append(config) or Session(config=config))
    monkeypatch.setattr(process, 'n_cores', lambda: n_cores)
    monkeypatch.setattr(kernels, 'on_gpu', lambda: gpu)
    monkeypatch.setattr(kernels, 'n_parts', lambda: n_parts)
    for sampling, threads in ((True, expected), (False, (0, 0))):
        with checkpoint.session(sampling=sampling):
            assert (configs[-1].inter_op_parallelism_threads, configs[-1].intra_op_parallelism_threads) == threads
            assert configs[-1].allow_soft_placement and configs[-1].gpu_options.allow_growth


@pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.x has no TensorFloat-32')
def test_samples_are_computed_in_full_float32():
    """A setting of the process, which XLA reads when it compiles. What else a process computes keeps TensorFlow's own."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    tf.config.experimental.enable_tensor_float_32_execution(True)
    with checkpoint.session():
        assert enabled()
    with checkpoint.session(sampling=True):
        assert not enabled()
    tf.config.experimental.enable_tensor_float_32_execution(True)


def test_a_session_that_is_left_by_ctrl_c_does_not_wait_for_its_step():
    """TensorFlow 1.12 would: a user would wait for a whole batch of samples."""
    may_end, began, ended = threading.Event(), threading.Event(), threading.Event()

    def step():
        began.set()
        may_end.wait(20)
        ended.set()

    with tf.Graph().as_default():
        operation = tf.py_func(step, [], [])
        with pytest.raises(KeyboardInterrupt):
            with checkpoint.session() as sess:
                running = threading.Thread(target=sess.run, args=(operation,))
                running.start()
                assert began.wait(60)
                raise KeyboardInterrupt
    assert not ended.is_set(), 'the session waited for its step'
    may_end.set()
    running.join()


# checksum

@pytest.mark.parametrize('name', ['model.ckpt.data-00000-of-00001', 'hparams.json', 'encoder.json', 'vocab.bpe'])
def test_a_models_checksum_is_that_of_all_that_decides_what_it_writes(tiny_models, tmp_path, name):
    before = checkpoint.checksum('tiny', tiny_models)
    shutil.copytree(os.path.join(tiny_models, 'tiny'), str(tmp_path / 'other'))
    assert checkpoint.checksum('other', str(tmp_path)) == before
    with open(str(tmp_path / 'other' / name), 'ab') as file:
        file.write(b' ')
    assert checkpoint.checksum('other', str(tmp_path)) != before


# precision

@pytest.mark.parametrize('precision', ['half', 'INT8', ''])
def test_a_precision_that_is_none_is_refused_with_those_there_are(precision):
    with pytest.raises(ValueError, match='must be one of float32, int8'):
        checkpoint.check_precision(precision)


def test_in_float32_variables_are_what_they_are():
    with tf.Graph().as_default(), checkpoint.precision('float32'):
        assert tf.get_variable_scope().custom_getter is None and tf.get_variable_scope().name == ''


@pytest.mark.skipif(not tf.__version__.startswith('1.'), reason='needs TensorFlow 1')
def test_tensorflow_1_says_that_it_cannot_multiply_8_bit_weights():
    with pytest.raises(ValueError, match='TensorFlow 1.12.0 on this processor cannot multiply 8-bit weights; use --precision'):
        checkpoint.precision('int8')


@pytest.mark.parametrize('broken', ['a product that is wrong', 'no such operation', 'an operation that fails'])
def test_a_processor_or_tensorflow_that_cannot_is_told_so(monkeypatch, broken):
    def product(byte_RN, values_NM, bias_M):
        if broken == 'no such operation':
            raise AttributeError("module 'tensorflow' has no such attribute")
        return tf.placeholder(tf.float32) if broken == 'an operation that fails' else tf.fill([2, 32], 32767.0)

    monkeypatch.setattr(int8, 'whole_product', product)
    int8.check.cache_clear()
    try:
        with pytest.raises(ValueError, match='cannot multiply 8-bit weights; use --precision float32'):
            checkpoint.precision('int8')
    finally:
        int8.check.cache_clear()


def test_a_gpu_is_not_left_out_silently(monkeypatch):
    monkeypatch.setattr(kernels, 'on_gpu', lambda: True)
    with pytest.raises(ValueError, match='for a CPU; use --precision float32'):
        checkpoint.precision('int8')
