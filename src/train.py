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
import interrupts

BETAS = 0.9, 0.95  # of Adam, as Brown et al. 2020 (arXiv:2005.14165), appendix B


def train(data: str, run_name: str, *, valid: str = None, model_name: str = None, hparams: str = None, vocab: str = None,
          vocab_size: int = None, batch_size=2, accumulate=1, learning_rate=5e-5, warmup=100, decay: int = None,
          weight_decay=0.01, clip=1.0, dropout=0.1, steps=1000, save_every=100, keep=1, valid_every=100, sample_every=0,
          recompute=False, seed=0, models_dir='models'):
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
    if last_save(folder) is None:
        begin(folder, options)
    text_encoder = encoder.get_encoder(*name_and_dir(folder))
    hparams = checkpoint.load_hparams(*name_and_dir(folder))
    tokens = load_tokens(folder, text_encoder, hparams.n_ctx, data)
    valid_tokens = None if valid is None else load_tokens(folder, text_encoder, hparams.n_ctx, valid)

    from tf1 import tf
    with tf.Graph().as_default(), checkpoint.session() as sess, postponed_interrupt() as interrupts:
        Run(sess, folder, options, hparams, text_encoder).learn(tokens, valid_tokens, interrupts)
    plot(os.path.join(folder, 'training', 'metrics.jsonl'), os.path.join(folder, 'training', 'loss.png'))


def check(options):
    """Raises ValueError for flags that contradict each other or are out of range, FileNotFoundError for text that is not
    there."""
    for name in ('batch_size', 'accumulate', 'learning_rate', 'clip', 'steps', 'save_every', 'keep', 'valid_every'):
        if not getattr(options, name) > 0:
            raise ValueError('--%s is %r; it must be more than 0' % (name, getattr(options, name)))
    for name in ('warmup', 'weight_decay', 'sample_every'):
        if not getattr(options, name) >= 0:
            raise ValueError('--%s is %r; it must be 0 or more' % (name, getattr(options, name)))
    if not 0 <= options.dropout < 1:
        raise ValueError('--dropout is %r; it must be 0 or more, and less than 1' % options.dropout)
    if not 0 <= options.seed < 2 ** 32:
        raise ValueError('--seed is %r; it must be 0 to 4294967295' % options.seed)
    nothing = [options.hparams, options.vocab, options.vocab_size]
    if options.model_name is not None and any(value is not None for value in nothing):
        raise ValueError('--model_name starts from that model: leave out --hparams, --vocab and --vocab_size')
    if options.model_name is None and (options.hparams is None or (options.vocab is None) == (options.vocab_size is None)):
        raise ValueError('give --model_name to start from a model; or, to start from nothing, --hparams and either --vocab '
                         'or --vocab_size')
    corpus.find_files(options.data)
    if options.valid is not None:
        corpus.find_files(options.valid)


def last_save(folder):
    """The step of the last save in a run's folder, or None if there is none.

    Raises ValueError for a folder that holds something else than a run.
    """
    if not os.path.isdir(folder) or not os.listdir(folder):
        return None
    is_run = os.path.isdir(os.path.join(folder, 'training'))
    if is_run and not os.path.exists(os.path.join(folder, 'checkpoint')):
        return None
    numbered = is_run and re.search(r'-(\d+)$', checkpoint.weights_prefix(folder))
    if not numbered:
        raise ValueError('%s is there and is not a training run; choose another --run_name' % folder)
    return int(numbered.group(1))


def begin(folder, options):
    """Give a new run's folder its encoder.json, vocab.bpe and hparams.json: its model's, or as the flags say.

    What a run of that name that was never saved has left is replaced.
    """
    if options.model_name is not None:
        source = checkpoint.model_dir(options.model_name, options.models_dir)
        hparams = checkpoint.load_hparams(*name_and_dir(source))
    elif options.vocab is not None:
        source = encoder.model_folder(*name_and_dir(options.vocab), files=checkpoint.VOCABULARY_FILES)
        hparams = read_hparams(options.hparams, n_vocab=len(encoder.get_encoder(*name_and_dir(source)).encoder))
    else:
        source = None
        hparams = read_hparams(options.hparams, n_vocab=options.vocab_size)
    os.makedirs(os.path.join(folder, 'training'), exist_ok=True)
    if source is None:
        pieces = filter(None, corpus.read_pieces(options.data))  # a document may be larger than memory
        encoder.learn_vocabulary(pieces, options.vocab_size, folder)
    else:
        for name in checkpoint.VOCABULARY_FILES:
            with open(os.path.join(source, name), encoding='utf-8', newline='') as file:
                checkpoint.replace_text(os.path.join(folder, name), file.read())
    checkpoint.replace_text(os.path.join(folder, 'hparams.json'), json.dumps(hparams.values(), sort_keys=True) + '\n')


