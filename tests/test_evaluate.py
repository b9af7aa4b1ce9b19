"""evaluate.py and evaluation/: every figure equals one computed in another way; each token is scored once.

The other ways: NumPy, with the network and the windows written out; on current Python also transformers and lm-eval.
The models are the tiny one, models/demo where it is there, and a thin one with the release's vocabulary and context.
"""
import contextlib
import functools
import html
import importlib.util
import inspect
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2 import corpus
import encoder
import evaluate
from gpt2.system import process
from gpt2.evaluation import (
    batches, benchmarks, cbt, detokenize, documents, lambada, language_modeling, loading, scorer, table)
from gpt2.evaluation.benchmarks import measure
from helpers import peers, reference
from helpers.paths import ROOT
from helpers.processes import SECONDS, Conversation

ALL = documents.Options(context=None, stride=None, batch_size=2, limit=None)
TEXT = 'The quick brown fox jumps over the lazy dog, 17 times; é and “quotes”.\n' * 3


@pytest.fixture(scope='module')
def thin_models(vocabulary, tmp_path_factory):
    """Path of a models_dir with the model `thin`: the released vocabulary and context, narrow layers, random weights.

    Its predictions are uneven enough to make perplexity far from the vocabulary's size.
    """
    from helpers import tiny
    folder = str(tmp_path_factory.mktemp('models'))
    hparams = tiny.hparams(**dict(tiny.RELEASED_117M, n_embd=64, n_head=4, n_layer=2))
    tiny.write_model(os.path.join(folder, 'thin'), hparams, tiny.random_weights(hparams), vocabulary=vocabulary)
    return folder


@contextlib.contextmanager
def loaded(request):
    """A namespace of the Model that request names, its weights by name, NumPy's logits, and its models_dir."""
    name, models_dir = request.param, os.path.join(ROOT, 'models')
    if name != 'demo':
        models_dir = request.getfixturevalue({'tiny': 'flat_models', 'thin': 'thin_models'}[name])
    with loading.load(name, models_dir, ALL) as model:
        from gpt2.system.tf1 import tf
        from gpt2 import checkpoint
        reader = tf.train.load_checkpoint(checkpoint.weights_prefix(os.path.join(models_dir, name)))
        weights = {name: reader.get_tensor(name).astype(np.float64) for name in reader.get_variable_to_shape_map()
                   if name.startswith('model/')}

        @functools.lru_cache(maxsize=20)  # most questions and passages differ only in their last token or their order
        def logits(*fed):
            return reference.forward(weights, np.array([fed]), model.hparams.n_head)[0][0]

        yield SimpleNamespace(model=model, weights=weights, logits=logits, models_dir=models_dir,
                              folder=os.path.join(models_dir, name))


@pytest.fixture(scope='module', params=['tiny', 'demo', 'thin'])
def case(request):
    """What loaded() gives, of each model."""
    with loaded(request) as found:
        yield found


# One fixture for these too: of two, either might end first, and TensorFlow 1.12 wants the graphs nested.
on_small_models = pytest.mark.parametrize('case', ['tiny', 'demo'], indirect=True)


def write(folder, name, text):
    """The path of a file of UTF-8 text, written to the byte."""
    path = folder.join(name)
    path.write_binary(text.encode('utf-8'), ensure=True)
    return str(path)


# Other ways

def numpy_nats(case, ids, *, n_ctx=None, stride=None, fills_last=False):
    """What each token of a document costs: float64 [N]. A token is predicted in the first window that reaches it."""
    hparams = case.model.hparams
    n_ctx = n_ctx or hparams.n_ctx
    stride = stride or n_ctx
    tokens = [case.model.encoder.end_of_text] + list(ids)
    begins = [max(0, math.ceil((place - n_ctx) / stride)) * stride for place in range(1, len(tokens))]
    if fills_last:
        begins = [len(tokens) - n_ctx - 1 if begin and begin == begins[-1] else begin for begin in begins]
    nats = np.zeros(len(ids))
    for begin in sorted(set(begins)):
        window = tokens[begin:begin + n_ctx + 1]
        losses = numpy_losses(case.logits(*window[:-1])[None], np.array([window]))[0]
        for place, its_begin in enumerate(begins, 1):
            if its_begin == begin:
                nats[place - 1] = losses[place - 1 - begin]
    return nats


def numpy_losses(logits, ids):
    """Nats [B, T - 1] of predicting ids[:, 1:], by logits [B, T - 1, V]: the last token is not fed."""
    return reference.token_losses(np.concatenate([logits, logits[:, :1]], axis=1), ids)


@pytest.fixture(scope='module')
def torch_model(case):
    """The same weights in transformers."""
    for name in ('torch', 'transformers'):
        if importlib.util.find_spec(name) is None:
            pytest.skip('needs transformers: pip install torch transformers')
    import torch
    import transformers
    torch.set_num_threads(1)  # more of them only wait for each other where others compute, too
    hparams = case.model.hparams
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=hparams.n_vocab, n_positions=hparams.n_ctx, n_embd=hparams.n_embd, n_layer=hparams.n_layer,
        n_head=hparams.n_head, bos_token_id=case.model.encoder.end_of_text,
        eos_token_id=case.model.encoder.end_of_text))
    names = {'model/wte': 'wte.weight', 'model/wpe': 'wpe.weight'}
    state = {}
    for name, array in case.weights.items():
        name = names.get(name, re.sub(r'/w$|/g$', '.weight', re.sub(r'/b$', '.bias', name[6:])).replace('/', '.'))
        state['transformer.' + re.sub(r'^h(\d+)', r'h.\1', name)] = torch.tensor(array[0] if array.ndim == 3 else array)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {'lm_head.weight'}, (missing, unexpected)
    return model.eval()


# The scorer

@pytest.mark.slow
@pytest.mark.parametrize('rows', [1, 2, 5, 1000])
def test_scorer_gives_the_loss_of_each_token(sess, rows, monkeypatch):
    """From any first token on, and with the logits in any number of pieces."""
    from helpers import tiny
    from gpt2.system.tf1 import tf
    monkeypatch.setattr(scorer, 'MAX_LOGIT_ROWS', rows)
    hparams = tiny.hparams(n_layer=1)
    weights = tiny.random_weights(hparams)
    score, guess = scorer.scorer(sess, hparams), scorer.guesser(sess, hparams, [3, 4, 5, 6, 7, 8])
    tiny.assign(sess, weights)
    assert len(tf.trainable_variables()) == len(weights), 'the second one was to reuse the variables'
    random = np.random.RandomState(0)
    for n_batch, n_token, first in ((1, 2, 1), (3, 7, 1), (2, 9, 4), (2, 9, 8), (1, hparams.n_ctx + 1, 20)):
        ids = random.randint(hparams.n_vocab, size=[n_batch, n_token])
        logits_BTV, _ = reference.forward(weights, ids[:, :-1], hparams.n_head)
        expected = numpy_losses(logits_BTV, ids)[:, first - 1:]
        np.testing.assert_allclose(score(ids, first), expected, rtol=1e-4, atol=1e-5)
        nats, top, allowed = guess(ids, first)
        np.testing.assert_allclose(nats, expected, rtol=1e-4, atol=1e-5)
        assert np.array_equal(top, logits_BTV[:, first - 1:].argmax(axis=-1))
        few = [0, 1, 2, 9, 10]
        assert np.array_equal(allowed, np.array(few)[logits_BTV[:, first - 1:, few].argmax(axis=-1)])


class Exact(object):
    """In the place of a lite.Network: the network of the paper. Its states are logits."""

    def __init__(self, weights, n_head):
        self.weights, self.n_head, self.n_rows = weights, n_head, []

    def past(self, batch, n_positions):
        return None

    def states(self, tokens_BT, past):
        return np.stack([reference.forward(self.weights, tokens_BT, self.n_head)[0]] * 2)

    def logits(self, states_2RV):
        self.n_rows.append(states_2RV.shape[1])
        return states_2RV[0].astype(np.float32)


@pytest.mark.parametrize('rows', [1, 4, 5, 1000])
def test_scorer_gives_the_loss_of_each_token_by_a_network_without_a_graph(sess, rows, monkeypatch):
    """Some rows of logits at a time, but at least one of each text."""
    from helpers import tiny
    monkeypatch.setattr(scorer, 'MAX_LITE_ROWS', rows)
    hparams = tiny.hparams(n_layer=1)
    network = Exact(tiny.random_weights(hparams), hparams.n_head)
    score, guess = scorer.scorer(None, hparams, network), scorer.guesser(sess, hparams, [0], network)
    for n_batch, n_token, first in ((1, 2, 1), (3, 7, 1), (2, 9, 4), (2, 9, 8), (1, hparams.n_ctx + 1, 20)):
        ids = np.random.RandomState(0).randint(hparams.n_vocab, size=[n_batch, n_token])
        logits_BTV = reference.forward(network.weights, ids[:, :-1], hparams.n_head)[0]
        expected = numpy_losses(logits_BTV, ids)[:, first - 1:]
        np.testing.assert_allclose(score(ids, first), expected, rtol=1e-5, atol=1e-6)
        nats, top, _ = guess(ids, first)
        np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-6)
        assert np.array_equal(top, logits_BTV[:, first - 1:].argmax(axis=-1))
        assert 0 < min(network.n_rows) and max(network.n_rows) <= max(rows, n_batch)
        assert sum(network.n_rows) == 2 * expected.size
        del network.n_rows[:]


