"""Several equal workers that train one model: each computes part of every batch, and their gradients are averaged.

On one machine all of them are in one process. On several, the environment variable TF_CONFIG says which workers there
are and which of them this process is (https://www.tensorflow.org/guide/distributed_training#TF_CONFIG), and
TensorFlow's own runtime connects them. Worker 0, the chief, is the one that saves, validates and reports.
"""
import contextlib
import glob
import hashlib
import json
import math
import os
import re
import signal
import socket
import threading
import time

import numpy as np

from gpt2 import session
from gpt2.system import files, process
from gpt2.system.progress import report
from gpt2.system.tf1 import collective_ops, tf

EXAMPLE = '{"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}'
STARTUP_SECONDS = 600  # how long all workers may take to start
SILENCE_SECONDS = 30  # a worker whose machine is silent for this long is lost; one whose process has ended, at once
KINDS = ('chief', 'master', 'worker')  # of workers, in the order in which TensorFlow numbers them
FAREWELL_SECONDS = 5  # how long a worker that is done waits for the others to receive the last result
GROUP = 1  # the number that says which collective operations belong to the same workers


def from_environment(text):
    """The Cluster that the value of TF_CONFIG describes; one LocalWorkers if it is empty, or lists this worker only.

    Raises ValueError for a value that does not say which workers there are and which of them this is.
    """
    try:
        return read_config(files.parse_json((text or '').strip() or 'null'))
    except ValueError as error:
        raise ValueError('TF_CONFIG is %.500s: %s; it should look like %s' % (text, error, EXAMPLE))


def read_config(config):
    """As from_environment, for the JSON value."""
    if config in (None, {}):
        return LocalWorkers()
    jobs, task = [config.get(name) if isinstance(config, dict) else None for name in ('cluster', 'task')]
    if not isinstance(jobs, dict) or not isinstance(task, dict):
        raise ValueError('expected a JSON object with the objects "cluster" and "task"')
    for kind in [name for name in sorted(jobs) if jobs[name]] + [task.get('type', KINDS[0])]:
        if kind not in KINDS:
            raise ValueError('%s is not one of %s; parameter servers and evaluators are not supported: all workers are '
                             'equal' % (json.dumps(kind), ', '.join(KINDS)))
    workers, addresses = [], []
    for kind in KINDS:
        listed = jobs.get(kind) or []
        if not isinstance(listed, list):
            raise ValueError('%s should be a list of addresses' % kind)
        workers += [(kind, index) for index in range(len(listed))]
        addresses += listed
    for address in addresses:
        found = re.fullmatch(r'(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})', str(address))
        if not found or not 0 < int(found.group(1)) < 2 ** 16 or addresses.count(address) > 1:
            raise ValueError('%r is not the host:port of exactly one worker' % (address,))
    index = str(task.get('index'))  # sometimes it is a string
    if not re.fullmatch('[0-9]{1,9}', index) or (task.get('type'), int(index)) not in workers:
        raise ValueError('task is %s, which is not one of the workers in the cluster' % json.dumps(task))
    return Cluster(addresses, workers.index((task['type'], int(index)))) if len(addresses) > 1 else LocalWorkers()