def name_and_dir(folder):
    """A model's folder as the two arguments model_name and models_dir."""
    parent, name = os.path.split(os.path.abspath(str(folder)))
    return name, parent


def read_hparams(path, n_vocab):
    """The HParams in a JSON file, with another n_vocab. What the file lacks is as in 117M.

    Raises ValueError for a file that describes no network.
    """
    from model import default_hparams
    try:
        with open(path, encoding='utf-8') as file:
            hparams = default_hparams().override_from_dict(json.load(file))
        hparams.n_vocab = n_vocab
        hparams.check()
    except (ValueError, TypeError, AttributeError) as error:  # the last two: of JSON that is no object
        raise ValueError('%s does not describe a model: %s' % (path, error))
    return hparams


def load_tokens(folder, text_encoder, n_ctx, paths):
    """The token ids of the files that paths name. Raises ValueError for fewer than n_ctx."""
    tokens = corpus.load_tokens(text_encoder, paths, os.path.join(folder, 'cache'))
    if len(tokens) < n_ctx:
        raise ValueError('%s has %d tokens, and the model learns and is measured in windows of %d; give more text'
                         % (paths, len(tokens), n_ctx))
    return tokens


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
    clipped, norm = clip_by_norm(gradients, options.clip)
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
    """The mean loss and gradients of compute(0) ... compute(n - 1), one after the other in the memory of one."""
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
    """Mean loss in nats a token, and its gradients with respect to variables, which are those of model.model.

    drop: as model.dropout returns it.  recompute: see recomputed_gradients.
    """
    import model
    from tf1 import tf
    context = model.context_of(hparams, tokens_BT)

    def block(layer, x_RD):
        return model.block(hparams, x_RD, 'h%d' % layer, context, drop=drop)[0]

    with tf.variable_scope('model', reuse=True):
        hidden = [drop(model.embed(hparams, tokens_BT, context), 'embed')]  # [R, D] before and after each block
        for layer in range(hparams.n_layer):
            hidden.append(block(layer, hidden[-1]))
        logits_RV = model.unembed(hparams, model.layer_norm(hidden[-1], 'ln_f'))
        logits_BTV = tf.reshape(logits_RV, model.sizes(tokens_BT) + [hparams.n_vocab])
        loss = tf.reduce_mean(model.token_losses(logits_BTV, tokens_BT))
        if recompute:
            return loss, recomputed_gradients(loss, hidden, block, variables)
    return loss, [tf.convert_to_tensor(gradient) for gradient in tf.gradients(loss, variables)]


def recomputed_gradients(loss, hidden, block, variables):
    """As tf.gradients(loss, variables), but of what is inside a block nothing is kept for it: the block is computed again.

    hidden: the inputs of the blocks, and what the loss is computed from.  block: (layer, its input) -> its output.
    Source: Chen et al. 2016 (arXiv:1604.06174).
    """
    from tf1 import tf
    parts = [[] for _ in variables]  # of each variable's gradient

    def descend(y, y_gradient, x):
        """Note what the way from x to y owes to the variables. Returns what it owes to x."""
        found = tf.gradients(y, variables + x, y_gradient, stop_gradients=x)
        for part, gradient in zip(parts, found):
            if gradient is not None:
                part.append(tf.convert_to_tensor(gradient))
        return found[len(variables):]

    x_gradient = descend(loss, None, hidden[-1:])
    for layer in reversed(range(len(hidden) - 1)):
        with tf.control_dependencies(x_gradient):  # or the block would be computed early, and kept after all
            x_RD = tf.identity(hidden[layer])
            x_gradient = descend(block(layer, x_RD), x_gradient, [x_RD])
    descend(hidden[0], x_gradient, [])
    return [tf.add_n(part) for part in parts]


def clip_by_norm(gradients, most):
    """Gradients, scaled down together so that their common norm is at most that, and the norm that they had.

    Source: Pascanu et al. 2013 (arXiv:1211.5063). TensorFlow's own function is an error in 1.12 if the norm is no number.
    """
    from tf1 import tf
    norm = tf.global_norm(gradients)
    scale = most / tf.maximum(norm, most)
    return [scale * gradient for gradient in gradients], norm


