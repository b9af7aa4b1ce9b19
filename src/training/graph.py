"""A training step as a TensorFlow graph: loss, gradients, update."""
from collections import namedtuple
import math
import re

import numpy as np

import model
from tf1 import tf
from training.cluster import OneWorker

BETAS = 0.9, 0.95  # of Adam, as Brown et al. 2020 (arXiv:2005.14165), appendix B

Graph = namedtuple('Graph', 'tokens learning_rate first loss norm update valid_tokens valid_losses state')
# tokens: int32 [accumulate, B, T] placeholder    learning_rate: scalar placeholder
# first: int64 scalar placeholder, the number of the first of these sequences in the whole training
# loss: nats a token, before the update, over all workers    norm: that of the gradient, before clipping
# valid_tokens: int32 [B, T] placeholder    valid_losses: [B, T - 1] nats, without dropout
# state: the optimizer's {name: variable}


def build(hparams, options, cluster=None):
    """The Graph of a step with train.py's flags. Its variables are the model's, under 'model', and the optimizer's.

    cluster: of the workers that compute it together; None is one worker.
    Raises ValueError if train_only names no variable.
    """
    tokens_ABT = tf.placeholder(tf.int32, [options.accumulate, options.batch_size, hparams.n_ctx])
    first = tf.placeholder(tf.int64, [])
    learning_rate = tf.placeholder(tf.float32, [])
    valid_BT = tf.placeholder(tf.int32, [None, hparams.n_ctx])
    valid_losses = model.token_losses(model.model(hparams, valid_BT)['logits'], valid_BT)
    variables = learnt_variables(options.train_only)

    def compute(i):
        sequences = first + tf.cast(i, tf.int64) * options.batch_size + np.arange(options.batch_size)
        drop = model.dropout(options.dropout, seed=options.seed, sequences=sequences)
        return loss_and_gradients(hparams, tokens_ABT[i], variables, drop, recompute=options.recompute)

    loss, gradients = mean_of(options.accumulate, compute, variables)
    loss, *gradients = (cluster or OneWorker()).mean([loss] + gradients)
    clipped, norm = clip_by_norm(gradients, options.clip)
    optimizer = tf.train.AdamOptimizer(learning_rate, *BETAS)
    # Weight decay apart from the gradient: Loshchilov and Hutter 2017 (arXiv:1711.05101). Gains and biases do not decay.
    with tf.control_dependencies(clipped):
        decays = [variable.assign_sub(learning_rate * options.weight_decay * variable)
                  for variable in variables if len(variable.shape) > 1]
    with tf.control_dependencies(decays):
        update = optimizer.apply_gradients(zip(clipped, variables))
    return Graph(tokens_ABT, learning_rate, first, loss, norm, update, valid_BT, valid_losses,
                 {variable.op.name: variable for variable in optimizer.variables()})


def learnt_variables(pattern):
    """The variables to train: those in whose name the regular expression is found, or all. Raises ValueError for none."""
    variables = [variable for variable in tf.trainable_variables() if re.search(pattern or '', variable.op.name)]
    if not variables:
        raise ValueError('--train_only %s is found in no name of a variable; they are named %s' % (
            pattern, ', '.join(variable.op.name for variable in tf.trainable_variables() if '/h0/' in variable.op.name
                               or '/h' not in variable.op.name)))
    return variables


def mean_of(n, compute, variables):
    """The mean loss and gradients of compute(0) ... compute(n - 1), run one after the other: the memory is that of one."""
    if n == 1:
        return compute(0)

    def add(i, loss, *gradients):
        more_loss, more_gradients = compute(i)
        return [i + 1, loss + more_loss] + [a + b for a, b in zip(gradients, more_gradients)]

    zeros = [tf.zeros(variable.shape) for variable in variables]
    sums = tf.while_loop(lambda i, *_: i < n, add, [0, 0.0] + zeros, parallel_iterations=1, back_prop=False)
    return sums[1] / n, [gradient / n for gradient in sums[2:]]


def loss_and_gradients(hparams, tokens_BT, variables, drop, recompute):
    """The mean loss in nats a token, and its gradients with respect to variables, those of model.model.

    drop: from model.dropout.  recompute: see recomputed_gradients.
    """
    calls = []  # for each block: the block, its input, its output

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
    """The same as tf.gradients(loss, variables), in less memory: what is inside a block is computed again, not stored.

    calls: for each block a triple: the block, a function that returns (output, anything), its input and its output.
    Source: Chen et al. 2016 (arXiv:1604.06174).
    """
    parts = [[] for _ in variables]  # for each variable, what is to be added up to its gradient

    def descend(y, y_gradient, x):
        """Go back from y, and its gradient, to x. Returns the gradient at x; what variables in between get goes to parts."""
        found = tf.gradients(y, variables + x, y_gradient, stop_gradients=x)
        for part, gradient in zip(parts, found):
            if gradient is not None:
                part.append(tf.convert_to_tensor(gradient))
        return found[len(variables):]

    x_gradient = descend(loss, None, [calls[-1][2]])
    for block, x_RD, _ in reversed(calls):
        with tf.control_dependencies(x_gradient):  # or TensorFlow would compute it early, and store it after all
            x_RD = tf.identity(x_RD)
            x_gradient = descend(block(x_RD)[0], x_gradient, [x_RD])
    descend(calls[0][1], x_gradient, [])
    return [tf.add_n(part) for part in parts]


def clip_by_norm(gradients, limit):
    """Gradients, all scaled by the same factor so that their joint norm is at most limit, and the norm before.

    Source: Pascanu et al. 2013 (arXiv:1211.5063). Not tf.clip_by_global_norm: in 1.12 it fails if the norm is not finite.
    """
    norm = tf.global_norm(gradients)
    scale = limit / tf.maximum(norm, limit)
    return [scale * gradient for gradient in gradients], norm


def learning_rate_at(step, *, peak, warmup, decay):
    """The learning rate of step 0, 1, ...: linear warmup to peak, then a cosine down to 0 (GPT paper, section 4.1)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, decay - warmup))))
