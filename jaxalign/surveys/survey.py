"""A survey as data: its items, their options, and how groups of people answered them.

A group is anything with a name: a country (usually by its ISO 3166 alpha-3 code), a region, a
generation, a political party.

File format (JSON, UTF-8):

    {"name": "...", "version": "...", "source": "...", "wording": "paraphrase" | "official",
     "items": [{"id": "m01", "stem": "...", "text": "...", "scale": "ordinal" | "nominal",
                "topic": "...", "options": [{"code": 1, "label": "..."}, ...]}, ...],
     "distributions": {"USA": {"m01": [0.2, 0.5, ...], ...}, ...},
     "majorities": {"USA": {"m01": 2, ...}, ...},
     "simulated": false}

`stem` is text that several items share, such as a questionnaire's lead-in. It may be empty or
absent. `distributions` holds the share of each group's respondents who chose each option, in the
order of `options`. It may be absent. `majorities` settles ties: it holds the position, counted from
0, of the option that is the group's majority answer. Where it says nothing, which is usual, the
first of the most chosen options is. `simulated` is true where no people were asked.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxalign.core.errors import UserError

Scale = Literal["ordinal", "nominal"]
_MOST_GROUPS = 80  # groups that a message lists; surveys have fewer countries


def spread_evenly(count: int, of: int) -> list[int]:
    """Return `count` positions that are spread evenly over `of`, beginning with the first.

    >>> spread_evenly(3, 10)
    [0, 3, 6]
    """
    return [n * of // count for n in range(count)] if count < of else list(range(of))


@dataclasses.dataclass(frozen=True)
class Item:
    """One question with its options.

    Attributes:
        id: Name of the item, unique in its survey, such as "m01".
        text: The question.
        options: Labels of the options, two or more. Those of an ordinal item are in the order of
            the scale.
        codes: The number that a respondent gives for each option.
        scale: "ordinal" where the options have an order, else "nominal".
        topic: Heading for reports; may be empty.
        stem: Text before the question that several items share; may be empty.

    Raises:
        UserError: If the text is empty, the options and codes do not fit each other, or the codes
            of an ordinal item neither rise nor fall.

    Examples:
        >>> from jaxalign.surveys import Item
        >>> item = Item("q1", "How often do you read?", ("never", "sometimes", "often"), (1, 2, 3))
        >>> item.scale
        'ordinal'
    """

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
                "give at least two options and one code for each"
            )
        if len(set(self.codes)) != len(self.codes):
            raise UserError(f"{where}: codes {list(self.codes)} repeat")
        if self.scale not in ("ordinal", "nominal"):
            raise UserError(f"{where}: scale={self.scale!r}; choose ordinal or nominal")
        # Distances between options count steps in the order listed, so that must be the scale's.
        if self.scale == "ordinal" and list(self.codes) not in (
            sorted(self.codes),
            sorted(self.codes, reverse=True),
        ):
            raise UserError(
                f"{where}: codes {list(self.codes)} neither rise nor fall; list an ordinal item's "
                "options in their order"
            )


class Respondents(NamedTuple):
    """How many people of a group were asked.

    Attributes:
        number: Number of respondents.
        effective: Their effective number, (sum of weights)² / sum of squared weights: as many
            respondents of equal weight would say as much.
    """

    number: int
    effective: float


@dataclasses.dataclass(frozen=True)
class Survey:
    """A questionnaire and, where known, how groups of people answered it.

    Attributes:
        name: Name of the survey.
        version: Edition or version, as text.
        source: Where the wording and the figures come from.
        wording: Whether the text is the questionnaire's own ("official") or a paraphrase.
        items: The questions, at least one, with different ids.
        distributions: `distributions[group][item id]` holds the share of the group's respondents
            who chose each option, in option order: numbers from 0 to 1 that sum to 1.
        majorities: `majorities[group][item id]` holds the position of the majority answer where a
            source breaks a tie by a rule of its own. Elsewhere the first of the most chosen
            options is the majority answer.
        simulated: Whether the distributions are made up, so that no result says anything about
            people. Not part of `sha256`.
        notes: What a file holds that is not in the survey, and why: one line each. Not part of
            `sha256`.
        respondents: The number of respondents of each group, where the file has respondents. Not
            part of `sha256`.
        refused: Groups of the file that are not in `distributions`, each with the reason. Not part
            of `sha256`.

    Raises:
        UserError: If there are no items, ids repeat, a group has no name, or a distribution or
            majority does not fit the items.

    Examples:
        >>> from jaxalign.surveys import Item, Survey
        >>> item = Item("q1", "Is tea better than coffee?", ("yes", "no"), (1, 2), "nominal")
        >>> shares = {"night owls": {"q1": (0.25, 0.75)}}
        >>> survey = Survey("drinks", "1", "made up", "official", (item,), shares)
        >>> survey.majority("night owls")
        {'q1': 1}
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
    simulated: bool = False
    notes: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    respondents: dict[str, Respondents] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )
    refused: dict[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError(f"survey {self.name!r} has no items")
        if self.wording not in ("paraphrase", "official"):
            raise UserError(f"wording={self.wording!r}; choose paraphrase or official")
        ids = [item.id for item in self.items]
        if len(set(ids)) < len(ids):
            repeated = sorted(i for i, count in Counter(ids).items() if count > 1)
            raise UserError(f"survey {self.name!r}: item ids repeat: {repeated}")
        by_id = {item.id: item for item in self.items}
        for group, answers in self.distributions.items():
            if not group.strip():
                raise UserError(f"survey {self.name!r}: a group in distributions has no name")
            for item_id, shares in answers.items():
                _check_shares(self.name, group, item_id, shares, by_id)
        for group, positions in self.majorities.items():
            for item_id, position in positions.items():
                shares = self.distributions.get(group, {}).get(item_id, ())
                _check_majority(self.name, group, item_id, position, shares)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of what a run depends on: wording, options and distributions."""
        fields = to_json(self)
        fields.pop("simulated", None)
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def subset(self, ids: set[str]) -> Survey:
        """Return the same survey with only the items in `ids`, in the same order."""
        return dataclasses.replace(
            self,
            items=tuple(item for item in self.items if item.id in ids),
            distributions={
                group: {i: shares for i, shares in answers.items() if i in ids}
                for group, answers in self.distributions.items()
            },
            majorities={
                group: {i: position for i, position in positions.items() if i in ids}
                for group, positions in self.majorities.items()
            },
        )

    def spread(self, count: int | None) -> Survey:
        """Return the same survey with `count` items, spread evenly over it; None keeps all."""
        if count is None or count >= len(self.items):
            return self
        return self.subset({self.items[n].id for n in spread_evenly(count, len(self.items))})

    def respondents_record(self, groups: Iterable[str] | None = None) -> dict[str, Any]:
        """Return what records of results say about the respondents, to be merged into them.

        Args:
            groups: The groups; default: all with answers.

        Returns:
            {"respondents": {group: {"number", "effective"}}}; {} where the survey does not know.
        """
        chosen = self.distributions if groups is None else groups
        known = {g: self.respondents[g]._asdict() for g in chosen if g in self.respondents}
        return {"respondents": known} if known else {}

    def why_absent(self, group: str) -> str:
        """Return why `distributions` has no such group, for messages."""
        if group in self.refused:
            return f"{group!r} has {self.refused[group]}"
        # Of a survey of groups within countries, those of the same country say most.
        country = group.partition(":")[0]
        near = [name for name in self.distributions if name.partition(":")[0] == country]
        known = near or list(self.distributions)
        more = f" and {len(known) - _MOST_GROUPS} more" if len(known) > _MOST_GROUPS else ""
        named = " ".join(known[:_MOST_GROUPS]) + more
        return f"country {group!r} is not in the survey; it has {named}"

    def majority(self, group: str) -> dict[str, int]:
        """Return the position of the majority answer to each item that `group` answered."""
        # argmax takes the first of equal shares; `majorities` overrides it.
        most_chosen = {i: int(np.argmax(s)) for i, s in self.distributions.get(group, {}).items()}
        return most_chosen | self.majorities.get(group, {})

    def truth_QxO(self, group: str) -> np.ndarray:
        """Return the shares of one group as an array.

        Returns:
            float32 [Q, O], where O is the largest number of options: 0 past an item's options, NaN
            before that if the group did not answer the item.
        """
        most = max(len(item.options) for item in self.items)
        out = np.zeros((len(self.items), most), np.float32)
        answers = self.distributions.get(group, {})
        for q, item in enumerate(self.items):
            shares = answers.get(item.id)
            out[q, : len(item.options)] = np.nan if shares is None else shares
        return out

    def items_without_wording(self) -> list[str]:
        """Return the ids of the items whose text is no more than their id.

        World Values Survey files, for one, name their items and do not word them. Such a survey
        can be scored against, but a model cannot be asked.
        """
        return [item.id for item in self.items if item.text.strip() == item.id]


def _check_shares(
    name: str, group: str, item_id: str, shares: tuple[float, ...], by_id: dict[str, Item]
) -> None:
    where = f"survey {name!r}, group {group!r}, item {item_id!r}"
    if item_id not in by_id:
        raise UserError(f"{where}: no such item")
    if len(shares) != len(by_id[item_id].options):
        raise UserError(f"{where}: {len(shares)} shares for {len(by_id[item_id].options)} options")
    if any(not math.isfinite(s) or s < 0 for s in shares) or abs(sum(shares) - 1) > 1e-3:
        raise UserError(f"{where}: shares {list(shares)} are not a distribution")


def _check_majority(
    name: str, group: str, item_id: str, position: int, shares: tuple[float, ...]
) -> None:
    where = f"survey {name!r}, group {group!r}, item {item_id!r}"
    if type(position) is not int or not 0 <= position < len(shares):
        raise UserError(
            f"{where}: majority {position!r} is not the position of one of {len(shares)} shares"
        )
    if shares[position] < max(shares):
        most = shares.index(max(shares))
        raise UserError(f"{where}: majority {position} was chosen less often than {most}")


def from_json(fields: dict[str, Any], where: str = "survey") -> Survey:
    """Make a survey from the fields of a JSON file, and check it.

    Args:
        fields: The file's top-level object; the module's docstring gives the format.
        where: What messages call the source, such as the file's path.

    Raises:
        UserError: Something is missing or wrong; the message names `where` and the item.
    """
    try:
        return Survey(
            name=_text(fields["name"], "name"),
            version=_text(fields["version"], "version"),
            source=_text(fields["source"], "source"),
            wording=fields["wording"],
            items=tuple(_item(row) for row in fields["items"]),
            distributions={
                _text(group, "group"): {
                    item: tuple(map(float, shares)) for item, shares in answers.items()
                }
                for group, answers in fields.get("distributions", {}).items()
            },
            majorities={
                group: dict(positions) for group, positions in fields.get("majorities", {}).items()
            },
            simulated=_true_or_false(fields.get("simulated", False), "simulated"),
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
    """Return `value` if it is text that UTF-8 can hold: JSON can also spell lone surrogates."""
    if not isinstance(value, str):
        raise UserError(f"{what} must be text, not {value!r}")
    value.encode()
    return value


def _code(value: Any, where: str) -> int:
    if type(value) is not int:  # not a bool either; 2.5 is never cut to 2
        raise UserError(f"{where}: code must be a whole number, not {value!r}")
    return value


def _true_or_false(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{what} must be true or false, not {value!r}")
    return value


def to_json(survey: Survey) -> dict[str, Any]:
    """Return the JSON fields that `from_json` reads back as an equal survey.

    `majorities` and `simulated` are there only where they say something, so that the hashes of
    other surveys stay as they are.
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
        for item in survey.items
    ]
    return {
        "name": survey.name,
        "version": survey.version,
        "source": survey.source,
        "wording": survey.wording,
        "items": items,
        "distributions": {
            group: {i: list(s) for i, s in answers.items()}
            for group, answers in survey.distributions.items()
        },
        **({"majorities": survey.majorities} if survey.majorities else {}),
        **({"simulated": True} if survey.simulated else {}),
    }


def load(path: Path) -> Survey:
    """Read a survey from a JSON file.

    `jaxalign.surveys.read_survey` reads other formats too.

    Raises:
        UserError: The file cannot be read or something is wrong in it.
    """
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
    """Return the 24 items from which the six scores of VSM 2013 are computed.

    The wording is a paraphrase, because the questionnaire's own is copyrighted. To ask with the
    official wording, put it into a file of your own that keeps the ids m01 to m24, and read that
    with `read_survey`.

    Examples:
        >>> from jaxalign import surveys
        >>> survey = surveys.vsm()
        >>> len(survey.items), survey.items[0].codes
        (24, (1, 2, 3, 4, 5))
    """
    file = resources.files("jaxalign.surveys").joinpath("data/values_module.json")
    return from_json(json.loads(file.read_text("utf-8")), "values_module.json")
