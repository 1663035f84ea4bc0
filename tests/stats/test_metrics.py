"""The registry of metrics: what is in it, and that a new metric is one new file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.stats import metrics
from jaxalign.stats.analysis import analyse
from jaxalign.stats.metrics import DEFAULT_METRICS, HEADLINE, METRICS, select
from tests.support.report_samples import analysis_inputs

NEW_METRIC = """
import jax.numpy as jnp

from jaxalign.stats.metrics import metric


@metric("within_one_step", "share of items at most one option off", "a test", needs_order=True)
def within_one_step(pairs):
    return (pairs.gap > 1).astype(jnp.float32)
"""


def test_every_metric_of_the_package_is_used_by_default_and_described() -> None:
    assert set(METRICS.names()) == set(DEFAULT_METRICS)
    for name in DEFAULT_METRICS:
        entry = METRICS[name]
        assert entry.name == name
        assert entry.range == (0.0, 1.0)
        assert entry.source
        assert entry.label


def test_metrics_that_measure_order_say_so() -> None:
    ordinal = {name for name in DEFAULT_METRICS if METRICS[name].needs_order}
    assert ordinal == {"alignment_ordinal", "closeness", "wasserstein"}


def test_the_headline_metric_is_always_first_and_unknown_names_are_listed() -> None:
    assert [m.name for m in select(["wasserstein", HEADLINE])] == [HEADLINE, "wasserstein"]
    with pytest.raises(UserError, match=r"`metrics` nonsense: no such metric; .* wasserstein"):
        select(["nonsense"])


@pytest.fixture
def new_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a metric in a module that was put into the package's path, and nothing else."""
    (tmp_path / "one_step.py").write_text(NEW_METRIC)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    monkeypatch.setattr(METRICS, "_loaded", False)
    yield "within_one_step"
    sys.modules.pop("jaxalign.stats.metrics.one_step", None)


def test_a_metric_is_one_new_file(new_metric: str) -> None:
    survey, aware, unaware = analysis_inputs(("USA", "CHN"))
    analysis = analyse(survey, aware, unaware, resamples=20, metrics=[new_metric])
    assert list(analysis["labels"]["metrics"]) == [HEADLINE, new_metric]
    ordinal_Q = np.array([item.scale == "ordinal" for item in survey.items])
    gold_Q = np.array([survey.majority("USA")[item.id] for item in survey.items])
    scores = []
    for responses in aware["USA"]:
        answers_Q = responses.answers()[0, 0]
        gaps = np.abs(answers_Q - gold_Q)[ordinal_Q & ~np.isnan(answers_Q)]
        scores.append((gaps <= 1).mean())
    expected = 100 * np.mean(scores)
    found = analysis["intervals"]["aware"]["USA"][new_metric]["value"]
    assert found == pytest.approx(expected, abs=1e-3)
