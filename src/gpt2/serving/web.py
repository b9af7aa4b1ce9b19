"""The HTTP side of the server: addresses, keys, limits, errors, metrics. Flask routes, waitress serves."""
import contextlib
import hmac
import itertools
import json
import logging
import os
import socket
import time
import traceback
import uuid

import flask
import waitress
import werkzeug.exceptions

from gpt2.serving.completions import Refusal, Request, joined
from gpt2.system import files, process
from gpt2.system.progress import report

try:
    import prometheus_client
except ImportError:
    prometheus_client = None

MAX_BODY_BYTES = 2 ** 20  # which is answered in the API's form; one of far more is not even read
MAX_SECONDS = 600  # for a request
IDLE_SECONDS = 30  # after which a connection is closed, unless its request is being answered
MAX_CONNECTIONS = 2000
RETRY_AFTER_SECONDS = 1
LOOPBACK = ('localhost', '127.0.0.1', '::1')
ANY_ADDRESS = ('0.0.0.0', '::')
STOP_SECONDS = 8  # that running requests have left after Ctrl-C
SECURITY_HEADERS = {
    'Content-Security-Policy': "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                               "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-store'}
PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'page.html')


class Metrics(object):
    """Counters in Prometheus' form. Without prometheus_client nothing is counted."""

    def __init__(self, engine):
        if prometheus_client is None:
            return
        self.registry = prometheus_client.CollectorRegistry()
        self.requests = prometheus_client.Counter(
            'gpt2_requests', 'Requests for completions', ['status'], registry=self.registry)
        self.tokens = prometheus_client.Counter('gpt2_tokens', 'Tokens', ['kind'], registry=self.registry)
        self.seconds = prometheus_client.Histogram(
            'gpt2_request_seconds', 'Time from a request to the end of its answer', registry=self.registry)
        for name, text, function in (
                ('gpt2_waiting', 'Completions that wait', lambda: len(engine.waiting)),
                ('gpt2_running', 'Completions that are computed', lambda: len(engine.rows_running()))):
            prometheus_client.Gauge(name, text, registry=self.registry).set_function(function)

    def count(self, status, seconds, usage):
        if prometheus_client is not None:
            self.requests.labels(status).inc()
            self.seconds.observe(seconds)
            for kind in ('prompt', 'completion'):
                self.tokens.labels(kind).inc(usage.get(kind + '_tokens', 0))

    def text(self):
        if prometheus_client is None:
            raise Refusal('metrics need prometheus_client: pip install prometheus_client', status=404)
        return prometheus_client.generate_latest(self.registry)


def json_response(values, status=200):
    response = flask.Response(json.dumps(values) + '\n', status, mimetype='application/json')
    if status == 503:
        response.headers['Retry-After'] = str(RETRY_AFTER_SECONDS)
    return response


def application(engine, text_encoder, model_name, host, api_key):
    """The Flask application."""
    app = flask.Flask('gpt2', static_folder=None)
    metrics = Metrics(engine)

    @app.before_request
    def check_host_and_key():
        name = host_name(flask.request.headers.get('Host', ''))
        if host not in ANY_ADDRESS and name not in LOOPBACK + (host.lower(),):
            raise Refusal('this server does not have the name in the Host header; use %s' % host)
        given = flask.request.headers.get('Authorization', '').encode('utf-8')
        if api_key and flask.request.path.startswith('/v1/') and not hmac.compare_digest(
                given, ('Bearer ' + api_key).encode('utf-8')):
            raise Refusal('wrong or missing key; send the header Authorization: Bearer KEY', status=401)

    @app.after_request
    def add_headers(response):
        response.headers.update(SECURITY_HEADERS)
        request = flask.request
        report('%s "%s %s" %d' % (request.remote_addr, request.method, request.path, response.status_code))
        return response

    @app.errorhandler(Exception)
    def answer_error(error):
        if isinstance(error, werkzeug.exceptions.HTTPException):
            error = Refusal(error.description, status=error.code)
        elif not isinstance(error, Refusal):
            report(*traceback.format_exc().splitlines())
            error = Refusal('the server has failed; its log says why', status=500)
        return json_response(error.json(), error.status)

    @app.route('/')
    def show_page():
        return flask.send_file(PAGE)

    @app.route('/healthz')
    def show_health():
        return json_response({'status': 'stopping' if engine.stopped else 'ok'}, 503 if engine.stopped else 200)

    @app.route('/metrics')
    def show_metrics():
        return flask.Response(metrics.text(), mimetype='text/plain')

    @app.route('/v1/models')
    def list_models():
        return json_response({'object': 'list', 'data': [{
            'id': model_name, 'object': 'model', 'created': 0, 'owned_by': 'gpt-2',
            'context_length': engine.hparams.n_ctx}]})

    @app.route('/v1/completions', methods=['POST'])
    def complete():
        started = time.time()
        try:
            asked = Request(json_body(), text_encoder, engine.hparams, model_name, engine.max_waiting)
            engine.submit(asked.choices)
        except Refusal as refusal:
            metrics.count(refusal.status, time.time() - started, {})
            raise
        is_gone = flask.request.environ.get('waitress.client_disconnected', lambda: False)
        pieces = followed(asked, engine, is_gone, metrics, started)
        frame = dict(id='cmpl-' + uuid.uuid4().hex, object='text_completion', created=int(started), model=model_name)
        if asked.stream:
            return flask.Response(stream(asked, pieces, frame), mimetype='text/event-stream')
        pieces = sorted(pieces, key=lambda pair: pair[0].index)
        choices = [asked.choice_json(choice, joined([piece for _, piece in group]), True)
                   for choice, group in itertools.groupby(pieces, lambda pair: pair[0])]
        return json_response(dict(frame, choices=choices, usage=asked.usage()))

    return app


