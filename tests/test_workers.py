"""train.py by several workers, as real processes: that they train as one does, and what becomes of faults."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from test_train import SCRIPT, arguments_of, beside, flags_of, losses_of, metrics_of, models_dir, start, weights_and_state
from training import local_workers, run_folder
from training.cluster import Cluster, check_port, from_environment

STEPS = 20
WORKER = '''
import os, signal, sys
sys.path.insert(0, %r)
import flags, train, checkpoint, training.cluster
from training.run import Run
%s
flags.run(train.train)
'''
DIES_IN_STEP_8 = '''
def one_step(run, batch, real=Run.one_step):
    if run.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(run, batch)
Run.one_step = one_step
'''
DIES_WHILE_SAVING_STEP_10 = '''
def replace(part, path, real=os.replace):
    if path.endswith('model.ckpt-10.index'):
        os.kill(os.getpid(), signal.SIGKILL)
    real(part, path)
os.replace = replace
'''


def flags_for(models_dir, run_name, **changes):
    """The flags of a run of 20 steps of four sequences."""
    return flags_of(models_dir, run_name, **dict(dict(batch_size=1, accumulate=4, steps=STEPS, save_every=5, dropout=0.2), **changes))


def finished(process, timeout=100):
    """(status, what it said on stderr)."""
    try:
        stderr = process.communicate(timeout=timeout)[1]
    finally:
        process.kill()
    return process.returncode, stderr


def worker(flags, addresses, index, code='', **environment):
    """Start a worker by TF_CONFIG, as on a machine of its own. code: what it runs before."""
    config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
    return subprocess.Popen([sys.executable, '-c', WORKER % (os.path.dirname(SCRIPT), code)] + arguments_of(flags),
                            env=dict(dict(os.environ, TF_CONFIG=json.dumps(config), OMP_NUM_THREADS='1'), **environment),
                            stderr=subprocess.PIPE, universal_newlines=True)


def all_finished(workers, timeout=100):
    """What finished() returns for each."""
    try:
        return [finished(process, timeout) for process in workers]
    finally:
        for process in workers:
            process.kill()


def workers_of(launcher):
    """The processes that one has started: {number of the worker: that of the process}."""
    found = {}
    for name in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/environ' % name, 'rb') as file:
                environment = dict(pair.split(b'=', 1) for pair in file.read().split(b'\0') if b'=' in pair)
        except OSError:  # it has ended, or is another user's
            continue
        if environment.get(local_workers.LAUNCHER.encode()) == b'%d' % launcher.pid:
            found[json.loads(environment[b'TF_CONFIG'].decode())['task']['index']] = int(name)
    return found


def wait_until(condition, process, seconds=60):
    """Wait until condition() holds, while a process runs."""
    deadline = time.time() + seconds
    while not condition():
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.05)


def wait_for_step(models_dir, run_name, step, process):
    path = os.path.join(models_dir, run_name, 'training', 'metrics.jsonl')
    wait_until(lambda: os.path.exists(path) and metrics_of_step(path) >= step, process)


def metrics_of_step(path):
    with open(path, encoding='utf-8') as file:
        return max([json.loads(line)['step'] for line in file if line.endswith('\n')] or [0])


def gone(processes):
    return not any(os.path.exists('/proc/%d' % number) for number in processes)


def assert_trained_as(models_dir, name, expected, steps=STEPS):
    """The same losses, weights and averages of Adam, but for rounding.

    The biases of keys have no gradient: they add the same to all scores of a query. Adam makes steps of what rounding leaves.
    """
    found, wanted = losses_of(models_dir, name), losses_of(models_dir, expected)
    assert [step for step, _, _ in found] == [step for step, _, _ in wanted] == list(range(1, steps + 1))
    assert np.allclose(np.array(found), np.array(wanted), rtol=1e-5)
    found, wanted = [weights_and_state(os.path.join(models_dir, run)) for run in (name, expected)]
    assert sorted(found) == sorted(wanted)
    for variable in wanted:
        difference, largest = np.abs(found[variable] - wanted[variable]), np.abs(wanted[variable]).max()
        if 'c_attn/b' in variable:
            difference = np.delete(difference.reshape(3, -1), 1, axis=0)
        assert difference.max() < 1e-4 * largest, variable


@pytest.fixture(scope='module')
def alone(models_dir):
    """The name of a run by one worker."""
    status, stderr = finished(start(flags_for(models_dir, 'alone')))
    assert status == 0, stderr
    return 'alone'


# The same training

@pytest.mark.parametrize('workers, batch_size, accumulate', [(2, 1, 2), (4, 1, 1)])
def test_workers_train_as_one_does(models_dir, alone, workers, batch_size, accumulate):
    """With dropout, and with the order of the data that one worker has; one of them reports."""
    name = 'by-%d-%d-%d' % (workers, batch_size, accumulate)
    status, stderr = finished(start(flags_for(models_dir, name, workers=workers, batch_size=batch_size, accumulate=accumulate)))
    assert status == 0 and stderr.count('starting from tiny; a step is 64 tokens') == 1, stderr
    assert stderr.count('step 20 of 20 is saved') == 1 and 'arning' not in stderr
    assert_trained_as(models_dir, name, alone)


def test_a_killed_run_goes_on_with_another_number_of_workers(models_dir, alone):
    """Two workers, of which one dies in step 8; one, with larger batches; then four: as one that nothing stopped."""
    addresses = local_workers.free_addresses(2)
    flags = flags_for(models_dir, 'moved', accumulate=2)
    chief, other = all_finished([worker(flags, addresses, 0), worker(flags, addresses, 1, DIES_IN_STEP_8)])
    assert chief[0] == 1 and run_folder.last_save(os.path.join(models_dir, 'moved')) == 5
    status, stderr = finished(start(flags_for(models_dir, 'moved', steps=12, decay=STEPS, batch_size=2, accumulate=2)))
    assert status == 0 and 'going on from step 5 of 12' in stderr and 'the order of the text changes' not in stderr, stderr
    status, stderr = finished(start(flags_for(models_dir, 'moved', workers=4, accumulate=1)))
    assert status == 0 and 'going on from step 12 of 20' in stderr and 'the order of the text changes' not in stderr, stderr
    assert '--workers 1 -> 4' in stderr
    assert_trained_as(models_dir, 'moved', alone)
    status, stderr = finished(start(flags_for(models_dir, 'moved', steps=22, workers=2)))
    assert status == 0 and 'the order of the text changes' in stderr  # eight sequences a step, not four


def test_workers_need_no_common_disk(models_dir, alone, tmp_path):
    """The other has the model to start from and the text, under other names, and not the run that goes on."""
    shutil.copytree(os.path.join(models_dir, 'tiny'), str(tmp_path / 'models' / 'tiny'))
    shutil.copyfile(beside(models_dir, 'data.txt'), str(tmp_path / 'same.txt'))
    addresses = local_workers.free_addresses(2)
    for steps in (5, STEPS):
        flags = flags_for(models_dir, 'apart', accumulate=2, steps=steps, decay=STEPS)
        elsewhere = dict(flags, data=str(tmp_path / 'same.txt'), models_dir=str(tmp_path / 'models'))
        (status, stderr), (other_status, other) = all_finished([worker(flags, addresses, 0), worker(elsewhere, addresses, 1)])
        assert status == 0 and other_status == 0, stderr + other
    assert_trained_as(models_dir, 'apart', alone)
    folder = str(tmp_path / 'models' / 'apart')
    assert run_folder.last_save(folder) is None and sorted(os.listdir(folder)) == ['cache', 'training']


# Faults

def test_all_end_when_a_worker_is_killed_in_a_step(models_dir):
    """Three machines: within a minute, each with one line; the chief names the lost one, the others the chief."""
    addresses = local_workers.free_addresses(3)
    flags = flags_for(models_dir, 'lost', accumulate=1)
    began = time.time()
    chief, dead, other = all_finished([worker(flags, addresses, index, DIES_IN_STEP_8 if index == 1 else '')
                                       for index in range(3)])
    assert time.time() - began < 60
    assert chief[0] == other[0] == 1 and dead[0] == -signal.SIGKILL
    for (_, stderr), lost in ((chief, 1), (other, 0)):
        assert stderr.strip().split('\n')[-1].endswith(
            'worker %d, at %s, has ended; the same command, for all workers, goes on from the last save' % (lost, addresses[lost]))
        assert 'Traceback' not in stderr
    assert run_folder.last_save(os.path.join(models_dir, 'lost')) == 5


def test_the_save_before_counts_when_the_chief_is_killed_while_saving(models_dir):
    addresses = local_workers.free_addresses(2)
    flags = flags_for(models_dir, 'saving', accumulate=1)
    chief, other = all_finished([worker(flags, addresses, 0, DIES_WHILE_SAVING_STEP_10), worker(flags, addresses, 1)])
    assert chief[0] == -signal.SIGKILL and other[0] == 1 and 'worker 0, at %s, has ended' % addresses[0] in other[1]
    assert run_folder.last_save(os.path.join(models_dir, 'saving')) == 5
    status, stderr = finished(start(dict(flags, workers=2)))
    assert status == 0 and 'going on from step 5 of 20' in stderr, stderr


@pytest.mark.parametrize('index', [0, 1])
def test_local_workers_all_end_with_one_line_when_one_is_killed(models_dir, index):
    name = 'local-%d' % index
    launcher = start(flags_for(models_dir, name, workers=3, accumulate=1, steps=2000))
    wait_for_step(models_dir, name, 6, launcher)
    processes = workers_of(launcher)
    assert sorted(processes) == [0, 1, 2]
    os.kill(processes[index], signal.SIGKILL)
    status, stderr = finished(launcher)
    assert status == 1 and gone(processes.values())
    assert [line for line in stderr.split('\n') if 'ended' in line] == [
        'train.py: worker %d was ended by signal 9; the same command goes on from the last save' % index], stderr
    assert run_folder.last_save(os.path.join(models_dir, name)) >= 5


def test_local_workers_end_with_a_launcher_that_is_killed(models_dir):
    launcher = start(flags_for(models_dir, 'orphans', workers=2, steps=2000))
    wait_for_step(models_dir, 'orphans', 1, launcher)
    processes = workers_of(launcher)
    launcher.kill()
    deadline = time.time() + 20
    while not gone(processes.values()):
        assert time.time() < deadline
        time.sleep(0.1)


def test_ctrl_c_saves_what_all_workers_have_learnt(models_dir):
    launcher = start(flags_for(models_dir, 'stopped', workers=2, accumulate=2, steps=2000, save_every=1000))
    wait_for_step(models_dir, 'stopped', 3, launcher)
    launcher.send_signal(signal.SIGINT)
    status, stderr = finished(launcher)
    assert status == 0 and stderr.count('stopping: what is learnt is saved first') == 1 and 'Traceback' not in stderr, stderr
    saved = run_folder.last_save(os.path.join(models_dir, 'stopped'))
    assert saved == metrics_of(models_dir, 'stopped')[-1]['step'] and 'step %d of 2000 is saved' % saved in stderr


def test_a_worker_that_stops_by_itself_stops_all_after_the_same_step(models_dir):
    """As when one of several machines is to be shut down: SIGTERM for worker 1, and worker 0 saves."""
    addresses = local_workers.free_addresses(2)
    flags = flags_for(models_dir, 'drained', accumulate=1, steps=2000, save_every=1000)
    chief, other = worker(flags, addresses, 0), worker(flags, addresses, 1)
    wait_for_step(models_dir, 'drained', 3, chief)
    other.send_signal(signal.SIGTERM)
    (status, stderr), (other_status, _) = all_finished([chief, other])
    assert status == other_status == 0 and 'is saved; the same command goes on' in stderr, stderr


def test_a_worker_that_never_comes_is_named_with_its_address(models_dir):
    addresses = local_workers.free_addresses(2)
    code = 'training.cluster.ARRIVAL_SECONDS = 2'
    for index, missing in ((0, 1), (1, 0)):
        status, stderr = finished(worker(flags_for(models_dir, 'missing'), addresses, index, code))
        assert status == 1 and 'Traceback' not in stderr
        assert stderr.strip().split('\n')[-1].endswith('worker %d did not come to %s within 2 seconds; start it there, or correct '
                                                       'TF_CONFIG' % (missing, addresses[missing])), stderr


def test_a_port_in_use_is_told(models_dir):
    with socket.socket() as taken:
        taken.bind(('', 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        status, stderr = finished(worker(flags_for(models_dir, 'taken'), ['localhost:%d' % port, 'localhost:1'], 0))
    assert status == 1 and 'Traceback' not in stderr
    assert 'port %d, which TF_CONFIG gives to worker 0, cannot be used: Address already in use' % port in stderr


@pytest.mark.parametrize('changes, another', [
    ({'learning_rate': 0.02, 'seed': 3}, '--learning_rate, another --seed'), ({'data': 'other.txt'}, 'text of --data')])
def test_workers_that_differ_say_in_what(models_dir, changes, another):
    with open(beside(models_dir, 'other.txt'), 'w') as file:
        file.write('another text ' * 100)
    if 'data' in changes:
        changes = {'data': beside(models_dir, 'other.txt')}
    addresses = local_workers.free_addresses(2)
    flags = flags_for(models_dir, 'differing')
    for status, stderr in all_finished([worker(flags, addresses, 0), worker(dict(flags, **changes), addresses, 1)]):
        assert status == 1 and 'Traceback' not in stderr
        assert stderr.strip().split('\n')[-1].endswith('worker 1, at %s, has another %s than worker 0; start all workers with the '
                                                       'same files and flags' % (addresses[1], another)), stderr


def test_what_a_local_worker_cannot_do_is_said_once(models_dir, tmp_path):
    status, stderr = finished(start(flags_for(models_dir, 'refused', workers=2, model_name='missing')))
    assert status == 1 and 'Traceback' not in stderr
    lines = [line for line in stderr.split('\n') if 'missing' in line]
    assert len(lines) == 1 and lines[0].startswith('train.py: '), stderr


def test_what_all_local_workers_meet_with_is_said_once(models_dir):
    """Worker 1 may be faster."""
    status, stderr = finished(start(flags_for(models_dir, 'refused', workers=2, train_only='nothing')))
    assert status == 1 and 'Traceback' not in stderr and stderr.count('is found in no name of a variable') == 1, stderr


def test_what_a_local_worker_alone_meets_with_is_shown(models_dir, capfd):
    with open(beside(models_dir, 'said.txt'), 'w+b') as said:
        said.write(b'some warning\ntrain.py: the disk is full\n')
        with pytest.raises(SystemExit):
            local_workers.raise_end(3, 1, said)
    assert capfd.readouterr().err == 'worker 3: train.py: the disk is full\n'


def test_a_finished_run_started_again_ends_at_once(models_dir):
    """Of local workers and of several machines, the second of which has no part of its disk."""
    flags = flags_for(models_dir, 'done', accumulate=2, steps=2)
    status, stderr = finished(start(dict(flags, workers=2)))
    assert status == 0, stderr
    began = time.time()
    status, stderr = finished(start(dict(flags, workers=2)))
    assert status == 0 and stderr.count('has its 2 steps') == 1, stderr
    addresses = local_workers.free_addresses(2)
    os.makedirs(beside(models_dir, 'elsewhere'), exist_ok=True)
    other_flags = dict(flags, models_dir=beside(models_dir, 'elsewhere'))
    for status, stderr in all_finished([worker(flags, addresses, 0), worker(other_flags, addresses, 1)]):
        assert status == 0 and 'Traceback' not in stderr, stderr
    assert time.time() - began < 50


def test_what_worker_0_cannot_prepare_ends_the_others_too(models_dir):
    with open(beside(models_dir, 'short.txt'), 'w') as file:
        file.write('short')
    addresses = local_workers.free_addresses(2)
    flags = flags_for(models_dir, 'unprepared', data=beside(models_dir, 'short.txt'))
    (status, stderr), (other_status, other) = all_finished([worker(flags, addresses, index) for index in range(2)], timeout=50)
    assert status == 1 and 'give more text' in stderr
    assert other_status == 1 and 'worker 0, at %s, has ended' % addresses[0] in other and 'Traceback' not in other, other
    assert not os.path.exists(os.path.join(models_dir, 'unprepared'))


@pytest.mark.parametrize('slow', [0, 1])
def test_workers_wait_for_one_that_encodes_a_long_text(models_dir, slow):
    """Longer than a worker may take to start; by processes of its own, which are forked while TensorFlow's server runs."""
    with open(beside(models_dir, 'long.txt'), 'w') as file:
        file.write('a long text, of many words\n' * 60)
    patience, code = 'training.cluster.ARRIVAL_SECONDS = 5', '''
import corpus, time
corpus.CHUNK = 100
def encode(encoder, chunk, real=corpus._encode_chunk):
    time.sleep(1)
    return real(encoder, chunk)
corpus._encode_chunk = encode
'''
    addresses = local_workers.free_addresses(2)
    places = [models_dir, beside(models_dir, 'elsewhere-%d' % slow)]
    shutil.copytree(os.path.join(models_dir, 'tiny'), os.path.join(places[1], 'tiny'))
    flags = flags_for(models_dir, 'long-%d' % slow, data=beside(models_dir, 'long.txt'), steps=2)
    workers = [worker(dict(flags, models_dir=places[index]), addresses, index, patience + (code if index == slow else ''),
                      OMP_NUM_THREADS='2') for index in range(2)]
    for status, stderr in all_finished(workers):
        assert status == 0, stderr


