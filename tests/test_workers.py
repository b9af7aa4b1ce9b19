"""train.py with several workers: that they train as one does, what differs between them, and what ends them.

Most workers here are threads of this process; those that are killed are processes.
"""
import json
import os
import shutil
import signal
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2 import corpus
from gpt2.system import process
from gpt2.system.tf1 import tf
from gpt2.training import cluster, graph, run_folder
from gpt2.training.cluster import Cluster, LocalWorkers, from_environment, is_reachable
from gpt2.training.run import Run
from helpers import tiny
from helpers.processes import SECONDS
from helpers.training import (
    arguments_of, beside, flags_of, free_addresses, losses_of, metrics_of, options, together, train_together,
    weights_and_state, write_models_dir)
import train

STEPS = 6
WORKER = '''
from train import train as main
from gpt2.training import cluster
from gpt2.training.run import Run
cluster.SILENCE_SECONDS = %d
''' % SECONDS
DIES_IN_STEP_4 = '''
def one_step(run, batch, real=Run.one_step):
    if run.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(run, batch)
Run.one_step = one_step
'''
DIES_WHILE_SAVING_STEP_4 = '''
def replace(part, path, real=os.replace):
    if path.endswith('model.ckpt-4.index'):
        os.kill(os.getpid(), signal.SIGKILL)
    real(part, path)
os.replace = replace
'''


def flags_for(models_dir, run_name, **changes):
    """The flags of a run of a few steps of four sequences."""
    flags = dict(batch_size=1, accumulate=4, steps=STEPS, save_every=2, dropout=0.2)
    return flags_of(models_dir, run_name, **dict(flags, **changes))


def worker(flags, addresses, index, code=''):
    """The job of a worker for Forks.run, by TF_CONFIG, as on a machine of its own. code: what it runs before."""
    config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
    environment = {'TF_CONFIG': json.dumps(config), 'OMP_NUM_THREADS': '1'}
    return WORKER + code, arguments_of(flags), ['run_name'], environment


def last_line(stderr):
    """Of a worker, which has no traceback in what it says."""
    assert b'Traceback' not in stderr
    return stderr.decode('utf-8').strip().split('\n')[-1]


def assert_trained_as(models_dir, name, expected, steps=STEPS):
    """The same losses, weights and averages of Adam, but for rounding.

    The biases of keys have no gradient: they add the same to all scores of a query. Adam amplifies rounding errors.
    """
    found, wanted = losses_of(models_dir, name), losses_of(models_dir, expected)
    assert [step for step, _, _ in found] == [step for step, _, _ in wanted] == list(range(1, steps + 1))
    assert np.allclose(np.array(found), np.array(wanted), rtol=1e-5)
    assert_same_state(*[weights_and_state(os.path.join(models_dir, run)) for run in (name, expected)])


def assert_same_state(found, wanted):
    assert sorted(found) == sorted(wanted)
    for variable in wanted:
        difference, largest = np.abs(found[variable] - wanted[variable]), np.abs(wanted[variable]).max()
        if 'c_attn/b' in variable:
            difference = np.delete(difference.reshape(3, -1), 1, axis=0)
        assert difference.max() < 1e-4 * largest, variable


@pytest.fixture(scope='module')
def models_dir(tmp_path_factory):
    return write_models_dir(tmp_path_factory.mktemp('train'))


@pytest.fixture(scope='module')
def alone(models_dir):
    """The name of a run by one worker."""
    train.train(**flags_for(models_dir, 'alone'))
    return 'alone'


# The same training

def after_a_step(workers, **changes):
    """The loss, the norm and the new variables, by name, of a step of four sequences; and the graph's devices."""
    hparams = tiny.hparams(n_ctx=8, n_layer=1)
    tokens = np.random.RandomState(0).randint(hparams.n_vocab, size=[4, hparams.n_ctx])
    with tf.Graph().as_default() as built:
        tf.set_random_seed(3)
        step = graph.build(hparams, options(dropout=0.5, seed=7, clip=0.1, **changes), workers)
        workers.connect()
        with workers.session() as sess:
            sess.run(tf.global_variables_initializer())
            feeds = {step.tokens: tokens.reshape(step.tokens.shape.as_list()), step.first: 12, step.learning_rate: 0.01}
            loss, norm, _ = sess.run([step.loss, step.norm, step.update], feeds)
            values = sess.run({variable.op.name: variable for variable in tf.global_variables()})
    devices = {}
    for operation in built.get_operations():
        devices.setdefault(operation.type, set()).add(operation.device)
    return loss, norm, values, devices


