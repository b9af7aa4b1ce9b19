"""A function as a command line: Fire reads its flags, and here is all else that a process owes the one who ran it."""
import _thread
import contextlib
import functools
import inspect
import io
import os
import re
import sys

import fire


def run(function):
    """Call function with the flags of the command line, then end the process.

    function: or a dict {name: function}, of which the first argument names the one to call.
    Its parameters are the flags and its docstring is what --help shows. A value must be of its default's type, or of its
    annotation's where the default is None.
    A flag that does not exist, ValueError, OSError and ImportError end in one line on stderr and status 1. Ctrl-C and a
    pipe that nobody reads any more are no errors: status 0. Input and output are UTF-8 whatever the locale.
    """
    speak_utf8()
    status = 0
    try:
        function, arguments = choose(function, sys.argv[1:])
        positional, named = parse(function, arguments)
        function(*positional, **named)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush complains
    except KeyboardInterrupt:
        pass
    except (ValueError, OSError, ImportError) as error:
        print('%s: %s' % (os.path.basename(sys.argv[0]), error), file=sys.stderr)
        status = 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # TensorFlow may be busy in a thread, and leaving in an orderly way would wait for it


def choose(functions, arguments):
    """The function that the command line names, and the rest of it. A help without a name is printed, and ends the process.

    functions: a function, which needs no name, or {name: function}.
    Raises ValueError for a name that is missing or unknown.
    """
    if callable(functions):
        return functions, arguments
    commands = ', '.join(sorted(functions))
    name = arguments[0] if arguments else None
    if {'--help', '-h'} & set(arguments) and name not in functions:
        print('Say first what to do; COMMAND --help tells more.\n')
        for command in sorted(functions):
            print('    %-12s %s' % (command, functions[command].__doc__.split('\n')[0]))
        sys.exit(0)
    if name not in functions:
        raise ValueError('%s; the commands are %s (--help explains them)'
                         % ('no command given' if name is None else 'there is no command %r' % name, commands))
    return functions[name], arguments[1:]


def parse(function, arguments):
    """The call that arguments spell: (positional values, {flag: value}). --help is printed, and ends the process.

    Raises ValueError for what function does not take.
    """
    calls = []
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def note(*positional, **named):
        calls.append((positional, named))

    # Fire calls a function first and complains about flags that it does not have afterwards: so it calls a note-taker.
    asks_help = bool({'--help', '-h'} & set(arguments))
    if not asks_help:  # where the note-taker's decoration would show
        as_typed = {name: str for name in parameters if kind_of(parameters[name]) is str}  # a model may be called 1e3
        note = fire.decorators.SetParseFns(**as_typed)(note)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            fire.Fire(note, command=['--', '--help'] if asks_help else arguments)
    except fire.core.FireExit as end:
        if asks_help:
            print(re.sub('\x1b\\[[0-9]*m', '', said.getvalue()))  # an older Fire sets words in bold, in files too
            raise
        raise ValueError('%s; the flags are %s (--help explains them)'
                         % (end.trace.elements[-1].ErrorAsStr(), ' '.join('--' + name for name in parameters)))
    positional, named = calls[0]
    check_types(function, positional, named)
    return calls[0]


def kind_of(parameter):
    """The type of a parameter: its annotation, or else its default's."""
    return type(parameter.default) if parameter.annotation is parameter.empty else parameter.annotation


def check_types(function, positional, named):
    """Raises ValueError for a value that is not of its parameter's type. A number passes for text: a model may be called 7."""
    signature = inspect.signature(function)
    for name, value in signature.bind(*positional, **named).arguments.items():
        parameter = signature.parameters[name]
        if value is parameter.default:
            continue
        kind = kind_of(parameter)
        wanted = {int: 'a whole number', float: 'a number', bool: 'True or False'}.get(kind)
        fits = isinstance(value, (int, float) if kind is float else kind) if wanted else True
        if not fits or (isinstance(value, bool) and wanted and kind is not bool):
            raise ValueError('--%s is %r; it must be %s' % (name, value, wanted))


def speak_utf8():
    """Make the standard streams UTF-8: a byte that is not becomes U+FFFD on the way in, a lone surrogate ? on the way out."""
    for name in ('stdin', 'stdout', 'stderr'):
        if getattr(sys, name) is None:  # its descriptor is closed, and the lowest free one: this file gets it
            setattr(sys, name, open(os.devnull, 'r' if name == 'stdin' else 'w', encoding='utf-8'))
    if hasattr(sys.stdin, 'detach'):
        sys.stdin = io.TextIOWrapper(sys.stdin.detach(), encoding='utf-8', errors='replace')
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if hasattr(stream, 'detach'):
            line_buffering = stream.line_buffering
            setattr(sys, name, io.TextIOWrapper(stream.detach(), 'utf-8', 'replace', line_buffering=line_buffering))


def wait_for(function, *positional, **named):
    """What function returns, called in a thread: Ctrl-C is answered at once, where TensorFlow would hold it for minutes."""
    outcome = {}
    running = _thread.allocate_lock()
    running.acquire()

    def call():
        try:
            outcome['value'] = function(*positional, **named)
        except BaseException as error:
            outcome['error'] = error
        running.release()

    # Not threading.Thread nor an executor: a KeyboardInterrupt that comes inside their Python code may get lost.
    _thread.start_new_thread(call, ())
    running.acquire()
    if 'error' in outcome:
        raise outcome['error']
    return outcome['value']
