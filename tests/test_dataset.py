"""generate_dataset.py: rows against the samplers', files whatever made them, and what becomes of them when things go wrong."""
import contextlib
import fcntl
import glob
import gzip
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

import encoder
import files
import generate_dataset
import sample
import xla
from conftest import ROOT
from dataset import on_ray, plan, store
from dataset.maker import zipped
from test_flags import Conversation, environment, finished

SCRIPT = os.path.join(ROOT, 'src', 'generate_dataset.py')
DEMO = [sys.executable, SCRIPT, '--model_name', 'demo', '--batch_size', '4', '--length', '20', '--cores', '1']


@pytest.fixture(autouse=True)
def same_cores_later(monkeypatch):
    """What a run does to the environment of its process ends with the test."""
    monkeypatch.setenv('OMP_NUM_THREADS', '2')


@pytest.fixture
def make(tiny_models, tmp_path):
    """A function that makes a dataset with the tiny model and returns its rows, in the order of its files."""
    def call(name='rows', **options):
        options = dict(dict(model_name='tiny', models_dir=tiny_models, batch_size=4, length=6), **options)
        generate_dataset.generate_dataset(str(tmp_path / name), **options)
        return rows_in(str(tmp_path / name))

    return call


def rows_in(folder):
    """The rows of a dataset on disk."""
    rows = []
    for path in sorted(glob.glob(os.path.join(folder, '0*'))):
        with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as file:
            rows += [json.loads(line.decode('utf-8')) for line in file]
    return rows


def bytes_in(folder):
    """{name: bytes} of the shards of a dataset, and nothing else but its manifest may be there."""
    names = set(os.listdir(str(folder)))
    assert not [name for name in names if not name.startswith('0') and name != 'manifest.json'], names
    return {name: open(os.path.join(str(folder), name), 'rb').read() for name in names if name.startswith('0')}


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode('utf-8'))
    return str(path)


# Prompts, and where rows stand

def read_prompts(path, longest=5):
    with open(path, 'rb') as file:
        return plan.rows_from_prompts(path, file.read(), lambda text: list(text.encode('utf-8', 'surrogatepass')), longest)


def test_each_line_of_a_text_is_a_prompt(tmp_path):
    rows, problems = read_prompts(write(tmp_path / 'p.txt', b'\xef\xbb\xbfab\r\n c \n\nlonger\n\xff\nend'))
    assert rows == [(0, 'ab', [97, 98]), (1, ' c ', [32, 99, 32]), (5, 'end', [101, 110, 100])]
    assert sorted(problems) == [3, 4, 5]
    assert 'empty' in problems[3] and '6 tokens, and 5 fit' in problems[4] and 'utf-8' in problems[5]


