"""Prompts found on the way are kept at a few generations and outlive a kill."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.methods.soft_prompt.history import History, points
from jaxalign.methods.soft_prompt.settings import Settings


@pytest.mark.parametrize(
    ("generations", "save_every", "count", "expected"),
    [
        (160, 10, 8, (10, 30, 50, 70, 100, 120, 140, 160)),
        (25, 10, 8, (10, 20, 25)),
        (25, 10, 2, (10, 25)),
        (5, 10, 8, (5,)),
        (25, 10, 1, (25,)),
        (25, 10, 0, ()),
    ],
)
def test_points_are_ends_of_dispatches_and_end_with_the_last(
    generations, save_every, count, expected
):
    settings = Settings(generations=generations, save_every=save_every, held_out_points=count)
    assert points(settings) == expected


def test_what_was_kept_is_read_and_what_is_lost_is_left_out(tmp_path):
    history = History(tmp_path / "history", (10, 20, 30), writes=True)
    kept = {g: np.full((2, 3), g, np.float32) for g in (10, 15, 30)}
    for generation, z_ExZ in kept.items():
        history.keep(generation, z_ExZ)
    found = History(tmp_path / "history", (10, 20, 30), writes=True).read((2, 3))
    assert list(found) == [10, 30]
    for generation, z_ExZ in found.items():
        np.testing.assert_array_equal(z_ExZ, kept[generation])


def test_what_has_changed_is_named_and_left_out(tmp_path, caplog):
    history = History(tmp_path, (10, 20, 30), writes=True)
    for generation in (10, 20, 30):
        history.keep(generation, np.full((2, 3), generation, np.float32))
    content = bytearray((tmp_path / "000020.npy").read_bytes())
    content[-1] ^= 1
    (tmp_path / "000020.npy").write_bytes(content)
    (tmp_path / "000030.npy").unlink()
    with caplog.at_level("INFO", "jaxalign"):
        assert list(history.read((2, 3))) == [10]
    changed, gone = (record.getMessage() for record in caplog.records)
    assert "000020.npy: is not what was written" in changed
    assert "goes without generation 20" in changed
    assert "000030.npy: is missing" in gone
