"""The programs that fine-tuning compiles for a mesh: a step and a loss, with abstract arguments.

Examples are spread over the data axis; adapters, their moments and the weights lie on the model
axis. Nothing is allocated here, so `jaxalign.commands.plan` compiles the same programs for devices
that we do not have.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, adapter_weights
from jaxalign.lm.weights import abstract_params, is_weight, program_params, weight_tree
from jaxalign.runtime.sharding import named_sharding, replicated
from jaxalign.training.data import Shape
from jaxalign.training.packing import Batch
from jaxalign.training.step import (
    TrainConfig,
    TrainState,
    init_state,
    make_loss,
    make_rule,
    make_step,
)


def train_program(
    config: LlamaConfig, train: TrainConfig, lora: LoraConfig, mesh: jax.sharding.Mesh, shape: Shape
) -> tuple[Any, tuple]:
    """Return the jitted step and its abstract arguments.

    `step.lower(*arguments).compile()` needs no arrays. Arguments are (state, params, batch, passes,
    schedule_Kx3), each with its sharding; the step returns (state, metrics) and reuses the buffers
    of the state that it is given. See `jaxalign.training.step.make_step`.
    """
    state = abstract_state(config, train, lora, mesh, shape.adapters)
    params = program_params(config, mesh)
    whole = replicated(mesh)
    arguments = (
        state,
        None if train.method == "full" else params,
        _with_shardings(shape.batch, _batch_shardings(mesh, shape)),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((shape.adapters, 3), jnp.float32, sharding=whole),
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        make_step(config, train, lora), donate_argnums=0, out_shardings=(shardings, whole)
    )
    return step, arguments


def loss_program(
    config: LlamaConfig, train: TrainConfig, lora: LoraConfig, mesh: jax.sharding.Mesh, shape: Shape
) -> tuple[Any, tuple]:
    """Return the jitted loss and its abstract arguments (trained, params, batch, passes).

    They are laid out as those of `train_program`; see `jaxalign.training.step.make_loss`.
    """
    _, (state, params, batch, passes, _) = train_program(config, train, lora, mesh, shape)
    loss = jax.jit(make_loss(config, train, lora), out_shardings=replicated(mesh))
    return loss, (state.trained, params, batch, passes)


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
    return _with_shardings(state, TrainState(trained, optimizer, whole, whole))


def place(batch: Batch, abstract: Batch) -> Batch:
    """Put host arrays that every process holds on the mesh; each process places its own part."""
    return jax.tree.map(
        lambda x, a: jax.make_array_from_callback(x.shape, a.sharding, lambda index: x[index]),
        batch,
        abstract,
    )


def _batch_shardings(mesh: jax.sharding.Mesh, shape: Shape) -> Batch:
    """Return where a batch lies: the rows of each pass over the data axis."""
    return jax.tree.map(
        lambda x: named_sharding(mesh, (None, None, "batch", None), x.shape), shape.batch
    )


def _with_shardings(abstract: Any, shardings: Any) -> Any:
    """Return abstract arrays with shardings, whose tree may be a prefix of theirs."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        jax.tree.broadcast(shardings, abstract),
    )
