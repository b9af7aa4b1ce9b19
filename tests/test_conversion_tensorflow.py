"""convert.py to-savedmodel and to-litert, used without anything of ours; and copies of other trainers' checkpoints."""
import json
import os
import shutil
import sys

import numpy as np
import pytest

from gpt2 import checkpoint
from gpt2.evaluation import loading
from gpt2.evaluation.documents import Options
from gpt2.fast import lite
from gpt2.sampler import Sampler
from gpt2.system import tensor_bundle
from gpt2.system.tf1 import litert, tf
import convert
import encoder
from helpers import tiny
from helpers.processes import environment, finished

SEVEN_FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001', 'model.ckpt.index',
               'model.ckpt.meta', 'vocab.bpe']
# Loads the SavedModel in the way of either TensorFlow, calls its signatures with the inputs in a file, and prints what
# they return, or the error. Then it runs saved_model_cli.
PROGRAM = """
import json, sys
import numpy as np
import tensorflow as tf
assert 'gpt2' not in sys.modules and 'model' not in sys.modules
folder, calls, output = sys.argv[1], json.load(open(sys.argv[2])), []
types = {'temperature': np.float32, 'top_p': np.float32, 'draws': np.float64}
if tf.__version__.startswith('1.'):
    sess = tf.Session()
    signatures = tf.saved_model.loader.load(sess, ['serve'], folder).signature_def
    def call(name, inputs):
        ends = signatures[name]
        outputs = {key: info.name for key, info in ends.outputs.items()}
        assert set(inputs) == set(ends.inputs)
        return sess.run(outputs, {ends.inputs[key].name: value for key, value in inputs.items()})
else:
    loaded = tf.saved_model.load(folder)
    def call(name, inputs):
        inputs = {key: tf.constant(value, types.get(key, np.int32)) for key, value in inputs.items()}
        return {key: value.numpy() for key, value in loaded.signatures[name](**inputs).items()}
for name, inputs in calls:
    try:
        output.append({key: value.tolist() for key, value in call(name, inputs).items()})
    except tf.errors.InvalidArgumentError as error:
        output.append(str(error))
print(json.dumps(output))
from tensorflow.python.tools import saved_model_cli
sys.argv = ['saved_model_cli', 'run', '--dir', folder, '--tag_set', 'serve', '--signature_def', 'score',
            '--input_exprs', 'tokens=[[10, 20, 30]];lengths=[3]']
saved_model_cli.main()
"""


@pytest.fixture(scope='module')
def served(tiny_models, tmp_path_factory):
    """Path of the tiny model as a SavedModel for TensorFlow Serving."""
    folder = str(tmp_path_factory.mktemp('served') / 'tiny')
    convert.to_savedmodel('tiny', folder, models_dir=tiny_models)
    return folder


def test_models_are_written_where_tensorflow_would_not_find_them(tiny_models, tmp_path):
    """It takes a path for UTF-8, though the folder can be made."""
    folder = os.path.join(str(tmp_path), os.fsdecode(b'mod\xe8les [1]'))
    os.mkdir(folder)
    convert.copy('tiny', 'mine', models_dir=tiny_models, new_models_dir=folder)
    assert sorted(os.listdir(os.path.join(folder, 'mine'))) == SEVEN_FILES
    convert.to_savedmodel('mine', os.path.join(folder, 'served'), models_dir=folder)
    assert 'saved_model.pb' in os.listdir(os.path.join(folder, 'served', '1'))


