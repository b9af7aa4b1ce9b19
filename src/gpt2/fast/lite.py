"""The network for LiteRT, TensorFlow's engine for phones: on a CPU the fastest one for sampling, without TensorFlow.

It multiplies by the fastest instructions that a processor has, in float32 or in 8 bits. There each column of a weight
becomes integers from -127 to 127 and a scale, and so does each row of what is multiplied with it, as it comes (Dettmers
et al. 2022, arXiv:2208.07339, section 2.1); all else stays float32. A token reads a quarter of the bytes then, and
reading the weights takes most of the time.

The network is that of model.py, in LiteRT's operations, cut at each attention. NumPy computes that of single tokens,
since LiteRT takes several times as long for many small products.

Letters are those of model.py.
"""
from concurrent import futures
import math
import threading

import numpy as np

from gpt2.fast import matmul
from gpt2.system import process
from gpt2.system.lite_file import File, Graph
from gpt2.system.tf1 import litert, tf, without_stderr

MAX_ROWS = 2 ** 12  # tokens of all texts that are computed at a time, so that a batch of long prompts fits into memory
# So that few scores are computed only to be masked. Where a prompt is divided, it is at multiples of this number, since
# sums over other numbers of positions are rounded differently.
QUERIES_AT_A_TIME = 128
COLUMNS_AT_A_TIME = 2 ** 6  # that are rounded, so that they stay in a processor's cache meanwhile
MAX_FLOAT32_BYTES = 2 ** 31  # LiteRT keeps two copies of the weights, too much for 774M and 1558M in float32
BYTES_OF_A_THREAD = 2 ** 20  # of the keys to attend to, from which on another thread saves time
MAX_SCORES = 2 ** 24  # attention scores that are in memory at a time: 64 MB


def is_for(precision, hparams):
    """Whether LiteRT is to sample with weights of this precision. Raises ValueError for int8 where it cannot."""
    if precision == 'float32':
        n_bytes = 4 * hparams.n_embd * (hparams.n_vocab + hparams.n_ctx + 12 * hparams.n_layer * hparams.n_embd)
        return n_bytes <= MAX_FLOAT32_BYTES and not matmul.on_gpu() and litert() is not None
    if matmul.on_gpu():
        raise ValueError('8-bit weights are for a CPU; use --precision float32, or hide the GPU: '
                         'CUDA_VISIBLE_DEVICES=-1')
    if litert() is None:
        raise ValueError('TensorFlow %s cannot multiply 8-bit weights; use --precision float32, or TensorFlow 2.x'
                         % tf.__version__)
    return True


# Rounding

def rounded(weight_NM):
    """(int8 values [M, N], scale [M]) of a float32 matrix: the largest magnitude of each column becomes 127."""
    magnitude_M = np.maximum(weight_NM.max(axis=0), -weight_NM.min(axis=0))
    scale_M = np.where(magnitude_M > 0, magnitude_M, 1).astype(np.float32) / np.float32(127)
    values_MN = np.empty(weight_NM.shape[::-1], np.int8)
    for first in range(0, len(scale_M), COLUMNS_AT_A_TIME):
        columns = slice(first, first + COLUMNS_AT_A_TIME)
        values_MN[columns] = np.rint(weight_NM[:, columns] / scale_M[columns]).T
    return values_MN, scale_M


# The network, in LiteRT's operations

# The matrices of a block: their inputs and outputs, in widths, and the layer norm before them
MATRICES = {'attn/c_attn': (1, 3, 'ln_1'), 'attn/c_proj': (1, 1, None), 'mlp/c_fc': (1, 4, 'ln_2'),
            'mlp/c_proj': (4, 1, None)}


def weight_shapes(hparams):
    """{name: shape} of all variables of a network."""
    width = hparams.n_embd
    shapes = {'model/wte': [hparams.n_vocab, width], 'model/wpe': [hparams.n_ctx, width]}
    for block in ['model/h%d/' % layer for layer in range(hparams.n_layer)]:
        for name, (n_in, n_out, _) in MATRICES.items():
            shapes.update({block + name + '/w': [1, n_in * width, n_out * width], block + name + '/b': [n_out * width]})
        shapes.update({block + norm: [width] for norm in ('ln_1/g', 'ln_1/b', 'ln_2/g', 'ln_2/b')})
    return dict(shapes, **{'model/ln_f/g': [width], 'model/ln_f/b': [width]})


