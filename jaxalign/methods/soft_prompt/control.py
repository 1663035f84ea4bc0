"""The gradient control of a search: the same prompts and the same fitness, tuned by Adam."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.options import Kernel
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import WeightFormat
from jaxalign.methods.soft_prompt.fitness import FitnessInputs, Read, make_fitness
from jaxalign.methods.soft_prompt.search import Search, abstract_inputs
from jaxalign.methods.soft_prompt.settings import entry_labels
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.evolve import Entry
from jaxalign.optim.gradient import GradientDescent, make_descent
from jaxalign.runs import identity_of
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.memory import check_fits
from jaxalign.stats.objectives import Objective

_log = logging.getLogger("jaxalign")

GRADIENT_STEPS_PER_DISPATCH = 10
_MOST_ACTIVATIONS = 2**28  # bytes that the layers may keep for the backward pass


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """The gradient control of a search: its inputs, and its compiled programs."""

    search: Search
    entries: tuple[Entry, ...]  # group and seed of each prompt that is tuned
    inputs: FitnessInputs  # of these entries
    descent: GradientDescent

    def run(
        self,
        checkpoints: Path | str | None = None,
        *,
        resume: bool = True,
        on_progress: OnProgress = ignore,
    ) -> np.ndarray:
        """Return the best search vectors that descent finds for the search's entries, [C, Z].

        Args:
            checkpoints: Directory for a checkpoint per dispatch; None keeps none.
            resume: Whether to go on from the latest checkpoint, if there is one.
            on_progress: Called before the first dispatch and after each.
        """
        settings, descent = self.search.problem.settings, self.descent
        names = entry_labels(self.entries)
        reading = "" if settings.reading == "expected" else ", expected reading"

        def progress(done: int, fields: Mapping[str, str]) -> Progress:
            task, total = f"gradient step{reading}", settings.gradient_steps
            return Progress(task, done, total, "candidates", len(names), fields=fields)

        with contextlib.ExitStack() as stack:
            identity = identity_of(settings, settings.gradient_steps)
            saved = checkpoints and stack.enter_context(Checkpoints(checkpoints, identity=identity))
            # A checkpoint has one row per entry, whatever the number of devices that wrote it.
            done, state = 0, None
            if saved and resume and saved.latest is not None:
                done, state = saved.restore(descent.abstract_state())
            state = descent.start() if state is None else descent.to_devices(state)
            on_progress(progress(done, {}))
            while done < settings.gradient_steps:
                # Short dispatches, so that there is progress to show and little to lose.
                steps = min(GRADIENT_STEPS_PER_DISPATCH, settings.gradient_steps - done)
                state = jax.block_until_ready(descent.run(state, steps, self.inputs))
                done += steps
                if saved:
                    saved.save(done, descent.to_entries(state))
                losses = zip(names, descent.best(state)[1], strict=True)
                on_progress(progress(done, {name: f"{loss:.1f}" for name, loss in losses}))
        # The point that the last step led to has not been evaluated yet.
        best_CxZ = descent.best(descent.last(state, self.inputs))[0]
        # Entries that start alike end alike, and were tuned once.
        groups = [group for group, _ in self.entries]
        return best_CxZ[
            [
                self.entries.index(entry) if entry in self.entries else groups.index(entry[0])
                for entry in self.search.entries
            ]
        ]


def make_control(search: Search) -> Control:
    """Build the gradient control of a search.

    It tunes the differentiable form of the objective: whatever reading the search tunes, most
    likely answers move in steps, and their gradient is zero everywhere.

    Raises:
        UserError: where the control, which comes after the search, will not fit into memory.
    """
    settings, entries = (
        search.problem.settings,
        control_entries(search.problem.settings.prompt, search.entries),
    )
    inputs = search.inputs_for(entries)
    if settings.reading != "expected":
        what = "sampled replies" if settings.reading == "sampled" else "most likely answers"
        _log.info(
            f"gradient control: does not apply to {what}, which have no gradient; it tunes the "
            "expected reading instead"
        )
    # Weights and items are the search's own arrays; only the objective is another one.
    inputs = inputs.replace(objective=inputs.objective.differentiable())
    descent = make_descent(
        _control_fitness(
            search.problem.model.config, search.problem.layout.tokens_computed, search.problem.read
        ),
        settings.gradient_steps,
        settings.gradient_rate,
        inputs.space.dims,
        search.evolution.mesh,
        len(entries),
    )
    steps = min(GRADIENT_STEPS_PER_DISPATCH, settings.gradient_steps)
    needed = check_fits(
        descent.lower(steps, inputs).compile(),
        jax.local_devices()[0],
        "`gradient_steps` 0 leaves the gradient control out",
    )
    _log.debug(f"gradient control: {needed / 2**20:,.0f} MiB per device")
    return Control(search, entries, inputs, descent)


def control_entries(prompt: SoftPromptConfig, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Return the entries that the control tunes: those of a group that start alike, once.

    Descent draws nothing, so a group's seeds differ only where its start is drawn.

    Args:
        prompt: The soft prompt and its start.
        entries: Group and seed of each entry of the search.
    """
    if prompt.start_is_drawn:
        return tuple(entries)
    first: dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry[0], entry)
    return tuple(first.values())


