"""OpenAI's completions API: a request in JSON to Choices, and what they bring to answers in JSON. No TensorFlow.

Source: https://platform.openai.com/docs/api-reference/completions. Our extensions are top_k, return_token_ids (which
vLLM has, too), and with it prompt_token_ids, token_ids and top_token_ids in the answers.
"""
import codecs
from collections import OrderedDict, namedtuple
import queue
import time

from gpt2.sampler import random_draws

MAX_LOGPROBS = 10
MAX_STOPS = 4
DEFAULT_MAX_TOKENS = 16
LOWEST_LOGPROB = -9999.0  # JSON has no infinity
NO_EFFECT = {  # what is not supported: the values that change nothing
    'suffix': ('',), 'best_of': (1,), 'presence_penalty': (0,), 'frequency_penalty': (0,), 'logit_bias': ({},)}
NAMES = {'model', 'prompt', 'max_tokens', 'temperature', 'top_p', 'top_k', 'n', 'stop', 'seed', 'stream',
         'stream_options', 'logprobs', 'echo', 'user', 'return_token_ids'}

# top: list of (id, log-probability) of the most likely tokens, most likely first.  offset: where it begins in the text.
# logprob is None where it was not asked for, and for the first token of a prompt.
Token = namedtuple('Token', 'id logprob top offset')
# A part of a choice. finish_reason is None in all but the last one.
Piece = namedtuple('Piece', 'text tokens finish_reason')


class Refusal(ValueError):
    """An answer that is an error, in the API's form."""

    def __init__(self, message, param=None, status=400):
        super(Refusal, self).__init__(message)
        self.message, self.param, self.status = message, param, status

    def json(self):
        kind = 'server_error' if self.status >= 500 else 'invalid_request_error'
        return {'error': dict(message=self.message, type=kind, param=self.param, code=None)}


class Request(object):
    """A request for completions.

    values: the JSON object.  text_encoder, hparams, model_name: the model's.  max_choices: in one request.
    choices: its Choices.  events: a queue of (Choice, Piece or Refusal).  prompts: lists of token ids.
    Raises Refusal for what the API does not allow.
    """

    def __init__(self, values, text_encoder, hparams, model_name, max_choices):
        check_names(values, model_name)
        self.encoder, self.events = text_encoder, queue.Queue()
        self.stream, self.echo, self.with_ids = [
            flag(values, name) for name in ('stream', 'echo', 'return_token_ids')]
        self.with_usage = flag(option(values, 'stream_options', 'an object', (dict,), {}), 'include_usage')
        self.n_top = whole_number(values, 'logprobs', 0, MAX_LOGPROBS)
        n, seed = whole_number(values, 'n', 1, max_choices, 1), whole_number(values, 'seed', 0, 2 ** 32 - 1)
        sampling = dict(temperature=number(values, 'temperature', 0, 1e6), top_p=number(values, 'top_p', 0, 1),
                        top_k=min(whole_number(values, 'top_k', 0, 2 ** 63, 0), hparams.n_vocab))
        if not sampling['top_p']:
            raise Refusal('top_p is 0; it must be over 0, and at most 1', 'top_p')
        stops = stop_strings(values)
        self.prompts = [prompt or [text_encoder.end_of_text] for prompt in prompts_of(values, text_encoder, hparams)]
        if n * len(self.prompts) > max_choices:
            raise Refusal('%d prompts with n %d are %d completions; at most %d in one request'
                          % (len(self.prompts), n, n * len(self.prompts), max_choices), 'n')
        max_tokens = whole_number(values, 'max_tokens', 0, 2 ** 63)
        self.choices = []
        for prompt in self.prompts:
            # The last token is never fed back, but a prompt that is not continued has none.
            room = hparams.n_ctx + 1 - len(prompt)
            length = min(DEFAULT_MAX_TOKENS, room) if max_tokens is None else max_tokens
            if room < length or room < 0:
                raise Refusal('the prompt has %d tokens and max_tokens is %d; together they must be at most %d' % (
                    len(prompt), max(0, length), hparams.n_ctx + 1), 'max_tokens')
            for draws in random_draws(seed, range(n), length):
                self.choices.append(Choice(self, len(self.choices), prompt, length, draws, stops, sampling))

    def pieces(self, is_gone=lambda: False, deadline=float('inf')):
        """Yield each (Choice, Piece), until all choices have ended. Raises Refusal if they do not.

        is_gone: a function that returns whether the client is gone.  deadline: as time.time() has it.
        """
        n_open = len(self.choices)
        while n_open:
            if is_gone():
                raise Refusal('the client is gone', status=499)
            if time.time() > deadline:
                raise Refusal('it took too long; ask for fewer tokens', status=503)
            try:
                choice, piece = self.events.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(piece, Refusal):
                raise piece
            n_open -= piece.finish_reason is not None
            yield choice, piece

    def usage(self):
        """The numbers of tokens so far, as the API has them."""
        n_prompt, n_new = sum(map(len, self.prompts)), sum(choice.n_tokens for choice in self.choices)
        return dict(prompt_tokens=n_prompt, completion_tokens=n_new, total_tokens=n_prompt + n_new)

    def choice_json(self, choice, piece, is_first):
        """A piece of a choice as the API has it. is_first: whether no piece of it was sent before."""
        logprobs = None if self.n_top is None else self.logprobs_json(piece.tokens)
        found = dict(index=choice.index, text=piece.text, logprobs=logprobs, finish_reason=piece.finish_reason)
        if self.with_ids:
            found['token_ids'] = [token.id for token in piece.tokens]
            if is_first:
                found['prompt_token_ids'] = choice.prompt
        return found

    def logprobs_json(self, tokens):
        tops = [OrderedDict(token.top[:self.n_top]) for token in tokens]
        for token, top in zip(tokens, tops):
            if token.logprob is not None:
                top.setdefault(token.id, token.logprob)
        named = [OrderedDict((self.name(number), logprob) for number, logprob in top.items()) for top in tops]
        found = dict(tokens=[self.name(token.id) for token in tokens],
                     token_logprobs=[token.logprob for token in tokens],
                     top_logprobs=[top or None for top in named], text_offset=[token.offset for token in tokens])
        if self.with_ids:
            found['top_token_ids'] = [list(top) for top in tops]
        return found

    def name(self, token):
        """A token's text; for one that is no text by itself, its bytes, such as bytes:\\xe2\\x80."""
        name = self.encoder.decode_bytes([token])
        try:
            return name.decode('utf-8')
        except UnicodeDecodeError:
            return 'bytes:' + ''.join('\\x%02x' % byte for byte in name)


