"""sampler.py: the same texts whoever asks, in whatever batches and threads; what is freed, and when errors come."""
import gc
import io
import itertools
import os
import random
import shutil
import sys
import threading
import weakref

import numpy as np
import pytest

import interactive_conditional_samples
from gpt2 import checkpoint, sampler, session
from gpt2.fast import matmul
from gpt2.fast import xla
from gpt2.system.tf1 import tf
import model
import sample
from helpers import tiny
from helpers.paths import SRC
from helpers.processes import environment, finished

END = tiny.N_BYTE_VOCAB - 1


@pytest.fixture(scope='module')
def models_dir(tmp_path_factory):
    """Two models that differ in their weights and sizes."""
    folder = tmp_path_factory.mktemp('models')
    for seed, name, changes in ((0, 'tiny', dict(n_layer=1)), (1, 'other', dict(n_ctx=24))):
        hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB, **changes)
        tiny.write_model(str(folder / name), hparams, tiny.random_weights(hparams, seed=seed))
    return str(folder)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """For models this small, handing work from one thread to another is most of the work."""
    config = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    monkeypatch.setattr(session, 'session_config', lambda sampling: config)


@pytest.fixture(scope='module')
def gpt2(models_dir):
    """The Sampler of `tiny`, which most tests use."""
    return sampler.load('tiny', models_dir)


def ids(gpt2, prompts):
    return [gpt2.encoder.encode(prompt) or [END] for prompt in prompts]


# Sampler.sample

@pytest.mark.slow
def test_sample_yields_a_text_for_each_sample_of_each_prompt(models_dir):
    """As docs/python.md shows it. None of them repeats its prompt."""
    gpt2 = sampler.load('tiny', models_dir)
    texts = list(gpt2.sample(['The best thing', 'about'], nsamples=2, length=5, top_k=40))
    assert len(texts) == 4 and all(isinstance(text, str) and text for text in texts)
    assert not any(text.startswith(('The', 'about')) for text in texts)
    assert next(gpt2.sample(['a'], length=4, temperature=0)) == next(gpt2.sample(['a'], length=4, top_k=1))


@pytest.mark.slow
@pytest.mark.parametrize('prompts, nsamples', [(['a'], 5), (['a', 'bcd', '', 'x y'], 1), (['ab', 'cd'], 3)], ids=str)
def test_sample_is_the_same_at_any_batch_size(gpt2, prompts, nsamples):
    """For prompts of the same length and of different ones. Another seed gives other texts, and so does none."""
    def texts(seed, batch_size):
        return list(gpt2.sample(prompts, nsamples=nsamples, length=8, top_k=40, seed=seed, batch_size=batch_size))

    expected = texts(3, 1)
    assert [texts(3, batch_size) for batch_size in (2, 8)] == [expected] * 2
    assert len({str(found) for found in (expected, texts(4, 8), texts(None, 8), texts(None, 8))}) == 4


@pytest.mark.slow
def test_sample_equals_the_draws_of_its_seed_given_to_sample_sequence(gpt2, models_dir):
    """Row i takes draws number i. In one batch are prompts of different lengths, an empty one among them."""
    prompts, options = ['ab', '', 'hello'], dict(temperature=0.8, top_k=50, top_p=0.9)
    found = list(gpt2.sample(prompts, nsamples=2, length=6, seed=7, batch_size=6, **options))
    expected = []
    with tf.Graph().as_default(), session.session() as sess:
        context = tf.placeholder(tf.int32, [1, None])
        draws = tf.placeholder(tf.float64, [1, 6])
        tokens = sample.sample_sequence(hparams=gpt2.hparams, length=6, context=context, draws=draws, **options)
        checkpoint.restore(sess, 'tiny', models_dir)
        for number, prompt in enumerate(prompt for prompt in ids(gpt2, prompts) for _ in range(2)):
            alone = sess.run(tokens, {context: [prompt], draws: sampler.random_draws(7, [number], 6)})[0, len(prompt):]
            expected.append(gpt2.encoder.decode(alone.tolist()))
    assert found == expected