def control_directory(checkpoints: Path | str, steps: int) -> Path | str:
    """Return where the control of a run keeps its checkpoints.

    The learning rate of every step depends on how many steps there are in all, which a run that is
    resumed may change: it then begins its control anew.

    Args:
        checkpoints: The directory of the search's checkpoints, local or in a bucket.
        steps: Number of steps of the control.
    """
    name = f"gradient-{steps}"
    return checkpoints / name if isinstance(checkpoints, Path) else f"{checkpoints}/{name}"


def _control_fitness(config: LlamaConfig, tokens: int, read: Read | None) -> Callable:
    """Return the fitness that is descended, one prompt at a time.

    A layer is recomputed in the backward pass where the activations of all layers would be large:
    2.2 GiB more of an H200 for the 24 items at 8B. Small models keep them. In float32 either gives
    the same bits on any number of devices.

    Args:
        config: The model.
        tokens: Tokens of a prompt and all questions.
        read: Averages answers over presentations, as in `make_fitness`.
    """
    # Per token and layer: inputs of the products, as wide as the model or its feed-forward layer.
    kept = 6 * config.hidden_size + 3 * config.intermediate_size
    kept_bytes = tokens * config.num_hidden_layers * kept * jnp.dtype(config.dtype).itemsize
    return make_fitness(config, chunk=1, remat=kept_bytes > _MOST_ACTIVATIONS, read=read)


def lower_control(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    prompt: SoftPromptConfig,
    mesh: Mesh,
    *,
    entries: Sequence[Entry],
    steps: int = GRADIENT_STEPS_PER_DISPATCH,
    total_steps: int | None = None,
    learning_rate: float = 0.05,
    kernel: Kernel = "xla",
    objective: Objective | None = None,
    weights: WeightFormat = "stored",
    read: Read | None = None,
) -> jax.stages.Lowered:
    """Lower one dispatch of the gradient control from shapes alone.

    Args:
        config: The model.
        layout: The questions under a soft prompt.
        prompt: The soft prompt and its search space.
        mesh: The devices, which may be only described.
        entries: Group and seed of each entry. Only their number matters.
        steps: Steps of the dispatch.
        total_steps: Steps of the whole control; default: those of the dispatch.
        learning_rate: The first learning rate. Like the total, a constant of the program.
        kernel: The attention kernel.
        objective: The objective of the entries' groups, in arrays or shapes; default: the VSM's.
        weights: Storage of the linear layers, as in `load_model`.
        read: Averages answers over presentations, as in `make_fitness`.
    """
    count = len(entries)
    inputs = abstract_inputs(
        config,
        layout,
        prompt,
        mesh,
        kernel,
        entries=count,
        objective=objective,
        weights=weights,
    )
    dims = prompt.dims(config.hidden_size)
    fitness = _control_fitness(config, layout.tokens_computed, read)
    descent = make_descent(fitness, total_steps or steps, learning_rate, dims, mesh, count)
    return descent.lower(steps, inputs)
