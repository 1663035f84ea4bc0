"""What the settings of `experiments.culturespa` name, read and checked.

Nothing here takes long or writes anything, so that bad input is refused before the work starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import weights_sha256
from jaxalign.lm.config import LlamaConfig, read_config
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.tokenizer import Tokenizer, check_vocabulary
from jaxalign.methods.culturespa.dataset import longest_examples
from jaxalign.methods.culturespa.questions import load_prompt
from jaxalign.methods.culturespa.settings import Config, check_settings
from jaxalign.methods.culturespa.styles import Interviews, load_texts, named
from jaxalign.methods.culturespa.topics import Writing
from jaxalign.methods.culturespa.writer import check_room
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.general import general_questions
from jaxalign.pocket.society import held_out_survey, society_values_module
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.formats.multiple_choice import read_multiple_choice
from jaxalign.surveys.survey import Item, Survey
from jaxalign.surveys.tables import Tables, make_tables

# The paper's 18: neighbours of a country are looked for among those that the survey has, and among
# all that it has where those are too few.
CULTURES = (
    "USA", "CAN", "BOL", "BRA", "GBR", "NLD", "DEU", "UKR", "CHN", "RUS", "IND", "THA",
    "KEN", "NGA", "ETH", "ZWE", "AUS", "NZL",
)  # fmt: skip
GUARD_QUESTIONS = 300  # of the pocket's own tasks


@dataclasses.dataclass(frozen=True)
class Study:
    """What the settings name, read and checked; everything but the weights."""

    folder: Path
    llama: LlamaConfig
    tokens: Tokenizer
    survey: Survey
    tables: Tables
    interviews: Interviews
    prompt: str  # of a request for a question
    guard: tuple[tuple[Item, int], ...]  # question, position of the right option
    guard_name: str
    mesh: jax.sharding.Mesh
    model_sha256: str

    def facts(self) -> dict[str, object]:
        """Hashes and texts that a resumed run must find unchanged."""
        return {
            "model_sha256": self.model_sha256,
            "tokenizer_sha256": self.tokens.sha256,
            "survey_sha256": self.survey.sha256,
            "survey": self.survey.name,
            "shown_sha256": self.interviews.shown.sha256,
            "simulated": self.survey.simulated,
            "prompt": self.prompt,
            "texts": dataclasses.asdict(self.interviews.texts),
            "guard": self.guard_name,
        }


def read_study(config: Config) -> Study:
    """Read and check everything that is quick to check. UserError for whatever is wrong."""
    check_settings(config)
    folder = config.model or MODEL_FOLDER
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if config.model is None else "bfloat16"
    llama = read_config(folder, dtype)
    tokens = Tokenizer.load(folder)
    check_vocabulary(tokens, llama)
    survey = held_out_survey()
    if config.survey is not None:
        survey = read_answered(config.survey, "survey", config.distributions)
    tables = make_tables(survey, config.countries)
    guard_name, guard = read_guard(config.guard)
    mesh, choice = device_mesh(llama, None, model_parallel=config.model_parallel)
    print(choice.describe())
    study = Study(
        folder=folder,
        llama=llama,
        tokens=tokens,
        survey=survey,
        tables=tables,
        interviews=_interviews(config, survey),
        prompt=load_prompt(),
        guard=guard,
        guard_name=guard_name,
        mesh=mesh,
        model_sha256=weights_sha256(folder),
    )
    check_room(
        survey, study.prompt, Writing().examples, llama, tokens, config.writing,
        "give fewer --writing.max-new-tokens",
    )  # fmt: skip
    _check_row_length(config, study)
    return study


def _interviews(config: Config, survey: Survey) -> Interviews:
    source = None
    if config.examples == "leak_free":
        source = society_values_module()
        if config.source is not None:
            shares = config.source_distributions
            source = read_answered(config.source, "source", shares, "source_distributions")
    shown = survey if source is None else source
    if missing := [c for c in config.countries if c not in shown.distributions]:
        raise UserError(f"{shown.name!r} does not say how {missing[0]} answered")
    known = _pool(config.countries, shown)
    interviews = Interviews(load_texts(config.texts), survey, known, config.examples, source)
    _check_texts(interviews, config.countries)
    for note in _notes(interviews, config.countries):
        print(note)
    return interviews


def _pool(countries: tuple[str, ...], shown: Survey) -> tuple[str, ...]:
    """Where neighbours are looked for: the paper's cultures, as far as the survey has them; where
    those are too few, all that it has."""
    others = [c for c in CULTURES if c not in countries and c in shown.distributions]
    if len(countries) + len(others) <= 2 * Interviews.neighbours:
        others = [c for c in shown.distributions if c not in countries]
    return (*countries, *others)


def _notes(interviews: Interviews, countries: tuple[str, ...]) -> list[str]:
    """What a small survey makes other than the paper has it."""
    notes = []
    others, wanted = len(interviews.countries) - 1, 2 * interviews.neighbours
    if others < wanted:
        notes.append(
            f"P2 names {others} other countries instead of {wanted}: {interviews.shown.name!r} has "
            "no more"
        )
    examples = min(len(interviews.examples_for(item)) for item in interviews.survey.items)
    if examples < interviews.count:
        notes.append(
            f"P3 shows {examples} examples before some questions instead of {interviews.count}: "
            f"{interviews.shown.name!r} has no more"
        )
    if unnamed := [c for c in countries if named(c) == c]:
        notes.append(f"countries without a name in the package, called so: {' '.join(unnamed)}")
    return notes


def _check_texts(interviews: Interviews, countries: tuple[str, ...]) -> None:
    """Render every text once, and find examples for every item: what fails later fails after
    hours."""
    items = interviews.survey.items
    for country in countries:
        for style in ("unaware", "p2p3"):  # the second needs every other text
            interviews.conversation(style, country, items[0])
    for item in items:
        interviews.examples_for(item)


def read_guard(path: Path | None) -> tuple[str, tuple[tuple[Item, int], ...]]:
    """Name, and questions with the positions of their right options."""
    if path is None:
        return "pocket tasks", tuple(general_questions(GUARD_QUESTIONS, seed=1))
    test = read_multiple_choice(path)
    return f"{test.name} {test.sha256}", tuple(zip(test.items, test.answers, strict=True))


def example_lengths(config: Config, study: Study, items: Sequence[Item]) -> list[int]:
    """Tokens of the longest example that each item can become."""
    with_end = longest_examples(
        items, config.countries, study.interviews, study.tokens, styles=("p1", "p2")
    )
    return with_end if config.end_of_turn else [length - 1 for length in with_end]


def _check_row_length(config: Config, study: Study) -> None:
    """UserError where the survey's own questions, after which others are written, fit no row."""
    given = config.train.row_length
    if given is None:
        return
    longest = max(example_lengths(config, study, study.survey.items))
    if given < longest:
        raise UserError(
            f"--train.row-length {given}: an example like the survey's own questions has {longest} "
            f"tokens; give more, or leave the option out"
        )
