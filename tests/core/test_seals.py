"""Checksums beside files that a run reads again."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_text
from jaxalign.core.seals import change, check_sealed, seal_of, sealed


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "a.json"
    with sealed(path):
        write_text(path, "[1, 2, 3]")
    return path


def test_what_was_written_has_not_changed(path):
    assert change(path) is None
    check_sealed(path)


def test_any_change_is_noticed(path):
    path.write_text("[1, 2, 4]")
    assert change(path) == "is not what was written (its checksum is in .a.json.sum)"
    with pytest.raises(UserError, match=r"a\.json: is not .*\.a\.json\.sum\); restore"):
        check_sealed(path)
    path.unlink()
    assert change(path) == "is missing"
    seal_of(path).write_bytes(b"\xff\x00")  # a damaged one is no better
    path.write_text("[1, 2, 3]")
    assert change(path) == "is not what was written (its checksum is in .a.json.sum)"


def test_without_a_checksum_a_file_is_taken_as_it_is(tmp_path):
    """As of earlier versions, and where a kill has come between the two."""
    assert change(tmp_path / "a.json") is None
    write_text(tmp_path / "a.json", "[1]")
    assert change(tmp_path / "a.json") is None


def test_a_kill_while_a_file_is_replaced_leaves_no_wrong_checksum(path):

    def stopped() -> None:
        with sealed(path):
            write_text(path, "[4]")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert change(path) is None
    assert not seal_of(path).exists()
