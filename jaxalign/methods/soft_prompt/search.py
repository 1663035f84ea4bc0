"""The search of `experiments.soft_prompt` as one compiled program, and what it reads.

Chosen before it is compiled, printed and kept in the run's record: the mesh, how many prompts are
computed at a time, the kernel of the attention. The last bits of results depend on the latter two,
so a run that goes on keeps what it began with.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.cost import padding_text, plan_report, plan_text
from jaxalign.answering.kernel_choice import KERNEL_OPTIONS, choose_kernel
from jaxalign.answering.options import Kernel, prepare_items
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.quantize import quantize
from jaxalign.lm.weights import Params
from jaxalign.methods.prompting import ask, lead_in
from jaxalign.methods.soft_prompt.objective import Objective, make_fitness
from jaxalign.methods.soft_prompt.space import (
    Space,
    country_key,
    initial_prompt,
    make_space,
    prompt_text,
)
from jaxalign.methods.soft_prompt.study import Config, Study
from jaxalign.optim.evolve import Evolution, entries_of, make_evolution
from jaxalign.optim.gradient import Descent, make_descent
from jaxalign.runtime.hosts import agreed, agreed_choice
from jaxalign.runtime.memory import busy_chunk, check_fits, fitting_chunk
from jaxalign.runtime.sharding import MODEL, POPULATION, local_view, place_whole, replicated
from jaxalign.stats.vsm import Scorer, anchor_constants, make_scorer
from jaxalign.surveys.hofstede import DIMENSIONS, country_name, targets


def choose_mesh_here(config: Config, study: Study) -> jax.sharding.Mesh:
    """The mesh that fits the model and the population, with its reason on the screen."""
    mesh, choice = device_mesh(
        study.llama,
        len(config.countries) * config.strategy.population,
        search_dims=config.prompt.dims(study.llama.hidden_size),
        model_parallel=config.model_parallel,
    )
    print(choice.describe())
    return mesh


def in_int8(config: Config, study: Study, params: Params) -> Params:
    """The weights in 8 bits; prints what that does to the plain model's option probabilities."""

    def probabilities(params: Params) -> np.ndarray:
        items = study.module.items
        answers, _ = ask(study.llama, local_view(params), study.tokens, study.prompts, [[]], items)
        return np.exp(answers[0])

    before, params = probabilities(params), quantize(study.llama, params)
    after = probabilities(params)
    change = np.abs(after - before)
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    print(
        f"int8 weights: option probabilities change by {change[before > 0].mean():.4f} on average "
        f"and {change.max():.4f} at most; {same} of {len(before)} most likely answers stay"
    )
    return params


def constants(config: Config, study: Study, params: Params) -> np.ndarray:
    """C of each dimension, float32 [6]: as given, or anchored on the reference countries."""
    if not config.anchor:
        return np.full(len(DIMENSIONS), config.constant, np.float32)
    lead_ins = [lead_in("persona", study.prompts, c, study.survey, ()) for c in config.anchor]
    log_probs, _ = ask(
        study.llama, params, study.tokens, study.prompts, lead_ins, study.module.items
    )
    published_Rx6, _ = targets(config.anchor, config.edition, config.dimensions)
    raw_Rx6 = make_scorer(study.module).scores(log_probs)
    found = np.asarray(anchor_constants(raw_Rx6, published_Rx6))
    return np.where(study.used_6, found, 0.0).astype(np.float32)


def search_space(config: Config, study: Study, params: Params) -> Space:
    """The space around each country's start; `start` is [C, M, D]."""
    table_VxD, starts = params["embed"], []
    for country in config.countries:
        text = study.tokens.encode(prompt_text(config.prompt, country_name(country)))
        key = country_key(jax.random.key(config.seed), country)
        starts.append(initial_prompt(config.prompt, table_VxD, text, key))
    return make_space(config.prompt, jnp.stack(starts), table_VxD)


@dataclasses.dataclass(frozen=True)
class How:
    """What the last bits of a search depend on besides its settings."""

    chunk: int  # prompts computed at a time, at most
    kernel: Kernel  # of the attention
    fixed: bool  # the chunk may not be another one


