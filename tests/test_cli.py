"""The `jaxalign` program: it lists its commands, and each of them can be loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io

import pytest

from jaxalign.cli import COMMANDS, load, main
from jaxalign.runs.settings import flags


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_it_lists_its_commands(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(args)
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert command.summary in out


def test_it_has_a_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"jaxalign {importlib.metadata.version('jaxalign')}\n"


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tune"])
    assert capsys.readouterr().err.startswith("error: no command 'tune'; choose from soft-prompt,")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_settings_that_are_documented(name: str) -> None:
    """Every setting has a flag of its own, and the settings have a help text."""
    function, config_class = load(COMMANDS[name])
    assert callable(function)
    assert dataclasses.is_dataclass(config_class)
    assert config_class.__doc__
    assert not config_class.__doc__.startswith(f"{config_class.__name__}(")
    spelled = list(flags(config_class).values())
    assert len(set(spelled)) == len(spelled)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_called_by_its_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: jaxalign {name} [-h]")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("args", [["score", "--help"], ["chat", "--help"], ["--help"], ["sow"]])
def test_a_terminal_without_utf_8_gets_question_marks(
    args: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case S1: help texts are drawn in boxes, and tables hold dashes."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in "oe"]
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    with contextlib.suppress(SystemExit):
        main(args)
        print("· – ×")
    for stream in streams:
        stream.flush()
    said = b"".join(stream.buffer.getvalue() for stream in streams)
    assert b"usage: jaxalign" in said or b"no command" in said
