"""One batch of a group's cells, carried through the group's compiled program.

Letters: C cell of the batch (spare ones included), M prompt token, D model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.commands.sweep.answers import (
    answer_record,
    gate_record,
    line_records,
    naive_records,
)
from jaxalign.commands.sweep.plan import Batch, Group
from jaxalign.core.progress import OnProgress
from jaxalign.lm.model import LM
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.soft_prompt.search import ExecutionPlan, Outcome, Search, build_search


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


def program_facts(search: Search, lm: LM) -> dict[str, Any]:
    """Return what `programs.json` records of a group.

    That is how it is computed (the chunk, the attention kernel, the replies at a time), C, and what
    its cells are compared with: the plain question, and answers that need no model. `validity` says
    whether the held-out survey measures anything on the model; `pocket` and `simulated_held_out`
    whether either is made up.
    """
    problem, objective, facts = search.problem, search.objective, search.facts
    return {
        **{name: value for name, value in facts.items() if name != "search"},
        "constants": objective.record().get("constants"),
        "naive": naive_records(problem, lm, objective),
        "lines": line_records(problem, objective),
        "validity": gate_record(problem, lm),
        "pocket": problem.model.is_pocket,
        "simulated_held_out": problem.simulated,
    }


def run_batch(
    search: Search,
    lm: LM,
    group: Group,
    batch: Batch,
    checkpoints: Path,
    on_progress: OnProgress,
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Carry a batch to its last generation, from its latest checkpoint if there is one.

    Args:
        search: The group's search.
        lm: The model.
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
    return cell_records(search, lm, group, batch, outcome)


def cell_records(
    search: Search, lm: LM, group: Group, batch: Batch, outcome: Outcome
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Return a record per cell, and its best prompt.

    Records hold no clock readings, so that they have the bits of a sweep that was never stopped.
    """
    records, problem = [], search.problem
    prompts_CxMxD = np.asarray(search.prompts(outcome.best_CxZ))
    for c, cell in enumerate(batch.cells):
        prompt = SoftPrompt(prompts_CxMxD[c], problem.settings.prompt.placement)
        record = {
            "cell": cell.number,
            "id": cell.id,
            "model": group.model,
            "strategy": group.strategy.name,
            "prompt_length": group.length,
            "country": cell.country,
            "seed": cell.seed,
            "fitness": outcome.fitness_C[c],
            "candidates": group.candidates_per_cell,
            **answer_record(problem, lm, search.objective, prompt, cell.country),
        }
        records.append((record, prompts_CxMxD[c]))
    return records
