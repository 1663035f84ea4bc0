"""What a soft-prompt run has to solve: everything its settings name, read and checked.

Nothing here takes long or writes anything, so that bad input is refused before the work starts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.asked import AskedItems, asked_items
from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.encode import encode
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import ModelFiles, open_model
from jaxalign.methods.conditions import InContext, draw_examples
from jaxalign.methods.soft_prompt.fitness import Read
from jaxalign.methods.soft_prompt.method_answers import MethodAnswers, SurveyAnswers
from jaxalign.methods.soft_prompt.settings import Settings, check_settings
from jaxalign.methods.soft_prompt.space import make_space, prompt_text
from jaxalign.pocket.society import held_out_survey as simulated_survey
from jaxalign.prompts import Prompts, load_prompts, untranslated
from jaxalign.stats.objectives import Objective, ObjectiveInputs, objectives
from jaxalign.surveys.formats import read_answered, read_questionnaire
from jaxalign.surveys.formats.files import sha256_of_file
from jaxalign.surveys.hofstede import DIMENSIONS, is_score_file, name_in_edition, targets
from jaxalign.surveys.presentations import (
    default_presentations,
    is_general,
    untuned_presentations,
)
from jaxalign.surveys.survey import Item, Survey, vsm
from jaxalign.surveys.tables import option_table

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class AskedSurveys:
    """Surveys that are asked together, in the same presentations."""

    surveys: tuple[Survey, ...]
    presentations: tuple[str, ...]

    @property
    def items(self) -> tuple[Item, ...]:
        """The items of all surveys, one survey after the other."""
        return tuple(item for survey in self.surveys for item in survey.items)

    def alone(self, survey: Survey) -> AskedSurveys:
        """Return one of the surveys by itself."""
        return AskedSurveys((survey,), self.presentations)


@dataclasses.dataclass(frozen=True)
class Problem:
    """The model, the surveys and the prompt texts of a run; everything but the weights."""

    settings: Settings
    model: ModelFiles
    prompts: Prompts
    tuned_survey: Survey
    answered_survey: Survey  # of other questions, with the groups' answers to them
    examples: tuple[Item, ...]  # those of its questions that the ICL baseline is shown
    asked: AskedItems  # the tuned survey's items in the presentations that are tuned on
    test_presentations: tuple[str, ...]  # names of those that are not
    layout: Layout | SuffixLayout  # of what is asked, under a soft prompt

    @functools.cached_property
    def held_out_survey(self) -> Survey:
        """The questions that nothing was tuned on and no baseline was shown."""
        shown = {item.id for item in self.examples}
        return self.answered_survey.subset(
            {item.id for item in self.answered_survey.items if item.id not in shown}
        )

    @property
    def tuned_presentations(self) -> tuple[str, ...]:
        """Names of the presentations that are tuned on; each order of "orders" has its own."""
        return self.asked.presentations

    @property
    def read(self) -> Read | None:
        """What the fitness reads answers with: the mean over presentations.

        None where there is nothing to average, so that the program is the one of plain items.
        """
        plain = np.arange(len(self.tuned_survey.items))[None]
        if self.asked.neutral_S is None and np.array_equal(self.asked.index_FxQ, plain):
            return None
        return self.asked.mean_log_probs

    @functools.cached_property
    def reported(self) -> tuple[AskedSurveys, ...]:
        """What is asked of every method: both surveys, the tuned one first, in all presentations.

        Explicit orders are those of the tuned survey's items. The held-out survey is then asked by
        itself in the other presentations, or in A and B if there is none.
        """
        chosen, tests = chosen_presentations(self.settings, self.model), self.test_presentations
        names = (*chosen, *tests)
        if all(map(is_general, names)):
            return (AskedSurveys((self.tuned_survey, self.held_out_survey), names),)
        general = tuple(filter(is_general, chosen)) or ("A", "B")
        others = tuple(name for name in tests if is_general(name) and name not in general)
        return (
            AskedSurveys((self.tuned_survey,), names),
            AskedSurveys((self.held_out_survey,), (*general, *others)),
        )

    @property
    def scored_on_the_way(self) -> AskedSurveys | None:
        """What is asked under prompts that the search had found earlier: the tuned presentations.

        None with explicit orders, of which there are too many.
        """
        if len(self.reported) > 1:
            return None
        return AskedSurveys(self.reported[0].surveys, self.tuned_presentations)

    def survey_answers(
        self, survey: Survey, presentations: Sequence[str], methods: Mapping[str, MethodAnswers]
    ) -> SurveyAnswers:
        """Return answers to a survey together with what was asked.

        Args:
            survey: The survey.
            presentations: Names of the presentations, as they are given.
            methods: The answers by method.
        """
        asked = asked_items(self.prompts, survey.items, presentations, self.settings.answer)
        names = set(self.tuned_presentations)
        if not names & set(asked.presentations):
            names = {"A", "B"}  # of a survey that is not asked in explicit orders
        tuned = tuple(f for f, name in enumerate(asked.presentations) if name in names)
        return SurveyAnswers(survey, asked, tuned, methods)

    @property
    def simulated(self) -> bool:
        """Whether the held-out survey's groups are simulated."""
        return self.answered_survey.simulated

    def group_name(self, group: str) -> str:
        """Return what prompts call a group: a country's English name, or a group's own."""
        groups = (*self.tuned_survey.distributions, *self.answered_survey.distributions)
        return name_in_edition(group, self.settings.edition, groups)

    def in_context(self, group: str) -> InContext:
        """Return the condition of the ICL baseline for a group."""
        return InContext(
            group, self.answered_survey, self.examples, described_as=self.group_name(group)
        )

    def objective(self, constants_6: np.ndarray | None = None) -> Objective:
        """Build the objective of all groups.

        Args:
            constants_6: C of each score dimension, in points; default: the setting `constant`.
        """
        return make_objective(self.settings, self.tuned_survey, constants_6)

    def facts(self) -> dict[str, Any]:
        """Return the hashes that a resumed run must find unchanged."""
        facts = {
            **self.model.facts(),
            "instrument_sha256": self.tuned_survey.sha256,
            "held_out_sha256": self.answered_survey.sha256,
            "simulated_held_out": self.simulated,
            "icl_examples": [item.id for item in self.examples],
            "prompts": dataclasses.asdict(self.prompts),
        }
        # Editions that ship with the package never change; a file of the user's own may.
        if is_score_file(self.settings.edition):
            facts["edition_sha256"] = hashlib.sha256(
                Path(self.settings.edition).read_bytes()
            ).hexdigest()
        if self.settings.scores is not None:
            facts["scores_sha256"] = sha256_of_file(self.settings.scores)
        return facts


