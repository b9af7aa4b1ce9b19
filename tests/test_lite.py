"""lite.py: products and networks against NumPy, in 8 bits with the same rounded weights, and errors."""
from collections import Counter
import functools
import gc
import os
import shutil
import sys
import threading
import time

import numpy as np
import pytest

import encoder
import evaluate
from gpt2 import checkpoint, corpus
from gpt2.evaluation import documents, loading
from gpt2.evaluation.scorer import scorer
from gpt2.fast import lite, matmul, numpy_loop
from gpt2.sampler import load
from gpt2.system.tf1 import litert, tf
from helpers import reference, tiny
from helpers.paths import HELD_OUT, MODELS, ROOT
from helpers.processes import finished

with_lite = pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 has no LiteRT')
HPARAMS = dict(n_vocab=tiny.N_BYTE_VOCAB, n_embd=16, n_head=2, n_layer=2, n_ctx=32)


def random(seed=0):
    return np.random.RandomState(seed)


# Rounding

@pytest.mark.parametrize('order', ['C', 'F'])
def test_rounded_takes_the_nearest_of_255_steps(monkeypatch, order):
    """Some columns at a time, whichever numbers are side by side in memory."""
    monkeypatch.setattr(lite, 'COLUMNS_AT_A_TIME', 7)
    weight_NM = np.asarray(random().randn(50, 20), np.float32, order)
    values_MN, scale_M = lite.rounded(weight_NM)
    assert values_MN.dtype == np.int8 and (np.abs(values_MN.astype(int)).max(axis=1) == 127).all()
    assert (np.abs(values_MN.T * scale_M - weight_NM) <= scale_M / 2 * 1.0001).all()


def test_rounded_keeps_columns_of_zeros_and_of_one_huge_number():
    weight_NM = np.zeros([4, 3], np.float32)
    weight_NM[2, 1] = 3e38
    weight_NM[:, 2] = 1e-40  # denormal in float32
    values_MN, scale_M = lite.rounded(weight_NM)
    np.testing.assert_allclose((values_MN.T * scale_M)[:, :2], weight_NM[:, :2], rtol=1e-6)
    assert np.isfinite(values_MN.T * scale_M).all() and (scale_M > 0).all()


# A network

def matrices(weights):
    return [name for name in weights if name.endswith('/w') or name == 'model/wte']


def rounded_weights(weights):
    """The weights, with every matrix rounded to 8 bits, in NumPy."""
    found = dict(weights)
    for name in matrices(weights):
        matrix_NM = weights[name].T if name == 'model/wte' else weights[name][0]
        scale_M = np.abs(matrix_NM).max(axis=0) / 127
        rounded_NM = np.rint(matrix_NM / scale_M) * scale_M
        found[name] = rounded_NM.T if name == 'model/wte' else rounded_NM[None]
    return found


def rounded_rows(x):
    """Rows rounded to 255 steps from the least to the greatest number, with 0 among them."""
    unit = (x.max(axis=-1, keepdims=True).clip(0) - x.min(axis=-1, keepdims=True).clip(None, 0)) / 255
    return np.rint(x / unit) * unit


def network_of(hparams, weights, precision='int8'):
    return lite.Network(hparams, weights.__getitem__, precision)


def logits_of(network, ids, widths=None):
    """Logits [B, T, V], the tokens read in pieces of these widths."""
    past = lite.Past(network.hparams, len(ids), ids.shape[1])
    ends = np.cumsum(widths or [ids.shape[1]])
    states = [network.states(ids[:, begin:end], past) for begin, end in zip([0] + list(ends), ends)]
    logits_RV = network.logits(np.concatenate(states, axis=2).reshape(2, -1, network.hparams.n_embd))
    return logits_RV.reshape(ids.shape + (-1,))