def learning_rate_at(step, *, peak, warmup, decay):
    """The learning rate of step 0, 1, ...: up to peak in a line, down to 0 in a cosine (GPT paper, section 4.1)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, decay - warmup))))


class Run(object):
    """A training run: a session of the graph, and the folder that it is saved in and goes on from."""

    def __init__(self, sess, folder, options, hparams, text_encoder):
        from tf1 import tf
        self.sess, self.folder, self.options, self.hparams, self.encoder = sess, folder, options, hparams, text_encoder
        self.metrics = os.path.join(folder, 'training', 'metrics.jsonl')
        self.valid_loss = None  # as last measured
        tf.set_random_seed(options.seed)
        self.graph = build(hparams, options)
        self.sample = build_sample(hparams, text_encoder) if options.sample_every else None
        sess.run(tf.global_variables_initializer())
        self.step = self.restore()
        forget_after(folder, self.step)
        # A file is named after the second: what goes on within the same one would overwrite it, but for the step.
        self.summaries = tf.summary.FileWriter(os.path.join(folder, 'training'), filename_suffix='.%d' % self.step)
        # TensorBoard then forgets, as well, what the files of a killed run tell of later steps.
        self.summaries.add_session_log(tf.SessionLog(status=tf.SessionLog.START), self.step + 1)

    def restore(self):
        """Load the last save, or the model to start from, if any. Returns the number of steps done."""
        step = last_save(self.folder)
        if step is None and self.options.model_name is None:
            return 0
        folder = checkpoint.model_dir(self.options.model_name, self.options.models_dir) if step is None else self.folder
        variables = checkpoint.model_variables(self.sess.graph)
        checkpoint.restore_variables(self.sess, variables, checkpoint.weights_prefix(folder))
        if step is None:
            return 0
        checkpoint.restore_variables(self.sess, self.graph.state, self.state_prefix(step))
        return step

    def state_prefix(self, step):
        """What the names of the files with the optimizer's state begin with."""
        return os.path.join(self.folder, 'training', 'state.ckpt-%d' % step)

    def save(self, batch):
        """Save everything that the run needs to go on. Killed meanwhile, the save before counts.

        batch: the last that was learnt, int32 [any, n_ctx]. Raises ValueError instead if its loss is no number now.
        """
        keep = self.options.keep
        self.measure(batch[:self.options.batch_size].ravel())  # the loss of the step was that of the weights before it
        checkpoint.save_variables(self.sess, self.graph.state, self.state_prefix(self.step))
        checkpoint.save(self.sess, self.folder, self.hparams, self.folder, step=self.step, keep=keep)
        checkpoint.remove_old(os.path.join(self.folder, 'training', 'state.ckpt'), keep)
        self.summaries.flush()

    def learn(self, tokens, valid_tokens, interrupts):
        """Train until the last step, or until something is in the list interrupts, and save.

        tokens, valid_tokens: integer array [N], of n_ctx tokens or more; valid_tokens may be None.
        """
        options = self.options
        n_sequences = options.accumulate * options.batch_size
        batches = corpus.training_batches(tokens, batch_size=n_sequences, n_ctx=self.hparams.n_ctx, seed=options.seed,
                                          first=self.step)
        saved = self.step
        with tqdm(total=options.steps, initial=self.step, unit='step', disable=None) as bar:
            while self.step < options.steps and not interrupts:
                batch = next(batches)
                record = self.one_step(batch)
                if valid_tokens is not None and self.due(options.valid_every):
                    record['valid_loss_nats'] = self.measure(valid_tokens)
                self.report(record, bar)
                if options.sample_every and self.due(options.sample_every):
                    self.print_sample()
                if self.due(options.save_every):
                    self.save(batch)
                    saved = self.step
        if saved < self.step:
            self.save(batch)

    def one_step(self, batch):
        """Learn one batch, int32 [accumulate * batch_size, n_ctx].

        Returns its figures, as a line of metrics.jsonl has them. Raises ValueError if they are no numbers.
        """
        options, graph = self.options, self.graph
        began = time.time()
        rate = learning_rate_at(self.step, peak=options.learning_rate, warmup=options.warmup,
                                decay=options.steps if options.decay is None else options.decay)
        loss, norm, _ = self.compute([graph.loss, graph.norm, graph.update], {
            graph.tokens: batch.reshape(options.accumulate, options.batch_size, -1),
            graph.learning_rate: rate,
            graph.step: self.step})
        self.step += 1
        self.check_finite('a loss of %s and a gradient of norm %s', loss, norm)
        return {'step': self.step, 'loss_nats': float(loss), 'gradient_norm': float(norm), 'learning_rate': rate,
                'tokens_per_second': round(batch.size / (time.time() - began), 1)}

    def compute(self, tensors, feeds):
        """What the session gives for tensors. Raises ValueError if memory is short."""
        from tf1 import tf
        try:
            return interrupts.wait_for(self.sess.run, tensors, feeds)
        except tf.errors.ResourceExhaustedError:
            raise ValueError('out of memory; give a lower --batch_size (with a higher --accumulate) or --recompute')

    def check_finite(self, message, *figures):
        """Raises ValueError with the message, which takes the figures, if one of them is no number."""
        if not np.isfinite(figures).all():
            raise ValueError('step %d has %s: training has diverged. The last save is untouched; go on from it with a lower '
                             '--learning_rate or --clip' % (self.step, message % figures))

    def due(self, every):
        """Whether something done every so many steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.step == self.options.steps

    def measure(self, tokens):
        """Mean loss of a text, in nats a token, over the whole windows of n_ctx tokens that it can be cut into.

        tokens: integer array [N], N >= n_ctx. Nothing predicts the first token of a window.
        """
        n_ctx, batch_size = self.hparams.n_ctx, self.options.batch_size
        windows = tokens[:len(tokens) // n_ctx * n_ctx].reshape(-1, n_ctx)
        starts = tqdm(range(0, len(windows), batch_size), desc='measuring', unit='batch', leave=False, disable=None)
        losses = [self.compute(self.graph.valid_losses, {self.graph.valid_tokens: windows[start:start + batch_size]})
                  for start in starts]
        mean = float(np.concatenate(losses).mean())
        self.check_finite('a measured loss of %s', mean)
        return mean

    def print_sample(self):
        """Show a text of the model as it is now."""
        text = self.encoder.decode(self.compute(self.sample, {})[0, 1:])
        tqdm.write('%s SAMPLE AT STEP %d %s\n%s' % ('=' * 20, self.step, '=' * 20, text), file=sys.stderr)

    def report(self, record, bar):
        """Tell the progress bar, metrics.jsonl and TensorBoard. Without a terminal for a bar, print a line now and then."""
        from tf1 import tf
        self.valid_loss = record.get('valid_loss_nats', self.valid_loss)
        figures = ['loss %.3f' % record['loss_nats'], '%.0f tokens/s' % record['tokens_per_second']]
        if self.valid_loss is not None:
            figures.insert(1, 'valid loss %.3f' % self.valid_loss)
        bar.set_postfix_str(', '.join(figures), refresh=False)
        bar.update()
        if bar.disable and self.due(self.options.valid_every):
            print('step %d: %s' % (self.step, ', '.join(figures)), file=sys.stderr, flush=True)
        with open(self.metrics, 'a', encoding='utf-8') as file:
            file.write(json_line(record))
        values = [tf.Summary.Value(tag=name, simple_value=value) for name, value in sorted(record.items()) if name != 'step']
        self.summaries.add_summary(tf.Summary(value=values), self.step)


def build_sample(hparams, text_encoder):
    """One sample of the model in the graph, as long as the context: int32 [1, n_ctx]."""
    import sample
    return sample.sample_sequence(hparams=hparams, length=hparams.n_ctx - 1, start_token=text_encoder.end_of_text,
                                  batch_size=1, top_k=40, end_token=text_encoder.end_of_text)


def json_line(record):
    """A record as a line of metrics.jsonl."""
    return json.dumps(record, sort_keys=True) + '\n'


def read_metrics(path):
    """The lines of a metrics.jsonl, as a list of dicts. A last line that was cut off is left out."""
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8') as file:
        return [json.loads(line) for line in file if line.endswith('\n')]


def forget_after(folder, step):
    """Remove from a run's folder what a killed run left about later steps than its last save."""
    metrics = os.path.join(folder, 'training', 'metrics.jsonl')
    kept = [record for record in read_metrics(metrics) if record['step'] <= step]
    checkpoint.replace_text(metrics, ''.join(map(json_line, kept)))
    for place in (folder, os.path.join(folder, 'training')):
        for name in os.listdir(place):
            numbered = re.match(r'(?:model|state)\.ckpt-(\d+)\.', name)
            if numbered and int(numbered.group(1)) > step:
                os.remove(os.path.join(place, name))


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
        os.write(2, b'\nstopping after this step; the run is saved first\n')  # print must not interrupt a print

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == '__main__':
    flags.run(train)
