"""Prefill and decoding in tokens per second, against transformers' `generate`."""
