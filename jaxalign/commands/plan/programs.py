"""The programs of this package, lowered for a mesh of described devices; nothing is allocated.

They are built by the functions that real runs use, from `jax.ShapeDtypeStruct`s that carry the
shardings of `jaxalign.runtime.sharding`. Each comes with its FLOPs by formula, to compare with what
the compiler made of it.
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
from jaxalign.lm.decode_cache import KEY_BLOCK
from jaxalign.lm.decode_loop import rounded_positions
from jaxalign.lm.generate import decode_programs
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.transformer import AXES
from jaxalign.lm.weights import block_weights
from jaxalign.methods.soft_prompt.search import lower_search
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.sharding import DATA, MODEL, POPULATION
from jaxalign.training.data import TrainData, adapter_key, make_streams, shape_of_streams
from jaxalign.training.kernel_choice import choose_kernel
from jaxalign.training.packing import Example
from jaxalign.training.program import train_program
from jaxalign.training.shape import Shape
from jaxalign.training.step import TrainConfig

# Generations in one program: two make a loop, which needs the memory of a loop of any length.
_GENERATIONS = 2


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that is ready to compile, and how to read it afterwards.

    Attributes:
        name: "population", "decode" or "train".
        lowered: The `jax.stages.Lowered`.
        unit: Unit of work: "generation" or "step".
        units: Number of units that the program does.
        loop_trips: Trip count of loops whose length is only known when they run.
        formula_flops: FLOPs of matrix products by formula, per chip and unit.
    """

    name: str
    lowered: Any
    unit: str
    units: int
    loop_trips: int
    formula_flops: float


def lower_population(
    config: LlamaConfig,
    layout: Layout,
    strategy: Strategy,
    prompt: SoftPromptConfig,
    chunk: int,
    mesh: Mesh,
    kernel: Kernel = "xla",
) -> Program:
    """Lower generations of the search (ask, evaluate, tell) for one country.

    Neither count of FLOPs includes a fused attention kernel, because the compiler does not look
    into it.

    Args:
        config: The model.
        layout: The items under a soft prompt.
        strategy: The algorithm and its population.
        prompt: Length, placement and search space of the soft prompt.
        chunk: Prompts evaluated at a time on each device.
        mesh: The mesh of described devices.
        kernel: The attention kernel.
    """
    # A device evaluates its part of the population, rounded up to whole chunks.
    per_device = -(-strategy.population // mesh.shape[POPULATION])
    computed = -(-per_device // chunk) * chunk
    flops = candidate_flops(config, layout)
    counted = flops.total - (0 if kernel == "xla" else flops.attention)
    lowered = lower_search(
        config,
        layout,
        strategy,
        prompt,
        mesh,
        entries=[("USA", 0)],
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
    """Lower a segment of decoding in which every slot is in use.

    Args:
        config: The model.
        sampling: Length of the replies, and how they are drawn.
        batch_per_share: Replies on each part of the data axis.
        prompt_tokens: Tokens of a prompt.
        mesh: The mesh of described devices.
    """
    programs = decode_programs(
        config,
        sampling,
        mesh,
        slots=batch_per_share,
        positions=prompt_tokens + sampling.max_new_tokens,
    )
    program, arguments = programs[f"decode {batch_per_share} rows"]
    # A loop over steps and inside it one over blocks of the cache. As many steps are counted as
    # there are blocks, so that one number of trips is right for both.
    blocks = rounded_positions(prompt_tokens + sampling.max_new_tokens) // KEY_BLOCK
    # Each new token passes through the layers and the output layer once.
    head = config.hidden_size * config.vocab_size
    return Program(
        name="decode",
        lowered=program.lower(*arguments),
        unit="step",
        units=blocks,
        loop_trips=blocks,
        formula_flops=2 * batch_per_share * (_body_weights(config) + head) / mesh.shape[MODEL],
    )


def lower_train(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    items: Sequence[Sequence[int]],
    mesh: Mesh,
) -> Program:
    """Lower one optimiser step of one adapter.

    Args:
        config: The model.
        train: Batch size, length of rows and so on.
        lora: The adapter.
        items: Token ids of each example, the last one the answer; repeated to fill the batch.
        mesh: The mesh of described devices.
    """
    shape, passes = train_shape(train, items, mesh)
    choice = choose_kernel(
        config, mesh, shape.row_length, shape.window, shape.examples, train.attention
    )
    step, arguments = train_program(config, train, lora, mesh, shape, kernel=choice.kernel)
    body = _body_weights(config)
    # One pass forward and one backward through frozen weights, and another one backward for the
    # gradient of the weights if they are trained. With rematerialisation what was not kept is
    # computed once more forward, except for the output of `down`, which is not needed again, and
    # the last layer, of which everything is still there.
    products = (2 + (train.method == "full")) * body
    if train.remat:
        products += (1 - 1 / config.num_hidden_layers) * (body - _body_weights(config, {"down"}))
    tokens = passes * shape.rows * shape.row_length / mesh.shape[DATA]
    return Program(
        name="train",
        lowered=step.lower(*arguments),
        unit="step",
        units=1,
        loop_trips=passes,
        formula_flops=2 * tokens * products / mesh.shape[MODEL],
    )


def train_shape(
    train: TrainConfig, items: Sequence[Sequence[int]], mesh: Mesh
) -> tuple[Shape, int]:
    """Return the sizes of a step over `train.batch` examples, and the passes that it needs."""
    examples = [
        Example(tuple(items[i % len(items)]), len(items[i % len(items)]) - 1)
        for i in range(train.batch)
    ]
    streams = make_streams({"joint": examples}, [adapter_key(train.seed, "joint")], train.batch)
    shape = shape_of_streams(
        [list(streams.values())],
        train.batch,
        train.tokens_per_pass,
        train.longest_example,
        mesh.shape[DATA],
    )
    # Rows of one length, so that all loops whose length is only known at run time have one.
    shape = dataclasses.replace(shape, tail=0, tail_answers=0)
    _, (passes, _) = TrainData(list(streams), list(streams.values()), shape).batch(0)
    return shape, int(passes)


def _body_weights(config: LlamaConfig, names: Collection[str] = tuple(AXES)) -> int:
    """Return how many numbers the linear maps of all layers hold, or those named."""
    weights = block_weights(config)
    return config.num_hidden_layers * sum(math.prod(weights[name].shape) for name in names)
