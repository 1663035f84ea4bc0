"""Cultural alignment of LLaMA-3 in JAX: soft prompts tuned by evolution, and CultureSPA."""
