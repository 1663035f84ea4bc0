"""The one way a model answers survey items: exact option log-probabilities."""
