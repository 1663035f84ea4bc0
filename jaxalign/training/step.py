"""One optimiser step of supervised fine-tuning, for one adapter or several side by side.

The loss is the mean over the answer tokens of the whole step, however many passes it is summed
over: of their cross-entropy, or of the divergence from a distribution (`jaxalign.training.loss`).
The optimiser is AdamW (Loshchilov and Hutter 2019) after clipping by the gradient's norm, with a
linear warm-up and a cosine decay to zero. Every default is that of transformers' `Trainer`, and a
test holds a step equal to that of PyTorch with PEFT.

Several adapters are one program: the frozen weights are held once, each matrix product with them
covers the tokens of all adapters, and an adapter whose examples are used up keeps its bits. So does
one whose loss or gradient is not finite: it is set aside, and the others never see its numbers.
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
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import Params, is_weight, weight_tree
from jaxalign.runs.settings import may_change
from jaxalign.training.data import start_key
from jaxalign.training.fused import Fused
from jaxalign.training.kernel_choice import AttentionOption
from jaxalign.training.loss import loss_sum, unit_loss_sums
from jaxalign.training.packing import Batch
from jaxalign.training.shape import Shape

Trained = dict[str, Any]  # an adapter, or all parameters; float32


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to fine-tune.

    Settings that are None follow the model: `jaxalign.training.defaults.resolve_training` replaces
    them. The others are those of CultureSPA where the paper states them, and of transformers'
    `Trainer` elsewhere."""

    method: Literal["lora", "full"] = "lora"
    """What to train: low-rank adapters of frozen weights, or all weights."""
    target: Literal["option", "distribution"] = "option"
    """What CultureSPA trains toward. option: the most likely option, as published; distribution:
    the probabilities of all options, by their divergence."""
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
    longest_example: int | None = None
    """Most tokens of an example; default: those of the longest there is."""
    tokens_per_pass: int | None = None
    """Most tokens that one device computes at a time, over all adapters; affects memory, and the
    result by rounding only. Default: follows the model, 8192 for a real one, 2048 on a CPU."""
    side_by_side: int | None = may_change(None)
    """Most adapters that are trained in one program; the others follow. Affects memory, not the
    result; default: as many as memory has room for."""
    remat: bool | None = None
    """Recompute each layer in the backward pass instead of keeping its activations; default: yes if
    a pass would keep more than 4 GiB."""
    unroll: bool | None = None
    """Unroll the layers: faster on a CPU for small models, slower to compile. Default: follows the
    model, no for a real one."""
    attention: AttentionOption = "auto"
    """Attention kernel of fine-tuning; auto is the fastest one here, which is measured first. CPUs,
    float32 and split weights have xla alone; cudnn is for GPUs, splash for TPUs."""
    seed: int = 0
    """Seed of an adapter's initial values and of the order of examples."""

    def __post_init__(self) -> None:
        for name in ("batch", "epochs", "tokens_per_pass", "longest_example", "side_by_side"):
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
    failed_K: jax.Array  # int32: the step, from 1, whose loss or gradient was not finite; 0: none


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
        return TrainState(trained, optimizer, jnp.int32(0), key_2, jnp.int32(0))

    return jax.vmap(init)(key_Kx2)


def gradient(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    shape: Shape,
    trained: Trained,
    params: Params,
    batches: tuple[Batch, ...],
    passes: jax.Array,
    fused: Fused | None = None,
) -> tuple[jax.Array, Trained, jax.Array]:
    """Compute loss and gradient of a step.

    Args:
        config: The model.
        train: Whether layers are recomputed, and so on.
        lora: Settings of the adapters.
        shape: The sizes of the step.
        trained: The adapters, leaves [K, ...].
        params: The frozen weights; None for method "full".
        batches: The step's rows [G, R, ...], and its short rows if it has any.
        passes: int32 [2], how many of the G passes of each hold examples.
        fused: A kernel made for the device, which computes the attention; None for XLA.

    Returns:
        By adapter: the mean loss per answer token, its gradient, and the number of answer tokens.
    """
    model = Llama(config, unroll=train.unroll, remat=train.remat, merge=True)
    if shape.units:
        total = _sum_of_units(model, lora, shape, trained, params, batches[0], passes[0], fused)
    else:
        total = _sum_of_rows(model, train, lora, shape, trained, params, batches, passes, fused)
    # Sums over the passes first, then one division: the mean over the whole step.
    losses, grads, answers = total
    count = jnp.maximum(1, answers)
    mean = lambda g: g / count.reshape(-1, *(1,) * (g.ndim - 1))  # noqa: E731
    return losses / count, jax.tree.map(mean, grads), answers


