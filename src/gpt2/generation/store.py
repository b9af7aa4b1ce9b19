"""The folder of a dataset, on a disk or at an address such as s3://bucket/folder. A shard in it is always complete."""
import contextlib
import os

from gpt2.generation import plan
from gpt2.system import files, process

MANIFEST = 'manifest.json'
KINDS = {'cores': (int, None)}  # the others are only compared


def open_store(out):
    """The store at out, a path or an address. Raises ValueError if rows cannot be written to the address, or vanish."""
    if not out:
        raise ValueError('--out is empty; give a folder for the rows')
    if '://' not in out:
        return Folder(out)
    try:
        import fsspec
        file_system, path = fsspec.core.url_to_fs(out)
    except (ImportError, ValueError, OSError) as error:  # OSError: zip:// of a file that is not a zip file, for example
        # The text of an error may be a part of a password.
        raise ValueError('--out %s cannot be written to: %s; addresses need `pip install fsspec`, and most kinds a '
                         'package of their own, such as s3fs for s3://' % (
                             process.without_password(out), type(error).__name__ if '@' in out else error))
    if 'memory://' in out:
        raise ValueError('--out is %s, the memory of this process, which ends with it; give a folder' % out)
    return Folder(path) if out.startswith(('file://', 'local://')) else Bucket(file_system, path, out)


class Store:
    """What both kinds of stores share. A subclass has an address, names(), read(), add() and lock()."""

    def __str__(self):
        return process.without_password(self.address)

    def manifest(self):
        """The settings of the rows in the store, None if it has none. Raises ValueError for rows without settings."""
        names = self.names()
        if MANIFEST in names:
            return files.parse_dict(self.read(MANIFEST), '%s/%s' % (self, MANIFEST), KINDS, 'choose another --out')
        if any('.jsonl' in name and not name.startswith('.') for name in names):
            raise ValueError('%s has files of rows and no %s; choose another --out' % (self, MANIFEST))

    def write_manifest(self, settings):
        """Write the manifest if it is missing. Raises ValueError if another process has written different settings."""
        with self.lock(MANIFEST, busy=lambda holder: None):
            manifest = self.manifest()
            plan.check_same(manifest, settings, self)
            if manifest is None:
                self.add(MANIFEST, files.json_line(settings).encode('utf-8'))

    def claimed(self, name):
        """Keep other processes from making the same shard during a block. Raises ValueError if one is making it."""
        def busy(holder):
            raise ValueError('%s in %s is being made by %s; start again when that has ended' % (name, self, holder))

        return self.lock(name, busy)


class Folder(Store):
    """A folder on a disk, which other machines may share."""

    def __init__(self, path):
        self.path = self.address = os.path.abspath(os.path.expanduser(path))

    def names(self):
        """The names of the files in the folder; empty if it does not exist."""
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise ValueError('%s is a file; choose another --out' % self.path)
        return set(os.listdir(self.path)) if os.path.isdir(self.path) else set()

    def read(self, name):
        """The bytes of a file."""
        return files.read_bytes(os.path.join(self.path, name))

    def add(self, name, data):
        """Write the bytes of a file, completely or not at all."""
        with files.replacing(os.path.join(self.path, name)) as part, open(part, 'wb') as file:
            file.write(data)

    @contextlib.contextmanager
    def lock(self, name, busy):
        """Lock a file of the folder during a block. busy: function that is called if another process has locked it."""
        try:
            os.makedirs(self.path, exist_ok=True)
            with files.folder_lock(self.path, busy, '.%s.lock' % name):
                yield
        except OSError as error:
            if error.errno and error.filename is None:  # the error of a write does not say which disk is full
                error.filename = self.path
            raise


class Bucket(Store):
    """A folder in an object store, where a file appears once it is complete."""

    def __init__(self, file_system, path, address):
        self.file_system, self.path, self.address = file_system, path.rstrip('/'), address

    def names(self):
        """The names of the files in the folder; empty if it does not exist."""
        with self.as_os_error():
            self.file_system.invalidate_cache()  # another process may have added files since it was listed
            try:
                return {os.path.basename(path) for path in self.file_system.ls(self.path, detail=False)}
            except FileNotFoundError:
                return set()

    def read(self, name):
        """The bytes of a file."""
        with self.as_os_error():
            return self.file_system.cat_file('%s/%s' % (self.path, name))

    def add(self, name, data):
        """Write the bytes of a file, completely or not at all."""
        with self.as_os_error():
            self.file_system.pipe_file('%s/%s' % (self.path, name), data)

    @contextlib.contextmanager
    def lock(self, name, busy):
        """An object store has no locks: two processes that make the same shard write the same bytes."""
        yield

    @contextlib.contextmanager
    def as_os_error(self):
        """Raise errors of a block as OSError: the library for each kind of address has its own."""
        try:
            yield
        except Exception as error:
            raise OSError('%s cannot be reached: %s: %s' % (
                self, type(error).__name__, process.without_password(str(error))))
