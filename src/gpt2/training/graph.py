"""A training step as a TensorFlow graph: loss, gradients, update."""
from collections import namedtuple
import math
import re
import zlib

import numpy as np

from gpt2.fast import matmul, xla
from gpt2.fast.cache import Past
from gpt2.system.tf1 import sizes, stateless_uniform, tf, xla_ops
from gpt2.training.cluster import LocalWorkers
import model

MIN_STEPS_TO_COMPILE = 200  # fewer do not make up for compiling, a minute or so; not measured on a GPU
BETAS = 0.9, 0.95  # of Adam, as Brown et al. 2020 (arXiv:2005.14165), appendix B

Graph = namedtuple('Graph', 'tokens learning_rate first loss norm update valid_tokens valid_losses state')
# tokens: int32 [workers in this process * accumulate, B, T] placeholder    learning_rate: scalar placeholder
# first: int64 scalar placeholder, the number of the first of these sequences, counted from the start of training
# loss: nats per token, before the update, over all workers    norm: that of the gradient, before clipping
# valid_tokens: int32 [B, T] placeholder    valid_losses: [B, T - 1] nats, without dropout
# state: the optimizer's {name: variable}


def build(hparams, options, cluster=None, compiled=False):
    """The Graph of a step with train.py's flags. Its variables are the model's, under 'model', and the optimizer's.

    cluster: the workers that compute it together; None is one worker.
    compiled: whether XLA compiles loss and gradients, in the first step.
    Raises ValueError if train_only matches no variable.
    """
    cluster, accumulate = cluster or LocalWorkers(), options.accumulate
    tokens_ABT = tf.placeholder(tf.int32, [len(cluster.devices) * accumulate, options.batch_size, hparams.n_ctx])
    first = tf.placeholder(tf.int64, [])
    learning_rate = tf.placeholder(tf.float32, [])
    valid_BT = tf.placeholder(tf.int32, [None, hparams.n_ctx])
    with tf.device(spread(cluster.devices)):
        valid_losses = model.token_losses(model.model(hparams, valid_BT)['logits'], valid_BT)
    variables = variables_to_train(options.train_only)

    def mean_of_batches(tokens_ABT, first):
        def compute(i):
            sequences = first + tf.cast(i, tf.int64) * options.batch_size + np.arange(options.batch_size)
            drop = dropout(options.dropout, seed=options.seed, sequences=sequences, redraw=options.recompute)
            return loss_and_gradients(hparams, tokens_ABT[i], variables, drop, options.recompute, options.precision)

        return mean_over_batches(range(accumulate), compute, variables)

    def part(begin):
        function = xla.compiled(mean_of_batches) if compiled else mean_of_batches
        return function(tokens_ABT[begin:begin + accumulate], first + begin * options.batch_size)

    found = on_devices(cluster.devices, part, range(0, len(cluster.devices) * accumulate, accumulate))
    loss, *gradients = cluster.mean(mean_over_devices(found, cluster.devices[:1] + [v.device for v in variables]))
    clipped, norm = clip_by_norm(gradients, options.clip)
    optimizer = tf.train.AdamOptimizer(learning_rate, *BETAS)
    # Decoupled weight decay: Loshchilov and Hutter 2017 (arXiv:1711.05101). Gains and biases do not decay.
    matrices = [variable for variable in variables if len(variable.shape) > 1]
    with tf.control_dependencies(clipped):
        decays = on_devices([matrix.device for matrix in matrices],
                            lambda matrix: matrix.assign_sub(learning_rate * options.weight_decay * matrix), matrices)
    with tf.control_dependencies(decays):
        update = optimizer.apply_gradients(zip(clipped, variables))
    return Graph(tokens_ABT, learning_rate, first, loss, norm, update, valid_BT, valid_losses,
                 {variable.op.name: variable for variable in optimizer.variables()})


def is_worth_compiling(n_steps):
    """Whether compiling a step saves time: on a GPU, for many steps. A run that resumes computes as it did before."""
    return n_steps >= MIN_STEPS_TO_COMPILE and matmul.on_gpu() and xla.is_usable()


