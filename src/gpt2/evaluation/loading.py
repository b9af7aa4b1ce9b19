"""A model that scores tokens: functions of a session."""
from collections import namedtuple
import contextlib
import functools
import os

from gpt2 import checkpoint, session
from gpt2.evaluation import scorer
from gpt2.evaluation.documents import window_sizes
from gpt2.fast import lite
from gpt2.system.tf1 import tf
import encoder

# score: function(ids [B, T], first) -> nats [B, T - first] of predicting ids[:, first:]
# guesser: function(excluded) -> function like score -> (nats, most likely ids, most likely ids that are not excluded)
# predictor: function(n_top) -> function like score -> Predictions [B, T - first]
Model = namedtuple('Model', 'name encoder hparams score guesser predictor')


@contextlib.contextmanager
def load(model_name, models_dir, options, precision='float32'):
    """A Model with its weights, in a graph and a session of its own, for a `with`. Raises as check_model does."""
    session.check_precision(precision)
    text_encoder, hparams = check_model(model_name, models_dir, options)
    with tf.Graph().as_default(), session.session() as sess, \
            session.out_of_memory('give a lower --batch_size, or a lower --context if the command has that flag'):
        network = None
        if precision == 'int8' and lite.is_for(precision, hparams):
            network = checkpoint.load_network(hparams, model_name, models_dir, precision)
        score, guesser, predictor = [functools.partial(function, sess, hparams, network=network) for function in (
            scorer.scorer, scorer.guesser, scorer.predictor)]
        score = score()
        if network is None:
            checkpoint.restore(sess, model_name, models_dir)
        yield Model(model_name, text_encoder, hparams, score, guesser, predictor)


def model_files(model_name, models_dir):
    """The paths of the files that a model is read from. Raises as check_model does."""
    folder = checkpoint.model_dir(model_name, models_dir)
    names = ('checkpoint', 'hparams.json') + checkpoint.VOCABULARY_FILES
    return [os.path.join(folder, name) for name in names] + [
        checkpoint.weights_prefix(folder) + suffix for suffix in checkpoint.WEIGHTS_SUFFIXES]


def check_model(model_name, models_dir, options):
    """The (Encoder, HParams) of a model. Raises an error if it is missing or damaged, or if Options do not suit it."""
    checkpoint.model_dir(model_name, models_dir)
    text_encoder = encoder.get_encoder(model_name, models_dir)
    hparams = checkpoint.load_hparams(model_name, models_dir)
    window_sizes(hparams, options)
    return text_encoder, hparams
