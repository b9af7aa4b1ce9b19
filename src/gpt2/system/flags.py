"""A function as a command: its parameters are the flags, its docstring is the help. Fire parses the command line."""
import contextlib
import difflib
import functools
import inspect
import io
import os
import re
import sys

import gpt2
from gpt2.system import process

SHARED_HELP = {  # describes parameters that several commands have, unless their docstrings do
    'model_name': 'name of the model, a folder in models_dir',
    'seed': 'the same seed and prompts give the same samples, at any batch_size; None picks a new seed',
    'batch_size': 'number of samples computed at once; more are faster in total, and take more memory',
    'length': 'maximum number of tokens in a sample; None is the size of the context, or with prompts half of it',
    'temperature': 'below 1 is more predictable, above 1 less; 0 always takes the most likely token',
    'top_k': 'sample only from the k most likely tokens; 0 disables',
    'top_p': 'sample from the smallest set of tokens whose probabilities add up to p (nucleus sampling); 1 disables',
    'stop_at_end': 'stop at the end-of-text token; False goes on with another text',
    'precision': 'float32; or int8 for 8-bit weights: faster on a CPU, less accurate, see docs/performance.md',
    'models_dir': 'folder of the models, looked up from the working directory, then from the repository'}
HELP = {'--help', '-h'}


def run(function, outputs=()):
    """Call function with the flags of the command line, then end the process, unless it is another program's.

    function: or a dict {name: function}, of which the first argument names the one to call.
    outputs: the names of the flags that give the files to write. If one is given, the work goes on when nobody reads
        stdout any more; otherwise that ends it.
    Its parameters are the flags; --help shows its docstring and SHARED_HELP, and --version prints the version. A value
    must have the type of the parameter's default, or of its annotation if the default is None.
    The exit status is 0, also if the reader of the output has closed the pipe; 1 after an unknown flag, ValueError,
    OSError, ImportError or MemoryError, which are printed in one line; 128 + its number after a signal such as Ctrl-C,
    even if function tidied up and returned: see process.interruptible. In another program's process (see
    process.set_up), a status other than 0 is a SystemExit, or KeyboardInterrupt after Ctrl-C.
    """
    status, process.interrupted_by = 0, None
    with contextlib.redirect_stdout(process.whole(sys.stdout)), contextlib.redirect_stderr(process.whole(sys.stderr)):
        try:
            if '--version' in sys.argv[1:]:
                print('gpt-2 ' + gpt2.__version__)
                sys.exit(0)
            function, arguments = choose(function, sys.argv[1:])
            command = sys.argv[1:len(sys.argv) - len(arguments)]  # its name, if there are several
            positional, named = parse(function, arguments, command)
            given = inspect.signature(function).bind(*positional, **named).arguments
            process.stdout_is_optional = any(given.get(name) is not None for name in outputs)
            function(*positional, **named)
            sys.stdout.flush()
        except BrokenPipeError:
            pass
        except KeyboardInterrupt as interrupt:
            status = 130
            if interrupt.args:
                process.print_error(interrupt)
        except (ValueError, OSError, ImportError, MemoryError) as error:
            status = 1
            process.print_error(error)
        if process.interrupted_by and status != 1:
            status = 128 + process.interrupted_by
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        if process.is_command:
            os._exit(status)  # an orderly exit would wait for what TensorFlow does in a thread
    if status == 130:
        raise KeyboardInterrupt
    if status:
        sys.exit(status)


def choose(functions, arguments):
    """Returns the function that the command line names, and its arguments. --help without a name lists them and exits.

    functions: a function, which needs no name, or {name: function}.
    Raises ValueError for a missing or unknown name.
    """
    if callable(functions):
        return functions, arguments
    name = arguments[0] if arguments else None
    if name in functions:
        return functions[name], arguments[1:]
    if HELP & set(arguments):
        print('The first argument is one of these commands; COMMAND --help shows its flags.\n')
        for command in sorted(functions):
            print('    %-17s %s' % (command, (functions[command].__doc__ or '').split('\n')[0]))
        sys.exit(0)
    raise ValueError('%s; the commands are %s (--help explains them)' % (
        'no command given' if name is None else 'unknown command %r' % name, ', '.join(sorted(functions))))


