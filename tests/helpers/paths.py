"""Folders and files of the repository, as absolute paths."""
import os

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(TESTS)
SRC = os.path.join(ROOT, 'src')
BENCHMARKS = os.path.join(ROOT, 'benchmarks')
MODELS = os.path.join(ROOT, 'models')
HELD_OUT = os.path.join(TESTS, 'held_out.txt')  # two stories that the demo model was not trained on
