"""int8.py: products against NumPy's integers, networks against NumPy with the same rounded weights, and what is refused."""
import os
import shutil
import sys

import numpy as np
import pytest

import checkpoint
import corpus
import encoder
import evaluate
import int8
import kernels
import reference
import sample
import tiny
from conftest import ROOT
from evaluation.scorer import scorer
from test_flags import finished
from tf1 import tf

try:
    int8.check()
except ValueError as error:
    pytestmark = pytest.mark.skipif(True, reason='needs 8-bit products: %s' % error)

HPARAMS = dict(n_vocab=tiny.N_BYTE_VOCAB, n_embd=16, n_head=2, n_layer=2, n_ctx=32)


def random(seed=0):
    return np.random.RandomState(seed)


# A product

@pytest.mark.parametrize('shape', [(1, 1, 8), (1, 768, 33), (3, 768, 2304), (64, 3072, 768), (5, 17, 50)])
def test_the_product_of_bytes_is_that_of_integers(sess, shape):
    n_row, n_in, n_out = shape
    byte_RN, values_NM = random().randint(0, 256, [n_row, n_in]), random(1).randint(-127, 128, [n_in, n_out])
    bias_M = -128 * values_NM.sum(axis=0)
    expected = (byte_RN - 128) @ values_NM
    assert abs(byte_RN @ values_NM).max() < 2 ** 24  # float32 has all of it
    found = sess.run(int8.whole_product(tf.constant(byte_RN, tf.uint8), tf.constant(values_NM, tf.int8),
                                        tf.constant(bias_M, tf.float32)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('byte', [0, 255])
@pytest.mark.parametrize('value', [-127, 127])
def test_the_largest_sums_do_not_overflow(sess, byte, value):
    """3,072 numbers is what 117M adds up, 6,400 what 1558M does."""
    found = sess.run(int8.whole_product(tf.fill([2, 6400], np.uint8(byte)), tf.fill([6400, 8], np.int8(value)), tf.zeros([8])))
    assert (found == 6400 * value * byte).all()


def loaded(sess, weight_NM, n_parts=1):
    """A Weight of that matrix, made as a network makes it."""
    with tf.variable_scope('any', custom_getter=int8.getter(n_parts)):
        weight = tf.get_variable('w', [1] + list(weight_NM.shape))
    int8.load(sess, int8.weights_of(sess.graph), lambda name: weight_NM[None].astype(np.float32))
    return weight


def bound(x_RN, weight_NM, values_NM, scale_M):
    """How far a product may be from that of float32 weights: half a unit for each weight, and for each number of x."""
    unit_R1 = np.abs(x_RN).max(axis=1, keepdims=True) / 32639
    of_weights = np.abs(x_RN) @ np.broadcast_to(scale_M / 2, weight_NM.shape)
    return of_weights + unit_R1 / 2 * (np.abs(values_NM.astype(float)).sum(axis=0) * scale_M)


@pytest.mark.parametrize('n_parts', [1, 2, 3])
@pytest.mark.parametrize('n_row', [1, 2, 7])
@pytest.mark.parametrize('shape', [(256, 100), (100, 256)])
def test_a_product_is_as_near_to_that_of_float32_as_rounding_allows(sess, shape, n_row, n_parts):
    """Rows of very different size: each has a unit of its own. The weight is cut into parts of its rows, or of its columns."""
    n_in, n_out = shape
    x_RN = random().randn(n_row, n_in) * 10.0 ** np.arange(-3, n_row - 3)[:, None]
    weight_NM = random(1).randn(n_in, n_out).astype(np.float32) * random(2).rand(n_out).astype(np.float32)
    values_NM, scale_M = int8.rounded(weight_NM, 'w')
    found_RM = sess.run(loaded(sess, weight_NM, n_parts).product(tf.constant(x_RN, tf.float32)))
    exact_RM = x_RN @ weight_NM.astype(float)
    limit_RM = bound(x_RN, weight_NM, values_NM, scale_M.astype(float))
    assert (np.abs(found_RM - exact_RM) <= 1.001 * limit_RM).all()
    # and that of the rounded weights, as near as 16 bits of x are
    nearer_RM = bound(x_RN, weight_NM, values_NM, scale_M.astype(float) * 0)
    rounded_RM = x_RN @ (values_NM * scale_M.astype(float))
    unit_R1 = np.abs(x_RN).max(axis=1, keepdims=True) / 32639
    assert (np.abs(found_RM - rounded_RM) <= nearer_RM + 1.001 * unit_R1 / 2 * (
        np.abs(values_NM.astype(float)).sum(axis=0) * scale_M) + 1e-6 * np.abs(x_RN).max(axis=1, keepdims=True)).all()


def test_a_row_of_zeros_has_a_product_of_zeros(sess):
    weight = loaded(sess, random().randn(8, 3))
    assert (sess.run(weight.product(tf.zeros([2, 8]))) == 0).all()


# Rounding

def test_weights_are_rounded_to_the_nearest_of_255_steps():
    weight_NM = random().randn(50, 20).astype(np.float32)
    values_NM, scale_M = int8.rounded(weight_NM, 'w')
    assert values_NM.dtype == np.int8 and (np.abs(values_NM.astype(int)).max(axis=0) == 127).all()
    assert (np.abs(values_NM * scale_M - weight_NM) <= scale_M / 2 * 1.0001).all()


def test_columns_of_zeros_and_of_one_huge_number_are_what_they_were():
    weight_NM = np.zeros([4, 3], np.float32)
    weight_NM[2, 1] = 3e38
    weight_NM[:, 2] = 1e-40  # below what float32 has in full
    values_NM, scale_M = int8.rounded(weight_NM, 'w')
    np.testing.assert_allclose((values_NM * scale_M)[:, :2], weight_NM[:, :2], rtol=1e-6)
    assert np.isfinite(values_NM * scale_M).all()


@pytest.mark.parametrize('number', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_an_error_with_their_name(number):
    weight_NM = np.ones([3, 3], np.float32)
    weight_NM[1, 2] = number
    with pytest.raises(ValueError, match='model/h0/mlp/c_fc/w holds numbers that are not finite'):
        int8.rounded(weight_NM, 'model/h0/mlp/c_fc/w')


# A network

def matrices(weights):
    return [name for name in weights if name.endswith('/w') or name == 'model/wte']


def rounded_weights(weights):
    """The weights as NumPy multiplies them in 8 bits; and in full precision the table of which rows are looked up."""
    found = dict(weights)
    for name in matrices(weights):
        matrix_NM = weights[name].T if name == 'model/wte' else weights[name][0]
        scale_M = np.abs(matrix_NM).max(axis=0) / 127
        rounded_NM = np.rint(matrix_NM / scale_M) * scale_M
        found[name] = rounded_NM.T if name == 'model/wte' else rounded_NM[None]
    return found


def numpy_logits(weights, ids, n_head):
    """Logits of reference.py with rounded weights, where each token's vector is not rounded."""
    rounded = rounded_weights(weights)
    # reference.forward adds vectors of the table that it multiplies with: what rounding took from them comes in by wpe.
    logits = []
    for row in ids:
        shifted = dict(rounded)
        shifted['model/wpe'] = weights['model/wpe'][:len(row)] + (weights['model/wte'] - rounded['model/wte'])[row]
        logits.append(reference.forward(shifted, [row], n_head)[0][0])
    return np.array(logits)


@pytest.fixture(scope='module')
def models_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('models'))
    hparams = tiny.hparams(**HPARAMS)
    tiny.write_model(os.path.join(folder, 'tiny'), hparams, tiny.random_weights(hparams))
    return folder


def logits_of(models_dir, name, precision, ids):
    import model
    hparams = checkpoint.load_hparams(name, models_dir)
    with tf.Graph().as_default(), checkpoint.session() as sess:
        with checkpoint.precision(precision):
            logits = model.model(hparams, tf.constant(ids))['logits']
        checkpoint.restore(sess, name, models_dir)
        return sess.run(logits)


def test_logits_are_those_of_numpy_with_the_same_rounded_weights(models_dir):
    hparams = tiny.hparams(**HPARAMS)
    ids = random().randint(0, hparams.n_vocab, [3, 20])
    weights = tiny.random_weights(hparams)
    found, exact = [logits_of(models_dir, 'tiny', precision, ids) for precision in ('int8', 'float32')]
    expected = numpy_logits(weights, ids, hparams.n_head)
    rounding_of_weights = np.abs(expected - exact).max()
    assert rounding_of_weights > 0.01
    assert np.abs(found - expected).max() < 0.01 * rounding_of_weights  # 16 bits of the rows: a hundredth at most


def test_weights_that_are_multiples_of_a_scale_lose_nothing(tmp_path):
    hparams = tiny.hparams(**HPARAMS)
    weights = rounded_weights(tiny.random_weights(hparams))
    tiny.write_model(str(tmp_path / 'exact'), hparams, weights)
    ids = random().randint(0, hparams.n_vocab, [2, 20])
    found, expected = [logits_of(str(tmp_path), 'exact', precision, ids) for precision in ('int8', 'float32')]
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def sampled(models_dir, name='tiny', precision='int8', **options):
    hparams = checkpoint.load_hparams(name, models_dir)
    with tf.Graph().as_default(), checkpoint.precision(precision):
        tokens = sample.sample_sequence(hparams=hparams, **options)
        with checkpoint.session(sampling=True) as sess:
            checkpoint.restore(sess, name, models_dir)
            return sess.run(tokens)


def test_a_row_of_a_batch_is_what_it_is_alone(models_dir):
    """With prompts of different lengths, an end token, and rows that end early: a row's unit is its own."""
    context, lengths = random().randint(0, 256, [4, 6]), [6, 2, 5, 3]
    draws = random(3).rand(4, 20)
    together = sampled(models_dir, length=20, context=context, context_lengths=lengths, draws=draws, top_k=20, end_token=7)
    for row in range(4):
        alone = sampled(models_dir, length=20, context=context[row:row + 1, :lengths[row]], draws=draws[row:row + 1], top_k=20,
                        end_token=7)[0]
        n = min(len(alone), together.shape[1])
        np.testing.assert_array_equal(together[row, :n], alone[:n])


def test_one_token_after_the_other_is_what_the_whole_is(models_dir):
    """Greedy tokens of the loop are the likeliest by the logits of the whole text at once."""
    tokens = sampled(models_dir, length=25, context=[[1, 2, 3]], temperature=0)
    logits = logits_of(models_dir, 'tiny', 'int8', tokens[:, :-1])
    np.testing.assert_array_equal(logits.argmax(axis=-1)[0, 2:], tokens[0, 3:])


def test_the_demo_model_writes_what_it_writes_in_float32():
    """Nearly: where two tokens are equally likely, rounding may decide, and the texts part."""
    models_dir = os.path.join(ROOT, 'models')
    text_encoder = encoder.get_encoder('demo', models_dir)
    prompts = [text_encoder.encode(text)[:4] for text in (
        'Once upon a time there', 'The old king was very', 'In the middle of the wood', 'Little Bear said to his')]
    greedy = [sampled(models_dir, 'demo', precision, length=20, context=prompts, temperature=0)
              for precision in ('float32', 'int8')]
    assert (greedy[0] == greedy[1]).mean() > 0.75


def test_the_demo_model_is_hardly_worse(shared):
    models_dir = os.path.join(ROOT, 'models')
    hparams, text_encoder = checkpoint.load_hparams('demo', models_dir), encoder.get_encoder('demo', models_dir)
    with open(os.path.join(shared, 'corpus', 'valid.txt'), encoding='utf-8') as file:
        tokens = text_encoder.encode(file.read(60000))
    nats = []
    for precision in ('float32', 'int8'):
        with tf.Graph().as_default(), checkpoint.session() as sess, checkpoint.precision(precision):
            score = scorer(sess, hparams)
            checkpoint.restore(sess, 'demo', models_dir)
            nats.append(np.mean([score(ids[None], first).mean() for ids, first in corpus.windows(
                np.array(tokens), n_ctx=hparams.n_ctx, stride=hparams.n_ctx)]))
    assert abs(nats[1] - nats[0]) < 0.001  # a thousandth of the perplexity


def test_texts_and_benchmarks_are_measured_with_8_bit_weights(tmp_path, capsys):
    """Figures that differ from float32's, by less than a thousandth of the nats."""
    (tmp_path / 'lambada.jsonl').write_text('{"text": "Peter Rabbit ran as fast as he could to the wood"}\n' * 3)
    nats, perplexities = [], []
    for precision in ('float32', 'int8'):
        evaluate.text(os.path.join(ROOT, 'tests', 'held_out.txt'), model_name='demo', precision=precision)
        nats += [float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line.startswith('nats')]
        evaluate.COMMANDS['lambada'](str(tmp_path / 'lambada.jsonl'), model_name='demo', precision=precision)
        perplexities += [line.split('|')[4] for line in capsys.readouterr().out.splitlines()
                         if 'as it is; last word; perplexity' in line]
    assert nats[0] != nats[1] and abs(nats[1] / nats[0] - 1) < 0.001
    assert perplexities[0] != perplexities[1] and abs(float(perplexities[1]) / float(perplexities[0]) - 1) < 0.05


def test_the_matrices_of_the_network_are_multiplied_in_8_bits_and_no_others_kept(models_dir):
    hparams = checkpoint.load_hparams('tiny', models_dir)
    with tf.Graph().as_default() as graph, checkpoint.precision('int8'):
        sample.sample_sequence(hparams=hparams, length=5, context=[[1]] * 2)
        products = [op for op in graph.get_operations() if op.type == '_MklQuantizedMatMulWithBiasAndDequantize']
        assert len(products) == kernels.n_parts() * (4 * hparams.n_layer + 1)
        assert not [op for op in graph.get_operations() if op.type == 'MatMul']
        kept = set(checkpoint.model_variables(graph))
    weights = tiny.random_weights(hparams)
    assert kept == set(weights).difference(matrices(weights)) | {'model/wte'}


# What is refused

def test_a_session_takes_its_weights_once(models_dir):
    """Else it would go on multiplying with the packed ones of the first time, silently."""
    import model
    with tf.Graph().as_default(), checkpoint.session() as sess, checkpoint.precision('int8'):
        model.model(checkpoint.load_hparams('tiny', models_dir), tf.constant([[1]]))
        checkpoint.restore(sess, 'tiny', models_dir)
        with pytest.raises(ValueError, match='takes 8-bit weights once'):
            checkpoint.restore(sess, 'tiny', models_dir)
        scorer(sess, checkpoint.load_hparams('tiny', models_dir))  # the same weights, asked for again
        with pytest.raises(ValueError, match='takes 8-bit weights once'):
            checkpoint.restore(sess, 'tiny', models_dir)


def test_of_two_networks_in_a_graph_each_is_loaded_under_its_scope(models_dir):
    import model
    hparams, found = checkpoint.load_hparams('tiny', models_dir), []
    with tf.Graph().as_default(), checkpoint.session() as sess, checkpoint.precision('int8'):
        logits = {scope: model.model(hparams, tf.constant([[1, 2]]), scope=scope)['logits'] for scope in ('model', 'second')}
        for scope in logits:
            checkpoint.restore(sess, 'tiny', models_dir, scope=scope)
            found.append(sess.run(logits[scope]))
    np.testing.assert_array_equal(*found)


def test_what_does_not_fit_is_told_as_in_float32(models_dir, tmp_path):
    """A matrix of another shape, one that is missing, and one too many."""
    hparams = tiny.hparams(**HPARAMS)
    for name, problem in (('model/h1/mlp/c_fc/w', 'is missing'), ('model/h0/attn/c_attn/w', 'has shape'),
                          ('model/h2/mlp/c_fc/w', 'is left over')):
        weights = tiny.random_weights(hparams)
        array = weights.pop(name, np.zeros([1, 16, 64], np.float32))
        if 'shape' in problem:
            weights[name] = array[:, :, 1:]
        elif 'left' in problem:
            weights[name] = array
        folder = str(tmp_path / problem.split()[-1])
        tiny.write_model(os.path.join(folder, 'wrong'), hparams, weights)
        with pytest.raises(ValueError, match='%s %s' % (name, problem)):
            logits_of(folder, 'wrong', 'int8', [[1, 2]])


def test_damaged_weights_are_told_in_one_line(models_dir, tmp_path):
    shutil.copytree(os.path.join(models_dir, 'tiny'), str(tmp_path / 'cut'))
    with open(str(tmp_path / 'cut' / 'model.ckpt.data-00000-of-00001'), 'rb+') as file:
        file.truncate(100)
    with pytest.raises(ValueError, match='are truncated or corrupt'):
        logits_of(str(tmp_path), 'cut', 'int8', [[1, 2]])


def test_an_error_while_the_network_is_built_is_not_taken_for_damage(models_dir):
    with pytest.raises(IndexError):
        with tf.Graph().as_default(), checkpoint.precision('int8'):
            raise IndexError


@pytest.mark.parametrize('script', ['generate_unconditional_samples.py', 'interactive_conditional_samples.py'])
def test_the_samplers_take_the_precision(script):
    command = [sys.executable, os.path.join(ROOT, 'src', script), '--model_name', 'demo', '--nsamples', '1', '--length', '8',
               '--seed', '1', '--precision']
    outputs = [finished(command + [precision], b'Once upon a time\n') for precision in ('float32', 'int8', 'half')]
    assert [status for status, _, _ in outputs] == [0, 0, 1]
    assert b'precision is half; it must be one of float32, int8\n' in outputs[2][2]
    assert b'SAMPLE 1' in outputs[1][1] and b'SAMPLE' not in outputs[2][1]
