"""The server: the completions API as clients know it, what it refuses, and that nobody disturbs anybody else."""
import contextlib
import http.client
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip('flask', reason='needs Flask and waitress: pip install flask waitress')
pytest.importorskip('waitress', reason='needs Flask and waitress: pip install flask waitress')

import encoder
from gpt2 import checkpoint
from gpt2.sampler import load, random_draws
from gpt2.serving import loading, web
from gpt2.serving.completions import Refusal, Request
from gpt2.serving.batches import BatchEngine, Turns
from gpt2.system import process
from gpt2.system.tf1 import tf
from helpers import peers, reference
from helpers.paths import MODELS, SRC
from helpers.processes import SECONDS, Conversation
import serve

with_litert = pytest.mark.skipif(tf.__version__.startswith('1.'), reason='TensorFlow 1.12 has no LiteRT')
JSON = {'Content-Type': 'application/json'}
PROMPT = 'Once upon a time'


@contextlib.contextmanager
def running(*flags):
    """The Conversation with a server of the demo model, and its port."""
    command = [sys.executable, os.path.join(SRC, 'serve.py'), '--model_name', 'demo', '--port', '0'] + list(flags)
    with Conversation(command) as server:
        line = server.read_until(b'/\n').decode('ascii')
        yield server, int(re.match(r'demo: http://127\.0\.0\.1:(\d+)/\n', line).group(1))


@pytest.fixture(scope='module')
def port():
    """The port of a server that all tests of this file use."""
    with running('--batch_size', '16') as (_, port):
        yield port


@contextlib.contextmanager
def asking(port, body, path='/v1/completions', method='POST', headers=JSON):
    """The response to a request, still open. body: bytes, or an object for JSON."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=SECONDS)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        with contextlib.closing(connection.getresponse()) as response:  # which may outlive its connection
            yield response
    finally:
        connection.close()


def ask(port, **body):
    """The answer of a server that has no objection."""
    with asking(port, body) as response:
        answer = json.loads(response.read().decode('utf-8'))
        assert response.status == 200, answer
        return answer


def events(response):
    """The events of a stream, but for its last one."""
    found = [line[len(b'data: '):].decode('utf-8') for line in response if line.strip()]
    assert found.pop() == '[DONE]\n'
    return [json.loads(event) for event in found]


@pytest.fixture(scope='module')
def model():
    """The demo model's (Encoder, HParams)."""
    return encoder.get_encoder('demo'), checkpoint.load_hparams('demo')


# What a client gets

@pytest.mark.slow
@pytest.mark.parametrize('options', [
    {'temperature': 0}, {'top_k': 40}, {'top_p': 0.8, 'temperature': 0.7}, {'top_k': 5, 'top_p': 0.5}, {}],
    ids=lambda options: ' '.join(sorted(options)) or 'none')
def test_completion_is_the_sample_of_the_same_seed(port, sampler, options):
    """Sampler computes it by another graph, in which temperature, top_k and top_p are constants."""
    text = ask(port, prompt=PROMPT, max_tokens=30, seed=7, **options)['choices'][0]['text']
    expected, = sampler.sample([PROMPT], length=30, seed=7, **options)
    assert text == expected


@pytest.fixture(scope='module')
def sampler():
    with load('demo') as found:
        yield found


@pytest.mark.slow
def test_logprobs_are_those_of_the_network(port, model):
    """Of the prompt and of new tokens, before temperature and filters: by the papers, in NumPy."""
    reader = tf.train.load_checkpoint(os.path.join(MODELS, 'demo', 'model.ckpt'))
    weights = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    answer = ask(port, prompt=[PROMPT, 'The'], max_tokens=6, seed=1, temperature=0.5, top_k=40, logprobs=4, echo=True,
                 return_token_ids=True)
    for choice in answer['choices']:
        ids, found = choice['token_ids'], choice['logprobs']
        logits_TV = reference.forward(weights, [ids[:-1]], model[1].n_head)[0][0]
        logprob_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
        assert found['token_logprobs'][0] is found['top_logprobs'][0] is None and len(ids) > 6
        np.testing.assert_allclose(found['token_logprobs'][1:], logprob_TV[np.arange(len(ids) - 1), ids[1:]], atol=1e-4)
        for own, top_ids, top, logprob_V in zip(ids[1:], found['top_token_ids'][1:], found['top_logprobs'][1:],
                                                logprob_TV):
            expected = np.argsort(-logprob_V)[:4].tolist()
            assert top_ids == expected + [own] * (own not in expected)
            assert set(top) == {model[0].decode([number]) for number in top_ids}
            np.testing.assert_allclose(sorted(top.values()), sorted(logprob_V[top_ids]), atol=1e-4)
        assert ''.join(found['tokens']) == choice['text']
        assert [choice['text'][begin:].startswith(token) for begin, token in zip(found['text_offset'], found['tokens'])]


def test_stream_brings_the_same_as_one_answer(port):
    body = dict(prompt=[PROMPT, 'x'], n=2, max_tokens=12, seed=3, top_k=40, logprobs=2, return_token_ids=True,
                stop='and')
    with asking(port, dict(body, stream=True, stream_options={'include_usage': True})) as response:
        assert response.getheader('Content-Type').startswith('text/event-stream')
        chunks = events(response)
    whole = ask(port, **body)
    assert chunks.pop()['usage'] == whole['usage']
    assert whole['usage']['total_tokens'] == whole['usage']['prompt_tokens'] + whole['usage']['completion_tokens']
    assert len(whole['choices']) == 4 < len(chunks)
    for index, choice in enumerate(whole['choices']):
        pieces = [chunk['choices'][0] for chunk in chunks if chunk['choices'][0]['index'] == index]
        assert ''.join(piece['text'] for piece in pieces) == choice['text']
        assert sum((piece['token_ids'] for piece in pieces), []) == choice['token_ids']
        for name in choice['logprobs']:
            assert sum((piece['logprobs'][name] for piece in pieces), []) == choice['logprobs'][name]
        assert [piece['finish_reason'] for piece in pieces] == [None] * (len(pieces) - 1) + [choice['finish_reason']]
        assert pieces[0]['prompt_token_ids'] == choice['prompt_token_ids']


