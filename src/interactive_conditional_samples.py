#!/usr/bin/env python3
"""Read prompts and print how a GPT-2 model continues them."""
import codecs
import sys

import checkpoint
import encoder
import flags

PROMPT = 'Model prompt >>> '


def interact_model(model_name='117M', seed: int = None, nsamples=1, batch_size=1, length: int = None, temperature=1.0,
                   top_k=0, top_p=1.0, stop_at_end=False, models_dir='models'):
    """Read prompts, one a line, and print how a model continues them. Ctrl-D or Ctrl-C ends it.

    Args:
        model_name: which model, a folder in models_dir
        seed: the same seed and prompts give the same samples, at any batch_size; None is a new one each time
        nsamples: how many samples of each prompt
        batch_size: samples made at once; more are faster in all, and take more memory
        length: tokens in a sample; None is half of the model's context
        temperature: below 1 takes fewer risks, above 1 more; 0 takes the likeliest token each time
        top_k: draw from this many of the likeliest tokens; 0 from all
        top_p: draw from the likeliest tokens that have this share of the probability together; 1 from all
        stop_at_end: a sample ends where the model ends the text; without it, the model goes on with another text
        models_dir: folder of the models, looked for here and then in the repository
    """
    if nsamples < 1:
        raise ValueError('nsamples is %d; it must be 1 or more' % nsamples)
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
        raise ValueError('length is %d, over the context of %d; pass less, to leave room for a prompt' % (length, hparams.n_ctx))
    context = tf.placeholder(tf.int32, [sample.rows_of(nsamples, batch_size), None])
    draws = tf.placeholder(tf.float64, [None, None])
    end_token = text_encoder.end_of_text if stop_at_end else None
    live = LiveText(text_encoder, end_token) if sys.stdout.isatty() else None
    output = sample.sample_sequence(hparams=hparams, length=length, context=context, draws=draws, temperature=temperature,
                                    top_k=top_k, top_p=top_p, end_token=end_token, watch=live and live.show)
    with checkpoint.session(sampling=True) as sess:
        checkpoint.restore(sess, model_name, models_dir)
        for n_prompts, prompt in enumerate(read_prompts(text_encoder, longest_prompt)):
            for numbers in sample.batches(nsamples, batch_size):
                if live:
                    live.begin(numbers[0])
                rows = flags.wait_for(sess.run, output, {
                    context: [prompt] * len(numbers),
                    draws: sample.random_draws(seed, [n_prompts * nsamples + number for number in numbers], length)})
                for number, row in zip(numbers, rows):
                    if live and number == numbers[0]:
                        live.end()
                    else:
                        print_header(number)
                        print(text_encoder.decode(sample.up_to_end(row[len(prompt):], end_token)), flush=True)
            print('=' * 80, flush=True)


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
    """Yield the token ids of each prompt, until the input ends. What cannot be a prompt is answered and asked for again."""
    while True:
        try:
            text = ask(PROMPT)
        except EOFError:
            return
        tokens = text_encoder.encode(text)
        if not tokens:
            print('The prompt is empty; type how the text begins.', file=sys.stderr)
        elif len(tokens) > longest:
            print('The prompt has %d tokens, and %d fit before the sample. Shorten it, or start with a smaller --length.'
                  % (len(tokens), longest), file=sys.stderr)
        else:
            yield tokens


def ask(question):
    """A line of input. On a terminal it can be edited; otherwise the question goes to stderr, out of the samples' way."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return input(question)
    print(question, end='', file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip('\n')


if __name__ == '__main__':
    flags.run(interact_model)
