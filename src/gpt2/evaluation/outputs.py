"""What the commands write: files and Markdown tables."""
import os

from gpt2.system import files, process
from gpt2.system.progress import report


def check_output(flag, path, inputs=()):
    """Raises an error if the file that a flag names cannot be written, as far as can be seen before trying.

    path: None if the flag was not given.  inputs: paths that must not be replaced, or None.
    Raises ValueError, OSError, and for a chart without matplotlib ImportError.
    """
    if path is None:
        return
    if not path:
        raise ValueError('--%s is empty; give the name of a file' % flag)
    folder = os.path.dirname(path) or '.'
    if not os.path.isdir(folder):
        raise FileNotFoundError('--%s is %s, but there is no folder %s; create it first' % (flag, path, folder))
    if os.path.isdir(path):
        raise IsADirectoryError('--%s is %s, a folder; give the name of a file' % (flag, path))
    if not files.is_device(path) and not os.access(folder, os.W_OK):
        raise PermissionError('--%s is %s, and the folder %s is not writable; give another path' % (flag, path, folder))
    for other in inputs:  # files.replacing writes to path.part first
        if other is not None and os.path.realpath(other) in (os.path.realpath(path), os.path.realpath(path) + '.part'):
            raise ValueError('--%s is %s, which would replace %s; give another name' % (flag, path, other))
    if flag == 'chart':
        import matplotlib  # noqa: F401, so that a missing package is reported before hours of work


def must_keep_old_file(flag, path, interrupted):
    """Whether to keep the file at path, because its replacement is incomplete after Ctrl-C; reports that."""
    if not interrupted or not os.path.exists(path):
        return False
    report('--%s: %s is left unchanged' % (flag, path))
    return True


def print_table(header, items, cells, printed):
    """Print a Markdown table, each row as soon as its item is ready, and append the items to the list `printed`.

    header: the first two lines; printed only before the first item.  cells: function from an item to a tuple of str.
    """
    for item in items:
        if not printed:
            print(header, flush=True)
        printed.append(item)
        print(process.escaped('| %s |' % ' | '.join(cells(item))), flush=True)
