"""A run on a model from the hub records the commit, and opens the same one when it is resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxalign.commands import fine_tune, write_questions
from jaxalign.commands.sweep.file import read_sweep
from jaxalign.commands.sweep.plan import make_plan
from jaxalign.core.errors import UserError
from jaxalign.lm.model import open_model
from jaxalign.methods.ask_survey import AskSettings
from jaxalign.methods.ask_survey import pipeline as ask_pipeline
from jaxalign.methods.culturespa import CultureSPASettings, pipeline
from jaxalign.methods.soft_prompt import problem, tune
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.runs import Run

ID, COMMIT = "some-org/Some-Llama-1B", "c" * 40
COMMANDS: dict[str, tuple[Any, Callable[[Path, bool], Any], Callable[[Any], Any]]] = {
    "soft-prompt": (
        problem,
        lambda out, resume: Settings(out=out, model=ID, resume=resume),
        tune.run_soft_prompt,
    ),
    "ask": (
        ask_pipeline,
        lambda out, resume: AskSettings(out=out, model=ID, resume=resume),
        ask_pipeline.ask_survey,
    ),
    "culturespa": (
        pipeline,
        lambda out, resume: CultureSPASettings(out=out, model=ID, resume=resume),
        pipeline.run_culturespa,
    ),
    "fine-tune": (
        fine_tune,
        lambda out, resume: fine_tune.Config(Path("data"), out=out, model=ID, resume=resume),
        fine_tune.tune,
    ),
    "write-questions": (
        write_questions,
        lambda out, resume: write_questions.Settings(out=out, model=ID, resume=resume),
        write_questions.run,
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_resumed_run_opens_the_commit_it_began_with(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, settings, run = COMMANDS[name]
    asked: list[tuple[str, str | None]] = []

    def opened(model: str, dtype: str, *, revision: str | None = None) -> None:
        asked.append((model, revision))
        raise UserError("far enough")

    monkeypatch.setattr(module, "open_model", opened)
    with pytest.raises(UserError, match="far enough"):
        run(settings(tmp_path / "new", False))
    with Run.create(
        tmp_path / "out", settings(tmp_path / "out", False), {"model_revision": COMMIT}
    ):
        pass
    with pytest.raises(UserError, match="far enough"):
        run(settings(tmp_path / "out", True))
    assert asked == [(ID, None), (ID, COMMIT)]


def test_a_sweep_keeps_the_commit_of_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(f'models = ["pocket", "{ID}"]\ngenerations = 1\n')
    asked = []

    def opened(model: str | None, dtype: str, *, revision: str | None = None) -> Any:
        asked.append((model, revision))
        return open_model(None)

    monkeypatch.setattr(problem, "open_model", opened)
    make_plan(read_sweep(file), 4, {"Some_Llama_1B.model_revision": COMMIT})
    assert asked == [(None, None), (ID, COMMIT)]
