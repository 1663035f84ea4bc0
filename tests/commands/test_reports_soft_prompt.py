"""The report of a soft-prompt run: well-formed pages that load nothing, every picture also in words
and in a table, whatever names and gaps the results hold."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import matplotlib
import pytest

from jaxalign.commands.reports import soft_prompt_report
from jaxalign.report.wording import NO_DIFFERENCE
from tests.support.pages import HOSTILE, check_page, check_report
from tests.support.report_samples import soft_prompt_sample


@pytest.fixture(scope="module")
def soft_prompt_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with its report; one country has a hostile name, another misses values."""
    out = tmp_path_factory.mktemp("run")
    result, metrics = soft_prompt_sample(("USA", HOSTILE))
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    soft_prompt_report(result, out)
    return out


def test_page_and_markdown(soft_prompt_run: Path) -> None:
    check_report(soft_prompt_run)


def test_soft_prompt_labels_and_statements(soft_prompt_run: Path) -> None:
    text = (soft_prompt_run / "report.html").read_text("utf-8")
    label = text.index("pocket Llama")
    assert text.index('class="label"') < label < text.index("<h2>")
    for words in ("C = 50", "edition hofstede", "Permutation test", "weak evidence", NO_DIFFERENCE):
        assert words in text


def test_a_real_model_is_not_labelled_pocket(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA",))
    result["settings"]["model"] = "/models/Meta-Llama-3-8B-Instruct"
    page, _ = _texts(result, tmp_path)
    assert "pocket" not in page.split("<h2>")[0]
    assert "simulated" in page.split("<h2>")[0]  # the survey still is
    result["held_out"]["simulated"] = False
    assert 'class="label"' not in _texts(result, tmp_path)[0]


def test_everything_is_in_the_reading_that_was_tuned(tmp_path: Path) -> None:
    """The control has no gradient in the most likely one: it is named by what it tuned."""
    result, _ = soft_prompt_sample(("USA",))
    result["settings"]["reading"] = "most_likely"
    entry = result["countries"]["USA"]
    for name, expected, likely in (
        ("naive", 10, 93),
        ("icl", 10, 92),
        ("tuned", 20, 41),
        ("gradient", 1, 57),
    ):
        scores = {"scores": [50.0] * 6}
        losses = {"expected": {"loss": expected} | scores, "most_likely": {"loss": likely} | scores}
        entry[name] = losses | {"valid_mass": 1.0}
    _, text = _texts(result, tmp_path)
    assert "(most likely reading): the tuned prompt is below the plain question in 1 of 1" in text
    assert (
        "tuned by gradients in the expected reading (the most likely has none) have a lower loss "
        "in the most likely reading in 0 of 1"
    ) in text
    assert re.search(r"\| USA \| 93[.0]* \| 92[.0]* \| 41[.0]* \| 20[.0]* \|", text)
    assert "same prompt by gradients (expected reading)" in text
    assert "Scores per country, most likely reading" in text
    assert "Loss in the expected reading" in text


@pytest.mark.parametrize(("penalty", "words"), [(0.0, "Loss"), (5.0, "Loss + penalty")])
def test_the_curve_is_what_was_minimised_of_the_best_so_far(
    tmp_path: Path, penalty: float, words: str
) -> None:
    """The tuned prompt is the best ever seen, not the best of the last generation (99.0)."""
    result, metrics = soft_prompt_sample(("USA",))
    result["settings"]["penalty"] = penalty
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    page, text = _texts(result, tmp_path)
    assert "best soft prompt so far" in page
    for said in (f"{words} over generations", "USA, best so far"):
        assert said in text.replace("\\", "")
        assert said in page
    assert ("penalty" in page.split("<h2>Settings")[0]) == (penalty > 0)
    assert re.search(r"\| 30 \| 2.7 \|", text)
    assert "99.0" not in text


def test_constants_are_of_the_dimensions_used(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA",))
    result["constants"] = [54.0, None, 31.5, None, None, None]
    result["settings"]["anchor"] = ["DEU"]
    _, text = _texts(result, tmp_path)
    assert "C: PDI 54.0, MAS 31.5 (least squares on DEU)." in text
    assert "IDV 0.0" not in text


def test_chance_counts_the_intervals_that_are_shown(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA", "CHN"))
    assert "about 0.3 of 6 intervals" in _texts(result, tmp_path)[1]
    result["countries"]["USA"]["held_out"]["after_minus_permuted"] = None
    assert "of 5 intervals" in _texts(result, tmp_path)[1]


def test_the_summary_names_the_algorithm_and_counts_countries(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("CHN",))
    _, text = _texts(result, tmp_path)
    assert "One soft prompt for CHN, tuned by Differential Evolution so" in text
    result["settings"]["strategy.algorithm"] = "CMA_ES"
    assert "tuned by Differential Evolution" not in _texts(result, tmp_path)[1]
    assert "tuned by CMA_ES so" in (tmp_path / "report.md").read_text("utf-8").replace("\\", "")
    two, _ = soft_prompt_sample(("CHN", "USA"))
    assert "One soft prompt for each of CHN and USA, tuned" in _texts(two, tmp_path)[1]


def _texts(result: dict, out: Path) -> tuple[str, str]:
    markdown, page = soft_prompt_report(result, out)
    return page.read_text("utf-8"), markdown.read_text("utf-8")


def test_missing_values_are_dashes(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA", "CHN"))
    for name in ("before", "permuted", "after_minus_before"):
        result["countries"]["USA"]["held_out"][name] = None
    result["countries"]["USA"]["target"][3] = None
    result["held_out"]["matrix"][0][1] = None
    page, markdown = _texts(result, tmp_path)
    assert '<td class="n">–</td>' in page
    assert "| – |" in markdown
    check_page(tmp_path / "report.html")


def test_the_result_is_left_alone_and_the_report_is_the_same_twice(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA", "CHN"))
    before = copy.deepcopy(result)
    settings = dict(matplotlib.rcParams)
    first, second = _texts(result, tmp_path / "a"), _texts(result, tmp_path / "b")
    assert first == second
    assert result == before
    assert dict(matplotlib.rcParams) == settings
