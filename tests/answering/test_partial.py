"""Rows that are filled bit by bit: what is not what was written is asked again."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from jaxalign.answering.partial import PartialRows, open_partial
from jaxalign.core.errors import UserError

N, WIDTH = 40, 3
VALUES = np.random.default_rng(0).normal(size=(N, WIDTH)).astype(np.float32)
VALUES[7] = 0  # a row of zeros is a row like any other


def _open(folder: Path | None) -> PartialRows:
    return open_partial(folder, "rows", N, WIDTH, np.float32)


def _filled(folder: Path) -> Path:
    rows = _open(folder)
    rows.put(np.arange(N), VALUES)
    return folder / "rows.npy"


def test_rows_are_found_again_and_the_rest_is_missing(tmp_path: Path) -> None:
    rows = _open(tmp_path)
    assert rows.missing.all()
    rows.put([7, 3], VALUES[[7, 3]])
    again = _open(tmp_path)
    assert np.flatnonzero(~again.missing).tolist() == [3, 7]
    np.testing.assert_array_equal(again.values[[3, 7]], VALUES[[3, 7]])


def test_without_a_folder_rows_are_kept_in_memory() -> None:
    rows = _open(None)
    rows.put([1], VALUES[[1]])
    assert rows.missing.sum() == N - 1
    np.testing.assert_array_equal(rows.values[1], VALUES[1])


def test_any_flipped_bit_costs_its_row_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _filled(tmp_path)
    whole = path.read_bytes()
    row_bytes = 4 * WIDTH + 4
    header = len(whole) - N * row_bytes
    random = np.random.default_rng(1)
    for _ in range(50):
        byte = int(random.integers(header, len(whole)))
        content = bytearray(whole)
        content[byte] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        with caplog.at_level(logging.INFO, "jaxalign"):
            rows = _open(tmp_path)
        assert np.flatnonzero(rows.missing).tolist() == [(byte - header) // row_bytes]
        assert "1 of 40 answers are damaged and are asked again" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("lost", [1, 17, 200])
def test_a_file_that_was_cut_short_is_not_filled_up_with_zeros(tmp_path: Path, lost: int) -> None:
    path = _filled(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    rows = _open(tmp_path)
    assert np.flatnonzero(rows.missing).tolist() == list(range(N - -(-lost // 16), N))


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    _filled(tmp_path)
    with pytest.raises(UserError, match=r"holds 40 rows of .* and not 41 of .*; delete it"):
        open_partial(tmp_path, "rows", N + 1, WIDTH, np.float32)
    with pytest.raises(UserError, match="delete it"):
        open_partial(tmp_path, "rows", N, WIDTH, np.int8)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': }"])
def test_a_file_that_is_no_array_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.npy: cannot be continued .*delete it"):
        _open(tmp_path)
