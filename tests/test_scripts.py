"""The two sampling scripts as a user runs them: from any folder, on a terminal, through pipes, with Ctrl-C.

Where only the output counts, they are called in this process, which has TensorFlow loaded already.
"""
import importlib.util
import inspect
import io
import os
import shutil
import signal
import sys
import termios
import time
import warnings

import numpy as np
import pytest

import encoder
import generate_unconditional_samples
import interactive_conditional_samples
from gpt2 import checkpoint, session
from gpt2.fast import xla
from gpt2.generation import plan
from gpt2.sampler import random_draws
from gpt2.system import flags, process
from gpt2.system.tf1 import tf
import sample
from helpers import reference, tiny
from helpers.paths import SRC
from helpers.processes import (
    CTRL_C, CTRL_D, INTERACTIVE, QUESTION, SECONDS, UNCONDITIONAL, Conversation, environment, finished)

FUNCTIONS = {UNCONDITIONAL: generate_unconditional_samples.sample_model,
             INTERACTIVE: interactive_conditional_samples.interact_model}
both = pytest.mark.parametrize('script', [UNCONDITIONAL, INTERACTIVE])
ASCII = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONIOENCODING': 'ascii'}
ARROW_LEFT = b'\x1b[D'


def header(number):
    """The line above a sample, as OpenAI's scripts print it."""
    return '=' * 40 + ' SAMPLE ' + str(number) + ' ' + '=' * 40 + '\n'


CLOSING = '=' * 80 + '\n'  # below the samples of a prompt


@pytest.fixture(scope='module')
def command(flat_models, tmp_path_factory):
    """A function that returns the command of a script, in a copy of the repository that has the model `tiny`."""
    repository = str(tmp_path_factory.mktemp('repository'))
    shutil.copytree(SRC, os.path.join(repository, 'src'), ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(flat_models, os.path.join(repository, 'models'))

    def of(script, *arguments):
        return [sys.executable, os.path.join(repository, 'src', script)] + list(arguments)
    return of


@pytest.fixture(scope='module')
def without_tensorflow(tmp_path_factory):
    """An environment in which importing TensorFlow ends the process."""
    folder = tmp_path_factory.mktemp('guard')
    (folder / 'tensorflow.py').write_text('import os\nos.write(2, b"TensorFlow logs\\n")\n'
                                          'raise SystemExit("TensorFlow was imported")\n', encoding='utf-8')
    return environment(PYTHONPATH=str(folder))


@pytest.fixture
def printed(flat_models, capsys, monkeypatch):
    """A function that returns what a script prints: called in this process, with prompts as its input.

    The session has one thread: for a model this small, handing work from one to another is most of the work.
    """
    one_thread = tf.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=1)
    monkeypatch.setattr(session, 'session_config', lambda sampling: one_thread)

    def of(script, *, prompts='', **options):
        monkeypatch.setattr(sys, 'stdin', io.StringIO(prompts))
        FUNCTIONS[script](model_name='tiny', models_dir=flat_models, **options)
        return capsys.readouterr().out
    return of


@pytest.fixture
def ids(printed, monkeypatch):
    """A function that returns the samples that a script prints, each as its list of token ids."""
    monkeypatch.setattr(encoder.Encoder, 'decode', lambda self, tokens: ' '.join(str(token) for token in tokens))

    def of(script, **options):
        options.setdefault('prompts', '' if script == UNCONDITIONAL else 'a\n')
        lines = printed(script, **options).split('\n')
        return [[int(token) for token in line.split()] for line in lines if line and not line.startswith('=')]
    return of


# Without TensorFlow, and without waiting for it

