"""train.py: gradients against finite differences and PyTorch, its Adam against NumPy, and runs that are killed on the way."""
import inspect
import io
import json
import logging
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import checkpoint
import corpus
import encoder
import files
import process
import model
import reference
import test_model
import tiny
import train
import training.record
import training.run
from tf1 import tf
from training import run_folder
from training.graph import build, clip_by_norm, learning_rate_at, loss_and_gradients, mean_of
from training.record import Record
from training.run import Run

SCRIPT = os.path.abspath(train.__file__)
DEMO_VOCABULARY = os.path.join(os.path.dirname(os.path.dirname(SCRIPT)), 'models', 'demo', 'encoder.json')
RUN_HPARAMS = {'n_vocab': tiny.N_BYTE_VOCAB, 'n_ctx': 16, 'n_embd': 8, 'n_head': 2, 'n_layer': 1}


def options(**changes):
    """The flags of train.py, some of them changed."""
    parameters = inspect.signature(train.train).parameters.values()
    values = {parameter.name: parameter.default for parameter in parameters}
    values.update(changes)
    return SimpleNamespace(**values)


def random_tokens(hparams, shape):
    return np.random.RandomState(0).randint(hparams.n_vocab, size=shape)


def build_model(hparams):
    """The trainable variables of a model, in the default graph."""
    model.model(hparams, tf.placeholder(tf.int32, [None, None]))
    return tf.trainable_variables()


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

def test_gradients_equal_finite_differences_of_the_papers_loss(sess):
    """Along random directions of each variable, with recomputed blocks and without; the loss is the oracle's, in float64."""
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens = random_tokens(hparams, [2, hparams.n_ctx])
    outputs = [loss_and_gradients(hparams, tf.constant(tokens, tf.int32), variables, model.no_dropout, recompute)
               for recompute in (False, True)]
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


