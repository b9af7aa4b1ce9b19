"""A stand-in for src/serve.py: the same API and the same page, with a made-up model whose predictions are known."""
import codecs
import collections
import http.server
import json
import math
import os
import select
import socket
import socketserver
import sys
import threading
import zlib

from helpers.paths import SRC

PAGE = os.path.join(SRC, 'gpt2', 'serving', 'page.html')
POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
          "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
# The tokens that the model predicts. Numbers would come first in a JavaScript object; three tokens are an emoji.
TOKENS = [b' frog', b' the', b'7', b'\n', b'<b onclick="x">', b' King', b'\xf0\x9f', b'\x90', b'\xb8', b'2019',
          b'</script><img src=x onerror="document.title=1">', b' \xd7\xa9\xd7\x9c', b'  ', b'__proto__', b'ping']
EMOJI = 6, 7, 8  # the ids of its three tokens
END = len(TOKENS)  # ids from here on: the end-of-text token, then every character of a prompt
CONTEXT = 1024


def encode(text):
    """The ids of a prompt: one for each character, or of an empty one the end-of-text token."""
    return [END + 1 + ord(character) for character in text] or [END]


def predict(ids):
    """The (id, probability) of every token that may follow, the most likely first: 0.48, 0.25, ... 0.00005

    Which is first looks random; but what begins an emoji is completed.
    """
    first = ids[-1] + 1 if ids[-1] in EMOJI[:2] else zlib.crc32(repr(ids).encode('ascii'))
    return [((first + place) % len(TOKENS), 0.48 * 0.52 ** place) for place in range(len(TOKENS))]


def continuation(ids, n):
    """The n next ids. The model takes tokens of every rank in their turn."""
    ids, old = list(ids), len(ids)
    while len(ids) < old + n:
        rank = 0 if ids[-1] in EMOJI[:2] else 7 * len(ids) % len(TOKENS)
        ids.append(predict(ids)[rank][0])
    return ids[old:]


def name(token):
    """A token's text, or that of its bytes, as the API gives it."""
    if token == END:
        return '<|endoftext|>'
    try:
        return TOKENS[token].decode('utf-8')
    except UnicodeDecodeError:
        return 'bytes:' + ''.join('\\x%02x' % byte for byte in TOKENS[token])


def logprobs(ids, token):
    """The `logprobs` of one token after ids: the ten most likely ones, and itself."""
    found = predict(ids)
    top = collections.OrderedDict((i, math.log(p)) for i, p in found[:10])
    top.setdefault(token, math.log(dict(found).get(token, 2e-7)))
    return dict(tokens=[name(token)], token_logprobs=[top[token]], text_offset=[0], top_token_ids=[list(top)],
                top_logprobs=[collections.OrderedDict((name(i), value) for i, value in top.items())])


class Completions(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """requests: the JSON of what was asked.  key: what clients must know.  refusals: answers to the next requests.

    may_go_on: a semaphore that each token takes once, or None.  gone: set when a client has gone away.
    ends_at, breaks_at: the number of the token that is the end of text, or instead of which there is an error.
    """
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = 'http://127.0.0.1:%d/' % self.server_port
        self.reset()

    def reset(self):
        self.requests, self.refusals, self.key, self.model, self.ends_at = [], [], None, 'made-up', None
        self.may_go_on, self.gone, self.breaks_at = None, threading.Event(), None

    def handle_error(self, request, client_address):
        """Print nothing when a client disconnects."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def answer(self, status, content, kind='application/json', headers=()):
        self.send_response(status)
        for header in [('Content-Type', kind), ('Content-Security-Policy', POLICY)] + list(headers):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode('ascii'))

    def refuse(self, status, message, headers=()):
        self.answer(status, {'error': dict(message=message, type='invalid_request_error', param=None, code=None)},
                    headers=headers)

    def is_known(self):
        if self.server.key is None or self.headers.get('Authorization') == 'Bearer ' + self.server.key:
            return True
        self.refuse(401, 'give the API key of this server')

    def do_GET(self):
        if self.path == '/':
            with open(PAGE, 'rb') as file:
                self.answer(200, file.read(), 'text/html; charset=utf-8')
        elif self.is_known():
            self.answer(200, {'object': 'list', 'data': [dict(
                id=self.server.model, object='model', created=0, owned_by='tests', context_length=CONTEXT)]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers['Content-Length'])).decode('utf-8'))
        if not self.is_known():
            return
        self.server.requests.append(body)
        if self.server.refusals:
            self.refuse(*self.server.refusals.pop(0))
        else:
            self.stream(body)

    def stream(self, body):
        self.answer(200, b'', 'text/event-stream')
        ids = encode(body['prompt']) if isinstance(body['prompt'], str) else body['prompt']
        characters = codecs.getincrementaldecoder('utf-8')('replace')
        new, first = continuation(ids, body['max_tokens']), {'prompt_token_ids': ids}
        if self.server.ends_at:
            new[self.server.ends_at - 1:] = [END]
        for number, token in enumerate(new, 1):
            if not self.wait():
                return self.server.gone.set()
            if self.server.breaks_at == number:
                return self.event({'error': {'message': 'out of memory <i>'}})
            is_end = number == len(new)
            text = characters.decode(b'' if token == END else TOKENS[token], is_end)
            reason = 'stop' if token == END else 'length' if is_end else None
            self.event({'object': 'text_completion', 'model': self.server.model, 'choices': [dict(
                first, index=0, text=text, token_ids=[token], logprobs=logprobs(ids, token), finish_reason=reason)]})
            ids, first = ids + [token], {}
        self.wfile.write(b'data: [DONE]\n\n')

    def event(self, content):
        self.wfile.write(b'data: %s\n\n' % json.dumps(content).encode('ascii'))
        self.wfile.flush()

    def wait(self):
        """Until the next token may be sent. Returns whether the client is still there."""
        while self.server.may_go_on and not self.server.may_go_on.acquire(timeout=0.01):
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                return False
        return True