@with_lite
@pytest.mark.parametrize('n_row', [1, 2, 33])
def test_piece_multiplies_as_integers_do(n_row):
    """The first piece, a layer norm and a product, beside NumPy that rounds the same; rows of different magnitude."""
    hparams = tiny.hparams(n_embd=48, n_head=3)
    weights = tiny.random_weights(hparams)
    x_RD = (random().randn(n_row, 48) * 10.0 ** np.arange(-1, n_row - 1)[:, None].clip(-1, 3)).astype(np.float32)
    found_RN, = network_of(hparams, weights).pieces[0](x_RD)
    bias_D, rounded = weights['model/h0/ln_1/b'], rounded_weights(weights)
    scaled_RD = reference.layer_norm(weights, 'model/h0/ln_1/', x_RD.astype(float)) - bias_D
    rest_N = bias_D @ weights['model/h0/attn/c_attn/w'][0]  # of the layer norm's bias; neither of them is rounded
    divisor_N = np.repeat([4, 1, 1], 48)  # of queries
    expected_RN, exact_RN = [(reference.linear(rounded, 'model/h0/attn/c_attn/', x_RD) + rest_N) / divisor_N
                             for x_RD in (rounded_rows(scaled_RD), scaled_RD)]
    assert np.abs(found_RN - exact_RN).max() > 1e-3, 'the rows are rounded'
    # Where a number is between two steps, a float32 may be rounded the other way: one step of one number.
    one_step_R1 = np.ptp(scaled_RD, axis=1, keepdims=True) / 255 * np.abs(rounded['model/h0/attn/c_attn/w']).max()
    difference_RN = np.abs(found_RN - expected_RN)
    assert (difference_RN < 1.01 * one_step_R1).all() and np.median(difference_RN) < 1e-5


@with_lite
@pytest.mark.parametrize('precision', ['float32', 'int8'])
@pytest.mark.parametrize('changes', [
    dict(), dict(n_layer=1), dict(n_layer=3, n_head=1, n_embd=20), dict(n_head=8, n_embd=72),
    dict(n_vocab=5, n_ctx=16)], ids=['two', 'one layer', 'one head', 'eight heads', 'small'])
def test_network_is_numpy_and_in_8_bits_with_the_same_rounded_weights(monkeypatch, changes, precision):
    """Read at once or in pieces, up to the last position of the context; whichever limit divides the work."""
    hparams = tiny.hparams(**dict(HPARAMS, **changes))
    weights = tiny.random_weights(hparams, stddev=0.1)
    ids = random().randint(0, hparams.n_vocab, [3, hparams.n_ctx])
    network = network_of(hparams, weights, precision)
    if precision == 'int8':
        weights = rounded_weights(weights)
    expected = reference.forward(weights, ids, hparams.n_head)[0]
    span = np.ptp(expected)
    in_turn = [1] * hparams.n_ctx
    for widths, limit, value in ((None, 'MAX_ROWS', 999), (in_turn, 'MAX_ROWS', 999),
                                 ([5, 1, hparams.n_ctx - 6], 'MAX_ROWS', 999), (None, 'QUERIES_AT_A_TIME', 5),
                                 ([3, hparams.n_ctx - 3], 'QUERIES_AT_A_TIME', 4), (None, 'MAX_ROWS', 7),
                                 (None, 'MAX_SCORES', 100)):
        monkeypatch.setattr(lite, limit, value)
        difference = np.abs(logits_of(network, ids, widths) - expected)
        if precision == 'float32':
            assert difference.max() < 1e-6 * span, limit
        else:
            # A step is a 255th of a row's range: a number is off by a 900th of it on average; these add up at random.
            assert 0 < difference.mean() < 0.004 * span and difference.max() < 0.03 * span, limit


