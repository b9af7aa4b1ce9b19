"""Makes the rows of a dataset: a model samples one batch after another."""
import gzip
import io
import json
import os
from collections import OrderedDict

from gpt2.generation import plan
from gpt2.sampler import Sampler, is_worth_compiling, random_draws


def make_shards(dataset, names):
    """Make some shards of a plan.Dataset in this process.

    Yields (rows, tokens, shard) repeatedly: numbers of new rows and tokens, and a shard that is now complete or None.
    """
    maker = Maker(dataset.settings, dataset.models_dir)
    with maker.sampler:
        for name in names:
            yield from maker.make_shard(dataset.store, name, dataset.shards[name])


def make_row(dataset, row_id):
    """The line of the row with an id, a str, which is made again in its batch."""
    row, batch = next((row, batch) for rows in dataset.shards.values()
                      for batch in plan.in_batches(rows, dataset.settings['batch_size'])
                      for row in batch if str(row.id) == row_id)
    return json.dumps(Maker(dataset.settings, dataset.models_dir).make_batch(batch)[row.id])


class Maker:
    """A model and the settings of a dataset. Raises as Sampler does."""

    def __init__(self, settings, models_dir):
        os.environ['OMP_NUM_THREADS'] = str(settings['cores'])
        self.settings = settings
        self.sampler = Sampler(settings['model_name'], models_dir, settings['precision'])
        # Here, so that an error is raised before anything is written.
        self.sampler_of(min(settings['batch_size'], settings['rows'] // settings['shards']))

    def sampler_of(self, n):
        """The function that continues a batch of n prompts."""
        settings = self.settings
        has_prompts = settings['prompts'] is not None
        n_batches = max(1, settings['rows'] // settings['shards'] // n)  # of a shard: each process makes at least one
        return self.sampler.build(
            n, length=settings['length'], width=None if has_prompts else 1, ragged=has_prompts,
            temperature=settings['temperature'], top_k=settings['top_k'], top_p=settings['top_p'],
            end_token=self.sampler.encoder.end_of_text if settings['stop_at_end'] else None,
            compiled=n == settings['batch_size'] and is_worth_compiling(n_batches * n, n, settings['length']))

    def make_batch(self, rows):
        """{id: the fields of its line} of some Rows that are sampled together."""
        draws = random_draws(self.settings['seed'], [plan.draws_key(row.id) for row in rows], self.settings['length'])
        sampled = self.sampler_of(len(rows))([row.tokens for row in rows], draws)
        return {row.id: self.fields(row, tokens) for row, tokens in zip(rows, sampled)}

    def fields(self, row, tokens):
        """The fields of a row's line, in order. tokens: those sampled before the end token."""
        fields = OrderedDict(id=row.id)
        fields['ended'] = len(tokens) < self.settings['length']
        fields['length'] = len(tokens)
        fields['text'] = self.sampler.encoder.decode(tokens)
        if row.prompt is not None:
            fields['prompt'] = row.prompt
        return fields

    def make_shard(self, store, name, rows):
        """Make rows and add them to the store as a shard. Yields as make_shards does."""
        with store.claimed(name):
            made = {}
            for batch in plan.in_batches(rows, self.settings['batch_size']):
                fields = self.make_batch(batch)
                made.update(fields)
                yield len(batch), sum(row['length'] for row in fields.values()), None
            store.write_manifest(self.settings)
            text = ''.join(json.dumps(made[row.id]) + '\n' for row in rows).encode('utf-8')
            store.add(name, compressed(text) if self.settings['gzip'] else text)
        yield 0, 0, name


def compressed(data):
    """Bytes in gzip's format, which depend on nothing but data: neither on the time nor on a file's name."""
    file = io.BytesIO()
    with gzip.GzipFile(filename='', mode='wb', fileobj=file, mtime=0) as archive:
        archive.write(data)
    return file.getvalue()
