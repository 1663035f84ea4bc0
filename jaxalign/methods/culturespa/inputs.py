"""What the settings of a CultureSPA run name, read and checked.

Nothing here takes long or writes a file, so that bad input is refused before the work starts.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.model import LM, ModelFiles, open_model
from jaxalign.methods.ask import Questions, encode_conditions
from jaxalign.methods.conditions import Plain
from jaxalign.methods.culturespa.dataset import training_tokens
from jaxalign.methods.culturespa.existing import ExistingQuestions, read_existing
from jaxalign.methods.culturespa.settings import (
    CultureSPASettings,
    check_settings,
    resolve_settings,
)
from jaxalign.methods.culturespa.similar import (
    Ranking,
    Similarity,
    WordSimilarity,
    read_ranking,
)
from jaxalign.methods.culturespa.styles import StylePrompts, group_name, load_texts
from jaxalign.methods.culturespa.write import WritingSettings, check_requests_fit, load_request
from jaxalign.pocket.general import general_questions
from jaxalign.pocket.society import held_out_survey, society_values_module
from jaxalign.prompts import untranslated
from jaxalign.runs import Run
from jaxalign.surveys.choice_test import ChoiceTest
from jaxalign.surveys.formats import read_answered, read_any
from jaxalign.surveys.names import group_within
from jaxalign.surveys.presentations import PUBLISHED
from jaxalign.surveys.survey import Item, Survey
from jaxalign.surveys.tables import Tables, make_tables

# The paper's 18 cultures. P2 looks for neighbours of a group among those of them that the survey
# has, and among all groups of the survey if these are too few.
CULTURES = (
    *("USA", "CAN", "BOL", "BRA"),  # America
    *("GBR", "NLD", "DEU", "UKR"),  # Europe
    *("CHN", "RUS", "IND", "THA"),  # Asia
    *("KEN", "NGA", "ETH", "ZWE"),  # Africa
    *("AUS", "NZL"),  # Oceania
)
GUARD_QUESTIONS = 300  # of the pocket model's own tasks

if TYPE_CHECKING:
    from jaxalign.methods.ask_survey.settings import AskSettings
    from jaxalign.methods.culturespa.ability import AbilityTest

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the settings name, read and checked; everything but the weights.

    Attributes:
        files: The model's config and tokenizer.
        survey: The survey to test on; its questions are the seeds of new ones.
        tables: The answers of the groups of the run to the survey, as arrays.
        prompts: The messages of every prompt style.
        request: Text of a request for a question, as a jinja source.
        guard: Questions that fine-tuning should not break, with the right option's position.
        guard_name: Name and hash of the guard's questions.
        existing: Questions to start from instead of writing new ones.
        presentations: Names of the presentations in which questions are asked and trained on.
    """

    files: ModelFiles
    survey: Survey
    tables: Tables
    prompts: StylePrompts
    request: str
    guard: tuple[tuple[Item, int], ...]
    guard_name: str
    existing: ExistingQuestions | None = None
    presentations: tuple[str, ...] = (PUBLISHED,)

    @functools.cached_property
    def guard_questions(self) -> Questions:
        """The guard's questions as tokens, without a system message; encoded once."""
        items = [item for item, _ in self.guard]
        return encode_conditions(self.files, self.prompts.texts.prompts, [Plain()], items)

    def facts(self) -> dict[str, object]:
        """Return hashes and texts that a resumed run must find unchanged."""
        facts: dict[str, object] = {
            **self.files.facts(),
            "survey_sha256": self.survey.sha256,
            "survey": self.survey.name,
            "shown_sha256": self.prompts.shown.sha256,
            "simulated": self.survey.simulated,
            "prompt": self.request,
            "texts": dataclasses.asdict(self.prompts.texts),
            "guard": self.guard_name,
        }
        if isinstance(ranking := self.prompts.similarity, Ranking):
            facts["p3_ranking_sha256"] = ranking.sha256
        if self.existing is not None:
            facts["questions_sha256"] = self.existing.sha256
        return facts


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What every step of a run needs.

    Attributes:
        settings: The run's settings.
        inputs: What they name.
        lm: The unchanged model.
        out: Directory of the run.
        on_progress: Called by long steps.
        ability_test: What measures general abilities in place of the guard's questions.
        run: The run, where metrics of training are sent on; None sends none.
    """

    settings: CultureSPASettings
    inputs: Inputs
    lm: LM
    out: Path
    on_progress: OnProgress = ignore
    ability_test: AbilityTest | None = None
    run: Run | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the model is aligned to."""
        return self.settings.countries

    def reporting(self, step: str) -> OnProgress:
        """Return a callback that reports a task's progress as part of a step of the run."""
        return lambda p: self.on_progress(dataclasses.replace(p, task=f"{step}: {p.task}"))


