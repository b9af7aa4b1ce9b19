"""The engines that benchmark.py compares: ours and others that sample GPT-2, each behind the same methods.

On a GPU these are the engines based on TensorFlow or PyTorch. They use any GPU that they see, so benchmark.py hides it
when it measures the CPU.
"""
import collections
import contextlib
import copy
import json
import os
import re
import shutil
import sys
import tempfile
import types

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'src'))
END_OF_TEXT = 50256


class Engine(object):
    """One way to sample. Slow imports are inside the methods, because their time is part of the start-up."""

    name = None
    packages = ()  # (module, name on PyPI) of what it needs, itself first
    precisions = ('float32',)  # of the weights, on a CPU
    gpu_precisions = ()  # on a GPU. tf32: float32 in memory, but products read only 10 of the fraction's 23 bits
    converts = True  # False: it reads the folder of a released model itself
    converts_alike = False  # whether convert() writes the same for every precision

    def __init__(self, threads, precision):
        self.threads, self.precision = threads, precision

    def convert(self, model, folder):
        """Write the weights of `model`, a released model's folder, into the new `folder` in the engine's own format."""
        raise NotImplementedError

    def prepare(self, folder):
        """Load what convert() wrote."""
        raise NotImplementedError

    def generate(self, tokens_BT, length, top_k):
        """Continue each row of int tokens_BT. Returns the new tokens, int [B, length]. top_k=1 is greedy."""
        raise NotImplementedError

    def score(self, tokens_BT):
        """Losses of predicting tokens_BT[:, 1:], in nats: float [B, T - 1]. Some engines have none."""
        raise NotImplementedError

    def train(self, tokens_BT):
        """A step of Adam with dropout on int tokens_BT. Returns the loss in nats per token. Some engines have none."""
        raise NotImplementedError


class Ours(Engine):
    """The sampler of generate_unconditional_samples.py, the scorer of evaluate.py and the step of train.py.

    -compiled, on a GPU: with the compiled loop or step.
    """

    name = 'ours'
    packages = [('tensorflow', 'tensorflow')]
    precisions = ('float32', 'int8')
    # tf32 is for scoring and training, bfloat16 for training; samples are those of float32.
    gpu_precisions = ('float32', 'float32-compiled', 'tf32', 'tf32-compiled', 'bfloat16', 'bfloat16-compiled')
    converts = False

    def prepare(self, folder):
        from gpt2.sampler import load
        self.models_dir, self.model_name = os.path.split(folder)
        self.sampler = load(self.model_name, self.models_dir, 'int8' if self.precision == 'int8' else 'float32')
        self.scorer, self.trainer = None, None
        self.opened = contextlib.ExitStack()  # what is loaded lives as long as the engine

    def generate(self, tokens_BT, length, top_k):
        from gpt2.sampler import random_draws
        n_rows, width = tokens_BT.shape
        continue_batch = self.sampler.build(n_rows, length=length, width=width, top_k=top_k,
                                            compiled=self.precision.endswith('-compiled'))
        return np.array(continue_batch(tokens_BT.tolist(), random_draws(None, range(n_rows), length)))

    def score(self, tokens_BT):
        from gpt2.evaluation import loading
        from gpt2.evaluation.documents import Options
        if self.scorer is None:
            self.scorer = self.opened.enter_context(
                loading.load(self.model_name, self.models_dir, Options(None, None, 1, None),
                             self.sampler.precision)).score
        return self.scorer(tokens_BT)

    def train(self, tokens_BT):
        from gpt2 import session
        from gpt2.system.tf1 import tf
        from gpt2.training import graph
        if self.trainer is None:
            hparams = type(self.sampler.hparams)(**dict(self.sampler.hparams.values(), n_ctx=tokens_BT.shape[1]))
            options = types.SimpleNamespace(
                batch_size=len(tokens_BT), accumulate=1, dropout=0.1, seed=0, recompute=False, clip=1.0,
                weight_decay=0.01, train_only=None, precision='bfloat16' if 'bfloat16' in self.precision else 'float32')
            with tf.Graph().as_default():
                step = graph.build(hparams, options, compiled=self.precision.endswith('-compiled'))
                sess = session.new_session()
                sess.run(tf.global_variables_initializer())
            self.trainer = lambda tokens_BT: sess.run([step.loss, step.update], {
                step.tokens: tokens_BT[None], step.first: 0, step.learning_rate: 1e-5})[0]
        return self.trainer(tokens_BT)


