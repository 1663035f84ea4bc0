"""The settings of a CultureSPA run.

A setting that is None follows the model: a real one gets the paper's value, the pocket model one
that was measured on it, and what only affects memory and speed follows the device.
`resolve_settings` replaces each None before a run is recorded, so that a resumed run compares the
values and not the Nones.
"""

from __future__ import annotations

import dataclasses
import math
import urllib.parse
from pathlib import Path
from typing import Literal

import jax

from jaxalign.answering.batch import default_block_tokens
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_path
from jaxalign.lm.generate import Sampling
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.model import ModelFiles
from jaxalign.methods.culturespa.styles import P3_CHOICES, Examples, P3Form
from jaxalign.methods.culturespa.write import PUBLISHED_SAMPLING
from jaxalign.methods.endpoint import Endpoint
from jaxalign.runs import may_change, settings_of
from jaxalign.runs.tracking import TrackerName
from jaxalign.runtime.platform import target_platform
from jaxalign.surveys.options import SurveyOptions, check_options
from jaxalign.surveys.presentations import FORMS, check_presentations, default_presentations
from jaxalign.training.defaults import (
    PAPER,
    Default,
    resolve,
    resolve_training,
    sources,
    training_sources,
)
from jaxalign.training.step import TrainConfig


@dataclasses.dataclass(frozen=True)
class CultureSPASettings(SurveyOptions):
    """Run CultureSPA: write questions, answer them, select what a culture changes, fine-tune on it,
    and measure."""

    out: Path | None = may_change(None)
    """Directory of the run; default: runs/culturespa-<date>-<time>."""
    resume: bool = may_change(False)
    """Continue the run in the output directory; finished steps are not repeated."""
    model: str | None = None
    """Model: a Hugging Face folder, a GGUF file of a Llama, a hub id such as
    meta-llama/Meta-Llama-3-8B-Instruct, or smollm2; default: the pocket model that ships with the
    package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of weights and activations; auto: float32 for the pocket model, bfloat16 for others."""
    survey: Path | None = None
    """Survey with topics and answers by country. Its questions are the examples to write new ones
    after, and the test. Default: the simulated society's survey."""
    distributions: Path | None = None
    """Answers by country to a survey in a CSV of your own: a CSV with the columns country, item,
    code and share."""
    countries: tuple[str, ...] = ("USA", "BRA", "DEU", "CHN", "IND", "NGA")
    """Countries to align to, or any other groups, as the survey names them (countries mostly by
    ISO 3166 alpha-3 code)."""
    per_topic: int | None = None
    """Number of questions to write on each topic; default: follows the model, the paper's 1000 for
    a real one and 12 for the pocket model."""
    limit: int | None = None
    """For a quick look: write this number of questions on each topic, 2 at least, or read it of the
    questions that exist; under one seed. Does not touch --per-topic and --seeds where they are
    given."""
    questions: tuple[Path, ...] = ()
    """Files of existing questions to start from instead of writing new ones: JSON as CultureSPA
    released it, or a survey, such as the questions.json of write-questions. All seeds share
    them."""
    constrain: bool = False
    """Let the model write nothing but JSON of the requested form: tokens that cannot continue it
    are never drawn."""
    generator: str | None = may_change(None)
    """Address of a server that writes the questions instead of the model: any that speaks OpenAI's
    chat protocol, such as vLLM's at http://localhost:8000/v1. Its key is read from OPENAI_API_KEY.
    """
    generator_model: str | None = None
    """Name by which that server knows its model."""
    generator_answers: bool = False
    """Let that server give the unchanged model's sampled answers as well; its model has to be the
    same. Fine-tuned models always answer here."""
    seeds: int | None = None
    """Number of seeds. Every random step is repeated for each: questions, selection, adapters and
    the order of examples. Default: follows the model, 1 for a real one and 5 for the pocket
    model."""
    first_seed: int = 0
    """First seed; the others follow it."""
    reading: Literal["exact", "sampled"] = "exact"
    """How an answer is read. exact: the most likely option; sampled: the first integer of each of
    several replies."""
    runs: int = 3
    """Number of replies to each question if they are sampled."""
    presentations: tuple[str, ...] | None = None
    """Forms in which every question is shown: A, as published; B, same order, numbers the other way
    round; C, reverse order, each option keeps its number; D, reverse order, numbered from the top;
    letters or letters-reversed. Answers are averaged over them, and training shows them in turn.
    Default: follows the model, A and B for a real one and A for the pocket model."""
    examples: Examples = "paper"
    """Where the styles P2 and P3 read countries' answers. paper: the tested survey; leak_free:
    another one."""
    p3_choice: str | None = None
    """Which questions P3 shows before a question. topics: those of its topic first; similar: those
    whose words are most alike; or a file that ranks the questions of the survey by similarity
    (JSON: an object that maps an item to a list of items, the most similar first, as CultureSPA
    released it; or CSV with the columns item and similar). Default: follows the model, similar for
    a real one and topics for the pocket model."""
    p3_form: P3Form | None = None
    """How P3 shows them. one_message: all of them in the system message, as published; turns: each
    as a question with its reply. Default: follows the model, one_message for a real one and turns
    for the pocket model."""
    source: Path | None = None
    """The other survey, for leak-free examples; default, with the default survey: the simulated
    society's values module."""
    source_distributions: Path | None = None
    """Answers by country to a source in a CSV of your own."""
    texts: Path | None = None
    """Folder with prompt texts of your own (persona.jinja, question.jinja, self_alignment.jinja
    ...); default: the package's."""
    language: str = "en"
    """Language of the prompt texts and of the country names in them: en or zh, or the code of any
    other together with texts of your own. Questions are asked as the survey words them."""
    writing: Sampling = dataclasses.field(default_factory=lambda: PUBLISHED_SAMPLING)
    """How new questions are sampled."""
    answering: Sampling = dataclasses.field(
        default_factory=lambda: Sampling(max_new_tokens=16, temperature=0.6, top_p=0.9)
    )
    """How answers are sampled, if they are."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    """The low-rank adapters."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How to fine-tune. If `train.longest_example` is given, written questions that are longer
    are left out and counted."""
    specific_batch: int = 8
    """Number of examples per optimizer step of the models of single countries; the other models
    use that of the training settings."""
    retry: float | None = may_change(None)
    """Learning rate for models whose loss was not finite and that were set aside: a run that is
    resumed trains those alone again, at this rate."""
    end_of_turn: bool = False
    """Also train the end of the turn after the number, as chat trainers do."""
    guard: Path | None = None
    """MMLU-style questions that fine-tuning should not make the model worse at; default: tasks that
    the pocket model was trained on, which say little about another model."""
    guard_tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, such as hellaswag or mmlu, that measure general abilities in
    place of such questions; needs the extra `eval`."""
    guard_task_folder: Path | None = None
    """Folder with task files of your own, in the form of lm-evaluation-harness."""
    prompting: bool | None = may_change(None)
    """Ask the joint and the specific models under every prompt style as well, not only under the
    one that they were trained with. Default: follows the model, yes for a real one and no for the
    pocket model. A finished run that is resumed with it only asks what it has not asked."""
    resamples: int = 4000
    """Number of resamples of the bootstrap over questions."""
    batch_size: int | None = may_change(None)
    """Number of replies written at a time on all devices; default: as many as fit well into
    memory."""
    block_tokens: int | None = None
    """Number of tokens computed together in exact answering; lower it if memory is short. Default:
    follows the model and the device, 2048 for a real model on a CPU and 4096 elsewhere."""
    model_parallel: int | None = may_change(None)
    """Number of devices that share one copy of the weights; default: as few as memory allows."""
    save_every: int = may_change(50)
    """Number of training steps between checkpoints."""
    track: TrackerName | None = may_change(None)
    """Where the rows of metrics are sent too, as they are written: wandb (Weights & Biases, which
    follows its own variables, such as WANDB_MODE=offline and WANDB_PROJECT) or tensorboard (events
    in the run's directory). Each needs the extra of its name: pip install 'jaxalign[wandb]'."""
    quiet: bool = may_change(False)
    """Show no progress bars."""
    verbose: bool = may_change(False)
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds themselves."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def seed_groups(self) -> tuple[tuple[int, ...], ...]:
        """The seeds, grouped by whether the unchanged model answers alike under them.

        Exact answers do not depend on the seed, so all seeds form one group; sampled ones do, so
        each seed is a group by itself.
        """
        if self.reading == "exact":
            return (self.seed_numbers,)
        return tuple((seed,) for seed in self.seed_numbers)


