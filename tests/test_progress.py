"""progress.py: a bar on a terminal, and a line now and then without one."""
import contextlib
import io
import types

import pytest

from gpt2.system import progress


REPORT_EVERY_SECONDS = progress.REPORT_EVERY_SECONDS  # before conftest.py changes it for the other tests


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time that progress.py sees: clock.seconds."""
    now = types.SimpleNamespace(seconds=1000)
    monkeypatch.setattr(progress, 'REPORT_EVERY_SECONDS', REPORT_EVERY_SECONDS)
    monkeypatch.setattr(progress, 'time', types.SimpleNamespace(time=lambda: now.seconds))
    return now


def on_terminal():
    """A block whose stderr is a terminal."""
    return contextlib.redirect_stderr(Terminal())


def in_log():
    """A block whose stderr is not a terminal."""
    return contextlib.redirect_stderr(io.StringIO())


def test_progress_on_a_terminal_is_a_bar_with_figures():
    with on_terminal() as terminal, progress.Progress(4, unit='rows', label='making') as shown:
        shown.advance(3, '900 tokens/s', now=True)
    last = terminal.getvalue().split('\r')[-1]
    assert last.startswith('making: ') and '3/4' in last and ' rows/s' in last and '900 tokens/s' in last
    assert '3 of 4' not in terminal.getvalue()


def test_progress_on_a_terminal_starts_where_it_was():
    with on_terminal() as terminal, progress.Progress(10, unit='steps', initial=7) as shown:
        shown.advance(1)
    assert '8/10' in terminal.getvalue()


def test_progress_on_a_terminal_scales_units():
    with on_terminal() as terminal, progress.Progress(5 * 10 ** 6, unit='B', unit_scale=True) as shown:
        shown.advance(2 * 10 ** 6)
    assert '2.00M/5.00M' in terminal.getvalue() and 'B/s' in terminal.getvalue()


@pytest.mark.parametrize('leave', [True, False])
def test_progress_bar_stays_or_goes_at_the_end(leave):
    with on_terminal() as terminal, progress.Progress(1, unit='rows', leave=leave) as shown:
        shown.advance(1)
    last = terminal.getvalue().split('\r')[-1]
    assert last.endswith('\n') if leave else not last.strip()


def test_progress_that_is_disabled_shows_nothing(clock):
    with on_terminal() as terminal, progress.Progress(1, unit='rows', enabled=False) as shown:
        clock.seconds += 61
        shown.advance(1, now=True)
    assert terminal.getvalue() == ''


def test_progress_without_a_terminal_is_a_line_each_minute(clock):
    with in_log() as log, progress.Progress(10, unit='rows') as shown:
        for _ in range(5):
            clock.seconds += 31
            shown.advance(1, '9 tokens/s')
    assert log.getvalue().splitlines() == [
        '2 of 10 rows: 9 tokens/s, 04:08 left', '4 of 10 rows: 9 tokens/s, 03:06 left']


def test_progress_without_a_terminal_reports_on_request_and_then_waits_a_minute(clock):
    with in_log() as log, progress.Progress(10, unit='rows') as shown:
        clock.seconds += 40
        shown.advance(1, 'now', now=True)
        clock.seconds += 40
        shown.advance(1)
    assert log.getvalue() == '1 of 10 rows: now, 06:00 left\n'


@pytest.mark.parametrize('options, n, line', [
    (dict(total=10, unit='steps', label='run'), 0, 'run: 0 of 10 steps: x'),  # how fast it is cannot be known yet
    (dict(total=10, unit='steps', initial=6), 2, '8 of 10 steps: x, 00:40 left'),
    (dict(total=None, unit='stories'), 2, '2 stories: x'),
    (dict(total=8 * 10 ** 6, unit='B', unit_scale=True), 2 * 10 ** 6, '2.00M of 8.00MB: x, 02:00 left')])
def test_progress_line(clock, options, n, line):
    with in_log() as log, progress.Progress(**options) as shown:
        clock.seconds += 40
        shown.advance(n, 'x', now=True)
    assert log.getvalue() == line + '\n'


def test_progress_line_without_figures():
    with in_log() as log, progress.Progress(None, unit='stories', label='reading') as shown:
        shown.advance(0, now=True)
    assert log.getvalue() == 'reading: 0 stories\n'


def test_report_is_printed_above_a_bar():
    with on_terminal() as terminal, progress.Progress(4, unit='rows') as shown:
        shown.advance(1)
        progress.report('waiting')
        shown.advance(3)
    before, after = terminal.getvalue().split('waiting\n')
    assert before.endswith('\r') and '4/4' in after


def test_report_is_flushed():
    """Python before 3.9 buffers a stderr that is not a terminal."""
    raw = io.BytesIO()
    with contextlib.redirect_stderr(io.TextIOWrapper(io.BufferedWriter(raw), encoding='utf-8')):
        progress.report('waiting')
        assert raw.getvalue() == b'waiting\n'


def test_report_makes_control_characters_visible():
    """Also a line feed in a file's name, which could forge a line of a log. Its own lines are given one by one."""
    with in_log() as log:
        progress.report('a\x1b[2J\x9b1A\nforged', 'tab\tstays')
        with progress.Progress(2, unit='rows', label='\x1b]0;title\x07') as shown:
            shown.advance(1, now=True)
    assert log.getvalue().startswith('a\\x1b[2J\\x9b1A\\x0aforged\ntab\tstays\n\\x1b]0;title\\x07: 1 of 2 rows')


@pytest.mark.parametrize('stderr', [None, types.SimpleNamespace(write=lambda text: None)], ids=['none', 'only write'])
def test_progress_and_report_need_no_console(stderr):
    """pythonw and PyInstaller's programs have none."""
    with contextlib.redirect_stderr(stderr), progress.Progress(4, unit='rows') as shown:
        progress.report('waiting')
        shown.advance(1, now=True)
