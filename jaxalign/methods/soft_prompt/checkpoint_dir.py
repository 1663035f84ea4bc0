"""Where a soft-prompt run keeps its checkpoints."""

from __future__ import annotations

from pathlib import Path

import jax

from jaxalign.core.errors import UserError
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.runs import recorded_run
from jaxalign.runs.checkpoints import check_owner, location
from jaxalign.runtime.hosts import agreed_text


def checkpoint_directory(settings: Settings, out: Path) -> str | None:
    """Return the directory of the run's checkpoints: as asked, or where the run began to keep them.

    None stands for the folder of the run itself.

    Raises:
        UserError: for another run's directory, and for one without the checkpoints of a run that
            has some: the run would begin again and forget what it had.
    """
    directory = ""
    if jax.process_index() == 0:
        run_id, recorded = recorded_run(out)
        kept = recorded.get("checkpoints")
        default = location(out / "checkpoints")
        wanted = location(settings.checkpoints or kept or default)
        if wanted != default:
            directory = str(wanted)
            if not check_owner(directory, run_id) and _has_metrics(out):
                raise UserError(
                    f"`checkpoints` {directory}: holds no checkpoints of the run in {out}, which "
                    f"began to keep them in {kept or default}; give that, or another `out` to "
                    "begin again"
                )
    return agreed_text(directory) or None


def _has_metrics(out: Path) -> bool:
    path = out / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0
