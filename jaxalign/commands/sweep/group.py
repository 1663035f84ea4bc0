"""The compiled program of a group of cells, and one batch of them carried through it.

Letters: C cell of the batch (spare ones included), M prompt token, D model, Z search dimension.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.cost import padding_text, plan_report, plan_text
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.commands.sweep.plan import Batch, Group
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Params
from jaxalign.methods.soft_prompt.objective import Objective, make_fitness
from jaxalign.methods.soft_prompt.result import known
from jaxalign.methods.soft_prompt.search import How, constants, search_space
from jaxalign.methods.soft_prompt.space import (
    country_key,
    decode,
    initial_population,
    initial_prompt,
    prompt_text,
)
from jaxalign.optim.evolve import Evolution, State, make_evolution
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.memory import fitting_chunk
from jaxalign.runtime.sharding import POPULATION, local_view, place_whole
from jaxalign.stats.vsm import READINGS, loss, make_scorer
from jaxalign.surveys.hofstede import country_name


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What the batches of a group share: compiled once, for as many cells as a batch has."""

    group: Group
    how: dict[str, Any]  # chunk and attention, on which the last bits of results depend; C
    table_VxD: jax.Array
    evolution: Evolution
    objective: Objective  # `of_batch` puts in what differs from batch to batch

    def of_batch(self, batch: Batch) -> tuple[Evolution, Objective]:
        """The search of these cells, and all that it reads, on the devices."""
        study, config = self.group.study, self.group.config
        starts = []
        for country, seed in batch.entries:
            text = study.tokens.encode(prompt_text(config.prompt, country_name(country)))
            key = country_key(jax.random.key(seed), country)
            starts.append(initial_prompt(config.prompt, self.table_VxD, text, key))
        rows = [config.countries.index(country) for country, _ in batch.entries]
        objective = dataclasses.replace(
            self.objective,
            space=dataclasses.replace(self.objective.space, start=jnp.stack(starts)),
            target_Cx6=jnp.asarray(study.target_Cx6[rows]),
        )
        evolution = self.evolution.for_entries(batch.entries)
        return evolution, place_whole(objective, evolution.sharding)


def make_program(group: Group, params: Params, mesh: jax.sharding.Mesh, how: How) -> Program:
    """Build the group's search; UserError where the compiler says that it will not fit."""
    config, study = group.config, group.study
    own = local_view(params)  # for the small work that each process does by itself
    space = search_space(config, study, own)
    countries = group.batches[0].entries
    constants_6 = constants(config, study, own)
    objective = Objective(
        interview=dataclasses.replace(
            prepare_items(study.llama, own, study.layout, how.kernel), params=params
        ),
        scorer=make_scorer(study.module, constants_6),
        space=space,
        target_Cx6=jnp.asarray(study.target_Cx6),
        used_6=jnp.asarray(study.used_6),
        penalty=jnp.float32(config.penalty),
    )

    @functools.cache  # so that what is compiled to see whether it fits is what runs
    def program(chunk: int) -> Program:
        fitness = make_fitness(study.llama, config.reading, chunk)
        evolution = make_evolution(
            config.strategy, space.dims, fitness, mesh, group.batches[0].entries
        )
        facts = {"chunk": chunk, "attention": how.kernel}
        facts["constants"] = known(np.where(study.used_6, constants_6, np.nan))
        return Program(group, facts, own["embed"], evolution, objective)

    def compiled(chunk: int) -> jax.stages.Compiled:
        evolution, whole = program(chunk).of_batch(group.batches[0])
        return evolution.lower(min(config.save_every, config.generations), whole).compile()

    remedy = f"group {group.name}: lower --cells-per-program"
    device = jax.local_devices()[0]
    chunk, needed = fitting_chunk(compiled, how.chunk, device, remedy, how.fixed)
    print(
        f"{group.name}: {chunk} prompts at a time, {needed / 2**20:,.0f} MiB per device; "
        + plan_text(plan_report(study.llama, study.layout, chunk))
    )
    population = config.strategy.population
    if padding := padding_text(len(countries), population, mesh.shape[POPULATION], chunk):
        print(f"{group.name}: {padding}")
    return program(chunk)


def run_batch(
    program: Program, batch: Batch, checkpoints: Path, told: Callable[[int], None]
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Carry a batch to its last generation, from its latest checkpoint if there is one.

    `told(generation)` is called after every dispatch. Returns each cell's result, as JSON has it,
    and its tuned prompt, float32 [M, D].
    """
    config = program.group.config
    evolution, objective = program.of_batch(batch)
    with Checkpoints(checkpoints / batch.name) as saved:
        if saved.steps:
            done, state = saved.restore(evolution.abstract_state())
        else:
            done, state = 0, evolution.init(first_generation(program, batch), objective)
        told(done)
        while done < config.generations:
            steps = min(config.save_every, config.generations - done)
            state, _ = evolution.run(state, steps, objective)
            done += steps
            if done < config.generations:  # the last needs none: its results are next
                saved.save(done, state)
            jax.block_until_ready(state)
            told(done)
    return results(program, batch, state, local_view(objective))


def first_generation(program: Program, batch: Batch) -> jax.Array:
    """float32 [C, E, Z]: what `experiments.soft_prompt` begins with for each country and seed."""
    space, population = program.objective.space, program.group.strategy.strategy.population
    keys = [country_key(jax.random.key(seed), country) for country, seed in batch.entries]
    return jnp.stack([initial_population(space, key, population) for key in keys])


def results(
    program: Program, batch: Batch, state: State, objective: Objective
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """One row per cell, and its best prompt. No clock readings: the bits of an unbroken sweep."""
    group, found = program.group, []
    best_CxZ, fitness_C = jax.device_get((state.best_CxZ, state.best_fitness_C))
    for c, cell in enumerate(batch.cells):
        # One at a time, so that their last bits do not depend on how many there are.
        z_Z, start, target_6 = best_CxZ[c], objective.space.start[c], objective.target_Cx6[c]
        space = dataclasses.replace(objective.space, start=start)
        own = dataclasses.replace(objective, space=space, target_Cx6=target_6)
        prompt_MxD, read = jax.device_get(read_out(group.study.llama, own, z_Z))
        row = {
            "cell": cell.number,
            "id": cell.id,
            "model": group.model,
            "strategy": group.strategy.name,
            "prompt_length": group.length,
            "country": cell.country,
            "seed": cell.seed,
            "fitness": fitness_C[c],
            "loss": {reading: read[reading][1] for reading in READINGS},
            "scores": {reading: read[reading][0] for reading in READINGS},
            "candidates": group.candidates_per_cell,
        }
        found.append((row, prompt_MxD))
    return found


@functools.partial(jax.jit, static_argnums=0)
def read_out(
    llama: LlamaConfig, objective: Objective, z_Z: jax.Array
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """The prompt [M, D] of a search vector and, by reading, its six scores [6] and their loss [].

    `objective` is one cell's: its start is [M, D], its target [6].
    """
    prompt_MxD = decode(objective.space, z_Z)
    log_probs_QxO = option_log_probs(llama, objective.interview, prompt_MxD[None], 1)[0]

    def read(reading):
        scores_6 = objective.scorer.scores(log_probs_QxO, reading)
        return scores_6, loss(scores_6, objective.target_Cx6, objective.used_6)

    return prompt_MxD, {reading: read(reading) for reading in READINGS}
