"""Sweeps: the file, the plan, bits that do not depend on who runs beside a cell, and nothing lost
or repeated wherever a sweep is stopped. `test_sweep_kill.py` kills the real command."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxalign.commands.sweep.command as module
import jaxalign.runs.run
from jaxalign.commands.report import write_report_of
from jaxalign.commands.reports.sweep_words import ranking_words
from jaxalign.commands.soft_prompt import tune_prompts
from jaxalign.commands.sweep import group as sweep_group
from jaxalign.commands.sweep.command import (
    SweepSettings,
    is_unfinished,
    prompt_file,
    sweep,
)
from jaxalign.commands.sweep.file import Sweep, read_sweep
from jaxalign.commands.sweep.picture import write_plot
from jaxalign.commands.sweep.plan import Batch, Cell, make_batches, make_plan, model_names
from jaxalign.commands.sweep.ranking import make_rankings
from jaxalign.commands.sweep.result import make_result
from jaxalign.commands.sweep.status import show_status
from jaxalign.commands.sweep.tables import show_result
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_text
from jaxalign.core.seals import sealed
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import load_model
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.soft_prompt.search import build_search, choose_execution
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runs import MetricsFile, Run
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.sharding import make_mesh

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "experiments" / "sweep" / "example.toml"
TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)
FILE = """
countries = ["USA", "CHN"]
seeds = [3, 8]
models = [{model!r}]
prompt_lengths = [2]
generations = 3
save_every = 1
dtype = "float32"
[[strategies]]
name = "de"
population = 4
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A sweep of four cells of a tiny model that has the pocket Llama's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
    path = folder.parent / "sweep.toml"
    path.write_text(FILE.format(model=str(folder)))
    return path


def run(file: Path, out: Path, **settings) -> None:
    sweep(SweepSettings(file, out, quiet=True, **settings))


def outcome(out: Path) -> dict[str, bytes]:
    """All that a sweep decides, by file."""
    prompts = sorted((out / "prompts").glob("*"))
    return {p.name: p.read_bytes() for p in (out / "cells.jsonl", out / "result.json", *prompts)}


def cells_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "cells.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def unbroken(file, tmp_path_factory) -> Path:
    """The four cells in two batches of two, never stopped."""
    out = tmp_path_factory.mktemp("sweeps") / "unbroken"
    run(file, out, cells_per_program=2, save_prompts=True)
    return out


# --- the file ---------------------------------------------------------------------------------


def test_the_example_is_read():
    found = read_sweep(EXAMPLE)
    assert found.seeds == (0, 1)
    assert [named.name for named in found.strategies] == ["de", "snes"]
    settings = found.settings("pocket", found.strategies[0].strategy, 4)
    assert (settings.generations, settings.prompt.length) == (20, 4)
    assert settings.strategy.population == 16
    assert settings.model is None


