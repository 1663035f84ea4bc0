"""A few trials, as many as a minute of CPU allows, and what the harness rests on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, LOST, NAMED, SURVIVED, _line_about
from tests.chaos.jobs import Ended, difference, outcome
from tests.chaos.moments import Counter, watching
from tests.chaos.report import table
from tests.chaos.trials import Trial, add_to_record, read_record

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_nothing_is_lost():
    """`ask` under seven faults. `python -m tests.chaos` tries the others, with new seeds."""
    faults = ("kill -9", "full disk", "read-only directory", "code in files", "odd directory name")
    settings = ("--trials", "7", "--seed", "11", "--commands", "ask", "--faults", *faults)
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", *settings, "SIGTERM", "cut file"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "| **0** |" in done.stdout  # the row of all faults: none lost


def test_moments_are_changes_of_files_in_the_run(tmp_path):
    out, seen = tmp_path / "run", Counter()
    with watching(out, seen):
        (tmp_path / "elsewhere").write_text("a")
        out.mkdir()
        (out / "a").write_text("a")
        (out / "a").read_text()
        (out / "a").rename(out / "b")
        (out / "b").unlink()
    assert seen.count == 4  # made, written, renamed, removed
    (out / "c").write_text("nobody counts any more")
    assert seen.count == 4


def test_the_chosen_moment_comes_once(tmp_path):
    done = []
    counter = Counter(2, lambda: done.append(counter.count))
    with watching(tmp_path, counter):
        for name in "abcd":
            (tmp_path / name).write_text("")
    assert done == [2]
    assert counter.reached
    assert not Counter(5).reached


def test_a_message_names_a_file_or_the_folder_it_is_in(tmp_path):
    step = tmp_path / "checkpoints" / "12"
    said = f"checkpoint {step} is not used: its file manifest.ocdbt is not what was saved"
    ended = Ended(0, said, "")
    assert _line_about(ended, step / "manifest.ocdbt", tmp_path) == said
    assert not _line_about(ended, tmp_path / "checkpoints" / "1" / "manifest", tmp_path)
    assert not _line_about(ended, tmp_path / "result.json", tmp_path)
    swapped = Ended(2, f"error: {tmp_path}/log.jsonl, line 1: not what was written there", "")
    assert _line_about(swapped, tmp_path / ".log.jsonl.sums", tmp_path)
    other = f"error: --resume {tmp_path}: --seed was 7 and is 0 now; give the old value, which "
    other = Ended(2, other + "config.json records, or another --out", "")
    assert _line_about(other, tmp_path / "config.json", tmp_path) == other.said
    ordinary = Ended(0, "4/6 fine-tune: training 12 models", "")
    assert not _line_about(ordinary, tmp_path / "training" / "3" / "state", tmp_path)


def test_one_line_is_one_line():
    assert Ended(2, "", "error: `out` is full\n").in_one_line
    assert not Ended(1, "", "error: `out` is full\n").in_one_line
    assert not Ended(2, "", "Traceback\nerror: `out` is full\n").in_one_line


def test_files_that_differ_are_named():
    assert difference({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == "a, b, c"
    assert difference({"a": "1"}, {"a": "1"}) == ""


def test_the_table_counts_what_is_on_record(tmp_path):
    record = tmp_path / "a" / "record.jsonl"
    for verdict in (SURVIVED, SURVIVED, NAMED, LOST):
        add_to_record(record, Trial("cut file", "ask", 1, verdict, "ö", "2026-11-30"))
    add_to_record(record, Trial("kill -9", "sweep", 2, SURVIVED, "", "2026-11-30"))
    rows = table(read_record(record)).splitlines()
    assert rows[2].startswith("| kill -9 |")
    assert rows[2].endswith("| 1 | 1 | 0 | 0 |")
    assert rows[3].endswith("| 4 | 2 | 1 | 1 |")
    assert rows[4] == "| **all** | | **5** | **3** | **1** | **1** |"
    assert len(rows) == 5
    assert "kill -9" in FAULTS


def test_results_are_compared_and_not_what_was_said_meanwhile(tmp_path):
    for name in ("result.json", "notes.log", "config.json", "checkpoints/3/state", "adapters/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert outcome(tmp_path).keys() == {"result.json", "adapters/a"}
