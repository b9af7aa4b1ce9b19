"""The process itself: its streams, what ends it and with which status, and how many cores it uses.

Commands import this module first of all. Until set_up() has returned, Ctrl-C ends them with a traceback, so this module
imports only what Python has loaded already or what is written in C.
"""
import _signal as signal  # signal.py would first load enum, collections and others
import _thread
import codecs
import errno
import io
import os
import sys
import time

try:
    import termios
except ImportError:  # Windows
    termios = None

# Ctrl-C; what kill, Docker, Kubernetes and Slurm send; and a terminal or an ssh connection that is closed
INTERRUPTS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name))
NOBODY_READS = errno.EPIPE, errno.EIO, errno.ECONNRESET  # from a pipe, a terminal, a connection
MAX_CORES = 1024  # more are a mistake
ESCAPES = {code: ('\\x%02x' if code < 256 else '\\u%04x') % code for codes in (
    range(9), range(10, 32), range(127, 160),  # control characters, except tabs
    range(0x200e, 0x2010), range(0x2028, 0x202f), range(0x2066, 0x206a),  # line ends, and what turns the direction
    range(0xdc80, 0xdd00)) for code in codes}  # bytes that are not UTF-8

is_command = False  # whether this process runs a command and nothing else: see set_up
interrupted_by = None  # the last signal in an interruptible block, after which flags.run exits with 128 + its number
stdout_is_optional = False  # whether the work is worth going on with when nobody reads its output: see flags.run


def set_up():
    """Prepare the process of a command: UTF-8 streams, an end on Ctrl-C and SIGTERM, one line for a missing package.

    A command calls this first, under `if __name__ == '__main__':`, before the imports that are slow or may fail.
    If another program runs the command (%run in a notebook, a debugger, a profiler), this does nothing: the process,
    with its streams and signals, is the other program's.
    """
    global is_command
    caller = sys._getframe(1).f_back
    while caller and caller.f_globals.get('__name__') == 'runpy':  # python3 -m
        caller = caller.f_back
    is_command = caller is None
    if is_command:
        use_utf8()
        end_when_interrupted()
        show_error = sys.excepthook
        sys.excepthook = lambda kind, error, trace: (
            print_error(error) if issubclass(kind, ImportError) else show_error(kind, error, trace))


def use_utf8():
    """Make the standard streams UTF-8, whatever the locale; closed ones read and write os.devnull.

    Invalid bytes are read as U+FFFD. A byte order mark, with which Windows begins a file, is not part of the input, and
    only a line feed ends a line.
    """
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        stream = getattr(sys, name) or open(os.devnull, mode, encoding='utf-8')
        if not isinstance(stream, io.TextIOWrapper):
            continue  # an object of whoever has set up this Python: it stays as it is
        is_unbuffered = isinstance(stream.buffer, io.RawIOBase)  # python3 -u; many containers
        line_buffering = name == 'stderr' or stream.line_buffering or is_unbuffered
        setattr(sys, name, io.TextIOWrapper(stream.detach(), 'utf-8-sig', 'replace', newline='\n') if mode == 'r' else
                Output(stream.detach(), 'utf-8', 'encode_surrogates', line_buffering=line_buffering))


class Output(io.TextIOWrapper):
    """stdout or stderr. What nobody can read any more is dropped, unless it is the only result of the work.

    A pipe's reader may have ended, as `tee` does on Ctrl-C, or a terminal may be gone; stderr's disk may be full.
    """

    def write(self, text):
        try:
            super().write(text)
        except OSError as error:
            self.drop(error)
        return len(text)

    def flush(self):
        try:
            super().flush()
        except OSError as error:
            self.drop(error)

    def drop(self, error):
        if self is not sys.stderr and not (stdout_is_optional and error.errno in NOBODY_READS):
            raise error


