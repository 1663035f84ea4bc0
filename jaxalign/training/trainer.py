"""Fine-tune a Llama on answers: one adapter, several side by side, or all weights.

`jaxalign.training.step` says what a step computes, `jaxalign.training.data` which examples it sees.
This module brings both onto a mesh and keeps checkpoints: examples are spread over the data axis
and weights over the model axis, and a run that was killed continues from its last checkpoint to the
same bits.

Adapters that do not fit into memory together are trained in groups, one after the other, in one
compiled program. What an adapter becomes does not depend on its group. Of the groups that are not
being trained, only the adapters that are finished are kept, on the host.

An adapter whose loss is no longer a number is set aside, and the others finish with the same bits
as if it had not been (`jaxalign.training.step`).

Source: CultureSPA (Xu et al. 2025, arXiv 2410.12971), step 4, where "joint" is one adapter for all
countries and "specific" one for each country; LoRA (Hu et al. 2021).
"""

from __future__ import annotations

import itertools
import logging
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.core.json_text import read_object
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.core.seals import check_sealed, sealed
from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.weights import Params, WeightFormat
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.hosts import agreed
from jaxalign.runtime.kernel_timing import KernelChoice
from jaxalign.runtime.memory import available_bytes, check_fits
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.sharding import DATA, MODEL, replicated
from jaxalign.training.data import (
    Stream,
    TrainData,
    adapter_key,
    make_streams,
    most_options,
    shape_of_streams,
)
from jaxalign.training.defaults import resolve_training
from jaxalign.training.kernel_choice import available_kernels, choose_kernel
from jaxalign.training.packing import Batch, Example, Examples
from jaxalign.training.program import (
    adapters_side_by_side,
    bytes_per_device,
    loss_program,
    place,
    train_program,
)
from jaxalign.training.shape import Shape
from jaxalign.training.step import TrainConfig, Trained, TrainState, init_state, schedule

__all__ = ["HeldOutLoss", "LoraConfig", "TrainConfig", "Trainer", "fit"]

_log = logging.getLogger("jaxalign")

Metrics = dict[str, np.ndarray]  # "loss", "gradient_norm", "learning_rate", "answers": float32 [K]
Row = dict[str, Any]  # {"step": 1, name of an adapter: {"loss": ...}, ...}
ManyExamples = Examples | Iterable[Example]
# The loss on held-out examples is measured before training and this many times on the way.
HELD_OUT_MEASUREMENTS = 10
_HELD_OUT_BATCH = 128  # examples of an adapter that the loss is measured on at a time, at least
_SHOWN_LOSSES = 6  # adapters whose loss a progress event shows
_ATTENTION = "attention.json"  # in a folder of checkpoints: the kernel, where there are several
_GROUPS = "groups.json"  # in a folder of checkpoints: how many adapters were side by side


