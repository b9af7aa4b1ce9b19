#!/usr/bin/env python3
"""Fine-tune a GPT-2 model on your own text, or train one from nothing.

    python3 src/train.py --data stories.txt --valid held-out.txt --model_name 117M --run_name stories

makes models/stories, which every script takes by that name. Stopped, even by kill -9, the same command goes on from its
last save as if nothing had been.
"""
from collections import namedtuple
import contextlib
import functools
import json
import math
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import checkpoint
import corpus
import encoder
import flags

BETAS = 0.9, 0.95  # of Adam, as Brown et al. 2020 (arXiv:2005.14165), appendix B


def train(data, run_name, *, valid=None, model_name=None, hparams=None, vocab=None, vocab_size: int = None, batch_size=2,
          accumulate=1, learning_rate=5e-5, warmup=100, decay: int = None, weight_decay=0.01, clip=1.0, dropout=0.1,
          steps=1000, save_every=100, keep=1, valid_every=100, sample_every=0, recompute=False, seed=0,
          models_dir='models'):
    """Train a model on text, into a folder that every script takes by name.

    Args:
        data: text to learn from: files, globs or folders of .txt and .jsonl, several between commas
        run_name: the new model is models/<run_name>; where it exists, training goes on from its last save
        valid: text to measure the loss on, not learnt from
        model_name: the model to start from; or, to start from nothing, hparams and one of vocab and vocab_size
        hparams: path of an hparams.json
        vocab: folder that holds encoder.json and vocab.bpe, such as models/117M
        vocab_size: learn a vocabulary of this many tokens from data
        batch_size: sequences of n_ctx tokens computed at once
        accumulate: how many such batches make one step
        learning_rate: the highest
        warmup: steps in which the learning rate rises to it
        decay: step by which it has fallen to 0 along a cosine; None is the last
        weight_decay: times the learning rate, the share of every matrix that a step takes away
        clip: a gradient of a larger norm is scaled down to this
        dropout: share of activations dropped while learning
        steps: how many in all
        save_every: steps between saves
        keep: how many saves stay, the newest
        valid_every: steps between measurements on valid
        sample_every: steps between printed samples; 0 prints none
        recompute: compute each block again for its gradient instead of remembering it: less memory, a third slower
        seed: of new weights, the order of the data, and dropout
        models_dir: folder of the models
    """
    options = SimpleNamespace(**locals())
    check(options)
    folder = checkpoint.new_model_dir(run_name, models_dir)
    source = vocabulary_source(folder, options)
    text_encoder = encoder.get_encoder(*reversed(os.path.split(source)))
    hparams = load_hparams(folder, source, options, text_encoder)
    load = functools.partial(corpus.load_tokens, text_encoder, cache_folder=os.path.join(folder, 'cache'))
    tokens, valid_tokens = load(data), load(valid) if valid else None
    with postponed_interrupt() as interrupted:
        Run(folder, options, hparams, text_encoder, source).learn(tokens, valid_tokens, interrupted)
    plot(os.path.join(folder, 'training', 'metrics.jsonl'), os.path.join(folder, 'training', 'loss.png'))


def check(options):
    """Raises ValueError for flags that contradict each other or are out of range."""
    for name in ('batch_size', 'accumulate', 'learning_rate', 'clip', 'steps', 'save_every', 'keep', 'valid_every'):
        if not getattr(options, name) > 0:
            raise ValueError('--%s is %r; it must be more than 0' % (name, getattr(options, name)))
    if not 0 <= options.dropout < 1:
        raise ValueError('--dropout is %r; it must be 0 or more, and less than 1' % options.dropout)
    nothing = [options.hparams, options.vocab, options.vocab_size]
    if options.model_name is not None and any(value is not None for value in nothing):
        raise ValueError('--model_name starts from that model: leave out --hparams, --vocab and --vocab_size')
    if options.model_name is None and (options.hparams is None or (options.vocab is None) == (options.vocab_size is None)):
        raise ValueError('give --model_name to start from a model; or, to start from nothing, --hparams and either --vocab '
                         'or --vocab_size')


def vocabulary_source(folder, options):
    """The folder that has the run's encoder.json and vocab.bpe: the run's own, its model's, or --vocab."""
    if os.path.exists(os.path.join(folder, 'checkpoint')):
        if not os.path.isdir(os.path.join(folder, 'training')):
            raise ValueError('%s is a model and not a training run; choose another --run_name' % folder)
        return folder
    if options.model_name is not None:
        return checkpoint.model_dir(options.model_name, options.models_dir)
    if options.vocab is not None:
        return os.path.abspath(options.vocab)
    if not os.path.exists(os.path.join(folder, 'vocab.bpe')):  # the second of the two to be written
        encoder.learn_vocabulary(corpus.read_documents(options.data), options.vocab_size, folder)
    return folder


