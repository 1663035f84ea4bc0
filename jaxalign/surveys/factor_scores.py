"""Linear scores of a survey from the user's own file: Schwartz's values, the axes of Inglehart and
Welzel, or any other factors.

A factor's score is linear in the answers to items, whatever the questionnaire:

    answer  = the item's code, or what `values` gives for it
    answer -= mean answer to all items of the file              if `centred`
    raw     = constant + sum over items of weight * (answer - item mean) / item sd
    score   = (raw - factor mean) / factor sd

File format (JSON, UTF-8); everything but `factors`, `items` and the weights may be left out:

    {"name": "...", "source": "...", "centred": false,
     "factors": {
       "care": {"constant": 0, "mean": 0, "sd": 1,
                "items": {"m05": -1.5,
                          "m13": {"weight": 2, "mean": 2.4, "sd": 1.1},
                          "q12": {"weight": 1, "values": {"1": 1, "2": 0, "3": 0.5}}}}},
     "targets": {"USA": {"care": 0.3}, "CHN": {"care": -0.2}}}

`values` says what each code of an item counts; items without an order need it. `centred` takes a
person's mean answer away first, as scores of Schwartz's values do. `targets` are the groups' scores
on the file's scale. A group or factor that has none is given the score of its own answers, where
the survey has them.

The same as CSV, without `values`, factor means and `centred`; a row has an item, or a group, or
neither (then `weight` is the constant):

    factor,item,weight,mean,sd,group,target
    care,m05,-1.5,,,,
    care,m13,2,2.4,1.1,,
    care,,,,,USA,0.3
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.surveys.formats.files import (
    bad,
    read_json,
    read_start,
    read_table,
    sha256_of_file,
    shown,
)
from jaxalign.surveys.survey import Survey
from jaxalign.surveys.tables import option_table


@dataclasses.dataclass(frozen=True)
class ItemWeight:
    """What an item adds to a factor: weight * (answer - mean) / sd.

    Attributes:
        weight: Its weight.
        mean: What is taken away from the answer first.
        sd: What the answer is then divided by, more than 0.
        values: What each code of the item counts; empty: the code itself.
    """

    weight: float
    mean: float = 0.0
    sd: float = 1.0
    values: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Factor:
    """A linear score: (constant + what its items add - mean) / sd."""

    name: str
    items: dict[str, ItemWeight]
    constant: float = 0.0
    mean: float = 0.0
    sd: float = 1.0


@dataclasses.dataclass(frozen=True)
class FactorScores:
    """The factors of a file, and what groups should score on them.

    Attributes:
        name: What reports call the scores.
        source: Where weights and targets come from.
        factors: The K factors, at least one.
        targets: `targets[group][factor]`, on the scale of the scores.
        centred: Whether the mean answer to all items of the file is taken away first.
        sha256: Hash of the file; "" for scores that were made in memory.
    """

    name: str
    source: str
    factors: tuple[Factor, ...]
    targets: dict[str, dict[str, float]]
    centred: bool = False
    sha256: str = ""

    @property
    def items(self) -> tuple[str, ...]:
        """Ids of all items that enter a factor, in the order of the file."""
        return tuple(dict.fromkeys(item for factor in self.factors for item in factor.items))

    def option_weights(self, survey: Survey) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores as a linear function of the shares of options.

        Args:
            survey: A survey that has all the items.

        Returns:
            `weights_KxQxO` and `constants_K`, float64: a factor's score is its constant plus the
            sum over items and options of weight times share.

        Raises:
            UserError: The survey lacks an item; an item has no order and no `values`; or `values`
                do not give each of its codes.
        """
        answers = {item_id: self._answers(survey, item_id) for item_id in self.items}
        shape = option_table(survey)[0].shape
        rows = {item.id: q for q, item in enumerate(survey.items)}
        weights_KxQxO, constants_K = (
            np.zeros((len(self.factors), *shape)),
            np.zeros(len(self.factors)),
        )
        for k, factor in enumerate(self.factors):
            by_item = {i: w.weight / w.sd for i, w in factor.items.items()}
            offset = sum(w.weight * w.mean / w.sd for w in factor.items.values())
            # Taking the mean answer away takes the same weight from every item of the file.
            centre = sum(by_item.values()) / len(answers) if self.centred else 0.0
            for item_id, values in answers.items():
                weight = by_item.get(item_id, 0.0) - centre
                weights_KxQxO[k, rows[item_id], : len(values)] = weight * values / factor.sd
            constants_K[k] = (factor.constant - offset - factor.mean) / factor.sd
        return weights_KxQxO, constants_K

    def _answers(self, survey: Survey, item_id: str) -> np.ndarray:
        """Return what each option of an item counts."""
        where = f"`scores` {self.name!r}: item {item_id!r}"
        item = next((item for item in survey.items if item.id == item_id), None)
        if item is None:
            known = ", ".join(i.id for i in survey.items[:5])
            raise UserError(f"{where} is not in survey {survey.name!r}, which has {known} ...")
        given = {w.values for f in self.factors if (w := f.items.get(item_id)) and w.values}
        if len(given) > 1:
            raise UserError(f"{where} has different `values` in two factors; give the same")
        if not given:
            if item.scale != "ordinal" and len(item.codes) > 2:
                raise UserError(f"{where} has no order; say what each code counts in its `values`")
            return np.array(item.codes, np.float64)
        values = dict(given.pop())
        if lacking := [code for code in item.codes if code not in values]:
            raise UserError(
                f"{where}: `values` lack code {lacking[0]}; give all of {list(item.codes)}"
            )
        return np.array([values[code] for code in item.codes])

    def group_targets(self, groups: Sequence[str], survey: Survey) -> np.ndarray:
        """Return what each group should score, float64 [C, K].

        Targets that the file has come first; others are the scores of the group's own answers.

        Raises:
            UserError: A target is neither in the file nor follows from the survey.
        """
        weights_KxQxO, constants_K = self.option_weights(survey)
        out = np.full((len(groups), len(self.factors)), np.nan)
        for c, group in enumerate(groups):
            given = self.targets.get(group, {})
            truth_QxO = survey.truth_QxO(group) if group in survey.distributions else None
            for k, factor in enumerate(self.factors):
                if factor.name in given:
                    out[c, k] = given[factor.name]
                elif truth_QxO is not None:
                    # Items that do not enter have weight 0, whether they were asked or not.
                    needed = weights_KxQxO[k] != 0
                    out[c, k] = constants_K[k] + (weights_KxQxO[k] * truth_QxO)[needed].sum()
            if np.isnan(out[c]).any():
                lacking = self.factors[int(np.isnan(out[c]).argmax())].name
                raise UserError(
                    f"`countries` {group}: no target for factor {lacking!r}; add it to the "
                    f"`targets` of `scores` {self.name!r}, or tune on a survey that says how "
                    f"{group} answered its items"
                )
        return out


