"""Other implementations of the network, with our weights, and lm-eval."""
import json
import os
import re

import numpy as np
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


def harness_results(harness, task, path, folder):
    """What lm-eval says about a task whose documents are the lines of a JSON file."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager
    task.update(task='local', dataset_path='json', dataset_name=None, test_split='test',
                dataset_kwargs={'data_files': {'test': path}, 'cache_dir': folder})
    task.pop('tag', None)
    manager = TaskManager(include_defaults=False)  # otherwise it reads the files of thousands of tasks
    results = simple_evaluate(model=harness, tasks=[task], bootstrap_iters=0, log_samples=False, task_manager=manager)
    return {name.split(',')[0]: value for name, value in results['results']['local'].items()}


def harness_lambada(harness, passages, folder):
    """What lm-eval says about its task lambada_openai, with these passages."""
    import lm_eval.tasks
    import yaml
    tasks = os.path.dirname(lm_eval.tasks.__file__)
    with open(os.path.join(tasks, 'lambada', 'lambada_openai.yaml'), encoding='utf-8') as file:
        task = yaml.safe_load(file)
    path = os.path.join(folder, 'lambada.jsonl')
    with open(path, 'w', encoding='utf-8') as file:
        file.writelines(json.dumps({'text': passage}) + '\n' for passage in passages)
    return harness_results(harness, task, path, folder)


def with_guess(model, guess, passage):
    """The passage with what the model guesses in place of its last word, if that is a word of one token."""
    before = passage.rpartition(' ')[0]
    ids = model.encoder.encode(before)
    fed = ids[-model.hparams.n_ctx:]
    top = int(guess(np.array([fed + [0]]), len(fed))[1][0, 0])
    word = model.encoder.decode([top])
    is_word = re.match(r' \S+\Z', word) and model.encoder.encode(before + word) == ids + [top]
    return before + word if is_word else passage