@pytest.mark.slow
def test_sample_equals_the_interactive_script(gpt2, models_dir, monkeypatch, capsys):
    """For the same prompt, seed and options."""
    options = dict(nsamples=3, length=7, seed=5, temperature=0.9, top_k=40)
    monkeypatch.setattr(sys, 'stdin', io.StringIO('some text\n'))
    interactive_conditional_samples.interact_model('tiny', models_dir=models_dir, **options)
    expected = ''.join('%s SAMPLE %d %s\n%s\n' % ('=' * 40, number, '=' * 40, text)
                       for number, text in enumerate(gpt2.sample(['some text'], **options), 1))
    assert capsys.readouterr().out == expected + '=' * 80 + '\n'


@pytest.mark.slow
def test_sample_of_an_empty_prompt_is_a_new_text(gpt2):
    """After the end-of-text token, as the unconditional script samples; without prompts, one of these."""
    options = dict(length=9, seed=2, top_k=30)
    new, = gpt2.build(1, length=9, top_k=30)([[END]], sampler.random_draws(2, [0], 9))
    assert list(gpt2.sample([''], **options)) == list(gpt2.sample(**options)) == [gpt2.encoder.decode(new)]


def test_sample_without_a_length_fills_the_context(gpt2, monkeypatch):
    """After the longest prompt, up to one token over n_ctx, since the last is never fed back."""
    lengths = []
    monkeypatch.setattr(sampler.Sampler, 'build', lambda *_, **options: lengths.append(options['length']) or 1 / 0)
    for prompts in ([''], ['abc'], ['a', 'abcde'], ['x' * 32]):
        with pytest.raises(ZeroDivisionError):
            gpt2.sample(prompts, nsamples=77)
    assert lengths == [32, 30, 28, 1]


@pytest.mark.slow
def test_sample_stops_at_the_end_of_text(gpt2):
    """With stop_at_end, a text is the one without it up to the end-of-text token, where that is drawn."""
    options = dict(nsamples=100, length=16, seed=11, batch_size=50)
    whole, ended = [list(gpt2.sample(['a'], stop_at_end=stop, **options)) for stop in (False, True)]
    marks = [text.split('<|endoftext|>')[0] for text in whole]
    assert 0 < sum(mark != text for mark, text in zip(marks, whole)), 'choose a seed that makes a text end'
    assert ended == marks


@pytest.mark.slow
@pytest.mark.skipif(not xla.is_supported(), reason='TensorFlow 1.12 does not compile the loop')
def test_sample_is_the_same_where_the_loop_is_compiled(models_dir, monkeypatch, in_tensorflow):
    gpt2 = sampler.load('tiny', models_dir)
    options = dict(nsamples=4, length=6, seed=1, top_k=40, batch_size=2)
    plain, asked = list(gpt2.sample(['ab'], **options)), []
    monkeypatch.setattr(sampler, 'is_worth_compiling', lambda *numbers: asked.append(numbers) or True)
    assert list(gpt2.sample(['ab'], **options)) == plain and asked == [(4, 2, 6)]
    assert any(('compiled', True) in key for key in gpt2.functions)


# Sampler.build

@pytest.mark.slow
def test_build_ends_rows_before_the_end_token(gpt2):
    """So a row has fewer tokens than length only where the end token was drawn."""
    draws = sampler.random_draws(11, range(100), 16)
    whole = gpt2.build(100, length=16)([[64]] * 100, draws)
    ended = gpt2.build(100, length=16, end_token=END)([[64]] * 100, draws)
    assert {len(row) for row in whole} == {16}
    assert ended == [row[:row.index(END)] if END in row else row for row in whole]
    assert any(len(row) < 16 for row in ended) and any(len(row) == 16 for row in ended)


@pytest.mark.slow
def test_build_without_a_number_of_rows_takes_any(gpt2):
    prompts = ids(gpt2, ['a', 'bcd', 'ef'])
    continue_batch = gpt2.build(None, length=5, ragged=True)
    draws = sampler.random_draws(1, range(3), 5)
    together = continue_batch(prompts, draws)
    assert [len(row) for row in together] == [5, 5, 5]
    assert together == [continue_batch([prompt], [row])[0] for prompt, row in zip(prompts, draws)]


