"""Files that are written whole or not at all, JSON in them, and folders locked for one process at a time. No TensorFlow."""
import contextlib
import hashlib
import json
import os
import platform
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCKED_BYTE = 2 ** 20  # Windows lets nobody read a locked byte, so this one is far behind the text of the lock file


@contextlib.contextmanager
def replacing(path):
    """Yields path.part for a block to write to. It is renamed to path when the block ends, or removed if the block fails.

    The bytes are on the disk before the file is renamed, so that not even a power failure leaves half a file at path. If
    path is a link, its target is replaced. If it is a device or a pipe, such as /dev/null, the block writes to that itself.
    """
    if os.path.isfile(path):
        path = os.path.realpath(path)
    elif os.path.exists(path):
        yield path
        return
    part = path + '.part'
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or was never written
            os.remove(part)


def write_text(path, text):
    """Write a UTF-8 file, whole or not at all."""
    with replacing(path) as part, open(part, 'w', encoding='utf-8', newline='\n') as file:
        file.write(text)


def read_json(path, remedy='delete it and fetch it again'):
    """Returns the dict in a JSON file. Raises ValueError that ends with the remedy if the file does not hold one."""
    try:
        with open(path, encoding='utf-8') as file:
            values = json.load(file)
        if isinstance(values, dict):
            return values
        problem = 'it does not hold {"name": value, ...}'
    except RecursionError:
        problem = 'it is nested too deeply'
    except ValueError as error:
        problem = error
    raise ValueError('%s is damaged (%s); %s' % (path, problem, remedy))


def write_json(path, values):
    """Write a dict as a JSON file, whole or not at all."""
    write_text(path, json_line(values))


def json_line(values):
    """A dict as a line of JSON."""
    return json.dumps(values, sort_keys=True) + '\n'


def sync(path):
    """Wait until the bytes of a file are on the disk."""
    with open(path, 'rb+') as file:  # Windows syncs only what may be written
        os.fsync(file.fileno())


def sha256(path, prefix=b''):
    """Returns the hashlib object that has read prefix and then the bytes of a file."""
    digest = hashlib.sha256(prefix)
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(2 ** 16), b''):
            digest.update(block)
    return digest


@contextlib.contextmanager
def folder_lock(folder, busy, name='.lock'):
    """Keep other processes out of folder during a block; wait while another one is in it.

    name: of the lock's file. Locks of other names do not keep each other out.
    busy: function that is called once if another process has the lock, with a description ('process 123 on host');
        it may raise instead of waiting.
    The operating system holds the lock on the file and releases it however the process ends; the file may stay.
    """
    path = os.path.join(folder, name)
    told = False
    while True:
        with open(path, 'a+', encoding='utf-8', errors='replace') as file:
            if _lock(file):
                try:
                    file.truncate(0)
                    file.write('process %d on %s' % (os.getpid(), platform.node()))
                    file.flush()
                    yield
                    return
                finally:
                    with contextlib.suppress(OSError):  # Windows does not remove an open file
                        os.remove(path)
            if not told:
                file.seek(0)
                busy(file.readline(200).strip() or 'another process')
                told = True
        time.sleep(0.2)


def _lock(file):
    """Lock an open file against other processes.

    Returns False if another one has locked it, or has removed it since it was opened here.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            file.seek(LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    return False
