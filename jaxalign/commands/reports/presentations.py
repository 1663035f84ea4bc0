"""What answers owe to the form of the questions: texts and tables for every report that has them.

A presentation is the order in which an item's options are listed and the numbers or letters before
them. The numbers come from `jaxalign.stats.presentations`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxalign.report.document import Cell, Estimate, Note, Table, is_number
from jaxalign.report.wording import NO_SIGNAL, joined, number, with_bounds
from jaxalign.surveys.presentations import present
from jaxalign.surveys.survey import Item

TUNED, UNTUNED = "tuned on", "never tuned on"
_WORDS = {
    "A": "as published: published order, numbers from the top",
    "B": "published order, numbers reversed",
    "C": "reverse order, each option with its published number",
    "D": "reverse order, numbers from the top",
    "letters": "published order, letters from the top",
    "letters-reversed": "reverse order, letters from the top",
    "orders": "all orders of the options, numbers from the top",
}
_EXAMPLE = Item("example", "How often?", ("never", "sometimes", "always"), (1, 2, 3))
_MOST_SPELLED_OUT = 6  # countries whose numbers are given in a first line
_MOSTLY = 0.8  # share of equal answers from which they are called constant in words


# What the presentations are


def presentation_words(name: str) -> str:
    """Return what a presentation is: "published order, numbers reversed"."""
    if name in _WORDS:
        return _WORDS[name]
    if name.startswith("orders-"):
        return f"order {name.removeprefix('orders-')} of all, numbers from the top"
    order = joined(name.removeprefix("order-"))
    return f"options in the order {order} of the published list, numbers from the top"


def presentations_table(roles: Mapping[str, str]) -> Table:
    """Return what each presentation is, with an example of three options.

    Args:
        roles: By name, what a presentation was used for, such as "tuned on".
    """
    rows = tuple((name, presentation_words(name), _example(name), r) for name, r in roles.items())
    return Table(
        "The presentations: in which order and with which numbers the options are listed",
        ("Presentation", "Options", "Example", "Used"),
        rows,
        folded=len(rows) > 8,
    )


def _example(name: str) -> str | None:
    """Return a scale of three options as it is listed; None where it needs another number."""
    if name.startswith("order"):
        return None
    return ", ".join(f"{mark} {label}" for mark, label in present(_EXAMPLE, name).pairs)


def named(names: Sequence[str]) -> str:
    """Return "presentation A" or "presentations A and B"."""
    return f"presentation{'s' if len(names) > 1 else ''} {joined(names)}"


def heading(name: str, tuned: Sequence[str]) -> str:
    """Return a presentation's heading of a column, which says whether it was tuned on."""
    return f"{name} ({TUNED if name in tuned else UNTUNED})"


# Does a gain remain on presentations that were not tuned on?


def gain_note(
    gains: Mapping[str, Mapping[str, Any] | None],
    tuned: Sequence[str],
    by_presentation: Mapping[str, float | None],
    signal: bool,
    digits: int = 1,
    compared: Mapping[str, Mapping[str, float | None]] = MappingProxyType({}),
) -> Note | None:
    """Return the first line on whether gains are kept on presentations never tuned on.

    Args:
        gains: By country, the record of `jaxalign.stats.presentations.Gain`.
        tuned: Presentations that were tuned on.
        by_presentation: By presentation, how far the tuned prompt's loss is below the plain
            question's, mean over countries.
        signal: Whether verdicts may be read; see `jaxalign.report.wording.verdict`.
        digits: Decimals of losses.
        compared: By what else the tuned prompt is compared with, such as "the strongest
            baseline's", the same differences. They come first: they are harder to beat.
    """
    gains = {country: gain for country, gain in gains.items() if gain}
    if not gains:
        return None
    count = len(gains)
    by_verdict = {
        name: [c for c, gain in gains.items() if gain["verdict"] == name]
        for name in ("vanishes", "no gain", "partly kept", "kept", "not tested")
    }
    found = {name: countries for name, countries in by_verdict.items() if countries}
    if len(found) == 1:
        lead = _GAIN_LEADS[next(iter(found))]
    else:
        words = joined(f"{_GAIN_SHORT[n]} in {len(c)}" for n, c in found.items())
        lead = f"The gain on presentations that were not tuned on, in {count} countries: {words}."
    if not signal:
        # A gain that is kept, or missing, says nothing where the instrument measures nothing.
        lead += f" Verdict: {NO_SIGNAL}."
    over = f", mean over {count} countries," if count > 1 else ""
    by_other = {**compared, "the plain question's": by_presentation}
    said = [
        f"below {name} by {_gains_in_words(tuned, found_gains, digits)}"
        for name, found_gains in by_other.items()
    ]
    text = f"The tuned prompt's loss{over} is {'. It is '.join(said)}."
    if count > 1 and len(found) > 1:
        each = "; ".join(f"{_GAIN_SHORT[name]} in {joined(c)}" for name, c in found.items())
        text += f" By country: {each}."
    return Note(f"{text}{_numbers_learned(tuned, by_presentation)}", "label", lead)


