"""Whether a model answers one number throughout: in words, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.report.document import Table
from jaxalign.report.wording import joined, number

# Shares of the answers, in percent, from which they are called nearly constant, and constant.
NEARLY, THROUGHOUT = 80.0, 99.5

Constant = Mapping[str, Any]  # code, share, position, position_share, answers


def constant_words(name: str, constant: Constant) -> str:
    """Return such as "CHN answers 1 throughout" or "CHN answers 1 to 93 % of the questions"."""
    share = constant["share"]
    if share >= THROUGHOUT:
        return f"{name} answers {constant['code']} throughout"
    return f"{name} answers {constant['code']} to {number(share, 0)} % of the questions"


def constant_statement(
    constants: Mapping[str, Constant | None], people: Mapping[str, Constant | None]
) -> str:
    """State how many of some answers are one number; "" if there are none.

    Args:
        constants: The most frequent answer by the name of who answers.
        people: That of people's majority answers, by country; empty if it is not known.
    """
    known = {name: c for name, c in constants.items() if c}
    if not known:
        return ""
    among = [c["share"] for c in people.values() if c]
    beside = (
        f" Of people's majority answers, {number(sum(among) / len(among), 0)} % are the country's "
        "most frequent number, on average."
        if among
        else ""
    )
    found = [(name, c) for name, c in known.items() if c["share"] >= NEARLY]
    if not found:
        mean = sum(c["share"] for c in known.values()) / len(known)
        name, most = max(known.items(), key=lambda pair: pair[1]["share"])
        return (
            f"Nobody answers one number throughout: at most {number(most['share'], 0)} % of the "
            f"answers are the same ({name}: {most['code']}), {number(mean, 0)} % on average."
            f"{beside}"
        )
    codes = {c["code"] for _, c in found}
    if len(found) > 4 and len(codes) == 1:
        low, high = (f(c["share"] for _, c in found) for f in (min, max))
        span = f"{number(low, 0)} to {number(high, 0)}"
        throughout = sum(c["share"] >= THROUGHOUT for _, c in found)
        return (
            f"One number for nearly everything: {len(found)} of {len(known)} answer "
            f"{codes.pop()} to {span} % of the questions, {throughout} of them throughout.{beside}"
        )
    words = joined(constant_words(name, c) for name, c in found[:8])
    more = f" (and {len(found) - 8} more)" if len(found) > 8 else ""
    return f"One number for nearly everything: {words}{more}.{beside}"


def constant_table(columns: Mapping[str, Mapping[str, Constant | None]]) -> Table | None:
    """Return the most frequent number of everybody's answers, with its share.

    Args:
        columns: By way of answering, the most frequent answer by country; "" where none is named.
    """
    countries = dict.fromkeys(country for by in columns.values() for country in by)
    rows = tuple(
        (country or "no country", *(_cell(by.get(country)) for by in columns.values()))
        for country in countries
    )
    caption = "The number given most often, and its share of the answers"
    return Table(caption, ("Asked for", *columns), rows, folded=len(rows) > 8) if rows else None


def _cell(constant: Constant | None) -> str | None:
    return constant and f"{constant['code']} ({number(constant['share'], 0)} %)"