def test_same_seed_gives_the_same_text_alone_and_beside_others(port):
    """Each completion has its own draws: those of its number, whatever the other prompts are."""
    alone = ask(port, prompt=PROMPT, n=3, max_tokens=8, seed=5)['choices']
    both = ask(port, prompt=['x y z', PROMPT], n=3, max_tokens=8, seed=5)['choices']
    texts = [choice['text'] for choice in alone]
    assert [choice['text'] for choice in both[3:]] == texts and len(set(texts)) == 3
    unseeded = ask(port, prompt=[PROMPT, PROMPT], max_tokens=20)['choices']
    assert unseeded[0]['text'] != unseeded[1]['text']


def test_openai_client_works_unchanged(port):
    """openai 0.8 on Python 3.6, the current one elsewhere."""
    openai = pytest.importorskip('openai', reason='needs openai')
    address, prompt = 'http://127.0.0.1:%d' % port, dict(model='demo', prompt=PROMPT, max_tokens=9, seed=2)
    if hasattr(openai, 'OpenAI'):
        client = openai.OpenAI(api_key='any', base_url=address + '/v1', max_retries=0)
        create, models = client.completions.create, [one.id for one in client.models.list()]
        refused, read = openai.BadRequestError, lambda chunk: chunk.choices[0].text
    else:
        openai.api_key, openai.api_base = 'any', address  # to which it adds /v1
        create, models = openai.Completion.create, ['demo']
        refused, read = openai.error.InvalidRequestError, lambda chunk: chunk['choices'][0]['text']
    assert models == ['demo']
    text = read(create(**prompt))
    chunks = [read(chunk) for chunk in create(stream=True, **prompt)]
    assert text == ''.join(chunks) == ask(port, **prompt)['choices'][0]['text'] and len(chunks) > 1
    with pytest.raises(refused, match='temperature'):
        create(temperature=-1, **prompt)


@pytest.mark.slow
def test_lm_eval_finds_the_figures_of_evaluate(port, model, shared, tmpdir):
    """local-completions, with echo and logprobs, on LAMBADA; evaluate.py shares no code with it but the network."""
    for name in ('lm_eval', 'transformers', 'tenacity'):
        if importlib.util.find_spec(name) is None:
            pytest.skip('needs lm-eval: pip install lm-eval[api]')
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    import transformers
    from gpt2.evaluation import documents, lambada, loading
    folder = os.path.join(MODELS, 'demo')
    transformers.GPT2Tokenizer(vocab=os.path.join(folder, 'encoder.json'), merges=os.path.join(folder, 'vocab.bpe')
                               ).save_pretrained(str(tmpdir))
    harness = LocalCompletionsAPI(
        base_url='http://127.0.0.1:%d/v1/completions' % port, model='demo', tokenizer_backend='huggingface',
        tokenizer=str(tmpdir), max_length=model[1].n_ctx + 1, batch_size=5, max_retries=1)
    passages = lambada.read('lambada', os.path.join(shared, 'eval', 'lambada_test.jsonl'))[:20]
    options = documents.Options(None, None, 2, None)
    with loading.load('demo', 'models', options) as loaded:
        guess = loaded.guesser([])
        passages[1::2] = [peers.with_guess(loaded, guess, passage) for passage in passages[1::2]]
        reading = lambada.readings(loaded, 'lambada', passages)[0]
        figures = lambada.measure(loaded, 'lambada', passages, options, reading)
    ours = {name: found.value() for name, found in figures[0]}
    theirs = peers.harness_lambada(harness, passages, str(tmpdir))
    assert ours['last word; perplexity'] == pytest.approx(theirs['perplexity'], rel=1e-4)
    assert ours['last word; accuracy'] == pytest.approx(100 * theirs['acc'], rel=1e-4)
    assert 0 < theirs['acc'] < 1, 'no passage proves what a hit is'


# Load

def requests(text_encoder):
    """Random requests of all kinds. Their top_k is small enough for logprobs to show the whole distribution."""
    found = random.Random(4)
    words = text_encoder.decode(text_encoder.encode(PROMPT * 30)).split()
    for seed in range(24):
        yield dict(prompt=' '.join(found.sample(words, found.randrange(1, 60))), seed=seed, top_k=found.randrange(1, 6),
                   temperature=found.choice([0, 0.7, 1]), max_tokens=found.randrange(1, 24), logprobs=5,
                   return_token_ids=True)


def margin(body, answer):
    """How far each draw of a sampled text was from giving another token, at the least."""
    choice, = answer['choices']
    draws, margins = random_draws(body['seed'], [0], body['max_tokens'])[0], []
    for draw, ids, top in zip(draws, choice['logprobs']['top_token_ids'], choice['logprobs']['top_logprobs']):
        likely = sorted(top.values(), reverse=True)
        if body['temperature'] == 0:
            margins.append(likely[0] - likely[1])
            continue
        pairs = [pair for pair in sorted(zip(ids, likely)) if pair[1] >= likely[body['top_k'] - 1]]
        shares = np.exp([(logprob - likely[0]) / body['temperature'] for _, logprob in pairs])
        margins += np.abs(np.cumsum(shares) / shares.sum() - draw)[:-1].tolist()
        if body['top_k'] < len(likely):
            margins.append(likely[body['top_k'] - 1] - likely[body['top_k']])
    return min(margins, default=math.inf)