@pytest.mark.slow
@pytest.mark.parametrize('rows', [1, 5, 1000])
@pytest.mark.parametrize('n_top', [0, 5, 100])
def test_predictor_follows_the_definitions(sess, rows, n_top, monkeypatch):
    """Rank, entropy, variance and the most likely tokens, from NumPy's probabilities in double precision."""
    from helpers import tiny
    monkeypatch.setattr(scorer, 'MAX_LOGIT_ROWS', rows)
    hparams = tiny.hparams(n_layer=1)
    weights = tiny.random_weights(hparams)
    predict = scorer.predictor(sess, hparams, n_top)
    tiny.assign(sess, weights)
    for n_batch, n_token, first in ((1, 2, 1), (3, 7, 1), (2, 9, 4)):
        ids = np.random.RandomState(0).randint(hparams.n_vocab, size=[n_batch, n_token])
        logits_BTV = reference.forward(weights, ids[:, :-1], hparams.n_head)[0][:, first - 1:].astype(np.float64)
        nats_BTV = np.log(np.exp(logits_BTV).sum(axis=-1, keepdims=True)) - logits_BTV
        own_BT1 = np.take_along_axis(nats_BTV, ids[:, first:, None], axis=-1)
        entropy_BT = np.sum(np.exp(-nats_BTV) * nats_BTV, axis=-1)
        found = predict(ids, first)
        np.testing.assert_allclose(found.nats, own_BT1[..., 0], rtol=1e-4, atol=1e-5)
        assert np.array_equal(found.rank, 1 + np.sum(nats_BTV < own_BT1, axis=-1))
        np.testing.assert_allclose(found.entropy, entropy_BT, rtol=1e-4)
        variance_BT = np.sum(np.exp(-nats_BTV) * (nats_BTV - entropy_BT[..., None]) ** 2, axis=-1)
        np.testing.assert_allclose(found.variance, variance_BT, rtol=1e-3)
        if not n_top:
            assert found.top_ids is None and found.top_nats is None
            continue
        order_BTV = np.argsort(nats_BTV, axis=-1)[..., :n_top]
        assert np.array_equal(found.top_ids, order_BTV)
        expected = np.take_along_axis(nats_BTV, order_BTV, axis=-1)
        np.testing.assert_allclose(found.top_nats, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@on_small_models
def test_score_documents_has_predictions_in_the_order_of_the_text(case):
    """Each token is predicted once, in its own window."""
    text = TEXT * 3
    options = documents.Options(context=24, stride=16, batch_size=3, limit=None)
    pieces = [text, None, TEXT, None]
    plain = documents.score_documents(case.model, pieces, options, n_bytes=len(text), label='')
    found = documents.score_documents(
        case.model, pieces, options, n_bytes=len(text), label='', predict=case.model.predictor(3))
    assert [ids.tolist() for ids in found.documents] == [case.model.encoder.encode(part) for part in (text, TEXT)]
    for ids, predictions, costs in zip(found.documents, found.predictions, plain.predictions):
        np.testing.assert_allclose(predictions.nats, costs.nats, rtol=1e-4, atol=1e-4)
        assert predictions.top_ids.shape == (len(ids), 3) and predictions.entropy.shape == ids.shape
        is_top = predictions.rank == 1
        assert np.array_equal(predictions.top_ids[is_top, 0], ids[is_top]) and is_top.any()
        np.testing.assert_allclose(predictions.top_nats[is_top, 0], predictions.nats[is_top], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_scorer_uses_the_variables_of_an_existing_model(sess):
    """So that training could score with the weights that it trains."""
    import model
    from helpers import tiny
    from gpt2.system.tf1 import tf
    hparams = tiny.hparams()
    tokens = tf.placeholder(tf.int32, [1, 6])
    losses = model.token_losses(model.model(hparams, tokens)['logits'], tokens)
    score = scorer.scorer(sess, hparams)
    tiny.assign(sess, tiny.random_weights(hparams))
    ids = [[1, 2, 3, 4, 5, 6]]
    np.testing.assert_allclose(score(ids), sess.run(losses, {tokens: ids}), rtol=1e-5)


# Rows and batches

@pytest.mark.parametrize('fills_last', [False, True])
@pytest.mark.parametrize('stride', [1, 3, 5])
def test_document_rows_score_each_token_once(stride, fills_last):
    """The first token is predicted from an end-of-text token."""
    for n_token in range(20):
        rows = documents.document_rows(np.arange(n_token), 99, n_ctx=5, stride=stride, fills_last=fills_last)
        assert [token for row in rows for token in row.ids[row.first:]] == list(range(n_token))
        assert all(1 <= row.first < len(row.ids) <= 6 for row in rows)
        assert not rows or rows[0].ids[0] == 99
        if fills_last:
            assert len({len(row.ids) for row in rows}) <= 1


def test_group_rows_puts_each_row_into_one_batch():
    """Rows of a batch have the same length and the same first token."""
    random = np.random.RandomState(0)
    shapes = zip(random.randint(1, 6, size=100), random.randint(1, 3, size=100))
    rows = [batches.Row(np.full(length, number), first, 0) for number, (length, first) in enumerate(shapes)]
    work = batches.group_rows(rows, 12)
    assert sorted(number for numbers in work for number in numbers) == list(range(100))
    for numbers in work:
        ids, first = batches.stack_rows(rows, numbers)
        assert ids[:, 0].tolist() == numbers
        assert {(len(rows[number].ids), rows[number].first) for number in numbers} == {(ids.shape[1], first)}
        assert ids.size <= 12
    assert len(work) < 60


@pytest.mark.parametrize('nats, expected', [(math.log(2), 2), (600, math.exp(600)), (1e5, math.exp(700))])
def test_sum_perplexity_of_any_size(nats, expected):
    """A float cannot hold e^710, and a text in an unknown script may cost more."""
    assert batches.Sum('perplexity', 3 * nats, 3).value() == pytest.approx(expected)


# NumPy

@pytest.mark.slow
@pytest.mark.parametrize('context, stride', [(None, None), (20, 7)])
def test_text_prints_the_figures_of_numpy(case, context, stride, capsys, tmpdir):
    """And writes the same log-probabilities to the file of --jsonl."""
    path, output = str(tmpdir.join('a.txt')), str(tmpdir.join('out.jsonl'))
    texts = [TEXT, 'Second.\n\nThird line']
    with open(path, 'w', encoding='utf-8') as file:
        file.write('\n<|endoftext|>\n'.join(texts))
    expected = [numpy_nats(case, case.model.encoder.encode(text), n_ctx=context, stride=stride) for text in texts]
    evaluate.text(path, model_name=case.model.name, models_dir=case.models_dir, context=context, stride=stride,
                  jsonl=output)
    figures = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines())
    whole, nats = ''.join(texts), sum(map(np.sum, expected))
    n_words = sum(len(text.split()) for text in texts)
    for name, value in (('nats', nats), ('perplexity per token', math.exp(nats / sum(map(len, expected)))),
                        ('perplexity per word', math.exp(nats / n_words)), ('words', n_words), ('documents', 2),
                        ('bits per byte', nats / math.log(2) / len(whole.encode())), ('characters', len(whole)),
                        ('bits per character', nats / math.log(2) / len(whole))):
        assert float(figures[name]) == pytest.approx(value, rel=1e-4), name
    with open(output, encoding='utf-8') as file:
        lines = [json.loads(line) for line in file]
    assert [line['text'] for line in lines] == texts
    for line, nats in zip(lines, expected):
        np.testing.assert_allclose(-np.array(line['log_probabilities']), nats, rtol=1e-4, atol=1e-4)
        assert case.model.encoder.decode(line['tokens']) == line['text']
        assert line['nats'] == pytest.approx(nats.sum(), rel=1e-4)


def numpy_logits(case, ids):
    """The logits that predict each token of a document, in windows that do not overlap: float64 [N, V]."""
    fed, n_ctx = [case.model.encoder.end_of_text] + list(ids[:-1]), case.model.hparams.n_ctx
    return np.concatenate([case.logits(*fed[begin:begin + n_ctx]) for begin in range(0, len(fed), n_ctx)])


@pytest.mark.slow
@on_small_models
def test_text_html_shows_the_text_and_the_ranks_of_numpy(case, tmpdir):
    output = str(tmpdir.join('a.html'))
    texts = ['A <b>bold</b> & "quoted" text.\n' + TEXT, 'Second.']
    path = write(tmpdir, 'a & b.txt', '\n<|endoftext|>\n'.join(texts))
    evaluate.text(path, model_name=case.model.name, models_dir=case.models_dir, html=output)
    with open(output, encoding='utf-8') as file:
        page = file.read()
    shown = re.sub('<[^>]*>', '', re.search('<main.*?</main>', page, re.DOTALL).group())
    assert all(html.escape(text, quote=False) in shown for text in texts) and '% of the text' not in page
    assert '<title>a &amp; b.txt</title>' in page and case.model.name in page
    ranks = []
    for ids in map(case.model.encoder.encode, texts):
        logits_NV = numpy_logits(case, ids)
        ranks += (1 + np.sum(logits_NV > logits_NV[np.arange(len(ids)), ids][:, None], axis=-1)).tolist()
    for least, most in ((1, 10), (11, 100), (101, 1000), (1001, 9999)):
        assert '%% (%d)</span>' % sum(least <= rank <= most for rank in ranks) in page


@pytest.mark.slow
def test_text_html_shows_the_share_of_the_text(flat_models, tmpdir):
    output = tmpdir.join('a.html')
    path = write(tmpdir, 'a.txt', 'a' * 128)
    evaluate.text(path, limit=1, model_name='tiny', models_dir=flat_models, html=str(output))
    assert 'by the model tiny; 25 % of the text<' in output.read_text('utf-8')


@pytest.mark.parametrize('field', ['nats', 'entropy', 'variance'])
def test_text_rejects_predictions_that_are_not_finite(loads, tmpdir, field):
    """No page is written."""
    ones = np.ones([1, 5], np.float32)
    broken = batches.Predictions(ones, ones.astype(int), ones, ones)._replace(**{field: ones * [1, 1, 1, 1, np.nan]})
    loads(byte_model(lambda ids, first=1: broken.nats)._replace(predictor=lambda n_top: lambda ids, first: broken))
    output = tmpdir.join('a.html')
    with pytest.raises(ValueError, match='not finite; its weights may be damaged'):
        evaluate.text(write(tmpdir, 'a.txt', 'abcde'), html=str(output))
    assert not output.check()


@pytest.mark.slow
@on_small_models
def test_detect_prints_the_areas_of_numpy_and_scikit_learn(case, tmpdir, capsys):
    """Each statistic from its definition, and its area by comparing each text of one side with each of the other."""
    random = np.random.RandomState(0)
    sides = [[], []]
    for number in range(2 * 25):  # pieces of a story, and the same words in another order
        words = TEXT.split() * 3
        begin = random.randint(40)
        words = words[begin:begin + random.randint(35, 60)]
        sides[number % 2].append(' '.join(random.permutation(words) if number % 2 else words))
    paths = [write(tmpdir, name, '\n<|endoftext|>\n'.join(side)) for name, side in zip(('h.txt', 'm.txt'), sides)]
    chart = tmpdir.join('roc.png') if importlib.util.find_spec('matplotlib') else None
    evaluate.detect(*paths, model_name=case.model.name, models_dir=case.models_dir, chart=chart and str(chart))
    out, err = capsys.readouterr()
    rows = [line.strip('| ').split(' | ') for line in out.splitlines()[2:]]
    found = {(row[0], row[2]): row[3] for row in rows}
    lengths = [length for length in (32, 64) if length <= case.model.hparams.n_ctx]
    assert {int(length) for length, _ in found} == set(lengths)
    sides = [[case.model.encoder.encode(text)[:lengths[-1]] for text in side] for side in sides]
    sides = [[(ids, numpy_logits(case, ids)) for ids in side] for side in sides]
    for length in lengths:
        n = min([sum(len(ids) >= length for ids, _ in side) for side in sides])
        scores = [[numpy_statistics(ids[:length], logits_NV[:length]) for ids, logits_NV in side if len(ids) >= length]
                  for side in sides]
        scores = [side[:n] for side in scores]
        for name in scores[0][0]:
            human, machine = ([score[name] for score in side] for side in scores)
            wins = [(a < b) + (a == b) / 2 for a in np.float32(human) for b in np.float32(machine)]
            assert float(found[str(length), name]) == pytest.approx(np.mean(wins), abs=2 / n ** 2), (length, name)
            if importlib.util.find_spec('sklearn'):
                from sklearn.metrics import roc_auc_score
                expected = roc_auc_score([0] * n + [1] * n, np.float32(human + machine))
                assert float(found[str(length), name]) == pytest.approx(expected, abs=2 / n ** 2), (length, name)
    assert float(found['32', 'log-probability']) != 0.5 and 'warning: ' in err
    assert not chart or chart.read_binary().startswith(b'\x89PNG')


def numpy_statistics(ids, logits_NV):
    """The zero-shot statistics of a text with these logits, {name: float}, each from its definition."""
    log_NV = logits_NV - np.log(np.exp(logits_NV).sum(axis=-1, keepdims=True))
    log_N = log_NV[np.arange(len(ids)), ids]
    rank_N = 1 + np.sum(log_NV > log_N[:, None], axis=-1)
    mean_N = np.sum(np.exp(log_NV) * log_NV, axis=-1)
    variance_N = np.sum(np.exp(log_NV) * (log_NV - mean_N[:, None]) ** 2, axis=-1)
    return {'log-probability': log_N.mean(), 'log-rank (low)': -np.log(rank_N).mean(),
            'share in the top 10': (rank_N <= 10).mean(), 'entropy (low)': mean_N.mean(),
            'curvature': (log_N - mean_N).sum() / np.sqrt(variance_N.sum())}


@pytest.mark.slow
@pytest.mark.parametrize('limit', [None, 20])
def test_detect_scores_only_what_it_compares(loads, tmpdir, capsys, limit):
    """Of 30 human texts and 25 of a machine, 20 or 25 each, once, and only the first 32 tokens of them."""
    paths = [write(tmpdir, name, '\n<|endoftext|>\n'.join(letter * size + '%d' % size for size in range(40, 40 + n)))
             for name, letter, n in (('h.txt', 'h', 30), ('m.txt', 'm', 25))]
    rows, sizes = [], []

    def predictor(n_top):
        def predict(ids, first):
            sizes.append(len(ids))
            rows.extend(ids[:, first:].tolist())
            ones = np.ones([len(ids), ids.shape[1] - first], np.float32)
            return batches.Predictions(ones, ones.astype(int), ones, ones)
        return predict

    loads(byte_model(None, n_ctx=100)._replace(predictor=predictor))
    evaluate.detect(*paths, limit=limit, batch_size=3)
    assert max(sizes) == 3 * 101 // 33, 'of as many tokens as three of the context, and one more each'
    assert len(rows) == 2 * (limit or 25) and {len(row) for row in rows} == {32}
    assert '| 32 | %d | log-probability | 0.500 |' % (limit or 25) in capsys.readouterr().out


def test_precision_reaches_the_model_of_each_command(loads, tmpdir, monkeypatch):
    path = write(tmpdir, 'a.txt', '\n<|endoftext|>\n'.join('%040d' % number for number in range(25)))
    loads(byte_model(None, n_ctx=100))

    def load(model_name, models_dir, options, precision='float32'):
        raise RuntimeError('loads in %s' % precision)

    monkeypatch.setattr(evaluate, 'load', load)
    write(tmpdir, 'data/text8', 'abcd')
    passages = write(tmpdir, 'passages', '"a b"')
    for command in (lambda: evaluate.detect(path, path, precision='int8'),
                    lambda: evaluate.text(path, precision='int8'),
                    lambda: evaluate.COMMANDS['text8'](path, precision='int8'),
                    lambda: evaluate.COMMANDS['lambada'](passages, precision='int8'),
                    lambda: evaluate.table(str(tmpdir.join('data')), model_name='mine', precision='int8')):
        with pytest.raises(RuntimeError, match='loads in int8'):
            command()


def test_detect_interrupted_prints_nothing(loads, tmpdir, capsys):
    """Figures of a part of the texts would be of other texts."""
    path = write(tmpdir, 'a.txt', '\n<|endoftext|>\n'.join('%040d' % number for number in range(25)))

    def interrupted(ids, first):
        raise KeyboardInterrupt

    loads(byte_model(None, n_ctx=100)._replace(predictor=lambda n_top: interrupted))
    with pytest.raises(KeyboardInterrupt):
        evaluate.detect(path, path)
    assert not capsys.readouterr().out


@pytest.mark.slow
@on_small_models
def test_text_per_line_equals_numpy(case, capsys, tmpdir):
    path, output = str(tmpdir.join('a.txt')), str(tmpdir.join('out.jsonl'))
    with open(path, 'w', encoding='utf-8') as file:
        file.write('One candidate\n\nAnother one\n')
    evaluate.text(path, model_name=case.model.name, models_dir=case.models_dir, per_line=True, jsonl=output)
    with open(output, encoding='utf-8') as file:
        lines = [json.loads(line) for line in file]
    assert [line['text'] for line in lines] == ['One candidate', 'Another one']
    for line in lines:
        assert line['nats'] == pytest.approx(numpy_nats(case, line['tokens']).sum(), rel=1e-4)


TEXTS = {  # benchmark: (text as the benchmark has it, text as it is scored, n_words)
    'wikitext2': (' \n = Title = \n \n A @-@ B costs $ 5 , or so . \n = Other = \n \n He said " so " . \n',
                  '\n= Title =\n\nA-B costs $5, or so.\n= Other =\n\nHe said "so".\n', 22),
    'ptb': (" it was n't <unk> 's N % \n no \n", "it wasn't <unk>'s N%\nno\n", 8),
    '1bw': ('The " U.S. " spent $ 5 million , he said .\nI don \'t know .\n',
            'The "U.S." spent $5 million, he said.\nI don\'t know.\n', 17),
    'enwik8': ('<page>\n <title>Über</title>\n', '<page>\n <title>Über</title>\n', None),
    'text8': (' anarchism originated as a term of abuse', ' anarchism originated as a term of abuse', None),
}


@pytest.mark.slow
@pytest.mark.parametrize('benchmark', sorted(TEXTS))
def test_measure_running_text_equals_numpy(case, benchmark, tmpdir):
    text, joined, n_words = TEXTS[benchmark]
    path = str(tmpdir.join('text'))
    with open(path, 'w', encoding='utf-8', newline='') as file:
        file.write(text)
    readings = {'as it is': [text]}
    if n_words:
        readings['detokenized'] = [joined]
    if benchmark == '1bw':
        readings['detokenized, each sentence alone'] = [line + '\n' for line in joined.split('\n')[:-1]]
    if benchmark == 'wikitext2':
        cut = joined.index('= Other')
        readings['detokenized, each page alone, last window filled'] = [joined[:cut], joined[cut:]]
    expected = {}
    for name, texts in readings.items():
        nats = np.concatenate([numpy_nats(case, case.model.encoder.encode(document), fills_last='filled' in name)
                               for document in texts])
        units = {'word': n_words, 'word or line end': n_words and n_words + text.count('\n'), 'token': len(nats)}
        if benchmark == 'wikitext2':
            units['word as lm-eval counts'] = n_words + 2 * 2
        for unit, count in units.items():
            if n_words:
                expected['%s; perplexity per %s' % (name, unit)] = math.exp(nats.sum() / count)
        if benchmark == 'enwik8':
            expected[name + '; bits per byte'] = nats.sum() / math.log(2) / len(text.encode())
        if benchmark == 'text8':
            expected[name + '; bits per character'] = nats.sum() / math.log(2) / len(text)
    figures = list(measure(case.model, benchmark, benchmarks.read(benchmark, path), ALL))
    assert {figure.protocol: figure.value for figure in figures} == pytest.approx(expected, rel=1e-4)
    assert {(figure.benchmark, figure.share) for figure in figures} == {(benchmark, 1)}


@pytest.mark.slow
def test_measure_lambada_equals_numpy(case):
    """Last words have one character, and the network's favourite is printable: otherwise nothing would be a hit."""
    beginnings = ['“Yes”, he', 'A b c d', 'It was a rainy']
    endings = [chr(code) for code in range(33, 127)]
    passages = [beginning + ' ' + ending for beginning in beginnings for ending in endings]
    encoder = case.model.encoder
    is_stop_word = np.array([encoder.decode([token]).strip().lower() in lambada.STOP_WORDS
                          for token in range(case.model.hparams.n_vocab)])
    expected = {}
    for name, prepare in (('as it is', lambda text: text),
                          ('straight quotes, newline before', lambda text: '\n' + re.sub('[“”]', '"', text))):
        found = {}
        for beginning in beginnings:
            for ending in endings:
                ids = encoder.encode(prepare(beginning + ' ' + ending))
                logits_TV = case.logits(*ids[:-1])
                nats = numpy_losses(logits_TV[None], np.array([ids]))[0]
                word = list(range(len(encoder.encode(prepare(beginning))), len(ids)))
                hit = {place: logits_TV[place - 1].argmax() == ids[place] for place in word}
                allowed = {place: np.where(is_stop_word, -np.inf, logits_TV[place - 1]).argmax() == ids[place]
                           for place in word}
                for figure, value in (
                        ('last word; perplexity', sum(nats[place - 1] for place in word)),
                        ('last word; accuracy', all(hit.values())),
                        ('last word, no stop words; accuracy',
                         allowed[word[0]] and all(hit[place] for place in word[1:])),
                        ('last token; perplexity', nats[-1]),
                        ('last token; accuracy', hit[word[-1]]),
                        ('last token, no stop words; accuracy', allowed[word[-1]])):
                    found.setdefault(figure, []).append(value)
        for figure, values in found.items():
            mean = np.mean(np.array(values, float))
            expected['%s; %s' % (name, figure)] = math.exp(mean) if 'perplexity' in figure else 100 * mean
    figures = {figure.protocol: figure.value for figure in measure(case.model, 'lambada', passages, ALL)}
    assert set(benchmarks.nearest('lambada')) < set(figures)
    assert figures == pytest.approx(expected, rel=1e-4)


def test_lambada_sums_count_words_tokens_and_filtered_guesses():
    """Three passages with words of two tokens, (5, 6): guessed in full, only with the filter, only at the end."""
    nats = np.log([[2, 3], [4, 5], [6, 7]])
    top = np.array([[5, 6], [8, 6], [5, 9]])
    allowed = np.array([[5, 6], [5, 6], [5, 6]])
    sums = lambada.sums_of(np.array([[5, 6]] * 3), nats, top, allowed)
    assert {name: total.value() for name, total in sums.items()} == pytest.approx({
        'last word; perplexity': (6 * 20 * 42) ** (1 / 3), 'last word; accuracy': 100 / 3,
        'last word, no stop words; accuracy': 200 / 3, 'last token; perplexity': (3 * 5 * 7) ** (1 / 3),
        'last token; accuracy': 200 / 3, 'last token, no stop words; accuracy': 100})


@pytest.mark.slow
def test_measure_cbt_equals_numpy(case, tmpdir):
    """The answers are the network's choices in one reading, and for every third question those in another one."""
    random = np.random.RandomState(0)
    words = ['cat', 'dog', 'sun', 'egg', 'hat', 'map', 'ink', 'jar', 'kit', 'log']
    questions, right = [], {}
    for number in range(9):
        candidates = [words[i] for i in random.permutation(10)]
        before, after = '`` a ', " 's , ''"
        chosen = {}
        for name in ('as it is', 'detokenized'):
            totals = []
            for candidate in candidates:
                text, head = 'Hm . ' + before + candidate + after, 'Hm . ' + before + candidate
                if name == 'detokenized':
                    text, head = 'Hm. "a ' + candidate + '\'s,"', 'Hm. "a ' + candidate
                encode = case.model.encoder.encode
                assert len(encode(text)) <= case.model.hparams.n_ctx
                nats = numpy_nats(case, encode(text))
                start = len(encode(head[:-len(candidate) - 1]))
                totals.append((nats.sum(), nats[start:len(encode(head))].sum()))
            chosen[name, 'whole text'], chosen[name, 'candidate alone'] = np.argmin(totals, axis=0)
        answer = chosen['as it is', 'whole text'] if number % 3 else chosen['detokenized', 'candidate alone']
        for protocol, choice in chosen.items():
            right.setdefault('%s; %s; accuracy' % protocol, []).append(choice == answer)
        questions.append('1 Hm .\n2 %sXXXXX%s\t%s\t\t%s\n' % (before, after, candidates[answer], '|'.join(candidates)))
    path = str(tmpdir.join('cbtest_NE_test.txt'))
    with open(path, 'w', encoding='utf-8') as file:
        file.write('\n'.join(questions))
    figures = list(measure(case.model, 'cbt-ne', benchmarks.read('cbt-ne', path), ALL))
    assert {figure.protocol: figure.value for figure in figures} == pytest.approx(
        {protocol: 100 * np.mean(hits) for protocol, hits in right.items()})
    assert set(benchmarks.nearest('cbt-cn')) == set(benchmarks.nearest('cbt-ne')) < set(right)
    assert {figure.benchmark for figure in figures} == {'cbt-ne'}


@on_small_models
def test_candidate_rows_cut_a_question_that_is_too_long(case):
    """The candidate stays, and a token before it."""
    n_ctx = case.model.hparams.n_ctx
    for n_before, n_after in ((3 * n_ctx, 1), (3 * n_ctx, 2 * n_ctx), (3, 2 * n_ctx), (3, 3)):
        question = cbt.Question('. ' * n_before, 'So ', ' .' * n_after, ['#1', '@23', '&456'], 0)
        ids, first, ends = cbt.candidate_rows(case.model, question, None)
        assert first >= 1 and ids.shape[1] <= n_ctx + 1
        for row, candidate, n_text, n_candidate in zip(
                ids, question.candidates, ends['whole text'], ends['candidate alone']):
            assert case.model.encoder.decode(row[first:first + n_candidate]).strip() == candidate
            text = question.story + ' ' + question.before + candidate + question.after
            assert text.endswith(case.model.encoder.decode(row[first:first + n_text]).strip()) or n_text + first > n_ctx


# transformers and lm-eval

@pytest.mark.slow
@pytest.mark.parametrize('overlap', [0, 5])
def test_score_documents_equals_transformers_with_a_sliding_window(case, torch_model, overlap):
    import torch
    n_ctx = case.model.hparams.n_ctx
    stride = n_ctx - overlap
    with open(reference.__file__, encoding='utf-8') as file:
        text = file.read()
    text = case.model.encoder.decode(case.model.encoder.encode(text)[:2 * n_ctx + 100])  # the last window is shorter
    ids = case.model.encoder.encode(text)
    tokens = torch.tensor([[case.model.encoder.end_of_text] + ids])
    nats, n_seen = [], 1
    for begin in range(0, len(ids), stride):
        end = min(begin + n_ctx + 1, len(ids) + 1)
        with torch.no_grad():
            logits = torch_model(tokens[:, begin:end - 1]).logits
        losses = torch.nn.functional.cross_entropy(logits[0], tokens[0, begin + 1:end], reduction='none')
        nats.append(losses[n_seen - begin - 1:].numpy())
        n_seen = end
        if end == len(ids) + 1:
            break
    options = ALL._replace(stride=stride)
    ours = documents.score_documents(case.model, [text, None], options, n_bytes=len(text), label='')
    assert not ours.interrupted and ours.share == 1 and ours.documents[0].tolist() == ids
    np.testing.assert_allclose(ours.predictions[0].nats, np.concatenate(nats), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope='module')
def harness(case, torch_model):
    """lm-eval's model: the same weights in transformers, and the tokenizer of transformers over the same vocabulary."""
    for name in ('lm_eval', 'accelerate'):
        if importlib.util.find_spec(name) is None:
            pytest.skip('needs lm-eval: pip install lm-eval accelerate')
    os.environ['HF_HUB_OFFLINE'] = '1'
    from lm_eval.models.huggingface import HFLM
    import transformers
    tokenizer = transformers.GPT2Tokenizer(vocab=os.path.join(case.folder, 'encoder.json'),
                                           merges=os.path.join(case.folder, 'vocab.bpe'))
    return HFLM(pretrained=torch_model, tokenizer=tokenizer, batch_size=32, device='cpu',
                max_length=case.model.hparams.n_ctx, prefix_token_id=case.model.encoder.end_of_text)


@pytest.mark.slow
def test_measure_lambada_equals_lm_eval(case, harness, shared, tmpdir):
    passages = lambada.read('lambada', os.path.join(shared, 'eval', 'lambada_test.jsonl'))[:40]
    guess = case.model.guesser([])
    passages[1::2] = [peers.with_guess(case.model, guess, passage) for passage in passages[1::2]]
    theirs = peers.harness_lambada(harness, passages, str(tmpdir))
    ours = {figure.protocol: figure.value for figure in measure(case.model, 'lambada', passages, ALL)}
    assert ours['as it is; last word; perplexity'] == pytest.approx(theirs['perplexity'], rel=1e-4)
    assert ours['as it is; last word; accuracy'] == pytest.approx(100 * theirs['acc'], rel=1e-4)
    # tiny has no token for a word
    assert 0 < theirs['acc'] < 1 or case.model.name == 'tiny', 'no passage proves what a hit is'


@pytest.mark.slow
def test_measure_wikitext_equals_lm_eval(case, harness, shared, tmpdir):
    """lm-eval gets our text of each page, as its own detokenizer cannot be undone, and counts the words itself."""
    from lm_eval.tasks.wikitext import preprocess_wikitext
    with open(os.path.join(shared, 'eval', 'wiki.test.raw'), encoding='utf-8', newline='') as file:
        pages = [page[:1000].rpartition('\n')[0] + '\n' for page in language_modeling.wikitext_pages(file.read())[:3]]
    path = str(tmpdir.join('wiki.test.raw'))
    with open(path, 'w', encoding='utf-8', newline='') as file:
        file.write(''.join(pages))
    with open(path + '.json', 'w', encoding='utf-8') as file:
        file.writelines(json.dumps({'page': page}) + '\n' for page in pages)
    task = {'output_type': 'loglikelihood_rolling', 'doc_to_text': '',
            'doc_to_target': lambda doc: detokenize.detokenize(doc['page'], detokenize.WIKITEXT),
            'process_results': preprocess_wikitext.process_results,
            'metric_list': [{'metric': name} for name in ('word_perplexity', 'byte_perplexity', 'bits_per_byte')]}
    theirs = peers.harness_results(harness, task, path + '.json', str(tmpdir))
    ours = {figure.protocol: figure.value for figure in measure(case.model, 'wikitext103', ''.join(pages), ALL)}
    name = 'detokenized, each page alone, last window filled; perplexity per word as lm-eval counts'
    assert ours[name] == pytest.approx(theirs['word_perplexity'], rel=1e-4)


# Memory

# A process's peak memory includes that of its parent when it was forked. This parent is small.
MEASURING = ('import resource, subprocess, sys; subprocess.check_call(sys.argv[1:], stdout=subprocess.DEVNULL); '
             'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)')


@pytest.mark.slow
def test_scorer_keeps_the_logits_of_few_positions_in_memory(thin_models, tmpdir):
    """A process by itself, two batches of 2,048 tokens: the logits of one would take 0.4 GB, twice at least."""
    from gpt2.system.tf1 import tf
    path = write(tmpdir, 'a.txt', TEXT * 150)
    command = [sys.executable, os.path.join(ROOT, 'src', 'evaluate.py'), 'text', path, '--model_name', 'thin',
               '--models_dir', thin_models, '--batch_size', '2', '--limit', '4']
    peak = int(subprocess.check_output([sys.executable, '-c', MEASURING] + command)) / 2 ** 20  # kB to GiB
    assert 0.1 < peak < (0.8 if tf.__version__.startswith('1.') else 1.5), peak  # 0.45 and 1.1, most of it TensorFlow


# What ends early, and the table

class Countdown:
    """A scorer whose tokens all cost ln 2, and which Ctrl-C meets when it has been asked a number of times."""

    def __init__(self, n_calls=10 ** 6):
        self.n_calls = n_calls
        self.shapes = []

    def __call__(self, ids, first=1):
        if not self.n_calls:
            raise KeyboardInterrupt
        self.n_calls -= 1
        self.shapes.append(ids.shape)
        return np.full([len(ids), ids.shape[1] - first], math.log(2), np.float32)


def byte_model(score, guesser=None, n_ctx=8):
    """A Model of functions, for which a byte is a token."""
    symbols = list(encoder.bytes_to_unicode().values()) + [encoder.END_OF_TEXT]
    text_encoder = encoder.Encoder({symbol: token for token, symbol in enumerate(symbols)}, [])
    return loading.Model('bytes', text_encoder, SimpleNamespace(n_ctx=n_ctx), score, guesser, None)


@pytest.fixture
def loads(monkeypatch):
    """A function that makes the script load a given Model, and returns the list of the names that it then loads."""
    def replace(model):
        names = []

        @contextlib.contextmanager
        def load(name, *_):
            names.append(name)
            yield model
        monkeypatch.setattr(evaluate, 'load', load)
        monkeypatch.setattr(evaluate, 'check_model', lambda *_: (model.encoder, model.hparams))
        monkeypatch.setattr(evaluate, 'model_files', lambda *_: [])
        return names
    return replace


@pytest.mark.slow
@pytest.mark.parametrize('n_ctx, stride', [(5, 5), (5, 2), (8, 1)])
def test_score_documents_limit_scores_the_first_windows(n_ctx, stride):
    """The text is cut there. A token costs its own number, which shows whose cost is where."""
    model = byte_model(lambda ids, first: ids[:, first:].astype(np.float32))
    random = np.random.RandomState(0)
    options = documents.Options(n_ctx, stride, 2, None)
    for _ in range(30):
        texts = [''.join(chr(97 + i) for i in random.randint(26, size=size)) for size in random.randint(1, 30, size=4)]
        whole = ''.join(texts)
        pieces = [piece for text in texts for piece in (text[:3], text[3:], None)]
        windows = [(number, row) for number, text in enumerate(texts)
                   for row in documents.document_rows(model.encoder.encode(text), 256, n_ctx=n_ctx, stride=stride)]
        for limit in [None] + list(range(1, len(windows) + 2)):
            expected = [[token for number, row in windows[:limit] if number == document
                         for token in row.ids[row.first:]] for document in range(4)]
            scored = documents.score_documents(
                model, iter(pieces), options._replace(limit=limit), n_bytes=len(whole), label='')
            assert [ids.tolist() for ids in scored.documents] == [ids for ids in expected if ids]
            assert [found.nats.tolist() for found in scored.predictions] == [ids for ids in expected if ids]
            assert scored.share == sum(map(len, expected)) / len(whole)


def test_score_documents_limit_reads_no_more_than_it_scores(loads, tmpdir, monkeypatch):
    monkeypatch.setattr(corpus, 'CHUNK', 100)
    monkeypatch.setattr(corpus, 'READ_BYTES', 100)
    encoded = []
    model = byte_model(Countdown())
    encode = model.encoder.encode
    monkeypatch.setattr(model.encoder, 'encode', lambda text: encoded.append(text) or encode(text))
    loads(model)
    evaluate.text(write(tmpdir, 'a.txt', 'abcd ' * 10000), limit=20)
    assert 160 < sum(map(len, encoded)) < 400
    pieces = itertools.chain(['abcd ' * 100, None], iter(lambda: 1 / 0, None))  # what comes behind would fail
    scored = documents.score_documents(model, pieces, ALL._replace(limit=2), n_bytes=0, label='')
    assert len(scored.predictions[0].nats) == 16 and scored.share == 1, 'of a pipe it is not known how much there is'


def test_score_documents_of_exactly_the_limit_is_all_of_the_text(loads, tmpdir, capsys):
    """A file of JSON is larger than its text, so the share must not be computed from its size."""
    loads(byte_model(Countdown()))
    for text in 'abcdefgh', 'abcdefghi':
        evaluate.text(write(tmpdir, 'a.jsonl', '"%s"' % text), limit=1)
        out = capsys.readouterr().out
        assert ('share of the text' in out) == (len(text) > 8), out


@pytest.mark.slow
def test_score_documents_copies_windows_only_to_score_them():
    """5,000 windows of 1,000 tokens would take 20 MB."""
    model = byte_model(Countdown(), n_ctx=1000)
    tracemalloc.start()
    scored = documents.score_documents(model, ['x' * 5999], documents.Options(1000, 1, 1, None), n_bytes=5999, label='')
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(scored.predictions[0].nats) == 5999 and peak_bytes < 6e6


def test_text_counts_what_was_scored(loads, tmpdir, capsys):
    """Each token, here a byte, costs a bit."""
    loads(byte_model(Countdown()))
    path = write(tmpdir, 'a.txt', 'é é\n<|endoftext|>\nab\n')
    evaluate.text(path)
    figures = dict(line.rsplit('  ', 1) for line in capsys.readouterr().out.splitlines())
    assert {name.strip(): value.strip() for name, value in figures.items()} == {
        'documents': '2', 'tokens': '8', 'words': '3', 'bytes': '8', 'characters': '6',
        'nats': '%.6g' % (8 * math.log(2)), 'perplexity per token': '2', 'perplexity per word': '%.6g' % 2 ** (8 / 3),
        'bits per byte': '1',
        'bits per character': '%.6g' % (8 / 6)}
    evaluate.text(write(tmpdir, 'b.txt', 'abcd ' * 8), limit=3)
    said = capsys.readouterr().out
    evaluate.text(write(tmpdir, 'c.txt', 'abcdefgé'), limit=1)  # of the é a half
    assert re.search(r'(?m)^tokens +8\nwords +1\nbytes +7\n', capsys.readouterr().out)
    assert re.search(r'(?m)^words +5$', said) and re.search(r'(?m)^share of the text +60 %$', said)


def test_text_per_line_makes_each_line_a_document(loads, tmpdir, monkeypatch):
    """However the text is cut while it is read."""
    monkeypatch.setattr(corpus, 'CHUNK', 5)
    loads(byte_model(Countdown()))
    lines = ['one', 'two three four', 'five', 'a  b', ' six ', 'last']
    path = write(tmpdir, 'a.txt', '\n\n%s\n\n%s\n%s\n<|endoftext|>\n%s\r\n%s\n%s' % tuple(lines))
    output = str(tmpdir.join('out'))
    evaluate.text(path, per_line=True, jsonl=output)
    with open(output, encoding='utf-8') as file:
        assert [json.loads(line)['text'] for line in file] == lines


@pytest.mark.parametrize('old', [None, 'of an earlier run'])
def test_text_interrupted_replaces_no_file(loads, tmpdir, capsys, old):
    """One that is not complete is written only where there was none. Long documents are scored first."""
    path, output = write(tmpdir, 'a.txt', 'abcdefgh\nno\nabcdefghi'), tmpdir.join('out.jsonl')
    if old:
        output.write(old)
    loads(byte_model(Countdown(1)))
    with pytest.raises(KeyboardInterrupt):
        evaluate.text(path, per_line=True, jsonl=str(output), batch_size=2)
    out, err = capsys.readouterr()
    assert re.search(r'(?m)^tokens +16$', out) and re.search(r'(?m)^share of the text +84.2 %$', out)
    if old:
        assert output.read() == old and err.endswith('--jsonl: %s is left unchanged\n' % output)
    else:
        assert [json.loads(line)['text'] for line in output.read().splitlines()] == ['abcdefgh', 'abcdefgh'] and not err
    assert sorted(os.listdir(str(tmpdir))) == ['a.txt', 'out.jsonl']
    loads(byte_model(Countdown(0)))
    with pytest.raises(KeyboardInterrupt):
        evaluate.text(path, per_line=True)
    assert capsys.readouterr() == ('', '')


@pytest.mark.slow
def test_scorer_runs_in_a_thread(sess, monkeypatch):
    """Otherwise TensorFlow would hold Ctrl-C until the step has ended."""
    from helpers import tiny
    calls = []
    monkeypatch.setattr(process, 'wait_for', lambda function, *rest: calls.append(function) or function(*rest))
    hparams = tiny.hparams()
    score = scorer.scorer(sess, hparams)
    tiny.assign(sess, tiny.random_weights(hparams))
    score([[1, 2, 3]])
    assert calls == [sess.run]


def test_measure_lambada_filters_stop_words_of_any_case(vocabulary):
    """And --limit counts passages. The model guesses " the", or the right word; every token costs the same."""
    text_encoder = encoder.get_encoder(os.path.basename(vocabulary), os.path.dirname(vocabulary))
    words = ' the', 'the', ' The', 'THE', ' king', ' then', '.', ' that'
    ids = {word: text_encoder.encode(word)[0] for word in words}
    asked = []

    def guesser(excluded):
        asked.append({word for word, token in ids.items() if token in set(excluded)})

        def guess(tokens_BT, first):
            target_BN = tokens_BT[:, first:]
            allowed_BN = np.where(np.isin(target_BN, excluded), ids[' king'], target_BN)
            return np.ones(target_BN.shape, np.float32), np.full_like(target_BN, ids[' the']), allowed_BN
        return guess

    model = loading.Model('fake', text_encoder, SimpleNamespace(n_ctx=100), None, guesser, None)
    passages = ['it is the', 'it is the', 'the old king', 'it is he']
    figures = list(measure(model, 'lambada', passages, ALL._replace(limit=3)))
    assert asked == [set(ids) - {' king', '.'}]
    assert {figure.share for figure in figures} == {3 / 4}
    values = {figure.protocol: figure.value for figure in figures if figure.protocol.startswith('as it is')}
    assert values['as it is; last word; accuracy'] == values['as it is; last token; accuracy'] == pytest.approx(200 / 3)
    assert values['as it is; last word, no stop words; accuracy'] == pytest.approx(100 / 3)


def test_measure_cbt_obeys_limit_and_batch_size():
    """All tokens cost the same: the shortest candidate wins."""
    questions = [cbt.Question('', '', ' .', ['a', 'bb', 'ccc'], right) for right in (0, 0, 1, 1, 1)]
    for batch_size, n_rows in ((1, 1), (2, 3), (9, 3)):
        score = Countdown()
        figures = list(measure(byte_model(score), 'cbt-ne', questions, documents.Options(None, None, batch_size, 3)))
        assert [(figure.value, figure.share) for figure in figures] == [(pytest.approx(200 / 3), 3 / 5)] * 4
        assert {figure.benchmark for figure in figures} == {'cbt-ne'}
        assert max(score.shapes)[0] == n_rows


@on_small_models
def test_measure_interrupted_or_limited_is_of_a_share(case):
    """The figures are of what was done, and show its share. Every token costs a bit, two windows are a batch."""
    ids = case.model.encoder.encode(TEXT * 30)
    for countdown, options, n_scored in ((2, ALL, 4), (9, ALL._replace(limit=1), 1), (9, ALL._replace(limit=3), 3)):
        model = case.model._replace(score=Countdown(countdown))
        found = []
        with pytest.raises(KeyboardInterrupt) if options is ALL else contextlib.ExitStack():
            found.extend(iter_into(measure(model, 'enwik8', TEXT * 30, options), found))
        n_tokens = n_scored * case.model.hparams.n_ctx
        n_bytes = len(case.model.encoder.decode_bytes(ids[:n_tokens]))
        assert found[0].value == pytest.approx(n_tokens / n_bytes, rel=1e-6)
        assert found[0].share == pytest.approx(n_bytes / len((TEXT * 30).encode()), rel=1e-6)
        line = table.line(model.name, found[0])
        assert line.protocol.endswith(' (%.3g %% of it)' % (100 * found[0].share))
    model = case.model._replace(score=Countdown())
    for figure in measure(model, 'ptb', TEXT * 30, ALL._replace(limit=3)):
        assert 'per token' not in figure.protocol or figure.value == pytest.approx(2)


def iter_into(figures, found):
    for figure in figures:
        found.append(figure)
    return []


@pytest.mark.slow
def test_table_names_missing_files_and_shows_the_paper(flat_models, tmpdir, capsys):
    """The paper's figures are beside those of released names only."""
    models = str(tmpdir.join('models'))
    for name in ('117M', 'mine'):
        shutil.copytree(os.path.join(flat_models, 'tiny'), os.path.join(models, name))
    for name, text in (('text8', TEXTS['text8'][0]), ('wiki.test.raw', TEXTS['wikitext2'][0])):
        tmpdir.join('data', 'deep', name).write_binary(text.encode('utf-8'), ensure=True)
    evaluate.table(str(tmpdir.join('data')), models_dir=models)
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in out.splitlines()]
    assert rows[0] == ['model', 'benchmark', 'protocol', 'measured', 'paper', 'difference']
    found = {tuple(row[:3]): row[3:] for row in rows[2:]}
    measured, paper, difference = found['117M', 'text8', 'as it is; bits per character']
    assert paper == '1.170' and float(difference) == pytest.approx(float(measured) - 1.17, abs=0.01)
    assert found['mine', 'text8', 'as it is; bits per character'] == [measured, '', '']
    per_token, per_word = benchmarks.nearest('wikitext2')[0], benchmarks.nearest('wikitext103')[0]
    assert found['117M', 'wikitext2', per_token][1] == '29.41' and found['117M', 'wikitext103', per_word][1] == '37.50'
    assert len(rows) - 2 == len(found) == 6  # three benchmarks, two models
    assert err.count('\n') == 1
    assert 'not in %s: 1bw, cbt-cn, cbt-ne, enwik8, lambada, ptb;' % tmpdir.join('data') in err


