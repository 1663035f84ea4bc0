"""Runs are compared by their answers to the items and countries that all of them have."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxalign.commands.compare import CompareSettings, compare
from jaxalign.core.errors import UserError
from jaxalign.methods.compare import compare_runs
from jaxalign.report.wording import IDENTICAL
from jaxalign.surveys.answer_table import AnswerTable
from jaxalign.surveys.survey import Item, Survey
from tests.support.pages import check_report

ITEMS = tuple(Item(f"q{n}", f"Question {n}?", ("a", "b", "c"), (1, 2, 3)) for n in range(8))


def survey(countries=("USA", "CHN")) -> Survey:
    people = {}
    for country in countries:
        random = np.random.default_rng(ord(country[0]))
        shares = {item.id: tuple(random.dirichlet(np.ones(3)).tolist()) for item in ITEMS}
        people[country] = shares
    return Survey("eight questions", "1", "made up", "official", ITEMS, people)


def write_run(folder, known: Survey, share: float, items: int = 8):
    """Write the answers of a persona that is `share` people's and else the first option."""
    table = AnswerTable()
    asked = known.subset({item.id for item in known.items[:items]})
    first = np.eye(3)[np.zeros(items, int)]
    for presentation, part in (("A", share), ("B", 0.0)):
        for country in asked.distributions:
            shares = part * asked.truth_QxO(country) + (1 - part) * first
            options = {"method": "persona", "country": country, "presentation": presentation}
            table.add(asked, np.log(np.maximum(shares, 1e-30)), **options)
    table.add(asked, np.log(np.full((items, 3), 1 / 3)), method="naive", presentation="A")
    table.add_people(asked, list(asked.distributions))
    folder.mkdir()
    table.write(folder)
    result = {
        "presentations": {"tuned": ["A"]},
        "warnings": [{"kind": "simulated", "text": "Nobody was asked."}],
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_scores_and_differences_are_over_what_all_runs_have(tmp_path):
    people = write_run(tmp_path / "people", survey(), 1.0)
    half = write_run(tmp_path / "half", survey(("CHN", "NGA", "USA")), 0.5, items=6)
    found = compare_runs([people, half])
    assert found["countries"] == ["USA", "CHN"]
    assert found["items"] == 6
    assert [warning["kind"] for warning in found["warnings"]] == ["simulated", "few"]
    rows = {(row["run"], row["method"]): row["mean"] for row in found["rows"]}
    assert rows[str(people), "persona"] == pytest.approx(1, abs=1e-4)
    differences = {d["method"]: d for d in found["differences"]}
    persona = differences["persona"]
    assert persona["high"] < 0
    distance = 1 - rows[str(half), "persona"]
    assert persona["mean"] == pytest.approx(-distance, abs=1e-4)
    # People of the same country in both, so the plain question is the same.
    naive = differences["naive"]
    assert (naive["mean"], naive["low"], naive["high"]) == (0, 0, 0)


def test_what_cannot_be_compared_is_one_line(tmp_path):
    run = write_run(tmp_path / "a", survey(), 1.0)
    other = write_run(tmp_path / "b", survey(("NGA",)), 1.0)
    known = survey()
    usa = known.distributions["USA"]
    mixed = {"USA": usa | {"q0": usa["q1"], "q1": usa["q0"]}, "CHN": known.distributions["CHN"]}
    another = Survey("another", "1", "made up", "official", ITEMS, mixed)
    namesakes = write_run(tmp_path / "c", another, 1.0)
    for runs, words in (
        ([run, namesakes], "people in USA answered q0 differently"),
        ([run], "two runs or more"),
        ([run, run], "each once"),
        ([run, tmp_path / "none"], "no answers_by_option.csv there"),
        ([run, other], "no country in common"),
    ):
        with pytest.raises(UserError, match=words):
            compare_runs(runs)


@pytest.mark.long
def test_the_command_prints_tables_and_writes_a_report(tmp_path, capsys):
    runs = [write_run(tmp_path / name, survey(), share) for name, share in (("a", 0.9), ("b", 0.4))]
    compare(CompareSettings(tuple(runs), tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "persona line" in printed
    assert IDENTICAL in printed
    check_report(tmp_path / "out")
