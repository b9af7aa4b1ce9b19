"""What only a GPU can show: what runs on it, whether results are those of a CPU, and how processes use its memory.

`make test PYTEST_ARGS='-m gpu -n 0 -s'` runs this file alone, and prints the figures that it compares. conftest.py
hides GPUs from all other tests, so everything here runs in processes of their own, for one test at a time. In them
TensorFloat-32, which keeps 10 of the 23 bits of a number's fraction in products, is off unless a test says otherwise.
"""
import collections
import fcntl
import glob
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

import benchmark
import encoder
from gpt2 import checkpoint, corpus, session
from gpt2.sampler import random_draws
from gpt2.system.tf1 import tf
import model
import sample
from helpers import reference
from helpers.paths import BENCHMARKS, HELD_OUT, MODELS, ROOT, SRC, TESTS
from helpers.processes import CTRL_C, INTERACTIVE, QUESTION, UNCONDITIONAL, Conversation
from helpers.training import arguments_of, losses_of, metrics_of_step, options

pytestmark = pytest.mark.gpu
DEVICE = 'GPU'
SECONDS = 1200  # the driver may first compile TensorFlow's kernels for the card, and keeps them in CUDA_CACHE_PATH
CONTEXT_MB = 100  # what any process takes of a card; it is far more
CHILD = '''
import pickle, sys
sys.path[:0] = %r
import test_gpu
with open(sys.argv[1], 'rb') as file:
    name, arguments = pickle.load(file)
with open(sys.argv[1], 'wb') as file:
    pickle.dump(getattr(test_gpu, name)(*arguments), file)
''' % [SRC, TESTS, BENCHMARKS, ROOT]


# Processes

def environment(device, tf32=False):
    """The environment of a process that sees the GPUs that the tests hide, or none for the device 'CPU'."""
    ours = {name: value for name, value in os.environ.items()
            if name not in ('CUDA_VISIBLE_DEVICES', 'NVIDIA_TF32_OVERRIDE', 'TF_FORCE_GPU_ALLOW_GROWTH')}
    visible = '' if device == 'CPU' else os.environ['GPUS_BEFORE_TESTS']
    if visible != 'all':
        ours['CUDA_VISIBLE_DEVICES'] = visible
    if not tf32:
        ours['NVIDIA_TF32_OVERRIDE'] = '0'
    return dict(ours, CUDA_DEVICE_ORDER='PCI_BUS_ID')  # nvidia-smi's


