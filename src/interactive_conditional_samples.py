#!/usr/bin/env python3
"""Read prompts and print continuations from a GPT-2 model."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which python3 -I and PYTHONSAFEPATH leave out
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

import codecs
import contextlib
import inspect
import itertools

from gpt2.sampler import Sampler, batches, check_seed, random_draws, rows_of
from gpt2.system import flags

PROMPT = 'Model prompt >>> '
MAX_CHARACTERS = 2 ** 20  # of a prompt: more than any context holds
MAX_SKIPPED = 2 ** 30  # characters of a longer line, after which the input is not taken for lines any more
MAX_BYTES_TYPED = 4095  # in a line that is typed without readline: the terminal discards the rest


def interact_model(model_name='117M', seed: int = None, nsamples=1, batch_size=1, length: int = None, temperature=1.0,
                   top_k=0, top_p=1.0, stop_at_end=False, precision='float32', models_dir='models'):
    """Read prompts, one per line, and print continuations. Ctrl-D or Ctrl-C ends it.

    Args:
        nsamples: number of samples for each prompt
        length: number of tokens in a sample; None is half of the model's context
    """
    if nsamples < 1:
        raise ValueError('nsamples is %d; it must be 1 or more' % nsamples)
    if length is not None and length < 1:
        raise ValueError('length is %d; it must be 1 or more tokens' % length)
    check_seed(seed)
    with Sampler(model_name, models_dir, precision) as sampler:
        length = length or sampler.hparams.n_ctx // 2
        longest_prompt = sampler.hparams.n_ctx + 1 - length  # the last sampled token is never fed back
        if longest_prompt < 1:
            raise ValueError('length is %d, over the context of %d; pass less, to leave room for a prompt'
                             % (length, sampler.hparams.n_ctx))
        end_token = sampler.encoder.end_of_text if stop_at_end else None
        live = LiveText(sampler.encoder, end_token) if sys.stdout.isatty() else None
        continue_batch = sampler.build(
            rows_of(nsamples, batch_size), length=length, temperature=temperature, top_k=top_k, top_p=top_p,
            end_token=end_token, watch=live and live.show)
        refused = []
        for n_prompts, prompt in enumerate(read_prompts(sampler.encoder, longest_prompt)):
            if not prompt:
                refused.append(n_prompts + 1)
            for numbers in batches(nsamples, batch_size) if prompt else ():
                if live:
                    live.begin(numbers[0])
                draws = random_draws(seed, [n_prompts * nsamples + number for number in numbers], length)
                for number, tokens in zip(numbers, continue_batch([prompt] * len(numbers), draws)):
                    if live and number == numbers[0]:
                        live.end()
                    else:
                        print_header(number)
                        print(sampler.encoder.decode(tokens), flush=True)
            print('=' * 80, flush=True)
    if refused:
        shown = ', '.join(map(str, refused[:10])) + ' ...' * (len(refused) > 10)
        raise ValueError('lines without a sample: ' + shown)


def print_header(number):
    print('=' * 40 + ' SAMPLE %d ' % (number + 1) + '=' * 40, flush=True)


class LiveText:
    """Prints the first sample of a batch token by token; all of it is what encoder.decode returns for its tokens."""

    def __init__(self, text_encoder, end_token):
        self.encoder = text_encoder
        self.end_token = end_token

    def begin(self, number):
        print_header(number)
        self.ended = False
        self.decoder = codecs.getincrementaldecoder('utf-8')('replace')  # keeps half a character until the rest comes

    def show(self, token_B):
        """Print the token of the first row, int32 [B]."""
        self.ended = self.ended or token_B[0] == self.end_token
        if not self.ended:
            print(self.decoder.decode(self.encoder.decode_bytes(token_B[:1])), end='', flush=True)

    def end(self):
        print(self.decoder.decode(b'', final=True), flush=True)


def read_prompts(text_encoder, longest):
    """Yield the token ids of each prompt, until the input ends.

    A line that is empty or too long is reported. On a terminal the user is asked again; otherwise it yields [], so that
    the caller can count lines.
    """
    for line in itertools.count(1):
        try:
            text = ask(PROMPT)
        except EOFError:
            return
        tokens = [] if text is None else text_encoder.encode(text)
        problem = None
        if text is None:
            problem = 'The prompt has more than %d characters; give one prompt per line.' % MAX_CHARACTERS
        elif '\0' in text:
            problem = 'The prompt has NUL characters; if it is UTF-16, convert it to UTF-8.'
        elif not tokens:
            problem = 'The prompt is empty; type the beginning of a text.'
        elif len(tokens) > longest:
            problem = ('The prompt has %d tokens, and %d fit before the sample. Shorten it, or start with a smaller '
                       '--length.' % (len(tokens), longest))
        if problem is None:
            yield tokens
        elif sys.stdin.isatty():
            print(problem, file=sys.stderr)
        else:
            print('line %d: %s' % (line, problem), file=sys.stderr)
            yield []


def ask(question):
    """A line of input, None for one of more than MAX_CHARACTERS.

    On a terminal it can be edited; otherwise the question goes to stderr, away from the samples.
    Raises EOFError at the end of the input, ValueError for input that seems to have no lines.
    """
    if not inspect.isbuiltin(input):  # a notebook has one of its own, with a field to type in
        return input(question)
    if sys.stdin is None:  # in a program without a console
        raise EOFError
    if sys.stdin.isatty() and sys.stdout.isatty():
        return edited_line(question)
    print(question, end='', file=sys.stderr, flush=True)
    line = sys.stdin.readline(MAX_CHARACTERS + 1)
    if not line:
        raise EOFError
    if len(line) > MAX_CHARACTERS and not line.endswith('\n'):
        for _ in range(MAX_SKIPPED // MAX_CHARACTERS):
            line = sys.stdin.readline(MAX_CHARACTERS)
            if not line or line.endswith('\n'):
                return None
        raise ValueError('a line of the input does not end; give one prompt per line')
    if sys.stdin.isatty() and len(line.encode('utf-8')) > MAX_BYTES_TYPED:
        print('The terminal cuts lines after %d bytes; put the prompt into a file' % MAX_BYTES_TYPED, file=sys.stderr)
        return ask(question)
    return line.rstrip('\r\n')


def edited_line(question):
    """A line that is typed on a terminal, edited by readline, with its history, where there is readline."""
    with contextlib.suppress(ImportError):  # Windows edits lines by itself
        import readline
        for setting in ('convert-meta off', 'input-meta on', 'output-meta on',  # UTF-8 whatever the locale
                        'enable-bracketed-paste off'):  # pasted lines are prompts, one per line, as in a file
            readline.parse_and_bind('set ' + setting)
    return input(question)


if __name__ == '__main__':
    flags.run(interact_model)
