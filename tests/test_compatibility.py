"""Rules for every source file: Python 3.5's grammar, TensorFlow 1.12's API, who imports whom, OpenAI's signatures."""
import ast
import collections
import functools
import glob
import importlib
import importlib.util
import inspect
import io
import os
import subprocess
import sys
import tokenize

import pytest

from helpers.paths import ROOT, SRC
from helpers.processes import SECONDS

SOURCES = sorted(glob.glob(os.path.join(SRC, '**', '*.py'), recursive=True) + glob.glob(os.path.join(ROOT, '*.py'))
                 + [os.path.join(ROOT, 'tests', 'helpers', 'tiny.py')])
EVERYTHING = sorted(SOURCES + glob.glob(os.path.join(ROOT, 'benchmarks', '*.py'))
                    + [path for path in glob.glob(os.path.join(ROOT, 'tests', '**', '*.py'), recursive=True)
                       if path not in SOURCES])
COMMANDS = ['convert', 'evaluate', 'generate_dataset', 'generate_unconditional_samples',
            'interactive_conditional_samples', 'serve', 'train']
LIBRARY = ['gpt2.sampler', 'sample', 'model', 'encoder', 'gpt2.checkpoint', 'gpt2.session', 'gpt2.corpus',
           'gpt2.chart', 'gpt2.releases', 'gpt2.fast', 'gpt2.system']
# For each package or module those that it may import (docs/design.md), all of them further up in this table. A package
# may also import from itself, but not in a circle. Commands may import everything but each other.
MAY_IMPORT = collections.OrderedDict([
    ('gpt2.system', []),
    ('gpt2.releases', []),
    ('gpt2.fast', ['gpt2.system']),
    ('model', ['gpt2.fast', 'gpt2.system.tf1']),
    ('encoder', ['gpt2.releases', 'gpt2.system']),
    ('gpt2.corpus', ['gpt2.system']),
    ('gpt2.chart', ['gpt2.system']),
    ('sample', ['model', 'gpt2.fast', 'gpt2.system.tf1']),
    ('gpt2.fast.numpy_loop', ['sample', 'gpt2.fast']),
    ('gpt2.session', ['gpt2.fast', 'gpt2.system']),
    ('gpt2.checkpoint', ['model', 'gpt2.session', 'gpt2.releases', 'gpt2.fast', 'gpt2.system']),
    ('gpt2.sampler', LIBRARY[1:]),
    ('gpt2.conversion', LIBRARY),
    ('gpt2.evaluation', LIBRARY),
    ('gpt2.generation', LIBRARY),
    ('gpt2.training', LIBRARY),
    ('gpt2.serving', LIBRARY + ['gpt2.evaluation.scorer']),
])
# These answer before TensorFlow is loaded, which takes seconds.
WITHOUT_TENSORFLOW = ['encoder', 'gpt2.corpus', 'gpt2.releases', 'gpt2.system']
WITH_SESSIONS = ['gpt2.checkpoint', 'gpt2.fast.xla', 'gpt2.session', 'gpt2.training.cluster']


def module_name(path):
    """'src/gpt2/fast/cache.py' -> 'gpt2.fast.cache', 'src/gpt2/__init__.py' -> 'gpt2'; None for a file outside src."""
    if path.startswith(SRC + os.sep):
        return os.path.relpath(path, SRC)[:-len('.py')].replace(os.sep, '.').replace('.__init__', '')
    return None


MODULES = {module_name(path): path for path in SOURCES if module_name(path)}
every_source = pytest.mark.parametrize('path', SOURCES, ids=lambda path: os.path.relpath(path, ROOT))
every_module = pytest.mark.parametrize('module', sorted(MODULES))


def parse(text):
    """The syntax tree of a text in Python 3.5's grammar. SyntaxError otherwise, as far as this Python can tell."""
    tree = ast.parse(text, **({'feature_version': (3, 5)} if sys.version_info >= (3, 8) else {}))
    newer = [node for node in ast.walk(tree) if type(node).__name__ in ('JoinedStr', 'AnnAssign')]
    if newer:
        raise SyntaxError('line %d: f-string or annotated variable' % newer[0].lineno)
    for line in commas_after_stars(text):
        raise SyntaxError('line %d: Python 3.5 allows no comma after *, *args or **kwargs in a def' % line)
    return tree