@pytest.mark.slow
def test_savedmodel_in_a_program_that_knows_nothing_of_this_repository(tiny_models, served, tmp_path):
    """Samples equal ours for the same draws, scores those of evaluate.py; a seed decides each row's own samples."""
    prompts, length = [[10, 20, 30], [40, 50, 60, 70, 80]], 9
    tokens = [prompt + [-5] * (5 - len(prompt)) for prompt in prompts]  # what is behind a text is ignored
    lengths = list(map(len, prompts))
    draws = np.random.RandomState(0).random_sample([2, length])
    settings = dict(tokens=tokens, lengths=lengths, temperature=.8, top_k=40, top_p=.9)
    with_seed = dict(settings, seed=3, length=length)
    good = [('sample_from_draws', dict(settings, draws=draws.tolist())),
            ('sample_from_draws', dict(settings, draws=draws.tolist(), temperature=0, top_k=0, top_p=1)),
            ('score', dict(tokens=tokens, lengths=lengths)),
            ('sample', with_seed), ('sample', with_seed), ('sample', dict(with_seed, seed=4)),
            ('sample', dict(with_seed, tokens=[prompts[0]], lengths=[3])),
            ('score', dict(tokens=[[1] * 33], lengths=[33])),
            ('sample', dict(with_seed, tokens=[prompts[1]] * 2, lengths=[5] * 2, length=28))]
    bad = [('top_k', -1, 'top_k must be'), ('top_p', 0, 'top_p must be over 0'),
           ('top_p', 1.5, 'top_p must be at most'), ('temperature', -1, 'temperature must be'),
           ('length', 0, 'length must be 1'),
           ('length', 29, 'exceed the context'), ('lengths', [3, 6], 'at most the width'),
           ('lengths', [0, 5], 'lengths must be 1'), ('tokens', [[1] * 5, [257] * 5], 'not in the vocabulary'),
           ('tokens', [[1] * 5, [-1] * 5], 'below 0')]
    calls = good + [('sample', dict(with_seed, **{name: value})) for name, value, _ in bad]
    program, inputs = tmp_path / 'program.py', tmp_path / 'calls.json'
    program.write_text(PROGRAM)
    inputs.write_text(json.dumps(calls))
    status, stdout, stderr = finished([sys.executable, str(program), os.path.join(served, '1'), str(inputs)],
                                      env=environment(TF_CPP_MIN_LOG_LEVEL='3'), cwd=str(tmp_path))
    assert status == 0, stderr.decode('utf-8')[-3000:]
    lines = stdout.decode('utf-8').split('\n')
    found = json.loads(lines[0])

    with Sampler('tiny', tiny_models) as ours:
        for output, options in zip(found, (dict(temperature=.8, top_k=40, top_p=.9), dict(temperature=0))):
            rows = ours.build(2, length=length, ragged=True, **options)(prompts, draws)
            for row, prompt, new in zip(output['tokens'], prompts, rows):
                assert row[:len(prompt) + length] == prompt + new
    with loading.load('tiny', tiny_models, Options(None, None, 1, None)) as scorer:
        nats = [scorer.score([prompt])[0] for prompt in prompts]
        np.testing.assert_allclose(found[7]['nats'], scorer.score([[1] * 33]), rtol=1e-5)
    np.testing.assert_allclose(found[2]['nats'], [list(nats[0]) + [0, 0], nats[1]], rtol=1e-5)
    assert found[3] == found[4] != found[5]
    assert found[6]['tokens'][0] == found[3]['tokens'][0][:12]
    one, other = found[8]['tokens']  # of one prompt, up to the end of the context
    assert one != other and len(one) == len(other) == 33
    for (name, value, words), message in zip(bad, found[len(good):]):
        assert words in message, (name, value, message)
    assert ' '.join(lines[1:]).count('nats') == 1  # what saved_model_cli has printed


def test_savedmodel_has_the_vocabulary_and_the_layout_of_serving(tiny_models, served):
    """A folder with the number of a version, and nothing of this machine's paths."""
    assert os.listdir(served) == ['1']
    assert sorted(os.listdir(os.path.join(served, '1'))) == ['assets', 'saved_model.pb', 'variables']
    for name in ('encoder.json', 'vocab.bpe'):
        with open(os.path.join(served, '1', 'assets', name), 'rb') as found, \
                open(os.path.join(tiny_models, 'tiny', name), 'rb') as expected:
            assert found.read() == expected.read()
    with open(os.path.join(served, '1', 'saved_model.pb'), 'rb') as file:
        assert tiny_models.encode('utf-8') not in file.read()


