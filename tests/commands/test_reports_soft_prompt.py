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
from jaxalign.commands.reports.soft_prompt_statements import statements, verdict_notes
from jaxalign.commands.soft_prompt import print_result
from jaxalign.report.wording import NO_DIFFERENCE, NO_SIGNAL
from jaxalign.stats.result_warnings import SIMULATED_HELD_OUT, ResultWarning, no_option
from tests.support.pages import HOSTILE, check_page, check_report
from tests.support.report_samples import soft_prompt_sample
from tests.support.soft_prompt_result import example_result


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
    assert text.index('class="warning"') < label < text.index('class="label"')
    assert text.index('class="label"') < text.index("<h2>")
    for words in ("C = 50", "edition hofstede", "Permutation test", "weak evidence", NO_DIFFERENCE):
        assert words in text


def test_a_real_model_is_not_labelled_pocket(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA",))
    result["settings"]["model"] = "/models/Meta-Llama-3-8B-Instruct"
    result["warnings"] = [
        ResultWarning("simulated", SIMULATED_HELD_OUT).record(),
        no_option({"plain question": 0.27, "persona line": 0.9}).record(),
    ]
    page, text = (t.split("<h2>")[0].split("## ")[0] for t in _texts(result, tmp_path))
    assert "pocket" not in page
    assert page.index("Simulated.") < page.index("Warning: replies that name no option.")
    for head in (page, text):
        assert "In 73 % (plain question) of the probability the model does not answer" in head
    result["warnings"] = []
    assert "Simulated" not in _texts(result, tmp_path)[0].split("<h2>")[0]


def test_everything_is_in_the_reading_that_was_tuned(tmp_path: Path) -> None:
    """The control has no gradient in the most likely one: it is named by what it tuned."""
    result, _ = soft_prompt_sample(("USA",))
    result["settings"]["reading"] = "most_likely"
    entry = result["countries"]["USA"]
    losses = {"naive": (10.0, 93.0), "persona": (10.0, 91.0), "icl": (10.0, 92.0)}
    losses |= {"start": (10.0, 40.0), "tuned": (20.0, 41.0), "gradient": (1.0, 57.0)}
    for name, (expected, likely) in losses.items():
        for record in (entry[name], *entry[name]["presentations"].values()):
            record["expected"]["loss"] = expected
            record["most_likely"]["loss"] = likely
    _, text = _texts(result, tmp_path)
    assert (
        "Loss on presentation A, tuned on (most likely reading): the tuned prompt is below the "
        "strongest baseline (persona line) in 1 of 1 countries, below the prompt before tuning in "
        "0 of 1"
    ) in text
    assert (
        "tuned by gradients in the expected reading (the most likely one has none) have a lower "
        "loss on presentation A in the most likely reading in 0 of 1"
    ) in text
    assert "loss is below the strongest baseline's by +50.0 on A (tuned on)" in text
    assert "It is below that of the prompt before tuning by −1.0 on A (tuned on)" in text
    assert "| USA | 91.0 | 91.0 | 40.0 | 40.0 | 41.0 | 41.0 |" in text
    assert "same prompt by gradients (expected reading)" in text
    assert "Scores per country, most likely reading" in text
    assert "| USA, plain question | 10.0 | 93.0 |" in text  # both readings side by side


@pytest.mark.parametrize("signal", [True, False])
def test_the_gate_opens_the_report_and_rules_every_verdict(tmp_path: Path, signal: bool) -> None:
    result, _ = soft_prompt_sample(("USA", "CHN"), signal)
    page, text = _texts(result, tmp_path)
    first = page.split('class="label"')[1]
    assert f"Validity gate: {'passed' if signal else 'not passed'}." in first
    assert ("r = 0.31" if signal else "r = 0.03") in first
    held_out = text.split("## Held-out survey")[1].split("## ")[0]
    if signal:
        assert NO_DIFFERENCE in held_out
        assert NO_SIGNAL not in text
    else:
        for words in (NO_DIFFERENCE, "no effect", "significant", "nearer", "further", "more alike"):
            assert words not in text.replace("below 1: more alike than people", "")
        assert held_out.count(NO_SIGNAL) >= 6


def test_a_gain_that_vanishes_is_called_that_before_any_section(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA", "CHN"))
    head = _texts(result, tmp_path)[0].split("<h2>")[0]
    assert "The gain vanishes on presentations that were not tuned on." in head
    assert "mean over 2 countries, is below the strongest baseline" in head
    first, last = head.index("by +70.0 on A"), head.index("by +110.0 on A (tuned on); +96.0 on B,")
    assert first < last  # the plain question is named last
    assert "learned numbers" not in head  # the gain on B is kept, that on C is not
    result["measure"]["gain"]["tuned"]["CHN"]["verdict"] = "kept"
    head = _texts(result, tmp_path)[0].split("<h2>")[0]
    assert "in 2 countries: vanishes in 1 and kept in 1." in head
    assert "By country: vanishes in USA; kept in CHN." in head
    for gain in result["measure"]["gain"]["tuned"].values():
        gain |= {"verdict": "not tested", "untuned": None, "kept": None}
    head = _texts(result, tmp_path)[0].split("<h2>")[0]
    assert "The gain was not tested on presentations that were not tuned on." in head


def test_a_gain_that_goes_with_the_numbers_is_said_to(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA",))
    forms = result["countries"]["USA"]["tuned"]["presentations"]
    for name, loss in {"A": 10.0, "B": 170.0, "C": 15.0, "D": 150.0}.items():
        forms[name]["expected"]["loss"] = loss
    head = _texts(result, tmp_path)[0].split("<h2>")[0]
    assert "is lost where it has another one (B, D): the prompt has learned numbers." in head


def test_losses_where_tuned_on_and_where_not_stand_side_by_side(tmp_path: Path) -> None:
    result, _ = soft_prompt_sample(("USA",))
    _, text = _texts(result, tmp_path)
    columns = "| A (tuned on) | B (never tuned on) | C (never tuned on) | D (never tuned on) |"
    assert f"| Method {columns}" in text
    assert "| tuned soft prompt | 40.0 | 44.0 | 180.0 | 160.0 |" in text
    assert "| B | published order, numbers reversed | 3 never, 2 sometimes, 1 always |" in text
    assert "Tuned soft prompt answers 1 throughout on presentations A, B, C and D." in text
    assert "the answers follow the number, whatever stands behind it" in text
    assert "mean of other countries" in text


def test_seeds_and_sampled_replies_have_tables(tmp_path: Path) -> None:
    page, text = _texts(example_result(reading="sampled"), tmp_path)
    assert "Of answers averaged over A and B, which is what was minimised: +103.0." in page
    for words in (
        "| USA | 42.0 | 42.0 | 42.0 (39.0 to 45.0) | 42.0 (36.0 to 48.0) |",
        "intraclass correlation of 0.60 (0.50 to 0.70); 44 % of 96 items flip",
        "| Country and method | expected | most likely | sampled (tuned) |",
        "| plain question | 1,152 | 80 | 6 | 0 |",
        "| USA, generation 80 | 70.0 | 0.710 | 44.0 | 3.3 | 40.7 |",
    ):
        assert words in text
    one = _texts(example_result(seeds=(0,)), tmp_path)[1]
    assert "## Seeds" not in one
    assert "intraclass" not in one


def test_a_run_of_one_country_and_one_presentation(tmp_path: Path) -> None:
    result = example_result(("USA",), (0,), ("A",), ())
    page, text = _texts(result, tmp_path)
    assert "never tuned on" not in text
    assert "The gain was not tested on presentations that were not tuned on." in page
    assert "no other was asked" in text
    check_page(tmp_path / "report.html")


def test_a_loss_that_is_no_sum_of_points_keeps_its_decimals(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As of a distance between distributions, which has no scores, no target and no constants."""
    result, _ = soft_prompt_sample(("USA", "CHN"))
    for name in ("dimensions", "constants"):
        del result[name]
    result["settings"]["objective"] = "jensen-shannon"
    result["trivial"] = {c: {"uniform": 0.25, "own_mean": 0.5} for c in result["countries"]}
    for entry in result["countries"].values():
        entry["target"] = None
        for method in ("naive", "persona", "icl", "start", "tuned", "gradient"):
            record = entry[method]
            for part in (record, record["untuned"], *record["presentations"].values()):
                for reading in ("expected", "most_likely"):
                    part[reading] = {"loss": part[reading]["loss"] / 1000}
    page, text = _texts(result, tmp_path)
    assert "| tuned soft prompt | 0.040 | 0.044 | 0.180 | 0.160 |" in text
    assert "+0.110 on A (tuned on); +0.096 on B" in page
    assert "| USA | 0.250 | 0.500 |" in text
    print_result(result)
    assert "0.040" in capsys.readouterr().out


def test_the_terminal_says_what_the_report_says(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    result, _ = soft_prompt_sample(("USA", "CHN"), signal=False)
    _, text = _texts(result, tmp_path)
    print_result(result)
    printed = " ".join(capsys.readouterr().out.split())
    for note in verdict_notes(result):
        assert f"{note.lead} {note.text}" in printed
        assert f"**{note.lead}** {note.text}" in text
    for statement in statements(result):
        assert statement in printed
        assert statement in text


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
    assert "about 0.4 of 8 intervals" in _texts(result, tmp_path)[1]
    result["countries"]["USA"]["held_out"]["after_minus_permuted"] = None
    assert "of 7 intervals" in _texts(result, tmp_path)[1]


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
    # Names in Markdown are escaped; the tests are about words.
    return page.read_text("utf-8"), markdown.read_text("utf-8").replace("\\", "")


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
