#!/usr/bin/env python3
"""Print texts that a GPT-2 model makes up from nothing."""
import flags  # first: it answers Ctrl-C and a missing package while the others are loaded

import checkpoint
import encoder


def sample_model(model_name='117M', seed: int = None, nsamples=0, batch_size=1, length: int = None, temperature=1.0, top_k=0,
                 top_p=1.0, stop_at_end=False, precision='float32', models_dir='models'):
    """Print texts that a model makes up from nothing.

    Args:
        model_name: which model, a folder in models_dir
        seed: the same seed gives the same samples, at any batch_size; None is a new one each time
        nsamples: how many samples; 0 goes on until Ctrl-C
        batch_size: samples made at once; more are faster in total, and take more memory
        length: tokens in a sample; None is as many as the model's context holds
        temperature: below 1 takes fewer risks, above 1 more; 0 takes the likeliest token each time
        top_k: draw from this many of the likeliest tokens; 0 from all
        top_p: draw from the fewest tokens that together have this probability; 1 from all
        stop_at_end: a sample ends where the model ends the text; without it, the model goes on with another text
        precision: float32; or int8, weights in 8 bits: faster on a CPU, and README says by how much and what it costs
        models_dir: folder of the models, looked for here and then in the repository
    """
    if length is not None and length < 1:
        raise ValueError('length is %d; it must be 1 or more tokens' % length)
    checkpoint.check_precision(precision)
    checkpoint.model_dir(model_name, models_dir)
    text_encoder = encoder.get_encoder(model_name, models_dir)

    import sample
    from tf1 import tf
    sample.check_seed(seed)
    batches = sample.batches(nsamples, batch_size)
    hparams = checkpoint.load_hparams(model_name, models_dir)
    if length is None:
        length = hparams.n_ctx
    context = tf.placeholder(tf.int32, [sample.rows_of(nsamples, batch_size), 1])
    draws = tf.placeholder(tf.float64, [None, None])
    end_token = text_encoder.end_of_text if stop_at_end else None
    with checkpoint.precision(precision):
        output = sample.sample_sequence(hparams=hparams, length=length, context=context, draws=draws, temperature=temperature,
                                        top_k=top_k, top_p=top_p, end_token=end_token,
                                        compiled=sample.pays_to_compile(nsamples, batch_size, length))
    with checkpoint.session(sampling=True) as sess, checkpoint.out_of_memory(
            'give a lower --batch_size than %d, or a lower --length' % batch_size):
        checkpoint.restore(sess, model_name, models_dir)
        for numbers in batches:
            rows = sess.run(output, {
                context: [[text_encoder.end_of_text]] * len(numbers),
                draws: sample.random_draws(seed, numbers, length)})
            for number, row in zip(numbers, rows):
                print('=' * 40 + ' SAMPLE %d ' % (number + 1) + '=' * 40)
                print(text_encoder.decode(sample.up_to_end(row[1:], end_token)), flush=True)


if __name__ == '__main__':
    flags.run(sample_model)
