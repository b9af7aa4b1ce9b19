"""The network for LiteRT, TensorFlow's engine for phones: on a CPU the fastest one for sampling, with TensorFlow 2.x.

It multiplies by the fastest instructions that a processor has, in float32 or in 8 bits. There each column of a weight
becomes integers from -127 to 127 and a scale, and so does each row of what is multiplied with it, as it comes (Dettmers
et al. 2022, arXiv:2208.07339, section 2.1); all else stays float32. A token reads a quarter of the bytes then, and
reading the weights takes most of the time.

The network is that of model.py, cut at each attention, which NumPy computes: LiteRT takes several times as long for
many small products. LiteRT's converter would take half a minute for a large network, so it converts the three pieces
of a small one, which are then filled with the weights of each layer.

Letters are those of model.py.
"""
from concurrent import futures
import functools
import math
import re
import threading
import warnings

import numpy as np

from gpt2.fast import matmul
from gpt2.system import process
from gpt2.system.tf1 import lite_schema, tf, without_stderr
import model

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # TensorFlow 2's own does the same, and warns that it will move there
    Interpreter = tf.lite.Interpreter if lite_schema else None
    warnings.filterwarnings('ignore', message=r'\s*Warning: tf.lite.Interpreter is deprecated')

MAX_ROWS = 2 ** 12  # tokens of all texts that are computed at a time, so that a batch of long prompts fits into memory
# So that few scores are computed only to be masked. Where a prompt is divided, it is at multiples of this number, since
# sums over other numbers of positions are rounded differently.
QUERIES_AT_A_TIME = 128
ALIGNMENT = 64  # bytes, of the arrays in a file
ROWS_AT_A_TIME = 2 ** 10  # that are rounded: 3 MB of the vocabulary instead of 154
MAX_FLOAT32_BYTES = 2 ** 31  # LiteRT keeps two copies of the weights, too much for 774M and 1558M in float32
MAX_SCORES = 2 ** 24  # attention scores that are in memory at a time: 64 MB


def is_for(precision, hparams):
    """Whether LiteRT is to sample with weights of this precision. Raises ValueError for int8 where it cannot."""
    if precision == 'float32':
        n_bytes = 4 * hparams.n_embd * (hparams.n_vocab + hparams.n_ctx + 12 * hparams.n_layer * hparams.n_embd)
        return Interpreter is not None and not matmul.on_gpu() and n_bytes <= MAX_FLOAT32_BYTES
    if matmul.on_gpu():
        raise ValueError('8-bit weights are for a CPU; use --precision float32, or hide the GPU: '
                         'CUDA_VISIBLE_DEVICES=-1')
    if Interpreter is None:
        raise ValueError('TensorFlow %s cannot multiply 8-bit weights; use --precision float32, or TensorFlow 2.x'
                         % tf.__version__)
    return True


# A small network in pieces

class Cut(object):
    """The Past of a network that is cut before and after each attention.

    Each piece takes the hidden states and what attention mixed, and returns the next hidden states and, side by side,
    queries, keys and values. The first one begins the network, and the last one ends it.
    inputs, outputs: for each piece, its tensors [R, any].  vectors: {name: placeholder} of its variables [any].
    matrices: the names of its other variables, in the order in which they are multiplied.
    shapes: {name: shape} of all variables.
    """

    def __init__(self, hparams):
        self.width, self.shapes = hparams.n_embd, {'model/wpe': [hparams.n_ctx, hparams.n_embd]}
        self.inputs, self.outputs, self.vectors, self.matrices = [[self.states()]], [[]], [{}], [[]]
        self.n_constants = 0

    def states(self):
        return tf.placeholder(tf.float32, [None, self.width])

    def numbers(self, shape):
        """Numbers for a matrix or its bias that are replaced later. The converter would merge equal ones."""
        self.n_constants += 1
        return tf.fill(shape, float(self.n_constants))

    def custom_getter(self, getter, name, shape, **options):
        self.shapes[name] = shape
        if name.endswith(('/w', '/wte')):
            return Matrix(self, name, shape[::-1] if name.endswith('/wte') else shape[1:])
        if name.endswith(('c_attn/b', 'c_fc/b', 'c_proj/b')):
            return self.numbers(shape)
        self.vectors[-1][name] = tf.placeholder(tf.float32, shape)
        return self.vectors[-1][name]

    def split_heads(self, qkv_RN):
        self.outputs[-1].append(qkv_RN)
        return [qkv_RN[None]] * 3

    def append(self, layer, k_1RN, v_1RN):
        return k_1RN, v_1RN

    def over_heads(self, attend, q_1RN, k_1RN, v_1RN, drop):
        self.inputs.append([self.states()])
        for lists, empty in ((self.outputs, []), (self.vectors, {}), (self.matrices, [])):
            lists.append(empty)
        return self.inputs[-1][0]

    def wanted(self, x, layer):
        if len(x.shape) == 3:  # queries
            return x
        if layer:
            self.outputs[layer].insert(0, x)
        self.inputs[-1].insert(0, self.states())
        return self.inputs[-1][0]


