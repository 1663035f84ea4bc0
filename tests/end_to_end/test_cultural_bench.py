"""`jaxalign cultural-bench` as a user runs it: killed in the middle, resumed to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.methods.soft_prompt import SoftPrompt
from tests.support.cultural_bench_files import sets, write_csv, write_sets
from tests.support.pages import check_report

COUNTRIES = ("United States", "Peru", "Japan")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("bench")
    easy, hard = write_sets(folder, countries=COUNTRIES)
    prompts = []
    for n, group in enumerate(("USA", "JPN")):
        embeddings = np.random.default_rng(n).normal(size=(3, 128)).astype(np.float32)
        prompts.append(folder / f"{group}.safetensors")
        SoftPrompt(0.05 * embeddings, group=group).save(prompts[-1])
    given = ["--easy", easy, "--hard", hard, "--prompt", *prompts, "--resamples", "200"]
    # Small blocks, so that there is time between two of them.
    return [*map(str, given), "--block-tokens", "256", "--quiet"]


def start(arguments: list[str], *more: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cultural_bench", *arguments, *map(str, more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
    )


def missing(out: Path) -> int:
    """How many answers the files of a run still lack; -1 before there is one."""
    files = list((out / "answers").glob("*.npy"))
    try:
        return sum(int((np.load(file)["crc"] == 0).sum()) for file in files) or -1
    except (OSError, ValueError):
        return -1


@pytest.mark.long
def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(arguments, tmp_path):
    process = start(arguments, "--out", tmp_path / "whole")
    said, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "CulturalBench Hard, % of questions" in said
    check_report(tmp_path / "whole")
    killed = tmp_path / "killed"
    process = start(arguments, "--out", killed)
    deadline, most = time.monotonic() + 200, 0
    while process.poll() is None and time.monotonic() < deadline:
        lacking = missing(killed)
        most = max(most, lacking)
        if 0 < lacking < most:  # some blocks are answered and some are not
            break
        time.sleep(0.002)
    assert process.poll() is None, "the run was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "result.json").exists()
    assert missing(killed) > 0
    process = start(arguments, "--out", killed, "--resume")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    for name in ("questions-easy.jsonl", "questions-hard.jsonl", "report.md"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("killed", "whole")]
    assert results[0] == results[1]
    for file in (killed / "answers").glob("*.npy"):
        np.testing.assert_array_equal(
            np.load(file), np.load(tmp_path / "whole" / "answers" / file.name)
        )


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(["cultural-bench", *map(str, arguments)])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_bad_input_is_one_line_before_anything_is_written(tmp_path, capsys):
    out = ["--out", tmp_path / "run"]
    easy, hard = sets(COUNTRIES, 1)
    five = write_csv(tmp_path / "hard.csv", [*hard, hard[-1]])
    letter = write_csv(tmp_path / "easy.csv", [easy[0] | {"answer": "E"}])
    assert "--easy, --hard: give one or both files" in refused(capsys, *out)
    assert "question 102 has 5 rows" in refused(capsys, "--hard", five, *out)
    assert "row 2, column 'answer': 'E' is no answer" in refused(capsys, "--easy", letter, *out)
    good = write_csv(tmp_path / "good.csv", easy)
    assert "this is CulturalBench Easy, not" in refused(capsys, "--hard", good, *out)
    assert "no soft-prompt run that has ended" in refused(
        capsys, "--easy", good, "--run", tmp_path, *out
    )
    assert "--countries FRA" in refused(capsys, "--easy", good, "--countries", "France", *out)
    lacking = write_csv(tmp_path / "x.csv", [{"prompt_question": "a", "answer": "A"}])
    message = refused(capsys, "--easy", lacking, *out)
    assert "the header lacks prompt_option_a, prompt_option_b, prompt_option_c" in message
    message = refused(capsys, "--easy", tmp_path / "absent.csv", *out)
    assert "No such file" in message
    assert not (tmp_path / "run").exists()
