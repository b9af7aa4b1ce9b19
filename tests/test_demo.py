"""The bundled model, models/demo: complete, as good as its card says, and the same on both TensorFlow versions."""
import json
import os
import re
import shutil

import numpy as np
import pytest

from gpt2 import checkpoint
from gpt2 import corpus
import encoder
import model
import sample
import train
from gpt2.system.tf1 import tf
from helpers import reference
from helpers.paths import HELD_OUT, MODELS

PROMPTS = ['Once upon a time', 'The old king said to his daughter,', '"I am not afraid," said the']


@pytest.fixture(scope='module')
def text_encoder():
    return encoder.get_encoder('demo', MODELS)


@pytest.fixture(scope='module')
def weights():
    """{name: array} as TensorFlow's own reader finds them."""
    reader = tf.train.load_checkpoint(os.path.join(MODELS, 'demo', 'model.ckpt'))
    return {name: reader.get_tensor(name).astype(np.float64) for name in reader.get_variable_to_shape_map()}


@pytest.fixture(scope='module')
def windows(text_encoder, tmp_path_factory):
    """held_out.txt as consecutive windows of the context's length: int32 [B, n_ctx]."""
    n_ctx = checkpoint.load_hparams('demo', MODELS).n_ctx
    tokens = corpus.load_tokens(text_encoder, HELD_OUT, str(tmp_path_factory.mktemp('cache')))
    return tokens[:len(tokens) // n_ctx * n_ctx].reshape(-1, n_ctx).astype(np.int32)


def excerpt_loss(sess, windows):
    """Mean loss of our graph on held_out.txt, in nats per token."""
    hparams = checkpoint.load_hparams('demo', MODELS)
    losses_BT = model.token_losses(model.model(hparams, windows)['logits'], windows)
    checkpoint.restore(sess, 'demo', MODELS)
    return sess.run(losses_BT).mean(dtype=np.float64)


def test_demo_folder_is_that_of_a_release_and_small():
    """Seven files and a card, less than 20 MB together: everybody who clones the repository downloads them."""
    folder = os.path.join(MODELS, 'demo')
    assert sorted(os.listdir(folder)) == sorted([
        'README.md', 'checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001', 'model.ckpt.index',
        'model.ckpt.meta', 'vocab.bpe'])
    assert sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) < 20e6


@pytest.mark.slow
def test_demo_loss_is_the_one_on_its_card(sess, windows):
    """Within 0.1 % of perplexity, on both TensorFlow versions. Change the figure on the card only with the weights."""
    with open(os.path.join(MODELS, 'demo', 'README.md'), encoding='utf-8') as file:
        recorded_nats = float(re.search(r'tests/held_out.txt.*?([0-9.]+) nats', file.read()).group(1))
    assert abs(np.exp(excerpt_loss(sess, windows) - recorded_nats) - 1) < 1e-3


@pytest.mark.slow
def test_demo_loss_equals_that_of_the_reference(sess, windows, weights):
    """In NumPy and float64, with the same weights."""
    logits, _ = reference.forward(weights, windows[:1], checkpoint.load_hparams('demo', MODELS).n_head)
    assert abs(excerpt_loss(sess, windows[:1]) - reference.token_losses(logits, windows[:1]).mean()) < 1e-5


@pytest.mark.slow
def test_demo_greedy_samples_equal_those_of_the_reference(sess, text_encoder, weights):
    """Each token is the most likely one in NumPy and float64. So both TensorFlow versions give the same samples."""
    hparams = checkpoint.load_hparams('demo', MODELS)
    prompts = [text_encoder.encode(prompt) for prompt in PROMPTS]
    length_B = [len(prompt) for prompt in prompts]
    context_BC = np.array([prompt + [0] * (max(length_B) - len(prompt)) for prompt in prompts])
    output = sample.sample_sequence(
        hparams=hparams, length=60, context=context_BC, context_lengths=length_B, temperature=0)
    checkpoint.restore(sess, 'demo', MODELS)
    for prompt, row in zip(prompts, sess.run(output)):
        text = row[:len(prompt) + 60]
        logits_1TV, _ = reference.forward(weights, text[None, :-1], hparams.n_head)
        np.testing.assert_array_equal(text[:len(prompt)], prompt)
        np.testing.assert_array_equal(text[len(prompt):], logits_1TV[0, len(prompt) - 1:].argmax(axis=-1))


@pytest.mark.slow
def test_demo_fine_tunes_to_a_lower_loss_on_a_new_text(sess, windows, tmpdir):
    """The model was not trained on the two stories; eight steps on them lower their loss."""
    models = str(tmpdir.join('models'))
    shutil.copytree(os.path.join(MODELS, 'demo'), os.path.join(models, 'demo'))
    train.train(HELD_OUT, 'tuned', valid=HELD_OUT, model_name='demo', batch_size=2, learning_rate=3e-4, warmup=2,
                dropout=0, steps=8, save_every=8, valid_every=8, models_dir=models)
    with open(os.path.join(models, 'tuned', 'training', 'metrics.jsonl'), encoding='utf-8') as file:
        metrics = list(map(json.loads, file))
    assert metrics[-1]['valid_loss_nats'] < excerpt_loss(sess, windows) - 0.05