@pytest.mark.parametrize('own', [
    [(['a', 'b'], 0), (['b', 'a'], 0)],  # both are worker 0
    [(['a', 'b', 'c'], 0), (['c', 'b', 'a'], 1), (['a', 'c', 'b'], 1)]])  # two are worker 1
def test_workers_that_take_each_other_for_someone_else_say_so(models_dir, own):
    """An index copied to another machine, or lists in another order: they would wait for ever."""
    addresses = dict(zip('abc', local_workers.free_addresses(3)))
    workers = [worker(flags_for(models_dir, 'confused'), [addresses[name] for name in names], index,
                      'training.cluster.SILENCE_SECONDS = 5') for names, index in own]
    for (names, index), (status, stderr) in zip(own, all_finished(workers, timeout=50)):
        assert status == 1 and 'Traceback' not in stderr
        assert stderr.strip().split('\n')[-1].endswith(
            'in TF_CONFIG give all of them the same list of addresses, and each an index of its own: this one has index %d of %s'
            % (index, ', '.join(addresses[name] for name in names))), stderr


def test_another_list_of_addresses_is_told(models_dir):
    a, b = local_workers.free_addresses(2)
    flags = flags_for(models_dir, 'listed')
    for status, stderr in all_finished([worker(flags, [a, b], 0), worker(flags, [a, b.replace('localhost', '127.0.0.1')], 1)]):
        assert status == 1 and 'has another list of addresses in TF_CONFIG than worker 0' in stderr, stderr


