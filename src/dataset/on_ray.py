"""Many makers on a Ray cluster (https://docs.ray.io): each an actor with its own model, on a GPU or a number of cores.

Ray starts them where there is room, and again, elsewhere if it must, when a process or a machine dies.
"""
import contextlib
import os
import signal
import socket
import sys
import time
from collections import Counter

from tqdm import tqdm

import process

PATIENCE_SECONDS = 15  # a model starts in less where there is room for it
TRIES = 4  # of a shard: if its actor dies each time, it will the next time, too


def make_shards(dataset, names, address, n_workers=None):
    """Make some shards of a plan.Dataset, whose store and folder of models all machines reach, as they do this repository.

    address: as ray.init takes it; 'local' starts Ray on this machine, 'auto' finds the one that runs here.
    n_workers: how many actors; None is as many as the cluster has room for. More let an autoscaling cluster grow.
    Yields (rows, tokens, shard), again and again: how many more are made, and the shard that they are, or None.
    Raises ValueError if Ray is missing, does not answer or has no room, and what an actor raises.
    """
    with signals_kept():
        ray = import_ray()
        connect(ray, address)
    try:
        machines = [machine['Resources'] for machine in ray.nodes() if machine['Alive']]
        cores = dataset.settings['cores']
        n_fit, n_gpus = room(machines, cores)
        if not n_fit and (address == 'local' or n_workers is None):  # with --workers, a cluster may be one that grows
            raise ValueError('cores is %d; the largest machine of the cluster%s has %d; give a lower --cores' % (
                cores, ' with a GPU' if n_gpus else '', largest(machines, n_gpus)))
        if n_workers is None and n_fit < sum(machine.get('GPU', 0) for machine in machines):
            tell('some GPUs have no model, since each takes %d cores; a lower --cores makes room for more' % cores)
        actor = ray.remote(num_cpus=cores, num_gpus=n_gpus, max_restarts=-1)(
            actor_class(dataset.settings, dataset.models_dir, str(dataset.store)))
        actors = [actor.remote() for _ in range(min(n_workers or n_fit, len(names)))]
        for done in spread(ray, actors, [(name, dataset.shards[name]) for name in names]):
            yield done
    except ray.exceptions.RayTaskError as error:
        raise error.cause
    except ray.exceptions.RayError as error:
        raise ValueError('Ray gave up: %s' % error)
    finally:
        ray.shutdown()


def import_ray():
    """The module ray. Raises ValueError if there is none."""
    try:
        import ray
    except ImportError:
        raise ValueError('--ray needs the package ray: pip install ray')
    return ray


def connect(ray, address):
    """Let this process be the driver of the cluster at an address. Raises ValueError if there is none."""
    try:
        host, colon, port = address.rpartition('://')[2].rpartition(':')
        if colon and port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()  # where nothing listens, Ray tries for a minute
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError('no Ray cluster at %s: %s' % (address, error))


@contextlib.contextmanager
def signals_kept():
    """After the block, Ctrl-C and SIGTERM do what they did before. Importing and starting Ray changes it."""
    handlers = [(number, signal.getsignal(number)) for number in process.INTERRUPTS]
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def room(machines, cores):
    """(how many models fit on a cluster, how many GPUs each takes). Where there are GPUs, each model takes one of them.

    machines: a dict for each, with its number of 'CPU' and, if it has any, of 'GPU'.  cores: for each model.
    """
    n_gpus = int(any(machine.get('GPU', 0) >= 1 for machine in machines))
    fit = [machine.get('CPU', 0) // cores for machine in machines]
    if n_gpus:
        fit = [min(n, machine.get('GPU', 0) // 1) for n, machine in zip(fit, machines)]
    return int(sum(fit)), n_gpus


def largest(machines, n_gpus):
    """The most cores of a machine that has as many GPUs."""
    return max([machine.get('CPU', 0) for machine in machines if machine.get('GPU', 0) >= n_gpus])


def actor_class(settings, models_dir, out):
    """What runs on the cluster. It is made here, so that Ray sends it to machines that could not import it."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    class Actor(object):

        def __init__(self):
            self.loaded, self.maker = contextlib.ExitStack(), None

        def start(self):
            """Nothing: when this is done, there is room for the actor, and it runs."""

        def make(self, name, rows):
            """Make a shard: how many rows and tokens it has."""
            import sys
            sys.path.insert(0, source)
            import checkpoint
            from dataset import maker
            from dataset.store import open_store
            if self.maker is None:  # not in __init__: Ray would wrap what it raises beyond recognition
                if checkpoint.checksum(settings['model_name'], models_dir) != settings['model']:
                    raise ValueError('the model in %s is not the same on all machines' % models_dir)
                self.maker = self.loaded.enter_context(maker.load(settings, models_dir))
            return len(rows), sum(n_tokens for _, n_tokens in self.maker.make_shard(open_store(out), name, rows))

    return Actor


def spread(ray, actors, shards):
    """Give each actor a shard when it has started, and another as soon as it is done with one; yield as make_shards does.

    shards: [(name, its Rows)]. One whose actor died is for any of them again. That is not left to Ray, whose retries have no
    bound of use: where a machine dies, it spends several before it knows.
    """
    waiting, tries, patience_ends = list(shards), Counter(), time.time() + PATIENCE_SECONDS
    working = {actor.start.remote(): (actor, None) for actor in actors}
    while working:
        for task in ray.wait(list(working), timeout=1)[0]:
            actor, shard = working.pop(task)
            try:
                made = ray.get(task)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError):
                if shard:
                    waiting.insert(0, shard)
                    note_death(shard[0], tries)
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
            tell('waiting for room: no machine of the cluster has started a model yet')
            patience_ends = float('inf')
        if not waiting:
            for starting in [task for task, (_, shard) in working.items() if not shard]:
                ray.kill(working.pop(starting)[0])
        yield 0, 0, None  # whoever shows how far it is may want to say that it goes on


def note_death(name, tries):
    """Count a try of a shard that its actor did not survive. Raises ValueError if that was the last one."""
    tries[name] += 1
    if tries[name] == TRIES:
        raise ValueError('%s: what makes it was killed %d times, perhaps because memory was short; give each model more of it, '
                         'or look into the logs of Ray' % (name, TRIES))
    tell('%s: what makes it was killed; it is begun again' % name)


def tell(text):
    """Print a line on stderr, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()
