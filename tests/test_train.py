"""train.py: gradients against finite differences and PyTorch, Adam against NumPy, and runs that are killed midway."""
import contextlib
import io
import logging
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2 import checkpoint
from gpt2 import corpus
import encoder
from gpt2.fast import xla
from gpt2.system import files
from gpt2.system import process
from gpt2.system import progress
import model
import train
from gpt2.training import graph
from gpt2.training import record
from gpt2.training import run as training_run
from gpt2.system.tf1 import tf
from gpt2.training import run_folder
from gpt2.training.cluster import LocalWorkers
from gpt2.training.graph import (
    build, clip_by_norm, dropout, learning_rate_at, loss_and_gradients, mean_over_batches)
from gpt2.training.record import Record
from gpt2.training.run import Run
from helpers import reference, tiny
from helpers.paths import MODELS
from helpers.peers import transformers_model, transformers_name
from helpers.processes import SECONDS
from helpers.training import (
    RUN_HPARAMS, arguments_of, beside, flags_of, losses_of, metrics_of, options, start_training, stored,
    weights_and_state, write_models_dir)

on_tensorflow_2 = pytest.mark.skipif(not xla.is_supported(), reason='TensorFlow 1.12 has neither XLA nor bfloat16')
REAL_PLOT = record.plot
IN_BFLOAT16 = ((dict(precision='bfloat16'), 'scratch has --precision float32,.* --precision bfloat16'),
               ) * xla.is_supported()
DEMO_VOCABULARY = os.path.join(MODELS, 'demo', 'encoder.json')


@pytest.fixture(scope='module', autouse=True)
def no_plots():
    """Plots take half a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, 'plot', lambda records, path: None)
        yield


def random_tokens(hparams, shape):
    return np.random.RandomState(0).randint(hparams.n_vocab, size=shape)


def build_model(hparams):
    """The trainable variables of a model, in the default graph."""
    model.model(hparams, tf.placeholder(tf.int32, [None, None]))
    return tf.trainable_variables()


def initialize(sess, weights):
    """Give the model's variables these weights, and all others their initial values."""
    sess.run(tf.global_variables_initializer())
    sess.run([variable.initializer for variable in tf.trainable_variables()],
             {variable.initial_value: weights[variable.op.name] for variable in tf.trainable_variables()})


def gradients_of(variables, values):
    return {variable.op.name: value for variable, value in zip(variables, values)}


def assert_close(found, expected, tolerance=1e-5):
    """The same names, and arrays that differ by no more than tolerance times the largest number in any of them."""
    assert sorted(found) == sorted(expected)
    largest = max(np.abs(array).max() for array in expected.values())
    for name in expected:
        assert found[name].shape == expected[name].shape, name
        assert np.abs(found[name] - expected[name]).max() <= tolerance * largest, name


# Gradients

def drop_nothing(x, site):
    """As model.no_dropout. With another function than that, attention is computed again for its gradient."""
    return x


@pytest.mark.slow
def test_loss_and_gradients_equal_finite_differences_of_the_papers_loss(sess):
    """Along random directions of each variable; the loss is the oracle's, in float64.

    Recomputing blocks, attention, and nothing.
    """
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens = random_tokens(hparams, [2, hparams.n_ctx])
    outputs = [loss_and_gradients(hparams, tf.constant(tokens, tf.int32), variables, drop, recompute)
               for drop, recompute in ((model.no_dropout, False), (model.no_dropout, True), (drop_nothing, False))]
    weights = tiny.random_weights(hparams)
    tiny.assign(sess, weights)

    def loss_at(changes):
        moved = {name: array + changes.get(name, 0) for name, array in weights.items()}
        return reference.token_losses(reference.forward(moved, tokens, hparams.n_head)[0], tokens).mean()

    results = sess.run(outputs)
    assert all(abs(loss - loss_at({})) < 1e-6 for loss, _ in results)
    directions = np.random.RandomState(1)
    for i, variable in enumerate(variables):
        for _ in range(3):
            direction = directions.standard_normal(variable.shape.as_list())
            step = 1e-5 / np.linalg.norm(direction)
            slope = (loss_at({variable.op.name: step * direction})
                     - loss_at({variable.op.name: -step * direction})) / (2 * step)
            for _, gradients in results:
                difference = (gradients[i] * direction).sum() - slope
                assert abs(difference) <= 1e-5 * np.linalg.norm(direction), variable.op.name


@pytest.mark.slow
def test_loss_and_gradients_equal_those_of_transformers(sess):
    """PyTorch's automatic differentiation finds the same loss and gradients.

    In float64: its float32 gradients depend on the number of its threads. Ours are computed by one.
    """
    torch = pytest.importorskip('torch', reason='needs transformers and torch')
    hparams = tiny.hparams(n_layer=3, n_embd=20, n_head=5)
    weights = tiny.random_weights(hparams)
    peer = transformers_model(hparams, weights).double()
    parameters = dict(peer.named_parameters())
    tokens = random_tokens(hparams, [3, hparams.n_ctx])
    peer_loss = peer(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
    peer_loss.backward()
    expected = {name: parameters[transformers_name(name)].grad.numpy().reshape(array.shape)
                for name, array in weights.items()}

    variables = build_model(hparams)
    outputs = loss_and_gradients(hparams, tf.constant(tokens, tf.int32), variables, model.no_dropout, False)
    tiny.assign(sess, weights)
    loss, gradients = sess.run(outputs)
    assert abs(loss - peer_loss.item()) < 1e-5
    assert_close(gradients_of(variables, gradients), expected)


@pytest.mark.slow
def test_loss_and_gradients_recompute_with_the_same_dropout(sess):
    """A recomputed block drops what it dropped before, and another step drops something else."""
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens_BT = tf.constant(random_tokens(hparams, [2, hparams.n_ctx]), tf.int32)
    first = tf.placeholder(tf.int64, [])
    drop, places = dropout(0.5, seed=7, sequences=first + np.arange(2)), []
    keep = dropout(0.5, seed=7, sequences=first + np.arange(2), redraw=False)

    def noted_drop(x, site):
        places.append('%s/%s' % (tf.get_variable_scope().name, site))
        return drop(x, site)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, 'recomputed', lambda function, inputs: function(*inputs))
        stored = loss_and_gradients(hparams, tokens_BT, variables, noted_drop, False)
    # As in the training of GPT (section 4.1): embeddings, attention weights, and what is added to the residual stream.
    assert len(set(places)) == len(places) == 1 + 3 * hparams.n_layer
    recomputed = [loss_and_gradients(hparams, tokens_BT, variables, drop, True),
                  loss_and_gradients(hparams, tokens_BT, variables, drop, False),
                  loss_and_gradients(hparams, tokens_BT, variables, keep, False)]
    tiny.assign(sess, tiny.random_weights(hparams))
    losses = set()
    for number in (0, 1, 2 ** 31 - 1):
        (loss, gradients), *again = sess.run([stored] + recomputed, {first: number})
        for loss_again, gradients_again in again:
            assert abs(loss - loss_again) < 1e-6
            assert_close(gradients_of(variables, gradients_again), gradients_of(variables, gradients))
        losses.add(round(float(loss), 4))
    assert len(losses) == 3


@on_tensorflow_2
@pytest.mark.slow
@pytest.mark.parametrize('changes', [{'accumulate': 2}, {'recompute': True}], ids=str)
def test_build_compiled_makes_the_same_step(changes):
    """With dropout: loss and norm of the gradient."""
    hparams = tiny.hparams(n_layer=1, n_ctx=8)
    found = []
    for compiled in (False, True):
        with tf.Graph().as_default(), tf.Session() as sess:
            step = build(hparams, options(seed=7, dropout=0.5, batch_size=1, **changes), compiled=compiled)
            initialize(sess, tiny.random_weights(hparams))
            tokens = random_tokens(hparams, step.tokens.shape.as_list())
            found.append(sess.run([step.loss, step.norm], {step.tokens: tokens, step.first: 12}))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


@on_tensorflow_2
def test_is_worth_compiling_for_many_steps_on_a_gpu(monkeypatch):
    """Where XLA works; the number is that of the whole run, so that a run that resumes computes as before."""
    def answers(**changes):
        for name, value in dict(dict(on_gpu=True, is_usable=True), **changes).items():
            monkeypatch.setattr(graph.xla if name == 'is_usable' else graph.matmul, name, lambda value=value: value)
        return [graph.is_worth_compiling(n) for n in (graph.MIN_STEPS_TO_COMPILE - 1, graph.MIN_STEPS_TO_COMPILE)]

    assert answers() == [False, True]
    assert answers(on_gpu=False) == answers(is_usable=False) == [False, False]


@on_tensorflow_2
@pytest.mark.slow
def test_loss_and_gradients_in_bfloat16_round_products_only(sess):
    """All matrices are multiplied in bfloat16, and nothing else is computed in it; gradients are float32.

    bfloat16 keeps 8 bits, so that a rounding is up to 1 / 512. All of a row add up to a few times that.
    """
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens_BT = tf.constant(random_tokens(hparams, [2, hparams.n_ctx]), tf.int32)
    n_before = len(sess.graph.get_operations())
    found = loss_and_gradients(hparams, tokens_BT, variables, model.no_dropout, False, 'bfloat16')
    operations = sess.graph.get_operations()[n_before:]
    in_bfloat16 = {op.type for op in operations for x in op.outputs if x.dtype == tf.bfloat16}
    assert {x.dtype for op in operations if 'MatMul' in op.type for x in op.inputs} == {tf.bfloat16}
    assert in_bfloat16 <= {'Cast', 'MatMul', 'BatchMatMulV2', 'Squeeze', 'Reshape', 'ExpandDims', 'Shape'}, in_bfloat16
    expected = loss_and_gradients(hparams, tokens_BT, variables, model.no_dropout, False)
    tiny.assign(sess, tiny.random_weights(hparams))
    (loss, gradients), (float32_loss, float32_gradients) = sess.run([found, expected])
    assert 1e-6 < abs(loss / float32_loss - 1) < 0.01
    assert_close(gradients_of(variables, gradients), gradients_of(variables, float32_gradients), 0.05)


