"""Scores of survey answers, metrics that compare them with countries, and intervals around both."""

from __future__ import annotations

from jaxalign.stats.analysis import analyse, score_replies
from jaxalign.stats.intervals import Interval
from jaxalign.stats.scores import ScoreTable, alignment_score, similarity, vsm_scores

__all__ = [
    "Interval",
    "ScoreTable",
    "alignment_score",
    "analyse",
    "score_replies",
    "similarity",
    "vsm_scores",
]