def _gains_in_words(tuned: Sequence[str], gains: Mapping[str, float | None], digits: int) -> str:
    """Return such as "+92.6 on A (tuned on); −55.1 on B and −53.1 on D (never tuned on)"."""
    sides = []
    for role, names in (
        (TUNED, [name for name in gains if name in tuned]),
        (UNTUNED, [name for name in gains if name not in tuned]),
    ):
        if names:
            said = joined(f"{number(gains[name], digits, signed=True)} on {name}" for name in names)
            sides.append(f"{said} ({role})")
    return "; ".join(sides)


def _numbers_learned(tuned: Sequence[str], gains: Mapping[str, float | None]) -> str:
    """Say that a gain went with the numbers, if it did.

    Where options keep their published numbers (A and C), a prompt that has learned which numbers to
    say gains; where they have other ones (B and D), it does not.
    """
    if list(tuned) != ["A"] or not all(is_number(gains.get(name)) for name in "ABCD"):
        return ""
    gain = gains["A"]
    kept = gain > 0 and gains["C"] >= 0.8 * gain
    lost = max(gains["B"], gains["D"]) <= 0.2 * gain
    if not (kept and lost):
        return ""
    return (
        " The gain remains where every option keeps its number (C) and is lost where it has "
        "another one (B, D): the prompt has learned numbers."
    )


_GAIN_LEADS = {
    "vanishes": "The gain vanishes on presentations that were not tuned on.",
    "no gain": "There is no gain on the presentations that were tuned on.",
    "partly kept": "The gain is kept only in part on presentations that were not tuned on.",
    "kept": "The gain is kept on presentations that were not tuned on.",
    "not tested": "The gain was not tested on presentations that were not tuned on.",
}
_GAIN_SHORT = {
    "vanishes": "vanishes",
    "no gain": "none even where tuned on",
    "partly kept": "kept in part",
    "kept": "kept",
    "not tested": "not tested",
}


def gains_table(
    method: str, gains: Mapping[str, Mapping[str, Any]] | None, signal: bool, digits: int = 1
) -> Table | None:
    """Return by how much losses fell on tuned and on other presentations, side by side.

    Args:
        method: What lowers the loss of the plain question.
        gains: By country, the record of `jaxalign.stats.presentations.Gain`.
        signal: Whether verdicts may be read; see `jaxalign.report.wording.verdict`.
        digits: Decimals of losses.
    """
    known = {country: gain for country, gain in (gains or {}).items() if gain}
    tested = any(gain["untuned"] for gain in known.values())
    rows = []
    for country, gain in known.items():
        words = _gain_words(gain["verdict"], signal)
        if tested:
            kept = None if gain["kept"] is None else 100 * gain["kept"]
            rows.append((country, _gain(gain["tuned"]), _gain(gain["untuned"]), kept, words))
        else:
            rows.append((country, _gain(gain["tuned"]), words))
    others = (f"Where {UNTUNED}", "Kept, %") if tested else ()
    columns = ("Country", f"Where {TUNED}", *others, "The gain")
    decimals = (0, digits, digits, 0, 0) if tested else (0, digits, 0)
    caption = (
        f"By how much the loss is below the plain question's, {method}: mean over "
        "presentations, each taken alone"
    )
    signed = tuple(column for column in columns if column.startswith("Where"))
    return Table(caption, columns, tuple(rows), decimals, signed) if rows else None


def _gain(record: Mapping[str, float] | None) -> Estimate | None:
    """Return a gain; of one seed and one presentation nothing was resampled: it has no interval."""
    found = Estimate.read(record)
    return found and (Estimate(found.mean) if found.low == found.high else found)


def _gain_words(verdict: str, signal: bool) -> str:
    """Return a verdict in words; that a gain vanishes is said also where the gate is not passed."""
    if signal or verdict == "not tested":
        return _GAIN_SHORT[verdict]
    return f"{_GAIN_SHORT[verdict]}; {NO_SIGNAL}" if verdict == "vanishes" else NO_SIGNAL


# How far results depend on the presentation


def spread_table(
    caption: str,
    first: str,
    spreads: Mapping[str, Mapping[str, Any] | None],
    tuned: Sequence[str] | None,
    digits: int = 1,
    folded: bool = False,
) -> Table | None:
    """Return values under each presentation, with their mean, its interval and their spread.

    Args:
        caption: Title of the table.
        first: What the rows are.
        spreads: By name of the row, a record of `jaxalign.stats.presentations.FormSpread`.
        tuned: Presentations that were tuned on; None where nothing was tuned.
        digits: Decimals.
        folded: Whether the table is closed until a reader opens it.
    """
    known = {name: s for name, s in spreads.items() if s}
    if not known:
        return None
    names = list(next(iter(known.values()))["by_presentation"])
    rows = tuple(
        (
            row,
            *(s["by_presentation"].get(name) for name in names),
            Estimate.read(s["interval"]) or Estimate(s["mean"]),
            s["spread"],
        )
        for row, s in known.items()
    )
    headings = names if tuned is None else [heading(name, tuned) for name in names]
    columns = (first, *headings, "Mean over presentations", "Spread (standard deviation)")
    return Table(caption, columns, rows, digits, folded=folded)


