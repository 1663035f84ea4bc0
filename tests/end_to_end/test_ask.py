"""`jaxalign ask` as a user runs it: killed and resumed, on other devices, with what runs leave."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxalign.lm.lora import Adapter, LoraConfig, init_adapter
from jaxalign.lm.model import open_model
from jaxalign.methods.soft_prompt.prompt import SoftPrompt

pytestmark = pytest.mark.long  # starts processes

ROOT = Path(__file__).parents[2]
COUNTRIES = ["--countries", "USA", "CHN", "NGA"]
SMALL = [*COUNTRIES, "--styles", "unaware", "p1", "p3", "--resamples", "50", "--quiet"]
EXACT = [*SMALL, "--block-tokens", "64"]
SAMPLED = [*SMALL, *["--reading", "sampled", "--runs", "2", "--batch-size", "8"]]


def start(folder: Path, *arguments, devices: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.ask_survey", "--out", folder, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
    )


def run(folder: Path, *arguments, devices: int = 1) -> str:
    process = start(folder, *arguments, devices=devices)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def answered(folder: Path) -> float:
    """The share of a run's answers that are on disk."""
    for path in (folder / "answers").glob("*.npy"):
        return float((np.load(path, mmap_mode="r")["crc"] != 0).mean())
    return 0.0


@pytest.mark.parametrize(
    "arguments", [[*EXACT, "--presentations", "A", "D"], SAMPLED], ids=["exact", "sampled"]
)
def test_killed_in_the_middle_equals_unbroken(arguments, tmp_path):
    """With kill -9 twice, and resumed on two devices: the same bits in every answer."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole, *arguments)
    for share in (0.0, 0.3):
        process = start(killed, "--resume", *arguments)
        while answered(killed) <= share:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert share < answered(killed) < 1
        assert not (killed / "result.json").exists()
    run(killed, "--resume", *arguments, devices=2)
    [first], [second] = (list((f / "answers").glob("*.npy")) for f in (whole, killed))
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    for name in ("result.json", "answers.csv", "analyses/model-p1/result.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_says_how_to_go_on(sent, tmp_path):
    process = start(tmp_path / "run", *EXACT)
    while answered(tmp_path / "run") <= 0:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    assert "--resume" in err


def test_adapters_and_soft_prompts_are_asked_beside_the_model(tmp_path):
    """Each as a row of its own; a new adapter changes nothing, and a prompt speaks for one."""
    files = open_model()
    lora = LoraConfig(rank=2, targets=("q", "v"))
    import jax

    weights = init_adapter(files.config, lora, jax.random.key(0))
    Adapter(weights, lora, files.config, "pocket").save_peft(tmp_path / "new")
    embeddings = np.random.default_rng(0).normal(0, 0.3, (3, files.config.hidden_size))
    prompt = SoftPrompt(embeddings.astype(np.float32), group="CHN")
    prompt.save(tmp_path / "chn.safetensors")
    prompt.save_peft(tmp_path / "peft")
    out = run(
        tmp_path / "run",
        *["--countries", "USA", "CHN", "--resamples", "50", "--quiet", "--adapter"],
        tmp_path / "new",
        "--prompt",
        tmp_path / "chn.safetensors",
        f"any={tmp_path / 'peft'}",
    )
    assert "adapter new, culture-aware (P1)" in out
    rows = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["rows"]
    assert list(rows) == [
        *("model-unaware", "model-p1", "new-unaware", "new-p1"),
        *("any-naive", "prompts-naive"),
    ]
    for style in ("unaware", "p1"):
        # B of a new adapter is zero, yet its program is another one.
        found, expected = rows[f"new-{style}"]["mean"], rows[f"model-{style}"]["mean"]
        assert found["value"] == pytest.approx(expected["value"], abs=1e-3)
    assert rows["prompts-naive"]["countries"] == ["CHN"]
    assert rows["any-naive"]["countries"] is None
    own, anyone = (rows[key]["scores"]["CHN"] for key in ("prompts-naive", "any-naive"))
    assert own["value"] == pytest.approx(anyone["value"], abs=1e-3)  # the same prompt
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "soft prompt (1 of 2 countries)" in page or "(1 of 2 countries)" in page


def test_a_test_and_a_questionnaire_without_answers(tmp_path):
    rows = [f"Which number is the largest?,{n},{n + 20},{n + 3},{n + 1},B" for n in range(8)]
    (tmp_path / "test.csv").write_text("\n".join(["question,A,B,C,D,answer", *rows]), "utf-8")
    out = run(tmp_path / "a", "--survey", tmp_path / "test.csv", "--quiet", "--resamples", "50")
    assert "% right by chance" in out
    test = json.loads((tmp_path / "a" / "result.json").read_text("utf-8"))["test"]
    assert test["questions"] == 8
    assert test["lines"]["constant"]["2"] == 100
    out = run(tmp_path / "b", "--survey", "vsm", "--countries", "USA", "CHN", "--quiet")
    assert "points from the published scores" in out
    with (tmp_path / "b" / "answers.csv").open(encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 3 * 24  # unaware, and two personas
    assert {row["code"] for row in answers} <= set("12345")