class Matrix(object):
    """A matrix [N, M] of a piece: numbers that are replaced later."""

    def __init__(self, cut, name, shape):
        self.cut, self.name, self.shape = cut, name, shape

    def product(self, x_RN, transpose_b, input_activation):
        self.cut.matrices[-1].append(self.name)
        if input_activation is model.gelu:  # written so that the converter makes one operation of it
            x_RN = 0.5 * x_RN * (1 + tf.tanh(math.sqrt(2 / math.pi) * (x_RN + 0.044715 * tf.pow(x_RN, 3))))
        return tf.matmul(x_RN, self.cut.numbers(self.shape))


def cut_network(hparams):
    """The Cut of a network with two layers, in the default graph."""
    cut = Cut(hparams)
    hidden_RD = cut.inputs[0][0]
    with tf.variable_scope('model', custom_getter=cut.custom_getter):
        for layer in range(2):
            hidden_RD = model.block(hparams, hidden_RD, layer, cut)
        cut.outputs[-1].append(model.unembed(hparams, model.layer_norm(hidden_RD, 'ln_f')))
    return cut


def weight_shapes(hparams):
    """{name: shape} of all variables of a network."""
    with tf.Graph().as_default():
        shapes = cut_network(hparams).shapes
    return {name.replace('/h0/', '/h%d/' % layer): shape for name, shape in shapes.items() if '/h1/' not in name
            for layer in range(hparams.n_layer)}


@functools.lru_cache(maxsize=None)  # once
def converted(precision):
    """(attend, pieces), in LiteRT's format: model.attend, and the three pieces of a small network.

    attend: its content.  pieces: for each its content, and the names of its vectors and matrices.
    """
    def content(inputs, outputs, optimizations=()):
        converter = tf.lite.TFLiteConverter.from_session(sess, inputs, outputs)
        converter.optimizations = list(optimizations)
        return converter.convert()

    with tf.Graph().as_default(), tf.Session() as sess, without_stderr():
        *qkv, mask_TS = [tf.placeholder(tf.float32, [None] * n) for n in (4, 4, 4, 2)]
        attend = content(qkv + [mask_TS], [model.attend(*qkv, mask=lambda score_BHTS: score_BHTS + mask_TS)])
        cut = cut_network(model.HParams(n_vocab=96, n_ctx=16, n_embd=64, n_head=2, n_layer=2))
        # As constants, layer norms would become part of the next matrix, and the rows that are rounded uneven.
        optimizations = [tf.lite.Optimize.DEFAULT] if precision == 'int8' else []
        pieces = [(content(inputs + list(vectors.values()), outputs, optimizations), vectors, matrices)
                  for inputs, outputs, vectors, matrices in zip(cut.inputs, cut.outputs, cut.vectors, cut.matrices)]
        Interpreter(model_content=attend).allocate_tensors()  # says once that there is XNNPACK
    return attend, [(piece, list(vectors), matrices) for piece, vectors, matrices in pieces]


def unpacked(content):
    """A file in LiteRT's format as a ModelT."""
    return lite_schema.ModelT.InitFromPackedBuf(content, 0)


def filled(file, vectors, matrices, first_layer, read, read_matrix):
    """A piece, a ModelT, with a network's weights.

    vectors, matrices: as converted returns them.  first_layer: what layer 0 of the piece is in the network.
    read: function from a vector's name to its float32 array.  read_matrix: as matrix_reader returns it.
    """
    def stored(name):
        return re.sub('/h([01])/', lambda match: '/h%d/' % (first_layer + int(match.group(1))), name)

    places = {}  # where an array is: in one place, even if there are two tensors of it

    def put(array, tensor):
        file.buffers[tensor.buffer].data = None  # the small network's
        tensor.shape, (tensor.buffer, _) = list(array.shape), places.setdefault(id(array), (len(file.buffers), array))
        if tensor.buffer == len(file.buffers):
            file.buffers.append(lite_schema.BufferT())
            file.buffers[-1].data = np.ascontiguousarray(array).view(np.uint8).ravel()

    graph = file.subgraphs[0]
    inputs = list(graph.inputs)
    for index, name in zip(inputs[-len(vectors):], vectors):
        put(read(stored(name)), graph.tensors[index])
    graph.inputs = inputs[:-len(vectors)]
    products = [operator for operator in graph.operators if file.operatorCodes[
        operator.opcodeIndex].builtinCode == lite_schema.BuiltinOperator.FULLY_CONNECTED]
    for operator, name in zip(products, matrices):
        values_MN, scale_M = read_matrix(stored(name))
        tensor = graph.tensors[operator.inputs[1]]
        if values_MN.dtype == np.int8:
            tensor.quantization.scale, tensor.quantization.zeroPoint = scale_M, np.zeros(len(scale_M), np.int64)
        put(values_MN, tensor)
        if name.endswith('/w'):
            put(read(stored(name[:-1] + 'b')), graph.tensors[operator.inputs[2]])
    return file


