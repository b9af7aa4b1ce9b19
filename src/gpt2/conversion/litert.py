"""A model as one file for LiteRT, which phones, browsers and small computers run.

Its matrices have 8 bits, as those of gpt2.fast.lite, which fills them into the file in the same way.
"""
from gpt2 import checkpoint, session
from gpt2.conversion import weights
from gpt2.fast import lite
from gpt2.fast.cache import Past, causal_mask
from gpt2.system import files
from gpt2.system.tf1 import lite_schema, tf, without_stderr
import model

SIGNATURE = 'next'


def export(model_name, path, models_dir):
    """Write a model as a new file. Raises ValueError without TensorFlow 2, and as checkpoint.restore does."""
    if lite_schema is None:
        raise ValueError('a file for LiteRT needs TensorFlow 2.x to write it; this is %s' % tf.__version__)
    folder, hparams = weights.source_of(path, model_name, models_dir)
    with checkpoint.reading(checkpoint.weights_prefix(folder), lite.weight_shapes(hparams)) as read_array:
        read_matrix = lite.matrix_reader(read_array, 'int8')
        embedding = dict(zip(('values', 'scale'), read_matrix('model/wte')))

        def read(name):
            return embedding[name] if name in embedding else read_array(name)

        content = lite.packed(lite.filled(*converted(hparams), 0, read, read_matrix))
    with files.replacing(path) as part, open(part, 'wb') as file:
        file.write(content)


class InputPast(Past):
    """The past of one text, an input of the file, with room for S positions, of which n_before are taken.

    tokens_1T: int32, the new tokens.  past: float32 [n_layer, 2, H, S, K].
    """

    def __init__(self, hparams, tokens_1T, past, n_before):
        super(InputPast, self).__init__(hparams, tokens_1T, n_before=n_before)
        before_TS = tf.zeros([self.n_new, 1]) + causal_mask(n_before[None] - 1, tf.shape(past)[3])
        self.mask_TS = tf.concat([before_TS, causal_mask(tf.range(self.n_new), self.n_new)], axis=1)
        self.pairs = [tf.unstack(pair) for pair in tf.unstack(past)]

    def append(self, layer, k_HTK, v_HTK):
        self.new.append(tf.stack([k_HTK, v_HTK]))
        return [(tf.concat([old, new], axis=-2),) for old, new in zip(self.pairs[layer], (k_HTK, v_HTK))]


def converted(hparams):
    """(file, vectors, matrices) of a network without its weights, as lite.filled takes them."""
    with tf.Graph().as_default(), session.session() as sess, without_stderr():
        tokens = tf.placeholder(tf.int32, [1, None], 'tokens')
        n_before = tf.placeholder(tf.int32, [], 'n_past')
        past = tf.placeholder(tf.float32, [hparams.n_layer, 2, hparams.n_head, None,
                                           hparams.n_embd // hparams.n_head], 'past')
        values_VD = tf.placeholder(tf.int8, [hparams.n_vocab, hparams.n_embd])
        scale_V = tf.placeholder(tf.float32, [hparams.n_vocab])
        wpe_SD = tf.placeholder(tf.float32, [hparams.n_ctx, hparams.n_embd])
        cut, fixed = lite.Cut(hparams), InputPast(hparams, tokens, past, n_before)
        hidden_TD = (tf.cast(tf.gather(values_VD, tokens[0]), tf.float32) * tf.gather(scale_V, tokens[0])[:, None]
                     + tf.gather(wpe_SD, fixed.position_T))
        with tf.variable_scope('model', custom_getter=cut.custom_getter):
            for layer in range(hparams.n_layer):
                hidden_TD = model.block(hparams, hidden_TD, layer, fixed)
            logits = tf.identity(model.unembed(hparams, model.layer_norm(hidden_TD[-1:], 'ln_f'))[0], 'logits')
        present = tf.stack(fixed.new, name='present')
        vectors = dict(cut.vectors[0], **{'values': values_VD, 'scale': scale_V, 'model/wpe': wpe_SD})
        converter = tf.lite.TFLiteConverter.from_session(
            sess, [tokens, past, n_before] + list(vectors.values()), [logits, present])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        file = lite.unpacked(converter.convert())
    graph = file.subgraphs[0]
    file.signatureDefs = [lite.signature(SIGNATURE, 0, dict(zip(['tokens', 'past', 'n_past'], graph.inputs)),
                                         dict(zip(['logits', 'present'], graph.outputs)))]
    return file, list(vectors), cut.matrices[0]