_NAMES = {
    "per_topic": "questions on each topic",
    "seeds": "seeds",
    "presentations": "forms in which questions are shown",
    "p3_choice": "questions that P3 shows",
    "p3_form": "form of P3",
    "prompting": "fine-tuned models under every prompt style",
    "block_tokens": "tokens of a block of exact answers",
}
FOR_POCKET = "suits the pocket model"
LETTERS = ("letters", "letters-reversed")
_POCKET_BLOCK_TOKENS = 4096


def resolve_settings(
    settings: CultureSPASettings, files: ModelFiles
) -> tuple[CultureSPASettings, tuple[str, ...]]:
    """Return the settings with every None that follows the model or the device replaced.

    Args:
        settings: The settings; given values stay as they are, so resolving twice changes nothing.
        files: The model.

    Returns:
        The resolved settings, and one line per replaced setting with its value and source.
    """
    if settings.questions:
        settings = dataclasses.replace(settings, per_topic=0)  # nothing is written
    resolved, notes = resolve(settings, _model_defaults(settings, files), _NAMES)
    train, train_notes = resolve_training(settings.train, files, "culturespa")
    return dataclasses.replace(resolved, train=train), notes + train_notes


def setting_sources(settings: CultureSPASettings, files: ModelFiles) -> dict[str, str]:
    """Return where the values of settings come from: the paper, a measurement, the user.

    Args:
        settings: The settings, resolved.
        files: The model.
    """
    plain_defaults = settings_of(CultureSPASettings())
    published = {name: Default(plain_defaults[name], PAPER) for name in _PUBLISHED}
    found = sources(settings, published | _model_defaults(settings, files))
    found |= training_sources(settings, files, "culturespa", paper=True)
    if settings.guard is None and not settings.guard_tasks:
        found["guard"] = GUARD_OF_POCKET if files.is_pocket else TOY_GUARD
    return found