class Choice(object):
    """A completion that grows token by token: an engine.Row. What it brings goes to the queue of its Request.

    Text that may be the beginning of a stop string is held back, and so are bytes that are not a whole character yet.
    """

    def __init__(self, request, index, prompt, max_tokens, draws, stops, sampling):
        self.events, self.encoder, self.index = request.events, request.encoder, index
        self.prompt, self.max_tokens, self.draws, self.stops = prompt, max_tokens, draws, stops
        self.temperature, self.top_k, self.top_p = [sampling[name] for name in ('temperature', 'top_k', 'top_p')]
        self.echo, self.wants_top = request.echo, request.n_top is not None
        self.is_scored = self.echo and self.wants_top
        self.decoder = codecs.getincrementaldecoder('utf-8')('replace')
        self.ended, self.n_tokens, self.text, self.n_sent, self.held = False, 0, '', 0, []

    def begin(self, predictions):
        """Bring the prompt, if it is wanted. predictions: of its tokens from the second one on, or None."""
        for i, token in enumerate(self.prompt):  # the last one may end inside a character
            is_known = predictions is not None and i
            self.add(token, -predictions.nats[i - 1] if is_known else None,
                     predictions.top_ids[i - 1].tolist() if is_known else (),
                     (-predictions.top_nats[i - 1]).tolist() if is_known else ())
        if not self.echo:
            self.text, self.held = '', []
        self.n_before = len(self.text)  # stop strings are looked for after the prompt
        if not self.max_tokens:
            self.end('length')
        elif self.echo:
            self.send(len(self.text))

    def take(self, token, logprob, top_ids, top_logprobs):
        """A new token."""
        n_text = len(self.text)
        self.n_tokens += 1
        self.add(token, logprob if self.wants_top else None, top_ids, top_logprobs)
        if token == self.encoder.end_of_text:
            self.text = self.text[:n_text]
            return self.end('stop')
        found = [self.text.find(stop, max(self.n_before, n_text - len(stop) + 1)) for stop in self.stops]
        found = [place for place in found if place >= 0]
        if found:
            self.text = self.text[:min(found)]
            self.held = [(token, end) for token, end in self.held if token.offset < len(self.text)]
            self.end('stop')
        elif self.n_tokens == self.max_tokens:
            self.end('length')
        else:
            self.send(len(self.text) - self.n_unsure())

    def n_unsure(self):
        """How many characters at the end of the text may be the beginning of a stop string."""
        new = self.text[self.n_before:]
        return max([n for stop in self.stops for n in range(1, min(len(stop), len(new) + 1)) if new.endswith(stop[:n])],
                   default=0)

    def add(self, token, logprob, top_ids, top_logprobs):
        """Add a token to the text, and to those that are held back."""
        offset = len(self.text)
        self.text += self.decoder.decode(self.encoder.decode_bytes([token]))
        top = [(number, finite(x)) for number, x in zip(top_ids, top_logprobs)]
        self.held.append((Token(token, None if logprob is None else finite(logprob), top, offset), len(self.text)))

    def send(self, n_safe):
        """Send those tokens whose text is in the first n_safe characters."""
        n_tokens = sum(end <= n_safe for _, end in self.held)
        if n_tokens:
            sent, self.held = self.held[:n_tokens], self.held[n_tokens:]
            self.events.put((self, Piece(self.text[self.n_sent:sent[-1][1]], [token for token, _ in sent], None)))
            self.n_sent = sent[-1][1]

    def end(self, reason):
        """Send the rest."""
        if reason == 'length':
            self.text += self.decoder.decode(b'', final=True)
        self.ended = True
        self.events.put((self, Piece(self.text[self.n_sent:], [token for token, _ in self.held], reason)))

    def fail(self, message):
        self.ended = True
        self.events.put((self, Refusal(message, status=503)))


