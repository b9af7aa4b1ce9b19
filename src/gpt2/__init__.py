"""What the modules and commands in src/ stand on; docs/design.md has the tree."""
__version__ = '1.0.0'  # also in CITATION.cff and CHANGELOG.md, as tests/test_docs.py checks