class Gpt2Simple(Engine):
    """OpenAI's sampler of 2019, maintained in a package."""

    name = 'gpt-2-simple'
    gpu_precisions = ('float32', 'tf32')
    converts = False
    packages = [('gpt_2_simple', 'gpt-2-simple'), ('tensorflow', 'tensorflow')]

    def prepare(self, folder):
        from gpt2.system.tf1 import tf
        from gpt_2_simple.src import model
        self.hparams = model.default_hparams()
        with open(os.path.join(folder, 'hparams.json'), encoding='utf-8') as file:
            self.hparams.override_from_dict(json.load(file))
        self.folder = folder
        # Without allow_growth it would take all of the GPU's memory, and the others need some.
        self.sess = tf.Session(config=tf.ConfigProto(gpu_options=tf.GPUOptions(allow_growth=True)))
        self.graphs = {}

    def generate(self, tokens_BT, length, top_k):
        from gpt2.system.tf1 import tf
        from gpt_2_simple.src import sample
        key = len(tokens_BT), length, top_k
        if key not in self.graphs:
            context = tf.placeholder(tf.int32, [len(tokens_BT), None])
            self.graphs[key] = context, sample.sample_sequence(hparams=self.hparams, length=length, context=context,
                                                               batch_size=len(tokens_BT), top_k=top_k)
            if len(self.graphs) == 1:
                tf.train.Saver().restore(self.sess, os.path.join(self.folder, 'model.ckpt'))
        context, output = self.graphs[key]
        return self.sess.run(output, {context: tokens_BT})[:, -length:]


