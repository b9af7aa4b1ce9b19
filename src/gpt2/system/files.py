"""Files that are written completely or not at all, JSON files, and locks on folders. No TensorFlow."""
import contextlib
import hashlib
import io
import json
import os
import platform
import stat
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

MAX_BYTES = 2 ** 27  # of a file that is read as a whole; the tokenizer.json of a large vocabulary has a tenth of that
LOCKED_BYTE = 2 ** 20  # on Windows no other process can read a locked byte, so it is far behind the lock file's text


@contextlib.contextmanager
def replacing(path):
    """Yields path.part for a block to write to. It is renamed to path after the block, or removed if the block fails.

    The bytes are on the disk before the file is renamed, so that not even a power failure leaves an incomplete file.
    If path is a link, it is replaced, and so is a link at path.part: nothing is written through links, which a stranger
    may have made. If path is a device or a pipe, such as /dev/null or /dev/stdout, the block writes to it.
    """
    if is_device(path):
        yield path
        return
    part = path + '.part'
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)  # of a process that was killed
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # which does not follow a link
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):  # it was renamed, or was never written
            os.remove(part)


def is_device(path):
    """Whether path is a device, a pipe or another thing that can be written to and not replaced."""
    if os.path.islink(path):  # such as /dev/stdout
        folder = os.path.realpath(os.path.dirname(path))
        return folder == '/dev' or folder.startswith('/proc/')
    return os.path.exists(path) and not os.path.isfile(path)


def write_text(path, text):
    """Write a UTF-8 file, completely or not at all."""
    with replacing(path) as part, open(part, 'w', encoding='utf-8', newline='\n') as file:
        file.write(text)


def read_json(path, kinds=None, remedy='fetch it again'):
    """Returns the dict in a JSON file.

    kinds: {name: the types that the value may have, None among them if it may be missing}. Other names are not checked.
    Raises ValueError, with the remedy, for a file that does not contain such a dict.
    """
    return parse_dict(read_bytes(path), path, kinds, remedy)


def read_bytes(path):
    """The bytes of a file. Raises ValueError for more than MAX_BYTES: it may be a link to /dev/zero."""
    with open(path, 'rb') as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError('%s has over %d bytes; such a file is not supported' % (path, MAX_BYTES))
    return data


def read_text(path):
    """The text of a UTF-8 file. Raises as read_bytes does."""
    return io.TextIOWrapper(io.BytesIO(read_bytes(path)), 'utf-8').read()


def parse_dict(data, path, kinds=None, remedy='fetch it again'):
    """As read_json, for the bytes of the file."""
    try:
        values = parse_json(data.decode('utf-8'), object_pairs_hook=without_duplicates)
        if not isinstance(values, dict):
            raise ValueError('expected {"name": value, ...}')
        for name, types in sorted((kinds or {}).items()):
            value = values.get(name)
            if type(value) not in types and not (value is None and None in types):
                raise ValueError('%s is %.60r instead of %s' % (
                    name, value, ' or '.join(kind.__name__ for kind in types if kind)))
        return values
    except ValueError as error:
        raise ValueError('%s is damaged (%s); %s' % (path, error, remedy))


def parse_json(text, **options):
    """Returns the value of a text in JSON. options: as json.loads takes them. Raises ValueError for any other text."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError('it is nested too deeply')


def without_duplicates(pairs):
    """The dict of a JSON object's pairs. Raises ValueError for a name that occurs twice; programs differ on it."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError('a name occurs twice')
    return values


def write_json(path, values):
    """Write a dict to a JSON file, completely or not at all."""
    write_text(path, json_line(values))


def json_line(values):
    """Returns a dict as a line of JSON."""
    return json.dumps(values, sort_keys=True) + '\n'


def sync(path):
    """Wait until the bytes of a file are on the disk."""
    with open(path, 'rb+') as file:  # Windows syncs only files that are open for writing
        os.fsync(file.fileno())


def sha256(path, prefix=b''):
    """Returns the hashlib object of prefix followed by the bytes of a file."""
    digest = hashlib.sha256(prefix)
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(2 ** 16), b''):
            digest.update(block)
    return digest


@contextlib.contextmanager
def folder_lock(folder, busy, name='.lock'):
    """Hold an exclusive lock on folder during a block; wait while another process holds it.

    name: the lock file's name. Locks with different names are independent.
    busy: function that is called once if another process holds the lock, with its description ('process 123 on host');
        it may raise instead of waiting.
    The operating system releases the lock however the process ends; the file may remain.
    """
    path = os.path.join(folder, name)
    waiting = False
    while True:
        remove_link(path)
        with open(path, 'a+', encoding='utf-8', errors='replace', opener=without_following) as file:
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
            if not waiting:
                file.seek(0)
                busy(file.readline(200).strip() or 'another process')
                waiting = True
        time.sleep(0.2)


def remove_link(path):
    """Remove what is at path if it is a link, or another name of a file: a stranger may have made it."""
    with contextlib.suppress(FileNotFoundError):
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode) or stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            os.remove(path)


def without_following(path, flags):
    """An opener for open() that raises OSError for a link."""
    return os.open(path, flags | getattr(os, 'O_NOFOLLOW', 0), 0o666)  # Windows does not have it


def _lock(file):
    """Returns whether an open file could be locked: not if another process has locked it, or removed it since."""
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