@pytest.mark.slow
def test_table_measures_and_draws_the_given_models(loads, tmpdir, capsys):
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    folder, chart = os.path.dirname(write(tmpdir, 'data/text8', 'abcd ' * 8)), tmpdir.join('chart.png')
    for names in ('mine', 'mine,other'):
        loaded = loads(byte_model(Countdown()))
        evaluate.table(folder, model_name=names, chart=str(chart), limit=2)
        assert loaded == names.split(',')
        assert capsys.readouterr().out.count('(40 % of it)') == len(loaded)
        assert chart.read_binary().startswith(b'\x89PNG\r\n\x1a\n')
        chart.remove()


@pytest.mark.slow
def test_table_all_has_each_protocol_once(case, tmpdir, monkeypatch, capsys):
    """WikiText is measured once for both its names; other protocols do not change a figure."""
    monkeypatch.setattr(evaluate, 'check_model', lambda *_: None)
    monkeypatch.setattr(evaluate, 'model_files', lambda *_: [])
    write(tmpdir, 'data/wiki.test.raw', TEXTS['wikitext2'][0])
    calls, tables = [], []

    @contextlib.contextmanager
    def load(*_):
        yield case.model

    def counted(*arguments):
        calls.append(arguments[1])
        return measure(*arguments)

    monkeypatch.setattr(evaluate, 'load', load)
    monkeypatch.setattr(benchmarks, 'measure', counted)
    for all_of_them in (True, False):
        evaluate.table(str(tmpdir.join('data')), model_name='mine', all=all_of_them)
        tables.append(capsys.readouterr().out.splitlines()[2:])
    assert calls == ['wikitext103', 'wikitext103', 'wikitext2']
    assert len(set(tables[0])) == len(tables[0]) == 2 * len(
        language_modeling.readings(None, 'wikitext2', '')) * len(language_modeling.denominators('wikitext2', '', 1))
    assert len(tables[1]) == 2 and set(tables[1]) <= set(tables[0])