def spread(devices):
    """A function for tf.device, with which each device keeps, and updates, an equal share of the variables."""
    sizes = [0] * len(devices)

    def place(operation):
        if operation.type != 'VariableV2':
            return operation.device
        i = sizes.index(min(sizes))
        sizes[i] += tf.TensorShape(operation.get_attr('shape')).num_elements()
        return devices[i]

    return place


def dropout(rate, *, seed, sequences, redraw=True):
    """A function drop(x, site) that zeroes each element of x with probability rate and scales up the others.

    seed: an integer.  sequences: int64 [B], a number for each sequence of the batch; B divides x's first axis.
    redraw: whether to draw again at a site that is computed again; otherwise each element takes a byte until then.
    What is dropped depends only on these, the site's name and the variable scope: a recomputed block drops the same,
    and so does a sequence in another batch, or in a repeated training step.
    Source: the GPT paper, section 4.1.
    """
    kept = {}  # what is kept at each site

    def drop(x, site):
        name = '%s %s/%s' % (seed, tf.get_variable_scope().name, site)
        if redraw or name not in kept:
            site_seed = tf.constant(zlib.crc32(name.encode('utf-8')) % 2 ** 31, tf.int64)
            numbers = tf.unstack(sequences)
            draws = [stateless_uniform([tf.size(x) // len(numbers)], seed=tf.stack([number, site_seed]))
                     for number in numbers]
            kept[name] = tf.reshape(tf.concat(draws, axis=0), tf.shape(x)) >= rate
        return x * tf.cast(kept[name], tf.float32) / (1 - rate)

    return drop if rate else model.no_dropout


def variables_to_train(pattern):
    """The variables in whose names the regular expression is found; None: all. Raises ValueError if there are none."""
    variables = [variable for variable in tf.trainable_variables() if re.search(pattern or '', variable.op.name)]
    if not variables:
        names = [variable.op.name for variable in tf.trainable_variables()]
        raise ValueError('--train_only %s matches no variable; their names are %s' % (
            pattern, ', '.join(name for name in names if '/h0/' in name or '/h' not in name)))
    return variables


def mean_over_batches(batches, compute, variables):
    """The mean loss and gradients of compute(i) for each i of a range, one after the other: in the memory of one.

    Returns a list of 1 + len(variables) tensors.
    """
    if len(batches) == 1:
        loss, gradients = compute(batches[0])
        return [loss] + gradients

    def add(i, *sums):
        loss, gradients = compute(i)
        return [i + 1] + [a + b for a, b in zip(sums, [loss] + gradients)]

    zeros = [0.0] + [tf.zeros(variable.shape) for variable in variables]
    sums = tf.while_loop(lambda i, *_: i < batches[-1] + 1, add, [batches[0]] + zeros, parallel_iterations=1,
                         back_prop=False)
    return [total / len(batches) for total in sums[1:]]


def mean_over_devices(found, devices):
    """The means of tensors that several devices have computed. found: a list for each.  devices: one for each mean."""
    if len(found) == 1:
        return found[0]
    return on_devices(devices, lambda tensors: tf.add_n(tensors) / len(found), zip(*found))


def on_devices(devices, function, values):
    """A list of function(value) for each of the values, each computed on a device of its own."""
    results = []
    for device, value in zip(devices, values):
        with tf.device(device):
            results.append(function(value))
    return results


class Texts(Past):
    """The Past of whole texts in training.

    keep_weights: whether attention weights are stored for the gradient; otherwise they are computed again.
    precision: of products, 'float32' or 'bfloat16'.
    """

    def __init__(self, hparams, tokens_BT, keep_weights, precision):
        super(Texts, self).__init__(hparams, tokens_BT)
        self.keep_weights, self.factor = keep_weights, lambda x_GSK: x_GSK
        if precision == 'bfloat16':
            self.custom_getter, self.factor = matmul.bfloat16_weights, matmul.Bfloat16Weight

    def over_heads(self, attend, q_GTK, keys, values, drop):
        def attended(q_GTK, k, v, mask, drop):
            def mixed(q_GTK, k_GSK, v_GSK):
                return attend(q_GTK, self.factor(k_GSK), self.factor(v_GSK), mask, drop)

            inputs = [q_GTK] + k.pieces + v.pieces
            return mixed(*inputs) if self.keep_weights else recomputed(mixed, inputs)

        return super(Texts, self).over_heads(attended, q_GTK, keys, values, drop)


def recomputed(function, inputs):
    """function(*inputs), which is computed again for its gradient, so that only the inputs are stored."""
    scope = tf.get_variable_scope()

    @tf.custom_gradient
    def compute(*inputs):
        def gradient(y_gradient):
            # What is dropped depends on the scope. TensorFlow would compute early what waits for nothing, and store it.
            with tf.variable_scope(scope), tf.control_dependencies([y_gradient]):
                again, y_later = later(inputs, y_gradient)
                return tf.gradients(function(*again), again, y_later)

        return function(*inputs), gradient

    return compute(*inputs)


def later(tensors, gradient):
    """tensors and gradient once both are there: XLA then computes what follows instead of storing an earlier result."""
    if tf.get_default_graph().building_function:
        *tensors, gradient = xla_ops().xla_optimization_barrier(list(tensors) + [gradient])
        return tensors, gradient
    return list(map(tf.identity, tensors)), gradient


def loss_and_gradients(hparams, tokens_BT, variables, drop, recompute, precision='float32'):
    """The mean loss in nats per token, and its gradients with respect to variables, those of model.model.

    drop: from dropout().  recompute: see recomputed_gradients.  precision: of products, 'float32' or 'bfloat16'.
    """
    # A block that is computed again stores its own weights only. Without dropout there is little to store, and
    # computing it again would take a CPU longer.
    keep_weights = recompute or drop is model.no_dropout and not matmul.on_gpu()
    past = Texts(hparams, tokens_BT, keep_weights, precision)
    with tf.variable_scope('model', reuse=True, custom_getter=past.custom_getter):
        hidden = model.decoder(hparams, tokens_BT, past, drop)
        logits_RV = model.unembed(hparams, hidden[-1])
        logits_BTV = tf.reshape(logits_RV, sizes(tokens_BT) + [hparams.n_vocab])
        loss = tf.reduce_mean(model.token_losses(logits_BTV, tokens_BT))
        if recompute:
            return loss, recomputed_gradients(
                loss, hidden[:-1], lambda layer, x_RD: model.block(hparams, x_RD, layer, past, drop), variables)
    return loss, [tf.convert_to_tensor(gradient) for gradient in tf.gradients(loss, variables)]


def recomputed_gradients(loss, hidden, block, variables):
    """As tf.gradients(loss, variables), in less memory: a block's activations are computed again instead of stored.

    hidden: the input of each block, and the output of the last one.  block: function of a layer's number and its input.
    Source: Chen et al. 2016 (arXiv:1604.06174).
    """
    parts = [[] for _ in variables]  # for each variable, the terms of its gradient

    def descend(y, y_gradient, x):
        """Go back from y and its gradient to x. Returns the gradient at x; those of variables between go to parts."""
        found = tf.gradients(y, variables + x, y_gradient, stop_gradients=x)
        for part, gradient in zip(parts, found):
            if gradient is not None:
                part.append(tf.convert_to_tensor(gradient))
        return found[len(variables):]

    x_gradient = descend(loss, None, hidden[-1:])
    for layer, x_RD in reversed(list(enumerate(hidden[:-1]))):
        with tf.control_dependencies(x_gradient):  # or TensorFlow would compute it early, and store it after all
            (x_RD,), y_gradient = later([x_RD], *x_gradient)
            x_gradient = descend(block(layer, x_RD), [y_gradient], [x_RD])
    descend(hidden[0], x_gradient, [])
    return [tf.add_n(part) for part in parts]


def clip_by_norm(gradients, limit):
    """The gradients, scaled by one factor so that their joint norm is at most limit, and the norm before that.

    Source: Pascanu et al. 2013 (arXiv:1211.5063). Not tf.clip_by_global_norm: in 1.12 it fails if the norm is infinite.
    """
    norm = tf.global_norm(gradients)
    scale = limit / tf.maximum(norm, limit)
    return on_devices([gradient.device for gradient in gradients], lambda gradient: scale * gradient, gradients), norm


def learning_rate_at(step, *, peak, warmup, decay):
    """The learning rate of step 0, 1, ...: linear warmup to peak, then cosine decay to 0 (GPT paper, section 4.1)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1, (step - warmup) / max(1, decay - warmup))))
