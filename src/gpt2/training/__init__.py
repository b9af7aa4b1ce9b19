"""The parts of train.py: the graph of a step, the run, its folder, the record of its losses, and several workers."""