@pytest.mark.slow
def test_build_for_local_workers_makes_the_same_step():
    """With dropout. Each worker computes on a device of its own, where a share of the variables is, and is updated."""
    loss, norm, values, _ = after_a_step(LocalWorkers(), batch_size=4, accumulate=1)
    found_loss, found_norm, found, devices = after_a_step(LocalWorkers(2), batch_size=2, accumulate=1, recompute=True)
    assert found_loss == pytest.approx(loss, rel=1e-6) and found_norm == pytest.approx(norm, rel=1e-5)
    assert_same_state(found, values)
    names = {'/device:CPU:0', '/device:CPU:1'}
    assert devices['VariableV2'] == devices['ApplyAdam'] == names <= devices['MatMul']


def test_spread_gives_each_device_an_equal_share():
    """A new variable goes where the fewest numbers are."""
    with tf.Graph().as_default(), tf.device(graph.spread(['/device:CPU:0', '/device:CPU:1'])):
        devices = [tf.Variable(tf.zeros([n])).device for n in (9, 4, 4, 4, 1)]
    assert devices == ['/device:CPU:%d' % i for i in (0, 1, 1, 1, 0)]


@pytest.mark.slow
def test_local_workers_train_as_one_does(models_dir, alone, capsys):
    """All in this process, without a server; one reports."""
    train.train(**flags_for(models_dir, 'local', workers=2, accumulate=2))
    stderr = capsys.readouterr().err
    assert stderr.count('starting from tiny; a step is 64 tokens') == stderr.count('step 6 of 6 is saved') == 1, stderr
    assert len(stderr.splitlines()) == 4 and 'port' not in stderr
    assert_trained_as(models_dir, 'local', alone)


@pytest.mark.slow
def test_cluster_needs_no_common_disk_and_may_change_its_size(models_dir, alone, tmp_path, monkeypatch, capsys):
    """Two machines start, and resume; then one machine ends the run, as one that was never moved.

    The other machine has the model to fine-tune and the text, under other names, but not the run that resumes.
    """
    shutil.copytree(os.path.join(models_dir, 'tiny'), str(tmp_path / 'models' / 'tiny'))
    shutil.copyfile(beside(models_dir, 'data.txt'), str(tmp_path / 'same.txt'))
    for steps in (2, 4):
        flags = flags_for(models_dir, 'moved', accumulate=2, steps=steps, decay=STEPS)
        elsewhere = dict(flags, data=str(tmp_path / 'same.txt'), models_dir=str(tmp_path / 'models'))
        assert train_together(monkeypatch, [flags, elsewhere]) == [None, None]
    folder = str(tmp_path / 'models' / 'moved')
    assert run_folder.last_save(folder) == 0 and sorted(os.listdir(folder)) == ['cache', 'training']
    capsys.readouterr()
    train.train(**flags_for(models_dir, 'moved', decay=STEPS, batch_size=2, accumulate=2))
    stderr = capsys.readouterr().err
    assert 'resuming from step 4 of 6' in stderr and 'order of the text' not in stderr
    assert '--workers 2 -> 1' in stderr
    assert_trained_as(models_dir, 'moved', alone)
    monkeypatch.setattr(train, 'fit', lambda *arguments: None)
    train.train(**flags_for(models_dir, 'moved', steps=8, workers=2))
    assert 'order of the text' in capsys.readouterr().err  # eight sequences per step, not four


# Faults

