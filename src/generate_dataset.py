#!/usr/bin/env python3
"""Write many texts that a GPT-2 model makes up, or continues, into files of JSON lines."""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

import hashlib
import json
import os
import sys
import time

from tqdm import tqdm

import checkpoint
from dataset import on_ray, plan
from dataset.store import open_store
import encoder
import process
import releases

MOST_ROWS = 10 ** 7  # what is known of each takes 200 bytes of memory
SILENT_SECONDS = 60  # without a terminal for the progress bar, a line at least this often
STOPPED = 130  # the status after Ctrl-C or SIGTERM, as that of download_model.py


def generate_dataset(out, nsamples: int = None, prompts: str = None, model_name='117M', seed=0, batch_size=32,
                     length: int = None, temperature=1.0, top_k=0, top_p=1.0, stop_at_end=True, precision='float32',
                     models_dir='models', gzip=False, shards: int = None, shard: int = None, only: str = None,
                     cores: int = None, ray: str = None, workers: int = None):
    """Write many texts that a model makes up, or continues, into files of JSON lines. Started again, it does what is missing.

    Args:
        out: folder for the rows, or an address that fsspec knows, such as s3://bucket/folder
        nsamples: how many texts from nothing; or else --prompts
        prompts: file of what to continue: a prompt on each line, or in .jsonl {"prompt": "...", "id": ...}
        model_name: which model, a folder in models_dir
        seed: another seed gives other rows
        batch_size: samples made at once; more are faster in total, and take more memory
        length: tokens in a sample at the most; None is as many as the context holds, or with prompts half of that
        temperature: below 1 takes fewer risks, above 1 more; 0 takes the likeliest token each time
        top_k: draw from this many of the likeliest tokens; 0 from all
        top_p: draw from the fewest tokens that together have this probability; 1 from all
        stop_at_end: a sample ends where the model ends the text; with False, the model goes on with another text
        precision: float32; or int8, weights in 8 bits: faster on a CPU, and README says by how much and what it costs
        models_dir: folder of the models, looked for here and then in the repository
        gzip: pack the files
        shards: into how many files the rows go; None is one for each thousand
        shard: make this one alone, counted from 0: for one of many jobs, each with another number
        only: the id of one row, which is made again and printed
        cores: how many cores a model runs on; None is as many as the rows that are there had, or all of this machine
        ray: do it on a Ray cluster: its address, or auto for the one that runs here, or local to start one
        workers: with --ray, how many models; None is as many as the cluster has room for now
    """
    checkpoint.check_precision(precision)
    check_request(nsamples, prompts, ray, workers)
    store = open_store(out)
    before = store.manifest()
    model_name, models_dir = releases.name_and_dir(checkpoint.model_dir(model_name, models_dir))
    n_ctx = checkpoint.load_hparams(model_name, models_dir).n_ctx
    if length is None:
        length = n_ctx if prompts is None else n_ctx // 2
    settings = dict(
        seed=seed, batch_size=batch_size, length=length, temperature=temperature, top_k=top_k, top_p=top_p,
        stop_at_end=stop_at_end, precision=precision, gzip=gzip, cores=same_cores(before) if cores is None else cores,
        model_name=model_name, model=checkpoint.checksum(model_name, models_dir))
    check_settings(settings, n_ctx)
    rows, refused, prompts_checksum = read_rows(nsamples, prompts, n_ctx + 1 - length,
                                                encoder.get_encoder(model_name, models_dir))
    settings.update(prompts=prompts_checksum, rows=len(rows), shards=plan.n_shards(len(rows), shards))
    plan.check_same(before, settings, store)
    dataset = plan.Dataset(store, settings, models_dir, plan.in_shards(rows, settings))
    if only is not None:
        process.wait_for(print_row, only, dataset, refused)
        return
    for line in sorted(refused):
        print('%s, line %d: %s' % (prompts, line, refused[line]), file=sys.stderr)
    make_missing(dataset, shard, ray, workers)
    if refused:
        raise ValueError('%s: %s' % (prompts, without_a_row(refused)))


def check_request(nsamples, prompts, ray, workers):
    """Raises ValueError for flags that do not go together, or ask for what cannot be."""
    if (nsamples is None) == (prompts is None):
        raise ValueError('give either --nsamples, the number of texts from nothing, or --prompts, a file of what to continue')
    if nsamples is not None and not 1 <= nsamples <= MOST_ROWS:
        raise ValueError('nsamples is %d; it must be 1 to %d, and more go into another --out with another --seed'
                         % (nsamples, MOST_ROWS))
    if ray == '':
        raise ValueError('--ray is empty; give the address of a cluster, or auto, or local')
    if workers is not None and (ray is None or workers < 1):
        raise ValueError('workers is %d; it must be 1 or more, and comes with --ray' % workers)


def check_settings(settings, n_ctx):
    """Raises ValueError for settings that no sampler can do."""
    import sample
    length, cores = settings['length'], settings['cores']
    if not 1 <= length <= n_ctx:
        raise ValueError('length is %d; it must be 1 to %d tokens, what the context holds' % (length, n_ctx))
    if not 1 <= cores <= 1024:
        raise ValueError('cores is %d; it must be 1 to 1024' % cores)
    sample.check_options(length, settings['temperature'], settings['top_k'], settings['top_p'])
    sample.check_seed(settings['seed'])
    sample.batches(1, settings['batch_size'])


