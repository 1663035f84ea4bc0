"""Measure how fast a World Values Survey file is read, against pandas on the same file.

    python -m experiments.bench.survey                      # 97,220 x 600, CSV and .sav
    python -m experiments.bench.survey --rows 2000 --columns 304 --repeats 3

The benchmark generates seeded files in a temporary folder (about 200 MB, deleted afterwards), reads
each with both tools in turn, every time in a fresh process, and prints medians. Seconds include the
import of the tool; memory is the peak of the process. The limits at full size on 2 cores are 20 s
and 1,500 MB. pandas is given the needed columns from the start. Takes a minute or two.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.bench.survey.synthetic_wvs import COLUMNS, ROWS, write_csv, write_sav
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file, write_json
from jaxalign.core.progress import OnProgress, Progress
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.surveys.formats.wvs import ITEMS

MOST_SECONDS, MOST_MB = 20.0, 1500.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Read generated survey files with jaxalign and with pandas; compare time and memory."""

    rows: int = ROWS
    """Number of respondents."""
    columns: int = COLUMNS
    """Number of columns, a multiple of 8: country, weight, questions, and others that are not
    read."""
    repeats: int = 3
    """Number of times that each tool reads each file; the median is reported."""
    seed: int = 0
    """Seed of the generated answers."""
    json: Path | None = None
    """File to which the figures are also written (JSON)."""

    def __post_init__(self) -> None:
        if self.rows < 64 or self.columns < 8 or self.columns % 8 or self.repeats < 1:
            raise UserError(
                f"rows={self.rows}, columns={self.columns}, repeats={self.repeats}; at least 64 "
                "rows, a multiple of 8 columns, and 1 repeat"
            )
        check_new_file(self.json, "json")


def run(config: Config) -> dict[str, Any]:
    """Generate the files, read them, and print and return the figures.

    Raises:
        UserError: If a reader fails, or the two tools read different shares.
    """
    tools = ["ours", "pandas"]
    if importlib.util.find_spec("pandas") is None:
        print("pandas is not installed: no comparison (pip install pandas)")
        tools = ["ours"]
    with tempfile.TemporaryDirectory(prefix="jaxalign-bench-") as folder:
        files = _generate(config, Path(folder))
        readings = _read(config, files, tools)
        sizes = {kind: path.stat().st_size / 1e6 for kind, path in files.items()}
    figures = {
        "rows": config.rows,
        "columns": config.columns,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "files": {kind: _figures(readings, kind, tools, sizes[kind]) for kind in files},
    }
    _print(config, figures)
    if config.json is not None:
        write_json(config.json, figures)
    return figures


def _generate(config: Config, folder: Path) -> dict[str, Path]:
    """Write the survey as CSV and .sav; return the paths by kind."""
    files = {"csv": folder / "wvs.csv", "sav": folder / "wvs.sav"}
    for kind, write in (("csv", write_csv), ("sav", write_sav)):
        task = f"writing {kind}: row"
        with progress_bars() as on_progress:
            on_progress(Progress(task, 0, config.rows, "rows"))

            def on_rows(done: int, task: str = task, show: OnProgress = on_progress) -> None:
                show(Progress(task, done, config.rows, "rows"))

            write(files[kind], config.rows, config.columns, config.seed, on_rows)
    return files


def _read(
    config: Config, files: dict[str, Path], tools: list[str]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Read all files; return the readings by file kind and tool.

    The tools take turns, so that neither gets the quieter machine.
    """
    turns = [(k, t) for _ in range(config.repeats) for k in files for t in tools]
    readings: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with progress_bars() as on_progress:
        on_progress(Progress("reading", 0, len(turns), "readings"))
        for done, (kind, tool) in enumerate(turns, 1):
            readings.setdefault((kind, tool), []).append(_child(tool, files[kind], config.columns))
            last = readings[kind, tool][-1]
            fields = {f"{kind} with {tool}": f"{last['seconds']:.1f} s"}
            on_progress(Progress("reading", done, len(turns), "readings", fields=fields))
    return readings


def _child(tool: str, path: Path, columns: int) -> dict[str, Any]:
    """Read a file in a new process; return the figures that the process printed."""
    most_items = min(len(ITEMS), columns - 2)
    most_items = most_items if columns >= 293 else min(most_items, 222)  # Q234A comes last
    command = [sys.executable, "-m", "experiments.bench.survey.reader", tool, str(path)]
    done = subprocess.run([*command, str(most_items)], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"reading {path.suffix} with {tool} failed: {last}")
    return json.loads(done.stdout)


def _figures(
    readings: dict[tuple[str, str], list[dict[str, Any]]], kind: str, tools: list[str], mb: float
) -> dict[str, Any]:
    """Return medians over the repeats, and pandas' figures divided by jaxalign's."""
    figures: dict[str, Any] = {"file_mb": mb}
    for tool in tools:
        rows = readings[kind, tool]
        names = ("seconds", "cpu_seconds", "peak_mb")
        figures[tool] = {name: statistics.median(row[name] for row in rows) for name in names}
        figures[tool]["all_seconds"] = [row["seconds"] for row in rows]
    if len(tools) == 2:
        ours, pandas = (readings[kind, tool][0] for tool in tools)
        # No speed without equal content.
        same = ours["cells"] == pandas["cells"]
        if not same or abs(ours["check"] - pandas["check"]) > 1e-6 * abs(pandas["check"]):
            raise UserError(f"the two tools read different shares from the {kind}: this is a bug")
        for name in ("seconds", "cpu_seconds", "peak_mb"):
            figures[f"ratio_{name}"] = figures["pandas"][name] / figures["ours"][name]
    return figures


def _print(config: Config, figures: dict[str, Any]) -> None:
    """Print the table of all files and tools."""
    rows = []
    for kind, row in figures["files"].items():
        for tool in (t for t in ("ours", "pandas") if t in row):
            ratio = [None, None] if tool == "ours" else [row["ratio_seconds"], row["ratio_peak_mb"]]
            numbers = [row[tool][name] for name in ("seconds", "cpu_seconds", "peak_mb")]
            rows.append([kind, "jaxalign" if tool == "ours" else tool, *numbers, *ratio])
    columns = ["file", "tool", "seconds", "CPU s", "peak MB", "times the seconds", "times the MB"]
    title = f"{config.rows:,} x {config.columns}, median of {config.repeats}"
    print_table(title, columns, rows)
    load = figures["load_average"]
    print(
        f"The load average was {load:.1f} on {figures['cores']} cores; above one per core, the "
        "seconds are too high."
    )


if __name__ == "__main__":
    main(run, Config)
