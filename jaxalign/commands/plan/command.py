"""What a program needs on a TPU slice or GPUs that are not at hand, from compiling it for them.

    python -m tpu.plan --topology v5e:16x16 --model llama3-8b --population 4096 --items 24
    python -m tpu.plan --topology v5p:4x4x4 --program population decode train
    python -m tpu.plan --topology v6e:4x4 --fit population
    python -m tpu.plan --topology h200:8 --model llama3-70b

Compiles the real programs ahead of time, on any Linux machine with `pip install 'jaxalign[tpu]'`
(GPUs: `[cuda]`), and prints per chip: memory, FLOPs, bytes of each exchange, and a roofline time.
It proves that a program compiles and fits; it proves neither speed nor numerics. 8B for v5e:16x16
takes one to three minutes on two cores. Plans that were made are in `tpu/README.md`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from jax.sharding import Mesh

from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.cost import padding_text
from jaxalign.answering.kernel_choice import available
from jaxalign.answering.plan import Layout
from jaxalign.commands.plan.fit import largest_population, smallest_slice
from jaxalign.commands.plan.programs import Program, lower_decode, lower_population, lower_train
from jaxalign.commands.plan.report import (
    Estimate,
    make_estimate,
    read_refusal,
    report_rows,
    table_row,
)
from jaxalign.core.errors import UserError
from jaxalign.lm.config import PRESETS, LlamaConfig, read_config
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.mesh import MeshChoice, choose_mesh
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import load_prompts
from jaxalign.runs.console import print_table
from jaxalign.runtime.program_facts import read_program
from jaxalign.runtime.sharding import POPULATION, make_mesh
from jaxalign.runtime.topology import Topology, described_devices, parse_topology
from jaxalign.runtime.traffic import memory_traffic_bytes
from jaxalign.surveys.survey import vsm
from jaxalign.training.step import TrainConfig

ProgramName = Literal["population", "decode", "train"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Compile this package's programs for devices that are not at hand; print what they need."""

    topology: str = "v5e:16x16"
    """Chips as kind:shape: v4, v5e, v5p or v6e with their slices, or h200:1 to h200:8."""
    model: str = "llama3-8b"
    """A preset (llama3-8b, llama3-70b, llama3.2-1b ...) or the folder of a Hugging Face Llama;
    its weights are not read."""
    program: tuple[ProgramName, ...] = ("population",)
    """population (a generation of the search), decode (a batch of replies), train (a fine-tuning
    step); several may be given."""
    strategy: Annotated[Strategy, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: Strategy(population=4096)
    )
    items: int = 24
    """Survey items: those of the values module, then of the held-out survey."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that makes tokens of the items; default: --model's, and for a preset
    the pocket Llama's, which makes more tokens of a text than Llama-3's."""
    prompt: SoftPromptConfig = dataclasses.field(default_factory=SoftPromptConfig)
    chunk: int = 4
    """Prompts evaluated at a time on each device."""
    attention: Literal["xla", "pallas", "splash"] = "xla"
    """Kernel of the population's attention: pallas for GPUs, splash for TPUs, where the weights are
    not split."""
    generations: int = 1000
    """Generations, batches or steps that chips x hours are given for."""
    efficiency: float = 0.6
    """Share of the roofline that a run is expected to reach, for chips x hours."""
    mesh_model: int | None = None
    """Devices that share one copy of the weights; default: as few as memory allows."""
    mesh_data: int | None = None
    """Length of the data axis; default: 1 for population, what is left for decode and train."""
    decode_batch: int = 16
    """Replies at a time on each part of the data axis."""
    decode_prompt: int = 256
    """Tokens of a prompt to reply to."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    fit: Literal["population", "slice"] | None = None
    """Find the largest population for --topology, or the smallest slice of its kind of chip for
    --population. Compiles several times."""
    table: bool = False
    """Print the plan as a row of the table in tpu/README.md as well."""


def plan(config: Config) -> None:
    """The whole command; see the module's docstring."""
    # Nothing here runs on an accelerator, and libtpu without a TPU would be taken for one.
    jax.config.update("jax_platforms", "cpu")
    topology = parse_topology(config.topology)
    check(config)
    if config.fit == "population":
        show(config, _fit_population(config, topology))
    elif config.fit == "slice":
        show(config, smallest_slice(topology, lambda t: plan_program(config, t, "population")))
    else:
        for name in config.program:
            show(config, plan_program(config, topology, name))


def check(config: Config) -> None:
    """UserError for numbers that make no plan."""
    config.strategy.optimizer()
    for name in ("items", "chunk", "generations", "decode_batch", "decode_prompt"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config, name)}: at least 1")
    if not (math.isfinite(config.efficiency) and 0 < config.efficiency <= 1):
        raise UserError(f"--efficiency {config.efficiency}: above 0 and at most 1")
    if not config.program:
        raise UserError("--program: name at least one of population, decode, train")
    if config.prompt.placement == "after":
        raise UserError("--prompt.placement after cannot be planned yet; front and system can")
    if config.fit and config.program != ("population",):
        raise UserError("--fit is about the population: leave out --program")


