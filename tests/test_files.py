"""files.py: a file is whole or not there, whatever happens; a folder's lock keeps other processes out."""
import errno
import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from gpt2.system import files
from helpers.paths import SRC
from helpers.processes import SECONDS

# Holds the folder argv[1] until it is told to end, or killed; says on stdout whom it waits for and when it has it.
HOLDER = '''
import sys
sys.path.insert(0, %r)
from gpt2.system import files
with files.folder_lock(sys.argv[1], lambda holder: print('waiting for', holder, flush=True)):
    print('has it', flush=True)
    sys.stdin.read()
''' % SRC


def hold(folder):
    return subprocess.Popen([sys.executable, '-c', HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            universal_newlines=True)


def let_go(process):
    """End a holder. Returns what else it has printed."""
    printed = process.communicate('', timeout=SECONDS)[0]
    assert process.returncode == 0
    return printed


def take(folder):
    """Lock the folder for a moment; fails if it is locked."""
    def busy(holder):
        raise AssertionError('held by ' + holder)
    with files.folder_lock(str(folder), busy):
        pass


# Whole or not at all

def test_a_file_appears_with_its_name_only_when_the_block_has_ended(tmp_path):
    path = str(tmp_path.joinpath('text'))
    with files.replacing(path) as part:
        with open(part, 'w', encoding='utf-8') as file:
            file.write('whole')
        assert os.listdir(str(tmp_path)) == ['text.part']
    assert os.listdir(str(tmp_path)) == ['text']
    assert tmp_path.joinpath('text').read_bytes() == b'whole'


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path.joinpath('text')
    for before in ([], [b'old']):
        for content in before:
            path.write_bytes(content)
        with pytest.raises(error), files.replacing(str(path)) as part:
            with open(part, 'wb') as file:
                file.write(b'half')
            raise error()
        assert [file.read_bytes() for file in tmp_path.iterdir()] == before


def test_a_rename_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path.joinpath('text')
    path.write_bytes(b'old')

    def refuse(part, path):
        raise OSError(errno.EACCES, 'no')
    monkeypatch.setattr(files.os, 'replace', refuse)
    with pytest.raises(OSError, match='no'):
        files.write_text(str(path), 'new')
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b'old']


