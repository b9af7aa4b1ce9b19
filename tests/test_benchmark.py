"""benchmarks/benchmark.py: workloads, the order of measurements, crashes, and the table. No engine runs."""
from collections import OrderedDict
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest

import benchmark
import engines
from benchmark import Burst, Runner, Workload
from helpers.processes import SECONDS

FAST, SLOW, EIGHT, PEER = [Runner(engine, 'python', engine)
                           for engine in ('ours', 'transformers', 'ours-int8', 'ctranslate2-int8')]
TF32, PEER_TF32, PEER_16 = [Runner(engine, 'python', engine)
                            for engine in ('ours-tf32', 'transformers-tf32-compiled', 'transformers-bfloat16')]


@pytest.mark.parametrize('shape, workload, n_tokens, title', [
    ('8x256', (8, 1, 256), 2048, '8 texts of 256 tokens at once (tokens/s)'),
    ('512+128', (1, 512, 128), 128, '128 tokens after a prompt of 512 (tokens/s)'),
    ('512+1', (1, 512, 1), 1, 'first token after a prompt of 512 (s)'),
    ('score2x1024', (2, 1025, 0), 2048, 'scoring 2 texts of 1,024 tokens (tokens/s)'),
    ('train4x1024', (4, 1024, -1), 4096, 'training on 4 texts of 1,024 tokens (tokens/s)'),
    ('1x8', (1, 1, 8), 8, '1 text of 8 tokens (tokens/s)')])
def test_workload_parses_a_shape(shape, workload, n_tokens, title):
    parsed = Workload.parse(shape)
    assert (parsed, parsed.n_tokens(), parsed.title()) == (workload, n_tokens, title)


@pytest.mark.parametrize('shape', ['', 'W9', '8x', '8x256x2', '0x8', '512+0', 'score0x8', 'score 2x8'])
def test_workload_refuses_any_other_text(shape):
    with pytest.raises(ValueError, match='not a workload; give start, W1'):
        Workload.parse(shape)


def test_workloads_have_a_short_form():
    assert list(benchmark.WORKLOADS) == list(benchmark.QUICK)
    for shape in list(benchmark.WORKLOADS.values()) + list(benchmark.QUICK.values()):
        Workload.parse(shape)


def test_alternate_reverses_every_other_round_and_drops_the_first():
    asked, bursts = [], {}

    def measure_burst(runner):
        asked.append(runner)
        if runner is EIGHT and len(asked) > 3:
            raise benchmark.Failed('no memory')
        return Burst(len(asked), 100)

    benchmark.alternate([FAST, SLOW, EIGHT], 3, measure_burst, bursts)
    assert asked == [FAST, SLOW, EIGHT, EIGHT, SLOW, FAST, FAST, SLOW, SLOW, FAST]
    assert bursts == {'ours': [(6, 100), (7, 100), (10, 100)], 'transformers': [(5, 100), (8, 100), (9, 100)],
                      'ours-int8': None}


def test_speeds_are_quartiles_of_the_ratios_in_each_round():
    """A machine that is twice as slow in two rounds changes the ratio of the medians, but no ratio of a round."""
    ours = [Burst(seconds, 0) for seconds in (1, 2, 2, 1, 1)]
    other = [Burst(seconds, 0) for seconds in (2, 4, 4, 2, 8)]
    assert benchmark.speeds(other, ours).tolist() == [0.5, 0.5, 0.5]
    assert benchmark.speeds(other[1:], ours[1:]).tolist() == [0.40625, 0.5, 0.5]
    assert benchmark.speeds(other[:2], ours).tolist() == [0.5, 0.5, 0.5], 'interrupted: rounds that only one has'


def test_base_of_is_ours_of_the_same_kind_in_the_same_python():
    other_python = [Runner('ours', 'python3.6', 'ours 1.12'), Runner('gpt-2-simple', 'python3.6', 'simple 1.12')]
    runners = [FAST, SLOW, EIGHT, PEER] + other_python
    assert [benchmark.base_of(runner, runners) for runner in runners] == [
        None, FAST, FAST, EIGHT, None, other_python[0]]
    assert benchmark.base_of(PEER, [FAST, PEER]) == FAST
    on_gpu = [FAST, SLOW, TF32, PEER_TF32, PEER_16]
    assert [benchmark.base_of(runner, on_gpu) for runner in on_gpu] == [None, FAST, FAST, TF32, FAST]