def read_problem(
    settings: Settings,
    model: ModelFiles | None = None,
    survey: Survey | None = None,
    revision: str | None = None,
) -> Problem:
    """Read and check everything that is quick to check.

    Args:
        settings: The run's settings.
        model: The model's files; default: those that the settings name.
        survey: The survey that is tuned; default: the one that the settings name.
        revision: Commit of a model from the hub that a resumed run has recorded.

    Raises:
        UserError: for whatever is wrong with the settings or with a file that they name.
    """
    check_settings(settings)
    if survey is None:
        survey = vsm()
        if settings.instrument is not None:
            survey = read_questionnaire(
                settings.instrument, "instrument", settings, is_main=settings.held_out is None
            )
    make_objective(settings, survey)  # raises what the survey or the groups lack
    targets(settings.anchor, settings.edition, settings.dimensions)
    if model is None:
        model = open_model(settings.model, settings.dtype, revision=revision)
    check_space(settings, model.config)
    prompts = load_prompts(settings.prompts, language=settings.language, model_folder=model.folder)
    answered = _without_tuned(read_held_out(settings), survey)
    if settings.limit is not None:
        answered = answered.spread(settings.limit + settings.icl_examples)
    for asked in {survey.name: survey, answered.name: answered}.values():
        if note := untranslated(settings.language, asked):
            _log.info(note)
    examples = draw_examples(answered, settings.countries, settings.icl_examples, settings.seed)
    if len(examples) == len(answered.items):
        raise UserError(
            f"`icl_examples` {settings.icl_examples}: survey {answered.name!r} has no more items, "
            "so that none is left to be held out; ask for fewer, or give another `held_out`"
        )
    prompt, tokens = settings.prompt, model.tokenizer
    chosen = chosen_presentations(settings, model)
    asked = asked_items(prompts, survey.items, chosen, settings.answer)
    test_presentations = untuned(settings, prompts, survey, chosen)
    longest = max(len(tokens.encode_chat([prompts.user(item)])) for item in asked.rows)
    refuse_too_long(model, longest + prompt.length, f"`prompt.length` {prompt.length}")
    file_names(settings.countries)
    problem = Problem(
        settings=settings,
        model=model,
        prompts=prompts,
        tuned_survey=survey,
        answered_survey=answered,
        examples=examples,
        asked=asked,
        test_presentations=test_presentations,
        layout=soft_prompt_layout(
            tokens,
            prompts,
            asked.rows,
            prompt.placement,
            prompt.length,
            per_token=asked.per_token,
        ),
    )
    # A text that cannot be filled in for a group is refused now, not when the search begins.
    for group in settings.countries:
        recorded_start(problem, group)
    return problem


