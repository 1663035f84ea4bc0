"""Settings of a soft-prompt run: its command line, its record, and what `resume` must keep."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxalign.answering.kernel_choice import KernelOption
from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.evolve import Entry, entries_of
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import may_change, settings_of
from jaxalign.runs.settings import also_called
from jaxalign.runs.tracking import TrackerName
from jaxalign.surveys.hofstede import DEFAULT_EDITION, DIMENSIONS
from jaxalign.surveys.options import SurveyOptions, check_options
from jaxalign.surveys.presentations import check_presentations
from jaxalign.training.defaults import PAPER, Default, sources

Reading = Literal["expected", "most_likely", "sampled"]
AnswerForm = Literal["number", "label", "label-per-token", "label-against-prior"]


@dataclasses.dataclass(frozen=True)
class Settings(SurveyOptions):
    """Tune one soft prompt per country by Differential Evolution; compare with the baselines."""

    out: Path | None = may_change(None)
    """Directory of the run; default: runs/soft_prompt-<date>-<time>."""
    resume: bool = may_change(False)
    """Whether to continue the run in --out; it ends with the same bits as one never stopped."""
    model: str | None = None
    """Model: a Hugging Face folder, a GGUF file of a Llama, a hub id such as
    meta-llama/Meta-Llama-3-8B-Instruct, or smollm2; default: the pocket model that ships with the
    package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of weights and activations; auto is float32 for the pocket Llama and bfloat16
    for every other model."""
    countries: tuple[str, ...] = ("USA", "CHN", "IND", "SAU")
    """Countries to tune for, as ISO 3166 alpha-3 codes, or other groups that --edition names."""
    edition: str = DEFAULT_EDITION
    """Edition of the published scores that are the targets, or a CSV of your own with the columns
    group, name and the dimensions."""
    dimensions: tuple[str, ...] = DIMENSIONS
    """Score dimensions that count; leave out those that a country lacks."""
    constant: float = 50.0
    """C, the free constant of every dimension, in points."""
    anchor: tuple[str, ...] = ()
    """Reference countries that C is fitted on: C is then the least-squares fit of the model's
    persona answers, always in the expected reading, to their published scores, and --constant is
    not used."""
    objective: str = "vsm"
    """Loss that is minimised, by name; vsm is the distance of the six scores from the targets."""
    scores: Path | None = None
    """File of a linear factor score, JSON or CSV, for --objective linear."""
    mas_weight: Literal[35, 25] = 35
    """Weight of the second difference of MAS: the manual's 35, or the 25 that some papers print."""
    presentations: tuple[str, ...] | None = None
    """Forms in which the options are shown, whose answers are averaged and tuned on: A (as
    published), B (numbers reversed), C (order and numbers reversed), D (order reversed), letters,
    letters-reversed, orders (all orders of up to 5 options), order-21...; default: A for the pocket
    model, A and B for others."""
    test_presentations: tuple[str, ...] | None = None
    """Forms that are not tuned on and reported beside those that are; default: those of A, B, C and
    D that are not tuned on."""
    answer: AnswerForm = "number"
    """What is read as an option: its number (or letter); or its text, by the sum of its tokens'
    log-likelihoods, by their mean, or by their sum less that after a neutral question."""
    reading: Reading = "expected"
    """How answers are read while tuning: the mean of the options' probabilities, the most likely
    option, or replies that are sampled and read as users read them. The first two are always
    reported. The gradient control always tunes the expected reading, because the others have no
    gradient."""
    replies: int = 3
    """Number of sampled replies to each item, for --reading sampled and --report-sampled."""
    report_sampled: bool = False
    """Whether the sampled reading is reported too where another one is tuned."""
    instrument: Path | None = None
    """File with the official wording of m01...m24; default: our paraphrase."""
    held_out: Path | None = None
    """Survey with country distributions, for the ICL examples and the held-out score: CultureSPA's
    folder, GlobalOpinionQA, or a JSON or CSV of your own; default: the simulated society's."""
    held_out_distributions: Path | None = None
    """CSV with country, item, code and share, if --held-out is a CSV of your own."""
    prompts: Path | None = None
    """Folder with your own prompt texts (item.jinja, persona.jinja); default: the package's."""
    language: str = "en"
    """Language of the prompt texts and of the country names in them: en or zh, or the code of any
    other together with texts of your own. Questions are asked as the survey words them."""
    icl_examples: int = 5
    """Number of examples before each question of the ICL baseline."""
    prompt: SoftPromptConfig = dataclasses.field(default_factory=SoftPromptConfig)
    strategy: Annotated[Strategy, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: Strategy(population=16)
    )
    generations: int = 160
    """Number of generations after the initial population."""
    penalty: float = 0.0
    """Weight of the regularisation, in points of loss per unit of mean squared search vector."""
    gradient_steps: int = may_change(100)
    """Number of steps of the gradient control, which follows the search and tunes the same prompts
    by Adam; 0 leaves it out, also with --resume."""
    gradient_rate: float = 0.05
    """Adam's initial learning rate in the gradient control, in units of the search vector."""
    limit: int | None = None
    """For a quick look: no more than this number of generations and of steps of the gradient
    control, and of items of the held-out survey, spread evenly over it."""
    seeds: Annotated[tuple[int, ...], also_called("seed")] = (0,)
    """Seeds of the random draws. Each country is tuned under each of them, all side by side in one
    program. The first one also draws the examples and the resamples of intervals."""
    held_out_points: int = 8
    """Number of generations, spread evenly over the search, whose best prompt so far is scored on
    the held-out survey too; 0 for none."""
    chunk: int | None = None
    """Number of prompts evaluated at a time on each device; default: as many as keep it busy, no
    more than the search has, fewer if the compiled program would not fit. The last bits of results
    depend on it, so it is the same for any number of devices; the padding that costs is printed."""
    attention: KernelOption = "auto"
    """Attention kernel of the search; auto is the fastest one here, which is measured first. CPUs
    and float32 have xla alone; cudnn and pallas are for GPUs, splash is for TPUs."""
    weights: Literal["stored", "int8"] = "stored"
    """Storage of the linear layers; int8 stores them in 8 bits, and what that changes in the
    answers is measured first."""
    model_parallel: int | None = may_change(None)
    """Number of devices that share one copy of the weights; default: as few as memory allows."""
    save_every: int = 10
    """Number of generations per dispatch; each dispatch ends in a checkpoint."""
    checkpoints: str | None = may_change(None)
    """Directory of the checkpoints, shared by all processes, or gs://bucket/folder; default: a
    folder in --out."""
    track: TrackerName | None = may_change(None)
    """Where the rows of metrics are sent too, as they are written: wandb (Weights & Biases, which
    follows its own variables, such as WANDB_MODE=offline and WANDB_PROJECT) or tensorboard (events
    in the run's directory). Each needs the extra of its name: pip install 'jaxalign[wandb]'."""
    quiet: bool = may_change(False)
    """Whether to hide the progress bar."""
    verbose: bool = may_change(False)
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""

    @property
    def seed(self) -> int:
        """The first seed, for draws that all countries and seeds share."""
        return self.seeds[0]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is searched for side by side: each country under each seed, seed by seed."""
        return tuple(entry for seed in self.seeds for entry in entries_of(self.countries, seed))

    @property
    def candidates(self) -> int:
        """Candidates per generation, over all countries and seeds."""
        return len(self.entries) * self.strategy.population

    @property
    def samples(self) -> bool:
        """Whether replies are sampled, to tune on or to report."""
        return self.reading == "sampled" or self.report_sampled


def entry_labels(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return what entries are called: by their groups, and by the seed where there are several.

    >>> entry_labels([("USA", 0), ("CHN", 0)])
    ('USA', 'CHN')
    >>> entry_labels([("USA", 0), ("USA", 1)])
    ('USA s0', 'USA s1')
    """
    if len({seed for _, seed in entries}) == 1:
        return tuple(group for group, _ in entries)
    return tuple(f"{group} s{seed}" for group, seed in entries)