# Settings with one value for every model, which the paper states.
_PUBLISHED = (
    "runs",
    "examples",
    "specific_batch",
    "writing.max_new_tokens",
    "writing.temperature",
    "writing.top_p",
    "answering.temperature",
    "answering.top_p",
    "lora.rank",
    "lora.alpha",
)
GUARD_OF_POCKET = "tasks that the pocket model was trained on"
TOY_GUARD = "toy tasks made for the pocket model; no test is published with the method"


def _model_defaults(settings: CultureSPASettings, files: ModelFiles) -> dict[str, Default]:
    """Return the settings that follow the model or the device."""
    presentations = default_presentations(files.is_pocket)
    if files.is_pocket:
        following = {
            "per_topic": Default(12, FOR_POCKET),
            "seeds": Default(5, FOR_POCKET),
            "presentations": Default(presentations, "the form that the pocket model knows"),
            "p3_choice": Default("topics", FOR_POCKET),
            "p3_form": Default("turns", FOR_POCKET),
            "prompting": Default(False, "half as long again on the pocket model"),
        }
    else:
        following = {
            "per_topic": Default(1000, PAPER),
            "seeds": Default(1, PAPER),
            "presentations": Default(presentations, "balances the numbers of the options"),
            "p3_choice": Default("similar", "the paper's, with similarity by words"),
            "p3_form": Default("one_message", PAPER),
            "prompting": Default(True, PAPER),
        }
    if settings.limit is not None:
        following["per_topic"] = Default(max(2, settings.limit), "a quick look")
        following["seeds"] = Default(1, "a quick look")
    platform = target_platform()
    if files.is_pocket:
        block_tokens = Default(_POCKET_BLOCK_TOKENS, FOR_POCKET)
    else:
        block_tokens = Default(default_block_tokens(platform), f"chosen for a {platform}")
    return following | {"block_tokens": block_tokens}


