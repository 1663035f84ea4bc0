"""Scores of survey answers, with their intervals and their trivial lines; knows no model."""