def test_what_is_left_out_is_soft_prompts_default(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text('seeds = 3\n[[strategies]]\nalgorithm = "SNES"\noptions = {std_init = 1}\n')
    found, default = read_sweep(path), Settings()
    assert found.seeds == (0, 1, 2)
    assert (found.countries, found.models) == (default.countries, ("pocket",))
    assert (found.prompt_lengths, found.base_config.penalty) == ((default.prompt.length,), 0.0)
    strategy = Strategy("SNES", default.strategy.population, options=(("std_init", 1.0),))
    assert found.strategies[0].strategy == strategy


def test_how_questions_are_shown_and_read_is_set_as_in_the_main_job(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(
        'presentations = ["A", "orders"]\ntest_presentations = []\nreading = "sampled"\n'
        'replies = 2\nmas_weight = 25\nheld_out = "mine.csv"\n'
    )
    found = read_sweep(path).base_config
    assert (found.presentations, found.test_presentations) == (("A", "orders"), ())
    assert (found.reading, found.replies, found.mas_weight) == ("sampled", 2, 25)
    assert found.held_out == Path("mine.csv")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seads = 3", "unknown key seads; did you mean seeds?"),
        ("resume = true", "unknown key resume; did you mean"),
        ("qqq = 1", "known are anchor"),
        ("[prompt]\nspred = 1", "unknown key prompt.spred; did you mean spread?"),
        ("[prompt]\nlength = 8", "give them as prompt_lengths"),
        ("[prompt]\nspread = -1", "`spread` -1.0 must be a positive number"),
        ("[[strategies]]\npopulaton = 8", "strategies[0].populaton; did you mean population?"),
        ("[[strategies]]\npopulation = 8.5", "strategies[0].population = 8.5 must be a whole"),
        ("[[strategies]]\nname = 'a/b'", "strategies[0].name = 'a/b'"),
        ("[[strategies]]\n[[strategies]]", "'DifferentialEvolution' is there more than once"),
        ("[strategies]", "[[strategies]]"),
        ("strategies = []", "strategies = []: give at least one"),
        ("[[strategies]]\noptions = [[]]", "strategies[0].options = [[]] must be a table"),
        ("countries = {USA = 1}", "countries = {'USA': 1} must be a list"),
        ("seeds = [1, 1]", "seeds: 1 is there more than once"),
        ("seeds = []", "seeds: give at least one"),
        ("seeds = 0", "seeds: give at least one"),
        ("seeds = [-1]", "seeds: -1 must lie between"),
        ("seeds = [true]", "seeds[0] = True must be a whole number"),
        ("countries = 'USA'", "countries = 'USA' must be a list"),
        ("reading = 'likely'", "choose one of 'expected', 'most_likely', 'sampled'"),
        ("presentations = 'A'", "presentations = 'A' must be a list"),
        ("penalty = nan", "penalty = nan must be a number"),
        ("generations = ", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text, said, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        run(path, tmp_path / "out")
    assert str(path) in str(refused.value)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("countries = ['USB']", "did you mean USA"),
        ("models = ['/nowhere/llama']", "no such folder or file"),
        ("models = ['/a/llama', '/b/llama']", "would both be called 'llama'"),
        ("generations = 0", "must be at least 1"),
        ("[[strategies]]\npopulation = 3", "`population` 3 is too small"),
        ("[[strategies]]\nalgorithm = 'SNES'\noptions = {sdt = 1}", "SNES has no option 'sdt'"),
        ("prompt_lengths = [0]", "`length` 0"),
        ("prompt_lengths = [8, 5]\nprompt.projection = 'principal'", "tokens of `length`"),
        (
            "prompt_lengths = [8]\nprompt.projection = 'random'\nprompt.projection_dims = 2000",
            "`projection_dims` 2000 is not below",
        ),
    ],
)
def test_impossible_cells_are_refused_before_anything_is_written(text, said, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        run(path, tmp_path / "out")
    assert str(path) in str(refused.value)
    assert said in str(refused.value)
    assert not (tmp_path / "out").exists()


# --- the plan ---------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 60))
def test_batches_hold_every_cell_once_and_are_of_one_size(countries, seeds, most):
    countries = ("USA", "CHN", "IND", "SAU", "DEU", "GBR")[:countries]
    described = Sweep(countries, tuple(range(0, 2 * seeds, 2)), (), (), (), None)
    entries = [(c, s) for s in described.seeds for c in described.countries]
    cells = [Cell(i, "g", *entry) for i, entry in enumerate(entries)]
    batches = make_batches("g", cells, most, described)
    assert [cell for batch in batches for cell in batch.cells] == cells
    assert len({len(batch.entries) for batch in batches}) == 1
    assert len(batches) == -(-len(cells) // most)
    spare = [entry for b in batches for entry in b.entries[len(b.cells) :]]
    assert not set(spare) & set(entries)
    assert len(set(spare)) == len(spare) < len(batches)  # no more than one a batch


@pytest.mark.long
def test_names_are_stable_and_fit_for_files(file):
    groups = make_plan(read_sweep(file), 3)
    ids = [cell.id for group in groups for batch in group.batches for cell in batch.cells]
    assert ids == [
        "tiny-de-m2-USA-s3",
        "tiny-de-m2-CHN-s3",
        "tiny-de-m2-USA-s8",
        "tiny-de-m2-CHN-s8",
    ]
    assert model_names(["pocket", "/a b/Llama 3: 8B/"])["/a b/Llama 3: 8B/"] == "Llama_3_8B"


# --- what a cell gives ------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("together", [1, 3, 4])
def test_a_cell_gives_the_same_bits_whoever_runs_beside_it(file, unbroken, tmp_path, together):
    """Alone; in batches one of which is filled up; all in one."""
    run(file, tmp_path, cells_per_program=together, save_prompts=True)
    assert outcome(tmp_path) == outcome(unbroken)


@pytest.mark.long
def test_a_cell_is_a_soft_prompt_search(file, unbroken):
    """The same best fitness, to the bit, and the same prompt as the main job's."""
    settings = dataclasses.replace(make_plan(read_sweep(file), 2)[0].problem.settings, seeds=(8,))
    problem, mesh = read_problem(settings), make_mesh()
    lm = load_model(problem.model, mesh=mesh)
    search = build_search(problem, lm, choose_execution(problem, mesh, {}))
    outcome = search.run()
    rows = {row["id"]: row for row in cells_of(unbroken)}
    prompts_CxMxD = np.asarray(search.prompts(outcome.best_CxZ))
    for c, country in enumerate(settings.countries):
        name = f"tiny-de-m2-{country}-s8"
        assert rows[name]["fitness"] == float(outcome.fitness_C[c])
        assert rows[name]["loss"]["expected"] == pytest.approx(rows[name]["fitness"], abs=1e-2)
        saved = SoftPrompt.load(unbroken / "prompts" / f"{name}.safetensors")
        np.testing.assert_array_equal(saved.embeddings_MxD, prompts_CxMxD[c])
        assert (saved.group, saved.seed) == (country, 8)


@pytest.mark.long
def test_the_result_says_which_c_and_edition(unbroken):
    result = json.loads((unbroken / "result.json").read_text("utf-8"))
    group = result["groups"][0]
    assert group["constants"] == [50.0] * 6
    assert group["held_out"]["low"] <= group["held_out"]["mean"] <= group["held_out"]["high"]
    assert group["naive"].keys() == {"expected", "most_likely", "held_out"}
    assert group["lines"]["held_out"]["uniform"] > 0
    assert group["validity"]["countries"] == 2
    assert group["validity"]["presentations"] == ["A", "B", "C", "D"]
    assert result["edition"] == Settings().edition


def test_records_say_what_was_done(unbroken):
    rows = cells_of(unbroken)
    assert [row["cell"] for row in rows] == [0, 1, 2, 3]
    assert {row["candidates"] for row in rows} == {4 * (3 + 1)}
    assert len({row["fitness"] for row in rows}) == 4
    for row in rows:
        assert len(row["scores"]["expected"]) == 6
        # A model that is not the pocket one is tuned on two presentations and tested on two more.
        assert list(row["presentations"]) == ["A", "B", "C", "D"]
        assert row["tuned_presentations"] == ["A", "B"]
        assert row["untuned"]["loss"].keys() == row["loss"].keys() == {"expected", "most_likely"}
        assert all(0 <= score <= 1 for score in row["held_out"])
        assert f"-{row['country']}-s{row['seed']}" in row["id"]


# --- stopped anywhere -------------------------------------------------------------------------


class Stop(BaseException):
    """What a kill looks like from inside: nothing may catch it."""


def stop_at(patch: pytest.MonkeyPatch, moment: int | None) -> list[str]:
    """Stop before the write of that number, and, for a record, also in the middle of its line.
    The list that is returned names the writes as they come."""
    writes = []

    def is_moment(kind: str) -> bool:
        writes.append(kind)
        return len(writes) - 1 == moment

    def before(owner, name):
        real = getattr(owner, name)

        @functools.wraps(real)
        def write(*args, **kwargs):
            if is_moment(f"{owner.__name__}.{name}"):
                raise Stop
            return real(*args, **kwargs)

        patch.setattr(owner, name, write)

    whole = MetricsFile.append

    def torn(self, row):
        if not is_moment("half a record"):
            return whole(self, row)
        size = self.path.stat().st_size if self.path.exists() else 0
        whole(self, row)
        os.truncate(self.path, (size + self.path.stat().st_size) // 2)
        raise Stop

    patch.setattr(MetricsFile, "append", torn)
    before(MetricsFile, "append")
    before(Checkpoints, "save")
    before(Run, "write")
    before(jaxalign.runs.run, "write_json")
    before(SoftPrompt, "save")
    before(module, "write_plot")
    before(shutil, "rmtree")
    before(os, "fsync")
    return writes


def note_batches(patch: pytest.MonkeyPatch) -> list:
    """The batches that are searched from now on."""
    searched, real = [], module.run_batch

    def search(search, lm, group, batch, *rest):
        searched.append(batch)
        return real(search, lm, group, batch, *rest)

    patch.setattr(module, "run_batch", search)
    return searched


@pytest.fixture
def programs_once(monkeypatch):
    """Every sweep of one test runs the same compiled programs."""
    made = {}

    def make(group, *rest):
        if group.name not in made:
            made[group.name] = sweep_group.make_search(group, *rest)
        return made[group.name]

    monkeypatch.setattr(module, "make_search", make)
    monkeypatch.setattr(module, "write_plot", lambda path, result: path.write_bytes(b"plot"))
    monkeypatch.setattr(module, "sweep_report", lambda result, out: None)


@pytest.mark.long
def test_stopped_before_a_write_nothing_is_lost_or_repeated(
    file, unbroken, programs_once, tmp_path
):
    """The first, the middle and the last write of each kind."""
    with pytest.MonkeyPatch.context() as patch:
        kinds = stop_at(patch, None)
        run(file, tmp_path / "whole", cells_per_program=2, save_prompts=True)
    moments = set()
    for kind in set(kinds):
        found = [moment for moment, other in enumerate(kinds) if other == kind]
        moments |= {found[0], found[len(found) // 2], found[-1]}
    assert len(set(kinds)) == 9, sorted(set(kinds))
    for moment in sorted(moments):
        out, where = tmp_path / str(moment), (moment, kinds[moment])
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, moment)
            with pytest.raises(Stop):
                run(file, out, cells_per_program=2, save_prompts=True)
        stopped = (out / "cells.jsonl").read_bytes() if (out / "cells.jsonl").exists() else b""
        whole = stopped[: stopped.rfind(b"\n") + 1]
        with pytest.MonkeyPatch.context() as patch:
            searched = note_batches(patch)
            run(file, out, cells_per_program=2, save_prompts=True)
        assert outcome(out) == outcome(unbroken), where
        assert (out / "cells.jsonl").read_bytes().startswith(whole), where
        assert not (out / "checkpoints").exists(), where
        recorded = {json.loads(line)["cell"] for line in whole.splitlines()}
        for batch in searched:
            assert {cell.number for cell in batch.cells} - recorded, where


def test_a_batch_goes_on_from_its_checkpoint(file, unbroken, programs_once, tmp_path):
    told = []

    def stop(self, group, batch, generation, done):
        told.append((batch.index, generation))
        if told[-1] == (1, 2):
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.StatusBoard, "update", stop)
        with pytest.raises(Stop):
            run(file, tmp_path, cells_per_program=2)
        assert len(cells_of(tmp_path)) == 2
        told.clear()
        patch.setattr(module.StatusBoard, "update", lambda *a: told.append((a[2].index, a[3])))
        run(file, tmp_path, cells_per_program=2)
    assert told == [(1, 2), (1, 3)]  # neither the first batch nor two generations of the second
    assert outcome(tmp_path)["cells.jsonl"] == outcome(unbroken)["cells.jsonl"]


def test_a_finished_sweep_loads_no_model(file, unbroken, tmp_path, monkeypatch):
    out = shutil.copytree(unbroken, tmp_path / "copy")
    monkeypatch.setattr(module, "load_model", None)
    (out / "result.json").unlink()
    pages = ("report.md", "report.html", "figures/losses.png")
    shown = {page: (out / page).read_bytes() for page in pages}
    assert b"no other strategy has as many evaluations" in shown["report.md"]
    shutil.rmtree(out / "figures")
    run(file, out, save_prompts=True)
    assert outcome(out) == outcome(unbroken)
    assert {page: (out / page).read_bytes() for page in pages} == shown
    (out / "report.html").unlink()
    assert write_report_of(out) == (out / "report.md", out / "report.html")
    assert (out / "report.html").read_bytes() == shown["report.html"]


@pytest.mark.long
def test_another_batch_size_may_continue(file, unbroken, programs_once, tmp_path):
    """Say, after it ran out of memory. Two cells are done in one batch of two; then one by one."""
    first = (unbroken / "cells.jsonl").read_bytes().splitlines(keepends=True)[:2]
    shutil.copy(unbroken / "config.json", tmp_path)
    (tmp_path / "cells.jsonl").write_bytes(b"".join(first))
    with pytest.MonkeyPatch.context() as patch:
        searched = note_batches(patch)
        run(file, tmp_path, cells_per_program=1)
    assert [batch.cells[0].number for batch in searched] == [2, 3]
    assert cells_of(tmp_path) == cells_of(unbroken)


def test_one_writer_at_a_time(file, unbroken):
    described = read_sweep(file)
    with (
        Run.create(unbroken, described, module.facts(make_plan(described, 2)), resume=True),
        pytest.raises(UserError, match="in use by another process"),
    ):
        run(file, unbroken)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("generations = 3", "generations = 4", "generations was 3 when the sweep in"),
        ("population = 4", "population = 5", "strategies[0].strategy.population was 4"),
        ("seeds = [3, 8]", "seeds = [3, 8, 9]", "seeds was [3, 8]"),
        ('name = "de"', 'name = "best1"', "strategies[0].name was 'de'"),
    ],
)
def test_a_changed_file_is_refused_by_its_difference(file, unbroken, tmp_path, old, new, said):
    changed = tmp_path / "changed.toml"
    changed.write_text(file.read_text().replace(old, new))
    before = outcome(unbroken)
    with pytest.raises(UserError) as refused:
        run(changed, unbroken)
    assert said in str(refused.value)
    assert outcome(unbroken) == before


def test_records_of_something_else_are_refused(file, unbroken, tmp_path):
    out = shutil.copytree(unbroken, tmp_path / "copy")
    text = (out / "cells.jsonl").read_text("utf-8").replace("USA-s3", "USA-s4")
    (out / "cells.jsonl").write_text(text)
    (out / ".cells.jsonl.sums").unlink()
    with pytest.raises(UserError, match="cell 0 is not of this sweep"):
        run(file, out)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"chunk": "4"}}'])