def test_loss_and_gradients_equal_those_of_transformers(sess):
    torch = pytest.importorskip('torch', reason='needs transformers and torch')
    transformers = pytest.importorskip('transformers', reason='needs transformers and torch')
    hparams = tiny.hparams(n_layer=3, n_embd=20, n_head=5)
    weights = tiny.random_weights(hparams)
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=hparams.n_vocab, n_positions=hparams.n_ctx, n_embd=hparams.n_embd, n_layer=hparams.n_layer,
        n_head=hparams.n_head, bos_token_id=0, eos_token_id=0)).eval()  # that is: without dropout
    parameters = dict(peer.named_parameters())
    for name, array in weights.items():
        parameters[test_model.transformers_name(name)].data.copy_(torch.tensor(array.reshape(array.shape[-2:])))
    tokens = random_tokens(hparams, [3, hparams.n_ctx])
    peer_loss = peer(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
    peer_loss.backward()
    expected = {name: parameters[test_model.transformers_name(name)].grad.numpy().reshape(array.shape)
                for name, array in weights.items()}

    variables = build_model(hparams)
    outputs = loss_and_gradients(hparams, tf.constant(tokens, tf.int32), variables, model.no_dropout, False)
    tiny.assign(sess, weights)
    loss, gradients = sess.run(outputs)
    assert abs(loss - peer_loss.item()) < 1e-5
    assert_close(gradients_of(variables, gradients), expected)


def test_recomputed_blocks_drop_the_same_and_another_step_drops_other(sess):
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens_BT = tf.constant(random_tokens(hparams, [2, hparams.n_ctx]), tf.int32)
    first = tf.placeholder(tf.int64, [])
    drop, places = model.dropout(0.5, seed=7, sequences=first + np.arange(2)), []

    def noted_drop(x, site):
        places.append('%s/%s' % (tf.get_variable_scope().name, site))
        return drop(x, site)

    kept = loss_and_gradients(hparams, tokens_BT, variables, noted_drop, False)
    # As in the training of GPT (section 4.1): embeddings, attention weights, and what is added to the residual stream.
    assert len(set(places)) == len(places) == 1 + 3 * hparams.n_layer
    recomputed = loss_and_gradients(hparams, tokens_BT, variables, drop, True)
    tiny.assign(sess, tiny.random_weights(hparams))
    losses = set()
    for number in (0, 1, 2 ** 31 - 1):
        (loss, gradients), (loss_again, gradients_again) = sess.run([kept, recomputed], {first: number})
        assert abs(loss - loss_again) < 1e-6
        assert_close(gradients_of(variables, gradients_again), gradients_of(variables, gradients))
        losses.add(round(float(loss), 4))
    assert len(losses) == 3


def test_accumulated_batches_equal_one_large_one(sess):
    """4 x 2 against 1 x 8."""
    hparams = tiny.hparams(n_layer=1)
    variables = build_model(hparams)
    tokens_BT = tf.constant(random_tokens(hparams, [8, hparams.n_ctx]), tf.int32)

    def part(i):
        return loss_and_gradients(hparams, tokens_BT[2 * i:2 * i + 2], variables, model.no_dropout, False)

    outputs = [mean_of(4, part, variables), loss_and_gradients(hparams, tokens_BT, variables, model.no_dropout, False)]
    tiny.assign(sess, tiny.random_weights(hparams))
    (loss, gradients), (large_loss, large_gradients) = sess.run(outputs)
    assert abs(loss - large_loss) < 1e-6
    assert_close(gradients_of(variables, gradients), gradients_of(variables, large_gradients))


# Dropout

@pytest.mark.parametrize('dropped, removed', [
    (['weights'], ['c_attn']), (['attn'], ['attn/c_proj']), (['mlp'], ['mlp/c_proj']), (['attn', 'mlp'], ['c_proj'])])
def test_what_is_dropped_is_what_the_paper_says(sess, dropped, removed):
    """Section 4.1: attention weights after the softmax, and what a block adds to the residual stream, before it is added.

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


def test_dropped_embeddings_leave_nothing_of_the_input(sess):
    hparams = tiny.hparams(n_ctx=8)
    variables = build_model(hparams)
    tokens = random_tokens(hparams, [2, hparams.n_ctx])
    first_changed = tokens.copy()
    first_changed[:, 0] = (tokens[:, 0] + 1) % hparams.n_vocab  # which nothing predicts, so that it is input alone
    losses = [loss_and_gradients(hparams, tf.constant(batch, tf.int32), variables,
                                       lambda x, site: x * 0 if site == gone else x, False)[0]
              for gone in ('embed', None) for batch in (tokens, first_changed)]
    tiny.assign(sess, tiny.random_weights(hparams))
    found = sess.run(losses)
    assert found[0] == found[1] and found[2] != found[3]


def test_each_sequence_of_a_step_drops_by_its_number_and_the_seed(sess):
    """Of 2 accumulated batches of 2: whatever the batch that a sequence is in, and in no other place the same."""
    hparams = tiny.hparams(n_layer=1, n_ctx=8)
    graph = build(hparams, options(seed=7, dropout=0.5, batch_size=2, accumulate=2))
    tokens = random_tokens(hparams, [2, 2, hparams.n_ctx])
    number = tf.placeholder(tf.int64, [])
    drop = model.dropout(0.5, seed=7, sequences=number[None])
    losses = [loss_and_gradients(hparams, tf.constant(sequence[None], tf.int32), tf.trainable_variables(), drop, False)[0]
              for sequence in tokens.reshape(4, -1)]
    sess.run(tf.global_variables_initializer())
    sess.run([variable.initializer for variable in tf.trainable_variables()], {
        variable.initial_value: tiny.random_weights(hparams)[variable.op.name] for variable in tf.trainable_variables()})
    expected = [sess.run(loss, {number: place}) for loss, place in zip(losses, (12, 13, 14, 15))]
    found = [sess.run(graph.loss, {graph.tokens: tokens, graph.first: first}) for first in (12, 13)]
    assert found[0] == pytest.approx(np.mean(expected), abs=1e-5) and abs(found[1] - found[0]) > 1e-4


def test_dropout_zeroes_a_fraction_of_its_rate_and_scales_up_the_rest(sess):
    def dropped(site, scope='h0', **key):
        with tf.variable_scope(scope):
            key = dict(dict(seed=1, sequences=tf.constant([3, 9], tf.int64)), **key)
            return model.dropout(0.25, **key)(tf.fill([200, 200], 3.0), site)

    first, again, *others = sess.run([dropped('a'), dropped('a'), dropped('b'), dropped('a', scope='h1'), dropped('a', seed=2),
                                      dropped('a', sequences=tf.constant([4, 10], tf.int64))])
    others.append(np.concatenate([first[100:], again[:100]]))  # the other sequence of the batch
    assert np.array_equal(first, again)
    for array in [first] + others:
        assert abs((array == 0).mean() - 0.25) < 0.015  # seven standard errors
        assert np.allclose(array[array != 0], 3 / 0.75)
    for array in others:  # sites, layers, seeds and steps drop independently
        assert abs(((first == 0) & (array == 0)).mean() - 0.25 ** 2) < 0.01


# Learning

def test_a_step_is_adam_with_decoupled_decay_of_a_clipped_mean_gradient(sess):
    """Three steps against Kingma and Ba 2015 (their form with epsilon-hat), and Loshchilov and Hutter 2017, in NumPy."""
    hparams = tiny.hparams(n_layer=1)
    clip, rate, decay = 0.5, 0.01, 0.3
    graph = build(hparams, options(clip=clip, weight_decay=decay, dropout=0, batch_size=2, accumulate=2))
    variables = tf.trainable_variables()
    tokens_BT = tf.reshape(graph.tokens, [4, hparams.n_ctx])
    _, gradient_tensors = loss_and_gradients(hparams, tokens_BT, variables, model.no_dropout, False)
    sess.run(tf.global_variables_initializer())
    weights = tiny.random_weights(hparams)
    sess.run([variable.initializer for variable in variables],
             {variable.initial_value: weights[variable.op.name] for variable in variables})
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


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_train_only_changes_what_it_names_as_all_would(sess, recompute, accumulate):
    """And keeps Adam's averages of nothing else."""
    hparams = tiny.hparams()
    tokens = random_tokens(hparams, [accumulate, 2, hparams.n_ctx])
    found, states = [], []
    for train_only in (None, 'h1/mlp|ln_f'):
        with tf.Graph().as_default(), tf.Session() as sess:
            graph = build(hparams, options(dropout=0, batch_size=2, accumulate=accumulate, recompute=recompute, clip=1e9,
                                           train_only=train_only))
            sess.run(tf.global_variables_initializer())
            sess.run([variable.initializer for variable in tf.trainable_variables()], {
                variable.initial_value: tiny.random_weights(hparams)[variable.op.name] for variable in tf.trainable_variables()})
            sess.run(graph.update, {graph.tokens: tokens, graph.first: 0, graph.learning_rate: 0.01})
            found.append(gradients_of(tf.trainable_variables(), sess.run(tf.trainable_variables())))
            states.append({name.replace('/Adam_1', '').replace('/Adam', '') for name in graph.state if 'beta' not in name})
    named = {name for name in found[0] if re.search('h1/mlp|ln_f', name)}
    assert 0 < len(named) < len(found[0]) and states == [set(found[0]), named]
    for name, weights in tiny.random_weights(hparams).items():
        assert np.abs(found[1][name] - (found[0] if name in named else {name: weights})[name]).max() < 1e-5, name


def test_a_pattern_that_names_nothing_is_told_the_names(sess):
    with pytest.raises(ValueError, match='--train_only h99/ is found in no name of a variable; they are named model/.*h0/mlp'):
        build(tiny.hparams(), options(train_only='h99/'))


def test_gradients_are_scaled_down_together_and_never_up(sess):
    gradients = [tf.constant([[3.0], [4.0]]), tf.constant([12.0])]  # 5 and 12: a norm of 13
    for most, scale in ((6.5, 0.5), (13, 1), (14, 1), (1e30, 1)):
        clipped, norm = sess.run(clip_by_norm(gradients, most))
        assert norm == pytest.approx(13)
        assert np.allclose(clipped[0].ravel(), [3 * scale, 4 * scale]) and np.allclose(clipped[1], 12 * scale)


def test_recompute_computes_each_block_once_more(sess):
    """That is what saves the memory, and nothing else shows: a softmax in each block for measuring, learning, and again."""
    hparams = tiny.hparams()
    for recompute, times in ((False, 2), (True, 3)):
        with tf.Graph().as_default() as graph:
            build(hparams, options(recompute=recompute))
        assert sum(op.type == 'Softmax' for op in graph.get_operations()) == times * hparams.n_layer


def test_one_batch_is_learnt_by_heart(sess):
    hparams = tiny.hparams(n_embd=32, n_layer=1)
    graph = build(hparams, options(dropout=0, batch_size=2, accumulate=1, weight_decay=0))
    sess.run(tf.global_variables_initializer())
    tokens = random_tokens(hparams, [1, 2, hparams.n_ctx])
    losses = [sess.run([graph.loss, graph.update], {graph.tokens: tokens, graph.first: 2 * step, graph.learning_rate: 0.01})[0]
              for step in range(120)]
    assert abs(losses[0] - math.log(hparams.n_vocab)) < 0.1  # at first every token is as likely
    assert losses[-1] < 0.02


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
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
    """A models_dir with one model, `tiny`, and beside it data.txt and valid.txt."""
    folder = tmp_path_factory.mktemp('train')
    hparams = tiny.hparams(**RUN_HPARAMS)
    tiny.write_model(str(folder / 'models' / 'tiny'), hparams, tiny.random_weights(hparams))
    words = random.Random(0)
    for name, n_words in (('data.txt', 500), ('valid.txt', 60)):
        text = ' '.join(words.choice(['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'sang']) for _ in range(n_words))
        (folder / name).write_text(text)
    return str(folder / 'models')


def flags_of(models_dir, run_name, **changes):
    """The flags of a short fine-tune of `tiny`."""
    flags = dict(data=beside(models_dir, 'data.txt'), run_name=run_name, model_name='tiny', models_dir=models_dir,
                 batch_size=2, accumulate=2, learning_rate=0.01, warmup=5, steps=120, save_every=15)
    flags.update(changes)
    return flags


def beside(models_dir, name):
    return os.path.join(os.path.dirname(models_dir), name)


def start(flags):
    """Run train.py in a process of its own."""
    return subprocess.Popen([sys.executable, SCRIPT] + arguments_of(flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True)


def arguments_of(flags):
    return ['--%s=%s' % flag for flag in sorted(flags.items())]


def metrics_of(models_dir, run_name):
    with open(os.path.join(models_dir, run_name, 'training', 'metrics.jsonl'), encoding='utf-8') as file:
        return list(map(json.loads, file))


def losses_of(models_dir, run_name):
    return [(record['step'], record['loss_nats'], record['gradient_norm'])
            for record in metrics_of(models_dir, run_name) if record['step']]


# Runs train.py, which gets a signal at some step, as soon as that is computed, and tells other losses from another step on.
STRUCK = '''
import os, sys
sys.path.insert(0, %r)
import flags, train
from training.run import Run
number, at, wrong_from = %d, %d, %d
report = Run.report

def struck(run, record, bar):
    if record['step'] == at:
        os.kill(os.getpid(), number)
    if record['step'] >= wrong_from:
        record['loss_nats'] += 1
    report(run, record, bar)
    run.record.summaries.flush()

Run.report = struck
flags.run(train.train)
'''


def run_struck(flags, number, at, wrong_from=1000):
    """Run train.py in a process that gets signal number at a step. Returns its status and stderr."""
    code = STRUCK % (os.path.dirname(SCRIPT), number, at, wrong_from)
    process = subprocess.Popen([sys.executable, '-c', code] + arguments_of(flags), stderr=subprocess.PIPE,
                               universal_newlines=True)
    stderr = process.communicate(timeout=100)[1]
    return process.returncode, stderr


def stored(prefix):
    """{name: array} of checkpoint files."""
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def weights_and_state(folder):
    """All that the last save in a run's folder holds."""
    found = stored(checkpoint.weights_prefix(folder))
    found.update(stored(os.path.join(folder, 'training', 'state.ckpt-%d' % run_folder.last_save(folder))))
    return found


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert np.array_equal(found[name], expected[name]), name


def saved_steps(folder, kind):
    names = [re.match(kind + r'\.ckpt-(\d+)\.index$', name) for name in os.listdir(folder)]
    return sorted(int(name.group(1)) for name in names if name)


@pytest.fixture(scope='module')
def unbroken(models_dir):
    """The folder of a run that nothing stopped."""
    train.train(**flags_of(models_dir, 'unbroken', keep=2, valid=beside(models_dir, 'valid.txt'), valid_every=50))
    return os.path.join(models_dir, 'unbroken')


def test_a_run_killed_then_terminated_then_finished_equals_an_unbroken_one(models_dir, unbroken):
    """kill -9 at some step, the same command, SIGTERM at a later one, the same command: losses and weights to the last bit.

    What the killed process told of the steps after its last save was another loss: nobody is to see it.
    """
    flags = flags_of(models_dir, 'broken')
    folder = os.path.join(models_dir, 'broken')
    killed_at = random.randrange(17, 44)
    saved = (killed_at - 1) // 15 * 15
    status, _ = run_struck(flags, signal.SIGKILL, killed_at, wrong_from=saved + 1)
    assert status == -signal.SIGKILL and run_folder.last_save(folder) == saved
    assert metrics_of(models_dir, 'broken')[-1]['step'] == killed_at - 1
    for name in ('model.ckpt-105.part.index', 'model.ckpt-105.index', 'training/state.ckpt-105.index'):
        open(os.path.join(folder, name), 'wb').close()  # killed a little later, it would have left some of these

    status, stderr = run_struck(flags, signal.SIGTERM, killed_at + 5)
    assert status == 0 and 'Traceback' not in stderr
    assert 'going on from step %d of 120' % saved in stderr
    assert 'saved first' in stderr and 'step %d of 120 is saved; the same command goes on' % (killed_at + 5) in stderr
    assert run_folder.last_save(folder) == metrics_of(models_dir, 'broken')[-1]['step'] == killed_at + 5
    assert saved_steps(folder, 'model') == [killed_at + 5]

    train.train(**flags)
    assert losses_of(models_dir, 'broken') == losses_of(models_dir, 'unbroken')
    assert_same(weights_and_state(folder), weights_and_state(unbroken))
    assert tensorboard_losses(folder) == [(step, np.float32(loss)) for step, loss, _ in losses_of(models_dir, 'unbroken')]
    # Within a second, a file of the same name would overwrite the one before.
    assert len({re.sub(r'\.\d{10}\.', '.', os.path.basename(path)) for path in event_files(folder)}) == 3


def event_files(folder):
    training = os.path.join(folder, 'training')
    return sorted([os.path.join(training, name) for name in os.listdir(training) if 'tfevents' in name], key=os.path.getmtime)


def tensorboard_losses(folder):
    """What TensorBoard shows: where a process started, it forgets what earlier ones told of that step and later."""
    shown = []
    for path in event_files(folder):
        for event in tf.train.summary_iterator(path):
            if event.session_log.status == tf.SessionLog.START:
                shown = [(step, loss) for step, loss in shown if step < event.step]
            shown += [(event.step, np.float32(value.simple_value)) for value in event.summary.value if value.tag == 'loss_nats']
    return shown


def test_metrics_tell_of_every_step(models_dir, unbroken):
    """And of the valid loss before the first one, without which nobody knows what the steps were good for."""
    start, *records = metrics_of(models_dir, 'unbroken')
    assert sorted(start) == ['step', 'valid_loss_nats'] and start['step'] == 0
    assert start['valid_loss_nats'] == pytest.approx(records[0]['loss_nats'], abs=0.5)
    assert [record['step'] for record in records] == list(range(1, 121))
    for record in records:
        expected = learning_rate_at(record['step'] - 1, peak=0.01, warmup=5, decay=120)
        assert record['learning_rate'] == pytest.approx(expected)
        assert ('valid_loss_nats' in record) == (record['step'] in (50, 100, 120))
    assert records[-1]['valid_loss_nats'] < records[49]['valid_loss_nats'] < records[0]['loss_nats'] - 1


def test_every_save_is_a_model_and_the_newest_are_kept(sess, models_dir, unbroken):
    assert saved_steps(unbroken, 'model') == saved_steps(os.path.join(unbroken, 'training'), 'state') == [105, 120]
    assert not [name for name in os.listdir(unbroken) if name.endswith('.part')]
    hparams = checkpoint.load_hparams('unbroken', models_dir)
    assert checkpoint.model_dir('unbroken', models_dir) == unbroken
    tokens = corpus.encode_documents(encoder.get_encoder('unbroken', models_dir),
                                     corpus.read_documents(beside(models_dir, 'valid.txt')))
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
        run = Run(sess, folder, flags, tiny.hparams(**RUN_HPARAMS), encoder.get_encoder('tiny', models_dir))
        batch = random_tokens(run.hparams, [4, 16])
        run.one_step(batch)
        run.save(batch)
        yield run


@pytest.fixture
def run(saved_run):
    """A Run just restored from its last save; its graph and session are the default ones."""
    with saved_run.sess.graph.as_default(), saved_run.sess.as_default():
        saved_run.step = saved_run.saved = saved_run.restore()
        saved_run.stopping, saved_run.was_too_high, saved_run.valid_loss = False, False, None
        yield saved_run


def with_flags(monkeypatch, run, **changes):
    """Give the Run other flags during a test."""
    monkeypatch.setattr(run, 'options', options(**dict(vars(run.options), **changes)))


@pytest.mark.parametrize('has_save', [True, False])
def test_training_that_diverges_stops_and_says_what_counts(run, monkeypatch, has_save):
    saved, expected = run.step, weights_and_state(run.folder)
    with_flags(monkeypatch, run, learning_rate=1e20, warmup=0, save_every=1)
    monkeypatch.setattr(run, 'saved', saved if has_save else None)
    counts = 'The save of step %d is untouched; go on from it' % saved if has_save else 'Nothing is saved yet; start again'
    said = r'^step \d+ has a .*(nan|inf).*has diverged. %s with a lower --learn' % counts
    with pytest.raises(ValueError, match=said) as error:
        run.learn(random_tokens(run.hparams, [1000]), None)
    assert '\n' not in str(error.value)
    assert run_folder.last_save(run.folder) == saved
    assert_same(weights_and_state(run.folder), expected)


def test_weights_that_are_worse_than_a_guess_are_not_saved_and_said_to_be(run, monkeypatch, capfd):
    """Though their loss is a number. A step whose loss is far off is named, once while it stays so."""
    saved, expected = run.step, weights_and_state(run.folder)
    assert run.first_loss < 7  # a guess is log(257), 5.5
    with_flags(monkeypatch, run, learning_rate=3.0, warmup=0, save_every=4, steps=run.step + 20)
    said = r'step %d has a loss of [\d.]+ nats, far above the 5\.55 of a guess' % (saved + 4 - saved % 4)
    with pytest.raises(ValueError, match=said):
        run.learn(random_tokens(run.hparams, [1000]), None)
    assert_same(weights_and_state(run.folder), expected)
    assert len(re.findall(r'step \d+: a loss of [\d.]+ is far above the 5\.55 of a guess', capfd.readouterr().err)) == 1


def test_a_loss_is_too_high_if_it_is_far_above_a_guess_and_the_start(run, monkeypatch):
    guess = math.log(257)
    for start, limit in ((3, guess + 3), (guess + 2, guess + 5)):
        monkeypatch.setattr(run, 'first_loss', start)
        assert run.too_high(limit + 0.01) and not run.too_high(limit - 0.01)


def test_a_gradient_that_is_no_number_is_an_error_though_the_loss_is_one(run, monkeypatch):
    monkeypatch.setattr(run, 'compute', lambda tensors, feeds: (3.0, float('nan'), None))
    with pytest.raises(ValueError, match='a gradient of norm nan: training has diverged'):
        run.one_step(random_tokens(run.hparams, [4, 16]))


def test_a_run_reads_the_batches_of_its_seed_from_the_one_after_its_last_save(run, monkeypatch):
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


def test_the_learning_rate_falls_until_the_step_that_decay_names(run, monkeypatch):
    batch = random_tokens(run.hparams, [4, 16])
    for decay, last in ((10, 10), (None, 50)):
        with_flags(monkeypatch, run, warmup=0, steps=50, decay=decay, learning_rate=0.01)
        run.step = last
        assert run.one_step(batch)['learning_rate'] < 1e-9
        run.step = last // 2
        assert run.one_step(batch)['learning_rate'] == pytest.approx(0.005)


def test_what_is_computed_leaves_the_main_thread_free_to_hear_of_ctrl_c(run, monkeypatch):
    monkeypatch.setattr(run, 'sess', SimpleNamespace(run=lambda tensors, feeds: threading.current_thread()))
    assert run.compute(None, None) is not threading.main_thread()


def test_new_weights_are_those_of_the_seed(models_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(training.run, 'build',
                        lambda hparams, options, cluster: SimpleNamespace(state={}, variables=build_model(hparams)))
    found = []
    for seed in (3, 3, 4):
        folder = str(tmp_path / ('%d' % len(found)))
        os.makedirs(os.path.join(folder, 'training'))
        with tf.Graph().as_default(), tf.Session() as sess:
            hparams, text_encoder = tiny.hparams(**RUN_HPARAMS), encoder.get_encoder('tiny', models_dir)
            found.append(sess.run(Run(sess, folder, options(seed=seed), hparams, text_encoder).graph.variables[0]))
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2])


def test_a_sample_is_shown_without_the_token_that_it_starts_from(run, monkeypatch, capfd):
    monkeypatch.setattr(run, 'samples', [tf.constant([[256] + run.encoder.encode('hi') + [256]]) - 0,
                                       tf.constant([run.encoder.encode('ho')]) - 0])
    run.print_samples()
    shown = capfd.readouterr().err
    assert re.findall(r'SAMPLE AT STEP %d =+\n(.*)' % run.step, shown) == ['hi<|endoftext|>', 'ho']


def test_a_sample_goes_on_from_the_prompt(run, monkeypatch):
    """The model's likeliest tokens after it, and one from nothing beside it; a prompt that leaves no room is refused."""
    with_flags(monkeypatch, run, sample_every=1, sample_prompt='Once upon')
    from_nothing, from_prompt = run.compute(run.build_samples(), {})
    assert from_nothing[0, 0] == run.encoder.end_of_text
    assert run.encoder.decode(from_prompt[0]).startswith('Once upon')
    assert from_prompt.shape[1] == 16 or from_prompt[0, -1] == run.encoder.end_of_text  # where it may end before
    for prompt in ('', 'x' * 16):
        with_flags(monkeypatch, run, sample_every=1, sample_prompt=prompt)
        with pytest.raises(ValueError, match='it must have 1 to 15'):
            run.build_samples()


# The best by the valid loss

def test_the_model_with_the_lowest_valid_loss_is_kept_as_best(models_dir, tmp_path, monkeypatch, capfd):
    """A complete model; a run that goes on remembers it; and the last line of a run tells how to sample from it."""
    losses = iter([5.0, 4.0, 4.5, 3.0, 3.5, 9.0, 8.0])  # before the first step, and after each one; and on another text
    monkeypatch.setattr(Run, 'measure', lambda run, tokens: next(losses))
    flags = flags_of(models_dir, 'measured', valid=beside(models_dir, 'valid.txt'), valid_every=1, steps=2, save_every=1)
    best = os.path.join(models_dir, 'measured', 'best')
    for steps, expected in ((2, 1), (4, 3)):
        train.train(**dict(flags, steps=steps))
        assert checkpoint.model_dir('measured/best', models_dir) == best
        assert checkpoint.weights_prefix(best).endswith('model.ckpt-%d' % expected) and saved_steps(best, 'model') == [expected]
        assert encoder.get_encoder('measured/best', models_dir).encode('a') == [64]
        assert '3.000' in capfd.readouterr().err.splitlines()[-1] or expected == 1
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
    for run.step in range(run.step + 1, run.step + 4):
        run.validate(valid)
        steps.append(run.step in kept)
    return steps


def test_losses_on_another_text_are_not_compared(run, monkeypatch):
    texts = [SimpleNamespace(filename='cache/tokens-%s.uint16' % name) for name in 'ab']
    monkeypatch.setattr(run, 'best', {})
    assert validated(monkeypatch, run, texts[0], [2.0, 3.0, 1.5]) == [True, False, True]
    assert validated(monkeypatch, run, texts[1], [9.0, 9.0, 8.0]) == [True, False, True]
    assert run_folder.read_note(run.folder, 'best.json')['valid_loss_nats'] == 8.0


def test_training_that_made_the_model_worse_is_told_so(models_dir, monkeypatch, capfd):
    losses = iter([3.0, 3.25])
    monkeypatch.setattr(Run, 'measure', lambda run, tokens: next(losses))
    train.train(**flags_of(models_dir, 'worse', valid=beside(models_dir, 'valid.txt'), steps=1))
    stderr = capfd.readouterr().err
    assert 'step 0 of 1: valid loss 3.000\n' in stderr
    assert 'the valid loss was lowest, 3.000, before the first step; try a lower --learning_rate' in stderr.splitlines()[-1]
    assert not os.path.exists(os.path.join(models_dir, 'worse', 'best'))


# Ctrl-C

@pytest.mark.parametrize('number', process.INTERRUPTS)
def test_ctrl_c_during_a_measurement_ends_it_and_saves_what_is_learnt(run, models_dir, monkeypatch, number):
    """Without the figure that is missing; a measurement may take minutes."""
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
    assert len(begun) == 3 < len(valid) // 32  # the last is of the batch that was learnt, before it is saved
    assert run.saved == run_folder.last_save(run.folder) == step + 1
    assert run.record.read()[-1]['step'] == step + 1
    assert 'valid_loss_nats' not in run.record.read()[-1]


def test_a_second_ctrl_c_says_that_nothing_was_saved_since(models_dir, unbroken, monkeypatch, capfd):
    def twice(run, batch):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    monkeypatch.setattr(Run, 'one_step', twice)
    monkeypatch.setattr(Run, '__init__', quick_init)
    with pytest.raises(KeyboardInterrupt):
        train.train(**flags_of(models_dir, 'unbroken', keep=2, steps=130))
    assert 'unbroken is stopped at once; the last save is that of step 120\n' in capfd.readouterr().err


def quick_init(run, sess, folder, flags, hparams, text_encoder, cluster):
    """A Run that has no graph."""
    vars(run).update(folder=folder, options=flags, hparams=hparams, cluster=cluster, stopping=False, best={}, valid_loss=None)
    run.step = run.saved = run_folder.last_save(folder)


def test_ctrl_c_before_the_first_step_saves_nothing_and_says_so(models_dir, monkeypatch, capfd, recwarn):
    monkeypatch.setattr(Run, 'mean_loss', lambda run, windows: os.kill(os.getpid(), signal.SIGINT) or 1.0)
    train.train(**flags_of(models_dir, 'early', valid=beside(models_dir, 'valid.txt')))
    stderr = capfd.readouterr().err
    assert stderr.endswith('early: stopped before the first step; nothing is saved\n') and 'arning' not in stderr
    assert run_folder.last_save(os.path.join(models_dir, 'early')) is None
    with pytest.raises(FileNotFoundError, match=r'models there: (?!.*early)'):
        checkpoint.model_dir('nowhere', models_dir)
    assert not os.path.exists(os.path.join(models_dir, 'early', 'checkpoint'))
    assert not [warning for warning in recwarn if 'matplotlib' in str(warning.filename)]


def test_an_error_is_one_line_and_status_1(models_dir):
    process = start(flags_of(models_dir, 'refused', dropout=1.5))
    assert process.communicate(timeout=60) == (
        '', 'train.py: --dropout is 1.5; it must be 0 or more, and less than 1\n')
    assert process.returncode == 1


class Killed(BaseException):
    pass


def test_killed_at_any_moment_of_a_save_the_folder_holds_a_whole_one(run, monkeypatch):
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
        now = {name: run.sess.run(variable) for name, variable in run.graph.state.items()}
        now.update(gradients_of(tf.trainable_variables(), run.sess.run(tf.trainable_variables())))
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


def test_weights_that_have_no_loss_are_not_saved(run):
    """The loss of the step that broke them was still a number: it is computed before the update."""
    saved = run.step
    run.one_step(random_tokens(run.hparams, [4, 16]))
    variable = tf.trainable_variables()[0]
    run.sess.run(variable.assign(np.inf + tf.zeros_like(variable)))
    with pytest.raises(ValueError, match='step %d has a measured loss of nan' % (saved + 1)):
        run.save(random_tokens(run.hparams, [4, 16]))
    assert run_folder.last_save(run.folder) == saved


@pytest.mark.parametrize('failing', ['state.ckpt', 'model.ckpt'])
def test_a_full_disk_is_one_line_and_leaves_the_save_before(run, monkeypatch, failing):
    """What cannot be finished goes, and what was finished of the same save."""
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


def test_what_was_written_aside_goes_if_the_disk_fails_later(run, monkeypatch, tmp_path):
    def fail(path):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(files, 'sync', fail)
    with pytest.raises(OSError, match='No space left'):
        checkpoint.save_variables(run.sess, run.graph.state, str(tmp_path / 'state.ckpt-1'))
    assert not os.listdir(str(tmp_path))


def test_what_a_killed_process_left_of_a_later_save_does_not_count_as_the_newest(tmp_path):
    for name in ('model.ckpt-5.index', 'model.ckpt-7.index', 'model.ckpt-9.index', 'model.ckpt-12.part.index', 'checkpoint'):
        (tmp_path / name).write_text('')
    checkpoint.remove_old(str(tmp_path / 'model.ckpt'), 9, 2)
    assert sorted(os.listdir(str(tmp_path))) == ['checkpoint', 'model.ckpt-7.index', 'model.ckpt-9.index']


def snapshot(folder):
    """The names of all files below a folder, but for TensorBoard's."""
    return sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if 'tfevents' not in name)


def test_an_error_of_the_disk_says_what_is_saved(models_dir, unbroken, monkeypatch):
    def fail(run, tokens, valid_tokens):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Run, '__init__', quick_init)
    monkeypatch.setattr(Run, 'learn', fail)
    with pytest.raises(OSError, match='No space left on device; the last save is that of step 120$'):
        train.train(**flags_of(models_dir, 'unbroken', steps=140))


def test_a_save_is_on_the_disk_before_it_counts_and_before_an_older_one_goes(run, monkeypatch):
    """Or a power failure could take both."""
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
                ('sync', name % (run.step, '.part')), ('replace', name % (run.step, '')), ('remove', name % (saved, '')))]
            assert synced < renamed < removed
            assert renamed < done.index(('replace', 'checkpoint')) < removed


