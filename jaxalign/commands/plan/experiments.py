"""Every program of an experiment, planned for chips that this machine does not have.

The settings, the mesh, and the sizes of blocks, batches and groups are chosen by the functions that
a run uses, given the chip's memory and platform. Nothing is loaded: weights are shapes, and
questions that do not exist before a run are stood in for by texts of the survey's own lengths.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxalign.commands.plan.planning import PlanSettings, check, model_files
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.mesh import MeshChoice, choose_mesh
from jaxalign.lm.model import ModelFiles
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa import programs as culturespa
from jaxalign.methods.culturespa.inputs import read_inputs
from jaxalign.methods.culturespa.settings import check_settings, resolve_settings
from jaxalign.methods.soft_prompt import Settings as SoftPromptSettings
from jaxalign.methods.soft_prompt import programs as soft_prompt
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.search import choose_execution
from jaxalign.pocket.society import held_out_survey
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.programs import Need, Program, measure_program, summary_text
from jaxalign.runtime.sharding import make_mesh
from jaxalign.runtime.topology import Topology, described_devices, parse_topology
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.hofstede import DIMENSIONS

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class ExperimentPlan:
    """What the programs of an experiment need on one chip.

    Attributes:
        experiment: "soft-prompt" or "culturespa".
        model: Name of the model.
        topology: The chips.
        mesh: How they are arranged.
        needs: What each program needs, in the order of the run.
        host_seconds: Processor time of planning on the host: reading, tokens, layouts and blocks,
            without compiling.
    """

    experiment: str
    model: str
    topology: Topology
    mesh: MeshChoice
    needs: tuple[Need, ...]
    host_seconds: float

    @property
    def too_large(self) -> tuple[Need, ...]:
        """The programs that do not fit."""
        return tuple(need for need in self.needs if not need.fits(self.topology.program_bytes))

    @property
    def largest(self) -> Need:
        """The program that needs the most memory."""
        return max(self.needs, key=lambda need: need.bytes)

    def rows(self) -> list[tuple[str, ...]]:
        """Return one row per program: stage, name, and its memory."""
        return [_row(need, self.topology.program_bytes) for need in self.needs]

    def summary(self) -> str:
        """Say whether everything fits, and which program needs the most, in one line."""
        available = self.topology.program_bytes
        if not self.too_large:
            return summary_text(self.needs, available)
        names = ", ".join(need.program.name for need in self.too_large)
        return f"{len(self.too_large)} of {len(self.needs)} programs do not fit: {names}"


# Settings of a CultureSPA run that a plan takes under the same name.
_OF_CULTURESPA = (
    "per_topic",
    "seeds",
    "questions",
    "presentations",
    "constrain",
    "reading",
    "runs",
    "p3_choice",
    "p3_form",
    "prompting",
    "specific_batch",
    "batch_size",
    "block_tokens",
    "model_parallel",
)
COLUMNS = ("stage", "program", "arguments", "temporaries", "beside", "together", "of memory")


def plan_experiment(settings: PlanSettings, on_progress: OnProgress = ignore) -> ExperimentPlan:
    """Compile every program of an experiment for a topology and return what each needs.

    Args:
        settings: The settings; `experiment` names the experiment.
        on_progress: Called before each program.

    Raises:
        UserError: The settings or files cannot be used, or the compiler is not installed.
    """
    # Nothing here runs on an accelerator, and libtpu without a TPU would be taken for one.
    jax.config.update("jax_platforms", "cpu")
    topology = parse_topology(settings.topology)
    check(settings)
    files = model_files(settings)
    # First, because it turns off the compilation cache, which JAX asks only once.
    devices = described_devices(topology)
    with tempfile.TemporaryDirectory() as scratch, lowering_for(topology.platform):
        began = time.process_time()
        make = {"soft-prompt": _soft_prompt, "culturespa": _culturespa}[settings.experiment]
        choice, plan_host, programs_of = make(settings, topology, files, Path(scratch))
        before_mesh = time.process_time() - began
        mesh = make_mesh(devices, **choice.sizes)
        began = time.process_time()
        planned = plan_host(mesh)
        host_seconds = before_mesh + time.process_time() - began
        _log.info(f"{settings.experiment} on {topology.name}: {choice.describe()}")
        programs = programs_of(mesh, planned)
        needs = []
        for done, program in enumerate(programs):
            fields = {"compiling": program.name}
            on_progress(Progress("program", done, len(programs), "programs", fields=fields))
            needs.append(measure_program(program))
        on_progress(Progress("program", len(programs), len(programs), "programs"))
    return ExperimentPlan(
        settings.experiment, settings.model, topology, choice, tuple(needs), host_seconds
    )


# The mesh's sizes; what is planned on the host; and the programs that follow from it.
Made = tuple[MeshChoice, Callable[[Mesh], Any], Callable[[Mesh, Any], Sequence[Program]]]


def _soft_prompt(
    settings: PlanSettings, topology: Topology, files: ModelFiles, scratch: Path
) -> Made:
    countries = _countries(settings)
    given = settings.experiment_strategy
    # The targets' values do not matter to a plan, and not every country has published ones.
    edition = scratch / "targets.csv"
    with edition.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("group", *DIMENSIONS))
        rows.writerows((country, *(50 for _ in DIMENSIONS)) for country in countries)
    run = SoftPromptSettings(
        countries=countries,
        edition=str(edition),
        held_out=settings.survey,
        presentations=settings.presentations,
        seeds=(0,) if settings.seeds is None else tuple(range(settings.seeds)),
        **settings.survey_options(),
        prompt=settings.prompt,
        attention=settings.attention,
        chunk=settings.chunk,
        model_parallel=settings.model_parallel,
        **({} if given is None else {"strategy": given}),
    )
    problem = read_problem(run, files)
    choice = choose_mesh(
        files.config,
        topology.num_chips,
        topology.program_bytes,
        run.candidates,
        search_dims=run.prompt.dims(files.config.hidden_size),
        searches=len(run.entries),
        model_parallel=run.model_parallel,
    )

    def programs_of(mesh: Mesh, answers: soft_prompt.AnswerPlans) -> Sequence[Program]:
        execution = choose_execution(problem, mesh, {"attention": run.attention})
        search = soft_prompt.fitting_search(problem, mesh, execution, topology.program_bytes)
        return soft_prompt.run_programs(problem, mesh, search, answers, topology.program_bytes)

    return choice, lambda mesh: soft_prompt.plan_answers(problem), programs_of


def _culturespa(
    settings: PlanSettings, topology: Topology, files: ModelFiles, scratch: Path
) -> Made:
    run = CultureSPASettings(
        survey=settings.survey,
        **settings.survey_options(),
        countries=_countries(settings),
        train=settings.train,
        lora=settings.lora,
        **{name: getattr(settings, name) for name in _OF_CULTURESPA},
    )
    check_settings(run)
    run, notes = resolve_settings(run, files)
    for note in notes:
        _log.info(note)
    inputs = read_inputs(run, files)
    choice = choose_mesh(
        files.config,
        topology.num_chips,
        topology.program_bytes,
        None,
        model_parallel=run.model_parallel,
    )
    questions = culturespa.expected_questions(run, inputs, most=None)

    def plan_host(mesh: Mesh) -> Sequence[Program]:
        return culturespa.run_programs(
            run, inputs, mesh, topology.program_bytes, questions, describe=_log.info
        )

    return choice, plan_host, lambda mesh, programs: programs


def _countries(settings: PlanSettings) -> tuple[str, ...]:
    """Return the countries' names; a number N stands for the survey's first N."""
    names = settings.countries
    if len(names) > 1 or not names[0].isdecimal():
        return names
    survey = held_out_survey()
    if settings.survey is not None:
        survey = read_answered(settings.survey, "survey", options=settings, quiet=True)
    known = tuple(survey.distributions)
    if not 1 <= int(names[0]) <= len(known):
        raise UserError(f"`countries` {names[0]}: survey {survey.name!r} has {len(known)}")
    return known[: int(names[0])]


def _row(need: Need, available: int) -> tuple[str, ...]:
    program, m = need.program, need.memory
    if m is None:
        needed = "-" if need.refused_bytes is None else _gib(need.refused_bytes)
        return (program.stage, program.name, "-", "-", "-", needed, f"refused: {need.refusal}")
    return (
        program.stage,
        program.name,
        _gib(m.arguments + m.outputs - m.aliased),
        _gib(m.temporaries),
        _gib(program.beside_bytes),
        _gib(need.bytes),
        f"{need.bytes / available:.0%}",
    )


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
