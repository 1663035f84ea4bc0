"""Step 5 of CultureSPA: how every method answers the survey, and how every model does in the guard.

A prompting method is the unchanged model under a style. A fine-tuned model answers under the style
that it was trained with: `joint`, `specific`, `rds` and `cds` under p1, `cct` under p2. A specific
model answers for its own group alone.

Where questions are shown in several presentations, a method's answer is the most likely option of
the mean over them; what it answers in each alone is kept too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxalign.answering.block_plan import plan_blocks, with_one_shape
from jaxalign.core.progress import OnProgress, Progress
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import LM
from jaxalign.methods.base import CCT, FINE_TUNED, JOINT, P1, P2, SPECIFIC
from jaxalign.methods.culturespa.ability import Abilities, measured_abilities
from jaxalign.methods.culturespa.answer import (
    BASE,
    StyledConversations,
    ask,
    in_styles,
    right_answers,
)
from jaxalign.methods.culturespa.fine_tune import ModelName, group_of, label, specific
from jaxalign.methods.culturespa.inputs import Experiment, Inputs
from jaxalign.methods.culturespa.select import TRAINED_UNDER
from jaxalign.methods.culturespa.styles import Style
from jaxalign.surveys.responses import NOT_ANSWERS, Responses

TUNED = tuple(method.key for method in FINE_TUNED)
PERSONAS = tuple(method.key for method in (P1, P2, JOINT, SPECIFIC, CCT))  # those that name a group

# float32 positions of options [R, N, C, Q]: seeds (1 where they cannot matter), runs, groups, items
Answers = np.ndarray
# Takes something from a model's responses as an array whose second axis is the groups asked for.
Read = Callable[[Responses], np.ndarray]
# The styles and the groups that a model is asked under, and what it is asked in them.
AskedAs = tuple[tuple[Style, ...], tuple[str, ...]]
Ways = dict[AskedAs, StyledConversations]


@dataclasses.dataclass(frozen=True)
class Measured:
    """What every method answers, and which models fine-tuning left unchanged.

    Attributes:
        answers: Answers by method.
        right: The guard's accuracies in [0, 1] by method and seed; one value under "before".
        counts: By method, the number of replies and of those without an answer.
        valid_mass: By method, the probability that a reply begins with an option at all (of sampled
            replies: the share that names one), mean over what was asked.
        abilities: If general abilities were measured by another tool: its name, the number of
            questions, what guessing gives, and `right` by task.
        untrained: Methods with models that fine-tuning did not change; see `untrained_models`.
        by_presentation: Answers by presentation and method, each alone; empty if there is one only.
        shares: By method, probabilities of options in each presentation, float32 [R, F, C, Q, O].
        mass: By method, the probability in each presentation that a reply begins with an option,
            float32 [R, F, C, Q].
    """

    answers: dict[str, Answers]
    right: dict[str, list[float]]
    counts: dict[str, dict[str, int]]
    untrained: dict[str, dict[str, Any]]
    valid_mass: dict[str, float] = dataclasses.field(default_factory=dict)
    by_presentation: dict[str, dict[str, Answers]] = dataclasses.field(default_factory=dict)
    shares: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    mass: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    abilities: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def unchanged(self) -> frozenset[str]:
        """Methods none of whose models was changed by fine-tuning."""
        return frozenset(name for name, models in self.untrained.items() if models["all"])


def measure(
    experiment: Experiment,
    adapters: Mapping[ModelName, Adapter],
    survey: Sequence[Mapping[Style, Responses]],
) -> Measured:
    """Ask every fine-tuned model the survey and the guard, and collect what is reported.

    Args:
        experiment: The run.
        adapters: The adapters by seed and model.
        survey: What the unchanged model answers by style, for each group of equivalent seeds. Those
            under which models were trained have to be there; the others may be left out.
    """
    replies, right, unchanged, abilities = _ask_each(experiment, adapters)
    groups = experiment.groups

    def read_all(read: Read) -> dict[str, np.ndarray]:
        """Return what every method answers, the unchanged model's prompts and the fine-tuned."""
        prompted = prompted_answers(groups, survey, read)
        return prompted | {
            method: tuned_answers(
                experiment, replies, method, prompted[TRAINED_UNDER.get(method, "p1")], read
            )
            for method in TUNED
        }

    by_method = {style: [each[style] for each in survey] for style in survey[0]} | {
        method: [r for name, r in replies.items() if _method(name) == method] for method in TUNED
    }
    return Measured(
        answers=read_all(Responses.answers),
        right=right_by_method(experiment, right),
        counts={method: sum_counts(found) for method, found in by_method.items()},
        untrained=untrained_models(experiment, adapters.keys() - unchanged),
        valid_mass={method: mean_mass(found) for method, found in by_method.items() if found},
        by_presentation={name: read_all(read) for name, read in readers(experiment.inputs).items()},
        shares=read_all(shares_FxCxQxO),
        mass=read_all(mass_FxCxQ),
        abilities=abilities_record(experiment, abilities),
    )


