"""One batch of a group's cells, carried through the group's compiled program.

Letters: C cell of the batch (spare ones included), M prompt token, D model, Z search dimension.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.answering.options import option_log_probs
from jaxalign.commands.sweep.plan import Batch, Group
from jaxalign.core.progress import OnProgress
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.model import LM
from jaxalign.methods.soft_prompt.fitness import FitnessInputs
from jaxalign.methods.soft_prompt.search import ExecutionPlan, Outcome, Search, build_search
from jaxalign.methods.soft_prompt.space import decode
from jaxalign.stats.vsm import READINGS


def make_search(group: Group, lm: LM, execution: ExecutionPlan) -> Search:
    """Build and compile a group's search; UserError if it will not fit into memory."""
    return build_search(
        group.problem,
        lm,
        execution,
        entries=group.batches[0].entries,
        prefix=f"{group.name}: ",
        remedy=f"group {group.name}: lower `cells_per_program`",
    )


def program_facts(search: Search) -> dict[str, Any]:
    """Return what `programs.json` records of a group: chunk, attention kernel, and C."""
    execution = search.execution
    constants = search.objective.record().get("constants")
    return {"chunk": execution.chunk, "attention": execution.kernel, "constants": constants}


def run_batch(
    search: Search, group: Group, batch: Batch, checkpoints: Path, on_progress: OnProgress
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Carry a batch to its last generation, from its latest checkpoint if there is one.

    Args:
        search: The group's search.
        group: The group.
        batch: The cells to search for.
        checkpoints: Folder of the sweep's checkpoints; the batch has one of its own in it.
        on_progress: Called before the first dispatch and after each.

    Returns:
        Each cell's record, as `cells.jsonl` has it, and its tuned prompt, float32 [M, D].
    """
    search = search.for_entries(batch.entries)
    # The last generation needs no checkpoint: its results are recorded next.
    outcome = search.run(checkpoints / batch.name, save_last=False, on_progress=on_progress)
    return cell_records(search, group, batch, outcome)


def cell_records(
    search: Search, group: Group, batch: Batch, outcome: Outcome
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Return a record per cell, and its best prompt.

    Records hold no clock readings, so that they have the bits of a sweep that was never stopped.
    """
    records, inputs = [], search.local_inputs
    for c, cell in enumerate(batch.cells):
        # One at a time, so that their last bits do not depend on how many there are.
        own_space = inputs.space.at_entry(c)
        own_inputs = inputs.replace(space=own_space, objective=inputs.objective.for_groups([c]))
        read = read_out(search.problem.model.config, own_inputs, outcome.best_CxZ[c])
        prompt_MxD, measured = jax.device_get(read)
        record = {
            "cell": cell.number,
            "id": cell.id,
            "model": group.model,
            "strategy": group.strategy.name,
            "prompt_length": group.length,
            "country": cell.country,
            "seed": cell.seed,
            "fitness": outcome.fitness_C[c],
            "loss": {reading: measured[reading]["loss"] for reading in READINGS},
            "scores": {reading: measured[reading].get("scores") for reading in READINGS},
            "candidates": group.candidates_per_cell,
        }
        records.append((record, prompt_MxD))
    return records


@functools.partial(jax.jit, static_argnums=0)
def read_out(
    config: LlamaConfig, inputs: FitnessInputs, z_Z: jax.Array
) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
    """Return the prompt of a search vector, and what the objective measures under it.

    Args:
        config: The model.
        inputs: Inputs of one cell: its start is [M, D], its objective that of one group.
        z_Z: The search vector.

    Returns:
        The prompt, [M, D], and for each reading the loss, [], and for "vsm" the scores, [6].
    """
    prompt_MxD = decode(inputs.space, z_Z)
    log_probs_QxO = option_log_probs(config, inputs.items, prompt_MxD[None], 1)[0]
    objective = inputs.objective
    return prompt_MxD, {
        reading: objective.with_reading(reading).measure(log_probs_QxO, 0) for reading in READINGS
    }