def test_programs_of_something_else_are_refused(file, unbroken, tmp_path, text):
    out = shutil.copytree(unbroken, tmp_path / "copy")
    (out / "programs.json").write_text(text)
    (out / ".programs.json.sum").unlink()
    with pytest.raises(UserError, match=r"programs\.json: not written by a sweep; delete it"):
        run(file, out)


def test_a_sweep_and_a_search_do_not_take_each_other_up(file, unbroken, tmp_path):
    asked = Settings(out=unbroken, resume=True)
    with pytest.raises(UserError, match="holds a run of another program"):
        tune_prompts(asked)
    Run.create(tmp_path / "search", Settings(), {}).close()
    for status in (False, True):
        with pytest.raises(UserError, match="holds a run of another program"):
            run(file, tmp_path / "search", status=status)


# --- status and result ------------------------------------------------------------------------


def test_status_of_a_sweep_that_is_being_written(unbroken, tmp_path, capsys):
    out = tmp_path / "running"
    shutil.copytree(unbroken, out)
    (out / "result.json").unlink()
    lines = (out / "cells.jsonl").read_text("utf-8").splitlines(keepends=True)
    (out / "cells.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    status = {
        "done": 2,
        "cells": 4,
        "running": 2,
        "batch": "tiny-de-m2, batch 2 of 2",
        "generation": 1,
        "generations": 3,
        "seconds_left": 80.0,
        "updated": 1000.0,
    }
    (out / "status.json").write_text(json.dumps(status))
    settings = json.loads((out / "config.json").read_text("utf-8"))
    settings["settings"]["base_config.reading"] = "most_likely"
    (out / "config.json").write_text(json.dumps(settings))
    (out / ".config.json.sum").unlink()
    (out / ".cells.jsonl.sums").unlink()
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    show_status(out, clock=lambda: 1010.0)
    said = capsys.readouterr().out
    assert "2 of 4 cells done, 2 running, 0 queued" in said
    assert "tiny-de-m2, batch 2 of 2, generation 1/3" in said
    assert "time left 1 min 10 s; last updated 10 s ago" in said
    losses = [json.loads(line)["loss"]["most_likely"] for line in lines[:2]]
    assert re.findall(r"loss (\S+)", said) == [f"{loss:.1f}" for loss in losses]
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_status_of_a_finished_and_of_no_sweep(unbroken, tmp_path, capsys):
    show_status(unbroken)
    assert "4 of 4 cells done, 0 running, 0 queued" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no sweep"):
        show_status(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_status_of_something_else_is_refused(unbroken, tmp_path, text):
    out = shutil.copytree(unbroken, tmp_path / "copy")
    (out / "status.json").write_text(text)
    with pytest.raises(UserError, match=r"status\.json: not written by a sweep; delete it"):
        show_status(out)


def test_status_starts_no_device(file, unbroken):
    """In a process of its own, while a lock is held: it needs neither."""
    program = (
        "import sys, jax._src.xla_bridge as bridge; from pathlib import Path;"
        "from jaxalign.commands.sweep.command import SweepSettings, sweep;"
        "sweep(SweepSettings(Path(sys.argv[1]), Path(sys.argv[2]), status=True));"
        "assert not bridge.backends_are_initialized()"
    )
    described = read_sweep(file)
    with Run.create(unbroken, described, module.facts(make_plan(described, 2)), resume=True):
        done = subprocess.run(
            [sys.executable, "-c", program, file, unbroken],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert "4 of 4 cells done" in done.stdout


def made_up(country, seed, loss, strategy="de", held_out=(0.5, 0.9, None)) -> dict:
    losses = {"loss": {"expected": loss, "most_likely": 2.0}}
    reversed_ = {"loss": {"expected": 100.0 + (loss or 0.0), "most_likely": 4.0}}
    return {
        "model": "m",
        "strategy": strategy,
        "prompt_length": 4,
        "country": country,
        "seed": seed,
        **losses,
        "presentations": {"A": losses, "B": reversed_},
        "tuned_presentations": ["A"],
        "untuned": reversed_,
        "held_out": held_out and list(held_out),
        "candidates": 10,
        "valid_mass": 0.9,
    }


ALGORITHMS = {name: name for name in ("de", "es", "DifferentialEvolution")} | {"snes": "SNES"}


def test_the_result_by_hand(tmp_path, capsys):
    rows = [
        made_up("USA", 0, 1.0),
        made_up("CHN", 0, 5.0, held_out=(0.7, 0.7, 0.7)),
        made_up("USA", 1, 3.0, held_out=(0.6, 0.8, None)),
        made_up("CHN", 1, 11.0, held_out=(0.8, 0.8, 0.8)),
        made_up("USA", 0, None, "es", held_out=None),
    ]
    config = Settings(dimensions=("pdi", "mas"), anchor=("DEU",))
    naive = {"loss": {"expected": 50.0, "most_likely": 60.0}, "held_out": [0.5, 0.6, 0.7]}
    line = {"loss": {"all_middle": 90.0}, "held_out": {"uniform": 0.4}}
    programs = {
        "m-de-m4": {
            "constants": [54.0, None, 31.5, None, None, None],
            "naive": {"USA": naive, "CHN": naive},
            "lines": {"USA": line, "CHN": {"loss": {"all_middle": 70.0}, "held_out": {}}},
            "validity": {"passes": False, "sentence": "Personas do not follow people, r = -0.10."},
        }
    }
    result = make_result(rows, config, programs, ALGORITHMS)
    first, second = result["groups"]
    assert result["presentations"] == {"tuned": ["A"], "untuned": ["B"]}
    spread = dict(first["expected"])
    interval = spread.pop("interval")
    assert spread == {
        "mean": 5.0,
        "seeds": pytest.approx(np.std([3, 7], ddof=1)),
        "low": 2.0,
        "high": 8.0,
        "countries": {"USA": 2.0, "CHN": 8.0},
        "failed": 0,
    }
    # Student's t with one degree of freedom: 12.706 standard errors of 2 either way.
    assert interval["mean"] == 5.0
    assert interval["high"] - 5.0 == pytest.approx(12.706 * 2, rel=1e-3)
    assert first["presentations"]["B"] == {"expected": 105.0, "most_likely": 4.0}
    assert first["untuned"] == first["presentations"]["B"]
    # Countries are averaged first, item by item: 0.6, 0.8, 0.7 and 0.7, 0.8, 0.8.
    assert first["held_out"]["by_seed"] == pytest.approx([0.7, 2.3 / 3])
    assert first["held_out"]["mean"] == pytest.approx(4.4 / 6)
    assert first["held_out"]["low"] < first["held_out"]["mean"] < first["held_out"]["high"]
    assert first["held_out"]["countries"] == pytest.approx({"USA": 0.7, "CHN": 0.75})
    assert first["held_out_minus_naive"]["mean"] == pytest.approx(4.4 / 6 - 0.6)
    assert first["naive"] == pytest.approx({"expected": 50, "most_likely": 60, "held_out": 0.6})
    assert first["lines"] == {"loss": {"all_middle": 80.0}, "held_out": {"uniform": 0.4}}
    assert (first["cells"], first["candidates"]) == (4, 40)
    assert first["constants"] == programs["m-de-m4"]["constants"]
    assert (second["constants"], second["held_out"]) == (None, None)
    show_result(result)
    said = capsys.readouterr().out
    assert "m: C: PDI 54.0, MAS 31.5 (least squares on DEU). Losses without a model: ans" in said
    assert "Held-out scores without one: uniform answer 0.400" in said
    assert "m: C is not on record" in said
    assert said.startswith("Warning: few data. The held-out survey has 3 items.")
    assert "\nm: Validity gate: not passed. Personas do not follow people, r = −0.10" in said
    assert "0.10. Its held-out scores and their differences say nothing.\n" in said
    assert "m: Validity gate: not made." in said
    assert (second["expected"]["mean"], second["expected"]["failed"]) == (None, 1)
    write_plot(tmp_path / "sweep.png", result)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(result, allow_nan=False)


def test_the_table_has_room_for_the_default_strategys_name(capsys):
    rows = [made_up("USA", 0, 123.4, "DifferentialEvolution") | {"model": "pocket"}]
    show_result(make_result(rows, Settings(), {}, ALGORITHMS))
    assert "DifferentialEvolution" in capsys.readouterr().out


def test_the_table_and_the_picture_are_in_the_reading_that_was_tuned(tmp_path, capsys):
    rows = [made_up("USA", seed, 100.0 + 50 * seed) for seed in (0, 1)]
    pictures = []
    for reading in ("expected", "most_likely"):
        result = make_result(rows, Settings(reading=reading), {}, ALGORITHMS)
        show_result(result)
        write_plot(tmp_path / "sweep.png", result)
        pictures.append((tmp_path / "sweep.png").read_bytes())
    assert pictures[0] != pictures[1]
    expected, likely = capsys.readouterr().out.split("Loss (")[1:]
    expected, likely = (said.split("Held-out")[0] for said in (expected, likely))
    numbers = [re.findall(r"-?\d+\.\d", table) for table in (expected, likely)]
    assert expected.startswith("expected reading")
    assert likely.startswith("most likely reading")
    # Mean, interval over two seeds, easiest, hardest; A, B, untuned, the other reading.
    first = ["125.0", "-192.7", "442.7", "125.0", "125.0", "125.0", "225.0", "225.0", "2.0"]
    assert numbers[0] == first
    assert numbers[1] == ["2.0", "2.0", "2.0", "2.0", "2.0", "2.0", "4.0", "4.0", "125.0"]


def test_a_ranking_pairs_cells_at_equal_evaluations_and_says_who_is_told_apart():
    """By hand: the differences of three seeds, averaged over countries, are 10, 12 and 14."""
    rows = []
    for seed, behind in ((0, (8.0, 12.0)), (1, (11.0, 13.0)), (2, (14.0, 14.0))):
        for country, more in zip(("USA", "CHN"), behind, strict=True):
            base = 20.0 * seed + (5.0 if country == "CHN" else 0.0)
            rows += [made_up(country, seed, base, "snes"), made_up(country, seed, base + more)]
            rows += [made_up(country, seed, base, "es")]
            rows += [made_up(country, seed, 0.0, "DifferentialEvolution") | {"candidates": 20}]
    ranking, other = make_rankings(rows, "expected")
    assert [entry["strategy"] for entry in ranking["strategies"]] == ["snes", "es", "de"]
    assert (ranking["evaluations"], ranking["prompt_length"]) == (10, 4)
    assert (other["evaluations"], len(other["strategies"])) == (20, 1)
    behind = ranking["strategies"][2]["behind"]
    # Student's t with two degrees of freedom: 4.303 standard errors of 2 / sqrt(3) either way.
    assert behind["mean"] == 12
    assert behind["high"] - 12 == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-3)
    assert (behind["pairs"], behind["higher"], behind["lower"]) == (6, 6, 0)
    names = {"snes": "snes (SNES)", "de": "de", "es": "es", "DifferentialEvolution": "DE"}
    said = ranking_words(ranking, names)
    assert (
        "m, 4 tokens, 10 evaluations a search: snes (SNES) has the lowest mean loss, 22.5" in said
    )
    assert "es ends at the identical loss in all 6 paired cells." in said
    assert "de is behind by 12.0 (7.0 to 17.0), higher in 6 of 6 paired cells: told apart." in said
    alone = ranking_words(other, names)
    assert "DE has loss 0.0; no other strategy has as many evaluations" in alone


def test_a_ranking_of_one_seed_of_failed_searches_and_of_several_lengths():
    rows = [made_up("USA", 0, 4.0, "snes"), made_up("USA", 0, 1.0)]
    rows += [made_up("CHN", 0, None), made_up("IND", 0, 90.0, "es")]
    rows += [row | {"prompt_length": 8} for row in rows[:2]]
    four, eight, all_lengths = make_rankings(rows, "expected")
    assert (four["prompt_length"], eight["prompt_length"]) == (4, 8)
    assert all_lengths["prompt_length"] is None
    assert [entry["strategy"] for entry in four["strategies"]] == ["de", "snes", "es"]
    assert four["strategies"][0]["failed"] == 1
    names = {name: name for name in ("de", "snes", "es")}
    said = ranking_words(four, names)
    assert "snes is behind by 3.0, higher in 1 of 1 paired cells: one seed: cannot be told" in said
    assert "es has no cell in common with it" in said
    assert "m, all lengths, 10 evaluations" in ranking_words(all_lengths, names)
    json.dumps(four, allow_nan=False)


def test_a_cell_whose_prompt_is_damaged_is_searched_again(tmp_path, capsys):
    cells = tuple(Cell(n, "de4", "USA", n) for n in (0, 1))
    batches = [Batch("b", n, 2, (cell,), ()) for n, cell in enumerate(cells)]
    records = types.SimpleNamespace(rows={0: {}, 1: {}})
    for cell in cells:
        with sealed(prompt_file(tmp_path, cell)):
            write_text(prompt_file(tmp_path, cell), "a prompt")
    assert not any(is_unfinished(tmp_path, batch, records) for batch in batches)
    prompt_file(tmp_path, cells[1]).write_text("b prompt")
    assert [is_unfinished(tmp_path, batch, records) for batch in batches] == [False, True]
    assert "de4-USA-s1.safetensors: is not what was written" in capsys.readouterr().out
