"""Folders of Hugging Face transformers: their config.json, and their weights in safetensors."""
import contextlib
import json
import os
import re
from collections import OrderedDict

import numpy as np

from gpt2 import checkpoint
from gpt2.conversion import vocabulary, weights
from gpt2.conversion.reading import check_values, read
import encoder
from gpt2.system import files
from gpt2.system.tf1 import tf

DTYPES = OrderedDict([('float32', 'F32'), ('float16', 'F16'), ('bfloat16', 'BF16')])  # {name: its name in a file}
WEIGHTS, PICKLE = 'model.safetensors', 'pytorch_model.bin'
SIZES = (('n_vocab', 'vocab_size'), ('n_ctx', 'n_positions'), ('n_embd', 'n_embd'), ('n_head', 'n_head'),
         ('n_layer', 'n_layer'))  # ours, theirs
# What config.json must say for the model to compute what ours does; None stands for missing, which is the first one.
ACCEPTED = {
    'model_type': ['gpt2'],
    'activation_function': ['gelu_new', 'gelu_pytorch_tanh', None],  # two names of one function
    'layer_norm_epsilon': [1e-5, None],
    'scale_attn_weights': [True, None],
    'scale_attn_by_inverse_layer_idx': [False, None],
    'reorder_and_upcast_attn': [False, None],
    'architectures': [['GPT2LMHeadModel'], ['GPT2Model'], None],
    'add_cross_attention': [False, None],
    'auto_map': [None],  # a program that comes with the model
    'quantization_config': [None]}
ROWS_AT_A_TIME = 2 ** 13
NOT_LOADED = re.compile(r'h\.\d+\.attn\.(masked_)?bias\Z')  # the causal mask, which older versions have stored


def their_name(name):
    """The name of a weight in transformers, without `transformer.` in front."""
    name = re.sub(r'^model/(h(?=\d))?', lambda match: 'h.' if match.group(1) else '', name)
    name = re.sub('(?<=/)[wg]$', 'weight', re.sub('(?<=/)b$', 'bias', name))
    return name.replace('/', '.') + ('' if '/' in name else '.weight')


def their_shape(variable):
    """The shape of a weight in transformers. Our matrices have a leading 1."""
    shape = variable.shape.as_list()
    return shape[1:] if len(shape) == 3 else shape


# To transformers

def export(model_name, folder, dtype, models_dir):
    """Write a model as a folder that AutoModelForCausalLM and AutoTokenizer take. Raises an error as model_dir does."""
    if dtype not in DTYPES:
        raise ValueError('--dtype is %s; it must be one of %s' % (dtype, ', '.join(DTYPES)))
    source, hparams = weights.source_of(folder, model_name, models_dir)
    text_encoder = encoder.get_encoder(model_name, models_dir)
    variables = weights.network(hparams)
    with weights.new_folder(folder) as part:
        write_safetensors(os.path.join(part, WEIGHTS), variables, checkpoint.arrays(source, variables), dtype)
        end = dict.fromkeys(('bos_token_id', 'eos_token_id'), text_encoder.end_of_text)
        config = {theirs: getattr(hparams, ours) for ours, theirs in SIZES}
        config.update({name: values[0] for name, values in ACCEPTED.items() if values[0] is not None},
                      n_ctx=hparams.n_ctx, torch_dtype=dtype, tie_word_embeddings=True, **end)
        files.write_json(os.path.join(part, 'config.json'), config)
        files.write_json(os.path.join(part, 'generation_config.json'), end)
        vocabulary.write_tokenizer(text_encoder, part, hparams.n_ctx)


def write_safetensors(path, variables, arrays, dtype):
    """Write weights: the number of bytes of a header, this header in JSON, and the tensors that it describes."""
    header, end = OrderedDict([('__metadata__', {'format': 'pt'})]), 0
    for name, variable in sorted(variables.items()):
        start, end = end, end + variable.shape.num_elements() * (4 if dtype == 'float32' else 2)
        header['transformer.' + their_name(name)] = OrderedDict([
            ('dtype', DTYPES[dtype]), ('shape', their_shape(variable)), ('data_offsets', [start, end])])
    content = json.dumps(header).encode('utf-8')
    content += b' ' * (-len(content) % 8)  # tensors are then aligned, which saves readers a copy
    with open(path, 'wb') as file:
        file.write(len(content).to_bytes(8, 'little') + content)
        for name, array in weights.with_progress(variables, arrays):
            file.write(memoryview(as_dtype(array, dtype, name).reshape(-1).view(np.uint8)))