@pytest.mark.slow
def test_build_reuses_the_graph_for_equal_options(models_dir, in_tensorflow):
    """Sampling again adds no operation; other options do, but no variable."""
    gpt2 = sampler.load('tiny', models_dir)

    def count():
        return len(gpt2.graph.get_operations()), len(gpt2.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES))

    options = dict(length=4, top_k=3, end_token=END)
    first = gpt2.build(2, **options)
    first([[1], [2]], np.zeros([2, 4]))
    list(gpt2.sample(['a', 'b'], length=3))
    n_operations, n_variables = count()
    assert gpt2.build(2, **options) is first
    first([[3], [4]], np.zeros([2, 4]))
    list(gpt2.sample(['c', 'd'], length=3))
    assert count() == (n_operations, n_variables)
    assert gpt2.build(2, **dict(options, top_k=4)) is not first
    assert count()[0] > n_operations and count()[1] == n_variables


@pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 has no LiteRT')
@pytest.mark.parametrize('precision', ['float32', 'int8'])
def test_build_samples_in_litert(models_dir, precision):
    """The same by the same seed, also beside other prompts; without a graph."""
    with sampler.load('tiny', models_dir, precision=precision) as gpt2:
        texts = [list(gpt2.sample(['ab', 'c'], length=5, seed=seed)) for seed in (1, 2, 1)]
        assert texts[0] == texts[2] != texts[1]
        assert gpt2.network.wte[0].dtype == precision
        assert gpt2.graph is None


@pytest.mark.slow
def test_build_shows_each_watcher_its_own_tokens(models_dir):
    """Those of its runs, one column at a time, also if all other options are equal."""
    gpt2, seen = sampler.load('tiny', models_dir), {1: [], 2: []}
    for number in seen:
        found, = gpt2.build(1, length=3, watch=lambda token_B, n=number: seen[n].append(token_B.tolist()))(
            [[5]], sampler.random_draws(number, [0], 3))
        assert seen[number] == [[token] for token in found]
    assert len(seen[1]) == 3


@pytest.mark.slow
def test_build_reads_the_weights_once(models_dir, monkeypatch):
    """For options that differ, too."""
    read = []
    for name in ('restore', 'load_network'):
        monkeypatch.setattr(checkpoint, name, lambda *given, function=getattr(checkpoint, name): (
            read.append(given), function(*given))[1])
    gpt2 = sampler.load('tiny', models_dir)
    for length in (2, 3):
        gpt2.build(1, length=length)([[1]], np.zeros([1, length]))
    assert len(read) == 1


# Errors

@pytest.mark.parametrize('call, words', [
    ("load('9M')", ['no model 9M', 'download_model.py']),
    ("load('tiny', MODELS_DIR, precision='half')", ['half', 'float32, int8'])])
def test_load_reports_errors_before_tensorflow_is_imported(models_dir, tmp_path, call, words):
    """Here, importing TensorFlow would end the process."""
    (tmp_path / 'tensorflow.py').write_text('raise SystemExit("TensorFlow was imported")\n', encoding='utf-8')
    program = 'import sys\nsys.path.insert(0, %r)\nfrom gpt2.sampler import load\nMODELS_DIR = %r\n' % (SRC, models_dir)
    program += 'try:\n    %s\nexcept (FileNotFoundError, ValueError) as error:\n    print(error)\n' % call
    status, stdout, stderr = finished([sys.executable, '-c', program], env=environment(PYTHONPATH=str(tmp_path)))
    assert (status, stderr) == (0, b'')
    assert [word for word in words if word not in stdout.decode('utf-8')] == []


def test_load_names_weights_that_are_missing(models_dir, tmp_path):
    shutil.copytree(os.path.join(models_dir, 'tiny'), str(tmp_path / 'tiny'))
    os.remove(str(tmp_path / 'tiny' / 'model.ckpt.index'))
    with pytest.raises(FileNotFoundError, match='model.ckpt.index'):
        sampler.load('tiny', str(tmp_path))