class Trainer:
    """Adapters by name, their examples, and the compiled step that trains them on a mesh.

    Attributes:
        names: Names of the adapters.
        groups: The examples of each step, for each group of adapters that are side by side.
        shape: Sizes of a step, the same for all groups.
        attention: The kernel that computes the attention, and why.
        needed_bytes: Memory per device that the compiled step needs.
    """

    def __init__(
        self,
        config: LlamaConfig,
        train: TrainConfig,
        lora: LoraConfig,
        examples: Mapping[str, ManyExamples],
        mesh: jax.sharding.Mesh,
        rates: Mapping[str, float] | None = None,
        drawn_as: Mapping[str, str] | None = None,
        shape: Shape | None = None,
        checkpoints: Path | None = None,
        weights: WeightFormat = "stored",
    ):
        """Choose the sizes of a step and compile it.

        Args:
            config: The model.
            train: How to train; settings that follow the model take the values of a real one.
            lora: Which layers are adapted; not used by method "full".
            examples: Examples of each adapter, by the adapter's name.
            mesh: The devices.
            rates: Highest learning rate of an adapter; default: that of `train`.
            drawn_as: Name from which an adapter's initial values and the order of its examples are
                drawn; default: its own. Adapters that share one differ in nothing but their rates.
            shape: Sizes of a step that were chosen before the examples were known, so that its
                program is compiled already (`jaxalign.training.program.expected_shape`). Where the
                examples do not suit them, and by default, sizes that do are chosen.
            checkpoints: Folder of checkpoints that `fit` may continue from: adapters that were side
                by side there are again, and attention has the kernel that it had.
            weights: How the frozen weights are stored.

        Raises:
            UserError: If there are no examples for a name, if one is longer than allowed, or if the
                compiled step needs more memory than a device has.
        """
        train, _ = resolve_training(train, config=config)
        if train.method == "full" and len(examples) > 1:
            raise UserError(
                f"`method` full trains one model, not {len(examples)} side by side; use lora"
            )
        self.config, self.train, self.lora, self.mesh = config, train, lora, mesh
        self.weights = weights
        self.names = tuple(examples)
        keys = [adapter_key(train.seed, (drawn_as or {}).get(name, name)) for name in examples]
        self._keys = dict(zip(examples, map(jax.random.key_data, keys), strict=True))
        self._rates = {name: (rates or {}).get(name, train.learning_rate) for name in examples}
        streams = make_streams(examples, keys, train.batch, train.epochs)
        _check_targets(train, streams)
        devices = mesh.shape[DATA]
        if shape is not None and not holds(shape, streams, devices):
            _log.info(f"training: the examples do not suit the step that was planned, {shape}")
            shape = None
        count = shape.adapters if shape else self._side_by_side(checkpoints)
        groups = _grouped(streams, count)
        if shape is None:
            shape = shape_of_streams(
                [list(group.values()) for group in groups],
                train.batch,
                train.tokens_per_pass,
                train.longest_example,
                devices,
            )
        self.shape = shape
        self.groups = [TrainData(list(group), list(group.values()), shape) for group in groups]
        # A group's rows in a log are numbered from that of its start on, where nothing is trained.
        self.first_rows = list(
            itertools.accumulate((g.steps + 1 for g in self.groups[:-1]), initial=0)
        )
        self.attention = self._choose_attention(checkpoints)
        _log.debug(f"training: {self.attention.describe()}")
        # Compiled ahead of time: whether it fits is known before anything is loaded.
        step, self._arguments = train_program(
            config, train, lora, mesh, shape, weights, self.attention.kernel
        )
        self._step = step.lower(*self._arguments).compile()
        remedy = "lower `tokens_per_pass`"
        if shape.adapters > 1:
            remedy += " or `side_by_side`"
        self.needed_bytes = check_fits(self._step, mesh.local_devices[0], remedy)

    def _side_by_side(self, checkpoints: Path | None) -> int:
        """Return how many adapters are trained together: as many as in a run that is continued."""
        if checkpoints is not None:
            check_sealed(checkpoints / _GROUPS)
        if checkpoints is not None and (checkpoints / _GROUPS).exists():
            return int(read_object(checkpoints / _GROUPS)["side_by_side"])
        # Process 0's memory counts for all: all of them have to agree.
        memory = agreed(available_bytes(self.mesh.local_devices[0]) or 0)
        return adapters_side_by_side(
            self.config, self.train, self.lora, self.mesh, len(self.names), memory or None
        )

    def _choose_attention(self, checkpoints: Path | None) -> KernelChoice:
        """Return the attention kernel: that of the run that is continued, if it is here too."""
        shape, option = self.shape, self.train.attention
        sizes = shape.row_length, shape.window, shape.examples
        path = None if checkpoints is None else checkpoints / _ATTENTION
        if path is None or not path.exists():
            return choose_kernel(self.config, self.mesh, *sizes, option)
        check_sealed(path)
        kept = str(read_object(path)["attention"])
        if kept not in self.kernels:
            _log.info(f"training: attention began with {kept}, which these devices do not have")
            return choose_kernel(self.config, self.mesh, *sizes, option)
        return KernelChoice(kept, "as this run began")

    @property
    def kernels(self) -> tuple[str, ...]:
        """The attention kernels that there are to choose from."""
        split, examples = self.mesh.shape[MODEL], self.shape.examples
        return available_kernels(self.config, split, examples, target_platform())[0]

    @property
    def abstract_state(self) -> TrainState:
        """Shapes and shardings of a group's state, for restoring a checkpoint."""
        return self._arguments[0]

    @property
    def steps(self) -> int:
        """Number of steps of all groups."""
        return sum(group.steps for group in self.groups)

    def describe(self) -> str:
        """Return one line with the number of steps, their shape and the memory they need."""
        shape = self.shape
        groups = ""
        if len(self.groups) > 1:
            groups = (
                f"{len(self.names)} adapters in {len(self.groups)} groups of up to "
                f"{shape.adapters}; "
            )
        short = f", or of {shape.tail}" if shape.tail else ""
        return (
            f"{groups}{self.steps} steps in passes of {shape.rows} x {shape.row_length} "
            f"tokens{short}; the compiled step needs {self.needed_bytes / 2**20:,.0f} MiB per "
            "device"
        )

    def start(self, params: Params, group: int = 0) -> TrainState:
        """Return the state of a group before its first step."""
        # Initialised where it is kept, never whole on one device. Groups that lack adapters get
        # some that have no examples.
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        init = jax.jit(
            lambda key, params: init_state(self.config, self.train, self.lora, key, params),
            out_shardings=shardings,
        )
        key_Kx2 = np.zeros((self.shape.adapters, 2), np.uint32)
        for k, name in enumerate(self.groups[group].names):
            key_Kx2[k] = self._keys[name]
        return init(key_Kx2, params if self.train.method == "full" else None)

    def batches(
        self, start: int, group: int = 0
    ) -> Iterator[tuple[int, tuple[Batch, ...], np.ndarray]]:
        """Yield (step, batches on the mesh, their numbers of passes) from step `start` on."""
        data = self.groups[group]
        for step in range(start, data.steps):
            batches, passes = data.batch(step)
            yield step, place(batches, self._arguments[2]), passes

    def advance(
        self,
        state: TrainState,
        params: Params,
        batches: tuple[Batch, ...],
        passes: np.ndarray,
        group: int = 0,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Take one step. The buffers of `state` are reused and must not be read afterwards."""
        params = None if self.train.method == "full" else as_bits(params)
        return self._step(state, params, batches, passes, self._schedule(group))

    def _schedule(self, group: int) -> np.ndarray:
        """Return the schedule of a group: an argument of the step, so rates do not recompile it."""
        data = self.groups[group]
        rates = [self._rates[name] for name in data.names]
        schedule_Kx3 = np.ones((self.shape.adapters, 3), np.float32)
        schedule_Kx3[: len(rates)] = schedule(self.train, data.steps_K, rates)
        return schedule_Kx3

    def trained(self, state: TrainState, group: int = 0) -> dict[str, Trained]:
        """Return the trained adapter (or weights) of each name of a group.

        They lie on the mesh as the weights do, without the leading axis of adapters. Every process
        must call this.
        """
        return {
            name: jax.tree.map(operator.itemgetter(k), state.trained)
            for k, name in enumerate(self.groups[group].names)
        }


def _grouped(streams: Mapping[str, Stream], count: int) -> list[dict[str, Stream]]:
    """Return groups of `count` adapters.

    Those with most steps come first, so that adapters of about as many steps are side by side, and
    a step seldom has room for adapters that have finished. One group keeps the order given.
    """
    if len(streams) <= count:
        return [dict(streams)]
    # Sorted is stable: among adapters of as many steps, the order given decides.
    names = sorted(streams, key=lambda name: -streams[name].steps)
    return [
        {name: streams[name] for name in names[n : n + count]} for n in range(0, len(names), count)
    ]


def holds(shape: Shape, streams: Mapping[str, Stream], devices: int) -> bool:
    """Return whether the examples of all adapters can be trained in steps of a shape."""
    longest = max(int(stream.lengths.max()) for stream in streams.values())
    share = max(float((s.examples.answers / s.lengths).max()) for s in streams.values())
    # A step of several adapters also trains one, with the others' places empty.
    as_many = bool(shape.units) or len(streams) == 1
    options = most_options(stream.examples for stream in streams.values())
    held = shape.holds(longest, share, options)
    return held and shape.rows % devices == 0 and as_many


def _check_targets(train: TrainConfig, streams: Mapping[str, Stream]) -> None:
    """Raise UserError if distributions are to be trained toward that examples do not have."""
    for name, stream in streams.items():
        if train.target == "distribution" and stream.examples.targets is None:
            raise UserError(
                f"`target` distribution: the examples of {name!r} have no probabilities of "
                "options, as those of CultureSPA do; give option"
            )


class HeldOutLoss:
    """The mean loss of each adapter on examples that it is not trained on.

    `held_out(state, params, group)` returns {name: nats per answer token} for a group's adapters.
    """

    def __init__(self, trainer: Trainer, examples: Mapping[str, ManyExamples]):
        """Choose the sizes of a pass over the held-out examples, and compile the loss.

        Raises:
            UserError: If an adapter has no held-out examples, or if one of them is too long.
        """
        train, mesh = trainer.train, trainer.mesh
        self._full = train.method == "full"
        held_out = {name: Examples.of(examples.get(name, ())) for name in trainer.names}
        if lacking := [name for name, of_name in held_out.items() if not len(of_name)]:
            raise UserError(f"no examples held out for {lacking[0]!r}")
        keys = [adapter_key(train.seed, name) for name in held_out]
        # They are gone through as examples to train on are, in steps that fill several passes.
        most = max(map(len, held_out.values()))
        batch = min(most, max(train.batch, _HELD_OUT_BATCH))
        streams = make_streams(held_out, keys, batch)
        groups = [[streams[name] for name in group.names] for group in trainer.groups]
        shape = shape_of_streams(
            groups, batch, train.tokens_per_pass, train.longest_example, mesh.shape[DATA]
        )
        self._groups = [
            TrainData(group.names, of_group, shape)
            for group, of_group in zip(trainer.groups, groups, strict=True)
        ]
        loss, self._arguments = loss_program(
            trainer.config,
            train,
            trainer.lora,
            mesh,
            shape,
            trainer.weights,
            trainer.attention.kernel,
        )
        self._loss = loss.lower(*self._arguments).compile()
        # The optimizer's moments stay where they are while the loss is computed.
        state = trainer.abstract_state
        beside = bytes_per_device(state) - bytes_per_device(state.trained)
        check_fits(self._loss, mesh.local_devices[0], "lower `tokens_per_pass`", beside)

    def __call__(self, state: TrainState, params: Params, group: int = 0) -> dict[str, float]:
        params, data = None if self._full else as_bits(params), self._groups[group]
        total = answers = np.float64(0)
        for step in range(data.steps):
            batches, passes = data.batch(step)
            placed = place(batches, self._arguments[2])
            sums = self._loss(state.trained, params, placed, passes)
            total, answers = (total + np.asarray(sums[0]), answers + np.asarray(sums[1]))
        names = data.names
        return dict(zip(names, (total / answers)[: len(names)].tolist(), strict=True))


def fit(
    trainer: Trainer,
    params: Params,
    checkpoints: Checkpoints | None = None,
    save_every: int = 100,
    begin: Callable[[int], None] = lambda step: None,
    log: Callable[[Row], None] = lambda row: None,
    held_out: HeldOutLoss | None = None,
    on_progress: OnProgress = ignore,
    set_aside: Callable[[str, int], None] | None = None,
) -> dict[str, Trained]:
    """Train to the last step, from the latest checkpoint if there is one.

    While the devices compute a step, the host reads the numbers of the one before and packs the
    next.

    Args:
        trainer: What to train.
        params: Weights of the base model.
        checkpoints: Where checkpoints are kept; None: nowhere. Those of several groups are in
            folders of their own there.
        save_every: Steps between checkpoints.
        begin: Called once, before the first step, with the number of the last row that was logged
            before (see `log`); with one group, the number of steps already done.
        log: Called with a row for every step, {"step": 1, name of an adapter: {"loss",
            "gradient_norm", "learning_rate", "answers"}, ...}. An adapter whose examples are used
            up is left out. A row comes before the checkpoint of its step. The rows of a second
            group are numbered on from those of the first.
        held_out: Measured before training and ten times on the way, the last time at the end. Those
            rows have a "held_out_loss" for every adapter; the first one has step 0.
        on_progress: Called with the progress in steps.
        set_aside: Called with the name of an adapter whose loss or gradient is not finite, and the
            number of the row in which it was not; on resuming, again. Such an adapter is not
            trained further. Default: a warning is logged, and it is an error if no other is left.

    Returns:
        The trained adapter of each name (for method "full" the weights), without those that were
        set aside: on the devices if there is one group, as numpy arrays on the host if there are
        several.

    Raises:
        UserError: If no loss is finite, and `set_aside` is not given.
    """
    several = len(trainer.groups) > 1
    if several and checkpoints is not None and jax.process_index() == 0:
        path = Path(checkpoints.directory) / _GROUPS
        with sealed(path):
            write_json(path, {"side_by_side": trainer.shape.adapters})
    _record_attention(trainer, checkpoints)
    run = _Fit(trainer, params, save_every, begin, log, held_out, on_progress, set_aside)
    trained: dict[str, Trained] = {}
    for group in range(len(trainer.groups)):
        if checkpoints is None or not several:
            state = run.group(group, checkpoints)
        else:
            with checkpoints.part(f"group{group}") as saved:
                state = run.group(group, saved)
        found = trainer.trained(state, group)
        found = {name: weights for name, weights in found.items() if name not in run.failed}
        if several:
            gather = jax.jit(lambda x: x, out_shardings=replicated(trainer.mesh))
            # One at a time, because each is whole on every device for a moment.
            found = {name: jax.device_get(gather(weights)) for name, weights in found.items()}
            del state
        trained |= found
    if not trained and set_aside is None:
        raise UserError(run.last_failure)
    return {name: trained[name] for name in trainer.names if name in trained}


def _record_attention(trainer: Trainer, checkpoints: Checkpoints | None) -> None:
    """Keep the kernel beside the checkpoints where there are several, so that a resumed run has it.

    Another kernel would round differently.
    """
    if checkpoints is None or len(trainer.kernels) == 1 or jax.process_index() > 0:
        return
    if isinstance(checkpoints.directory, Path):  # and not a bucket
        path = checkpoints.directory / _ATTENTION
        with sealed(path):
            write_json(path, {"attention": trainer.attention.kernel})


class _Fit:
    """The loop over the steps of a group, and what the groups have in common.

    Attributes:
        failed: The adapters that were set aside, with the number of the row where they failed.
        last_failure: What is to be said of the last of them.
    """

    def __init__(
        self,
        trainer: Trainer,
        params: Params,
        save_every: int,
        begin: Callable[[int], None],
        log: Callable[[Row], None],
        held_out: HeldOutLoss | None,
        on_progress: OnProgress,
        set_aside: Callable[[str, int], None] | None,
    ):
        self.failed: dict[str, int] = {}
        self.last_failure = ""
        self._set_aside = set_aside
        self._trainer, self._params, self._save_every = trainer, params, save_every
        self._begin: Callable[[int], None] | None = begin
        self._log, self._held_out, self._on_progress = log, held_out, on_progress

    def group(self, group: int, checkpoints: Checkpoints | None) -> TrainState:
        """Train a group from its latest checkpoint and return its last state."""
        trainer, params = self._trainer, self._params
        data, first_row = trainer.groups[group], trainer.first_rows[group]
        earlier = sum(data.steps for data in trainer.groups[:group])
        if checkpoints is not None and checkpoints.latest is not None:
            done, state = checkpoints.restore(trainer.abstract_state)
        else:
            done, state = 0, trainer.start(params, group)
        is_last = group + 1 == len(trainer.groups)
        if self._begin is not None and (done < data.steps or is_last):
            # The last row that stays: a group's first row is written again with its first step.
            self._begin(first_row + done if done or not group else first_row - 1)
            self._begin = None
        if done:
            failed_K = jax.device_get(state.failed_K).tolist()
            for name, step in zip(data.names, failed_K, strict=False):  # places may be empty
                if step:
                    self._fail(name, first_row + step, "not finite")
        measured_at = measurement_steps(data.steps) if self._held_out is not None else set()
        if self._held_out is not None and done == 0:
            losses = self._held_out(state, params, group)
            self._log(_with_held_out({"step": first_row}, losses))
        self._progress(earlier + done, {})
        waiting: list[tuple[int, dict[str, jax.Array]]] = []  # metrics that are not read yet
        for step, batches, passes in trainer.batches(done, group):
            state, metrics = trainer.advance(state, params, batches, passes, group)
            save = (step + 1) % self._save_every == 0 or step + 1 == data.steps
            # Usually one step's metrics wait, so that reading them does not stall the devices. All
            # are read before the state is saved or measured.
            waiting.append((step, metrics))
            keep = 0 if save or step + 1 in measured_at else 1
            while len(waiting) > keep:
                ready, metrics = waiting.pop(0)
                row = self._row(data, ready, first_row, jax.device_get(metrics))
                if all(name in self.failed for name in data.names):
                    return state  # nothing is left to train
                if ready + 1 in measured_at:
                    losses = self._held_out(state, params, group)
                    left = {n: loss for n, loss in losses.items() if n not in self.failed}
                    row = _with_held_out(row, left)
                self._log(row)
                self._progress(earlier + ready + 1, _shown_losses(row))
            if save and checkpoints is not None:
                checkpoints.save(step + 1, state)
        if checkpoints is not None:
            checkpoints.wait()
        return state

    def _row(self, data: TrainData, step: int, first_row: int, metrics: Metrics) -> Row:
        """Return the row of one step, and set aside what is not finite in it."""
        row: Row = {"step": first_row + step + 1}
        for k, name in enumerate(data.names):
            if step >= data.steps_K[k] or name in self.failed:
                continue  # it has finished or been set aside
            row[name] = {metric: values[k] for metric, values in metrics.items()}
            loss, norm = metrics["loss"][k], metrics["gradient_norm"][k]
            if not np.isfinite([loss, norm]).all():
                self._fail(name, row["step"], f"{loss} and its gradient's norm {norm}")
        return row

    def _fail(self, name: str, row: int, found: str) -> None:
        self.failed[name] = row
        self.last_failure = f"step {row}: the loss of {name!r} is {found}; lower the learning rate"
        if self._set_aside is not None:
            self._set_aside(name, row)
        elif len(self._trainer.names) > 1:
            _log.warning(f"{self.last_failure}. It is set aside, and the others go on")

    def _progress(self, done: int, fields: Mapping[str, str]) -> None:
        trainer = self._trainer
        examples_per_step = trainer.train.batch * trainer.shape.adapters
        self._on_progress(
            Progress("step", done, trainer.steps, "examples", examples_per_step, fields=fields)
        )


def measurement_steps(steps: int) -> set[int]:
    """Return the steps after which held-out examples are measured; the last is one of them."""
    return {
        math.ceil(steps * n / HELD_OUT_MEASUREMENTS) for n in range(1, HELD_OUT_MEASUREMENTS + 1)
    }


def _with_held_out(row: Row, losses: Mapping[str, float]) -> Row:
    return row | {name: row.get(name, {}) | {"held_out_loss": v} for name, v in losses.items()}


def _shown_losses(row: Row) -> dict[str, str]:
    """Return the losses of the first adapters, as text."""
    losses = {name: f"{m['loss']:.3f}" for name, m in row.items() if name != "step" and "loss" in m}
    return dict(itertools.islice(losses.items(), _SHOWN_LOSSES))
