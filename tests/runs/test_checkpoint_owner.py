"""A directory of checkpoints belongs to one run: no other run deletes or continues them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.checkpoint_dir import checkpoint_directory
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.runs import Run, recorded_run
from jaxalign.runs.checkpoints import Checkpoints, check_owner, claim


@pytest.fixture
def kept(tmp_path) -> Path:
    """A directory where run "a" has saved two steps."""
    directory = tmp_path / "kept"
    claim(directory, "a")
    with Checkpoints(directory) as saved:
        for step in (1, 2):
            saved.save(step, {"x": jnp.float32(step)})
    return directory


def test_the_run_that_saved_there_may_continue(kept):
    assert check_owner(str(kept), "a")
    claim(kept, "a")
    with Checkpoints(kept) as saved:
        assert saved.steps == [1, 2]


@pytest.mark.parametrize(("run", "said"), [(None, "a new run needs an empty"), ("b", "not this")])
def test_other_runs_are_refused_and_change_nothing(kept, run, said):
    before = sorted(kept.rglob("*"))
    with pytest.raises(UserError, match=said):
        check_owner(str(kept), run)
    assert sorted(kept.rglob("*")) == before


def test_only_one_of_two_runs_gets_an_empty_directory(tmp_path):
    claim(tmp_path / "new", "a")
    with pytest.raises(UserError, match="another run saves there"):
        claim(tmp_path / "new", "b")


def test_numbered_folders_of_anything_are_refused(tmp_path):
    (tmp_path / "2019").mkdir()
    for run in (None, "a"):
        with pytest.raises(UserError, match="holds '2019'"):
            check_owner(str(tmp_path), run)


def test_directories_that_cannot_hold_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "file").write_text("mine")
    for place, said in {
        f"{tmp_path}/file": "is no directory",
        f"{tmp_path}/file/below": "no directory to write in",
        "s3://foo/bar": "or to gs://",
        "gs://foo/bar": "gcsfs",
    }.items():
        with pytest.raises(UserError, match=said):
            check_owner(place, None)
    assert not check_owner(f"{tmp_path}/new/below", None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def begin(out: Path, config: Settings) -> None:
    """Do what a run does before its first checkpoint."""
    place = checkpoint_directory(config, out)
    with Run.create(out, dataclasses.replace(config, checkpoints=place), {}, config.resume) as run:
        claim(place or out / "checkpoints", recorded_run(out)[0])
        run.log({"generation": 1})


def test_another_run_does_not_continue_a_search(tmp_path):
    begin(tmp_path / "a", Settings(checkpoints=str(tmp_path / "kept")))
    other = Settings(checkpoints=str(tmp_path / "kept"), seeds=(1,), resume=True)
    with pytest.raises(UserError, match="a new run needs an empty directory"):
        begin(tmp_path / "b", other)
    begin(tmp_path / "b", Settings(seeds=(1,)))
    with pytest.raises(UserError, match="is not this run's"):
        begin(tmp_path / "b", other)


def test_a_resumed_run_finds_its_checkpoints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin(Path("a"), Settings(checkpoints="kept"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    resumed = Settings(resume=True)
    assert checkpoint_directory(resumed, tmp_path / "a") == str(tmp_path / "kept")
    elsewhere = dataclasses.replace(resumed, checkpoints="nothing")
    with pytest.raises(UserError, match=f"began to keep them in {tmp_path}/kept"):
        checkpoint_directory(elsewhere, tmp_path / "a")


def test_a_run_with_its_own_folder_may_be_moved(tmp_path):
    begin(tmp_path / "a", Settings())
    (tmp_path / "a").rename(tmp_path / "b")
    assert checkpoint_directory(Settings(resume=True), tmp_path / "b") is None
    recorded = json.loads((tmp_path / "b" / "config.json").read_text("utf-8"))
    assert recorded["settings"]["checkpoints"] is None


def test_a_kill_while_a_directory_is_claimed_leaves_it_free(tmp_path):
    directory = tmp_path / "kept"
    directory.mkdir()
    (directory / "owner.json.part").write_text('{"ru')
    assert not check_owner(str(directory), None)
    claim(directory, "a")
    assert not (directory / "owner.json.part").exists()
    with pytest.raises(UserError, match="another run saves there"):
        claim(directory, "b")


def test_a_run_that_has_claimed_its_directory_does_not_write_again(kept):
    """On a full disk that would leave an empty file, and the run would be shut out."""
    before = (kept / "owner.json").stat()
    claim(kept, "a")
    assert (kept / "owner.json").stat().st_ino == before.st_ino
    assert (kept / "owner.json").stat().st_mtime_ns == before.st_mtime_ns
