"""Many makers on a Ray cluster (https://docs.ray.io): each an actor with its own model, on a GPU or some cores.

Ray starts them where there is room, and restarts them, on another machine if needed, when a process or machine dies.
"""
import os
import socket
import subprocess
import sys
import time
from collections import Counter

from gpt2.system.progress import report

PATIENCE_SECONDS = 15  # a model starts faster where there is room for it
MAX_TRIES = 4  # for a shard: if its actor dies each time, it will the next time, too


def connect(address):
    """Connect this process to a Ray cluster. Raises ValueError without Ray, or if no cluster answers.

    address: as ray.init takes it; 'local' starts Ray on this machine, 'auto' finds the one that is running on it.
    """
    if address == 'local':
        keep_local()
    try:
        import ray
    except ImportError:
        raise ValueError('--ray needs the package ray: pip install ray')
    try:
        host, colon, port = address.rpartition('://')[2].rpartition(':')
        if colon and port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would retry for a minute
        for is_last in (False, False, True):
            try:
                ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
                return
            except Exception as error:  # on a busy machine it may take over the 30 seconds that Ray waits
                ray.shutdown()
                if is_last or 'timed out during startup' not in str(error):
                    raise
    except Exception as error:  # which is what Ray raises if a process of its own does not start in time
        raise ValueError('no Ray cluster at %s: %s' % (address, error))


# Waits until the process that has started it ends, and kills what has a file of the session of that process's Ray.
WATCHER = """
import contextlib, glob, os, re, sys
sys.stdin.read()
for path in glob.glob('/proc/[0-9]*/fd/*'):
    with contextlib.suppress(OSError):
        if re.search('/session_[^/]*_%s/' % sys.argv[1], os.readlink(path)):
            os.kill(int(path.split('/')[2]), 9)
"""


def keep_local():
    """Let the Ray that this process starts listen on 127.0.0.1 only, and end with this process, however that ends.

    Some of Ray's processes would look for the others for minutes before they give up.
    """
    subprocess.Popen([sys.executable, '-c', WATCHER, str(os.getpid())], stdin=subprocess.PIPE,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    os.environ['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'] = '0'  # as there, a cluster has one machine; read by `import ray`


def make_shards(dataset, names, can_grow, n_workers=None):
    """Make some shards of a plan.Dataset on the connected cluster. All machines need its store, model and our code.

    can_grow: whether machines may join the cluster.
    n_workers: number of actors; None means as many as there is room for. More make an autoscaling cluster grow.
    Yields (rows, tokens, shard) repeatedly: the number of new rows and tokens, and the shard that they are, or None.
    Raises ValueError if there is no room, and the errors of actors.
    """
    import ray
    try:
        machines = [machine['Resources'] for machine in ray.nodes() if machine['Alive']]
        cores = dataset.settings['cores']
        n_fit, n_gpus = capacity(machines, cores)
        if not n_fit and (n_workers is None or not can_grow):
            raise ValueError('cores is %d; the largest machine of the cluster%s has %d; give a lower --cores' % (
                cores, ' with a GPU' if n_gpus else '', max_cores(machines, n_gpus)))
        if n_workers is None and n_fit < sum(machine.get('GPU', 0) for machine in machines):
            report('some GPUs get no model, since each takes %d cores; a lower --cores makes room for more' % cores)
        actor = ray.remote(num_cpus=cores, num_gpus=n_gpus, max_restarts=-1)(
            actor_class(dataset.settings, dataset.models_dir, dataset.store.address))
        actors = [actor.remote() for _ in range(min(n_workers or n_fit, len(names)))]
        yield from distribute(ray, actors, [(name, dataset.shards[name]) for name in names])
    except ray.exceptions.RayTaskError as error:
        raise error.cause
    except ray.exceptions.RayError as error:
        raise ValueError('Ray failed: %s' % error)
    finally:
        ray.shutdown()


def capacity(machines, cores):
    """(the number of models that fit on a cluster, the GPUs for each). In a cluster with GPUs each model takes one.

    machines: for each, a dict with its number of 'CPU' and, if it has any, of 'GPU'.  cores: for each model.
    """
    n_gpus = int(any(machine.get('GPU', 0) >= 1 for machine in machines))
    needed = {'CPU': cores, 'GPU': 1} if n_gpus else {'CPU': cores}
    fit = [min(machine.get(kind, 0) // n for kind, n in needed.items()) for machine in machines]
    return int(sum(fit)), n_gpus


def max_cores(machines, n_gpus):
    """The number of cores of the largest machine that has at least n_gpus."""
    return max([machine.get('CPU', 0) for machine in machines if machine.get('GPU', 0) >= n_gpus])


def actor_class(settings, models_dir, out):
    """The class that runs on the cluster. As a local class it is sent to machines that could not import it."""
    source = os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))

    class Actor:

        maker = None

        def start(self):
            """Does nothing. Once it has returned, there is room for the actor, and it is running."""

        def make(self, name, rows):
            """Make a shard. Returns the numbers of its rows and tokens."""
            import sys
            sys.path.insert(0, source)
            from gpt2 import checkpoint
            from gpt2.generation import maker
            from gpt2.generation.store import open_store
            if self.maker is None:  # not in __init__, whose errors Ray would hide in its own
                if checkpoint.checksum(settings['model_name'], models_dir) != settings['model']:
                    raise ValueError('the model in %s is not the same on all machines' % models_dir)
                self.maker = maker.Maker(settings, models_dir)
            return len(rows), sum(n_tokens for _, n_tokens, _ in self.maker.make_shard(open_store(out), name, rows))

    return Actor


def distribute(ray, actors, shards):
    """Give each actor a shard once it is running, and another whenever it has made one; yields as make_shards does.

    shards: [(name, its Rows)]. If an actor dies, any actor may make its shard. This is not left to Ray, whose retries
    cannot be limited well: when a machine dies, it uses up several before it notices.
    """
    waiting, failures, patience_ends = list(shards), Counter(), time.time() + PATIENCE_SECONDS
    working = {actor.start.remote(): (actor, None) for actor in actors}
    while working:
        for task in ray.wait(list(working), timeout=1)[0]:
            actor, shard = working.pop(task)
            try:
                made = ray.get(task)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
                if shard:
                    waiting.insert(0, shard)
                    count_failure(shard[0], failures)
                time.sleep(1)
                working[actor.start.remote()] = actor, None
                continue
            patience_ends = float('inf')
            if waiting:
                following = waiting.pop(0)
                working[actor.make.remote(*following)] = actor, following
            else:
                ray.kill(actor)  # its cores are free for an actor that lost its machine
            if shard:
                yield made + (shard[0],)
        if time.time() > patience_ends:
            report('waiting for room: no machine of the cluster has started a model yet')
            patience_ends = float('inf')
        if not waiting:
            for starting in [task for task, (_, shard) in working.items() if not shard]:
                ray.kill(working.pop(starting)[0])
        yield 0, 0, None  # lets the caller report progress


def count_failure(name, failures):
    """Count that an actor died while it made a shard. Raises ValueError after MAX_TRIES."""
    failures[name] += 1
    if failures[name] == MAX_TRIES:
        raise ValueError('%s: its process was killed %d times, perhaps for lack of memory; give each model more memory'
                         ', or read the logs of Ray' % (name, MAX_TRIES))
    report('%s: its process was killed; trying again' % name)
