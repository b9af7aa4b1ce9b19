#!/usr/bin/env python3
"""How much faster several workers on this machine train than one that has all its cores, and what they spend on talking.

    python tests/scaling.py                           two workers, the shape of the demo model
    python tests/scaling.py --workers 4 --model_name 117M --batch_size 1 --rounds 9

One worker and several are loaded once and stay there; in each round both learn batches of the same size in turn, a burst of
some seconds each, and every other round goes backwards. Then the workers average gradients of nothing, which is what
talking takes by itself. The medians and quartiles of the rounds go to stdout.
"""
import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

SRC = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'src')


def work(args):
    """A worker: for each line on stdin, so many steps, or so much talking; prints how many seconds each took."""
    sys.path.insert(0, SRC)
    import checkpoint
    from tf1 import tf
    from training.cluster import from_environment
    from training.graph import build
    cluster = from_environment(os.environ.get('TF_CONFIG'))
    cluster.connect()
    hparams = checkpoint.load_hparams(args.model_name, args.models_dir)
    options = argparse.Namespace(batch_size=args.batch_size, accumulate=args.workers // cluster.n_workers, dropout=0.1, seed=0,
                                 recompute=False, clip=1.0, weight_decay=0.01, train_only=None)
    with tf.Graph().as_default(), tf.device(cluster.device), cluster.session() as sess:
        graph = build(hparams, options, cluster)
        talking = tf.group(*cluster.mean([tf.zeros(variable.shape) for variable in tf.trainable_variables()]))
        sess.run(tf.global_variables_initializer())
        tokens = np.random.RandomState(0).randint(hparams.n_vocab, size=graph.tokens.shape.as_list())
        feeds = {graph.tokens: tokens, graph.first: 0, graph.learning_rate: 1e-4}
        for line in sys.stdin:
            what, times = line.split()
            began = time.time()
            for _ in range(int(times)):
                sess.run(graph.update if what == 'learn' else talking, feeds)
            print((time.time() - began) / int(times), flush=True)


class Workers(object):
    """n workers that learn the same batch together."""

    def __init__(self, n, args):
        sys.path.insert(0, SRC)
        from training.local_workers import free_addresses
        addresses = free_addresses(n)
        self.processes = [subprocess.Popen(
            [sys.executable, __file__, '--work'] + sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            universal_newlines=True, env=dict(os.environ, OMP_NUM_THREADS=str(max(1, args.cores // n)), TF_CONFIG=json.dumps(
                {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}))) for index in range(n)]

    def seconds(self, what, times):
        """The seconds that one of these took."""
        for process in self.processes:
            process.stdin.write('%s %d\n' % (what, times))
            process.stdin.flush()
        return max([float(process.stdout.readline()) for process in self.processes])


def quartiles(values):
    return '%.3f (%.3f-%.3f)' % tuple(np.percentile(values, [50, 25, 75]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (('workers', 2), ('batch_size', 2), ('rounds', 7), ('cores', len(os.sched_getaffinity(0)))):
        parser.add_argument('--' + name, type=int, default=default)
    parser.add_argument('--model_name', default='demo')
    parser.add_argument('--models_dir', default='models')
    parser.add_argument('--work', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args)
        return
    both = [Workers(1, args), Workers(args.workers, args)]
    try:
        times = [max(1, int(2 / [each.seconds('learn', 2) for _ in range(2)][1])) for each in both]  # the first one warms up
        both[1].seconds('talk', 2)
        found = []
        for number in range(args.rounds):
            seconds = {}
            for i in (0, 1)[::(-1) ** number]:
                seconds[i] = both[i].seconds('learn', times[i])
            found.append((seconds[0], seconds[1], both[1].seconds('talk', times[1])))
            print('round %d: %s' % (number + 1, ' '.join('%.3f' % value for value in found[-1])), file=sys.stderr)
    finally:
        for process in both[0].processes + both[1].processes:
            process.kill()
    alone, together, talking = np.array(found).T
    print('a step of %d x %d sequences, %d cores, median (quartiles) of %d rounds' % (
        args.workers, args.batch_size, args.cores, args.rounds))
    print('one worker: %s s\n%d workers: %s s' % (quartiles(alone), args.workers, quartiles(together)))
    print('how many times as fast: %s\nshare of a step that is talking: %s' % (
        quartiles(alone / together), quartiles(talking / together)))


if __name__ == '__main__':
    main()
