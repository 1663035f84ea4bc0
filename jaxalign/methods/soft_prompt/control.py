"""The gradient control of a search: the same prompts and the same fitness, tuned by Adam."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.options import Kernel
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.config import LlamaConfig
from jaxalign.methods.soft_prompt.fitness import FitnessInputs, make_fitness
from jaxalign.methods.soft_prompt.search import Search, abstract_inputs
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.evolve import Entry
from jaxalign.optim.gradient import Descent, make_descent
from jaxalign.runtime.memory import check_fits
from jaxalign.runtime.sharding import replicated
from jaxalign.stats.objectives import Objective

_log = logging.getLogger("jaxalign")

GRADIENT_STEPS_PER_DISPATCH = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """The gradient control of a search: its inputs, where it starts, and its two programs."""

    search: Search
    inputs: FitnessInputs
    first: Descent
    advance: Callable
    finish: Callable

    def run(self, on_progress: OnProgress = ignore) -> jax.Array:
        """Return the best search vectors that descent finds, float32 [C, Z]."""
        settings, descent = self.search.problem.settings, self.first
        groups = [group for group, _ in self.search.entries]
        reading = "" if settings.reading == "expected" else ", expected reading"

        def progress(done: int, fields: Mapping[str, str]) -> Progress:
            task, total = f"gradient step{reading}", settings.gradient_steps
            return Progress(task, done, total, "candidates", len(groups), fields)

        on_progress(progress(0, {}))
        for done in range(0, settings.gradient_steps, GRADIENT_STEPS_PER_DISPATCH):
            steps = min(GRADIENT_STEPS_PER_DISPATCH, settings.gradient_steps - done)
            descent = jax.block_until_ready(self.advance(descent, self.inputs, steps))
            losses = zip(groups, np.asarray(descent.best_fitness_C), strict=True)
            on_progress(progress(done + steps, {group: f"{loss:.1f}" for group, loss in losses}))
        return self.finish(descent, self.inputs).best_CxZ


def make_control(search: Search) -> Control:
    """Build the gradient control of a search.

    It tunes the differentiable form of the objective: whatever reading the search tunes, most
    likely answers move in steps, and their gradient is zero everywhere.

    Raises:
        UserError: where the control, which comes after the search, will not fit into memory.
    """
    settings, inputs = search.problem.settings, search.local_inputs
    inputs = inputs.replace(objective=inputs.objective.differentiable())
    fitness = make_fitness(search.problem.model.config, chunk=1)
    start, advance, finish = make_descent(fitness, settings.gradient_steps, settings.gradient_rate)
    descent = start(len(search.entries), inputs.space.dims)
    # Placed like what `advance` returns, or the second dispatch would be compiled anew.
    descent = jax.device_put(descent, inputs.space.start.sharding)
    steps = min(GRADIENT_STEPS_PER_DISPATCH, settings.gradient_steps)
    needed = check_fits(
        advance.lower(descent, inputs, steps).compile(),
        jax.local_devices()[0],
        "`gradient_steps` 0 leaves the gradient control out",
    )
    _log.info(f"gradient control: {needed / 2**20:,.0f} MiB per device")
    return Control(search, inputs, descent, advance, finish)


def lower_control(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    prompt: SoftPromptConfig,
    mesh: Mesh,
    *,
    entries: Sequence[Entry],
    steps: int = GRADIENT_STEPS_PER_DISPATCH,
    kernel: Kernel = "xla",
    objective: Objective | None = None,
) -> jax.stages.Lowered:
    """Lower one dispatch of the gradient control from shapes alone.

    Args:
        config: The model.
        layout: The questions under a soft prompt.
        prompt: The soft prompt and its search space.
        mesh: The devices, which may be only described.
        entries: Group and seed of each entry. Only their number matters.
        steps: Steps of the dispatch.
        kernel: The attention kernel.
        objective: The objective of the entries' groups, in arrays or shapes; default: the VSM's.
    """
    count = len(entries)
    inputs = abstract_inputs(
        config, layout, prompt, mesh, kernel, entries=count, objective=objective
    )
    start, advance, _ = make_descent(make_fitness(config, chunk=1), steps, learning_rate=0.05)
    shapes = jax.eval_shape(lambda: start(count, prompt.dims(config.hidden_size)))
    descent = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes
    )
    return advance.lower(descent, inputs, steps)
