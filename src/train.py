#!/usr/bin/env python3
"""Fine-tune a GPT-2 model on your own text, or train one from nothing.

    python3 src/train.py --data stories.txt --valid held-out.txt --model_name 117M --run_name stories

makes models/stories, which every script takes by that name. Stopped, even by kill -9, the same command goes on from its
last save as if nothing had been.
"""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

from collections import namedtuple
import contextlib
import json
import math
import os
import re
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import checkpoint
import corpus
import encoder
import files
import process

STARTS = 'model_name', 'hparams', 'vocab', 'vocab_size'  # what a run starts from is what it has: these flags cannot change
BETAS = 0.9, 0.95  # of Adam, as Brown et al. 2020 (arXiv:2005.14165), appendix B


def train(data: str, run_name: str, *, valid: str = None, model_name: str = None, hparams: str = None, vocab: str = None,
          vocab_size: int = None, batch_size=2, accumulate=1, learning_rate=5e-5, warmup=100, decay: int = None,
          weight_decay=0.01, clip=1.0, dropout=0.1, steps=1000, save_every=100, keep=1, valid_every=100, sample_every=0,
          recompute=False, seed=0, models_dir='models'):
    """Train a model on text, into a folder that every script takes by name.

    For example: train.py --data stories.txt --valid held-out.txt --model_name 117M --run_name stories

    Args:
        data: text to learn from: files, globs or folders of .txt and .jsonl, several between commas
        run_name: the new model is models/<run_name>; where it exists, training goes on from its last save
        valid: text to measure the loss on, not learnt from; the model that did best on it is kept as <run_name>/best
        model_name: the model to start from; or, to start from nothing, hparams and one of vocab and vocab_size
        hparams: path of an hparams.json
        vocab: folder that holds encoder.json and vocab.bpe, such as models/117M
        vocab_size: learn a vocabulary of this many tokens from data
        batch_size: sequences of n_ctx tokens computed at once
        accumulate: how many such batches make one step
        learning_rate: how far a step goes: a low one learns slowly, a high one unlearns; README.md says what suits which model
        warmup: steps in which the learning rate rises to that
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
    is_new = last_save(folder) is None and not os.path.isdir(folder)
    with claimed(folder):
        try:
            start = prepare(folder, options)
        except Exception:
            if is_new:
                shutil.rmtree(folder)
            raise
        if start:
            fit(folder, options, *start)


def fit(folder, options, text_encoder, hparams, tokens, valid_tokens):
    """Train in a run's folder until the last step, Ctrl-C or SIGTERM."""
    from tf1 import tf
    with tf.Graph().as_default(), checkpoint.session() as sess:
        run = Run(sess, folder, options, hparams, text_encoder)
        try:
            with process.interruptible(run.interrupt):
                run.learn(tokens, valid_tokens)
        except KeyboardInterrupt:
            tell('%s is stopped at once; %s' % (folder, run.what_counts()))
            raise
        except OSError as error:
            raise type(error)('%s; %s' % (error, run.what_counts()))
        tell(run.closing_words())


def tell(text):
    """Show a line on stderr, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


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


# A run's folder

def inside(folder, name):
    """The path of one of the files that make a model's folder a run's."""
    return os.path.join(folder, 'training', name)


def last_save(folder):
    """The step of the last save in a run's folder, or None if there is none.

    Raises ValueError for a folder that holds something else than a run.
    """
    if os.path.isfile(folder):
        raise ValueError('%s is a file; choose another --run_name' % folder)
    if not os.path.isdir(folder) or not os.listdir(folder):
        if os.path.basename(folder) in encoder.RELEASED_MODELS:
            raise ValueError('%s is where the released model of that name belongs; choose another --run_name' % folder)
        return None
    is_run = os.path.isdir(os.path.join(folder, 'training'))
    if is_run and not os.path.exists(os.path.join(folder, 'checkpoint')):
        return None
    numbered = is_run and re.search(r'-(\d+)$', checkpoint.weights_prefix(folder))
    if not numbered:
        raise ValueError('%s is there and is not a training run; choose another --run_name' % folder)
    return int(numbered.group(1))


@contextlib.contextmanager
def claimed(folder):
    """Make a run's folder, and keep other processes from training in it during a block."""
    def refuse(holder):
        raise ValueError('%s is being trained by %s; wait until that ends, or choose another --run_name' % (folder, holder))

    os.makedirs(inside(folder, ''), exist_ok=True)
    with files.folder_lock(inside(folder, ''), refuse):
        yield


