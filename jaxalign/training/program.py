"""The programs that fine-tuning compiles for a mesh: a step and a loss, with abstract arguments.

Examples are spread over the data axis; adapters, their moments and the weights lie on the model
axis. Nothing is allocated here, so `jaxalign.commands.plan` compiles the same programs for devices
that we do not have.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, adapter_weights
from jaxalign.lm.weights import (
    WeightFormat,
    abstract_params,
    is_weight,
    program_params,
    weight_tree,
)
from jaxalign.runtime.sharding import DATA, named_sharding, replicated
from jaxalign.training.fused import Fused
from jaxalign.training.packing import Batch
from jaxalign.training.shape import MOST_UNITS, Shape, choose_shape, estimated_steps
from jaxalign.training.step import (
    TrainConfig,
    TrainState,
    init_state,
    make_loss,
    make_rule,
    make_step,
)

_USABLE = 0.8  # of what the arithmetic leaves: the rest is for what it does not know


def train_program(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    mesh: jax.sharding.Mesh,
    shape: Shape,
    weights: WeightFormat = "stored",
    kernel: str = "xla",
) -> tuple[Any, tuple]:
    """Return the jitted step and its abstract arguments.

    `step.lower(*arguments).compile()` needs no arrays. Arguments are (state, params, batches,
    passes, schedule_Kx3), each with its sharding; the step returns (state, metrics) and reuses the
    buffers of the state that it is given. See `jaxalign.training.step.make_step`; `kernel` computes
    the attention (`jaxalign.training.kernel_choice`). The same sizes
    give the same jitted step, which JAX compiles once in a process: a step that was checked before
    a run is not compiled again when training begins.
    """
    return _train_program(config, train, lora, mesh, shape, weights, kernel)


@functools.lru_cache(maxsize=4)
def _train_program(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    mesh: jax.sharding.Mesh,
    shape: Shape,
    weights: WeightFormat,
    kernel: str,
) -> tuple[Any, tuple]:
    state = abstract_state(config, train, lora, mesh, shape.adapters)
    params = program_params(config, mesh, weights)
    whole = replicated(mesh)
    arguments = (
        state,
        None if train.method == "full" else params,
        _with_shardings(shape.batch, _batch_shardings(mesh, shape)),
        jax.ShapeDtypeStruct((2,), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((shape.adapters, 3), jnp.float32, sharding=whole),
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        make_step(config, train, lora, shape, Fused.of(kernel, mesh, DATA)),
        donate_argnums=0,
        out_shardings=(shardings, whole),
    )
    return step, arguments


def loss_program(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    mesh: jax.sharding.Mesh,
    shape: Shape,
    weights: WeightFormat = "stored",
    kernel: str = "xla",
) -> tuple[Any, tuple]:
    """Return the jitted loss and its abstract arguments (trained, params, batches, passes).

    They are laid out as those of `train_program`; see `jaxalign.training.step.make_loss`.
    """
    _, (state, params, batches, passes, _) = train_program(
        config, train, lora, mesh, shape, weights
    )
    fused = Fused.of(kernel, mesh, DATA)
    loss = jax.jit(make_loss(config, train, lora, shape, fused), out_shardings=replicated(mesh))
    return loss, (state.trained, params, batches, passes)


def expected_shape(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    mesh: jax.sharding.Mesh,
    lengths: Sequence[int] | np.ndarray,
    answers: int,
    adapters: int = 1,
    memory_bytes: int | None = None,
    options: int = 0,
) -> Shape:
    """Return the sizes of a step before its examples are known.

    `Trainer` can be given them, and then runs the program that was compiled from them. They allow
    for half as many answers again as expected.

    Args:
        config: The model.
        train: How to train; no examples are longer than `train.longest_example`, or than the
            longest that is expected.
        lora: The adapters.
        mesh: The devices.
        lengths: Tokens of examples like those that will be trained on.
        answers: Most answer tokens of an example.
        adapters: Adapters in all.
        memory_bytes: Memory of a device, which limits how many are trained side by side.
        options: Most next tokens that have a probability; 0 where every target is one token.
    """
    lengths = np.asarray(lengths)
    # The same two steps as for the examples themselves: how many side by side, then the rows.
    count = adapters_side_by_side(config, train, lora, mesh, adapters, memory_bytes)
    shape = choose_shape(
        estimated_steps(lengths, train.batch, count, train.seed),
        train.batch,
        adapters,
        count,
        train.longest_example or int(lengths.max()),
        min(1.0, 1.5 * answers / int(lengths.min())),
        train.tokens_per_pass,
        mesh.shape[DATA],
    )
    return dataclasses.replace(shape, options=options)


def state_bytes(
    config: LlamaConfig, train: TrainConfig, lora: LoraConfig, mesh: jax.sharding.Mesh
) -> int:
    """Return the bytes per device of one adapter's state: weights and both moments."""
    return bytes_per_device(abstract_state(config, train, lora, mesh, 1))