def as_dtype(array, dtype, name):
    """A float32 array in another dtype, rounded to the nearest. Raises ValueError, with the name, for an overflow."""
    with np.errstate(over='ignore'):
        rounded = np.asarray(array, getattr(tf, dtype).as_numpy_dtype)
    if dtype == 'float16' and (np.isinf(rounded) & np.isfinite(array)).any():
        raise ValueError('%s has numbers beyond 65504, the largest in float16; use --dtype bfloat16' % name)
    return rounded


# From transformers

def bring_in(folder, name, end_of_text, models_dir):
    """Write a model from a folder of transformers.

    Raises FileNotFoundError for missing files, and ValueError for damaged ones and for models that compute something
    else than ours.
    """
    target = checkpoint.new_model_dir(name, models_dir)
    weights.check_new(target)
    if not os.path.isdir(folder):
        raise FileNotFoundError('there is no folder %s' % folder)
    config = read(folder, 'config.json')
    hparams = hparams_of(config, os.path.join(folder, 'config.json'))
    tensors = Tensors(folder)
    tensors.check_sizes(hparams)
    variables = weights.network(hparams)
    tensors.check_fit(variables, is_tied=config.get('tie_word_embeddings') is not False)
    symbols, merges, added = vocabulary.read_tokenizer(folder, hparams.n_vocab, config.get('eos_token_id'), end_of_text)
    with weights.new_folder(target) as part:
        encoder.write_vocabulary(merges, part, symbols, added)
        files.write_json(os.path.join(part, 'hparams.json'), hparams.values())
        weights.write_checkpoint(part, variables, tensors.arrays(variables))


def hparams_of(config, path):
    """The HParams of a config.json. Raises ValueError, naming the value, for a model that ours cannot compute."""
    check_values(config, ACCEPTED, path)
    hparams = checkpoint.hparams_from(
        {ours: config.get(theirs, config.get(ours)) for ours, theirs in SIZES}, path)
    check_values(config, {'n_inner': [None, 4 * hparams.n_embd]}, path)
    return hparams


