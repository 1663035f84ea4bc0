"""Survey instruments as data: items, their options, and how countries answered them.

File format (JSON, UTF-8):

    {"name": "...", "version": "...", "source": "...", "wording": "paraphrase" | "official",
     "items": [{"id": "m01", "stem": "...", "text": "...", "scale": "ordinal" | "nominal",
                "topic": "...", "options": [{"code": 1, "label": "..."}, ...]}, ...],
     "distributions": {"USA": {"m01": [0.2, 0.5, ...], ...}, ...},
     "majorities": {"USA": {"m01": 2, ...}, ...}}

`stem` is text that several items share (a questionnaire's lead-in); it may be empty or absent.
`distributions` gives each country's share of respondents per option, in the order of `options`;
it may be absent. `majorities` says which of equally chosen options, counted from 0, is the
country's majority answer; the first one where it says nothing, and it is mostly absent.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxalign.core.errors import UserError

Scale = Literal["ordinal", "nominal"]


@dataclasses.dataclass(frozen=True)
class Item:
    """One question. `codes[i]` is the number a respondent gives for `options[i]`."""

    id: str
    text: str
    options: tuple[str, ...]
    codes: tuple[int, ...]
    scale: Scale = "ordinal"
    topic: str = ""
    stem: str = ""

    def __post_init__(self) -> None:
        where = f"item {self.id!r}"
        if not self.text.strip():
            raise UserError(f"{where}: empty text")
        if len(self.options) != len(self.codes) or len(self.options) < 2:
            raise UserError(
                f"{where}: {len(self.options)} options and {len(self.codes)} codes; "
                "give at least two of each, as many of one as of the other"
            )
        if len(set(self.codes)) != len(self.codes):
            raise UserError(f"{where}: codes {list(self.codes)} repeat")
        if self.scale not in ("ordinal", "nominal"):
            raise UserError(f"{where}: scale={self.scale!r}; ordinal or nominal")
        # Distances between options count steps in the order listed, so that must be the scale's.
        if self.scale == "ordinal" and list(self.codes) not in (
            sorted(self.codes),
            sorted(self.codes, reverse=True),
        ):
            raise UserError(
                f"{where}: codes {list(self.codes)} neither rise nor fall; list an ordinal item's "
                "options in their order"
            )


@dataclasses.dataclass(frozen=True)
class Survey:
    """A questionnaire and, where known, how each country answered it.

    `distributions[country][item id]` holds shares in [0, 1] that sum to 1, in option order.
    `majorities[country][item id]`, where another than the first of equally chosen options is the
    majority answer, holds its position: a source may break ties by a rule of its own.
    """

    name: str
    version: str
    source: str
    wording: Literal["paraphrase", "official"]
    items: tuple[Item, ...]
    distributions: dict[str, dict[str, tuple[float, ...]]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )
    majorities: dict[str, dict[str, int]] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError(f"instrument {self.name!r} has no items")
        if self.wording not in ("paraphrase", "official"):
            raise UserError(f"wording={self.wording!r}; paraphrase or official")
        ids = [item.id for item in self.items]
        if repeated := sorted({i for i in ids if ids.count(i) > 1}):
            raise UserError(f"instrument {self.name!r}: item ids repeat: {repeated}")
        by_id = {item.id: item for item in self.items}
        for country, answers in self.distributions.items():
            for item_id, shares in answers.items():
                _check_shares(self.name, country, item_id, shares, by_id)
        for country, positions in self.majorities.items():
            for item_id, at in positions.items():
                shares = self.distributions.get(country, {}).get(item_id, ())
                _check_majority(self.name, country, item_id, at, shares)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of everything a run depends on: wording, options and distributions."""
        text = json.dumps(to_json(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def subset(self, ids: set[str]) -> Survey:
        """The same instrument with only the items in `ids`, in the same order."""
        return dataclasses.replace(
            self,
            items=tuple(item for item in self.items if item.id in ids),
            distributions={
                country: {i: shares for i, shares in answers.items() if i in ids}
                for country, answers in self.distributions.items()
            },
            majorities={
                country: {i: at for i, at in positions.items() if i in ids}
                for country, positions in self.majorities.items()
            },
        )

    def majority(self, country: str) -> dict[str, int]:
        """Position of the most chosen option of each item that `country` answered."""
        found = {i: int(np.argmax(s)) for i, s in self.distributions.get(country, {}).items()}
        return found | self.majorities.get(country, {})

    def truth_QxO(self, country: str) -> np.ndarray:
        """float32 [items, most options]: the country's shares, zero past an item's options, a row
        of NaN where the country did not answer the item."""
        most = max(len(item.options) for item in self.items)
        out = np.zeros((len(self.items), most), np.float32)
        answers = self.distributions.get(country, {})
        for q, item in enumerate(self.items):
            shares = answers.get(item.id)
            out[q, : len(item.options)] = np.nan if shares is None else shares
        return out


def _check_shares(
    name: str, country: str, item_id: str, shares: tuple[float, ...], by_id: dict[str, Item]
) -> None:
    where = f"instrument {name!r}, country {country!r}, item {item_id!r}"
    if item_id not in by_id:
        raise UserError(f"{where}: no such item")
    if len(shares) != len(by_id[item_id].options):
        raise UserError(f"{where}: {len(shares)} shares for {len(by_id[item_id].options)} options")
    if any(not math.isfinite(s) or s < 0 for s in shares) or abs(sum(shares) - 1) > 1e-3:
        raise UserError(f"{where}: shares {list(shares)} are not a distribution")


def _check_majority(
    name: str, country: str, item_id: str, at: int, shares: tuple[float, ...]
) -> None:
    where = f"instrument {name!r}, country {country!r}, item {item_id!r}"
    if type(at) is not int or not 0 <= at < len(shares):
        raise UserError(f"{where}: majority {at!r} is no position among {len(shares)} shares")
    if shares[at] < max(shares):
        raise UserError(f"{where}: majority {at} is less chosen than {shares.index(max(shares))}")


def from_json(fields: dict[str, Any], where: str = "instrument") -> Survey:
    """Build and check an Instrument. Raises UserError naming `where` and the item."""
    try:
        return Survey(
            name=_text(fields["name"], "name"),
            version=_text(fields["version"], "version"),
            source=_text(fields["source"], "source"),
            wording=fields["wording"],
            items=tuple(_item(row) for row in fields["items"]),
            distributions={
                _text(country, "country"): {
                    item: tuple(map(float, shares)) for item, shares in answers.items()
                }
                for country, answers in fields.get("distributions", {}).items()
            },
            majorities={
                country: dict(positions)
                for country, positions in fields.get("majorities", {}).items()
            },
        )
    except KeyError as error:
        raise UserError(f"{where}: missing field {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: malformed ({error})") from None


def _item(row: dict[str, Any]) -> Item:
    where = f"item {row['id']!r}"
    return Item(
        id=_text(row["id"], "id"),
        text=_text(row["text"], f"{where}: text"),
        stem=_text(row.get("stem", ""), f"{where}: stem"),
        options=tuple(_text(o["label"], f"{where}: label") for o in row["options"]),
        codes=tuple(_code(o["code"], where) for o in row["options"]),
        scale=row.get("scale", "ordinal"),
        topic=_text(row.get("topic", ""), f"{where}: topic"),
    )


def _text(value: Any, what: str) -> str:
    """`value` if it is text that can be written as UTF-8: JSON also spells lone surrogates."""
    if not isinstance(value, str):
        raise UserError(f"{what} must be text, not {value!r}")
    value.encode()
    return value


def _code(value: Any, where: str) -> int:
    if type(value) is not int:  # not a bool either; 2.5 is never cut to 2
        raise UserError(f"{where}: code must be a whole number, not {value!r}")
    return value


def to_json(instrument: Survey) -> dict[str, Any]:
    """The JSON fields that `from_json` reads back as an equal instrument.

    `majorities` only where there are any: the hash of other instruments stays what it was.
    """
    items = [
        {
            "id": item.id,
            "stem": item.stem,
            "text": item.text,
            "scale": item.scale,
            "topic": item.topic,
            "options": [
                {"code": c, "label": o} for c, o in zip(item.codes, item.options, strict=True)
            ],
        }
        for item in instrument.items
    ]
    return {
        "name": instrument.name,
        "version": instrument.version,
        "source": instrument.source,
        "wording": instrument.wording,
        "items": items,
        "distributions": {
            country: {i: list(s) for i, s in answers.items()}
            for country, answers in instrument.distributions.items()
        },
        **({"majorities": instrument.majorities} if instrument.majorities else {}),
    }


def load(path: Path) -> Survey:
    """Read an instrument file. Raises UserError with the file's name for anything wrong in it."""
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # bad UTF-8 or JSON, or nested too deep
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: the top level must be a JSON object")
    return from_json(fields, str(path))


def vsm() -> Survey:
    """The 24 items that the six scores of VSM 2013 are computed from, in this package's own words.

    A paraphrase: the questionnaire's wording is copyrighted; load it from your own file with
    `load`, keeping the ids m01...m24.
    """
    text = (
        resources.files("jaxalign.surveys").joinpath("data/values_module.json").read_text("utf-8")
    )
    return from_json(json.loads(text), "values_module.json")
