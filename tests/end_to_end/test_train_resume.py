"""A run that is killed with `kill -9` and resumed ends with the bits of an unbroken one."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.support.processes import start
from tests.support.train_job import SAVE_EVERY, STEPS

JOB = str(Path(__file__).parents[1] / "support" / "train_job.py")


def run_until(out: Path, step: int | None) -> int:
    """Kill the run after `step` is logged (None: let it end); return the step it started after."""
    (process,) = start([JOB, str(out)], processes=1, devices=1)
    said = []
    with process:
        for line in process.stdout:
            said.append(line)
            if step is not None and line.startswith("step") and int(line.split()[1]) >= step:
                os.kill(process.pid, signal.SIGKILL)
                break
        said += process.stdout.readlines()
    assert (process.returncode == 0) == (step is None), "".join(said)
    (began,) = (int(line.split()[1]) for line in said if line.startswith("begin"))
    return began


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    assert run_until(out, None) == 0
    return out


@pytest.mark.long
def test_killed_twice_and_resumed_ends_with_the_same_bits(unbroken, tmp_path):
    assert run_until(tmp_path, 8) == 0
    second = run_until(tmp_path, 20)
    third = run_until(tmp_path, None)
    assert 0 < second < third < STEPS
    assert second % SAVE_EVERY == third % SAVE_EVERY == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    with np.load(tmp_path / "final.npz") as mine, np.load(unbroken / "final.npz") as theirs:
        assert mine.files == theirs.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.long
def test_a_finished_run_is_left_as_it_is(unbroken):
    before = (unbroken / "metrics.jsonl").read_bytes()
    assert run_until(unbroken, None) == STEPS
    assert (unbroken / "metrics.jsonl").read_bytes() == before