def test_precision_bfloat16_is_refused_on_tensorflow_1_12(models_dir, monkeypatch):
    """In one line, before anything is written."""
    monkeypatch.setattr(train, 'tf', SimpleNamespace(__version__='1.12.0'))
    with pytest.raises(ValueError, match='TensorFlow 1.12.0 .* bfloat16; leave out --precision, or use TensorFlow 2.x'):
        train.train(**flags_of(models_dir, 'refused', precision='bfloat16'))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


def test_train_notices_that_there_is_no_tensorflow_before_it_prepares_the_folder(models_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)  # which is how Python notes a module that is not to be found
    with pytest.raises(ImportError, match="^No module named 'tensorflow'$"):
        train.train(**flags_of(models_dir, 'refused'))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


@pytest.mark.slow
def test_mean_over_batches_equals_one_large_batch(sess):
    """4 x 2 against 1 x 8."""
    hparams = tiny.hparams(n_layer=1)
    variables = build_model(hparams)
    tokens_BT = tf.constant(random_tokens(hparams, [8, hparams.n_ctx]), tf.int32)

    def part(i):
        return loss_and_gradients(hparams, tokens_BT[2 * i:2 * i + 2], variables, model.no_dropout, False)

    outputs = [mean_over_batches(range(4), part, variables),
               loss_and_gradients(hparams, tokens_BT, variables, model.no_dropout, False)]
    tiny.assign(sess, tiny.random_weights(hparams))
    (loss, *gradients), (large_loss, large_gradients) = sess.run(outputs)
    assert abs(loss - large_loss) < 1e-6
    assert_close(gradients_of(variables, gradients), gradients_of(variables, large_gradients))


# Dropout

@pytest.mark.slow
@pytest.mark.parametrize('dropped, removed', [
    (['weights'], ['c_attn']), (['attn'], ['attn/c_proj']), (['mlp'], ['mlp/c_proj']), (['attn', 'mlp'], ['c_proj'])])
def test_loss_and_gradients_drop_what_the_paper_says(sess, dropped, removed):
    """Section 4.1: attention weights after the softmax, and what a block adds to the residual stream.

    With all of it dropped, the loss is the oracle's for a model in which values, or projections, are 0.
    """
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens = random_tokens(hparams, [2, hparams.n_ctx])
    loss, _ = loss_and_gradients(hparams, tf.constant(tokens, tf.int32), variables,
                                 lambda x, site: x * 0 if site in dropped else x, False)
    weights = tiny.random_weights(hparams)
    tiny.assign(sess, weights)
    for name in weights:
        if any('/%s/' % part in name for part in removed):
            weights[name][..., 0 if 'c_proj' in name else 2 * hparams.n_embd:] = 0  # the last third are the values
    expected = reference.token_losses(reference.forward(weights, tokens, hparams.n_head)[0], tokens).mean()
    assert sess.run(loss) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_loss_and_gradients_drop_the_embeddings(sess):
    """With all embeddings dropped, nothing of the input is left."""
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens = random_tokens(hparams, [2, hparams.n_ctx])
    first_changed = tokens.copy()
    first_changed[:, 0] = (tokens[:, 0] + 1) % hparams.n_vocab  # which nothing predicts, so that it is input alone
    losses = [loss_and_gradients(hparams, tf.constant(batch, tf.int32), variables,
                                 lambda x, site, gone=gone: x * 0 if site == gone else x, False)[0]
              for gone in ('embed', None) for batch in (tokens, first_changed)]
    tiny.assign(sess, tiny.random_weights(hparams))
    found = sess.run(losses)
    assert found[0] == found[1] and found[2] != found[3]


@pytest.mark.slow
def test_build_drops_by_the_number_of_each_sequence_and_the_seed(sess):
    """In 2 accumulated batches of 2: whichever batch a sequence is in, and differently for another number."""
    hparams = tiny.hparams(n_layer=1, n_ctx=8)
    graph = build(hparams, options(seed=7, dropout=0.5, batch_size=2, accumulate=2))
    tokens = random_tokens(hparams, [2, 2, hparams.n_ctx])
    number = tf.placeholder(tf.int64, [])
    drop, variables = dropout(0.5, seed=7, sequences=number[None]), tf.trainable_variables()
    losses = [loss_and_gradients(hparams, tf.constant(sequence[None], tf.int32), variables, drop, False)[0]
              for sequence in tokens.reshape(4, -1)]
    initialize(sess, tiny.random_weights(hparams))
    expected = [sess.run(loss, {number: place}) for loss, place in zip(losses, (12, 13, 14, 15))]
    found = [sess.run(graph.loss, {graph.tokens: tokens, graph.first: first}) for first in (12, 13)]
    assert found[0] == pytest.approx(np.mean(expected), abs=1e-5) and abs(found[1] - found[0]) > 1e-4


# Learning

@pytest.mark.slow
def test_build_is_adam_with_decoupled_decay_of_a_clipped_mean_gradient(sess):
    """Three steps, against Kingma and Ba 2015 (with epsilon-hat) and Loshchilov and Hutter 2017 in NumPy."""
    hparams = tiny.hparams(n_layer=1)
    clip, rate, decay = 0.5, 0.01, 0.3
    graph = build(hparams, options(clip=clip, weight_decay=decay, dropout=0, batch_size=2, accumulate=2))
    variables = tf.trainable_variables()
    tokens_BT = tf.reshape(graph.tokens, [4, hparams.n_ctx])
    _, gradient_tensors = loss_and_gradients(hparams, tokens_BT, variables, model.no_dropout, False)
    weights = tiny.random_weights(hparams)
    initialize(sess, weights)
    mean, square = {name: 0 for name in weights}, {name: 0 for name in weights}
    tokens = random_tokens(hparams, [3, 2, 2, hparams.n_ctx])
    for step in range(1, 4):
        feeds = {graph.tokens: tokens[step - 1], graph.first: 4 * step, graph.learning_rate: rate}
        gradients = gradients_of(variables, sess.run(gradient_tensors, feeds))
        norm = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients.values()))
        assert norm > clip  # or clipping would not be seen
        loss, found_norm, _ = sess.run([graph.loss, graph.norm, graph.update], feeds)
        assert abs(found_norm / norm - 1) < 1e-5
        found = gradients_of(variables, sess.run(variables))
        for name, gradient in gradients.items():
            clipped = gradient.astype(np.float64) * clip / norm
            mean[name] = 0.9 * mean[name] + 0.1 * clipped
            square[name] = 0.95 * square[name] + 0.05 * clipped ** 2
            scale = rate * math.sqrt(1 - 0.95 ** step) / (1 - 0.9 ** step)
            decayed = weights[name] * (1 if name.endswith(('/b', '/g')) else 1 - rate * decay)
            expected = decayed - scale * mean[name] / (np.sqrt(square[name]) + 1e-8)
            clear = np.abs(gradient) > 1e-5  # Adam makes a full step of a gradient that is nothing but rounding
            assert clear.mean() > 0.6 and np.abs(found[name] - expected)[clear].max() < 2e-6, name
        weights = found


@pytest.mark.slow
def test_train_only_changes_what_it_matches_as_training_all_does():
    """And keeps Adam's averages of nothing else. With and without recomputing and accumulating."""
    hparams = tiny.hparams()
    tokens = random_tokens(hparams, [4, hparams.n_ctx])
    found, states = [], []
    for train_only, accumulate, recompute in (None, 1, False), ('h1/mlp|ln_f', 1, False), ('h1/mlp|ln_f', 2, True):
        with tf.Graph().as_default(), tf.Session() as sess:
            graph = build(hparams, options(dropout=0, batch_size=4 // accumulate, accumulate=accumulate, clip=1e9,
                                           recompute=recompute, train_only=train_only))
            initialize(sess, tiny.random_weights(hparams))
            sess.run(graph.update, {graph.tokens: tokens.reshape(graph.tokens.shape.as_list()), graph.first: 0,
                                    graph.learning_rate: 0.01})
            found.append(gradients_of(tf.trainable_variables(), sess.run(tf.trainable_variables())))
            states.append({re.sub('/Adam(_1)?$', '', name) for name in graph.state if 'beta' not in name})
    named = {name for name in found[0] if re.search('h1/mlp|ln_f', name)}
    assert 0 < len(named) < len(found[0]) and states == [set(found[0]), named, named]
    for name, weights in tiny.random_weights(hparams).items():
        for weights_found in found[1:]:
            expected = (found[0] if name in named else {name: weights})[name]
            assert np.abs(weights_found[name] - expected).max() < 1e-5, name


def test_train_only_lists_the_names_if_none_matches(sess):
    """The error for a pattern that matches no variable lists those of the first block and outside of blocks."""
    with pytest.raises(ValueError, match='--train_only h99/.* model/.*h0/mlp'):
        build(tiny.hparams(), options(train_only='h99/'))


def test_clip_by_norm_scales_down_together_and_never_up(sess):
    """All gradients are scaled by one factor, which is at most 1."""
    gradients = [tf.constant([[3.0], [4.0]]), tf.constant([12.0])]  # 5 and 12: a norm of 13
    for most, scale in ((6.5, 0.5), (13, 1), (14, 1), (1e30, 1)):
        clipped, norm = sess.run(clip_by_norm(gradients, most))
        assert norm == pytest.approx(13)
        assert np.allclose(clipped[0].ravel(), [3 * scale, 4 * scale]) and np.allclose(clipped[1], 12 * scale)


