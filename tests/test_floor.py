"""What holds for every source file: Python 3.5's grammar, TensorFlow 1.12's API, who imports whom, upstream's signatures."""
import ast
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

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SRC = os.path.join(ROOT, 'src')
SOURCES = sorted(glob.glob(os.path.join(SRC, '**', '*.py'), recursive=True) + glob.glob(os.path.join(ROOT, '*.py'))
                 + [os.path.join(ROOT, 'tests', 'tiny.py')])
SCRIPTS = ['evaluate', 'generate_dataset', 'generate_unconditional_samples', 'interactive_conditional_samples', 'train']
MODULES = {
    'cache': ['tf1'],
    'checkpoint': ['files', 'int8', 'kernels', 'model', 'process', 'releases', 'tf1'],
    'corpus': ['files', 'process'],
    'dataset': [],
    'dataset.maker': ['checkpoint', 'dataset.plan', 'encoder', 'sample', 'tf1'],
    'dataset.on_ray': ['checkpoint', 'dataset.maker', 'dataset.store', 'process'],
    'dataset.plan': [],
    'dataset.store': ['dataset.plan', 'files'],
    'encoder': ['files', 'releases'],
    'evaluation': [],
    'evaluation.benchmarks': ['corpus', 'evaluation.detokenize', 'releases'],
    'evaluation.detection': ['files'],
    'evaluation.detokenize': [],
    'evaluation.page': ['evaluation.protocols', 'files'],
    'evaluation.protocols': ['corpus', 'evaluation.benchmarks', 'evaluation.detokenize', 'process'],
    'evaluation.scorer': ['evaluation.protocols', 'kernels', 'model', 'process', 'tf1'],
    'evaluation.table': ['evaluation.benchmarks', 'files'],
    'files': [],
    'flags': ['process'],
    'int8': ['process', 'tf1'],
    'kernels': ['int8', 'process', 'tf1'],
    'model': ['kernels', 'tf1'],
    'process': [],
    'releases': [],
    'sample': ['cache', 'kernels', 'model', 'tf1', 'xla'],
    'tensor_bundle': [],
    'tf1': [],
    'training': [],
    'training.cluster': ['checkpoint', 'process', 'tf1', 'training.run_folder'],
    'training.graph': ['model', 'tf1', 'training.cluster'],
    'training.local_workers': ['process'],
    'training.record': ['files', 'tf1'],
    'training.run': ['checkpoint', 'corpus', 'files', 'sample', 'tf1', 'training.cluster', 'training.graph',
                     'training.record', 'training.run_folder'],
    'training.run_folder': ['checkpoint', 'corpus', 'encoder', 'files', 'model', 'releases'],
    'xla': ['int8', 'model', 'tf1'],
}
every_source = pytest.mark.parametrize('path', SOURCES, ids=lambda path: os.path.relpath(path, ROOT))


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def parse(text):
    """The syntax tree of a text that is Python 3.5; SyntaxError otherwise, as far as this Python can tell."""
    tree = ast.parse(text, **({'feature_version': (3, 5)} if sys.version_info >= (3, 8) else {}))
    newer = [node for node in ast.walk(tree) if type(node).__name__ in ('JoinedStr', 'AnnAssign')]
    if newer:
        raise SyntaxError('line %d: an f-string or the annotation of a variable' % newer[0].lineno)
    for line in commas_after_stars(text):
        raise SyntaxError('line %d: Python 3.5 takes no comma after *, *args or **kwargs of a def' % line)
    return tree


def commas_after_stars(text):
    """Lines on which the parameters of a def that has a * or ** end in a comma. Newer Pythons parse it as their own."""
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline)
              if token.type not in (tokenize.NL, tokenize.COMMENT)]
    for start, token in enumerate(tokens):
        if token.string == 'def':
            depth, stars = 0, False
            for before, token in zip(tokens[start:], tokens[start + 1:]):
                depth += (token.string in '([{') - (token.string in ')]}') if token.type == tokenize.OP else 0
                stars = stars or depth == 1 and token.string in ('*', '**')
                if token.string == ')' and depth == 0:
                    if stars and before.string == ',':
                        yield before.start[0]
                    break


def imported_names(tree):
    """Every module that a file imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            in_package = ['%s.%s' % (node.module, alias.name) for alias in node.names]
            modules = [name for name in in_package if name in MODULES]
            yield from modules or [node.module]


@pytest.mark.parametrize('newer', [
    "f'{x}'", 'x: int = 1', 'def f(**k,): pass', 'def f(a, *,\n b, c=(1, 2), # why\n): pass', 'def f(*a,): pass'])
def test_what_python_3_5_does_not_parse_is_seen(newer):
    with pytest.raises(SyntaxError):
        parse(newer)


@pytest.mark.skipif(sys.version_info < (3, 8), reason='needs Python 3.8, whose ast knows older grammars')
@pytest.mark.parametrize('newer', [
    '1_000', 'print(x := 1)', 'async def f(): return [x async for x in y]', 'def f(a, /): pass'])
def test_what_python_3_5_does_not_parse_is_seen_by_ast(newer):
    with pytest.raises(SyntaxError):
        parse(newer)


def test_what_python_3_5_does_parse_is_let_through():
    parse('def f(a, b=(1, *c),): g(*a, **b,)\ndef h(*, a, b): return lambda *c: c[1,]\n')


@every_source
def test_grammar_is_that_of_python_3_5(path):
    parse(read(path))


def test_library_calls_exist_in_python_3_5():
    if importlib.util.find_spec('vermin') is None:
        pytest.skip('needs vermin')
    vermin = [sys.executable, '-c', 'import vermin; vermin.main()', '-t=3.5-', '--no-tips', '--violations']
    run = subprocess.Popen(vermin + SOURCES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output


@every_source
def test_tensorflow_is_imported_in_tf1_alone_and_without_contrib(path):
    tree = parse(read(path))
    if os.path.basename(path) != 'tf1.py':
        assert not [name for name in imported_names(tree) if name.split('.')[0] == 'tensorflow']
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == 'tf1':
                assert [alias.asname for alias in node.names] == [None] * len(node.names)
            elif isinstance(node, ast.Import):
                assert 'tf1' not in [alias.name for alias in node.names], 'from tf1 import tf'
    for node in ast.walk(tree):  # tf.contrib left with TensorFlow 2; tf.sort and argsort came with 1.13
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == 'tf':
            assert node.attr not in ('contrib', 'sort', 'argsort', 'compat', 'keras'), 'line %d' % node.lineno


@every_source
def test_text_files_are_opened_with_an_encoding(path):
    """Else it is the locale's: ASCII in a container, cp1252 on Windows."""
    for node in ast.walk(parse(read(path))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'id', getattr(node.func, 'attr', None))
            if name in ('open', 'fdopen'):
                assert 'encoding' in [keyword.arg for keyword in node.keywords] or binary(node), 'line %d' % node.lineno