def seed_folder(out: Path, seed: int) -> Path:
    """Return the folder of what a run keeps of one seed."""
    return out / f"seed{seed}"


def read_inputs(settings: CultureSPASettings, files: ModelFiles | None = None) -> Inputs:
    """Read and check everything that is quick to check.

    Args:
        settings: The run's settings; what follows the model in them may still be None.
        files: The model that they name; default: it is opened here.

    Raises:
        UserError: For a setting that cannot be, a file that cannot be used, a survey that lacks a
            group, texts that cannot be rendered, and requests or examples that do not fit.
    """
    check_settings(settings)
    files = files or open_model(settings.model, settings.dtype)
    settings, _ = resolve_settings(settings, files)
    survey = held_out_survey()
    if settings.survey is not None:
        survey = read_answered(settings.survey, "survey", settings.distributions, options=settings)
    if note := untranslated(settings.language, survey):
        _log.info(note)
    tables = make_tables(survey, settings.countries)
    guard_name, guard = read_guard(settings.guard)
    if settings.guard_tasks:
        guard_name, guard = f"tasks {' '.join(settings.guard_tasks)}", ()
    inputs = Inputs(
        files=files,
        survey=survey,
        tables=tables,
        prompts=make_style_prompts(settings, survey, files.folder),
        request=load_request(
            folder=settings.texts, model_folder=None if settings.generator_model else files.folder
        ),
        guard=guard,
        guard_name=guard_name,
        existing=_existing(settings, survey),
        presentations=settings.presentations,
    )
    if inputs.existing is None and settings.generator_model is None:
        advice = "lower `writing.max_new_tokens`"
        writing = WritingSettings(per_topic=settings.per_topic)
        check_requests_fit(files, survey, inputs.request, writing, settings.writing, advice)
    elif inputs.existing is not None:
        _log.info(inputs.existing.describe())
    _check_longest_example(settings, inputs)
    return inputs


def _existing(settings: CultureSPASettings, survey: Survey) -> ExistingQuestions | None:
    if not settings.questions:
        return None
    existing = read_existing(settings.questions, survey)
    return existing if settings.limit is None else existing.first(settings.limit)


def make_style_prompts(
    settings: CultureSPASettings | AskSettings, survey: Survey, model_folder: Path
) -> StylePrompts:
    """Return the prompts of every style, checked against the survey that they read answers of.

    Args:
        settings: What names the countries, the examples, their source and the texts.
        survey: The survey that is asked.
        model_folder: Folder of the model, which may bring texts of its own.
    """
    source = None
    if settings.examples == "leak_free":
        source = society_values_module()
        if settings.source is not None:
            shares = settings.source_distributions
            source = read_answered(
                settings.source,
                "source",
                shares,
                "source_distributions",
                options=settings,
                is_main=False,
            )
    shown = survey if source is None else source
    if missing := [group for group in settings.countries if group not in shown.distributions]:
        raise UserError(f"{shown.name!r}: {shown.why_absent(missing[0])}")
    groups = _possible_neighbours(settings.countries, shown)
    prompts = StylePrompts(
        load_texts(settings.texts, language=settings.language, model_folder=model_folder),
        survey,
        groups,
        settings.examples,
        source,
        similarity=_similarity(settings.p3_choice, shown),
        p3_form=settings.p3_form,
    )
    _check_texts(prompts, settings.countries)
    for note in _notes(prompts, settings.countries):
        _log.info(note)
    return prompts


