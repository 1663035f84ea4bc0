"""A handful of answers in full, so that a reader sees what the model says before reading scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table

_MOST_COUNTRIES = 2


def answer_examples(
    survey: Survey,
    shares: Mapping[str, np.ndarray],
    countries: Sequence[str],
    between: tuple[str, str] | None = None,
    *,
    name: str = "",
    most: int = 3,
) -> list[dict[str, Any]]:
    """Return the most likely answers to a few items, for the first two countries.

    Args:
        survey: The survey that was asked.
        shares: By who answers, probabilities of options [C, Q, O]; NaN for no answer. May have more
            columns than the survey's longest item.
        countries: The C countries; "" where none is named.
        between: Two who answer: the items are taken on which they differ most, by total variation.
            None takes the first items.
        name: What the survey is called; default: its name.
        most: The number of items for each country.

    Returns:
        `survey`, `country`, `item`, `question`, and under `answers` by who answers the `code` and
        `label` of the most likely option and its `probability`; None without an answer.
    """
    _, codes_QxO = option_table(survey)
    found = []
    for c, country in list(enumerate(countries))[:_MOST_COUNTRIES]:
        order_Q = np.arange(len(survey.items))
        if between is not None:
            before_QxO, after_QxO = (shares[who][c] for who in between)
            moved_Q = np.nan_to_num(np.abs(after_QxO - before_QxO).sum(axis=-1))
            order_Q = np.argsort(-moved_Q, kind="stable")
        for q in order_Q[:most].tolist():
            item = survey.items[q]
            found.append(
                {
                    "survey": name or survey.name,
                    "country": country,
                    "item": item.id,
                    "question": f"{item.stem} {item.text}".strip(),
                    "answers": {
                        who: _answer(shares_CxQxO[c, q], item.options, codes_QxO[q])
                        for who, shares_CxQxO in shares.items()
                    },
                }
            )
    return found


def _answer(
    shares_O: np.ndarray, options: Sequence[str], codes_O: np.ndarray
) -> dict[str, Any] | None:
    if np.isnan(shares_O[: len(options)]).any():
        return None
    o = int(shares_O[: len(options)].argmax())
    return {"code": int(codes_O[o]), "label": options[o], "probability": float(shares_O[o])}