def test_each_line_of_jsonl_is_a_prompt_that_may_have_an_id(tmp_path):
    lines = ['{"prompt": "a"}', '{"prompt": "b", "id": "x"}', '{"prompt": "c", "id": 7}', '[1]', '{"id": 3}', 'no',
             '{"prompt": 5}', '{"prompt": "d", "id": "7"}', '{"prompt": "e", "id": true}', '{"prompt": "\\ud800"}',
             '{"prompt": "f", "id": 1.5}',
             '[' * 100000, '{"prompt": "g"}']
    rows, problems = read_prompts(write(tmp_path / 'p.jsonl', '\n'.join(lines)))
    assert [row[:2] for row in rows] == [(0, 'a'), ('x', 'b'), (7, 'c'), (12, 'g')]
    assert sorted(problems) == [4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert 'the id 7 is that of line 3, too' in problems[8] and 'the id is True' in problems[9]


@pytest.mark.parametrize('name', ['p.jsonl', 'P.JSONL'])
def test_blank_lines_of_jsonl_hold_nothing_and_count(tmp_path, name):
    """A file may end in one. Its name may be in capitals."""
    rows, problems = read_prompts(write(tmp_path / name, '{"prompt": "a"}\n \n{"prompt": "b"}\n\n\r\n'))
    assert [row[:2] for row in rows] == [(0, 'a'), (2, 'b')] and not problems


@pytest.mark.parametrize('n_rows, shards', [(1, 1), (10, 3), (1000, 7), (5, 5)])
def test_each_row_stands_in_one_shard_and_shards_are_equal(n_rows, shards):
    rows = plan.rows_from_nothing(n_rows, 0)
    in_shards = plan.in_shards(rows, {'shards': shards, 'gzip': False})
    assert sorted(in_shards) == ['%05d-of-%05d.jsonl' % (k, shards) for k in range(shards)]
    assert sum([in_shards[name] for name in sorted(in_shards)], []) == rows
    assert max(map(len, in_shards.values())) - min(map(len, in_shards.values())) <= 1


def test_a_shard_has_about_a_thousand_rows_unless_told():
    assert [plan.n_shards(n) for n in (1, 1000, 1001, 250000)] == [1, 1, 2, 250]
    assert plan.n_shards(10, 3) == 3
    for shards in (0, 11):
        with pytest.raises(ValueError, match='shards is %d; it must be 1 to 10' % shards):
            plan.n_shards(10, shards)


def test_prompts_of_like_length_are_sampled_together():
    rows = [plan.Row(i, '', [0] * n) for i, n in enumerate([5, 1, 3, 5, 1, 4, 2])]
    batches = list(plan.in_batches(rows, 3))
    assert [[len(row.tokens) for row in batch] for batch in batches] == [[1, 1, 2], [3, 4, 5], [5]]
    assert sorted(sum(batches, [])) == rows


def test_ids_have_draws_of_their_own():
    keys = [tuple([plan.draws_key(row_id)] if isinstance(plan.draws_key(row_id), int) else plan.draws_key(row_id))
            for row_id in (0, 1, '0', '1', 'a', -1, 2 ** 32 - 1, 2 ** 32, '4294967296')]
    assert len(set(keys)) == len(keys)
    assert all(0 <= number < 2 ** 32 for key in keys for number in key)
    # Python 3.6 does not know this emoji, and shows it otherwise: SHA-256 of "\\ud83e\\udd7a", in quotes
    assert plan.draws_key('\U0001f97a').tobytes() == hashlib.sha256(b'"\\ud83e\\udd7a"').digest()


# Rows

def test_rows_from_nothing_are_what_the_sampler_prints(make, tiny_models, tmp_path):
    rows = make(nsamples=10, seed=3, top_k=40)
    command = [sys.executable, os.path.join(ROOT, 'src', 'generate_unconditional_samples.py'), '--model_name', 'tiny', '--seed',
               '3', '--models_dir', tiny_models, '--nsamples', '10', '--length', '6', '--top_k', '40', '--stop_at_end']
    printed = finished(command)[1].decode('utf-8')
    expected = ''.join('=' * 40 + ' SAMPLE %d ' % (row['id'] + 1) + '=' * 40 + '\n' + row['text'] + '\n' for row in rows)
    assert printed == expected and len(rows) == 10
    assert [list(row) for row in rows] == [['id', 'ended', 'length', 'text']] * 10 or sys.version_info < (3, 6)


def test_a_row_is_what_its_prompt_and_its_id_make_of_it_alone(make, tmp_path):
    """Among prompts of other lengths, in another order, in other shards and batches."""
    prompts = ['one', 'fourteen', 'a', 'two of them', 'x' * 9, 'b', 'cc']
    first = write(tmp_path / 'a.jsonl', ''.join(json.dumps({'prompt': text, 'id': text}) + '\n' for text in prompts))
    second = write(tmp_path / 'b.jsonl', ''.join(json.dumps({'prompt': text, 'id': text}) + '\n' for text in prompts[::-1]))
    rows = make('a', prompts=first, length=5)
    assert [row['id'] for row in rows] == prompts == [row['prompt'] for row in rows]
    others = make('b', prompts=second, length=5, shards=3, batch_size=2)
    assert sorted(rows, key=str) == sorted(others, key=str)
    assert rows != make('c', prompts=first, length=5, seed=1)


@pytest.mark.parametrize('stop_at_end', [True, False])
def test_ended_and_length_tell_what_the_text_is(make, tiny_models, stop_at_end):
    rows = make(nsamples=200, length=8, stop_at_end=stop_at_end, temperature=3.0, batch_size=64)
    assert {row['ended'] for row in rows} == ({True, False} if stop_at_end else {False})
    text_encoder = encoder.get_encoder('tiny', tiny_models)
    for row in rows:
        assert row['length'] < 8 if row['ended'] else row['length'] == 8
        if '\ufffd' not in row['text'] and '<|endoftext|>' not in row['text']:
            assert len(text_encoder.encode(row['text'])) == row['length']


@pytest.mark.parametrize('change', [dict(length=5), dict(temperature=0.1), dict(top_k=1), dict(top_p=0.01), dict(seed=1),
                                    dict(stop_at_end=False)])
def test_each_setting_has_its_effect_and_stands_in_the_manifest(make, tmp_path, change):
    plain, changed = make('a', nsamples=30, temperature=3.0), make('b', **dict(dict(nsamples=30, temperature=3.0), **change))
    assert plain != changed
    manifest = json.loads((tmp_path / 'b' / 'manifest.json').read_text())
    assert [manifest[name] for name in change] == list(change.values())


def test_a_row_has_room_for_the_context_or_half_of_it_behind_a_prompt(make, tmp_path, tiny_models):
    n_ctx = json.loads(open(os.path.join(tiny_models, 'tiny', 'hparams.json')).read())['n_ctx']
    prompts = write(tmp_path / 'p.txt', 'a\n')
    assert [make('a', nsamples=1, length=None, stop_at_end=False)[0]['length'],
            make('b', prompts=prompts, length=None, stop_at_end=False)[0]['length']] == [n_ctx, n_ctx // 2]


def test_packed_files_hold_the_same_rows(make, tmp_path):
    rows = make('a', nsamples=9)
    assert make('b', nsamples=9, gzip=True) == rows
    assert sorted(bytes_in(tmp_path / 'b')) == ['00000-of-00001.jsonl.gz']
    before = zipped(b'text')
    time.sleep(1.1)  # gzip notes the second
    assert zipped(b'text') == before


def test_one_row_is_made_again(make, tmp_path, capsys):
    prompts = write(tmp_path / 'p.jsonl', '\n'.join('{"prompt": "%s", "id": "n%d"}' % ('x' * (1 + i % 3), i) for i in range(9)))
    make(prompts=prompts, shards=2, length=5)
    lines = b''.join(bytes_in(tmp_path / 'rows')[name] for name in sorted(bytes_in(tmp_path / 'rows'))).decode('utf-8')
    capsys.readouterr()
    make(prompts=prompts, shards=2, length=5, only='n7')
    assert capsys.readouterr().out == lines.split('\n')[7] + '\n'
    with pytest.raises(ValueError, match='no row has the id n9$'):
        make(prompts=prompts, shards=2, length=5, only='n9')


def test_one_row_does_not_tell_of_lines_that_are_others(make, tmp_path, capsys):
    prompts = write(tmp_path / 'p.txt', 'a\n\nb\n' + 'long' * 50 + '\n')
    make(prompts=prompts, only='2')
    captured = capsys.readouterr()
    assert json.loads(captured.out)['prompt'] == 'b' and captured.err == ''
    with pytest.raises(ValueError, match='no row has the id 3; lines without a row: 2, 4$'):
        make(prompts=prompts, only='3')


# Files, whatever made them

def test_what_is_missing_is_made_and_what_is_there_stays(make, tmp_path, capsys):
    make(nsamples=20, shards=4)
    before = bytes_in(tmp_path / 'rows')
    os.remove(str(tmp_path / 'rows' / '00002-of-00004.jsonl'))
    kept = str(tmp_path / 'rows' / '00001-of-00004.jsonl')
    seconds = os.stat(kept).st_mtime
    capsys.readouterr()
    make(nsamples=20, shards=4)
    assert '5 rows in 1 file,' in capsys.readouterr().out
    assert bytes_in(tmp_path / 'rows') == before and os.stat(kept).st_mtime == seconds
    make(nsamples=20, shards=4)
    assert 'nothing is missing' in capsys.readouterr().out


def test_one_shard_alone_is_that_of_the_whole(make, tmp_path):
    make('whole', nsamples=10, shards=3)
    for shard in (2, 0, 1):
        make('parts', nsamples=10, shards=3, shard=shard)
    assert bytes_in(tmp_path / 'parts') == bytes_in(tmp_path / 'whole') and len(bytes_in(tmp_path / 'whole')) == 3


def test_other_settings_are_refused_and_named(make, tmp_path):
    make(nsamples=10)
    before = bytes_in(tmp_path / 'rows')
    with pytest.raises(ValueError, match='other settings: seed was 0 and is 5, top_k was 0 and is 3; take those'):
        make(nsamples=10, seed=5, top_k=3)
    with pytest.raises(ValueError, match='rows was 10 and is 11'):
        make(nsamples=11)
    assert bytes_in(tmp_path / 'rows') == before


@pytest.mark.skipif(not xla.is_known(), reason='TensorFlow 1.x does not compile the loop')
def test_rows_are_the_same_where_it_pays_to_compile(make, tmp_path, monkeypatch):
    """Only for whole batches, here of four: the last of six rows are not worth another program."""
    prompts = write(tmp_path / 'prompts.txt', 'a\nbcd\nef\nghij\nklm\nn\n')
    asked, made, decoding_loop = [], [], xla.decoding_loop
    monkeypatch.setattr(xla, 'decoding_loop', lambda *given: made.append(given[2].shape.as_list()[0]) or decoding_loop(*given))
    plain = make('plain', prompts=prompts)
    monkeypatch.setattr(sample, 'pays_to_compile', lambda *numbers: asked.append(numbers) or True)
    assert not made and make('compiled', prompts=prompts) == plain
    assert made == [4] and asked == [(4, 4, 6)]


def test_another_machine_goes_on_with_the_cores_of_the_first(make, tmp_path, monkeypatch, capsys):
    """Some rows depend on them. A machine's own number is taken only where there are no rows yet."""
    rows = make(nsamples=9, shards=3)
    before = bytes_in(tmp_path / 'rows')
    os.remove(str(tmp_path / 'rows' / '00001-of-00003.jsonl'))
    assert 'with --cores' not in capsys.readouterr().err
    monkeypatch.setenv('OMP_NUM_THREADS', '3')  # as on a machine of three cores
    make(nsamples=9, shards=3, only='4')
    captured = capsys.readouterr()
    assert json.loads(captured.out) == rows[4]
    assert captured.err == 'with --cores 2, as the rows that are there were made; this machine has 3\n'
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    make(nsamples=9, shards=3)
    assert bytes_in(tmp_path / 'rows') == before and os.environ['OMP_NUM_THREADS'] == '2'
    with pytest.raises(ValueError, match='cores was 2 and is 3'):
        make(nsamples=9, shards=3, cores=3)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    make('own', nsamples=1)
    assert json.loads((tmp_path / 'own' / 'manifest.json').read_text())['cores'] == 3


def test_another_model_of_the_same_name_is_refused(make, tmp_path, tiny_models):
    shutil.copytree(tiny_models, str(tmp_path / 'models'))
    make(nsamples=3, models_dir=str(tmp_path / 'models'))
    os.rename(str(tmp_path / 'models' / 'tiny'), str(tmp_path / 'models' / 'other'))
    make(nsamples=3, models_dir=str(tmp_path / 'models'), model_name='other')  # the same model in another place
    os.rename(str(tmp_path / 'models' / 'other'), str(tmp_path / 'models' / 'tiny'))
    with open(str(tmp_path / 'models' / 'tiny' / 'model.ckpt.data-00000-of-00001'), 'r+b') as file:
        file.write(b'\0\0\0\1')
    with pytest.raises(ValueError, match='model was .* and is'):
        make(nsamples=3, models_dir=str(tmp_path / 'models'))


@pytest.mark.parametrize('options, said', [
    (dict(), 'either --nsamples'), (dict(nsamples=1, prompts=__file__), 'either --nsamples'),
    (dict(nsamples=0), 'nsamples is 0'),
    (dict(nsamples=10 ** 9), 'nsamples is 1000000000; it must be 1 to 10000000'),
    (dict(nsamples=3, length=0), 'length is 0'), (dict(nsamples=3, length=99), 'length is 99; it must be 1 to '),
    (dict(nsamples=3, batch_size=0), 'batch_size is 0'), (dict(nsamples=3, top_k=-1), 'top_k is -1'),
    (dict(nsamples=3, top_p=2.0), 'top_p is 2'), (dict(nsamples=3, temperature=-1.0), 'temperature is -1'),
    (dict(nsamples=3, seed=-1), 'seed is -1'), (dict(nsamples=3, precision='int7'), 'precision is int7'),
    (dict(nsamples=3, shards=4), 'shards is 4'), (dict(nsamples=3, shard=1), 'shard is 1; it must be 0 to 0'),
    (dict(nsamples=3, cores=0), 'cores is 0'), (dict(nsamples=3, workers=2), 'comes with --ray'),
    (dict(nsamples=3, workers=0, ray='local'), 'workers is 0'), (dict(nsamples=3, ray=''), '--ray is empty'),
    (dict(nsamples=3, model_name='none'), 'no model none'), (dict(nsamples=3, only='3'), 'no row has the id 3')])
def test_what_cannot_be_is_answered_and_leaves_nothing(make, tmp_path, options, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        make(**options)
    assert not (tmp_path / 'rows').exists()


def test_lines_that_cannot_be_prompts_are_named_and_the_others_go_on(tmp_path):
    prompts = write(tmp_path / 'p.txt', 'one\n\ntwo\n' + 'long ' * 500 + '\nthree\n')
    status, stdout, stderr = finished(DEMO + ['--out', str(tmp_path / 'rows'), '--prompts', prompts])
    assert status == 1 and b'3 rows' in stdout
    stderr = stderr.decode('utf-8')
    assert 'p.txt, line 2: the prompt is empty' in stderr and 'p.txt, line 4: the prompt has ' in stderr
    assert stderr.strip().split('\n')[-1].endswith('lines without a row: 2, 4')
    assert [(row['id'], row['prompt']) for row in rows_in(str(tmp_path / 'rows'))] == [(0, 'one'), (2, 'two'), (4, 'three')]


# How far it is

def test_a_terminal_shows_a_bar(tmp_path):
    with Conversation(run(tmp_path / 'rows'), terminal=True) as talk:
        fcntl.ioctl(talk.input, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))  # else its lines have no width
        talk.read_until(b'/%d [' % ROWS)
        talk.read_until(b' tokens/s]')
        status, rest = talk.end()
    assert status == 0 and b'100%' in rest and b'%d rows in %d files, ' % (ROWS, SHARDS) in rest, rest


def test_without_a_terminal_there_is_a_line_now_and_then(make, monkeypatch, capsys):
    make('a', nsamples=9, shards=3)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(generate_dataset, 'SILENT_SECONDS', -1)
    make('b', nsamples=9, shards=3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(' ')[0] for line in lines] == ['3', '3', '6', '6', '9', '9']  # a batch, and a shard, three times
    assert all(re.match(r'\d of 9 rows: \d+ tokens/s, \d\d:\d\d left$', line) for line in lines), lines


# When things go wrong

ROWS = 48  # of these runs, in SHARDS shards
SHARDS = 6


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The files of a run that nothing went wrong in."""
    folder = tmp_path_factory.mktemp('undisturbed') / 'rows'
    status, _, stderr = finished(run(folder))
    assert status == 0, stderr
    return bytes_in(folder)


def run(out, *flags):
    return DEMO + ['--out', str(out), '--nsamples', str(ROWS), '--shards', str(SHARDS)] + list(flags)


def wait_for_shards(folder, n, process, seconds=120):
    """Wait until a run has n shards."""
    limit = time.time() + seconds
    while len(glob.glob(os.path.join(str(folder), '0*.jsonl'))) < n:
        assert time.time() < limit and process.poll() is None, 'the run ended too early, or has no %d shards' % n
        time.sleep(0.005)


def was_stopped(stderr, folder):
    """Whether a run said in one line how many of its files it found there, which it did."""
    n_files = len(glob.glob(os.path.join(str(folder), '0*.jsonl')))
    said = ('generate_dataset.py: stopped; %s has %d of %d files, %d of %d rows; the same command goes on\n' % (
        folder, n, SHARDS, n * ROWS // SHARDS, ROWS) for n in (n_files, n_files - 1))  # one may have come just now
    return stderr.decode('utf-8') in said


@pytest.mark.parametrize('number, status', [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_run_that_is_stopped_goes_on(undisturbed, tmp_path, number, status):
    process = subprocess.Popen(run(tmp_path / 'rows'), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_shards(tmp_path / 'rows', 2, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status and not stdout
    assert stderr == b'' if number == signal.SIGKILL else was_stopped(stderr, tmp_path / 'rows'), stderr
    shards = {path: open(path, 'rb').read() for path in glob.glob(str(tmp_path / 'rows' / '0*.jsonl'))}
    assert len(shards) < SHARDS and all(data == undisturbed[os.path.basename(path)] for path, data in shards.items())
    assert finished(run(tmp_path / 'rows'))[0] == finished(run(tmp_path / 'rows'))[0] == 0  # the second has nothing to do
    for name in set(os.listdir(str(tmp_path / 'rows'))) - set(undisturbed) - {'manifest.json'}:
        assert name.endswith('.lock') and name[1:-5] in undisturbed, name  # a killed process leaves it; it holds nothing
        os.remove(str(tmp_path / 'rows' / name))
    assert bytes_in(tmp_path / 'rows') == undisturbed


def test_a_run_that_is_stopped_at_its_start_has_not_succeeded(tmp_path):
    os.mkfifo(str(tmp_path / 'pipe'))
    process = subprocess.Popen(DEMO + ['--out', str(tmp_path / 'rows'), '--prompts', str(tmp_path / 'pipe')],
                               env=environment(), stderr=subprocess.PIPE)
    with open(str(tmp_path / 'pipe'), 'wb'):  # waits for the run to read it
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[1] == \
            b'generate_dataset.py: stopped; it had only begun; the same command goes on\n'
    assert process.returncode == 130


@pytest.mark.parametrize('only', [[], ['--only', '7']])
def test_a_long_batch_is_not_waited_for(tmp_path, only):
    """This one takes most of a minute."""
    command = DEMO + ['--out', str(tmp_path / 'rows'), '--nsamples', '400', '--batch_size', '400', '--length', '250']
    process = subprocess.Popen(command + only, env=environment(), stderr=subprocess.PIPE)
    limit = time.time() + 60
    while len(os.listdir('/proc/%d/task' % process.pid)) < 6:  # TensorFlow's threads: the session is there
        assert time.time() < limit and process.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    began = time.time()
    assert b'stopped; ' in process.communicate(timeout=60)[1] and process.returncode == 130
    assert time.time() - began < 15


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(undisturbed, tmp_path):
    smallest = min(map(len, undisturbed.values()))

    def limit():  # a file that grows beyond it fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (smallest - 1, resource.RLIM_INFINITY))

    process = subprocess.Popen(run(tmp_path / 'rows'), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=limit)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and stderr.count(b'\n') == 1 and b'File too large: ' in stderr, stderr
    assert not bytes_in(tmp_path / 'rows')
    assert finished(run(tmp_path / 'rows'))[0] == 0
    assert bytes_in(tmp_path / 'rows') == undisturbed


def test_a_disk_that_is_full_is_told_with_its_folder(undisturbed, tmp_path):
    """The kernel's own error: what is written beside the shard goes to a device that is always full."""
    assert finished(run(tmp_path / 'rows', '--shard', '0'))[0] == 0
    os.symlink('/dev/full', str(tmp_path / 'rows' / '00001-of-00006.jsonl.part'))
    status, _, stderr = finished(run(tmp_path / 'rows'))
    assert (status, stderr.decode('utf-8')) == (
        1, 'generate_dataset.py: [Errno 28] No space left on device: %r\n' % str(tmp_path / 'rows'))
    assert sorted(bytes_in(tmp_path / 'rows')) == ['00000-of-00006.jsonl']
    assert finished(run(tmp_path / 'rows'))[0] == 0
    assert bytes_in(tmp_path / 'rows') == undisturbed


def test_of_two_runs_into_one_folder_the_second_says_so(make, tmp_path):
    (tmp_path / 'rows').mkdir()
    with files.folder_lock(str(tmp_path / 'rows'), None, '.00001-of-00002.jsonl.lock'):
        with pytest.raises(ValueError, match='00001-of-00002.jsonl in .* is being made by process %d on' % os.getpid()):
            make(nsamples=6, shards=2)
    assert sorted(bytes_in(tmp_path / 'rows')) == ['00000-of-00002.jsonl']
    assert len(make(nsamples=6, shards=2)) == 6


def test_jobs_share_a_folder(undisturbed, tmp_path):
    """They begin at the same time, and none waits for another."""
    jobs = [subprocess.Popen(run(tmp_path / 'rows', '--shard', str(shard)), env=environment(), stderr=subprocess.PIPE)
            for shard in range(SHARDS)]
    for job in jobs:
        assert job.communicate(timeout=240)[1] == b'' and job.returncode == 0
    assert bytes_in(tmp_path / 'rows') == undisturbed


def test_prompts_may_come_through_a_pipe(make, tmp_path):
    """Which can be read only once."""
    os.mkfifo(str(tmp_path / 'pipe'))
    writer = subprocess.Popen(['sh', '-c', 'printf "a\\nb\\n" >"$0"', str(tmp_path / 'pipe')])
    assert [row['prompt'] for row in make(prompts=str(tmp_path / 'pipe'))] == ['a', 'b']
    writer.wait()


@pytest.mark.parametrize('text', ['', '\n\n'])
def test_a_file_without_prompts_is_told(make, tmp_path, text):
    why = '; line 1: the prompt is empty' if text else '$'
    with pytest.raises(ValueError, match='p.txt has no line that can be a prompt' + why):
        make(prompts=write(tmp_path / 'p.txt', text))
    assert not (tmp_path / 'rows').exists()


def test_an_empty_out_is_not_the_working_directory(tiny_models):
    with pytest.raises(ValueError, match='--out is empty'):
        generate_dataset.generate_dataset('', nsamples=3, model_name='tiny', models_dir=tiny_models)


def test_a_file_in_the_place_of_the_folder_is_told(make, tmp_path):
    write(tmp_path / 'rows', 'mine')
    with pytest.raises(ValueError, match='rows is a file; choose another --out'):
        make(nsamples=3)


def test_rows_of_two_runs_with_other_settings_do_not_mix(make, tmp_path, monkeypatch):
    """They begin at the same time, so that neither finds the manifest of the other at its start."""
    make(nsamples=6, shards=2, shard=0)
    before = bytes_in(tmp_path / 'rows')
    monkeypatch.setattr(plan, 'check_same', lambda *_, check_same=plan.check_same, calls=[]: (
        check_same(*_) if calls else calls.append('the first one, at the start')))
    with pytest.raises(ValueError, match='other settings: seed was 0 and is 1'):
        make(nsamples=6, shards=2, shard=1, seed=1)
    assert bytes_in(tmp_path / 'rows') == before


def test_rows_without_a_manifest_are_not_added_to(make, tmp_path):
    make(nsamples=6, shards=2, shard=0)
    os.remove(str(tmp_path / 'rows' / 'manifest.json'))
    with pytest.raises(ValueError, match='has files of rows and no manifest.json'):
        make(nsamples=6, shards=2)


def test_a_damaged_manifest_is_told(make, tmp_path):
    make(nsamples=3)
    write(tmp_path / 'rows' / 'manifest.json', '{')
    with pytest.raises(ValueError, match='manifest.json is damaged .*; choose another --out'):
        make(nsamples=3)


# Addresses

def needs(package):
    return pytest.mark.skipif(not installed(package), reason='needs %s: pip install -r tests/requirements.txt' % package)


def installed(package):
    try:
        __import__(package)
    except ImportError:
        return False
    return True


@needs('fsspec')
def test_addresses_are_written_to_like_folders(make, tmp_path, tiny_models):
    make('here', nsamples=9, shards=3)
    options = dict(model_name='tiny', models_dir=tiny_models, batch_size=4, length=6, shards=3)
    generate_dataset.generate_dataset('file://%s' % (tmp_path / 'there'), nsamples=9, **options)
    assert bytes_in(tmp_path / 'there') == bytes_in(tmp_path / 'here')
    import fsspec
    memory = fsspec.filesystem('memory')
    generate_dataset.generate_dataset('memory://data/rows', nsamples=9, **options)
    assert {path.rsplit('/', 1)[1]: memory.cat(path) for path in memory.find('/data/rows') if 'manifest' not in path} == \
        bytes_in(tmp_path / 'here')
    memory.rm('/data/rows/00001-of-00003.jsonl')
    memory.pipe('/data/rows/00000-of-00003.jsonl', b'kept')
    generate_dataset.generate_dataset('memory://data/rows', nsamples=9, **options)
    assert memory.cat('/data/rows/00000-of-00003.jsonl') == b'kept'
    assert memory.cat('/data/rows/00001-of-00003.jsonl') == bytes_in(tmp_path / 'here')['00001-of-00003.jsonl']
    with pytest.raises(ValueError, match='rows was 9 and is 8'):
        generate_dataset.generate_dataset('memory://data/rows', nsamples=8, **options)


@needs('fsspec')
@pytest.mark.parametrize('address', ['nothing://at/all', 'zip://x'])
def test_an_address_that_nothing_writes_is_told(address):
    with pytest.raises(ValueError, match='--out %s cannot be written to' % address):
        store.open_store(address)


@needs('moto')
def test_an_object_store_holds_the_same_files(undisturbed, tmp_path):
    """S3, as moto's server speaks it; and one line where it does not answer."""
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        address = 'http://%s:%d' % server.get_host_and_port()
        env = environment(AWS_ACCESS_KEY_ID='id', AWS_SECRET_ACCESS_KEY='key', AWS_ENDPOINT_URL=address,
                          AWS_DEFAULT_REGION='us-east-1')
        import boto3
        s3 = boto3.client('s3', endpoint_url=address, aws_access_key_id='id', aws_secret_access_key='key',
                          region_name='us-east-1')
        s3.create_bucket(Bucket='rows')
        status, _, stderr = finished(run('s3://rows/demo'), env=env)
        assert status == 0, stderr
        found = {item['Key']: s3.get_object(Bucket='rows', Key=item['Key'])['Body'].read()
                 for item in s3.list_objects_v2(Bucket='rows')['Contents']}
        found.pop('demo/manifest.json')
        assert found == {'demo/' + name: data for name, data in undisturbed.items()}
        status, stdout, _ = finished(run('s3://rows/demo'), env=env)
        assert status == 0 and b'nothing is missing' in stdout
    finally:
        server.stop()
    status, _, stderr = finished(run('s3://rows/demo'), env=dict(env, AWS_MAX_ATTEMPTS='1'))
    assert status == 1 and b's3://rows/demo cannot be reached' in stderr and b'Traceback' not in stderr


# On Ray

@pytest.mark.parametrize('machines, cores, expected', [
    ([{'CPU': 3.0}, {'CPU': 3.0}], 2, (2, 0)),  # not six cores by two: a model is on one machine
    ([{'CPU': 2.0}], 3, (0, 0)), ([{'memory': 1.0}], 1, (0, 0)),
    ([{'CPU': 16.0, 'GPU': 8.0}], 16, (1, 1)), ([{'CPU': 16.0, 'GPU': 8.0}], 2, (8, 1)),
    ([{'CPU': 16.0, 'GPU': 8.0}], 1, (8, 1)),
    ([{'CPU': 64.0}, {'CPU': 4.0, 'GPU': 1.0}], 2, (1, 1)), ([{'CPU': 64.0}, {'CPU': 4.0, 'GPU': 1.0}], 8, (0, 1))])
def test_a_model_has_its_cores_and_its_gpu_on_one_machine(machines, cores, expected):
    assert on_ray.room(machines, cores) == expected


def test_most_cores_are_those_beside_a_gpu():
    machines = [{'CPU': 64.0}, {'CPU': 4.0, 'GPU': 1.0}, {'memory': 1.0}]
    assert [on_ray.largest(machines, 0), on_ray.largest(machines, 1)] == [64, 4]


@pytest.fixture
def cluster():
    """A Ray cluster of two nodes on this machine, each with one core: (the Cluster, the node that may be lost).

    That one has an address of its own: Ray 2.4 connects what we start to any node with this machine's, and it would be lost too.
    """
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 1, 'include_dashboard': False})
    try:
        yield cluster, cluster.add_node(num_cpus=1, include_dashboard=False, node_ip_address='127.0.0.2')
    finally:
        cluster.shutdown()