@pytest.mark.slow
def test_cluster_ends_when_a_worker_is_killed_in_a_step(forks, models_dir):
    """The chief ends with one line, which names the lost one. (The others then lose the chief.)"""
    addresses = free_addresses(2)
    flags = flags_for(models_dir, 'lost', accumulate=2)
    chief, dead = forks.run(worker(flags, addresses, 0), worker(flags, addresses, 1, DIES_IN_STEP_4))
    assert chief[0] == 1 and dead[0] == -signal.SIGKILL, chief
    message = 'worker 1, at %s, has ended; the same command, for all workers, resumes' % addresses[1]
    assert message in last_line(chief[2])
    assert run_folder.last_save(os.path.join(models_dir, 'lost')) == 2


@pytest.mark.slow
def test_cluster_resumes_from_the_save_before_if_the_chief_is_killed_while_saving(
        forks, models_dir, monkeypatch, capsys):
    """Saves are atomic with several workers, too. The other worker ends with one line."""
    addresses = free_addresses(2)
    flags = flags_for(models_dir, 'saving', accumulate=2)
    chief, other = forks.run(worker(flags, addresses, 0, DIES_WHILE_SAVING_STEP_4), worker(flags, addresses, 1))
    assert chief[0] == -signal.SIGKILL and other[0] == 1
    assert 'worker 0, at %s, has ended; the same' % addresses[0] in last_line(other[2]), other
    assert run_folder.last_save(os.path.join(models_dir, 'saving')) == 2
    monkeypatch.setattr(train, 'fit', lambda *arguments: None)
    train.train(**dict(flags, workers=2, steps=3))
    assert 'resuming from step 2 of 3' in capsys.readouterr().err


@pytest.mark.slow
def test_cluster_stops_after_the_same_step_when_one_worker_is_terminated(models_dir, monkeypatch, capsys):
    """As when one of several machines is shut down: SIGTERM for worker 1, and the chief saves.

    Training is not finished, so both end with the status of SIGTERM.
    """
    def one_step(run, batch, real=Run.one_step):
        if run.step == 2 and not run.cluster.is_chief:
            run.interrupted = signal.SIGTERM
        return real(run, batch)

    monkeypatch.setattr(Run, 'one_step', one_step)
    monkeypatch.setattr(process, 'interrupted_by', None)
    flags = flags_for(models_dir, 'drained', accumulate=1, save_every=1000)
    assert train_together(monkeypatch, [flags, flags]) == [None, None]
    assert process.interrupted_by == signal.SIGTERM
    assert 'step 3 of 6 is saved; the same command resumes' in capsys.readouterr().err
    assert run_folder.last_save(os.path.join(models_dir, 'drained')) == metrics_of(models_dir, 'drained')[-1]['step']


def test_wait_for_all_names_a_worker_that_does_not_start(monkeypatch):
    """With its address."""
    clock = pretended_network(monkeypatch, lambda now: None)
    monkeypatch.setattr(cluster, 'is_reachable', lambda address: address == 'a:1' or None)
    with pytest.raises(ValueError, match='worker 1 did not start at b:2 within 600 seconds'):
        Cluster(['a:1', 'b:2'], 0).wait_for_all()
    assert 600 < clock[0] < 601


def test_connect_reports_a_port_in_use():
    """Rather than sharing it with the process that has it."""
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match='port %d, .* worker 0, .*: Address already in use' % port):
            Cluster(['localhost:%d' % port, 'localhost:1'], 0).connect()


@pytest.mark.slow
def test_check_equal_names_what_differs(models_dir, monkeypatch):
    """All workers end with the same message."""
    with open(beside(models_dir, 'other.txt'), 'w') as file:
        file.write('another text ' * 100)
    addresses = free_addresses(3)
    flags = flags_for(models_dir, 'differing')
    all_flags = [flags, dict(flags, learning_rate=0.02, seed=3), dict(flags, data=beside(models_dir, 'other.txt'))]
    for error in train_together(monkeypatch, all_flags, addresses):
        assert isinstance(error, ValueError)
        for index, different in ((1, '--learning_rate, a different --seed'), (2, 'text of --data')):
            assert 'worker %d, at %s, has a different %s' % (index, addresses[index], different) in str(error)


