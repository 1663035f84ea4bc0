"""LLaMA-3: configuration, Flax model, Hugging Face checkpoints and tokenizer."""
