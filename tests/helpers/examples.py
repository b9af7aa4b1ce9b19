"""Run examples of shell and Python code: examples.py FILE, with [[folder, language, code], ...] in the JSON file.

Prints [output, ...] as JSON, and ends with status 1 at the first example that fails. TensorFlow, which takes seconds to
import, is imported once: what needs it runs in a fork of this process. The Python examples of a folder continue each
other, and come after its shell examples.
"""
import functools
import json
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
import traceback

from gpt2.system.tf1 import tf  # noqa: F401


def forked(work, stdin=os.devnull):
    """Call work in a fork of this process. Raises RuntimeError if it fails there."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(stdin, os.O_RDONLY), 0)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError('an example fails')


def run_shell(code, stdout):
    """Run a shell example line by line. Commands in src/ run in a fork, unless they are part of a pipe."""
    for line in code.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ['python3'] and words[1].startswith('src/') and '|' not in words:
            stdin = [word[1:] for word in words if word.startswith('<')] or [os.devnull]
            arguments = [word for word in words[1:] if not word.startswith('<')]
            forked(functools.partial(run_script, arguments, stdout), stdin[0])
        else:
            subprocess.check_call(['bash', '-euo', 'pipefail', '-c', line], stdin=subprocess.DEVNULL, stdout=stdout)


def run_script(arguments, stdout):
    os.dup2(stdout.fileno(), 1)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name='__main__')


def run_python(examples):
    """Run Python examples in one namespace. examples: (code, file for what it prints)."""
    names = {}
    for code, stdout in examples:
        os.dup2(stdout.fileno(), 1)
        exec(code, names)
        sys.stdout.flush()


def main(path):
    with open(path, encoding='utf-8') as file:
        examples = json.load(file)
    stdouts, python = [], {}
    for folder, language, code in examples:
        os.chdir(folder)
        stdouts.append(tempfile.TemporaryFile())
        if language == 'bash':
            run_shell(code, stdouts[-1])
        else:
            python.setdefault(folder, []).append((code, stdouts[-1]))
    for folder in python:
        os.chdir(folder)
        forked(functools.partial(run_python, python[folder]))
    printed = []
    for stdout in stdouts:
        stdout.seek(0)
        printed.append(stdout.read().decode('utf-8'))
    print(json.dumps(printed))


if __name__ == '__main__':
    main(sys.argv[1])
