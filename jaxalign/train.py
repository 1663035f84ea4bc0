"""Supervised fine-tuning of a LLaMA-3 on answers: joint (one adapter), specific (one per country,
trained side by side in one program), or of all weights.

What a step computes is in `train_step`, which examples it sees in `train_data`. Here both meet the
mesh and the disk: examples are spread over the data axis and weights over the model axis, and a run
that was killed goes on from its last checkpoint to the same bits.

Source: CultureSPA (Xu et al. 2025, arXiv 2410.12971), step 4; LoRA (Hu et al. 2021).
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.checkpoints import Checkpoints
from jaxalign.console import Progress
from jaxalign.errors import UserError
from jaxalign.llama.config import LlamaConfig
from jaxalign.llama.weights import (
    Params,
    abstract_params,
    is_weight,
    param_shardings,
    weight_tree,
)
from jaxalign.lora import Adapter, LoraConfig, adapter_weights
from jaxalign.memory import refuse_what_does_not_fit
from jaxalign.packing import Batch, Example
from jaxalign.sharding import DATA, named_sharding, replicated
from jaxalign.train_data import Shape, TrainData, adapter_key
from jaxalign.train_step import TrainConfig, TrainState, init_state, make_rule, make_step, schedule

__all__ = ["LoraConfig", "TrainConfig", "Trainer", "adapters", "fit", "train_program"]

Metrics = dict[str, np.ndarray]  # "loss", "gradient_norm", "learning_rate", "answers": float32 [K]


def train_program(
    config: LlamaConfig, train: TrainConfig, lora: LoraConfig, mesh: jax.sharding.Mesh, shape: Shape
) -> tuple[Any, tuple]:
    """The jitted step and its abstract arguments, for `step.lower(*arguments).compile()`.

    Arguments are (state, params, batch, passes, schedule_Kx2), each with its sharding; the step
    returns (state, metrics) and takes over the state's buffers. See `train_step.make_step`.
    """
    state = abstract_state(config, train, lora, mesh, shape.adapters)
    params = _with_shardings(abstract_params(config), param_shardings(config, mesh))
    whole = replicated(mesh)
    arguments = (
        state,
        None if train.method == "full" else params,
        _with_shardings(shape.batch, _batch_shardings(mesh, shape)),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=whole),
        jax.ShapeDtypeStruct((shape.adapters, 2), jnp.int32, sharding=whole),
    )
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(
        make_step(config, train, lora), donate_argnums=0, out_shardings=(shardings, whole)
    )
    return step, arguments


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
    return _with_shardings(state, TrainState(trained, optimizer, whole, whole))


class Trainer:
    """Adapters by name with their examples, on a mesh: one compiled step and what feeds it.

    Raises UserError for examples that cannot be trained on and for a program that does not fit.
    """

    def __init__(
        self,
        config: LlamaConfig,
        train: TrainConfig,
        lora: LoraConfig,
        examples: Mapping[str, Sequence[Example]],
        mesh: jax.sharding.Mesh,
    ):
        if train.method == "full" and len(examples) > 1:
            raise UserError(
                f"method 'full' trains one model, not {len(examples)} side by side; use 'lora'"
            )
        self.config, self.train, self.lora, self.mesh = config, train, lora, mesh
        keys = [adapter_key(train.seed, name) for name in examples]
        self._key_Kx2 = np.stack([jax.random.key_data(key) for key in keys])
        self.data = TrainData(
            examples, keys, train.batch, train.epochs, train.row_length, train.tokens_per_pass,
            mesh.shape[DATA],
        )  # fmt: skip
        self._schedule_Kx2 = schedule(train, self.data.steps_K)
        step, self._arguments = train_program(config, train, lora, mesh, self.data.shape)
        self._step = step.lower(*self._arguments).compile()
        self.needed_bytes = refuse_what_does_not_fit(
            self._step, mesh.local_devices[0], "lower --train.tokens-per-pass"
        )

    @property
    def abstract_state(self) -> TrainState:
        return self._arguments[0]

    def start(self, params: Params) -> TrainState:
        """The state before the first step."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        init = jax.jit(
            lambda key, params: init_state(self.config, self.train, self.lora, key, params),
            out_shardings=shardings,
        )
        return init(self._key_Kx2, params)

    def batches(self, start: int) -> Iterator[tuple[int, Batch, np.ndarray]]:
        """(step, batch on the mesh, its passes) from step `start` to the last."""
        shardings = jax.tree.map(lambda x: x.sharding, self._arguments[2])
        for step in range(start, self.data.steps):
            batch, passes = self.data.batch(step)
            yield step, jax.tree.map(_place, batch, shardings), np.int32(passes)

    def advance(
        self, state: TrainState, params: Params, batch: Batch, passes: np.ndarray
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step. `state` is used up."""
        params = None if self.train.method == "full" else params
        return self._step(state, params, batch, passes, self._schedule_Kx2)


def fit(
    trainer: Trainer,
    params: Params,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
    begin: Callable[[int], None] = lambda step: None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    quiet: bool = False,
) -> TrainState:
    """Train to the last step, from the latest of `checkpoints` where there is one.

    `begin` is told the number of steps that were done before, and `log` a row for every step:
    {"step": 1, name of adapter: {"loss", "gradient_norm", "learning_rate", "answers"}, ...}, where
    an adapter that has finished is left out. Rows come before the checkpoint of their step. While
    the devices compute a step, the host reads the last one's numbers and packs the next.

    Raises UserError when a loss is not finite.
    """
    saved = checkpoints is not None and checkpoints.steps
    done, state = (
        checkpoints.restore(trainer.abstract_state) if saved else (0, trainer.start(params))
    )
    begin(done)
    data, waiting = trainer.data, None
    bar = Progress(data.steps, start=done, step="step", unit="examples",
                   units_per_step=trainer.train.batch * len(data.names), quiet=quiet)  # fmt: skip
    with bar:
        for step, batch, passes in trainer.batches(done):
            state, metrics = trainer.advance(state, params, batch, passes)
            due = (step + 1) % save_every == 0 or step + 1 == data.steps
            for at, ready in _ready(waiting, (step, metrics), due):
                row = _row(data, at, jax.device_get(ready))
                log(row)
                bar.update(at + 1, _shown(row))
            waiting = None if due else (step, metrics)
            if due and checkpoints is not None:
                checkpoints.save(step + 1, state)
    if checkpoints is not None:
        checkpoints.wait()
    return state


def adapters(trainer: Trainer, state: TrainState) -> dict[str, Adapter]:
    """The trained adapter (or weights) of each name, without the leading axis; laid out as the
    weights are. Every process must call this."""
    return {
        name: jax.tree.map(operator.itemgetter(k), state.trained)
        for k, name in enumerate(trainer.data.names)
    }


def _ready(waiting: Any, latest: Any, flush: bool) -> list:
    """Which steps' metrics to read now: the last one's, and the latest too before a checkpoint."""
    return [*([waiting] if waiting else []), *([latest] if flush else [])]


def _row(data: TrainData, step: int, metrics: Metrics) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step + 1}
    for k, name in enumerate(data.names):
        if step >= data.steps_K[k]:
            continue
        row[name] = {metric: values[k] for metric, values in metrics.items()}
        if not np.isfinite([metrics["loss"][k], metrics["gradient_norm"][k]]).all():
            raise UserError(
                f"step {step + 1}: the loss of {name!r} is {metrics['loss'][k]} and its gradient's "
                f"norm {metrics['gradient_norm'][k]}; lower the learning rate"
            )
    return row


def _shown(row: dict[str, Any]) -> dict[str, str]:
    """A few adapters' losses for the progress bar."""
    losses = {name: f"{m['loss']:.3f}" for name, m in row.items() if name != "step"}
    return dict(itertools.islice(losses.items(), 6))


def _place(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Of a host array that every process holds, what the devices of this one need."""
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def _batch_shardings(mesh: jax.sharding.Mesh, shape: Shape) -> Batch:
    return jax.tree.map(
        lambda x: named_sharding(mesh, (None, None, "batch", None), x.shape), shape.batch
    )


def _with_shardings(abstract: Any, shardings: Any) -> Any:
    """`shardings` may be a prefix of the tree."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        jax.tree.broadcast(shardings, abstract),
    )
