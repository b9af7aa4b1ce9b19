"""A model as a SavedModel, which TensorFlow Serving and other programs run without this repository."""
import os
import shutil

from gpt2 import checkpoint, session
from gpt2.conversion import weights
import model
import sample
from gpt2.system.tf1 import stateless_uniform, tf

VERSION = '1'  # the name of the folder: TensorFlow Serving loads the one with the highest number


def export(model_name, folder, models_dir):
    """Write a model as a SavedModel into folder/1. Raises as checkpoint.restore does."""
    source, hparams = weights.source_of(folder, model_name, models_dir)
    with weights.new_folder(folder) as part, tf.Graph().as_default(), session.session() as sess:
        tf.get_variable_scope().set_use_resource(True)  # TensorFlow 2 loads no others
        tokens, lengths = tf.placeholder(tf.int32, [None, None], 'tokens'), tf.placeholder(tf.int32, [None], 'lengths')
        signatures = dict(sampling(hparams, tokens, lengths), score=scoring(hparams, tokens, lengths))
        checkpoint.restore(sess, model_name, models_dir)
        with checkpoint.as_tensorflow_finds(os.path.join(part, VERSION)) as found:
            builder = tf.saved_model.builder.SavedModelBuilder(found)
            builder.add_meta_graph_and_variables(sess, ['serve'], signature_def_map={
                name: tf.saved_model.signature_def_utils.predict_signature_def(*ends)
                for name, ends in signatures.items()}, strip_default_attrs=True)
            builder.save()
        assets = os.path.join(part, VERSION, 'assets')
        os.makedirs(assets)
        for name in checkpoint.VOCABULARY_FILES:
            shutil.copyfile(os.path.join(source, name), os.path.join(assets, name))


def sampling(hparams, tokens, lengths):
    """{name: (inputs, outputs)} of the signatures that sample: one takes a seed and a length, the other draws.

    Both run one loop, in which the draws are either fed or made from the seed.
    """
    seed, length = tf.placeholder(tf.int32, [], 'seed'), tf.placeholder(tf.int32, [], 'length')
    settings = {'temperature': tf.placeholder(tf.float32, [], 'temperature'),
                'top_k': tf.placeholder(tf.int32, [], 'top_k'), 'top_p': tf.placeholder(tf.float32, [], 'top_p')}
    # Each row has draws of its own, which do not depend on how many rows there are.
    from_seed = tf.map_fn(lambda row: stateless_uniform([length], tf.stack([seed, row]), dtype='float64'),
                          tf.range(tf.shape(tokens)[0]), dtype=tf.float64)
    draws = tf.placeholder_with_default(from_seed, [None, None], 'draws')
    n_drawn = tf.shape(draws)[1]
    checks = check_tokens(hparams, tokens, lengths, hparams.n_ctx + 1 - n_drawn) + [
        tf.assert_positive(n_drawn, message='length must be 1 or more'),
        tf.assert_equal(tf.shape(draws)[0], tf.shape(tokens)[0], message='draws must have a row for each text'),
        tf.assert_non_negative(settings['temperature'], message='temperature must be 0 or more'),
        tf.assert_non_negative(settings['top_k'], message='top_k must be 1 or more, or 0 to keep every token'),
        tf.assert_positive(settings['top_p'], message='top_p must be over 0'),
        tf.assert_less_equal(settings['top_p'], 1., message='top_p must be at most 1')]
    context = sample.after(checks, tokens)
    chooser = sample.Chooser(n_drawn, lengths, draws, end_token=None, from_shortlist=False, **settings)
    output = sample.growing_loop(hparams, context[:, :tf.reduce_min(lengths)], context, chooser, False, None)
    texts = dict(settings, tokens=tokens, lengths=lengths)
    outputs = {'tokens': tf.identity(output, 'sampled')}
    return {'sample': (dict(texts, seed=seed, length=length), outputs),
            'sample_from_draws': (dict(texts, draws=draws), outputs)}


def scoring(hparams, tokens, lengths):
    """(inputs, outputs) of the signature that scores: nats [B, T - 1] of each token but the first, 0 behind a text."""
    checks = check_tokens(hparams, tokens, lengths, hparams.n_ctx + 1)
    is_text = tf.sequence_mask(lengths, tf.shape(tokens)[1])
    tokens_BT = sample.after(checks, tf.where(is_text, tokens, tf.zeros_like(tokens)))
    with tf.variable_scope('model', reuse=tf.AUTO_REUSE) as scope:
        hidden_RD = model.decoder(hparams, tokens_BT[:, :-1])[-1]

        def losses(row):  # of one text: the logits of all would fill the memory
            hidden_TD, tokens_T = row
            with tf.variable_scope(scope):
                logits_TV = model.unembed(hparams, hidden_TD)
            return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=tokens_T, logits=logits_TV)

        shape = tf.concat([tf.shape(tokens_BT[:, 1:]), [hparams.n_embd]], axis=0)
        nats_BT = tf.map_fn(losses, (tf.reshape(hidden_RD, shape), tokens_BT[:, 1:]), dtype=tf.float32,
                            parallel_iterations=1)
    nats_BT = tf.where(is_text[:, 1:], nats_BT, tf.zeros_like(nats_BT))
    return {'tokens': tokens, 'lengths': lengths}, {'nats': nats_BT}


def check_tokens(hparams, tokens, lengths, max_columns):
    """Operations that fail for texts that the model cannot read. A GPU would read other elements instead."""
    n_rows, n_columns = tf.unstack(tf.shape(tokens))
    shown = tf.where(tf.sequence_mask(lengths, n_columns), tokens, tf.zeros_like(tokens))
    return [tf.assert_equal(tf.shape(lengths)[0], n_rows, message='lengths must have a number for each text'),
            tf.assert_positive(lengths, message='lengths must be 1 or more'),
            tf.assert_less_equal(lengths, n_columns, message='lengths must be at most the width of tokens'),
            tf.assert_less_equal(n_columns, max_columns, message='the texts exceed the context of the model'),
            tf.assert_non_negative(shown, message='a token is below 0'),
            tf.assert_less(shown, hparams.n_vocab, message='a token is not in the vocabulary')]