ANSWER = 'echo \'{"result": [2, 100]}\''  # of a worker to "load", which is ignored, and to "burst"


@pytest.mark.parametrize('script', ['read order', 'read order; %s; read order; exec <&-; %s' % (ANSWER, ANSWER)],
                         ids=['during an order', 'between two orders'])
def test_measure_goes_on_without_an_engine_that_crashes(script, tmp_path, capsys):
    runners = []
    for engine, lines in (('ours', 'while read order; do %s; done' % ANSWER),
                          ('transformers', script + '; echo oops >&2; ulimit -c 0; kill -SEGV $$')):
        (tmp_path / engine).write_text('#!/bin/sh\n' + lines)
        (tmp_path / engine).chmod(0o700)
        runners.append(Runner(engine, str(tmp_path / engine), engine))
    bursts, options = {}, SimpleNamespace(device='cpu', threads=2, cache='/cache', rounds=2, quick=True)
    benchmark.measure(runners, 'W1', Workload.parse('1x8'), '/models/117M', options, bursts)
    assert bursts == {'ours': [(2, 100)] * 2, 'transformers': None}
    assert 'transformers failed: status -11: oops\n' in capsys.readouterr().err


@pytest.mark.parametrize('function', ['llama_model_load_from_file', 'llama_init_from_model'])
def test_llama_cpp_passes_no_null_pointer_on(function, monkeypatch):
    monkeypatch.setitem(sys.modules, 'llama_cpp', mock.MagicMock(**{function + '.return_value': None}))
    engine = engines.LlamaCpp(2, 'q8_0')
    with pytest.raises(RuntimeError, match=function + ' failed'):
        engine.prepare('folder')
        engine.context(1, 1, 1)


# On a GPU

def options_of(monkeypatch, *arguments):
    """The options of a command line."""
    monkeypatch.setattr(sys, 'argv', ['benchmark.py'] + list(arguments))
    return benchmark.parse_options()


def test_options_have_the_engines_of_the_device_ours_in_float32_first(monkeypatch, capsys):
    for device in ('cpu', 'gpu'):
        names = options_of(monkeypatch, '--device', device).engines
        assert names[0] == 'ours' and 'transformers' in names and 'gpt-2-simple' in names
        assert ('ours-int8' in names, 'transformers-bfloat16-compiled' in names) == (device == 'cpu', device == 'gpu')
        kinds = [engines.KINDS.index(Runner(name, 'python', name).kind()) for name in names]
        assert kinds == sorted(kinds)
    with pytest.raises(SystemExit):
        options_of(monkeypatch, '--device', 'gpu', '--engines', 'ours', 'ours-int8')
    assert '--device gpu supports ours, ' in capsys.readouterr().err


def test_main_without_a_gpu_says_so_in_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, benchmark.__file__, '--device', 'gpu', '--cache', str(tmp_path / 'cache')],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ, PATH=str(tmp_path)))
    stdout, stderr = process.communicate(timeout=SECONDS)
    assert (process.returncode, stdout, stderr.count(b'\n')) == (1, b'', 1) and b'there is no GPU' in stderr
    assert not (tmp_path / 'cache').exists()


def test_runner_has_one_converted_folder_for_all_precisions_of_transformers():
    options = SimpleNamespace(cache='/cache')
    assert [runner.folder('/models/117M', options) for runner in (FAST, SLOW, PEER, PEER_TF32, PEER_16)] == [
        '/models/117M', '/cache/117M-transformers', '/cache/117M-ctranslate2-int8'] + ['/cache/117M-transformers'] * 2