def readers(inputs: Inputs) -> dict[str, Read]:
    """Return by presentation what reads the answers in it alone; nothing if there is one only."""
    names = inputs.presentations if len(inputs.presentations) > 1 else ()
    return {name: functools.partial(answers_in, name) for name in names}


def answers_in(presentation: str, responses: Responses) -> np.ndarray:
    """Return `Responses.answers` in one of several presentations."""
    return responses.by_presentation[presentation].answers()


def shares_FxCxQxO(responses: Responses) -> np.ndarray:
    """Return the probabilities of options in every presentation, float32 [F, C, Q, O]."""
    each = (responses.by_presentation or {"": responses}).values()
    return np.stack([alone.distributions() for alone in each])


def mass_FxCxQ(responses: Responses) -> np.ndarray:
    """Return the probability of an option at all in every presentation, float32 [F, C, Q]."""
    each = (responses.by_presentation or {"": responses}).values()
    return np.stack([alone.valid_mass for alone in each])


def prompted_answers(
    groups: Sequence[str],
    survey: Sequence[Mapping[Style, Responses]],
    read: Read = Responses.answers,
) -> dict[str, np.ndarray]:
    """Return the unchanged model's answers by style; its unaware ones stand for every group.

    Args:
        groups: The groups.
        survey: Its responses by style, for each group of equivalent seeds.
        read: What is taken from them; default: positions of options [R, N, C, Q].
    """
    answers = {}
    for style in survey[0]:
        # Seeds, whatever `read` puts first, groups.
        found = np.stack([read(replies[style]) for replies in survey])
        answers[style] = np.broadcast_to(found, (*found.shape[:2], len(groups), *found.shape[3:]))
    return answers


def _ask_each(
    experiment: Experiment, adapters: Mapping[ModelName, Adapter]
) -> tuple[
    dict[ModelName, Responses],
    dict[ModelName | None, float],
    set[ModelName],
    dict[ModelName | None, Abilities],
]:
    """Ask every adapted model, one after the other, so that one adapter is in memory at a time.

    Returns:
        Every adapted model's replies; the guard's accuracies, the unchanged model's under None; and
        the models whose adapter changes nothing; and what another tool says of each, if one is
        asked.
    """
    lm, survey, guard = experiment.lm, experiment.inputs.survey, len(experiment.inputs.guard)
    named = {name: groups_of(experiment, name[1]) for name in adapters}
    asked_times = len(survey.items) * len(experiment.inputs.presentations)
    answers_of = {name: len(groups) * asked_times for name, groups in named.items()}
    total = sum(answers_of.values()) + guard * (1 + len(adapters))
    done = 0

    def report(name: str, count: int) -> OnProgress:
        """Return a callback for the next `count` answers, those of a model."""
        nonlocal done
        before, done = done, done + count
        return lambda p: experiment.on_progress(
            Progress(
                "5 measure: answer",
                before + count * p.done // max(1, p.total),
                total,
                "answers",
                fields={"model": name},
            )
        )

    unchanged: set[ModelName] = set()
    replies: dict[ModelName, Responses] = {}
    block_tokens = experiment.settings.block_tokens
    abilities: dict[ModelName | None, Abilities] = {}
    right: dict[ModelName | None, float] = {}
    plan = None
    if experiment.ability_test is None:
        plan = plan_blocks(experiment.inputs.guard_questions.conversations, block_tokens)

    def guarded(model: ModelName | None, lm: LM) -> None:
        """Measure what a model can do."""
        name = BASE if model is None else label(model)
        if experiment.ability_test is not None:
            abilities[model] = measured_abilities(experiment, lm, name)
            right[model] = abilities[model].mean
        else:
            right_Q = right_answers(experiment, lm, name, plan, report(name, guard))
            right[model] = float(right_Q.mean())

    guarded(None, lm)
    asked_as = {name: ((style_of(name[1]),), groups) for name, groups in named.items()}
    inputs = experiment.inputs
    conversations = conversations_to_measure(inputs, asked_as.values(), block_tokens)
    for name in adapters:
        adapter = adapters[name]  # read here, and let go of in the next turn
        if not changes(adapter):
            unchanged.add(name)
        # Beside the weights, where the compiled programs read it. Merged, the weights would be held
        # twice.
        adapted = adapter.attach(lm)
        on_progress = report(label(name), answers_of[name])
        asked = conversations[asked_as[name]]
        answered = ask(experiment, adapted, label(name), asked, name[0], on_progress)
        replies[name] = answered[0][style_of(name[1])]
        guarded(name, adapted)
    return replies, right, unchanged, abilities


