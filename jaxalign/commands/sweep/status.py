"""How far a sweep has come: a small file that the sweep keeps, and `--status`, which reads it.

Reading takes no lock and starts no device, so it can be done from another terminal at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxalign.commands.sweep.plan import Batch, Group
from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json
from jaxalign.core.progress import OnProgress, Progress, Speed
from jaxalign.runs import MetricsFile, Run, recorded_run

CELLS, STATUS = "cells.jsonl", "status.json"


class StatusBoard:
    """The progress of a whole sweep, on the screen and in `status.json`.

    Work is counted in GFLOP, a unit that cells of unlike groups have in common.
    """

    def __init__(self, run: Run, cells: int, gflop: float, on_progress: OnProgress) -> None:
        """Start with no work done.

        Args:
            run: The sweep's run, whose directory has the file.
            cells: Number of cells of the sweep.
            gflop: Work that is left, in 1e9 operations.
            on_progress: Called after each update.
        """
        self._run, self._cells, self._gflop = run, cells, gflop
        self._finished_gflop = 0.0  # of batches that are finished
        self._speed, self._on_progress = Speed(), on_progress

    def update(self, group: Group, batch: Batch, generation: int, done: int) -> None:
        """Show that a batch has reached `generation`, and that `done` cells are recorded."""
        gflop = self._finished_gflop + group.gflop(len(batch.entries), generation)
        fields = {
            "cells": f"{done}/{self._cells}",
            "running": batch.label,
            "generation": f"{generation}/{group.generations}",
        }
        total = max(1, round(self._gflop))
        self._on_progress(Progress("GFLOP", round(gflop), total, "GFLOP", fields=fields))
        self._speed.update(round(gflop))
        speed = self._speed.per_second()
        self._write(
            {
                "done": done,
                "cells": self._cells,
                "running": len(batch.cells),
                "batch": batch.label,
                "generation": generation,
                "generations": group.generations,
                "seconds_left": None if speed is None else (self._gflop - gflop) / speed,
            }
        )

    def finish_batch(self, group: Group, batch: Batch) -> None:
        """Count the work of a batch whose cells are all recorded."""
        self._finished_gflop += group.gflop(len(batch.entries))

    def finish(self) -> None:
        """Record that the sweep is finished."""
        self._write({"done": self._cells, "cells": self._cells, "running": 0, "seconds_left": 0})

    def _write(self, fields: dict[str, Any]) -> None:
        self._run.write(STATUS, fields | {"updated": time.time()})


def show_status(out: Path, last: int = 5, clock: Callable[[], float] = time.time) -> None:
    """Print how far the sweep in `out` has come, with its `last` finished cells.

    Raises:
        UserError: if there is no sweep.
    """
    if not (out / "config.json").exists():
        raise UserError(f"`out` {out}: there is no sweep")
    if "prompt_lengths" not in recorded_run(out)[1]:
        raise UserError(f"`out` {out}: holds a run of another program, not a sweep")
    rows = MetricsFile(out / CELLS, "cell").read()
    status = _read_status(out / STATUS)
    if status is None:
        print(f"sweep {out}: still loading and compiling; {len(rows)} cells done")
        return
    done, age = len(rows), max(0.0, clock() - status["updated"])
    running = min(status["running"], status["cells"] - done)
    queued = status["cells"] - done - running
    print(
        f"sweep {out}: {done} of {status['cells']} cells done, {running} running, {queued} queued"
    )
    if done == status["cells"] and not running:
        at = f"; see {out / 'result.json'}" if (out / "result.json").exists() else ""
        print(f"finished{at}")
    else:
        if running:
            print(f"  {status['batch']}, generation {status['generation']}/{status['generations']}")
        left = status["seconds_left"]
        left = "not known yet" if left is None else duration(max(0.0, left - age))
        print(f"  time left {left}; last updated {duration(age)} ago")
    reading = recorded_run(out)[1]["base_config.reading"]
    for row in rows[len(rows) - min(last, len(rows)) :]:
        print(f"  {row['id']}  loss {_number(row['loss'][reading])}")


def _read_status(path: Path) -> dict[str, Any] | None:
    """Return what the sweep last wrote; None before it has written anything.

    The file is replaced as a whole, so it can always be read, unless someone else has written it.
    """
    try:
        fields = parse_json(path.read_text("utf-8"))
        if {"updated", "cells", "running", "seconds_left"} <= fields.keys():
            return fields
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(f"{path}: not written by a sweep; delete it, and the sweep writes it anew")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1f}"


def duration(seconds: float) -> str:
    """Return a duration in words: 75 -> "1 min 15 s", 7300 -> "2 h 1 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