@pytest.mark.parametrize('prompts, options, words', [
    (['a'], dict(length=0), 'length is 0.*1 to 32'), (['abc'], dict(length=31), 'length is 31.*3 tokens.*1 to 30'),
    (['x' * 33], dict(), '33 tokens'), (['a'], dict(seed=-1), 'seed is -1'),
    (['a'], dict(batch_size=0), 'batch_size is 0'), (['a'], dict(batch_size=-2), 'batch_size is -2'),
    ('a text', dict(), 'a text.*list'), ([], dict(), r'\[\].*1 or more'), (['a'], dict(nsamples=0), 'nsamples 0'),
    (['a'], dict(top_k=-1), 'top_k is -1'), (['a'], dict(top_p=0), 'top_p is 0'),
    (['a'], dict(temperature=-1), 'temperature is -1')], ids=str)
def test_sample_rejects_options_at_the_call_before_the_weights_are_loaded(
        models_dir, monkeypatch, prompts, options, words):
    gpt2 = sampler.load('tiny', models_dir)
    monkeypatch.setattr(checkpoint, 'restore', None)
    monkeypatch.setattr(checkpoint, 'load_network', None)
    with pytest.raises(ValueError, match=words):
        gpt2.sample(prompts, **options)


@pytest.mark.slow
def test_sampler_can_be_used_after_an_error(gpt2):
    """Whether a call was wrong, a run failed, the memory ran out, or whoever took the texts gave up."""
    expected = list(gpt2.sample(['a', 'b', 'c'], length=5, seed=1, batch_size=2))
    with pytest.raises(ValueError):
        gpt2.sample(['a'], top_k=-1)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match='over the context of 32'):
        gpt2.build(None, length=5)([[1] * 40], np.zeros([1, 5]))
    with pytest.raises(KeyError):
        for _ in gpt2.sample(['a', 'b', 'c'], length=5, seed=1, batch_size=2):
            raise KeyError
    assert list(gpt2.sample(['a', 'b', 'c'], length=5, seed=1, batch_size=2)) == expected


