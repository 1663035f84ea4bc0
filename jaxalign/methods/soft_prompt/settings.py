"""Settings of a soft-prompt run: its command line, its record, and what `resume` must keep."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxalign.answering.kernel_choice import KernelOption
from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import may_change, settings_of
from jaxalign.stats.vsm import Reading
from jaxalign.surveys.hofstede import DEFAULT_EDITION, DIMENSIONS
from jaxalign.surveys.options import SurveyOptions, check_options


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
    reading: Reading = "expected"
    """How answers are read while tuning; both readings are always reported. The gradient control
    always tunes the expected reading, because the most likely one has no gradient."""
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
    seed: int = 0
    """Seed of every random draw."""
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
    quiet: bool = may_change(False)
    """Whether to hide the progress bar."""

    @property
    def candidates(self) -> int:
        """Candidates per generation, over all countries."""
        return len(self.countries) * self.strategy.population


# Nobody has published these for a real model, so their defaults are what suits the pocket model.
_CHOSEN_ON_POCKET = (
    "strategy.population",
    "generations",
    "prompt.spread",
    "gradient_steps",
    "gradient_rate",
)


def pocket_defaults(settings: Settings) -> str:
    """Return a line that names the settings left at what was chosen on the pocket model.

    For runs on other models. Empty if all of them were given other values.
    """
    given, default = settings_of(settings), settings_of(Settings())
    left = [f"`{name}` {given[name]}" for name in _CHOSEN_ON_POCKET if given[name] == default[name]]
    if not left:
        return ""
    return f"chosen on the pocket model, since nobody has published a value: {', '.join(left)}"


def check_settings(settings: Settings) -> None:
    """Raise UserError for values that no search can use."""
    for name in ("generations", "save_every", "chunk"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"`{name}` {value} must be at least 1")
    for name in ("icl_examples", "gradient_steps", "penalty"):
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise UserError(f"`{name}` {value} must be 0 or more")
    if not 0 < settings.gradient_rate < math.inf:
        raise UserError(f"`gradient_rate` {settings.gradient_rate} must be more than 0")
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"`seed` {settings.seed} must lie between 0 and 2**32 - 1")
    if not settings.countries:
        raise UserError("`countries`: give one or more")
    if len(set(settings.countries)) < len(settings.countries):
        raise UserError(f"`countries` {' '.join(settings.countries)}: give each once")
    given = {name: getattr(settings, name) is not None for name in ("held_out", "instrument")}
    check_options(settings, given)
    settings.strategy.optimizer()
