#!/usr/bin/env python3
"""Draw the pictures of the documentation again: `make pictures`, or make.py speed.png for some of them. Takes minutes.

Needs chromium for terminal.png, page.png and serving.png, and matplotlib for the charts. speed.png is drawn from the
table in docs/performance.md; the others show what the commands print and draw, with the demo model.
"""
import collections
import html
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

sys.path.extend(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir, folder)
                for folder in ('tests', 'benchmarks', 'src'))
import PIL.Image  # which matplotlib needs, too

import benchmark
from helpers.browser import Browser
from helpers.paths import HELD_OUT, ROOT
from helpers.processes import CTRL_D, QUESTION, Conversation, environment

PICTURES = os.path.dirname(os.path.abspath(__file__))
SHOWN = ('1x256', '8x128', '32x48')  # columns of the table in speed.png
TERMINAL = """<!doctype html><meta charset="utf-8"><body style="margin: 18px; background: #1b1f27">
    <pre style="margin: 0; color: #d8dee9; font: 15px/1.45 monospace; white-space: pre-wrap">%s</pre>"""


def command(script, *arguments):
    return [sys.executable, os.path.join(ROOT, 'src', script)] + list(arguments)


def terminal(folder):
    """A conversation with the interactive script, as on a terminal."""
    flags = ['--model_name', 'demo', '--length', '60', '--top_k', '40', '--seed', '3']
    shown = '$ python3 src/interactive_conditional_samples.py %s\n' % ' '.join(flags)
    with Conversation(command('interactive_conditional_samples.py', *flags), terminal=True) as script:
        for prompt in ('Once upon a time there was a frog who', 'The king said:'):
            shown += script.read_until(QUESTION).decode('utf-8')
            script.say(prompt.encode('utf-8') + b'\n')
        shown += script.read_until(QUESTION).decode('utf-8')
        script.say(CTRL_D)
    page = os.path.join(folder, 'terminal.html')
    with open(page, 'w', encoding='utf-8') as file:
        file.write(TERMINAL % html.escape(re.sub(r'\x1b\[[?\d;]*[A-Za-z]|\r', '', shown)))
    return browser(page, 930, 340)


def page(folder):
    """The page of a text that the demo model was not trained on."""
    path = os.path.join(folder, 'page.html')
    subprocess.check_call(command('evaluate.py', 'text', HELD_OUT, '--model_name', 'demo', '--html', path))
    return browser(path, 800, 1200)


def serving(folder):
    """The page of the server: a text of the demo model, and what else it thought of in the place of a word."""
    picture = os.path.join(folder, 'serving.png')
    serve = command('serve.py', '--model_name', 'demo', '--port', '0')
    with Conversation(serve) as server, Browser(folder) as chromium:
        address = server.read_until(b'/\n').decode('utf-8').split()[-1]
        chromium.look(800, 860, scale=1.5)
        chromium.call('Emulation.setScrollbarsHidden', hidden=True)
        chromium.open(address)
        chromium.wait('document.querySelector("#model").textContent')
        chromium.run('document.querySelector("[name=seed]").value = 3')
        chromium.click('document.querySelector("#generate")')
        chromium.wait('document.querySelector("#verb").textContent === "Generate"')
        chromium.click('document.querySelector("#coloured")')
        chromium.click('[...document.querySelectorAll("#text i")].find(token => token.textContent === "princess")')
        chromium.point('document.querySelector("h1")')  # where the mouse changes nothing
        chromium.picture(picture)
    return picture


def browser(path, width, height):
    """What chromium shows of a page in a window of this size: the path of a PNG file."""
    picture = path + '.png'
    subprocess.check_call(['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
                           '--force-device-scale-factor=1.5', '--user-data-dir=' + path + '.profile',
                           '--window-size=%d,%d' % (width, height), '--screenshot=' + picture, 'file://' + path],
                          stderr=subprocess.DEVNULL)
    return picture