@pytest.mark.slow
def test_answers_under_load_equal_those_alone(port, model):
    """32 clients at a time, some of whom go away or send nonsense. Near ties, which rounding decides, are left out."""
    pairs = [(body, ask(port, **body)) for body in requests(model[0])]
    pairs = [(body, answer['choices']) for body, answer in pairs if margin(body, answer) > 1e-4]
    assert len(pairs) > 12
    wrong = []

    def client(number):
        try:
            for body, expected in random.Random(number).sample(pairs, 1):
                with asking(port, {'prompt': PROMPT, 'n': 2, 'max_tokens': 200, 'stream': True}) as gone:
                    gone.readline()
                with asking(port, dict(body, top_p=2)) as refused:
                    assert refused.status == 400
                while True:
                    with asking(port, body) as response:
                        answer = json.loads(response.read().decode('utf-8'))
                    if response.status != 503:
                        break
                    time.sleep(int(response.getheader('Retry-After')) / 10)
                for ours, theirs in zip(answer['choices'], expected):
                    for logprobs in ours['logprobs'], theirs['logprobs']:
                        logprobs['token_logprobs'] = logprobs['top_logprobs'] = None  # which are rounded
                        logprobs['top_token_ids'] = None
                assert answer['choices'] == expected
        except Exception as error:
            wrong.append(error)

    clients = [threading.Thread(target=client, args=[number]) for number in range(32)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert not wrong
    assert ask(port, prompt='', max_tokens=1)['usage']['completion_tokens'] == 1


# Strangers

def raw(port, text):
    """A connection on which text was sent."""
    connection = socket.create_connection(('127.0.0.1', port), SECONDS)
    connection.sendall(text)
    return connection


def test_server_survives_what_strangers_send(port):
    host = b'Host: localhost\r\n'
    huge = raw(port, b'POST /v1/completions HTTP/1.1\r\n' + host + b'Content-Length: 1073741824\r\n\r\n')
    half = raw(port, b'POST /v1/completions HTTP/1.1\r\n' + host + b'Content-Length: 100\r\n\r\n{"pro')
    idle = [raw(port, b'') for _ in range(300)]
    try:
        assert b' 413 ' in huge.recv(1000)
        for path in ('/../../../etc/passwd', '/..%2f..%2fetc/passwd', '/v1/../../etc/passwd', '/static/x', '//etc'):
            with asking(port, b'', path=path, method='GET') as response:
                assert response.status in (400, 404) and b'root:' not in response.read()
        text = ask(port, prompt='\0' * 100 + '\ud800', max_tokens=3)
        assert text['usage']['completion_tokens'] == 3
    finally:
        for connection in [huge, half] + idle:
            connection.close()


@pytest.fixture(scope='module')
def client():
    """A function that asks an application whose queue is always full. Returns (status, answer, headers)."""
    return client_of()


def refuse(rows):
    raise Refusal('full', status=503)


def client_of(host='127.0.0.1', api_key=None):
    class Silent(object):
        hparams, max_waiting, stopped, waiting = checkpoint.load_hparams('demo'), 8, False, []
        submit = staticmethod(refuse)

    app = web.application(Silent, encoder.get_encoder('demo'), 'demo', host, api_key)

    def send(body=b'{}', method='POST', path='/v1/completions', headers=JSON):
        headers = dict({'Host': 'localhost'}, **headers)
        response = app.test_client().open(path, method=method, data=body, headers=headers)
        text = response.get_data(as_text=True)
        return response.status_code, json.loads(text) if text else None, response.headers

    return send


BAD = [
    ({'temperature': -1}, 'temperature'), ({'temperature': float('nan')}, 'temperature'), ({'top_p': 0}, 'top_p'),
    ({'top_p': 1.5}, 'top_p'), ({'top_k': -1}, 'top_k'), ({'top_k': 1.5}, 'top_k'), ({'n': 0}, 'n'), ({'n': 9}, 'n'),
    ({'prompt': ['a'] * 5, 'n': 2}, 'n'), ({'max_tokens': -1}, 'max_tokens'), ({'max_tokens': 257}, 'max_tokens'),
    ({'max_tokens': True}, 'max_tokens'), ({'max_tokens': 10 ** 30}, 'max_tokens'), ({'logprobs': 11}, 'logprobs'),
    ({'seed': 2 ** 32}, 'seed'), ({'stop': ['a'] * 5}, 'stop'), ({'stop': 7}, 'stop'), ({'stop': [7]}, 'stop'),
    ({'prompt': 7}, 'prompt'), ({'prompt': []}, 'prompt'), ({'prompt': [4096]}, 'prompt'), ({'prompt': [-1]}, 'prompt'),
    ({'prompt': [1, 'a']}, 'prompt'), ({'prompt': ['a', 1]}, 'prompt'), ({'prompt': {'a': 1}}, 'prompt'),
    ({'prompt': [1] * 257, 'max_tokens': 1}, 'max_tokens'), ({'prompt': [1] * 258, 'max_tokens': 0}, 'max_tokens'),
    ({'stream': 'yes'}, 'stream'), ({'echo': 1}, 'echo'), ({'suffix': 'end'}, 'suffix'), ({'best_of': 2}, 'best_of'),
    ({'presence_penalty': 0.5}, 'presence_penalty'), ({'frequency_penalty': 1}, 'frequency_penalty'),
    ({'logit_bias': {'50256': -100}}, 'logit_bias'), ({'min_p': 0.1}, 'min_p'),
    ({'stream_options': 1}, 'stream_options')]


@pytest.mark.parametrize('body, name', BAD, ids=lambda value: value if isinstance(value, str) else '')
def test_request_out_of_range_is_refused_by_name(client, body, name):
    status, answer, _ = client(json.dumps(body))
    assert status == 400 and answer['error']['param'] == name and name in answer['error']['message']
    assert answer['error']['type'] == 'invalid_request_error'


@pytest.mark.parametrize('body', [
    {'best_of': 1}, {'best_of': 2, 'n': 2}, {'suffix': '', 'logit_bias': {}, 'presence_penalty': 0},
    {'temperature': None, 'n': None, 'best_of': None, 'stop': None, 'stream': None, 'max_tokens': None}],
    ids=lambda body: ' '.join(sorted(body)))
def test_request_with_values_that_change_nothing_is_taken(client, body):
    """The queue refuses it then."""
    assert client(json.dumps(body))[0] == 503


@pytest.mark.parametrize('body, status', [
    (b'', 400), (b'{', 400), (b'\xff\xfe', 400), (b'[' * 100000, 400), (b'[]', 400), (b'null', 400), (b'"text"', 400),
    (b'{"model": "gpt-3"}', 404), (b'{"prompt": "%s"}' % (b'a' * 2 ** 20), 413)],
    ids=['nothing', 'half', 'UTF-16', 'deep', 'list', 'null', 'text', 'model', 'long'])
def test_body_that_is_no_request_is_refused(client, body, status):
    found, answer, _ = client(body)
    assert found == status and set(answer['error']) == {'message', 'type', 'param', 'code'}


@pytest.mark.parametrize('name, status', [
    ('localhost', 404), ('127.0.0.1:8000', 404), ('[::1]:8000', 404), ('LOCALHOST:1', 404), ('evil.example', 400),
    ('localhost.evil.example:8000', 400), ('127.0.0.1.evil.example', 400), ('', 400)])
def test_host_must_be_a_name_of_this_machine(client, name, status):
    """Otherwise a page on the web could have its own name point here, and read the answers."""
    assert client(path='/nothing', headers={'Host': name}, method='GET')[0] == status


def test_pages_of_others_cannot_send_requests(client):
    """A form sends other types than JSON; for JSON, browsers ask first, and no answer allows it."""
    assert client(headers={'Content-Type': 'text/plain'})[0] == 415
    for method in 'OPTIONS', 'POST':
        headers = client(method=method, headers=dict(JSON, Origin='http://evil.example'))[2]
        assert not [name for name in headers.keys() if name.lower().startswith('access-control')]


def test_host_is_the_same_in_small_and_capital_letters():
    for name in 'MyComputer:8000', 'mycomputer':
        assert client_of(host='MyComputer')(path='/nothing', headers={'Host': name}, method='GET')[0] == 404


def test_key_is_needed_for_the_api_alone():
    send = client_of(host='192.0.2.1', api_key='secret')
    models = dict(method='GET', path='/v1/models')
    for headers in [{}] + [{'Authorization': value} for value in ('Bearer wrong', 'secret', 'Bearer s\xe9')]:
        assert send(headers=headers, **models)[0] == 401
        assert send(headers=dict(JSON, **headers))[0] == 401
    status, answer, _ = send(headers={'Authorization': 'Bearer secret'}, **models)
    assert status == 200 and answer['data'][0]['id'] == 'demo' and answer['data'][0]['context_length'] == 256
    assert send(method='GET', path='/healthz')[0] == 200
    assert send(headers={'Host': '192.0.2.1:8000', 'Authorization': 'Bearer secret'}, **models)[0] == 200


def test_full_queue_is_told_at_once(client):
    status, answer, headers = client()
    assert status == 503 and headers['Retry-After'] and answer['error']['type'] == 'server_error'


def test_page_runs_nothing_from_elsewhere(port):
    with asking(port, b'', path='/', method='GET') as response:
        assert response.status == 200 and response.getheader('Content-Type') == 'text/html; charset=utf-8'
        assert "default-src 'none'" in response.getheader('Content-Security-Policy')
        assert response.getheader('X-Content-Type-Options') == 'nosniff'


def test_log_shows_control_characters(capfd):
    client_of()(path='/a%1b[31m%0aforged', method='GET')
    assert '"GET /a\\x1b[31m\\x0aforged" 404' in capfd.readouterr().err


def test_metrics_count_requests_and_tokens(port):
    pytest.importorskip('prometheus_client', reason='needs prometheus_client')

    def counted():
        with asking(port, b'', path='/metrics', method='GET') as response:
            return dict(line.rsplit(' ', 1) for line in response.read().decode('ascii').splitlines() if line[0] != '#')

    before = counted()
    ask(port, prompt=PROMPT, max_tokens=5)
    name = 'gpt2_tokens_total{kind="%s"}'
    for kind, n in ('prompt', 4), ('completion', 5):
        while float(counted()[name % kind]) - float(before.get(name % kind, 0)) < n:  # counted after the answer is sent
            time.sleep(0.01)


# The text of a choice

def choice_of(stops=(), prompt=(1,), max_tokens=99, **values):
    """A Choice whose tokens are bytes, and what it has brought: a list of (text, token ids, finish reason)."""
    class Bytes(object):
        end_of_text = 256

        def encode(self, text):
            return list(text.encode('utf-8'))

        def decode_bytes(self, tokens):
            return b''.join(b'<end>' if token == 256 else bytes([token]) for token in tokens)

    hparams = checkpoint.load_hparams('demo')
    values.update(prompt=list(prompt), stop=list(stops), max_tokens=max_tokens)
    request = Request(values, Bytes(), hparams, 'tiny', 1)
    choice, = request.choices

    def brought():
        found = []
        while not request.events.empty():
            _, piece = request.events.get()
            found.append((piece.text, [token.id for token in piece.tokens], piece.finish_reason))
        return found

    choice.begin(None)
    return choice, brought


def feed(choice, text):
    for byte in text.encode('utf-8'):
        if not choice.ended:
            choice.take(byte, 0.0, [], [])


def test_choice_holds_back_what_may_become_a_stop_string():
    choice, brought = choice_of(['END', 'X'])
    feed(choice, 'aEN')
    assert [piece[0] for piece in brought()] == ['a']
    feed(choice, 'b')
    assert ''.join(piece[0] for piece in brought()) == 'ENb' and not choice.ended
    feed(choice, 'cEND more')
    found = brought()
    assert ''.join(piece[0] for piece in found) == 'c' and found[-1][2] == 'stop' and choice.ended
    assert sum((piece[1] for piece in found), []) == [ord('c')]


def test_choice_compares_no_more_of_a_stop_string_than_it_has_text():
    """One of a million characters would keep all clients waiting for a minute at each token."""
    class Stop(str):
        def __getitem__(self, part):
            compared.append(part.stop)
            return str.__getitem__(self, part)

    compared = []
    choice, brought = choice_of([Stop('bb' + 'e' * 1000)])
    feed(choice, 'abba')
    assert ''.join(piece[0] for piece in brought()) == 'abba' and max(compared) <= 4
    feed(choice, 'b')
    assert not brought(), 'the beginning of the stop string was not held back'


def test_choice_sends_whole_characters():
    choice, brought = choice_of(max_tokens=4)
    feed(choice, 'h\u00e9')
    assert brought() == [('h', [104], None), ('', [0xc3], None), ('\u00e9', [0xa9], None)]
    choice.take(0xe2, 0.0, [], [])
    assert brought() == [('\ufffd', [0xe2], 'length')]


def test_choice_goes_on_inside_a_character_of_its_prompt():
    choice, brought = choice_of(prompt=[104, 0xc3])
    choice.take(0xa9, 0.0, [], [])
    assert brought() == [('\u00e9', [0xa9], None)]


def test_choice_ends_at_the_end_of_the_text_which_is_a_token_but_no_text():
    choice, brought = choice_of(echo=True, prompt=[97])
    choice.take(256, 0.0, [], [])
    assert brought() == [('a', [97], None), ('', [256], 'stop')]


def test_choice_without_new_tokens_is_the_prompt_alone():
    _, brought = choice_of(echo=True, max_tokens=0, prompt=[97, 98])
    assert brought() == [('ab', [97, 98], 'length')]
    _, brought = choice_of(stops=['b'], max_tokens=0, prompt=[97, 98])
    assert brought() == [('', [], 'length')]


def test_name_of_a_token_that_is_no_text(model):
    request = Request({'return_token_ids': True, 'logprobs': 1}, model[0], model[1], 'demo', 1)
    token, = [token for token in range(model[1].n_vocab) if model[0].decode_bytes([token]) == b'\xe2']
    assert request.name(token) == 'bytes:\\xe2' and request.name(model[0].encode('the')[0]) == 'the'


# The engine

class Held(BatchEngine):
    """An Engine whose batches run until the event `go`, and compute nothing."""

    def build(self, *arguments):
        self.go, self.started = threading.Event(), []

    def run(self, number, rows):
        self.started.append(rows)
        self.go.wait(SECONDS)
        with self.changed:
            for row in rows:
                row.ended = True
            del self.running[number]
            self.changed.notify_all()


class Quiet(object):
    """A row that only waits."""

    def __init__(self, length=3, max_tokens=99):
        self.prompt, self.max_tokens, self.ended, self.failed = [1] * length, max_tokens, False, None

    def fail(self, message):
        self.ended, self.failed = True, message


def wait_until(condition):
    end = time.time() + SECONDS
    while not condition():
        assert time.time() < end
        time.sleep(0.01)


def test_engine_refuses_rows_over_its_limit_and_forgets_those_withdrawn():
    engine = Held(None, '', '', '', 2, 3)
    first, waiting = [Quiet(), Quiet()], [Quiet(), Quiet()]
    engine.submit(first)
    wait_until(lambda: engine.started == [first])
    engine.submit(waiting)
    with pytest.raises(Refusal, match='too many') as refused:
        engine.submit([Quiet(), Quiet()])
    assert refused.value.status == 503
    engine.withdraw(waiting)
    last = [Quiet(), Quiet(), Quiet()]
    engine.submit(last)
    assert engine.waiting == last and all(row.ended for row in waiting)
    engine.go.set()
    wait_until(lambda: all(row.ended for row in last))
    assert engine.started[1:] == [last[:2], last[2:]]


def test_engine_computes_prompts_of_like_length_together():
    """A row joins a longer one only if it wants enough tokens to use the steps in which that one's prompt is fed."""
    engine = Held(None, '', '', '', 8, 8)
    rows = [Quiet(3), Quiet(200), Quiet(60), Quiet(195, 5), Quiet(194, 5)]
    engine.submit(rows)
    wait_until(lambda: len(engine.started) == 3)
    assert engine.started == [[rows[0], rows[2]], [rows[1], rows[3]], [rows[4]]]
    engine.go.set()


def test_engine_that_stops_tells_all_rows():
    engine = Held(None, '', '', '', 1, 3)
    rows = [Quiet(), Quiet()]
    engine.submit(rows)
    wait_until(lambda: engine.started)
    engine.stop(0.01, 'stopping')
    assert [row.failed for row in rows] == ['stopping'] * 2
    with pytest.raises(Refusal):
        engine.submit([Quiet()])
    engine.go.set()


def test_turns_are_taken_in_the_order_of_asking():
    turns, order, threads = Turns(), [], []

    def take(number):
        turns.take(number)
        order.append(number)
        turns.give(number)

    turns.take(-1)
    for number in range(5):
        threads.append(threading.Thread(target=take, args=[number]))
        threads[-1].start()
        wait_until(lambda: len(turns.asked) == 1 + len(threads))
    turns.give(99)  # which has not asked
    turns.give(-1)
    for one in threads:
        one.join(SECONDS)
    assert order == list(range(5))
    turns.take(0)


class Listed(Quiet):
    """A row that keeps its tokens, and calls a function after each."""

    def __init__(self, n, prompt=(1, 2), after=lambda row: None, seed=0):
        super(Listed, self).__init__(max_tokens=n)
        self.prompt, self.draws = list(prompt), random_draws(seed, [0], n)[0]
        self.temperature, self.top_k, self.top_p = 1.0, 0, 1.0
        self.wants_top, self.is_scored, self.tokens, self.after = False, False, [], after
        self.done = threading.Event()

    def begin(self, predictions):
        pass

    def take(self, token, logprob, top_ids, top_logprobs):
        self.tokens.append(token)
        self.after(self)
        self.ended = self.ended or len(self.tokens) == self.max_tokens
        if self.ended:
            self.done.set()

    def fail(self, message):
        super(Listed, self).fail(message)
        self.done.set()


@pytest.fixture(scope='module')
def batch_engine(tiny_models):
    return BatchEngine(checkpoint.load_hparams('tiny', tiny_models), 'tiny', tiny_models, 'float32', 4, 8)


@pytest.fixture(scope='module', params=['in batches', 'float32', 'int8'])
def engine(request, tiny_models, batch_engine):
    if request.param == 'in batches':
        return batch_engine
    if tf.__version__.startswith('1.'):
        pytest.skip('TensorFlow 1.12 has no LiteRT')
    return loading.load(checkpoint.load_hparams('tiny', tiny_models), 'tiny', tiny_models, request.param, 4, 8)


@pytest.fixture(scope='module')
def step_engine(tiny_models):
    return loading.load(checkpoint.load_hparams('tiny', tiny_models), 'tiny', tiny_models, 'float32', 4, 8)


@pytest.mark.slow
def test_batch_engine_lets_a_short_row_by_while_a_long_one_runs(batch_engine):
    """The long one waits after its third token until the short one has ended, which would take forever in one queue."""
    short = Listed(4)
    waited = []
    long = Listed(20, after=lambda row: len(row.tokens) == 3 and (
        batch_engine.submit([short]), waited.append(short.done.wait(SECONDS))))
    batch_engine.submit([long])
    assert long.done.wait(SECONDS)
    assert waited == [True] and (len(short.tokens), len(long.tokens)) == (4, 20)
    wait_until(lambda: not batch_engine.running)


@pytest.mark.slow
def test_batch_engine_computes_a_batch_while_three_others_wait(batch_engine, monkeypatch):
    """Each row waits at its first token until the next one has ended: TensorFlow has a thread for each batch."""
    monkeypatch.setattr('gpt2.serving.batches.WAIT_SECONDS', 0)
    wait_until(lambda: not batch_engine.running)
    rows, waited = [Listed(3)], []
    for _ in range(3):
        rows.append(Listed(3, after=lambda row, other=rows[-1]: len(row.tokens) == 1 and (
            batch_engine.submit([other]), waited.append(other.done.wait(SECONDS / 10)))))
    batch_engine.submit(rows[-1:])
    assert rows[-1].done.wait(SECONDS)
    assert waited == [True] * 3 and [len(row.tokens) for row in rows] == [3] * 4
    wait_until(lambda: not batch_engine.running)


@pytest.mark.slow
def test_batch_engine_ends_a_batch_whose_clients_are_gone(batch_engine, monkeypatch):
    """The batch takes no turn after the token at which its last client went away."""
    wait_until(lambda: not batch_engine.running)
    taken, take = [], batch_engine.turns.take
    monkeypatch.setattr(batch_engine.turns, 'take', lambda number: taken.append(take(number)))
    row = Listed(28, after=lambda row: len(row.tokens) == 3 and batch_engine.withdraw([row]))
    batch_engine.submit([row])
    wait_until(lambda: not batch_engine.running and not batch_engine.waiting)
    assert len(row.tokens) == 3 and len(taken) == 2


@pytest.mark.slow
def test_engine_ends_rows_whose_clients_are_gone(engine):
    row = Listed(28, after=lambda row: len(row.tokens) == 3 and engine.withdraw([row]))
    engine.submit([row])
    wait_until(lambda: not engine.running and not engine.waiting)
    assert len(row.tokens) == 3


@with_litert
def test_step_engine_reads_a_long_prompt_in_parts_beside_the_tokens_of_others(tiny_models, monkeypatch):
    """A few tokens of prompts a step, in the order in which they came, and one token of each other text. A new text
    joins the others at the next step. A part is never cut for others.
    """
    monkeypatch.setattr('gpt2.serving.steps.PROMPT_TOKENS', 4)
    hparams, steps = checkpoint.load_hparams('tiny', tiny_models), []
    engine = loading.load(hparams, 'tiny', tiny_models, 'float32', 4, 8)
    next_states = engine.network.next_states
    monkeypatch.setattr(engine.network, 'next_states', lambda fed, pasts: (
        steps.append([tokens.size for tokens in fed]), next_states(fed, pasts))[1])
    late = [Listed(2, range(10)), Listed(2, [3, 4]), Listed(2, [3, 4, 5])]
    first = Listed(6, [1], after=lambda row: len(row.tokens) == 1 and engine.submit(late))
    engine.submit([first])
    for row in [first] + late:
        assert row.done.wait(SECONDS)
    assert steps == [[1], [1, 4], [1, 4], [1, 2, 2], [1, 1, 1, 3], [1, 1]]
    del steps[:]
    alone = Listed(2, range(10))
    engine.submit([alone])
    assert alone.done.wait(SECONDS)
    assert steps == [[4], [4], [2], [1]] and alone.tokens == late[0].tokens


@pytest.mark.slow
def test_engine_gives_rows_of_a_batch_what_each_gets_alone(engine):
    """Prompts and lengths differ, and a row that ends early does not disturb the others."""
    def rows():
        found = [Listed(n, prompt, seed=n) for n, prompt in ((20, [3]), (5, [4, 5, 6, 7]), (12, [8] * 9))]
        found[1].temperature, found[2].top_k, found[0].top_p = 0, 3, 0.9
        return found

    together, alone = rows(), rows()
    engine.submit(together)
    for row in alone:
        wait_until(lambda: not engine.running and not engine.waiting)
        engine.submit([row])
    for row in together + alone:
        assert row.done.wait(SECONDS)
    assert [row.tokens for row in together] == [row.tokens for row in alone]


class Scored(Listed):
    """A Listed row that keeps what begin() brings, and each token's log-probabilities."""

    def __init__(self, *arguments, is_scored=True, wants_top=True):
        super(Scored, self).__init__(*arguments)
        self.is_scored, self.wants_top, self.predictions, self.tops = is_scored, wants_top, [], []

    def begin(self, predictions):
        self.predictions.append(predictions)
        if not self.max_tokens:
            self.ended = True
            self.done.set()

    def take(self, token, logprob, top_ids, top_logprobs):
        self.tops.append((len(top_ids), len(top_logprobs)))
        super(Scored, self).take(token, logprob, top_ids, top_logprobs)


@pytest.mark.slow
def test_engine_scores_prompts_of_two_tokens_or_more_where_that_is_asked(engine, capsys):
    """Rows that want no new tokens end with it, and do not disturb the others. One alone is no failure."""
    rows = [Scored(3, [4, 5]), Scored(3, [6, 7, 8], is_scored=False), Scored(0, [1]), Scored(0, [1, 2, 3])]
    wait_until(lambda: not engine.running and not engine.waiting)
    engine.submit(rows)
    for row in rows:
        assert row.done.wait(SECONDS)
    assert [[found and len(found.nats) for found in row.predictions] for row in rows] == [[1], [None], [None], [2]]
    assert [(len(row.tokens), row.failed) for row in rows] == [(3, None), (3, None), (0, None), (0, None)]
    wait_until(lambda: not engine.running and not engine.waiting)
    engine.submit([Scored(0, [1, 2])])
    wait_until(lambda: not engine.running and not engine.waiting)
    assert capsys.readouterr() == ('', '')


@pytest.mark.slow
def test_engine_gives_log_probabilities_to_a_row_beside_others_that_want_none(engine):
    rows = [Listed(3, [1, 2]), Scored(3, [3, 4], is_scored=False)]
    wait_until(lambda: not engine.running and not engine.waiting)
    engine.submit(rows)
    for row in rows:
        assert row.done.wait(SECONDS)
    assert rows[1].tops == [(10, 10)] * 3


@pytest.mark.slow
def test_engine_computes_no_more_rows_than_it_may(engine):
    """While some run, others wait."""
    running = []
    rows = [Listed(3, after=lambda row: running.append(len(engine.rows_running()))) for _ in range(6)]
    wait_until(lambda: not engine.running and not engine.waiting)
    engine.submit(rows)
    for row in rows:
        assert row.done.wait(SECONDS)
    assert max(running) == engine.max_rows == 4


@pytest.mark.slow
def test_engine_gives_a_row_no_token_once_it_is_withdrawn(engine):
    """Not even that of the step in which it was."""
    second = Listed(5)
    first = Listed(5, after=lambda row: len(row.tokens) == 2 and engine.withdraw([second]))
    wait_until(lambda: not engine.running and not engine.waiting)
    engine.submit([first, second])
    assert first.done.wait(SECONDS)
    wait_until(lambda: not engine.running and not engine.waiting)
    assert (len(first.tokens), len(second.tokens)) == (5, 1)


@pytest.mark.slow
def test_engine_tells_no_row_that_has_ended_of_a_failure_and_logs_it(engine, capsys):
    rows = [Listed(1), Listed(5, after=lambda row: 1 / 0)]
    wait_until(lambda: not engine.running and not engine.waiting)
    engine.submit(rows)
    for row in rows:
        assert row.done.wait(SECONDS)
    wait_until(lambda: not engine.running)
    assert rows[0].failed is None and 'the log of the server' in rows[1].failed
    assert 'ZeroDivisionError' in capsys.readouterr().err


@with_litert
def test_step_engine_tells_all_running_rows_of_a_failure(step_engine, monkeypatch, capsys):
    """Also those that began in an earlier step; then it goes on with new ones."""
    next_states = step_engine.network.next_states

    def fail(fed, pasts):
        monkeypatch.setattr(step_engine.network, 'next_states', next_states)
        raise MemoryError

    late = Listed(5)
    early = Listed(5, after=lambda row: len(row.tokens) == 2 and (
        step_engine.submit([late]), monkeypatch.setattr(step_engine.network, 'next_states', fail)))
    step_engine.submit([early])
    for row in early, late:
        assert row.done.wait(SECONDS / 10) and 'out of memory' in str(row.failed)
    last = Listed(5)
    step_engine.submit([last])
    assert last.done.wait(SECONDS) and len(last.tokens) == 5


@with_litert
def test_step_engine_scores_one_prompt_a_step(step_engine, monkeypatch):
    """So that those that are running wait for no more than one."""
    order, predictions, step = [], step_engine.predictions, step_engine.step
    monkeypatch.setattr(step_engine, 'predictions', lambda row: (order.append('score'), predictions(row))[1])
    monkeypatch.setattr(step_engine, 'step', lambda texts: (order.append('step'), step(texts)))
    rows = [Scored(2, [1, 2, 3]), Scored(2, [4, 5])]
    step_engine.submit(rows)
    for row in rows:
        assert row.done.wait(SECONDS)
    assert order[:4] == ['score', 'step'] * 2


@with_litert
def test_step_engine_that_stops_ends_with_its_last_row(tiny_models):
    """Long before the seconds that this row may take."""
    engine = loading.load(checkpoint.load_hparams('tiny', tiny_models), 'tiny', tiny_models, 'float32', 4, 8)
    stopping = threading.Thread(target=engine.stop, args=[SECONDS, 'stopping'], daemon=True)
    row = Listed(5, after=lambda row: len(row.tokens) == 2 and (
        stopping.start(), wait_until(lambda: engine.stopped)))
    engine.submit([row])
    assert row.done.wait(SECONDS) and row.failed is None and len(row.tokens) == 5
    stopping.join(SECONDS / 10)
    assert not stopping.is_alive()


@pytest.mark.parametrize('is_litert, name', [(True, 'StepEngine'), (False, 'BatchEngine')])
def test_load_takes_litert_where_it_is_for_the_model(monkeypatch, is_litert, name):
    asked = []
    monkeypatch.setattr('gpt2.fast.lite.is_for', lambda *given: asked.append(given) or is_litert)
    monkeypatch.setattr(loading, name, lambda *given: given)
    arguments = (object(), 'tiny', 'models', 'float32', 4, 8)
    assert loading.load(*arguments) == arguments and asked == [('float32', arguments[0])]


@pytest.mark.slow
def test_engine_goes_on_with_the_others_if_a_row_cannot_begin(engine):
    def fail(predictions):
        raise MemoryError

    bad = Listed(5)
    bad.begin = fail
    good = Listed(6, after=lambda row: len(row.tokens) == 1 and engine.submit([bad]))
    engine.submit([good])
    for row in (good, bad):
        assert row.done.wait(SECONDS)
    assert 'out of memory' in bad.failed and not good.failed and len(good.tokens) == 6
    wait_until(lambda: not engine.running)


@pytest.mark.slow
def test_engine_tells_clients_when_the_model_fails(engine, capsys):
    row = Listed(5, prompt=[10 ** 6])
    engine.submit([row])
    assert row.done.wait(SECONDS) and row.failed
    row = Listed(5)
    engine.submit([row])
    assert row.done.wait(SECONDS) and len(row.tokens) == 5


# The command

@pytest.mark.slow
@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=['Ctrl-C', 'SIGTERM'])
def test_serve_ends_and_tells_its_clients(number, status):
    with running() as (server, port):
        with asking(port, {'prompt': PROMPT, 'n': 32, 'max_tokens': 250, 'stream': True}) as response:
            response.readline()
            server.process.send_signal(number)
            lines = [line for line in response if line.strip()]
        assert lines[-1] == b'data: [DONE]\n' or 'error' in json.loads(lines[-1][len(b'data: '):].decode('utf-8'))
        assert server.end()[0] == status
        assert server.stderr().endswith(b'stopping\n')


