"""flags.py: a function as a command line, driven as a user drives it: pipes, a terminal, Ctrl-C, closed streams."""
import inspect
import os
import re
import runpy
import signal
import subprocess

import pytest

import convert
import download_model
import evaluate
import generate_dataset
import generate_unconditional_samples
import gpt2
from gpt2.system import flags
import interactive_conditional_samples
import serve
import train
from helpers.paths import ROOT
from helpers.processes import SECONDS, Conversation, environment, finished


# parse: which call a command line spells

def paint(name='wall', coats: int = None, share=0.5, dry=False, litres=1):
    """Paint something.

    Args:
        name: what to paint
        coats: how many layers; None is as many as it takes
        share: how much of it
        dry: whether to wait
        litres: of paint
    """
    raise AssertionError('it was called')


def values(arguments):
    """{flag: value} of paint that a command line spells, those that it does not mention among them."""
    positional, named = flags.parse(paint, arguments)
    return inspect.signature(paint).bind(*positional, **named).arguments


@pytest.mark.parametrize('arguments, changes', [
    ([], {}),
    (['--coats', '3', '--litres=-2'], {'coats': 3, 'litres': -2}),
    (['--share', '1', '--name', 'door'], {'share': 1, 'name': 'door'}),
    (['--share=1e-3'], {'share': 0.001}),
    (['--dry'], {'dry': True}),
    (['--nodry'], {'dry': False}),
    (['--coats', 'None'], {'coats': None}), (['--coats', '9' * 18], {'coats': 10 ** 18 - 1}),
    (['door', '3', '--litres', '4'], {'name': 'door', 'coats': 3, 'litres': 4})])
def test_a_command_line_is_a_call(arguments, changes):
    """The function is not called yet. Values without a flag are taken in the order of the parameters."""
    expected = {'name': 'wall', 'coats': None, 'share': 0.5, 'dry': False, 'litres': 1}
    expected.update(changes)
    assert values(arguments) == expected


@pytest.mark.parametrize('name', ['7', '007', '1e3', 'a,b', '[a]', '2019-02-14', 'True'])
def test_text_stays_as_it_was_typed(name):
    """A model or a folder may be called 1e3 or a,b; Fire would make a number or a tuple of it."""
    assert values(['--name', name])['name'] == name


@pytest.mark.parametrize('name', ['--coats', '--', '-h', '--help', '--coats=3', '-', '', 'a=b', '--no such flag'])
def test_text_that_looks_like_a_flag_can_be_given_with_an_equals_sign(name):
    assert values(['--name=' + name, '--coats', '3']) == {
        'name': name, 'coats': 3, 'share': 0.5, 'dry': False, 'litres': 1}


@pytest.mark.parametrize('arguments', [
    ['-q', '1'], ['a', '1', '1', 'True', '1', 'b c: d'],
    ['--', '--trace'], ['--coats', '3', '--', '--interactive'], ['--']])  # after -- would come flags of Fire's own
def test_parse_refuses_what_the_function_does_not_take_and_lists_its_flags(arguments):
    unexpected = [word for word in arguments if word in ('-q', 'b c: d', '--')][0]
    with pytest.raises(ValueError, match=r'%s .*--name --coats --share --dry --litres' % unexpected):
        flags.parse(paint, arguments)


@pytest.mark.parametrize('arguments, unknown, similar', [
    (['--coat', '3'], '--coat', '--coats'), (['door', '--coat=3', '2'], '--coat', '--coats'),
    (['--lites=2', '--coats', '3'], '--lites', '--litres'), (['--lit-res', '2'], '--lit-res', '--litres'),
    (['-coat', '3'], '-coat', '--coats'), (['--no-dry'], '--no-dry', '--nodry'), (['--quick'], '--quick', None),
    (['--name', '--colour'], '--colour', None)])
def test_parse_names_an_unknown_flag_and_a_similar_one(arguments, unknown, similar):
    with pytest.raises(ValueError) as caught:
        flags.parse(paint, arguments)
    message = str(caught.value)
    assert message.startswith('unknown flag %s%s ' % (unknown, '; did you mean %s?' % similar if similar else ''))
    assert '--name --coats --share --dry --litres' in message and ('did you mean' in message) == bool(similar)


