"""CultureSPA as a user runs it: a process, its files, its exit codes; stopped and resumed; and the
studies of a finished run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import LM, open_model
from jaxalign.methods.base import CULTURESPA_METHODS
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.survey import to_json

pytestmark = pytest.mark.long  # each test needs a whole run

ROOT = Path(__file__).parents[2]
METHODS = [method.key for method in CULTURESPA_METHODS]
COUNTRIES = ["USA", "CHN", "NGA", "SWE"]
# In two presentations that agree on what a number means: the pocket model answers the number, so
# that naming a country would change next to nothing in the mean over A and B.
SMALL = (
    f"--countries {' '.join(COUNTRIES)} --per-topic 4 --seeds 2 --resamples 50 "
    "--presentations A C "
    "--writing.max-new-tokens 96 --batch-size 8 --block-tokens 1024 --train.unroll False "
    "--train.batch 2 --specific-batch 2 --save-every 2 --quiet"
).split()


def start(module: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


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


def test_every_presentation_has_its_scores_and_the_instrument_its_gate(finished):
    result = result_of(finished)
    found = result["presentations"]
    assert found["averaged"] == list(found["scores"]) == list(found["differences"]) == ["A", "C"]
    trained = {"joint", "specific", "cct", "rds", "cds"}
    for scores in found["scores"].values():
        assert set(scores) == {*METHODS, *trained}
    a, c = (found["scores"][form]["p1"]["mean"] for form in ("A", "C"))
    # The spread between the two is part of the mean's interval.
    low, high = result["methods"]["p1"]["interval"]
    assert high - low > 1.9 * abs(a - c) / 2
    measure = result["measure"]
    assert measure["validity"]["presentations"] == ["A", "C"]
    assert measure["validity"]["sentence"]
    assert list(measure["constant"]["joint"]) == ["A", "C"]
    assert set(measure["dispersion"]) == {"p1", "p2", "joint", "specific", "cct"}
    assert 0.5 < measure["correlation"]["p1"]["mean"] < 1
    answers = json.loads((finished / "answers.json").read_text("utf-8"))
    assert set(answers["presentations"]["C"]) == set(answers["methods"])


def test_training_shows_pairs_in_turn(finished):
    """Every second one in reverse order, where each option keeps its number."""
    selected = json.loads((finished / "seed0/selected/pairs.json").read_text("utf-8"))
    for method, pairs in selected.items():
        rows = (finished / "seed0" / "selected" / f"{method}.jsonl").read_text("utf-8")
        for n, (pair, row) in enumerate(zip(pairs, rows.splitlines(), strict=True)):
            question, reply = (m["content"] for m in json.loads(row)["messages"][1:])
            listed = re.findall(r"^(\d+) = ", question, re.MULTILINE)
            assert (listed == sorted(listed)) == (n % 2 == 0)
            assert reply == str(pair[2])


def test_the_page_holds_its_pictures(finished):
    """Drawn into it, so that it stands alone."""
    page = (finished / "report.html").read_text("utf-8")
    # The methods, the selections, the countries and the pairs.
    assert page.count('class="drawing"') + page.count('class="drawing wide"') == 4
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
    for name in ("methods.png", "selection.png", "countries.png", "pairs.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    assert "CultureSPA" in (finished / "report.md").read_text("utf-8")
    assert (finished / "report.html").stat().st_size > 10_000


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


def test_fine_tuned_models_under_every_style(finished, inputs, tmp_path):
    """By a study of the run, and by the run itself, which finds the study's answers."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert "under every prompt style" in run("culturespa.prompting", folder, "--quiet")
    record = json.loads((folder / "prompting.json").read_text("utf-8"))
    assert list(record["scores"]) == ["base", "joint", "specific"]
    result = result_of(finished)
    for model, method in (("base", "p1"), ("joint", "joint"), ("specific", "specific")):
        assert record["scores"][model]["p1"] == result["methods"][method]
    assert record["minus_base"]["joint"]["p1"] == result["differences"]["joint_minus_p1"]
    answers = sorted(path.name for path in (folder / "answers").iterdir())
    run("culturespa", "--out", folder, "--resume", "--prompting", "True", *inputs)
    assert result_of(folder)["prompting"] == record
    assert sorted(path.name for path in (folder / "answers").iterdir()) == answers
    assert "Fine-tuned models under every prompt style" in (folder / "report.md").read_text("utf-8")


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
    printed = run("culturespa.studies.targets", folder, "--quiet")
    assert "joint: with the distribution as the target" in printed
    record = json.loads((folder / "targets.json").read_text("utf-8"))
    assert list(record["distribution_minus_option"]) == ["joint", "specific"]
    # What the run's own models answer is what the run found.
    result = result_of(folder)
    assert record["scores"]["joint option"]["mean"] == result["methods"]["joint"]["mean"]
    assert record["diversity"]["people"] == result["measure"]["diversity"]["people"]


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