def test_nothing_but_tensorflow_s_own_goes_into_its_collections(run):
    """What else is in them makes it complain, at each save, where TF_CPP_MIN_LOG_LEVEL is set."""
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


def test_dropout_is_for_training_alone(run):
    weights = run.sess.run({variable.op.name: variable for variable in tf.trainable_variables()})
    tokens = random_tokens(run.hparams, [5, 16])
    logits, _ = reference.forward(weights, tokens, run.hparams.n_head)
    expected = reference.token_losses(logits, tokens).mean()
    assert run.measure(tokens.ravel()) == pytest.approx(expected, abs=1e-5)
    assert run.measure(np.append(tokens, [1, 2, 3])) == pytest.approx(expected, abs=1e-5)  # less than a window is left out
    training = [run.sess.run(run.graph.loss, {run.graph.tokens: tokens[:4].reshape([2, 2, 16]), run.graph.first: 4 * step})
                for step in (1, 2)]
    assert training[0] != training[1]


def test_memory_that_does_not_suffice_is_answered_with_what_to_do(run, monkeypatch):
    def exhausted(tensors, feeds):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')
    monkeypatch.setattr(run, 'sess', SimpleNamespace(run=exhausted))
    with pytest.raises(ValueError, match='out of memory.*--batch_size.*--recompute'):
        run.one_step(random_tokens(run.hparams, [4, 16]))


