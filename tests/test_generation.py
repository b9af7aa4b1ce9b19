"""generate_dataset.py and gpt2/generation: rows equal those of the samplers, however and wherever they are made."""
import contextlib
import functools
import glob
import gzip
import hashlib
import inspect
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest

import encoder
import generate_dataset
import generate_unconditional_samples
import sample
from gpt2.fast import lite, xla
from gpt2.generation import maker, on_ray, plan, store
from gpt2.sampler import Sampler
from gpt2.system import files, progress
from gpt2.system.process import print_error
from helpers.processes import Conversation


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """A run changes the environment of its process; the test restores it."""
    monkeypatch.setenv('OMP_NUM_THREADS', '2')


class Kept(Sampler):
    """A Sampler that the next test can use: building its graph takes a second."""

    def __exit__(self, *error):
        pass


@pytest.fixture(scope='module')
def kept():
    """A function that returns a Kept with these arguments, for so many cores."""
    return functools.lru_cache(maxsize=None)(lambda cores, *arguments: Kept(*arguments))


@pytest.fixture
def make(flat_models, tmp_path, monkeypatch, kept):
    """A function that makes a dataset with the tiny model and returns its rows in the order of its files."""
    monkeypatch.setattr(maker, 'Sampler', lambda *arguments: kept(os.environ['OMP_NUM_THREADS'], *arguments))

    def call(name='rows', **options):
        options = dict(dict(model_name='tiny', models_dir=flat_models, batch_size=4, length=6), **options)
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
    """{name: bytes} of the shards of a dataset. Its folder may contain nothing else but the manifest."""
    names = set(os.listdir(str(folder)))
    assert not [name for name in names if not name.startswith('0') and name != 'manifest.json'], names
    return {name: open(os.path.join(str(folder), name), 'rb').read() for name in names if name.startswith('0')}


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode('utf-8'))
    return str(path)


# Prompts, shards and batches

def read_prompts(path, max_tokens=5):
    return plan.rows_from_prompts(path, lambda text: list(text.encode('utf-8', 'surrogatepass')), max_tokens)[:2]


def test_rows_from_prompts_reads_a_prompt_per_line(tmp_path):
    text = b'\xef\xbb\xbfab\r\n c \n\nlonger\n\xff\nfits!\n\xef\xbb\xbfd'
    rows, problems = read_prompts(write(tmp_path / 'p.txt', text))
    assert rows == [(0, 'ab', [97, 98]), (1, ' c ', [32, 99, 32]), (5, 'fits!', [102, 105, 116, 115, 33]),
                    (6, '\ufeffd', [239, 187, 191, 100])]  # only the first line may have a byte order mark
    assert sorted(problems) == [3, 4, 5]
    assert 'empty' in problems[3] and '6 tokens; 5 fit' in problems[4] and 'utf-8' in problems[5]


def test_rows_from_prompts_makes_no_row_of_nul_bytes(tmp_path):
    """Of the end of a file that is text at its beginning."""
    rows, problems = read_prompts(write(tmp_path / 'p.txt', 'ab\n' * 100000 + '\0\0\nc'))
    assert len(rows) == 100001 and list(problems) == [100001] and 'NUL' in problems[100001]


def test_rows_from_prompts_reads_jsonl_with_optional_ids(tmp_path):
    lines = ['{"prompt": "a"}', '{"prompt": "b", "id": "x"}', '{"prompt": "c", "id": 7}', '[1]', '{"id": 3}', 'no',
             '{"prompt": 5}', '{"prompt": "d", "id": "7"}', '{"prompt": "e", "id": true}', '{"prompt": "\\ud800"}',
             '{"prompt": "f", "id": 1.5}',
             '[' * 100000, '{"prompt": "g"}', '"h"']
    rows, problems = read_prompts(write(tmp_path / 'p.jsonl', '\n'.join(lines)))
    assert [row[:2] for row in rows] == [(0, 'a'), ('x', 'b'), (7, 'c'), (12, 'g')]
    assert sorted(problems) == [4, 5, 6, 7, 8, 9, 10, 11, 12, 14]
    assert all('"prompt": "..."' in problems[line] for line in (4, 5, 7, 14))
    assert 'line 3 has the same id, 7' in problems[8] and 'the id is True' in problems[9]


@pytest.mark.parametrize('name', ['p.jsonl', 'P.JSONL'])
def test_rows_from_prompts_counts_blank_lines_of_jsonl(tmp_path, name):
    """A file may end in one. Its name may be in capitals."""
    rows, problems = read_prompts(write(tmp_path / name, '{"prompt": "a"}\n \n{"prompt": "b"}\n\n\r\n'))
    assert [row[:2] for row in rows] == [(0, 'a'), (2, 'b')] and not problems


@pytest.mark.parametrize('n_rows, shards', [(1, 1), (10, 3), (1000, 7), (5, 5)])
def test_in_shards_divides_rows_equally(n_rows, shards):
    """Each row is in one shard."""
    rows = plan.rows_from_nothing(n_rows, 0)
    in_shards = plan.in_shards(rows, {'shards': shards, 'gzip': False})
    assert sorted(in_shards) == ['%05d-of-%05d.jsonl' % (k, shards) for k in range(shards)]
    assert sum([in_shards[name] for name in sorted(in_shards)], []) == rows
    assert max(map(len, in_shards.values())) - min(map(len, in_shards.values())) <= 1


