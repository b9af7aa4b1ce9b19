"""convert.py to and from transformers: against PyTorch, the tokenizers library and safetensors, and what is refused.

SavedModels and the checkpoints of other trainers are in test_conversion_tensorflow.py.
"""
import json
import os
import random
import shutil

import numpy as np
import pytest

from gpt2 import checkpoint
import convert
import encoder
import model
from gpt2.system.tf1 import tf
from helpers import tiny
from helpers.paths import HELD_OUT, MODELS

SEVEN_FILES = ['checkpoint', 'encoder.json', 'hparams.json', 'model.ckpt.data-00000-of-00001', 'model.ckpt.index',
               'model.ckpt.meta', 'vocab.bpe']
EXPORTED = ['config.json', 'generation_config.json', 'merges.txt', 'model.safetensors', 'tokenizer.json',
            'tokenizer_config.json', 'vocab.json']
TINY = dict(n_vocab=tiny.N_BYTE_VOCAB)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """The demo model as a folder of transformers."""
    folder = str(tmp_path_factory.mktemp('exported') / 'demo')
    convert.to_transformers('demo', folder, models_dir=MODELS)
    return folder


@pytest.fixture(scope='module')
def exported_tiny(tiny_models, tmp_path_factory):
    """The tiny model as a folder of transformers. Tests that change it copy it."""
    folder = str(tmp_path_factory.mktemp('exported') / 'tiny')
    convert.to_transformers('tiny', folder, models_dir=tiny_models)
    return folder


@pytest.fixture
def theirs(exported_tiny, tmp_path):
    """A copy of exported_tiny, to change."""
    return shutil.copytree(exported_tiny, str(tmp_path / 'theirs'))


@pytest.fixture
def bring_in(tmp_path):
    """A function that makes a model of a folder of transformers, and returns its folder."""
    pytest.importorskip('safetensors', reason='needs safetensors: pip install safetensors')
    (tmp_path / 'models').mkdir()

    def bring_in(folder, **options):
        convert.from_transformers(str(folder), 'mine', models_dir=str(tmp_path / 'models'), **options)
        return str(tmp_path / 'models' / 'mine')

    return bring_in


@pytest.fixture
def refusal(bring_in, tmp_path):
    """A function that returns the message with which a folder of transformers is refused. Nothing may be written."""
    def refusal(folder, **options):
        with pytest.raises((ValueError, OSError)) as caught:
            bring_in(folder, **options)
        assert os.listdir(str(tmp_path / 'models')) == []
        return str(caught.value)

    return refusal


def read_json(*path):
    with open(os.path.join(*path), encoding='utf-8') as file:
        return json.load(file)


def write_json(values, *path):
    with open(os.path.join(*path), 'w', encoding='utf-8') as file:
        json.dump(values, file)


def change(folder, name, **values):
    """Set values of a JSON file in a folder; a value of None removes it."""
    found = read_json(folder, name)
    found.update(values)
    write_json({key: value for key, value in found.items() if value is not None}, folder, name)


def stored(folder):
    """{name: array} of a model's folder, as TensorFlow's own reader finds them."""
    reader = tf.train.load_checkpoint(os.path.join(folder, 'model.ckpt'))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def safetensors_of(path):
    """({name: entry of the header}, bytes behind it) of a safetensors file, read without the library."""
    with open(path, 'rb') as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), 'little')).decode('utf-8'))
        return header, file.read()


def write_safetensors(path, header, content):
    header = header if isinstance(header, bytes) else json.dumps(header).encode('utf-8')
    with open(path, 'wb') as file:
        file.write(len(header).to_bytes(8, 'little') + header + content)


def logits_of(models_dir, name, tokens):
    """Our logits [B, T, V] with a graph and a session of their own."""
    with tf.Graph().as_default(), tf.Session() as sess:
        logits = model.model(checkpoint.load_hparams(name, models_dir), tokens)['logits']
        checkpoint.restore(sess, name, models_dir)
        return sess.run(logits)


