"""Where a run of `experiments.soft_prompt` keeps its checkpoints."""

from __future__ import annotations

from pathlib import Path

import jax

from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.study import Config
from jaxalign.runs import recorded_run
from jaxalign.runs.checkpoints import check_owner, location
from jaxalign.runtime.hosts import agreed_text


def checkpoint_place(config: Config, out: Path) -> str | None:
    """Where checkpoints go: as asked, or where the run began to keep them. None: its own folder.

    UserError for a place that is another run's, and for one without the checkpoints of a run that
    has some: it would begin again and forget what it had.
    """
    place = ""
    if jax.process_index() == 0:
        name, settings = recorded_run(out)
        kept = settings.get("checkpoints")
        own = location(out / "checkpoints")
        wanted = location(config.checkpoints or kept or own)
        if wanted != own:
            place = str(wanted)
            if not check_owner(place, name) and _has_metrics(out):
                raise UserError(
                    f"--checkpoints {place}: holds no checkpoints of the run in {out}, which began "
                    f"to keep them in {kept or own}; give that, or another --out to begin again"
                )
    return agreed_text(place) or None


def _has_metrics(out: Path) -> bool:
    path = out / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0
