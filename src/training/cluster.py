"""Several equal workers that train one model: each computes a part of every step's batch, and their gradients are averaged.

The environment variable TF_CONFIG tells each who they are (https://www.tensorflow.org/guide/distributed_training#TF_CONFIG),
and TensorFlow's own runtime connects them. Worker 0, the chief, is the one that saves, measures and reports.
"""
import contextlib
import hashlib
import json
import math
import signal
import socket
import threading
import time

import numpy as np

import process
from training.run_folder import tell

EXAMPLE = '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
PATIENCE = 600  # seconds to wait for a worker to come
SILENCE = 30  # seconds after which a worker whose machine does not answer is lost; one whose process has ended is so at once
GROUP = 1  # the number by which collective operations know that they belong to the same workers


def from_environment(text):
    """The Cluster that the value of TF_CONFIG tells of; of one worker if it is None, or tells of none or one.

    Raises ValueError for a value that does not say which workers there are, and which of them this is.
    """
    try:
        config = json.loads(text or '{}')
        jobs, task = config.get('cluster') or {}, config.get('task') or {}
        if jobs.get('ps') or task.get('type') in ('ps', 'evaluator'):
            raise ValueError('parameter servers and evaluators have nothing to do here: all workers are equal')
        kinds = [kind for kind in ('chief', 'master', 'worker') if jobs.get(kind)]  # in the order that TensorFlow counts them
        addresses = [str(address) for kind in kinds for address in jobs[kind]]
        for address in addresses:
            host, _, port = address.rpartition(':')
            if not host or not port.isdigit() or not 0 < int(port) < 2 ** 16 or addresses.count(address) > 1:
                raise ValueError('%r is not the address of one worker' % address)
        if len(addresses) < 2:
            return Cluster()
        if task.get('type') not in kinds or not 0 <= int(task['index']) < len(jobs[task['type']]):
            raise ValueError('task is %s, which is none of them' % json.dumps(task))
        index = sum(len(jobs[kind]) for kind in kinds[:kinds.index(task['type'])]) + int(task['index'])
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError('TF_CONFIG is %s: %s; it should be like %s' % (text, error, EXAMPLE))
    return Cluster(addresses, index)