@functools.lru_cache(maxsize=None)
def tree_of(path):
    """The syntax tree of a file in Python 3.5's grammar. SyntaxError otherwise."""
    with open(path, encoding='utf-8') as file:
        return parse(file.read())


def commas_after_stars(text):
    """Line numbers of commas after the parameters of a def with a * or **, which newer Pythons accept silently."""
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline)
              if token.type not in (tokenize.NL, tokenize.COMMENT)]
    for start, token in enumerate(tokens):
        if token.string == 'def':
            depth, stars = 0, False
            for place in range(start, len(tokens) - 1):
                before, token = tokens[place:place + 2]
                depth += (token.string in '([{') - (token.string in ')]}') if token.type == tokenize.OP else 0
                stars = stars or depth == 1 and token.string in ('*', '**')
                if token.string == ')' and depth == 0:
                    if stars and before.string == ',':
                        yield before.start[0]
                    break


def imported_names(tree):
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            in_package = ['%s.%s' % (node.module, alias.name) for alias in node.names]
            yield from [name for name in in_package if name in MODULES] or [node.module]


@functools.lru_cache(maxsize=None)
def imports_of(module):
    """Those of our modules that a module imports. `import gpt2`, which holds its version only, is none."""
    return set(imported_names(tree_of(MODULES[module]))) & set(MODULES) - {'gpt2'}


def is_within(module, places):
    """Whether a module is one of these modules, or in one of these packages."""
    return any((module + '.').startswith(place + '.') for place in places)


def place_of(module):
    """The package or module of MAY_IMPORT that a module belongs to; None for a command."""
    return max((place for place in MAY_IMPORT if is_within(module, [place])), key=len, default=None)


@pytest.mark.parametrize('newer', [
    "f'{x}'", 'x: int = 1', 'def f(**k,): pass', 'def f(a, *,\n b, c=(1, 2), # why\n): pass', 'def f(*a,): pass'])
def test_grammar_check_sees_what_python_3_5_does_not_parse(newer):
    with pytest.raises(SyntaxError):
        parse(newer)


@pytest.mark.skipif(sys.version_info < (3, 8), reason='needs Python 3.8, whose ast knows older grammars')
@pytest.mark.parametrize('newer', [
    '1_000', 'print(x := 1)', 'async def f(): return [x async for x in y]', 'def f(a, /): pass'])
def test_grammar_check_sees_what_only_ast_can_see(newer):
    with pytest.raises(SyntaxError):
        parse(newer)


def test_grammar_check_accepts_what_python_3_5_parses():
    parse('def f(a, b=(1, *c),): g(*a, **b,)\ndef h(*, a, b): return lambda *c: c[1,]\n')


@pytest.mark.parametrize('path', EVERYTHING, ids=lambda path: os.path.relpath(path, ROOT))
def test_grammar_is_that_of_python_3_5(path):
    tree_of(path)


