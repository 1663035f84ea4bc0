"""Trials one after the other, each with its seed, and the record of how they ended."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from tests.chaos.bench import Bench
from tests.chaos.faults import FAULTS, LOST, possible

COMMANDS = ("soft-prompt", "culturespa", "ask", "fine-tune", "sweep")


@dataclasses.dataclass(frozen=True)
class Trial:
    """How one trial ended; a line of the record.

    Attributes:
        fault: What was done; a key of `FAULTS`.
        command: Name of the sub-command.
        seed: Decides everything that is left to chance.
        verdict: "survived", "named", "lost", or empty where the run held nothing to do it to.
        detail: What exactly was done, and what was said.
        date: The day.
    """

    fault: str
    command: str
    seed: int
    verdict: str
    detail: str
    date: str


def run_trial(bench: Bench, fault: str, command: str, seed: int) -> Trial:
    """Run one trial. Its folder stays if the run was lost."""
    before = set(bench.folder.iterdir())
    random_source = random.Random(f"{fault} {command} {seed}")
    found = FAULTS[fault](bench, bench.jobs[command], random_source)
    if found.verdict != LOST:
        for folder in set(bench.folder.iterdir()) - before:
            if folder.name.startswith("trial-"):
                shutil.rmtree(folder, ignore_errors=True)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return Trial(fault, command, seed, found.verdict, found.detail, date)


def trials(
    bench: Bench,
    faults: Sequence[str],
    commands: Sequence[str],
    earlier: Sequence[Trial],
    source: random.Random,
) -> Iterator[Trial]:
    """Run trials without end, those pairs of a fault and a command first that were tried least."""
    faults = [fault for fault in faults if possible(fault)]
    tried = collections.Counter((t.fault, t.command) for t in earlier)
    pairs = [(fault, command) for fault in faults for command in commands]
    while pairs:
        by_fault = collections.Counter()
        for (fault, _), count in tried.items():
            by_fault[fault] += count
        pair = min(pairs, key=lambda p: (tried[p], by_fault[p[0]], source.random()))
        trial = run_trial(bench, *pair, source.randrange(2**32))
        tried[pair] += 1
        if trial.verdict:
            yield trial


def read_record(path: Path) -> list[Trial]:
    """Return the trials on record."""
    if not path.exists():
        return []
    return [Trial(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def add_to_record(path: Path, trial: Trial) -> None:
    """Write a trial to the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(trial), ensure_ascii=False) + "\n")


def prepare() -> None:
    """Use one CPU device, and a compilation cache that all runs and processes share."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    jax.config.update("jax_num_cpu_devices", 1)