def their_logits(transformers, folder, tokens, **options):
    import torch
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return theirs, theirs(torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()


def assert_close(found, expected, share=1e-4):
    assert abs(found - expected).max() < share * (expected.max() - expected.min())


@pytest.fixture
def transformers():
    torch = pytest.importorskip('torch', reason='needs transformers and torch')
    torch.set_num_threads(1)  # on a busy machine, more would wait for each other
    return pytest.importorskip('transformers', reason='needs transformers and torch')


# There and back

def test_names_and_bytes_of_the_exported_weights(tiny_models, exported_tiny):
    """Those of transformers, in any library that reads safetensors: a header, and the tensors without gaps."""
    assert sorted(os.listdir(exported_tiny)) == EXPORTED
    header, content = safetensors_of(os.path.join(exported_tiny, 'model.safetensors'))
    assert header.pop('__metadata__') == {'format': 'pt'}
    weights = stored(os.path.join(tiny_models, 'tiny'))
    assert len(header) == len(weights) and len(content) == sum(array.nbytes for array in weights.values())
    for ours, theirs in (('model/wte', 'wte.weight'), ('model/wpe', 'wpe.weight'), ('model/ln_f/g', 'ln_f.weight'),
                         ('model/h1/ln_1/b', 'h.1.ln_1.bias'), ('model/h0/attn/c_attn/w', 'h.0.attn.c_attn.weight'),
                         ('model/h1/mlp/c_proj/b', 'h.1.mlp.c_proj.bias')):
        entry = header['transformer.' + theirs]
        start, end = entry['data_offsets']
        found = np.frombuffer(content[start:end], '<f4').reshape(entry['shape'])
        np.testing.assert_array_equal(found, np.squeeze(weights[ours]))


@pytest.mark.slow
def test_demo_goes_there_and_back_bit_by_bit(exported, bring_in, tmp_path):
    """All files but the graph, which names TensorFlow's version, and the index, whose blocks may be cut elsewhere."""
    folder = bring_in(exported)
    assert sorted(os.listdir(folder)) == SEVEN_FILES
    for name in set(SEVEN_FILES) - {'model.ckpt.meta', 'model.ckpt.index'}:
        with open(os.path.join(folder, name), 'rb') as found, open(os.path.join(MODELS, 'demo', name), 'rb') as file:
            assert found.read() == file.read(), name
    weights, expected = stored(folder), stored(os.path.join(MODELS, 'demo'))
    assert sorted(weights) == sorted(expected)
    for name in expected:
        np.testing.assert_array_equal(weights[name], expected[name])
    with tf.Graph().as_default(), tf.Session() as sess:  # as programs do that have no code of the network
        tf.train.import_meta_graph(os.path.join(folder, 'model.ckpt.meta')).restore(sess, folder + '/model.ckpt')
        np.testing.assert_array_equal(sess.run('model/wte:0'), expected['model/wte'])


@pytest.mark.slow
def test_demo_in_transformers_has_our_logits_and_greedy_texts(exported, transformers):
    """On 100 texts, within 1e-4 of the span of the logits; and in texts of 40 tokens from 4 of them."""
    import torch
    text_encoder = encoder.get_encoder('demo', MODELS)
    with open(HELD_OUT, encoding='utf-8') as file:
        tokens = np.array(text_encoder.encode(file.read())[:2100], np.int32).reshape(100, 21)
    theirs, logits = their_logits(transformers, exported, tokens)
    assert_close(logits, logits_of(MODELS, 'demo', tokens))
    prompts = tokens[:4]
    found = theirs.generate(torch.from_numpy(prompts.astype(np.int64)), do_sample=False, max_new_tokens=40,
                            eos_token_id=None, pad_token_id=text_encoder.end_of_text).numpy()
    from gpt2.sampler import Sampler
    with Sampler('demo', MODELS) as sampler:
        rows = sampler.build(4, length=40, temperature=0)([list(map(int, row)) for row in prompts], np.zeros([4, 40]))
    np.testing.assert_array_equal(found[:, 21:], rows)


@pytest.mark.slow
@pytest.mark.parametrize('dtype, share', [('float16', 5e-3), ('bfloat16', 3e-2)])
def test_dtype_of_the_exported_weights(tiny_models, tmp_path, transformers, bring_in, dtype, share):
    """Each weight is the nearest number by PyTorch's rounding, and the model comes back with exactly that."""
    import torch
    folder = str(tmp_path / 'half')
    convert.to_transformers('tiny', folder, dtype=dtype, models_dir=tiny_models)
    theirs, logits = their_logits(transformers, folder, np.arange(30)[None], torch_dtype='auto')
    assert theirs.dtype == getattr(torch, dtype)
    expected = stored(os.path.join(tiny_models, 'tiny'))
    found = stored(bring_in(folder))
    for name in expected:
        nearest = torch.from_numpy(expected[name]).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(found[name], nearest)
    assert_close(logits, logits_of(tiny_models, 'tiny', np.arange(30, dtype=np.int32)[None]), share)


def random_texts(n, seed=1):
    """Texts of words, white space, emoji, and characters from everywhere in Unicode."""
    print('seed', seed)
    draw = random.Random(seed)
    pieces = [' ', '  ', '\n', '\t', '\r\n', "'s", "don't", 'the', ' Once upon', '12345', 'ñandú', '東京',
              '🙂', '👩‍👩‍👧',
              '\u00a0', '\u2003', '\0', '\x7f', '...', '—', 'é', '\u0301', '\ufeff', 'İ', 'ﬀ']
    return [''.join(draw.choice(pieces) if draw.random() < .7 else chr(draw.choice([
        draw.randrange(256), draw.randrange(0xd800), draw.randrange(0xe000, 0x110000)]))
        for _ in range(draw.randrange(1, 30))) for _ in range(n)]


@pytest.mark.slow
def test_tokenizer_gives_the_ids_of_ours(exported, transformers):
    """On 1,000 random texts, and back to text; with tokenizer.json, and with vocab.json and merges.txt alone."""
    text_encoder = encoder.get_encoder('demo', MODELS)
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    tokenizers = pytest.importorskip('tokenizers', reason='needs tokenizers: pip install tokenizers')
    file = tokenizers.Tokenizer.from_file(os.path.join(exported, 'tokenizer.json'))
    for text in random_texts(1000) + ['', ''.join(map(chr, range(256)))]:
        expected = text_encoder.encode(text)
        assert theirs(text)['input_ids'] == expected == file.encode(text).ids, repr(text)
        assert theirs.decode(expected) == text
    assert theirs.eos_token_id == text_encoder.end_of_text == theirs.bos_token_id
    assert theirs.model_max_length == 256


@pytest.mark.slow
def test_released_vocabulary_gives_the_same_ids(vocabulary, tmp_path, transformers):
    """The 50,257 tokens of the release, in a model with few weights."""
    hparams = tiny.hparams(n_vocab=50257)
    tiny.write_model(str(tmp_path / 'big'), hparams, tiny.random_weights(hparams), vocabulary=vocabulary)
    convert.to_transformers('big', str(tmp_path / 'exported'), models_dir=str(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'exported'))
    text_encoder = encoder.get_encoder('big', str(tmp_path))
    for text in random_texts(1000, seed=2):
        assert theirs(text)['input_ids'] == text_encoder.encode(text), repr(text)


# Models that were not made by this project

@pytest.fixture(scope='module')
def trained_tokenizer(tmp_path_factory):
    """A folder with a tokenizer.json that the tokenizers library has learned, with special tokens at the beginning."""
    tokenizers = pytest.importorskip('tokenizers', reason='needs tokenizers: pip install tokenizers')
    learner = tokenizers.ByteLevelBPETokenizer()
    learner.train([HELD_OUT], vocab_size=400, special_tokens=['<s>', '<pad>', '</s>'], show_progress=False)
    folder = tmp_path_factory.mktemp('tokenizer')
    learner.add_tokens(['Alice:', 'the cat'])
    learner.save(str(folder / 'tokenizer.json'))
    learner.save_model(str(folder))
    return str(folder)


def save_theirs(transformers, folder, vocabulary_from, max_shard_size='1GB', dtype='float32', **changes):
    """Save a random model of transformers with an odd shape: 1 head, 3 layers, 77 positions."""
    import torch
    torch.manual_seed(1)
    sizes = dict(n_layer=3, n_head=1, n_embd=24, n_positions=77, vocab_size=402, initializer_range=.3)
    sizes.update(changes)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).to(getattr(torch, dtype)).eval()
    theirs.save_pretrained(folder, max_shard_size=max_shard_size)
    for name in vocabulary_from:
        shutil.copy(name, folder)
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize('dtype, max_shard_size, share', [('float32', '1GB', 1e-4), ('float16', '40KB', 5e-3)])
def test_their_models_have_the_same_logits_here(transformers, trained_tokenizer, bring_in, tmp_path, dtype,
                                                max_shard_size, share):
    """An odd shape, in one file or in shards of float16, with a vocabulary that was trained elsewhere."""
    import torch
    theirs = save_theirs(transformers, str(tmp_path / 'hub'), [os.path.join(trained_tokenizer, 'tokenizer.json')],
                         max_shard_size, dtype, eos_token_id=2)
    assert (dtype == 'float16') == os.path.exists(str(tmp_path / 'hub' / 'model.safetensors.index.json'))
    bring_in(tmp_path / 'hub')
    tokens = np.random.RandomState(0).randint(402, size=[2, 77]).astype(np.int32)
    with torch.no_grad():
        expected = theirs.float()(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    assert_close(logits_of(str(tmp_path / 'models'), 'mine', tokens), expected)


@pytest.mark.slow
@pytest.mark.parametrize('files', [['tokenizer.json'], ['vocab.json', 'merges.txt']])
def test_trained_vocabulary_with_added_tokens(transformers, trained_tokenizer, bring_in, tmp_path, files):
    """The same ids for texts; added tokens keep theirs, are shown when decoded and never come out of a text."""
    tokenizers = pytest.importorskip('tokenizers', reason='needs tokenizers: pip install tokenizers')
    folder = str(tmp_path / 'hub')
    save_theirs(transformers, folder, [os.path.join(trained_tokenizer, name) for name in files], eos_token_id=2)
    if 'vocab.json' in files:
        write_json({'Alice:': 400, 'the cat': 401}, folder, 'added_tokens.json')
    bring_in(folder)
    ours = encoder.get_encoder('mine', str(tmp_path / 'models'))
    theirs = tokenizers.Tokenizer.from_file(os.path.join(trained_tokenizer, 'tokenizer.json'))
    for text in random_texts(200):
        if not any(token in text for token in ('<s>', 'Alice:', 'the cat', '<pad>', '</s>')):
            assert ours.encode(text) == theirs.encode(text).ids, repr(text)
    assert ours.decode([400, 0, 401]) == 'Alice:<s>the cat' and ours.end_of_text == 2
    assert not {0, 1, 2, 400, 401} & set(ours.encode('Alice: <s> the cat <|endoftext|> </s> <pad>'))
    convert.to_transformers('mine', str(tmp_path / 'again'), models_dir=str(tmp_path / 'models'))
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / 'again'))
    assert again('Alice: sat')['input_ids'] == [400] + ours.encode(' sat')


