"""Where a run's tuned prompts lie among the vocabulary, for its report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.lm.model import open_model
from jaxalign.methods.inspect import PromptInspection, Vocabulary, inspect_prompt
from jaxalign.methods.tuned import load_prompts_by_name, read_tuned_run
from jaxalign.report.document import Table


def prompts_table(out: Path) -> Table | None:
    """Return a row for each tuned prompt; None where the prompts or their model are not there.

    Args:
        out: The run's directory.
    """
    run = read_tuned_run(out)
    if run is None or not run.prompts:
        return None
    try:
        files = open_model(run.model)
        prompts = load_prompts_by_name(run.prompts, files)
        vocabulary = Vocabulary.of(files)
    except UserError:  # moved since, or of another width: the report does without
        return None
    found = {name: inspect_prompt(vocabulary, prompt, top=1) for name, prompt in prompts.items()}
    return Table(
        "Tuned prompts among the embeddings of the vocabulary (Euclidean distances; the nearest "
        f"other token is {vocabulary.apart:.2f} away from a token, median)",
        ("Country", "tokens", "moved from the start", "nearest token still the start's", "cosine"),
        tuple((name, *_cells(inspection)) for name, inspection in found.items()),
        digits=2,
    )


def _cells(found: PromptInspection) -> tuple[int, float | None, int | None, float]:
    stayed = None if found.moved is None else found.stayed
    cosine = float(np.mean([p.by_cosine[0].value for p in found.positions]))
    return len(found.positions), found.moved, stayed, cosine