@pytest.mark.slow
def test_build_overfits_one_batch(sess):
    """The loss falls from that of a guess to almost 0."""
    hparams = tiny.hparams(n_embd=32, n_layer=1)
    graph = build(hparams, options(dropout=0, batch_size=2, accumulate=1, weight_decay=0))
    sess.run(tf.global_variables_initializer())
    tokens = random_tokens(hparams, [1, 2, hparams.n_ctx])
    losses = [sess.run([graph.loss, graph.update], {
        graph.tokens: tokens, graph.first: 2 * step, graph.learning_rate: 0.01})[0] for step in range(120)]
    assert abs(losses[0] - math.log(hparams.n_vocab)) < 0.1  # at first every token is as likely
    assert losses[-1] < 0.02


def test_learning_rate_at_warms_up_linearly_and_decays_along_a_cosine():
    """Also without warmup, and with a warmup longer than the decay."""
    def rates(**flags):
        return np.array([learning_rate_at(step, peak=0.5, **flags) for step in range(130)])

    found = rates(warmup=10, decay=110)
    assert np.allclose(found[:10], 0.05 * np.arange(1, 11))
    assert np.allclose(found[10:111], 0.25 + 0.25 * np.cos(np.linspace(0, np.pi, 101)))
    assert (np.abs(found[110:]) < 1e-12).all()
    assert rates(warmup=0, decay=100)[0] == 0.5
    assert np.isfinite(rates(warmup=20, decay=10)).all()


# A run and its folder

@pytest.fixture(scope='module')
def models_dir(tmp_path_factory):
    return write_models_dir(tmp_path_factory.mktemp('train'))


# Trains, receives a signal once some step is computed, and records wrong losses from another step on. As if `tee` had
# ended, nobody reads its stderr.
STRUCK = '''
from train import train as main
from gpt2.training.run import Run
number, at, wrong_from = %d, %d, %d
show = Run.show

def struck(run, figures, progress):
    run.record.summaries.flush()
    if figures['step'] == at:
        os.kill(os.getpid(), number)
    if figures['step'] >= wrong_from:
        figures['loss_nats'] += 1
    show(run, figures, progress)

Run.show = struck
reading, writing = os.pipe()
os.dup2(writing, 2)
os.close(writing)
os.close(reading)
'''


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


def saved_steps(folder, kind):
    names = [re.match(kind + r'\.ckpt-(\d+)\.index$', name) for name in os.listdir(folder)]
    return sorted(int(name.group(1)) for name in names if name)


@pytest.fixture(scope='module')
def unbroken(models_dir):
    """The folder of a run that nothing stopped. What it has reported is beside the models, in unbroken.log."""
    with open(beside(models_dir, 'unbroken.log'), 'w') as log, contextlib.redirect_stderr(log):
        train.train(**flags_of(models_dir, 'unbroken', keep=2, valid=beside(models_dir, 'valid.txt'), valid_every=15))
    return os.path.join(models_dir, 'unbroken')


@pytest.mark.slow
def test_train_killed_then_interrupted_then_finished_equals_an_unbroken_run(forks, models_dir, unbroken):
    """kill -9 at some step, Ctrl-C at a later one, the same command each time: equal losses and weights, bit by bit.

    The killed process recorded wrong losses for the steps after its last save: they must not remain. Nobody reads what
    the first two print, as if `tee` had ended: they go on, and the interrupted one saves.
    """
    flags = flags_of(models_dir, 'broken')
    folder = os.path.join(models_dir, 'broken')
    killed_at = random.randrange(7, 18)
    saved = (killed_at - 1) // 5 * 5

    def run_struck(number, at, wrong_from):
        (status, _, _), = forks.run((STRUCK % (number, at, wrong_from), arguments_of(flags), ['run_name']))
        return status

    assert run_struck(signal.SIGKILL, killed_at, wrong_from=saved + 1) == -signal.SIGKILL
    assert run_folder.last_save(folder) == saved
    assert metrics_of(models_dir, 'broken')[-1]['step'] == killed_at - 1
    for name in ('model.ckpt-35.part.index', 'model.ckpt-35.index', 'training/state.ckpt-35.index'):
        open(os.path.join(folder, name), 'wb').close()  # killed a little later, it would have left some of these

    assert run_struck(signal.SIGINT, killed_at + 4, wrong_from=1000) == 128 + signal.SIGINT
    assert run_folder.last_save(folder) == metrics_of(models_dir, 'broken')[-1]['step'] == killed_at + 4
    assert saved_steps(folder, 'model') == [killed_at + 4]

    train.train(**flags)
    assert losses_of(models_dir, 'broken') == losses_of(models_dir, 'unbroken')
    assert_same(weights_and_state(folder), weights_and_state(unbroken))
    expected = [(step, np.float32(loss)) for step, loss, _ in losses_of(models_dir, 'unbroken')]
    assert tensorboard_losses(folder) == expected
    # Within a second, a file of the same name would overwrite the one before.
    assert len({re.sub(r'\.\d{10}\.', '.', os.path.basename(path)) for path in event_files(folder)}) == 3


@on_tensorflow_2
@pytest.mark.slow
def test_precision_bfloat16_resumes_as_if_never_stopped_and_saves_float32(models_dir):
    """Bit by bit. The loss differs from that in float32, but little."""
    for name, steps, precision in (
            ('halves', 2, 'bfloat16'), ('halves', 4, 'bfloat16'), ('whole', 4, 'bfloat16'), ('32', 1, 'float32')):
        train.train(**flags_of(models_dir, name, steps=steps, precision=precision, decay=4, save_every=2))
    found, expected = [weights_and_state(os.path.join(models_dir, name)) for name in ('halves', 'whole')]
    assert_same(found, expected)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    loss, float32_loss = [losses_of(models_dir, name)[0][1] for name in ('whole', '32')]
    assert 1e-6 < abs(loss / float32_loss - 1) < 0.01


def event_files(folder):
    training = os.path.join(folder, 'training')
    paths = [os.path.join(training, name) for name in os.listdir(training) if 'tfevents' in name]
    return sorted(paths, key=os.path.getmtime)


def tensorboard_losses(folder):
    """What TensorBoard shows: where a process starts, it forgets what earlier ones recorded of that step and later."""
    shown = []
    for path in event_files(folder):
        for event in tf.train.summary_iterator(path):
            if event.session_log.status == tf.SessionLog.START:
                shown = [(step, loss) for step, loss in shown if step < event.step]
            shown += [(event.step, np.float32(value.simple_value))
                      for value in event.summary.value if value.tag == 'loss_nats']
    return shown


@pytest.mark.slow
def test_record_has_every_step(models_dir, unbroken):
    """And the valid loss before the first one, for comparison."""
    start, *records = metrics_of(models_dir, 'unbroken')
    assert sorted(start) == ['step', 'valid_loss_nats'] and start['step'] == 0
    assert start['valid_loss_nats'] == pytest.approx(records[0]['loss_nats'], abs=0.5)
    assert [figures['step'] for figures in records] == list(range(1, 41))
    for figures in records:
        expected = learning_rate_at(figures['step'] - 1, peak=0.01, warmup=5, decay=40)
        assert figures['learning_rate'] == pytest.approx(expected)
        assert ('valid_loss_nats' in figures) == (figures['step'] in (15, 30, 40))
    assert records[-1]['valid_loss_nats'] < records[14]['valid_loss_nats'] < records[0]['loss_nats']


