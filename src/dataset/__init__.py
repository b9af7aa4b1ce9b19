"""generate_dataset.py's parts: what the rows are, what makes them, where they are kept, and Ray, which runs many makers."""