# TF_CONFIG

def config(**changes):
    return json.dumps(dict({'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 1}}, **changes))


@pytest.mark.parametrize('text, addresses, index', [
    (config(), ['a:1', 'b:2'], 1),
    (config(cluster={'worker': ['b:2'], 'chief': ['a:1']}, task={'type': 'chief', 'index': 0}), ['a:1', 'b:2'], 0),
    (config(cluster={'worker': ['b:2', 'c:3'], 'master': ['a:1']}), ['a:1', 'b:2', 'c:3'], 2),
    (config(cluster={'worker': ['[::1]:1', 'b:2'], 'ps': []}, environment='cloud'), ['[::1]:1', 'b:2'], 1)])
def test_all_that_sets_tf_config_is_understood(text, addresses, index):
    """Kubeflow, SageMaker and Vertex call the first one chief or master, or worker 0."""
    found = from_environment(text)
    assert (found.addresses, found.index, found.is_chief) == (addresses, index, index == 0)


def test_an_index_may_stand_between_quotes():
    assert from_environment(config(task={'type': 'worker', 'index': '1'})).index == 1


@pytest.mark.parametrize('text', [None, '', '{}', config(cluster={}), config(cluster={'worker': ['a:1']}, task={
    'type': 'worker', 'index': 0})])
def test_without_other_workers_there_is_no_cluster(text):
    found = from_environment(text)
    assert found.n_workers == 1 and found.is_chief and found.device is None
    assert found.mean(['anything']) == ['anything'] and found.any(True) is True and found.any(False) is False


@pytest.mark.parametrize('text, said', [
    ('{', 'Expecting'), ('[1]', 'no object'), ('null', 'no object'), (config(cluster=3), 'no object'),
    (config(task=[1]), 'no object'),
    (config(cluster={'worker': 'a:1'}), 'worker is no list'),
    (config(cluster={'worker': ['a:1', 'b']}), "'b' is not the address"),
    (config(cluster={'worker': ['a:1', 'a:1']}), "'a:1' is not the address of one worker"),
    (config(cluster={'worker': ['a:1', 'b:70000']}), "'b:70000' is not"),
    (config(cluster={'worker': ['http://a:1', 'b:2']}), "'http://a:1' is not"),
    (config(cluster={'worker': ['a:1', 'b:\u0663']}), "'b:\u0663' is not"), (config(cluster={'worker': ['a:1', 2]}), '2 is not'),
    (config(task={'type': 'worker', 'index': 2}), 'task is .*which is none of them'), (config(task={}), 'task is {}'),
    (config(task={'type': 'worker', 'index': 1.5}), 'task is .*which is none of them'),
    (config(task={'type': 'worker', 'index': True}), 'task is .*which is none of them'),
    (config(cluster={'worker': ['a:1']}, task={'type': 'worker', 'index': 7}), 'task is .*which is none of them'),
    (config(task={'type': 'worker'}), 'task is'), (config(task={'type': 'evaluator', 'index': 0}), 'all workers are equal'),
    (config(cluster={'worker': ['a:1', 'b:2'], 'ps': ['c:3']}), 'all workers are equal')])
def test_a_wrong_tf_config_is_one_line(text, said):
    with pytest.raises(ValueError, match='TF_CONFIG is .*%s.*it should be like' % said):
        from_environment(text)


def test_a_wrong_tf_config_ends_the_script(models_dir):
    process = subprocess.Popen([sys.executable, SCRIPT] + arguments_of(flags_for(models_dir, 'wrong')), stderr=subprocess.PIPE,
                               env=dict(os.environ, TF_CONFIG='{"cluster": 3}'), universal_newlines=True)
    status, stderr = finished(process)
    assert status == 1 and stderr.startswith('train.py: TF_CONFIG is') and stderr.count('\n') == 1
    assert not os.path.exists(os.path.join(models_dir, 'wrong'))


def test_a_free_address_is_one_that_neither_a_server_nor_the_system_has_taken():
    """Between the question and the start of a worker, the system gives ports of its own range to whoever connects."""
    with open('/proc/sys/net/ipv4/ip_local_port_range', encoding='utf-8') as file:
        first = int(file.read().split()[0])
    addresses = local_workers.free_addresses(50)
    assert len(set(addresses)) == 50
    for address in addresses:
        host, port = address.split(':')
        assert host == 'localhost' and 1024 <= int(port) < first
        check_port(address, 0)


def test_a_port_that_is_taken_is_no_free_address(monkeypatch):
    with socket.socket() as taken:
        taken.bind(('', 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(local_workers.random.SystemRandom, 'sample', lambda self, ports, n: [port, 1, port])
        assert 'localhost:%d' % port not in local_workers.free_addresses(3)


# GPUs

@pytest.mark.parametrize('visible, gpus', [('', []), ('-1', []), ('0,1', ['0', '1']), ('GPU-8f2a, 3', ['GPU-8f2a', '3'])])
def test_local_workers_take_the_gpus_that_are_visible(monkeypatch, visible, gpus):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert local_workers.visible_gpus() == gpus


@pytest.mark.parametrize('there, gpus', [([], []), (['/dev/nvidia0', '/dev/nvidia1'], ['0', '1']), (['/dev/nvidia3'], ['0'])])
def test_gpus_have_the_numbers_that_cuda_gives_them(monkeypatch, there, gpus):
    """Of those that are there: in a container the only one may be the machine's fourth."""
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setattr(local_workers.glob, 'glob', lambda pattern: there)
    assert local_workers.visible_gpus() == gpus


def test_more_local_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    with pytest.raises(ValueError, match='--workers is 3, and this machine has 2 GPUs'):
        local_workers.run(SCRIPT, SimpleNamespace(workers=3))


def test_each_local_worker_has_a_gpu_of_its_own(monkeypatch):
    started = []
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7,9')

    def popen(command, env, **options):
        started.append((json.loads(env['TF_CONFIG'])['task']['index'], env['CUDA_VISIBLE_DEVICES']))
        return SimpleNamespace(poll=lambda: 0, kill=lambda: None, wait=lambda: None)

    monkeypatch.setattr(subprocess, 'Popen', popen)
    local_workers.run(SCRIPT, SimpleNamespace(workers=2))
    assert started == [(0, '5'), (1, '7')]


def test_a_crash_that_no_lost_worker_explains_is_told(monkeypatch):
    """Where worker 0 still answers."""
    monkeypatch.setattr('training.cluster.SILENCE_SECONDS', 0)
    with socket.socket() as chief:
        chief.bind(('localhost', 0))
        chief.listen(1)
        cluster = Cluster(['localhost:%d' % chief.getsockname()[1], 'localhost:1'], 1)
        cluster.crashes[signal.SIGSEGV] = None
        cluster.watch()
    with pytest.raises(ValueError, match='TensorFlow has crashed; the same command, for all workers, goes on'):
        cluster.check()
