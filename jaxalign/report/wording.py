"""Numbers and findings in words, spelled and worded alike in every report."""

from __future__ import annotations

from collections.abc import Iterable

from jaxalign.report.document import MISSING, Cell, Estimate, is_number

# What is said of a difference whose interval contains zero.
NO_DIFFERENCE = "no clear difference"
# What is said of a difference that is zero whatever is resampled: the answers are the same ones.
IDENTICAL = "identical"
# What every verdict reads where the answers under personas do not follow people's: a difference, or
# its absence, then says nothing about people.
NO_SIGNAL = "instrument without signal on this model"
MINUS = "\u2212"  # a hyphen would break at the end of a line and is too short


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """Return 1234.56 as "1,234.6", and None, NaN or an infinity as a dash; never "−0.0"."""
    if not is_number(value):
        return MISSING
    text = f"{value:{'+' if signed else ''},.{digits}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def bounds(estimate: Estimate, digits: int = 1, signed: bool = False) -> str:
    """Return an interval as "68.2 to 73.9"; "" if there is none."""
    if not estimate.has_interval:
        return ""
    return f"{number(estimate.low, digits, signed)} to {number(estimate.high, digits, signed)}"


def with_bounds(estimate: Estimate | None, digits: int = 1, signed: bool = False) -> str:
    """Return a number with its interval as "71.1 (68.2 to 73.9)"."""
    if estimate is None:
        return MISSING
    span = bounds(estimate, digits, signed)
    return number(estimate.mean, digits, signed) + (f" ({span})" if span else "")


def cell_text(cell: Cell, digits: int, signed: bool = False) -> str:
    """Return a cell of a table as plain text."""
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
    """Return whether the interval of a difference contains zero; None without an interval."""
    if difference is None or not difference.has_interval:
        return None
    return difference.low <= 0 <= difference.high


def is_identical(difference: Estimate | None) -> bool:
    """Return whether a difference is 0 and its interval has no width: the answers are the same."""
    if difference is None or not difference.has_interval:
        return False
    return difference.mean == difference.low == difference.high == 0


def verdict(
    difference: Estimate | None, above: str = "higher", below: str = "lower", signal: bool = True
) -> str:
    """Return what may be said of a paired difference.

    Args:
        difference: The difference with its interval.
        above: What a positive difference means.
        below: What a negative one means.
        signal: Whether the instrument measures anything on this model (the validity gate); if not,
            that is said in place of any verdict.
    """
    if is_identical(difference):
        return IDENTICAL
    if not signal and difference is not None and difference.known:
        return NO_SIGNAL
    inside = is_inside(difference)
    if inside is None:
        return "no interval: nothing can be said" if difference and difference.known else MISSING
    if inside:
        return f"{NO_DIFFERENCE} (the interval contains zero)"
    return above if difference.mean > 0 else below


def tally(
    differences: Iterable[Estimate | None], above: str, below: str, signal: bool = True
) -> str:
    """Return "higher in 2, lower in 0, no clear difference in 2 (of 4)"; `signal` as above."""
    measured = [d for d in differences if is_inside(d) is not None]
    if not measured:
        return "not measured"
    if not signal:
        return NO_SIGNAL
    same = sum(map(is_identical, measured))
    inside = sum(bool(is_inside(d)) for d in measured) - same
    up = sum(d.mean > 0 for d in measured if not is_inside(d))
    down = len(measured) - inside - same - up
    identical = f", {IDENTICAL} in {same}" if same else ""
    return (
        f"{above} in {up}, {below} in {down}, {NO_DIFFERENCE} in {inside}{identical} "
        f"(of {len(measured)})"
    )


def countries(count: int) -> str:
    """Return "1 country", "3 countries"."""
    return f"{count} {'country' if count == 1 else 'countries'}"


def groups_note(names: Iterable[str]) -> str:
    """Return the sentence that a report of groups within countries needs, after a space; else "".

    Args:
        names: What is compared, such as USA, or USA:female:30-49.
    """
    groups = [name for name in names if ":" in name]
    return f" What is called a country here is a group within one: {groups[0]}." if groups else ""


def chance_of_many(count: int) -> str:
    """Return a warning about many intervals at once; "" for a single one."""
    if count < 2:
        return ""
    return (
        f"Even if there were no difference at all, about {number(count / 20, 1)} of {count} "
        "intervals at 95 % would exclude zero by chance."
    )


def joined(names: Iterable[str], last: str = "and") -> str:
    """Return "USA, CHN and IND"."""
    names = list(names)
    return f" {last} ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
