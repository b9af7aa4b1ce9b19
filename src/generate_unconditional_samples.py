#!/usr/bin/env python3
"""Generate unconditional samples from a GPT-2 model."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which python3 -I and PYTHONSAFEPATH leave out
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

from gpt2.sampler import Sampler, batches, check_seed, is_worth_compiling, random_draws, rows_of
from gpt2.system import flags


def sample_model(model_name='117M', seed: int = None, nsamples=0, batch_size=1, length: int = None, temperature=1.0,
                 top_k=0, top_p=1.0, stop_at_end=False, precision='float32', models_dir='models'):
    """Generate unconditional samples.

    Args:
        nsamples: number of samples; 0 goes on until Ctrl-C
        length: number of tokens in a sample; None is the size of the model's context
    """
    if length is not None and length < 1:
        raise ValueError('length is %d; it must be 1 or more tokens' % length)
    check_seed(seed)
    all_numbers = batches(nsamples, batch_size)
    with Sampler(model_name, models_dir, precision) as sampler:
        length = length or sampler.hparams.n_ctx
        end_of_text = sampler.encoder.end_of_text
        continue_batch = sampler.build(
            rows_of(nsamples, batch_size), length=length, width=1, temperature=temperature, top_k=top_k, top_p=top_p,
            end_token=end_of_text if stop_at_end else None, compiled=is_worth_compiling(nsamples, batch_size, length))
        for numbers in all_numbers:
            rows = continue_batch([[end_of_text]] * len(numbers), random_draws(seed, numbers, length))
            for number, tokens in zip(numbers, rows):
                print('=' * 40 + ' SAMPLE %d ' % (number + 1) + '=' * 40)
                print(sampler.encoder.decode(tokens), flush=True)


if __name__ == '__main__':
    flags.run(sample_model)
