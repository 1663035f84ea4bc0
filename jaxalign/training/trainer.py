"""Fine-tune a Llama on answers: one adapter, several side by side, or all weights.

`jaxalign.training.step` says what a step computes, `jaxalign.training.data` which examples it sees.
This module brings both onto a mesh and keeps checkpoints: examples are spread over the data axis
and weights over the model axis, and a run that was killed continues from its last checkpoint to the
same bits.

Source: CultureSPA (Xu et al. 2025, arXiv 2410.12971), step 4, where "joint" is one adapter for all
countries and "specific" one for each country; LoRA (Hu et al. 2021).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import AdapterWeights, LoraConfig
from jaxalign.lm.weights import Params
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.memory import check_fits
from jaxalign.runtime.sharding import DATA
from jaxalign.training.data import TrainData, adapter_key
from jaxalign.training.defaults import resolve_training
from jaxalign.training.packing import Batch, Example
from jaxalign.training.program import loss_program, place, train_program
from jaxalign.training.step import TrainConfig, TrainState, init_state, schedule

__all__ = ["HeldOutLoss", "LoraConfig", "TrainConfig", "Trainer", "adapters", "fit"]

Metrics = dict[str, np.ndarray]  # "loss", "gradient_norm", "learning_rate", "answers": float32 [K]
Row = dict[str, Any]  # {"step": 1, name of an adapter: {"loss": ...}, ...}
# The loss on held-out examples is measured before training and this many times on the way.
HELD_OUT_MEASUREMENTS = 10
_SHOWN_LOSSES = 6  # adapters whose loss a progress event shows


class Trainer:
    """Adapters by name, their examples, and the compiled step that trains them on a mesh.

    Attributes:
        data: The examples of each step.
        needed_bytes: Memory per device that the compiled step needs.
    """

    def __init__(
        self,
        config: LlamaConfig,
        train: TrainConfig,
        lora: LoraConfig,
        examples: Mapping[str, Sequence[Example]],
        mesh: jax.sharding.Mesh,
        rates: Mapping[str, float] | None = None,
        drawn_as: Mapping[str, str] | None = None,
    ):
        """Pack the examples and compile the step.

        Args:
            config: The model.
            train: How to train; settings that follow the model take the values of a real one.
            lora: Which layers are adapted; not used by method "full".
            examples: Examples of each adapter, by the adapter's name.
            mesh: The devices.
            rates: Highest learning rate of an adapter; default: that of `train`.
            drawn_as: Name from which an adapter's initial values and the order of its examples are
                drawn; default: its own. Adapters that share one differ in nothing but their rates.

        Raises:
            UserError: If there are no examples for a name, if one is longer than a row, or if the
                compiled step needs more memory than a device has.
        """
        train, _ = resolve_training(train)
        if train.method == "full" and len(examples) > 1:
            raise UserError(
                f"`method` full trains one model, not {len(examples)} side by side; use lora"
            )
        self.config, self.train, self.lora, self.mesh = config, train, lora, mesh
        keys = [adapter_key(train.seed, (drawn_as or {}).get(name, name)) for name in examples]
        self._key_Kx2 = np.stack([jax.random.key_data(key) for key in keys])
        self.data = TrainData(
            examples,
            keys,
            train.batch,
            train.epochs,
            train.row_length,
            train.tokens_per_pass,
            mesh.shape[DATA],
        )
        # The schedule is an argument of the step, so that rates do not recompile it.
        rates_K = [(rates or {}).get(name, train.learning_rate) for name in examples]
        self._schedule_Kx3 = schedule(train, self.data.steps_K, rates_K)
        # Compiled ahead of time: whether it fits is known before anything is loaded.
        step, self._arguments = train_program(config, train, lora, mesh, self.data.shape)
        self._step = step.lower(*self._arguments).compile()
        self.needed_bytes = check_fits(self._step, mesh.local_devices[0], "lower `tokens_per_pass`")

    @property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state, for restoring a checkpoint."""
        return self._arguments[0]

    def describe(self) -> str:
        """Return one line with the number of steps, their shape and the memory they need."""
        shape = self.data.shape
        return (
            f"{self.data.steps} steps of up to {shape.passes} x {shape.rows} rows of "
            f"{shape.row_length} tokens; the compiled step needs "
            f"{self.needed_bytes / 2**20:,.0f} MiB per device"
        )

    def start(self, params: Params) -> TrainState:
        """Return the state before the first step."""
        # Initialised where it is kept, never whole on one device.
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        init = jax.jit(
            lambda key, params: init_state(self.config, self.train, self.lora, key, params),
            out_shardings=shardings,
        )
        return init(self._key_Kx2, params)

    def batches(self, start: int) -> Iterator[tuple[int, Batch, np.ndarray]]:
        """Yield (step, batch on the mesh, number of passes) from step `start` to the last."""
        for step in range(start, self.data.steps):
            batch, passes = self.data.batch(step)
            yield step, place(batch, self._arguments[2]), np.int32(passes)

    def advance(
        self, state: TrainState, params: Params, batch: Batch, passes: np.ndarray
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one step. The buffers of `state` are reused and must not be read afterwards."""
        params = None if self.train.method == "full" else as_bits(params)
        return self._step(state, params, batch, passes, self._schedule_Kx3)


class HeldOutLoss:
    """The mean loss of each adapter on examples that it is not trained on.

    `held_out(state, params)` returns {name: nats per answer token}.
    """

    def __init__(self, trainer: Trainer, examples: Mapping[str, Sequence[Example]]):
        """Pack the held-out examples of each adapter of `trainer` and compile the loss.

        Raises:
            UserError: If an adapter has no held-out examples, or one is longer than a row.
        """
        train, mesh = trainer.train, trainer.mesh
        self._names, self._full = trainer.data.names, train.method == "full"
        held_out = {name: examples.get(name, ()) for name in self._names}
        if lacking := [name for name, sequence in held_out.items() if not sequence]:
            raise UserError(f"no examples held out for {lacking[0]!r}")
        keys = [adapter_key(train.seed, name) for name in held_out]
        # All examples are one step, so that a single call measures them.
        data = TrainData(
            held_out,
            keys,
            max(map(len, held_out.values())),
            1,
            train.row_length,
            train.tokens_per_pass,
            mesh.shape[DATA],
        )
        loss, arguments = loss_program(trainer.config, train, trainer.lora, mesh, data.shape)
        batch, passes = data.batch(0)
        self._batch, self._passes = place(batch, arguments[2]), np.int32(passes)
        self._loss = loss.lower(*arguments).compile()

    def __call__(self, state: TrainState, params: Params) -> dict[str, float]:
        params = None if self._full else as_bits(params)
        loss_K = self._loss(state.trained, params, self._batch, self._passes)
        return dict(zip(self._names, np.asarray(loss_K).tolist(), strict=True))


def fit(
    trainer: Trainer,
    params: Params,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
    begin: Callable[[int], None] = lambda step: None,
    log: Callable[[Row], None] = lambda row: None,
    held_out: HeldOutLoss | None = None,
    on_progress: OnProgress = ignore,
) -> TrainState:
    """Train to the last step, from the latest checkpoint if there is one.

    While the devices compute a step, the host reads the numbers of the one before and packs the
    next.

    Args:
        trainer: What to train.
        params: Weights of the base model.
        checkpoints: Where checkpoints are kept; None: nowhere.
        save_every: Steps between checkpoints.
        begin: Called once, before the first step, with the number of steps already done.
        log: Called with a row for every step, {"step": 1, name of an adapter: {"loss",
            "gradient_norm", "learning_rate", "answers"}, ...}. An adapter whose examples are used
            up is left out. A row comes before the checkpoint of its step.
        held_out: Measured before training and ten times on the way, the last time at the end. Those
            rows have a "held_out_loss" for every adapter; the first one has step 0.
        on_progress: Called with the progress in steps.

    Returns:
        The state after the last step.

    Raises:
        UserError: If a loss is not finite.
    """
    if checkpoints is not None and checkpoints.steps:
        done, state = checkpoints.restore(trainer.abstract_state)
    else:
        done, state = 0, trainer.start(params)
    begin(done)
    data = trainer.data
    measured_at = measurement_steps(data.steps) if held_out is not None else set()
    if held_out is not None and done == 0:
        log(_with_held_out({"step": 0}, held_out(state, params)))

    def progress(done: int, fields: Mapping[str, str]) -> None:
        examples_per_step = trainer.train.batch * len(data.names)
        on_progress(Progress("step", done, data.steps, "examples", examples_per_step, fields))

    progress(done, {})
    waiting: list[tuple[int, dict[str, jax.Array]]] = []  # metrics that are not read yet
    for step, batch, passes in trainer.batches(done):
        state, metrics = trainer.advance(state, params, batch, passes)
        save = (step + 1) % save_every == 0 or step + 1 == data.steps
        # Usually one step's metrics wait, so that reading them does not stall the devices. All are
        # read before the state is saved or measured.
        waiting.append((step, metrics))
        keep = 0 if save or step + 1 in measured_at else 1
        while len(waiting) > keep:
            ready, metrics = waiting.pop(0)
            row = _row(data, ready, jax.device_get(metrics))
            if ready + 1 in measured_at:
                row = _with_held_out(row, held_out(state, params))
            log(row)
            progress(ready + 1, _shown_losses(row))
        if save and checkpoints is not None:
            checkpoints.save(step + 1, state)
    if checkpoints is not None:
        checkpoints.wait()
    return state


def adapters(trainer: Trainer, state: TrainState) -> dict[str, AdapterWeights]:
    """Return the trained adapter (or weights) of each name, without the leading axis.

    They lie on the mesh as the weights do. Every process must call this.
    """
    return {
        name: jax.tree.map(operator.itemgetter(k), state.trained)
        for k, name in enumerate(trainer.data.names)
    }


def measurement_steps(steps: int) -> set[int]:
    """Return the steps after which held-out examples are measured; the last is one of them."""
    return {
        math.ceil(steps * n / HELD_OUT_MEASUREMENTS) for n in range(1, HELD_OUT_MEASUREMENTS + 1)
    }


def _with_held_out(row: Row, losses: Mapping[str, float]) -> Row:
    return row | {name: row.get(name, {}) | {"held_out_loss": v} for name, v in losses.items()}


def _row(data: TrainData, step: int, metrics: Metrics) -> Row:
    """Return the row of one step; UserError if a loss or gradient is not finite."""
    row: Row = {"step": step + 1}
    for k, name in enumerate(data.names):
        if step >= data.steps_K[k]:  # the adapter has finished
            continue
        row[name] = {metric: values[k] for metric, values in metrics.items()}
        if not np.isfinite([metrics["loss"][k], metrics["gradient_norm"][k]]).all():
            raise UserError(
                f"step {step + 1}: the loss of {name!r} is {metrics['loss'][k]} and its gradient's "
                f"norm {metrics['gradient_norm'][k]}; lower the learning rate"
            )
    return row


def _shown_losses(row: Row) -> dict[str, str]:
    """Return the losses of the first adapters, as text."""
    losses = {name: f"{m['loss']:.3f}" for name, m in row.items() if name != "step" and "loss" in m}
    return dict(itertools.islice(losses.items(), _SHOWN_LOSSES))
