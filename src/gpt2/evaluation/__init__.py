"""Behind evaluate.py: scoring, the benchmarks, detection of generated text, tables and pages."""
