"""How each method of `experiments.culturespa` answers the survey, and the guard.

Prompting methods are the model as it came under a style; fine-tuned ones answer under the prompt
that they were trained with: `joint`, `specific`, `rds`, `cds` under P1, `cct` under P2. A specific
model answers for its own country alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def prompted_answers(
    config: Config, replies: Sequence[Mapping[str, Replies]]
) -> dict[str, Answers]:
    """Of the model as it came, asked once for each seed whose luck enters; what it answers unaware
    stands for every country."""
    out = {}
    for style in PROMPTED:
        answers_RxNxCxQ = np.stack([each[style].answers_NxCxQ for each in replies])
        runs, _, items = answers_RxNxCxQ.shape[1:]
        whole = (len(replies), runs, len(config.countries), items)
        out[style] = np.broadcast_to(answers_RxNxCxQ, whole)
    return out


def tuned_answers(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    adapters: Mapping[Name, Adapter],
    prompted: Mapping[str, Answers],
) -> tuple[dict[str, Answers], dict[str, list[float]]]:
    """Answers by method, and the guard's accuracies by method and seed; "before" is the model as it
    came. `prompted`: what it answers under each style, for methods and countries without a model of
    their own."""
    seeds = config.seed_numbers
    plain = {s: np.broadcast_to(a, (len(seeds), *a.shape[1:])) for s, a in prompted.items()}
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
        style = TRAINED[method]
        each = [found.get((seed, method), plain[style][r]) for r, seed in enumerate(seeds)]
        out[method] = np.stack(each)
        right[method] = [apart.get((seed, method), right["before"][0]) for seed in seeds]
    out["specific"] = np.stack(
        [_specific(config, found, seed, plain["p1"][r]) for r, seed in enumerate(seeds)]
    )
    right["specific"] = [
        float(np.mean([
            apart.get((s, SPECIFIC + c), right["before"][0]) for c in config.countries
        ]))
        for s in seeds
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
        seed, method = name
        country = method.removeprefix(SPECIFIC) if method.startswith(SPECIFIC) else None
        style = TRAINED["joint" if country else method]
        who = (country,) if country else self._config.countries
        if (style, who) not in self._plans:
            self._plans[style, who] = plan(self._study, (style,), who, self._study.survey.items)
        replies = ask(
            self._config, self._study, weights, self._plans[style, who], self._run.out,
            _label(name), quiet=True, seed=seed,
        )  # fmt: skip
        return replies[style].answers_NxCxQ