# Starting

def test_from_nothing_a_run_starts_as_the_paper_says(models_dir, tmp_path, capfd):
    """Section 2.3: projections into the residual stream are scaled by 1 / sqrt(2 n_layer). The vocabulary sets n_vocab."""
    hparams = tmp_path / 'hparams.json'
    hparams.write_text(json.dumps({'n_vocab': 50257, 'n_ctx': 16, 'n_embd': 64, 'n_head': 2, 'n_layer': 2}))
    train.train(**flags_of(models_dir, 'new', model_name=None, hparams=str(hparams), vocab=os.path.join(models_dir, 'tiny'),
                           learning_rate=1e-9, steps=1, sample_every=1))
    stderr = capfd.readouterr().err
    assert 'SAMPLE AT STEP 1' in stderr
    assert re.search(r'^step 1 of 1: loss 5\.\d{3}, \d+ tokens/s, 00:00 left$', stderr, re.MULTILINE)
    found = stored(checkpoint.weights_prefix(os.path.join(models_dir, 'new')))
    assert found['model/wte'].shape == (257, 64)
    for name, array in found.items():
        if name.endswith('/w'):  # 4,096 numbers or more: five standard errors are 0.055
            assert abs(array.std() / (0.01 if '/c_proj/' in name else 0.02) - 1) < 0.06, name