class Cluster(object):
    """The workers, as one of them sees them. For one that is alone all of this does nothing.

    addresses: 'host:port' of each.  index: which of them this is.
    """

    def __init__(self, addresses=('here',), index=0):
        self.addresses, self.index, self.n_workers, self.is_chief = list(addresses), index, len(addresses), index == 0
        self.device = '/job:worker/task:%d' % index if self.n_workers > 1 else None  # for tf.device
        self.n_collectives = 0  # each has a number, which is the same in all workers
        self.sums = {}  # {n: (placeholder, sum over the workers)} of n numbers from each
        self.lost = None  # what there is to say of a worker that was lost
        self.deadline = math.inf  # for what is exchanged
        self.crashes = {}  # not empty if TensorFlow has crashed

    # Before a session

    def wait_for(self, index):
        """Wait until a worker can be reached. Raises ValueError with its address if it does not come."""
        if self.n_workers == 1:
            return
        began, told = time.time(), False
        while reached(self.addresses[index]) is not True:
            waited = time.time() - began
            if waited > PATIENCE:
                raise ValueError('worker %d did not come to %s within %d seconds; start it there, or correct TF_CONFIG'
                                 % (index, self.addresses[index], PATIENCE))
            if waited > 10 and not told:
                tell('waiting for worker %d to come to %s' % (index, self.addresses[index]))
                told = True
            time.sleep(0.2)

    def connect(self):
        """Let the other workers reach this one, and wait for them. Raises ValueError if the port is in use or one is missing."""
        if self.n_workers == 1:
            return
        from tf1 import tf
        import checkpoint
        check_port(self.addresses[self.index], self.index)
        self.config = checkpoint.session_config()
        self.config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        self.config.device_filters.append(self.device)
        self.config.intra_op_parallelism_threads = self.config.inter_op_parallelism_threads = process.n_cores()
        self.server = tf.train.Server({'worker': self.addresses}, 'worker', self.index, config=self.config)
        for index in range(self.n_workers):
            self.wait_for(index)
        if not hasattr(tf, 'disable_v2_behavior'):
            # TensorFlow 1.12 crashes in a thread of its own when the worker that sends to this one is lost. With a handler, that
            # thread meets with the same fault over and over, and the others can say what has happened. The handler is a function
            # in C, since the next fault would interrupt one in Python.
            signal.signal(signal.SIGSEGV, self.crashes.setdefault)
        threading.Thread(target=self.watch, daemon=True).start()
        self.exchanging = tf.Session(self.server.target, tf.Graph(), self.config)

    def session(self):
        """A session for a `with`, as checkpoint.session."""
        import checkpoint
        return checkpoint.session() if self.n_workers == 1 else checkpoint.session(target=self.server.target, config=self.config)

    # Between sessions

    def exchange(self, numbers):
        """Tell all workers some whole numbers, and hear theirs: int64 [n_workers, n]."""
        own = np.zeros([self.n_workers, len(numbers)], np.int64)
        own[self.index] = numbers
        if self.n_workers == 1:
            return own
        from tf1 import tf
        if len(numbers) not in self.sums:
            with self.exchanging.graph.as_default(), tf.device(self.device + '/cpu:0'):
                own_WN = tf.placeholder(tf.int64, own.shape)
                self.sums[len(numbers)] = own_WN, self.all_reduce(own_WN, 'Id')
        own_WN, sum_WN = self.sums[len(numbers)]
        return self.run(self.exchanging.run, sum_WN, {own_WN: own})

    def any(self, condition):
        """Whether a condition is true for any worker."""
        return bool(condition) if self.n_workers == 1 else bool(self.exchange([condition]).any())

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
        """Wait until all workers have come here. From then on they may end."""
        self.any(False)
        if self.n_workers == 1:
            return
        with contextlib.suppress(Exception):  # Who has this answer knows that all had the one before. Who has not, does not mind.
            self.deadline = time.time() + 5
            self.any(False)

    # In a graph

    def mean(self, tensors):
        """The means of tensors over all workers."""
        return tensors if self.n_workers == 1 else [self.all_reduce(tensor, 'Div') for tensor in tensors]

    def all_reduce(self, tensor, final):
        """The sum of a tensor over all workers; with final 'Div' divided by their number."""
        from tf1 import collective_ops
        self.n_collectives += 1
        return collective_ops.all_reduce(tensor, self.n_workers, GROUP, self.n_collectives, 'Add', final)

    def share(self, sess, variables):
        """Give the chief's values of variables to all workers."""
        if self.n_workers == 1:
            return
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
        if self.n_workers == 1:
            return process.wait_for(function, *positional)
        from tf1 import tf
        try:
            return process.wait_for(function, *positional, meanwhile=self.check)
        except tf.errors.ResourceExhaustedError:
            raise
        except tf.errors.OpError:
            self.explain()
            raise

    def explain(self):
        """After an error of the runtime: raises ValueError if a worker is lost, which is noticed a little later."""
        deadline = time.time() + SILENCE
        while time.time() < deadline:
            self.check()
            time.sleep(0.1)

    def check(self):
        """Raises ValueError if another worker is lost."""
        if self.lost or time.time() > self.deadline:
            raise ValueError(self.lost)

    def watch(self):
        """Notice when another worker is lost. The chief watches all, and all watch the chief, which ends when it loses one."""
        heard = {index: time.time() for index in (range(1, self.n_workers) if self.is_chief else [0])}
        crashed = None
        while self.deadline == math.inf and not self.lost:
            for index in heard:
                answer = reached(self.addresses[index])
                if answer:
                    heard[index] = time.time()
                elif answer is False or time.time() - heard[index] > SILENCE:
                    self.lost = ('worker %d, at %s, has %s; the same command, for all workers, goes on from the last save' % (
                        index, self.addresses[index], 'ended' if answer is False else 'not answered for %d seconds' % SILENCE))
            if self.crashes:
                crashed = crashed or time.time()
                if time.time() - crashed > SILENCE:
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
