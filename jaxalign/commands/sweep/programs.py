"""How a sweep's cells are computed, by group: the file `programs.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxalign.answering.kernel_choice import KERNEL_OPTIONS
from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json
from jaxalign.core.seals import check_sealed

PROGRAMS = "programs.json"
_ANEW = (
    "delete it to choose anew (cells to come may differ in their last bits), or give another `out`"
)


def read_programs(out: Path) -> dict[str, dict[str, Any]]:
    """Return what `programs.json` records, by group; {} where there is none yet.

    A continued sweep keeps the chunk and the kernel, because the last bits depend on them, although
    what fits or is fastest may have changed since it began.

    Raises:
        UserError: The file is damaged, or something else.
    """
    path = out / PROGRAMS
    check_sealed(path, _ANEW)
    if not path.exists():
        return {}
    try:
        programs = parse_json(path.read_text("utf-8"))
        if all(
            type(program["chunk"]) is int and program["attention"] in KERNEL_OPTIONS
            for program in programs.values()
        ):
            return programs
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{path}: not written by a sweep; {_ANEW}")