class Weights(object):
    """What a network is written with.

    read: function from a variable's name to its float32 array, for several threads.  precision: float32 or int8.
    matrices: {name: (values [M, N], scale [M], bias [M])}, each as it is multiplied; in float32 the scale is 1. The
        bias of a layer norm before a matrix is a part of the matrix's, which saves an operation, and queries are
        divided by sqrt(K) already.
    """

    def __init__(self, hparams, read, precision):
        self.hparams, self.read, self.precision = hparams, read, precision
        blocks = ['model/h%d/' % layer for layer in range(hparams.n_layer)]
        given = [('model/wte', 'model/ln_f')] + [
            (block + name, norm and block + norm) for block in blocks for name, (_, _, norm) in MATRICES.items()]
        with futures.ThreadPoolExecutor(process.n_cores()) as pool:
            self.matrices = dict(zip([name for name, _ in given], pool.map(self.matrix, *zip(*given))))

    def matrix(self, name, norm):
        """One of `matrices`. norm: the name of the layer norm before it, or None."""
        if name == 'model/wte':
            weight_NM, bias_M = self.read(name).T, np.zeros(self.hparams.n_vocab, np.float32)
        else:
            weight_NM, bias_M = self.read(name + '/w')[0], self.read(name + '/b')
        if norm:
            bias_M = bias_M + self.read(norm + '/b') @ weight_NM
        if name.endswith('/c_attn'):
            width = self.hparams.n_embd
            divisor_M = np.repeat(np.float32([math.sqrt(width // self.hparams.n_head), 1, 1]), width)
            weight_NM, bias_M = weight_NM / divisor_M, bias_M / divisor_M
        if self.precision == 'int8':
            return rounded(weight_NM) + (bias_M,)
        return np.ascontiguousarray(weight_NM.T), np.ones(len(bias_M), np.float32), bias_M

    def normal(self, x_RD, name):
        """model.layer_norm without its bias."""
        centred_RD = x_RD - x_RD.mean()
        variance_R1 = (centred_RD * centred_RD).mean()
        return centred_RD * x_RD.graph.add('RSQRT', variance_R1 + 1e-5) * self.read(name + '/g')

    def linear(self, x_RN, name):
        """model.linear."""
        values_MN, scale_M, bias_M = self.matrices[name]
        is_rounded = self.precision == 'int8'
        matrix = x_RN.graph.constant(values_MN, scale_M if is_rounded else None)
        return x_RN.graph.add('FULLY_CONNECTED', x_RN, matrix, bias_M, shape=x_RN.shape[:-1] + [len(values_MN)],
                              asymmetricQuantizeInputs=is_rounded)

    def before_attention(self, hidden_RD, layer):
        """The beginning of model.block: queries, keys and values, side by side [R, 3 * D]."""
        return self.linear(self.normal(hidden_RD, 'model/h%d/ln_1' % layer), 'model/h%d/attn/c_attn' % layer)

    def after_attention(self, hidden_RD, mixed_RD, layer):
        """The rest of it: hidden states [R, D]. mixed_RD: what attention mixed."""
        hidden_RD = hidden_RD + self.linear(mixed_RD, 'model/h%d/attn/c_proj' % layer)
        wide_RN = self.linear(self.normal(hidden_RD, 'model/h%d/ln_2' % layer), 'model/h%d/mlp/c_fc' % layer)
        wide_RN = hidden_RD.graph.add('GELU', wide_RN, approximate=True)
        return hidden_RD + self.linear(wide_RN, 'model/h%d/mlp/c_proj' % layer)

    def logits(self, hidden_RD):
        """model.unembed, of the last block's output: [R, V]."""
        return self.linear(self.normal(hidden_RD, 'model/ln_f'), 'model/wte')


def attend(q, k, v, mask):
    """softmax(q k' + mask) v, of any number of axes."""
    score = q.graph.add('BATCH_MATMUL', q, k, adjY=True, shape=q.shape[:-1] + k.shape[-2:-1]) + mask
    return q.graph.add('BATCH_MATMUL', q.graph.add('SOFTMAX', score, beta=1.0), v, shape=q.shape)


def written(hparams, read, precision):
    """(content, embedding) of a file with the network in pieces, named by numbers.

    The pieces are what comes before the first attention, between two, and after the last. Each takes hidden states and
    what attention mixed, and returns the next hidden states, and queries, keys and values. The first takes, and
    returns, one of the two, and the last returns logits.
    embedding: (values [V, D], scale [V]) of wte, the values in the content.  The arguments are those of Weights.
    """
    file, weights, width = File(litert()[1]), Weights(hparams, read, precision), hparams.n_embd
    for layer in range(hparams.n_layer + 1):
        graph = Graph(file, str(layer))
        hidden_RD = graph.input('0', [None, width])
        if layer:
            hidden_RD = weights.after_attention(hidden_RD, graph.input('1', [None, width]), layer - 1)
        if layer == hparams.n_layer:
            outputs = [weights.logits(hidden_RD)]
        else:
            outputs = [hidden_RD] * (layer > 0) + [weights.before_attention(hidden_RD, layer)]
        for i, output in enumerate(outputs):
            graph.output(str(i), output)
    content, (values_VD, scale_V, _) = file.content(), weights.matrices['model/wte']
    return content, (np.ndarray(values_VD.shape, values_VD.dtype, content, file.offset(values_VD)), scale_V)


# The network, computed

class Piece(object):
    """A function of arrays that LiteRT computes. run: a SignatureRunner; its tensors' names are numbers."""

    def __init__(self, run):
        self.run = run

    def __call__(self, *arrays):
        found = self.run(**{str(i): array for i, array in enumerate(arrays)})
        return [found[name] for name in sorted(found)]


class Attention(object):
    """attend() of arrays. They are copied straight to where LiteRT reads them, which a Piece would copy once more."""

    def __init__(self):
        file = File(litert()[1])
        graph = Graph(file, 'attend')
        graph.output('0', attend(*[graph.input(str(i), [None] * n_axes) for i, n_axes in enumerate((4, 4, 4, 2))]))
        self.content = file.content()  # which LiteRT reads in place
        self.interpreter = interpreter_of(self.content)
        self.inputs = [entry['index'] for entry in self.interpreter.get_input_details()]
        self.output, = [entry['index'] for entry in self.interpreter.get_output_details()]

    def __call__(self, *arrays):
        """What LiteRT has computed: it is to be copied, and not kept until the next call."""
        for number, array in zip(self.inputs, arrays):
            self.interpreter.resize_tensor_input(number, array.shape)
        self.interpreter.allocate_tensors()
        for number, array in zip(self.inputs, arrays):
            self.interpreter.tensor(number)()[...] = array
        self.interpreter.invoke()
        return self.interpreter.tensor(self.output)()


def interpreter_of(content):
    """LiteRT's Interpreter of a file."""
    with without_stderr():
        interpreter = litert()[0](model_content=content, num_threads=process.n_cores())
        interpreter.allocate_tensors()  # says that there is XNNPACK
    return interpreter


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
    """

    def __init__(self, hparams, read, precision):
        self.hparams, self.lock = hparams, threading.Lock()
        content, self.wte = written(hparams, read, precision)
        self.wpe = read('model/wpe')
        interpreter = interpreter_of(content)
        self.pieces = [Piece(interpreter.get_signature_runner(str(i))) for i in range(hparams.n_layer + 1)]
        self.attend, self.n_threads = Attention(), process.n_cores()
        self.others = futures.ThreadPoolExecutor(self.n_threads)

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
        if n_new == 1:
            return self.attend_one(qkv[0], k_BHSK, v_BHSK).reshape(batch, -1)
        mixed_BTHK = np.empty([batch, n_new, n_head, size], np.float32)
        n_texts = max(1, MAX_SCORES // (n_head * QUERIES_AT_A_TIME * past.n_seen))
        for first_text in range(0, batch, n_texts):
            texts = slice(first_text, first_text + n_texts)
            for first in range(0, n_new, QUERIES_AT_A_TIME):
                queries = slice(first, first + QUERIES_AT_A_TIME)
                seen = slice(past.n_seen - n_new + queries.stop)
                mixed_BTHK[texts, queries] = self.attend(
                    qkv[0][texts, :, queries], k_BHSK[texts, :, seen], v_BHSK[texts, :, seen],
                    mask_TS[queries, seen]).swapaxes(1, 2)
        return mixed_BTHK.reshape(-1, n_head * size)

    def attend_one(self, *qkv):
        """attend_one(), in as many threads as texts and their keys keep busy."""
        _, k_BHSK, _ = qkv
        n = min(self.n_threads, len(k_BHSK), k_BHSK.nbytes // BYTES_OF_A_THREAD)
        if n < 2:
            return attend_one(*qkv)
        ends = [len(k_BHSK) * i // n for i in range(n + 1)]
        parts = [[x[begin:end] for x in qkv] for begin, end in zip(ends, ends[1:])]
        rest = [self.others.submit(attend_one, *part) for part in parts[1:]]
        return np.concatenate([attend_one(*parts[0])] + [part.result() for part in rest])


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