CHOSEN_ON_POCKET = "chosen on the pocket model; nobody has published a value"
_UNPUBLISHED = "chosen; nobody has published a value"
# Where the defaults come from.
_SOURCES = {
    "strategy.algorithm": PAPER,
    "strategy.population": CHOSEN_ON_POCKET,
    "strategy.differential_weight_min": "scipy's: F between 0.5 and 1",
    "strategy.differential_weight_max": "scipy's: F between 0.5 and 1",
    "strategy.crossover_rate": "evosax's",
    "strategy.elitism": "evosax's: best/1/bin",
    "generations": CHOSEN_ON_POCKET,
    "prompt.length": _UNPUBLISHED,
    "prompt.vocabulary_top": "Lester et al. 2021",
    "prompt.spread": CHOSEN_ON_POCKET,
    "gradient_steps": CHOSEN_ON_POCKET,
    "gradient_rate": CHOSEN_ON_POCKET,
    "constant": _UNPUBLISHED,
    "mas_weight": "the manual of the VSM 2013",
    "icl_examples": _UNPUBLISHED,
}


def setting_sources(settings: Settings) -> dict[str, str]:
    """Return where the values of settings come from: the paper, a measurement, the user."""
    default = settings_of(Settings())
    known = {name: Default(default[name], source) for name, source in _SOURCES.items()}
    return sources(settings, known)