@pytest.mark.slow
@pytest.mark.parametrize('old', [None, b'of an earlier run'])
def test_table_interrupted_replaces_no_chart(loads, tmpdir, capsys, old):
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    folder, chart = os.path.dirname(write(tmpdir, 'data/text8', 'abcd ' * 8)), tmpdir.join('chart.png')
    if old:
        chart.write_binary(old)
    loads(byte_model(Countdown(1)))
    with pytest.raises(KeyboardInterrupt):
        evaluate.table(folder, model_name='mine', chart=str(chart))
    assert ('--chart: %s is left unchanged' % chart in capsys.readouterr().err) == bool(old)
    assert chart.read_binary() == old if old else chart.read_binary().startswith(b'\x89PNG')
    assert sorted(os.listdir(str(tmpdir))) == ['chart.png', 'data']


def test_benchmark_commands_pass_on_their_flags(loads, tmpdir, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmarks, 'measure', lambda *arguments: asked.append(arguments[1:]) or [])
    loaded = loads(byte_model(Countdown()))
    passages = write(tmpdir, 'lambada', '{"text": "a b"}')
    questions = write(tmpdir, 'x_NE', '1 XXXXX .\ta\t\ta|b')
    for name, paths, flags, expected in [
            ('ptb', passages, dict(context=7, stride=6, batch_size=5, limit=4), (7, 6, 5, 4)),
            ('ptb', passages, {}, (None, None, 2, None)),
            ('lambada', passages, dict(batch_size=5, limit=4), (None, None, 5, 4)),
            ('cbt-ne', questions, dict(batch_size=5, limit=4), (None, None, 5, 4))]:
        evaluate.COMMANDS[name](paths, model_name='mine', **flags)
        benchmark, data, options, protocols = asked.pop()
        assert protocols is None
        assert options == expected and loaded.pop() == 'mine'
        assert benchmark == name and data == benchmarks.read(name, paths)