def choose_how(
    config: Config,
    study: Study,
    mesh: jax.sharding.Mesh,
    began: Mapping[str, Any],
    searches: int | None = None,
) -> How:
    """As the run began (`began`: its facts, on process 0), as asked, or by measure. Says so.

    `searches`: how many there are in all; default one a country. Needs no weights. UserError for a
    kernel that this device lacks.
    """
    kept = agreed(began.get("chunk", 0))
    chunk = kept or config.chunk
    if not chunk:
        candidates = (searches or len(config.countries)) * config.strategy.population
        chunk = busy_chunk(study.layout.tokens_computed, jax.local_devices()[0].platform)
        # More than all candidates would be padding anywhere. A device's share is no such bound: the
        # last bits depend on the chunk, and may not depend on the number of devices.
        chunk = min(chunk, 1 << (candidates - 1).bit_length())
    asked = agreed_choice(KERNEL_OPTIONS, began.get("attention", config.attention))
    choice = choose_kernel(study.llama, study.layout, chunk, mesh.shape[MODEL], asked)
    if "attention" in began:
        choice = dataclasses.replace(choice, reason="as this run began")
    print(choice.describe())
    return How(chunk, choice.kernel, fixed=kept > 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """The gradient control, see `make_descent`: where it starts, and its two programs."""

    first: Descent
    advance: Callable
    finish: Callable


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The compiled search, what it reads, and what its last bits depend on."""

    evolution: Evolution
    objective: Objective
    control: Control | None  # None without gradient steps
    facts: dict[str, Any]


def build(
    config: Config,
    study: Study,
    params: Params,
    scorer: Scorer,
    space: Space,
    mesh: jax.sharding.Mesh,
    how: How,
) -> Program:
    """The search on the mesh. UserError where it will not fit into memory."""
    steps = min(config.save_every, config.generations)
    objective = Objective(
        interview=dataclasses.replace(
            prepare_items(study.llama, local_view(params), study.layout, how.kernel), params=params
        ),
        scorer=scorer,
        space=space,
        target_Cx6=jnp.asarray(study.target_Cx6),
        used_6=jnp.asarray(study.used_6),
        penalty=jnp.float32(config.penalty),
    )
    objective = place_whole(objective, replicated(mesh))

    @functools.cache  # so that what is compiled to see whether it fits is what runs
    def search(chunk: int) -> Evolution:
        fitness = make_fitness(study.llama, config.reading, chunk)
        entries = entries_of(config.countries, config.seed)
        return make_evolution(config.strategy, space.dims, fitness, mesh, entries)

    chunk, needed = fitting_chunk(
        lambda chunk: search(chunk).lower(steps, objective).compile(),
        how.chunk,
        jax.local_devices()[0],
        "split the weights over more devices (--model-parallel), or store them in --weights int8",
        how.fixed,
    )
    print(plan_text(plan_report(study.llama, study.layout, chunk)))
    searches, population = len(config.countries), config.strategy.population
    if padding := padding_text(searches, population, mesh.shape[POPULATION], chunk):
        print(padding)
    print(
        f"{chunk} prompts at a time: a dispatch of {steps} generations needs "
        f"{needed / 2**20:,.0f} MiB per device"
    )
    control = make_control(config, study, local_view(objective)) if config.gradient_steps else None
    facts = {"chunk": chunk, "attention": how.kernel}
    return Program(search(chunk), objective, control, facts)


STEPS_AT_A_TIME = 10  # of the gradient control, in a dispatch


def make_control(config: Config, study: Study, objective: Objective) -> Control:
    """UserError where the control, which comes after the search, will not fit into memory."""
    # Whatever --reading: most likely answers move in steps, their gradient is zero everywhere.
    fitness = make_fitness(study.llama, "expected", chunk=1)
    start, advance, finish = make_descent(fitness, config.gradient_steps, config.gradient_rate)
    descent = start(len(config.countries), objective.space.dims)
    # Placed like what `advance` returns, or the second dispatch would be compiled anew.
    descent = jax.device_put(descent, objective.space.start.sharding)
    steps = min(STEPS_AT_A_TIME, config.gradient_steps)
    needed = check_fits(
        advance.lower(descent, objective, steps).compile(),
        jax.local_devices()[0],
        "--gradient-steps 0 leaves the gradient control out",
    )
    print(f"gradient control: {needed / 2**20:,.0f} MiB per device")
    return Control(descent, advance, finish)
