"""The documentation: its examples run, its links lead somewhere, its versions agree, and it stays within its budgets.

A block of code says in its first line what it is:
    ```bash, ```python          an example, which is run in a copy of the repository, page by page in order
    ```bash not run: REASON     an example that cannot run within seconds on any machine
    ```bash needs PACKAGE       an example that is run where this package is installed
    ```bash with a server       an example that is run while serve.py serves the demo model, on another port than 8000
    ```output                   what the example above prints; [...] stands for anything
    ```text, ```yaml, ...       no example
"""
import collections
import glob
import importlib.util
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import convert
import download_model
import evaluate
import generate_dataset
import generate_unconditional_samples
import gpt2
from gpt2.system import flags
from helpers.paths import ROOT, SRC, TESTS
from helpers.processes import Conversation, environment, finished
import interactive_conditional_samples
import serve
import train

PAGES = sorted(['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'gpt-2-samples/README.md', 'models/demo/README.md']
               + ['docs/' + name for name in os.listdir(os.path.join(ROOT, 'docs')) if name.endswith('.md')])
NO_EXAMPLES = 'docs/design.md', 'docs/style.md'  # their blocks are parts of the code
SHOWN = 'output', 'text', 'yaml', 'bibtex'
COMMANDS = {
    'download_model.py': download_model.download, 'src/train.py': train.train, 'src/evaluate.py': evaluate.COMMANDS,
    'src/convert.py': convert.COMMANDS, 'src/serve.py': serve.serve,
    'src/generate_dataset.py': generate_dataset.generate_dataset,
    'src/generate_unconditional_samples.py': generate_unconditional_samples.sample_model,
    'src/interactive_conditional_samples.py': interactive_conditional_samples.interact_model}

# page: a path.  line: its number.  language: the first word of its first line.  mark: the words behind it.
# text: what is inside.  output: the text of the block ```output behind it, or None.
Block = collections.namedtuple('Block', 'page line language mark text output')


def read(page):
    with open(os.path.join(ROOT, page), encoding='utf-8') as file:
        return file.read()


def blocks_of(page):
    """The Blocks of a page."""
    found = []
    text = read(page)
    for match in re.finditer(r'^```(\w*) *(.*)\n((?:.*\n)*?)```$', text, re.MULTILINE):
        language, mark, inside = match.groups()
        if language == 'output':
            assert found, '%s begins with ```output' % page
            found[-1] = found[-1]._replace(output=inside)
        else:
            found.append(Block(page, text.count('\n', 0, match.start()) + 1, language, mark, inside, None))
    return found


BLOCKS = [block for page in PAGES if page not in NO_EXAMPLES for block in blocks_of(page)]
RUN = [block for block in BLOCKS if block.language in ('bash', 'python') and (
    not block.mark or block.mark.startswith('needs ') and importlib.util.find_spec(block.mark.split()[1]))]


def place(block):
    return '%s:%d' % (block.page, block.line)


# Examples

@pytest.mark.parametrize('block', BLOCKS, ids=place)
def test_block_is_run_or_says_why_not(block):
    if block.language in ('bash', 'python'):
        assert not block.mark or re.match(r'not run: .{10}|needs \w+$|with a server$', block.mark), (
            'write ```%s not run: REASON' % block.language)
    else:
        assert block.language in SHOWN and not block.mark, 'write ```bash, ```python or one of %s' % (SHOWN,)


@pytest.mark.slow
def test_examples_run_and_print_what_the_page_shows(tmp_path):
    """Each page in a copy of the repository: folders are linked, new files stay in the copy."""
    folders = {page: tmp_path.joinpath(page.replace('/', '-')) for page in {block.page for block in RUN}}
    for folder in folders.values():
        folder.joinpath('models').mkdir(parents=True)
        for path in ('src', 'tests', 'gpt-2-samples', 'models/demo'):
            folder.joinpath(path).symlink_to(os.path.join(ROOT, path))
    examples = tmp_path.joinpath('examples.json')
    examples.write_text(json.dumps([[str(folders[block.page]), block.language, block.text] for block in RUN]))
    env = environment(PYTHONPATH=SRC, PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH'])
    process = subprocess.Popen([sys.executable, os.path.join(TESTS, 'helpers', 'examples.py'), str(examples)],
                               env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = process.communicate(timeout=3600)  # which only ends a hang
    assert process.returncode == 0, stderr.decode('utf-8')
    for block, printed in zip(RUN, json.loads(stdout.decode('utf-8').splitlines()[-1])):
        check_output(block, printed)


def check_output(block, printed):
    pattern = '.*' if block.output is None else '.*'.join(map(re.escape, block.output.split('[...]')))
    assert re.match(pattern + r'\Z', printed, re.DOTALL), '%s: now it prints\n%s' % (place(block), printed)


@pytest.mark.slow
def test_examples_with_a_server_run_and_print_what_the_page_shows():
    """As they are, but for the port."""
    pytest.importorskip('openai', minversion='1', reason='needs openai')
    blocks = [block for block in BLOCKS if block.mark == 'with a server']
    with Conversation([sys.executable, os.path.join(SRC, 'serve.py'), '--model_name', 'demo', '--port', '0']) as server:
        port = re.search(r':(\d+)/', server.read_until(b'/\n').decode('utf-8')).group(1)
        for block in blocks:
            shell = {'bash': ['bash', '-euo', 'pipefail', '-c'], 'python': [sys.executable, '-c']}[block.language]
            status, stdout, stderr = finished(shell + [block.text.replace(':8000/', ':%s/' % port)])
            assert status == 0, stderr.decode('utf-8')
            check_output(block, stdout.decode('utf-8'))
    assert {block.language for block in blocks} == {'bash', 'python'}


def commands_in(text):
    """(script, arguments) of each command in the text, whether it is run or not, that starts one of COMMANDS."""
    for line in re.sub(r'\\\n', ' ', text).splitlines():
        words = shlex.split(line, comments=True)
        for start, word in enumerate(words):
            if word in COMMANDS and start and words[start - 1].startswith('python'):
                yield word, list(itertools.takewhile(lambda word: word[:1] not in tuple('|<>'), words[start + 1:]))


@pytest.mark.parametrize('block', [block for block in BLOCKS if block.language == 'bash'], ids=place)
def test_flags_and_targets_in_a_block_exist(block):
    """Also those of commands that are not run."""
    for script, arguments in commands_in(block.text):
        if '--help' not in arguments:
            flags.parse(*flags.choose(COMMANDS[script], arguments))
    for target in re.findall(r'(?:^|[ (])make (?:--silent )?(\w+)', block.text, re.MULTILINE):
        assert re.search('^%s:' % target, read('Makefile'), re.MULTILINE), target


# Links

def sentences(page):
    """The text of a page without its blocks of code."""
    return re.sub(r'^```.*?^```$', '', read(page), flags=re.MULTILINE | re.DOTALL)


def links(page):
    """[(path, anchor)] of the links of a page into the repository."""
    found = []
    for link in re.findall(r'\]\(([^)\s]+)\)', sentences(page)):
        if not re.match('https?:', link):
            path, _, anchor = link.partition('#')
            found.append((os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page, anchor))
    return found


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    return [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
            for heading in re.findall('^#+ (.*)$', sentences(page), re.MULTILINE)]


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in links(page):
        assert os.path.exists(os.path.join(ROOT, target)), target
        assert not anchor or anchor in anchors(target), '%s#%s' % (target, anchor)


def test_pages_that_messages_and_help_name_exist():
    for path in glob.glob(os.path.join(ROOT, 'src', '**', '*.py'), recursive=True):
        for page in re.findall(r'docs/\w+\.md', read(path)):
            assert page in PAGES, path


def test_every_page_and_picture_can_be_reached_from_the_readme():
    reached, new = set(), ['README.md']
    while new:
        page = new.pop()
        if os.path.isdir(os.path.join(ROOT, page)):
            page += '/README.md'
        if page not in reached and page in PAGES:
            new.extend(target for target, _ in links(page))
        reached.add(page)
    pictures = ['docs/pictures/' + name for name in os.listdir(os.path.join(ROOT, 'docs', 'pictures'))]
    assert set(PAGES + [name for name in pictures if name.endswith('.png')]) - reached == set()


# What sentences and tables name

def test_flags_in_sentences_and_tables_exist():
    """Flags of other programs are listed here."""
    known = {'help', 'version', 'array', 'device', 'local-dir', 'publish', 'quick', 'silent'}
    for command in COMMANDS.values():
        for function in [command] if callable(command) else command.values():
            known.update(inspect.signature(function).parameters)
    for page in PAGES:
        for code in re.findall('`([^`]+)`', sentences(page)):
            for flag in re.findall(r'(?:^| )--([\w-]+)', code):
                assert flag in known, '%s: --%s' % (page, flag)


def test_table_of_the_sampling_flags_has_all_of_them_with_their_defaults():
    """The default of None stands for a number that the model determines, or for a new one each time."""
    rows = [[cell.strip(' `').split(',')[0] for cell in line.split('|')[1:4]]
            for line in read('docs/sampling.md').splitlines() if line.startswith('| `--')]
    shown = {'1': 1, '0': 0, 'off': False, '1024': None, '512': None, '': None}
    for column, command in (1, 'generate_unconditional_samples.py'), (2, 'interactive_conditional_samples.py'):
        parameters = inspect.signature(COMMANDS['src/' + command]).parameters
        assert {row[0].lstrip('-'): shown.get(row[column], row[column]) for row in rows} == {
            name: parameter.default for name, parameter in parameters.items()}


def test_files_in_sentences_exist_and_the_layout_names_every_module():
    files = ['/download_model.py'] + [
        path[len(ROOT):] for folder in ('src', 'tests', 'benchmarks', 'docs', 'gpt-2-samples') for kind in ('py', 'sh')
        for path in glob.glob(os.path.join(ROOT, folder, '**', '*.' + kind), recursive=True)]
    for page in PAGES:
        if page != 'docs/style.md':  # it also shows how things should not be called
            for code in re.findall('`([^`]+)`', sentences(page)):
                for path in re.findall(r'(?:^| )([\w/.-]+\.(?:py|sh))\b', code):
                    assert any(file.endswith('/' + path) for file in files), '%s: %s' % (page, path)
    modules = {os.path.basename(file) for file in files
               if re.match(r'/(src/(gpt2/(fast/|system/)?)?|docs/pictures/)?\w+\.py$', file)}
    assert set(re.findall(r'\w+\.py\b', blocks_of('docs/design.md')[0].text)) == modules - {'__init__.py'}


# Budgets and versions

def test_budgets():
    """README.md is read in minutes, a picture loads at once."""
    assert len(read('README.md').splitlines()) <= 200
    assert len(read('README.md').split()) <= 1700
    pictures = os.path.join(ROOT, 'docs', 'pictures')
    for name in os.listdir(pictures):
        assert os.path.getsize(os.path.join(pictures, name)) < 200000, name


def test_every_picture_has_a_text_for_those_who_do_not_see_it():
    for page in PAGES:
        for alternative, _ in re.findall(r'!\[(.*?)\]\((.*?)\)', read(page)):
            assert len(alternative) > 20, page


def test_version_is_the_same_everywhere():
    assert '\nversion: %s\n' % gpt2.__version__ in read('CITATION.cff')
    assert re.search('^## (.*)', read('CHANGELOG.md'), re.MULTILINE).group(1) == gpt2.__version__


def test_make_alone_lists_every_target():
    """And `make version` prints the version."""
    if not shutil.which('make'):
        pytest.skip('needs make')
    shown = subprocess.check_output(['make', '--silent', '-C', ROOT], universal_newlines=True)
    targets = re.search(r'\.PHONY: help (.*)', read('Makefile')).group(1).split()
    assert sorted(re.findall(r'^make (\w+)', shown, re.MULTILINE)) == sorted(targets)
    version = subprocess.check_output(['make', '--silent', '-C', ROOT, 'version'], universal_newlines=True)
    assert version.startswith('gpt-2 %s, Python 3' % gpt2.__version__)


def test_git_leaves_files_with_checksums_alone():
    """Their bytes must be the same on Windows, where git may change the ends of lines."""
    lines = [line.split() for line in read('.gitattributes').splitlines() if line and not line.startswith('#')]
    assert {words[0] for words in lines if words[1:] == ['-text']} >= {
        'models/demo/*', '*.bpe', 'gpt-2-samples/*.txt', 'tests/held_out.txt'}
