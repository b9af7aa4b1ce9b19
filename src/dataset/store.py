"""A dataset's folder, on a disk or at an address such as s3://bucket/folder: shards that are whole or absent. No TensorFlow."""
import contextlib
import os
import tempfile

from dataset import plan
import files

MANIFEST = 'manifest.json'


def open_store(out):
    """The store at out: a path, or an address for which fsspec has a file system. Raises ValueError if it has none."""
    if not out:
        raise ValueError('--out is empty; give a folder for the rows')
    if '://' not in out:
        return Folder(out)
    try:
        import fsspec
        file_system, path = fsspec.core.url_to_fs(out)
    except (ImportError, ValueError, OSError) as error:  # OSError: zip:// of what is no zip file, for example
        raise ValueError('--out %s cannot be written to: %s; `pip install fsspec` reads addresses, and a package of its own '
                         'each kind, such as s3fs for s3://' % (out, error))
    return Folder(path) if out.startswith(('file://', 'local://')) else Bucket(file_system, path, out)


def has_manifest(names, store):
    """Whether there is a manifest among names. Raises ValueError if there are only shards: nobody knows their settings."""
    if MANIFEST not in names and any('.jsonl' in name and not name.startswith('.') for name in names):
        raise ValueError('%s has files of rows and no %s; choose another --out' % (store, MANIFEST))
    return MANIFEST in names


class Folder(object):
    """A folder on a disk, which other machines may see, too."""

    def __init__(self, path):
        self.path = os.path.abspath(os.path.expanduser(path))

    def __str__(self):
        return self.path

    def names(self):
        """The names of what is in it, none if it does not exist."""
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise ValueError('%s is a file; choose another --out' % self.path)
        return set(os.listdir(self.path)) if os.path.isdir(self.path) else set()

    def manifest(self):
        """The settings of the rows in it, or None if it has none. Raises ValueError for rows without settings."""
        if not has_manifest(self.names(), self):
            return None
        return files.read_json(os.path.join(self.path, MANIFEST), 'choose another --out')

    def write_manifest(self, settings):
        """Write the manifest, unless it is there. Raises ValueError if it has other settings: another run was faster."""
        with files.folder_lock(self.path, lambda holder: None, '.%s.lock' % MANIFEST):
            before = self.manifest()
            plan.check_same(before, settings, self)
            if before is None:
                files.write_json(os.path.join(self.path, MANIFEST), settings)

    def add(self, name, text_bytes):
        """Write a shard, whole or not at all."""
        with files.replacing(os.path.join(self.path, name)) as part, open(part, 'wb') as file:
            file.write(text_bytes)

    @contextlib.contextmanager
    def claimed(self, name):
        """Keep other processes from making the same shard during a block. Raises ValueError if one is at it."""
        def busy(holder):
            raise ValueError('%s in %s is being made by %s; start this again when that has ended' % (name, self, holder))

        try:
            os.makedirs(self.path, exist_ok=True)
            with files.folder_lock(self.path, busy, '.%s.lock' % name):
                yield
        except OSError as error:
            if error.errno and error.filename is None:  # a write does not say where the disk was full
                error.filename = self.path
            raise


class Bucket(object):
    """A folder of an object store, where a file appears when all of it is there. It has no locks."""

    def __init__(self, file_system, path, address):
        self.file_system, self.path, self.address = file_system, path.rstrip('/'), address

    def __str__(self):
        return self.address

    def names(self):
        """The names of what is in it, none if it does not exist."""
        with self.errors_told():
            self.file_system.invalidate_cache()
            try:
                return {os.path.basename(path) for path in self.file_system.ls(self.path, detail=False)}
            except FileNotFoundError:
                return set()

    def manifest(self):
        """The settings of the rows in it, or None if it has none. Raises ValueError for rows without settings."""
        if not has_manifest(self.names(), self):
            return None
        with tempfile.TemporaryDirectory() as folder, self.errors_told():
            path = os.path.join(folder, MANIFEST)
            self.file_system.get_file('%s/%s' % (self.path, MANIFEST), path)
            return files.read_json(path, 'choose another --out')

    def write_manifest(self, settings):
        """Write the manifest, unless it is there. Raises ValueError if it has other settings: another run was faster."""
        before = self.manifest()
        plan.check_same(before, settings, self)
        if before is None:
            self.add(MANIFEST, files.json_line(settings).encode('utf-8'))

    def add(self, name, text_bytes):
        """Write a shard, whole or not at all."""
        with self.errors_told():
            self.file_system.pipe_file('%s/%s' % (self.path, name), text_bytes)

    @contextlib.contextmanager
    def claimed(self, name):
        """Nothing: who makes a shard that another one makes writes the same."""
        yield

    @contextlib.contextmanager
    def errors_told(self):
        """Whatever error a library for one kind of address raises in a block becomes an OSError."""
        try:
            yield
        except ValueError:
            raise
        except Exception as error:
            raise OSError('%s cannot be reached: %s: %s' % (self, type(error).__name__, error))
