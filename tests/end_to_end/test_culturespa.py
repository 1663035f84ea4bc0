"""CultureSPA as a user runs it: a process, its files, its exit codes; stopped and resumed; and the
studies of a finished run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.culturespa.studies import topics
from experiments.culturespa.studies.matrices import correlations, mantel
from jaxalign.answering.batch import Answered
from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import write_plots
from jaxalign.commands.reports.culturespa_tables import show_result
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import LM, open_model
from jaxalign.methods.base import CULTURESPA_METHODS
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa.inputs import read_inputs
from jaxalign.methods.culturespa.measure import Measured
from jaxalign.methods.culturespa.result import (
    SELECTION_MODELS,
    difference,
    guard_record,
    make_record,
    paired,
)
from jaxalign.methods.culturespa.select import Pair, Selection, describe_selection
from jaxalign.pocket.society import held_out_survey
from jaxalign.stats.bootstrap import count_draws
from jaxalign.stats.paired_scores import drawn_scores
from jaxalign.surveys.survey import to_json
from jaxalign.surveys.tables import make_tables

ROOT = Path(__file__).parents[2]
METHODS = [method.key for method in CULTURESPA_METHODS]
COUNTRIES = ["USA", "CHN", "NGA", "SWE"]
SMALL = [
    "--countries", *COUNTRIES, "--per-topic", "4", "--seeds", "2", "--resamples", "50",
    "--writing.max-new-tokens", "96", "--batch-size", "8", "--block-tokens", "1024",
    "--train.no-unroll", "--train.batch", "2", "--specific-batch", "2", "--save-every", "2",
    "--quiet",
]  # fmt: skip


def start(module: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def run(module: str, *arguments) -> str:
    process = start(module, *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    """A survey of two topics and a guard of a few questions, as files, and the other options."""
    folder = tmp_path_factory.mktemp("inputs")
    survey = held_out_survey()
    topics = sorted({item.topic for item in survey.items})[:2]
    small = survey.subset({item.id for item in survey.items if item.topic in topics})
    small = dataclasses.replace(small, name="two topics")
    (folder / "survey.json").write_text(json.dumps(to_json(small)), "utf-8")
    rows = [f"Which number is the largest?,{n},{n + 20},{n + 3},{n + 1},B" for n in range(8)]
    (folder / "guard.csv").write_text("\n".join(["question,A,B,C,D,answer", *rows]), "utf-8")
    return [*SMALL, "--survey", str(folder / "survey.json"), "--guard", str(folder / "guard.csv")]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    """A small run never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert "Cultural alignment score" in run("culturespa", "--out", folder, *inputs)
    return folder


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text("utf-8"))


def test_result_has_the_documented_format(finished):
    result = result_of(finished)
    assert list(result["methods"]) == METHODS
    assert not any(models["all"] for models in result["untrained"].values())
    for record in (*result["methods"].values(), *result["selection"].values()):
        assert list(record["countries"]) == COUNTRIES
        assert record["mean"] == pytest.approx(np.mean(list(record["countries"].values())))
        low, high = record["interval"]
        assert 0 <= low <= record["mean"] <= high <= 100
        assert record["mean"] == pytest.approx(np.mean(record["by_seed"]))
    assert list(result["selection"]) == ["crqpc", "rds", "cds"]
    assert result["selection"]["crqpc"] == result["methods"]["joint"]
    joint, p1 = (result["methods"][m]["mean"] for m in ("joint", "p1"))
    assert result["differences"]["joint_minus_p1"]["value"] == pytest.approx(joint - p1, abs=1e-4)
    assert set(result["guard"]["after"]) == {"joint", "specific", "cct", "rds", "cds"}
    assert {"settings", "facts", "versions", "lines", "personas"} <= set(result)


def test_the_page_holds_its_pictures(finished):
    """Drawn into it, so that it stands alone."""
    page = (finished / "report.html").read_text("utf-8")
    assert page.count('class="drawing wide"') == 2
    assert "<img" not in page