def load_hparams(folder, source, options, text_encoder):
    """The HParams to train: the run's or its model's, or --hparams with the vocabulary's size."""
    from model import default_hparams
    if options.hparams is None or source == folder and os.path.exists(os.path.join(folder, 'hparams.json')):
        return checkpoint.load_hparams(*reversed(os.path.split(source)))
    with open(options.hparams, encoding='utf-8') as file:
        hparams = default_hparams().override_from_dict(json.load(file))
    hparams.n_vocab = len(text_encoder.encoder)
    hparams.check()
    return hparams


Graph = namedtuple('Graph', 'tokens learning_rate step loss norm update valid_tokens valid_losses state')
# tokens: int32 [accumulate, B, T] placeholder    learning_rate, step: scalar placeholders
# loss: nats a token, of the batch before its update    norm: the gradient's, before clipping
# valid_tokens: int32 [B, T] placeholder    valid_losses: [B, T - 1] nats, without dropout
# state: {name: variable} of the optimizer


def build(hparams, options):
    """The training Graph. Variables are the model's, under 'model', and the optimizer's."""
    import model
    from tf1 import tf
    tokens_ABT = tf.placeholder(tf.int32, [options.accumulate, options.batch_size, hparams.n_ctx])
    step = tf.placeholder(tf.int32, [])
    learning_rate = tf.placeholder(tf.float32, [])
    valid_BT = tf.placeholder(tf.int32, [None, hparams.n_ctx])
    valid_losses = model.token_losses(model.model(hparams, valid_BT)['logits'], valid_BT)
    variables = tf.trainable_variables()

    def compute(i):
        drop = model.dropout(options.dropout, seed=options.seed, step=step * options.accumulate + i)
        return loss_and_gradients(hparams, tokens_ABT[i], variables, drop, recompute=options.recompute)

    loss, gradients = mean_of(options.accumulate, compute)
    clipped, norm = tf.clip_by_global_norm(gradients, options.clip)
    optimizer = tf.train.AdamOptimizer(learning_rate, *BETAS)
    # Decoupled from the gradient: Loshchilov and Hutter 2017 (arXiv:1711.05101). Gains and biases are left alone.
    with tf.control_dependencies(clipped):
        decays = [variable.assign_sub(learning_rate * options.weight_decay * variable)
                  for variable in variables if len(variable.shape) > 1]
    with tf.control_dependencies(decays):
        update = optimizer.apply_gradients(zip(clipped, variables))
    return Graph(tokens_ABT, learning_rate, step, loss, norm, update, valid_BT, valid_losses,
                 {variable.op.name: variable for variable in optimizer.variables()})


def mean_of(n, compute):
    """The mean of compute(i) for i in 0 ... n - 1, one after the other in the memory of one. compute: i -> (loss, gradients)."""
    from tf1 import tf
    if n == 1:
        return compute(0)

    def add(i, loss, *gradients):
        more_loss, more_gradients = compute(i)
        return [i + 1, loss + more_loss] + [a + b for a, b in zip(gradients, more_gradients)]

    zeros = [tf.zeros(variable.shape) for variable in tf.trainable_variables()]
    sums = tf.while_loop(lambda i, *_: i < n, add, [0, 0.0] + zeros, parallel_iterations=1, back_prop=False)
    return sums[1] / n, [gradient / n for gradient in sums[2:]]


