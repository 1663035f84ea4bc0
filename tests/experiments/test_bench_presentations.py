"""The benchmark of presentations: what it counts, not how long anything takes."""

from __future__ import annotations

import json

import pytest

from experiments.bench import presentations as bench
from jaxalign.core.errors import UserError


@pytest.mark.long
def test_forms_share_what_they_begin_with(tmp_path, capsys):
    file = tmp_path / "presentations.json"
    bench.bench(bench.Config(candidates=2, repeats=2, json=file))
    one, two, four = json.loads(file.read_text())["presentations"].values()
    assert (one["tokens_asked"] * 2, one["tokens_asked"] * 4) == (
        two["tokens_asked"],
        four["tokens_asked"],
    )
    assert one["tokens_computed"] < two["tokens_computed"] < 2 * one["tokens_computed"]
    assert two["tokens_computed"] < four["tokens_computed"] < 2 * two["tokens_computed"]
    assert one["times_as_long_as_one"] == {"median": 1, "min": 1, "max": 1}
    assert "four: A, B, C, D" in capsys.readouterr().out


def test_nothing_to_measure_is_refused():
    with pytest.raises(UserError, match="`candidates` and `repeats` must be at least 1"):
        bench.Config(repeats=0)
