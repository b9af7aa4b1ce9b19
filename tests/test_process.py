"""process.py: Ctrl-C at any moment ends a script at once and silently, or lets it finish what it must."""
import contextlib
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from gpt2 import sampler
from gpt2.system import process
from helpers.paths import ROOT, SRC
from helpers.processes import INTERACTIVE, QUESTION, SECONDS, UNCONDITIONAL, Conversation, environment, finished

FOREVER = 2 * SECONDS  # how long the work would take that a signal ends
INTERRUPTS = pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
EVERY_SIGNAL = pytest.mark.parametrize('number', process.INTERRUPTS)


# When it begins

COMMANDS = ['convert.py', 'evaluate.py', 'generate_dataset.py', 'generate_unconditional_samples.py',
            'interactive_conditional_samples.py', 'serve.py', 'train.py']


@pytest.mark.slow
@pytest.mark.parametrize('name, number', list(zip(COMMANDS, 3 * process.INTERRUPTS)))
def test_set_up_is_what_a_command_does_first(tmp_path, name, number):
    """A slow package that says when it is loaded stands in for a slow disk."""
    (tmp_path / 'json.py').write_text('import time\nprint("loading", flush=True)\ntime.sleep(999)\n', encoding='utf-8')
    command = [sys.executable, os.path.join(ROOT, 'src', name)]
    with Conversation(command, env=environment(PYTHONPATH=str(tmp_path))) as running:
        running.read_until(b'loading\n')
        running.process.send_signal(number)
        assert running.end() == (128 + number, b'') and running.stderr() == b''


@pytest.mark.slow
@pytest.mark.parametrize('name', COMMANDS)
def test_commands_run_in_python_s_stricter_modes(name):
    """-I leaves the command's folder out of the path, as PYTHONSAFEPATH does; -OO has no docstrings to show."""
    status, stdout, stderr = finished([sys.executable, '-I', '-OO', os.path.join(ROOT, 'src', name), '--help'])
    assert (status, stderr) == (0, b'') and (b'--models_dir=' in stdout or b'COMMAND --help' in stdout)


USERS_OWN = '''
import atexit, importlib, os, signal, sys, threading, time
result = open(sys.argv[1], 'w')
def note(*what):
    print(*what, file=result, flush=True)
atexit.register(note, 'atexit')
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
def state():
    return [sys.stdin, sys.stdout, sys.stderr, sys.excepthook] + [
        signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
before = state()
def load():
    for name in %r:
        importlib.import_module(name)
    note('loaded')
loading = threading.Thread(target=load)
loading.start()
loading.join()
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
finally:
    note('finally', state() == before, sys.modules['sample'].__file__.startswith(os.path.dirname(__file__)))
'''


@pytest.mark.slow
def test_importing_touches_nothing_of_a_program_of_the_user_s_own(tmp_path):
    """It keeps its handlers, streams and exit status, even in src; it may import from a thread, and has no console."""
    source = tmp_path / 'src'
    shutil.copytree(os.path.join(ROOT, 'src'), str(source), ignore=shutil.ignore_patterns('__pycache__'))
    modules = sorted('.'.join(path.relative_to(source).with_suffix('').parts) for path in source.glob('**/*.py'))
    (source / 'users_own_program.py').write_text(USERS_OWN % modules, encoding='utf-8')
    command = ['sh', '-c', 'exec "$@" <&- >&- 2>&-', 'sh', sys.executable, str(source / 'users_own_program.py')]
    assert finished(command + [str(tmp_path / 'result')])[0] == 3
    assert (tmp_path / 'result').read_text() == 'loaded\nfinally True True\natexit\n'


class Bare:
    """A stream that has nothing but write."""

    def __init__(self):
        self.text = ''

    def write(self, text):
        self.text += text


def run_as_notebook(monkeypatch, name, *arguments):
    """Run a command inside this process, as %run does. Returns what it wrote to streams that have only write()."""
    streams = {'stdin': None, 'stdout': Bare(), 'stderr': Bare()}
    monkeypatch.setattr(sys, 'argv', [name] + list(arguments))
    for stream in streams:
        monkeypatch.setattr(sys, stream, streams[stream])
    state = [sys.excepthook] + [signal.getsignal(number) for number in process.INTERRUPTS]
    try:
        runpy.run_path(os.path.join(ROOT, 'src', name), run_name='__main__')
    finally:
        assert [sys.excepthook] + [signal.getsignal(number) for number in process.INTERRUPTS] == state
        assert {stream: getattr(sys, stream) for stream in streams} == streams
        found = streams['stdout'].text, streams['stderr'].text
        monkeypatch.undo()
    return found


