"""The process itself: how many cores it has, and what it does on Ctrl-C and on SIGTERM, which Docker, Slurm and kill send.

In a script both signals have their effect from the moment this module is imported, so flags, which imports it, comes first.
"""
import _thread
import functools
import os
import signal
import sys
import threading
import time

try:
    import termios
except ImportError:  # Windows
    termios = None

INTERRUPTS = signal.SIGINT, signal.SIGTERM


@functools.lru_cache(maxsize=None)  # once
def end_when_interrupted():
    """Let Ctrl-C and SIGTERM end the process from now on, at once and silently, whatever it is doing, with status 0.

    Python runs its own handlers in the main thread, which may be inside TensorFlow for a minute. So a thread waits for the
    byte that Python writes to a pipe when a signal arrives. A signal ignored at the start, as under nohup, stays ignored.
    """
    number = 0
    while number <= 2:  # fill the numbers of closed standard streams: if the pipe got one, a print would end the process
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    mode = termios.tcgetattr(0) if termios and os.isatty(0) else None

    def end(*_):
        try:
            if mode and os.tcgetpgrp(0) == os.getpgrp():  # a background process may not set the terminal's mode
                termios.tcsetattr(0, termios.TCSANOW, mode)  # readline may have changed it
        finally:
            os._exit(0)

    reading, writing = os.pipe()
    if hasattr(os, 'set_blocking'):  # it is missing on Windows, where Python does not require it
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

    It is raised once. Then the signals do again what they did before the block, so a second Ctrl-C ends a script.
    interrupt: function to call instead of raising, each time.
    """

    def __init__(self, interrupt=None):
        self.interrupt = interrupt

    def __enter__(self):
        self.before = {number: signal.getsignal(number) for number in INTERRUPTS if signal.getsignal(number) != signal.SIG_IGN}
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


def wait_for(function, *positional, meanwhile=lambda: None, **named):
    """Call function in a thread and return its result, so that KeyboardInterrupt need not wait for TensorFlow to return.

    meanwhile: called again and again until then; what it raises is raised, and the function goes on by itself.
    """
    outcome = {}
    running = _thread.allocate_lock()
    running.acquire()

    def call():
        try:
            outcome['value'] = function(*positional, **named)
        except BaseException as error:
            outcome['error'] = error
        running.release()

    # Not threading.Thread nor an executor: a KeyboardInterrupt inside their Python code may get lost.
    _thread.start_new_thread(call, ())
    while not running.acquire(timeout=0.1):  # short waits: a signal just before a wait is noticed only when it ends
        meanwhile()
    if 'error' in outcome:
        raise outcome['error']
    return outcome['value']


def n_cores():
    """How many processors this process is to use: OMP_NUM_THREADS, where that is set, or else as many as it may."""
    limit = os.environ.get('OMP_NUM_THREADS', '').split(',')[0].strip()
    if limit.isdigit() and int(limit):
        return int(limit)
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def end_with(parent):
    """End this process when the one that has started it, number parent, is gone: one that is killed cannot end others."""
    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def is_script():
    """Whether the process runs one of the scripts beside this file."""
    script = getattr(sys.modules['__main__'], '__file__', None)
    return script is not None and os.path.dirname(os.path.realpath(script)) == os.path.dirname(os.path.realpath(__file__))


if is_script():
    end_when_interrupted()