def test_questions_add_up(finished):
    questions = result_of(finished)["questions"]
    assert questions["asked_for"] == 2 * 2 * 4  # seeds, topics, each
    refused = sum(sum(row["refused"].values()) for row in questions["by_seed"].values())
    assert questions["requests"] == questions["parsed"] + refused
    assert questions["left"] == questions["parsed"] - sum(questions["removed"].values())


def test_selected_data_are_conversations_of_one_size(finished):
    result = result_of(finished)
    for seed in ("seed0", "seed1"):
        folder = finished / seed / "selected"
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        assert set(info) == {"joint", "cct", "rds", "cds"}
        pairs = result["selected"][seed]["pairs"]
        assert pairs["rds"] == pairs["joint"]
        for country, size in pairs["joint"].items():
            missing = result["selected"][seed]["missing"]["cds"].get(country, 0)
            assert pairs["cds"].get(country, 0) == size - missing
        for method in info:
            lines = (folder / f"{method}.jsonl").read_text("utf-8").splitlines()
            assert len(lines) == sum(pairs[method].values())
            for line in lines:
                messages = json.loads(line)["messages"]
                assert [m["role"] for m in messages] == ["system", "user", "assistant"]
                assert messages[-1]["content"].isdigit()


def test_seeds_write_other_questions(finished):
    texts = [(finished / s / "questions.json").read_text("utf-8") for s in ("seed0", "seed1")]
    assert texts[0] != texts[1]