@pytest.mark.slow
def test_keep_limits_the_number_of_saves_and_each_is_a_model(sess, models_dir, unbroken, tmp_path):
    """The last one has the valid loss that was recorded."""
    assert saved_steps(unbroken, 'model') == saved_steps(os.path.join(unbroken, 'training'), 'state') == [35, 40]
    assert not [name for name in os.listdir(unbroken) if name.endswith('.part')]
    hparams = checkpoint.load_hparams('unbroken', models_dir)
    assert checkpoint.model_dir('unbroken', models_dir) == unbroken
    tokens = corpus.load_tokens(encoder.get_encoder('unbroken', models_dir), beside(models_dir, 'valid.txt'),
                                str(tmp_path))
    tokens = tokens[:len(tokens) // 16 * 16].reshape(-1, 16)
    tokens_BT = tf.placeholder(tf.int32, [None, None])
    losses = model.token_losses(model.model(hparams, tokens_BT)['logits'], tokens_BT)
    checkpoint.restore(sess, 'unbroken', models_dir)
    recorded = metrics_of(models_dir, 'unbroken')[-1]['valid_loss_nats']
    assert sess.run(losses, {tokens_BT: tokens}).mean() == pytest.approx(recorded, abs=1e-5)


@pytest.fixture(scope='module')
def saved_run(models_dir):
    """A Run that has done and saved one step."""
    flags = options(**flags_of(models_dir, 'run', keep=1))
    folder = os.path.join(models_dir, 'run')
    with run_folder.claimed(folder):
        run_folder.begin(folder, flags)
    with tf.Graph().as_default(), tf.Session() as sess:
        run = Run(sess, folder, flags, tiny.hparams(**RUN_HPARAMS), encoder.get_encoder('tiny', models_dir),
                  LocalWorkers())
        batch = random_tokens(run.hparams, [4, 16])
        run.one_step(batch)
        run.save(batch)
        yield run


@pytest.fixture
def run(saved_run):
    """A Run just restored from its last save; its graph and session are the default ones."""
    with saved_run.sess.graph.as_default(), saved_run.sess.as_default():
        saved_run.step = saved_run.saved = saved_run.restore()
        saved_run.interrupted, saved_run.was_too_high, saved_run.valid_loss = 0, False, None
        yield saved_run


def with_flags(monkeypatch, run, **changes):
    """Give the Run other flags during a test."""
    monkeypatch.setattr(run, 'options', options(**dict(vars(run.options), **changes)))


@pytest.mark.slow
@pytest.mark.parametrize('has_save', [True, False])
def test_learn_stops_when_training_diverges(run, monkeypatch, has_save):
    """The error names the last save, if there is one, and that save is intact."""
    saved, expected = run.step, weights_and_state(run.folder)
    with_flags(monkeypatch, run, learning_rate=1e20, warmup=0, save_every=1)
    monkeypatch.setattr(run, 'saved', saved if has_save else 0)
    remedy = 'The save of step %d is intact' % saved if has_save else 'Nothing is saved yet'
    with pytest.raises(ValueError, match=r'^step \d+ .*(nan|inf).*diverged. %s.*--learning_rate' % remedy) as error:
        run.learn(random_tokens(run.hparams, [1000]), None)
    assert '\n' not in str(error.value)
    assert run_folder.last_save(run.folder) == saved
    assert_same(weights_and_state(run.folder), expected)


@pytest.mark.slow
def test_learn_does_not_save_weights_that_are_worse_than_a_guess(run, monkeypatch, capsys):
    """Though their loss is finite. A step whose loss is far too high is reported, once while it stays so."""
    saved, expected = run.step, weights_and_state(run.folder)
    assert run.first_loss < 7  # a guess is log(257), 5.5
    with_flags(monkeypatch, run, learning_rate=3.0, warmup=0, save_every=4, steps=run.step + 20)
    said = r'step %d has a loss of [\d.]+ nats, far above the 5\.55 of a guess' % (saved + 4 - saved % 4)
    with pytest.raises(ValueError, match=said):
        run.learn(random_tokens(run.hparams, [1000]), None)
    assert_same(weights_and_state(run.folder), expected)
    stderr = capsys.readouterr().err
    assert len(re.findall(r'step \d+: a loss of [\d.]+ is far above the 5\.55 of a guess', stderr)) == 1


@pytest.mark.slow
def test_is_too_high_compares_with_a_guess_and_the_first_loss(run, monkeypatch):
    """A loss is too high if it is 3 nats above the larger of the two."""
    guess = math.log(257)
    for start, limit in ((3, guess + 3), (guess + 2, guess + 5)):
        monkeypatch.setattr(run, 'first_loss', start)
        assert run.is_too_high(limit + 0.01) and not run.is_too_high(limit - 0.01)


@pytest.mark.slow
def test_one_step_raises_for_a_gradient_that_is_not_finite(run, monkeypatch):
    """Even if the loss is."""
    monkeypatch.setattr(run, 'compute', lambda tensors, feeds: (3.0, float('nan'), None))
    with pytest.raises(ValueError, match='a gradient of norm nan.*diverged'):
        run.one_step(random_tokens(run.hparams, [4, 16]))


def test_learn_ends_with_the_signal_that_another_worker_has_received(run, monkeypatch):
    """Before the next step, and with its status: training is not finished."""
    step, together = run.step, LocalWorkers()
    together.largest = lambda number: int(signal.SIGTERM)
    monkeypatch.setattr(process, 'interrupted_by', None)
    monkeypatch.setattr(run, 'cluster', together)
    with_flags(monkeypatch, run, steps=step + 3)
    run.learn(random_tokens(run.hparams, [1000]), None)
    assert run.step == step and process.interrupted_by == signal.SIGTERM


def test_learn_reads_the_batches_of_its_seed_from_the_one_after_the_last_save(run, monkeypatch, capsys):
    """That is what makes a resumed run equal to an unbroken one."""
    with_flags(monkeypatch, run, seed=5, steps=run.step + 3)
    tokens, batches = random_tokens(run.hparams, [1000]), []

    def one_step(batch):
        batches.append(batch)
        run.step += 1
        return {'step': run.step, 'loss_nats': 1.0, 'tokens_per_second': 1.0}

    monkeypatch.setattr(run, 'one_step', one_step)
    monkeypatch.setattr(run, 'save', lambda batch: None)
    expected = corpus.training_batches(tokens, batch_size=4, n_ctx=16, seed=5, first=run.step)
    run.learn(tokens, None)
    assert len(batches) == 3 and all(np.array_equal(batch, next(expected)) for batch in batches)
    assert '%d of %d steps: ' % (run.step, run.step) in capsys.readouterr().err  # those before it are counted


def test_one_step_counts_the_tokens_of_all_workers(run, monkeypatch):
    """In its tokens per second."""
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(training_run, 'time', SimpleNamespace(time=lambda: next(clock)))
    monkeypatch.setattr(run, 'cluster', SimpleNamespace(index=1, is_chief=False))
    monkeypatch.setattr(run, 'compute', lambda tensors, feeds: (3.0, 1.0, None))
    assert run.one_step(random_tokens(run.hparams, [8, 16]))['tokens_per_second'] == 8 * 16 / 2


def test_decay_is_the_step_at_which_the_learning_rate_is_0(run, monkeypatch):
    """None is the last step."""
    batch = random_tokens(run.hparams, [4, 16])
    for decay, last in ((10, 10), (None, 50)):
        with_flags(monkeypatch, run, warmup=0, steps=50, decay=decay, learning_rate=0.01)
        run.step = last
        assert run.one_step(batch)['learning_rate'] < 1e-9
        run.step = last // 2
        assert run.one_step(batch)['learning_rate'] == pytest.approx(0.005)


def test_compute_leaves_the_main_thread_free_for_ctrl_c(run, monkeypatch):
    """TensorFlow runs in another thread."""
    monkeypatch.setattr(run, 'sess', SimpleNamespace(run=lambda tensors, feeds: threading.current_thread()))
    assert run.compute(None, None) is not threading.main_thread()


@pytest.mark.slow
def test_seed_determines_new_weights(models_dir, tmp_path, monkeypatch):
    """Equal seeds give equal weights, another seed gives others."""
    def build(hparams, options, cluster, compiled):
        return SimpleNamespace(state={}, variables=build_model(hparams))

    monkeypatch.setattr(training_run, 'build', build)
    found = []
    for seed in (3, 3, 4):
        folder = str(tmp_path / ('%d' % len(found)))
        os.makedirs(os.path.join(folder, 'training'))
        with tf.Graph().as_default(), tf.Session() as sess:
            hparams, text_encoder = tiny.hparams(**RUN_HPARAMS), encoder.get_encoder('tiny', models_dir)
            run = Run(sess, folder, options(seed=seed), hparams, text_encoder, LocalWorkers())
            found.append(sess.run(run.graph.variables[0]))
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2])


def test_print_samples_leaves_out_the_start_token(run, monkeypatch, capsys):
    """But not an end of text that was sampled."""
    monkeypatch.setattr(run, 'samples', [tf.constant([[256] + run.encoder.encode('hi') + [256]]) - 0,
                                         tf.constant([run.encoder.encode('ho')]) - 0])
    run.print_samples()
    shown = capsys.readouterr().err
    assert re.findall(r'SAMPLE AT STEP %d =+\n(.*)' % run.step, shown) == ['hi<|endoftext|>', 'ho']


def test_build_samples_refuses_a_prompt_that_leaves_no_room(run, monkeypatch):
    """Nor an empty one."""
    monkeypatch.setattr(training_run.sample, 'sample_sequence', lambda **arguments: arguments)
    with_flags(monkeypatch, run, sample_every=1, sample_prompt='x' * 15)
    assert run.build_samples()[1]['length'] == 1
    for prompt in ('', 'x' * 16):
        with_flags(monkeypatch, run, sample_every=1, sample_prompt=prompt)
        with pytest.raises(ValueError, match='it must have 1 to 15'):
            run.build_samples()


# The best by the valid loss

@pytest.mark.slow
def test_validate_keeps_the_model_with_the_lowest_loss_as_best(models_dir, tmp_path, monkeypatch, capsys):
    """It is a complete model, a resumed run remembers it, and the last line of a run says how to sample from it."""
    losses = iter([5.0, 4.0, 4.5, 3.0, 3.5, 9.0, 8.0])  # before the first step, and after each one; and on another text
    monkeypatch.setattr(Run, 'measure', lambda run, tokens: next(losses))
    flags = flags_of(models_dir, 'measured', valid=beside(models_dir, 'valid.txt'), valid_every=1, save_every=1)
    best = os.path.join(models_dir, 'measured', 'best')
    for steps, expected in ((2, 1), (4, 3)):
        train.train(**dict(flags, steps=steps))
        assert checkpoint.model_dir('measured/best', models_dir) == best
        assert checkpoint.weights_prefix(best).endswith('model.ckpt-%d' % expected)
        assert saved_steps(best, 'model') == [expected]
        assert encoder.get_encoder('measured/best', models_dir).encode('a') == [64]
        assert '3.000' in capsys.readouterr().err.splitlines()[-1] or expected == 1
    record = metrics_of(models_dir, 'measured')[3]
    assert record['step'] == 3 and record['valid_loss_nats'] == 3.0
    train.train(**dict(flags, steps=5, valid=beside(models_dir, 'data.txt')))
    assert metrics_of(models_dir, 'measured')[-2] == {'step': 4, 'valid_loss_nats': 9.0}
    assert checkpoint.weights_prefix(best).endswith('model.ckpt-5')


