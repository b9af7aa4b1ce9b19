"""gpt2/generation/on_ray.py: a dataset made on Ray has the same files, whatever fails on the way."""
import glob
import importlib.util
import json
import os
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest

import generate_dataset
from gpt2.generation import on_ray, plan, store
from gpt2.system import files
from helpers.paths import SRC, TESTS
from helpers.processes import SECONDS, environment, finished, is_running

ROWS, SHARDS = 12, 6
NEEDS_RAY = 'needs ray: pip install -r tests/requirements.txt'
FLAGS = dict(model_name='tiny', nsamples=ROWS, shards=SHARDS, batch_size=2, length=6, cores=1)


@pytest.mark.parametrize('machines, cores, expected', [
    ([{'CPU': 3.0}, {'CPU': 3.0}], 2, (2, 0)),  # not six cores by two: a model is on one machine
    ([{'CPU': 2.0}], 3, (0, 0)), ([{'memory': 1.0}], 1, (0, 0)),
    ([{'CPU': 16.0, 'GPU': 8.0}], 16, (1, 1)), ([{'CPU': 16.0, 'GPU': 8.0}], 2, (8, 1)),
    ([{'CPU': 16.0, 'GPU': 8.0}], 1, (8, 1)),
    ([{'CPU': 64.0}, {'CPU': 4.0, 'GPU': 1.0}], 2, (1, 1)), ([{'CPU': 64.0}, {'CPU': 4.0, 'GPU': 1.0}], 8, (0, 1))])
def test_capacity_counts_models_that_fit_on_one_machine(machines, cores, expected):
    """With their cores and their GPU."""
    assert on_ray.capacity(machines, cores) == expected


def test_max_cores_counts_machines_with_a_gpu():
    machines = [{'CPU': 64.0}, {'CPU': 4.0, 'GPU': 1.0}, {'memory': 1.0}]
    assert [on_ray.max_cores(machines, 0), on_ray.max_cores(machines, 1)] == [64, 4]


@pytest.mark.slow
def test_actor_rejects_another_model_on_its_machine(tmp_path, flat_models):
    """Its rows would be mixed with those of the model that the manifest describes."""
    settings = dict(model_name='tiny', model='0')
    actor = on_ray.actor_class(settings, flat_models, str(tmp_path / 'rows'))()
    with pytest.raises(ValueError, match='%s is not the same on all machines' % flat_models):
        actor.make('00000-of-00001.jsonl', plan.rows_from_nothing(1, 0))
    assert not (tmp_path / 'rows').exists()


def test_make_shards_gives_actors_the_address_with_its_password(monkeypatch):
    """Which no message has."""
    def actor_class(settings, models_dir, out):
        raise RuntimeError(out)

    errors = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)
    monkeypatch.setattr(on_ray, 'actor_class', actor_class)
    monkeypatch.setitem(sys.modules, 'ray', SimpleNamespace(
        nodes=lambda: [{'Alive': True, 'Resources': {'CPU': 1}}], shutdown=lambda: None, exceptions=errors,
        remote=lambda **_: None))
    bucket = store.Bucket(None, '/rows', 'ftp://me:secret@host/rows')
    with pytest.raises(RuntimeError, match='^ftp://me:secret@host/rows$'):
        list(on_ray.make_shards(plan.Dataset(bucket, {'cores': 1}, 'models', {}), ['a'], can_grow=True))


# On a Ray that these tests share

# For Ray's processes: a starved one is given up after minutes, one that has ended after seconds, none for its memory.
PATIENT = dict(RAY_health_check_period_ms='100', RAY_health_check_failure_threshold='50',
               RAY_health_check_timeout_ms='10000', RAY_memory_monitor_refresh_ms='0',
               RAY_worker_niceness='0')  # by default 15: beside other work an actor hardly runs


@pytest.fixture(scope='module')
def cluster():
    """A Ray cluster on this machine: one node with one core."""
    pytest.importorskip('ray', reason=NEEDS_RAY)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(name, value)
        patch.setenv('PYTHONPATH', SRC)  # of the actors, which for a command is on their path as the script's folder
        from ray import cluster_utils
        from ray._private import node, services
        # Where it waits for 30 seconds, which a busy machine may need to start a node, it waits for ten minutes.
        patch.setattr(node, 'time', SimpleNamespace(**dict(vars(time), monotonic=lambda: time.monotonic() / 20)))
        for waiting in cluster_utils.Cluster._wait_for_node, getattr(services, 'wait_for_node', None):
            if waiting:
                patch.setattr(waiting, '__defaults__', (SECONDS,))
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={
            'num_cpus': 1, 'include_dashboard': False})
        yield cluster
        cluster.shutdown()