@pytest.mark.parametrize('flag, said, end', [
    (None, {'eos_token': '</s>'}, '</s>'), (None, {'eos_token': {'content': '</s>'}}, '</s>'), ('<s>', {}, '<s>'),
    ('<s>', {'eos_token': '</s>'}, '<s>'), (None, {}, None), ('<x>', {}, None), ('the', {}, None)])
def test_end_of_text_is_what_the_flag_or_the_files_say(theirs, bring_in, refusal, flag, said, end, capsys):
    """A model without <|endoftext|> needs one of them."""
    vocab = read_json(theirs, 'vocab.json')
    vocab['<s>'] = vocab.pop('<|endoftext|>')
    names = {'</s>': 257}
    write_json(dict(vocab, **names), theirs, 'vocab.json')
    os.remove(os.path.join(theirs, 'tokenizer.json'))
    write_json(said, theirs, 'tokenizer_config.json')
    change(theirs, 'config.json', vocab_size=258, eos_token_id=None)
    grow(theirs, 258)
    if end is None:
        assert 'end_of_text' in refusal(theirs, end_of_text=flag)
        return
    folder = bring_in(theirs, end_of_text=flag)
    ours = encoder.get_encoder('mine', os.path.dirname(folder))
    assert ours.end_of_text == dict(names, **vocab)[end]
    assert end in capsys.readouterr().err


