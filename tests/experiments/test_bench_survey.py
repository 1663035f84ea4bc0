"""The benchmark of reading survey files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from experiments.bench.survey import __main__ as bench_survey
from jaxalign.core.errors import UserError


def test_bench_survey(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "bench.json"
    config = bench_survey.Config(rows=200, columns=16, repeats=1, json=out)
    figures = bench_survey.run(config)
    assert json.loads(out.read_text()) == figures
    for kind in ("csv", "sav"):
        assert figures["files"][kind]["ours"]["peak_mb"] > 10
        assert figures["files"][kind]["ours"]["seconds"] > 0
    said = capsys.readouterr().out
    assert "pandas is not installed: no comparison" in said
    assert "load average" in said
    with pytest.raises(UserError, match="columns=9"):
        bench_survey.Config(columns=9)
    with pytest.raises(UserError, match=r"`json` .*absent.*: no such folder"):
        bench_survey.Config(json=tmp_path / "absent" / "b.json")
