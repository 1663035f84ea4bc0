"""Supervised fine-tuning of low-rank adapters."""
