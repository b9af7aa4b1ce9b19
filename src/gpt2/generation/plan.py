"""Which rows a dataset has, what each is made from, and which shard it is in. No TensorFlow."""
import hashlib
import io
import itertools
import json
import math
from collections import OrderedDict, namedtuple

import numpy as np

from gpt2 import corpus

ROWS_PER_SHARD = 1000  # by default, approximately: minutes of work that a crash may cost

# id: int or str.  prompt: str, or None.  tokens: list of the token ids that the row continues
Row = namedtuple('Row', 'id prompt tokens')

# store: where it is kept.  settings: {name: value} of everything that its rows depend on, as in the manifest.
# models_dir: folder of the model.  shards: {name of a file: its Rows}, in order
Dataset = namedtuple('Dataset', 'store settings models_dir shards')


def rows_from_nothing(n, end_of_text):
    """n Rows without a prompt, numbered from 0. Each continues the end-of-text token."""
    return [Row(number, None, [end_of_text]) for number in range(n)]


def rows_from_prompts(path, encode, max_tokens):
    """Read a file of prompts: a .jsonl file has {"prompt": "...", "id": ...} on each non-blank line, others a prompt.

    encode: function from a prompt to its token ids.  max_tokens: how many of them there may be.
    Returns [Row], {line number: why it has no row}, and the file's checksum. The default id is the line number from 0.
    Raises ValueError if no line is a valid prompt.
    """
    with open(path, 'rb') as file:  # once: it may be a pipe
        corpus.check_format(path, file.peek())
        text = file.read()
    rows, problems, line_of_id = [], {}, {}
    is_json = corpus.is_jsonl(path)
    parse = parse_json if is_json else parse_text
    for number, line in corpus.numbered_lines(io.BytesIO(text)):
        if is_json and not line.strip():
            continue
        try:
            prompt, row_id = parse(line, number - 1)
            tokens = encode(prompt)
            if not tokens:
                raise ValueError('the prompt is empty')
            if len(tokens) > max_tokens:
                raise ValueError('the prompt has %d tokens; %d fit before the sample' % (len(tokens), max_tokens))
            if line_of_id.setdefault(str(row_id), number) != number:
                raise ValueError('line %d has the same id, %s' % (line_of_id[str(row_id)], row_id))
            rows.append(Row(row_id, prompt, tokens))
        except ValueError as error:  # errors of UTF-8 are ValueErrors, too
            problems[number] = str(error)
    if not rows:
        raise ValueError('%s has no line that is a valid prompt%s' % (
            path, ''.join('; line %d: %s' % problem for problem in sorted(problems.items())[:3])))
    return rows, problems, hashlib.sha256(text).hexdigest()


def parse_text(line, number):
    """A prompt, and number as its id."""
    if b'\0' in line:
        raise ValueError('it has NUL bytes, so it is binary or UTF-16')
    return line.decode('utf-8').rstrip('\r\n'), number


def parse_json(line, number):
    """A prompt and its id, which is number by default. Raises ValueError for other lines."""
    prompt, fields = corpus.parse_line(line, 'prompt')
    if not isinstance(fields, dict):
        raise ValueError('expected {"prompt": "...", "id": ...}, where the id is optional')
    row_id = fields.get('id', number)
    if type(row_id) not in (int, str):
        raise ValueError('the id is %.60r; it must be an integer or a string' % (row_id,))
    return prompt, row_id


def draws_key(row_id):
    """The integer, or array of integers, below 2^32 that seeds a row's draws: its id, or else a hash of it."""
    if isinstance(row_id, int) and 0 <= row_id < 2 ** 32:
        return row_id
    return np.frombuffer(hashlib.sha256(json.dumps(row_id).encode('utf-8')).digest(), '<u4')


def check_same(manifest, settings, store):
    """Raises ValueError unless the rows in a store have the same settings. manifest: theirs, None if there are none."""
    changes = ['%s was %.99s and is %s' % (name, manifest.get(name), settings[name])
               for name in sorted(settings) if name != 'model_name' and manifest.get(name) != settings[name]
               ] if manifest is not None else []
    if changes:
        raise ValueError('%s has rows with other settings: %s; use the same settings, or another --out' % (
            store, ', '.join(changes)))


def n_shards(n_rows, shards=None):
    """The number of shards of n_rows; shards, if given. Raises ValueError if that is out of range."""
    if shards is None:
        return int(math.ceil(n_rows / ROWS_PER_SHARD))
    if not 1 <= shards <= n_rows:
        raise ValueError('shards is %d; it must be 1 to %d, the number of rows' % (shards, n_rows))
    return shards


def in_shards(rows, settings):
    """{name of a shard's file: its Rows}, in order: consecutive rows, equally many in each."""
    n = settings['shards']
    suffix = '.jsonl.gz' if settings['gzip'] else '.jsonl'
    return OrderedDict(('%05d-of-%05d%s' % (k, n, suffix), rows[k * len(rows) // n:(k + 1) * len(rows) // n])
                       for k in range(n))


def in_batches(rows, batch_size):
    """Yield lists of Rows to sample together: those with prompts of similar length, so that they rarely wait."""
    waiting = iter(sorted(rows, key=lambda row: len(row.tokens)))
    return iter(lambda: list(itertools.islice(waiting, batch_size)), [])
