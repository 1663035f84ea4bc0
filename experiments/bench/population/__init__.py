"""Benchmark of evaluating many soft prompts: `python -m experiments.bench.population`."""
