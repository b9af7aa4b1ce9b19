"""process.py: Ctrl-C at any moment ends a script at once and silently, or lets it finish what it must."""
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

import process
from test_flags import ROOT, SECONDS, Conversation, environment, finished, script  # noqa: F401

AT_ONCE_SECONDS = 5  # where TensorFlow would compute for a minute, and pytest's neighbours keep the cores busy
INTERRUPTS = pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])


def ended(process):
    """Wait for a process that was interrupted, which must not take long. Returns (status, stderr)."""
    began = time.time()
    _, stderr = process.communicate(timeout=SECONDS)
    assert time.time() - began < AT_ONCE_SECONDS
    return process.returncode, stderr


# A process that is to end

@INTERRUPTS
@pytest.mark.parametrize('work', [
    'import hashlib; hashlib.pbkdf2_hmac("sha256", b"", b"", 2 ** 31 - 1)',  # C code that ignores signals, as TensorFlow's
    'while True: pass',
    'import threading; threading.Lock().acquire(); threading.Event().wait()',
    'try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        print("heard")'], ids=['C', 'Python', 'lock', 'except'])
def test_an_interrupt_ends_a_script_whatever_it_is_doing(script, work, number):  # noqa: F811
    with Conversation(script('def main():\n    print("busy", flush=True)\n    ' + work)) as running:
        running.read_until(b'busy\n')
        time.sleep(0.1)
        running.process.send_signal(number)
        assert running.process.wait(AT_ONCE_SECONDS) == 0
        assert running.stderr() == b'' and not running.read_some()


def test_an_interrupt_that_was_ignored_at_the_start_stays_ignored(script):  # noqa: F811
    """A shell starts background commands so, for Ctrl-C to end only the one in the foreground."""
    program = script('def main():\n    print("busy", flush=True)\n    sys.stdin.readline()\n    print("done")')
    with Conversation(['sh', '-c', 'trap "" INT; exec "$@"', 'sh'] + program) as running:
        running.read_until(b'busy\n')
        running.process.send_signal(signal.SIGINT)
        running.say(b'\n')
        assert running.end() == (0, b'done\n')


@pytest.mark.parametrize('closing', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_what_is_printed_to_a_closed_stream_interrupts_nothing(script, closing):  # noqa: F811
    """The next file gets the number of the closed stream: it must not be the pipe that waits for interrupts."""
    program = script('def main(path):\n    for number in range(3):\n        try:\n            os.write(number, b"\\x02\\x0f" * 9)\n'
                     '        except OSError:\n            pass\n    time.sleep(0.2)\n'
                     '    with open(path, "w") as file:\n        file.write("whole")')
    path = os.path.join(os.path.dirname(program[1]), 'file')
    assert finished(['sh', '-c', 'exec "$@" ' + closing, 'sh'] + program + [path])[0] == 0
    with open(path) as file:
        assert file.read() == 'whole'


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
@pytest.mark.parametrize('work', ['time.sleep(60)',
                                  'import hashlib; process.wait_for(hashlib.pbkdf2_hmac, "sha256", b"", b"", 2 ** 31 - 1)'])
def test_a_block_hears_the_first_interrupt_and_the_second_ends_the_script(script, work, number):  # noqa: F811
    with Conversation(script('import process\n' + HEARING.format(work=work))) as running:
        running.read_until(b'busy\n')
        time.sleep(0.1)
        running.process.send_signal(number)
        assert running.read_until(b'heard\n') == b'heard\n'
        running.process.send_signal(number)
        assert running.process.wait(AT_ONCE_SECONDS) == 0
        assert running.stderr() == b''


def test_after_a_block_an_interrupt_ends_the_script_again(script):  # noqa: F811
    program = script('import process\ndef main():\n    try:\n        with process.interruptible():\n            pass\n'
                     '        print("busy", flush=True)\n        time.sleep(60)\n'
                     '    except KeyboardInterrupt:\n        print("heard")')
    with Conversation(program) as running:
        running.read_until(b'busy\n')
        running.process.send_signal(signal.SIGINT)
        assert running.end() == (0, b'')


def test_a_block_may_have_a_function_of_its_own_for_every_interrupt():
    heard = []
    with process.interruptible(lambda: heard.append(1)):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    assert len(heard) == 3


def test_after_a_block_the_handlers_are_what_they_were():
    """pytest has its own handler for Ctrl-C, and so has a notebook."""
    before = [signal.getsignal(number) for number in process.INTERRUPTS]
    with process.interruptible():
        assert [signal.getsignal(number) for number in process.INTERRUPTS] != before
    assert [signal.getsignal(number) for number in process.INTERRUPTS] == before
    with pytest.raises(KeyboardInterrupt):
        with process.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert [signal.getsignal(number) for number in process.INTERRUPTS] == before


# wait_for

def test_ctrl_c_is_not_lost_between_calls(script):  # noqa: F811
    """80 processes make one short call after the other, and are interrupted at 80 different moments."""
    program = script('''
import process
def main():
    lost = 0
    for microseconds in range(2000, 3600, 20):
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            end = time.time() + 1
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
import process
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
    for moment in range(200):
        errors = tempfile.TemporaryFile()
        child = os.fork()
        if not child:
            process.end_when_interrupted.cache_clear()  # a fork does not copy threads
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            process.end_when_interrupted()
            os.write(ready, b"x")
            flags.run(work)
        os.read(born, 1)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, random.choice(process.INTERRUPTS))
        deadline = time.time() + 5
        ended, status = 0, 0
        while not ended and time.time() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.001)
        errors.seek(0)
        said = errors.read()
        if not ended or status or said:
            print(moment, ended, status, said)
            os.kill(child, signal.SIGKILL)


born, ready = os.pipe()
'''


def test_an_interrupt_at_any_of_200_random_moments_ends_a_script_silently(script):  # noqa: F811
    seed = random.randrange(10 ** 6)
    assert finished(script(RANDOM_MOMENTS.format(seed=seed))) == (0, b'', b''), 'seed %d' % seed


def listens(pid):
    """Whether a process has a handler for SIGTERM, which Python itself does not install."""
    with open('/proc/%d/status' % pid, encoding='ascii') as file:
        caught = re.search('SigCgt:\\s*([0-9a-f]+)', file.read()).group(1)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='needs /proc, to see when a process listens')
@pytest.mark.parametrize('name', ['generate_unconditional_samples.py', 'interactive_conditional_samples.py'])
def test_an_interrupt_ends_a_sampler_while_it_imports_loads_and_samples(name):
    """From the script's first import on: it cannot change what happens while Python itself starts."""
    for seconds in (0, 0.5, 1, 4):
        process = subprocess.Popen([sys.executable, os.path.join(ROOT, 'src', name), '--model_name', 'demo', '--batch_size', '64'],
                                   stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
        process.stdin.write(b'Once\\n' * 99)
        process.stdin.flush()
        while not listens(process.pid):
            time.sleep(0.001)
        time.sleep(random.uniform(seconds, 2 * seconds + 0.3))
        process.send_signal(signal.SIGINT)
        status, stderr = ended(process)
        assert (status, stderr.replace(b'Model prompt >>> ', b'')) == (0, b''), 'after %g s and more' % seconds


@pytest.mark.parametrize('said, n_cores', [(None, 3), ('', 3), ('2', 2), ('1,4', 1), ('8', 8), ('0', 3), ('many', 3)])
def test_omp_num_threads_says_how_many_cores_to_use(monkeypatch, said, n_cores):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 5}, raising=False)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    if said is not None:
        monkeypatch.setenv('OMP_NUM_THREADS', said)
    assert process.n_cores() == n_cores
