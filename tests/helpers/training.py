"""Short runs of train.py: the model and texts that they start from, their flags, their workers, and their results."""
import contextlib
import inspect
import json
import os
import random
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

from gpt2 import checkpoint
from gpt2.system.tf1 import tf
from gpt2.training import cluster, run_folder
from helpers import tiny
from helpers.processes import SECONDS
import train

SCRIPT = os.path.abspath(train.__file__)
RUN_HPARAMS = {'n_vocab': tiny.N_BYTE_VOCAB, 'n_ctx': 16, 'n_embd': 8, 'n_head': 2, 'n_layer': 1}


def options(**changes):
    """The flags of train.py with these changes to the defaults."""
    parameters = inspect.signature(train.train).parameters.values()
    values = {parameter.name: parameter.default for parameter in parameters}
    values.update(changes)
    return SimpleNamespace(**values)


def write_models_dir(folder):
    """Write a models_dir with one model, `tiny`, and beside it data.txt and valid.txt. Returns its path."""
    hparams = tiny.hparams(**RUN_HPARAMS)
    tiny.write_model(str(folder / 'models' / 'tiny'), hparams, tiny.random_weights(hparams))
    words = random.Random(0)
    for name, n_words in (('data.txt', 500), ('valid.txt', 60)):
        text = ' '.join(words.choice(['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'sang']) for _ in range(n_words))
        (folder / name).write_text(text)
    return str(folder / 'models')


def flags_of(models_dir, run_name, **changes):
    """The flags of a short fine-tune of `tiny`."""
    flags = dict(data=beside(models_dir, 'data.txt'), run_name=run_name, model_name='tiny', models_dir=models_dir,
                 batch_size=2, accumulate=2, learning_rate=0.01, warmup=5, steps=40, save_every=5)
    flags.update(changes)
    return flags


def beside(models_dir, name):
    return os.path.join(os.path.dirname(models_dir), name)


def start_training(flags):
    """Start train.py as a process."""
    return subprocess.Popen([sys.executable, SCRIPT] + arguments_of(flags), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def arguments_of(flags):
    return ['--%s=%s' % flag for flag in sorted(flags.items())]


def free_addresses(n):
    """Addresses on this machine at which nothing listens, with ports below those that the system assigns by itself.

    The processes of pytest-xdist have ports of their own: another one could take a free port before it is used.
    """
    found = []
    process = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0')[2:])
    for port in random.SystemRandom().sample(range(20000 + process % 16, 32768, 16), n + 100):
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(('', port))
            found.append('localhost:%d' % port)
    return found[:n]


def together(monkeypatch, function, workers, silence_seconds=SECONDS):
    """Call function with each Cluster of workers, in threads of this process. Returns what each has raised, or None.

    A worker whose thread has ended cannot be reached, as if its process had ended. None is given up for being slow.
    """
    errors, ended = [None] * len(workers), set()

    def call(i):
        threading.current_thread().cluster = workers[i]
        try:
            function(workers[i])
        except Exception as error:
            errors[i] = error
        ended.add(workers[i].addresses[workers[i].index])

    with monkeypatch.context() as patch:
        patch.setattr(cluster, 'FAREWELL_SECONDS', SECONDS)
        patch.setattr(cluster, 'SILENCE_SECONDS', silence_seconds)
        patch.setattr(cluster, 'is_reachable', lambda address, real=cluster.is_reachable: (
            address not in ended and real(address)))
        patch.setattr(cluster, 'signal', SimpleNamespace(signal=lambda *arguments: None, SIGSEGV=None))
        patch.setattr(train, 'from_environment', lambda text: threading.current_thread().cluster)
        threads = [threading.Thread(target=call, args=[i], daemon=True) for i in range(len(workers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
    return errors


def train_together(monkeypatch, all_flags, addresses=None, silence_seconds=SECONDS):
    """Train with the flags of each worker of a cluster. Returns what each has raised, or None."""
    addresses = addresses or free_addresses(len(all_flags))
    workers = [cluster.Cluster(addresses, index) for index in range(len(all_flags))]
    return together(monkeypatch, lambda worker: train.train(**all_flags[worker.index]), workers,
                    silence_seconds)


def metrics_of(models_dir, run_name):
    with open(os.path.join(models_dir, run_name, 'training', 'metrics.jsonl'), encoding='utf-8') as file:
        return list(map(json.loads, file))


def losses_of(models_dir, run_name):
    return [(record['step'], record['loss_nats'], record['gradient_norm'])
            for record in metrics_of(models_dir, run_name) if record['step']]


def metrics_of_step(path):
    with open(path, encoding='utf-8') as file:
        return max([json.loads(line)['step'] for line in file if line.endswith('\n')] or [0])


def stored(prefix):
    """The variables of a checkpoint: {name: array}."""
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def weights_and_state(folder):
    """The variables of the last save in the folder of a run: {name: array}."""
    found = stored(checkpoint.weights_prefix(folder))
    found.update(stored(os.path.join(folder, 'training', 'state.ckpt-%d' % run_folder.last_save(folder))))
    return found