@pytest.mark.parametrize('arguments, message', [
    (['--coats', 'two'], r'--coats is two; it must be a whole number of at most 18 digits'),
    (['--coats', '2.0'], r'--coats is 2.0; it must be a whole number of at most 18 digits'),
    (['--coats', ''], r'--coats is empty; it must be a whole number of at most 18 digits'),
    (['--coats'], r'--coats has no value; it must be a whole number of at most 18 digits'),
    (['--coats', 'True'], r'--coats is True; it must be a whole number of at most 18 digits'),
    (['--name', '--coats', '3'], r'--name has no value; it must be text'),
    (['--coats', '3', '--name'], r'--name has no value; it must be text'),
    (['--coats', '1' + '0' * 18], r'--coats is 10{18}; it must be a whole number of at most 18 digits'),
    (['--share', '-1' + '0' * 48], r'--share is -10{48}; it must be a number of at most 18 digits'),
    (['--share', 'nan'], r'--share is nan; it must be a number of at most 18 digits'),
    (['--share', '1e999'], r'--share is 1e999; it must be a number of at most 18 digits'),
    (['--litres', 'None'], r'--litres is None; it must be a whole number of at most 18 digits'),
    (['--share', 'half'], r'--share is half; it must be a number of at most 18 digits'),
    (['--share'], r'--share has no value; it must be a number of at most 18 digits'),
    (['--share', '[1]'], r'--share is \[1\]; it must be a number of at most 18 digits'),
    (['--dry', '1'], r'--dry is 1; it must be True or False'),
    (['door', '2.5'], r'--coats is 2.5; it must be a whole number of at most 18 digits')])
def test_a_value_of_the_wrong_type_is_refused(arguments, message):
    with pytest.raises(ValueError, match='^%s$' % message):
        flags.parse(paint, arguments)


def test_a_required_value_that_is_missing_is_asked_for():
    with pytest.raises(ValueError, match=r'data.*the flags are --data --steps'):
        flags.parse(lambda data, steps=1: None, ['--steps', '3'])


# choose: several functions in one script

def test_the_first_argument_names_a_command():
    assert flags.choose({'paint': paint, 'sort': sorted}, ['paint', 'door', '--dry']) == (paint, ['door', '--dry'])
    assert flags.choose(paint, ['door']) == (paint, ['door'])
    assert flags.choose({'paint': paint}, ['paint', '--help']) == (paint, ['--help']), 'the help of that command'


@pytest.mark.parametrize('arguments', [[], ['plant'], ['--name', 'paint']])
def test_an_unknown_command_is_refused_with_those_that_there_are(arguments):
    with pytest.raises(ValueError, match='the commands are paint, sort'):
        flags.choose({'sort': sorted, 'paint': paint}, arguments)


# --help

HELPED = '''
def main(name='wall', coats: int = None):
    """Paint something.

    Args:
        name: what to paint
        coats: how many layers
    """
    print('it was called')
'''


@pytest.mark.parametrize('arguments', [['--help'], ['-h'], ['door', '3', '--', '--help'], ['--nmae', 'door', '--help']],
                         ids=' '.join)
def test_help_explains_every_flag_whatever_else_is_said(script, arguments):
    status, stdout, stderr = finished(script(HELPED) + arguments)
    shown = stdout.decode('utf-8')
    assert status == 0
    for words in ('Paint something.', '--name', "'wall'", 'what to paint', '--coats', 'None', 'how many layers'):
        assert words in shown, shown
    assert 'called' not in shown and not stderr


def test_help_describes_shared_flags_that_the_docstring_does_not(script):
    """A description in the docstring comes first."""
    status, stdout, stderr = finished(script('''
def main(seed=0, top_k=40, coats=3, models_dir='models'):
    """Paint something.

    Args:
        seed: of the pattern
        coats: how many layers, from the
            top_k: to the lowest
    """
''') + ['--help'])
    shown = stdout.decode('utf-8')
    assert (status, stderr) == (0, b'')
    assert 'of the pattern' in shown and flags.SHARED_HELP['seed'] not in ' '.join(shown.split())
    for name in ('top_k', 'models_dir'):
        assert flags.SHARED_HELP[name] in ' '.join(shown.split())