def test_n_shards_is_one_per_1000_rows_by_default():
    assert [plan.n_shards(n) for n in (1, 1000, 1001, 250000)] == [1, 1, 2, 250]
    assert plan.n_shards(10, 3) == 3
    for shards in (0, 11):
        with pytest.raises(ValueError, match='shards is %d; it must be 1 to 10' % shards):
            plan.n_shards(10, shards)


def test_in_batches_groups_prompts_of_similar_length():
    rows = [plan.Row(i, '', [0] * n) for i, n in enumerate([5, 1, 3, 5, 1, 4, 2])]
    batches = list(plan.in_batches(rows, 3))
    assert [[len(row.tokens) for row in batch] for batch in batches] == [[1, 1, 2], [3, 4, 5], [5]]
    assert sorted(sum(batches, [])) == rows


def test_draws_key_differs_for_each_id():
    keys = [tuple([plan.draws_key(row_id)] if isinstance(plan.draws_key(row_id), int) else plan.draws_key(row_id))
            for row_id in (0, 1, '0', '1', 'a', -1, 2 ** 32 - 1, 2 ** 32, '4294967296')]
    assert len(set(keys)) == len(keys)
    assert all(0 <= number < 2 ** 32 for key in keys for number in key)
    # SHA-256 of "\\ud83e\\udd7a" with its quotes. The repr of this emoji would differ: Python 3.6 does not know it.
    assert plan.draws_key('\U0001f97a').tobytes() == hashlib.sha256(b'"\\ud83e\\udd7a"').digest()


# Rows

@pytest.mark.slow
def test_rows_equal_the_output_of_the_unconditional_script(make, flat_models, capsys):
    rows = make(nsamples=10, seed=3, top_k=40)
    capsys.readouterr()
    generate_unconditional_samples.sample_model(
        model_name='tiny', models_dir=flat_models, seed=3, nsamples=10, length=6, top_k=40, stop_at_end=True)
    expected = ''.join('=' * 40 + ' SAMPLE %d ' % (row['id'] + 1) + '=' * 40 + '\n' + row['text'] + '\n'
                       for row in rows)
    assert capsys.readouterr().out == expected and len(rows) == 10
    assert [list(row) for row in rows] == [['id', 'ended', 'length', 'text']] * 10 or sys.version_info < (3, 6)


