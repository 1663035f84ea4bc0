"""Scores of responses: the six VSM dimensions, cultural alignment, and similarity to countries.

These are the functions to call on the result of `ask`. Each takes `Responses` and returns a
`ScoreTable`, one row for each condition that the survey was asked under.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.stats.alignment import alignment
from jaxalign.stats.distances import survey_similarity
from jaxalign.stats.vsm import MasWeight, Reading, make_scorer
from jaxalign.surveys.hofstede import DIMENSIONS
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.tables import make_tables


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ScoreTable:
    """A table of scores that prints as text.

    Attributes:
        caption: what the numbers are, and their unit.
        conditions: labels of the rows.
        columns: labels of the columns: dimensions, countries or other groups.
        values: float32 [rows, columns]; NaN where there is no score.
        digits: decimals to print.

    Example:
        >>> import numpy as np
        >>> from jaxalign.stats.scores import ScoreTable
        >>> table = ScoreTable("Scores", ("plain",), ("PDI", "IDV"), np.array([[40.0, 91.0]]))
        >>> table
        Scores
               PDI   IDV
        plain  40.0  91.0
        >>> table["plain", "IDV"]
        91.0
    """

    caption: str
    conditions: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray
    digits: int = 1

    def __getitem__(self, key: tuple[str, str]) -> float:
        """Return the score at (condition, column)."""
        condition, column = key
        for name, names in ((condition, self.conditions), (column, self.columns)):
            if name not in names:
                raise KeyError(f"{name!r} is not in the table; choose from {', '.join(names)}")
        row = self.values[self.conditions.index(condition)]
        return float(row[self.columns.index(column)])

    def __repr__(self) -> str:
        """Return the table as aligned text under its caption."""
        rows = [["", *self.columns]]
        for condition, row in zip(self.conditions, self.values, strict=True):
            cells = ("–" if np.isnan(v) else f"{v:.{self.digits}f}" for v in row)
            rows.append([condition, *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
        return "\n".join([self.caption, *(line.rstrip() for line in lines)])


def vsm_scores(
    responses: Responses,
    constant: float | Sequence[float] = 50.0,
    reading: Reading = "expected",
    mas_weight: MasWeight = 35,
) -> ScoreTable:
    """Compute the six cultural dimensions of the Values Survey Module 2013.

    Args:
        responses: answers to a survey that holds the items m01 to m24, such as
            `jaxalign.surveys.vsm()`.
        constant: the free constant C of the manual's formulas in points, one number or one per
            dimension. Only differences between conditions are free of it.
        reading: "expected" scores the mean code under the answer distribution; "most_likely" the
            code of the most probable option, as one sampled answer at temperature 0 would.
        mas_weight: weight of the second difference of MAS: the manual's 35, or the 25 that some
            papers print.

    Returns:
        Points, one column per dimension. Published country scores lie on 0 to 100.

    Raises:
        UserError: the survey lacks items of the module, or `constant` does not fit.

    Source:
        Hofstede and Minkov, Values Survey Module 2013 Manual.

    Example:
        >>> import numpy as np
        >>> from jaxalign.stats.scores import vsm_scores
        >>> from jaxalign.surveys import Responses, vsm
        >>> codes = np.full((1, 1, 24), 2)  # one reply that names the third option throughout
        >>> vsm_scores(Responses.from_positions(vsm(), ["always 3"], codes))
        Scores on the VSM 2013 dimensions in points (C = 50)
                  PDI   IDV   MAS   UAI   LTO   IVR
        always 3  50.0  50.0  50.0  50.0  50.0  50.0
    """
    # The scorer works on log-probabilities, so that exact and sampled answers go the same way.
    scorer = make_scorer(responses.survey, np.asarray(constant, np.float32), mas_weight)
    values = np.asarray(scorer.scores(responses.log_probs, reading))
    same = len(set(np.ravel(constant).tolist())) == 1
    constants = f"C = {float(np.ravel(constant)[0]):g}" if same else "C by dimension"
    weight = "" if mas_weight == 35 else f"; MAS with {mas_weight}"
    caption = f"Scores on the VSM 2013 dimensions in points ({constants}{weight})"
    columns = tuple(d.upper() for d in DIMENSIONS)
    return ScoreTable(caption, responses.conditions, columns, values)


def alignment_score(responses: Responses, countries: Sequence[str] | None = None) -> ScoreTable:
    """Compute the cultural alignment score of every condition with every country.

    The score is 100 × (1 − ‖a − g‖ / ‖r‖) over the items that both answered: a are the answers, g
    the country's majority answers as positions of options, r the largest possible distances. 100 is
    the country's majority answers, 0 the opposite end of every scale. Read it beside the lines that
    need no model (`jaxalign.stats.alignment.culture_lines`).

    Args:
        responses: answers to a survey that says how countries, or other groups, answered. An exact
            answer counts by its most likely option; of several replies the mean score is taken.
        countries: the groups to compare with; default: all of the survey.

    Returns:
        Points in [0, 100], one column per country.

    Raises:
        UserError: the survey has no answers of a country.

    Source:
        Xu et al. 2025 (CultureSPA, arXiv 2410.12971).

    Example:
        >>> import numpy as np
        >>> from jaxalign.stats.scores import alignment_score
        >>> from jaxalign.surveys import Item, Responses, Survey
        >>> item = Item("q1", "Is the sky blue?", ("yes", "perhaps", "no"), (1, 2, 3))
        >>> shares = {"sailors": {"q1": (0.7, 0.2, 0.1)}, "miners": {"q1": (0.1, 0.2, 0.7)}}
        >>> survey = Survey("sky", "1", "made up", "official", (item,), shares)
        >>> replies = np.array([[[0]], [[1]]])  # two replies: "yes" and "perhaps"
        >>> alignment_score(Responses.from_positions(survey, ["model"], replies))
        Cultural alignment score in points (100 is the majority answers)
               sailors  miners
        model  75.0     25.0
    """
    tables = make_tables(responses.survey, countries)
    # Conditions against countries by broadcasting: [R, A, 1, Q] and [1, 1, C, Q] give [R, A, C].
    answers_RxAxQ = responses.answers()
    score_RxAxC = alignment(answers_RxAxQ[:, :, None], tables.gold_CxQ[None, None], tables)
    # A reply without any answer has no score; the mean is over the others.
    known = ~np.isnan(score_RxAxC)
    total = np.where(known, score_RxAxC, 0.0).sum(axis=0, dtype=np.float64)
    count = known.sum(axis=0)
    values = np.where(count > 0, 100 * total / np.maximum(count, 1), np.nan).astype(np.float32)
    caption = "Cultural alignment score in points (100 is the majority answers)"
    return ScoreTable(caption, responses.conditions, tables.countries, values)


def similarity(responses: Responses, countries: Sequence[str] | None = None) -> ScoreTable:
    """Compute how similar the answer distributions are to those of every country.

    The mean over items of 1 − the ordinal Wasserstein distance, or 1 − total variation for items
    whose options have no order. Every item weighs the same. This is the score of the held-out
    survey in `result.json`.

    Args:
        responses: answers to a survey that says how countries, or other groups, answered. Items
            without an answer are left out.
        countries: the groups to compare with; default: all of the survey.

    Returns:
        Similarities in [0, 1], one column per country; 1 is the country's own distributions.

    Raises:
        UserError: the survey has no answers of a country.

    Example:
        >>> import numpy as np
        >>> from jaxalign.stats.scores import similarity
        >>> from jaxalign.surveys import Item, Responses, Survey
        >>> item = Item("q1", "Is the sky blue?", ("yes", "perhaps", "no"), (1, 2, 3))
        >>> survey = Survey(
        ...     "sky", "1", "made up", "official", (item,), {"sailors": {"q1": (0.5, 0.5, 0.0)}}
        ... )
        >>> log_probs = np.log(np.float32([[[0.5, 0.25, 0.25]]]))
        >>> similarity(Responses(survey, ("model",), log_probs))
        Similarity of answer distributions (1 is identical)
               sailors
        model  0.875
    """
    tables = make_tables(responses.survey, countries)
    p_AxQxO = responses.distributions()
    answered_AxQ = ~np.isnan(p_AxQxO).any(axis=-1)
    # An item counts where both sides answered it; `survey_similarity` leaves out what is NaN in the
    # country's shares.
    truth_AxCxQxO = np.where(
        answered_AxQ[:, None, :, None], tables.truth_CxQxO[None], np.float32(np.nan)
    )
    values = survey_similarity(
        np.nan_to_num(p_AxQxO)[:, None], truth_AxCxQxO, tables.ordinal_Q, tables.valid_QxO
    )
    caption = "Similarity of answer distributions (1 is identical)"
    return ScoreTable(caption, responses.conditions, tables.countries, np.asarray(values), 3)