def grow(folder, n_vocab):
    """Add rows to the token embedding of a folder of transformers."""
    path = os.path.join(folder, 'model.safetensors')
    header, content = safetensors_of(path)
    entry = header['transformer.wte.weight']
    assert entry['data_offsets'][1] == len(content)  # the last by name
    n_rows, width = entry['shape']
    entry['shape'] = [n_vocab, width]
    entry['data_offsets'][1] += 4 * width * (n_vocab - n_rows)
    write_safetensors(path, header, content + bytes(4 * width * (n_vocab - n_rows)))


def test_padded_embedding_gets_names_for_its_unused_ids(theirs, bring_in):
    """Many models have an embedding with more rows than tokens, because that is faster."""
    change(theirs, 'config.json', vocab_size=260)
    grow(theirs, 260)
    folder = bring_in(theirs)
    ours = encoder.get_encoder('mine', os.path.dirname(folder))
    assert len(ours.encoder) == 260 and ours.decode([65, 259]).endswith('<|unused259|>')
    assert stored(folder)['model/wte'].shape == (260, 8)


def test_added_token_without_an_embedding_is_left_out(theirs, bring_in, capsys):
    """A tokenizer may have got a padding token that the model has not."""
    tokenizer = read_json(theirs, 'tokenizer.json')
    tokenizer['added_tokens'].append(dict(tokenizer['added_tokens'][0], id=257, content='[PAD]'))
    write_json(tokenizer, theirs, 'tokenizer.json')
    ours = encoder.get_encoder('mine', os.path.dirname(bring_in(theirs)))
    assert '[PAD]' not in ours.encoder and '[PAD]' in capsys.readouterr().err


