"""What generate_dataset.py does: makes the missing shards of a dataset, here or on Ray, and reports progress."""
import time

from gpt2.generation import on_ray
from gpt2.system import process
from gpt2.system.progress import Progress


def make_missing(dataset, shard=None, ray=None, workers=None):
    """Make the missing shards of a plan.Dataset, with progress on stderr, and print a summary at the end.

    shard: number of the only shard to make; None for all.  ray, workers: as the flags.
    Raises ValueError for numbers that are out of range, what makes shards raises, and, after Ctrl-C or SIGTERM, a
    KeyboardInterrupt that says what is complete. A lock file and a .part may remain then; they are harmless.
    """
    shards, names = dataset.shards, list(dataset.shards)
    if shard is not None and not 0 <= shard < len(names):
        raise ValueError('shard is %d; it must be 0 to %d' % (shard, len(names) - 1))
    wanted = names if shard is None else [names[shard]]
    complete = set(wanted) & dataset.store.names()
    missing = [name for name in wanted if name not in complete]
    if not missing:
        print(process.escaped('%s: nothing is missing' % dataset.store))
        return

    def n_rows(names):
        return sum(len(shards[name]) for name in names)

    def what_is_complete():
        return 'stopped; %s has %d of %s, %d of %s; run the same command to continue' % (
            dataset.store, len(complete), counted(len(wanted), 'file'),
            n_rows(complete), counted(n_rows(wanted), 'row'))

    if ray is not None:
        on_ray.connect(ray)  # first, because it changes what signals do
    started, n_tokens = time.time(), 0
    with Progress(n_rows(missing), unit='rows') as progress, process.interruptible(stopped=what_is_complete):
        for more_rows, more_tokens, name in made(dataset, missing, ray, workers):
            n_tokens += more_tokens
            if name:
                complete.add(name)
            progress.advance(more_rows, '%.0f tokens/s' % (n_tokens / (time.time() - started)))
    seconds = time.time() - started
    print(process.escaped('%s: %s in %s, %d tokens in %.0f s: %.1f rows/s, %.0f tokens/s' % (
        dataset.store, counted(n_rows(missing), 'row'), counted(len(missing), 'file'), n_tokens, seconds,
        n_rows(missing) / seconds, n_tokens / seconds)))


def made(dataset, names, ray, workers):
    """Iterate over what make_shards yields, of on_ray, or of maker in threads, so that Ctrl-C need not wait for it."""
    if ray is not None:
        return on_ray.make_shards(dataset, names, can_grow=ray != 'local', n_workers=workers)
    from gpt2.generation import maker
    shards = maker.make_shards(dataset, names)
    return iter(lambda: process.wait_for(next, shards, None), None)


def counted(n, noun):
    return '%d %s%s' % (n, noun, '' if n == 1 else 's')
