"""Cultural alignment of LLaMA-3 in JAX: soft prompts tuned by Differential Evolution, and CultureSPA."""