class Transformers(Engine):
    """generate() with its defaults: PyTorch without compilation.

    On a GPU also: -static, with its cache of a fixed size; -compiled, with that cache and the network compiled.
    """

    name = 'transformers'
    packages = [('transformers', 'transformers'), ('torch', 'torch')]
    gpu_precisions = ('float32', 'tf32', 'float32-static', 'float32-compiled', 'tf32-compiled', 'float16', 'bfloat16',
                      'bfloat16-compiled')
    converts_alike = True

    def convert(self, model, folder):
        save_pretrained(model, folder)

    def prepare(self, folder):
        import torch
        from transformers import GPT2LMHeadModel
        torch.set_num_threads(self.threads)
        self.optimizer = None
        numbers, _, form = self.precision.partition('-')
        torch.set_float32_matmul_precision('high' if numbers == 'tf32' else 'highest')
        self.options = {'cache_implementation': 'static', 'disable_compile': form == 'static'} if form else {}
        self.model = GPT2LMHeadModel.from_pretrained(folder).eval().to(
            'cuda' if torch.cuda.is_available() else 'cpu',
            torch.float32 if numbers == 'tf32' else getattr(torch, numbers))

    def generate(self, tokens_BT, length, top_k):
        import torch
        tokens = torch.from_numpy(tokens_BT).to(self.model.device)
        return self.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=top_k, pad_token_id=0,
            max_new_tokens=length, **self.options)[:, tokens_BT.shape[1]:].cpu().numpy()

    def score(self, tokens_BT):
        import torch
        tokens = torch.from_numpy(tokens_BT).to(self.model.device)
        with torch.no_grad():
            logits_BVT = self.model(tokens[:, :-1], use_cache=False).logits.transpose(1, 2).float()
            return torch.nn.functional.cross_entropy(logits_BVT, tokens[:, 1:], reduction='none').cpu().numpy()

    def train(self, tokens_BT):
        """In 16 bits as ours: weights are float32, and autocast decides what is computed in fewer bits."""
        import torch
        if self.optimizer is None:
            self.trained = copy.deepcopy(self.model).float().train()
            self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=1e-5, betas=(0.9, 0.95))
        tokens = torch.from_numpy(tokens_BT).to(self.model.device)
        with torch.autocast(self.model.device.type, self.model.dtype, enabled=self.model.dtype != torch.float32):
            loss = self.trained(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class CTranslate2(Engine):
    """A Transformer engine in C++, made for translation."""

    name = 'ctranslate2'
    packages = [('ctranslate2', 'ctranslate2')]
    precisions = ('float32', 'int8')

    def convert(self, model, folder):
        from ctranslate2.converters import TransformersConverter
        with tempfile.TemporaryDirectory() as source:
            save_pretrained(model, source)
            TransformersConverter(source).convert(folder, quantization=self.precision)

    def prepare(self, folder):
        import ctranslate2
        self.generator = ctranslate2.Generator(
            folder, compute_type=self.precision, inter_threads=1, intra_threads=self.threads)
        with open(os.path.join(folder, 'vocabulary.json'), encoding='utf-8') as file:
            self.vocabulary = json.load(file)

    def generate(self, tokens_BT, length, top_k):
        prompts = [[self.vocabulary[token] for token in row] for row in tokens_BT]
        results = self.generator.generate_batch(prompts, min_length=length, max_length=length, sampling_topk=top_k,
                                                include_prompt_in_result=False)
        return np.array([result.sequences_ids[0] for result in results])


class OnnxRuntime(Engine):
    """The network of transformers, exported by PyTorch; the sampling loop is here."""

    name = 'onnxruntime'
    packages = [('onnxruntime', 'onnxruntime')]
    precisions = ('float32', 'int8', 'int8-blocks')

    def convert(self, model, folder):
        os.makedirs(folder)
        path = os.path.join(folder, 'model.onnx')
        if self.precision == 'float32':
            export_onnx(model, path)
            return
        from onnxruntime import quantization
        with tempfile.TemporaryDirectory() as exported:
            source = os.path.join(exported, 'model.onnx')
            export_onnx(model, source)
            if self.precision == 'int8':  # activations in 8 bits too, with one scale for each call
                quantization.quantize_dynamic(source, path, weight_type=quantization.QuantType.QInt8)
            else:
                quantize_blocks(source, path)

    def prepare(self, folder):
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, 'model.onnx'), options, ['CPUExecutionProvider'])

    def generate(self, tokens_BT, length, top_k):
        import onnxruntime
        inputs = self.session.get_inputs()
        past = [onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros([len(tokens_BT), heads, 0, head_size], np.float32))
                for _, heads, _, head_size in [past.shape for past in inputs[1:]]]
        fed_BT, columns = tokens_BT, []
        for _ in range(length):
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(fed_BT)] + past
            logits, *past = self.session.run_with_ort_values(None, dict(zip([i.name for i in inputs], values)))
            fed_BT = draw_top_k(logits.numpy(), top_k)[:, None]
            columns.append(fed_BT)
        return np.concatenate(columns, axis=1)


