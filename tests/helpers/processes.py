"""Run a script as a user does: to its end, or in a conversation over pipes or on a terminal."""
import contextlib
import fcntl
import glob
import os
import select
import struct
import subprocess
import sys
import tempfile
import termios

UNCONDITIONAL, INTERACTIVE = 'generate_unconditional_samples.py', 'interactive_conditional_samples.py'
QUESTION = b'Model prompt >>> '
SECONDS = 600  # more than any process takes, even on a busy machine
CTRL_C, CTRL_D = b'\x03', b'\x04'
# Makes the terminal it runs on its controlling terminal, as for a shell's child; otherwise Ctrl-C is only a character.
ON_THE_TERMINAL = [sys.executable, '-c', 'import fcntl, os, sys, termios\n'
                   'fcntl.ioctl(0, termios.TIOCSCTTY, 0)\nos.execv(sys.argv[1], sys.argv[1:])']


def environment(**changes):
    """The environment, without the variables that change what Python or TensorFlow print, and with these changes."""
    ours = {name: value for name, value in os.environ.items()
            if name not in ('TF_CPP_MIN_LOG_LEVEL', 'PYTHONIOENCODING', 'PYTHONUTF8', 'PYTHONPATH', 'LC_ALL')}
    ours.update(changes)
    return ours


def finished(command, text=b'', *, env=None, cwd=None):
    """Run a command to its end with text as stdin. Returns (status, stdout, stderr), the last two as bytes."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=env or environment(), cwd=cwd)
    try:
        stdout, stderr = process.communicate(text, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, stdout, stderr


class Conversation:
    """A running command that a test writes to and reads from, in bytes: over pipes, or on a pseudo-terminal.

    On a terminal its stderr is in what it prints. Leaving the `with` kills it.
    width: of the terminal, which without it has none.
    """

    def __init__(self, command, *, terminal=False, width=0, env=None, cwd=None):
        self.errors = tempfile.TemporaryFile()
        options = {'env': env or environment(), 'cwd': cwd}
        if terminal:
            self.input, other_end = os.openpty()
            self.output = self.input
            fcntl.ioctl(self.input, termios.TIOCSWINSZ, struct.pack('HHHH', 24 if width else 0, width, 0, 0))
            self.process = subprocess.Popen(ON_THE_TERMINAL + command, stdin=other_end, stdout=other_end,
                                            stderr=other_end, start_new_session=True, **options)
            os.close(other_end)
        else:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                            **options)
            self.input, self.output = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.unread = b''

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.errors.close()
        if self.process.stdin:
            self.process.stdin.close()
            self.process.stdout.close()
        else:
            os.close(self.input)

    def say(self, text):
        os.write(self.input, text)

    def read_until(self, ending):
        """What the command printed since the last call, up to and including ending."""
        while ending not in self.unread:
            assert self.read_some(), 'it ended after printing %r; stderr: %r' % (self.unread, self.stderr())
        end = self.unread.index(ending) + len(ending)
        found, self.unread = self.unread[:end], self.unread[end:]
        return found

    def read_some(self):
        """Wait for output and add it to self.unread. Returns whether there may be more."""
        assert select.select([self.output], [], [], SECONDS)[0], 'it printed nothing for long, after %r' % self.unread
        try:
            new = os.read(self.output, 2 ** 16)
        except OSError:  # a terminal whose other end is closed
            new = b''
        self.unread += new
        return bool(new)

    def end(self):
        """Wait until it ends. Returns (status, what it printed since read_until)."""
        while self.read_some():
            pass
        return self.process.wait(SECONDS), self.unread

    def stderr(self):
        self.errors.seek(0)
        return self.errors.read()


def below(number):
    """{number} of a process and of all its descendants."""
    parents, found = {}, {number}
    for path in glob.glob('/proc/[0-9]*/stat'):
        with contextlib.suppress(OSError), open(path, 'rb') as file:  # it may have ended
            parents[int(path.split('/')[2])] = int(file.read().rpartition(b')')[2].split()[1])
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def is_running(number):
    """Whether a process has not ended."""
    with contextlib.suppress(OSError), open('/proc/%d/stat' % number, 'rb') as file:
        return file.read().rpartition(b')')[2].split()[0] != b'Z'
    return False


def listening(numbers):
    """The addresses on which processes wait for connections, as the kernel writes them: 0100007F is 127.0.0.1."""
    sockets, found = set(), set()
    for number in numbers:
        for path in glob.glob('/proc/%d/fd/*' % number):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(path))
    for protocol in 'tcp', 'tcp6':
        with open('/proc/net/' + protocol, encoding='ascii') as file:
            for line in map(str.split, file):
                if line[3] == '0A' and 'socket:[%s]' % line[9] in sockets:
                    found.add(line[1].split(':')[0])
    return sorted(found)
