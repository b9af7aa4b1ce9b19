"""A training run: takes step after step in a session, measures the loss, saves, and can be stopped at any moment."""
import math
import os
import time

import numpy as np
from tqdm import tqdm

import checkpoint
import corpus
import files
import sample
from tf1 import tf
from training import run_folder
from training.cluster import OneWorker
from training.graph import build, learning_rate_at
from training.record import Record

SILENT_SECONDS = 60  # without a terminal for the progress bar, a line at least this often


class Run(object):
    """A training run: a session of the graph, and the folder that it is saved in and resumed from.

    text_encoder, hparams: those of the model, as run_folder.prepare returns them.
    cluster: of the workers that train it, of which the chief alone writes into the folder, measures and reports; None is
        one worker.
    """

    def __init__(self, sess, folder, options, hparams, text_encoder, cluster=None):
        self.sess, self.folder, self.options, self.hparams, self.encoder = sess, folder, options, hparams, text_encoder
        self.cluster = cluster = cluster or OneWorker()
        self.stopping = False  # whether Ctrl-C was pressed
        self.valid_loss = None  # as last measured
        self.best = run_folder.read_note(folder, 'best.json')  # the lowest: step, valid_loss_nats, text
        self.told = time.time()  # when report() last printed a line
        self.began = None  # when learn() began, and after which step, for the time left
        self.record = None  # the chief's Record
        tf.set_random_seed(options.seed)
        with tf.device(cluster.device):
            self.graph = build(hparams, options, cluster)
            self.samples = self.build_samples() if options.sample_every and cluster.is_chief else []
            self.compute(tf.global_variables_initializer(), {})
        self.saved = self.restore() if cluster.is_chief else None
        saved = int(cluster.exchange([-1 if self.saved is None else self.saved])[0, 0])
        self.saved = None if saved < 0 else saved
        cluster.share(sess, list(checkpoint.model_variables(sess.graph).values()) + list(self.graph.state.values()))
        self.step = self.saved or 0
        self.first_loss = None  # that of the run's first step
        self.was_too_high = False  # whether the last step's loss was
        if cluster.is_chief:
            run_folder.remove_unfinished(folder)
            self.record = Record(run_folder.inside(folder, ''), first_step=0 if self.saved is None else self.saved + 1)
            self.first_loss = next((figures['loss_nats'] for figures in self.record.read() if 'loss_nats' in figures), None)

    def build_samples(self):
        """Texts to show now and then: tensors of their tokens, one from nothing, and one from the prompt if there is one."""
        end_of_text, n_ctx = self.encoder.end_of_text, self.hparams.n_ctx
        starts = [{'start_token': end_of_text, 'length': n_ctx - 1}]
        if self.options.sample_prompt is not None:
            prompt = self.encoder.encode(self.options.sample_prompt)
            if not 0 < len(prompt) < n_ctx:
                raise ValueError('--sample_prompt has %d tokens; it must have 1 to %d' % (len(prompt), n_ctx - 1))
            starts.append({'context': [prompt], 'length': n_ctx - len(prompt)})
        return [sample.sample_sequence(hparams=self.hparams, batch_size=1, top_k=40, end_token=end_of_text, **start)
                for start in starts]

    def restore(self):
        """Load the last save, or the model to start from, if any. Returns the step of the save, or None."""
        step = run_folder.last_save(self.folder)
        if step is None and self.options.model_name is None:
            return None
        folder = checkpoint.model_dir(self.options.model_name, self.options.models_dir) if step is None else self.folder
        variables = checkpoint.model_variables(self.sess.graph)
        checkpoint.restore_variables(self.sess, variables, checkpoint.weights_prefix(folder))
        if step is not None:
            checkpoint.restore_variables(self.sess, self.graph.state, run_folder.inside(folder, 'state.ckpt-%d' % step))
        return step

    def save(self, batch):
        """Save all that the run needs to go on. If the process is killed meanwhile, the run goes on from the save before.

        batch: the last one learnt, int32 [any, n_ctx]. Raises ValueError, and saves nothing, if its loss shows divergence.
        """
        if not self.cluster.is_chief:
            self.saved = self.step
            return
        loss = self.mean_loss(batch[:self.options.batch_size])  # one_step() computed it before its update
        if self.too_high(loss):
            raise self.diverged('a loss of %.4g nats, far above the %.2f of a guess' % (loss, math.log(self.hparams.n_vocab)))
        state, keep = run_folder.inside(self.folder, 'state.ckpt'), self.options.keep
        try:
            checkpoint.save_variables(self.sess, self.graph.state, '%s-%d' % (state, self.step))
            checkpoint.save(self.sess, self.folder, self.hparams, self.folder, step=self.step, keep=keep)
        except OSError:
            run_folder.remove_unfinished(self.folder)  # a full disk needs the room
            raise
        checkpoint.remove_old(state, self.step, keep)
        self.saved = self.step
        self.record.show(is_last=self.stopping or self.step == self.options.steps)

    def interrupt(self):
        """Called by Ctrl-C and SIGTERM: the first one makes learn() save and return, the second one stops it at once."""
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        # Not print: the signal may have come in the middle of a print.
        os.write(2, b'\nstopping: what is learnt is saved first; press Ctrl-C again to stop at once\n')

    def learn(self, tokens, valid_tokens):
        """Train until the last step, or until interrupt() is called, and save.

        tokens, valid_tokens: from corpus.load_tokens, at least n_ctx of them; valid_tokens may be None.
        """
        options, cluster = self.options, self.cluster
        batches = corpus.training_batches(tokens, batch_size=cluster.n_workers * options.accumulate * options.batch_size,
                                          n_ctx=self.hparams.n_ctx, seed=options.seed, first=self.step)
        self.began = time.time(), self.step
        with tqdm(total=options.steps, initial=self.step, unit='step', disable=None if cluster.is_chief else True) as bar:
            if cluster.is_chief and (self.saved is None or self.best.get('text') != run_folder.fingerprint(valid_tokens)):
                figures = self.validate(valid_tokens)  # to compare the later losses with
                if figures:
                    self.report(dict(figures, step=self.step), bar)
            while self.step < options.steps and not cluster.any(self.stopping):
                batch = next(batches)
                figures = self.one_step(batch)
                if cluster.is_chief:
                    if self.is_due(options.valid_every):
                        figures.update(self.validate(valid_tokens))
                    self.report(figures, bar)
                    if self.is_due(options.sample_every):
                        self.print_samples()
                if self.is_due(options.save_every):
                    self.save(batch)
        if self.step != (self.saved or 0):
            self.save(batch)
        cluster.finish()

    def one_step(self, batch):
        """Learn one batch, int32 [n_workers * accumulate * batch_size, n_ctx], of which each worker takes its part.

        Returns its line of metrics.jsonl, as a dict. Raises ValueError if the loss or the gradient is not finite.
        """
        options, graph = self.options, self.graph
        n_own = options.accumulate * options.batch_size
        first = self.cluster.index * n_own
        began = time.time()
        rate = learning_rate_at(self.step, peak=options.learning_rate, warmup=options.warmup,
                                decay=options.steps if options.decay is None else options.decay)
        loss, norm, _ = self.compute([graph.loss, graph.norm, graph.update], {
            graph.tokens: batch[first:first + n_own].reshape(options.accumulate, options.batch_size, -1),
            graph.learning_rate: rate,
            graph.first: self.step * len(batch) + first})
        self.step += 1
        if not np.isfinite([loss, norm]).all():
            raise self.diverged('a loss of %s and a gradient of norm %s' % (loss, norm))
        if self.first_loss is None:
            self.first_loss = float(loss)
        if self.cluster.is_chief and self.too_high(loss) and not self.was_too_high:
            run_folder.tell('step %d: a loss of %.4g is far above the %.2f of a guess; if it stays there, lower --learning_rate'
                            % (self.step, loss, math.log(self.hparams.n_vocab)))
        self.was_too_high = self.too_high(loss)
        return {'step': self.step, 'loss_nats': float(loss), 'gradient_norm': float(norm), 'learning_rate': rate,
                'tokens_per_second': round(batch.size / (time.time() - began), 1)}

    def compute(self, tensors, feeds):
        """sess.run(), but it raises ValueError if memory is short."""
        with checkpoint.out_of_memory('give a lower --batch_size (with a higher --accumulate) or --recompute'):
            return self.cluster.run(self.sess.run, tensors, feeds)

    def too_high(self, loss):
        """Whether a loss is more than 3 nats above that of a guess, all tokens being equally likely, and of the first step.

        A text may be so unlike what the model knows that training starts above a guess, and one batch 1 nat above others.
        """
        return loss > max(math.log(self.hparams.n_vocab), self.first_loss) + 3

    def diverged(self, what):
        """The ValueError to raise when the weights are not worth saving. what: the figures that show it."""
        return ValueError('step %d has %s: training has diverged. %s a lower --learning_rate or --clip' % (
            self.step, what, 'Nothing is saved yet; start again with' if self.saved is None else
            'The save of step %d is untouched; go on from it with' % self.saved))

    def saved_so_far(self):
        """Where the same command would go on, in words."""
        saved = run_folder.last_save(self.folder)
        return 'nothing is saved yet' if saved is None else 'the last save is that of step %d' % saved

    def summary(self):
        """What to say at the end: where the model is, how to sample from it, and which one had the lowest valid loss."""
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

    def is_due(self, every):
        """Whether to do now what is done every so many steps and after the last one; every 0 is never."""
        return every and (self.step % every == 0 or self.step == self.options.steps)

    def validate(self, tokens):
        """Measure the loss on a text. The model with the lowest one so far on this text is kept in the folder `best`.

        tokens: from corpus.load_tokens, or None. Returns {'valid_loss_nats': loss}; {} without a text or after Ctrl-C.
        """
        self.valid_loss = None if tokens is None else self.measure(tokens)
        if self.valid_loss is None:
            return {}
        found = {'step': self.step, 'valid_loss_nats': self.valid_loss, 'text': run_folder.fingerprint(tokens)}
        if self.best.get('text') != found['text'] or self.valid_loss < self.best['valid_loss_nats']:
            if self.step:
                checkpoint.save(self.sess, os.path.join(self.folder, 'best'), self.hparams, self.folder, step=self.step)
            files.write_json(run_folder.inside(self.folder, 'best.json'), found)
            self.best = found
        return {'valid_loss_nats': self.valid_loss}

    def measure(self, tokens):
        """The mean loss of a text, in nats a token, cut into windows of n_ctx tokens; a shorter rest is left out.

        tokens: integer array [N], N >= n_ctx. The first token of each window is not predicted.
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
        """The mean loss of windows, int32 [any, n_ctx], in nats a token. Raises ValueError if it is not finite."""
        loss = float(self.compute(self.graph.valid_losses, {self.graph.valid_tokens: windows}).mean())
        if not np.isfinite(loss):
            raise self.diverged('a measured loss of %s' % loss)
        return loss

    def print_samples(self):
        """Print texts by the model as it is now."""
        for tokens_BT in self.samples:
            tokens = self.compute(tokens_BT, {})[0]
            text = self.encoder.decode(tokens[int(tokens[0] == self.encoder.end_of_text):])  # one that began from nothing
            run_folder.tell('%s SAMPLE AT STEP %d %s\n%s' % ('=' * 20, self.step, '=' * 20, text))

    def report(self, figures, bar):
        """Show figures, a line of metrics.jsonl, on the bar, or without a terminal in a line now and then; and record them."""
        shown = ['%s %.3f' % (label, value) for label, value in
                 (('loss', figures.get('loss_nats')), ('valid loss', self.valid_loss)) if value is not None]
        if 'loss_nats' in figures:
            shown.append('%.0f tokens/s' % figures['tokens_per_second'])
            bar.set_postfix_str(', '.join(shown), refresh=False)
            bar.update()
            began, first = self.began
            seconds_left = (time.time() - began) / (self.step - first) * (self.options.steps - self.step)
            shown.append('%s left' % tqdm.format_interval(seconds_left))
        line_is_due = self.is_due(self.options.valid_every) or time.time() - self.told > SILENT_SECONDS
        if 'loss_nats' not in figures or bar.disable and line_is_due:
            run_folder.tell('step %d of %d: %s' % (self.step, self.options.steps, ', '.join(shown)))
            self.told = time.time()
        self.record.add(figures)