def plan_program(config: Config, topology: Topology, name: ProgramName) -> Estimate:
    """Compile one program for the topology and read what it needs.

    UserError, with the compiler's reason, where it does not compile or does not fit.
    """
    llama = read_model(config)
    population = config.strategy.population if name == "population" else None
    dims = config.prompt.dims(llama.hidden_size) if population else 0
    choice = choose_mesh(
        llama,
        topology.num_chips,
        topology.chip.memory_bytes,
        population,
        search_dims=dims,
        model_parallel=config.mesh_model,
        data_parallel=config.mesh_data,
    )
    refuse_missing_kernel(config, llama, topology, choice)
    print(f"{name} on {topology.name}: {choice.describe()}", flush=True)
    mesh = make_mesh(described_devices(topology), **choice.sizes)
    return compile_program(topology, choice, lower(config, llama, name, mesh))


def refuse_missing_kernel(
    config: Config, llama: LlamaConfig, topology: Topology, choice: MeshChoice
) -> None:
    """UserError where --attention cannot be had on these chips, or with weights split."""
    platform = "tpu" if topology.is_tpu else "gpu"
    layout = make_layout(config, Tokenizer.load(tokenizer_folder(config)))
    available(llama, layout, choice.model, platform, config.attention)


def lower(config: Config, llama: LlamaConfig, name: ProgramName, mesh: Mesh) -> Program:
    """One of the programs for this mesh."""
    tokens = Tokenizer.load(tokenizer_folder(config))
    if name == "decode":
        return lower_decode(llama, config.sampling, config.decode_batch, config.decode_prompt, mesh)
    if name == "train":
        return lower_train(llama, config.train, config.lora, examples(config, tokens), mesh)
    layout = make_layout(config, tokens)
    population, devices = config.strategy.population, mesh.shape[POPULATION]
    if padding := padding_text(1, population, devices, config.chunk):
        print(padding)
    return lower_population(
        llama, layout, config.strategy, config.prompt, config.chunk, mesh, config.attention
    )


def compile_program(topology: Topology, choice: MeshChoice, program: Program) -> Estimate:
    """The estimate from the compiled program. UserError with the compiler's reason."""
    began = time.monotonic()
    try:
        compiled = program.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise read_refusal(topology, program.name, str(error)) from None
    seconds = time.monotonic() - began
    facts = read_program(compiled)
    facts = read_program(compiled, dict.fromkeys(facts.unknown_loops, program.loop_trips))
    return make_estimate(
        topology, program.name, program.unit, program.units, choice, facts,
        memory_traffic_bytes(facts, compiled.as_text()), program.formula_flops, seconds,
    )  # fmt: skip


def read_model(config: Config) -> LlamaConfig:
    """The preset or the folder's config, in bfloat16."""
    if config.model in PRESETS:
        return PRESETS[config.model]
    if not Path(config.model).is_dir():
        raise UserError(f"--model {config.model}: neither a folder nor one of {', '.join(PRESETS)}")
    return read_config(Path(config.model))


def tokenizer_folder(config: Config) -> Path:
    if config.tokenizer is not None:
        return config.tokenizer
    return MODEL_FOLDER if config.model in PRESETS else Path(config.model)


def items(config: Config) -> tuple:
    """The survey items asked for."""
    known = (*vsm().items, *held_out_survey().items)
    if config.items > len(known):
        raise UserError(f"--items {config.items}: the package has {len(known)}")
    return known[: config.items]


def make_layout(config: Config, tokens: Tokenizer) -> Layout:
    """The items as they are asked under a soft prompt, in the package's own wording."""
    placement, length = config.prompt.placement, config.prompt.length
    return soft_prompt_layout(tokens, load_prompts(None), items(config), placement, length)


def examples(config: Config, tokens: Tokenizer) -> list[list[int]]:
    """Each item as a conversation to fine-tune on: its question and one token of answer."""
    prompts = load_prompts(None)
    asked = (tokens.encode_chat([prompts.user(item)]) for item in items(config))
    return [[*question, tokens.eot_id] for question in asked]


def show(config: Config, estimate: Estimate) -> None:
    """The plan as a table, and what it leaves out."""
    print_table(
        f"{config.model}, {estimate.program}, {estimate.topology.name}",
        ("per chip", ""),
        report_rows(estimate, config.generations, config.efficiency),
    )
    if not estimate.topology.is_tpu:
        print("Planned without a GPU: without autotuning and without cuDNN, so a real run differs.")
    if config.table:
        print(table_row(config.model, estimate))


def _fit_population(config: Config, topology: Topology) -> Estimate:
    def attempt(population: int) -> Estimate:
        strategy = dataclasses.replace(config.strategy, population=population)
        changed = dataclasses.replace(config, strategy=strategy)
        return plan_program(changed, topology, "population")

    return largest_population(config.strategy.population, attempt)
