"""Chromium, as somebody uses it: types, clicks, looks. Driven through DevTools, on a socket that it gets as two files.

chromedevtools.github.io/devtools-protocol documents the methods that `Browser.call` calls.
"""
import base64
import json
import shutil
import socket
import subprocess

import pytest

from helpers.processes import SECONDS

KEYS = {'Backspace': 8, 'Tab': 9, 'Enter': 13, 'Escape': 27, 'End': 35, 'Home': 36, 'ArrowLeft': 37, 'ArrowRight': 39}
CONTROL, SHIFT = 2, 8  # modifiers of a key


class Browser:
    """A browser with one tab. Its profile is in a folder. Leaving the `with` ends it."""

    def __init__(self, folder):
        if not shutil.which('chromium'):
            pytest.skip('needs chromium: apt-get install chromium')
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(SECONDS)
        # Chromium reads commands from file 3, and answers on file 4.
        self.process = subprocess.Popen(
            ['bash', '-c', 'exec "$@" 3<&%d 4>&%d' % (theirs.fileno(), theirs.fileno()), 'bash',
             'chromium', '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
             '--disable-sync', '--disable-background-networking', '--disable-component-update',
             '--user-data-dir=%s' % folder, '--remote-debugging-pipe', 'about:blank'],
            pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        theirs.close()
        self.unread, self.number, self.events, self.session, self.context = b'', 0, [], None, None
        self.forget()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()
        self.process.kill()
        self.process.wait()

    def forget(self):
        """Begin again with an empty tab, as if nothing had ever been opened, and a desktop's window."""
        self.session = None  # what follows is said to the browser, not to the tab
        if self.context:
            self.call('Target.disposeBrowserContext', browserContextId=self.context)
        self.context = self.call('Target.createBrowserContext')['browserContextId']
        target = self.call('Target.createTarget', url='about:blank', browserContextId=self.context)['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in 'Page', 'Runtime', 'Log':
            self.call(domain + '.enable')
        self.look(1400, 900)

    def receive(self):
        """The next message, which is the answer to a call or an event."""
        while b'\0' not in self.unread:
            new = self.socket.recv(2 ** 16)
            assert new, 'the browser has ended'
            self.unread += new
        message, _, self.unread = self.unread.partition(b'\0')
        return json.loads(message.decode('utf-8'))

    def call(self, method, **params):
        """The result of a method of DevTools. The events that come before it are added to self.events."""
        self.number += 1
        message = dict(id=self.number, method=method, params=params)
        if self.session:
            message['sessionId'] = self.session
        self.socket.sendall(json.dumps(message).encode('ascii') + b'\0')
        while True:
            answer = self.receive()
            if answer.get('id') == self.number:
                assert 'result' in answer, (method, answer['error'])
                return answer['result']
            self.events.append(answer)

    def open(self, url):
        """Load a page, and wait until its scripts have run."""
        self.events.clear()
        self.call('Page.navigate', url=url)
        while not any(event['method'] == 'Page.loadEventFired' for event in self.events):
            self.events.append(self.receive())

    def run(self, script, *arguments):
        """What an async JavaScript function returns in the page.

        script: its body, in which arguments are the elements of `a`.
        """
        expression = '(async a => { %s })(%s)' % (script, json.dumps(arguments))
        answer = self.call('Runtime.evaluate', expression=expression, awaitPromise=True, returnByValue=True,
                           userGesture=True)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def wait(self, condition, *arguments):
        """Wait until a JavaScript expression is true, and return its value."""
        return self.run("""for (;;) {
            const value = %s;
            if (value) return value;
            await new Promise(go => setTimeout(go, 5));
        }""" % condition, *arguments)

    def type(self, text):
        """Insert text where the cursor is."""
        self.call('Input.insertText', text=text)

    def press(self, *keys, modifiers=0):
        """Press keys, such as Enter, one after the other."""
        for key in keys:
            event = dict(key=key, code=key, windowsVirtualKeyCode=KEYS[key], modifiers=modifiers)
            text = '\r' if key == 'Enter' and not modifiers else ''
            self.call('Input.dispatchKeyEvent', type='keyDown', text=text, **event)
            self.call('Input.dispatchKeyEvent', type='keyUp', **event)

    def point(self, element, n_clicks=0):
        """Move the mouse to the middle of an element, and click. element: a JavaScript expression."""
        x, y = self.run("""const element = %s;
            element.scrollIntoView({block: 'nearest'});
            const {left, right, top, bottom} = element.getClientRects()[0];
            return [(left + right) / 2, (top + bottom) / 2];""" % element)
        self.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)
        for kind in ['mousePressed', 'mouseReleased'] * n_clicks:
            self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def click(self, element):
        self.point(element, n_clicks=1)

    def look(self, width, height, scheme='light', scale=1):
        """Set the size of the window, in CSS pixels, and the colours that the user prefers: light or dark."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=scale,
                  mobile=width < 500)
        self.call('Emulation.setEmulatedMedia', features=[dict(name='prefers-color-scheme', value=scheme)])

    def picture(self, path):
        """Write what is in the window into a PNG file."""
        with open(path, 'wb') as file:
            file.write(base64.b64decode(self.call('Page.captureScreenshot')['data']))

    def complaints(self):
        """What the browser's console says: errors, and what the page's security policy forbids."""
        self.run('')  # events before this have arrived
        return [event['params'] for event in self.events
                if event['method'] in ('Log.entryAdded', 'Runtime.exceptionThrown', 'Runtime.consoleAPICalled')]