def same_cores(before):
    """How many cores a model runs on unless told: as many as for the rows that are there, since a few rows depend on it.

    before: the manifest, or None if there is none.
    """
    here = process.n_cores()
    cores = (before or {}).get('cores', here)
    if cores != here:
        print('with --cores %d, as the rows that are there were made; this machine has %d' % (cores, here), file=sys.stderr)
    return cores


def read_rows(nsamples, prompts, longest, text_encoder):
    """([Row], {line: why it has no row}, checksum of the file of prompts or None). Raises ValueError if there is no row."""
    if prompts is None:
        return plan.rows_from_nothing(nsamples, text_encoder.end_of_text), {}, None
    with open(prompts, 'rb') as file:  # once: it may be a pipe
        text = file.read()
    rows, refused = plan.rows_from_prompts(prompts, text, text_encoder.encode, longest)
    if not rows:
        raise ValueError('%s has no line that can be a prompt%s' % (
            prompts, ''.join('; line %d: %s' % (line, refused[line]) for line in sorted(refused)[:3])))
    return rows, refused, hashlib.sha256(text).hexdigest()


def without_a_row(refused):
    """Which lines of a file of prompts have none, in words."""
    lines = [str(line) for line in sorted(refused)]
    return 'lines without a row: ' + ', '.join(lines[:10] + ['...'] * (len(lines) > 10))


def print_row(row_id, dataset, refused):
    """Make the batch again that a row stands in, and print its line. refused: the lines of the prompts without a row."""
    from dataset import maker
    batches = [batch for rows in dataset.shards.values() for batch in plan.in_batches(rows, dataset.settings['batch_size'])]
    found = [(row, batch) for batch in batches for row in batch if str(row.id) == row_id]
    if not found:
        raise ValueError('no row has the id %s%s' % (row_id, '; ' + without_a_row(refused) if refused else ''))
    row, batch = found[0]
    with maker.load(dataset.settings, dataset.models_dir) as loaded:
        print(json.dumps(loaded.make_batch(batch)[row.id]))


def make_missing(dataset, shard, ray, workers):
    """Make the shards that are missing, show how far it is, and say at the end what was made.

    shard: the number of the one that is wanted, or None for all.
    """
    names = list(dataset.shards)
    if shard is not None and not 0 <= shard < len(names):
        raise ValueError('shard is %d; it must be 0 to %d' % (shard, len(names) - 1))
    progress = Progress(dataset, names if shard is None else [names[shard]])
    missing = progress.missing()
    if not missing:
        print('%s: nothing is missing' % dataset.store)
        return
    with process.interruptible(lambda: stop(progress.so_far())):
        if ray is None:
            from dataset import maker
            process.wait_for(progress.follow, maker.make_shards(dataset, missing))
        else:
            progress.follow(on_ray.make_shards(dataset, missing, ray, workers))


class Progress(object):
    """How far a dataset is: a bar on a terminal, or else a line each minute, and a line at the end."""

    def __init__(self, dataset, wanted):
        """wanted: names of the shards that are to be made, of which some may be there."""
        self.store, self.shards, self.wanted = dataset.store, dataset.shards, wanted
        self.whole = set(wanted) & dataset.store.names()

    def missing(self):
        """The names of the shards that are not there yet, in order."""
        return [name for name in self.wanted if name not in self.whole]

    def n_rows(self, names):
        return sum(len(self.shards[name]) for name in names)

    def so_far(self):
        return '%s has %d of %s, %d of %s' % (
            self.store, len(self.whole), counted(len(self.wanted), 'file'),
            self.n_rows(self.whole), counted(self.n_rows(self.wanted), 'row'))

    def follow(self, made):
        """Show what is made until all is. made: yields what is new: rows, tokens, the name of a shard that is whole or None."""
        missing = self.missing()
        began = told = time.time()
        n_rows, n_tokens, n_missing = 0, 0, self.n_rows(missing)
        with tqdm(total=n_missing, unit=' rows', disable=None) as bar:
            for more_rows, more_tokens, name in made:
                n_rows, n_tokens = n_rows + more_rows, n_tokens + more_tokens
                if name:
                    self.whole.add(name)
                seconds = time.time() - began
                bar.set_postfix_str('%.0f tokens/s' % (n_tokens / seconds), refresh=False)
                bar.update(more_rows)
                if bar.disable and time.time() - told > SILENT_SECONDS:
                    told = time.time()
                    left = tqdm.format_interval(seconds / n_rows * (n_missing - n_rows)) if n_rows else '?'
                    print('%d of %d rows: %.0f tokens/s, %s left' % (n_rows, n_missing, n_tokens / seconds, left),
                          file=sys.stderr, flush=True)
        seconds = time.time() - began
        print('%s: %s in %s, %d tokens in %.0f s: %.1f rows/s, %.0f tokens/s' % (
            self.store, counted(n_missing, 'row'), counted(len(missing), 'file'), n_tokens, seconds,
            n_missing / seconds, n_tokens / seconds))


def counted(n, noun):
    return '%d %s%s' % (n, noun, '' if n == 1 else 's')


def stop(so_far='it had only begun'):
    """End the process on Ctrl-C or SIGTERM, with a status that is no success, since rows are missing.

    A lock file and a .part may stay, as after kill -9: they are harmless.
    """
    new_line = '\n' if os.isatty(2) else ''  # the progress bar has none
    try:  # not print: the signal may have come in the middle of a print
        os.write(2, ('%sgenerate_dataset.py: stopped; %s; the same command goes on\n' % (new_line, so_far)).encode('utf-8'))
    finally:
        os._exit(STOPPED)


if __name__ == '__main__':
    with process.interruptible(stop):
        flags.run(generate_dataset)