def validated(monkeypatch, run, valid, losses):
    """Whether each loss that is measured on a text, one a step, makes the model the best."""
    losses = iter(losses)
    monkeypatch.setattr(run, 'measure', lambda tokens: next(losses))
    monkeypatch.setattr(checkpoint, 'save', lambda sess, folder, hparams, source, step: kept.append(step))
    kept, steps = [], []
    for _ in range(3):
        run.step += 1
        run.validate(valid)
        steps.append(run.step in kept)
    return steps


def test_validate_does_not_compare_losses_on_different_texts(run, monkeypatch):
    """The first model that is measured on a text is the best one so far."""
    texts = [SimpleNamespace(filename='cache/tokens-%s.uint16' % name) for name in 'ab']
    monkeypatch.setattr(run, 'best', {})
    assert validated(monkeypatch, run, texts[0], [2.0, 3.0, 1.5]) == [True, False, True]
    assert validated(monkeypatch, run, texts[1], [9.0, 9.0, 8.0]) == [True, False, True]
    assert run_folder.read_dict(run.folder, 'best.json')['valid_loss_nats'] == 8.0


def test_summary_says_if_training_made_the_model_worse(run, monkeypatch):
    """If the valid loss was lowest before the first step, it suggests what to change."""
    monkeypatch.setattr(run, 'best', {})
    monkeypatch.setattr(run, 'measure', lambda tokens: 3.0)
    monkeypatch.setattr(checkpoint, 'save', None)  # the model before the first step is not kept
    with_flags(monkeypatch, run, valid='valid.txt')
    run.step = 0
    run.validate(SimpleNamespace(filename='cache/tokens-a.uint16'))
    run.step = run.saved = 1
    assert re.search('lowest, 3.000, before the first step.* --learning_rate', str(run.summary()))


# Ctrl-C

@pytest.mark.slow
@pytest.mark.parametrize('number', process.INTERRUPTS)
def test_measure_ends_at_ctrl_c_and_what_was_learned_is_saved(run, models_dir, monkeypatch, number):
    """Validation may take minutes. The record then lacks its result."""
    monkeypatch.setattr(process, 'interrupted_by', None)
    begun, mean_loss = [], run.mean_loss
    step = run.step

    def interrupted(windows):
        if run.step > step:
            begun.append(len(windows))
            if len(begun) == 2:
                os.kill(os.getpid(), number)
        return mean_loss(windows)

    monkeypatch.setattr(run, 'mean_loss', interrupted)
    with_flags(monkeypatch, run, valid_every=1, steps=step + 5)
    valid = corpus.load_tokens(run.encoder, beside(models_dir, 'valid.txt'), os.path.join(run.folder, 'cache'))
    with process.interruptible(run.interrupt):
        run.learn(random_tokens(run.hparams, [1000]), valid)
    assert process.interrupted_by == number  # for the exit status
    assert len(begun) == 3 < len(valid) // 32  # the last is of the batch that was learned, before it is saved
    assert run.saved == run_folder.last_save(run.folder) == step + 1
    assert run.record.read()[-1]['step'] == step + 1
    assert 'valid_loss_nats' not in run.record.read()[-1]


@pytest.mark.slow
def test_interrupt_twice_stops_at_once_and_names_the_last_save(models_dir, unbroken, monkeypatch):
    """In the message of the KeyboardInterrupt, which flags.run prints."""
    def twice(run, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    monkeypatch.setattr(Run, 'one_step', twice)
    monkeypatch.setattr(Run, '__init__', quick_init)
    with pytest.raises(KeyboardInterrupt, match='unbroken: stopped at once; .* step 40$'):
        train.train(**flags_of(models_dir, 'unbroken', keep=2, steps=50))


def test_interrupt_again_stops_at_once_after_ctrl_c_only(run, monkeypatch, capfd):
    """A lost connection sends SIGHUP twice, and systemd sends it after SIGTERM: neither may cut off the save."""
    for first in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        run.interrupted = 0
        for number in (first, signal.SIGTERM, signal.SIGHUP):
            monkeypatch.setattr(process, 'interrupted_by', number)
            run.interrupt()
        assert capfd.readouterr().err.count('saving first') == 1 and run.interrupted
        monkeypatch.setattr(process, 'interrupted_by', signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run.interrupt()


def test_interrupt_needs_no_reader(run, monkeypatch):
    """Ctrl-C ends `tee`, too."""
    def write(number, text):
        raise BrokenPipeError

    monkeypatch.setattr(process, 'interrupted_by', signal.SIGINT)
    monkeypatch.setattr(os, 'write', write)
    run.interrupt()
    assert run.interrupted == signal.SIGINT


def quick_init(run, sess, folder, flags, hparams, text_encoder, cluster):
    """A Run that has no graph."""
    vars(run).update(folder=folder, options=flags, hparams=hparams, cluster=cluster)
    vars(run).update(interrupted=0, best={}, valid_loss=None)
    run.step = run.saved = run_folder.last_save(folder)


@pytest.mark.slow
def test_interrupt_before_the_first_step_saves_nothing(models_dir, monkeypatch, capfd, recwarn):
    """The message says so, and the folder is not taken for a model."""
    monkeypatch.setattr(Run, 'mean_loss', lambda run, windows: os.kill(os.getpid(), signal.SIGINT) or 1.0)
    monkeypatch.setattr(process, 'interrupted_by', None)
    train.train(**flags_of(models_dir, 'early', valid=beside(models_dir, 'valid.txt')))
    assert process.interrupted_by == signal.SIGINT  # for the exit status
    stderr = capfd.readouterr().err
    assert stderr.endswith('early: stopped before the first step; nothing is saved\n') and 'arning' not in stderr
    assert run_folder.last_save(os.path.join(models_dir, 'early')) == 0
    with pytest.raises(FileNotFoundError, match=r'models there: (?!.*early)'):
        checkpoint.model_dir('nowhere', models_dir)
    assert not os.path.exists(os.path.join(models_dir, 'early', 'checkpoint'))
    assert not [warning for warning in recwarn if 'matplotlib' in str(warning.filename)]


@pytest.mark.slow
def test_train_prints_an_error_in_one_line_with_status_1(models_dir):
    """Without a traceback."""
    process = start_training(flags_of(models_dir, 'refused', dropout=1.5))
    assert process.communicate(timeout=SECONDS) == (
        '', 'train.py: --dropout is 1.5; it must be 0 or more and less than 1\n')
    assert process.returncode == 1


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_save_killed_at_any_moment_leaves_a_complete_one(run, monkeypatch):
    """Before each renaming and each removal of a file: weights, and the optimizer's state of the same step."""
    saved, done = run.step, []
    batch = random_tokens(run.hparams, [4, 16])
    expected = weights_and_state(run.folder)

    def kill_at(number, function):
        def counted(*paths):
            if len(done) == number:
                raise Killed
            done.append(os.path.basename(paths[-1]))
            function(*paths)
        return counted

    for n_done in range(100):
        run.one_step(batch)
        now = run.sess.run(dict(run.graph.state, **{variable.op.name: variable for variable in
                                                    tf.trainable_variables()}))
        del done[:]
        with monkeypatch.context() as patch:
            patch.setattr(os, 'replace', kill_at(n_done, os.replace))
            patch.setattr(os, 'remove', kill_at(n_done, os.remove))
            try:
                run.save(batch)
                finished = True
            except Killed:
                finished = False
        if 'checkpoint' in done:
            saved, expected = run.step, now
        assert run_folder.last_save(run.folder) == saved
        assert_same(weights_and_state(run.folder), expected)
        if finished:
            break
        run_folder.remove_unfinished(run.folder)  # as the same command would, run again
    assert finished and n_done > 10
    assert saved_steps(run.folder, 'model') == saved_steps(os.path.join(run.folder, 'training'), 'state') == [run.step]


def test_save_refuses_weights_without_a_finite_loss(run):
    """The loss of the step that broke them was still finite: it is computed before the update."""
    saved = run.step
    run.one_step(random_tokens(run.hparams, [4, 16]))
    variable = tf.trainable_variables()[0]
    run.sess.run(variable.assign(np.inf + tf.zeros_like(variable)))
    with pytest.raises(ValueError, match='step %d has a measured loss of nan' % (saved + 1)):
        run.save(random_tokens(run.hparams, [4, 16]))
    assert run_folder.last_save(run.folder) == saved


@pytest.mark.parametrize('failing', ['state.ckpt', 'model.ckpt'])
def test_save_on_a_full_disk_leaves_the_save_before(run, monkeypatch, failing):
    """The error is one line; unfinished files are removed, and finished ones of the same save."""
    resource = pytest.importorskip('resource', reason='needs a system that limits the size of files')
    before, expected = snapshot(run.folder), weights_and_state(run.folder)
    batch = random_tokens(run.hparams, [4, 16])
    run.one_step(batch)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    save_variables = checkpoint.save_variables

    def save_with_limit(sess, variables, prefix):
        if failing in prefix:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python ignores the signal that comes with it
        save_variables(sess, variables, prefix)

    monkeypatch.setattr(checkpoint, 'save_variables', save_with_limit)
    try:
        with pytest.raises(OSError, match=r'^\S*%s-%d cannot be written: File too large$' % (failing, run.step)):
            run.save(batch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(run.folder) == before
    assert_same(weights_and_state(run.folder), expected)


def test_save_variables_removes_its_files_if_the_disk_fails_later(run, monkeypatch, tmp_path):
    """Nothing is left of files that were written under other names."""
    def fail(path):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files, 'sync', fail)
    with pytest.raises(OSError, match='No space left'):
        checkpoint.save_variables(run.sess, run.graph.state, str(tmp_path / 'state.ckpt-1'))
    assert not os.listdir(str(tmp_path))


def test_remove_old_ignores_a_later_save_of_a_killed_process(tmp_path):
    """It does not count as one of the newest, and is removed."""
    for step in ('5', '7', '9', '12.part'):
        (tmp_path / ('model.ckpt-%s.index' % step)).write_text('')
    (tmp_path / 'checkpoint').write_text('')
    checkpoint.remove_old(str(tmp_path / 'model.ckpt'), 9, 2)
    assert sorted(os.listdir(str(tmp_path))) == ['checkpoint', 'model.ckpt-7.index', 'model.ckpt-9.index']


def snapshot(folder):
    """The names of all files below a folder, but for TensorBoard's."""
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names
                  if 'tfevents' not in name)


def test_train_names_the_last_save_in_an_error_of_the_disk(models_dir, unbroken, monkeypatch):
    """So that one knows what is lost."""
    def fail(run, tokens, valid_tokens):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Run, '__init__', quick_init)
    monkeypatch.setattr(Run, 'learn', fail)
    with pytest.raises(OSError, match='No space left on device; .* step 40$'):
        train.train(**flags_of(models_dir, 'unbroken', steps=60))