def test_litert_file_continues_a_text_as_the_network_of_8_bits(tmp_path, monkeypatch):
    """In any number of steps; what is in the free room of the past does not matter. By XNNPACK, and without it. The
    shapes in the file are those that LiteRT computes.
    """
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB, n_embd=64, n_head=2, n_layer=3, n_ctx=32)
    weights, path = tiny.random_weights(hparams, stddev=0.1), str(tmp_path / 'model.tflite')
    tiny.write_model(str(tmp_path / 'models' / 'odd'), hparams, weights)
    if tf.__version__.startswith('1.'):
        with pytest.raises(ValueError, match='needs TensorFlow 2'):
            convert.to_litert('odd', path, models_dir=str(tmp_path / 'models'))
        assert not os.path.exists(path)
        return
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr('gpt2.system.files.sync', lambda path: 1 / 0)
        convert.to_litert('odd', path, models_dir=str(tmp_path / 'models'))
    assert os.listdir(str(tmp_path)) == ['models'], 'no unfinished file'
    convert.to_litert('odd', path, models_dir=str(tmp_path / 'models'))
    with pytest.raises(ValueError, match='exists already'):
        convert.to_litert('odd', path, models_dir=str(tmp_path / 'models'))
    ids = np.random.RandomState(0).randint(0, hparams.n_vocab, [1, 20]).astype(np.int32)
    network = lite.Network(hparams, weights.__getitem__, 'int8')
    expected_TV = network.logits(network.states(ids, network.past(1, 20))[:, 0])
    kernels = sys.modules[litert()[0].__module__].OpResolverType
    for kind in kernels.AUTO, kernels.BUILTIN_WITHOUT_DEFAULT_DELEGATES:
        interpreter = litert()[0](path, experimental_op_resolver_type=kind)
        run, past, n_past = interpreter.get_signature_runner('next'), np.full([3, 2, 2, 25, 32], 1e3, np.float32), 0
        for n_new in (7, 1, 1, 11):
            found = run(tokens=ids[:, n_past:n_past + n_new], past=past, n_past=np.int32(n_past))
            past[:, :, :, n_past:n_past + n_new] = found['present']
            n_past += n_new
            difference_V = np.abs(found['logits'] - expected_TV[n_past - 1]) / np.ptp(expected_TV)
            # Other kernels may round a number to the other of two steps.
            assert difference_V.max() < 1e-6 if kind == kernels.AUTO else difference_V.mean() < 1e-3
        shapes = [entry['shape_signature'].tolist() for entry in interpreter.get_input_details()]
        assert shapes == [[1, -1], [3, 2, 2, -1, 32], []]
        for entry in interpreter.get_tensor_details():
            assert len(entry['shape_signature']) == len(entry['shape'])
            assert not ((entry['shape_signature'] != entry['shape']) & (entry['shape_signature'] != -1)).any()
    assert sorted(os.listdir(str(tmp_path))) == ['model.tflite', 'models']


# Checkpoints of other trainers

@pytest.fixture
def neighbour(tiny_models, tmp_path):
    """A folder `checkpoint` as gpt-2-simple leaves it: Adam's averages, a counter, and another machine's path."""
    folder = str(tmp_path / 'checkpoint' / 'run1')
    shutil.copytree(os.path.join(tiny_models, 'tiny'), folder)
    for name in SEVEN_FILES:
        if name.startswith('model.ckpt') or name == 'checkpoint':
            os.remove(os.path.join(folder, name))
    weights = tiny.random_weights(tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB))
    with tf.Graph().as_default(), tf.Session() as sess:
        for name, array in weights.items():
            for suffix in '', '/Adam', '/Adam_1':
                tf.Variable(array if not suffix else array * 0 + 7, name=name + suffix)
        for name in 'beta1_power', 'beta2_power':
            tf.Variable(.5, name=name)
        tf.Variable(1000, name='global_step')
        sess.run(tf.global_variables_initializer())
        tf.train.Saver().save(sess, os.path.join(folder, 'model'), global_step=1000)
    with open(os.path.join(folder, 'counter'), 'w', encoding='utf-8') as file:
        file.write('1000\n')
    with open(os.path.join(folder, 'checkpoint'), 'w', encoding='utf-8') as file:
        file.write('model_checkpoint_path: "C:\\\\gpt-2\\\\checkpoint/run1\\\\model-1000"\n')
    return os.path.dirname(folder)


@pytest.mark.slow
def test_neighbours_checkpoint_is_a_model_and_can_be_copied(neighbour, tiny_models, tmp_path, monkeypatch):
    """It samples as it lies there; the copy has the seven files of a release, and only the weights of the model."""
    (tmp_path / 'models').mkdir()
    monkeypatch.chdir(str(tmp_path))
    options = dict(length=8, seed=1)
    with Sampler('tiny', tiny_models) as tiny_model:
        expected = list(tiny_model.sample(['abc'], **options))
    with Sampler('run1', 'checkpoint') as there:
        assert list(there.sample(['abc'], **options)) == expected
    convert.copy('run1', 'mine', models_dir='checkpoint')
    with Sampler('mine') as copied:
        assert list(copied.sample(['abc'], **options)) == expected
    folder = str(tmp_path / 'models' / 'mine')
    assert sorted(os.listdir(folder)) == SEVEN_FILES
    found, original = tf.train.load_checkpoint(folder), tf.train.load_checkpoint(
        os.path.join(tiny_models, 'tiny', 'model.ckpt'))
    assert sorted(found.get_variable_to_shape_map()) == sorted(original.get_variable_to_shape_map())
    for name in original.get_variable_to_shape_map():
        np.testing.assert_array_equal(found.get_tensor(name), original.get_tensor(name))