def chosen_presentations(settings: Settings, model: ModelFiles) -> tuple[str, ...]:
    """Return the presentations to tune on, as a user gives them: as set, or the model's default."""
    if settings.presentations is not None:
        return settings.presentations
    return default_presentations(model.is_pocket)


def untuned(
    settings: Settings, prompts: Prompts, survey: Survey, chosen: Sequence[str]
) -> tuple[str, ...]:
    """Return the presentations that are reported besides those that are tuned on.

    Raises:
        UserError: for one that is among those that are tuned on.
    """
    given = settings.test_presentations
    names = untuned_presentations(chosen) if given is None else given
    if not names:
        return ()
    both_named = sorted(set(names) & set(chosen))
    if both_named:
        raise UserError(_tuned_already(both_named))
    # Two names may stand for one form: A is the first of all orders, and where the options are not
    # listed all forms are alike.
    both = asked_items(prompts, survey.items, (*chosen, *names), settings.answer)
    count = len(asked_items(prompts, survey.items, chosen, settings.answer).presentations)
    known = [set(column) for column in both.index_FxQ[:count].T.tolist()]
    repeated = {
        name
        for name, row_Q in zip(
            both.presentations[count:], both.index_FxQ[count:].tolist(), strict=True
        )
        if name in names and all(row in rows for row, rows in zip(row_Q, known, strict=True))
    }
    if given is not None and repeated:
        raise UserError(_tuned_already(sorted(repeated)))
    return tuple(name for name in names if name not in repeated)


def _tuned_already(names: Sequence[str]) -> str:
    return (
        f"`test_presentations` {' '.join(names)}: tuned on already; give forms that are not among "
        "`presentations`"
    )


def make_objective(
    settings: Settings, survey: Survey, constants_6: np.ndarray | None = None
) -> Objective:
    """Build the objective that the settings name, for all their countries.

    Args:
        settings: The run's settings.
        survey: The survey that is tuned.
        constants_6: C of each score dimension, in points; default: the setting `constant`.

    Raises:
        UserError: where the survey or the countries lack what the objective needs.
    """
    if constants_6 is None:
        constants_6 = np.full(len(DIMENSIONS), settings.constant, np.float32)
    inputs = ObjectiveInputs(
        survey=survey,
        groups=settings.countries,
        edition=settings.edition,
        dimensions=settings.dimensions,
        constants_6=constants_6,
        # Shares of replies are read as probabilities are.
        reading="expected" if settings.reading == "sampled" else settings.reading,
        mas_weight=settings.mas_weight,
        scores=settings.scores,
    )
    return objectives[settings.objective].build(inputs)


def read_held_out(settings: Settings) -> Survey:
    """Read the survey that prompts are not tuned on."""
    path, shares = settings.held_out, settings.held_out_distributions
    if path is not None:
        return read_answered(path, "held_out", shares, "held_out_distributions", options=settings)
    if shares is not None:
        raise UserError(
            f"`held_out_distributions` {shares}: only used with a `held_out` of your own"
        )
    return simulated_survey()


def _without_tuned(held_out: Survey, tuned: Survey) -> Survey:
    """Return the held-out survey without questions that prompts are tuned on."""
    texts = {(item.stem, item.text) for item in tuned.items}
    kept = {item.id for item in held_out.items if (item.stem, item.text) not in texts}
    shared = len(held_out.items) - len(kept)
    if not kept:
        raise UserError(
            f"`held_out` {held_out.name!r}: every question of it is tuned on; give another survey, "
            "or an `instrument` with fewer items"
        )
    if shared:
        _log.info(f"{shared} questions of {held_out.name!r} are tuned on and not held out")
    return held_out.subset(kept) if shared else held_out


