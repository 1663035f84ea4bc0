"""Supervised fine-tuning of a LLaMA-3 on answers: joint (one adapter), specific (one per country,
trained side by side in one program), or of all weights.

What a step computes is in `train_step`, which examples it sees in `train_data`. Here both meet the
mesh and the disk: examples are spread over the data axis and weights over the model axis, and a run
that was killed goes on from its last checkpoint to the same bits.

Source: CultureSPA (Xu et al. 2025, arXiv 2410.12971), step 4; LoRA (Hu et al. 2021).
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
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import AdapterWeights, LoraConfig
from jaxalign.lm.weights import Params
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runs.console import Progress
from jaxalign.runtime.memory import check_fits
from jaxalign.runtime.sharding import DATA
from jaxalign.training.data import TrainData, adapter_key
from jaxalign.training.packing import Batch, Example
from jaxalign.training.program import loss_program, place, train_program
from jaxalign.training.step import TrainConfig, TrainState, init_state, schedule

__all__ = ["HeldOutLoss", "LoraConfig", "TrainConfig", "Trainer", "adapters", "fit"]

Metrics = dict[str, np.ndarray]  # "loss", "gradient_norm", "learning_rate", "answers": float32 [K]
LOOKS = 10  # how often a run looks at held-out examples, after its first look


class Trainer:
    """Adapters by name with their examples, on a mesh: one compiled step and what feeds it.

    `rates[name]` is an adapter's highest learning rate, `train.learning_rate` where none is given,
    and `drawn_as[name]` the name that its start and the order of its examples are drawn by, its own
    where none is given: so several rates are compared side by side in one program. Raises UserError
    for examples that cannot be trained on and for a program that does not fit.
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
        if train.method == "full" and len(examples) > 1:
            raise UserError(
                f"method 'full' trains one model, not {len(examples)} side by side; use 'lora'"
            )
        self.config, self.train, self.lora, self.mesh = config, train, lora, mesh
        keys = [adapter_key(train.seed, (drawn_as or {}).get(name, name)) for name in examples]
        self._key_Kx2 = np.stack([jax.random.key_data(key) for key in keys])
        self.data = TrainData(
            examples, keys, train.batch, train.epochs, train.row_length, train.tokens_per_pass,
            mesh.shape[DATA],
        )  # fmt: skip
        rates_K = [(rates or {}).get(name, train.learning_rate) for name in examples]
        self._schedule_Kx3 = schedule(train, self.data.steps_K, rates_K)
        step, self._arguments = train_program(config, train, lora, mesh, self.data.shape)
        self._step = step.lower(*self._arguments).compile()
        self.needed_bytes = check_fits(
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
        for step in range(start, self.data.steps):
            batch, passes = self.data.batch(step)
            yield step, place(batch, self._arguments[2]), np.int32(passes)

    def advance(
        self, state: TrainState, params: Params, batch: Batch, passes: np.ndarray
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step. `state` is used up."""
        params = None if self.train.method == "full" else params
        return self._step(state, params, batch, passes, self._schedule_Kx3)


class HeldOutLoss:
    """Of each adapter of a trainer, the mean loss on examples of its own that it is not trained on:
    `held_out(state, params)` -> {name: nats an answer token}.

    Raises UserError for an adapter without such examples, and for some longer than a row.
    """

    def __init__(self, trainer: Trainer, examples: Mapping[str, Sequence[Example]]):
        train, mesh = trainer.train, trainer.mesh
        self._names, self._full = trainer.data.names, train.method == "full"
        mine = {name: examples.get(name, ()) for name in self._names}
        if lacking := [name for name, some in mine.items() if not some]:
            raise UserError(f"no examples held out for {lacking[0]!r}")
        keys = [adapter_key(train.seed, name) for name in mine]
        data = TrainData(
            mine, keys, max(map(len, mine.values())), 1, train.row_length, train.tokens_per_pass,
            mesh.shape[DATA],
        )  # fmt: skip
        loss, arguments = loss_program(trainer.config, train, trainer.lora, mesh, data.shape)
        batch, passes = data.batch(0)
        self._batch, self._passes = place(batch, arguments[2]), np.int32(passes)
        self._loss = loss.lower(*arguments).compile()

    def __call__(self, state: TrainState, params: Params) -> dict[str, float]:
        params = None if self._full else params
        loss_K = self._loss(state.trained, params, self._batch, self._passes)
        return dict(zip(self._names, np.asarray(loss_K).tolist(), strict=True))


def fit(
    trainer: Trainer,
    params: Params,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
    begin: Callable[[int], None] = lambda step: None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    quiet: bool = False,
    held_out: HeldOutLoss | None = None,
) -> TrainState:
    """Train to the last step, from the latest of `checkpoints` where there is one.

    `begin` is told the number of steps that were done before, and `log` a row for every step:
    {"step": 1, name of adapter: {"loss", "gradient_norm", "learning_rate", "answers"}, ...}, where
    an adapter that has finished is left out. Rows come before the checkpoint of their step. While
    the devices compute a step, the host reads the last one's numbers and packs the next. With
    `held_out`, rows of step 0 (before training) and of ten more steps up to the last have a
    "held_out_loss" for every adapter, too.

    Raises UserError when a loss is not finite.
    """
    saved = checkpoints is not None and checkpoints.steps
    done, state = (
        checkpoints.restore(trainer.abstract_state) if saved else (0, trainer.start(params))
    )
    begin(done)
    data, waiting = trainer.data, None
    looks = looks_at(data.steps) if held_out is not None else set()
    if held_out is not None and done == 0:
        log(_with_held_out({"step": 0}, held_out(state, params)))
    bar = Progress(data.steps, start=done, step="step", unit="examples",
                   units_per_step=trainer.train.batch * len(data.names), quiet=quiet)  # fmt: skip
    with bar:
        for step, batch, passes in trainer.batches(done):
            state, metrics = trainer.advance(state, params, batch, passes)
            due = (step + 1) % save_every == 0 or step + 1 == data.steps
            flush = due or step + 1 in looks
            for at, ready in _ready(waiting, (step, metrics), flush):
                row = _row(data, at, jax.device_get(ready))
                if at + 1 in looks:
                    row = _with_held_out(row, held_out(state, params))
                log(row)
                bar.update(at + 1, _shown(row))
            waiting = None if flush else (step, metrics)
            if due and checkpoints is not None:
                checkpoints.save(step + 1, state)
    if checkpoints is not None:
        checkpoints.wait()
    return state


def adapters(trainer: Trainer, state: TrainState) -> dict[str, AdapterWeights]:
    """The trained adapter (or weights) of each name, without the leading axis; laid out as the
    weights are. Every process must call this."""
    return {
        name: jax.tree.map(operator.itemgetter(k), state.trained)
        for k, name in enumerate(trainer.data.names)
    }


def looks_at(steps: int) -> set[int]:
    """Steps after which held-out examples are looked at; the last is one of them."""
    return {math.ceil(steps * n / LOOKS) for n in range(1, LOOKS + 1)}


def _with_held_out(row: dict[str, Any], losses: Mapping[str, float]) -> dict[str, Any]:
    return row | {name: row.get(name, {}) | {"held_out_loss": v} for name, v in losses.items()}


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
    losses = {name: f"{m['loss']:.3f}" for name, m in row.items() if name != "step" and "loss" in m}
    return dict(itertools.islice(losses.items(), 6))
