"""The vocabulary in the files of Hugging Face's tokenizers: vocab.json and merges.txt, or tokenizer.json."""
import json
import os
from collections import OrderedDict

import encoder
from gpt2.conversion.reading import check_values, read
from gpt2.system import files
from gpt2.system.progress import report

# What transformers' byte-level BPE must do to give the ids that Encoder gives: {name in tokenizer.json: values}
BYTE_LEVEL = {'type': ['ByteLevel'], 'add_prefix_space': [False], 'use_regex': [True, None]}
MODEL = {'type': ['BPE'], 'dropout': [None, 0], 'continuing_subword_prefix': ['', None],
         'end_of_word_suffix': ['', None], 'byte_fallback': [False, None], 'ignore_merges': [False, None]}
POST_PROCESSORS = {None, 'ByteLevel', 'TemplateProcessing'}
UNUSED = '<|unused%d|>'  # the name of an id that has an embedding and no token


def write_tokenizer(text_encoder, folder, n_ctx):
    """Write an Encoder as vocab.json, merges.txt, tokenizer.json and tokenizer_config.json."""
    ids = OrderedDict(sorted(text_encoder.encoder.items(), key=lambda item: item[1]))
    merges = ['%s %s' % pair for pair in sorted(text_encoder.bpe_ranks, key=text_encoder.bpe_ranks.get)]
    byte_level = OrderedDict([('type', 'ByteLevel'), ('add_prefix_space', False), ('trim_offsets', True),
                              ('use_regex', True)])
    added = [OrderedDict([('id', ids[symbol]), ('content', symbol), ('single_word', False), ('lstrip', False),
                          ('rstrip', False), ('normalized', False), ('special', bool(encoder.SPECIAL.match(symbol)))])
             for symbol in text_encoder.special]
    tokenizer = OrderedDict([
        ('version', '1.0'), ('truncation', None), ('padding', None), ('added_tokens', added), ('normalizer', None),
        ('pre_tokenizer', byte_level), ('post_processor', byte_level), ('decoder', byte_level),
        ('model', OrderedDict([
            ('type', 'BPE'), ('dropout', None), ('unk_token', None), ('continuing_subword_prefix', ''),
            ('end_of_word_suffix', ''), ('fuse_unk', False), ('byte_fallback', False), ('vocab', ids),
            ('merges', merges)]))])
    end = encoder.END_OF_TEXT
    config = {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': n_ctx, 'add_prefix_space': False,
              'bos_token': end, 'eos_token': end, 'unk_token': end, 'clean_up_tokenization_spaces': False}
    for name, values in ('vocab.json', ids), ('tokenizer.json', tokenizer):
        files.write_text(os.path.join(folder, name), json.dumps(values, ensure_ascii=False))
    files.write_json(os.path.join(folder, 'tokenizer_config.json'), config)
    files.write_text(os.path.join(folder, 'merges.txt'), '\n'.join(['#version: 0.2'] + merges) + '\n')


def read_tokenizer(folder, n_vocab, end_token, end_of_text=None):
    """The vocabulary of a tokenizer: (symbols in the order of their ids, merges, added tokens unlike special ones).

    n_vocab: the number of tokens that the model has.  end_token: the id that ends a text by config.json, or None.
    end_of_text: the token that ends a text if there is no <|endoftext|>; None is what the files say.
    It is called <|endoftext|> here. Raises ValueError for a tokenizer that is no byte-level BPE, or gives other ids.
    """
    config = read(folder, 'tokenizer_config.json', optional=True)
    check_values(config, {'add_prefix_space': [False, None]}, os.path.join(folder, 'tokenizer_config.json'))
    parts = os.path.join(folder, 'tokenizer.json')
    if os.path.exists(parts):
        ids, merges, added = from_tokenizer_json(read(folder, 'tokenizer.json'), parts)
    else:
        ids, merges = read(folder, 'vocab.json'), read_merges(os.path.join(folder, 'merges.txt'))
        added = read(folder, 'added_tokens.json', optional=True)
    try:
        for number, token in object_of(config, 'added_tokens_decoder').items():
            added.setdefault(content_of(token), int(number))
        ids = dict(ids, **added)
        names = name_ids(ids, added, n_vocab)
        rename_end(names, merges, end_of_text, config.get('eos_token'), end_token)
        added = [symbol for symbol in map(names.get, sorted(added.values())) if symbol is not None]
        text_encoder = encoder.Encoder({symbol: number for number, symbol in names.items()}, merges,
                                       added=list(map(encoder.spell, added)))
    except (ValueError, TypeError) as error:
        raise ValueError('the vocabulary in %s cannot be used: %s' % (folder, error))
    symbols = [names[number] for number in range(n_vocab)]
    return symbols, merges, [symbol for symbol in text_encoder.special
                             if symbol in added and not encoder.SPECIAL.match(symbol)]