def speed(folder):
    """The first table in docs/performance.md as bars."""
    with open(os.path.join(ROOT, 'docs', 'performance.md'), encoding='utf-8') as file:
        lines = re.search(r'(?:^\|.*\n)+', file.read(), re.MULTILINE).group().splitlines()
    header, _, *rows = [[cell.strip(' *') for cell in line.strip('|').replace('**', '').split('|')] for line in lines]
    workloads = collections.OrderedDict((shape, benchmark.Workload.parse(shape)) for shape in SHOWN)
    runners, results = [], collections.OrderedDict((shape, {}) for shape in SHOWN)
    for row in rows:
        # Any other engine would do: it gives the colour.
        engine = ('ours' if row[0].startswith('this project') else 'onnxruntime') + '-int8' * ('8-bit' in row[0])
        runners.append(benchmark.Runner(engine, None, row[0]))
        for shape, workload in workloads.items():
            rate = float(row[header.index(workload.title().replace(' (tokens/s)', ''))])
            results[shape][row[0]] = [benchmark.Burst(workload.n_tokens() / rate, 0)]
    picture = os.path.join(folder, 'speed.png')
    benchmark.draw_chart(picture, runners, workloads, results)
    return picture


def loss(folder):
    """The losses of 300 steps in which the demo model learns Python's own source, of which it knows nothing."""
    library = sysconfig.get_path('stdlib')
    source = ''
    for name in sorted(name for name in os.listdir(library) if name.endswith('.py')):
        with open(os.path.join(library, name), encoding='utf-8') as file:
            source += file.read()
    for name, text in (('train', source[:1700000]), ('valid', source[1700000:1800000])):
        with open(os.path.join(folder, name + '.txt'), 'w', encoding='utf-8') as file:
            file.write(text)
    shutil.copytree(os.path.join(ROOT, 'models', 'demo'), os.path.join(folder, 'demo'))
    subprocess.check_call(command(
        'train.py', '--data', os.path.join(folder, 'train.txt'), '--valid', os.path.join(folder, 'valid.txt'),
        '--models_dir', folder, '--model_name', 'demo', '--run_name', 'python', '--steps', '300', '--dropout', '0',
        '--learning_rate', '1e-3', '--valid_every', '25', '--save_every', '300'))
    return os.path.join(folder, 'python', 'training', 'loss.png')


def roc(folder):
    """ROC curves: pieces of the held-out stories against samples of the demo model."""
    with open(HELD_OUT, encoding='utf-8') as file:
        human = re.findall(r'(?s).{270,}?\s', file.read())
    with open(os.path.join(ROOT, 'gpt-2-samples', 'unconditional-topk40.txt'), encoding='utf-8') as file:
        machine = re.split(r'=+ SAMPLE \d+ =+\n', file.read())[1:]
    paths = []
    for name, texts in (('human', human), ('machine', machine)):
        paths.append(os.path.join(folder, name + '.jsonl'))
        with open(paths[-1], 'w', encoding='utf-8') as file:
            file.writelines(json.dumps({'text': text}) + '\n' for text in texts)
    picture = os.path.join(folder, 'roc.png')
    subprocess.check_call(command('evaluate.py', 'detect', *paths, '--model_name', 'demo', '--chart', picture))
    return picture


DRAWN = {'terminal.png': terminal, 'page.png': page, 'serving.png': serving, 'speed.png': speed, 'loss.png': loss,
         'roc.png': roc}


def main():
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, 'matplotlibrc'), 'w', encoding='utf-8') as file:
            file.write('savefig.dpi: 130\n')
        os.environ.update(environment(MATPLOTLIBRC=folder))
        for name in sys.argv[1:] or DRAWN:
            picture = os.path.join(PICTURES, name)
            PIL.Image.open(DRAWN[name](folder)).convert('RGB').quantize(64).save(picture, optimize=True)
            print('%s: %d kB' % (name, os.path.getsize(picture) // 1000), file=sys.stderr)


if __name__ == '__main__':
    main()