def test_save_is_on_the_disk_before_it_counts_and_before_an_older_one_goes(run, monkeypatch):
    """Otherwise a power failure could destroy both."""
    done = []

    def noted(function):
        def call(*paths):
            done.append((function.__name__, os.path.basename(paths[-1])))
            return function(*paths)
        return call

    saved = run.step
    batch = random_tokens(run.hparams, [4, 16])
    run.one_step(batch)
    for place, name in ((files, 'sync'), (os, 'replace'), (os, 'remove')):
        monkeypatch.setattr(place, name, noted(getattr(place, name)))
    run.save(batch)
    for kind in ('model', 'state'):
        for suffix in checkpoint.WEIGHTS_SUFFIXES:
            name = '%s.ckpt-%%d%s%s' % (kind, '%s', suffix)
            synced, renamed, removed = [done.index(event) for event in (
                ('sync', name % (run.step, '.part')), ('replace', name % (run.step, '')),
                ('remove', name % (saved, '')))]
            assert synced < renamed < removed
            assert renamed < done.index(('replace', 'checkpoint')) < removed


def test_save_adds_nothing_to_tensorflow_s_collections(run):
    """TensorFlow complains about foreign objects in them at each save, where TF_CPP_MIN_LOG_LEVEL is set."""
    said = logging.StreamHandler(io.StringIO())
    logger = logging.getLogger('tensorflow')
    level = logger.level
    logger.addHandler(said)
    logger.setLevel(logging.WARNING)
    try:
        batch = random_tokens(run.hparams, [4, 16])
        run.one_step(batch)
        run.save(batch)
    finally:
        logger.removeHandler(said)
        logger.setLevel(level)
    assert said.stream.getvalue() == ''
    assert not [key for key in run.sess.graph.get_all_collection_keys() if 'wte' in str(key)]


def test_measure_computes_without_dropout(run):
    """Validation equals the oracle; only training drops."""
    weights = run.sess.run({variable.op.name: variable for variable in tf.trainable_variables()})
    tokens = random_tokens(run.hparams, [5, 16])
    logits, _ = reference.forward(weights, tokens, run.hparams.n_head)
    expected = reference.token_losses(logits, tokens).mean()
    assert run.measure(tokens.ravel()) == pytest.approx(expected, abs=1e-5)
    with_rest = np.append(tokens, [1, 2, 3])  # less than a sequence, which is left out
    assert run.measure(with_rest) == pytest.approx(expected, abs=1e-5)
    batch = tokens[:4].reshape([2, 2, 16])
    training = [run.sess.run(run.graph.loss, {run.graph.tokens: batch, run.graph.first: 4 * step}) for step in (1, 2)]
    assert training[0] != training[1]


def test_compute_says_what_to_do_when_memory_runs_out(run, monkeypatch):
    """The error names the flags that save memory."""
    def exhausted(tensors, feeds):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')
    monkeypatch.setattr(run, 'sess', SimpleNamespace(run=exhausted))
    with pytest.raises(ValueError, match='out of memory.*--batch_size.*--recompute'):
        run.one_step(random_tokens(run.hparams, [4, 16]))


# Starting

@pytest.mark.slow
def test_initial_weights_are_as_the_paper_says(sess):
    """Section 2.3: residual projections are scaled by 1 / sqrt(2 n_layer)."""
    variables = build_model(tiny.hparams(n_embd=64))
    sess.run(tf.global_variables_initializer())
    for name, array in gradients_of(variables, sess.run(variables)).items():
        if name.endswith('/w'):  # 4,096 numbers or more: five standard errors are 0.055
            assert abs(array.std() / (0.01 if '/c_proj/' in name else 0.02) - 1) < 0.06, name


@pytest.mark.slow
def test_train_from_scratch_samples_and_reports(models_dir, from_nothing):
    """The vocabulary determines n_vocab. Samples are printed: one from nothing, and one that continues the prompt."""
    with open(beside(models_dir, 'scratch.log'), encoding='utf-8') as file:
        said = file.read()
    assert re.search(r'^1 of 1 steps: loss \d\.\d{3}, \d+ tokens/s, 00:00 left$', said, re.MULTILINE)
    assert len(re.findall('SAMPLE AT STEP 1 =+\n', said)) == 2
    assert len(re.findall('SAMPLE AT STEP 1 =+\nOnce upon', said)) == 1
    found = stored(checkpoint.weights_prefix(os.path.join(models_dir, 'scratch')))
    assert found['model/wte'].shape == (257, 8)


@pytest.mark.slow
def test_vocab_size_learns_a_vocabulary(models_dir, tmp_path, monkeypatch):
    """From --data alone, and not from an earlier attempt with another size."""
    pytest.importorskip('tokenizers', reason='needs tokenizers')
    hparams = tmp_path / 'hparams.json'
    hparams.write_text('{"n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 1}')
    folder = os.path.join(models_dir, 'words')
    other = tmp_path / 'other.txt'
    other.write_text('dog ' * 100)
    flags = flags_of(models_dir, 'words', model_name=None, hparams=str(hparams), vocab_size=264, steps=2,
                     valid=str(other))
    with run_folder.claimed(folder):
        run_folder.begin(folder, options(**dict(flags, vocab_size=262)))  # and stopped before its first save
    monkeypatch.setattr(train, 'fit', lambda *arguments: None)
    train.train(**flags)
    assert checkpoint.load_hparams('words', models_dir).n_vocab == 264
    text_encoder = encoder.get_encoder('words', models_dir)
    assert text_encoder.end_of_text == 263
    with open(flags['data'], encoding='utf-8') as file:
        text = file.read()
    ids = text_encoder.encode(text)
    assert text_encoder.decode(ids) == text and len(ids) < 0.8 * len(text)


@pytest.mark.parametrize('changes, said', [
    (dict(vocab='x'), '--model_name .*--hparams, --vocab and --vocab_size'),
    (dict(hparams='x'), '--model_name .*--hparams, --vocab and --vocab_size'),
    (dict(vocab_size=300), '--model_name .*--hparams, --vocab and --vocab_size'),
    (dict(model_name=None), 'give --model_name'),
    (dict(model_name=None, vocab='x'), 'give --model_name'),
    (dict(model_name=None, hparams='x'), 'give --model_name'),
    (dict(model_name=None, hparams='x', vocab='x', vocab_size=300), 'give --model_name'),
    (dict(batch_size=0), '--batch_size is 0; it must be more than 0'),
    (dict(learning_rate=-1), '--learning_rate is -1'),
    (dict(keep=0), '--keep is 0'),
    (dict(warmup=-1), '--warmup is -1'),
    (dict(dropout=1), '--dropout is 1; it must be 0 or more and less than 1'),
    (dict(dropout=-0.1), '--dropout is -0.1'),
    (dict(seed=2 ** 32), '--seed is 4294967296; it must be 0 to 4294967295'),
    (dict(precision='int8'), '--precision is int8; it must be float32 or bfloat16'),
    (dict(sample_prompt='x'), '--sample_prompt .*--sample_every'),
    (dict(train_only='('), r'--train_only is \(; .*regular expression'),
    (dict(seed=-1), '--seed is -1'),
    (dict(data='nowhere.txt'), 'nowhere.txt'),
    (dict(valid='nowhere.txt'), 'nowhere.txt'),
    (dict(model_name='nowhere'), 'no model nowhere'),
    (dict(model_name=None, hparams='nowhere.json', vocab_size=300), 'nowhere.json'),
    (dict(model_name=None, hparams=__file__, vocab_size=300), 'test_train.py is damaged .* hparams.json'),
    (dict(model_name=None, hparams=DEMO_VOCABULARY, vocab_size=300), 'encoder.json does not describe a model')])
def test_train_refuses_before_anything_is_written(models_dir, changes, said):
    """Flags out of range or in conflict, and missing or damaged files."""
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        train.train(**flags_of(models_dir, 'refused', **changes))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


def assert_goes_on(models_dir, run_name, monkeypatch, capsys, **changes):
    """What is said, without the computing, when that run is started again with some flags changed."""
    monkeypatch.setattr(train, 'fit', lambda *arguments: None)
    train.train(**dict(flags_of(models_dir, run_name, steps=2), **changes))
    return capsys.readouterr().err


@pytest.fixture(scope='module')
def from_nothing(models_dir, tmp_path_factory):
    """The flags of a run from nothing that has done one of its two steps. It has reported into scratch.log."""
    hparams = tmp_path_factory.mktemp('sizes') / 'hparams.json'
    hparams.write_text('{"n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 1}')
    flags = dict(model_name=None, hparams=str(hparams), vocab=os.path.join(models_dir, 'tiny'))
    with open(beside(models_dir, 'scratch.log'), 'w') as log, contextlib.redirect_stderr(log):
        train.train(**flags_of(models_dir, 'scratch', steps=1, sample_every=1, sample_prompt='Once upon', **flags))
    return flags


