"""What fine-tuning compiles, on a mesh: a step and a loss, with their abstract arguments.

Examples are spread over the data axis; adapters, their moments and the weights lie on the model
axis. Nothing is allocated here, so `tpu.plan` compiles the same programs for chips that are not at
hand.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, adapter_weights
from jaxalign.lm.weights import abstract_params, is_weight, param_shardings, weight_tree
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
    """The jitted step and its abstract arguments, for `step.lower(*arguments).compile()`.

    Arguments are (state, params, batch, passes, schedule_Kx3), each with its sharding; the step
    returns (state, metrics) and takes over the state's buffers. See `train_step.make_step`.
    """
    state = abstract_state(config, train, lora, mesh, shape.adapters)
    params = with_shardings(abstract_params(config), param_shardings(config, mesh))
    whole = replicated(mesh)
    arguments = (
        state,
        None if train.method == "full" else params,
        with_shardings(shape.batch, batch_shardings(mesh, shape)),
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
    """The jitted loss and its abstract arguments (trained, params, batch, passes), as
    `train_program` has them; see `train_step.make_loss`."""
    _, (state, params, batch, passes, _) = train_program(config, train, lora, mesh, shape)
    loss = jax.jit(make_loss(config, train, lora), out_shardings=replicated(mesh))
    return loss, (state.trained, params, batch, passes)


def abstract_state(
    config: LlamaConfig, train: TrainConfig, lora: LoraConfig, mesh: jax.sharding.Mesh, count: int
) -> TrainState:
    """Shapes and shardings of the state of `count` adapters: adapters and their moments lie on the
    mesh as the weights beside them do, the rest is everywhere."""
    full = train.method == "full"
    weights = weight_tree(config) if full else adapter_weights(config, lora)
    # A tensor of K adapters is never split along K.
    trained = jax.tree.map(
        lambda w: named_sharding(mesh, (None, *w.axes), (count, *w.shape)), weights,
        is_leaf=is_weight,
    )  # fmt: skip
    key = jax.ShapeDtypeStruct((count, 2), jnp.uint32)
    state = jax.eval_shape(
        lambda key, params: init_state(config, train, lora, key, params),
        key, abstract_params(config),
    )  # fmt: skip
    whole = replicated(mesh)
    optimizer = optax.tree.map_params(
        make_rule(config, train),
        lambda _, sharding: sharding,
        state.optimizer,
        trained,
        transform_non_params=lambda _: whole,
    )
    return with_shardings(state, TrainState(trained, optimizer, whole, whole))


def place(batch: Batch, abstract: Batch) -> Batch:
    """Of host arrays that every process holds, what the devices of this one need."""
    return jax.tree.map(
        lambda x, a: jax.make_array_from_callback(x.shape, a.sharding, lambda index: x[index]),
        batch, abstract,
    )  # fmt: skip


def batch_shardings(mesh: jax.sharding.Mesh, shape: Shape) -> Batch:
    return jax.tree.map(
        lambda x: named_sharding(mesh, (None, None, "batch", None), x.shape), shape.batch
    )


def with_shardings(abstract: Any, shardings: Any) -> Any:
    """`shardings` may be a prefix of the tree."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        jax.tree.broadcast(shardings, abstract),
    )
