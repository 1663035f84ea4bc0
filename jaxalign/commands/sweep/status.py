"""How a sweep is getting on: a small file that the sweep keeps, and `--status`, which reads it.

Reading takes no lock and starts no device, so it can be done from another terminal at any moment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxalign.commands.sweep.plan import Batch, Group
from jaxalign.core.errors import UserError
from jaxalign.runs import MetricsFile, Run, recorded_run
from jaxalign.runs.console import Progress

CELLS, STATUS = "cells.jsonl", "status.json"


class Board:
    """The live line on the screen and `status.json`, told after every dispatch.

    Work is counted in GFLOP, which cells of unlike groups have in common.
    """

    def __init__(self, run: Run, cells: int, gflop: float, quiet: bool) -> None:
        self._run, self._cells, self._gflop = run, cells, gflop
        self._work = 0.0  # GFLOP done of the batches that are over
        self.progress = Progress(
            max(1, round(gflop)), step="GFLOP", unit="GFLOP", quiet=quiet, every_seconds=10
        )

    def tell(self, group: Group, batch: Batch, generation: int, done: int) -> None:
        """`generation` of a batch is over, and `done` cells of the sweep are recorded."""
        work = self._work + group.gflop(len(batch.entries), generation)
        cells = {"done": done, "cells": self._cells}
        running = {
            "running": len(batch.cells), "batch": batch.shown,
            "generation": generation, "generations": group.config.generations,
        }  # fmt: skip
        shown = {
            "cells": f"{done}/{self._cells}",
            "running": batch.shown,
            "generation": f"{generation}/{group.config.generations}",
        }
        self.progress.update(round(work), shown)
        rate = self.progress.steps_per_second()
        left = None if rate is None else (self._gflop - work) / rate
        self._write(cells | running | {"seconds_left": left})

    def over(self, group: Group, batch: Batch) -> None:
        """All cells of a batch are recorded."""
        self._work += group.gflop(len(batch.entries))

    def finish(self) -> None:
        """All cells are recorded."""
        self._write({"done": self._cells, "cells": self._cells, "running": 0, "seconds_left": 0})

    def _write(self, fields: dict[str, Any]) -> None:
        self._run.write(STATUS, fields | {"updated": time.time()})


def show_status(out: Path, last: int = 5, clock: Callable[[], float] = time.time) -> None:
    """Print what `out` says about its sweep. UserError where there is none."""
    if not (out / "config.json").exists():
        raise UserError(f"--out {out}: no sweep has begun there")
    if "seeds" not in recorded_run(out)[1]:
        raise UserError(f"--out {out}: holds a run of another program, not a sweep")
    rows = MetricsFile(out / CELLS, "cell").read()
    status = _status(out / STATUS)
    if status is None:
        print(f"sweep {out}: no dispatch is over yet (loading and compiling); {len(rows)} cells")
        return
    done, age = len(rows), max(0.0, clock() - status["updated"])
    running = min(status["running"], status["cells"] - done)
    queued = status["cells"] - done - running
    print(
        f"sweep {out}: {done} of {status['cells']} cells done, {running} running, {queued} queued"
    )
    if (out / "result.json").exists() and done == status["cells"]:
        print(f"finished; see {out / 'result.json'}")
    else:
        if running:
            print(f"  {status['batch']}, generation {status['generation']}/{status['generations']}")
        left = status["seconds_left"]
        left = "unknown yet" if left is None else duration(max(0.0, left - age))
        print(f"  time left {left}; last sign of life {duration(age)} ago")
    settings = json.loads((out / "config.json").read_text("utf-8"))["settings"]
    for row in rows[-last:]:
        print(f"  {row['id']}  loss {_number(row['loss'][settings['study.reading']])}")


def _status(path: Path) -> dict[str, Any] | None:
    """What the sweep last wrote; None before it has. The file is replaced whole, so what is there
    can be read, unless someone else has written it."""
    try:
        fields = json.loads(path.read_text("utf-8"))
        if {"updated", "cells", "running", "seconds_left"} <= fields.keys():
            return fields
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError):
        pass
    raise UserError(f"{path}: not a sweep's; delete it, the next dispatch writes it anew")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1f}"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s", 7300 -> "2 h 1 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