@pytest.mark.slow
def test_set_up_is_not_done_in_a_notebook(monkeypatch, flat_models):
    """%run returns, also without a console. A mistake is a line and a SystemExit, and the stop button ends the cell."""
    flags_of_tiny = '--model_name', 'tiny', '--models_dir', flat_models
    stdout, stderr = run_as_notebook(
        monkeypatch, UNCONDITIONAL, '--nsamples', '2', '--length', '3', *flags_of_tiny)
    assert stdout.count(' SAMPLE ') == 2 and stderr == ''
    assert run_as_notebook(monkeypatch, INTERACTIVE, *flags_of_tiny) == ('', '')
    for error, caught in ((ValueError('not so'), SystemExit), (KeyboardInterrupt(), KeyboardInterrupt)):
        monkeypatch.setattr(sampler.Sampler, 'build', lambda *_, error=error, **options: (_ for _ in ()).throw(error))
        with pytest.raises(caught):
            run_as_notebook(monkeypatch, UNCONDITIONAL, *flags_of_tiny)


def test_set_up_is_done_before_what_takes_long_is_imported():
    """Until then Ctrl-C is a traceback. Python itself loads the others at its start, or has them built in."""
    program = ('import sys; before = set(sys.modules); sys.path.insert(0, %r); from gpt2.system import process; '
               'print(*sorted(set(sys.modules) - before))' % SRC)
    new = subprocess.check_output([sys.executable, '-I', '-c', program], timeout=SECONDS).decode('ascii').split()
    assert set(new) <= {'gpt2', 'gpt2.system', 'gpt2.system.process', 'termios', 'time', 'errno', '_signal'}, new


# A process that is to end

@pytest.mark.slow
@INTERRUPTS
@pytest.mark.parametrize('work', [
    'import hashlib; hashlib.pbkdf2_hmac("sha256", b"", b"", 2 ** 31 - 1)',  # C code, as TensorFlow's
    'while True: pass',
    'import threading; threading.Lock().acquire(); threading.Event().wait()',
    'try:\n        time.sleep(%d)\n    except KeyboardInterrupt:\n        print("heard")' % FOREVER,
    ], ids=['C', 'Python', 'lock', 'except'])
def test_an_interrupt_ends_a_script_whatever_it_is_doing(script, work, number):
    with Conversation(script('def main():\n    print("busy", flush=True)\n    ' + work)) as running:
        running.read_until(b'busy\n')
        time.sleep(0.1)
        running.process.send_signal(number)
        assert running.process.wait(SECONDS) == 128 + number
        assert running.stderr() == b'' and not running.read_some()


@pytest.mark.parametrize('block', ['process.interruptible()', 'open(os.devnull)'])
def test_an_interrupt_that_was_ignored_at_the_start_stays_ignored(script, block):
    """A shell starts background commands so, for Ctrl-C to end only the one in the foreground."""
    program = script('def main():\n    with %s:\n        print("busy", flush=True)\n'
                     '        sys.stdin.readline()\n    print("done")' % block)
    with Conversation(['sh', '-c', 'trap "" INT; exec "$@"', 'sh'] + program) as running:
        running.read_until(b'busy\n')
        running.process.send_signal(signal.SIGINT)
        running.say(b'\n')
        assert running.end() == (0, b'done\n')