@pytest.fixture(scope='module')
def tuned(models_dir):
    """The name of a fine-tune that has done one of its two steps."""
    train.train(**flags_of(models_dir, 'tuned', steps=1))
    return 'tuned'


@pytest.mark.slow
def test_prepare_reports_where_it_resumes_and_what_has_changed(models_dir, tuned, tmp_path, monkeypatch, capsys):
    """Flags, texts, and whether the order of the text changes."""
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capsys, seed=1)
    expected = 'tuned: resuming from step 1 of 2; a step is 64 tokens, and the text has %d\n' % len_of(models_dir)
    assert expected in stderr
    assert 'changed since the last start: --seed 0 -> 1, --steps 1 -> 2\n' in stderr and 'order of the text' in stderr
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capsys, seed=1)
    assert 'changed' not in stderr and 'order of the text' not in stderr
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capsys, seed=1, learning_rate=0.5)
    assert 'changed since the last start: --learning_rate 0.01 -> 0.5\n' in stderr and 'order of the text' not in stderr
    copy = tmp_path / 'copy.txt'
    with open(beside(models_dir, 'data.txt'), encoding='utf-8') as file:
        text = file.read()
    copy.write_text(text)
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capsys, seed=1, learning_rate=0.5, data=str(copy))
    assert '--data %s -> %s\n' % (beside(models_dir, 'data.txt'), copy) in stderr and 'order of the text' not in stderr
    copy.write_text(text + 'and more')
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capsys, seed=1, learning_rate=0.5, data=str(copy))
    assert 'changed since the last start: the text of --data\n' in stderr and 'order of the text' in stderr


def len_of(models_dir):
    """How many tokens data.txt has: a byte each, and the end of the text."""
    return os.path.getsize(beside(models_dir, 'data.txt')) + 1


@pytest.mark.slow
def test_prepare_computes_nothing_for_a_finished_run(models_dir, tuned, monkeypatch, capsys):
    """It says how to continue."""
    monkeypatch.setattr(run_folder, 'load_inputs', None)
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capsys, steps=1)
    assert re.search('tuned has completed its 1 steps; .*--steps', stderr.splitlines()[-1])


@pytest.mark.slow
def test_prepare_resumes_a_run_whose_flags_were_not_saved(models_dir, tuned, monkeypatch, capsys):
    """Early versions did not save them."""
    os.remove(run_folder.inside(os.path.join(models_dir, tuned), 'options.json'))
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capsys, seed=4)
    assert 'resuming from step 1 of 2' in stderr and 'changed' not in stderr
    assert '--seed 4 -> 5' in assert_goes_on(models_dir, tuned, monkeypatch, capsys, seed=5)


@pytest.mark.parametrize('line', [
    b'5', b'[' * 10 ** 5, b'\0\0\0', b'\xff', b'{"step": 1, "loss_nats": "x"}', b'{"loss_nats": 1}'],
    ids=['number', 'nested', 'zeros', 'not UTF-8', 'text', 'no step'])
def test_record_names_a_line_that_it_has_not_written(tmp_path, line):
    """A power failure may leave bytes of zero."""
    (tmp_path / 'metrics.jsonl').write_bytes(b'{"step": 0, "valid_loss_nats": 1}\n' + line + b'\n')
    with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2, is damaged .*; remove this line'):
        record.Record(str(tmp_path), first_step=1)


def test_run_in_a_folder_that_is_not_utf_8_is_refused_before_anything_is_written(tmp_path):
    folder = os.path.join(str(tmp_path), os.fsdecode(b'mod\xe8les'))
    with pytest.raises(ValueError, match='is not UTF-8; choose'):
        run_folder.claimed(folder)
    assert not os.path.exists(folder)
    with run_folder.claimed(os.path.join(str(tmp_path), os.fsencode('модели').decode('ascii', 'surrogateescape'))):
        assert os.listdir(str(tmp_path)) == [os.fsdecode('модели'.encode('utf-8'))]


def test_record_finds_its_folder_in_a_posix_locale(tmp_path):
    """Where Python has surrogates in a path that is not ASCII, which TensorFlow cannot encode."""
    folder = os.path.join(str(tmp_path), os.fsencode('модели').decode('ascii', 'surrogateescape'))
    os.mkdir(folder)
    found = record.Record(folder, first_step=0)
    found.add({'step': 1, 'loss_nats': 2.0})
    found.show(is_last=False)
    assert found.read() == [{'step': 1, 'loss_nats': 2.0}]
    assert [name.split('.')[0] for name in sorted(os.listdir(folder))][:1] == ['events']


@pytest.mark.parametrize('text', ['{"valid_loss_nats": 0}', '{"step": "1", "valid_loss_nats": 0}',
                                  '{"step": 1, "valid_loss_nats": 0, "text": 3}'])
def test_read_dict_reports_a_best_json_of_other_kinds(tmp_path, text):
    (tmp_path / 'training').mkdir()
    (tmp_path / 'training' / 'best.json').write_text(text)
    with pytest.raises(ValueError, match=r'best\.json is damaged .*move it away'):
        run_folder.read_dict(str(tmp_path), 'best.json')


def test_prepare_reports_damaged_flags_in_one_line(models_dir, tuned, monkeypatch, capsys):
    """It names the file, and what to do."""
    path = run_folder.inside(os.path.join(models_dir, tuned), 'options.json')
    for content in ('{"seed": ', '3', '', '{"accumulate": "x", "batch_size": 1}', '{"accumulate": 1}'):
        with open(path, 'w', encoding='utf-8') as file:
            file.write(content)
        with pytest.raises(ValueError, match=r'options\.json is damaged.*move it away'):
            assert_goes_on(models_dir, tuned, monkeypatch, capsys)
    os.remove(path)


def test_facts_leave_out_where_files_are(models_dir):
    """Workers may keep them in different places; all other flags must be equal."""
    places = dict(run_name='x', models_dir='x', data='x', valid='x', hparams='x', vocab='x')
    hparams, text_encoder = tiny.hparams(**RUN_HPARAMS), encoder.get_encoder('tiny', models_dir)

    def facts(**changes):
        return run_folder.facts(options(**changes), text_encoder, hparams, SimpleNamespace(filename='a'), None)

    assert facts(**places) == facts()
    assert facts(seed=1) != facts() and facts(train_only='x') != facts()


@pytest.mark.slow
def test_check_origin_refuses_another_model_size_or_vocabulary(models_dir, from_nothing, tmp_path, monkeypatch, capsys):
    """And the run is as it was."""
    folder = os.path.join(models_dir, 'scratch')
    larger, other = tmp_path / 'larger.json', str(tmp_path / 'other')
    larger.write_text('{"n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 3}')
    shutil.copytree(from_nothing['vocab'], other)
    with open(os.path.join(other, 'vocab.bpe'), 'a', encoding='utf-8') as file:
        file.write('\n')
    before = {path: os.path.getmtime(path) for path in snapshot(folder)}
    for changes, said in (
            (dict(model_name='tiny', hparams=None, vocab=None), 'scratch has no --model_name,.* --model_name tiny'),
            (dict(vocab=None, vocab_size=300), 'scratch has no --vocab_size,.* --vocab_size 300'),
            (dict(hparams=str(larger)), 'scratch has n_layer 1,.* 3'),
            (dict(vocab=other), 'scratch has .* vocab.bpe,.* --vocab .*other'),
            (dict(train_only='wte'), 'scratch has no --train_only,.* --train_only wte')) + IN_BFLOAT16:
        with pytest.raises(ValueError, match=said + ';.* --run_name'):
            assert_goes_on(models_dir, 'scratch', monkeypatch, capsys, **dict(from_nothing, **changes))
    assert {path: os.path.getmtime(path) for path in snapshot(folder)} == before
    assert 'resuming from step 1' in assert_goes_on(models_dir, 'scratch', monkeypatch, capsys, **from_nothing)


def test_check_origin_refuses_another_model_to_fine_tune(models_dir, tuned, monkeypatch, capsys):
    """A run keeps the model that it started from."""
    assert_goes_on(models_dir, tuned, monkeypatch, capsys)
    with pytest.raises(ValueError, match='tuned has --model_name tiny,.* --model_name nowhere'):
        assert_goes_on(models_dir, tuned, monkeypatch, capsys, model_name='nowhere')


def test_claimed_names_the_process_that_trains(models_dir, monkeypatch, capsys):
    """A second process may train there when the first has ended."""
    with run_folder.claimed(os.path.join(models_dir, 'claimed')):
        with pytest.raises(ValueError, match='claimed is being trained by process %d on ' % os.getpid()):
            train.train(**flags_of(models_dir, 'claimed'))
    assert 'starting from tiny' in assert_goes_on(models_dir, 'claimed', monkeypatch, capsys)


def test_prepared_removes_a_new_folder_if_the_data_is_refused(models_dir, tmp_path):
    """Otherwise the name would be taken."""
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9')
    with pytest.raises(ValueError, match='is not UTF-8'):
        train.train(**flags_of(models_dir, 'refused', data=str(tmp_path / 'latin.txt')))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


def test_origin_names_the_model_whose_vocabulary_is_damaged(models_dir):
    """Before it is copied, rather than the run's copy."""
    source = os.path.join(models_dir, 'damaged')
    shutil.copytree(os.path.join(models_dir, 'tiny'), source)
    with open(os.path.join(source, 'vocab.bpe'), 'a', encoding='utf-8') as file:
        file.write('a b\n')
    with pytest.raises(ValueError, match='vocab.bpe in %s cannot be used' % source):
        train.train(**flags_of(models_dir, 'refused', model_name='damaged'))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


