"""One optimiser step of supervised fine-tuning, for one adapter or several side by side.

The loss is the mean cross-entropy over the answer tokens of the whole step, however many passes it
is summed over. The optimiser is AdamW (Loshchilov and Hutter 2019) after clipping by the gradient's
norm, with a linear warm-up and a cosine decay to zero. Every default is that of transformers'
`Trainer`, and a test holds a step equal to that of PyTorch with PEFT.

Several adapters are one program mapped over them: the frozen weights are held once, each matrix
product with them covers the tokens of all adapters, and an adapter whose examples are used up keeps
its bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, attach, init_adapter
from jaxalign.lm.transformer import Llama, causal_mask, masked_attention, rope_tables
from jaxalign.lm.weights import Params, is_weight, weight_tree
from jaxalign.training.data import start_key
from jaxalign.training.packing import Batch

Trained = dict[str, Any]  # an adapter, or all parameters; float32


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to fine-tune.

    Settings that are None follow the model: `jaxalign.training.defaults.resolve_training` replaces
    them. The others are those of CultureSPA where the paper states them, and of transformers'
    `Trainer` elsewhere."""

    method: Literal["lora", "full"] = "lora"
    """What to train: low-rank adapters of frozen weights, or all weights."""
    batch: int | None = None
    """Number of examples per optimiser step; default: follows the model, 128 for a real one."""
    epochs: int = 1
    """Number of times that each example is seen."""
    learning_rate: float | None = None
    """Highest learning rate, which is reached at the end of the warm-up; default: follows the
    model, 1e-4 for a real one."""
    warm_up: float = 0.1
    """Share of the steps over which the learning rate rises; afterwards it falls as a cosine."""
    clip: float = 1.0
    """Largest norm of the gradient; larger gradients are scaled down to it."""
    weight_decay: float = 0.0
    """Weight decay of AdamW; scales of norms are exempt."""
    beta1: float = 0.9
    """Decay rate of Adam's first moment."""
    beta2: float = 0.999
    """Decay rate of Adam's second moment."""
    epsilon: float = 1e-8
    """Constant in the denominator of Adam's update."""
    row_length: int | None = None
    """Tokens of a row that examples are packed into; default: the length that wastes the fewest."""
    tokens_per_pass: int | None = None
    """Tokens of an adapter that one device computes at a time; affects memory, not the result.
    Default: follows the model, 8192 for a real one."""
    remat: bool | None = None
    """Recompute each layer in the backward pass instead of keeping its activations; default:
    follows the model, yes for a real one."""
    unroll: bool | None = None
    """Unroll the layers: faster on a CPU for small models, slower to compile. Default: follows the
    model, no for a real one."""
    seed: int = 0
    """Seed of an adapter's initial values and of the order of examples."""

    def __post_init__(self) -> None:
        for name in ("batch", "epochs", "tokens_per_pass", "row_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` {value}: must be at least 1")
        for name in ("learning_rate", "clip", "epsilon"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"`{name}` {value}: must be above 0 and finite")
        if not 0 <= self.warm_up <= 1:
            raise UserError(f"`warm_up` {self.warm_up}: must be a share between 0 and 1")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"`weight_decay` {self.weight_decay}: must be 0 or more and finite")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"`{name}` {getattr(self, name)}: must be at least 0 and below 1")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"`seed` {self.seed}: must be at least 0 and below 2^32")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run must keep; every leaf has a leading axis K of adapters."""

    trained: Trained  # float32
    optimizer: Any  # state of optax
    step_K: jax.Array  # int32: steps taken
    key_Kx2: jax.Array  # uint32: key data of the adapters, which order their examples


def make_rule(config: LlamaConfig, train: TrainConfig) -> optax.GradientTransformation:
    """Return AdamW for a learning rate of 1, whose updates are then scaled by the schedule.

    Weight decay leaves the scales of norms alone.
    """

    def decays(trained: Trained) -> Any:
        if train.method == "lora":
            return jax.tree.map(lambda _: True, trained)
        return jax.tree.map(lambda w: w.fan_in is not None, weight_tree(config), is_leaf=is_weight)

    return optax.adamw(
        1.0, train.beta1, train.beta2, train.epsilon, weight_decay=train.weight_decay, mask=decays
    )


def schedule(
    train: TrainConfig, steps_K: Sequence[int], rates_K: Sequence[float] | None = None
) -> np.ndarray:
    """Return the learning-rate schedule of each adapter.

    Counted as transformers' `Trainer` does, with one exception: a run of a single step has no
    warm-up, because the step would have rate 0 and train nothing.

    Args:
        train: Learning rate and share of warm-up.
        steps_K: Steps of each adapter.
        rates_K: Highest learning rate of each adapter; default: that of `train`.

    Returns:
        float32 [K, 3]: highest learning rate, steps of warm-up, steps in total.
    """
    rise = lambda n: math.ceil(n * train.warm_up) if n > 1 else 0  # noqa: E731
    rates_K = [train.learning_rate] * len(steps_K) if rates_K is None else rates_K
    rows = [(rate, rise(n), n) for rate, n in zip(rates_K, map(int, steps_K), strict=True)]
    return np.array(rows, np.float32)


def learning_rate(step: jax.Array, schedule_3: jax.Array) -> jax.Array:
    """Return the float32 learning rate of a step, counted from 0.

    As `get_cosine_schedule_with_warmup` of transformers, whose first step has rate 0 if there is a
    warm-up.
    """
    highest, rise, steps = schedule_3  # the cosine begins where the warm-up ends
    step = step.astype(jnp.float32)
    done = (step - rise) / jnp.maximum(1, steps - rise)
    fall = jnp.maximum(0, 0.5 * (1 + jnp.cos(jnp.pi * done)))
    return highest * jnp.where(step < rise, step / jnp.maximum(1, rise), fall)


def init_state(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    key_Kx2: jax.Array,
    params: Params | None = None,
) -> TrainState:
    """Return the state before the first step.

    Args:
        config: The model.
        train: Method "full" trains all of `params`, in float32; "lora" trains new adapters.
        lora: Settings of the adapters.
        key_Kx2: `jax.random.key_data` of the adapters' keys, uint32.
        params: The weights, for method "full".
    """

    def init(key_2: jax.Array) -> TrainState:
        key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
        if train.method == "full":
            trained = jax.tree.map(lambda w: w.astype(jnp.float32), params)
        else:
            trained = init_adapter(config, lora, start_key(key))
        optimizer = make_rule(config, train).init(trained)
        return TrainState(trained, optimizer, jnp.int32(0), key_2)

    return jax.vmap(init)(key_Kx2)


def loss_sum(model: Llama, params: Params, batch: Batch) -> jax.Array:
    """Return the sum of the answer tokens' weighted cross-entropies over a batch [B, T], in nats.

    The function maps over rows, so that each row selects its own positions in the last layer.
    """
    bound = {"params": params}

    def of_row(row: Batch) -> jax.Array:
        tokens_T, at_A = row.tokens_BxT, row.at_BxA
        # Positions and segments are those of each example, so examples do not see each other.
        x = model.apply(bound, tokens_T[None], method=Llama.embed)
        rope = rope_tables(model.config, row.positions_BxT)
        mask = causal_mask(row.segments_BxT[None])
        # In the last layer, only the positions before answer tokens are computed.
        attend, attend_last = (
            jax.tree_util.Partial(masked_attention, m) for m in (mask, mask[:, :, at_A])
        )
        x, _ = model.apply(bound, x, rope, attend, attend_last, keep=at_A, method=Llama.blocks)
        logits_AxV = model.apply(bound, x[0], method=Llama.logits)
        losses_A = optax.softmax_cross_entropy_with_integer_labels(logits_AxV, row.targets_BxA)
        return jnp.sum(losses_A * row.weight_BxA)

    return jnp.sum(jax.vmap(of_row)(batch))


def gradient(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    trained: Trained,
    params: Params,
    batch: Batch,
    passes: jax.Array,
) -> tuple[jax.Array, Trained, jax.Array]:
    """Compute loss and gradient of the first `passes` passes of one adapter's batch [G, B, T].

    Returns:
        The mean loss per answer token, its gradient, and the number of answer tokens.
    """
    model = Llama(config, unroll=train.unroll, remat=train.remat)

    def loss(trained: Trained, one_pass: Batch) -> jax.Array:
        full = trained if train.method == "full" else attach(params, trained, lora)
        return loss_sum(model, full, one_pass)

    def add(i: jax.Array, total: tuple[jax.Array, Trained]) -> tuple[jax.Array, Trained]:
        one_pass = jax.tree.map(lambda x: x[i], batch)
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss)(trained, one_pass))

    nothing = (jnp.float32(0), jax.tree.map(jnp.zeros_like, trained))
    # Sums over the passes first, then one division: the mean over the whole step.
    total, grads = jax.lax.fori_loop(0, passes, add, nothing)
    answers = jnp.sum(batch.weight_BxA)
    count = jnp.maximum(1, answers)
    return total / count, jax.tree.map(lambda g: g / count, grads), answers


def make_loss(config: LlamaConfig, train: TrainConfig, lora: LoraConfig) -> Any:
    """Return what `make_step` minimises, without its gradient, as a function.

    `loss(trained, params, batch, passes)` is the mean cross-entropy per answer token, in nats [K].
    `make_step` describes its arguments.
    """
    model = Llama(config, unroll=train.unroll)  # no backward pass, so nothing to recompute

    def one(trained: Trained, params: Params, batch: Batch, passes: jax.Array) -> jax.Array:
        full = trained if train.method == "full" else attach(params, trained, lora)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            return total + loss_sum(model, full, jax.tree.map(lambda x: x[i], batch))

        total = jax.lax.fori_loop(0, passes, add, jnp.float32(0))
        return total / jnp.sum(batch.weight_BxA)

    return jax.vmap(one, in_axes=(0, None, 0, None))


def make_step(config: LlamaConfig, train: TrainConfig, lora: LoraConfig) -> Any:
    """Return one optimiser step, as a pure function to be jitted with its state donated.

    `step(state, params, batch, passes, schedule_Kx3)` returns (state, metrics of shape [K]).
    `passes` (int32) is the number of the batch's G passes that hold any examples. Method "full"
    reads the weights from the state, and `params` is None.
    """
    rule = make_rule(config, train)

    def one(
        state: TrainState, params: Params, batch: Batch, passes: jax.Array, schedule_3: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, grads, answers = gradient(config, train, lora, state.trained, params, batch, passes)
        norm = optax.tree.norm(grads)
        # The formula of torch.nn.utils.clip_grad_norm_, including its constant.
        scale = jnp.minimum(1.0, train.clip / (norm + 1e-6))
        rate = learning_rate(state.step_K, schedule_3)
        # The rule has a learning rate of 1; its updates are scaled by the rate of this step.
        updates, optimizer = rule.update(
            jax.tree.map(lambda g: g * scale, grads), state.optimizer, state.trained
        )
        trained = jax.tree.map(lambda w, u: w + rate * u, state.trained, updates)
        new = TrainState(trained, optimizer, state.step_K + 1, state.key_Kx2)
        # An adapter without examples in this step has finished and keeps its state.
        active = answers > 0
        new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
        metrics = {"loss": loss, "gradient_norm": norm, "learning_rate": rate, "answers": answers}
        return new, metrics

    return jax.vmap(one, in_axes=(0, None, 0, None, 0))