def read_factor_scores(path: Path | str) -> FactorScores:
    """Read a file of factor scores, JSON or CSV; the module describes both.

    Raises:
        UserError: The file is not what it should be.

    Examples:
        >>> import pathlib, tempfile
        >>> from jaxalign.surveys.factor_scores import read_factor_scores
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "care.csv"
        >>> lines = "factor,item,weight,group,target", "care,m05,-1.5,,", "care,,,USA,0.3"
        >>> _ = file.write_text("\\n".join(lines))
        >>> scores = read_factor_scores(file)
        >>> scores.items, scores.targets
        (('m05',), {'USA': {'care': 0.3}})
    """
    path = Path(path)
    text = read_start(path).decode("utf-8-sig", errors="replace")
    scores = _from_json(path) if text.lstrip().startswith("{") else _from_csv(path)
    known = {factor.name for factor in scores.factors}
    for group, targets in scores.targets.items():
        if unknown := [name for name in targets if name not in known]:
            raise bad(path, f"targets of {group}: there is no factor {shown(unknown[0])}")
    return dataclasses.replace(scores, sha256=sha256_of_file(path))


def _from_json(path: Path) -> FactorScores:
    fields = _object(path, read_json(path), "the file")
    _only(path, fields, "the file", "name", "source", "centred", "factors", "targets")
    factors = _object(path, fields.get("factors"), "`factors`")
    if not factors:
        raise bad(path, "`factors` is empty; give at least one")
    centred = fields.get("centred", False)
    if not isinstance(centred, bool):
        raise bad(path, f"`centred` is {shown(centred)}; give true or false")
    targets = {
        group: {
            name: _number(path, value, f"the target of {group} for {name!r}")
            for name, value in _object(path, row, f"the targets of {group}").items()
        }
        for group, row in _object(path, fields.get("targets", {}), "`targets`").items()
    }
    return FactorScores(
        name=str(fields.get("name") or path.stem),
        source=str(fields.get("source") or ""),
        factors=tuple(_factor(path, name, factor) for name, factor in factors.items()),
        targets=targets,
        centred=centred,
    )