def bytes_per_device(abstract: Any) -> int:
    """Return the bytes that a tree of abstract arrays with shardings takes on each device."""
    leaves = jax.tree.leaves(abstract)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def adapters_side_by_side(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    mesh: jax.sharding.Mesh,
    adapters: int,
    memory_bytes: int | None,
) -> int:
    """Return how many adapters to train in one program.

    By arithmetic, from what a device must hold: the frozen weights once; for each adapter its
    state, the sum of its gradients and what the update writes; for each unit of a row a copy of its
    adapter and a gradient; and the activations of a pass. Whether the compiled program fits is
    checked afterwards. All groups have the same size, so that one program serves them.

    Args:
        config: The model.
        train: How to train; `side_by_side` is not exceeded.
        lora: The adapters.
        mesh: The devices.
        adapters: Adapters in all.
        memory_bytes: Memory of a device; None if it is not known.
    """
    most = min(adapters, train.side_by_side or adapters)
    if memory_bytes is not None and adapters > 1:
        frozen = bytes_per_device(program_params(config, mesh))
        state = state_bytes(config, train, lora, mesh)
        free = memory_bytes - frozen - activation_bytes(config, train.tokens_per_pass, train.remat)
        # The copies and gradients of a row's units; the state is three times an adapter.
        free -= 2 * MOST_UNITS * state // 3
        # The state, and as much again at most for the gradient's sum and the update.
        most = min(most, max(1, int(_USABLE * free) // (2 * state)))
    return math.ceil(adapters / math.ceil(adapters / most))


def activation_bytes(config: LlamaConfig, tokens: int, remat: bool) -> int:
    """Return about how many bytes a pass keeps for its backward pass, by arithmetic.

    Args:
        config: The model.
        tokens: Tokens of the pass.
        remat: Whether layers are recomputed.
    """
    # A layer's input is kept for each layer, and within a layer a few vectors of its widths.
    layers = config.num_hidden_layers * config.hidden_size * 4  # float32
    within = 4 * (6 * config.intermediate_size + 12 * config.hidden_size)
    return tokens * (layers + within * (1 if remat else config.num_hidden_layers))


def abstract_state(
    config: LlamaConfig, train: TrainConfig, lora: LoraConfig, mesh: jax.sharding.Mesh, count: int
) -> TrainState:
    """Return shapes and shardings of the state of `count` adapters.

    Adapters and their moments lie on the mesh as the weights beside them do; the rest is on every
    device.
    """
    full = train.method == "full"
    weights = weight_tree(config) if full else adapter_weights(config, lora)
    # A tensor of K adapters is never split along K.
    trained = jax.tree.map(
        lambda w: named_sharding(mesh, (None, *w.axes), (count, *w.shape)),
        weights,
        is_leaf=is_weight,
    )
    key = jax.ShapeDtypeStruct((count, 2), jnp.uint32)
    state = jax.eval_shape(
        lambda key, params: init_state(config, train, lora, key, params),
        key,
        abstract_params(config),
    )
    whole = replicated(mesh)
    # Adam's two moments have the structure of what is trained; its step counter does not.
    optimizer = optax.tree.map_params(
        make_rule(config, train),
        lambda _, sharding: sharding,
        state.optimizer,
        trained,
        transform_non_params=lambda _: whole,
    )
    return _with_shardings(state, TrainState(trained, optimizer, whole, whole, whole))


def place(batches: tuple[Batch, ...], abstract: tuple[Batch, ...]) -> tuple[Batch, ...]:
    """Put host arrays that every process holds on the mesh; each process places its own part."""
    return jax.tree.map(
        lambda x, a: jax.make_array_from_callback(x.shape, a.sharding, lambda index: x[index]),
        batches,
        abstract,
    )


def _batch_shardings(mesh: jax.sharding.Mesh, shape: Shape) -> tuple[Batch, ...]:
    """Return where a step lies: the rows of each pass over the data axis."""
    axes = None, "batch", None, None
    return jax.tree.map(lambda x: named_sharding(mesh, axes[: x.ndim], x.shape), shape.batch)


def _with_shardings(abstract: Any, shardings: Any) -> Any:
    """Return abstract arrays with shardings, whose tree may be a prefix of theirs."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        jax.tree.broadcast(shardings, abstract),
    )