@pytest.mark.slow
@pytest.mark.parametrize('changes, shown', [({}, b''), ({'TF_CPP_MIN_LOG_LEVEL': '0'}, b'TensorFlow logs\n')], ids=str)
def test_guard_sees_tensorflow_which_logs_when_it_is_asked_to(without_tensorflow, changes, shown):
    """Without this, the tests with the guard would prove nothing. It logs as TensorFlow does, past Python's stderr.
    The import waits for the first use.
    """
    program = 'import sys; sys.path.insert(0, %r); from gpt2.system.tf1 import tf; print(1, flush=True); tf.Graph' % SRC
    status, stdout, stderr = finished([sys.executable, '-c', program], env=dict(without_tensorflow, **changes))
    assert (status, stdout, stderr) == (1, b'1\n', shown + b'TensorFlow was imported\n')


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('ai_edge_litert'), reason='needs ai-edge-litert')
@pytest.mark.parametrize('precision', ['float32', 'int8'])
@both
def test_scripts_sample_without_tensorflow(command, without_tensorflow, tmp_path, script, precision):
    """LiteRT's own package and the one inside TensorFlow give the same text, and say nothing else."""
    (tmp_path / 'ai_edge_litert.py').write_text('raise ImportError', encoding='utf-8')
    flags = ['--model_name', 'tiny', '--nsamples', '1', '--length', '9', '--seed', '1', '--precision', precision]
    found, expected = [finished(command(script, *flags), b'a\n', env=env)
                       for env in (without_tensorflow, environment(PYTHONPATH=str(tmp_path)))]
    assert found == expected and found[0] == 0 and len(found[1]) > 100 and not found[2].replace(QUESTION, b'')


@pytest.mark.slow
@pytest.mark.parametrize('script, nsamples, asking', [
    (UNCONDITIONAL, 0, ['--', '--help']), (INTERACTIVE, 1, ['--model_name', 'tiny', '--help'])])
def test_scripts_help_shows_every_flag_with_default_and_meaning(command, without_tensorflow, script, nsamples, asking):
    """The defaults are those of OpenAI's scripts."""
    defaults = {'model_name': '117M', 'seed': None, 'nsamples': nsamples, 'batch_size': 1, 'length': None,
                'temperature': 1, 'top_k': 0, 'top_p': 1, 'stop_at_end': False, 'precision': 'float32',
                'models_dir': 'models'}
    status, stdout, stderr = finished(command(script, *asking), env=without_tensorflow)
    shown = stdout.decode('utf-8')
    assert status == 0 and not stderr
    parameters = inspect.signature(FUNCTIONS[script]).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == defaults
    for name, default in defaults.items():
        about = shown[shown.index('--%s=' % name):].split('--', 2)[1]
        assert 'Default: %r' % default in about or isinstance(default, int) and 'Default: %d.0' % default in about
        own = inspect.getdoc(FUNCTIONS[script]).split('    %s: ' % name)[1:]
        meaning = own[0].split('\n')[0] if own else flags.SHARED_HELP[name]
        assert len(meaning) > 10 and meaning in ' '.join(about.split())


@pytest.mark.slow
@pytest.mark.parametrize('script, arguments, words', [
    (UNCONDITIONAL, ['--model_name', '9M'], ['no model 9M', 'models there: tiny', 'python3 download_model.py']),
    (INTERACTIVE, ['--model_name', 'tiny', '--models_dir', '9'], ['no model tiny in ', 'download_model.py']),
    (UNCONDITIONAL, ['--topk', '40'], [
        '--topk', 'did you mean --top_k?', '--model_name --seed --nsamples --batch_size --length --temperature --top_k '
        '--top_p --stop_at_end --precision --models_dir']),
    (INTERACTIVE, ['--seed', 'x'], ['--seed is x; it must be a whole number of at most 18 digits'])], ids=str)
def test_scripts_report_mistakes_at_once_in_one_line(command, without_tensorflow, tmp_path, script, arguments, words):
    status, stdout, stderr = finished(command(script, *arguments), env=without_tensorflow, cwd=str(tmp_path))
    assert (status, stdout) == (1, b'')
    message = stderr.decode('utf-8')
    assert message.startswith(script + ': ') and message.count('\n') == 1 and message.endswith('\n')
    assert [part for part in words if part not in message] == []


@pytest.mark.slow
@pytest.mark.parametrize('script, package', [
    (UNCONDITIONAL, 'fire'), (INTERACTIVE, 'tensorflow'), ('evaluate.py', 'numpy'), ('train.py', 'tqdm')])