def test_a_file_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    """Otherwise a power failure could leave an empty file under the name of a good one."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, 'fsync', lambda number: (
        calls.append(('sync', os.fstat(number).st_size)), fsync(number)))
    monkeypatch.setattr(files.os, 'replace', lambda *names: (calls.append('rename'), replace(*names)))
    files.write_text(str(tmp_path.joinpath('text')), 'whole')
    assert calls == [('sync', 5), 'rename']


def test_text_is_utf8_with_plain_line_ends_whatever_the_locale(tmp_path):
    program = ('import sys; sys.path.insert(0, %r); from gpt2.system import files; '
               'files.write_text(sys.argv[1], "\\xe9\\u20ac\\n")' % SRC)
    path = tmp_path.joinpath('text')
    subprocess.check_call([sys.executable, '-c', program, str(path)], timeout=SECONDS,
                          env=dict(os.environ, LC_ALL='POSIX'))
    assert path.read_bytes() == 'é€\n'.encode('utf-8')


@pytest.mark.parametrize('make', [os.symlink, os.link, lambda victim, path: os.symlink('/dev/full', path)],
                         ids=['link', 'second name', 'link to a device'])
@pytest.mark.parametrize('name', ['text', 'text.part', '.lock'])
def test_nothing_is_written_through_a_link_that_a_stranger_has_made(tmp_path, name, make):
    """What is written is new files: the link is replaced, and its target stays as it is."""
    folder, victim = tmp_path / 'folder', tmp_path / 'victim'
    folder.mkdir()
    victim.write_bytes(b'precious')
    make(str(victim), str(folder / name))
    with files.folder_lock(str(folder), None):
        files.write_text(str(folder / 'text'), 'new')
    assert victim.read_bytes() == b'precious'
    assert os.listdir(str(folder)) == ['text']
    assert (folder / 'text').read_bytes() == b'new' and not (folder / 'text').is_symlink()


def test_a_lock_file_that_becomes_a_link_at_the_last_moment_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / 'victim').write_bytes(b'precious')
    monkeypatch.setattr(files, 'remove_link', lambda path: os.symlink('victim', path))
    with pytest.raises(OSError, match='.lock'), files.folder_lock(str(tmp_path), None):
        pass
    assert (tmp_path / 'victim').read_bytes() == b'precious'


def test_a_part_that_becomes_a_link_at_the_last_moment_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / 'victim').write_bytes(b'precious')
    with monkeypatch.context() as patched, pytest.raises(FileExistsError):
        patched.setattr(files.os, 'remove', lambda path: os.path.islink(path) or os.symlink('victim', path))
        files.write_text(str(tmp_path / 'text'), 'new')
    assert (tmp_path / 'victim').read_bytes() == b'precious'


@pytest.mark.skipif(not os.path.exists('/dev/fd'), reason='needs /dev/fd')
def test_a_stream_that_the_user_names_is_written_to(tmp_path):
    """/dev/stdout and /dev/fd/3 are links; what they lead to may be a file."""
    with open(str(tmp_path / 'file'), 'wb+') as file:
        path = '/dev/fd/%d' % file.fileno()
        files.write_text(path, 'text')
        assert os.path.islink(path) and file.read() == b'text'
    assert files.is_device('/dev/stdout') and os.listdir(str(tmp_path)) == ['file']


def test_a_device_or_pipe_is_written_to_and_stays(tmp_path):
    """Otherwise root would turn /dev/null into a file."""
    pipe = str(tmp_path.joinpath('pipe'))
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDWR), 'rb') as reading:
        with files.replacing(pipe) as part, open(part, 'wb') as file:
            file.write(b'text')
        assert reading.read(4) == b'text'
    assert os.listdir(str(tmp_path)) == ['pipe']
    assert not os.path.isfile(pipe)


# JSON

KINDS = {'name': (str,), 'step': (int,), 'loss': (int, float), 'text': (str, None)}


def test_read_json_reads_no_giant(tmp_path):
    path = tmp_path / 'giant.json'
    with open(str(path), 'wb') as file:
        file.truncate(2 ** 40)
    with pytest.raises(ValueError, match='giant.json has over 134217728 bytes'):
        files.read_json(str(path))


@pytest.mark.parametrize('text, problem', [
    ('{"name": "x", "step": 3, "loss": 1, "text": null, "other": []}', None),
    ('{"name": "x", "step": 3, "loss": 0.5}', None),
    ('{"name": "x", "step": true, "loss": 1}', 'step is True instead of int'),
    ('{"name": ["x"], "step": 3, "loss": 1}', "name is ['x'] instead of str"),
    ('{"name": "x", "loss": 1}', 'step is None instead of int'),
    ('{"name": "x", "step": 3, "loss": "1"}', "loss is '1' instead of int or float"),
    ('{"name": "x", "step": 3, "loss": 1, "text": 5}', 'text is 5 instead of str'),
    ('[1]', 'expected {"name": value, ...}'), ('null', 'expected {'), ('{"name": ', 'Expecting value'),
    ('', 'Expecting value'),
    ('[' * 10 ** 5, 'it is nested'), ('{"name": ' * 10 ** 5, 'it is nested')], ids=lambda text: str(text)[:70])
def test_read_json_checks_the_kinds_of_the_values(tmp_path, text, problem):
    path = tmp_path / 'file.json'
    path.write_text(text, encoding='utf-8')
    if problem is None:
        assert files.read_json(str(path), KINDS)['step'] == 3
    else:
        with pytest.raises(ValueError) as error:
            files.read_json(str(path), KINDS, 'choose another')
        assert str(error.value).startswith('%s is damaged (%s' % (path, problem))
        assert str(error.value).endswith('); choose another')


# One process at a time

def test_a_second_process_waits_and_is_told_once_who_has_the_folder(tmp_path):
    first = hold(tmp_path)
    assert first.stdout.readline() == 'has it\n'
    second = hold(tmp_path)
    assert second.stdout.readline() == 'waiting for process %d on %s\n' % (first.pid, platform.node())
    time.sleep(0.5)  # more than one look at the lock
    assert let_go(first) == ''
    assert second.stdout.readline() == 'has it\n'
    assert let_go(second) == ''
    assert os.listdir(str(tmp_path)) == []


def test_busy_may_raise_instead_of_waiting_and_the_holder_keeps_the_folder(tmp_path):
    holder = hold(tmp_path)
    holder.stdout.readline()
    for _ in range(2):
        with pytest.raises(AssertionError, match='held by process %d on ' % holder.pid):
            take(tmp_path)
    let_go(holder)
    take(tmp_path)


def test_a_killed_holder_frees_the_folder(tmp_path):
    holder = hold(tmp_path)
    holder.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=SECONDS)
    assert os.listdir(str(tmp_path)) == ['.lock']
    tmp_path.joinpath('.lock').write_bytes(b'process 123456789 on a host with a long name')
    with files.folder_lock(str(tmp_path), None):
        me = 'process %d on %s' % (os.getpid(), platform.node())
        assert tmp_path.joinpath('.lock').read_bytes() == me.encode('utf-8')
    assert os.listdir(str(tmp_path)) == []


def test_a_block_that_fails_frees_the_folder(tmp_path):
    with pytest.raises(ValueError), files.folder_lock(str(tmp_path), None):
        raise ValueError
    take(tmp_path)
    assert os.listdir(str(tmp_path)) == []


def test_whatever_is_in_a_lock_file_the_holder_is_one_short_line(tmp_path):
    """If the file is still empty, nothing is known about the process."""
    holder = hold(tmp_path)
    holder.stdout.readline()
    for content, told in ((b'', 'another process'), (b'\xff' * 10 ** 6, '\ufffd' * 200), (b'one\ntwo', 'one')):
        tmp_path.joinpath('.lock').write_bytes(content)
        with pytest.raises(AssertionError) as caught:
            take(tmp_path)
        assert str(caught.value) == 'held by ' + told
    let_go(holder)


def test_the_lock_of_a_removed_file_does_not_count(tmp_path, monkeypatch):
    """Otherwise two processes could each hold one: on the removed file and on the new one."""
    path = str(tmp_path.joinpath('.lock'))
    with open(path, 'a+', encoding='utf-8') as opened_before:
        os.remove(path)
        assert not files._lock(opened_before)
        with open(path, 'a+', encoding='utf-8') as opened_after:
            assert not files._lock(opened_before)
            assert files._lock(opened_after)


def test_a_file_system_without_locks_does_not_keep_anybody_out(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(files.fcntl, 'flock', unsupported)
    take(tmp_path)


def test_windows_can_import_it_and_locks_a_byte_that_nobody_reads():
    """It has no fcntl. This shows which calls are made there, not that they work."""
    program = '''
import os, sys, tempfile, types
calls = []
def locking(number, how, n_bytes):
    calls.append((how, n_bytes, os.lseek(number, 0, os.SEEK_CUR) > 10 ** 5))
sys.modules.update(fcntl=None, msvcrt=types.SimpleNamespace(LK_NBLCK=3, locking=locking))
sys.path.insert(0, sys.argv[1])
from gpt2.system import files
with tempfile.TemporaryDirectory() as folder, files.folder_lock(folder, None):
    assert calls == [(3, 1, True)]
    with open(os.path.join(folder, '.lock')) as lock:
        assert lock.read().startswith('process ')
'''
    subprocess.check_call([sys.executable, '-c', program, SRC], timeout=SECONDS)