def test_prepared_never_removes_a_folder_that_existed(models_dir, tmp_path):
    """Even if the data is refused."""
    folder = os.path.join(models_dir, 'empty')
    os.makedirs(folder)
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9')
    with pytest.raises(ValueError, match='is not UTF-8'):
        train.train(**flags_of(models_dir, 'empty', data=str(tmp_path / 'latin.txt')))
    assert os.path.isdir(folder)


@pytest.mark.parametrize('name', ['117M', '1558M', '762M'])
def test_last_save_refuses_the_name_of_a_released_model(models_dir, name):
    """download_model.py would look for it there."""
    with pytest.raises(ValueError, match='%s is .* released model .*--run_name' % name):
        train.train(**flags_of(models_dir, name))
    assert not os.path.exists(os.path.join(models_dir, name))


def test_last_save_refuses_a_file(models_dir):
    """A file is not a run."""
    open(os.path.join(models_dir, 'file'), 'w').close()
    with pytest.raises(ValueError, match='file is a file; choose another --run_name'):
        train.train(**flags_of(models_dir, 'file'))


@pytest.mark.parametrize('missing', [[], ['checkpoint']], ids=['a whole model', 'a part of one'])
def test_last_save_refuses_the_folder_of_a_model(models_dir, tmp_path, missing):
    """It is left as it was."""
    hparams = tiny.hparams(**RUN_HPARAMS)
    tiny.write_model(str(tmp_path / '117M'), hparams, tiny.random_weights(hparams))
    for name in missing:
        os.remove(str(tmp_path / '117M' / name))
    before = sorted(os.listdir(str(tmp_path / '117M')))
    with pytest.raises(ValueError, match='117M exists and is not a training run; choose another --run_name'):
        train.train(**flags_of(str(tmp_path), '117M', model_name='117M', data=beside(models_dir, 'data.txt')))
    assert sorted(os.listdir(str(tmp_path / '117M'))) == before


@pytest.mark.parametrize('name', ['data', 'valid'])
def test_load_inputs_refuses_a_text_shorter_than_a_sequence(models_dir, tmp_path, name):
    """The error has the numbers of tokens."""
    path = tmp_path / 'short.txt'
    path.write_text('fourteen bytes')  # and the end of text
    with pytest.raises(ValueError, match=r'short\.txt has 15 tokens.* 16'):
        train.train(**flags_of(models_dir, 'short', **{name: str(path)}))


def test_begin_removes_what_an_unsaved_attempt_left(models_dir, tmp_path):
    """Another vocabulary, and the best model of that attempt."""
    folder = str(tmp_path / 'run')
    flags = flags_of(models_dir, 'run')
    with run_folder.claimed(folder):
        run_folder.begin(folder, options(**flags))
        encoder.write_vocabulary([('a', 'b')], folder)
        encoder.write_vocabulary([('a', 'b')], os.path.join(folder, 'best'))
        files.write_text(run_folder.inside(folder, 'best.json'), '{"valid_loss_nats": 0}')
        assert run_folder.last_save(folder) == 0
        run_folder.begin(folder, options(**flags))
    for path in os.path.join(folder, 'best'), run_folder.inside(folder, 'best.json'):
        assert not os.path.exists(path)
    assert encoder.get_encoder('run', str(tmp_path)).bpe_ranks == {}


def test_record_forgets_steps_that_were_not_saved(tmp_path):
    """And an incomplete last line."""
    metrics = tmp_path / 'metrics.jsonl'
    metrics.write_text('{"loss_nats": 3.5, "step": 1}\n{"loss_nats": 2.5, "step": 2}\n{"loss_nats": 1.5, "ste')
    Record(str(tmp_path), 3)
    assert metrics.read_text() == '{"loss_nats": 3.5, "step": 1}\n{"loss_nats": 2.5, "step": 2}\n'
    Record(str(tmp_path), 2)
    assert metrics.read_text() == '{"loss_nats": 3.5, "step": 1}\n'


# What is shown

@pytest.mark.slow
def test_train_reports_in_lines_without_a_terminal(models_dir, unbroken):
    """How it starts, each validation, and how to sample from the result."""
    with open(beside(models_dir, 'unbroken.log'), encoding='utf-8') as file:
        first, start, *validations, saved, how = file.read().splitlines()
    assert first == '%s: 40 steps, starting from tiny; a step is 64 tokens, and the text has %d' % (
        unbroken, len_of(models_dir))
    assert re.match(r'0 of 40 steps: valid loss \d\.\d{3}$', start)
    assert [line.split(' ')[0] for line in validations] == ['15', '30', '40']
    for line in validations:
        assert re.match(r'\d+ of 40 steps: loss \d\.\d{3}, valid loss \d\.\d{3}, \d+ tokens/s, \d\d:\d\d left$', line)
    assert validations[-1].endswith(' 00:00 left') and saved == unbroken + ': step 40 of 40 is saved'
    command = 'python3 src/generate_unconditional_samples.py --model_name unbroken --models_dir ' + models_dir
    assert how.endswith(command)


def shown(run, monkeypatch, capsys, n_steps, **flags):
    """What Run.show() prints for one step after another, without a terminal."""
    with_flags(monkeypatch, run, steps=1000, **flags)
    with progress.Progress(1000, unit='steps', initial=run.step) as bar:
        for _ in range(n_steps):
            run.step += 1
            run.show({'step': run.step, 'loss_nats': 1.0, 'tokens_per_second': 20.0}, bar)
    return capsys.readouterr().err.splitlines()


def test_show_reports_after_a_long_silence(run, monkeypatch, capsys):
    """Without a terminal, however rare the validations are."""
    assert shown(run, monkeypatch, capsys, 3, valid_every=999) == []
    monkeypatch.setattr(progress, 'REPORT_EVERY_SECONDS', 0)
    assert len(shown(run, monkeypatch, capsys, 3, valid_every=999)) == 3


def test_show_reports_each_validation_once(run, monkeypatch, capsys):
    """With its loss. Also where the silence was long enough for a line anyway."""
    monkeypatch.setattr(run, 'valid_loss', 2.0)
    run.step = 10
    for seconds in (60, 0):
        monkeypatch.setattr(progress, 'REPORT_EVERY_SECONDS', seconds)
        lines = shown(run, monkeypatch, capsys, 1, valid_every=1)
        assert len(lines) == 1 and '%d of 1000 steps: loss 1.000, valid loss 2.000, 20 tok' % run.step in lines[0]


def test_show_estimates_the_time_left_from_the_steps_of_this_start(run, monkeypatch, capsys):
    """Of a resumed run: here the first step takes 2 seconds, and 499 are left."""
    clock = [0.0]

    def tick():
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr(run, 'step', 500)
    monkeypatch.setattr(progress, 'time', SimpleNamespace(time=tick))
    (line,) = shown(run, monkeypatch, capsys, 1, valid_every=1)
    minutes, seconds = map(int, re.search(r'(\d+):(\d+) left', line).groups())
    assert 499 <= 60 * minutes + seconds <= 4 * 499  # the clock is looked at a few times


def test_show_reports_on_the_bar_of_a_terminal(run, monkeypatch, capsys):
    """And prints no lines."""
    texts = []
    bar = SimpleNamespace(disable=False, update=lambda n: None, close=lambda: None,
                          set_postfix_str=lambda text, refresh: texts.append(text))
    monkeypatch.setattr(progress, 'tqdm', lambda **options: bar)
    assert shown(run, monkeypatch, capsys, 1, valid_every=1) == []
    assert texts == ['loss 1.000, 20 tokens/s']


def test_record_show_plots_at_saves_but_not_all_the_time(run, monkeypatch):
    """Plotting takes at most 1 % of the time; the last time it is always done."""
    drawn, clock = [], [1000.0]

    def plot(records, path):
        drawn.append(clock[0])
        clock[0] += 2

    monkeypatch.setattr(record, 'plot', plot)
    monkeypatch.setattr(record, 'time', SimpleNamespace(time=lambda: clock[0]))
    monkeypatch.setattr(run.record, 'plotted', 0)
    monkeypatch.setattr(run.record, 'plotting_seconds', 0)
    for clock[0] in (1002.0, 1100.0, 1203.0, 1205.0, 1300.0):
        run.record.show(is_last=False)
    assert drawn == [1002.0, 1205.0]  # each takes 2 seconds
    run.record.show(is_last=True)
    assert len(drawn) == 3  # and at the end


def test_record_show_makes_tensorboard_up_to_date(tmp_path):
    """What was added is in its file, though the Record is still open."""
    (tmp_path / 'training').mkdir()
    kept = Record(str(tmp_path / 'training'), 0)
    kept.add({'step': 1, 'loss_nats': 2.5})
    kept.show(is_last=False)
    assert tensorboard_losses(str(tmp_path)) == [(1, 2.5)]


def test_smoothed_is_the_mean_of_neighbours():
    """With fewer of them at the ends."""
    values = np.random.RandomState(0).standard_normal(20)
    expected = [values[max(0, i - 3):i + 4].mean() for i in range(20)]
    np.testing.assert_allclose(record.smoothed(values, 3), expected, atol=1e-12)
    assert len(record.smoothed(np.array([]), 1)) == 0


def test_plot_writes_a_png(tmp_path):
    """Where matplotlib is installed."""
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    path = str(tmp_path / 'loss.png')
    REAL_PLOT([{'step': 0, 'valid_loss_nats': 2.5}, {'step': 1, 'loss_nats': 2.0}], path)
    with open(path, 'rb') as file:
        assert file.read(8) == b'\x89PNG\r\n\x1a\n'