def binary(call):
    """Whether the mode of a call of open is a literal with a b, or the call is os.open, which has flags for a mode."""
    modes = call.args[1:2] + [keyword.value for keyword in call.keywords if keyword.arg == 'mode']
    owner = getattr(getattr(call.func, 'value', None), 'id', None)
    return owner == 'os' and call.func.attr == 'open' or any('b' in ast.literal_eval(mode) for mode in modes)


@every_source
def test_imports_follow_the_design(path):
    """A module imports those that are listed for it only, a script any of them, and nobody a script."""
    module = os.path.relpath(path, SRC)[:-len('.py')].replace(os.sep, '.').replace('.__init__', '')
    imported = set(imported_names(parse(read(path))))
    assert not imported & set(SCRIPTS)
    if module in MODULES:
        assert imported & set(MODULES) <= set(MODULES[module])
    elif path.startswith(SRC + os.sep):
        assert module in SCRIPTS, 'a new module: give it its place in MODULES or SCRIPTS'


def test_no_import_goes_in_a_circle():
    below = {module: set(imported) for module, imported in MODULES.items()}
    while below:
        lowest = {module for module, imported in below.items() if not imported & set(below)}
        assert lowest, 'these import each other: %s' % sorted(below)
        below = {module: imported for module, imported in below.items() if module not in lowest}


@every_source
def test_only_scripts_and_what_stands_behind_them_touch_a_session(path):
    if os.path.basename(path) in ('cache.py', 'corpus.py', 'encoder.py', 'files.py', 'flags.py', 'kernels.py', 'model.py',
                                  'process.py', 'releases.py', 'sample.py', 'tensor_bundle.py'):
        assert not [node for node in ast.walk(parse(read(path))) if getattr(node, 'attr', None) in ('Session', 'Saver')]


@pytest.mark.parametrize('module, without', [
    ('encoder', ['tensorflow', 'numpy']), ('releases', ['tensorflow', 'numpy']), ('corpus', ['tensorflow']),
    ('flags', ['tensorflow', 'numpy']), ('evaluation.protocols', ['tensorflow']), ('training.run_folder', ['tensorflow']),
    ('checkpoint', ['tensorflow']), ('generate_unconditional_samples', ['tensorflow']),
    ('interactive_conditional_samples', ['tensorflow']), ('evaluate', ['tensorflow']), ('train', ['tensorflow'])])
def test_importing_does_not_wait_for_tensorflow(module, without):
    """--help, a mistyped flag and a missing model answer at once; so does a tokenizer."""
    program = 'import sys; sys.path.insert(0, %r); import %s; print([name for name in %r if name in sys.modules])' % (
        SRC, module, without)
    assert subprocess.check_output([sys.executable, '-c', program], timeout=60).decode('ascii').strip() == '[]'


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
def test_code_written_for_openai_s_modules_can_call_ours(name, kind, parameters):
    """The same names, defaults and, where they are passed by place, the same order; what we add is optional."""
    found = attribute(name)
    ours = list(inspect.signature(found).parameters.values())
    if kind is BY_NAME:
        order = [parameter for parameter, _ in parameters]
        ours.sort(key=lambda parameter: order.index(parameter.name) if parameter.name in order else len(order))
    assert [(one.name, one.default) for one in ours[:len(parameters)]] == parameters
    assert all(one.kind is kind for one in ours[:len(parameters)])
    assert all(one.default is not REQUIRED for one in ours[len(parameters):])


@pytest.mark.parametrize('name, parameters', [
    ('checkpoint.model_dir', [('model_name', REQUIRED), ('models_dir', 'models')]),
    ('checkpoint.load_hparams', [('model_name', REQUIRED), ('models_dir', 'models')]),
    ('checkpoint.restore', [('sess', REQUIRED), ('model_name', REQUIRED), ('models_dir', 'models'), ('scope', 'model')]),
    ('checkpoint.save', [('sess', REQUIRED), ('folder', REQUIRED), ('hparams', REQUIRED), ('source', REQUIRED)]),
    ('model.token_losses', [('logits', REQUIRED), ('tokens', REQUIRED)])])
def test_our_own_functions_keep_their_signatures(name, parameters):
    ours = list(inspect.signature(attribute(name)).parameters.values())
    assert [(one.name, one.default) for one in ours[:len(parameters)]] == parameters
    assert all(one.default is not REQUIRED for one in ours[len(parameters):])


def attribute(name):
    """What 'module.Class.function' stands for."""
    module, *rest = name.split('.')
    found = importlib.import_module(module)
    for part in rest:
        found = getattr(found, part)
    return found