@pytest.mark.slow
@pytest.mark.parametrize('closing', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_what_is_printed_to_a_closed_stream_interrupts_nothing(script, closing):
    """The next file gets the number of the closed stream: it must not be the pipe that waits for interrupts."""
    program = script('def main(path):\n    for number in range(3):\n        try:\n'
                     '            os.write(number, b"\\x02\\x0f" * 9)\n        except OSError:\n            pass\n'
                     '    time.sleep(0.2)\n'
                     '    with open(path, "w") as file:\n        file.write("whole")')
    path = os.path.join(os.path.dirname(program[1]), 'file')
    assert finished(['sh', '-c', 'exec "$@" ' + closing, 'sh'] + program + [path])[0] == 0
    with open(path) as file:
        assert file.read() == 'whole'


def test_an_interrupt_ends_a_process_in_the_background_of_a_terminal(script):
    """It may not set the terminal's mode: that would stop it, as if by Ctrl-Z, for ever."""
    program = script('''
def main():
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        process.end_when_interrupted()
        print("child %d." % os.getpid(), flush=True)
        time.sleep(9999)
    print("status", os.waitpid(child, os.WUNTRACED)[1])
''')
    with Conversation(program, terminal=True) as terminal:
        child = int(re.search(b'child (\\d+)', terminal.read_until(b'.')).group(1))
        os.kill(child, signal.SIGTERM)
        try:
            assert b'status %d\r' % (143 << 8) in terminal.end()[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


# A block that is to finish something

HEARING = '''
def main():
    with process.interruptible():
        try:
            print("busy", flush=True)
            {work}
        except KeyboardInterrupt:
            print("heard", flush=True)
            import hashlib; hashlib.pbkdf2_hmac("sha256", b"", b"", 2 ** 31 - 1)
'''


@INTERRUPTS
@pytest.mark.parametrize('work', [
    'time.sleep(9999)', 'import hashlib; process.wait_for(hashlib.pbkdf2_hmac, "sha256", b"", b"", 2 ** 31 - 1)'])
def test_a_block_hears_the_first_interrupt_and_the_second_ends_the_script(script, work, number):
    with Conversation(script(HEARING.format(work=work))) as running:
        running.read_until(b'busy\n')
        time.sleep(0.1)
        running.process.send_signal(number)
        assert running.read_until(b'heard\n') == b'heard\n'
        running.process.send_signal(number)
        assert running.process.wait(SECONDS) == 128 + number
        assert running.stderr() == b''


def test_after_a_block_an_interrupt_ends_the_script_again(script):
    program = script('def main():\n    try:\n'
                     '        with process.interruptible():\n            pass\n'
                     '        print("busy", flush=True)\n        time.sleep(9999)\n'
                     '    except KeyboardInterrupt:\n        print("heard")')
    with Conversation(program) as running:
        running.read_until(b'busy\n')
        running.process.send_signal(signal.SIGINT)
        assert running.end() == (130, b'')


def test_a_block_may_have_a_function_of_its_own_for_every_interrupt():
    heard = []
    with process.interruptible(lambda: heard.append(1)):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    assert len(heard) == 3


@EVERY_SIGNAL
@pytest.mark.parametrize('block, last, stdout, stderr', [
    ('process.interruptible(lambda: heard.append(1))', 'print("saved")', b'saved\n', b''),
    ('process.interruptible()', 'raise KeyboardInterrupt("3 of 5 done")', b'', b'script.py: 3 of 5 done\n')])
def test_interruptible_command_that_tidies_up_ends_with_the_signal_s_status(
        script, number, block, last, stdout, stderr):
    """Otherwise Slurm, Kubernetes and `a && b` would take the run for a finished one. It may say what is not done."""
    program = script('def main():\n    heard = []\n    try:\n        with %s:\n            print("busy", flush=True)\n'
                     '            while not heard:\n                time.sleep(0.01)\n'
                     '    except KeyboardInterrupt:\n        pass\n    %s' % (block, last))
    with Conversation(program) as running:
        running.read_until(b'busy\n')
        running.process.send_signal(number)
        assert running.end() == (128 + number, stdout)
        assert running.stderr() == stderr


def test_interruptible_changes_nothing_in_another_thread():
    """Only the main thread can have handlers."""
    before = [signal.getsignal(number) for number in process.INTERRUPTS]
    found = []

    def work():
        with process.interruptible():
            found.extend(signal.getsignal(number) for number in process.INTERRUPTS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before == [signal.getsignal(number) for number in process.INTERRUPTS]


@pytest.mark.parametrize('interrupt', [None, lambda: None])
def test_interruptible_ignores_a_second_hangup(interrupt):
    """A lost connection sends two, of the shell and of the kernel. The second must not end what the first has begun."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        with process.interruptible(interrupt):
            try:
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.01)
            except KeyboardInterrupt:
                assert not interrupt
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            assert process.interrupted_by == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        process.interrupted_by = None


def test_after_a_block_the_handlers_are_what_they_were():
    """pytest has its own handler for Ctrl-C, and so has a notebook."""
    before = [signal.getsignal(number) for number in process.INTERRUPTS]
    with process.interruptible():
        assert [signal.getsignal(number) for number in process.INTERRUPTS] != before
    assert [signal.getsignal(number) for number in process.INTERRUPTS] == before
    with pytest.raises(KeyboardInterrupt):
        with process.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(FOREVER)
    assert [signal.getsignal(number) for number in process.INTERRUPTS] == before


# wait_for

@pytest.mark.slow
def test_ctrl_c_is_not_lost_between_calls(script):
    """80 processes make one short call after the other, and are interrupted at 80 different moments."""
    program = script('''
def main():
    lost = 0
    for microseconds in range(2000, 3600, 20):
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            end = time.time() + 60
            try:
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                while time.time() < end:
                    process.wait_for(int)
            except KeyboardInterrupt:
                os._exit(0)
            os._exit(1)
        lost += os.waitpid(child, 0)[1] != 0
    print(lost, 'lost')
''')
    assert finished(program) == (0, b'0 lost\n', b'')


def test_wait_for_returns_or_raises_what_the_call_does():
    assert process.wait_for(divmod, 7, 2) == (3, 1)
    assert process.wait_for(sorted, [1, 2], reverse=True) == [2, 1]
    with pytest.raises(ZeroDivisionError):
        process.wait_for(divmod, 7, 0)


# Any moment

RANDOM_MOMENTS = '''
import random, tempfile
random.seed({seed})


def work(count=1):
    """What scripts do: import, print, wait for a lock, compute in C, and clean up after an error."""
    import hashlib, json, threading
    while True:
        print(json.dumps(list(range(100))), flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1000)
        threading.Lock().acquire(timeout=0.001)
        with process.interruptible() if random.random() < 0.5 else open(os.devnull):
            try:
                process.wait_for(time.sleep, 0.001)
            finally:
                list(map(str, range(100)))


def main():
    import fire, numpy
    for moment in range(100):
        errors = tempfile.TemporaryFile()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            process.end_when_interrupted()  # again, as a fork does not copy threads
            os.write(ready, b"x")
            flags.run(work)
        os.read(born, 1)
        time.sleep(random.uniform(0, 0.05))
        number = random.choice(process.INTERRUPTS)
        os.kill(child, number)
        deadline = time.time() + 180
        ended, status = 0, 0
        while not ended and time.time() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.001)
        errors.seek(0)
        said = errors.read()
        if not ended or status != 128 + number << 8 or said:
            print(moment, ended, status, said)
            os.kill(child, signal.SIGKILL)


born, ready = os.pipe()
'''


@pytest.mark.slow
def test_an_interrupt_at_any_of_100_random_moments_ends_a_script_silently(script):
    seed = random.randrange(10 ** 6)
    assert finished(script(RANDOM_MOMENTS.format(seed=seed))) == (0, b'', b''), 'seed %d' % seed


def listens(pid):
    """Whether a process has a handler for SIGTERM, which Python itself does not install."""
    with open('/proc/%d/status' % pid, encoding='ascii') as file:
        caught = re.search('SigCgt:\\s*([0-9a-f]+)', file.read()).group(1)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs /proc, to see when a process listens')
def test_an_interrupt_ends_a_sampler_while_it_imports_loads_and_samples():
    """From the script's first import on: it cannot change what happens while Python itself starts."""
    for name, seconds, samples in ((UNCONDITIONAL, 0, False), (INTERACTIVE, 0.5, False), (UNCONDITIONAL, 1, False),
                                   (INTERACTIVE, 0, True)):
        process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, 'src', name), '--model_name', 'demo', '--batch_size', '64'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        process.stdin.write(b'Once\n' * 99)
        process.stdin.flush()
        while not listens(process.pid):
            time.sleep(0.001)
        if samples:
            assert process.stdout.read(1)
        time.sleep(random.uniform(seconds, 2 * seconds + 0.3))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=SECONDS)
        assert process.returncode == 130 and stderr.replace(QUESTION, b'') == b'', 'after %g s and more' % seconds


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='needs glibc')
@pytest.mark.parametrize('call, is_one', [('pass', False), ('process.share_memory_between_threads()', True)])
def test_share_memory_between_threads(tmp_path, call, is_one):
    """As malloc_info of glibc lists the pools, while four threads hold memory of their own."""
    program = """
import ctypes, sys, threading
sys.path.insert(0, %r)
from gpt2.system import process
%s
libc, held = ctypes.CDLL(None), threading.Barrier(5)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p

def hold():
    libc.malloc(1000)
    held.wait(60)
    held.wait(60)

threads = [threading.Thread(target=hold) for _ in range(4)]
for thread in threads:
    thread.start()
held.wait(60)
file = ctypes.c_void_p(libc.fopen(%r, b'w'))
libc.malloc_info(0, file)
libc.fclose(file)
held.wait(60)
""" % (SRC, call, os.fsencode(str(tmp_path / 'pools.xml')))
    assert finished([sys.executable, '-c', program]) == (0, b'', b'')
    assert ((tmp_path / 'pools.xml').read_text().count('<heap nr=') == 1) == is_one


@pytest.mark.parametrize('said, n_cores', [
    (None, 3), ('', 3), ('2', 2), ('1,4', 1), ('8', 8), ('0', 3), ('many', 3), ('1024', 1024), ('1025', 3),
    ('100000', 3), ('9' * 5000, 3), ('\u00b2', 3)], ids=lambda said: repr(said)[:9])
def test_omp_num_threads_says_how_many_cores_to_use(monkeypatch, said, n_cores):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 5}, raising=False)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    if said is not None:
        monkeypatch.setenv('OMP_NUM_THREADS', said)
    assert process.n_cores() == n_cores