def test_copy_names_what_is_damaged_and_writes_nothing(tiny_models, tmp_path):
    source = shutil.copytree(os.path.join(tiny_models, 'tiny'), str(tmp_path / 'models' / 'tiny'))
    data = os.path.join(source, 'model.ckpt.data-00000-of-00001')
    with open(data, 'r+b') as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ValueError, match='truncated or corrupt.*checksum'):
        convert.copy('tiny', 'mine', models_dir=str(tmp_path / 'models'), new_models_dir=str(tmp_path / 'models'))
    assert os.listdir(str(tmp_path / 'models')) == ['tiny']


@pytest.mark.parametrize('value, dtype, said', [
    (np.nan, 'float32', 'not finite'), (np.inf, 'float32', 'not finite'), (1, 'float64', 'is float64')])
def test_weights_that_are_no_float32_numbers_are_refused(tmp_path, value, dtype, said):
    """By the name of the first one, whatever they would become."""
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB)
    weights, models_dir = tiny.random_weights(hparams), str(tmp_path / 'models')
    weights['model/wpe'][3, 3] = value
    tiny.write_model(os.path.join(models_dir, 'odd'), hparams, weights)
    with tf.Graph().as_default(), tf.Session() as sess:
        for name, array in weights.items():
            tf.Variable(array.astype(dtype if name == 'model/wpe' else np.float32), name=name)
        sess.run(tf.global_variables_initializer())
        tf.train.Saver().save(sess, os.path.join(models_dir, 'odd', 'model.ckpt'))
    with pytest.raises(ValueError, match='model/wpe .*' + said):
        convert.copy('odd', 'new', models_dir=models_dir, new_models_dir=str(tmp_path))
    with pytest.raises(ValueError, match='model/wpe .*' + said):
        convert.to_transformers('odd', str(tmp_path / 'new'), dtype='float16', models_dir=models_dir)
    assert os.listdir(str(tmp_path)) == ['models']


# The files that are written

def test_written_checkpoint_is_read_by_tensorflow_and_by_us(tmp_path):
    """Tensors of no, one and many dimensions, of several pieces, and names that share their beginning."""
    random = np.random.RandomState(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in (
        ('a', []), ('a/b', [1]), ('a/bc', [2, 3, 4]), ('model/h10/x', [3, tensor_bundle.PIECE_BYTES // 4]),
        ('model/h1/x', [130]), ('none', [0, 5]))}
    prefix = str(tmp_path / 'model.ckpt')
    data, index = checkpoint.data_and_index(prefix)
    tensor_bundle.write(data, index, sorted(arrays.items()))
    tensor_bundle.check_data(data, index)
    assert {tensor.name: tuple(tensor.shape) for tensor in tensor_bundle.read_index(index)} == {
        name: array.shape for name, array in arrays.items()}
    reader = tf.train.load_checkpoint(prefix)
    assert set(reader.get_variable_to_shape_map()) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader.get_tensor(name), array)


def test_added_tokens_stay_with_a_vocabulary(tmp_path):
    """Those that look like words are in the first line of vocab.bpe; without it, the file would look truncated."""
    symbols = list(encoder.bytes_to_unicode().values()) + ['<|endoftext|>', 'Bo', 'Bob: é', '<|pad|>']
    encoder.write_vocabulary([], str(tmp_path / 'mine'), symbols, ['Bo', 'Bob: é'])
    found = encoder.get_encoder('mine', str(tmp_path))
    assert found.decode([257, 258, 259]) == 'BoBob: é<|pad|>' and found.special == symbols[256:]
    assert not {257, 258} & set(found.encode('Bob: é'))
    encoder.write_vocabulary([], str(tmp_path / 'cut'), symbols)
    with pytest.raises(ValueError, match='no merge results in 1 of'):
        encoder.get_encoder('cut', str(tmp_path))
