"""Names that no file can have, streams that are closed, and a user without a home."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxalign.core.errors import UserError
from jaxalign.core.files import cache_folder, check_new_file
from jaxalign.lm.model import open_model
from jaxalign.lm.peft import load_prompt, load_prompt_tuning
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa.settings import check_settings
from jaxalign.methods.soft_prompt.problem import file_names
from jaxalign.prompts import load_prompts
from jaxalign.runs.run import check_run, recorded_facts, recorded_run
from jaxalign.surveys import read_survey
from jaxalign.surveys.reply_files import read_replies
from jaxalign.training.step import TrainConfig

USERS: dict[str, Callable[[Path], Any]] = {
    "model": open_model,
    "survey": read_survey,
    "replies": read_replies,
    "prompts": load_prompts,
    "soft prompt": load_prompt,
    "adapter": load_prompt_tuning,
    "a new run": lambda path: check_run(path, TrainConfig()),
    "a run that is resumed": lambda path: recorded_facts(path, True),
    "a run": recorded_run,
    "a new file": lambda path: check_new_file(path, "out"),
    "ranking": lambda path: check_settings(CultureSPASettings(p3_choice=str(path))),
}


@pytest.mark.parametrize("name", ["x" * 300, "ß" * 150, "a\0b", "/".join(["x" * 200] * 30)])
@pytest.mark.parametrize("user", USERS)
def test_a_name_that_no_file_can_have(user: str, name: str) -> None:
    with pytest.raises(UserError) as caught:
        USERS[user](Path(name))
    assert str(caught.value).isprintable()


def test_a_country_whose_files_could_not_be_named() -> None:
    with pytest.raises(UserError, match=r"`countries` xxx.*rename it"):
        file_names(("USA", "x" * 300))
    with pytest.raises(UserError, match=r"`countries` ßßß.*rename it"):
        check_settings(CultureSPASettings(countries=("USA", "ß" * 100)))


def test_a_user_without_a_home_has_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("JAXALIGN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert cache_folder("gguf").name == "gguf"
    assert f"jaxalign-{os.getuid()}" in str(cache_folder("gguf"))


CHECK = [sys.executable, "-c", "from jaxalign.cli import main; main()", "check"]


@pytest.mark.long
@pytest.mark.parametrize(
    "shell", ['"$@" | true', '"$@" >&-', '"$@" >&- 2>&-', 'env -u HOME "$@"', '"$@" < /dev/null']
)
def test_a_command_leaves_in_order(shell: str, tmp_path: Path) -> None:
    """Whoever reads its output has left, its streams are closed, or there is no home."""
    (tmp_path / "own.csv").write_text("id,text,options\nq1,Is it so?,1=no|2=yes\n")
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *CHECK, str(tmp_path / "own.csv")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"},
        timeout=240,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode in (0, 1), done.stderr
