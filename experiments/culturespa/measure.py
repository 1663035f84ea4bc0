"""How each method of `experiments.culturespa` answers the survey, and the guard.

Prompting methods are the model as it came under a style; fine-tuned ones answer under the prompt
that they were trained with: `joint`, `specific`, `rds`, `cds` under P1, `cct` under P2. A specific
model answers for its own country alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.culturespa.ask import Replies, ask, plan, right_answers
from experiments.culturespa.pairs import TRAINED
from experiments.culturespa.study import Config, Study
from experiments.culturespa.tune import Name
from jaxalign.console import Progress
from jaxalign.llama.weights import Params
from jaxalign.lora import Adapter, merge
from jaxalign.records import Run

PROMPTED = ("unaware", "p1", "p2", "p3", "p1p3", "p2p3")
TUNED = ("joint", "specific", "cct", "rds", "cds")
SPECIFIC = "specific-"  # before a country, the name of its adapter

Answers = np.ndarray  # float32 [R, N, C, Q]: seeds (1 where they cannot matter), runs, ...


def prompted_answers(config: Config, replies: Mapping[str, Replies]) -> dict[str, Answers]:
    """Of the model as it came; what it answers unaware stands for every country."""
    shape = (len(config.countries),)
    out = {}
    for style in PROMPTED:
        answers_NxCxQ = replies[style].answers_NxCxQ
        whole = (answers_NxCxQ.shape[0], *shape, answers_NxCxQ.shape[2])
        out[style] = np.broadcast_to(answers_NxCxQ, whole)[None]
    return out


def tuned_answers(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    adapters: Mapping[Name, Adapter],
    plain: Answers,
) -> tuple[dict[str, Answers], dict[str, list[float]]]:
    """Answers by method, and the guard's accuracies by method and seed; "before" is the model as it
    came. `plain`: what it answers under P1, for countries without a specific model."""
    found = {}
    right = {"before": [float(right_answers(config, study, params, run.out, "base").mean())]}
    apart = {}
    bar = Progress(len(adapters), step="5 measure: model", unit="models", quiet=config.quiet)
    asker = _Asker(config, study, run)
    with bar:
        for done, (name, adapter) in enumerate(adapters.items(), 1):
            weights = merge(params, adapter, config.lora)
            found[name] = asker(name, weights)
            label = _label(name)
            apart[name] = float(right_answers(config, study, weights, run.out, label).mean())
            bar.update(done)
    out = {}
    for method in (m for m in TUNED if m != "specific"):
        each = [found.get((seed, method), plain[0]) for seed in config.seed_numbers]
        out[method] = np.stack(each)
        known = [apart.get((seed, method), right["before"][0]) for seed in config.seed_numbers]
        right[method] = known
    out["specific"] = np.stack([_specific(config, found, s, plain[0]) for s in config.seed_numbers])
    right["specific"] = [
        float(np.mean([
            apart.get((s, SPECIFIC + c), right["before"][0]) for c in config.countries
        ]))
        for s in config.seed_numbers
    ]  # fmt: skip
    return {method: out[method] for method in TUNED}, right


def _label(name: Name) -> str:
    return f"seed{name[0]} {name[1]}"


def _specific(
    config: Config, found: Mapping[Name, np.ndarray], seed: int, plain_NxCxQ: np.ndarray
) -> np.ndarray:
    """[N, C, Q]: each country from its own model, or from the model as it came."""
    out = plain_NxCxQ.copy()
    for c, country in enumerate(config.countries):
        if (seed, SPECIFIC + country) in found:
            out[:, c] = found[seed, SPECIFIC + country][:, 0]
    return out


class _Asker:
    """Asks the survey of one adapted model after another; conversations are made once."""

    def __init__(self, config: Config, study: Study, run: Run):
        self._config, self._study, self._run = config, study, run
        self._plans: dict[tuple, object] = {}

    def __call__(self, name: Name, weights: Params) -> np.ndarray:
        """float32 [N, C, Q]; C is 1 for a specific model."""
        _, method = name
        country = method.removeprefix(SPECIFIC) if method.startswith(SPECIFIC) else None
        style = TRAINED["joint" if country else method]
        who = (country,) if country else self._config.countries
        if (style, who) not in self._plans:
            self._plans[style, who] = plan(self._study, (style,), who, self._study.survey.items)
        replies = ask(
            self._config, self._study, weights, self._plans[style, who], self._run.out,
            _label(name), quiet=True,
        )  # fmt: skip
        return replies[style].answers_NxCxQ
