"""Benchmarks that compare jaxalign with common tools; kept results are in `results/`."""
