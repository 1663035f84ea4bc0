"""What every report is made of: numbers, verdicts, escaping, and a map whose names keep apart."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxalign.report.common import provenance
from jaxalign.report.document import (
    Document,
    Estimate,
    Link,
    Listing,
    Note,
    Table,
    Text,
    section,
)
from jaxalign.report.figures import place_labels
from jaxalign.report.render import to_html, to_markdown, write_report
from jaxalign.report.wording import NO_DIFFERENCE, groups_note, number, tally, verdict
from tests.support.pages import HOSTILE, Page


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(0.2, -0.1, 0.5), f"{NO_DIFFERENCE} (the interval contains zero)"),
        (Estimate(0.2, 0.0, 0.5), f"{NO_DIFFERENCE} (the interval contains zero)"),
        (Estimate(0.2, 0.1, 0.5), "higher"),
        (Estimate(-0.2, -0.5, -0.1), "lower"),
        (Estimate(0.2), "no interval: nothing can be said"),
        (Estimate(math.nan, math.nan, math.nan), "–"),
        (None, "–"),
    ],
)
def test_verdict(estimate: Estimate | None, words: str) -> None:
    assert verdict(estimate) == words


def test_tally() -> None:
    found = [Estimate(1, 0.5, 2), Estimate(-1, -2, -0.5), Estimate(0, -1, 1), None, Estimate(3)]
    expected = f"up in 1, down in 1, {NO_DIFFERENCE} in 1 (of 3)"
    assert tally(found, "up", "down") == expected
    assert tally([None], "up", "down") == "not measured"


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [
        (1234.56, 1, False, "1,234.6"),
        (-0.04, 1, False, "0.0"),
        (-0.04, 2, True, "\u22120.04"),
        (0.04, 1, True, "0.0"),
        (0.0, 0, True, "0"),
        (None, 1, False, "–"),
        (math.inf, 1, False, "–"),
    ],
)
def test_number(value: float | None, digits: int, signed: bool, text: str) -> None:
    assert number(value, digits, signed) == text


def test_texts_are_escaped_in_both_forms(tmp_path: Path) -> None:
    table = Table(HOSTILE, ("A", HOSTILE), ((HOSTILE, "x"), ("y", None)))
    document = Document(
        HOSTILE,
        HOSTILE,
        (Note(HOSTILE, "label"),),
        (
            section(
                HOSTILE,
                Text(HOSTILE),
                Listing((HOSTILE,), HOSTILE),
                table,
                Table(HOSTILE, ("A",), ((HOSTILE,),), folded=True),
            ),
        ),
    )
    page, markdown = to_html(document, tmp_path), to_markdown(document, tmp_path)
    assert "<script" not in page
    assert Page(page).open == []
    assert "<script" not in markdown
    assert re.search(r"^\| y \| – \|$", markdown, re.M)


def test_tables_as_files(tmp_path: Path) -> None:
    """All digits and intervals in CSV; in LaTeX, text that is shown literally."""
    rows = (
        ("[USA] --x", Estimate(-1.25, -2.0, 1 / 3), 3, "R&D, 5 % of\n`a_b` \\{~^#$}"),
        ("*CHN", None, Link(4, "x.html"), True),
    )
    table = Table("Losses", ("country", "loss", "n", "why"), rows, digits=(0, 2, 0, 0))
    other = dataclasses.replace(table, caption="Losses!", rows=((*"abcd",),) * 41)
    write_report(Document("T", "S", (), (section("one", table, other),)), tmp_path)
    names = ["losses-2.csv", "losses-2.tex", "losses.csv", "losses.tex"]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == names
    with (tmp_path / "tables/losses.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["country", "loss", "loss (low)", "loss (high)", "n", "why"],
            ["[USA] --x", "-1.25", "-2.0", str(1 / 3), "3", "R&D, 5 % of\n`a_b` \\{~^#$}"],
            ["*CHN", "", "", "", "4", "yes"],
        ]
    latex = (tmp_path / "tables/losses.tex").read_text("utf-8")
    assert r"\caption{Losses}\label{tab:losses}" in latex
    shown = r"R\&D, 5 \% of `a\_b` \textbackslash{}\{\textasciitilde{}\textasciicircum{}\#\$\}"
    # After the end of a row, a bracket or a star would be taken for its argument.
    assert r"{[}USA{]} -{}-x & $-$1.25 ($-$2.00 to 0.33) & 3 & " + shown + r" \\" in latex
    assert "\n{*}CHN & -- & 4 & yes " in latex
    assert r"\begin{longtable}{llll}" in (tmp_path / "tables/losses-2.tex").read_text("utf-8")


def test_settings_say_where_their_values_come_from() -> None:
    result = {"settings": {"a": 1, "b": None}, "sources": {"a": "given"}, "versions": {"jax": "1"}}
    settings, versions = provenance(result).blocks
    assert settings.columns == ("Name", "Value", "Where it comes from")
    assert settings.rows == (("a", "1", "given"), ("b", "", None))
    assert versions.rows == (("jax", "1"),)


def test_names_on_a_map_keep_apart() -> None:
    points = np.array([[0.0, 0.0], [12.0, 0.0], [6.0, 9.0], [80.0, 80.0]])
    names = ["USA", "CHN", "IND", "SAU"]
    placed = points + np.array(place_labels(points, names))
    distances = np.linalg.norm(placed[:, None] - points[None], axis=-1)
    assert distances.argmin(axis=1).tolist() == [0, 1, 2, 3]
    apart = np.abs(placed[:, None] - placed[None])[np.triu_indices(4, k=1)]
    assert (np.any(apart > [18, 8.7], axis=-1)).all()


def test_needs_no_pyplot() -> None:
    code = "import sys, jaxalign.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_report_says_when_its_countries_are_groups():
    assert groups_note(["USA", "CHN"]) == ""
    said = groups_note(["USA:female:30-49", "USA:male:30-49"])
    assert said == " What is called a country here is a group within one: USA:female:30-49."