def test_table_draw_writes_a_png(tmpdir, monkeypatch):
    """Each bar has the figure and the name of its line, and the paper's mark is on it; the first line is on top."""
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    from matplotlib.figure import Figure
    drawn, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *rest, **named: (
        drawn.append(figure) or savefig(figure, *rest, **named)))
    path = str(tmpdir.join('chart.png'))
    table.draw([table.Line('117M', 'ptb', 'raw', 'perplexity', 70.0, 65.85),
                table.Line('demo', 'ptb', 'raw', 'perplexity', 90.0, None),
                table.Line('demo', 'text8', 'raw', 'bits', 1.5, None)], path)
    with open(path, 'rb') as file:
        assert file.read(8) == b'\x89PNG\r\n\x1a\n'
    assert os.listdir(str(tmpdir)) == ['chart.png']
    bits, perplexity = drawn[0].axes
    assert [axes.get_xlabel() for axes in (bits, perplexity)] == ['bits', 'perplexity']
    for axes, lines in ((bits, [('demo text8: raw', 1.5)]),
                        (perplexity, [('demo ptb: raw', 90.0), ('117M ptb: raw', 70.0)])):
        assert list(zip([label.get_text() for label in axes.get_yticklabels()],
                        [bar.get_width() for bar in axes.patches])) == lines
    mark, = perplexity.get_lines()
    assert mark.get_xydata().tolist() == [[65.85, 1]] and not bits.get_lines()