def _sum_of_rows(
    model: Llama,
    train: TrainConfig,
    lora: LoraConfig,
    shape: Shape,
    trained: Trained,
    params: Params,
    batches: tuple[Batch, ...],
    passes: jax.Array,
    fused: Fused | None = None,
) -> tuple[jax.Array, Trained, jax.Array]:
    """Return the sums over all passes of the only adapter, or of all weights."""

    def loss(trained: Trained, one_pass: Batch, examples: int) -> jax.Array:
        full = attached(train, lora, params, trained)
        return loss_sum(model, full, one_pass, shape.window, examples, fused)

    single = jax.tree.map(lambda x: x[0], trained)
    total = (jnp.float32(0), jax.tree.map(jnp.zeros_like, single), jnp.float32(0))
    for n, (batch, most) in enumerate(zip(batches, shape.most_examples, strict=False)):

        def add(i: jax.Array, total: Any, batch: Batch = batch, most: int = most) -> Any:
            one_pass = jax.tree.map(lambda x: x[i], batch)
            found = jax.value_and_grad(loss)(single, one_pass, most)
            return jax.tree.map(jnp.add, total, (*found, jnp.sum(one_pass.weight_BxA)))

        total = jax.lax.fori_loop(0, passes[n], add, total)
    return jax.tree.map(lambda x: x[None], total)


def _sum_of_units(
    model: Llama,
    lora: LoraConfig,
    shape: Shape,
    trained: Trained,
    params: Params,
    batch: Batch,
    passes: jax.Array,
    fused: Fused | None,
) -> tuple[jax.Array, Trained, jax.Array]:
    """Return the sums over all passes for each of several adapters."""

    def loss(adapters: Trained, one_pass: Batch) -> tuple[jax.Array, jax.Array]:
        losses_RxU = unit_loss_sums(model, lora, params, adapters, one_pass, shape, fused)
        return jnp.sum(losses_RxU), losses_RxU

    def add(i: jax.Array, total: Any) -> Any:
        one_pass = jax.tree.map(lambda x: x[i], batch)
        # Every unit has a copy of its adapter, so that the gradient comes unit by unit.
        adapters = jax.tree.map(lambda w: w[one_pass.adapter_BxU], trained)
        (_, losses), grads = jax.value_and_grad(loss, has_aux=True)(adapters, one_pass)
        found = (losses, grads, one_pass.answers_BxU.astype(jnp.float32))
        found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
        return add_units(total, found, one_pass.adapter_BxU.reshape(-1))

    nothing = jnp.zeros(shape.adapters, jnp.float32)
    total = (nothing, jax.tree.map(jnp.zeros_like, trained), nothing)
    return jax.lax.fori_loop(0, passes, add, total)


def add_units(total: Any, found: Any, adapter_U: jax.Array) -> Any:
    """Add what was found for each unit, leaves [U, ...], to its adapter's total, leaves [K, ...].

    One unit after the other: the order of an adapter's additions is that of its units, whatever
    stands between them. A unit that is not used adds zero.
    """

    def add(u: jax.Array, total: Any) -> Any:
        return jax.tree.map(lambda t, x: t.at[adapter_U[u]].add(x[u]), total, found)

    return jax.lax.fori_loop(0, len(adapter_U), add, total)


def attached(train: TrainConfig, lora: LoraConfig, params: Params, trained: Trained) -> Params:
    """Return the parameters of the model that is trained."""
    return trained if train.method == "full" else attach(params, trained, lora)


