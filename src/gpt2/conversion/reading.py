"""JSON files that come from strangers."""
import os

from gpt2.system import files


def read(folder, name, optional=False):
    """The dict in a JSON file of a folder; {} if it is optional and missing.

    Raises FileNotFoundError, and ValueError for a file that is damaged or too large.
    """
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        if optional:
            return {}
        raise FileNotFoundError('%s has no %s; fetch it from where the model came from' % (folder, name))
    return files.read_json(path)


def check_values(values, accepted, path):
    """Raises ValueError, naming the value, unless each name in accepted has one of its values.

    values: a dict, from the file at path.  accepted: {name: values, None among them if it may be missing}.
    """
    for name in sorted(accepted, key=lambda name: ('type' not in name, name)):
        value = values.get(name)
        if not any(type(value) is type(one) and value == one for one in accepted[name]):
            raise ValueError('%s has %s %.60r; supported is only %s' % (
                path, name, value, ' or '.join('nothing' if one is None else repr(one) for one in accepted[name])))