def correlation_words(
    correlation: Mapping[str, float] | None, pair: Sequence[str] = ("A", "B")
) -> str:
    """Say what the correlation of item means between two presentations is evidence of.

    Args:
        correlation: The record of its interval; None if it is not defined.
        pair: The two presentations.
    """
    reversed_numbers = " (numbers reversed)" if tuple(pair) == ("A", "B") else ""
    what = f"item means under {named(pair)}{reversed_numbers}"
    found = Estimate.read(correlation)
    if found is None or not found.known:
        return (
            f"{what} have no correlation, because the answers do not vary over items or there are "
            "too few of them."
        )
    followed = _followed(found, pair)
    ending = f": the answers follow {followed}" if followed else ""
    return f"{what} correlate at {with_bounds(found, 2)}{ending}."


def _followed(found: Estimate, pair: Sequence[str]) -> str:
    """Return what answers follow, given the correlation between two presentations.

    "" for other presentations than A and B, which differ in the numbers alone.
    """
    if tuple(pair) != ("A", "B"):
        return ""
    if found.has_interval and found.low > 0:
        return "what the options mean"
    if found.has_interval and found.high < 0:
        return "the number, whatever stands behind it"
    return "neither the meaning nor the number clearly"


def correlations_table(
    rows: Mapping[str, Mapping[str, Any]],
    columns: Mapping[str, str],
    pair: Sequence[str] = ("A", "B"),
) -> Table | None:
    """Return the correlation of item means between two presentations, and what it says.

    Args:
        rows: By name of the row, the interval of each column.
        columns: The columns' keys, and their names in words.
        pair: The two presentations.
    """
    cells = []
    for name, by_column in rows.items():
        found = [Estimate.read(by_column.get(key)) for key in columns]
        known = {w: e for w, e in zip(columns.values(), found, strict=True) if e is not None}
        if known:
            said = {word: _followed(e, pair) for word, e in known.items()}
            alike = len(set(said.values())) == 1
            each = "; ".join(f"{word.lower()}: {words}" for word, words in said.items())
            cells.append((name, *found, next(iter(said.values())) if alike else each))
    reversed_numbers = " (numbers reversed)" if tuple(pair) == ("A", "B") else ""
    caption = (
        f"Item means under presentation {pair[0]} against {pair[1]}{reversed_numbers}, correlated "
        "over items"
    )
    headings = ("Method", *columns.values(), "The answers follow")
    return Table(caption, headings, tuple(cells), 2) if cells else None


def constant_words(
    rows: Mapping[str, Mapping[str, Mapping[str, Any] | None]], say_nobody: bool = True
) -> str:
    """State in words who answers one mark throughout.

    Args:
        rows: By who answers and by presentation, a record of
            `jaxalign.stats.presentations.ConstantAnswers`.
        say_nobody: Whether to state that nobody does, too; otherwise "" is returned.
    """
    said, known = [], {}
    for name, by_presentation in rows.items():
        by_sentence: dict[str, list[str]] = {}
        for presentation, constant in by_presentation.items():
            if constant:
                known[f"{name}, presentation {presentation}"] = constant
                if constant["share"] > _MOSTLY:
                    by_sentence.setdefault(constant["sentence"], []).append(presentation)
        said += [f"{name} {sentence} on {named(on)}" for sentence, on in by_sentence.items()]
    if said:
        return f"{'; '.join(said)}."
    if not (known and say_nobody):
        return ""
    name, most = max(known.items(), key=lambda pair: pair[1]["share"])
    return (
        f"Nobody gives one answer throughout: at most {number(100 * most['share'], 0)} % of the "
        f"answers are the same ({name}: {most['mark']})."
    )


def constants_table(
    caption: str, first: str, constants: Mapping[str, Mapping[str, Mapping[str, Any] | None]]
) -> Table | None:
    """Return the mark given most often, with its share, by name and presentation."""
    names = list(dict.fromkeys(n for by in constants.values() for n in by))
    rows = tuple((row, *(_constant(by.get(n)) for n in names)) for row, by in constants.items())
    return Table(caption, (first, *names), rows) if rows and names else None


def _constant(constant: Mapping[str, Any] | None) -> Cell:
    return constant and f"{constant['mark']} ({number(100 * constant['share'], 0)} %)"