def _factor(path: Path, name: str, fields: Any) -> Factor:
    where = f"factor {name!r}"
    fields = _object(path, fields, where)
    _only(path, fields, where, "items", "constant", "mean", "sd")
    rows = _object(path, fields.get("items"), f"`items` of {where}")
    if not rows:
        raise bad(path, f"{where} has no items")
    items = {item: _item_weight(path, f"{where}, item {item!r}", row) for item, row in rows.items()}
    numbers = {
        key: _number(path, fields[key], f"{where}: `{key}`")
        for key in ("constant", "mean", "sd")
        if key in fields
    }
    return Factor(name, items, **_with_positive_sd(path, where, numbers))


def _item_weight(path: Path, where: str, fields: Any) -> ItemWeight:
    if not isinstance(fields, dict):
        return ItemWeight(_number(path, fields, f"{where}: the weight"))
    _only(path, fields, where, "weight", "mean", "sd", "values")
    numbers = {
        key: _number(path, fields.get(key), f"{where}: `{key}`")
        for key in ("weight", "mean", "sd")
        if key in fields or key == "weight"
    }
    values = []
    for code, value in _object(path, fields.get("values", {}), f"{where}: `values`").items():
        if not code.strip().lstrip("-").isdigit():
            raise bad(path, f"{where}: `values` has {shown(code)}, which is not a code")
        values.append((int(code), _number(path, value, f"{where}: the value of code {code}")))
    return ItemWeight(**_with_positive_sd(path, where, numbers), values=tuple(values))


def _from_csv(path: Path) -> FactorScores:
    columns = ("item", "weight", "mean", "sd", "group", "target")
    table = read_table(path, ["factor"], others=columns)
    items: dict[str, dict[str, ItemWeight]] = {}
    constants: dict[str, float] = {}
    targets: dict[str, dict[str, float]] = {}
    for row, cells in table.rows:
        cells = {name: text.strip() for name, text in cells.items()}
        name, item, group = (cells.get(key, "") for key in ("factor", "item", "group"))
        if not name:
            raise bad(path, "the cell is empty", row, "factor")
        if item and group:
            raise bad(path, "a row has an item or a group, not both", row)
        if group:
            where, into, value = f"the target of {group}", targets.setdefault(group, {}), "target"
            key: str = name
        elif item:
            where, into, value = f"item {item}", items.setdefault(name, {}), "weight"
            key = item
        else:
            where, into, value, key = "the constant", constants, "weight", name
        numbers = {
            column: _number(path, cells[column], where, row, column)
            for column in (value, *(("mean", "sd") if item else ()))
            if cells.get(column) or (column == value and column in cells)
        }
        if value not in numbers:
            raise bad(path, f"{where} needs the column {value!r}", row)
        if key in into:
            raise bad(path, f"{where} of factor {name!r} is there twice", row)
        into[key] = (
            ItemWeight(**_with_positive_sd(path, f"row {row}", numbers)) if item else numbers[value]
        )
    if lacking := [name for name in (*constants, *_factor_names(targets)) if name not in items]:
        raise bad(path, f"factor {lacking[0]!r} has no items")
    factors = tuple(Factor(name, rows, constants.get(name, 0.0)) for name, rows in items.items())
    return FactorScores(path.stem, "", factors, targets)


def _factor_names(targets: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [name for row in targets.values() for name in row]


def _object(path: Path, value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad(path, f"{what} is {shown(value)}; give an object")
    return value


def _only(path: Path, fields: Mapping[str, Any], what: str, *known: str) -> None:
    if unknown := [key for key in fields if key not in known]:
        raise bad(path, f"{what} has {shown(unknown[0])}; known are {', '.join(known)}")


def _number(
    path: Path, value: Any, what: str, row: int | None = None, column: str | None = None
) -> float:
    """Return a finite number, written as one or as text."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise bad(path, f"{what} is {shown(value)}; give a number", row, column)
    return number


def _with_positive_sd(path: Path, where: str, numbers: dict[str, float]) -> dict[str, float]:
    if numbers.get("sd", 1.0) <= 0:
        raise bad(path, f"{where}: `sd` is {numbers['sd']:g}; give more than 0")
    return numbers
