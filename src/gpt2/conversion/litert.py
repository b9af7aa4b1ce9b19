"""A model as one file for LiteRT, which phones, browsers and small computers run. Its matrices have 8 bits."""
import numpy as np

from gpt2 import checkpoint
from gpt2.conversion import weights
from gpt2.fast import lite
from gpt2.system import files
from gpt2.system.lite_file import File, Graph
from gpt2.system.tf1 import litert, tf

SIGNATURE = 'next'


def export(model_name, path, models_dir):
    """Write a model as a new file. Raises ValueError without LiteRT, and as checkpoint.restore does."""
    if litert() is None:
        raise ValueError('a file for LiteRT needs TensorFlow 2.x to write it; this is %s' % tf.__version__)
    folder, hparams = weights.source_of(path, model_name, models_dir)
    with checkpoint.reading(checkpoint.weights_prefix(folder), lite.weight_shapes(hparams)) as read_array:
        content = written(hparams, read_array)
    with files.replacing(path) as part, open(part, 'wb') as file:
        file.write(content)


def written(hparams, read):
    """The content of the file. read: function from a variable's name to its float32 array.

    The past has room for S positions, of which n_past are taken.
    """
    network, file = lite.Weights(hparams, read, 'int8'), File(litert()[1])
    graph, size = Graph(file, SIGNATURE), hparams.n_embd // hparams.n_head
    token_1T = graph.input('tokens', [1, None], np.int32)
    past = graph.input('past', [hparams.n_layer, 2, hparams.n_head, None, size])
    n_past = graph.input('n_past', [], np.int32)
    values_VD, scale_V, _ = network.matrices['model/wte']
    token_T = token_1T.reshape([None])
    position_T = numbered(token_T) + n_past
    embedded_TD = graph.add('CAST', graph.take(values_VD, token_T), dtype=np.float32)
    hidden_TD = (embedded_TD * graph.take(scale_V, token_T).reshape([None, 1])
                 + graph.take(read('model/wpe'), position_T))
    one_of_each = graph.add('SLICE', past, np.zeros(5, np.int32), np.int32([1, 1, 1, -1, 1]), shape=[1, 1, 1, None, 1])
    place_S = numbered(one_of_each.reshape([None]))
    is_free_S = graph.add('CAST', graph.add('GREATER_EQUAL', place_S, n_past, dtype=bool), dtype=np.int32)
    key_N = graph.add('CONCATENATION', place_S + is_free_S * hparams.n_ctx, position_T, axis=0)  # their positions
    is_later_TN = graph.add('LESS', position_T.reshape([None, 1]), key_N.reshape([1, None]), shape=[None, None],
                            dtype=bool)
    mask_TN = graph.add('CAST', is_later_TN, dtype=np.float32) * -1e10
    present = []
    for layer in range(hparams.n_layer):
        qkv_TN = network.before_attention(hidden_TD, layer).reshape([None, 3, hparams.n_head, size])
        qkv = graph.add('TRANSPOSE', qkv_TN, np.int32([1, 2, 0, 3]), shape=[3, hparams.n_head, None, size])
        present.append(graph.take(qkv, np.int32([1, 2])))
        both = graph.add('CONCATENATION', graph.take(past, layer), present[-1], axis=2)
        mixed_HTK = lite.attend(graph.take(qkv, 0), graph.take(both, 0), graph.take(both, 1), mask_TN)
        mixed_THK = graph.add('TRANSPOSE', mixed_HTK, np.int32([1, 0, 2]), shape=[None, hparams.n_head, size])
        hidden_TD = network.after_attention(hidden_TD, mixed_THK.reshape([None, hparams.n_embd]), layer)
    last_1D = graph.add('STRIDED_SLICE', hidden_TD, np.int32([-1, 0]), np.int32([0, 0]), np.int32([1, 1]),
                        shape=[1, hparams.n_embd], beginMask=2, endMask=3)
    graph.output('logits', network.logits(last_1D).reshape([hparams.n_vocab]))
    graph.output('present', graph.add('PACK', *present, shape=[hparams.n_layer] + present[0].shape, axis=0,
                                      valuesCount=hparams.n_layer))
    return file.content()


def numbered(x_N):
    """0, 1, 2 ... for each element: int32 [N]."""
    zero_N = x_N.graph.add('CAST', x_N.graph.add('LESS', x_N, x_N, dtype=bool), dtype=np.int32)
    return x_N.graph.add('CUMSUM', zero_N + 1, np.int32(0), exclusive=True)