_LEAST = {
    "seeds": 1,
    "per_topic": 2,
    "runs": 1,
    "resamples": 1,
    "batch_size": 1,
    "specific_batch": 1,
    "block_tokens": 64,
    "save_every": 1,
    "first_seed": 0,
    "limit": 1,
}


_LONGEST_NAME = 200  # characters of a country, as a folder is called after it


def check_settings(settings: CultureSPASettings) -> None:
    """Raise UserError for settings that no run can have, whatever files they name."""
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes: CultureSPA uses the devices of one process; on "
            "several, run its steps one by one (fine-tuning takes any number of processes)"
        )
    for name, least in _LEAST.items():
        value = getattr(settings, name)
        unused = name == "per_topic" and settings.questions
        if value is not None and value < least and not unused:
            raise UserError(f"`{name}` {value}: give at least {least}")
    if settings.retry is not None and not 0 < settings.retry < math.inf:
        raise UserError(f"`retry` {settings.retry}: must be above 0 and finite")
    countries = settings.countries
    if len(countries) < 2 or len(set(countries)) < len(countries):
        raise UserError(f"`countries` {' '.join(countries)}: give two or more, each once")
    for country in countries:
        if len(urllib.parse.quote(country)) > _LONGEST_NAME:
            raise UserError(
                f"`countries` {country[:60]}...: too long for the name of a folder; rename it"
            )
    _check_presentations(settings)
    for name in ("guard", "guard_task_folder"):
        value = getattr(settings, name)
        if value is not None and (name == "guard") == bool(settings.guard_tasks):
            other = "goes without" if name == "guard" else "needs"
            raise UserError(f"`{name}` {value}: {other} `guard_tasks`")
    if settings.train.method != "lora":
        raise UserError(
            f"`train.method` {settings.train.method}: CultureSPA trains adapters side by side; "
            "give lora"
        )
    choice = settings.p3_choice
    if choice is not None:
        check_path(choice, "p3_choice")
    if choice is not None and choice not in P3_CHOICES and not Path(choice).is_file():
        raise UserError(f"`p3_choice` {choice}: give {', '.join(P3_CHOICES)} or an existing file")
    if settings.generator is not None:
        Endpoint.of(settings.generator, settings.generator_model, settings.constrain)
    if settings.generator_answers and settings.reading != "sampled":
        raise UserError(
            "`generator_answers`: a server gives replies, not probabilities; set `reading` sampled"
        )
    if settings.generator_answers and settings.generator_model is None:
        raise UserError("`generator_answers`: needs `generator` and `generator_model`")
    for name in ("constrain", "per_topic", "generator", "generator_model"):
        if settings.questions and getattr(settings, name):
            raise UserError(f"`{name}`: nothing is written with `questions`; leave one of them out")
    for shares, survey in (("distributions", "survey"), ("source_distributions", "source")):
        if (path := getattr(settings, shares)) is not None and getattr(settings, survey) is None:
            raise UserError(f"`{shares}` {path}: goes with a `{survey}` of your own")
    given = {name: getattr(settings, name) is not None for name in ("survey", "source")}
    check_options(settings, given)
    _check_source(settings)


def _check_presentations(settings: CultureSPASettings) -> None:
    """Refuse unknown forms, and those that depend on how many options a question has."""
    allowed = (*FORMS, *LETTERS)
    for name in settings.presentations or ():
        if name not in allowed:
            why = "written questions have any number of options; " if "order" in name else ""
            raise UserError(f"`presentations` {name}: {why}choose from {', '.join(allowed)}")
    if settings.presentations is not None:
        check_presentations(settings.presentations)


def _check_source(settings: CultureSPASettings) -> None:
    """Refuse a source that would be ignored, and a default source that the user did not mean."""
    leak_free = settings.examples == "leak_free"
    if settings.source is not None and not leak_free:
        raise UserError(
            f"`source` {settings.source}: read only with `examples` leak_free; give both, or "
            "neither"
        )
    if settings.survey is not None and settings.source is None and leak_free:
        raise UserError(
            f"`examples` leak_free with `survey` {settings.survey}: name another survey, `source`, "
            "whose answers by country are shown; the default one is simulated"
        )
