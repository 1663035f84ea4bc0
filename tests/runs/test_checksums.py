"""A checkpoint that is damaged, renamed or another run's is named; the one before it is used."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.runs.checkpoints import Checkpoints, abstract_tree


def _tree(step: int) -> dict:
    return {"x": jnp.arange(64.0) + step, "n": jnp.int32(step)}


ABSTRACT = abstract_tree(_tree(0))


def _saved(folder: Path, identity: str = "run, seed 0", steps: tuple[int, ...] = (1, 2)) -> Path:
    with Checkpoints(folder, identity=identity) as checkpoints:
        for step in steps:
            checkpoints.save(step, _tree(step))
    return folder


def _restored(folder: Path, identity: str = "run, seed 0") -> tuple[int, int]:
    with Checkpoints(folder, identity=identity) as checkpoints:
        step, tree = checkpoints.restore(ABSTRACT)
    np.testing.assert_array_equal(tree["x"], _tree(step)["x"])
    return step, int(tree["n"])


def _files(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def test_a_flipped_bit_in_any_file_is_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = _saved(tmp_path / "whole")
    names = [path.relative_to(whole) for path in _files(whole / "2") if path.stat().st_size]
    assert len(names) > 5
    random = np.random.default_rng(0)
    for n, name in enumerate(names):
        copy = shutil.copytree(whole, tmp_path / str(n))
        content = bytearray((copy / name).read_bytes())
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        (copy / name).write_bytes(content)
        with caplog.at_level(logging.INFO, "jaxalign"):
            assert _restored(copy) == (1, 1), name
        assert str(copy / "2") in caplog.text
        caplog.clear()


def test_a_file_that_is_missing_short_or_too_many_is_seen(tmp_path: Path) -> None:
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-1])

    def add(path: Path) -> None:
        (path.parent / "more").write_text("x")

    for n, change in enumerate((Path.unlink, cut, add)):
        folder = _saved(tmp_path / str(n))
        change(max(_files(folder / "2"), key=lambda path: path.stat().st_size))
        assert _restored(folder) == (1, 1)


def test_a_renamed_step_is_not_restored_as_the_new_number(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    (folder / "2").rename(folder / "7")
    assert _restored(folder) == (1, 1)


def test_a_step_of_another_seed_is_not_restored(tmp_path: Path) -> None:
    own, other = _saved(tmp_path / "own"), _saved(tmp_path / "other", "run, seed 1", (1, 2, 3))
    shutil.copytree(other / "3", own / "3")
    assert _restored(own) == (2, 2)


def test_a_step_whose_writer_was_stopped_before_the_list_is_not_used(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    (folder / "2" / "checksums.json").unlink()
    assert _restored(folder) == (1, 1)


def test_where_nothing_is_whole_there_is_nothing_to_restore_and_its_numbers_are_free(
    tmp_path: Path,
) -> None:
    folder = _saved(tmp_path)
    with Checkpoints(folder, identity="another") as checkpoints:
        assert checkpoints.latest is None
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore(ABSTRACT)
        checkpoints.save(2, _tree(2))
        assert checkpoints.steps == [2]
    # What was put aside is still there to be looked at.
    assert sorted(p.name for p in folder.iterdir()) == ["2", "damaged-1", "damaged-2"]


def test_a_step_that_is_asked_for_by_number_is_checked_too(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    (folder / "2" / "checksums.json").write_text("{}")
    named = pytest.raises(UserError, match=r"2 cannot be read \(its checksums.json cannot")
    with Checkpoints(folder, identity="run, seed 0") as checkpoints, named:
        checkpoints.restore(ABSTRACT, 2)


def test_asynchronous_saves_are_listed_once_they_are_whole(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, asynchronous=True, identity="a") as checkpoints:
        checkpoints.save(1, _tree(1))
        checkpoints.save(2, _tree(2))
    assert _restored(tmp_path, "a") == (2, 2)