def test_a_run_may_learn_its_vocabulary(models_dir, tmp_path):
    pytest.importorskip('tokenizers', reason='needs tokenizers')
    hparams = tmp_path / 'hparams.json'
    hparams.write_text('{"n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 1}')
    folder = os.path.join(models_dir, 'words')
    other = tmp_path / 'other.txt'
    other.write_text('dog ' * 100)
    flags = flags_of(models_dir, 'words', model_name=None, hparams=str(hparams), vocab_size=264, steps=2, valid=str(other))
    with run_folder.claimed(folder):
        run_folder.begin(folder, options(**dict(flags, vocab_size=262)))  # and stopped before its first save
    train.train(**flags)
    assert checkpoint.load_hparams('words', models_dir).n_vocab == 264
    text_encoder = encoder.get_encoder('words', models_dir)
    assert text_encoder.end_of_text == 263
    with open(flags['data'], encoding='utf-8') as file:
        text = file.read()
    ids = text_encoder.encode(text)
    assert text_encoder.decode(ids) == text and len(ids) < 0.8 * len(text)
    assert stored(checkpoint.weights_prefix(folder))['model/wte'].shape == (264, 8)


@pytest.mark.parametrize('changes, said', [
    (dict(vocab='x'), 'leave out --hparams, --vocab and --vocab_size'),
    (dict(hparams='x'), 'leave out --hparams, --vocab and --vocab_size'),
    (dict(vocab_size=300), 'leave out --hparams, --vocab and --vocab_size'),
    (dict(model_name=None), 'give --model_name'),
    (dict(model_name=None, vocab='x'), 'give --model_name'),
    (dict(model_name=None, hparams='x'), 'give --model_name'),
    (dict(model_name=None, hparams='x', vocab='x', vocab_size=300), 'give --model_name'),
    (dict(batch_size=0), '--batch_size is 0; it must be more than 0'),
    (dict(learning_rate=-1), '--learning_rate is -1'),
    (dict(keep=0), '--keep is 0'),
    (dict(warmup=-1), '--warmup is -1'),
    (dict(dropout=1), '--dropout is 1; it must be 0 or more, and less than 1'),
    (dict(seed=-1), '--seed is -1'),
    (dict(data='nowhere.txt'), 'nowhere.txt'),
    (dict(valid='nowhere.txt'), 'nowhere.txt'),
    (dict(model_name='nowhere'), 'no model nowhere'),
    (dict(model_name=None, hparams='nowhere.json', vocab_size=300), 'nowhere.json'),
    (dict(model_name=None, hparams=__file__, vocab_size=300), 'test_train.py is damaged .*; give the path of an hparams.json'),
    (dict(model_name=None, hparams=DEMO_VOCABULARY, vocab_size=300), 'encoder.json does not describe a model')])