def test_scripts_report_a_missing_package_in_one_line_with_what_installs_it(command, tmp_path, script, package):
    """As when a script is run outside of the virtual environment that make has made."""
    (tmp_path / (package + '.py')).write_text('raise ImportError("No module named %r")' % package, encoding='utf-8')
    (tmp_path / 'ai_edge_litert.py').write_text('raise ImportError', encoding='utf-8')
    env = environment(PYTHONPATH=str(tmp_path))
    status, stdout, stderr = finished(command(script, '--model_name', 'tiny'), env=env)
    assert (status, stdout) == (1, b'')
    message = stderr.decode('utf-8')
    assert message.startswith("%s: No module named '%s'; " % (script, package)) and message.count('\n') == 1
    assert 'make --silent activate' in message and 'docs/install.md' in message


@pytest.mark.parametrize('script', [UNCONDITIONAL, INTERACTIVE, 'evaluate.py', 'train.py'])
def test_scripts_can_be_run_by_name(script):
    path = os.path.join(SRC, script)
    assert os.access(path, os.X_OK)
    with open(path, encoding='utf-8') as file:
        assert file.readline() == '#!/usr/bin/env python3\n'


# Samples, from calls in this process

@both
@pytest.mark.parametrize('flag, value, message', [
    ('nsamples', -1, 'nsamples is -1; it must be'), ('batch_size', 0, 'batch_size is 0; it must be'),
    ('length', -1, 'length is -1; it must be'), ('length', 0, 'length is 0; it must be 1 or more'),
    ('length', 33, 'length .*33.* over the context of 32'), ('temperature', -0.5, 'temperature is -0.5; it must be'),
    ('temperature', float('inf'), 'temperature is inf; it must'), ('top_k', -1, 'top_k is -1; it must be'),
    ('top_p', 0, 'top_p is 0; it must be'), ('top_p', 1.5, 'top_p is 1.5; it must'),
    ('seed', -1, 'seed is -1; it must be'), ('seed', 2 ** 32, 'seed is 4294967296; it must be')])
def test_scripts_reject_values_out_of_range_before_the_weights_are_loaded(
        printed, monkeypatch, script, flag, value, message):
    for name in ('restore', 'load_network'):
        monkeypatch.setattr(checkpoint, name, no_loading)
    with pytest.raises(ValueError, match=message):
        printed(script, **{flag: value})


@pytest.mark.slow
@both
def test_scripts_say_what_to_reduce_when_memory_is_short(printed, monkeypatch, script):
    def run(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, 'OOM when allocating tensor')

    monkeypatch.setattr(process, 'wait_for', run)
    with pytest.raises(ValueError, match=r'out of memory.*batch_size \(3 .*length \(7'):
        printed(script, prompts='a\n', nsamples=3, batch_size=3, length=7)


def test_interactive_rejects_0_samples(printed, monkeypatch):
    for name in ('restore', 'load_network'):
        monkeypatch.setattr(checkpoint, name, no_loading)
    with pytest.raises(ValueError, match='nsamples is 0; .* 1 or more'):
        printed(INTERACTIVE, nsamples=0)


def no_loading(*arguments):
    raise AssertionError('the weights are loaded')


def prompt_of(script):
    """The prompt with which the fixture ids runs a script: none (the end of a text), or the letter a."""
    return [tiny.N_BYTE_VOCAB - 1 if script == UNCONDITIONAL else ord('a') - ord('!')]


@pytest.mark.slow
@both
def test_scripts_greedy_samples_of_the_default_length_equal_the_reference(ids, script):
    """The whole context, or half of it after a prompt."""
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB, n_layer=1)
    length = hparams.n_ctx if script == UNCONDITIONAL else hparams.n_ctx // 2
    expected = reference.greedy(tiny.random_weights(hparams), [prompt_of(script)], hparams.n_head, length)
    assert ids(script, nsamples=1, temperature=0) == expected[:, 1:].tolist()


