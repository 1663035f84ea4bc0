"""A handful of answers in full."""

from __future__ import annotations

import numpy as np

from jaxalign.stats.answer_examples import answer_examples
from tests.surveys.test_answer_table import SURVEY


def test_the_items_that_changed_most_come_first():
    before = np.float32([[[0.5, 0.5, 0], [0.2, 0.2, 0.6]]])
    after = np.float32([[[0.6, 0.4, 0], [0.9, 0.05, 0.05]]])
    people = np.full_like(before, np.nan)
    shares = {"before": before, "after": after, "people": people}
    found = answer_examples(SURVEY, shares, ["CHN"], ("before", "after"), name="held-out", most=1)
    assert found == [
        {
            "survey": "held-out",
            "country": "CHN",
            "item": "q2",
            "question": "How high?",
            "answers": {
                "before": {"code": 3, "label": "high", "probability": np.float32(0.6)},
                "after": {"code": 1, "label": "low", "probability": np.float32(0.9)},
                "people": None,
            },
        }
    ]
    plain = answer_examples(SURVEY, {"before": before}, [""])
    assert [example["item"] for example in plain] == ["q1", "q2"]
