"""Surveys as data, and pure functions that score them. Knows neither model nor tokenizer."""