def test_adapters_are_for_peft_and_pictures_are_there(finished):
    lm = LM(open_model(), {}, None)
    adapter = Adapter.load(finished / "seed0" / "adapters" / "joint", lm)
    assert adapter.config.rank == 8
    assert np.abs(adapter.weights["last"]["q_b"]).max() > 0
    for name in ("methods.png", "selection.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert "CultureSPA" in (finished / "report.md").read_text("utf-8")
    assert (finished / "report.html").stat().st_size > 10_000


@pytest.mark.long
def test_resumed_after_each_step_ends_with_the_same_result(finished, inputs, tmp_path):
    """What is on disk when a step has ended, and the rest done again."""
    later = ["result.json", "answers.json", "answers", "training"]
    for stage, gone in (
        ("questions", ["selected", "adapters"]),
        ("adapters", []),
    ):
        folder = tmp_path / stage
        shutil.copytree(finished, folder)
        for name in later:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in gone:
            for seed in ("seed0", "seed1"):
                shutil.rmtree(folder / seed / name)
        run("culturespa", "--out", folder, "--resume", *inputs)
        assert (folder / "result.json").read_bytes() == (finished / "result.json").read_bytes()


@pytest.mark.long
def test_killed_while_training_and_while_measuring_equals_unbroken(finished, inputs, tmp_path):
    folder = tmp_path / "killed"
    for sign in ("seed0/questions.json", "training/shared/2", "seed0/adapters/joint"):
        process = start("culturespa", "--out", folder, "--resume", *inputs)
        while not (folder / sign).exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run("culturespa", "--out", folder, "--resume", *inputs)
    assert (folder / "result.json").read_bytes() == (finished / "result.json").read_bytes()


def test_a_resumed_run_with_another_setting_is_refused(finished, inputs):
    arguments = [*inputs, "--seeds", "3"]
    process = start("culturespa", "--out", finished, "--resume", *arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--seeds" in err
    assert err.count("\n") == 1


def test_studies_of_a_finished_run(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert "by topic" in run("culturespa.studies.topics", folder)
    assert "Mantel" in run("culturespa.studies.matrices", folder)
    assert "CRQPC (changed)" in run("culturespa.studies.selection", folder)
    assert "Guard" in run("culturespa.studies.guard", folder, "--quiet")
    result, guard = (json.loads((folder / f"{n}.json").read_text()) for n in ("result", "guard"))
    assert guard["after"] == result["guard"]["after"]
    for name in ("topics", "matrices", "strategies", "guard"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_studies_that_train_anew(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert "fraction" in run(
        "culturespa.studies.fractions", folder, "--fractions", "0.5", "--quiet"
    )
    record = json.loads((folder / "fractions.json").read_text("utf-8"))
    assert list(record) == ["0", "0.5", "1"]
    assert record["0"]["pairs"] < record["0.5"]["pairs"] < record["1"]["pairs"]
    run("culturespa.studies.selection", folder, "--thresholds", "0.02", "--quiet")
    strategies = json.loads((folder / "selection.json").read_text("utf-8"))["strategies"]
    assert list(strategies) == ["crqpc", "rds", "cds", "p1", "jensen_shannon-0.02"]


@pytest.mark.long
def test_learning_rates_told_apart_on_questions_held_out(finished, tmp_path):
    """No question is on both sides, and a rate of almost nothing leaves the loss where it was."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    arguments = ("--rates", "1e-9", "3e-3", "--share", "0.3", "--quiet")
    assert "the lowest after it is at" in run(
        "culturespa.studies.learning_rate", folder, *arguments
    )
    record = json.loads((folder / "learning_rate.json").read_text("utf-8"))
    assert list(record["rates"]) == ["1e-09", "0.003"]
    still, moved = (abs(r["held_out"] - record["before"]) for r in record["rates"].values())
    assert still < 1e-5 < 1e-3 < moved
    assert record["lowest"] == min(record["rates"], key=lambda r: record["rates"][r]["held_out"])
    assert (folder / "learning_rate.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"countries": ("USA",)}, "`countries` USA"),
        ({"countries": ("USA", "XXX")}, "XXX"),
        ({"seeds": 0}, "`seeds` 0"),
        ({"per_topic": 1}, "`per_topic` 1"),
        ({"model": Path("/nowhere")}, "/nowhere"),
        ({"survey": Path("/nowhere.json")}, "/nowhere.json"),
        ({"guard": Path("/nowhere.csv")}, "/nowhere.csv"),
    ],
)
def test_bad_settings_are_refused_before_any_work(change, said):
    with pytest.raises(UserError, match=said):
        read_inputs(CultureSPASettings(**change))


def test_a_setting_that_fits_no_model_is_refused():
    writing = dataclasses.replace(CultureSPASettings().writing, max_new_tokens=4000)
    with pytest.raises(UserError, match=r"`writing\.max_new_tokens`"):
        read_inputs(CultureSPASettings(writing=writing))


def test_leak_free_examples_come_from_another_survey():
    inputs = read_inputs(CultureSPASettings(examples="leak_free"))
    tested = {item.text for item in inputs.survey.items}
    messages = inputs.prompts.lead_in("p3", "CHN", inputs.survey.items[0])
    assert not any(text in m["content"] for m in messages for text in tested)


def test_mantel_counts_the_orders_that_do_as_well():
    b = np.array([[0, 1, 2, 3], [1, 0, 4, 5], [2, 4, 0, 6], [3, 5, 6, 0]], float)
    assert mantel(b, b) == pytest.approx(1 / 24)  # only the identity maps b onto itself
    assert mantel(-b, b) == pytest.approx(1.0)
    assert mantel(np.ones((4, 4)), b) is None
    unknown = np.where(b == 6, np.nan, b)
    assert mantel(unknown, b) is None
    found = correlations(np.stack([unknown, unknown]), b)
    assert found["pearson"]["mean"] is found["mantel_p"] is None


def test_a_difference_is_over_the_items_that_both_answered():
    """Two seeds of a method that leaves out what it would get wrong, and one that leaves nothing
    out and cannot differ between seeds."""
    inputs = SimpleNamespace(tables=make_tables(held_out_survey(), COUNTRIES))
    gold_CxQ = inputs.tables.gold_CxQ
    whole = np.zeros((1, 3, *gold_CxQ.shape), np.float32)
    some = np.repeat(np.where(whole == gold_CxQ, whole, np.nan), 2, axis=0)
    draws = count_draws(gold_CxQ.shape[1], 20, 0)
    a, b = paired(some, whole, inputs, draws)
    assert a.shape == b.shape == (21, 2, len(COUNTRIES))
    assert difference(a, b)["value"] == 0
    apart = [drawn_scores(x[:, 0], inputs.tables, draws)[0].mean() for x in (some, whole)]
    assert apart[0] == 100 > apart[1] + 20, "each over its own items"


def test_the_share_changed_is_of_the_questions_answered_both_ways():
    """Three questions of four answered unaware, two of these by the persona, one changed."""

    def answered(*answers):
        shares = [[[np.nan] * 2 if a is None else np.eye(2)[a] for a in row] for row in answers]
        return Answered(np.array(shares, np.float32))

    groups = ("USA", "CHN")
    given = {"unaware": answered((0, 0, 0, None)), "p1": answered((1, 0, None, 0), (None,) * 4)}
    joint = Selection((Pair("USA", held_out_survey().items[0].id, 2),))
    found = describe_selection(given, groups, {"joint": joint})
    assert found["questions"] == 4
    assert found["changed_share"] == {"USA": 0.5, "CHN": None}
    assert found["noise"] == 0
    nobody = given | {"unaware": answered((None,) * 4)}
    assert describe_selection(nobody, groups, {"joint": joint})["noise"] is None


def test_intervals_of_shares_end_where_shares_do():
    bounds = topics._estimate(np.array([25.0, 50.0]))
    assert (bounds["low"], bounds["mean"], bounds["high"]) == (0, 37.5, 100)


@pytest.mark.parametrize(
    ("seeds", "words"),
    [([3.0], "higher, over questions only"), ([3.0, 3.1, 2.9], "higher"),
     ([-3.0], "lower, over questions only"), ([9.0, 0.1], "not told apart"),
     ([0.0], "not told apart, over questions only")],
)  # fmt: skip
def test_the_verdict_says_where_there_is_no_interval_over_seeds(seeds, words):
    scores = np.tile(np.array(seeds)[None, :, None], (20, 1, 2))
    assert difference(scores, np.zeros_like(scores))["verdict"] == words


def test_a_country_without_a_readable_answer_is_null_and_ends_no_run(tmp_path):
    """A small model sampled on a hard survey may say nothing that can be read."""
    settings = CultureSPASettings(countries=("USA", "CHN"), resamples=20, seeds=2)
    survey = held_out_survey()
    tables = make_tables(survey, settings.countries)
    inputs = SimpleNamespace(survey=survey, tables=tables, guard_name="", guard=())
    random = np.random.default_rng(0)
    answers = {m: random.integers(0, 2, (2, 1, 2, len(survey.items))).astype(np.float32)
               for m in (*METHODS, "rds", "cds")}  # fmt: skip
    answers["unaware"][1, :, 0] = np.nan
    answers["joint"][:] = np.nan
    right = {"before": [0.9], "joint": [0.9, 0.9]}
    counts = {"asked_for": 1, "requests": 1, "parsed": 1, "left": 1, "removed": {}}
    measured = Measured(answers, right, counts={}, untrained={})
    selected = {0: {"pairs": {m: {} for m in SELECTION_MODELS.values()}}}
    result = make_record(settings, inputs, measured, {0: counts}, selected, {"simulated": True})
    write_json(tmp_path / "result.json", result)  # refuses NaN
    unaware = result["methods"]["unaware"]
    assert unaware["countries"]["USA"] is unaware["mean"] is unaware["interval"] is None
    assert unaware["countries"]["CHN"] > 0
    assert unaware["by_seed"][0] > 0
    assert unaware["by_seed"][1] is None
    assert result["differences"]["joint_minus_p1"]["verdict"] == "no answers"
    assert result["personas"]["joint"]["agreement"] is None
    show_result(result)
    write_plots(tmp_path, result)
    write_culturespa_report(result, tmp_path)
    assert "joint − p1: no answers." in (tmp_path / "report.md").read_text("utf-8")


def test_the_guard_speaks_of_the_mean_change():
    record = guard_record({"before": [0.9], "joint": [0.9, 0.92], "cct": [0.8, 0.9]}, "test", 100)
    assert record["change"]["joint"]["mean"] == pytest.approx(1.0)
    assert record["change"]["joint"]["within"] or record["change"]["joint"]["mean"] > 1
    assert not record["change"]["cct"]["within"]
    low, high = record["change"]["cct"]["seed_interval"]
    assert low < -5 < high