@pytest.mark.slow
def test_cluster_ends_at_once_if_the_run_is_finished(models_dir, alone, monkeypatch, capsys):
    """Also a machine that has nothing on its disk."""
    flags = flags_for(models_dir, alone)
    os.makedirs(beside(models_dir, 'elsewhere'), exist_ok=True)
    monkeypatch.setattr(train, 'fit', None)
    assert train_together(monkeypatch, [flags, dict(flags, models_dir=beside(models_dir, 'elsewhere'))]) == [None, None]
    assert capsys.readouterr().err.count('has completed its 6 steps') == 1


@pytest.mark.slow
def test_cluster_ends_if_the_chief_cannot_prepare_the_run(models_dir, monkeypatch):
    """Each worker with a message of its own."""
    with open(beside(models_dir, 'short.txt'), 'w') as file:
        file.write('short')
    addresses = free_addresses(2)
    flags = flags_for(models_dir, 'unprepared', data=beside(models_dir, 'short.txt'))
    chief, other = train_together(monkeypatch, [flags, flags], addresses)
    assert isinstance(chief, ValueError) and 'short.txt has 6 tokens' in str(chief)
    assert isinstance(other, ValueError) and 'worker 0, at %s, has ended' % addresses[0] in str(other)
    assert not os.path.exists(os.path.join(models_dir, 'unprepared'))


@pytest.mark.slow
@pytest.mark.parametrize('slow', [0, 1])
def test_cluster_waits_for_a_worker_that_encodes_a_long_text(models_dir, monkeypatch, slow):
    """Longer than a worker may take to start; in processes that are forked while TensorFlow's server runs."""
    with open(beside(models_dir, 'long.txt'), 'w') as file:
        file.write('a long text, of many words\n' * 60)
    passed, waited, later = [], threading.Event(), [0]

    def check(worker, real=Cluster.check):
        real(worker)
        if later[0] and worker.index != slow:
            passed.append(worker)
            if len(passed) == 3:
                waited.set()

    def load_tokens(text_encoder, paths, folder, real=corpus.load_tokens):
        if folder.startswith(os.path.join(places[slow], '')):
            later[0] = 10 ** 6
            assert waited.wait(SECONDS)
        return real(text_encoder, paths, folder)

    monkeypatch.setattr(cluster, 'time', SimpleNamespace(time=lambda: time.time() + later[0], sleep=time.sleep))
    monkeypatch.setattr(Cluster, 'check', check)
    monkeypatch.setattr(corpus, 'load_tokens', load_tokens)
    monkeypatch.setattr(corpus, 'CHUNK', 100)
    monkeypatch.setattr(train, 'fit', lambda folder, options, cluster, *inputs: cluster.finish())
    places = [models_dir, beside(models_dir, 'elsewhere-%d' % slow)]
    shutil.copytree(os.path.join(models_dir, 'tiny'), os.path.join(places[1], 'tiny'))
    flags = flags_for(models_dir, 'long-%d' % slow, data=beside(models_dir, 'long.txt'))
    all_flags = [dict(flags, models_dir=place) for place in places]
    assert train_together(monkeypatch, all_flags, silence_seconds=float('inf')) == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize('own', [
    [('ab', 0), ('ba', 0)],  # both are worker 0
    [('abc', 0), ('cba', 1), ('acb', 1)]])  # two are worker 1
def test_connect_reports_an_index_that_two_workers_have(monkeypatch, own):
    """An index copied to another machine, or lists in another order: they would wait forever."""
    everyone, wait_for_all = threading.Barrier(len(own)), Cluster.wait_for_all

    def wait_for_all_threads(worker):
        wait_for_all(worker)
        everyone.wait(SECONDS)  # one that has given up cannot be reached

    monkeypatch.setattr(Cluster, 'wait_for_all', wait_for_all_threads)
    addresses = dict(zip('abc', free_addresses(3)))
    workers = [Cluster([addresses[name] for name in names], index) for names, index in own]
    for one, error in zip(workers, together(monkeypatch, Cluster.connect, workers, silence_seconds=1)):
        assert 'this one has index %d of %s' % (one.index, ', '.join(one.addresses)) in str(error), error
        assert isinstance(error, ValueError) and 'TF_CONFIG' in str(error)