def check_space(settings: Settings, config: LlamaConfig) -> None:
    """Raise what the search and its space would raise once the weights are loaded."""
    settings.strategy.build(settings.prompt.length)
    full = settings.prompt.projection == "none"
    # The embedding table is not read yet, so principal directions are checked as random ones.
    prompt = dataclasses.replace(settings.prompt, projection="none" if full else "random")
    start_MxD = jax.ShapeDtypeStruct((prompt.length, config.hidden_size), jnp.float32)
    embed_VxD = jax.ShapeDtypeStruct((1, config.hidden_size), jnp.float32)
    jax.eval_shape(functools.partial(make_space, prompt), start_MxD, embed_VxD)


def check_comparison(problem: Problem) -> None:
    """Raise now what the held-out survey and the baselines would raise after the search."""
    settings, survey = problem.settings, problem.answered_survey
    # Each country must have answered some item that is not shown as an example.
    item_ids = {item.id for item in problem.held_out_survey.items}
    for country in settings.countries:
        if not item_ids & survey.distributions.get(country, {}).keys():
            raise UserError(
                f"`icl_examples` {settings.icl_examples}: survey {survey.name!r} leaves no item "
                f"that {country} answered to be held out; ask for fewer, or give another `held_out`"
            )
    option_table(problem.held_out_survey)
    # Every question of both surveys must fit into the model's context: under the soft prompt, and
    # after the examples of the ICL baseline.
    items = (*problem.tuned_survey.items, *problem.held_out_survey.items)
    lead_ins = [problem.in_context(c).lead_in(problem.prompts) for c in settings.countries]
    asked = encode(problem.model.tokenizer, problem.prompts, [[], *lead_ins], items)
    plain, *shown = asked.lengths_N.reshape(-1, len(items)).max(axis=1).tolist()
    length = settings.prompt.length
    refuse_too_long(problem.model, plain + length, f"`prompt.length` {length}")
    for longest in shown:
        refuse_too_long(problem.model, longest, f"`icl_examples` {settings.icl_examples}")


def refuse_too_long(model: ModelFiles, longest: int, parameter: str) -> None:
    """Raise UserError for a conversation longer than what the model was trained to read.

    Args:
        model: The model that is asked.
        longest: Tokens of the longest conversation.
        parameter: The parameter that makes it long, with its value, for the message.
    """
    if longest > model.config.max_position_embeddings:
        raise UserError(
            f"{parameter}: with the longest question {longest:,} tokens, but the model has "
            f"max_position_embeddings={model.config.max_position_embeddings}; shorten one of them"
        )


def start_text(problem: Problem, group: str) -> str:
    """Return the text that a group's soft prompt starts from."""
    text, name = problem.settings.prompt.text, problem.group_name(group)
    if text is None:
        return problem.prompts.system(name)["content"]
    return prompt_text(text, problem.prompts.name_of(name))


def recorded_start(problem: Problem, group: str) -> str | None:
    """Return what a group's prompt says about its start: the text; None if it was drawn."""
    by_text = problem.settings.prompt.initialisation == "text"
    return start_text(problem, group) if by_text else None


_LONGEST_NAME = 200  # bytes; other words are put beside it
_SHOWN_NAME = 60  # characters of a name in a message about its length


def file_names(groups: Sequence[str]) -> dict[str, str]:
    """Return each group's name as part of a file name; UserError where two would share one."""
    names = {group: re.sub(r"[^\w.+-]+", "_", group) for group in groups}
    for group, name in names.items():
        if len(name.encode()) > _LONGEST_NAME:
            raise UserError(
                f"`countries` {group[:_SHOWN_NAME]}...: {len(name.encode())} bytes are too many "
                f"for the name of a file; rename it to at most {_LONGEST_NAME}"
            )
        others = [g for g in groups if g != group and names[g].lower() == name.lower()]
        if others or name.strip(".") == "":
            others = others or ["the folder itself"]
            raise UserError(
                f"`countries` {group!r}: its files would be called {name!r}, as those of "
                f"{others[0]!r}; rename it"
            )
    return names