@pytest.mark.parametrize('command', [commands[name] for commands in (evaluate.COMMANDS, convert.COMMANDS)
                                     for name in sorted(commands)] + [
    download_model.download, generate_dataset.generate_dataset, generate_unconditional_samples.sample_model,
    interactive_conditional_samples.interact_model, serve.serve, train.train], ids=lambda command: command.__name__)
def test_help_of_every_command_describes_every_flag(command):
    """In its docstring or in SHARED_HELP."""
    blocks = re.findall(r'\n    (?:-., )?--(\w+)=.*((?:\n        .*)+)', flags.help_text(command))
    assert {name for name, _ in blocks} >= {name for name, parameter in inspect.signature(command).parameters.items()
                                            if parameter.default is not parameter.empty}
    for name, lines in blocks:
        assert not re.match('(Type|Default): ', lines.split('\n')[-1].strip()), name


def test_version_is_printed_whatever_else_is_said(script):
    for arguments in (['--version'], ['door', '--coats', '3', '--version']):
        status, stdout, stderr = finished(script(HELPED) + arguments)
        assert (status, stdout.decode('utf-8').strip(), stderr) == (0, 'gpt-2 ' + gpt2.__version__, b'')


def test_help_on_a_terminal(script):
    with Conversation(script(HELPED) + ['--help'], terminal=True, env=environment(PAGER='cat')) as terminal:
        status, shown = terminal.end()
    assert status == 0 and b'what to paint' in shown and b'how many layers' in shown


def test_help_lists_the_commands(script):
    status, stdout, stderr = finished(script('def paint():\n    """Paint something."""\n'
                                             'def sort():\n    """Put in order.\n\n    Slowly."""\n'
                                             'main = {"sort": sort, "paint": paint}') + ['--help'])
    shown = stdout.decode('utf-8')
    assert status == 0 and 'Slowly' not in shown and not stderr
    assert shown.index('paint') < shown.index('Paint something.') < shown.index('sort') < shown.index('Put in order.')


def test_help_of_one_of_several_commands_shows_its_name(script):
    """What the synopsis shows can be typed as it is."""
    _, stdout, _ = finished(script('def paint(wall):\n    """Paint something."""\nmain = {"paint": paint}')
                            + ['paint', 'door', '--help'])
    assert b'script.py paint - Paint something.' in stdout and b'script.py paint WALL\n' in stdout


# run: how a process ends

@pytest.mark.parametrize('error', ['ValueError("not so")', 'FileNotFoundError("not so")', 'ImportError("not so")',
                                   'MemoryError("not so")', 'ValueError("not\\n  so")'])
def test_an_error_of_the_user_is_one_line_and_status_1(script, error):
    assert finished(script('def main():\n    raise ' + error)) == (1, b'', b'script.py: not so\n')


def test_control_characters_in_an_error_are_visible(script):
    """They come from names of files, among others, and could set a terminal's title or forge lines."""
    program = script('def main():\n    raise ValueError('
                     '"\\x1b]0;title\\x07, \\x9b2J \\u202e\\ta\\n\\x00\\udcc3\\udca4\\udcff")')
    assert finished(program) == (
        1, b'', 'script.py: \\x1b]0;title\\x07, \\x9b2J \\u202e a \\x00ä\\udcff\n'.encode('utf-8'))


def test_an_error_of_ours_shows_where_it_is(script):
    status, stdout, stderr = finished(script('def main():\n    return {}["not so"]'))
    assert (status, stdout) == (1, b'') and b'Traceback' in stderr and b"KeyError: 'not so'" in stderr


def test_a_mistyped_flag_is_one_line_and_status_1_and_nothing_is_run(script):
    status, stdout, stderr = finished(script(HELPED) + ['--nmae', 'door'])
    assert (status, stdout) == (1, b'') and b'it was called' not in stderr
    assert stderr.startswith(b'script.py: ') and stderr.count(b'\n') == 1
    assert b'--nmae' in stderr and b'--name --coats' in stderr