@pytest.mark.slow
def test_sampler_says_what_to_reduce_when_memory_is_short(models_dir, monkeypatch):
    gpt2 = sampler.load('tiny', models_dir)
    texts = gpt2.sample(['a', 'b', 'c'], length=5, batch_size=2)

    def run(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')

    words = r'out of memory.*batch_size \(2 .*length \(5\)'
    with monkeypatch.context() as patched, pytest.raises(ValueError, match=words):
        patched.setattr(sampler.process, 'wait_for', run)
        list(texts)
    assert len(list(gpt2.sample(['a', 'b', 'c'], length=5, batch_size=2))) == 3


@pytest.mark.slow
def test_sampler_leaves_the_main_thread_to_ctrl_c(gpt2, monkeypatch):
    """TensorFlow would hold it until a whole batch is done: in a notebook, the stop button would wait for that."""
    continue_batch, threads = gpt2.build(1, length=2), []
    engine, name = (gpt2.network, 'past') if gpt2.network else (gpt2.sess, 'run')
    run = getattr(engine, name)
    monkeypatch.setattr(engine, name, lambda *given: threads.append(threading.current_thread()) or run(*given))
    continue_batch([[1]], np.zeros([1, 2]))
    assert len(threads) == 1 and threads[0] is not threading.main_thread()


# Several at the same time

@pytest.mark.slow
def test_samplers_of_two_models_do_not_touch_each_other(models_dir):
    """Built in turns, in the graph that is the default one meanwhile, and with texts taken in turns."""
    def texts(gpt2):
        return gpt2.sample(['ab', 'cde'], nsamples=2, length=6, seed=3, batch_size=1)

    alone = [list(texts(sampler.load(name, models_dir))) for name in ('tiny', 'other')]
    with tf.Graph().as_default() as graph:
        first, second = [sampler.load(name, models_dir) for name in ('tiny', 'other')]
        together = list(zip(texts(first), texts(second)))
        assert graph.get_operations() == []
    assert [list(found) for found in zip(*together)] == alone and alone[0] != alone[1]


@pytest.mark.slow
def test_sampler_can_be_used_from_several_threads(models_dir):
    """With equal options and with different ones, built while others run. The texts are those of a single thread."""
    calls = [dict(prompts=['ab'] if seed % 2 else ['a', 'bcd'], length=4 + seed // 4, seed=seed, top_k=20 * (seed % 2))
             for seed in range(8)]
    expected = [list(sampler.load('tiny', models_dir).sample(**call)) for call in calls[:2]]
    gpt2, found, start = sampler.load('tiny', models_dir), {}, threading.Barrier(len(calls))

    def work(number):
        start.wait(60)
        found[number] = [list(gpt2.sample(**calls[number])) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert sorted(found) == list(range(len(calls))), 'a thread has failed or hangs'
    assert [found[number][0] for number in range(2)] == expected
    for number, call in enumerate(calls):
        assert found[number] == [list(gpt2.sample(**call))] * 3


@pytest.mark.slow
def test_build_while_another_thread_samples(models_dir, monkeypatch, in_tensorflow):
    """TensorFlow lets no run begin while a loop is half built, whose operations would stay as they are then."""
    gpt2, unembed, threads, found = sampler.load('tiny', models_dir), model.unembed, [], []
    first = gpt2.build(1, length=4, temperature=0)

    def sample_meanwhile(*arguments):
        threads.append(threading.Thread(target=lambda: found.extend(first([[64]], np.zeros([1, 4])))))
        threads[-1].start()
        threads[-1].join(1)
        return unembed(*arguments)

    expected, = first([[64]], np.zeros([1, 4]))
    monkeypatch.setattr(model, 'unembed', sample_meanwhile)
    second = gpt2.build(1, length=6, temperature=0)
    for thread in threads:
        thread.join(300)
    assert found == [expected] * len(threads) and threads
    assert second([[64]], np.zeros([1, 6]))[0][:4] == expected


# What is freed

@pytest.mark.slow
def test_sampler_closes_its_session_at_the_end_of_a_with_block(models_dir, in_tensorflow):
    with sampler.load('tiny', models_dir) as gpt2:
        texts = gpt2.sample(['a', 'b'], length=3, batch_size=1)
        next(texts)
    with pytest.raises(RuntimeError, match='closed'):
        next(texts)
    with sampler.load('tiny', models_dir):  # of which nothing was asked
        pass


@pytest.mark.slow
def test_sampler_does_not_close_its_session_after_an_error(models_dir, in_tensorflow):
    """TensorFlow 1.12 would wait there for a step that is still running."""
    with pytest.raises(KeyboardInterrupt):
        with sampler.load('tiny', models_dir) as gpt2:
            list(gpt2.sample(['a'], length=3))
            raise KeyboardInterrupt
    assert len(list(gpt2.sample(['a'], length=3))) == 1


@pytest.mark.slow
def test_sampler_frees_its_weights_when_it_is_collected(models_dir):
    """In a session or a network. Nothing in the process keeps it: no cache, no registry, no thread."""
    def use():
        gpt2 = sampler.load('tiny', models_dir)
        list(gpt2.sample(['a', 'bc'], length=3))
        gpt2.build(1, length=3, watch=print)
        return [weakref.ref(kept) for kept in (gpt2, gpt2.network, gpt2.sess, gpt2.graph) if kept]

    references = use()
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)


@pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 has no LiteRT')
def test_sampler_frees_its_network_at_the_end_of_a_with_block(models_dir):
    with sampler.load('tiny', models_dir) as gpt2:
        list(gpt2.sample(['a'], length=3))
        network = weakref.ref(gpt2.network)
    gc.collect()
    assert network() is None


# Which samples, in which batches

@pytest.mark.parametrize('tokens, expected', [([], []), ([1, 2], [1, 2]), ([9], []), ([1, 9, 2, 9], [1])])
def test_up_to_end_stops_before_the_first_end_token(tokens, expected):
    assert sampler.up_to_end(tokens, 9) == expected
    assert sampler.up_to_end(np.array(tokens, int), 9) == expected
    assert sampler.up_to_end(tokens, None) == tokens


@pytest.mark.parametrize('n, batch_size, expected', [
    (1, 1, [[0]]), (5, 2, [[0, 1], [2, 3], [4]]), (4, 2, [[0, 1], [2, 3]]), (2, 9, [[0, 1]])])
def test_batches_count_every_sample_once(n, batch_size, expected):
    assert [list(numbers) for numbers in sampler.batches(n, batch_size)] == expected
    sizes = {len(numbers) for numbers in expected}
    assert sampler.rows_of(n, batch_size) == (sizes.pop() if len(sizes) == 1 else None)


def test_batches_of_0_samples_are_endless():
    numbers = itertools.chain.from_iterable(sampler.batches(0, 3))
    assert list(itertools.islice(numbers, 10000)) == list(range(10000))
    assert sampler.rows_of(0, 3) == 3


@pytest.mark.parametrize('n, batch_size, words', [
    (-1, 1, 'nsamples is -1'), (1, 0, 'batch_size is 0'), (0, -2, 'batch_size is -2'),
    (1, 2 ** 31, 'batch_size is 2147483648')])
def test_batches_rejects_impossible_numbers_at_the_call(n, batch_size, words):
    for function in (sampler.batches, sampler.rows_of):
        with pytest.raises(ValueError, match=words):
            function(n, batch_size)


@pytest.mark.parametrize('n, batch_size, length, expected', [
    (0, 1, 1, True), (1, 1, 2000, True), (1, 1, 1999, False), (8, 4, 1000, True), (8, 4, 999, False),
    (3, 8, 2000, True), (9, 8, 2000, False)], ids=str)  # the last batch of nine has another size
def test_is_worth_compiling_for_2000_steps_on_a_gpu(monkeypatch, n, batch_size, length, expected):
    monkeypatch.setattr(matmul, 'on_gpu', lambda: True)
    assert sampler.is_worth_compiling(n, batch_size, length) == (expected and not tf.__version__.startswith('1.'))
    for module, name in ((xla, 'is_usable'), (matmul, 'on_gpu')):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, lambda: False)
            assert not sampler.is_worth_compiling(n, batch_size, length)


# Draws

def test_random_draws_are_pythons_own_generator_seeded_with_seed_and_number():
    """Both are MT19937 (Matsumoto and Nishimura 1998), initialized with the two numbers as 32-bit words.

    Python takes one integer for them, and leaves out a high word that is 0. So they are the same on every machine and
    version for good; a change here changes everybody's samples.
    """
    for seed, numbers in ((0, [1, 2]), (7, [5]), (2 ** 32 - 1, [2 ** 31, 1])):
        draws = sampler.random_draws(seed, numbers, 20)
        assert draws.dtype == np.float64
        for row, number in zip(draws, numbers):
            generator = random.Random(number * 2 ** 32 + seed)
            assert row.tolist() == [generator.random() for _ in range(20)]


def test_random_draws_depend_on_seed_and_number_alone():
    many = sampler.random_draws(3, range(20), 8)
    assert many.shape == (20, 8) and many.min() >= 0 and many.max() < 1
    assert np.array_equal(many[5:7], sampler.random_draws(3, [5, 6], 8))
    assert np.array_equal(many[:, :4], sampler.random_draws(3, range(20), 4))  # a longer text begins like a shorter one
    assert len(np.unique(np.concatenate([many, sampler.random_draws(4, range(20), 8)]))) == 320


def test_random_draws_take_several_numbers_for_a_sample():
    numbers = [7, np.array([1, 2 ** 32 - 1]), np.array([1])]
    expected = [np.random.RandomState(entropy).random_sample(4) for entropy in ([5, 7], [5, 1, 2 ** 32 - 1], [5, 1])]
    np.testing.assert_array_equal(sampler.random_draws(5, numbers, 4), expected)
    np.testing.assert_array_equal(sampler.random_draws(5, [1], 4), expected[2:])


def test_random_draws_that_exceed_the_memory_fail_before_one_is_drawn(monkeypatch):
    monkeypatch.delattr(np.random, 'RandomState')
    with pytest.raises(ValueError, match=r'out of memory.*batch_size \(1073741824 .*length \(262144\)'):
        sampler.random_draws(0, range(2 ** 30), 2 ** 18)  # 2 PB: no process has that many addresses


def test_random_draws_without_a_seed_differ_each_time():
    assert not np.array_equal(sampler.random_draws(None, [0], 5), sampler.random_draws(None, [0], 5))


@pytest.mark.parametrize('seed', [-1, 2 ** 32])
def test_random_draws_reject_a_seed_out_of_range(seed):
    for function in (sampler.check_seed, lambda seed: sampler.random_draws(seed, [0], 5)):
        with pytest.raises(ValueError, match='seed is %d.* 0 to 4294967295' % seed):
            function(seed)
    for good in (None, 0, 2 ** 32 - 1):
        sampler.check_seed(good)