def prepare(folder, options):
    """Make a run's folder ready for training as the flags say, or see that they suit the run that it holds.

    Returns (Encoder, HParams, tokens to learn from, tokens to measure or None); or None for a run that has all its steps.
    """
    step = last_save(folder)
    before = {}
    if step is None:
        begin(folder, options)
    else:
        before = read_json(inside(folder, 'options.json'))
        check_same(folder, options, before)
        if step >= options.steps:
            tell('%s has its %d steps; raise --steps to go on' % (folder, step))
            return None
    text_encoder = encoder.get_encoder(*name_and_dir(folder))
    hparams = checkpoint.load_hparams(*name_and_dir(folder))
    valid_tokens = None if options.valid is None else load_tokens(folder, text_encoder, hparams.n_ctx, options.valid)
    tokens = load_tokens(folder, text_encoder, hparams.n_ctx, options.data)
    n_tokens = options.accumulate * options.batch_size * hparams.n_ctx
    tell('%s: %s; a step is %d tokens, and the text has %d' % (
        folder, 'going on from step %d of %d' % (step, options.steps) if step is not None else
        '%d steps, starting from %s' % (options.steps, options.model_name or 'nothing'), n_tokens, len(tokens)))
    now = {name: value for name, value in vars(options).items() if name not in ('run_name', 'models_dir')}
    now.update(data_tokens=file_of(tokens), valid_tokens=file_of(valid_tokens))
    tell_changes(before, now)
    files.write_text(inside(folder, 'options.json'), json_line(now))
    return text_encoder, hparams, tokens, valid_tokens


def check_same(folder, options, before):
    """Raises ValueError if the flags start from something else than the run in folder did.

    before: the flags of its last start, or {} for a run of a time when they were not kept.
    """
    def refuse(had, given):
        raise ValueError('%s has %s, and %s was given; give what it has, or another --run_name for a new run'
                         % (folder, had, given))

    def shown(name, value):
        return 'no --' + name if value is None else '--%s %s' % (name, value)

    for name in ('model_name', 'vocab_size'):
        value = getattr(options, name)
        if name in before and before[name] != value:
            refuse(shown(name, before[name]), shown(name, value))
    if options.model_name is None:
        hparams, source = origin(options)
        for name, value in sorted(checkpoint.load_hparams(*name_and_dir(folder)).values().items()):
            if hparams.values()[name] != value:
                refuse('%s %d' % (name, value), '%d' % hparams.values()[name])
        for name in checkpoint.VOCABULARY_FILES if source else ():
            if read_text(os.path.join(folder, name)) != read_text(os.path.join(source, name)):
                refuse('another ' + name, '--vocab ' + options.vocab)


def tell_changes(before, now):
    """Say which flags are not what they were at the last start, and which texts. before, now: as prepare() keeps them."""
    changed = [name for name in sorted(now) if before.get(name, now[name]) != now[name] and name not in STARTS]
    words = ['--%s %s -> %s' % (name, before[name], now[name]) if not name.endswith('_tokens') else
             'the text of --' + name.split('_')[0] for name in changed]
    if words:
        tell('changed since the last start: ' + ', '.join(words))
    if {'batch_size', 'accumulate', 'seed', 'data_tokens'} & set(changed):
        tell('the text is in another order from here on: some of it may be learnt twice in this round, and some left out')


def file_of(tokens):
    """A name that changes with what corpus.load_tokens has read: that of the file it keeps the tokens in. None for None."""
    return None if tokens is None else os.path.basename(tokens.filename)


