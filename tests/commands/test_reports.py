"""Reports: well-formed pages that load nothing, every picture also in words and in a table,
whatever names and gaps the results hold."""

from __future__ import annotations

import copy
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from jaxalign.commands.reports import culture_report, soft_prompt_report
from jaxalign.commands.reports.survey_tables import metrics_table
from jaxalign.report.document import Document, Estimate, Listing, Note, Table, Text, section
from jaxalign.report.point_map import place_labels
from jaxalign.report.render import to_html, to_markdown
from jaxalign.report.words import INSIDE, number, tally, verdict
from tests.support.report_samples import analysis_sample, soft_prompt_sample

_VOID = {"meta", "br", "hr", "img", "link", "input"}
_HOSTILE = "<script>alert(1)</script> & | `$x^2$`"


class Page(HTMLParser):
    """Tags of a page, checked for balance; its figures with what stands inside each."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.ids: list[str] = []
        self.figures: list[dict[str, list]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "figure":
            self.figures.append({"alts": [], "tags": []})
        if "figure" in self.open:
            self.figures[-1]["tags"].append(tag)
            fields = dict(attrs)
            if fields.get("role") == "img":
                self.figures[-1]["alts"].append(fields.get("aria-label", ""))
        if tag == "th":
            assert dict(attrs).get("scope") in ("col", "row")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def check_page(path: Path) -> Page:
    """A page that stands alone: balanced, nothing loaded, no script, no identifier used twice."""
    text = path.read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert not set(page.tags) & {"script", "link", "iframe", "object", "image"}
    assert "://" not in text
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("#", "data:image/png;base64,"))
    assert len(page.ids) == len(set(page.ids))
    anchors = {v[1:] for n, v in page.attributes if n == "href"} | set(
        re.findall(r"url\(#(.*?)\)", text)
    )
    assert anchors <= set(page.ids)
    assert page.figures
    for figure in page.figures:
        assert len(figure["alts"]) == 1
        assert len(figure["alts"][0]) > 20
        assert {"svg", "figcaption", "details", "table", "caption"} <= set(figure["tags"])
    return page


def check_markdown(path: Path) -> str:
    """Pictures exist, with words in place of each; rows of a table are equally long."""
    text = path.read_text("utf-8")
    pictures = re.findall(r"!\[(.*?)\]\(<(.*?)>\)", text)
    assert pictures
    for alt, link in pictures:
        assert len(alt) > 20
        assert (path.parent / link).read_bytes()[:4] == b"\x89PNG"
    assert text.count("<details>") == text.count("</details>") >= len(pictures)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        cells = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(cells)) == 1, table
        assert re.fullmatch(r"\|( (---|---:) \|)+", table.splitlines()[1])
    return text


@pytest.fixture(scope="module")
def soft_prompt_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with its report; one country has a hostile name, another misses values."""
    out = tmp_path_factory.mktemp("run")
    result, metrics = soft_prompt_sample(("USA", _HOSTILE))
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    soft_prompt_report(result, out)
    return out


@pytest.fixture(scope="module")
def culture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("culture")
    culture_report(analysis_sample(("USA", "CHN", _HOSTILE)), out)
    return out


@pytest.mark.parametrize("run", ["soft_prompt_run", "culture_run"])
def test_page_and_markdown(run: str, request: pytest.FixtureRequest) -> None:
    out = request.getfixturevalue(run)
    check_page(out / "report.html")
    text = check_markdown(out / "report.md")
    for content in (text, (out / "report.html").read_text("utf-8")):
        assert "<script>" not in content
        assert "NaN" not in content
        assert not re.search(r"\b(nan|None)\b", content)


def test_soft_prompt_labels_and_statements(soft_prompt_run: Path) -> None:
    text = (soft_prompt_run / "report.html").read_text("utf-8")
    label = text.index("pocket Llama")
    assert text.index('class="label"') < label < text.index("<h2>")
    for words in ("C = 50", "edition hofstede", "Permutation test", "weak evidence", INSIDE):
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
        ("naive", 10, 93), ("icl", 10, 92), ("de", 20, 41), ("gradient", 1, 57),
    ):  # fmt: skip
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


def test_culture_labels_and_statements(culture_run: Path) -> None:
    text = (culture_run / "report.html").read_text("utf-8")
    assert (
        text.index('class="label"') < text.index("Simulated: nobody was asked") < text.index("<h2>")
    )
    for words in (
        "A persona is nearest to its own country in",
        "Two personas agree at",
        INSIDE,
        "8 lines that need no model",
        "ten options or more",
        "held no number",
        "topic 2",
    ):
        assert words in text  # fmt: skip


def test_means_set_side_by_side_are_over_the_same_countries() -> None:
    analysis = analysis_sample(("USA", "CHN", "IND"), personas=2)
    rows = {row[0]: row for row in metrics_table(analysis).rows}
    for _, aware, unaware, difference, _ in rows.values():
        assert aware.mean - unaware.mean == pytest.approx(difference.mean, abs=0.01)


def test_one_persona_is_a_mean_over_one_country(tmp_path: Path) -> None:
    culture_report(analysis_sample(("USA", "CHN"), personas=1), tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "Mean over 1 country:" in text
    assert "1 countries" not in text


def test_a_survey_without_personas(tmp_path: Path) -> None:
    culture_report(analysis_sample(("USA", "CHN", "IND"), personas=0), tmp_path)
    check_page(tmp_path / "report.html")
    text = check_markdown(tmp_path / "report.md")
    assert "A model without a persona" in text
    assert "persona is nearest" not in text


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


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(0.2, -0.1, 0.5), f"{INSIDE}: no difference shown"),
        (Estimate(0.2, 0.0, 0.5), f"{INSIDE}: no difference shown"),
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
    expected = f"up in 1, down in 1, {INSIDE} in 1 (of 3)"
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
    table = Table(_HOSTILE, ("A", _HOSTILE), ((_HOSTILE, "x"), ("y", None)))
    document = Document(
        _HOSTILE, _HOSTILE, (Note(_HOSTILE, "label"),),
        (section(_HOSTILE, Text(_HOSTILE), Listing((_HOSTILE,), _HOSTILE), table,
                 Table(_HOSTILE, ("A",), ((_HOSTILE,),), folded=True)),),
    )  # fmt: skip
    page, markdown = to_html(document), to_markdown(document, tmp_path)
    assert "<script" not in page
    assert Page(page).open == []
    assert "<script" not in markdown
    assert re.search(r"^\| y \| – \|$", markdown, re.M)


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