class OpenVino(Engine):
    """Intel's engine, with weights compressed by its NNCF. By default it computes in bfloat16 if the processor can."""

    name = 'openvino'
    packages = [('openvino', 'openvino'), ('nncf', 'nncf')]
    precisions = ('int8', 'int8-bfloat16')

    def convert(self, model, folder):
        import nncf
        import openvino
        from openvino._offline_transformations import apply_make_stateful_transformation
        os.makedirs(folder)
        with tempfile.TemporaryDirectory() as exported:
            source = os.path.join(exported, 'model.onnx')
            export_onnx(model, source)
            network = openvino.Core().read_model(source)
            n_cached = len(network.inputs) - 1
            apply_make_stateful_transformation(network, {'past%d' % i: 'present%d' % i for i in range(n_cached)})
            network = nncf.compress_weights(network, mode=nncf.CompressWeightsMode.INT8_SYM)
            openvino.save_model(network, os.path.join(folder, 'model.xml'), compress_to_fp16=False)

    def prepare(self, folder):
        import openvino
        options = {'INFERENCE_NUM_THREADS': self.threads, 'PERFORMANCE_HINT': 'LATENCY',
                   'INFERENCE_PRECISION_HINT': 'f32' if self.precision == 'int8' else 'bf16'}
        network = openvino.Core().compile_model(os.path.join(folder, 'model.xml'), 'CPU', options)
        self.request = network.create_infer_request()

    def generate(self, tokens_BT, length, top_k):
        import openvino
        for state in self.request.query_state():
            _, heads, _, head_size = state.state.shape
            state.state = openvino.Tensor(np.zeros([len(tokens_BT), heads, 0, head_size], np.float32))
        fed_BT, columns = tokens_BT, []
        for _ in range(length):
            self.request.infer({'tokens': fed_BT})
            fed_BT = draw_top_k(self.request.get_tensor('logits').data, top_k)[:, None]
            columns.append(fed_BT)
        return np.concatenate(columns, axis=1)


class LlamaCpp(Engine):
    """llama.cpp through its C functions: the package's class Llama samples one text at a time."""

    name = 'llama-cpp-python'
    packages = [('llama_cpp', 'llama-cpp-python')]
    precisions = ('float32', 'q8_0')

    def convert(self, model, folder):
        os.makedirs(folder)
        path = os.path.join(folder, 'model.gguf')
        if self.precision == 'float32':
            export_gguf(model, path)
            return
        import llama_cpp
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
        with tempfile.TemporaryDirectory() as exported:
            source = os.path.join(exported, 'model.gguf')
            export_gguf(model, source)
            if llama_cpp.llama_model_quantize(source.encode('utf-8'), path.encode('utf-8'), params):
                raise RuntimeError('llama_model_quantize failed')

    def prepare(self, folder):
        import llama_cpp
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept: C holds no reference to it
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        path = os.path.join(folder, 'model.gguf')
        self.model = llama_cpp.llama_model_load_from_file(path.encode('utf-8'), llama_cpp.llama_model_default_params())
        if not self.model:  # NULL, with which the other functions crash
            raise RuntimeError('llama_model_load_from_file failed')
        self.contexts = {}

    def context(self, batch, n_prompt, length):
        """An empty context for these sizes, made once."""
        import llama_cpp
        key = batch, n_prompt, length
        if key not in self.contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_seq_max = batch * (n_prompt + length), batch * n_prompt, batch
            params.n_threads = params.n_threads_batch = self.threads
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32  # like the others; the default is half precision
            self.contexts[key] = llama_cpp.llama_init_from_model(self.model, params)
            if not self.contexts[key]:
                raise RuntimeError('llama_init_from_model failed')
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.contexts[key]), True)
        return self.contexts[key]

    def generate(self, tokens_BT, length, top_k):
        import llama_cpp
        context = self.context(len(tokens_BT), tokens_BT.shape[1], length)
        sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_top_k(top_k))
        llama_cpp.llama_sampler_chain_add(sampler, llama_cpp.llama_sampler_init_dist(0))
        batch = llama_cpp.llama_batch_init(tokens_BT.size, 0, 1)
        fed_BT, n_seen, columns = tokens_BT.tolist(), 0, []
        for _ in range(length):
            n_new = len(fed_BT[0])
            batch.n_tokens = len(fed_BT) * n_new
            for i in range(batch.n_tokens):
                row, column = divmod(i, n_new)
                batch.token[i], batch.pos[i] = fed_BT[row][column], n_seen + column
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
                batch.logits[i] = int(column == n_new - 1)
            if llama_cpp.llama_decode(context, batch):
                raise RuntimeError('llama_decode failed')
            n_seen += n_new
            fed_BT = [[llama_cpp.llama_sampler_sample(sampler, context, (row + 1) * n_new - 1)]
                      for row in range(len(fed_BT))]
            columns.append(fed_BT)
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_sampler_free(sampler)
        return np.concatenate(columns, axis=1)


