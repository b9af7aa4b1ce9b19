#!/usr/bin/env python3
"""Fine-tune a GPT-2 model on your own text, or train one from nothing.

    python3 src/train.py --data stories.txt --valid held-out.txt --model_name 117M --run_name stories

makes models/stories, which every script takes by that name. If it is stopped, even by kill -9, the same command goes on
from the last save as if nothing had happened.
"""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

import os
import re
import shutil
from types import SimpleNamespace

import checkpoint
import corpus
import process
from training import local_workers, run_folder
from training.cluster import from_environment


def train(data: str, run_name: str, *, valid: str = None, model_name: str = None, hparams: str = None, vocab: str = None,
          vocab_size: int = None, batch_size=2, accumulate=1, learning_rate=5e-5, warmup=100, decay: int = None,
          weight_decay=0.01, clip=1.0, dropout=0.1, steps=1000, save_every=100, keep=1, valid_every=100, sample_every=0,
          sample_prompt: str = None, recompute=False, train_only: str = None, workers=1, seed=0, models_dir='models'):
    """Train a model on text, into a folder that every script takes by name.

    For example: train.py --data stories.txt --valid held-out.txt --model_name 117M --run_name stories

    Args:
        data: text to learn from: files, globs or folders of .txt and .jsonl, several between commas
        run_name: the new model is models/<run_name>; where it exists, training goes on from its last save
        valid: text to measure the loss on, not to learn from; the model with the lowest loss is kept as <run_name>/best
        model_name: the model to start from; or, to start from nothing, hparams and one of vocab and vocab_size
        hparams: path of an hparams.json
        vocab: folder that holds encoder.json and vocab.bpe, such as models/117M
        vocab_size: learn a vocabulary of this many tokens from data
        batch_size: sequences of n_ctx tokens computed at once, by each worker
        accumulate: how many such batches of each worker make one step
        learning_rate: how far a step goes: too low learns slowly, too high forgets; README.md says what suits which model
        warmup: steps over which the learning rate rises to that value
        decay: step at which the learning rate, falling along a cosine, reaches 0; None is the last step
        weight_decay: each step shrinks every matrix by this fraction times the learning rate
        clip: a gradient with a larger norm is scaled down to this norm
        dropout: fraction of the activations that training drops
        steps: how many steps in all
        save_every: steps between saves
        keep: how many of the newest saves to keep
        valid_every: steps between measurements of the loss on valid
        sample_every: steps between printed samples; 0 prints none
        sample_prompt: a beginning that is continued in another sample each time
        recompute: compute each block a second time for its gradient, instead of storing it: less memory, a third slower
        train_only: learn only the variables in whose name this regular expression is found, such as 'h1[01]/|ln_f': less memory
        workers: train by so many processes on this machine, each with a GPU of its own or a share of the cores; for several
            machines, leave this out and set TF_CONFIG on each, see README.md
        seed: decides the new weights, the order of the data, and what is dropped
        models_dir: folder of the models
    """
    options = SimpleNamespace(**locals())
    check(options)
    cluster = from_environment(os.environ.get('TF_CONFIG'))
    if workers > 1:
        if cluster.n_workers > 1:
            raise ValueError('--workers starts processes on one machine, and TF_CONFIG tells of %d workers; leave one of them out'
                             % cluster.n_workers)
        return local_workers.run(__file__, options)
    local_workers.end_with_the_others()
    options.workers = cluster.n_workers
    folder = checkpoint.new_model_dir(run_name, models_dir)
    cluster.connect()
    if cluster.is_chief:
        lead(folder, options, cluster)
    elif cluster.any(False):  # once worker 0 has prepared the folder, it says whether there is anything to do
        fit(folder, options, cluster, *cluster.run(run_folder.join, folder, options))
    else:
        cluster.finish()


def lead(folder, options, cluster):
    """What worker 0 does: prepare the run's folder, and train."""
    is_new = not os.path.isdir(folder)
    with run_folder.claimed(folder):
        try:
            start = run_folder.prepare(folder, options)
        except Exception:
            if is_new:
                shutil.rmtree(folder)
            raise
        if cluster.any(start is not None):
            fit(folder, options, cluster, *start)
        else:
            cluster.finish()


def check(options):
    """Raises ValueError for flags out of range or at odds with each other, FileNotFoundError for text that is not there."""
    for name in ('batch_size', 'accumulate', 'learning_rate', 'clip', 'steps', 'save_every', 'keep', 'valid_every', 'workers'):
        if not getattr(options, name) > 0:
            raise ValueError('--%s is %r; it must be more than 0' % (name, getattr(options, name)))
    for name in ('warmup', 'weight_decay', 'sample_every'):
        if not getattr(options, name) >= 0:
            raise ValueError('--%s is %r; it must be 0 or more' % (name, getattr(options, name)))
    if not 0 <= options.dropout < 1:
        raise ValueError('--dropout is %r; it must be 0 or more, and less than 1' % options.dropout)
    if not 0 <= options.seed < 2 ** 32:
        raise ValueError('--seed is %r; it must be 0 to 4294967295' % options.seed)
    if options.sample_prompt is not None and not options.sample_every:
        raise ValueError('--sample_prompt is for the samples that --sample_every asks for; give that, too')
    try:
        re.compile(options.train_only or '')
    except re.error as error:
        raise ValueError('--train_only is %s; it must be a regular expression: %s' % (options.train_only, error))
    if options.model_name is not None and {options.hparams, options.vocab, options.vocab_size} != {None}:
        raise ValueError('--model_name starts from that model: leave out --hparams, --vocab and --vocab_size')
    if options.model_name is None and (options.hparams is None or (options.vocab is None) == (options.vocab_size is None)):
        raise ValueError('give --model_name to start from a model; or, to start from nothing, --hparams and either --vocab '
                         'or --vocab_size')
    corpus.find_files(options.data)
    if options.valid is not None:
        corpus.find_files(options.valid)


def fit(folder, options, cluster, text_encoder, hparams, tokens, valid_tokens):
    """Train until the last step, Ctrl-C or SIGTERM; the last four arguments are what run_folder.prepare returns."""
    from tf1 import tf
    from training.run import Run
    cluster.check_equal(run_folder.facts(options, text_encoder, hparams, tokens, valid_tokens))
    try:
        with tf.Graph().as_default(), cluster.session() as sess:
            run = Run(sess, folder, options, hparams, text_encoder, cluster)
            learn(run, tokens, valid_tokens)
    except ValueError:
        if not cluster.is_chief:
            cluster.explain()  # most errors all workers meet with; then worker 0 tells it, and ends
        raise
    if cluster.is_chief:
        run_folder.tell(run.summary())


def learn(run, tokens, valid_tokens):
    """Let a Run learn, and if that ends early say what is saved."""
    try:
        with process.interruptible(run.interrupt):
            run.learn(tokens, valid_tokens)
    except KeyboardInterrupt:
        run_folder.tell('%s is stopped at once; %s' % (run.folder, run.saved_so_far()))
        raise
    except OSError as error:
        raise type(error)('%s; %s' % (error, run.saved_so_far()))


if __name__ == '__main__':
    flags.run(train)
