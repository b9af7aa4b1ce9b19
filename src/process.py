"""The process itself: how many cores it has, and what Ctrl-C does, and SIGTERM, which Docker, Slurm and kill send.

In a script both signals are answered from the moment this module is imported, so a script imports it, by way of flags, first.
"""
import _thread
import functools
import os
import signal
import sys

try:
    import termios
except ImportError:  # Windows
    termios = None

INTERRUPTS = signal.SIGINT, signal.SIGTERM


@functools.lru_cache(maxsize=None)  # once
def end_when_interrupted():
    """From now on Ctrl-C and SIGTERM end the process at once, silently, whatever it is doing: status 0.

    Python itself would tell the main thread, which may be in the midst of an import, or in TensorFlow and hear of nothing
    for a minute. So a thread of its own waits for the byte that Python writes when a signal comes. A signal that the process
    was started to ignore, as by nohup, is ignored.
    """
    number = 0
    while number <= 2:  # a standard stream that is closed: its number is not for the pipe, or what is printed would end all
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    mode = termios.tcgetattr(0) if termios and os.isatty(0) else None

    def end(*_):
        try:
            if mode and os.tcgetpgrp(0) == os.getpgrp():  # only who stands in the foreground may
                termios.tcsetattr(0, termios.TCSANOW, mode)  # readline gives the terminal a mode of its own
        finally:
            os._exit(0)

    reading, writing = os.pipe()
    if hasattr(os, 'set_blocking'):  # not on Windows, where Python does not ask for it
        os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in INTERRUPTS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)

    def wait():
        while os.read(reading, 1)[0] not in INTERRUPTS:
            pass
        end()

    _thread.start_new_thread(wait, ())


class interruptible:
    """A block in which Ctrl-C and SIGTERM raise KeyboardInterrupt, because there is something to finish or to tidy up.

    It is raised once: from then on all is as it was before the block, so a second Ctrl-C ends a script.
    interrupt: function to call instead, each time.
    """

    def __init__(self, interrupt=None):
        self.interrupt = interrupt

    def __enter__(self):
        handlers = {number: signal.getsignal(number) for number in INTERRUPTS}
        self.before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        self.wakeup = signal.set_wakeup_fd(-1)
        for number in self.before:
            signal.signal(number, self.handle)

    def __exit__(self, *error):
        signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def handle(self, number, frame):
        if self.interrupt:
            self.interrupt()
        else:
            self.__exit__()
            raise KeyboardInterrupt


def wait_for(function, *positional, **named):
    """What function returns, called in a thread: KeyboardInterrupt comes soon, where TensorFlow would hold it for minutes."""
    outcome = {}
    running = _thread.allocate_lock()
    running.acquire()

    def call():
        try:
            outcome['value'] = function(*positional, **named)
        except BaseException as error:
            outcome['error'] = error
        running.release()

    # Not threading.Thread nor an executor: a KeyboardInterrupt that comes inside their Python code may get lost.
    _thread.start_new_thread(call, ())
    while not running.acquire(timeout=0.1):  # one that comes just before a wait begins is heard only when it ends
        pass
    if 'error' in outcome:
        raise outcome['error']
    return outcome['value']


def n_cores():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def is_script():
    """Whether the process runs one of the scripts beside this file."""
    script = getattr(sys.modules['__main__'], '__file__', None)
    return script is not None and os.path.dirname(os.path.realpath(script)) == os.path.dirname(os.path.realpath(__file__))


if is_script():
    end_when_interrupted()
