#!/usr/bin/env python3
"""Generate many samples, with or without prompts, into files of JSON lines."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which python3 -I and PYTHONSAFEPATH leave out
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

import encoder
from gpt2 import checkpoint, releases, session
from gpt2.generation import job, plan
from gpt2.generation.store import open_store
from gpt2.system import flags
from gpt2.system.progress import report

MAX_ROWS = 10 ** 7  # the plan of a row takes 200 bytes of memory


def generate_dataset(out, nsamples: int = None, prompts: str = None, model_name='117M', seed=0, batch_size=32,
                     length: int = None, temperature=1.0, top_k=0, top_p=1.0, stop_at_end=True, precision='float32',
                     models_dir='models', gzip=False, shards: int = None, shard: int = None, only: str = None,
                     cores: int = None, ray: str = None, workers: int = None):
    """Generate many samples into files of JSON lines. If run again, it generates only the missing files.

    Args:
        out: folder for the rows, or an address that fsspec supports, such as s3://bucket/folder
        nsamples: number of unconditional samples; either this or --prompts
        prompts: file of prompts to continue: one per line, or in a .jsonl file {"prompt": "...", "id": ...}
        seed: another seed gives other rows
        gzip: compress the files
        shards: number of files; the default is one for each 1,000 rows
        shard: generate only this file, counted from 0, as one of many jobs that share the work
        only: generate only the row with this id again, and print it
        cores: number of CPU cores for a model; the default is that of the existing rows, or else all of this machine
        ray: run on the Ray cluster at this address; auto finds the one on this machine, and local starts one
        workers: number of models on the Ray cluster; the default is as many as there is room for
    """
    session.check_precision(precision)
    check_request(nsamples, prompts, ray, workers)
    store = open_store(out)
    manifest = store.manifest()
    model_name, models_dir = releases.name_and_dir(checkpoint.model_dir(model_name, models_dir))
    n_ctx = checkpoint.load_hparams(model_name, models_dir).n_ctx
    if length is None:
        length = n_ctx if prompts is None else n_ctx // 2
    cores = default_cores(manifest) if cores is None else cores
    settings = dict(
        seed=seed, batch_size=batch_size, length=length, temperature=temperature, top_k=top_k, top_p=top_p,
        stop_at_end=stop_at_end, precision=precision, gzip=gzip, cores=cores, model_name=model_name,
        model=checkpoint.checksum(model_name, models_dir))
    check_settings(settings, n_ctx)
    text_encoder = encoder.get_encoder(model_name, models_dir)
    if prompts is None:
        rows, problems, checksum = plan.rows_from_nothing(nsamples, text_encoder.end_of_text), {}, None
    else:
        rows, problems, checksum = plan.rows_from_prompts(prompts, text_encoder.encode, n_ctx + 1 - length)
    settings.update(prompts=checksum, rows=len(rows), shards=plan.n_shards(len(rows), shards))
    plan.check_same(manifest, settings, store)
    dataset = plan.Dataset(store, settings, models_dir, plan.in_shards(rows, settings))
    lines = [str(line) for line in sorted(problems)]
    without_row = 'lines without a row: ' + ', '.join(lines[:10] + ['...'] * (len(lines) > 10))
    if only is not None:
        if only not in {str(row.id) for row in rows}:
            raise ValueError('no row has the id %s%s' % (only, '; ' + without_row if problems else ''))
        from gpt2.generation import maker
        print(maker.make_row(dataset, only))
        return
    for line in sorted(problems):
        report('%s, line %d: %s' % (prompts, line, problems[line]))
    job.make_missing(dataset, shard, ray, workers)
    if problems:
        raise ValueError('%s: %s' % (prompts, without_row))


def check_request(nsamples, prompts, ray, workers):
    """Raises ValueError for flags that contradict each other or are out of range."""
    if (nsamples is None) == (prompts is None):
        raise ValueError('give either --nsamples, the number of unconditional samples, or --prompts, a file of prompts')
    if nsamples is not None and not 1 <= nsamples <= MAX_ROWS:
        raise ValueError('nsamples is %d; it must be 1 to %d; for more, use another --out with another --seed' % (
            nsamples, MAX_ROWS))
    if ray == '':
        raise ValueError('--ray is empty; give the address of a cluster, or auto, or local')
    if workers is not None and (ray is None or workers < 1):
        raise ValueError('workers is %d; it must be 1 or more, and needs --ray' % workers)


def check_settings(settings, n_ctx):
    """Raises ValueError for settings that a sampler rejects, before anything is computed."""
    import sample
    from gpt2 import sampler
    length, cores = settings['length'], settings['cores']
    if not 1 <= length <= n_ctx:
        raise ValueError('length is %d; it must be 1 to %d, the context of the model' % (length, n_ctx))
    if not 1 <= cores <= 1024:
        raise ValueError('cores is %d; it must be 1 to 1024' % cores)
    sample.check_options(length, settings['temperature'], settings['top_k'], settings['top_p'])
    sampler.check_seed(settings['seed'])
    sampler.batches(1, settings['batch_size'])


def default_cores(manifest):
    """The number of cores that existing rows were made with, since some rows depend on it, or else all of this machine.

    manifest: the settings of the existing rows, None if there are none.
    """
    here = process.n_cores()
    cores = (manifest or {}).get('cores') or here
    if cores != here:
        report('using --cores %d, as for the existing rows; this machine has %d' % (cores, here))
    return cores


if __name__ == '__main__':
    flags.run(generate_dataset, outputs=['out'])