@pytest.mark.slow
def test_unconditional_at_a_temperature_near_0_is_greedy(ids):
    """1e-300 is 0 in float32, and 0 / 0 is not a number."""
    assert ids(UNCONDITIONAL, nsamples=1, length=4, temperature=1e-300) == ids(
        UNCONDITIONAL, nsamples=1, length=4, temperature=0)


@pytest.mark.slow
@pytest.mark.parametrize('temperature', [1e49, 1e308])
def test_unconditional_at_a_temperature_beyond_float32_draws_all_tokens_alike(ids, temperature):
    """Silently: 1e49 and more are infinity there."""
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        found, = ids(UNCONDITIONAL, nsamples=1, seed=5, length=4, temperature=temperature)
    assert found == [int(draw * tiny.N_BYTE_VOCAB) for draw in random_draws(5, [0], 4)[0]]


@pytest.mark.slow
@both
def test_scripts_honour_every_flag_of_the_sampler(ids, script):
    """The samples are what temperature, top_k, top_p and the draws of the seed make of the reference's logits.

    Each sample has draws of its own, numbered from one prompt to the next, at any batch_size.
    """
    hparams = tiny.hparams(n_vocab=tiny.N_BYTE_VOCAB, n_layer=1)
    weights = tiny.random_weights(hparams)
    expected = []
    for draws in random_draws(5, range(3 if script == UNCONDITIONAL else 6), 6):
        tokens = prompt_of(script)
        for draw in draws:
            logits = reference.forward(weights, [tokens], hparams.n_head)[0][0, -1] / 0.8
            top = np.argsort(-logits)[:40]
            probability = np.exp(logits[top]) / np.exp(logits[top]).sum()
            n_kept = 1 + int((np.cumsum(probability) < 0.9).sum())
            kept = sorted(zip(top[:n_kept].tolist(), probability[:n_kept]))
            mass = np.cumsum([share for _, share in kept])
            tokens = tokens + [kept[int((mass <= draw * mass[-1]).sum())][0]]
        expected.append(tokens[1:])
    assert expected == ids(script, prompts='a\na\n', nsamples=3, batch_size=2, length=6, seed=5, temperature=0.8,
                           top_k=40, top_p=0.9)


@pytest.mark.slow
def test_unconditional_samples_differ_for_another_seed_and_for_none(ids):
    found = [ids(UNCONDITIONAL, nsamples=1, length=8, seed=seed) for seed in (1, 2, None)]
    assert len({str(samples) for samples in found}) == 3


@pytest.mark.slow
@pytest.mark.skipif(not xla.is_supported(), reason='TensorFlow 1.12 does not compile the loop')
def test_unconditional_samples_are_the_same_where_the_loop_is_compiled(printed, monkeypatch, in_tensorflow):
    options = dict(nsamples=4, batch_size=2, length=9, seed=1, top_k=40)
    asked, built, compiled_loop = [], [], sample.compiled_loop
    monkeypatch.setattr(sample, 'compiled_loop', lambda *given: built.append(given) or compiled_loop(*given))
    plain = printed(UNCONDITIONAL, **options)
    monkeypatch.setattr(generate_unconditional_samples, 'is_worth_compiling',
                        lambda *numbers: asked.append(numbers) or True)
    assert not built and printed(UNCONDITIONAL, **options) == plain
    assert len(built) == 1 and asked == [(4, 2, 9)]


@pytest.mark.slow
def test_unconditional_prints_each_sample_before_it_computes_the_next(printed, monkeypatch):
    """Here stdout is a file on disk, of which a copy is taken whenever a sample is begun."""
    copies = []

    def copy(*arguments):
        copies.append(disk.getvalue().decode('utf-8'))
        return random_draws(*arguments)

    monkeypatch.setattr(generate_unconditional_samples, 'random_draws', copy)
    disk = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BufferedWriter(disk), encoding='utf-8'))
    printed(UNCONDITIONAL, nsamples=3, seed=1, length=4)
    whole = disk.getvalue().decode('utf-8')
    assert copies == ['', whole[:whole.index(header(2))], whole[:whole.index(header(3))]]


