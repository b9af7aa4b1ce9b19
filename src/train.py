#!/usr/bin/env python3
"""Fine-tune a GPT-2 model on your own text, or train one from scratch.

    python3 src/train.py --data stories.txt --valid held-out.txt --model_name 117M --run_name stories

creates models/stories, a model that every script accepts by that name. If training is stopped, even by kill -9, the
same command resumes from the last save and ends with the same weights.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which python3 -I and PYTHONSAFEPATH leave out
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

import contextlib
import importlib.util
import re
from types import SimpleNamespace

from gpt2 import checkpoint, corpus
from gpt2.system import flags
from gpt2.system.progress import report
from gpt2.system.tf1 import tf
from gpt2.training import run_folder
from gpt2.training.cluster import LocalWorkers, from_environment

RANGES = (  # names of flags, which values they accept in words, and whether a value is one of these
    (('batch_size', 'accumulate', 'learning_rate', 'clip', 'steps', 'save_every', 'keep', 'valid_every', 'workers'),
     'more than 0', lambda value: value > 0),
    (('warmup', 'weight_decay', 'sample_every'), '0 or more', lambda value: value >= 0),
    (('dropout',), '0 or more and less than 1', lambda value: 0 <= value < 1),
    (('seed',), '0 to 4294967295', lambda value: 0 <= value < 2 ** 32),
    (('precision',), 'float32 or bfloat16', lambda value: value in ('float32', 'bfloat16')))


def train(data: str, run_name: str, *, valid: str = None, model_name: str = None, hparams: str = None,
          vocab: str = None, vocab_size: int = None, batch_size=2, accumulate=1, learning_rate=5e-5, warmup=100,
          decay: int = None, weight_decay=0.01, clip=1.0, dropout=0.1, steps=1000, save_every=100, keep=1,
          valid_every=100, sample_every=0, sample_prompt: str = None, recompute=False, train_only: str = None,
          precision='float32', workers=1, seed=0, models_dir='models'):
    """Train a model on text, and save it in a folder that every script accepts by name.

    For example: train.py --data stories.txt --valid held-out.txt --model_name 117M --run_name stories

    Args:
        data: training text: files, globs or folders of .txt and .jsonl, separated by commas
        run_name: the new model is models/<run_name>; if it exists, training resumes from its last save
        valid: validation text, not trained on; the model with the lowest loss on it is kept as <run_name>/best
        model_name: the model to fine-tune; or, to train from scratch, give hparams and either vocab or vocab_size
        hparams: path of an hparams.json
        vocab: folder with encoder.json and vocab.bpe, such as models/117M
        vocab_size: learn a vocabulary of this many tokens from data
        batch_size: sequences of n_ctx tokens that each worker computes at once
        accumulate: number of batches per worker in each step
        learning_rate: peak learning rate: too low learns slowly, too high forgets; docs/training.md has values for each
            model
        warmup: number of steps over which the learning rate rises linearly to its peak
        decay: step at which the learning rate, decaying along a cosine, reaches 0; None for the last step
        weight_decay: each step shrinks every matrix by this fraction times the learning rate
        clip: scale down gradients whose norm exceeds this
        dropout: fraction of the activations to drop during training
        steps: total number of steps
        save_every: number of steps between saves
        keep: number of recent saves to keep
        valid_every: number of steps between validations
        sample_every: number of steps between printed samples; 0 disables
        sample_prompt: a prompt that one more sample continues each time
        recompute: compute each block again for its gradient instead of storing its activations: less memory, a third
            slower
        train_only: train only variables in whose names this regular expression is found, such as 'h1[01]/|ln_f': less
            memory
        precision: float32; or bfloat16 for the matrix products alone, which GPUs and some CPUs compute faster. The
            weights are saved in float32
        workers: number of workers on this machine, each with a GPU of its own or a share of the cores; for several
            machines, leave this out and set TF_CONFIG on each, see docs/clusters.md
        seed: determines the initial weights, the order of the data, and what is dropped
    """
    options = SimpleNamespace(**locals())
    check(options)
    cluster = from_environment(os.environ.get('TF_CONFIG'))
    if workers > 1:
        if cluster.n_workers > 1:
            raise ValueError('--workers is for one machine, but TF_CONFIG lists %d workers; leave out one of the two'
                             % cluster.n_workers)
        cluster = LocalWorkers(workers)
    options.workers = cluster.n_workers
    folder = checkpoint.new_model_dir(run_name, models_dir)
    cluster.connect()
    with contextlib.ExitStack() as stack:
        inputs = stack.enter_context(run_folder.prepared(folder, options)) if cluster.is_chief else None
        if cluster.largest(inputs is not None):  # once the chief has prepared the folder: whether steps are left
            inputs = inputs or cluster.run(run_folder.join, folder, options)
            fit(folder, options, cluster, *inputs)
        else:
            cluster.finish()


def check(options):
    """Raises ValueError for flags out of range or in conflict with each other, FileNotFoundError for missing text.

    And ImportError if there is no TensorFlow.
    """
    for names, accepted, is_accepted in RANGES:
        for name in names:
            if not is_accepted(getattr(options, name)):
                raise ValueError('--%s is %s; it must be %s' % (name, getattr(options, name), accepted))
    if options.precision == 'bfloat16' and not hasattr(tf, 'disable_v2_behavior'):
        raise ValueError('TensorFlow %s cannot multiply all matrices in bfloat16; leave out --precision, or use '
                         'TensorFlow 2.x' % tf.__version__)
    if options.sample_prompt is not None and not options.sample_every:
        raise ValueError('--sample_prompt has no effect without --sample_every; give that, too')
    try:
        re.compile(options.train_only or '')
    except re.error as error:
        raise ValueError('--train_only is %s; it must be a regular expression: %s' % (options.train_only, error))
    if options.model_name is not None and {options.hparams, options.vocab, options.vocab_size} != {None}:
        raise ValueError('--model_name starts from that model: leave out --hparams, --vocab and --vocab_size')
    is_complete = options.hparams is not None and (options.vocab is None) != (options.vocab_size is None)
    if options.model_name is None and not is_complete:
        raise ValueError('give --model_name to fine-tune a model, or --hparams and either --vocab or --vocab_size to '
                         'train one from scratch')
    if not importlib.util.find_spec('tensorflow'):  # before the text is encoded, which may take an hour
        raise ImportError("No module named 'tensorflow'")
    corpus.find_files(options.data)
    if options.valid is not None:
        corpus.find_files(options.valid)


def fit(folder, options, cluster, text_encoder, hparams, tokens, valid_tokens):
    """Train until the last step, Ctrl-C or SIGTERM. The last four arguments are the result of run_folder.prepare."""
    from gpt2.training.run import Run
    cluster.check_equal(run_folder.facts(options, text_encoder, hparams, tokens, valid_tokens))
    try:
        with tf.Graph().as_default(), cluster.session() as sess:
            run = Run(sess, folder, options, hparams, text_encoder, cluster)
            with process.interruptible(run.interrupt, stopped=lambda: '%s: stopped at once; %s' % (
                    folder, run_folder.describe_last_save(folder))):
                run.learn(tokens, valid_tokens)
    except OSError as error:
        raise type(error)('%s; %s' % (error, run_folder.describe_last_save(folder)))
    except ValueError:
        if not cluster.is_chief:
            cluster.explain()  # most errors occur in all workers; then the chief reports it, and ends
        raise
    if cluster.is_chief:
        report(*run.summary())


if __name__ == '__main__':
    flags.run(train, outputs=['run_name'])
