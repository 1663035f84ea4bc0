"""What a reader of a sweep must know before its numbers: `warnings` in `result.json`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.stats import result_warnings as warn


def warnings_of(
    rows: Sequence[Mapping[str, Any]], programs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the warnings of a sweep.

    Args:
        rows: The cells' records.
        programs: The content of `programs.json`, by a group's name.
    """
    items = max((len(row["held_out"]) for row in rows if row["held_out"]), default=None)
    return warn.warning_records(
        [
            *_simulated(programs),
            warn.no_option(_valid_mass(rows)),
            None if items is None else warn.few_items(items, "held-out survey"),
            _few_seeds(rows),
        ]
    )


def _simulated(programs: Mapping[str, Mapping[str, Any]]) -> list[warn.ResultWarning]:
    """Warn of the pocket model and of a simulated survey; both may be in one sweep."""
    found = []
    if any(facts.get("pocket") for facts in programs.values()):
        found.append(warn.ResultWarning("simulated", warn.POCKET))
    if any(f.get("simulated_held_out") and not f.get("pocket") for f in programs.values()):
        found.append(warn.ResultWarning("simulated", warn.SIMULATED_HELD_OUT))
    return found


def _valid_mass(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return by model and strategy the probability that a reply begins with an option."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        if row["valid_mass"] is not None:
            by_name.setdefault(f"{row['model']}, {row['strategy']}", []).append(row["valid_mass"])
    return {name: statistics.fmean(values) for name, values in by_name.items()}


def _few_seeds(rows: Sequence[Mapping[str, Any]]) -> warn.ResultWarning | None:
    """Warn where strategies are compared by one seed."""
    if len({row["seed"] for row in rows}) > 1 or len({row["strategy"] for row in rows}) < 2:
        return None
    return warn.ResultWarning(
        "few",
        "There is one seed, so that nothing shows whether another would have another winner: "
        "strategies are ranked and not told apart.",
    )
