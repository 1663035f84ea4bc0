"""What strangers wrote is shown on the terminal and not obeyed by it."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest

from jaxalign.core.streams import drawing_stream, replace_what_cannot_be_printed, visible
from jaxalign.runs.console import print_table

HOSTILE = "a\x1b]0;title\x07b\x1b[2Kc\r\x9b31md\x00"
SHOWN = "a\\x1b]0;title\\x07b\\x1b[2Kc\\x0d\\x9b31md\\x00"


def test_control_characters_are_written_out_and_others_stay() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("Ça va\n\t日本 – “ok”") == "Ça va\n\t日本 – “ok”"


def test_printing_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    replace_what_cannot_be_printed()
    replace_what_cannot_be_printed()  # a second time changes nothing
    print(HOSTILE)
    print(HOSTILE, file=sys.stderr)
    assert out.getvalue() == error.getvalue() == f"{SHOWN}\n"
    # What draws itself writes to the stream as it is.
    assert drawing_stream() is out
    print_table(HOSTILE, [HOSTILE], [[HOSTILE]])
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count(SHOWN) == 4


def test_other_streams_are_drawn_on_as_they_are() -> None:
    plain = io.StringIO()
    with contextlib.redirect_stdout(plain):
        assert drawing_stream() is plain
