"""Soft prompts tuned by Differential Evolution: the main job, and what it is made of."""
