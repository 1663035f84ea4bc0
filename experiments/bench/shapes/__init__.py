"""Real shapes on an ordinary machine: `python -m experiments.bench.shapes`."""
