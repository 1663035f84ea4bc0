"""The main job as a user runs it: a process, its files, its exit codes; killed and resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxalign.commands.soft_prompt import tune_prompts
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runs.console import main

COUNTRIES = ["USA", "CHN"]
SMALL = [
    "--countries",
    *COUNTRIES,
    "--population",
    "6",
    "--generations",
    "8",
    "--save-every",
    "2",
    "--gradient-steps",
    "2",
    "--icl-examples",
    "2",
    "--quiet",
]


def command(*arguments) -> list[str]:
    return [sys.executable, "-m", "experiments.soft_prompt", *map(str, arguments)]


def start(*arguments) -> subprocess.Popen:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )


def run(*arguments) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def outcome(folder: Path) -> dict[str, object]:
    """All that a run decides: its numbers, its prompts, its history."""
    return {
        "result": (folder / "result.json").read_bytes(),
        "metrics": (folder / "metrics.jsonl").read_bytes(),
        **{
            country: load_file(folder / "prompts" / f"{country}.safetensors")["prompt"].tobytes()
            for country in COUNTRIES
        },
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> tuple[Path, float]:
    """A small run never stopped, and the seconds it took."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    began = time.monotonic()
    code, said, err = run("--out", folder, *SMALL)
    assert code == 0, err
    (folder.parent / "screen.txt").write_text(said, "utf-8")
    return folder, time.monotonic() - began


@pytest.mark.long
def test_killed_five_times_equals_unbroken(unbroken, tmp_path):
    whole, seconds = unbroken
    folder, moments, kills = tmp_path / "killed", random.Random(), 0
    for _ in range(20):  # some attempts are over before their moment comes
        process = start("--out", folder, "--resume", *SMALL)
        try:
            process.communicate(timeout=moments.uniform(0.02, 0.4) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        if kills == 5:
            break
    assert kills == 5, f"{kills} of 20 attempts were alive when their moment came"
    code, _, err = run("--out", folder, "--resume", *SMALL)
    assert code == 0, err
    for name, bits in outcome(whole).items():
        assert outcome(folder)[name] == bits, f"{name} differs after {kills} kills"


@pytest.mark.long
def test_killed_right_after_each_checkpoint_equals_unbroken(unbroken, tmp_path):
    """Kills that surely fall into the search: as soon as the next checkpoint is there."""
    whole, _ = unbroken
    folder = tmp_path / "killed"
    for step in (2, 6):
        process = start("--out", folder, "--resume", *SMALL)
        deadline = time.monotonic() + 120
        while not (folder / "checkpoints" / str(step)).exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"no checkpoint {step} after two minutes"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    code, _, err = run("--out", folder, "--resume", *SMALL)
    assert code == 0, err
    assert outcome(folder) == outcome(whole)


def test_result_has_the_documented_format(unbroken):
    folder, _ = unbroken
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert list(result["countries"]) == COUNTRIES
    for country, entry in result["countries"].items():
        assert len(entry["target"]) == 6
        for method in ("naive", "persona", "icl", "start", "tuned", "gradient"):
            for reading in ("expected", "most_likely"):
                read = entry[method][reading]
                distance = sum(
                    abs(a - b) for a, b in zip(read["scores"], entry["target"], strict=True)
                )
                assert read["loss"] == pytest.approx(distance, rel=1e-5)
            assert 0 < entry[method]["valid_mass"] <= 1
        for name in ("before", "start", "after", "permuted"):
            interval = entry["held_out"][name]
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
        assert set(result["trivial"][country]) == {
            "all_middle",
            "uniform_random",
            "smallest_integer",
            "mean_of_others",
            "another_country",
        }
    assert {"settings", "versions", "constants", "held_out"} <= set(result)


def test_search_never_gets_worse_and_the_start_is_a_candidate(unbroken):
    folder, _ = unbroken
    result = json.loads((folder / "result.json").read_text("utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["generation"] for row in rows] == list(range(1, 9))
    for country in COUNTRIES:
        best = [row[country]["best_so_far"] for row in rows]
        assert best == sorted(best, reverse=True)
        entry = result["countries"][country]
        assert entry["tuned"]["expected"]["loss"] == pytest.approx(best[-1], abs=2e-3)
        assert best[-1] <= entry["start"]["expected"]["loss"] + 2e-3


def test_the_first_generation_is_counted(unbroken):
    """As in a sweep: 2 countries, 6 members, generations 0 to 8."""
    screen = (unbroken[0].parent / "screen.txt").read_text("utf-8")
    assert "for up to 108 candidates" in screen


def test_pictures_and_adapters_are_there(unbroken):
    folder, _ = unbroken
    for name in ("convergence.png", "radar.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert (folder / "peft" / "USA" / "adapter_config.json").is_file()
    prompt = load_file(folder / "prompts" / "USA.safetensors")["prompt"]
    assert prompt.shape[0] == 16
    assert np.isfinite(prompt).all()


def foreign_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return folder


def without_special_tokens(tmp_path: Path) -> Path:
    """The pocket model with neither a chat template nor the tokens that ours needs."""
    folder = tmp_path / "plain"
    shutil.copytree(MODEL_FOLDER, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text("utf-8").replace("<|start_header_id|>", "<|something|>")
        fields = json.loads(text)
        fields.pop("chat_template", None)
        (folder / name).write_text(json.dumps(fields), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--countries", "SAU", "--edition", "matrix2015"], "SAU lacks pdi, idv, mas, uai"),
        (["--model", "{tmp}/nowhere"], "no such folder or file"),
        (["--model", "{foreign}"], "model_type='gpt2'"),
        (["--model", "{plain}"], "<|start_header_id|>"),
        (["--population", "3"], "population 3 is too small"),
        (["--out", "{used}"], "give another --out"),
        (["--instrument", "{tmp}/nothing.json"], "nothing.json"),
        (["--icl-examples", "1000"], "--icl-examples 1000"),
        (["--resume"], "--resume needs --out"),
        (["--prompt.length", "0"], "--prompt.length 0"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, said, tmp_path, capsys):
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    places = {"tmp": tmp_path, "used": used}
    if "{foreign}" in arguments:
        places["foreign"] = foreign_folder(tmp_path)
    if "{plain}" in arguments:
        places["plain"] = without_special_tokens(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    if not {"--out", "--resume"} & set(arguments):
        arguments = [*arguments, "--out", "{tmp}/new"]
    with pytest.raises(SystemExit) as leaving:
        main(tune_prompts, Settings, [*(a.format(**places) for a in arguments), "--quiet"])
    check_refusal(leaving.value.code, capsys.readouterr().err, said)
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def check_refusal(code: int, err: str, said: str) -> None:
    assert code == 2, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert said in lines[0]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--countries", "USB", "did you mean USA"),
        ("--population", "20000000", "of the search; take a smaller population"),
    ],
)
def test_the_command_itself_refuses(option, value, said, tmp_path):
    code, _, err = run(option, value, "--out", tmp_path / "new", "--quiet")
    check_refusal(code, err, said)
    assert not (tmp_path / "new").exists()


def test_changed_setting_is_refused_by_name(unbroken):
    folder, _ = unbroken
    small = [*SMALL]
    small[small.index("--generations") + 1] = "9"
    code, _, err = run("--out", folder, "--resume", *small)
    assert code == 2
    assert "--generations was 8 and is 9" in err