def parse(function, arguments, command=()):
    """Returns the values to call function with, (positional, {flag: value}). --help prints the help and exits.

    command: the words between the script and the arguments, which the help repeats.
    Raises ValueError for unknown flags, values of the wrong type, and missing or superfluous values.
    """
    import fire  # not above: it takes a quarter of a second
    if HELP & set(arguments):
        import pydoc
        pydoc.pager(help_text(function, command))
        sys.exit(0)
    calls = []
    parameters = inspect.signature(function).parameters
    hint = '(the flags are %s; --help explains them)' % ' '.join('--' + name for name in parameters)
    names = list(parameters) + ['no' + name for name in parameters]  # Fire reads --nogzip as --gzip=False
    for word in arguments:
        flag = word.split('=')[0]
        name = flag.lstrip('-').replace('-', '_')
        if re.match('--|-[a-zA-Z]{2}', word) and name not in names:
            similar = difflib.get_close_matches(name, names, n=1)
            raise ValueError('unknown flag %s%s %s' % (
                flag, '; did you mean --%s?' % similar[0] if similar else '', hint))

    @functools.wraps(function)
    def note(*positional, **named):  # Fire complains about arguments left over only after it has called a function
        calls.append((positional, named))

    fire.decorators.SetParseFn(str)(note)
    fire.decorators.SetParseFns(**{
        name: functools.partial(value_of, parameters[name], arguments) for name in parameters})(note)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            fire.Fire(note, command=arguments)
    except fire.core.FireExit as end:
        problem = end.trace.elements[-1].ErrorAsStr().replace('Could not consume arg:', 'unexpected argument')
        raise ValueError('%s %s' % (
            problem.replace('The function received no value for the required argument:', 'no value for'), hint))
    return calls[0]


def help_text(function, command=()):
    """Returns Fire's help for function. SHARED_HELP describes the parameters that its docstring does not."""
    import fire

    @functools.wraps(function)
    def described():
        pass

    described.__doc__ = inspect.getdoc(function) or 'Args:'  # python3 -OO has no docstrings
    for name in inspect.signature(function).parameters:
        if name in SHARED_HELP and not re.search('^    %s:' % name, described.__doc__, re.MULTILINE):
            described.__doc__ += '\n    %s: %s' % (name, SHARED_HELP[name])
    trace = fire.trace.FireTrace(described, name=process.escaped(os.path.basename(sys.argv[0])))
    for word in command:
        trace.AddAccessedProperty(described, word, [word], None, None)
    text = re.sub('\x1b\\[[0-9]*m', '', fire.helptext.HelpText(described, trace))  # an older Fire has words in bold
    return text.replace('-h, --', '--') + '\n'  # Fire offers the first letter of a flag, but -h is --help


TYPES = {  # of parameters: the function that parses a value, and what the value must be
    int: (int, 'a whole number of at most 18 digits'),
    float: (float, 'a number of at most 18 digits'),
    bool: ({'True': True, 'False': False}.__getitem__, 'True or False'),
    str: (str, 'text')}


def value_of(parameter, arguments, text):
    """Returns text as a value of the parameter's annotation or of its default's type; without either, text itself.

    arguments: the whole command line; for a flag without a value, Fire passes the text True.
    Raises ValueError for text that is not a value of that type.
    """
    kind = type(parameter.default) if parameter.annotation is parameter.empty else parameter.annotation
    convert, wanted = TYPES.get(kind, TYPES[str])
    if text == 'True' and kind is not bool and not any(word.endswith('True') for word in arguments):
        raise ValueError('--%s has no value; it must be %s' % (parameter.name, wanted))
    if text == str(parameter.default):
        return parameter.default
    with contextlib.suppress(ValueError, KeyError):
        value = convert(text)
        if kind not in (int, float) or abs(value) < 10 ** 18:  # which is not true of NaN either
            return value
    raise ValueError('--%s is %s; it must be %s' % (parameter.name, text or 'empty', wanted))