def json_body():
    """The value of the request's body. Raises Refusal unless it is JSON."""
    if flask.request.mimetype != 'application/json':  # any page on the web may send another type here
        raise Refusal('the body must be JSON, with the header Content-Type: application/json', status=415)
    if (flask.request.content_length or 0) > MAX_BODY_BYTES:
        raise Refusal('the body has more than %d bytes' % MAX_BODY_BYTES, status=413)
    try:
        return files.parse_json(flask.request.get_data().decode('utf-8'))
    except ValueError as error:
        raise Refusal('the body is not JSON: %s' % error)


def followed(asked, engine, is_gone, metrics, started):
    """Yield a Request's pieces. However that ends, nothing more is computed for it then, and it is counted."""
    status = 499  # unless the client hears the end
    try:
        yield from asked.pieces(is_gone, started + MAX_SECONDS)
        status = 200
    except Refusal as refusal:
        status = refusal.status
        raise
    finally:
        engine.withdraw(asked.choices)
        metrics.count(status, time.time() - started, asked.usage())


def stream(asked, pieces, frame):
    """Yield server-sent events. frame: what all of them have."""
    begun = set()
    with contextlib.closing(pieces):
        try:
            for choice, piece in pieces:
                yield event(dict(frame, choices=[asked.choice_json(choice, piece, choice not in begun)]))
                begun.add(choice)
        except Refusal as refusal:
            yield event(refusal.json())
            return
        if asked.with_usage:
            yield event(dict(frame, choices=[], usage=asked.usage()))
        yield 'data: [DONE]\n\n'


def event(values):
    return 'data: %s\n\n' % json.dumps(values)


def host_name(header):
    """The name in a Host header, without the port and the brackets of IPv6."""
    name = header.rpartition(':')[0] if header.rpartition(':')[2].isdigit() else header
    return name.strip('[]').lower()


# The server

def listening_socket(host, port):
    """A socket that listens on an address; clients wait until it is served. Raises OSError if that is impossible."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(1024)
    except OSError as error:
        raise OSError('cannot listen on %s, port %d: %s; give another --port' % (host, port, error.strerror))
    return found


def url_of(host, sock):
    return 'http://%s:%d/' % ('[%s]' % host if ':' in host else host, sock.getsockname()[1])


def warm_up(engine, text_encoder, model_name):
    """Compute a token, so that the first client need not wait for TensorFlow. Raises ValueError if that fails."""
    asked = Request({'max_tokens': 1, 'logprobs': 1}, text_encoder, engine.hparams, model_name, 1)
    engine.submit(asked.choices)
    list(asked.pieces())


def run(app, engine, sock):
    """Serve until Ctrl-C. Then running requests have STOP_SECONDS to end."""
    logging.getLogger('waitress').setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_CONNECTIONS + 500 if hard == resource.RLIM_INFINITY else min(hard, MAX_CONNECTIONS + 500)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # A client that goes away is noticed at once if its connection is read from. On Python 3.5 waitress cannot do that.
    can_look_ahead = hasattr(waitress.adjustments.Adjustments, 'channel_request_lookahead')
    server = waitress.create_server(
        app, sockets=[sock], threads=engine.max_waiting + engine.max_rows + 8,  # each request occupies one
        ident=None, max_request_body_size=16 * MAX_BODY_BYTES, connection_limit=MAX_CONNECTIONS, backlog=1024,
        channel_timeout=IDLE_SECONDS, cleanup_interval=5, asyncore_use_poll=True,
        outbuf_high_watermark=2 ** 30,  # a client that reads nothing does not keep its thread from ending
        **({'channel_request_lookahead': 1} if can_look_ahead else {}))
    with contextlib.suppress(KeyboardInterrupt), process.interruptible():
        process.wait_for(server.run)
    report('stopping')
    engine.stop(STOP_SECONDS, 'the server is stopping')
    deadline = time.time() + 1.5
    while time.time() < deadline and any(channel.requests or channel.total_outbufs_len
                                         for channel in list(server.active_channels.values())):
        time.sleep(0.05)
