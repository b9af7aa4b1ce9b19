"""Models for and from other programs: Hugging Face transformers, TensorFlow Serving, other trainers of GPT-2."""
