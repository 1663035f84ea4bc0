"""What `experiments.soft_prompt` is asked to do: its settings, and everything they name, checked.

Nothing here takes long or writes anything, so that bad input is refused before the work starts.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from jaxalign.baselines import icl_examples
from jaxalign.errors import UserError
from jaxalign.interview import soft_prompt_layout
from jaxalign.kernel_choice import Asked
from jaxalign.layout import Layout
from jaxalign.layout_after import AfterLayout
from jaxalign.llama.checkpoint import weights_sha256
from jaxalign.llama.config import LlamaConfig, read_config
from jaxalign.llama.tokens import Tokens, check_vocabulary
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import Prompts, load_prompts
from jaxalign.records import may_change
from jaxalign.soft_prompt import SoftPromptConfig
from jaxalign.strategy import Strategy, check_strategy
from jaxalign.survey.countries import DEFAULT_EDITION, DIMENSIONS, targets
from jaxalign.survey.instrument import Instrument, Item, load, values_module
from jaxalign.survey.score import Reading, make_scorer


@dataclasses.dataclass(frozen=True)
class Config:
    """Tune one soft prompt per country by Differential Evolution; compare with the baselines."""

    out: Path | None = may_change(None)
    """Directory of the run; default runs/soft_prompt-<date>-<time>."""
    resume: bool = may_change(False)
    """Continue the run in --out; it ends with the same bits as one that was never stopped."""
    model: Path | None = None
    """Folder of a Hugging Face Llama; default: the pocket Llama that ships with the package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations; auto: float32 for the pocket Llama, bfloat16 for others."""
    countries: tuple[str, ...] = ("USA", "CHN", "IND", "SAU")
    """ISO 3166 alpha-3 codes."""
    edition: str = DEFAULT_EDITION
    """Edition of the published scores that are the targets."""
    dimensions: tuple[str, ...] = DIMENSIONS
    """Dimensions that count; leave out those that a country lacks."""
    constant: float = 50.0
    """C, the free constant of every dimension, in points."""
    anchor: tuple[str, ...] = ()
    """Reference countries: C is then the least-squares fit of the model's persona answers, in the
    expected reading whatever --reading, to their published scores; --constant is not used."""
    reading: Reading = "expected"
    """How answers are read while tuning; both readings are always reported. The gradient control
    always tunes expected: most_likely has no gradient."""
    instrument: Path | None = None
    """Your file with the official wording of m01...m24; default: our paraphrase."""
    held_out: Path | None = None
    """Your survey with country distributions, for ICL examples and the held-out score; default:
    the simulated society's."""
    prompts: Path | None = None
    """Folder with your own prompt texts (item.jinja, persona.jinja); default: the package's."""
    icl_examples: int = 5
    """Examples before each question of the ICL baseline."""
    prompt: SoftPromptConfig = dataclasses.field(default_factory=SoftPromptConfig)
    strategy: Annotated[Strategy, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: Strategy(population=16)
    )
    generations: int = 160
    penalty: float = 0.0
    """Regularisation: points of loss per unit of mean squared search vector."""
    gradient_steps: int = 100
    """Steps of the gradient control: the same prompts tuned by Adam; 0 leaves it out."""
    gradient_rate: float = 0.05
    """Adam's learning rate, in units of the search vector."""
    seed: int = 0
    chunk: int | None = None
    """Prompts evaluated at a time on each device; default: as many as keep it busy, no more than
    the search has, fewer where the compiled program would not fit. Results depend on it in the last
    bits, so it is the same for any number of devices; what that costs in padding is printed."""
    attention: Asked = "auto"
    """Kernel of the search's attention; auto: the fastest here, measured first. On CPU and in
    float32 xla alone; cudnn and pallas for GPUs, splash for TPUs."""
    weights: Literal["stored", "int8"] = "stored"
    """int8: linear layers stored in 8 bits; what that changes in the answers is measured first."""
    model_parallel: int | None = may_change(None)
    """Devices that share one copy of the weights; default: as few as memory allows."""
    save_every: int = 10
    """Generations per dispatch; each ends in a checkpoint."""
    checkpoints: str | None = may_change(None)
    """Where checkpoints go, a directory all processes share or gs://bucket/folder; default: a
    folder in --out."""
    quiet: bool = may_change(False)
    """No progress bar."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What the settings name, read and checked; everything but the weights."""

    folder: Path
    llama: LlamaConfig
    tokens: Tokens
    prompts: Prompts
    module: Instrument  # what is tuned on
    held_out: Instrument  # what is not, without the ICL examples
    survey: Instrument  # where the ICL examples' answers come from
    examples: tuple[Item, ...]
    target_Cx6: np.ndarray
    used_6: np.ndarray
    layout: Layout | AfterLayout

    def facts(self) -> dict[str, str]:
        """Hashes that a resumed run must find unchanged."""
        return {
            "model_sha256": weights_sha256(self.folder),
            "tokenizer_sha256": self.tokens.sha256,
            "instrument_sha256": self.module.sha256,
            "held_out_sha256": self.survey.sha256,
            "simulated_held_out": self.survey.name == held_out_survey().name,
            "icl_examples": [item.id for item in self.examples],
            "prompts": dataclasses.asdict(self.prompts),
        }


def read_study(config: Config) -> Study:
    """Read and check everything that is quick to check. UserError for whatever is wrong."""
    check_strategy(config.strategy)
    if config.generations < 1 or config.save_every < 1:
        raise UserError("--generations and --save-every must be at least 1")
    if config.chunk is not None and config.chunk < 1:
        raise UserError(f"--chunk {config.chunk} must be at least 1")
    target_Cx6, used_6 = targets(config.countries, config.edition, config.dimensions)
    targets(config.anchor, config.edition, config.dimensions)
    folder = config.model or MODEL_FOLDER
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if config.model is None else "bfloat16"
    llama = read_config(folder, dtype)
    tokens = Tokens.load(folder)
    check_vocabulary(tokens, llama)
    prompts = load_prompts(config.prompts)
    module = values_module() if config.instrument is None else load(config.instrument)
    make_scorer(module)
    survey = held_out_survey() if config.held_out is None else load(config.held_out)
    examples = icl_examples(survey, config.countries, config.icl_examples, config.seed)
    return Study(
        folder=folder,
        llama=llama,
        tokens=tokens,
        prompts=prompts,
        module=module,
        held_out=survey.subset({i.id for i in survey.items} - {i.id for i in examples}),
        survey=survey,
        examples=examples,
        target_Cx6=target_Cx6,
        used_6=used_6,
        layout=make_layout(config, tokens, prompts, module),
    )


def make_layout(
    config: Config, tokens: Tokens, prompts: Prompts, instrument: Instrument
) -> Layout | AfterLayout:
    """How an instrument is asked under a soft prompt."""
    placement, length = config.prompt.placement, config.prompt.length
    return soft_prompt_layout(tokens, prompts, instrument.items, placement, length)