class Whole(io.TextIOBase):
    """A text stream that has all methods, around one that has only write(), or around None."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        if self.stream is not None:
            self.stream.write(text)
        return len(text)


def whole(stream):
    """A stream that has all methods: programs without a console have None, or objects of their own."""
    return stream if hasattr(stream, 'isatty') and hasattr(stream, 'flush') else Whole(stream)


def encode_surrogates(error):
    """Error handler: encode surrogates as the bytes of a path that Python decoded to them, others as question marks."""
    error.end = error.start + 1  # one at a time, as a run of them may have both
    try:
        return codecs.lookup_error('surrogateescape')(error)
    except UnicodeEncodeError:
        return codecs.lookup_error('replace')(error)


codecs.register_error('encode_surrogates', encode_surrogates)


def escaped(text):
    """A message as one line in which control characters and bytes that are not UTF-8 are visible, such as \\x1b.

    Names of files, among others, come from strangers, and could set a terminal's title or forge a line of a log.
    Addresses have no user name and password before the host.
    """
    text = without_password(text)
    return text.encode('utf-8', 'encode_surrogates').decode('utf-8', 'surrogateescape').translate(ESCAPES)


def without_password(text):
    """A text in which addresses have no user name and password before the host."""
    if '://' not in text:
        return text
    import re  # not above: it takes long
    return re.sub(r'://\S*@', '://', text)


def print_error(error):
    """Print an error on stderr in one line; for a missing package, with how to install it."""
    message = ' '.join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError) and message.startswith('No module named'):
        message += ('; run `source "$(make --silent activate)"` in the repository to install and use what is needed; '
                    'docs/install.md describes other ways')
    print(escaped('%s: %s' % (os.path.basename(sys.argv[0]), message)), file=whole(sys.stderr))


# Ctrl-C, SIGTERM and SIGHUP

def end_when_interrupted():
    """Let Ctrl-C end the process at once and silently, whatever it is doing, with status 130; SIGTERM 143, SIGHUP 129.

    Python calls handlers in the main thread, which may be inside TensorFlow for a minute. So a thread waits for a byte
    that Python writes to a pipe when a signal arrives. (The system's default action would not restore a terminal that
    readline has changed, and does not end the first process of a container.) Signals that are ignored at the start, as
    under nohup, stay ignored.
    """
    mode = termios.tcgetattr(0) if termios and os.isatty(0) else None

    def end(number, frame=None):
        try:
            if mode and os.tcgetpgrp(0) == os.getpgrp():  # a background process may not set the terminal's mode
                termios.tcsetattr(0, termios.TCSANOW, mode)  # readline may have changed it
        finally:
            os._exit(128 + number)

    def wait():
        while True:
            number = os.read(reading, 1)[0]
            if number in INTERRUPTS:
                end(number)

    reading, writing = os.pipe()
    if hasattr(os, 'set_blocking'):  # it is missing on Windows, where Python does not require it
        os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in INTERRUPTS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    _thread.start_new_thread(wait, ())


class interruptible:
    """A block in which Ctrl-C and other INTERRUPTS raise KeyboardInterrupt, to finish something or to tidy up.

    It is raised once. Then the previous handlers are back, so that a second Ctrl-C ends a command at once. A second
    SIGHUP in the block is ignored: a lost connection sends it twice, from the shell and from the kernel.
    interrupt: function to call instead of raising, each time.
    stopped: function that returns the message of a KeyboardInterrupt that leaves the block: what is left undone.
    Only the main thread can handle signals; in other threads the block changes nothing.

    However the command continues, flags.run exits with the signal's status, as interrupted_by keeps the signal. It
    prints the message of a KeyboardInterrupt.
    """

    def __init__(self, interrupt=None, stopped=None):
        self.interrupt, self.stopped = interrupt, stopped

    def __enter__(self):
        self.before, self.wakeup = {}, None
        try:
            self.wakeup = signal.set_wakeup_fd(-1)
        except ValueError:  # not the main thread
            return
        self.before = {number: signal.getsignal(number) for number in INTERRUPTS
                       if signal.getsignal(number) != signal.SIG_IGN}
        for number in self.before:
            signal.signal(number, self.handle)

    def __exit__(self, kind=None, *_):
        if self.wakeup is not None:
            signal.set_wakeup_fd(self.wakeup)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self.stopped:
            raise KeyboardInterrupt(self.stopped())

    def handle(self, number, frame):
        global interrupted_by
        interrupted_by = number
        if not self.interrupt:
            self.__exit__()
        if number == getattr(signal, 'SIGHUP', None):
            signal.signal(number, signal.SIG_IGN)
        if not self.interrupt:
            raise KeyboardInterrupt
        self.interrupt()


def wait_for(function, *positional, meanwhile=lambda: None, **named):
    """Call function in a thread and return its result: KeyboardInterrupt need not wait for TensorFlow to return.

    meanwhile: called repeatedly until then; if it raises, so does wait_for, and function continues in its thread.
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
    while not running.acquire(timeout=0.1):  # short, as a signal just before it is noticed only when it ends
        meanwhile()
    if 'error' in outcome:
        raise outcome['error']
    return outcome['value']


def end_with(parent):
    """End this process when its parent, a process number, has ended: one that is killed cannot end its children."""
    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    _thread.start_new_thread(watch, ())


def share_memory_between_threads():
    """Let the C library take the memory of all later threads from one pool.

    With a pool for each thread, as glibc has it, a server's memory grows as different threads compute its requests.
    """
    import ctypes
    try:
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX of glibc's malloc.h
    except (AttributeError, OSError, TypeError):  # another C library
        pass


def n_cores():
    """The number of processors to use: OMP_NUM_THREADS if that is 1 to 1024, otherwise all available to the process."""
    limit = os.environ.get('OMP_NUM_THREADS', '').split(',')[0].strip()
    if limit.isdecimal() and len(limit) < 5 and 0 < int(limit) <= MAX_CORES:
        return int(limit)
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