@pytest.mark.slow
def test_unconditional_ends_when_its_pipe_is_closed(printed, monkeypatch):
    """flags.run turns this error into an orderly end."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, 'w', encoding='utf-8') as stdout:
        monkeypatch.setattr(sys, 'stdout', stdout)
        with pytest.raises(BrokenPipeError):
            printed(UNCONDITIONAL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), writing)  # takes what is still buffered when stdout is closed


def test_read_prompts_takes_the_lines_that_generate_dataset_takes(flat_models, monkeypatch, tmp_path):
    """Only a line feed ends a line: with a carriage return in it, answers would not fit the lines of the file."""
    text_encoder = encoder.get_encoder('tiny', flat_models)
    (tmp_path / 'prompts.txt').write_bytes(b'a\rb\r\nc\x0cd\xc2\x85\xe2\x80\xa8e\n\rf\n')
    rows, _, _ = plan.rows_from_prompts(str(tmp_path / 'prompts.txt'), text_encoder.encode, 99)
    with open(str(tmp_path / 'prompts.txt'), encoding='utf-8', errors='replace', newline='\n') as stdin:
        monkeypatch.setattr(sys, 'stdin', stdin)
        found = list(interactive_conditional_samples.read_prompts(text_encoder, 99))
    assert found == [row.tokens for row in rows] and len(found) == 3


def test_read_prompts_asks_where_a_notebook_does(flat_models, monkeypatch):
    """Its own input(), with a field to type in; its stdin is empty."""
    text_encoder, asked, lines = encoder.get_encoder('tiny', flat_models), [], ['ab', 'c']

    def ask(question):
        asked.append(question.encode('ascii'))
        if not lines:
            raise EOFError
        return lines.pop(0)

    monkeypatch.setattr(sys, 'stdin', io.StringIO(''))
    monkeypatch.setattr('builtins.input', ask)
    found = list(interactive_conditional_samples.read_prompts(text_encoder, 9))
    assert found == [text_encoder.encode('ab'), text_encoder.encode('c')] and asked == [QUESTION] * 3


def test_read_prompts_without_prompts_is_no_error(flat_models, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'stdin', io.StringIO(''))
    assert list(interactive_conditional_samples.read_prompts(encoder.get_encoder('tiny', flat_models), 9)) == []
    assert capsys.readouterr().out == ''


@pytest.mark.slow
@both
def test_scripts_stop_at_end_ends_a_sample_at_the_end_of_text(ids, script):
    """Up to the end-of-text token, the sample is the one that goes on without the flag."""
    end = tiny.N_BYTE_VOCAB - 1
    options = {'nsamples': 100, 'seed': 11, 'batch_size': 50, 'temperature': 1.0, 'length': 16, 'prompts': 'a\n'}
    whole = ids(script, top_k=0, **options)
    assert 0 < sum(end in tokens for tokens in whole), 'choose a seed that makes a text end'
    ended = ids(script, top_k=0, stop_at_end=True, **options)
    assert ended == [tokens[:tokens.index(end)] if end in tokens else tokens for tokens in whole if tokens[0] != end]


@pytest.mark.parametrize('tokens_of', [
    lambda random: [byte for character in 'aé中😀\n' for byte in character.encode('utf-8')],
    lambda random: random.randint(256, size=40).tolist()], ids=['characters of 1 to 4 bytes', 'any bytes'])
def test_live_text_adds_up_to_the_text(flat_models, capsys, tokens_of):
    """Printed token by token, it adds up to what decode makes of all tokens, and is valid UTF-8 at each moment."""
    text_encoder = encoder.get_encoder('tiny', flat_models)
    ids_of_bytes = {byte: text_encoder.encoder[symbol] for byte, symbol in encoder.bytes_to_unicode().items()}
    live = interactive_conditional_samples.LiveText(text_encoder, text_encoder.end_of_text)
    for seed in range(20):
        tokens = [ids_of_bytes[byte] for byte in tokens_of(np.random.RandomState(seed))]
        live.begin(seed)
        so_far = capsys.readouterr().out.replace(header(seed + 1), '')
        for n, token in enumerate(tokens, 1):
            live.show(np.array([token, 0], np.int32))
            so_far += capsys.readouterr().out
            assert text_encoder.decode(tokens[:n]).rstrip('\ufffd').startswith(so_far.rstrip('\ufffd'))
        live.show(np.array([text_encoder.end_of_text, 0], np.int32))
        live.show(np.array([tokens[0], 0], np.int32))  # beyond the end
        live.end()
        assert so_far + capsys.readouterr().out == text_encoder.decode(tokens) + '\n'


# Whole processes

@pytest.mark.slow
def test_unconditional_samples_endlessly_from_any_folder_until_ctrl_c(command, printed, tmp_path):
    """In a C locale: it prints UTF-8 with OpenAI's headers and nothing on stderr; SIGINT while sampling is status 130.

    The same samples as a call for 7 gives, 3 at once: not 6, not 9.
    """
    expected = printed(UNCONDITIONAL, nsamples=7, batch_size=3, seed=3, length=8)
    assert [header(number) in expected for number in range(9)] == [False] + [True] * 7 + [False]
    with Conversation(command(UNCONDITIONAL, '--model_name', 'tiny', '--seed', '3', '--length', '8'),
                      cwd=str(tmp_path), env=environment(**ASCII)) as running:
        found = running.read_until(header(8).encode('ascii'))
        assert found.decode('utf-8') == expected + header(8)
        running.process.send_signal(signal.SIGINT)
        deadline = time.time() + SECONDS
        while running.read_some():
            assert time.time() < deadline, 'it goes on sampling'
        assert running.process.wait(SECONDS) == 130
        assert running.stderr() == b''


@pytest.mark.slow
def test_interactive_through_a_pipe(command, printed, capsys):
    """As from a program that reads each answer before it asks again: stdout has nothing but samples.

    The samples are those of a call that computes 2 at once. A line that cannot be a prompt has an answer without
    samples, so that answers and lines stay in step; its number is reported at once and at the end.
    """
    options = {'nsamples': 3, 'seed': 4, 'length': 5}
    arguments = ['--%s=%d' % option for option in sorted(options.items())]
    lines = ['é中\r😀', '', 'a\ufffdb\ufffd', 'x' * 29, 'the end']  # a lone CR does not end a line
    with pytest.raises(ValueError) as error:
        printed(INTERACTIVE, prompts='\n'.join(lines), batch_size=2, **options)
    expected = [answer + CLOSING for answer in capsys.readouterr().out.split(CLOSING)[:-1]]
    assert [answer.count(' SAMPLE ') for answer in expected] == [3, 0, 3, 0, 3]
    assert [answer.startswith(header(1)) for answer in expected] == [True, False, True, False, True]
    assert str(error.value) == 'lines without a sample: 2, 4'
    with Conversation(command(INTERACTIVE, '--model_name', 'tiny', *arguments), env=environment(**ASCII)) as running:
        def ask(line):
            running.say(line)
            return running.read_until(CLOSING.encode('ascii')).decode('utf-8')

        assert ask('\ufeffé中\r😀\n'.encode('utf-8')) == expected[0]  # Notepad begins a file with U+FEFF
        assert ask(b'\n') == expected[1]
        assert ask(b'a\xffb\xc3\r\n') == expected[2]  # invalid UTF-8, and a line end as on Windows
        assert ask(b'x' * 29 + b'\n') == expected[3]
        running.say(b'the end')
        running.process.stdin.close()
        status, rest = running.end()
        assert (status, rest.decode('utf-8')) == (1, expected[4])
        said = running.stderr().replace(QUESTION, b'').decode('ascii').splitlines()
    assert len(said) == 3
    assert said[0].startswith('line 2: ') and 'empty' in said[0]
    assert said[1].startswith('line 4: ') and '29 tokens' in said[1] and '28' in said[1]
    assert said[2] == INTERACTIVE + ': ' + str(error.value)


def test_read_prompts_rejects_an_endless_line(monkeypatch, flat_models, capsys):
    """As of /dev/zero: it must not fill the memory. The lines behind a long one that ends have their answers."""
    monkeypatch.setattr(interactive_conditional_samples, 'MAX_CHARACTERS', 1000)
    text_encoder = encoder.get_encoder('tiny', flat_models)
    for line, longest, found in (('x' * 1000 + '\n', 1000, [1000]), ('x' * 1000, 1000, [1000]),
                                 ('x' * 1000 + '\ny', 9, [0, 1]), ('x' * 3001 + '\nyy\n', 9999, [0, 2]),
                                 ('y\n' + 'x' * 1001, 9999, [1, 0]), ('a\rb\n\0\nc\r\n', 9, [3, 0, 1])):
        monkeypatch.setattr(sys, 'stdin', io.StringIO(line))
        assert list(map(len, interactive_conditional_samples.read_prompts(text_encoder, longest))) == found
    said = capsys.readouterr().err
    assert 'line 1: The prompt has more than 1000 characters' in said and 'line 2: The prompt has more than 1' in said
    assert 'line 2: The prompt has NUL characters; if it is UTF-16' in said

    class Endless(io.StringIO):
        def readline(self, size=-1):
            assert 0 < size < 2000
            self.n_read = getattr(self, 'n_read', 0) + size
            return 'x' * size

    monkeypatch.setattr(sys, 'stdin', Endless())
    monkeypatch.setattr(interactive_conditional_samples, 'MAX_SKIPPED', 50000)
    with pytest.raises(ValueError, match='a line of the input does not end'):
        list(interactive_conditional_samples.read_prompts(text_encoder, 2000))
    assert sys.stdin.n_read < 53000


@pytest.mark.slow
def test_interactive_on_a_terminal(command, printed):
    """Until Ctrl-D. Printed token by token, samples are those in a file. A line can be edited, and have any length."""
    expected = printed(INTERACTIVE, prompts='ü\nab\n', seed=6, length=5, nsamples=3, batch_size=2)
    first, second = [answer + CLOSING for answer in expected.split(CLOSING)[:-1]]
    with Conversation(command(INTERACTIVE, '--model_name', 'tiny', '--seed', '6', '--length', '5', '--nsamples', '3',
                              '--batch_size', '2'), terminal=True, env=environment(TERM='vt100', **ASCII)) as terminal:
        def ask(line):
            terminal.say(line)
            return terminal.read_until(QUESTION).decode('utf-8').replace('\r\n', '\n')

        assert terminal.read_until(QUESTION) == QUESTION
        assert ask('ü\n'.encode('utf-8')) == 'ü\n' + first + QUESTION.decode('ascii')
        assert 'empty' in ask(b'\n')
        assert '5000 tokens' in ask(5000 * b'x' + b'\n')
        assert ask(b'b' + ARROW_LEFT + b'a\n').endswith('\n' + second + QUESTION.decode('ascii'))
        terminal.say(CTRL_D)
        status, rest = terminal.end()
    assert status == 0
    assert rest.strip() == b''


def test_ask_rejects_a_line_that_the_terminal_may_have_cut(monkeypatch, capsys):
    """Where samples go to a file, lines are read without readline: the terminal passes 4,095 bytes of each."""
    stdin = io.StringIO('é' * 2048 + '\n' + 'é' * 2047 + '\n')
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, 'stdin', stdin)
    assert interactive_conditional_samples.ask('') == 'é' * 2047
    assert '4095 bytes' in capsys.readouterr().err


@pytest.mark.slow
def test_interactive_leaves_the_terminal_as_it_was_on_ctrl_c(command):
    """At a prompt, where readline has it in a mode of its own."""
    with Conversation(command(INTERACTIVE, '--model_name', 'tiny'), terminal=True) as terminal:
        before = termios.tcgetattr(terminal.input)
        terminal.read_until(QUESTION)
        terminal.say(CTRL_C)
        assert terminal.end()[0] == 130
        assert termios.tcgetattr(terminal.input) == before
