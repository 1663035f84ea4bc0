"""The answers of an analysis as arrays, and how the analysis writes numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.stats.alignment import CultureLines, alignment, culture_lines
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import Tables

Runs = Sequence[Responses]  # each is one run under one condition


class Case(NamedTuple):
    """What is analysed. R is the largest number of runs; a run that does not exist is NaN.

    Attributes:
        survey: the survey that was asked.
        tables: how the countries C answered it.
        personas: the countries that have a persona.
        rows_P: int, the position in C of each persona's country.
        aware_RxCxQ: positions of options that personas chose, NaN for no answer.
        unaware_RxQ: the same without a persona.
        lines: scores that need no model.
    """

    survey: Survey
    tables: Tables
    personas: tuple[str, ...]
    rows_P: np.ndarray
    aware_RxCxQ: np.ndarray
    unaware_RxQ: np.ndarray
    lines: CultureLines


def make_case(survey: Survey, tables: Tables, aware: Mapping[str, Runs], unaware: Runs) -> Case:
    """Collect the answers of an analysis.

    Raises:
        UserError: a persona's country is not in the tables, or there are no answers at all.
    """
    for country in aware:
        tables.row(country)  # refuses an unknown country
    personas = tuple(c for c in tables.countries if aware.get(c))
    if not personas and not unaware:
        raise UserError(
            "no replies to analyse: give those of at least one persona, or those without a persona"
        )
    # Personas may have different numbers of runs; missing ones stay NaN.
    runs = max(len(r) for r in (*aware.values(), unaware))
    aware_RxCxQ = np.full((runs, *tables.gold_CxQ.shape), np.nan, np.float32)
    for country in personas:
        for run, responses in enumerate(aware[country]):
            aware_RxCxQ[run, tables.row(country)] = responses.answers()[0, 0]
    unaware_RxQ = np.full((runs, tables.gold_CxQ.shape[1]), np.nan, np.float32)
    for run, responses in enumerate(unaware):
        unaware_RxQ[run] = responses.answers()[0, 0]
    rows_P = np.array([tables.row(c) for c in personas], int)
    return Case(survey, tables, personas, rows_P, aware_RxCxQ, unaware_RxQ, culture_lines(tables))


def run_scores(case: Case, counts_Q: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Compute the alignment of aware and of unaware answers with each country: [R, C] each.

    `counts_Q` bool leaves items out; default: all enter.
    """
    gold_1xCxQ = case.tables.gold_CxQ[None]
    return (
        alignment(case.aware_RxCxQ, gold_1xCxQ, case.tables, counts_Q),
        alignment(case.unaware_RxQ[:, None], gold_1xCxQ, case.tables, counts_Q),
    )


def persona_scores(case: Case) -> np.ndarray:
    """Compute the alignment of each persona with each country, [P, C], mean over runs."""
    answers_RxPx1xQ = case.aware_RxCxQ[:, case.rows_P, None]
    gold_1x1xCxQ = case.tables.gold_CxQ[None, None]
    return mean_over_runs(alignment(answers_RxPx1xQ, gold_1x1xCxQ, case.tables))


def mean_over_runs(values_RxX: np.ndarray) -> np.ndarray:
    """Compute the mean of the known values over runs; NaN where no run has one."""
    known = ~np.isnan(values_RxX)
    count = known.sum(axis=0)
    total = np.where(known, values_RxX, 0.0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def complete_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of values that are all known, else None.

    A mean that silently left out a country would be compared with means over all of them.
    """
    known = [v for v in values if v is not None]
    return round(sum(known) / len(known), 4) if known and len(known) == len(values) else None


def points(value: float | None) -> float | None:
    """Return 100 × a score to 4 decimals, as float32 holds no more; None for NaN."""
    return None if value is None or math.isnan(value) else round(100 * float(value), 4)


def code(position: float, codes: Sequence[int]) -> float | int | None:
    """Return the code at a position, interpolated between two options; None for NaN."""
    if math.isnan(position):
        return None
    value = float(np.interp(position, np.arange(len(codes)), codes))
    return int(value) if value.is_integer() else round(value, 4)
