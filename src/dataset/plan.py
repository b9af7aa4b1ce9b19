"""Which rows a dataset has, from what each is made, and which shard it stands in. No TensorFlow."""
import codecs
import hashlib
import io
import itertools
import json
import math
from collections import OrderedDict, namedtuple

import numpy as np

ROWS_IN_SHARD = 1000  # about, unless a number of shards is given: minutes of work that a crash may cost

# id: int or str.  prompt: str, or None.  tokens: list of the token ids that the row continues
Row = namedtuple('Row', 'id prompt tokens')

# store: where it is kept.  settings: what its rows depend on, {name: value} as the manifest has them.
# models_dir: folder of the model.  shards: {name of a file: its Rows}, in order
Dataset = namedtuple('Dataset', 'store settings models_dir shards')


def rows_from_nothing(n, end_of_text):
    """n Rows without a prompt, numbered from 0. Each begins where the text before it would have ended."""
    return [Row(number, None, [end_of_text]) for number in range(n)]


def rows_from_prompts(path, text, encode, longest):
    """([Row], {line number: what is wrong with it}) of a file of prompts.

    path: its name: a .jsonl file has {"prompt": "...", "id": ...} on each line that is not blank, any other file a prompt. A
        row without an id has the number of its line, counted from 0.
    text: the bytes in it.
    encode: function from a prompt to its token ids.  longest: how many of them there may be.
    """
    rows, problems, lines = [], {}, {}
    is_json = str(path).lower().endswith('.jsonl')
    read = prompt_of_json if is_json else prompt_of_text
    if text.startswith(codecs.BOM_UTF8):
        text = text[len(codecs.BOM_UTF8):]
    for number, line in enumerate(io.BytesIO(text), 1):
        if is_json and not line.strip():
            continue
        try:
            prompt, row_id = read(line.decode('utf-8').rstrip('\r\n'), number - 1)
            tokens = encode(prompt)
            if not tokens:
                raise ValueError('the prompt is empty')
            if len(tokens) > longest:
                raise ValueError('the prompt has %d tokens, and %d fit before the sample' % (len(tokens), longest))
            if lines.setdefault(str(row_id), number) != number:
                raise ValueError('the id %s is that of line %d, too' % (row_id, lines[str(row_id)]))
            rows.append(Row(row_id, prompt, tokens))
        except (ValueError, RecursionError) as error:  # errors of JSON and of UTF-8 are ValueErrors
            problems[number] = str(error)
    return rows, problems


def prompt_of_text(line, number):
    return line, number


def prompt_of_json(line, number):
    """(prompt, id) of a line of JSON. Raises ValueError for what holds no prompt, or no id that a row can have."""
    fields = json.loads(line)
    prompt = fields.get('prompt') if isinstance(fields, dict) else None
    if not isinstance(prompt, str):
        raise ValueError('a line must be {"prompt": "...", "id": ...}, where the id may be left out')
    prompt.encode('utf-8')  # JSON can spell half a surrogate pair, which is not text
    row_id = fields.get('id', number)
    if type(row_id) not in (int, str):
        raise ValueError('the id is %.60r; it must be a whole number or a text' % (row_id,))
    return prompt, row_id


def draws_key(row_id):
    """What tells a row's draws from those of others: its number, or numbers made of its id."""
    if isinstance(row_id, int) and 0 <= row_id < 2 ** 32:
        return row_id
    return np.frombuffer(hashlib.sha256(json.dumps(row_id).encode('utf-8')).digest(), '<u4')


def check_same(before, settings, store):
    """Raises ValueError unless the rows that are in a store have the settings of those to come. before: None if it has none."""
    changes = ['%s was %s and is %s' % (name, before.get(name), settings[name])
               for name in sorted(settings) if name != 'model_name' and before.get(name) != settings[name]] if before else []
    if changes:
        raise ValueError('%s has rows with other settings: %s; take those, or another --out' % (store, ', '.join(changes)))


def n_shards(n_rows, shards=None):
    """How many shards n_rows make. Raises ValueError for a number that cannot be."""
    if shards is None:
        return int(math.ceil(n_rows / ROWS_IN_SHARD))
    if not 1 <= shards <= n_rows:
        raise ValueError('shards is %d; it must be 1 to %d, the number of rows' % (shards, n_rows))
    return shards


def in_shards(rows, settings):
    """{name of a shard's file: its Rows}, in order: equal numbers of rows that follow each other."""
    n = settings['shards']
    ending = '.jsonl.gz' if settings['gzip'] else '.jsonl'
    return OrderedDict(('%05d-of-%05d%s' % (k, n, ending), rows[k * len(rows) // n:(k + 1) * len(rows) // n])
                       for k in range(n))


def in_batches(rows, batch_size):
    """Yield lists of Rows that are sampled together: those with prompts of like length, so that they wait little."""
    waiting = iter(sorted(rows, key=lambda row: len(row.tokens)))
    return iter(lambda: list(itertools.islice(waiting, batch_size)), [])