def finite(x):
    """A log-probability as a float that JSON can hold."""
    return max(float(x), LOWEST_LOGPROB)


def joined(pieces):
    """The pieces of a choice as one."""
    return Piece(''.join(piece.text for piece in pieces), [token for piece in pieces for token in piece.tokens],
                 pieces[-1].finish_reason)


# What a request may hold

def check_names(values, model_name):
    """Raises Refusal for names and models that there are not."""
    if not isinstance(values, dict):
        raise Refusal('the body must be a JSON object, such as {"prompt": "Once upon a time"}')
    for name, allowed in sorted(dict(NO_EFFECT, best_of=(1, values.get('n'))).items()):
        if values.get(name) is not None and values[name] not in allowed:
            raise Refusal('%s is not supported; leave it out' % name, name)
    unknown = sorted(set(values) - NAMES - set(NO_EFFECT))
    if unknown:
        raise Refusal('unknown parameter %.60r; there are %s' % (unknown[0], ', '.join(sorted(NAMES))), unknown[0])
    if values.get('model') not in (None, model_name):
        raise Refusal('no model %.60r; this server has %s' % (values['model'], model_name), 'model', 404)


def option(values, name, expected, types, default, is_allowed=lambda value: True):
    """values[name], of one of some types and allowed. null is the default. expected: what it must be, in words."""
    value = values.get(name)
    if value is None:
        return default
    if type(value) not in types or not is_allowed(value):
        raise Refusal('%s is %.60r; it must be %s' % (name, value, expected), name)
    return value


def flag(values, name):
    return option(values, name, 'true or false', (bool,), False)


def number(values, name, low, high):
    """values[name], from low to high; 1 if it is not given."""
    expected = 'a number from %g to %g' % (low, high)
    return float(option(values, name, expected, (int, float), 1, lambda value: low <= value <= high))


def whole_number(values, name, low, high, default=None):
    """values[name], a whole number from low to high."""
    expected = 'a whole number from %d to %d' % (low, high)
    return option(values, name, expected, (int,), default, lambda value: low <= value <= high)


def stop_strings(values):
    """The list of texts that end a completion."""
    stops = values.get('stop') or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(stop, str) for stop in stops):
        raise Refusal('stop must be a text or a list of up to %d texts' % MAX_STOPS, 'stop')
    return [stop for stop in stops if stop]


def prompts_of(values, text_encoder, hparams):
    """The prompts, a list of lists of token ids. Without a prompt it is the empty one."""
    prompts = values.get('prompt')
    prompts = '' if prompts is None else prompts
    if isinstance(prompts, str) or prompts and isinstance(prompts, list) and type(prompts[0]) is int:
        prompts = [prompts]
    if not isinstance(prompts, list) or not prompts:
        raise Refusal('prompt must be a text, a list of texts, a list of token ids, or a list of such lists', 'prompt')
    prompts = [text_encoder.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    for prompt in prompts:
        if not isinstance(prompt, list) or not all(type(x) is int and 0 <= x < hparams.n_vocab for x in prompt):
            raise Refusal('a prompt must be a text, or a list of token ids from 0 to %d' % (hparams.n_vocab - 1),
                          'prompt')
    return prompts
