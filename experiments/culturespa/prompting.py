"""Does CultureSPA's fine-tuning combine with its prompts? Of a finished run.

    python -m experiments.culturespa.prompting runs/culturespa

Asks the joint and the specific models of the run the survey under every prompt style, not only
under the one that they were trained with, and compares each with the unchanged model under the same
style, and with itself under P1. A run of a real model does this by itself; answers that it has kept
are not asked for again. Writes prompting.json and prompting.png into the run, and its report anew.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from experiments.culturespa.studies.finished import read_finished, reopen
from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import plot_prompting
from jaxalign.commands.reports.culturespa_tables import show_prompting
from jaxalign.core.errors import UserError
from jaxalign.core.files import plain, write_json
from jaxalign.methods.culturespa.fine_tune import AdapterFiles, adapter_folder, adapter_names
from jaxalign.methods.culturespa.prompting import ask_in_other_styles, prompting_record
from jaxalign.runs.console import main, progress_bars


@dataclasses.dataclass(frozen=True)
class PromptingSettings:
    """Ask the fine-tuned models of a finished run under every prompt style."""

    run: tyro.conf.Positional[Path]
    """Directory of the run."""
    quiet: bool = False
    """Show no progress bar."""


def run(settings: PromptingSettings) -> None:
    """Ask the models, and write, draw and print their scores."""
    finished = read_finished(settings.run)
    names = adapter_names(finished.out)
    if not names:
        raise UserError(f"{settings.run}: holds no adapters")
    with progress_bars(quiet=settings.quiet) as on_progress:
        experiment = reopen(finished, on_progress)
        folders = {name: adapter_folder(finished.out, name) for name in names}
        adapters = AdapterFiles(folders, experiment.lm.files)
        answered = finished.answered()
        prompted = ask_in_other_styles(experiment, adapters, answered.mean, answered.alone)
    settings, inputs = experiment.settings, experiment.inputs
    record = plain(
        prompting_record(
            settings, inputs, answered.mean, prompted, finished.untrained, answered.alone
        )
    )
    write_json(finished.out / "prompting.json", record)
    plot_prompting(finished.out / "prompting.png", record)
    write_culturespa_report(finished.result | {"prompting": record}, finished.out)
    show_prompting(record, finished.groups)


if __name__ == "__main__":
    main(run, PromptingSettings)