def _similarity(choice: str, shown: Survey) -> Similarity | None:
    """Return what chooses the examples of P3; None for those of the item's topic."""
    if choice == "topics":
        return None
    return WordSimilarity(shown.items) if choice == "similar" else read_ranking(choice)


def _possible_neighbours(groups: tuple[str, ...], shown: Survey) -> tuple[str, ...]:
    """Return the run's groups and those among which P2 may find neighbours; see `CULTURES`."""
    others = [g for g in CULTURES if g not in groups and g in shown.distributions]
    if len(groups) + len(others) <= 2 * StylePrompts.neighbours:
        others = [g for g in shown.distributions if g not in groups]
    return (*groups, *others)


def _notes(prompts: StylePrompts, groups: tuple[str, ...]) -> list[str]:
    """Return what a small survey makes different from the paper."""
    notes = []
    others, wanted = len(prompts.groups) - 1, 2 * prompts.neighbours
    if others < wanted:
        notes.append(
            f"P2 names {others} other countries instead of {wanted}: {prompts.shown.name!r} has "
            "no more"
        )
    examples = min(len(prompts.examples_for(item)) for item in prompts.survey.items)
    if examples < prompts.count:
        notes.append(
            f"P3 shows {examples} examples before some questions instead of {prompts.count}: "
            f"{prompts.shown.name!r} has no more"
        )
    unnamed = [g for g in groups if group_name(g) == g and group_within(g) is None]
    if unnamed:
        notes.append(
            "groups that are not countries known to the package, called in prompts as the survey "
            f"calls them: {', '.join(unnamed)}"
        )
    return notes


def _check_texts(prompts: StylePrompts, groups: tuple[str, ...]) -> None:
    """Render every text once and find examples for every item, to fail now and not after hours."""
    items = prompts.survey.items
    for group in groups:
        for style in ("unaware", "p2p3"):  # the second uses every other text
            prompts.conversation(style, group, items[0])
    for item in items:
        prompts.examples_for(item)


def read_guard(path: Path | None) -> tuple[str, tuple[tuple[Item, int], ...]]:
    """Read the questions of the guard.

    Args:
        path: An MMLU-style file; None takes 300 questions of the pocket model's own tasks.

    Returns:
        Name of the questions, and the questions with the position of the right option.
    """
    if path is None:
        return "pocket tasks", tuple(general_questions(GUARD_QUESTIONS, seed=1))
    test = read_any(path)
    if not isinstance(test, ChoiceTest):
        raise UserError(f"`guard` {path}: a survey; give questions with one right answer each")
    return f"{test.name} {test.sha256}", tuple(zip(test.items, test.answers, strict=True))


def example_lengths(
    settings: CultureSPASettings, inputs: Inputs, items: Sequence[Item]
) -> list[int]:
    """Return the number of tokens of the longest training example that each item can become."""
    return training_tokens(
        items,
        settings.countries,
        inputs.prompts,
        inputs.files.tokenizer,
        end_of_turn=settings.end_of_turn,
        presentations=inputs.presentations,
    ).longest()


def _check_longest_example(settings: CultureSPASettings, inputs: Inputs) -> None:
    """Raise UserError if the survey's own questions, the models of new ones, are too long."""
    allowed = settings.train.longest_example
    if allowed is None:
        return
    longest = max(example_lengths(settings, inputs, inputs.survey.items))
    if allowed < longest:
        raise UserError(
            f"`train.longest_example` {allowed}: an example like the survey's own questions has "
            f"{longest} tokens; give more, or leave the option out"
        )
