"""How fast a World Values Survey file is read, beside pandas on the same file in the same run.

    python -m experiments.bench.survey                      # 97,220 x 600, CSV and .sav
    python -m experiments.bench.survey --rows 2000 --columns 304 --repeats 3

Generates seeded files in a temporary folder (about 200 MB, deleted afterwards), reads each with
both tools in turn, every time in a fresh process, and prints medians. Seconds include importing
the tool; memory is the process's peak. Limits at full size on 2 cores: 20 s and 1,500 MB, and
faster and smaller than pandas, which is given the columns needed from the start. A minute or two.
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
from jaxalign.runs.console import Progress, main, print_table
from jaxalign.surveys.formats.wvs import ITEMS

MOST_SECONDS, MOST_MB = 20.0, 1500.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Read generated survey files with this package and with pandas; compare time and memory."""

    rows: int = ROWS
    """Respondents."""
    columns: int = COLUMNS
    """Columns, a multiple of 8: country, weight, questions, and others that are not read."""
    repeats: int = 3
    """Readings of each file with each tool; the median counts."""
    seed: int = 0
    json: Path | None = None
    """Also write the figures to this file."""

    def __post_init__(self) -> None:
        if self.rows < 64 or self.columns < 8 or self.columns % 8 or self.repeats < 1:
            raise UserError(
                f"rows={self.rows}, columns={self.columns}, repeats={self.repeats}; at least 64 "
                "rows, a multiple of 8 columns, and 1 repeat"
            )
        check_new_file(self.json, "json")


def run(config: Config) -> dict[str, Any]:
    """Generate, read, print and return the figures."""
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
    files = {"csv": folder / "wvs.csv", "sav": folder / "wvs.sav"}
    for kind, write in (("csv", write_csv), ("sav", write_sav)):
        with Progress(config.rows, step=f"writing {kind}: row", unit="rows") as bar:
            write(files[kind], config.rows, config.columns, config.seed, bar.update)
    return files


def _read(
    config: Config, files: dict[str, Path], tools: list[str]
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Readings by kind and tool. The tools take turns, so that neither has the quieter machine."""
    turns = [(k, t) for _ in range(config.repeats) for k in files for t in tools]
    readings: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with Progress(len(turns), step="reading", unit="readings") as bar:
        for done, (kind, tool) in enumerate(turns, 1):
            readings.setdefault((kind, tool), []).append(_child(tool, files[kind], config.columns))
            last = readings[kind, tool][-1]
            bar.update(done, {f"{kind} with {tool}": f"{last['seconds']:.1f} s"})
    return readings


def _child(tool: str, path: Path, columns: int) -> dict[str, Any]:
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
    """Medians over the repeats, and how many times as much pandas takes."""
    figures: dict[str, Any] = {"file_mb": mb}
    for tool in tools:
        rows = readings[kind, tool]
        names = ("seconds", "cpu_seconds", "peak_mb")
        figures[tool] = {name: statistics.median(row[name] for row in rows) for name in names}
        figures[tool]["all_seconds"] = [row["seconds"] for row in rows]
    if len(tools) == 2:
        ours, pandas = (readings[kind, tool][0] for tool in tools)
        same = ours["cells"] == pandas["cells"]
        if not same or abs(ours["check"] - pandas["check"]) > 1e-6 * abs(pandas["check"]):
            raise UserError(f"the two tools read different shares from the {kind}; a bug")
        for name in ("seconds", "cpu_seconds", "peak_mb"):
            figures[f"ratio_{name}"] = figures["pandas"][name] / figures["ours"][name]
    return figures


def _print(config: Config, figures: dict[str, Any]) -> None:
    rows = []
    for kind, row in figures["files"].items():
        for tool in (t for t in ("ours", "pandas") if t in row):
            ratio = [None, None] if tool == "ours" else [row["ratio_seconds"], row["ratio_peak_mb"]]
            numbers = [row[tool][name] for name in ("seconds", "cpu_seconds", "peak_mb")]
            rows.append([kind, tool, *numbers, *ratio])
    columns = ["file", "tool", "seconds", "CPU s", "peak MB", "x our seconds", "x our MB"]
    title = f"{config.rows:,} x {config.columns}, median of {config.repeats}"
    print_table(title, columns, rows)
    load = figures["load_average"]
    print(f"load average {load:.1f} on {figures['cores']} cores: above 1 a core, seconds are high")


if __name__ == "__main__":
    main(run, Config)
