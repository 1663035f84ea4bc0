"""The groups below the country that the respondents of a World Values Survey file belong to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.surveys.formats.files import bad
from jaxalign.surveys.formats.wvs_cells import Cells, SurveyFile, columns_in_file, number_of
from jaxalign.surveys.groups import Group, Variable

# What labels of regions put before the name: "840004", "US-CA", "DE:".
_REGION_CODE = re.compile(r"^(?:\d+[.:)]?\s+)?(?:[A-Z]{2,3}-[A-Z0-9]{1,3}:?\s+|[A-Z]{2,3}:\s*)?")


@dataclasses.dataclass(frozen=True)
class GroupColumn:
    """A variable as a file holds it.

    Attributes:
        variable: The variable.
        column: The column as the file spells it.
        is_derived: Whether the values follow from that column's numbers (`Variable.derived`).
        labels: What the file calls the column's codes, for regions.
    """

    variable: Variable
    column: str
    is_derived: bool
    labels: Mapping[float, str]

    def settings(self) -> list[Any]:
        """Return what the groups depend on, for the cache."""
        labels = sorted(self.labels.items())
        return [self.variable.name, self.column, self.is_derived, *map(list, labels)]

    def keys(self, cells: Cells) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the distinct keys of some cells, and int [R]: each row's, -1 for none."""
        keys: dict[str, int] = {}
        position = np.full(len(cells.values), -1, np.int64)
        for i, value in enumerate(cells.values):
            if (key := self._key(value)) is not None:
                position[i] = keys.setdefault(key, len(keys))
        return tuple(keys), position[cells.index_R]

    def _key(self, value: Any) -> str | None:
        try:
            number = number_of(value)
        except ValueError:  # text: the name of a region
            return None if self.variable.values else _region(str(value))
        if not number >= 0:  # missing: NaN, or one of the survey's negative codes
            return None
        if not self.variable.values:
            return _region(self.labels.get(number, str(int(number))))
        if self.is_derived:
            spans = self.variable.derived[1].items()
            return next((key for key, (low, high) in spans if low <= number <= high), None)
        return next((v.key for v in self.variable.values if number in v.codes), None)


def group_columns(
    path: Path, file: SurveyFile, variables: Sequence[Variable]
) -> tuple[GroupColumn, ...]:
    """Return where a file holds each variable. Raise UserError for one that it lacks."""
    found = []
    for variable in variables:
        direct = list(columns_in_file(file.columns, variable.columns).values())
        derived = variable.derived and columns_in_file(file.columns, [variable.derived[0]])
        if direct:
            labels = {} if variable.values else file.labels(direct[0])
            found.append(GroupColumn(variable, direct[0], False, labels))
        elif derived:
            found.append(GroupColumn(variable, derived[variable.derived[0]], True, {}))
        else:
            names = [*variable.columns, *([variable.derived[0]] if variable.derived else [])]
            raise bad(path, f"`by` {variable.name}: the file has no column {' or '.join(names)}")
    return tuple(found)


def groups_of(
    columns: Sequence[GroupColumn],
    cells: Mapping[str, Cells],
    countries: Sequence[str],
    country_R: np.ndarray,
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the groups of some respondents, and int [R]: each one's, -1 for one in none.

    Args:
        columns: The variables.
        cells: Their columns, as the file spells them.
        countries: Distinct countries.
        country_R: Each respondent's position among them.
    """
    keys, positions = zip(*(column.keys(cells[column.column]) for column in columns), strict=True)
    all_RxV = np.stack([country_R, *positions], axis=1)
    known_R = (all_RxV >= 0).all(axis=1)
    group_R = np.full(len(country_R), -1, np.int64)
    found_GxV, group_R[known_R] = np.unique(all_RxV[known_R], axis=0, return_inverse=True)
    names = []
    for c, *values in found_GxV.tolist():
        of_variable = {
            column.variable.name: keys[v][value]
            for v, (column, value) in enumerate(zip(columns, values, strict=True))
        }
        names.append(Group(countries[c], of_variable).name)
    return tuple(names), group_R


def _region(label: str) -> str | None:
    """Return a region's name as a group's name can hold it, without codes before it."""
    name = _REGION_CODE.sub("", label.strip(), count=1) or label.strip()
    return re.sub(r"\s*:\s*", " - ", name) or None