def conversations_to_measure(
    inputs: Inputs, asked_as: Iterable[AskedAs], block_tokens: int
) -> Ways:
    """Encode the survey and cut it into blocks, for each way in which fine-tuned models are asked.

    Models that are asked alike share their conversations. Those that are asked in as many styles
    for as many groups share a shape, and so a compiled program: the specific models of all groups
    run in one.

    Args:
        inputs: What the run was given.
        asked_as: Styles and groups that a model is asked under; may repeat.
        block_tokens: Tokens of a block.
    """
    ways: Ways = {}
    by_size: dict[tuple[int, int], list[AskedAs]] = {}
    for styles, groups in dict.fromkeys(asked_as):
        ways[styles, groups] = in_styles(inputs, styles, groups, inputs.survey)
        by_size.setdefault((len(styles), len(groups)), []).append((styles, groups))
    for alike in by_size.values():
        plans = [plan_blocks(ways[key].conversations, block_tokens) for key in alike]
        for key, plan in zip(alike, with_one_shape(plans), strict=True):
            ways[key] = dataclasses.replace(ways[key], plan=plan)
    return ways


def style_of(model: str) -> Style:
    """Return the style that a fine-tuned model is asked under."""
    return TRAINED_UNDER["joint" if group_of(model) else model]


def groups_of(experiment: Experiment, model: str) -> tuple[str, ...]:
    """Return the groups that a fine-tuned model answers for."""
    group = group_of(model)
    return (group,) if group else experiment.groups


def _method(name: ModelName) -> str:
    return "specific" if group_of(name[1]) else name[1]


def model_names(groups: Sequence[str], method: str) -> list[str]:
    """Return the names of the models that a method has for each seed."""
    return list(map(specific, groups)) if method == "specific" else [method]


def tuned_answers(
    experiment: Experiment,
    replies: Mapping[ModelName, Responses],
    method: str,
    plain: np.ndarray,
    read: Read = Responses.answers,
) -> np.ndarray:
    """Return the answers of a method's fine-tuned models under one style.

    Args:
        experiment: The run.
        replies: What every model replied under the style.
        method: The method, such as "joint".
        plain: The unchanged model's answers under the same style, which take the place of those of
            a model that there is no adapter for.
        read: What is taken from the replies; default: positions of options.
    """
    seeds = experiment.settings.seed_numbers
    # Seeds, whatever `read` puts first, groups.
    answers = np.broadcast_to(plain, (len(seeds), *plain.shape[1:])).copy()
    for r, seed in enumerate(seeds):
        if (seed, method) in replies:
            # A style that names no group is asked once, for all of them.
            answers[r] = read(replies[seed, method])
        if method == "specific":
            for c, group in enumerate(experiment.groups):
                if (name := (seed, specific(group))) in replies:
                    answers[r, :, c] = read(replies[name])[:, 0]
    return answers


def right_by_method(
    experiment: Experiment, right: Mapping[ModelName | None, float]
) -> dict[str, list[float]]:
    """Return accuracies by method and seed (of specific models their mean), one under "before"."""
    before = right[None]
    return {"before": [before]} | {
        method: [
            float(
                np.mean(
                    [
                        right.get((seed, model), before)
                        for model in model_names(experiment.groups, method)
                    ]
                )
            )
            for seed in experiment.settings.seed_numbers
        ]
        for method in TUNED
    }


def abilities_record(
    experiment: Experiment, abilities: Mapping[ModelName | None, Abilities]
) -> dict[str, Any]:
    """Return `Measured.abilities`."""
    if not abilities:
        return {}
    before = abilities[None]
    return {
        "name": experiment.ability_test.name,
        "questions": before.questions,
        "chance": before.chance,
        "tasks": {
            task: right_by_method(
                experiment, {model: found.accuracy[task] for model, found in abilities.items()}
            )
            for task in before.accuracy
        },
    }


def untrained_models(
    experiment: Experiment, changed: Container[ModelName]
) -> dict[str, dict[str, Any]]:
    """Find the models that fine-tuning did not change.

    Nothing was selected for such a model, or no step was taken.

    Args:
        experiment: The run.
        changed: The models whose adapter changes the model.

    Returns:
        For each method that has such models, their labels under "models", and under "all" whether
        they are all the models that it has.
    """
    untrained = {}
    for method in TUNED:
        models = model_names(experiment.groups, method)
        names = [(seed, model) for seed in experiment.settings.seed_numbers for model in models]
        same = [name for name in names if name not in changed]
        if same:
            untrained[method] = {"models": list(map(label, same)), "all": len(same) == len(names)}
    return untrained


def changes(adapter: Adapter) -> bool:
    """Return whether an adapter changes the model; training starts with B at zero."""
    return any(
        np.any(np.asarray(tensor))
        for tensors in adapter.weights.values()
        for name, tensor in tensors.items()
        if name.endswith("_b")
    )


def sum_counts(replies: Iterable[Responses]) -> dict[str, int]:
    """Return the number of replies, and of those without an answer, of several models."""
    total = dict.fromkeys(("replies", *NOT_ANSWERS), 0)
    for each in replies:
        counts = each.counts()
        total = {name: count + counts[name] for name, count in total.items()}
    return total


def mean_mass(replies: Sequence[Responses]) -> float:
    """Return the mean probability of several models that a reply begins with an option."""
    return float(np.nanmean([np.nanmean(each.valid_mass) for each in replies]))
