"""Other implementations of the network, with our weights."""
import re

import pytest


def transformers_name(name):
    """'model/h0/mlp/c_fc/w' -> 'transformer.h.0.mlp.c_fc.weight'."""
    parts = re.sub('^model/h', 'model/h/', name).split('/')[1:]
    ending = {'g': ['weight'], 'w': ['weight'], 'b': ['bias']}
    parts[-1:] = ending.get(parts[-1], [parts[-1], 'weight'])
    return '.'.join(['transformer'] + parts)


def transformers_model(hparams, weights):
    """GPT2LMHeadModel of transformers with these weights, without dropout. Its matrices have no leading axis of one."""
    torch = pytest.importorskip('torch', reason='needs transformers and torch')
    transformers = pytest.importorskip('transformers', reason='needs transformers and torch')
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=hparams.n_vocab, n_positions=hparams.n_ctx, n_embd=hparams.n_embd, n_layer=hparams.n_layer,
        n_head=hparams.n_head, bos_token_id=0, eos_token_id=0)).eval()
    parameters = peer.state_dict()  # these share the network's memory
    for name, array in weights.items():
        parameters[transformers_name(name)].copy_(torch.tensor(array.reshape(array.shape[-2:])))
    return peer
