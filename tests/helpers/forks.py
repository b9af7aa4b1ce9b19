"""Runs scripts in forks of one process that has loaded TensorFlow, which takes seconds: forks.py, as a process.

A line on stdin is a JSON list of jobs, which run at the same time; the answer is a line with their statuses. A job: the
text of a function `main`, the outputs and arguments of flags.run, changes of the environment, and the paths of files
for stdout and stderr.
"""
import json
import os
import select
import signal
import subprocess
import sys
import tempfile

from helpers.paths import BENCHMARKS, SRC, TESTS
from helpers.processes import SECONDS, environment


class Forks:
    """The process, from the outside. Leaving the `with` ends it."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment(PYTHONPATH=os.pathsep.join([SRC, TESTS, BENCHMARKS])), start_new_session=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def run(self, *jobs):
        """Run scripts at the same time. Returns (status, stdout, stderr) of each, as processes.finished does.

        job: (text, arguments), (text, arguments, outputs) or (text, arguments, outputs, changes of the environment).
        """
        with tempfile.TemporaryDirectory() as folder:
            requests = []
            for number, (text, arguments, *more) in enumerate(jobs):
                outputs, changes = (more + [[], {}][len(more):])
                requests.append(dict(text=text, arguments=arguments, outputs=outputs, changes=changes, files=[
                    os.path.join(folder, '%s%d' % (name, number)) for name in ('stdout', 'stderr')]))
            self.process.stdin.write(json.dumps(requests).encode('ascii') + b'\n')
            self.process.stdin.flush()
            assert select.select([self.process.stdout], [], [], SECONDS)[0], 'a job does not end'
            statuses = json.loads(self.process.stdout.readline().decode('ascii'))
            return [(status,) + tuple(map(content, request['files'])) for status, request in zip(statuses, requests)]


def content(path):
    with open(path, 'rb') as file:
        return file.read()


def start(text, arguments, outputs, changes, files):
    """Run a job in a fork, as a command. Returns its process number."""
    from gpt2.system import flags, process
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(changes)
        for number, path in enumerate([os.devnull] + files):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), number)
        sys.argv = ['script.py'] + arguments
        process.is_command = True
        process.use_utf8()
        process.end_when_interrupted()
        names = {'os': os, 'sys': sys}
        exec('import signal, time\n' + text, names)
        flags.run(names['main'], outputs=outputs)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(1)


def main():
    from gpt2.system.tf1 import tf  # noqa: F401
    for line in sys.stdin:
        children = [start(**job) for job in json.loads(line)]
        statuses = [os.waitpid(child, 0)[1] for child in children]
        print(json.dumps([os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
                          for status in statuses]), flush=True)


if __name__ == '__main__':
    main()