def test_what_cannot_be_trained_is_refused_before_anything_is_written(models_dir, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        train.train(**flags_of(models_dir, 'refused', **changes))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


def assert_goes_on(models_dir, run_name, monkeypatch, capfd, **changes):
    """What is said, without the computing, when that run is started again with some flags changed."""
    monkeypatch.setattr(train, 'fit', lambda *arguments: None)
    train.train(**dict(flags_of(models_dir, run_name, steps=2), **changes))
    return capfd.readouterr().err


@pytest.fixture(scope='module')
def from_nothing(models_dir, tmp_path_factory):
    """The flags of a run from nothing that has done one of its two steps."""
    hparams = tmp_path_factory.mktemp('sizes') / 'hparams.json'
    hparams.write_text('{"n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 1}')
    flags = dict(model_name=None, hparams=str(hparams), vocab=os.path.join(models_dir, 'tiny'))
    train.train(**flags_of(models_dir, 'scratch', steps=1, **flags))
    return flags


@pytest.fixture(scope='module')
def tuned(models_dir):
    """The name of a fine-tune that has done one of its two steps."""
    train.train(**flags_of(models_dir, 'tuned', steps=1))
    return 'tuned'


def test_a_run_that_goes_on_says_from_where_and_what_is_changed(models_dir, tuned, tmp_path, monkeypatch, capfd):
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capfd, seed=1)
    assert 'tuned: going on from step 1 of 2; a step is 64 tokens, and the text has 2032\n' in stderr.replace(
        '%d\n' % len_of(models_dir), '2032\n')
    assert 'changed since the last start: --seed 0 -> 1, --steps 1 -> 2\n' in stderr and 'order of the text' in stderr
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capfd, seed=1)
    assert 'changed' not in stderr and 'order of the text' not in stderr
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capfd, seed=1, learning_rate=0.5)
    assert 'changed since the last start: --learning_rate 0.01 -> 0.5\n' in stderr and 'order of the text' not in stderr
    copy = tmp_path / 'copy.txt'
    with open(beside(models_dir, 'data.txt'), encoding='utf-8') as file:
        text = file.read()
    copy.write_text(text)
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capfd, seed=1, learning_rate=0.5, data=str(copy))
    assert '--data %s -> %s\n' % (beside(models_dir, 'data.txt'), copy) in stderr and 'order of the text' not in stderr
    copy.write_text(text + 'and more')
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capfd, seed=1, learning_rate=0.5, data=str(copy))
    assert 'changed since the last start: the text of --data\n' in stderr and 'order of the text' in stderr


