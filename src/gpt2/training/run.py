"""A training run: it trains in a session, validates, saves, and can be interrupted at any moment."""
import contextlib
import math
import os
import signal
import time

import numpy as np

from gpt2 import checkpoint, corpus, releases, session
from gpt2.system import files, process
from gpt2.system.progress import Progress, report
import sample
from gpt2.system.tf1 import tf
from gpt2.training import run_folder
from gpt2.training.graph import build, is_worth_compiling, learning_rate_at
from gpt2.training.record import Record


class Run(object):
    """A training run: the graph in a session, and the folder that it is saved to and resumed from.

    text_encoder, hparams: those of the model, as run_folder.prepare returns them.
    cluster: the workers that train it; only the chief writes into the folder, validates and reports.
    """

    def __init__(self, sess, folder, options, hparams, text_encoder, cluster):
        self.sess, self.folder, self.options, self.cluster = sess, folder, options, cluster
        self.hparams, self.encoder = hparams, text_encoder
        self.interrupted = 0  # the signal that has interrupted this worker
        self.valid_loss = None  # the last one measured
        self.best = run_folder.read_dict(folder, 'best.json')  # that of the lowest loss: step, valid_loss_nats, text
        self.record = None  # the chief's Record
        tf.set_random_seed(options.seed)
        with tf.device(cluster.device):
            self.graph = build(hparams, options, cluster, compiled=is_worth_compiling(options.steps))
            self.samples = self.build_samples() if options.sample_every and cluster.is_chief else []
            self.compute(tf.global_variables_initializer(), {})
        self.saved = cluster.largest(self.restore() if cluster.is_chief else 0)  # the step of the last save; 0 is none
        cluster.share(sess, list(checkpoint.model_variables(sess.graph).values()) + list(self.graph.state.values()))
        self.step = self.saved
        self.guess_loss = math.log(hparams.n_vocab)  # in nats, of a model for which all tokens are equally likely
        self.first_loss = None  # that of the run's first step
        self.was_too_high = False  # whether the last step's loss was
        if cluster.is_chief:
            run_folder.remove_unfinished(folder)
            self.record = Record(run_folder.inside(folder, ''), first_step=self.saved + 1 if self.saved else 0)
            losses = (figures['loss_nats'] for figures in self.record.read() if 'loss_nats' in figures)
            self.first_loss = next(losses, None)

    def build_samples(self):
        """The samples to print during training, as tensors: unconditional, and from --sample_prompt if there is one."""
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
        """Load the last save, or else the model to fine-tune, if any. Returns the step of the save, or 0."""
        step = run_folder.last_save(self.folder)
        if step:
            checkpoint.restore(self.sess, *releases.name_and_dir(self.folder))
            state = run_folder.inside(self.folder, 'state.ckpt-%d' % step)
            checkpoint.restore_variables(self.sess, self.graph.state, state)
        elif self.options.model_name is not None:
            checkpoint.restore(self.sess, self.options.model_name, self.options.models_dir)
        return step

    def save(self, batch):
        """Save all that resuming needs. If the process is killed meanwhile, the run resumes from the save before.

        batch: the last one trained on, int32 [any, n_ctx].
        Raises ValueError, without saving, if its loss shows divergence.
        """
        if not self.cluster.is_chief:
            self.saved = self.step
            return
        loss = self.mean_loss(batch[:self.options.batch_size])  # that of one_step() is from before its update
        if self.is_too_high(loss):
            raise self.divergence('a loss of %.4g nats, far above the %.2f of a guess' % (loss, self.guess_loss))
        state, keep = run_folder.inside(self.folder, 'state.ckpt'), self.options.keep
        try:
            checkpoint.save_variables(self.sess, self.graph.state, '%s-%d' % (state, self.step))
            checkpoint.save(self.sess, self.folder, self.hparams, self.folder, step=self.step, keep=keep)
        except OSError:
            run_folder.remove_unfinished(self.folder)  # the disk may be full
            raise
        checkpoint.remove_old(state, self.step, keep)
        self.saved = self.step
        self.record.show(is_last=bool(self.interrupted) or self.step == self.options.steps)

    def interrupt(self):
        """Handle a signal: the first one makes learn() save and return, a Ctrl-C after it stops it at once.

        Other signals may come twice without anybody asking for more: a lost connection sends SIGHUP through the
        terminal and through the shell, and systemd may send it after SIGTERM.
        """
        if self.interrupted and process.interrupted_by == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.interrupted:
            with contextlib.suppress(OSError):  # nobody may read stderr any more
                # Not print: the signal may have come in the middle of a print.
                os.write(2, b'\nstopping: saving first; press Ctrl-C again to stop at once\n')
        self.interrupted = process.interrupted_by

    def learn(self, tokens, valid_tokens):
        """Train until the last step, or until a worker is interrupted, and save. All then end with the signal's status.

        tokens, valid_tokens: from corpus.load_tokens, at least n_ctx of them; valid_tokens may be None.
        """
        options, cluster = self.options, self.cluster
        batches = corpus.training_batches(
            tokens, batch_size=cluster.n_workers * options.accumulate * options.batch_size, n_ctx=self.hparams.n_ctx,
            seed=options.seed, first=self.step)
        with Progress(options.steps, unit='steps', initial=self.step, enabled=cluster.is_chief) as progress:
            is_new_text = self.best.get('text') != run_folder.fingerprint(valid_tokens)
            if cluster.is_chief and (is_new_text or not self.saved):
                figures = self.validate(valid_tokens)  # for comparison with the later losses
                if figures:
                    report('%d of %d steps: valid loss %.3f' % (self.step, options.steps, self.valid_loss))
                    self.record.add(dict(figures, step=self.step))
            while self.step < options.steps:
                interrupted_by = cluster.largest(self.interrupted)
                if interrupted_by:
                    process.interrupted_by = interrupted_by  # even if another worker has received the signal
                    break
                batch = next(batches)
                figures = self.one_step(batch)
                if cluster.is_chief:
                    if self.is_due(options.valid_every):
                        figures.update(self.validate(valid_tokens))
                    self.show(figures, progress)
                    self.record.add(figures)
                    if self.is_due(options.sample_every):
                        self.print_samples()
                if self.is_due(options.save_every):
                    self.save(batch)
        if self.step != self.saved:
            self.save(batch)
        cluster.finish()

    def one_step(self, batch):
        """Train on one batch, int32 [n_workers * accumulate * batch_size, n_ctx], of which this process takes its part.

        Returns its line of metrics.jsonl, as a dict. Raises ValueError if the loss or the gradient is not finite.
        """
        options, graph = self.options, self.graph
        shape = graph.tokens.shape.as_list()
        n_own = shape[0] * shape[1]
        first = self.cluster.index * n_own
        began = time.time()
        rate = learning_rate_at(self.step, peak=options.learning_rate, warmup=options.warmup,
                                decay=options.steps if options.decay is None else options.decay)
        loss, norm, _ = self.compute([graph.loss, graph.norm, graph.update], {
            graph.tokens: batch[first:first + n_own].reshape(shape),
            graph.learning_rate: rate,
            graph.first: self.step * len(batch) + first})
        self.step += 1
        if not np.isfinite([loss, norm]).all():
            raise self.divergence('a loss of %s and a gradient of norm %s' % (loss, norm))
        if self.first_loss is None:
            self.first_loss = float(loss)
        was_too_high, self.was_too_high = self.was_too_high, self.is_too_high(loss)
        if self.cluster.is_chief and self.was_too_high and not was_too_high:
            report('step %d: a loss of %.4g is far above the %.2f of a guess; if it stays this high, lower '
                   '--learning_rate' % (self.step, loss, self.guess_loss))
        return {'step': self.step, 'loss_nats': float(loss), 'gradient_norm': float(norm), 'learning_rate': rate,
                'tokens_per_second': round(batch.size / (time.time() - began), 1)}

    def compute(self, tensors, feeds):
        """As sess.run(), but raises ValueError if memory runs out."""
        with session.out_of_memory('give a lower --batch_size (with a higher --accumulate) or --recompute'):
            return self.cluster.run(self.sess.run, tensors, feeds)

    def is_too_high(self, loss):
        """Whether a loss is more than 3 nats above both that of a guess and that of the first step.

        On a text unlike any that the model knows, training may start above a guess, and batches differ by 1 nat.
        """
        return loss > max(self.guess_loss, self.first_loss) + 3

    def divergence(self, what):
        """The ValueError for weights that are not worth saving. what: the numbers that show it."""
        return ValueError('step %d has %s: training has diverged. %s a lower --learning_rate or --clip' % (
            self.step, what, 'The save of step %d is intact; resume from it with' % self.saved if self.saved else
            'Nothing is saved yet; start again with'))

    def summary(self):
        """Lines to report at the end: where the model is, how to sample from it, which had the lowest valid loss."""
        name, steps, best = self.options.run_name, self.options.steps, self.best
        if not self.saved:
            return ['%s: stopped before the first step; nothing is saved' % self.folder]
        models_dir = '' if self.options.models_dir == 'models' else ' --models_dir ' + self.options.models_dir
        resume = '; the same command resumes from it' if self.saved < steps else ''
        lines = ['%s: step %d of %d is saved%s' % (self.folder, self.saved, steps, resume),
                 'sample from it: python3 src/generate_unconditional_samples.py --model_name %s%s' % (name, models_dir)]
        if self.options.valid is not None and best and best['step'] != self.saved:
            lines.append('the valid loss was lowest, %.3f, %s' % (
                best['valid_loss_nats'], 'at step %d: that model is --model_name %s/best' % (best['step'], name)
                if best['step'] else 'before the first step; try a lower --learning_rate, --dropout 0, or other text'))
        return lines

    def is_due(self, every):
        """Whether to do now what is done every that many steps and after the last one; every 0 is never."""
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
        """The mean loss on a text, in nats per token, cut into sequences of n_ctx tokens; a shorter rest is left out.

        tokens: integer array [N], N >= n_ctx. The first token of each sequence is not predicted.
        Returns None if Ctrl-C came first.
        """
        n_ctx, batch_size = self.hparams.n_ctx, self.options.batch_size
        sequences = tokens[:len(tokens) // n_ctx * n_ctx].reshape(-1, n_ctx)
        total = 0
        with Progress(len(sequences), unit='sequences', label='validating', leave=False) as progress:
            for start in range(0, len(sequences), batch_size):
                if self.interrupted:
                    return None
                batch = sequences[start:start + batch_size]
                total += self.mean_loss(batch) * len(batch)
                progress.advance(len(batch))
        return total / len(sequences)

    def mean_loss(self, sequences):
        """The mean loss of sequences, int32 [any, n_ctx], in nats per token. Raises ValueError if it is not finite."""
        loss = float(self.compute(self.graph.valid_losses, {self.graph.valid_tokens: sequences}).mean())
        if not np.isfinite(loss):
            raise self.divergence('a measured loss of %s' % loss)
        return loss

    def print_samples(self):
        """Print samples from the current model."""
        for tokens_BT in self.samples:
            tokens = self.compute(tokens_BT, {})[0]
            text = self.encoder.decode(tokens[int(tokens[0] == self.encoder.end_of_text):])  # an unconditional one
            report('%s SAMPLE AT STEP %d %s' % ('=' * 20, self.step, '=' * 20), *text.split('\n'))

    def show(self, figures, progress):
        """Show the figures of a step, a line of metrics.jsonl, on the progress bar, or in a line if there is none."""
        valid_loss = '' if self.valid_loss is None else 'valid loss %.3f, ' % self.valid_loss
        shown = 'loss %.3f, %s%.0f tokens/s' % (figures['loss_nats'], valid_loss, figures['tokens_per_second'])
        progress.advance(1, shown, now=self.is_due(self.options.valid_every))
