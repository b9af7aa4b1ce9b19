#!/usr/bin/env python3
"""Read prompts and print how a GPT-2 model continues them."""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

import codecs
import contextlib
import itertools
import sys

import checkpoint
import encoder

PROMPT = 'Model prompt >>> '
MOST_CHARACTERS = 2 ** 20  # of a prompt: more than any context holds
MOST_BYTES_TYPED = 4095  # in a line that is typed without readline: the terminal throws the rest away


def interact_model(model_name='117M', seed: int = None, nsamples=1, batch_size=1, length: int = None, temperature=1.0,
                   top_k=0, top_p=1.0, stop_at_end=False, precision='float32', models_dir='models'):
    """Read prompts, one a line, and print how a model continues them. Ctrl-D or Ctrl-C ends it.

    Args:
        model_name: which model, a folder in models_dir
        seed: the same seed and prompts give the same samples, at any batch_size; None is a new one each time
        nsamples: how many samples of each prompt
        batch_size: samples made at once; more are faster in total, and take more memory
        length: tokens in a sample; None is half of the model's context
        temperature: below 1 takes fewer risks, above 1 more; 0 takes the likeliest token each time
        top_k: draw from this many of the likeliest tokens; 0 from all
        top_p: draw from the fewest tokens that together have this probability; 1 from all
        stop_at_end: a sample ends where the model ends the text; without it, the model goes on with another text
        precision: float32; or int8, weights in 8 bits: faster on a CPU, and README says by how much and what it costs
        models_dir: folder of the models, looked for here and then in the repository
    """
    if nsamples < 1:
        raise ValueError('nsamples is %d; it must be 1 or more' % nsamples)
    if length is not None and length < 1:
        raise ValueError('length is %d; it must be 1 or more tokens' % length)
    checkpoint.check_precision(precision)
    checkpoint.model_dir(model_name, models_dir)
    text_encoder = encoder.get_encoder(model_name, models_dir)

    import sample
    from tf1 import tf
    sample.check_seed(seed)
    sample.batches(nsamples, batch_size)  # raises now for what could not be done later
    hparams = checkpoint.load_hparams(model_name, models_dir)
    if length is None:
        length = hparams.n_ctx // 2
    longest_prompt = hparams.n_ctx + 1 - length  # the last sampled token is never fed back
    if longest_prompt < 1:
        raise ValueError('length is %d, over the context of %d; pass less, to leave room for a prompt'
                         % (length, hparams.n_ctx))
    context = tf.placeholder(tf.int32, [sample.rows_of(nsamples, batch_size), None])
    draws = tf.placeholder(tf.float64, [None, None])
    end_token = text_encoder.end_of_text if stop_at_end else None
    live = LiveText(text_encoder, end_token) if sys.stdout.isatty() else None
    with checkpoint.precision(precision):
        output = sample.sample_sequence(hparams=hparams, length=length, context=context, draws=draws, temperature=temperature,
                                        top_k=top_k, top_p=top_p, end_token=end_token, watch=live and live.show)
    with checkpoint.session(sampling=True) as sess, checkpoint.out_of_memory(
            'give a lower --batch_size than %d, or a lower --length' % batch_size):
        checkpoint.restore(sess, model_name, models_dir)
        refused = []
        for n_prompts, prompt in enumerate(read_prompts(text_encoder, longest_prompt)):
            if not prompt:
                refused.append(n_prompts + 1)
            for numbers in sample.batches(nsamples, batch_size) if prompt else ():
                if live:
                    live.begin(numbers[0])
                rows = sess.run(output, {
                    context: [prompt] * len(numbers),
                    draws: sample.random_draws(seed, [n_prompts * nsamples + number for number in numbers], length)})
                for number, row in zip(numbers, rows):
                    if live and number == numbers[0]:
                        live.end()
                    else:
                        print_header(number)
                        print(text_encoder.decode(sample.up_to_end(row[len(prompt):], end_token)), flush=True)
            print('=' * 80, flush=True)
    if refused:
        raise ValueError('lines without a sample: %s%s' % (', '.join(map(str, refused[:10])), ' ...' * (len(refused) > 10)))


def print_header(number):
    print('=' * 40 + ' SAMPLE %d ' % (number + 1) + '=' * 40, flush=True)


class LiveText:
    """Prints the first sample of a batch token by token, as the text that encoder.decode would make of all its tokens."""

    def __init__(self, text_encoder, end_token):
        self.encoder = text_encoder
        self.end_token = end_token

    def begin(self, number):
        print_header(number)
        self.ended = False
        self.decoder = codecs.getincrementaldecoder('utf-8')('replace')  # keeps half a character until the rest has come

    def show(self, token_B):
        """Print the token of the first row, int32 [B]."""
        self.ended = self.ended or token_B[0] == self.end_token
        if not self.ended:
            print(self.decoder.decode(self.encoder.decode_bytes(token_B[:1])), end='', flush=True)

    def end(self):
        print(self.decoder.decode(b'', final=True), flush=True)


def read_prompts(text_encoder, longest):
    """Yield the token ids of each prompt, until the input ends.

    What cannot be a prompt is answered. On a terminal it is asked for again; in a file it counts, and yields [], so that
    answers can be told to their lines.
    """
    for line in itertools.count(1):
        try:
            text = ask(PROMPT)
        except EOFError:
            return
        tokens = text_encoder.encode(text)
        problem = None
        if not tokens:
            problem = 'The prompt is empty; type how the text begins.'
        elif len(tokens) > longest:
            problem = ('The prompt has %d tokens, and %d fit before the sample. Shorten it, or start with a smaller --length.'
                       % (len(tokens), longest))
        if problem is None:
            yield tokens
        elif sys.stdin.isatty():
            print(problem, file=sys.stderr)
        else:
            print('line %d: %s' % (line, problem), file=sys.stderr)
            yield []


def ask(question):
    """A line of input. On a terminal it can be edited; otherwise the question goes to stderr, out of the samples' way.

    Raises EOFError at the end of the input, ValueError for a line of more than MOST_CHARACTERS.
    """
    if sys.stdin.isatty() and sys.stdout.isatty():
        return edited_line(question)
    print(question, end='', file=sys.stderr, flush=True)
    line = sys.stdin.readline(MOST_CHARACTERS + 1)
    if not line:
        raise EOFError
    if len(line) > MOST_CHARACTERS and not line.endswith('\n'):
        raise ValueError('a prompt has more than %d characters; prompts stand one a line' % MOST_CHARACTERS)
    if sys.stdin.isatty() and len(line.encode('utf-8')) > MOST_BYTES_TYPED:
        print('The terminal cuts a line after %d bytes. Put the prompt into a file.' % MOST_BYTES_TYPED, file=sys.stderr)
        return ask(question)
    return line.rstrip('\n')


def edited_line(question):
    """A line that is typed on a terminal, with the arrow keys and the lines before to edit it, where there is readline."""
    with contextlib.suppress(ImportError):  # Windows edits lines by itself
        import readline
        for setting in ('convert-meta off', 'input-meta on', 'output-meta on',  # UTF-8 whatever the locale
                        'enable-bracketed-paste off'):  # lines that are pasted are prompts, one a line, as in a file
            readline.parse_and_bind('set ' + setting)
    return input(question)


if __name__ == '__main__':
    flags.run(interact_model)
