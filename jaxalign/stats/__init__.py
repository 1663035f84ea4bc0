"""Scores of survey answers, metrics that compare them with countries, and intervals around both."""

from __future__ import annotations

from jaxalign.stats.analysis import analyse, score_replies
from jaxalign.stats.intervals import Interval
from jaxalign.stats.scores import ScoreTable, alignment_score, similarity, vsm_scores
from jaxalign.stats.validity import Validity, check_validity

__all__ = [
    "Interval",
    "ScoreTable",
    "Validity",
    "alignment_score",
    "analyse",
    "check_validity",
    "score_replies",
    "similarity",
    "vsm_scores",
]