def begin(folder, options):
    """Give a new run's folder its encoder.json, vocab.bpe and hparams.json: its model's, or as the flags say.

    What a run of that name that was never saved has left is replaced.
    """
    hparams, source = origin(options)
    if source is None:
        pieces = filter(None, corpus.read_pieces(options.data))  # a document may be larger than memory
        encoder.learn_vocabulary(pieces, options.vocab_size, folder)
    else:
        for name in checkpoint.VOCABULARY_FILES:
            files.write_text(os.path.join(folder, name), read_text(os.path.join(source, name)))
    files.write_text(os.path.join(folder, 'hparams.json'), json_line(hparams.values()))
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(os.path.join(folder, 'best'))
    with contextlib.suppress(FileNotFoundError):
        os.remove(inside(folder, 'best.json'))


def origin(options):
    """What the flags start from: its HParams, and the folder of its vocabulary, or None if that is to be learnt."""
    if options.model_name is not None:
        source = checkpoint.model_dir(options.model_name, options.models_dir)
        encoder.get_encoder(*name_and_dir(source))  # raises for what is damaged there, before it is copied
        return checkpoint.load_hparams(*name_and_dir(source)), source
    if options.vocab_size is not None:
        return read_hparams(options.hparams, n_vocab=options.vocab_size), None
    source = encoder.model_folder(*name_and_dir(options.vocab), files=checkpoint.VOCABULARY_FILES)
    return read_hparams(options.hparams, n_vocab=len(encoder.get_encoder(*name_and_dir(source)).encoder)), source


def read_text(path):
    """What a UTF-8 file holds, to the byte."""
    with open(path, encoding='utf-8', newline='') as file:
        return file.read()


def read_json(path):
    """The dict that a JSON file holds, {} if there is no such file. Raises ValueError for anything else."""
    if not os.path.exists(path):
        return {}
    try:
        return dict(json.loads(read_text(path)))
    except (ValueError, TypeError) as error:
        raise ValueError('%s is damaged (%s); delete it to go on without what it says' % (path, error))


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
    calls = []  # of each block: it, its input and its output

    def run(block, x_RD):
        y_RD, present = block(x_RD)
        calls.append((block, x_RD, y_RD))
        return y_RD, present

    with tf.variable_scope('model', reuse=True):
        logits_RV = model.unembed(hparams, model.transform(hparams, tokens_BT, drop=drop, run=run)[0])
        logits_BTV = tf.reshape(logits_RV, model.sizes(tokens_BT) + [hparams.n_vocab])
        loss = tf.reduce_mean(model.token_losses(logits_BTV, tokens_BT))
        if recompute:
            return loss, recomputed_gradients(loss, calls, variables)
    return loss, [tf.convert_to_tensor(gradient) for gradient in tf.gradients(loss, variables)]


