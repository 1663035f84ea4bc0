"""The sub-command `plan`: print what a program needs on chips that this machine does not have.

    python -m tpu.plan --topology v5e:16x16 --model llama3-8b --population 4096 --items 24
    python -m tpu.plan --topology v5p:4x4x4 --program population decode train
    python -m tpu.plan --topology v6e:4x4 --fit population
    python -m tpu.plan --topology h200:8 --model llama3-70b
    jaxalign plan --experiment culturespa --topology h200:1 --countries 18 --seeds 5
    jaxalign plan --experiment soft-prompt --topology cpu:16 --model llama3.2-1b

Runs on any Linux machine with `pip install 'jaxalign[tpu]'` (GPUs: `[cuda]`). Plans for 8B and
v5e:16x16 take one to three minutes on two cores. Plans that were made are in `tpu/README.md`.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxalign.commands.plan.estimate import Estimate, report_rows, table_row
from jaxalign.commands.plan.experiments import COLUMNS, ExperimentPlan, plan_experiment
from jaxalign.commands.plan.planning import PlanSettings, plans
from jaxalign.core.errors import UserError
from jaxalign.runs.console import print_table, progress_bars


@dataclasses.dataclass(frozen=True)
class Config(PlanSettings):
    """Compile this package's programs for chips that this machine does not have, and print what
    they need."""

    verbose: ClassVar[bool] = True  # plans and kernels are what is asked for

    generations: int = 1000
    """Number of generations, batches or steps to give chip-hours for."""
    efficiency: float = 0.6
    """Fraction of the roofline that a run is expected to reach, for chip-hours."""
    table: bool = False
    """Whether to print each plan also as a row of the table in tpu/README.md."""


def run(config: Config) -> None:
    """Print each plan as soon as it is made."""
    if config.generations < 1:
        raise UserError(f"`generations` {config.generations}: at least 1")
    if not 0 < config.efficiency <= 1:  # false for NaN as well
        raise UserError(f"`efficiency` {config.efficiency}: above 0 and at most 1")
    if config.experiment is not None:
        with progress_bars() as on_progress:
            plan = plan_experiment(config, on_progress)
        show_experiment(config, plan)
        return
    for estimate in plans(config):
        show(config, estimate)


def show_experiment(config: Config, plan: ExperimentPlan) -> None:
    """Print what every program needs; UserError if one of them does not fit."""
    title = f"{plan.model}, {plan.experiment}, {plan.topology.name}"
    print_table(title, COLUMNS, plan.rows())
    compiling = sum(need.compile_seconds for need in plan.needs)
    print(
        f"planned on the host in {plan.host_seconds:.0f} s of processor time; compiled in "
        f"{compiling:.0f} s"
    )
    if config.table:
        for row in plan.rows():
            print(f"| {' | '.join((plan.model, plan.topology.name, *row))} |")
    if plan.too_large:
        raise UserError(plan.summary())
    print(plan.summary())


def show(config: Config, estimate: Estimate) -> None:
    """Print a plan as a table, and what it leaves out."""
    print_table(
        f"{config.model}, {estimate.program}, {estimate.topology.name}",
        ("per chip", ""),
        report_rows(estimate, config.generations, config.efficiency),
    )
    if not estimate.topology.is_tpu:
        print("Planned without a GPU: without autotuning and without cuDNN, so a real run differs.")
    if config.table:
        print(table_row(config.model, estimate))