@pytest.fixture
def make(cluster, tmp_path, flat_models, monkeypatch):
    """A function that makes a dataset on the cluster, with this process as its driver, and returns its files."""
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(ray=cluster.address, **changes):
        flags = dict(FLAGS, models_dir=flat_models, ray=ray)
        flags.update(changes)
        generate_dataset.generate_dataset(str(tmp_path / 'rows'), **flags)
        return files_in(tmp_path / 'rows')

    yield call
    for number, handler in handlers.items():  # Ray has set its own
        signal.signal(number, handler)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, flat_models):
    """The files that are made without Ray."""
    folder = tmp_path_factory.mktemp('undisturbed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OMP_NUM_THREADS', '2')
        generate_dataset.generate_dataset(str(folder), models_dir=flat_models, **FLAGS)
    return files_in(folder)


def files_in(folder):
    """{name: bytes} of the files of rows in a folder."""
    return {path.name: path.read_bytes() for path in folder.glob('0*.jsonl')}


def killing_itself(marker, n_times, original=on_ray.actor_class):
    """An on_ray.actor_class whose processes kill themselves when they make the first shard, n_times in all."""
    def actor_class(*arguments):
        class Killed(original(*arguments)):
            def make(self, name, rows):
                import os
                import signal
                for number in range(n_times):
                    if name.startswith('00000') and not os.path.exists('%s%d' % (marker, number)):
                        open('%s%d' % (marker, number), 'w').close()
                        os.kill(os.getpid(), signal.SIGKILL)
                return super().make(name, rows)

        return Killed

    return actor_class