def packed(file):
    """The content of a ModelT, in LiteRT's format. Its arrays are moved behind the rest, copied once."""
    import flatbuffers  # comes with TensorFlow 2

    def rest():
        builder = flatbuffers.Builder()
        builder.Finish(file.Pack(builder), b'TFL3')
        return builder.Output()

    buffers = [buffer for buffer in file.buffers if isinstance(buffer.data, np.ndarray) and len(buffer.data)]
    arrays = [buffer.data for buffer in buffers]
    for buffer in buffers:
        buffer.data, buffer.offset, buffer.size = None, ALIGNMENT, len(buffer.data)
    parts = [rest()]  # already has its final length
    end = len(parts[0])
    for buffer, array in zip(buffers, arrays):
        buffer.offset = end + -end % ALIGNMENT
        parts += [bytes(buffer.offset - end), array]
        end = buffer.offset + buffer.size
    parts[0] = rest()
    return b''.join(parts)


def rounded(weight_MN, name):
    """(int8 values, scale) of a matrix: the largest magnitude of each row becomes 127.

    weight_MN: float32.  Raises ValueError, with the name, for numbers that are not finite.
    """
    magnitude_M = np.maximum(weight_MN.max(axis=1), -weight_MN.min(axis=1))
    if not np.isfinite(magnitude_M).all():
        raise ValueError('%s has values that are not finite, which cannot be rounded to 8 bits' % name)
    scale_M = np.where(magnitude_M > 0, magnitude_M, 1).astype(np.float32) / np.float32(127)
    values_MN = np.empty(weight_MN.shape, np.int8)
    for first in range(0, len(scale_M), ROWS_AT_A_TIME):
        rows = slice(first, first + ROWS_AT_A_TIME)
        values_MN[rows] = np.rint(weight_MN[rows] / scale_M[rows, None])
    return values_MN, scale_M


def matrix_reader(read, precision):
    """A function from a matrix's name to its (values [M, N], scale [M]); the embedding, which is needed twice, is kept.

    read: function from a variable's name to its float32 array.  precision: of the values; in float32 the scale is 1.
    """
    def read_matrix(name):
        weight_MN = read(name) if name == 'model/wte' else read(name)[0].T
        if precision == 'int8':
            return rounded(weight_MN, name)
        return np.ascontiguousarray(weight_MN), np.ones(len(weight_MN), np.float32)

    wte = read_matrix('model/wte')
    return lambda name: wte if name == 'model/wte' else read_matrix(name)


# The network

def joined(files):
    """The content of one file in LiteRT's format with the graphs of several, and for each a Piece.

    They are parts of one file, so that the same threads compute them all. With threads of their own, those of a piece
    would occupy the cores for a while after it, looking for work.
    """
    whole, signatures = lite_schema.ModelT(), []
    whole.version, whole.buffers, whole.operatorCodes, whole.subgraphs = 3, [], [], []
    for number, file in enumerate(files):
        graph, = file.subgraphs
        for tensor in graph.tensors:
            tensor.buffer += len(whole.buffers)
        for operator in graph.operators:
            operator.opcodeIndex += len(whole.operatorCodes)
        whole.buffers += file.buffers
        whole.operatorCodes += file.operatorCodes
        whole.subgraphs.append(graph)
        signatures.append(signature(str(number), number, *[
            {str(i): tensor for i, tensor in enumerate(tensors)} for tensors in (graph.inputs, graph.outputs)]))
    whole.signatureDefs = signatures
    content = packed(whole)
    interpreter = Interpreter(model_content=content, num_threads=process.n_cores())
    return content, [Piece(interpreter.get_signature_runner(str(number))) for number in range(len(files))]