def pocket_defaults(settings: Settings) -> str:
    """Return a line that names the settings left at what was chosen on the pocket model.

    For runs on other models. Empty if all of them were given other values.
    """
    given, default = settings_of(settings), settings_of(Settings())
    chosen = [name for name, source in _SOURCES.items() if source == CHOSEN_ON_POCKET]
    left = [f"`{name}` {given[name]}" for name in chosen if given[name] == default[name]]
    if not left:
        return ""
    return f"chosen on the pocket model, since nobody has published a value: {', '.join(left)}"


def limited(settings: Settings) -> Settings:
    """Return the settings of the quick look that they ask for; as they are without `limit`."""
    if settings.limit is None:
        return settings
    names = ("generations", "gradient_steps")
    least = {name: min(getattr(settings, name), max(settings.limit, 1)) for name in names}
    return dataclasses.replace(settings, **least)


def check_settings(settings: Settings) -> None:
    """Raise UserError for values that no search can use."""
    for name in ("generations", "save_every", "chunk", "replies", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"`{name}` {value} must be at least 1")
    for name in ("icl_examples", "gradient_steps", "held_out_points", "penalty"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise UserError(f"`{name}` {value} must be 0 or more")
    if not 0 < settings.gradient_rate < math.inf:
        raise UserError(f"`gradient_rate` {settings.gradient_rate} must be more than 0")
    if not settings.seeds:
        raise UserError("`seeds`: give one or more")
    for seed in settings.seeds:
        if not 0 <= seed < 2**32:
            raise UserError(f"`seeds` {seed} must lie between 0 and 2**32 - 1")
        if settings.seeds.count(seed) > 1:
            raise UserError(f"`seeds` {seed}: give each once")
    if settings.presentations is not None:
        check_presentations(settings.presentations)
    if settings.test_presentations:
        check_presentations(settings.test_presentations, "test_presentations")
    if settings.samples and settings.answer != "number":
        raise UserError(
            f"`answer` {settings.answer}: sampled replies are read by number; use `answer` number, "
            "or another `reading` without `report_sampled`"
        )
    if not settings.countries:
        raise UserError("`countries`: give one or more")
    if len(set(settings.countries)) < len(settings.countries):
        raise UserError(f"`countries` {' '.join(settings.countries)}: give each once")
    given = {name: getattr(settings, name) is not None for name in ("held_out", "instrument")}
    check_options(settings, given)
    settings.strategy.optimizer()
