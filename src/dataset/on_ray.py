"""Many makers on a Ray cluster (https://docs.ray.io): each an actor with its own model, on a GPU or a number of cores.

Ray starts them where there is room, starts them again elsewhere if a process or a machine dies, and runs again what they were at.
"""
import contextlib
import os
import socket


def make_shards(address, n_workers, settings, models_dir, out, shards):
    """Make shards {name: Rows} on the cluster at address; yield of each, when it is done, how many rows and tokens it has.

    address: as ray.init takes it; 'local' starts Ray on this machine, 'auto' finds the one that runs here.
    n_workers: how many actors; None is as many as the cluster has room for now. More let an autoscaling cluster grow.
    out: of a store that all machines reach.  models_dir: a folder that all machines see, as they see this repository.
    Raises ValueError if Ray is missing or does not answer, and what an actor raises.
    """
    try:
        import ray
    except ImportError:
        raise ValueError('--ray needs the package ray: pip install ray')
    try:
        check_reachable(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError('no Ray cluster at %s: %s' % (address, error))

    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    class Actor(object):
        """Defined here, so that Ray sends it to machines where no package has it."""

        def __init__(self):
            self.loaded = contextlib.ExitStack()
            self.maker = None

        def make(self, name, rows):
            import sys
            sys.path.insert(0, source)
            from dataset import maker
            from dataset.store import open_store
            if self.maker is None:  # not in __init__: Ray would wrap what it raises beyond recognition
                self.maker = self.loaded.enter_context(maker.load(settings, models_dir))
            return len(rows), sum(n_tokens for _, n_tokens in self.maker.make_shard(open_store(out), name, rows))

    resources = ray.cluster_resources()
    has_gpu = resources.get('GPU', 0) >= 1
    n_fit = resources.get('GPU', 0) if has_gpu else resources.get('CPU', 0) // settings['cores']
    options = {'num_cpus': settings['cores'], 'num_gpus': int(has_gpu), 'max_restarts': -1, 'max_task_retries': -1}
    start = ray.remote(**options)(Actor).remote
    idle = [start() for _ in range(min(n_workers or max(int(n_fit), 1), len(shards)))]
    waiting, working = list(shards.items()), {}
    try:
        while waiting or working:
            while waiting and idle:
                actor = idle.pop()
                working[actor.make.remote(*waiting.pop(0))] = actor
            done = ray.wait(list(working))[0][0]
            idle.append(working.pop(done))
            yield ray.get(done)
            if not waiting:
                ray.kill(idle.pop())  # its cores are free for an actor that lost its machine
    except ray.exceptions.RayTaskError as error:
        raise error.cause
    except ray.exceptions.RayError as error:
        raise ValueError('Ray gave up: %s' % error)
    finally:
        ray.shutdown()


def check_reachable(address):
    """Raises OSError if nothing listens at host:port. Ray would try for a minute and more."""
    host, colon, port = address.rpartition('://')[2].rpartition(':')
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
