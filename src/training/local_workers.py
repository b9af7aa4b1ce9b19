"""Workers on one machine: processes of the same script, each with a GPU of its own, or with a share of the cores."""
import contextlib
import glob
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import process

LAUNCHER = 'GPT2_TRAIN_LAUNCHER'  # the environment variable that gives a worker the number of the process that started it
ENDING_SECONDS = 60  # when one worker is done, the others have so long to end, too


def run(script, options):
    """Run train.py's flags by as many processes as they say; return when all have ended.

    Ctrl-C and SIGTERM are passed on. When one process fails, all are ended; when one is done, the others have a minute.
    Raises SystemExit for one that failed, after showing what it said; ValueError for one that was killed.
    """
    n = options.workers
    addresses = free_addresses(n)
    gpus = visible_gpus()
    if gpus and len(gpus) < n:
        raise ValueError('--workers is %d, and this machine has %d GPUs; give as many, or hide them: CUDA_VISIBLE_DEVICES=-1'
                         % (n, len(gpus)))
    command = [sys.executable, script] + ['--%s=%s' % (name, value) for name, value in sorted(vars(options).items())
                                          if name != 'workers' and value is not None]
    with contextlib.ExitStack() as opened:
        workers, said = [], [None] + [opened.enter_context(tempfile.TemporaryFile()) for _ in range(n - 1)]
        opened.callback(end, workers)
        opened.enter_context(process.interruptible(lambda: [worker.send_signal(signal.SIGINT) for worker in workers]))
        for index in range(n):
            task = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
            environment = dict(os.environ, TF_CONFIG=json.dumps(task), OMP_NUM_THREADS=str(max(1, process.n_cores() // n)))
            environment[LAUNCHER] = str(os.getpid())
            if gpus:
                environment['CUDA_VISIBLE_DEVICES'] = gpus[index]
            # A session of its own, since Ctrl-C in a terminal reaches all processes of a session, and is passed on as well.
            workers.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=said[index],
                                            start_new_session=True))
        deadline = math.inf
        while time.time() < deadline:
            ended = [worker.poll() for worker in workers]
            for index, status in enumerate(ended):
                if status:
                    raise_end(index, status, said[index])
            if ended.count(0) == n:
                return
            if 0 in ended:
                deadline = min(deadline, time.time() + ENDING_SECONDS)
            time.sleep(0.1)


def end(workers):
    """End processes, at once."""
    for worker in workers:
        worker.kill()
        worker.wait()


def raise_end(index, status, said):
    """End because a worker has failed, after showing the last line it said. said: the file; worker 0 has shown it itself."""
    if status < 0:
        raise ValueError('worker %d was ended by signal %d; the same command goes on from the last save' % (index, -status))
    if said is not None:
        said.seek(0)
        print('worker %d: %s' % (index, said.read().decode('utf-8', 'replace').strip().split('\n')[-1]), file=sys.stderr)
    raise SystemExit(1)


def free_addresses(n):
    """Addresses on this machine that nothing listens to, at ports below those that the system gives away by itself."""
    found = []
    for port in random.SystemRandom().sample(range(20000, 32768), n + 100):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(('', port))
            found.append('localhost:%d' % port)
    return found[:n]


def visible_gpus():
    """The numbers of the GPUs that this process may use, as texts."""
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None:
        return [number.strip() for number in visible.split(',') if number.strip() not in ('', '-1')]
    return [str(number) for number in range(len(glob.glob('/dev/nvidia[0-9]*')))]  # CUDA counts those that are there


def end_with_the_others():
    """In a worker that run() has started: end when the process of run() is gone, even if it was killed."""
    if LAUNCHER in os.environ:
        process.end_with(int(os.environ[LAUNCHER]))