def read_model(model):
    """The dict of hparams.json, and a tuple for each variable: (block's number or None, 'attn/c_attn', 'w', array)."""
    from gpt2.system.tensor_bundle import read_index
    with open(os.path.join(model, 'hparams.json'), encoding='utf-8') as file:
        hparams = json.load(file)
    weights = []
    data = np.memmap(os.path.join(model, 'model.ckpt.data-00000-of-00001'), np.uint8, 'r')
    for tensor in read_index(os.path.join(model, 'model.ckpt.index')):
        block, part, kind = re.match(r'model/(?:h(\d+)/)?(.+?)(?:/([wbg]))?$', tensor.name).groups()
        array = data[tensor.offset:tensor.offset + tensor.n_bytes].view(np.float32)
        if kind == 'w':
            array = array.reshape([4 * hparams['n_embd'] if part == 'mlp/c_proj' else hparams['n_embd'], -1])
        elif kind is None:
            array = array.reshape([-1, hparams['n_embd']])
        weights.append((block, part, kind, array))
    return hparams, weights


def hugging_face_model(model, **options):
    """The weights of `model` as a GPT2LMHeadModel without an end token, so that every row reaches the full length."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    hparams, weights = read_model(model)
    config = GPT2Config(vocab_size=hparams['n_vocab'], n_positions=hparams['n_ctx'], n_embd=hparams['n_embd'],
                        n_layer=hparams['n_layer'], n_head=hparams['n_head'], eos_token_id=None, **options)
    network = GPT2LMHeadModel(config)
    state = {}
    for block, part, kind, array in weights:
        name = ('' if block is None else 'h.%s.' % block) + part.replace('/', '.')
        state['transformer.%s.%s' % (name, 'bias' if kind == 'b' else 'weight')] = torch.from_numpy(np.array(array))
    state['lm_head.weight'] = state['transformer.wte.weight']
    network.load_state_dict(state)
    return network


def save_pretrained(model, folder):
    """Write the weights and the vocabulary for transformers."""
    hugging_face_model(model).save_pretrained(folder)
    shutil.copyfile(os.path.join(model, 'encoder.json'), os.path.join(folder, 'vocab.json'))
    shutil.copyfile(os.path.join(model, 'vocab.bpe'), os.path.join(folder, 'merges.txt'))


def export_onnx(model, path):
    """Write the network of transformers as ONNX: from tokens, past0 ... to the last position's logits, present0 ..."""
    import torch
    from transformers import DynamicCache

    class Step(torch.nn.Module):
        def __init__(self, network):
            super(Step, self).__init__()
            self.network = network

        def forward(self, tokens, past):
            n_past, n_new = past[0].shape[2], tokens.shape[1]
            position = torch.arange(n_past, n_past + n_new)
            beyond = torch.arange(n_past + n_new)[None, :] > position[:, None]
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            hidden = self.network.transformer(
                tokens, past_key_values=cache, position_ids=position[None], use_cache=True,
                attention_mask=(beyond * torch.finfo(torch.float32).min)[None, None]).last_hidden_state
            present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
            return [self.network.lm_head(hidden[:, -1])] + present

    network = hugging_face_model(model, attn_implementation='eager').eval()
    batch, n_new, n_past = [torch.export.Dim(name, min=1, max=limit) for name, limit in
                            (('batch', 4096), ('n_new', 1024), ('n_past', 1024))]
    head_size = network.config.n_embd // network.config.n_head
    n_cached = 2 * network.config.n_layer
    past = [torch.zeros([2, network.config.n_head, 5, head_size]) for _ in range(n_cached)]
    names = ['past%d' % i for i in range(n_cached)]
    torch.onnx.export(
        Step(network), (torch.zeros([2, 3], dtype=torch.int64), past), path, dynamo=True,
        input_names=['tokens'] + names, output_names=['logits'] + ['present%d' % i for i in range(n_cached)],
        dynamic_shapes=({0: batch, 1: n_new}, [{0: batch, 2: n_past}] * n_cached))