@pytest.mark.slow
def test_connect_reports_different_lists_of_addresses(monkeypatch, capsys):
    """Even if they name the same machines. And each worker says which port is open, and to whom."""
    a, b = free_addresses(2)
    workers = [Cluster([a, b], 0), Cluster([a, b.replace('localhost', '127.0.0.1')], 1)]
    for error in together(monkeypatch, Cluster.connect, workers):
        assert 'has a different list of addresses in TF_CONFIG than worker 0' in str(error)
    said = sorted(capsys.readouterr().err.splitlines())
    assert len(said) == 2
    for index, address in enumerate((a, b)):
        port = address.split(':')[1]
        assert said[index].startswith('worker %d: port %s is open on all network interfaces' % (index, port))


# TF_CONFIG

def config(**changes):
    return json.dumps(dict({'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 1}}, **changes))


@pytest.mark.parametrize('text, addresses, index', [
    (config(), ['a:1', 'b:2'], 1),
    (config(cluster={'worker': ['b:2'], 'chief': ['a:1']}, task={'type': 'chief', 'index': 0}), ['a:1', 'b:2'], 0),
    (config(cluster={'worker': ['b:2', 'c:3'], 'master': ['a:1']}), ['a:1', 'b:2', 'c:3'], 2),
    (config(cluster={'worker': ['[::1]:1', 'b:2'], 'ps': []}, environment='cloud'), ['[::1]:1', 'b:2'], 1)])
def test_from_environment_reads_what_cloud_services_set(text, addresses, index):
    """Kubeflow, SageMaker and Vertex call the first worker chief or master, or worker 0."""
    found = from_environment(text)
    assert (found.addresses, found.index, found.is_chief) == (addresses, index, index == 0)


def test_from_environment_accepts_an_index_in_quotes():
    """Some services write it as a string."""
    assert from_environment(config(task={'type': 'worker', 'index': '1'})).index == 1


@pytest.mark.parametrize('text', [None, '', ' \n', '{}', 'null', config(
    cluster={'worker': ['a:1']}, task={'type': 'worker', 'index': 0})])
def test_from_environment_without_other_workers_is_one_worker(text):
    """Its methods do nothing but return what they are given."""
    found = from_environment(text)
    assert found.n_workers == 1 and found.is_chief and found.devices == ['']
    assert found.mean(['anything']) == ['anything'] and found.largest(True) == 1 and found.largest(0) == 0


@pytest.mark.parametrize('text, problem', [
    ('{', 'Expecting'), ('[1]', 'JSON object'), ('[]', 'JSON object'), ('0', 'JSON object'),
    ('[' * 10 ** 5, 'nested too deeply'), ('{"a":' * 10 ** 5, 'nested too deeply'),
    (config(cluster=3), 'JSON object'), (config(task=[1]), 'JSON object'),
    ('{"environment": "cloud"}', 'JSON object'), (config(cluster=None), 'JSON object'),
    ('{"cluster": {"worker": ["a:1"]}}', 'JSON object'), ('{"task": {"type": "worker", "index": 3}}', 'JSON object'),
    ('{"sparseCluster": {"worker": {"1": "a:1"}, "ps": []}, "task": {"type": "worker", "index": 1}}', 'JSON object'),
    (config(cluster={}), 'task is .* not one of'), (config(cluster={'worker': []}), 'task is .* not one of'),
    (config(cluster={'workers': ['a:1', 'b:2']}), '"workers" is not one of chief, master, worker'),
    (config(cluster={'worker': ['a:1', 'b:2'], 'Chief': ['c:3']}), '"Chief" is not one of'),
    (config(task={'type': ['worker'], 'index': 0}), 'is not one of'),
    (config(cluster={'worker': 'a:1'}), 'worker .* list'),
    (config(cluster={'worker': ['a:1', 'b']}), "'b' is not"),
    (config(cluster={'worker': ['a:1', 'a:1']}), "'a:1' is not .* one worker"),
    (config(cluster={'worker': ['a:1', 'b:0']}), "'b:0' is not"),
    (config(cluster={'worker': ['a:1', 'b:65536']}), "'b:65536' is not"),
    (config(cluster={'worker': ['a:1', 'b:70000']}), "'b:70000' is not"),
    (config(cluster={'worker': ['http://a:1', 'b:2']}), "'http://a:1' is not"),
    (config(cluster={'worker': ['a:1', 'b:2\n']}), r"'b:2\\n' is not"),
    (config(cluster={'worker': ['a:1', 'b\x1b:2']}), r"'b\\x1b:2' is not"),
    (config(task={'type': 'worker', 'index': '1\n'}), 'task is .* not one of'),
    (config(cluster={'worker': ['a:1', 'b:\u0663']}), "'b:\u0663' is not"),
    (config(cluster={'worker': ['a:1', 2]}), '2 is not'),
    (config(task={'type': 'worker', 'index': 2}), 'task is .* not one of'),
    (config(task={}), 'task is {}'),
    (config(task={'type': 'worker', 'index': 1.5}), 'task is .* not one of'),
    (config(task={'type': 'worker', 'index': True}), 'task is .* not one of'),
    (config(cluster={'worker': ['a:1']}, task={'type': 'worker', 'index': 7}), 'task is .* not one of'),
    (config(task={'type': 'worker'}), 'task is'),
    (config(task={'type': 'evaluator', 'index': 0}), 'all workers are equal'),
    (config(cluster={'worker': ['a:1', 'b:2'], 'ps': ['c:3']}), 'all workers are equal')])
def test_from_environment_refuses_in_one_line(text, problem):
    """With the value, what is wrong with it, and an example."""
    with pytest.raises(ValueError, match='TF_CONFIG is .*%s.*"host:port"' % problem):
        from_environment(text)


def test_from_environment_accepts_the_last_port():
    """65535 is a port."""
    assert from_environment(config(cluster={'worker': ['a:1', 'b:65535']})).addresses == ['a:1', 'b:65535']


def test_train_refuses_a_wrong_tf_config(models_dir, monkeypatch):
    """Without creating a folder."""
    monkeypatch.setenv('TF_CONFIG', '{"cluster": 3}')
    with pytest.raises(ValueError, match='TF_CONFIG is'):
        train.train(**flags_for(models_dir, 'wrong'))
    assert not os.path.exists(os.path.join(models_dir, 'wrong'))


def test_train_refuses_workers_and_tf_config(models_dir, monkeypatch):
    """Otherwise each machine would train a model of its own."""
    monkeypatch.setenv('TF_CONFIG', config())
    with pytest.raises(ValueError, match='--workers .*TF_CONFIG lists 2 workers'):
        train.train(**flags_for(models_dir, 'both', workers=2))
    assert not os.path.exists(os.path.join(models_dir, 'both'))


# GPUs

@pytest.mark.parametrize('visible, n', [('', 0), ('-1', 0), ('0,1', 2), ('GPU-8f2a, 3', 2)])
def test_n_visible_gpus_reads_cuda_visible_devices(monkeypatch, visible, n):
    """Numbers or names."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert cluster.n_visible_gpus() == n


@pytest.mark.parametrize('there', [[], ['/dev/nvidia3'], ['/dev/nvidia0', '/dev/nvidia1']])
def test_n_visible_gpus_counts_devices(monkeypatch, there):
    """Without CUDA_VISIBLE_DEVICES, TensorFlow uses all."""
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setattr(cluster.glob, 'glob', lambda pattern: there)
    assert cluster.n_visible_gpus() == len(there)


def test_local_workers_may_not_outnumber_the_gpus(models_dir, monkeypatch):
    """The error has both numbers."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    with pytest.raises(ValueError, match='--workers is 3,.* 2 GPUs'):
        train.train(**flags_for(models_dir, 'outnumbered', workers=3))
    assert not os.path.exists(os.path.join(models_dir, 'outnumbered'))


@pytest.mark.parametrize('visible, n, devices', [
    ('5,7,9', 2, ['/device:GPU:0', '/device:GPU:1']), ('5,7', 1, ['']), ('', 2, ['/device:CPU:0', '/device:CPU:1'])])
def test_local_workers_get_a_gpu_each(monkeypatch, visible, n, devices):
    """Of those that are visible, which TensorFlow numbers from 0. Without any, they are devices of the processor."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert LocalWorkers(n).devices == devices


@pytest.mark.parametrize('cores, threads', [(1, (1, 1)), (4, (4, 2)), (7, (7, 3))])
def test_local_workers_share_the_cores(monkeypatch, cores, threads):
    """As many operations at once as there are cores, each of which splits its work as for its worker's share."""
    monkeypatch.setattr(process, 'n_cores', lambda: cores)
    workers = LocalWorkers(2)
    workers.connect()
    assert workers.config.device_count['CPU'] == 2
    assert (workers.config.inter_op_parallelism_threads, workers.config.intra_op_parallelism_threads) == threads


# What is hard to provoke with real processes

def pretended_network(monkeypatch, answer):
    """Replace the network and the clock of a Cluster. answer: function of the time to what is_reachable() returns."""
    clock = [0.0]

    def sleep(seconds):
        clock[0] += seconds
        assert clock[0] < 1000

    monkeypatch.setattr(cluster, 'time', SimpleNamespace(time=lambda: clock[0], sleep=sleep))
    monkeypatch.setattr(cluster, 'is_reachable', lambda address: answer(clock[0]))
    return clock


def test_wait_for_all_reports_once_for_whom_it_waits(monkeypatch, capsys):
    """After ten seconds."""
    clock = pretended_network(monkeypatch, lambda now: now > 60)
    Cluster(['a:1', 'b:2'], 1).wait_for_all()
    (line,) = capsys.readouterr().err.splitlines()
    assert 'worker 0' in line and 'a:1' in line and clock[0] > 60


def test_watch_reports_a_machine_that_is_silent(monkeypatch):
    """Not one that is silent for a shorter time."""
    clock = pretended_network(monkeypatch, lambda now: now in (20, 40) or None)
    watching = Cluster(['a:1', 'b:2'], 1)
    watching.watch()
    with pytest.raises(ValueError, match='worker 0, at a:1, has not answered for 30 seconds; .*resumes'):
        watching.check()
    assert 70 < clock[0] < 73


def test_finish_exchanges_twice_and_the_second_time_may_fail(monkeypatch):
    """A worker that ended after the first exchange could cut off others that have not received its result."""
    deadlines = []

    def largest(number):
        deadlines.append(finishing.deadline)
        if len(deadlines) == 2:
            raise ValueError('the other one has ended')

    finishing = Cluster(['a:1', 'b:2'], 0)
    monkeypatch.setattr(finishing, 'largest', largest)
    finishing.finish()
    assert len(deadlines) == 2 and deadlines[0] == float('inf') and deadlines[1] < time.time() + 6


def test_is_reachable_needs_an_answer(monkeypatch):
    """The system accepts connections for a process that is stopped, and for one on a machine that only swaps."""
    monkeypatch.setattr(socket, 'create_connection', lambda address, timeout, real=socket.create_connection: real(
        address, timeout=timeout / 50))
    with socket.socket() as stopped:
        stopped.bind(('localhost', 0))
        address = 'localhost:%d' % stopped.getsockname()[1]
        assert is_reachable(address) is False
        stopped.listen(1)
        assert is_reachable(address) is None


class Crashes(dict):
    """The first crash comes right after someone has looked whether there was one."""

    def __bool__(self):
        found = len(self) > 0
        self[signal.SIGSEGV] = None
        return found


def test_watch_reports_a_crash_that_no_lost_worker_explains(monkeypatch):
    """Where the chief still answers. And a crash at any moment does not end the watching."""
    pretended_network(monkeypatch, lambda now: True)
    crashed = Cluster(['a:1', 'b:2'], 1)
    crashed.crashes = Crashes()
    crashed.watch()
    with pytest.raises(ValueError, match='TensorFlow has crashed; the same command, for all workers, resumes'):
        crashed.check()