@pytest.mark.parametrize('how', ['no prefix', 'masks', 'equal head'])
def test_keys_of_other_versions_of_transformers(theirs, bring_in, tiny_models, how):
    """Without `transformer.`, with the causal masks that were once stored, and with an output matrix that is tied."""
    path = os.path.join(theirs, 'model.safetensors')
    header, content = safetensors_of(path)
    if how == 'no prefix':
        header = {name.replace('transformer.', ''): entry for name, entry in header.items()}
    for name in ('transformer.h.0.attn.bias', 'h.1.attn.masked_bias') if how == 'masks' else ():
        header[name] = {'dtype': 'BOOL', 'shape': [3], 'data_offsets': [len(content), len(content) + 3]}
        content += bytes(3)
    if how == 'equal head':
        first, last = header['transformer.wte.weight']['data_offsets']
        header['lm_head.weight'] = dict(header['transformer.wte.weight'],
                                        data_offsets=[len(content), len(content) + last - first])
        content += content[first:last]
        change(theirs, 'config.json', tie_word_embeddings=False)
    write_safetensors(path, header, content)
    found, expected = stored(bring_in(theirs)), stored(os.path.join(tiny_models, 'tiny'))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


# What is refused

@pytest.mark.parametrize('values, said', [
    ({'activation_function': 'relu'}, "activation_function 'relu'"),
    ({'layer_norm_epsilon': 1e-6}, 'layer_norm_epsilon 1e-06'),
    ({'n_inner': 33}, 'n_inner 33'), ({'scale_attn_weights': False}, 'scale_attn_weights False'),
    ({'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx True'),
    ({'reorder_and_upcast_attn': True}, 'reorder_and_upcast_attn True'),
    ({'add_cross_attention': True}, 'add_cross_attention True'), ({'model_type': 'llama'}, "model_type 'llama'"),
    ({'architectures': ['GPT2ForSequenceClassification']}, 'architectures .*Classification'),
    ({'auto_map': {'AutoModel': 'x.Y'}}, 'auto_map'), ({'tie_word_embeddings': False}, 'tie_word_embeddings'),
    ({'n_layer': 3}, 'n_layer'), ({'n_layer': 10 ** 9}, 'n_layer'), ({'n_head': 3}, 'n_head .3. does not divide'),
    ({'n_embd': '8'}, "n_embd is '8'"), ({'n_positions': 31}, r'wpe.*\[32, 8\].* instead of .*\[31, 8\]'),
    ({'vocab_size': 300}, 'wte'), ({'vocab_size': 2 ** 31 - 1}, 'wte'), ({'n_embd': 2 ** 31 - 2}, 'wte'),
    ({'n_layer': None}, 'n_layer is None'),
    ({'layer_norm_epsilon': float('nan')}, 'layer_norm_epsilon nan')])
def test_config_that_would_compute_something_else_is_refused(theirs, refusal, values, said):
    """By its name and value."""
    import re
    change(theirs, 'config.json', **values)
    if values == {'n_layer': None}:
        config = read_json(theirs, 'config.json')
        assert 'n_layer' not in config
    assert re.search(said, refusal(theirs))


def test_gelu_has_two_names(theirs, bring_in):
    change(theirs, 'config.json', activation_function='gelu_pytorch_tanh')
    bring_in(theirs)


@pytest.mark.parametrize('path, value, said', [
    (['normalizer'], {'type': 'Lowercase'}, 'normalizer'), (['pre_tokenizer', 'add_prefix_space'], True, 'prefix'),
    (['pre_tokenizer', 'type'], 'Whitespace', 'Whitespace'), (['model', 'type'], 'WordPiece', 'WordPiece'),
    (['pre_tokenizer'], None, 'ByteLevel'), (['model', 'end_of_word_suffix'], '</w>', '</w>'),
    (['model', 'vocab'], {'a': 0}, 'vocabulary'), (['model', 'merges'], [['a']], 'merge number 1'),
    (['model', 'merges'], 5, 'damaged'), (['model'], [], 'type None'), (['added_tokens'], [5], 'damaged'),
    (['model', 'merges'], [['t', 'h']], 'no id'), (['model', 'vocab', 'a'], 1.5, 'whole numbers'),
    (['model', 'vocab', 'a'], 5, 'differ'), (['post_processor', 'type'], 'BertProcessing', 'BertProcessing'),
    (['post_processor'], {'type': 'TemplateProcessing', 'single': [{'SpecialToken': {'id': '<s>'}}]}, '<s>'),
    (['model', 'ignore_merges'], True, 'ignore_merges')])
def test_tokenizer_that_would_give_other_ids_is_refused(theirs, refusal, path, value, said):
    """Only byte-level BPE without anything around it gives ours."""
    tokenizer = read_json(theirs, 'tokenizer.json')
    place = tokenizer
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    write_json(tokenizer, theirs, 'tokenizer.json')
    assert said in refusal(theirs)


def test_untied_output_matrix_is_refused(theirs, refusal):
    path = os.path.join(theirs, 'model.safetensors')
    header, content = safetensors_of(path)
    n_bytes = 4 * 8 * tiny.N_BYTE_VOCAB
    header['lm_head.weight'] = dict(header['transformer.wte.weight'],
                                    data_offsets=[len(content), len(content) + n_bytes])
    write_safetensors(path, header, content + bytes(n_bytes))
    assert 'lm_head' in refusal(theirs)


def test_pickle_is_refused_and_never_loaded(theirs, refusal, tmp_path):
    """It may run any program. This one would leave a file behind."""
    os.remove(os.path.join(theirs, 'model.safetensors'))
    mark = tmp_path / 'was loaded'
    with open(os.path.join(theirs, 'pytorch_model.bin'), 'wb') as file:
        file.write(b"cos\nsystem\n(S'touch \"%s\"'\ntR." % str(mark).encode('ascii'))
    assert 'pickle' in refusal(theirs) and not mark.exists()


def damage(folder, kind):
    path = os.path.join(folder, 'model.safetensors')
    header, content = safetensors_of(path)
    wte = header['transformer.wte.weight']
    raw = json.dumps(header).encode('utf-8')
    if kind == 'short':
        content = content[:-1]
    elif kind == 'long':
        content += b'\0'
    elif kind == 'empty':
        with open(path, 'wb'):
            return
    elif kind == 'shape':
        wte['shape'] = [8, tiny.N_BYTE_VOCAB]
    elif kind == 'overlap':
        wte['data_offsets'] = [0, wte['data_offsets'][1] - wte['data_offsets'][0]]
    elif kind == 'huge shape':
        wte['shape'] = [2 ** 62, 2 ** 62]
    elif kind == 'missing':
        del header['transformer.h.1.ln_2.weight']
    elif kind == 'both names':
        header['wpe.weight'] = dict(wte, data_offsets=[len(content), len(content) + 32 * 32], shape=[32, 8])
        content += bytes(32 * 32)
    elif kind == 'left over':
        header['transformer.h.0.crossattention.c_attn.bias'] = dict(
            wte, data_offsets=[len(content), len(content) + 4], shape=[1])
        content += bytes(4)
    elif kind == 'integers':
        wte['dtype'] = 'I32'
    elif kind in ('nan', 'inf'):
        start = wte['data_offsets'][0]
        content = content[:start] + np.float32(kind).tobytes() + content[start + 4:]
    elif kind == 'twice':
        raw = raw[:-1] + b', "transformer.wte.weight": ' + json.dumps(wte).encode('utf-8') + b'}'
        return write_safetensors(path, raw, content)
    elif kind == 'no json':
        return write_safetensors(path, b'[' * 10 ** 5, content)
    elif kind == 'long header':
        with open(path, 'wb') as file:
            file.write((2 ** 63).to_bytes(8, 'little') + raw)
            return
    write_safetensors(path, header, content)


@pytest.mark.parametrize('kind', [
    'short', 'long', 'empty', 'shape', 'overlap', 'huge shape', 'missing', 'both names', 'left over', 'integers', 'nan',
    'inf', 'twice', 'no json', 'long header'])
def test_damaged_weights_are_refused(theirs, refusal, kind):
    """In a message that names the file or the tensor, before anything is written."""
    damage(theirs, kind)
    assert 'theirs' in refusal(theirs)


@pytest.mark.parametrize('name', ['../secret.safetensors', '/etc/passwd', 'sub/x.safetensors', 'gone.safetensors', 5])
def test_shards_are_only_files_of_the_folder(theirs, refusal, name, tmp_path):
    shutil.move(os.path.join(theirs, 'model.safetensors'), str(tmp_path / 'secret.safetensors'))
    write_json({'weight_map': {'transformer.wte.weight': name}}, theirs, 'model.safetensors.index.json')
    assert 'names the file' in refusal(theirs)


@pytest.mark.parametrize('file', ['config.json', 'tokenizer.json', 'tokenizer_config.json'])
@pytest.mark.parametrize('content', [
    b'', b'{', b'[]', b'[' * 10 ** 5, b'{"a": 1, "a": 2}', b'\xff\xfe', b'{"a": 1' + b'0' * 9999],
    ids=['empty', 'cut', 'list', 'nested', 'twice', 'no text', 'number'])
def test_damaged_json_is_refused(theirs, refusal, file, content):
    with open(os.path.join(theirs, file), 'wb') as written:
        written.write(content)
    assert file in refusal(theirs)


@pytest.mark.parametrize('name', ['config.json', 'merges.txt'])
def test_link_to_an_endless_file_is_refused(theirs, refusal, name):
    os.remove(os.path.join(theirs, 'tokenizer.json'))
    os.remove(os.path.join(theirs, name))
    os.symlink('/dev/zero', os.path.join(theirs, name))
    assert '%s has over 134217728 bytes' % name in refusal(theirs)


@pytest.mark.parametrize('missing', ['config.json', 'model.safetensors'])
def test_missing_file_is_named(theirs, refusal, missing):
    os.remove(os.path.join(theirs, missing))
    assert missing in refusal(theirs)


def test_model_that_exists_is_left_alone(theirs, bring_in):
    folder = bring_in(theirs)
    before = {name: os.stat(os.path.join(folder, name)).st_mtime for name in os.listdir(folder)}
    with pytest.raises(ValueError, match='exists'):
        bring_in(theirs)
    assert before == {name: os.stat(os.path.join(folder, name)).st_mtime for name in os.listdir(folder)}


# Writing

def test_folder_is_whole_or_absent(tiny_models, tmp_path, monkeypatch):
    """After an error nothing is left, and what a killed process has left is removed."""
    from gpt2.conversion import vocabulary
    monkeypatch.setattr(vocabulary, 'write_tokenizer', lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert.to_transformers('tiny', str(tmp_path / 'new'), models_dir=tiny_models)
    assert os.listdir(str(tmp_path)) == []
    monkeypatch.undo()
    (tmp_path / 'new.part').mkdir()
    (tmp_path / 'new.part' / 'old').write_text('')
    convert.to_transformers('tiny', str(tmp_path / 'new'), models_dir=tiny_models)
    assert sorted(os.listdir(str(tmp_path))) == ['new'] and sorted(os.listdir(str(tmp_path / 'new'))) == EXPORTED


def test_full_disk_is_reported_in_one_line(tiny_models, tmp_path, monkeypatch):
    """TensorFlow, which writes SavedModels, has errors of its own, with a traceback in their text."""
    from gpt2.conversion import weights

    def fail(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, 'Error:\nin x.py\nx; No space left on device\n')

    monkeypatch.setattr(weights, 'write_checkpoint', fail)
    with pytest.raises(OSError, match='mine cannot be written: No space left on device$'):
        convert.copy('tiny', 'mine', models_dir=tiny_models, new_models_dir=str(tmp_path))
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('folder, said', [('', 'exists'), ('there/', 'exists'), ('gone/new/', 'no folder .*gone')])
def test_output_must_be_a_new_folder(tiny_models, tmp_path, folder, said):
    (tmp_path / 'there').mkdir()
    with pytest.raises((ValueError, OSError), match=said):
        convert.to_transformers('tiny', str(tmp_path / folder), models_dir=tiny_models)


def test_unknown_dtype_is_refused(tiny_models, tmp_path):
    with pytest.raises(ValueError, match='float64.*bfloat16'):
        convert.to_transformers('tiny', str(tmp_path / 'new'), dtype='float64', models_dir=tiny_models)


def test_float16_does_not_turn_large_weights_into_infinity(tmp_path):
    hparams = tiny.hparams(**TINY)
    weights = tiny.random_weights(hparams)
    weights['model/wpe'][3, 3] = 1e5
    tiny.write_model(str(tmp_path / 'large'), hparams, weights)
    with pytest.raises(ValueError, match='model/wpe.*65504.*bfloat16'):
        convert.to_transformers('large', str(tmp_path / 'new'), dtype='float16', models_dir=str(tmp_path))
    assert os.listdir(str(tmp_path)) == ['large']


def test_python_without_safetensors_says_so(theirs, tmp_path, monkeypatch):
    """In one line; to-transformers does not need it."""
    monkeypatch.setitem(__import__('sys').modules, 'safetensors', None)
    with pytest.raises(ImportError, match='pip install safetensors'):
        convert.from_transformers(theirs, 'mine', models_dir=str(tmp_path))
    assert sorted(os.listdir(str(tmp_path))) == ['theirs']