@pytest.mark.slow
def test_library_calls_exist_in_python_3_5():
    if importlib.util.find_spec('vermin') is None:
        pytest.skip('needs vermin')
    vermin = [sys.executable, '-c', 'import vermin; vermin.main()', '-t=3.5-', '--no-tips', '--violations']
    run = subprocess.Popen(vermin + SOURCES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    output, _ = run.communicate(timeout=SECONDS)
    assert run.returncode == 0, output


@every_source
def test_tensorflow_is_imported_in_tf1_alone_and_without_contrib(path):
    tree = tree_of(path)
    if os.path.basename(path) != 'tf1.py':
        assert not [name for name in imported_names(tree) if name.split('.')[0] == 'tensorflow']
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == 'gpt2.system.tf1':
                assert [alias.asname for alias in node.names] == [None] * len(node.names)
            elif isinstance(node, ast.Import):
                assert 'gpt2.system.tf1' not in [alias.name for alias in node.names], 'from gpt2.system.tf1 import tf'
    for node in ast.walk(tree):  # tf.contrib left with TensorFlow 2; tf.sort and argsort came with 1.13
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'tf':
            assert node.attr not in ('contrib', 'sort', 'argsort', 'compat', 'keras'), 'line %d' % node.lineno


@every_source
def test_text_files_are_opened_with_an_encoding(path):
    """The default is the locale's encoding: ASCII in a container, cp1252 on Windows."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'id', getattr(node.func, 'attr', None))
            if name in ('open', 'fdopen'):
                assert 'encoding' in [keyword.arg for keyword in node.keywords] or binary(node), 'line %d' % node.lineno


def binary(call):
    """Whether a call opens a file with a literal mode that has a b, or with os.open."""
    modes = call.args[1:2] + [keyword.value for keyword in call.keywords if keyword.arg == 'mode']
    owner = getattr(getattr(call.func, 'value', None), 'id', None)
    return owner == 'os' and call.func.attr == 'open' or any('b' in ast.literal_eval(mode) for mode in modes)


def test_imports_of_the_design_have_no_arrow_upwards():
    places = list(MAY_IMPORT)
    for number, place in enumerate(places):
        assert all(is_within(allowed, places[:number]) for allowed in MAY_IMPORT[place]), place


@every_module
def test_imports_follow_the_design(module):
    place = place_of(module)
    if place is None:
        assert module in COMMANDS + ['gpt2'], 'a new module: give it its place in MAY_IMPORT or COMMANDS'
    else:
        not_allowed = [name for name in imports_of(module)
                       if place_of(name) != place and not is_within(name, MAY_IMPORT[place])]
        assert not not_allowed, '%s may import %s' % (place, MAY_IMPORT[place])


@every_source
def test_imports_name_no_command(path):
    assert not set(imported_names(tree_of(path))) & set(COMMANDS)


def test_imports_do_not_go_in_a_circle():
    above = {module: imports_of(module) for module in MODULES}
    while above:
        lowest = {module for module, imported in above.items() if not imported & set(above)}
        assert lowest, 'these import each other: %s' % sorted(above)
        above = {module: imported for module, imported in above.items() if module not in lowest}


@pytest.mark.parametrize('module', [module for module in sorted(MODULES)
                                    if is_within(module, WITHOUT_TENSORFLOW) and module != 'gpt2.system.tf1'])
def test_imports_do_not_lead_to_tensorflow(module):
    """Not even from inside a function."""
    reached, new = set(), {module}
    while new:
        reached |= new
        new = set().union(*map(imports_of, new)) - reached
    assert 'gpt2.system.tf1' not in reached


def test_imports_of_a_package_cost_nothing():
    for module in MODULES:
        if MODULES[module].endswith('__init__.py'):
            tree = tree_of(MODULES[module])
            version = [node for node in tree.body[1:] if module == 'gpt2' and isinstance(node, ast.Assign)
                       and node.targets[0].id == '__version__' and isinstance(ast.literal_eval(node.value), str)]
            assert ast.get_docstring(tree) and tree.body[1:] == version, '%s holds more than a docstring' % module


def test_src_shows_the_three_modules_of_the_release_the_commands_and_the_package():
    assert sorted(name for name in os.listdir(SRC) if name != '__pycache__') == sorted(
        [name + '.py' for name in ['model', 'encoder', 'sample'] + COMMANDS] + ['gpt2'])


@every_module
def test_sessions_and_savers_are_made_in_few_modules(module):
    """So that every session has the same settings, and a graph only the savers it needs."""
    if module not in WITH_SESSIONS:
        tree = tree_of(MODULES[module])
        assert not [node for node in ast.walk(tree) if getattr(node, 'attr', None) in ('Session', 'Saver')]


@pytest.mark.parametrize('module, without', [
    ('encoder', ['tensorflow', 'numpy']), ('gpt2.releases', ['tensorflow', 'numpy']), ('gpt2.corpus', ['tensorflow']),
    ('gpt2.system.flags', ['tensorflow', 'numpy']), ('gpt2.evaluation.loading', ['tensorflow']),
    ('gpt2.training.run_folder', ['tensorflow']), ('gpt2.checkpoint', ['tensorflow']),
    ('generate_unconditional_samples', ['tensorflow']),
    ('interactive_conditional_samples', ['tensorflow']), ('convert', ['tensorflow']), ('evaluate', ['tensorflow']),
    ('serve', ['tensorflow']), ('train', ['tensorflow'])])
def test_imports_do_not_wait_for_tensorflow(module, without):
    """--help, a mistyped flag, a missing model and the tokenizer answer at once."""
    program = 'import sys; sys.path.insert(0, %r); import %s; print([name for name in %r if name in sys.modules])' % (
        SRC, module, without)
    assert subprocess.check_output([sys.executable, '-c', program], timeout=SECONDS).decode('ascii').strip() == '[]'


REQUIRED = inspect.Parameter.empty
BY_NAME, BY_PLACE = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


@pytest.mark.parametrize('name, kind, parameters', [
    ('encoder.get_encoder', BY_PLACE, [('model_name', REQUIRED)]),  # the first version
    ('encoder.get_encoder', BY_PLACE, [('model_name', REQUIRED), ('models_dir', 'models')]),  # later it had no default
    ('encoder.Encoder.encode', BY_PLACE, [('self', REQUIRED), ('text', REQUIRED)]),
    ('encoder.Encoder.decode', BY_PLACE, [('self', REQUIRED), ('tokens', REQUIRED)]),
    ('model.default_hparams', BY_PLACE, []),
    ('model.HParams.override_from_dict', BY_PLACE, [('self', REQUIRED), ('values', REQUIRED)]),
    ('model.past_shape', BY_NAME, [('hparams', REQUIRED), ('batch_size', None), ('sequence', None)]),
    ('model.model', BY_PLACE, [
        ('hparams', REQUIRED), ('X', REQUIRED), ('past', None), ('scope', 'model'), ('reuse', False)]),
    ('sample.top_k_logits', BY_PLACE, [('logits', REQUIRED), ('k', REQUIRED)]),
    ('sample.top_p_logits', BY_PLACE, [('logits', REQUIRED), ('p', REQUIRED)]),
    ('sample.sample_sequence', BY_NAME, [
        ('hparams', REQUIRED), ('length', REQUIRED), ('start_token', None), ('batch_size', None), ('context', None),
        ('temperature', 1), ('top_k', 0), ('top_p', 1)])])
def test_signatures_fit_code_written_for_openai_s_modules(name, kind, parameters):
    """The same names, defaults and, for positional parameters, the same order; what we add is optional."""
    found = attribute(name)
    ours = list(inspect.signature(found).parameters.values())
    if kind is BY_NAME:
        order = [parameter for parameter, _ in parameters]
        ours.sort(key=lambda parameter: order.index(parameter.name) if parameter.name in order else len(order))
    assert [(one.name, one.default) for one in ours[:len(parameters)]] == parameters
    assert all(one.kind is kind for one in ours[:len(parameters)])
    assert all(one.default is not REQUIRED for one in ours[len(parameters):])


@pytest.mark.parametrize('name, parameters', [
    ('gpt2.checkpoint.model_dir', [('model_name', REQUIRED), ('models_dir', 'models')]),
    ('gpt2.checkpoint.load_hparams', [('model_name', REQUIRED), ('models_dir', 'models')]),
    ('gpt2.checkpoint.restore', [
        ('sess', REQUIRED), ('model_name', REQUIRED), ('models_dir', 'models'), ('scope', 'model')]),
    ('gpt2.checkpoint.save', [('sess', REQUIRED), ('folder', REQUIRED), ('hparams', REQUIRED), ('source', REQUIRED)]),
    ('model.token_losses', [('logits', REQUIRED), ('tokens', REQUIRED)])])
def test_signatures_of_our_own_functions_stay(name, parameters):
    ours = list(inspect.signature(attribute(name)).parameters.values())
    assert [(one.name, one.default) for one in ours[:len(parameters)]] == parameters
    assert all(one.default is not REQUIRED for one in ours[len(parameters):])


def attribute(name):
    """The object with the name 'module.Class.function'."""
    module = max((module for module in MODULES if name.startswith(module + '.')), key=len)
    found = importlib.import_module(module)
    for part in name[len(module) + 1:].split('.'):
        found = getattr(found, part)
    return found
