"""The programs of this package, lowered for a mesh of described devices: nothing is allocated.

They are the programs that experiments run, built by the same functions from
`jax.ShapeDtypeStruct`s that carry the shardings of `jaxalign.runtime.sharding`. Beside each stands
what a
formula says of its work, to hold against what the compiler made of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from jax.sharding import Mesh

from jaxalign.answering.cost import candidate_flops
from jaxalign.answering.options import Kernel
from jaxalign.answering.plan import Layout
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.generate import decode_program, padded_length
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.transformer import AXES
from jaxalign.lm.weights import block_weights
from jaxalign.methods.soft_prompt.search import lower_search
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.sharding import DATA, MODEL, POPULATION
from jaxalign.training.data import Shape, TrainData, adapter_key
from jaxalign.training.packing import Example
from jaxalign.training.program import train_program
from jaxalign.training.step import TrainConfig

_GENERATIONS = 2  # in one dispatch: a loop that the compiler keeps, at the memory of any number


@dataclasses.dataclass(frozen=True)
class Program:
    """A program ready to compile, and how to read it afterwards."""

    name: str
    lowered: Any  # jax.stages.Lowered
    unit: str  # what it does `units` times a run: "generation", "batch", "step"
    units: int
    loop_trips: int  # of loops whose length is only known when they run
    formula_flops: float  # of matrix products, per chip and unit


def lower_population(
    config: LlamaConfig,
    layout: Layout,
    strategy: Strategy,
    prompt: SoftPromptConfig,
    chunk: int,
    mesh: Mesh,
    kernel: Kernel = "xla",
) -> Program:
    """ask, evaluate, tell for one country: what `experiments.soft_prompt` compiles.

    What a fused attention kernel computes is in neither count of FLOPs: the compiler does not look
    into it.
    """
    share = -(-strategy.population // mesh.shape[POPULATION])
    computed = -(-share // chunk) * chunk
    flops = candidate_flops(config, layout)
    counted = flops.total - (0 if kernel == "xla" else flops.attention)
    lowered = lower_search(
        config,
        layout,
        strategy,
        prompt,
        mesh,
        chunk=chunk,
        generations=_GENERATIONS,
        kernel=kernel,
    )
    return Program(
        name="population",
        lowered=lowered,
        unit="generation",
        units=_GENERATIONS,
        loop_trips=1,  # the loop over countries
        formula_flops=computed * counted / mesh.shape[MODEL],
    )


def lower_decode(
    config: LlamaConfig, sampling: Sampling, batch_per_share: int, prompt_tokens: int, mesh: Mesh
) -> Program:
    """One batch of replies, `batch_per_share` a part of the data axis, none stopping early."""
    padded = padded_length(prompt_tokens)
    program, arguments = decode_program(
        config, sampling, batch_per_share * mesh.shape[DATA], padded, mesh=mesh
    )
    steps = sampling.max_new_tokens - 1
    head = config.hidden_size * config.vocab_size * sampling.max_new_tokens
    products = batch_per_share * ((padded + steps) * _body_weights(config) + head)
    return Program(
        name="decode",
        lowered=program.lower(*arguments),
        unit="batch",
        units=1,
        loop_trips=steps,
        formula_flops=2 * products / mesh.shape[MODEL],
    )


def lower_train(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    items: Sequence[Sequence[int]],
    mesh: Mesh,
) -> Program:
    """One optimiser step of one adapter; the examples are `items` (token ids, the last one the
    answer) over and over."""
    shape = train_shape(train, items, mesh)
    step, arguments = train_program(config, train, lora, mesh, shape)
    body = _body_weights(config)
    # Forward, and backward through frozen weights; once more backward for the gradient of weights;
    # once more forward for what was not kept. The output of `down` is not needed again, and of the
    # last layer all is still there.
    products = (2 + (train.method == "full")) * body
    if train.remat:
        products += (1 - 1 / config.num_hidden_layers) * (body - _body_weights(config, {"down"}))
    tokens = shape.passes * shape.rows * shape.row_length / mesh.shape[DATA]
    return Program(
        name="train",
        lowered=step.lower(*arguments),
        unit="step",
        units=1,
        loop_trips=shape.passes,
        formula_flops=2 * tokens * products / mesh.shape[MODEL],
    )


def train_shape(train: TrainConfig, items: Sequence[Sequence[int]], mesh: Mesh) -> Shape:
    """The sizes of a step over `train.batch` examples."""
    examples = [
        Example(tuple(items[i % len(items)]), len(items[i % len(items)]) - 1)
        for i in range(train.batch)
    ]
    return TrainData(
        {"joint": examples}, [adapter_key(train.seed, "joint")], train.batch,
        row_length=train.row_length, tokens_per_pass=train.tokens_per_pass,
        data_devices=mesh.shape[DATA],
    ).shape  # fmt: skip


def _body_weights(config: LlamaConfig, names: Collection[str] = tuple(AXES)) -> int:
    """Numbers in the linear maps of all layers, or in those named."""
    weights = block_weights(config)
    return config.num_hidden_layers * sum(math.prod(weights[name].shape) for name in names)