def quantize_blocks(source, path):
    """Write the ONNX file `source` with 8-bit weights, and a scale for every 128 weights of a column (MatMulNBits)."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel
    network = ONNXModel(onnx.load(source))
    network.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        network.model, bits=8, block_size=128, is_symmetric=True, accuracy_level=4)  # 4: int8
    quantizer.process()
    quantizer.model.save_model_to_file(path)


def export_gguf(model, path):
    """Write the model in llama.cpp's format, in full precision and without the vocabulary."""
    import gguf
    hparams, weights = read_model(model)
    writer = gguf.GGUFWriter(path, 'gpt2')
    writer.add_context_length(hparams['n_ctx'])
    writer.add_embedding_length(hparams['n_embd'])
    writer.add_feed_forward_length(4 * hparams['n_embd'])
    writer.add_block_count(hparams['n_layer'])
    writer.add_head_count(hparams['n_head'])
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model('no_vocab')
    writer.add_vocab_size(hparams['n_vocab'])
    names = {'ln_1': 'attn_norm', 'attn/c_attn': 'attn_qkv', 'attn/c_proj': 'attn_output', 'ln_2': 'ffn_norm',
             'mlp/c_fc': 'ffn_up', 'mlp/c_proj': 'ffn_down', 'ln_f': 'output_norm', 'wte': 'token_embd',
             'wpe': 'position_embd'}
    for block, part, kind, array in weights:
        name = ('' if block is None else 'blk.%s.' % block) + names[part] + ('.bias' if kind == 'b' else '.weight')
        writer.add_tensor(name, np.ascontiguousarray(array.T) if kind == 'w' else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def draw_top_k(logits_BV, top_k):
    """Sample a token for each row from its top_k most likely ones: int64 [B]."""
    kept_BK = np.argpartition(logits_BV, -top_k, axis=-1)[:, -top_k:]
    gumbel_BK = np.random.gumbel(size=kept_BK.shape) if top_k > 1 else 0
    best_B = np.argmax(np.take_along_axis(logits_BV, kept_BK, axis=-1) + gumbel_BK, axis=-1)
    return kept_BK[np.arange(len(kept_BK)), best_B]


def kind(precision):
    """The one of KINDS that a precision belongs to; the table compares engines of the same kind."""
    numbers = precision.partition('-')[0]
    return {'float32': 'float32', 'tf32': 'TF32', 'float16': '16 bits', 'bfloat16': '16 bits'}.get(numbers, '8 bits')


KINDS = ['float32', 'TF32', '16 bits', '8 bits']


def named(precisions):
    """{'ours': (Ours, 'float32'), 'ours-int8': (Ours, 'int8'), ...}, in the order of the table: full precision first.

    precisions: function that returns the precisions of an engine.
    """
    return collections.OrderedDict(sorted([
        (engine.name if precision == 'float32' else '%s-%s' % (engine.name, precision), (engine, precision))
        for engine in (Ours, Transformers, CTranslate2, LlamaCpp, OnnxRuntime, OpenVino, Gpt2Simple)
        for precision in precisions(engine)], key=lambda item: KINDS.index(kind(item[1][1]))))


ON_DEVICE = {'cpu': named(lambda engine: engine.precisions), 'gpu': named(lambda engine: engine.gpu_precisions)}
ENGINES = collections.OrderedDict(list(ON_DEVICE['cpu'].items()) + list(ON_DEVICE['gpu'].items()))