def recomputed_gradients(loss, calls, variables):
    """As tf.gradients(loss, variables), but of what is inside a block nothing is kept for it: the block is computed again.

    calls: of each block a triple: a function to (output, anything), the input and the output that it had.
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

    x_gradient = descend(loss, None, [calls[-1][2]])
    for block, x_RD, _ in reversed(calls):
        with tf.control_dependencies(x_gradient):  # or the block would be computed early, and kept after all
            x_RD = tf.identity(x_RD)
            x_gradient = descend(block(x_RD)[0], x_gradient, [x_RD])
    descend(calls[0][1], x_gradient, [])
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


SILENT_SECONDS = 60  # without a terminal, a line at least this often


class Run(object):
    """A training run: a session of the graph, and the folder that it is saved in and goes on from."""

    def __init__(self, sess, folder, options, hparams, text_encoder):
        from tf1 import tf
        self.sess, self.folder, self.options, self.hparams, self.encoder = sess, folder, options, hparams, text_encoder
        self.stopping = False  # whether Ctrl-C has come
        self.valid_loss = None  # as last measured
        self.best = read_json(inside(folder, 'best.json'))  # the lowest of them: step, valid_loss_nats and text
        self.told = time.time()  # when a line was last printed
        self.drawn, self.drawing_seconds = 0, 0  # when the losses were last drawn, and how long that took
        tf.set_random_seed(options.seed)
        self.graph = build(hparams, options)
        self.sample = build_sample(hparams, text_encoder) if options.sample_every else None
        self.compute(tf.global_variables_initializer(), {})
        self.saved = self.restore()
        self.step = self.saved or 0
        first_step = 0 if self.saved is None else self.saved + 1  # that is still to be told of
        forget_from(folder, first_step)
        losses = (record['loss_nats'] for record in read_metrics(self.metrics) if 'loss_nats' in record)
        self.first_loss = next(losses, None)  # of the run's first step
        self.is_far_off = False  # whether the last step's loss was
        # A file is named after the second: what goes on within the same one would overwrite it, but for the step.
        self.summaries = tf.summary.FileWriter(inside(folder, ''), filename_suffix='.%d' % self.step)
        # TensorBoard then forgets, as well, what the files of a killed run tell of later steps.
        self.summaries.add_session_log(tf.SessionLog(status=tf.SessionLog.START), first_step)

    @property
    def metrics(self):
        return inside(self.folder, 'metrics.jsonl')

    def restore(self):
        """Load the last save, or the model to start from, if any. Returns the step of the save, or None."""
        step = last_save(self.folder)
        if step is None and self.options.model_name is None:
            return None
        folder = checkpoint.model_dir(self.options.model_name, self.options.models_dir) if step is None else self.folder
        variables = checkpoint.model_variables(self.sess.graph)
        checkpoint.restore_variables(self.sess, variables, checkpoint.weights_prefix(folder))
        if step is not None:
            checkpoint.restore_variables(self.sess, self.graph.state, self.state_prefix(step))
        return step

    def state_prefix(self, step):
        """What the names of the files with the optimizer's state begin with."""
        return inside(self.folder, 'state.ckpt-%d' % step)

    def save(self, batch):
        """Save everything that the run needs to go on. Killed meanwhile, the save before counts.

        batch: the last that was learnt, int32 [any, n_ctx]. Raises ValueError instead if training has diverged by its loss.
        """
        # The loss of the step was that of the weights before it.
        loss = self.mean_loss(batch[:self.options.batch_size])
        if self.far_off(loss):
            self.has_diverged('a loss of %.4g nats, far above the %.2f of a guess' % (loss, math.log(self.hparams.n_vocab)))
        keep = self.options.keep
        try:
            checkpoint.save_variables(self.sess, self.graph.state, self.state_prefix(self.step))
            checkpoint.save(self.sess, self.folder, self.hparams, self.folder, step=self.step, keep=keep)
        except OSError:
            remove_saves_from(self.folder, (last_save(self.folder) or 0) + 1)  # a full disk needs the room
            raise
        checkpoint.remove_old(inside(self.folder, 'state.ckpt'), self.step, keep)
        self.saved = self.step
        self.summaries.flush()
        self.draw()

    def draw(self):
        """Draw the losses, unless that has just been done: no more than a hundredth of the time is for it."""
        began = time.time()
        if self.stopping or self.step == self.options.steps or began - self.drawn > 100 * self.drawing_seconds:
            plot(self.metrics, inside(self.folder, 'loss.png'))
            self.drawn = time.time()
            self.drawing_seconds = self.drawn - began

    def interrupt(self):
        """What Ctrl-C and SIGTERM do: the first one lets learn() save and return, a second one breaks off."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        os.write(2, b'\nstopping: what is learnt is saved first; once more stops at once\n')  # print must not interrupt a print

    def learn(self, tokens, valid_tokens):
        """Train until the last step, or until interrupt() is called, and save.

        tokens, valid_tokens: integer array [N], of n_ctx tokens or more; valid_tokens may be None.
        """
        options = self.options
        n_sequences = options.accumulate * options.batch_size
        batches = corpus.training_batches(tokens, batch_size=n_sequences, n_ctx=self.hparams.n_ctx, seed=options.seed,
                                          first=self.step)
        self.began = time.time(), self.step
        with tqdm(total=options.steps, initial=self.step, unit='step', disable=None) as bar:
            if self.saved is None or self.best.get('text') != file_of(valid_tokens):
                record = self.validate(valid_tokens)  # what the later ones are to be compared with
                if record:
                    self.report(dict(record, step=self.step), bar)
            while self.step < options.steps and not self.stopping:
                batch = next(batches)
                record = self.one_step(batch)
                if self.due(options.valid_every):
                    record.update(self.validate(valid_tokens))
                self.report(record, bar)
                if options.sample_every and self.due(options.sample_every):
                    self.print_sample()
                if self.due(options.save_every):
                    self.save(batch)
        if self.step != (self.saved or 0):
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
        if not np.isfinite([loss, norm]).all():
            self.has_diverged('a loss of %s and a gradient of norm %s' % (loss, norm))
        if self.first_loss is None:
            self.first_loss = float(loss)
        if self.far_off(loss) and not self.is_far_off:
            tell('step %d: a loss of %.4g is far above the %.2f of a guess; if it stays there, lower --learning_rate'
                 % (self.step, loss, math.log(self.hparams.n_vocab)))
        self.is_far_off = self.far_off(loss)
        return {'step': self.step, 'loss_nats': float(loss), 'gradient_norm': float(norm), 'learning_rate': rate,
                'tokens_per_second': round(batch.size / (time.time() - began), 1)}

    def compute(self, tensors, feeds):
        """What the session gives for tensors. Raises ValueError if memory is short."""
        with checkpoint.out_of_memory('give a lower --batch_size (with a higher --accumulate) or --recompute'):
            return process.wait_for(self.sess.run, tensors, feeds)

    def far_off(self, loss):
        """Whether a loss is more than 3 nats above that of a guess, where each token is as likely, and above that at the start.

        A text may be so unlike what a model knows that it starts above a guess, and a batch may be 1 nat off.
        """
        return loss > max(math.log(self.hparams.n_vocab), self.first_loss) + 3

    def has_diverged(self, figures):
        """Raises ValueError: these are the figures of weights that nobody wants saved."""
        raise ValueError('step %d has %s: training has diverged. %s a lower --learning_rate or --clip' % (
            self.step, figures, 'Nothing is saved yet; start again with' if self.saved is None else
            'The save of step %d is untouched; go on from it with' % self.saved))

    def what_counts(self):
        """Where the same command would go on, in words."""
        saved = last_save(self.folder)
        return 'nothing is saved yet' if saved is None else 'the save of step %d counts, and nothing since' % saved

    def closing_words(self):
        """Where the model is, how to sample from it, and which one did best."""
        name, steps, best = self.options.run_name, self.options.steps, self.best
        if self.saved is None:
            return '%s: stopped before the first step; nothing is saved' % self.folder
        models_dir = '' if self.options.models_dir == 'models' else ' --models_dir ' + self.options.models_dir
        lines = ['%s: step %d of %d is saved%s' % (
            self.folder, self.saved, steps, '; the same command goes on' if self.saved < steps else ''),
            'python3 src/generate_unconditional_samples.py --model_name %s%s samples from it' % (name, models_dir)]
        if self.options.valid is not None and best and best['step'] != self.saved:
            lines.append('the valid loss was lowest, %.3f, %s' % (
                best['valid_loss_nats'], 'at step %d: that model is --model_name %s/best' % (best['step'], name) if best['step']
                else 'before the first step; try a lower --learning_rate, --dropout 0, or other text'))
        return '\n'.join(lines)

    def due(self, every):
        """Whether something done every so many steps, and at the end, is to be done now."""
        return self.step % every == 0 or self.step == self.options.steps

    def validate(self, tokens):
        """Measure a text, and keep the model in the folder best if it did better than all before on this text.

        tokens: of corpus.load_tokens, or None. Returns what a line of metrics.jsonl says of it: nothing without a text, or
        if Ctrl-C came first.
        """
        self.valid_loss = None if tokens is None else self.measure(tokens)
        if self.valid_loss is None:
            return {}
        found = {'step': self.step, 'valid_loss_nats': self.valid_loss, 'text': file_of(tokens)}
        if self.best.get('text') != found['text'] or self.valid_loss < self.best['valid_loss_nats']:
            if self.step:
                checkpoint.save(self.sess, os.path.join(self.folder, 'best'), self.hparams, self.folder, step=self.step)
            files.write_text(inside(self.folder, 'best.json'), json_line(found))
            self.best = found
        return {'valid_loss_nats': self.valid_loss}

    def measure(self, tokens):
        """Mean loss of a text, in nats a token, over the whole windows of n_ctx tokens that it can be cut into.

        tokens: integer array [N], N >= n_ctx. Nothing predicts the first token of a window.
        Returns None if Ctrl-C came first.
        """
        n_ctx, batch_size = self.hparams.n_ctx, self.options.batch_size
        windows = tokens[:len(tokens) // n_ctx * n_ctx].reshape(-1, n_ctx)
        total = 0
        for start in tqdm(range(0, len(windows), batch_size), desc='measuring', unit='batch', leave=False, disable=None):
            if self.stopping:
                return None
            batch = windows[start:start + batch_size]
            total += self.mean_loss(batch) * len(batch)
        return total / len(windows)

    def mean_loss(self, windows):
        """Mean loss of windows, int32 [any, n_ctx], computed at once, in nats a token. Raises ValueError if it is no number."""
        loss = float(self.compute(self.graph.valid_losses, {self.graph.valid_tokens: windows}).mean())
        if not np.isfinite(loss):
            self.has_diverged('a measured loss of %s' % loss)
        return loss

    def print_sample(self):
        """Show a text of the model as it is now."""
        text = self.encoder.decode(self.compute(self.sample, {})[0, 1:])
        tell('%s SAMPLE AT STEP %d %s\n%s' % ('=' * 20, self.step, '=' * 20, text))

    def report(self, record, bar):
        """Tell the progress bar, metrics.jsonl and TensorBoard. Without a terminal for a bar, print a line now and then."""
        from tf1 import tf
        figures = ['%s %.3f' % (label, value) for label, value in
                   (('loss', record.get('loss_nats')), ('valid loss', self.valid_loss)) if value is not None]
        if 'loss_nats' in record:
            figures.append('%.0f tokens/s' % record['tokens_per_second'])
            bar.set_postfix_str(', '.join(figures), refresh=False)
            bar.update()
            began, first = self.began
            seconds_left = (time.time() - began) / (self.step - first) * (self.options.steps - self.step)
            figures.append('%s left' % tqdm.format_interval(seconds_left))
        is_time = self.due(self.options.valid_every) or time.time() - self.told > SILENT_SECONDS
        if 'loss_nats' not in record or bar.disable and is_time:
            tell('step %d of %d: %s' % (self.step, self.options.steps, ', '.join(figures)))
            self.told = time.time()
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


def forget_from(folder, step):
    """Remove from a run's folder what a killed run left about that step and later ones, which are yet to be done."""
    metrics = inside(folder, 'metrics.jsonl')
    kept = [record for record in read_metrics(metrics) if record['step'] < step]
    files.write_text(metrics, ''.join(map(json_line, kept)))
    remove_saves_from(folder, step)