def below(number):
    """A process and all that it and those have started: {number}."""
    parents = {}
    for path in glob.glob('/proc/[0-9]*/stat'):
        with contextlib.suppress(OSError):  # it has ended
            with open(path, 'rb') as file:
                parents[int(path.split('/')[2])] = int(file.read().rpartition(b')')[2].split()[1])
    found = {number}
    while True:
        more = {child for child, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def actors(parent, title=b'ray::Actor'):
    """The processes of the actors on a Ray that a process has started: [number]. title: what Ray calls them, at its begin."""
    found = []
    for path in ['/proc/%d/cmdline' % number for number in below(parent)]:
        try:
            with open(path, 'rb') as file:
                if file.read().startswith(title):
                    found.append(int(path.split('/')[2]))
        except OSError:  # it has ended
            pass
    return found


@needs('ray')
def test_ray_on_this_machine_makes_the_same_files(undisturbed, tmp_path):
    status, stdout, stderr = finished(run(tmp_path / 'rows', '--ray', 'local', '--workers', '2'))
    assert status == 0 and b'%d rows in %d files' % (ROWS, SHARDS) in stdout, stderr
    assert bytes_in(tmp_path / 'rows') == undisturbed
    (tmp_path / 'other').mkdir()
    with files.folder_lock(str(tmp_path / 'other'), None, '.00003-of-00006.jsonl.lock'):
        status, _, stderr = finished(run(tmp_path / 'other', '--ray', 'local'))
    said = stderr.decode('utf-8').strip().split('\n')[-1]  # Ray may have words of its own before
    assert status == 1 and said.endswith('start this again when that has ended') and 'Traceback' not in stderr.decode(), stderr


@needs('ray')
@pytest.mark.parametrize('flags', [[], ['--workers', '1']])
def test_what_this_machine_has_no_room_for_is_told(tmp_path, flags):
    """Though there is --workers: what Ray starts here cannot grow."""
    status, _, stderr = finished(run(tmp_path / 'none', '--ray', 'local', '--cores', '99', *flags))
    assert status == 1 and b'cores is 99; the largest machine of the cluster has ' in stderr


@needs('ray')
def test_a_cluster_that_grows_is_waited_for(tmp_path, cluster):
    whole, _ = cluster
    command = run(tmp_path / 'rows', '--ray', whole.address, '--workers', '1', '--cores', '3')
    with Conversation(command) as talk:
        limit = time.time() + 60
        while b'waiting for room' not in talk.stderr():
            assert time.time() < limit and talk.process.poll() is None, talk.stderr()
            time.sleep(0.2)
        whole.add_node(num_cpus=3, include_dashboard=False)
        status, stdout = talk.end()
        assert status == 0 and b'%d rows' % ROWS in stdout, talk.stderr()
        assert talk.stderr().count(b'\n') == 1
    assert [row['id'] for row in rows_in(str(tmp_path / 'rows'))] == list(range(ROWS))


@needs('ray')
def test_a_shard_that_kills_its_process_each_time_is_given_up(tmp_path):
    process = subprocess.Popen(run(tmp_path / 'rows', '--ray', 'local', '--workers', '1', '--shards', '1'), env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    killed, limit = set(), time.time() + 200
    while process.poll() is None and time.time() < limit:
        for number in set(actors(process.pid, b'ray::Actor.make')) - killed:
            killed.add(number)
            os.kill(number, signal.SIGKILL)
        time.sleep(0.02)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and len(killed) == 4, (killed, stderr)
    assert b'00000-of-00001.jsonl: what makes it was killed 4 times' in stderr and b'Traceback' not in stderr, stderr


@needs('ray')
@pytest.mark.parametrize('lost', ['worker', 'node'])
def test_what_a_lost_part_of_a_cluster_was_at_is_made_elsewhere(undisturbed, tmp_path, cluster, lost):
    whole, node = cluster
    process = subprocess.Popen(run(tmp_path / 'rows', '--ray', whole.address), env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    wait_for_shards(tmp_path / 'rows', 2, process)
    if lost == 'worker':
        os.kill(max(actors(os.getpid())), signal.SIGKILL)
    else:
        whole.remove_node(node, allow_graceful=False)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0 and b'%d rows' % ROWS in stdout, stderr
    found = {name: data for name, data in ((name, (tmp_path / 'rows' / name).read_bytes())
                                           for name in os.listdir(str(tmp_path / 'rows')) if name.endswith('.jsonl'))}
    assert found == undisturbed


@needs('ray')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_what_runs_on_ray(undisturbed, tmp_path, number):
    """At once; its actors end by themselves, and the same command goes on."""
    process = subprocess.Popen(run(tmp_path / 'rows', '--ray', 'local', '--workers', '1'), env=environment(),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_shards(tmp_path / 'rows', 1, process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=20)
    assert not stdout and was_stopped(stderr, tmp_path / 'rows') and process.returncode == 130, stderr
    assert finished(run(tmp_path / 'rows'))[0] == 0
    assert rows_in(str(tmp_path / 'rows')) == [json.loads(line) for name in sorted(undisturbed)
                                               for line in undisturbed[name].decode('utf-8').splitlines()]


@needs('ray')
def test_a_cluster_that_does_not_answer_is_told(tmp_path):
    status, _, stderr = finished(run(tmp_path / 'rows', '--ray', '127.0.0.1:1'))
    assert status == 1 and b'no Ray cluster at 127.0.0.1:1' in stderr and b'Traceback' not in stderr
    assert not (tmp_path / 'rows').exists()
