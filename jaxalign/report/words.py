"""Numbers and findings in words: one spelling of a number, one wording of a verdict."""

from __future__ import annotations

from collections.abc import Iterable

from jaxalign.report.document import MISSING, Cell, Estimate, is_number

# What is said of a difference whose interval contains zero.
NO_DIFFERENCE = "no clear difference"
_MINUS = "\u2212"  # a hyphen would break at the end of a line and is too short


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """1234.56 -> "1,234.6"; None, NaN and infinities -> a dash. Never "−0.0"."""
    if not is_number(value):
        return MISSING
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def bounds(estimate: Estimate, digits: int = 1, signed: bool = False) -> str:
    """ "68.2 to 73.9", "" without an interval."""
    if not estimate.has_interval:
        return ""
    return f"{number(estimate.low, digits, signed)} to {number(estimate.high, digits, signed)}"


def with_bounds(estimate: Estimate | None, digits: int = 1, signed: bool = False) -> str:
    """ "71.1 (68.2 to 73.9)"."""
    if estimate is None:
        return MISSING
    span = bounds(estimate, digits, signed)
    return number(estimate.mean, digits, signed) + (f" ({span})" if span else "")


def cell_text(cell: Cell, digits: int, signed: bool = False) -> str:
    """A cell of a table as plain text."""
    if cell is None:
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, Estimate):
        return with_bounds(cell, digits, signed)
    if isinstance(cell, int):
        return number(cell, 0, signed)
    if isinstance(cell, float):
        return number(cell, digits, signed)
    return cell if cell.strip() else MISSING


def is_inside(difference: Estimate | None) -> bool | None:
    """Whether the interval of a difference holds zero; None where there is no interval."""
    if difference is None or not difference.has_interval:
        return None
    return difference.low <= 0 <= difference.high


def verdict(difference: Estimate | None, above: str = "higher", below: str = "lower") -> str:
    """What may be said of a paired difference."""
    inside = is_inside(difference)
    if inside is None:
        return "no interval: nothing can be said" if difference and difference.known else MISSING
    if inside:
        return f"{NO_DIFFERENCE} (the interval contains zero)"
    return above if difference.mean > 0 else below


def tally(differences: Iterable[Estimate | None], above: str, below: str) -> str:
    """ "higher in 2, lower in 0, no clear difference in 2 (of 4)"."""
    found = [d for d in differences if is_inside(d) is not None]
    if not found:
        return "not measured"
    inside = sum(bool(is_inside(d)) for d in found)
    up = sum(d.mean > 0 for d in found if not is_inside(d))
    down = len(found) - inside - up
    return f"{above} in {up}, {below} in {down}, {NO_DIFFERENCE} in {inside} (of {len(found)})"


def countries(count: int) -> str:
    """ "1 country", "3 countries"."""
    return f"{count} {'country' if count == 1 else 'countries'}"


def chance_of_many(count: int) -> str:
    """What many intervals at once do to the reading of each."""
    if count < 2:
        return ""
    return (
        f"Were there no difference anywhere, about {number(count / 20, 1)} of {count} intervals at "
        "95 % would still leave zero out by chance."
    )


def joined(names: Iterable[str], last: str = "and") -> str:
    """ "USA, CHN and IND"."""
    names = list(names)
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
