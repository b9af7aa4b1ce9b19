#!/usr/bin/env python3
"""Measure how fast several workers train, in one process and in a cluster, and what communication takes.

    python benchmarks/scaling.py                           two workers, the shape of the demo model
    python benchmarks/scaling.py --workers 4 --model_name 117M --batch_size 1 --rounds 9

One worker, `--workers n` in one process, and a cluster of n processes on this machine are loaded once and stay loaded.
In each round they take turns: each trains for a few seconds on batches of the same size, and every other round runs in
reverse order. Then the cluster averages gradients of zeros, which takes the time of communication alone. The medians
and quartiles of the rounds go to stdout.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import time

import numpy as np

SRC = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'src')


def work(args):
    """Run as a worker: for each line of stdin, 'train 20' or 'average 20', do that and print the mean seconds."""
    sys.path.insert(0, SRC)
    from gpt2 import checkpoint
    from gpt2.system.tf1 import tf
    from gpt2.training.cluster import LocalWorkers, from_environment
    from gpt2.training.graph import build
    config = os.environ.get('TF_CONFIG')
    cluster = from_environment(config) if config else LocalWorkers(args.local)
    cluster.connect()
    hparams = checkpoint.load_hparams(args.model_name, args.models_dir)
    options = argparse.Namespace(batch_size=args.batch_size, accumulate=args.workers // cluster.n_workers, dropout=0.1,
                                 seed=0, recompute=False, clip=1.0, weight_decay=0.01, train_only=None,
                                 precision='float32')
    with tf.Graph().as_default(), tf.device(cluster.device), cluster.session() as sess:
        graph = build(hparams, options, cluster)
        average = tf.group(*cluster.mean([tf.zeros(variable.shape) for variable in tf.trainable_variables()]))
        sess.run(tf.global_variables_initializer())
        tokens = np.random.RandomState(0).randint(hparams.n_vocab, size=graph.tokens.shape.as_list())
        feeds = {graph.tokens: tokens, graph.first: 0, graph.learning_rate: 1e-4}
        for line in sys.stdin:
            action, times = line.split()
            began = time.time()
            for _ in range(int(times)):
                sess.run(graph.update if action == 'train' else average, feeds)
            print((time.time() - began) / int(times), flush=True)


class Workers(object):
    """A group that trains on the same batch together: n_local workers in one process, or a cluster of n processes."""

    def __init__(self, args, n_local, n=1):
        port = random.SystemRandom().randrange(20000, 30000)
        addresses = ['localhost:%d' % (port + index) for index in range(n)]
        self.processes = []
        for index in range(n):
            config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
            environment = dict(os.environ, OMP_NUM_THREADS=str(max(1, args.cores // n)),
                               TF_CONFIG=json.dumps(config) if n > 1 else '')
            self.processes.append(subprocess.Popen(
                [sys.executable, __file__, '--local', str(n_local)] + sys.argv[1:], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, universal_newlines=True, env=environment))

    def seconds(self, action, times):
        """The mean seconds of an action, of the slowest process."""
        for process in self.processes:
            process.stdin.write('%s %d\n' % (action, times))
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
    parser.add_argument('--local', type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.local:
        work(args)
        return
    groups = [Workers(args, 1), Workers(args, args.workers), Workers(args, 1, args.workers)]
    try:
        # The first two steps warm up.
        times = [max(1, int(2 / [group.seconds('train', 2) for _ in range(2)][1])) for group in groups]
        groups[2].seconds('average', 2)
        found = []
        for number in range(args.rounds):
            seconds = {}
            for i in (0, 1, 2)[::(-1) ** number]:
                seconds[i] = groups[i].seconds('train', times[i])
            found.append([seconds[i] for i in range(3)] + [groups[2].seconds('average', times[2])])
            print('round %d: %s' % (number + 1, ' '.join('%.3f' % value for value in found[-1])), file=sys.stderr)
    finally:
        for group in groups:
            for process in group.processes:
                process.kill()
    alone, local, cluster, communication = np.array(found).T
    print('a step of %d x %d sequences, %d cores, median (quartiles) of %d rounds' % (
        args.workers, args.batch_size, args.cores, args.rounds))
    print('one worker: %s s' % quartiles(alone))
    for name, seconds in (('--workers %d' % args.workers, local), ('a cluster of %d' % args.workers, cluster)):
        print('%s: %s s, speed relative to one worker: %s' % (name, quartiles(seconds), quartiles(alone / seconds)))
    print('share of a step of the cluster that is communication: %s' % quartiles(communication / cluster))


if __name__ == '__main__':
    main()