def len_of(models_dir):
    """How many tokens data.txt has: a byte each, and the end of the text."""
    return os.path.getsize(beside(models_dir, 'data.txt')) + 1


def test_a_finished_run_says_so_and_computes_nothing(models_dir, tuned, monkeypatch, capfd):
    monkeypatch.setattr(run_folder, 'load_tokens', None)
    assert assert_goes_on(models_dir, tuned, monkeypatch, capfd, steps=1).endswith(
        'tuned has its 1 steps; raise --steps to go on\n')


def test_a_run_of_a_time_when_flags_were_not_kept_goes_on(models_dir, tuned, monkeypatch, capfd):
    os.remove(run_folder.inside(os.path.join(models_dir, tuned), 'options.json'))
    stderr = assert_goes_on(models_dir, tuned, monkeypatch, capfd, seed=4)
    assert 'going on from step 1 of 2' in stderr and 'changed' not in stderr
    assert '--seed 4 -> 5' in assert_goes_on(models_dir, tuned, monkeypatch, capfd, seed=5)


def test_flags_that_are_damaged_are_one_line(models_dir, tuned, monkeypatch, capfd):
    path = run_folder.inside(os.path.join(models_dir, tuned), 'options.json')
    for content in ('{"seed": ', '3', ''):
        with open(path, 'w', encoding='utf-8') as file:
            file.write(content)
        with pytest.raises(ValueError, match=r'options\.json is damaged.*delete it'):
            assert_goes_on(models_dir, tuned, monkeypatch, capfd)
    os.remove(path)


def test_a_run_keeps_what_it_started_from(models_dir, from_nothing, tmp_path, monkeypatch, capfd):
    """Another model, other sizes and another vocabulary are refused, and the run is as it was."""
    folder = os.path.join(models_dir, 'scratch')
    larger, other = tmp_path / 'larger.json', str(tmp_path / 'other')
    larger.write_text('{"n_ctx": 16, "n_embd": 8, "n_head": 2, "n_layer": 3}')
    shutil.copytree(from_nothing['vocab'], other)
    with open(os.path.join(other, 'vocab.bpe'), 'a', encoding='utf-8') as file:
        file.write('\n')
    before = {path: os.path.getmtime(path) for path in snapshot(folder)}
    for changes, said in (
            (dict(model_name='tiny', hparams=None, vocab=None), 'scratch has no --model_name, and --model_name tiny was given'),
            (dict(vocab=None, vocab_size=300), 'scratch has no --vocab_size, and --vocab_size 300 was given'),
            (dict(hparams=str(larger)), 'scratch has n_layer 1, and 3 was given'),
            (dict(vocab=other), 'scratch has another vocab.bpe, and --vocab .*other was given')):
        with pytest.raises(ValueError, match=said + '; give what it has, or another --run_name for a new run'):
            assert_goes_on(models_dir, 'scratch', monkeypatch, capfd, **dict(from_nothing, **changes))
    assert {path: os.path.getmtime(path) for path in snapshot(folder)} == before
    assert 'going on from step 1' in assert_goes_on(models_dir, 'scratch', monkeypatch, capfd, **from_nothing)


def test_a_fine_tune_keeps_its_model(models_dir, tuned, monkeypatch, capfd):
    assert_goes_on(models_dir, tuned, monkeypatch, capfd)
    with pytest.raises(ValueError, match='tuned has --model_name tiny, and --model_name nowhere was given'):
        assert_goes_on(models_dir, tuned, monkeypatch, capfd, model_name='nowhere')


def test_a_second_process_is_told_which_one_trains(models_dir, monkeypatch, capfd):
    with run_folder.claimed(os.path.join(models_dir, 'claimed')):
        with pytest.raises(ValueError, match='claimed is being trained by process %d on ' % os.getpid()):
            train.train(**flags_of(models_dir, 'claimed'))
    assert 'starting from tiny' in assert_goes_on(models_dir, 'claimed', monkeypatch, capfd)


def test_data_that_are_refused_leave_no_folder(models_dir, tmp_path):
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9')
    with pytest.raises(ValueError, match='is not UTF-8'):
        train.train(**flags_of(models_dir, 'refused', data=str(tmp_path / 'latin.txt')))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


def test_a_damaged_vocabulary_is_told_as_that_of_the_model_to_start_from(models_dir):
    source = os.path.join(models_dir, 'damaged')
    shutil.copytree(os.path.join(models_dir, 'tiny'), source)
    with open(os.path.join(source, 'vocab.bpe'), 'a', encoding='utf-8') as file:
        file.write('a b\n')
    with pytest.raises(ValueError, match='vocab.bpe in %s is damaged' % source):
        train.train(**flags_of(models_dir, 'refused', model_name='damaged'))
    assert not os.path.exists(os.path.join(models_dir, 'refused'))


def test_a_folder_that_was_there_is_never_removed(models_dir, tmp_path):
    folder = os.path.join(models_dir, 'empty')
    os.makedirs(folder)
    (tmp_path / 'latin.txt').write_bytes(b'caf\xe9')
    with pytest.raises(ValueError, match='is not UTF-8'):
        train.train(**flags_of(models_dir, 'empty', data=str(tmp_path / 'latin.txt')))
    assert os.path.isdir(folder)


