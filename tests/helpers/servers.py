"""An HTTP server on this machine, and its right and wrong answers."""
import gzip
import http.server
import re
import socketserver
import threading

XML = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>NoSuchBucket</Code></Error>"


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves self.content, {path: bytes}. If there is a list self.answers[path], its items answer the next requests.

    An answer is a function of (handler, body, start), start being the first byte requested.
    """
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content = {}
        self.answers = {}
        self.requests = []  # (path, Range header or None)
        self.go_on = threading.Event()  # answers that stall wait for this event
        self.url = 'http://127.0.0.1:%d' % self.server_port

    def handle_error(self, request, client_address):
        """Print nothing when a client disconnects, as in some tests."""

    def requests_for(self, file):
        return [asked for path, asked in self.requests if path.endswith('/' + file)]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get('Range')
        self.server.requests.append((self.path, asked))
        answers = self.server.answers.get(self.path)
        body = self.server.content.get(self.path)
        start = int(re.match(r'bytes=(\d+)-$', asked).group(1)) if asked else 0
        if answers:
            answers.pop(0)(self, body, start)
        elif body is None:
            send(self, 404, XML, kind='application/xml')
        else:
            right(self, body, start)

    def log_message(self, *arguments):
        pass


def send(handler, status, body, *, kind='application/octet-stream', headers=(), length=None):
    handler.send_response(status)
    handler.send_header('Content-Type', kind)
    handler.send_header('Content-Length', str(len(body) if length is None else length))
    for header in headers:
        handler.send_header(*header)
    handler.end_headers()
    handler.wfile.write(body)


def right(handler, body, start, *, upto=None):
    """Send the file from start on. upto: the headers announce all of it, but the connection ends before this byte."""
    content_range = ('Content-Range', 'bytes %d-%d/%d' % (start, len(body) - 1, len(body)))
    send(handler, 206 if start else 200, body[start:upto], length=len(body) - start,
         headers=[content_range] if start else ())


def breaks_off_at(upto):
    return lambda handler, body, start: right(handler, body, start, upto=upto)


def status(code):
    return lambda handler, body, start: send(handler, code, b'', kind='text/html')


def ignores_range(handler, body, start):
    send(handler, 200, body)


def part_of(first, last=None):
    """An answer with status 206 that sends these bytes, whichever were requested."""
    def answer(handler, body, start):
        brought = body[first:last]
        content_range = 'bytes %d-%d/%d' % (first, first + len(brought) - 1, len(body))
        send(handler, 206, brought, headers=[('Content-Range', content_range)])
    return answer


def does_not_end(handler, body, start):
    """Send the file, then zeros, in chunks, for as long as the client reads."""
    handler.send_response(200)
    handler.send_header('Transfer-Encoding', 'chunked')
    handler.end_headers()
    for piece in [body] + [bytes(1000)] * 10 ** 5:
        handler.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece))


def compressed(handler, body, start):
    send(handler, 200, gzip.compress(body), headers=[('Content-Encoding', 'gzip')])


def stalls_at(upto):
    def stall(handler, body, start):
        right(handler, body, start, upto=upto)
        handler.server.go_on.wait()
    return stall