def signature(name, subgraph, inputs, outputs):
    """A function that a file in LiteRT's format offers. inputs, outputs: {name: number of a tensor of the subgraph}."""
    found = lite_schema.SignatureDefT()
    found.signatureKey, found.subgraphIndex, found.inputs, found.outputs = name, subgraph, [], []
    for entries, tensors in ((found.inputs, inputs), (found.outputs, outputs)):
        for tensor_name, number in tensors.items():
            entries.append(lite_schema.TensorMapT())
            entries[-1].name, entries[-1].tensorIndex = tensor_name, int(number)
    return found


class Piece(object):
    """A function of arrays that LiteRT computes. run: a SignatureRunner; its tensors' names are numbers."""

    def __init__(self, run):
        self.run = run

    def __call__(self, *arrays):
        found = self.run(**{str(i): array for i, array in enumerate(arrays)})
        return [found[name] for name in sorted(found)]


class Past(object):
    """The keys and values of the tokens so far: an array with room for n_positions of each text."""

    def __init__(self, hparams, batch, n_positions):
        self.n_seen, head_size = 0, hparams.n_embd // hparams.n_head
        self.pairs = np.empty([hparams.n_layer, 2, batch, hparams.n_head, n_positions, head_size], np.float32)

    def keep(self, texts):
        """Forget all texts but these, an array of their numbers."""
        pairs = np.empty(self.pairs.shape[:2] + (len(texts),) + self.pairs.shape[3:], np.float32)
        pairs[..., :self.n_seen, :] = self.pairs[:, :, texts, :, :self.n_seen]
        self.pairs = pairs


