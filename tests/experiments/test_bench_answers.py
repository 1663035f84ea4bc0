"""Test the benchmark of exact answers: what it counts, not how long anything takes."""

from __future__ import annotations

import json

import pytest

from experiments.bench import answers as bench
from jaxalign.core.errors import UserError


@pytest.mark.long
def test_every_style_is_timed_beside_the_search(tmp_path, capsys):
    file = tmp_path / "answers.json"
    bench.bench(bench.Config(countries=3, sample=80, candidates=4, questions=52, json=file))
    result = json.loads(file.read_text())
    search, whole, *with_examples = result["parts"]
    assert search["conversations"] == 4 * 24
    # Unaware is asked once, P1 and P2 for each country.
    assert whole["conversations"] % (1 + 2 * 3) == 0
    assert [part["conversations"] for part in with_examples] == [80, 80, 80]
    for part in result["parts"]:
        assert 0 < part["distinct"] <= part["padded"]
        assert part["distinct"] <= part["asked"]
        assert part["flops"] > 0
    assert result["projection"]["conversations"] == 52 * 7
    shown = capsys.readouterr().out
    assert "projected, not measured" in shown
    assert "P2P3" in shown


def test_a_survey_without_countries_to_ask_for_is_refused():
    with pytest.raises(UserError, match="`countries` 0 must be at least 1"):
        bench.bench(bench.Config(countries=0))
