"""The first lines of a report and of what a command prints: the warnings of a result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxalign.report.document import Note

_LEADS = {
    "limited": "A quick look.",
    "missing": "Not all of it.",
    "simulated": "Simulated.",
    "toy_guard": "Warning: a guard of toy tasks.",
    "no_option": "Warning: replies that name no option.",
    "one_option": "Warning: one option nearly everywhere.",
    "identical": "Warning: identical answers.",
    "few": "Warning: few data.",
    "unread": "Warning: replies that could not be read.",
}


def warning_notes(record: Mapping[str, Any]) -> tuple[Note, ...]:
    """Return the warnings of a result (`jaxalign.stats.result_warnings`) as notes, in order."""
    return tuple(
        Note(warning["text"], "warning", _LEADS[warning["kind"]]) for warning in record["warnings"]
    )
