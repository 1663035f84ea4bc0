"""Test the pages that are generated when the site is built."""

from __future__ import annotations

import importlib.util
import io
import re

import pytest

import jaxalign
from jaxalign import cli
from tests.docs.pages import ROOT

_SPEC = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hooks)


def test_the_api_page_lists_every_public_name_once():
    listed = re.findall(r"^<!-- jaxalign\.([\w.]+) -->\n::: jaxalign\.", hooks.api_page(), re.M)
    assert sorted(listed) == sorted([*jaxalign._HOMES, *hooks.ROOM_NAMES])


def test_the_groups_of_the_api_page_name_public_names_only():
    named = {name for group in hooks.GROUPS.values() for name in group}
    assert named <= {*jaxalign._HOMES, *hooks.ROOM_NAMES}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_page_of_commands_has_every_option(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as the hook captures it
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    out.flush()
    text = out.buffer.getvalue().decode()
    options = [option for _, box in hooks.read_help(text) for option, _ in box]
    starts = {option.split()[0].rstrip(",") for option in options}
    expected = set(re.findall(r"^│ (--?[a-z][\w.-]*)", text, re.M))
    assert expected
    assert expected <= starts, "an option is missing from the page"


def test_descriptions_are_joined_and_escaped():
    text = "\n".join(
        (
            "╭─ options ───────────────────────────╮",
            "│ --out {None}|PATH  Directory of     │",
            "│                    runs/<date>.     │",
        )
    )
    assert hooks.read_help(text) == [("options", [("--out PATH", "Directory of runs/<date>.")])]
    assert "runs/&lt;date&gt;." in hooks.section("check", "Check.", text)
