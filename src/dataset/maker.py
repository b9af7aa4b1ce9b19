"""Makes a dataset's rows: one batch after the other goes through a model in a session."""
import contextlib
import gzip
import io
import json
import os
from collections import OrderedDict, namedtuple

import checkpoint
import encoder
import sample
from dataset import plan
from tf1 import tf

# Of a number of rows. Placeholders: context int32 [rows, tokens], lengths [rows], None without prompts, draws [rows, length].
Graph = namedtuple('Graph', 'context lengths draws output')


def make_shards(dataset, names):
    """Make some shards of a plan.Dataset in this process.

    Yields (rows, tokens, shard), again and again: how many more are made, and the name of the shard that is whole now, or None.
    """
    with load(dataset.settings, dataset.models_dir) as maker:
        for name in names:
            for n_rows, n_tokens in maker.make_shard(dataset.store, name, dataset.shards[name]):
                yield n_rows, n_tokens, None
            yield 0, 0, name


@contextlib.contextmanager
def load(settings, models_dir):
    """A Maker with the model of a dataset's settings, in a graph and a session of its own, which end with the block.

    Raises as the samplers do for settings that cannot be.
    """
    os.environ['OMP_NUM_THREADS'] = str(settings['cores'])
    name = settings['model_name']
    text_encoder, hparams = encoder.get_encoder(name, models_dir), checkpoint.load_hparams(name, models_dir)
    with tf.Graph().as_default(), checkpoint.session(sampling=True) as sess, checkpoint.out_of_memory(
            'give a lower --batch_size than %d, or a lower --length' % settings['batch_size']):
        maker = Maker(sess, settings, text_encoder, hparams)
        n = min(settings['batch_size'], settings['rows'] // settings['shards'])
        maker.graphs[n] = maker.build(n)  # with the variables that restore() fills
        checkpoint.restore(sess, name, models_dir)
        yield maker


class Maker(object):
    """A model in a session, and a dataset's settings."""

    def __init__(self, sess, settings, text_encoder, hparams):
        self.sess, self.settings, self.text_encoder, self.hparams = sess, settings, text_encoder, hparams
        self.end_token = text_encoder.end_of_text if settings['stop_at_end'] else None
        self.graphs = {}  # by the number of rows

    def build(self, n):
        """The Graph that samples n rows."""
        settings = self.settings
        from_nothing = settings['prompts'] is None
        context = tf.placeholder(tf.int32, [n, 1 if from_nothing else None])
        lengths = None if from_nothing else tf.placeholder(tf.int32, [n])
        draws = tf.placeholder(tf.float64, [n, None])
        n_batches = max(1, settings['rows'] // settings['shards'] // n)  # of a shard: each process makes one at least
        compiled = n == settings['batch_size'] and sample.pays_to_compile(n_batches * n, n, settings['length'])
        with checkpoint.precision(settings['precision']):
            return Graph(context, lengths, draws, sample.sample_sequence(
                hparams=self.hparams, length=settings['length'], context=context, context_lengths=lengths, draws=draws,
                temperature=settings['temperature'], top_k=settings['top_k'], top_p=settings['top_p'],
                end_token=self.end_token, compiled=compiled))

    def make_batch(self, batch):
        """{id: what stands in a row's line} of some Rows that are sampled together."""
        if len(batch) not in self.graphs:
            self.graphs[len(batch)] = self.build(len(batch))
        graph = self.graphs[len(batch)]
        n_tokens = [len(row.tokens) for row in batch]
        fed = {graph.context: [row.tokens + [0] * (max(n_tokens) - len(row.tokens)) for row in batch],
               graph.draws: sample.random_draws(self.settings['seed'], [plan.draws_key(row.id) for row in batch],
                                                self.settings['length'])}
        if graph.lengths is not None:
            fed[graph.lengths] = n_tokens
        sampled = self.sess.run(graph.output, fed)
        return {row.id: self.fields(row, tokens[len(row.tokens):][:self.settings['length']])
                for row, tokens in zip(batch, sampled.tolist())}

    def fields(self, row, tokens):
        """What stands in a row's line, in order. tokens: what was sampled after its prompt."""
        kept = sample.up_to_end(tokens, self.end_token)
        fields = OrderedDict(id=row.id)
        fields['ended'] = self.end_token in tokens
        fields['length'] = len(kept)
        fields['text'] = self.text_encoder.decode(kept)
        if row.prompt is not None:
            fields['prompt'] = row.prompt
        return fields

    def make_shard(self, store, name, rows):
        """Make rows and add them to the store as a shard. Yields after each batch how many rows and tokens it has."""
        with store.claimed(name):
            made = {}
            for batch in plan.in_batches(rows, self.settings['batch_size']):
                fields = self.make_batch(batch)
                made.update(fields)
                yield len(batch), sum(row['length'] for row in fields.values())
            store.write_manifest(self.settings)
            text = ''.join(json.dumps(made[row.id]) + '\n' for row in rows).encode('utf-8')
            store.add(name, zipped(text) if self.settings['gzip'] else text)


def zipped(text):
    """gzip of bytes, the same at any time and under any name."""
    packed = io.BytesIO()
    with gzip.GzipFile(filename='', mode='wb', fileobj=packed, mtime=0) as file:
        file.write(text)
    return packed.getvalue()
