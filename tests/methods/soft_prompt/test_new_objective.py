"""An objective besides the six scores is one new module: here a distance to answers of people."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxalign as ja
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.stats import objectives as package
from jaxalign.stats.objectives import objectives
from jaxalign.surveys.survey import Survey

MODULE = '''
"""Mean Jensen-Shannon distance between a model's answers and a group's, over a survey's items."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.stats.objectives import Objective, objectives
from jaxalign.surveys.tables import option_table


@objectives.register("jensen-shannon-distance")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class JensenShannon(Objective):
    truth_CxQxO: jax.Array
    valid_QxO: jax.Array

    @classmethod
    def build(cls, inputs):
        if missing := [g for g in inputs.groups if g not in inputs.survey.distributions]:
            raise UserError(f"survey {inputs.survey.name!r} has no answers of {missing[0]}")
        truth = np.stack([inputs.survey.truth_QxO(group) for group in inputs.groups])
        return cls(jnp.asarray(truth, jnp.float32), jnp.asarray(option_table(inputs.survey)[0]))

    def loss(self, log_probs_BxQxO, group_B):
        model = jnp.where(self.valid_QxO[None], jnp.exp(log_probs_BxQxO), 0.0)
        truth = self.truth_CxQxO[group_B]
        middle = (model + truth) / 2

        def divergence(p):  # Kullback-Leibler divergence from the middle, in nats
            ratio = jnp.where(p > 0, p, 1.0) / jnp.where(p > 0, middle, 1.0)
            return jnp.sum(jnp.where(p > 0, p, 0.0) * jnp.log(ratio), axis=-1)

        squared = (divergence(model) + divergence(truth)) / 2
        return jnp.sqrt(jnp.maximum(squared, 1e-12)).mean(axis=-1)

    def for_groups(self, rows):
        return dataclasses.replace(self, truth_CxQxO=self.truth_CxQxO[np.asarray(rows)])
