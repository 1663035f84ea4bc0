"""Full disks: asked before long work, and explained in one line."""

from __future__ import annotations

import errno
import os

import pytest

from jaxalign.core.disk import cannot_write, check_space, free_bytes
from jaxalign.core.errors import UserError
from jaxalign.core.files import MetricsFile, write_all, write_atomically, write_text

FREE = 100 * 2**20


@pytest.fixture
def small_disk(monkeypatch):
    """A file system with 100 MiB left."""

    def statvfs(path):
        assert os.path.exists(path)
        return os.statvfs_result((4096, 4096, 10**6, 10**6, FREE // 4096, 10**5, 9, 9, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_free_is_that_of_the_folder_that_would_hold_it(small_disk, tmp_path):
    assert free_bytes(tmp_path / "not" / "there" / "yet") == FREE


def test_without_a_free_inode_nothing_is_free(monkeypatch, tmp_path):
    full = os.statvfs_result((4096, 4096, 10**6, 10**6, 10**5, 10**5, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert free_bytes(tmp_path) == 0


def test_a_file_system_that_does_not_say_is_not_full(monkeypatch, tmp_path):
    unknown = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: unknown)
    check_space(tmp_path, 1e15, "out")


def test_what_will_be_written_must_have_room(small_disk, tmp_path):
    out = tmp_path / "run"
    check_space(out, FREE // 2, "out")
    with pytest.raises(UserError, match=r"`out` .*run: .* 116.0 MiB there, and 100.0 MiB are free"):
        check_space(out, FREE, "out")


def test_what_is_there_already_needs_no_room(small_disk, tmp_path):
    (tmp_path / "a").mkdir()
    with open(tmp_path / "a" / "checkpoint", "wb") as file:
        file.truncate(FREE)
    check_space(tmp_path, 1.5 * FREE, "out")


def test_a_bucket_cannot_be_asked(small_disk):
    check_space("gs://bucket/run", 1e15, "checkpoints")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left on device, 100.0 MiB are free); free some space"),
        (errno.EDQUOT, "disk quota exceeded, 100.0 MiB are free); free some space"),
        (errno.EFBIG, "file too large); raise the limit (ulimit -f)"),
        (errno.EROFS, "read-only file system); make it writable"),
        (errno.EACCES, "permission denied); make it accessible"),
        (errno.EIO, "input/output error); check the disk"),
    ],
)
def test_errors_of_the_system_are_explained(number, said, small_disk, tmp_path):
    path = tmp_path / "a.json"
    found = cannot_write(OSError(number, os.strerror(number), str(path)))
    assert found.startswith(str(path))
    assert found.endswith(said)


def test_errors_of_libraries_are_explained(small_disk, tmp_path):
    """As tensorstore words them; a step stands for the files in its temporary folder."""
    inner = ValueError(
        f'RESOURCE_EXHAUSTED: Failed writing: "{tmp_path}/2.orbax-checkpoint-tmp/state.orbax-'
        'checkpoint-tmp/d/8a00": Failed to write 7 bytes: No space left on device [os_error_code='
    )
    outer = RuntimeError("save failed")
    outer.__cause__ = inner
    said = f"{tmp_path}/2 cannot be written (no space left on device, 100.0 MiB are free)"
    assert cannot_write(outer).startswith(said)
    assert cannot_write(ExceptionGroup("several", [KeyError("a"), inner])).startswith(said)


def test_other_errors_are_not(tmp_path):
    assert cannot_write(ValueError("a bug")) is None
    assert cannot_write(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None
    bug = KeyError("a bug")  # in what handles another error
    bug.__context__ = PermissionError(errno.EACCES, "Permission denied", "a")
    assert cannot_write(bug) is None


def test_a_failed_write_names_the_file_and_leaves_the_old_one(monkeypatch, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as failed:
        write_text(path, "new")
    assert failed.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(OSError, match="No space") as failed:
        MetricsFile(tmp_path / "m.jsonl").append({"generation": 1})
    assert failed.value.filename == str(tmp_path / "m.jsonl")


def test_all_is_written_where_a_write_takes_a_part():
    """As on a disk that is nearly full; the next write then fails, or there is room again."""

    class Slow:
        content = b""

        def write(self, more):
            self.content += more[:3]
            return len(more[:3])

    file = Slow()
    write_all(file, b"a row of metrics")
    assert file.content == b"a row of metrics"


def test_names_as_long_as_they_can_be(tmp_path):
    path = tmp_path / ("ü" * 127 + "x")  # 255 bytes
    write_atomically(path, b"a")
    assert path.read_bytes() == b"a"
