"""How each method of `experiments.culturespa` answers the survey, and the guard.

Prompting methods are the model as it came under a style; fine-tuned ones answer under the prompt
that they were trained with: `joint`, `specific`, `rds`, `cds` under P1, `cct` under P2. A specific
model answers for its own country alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.lm.lora import AdapterWeights, merge
from jaxalign.lm.weights import Params
from jaxalign.methods.culturespa.ask import Replies, ask, plan, right_answers
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.step_select import TRAINED
from jaxalign.methods.culturespa.step_tune import Name
from jaxalign.methods.culturespa.study import Study
from jaxalign.runs import Run
from jaxalign.runs.console import Progress

PROMPTED = ("unaware", "p1", "p2", "p3", "p1p3", "p2p3")
TUNED = ("joint", "specific", "cct", "rds", "cds")
SPECIFIC = "specific-"  # before a country, the name of its adapter

Answers = np.ndarray  # float32 [R, N, C, Q]: seeds (1 where they cannot matter), runs, ...


@dataclasses.dataclass(frozen=True)
class Measured:
    """What every method answers, and how much of it is an answer of its own."""

    answers: dict[str, Answers]  # by method
    right: dict[str, list[float]]  # the guard's accuracies by method and seed, and "before"
    counts: dict[str, dict[str, int]]  # replies by method, and those without an answer
    untrained: dict[str, dict[str, Any]]  # methods of which some models are as they came


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


def measure(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    adapters: Mapping[Name, AdapterWeights],
    survey: Sequence[Mapping[str, Replies]],
) -> Measured:
    """Everything that is reported. `survey`: what the model as it came answers, by style, for each
    seed whose luck enters."""
    found, right = _ask_each(config, study, params, run, adapters)
    prompted = prompted_answers(config, survey)
    counts = {style: _sum(each[style] for each in survey) for style in PROMPTED}
    counts |= {m: _sum(r for name, r in found.items() if _method(name) == m) for m in TUNED}
    return Measured(
        answers=prompted | _tuned_answers(config, found, prompted),
        right=_right_by_method(config, right),
        counts=counts,
        untrained=untrained(config, adapters),
    )


def _ask_each(
    config: Config, study: Study, params: Params, run: Run, adapters: Mapping[Name, AdapterWeights]
) -> tuple[dict[Name, Replies], dict[Name | None, float]]:
    """Replies to the survey of every adapted model, and the guard's accuracies; those of the model
    as it came under None."""
    found: dict[Name, Replies] = {}
    right: dict[Name | None, float] = {
        None: float(right_answers(config, study, params, run.out, "base").mean())
    }
    bar = Progress(len(adapters), step="5 measure: model", unit="models", quiet=config.quiet)
    asker = _Asker(config, study, run)
    with bar:
        for done, (name, adapter) in enumerate(adapters.items(), 1):
            weights = merge(params, adapter, config.lora)
            found[name] = asker(name, weights)
            right[name] = float(right_answers(config, study, weights, run.out, _label(name)).mean())
            bar.update(done)
    return found, right


def _tuned_answers(
    config: Config, found: Mapping[Name, Replies], prompted: Mapping[str, Answers]
) -> dict[str, Answers]:
    """By method; where there is no adapter, what the model as it came answers under the prompt that
    would have been trained."""
    seeds = config.seed_numbers
    plain = {s: np.broadcast_to(a, (len(seeds), *a.shape[1:])) for s, a in prompted.items()}
    out = {}
    for method in TUNED:
        rows = plain[TRAINED.get(method, "p1")].copy()
        for r, seed in enumerate(seeds):
            if (seed, method) in found:
                rows[r] = found[seed, method].answers_NxCxQ
            for c, country in enumerate(config.countries) if method == "specific" else ():
                if (own := (seed, SPECIFIC + country)) in found:
                    rows[r, :, c] = found[own].answers_NxCxQ[:, 0]
        out[method] = rows
    return out


def _right_by_method(config: Config, right: Mapping[Name | None, float]) -> dict[str, list[float]]:
    """A value for each seed, of specific models their mean; "before" has one value."""
    before = right[None]
    return {"before": [before]} | {
        method: [
            float(
                np.mean([right.get((seed, name), before) for name in model_names(config, method)])
            )
            for seed in config.seed_numbers
        ]
        for method in TUNED
    }


def model_names(config: Config, method: str) -> list[str]:
    """The models that a seed has under a method."""
    return [SPECIFIC + c for c in config.countries] if method == "specific" else [method]


def untrained(config: Config, adapters: Mapping[Name, AdapterWeights]) -> dict[str, dict[str, Any]]:
    """By method: its models that fine-tuning did not change, as nothing was selected for them or no
    step was taken, and whether those are all it has."""
    out = {}
    for method in TUNED:
        wanted = [(s, name) for s in config.seed_numbers for name in model_names(config, method)]
        same = [name for name in wanted if name not in adapters or not _changes(adapters[name])]
        if same:
            out[method] = {"models": [_label(n) for n in same], "all": len(same) == len(wanted)}
    return out


def _changes(adapter: AdapterWeights) -> bool:
    """Whether it adds anything: B begins as zeros."""
    return any(
        np.any(np.asarray(tensor))
        for part in adapter.values()
        for name, tensor in part.items()
        if name.endswith("_b")
    )


def _sum(replies: Iterable[Replies]) -> dict[str, int]:
    total = {"replies": 0, "unreadable": 0, "out_of_range": 0}
    for each in replies:
        total = {name: count + each.counts[name] for name, count in total.items()}
    return total


def _method(name: Name) -> str:
    return "specific" if name[1].startswith(SPECIFIC) else name[1]


def _label(name: Name) -> str:
    return f"seed{name[0]} {name[1]}"


class _Asker:
    """Asks the survey of one adapted model after another; conversations are made once."""

    def __init__(self, config: Config, study: Study, run: Run):
        self._config, self._study, self._run = config, study, run
        self._plans: dict[tuple, object] = {}

    def __call__(self, name: Name, weights: Params) -> Replies:
        """Of one country for a specific model."""
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
        return replies[style]