@pytest.mark.slow
def test_rows_depend_only_on_prompt_and_id(make, tmp_path):
    """Not on prompts of other lengths, their order, shards or batches."""
    prompts = ['one', 'fourteen', 'a', 'two of them', 'x' * 9, 'b', 'cc']
    lines = [json.dumps({'prompt': text, 'id': text}) for text in prompts]
    first, second = write(tmp_path / 'a.jsonl', '\n'.join(lines)), write(tmp_path / 'b.jsonl', '\n'.join(lines[::-1]))
    rows = make('a', prompts=first, length=5)
    assert [row['id'] for row in rows] == prompts == [row['prompt'] for row in rows]
    others = make('b', prompts=second, length=5, shards=3, batch_size=2)
    assert sorted(rows, key=str) == sorted(others, key=str)
    assert rows != make('c', prompts=first, length=5, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize('stop_at_end', [True, False])
def test_rows_have_correct_ended_and_length(make, flat_models, stop_at_end):
    rows = make(nsamples=200, length=8, stop_at_end=stop_at_end, temperature=3.0, batch_size=64)
    assert {row['ended'] for row in rows} == ({True, False} if stop_at_end else {False})
    text_encoder = encoder.get_encoder('tiny', flat_models)
    for row in rows:
        assert row['length'] < 8 if row['ended'] else row['length'] == 8
        if '\ufffd' not in row['text'] and '<|endoftext|>' not in row['text']:
            assert len(text_encoder.encode(row['text'])) == row['length']


@pytest.mark.slow
def test_settings_take_effect_and_are_in_the_manifest(make, tmp_path):
    options = dict(nsamples=30, temperature=3.0, batch_size=30)
    rows = make('unchanged', **options)
    for name, value in (('length', 5), ('temperature', 0.1), ('top_k', 1), ('top_p', 0.01), ('seed', 1),
                        ('stop_at_end', False)):
        assert make(name, **dict(options, **{name: value})) != rows, name
        assert json.loads((tmp_path / name / 'manifest.json').read_text())[name] == value


class FakeSampler:
    """Notes what it is asked for, and samples a token for each draw, without a model."""

    def __init__(self, asked, *arguments):
        self.asked, self.encoder = asked, encoder.get_encoder(*arguments[:2])
        asked['loaded'] = arguments

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def build(self, n, **options):
        self.asked['built'] = dict(options, cores=os.environ['OMP_NUM_THREADS'])

        def continue_batch(prompts, draws):
            self.asked.setdefault('batches', []).append((prompts, draws.tolist()))
            return [[7] * draws.shape[1] for _ in prompts]

        return continue_batch


FLAGS = [  # a flag, a value other than the default, where it shows, and what it is there
    ('nsamples', 5, 'manifest', lambda found: found['rows'] == 5),
    ('prompts', 'p.txt', 'batches', lambda found: [len(batch[0]) for batch, _ in found] == [2, 1]),
    ('seed', 1, 'batches', None), ('batch_size', 3, 'batches', lambda found: len(found[0][0]) == 3),
    ('length', 5, 'built', lambda found: found['length'] == 5),
    ('temperature', 0.5, 'built', lambda found: found['temperature'] == 0.5),
    ('top_k', 3, 'built', lambda found: found['top_k'] == 3),
    ('top_p', 0.5, 'built', lambda found: found['top_p'] == 0.5),
    ('stop_at_end', False, 'built', lambda found: found['end_token'] is None),
    ('precision', 'int8', 'loaded', lambda found: found[2] == 'int8'),
    ('model_name', 'other', 'loaded', lambda found: found[0] == 'other'),
    ('models_dir', None, 'loaded', lambda found: os.path.isabs(found[1])),  # though it was relative: for other machines
    ('gzip', True, 'written', lambda found: '00000-of-00002.jsonl.gz' in found),
    ('shards', 4, 'written', lambda found: '00003-of-00004.jsonl' in found),
    ('shard', 1, 'written', lambda found: found == ['00001-of-00002.jsonl', 'manifest.json']),
    ('only', '2', 'printed', lambda found: json.loads(found)['id'] == 2),
    ('cores', 1, 'built', lambda found: found['cores'] == '1'),
    ('ray', 'auto', 'ray', lambda found: found[0] == 'auto'), ('workers', 3, 'ray', lambda found: found[-1] == 3)]


def test_each_flag_takes_effect(tmp_path, flat_models, monkeypatch, capsys):
    """None is ignored on its way to the sampler, to the files or to Ray, and the manifest has each of the settings."""
    for name in 'tiny', 'other':
        shutil.copytree(os.path.join(flat_models, 'tiny'), str(tmp_path / 'copies' / name))
    prompts, asked = write(tmp_path / 'p.txt', 'ab\nc\n'), {}
    monkeypatch.setattr(maker, 'Sampler', lambda *arguments: FakeSampler(asked, *arguments))
    monkeypatch.setattr(on_ray, 'connect', lambda address: asked.update(ray=[address]))
    monkeypatch.setattr(on_ray, 'make_shards', lambda *_, n_workers=None, **__: asked['ray'].append(n_workers) or [])

    def outcome(out, **changes):
        asked.clear()
        options = dict(nsamples=8, shards=2, batch_size=4, length=6, model_name='tiny', cores=2,
                       models_dir=str(tmp_path / 'copies'))
        options.update(changes)
        generate_dataset.generate_dataset(str(out), **options)
        names = sorted(os.listdir(str(out))) if out.exists() else []
        manifest = files.read_json(str(out / 'manifest.json')) if 'manifest.json' in names else {}
        return dict(asked, written=names, manifest=manifest, printed=capsys.readouterr().out)

    before = outcome(tmp_path / 'rows')
    assert {row[0] for row in FLAGS} == set(inspect.signature(generate_dataset.generate_dataset).parameters) - {'out'}
    for flag, value, where, holds in FLAGS:
        changes = {flag: {'prompts': prompts, 'models_dir': os.path.relpath(flat_models)}.get(flag, value)}
        changes.update({'prompts': {'nsamples': None}, 'workers': {'ray': 'auto'}}.get(flag, {}))
        after = outcome(tmp_path / flag, **changes)
        assert after[where] != before.get(where) and (holds is None or holds(after[where])), (flag, after[where])
        assert flag not in before['manifest'] or flag == 'prompts' or after['manifest'][flag] == value, flag


@pytest.mark.slow
def test_length_is_the_context_or_half_of_it_after_a_prompt(make, tmp_path, flat_models):
    """By default."""
    n_ctx = files.read_json(os.path.join(flat_models, 'tiny', 'hparams.json'))['n_ctx']
    prompts = write(tmp_path / 'p.txt', 'a\n')
    assert [make('a', nsamples=1, length=None, stop_at_end=False)[0]['length'],
            make('b', prompts=prompts, length=None, stop_at_end=False)[0]['length']] == [n_ctx, n_ctx // 2]


@pytest.mark.slow
def test_gzip_files_have_the_same_rows(make, tmp_path):
    rows = make('a', nsamples=9)
    assert make('b', nsamples=9, gzip=True) == rows
    assert sorted(bytes_in(tmp_path / 'b')) == ['00000-of-00001.jsonl.gz']
    assert maker.compressed(b'text')[4:8] == bytes(4)  # the time in gzip's header


@pytest.mark.slow
def test_only_makes_one_row_again(make, tmp_path, capsys):
    lines = ['{"prompt": "%s", "id": "n%d"}' % ('x' * (1 + i % 3), i) for i in range(9)]
    prompts = write(tmp_path / 'p.jsonl', '\n'.join(lines))
    make(prompts=prompts, shards=2, length=5)
    lines = b''.join(data for name, data in sorted(bytes_in(tmp_path / 'rows').items())).decode('utf-8')
    capsys.readouterr()
    make(prompts=prompts, shards=2, length=5, only='n7')
    assert capsys.readouterr().out == lines.split('\n')[7] + '\n'
    with pytest.raises(ValueError, match='no row has the id n9$'):
        make(prompts=prompts, shards=2, length=5, only='n9')


@pytest.mark.slow
def test_only_reports_no_problems_of_other_lines(make, tmp_path, capsys):
    prompts = write(tmp_path / 'p.txt', 'a\n\nb\n' + 'long' * 50 + '\n')
    make(prompts=prompts, only='2')
    captured = capsys.readouterr()
    assert json.loads(captured.out)['prompt'] == 'b' and captured.err == ''
    with pytest.raises(ValueError, match='no row has the id 3; .*: 2, 4$'):
        make(prompts=prompts, only='3')


@pytest.mark.slow
@pytest.mark.parametrize('flags', [dict(nsamples=3), dict(nsamples=3, only='1')])
def test_precision_reaches_the_model(make, monkeypatch, flags):
    """For files and for --only. TensorFlow 1.12 has no 8-bit weights, so this looks at what is asked for."""
    found = []
    monkeypatch.setattr(maker, 'Sampler', lambda *model: found.append(model[2]) or Sampler(*model[:2]))
    make(precision='int8', **flags)
    assert set(found) == {'int8'}


@pytest.mark.slow
def test_prompts_may_fill_the_context(make, tmp_path, flat_models):
    """The last sampled token is never fed back, so prompt and sample together may have one more than the context."""
    n_ctx = files.read_json(os.path.join(flat_models, 'tiny', 'hparams.json'))['n_ctx']
    prompts = write(tmp_path / 'p.txt', 'x' * (n_ctx + 1 - 6) + '\n' + 'x' * (n_ctx + 2 - 6) + '\n')
    with pytest.raises(ValueError, match='lines without a row: 2$'):
        make(prompts=prompts, length=6, stop_at_end=False)
    rows = rows_in(str(tmp_path / 'rows'))
    assert [(len(row['prompt']), row['length']) for row in rows] == [(n_ctx + 1 - 6, 6)]


@pytest.mark.slow
@pytest.mark.parametrize('n, message', [
    (10, 'lines without a row: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11$'),
    (11, r'lines without a row: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, \.\.\.$')])
def test_prompts_report_ten_lines_at_the_end(make, tmp_path, n, message):
    with pytest.raises(ValueError, match=message):
        make(prompts=write(tmp_path / 'p.txt', 'a' + '\n' * (n + 1)))


# The same files, however they were made

@pytest.mark.slow
def test_generate_dataset_makes_only_what_is_missing(make, tmp_path, capsys):
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


@pytest.mark.slow
def test_shard_makes_the_same_file_alone(make, tmp_path):
    make('whole', nsamples=10, shards=3)
    for shard in (2, 0, 1):
        make('parts', nsamples=10, shards=3, shard=shard)
    assert bytes_in(tmp_path / 'parts') == bytes_in(tmp_path / 'whole') and len(bytes_in(tmp_path / 'whole')) == 3


@pytest.mark.slow
def test_generate_dataset_rejects_other_settings_and_names_them(make, tmp_path):
    make(nsamples=10)
    before = bytes_in(tmp_path / 'rows')
    with pytest.raises(ValueError, match='seed was 0 and is 5, top_k was 0 and is 3; .*another --out'):
        make(nsamples=10, seed=5, top_k=3)
    with pytest.raises(ValueError, match='rows was 10 and is 11'):
        make(nsamples=11)
    assert bytes_in(tmp_path / 'rows') == before


@pytest.mark.slow
@pytest.mark.skipif(not xla.is_supported(), reason='TensorFlow 1.x does not compile the loop')
def test_rows_are_the_same_if_the_loop_is_compiled(make, tmp_path, monkeypatch, in_tensorflow):
    """Only for whole batches, here of four: the last of six rows are not worth another program."""
    monkeypatch.setattr(maker, 'Sampler', Sampler)
    prompts = write(tmp_path / 'prompts.txt', 'a\nbcd\nef\nghij\nklm\nn\n')
    asked, made, compiled_loop = [], [], sample.compiled_loop
    monkeypatch.setattr(sample, 'compiled_loop', lambda hparams, prompt_BT, context_BC, chooser: (
        made.append(context_BC.shape.as_list()[0]) or compiled_loop(hparams, prompt_BT, context_BC, chooser)))
    plain = make('plain', prompts=prompts)
    monkeypatch.setattr(maker, 'is_worth_compiling', lambda *numbers: asked.append(numbers) or True)
    assert not made and make('compiled', prompts=prompts) == plain
    assert made == [4] and set(asked) == {(4, 4, 6)}


@pytest.mark.slow
def test_cores_default_to_those_of_the_existing_rows(make, tmp_path, monkeypatch, capsys):
    """Some rows depend on them. A machine's own number is used only where there are no rows yet."""
    rows = make(nsamples=9, shards=3)
    before = bytes_in(tmp_path / 'rows')
    os.remove(str(tmp_path / 'rows' / '00001-of-00003.jsonl'))
    assert '--cores' not in capsys.readouterr().err
    monkeypatch.setenv('OMP_NUM_THREADS', '3')  # as on a machine of three cores
    make(nsamples=9, shards=3, only='4')
    captured = capsys.readouterr()
    assert json.loads(captured.out) == rows[4]
    assert re.match(r'using --cores 2, .* this machine has 3\n\Z', captured.err)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    make(nsamples=9, shards=3)
    assert bytes_in(tmp_path / 'rows') == before and os.environ['OMP_NUM_THREADS'] == '2'
    with pytest.raises(ValueError, match='cores was 2 and is 3'):
        make(nsamples=9, shards=3, cores=3)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    make('own', nsamples=1)
    assert json.loads((tmp_path / 'own' / 'manifest.json').read_text())['cores'] == 3


@pytest.mark.slow
def test_generate_dataset_rejects_another_model_of_the_same_name(make, tmp_path, flat_models):
    shutil.copytree(flat_models, str(tmp_path / 'models'))
    make(nsamples=3, models_dir=str(tmp_path / 'models'))
    os.rename(str(tmp_path / 'models' / 'tiny'), str(tmp_path / 'models' / 'other'))
    make(nsamples=3, models_dir=str(tmp_path / 'models'), model_name='other')  # the same model in another place
    os.rename(str(tmp_path / 'models' / 'other'), str(tmp_path / 'models' / 'tiny'))
    with open(str(tmp_path / 'models' / 'tiny' / 'model.ckpt.data-00000-of-00001'), 'r+b') as file:
        file.write(b'\0\0\0\1')
    with pytest.raises(ValueError, match='model was .* and is'):
        make(nsamples=3, models_dir=str(tmp_path / 'models'))


@pytest.mark.parametrize('options, message', [
    (dict(), 'either --nsamples'), (dict(nsamples=1, prompts=__file__), 'either --nsamples'),
    (dict(nsamples=0), 'nsamples is 0'),
    (dict(nsamples=10 ** 9), 'nsamples is 1000000000; it must be 1 to 10000000'),
    (dict(nsamples=3, length=0), 'length is 0'), (dict(nsamples=3, length=99), 'length is 99; it must be 1 to '),
    (dict(nsamples=3, batch_size=0), 'batch_size is 0'), (dict(nsamples=3, top_k=-1), 'top_k is -1'),
    (dict(nsamples=3, top_p=2.0), 'top_p is 2'), (dict(nsamples=3, temperature=-1.0), 'temperature is -1'),
    (dict(nsamples=3, seed=-1), 'seed is -1'), (dict(nsamples=3, precision='int7'), 'precision is int7'),
    (dict(nsamples=3, shards=4), 'shards is 4'), (dict(nsamples=3, shard=1), 'shard is 1; it must be 0 to 0'),
    (dict(nsamples=3, cores=0), 'cores is 0'), (dict(nsamples=3, workers=2), 'workers is 2; .*--ray'),
    (dict(nsamples=3, workers=0, ray='local'), 'workers is 0'), (dict(nsamples=3, ray=''), '--ray is empty'),
    (dict(nsamples=3, model_name='none'), 'no model none'), (dict(nsamples=3, only='3'), 'no row has the id 3')])
def test_generate_dataset_rejects_bad_flags_and_writes_nothing(make, tmp_path, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(**options)
    assert not (tmp_path / 'rows').exists()


@pytest.mark.slow
def test_generate_dataset_writes_nothing_if_the_model_cannot_be_built(make, tmp_path, monkeypatch):
    """As with --precision int8 on TensorFlow 1.12."""
    def is_for(precision, hparams):
        raise ValueError('int8 is impossible here')

    monkeypatch.setattr(maker, 'Sampler', Sampler)
    monkeypatch.setattr(lite, 'is_for', is_for)
    with pytest.raises(ValueError, match='int8 is impossible here'):
        make(nsamples=3, precision='int8')
    assert not (tmp_path / 'rows').exists()


@pytest.mark.slow
def test_prompts_that_are_invalid_are_reported_and_the_others_used(make, tmp_path, capsys):
    prompts = write(tmp_path / 'p.txt', 'one\n\ntwo\n' + 'long ' * 500 + '\nthree\n')
    with pytest.raises(ValueError, match='p.txt: lines without a row: 2, 4$'):
        make(prompts=prompts)
    out, err = capsys.readouterr()
    assert '3 rows' in out and 'p.txt, line 2: the prompt is empty' in err and 'p.txt, line 4: the prompt has ' in err
    assert [(row['id'], row['prompt']) for row in rows_in(str(tmp_path / 'rows'))] == [
        (0, 'one'), (2, 'two'), (4, 'three')]


# Progress

class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.slow
def test_progress_is_a_bar_on_a_terminal(make, capsys):
    """With the rate in it."""
    with contextlib.redirect_stderr(Terminal()) as terminal:
        make(nsamples=9, shards=3)
    last = terminal.getvalue().split('\r')[-1]
    assert '100%' in last and '9/9 [' in last and ' tokens/s]' in last and last.endswith('\n')
    assert '9 rows in 3 files, ' in capsys.readouterr().out


@pytest.mark.slow
def test_progress_bar_ends_before_the_message_after_ctrl_c(script, tmp_path):
    command = script(STRUCK % (0, signal.SIGINT), outputs=('out',)) + run(tmp_path / 'rows')
    with Conversation(command, terminal=True, width=100) as talk:
        status, printed = talk.end()
    assert status == 130 and b'/%d [' % ROWS in printed, printed
    assert b'\r\nscript.py: stopped; ' in printed and printed.endswith(b'\r\n'), printed


@pytest.mark.slow
def test_progress_is_a_line_now_and_then_without_a_terminal(make, monkeypatch, capsys):
    make('a', nsamples=9, shards=3)
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(progress, 'REPORT_EVERY_SECONDS', -1)
    make('b', nsamples=9, shards=3)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(' ')[0] for line in lines] == ['3', '3', '6', '6', '9', '9']  # for each batch and each shard
    assert all(re.match(r'\d of 9 rows: \d+ tokens/s, \d\d:\d\d left$', line) for line in lines), lines


# When things go wrong

ROWS = 48  # in SHARDS shards, in each run of these tests
SHARDS = 6


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """The files of a run in which nothing went wrong."""
    return finish(tmp_path_factory.mktemp('undisturbed') / 'rows')


def run(out, *flags):
    """The flags of such a run."""
    return ['--model_name', 'demo', '--batch_size', '4', '--length', '8', '--cores', '1', '--out', str(out),
            '--nsamples', str(ROWS), '--shards', str(SHARDS)] + list(flags)


def finish(out):
    """Do in this process what run() has not done yet, and return the files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('OMP_NUM_THREADS', '1')
        generate_dataset.generate_dataset(
            str(out), model_name='demo', batch_size=4, length=8, cores=1, nsamples=ROWS, shards=SHARDS)
    return bytes_in(out)


MAIN = """
from generate_dataset import generate_dataset as main
from gpt2.system import progress
progress.REPORT_EVERY_SECONDS = float('inf')
"""
STRUCK = MAIN + """
from gpt2.generation import store

def add(folder, name, data, add=store.Folder.add):
    add(folder, name, data)
    if name.startswith('%05d'):
        os.kill(os.getpid(), %d)
        time.sleep(9999)

store.Folder.add = add
"""


@pytest.mark.slow
def test_generate_dataset_continues_after_a_signal(forks, undisturbed, tmp_path):
    """Each of three ends a run that has just added a file. The next run makes what is missing, and one more nothing."""
    for n, number, expected_status in (
            (1, signal.SIGKILL, -signal.SIGKILL), (2, signal.SIGINT, 130), (3, signal.SIGTERM, 143)):
        (status, stdout, stderr), = forks.run((STRUCK % (n, number), run(tmp_path / 'rows'), ['out']))
        message = 'script.py: stopped; %s has %d of %d files, %d of %d rows; run the same command to continue\n' % (
            tmp_path / 'rows', n, SHARDS, n * ROWS // SHARDS, ROWS)
        assert (status, stdout) == (expected_status, b'')
        assert stderr.decode('utf-8') == ('' if number == signal.SIGKILL else message)
        shards = {path.name: path.read_bytes() for path in (tmp_path / 'rows').glob('0*.jsonl')}
        assert len(shards) == n + 1 and all(data == undisturbed[name] for name, data in shards.items())
    for name in set(os.listdir(str(tmp_path / 'rows'))) - set(undisturbed) - {'manifest.json'}:
        assert name.endswith('.lock') and name[1:-5] in undisturbed, name  # left by a killed process; it locks nothing
        os.remove(str(tmp_path / 'rows' / name))
    assert finish(tmp_path / 'rows') == finish(tmp_path / 'rows') == undisturbed


STRUCK_WHILE_IT_READS = MAIN + """
import threading
pipe = sys.argv[-1]

def strike():
    with open(pipe, 'wb'):  # waits until the run opens it, too
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(9999)

threading.Thread(target=strike).start()
"""
STRUCK_IN_A_BATCH = MAIN + """
from gpt2 import sampler
from gpt2.system import process
from gpt2.system.tf1 import tf

def run_and_strike(*batch, wait_for=process.wait_for):
    with tf.Graph().as_default():
        endless, sess = tf.while_loop(lambda i: i < 1, lambda i: i * 0, [tf.constant(0)]), tf.Session()

    def strike():
        os.kill(os.getpid(), signal.SIGTERM)
        return sess.run(endless)
    return wait_for(strike)

sampler.process = type('', (), {'wait_for': staticmethod(run_and_strike)})
"""


@pytest.mark.slow
def test_generate_dataset_ends_at_once_while_it_reads_prompts_or_samples(forks, tmp_path):
    """With the status of the signal. Nothing waits for TensorFlow, which here never returns."""
    os.mkfifo(str(tmp_path / 'pipe'))
    out = ['--out', str(tmp_path / 'rows'), '--model_name', 'demo', '--batch_size', '4', '--length', '4']
    reading, sampling, one = forks.run(
        (STRUCK_WHILE_IT_READS, out + ['--prompts', str(tmp_path / 'pipe')], ['out']),
        (STRUCK_IN_A_BATCH, out + ['--nsamples', '9'], ['out']),
        (STRUCK_IN_A_BATCH, out + ['--nsamples', '9', '--only', '7'], ['out']))
    assert reading == one == (143, b'', b'')
    assert sampling[:2] == (143, b'') and b'stopped; ' in sampling[2] and b'0 of 1 file, 0 of 9 rows' in sampling[2]
    assert not glob.glob(str(tmp_path / 'rows' / '0*'))


@pytest.mark.slow
def test_generate_dataset_reports_a_file_size_limit_and_continues_later(undisturbed, tmp_path):
    """With the name of the file, as for a full disk."""
    smallest, limits = min(map(len, undisturbed.values())), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (smallest - 1, limits[1]))  # writing more fails, as on a full disk
    try:
        with pytest.raises(OSError, match='^[^\n]*File too large: [^\n]*$'):
            finish(tmp_path / 'rows')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not bytes_in(tmp_path / 'rows')
    assert finish(tmp_path / 'rows') == undisturbed


def test_folder_reports_a_full_disk_with_its_path(tmp_path):
    """The kernel's own error, which does not say where the disk is full."""
    folder = store.open_store(str(tmp_path / 'rows'))
    with pytest.raises(OSError, match='No space left on device') as error:
        with folder.claimed('00001-of-00006.jsonl'), open('/dev/full', 'wb', buffering=0) as file:
            file.write(b'row')
    assert str(tmp_path / 'rows') in str(error.value)


@pytest.mark.slow
def test_folder_rejects_a_second_process_for_a_shard(make, tmp_path):
    (tmp_path / 'rows').mkdir()
    with files.folder_lock(str(tmp_path / 'rows'), None, '.00001-of-00002.jsonl.lock'):
        with pytest.raises(ValueError, match='00001-of-00002.jsonl in .* by process %d on' % os.getpid()):
            make(nsamples=6, shards=2)
    assert sorted(bytes_in(tmp_path / 'rows')) == ['00000-of-00002.jsonl']
    assert len(make(nsamples=6, shards=2)) == 6


@pytest.mark.slow
def test_shard_jobs_share_a_folder(forks, undisturbed, tmp_path):
    """They start at the same time, and none waits for another."""
    for status, _, stderr in forks.run(
            *[(MAIN, run(tmp_path / 'rows', '--shard', str(shard)), ['out']) for shard in range(3)]):
        assert (status, stderr) == (0, b'')
    assert bytes_in(tmp_path / 'rows') == {name: undisturbed[name] for name in sorted(undisturbed)[:3]}


@pytest.mark.slow
def test_prompts_may_be_a_pipe(make, tmp_path):
    """Which can be read only once."""
    os.mkfifo(str(tmp_path / 'pipe'))
    writer = subprocess.Popen(['sh', '-c', 'printf "a\\nb\\n" >"$0"', str(tmp_path / 'pipe')])
    assert [row['prompt'] for row in make(prompts=str(tmp_path / 'pipe'))] == ['a', 'b']
    writer.wait()


@pytest.mark.parametrize('text', ['', '\n\n'])
def test_prompts_without_a_valid_line_are_reported(make, tmp_path, text):
    why = '; line 1: .*empty' if text else '$'
    with pytest.raises(ValueError, match='p.txt has no line that is a valid prompt' + why):
        make(prompts=write(tmp_path / 'p.txt', text))
    assert not (tmp_path / 'rows').exists()


def test_open_store_rejects_an_empty_path(flat_models):
    """It is not the working directory."""
    with pytest.raises(ValueError, match='--out is empty'):
        generate_dataset.generate_dataset('', nsamples=3, model_name='tiny', models_dir=flat_models)


@pytest.mark.slow
def test_folder_rejects_a_file_of_the_same_name(make, tmp_path):
    write(tmp_path / 'rows', 'mine')
    with pytest.raises(ValueError, match='rows is a file; choose another --out'):
        make(nsamples=3)


@pytest.mark.slow
def test_write_manifest_rejects_settings_of_a_simultaneous_run(make, tmp_path, monkeypatch):
    """Both start at the same time, so neither finds the manifest of the other at first."""
    make(nsamples=6, shards=2, shard=0)
    before = bytes_in(tmp_path / 'rows')
    monkeypatch.setattr(plan, 'check_same', lambda *_, check_same=plan.check_same, calls=[]: (
        check_same(*_) if calls else calls.append('the first one, at the start')))
    with pytest.raises(ValueError, match='seed was 0 and is 1'):
        make(nsamples=6, shards=2, shard=1, seed=1)
    assert bytes_in(tmp_path / 'rows') == before


@pytest.mark.slow
def test_manifest_missing_beside_rows_is_reported(make, tmp_path):
    make(nsamples=6, shards=2, shard=0)
    os.remove(str(tmp_path / 'rows' / 'manifest.json'))
    with pytest.raises(ValueError, match='has files of rows and no manifest.json'):
        make(nsamples=6, shards=2)


def test_manifest_that_is_a_giant_is_refused(tmp_path):
    with open(str(tmp_path / 'manifest.json'), 'wb') as file:
        file.truncate(2 ** 40)
    with pytest.raises(ValueError, match='manifest.json has over 134217728 bytes'):
        store.open_store(str(tmp_path)).manifest()


@pytest.mark.parametrize('text', ['{', '[]', '{"cores": "x"}', '{"cores": 1.5}', '{"cores": true}', '{"cores": [[]]}'])
def test_manifest_that_is_damaged_is_reported(make, tmp_path, text):
    (tmp_path / 'rows').mkdir()
    write(tmp_path / 'rows' / 'manifest.json', text)
    with pytest.raises(ValueError, match='manifest.json is damaged .*; choose another --out'):
        make(nsamples=3)


@pytest.mark.parametrize('manifest, words', [
    ('{"cores": "x"}', 'damaged .*cores is .x. '), ('{"cores": null}', 'cores was None and is 2, '),
    ('{"cores": [1]}', 'damaged .*cores is .1. '), ('{"cores": true}', 'damaged .*cores is True '),
    ('{"cores": 1e999, "seed": {"a": 1}}', 'damaged .*cores is inf '), ('{}', 'cores was None and is 2, '),
    ('{"cores": 2, "rows": "%s"}' % ('x' * 9999), 'rows was x{99} and is 3, '),
    ('{"cores": 9999}', 'cores is 9999; it must be 1 to 1024'), ('[1]', 'damaged'), ('7', 'damaged')])
def test_a_manifest_of_any_json_is_one_line(make, tmp_path, manifest, words):
    (tmp_path / 'rows').mkdir()
    (tmp_path / 'rows' / 'manifest.json').write_text(manifest)
    with pytest.raises(ValueError, match=words):
        make(nsamples=3)
    assert os.listdir(str(tmp_path / 'rows')) == ['manifest.json']


# Addresses

def needs(package):
    return pytest.mark.skipif(not installed(package),
                              reason='needs %s: pip install -r tests/requirements.txt' % package)


def installed(package):
    try:
        __import__(package)
    except ImportError:
        return False
    return True


@pytest.mark.slow
@needs('fsspec')
def test_bucket_has_the_same_files_as_a_folder(make, tmp_path, flat_models, monkeypatch):
    make('here', nsamples=9, shards=3)
    options = dict(model_name='tiny', models_dir=flat_models, batch_size=4, length=6, shards=3)
    generate_dataset.generate_dataset('file://%s' % (tmp_path / 'there'), nsamples=9, **options)
    assert bytes_in(tmp_path / 'there') == bytes_in(tmp_path / 'here')
    import fsspec
    memory = fsspec.filesystem('memory')
    monkeypatch.setattr(generate_dataset, 'open_store', lambda out: store.Bucket(memory, '/data/rows', out))
    generate_dataset.generate_dataset('x://data/rows', nsamples=9, **options)
    assert {path.rsplit('/', 1)[1]: memory.cat(path) for path in memory.find('/data/rows')
            if 'manifest' not in path} == bytes_in(tmp_path / 'here')
    memory.rm('/data/rows/00001-of-00003.jsonl')
    memory.pipe('/data/rows/00000-of-00003.jsonl', b'kept')
    generate_dataset.generate_dataset('x://data/rows', nsamples=9, **options)
    assert memory.cat('/data/rows/00000-of-00003.jsonl') == b'kept'
    assert memory.cat('/data/rows/00001-of-00003.jsonl') == bytes_in(tmp_path / 'here')['00001-of-00003.jsonl']
    with pytest.raises(ValueError, match='rows was 9 and is 8'):
        generate_dataset.generate_dataset('x://data/rows', nsamples=8, **options)


@needs('fsspec')
@pytest.mark.parametrize('address, words', [
    ('nothing://at/all', '--out nothing://at/all cannot be written to: .*nothing'),
    ('zip://x', '--out zip://x cannot be written to'),
    ('memory://rows', '--out is memory://rows, the memory of this process'),
    ('nothing://me:secret@host/rows', '--out nothing://host/rows cannot be written to: '),
    ('ftp://me:secret/ret@host/rows', '--out ftp://host/rows cannot be written to: '),
    ('ftp://me:secret@127.0.0.1:9/rows', 'ftp')])
def test_open_store_reports_addresses_that_cannot_be_used(address, words):
    """Where nobody listens, a host does not exist, or rows would vanish. No message has a password in it."""
    with pytest.raises((ValueError, OSError), match=words) as caught:
        store.open_store(address).names()
    assert not re.search('secret|ret@|me:', str(caught.value))


class Failing(dict):
    """A file system that fails with an address in its message."""

    def invalidate_cache(self):
        raise RuntimeError('no route to ftp://me:secret@host/rows')


def test_bucket_never_prints_a_password(capsys):
    bucket = store.Bucket(Failing(), '/rows', 'ftp://me:secret@host/rows')
    assert str(bucket) == 'ftp://host/rows' and bucket.address == 'ftp://me:secret@host/rows'
    with pytest.raises(OSError, match='^ftp://host/rows cannot be reached: RuntimeError: no route to ftp://host/rows$'):
        bucket.names()
    print_error('unexpected argument ftp://me:secret@host/rows and ftp://me:s@cret@host')
    assert capsys.readouterr().err.endswith(': unexpected argument ftp://host/rows and ftp://host\n')


@pytest.mark.slow
@needs('moto')
def test_bucket_on_s3_has_the_same_files(undisturbed, capsys, monkeypatch):
    """S3, as moto's server implements it; and a line if it does not answer."""
    from moto.server import ThreadedMotoServer
    import boto3
    import s3fs
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        address = 'http://%s:%d' % server.get_host_and_port()
        for name, value in dict(AWS_ACCESS_KEY_ID='id', AWS_SECRET_ACCESS_KEY='key', AWS_ENDPOINT_URL=address,
                                AWS_DEFAULT_REGION='us-east-1').items():
            monkeypatch.setenv(name, value)
        s3 = boto3.client('s3', endpoint_url=address)
        s3.create_bucket(Bucket='rows')
        for said in '%d rows in %d files' % (ROWS, SHARDS), 'nothing is missing':
            generate_dataset.generate_dataset('s3://rows/demo', model_name='demo', batch_size=4, length=8, cores=1,
                                              nsamples=ROWS, shards=SHARDS)
            assert said in capsys.readouterr().out
        found = {item['Key']: s3.get_object(Bucket='rows', Key=item['Key'])['Body'].read()
                 for item in s3.list_objects_v2(Bucket='rows')['Contents']}
        found.pop('demo/manifest.json')
        assert found == {'demo/' + name: data for name, data in undisturbed.items()}
    finally:
        server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    with pytest.raises(OSError, match='^s3://rows/demo cannot be reached[^\n]*$'):
        store.open_store('s3://rows/demo').names()
    s3fs.S3FileSystem.clear_instance_cache()


class CachingFileSystem:
    """The part of fsspec's file systems that lists a folder, from a cache until that is invalidated."""

    def __init__(self):
        self.stored, self.cache = [], None

    def ls(self, path, detail):
        self.cache = list(self.stored) if self.cache is None else self.cache
        return self.cache

    def invalidate_cache(self):
        self.cache = None


def test_bucket_lists_files_that_another_process_has_added():
    file_system = CachingFileSystem()
    bucket = store.Bucket(file_system, 'rows', 'x://rows')
    assert bucket.names() == set()
    file_system.stored.append('rows/manifest.json')
    assert bucket.names() == {'manifest.json'}


@pytest.mark.slow
@needs('fsspec')
def test_bucket_reports_a_damaged_manifest(make):
    """As damaged, not as one that cannot be reached."""
    import fsspec
    bucket = store.Bucket(fsspec.filesystem('memory'), '/damaged/rows', 'x://damaged/rows')
    bucket.add('manifest.json', b'{')
    with pytest.raises(ValueError, match='manifest.json is damaged .*another --out'):
        bucket.manifest()


def test_folder_may_be_in_the_home_directory(tmp_path, monkeypatch):
    """Fire and other shells than bash leave the ~ of --out=~/rows as it is."""
    monkeypatch.setenv('HOME', str(tmp_path))
    assert str(store.open_store('~/rows')) == str(tmp_path / 'rows')
