"""Many makers on a Ray cluster (https://docs.ray.io): each an actor with its own model, on a GPU or a number of cores.

Ray starts them where there is room, starts them again elsewhere if a process or a machine dies, and does their work again.
"""
import contextlib
import os
import signal
import socket

import process


def make_shards(address, n_workers, settings, models_dir, out, shards):
    """Make shards {name: Rows} on the cluster at address; yield of each, when it is done, how many rows and tokens it has.

    address: as ray.init takes it; 'local' starts Ray on this machine, 'auto' finds the one that runs here.
    n_workers: how many actors; None is as many as the cluster has room for now. More let an autoscaling cluster grow.
    out: of a store that all machines reach.  models_dir: a folder that all machines see, as they see this repository.
    Raises ValueError if Ray is missing, does not answer or has no room, and what an actor raises.
    """
    ray = connected(address)
    try:
        resources = ray.cluster_resources()
        has_gpu = resources.get('GPU', 0) >= 1
        largest = max([machine['Resources'].get('CPU', 0) for machine in ray.nodes() if machine['Alive']])
        if settings['cores'] > largest and n_workers is None:  # with --workers, the cluster may be one that grows
            raise ValueError('cores is %d; the largest machine of the cluster has %d; give a lower --cores'
                             % (settings['cores'], largest))
        n_fit = resources.get('GPU', 0) if has_gpu else resources.get('CPU', 0) // settings['cores']
        actor = ray.remote(num_cpus=settings['cores'], num_gpus=int(has_gpu), max_restarts=-1, max_task_retries=-1)(
            actor_class(settings, models_dir, out))
        actors = [actor.remote() for _ in range(min(n_workers or max(int(n_fit), 1), len(shards)))]
        for done in spread(ray, actors, shards):
            yield done
    except ray.exceptions.RayTaskError as error:
        raise error.cause
    except ray.exceptions.RayError as error:
        raise ValueError('Ray gave up: %s' % error)
    finally:
        ray.shutdown()


def connected(address):
    """The module ray, connected to a cluster."""
    try:
        import ray
    except ImportError:
        raise ValueError('--ray needs the package ray: pip install ray')
    try:
        host, colon, port = address.rpartition('://')[2].rpartition(':')
        if colon and port.isdigit():
            socket.create_connection((host, int(port)), timeout=10).close()  # where nothing listens, Ray tries for a minute
        handlers = [(number, signal.getsignal(number)) for number in process.INTERRUPTS]
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
        for number, handler in handlers:
            signal.signal(number, handler)  # Ray has its own, which would not end quietly
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError('no Ray cluster at %s: %s' % (address, error))
    return ray


def actor_class(settings, models_dir, out):
    """What runs on the cluster. It is made here, so that Ray sends it to machines that could not import it."""
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

    class Actor(object):

        def __init__(self):
            self.loaded, self.maker = contextlib.ExitStack(), None

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
    """Give each actor another shard as soon as it is done with one; yield what they return."""
    idle, waiting, working = list(actors), list(shards.items()), {}
    while waiting or working:
        while waiting and idle:
            actor = idle.pop()
            working[actor.make.remote(*waiting.pop(0))] = actor
        done = ray.wait(list(working))[0][0]
        idle.append(working.pop(done))
        yield ray.get(done)
        if not waiting:
            ray.kill(idle.pop())  # its cores are free for an actor that lost its machine