@pytest.mark.parametrize('name', ['117M', '1558M', '762M'])
def test_the_name_of_a_released_model_is_refused(models_dir, name):
    with pytest.raises(ValueError, match='%s is where the released model of that name belongs; choose another' % name):
        train.train(**flags_of(models_dir, name))
    assert not os.path.exists(os.path.join(models_dir, name))


def test_a_file_is_no_run(models_dir):
    open(os.path.join(models_dir, 'file'), 'w').close()
    with pytest.raises(ValueError, match='file is a file; choose another --run_name'):
        train.train(**flags_of(models_dir, 'file'))


@pytest.mark.parametrize('missing', [[], ['checkpoint']], ids=['a whole model', 'a part of one'])
def test_a_model_s_folder_is_not_trained_into(models_dir, tmp_path, missing):
    hparams = tiny.hparams(**RUN_HPARAMS)
    tiny.write_model(str(tmp_path / '117M'), hparams, tiny.random_weights(hparams))
    for name in missing:
        os.remove(str(tmp_path / '117M' / name))
    before = sorted(os.listdir(str(tmp_path / '117M')))
    with pytest.raises(ValueError, match='117M exists and is not a training run; choose another --run_name'):
        train.train(**flags_of(str(tmp_path), '117M', model_name='117M', data=beside(models_dir, 'data.txt')))
    assert sorted(os.listdir(str(tmp_path / '117M'))) == before


@pytest.mark.parametrize('name', ['data', 'valid'])
def test_a_text_shorter_than_a_window_is_refused(models_dir, tmp_path, name):
    path = tmp_path / 'short.txt'
    path.write_text('fourteen bytes')  # and the end of text
    with pytest.raises(ValueError, match=r'short\.txt has 15 tokens.*windows of 16; give more text'):
        train.train(**flags_of(models_dir, 'short', **{name: str(path)}))


def test_an_attempt_that_was_never_saved_leaves_nothing_behind(models_dir, tmp_path):
    folder = str(tmp_path / 'run')
    flags = flags_of(models_dir, 'run')
    with run_folder.claimed(folder):
        run_folder.begin(folder, options(**flags))
        encoder.write_vocabulary([('a', 'b')], folder)
        encoder.write_vocabulary([('a', 'b')], os.path.join(folder, 'best'))
        files.write_text(run_folder.inside(folder, 'best.json'), '{"valid_loss_nats": 0}')
        assert run_folder.last_save(folder) is None
        run_folder.begin(folder, options(**flags))
    assert not os.path.exists(os.path.join(folder, 'best')) and not os.path.exists(run_folder.inside(folder, 'best.json'))
    assert encoder.get_encoder('run', str(tmp_path)).bpe_ranks == {}


def test_figures_of_steps_that_were_not_saved_are_forgotten(tmp_path):
    metrics = tmp_path / 'metrics.jsonl'
    metrics.write_text('{"loss_nats": 3.5, "step": 1}\n{"loss_nats": 2.5, "step": 2}\n{"loss_nats": 1.5, "ste')
    Record(str(tmp_path), 3)
    assert metrics.read_text() == '{"loss_nats": 3.5, "step": 1}\n{"loss_nats": 2.5, "step": 2}\n'
    Record(str(tmp_path), 2)
    assert metrics.read_text() == '{"loss_nats": 3.5, "step": 1}\n'


# What is shown

def test_without_a_terminal_lines_tell_where_a_run_is(models_dir, monkeypatch, capfd):
    monkeypatch.setattr(training.record, 'plot', lambda records, path: None)
    train.train(**flags_of(models_dir, 'told', steps=4, valid_every=2, sample_every=0))
    first, second, fourth, *closing = capfd.readouterr().err.splitlines()
    folder = os.path.join(models_dir, 'told')
    assert first == '%s: 4 steps, starting from tiny; a step is 64 tokens, and the text has %d' % (folder, len_of(models_dir))
    assert re.match(r'step 2 of 4: loss \d\.\d{3}, \d+ tokens/s, \d\d:\d\d left$', second)
    assert re.match(r'step 4 of 4: loss .* 00:00 left$', fourth)
    assert closing == [folder + ': step 4 of 4 is saved',
                       'python3 src/generate_unconditional_samples.py --model_name told --models_dir %s samples from it'
                       % models_dir]


def test_a_long_silence_is_broken(run, monkeypatch, capfd):
    """Without a terminal, however seldom the steps are."""
    run.began = time.time() - 100, run.step
    record = {'step': 1, 'loss_nats': 1.0, 'tokens_per_second': 1.0}
    with_flags(monkeypatch, run, valid_every=1000, steps=1000)
    run.step += 1
    for silent_seconds, n_lines in ((59, 0), (61, 1), (1, 0)):
        monkeypatch.setattr(run, 'told', run.told if silent_seconds == 1 else time.time() - silent_seconds)
        run.report(record, SimpleNamespace(disable=True, set_postfix_str=lambda *_, **__: None, update=lambda: None))
        assert len(capfd.readouterr().err.splitlines()) == n_lines


def test_on_a_terminal_the_bar_tells_it(run, monkeypatch, capfd):
    run.began = time.time() - 100, run.step
    run.step += 1
    shown = []
    bar = SimpleNamespace(disable=False, set_postfix_str=lambda text, refresh: shown.append(text), update=lambda: None)
    with_flags(monkeypatch, run, valid_every=1)
    run.report({'step': run.step, 'loss_nats': 1.0, 'tokens_per_second': 20.0}, bar)
    assert shown == ['loss 1.000, 20 tokens/s'] and capfd.readouterr().err == ''


def test_the_losses_are_drawn_at_each_save_but_not_all_the_time(run, monkeypatch):
    drawn, clock = [], [1000.0]

    def plot(records, path):
        drawn.append(clock[0])
        clock[0] += 2

    monkeypatch.setattr(training.record, 'plot', plot)
    monkeypatch.setattr(training.record, 'time', SimpleNamespace(time=lambda: clock[0]))
    monkeypatch.setattr(run.record, 'drawn', 0)
    monkeypatch.setattr(run.record, 'drawing_seconds', 0)
    for clock[0] in (1002.0, 1100.0, 1203.0, 1205.0, 1300.0):
        run.record.show(is_last=False)
    assert drawn == [1002.0, 1205.0]  # each takes 2 seconds
    run.record.show(is_last=True)
    assert len(drawn) == 3  # and at the end


def test_a_smoothed_curve_is_the_mean_of_neighbours():
    values = np.random.RandomState(0).standard_normal(20)
    expected = [values[max(0, i - 3):i + 4].mean() for i in range(20)]
    np.testing.assert_allclose(training.record.smoothed(values, 3), expected, atol=1e-12)
    assert len(training.record.smoothed(np.array([]), 1)) == 0


def test_the_loss_is_drawn(unbroken):
    pytest.importorskip('matplotlib', reason='needs matplotlib')
    with open(os.path.join(unbroken, 'training', 'loss.png'), 'rb') as file:
        assert file.read(8) == b'\x89PNG\r\n\x1a\n'