class Network(object):
    """GPT-2 in LiteRT. Several threads can use it.

    read: function from a variable's name to its float32 array.  precision: of its weights, float32 or int8.
    Raises ValueError as rounded does.
    """

    def __init__(self, hparams, read, precision):
        self.hparams, self.lock = hparams, threading.Lock()
        attend, (first, between, last) = converted(precision)
        pieces = [first] + [between] * (hparams.n_layer - 1) + [last]
        first_layers = [0] + list(range(hparams.n_layer - 1)) + [hparams.n_layer - 2]
        read_matrix = matrix_reader(read, precision)
        values_VD, scale_V = read_matrix('model/wte')

        def make(piece, first_layer):
            content, vectors, matrices = piece
            return filled(unpacked(content), vectors, matrices, first_layer, read, read_matrix)

        with futures.ThreadPoolExecutor(process.n_cores()) as pool:
            files = list(pool.map(make, pieces, first_layers))
        content, (self.attend, *self.pieces) = joined([unpacked(attend)] + files)
        place = files[-1].buffers[-1].offset  # the embedding is the last matrix of the last piece
        values_VD = np.frombuffer(content, values_VD.dtype, values_VD.size, place).reshape(values_VD.shape)
        self.wte, self.wpe = (values_VD, scale_V), read('model/wpe')

    def past(self, batch, n_positions):
        """An empty Past of batch texts."""
        return Past(self.hparams, batch, n_positions)

    def states(self, tokens_BT, past):
        """What logits() takes for each of the new tokens, float32 [2, B, T, D]: hidden states, and mixed values.

        tokens_BT: int32.  past: the Past of the texts, which has the new tokens then, too.
        """
        parts = [self.next_states([part_BT], [past]).reshape(2, len(tokens_BT), -1, self.hparams.n_embd)
                 for part_BT in in_parts(tokens_BT)]
        return np.concatenate(parts, axis=2)

    def last_states(self, fed, pasts):
        """What logits() takes for the last token of each text: float32 [2, A, D].

        fed, pasts: as next_states takes them, which reads up to MAX_ROWS of the tokens at a time.
        """
        calls, n_rows = [[]], 0
        for tokens_BT, past in zip(fed, pasts):
            *before, last_BT = in_parts(tokens_BT)
            for part_BT in before:
                self.next_states([part_BT], [past])
            if calls[-1] and n_rows + last_BT.size > MAX_ROWS:
                calls, n_rows = calls + [[]], 0
            calls[-1].append((last_BT, past))
            n_rows += last_BT.size
        found = []
        for call in calls:
            widths_A = np.concatenate([np.full(len(part_BT), part_BT.shape[1]) for part_BT, _ in call])
            found.append(self.next_states(*zip(*call))[:, np.cumsum(widths_A) - 1])
        return np.concatenate(found, axis=1)

    def next_states(self, fed, pasts):
        """What logits() takes for each of the new tokens, text by text: float32 [2, R, D].

        fed: a list of tokens, int32 [B, T].  pasts: for each the Past of these texts, which gets the tokens.
        """
        values_VD, scale_V = self.wte
        hidden, masks = [], []
        for tokens_BT, past in zip(fed, pasts):
            n_new = tokens_BT.shape[1]
            past.n_seen += n_new
            position_TD = self.wpe[past.n_seen - n_new:past.n_seen]
            hidden_BTD = values_VD[tokens_BT] * scale_V[tokens_BT][..., None] + position_TD
            hidden.append(hidden_BTD.reshape(-1, self.hparams.n_embd))
            masks.append(causal_mask(n_new, past.n_seen) if n_new > 1 else None)
        ends = np.cumsum([len(hidden_RD) for hidden_RD in hidden]).tolist()
        rows = [slice(begin, end) for begin, end in zip([0] + ends, ends)]
        hidden_RD = np.concatenate(hidden)
        with self.lock:
            qkv_RN, = self.pieces[0](hidden_RD)
            for layer, piece in enumerate(self.pieces[1:]):
                mixed = [self.attention(qkv_RN[those], past, layer, mask_TS)
                         for those, past, mask_TS in zip(rows, pasts, masks)]
                mixed_RD = np.concatenate(mixed) if len(mixed) > 1 else mixed[0]
                if layer < self.hparams.n_layer - 1:
                    hidden_RD, qkv_RN = piece(hidden_RD, mixed_RD)
        return np.stack([hidden_RD, mixed_RD])

    def logits(self, states_2RD):
        """Logits float32 [R, V] of the token that follows each."""
        with self.lock:
            return self.pieces[-1](*states_2RD)[0]

    def attention(self, qkv_RN, past, layer, mask_TS):
        """What each new token attends to: float32 [R, D]. The new tokens join the layer's past.

        qkv_RN: their queries, keys and values, side by side.  mask_TS: what is added to the scores of several tokens.
        """
        batch, n_head, _, size = past.pairs.shape[2:]
        n_new = len(qkv_RN) // batch
        qkv = qkv_RN.reshape(batch, n_new, 3, n_head, size).transpose(2, 0, 3, 1, 4)
        past.pairs[layer, ..., past.n_seen - n_new:past.n_seen, :] = qkv[1:]
        k_BHSK, v_BHSK = past.pairs[layer, ..., :past.n_seen, :]
        q_BHTK = np.divide(qkv[0], np.float32(math.sqrt(size)), order='C')
        if n_new == 1:
            # In one thread: the threads of the pieces look for work for a while after each, and occupy the other cores.
            return attend_one(q_BHTK, k_BHSK, v_BHSK).reshape(batch, -1)
        mixed_BTHK = np.empty([batch, n_new, n_head, size], np.float32)
        n_texts = max(1, MAX_SCORES // (n_head * QUERIES_AT_A_TIME * past.n_seen))
        for first_text in range(0, batch, n_texts):
            texts = slice(first_text, first_text + n_texts)
            for first in range(0, n_new, QUERIES_AT_A_TIME):
                queries = slice(first, first + QUERIES_AT_A_TIME)
                seen = slice(past.n_seen - n_new + queries.stop)
                found_BHTK, = self.attend(q_BHTK[texts, :, queries], k_BHSK[texts, :, seen], v_BHSK[texts, :, seen],
                                          mask_TS[queries, seen])
                mixed_BTHK[texts, queries] = found_BHTK.swapaxes(1, 2)
        return mixed_BTHK.reshape(-1, n_head * size)


def in_parts(tokens_BT):
    """Tokens [B, T] in parts with up to MAX_ROWS tokens, or QUERIES_AT_A_TIME of each text."""
    n = max(1, MAX_ROWS // len(tokens_BT) // QUERIES_AT_A_TIME) * QUERIES_AT_A_TIME
    return [tokens_BT[:, first:first + n] for first in range(0, tokens_BT.shape[1], n)]


def causal_mask(n_new, n_seen):
    """float32 [T, S], to be added to attention scores: 0 where a token may look, up to itself, and -1e10 beyond."""
    return np.triu(np.full([n_new, n_seen], -1e10, np.float32), n_seen - n_new + 1)


def attend_one(q_BH1K, k_BHSK, v_BHSK):
    """model.attend for one query, which sees all positions."""
    score_BH1S = q_BH1K @ k_BHSK.swapaxes(-2, -1)
    weight_BH1S = np.exp(score_BH1S - score_BH1S.max(axis=-1, keepdims=True))
    return weight_BH1S @ v_BHSK / weight_BH1S.sum(axis=-1, keepdims=True)
