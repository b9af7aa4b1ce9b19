#!/usr/bin/env python3
"""Take a model to other programs, or bring one in.

    python3 src/convert.py to-transformers 117M exported
    python3 src/convert.py from-transformers downloaded mine
    python3 src/convert.py to-savedmodel 117M served
    python3 src/convert.py to-litert 117M 117M.tflite
    python3 src/convert.py copy run1 mine --models_dir checkpoint

docs/convert.md shows how other programs take the result.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which python3 -I and PYTHONSAFEPATH leave out
from gpt2.system import process

if __name__ == '__main__':
    process.set_up()  # before the imports below: they are slow, and one may fail

from gpt2 import checkpoint
from gpt2.conversion import transformers, weights
from gpt2.system import flags


def to_transformers(model: str, folder: str, *, dtype='float32', models_dir='models'):
    """Convert a model for Hugging Face transformers, and for programs that read its files.

    Args:
        model: name of the model, a folder in models_dir
        folder: the new folder to write
        dtype: type of the weights: float32, float16 or bfloat16
    """
    transformers.export(model, folder, dtype, models_dir)


def from_transformers(folder: str, name: str, *, end_of_text: str = None, models_dir='models'):
    """Convert a GPT-2 model of Hugging Face transformers to a model of this project. Needs the package safetensors.

    Args:
        folder: folder with config.json, model.safetensors or its shards, and tokenizer.json or vocab.json and
            merges.txt
        name: the new model is models/<name>
        end_of_text: token that ends a text, if the model has no <|endoftext|>; None for the one that its files name
    """
    transformers.bring_in(folder, name, end_of_text, models_dir)


def to_savedmodel(model: str, folder: str, *, models_dir='models'):
    """Convert a model to a SavedModel for TensorFlow Serving: signatures sample, sample_from_draws and score.

    Args:
        model: name of the model, a folder in models_dir
        folder: the new folder to write; the SavedModel is in its folder 1, as TensorFlow Serving expects
    """
    checkpoint.model_dir(model, models_dir)
    from gpt2.conversion import savedmodel
    savedmodel.export(model, folder, models_dir)


def to_litert(model: str, file: str, *, models_dir='models'):
    """Convert a model to one file with 8-bit weights for LiteRT, which runs on phones and in browsers.

    Args:
        model: name of the model, a folder in models_dir
        file: the new file to write
    """
    checkpoint.model_dir(model, models_dir)
    from gpt2.conversion import litert
    litert.export(model, file, models_dir)


def copy(model: str, name: str, *, models_dir='models', new_models_dir='models'):
    """Copy a model, such as one trained by nshepperd/gpt-2 or gpt-2-simple, without the optimizer's averages.

    Args:
        model: name of the model, a folder in models_dir
        name: the new model is <new_models_dir>/<name>, with the seven files of a release
        new_models_dir: folder of the new model
    """
    weights.copy(model, models_dir, checkpoint.new_model_dir(name, new_models_dir))


COMMANDS = {'to-transformers': to_transformers, 'from-transformers': from_transformers,
            'to-savedmodel': to_savedmodel, 'to-litert': to_litert, 'copy': copy}

if __name__ == '__main__':
    flags.run(COMMANDS, outputs=['folder', 'file', 'name'])