@pytest.mark.slow
def test_on_ray_makes_the_shard_of_a_lost_process_again(make, undisturbed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(on_ray, 'actor_class', killing_itself(tmp_path / 'killed', 1))
    assert make() == undisturbed
    assert '00000-of-00006.jsonl: its process was killed; trying again\n' in capsys.readouterr().err


@pytest.mark.slow
def test_on_ray_gives_up_a_shard_that_kills_its_process_each_time(make, tmp_path, monkeypatch):
    monkeypatch.setattr(on_ray, 'actor_class', killing_itself(tmp_path / 'killed', 9))
    with pytest.raises(ValueError, match='00000-of-00006.jsonl: .* killed 4 times'):
        make()
    assert len(list(tmp_path.glob('killed*'))) == 4


@pytest.mark.slow
def test_on_ray_makes_the_shard_of_a_lost_machine_elsewhere(make, cluster, undisturbed, monkeypatch):
    """The node has its own address: Ray 2.4 connects our process to any node with this machine's address."""
    node = cluster.add_node(num_cpus=1, include_dashboard=False, node_ip_address='127.0.0.2')

    def and_lose_the_node(ray, actors, shards, distribute=on_ray.distribute):
        assert len(actors) == 2
        for made in distribute(ray, actors, shards):
            if made[-1] and node in cluster.worker_nodes:
                cluster.remove_node(node, allow_graceful=False)
            yield made

    monkeypatch.setattr(on_ray, 'distribute', and_lose_the_node)
    assert make() == undisturbed
    assert node not in cluster.worker_nodes


INTERRUPTED_AFTER_A_SHARD = """
import json
from helpers.processes import below, listening
from gpt2.generation import on_ray
from gpt2.system import progress
from generate_dataset import generate_dataset as main

def distribute(*arguments, original=on_ray.distribute):
    for made in original(*arguments):
        yield made
        if made[-1]:
            with open(%r, 'w') as file:
                json.dump([sorted(below(os.getpid())), listening(below(os.getpid()))], file)
            os.kill(os.getpid(), %d)
            time.sleep(%d)

on_ray.distribute = distribute
on_ray.PATIENCE_SECONDS = progress.REPORT_EVERY_SECONDS = float('inf')
"""


def assert_says_how_to_continue(stderr, out):
    """In one line, with what is complete. Ray may print others."""
    found = re.search('^script.py: stopped; %s has ([0-9]) of 6 files, ([0-9]+) of 12 rows; run the same command to '
                      'continue$' % out, stderr.decode('utf-8'), re.MULTILINE)
    assert found and int(found.group(2)) == 2 * int(found.group(1)) >= 2, stderr
    assert b'Traceback' not in stderr


@pytest.mark.slow
def test_on_ray_ends_at_once_after_ctrl_c(forks, cluster, tmp_path, flat_models):
    out = str(tmp_path / 'rows')
    flags = ['--%s=%s' % flag for flag in dict(FLAGS, models_dir=flat_models, ray=cluster.address, out=out).items()]
    text = INTERRUPTED_AFTER_A_SHARD % (str(tmp_path / 'processes.json'), signal.SIGINT, SECONDS)
    (status, _, stderr), = forks.run((text, flags, ['out'], PATIENT))
    assert status == 130, stderr  # Ray prints on stdout what becomes of other machines
    assert_says_how_to_continue(stderr, out)


@pytest.mark.slow
def test_on_ray_waits_for_a_cluster_to_grow(make, cluster, monkeypatch):
    """With one line that says so."""
    lines = []

    def grow(line):
        lines.append(line)
        cluster.add_node(num_cpus=3, include_dashboard=False)

    monkeypatch.setattr(on_ray, 'PATIENCE_SECONDS', 0)
    monkeypatch.setattr(on_ray, 'report', grow)
    try:
        assert len(make(workers=1, cores=3)) == SHARDS
    finally:
        for node in list(cluster.worker_nodes):
            cluster.remove_node(node)
    assert len(lines) == 1 and 'waiting for room' in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize('flags', [{}, {'workers': 1}])
def test_on_ray_local_reports_a_model_that_does_not_fit(make, cluster, tmp_path, monkeypatch, flags):
    """Even with --workers: a Ray that we start here cannot grow."""
    monkeypatch.setattr(on_ray, 'connect', lambda address, connect=on_ray.connect: connect(cluster.address))
    with pytest.raises(ValueError, match='cores is 99; the largest machine of the cluster has 1;'):
        make(ray='local', cores=99, **flags)
    assert not (tmp_path / 'rows').exists()


@pytest.mark.slow
def test_on_ray_raises_the_error_of_an_actor(make, tmp_path):
    (tmp_path / 'rows').mkdir()
    with files.folder_lock(str(tmp_path / 'rows'), None, '.00000-of-00006.jsonl.lock'):
        with pytest.raises(ValueError, match='00000-of-00006.jsonl in %s is being made by' % (tmp_path / 'rows')):
            make()


@pytest.mark.slow
def test_on_ray_reports_a_cluster_that_does_not_answer(make, tmp_path):
    with pytest.raises(ValueError, match='no Ray cluster at 127.0.0.1:1: '):
        make(ray='127.0.0.1:1')
    assert not (tmp_path / 'rows').exists()


@pytest.mark.slow
def test_ray_leaves_no_poller_in_processes_of_other_tests(make, cluster):
    """Which would print errors of gRPC into the stderr that a test compares."""
    on_ray.connect(cluster.address)
    sys.modules['ray'].shutdown()
    threads, other_end = os.pipe()
    child = os.fork()
    if not child:
        for path in glob.glob('/proc/self/task/*/comm'):
            with open(path) as file:
                os.write(other_end, file.read().encode())
        os._exit(0)
    os.waitpid(child, 0)
    names = os.read(threads, 2 ** 16).decode()
    assert names and 'grpc' not in names


def test_connect_starts_ray_again_on_a_busy_machine(monkeypatch):
    """Ray waits for itself for 30 seconds. Other errors are no reason to try again."""
    started = []

    def init(**_):
        started.append('')
        raise RuntimeError(errors[len(started) - 1])

    monkeypatch.setattr(on_ray, 'keep_local', lambda: None)
    monkeypatch.setitem(sys.modules, 'ray', SimpleNamespace(init=init, shutdown=lambda: None))
    for errors, n_started in ((['The current node timed out during startup'] * 9, 3), (['no room'] * 9, 1)):
        del started[:]
        with pytest.raises(ValueError, match='no Ray cluster at local: ' + errors[0]):
            on_ray.connect('local')
        assert len(started) == n_started


# On a Ray that the command starts

@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('ray'), reason=NEEDS_RAY)
def test_ray_local_ends_at_once_after_a_signal_and_continues(undisturbed, tmp_path, flat_models, script):
    """With all its processes, also after kill -9. Until then, they listen on this machine only.

    Its actors, which have another working directory, find the model in a relative folder.
    """
    flags = ['--models_dir', os.path.basename(flat_models), '--ray', 'local']
    flags += ['--%s=%s' % flag for flag in FLAGS.items()]
    folder = os.path.dirname(flat_models)
    for number, expected_status in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        out = tmp_path / str(expected_status)  # its own: two actors may make one file more each, and all in two runs
        listed = str(tmp_path / 'processes.json')
        status, stdout, stderr = finished(
            script(INTERRUPTED_AFTER_A_SHARD % (listed, number, SECONDS)) + flags + ['--out', str(out)], cwd=folder,
            env=environment(PYTHONPATH=os.pathsep.join([SRC, TESTS]), **PATIENT))
        assert (status, stdout) == (expected_status, b''), stderr
        with open(listed, encoding='utf-8') as file:
            processes, addresses = json.load(file)
        assert len(processes) > 5 and {address[-8:] for address in addresses} == {'0100007F'}, addresses
        limit = time.time() + SECONDS
        while any(map(is_running, processes)):
            assert time.time() < limit, processes
            time.sleep(0.1)
        if number == signal.SIGTERM:
            assert_says_how_to_continue(stderr, out)
    command = [sys.executable, os.path.join(SRC, 'generate_dataset.py')] + flags
    command += ['--out', str(out), '--workers', '2']
    status, _, stderr = finished(command, cwd=folder, env=environment(**PATIENT))
    assert status == 0, stderr
    assert files_in(out) == undisturbed