class LocalWorkers(object):
    """All workers in this process, each with a GPU of its own or a share of the cores.

    It does what a Cluster does, where there is no other process. Raises ValueError for more workers than GPUs.
    """

    index, is_chief, device = 0, True, ''
    target, config = '', None  # of its sessions: the server that runs them, and their configuration

    def __init__(self, n_workers=1):
        self.n_workers, self.n_gpus = n_workers, n_visible_gpus()
        if 0 < self.n_gpus < n_workers:
            raise ValueError('--workers is %d, but this machine has %d GPUs; lower --workers, or hide the GPUs: '
                             'CUDA_VISIBLE_DEVICES=-1' % (n_workers, self.n_gpus))
        kind = 'GPU' if self.n_gpus else 'CPU'
        self.devices = ['/device:%s:%d' % (kind, i) for i in range(n_workers)] if n_workers > 1 else ['']

    def connect(self):
        """Configure the sessions: without GPUs, each worker is a device with an equal share of the threads."""
        if self.n_workers > 1 and not self.n_gpus:
            self.config = session.session_config()
            self.config.device_count['CPU'] = self.n_workers
            self.config.inter_op_parallelism_threads = process.n_cores()
            self.config.intra_op_parallelism_threads = max(1, process.n_cores() // self.n_workers)

    def communicate(self, *arguments):
        """Nothing is to be sent or compared, and nobody to be waited for."""

    check_equal = share = finish = communicate

    def session(self):
        """A session for a `with`, as session.session()."""
        return session.session(target=self.target, config=self.config)

    def exchange(self, numbers):
        return np.array([numbers], np.int64)

    def largest(self, number):
        """The largest of the numbers with which the workers call this."""
        return int(self.exchange([number]).max())

    def mean(self, tensors):
        """The means of tensors over all processes."""
        return tensors

    def run(self, function, *positional):
        return process.wait_for(function, *positional)


class Cluster(LocalWorkers):
    """Several workers, from the point of view of one of them.

    addresses: 'host:port' of each.  index: which of them this is.
    """

    def __init__(self, addresses, index):
        self.addresses, self.index, self.n_workers, self.is_chief = list(addresses), index, len(addresses), index == 0
        self.device, self.devices = '/job:worker/task:%d' % index, ['']  # for tf.device; the second within the first
        self.exchanging = None  # the session of exchange()
        self.n_collectives = 0  # each collective operation has a number, the same in all workers
        self.sums = {}  # {n: (placeholder, sum over the workers)}, to exchange n numbers
        self.lost = None  # what has happened to a lost worker
        self.deadline = math.inf  # when exchange() must have ended
        self.crashes = {}  # not empty if TensorFlow has crashed

    # Before a session

    def connect(self):
        """Start this worker's server, wait for the other workers, and check that all agree on who is who.

        Raises ValueError if the port is in use, a worker does not start, or their TF_CONFIGs contradict each other.
        """
        check_port(self.addresses[self.index], self.index)
        report('worker %d: port %s is open on all network interfaces, and whoever reaches it can read and write files '
               'as this user; let only the workers reach it' % (
                   self.index, self.addresses[self.index].rpartition(':')[2]))
        self.config = session.session_config()
        self.config.experimental.collective_group_leader = '/job:worker/replica:0/task:0'
        self.config.device_filters.append(self.device)
        self.config.intra_op_parallelism_threads = self.config.inter_op_parallelism_threads = process.n_cores()
        self.server = tf.train.Server({'worker': self.addresses}, 'worker', self.index, config=self.config)
        self.target = self.server.target
        if not hasattr(tf, 'disable_v2_behavior'):
            # TensorFlow 1.12 crashes in a thread of its own when the worker that sends to this one is lost. With a
            # handler, that thread repeats the same fault forever, and the other threads can report what has happened.
            # The handler is a C function, since the next fault would interrupt a Python one.
            signal.signal(signal.SIGSEGV, self.crashes.setdefault)
        self.wait_for_all()
        self.exchanging = tf.Session(self.target, tf.Graph(), self.config)
        self.deadline = time.time() + SILENCE_SECONDS  # two workers that both have index 0 would wait forever
        self.check_equal([('list of addresses in TF_CONFIG', self.addresses)])
        self.deadline = math.inf
        threading.Thread(target=self.watch, daemon=True).start()

    def wait_for_all(self):
        """Wait until all workers can be reached. Raises ValueError with the address of one that does not start."""
        began, reported = time.time(), None
        for index, address in enumerate(self.addresses):
            while is_reachable(address) is not True:
                if time.time() - began > STARTUP_SECONDS:
                    raise ValueError('worker %d did not start at %s within %d seconds; start it there, or correct '
                                     'TF_CONFIG' % (index, address, STARTUP_SECONDS))
                if time.time() - began > 10 and reported != index:
                    report('waiting for worker %d to start at %s' % (index, address))
                    reported = index
                time.sleep(0.2)

    # Between sessions

    def exchange(self, numbers):
        """Send integers to all workers, and receive theirs: int64 [n_workers, n]."""
        own = np.zeros([self.n_workers, len(numbers)], np.int64)
        own[self.index] = numbers
        if len(numbers) not in self.sums:
            with self.exchanging.graph.as_default(), tf.device(self.device + '/cpu:0'):
                own_WN = tf.placeholder(tf.int64, own.shape)
                self.sums[len(numbers)] = own_WN, self.all_reduce(own_WN, 'Id')
        own_WN, sum_WN = self.sums[len(numbers)]
        return self.run(self.exchanging.run, sum_WN, {own_WN: own})

    def check_equal(self, facts):
        """Raises ValueError if a worker's facts differ from the chief's. facts: [(name, value)], names equal in all."""
        digests = [int(hashlib.sha256(repr(fact).encode('utf-8')).hexdigest()[:15], 16) for _, fact in facts]
        found = self.exchange(digests)
        differing = ['worker %d, at %s, has a different %s' % (index, address, ', a different '.join(
            [name for (name, _), own, chief in zip(facts, found[index], found[0]) if own != chief]))
            for index, address in enumerate(self.addresses) if (found[index] != found[0]).any()]
        if differing:
            self.finish()  # a worker that ends at once could cut off others that have not received what differs
            raise ValueError('%s than worker 0; start all workers with the same files and flags' % '; '.join(differing))

    def finish(self):
        """Wait until all workers have called this. Then they may end.

        A worker that ended right after an exchange would cut off others that have not received the result yet. So there
        is a second exchange: a worker that receives its result knows that all have received the first. Nothing depends
        on the second one, so a worker that does not receive it may end, too.
        """
        self.largest(0)
        self.deadline = time.time() + FAREWELL_SECONDS
        with contextlib.suppress(Exception):
            self.largest(0)

    # In a graph

    def mean(self, tensors):
        return [self.all_reduce(tensor, 'Div') for tensor in tensors]

    def all_reduce(self, tensor, final):
        """The sum of a tensor over all workers; with final 'Div', divided by their number."""
        self.n_collectives += 1
        return collective_ops().all_reduce(tensor, self.n_workers, GROUP, self.n_collectives, 'Add', final)

    def share(self, sess, variables):
        """Copy the chief's values of variables to all workers."""
        between, operations = collective_ops(), []
        with sess.graph.as_default(), tf.device(self.device):
            for variable in variables:
                self.n_collectives += 1
                arguments = variable.shape, tf.float32, self.n_workers, GROUP, self.n_collectives
                operations.append(between.broadcast_send(variable.read_value(), *arguments) if self.is_chief else
                                  tf.assign(variable, between.broadcast_recv(*arguments)))
            everything = tf.group(*operations)
        self.run(sess.run, everything)

    # Lost workers

    def run(self, function, *positional):
        """As process.wait_for, but raises ValueError if another worker is lost meanwhile."""
        try:
            return process.wait_for(function, *positional, meanwhile=self.check)
        except tf.errors.ResourceExhaustedError:
            raise
        except tf.errors.OpError:
            self.explain()
            raise

    def explain(self):
        """After an error: raises ValueError if a worker is lost, which may be noticed a little later than the error."""
        deadline, is_last = time.time() + SILENCE_SECONDS, False
        while not is_last:
            is_last = time.time() > deadline  # then check once more: this process may have been stopped meanwhile
            self.check()
            time.sleep(0.1)

    def check(self):
        """Raises ValueError if another worker is lost or does not answer in time."""
        if self.lost:
            raise ValueError(self.lost + '; the same command, for all workers, resumes from the last save')
        if time.time() > self.deadline:
            raise ValueError('the TF_CONFIGs of the workers contradict each other; give all of them the same list of '
                             'addresses, and each a different index: this one has index %d of %s'
                             % (self.index, ', '.join(self.addresses)))

    def watch(self):
        """Notice when another worker is lost. The chief watches all; all watch the chief, who ends if it loses one."""
        heard = {index: time.time() for index in (range(1, self.n_workers) if self.is_chief else [0])}
        crashed = math.inf  # when TensorFlow has
        while self.deadline == math.inf and not self.lost:
            for index in heard:
                answer = is_reachable(self.addresses[index])
                if answer:
                    heard[index] = time.time()
                elif answer is False or time.time() - heard[index] > SILENCE_SECONDS:
                    what = 'ended' if answer is False else 'not answered for %d seconds' % SILENCE_SECONDS
                    self.lost = 'worker %d, at %s, has %s' % (index, self.addresses[index], what)
            if self.crashes:
                crashed = min(crashed, time.time())
            if time.time() - crashed > SILENCE_SECONDS:
                self.lost = 'TensorFlow has crashed'
            time.sleep(1)


def is_reachable(address):
    """Whether a TensorFlow server answers at 'host:port'. None if there is no answer: the worker may be stopped."""
    host, _, port = address.rpartition(':')
    try:
        with contextlib.closing(socket.create_connection((host.strip('[]'), int(port)), timeout=5)) as connection:
            # The system accepts connections for a process that is stopped, too. But the server speaks first.
            return bool(connection.recv(1)) or None
    except ConnectionRefusedError:
        return False
    except OSError:
        return None


def check_port(address, index):
    """Raises ValueError if the port of an address is in use. gRPC would share it with the process that has it."""
    port = address.rpartition(':')[2]
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', int(port)))
        except OSError as error:
            raise ValueError('port %s, which TF_CONFIG gives to worker %d, cannot be used: %s; choose a different one'
                             % (port, index, error.strerror))


def n_visible_gpus():
    """The number of GPUs that this process may use."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None:
        return len([number for number in visible.split(',') if number.strip() not in ('', '-1')])
    return len(glob.glob('/dev/nvidia[0-9]*'))