@with_lite
@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_network_samples_a_row_of_a_batch_as_it_does_alone(precision):
    """With prompts of different lengths, an end token, and rows that end early and leave."""
    hparams = tiny.hparams(**HPARAMS)
    network = network_of(hparams, tiny.random_weights(hparams), precision)
    context, lengths = random().randint(0, 256, [6, 6]), [6, 2, 5, 3, 1, 4]
    draws = random(3).rand(6, 20)
    run = functools.partial(numpy_loop.loop(hparams, 20, top_k=20, end_token=7), network)
    together = run(context, lengths, draws)
    ends = []
    for row in range(6):
        alone = run(context[row:row + 1, :lengths[row]], lengths[row:row + 1], draws[row:row + 1])[0]
        n = min(len(alone), together.shape[1])
        np.testing.assert_array_equal(together[row, :n], alone[:n])
        ends.append(len(alone))
    assert len(set(ends)) > 3


def test_past_keeps_all_keys_and_values_of_the_texts_that_stay():
    past = lite.Past(tiny.hparams(**HPARAMS), 4, 9)
    past.pairs[:], past.n_seen = random().randn(*past.pairs.shape), 6
    expected = past.pairs.reshape(2, 2, 4, 2, 9, 8)[:, :, [1, 3], :, :6]  # layers, k and v, texts, heads, positions, K
    past.keep(np.array([1, 3]))
    np.testing.assert_array_equal(past.pairs.reshape(2, 2, 2, 2, 9, 8)[..., :6, :], expected)


@with_lite
def test_last_states_are_those_of_each_texts_last_token(monkeypatch):
    """Of texts of different lengths, in batches and alone, some of which are read in parts."""
    monkeypatch.setattr(lite, 'QUERIES_AT_A_TIME', 4)
    monkeypatch.setattr(lite, 'MAX_ROWS', 6)
    hparams, n_rows = tiny.hparams(**HPARAMS), []
    network = network_of(hparams, tiny.random_weights(hparams), 'float32')
    fed = [random(n).randint(0, 256, [batch, n]) for batch, n in ((2, 8), (3, 1), (1, 4), (2, 5))]
    pasts = [network.past(*ids.shape) for ids in fed]
    next_states = network.next_states
    network.next_states = lambda fed, pasts: (n_rows.append(sum(ids.size for ids in fed)), next_states(fed, pasts))[1]
    found_2AD = network.last_states(fed, pasts)
    assert n_rows == [8, 8, 8, 3, 6]  # at least QUERIES_AT_A_TIME of each text; the last parts together
    expected = [network.states(ids, network.past(*ids.shape))[:, :, -1] for ids in fed]
    np.testing.assert_allclose(found_2AD, np.concatenate(expected, axis=1), rtol=0, atol=1e-5)
    assert [past.n_seen for past in pasts] == [8, 1, 4, 5]


@with_lite
@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_states_are_the_same_bit_for_bit_however_a_prompt_is_divided(monkeypatch, precision):
    """At multiples of QUERIES_AT_A_TIME, alone or beside others: what a server samples does not depend on its load."""
    monkeypatch.setattr(lite, 'QUERIES_AT_A_TIME', 8)
    hparams = tiny.hparams(**dict(HPARAMS, n_embd=64))
    network = network_of(hparams, tiny.random_weights(hparams, stddev=0.1), precision)
    ids = random().randint(0, 256, [1, 32])
    whole = network.states(ids, network.past(1, 32))[:, 0, -1]
    for widths in ([8, 24], [16, 8, 8]):
        past, other = network.past(1, 32), network.past(2, 40)
        for begin, end in zip(np.cumsum([0] + widths), np.cumsum(widths)):
            states_2RD = network.next_states([ids[:, begin:end], ids[:, [7, 9]].T], [past, other])
        np.testing.assert_array_equal(states_2RD[:, widths[-1] - 1], whole)


@with_lite
@pytest.mark.parametrize('n_cores, n_large, n_texts', [
    (1, 4, [5]), (2, 4, [2, 3]), (3, 4, [1, 2, 2]), (9, 4, [1, 1, 1, 2]), (9, 3, [1, 2, 2]), (9, 8, [1] * 5)])
