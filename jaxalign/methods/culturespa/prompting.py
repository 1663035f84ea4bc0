"""The fine-tuned models under every prompt style: does fine-tuning combine with prompting?

CultureSPA's abstract says that it does. `measure` asks each fine-tuned model under the style that
it was trained with. Here the joint and the specific models are asked under all the others too, and
each is compared with the unchanged model under the same style, and with itself under P1.

Source: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv 2410.12971).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxalign.core.progress import OnProgress, Progress
from jaxalign.lm.lora import Adapter
from jaxalign.methods.base import JOINT, P1, SPECIFIC
from jaxalign.methods.culturespa.answer import BASE, ask
from jaxalign.methods.culturespa.fine_tune import ModelName, group_of, label
from jaxalign.methods.culturespa.inputs import Experiment, Inputs
from jaxalign.methods.culturespa.measure import (
    Answers,
    Read,
    Ways,
    conversations_to_measure,
    groups_of,
    mean_mass,
    model_names,
    readers,
    sum_counts,
    tuned_answers,
)
from jaxalign.methods.culturespa.result import Scored
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.culturespa.styles import STYLES, Style
from jaxalign.surveys.responses import Responses

PROMPTED_MODELS = (JOINT.key, SPECIFIC.key)  # those that were trained under P1
ByPresentation = dict[str, dict[str, dict[Style, Answers]]]
OTHER_STYLES: tuple[Style, ...] = tuple(style for style in STYLES if style != P1.key)


@dataclasses.dataclass(frozen=True)
class Prompted:
    """What the fine-tuned models answer under the styles that they were not trained with.

    Attributes:
        answers: Answers by method ("joint", "specific") and style.
        valid_mass: By method and style, the probability that a reply begins with an option at all
            (of sampled replies: the share that names one), mean over what was asked.
        counts: By method and style, the number of replies and of those without an answer.
        by_presentation: Answers by presentation, method and style, in each alone; empty if there is
            one only.
    """

    answers: dict[str, dict[Style, Answers]]
    valid_mass: dict[str, dict[Style, float]]
    counts: dict[str, dict[Style, dict[str, int]]]
    by_presentation: ByPresentation = dataclasses.field(default_factory=dict)


def prompted_ways(inputs: Inputs, groups: tuple[str, ...], block_tokens: int) -> Ways:
    """Encode the survey in the other styles, for a model of all groups and for one of each."""
    everyone = [groups, *((group,) for group in groups)]
    return conversations_to_measure(
        inputs, [(OTHER_STYLES, named) for named in everyone], block_tokens
    )


def ask_in_other_styles(
    experiment: Experiment,
    adapters: Mapping[ModelName, Adapter],
    answers: Mapping[str, Answers],
    by_presentation: Mapping[str, Mapping[str, Answers]] | None = None,
) -> Prompted:
    """Ask the joint and the specific models the survey under the styles they were not trained with.

    Answers are kept in the run's directory, so that a killed run continues, and a study of the run
    finds them.

    Args:
        experiment: The run.
        adapters: The adapters by seed and model.
        answers: What the unchanged model answers, by style. It stands in for models without an
            adapter.
        by_presentation: The same in each presentation alone, if there are several.
    """
    ways = prompted_ways(experiment.inputs, experiment.groups, experiment.settings.block_tokens)
    asked = {
        name: ways[OTHER_STYLES, groups_of(experiment, name[1])]
        for name in adapters
        if name[1] == JOINT.key or group_of(name[1])
    }
    sizes = {name: len(each.conversations) for name, each in asked.items()}
    total, done = sum(sizes.values()), 0

    def reporting(name: ModelName, before: int) -> OnProgress:
        return lambda p: experiment.on_progress(
            Progress(
                "5 measure: prompt styles",
                before + sizes[name] * p.done // max(1, p.total),
                total,
                "answers",
                fields={"model": label(name)},
            )
        )

    replies: dict[ModelName, dict[Style, Responses]] = {}
    for name, conversations in asked.items():
        adapted = adapters[name].attach(experiment.lm)
        on_progress = reporting(name, done)
        (replies[name],) = ask(
            experiment, adapted, label(name), conversations, name[0], on_progress
        )
        done += sizes[name]
    by_method: dict[str, dict[Style, list[Responses]]] = {
        method: {
            style: [
                found[style]
                for (_, model), found in replies.items()
                if model in model_names(experiment.groups, method)
            ]
            for style in OTHER_STYLES
        }
        for method in PROMPTED_MODELS
    }

    def read_all(
        plain: Mapping[str, Answers], read: Read = Responses.answers
    ) -> dict[str, dict[Style, Answers]]:
        return {
            method: {
                style: tuned_answers(
                    experiment,
                    {name: found[style] for name, found in replies.items()},
                    method,
                    plain[style],
                    read,
                )
                for style in OTHER_STYLES
            }
            for method in PROMPTED_MODELS
        }

    return Prompted(
        answers=read_all(answers),
        valid_mass={
            method: {s: mean_mass(found) for s, found in by_style.items() if found}
            for method, by_style in by_method.items()
        },
        counts={
            method: {s: sum_counts(found) for s, found in by_style.items()}
            for method, by_style in by_method.items()
        },
        by_presentation={
            name: read_all(by_presentation[name], read)
            for name, read in readers(experiment.inputs).items()
        },
    )


def prompting_record(
    settings: CultureSPASettings,
    inputs: Inputs,
    answers: Mapping[str, Answers],
    prompted: Prompted,
    unchanged: frozenset[str] = frozenset(),
    by_presentation: Mapping[str, Mapping[str, Answers]] | None = None,
) -> dict[str, Any]:
    """Return the entry "prompting" of `result.json`.

    Args:
        settings: The run's settings.
        inputs: What they name.
        answers: The answers of the run by method: the styles of the unchanged model, and "joint"
            and "specific" under P1.
        prompted: The answers under the other styles.
        unchanged: Methods that fine-tuning did not change; they are left out.
        by_presentation: `answers` in each presentation alone, if there are several.
    """
    trained = [method for method in PROMPTED_MODELS if method not in unchanged]

    def by_model(
        given: Mapping[str, Answers], other_styles: Mapping[str, Mapping[Style, Answers]]
    ) -> dict[str, Answers]:
        """Return the answers of every model under every style, by "model style"."""
        every = {f"{BASE} {style}": given[style] for style in STYLES}
        for method in trained:
            found = other_styles[method] | {P1.key: given[method]}
            every |= {f"{method} {style}": found[style] for style in STYLES}
        return every

    scored = Scored(
        settings,
        inputs,
        by_model(answers, prompted.answers),
        {
            name: by_model(by_presentation[name], alone)
            for name, alone in prompted.by_presentation.items()
        },
    )
    return {
        "scores": {
            model: {style: scored.method(f"{model} {style}") for style in STYLES}
            for model in (BASE, *trained)
        },
        "minus_base": {
            model: {
                style: scored.difference(f"{model} {style}", f"{BASE} {style}") for style in STYLES
            }
            for model in trained
        },
        "minus_p1": {
            model: {
                style: scored.difference(f"{model} {style}", f"{model} {P1.key}")
                for style in OTHER_STYLES
            }
            for model in (BASE, *trained)
        },
        "valid_mass": {method: prompted.valid_mass[method] for method in trained},
        "replies": {method: prompted.counts[method] for method in trained}
        if settings.reading == "sampled"
        else {},
    }