'''
TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)


@pytest.fixture
def jensen_shannon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The class of a module that is added to the package's folder of objectives."""
    folder = tmp_path / "objectives"
    folder.mkdir()
    (folder / "jensen_shannon.py").write_text(MODULE)
    objectives.names()  # the package's own modules register once, when they are imported
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.setattr(objectives, "_entries", dict(objectives._entries))
    monkeypatch.setattr(objectives, "_loaded", False)
    yield objectives["jensen-shannon-distance"]
    del sys.modules["jaxalign.stats.objectives.jensen_shannon"]


@pytest.fixture
def tiny(tmp_path: Path) -> ja.LM:
    """A model of two layers with the pocket model's tokenizer."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
    return ja.load_model(folder, dtype="float32")


def answered_survey() -> Survey:
    """Six items of the simulated survey, with its countries' answers."""
    survey = held_out_survey()
    few = survey.subset({item.id for item in survey.items[:6]})
    return dataclasses.replace(few, name="six items")


@pytest.mark.long
def test_it_tunes_on_a_survey_of_its_own(jensen_shannon, tiny, tmp_path):
    out, survey = tmp_path / "run", answered_survey()
    ja.tune_soft_prompt(
        tiny,
        survey,
        countries=("USA", "CHN"),
        objective="jensen-shannon-distance",
        optimizer=ja.DifferentialEvolution(population=8),
        generations=6,
        prompt={"length": 2},
        out=out,
        gradient_steps=5,
        icl_examples=1,
    )
    result = json.loads((out / "result.json").read_text("utf-8"))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    for c, country in enumerate(("USA", "CHN")):
        entry = result["countries"][country]
        assert 0 < entry["tuned"]["expected"]["loss"] < entry["start"]["expected"]["loss"] < 1
        # It has a gradient, so the control tunes it as well.
        assert entry["gradient"]["expected"]["loss"] < entry["start"]["expected"]["loss"]
        best = rows[-1][country]["best_so_far"]
        assert entry["tuned"]["expected"]["loss"] == pytest.approx(best, abs=1e-5)
        assert "scores" not in entry["tuned"]["expected"]
        # The loss by hand, from what the tuned prompt answers.
        prompt = ja.SoftPrompt.load(out / "prompts" / f"{country}.safetensors")
        # It is no pocket model, so both numberings are averaged.
        p = ja.ask(tiny, survey, [prompt], presentations=("A", "B")).distributions()[0]
        q = np.stack([survey.truth_QxO(country)])[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            kl = [np.nansum(a * np.log(a / ((p + q) / 2)), axis=-1) for a in (p, q)]
        by_hand = np.sqrt((kl[0] + kl[1]) / 2).mean()
        assert best == pytest.approx(by_hand, abs=1e-4), c
    assert "constants" not in result


@pytest.mark.long
def test_its_groups_need_not_be_countries(jensen_shannon, tiny):
    survey = answered_survey()
    named = dataclasses.replace(survey, distributions={"students": survey.distributions["USA"]})
    tuned = ja.tune_soft_prompt(
        tiny,
        named,
        countries=("students",),
        objective="jensen-shannon-distance",
        optimizer=ja.DifferentialEvolution(population=4),
        generations=1,
        prompt={"length": 2},
    )
    assert "from students," in tuned["students"].start


def test_its_own_messages_come_before_the_search(jensen_shannon, tiny):
    with pytest.raises(UserError, match=r"survey .* has no answers of USA"):
        ja.tune_soft_prompt(tiny, countries=("USA",), objective="jensen-shannon-distance")


@pytest.mark.long
def test_the_command_reports_it(jensen_shannon, tiny, tmp_path, capsys):
    """Tables and report leave out what only the six scores have."""
    from jaxalign.commands.soft_prompt import tune_prompts
    from jaxalign.methods.soft_prompt import Settings, SoftPromptConfig
    from jaxalign.optim.strategy import Strategy
    from jaxalign.surveys.survey import to_json

    path = tmp_path / "survey.json"
    path.write_text(json.dumps(to_json(answered_survey())))
    tune_prompts(
        Settings(
            out=tmp_path / "run",
            model=tiny.folder,
            dtype="float32",
            countries=("USA", "CHN"),
            objective="jensen-shannon-distance",
            instrument=path,
            prompt=SoftPromptConfig(length=2),
            strategy=Strategy(population=4),
            generations=1,
            gradient_steps=0,
            icl_examples=1,
            quiet=True,
        )
    )
    assert "Loss on the tuned survey" in capsys.readouterr().out
    text = (tmp_path / "run" / "report.md").read_text("utf-8").replace("\\", "")
    assert "The loss is that of the objective jensen-shannon-distance" in text
    assert "answering 3 to everything" not in text


@pytest.mark.long
@pytest.mark.parametrize("name", ["linear", "earth-mover", "jensen-shannon"])
def test_the_objectives_of_the_package_are_tuned_on(name, tiny, tmp_path):
    out, survey, scores = tmp_path / "run", answered_survey(), tmp_path / "scores.csv"
    ids = [item.id for item in survey.items if item.scale == "ordinal"][:2]
    scores.write_text(
        f"factor,item,weight,group,target\nf,{ids[0]},10,,\ng,{ids[1]},-5,,\nf,,,USA,20\n"
    )
    ja.tune_soft_prompt(
        tiny,
        survey,
        countries=("USA", "CHN"),
        objective=name,
        scores=scores if name == "linear" else None,
        optimizer=ja.DifferentialEvolution(population=8),
        generations=4,
        prompt={"length": 2},
        out=out,
        gradient_steps=5,
        icl_examples=1,
    )
    result = json.loads((out / "result.json").read_text("utf-8"))
    for country in ("USA", "CHN"):
        losses = {
            m: result["countries"][country][m]["expected"]["loss"]
            for m in ("start", "tuned", "gradient")
        }
        assert 0 <= losses["tuned"] < losses["start"]
        assert losses["gradient"] < losses["start"], "it has a gradient"
        # People's own mean answers meet targets that are computed from them.
        lines = result["trivial"][country]
        assert {"uniform", "mean_of_others", "own_mean", "random_respondent"} <= lines.keys()
    if name == "linear":
        assert result["factors"] == ["f", "g"]
        assert result["trivial"]["CHN"]["own_mean"] == pytest.approx(0, abs=1e-3)
        assert result["countries"]["USA"]["target"][0] == 20
        assert len(result["countries"]["USA"]["tuned"]["expected"]["scores"]) == 2