def loss_and_gradients(hparams, tokens_BT, variables, drop, recompute):
    """Mean loss in nats a token, and its gradients with respect to variables.

    recompute: remember only what goes into each block, and compute the block again when its gradient is due (Chen et al.
    2016, arXiv:1604.06174).
    """
    import model
    from tf1 import tf
    position_T = tf.range(hparams.n_ctx)
    mask_TS = model.causal_mask(position_T)

    def block(layer, x_BTD):
        return model.block(hparams, x_BTD, 'h%d' % layer, mask_TS=mask_TS, drop=drop)[0]

    with tf.variable_scope('model', reuse=True):
        inputs = [drop(model.embed(hparams, tokens_BT, position_T), 'embed')]  # of each block, and of what follows the last
        for layer in range(hparams.n_layer):
            inputs.append(block(layer, inputs[-1]))
        logits_BTV = model.unembed(hparams, model.layer_norm(inputs[-1], 'ln_f'))
        loss = tf.reduce_mean(model.token_losses(logits_BTV, tokens_BT))
        if not recompute:
            return loss, [tf.convert_to_tensor(gradient) for gradient in tf.gradients(loss, variables)]

        gradients = [0.0] * len(variables)

        def descend(y, x, y_gradient=None):
            """Add what y(x) owes to each variable, with x held fixed; return what it owes to x."""
            found = tf.gradients(y, variables + [x], y_gradient, stop_gradients=[x])
            for i, gradient in enumerate(found[:-1]):
                if gradient is not None:
                    gradients[i] += tf.convert_to_tensor(gradient)
            return found[-1]

        x_gradient = descend(loss, inputs[-1])
        for layer in reversed(range(hparams.n_layer)):
            with tf.control_dependencies([x_gradient]):  # otherwise it would be computed early, and remembered after all
                x_BTD = tf.identity(inputs[layer])
                x_gradient = descend(block(layer, x_BTD), x_BTD, x_gradient)
        descend(inputs[0], position_T, x_gradient)
        return loss, gradients


