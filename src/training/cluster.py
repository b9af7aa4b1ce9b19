"""Several equal workers that train one model: each computes a part of every step's batch, and their gradients are averaged.

The environment variable TF_CONFIG tells each who they are (https://www.tensorflow.org/guide/distributed_training#TF_CONFIG),
and TensorFlow's own runtime connects them. Worker 0, the chief, is the one that saves, measures and reports.
"""
import contextlib
import hashlib
import json
import math
import re
import signal
import socket
import threading
import time

import numpy as np

import process
from training.run_folder import tell

EXAMPLE = '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
ARRIVAL_SECONDS = 600  # how long all workers may take to start
SILENCE_SECONDS = 30  # after so long, a worker whose machine does not answer is lost; one whose process has ended is so at once
GROUP = 1  # the number by which collective operations know that they belong to the same workers


def from_environment(text):
    """The Cluster that the value of TF_CONFIG tells of; OneWorker if it is None, or tells of none or one.

    Raises ValueError for a value that does not say which workers there are, and which of them this is.
    """
    try:
        return read_config(json.loads(text or '{}'))
    except ValueError as error:
        raise ValueError('TF_CONFIG is %s: %s; it should be like %s' % (text, error, EXAMPLE))


def read_config(config):
    """from_environment, of the JSON value."""
    jobs, task = [config.get(name) or {} if isinstance(config, dict) else None for name in ('cluster', 'task')]
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        raise ValueError('it is no object with the objects cluster and task')
    if jobs.get('ps') or task.get('type') in ('ps', 'evaluator'):
        raise ValueError('parameter servers and evaluators have nothing to do here: all workers are equal')
    workers = [(kind, index) for kind in ('chief', 'master', 'worker')  # in the order that TensorFlow counts them
               for index in range(len(addresses_of(jobs, kind)))]
    addresses = [jobs[kind][index] for kind, index in workers]
    for address in addresses:
        found = re.match(r'(?:[^\s/:\[\]]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})$', str(address))
        if not found or not 0 < int(found.group(1)) < 2 ** 16 or addresses.count(address) > 1:
            raise ValueError('%r is not the address of one worker' % (address,))
    if not addresses:
        return OneWorker()
    index = str(task.get('index'))  # some write it between quotes
    if not re.match('[0-9]{1,9}$', index) or (task.get('type'), int(index)) not in workers:
        raise ValueError('task is %s, which is none of them' % json.dumps(task))
    return Cluster(addresses, workers.index((task['type'], int(index)))) if len(addresses) > 1 else OneWorker()


def addresses_of(jobs, kind):
    """The list of addresses of a kind of worker. Raises ValueError for what is no list."""
    addresses = jobs.get(kind) or []
    if not isinstance(addresses, list):
        raise ValueError('%s is no list of addresses' % kind)
    return addresses


class OneWorker(object):
    """A worker that is alone. It has the methods of a Cluster, and nobody to talk to."""

    n_workers, index, is_chief, device = 1, 0, True, None

    def connect(self):
        pass

    def session(self):
        import checkpoint
        return checkpoint.session()

    def exchange(self, numbers):
        return np.array([numbers], np.int64)

    def any(self, condition):
        return bool(condition)

    def check_equal(self, facts):
        pass

    def finish(self):
        pass

    def mean(self, tensors):
        return tensors

    def share(self, sess, variables):
        pass

    def run(self, function, *positional):
        return process.wait_for(function, *positional)