# The script

def run(*arguments, stderr):
    environment = {name: value for name, value in os.environ.items() if not name.startswith('TF_')}
    command = [sys.executable, os.path.join(ROOT, 'src', 'evaluate.py')] + list(arguments)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, universal_newlines=True)


@pytest.mark.slow
@pytest.mark.parametrize('arguments, message', [
    ([], 'no command given; the commands are 1bw, cbt'),
    (['text', 'a.txt', '--strid', '3'], 'the flags are --paths --model_name'),
    (['lambada', 'nowhere.jsonl'], 'no file nowhere.jsonl; `curl'),
    (['text', __file__, '--model_name', 'demo', '--precision', 'int4'], 'int4'),
    # A glob without quotes: nothing is overwritten.
    (['detect', __file__, __file__, __file__], 'the flags are --human --machine'),
    (['table', os.path.dirname(__file__), 'demo'], 'the flags are --folder'),
])
def test_evaluate_reports_a_mistake_in_one_line(arguments, message):
    process = run(*arguments, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (1, '')
    assert message in err and err.startswith('evaluate.py: ') and err.count('\n') == 1


def test_commands_check_their_options_first(flat_models, tmpdir, monkeypatch):
    """Before TensorFlow is needed."""
    monkeypatch.setattr(loading.session, 'session', None)
    for options, message in (({'stride': 0}, '--stride is 0; it must be 1 or more'), ({'limit': 0}, '--limit is 0'),
                             ({'batch_size': -1}, '--batch_size is -1'), ({'context': 0}, '--context is 0')):
        with pytest.raises(ValueError, match=message):
            evaluate.text('a.txt', **options)
    with pytest.raises(ValueError, match='no text given'):
        evaluate.text()
    for options, message in (({'context': 33}, '--context is 33; .* 32 tokens'),
                             ({'stride': 33}, '--stride is 33 and would skip tokens; .* 32, the context'),
                             ({'context': 7, 'stride': 8}, '--stride is 8 and would skip tokens; .* 7, the context')):
        with pytest.raises(ValueError, match=message):
            evaluate.text(__file__, model_name='tiny', models_dir=flat_models, **options)
        with pytest.raises(ValueError, match=message):
            evaluate.COMMANDS['enwik8'](__file__, model_name='tiny', models_dir=flat_models, **options)
    missing, folder, text = str(tmpdir.join('none', 'out')), str(tmpdir), write(tmpdir, 'a.txt', 'a')
    os.symlink('a.txt', str(tmpdir.join('link')))
    for path, message in ((missing, 'is %s, .* no folder' % missing), (folder, 'is %s, a folder' % folder)):
        with pytest.raises(OSError, match='--jsonl ' + message):
            evaluate.text(text, jsonl=path)
        with pytest.raises(OSError, match='--chart ' + message):
            evaluate.table(folder, chart=path)
        with pytest.raises(OSError, match='--html ' + message):
            evaluate.text(text, html=path)
        with pytest.raises(OSError, match='--chart ' + message):
            evaluate.detect(text, text, chart=path)
    for flag in 'jsonl', 'html':
        for name in ('a.txt', 'b', 'link') if flag == 'html' else ('a.txt', 'link'):
            path = os.path.join(folder, '.', name)
            with pytest.raises(ValueError, match='--%s is .*%s, which would replace .*; give another' % (flag, name)):
                evaluate.text(text, **dict({'jsonl': os.path.join(folder, 'b')}, **{flag: path}))
        with pytest.raises(ValueError, match='--%s is empty; give the name of a file' % flag):
            evaluate.text(text, **{flag: ''})
    with pytest.raises(ValueError, match='--html is .*c.html, which would replace .*c.html.part'):
        evaluate.text(write(tmpdir, 'c.html.part', 'a'), html=str(tmpdir.join('c.html')))
    for sides in (text, __file__), (__file__, text):
        with pytest.raises(ValueError, match='--chart is .*a.txt, which would replace'):
            evaluate.detect(*sides, chart=text)
    with pytest.raises(ValueError, match='precision is int4'):
        evaluate.detect(text, text, precision='int4')
    with pytest.raises(ValueError, match='no figures for 32 tokens: only 0 human and 0 machine texts'):
        evaluate.detect(text, text, model_name='tiny', models_dir=flat_models)
    assert tmpdir.join('a.txt').read() == 'a'
    data = write(tmpdir, 'data/enwik8', 'a')
    shutil.copytree(os.path.join(flat_models, 'tiny'), str(tmpdir.join('models', 'mine')))
    model = {'model_name': 'mine', 'models_dir': str(tmpdir.join('models'))}
    for name in ('checkpoint', 'hparams.json', 'encoder.json', 'vocab.bpe', 'model.ckpt.index', 'model.ckpt.meta',
                 'model.ckpt.data-00000-of-00001'):
        path = str(tmpdir.join('models', 'mine', name))
        before = os.stat(path).st_mtime
        for flag, command, paths in (('jsonl', evaluate.text, [text]), ('html', evaluate.text, [text]),
                                     ('chart', evaluate.detect, [text, text]),
                                     ('chart', evaluate.table, [os.path.dirname(data)])):
            kind = ValueError if flag != 'chart' or importlib.util.find_spec('matplotlib') else ImportError
            with pytest.raises(kind, match='--%s is %s, which would replace|matplotlib' % (flag, path)):
                command(*paths, **dict(model, **{flag: path}))
        assert os.stat(path).st_mtime == before
    with pytest.raises(kind, match='--chart is .*enwik8, which would replace|matplotlib'):
        evaluate.table(os.path.dirname(data), chart=data, **model)


def test_table_checks_everything_first(flat_models, tmpdir, monkeypatch):
    """What cannot be completed is an error before anything is measured."""
    monkeypatch.setattr(loading.session, 'session', None)
    with pytest.raises(FileNotFoundError, match='no folder nowhere; give the') as error:
        evaluate.table('nowhere', models_dir=flat_models)
    assert len(str(error.value)) < 100
    with pytest.raises(FileNotFoundError, match='no benchmark file in .*; `python3 src/evaluate.py BENCHMARK') as error:
        evaluate.table(os.path.join(ROOT, 'src'), models_dir=flat_models)
    assert len(str(error.value)) < 300
    folder = os.path.dirname(write(tmpdir, 'data/enwik8', 'a'))
    models = str(tmpdir.join('models'))
    for name in ('first', 'second'):
        shutil.copytree(os.path.join(flat_models, 'tiny'), os.path.join(models, name))
    with open(os.path.join(models, 'second', 'hparams.json'), 'w', encoding='utf-8') as file:
        file.write('{}')
    with pytest.raises(ValueError, match='second.*hparams.json'):
        evaluate.table(folder, models_dir=models)
    with pytest.raises(FileNotFoundError, match='third'):
        evaluate.table(folder, model_name='first,third', models_dir=models)
    write(tmpdir, 'data/lambada_test.jsonl', '')
    with pytest.raises(ValueError, match='there is no passage in'):
        evaluate.table(folder, model_name='first', models_dir=models)


def test_benchmark_commands_help_has_the_download():
    for name, command in evaluate.COMMANDS.items():
        if name not in ('text', 'detect', 'table'):
            assert all(benchmarks.BENCHMARKS[name][fact] in command.__doc__ for fact in ('file', 'command'))


def test_load_reports_out_of_memory(flat_models):
    with pytest.raises(ValueError, match='out of memory; give a lower --batch_size'):
        with evaluate.load('tiny', flat_models, ALL):
            raise MemoryError


STRUCK = """
from evaluate import text as main
from gpt2.system import progress

def advance(shown, *arguments, advance=progress.Progress.advance, **named):
    scoring = shown.unit == ' batches'
    time.sleep(0.2 * scoring)  # tqdm does not draw a bar more often than that
    advance(shown, *arguments, **named)
    if scoring and shown.done == 3:
        os.kill(os.getpid(), %d)

progress.Progress.advance = advance
"""


@pytest.mark.slow
def test_evaluate_interrupted_prints_what_is_done(script, forks, flat_models, tmpdir):
    """On a terminal below a bar with the perplexity so far, if it is wide enough."""
    arguments = [write(tmpdir, 'a.txt', TEXT * 20), '--model_name', 'tiny', '--models_dir', flat_models,
                 '--batch_size', '1']
    with Conversation(script(STRUCK % signal.SIGINT) + arguments, terminal=True, width=120) as running:
        status, on_terminal = running.end()
    (other_status, in_file, _), = forks.run((STRUCK % signal.SIGTERM, arguments))
    assert (status, other_status) == (130, 143)
    assert b'perplexity' in on_terminal.split(b'documents')[0]
    for out in on_terminal, in_file:
        figures = out.decode('utf-8').rsplit('\r', 1)[0].split('documents', 1)[1]
        figures = dict(re.findall(r'(\S.*?)  +(\S+)', figures))
        assert 0 < float(figures['share of the text']) < 100
        assert float(figures['perplexity per token']) > 1


# Flags

def changed(command, tmpdir, monkeypatch, capsys, **flags):
    """What a command does with these flags, {name: str}: the models that it loads, what these score, what it writes."""
    loaded, scored, out = [], [], tmpdir.mkdir('out%d' % len(tmpdir.listdir()))

    @contextlib.contextmanager
    def load(model_name, models_dir, options, precision='float32'):
        loaded.append((model_name, models_dir, precision))
        text_encoder, hparams = loading.check_model(model_name, models_dir, options)

        def score(ids, first=1):
            scored.append((ids.shape, first))
            return np.ones([len(ids), ids.shape[1] - first], np.float32)

        def predict(n_top):
            def predictions(ids, first=1):
                ones = score(ids, first)
                return batches.Predictions(ones, ones.astype(int), ones, ones, *[
                    np.zeros(ones.shape + (n_top,), kind) for kind in (int, float)])
            return predictions

        def guesser(excluded):
            return lambda ids, first=1: (score(ids, first),) + 2 * (ids[:, first:],)

        yield loading.Model(model_name, text_encoder, hparams, score, guesser, predict)

    monkeypatch.setattr(evaluate, 'load', load)
    options = {name: str(out.join('file')) if value == 'a file' else value for name, value in flags.items()}
    evaluate.COMMANDS[command](*PATHS[command](tmpdir), **options)
    return {'loaded': str(loaded), 'scored': str(scored), 'printed': capsys.readouterr().out,
            'written': str([path.size() > 0 for path in out.listdir()])}


TEXTS_OF_25 = '\n<|endoftext|>\n'.join('%040d' % number for number in range(25))
PATHS = {'text': lambda folder: [write(folder, 'a.txt', TEXTS_OF_25 + '\nabc\ndef\n')],
         'detect': lambda folder: 2 * [write(folder, 'a.txt', TEXTS_OF_25)],
         'ptb': lambda folder: [write(folder, 'data/ptb.test.txt', 'the cat sat on the mat \n' * 9)],
         'lambada': lambda folder: [write(folder, 'data/lambada_test.jsonl', '"a b c"\n' * 20)],
         'table': lambda folder: [os.path.dirname((PATHS['ptb'](folder) + PATHS['lambada'](folder))[0])]}
FLAGS = [  # the commands that have a flag, a value other than the default, and what differs then
    ('text detect ptb lambada table', 'model_name', 'other', 'loaded'),
    ('text detect ptb lambada table', 'models_dir', None, 'loaded'),
    ('text detect ptb lambada table', 'precision', 'int8', 'loaded'),
    ('text detect ptb lambada table', 'batch_size', 1, 'scored'),
    ('text ptb lambada table', 'limit', 1, 'scored'), ('detect', 'limit', 20, 'scored'),
    ('text ptb', 'context', 9, 'scored'), ('text ptb', 'stride', 5, 'scored'),
    ('text', 'per_line', True, 'scored'), ('table', 'all', True, 'printed'),
    ('text', 'jsonl', 'a file', 'written'), ('text', 'html', 'a file', 'written'),
    ('detect table', 'chart', 'a file', 'written')]


@pytest.mark.slow
@pytest.mark.parametrize('command', ['text', 'detect', 'ptb', 'lambada', 'table'])
def test_each_flag_of_a_command_takes_effect(command, flat_models, tmpdir, monkeypatch, capsys):
    """All that it has, each by itself: no flag is ignored on its way to the model or to the file."""
    models_dir = str(tmpdir.join('models'))
    for name in 'tiny', 'other':
        shutil.copytree(os.path.join(flat_models, 'tiny'), os.path.join(models_dir, name))
    options = dict(model_name='tiny', models_dir=models_dir)
    before = changed(command, tmpdir, monkeypatch, capsys, **options)
    rows = [row[1:] for row in FLAGS if command in row[0].split()]
    parameters = inspect.signature(evaluate.COMMANDS[command]).parameters
    assert {flag for flag, _, _ in rows} == set(parameters) - set(
        ['paths', 'path', 'human', 'machine', 'folder']), 'the table has a row for each flag'
    for flag, value, what in rows:
        if flag == 'chart' and importlib.util.find_spec('matplotlib') is None:
            continue
        after = changed(command, tmpdir, monkeypatch, capsys, **dict(
            options, **{flag: flat_models if flag == 'models_dir' else value}))
        assert after[what] != before[what], '%s --%s' % (command, flag)