def test_a_script_does_not_wait_for_what_tensorflow_still_does_in_a_thread(script):
    program = script('import threading\ndef main():\n    threading.Thread(target=time.sleep, args=(%d,)).start()'
                     % (2 * SECONDS))
    assert finished(program) == (0, b'', b'')


def test_help_does_not_call_h_another_flag(script):
    """Fire offers the first letter of each flag, and -h is taken."""
    _, stdout, _ = finished(script('def main(hue=1):\n    """Paint."""') + ['--help'])
    assert b'--hue' in stdout and b'-h,' not in stdout


def test_what_was_printed_before_an_error_is_not_lost(script):
    program = script('def main():\n    print("half")\n    raise ValueError("not so")')
    assert finished(program) == (1, b'half\n', b'script.py: not so\n')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='needs /dev/full, a disk without room')
@pytest.mark.parametrize('n_lines, outputs', [(1, []), (10000, []), (1, ['out'])], ids=str)
def test_a_full_disk_is_one_line_and_status_1(script, n_lines, outputs):
    """Whether it is noticed while printing or at the last flush, and whatever else the command writes."""
    program = script('def main(out="file"):\n    for line in range(%d):\n        print(line)' % n_lines, outputs)
    status, _, stderr = finished(['sh', '-c', 'exec "$@" >/dev/full', 'sh'] + program)
    assert (status, stderr) == (1, b'script.py: [Errno 28] No space left on device\n')


@pytest.mark.parametrize('how', ['', ', flush=True'])
def test_head_takes_what_it_wants_and_ends_the_script(script, how):
    """Where no flag names a file to write."""
    program = script('def main(out: str = None):\n    while True:\n        print("sample"%s)' % how, ['out'])
    with Conversation(program) as running:
        assert running.read_until(b'\n') == b'sample\n'
        running.process.stdout.close()
        assert running.process.wait(SECONDS) == 0
        assert running.stderr() == b''


WRITING = """
def main(out: str = None):
    for _ in range(3):
        print("line", flush=True)
        print("log", file=sys.stderr)
        sys.stdin.readline()
    with open(out or os.devnull, "w") as file:
        file.write("whole")
    print("done")
"""


