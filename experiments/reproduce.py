"""What the two papers report, table by table and figure by figure, beside what we measure.

    python -m experiments.reproduce soft-prompt-de
    python -m experiments.reproduce culturespa --runs runs/culturespa

The command itself is `jaxalign reproduce` (`jaxalign.commands.reproduce`). Here it also makes the
studies of the runs that it makes: how models differ from each other (Figure 5 of CultureSPA), and
how much data a joint model needs.
"""

from __future__ import annotations

from pathlib import Path

from experiments.culturespa.studies import fractions, matrices
from experiments.culturespa.studies.finished import RunSettings
from jaxalign.commands.reproduce.command import ReproduceSettings, compare_with_paper
from jaxalign.runs.console import main


def run(settings: ReproduceSettings) -> None:
    """Call the command with the studies."""

    def quantity(path: Path) -> None:
        fractions.run(fractions.FractionsSettings(path, quiet=settings.quiet))

    def differences(path: Path) -> None:
        matrices.run(RunSettings(path))

    compare_with_paper(settings, {"matrices.json": differences, "fractions.json": quantity})


if __name__ == "__main__":
    main(run, ReproduceSettings)
