"""Sweeps in shards: who runs which cell, and what is made of the records. Nothing is computed here;
`tests/end_to_end/test_sweep_shards.py` runs the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxalign.commands.sweep.command as module
from jaxalign.commands.sweep.command import SweepSettings, sweep
from jaxalign.commands.sweep.file import read_sweep
from jaxalign.commands.sweep.plan import make_cells
from jaxalign.commands.sweep.programs import PROGRAMS
from jaxalign.commands.sweep.shards import Shard, cut, shard_facts
from jaxalign.commands.sweep.status import CELLS
from jaxalign.core.errors import UserError
from jaxalign.core.files import MetricsFile, write_json
from jaxalign.runs import Run
from tests.commands.test_sweep import made_up

FILE = 'countries = ["USA", "CHN"]\nseeds = 3\nprompt_lengths = [4]\n[[strategies]]\nname = "de"\n'
COUNT = 6


# --- who runs what ----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 10**15), min_size=1, max_size=60), st.integers(1, 70))
def test_parts_lie_side_by_side_and_cost_about_the_same(costs, count):
    parts = cut(costs, count)
    assert len(parts) == len(costs)
    assert parts == sorted(parts)
    assert set(parts) <= set(range(count))
    for part in set(parts):
        load = sum(cost for cost, own in zip(costs, parts, strict=True) if own == part)
        assert load * count <= sum(costs) + max(costs) * count


def test_equal_cells_are_shared_out_evenly():
    assert cut([7] * 6, 3) == [0, 0, 1, 1, 2, 2]
    assert cut([1, 1, 1, 1, 4], 2) == [0, 0, 0, 0, 1]
    assert cut([5], 4) == [2]


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b", "1/0", "-1/3", "1/2/3", "1 / 2", "²/3"])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UserError, match=r"`shard` .*: give I/N"):
        Shard.parse(text)


# --- what is made of the records --------------------------------------------------------------


@pytest.fixture
def sweep_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(module, "write_plot", lambda path, result: path.write_bytes(b"plot"))
    path = tmp_path / "sweep.toml"
    path.write_text(FILE)
    return path


def record(file: Path, out: Path, shard: str, done: int = COUNT, **changes) -> None:
    """Write what a shard leaves: the records of its first `done` cells."""
    described, parsed = read_sweep(file), Shard.parse(shard)
    (cells,) = make_cells(described)
    parts = cut([1] * len(cells), parsed.count)
    own = [cell for cell in cells if parts[cell.number] == parsed.index - 1]
    facts = {"pocket.model_sha256": changes.pop("model", "abc")} | shard_facts(own)
    with Run.create(parsed.folder(out), described, facts, resume=True) as run:
        file = MetricsFile(run.out / CELLS, "cell")
        for cell in own[:done]:
            row = made_up(cell.country, cell.seed, 10.0 + cell.number) | {"model": "pocket"}
            file.append({"cell": cell.number, "id": cell.id, "fitness": 1.0} | row | changes)
        write_json(run.out / PROGRAMS, {"pocket-de-m4": {"chunk": 4, "attention": "xla"}})


def collect(file: Path, out: Path) -> dict:
    sweep(SweepSettings(file, out, collect=True))
    return json.loads((out / "result.json").read_text())


def tables(out: Path) -> list[bytes]:
    names = ("cells.jsonl", "result.json", "programs.json")
    return [(out / name).read_bytes() for name in names]


def test_the_table_is_the_same_however_many_shards(sweep_file, tmp_path):
    found = []
    for count in (1, 2, 4, 9):
        out = tmp_path / str(count)
        for index in range(count, 0, -1):
            record(sweep_file, out, f"{index}/{count}")
        result = collect(sweep_file, out)
        assert (result["cells"], "missing" in result) == (COUNT, False)
        found.append(tables(out))
        collect(sweep_file, out)  # again, over what is there
        assert tables(out) == found[-1]
    assert all(table == found[0] for table in found)


def test_what_is_missing_is_named_and_the_rest_is_shown(sweep_file, tmp_path, capsys):
    record(sweep_file, tmp_path / "a", "1/3")
    record(sweep_file, tmp_path / "a", "2/3", done=1)
    with pytest.raises(UserError) as raised:
        collect(sweep_file, tmp_path / "a")
    said = "3 of 6 cells are missing: 1 of the 2 cells of shard 2/3; 2 of shards that were never "
    assert str(raised.value).startswith(said + "started (3/3). The table is of the others; the ")
    assert "pocket-de-m4-CHN-s1, pocket-de-m4-USA-s2, pocket-de-m4-CHN-s2" in str(raised.value)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (result["cells"], len(result["missing"])) == (3, 3)
    assert "Loss (" in capsys.readouterr().out
    (tmp_path / "a" / "shards" / "2-of-3" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not what was written"):
        collect(sweep_file, tmp_path / "a")
    with pytest.raises(UserError, match="holds no shards to collect"):
        collect(sweep_file, tmp_path / "b")


def test_cells_that_ran_twice(sweep_file, tmp_path, capsys):
    for shard in ("1/2", "2/2", "3/3"):
        record(sweep_file, tmp_path / "a", shard)
    collect(sweep_file, tmp_path / "a")
    said = "note: run by more than one shard (2/2, 3/3), with the same results: pocket-de-m4-USA-s2"
    assert said in " ".join(capsys.readouterr().out.split())
    before = tables(tmp_path / "a")
    record(sweep_file, tmp_path / "a", "4/6", fitness=0.5)
    with pytest.raises(UserError) as raised:
        collect(sweep_file, tmp_path / "a")
    for words in ("shards/2-of-2", "shards/4-of-6", "CHN-s1", "fitness (1.0 and 0.5)"):
        assert words in str(raised.value)
    assert tables(tmp_path / "a") == before


def test_shards_of_unlike_sweeps_are_refused(sweep_file, tmp_path):
    record(sweep_file, tmp_path / "a", "1/2")
    record(sweep_file, tmp_path / "a", "2/2", model="other")
    with pytest.raises(UserError, match="model_sha256 is 'abc' in the one and 'other'"):
        collect(sweep_file, tmp_path / "a")
    sweep_file.write_text(FILE.replace("seeds = 3", "seeds = 4"))
    for settings in ({"collect": True}, {"shard": "2/2"}, {"shard": "3/9"}):
        with pytest.raises(UserError, match=r"seeds was \[0, 1, 2\] when the sweep in"):
            sweep(SweepSettings(sweep_file, tmp_path / "a", **settings))


def test_a_whole_sweep_and_shards_do_not_mix(sweep_file, tmp_path):
    record(sweep_file, tmp_path / "a", "1/2")
    with pytest.raises(UserError, match="holds the shards of a sweep; go on with `shard`"):
        sweep(SweepSettings(sweep_file, tmp_path / "a"))
    Run.create(tmp_path / "b", read_sweep(sweep_file), {}).close()
    with pytest.raises(UserError, match="holds a run that is not in shards"):
        sweep(SweepSettings(sweep_file, tmp_path / "b", shard="1/2"))
    with pytest.raises(UserError, match="give neither `shard` nor `status`"):
        sweep(SweepSettings(sweep_file, tmp_path / "b", shard="1/2", collect=True))


def test_the_status_is_that_of_all_shards(sweep_file, tmp_path, capsys):
    record(sweep_file, tmp_path / "a", "1/3")
    record(sweep_file, tmp_path / "a", "3/3", done=1)
    sweep(SweepSettings(sweep_file, tmp_path / "a", status=True))
    said = capsys.readouterr().out
    assert "shards/1-of-3: still loading and compiling; 2 cells done" in said
    assert said.splitlines()[-1] == "together 3 cells; shards never started: 2/3"
