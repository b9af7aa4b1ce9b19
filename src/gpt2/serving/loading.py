"""Which engine continues the texts of a server: the choice between LiteRT and TensorFlow."""
from gpt2.fast import lite
from gpt2.serving.batches import BatchEngine
from gpt2.serving.steps import StepEngine


def load(hparams, model_name, models_dir, precision, max_rows, max_waiting):
    """The Engine of a model. The arguments are as it takes them; raises as it does."""
    engine = StepEngine if lite.is_for(precision, hparams) else BatchEngine
    return engine(hparams, model_name, models_dir, precision, max_rows, max_waiting)
