"""Benchmark of fine-tuning against torch + PEFT: `python -m experiments.bench.sft`."""