def from_tokenizer_json(values, path):
    """({symbol: id}, merges, {added token: id}) of a tokenizer.json. Raises ValueError if it is no byte-level BPE."""
    model = object_of(values, 'model')
    check_values(model, MODEL, path)
    check_values(values, {'normalizer': [None]}, path)
    check_values(object_of(values, 'pre_tokenizer'), BYTE_LEVEL, path)
    post_processor = object_of(values, 'post_processor')
    check_values(post_processor, {'type': POST_PROCESSORS}, path)
    try:
        for piece in post_processor.get('single') or []:
            if list(piece) != ['Sequence']:
                raise ValueError('%s adds %.60s to each text, which is not supported; remove that from its '
                                 'post_processor' % (path, json.dumps(piece)))
        merges = [tuple(pair.split(' ') if isinstance(pair, str) else pair) for pair in model.get('merges')]
        added = {token['content']: token['id'] for token in values.get('added_tokens') or []}
        return object_of(model, 'vocab'), check_merges(merges), added
    except (TypeError, KeyError, AttributeError):
        raise ValueError('%s is damaged; fetch it again' % path)


def object_of(values, name):
    """The object of that name in a JSON object; {} for null or none. Raises ValueError for anything else."""
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError('%s is %.60r instead of a JSON object' % (name, found))
    return found


def content_of(token):
    """The text of a special token: transformers writes a str, or an object with its content."""
    return token.get('content') if isinstance(token, dict) else token


def read_merges(path):
    """The pairs of symbols in a merges.txt, a list of tuples. The line with the version may be missing."""
    lines = files.read_text(path).rstrip('\n').split('\n')
    return check_merges([tuple(line.split()) for line in lines[lines[0].startswith('#version'):] if line])


def check_merges(merges):
    """merges, if each is a pair of str. Raises ValueError otherwise."""
    for number, pair in enumerate(merges, 1):
        if len(pair) != 2 or not all(isinstance(symbol, str) for symbol in pair):
            raise ValueError('merge number %d is %.60r instead of two symbols' % (number, pair))
    return merges


def name_ids(ids, added, n_vocab):
    """{id: symbol} of all n_vocab ids. Ids without a token, which padded embeddings have, are called UNUSED.

    Added tokens without an embedding are left out. Raises ValueError for others, and for an id that two symbols have.
    """
    names = {number: symbol for symbol, number in ids.items()}
    if set(map(type, ids.values())) - {int} or len(names) < len(ids):
        raise ValueError('its ids are not whole numbers that differ')
    without = sorted(number for number in names if not 0 <= number < n_vocab)
    for number in without:
        if names[number] not in added:
            raise ValueError('the token %.60r has the id %d, and the model has %d tokens' % (
                names[number], number, n_vocab))
        report('left out, since the model has no embedding for it: the token %.60r' % names.pop(number))
    unused = sorted(set(range(n_vocab)) - set(names))
    if unused:
        report('%d ids have no token; they are called %s to %s' % (
            len(unused), UNUSED % unused[0], UNUSED % unused[-1]))
    names.update((number, UNUSED % number) for number in unused)
    return names


def rename_end(names, merges, end_of_text, eos_token, end_token):
    """Call the token that ends a text <|endoftext|> in names {id: symbol}. Raises ValueError if it is not known.

    end_of_text: the flag, or None.  eos_token: what tokenizer_config.json says.  end_token: the id in config.json.
    """
    symbols = set(names.values())
    if encoder.END_OF_TEXT in symbols:
        if end_of_text not in (None, encoder.END_OF_TEXT):
            raise ValueError('it has %s already; leave out --end_of_text' % encoder.END_OF_TEXT)
        return
    end_token = end_token if isinstance(end_token, int) else None  # some models have several
    said = [end_of_text] if end_of_text else [content_of(eos_token), names.get(end_token)]
    found = [symbol for symbol in said if symbol in symbols]
    if not found:
        raise ValueError('it has no %s%s; pass --end_of_text with the token that ends a text' % (
            encoder.END_OF_TEXT, ' and no %.60s' % end_of_text if end_of_text else ''))
    if found[0] in set(map(''.join, merges)) | set(encoder.bytes_to_unicode().values()):
        raise ValueError('%.60r, which ends a text, also occurs in texts; pass --end_of_text with another token'
                         % found[0])
    number = next(number for number, symbol in names.items() if symbol == found[0])
    names[number] = encoder.END_OF_TEXT
    report('%s, with the id %d, ends a text; it is called %s here' % (found[0], number, encoder.END_OF_TEXT))