@pytest.mark.parametrize('number', [None, signal.SIGINT])
def test_nobody_reading_does_not_end_a_command_that_writes_files(script, tmp_path, number):
    """Whether `2>&1 | head` has what it wants, or Ctrl-C has ended `tee` first. What is to be saved is saved."""
    path = tmp_path / 'file'
    text = WRITING.replace('    for', '    with process.interruptible(int):\n     for', 1) if number else WRITING
    with subprocess.Popen(script(text, ['out']) + ['--out', str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=environment()) as process:
        assert process.stdout.readline() == b'line\n'
        process.stdout.close()
        if number:
            process.send_signal(number)
        process.stdin.write(b'\n' * 3)
        process.stdin.close()
        assert process.wait(SECONDS) == (128 + number if number else 0)
    assert path.read_bytes() == b'whole'


def test_nobody_reading_errors_does_not_end_a_command(script):
    """Whose result is on stdout."""
    process = subprocess.Popen(script(WRITING), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment())
    process.stderr.close()
    process.stderr = None
    assert process.communicate(b'\n' * 3, timeout=SECONDS)[0] == b'line\n' * 3 + b'done\n' and process.returncode == 0


@pytest.mark.parametrize('command, outputs', [
    ('src/train.py', ['run_name']), ('src/generate_dataset.py', ['out']), ('download_model.py', ['name']),
    ('src/evaluate.py', ['chart', 'html', 'jsonl']), ('src/generate_unconditional_samples.py', []),
    ('src/interactive_conditional_samples.py', [])])
def test_every_command_says_which_files_it_writes(monkeypatch, command, outputs):
    """So that it goes on without readers when one of these flags is given."""
    calls = []
    monkeypatch.setattr(flags, 'run', lambda function, outputs=(): calls.append((function, outputs)))
    runpy.run_path(os.path.join(ROOT, command), run_name='__main__')
    (function, found), = calls
    parameters = [set(inspect.signature(one).parameters) for one in
                  (function.values() if isinstance(function, dict) else [function])]
    assert sorted(found) == outputs and set(outputs) <= set.union(*parameters)


def test_a_pipe_that_nobody_reads_is_noticed_at_the_last_flush_too(script):
    assert finished(['sh', '-c', '{ sleep 0.5; "$@"; echo $? >&2; } | true', 'sh'] + script(
        'def main():\n    print("sample")')) == (0, b'', b'0\n')


@pytest.mark.slow
@pytest.mark.parametrize('closing', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_a_closed_stream_is_an_empty_one(script, closing):
    """As a service or cron may start it."""
    program = script('def main(path):\n    line = sys.stdin.readline()\n    print("out")\n'
                     '    print("err", file=sys.stderr)\n'
                     '    with open(path, "w") as file:\n        file.write(line + "end")')
    path = os.path.join(os.path.dirname(program[1]), 'file')
    status, stdout, stderr = finished(['sh', '-c', 'exec "$@" ' + closing, 'sh'] + program + [path], b'in ')
    assert status == 0, stderr
    assert stdout == (b'' if '>&- 2' in closing or closing == '>&-' else b'out\n')
    assert stderr == (b'' if '2>&-' in closing else b'err\n')
    with open(path) as file:
        assert file.read() == ('end' if '<&-' in closing else 'in end')


def test_a_stream_that_has_only_write_is_enough(script, tmp_path):
    """As an environment may install it for all programs."""
    (tmp_path / 'sitecustomize.py').write_text(
        'import os, sys\nclass Stream:\n    def __init__(self, number):\n        self.number = number\n'
        '    def write(self, text):\n        os.write(self.number, text.encode("utf-8"))\n'
        'sys.stdout, sys.stderr = Stream(1), Stream(2)\n')
    program = script('def main():\n    print("out", flush=True)\n    raise ValueError("not so")')
    assert finished(program, env=environment(PYTHONPATH=str(tmp_path))) == (1, b'out\n', b'script.py: not so\n')


# The streams' encoding

@pytest.mark.parametrize('changes', [{'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'},
                                     {'PYTHONIOENCODING': 'ascii'}, {'PYTHONIOENCODING': 'latin-1'}], ids=str)
def test_streams_are_utf_8_whatever_the_locale(script, changes):
    """Bytes that are no UTF-8 come in as U+FFFD; half a surrogate pair goes out as a question mark.

    Only a line feed ends a line, as in a file of prompts.
    """
    program = script('def main():\n    for line in sys.stdin:\n        print(ascii(line), line, end="")\n'
                     '    print("\\ud800", "\\u00e9\\u4e2d", file=sys.stderr)')
    text = 'é中😀\n'.encode('utf-8')
    status, stdout, stderr = finished(program, text + b'a\xffb\xc3\r\nend\rend', env=environment(**changes))
    assert (status, stderr) == (0, '? é中\n'.encode('utf-8'))
    assert stdout == (b"'\\xe9\\u4e2d\\U0001f600\\n' " + text
                      + "'a\\ufffdb\\ufffd\\r\\n' a\ufffdb\ufffd\r\n'end\\rend' end\rend".encode('utf-8'))


def test_paths_are_printed_with_the_bytes_that_they_have(script):
    """Python decodes bytes that are not of the locale's encoding to surrogates: in a C locale, all of UTF-8."""
    program = script('def main():\n    print("/\\udcc3\\udca4\\ud800")\n    print("/\\udcff", file=sys.stderr)')
    assert finished(program) == (0, '/ä?\n'.encode('utf-8'), b'/\xff\n')


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_lines_are_not_kept_back(script, unbuffered):
    """On stderr ever, on stdout where PYTHONUNBUFFERED asks for it, as many containers do."""
    text = 'def main():\n    print("line", file=sys.%s)\n    sys.stdin.readline()'
    with Conversation(['sh', '-c', 'exec "$@" 2>&1', 'sh'] + script(text % ('stdout' if unbuffered else 'stderr')),
                      env=environment(PYTHONUNBUFFERED=unbuffered)) as running:
        assert running.read_until(b'line\n') == b'line\n'
        running.say(b'\n')
        assert running.end() == (0, b'')
