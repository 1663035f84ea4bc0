"""What `experiments.soft_prompt` is asked to do: its settings, and everything they name, checked.

Nothing here takes long or writes anything, so that bad input is refused before the work starts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.kernel_choice import KernelOption
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import weights_sha256
from jaxalign.lm.config import LlamaConfig, read_config
from jaxalign.lm.tokenizer import Tokenizer, check_vocabulary
from jaxalign.methods.prompting import icl_examples, lead_in
from jaxalign.methods.soft_prompt.space import SoftPromptConfig, make_space
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import Message, Prompts, load_prompts
from jaxalign.runs import may_change
from jaxalign.stats.vsm import Reading, make_scorer
from jaxalign.surveys.formats import read_answered, read_questionnaire
from jaxalign.surveys.hofstede import DEFAULT_EDITION, DIMENSIONS, targets
from jaxalign.surveys.survey import Item, Survey, vsm
from jaxalign.surveys.tables import option_table


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
    """Your survey with country distributions, for ICL examples and the held-out score: CultureSPA's
    folder, GlobalOpinionQA, or a JSON or CSV of your own; default: the simulated society's."""
    held_out_distributions: Path | None = None
    """Of a --held-out in a CSV of your own: the CSV with country, item, code and share."""
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
    gradient_steps: int = may_change(100)
    """Steps of the gradient control, which follows the search: the same prompts tuned by Adam; 0
    leaves it out, on --resume too."""
    gradient_rate: float = 0.05
    """Adam's learning rate, in units of the search vector."""
    seed: int = 0
    chunk: int | None = None
    """Prompts evaluated at a time on each device; default: as many as keep it busy, no more than
    the search has, fewer where the compiled program would not fit. Results depend on it in the last
    bits, so it is the same for any number of devices; what that costs in padding is printed."""
    attention: KernelOption = "auto"
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
    tokens: Tokenizer
    prompts: Prompts
    module: Survey  # what is tuned on
    held_out: Survey  # what is not, without the ICL examples
    survey: Survey  # where the ICL examples' answers come from
    examples: tuple[Item, ...]
    target_Cx6: np.ndarray
    used_6: np.ndarray
    layout: Layout | SuffixLayout

    def facts(self) -> dict[str, str]:
        """Hashes that a resumed run must find unchanged."""
        return {
            "model_sha256": weights_sha256(self.folder),
            "tokenizer_sha256": self.tokens.sha256,
            "instrument_sha256": self.module.sha256,
            "held_out_sha256": self.survey.sha256,
            "simulated_held_out": self.survey.simulated,
            "icl_examples": [item.id for item in self.examples],
            "prompts": dataclasses.asdict(self.prompts),
        }


def read_study(config: Config) -> Study:
    """Read and check everything that is quick to check. UserError for whatever is wrong."""
    check_numbers(config)
    config.strategy.optimizer()
    if not config.countries:
        raise UserError("--countries: give one or more")
    if len(set(config.countries)) < len(config.countries):
        raise UserError(f"--countries {' '.join(config.countries)}: give each once")
    target_Cx6, used_6 = targets(config.countries, config.edition, config.dimensions)
    targets(config.anchor, config.edition, config.dimensions)
    folder = config.model or MODEL_FOLDER
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if config.model is None else "bfloat16"
    llama = read_config(folder, dtype)
    check_space(config, llama)
    tokens = Tokenizer.load(folder)
    check_vocabulary(tokens, llama)
    prompts = load_prompts(config.prompts)
    module = vsm()
    if config.instrument is not None:
        module = read_questionnaire(config.instrument, "instrument")
    make_scorer(module, config.constant)
    survey = read_held_out(config)
    examples = icl_examples(survey, config.countries, config.icl_examples, config.seed)
    if len(examples) == len(survey.items):
        raise UserError(
            f"--icl-examples {config.icl_examples}: survey {survey.name!r} has no more items, and "
            "none is left to be held out; ask for fewer, or give another --held-out"
        )
    check_length(config, llama, tokens, [[prompts.user(item)] for item in module.items])
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


def read_held_out(config: Config) -> Survey:
    """The survey that prompts are not tuned on."""
    path, shares = config.held_out, config.held_out_distributions
    if path is not None:
        return read_answered(path, "held_out", shares, "held_out_distributions")
    if shares is not None:
        raise UserError(f"--held-out-distributions {shares}: goes with a --held-out of your own")
    return held_out_survey()


def check_numbers(config: Config) -> None:
    """UserError for a number that no search can use."""
    option = {f.name: "--" + f.name.replace("_", "-") for f in dataclasses.fields(config)}
    for name in ("generations", "save_every", "chunk"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{option[name]} {value} must be at least 1")
    for name in ("icl_examples", "gradient_steps", "penalty"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise UserError(f"{option[name]} {value} must be 0 or more")
    if not 0 < config.gradient_rate < math.inf:
        raise UserError(f"--gradient-rate {config.gradient_rate} must be more than 0")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"--seed {config.seed} must lie between 0 and 2**32 - 1")


def check_space(config: Config, llama: LlamaConfig) -> None:
    """Raise what the search and its space would raise once the weights are loaded."""
    config.strategy.build(config.prompt.length)
    full = config.prompt.projection == "none"
    prompt = dataclasses.replace(config.prompt, projection="none" if full else "random")
    start_MxD = jax.ShapeDtypeStruct((prompt.length, llama.hidden_size), jnp.float32)
    embed_VxD = jax.ShapeDtypeStruct((1, llama.hidden_size), jnp.float32)
    jax.eval_shape(functools.partial(make_space, prompt), start_MxD, embed_VxD)


def check_comparison(config: Config, study: Study) -> None:
    """Raise now what the held-out survey and the baselines would raise after the search."""
    item_ids = {item.id for item in study.held_out.items}
    for country in config.countries:
        if not item_ids & study.survey.distributions.get(country, {}).keys():
            raise UserError(
                f"--icl-examples {config.icl_examples}: survey {study.survey.name!r} leaves no "
                f"item that {country} answered to be held out; ask for fewer, or give another "
                "--held-out"
            )
    option_table(study.held_out)
    questions = [[study.prompts.user(i)] for i in (*study.module.items, *study.held_out.items)]
    check_length(config, study.llama, study.tokens, questions)
    for country in config.countries:
        lead = lead_in("icl", study.prompts, country, study.survey, study.examples)
        asked = [lead + question for question in questions]
        check_length(config, study.llama, study.tokens, asked, config.icl_examples)


def check_length(
    config: Config,
    llama: LlamaConfig,
    tokens: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    examples: int | None = None,
) -> None:
    """UserError for conversations longer than what the model was trained to read.

    After a soft prompt, or after this many examples.
    """
    added = config.prompt.length if examples is None else 0
    longest = added + max(len(tokens.encode_chat(messages)) for messages in conversations)
    if longest > llama.max_position_embeddings:
        what = f"--prompt.length {added}" if added else f"--icl-examples {examples}"
        raise UserError(
            f"{what}: with the longest question {longest:,} tokens, but the model has "
            f"max_position_embeddings={llama.max_position_embeddings}; shorten one of them"
        )


def make_layout(
    config: Config, tokens: Tokenizer, prompts: Prompts, instrument: Survey
) -> Layout | SuffixLayout:
    """How an instrument is asked under a soft prompt."""
    placement, length = config.prompt.placement, config.prompt.length
    return soft_prompt_layout(tokens, prompts, instrument.items, placement, length)
