"""A 1,000-cell sweep of the pocket Llama, killed 20 times at random: nothing lost, nothing twice.

The attempts are forks of a process that has the modules imported but has started no device, so
that twenty starts do not cost twenty imports; the first and the last are the real command. Kills
are spread over the sweep's whole life: some while it starts, most while it searches and writes, the
last while it reports.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CELLS, KILLS = 1000, 20
FILE = """
countries = ["USA", "CHN", "IND", "SAU"]
seeds = {seeds}
prompt_lengths = [2]
generations = 1
test_presentations = []
[[strategies]]
name = "de4"
population = 4
"""
ROOT = Path(__file__).parents[2]


def arguments(file: Path, out: Path) -> list[str]:
    return [str(file), "--out", str(out), "--cells-per-program", "20"]


def command(file: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *arguments(file, out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def attempt(file: str, out: str) -> None:
    """In a fork: what the command does, after its imports."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the process ends with it)
    from jaxalign.commands.sweep.command import SweepSettings, sweep
    from jaxalign.runs.console import main

    main(sweep, SweepSettings, arguments(Path(file), Path(out)))


@pytest.fixture
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["jaxalign.commands.sweep.command", "transformers.models.auto.tokenization_auto", __name__]
    )
    return context


def recorded(out: Path) -> int:
    """Cells on record, a torn line left out."""
    path = out / "cells.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def cells_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "cells.jsonl").read_text("utf-8").splitlines()]


def moments(chance: random.Random) -> list[tuple[int, float]]:
    """When each attempt is killed: so many cells are on record, and so many seconds later."""
    found = [(cells, chance.uniform(0.0, 0.5)) for cells in sorted(chance.sample(range(CELLS), 14))]
    for _ in range(5):  # while it starts
        found.insert(chance.randrange(len(found) + 1), (0, chance.uniform(0.0, 4.0)))
    return [*found, (CELLS, chance.uniform(0.0, 0.3))]


def wait_for(out: Path, cells: int, seconds: float, alive) -> None:
    while recorded(out) < cells and alive():
        time.sleep(0.01)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and alive():
        time.sleep(0.005)


@pytest.mark.long
def test_a_thousand_cells_killed_twenty_times(forks, tmp_path):
    file, out, kills = tmp_path / "sweep.toml", tmp_path / "killed", 0
    file.write_text(FILE.format(seeds=CELLS // 4))
    seed = random.randrange(2**32)
    print(f"moments of the kills: random.Random({seed})")
    chance = random.Random(seed)
    queue = moments(chance)
    while kills < KILLS:
        # An attempt may be over before its moment: then one that only has to report again.
        cells, seconds = queue.pop(0) if queue else (CELLS, chance.uniform(0.0, 0.3))
        kills += killed(forks if kills else None, file, out, cells, seconds)
    process = command(file, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors

    rows = cells_of(out)
    assert [row["cell"] for row in rows] == list(range(CELLS))
    assert len({row["id"] for row in rows}) == CELLS
    assert json.loads((out / "result.json").read_text("utf-8"))["cells"] == CELLS
    assert not (out / "checkpoints").exists()

    sample = chance.sample(range(CELLS // 4), 5)
    unbroken = {row["id"]: row for row in unbroken_rows(tmp_path, sample)}
    found = {row["id"]: row for row in rows if row["seed"] in sample}
    assert len(unbroken) == 20
    assert found == {name: row | {"cell": found[name]["cell"]} for name, row in unbroken.items()}


def killed(forks, file: Path, out: Path, cells: int, seconds: float) -> bool:
    """Start, wait for the moment, kill. False if it was over before."""
    if forks is None:
        process = command(file, out)
        wait_for(out, cells, seconds, lambda: process.poll() is None)
        process.kill()
        process.communicate()
        return process.returncode == -signal.SIGKILL
    process = forks.Process(target=attempt, args=(str(file), str(out)))
    process.start()
    wait_for(out, cells, seconds, process.is_alive)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == -signal.SIGKILL


def unbroken_rows(tmp_path: Path, seeds: list[int]) -> list[dict]:
    """The records of a sweep of these seeds alone, never stopped."""
    file, out = tmp_path / "sample.toml", tmp_path / "sample"
    file.write_text(FILE.format(seeds=seeds))
    process = command(file, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return cells_of(out)