def remove_saves_from(folder, step):
    """Remove from a run's folder what there is of saves of that step and later ones."""
    for place in (folder, inside(folder, '')):
        for name in os.listdir(place):
            numbered = re.match(r'(?:model|state)\.ckpt-(\d+)\.', name)
            if numbered and int(numbered.group(1)) >= step:
                os.remove(os.path.join(place, name))


def plot(metrics, image):
    """Draw the loss over the steps, if matplotlib is installed: that of training as it was, and above it smoothed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    records = read_metrics(metrics)
    steps, losses = curve(records, 'loss_nats')
    axes.plot(steps, losses, color='C0', alpha=0.3, linewidth=0.5)
    axes.plot(steps, smoothed(losses, max(1, len(losses) // 50)), color='C0', label='training, smoothed')
    steps, losses = curve(records, 'valid_loss_nats')
    if len(steps):
        axes.plot(steps, losses, color='C1', marker='.', label='validation')
    axes.set(xlabel='step', ylabel='loss, nats a token')
    axes.legend()
    with files.replacing(image) as part:
        figure.savefig(part, format='png')


def curve(records, name):
    """The steps at which the records have that figure, and the figures: two arrays."""
    points = [(record['step'], record[name]) for record in records if name in record]
    return np.array(points).reshape(-1, 2).T


def smoothed(values, n):
    """Each value's mean with its n neighbours on either side, or as many of them as there are. values: array [N]."""
    sums = np.append(0, np.cumsum(values))
    place = np.arange(len(values))
    first, end = np.maximum(place - n, 0), np.minimum(place + n + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


if __name__ == '__main__':
    flags.run(train)