@pytest.mark.parametrize('device, engine, expected', [
    ('cpu', 'ours', {'CUDA_VISIBLE_DEVICES': ''}),
    ('gpu', 'ours', {'CUDA_VISIBLE_DEVICES': '3', 'NVIDIA_TF32_OVERRIDE': '0'}),
    ('gpu', 'transformers-tf32', {'CUDA_VISIBLE_DEVICES': '3'})])
def test_worker_sees_the_gpu_only_if_it_uses_it_and_rounds_by_its_precision(monkeypatch, device, engine, expected):
    environments = []
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    monkeypatch.delenv('NVIDIA_TF32_OVERRIDE', raising=False)
    monkeypatch.setattr(subprocess, 'Popen', lambda command, env, **_: environments.append(env))
    benchmark.Worker('python', SimpleNamespace(threads=2, device=device), engine)
    names = 'CUDA_VISIBLE_DEVICES', 'NVIDIA_TF32_OVERRIDE'
    assert {name: environments[0][name] for name in names if name in environments[0]} == expected


class FakeWorker(object):
    """A worker that allocates memory on a GPU, of which 500 MB are in use, when it loads a model and in each burst."""

    used = 500

    def __init__(self, at_load, at_burst):
        self.takes = {'load': at_load, 'burst': at_burst, 'greedy': 0}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, order, **arguments):
        FakeWorker.used += self.takes[order]
        return {'burst': (2, 1000), 'greedy': [[1]]}.get(order)


@pytest.fixture
def gpu_options(monkeypatch):
    """Options for a GPU of which each engine takes 300 MB, and 20 MB more for each burst, but ours-tf32 nothing."""
    monkeypatch.setattr(FakeWorker, 'used', 500)
    monkeypatch.setattr(benchmark, 'card', lambda field: str(FakeWorker.used))
    monkeypatch.setattr(Runner, 'worker', lambda runner, options: FakeWorker(*(300, 20) if runner != TF32 else (0, 0)))
    return SimpleNamespace(device='gpu', cache='/cache', rounds=2, quick=True)


def test_measure_reports_what_each_allocated_on_the_card(gpu_options):
    bursts = {}
    benchmark.measure([FAST, SLOW], 'W1', Workload.parse('1x8'), '/models/117M', gpu_options, bursts)
    assert bursts == {'ours': [(2, 340), (2, 360)], 'transformers': [(2, 340), (2, 360)]}


def test_check_leaves_out_an_engine_that_does_not_use_the_gpu(gpu_options, monkeypatch):
    monkeypatch.setattr(os.path, 'isdir', lambda path: True)
    monkeypatch.setattr(benchmark, 'N_COMPARED', 1)
    shared, absent = benchmark.check([FAST, SLOW, TF32], '/models/117M', [[0]], gpu_options)
    assert shared == {'ours': 1, 'transformers': 1}
    assert [label for label, _ in absent] == ['ours-tf32'] and 'no memory on the GPU' in absent[0][1]


# The table

def test_table_has_a_cell_for_each_figure():
    workloads = OrderedDict((name, Workload.parse(name)) for name in ('2x4', '8+1'))
    results = OrderedDict([
        ('2x4', {'ours': [Burst(2, 10), Burst(1, 20), Burst(4, 30)],
                 'transformers': [Burst(4, 50), Burst(4, 50), Burst(4, 51)]}),
        ('8+1', {'ours': [Burst(0.25, 10)], 'transformers': None})])
    shared = OrderedDict([('demo', {'ours': 200, 'transformers': 199, 'ours-int8': 150})])
    absent = [('openvino-int8', 'not installed')]
    lines = benchmark.table([FAST, SLOW, EIGHT], absent, workloads, results, shared).split('\n')
    assert lines == [
        '| engine | demo: tokens of 200 as float32 | 2 texts of 4 tokens at once (tokens/s) '
        '| first token after a prompt of 8 (s) | 2 texts of 4 tokens at once (peak MB) |',
        '| --- | --- | --- | --- | --- |',
        '| ours | 200 | 4 | 0.25 | 30 |',
        '| transformers | 199 | 2 (0.50; 0.38-0.75) | failed | 51 |',
        '| ours-int8 | 150 | - | - | - |',
        '| openvino-int8 | not installed | | | |']
