"""What a model answers, option by option, as a table that any program reads.

    survey, method, country, seed, presentation   how it was asked; empty where there is none
    item, scale                                   ordinal or nominal
    option, code, label                           the option, counted from 1 as published
    probability    of the option, among the item's options; of sampled replies its share of those
                   that name one; empty without an answer
    valid_mass     the probability that a reply begins with any of the options, or the share of
                   sampled replies that name one
    replies        the number of sampled replies that name the option; empty where none were drawn

The method "people" is how the people of a country answered, where the survey says so. Every run
keeps one as `answers_by_option.csv`, and where pyarrow is installed (the extra `survey`)
also as `.parquet`.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxalign.core.files import write_atomically
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table

NAME = "answers_by_option"
_ASKED = ("survey", "method", "country", "seed", "presentation")
_OPTION = ("item", "scale", "option", "code", "label")
PEOPLE = "people"
_VALUES = ("probability", "valid_mass", "replies")
COLUMNS = (*_ASKED, *_OPTION, *_VALUES)


class AnswerTable:
    """Rows of answers, collected way by way of asking, then written."""

    def __init__(self) -> None:
        """Start without rows."""
        self._parts: list[dict[str, list]] = []
        self._options: dict[int, tuple[Survey, dict[str, list | np.ndarray]]] = {}

    def add(
        self,
        survey: Survey,
        log_probs_QxO: np.ndarray,
        valid_mass_Q: np.ndarray | None = None,
        positions_NxQ: np.ndarray | None = None,
        *,
        method: str,
        name: str = "",
        country: str | Sequence[str] = "",
        seed: int | str = "",
        presentation: str = "",
        asked_Q: np.ndarray | None = None,
    ) -> None:
        """Add the answers to all items of a survey under one way of asking.

        Args:
            survey: The survey.
            log_probs_QxO: Log-probabilities of the options, in published order; NaN for no answer.
                May have more columns than the survey's longest item.
            valid_mass_Q: The probability that a reply begins with an option; NaN or None where it
                is not known.
            positions_NxQ: The option that each of N sampled replies names, negative for none; None
                where none were drawn.
            method: Who answers, such as "persona".
            name: What the survey is called; default: its name.
            country: Whom it speaks as, or ""; or the country of each item.
            seed: The seed, or "".
            presentation: The form in which the items were shown, or "".
            asked_Q: Which items were asked; None for all.
        """
        if id(survey) not in self._options:
            self._options[id(survey)] = survey, _options(survey)
        options = self._options[id(survey)][1]
        rows_T, columns_T = options["rows"], options["columns"]
        if asked_Q is not None:
            kept_T = np.flatnonzero(asked_Q[rows_T])
            rows_T, columns_T = rows_T[kept_T], columns_T[kept_T]
            options = {column: [options[column][t] for t in kept_T] for column in _OPTION}
        count = len(rows_T)
        replies = [None] * count
        if positions_NxQ is not None:
            replies = (positions_NxQ[:, rows_T] == columns_T).sum(axis=0).tolist()
        mass = [None] * count if valid_mass_Q is None else _known(valid_mass_Q[rows_T])
        asked = (name or survey.name, method, country, seed, presentation)
        self._parts.append(
            {
                column: [str(value)] * count
                if isinstance(value, str | int)
                else [value[q] for q in rows_T]
                for column, value in zip(_ASKED, asked, strict=True)
            }
            | {column: options[column] for column in _OPTION}
            | {
                "probability": _known(np.exp(log_probs_QxO[rows_T, columns_T])),
                "valid_mass": mass,
                "replies": replies,
            }
        )

    def add_people(self, survey: Survey, countries: Sequence[str], name: str = "") -> None:
        """Add how the people of some countries answered, where the survey says so."""
        for country in countries:
            if country in survey.distributions:
                shares_QxO = survey.truth_QxO(country)
                with np.errstate(divide="ignore"):
                    log_probs_QxO = np.log(shares_QxO)
                asked_Q = ~np.isnan(shares_QxO).any(axis=1)
                self.add(
                    survey,
                    log_probs_QxO,
                    method=PEOPLE,
                    name=name,
                    country=country,
                    asked_Q=asked_Q,
                )

    def add_responses(self, responses: Responses, method: str, country: str = "") -> None:
        """Add what `Responses` hold under their first condition, presentation by presentation."""
        for presentation, alone in (responses.by_presentation or {"": responses}).items():
            self.add(
                alone.survey,
                alone.log_probs[0],
                None if alone.valid_mass is None else alone.valid_mass[0],
                None if alone.positions is None else alone.positions[:, 0],
                method=method,
                country=country,
                presentation=presentation,
            )

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write the table into a folder, each file whole or not at all; return the paths."""
        paths = [folder / f"{NAME}.csv"]
        write_atomically(paths[0], self._write_csv)
        if importlib.util.find_spec("pyarrow") is not None:
            paths.append(folder / f"{NAME}.parquet")
            write_atomically(paths[1], self._write_parquet)
        return tuple(paths)

    def _write_csv(self, file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        out = csv.writer(text, lineterminator="\n")
        out.writerow(COLUMNS)
        for part in self._parts:
            out.writerows(zip(*(map(_cell, part[column]) for column in COLUMNS), strict=True))
        text.detach()  # whoever opened the file closes it

    def _write_parquet(self, file: BinaryIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {name: pa.string() for name in (*_ASKED, "item", "scale", "label")}
        kinds |= {name: pa.int32() for name in ("option", "code", "replies")}
        kinds |= {name: pa.float64() for name in ("probability", "valid_mass")}
        schema = pa.schema([(name, kinds[name]) for name in COLUMNS])
        parts = [pa.table(part, schema=schema) for part in self._parts]
        pq.write_table(pa.concat_tables(parts or [schema.empty_table()]), file)


def _options(survey: Survey) -> dict[str, list | np.ndarray]:
    """Return the columns that describe a survey's options, and where each stands in [Q, O]."""
    valid_QxO, codes_QxO = option_table(survey)
    rows_T, columns_T = np.nonzero(valid_QxO)
    pairs = list(zip(rows_T.tolist(), columns_T.tolist(), strict=True))
    return {
        "rows": rows_T,
        "columns": columns_T,
        "item": [survey.items[q].id for q, _ in pairs],
        "scale": [survey.items[q].scale for q, _ in pairs],
        "option": (columns_T + 1).tolist(),
        "code": codes_QxO[rows_T, columns_T].astype(int).tolist(),
        "label": [survey.items[q].options[o] for q, o in pairs],
    }


def _known(values_T: np.ndarray) -> list[float | None]:
    """Return values to six digits, None for NaN."""
    return [None if np.isnan(v) else float(f"{v:.6g}") for v in np.asarray(values_T, np.float64)]


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