def finished(command, env, text=''):
    """Run a command to its end, with text as its input: (status, stdout, stderr)."""
    done = subprocess.run(command, input=text.encode('utf-8'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
                          timeout=SECONDS)
    return done.returncode, done.stdout.decode('utf-8'), done.stderr.decode('utf-8')


def computed(device, function, *arguments, tf32=False):
    """The result of a function of this file, in a process with that device."""
    with tempfile.NamedTemporaryFile() as file:
        pickle.dump((function.__name__, arguments), file)
        file.flush()
        status, _, stderr = finished([sys.executable, '-c', CHILD, file.name], environment(device, tf32))
        assert status == 0, stderr
        file.seek(0)
        return pickle.load(file)


def script(name, *arguments):
    return [sys.executable, os.path.join(SRC, name)] + list(arguments)


def printed(device, command, text=''):
    """The output of a command, which must succeed."""
    status, stdout, stderr = finished(command, environment(device), text)
    assert status == 0, stderr
    return stdout


@pytest.fixture(scope='module')
def gpus():
    """The names of the GPUs that TensorFlow uses."""
    if not glob.glob('/dev/nvidia[0-9]*') and not shutil.which('nvidia-smi'):
        pytest.skip('needs a GPU, and this machine has none of NVIDIA')
    names = computed(DEVICE, devices, DEVICE)
    if not names:
        pytest.skip('needs a GPU, and TensorFlow %s uses none here; docs/install.md names the packages that '
                    'do, and CUDA_VISIBLE_DEVICES may hide it' % tf.__version__)
    return names


@pytest.fixture
def gpu(gpus):
    """The names of the GPUs, for one test at a time: they are shared by pytest-xdist's processes."""
    with open(os.path.join(tempfile.gettempdir(), 'gpt-2-tests-%d.lock' % os.getuid()), 'w', encoding='utf-8') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield gpus


def devices(kind):
    """The names of TensorFlow's devices of a kind. The driver has then compiled what sampling needs for them."""
    placed('sampling')
    with tf.Graph().as_default(), session.session() as sess:
        return [device.name for device in sess.list_devices() if device.device_type == kind]


# Devices of operations

def placed(graph):
    """The operations of a run of the demo model: [(type, name, kind of device, types of its numbers)].

    graph: 'sampling', 'scoring' or 'training', as the scripts build it.
    """
    from gpt2.evaluation.scorer import scorer
    from gpt2.training.graph import build
    hparams, metadata = checkpoint.load_hparams('demo', MODELS), tf.RunMetadata()
    with tf.Graph().as_default(), session.session(sampling=graph == 'sampling') as sess:
        run, with_graphs = sess.run, tf.RunOptions(output_partition_graphs=True)
        sess.run = lambda outputs, feeds=None: run(outputs, feeds, with_graphs, metadata)
        if graph == 'sampling':
            context, draws = tf.placeholder(tf.int32, [2, 1]), tf.placeholder(tf.float64, [None, None])
            tokens = sample.sample_sequence(hparams=hparams, length=20, context=context, draws=draws, top_k=40,
                                            temperature=0.7)
            run(tf.global_variables_initializer())
            sess.run(tokens, {context: [[0], [0]], draws: random_draws(1, range(2), 20)})
        elif graph == 'scoring':
            score = scorer(sess, hparams)
            run(tf.global_variables_initializer())
            score(np.zeros([2, 100], np.int32))
        else:
            step = build(hparams, options(recompute=True))
            run(tf.global_variables_initializer())
            tokens = np.zeros([1, 2, hparams.n_ctx])
            sess.run([step.update, step.loss], {step.tokens: tokens, step.learning_rate: 1e-4, step.first: 0})
    return [(node.op, node.name, re.search(r'device:(\w+):', node.device).group(1),
             {tf.as_dtype(value.type).name for value in node.attr.values() if value.type})
            for part in metadata.partition_graphs for node in part.node]


@pytest.mark.parametrize('graph', ['sampling', 'scoring', 'training'])
def test_graph_has_its_variables_and_arithmetic_on_the_gpu(gpu, graph):
    """The CPU has floating-point numbers only in inputs, constants and outputs."""
    nodes = computed(DEVICE, placed, graph)
    kinds = collections.defaultdict(set)
    for operation, _, device, _ in nodes:
        kinds[operation.replace('_Mkl', '').replace('V2', '').replace('V3', '')].add(device)
    of_training = ('ApplyAdam',) if graph == 'training' else ()
    for operation in ('Variable', 'MatMul', 'BatchMatMul', 'Gather', 'Rsqrt') + of_training:
        assert kinds[operation] == {DEVICE}, operation
    there = [node for node in nodes if node[2] != DEVICE]
    counts = dict(collections.Counter(node[0] for node in there))
    print('%s: %d operations, on the CPU: %s' % (graph, len(nodes), counts))
    copied = [name for operation, name, _, _ in nodes if operation in ('_Send', '_HostSend')]
    print('%s: copied between GPU and CPU: %s' % (graph, ', '.join(sorted(copied))))
    passive = ('Const', 'Identity', 'Placeholder', '_Arg', '_Retval', '_Send', '_Recv', '_HostSend', '_HostRecv')
    assert [node for node in there if node[3] & {'float32', 'float64'} and node[0] not in passive
            and '/Assert/' not in node[1]] == []  # checks of arguments have there what they would print


# Results

def demo_logits():
    """The tokens of a held-out text, int [1, T], and the demo model's logits, float32 [1, T, V]."""
    hparams = checkpoint.load_hparams('demo', MODELS)
    with tempfile.TemporaryDirectory() as cache:
        tokens_N = np.array(corpus.load_tokens(encoder.get_encoder('demo', MODELS), HELD_OUT, cache))
    tokens_1T = tokens_N[None, :hparams.n_ctx]
    with tf.Graph().as_default(), session.session() as sess:
        logits_1TV = model.model(hparams, tokens_1T.astype(np.int32))['logits']
        checkpoint.restore(sess, 'demo', MODELS)
        return tokens_1T, sess.run(logits_1TV)


def test_model_equals_the_papers_and_with_tensorfloat_32_nearly(gpu):
    reader = tf.train.load_checkpoint(os.path.join(MODELS, 'demo', 'model.ckpt'))
    weights = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    tokens_1T, logits_1TV = computed(DEVICE, demo_logits)
    expected_1TV, _ = reference.forward(weights, tokens_1T, checkpoint.load_hparams('demo', MODELS).n_head)
    differences = []
    for name, found_1TV in (('off', logits_1TV), ('on', computed(DEVICE, demo_logits, tf32=True)[1])):
        differences.append(np.abs(found_1TV - expected_1TV).max() / np.ptp(expected_1TV))
        nats, expected_nats = [reference.token_losses(x_1TV, tokens_1T).mean() for x_1TV in (found_1TV, expected_1TV)]
        n_other = np.sum(found_1TV.argmax(axis=-1) != expected_1TV.argmax(axis=-1))
        print('TensorFloat-32 %s: logits differ by %.1e of their span at most, perplexity by a factor of %.6f; the '
              'most likely token differs after %d of %d'
              % (name, differences[-1], np.exp(nats - expected_nats), n_other, tokens_1T.size))
    assert differences[0] <= reference.ROUNDING


@pytest.mark.parametrize('tests', [
    'test_model.py -k "equals or causal"',  # among them NumPy and the graph that OpenAI exported
    'test_cache.py -k "order or settle"', 'test_matmul.py -k top_k',
    'test_sample.py -k "brute_force or pick or most_likely or shortlist or alone or papers or lengths or too_long"',
    'test_train.py -k "loss_and_gradients or mean_over or without_dropout or decoupled or train_only or clip_by"',
    'test_dropout.py -k "dropout"'],
    ids=lambda tests: tests.split('.')[0])
def test_other_files_pass_on_a_gpu(gpu, tests):
    name, chosen = re.match(r'(\S+) -k "?([^"]*)', tests).groups()
    command = [sys.executable, '-m', 'pytest', os.path.join(TESTS, name), '-k', chosen]
    status, stdout, _ = finished(command + ['-q', '-rs', '-p', 'no:cacheprovider'], environment(DEVICE))
    assert status == 0, stdout
    print(stdout.strip().split('\n')[-1])


@pytest.mark.parametrize('name', [UNCONDITIONAL, INTERACTIVE])
def test_scripts_print_the_samples_of_a_cpu(gpu, name):
    """Draws come from NumPy: a text only differs from where a draw is within rounding of the border of two tokens."""
    command = script(name, '--model_name', 'demo', '--models_dir', MODELS, '--seed', '1', '--nsamples', '8',
                     '--batch_size', '4', '--length', '100', '--top_k', '40', '--temperature', '0.7')
    ours, cpus = [re.split('=+ SAMPLE .*\n', printed(device, command, 'Once upon a time\n'))[1:]
                  for device in (DEVICE, 'CPU')]
    assert len(ours) == len(cpus) == 8 and len(set(cpus)) == 8
    n_equal = sum(a == b for a, b in zip(ours, cpus))
    print('%s: %d of 8 samples are equal' % (name, n_equal))
    assert n_equal >= 7


def compiled_samples(compiled):
    """The tokens of four prompts of different lengths with the demo model, int [4, 104]."""
    hparams = checkpoint.load_hparams('demo', MODELS)
    prompt_BT = np.random.RandomState(0).randint(hparams.n_vocab, size=[4, 4])
    with tf.Graph().as_default(), session.session(sampling=True) as sess:
        tokens = sample.sample_sequence(
            hparams=hparams, length=100, context=prompt_BT, context_lengths=[4, 1, 3, 2], top_k=40, top_p=0.9,
            draws=random_draws(1, range(4), 100), compiled=compiled)
        checkpoint.restore(sess, 'demo', MODELS)
        return sess.run(tokens)


def test_sample_sequence_compiled_equals_a_cpu(gpu):
    ours, cpus = computed(DEVICE, compiled_samples, True), computed('CPU', compiled_samples, False)
    n_equal = sum((a == b).all() for a, b in zip(ours, cpus))
    print('compiled: %d of 4 samples are equal' % n_equal)
    assert n_equal >= 3


def models_of(folder):
    """A models_dir in a folder, with the demo model."""
    shutil.copytree(os.path.join(MODELS, 'demo'), os.path.join(folder, 'demo'))
    return folder


def training(models_dir, run_name, **changes):
    """The command of a short fine-tuning of the demo model, with dropout."""
    flags = dict(data=HELD_OUT, model_name='demo', run_name=run_name, models_dir=models_dir, batch_size=2, steps=6,
                 warmup=2, save_every=6, learning_rate=3e-4)
    return script('train.py', *arguments_of(dict(flags, **changes)))


@pytest.mark.parametrize('changes', [{}, {'recompute': True}, {'batch_size': 1, 'accumulate': 2}], ids=str)
def test_train_has_the_losses_of_a_cpu(gpu, tmp_path, changes):
    """And the gradients' norms: dropout drops the same elements, too."""
    models_dir = models_of(str(tmp_path / 'models'))
    for name, device in (('ours', DEVICE), ('cpus', 'CPU')):
        printed(device, training(models_dir, name, **changes))
    ours, cpus = [np.array(losses_of(models_dir, name)) for name in ('ours', 'cpus')]
    print('losses and norms differ by a factor of %.1e at most' % np.abs(ours / cpus - 1).max())
    assert ours.shape == (6, 3) and ours[0, 1] > ours[-1, 1]
    np.testing.assert_allclose(ours, cpus, rtol=1e-4)


def losses_of_steps(compiled):
    """The losses and norms of three steps of the demo model, with dropout: float32 [3, 2]."""
    from gpt2.training.graph import build
    hparams = checkpoint.load_hparams('demo', MODELS)
    tokens = np.random.RandomState(0).randint(hparams.n_vocab, size=[2, 1, hparams.n_ctx])
    with tf.Graph().as_default(), session.session() as sess:
        step = build(hparams, options(batch_size=1, accumulate=2), compiled=compiled)
        sess.run(tf.global_variables_initializer())
        checkpoint.restore(sess, 'demo', MODELS)
        return np.array([sess.run([step.loss, step.norm, step.update], {
            step.tokens: tokens, step.first: 2 * number, step.learning_rate: 1e-4})[:2] for number in range(3)])


def test_build_compiled_has_the_losses_of_a_cpu(gpu):
    """Dropout drops the same elements, too."""
    ours, cpus = computed(DEVICE, losses_of_steps, True), computed('CPU', losses_of_steps, False)
    print('compiled: losses and norms differ by a factor of %.1e at most' % np.abs(ours / cpus - 1).max())
    np.testing.assert_allclose(ours, cpus, rtol=1e-4)


def test_evaluate_text_has_the_perplexity_of_a_cpu(gpu):
    command = script('evaluate.py', 'text', HELD_OUT, '--model_name', 'demo', '--models_dir', MODELS, '--stride', '64')
    ours, cpus = [float(re.search('perplexity per token +(.*)', printed(device, command)).group(1))
                  for device in (DEVICE, 'CPU')]
    print('perplexity %.6g, on a CPU %.6g' % (ours, cpus))
    assert abs(ours / cpus - 1) < 1e-4


def test_precision_int8_is_an_error_in_one_line(gpu):
    command = script(UNCONDITIONAL, '--model_name', 'demo', '--models_dir', MODELS, '--nsamples', '1', '--precision',
                     'int8')
    status, stdout, stderr = finished(command, environment(DEVICE))
    assert (status, stdout, stderr.count('\n')) == (1, '', 1)
    assert '8-bit weights are for a CPU' in stderr


# Memory

def megabytes(field='memory.used', number=0):
    """What nvidia-smi reports of the memory of the number-th GPU of those that were visible."""
    visible = os.environ['GPUS_BEFORE_TESTS']
    text = benchmark.card(field, str(number) if visible == 'all' else visible.split(',')[number])
    if text is None or not text.isdigit():
        pytest.skip('needs nvidia-smi to report %s; it says %s' % (field, text))
    return int(text)


def wait_until(condition, process=None):
    deadline = time.time() + SECONDS
    while not condition():
        assert time.time() < deadline and (process is None or process.poll() is None)
        time.sleep(0.2)


@pytest.mark.parametrize('name', [UNCONDITIONAL, INTERACTIVE])
def test_scripts_take_a_part_of_the_memory_and_free_it_on_ctrl_c(gpu, name):
    """On a terminal, where the interactive script prints each token at once."""
    before, whole = megabytes(), megabytes('memory.total')
    with Conversation(script(name, '--model_name', 'demo', '--models_dir', MODELS, '--length', '250'), terminal=True,
                      env=environment(DEVICE)) as terminal:
        if name == INTERACTIVE:
            terminal.read_until(QUESTION)
            terminal.say(b'Once upon a time\n')
        terminal.read_until(b' SAMPLE 1 ')
        terminal.read_until(b' SAMPLE 2 ' if name == UNCONDITIONAL else b'=\r\n')
        during = megabytes()
        if name == INTERACTIVE:
            assert terminal.read_some()  # of the text, before it is complete
            assert b'=' * 80 not in terminal.unread
        terminal.say(CTRL_C)
        assert terminal.end()[0] == 130
    print('%s: %d of %d MB' % (name, during - before, whole))
    assert CONTEXT_MB < during - before < whole / 4
    wait_until(lambda: megabytes() < before + CONTEXT_MB)


def test_workers_have_a_gpu_each_and_train_as_one_does(gpu, tmp_path):
    if len(gpu) < 2:
        pytest.skip('needs two GPUs, and TensorFlow uses one here')
    models_dir = models_of(str(tmp_path / 'models'))
    printed(DEVICE, training(models_dir, 'alone', steps=40))
    before = [megabytes(number=number) for number in range(2)]
    with subprocess.Popen(training(models_dir, 'two', steps=40, batch_size=1, workers=2), env=environment(DEVICE),
                          stderr=subprocess.PIPE) as process:
        path = os.path.join(models_dir, 'two', 'training', 'metrics.jsonl')
        wait_until(lambda: os.path.exists(path) and metrics_of_step(path), process)
        during = [megabytes(number=number) for number in range(2)]
        stderr = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0, stderr
    assert min(np.subtract(during, before)) > CONTEXT_MB
    np.testing.assert_allclose(losses_of(models_dir, 'two'), losses_of(models_dir, 'alone'), rtol=1e-4)
