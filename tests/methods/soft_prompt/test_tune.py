"""Tuning from Python: the numbers of the command, as values that can be saved, loaded and asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxalign as ja
from jaxalign.commands.soft_prompt import tune_prompts
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.peft import load_prompt_tuning
from jaxalign.lm.weights import init_params
from jaxalign.methods.soft_prompt import Settings, SoftPrompt
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runs.console import main

TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)
COUNTRIES = ("USA", "CHN")
ARGUMENTS = [
    "--dtype",
    "float32",
    "--countries",
    "USA",
    "CHN",
    "--population",
    "4",
    "--generations",
    "3",
    "--save-every",
    "2",
    "--prompt.length",
    "2",
    "--gradient-steps",
    "2",
    "--icl-examples",
    "1",
    "--seed",
    "5",
    "--quiet",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model of two layers with the pocket model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
    return folder


@pytest.fixture(scope="module")
def by_command(tiny, tmp_path_factory) -> Path:
    """The run of the command."""
    out = tmp_path_factory.mktemp("runs") / "command"
    main(tune_prompts, Settings, ["--model", str(tiny), "--out", str(out), *ARGUMENTS])
    return out


def tune(folder: Path, **options) -> dict[str, SoftPrompt]:
    """The same search from Python."""
    return ja.tune_soft_prompt(
        ja.load_model(folder, dtype="float32"),
        ja.surveys.vsm(),
        countries=COUNTRIES,
        optimizer=ja.DifferentialEvolution(population=4),
        generations=3,
        prompt={"length": 2},
        seed=5,
        save_every=2,
        **options,
    )


@pytest.mark.long
def test_python_gives_the_result_of_the_command(tiny, by_command, tmp_path):
    out, events = tmp_path / "python", []
    tuned = tune(tiny, out=out, gradient_steps=2, icl_examples=1, on_progress=events.append)
    names = ["result.json", "metrics.jsonl", *(f"prompts/{c}.safetensors" for c in COUNTRIES)]
    for name in names:
        assert (out / name).read_bytes() == (by_command / name).read_bytes(), name
    # No stage is silent, and each reports its beginning and its end.
    done: dict[str, list[int]] = {}
    for event in events:
        done.setdefault(event.task, []).append(event.done)
    assert list(done) == [
        "check memory: program",
        "baselines, block",
        "generation",
        "gradient step",
        "tuned prompts, block",
        "earlier prompts, block",
        "scores, part",
    ]
    assert done["generation"] == [0, 2, 3]
    assert done["gradient step"] == [0, 2]
    blocks = ("baselines, block", "tuned prompts, block", "earlier prompts, block")
    for task in (*blocks, "scores, part"):
        assert done[task] == list(range(done[task][-1] + 1))
    for country, prompt in tuned.items():
        saved = SoftPrompt.load(by_command / "prompts" / f"{country}.safetensors")
        np.testing.assert_array_equal(prompt.embeddings_MxD, saved.embeddings_MxD)


@pytest.mark.long
def test_the_search_alone_gives_the_same_prompts_and_writes_nothing(
    tiny, by_command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for country, prompt in tune(tiny).items():
        saved = SoftPrompt.load(by_command / "prompts" / f"{country}.safetensors")
        np.testing.assert_array_equal(prompt.embeddings_MxD, saved.embeddings_MxD)
        assert (prompt.group, prompt.seed, prompt.model) == (country, 5, saved.model)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_tuned_prompt_is_a_condition_and_a_peft_adapter(tiny, by_command, tmp_path):
    prompt = SoftPrompt.load(by_command / "prompts" / "CHN.safetensors")
    lm = ja.load_model(tiny, dtype="float32")
    # A model that is not the pocket one is tuned on both ways of numbering the options.
    both = ("A", "B")
    answers = ja.ask(lm, ja.surveys.vsm(), [prompt, ja.Plain()], presentations=both)
    assert answers.conditions == ("tuned CHN", "naive")
    assert np.isfinite(answers.log_probs).all()
    result = json.loads((by_command / "result.json").read_text("utf-8"))
    scores = ja.vsm_scores(answers).values[0]
    np.testing.assert_allclose(
        scores, result["countries"]["CHN"]["tuned"]["expected"]["scores"], atol=1e-2
    )
    prompt.save_peft(tmp_path / "peft")
    embeddings, fields = load_prompt_tuning(tmp_path / "peft")
    np.testing.assert_array_equal(embeddings, prompt.embeddings_MxD)
    assert fields["base_model_name_or_path"] == str(tiny)
    after = SoftPrompt(prompt.embeddings_MxD, "after")
    with pytest.raises(UserError, match="placement after"):
        after.save_peft(tmp_path / "other")


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        ["--answer", "label-against-prior"],
        ["--presentations", "A", "letters", "--seeds", "0", "1", "--reading", "most_likely"],
    ],
)
def test_a_whole_run_of_another_reading_writes_its_report(tiny, tmp_path, options, capsys):
    arguments = [argument for argument in ARGUMENTS if argument not in ("--seed", "5")]
    main(
        tune_prompts,
        Settings,
        ["--model", str(tiny), "--out", str(tmp_path / "run"), *arguments, *options],
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    under = result["countries"]["CHN"]["tuned"]["presentations"]
    assert list(under) == [*result["presentations"]["tuned"], *result["presentations"]["untuned"]]
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Validity gate" in capsys.readouterr().out


@pytest.mark.long
def test_seeds_are_searched_side_by_side_with_the_prompts_of_separate_runs(tiny):
    """A seed's random numbers are its own, so its neighbours change nothing."""
    options = {"countries": ("USA",), "generations": 1, "prompt": {"length": 2}, "chunk": 4}
    lm, optimizer = ja.load_model(tiny, dtype="float32"), ja.DifferentialEvolution(population=4)
    together = ja.tune_soft_prompt(lm, optimizer=optimizer, seeds=(5, 6), **options)
    assert list(together) == ["USA s5", "USA s6"]
    for seed in (5, 6):
        alone = ja.tune_soft_prompt(lm, optimizer=optimizer, seed=seed, **options)["USA"]
        assert together[f"USA s{seed}"].seed == alone.seed == seed
        np.testing.assert_array_equal(together[f"USA s{seed}"].embeddings_MxD, alone.embeddings_MxD)


def test_any_named_group_can_be_tuned_for(tiny, tmp_path):
    """Its scores come from a file; its name is what the prompt calls it."""
    edition = tmp_path / "scores.csv"
    edition.write_text(
        "group,name,pdi,idv,mas,uai,lto,ivr\n"
        "night-owls,people who work at night,35,80,40,30,45,70\n"
        "early birds,,60,20,50,70,40,30\n"
    )
    tuned = ja.tune_soft_prompt(
        ja.load_model(tiny, dtype="float32"),
        countries=("night-owls", "early birds"),
        optimizer=ja.DifferentialEvolution(population=4),
        generations=1,
        prompt={"length": 2},
        edition=str(edition),
    )
    assert "people who work at night" in tuned["night-owls"].start
    assert "early birds" in tuned["early birds"].start


def test_settings_are_checked_and_unknown_ones_refused(tiny):
    with pytest.raises(UserError, match="`penalty` -1"):
        tune(tiny, penalty=-1.0)
    with pytest.raises(UserError, match="`objective` nonsense: no such objective; choose from"):
        tune(tiny, objective="nonsense")
    with pytest.raises(UserError, match="`penaltie`: no such setting; did you mean `penalty`"):
        tune(tiny, penaltie=1.0)