class Cluster(object):
    """Several workers, as one of them sees them.

    addresses: 'host:port' of each.  index: which of them this is.
    """

    def __init__(self, addresses, index):
        self.addresses, self.index, self.n_workers, self.is_chief = list(addresses), index, len(addresses), index == 0
        self.device = '/job:worker/task:%d' % index  # for tf.device
        self.server = self.config = None  # by which this worker can be reached, and of all sessions
        self.exchanging = None  # the session for what is exchanged
        self.n_collectives = 0  # each has a number, which is the same in all workers
        self.sums = {}  # {n: (placeholder, sum over the workers)} of n numbers from each
        self.lost = None  # what there is to say of a worker that was lost
        self.deadline = math.inf  # for what is exchanged
        self.crashes = {}  # not empty if TensorFlow has crashed

    # Before a session

    def connect(self):
        """Let the other workers reach this one, wait for them, and see that each is who the others take it for.

        Raises ValueError if the port is in use, a worker does not come, or their TF_CONFIGs do not fit together.
        """
        from tf1 import tf
        import checkpoint
        check_port(self.addresses[self.index], self.index)
        self.config = checkpoint.session_config()
        self.config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        self.config.device_filters.append(self.device)
        self.config.intra_op_parallelism_threads = self.config.inter_op_parallelism_threads = process.n_cores()
        self.server = tf.train.Server({'worker': self.addresses}, 'worker', self.index, config=self.config)
        if not hasattr(tf, 'disable_v2_behavior'):
            # TensorFlow 1.12 crashes in a thread of its own when the worker that sends to this one is lost. With a handler, that
            # thread meets with the same fault over and over, and the others can say what has happened. The handler is a function
            # in C, since the next fault would interrupt one in Python.
            signal.signal(signal.SIGSEGV, self.crashes.setdefault)
        self.wait_for_all()
        self.exchanging = tf.Session(self.server.target, tf.Graph(), self.config)
        self.deadline = time.time() + SILENCE_SECONDS  # two that both take themselves for worker 0 would wait for ever
        self.check_equal([('list of addresses in TF_CONFIG', self.addresses)])
        self.deadline = math.inf
        threading.Thread(target=self.watch, daemon=True).start()

    def wait_for_all(self):
        """Wait until all workers can be reached. Raises ValueError with the address of one that does not come."""
        began, told = time.time(), None
        for index, address in enumerate(self.addresses):
            while reached(address) is not True:
                waited = time.time() - began
                if waited > ARRIVAL_SECONDS:
                    raise ValueError('worker %d did not come to %s within %d seconds; start it there, or correct TF_CONFIG'
                                     % (index, address, ARRIVAL_SECONDS))
                if waited > 10 and told != index:
                    tell('waiting for worker %d to come to %s' % (index, address))
                    told = index
                time.sleep(0.2)

    def session(self):
        """A session for a `with`, as checkpoint.session."""
        import checkpoint
        return checkpoint.session(target=self.server.target, config=self.config)

    # Between sessions

    def exchange(self, numbers):
        """Tell all workers some whole numbers, and hear theirs: int64 [n_workers, n]."""
        from tf1 import tf
        own = np.zeros([self.n_workers, len(numbers)], np.int64)
        own[self.index] = numbers
        if len(numbers) not in self.sums:
            with self.exchanging.graph.as_default(), tf.device(self.device + '/cpu:0'):
                own_WN = tf.placeholder(tf.int64, own.shape)
                self.sums[len(numbers)] = own_WN, self.all_reduce(own_WN, 'Id')
        own_WN, sum_WN = self.sums[len(numbers)]
        return self.run(self.exchanging.run, sum_WN, {own_WN: own})

    def any(self, condition):
        """Whether a condition is true for any worker."""
        return bool(self.exchange([condition]).any())

    def check_equal(self, facts):
        """Raises ValueError if a worker has other facts than the chief. facts: [(name, anything)], names as in all workers."""
        digests = [int(hashlib.sha256(repr(fact).encode('utf-8')).hexdigest()[:15], 16) for _, fact in facts]
        found = self.exchange(digests)
        differing = ['worker %d, at %s, has another %s' % (index, address, ', another '.join(
            [name for (name, _), own, chief in zip(facts, found[index], found[0]) if own != chief]))
            for index, address in enumerate(self.addresses) if (found[index] != found[0]).any()]
        if differing:
            raise ValueError('%s than worker 0; start all workers with the same files and flags' % '; '.join(differing))

    def finish(self):
        """Wait until all workers have come here. From then on they may end.

        A worker that ends too early takes with it what others have not yet heard of the last exchange. So there is another
        one: who hears that knows that all have heard the one before. It carries no news, so who does not hear it goes, too.
        """
        self.any(False)
        self.deadline = time.time() + 5
        with contextlib.suppress(Exception):
            self.any(False)

    # In a graph

    def mean(self, tensors):
        """The means of tensors over all workers."""
        return [self.all_reduce(tensor, 'Div') for tensor in tensors]

    def all_reduce(self, tensor, final):
        """The sum of a tensor over all workers; with final 'Div' divided by their number."""
        from tf1 import collective_ops
        self.n_collectives += 1
        return collective_ops.all_reduce(tensor, self.n_workers, GROUP, self.n_collectives, 'Add', final)

    def share(self, sess, variables):
        """Give the chief's values of variables to all workers."""
        from tf1 import collective_ops, tf
        operations = []
        with sess.graph.as_default(), tf.device(self.device):
            for variable in variables:
                self.n_collectives += 1
                place = variable.shape, tf.float32, self.n_workers, GROUP, self.n_collectives
                operations.append(collective_ops.broadcast_send(variable.read_value(), *place) if self.is_chief else
                                  tf.assign(variable, collective_ops.broadcast_recv(*place)))
            everything = tf.group(*operations)
        self.run(sess.run, everything)

    # Who is still there

    def run(self, function, *positional):
        """process.wait_for, but it raises ValueError if another worker is lost meanwhile."""
        from tf1 import tf
        try:
            return process.wait_for(function, *positional, meanwhile=self.check)
        except tf.errors.ResourceExhaustedError:
            raise
        except tf.errors.OpError:
            self.explain()
            raise

    def explain(self):
        """After an error: raises ValueError if a worker is lost, which is noticed a little later."""
        deadline = time.time() + SILENCE_SECONDS
        while time.time() < deadline:
            self.check()
            time.sleep(0.1)

    def check(self):
        """Raises ValueError if another worker is lost, or does not answer in time."""
        if self.lost:
            raise ValueError(self.lost)
        if time.time() > self.deadline:
            raise ValueError('the workers do not understand each other; in TF_CONFIG give all of them the same list of '
                             'addresses, and each an index of its own: this one has index %d of %s'
                             % (self.index, ', '.join(self.addresses)))

    def watch(self):
        """Notice when another worker is lost. The chief watches all, and all watch the chief, which ends when it loses one."""
        heard = {index: time.time() for index in (range(1, self.n_workers) if self.is_chief else [0])}
        crashed = None
        while self.deadline == math.inf and not self.lost:
            for index in heard:
                answer = reached(self.addresses[index])
                if answer:
                    heard[index] = time.time()
                elif answer is False or time.time() - heard[index] > SILENCE_SECONDS:
                    what = 'ended' if answer is False else 'not answered for %d seconds' % SILENCE_SECONDS
                    self.lost = ('worker %d, at %s, has %s; the same command, for all workers, goes on from the last save'
                                 % (index, self.addresses[index], what))
            if self.crashes:
                crashed = crashed or time.time()
                if time.time() - crashed > SILENCE_SECONDS:
                    self.lost = 'TensorFlow has crashed; the same command, for all workers, goes on from the last save'
            time.sleep(1)


def reached(address):
    """Whether something listens at 'host:port'. None if the machine does not say."""
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
        return True
    except ConnectionRefusedError:
        return False
    except OSError:
        return None


def check_port(address, index):
    """Raises ValueError if a port cannot be listened to. gRPC would share it with the process that has it."""
    port = address.rpartition(':')[2]
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', int(port)))
        except OSError as error:
            raise ValueError('port %s, which TF_CONFIG gives to worker %d, cannot be used: %s; give it another one'
                             % (port, index, error.strerror))
