"""Fine-tuning beside torch + PEFT: `python -m experiments.bench.sft`."""
