"""Why it is fast: products of matrices, keys and values of past tokens, 8-bit weights, and loops compiled by XLA."""