@pytest.mark.parametrize('flags, problem', [
    (dict(host='0.0.0.0'), 'api_key'), (dict(host='192.0.2.1', api_key=''), 'api_key'), (dict(api_key=' '), 'api_key'),
    (dict(api_key='schl\xfcssel'), 'ASCII'), (dict(api_key='a\n'), 'api_key'),
    (dict(host='0.0.0.0', api_key='a', no_api_key=True), 'either'), (dict(port=65536), 'port'),
    (dict(batch_size=0), 'batch_size'), (dict(max_waiting=0), 'max_waiting'), (dict(precision='int4'), 'precision'),
    (dict(models_dir='/nowhere'), 'nowhere')], ids=lambda value: value if isinstance(value, str) else '')
def test_serve_refuses_flags_at_once(flags, problem):
    with pytest.raises((ValueError, OSError), match=problem):
        serve.serve('demo', **flags)


def test_serve_says_when_a_port_is_taken():
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen(1)
        with pytest.raises(OSError, match='port %d' % taken.getsockname()[1]):
            serve.serve('demo', port=taken.getsockname()[1])


def test_serve_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'waitress', None)
    with pytest.raises(ImportError, match='pip install flask waitress'):
        serve.serve('demo')


def test_serve_passes_its_flags_on(monkeypatch, tiny_models, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(loading, 'load', lambda *arguments: seen.append(arguments))
    monkeypatch.setattr(web, 'warm_up', lambda *arguments: None)
    monkeypatch.setattr(web, 'application', lambda *arguments: arguments[2:])
    monkeypatch.setattr(web, 'run', lambda app, engine, sock: seen.append((app, sock.close())))
    serve.serve('tiny', '127.0.0.1', 0, 'key', False, 5, 6, 'int8', tiny_models)
    assert seen[0][1:] == ('tiny', tiny_models, 'int8', 5, 6) and seen[1][0] == ('tiny', '127.0.0.1', 'key')
    monkeypatch.setattr(process, 'stdout_is_optional', False)
    shutil.copytree(os.path.join(tiny_models, 'tiny'), str(tmp_path / 'a\x1b[2J'))
    serve.serve('a\x1b[2J', port=0, models_dir=str(tmp_path))
    assert 'a\\x1b[2J: http://' in capsys.readouterr().out
    assert process.stdout_is_optional, 'it ends when nobody reads its address'
    serve.serve('tiny', '0.0.0.0', 0, no_api_key=True, models_dir=tiny_models)
    assert seen[5][0] == ('tiny', '0.0.0.0', None)
