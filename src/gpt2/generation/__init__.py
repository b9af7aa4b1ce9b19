"""The library behind generate_dataset.py: the plan of the rows, the model that makes them, where they are kept, Ray."""