def make_loss(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    shape: Shape,
    fused: Fused | None = None,
) -> Any:
    """Return what `make_step` minimises, without its gradient, as a function.

    `loss(trained, params, batches, passes)` is (the sum of the losses in nats, the number of answer
    tokens), float32 [K] each. `make_step` describes its arguments.
    """
    # There is no backward pass, so nothing to recompute.
    model = Llama(config, unroll=train.unroll, merge=True)

    def of_units(trained: Trained, params: Params, batch: Batch, most: int, total: Any) -> Any:
        adapters = jax.tree.map(lambda w: w[batch.adapter_BxU], trained)
        losses_RxU = unit_loss_sums(model, lora, params, adapters, batch, shape, fused)
        found = (losses_RxU.reshape(-1), batch.answers_BxU.reshape(-1).astype(jnp.float32))
        return add_units(total, found, batch.adapter_BxU.reshape(-1))

    def of_rows(trained: Trained, params: Params, batch: Batch, most: int, total: Any) -> Any:
        single = jax.tree.map(lambda x: x[0], trained)
        full = attached(train, lora, params, single)
        found = loss_sum(model, full, batch, shape.window, most, fused)
        return total[0] + found, total[1] + jnp.sum(batch.weight_BxA)

    of_pass = of_units if shape.units else of_rows

    def loss(
        trained: Trained, params: Params, batches: tuple[Batch, ...], passes: jax.Array
    ) -> Any:
        nothing = jnp.zeros(shape.adapters, jnp.float32)
        total = (nothing, nothing)
        for n, (batch, most) in enumerate(zip(batches, shape.most_examples, strict=False)):

            def add(i: jax.Array, total: Any, batch: Batch = batch, most: int = most) -> Any:
                one_pass = jax.tree.map(lambda x: x[i], batch)
                return of_pass(trained, params, one_pass, most, total)

            total = jax.lax.fori_loop(0, passes[n], add, total)
        return total

    return loss


def make_step(
    config: LlamaConfig,
    train: TrainConfig,
    lora: LoraConfig,
    shape: Shape,
    fused: Fused | None = None,
) -> Any:
    """Return one optimiser step, as a pure function to be jitted with its state donated.

    `step(state, params, batches, passes, schedule_Kx3)` returns (state, metrics of shape [K]). For
    `batches`, `passes` and `fused` see `gradient`. Method "full" reads the weights from the state,
    and `params` is None.
    """
    rule = make_rule(config, train)

    def update(
        state: TrainState,
        loss: jax.Array,
        grads: Trained,
        active: jax.Array,
        schedule_3: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        norm = optax.tree.norm(grads)
        # The formula of torch.nn.utils.clip_grad_norm_, including its constant.
        scale = jnp.minimum(1.0, train.clip / (norm + 1e-6))
        rate = learning_rate(state.step_K, schedule_3)
        # The rule has a learning rate of 1; its updates are scaled by the rate of this step.
        updates, optimizer = rule.update(
            jax.tree.map(lambda g: g * scale, grads), state.optimizer, state.trained
        )
        trained = jax.tree.map(lambda w, u: w + rate * u, state.trained, updates)
        step = state.step_K + 1
        fails = active & (state.failed_K == 0) & ~(jnp.isfinite(loss) & jnp.isfinite(norm))
        failed = jnp.where(fails, step, state.failed_K)
        new = TrainState(trained, optimizer, step, state.key_Kx2, failed)
        # An adapter without examples in this step has finished and keeps its state, as does one
        # that has failed: a later batch may have a finite loss, but it would not be the same run.
        goes_on = active & (failed == 0)
        new = jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), new, state)
        new = dataclasses.replace(new, failed_K=failed)
        return new, {"gradient_norm": norm, "learning_rate": rate}

    def step(
        state: TrainState,
        params: Params,
        batches: tuple[Batch, ...],
        passes: jax.Array,
        schedule_Kx3: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, grads, answers = gradient(
            config, train, lora, shape, state.trained, params, batches, passes, fused
        )
        state, metrics = jax.vmap(update)(state, loss, grads, answers > 0, schedule_Kx3)
        return state, {"loss": loss, **metrics, "answers": answers}

    return step
