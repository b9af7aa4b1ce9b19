"""A page to type into, and the completions API: what the command serve.py stands on."""
