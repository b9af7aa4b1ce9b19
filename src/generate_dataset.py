#!/usr/bin/env python3
"""Write many texts that a GPT-2 model makes up, or continues, into files of JSON lines."""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

import hashlib
import json
import os
import sys
import time
from collections import OrderedDict

from tqdm import tqdm

import checkpoint
from dataset import on_ray, plan, store
import encoder
import process
import releases

MOST_ROWS = 10 ** 7  # what is known of each takes 200 bytes of memory


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
        cores: how many cores a model runs on; None is all of this machine
        ray: do it on a Ray cluster: its address, or auto for the one that runs here, or local to start one
        workers: with --ray, how many models; None is as many as the cluster has room for now
    """
    checkpoint.check_precision(precision)
    place = store.open_store(out)
    with open(os.devnull if prompts is None else prompts, 'rb') as file:
        prompt_bytes = file.read()
    model_name, models_dir = releases.name_and_dir(checkpoint.model_dir(model_name, models_dir))
    text_encoder = encoder.get_encoder(model_name, models_dir)
    n_ctx = checkpoint.load_hparams(model_name, models_dir).n_ctx
    if length is None:
        length = n_ctx if prompts is None else n_ctx // 2
    settings = OrderedDict([
        ('seed', seed), ('prompts', prompts and hashlib.sha256(prompt_bytes).hexdigest()), ('rows', nsamples),
        ('shards', shards), ('batch_size', batch_size), ('length', length), ('temperature', temperature), ('top_k', top_k),
        ('top_p', top_p), ('stop_at_end', stop_at_end), ('precision', precision), ('gzip', gzip),
        ('cores', process.n_cores() if cores is None else cores),
        ('model_name', model_name), ('model', checkpoint.checksum(model_name, models_dir))])
    check(settings, n_ctx)
    if workers is not None and (ray is None or workers < 1):
        raise ValueError('workers is %d; it must be 1 or more, and comes with --ray' % workers)
    if prompts is None:
        rows, refused = plan.rows_from_nothing(nsamples, text_encoder.end_of_text), {}
    else:
        rows, refused = plan.rows_from_prompts(prompts, prompt_bytes, text_encoder.encode, n_ctx + 1 - length)
    for line in sorted(refused):
        print('%s, line %d: %s' % (prompts, line, refused[line]), file=sys.stderr)
    if not rows:
        raise ValueError('%s has no line that can be a prompt' % prompts)
    settings.update(rows=len(rows), shards=plan.n_shards(len(rows), shards))
    plan.check_same(place.manifest(), settings, place)
    in_shards = plan.in_shards(rows, settings)
    if only is not None:
        print_row(only, in_shards, settings, models_dir)
        return
    missing = missing_shards(in_shards, shard, place)
    follow(ray_or_here(ray, workers, settings, models_dir, place, missing), missing, place)
    if refused:
        raise ValueError('%s: lines without a row: %s%s' % (
            prompts, ', '.join(map(str, sorted(refused)[:10])), ' ...' * (len(refused) > 10)))


def check(settings, n_ctx):
    """Raises ValueError for settings that no sampler can do."""
    import sample
    n_rows, prompts, length, cores = [settings[name] for name in ('rows', 'prompts', 'length', 'cores')]
    if (n_rows is None) == (prompts is None):
        raise ValueError('give either --nsamples, the number of texts from nothing, or --prompts, a file of what to continue')
    if n_rows is not None and not 1 <= n_rows <= MOST_ROWS:
        raise ValueError('nsamples is %d; it must be 1 to %d, and more go into another --out with another --seed'
                         % (n_rows, MOST_ROWS))
    if not 1 <= length <= n_ctx:
        raise ValueError('length is %d; it must be 1 to %d tokens, what the context holds' % (length, n_ctx))
    if not 1 <= cores <= 1024:
        raise ValueError('cores is %d; it must be 1 to 1024' % cores)
    sample.check_options(length, settings['temperature'], settings['top_k'], settings['top_p'])
    sample.check_seed(settings['seed'])
    sample.batches(1, settings['batch_size'])


def missing_shards(in_shards, shard, place):
    """{name: Rows} of the shards to make. shard: the number of the one that is wanted, or None for all."""
    names = sorted(in_shards)
    if shard is not None and not 0 <= shard < len(names):
        raise ValueError('shard is %d; it must be 0 to %d' % (shard, len(names) - 1))
    there = place.names()
    wanted = names if shard is None else [names[shard]]
    return OrderedDict((name, in_shards[name]) for name in wanted if name not in there)


def print_row(row_id, in_shards, settings, models_dir):
    """Make the batch again that a row stood in, and print its line."""
    from dataset import maker
    batches = [batch for rows in in_shards.values() for batch in plan.in_batches(rows, settings['batch_size'])]
    found = [(row, batch) for batch in batches for row in batch if str(row.id) == row_id]
    if not found:
        raise ValueError('no row has the id %s' % row_id)
    row, batch = found[0]
    with maker.load(settings, models_dir) as loaded:
        print(json.dumps(loaded.make_batch(batch)[row.id]))


def ray_or_here(ray, workers, settings, models_dir, place, missing):
    """Make the missing shards, and yield how many rows and tokens are done, again and again."""
    if not missing:
        return
    if ray is not None:
        for done in on_ray.make_shards(ray, workers, settings, models_dir, str(place), missing):
            yield done
        return
    from dataset import maker
    with maker.load(settings, models_dir) as loaded:
        for name, rows in missing.items():
            for done in loaded.make_shard(place, name, rows):
                yield done


def follow(done, missing, place):
    """Show how far it is, and say at the end what was made. done: yields how many more rows and tokens are done."""
    began, n_rows, n_tokens = time.time(), sum(map(len, missing.values())), 0
    with tqdm(total=n_rows, unit=' rows', disable=None) as bar:
        for more_rows, more_tokens in done:
            n_tokens += more_tokens
            bar.set_postfix_str('%.0f tokens/s' % (n_tokens / (time.time() - began)), refresh=False)
            bar.update(more_rows)
    seconds = time.time() - began
    if missing:
        print('%s: %d rows in %d files, %d tokens in %.0f s: %.1f rows/s, %.0f tokens/s' % (
            place, n_rows, len(missing), n_tokens, seconds, n_rows / seconds, n_tokens / seconds))
    else:
        print('%s: nothing is missing' % place)


if __name__ == '__main__':
    flags.run(generate_dataset)
