"""What an analysis is made from, as arrays, and how its numbers are written."""

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

Runs = Sequence[Responses]  # each of one condition and one run


class Case(NamedTuple):
    """What is analysed, as arrays. R is the largest number of runs; runs that are not are NaN."""

    instrument: Survey
    tables: Tables
    personas: tuple[str, ...]
    rows_P: np.ndarray  # int, where each persona's country stands in C
    aware_RxCxQ: np.ndarray
    unaware_RxQ: np.ndarray
    lines: CultureLines


def make_case(instrument: Survey, tables: Tables, aware: Mapping[str, Runs], unaware: Runs) -> Case:
    personas = tuple(c for c in tables.countries if aware.get(c))
    if unknown := [c for c in aware if c not in tables.countries]:
        tables.row(unknown[0])
    if not personas and not unaware:
        raise UserError("no replies to analyse: give those of at least one persona or the unaware")
    runs = max(len(r) for r in (*aware.values(), unaware))
    aware_RxCxQ = np.full((runs, *tables.gold_CxQ.shape), np.nan, np.float32)
    for country in personas:
        for run, answers in enumerate(aware[country]):
            aware_RxCxQ[run, tables.row(country)] = answers.answers()[0, 0]
    unaware_RxQ = np.full((runs, tables.gold_CxQ.shape[1]), np.nan, np.float32)
    for run, answers in enumerate(unaware):
        unaware_RxQ[run] = answers.answers()[0, 0]
    rows_P = np.array([tables.row(c) for c in personas], int)
    lines = culture_lines(tables)
    return Case(instrument, tables, personas, rows_P, aware_RxCxQ, unaware_RxQ, lines)


def run_scores(case: Case, counts_Q: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Alignment of aware and of unaware answers with each country: [R, C] each."""
    gold = case.tables.gold_CxQ[None]
    return (
        alignment(case.aware_RxCxQ, gold, case.tables, counts_Q),
        alignment(case.unaware_RxQ[:, None], gold, case.tables, counts_Q),
    )


def persona_scores(case: Case) -> np.ndarray:
    """[P, C]: alignment of each persona with each country, mean over runs."""
    answers = case.aware_RxCxQ[:, case.rows_P, None]
    return mean_over_runs(alignment(answers, case.tables.gold_CxQ[None, None], case.tables))


def mean_over_runs(values_RxX: np.ndarray) -> np.ndarray:
    """Mean over runs of what is known, NaN where nothing is."""
    known = ~np.isnan(values_RxX)
    count = known.sum(axis=0)
    total = np.where(known, values_RxX, 0.0).sum(axis=0, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def average(values: Sequence[float | None]) -> float | None:
    """Mean in the values' unit. None where one is missing: means over other countries than those
    named would be compared as if they were over the same."""
    known = [v for v in values if v is not None]
    return round(sum(known) / len(known), 4) if known and len(known) == len(values) else None


def points(value: float | None) -> float | None:
    """100 × a score, to 4 decimals: float32 carries no more."""
    return None if value is None or math.isnan(value) else round(100 * float(value), 4)


def code(position: float, codes: Sequence[int]) -> float | int | None:
    """The code at a position; between two options, the value between their codes."""
    if math.isnan(position):
        return None
    value = float(np.interp(position, np.arange(len(codes)), codes))
    return int(value) if value.is_integer() else round(value, 4)