def learning_rate_at(step, *, peak, warmup, decay):
    """The learning rate of step 0, 1, ...: up to peak in a line, down to 0 in a cosine (GPT paper, section 4.1)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, decay - warmup))))


class Run(object):
    """A training run: its folder and its session. Every step goes through `learn`."""

    def __init__(self, folder, options, hparams, text_encoder, source):
        from tf1 import tf
        self.folder, self.options, self.hparams, self.encoder, self.source = folder, options, hparams, text_encoder, source
        os.makedirs(os.path.join(folder, 'training'), exist_ok=True)
        self.metrics = os.path.join(folder, 'training', 'metrics.jsonl')
        self.valid_loss = float('nan')  # not measured yet
        tf.set_random_seed(options.seed)
        self.graph = build(hparams, options)
        self.sample = build_sample(hparams, text_encoder) if options.sample_every else None
        self.sess = checkpoint.session()
        self.sess.run(tf.global_variables_initializer())
        self.step = self.restore()
        self.summaries = tf.summary.FileWriter(os.path.join(folder, 'training'))

    def restore(self):
        """Load the last save, or the model to start from, if any. Returns the number of steps done."""
        saved = os.path.exists(os.path.join(self.folder, 'checkpoint'))
        folder = self.folder if saved else self.source
        if not saved and self.options.model_name is None:
            return 0
        prefix = checkpoint.weights_prefix(folder)
        checkpoint.restore_variables(self.sess, checkpoint.model_variables(self.sess.graph), prefix)
        if not saved:
            return 0
        step = int(re.search(r'-(\d+)$', prefix).group(1))
        checkpoint.restore_variables(self.sess, self.graph.state, self.state_prefix(step))
        return step

    def state_prefix(self, step):
        """What the names of the files with the optimizer's state begin with."""
        return os.path.join(self.folder, 'training', 'state.ckpt-%d' % step)

    def save(self):
        """Save everything that the run needs to go on. Killed meanwhile, the save before counts."""
        keep = self.options.keep
        checkpoint.save_variables(self.sess, self.graph.state, self.state_prefix(self.step))
        checkpoint.save(self.sess, self.folder, self.hparams, self.source, step=self.step, keep=keep)
        checkpoint.remove_old(os.path.join(self.folder, 'training', 'state.ckpt'), keep)

    def learn(self, tokens, valid_tokens, interrupted):
        """Train until the last step or the interrupt, and save."""
        options = self.options
        batches = corpus.training_batches(tokens, batch_size=options.batch_size * options.accumulate, n_ctx=self.hparams.n_ctx,
                                          seed=options.seed, first=self.step)
        forget_after(self.metrics, self.step)
        saved = self.step
        with tqdm(total=options.steps, initial=self.step, unit='step', disable=None) as bar:
            while self.step < options.steps and not interrupted:
                record = self.one_step(next(batches))
                if valid_tokens is not None and self.due(options.valid_every):
                    record['valid_loss_nats'] = self.measure(valid_tokens)
                self.report(record, bar)
                if options.sample_every and self.due(options.sample_every):
                    self.print_sample()
                if self.due(options.save_every) or interrupted:
                    self.save()
                    saved = self.step
        if saved < self.step:
            self.save()

    def one_step(self, batch):
        """Learn one batch. Returns its figures, as a line of metrics.jsonl has them. Raises ValueError if they are no numbers."""
        options, graph = self.options, self.graph
        began = time.time()
        rate = learning_rate_at(self.step, peak=options.learning_rate, warmup=options.warmup,
                                decay=options.steps if options.decay is None else options.decay)
        loss, norm, _ = self.sess.run([graph.loss, graph.norm, graph.update], {
            graph.tokens: batch.reshape(options.accumulate, options.batch_size, -1),
            graph.learning_rate: rate,
            graph.step: self.step})
        if not np.isfinite(loss + norm):
            raise ValueError('step %d has a loss of %s and a gradient of norm %s: training has diverged. The last save is '
                             'untouched; go on from it with a lower --learning_rate or a lower --clip'
                             % (self.step + 1, loss, norm))
        self.step += 1
        return {'step': self.step, 'loss_nats': float(loss), 'gradient_norm': float(norm), 'learning_rate': rate,
                'tokens_per_second': round(batch.size / (time.time() - began), 1)}

    def due(self, every):
        """Whether something done every so many steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.step == self.options.steps

    def measure(self, tokens):
        """Mean loss of a text, in nats a token, over windows of n_ctx tokens that follow each other."""
        n_windows = len(tokens) // self.hparams.n_ctx
        windows = tokens[:n_windows * self.hparams.n_ctx].reshape(n_windows, self.hparams.n_ctx)
        starts = range(0, n_windows, self.options.batch_size)
        losses = [self.sess.run(self.graph.valid_losses, {self.graph.valid_tokens: windows[i:i + self.options.batch_size]})
                  for i in tqdm(starts, desc='measuring', unit='batch', leave=False, disable=None)]
        return float(np.concatenate(losses).mean())

    def print_sample(self):
        """Show a text of the model as it is now."""
        text = self.encoder.decode(self.sess.run(self.sample)[0, 1:])
        tqdm.write('%s SAMPLE AT STEP %d %s\n%s' % ('=' * 20, self.step, '=' * 20, text), file=sys.stderr)

    def report(self, record, bar):
        """Tell the progress bar, metrics.jsonl and TensorBoard. Where there is no bar, print a line after each measurement."""
        from tf1 import tf
        self.valid_loss = record.get('valid_loss_nats', self.valid_loss)
        figures = 'loss %.3f, valid loss %.3f, %.0f tokens/s' % (
            record['loss_nats'], self.valid_loss, record['tokens_per_second'])
        bar.set_postfix_str(figures, refresh=False)
        bar.update()
        if bar.disable and self.due(self.options.valid_every):
            print('step %d: %s' % (self.step, figures), file=sys.stderr, flush=True)
        with open(self.metrics, 'a', encoding='utf-8') as file:
            file.write(json.dumps(record, sort_keys=True) + '\n')
        values = [tf.Summary.Value(tag=name, simple_value=value) for name, value in sorted(record.items()) if name != 'step']
        self.summaries.add_summary(tf.Summary(value=values), self.step)


def build_sample(hparams, text_encoder):
    """One sample of the model in the graph, as long as the context: int32 [1, n_ctx]."""
    import sample
    return sample.sample_sequence(hparams=hparams, length=hparams.n_ctx - 1, start_token=text_encoder.end_of_text, batch_size=1,
                                  top_k=40, end_token=text_encoder.end_of_text)


def read_metrics(path):
    """The lines of a metrics.jsonl, as a list of dicts. A last line that was cut off is left out."""
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8') as file:
        return [json.loads(line) for line in file if line.endswith('\n')]


def forget_after(path, step):
    """Drop the lines of metrics.jsonl about steps that a killed run did not save."""
    kept = [record for record in read_metrics(path) if record['step'] <= step]
    checkpoint.replace_text(path, ''.join(json.dumps(record, sort_keys=True) + '\n' for record in kept))


def plot(metrics, image):
    """Draw the loss over the steps, if matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use('Agg')  # draws without a display
    from matplotlib import pyplot
    records = read_metrics(metrics)
    figure, axes = pyplot.subplots()
    for name, label in (('loss_nats', 'training'), ('valid_loss_nats', 'validation')):
        points = [(record['step'], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points), label=label)
    axes.set(xlabel='step', ylabel='loss, nats a token')
    axes.legend()
    figure.savefig(image + '.part', format='png')
    os.replace(image + '.part', image)


@contextlib.contextmanager
def postponed_interrupt():
    """A list that Ctrl-C adds to, instead of breaking off what is being computed; a second one breaks off."""
    interrupts = []

    def note(number, frame):
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)
        print('stopping after this step; the run is saved first', file=sys.stderr)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == '__main__':
    flags.run(train)
