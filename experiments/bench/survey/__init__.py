"""Benchmark of reading a World Values Survey: `python -m experiments.bench.survey`."""
