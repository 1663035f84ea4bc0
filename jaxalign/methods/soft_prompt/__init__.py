"""Soft prompts tuned until survey answers give a group's scores (Masoud et al. 2025)."""
