"""The main job on a real model, SmolLM2-135M-Instruct, after a comparison with frozen logits."""