def test_attention_of_a_token_is_the_same_in_any_number_of_threads(monkeypatch, n_cores, n_large, n_texts):
    """No more than there are texts, or parts of the keys that are large enough; one for few bytes."""
    hparams, parts = tiny.hparams(**HPARAMS), []
    monkeypatch.setattr(lite, 'attend_one', lambda *qkv, real=lite.attend_one: (
        parts.append((threading.get_ident(), len(qkv[0]))), real(*qkv))[1])
    network = network_of(hparams, tiny.random_weights(hparams), 'float32')
    q_BH1K, k_BHSK, v_BHSK = [random(i).randn(5, 2, n, 8).astype(np.float32) for i, n in enumerate((1, 30, 30))]
    expected = network.attend_one(q_BH1K, k_BHSK, v_BHSK)
    assert parts == [(threading.get_ident(), 5)]
    monkeypatch.setattr(lite, 'BYTES_OF_A_THREAD', k_BHSK.nbytes // n_large)
    network.n_threads = n_cores
    np.testing.assert_array_equal(network.attend_one(q_BH1K, k_BHSK, v_BHSK), expected)
    assert sorted(n for _, n in parts[1:]) == n_texts
    assert (len({thread for thread, _ in parts}) > 1) == (n_cores > 1)


def test_attention_of_a_token_to_one_position_alone():
    """Whose score exceeds the logarithm of what a float32 can hold."""
    k_BHSK, v_BHSK = np.eye(3, 4, dtype=np.float32)[None, None], np.float32([[[[1, 2], [3, 4], [5, 6]]]])
    found_BH1K = lite.attend_one(np.float32([[[[0, 100, 0, 0]]]]), k_BHSK, v_BHSK)
    np.testing.assert_array_equal(found_BH1K, [[[[3, 4]]]])


@with_lite
def test_attention_computes_few_scores_at_a_time(monkeypatch):
    """Each block of queries meets the positions up to its last one, of as many texts as MAX_SCORES allows."""
    monkeypatch.setattr(lite, 'QUERIES_AT_A_TIME', 8)
    monkeypatch.setattr(lite, 'MAX_SCORES', 2 * 2 * 8 * 30)  # texts, heads, queries, positions
    hparams, sizes = tiny.hparams(**HPARAMS), []
    network = network_of(hparams, tiny.random_weights(hparams), 'float32')
    attend = network.attend
    network.attend = lambda q_BHTK, k_BHSK, *rest: (
        sizes.append((len(q_BHTK), q_BHTK.shape[2], k_BHSK.shape[2])), attend(q_BHTK, k_BHSK, *rest))[1]
    network.states(np.zeros([3, 30], int), network.past(3, 30))
    blocks = [(8, 8), (8, 16), (8, 24), (6, 30)]
    assert sizes == [(n_texts,) + block for n_texts in (2, 1) for block in blocks] * hparams.n_layer


@with_lite
@pytest.mark.slow
def test_network_of_the_demo_model_samples_nearly_what_float32_does():
    """Where two tokens are about equally likely, rounding may decide, and the texts differ from there on."""
    prompts = ['Once upon a time there', 'The old king was', 'In the middle of the wood', 'Little Bear said to']
    texts = []
    for precision in ('float32', 'int8'):
        with load('demo', MODELS, precision=precision) as gpt2:
            texts.append([gpt2.encoder.encode(text) for text in gpt2.sample(prompts, length=20, temperature=0)])
    same = [np.mean([a == b for a, b in zip(*pair)]) for pair in zip(*texts)]
    assert 0.5 < np.mean(same)


@with_lite
@pytest.mark.slow
def test_network_of_the_demo_model_is_hardly_worse(shared):
    hparams, text_encoder = checkpoint.load_hparams('demo', MODELS), encoder.get_encoder('demo', MODELS)
    with open(os.path.join(shared, 'corpus', 'valid.txt'), encoding='utf-8') as file:
        tokens = text_encoder.encode(file.read(60000))
    nats = []
    for network in (None, checkpoint.load_network(hparams, 'demo', MODELS, 'int8')):
        with tf.Graph().as_default(), tf.Session() as sess:
            score = scorer(sess, hparams, network)
            if network is None:
                checkpoint.restore(sess, 'demo', MODELS)
            nats.append(np.mean([score(ids[None], first).mean() for ids, first in corpus.windows(
                np.array(tokens), n_ctx=hparams.n_ctx, stride=hparams.n_ctx)]))
    assert 0 < abs(nats[1] - nats[0]) < 0.003  # of the perplexity, 3 in a thousand


@with_lite
@pytest.mark.slow
def test_evaluate_measures_texts_and_benchmarks_with_8_bit_weights(tmp_path, capsys):
    """Figures that differ from float32's, by less than a thousandth of the nats."""
    (tmp_path / 'lambada.jsonl').write_text('{"text": "Peter Rabbit ran as fast as he could to the wood"}\n' * 3)
    nats, perplexities = [], []
    for precision in ('float32', 'int8'):
        evaluate.text(HELD_OUT, model_name='demo', precision=precision)
        nats += [float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line.startswith('nats')]
        evaluate.COMMANDS['lambada'](str(tmp_path / 'lambada.jsonl'), model_name='demo', precision=precision)
        perplexities += [line.split('|')[4] for line in capsys.readouterr().out.splitlines()
                         if 'as it is; last word; perplexity' in line]
    assert nats[0] != nats[1] and abs(nats[1] / nats[0] - 1) < 0.001
    assert perplexities[0] != perplexities[1] and abs(float(perplexities[1]) / float(perplexities[0]) - 1) < 0.05


@with_lite
def test_networks_compute_side_by_side_in_threads():
    """Two of different sizes, each used by two threads, for texts of different lengths."""
    networks, threads, found = [], [], {}
    for n_embd in (16, 40):
        hparams = tiny.hparams(**dict(HPARAMS, n_embd=n_embd))
        networks.append(network_of(hparams, tiny.random_weights(hparams, seed=n_embd)))
    ids = [random(n).randint(0, 257, [n, 7 + n]) for n in (1, 4)]
    expected = {(i, j): logits_of(networks[i], ids[j]) for i in range(2) for j in range(2)}

    def work(i, j):
        found[i, j] = [logits_of(networks[i], ids[j], [6 + ids[j].shape[0]] + [1]) for _ in range(20)]

    for key in expected:
        threads.append(threading.Thread(target=work, args=key))
        threads[-1].start()
    for thread in threads:
        thread.join()
    for key in expected:
        span = np.ptp(expected[key])
        assert max(np.abs(logits - expected[key]).max() for logits in found[key]) < 1e-3 * span


@with_lite
def test_network_computes_for_one_thread_at_a_time():
    """LiteRT would mix up the numbers of two."""
    hparams, inside, seen = tiny.hparams(**HPARAMS), [], []
    network = network_of(hparams, tiny.random_weights(hparams))

    def slowly(piece, *arrays):
        inside.append(1)
        time.sleep(0.005)
        seen.append(len(inside))
        inside.pop()
        return piece(*arrays)

    network.pieces = [functools.partial(slowly, piece) for piece in network.pieces]
    threads = [threading.Thread(target=logits_of, args=(network, np.zeros([1, 5], int))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 6


@with_lite
@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='only Linux lists threads in /proc')
def test_layers_share_their_threads():
    """Those of another layer would still look for work, and occupy the cores."""
    networks, n_threads = [], []
    for n_layer in (1, 6):
        hparams = tiny.hparams(**dict(HPARAMS, n_layer=n_layer))
        networks.append(network_of(hparams, tiny.random_weights(hparams)))
        before = len(os.listdir('/proc/self/task'))
        logits_of(networks[-1], np.zeros([1, 5], int))
        n_threads.append(len(os.listdir('/proc/self/task')) - before)
    assert n_threads[0] == n_threads[1]


@with_lite
@pytest.mark.skipif(not os.path.isdir('/proc/self/task'), reason='only Linux lists threads in /proc')
def test_network_has_a_thread_for_each_core(monkeypatch):
    """Both for attention and for the rest, which compute in turns; and weights are read in several."""
    hparams, found, readers = tiny.hparams(), [], set()
    weights, networks = tiny.random_weights(hparams), []
    gc.collect()  # or threads of other tests' networks might end meanwhile

    def read(name):
        time.sleep(0.005)
        readers.add(threading.get_ident())
        return weights[name]

    for n_cores in (1, 4):
        monkeypatch.setattr(lite.process, 'n_cores', lambda n=n_cores: n)
        readers.clear()
        before = len(os.listdir('/proc/self/task'))
        networks.append(lite.Network(hparams, read, 'float32'))
        logits_of(networks[-1], np.zeros([1, 5], int))
        found.append((len(os.listdir('/proc/self/task')) - before, len(readers - {threading.get_ident()}) > 1))
    assert found == [(0, False), (6, True)]


@with_lite
@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_network_has_no_operations_for_biases_and_one_for_gelu(precision):
    """The additions are those of the residual stream, and one in each layer norm."""
    hparams = tiny.hparams()
    content, _ = lite.written(hparams, tiny.random_weights(hparams).__getitem__, precision)
    file, kind = litert()[1].ModelT.InitFromPackedBuf(content, 0), litert()[1].BuiltinOperator
    between = file.subgraphs[2]  # attention is the first
    found = Counter(file.operatorCodes[operator.opcodeIndex].builtinCode for operator in between.operators)
    assert (found[kind.FULLY_CONNECTED], found[kind.GELU], found[kind.ADD]) == (4, 1, 4)


@with_lite
@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_network_reads_each_weight_and_holds_the_embedding_once(precision):
    """The embedding is a part of the file, not a copy."""
    hparams, names = tiny.hparams(n_vocab=300), []
    weights = tiny.random_weights(hparams)
    content, (values_VD, scale_V) = lite.written(
        hparams, lambda name: (names.append(name), weights[name])[1], precision)
    assert sorted(names + ['model/wpe']) == sorted(weights)
    assert content.count(values_VD.tobytes()) == 1 and values_VD.base is content
    step = np.abs(weights['model/wte']).max() / 127 if precision == 'int8' else 0
    np.testing.assert_allclose(values_VD * scale_V[:, None], weights['model/wte'], rtol=0, atol=0.51 * step)


@with_lite
@pytest.mark.slow
def test_load_for_evaluation_uses_litert_for_8_bits_alone(tiny_models, monkeypatch):
    loaded, load_network = [], checkpoint.load_network
    monkeypatch.setattr(checkpoint, 'load_network', lambda *given: (
        loaded.append(given[-1]), load_network(*given))[1])
    for precision in ('float32', 'int8'):
        with loading.load('tiny', tiny_models, documents.Options(None, None, 1, None), precision) as found:
            assert found.score(np.array([[1, 2, 3]]), 1).shape == (1, 2)
    assert loaded == ['int8']


# Errors

@with_lite
def test_litert_counts_all_matrices_of_a_float32_model(monkeypatch):
    hparams, found = tiny.hparams(), []
    n_bytes = sum(4 * int(np.prod(shape)) for name, shape in tiny.variable_shapes(hparams)
                  if name.endswith(('/w', '/wte', '/wpe')))
    for limit in n_bytes - 1, n_bytes:
        monkeypatch.setattr(lite, 'MAX_FLOAT32_BYTES', limit)
        found.append(lite.is_for('float32', hparams))
    assert found == [False, True]


def test_litert_is_for_8_bits_and_up_to_345m_in_float32_on_a_cpu_with_tensorflow_2(monkeypatch):
    """A GPU that is left unused silently would look slow."""
    small, large = [tiny.hparams(n_vocab=50257, n_embd=n_embd, n_layer=n_layer, n_ctx=1024)
                    for n_embd, n_layer in ((1024, 24), (1280, 36))]
    assert [lite.is_for('float32', size) for size in (small, large)] == [not tf.__version__.startswith('1.'), False]
    if tf.__version__.startswith('1.'):
        with pytest.raises(ValueError, match='TensorFlow 1.12.0 cannot .* 8-bit weights.*--precision float32.*2.x'):
            lite.is_for('int8', large)
    else:
        assert lite.is_for('int8', large)
    monkeypatch.setattr(matmul, 'on_gpu', lambda: True)
    assert not lite.is_for('float32', small)
    with pytest.raises(ValueError, match='for a CPU; use --precision float32'):
        lite.is_for('int8', small)


@with_lite
def test_load_network_names_weights_that_do_not_fit_as_restore_does(tmp_path):
    """A matrix of another shape, one that is missing, one too many, one that is not finite, and files cut short."""
    hparams = tiny.hparams(**HPARAMS)
    for name, problem in (
            ('model/h1/mlp/c_fc/w', 'is missing'), ('model/h0/attn/c_attn/w', 'has shape'),
            ('model/h2/mlp/c_fc/w', 'is left over'), ('model/h0/mlp/c_proj/w', 'in .*/model.ckpt.* has .* not finite')):
        weights = tiny.random_weights(hparams)
        array = weights.pop(name, np.zeros([1, 16, 64], np.float32))
        if 'missing' not in problem:
            weights[name] = array[:, :, 1:] if 'shape' in problem else np.inf * array if 'not' in problem else array
        folder = str(tmp_path / problem.split()[-1])
        tiny.write_model(os.path.join(folder, 'wrong'), hparams, weights)
        with pytest.raises(ValueError, match='%s %s' % (name, problem)):
            checkpoint.load_network(hparams, 'wrong', folder, 'int8')
    with open(os.path.join(folder, 'wrong', 'model.ckpt.data-00000-of-00001'), 'rb+') as file:
        file.truncate(100)
    with pytest.raises(ValueError, match='truncated or corrupt'):
        checkpoint.load_network(hparams, 'wrong', folder, 'int8')


@with_lite
def test_load_network_works_in_a_folder_that_cannot_be_written(tiny_models, tmp_path):
    """Nothing is stored beside the weights."""
    shutil.copytree(os.path.join(tiny_models, 'tiny'), str(tmp_path / 'tiny'))
    before = sorted(os.listdir(str(tmp_path / 'tiny')))
    checkpoint.load_network(checkpoint.load_hparams('tiny', str(tmp_path)), 'tiny', str(tmp_path))
    assert sorted(os.listdir(str(tmp_path / 'tiny'))) == before


@with_lite
def test_weight_shapes_are_those_of_a_checkpoint():
    for n_layer in (1, 2, 12):
        hparams = tiny.hparams(**dict(HPARAMS, n_layer=n_layer))
        assert lite.weight_shapes(hparams) == dict(tiny.variable_shapes(hparams))


@with_lite
@pytest.mark.slow
@pytest.mark.parametrize('script', ['generate_unconditional_samples.py', 'interactive_conditional_samples.py'])
def test_precision_flag_of_both_scripts(script):
    """LiteRT says nothing on stderr."""
    command = [sys.executable, os.path.join(ROOT, 'src', script), '--model_name', 'demo', '--nsamples', '1',
               '--length', '8', '--seed', '1', '--precision']
    outputs = [finished(command + [precision], b'Once upon a time\n') for precision in ('float32', 'int8', 'half')]
    assert [status for status, _, _ in outputs] == [0, 0, 1]
    assert b'half' in outputs[2][2] and b'float32, int8' in outputs[2][2] and outputs[2][2].count(b'\n') == 1
    assert b'SAMPLE 1' in outputs[1][1] and b'SAMPLE' not in outputs[2][1] and outputs[1][2] == outputs[0][2]