class Tensors(object):
    """The tensors in the safetensors files of a folder.

    Raises FileNotFoundError or ValueError if files are missing or damaged, and ImportError without safetensors.
    """

    def __init__(self, folder):
        self.folder = folder
        self.places = {}  # {name without `transformer.` in front: (name in its file, path of this file)}
        self.shapes = {}  # {the same: shape}
        for path in [os.path.join(folder, file) for file in self.files()]:
            for theirs, (dtype, shape) in header_of(path).items():
                name = re.sub(r'\Atransformer\.', '', theirs)
                if NOT_LOADED.match(name):
                    continue
                if name in self.places:
                    raise ValueError('%s has %s twice; fetch it again' % (folder, name))
                if dtype not in DTYPES.values():
                    raise ValueError('%s in %s has the type %s; supported are %s' % (
                        theirs, path, dtype, ', '.join(DTYPES.values())))
                self.places[name], self.shapes[name] = (theirs, path), shape

    def files(self):
        """The names of the files that the tensors are in."""
        found = set(os.listdir(self.folder))
        if WEIGHTS in found:
            return [WEIGHTS]
        if WEIGHTS + '.index.json' in found:
            index = read(self.folder, WEIGHTS + '.index.json')
            names = vocabulary.object_of(index, 'weight_map').values()
            for name in names:
                if not isinstance(name, str) or name not in found:
                    raise ValueError('%s.index.json in %s names the file %.60r, which is not there; fetch both again'
                                     % (WEIGHTS, self.folder, name))
            return sorted(set(names))
        if PICKLE in found or PICKLE + '.index.json' in found:
            raise ValueError('%s in %s is a pickle, which may run any program when it is loaded; convert it to '
                             'safetensors with the three lines of Python in docs/convert.md' % (PICKLE, self.folder))
        raise FileNotFoundError('%s has no %s' % (self.folder, WEIGHTS))

    def check_sizes(self, hparams):
        """Raises ValueError unless the weights have the sizes in hparams: a huge network would take long to build."""
        n_layer = len({name.split('.')[1] for name in self.places if re.match(r'h\.\d+\.', name)})
        embeddings = [self.shapes.get(name) for name in ('wte.weight', 'wpe.weight')]
        expected = [[hparams.n_vocab, hparams.n_embd], [hparams.n_ctx, hparams.n_embd]]
        for name, found, said in (('n_layer', n_layer, hparams.n_layer),
                                  ('the shapes of wte and wpe', embeddings, expected)):
            if found != said:
                raise ValueError('the weights in %s do not fit config.json: %s %s instead of %s; take both from the '
                                 'same model' % (self.folder, name, found, said))

    def check_fit(self, variables, is_tied):
        """Raises ValueError if the tensors do not fit our variables {name: variable}.

        is_tied: whether the token embedding is also the output matrix, as in our model.
        """
        ours = {their_name(name): name for name in variables}
        found = {ours.get(name, 'model/' + name): shape for name, shape in self.shapes.items()}
        head = found.pop('model/lm_head.weight', None)
        checkpoint.check_fit(found, {name: their_shape(variable) for name, variable in variables.items()}, self.folder,
                             'config.json')
        if not (is_tied if head is None else self.are_equal('lm_head.weight', 'wte.weight')):
            raise ValueError('the model in %s has an output matrix of its own (lm_head), which differs from its token '
                             'embedding; supported is only tie_word_embeddings' % self.folder)

    def are_equal(self, name, other):
        """Whether two tensors are equal."""
        return self.shapes[name] == self.shapes[other] and all(
            (rows == other_rows).all() for (_, rows), (_, other_rows) in zip(self.rows(name), self.rows(other)))

    def arrays(self, variables):
        """Yield (name, float32 array) of our variables, sorted by name. Raises ValueError for NaN and infinity."""
        for name in sorted(variables):
            theirs = their_name(name)
            array = np.empty(self.shapes[theirs], np.float32)
            for place, rows in self.rows(theirs):
                array[place] = rows
                if not np.isfinite(array[place]).all():
                    raise checkpoint.not_finite_error(*self.places[theirs])
            yield name, array.reshape(variables[name].shape.as_list())

    def rows(self, name):
        """Yield (slice, array) of the rows of a tensor, as many as are read at a time."""
        theirs, path = self.places[name]
        n_rows = self.shapes[name][0]
        for start in range(0, n_rows, ROWS_AT_A_TIME):
            place = slice(start, min(start + ROWS_AT_A_TIME, n_rows))
            with opened(path) as file:
                rows = file.get_slice(theirs)[place]
            yield place, rows


@contextlib.contextmanager
def opened(path):
    """A safetensors file for a block. It is mapped into memory, where what has been read stays until it is closed."""
    try:
        import safetensors
    except ImportError:
        raise ImportError('reading %s needs the safetensors library: pip install safetensors (Python 3.9 or later; the '
                          'model that is made there works on every Python)' % path)
    try:
        with safetensors.safe_open(path, framework='np') as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError('%s is damaged (%s); fetch it again' % (path, error))


def header_of(path):
    """{name: (dtype, shape)} of the tensors in a safetensors file."""
    with opened(path) as file, open(path, 'rb') as content:
        slices = {name: file.get_slice(name) for name in file.keys()}
        try:  # which safetensors does not check
            header = content.read(int.from_bytes(content.read(8), 'little'))
            files.parse_json(header.decode('utf-8'), object_pairs_hook=files.without_duplicates)
        except ValueError as error:
            raise ValueError('%s is damaged (%s); fetch it again' % (path, error))
        return {name: (found.get_dtype(), found.get_shape()) for name, found in slices.items()}
