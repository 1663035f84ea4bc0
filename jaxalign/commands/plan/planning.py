"""Compile this package's programs for described chips, and read off what they need.

The programs are compiled ahead of time by the chips' own compilers, on any Linux machine. A plan
proves that a program compiles and fits; it proves neither speed nor numerics.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from jax.sharding import Mesh

from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.cost import padding_text
from jaxalign.answering.kernel_choice import available
from jaxalign.answering.plan import Layout
from jaxalign.commands.plan.estimate import Estimate, make_estimate, read_refusal
from jaxalign.commands.plan.fit import largest_population, smallest_slice
from jaxalign.commands.plan.programs import Program, lower_decode, lower_population, lower_train
from jaxalign.core.errors import UserError
from jaxalign.lm.config import PRESETS, LlamaConfig, read_config
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.mesh import MeshChoice, choose_mesh
from jaxalign.lm.model import ModelFiles
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.source import find_model
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import load_prompts
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.program_facts import read_program
from jaxalign.runtime.sharding import POPULATION, make_mesh
from jaxalign.runtime.topology import Topology, described_devices, parse_topology
from jaxalign.runtime.traffic import memory_traffic_bytes
from jaxalign.surveys.options import SurveyOptions
from jaxalign.surveys.survey import Item, vsm
from jaxalign.training.defaults import resolve_training
from jaxalign.training.step import TrainConfig

ProgramName = Literal["population", "decode", "train"]
log = logging.getLogger(__name__)


def _program_strategy() -> Strategy:
    return Strategy(population=4096)


@dataclasses.dataclass(frozen=True)
class PlanSettings(SurveyOptions):
    """What to plan, and for which chips."""

    topology: str = "v5e:16x16"
    """Chips as kind:shape: a slice of v4, v5e, v5p or v6e, or h200:1 to h200:8. With an experiment
    also cpu:16, a computer with 16 GiB of memory and no accelerator."""
    model: str = "llama3-8b"
    """Preset (llama3-8b, llama3-70b, llama3.2-1b ...), or a model: a Hugging Face folder, a GGUF
    file, a hub id or smollm2. Its weights are neither read nor fetched."""
    program: tuple[ProgramName, ...] = ("population",)
    """Programs to plan: population (a generation of the search), decode (a batch of replies), train
    (a step of fine-tuning)."""
    experiment: Literal["soft-prompt", "culturespa"] | None = None
    """Experiment to plan whole: every program of a run of it, with the sizes that the run would
    choose on these chips. Replaces `program`."""
    countries: tuple[str, ...] = ("18",)
    """Countries of the experiment by name, or how many of the survey's first ones."""
    survey: Path | None = None
    """Survey with answers by country: held out by soft-prompt, written after and tested on by
    culturespa. Default: the simulated society's."""
    seeds: int | None = None
    """Number of the experiment's seeds; default: as in its run."""
    presentations: tuple[str, ...] | None = None
    """Forms in which the experiment shows questions: A, B, C, D, letters ...; default: as in its
    run."""
    per_topic: int | None = None
    """Number of questions that culturespa writes on each topic; default: as in its run."""
    questions: tuple[Path, ...] = ()
    """Files of existing questions that culturespa starts from instead of writing new ones."""
    constrain: bool = False
    """Whether culturespa holds the questions that it writes to their form."""
    reading: Literal["exact", "sampled"] = "exact"
    """How culturespa reads an answer."""
    runs: int = 3
    """Number of culturespa's replies to each question if they are sampled."""
    p3_choice: str | None = None
    """Questions that culturespa's P3 shows: topics, similar or a ranking; default: as in its
    run."""
    p3_form: Literal["turns", "one_message"] | None = None
    """How culturespa's P3 shows them; default: as in its run."""
    prompting: bool | None = None
    """Whether culturespa asks the fine-tuned models under every prompt style; default: as in its
    run."""
    specific_batch: int = 8
    """Number of examples per step of culturespa's models of single countries."""
    batch_size: int | None = None
    """Number of culturespa's replies written at a time on all devices; default: as in its run."""
    block_tokens: int | None = None
    """Number of tokens that culturespa computes together in exact answering; default: as in its
    run."""
    strategy: Annotated[Strategy, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=_program_strategy
    )
    items: int = 24
    """Number of survey items: those of the values module, then those of the held-out survey."""
    tokenizer: Path | None = None
    """Folder of the tokenizer for the items. Default: that of the model; for a preset that of the
    pocket model, which makes more tokens of a text than Llama 3's."""
    prompt: SoftPromptConfig = dataclasses.field(default_factory=SoftPromptConfig)
    chunk: int | None = None
    """Number of prompts evaluated at a time on each device; default: 4, and for an experiment as
    many as its run would."""
    attention: Literal["xla", "pallas", "splash"] = "xla"
    """Attention kernel of the population: pallas for GPUs, splash for TPUs; both need the weights
    to be whole on every device."""
    model_parallel: Annotated[int | None, tyro.conf.arg(name="mesh-model")] = None
    """Number of devices that share one copy of the weights. Default: as few as memory allows."""
    data_parallel: Annotated[int | None, tyro.conf.arg(name="mesh-data")] = None
    """Length of the data axis. Default: 1 for population, all remaining devices for decode and
    train."""
    decode_batch: int = 16
    """Number of replies at a time on each part of the data axis."""
    decode_prompt: int = 256
    """Number of tokens of a prompt that is replied to."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    fit: Literal["population", "slice"] | None = None
    """Search for the largest population that fits, or for the smallest slice of the chip that holds
    the population. Compiles several times."""

    @property
    def prompts_at_a_time(self) -> int:
        """`chunk` of a single program."""
        return 4 if self.chunk is None else self.chunk

    @property
    def experiment_strategy(self) -> Strategy | None:
        """`strategy` if it was given; the default is one for a single program on a large slice."""
        return None if self.strategy == _program_strategy() else self.strategy


def plan(settings: PlanSettings | None = None, /, **changes: Any) -> tuple[Estimate, ...]:
    """Return what programs need on chips that this machine does not have.

    Compiling for TPUs needs `pip install 'jaxalign[tpu]'`, for GPUs `'jaxalign[cuda]'`; no such
    chip is needed. If JAX has not started yet, it is told to use the CPU only.

        import jaxalign as ja

        (estimate,) = ja.plan(topology="v5e:4x4", model="llama3.2-1b")
        estimate.needed_bytes    # of memory on each chip
        estimate.least_seconds   # for a generation, if everything overlaps, at peak rates

    Args:
        settings: The settings; default: `PlanSettings()`.
        changes: Fields of the settings to replace.

    Returns:
        One estimate per program, in the order of `settings.program`; a single one with `fit`.

    Raises:
        UserError: The settings make no plan, a program does not fit or is refused by the compiler,
            or the compiler is not installed.

    Example:
        >>> import jaxalign as ja
        >>> ja.plan(topology="v5e:3")
        Traceback (most recent call last):
        ...
        jaxalign.core.errors.UserError: `topology` 'v5e:3': v5e has 2 dimensions, such as v5e:16x16
    """
    return tuple(plans(dataclasses.replace(settings or PlanSettings(), **changes)))


def plans(settings: PlanSettings) -> Iterator[Estimate]:
    """Yield the estimates of `plan` as they are made."""
    # Nothing here runs on an accelerator, and libtpu without a TPU would be taken for one.
    jax.config.update("jax_platforms", "cpu")
    topology = parse_topology(settings.topology)
    check(settings)
    if topology.platform == "cpu":
        raise UserError(
            f"`topology` {topology.name}: peak rates of a CPU are not known; give an `experiment`, "
            "whose memory is planned"
        )
    if settings.fit == "population":
        yield _fit_population(settings, topology)
    elif settings.fit == "slice":
        yield smallest_slice(topology, lambda t: plan_program(settings, t, "population"))
    else:
        for name in settings.program:
            yield plan_program(settings, topology, name)


def check(settings: PlanSettings) -> None:
    """Raise UserError for settings that make no plan."""
    settings.strategy.optimizer()  # raises for settings that make no algorithm
    for name in ("items", "chunk", "decode_batch", "decode_prompt", "seeds"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"`{name}` {value}: at least 1")
    if not settings.program:
        raise UserError("`program`: name at least one of population, decode, train")
    if settings.prompt.placement == "after":
        raise UserError("`prompt.placement` after cannot be planned yet; front and system can")
    if settings.fit and settings.program != ("population",):
        raise UserError("`fit` is about the population: leave out `program`")


def plan_program(settings: PlanSettings, topology: Topology, name: ProgramName) -> Estimate:
    """Compile one program for a topology and return what it needs.

    Raises:
        UserError: The program does not compile (with the compiler's reason), or does not fit.
    """
    llama = read_model(settings)
    population = settings.strategy.population if name == "population" else None
    choice = choose_mesh(
        llama,
        topology.num_chips,
        topology.chip.memory_bytes,
        population,
        search_dims=settings.prompt.dims(llama.hidden_size) if population else 0,
        model_parallel=settings.model_parallel,
        data_parallel=settings.data_parallel,
    )
    _check_kernel(settings, llama, topology, choice)
    log.info("%s on %s: %s", name, topology.name, choice.describe())
    mesh = make_mesh(described_devices(topology), **choice.sizes)
    with lowering_for(topology.platform):
        return compile_program(topology, choice, lower(settings, llama, name, mesh))


def _check_kernel(
    settings: PlanSettings, llama: LlamaConfig, topology: Topology, choice: MeshChoice
) -> None:
    """Raise UserError where these chips lack the attention kernel, or split weights rule it out."""
    layout = make_layout(settings, Tokenizer.load(_tokenizer_folder(settings)))
    available(llama, layout, choice.model, topology.platform, settings.attention)


def lower(settings: PlanSettings, llama: LlamaConfig, name: ProgramName, mesh: Mesh) -> Program:
    """Return one of the programs, lowered for a mesh."""
    tokens = Tokenizer.load(_tokenizer_folder(settings))
    if name == "decode":
        return lower_decode(
            llama, settings.sampling, settings.decode_batch, settings.decode_prompt, mesh
        )
    if name == "train":
        conversations = _conversations(settings, tokens)
        train, _ = resolve_training(settings.train, config=llama)
        return lower_train(llama, train, settings.lora, conversations, mesh)
    population, devices = settings.strategy.population, mesh.shape[POPULATION]
    if padding := padding_text(1, population, devices, settings.prompts_at_a_time):
        log.info(padding)
    return lower_population(
        llama,
        make_layout(settings, tokens),
        settings.strategy,
        settings.prompt,
        settings.prompts_at_a_time,
        mesh,
        settings.attention,
    )


def compile_program(topology: Topology, choice: MeshChoice, program: Program) -> Estimate:
    """Compile a program and return what it needs.

    Raises:
        UserError: The compiler refuses the program; the message gives its reason.
    """
    began = time.monotonic()
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise read_refusal(topology, program.name, str(error)) from None
    seconds = time.monotonic() - began
    # Read twice: the first time to learn which loops have a length that the text does not state.
    facts = read_program(compiled)
    facts = read_program(compiled, dict.fromkeys(facts.unknown_loops, program.loop_trips))
    return make_estimate(
        topology,
        program=program.name,
        unit=program.unit,
        units=program.units,
        mesh=choice,
        facts=facts,
        traffic_bytes=memory_traffic_bytes(facts, compiled.as_text()),
        formula_flops=program.formula_flops,
        compile_seconds=seconds,
    )


def read_model(settings: PlanSettings) -> LlamaConfig:
    """Return the config of the preset or of the model, in bfloat16."""
    if settings.model in PRESETS:
        return PRESETS[settings.model]
    return read_config(_model_folder(settings))


def model_files(settings: PlanSettings) -> ModelFiles:
    """Return the model as runs know it. A preset has no folder, and another tokenizer."""
    config = read_model(settings)
    return ModelFiles(Path(settings.model), config, Tokenizer.load(_tokenizer_folder(settings)))


def make_layout(settings: PlanSettings, tokens: Tokenizer) -> Layout:
    """Return the layout of the items under a soft prompt, in the package's own wording."""
    placement, length = settings.prompt.placement, settings.prompt.length
    return soft_prompt_layout(tokens, load_prompts(), _items(settings), placement, length)


def _tokenizer_folder(settings: PlanSettings) -> Path:
    if settings.tokenizer is not None:
        return settings.tokenizer
    return MODEL_FOLDER if settings.model in PRESETS else _model_folder(settings)


@functools.lru_cache(maxsize=8)
def _found(model: str) -> Path:
    return find_model(model, with_weights=False).folder


def _model_folder(settings: PlanSettings) -> Path:
    """Return the folder with the config of a model that is no preset."""
    try:
        return _found(settings.model)
    except UserError as error:
        raise UserError(f"`model` {error}; presets are {', '.join(PRESETS)}") from None


def _items(settings: PlanSettings) -> tuple[Item, ...]:
    known = (*vsm().items, *held_out_survey().items)
    if settings.items > len(known):
        raise UserError(f"`items` {settings.items}: the package has {len(known)}")
    return known[: settings.items]


def _conversations(settings: PlanSettings, tokens: Tokenizer) -> list[list[int]]:
    """Return each item as a conversation to train on: its question and an answer of one token."""
    prompts = load_prompts()
    questions = (tokens.encode_chat([prompts.user(item)]) for item in _items(settings))
    return [[*question, tokens.eot_id] for question in questions]


def _fit_population(settings: PlanSettings, topology: Topology) -> Estimate:
    def attempt(population: int) -> Estimate:
        strategy = dataclasses.replace(settings.strategy, population=population)
        changed = dataclasses.replace(settings, strategy=strategy)
        return plan_program(changed, topology, "population")

    return largest_population(settings.strategy.population, attempt)
