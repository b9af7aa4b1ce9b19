"""A page to type into, and the completions API: what the command serve.py stands on."""


def load_engine(hparams, model_name, models_dir, precision, max_rows, max_waiting):
    """The Engine of a model, which continues texts. The arguments are as it takes them; raises as it does."""
    from gpt2.fast import lite
    if lite.is_for(precision, hparams):
        from gpt2.serving.steps import StepEngine as Engine
    else:
        from gpt2.serving.batches import BatchEngine as Engine
    return Engine(hparams, model_name, models_dir, precision, max_rows, max_waiting)
