"""Files are replaced as a whole or not at all."""

from __future__ import annotations

import errno
import resource
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.core.files import (
    MetricsFile,
    check_new_file,
    staging_folder,
    write_array,
    write_atomically,
    write_json,
    write_json_lines,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_bytes_a_function_and_text_are_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "made" / "a.bin", b"\x00\xff")
    assert (tmp_path / "made" / "a.bin").read_bytes() == b"\x00\xff"
    write_atomically(tmp_path / "b.npy", lambda file: np.save(file, np.arange(3)))
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), [0, 1, 2])
    write_text(tmp_path / "c.txt", "né\n")
    assert (tmp_path / "c.txt").read_bytes() == "né\n".encode()
    assert names(tmp_path) == ["b.npy", "c.txt", "made"]


def test_everybody_may_read_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    with pytest.raises(ValueError, match=r"file\.a is nan"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json_lines(path, [{"messages": [1]}, {"messages": object()}])
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_json_lines(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "rows.jsonl", ({"é": i} for i in range(2)))
    assert (tmp_path / "rows.jsonl").read_text("utf-8") == '{"é": 0}\n{"é": 1}\n'


def test_staged_files_are_moved_together(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with staging_folder(folder, last="config.json") as staged:
        for name in ("z.bin", "config.json", "a.bin"):
            (staged / name).write_text(name)
        assert names(folder) == [staged.name]
    assert names(folder) == ["a.bin", "config.json", "z.bin"]


def test_nothing_is_moved_where_staging_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with staging_folder(tmp_path, last="b") as staged:
            (staged / "a").write_text("a")
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()
    assert names(tmp_path) == []


def test_a_file_that_cannot_be_put_there_is_refused_before_any_work(tmp_path: Path) -> None:
    check_new_file(None, "json")
    check_new_file(tmp_path / "a.json", "json")
    with pytest.raises(UserError, match=f"`json` {tmp_path}: a folder; name a file in it"):
        check_new_file(tmp_path, "json")
    with pytest.raises(UserError, match=r"`json` .*/absent/a\.json: no such folder"):
        check_new_file(tmp_path / "absent" / "a.json", "json")


def _metrics(path: Path, steps: list[int], gapless: bool = True) -> MetricsFile:
    path.unlink(missing_ok=True)
    metrics = MetricsFile(path, "generation", gapless)
    for step in steps:
        metrics.append({"generation": step, "best": 1.0})
    return metrics


@pytest.mark.parametrize(
    ("steps", "last", "words"),
    [
        ([1, 2, 4, 5], 5, "after the row of generation 2 comes that of 4"),
        ([1, 2, 2, 3], 3, "after the row of generation 2 comes that of 2"),
        ([1, 3, 2], 3, "after the row of generation 1 comes that of 3"),
        ([2, 1, 3], 3, "after the row of generation 2 comes that of 1"),
        ([1, 2], 3, "ends at generation 2, but the run was at 3"),
        ([1, 2, 3, 4, 4], 3, None),
        ([5, 6, 7], 6, None),
    ],
)
def test_rows_that_are_missing_or_doubled_are_noticed(tmp_path: Path, steps, last, words) -> None:
    metrics = _metrics(tmp_path / "metrics.jsonl", steps)
    if words is not None:
        with pytest.raises(UserError, match=words):
            metrics.rewind(last)
    else:
        metrics.rewind(last)
        assert [row["generation"] for row in metrics.read()] == [s for s in steps if s <= last]


def test_rows_may_leave_steps_out_where_they_are_not_of_every_step(tmp_path: Path) -> None:
    metrics = _metrics(tmp_path / "a", [1, 5, 3, 9], gapless=False)
    metrics.rewind(7)
    assert [row["generation"] for row in metrics.read()] == [1, 5, 3]


def _rows(folder: Path, steps: Sequence[int] = range(1, 6)) -> MetricsFile:
    file = MetricsFile(folder / "m.jsonl", gapless=True)
    for step in steps:
        file.append({"generation": step, "loss": step / 7})
    return file


@pytest.mark.parametrize("line", [1, 3, 5])
def test_a_number_that_has_changed_is_noticed(tmp_path: Path, line: int) -> None:
    file = _rows(tmp_path)
    content = bytearray(file.path.read_bytes())
    lines = content.splitlines(keepends=True)
    lines[line - 1][-4] ^= 1  # still JSON
    file.path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=rf"m\.jsonl, line {line}: not what was written there"):
        file.rewind(5)


def test_rows_written_again_have_their_checksums(tmp_path: Path) -> None:
    file = _rows(tmp_path)
    file.rewind(2)
    _rows(tmp_path, range(3, 8))
    file.rewind(7)
    assert [row["generation"] for row in file.read()] == list(range(1, 8))


def test_rows_without_checksums_are_taken_and_get_them(tmp_path: Path) -> None:
    """As of earlier versions, and the last one where a kill has come between the two writes."""
    file = _rows(tmp_path)
    sums = tmp_path / ".m.jsonl.sums"
    whole = sums.read_bytes()
    for kept in (0, 9 * 4, 9 * 4 + 3):
        sums.write_bytes(whole[:kept])
        file.rewind(5)
        assert sums.read_bytes() == whole


def test_a_file_of_rows_that_is_gone_is_noticed(tmp_path: Path) -> None:
    file = _rows(tmp_path)
    file.path.unlink()
    with pytest.raises(UserError, match=r"m\.jsonl: has no row, but the run was at 5"):
        file.rewind(5)
    file.rewind(-1)  # a run that begins again needs none
    assert not list(tmp_path.iterdir())


def test_rows_in_another_order_keep_their_checksums(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.jsonl")
    for step in (3, 1, 2):
        file.append({"generation": step})
    file.put_in_order(lambda row: row["generation"])
    file.rewind(9)
    assert [row["generation"] for row in file.read()] == [1, 2, 3]


def test_an_array_that_cannot_be_written_is_named(tmp_path):
    """As other files are; numpy alone would only count the numbers that it wrote."""
    path = tmp_path / "found.npy"
    write_array(path, np.zeros(4))
    old, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            write_array(path, np.ones(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (old, hard))
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert np.load(path).tolist() == [0, 0, 0, 0]
