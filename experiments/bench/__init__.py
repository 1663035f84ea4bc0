"""Benchmarks, each beside what people use today; kept results are in `results/`."""
