"""Every program that a soft-prompt run executes, from shapes alone.

The run lists its programs with `run_programs` and checks them before it loads or writes anything;
`jaxalign plan --experiment soft-prompt` lists the same for chips that are not here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.batch import default_block_tokens
from jaxalign.answering.block_plan import BlockPlan, plan_blocks
from jaxalign.answering.block_program import answer_program
from jaxalign.answering.cost import candidate_flops
from jaxalign.answering.options import prepare_items
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.weights import program_params
from jaxalign.methods.ask import ANSWERING, Questions, Sampled
from jaxalign.methods.reply_programs import reply_programs
from jaxalign.methods.soft_prompt.answers import (
    baseline_questions,
    history_questions,
    kept_generations,
    plans_of_one_shape,
    reply_questions,
    tuned_questions,
)
from jaxalign.methods.soft_prompt.control import (
    GRADIENT_STEPS_PER_DISPATCH,
    control_entries,
    lower_control,
)
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.methods.soft_prompt.sampled import make_questions
from jaxalign.methods.soft_prompt.search import ExecutionPlan, abstract_inputs, lower_search
from jaxalign.runtime.hosts import agreed
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.programs import (
    CHECKING,
    Need,
    Program,
    check_programs,
    measure_program,
)
from jaxalign.runtime.sharding import MODEL, POPULATION

_SMALLER = (
    "split the weights over more devices (`model_parallel`), or store them with `weights` int8"
)


@dataclasses.dataclass(frozen=True)
class AnswerPlans:
    """What the runs asks besides the search, planned on the host: the shapes of its blocks.

    Attributes:
        baselines: Of both surveys under the baselines. The surveys may be asked separately.
        tuned: Of both surveys under the prompts of every method, and under earlier prompts.
        prompt_rows: Embeddings of these prompts.
        replies: What replies are drawn to, by stage; empty where none are.
    """

    baselines: tuple[BlockPlan, ...]
    tuned: tuple[BlockPlan, ...]
    prompt_rows: int
    replies: Mapping[str, Questions]


@dataclasses.dataclass(frozen=True)
class SearchPrograms:
    """How the search is computed, and the programs that do it, in the order of execution."""

    execution: ExecutionPlan
    programs: tuple[Program, ...]


def plan_answers(problem: Problem) -> AnswerPlans:
    """Plan the blocks of both surveys under the baselines and under the tuned prompts."""
    settings = problem.settings
    # The starts, the tuned prompts, and those of the gradient control.
    prompts = len(settings.entries) * (3 if settings.gradient_steps else 2)
    block_tokens = default_block_tokens(target_platform())
    # What they hold does not matter to the plan, so that all of them may be the same zeros.
    unknown = np.zeros((settings.prompt.length, problem.model.config.hidden_size), np.float32)
    rows, baselines = prompts * settings.prompt.length, baseline_questions(problem)
    tuned = tuned_questions(problem, [unknown] * prompts)
    if earlier := len(kept_generations(problem)):
        tuned += history_questions(problem, [unknown] * earlier * len(settings.entries), rows)
    return AnswerPlans(
        baselines=tuple(plan_blocks(asked.conversations, block_tokens) for asked in baselines),
        tuned=tuple(plans_of_one_shape(tuned, block_tokens)),
        prompt_rows=rows,
        replies={
            "baselines": reply_questions(problem),
            "tuned prompts": reply_questions(problem, [unknown] * prompts),
        }
        if settings.samples
        else {},
    )


def run_programs(
    problem: Problem,
    mesh: Mesh,
    search: SearchPrograms,
    answers: AnswerPlans,
    available: int | None = None,
) -> tuple[Program, ...]:
    """Return the programs of a run, in the order in which it executes them.

    Args:
        problem: What is searched.
        mesh: The devices, which may be only described.
        search: The search, from `fitting_search`.
        answers: What is asked besides, from `plan_answers`.
        available: Bytes that programs may use on a device; None if that is not known.
    """
    programs = []
    if problem.settings.prompt.placement != "front":
        programs.append(_text_program(problem, mesh, search.execution))
    # The questions that the search has prepared stay on the devices to the end of the run.
    prepared = _prepared_bytes(problem, mesh, search.execution)
    programs += [
        *_answer_programs(problem, mesh, answers.baselines, 0, "baselines", prepared),
        *_answer_replies(problem, mesh, answers, "baselines", available),
        *search.programs,
    ]
    if problem.settings.gradient_steps:
        programs.append(_control_program(problem, mesh, search.execution))
    programs += _answer_programs(
        problem, mesh, answers.tuned, answers.prompt_rows, "tuned prompts", prepared
    )
    programs += _answer_replies(problem, mesh, answers, "tuned prompts", available)
    return tuple(programs)


def _answer_replies(
    problem: Problem, mesh: Mesh, answers: AnswerPlans, stage: str, available: int | None
) -> list[Program]:
    """Return the programs that write the replies of a stage; none where none are drawn."""
    asked = answers.replies.get(stage)
    if asked is None:
        return []
    drawn = Sampled(runs=problem.settings.replies)
    return reply_programs(
        problem.model,
        mesh,
        drawn.sampling,
        replies=len(asked.conversations) * drawn.runs,
        prompt_tokens=int(asked.conversations.lengths_N.max()),
        batch_size=drawn.batch_size,
        available=available,
        stage=stage,
        what=f"to the tuned survey, {stage}",
        weights=problem.settings.weights,
        extra_rows=len(asked.extra_ExD),
    )


def _answer_programs(
    problem: Problem,
    mesh: Mesh,
    plans: Sequence[BlockPlan],
    extra_rows: int,
    stage: str,
    beside_bytes: int,
) -> list[Program]:
    """Return the program of each shape among the plans."""
    settings, config = problem.settings, problem.model.config
    shapes = list(dict.fromkeys(plan.shape for plan in plans))
    programs = []
    for number, shape in enumerate(shapes, start=1):
        jitted, arguments = answer_program(
            config,
            mesh,
            shape,
            extra_rows=extra_rows,
            weights=settings.weights,
            per_token=problem.asked.per_token,
        )
        which = f" ({number} of {len(shapes)})" if len(shapes) > 1 else ""
        programs.append(
            Program.of(
                f"answers to both surveys, {stage}{which}",
                stage,
                jitted,
                arguments,
                beside_bytes=beside_bytes,
                remedy=_SMALLER,
                unit="block",
            )
        )
    return programs


def _text_program(problem: Problem, mesh: Mesh, execution: ExecutionPlan) -> Program:
    """Return what computes the text before the soft prompts, once for all of them."""
    config, layout = problem.model.config, problem.layout
    prepare = jax.jit(lambda params: prepare_items(config, params, layout, execution.kernel))
    return Program.of(
        "text before the prompts",
        "search",
        prepare,
        (program_params(config, mesh, problem.settings.weights),),
        remedy=_SMALLER,
    )


def _prepared_bytes(problem: Problem, mesh: Mesh, execution: ExecutionPlan) -> int:
    """Return the bytes per device of what the search reads besides the weights."""
    inputs = abstract_inputs(
        problem.model.config,
        problem.layout,
        problem.settings.prompt,
        mesh,
        execution.kernel,
        entries=len(problem.settings.entries),
        objective=problem.objective(),
    )
    # The weights are left out: they are arguments of the programs that this is counted beside.
    inputs = inputs.replace(items=inputs.items.replace(params=None))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(inputs))


def fitting_search(
    problem: Problem, mesh: Mesh, execution: ExecutionPlan, available: int | None
) -> SearchPrograms:
    """Halve the number of prompts computed at a time until the search fits into memory.

    A number that is fixed stays; so does one prompt at a time, which `check_programs` then refuses.
    Where replies are the fitness, no program computes prompts: replies are written.

    Args:
        problem: What is searched.
        mesh: The devices, which may be only described.
        execution: How the search would be computed.
        available: Bytes that programs may use on a device; None if that is not known.
    """
    if problem.settings.reading == "sampled":
        return SearchPrograms(execution, _reply_programs(problem, mesh, execution, available))
    while True:
        program = search_program(problem, mesh, execution)
        if not available or execution.fixed or execution.chunk == 1:
            break
        if measure_program(program).fits(available):
            break
        # Activations, most of what a search needs, shrink with the number of prompts.
        execution = dataclasses.replace(execution, chunk=execution.chunk // 2)
    first = search_program(problem, mesh, execution, first=True)
    return SearchPrograms(execution, (first, program))


def _reply_programs(
    problem: Problem, mesh: Mesh, execution: ExecutionPlan, available: int | None
) -> tuple[Program, ...]:
    """Return the programs that write the replies of a generation."""
    settings, questions = problem.settings, make_questions(problem)
    return tuple(
        reply_programs(
            problem.model,
            mesh,
            ANSWERING,
            replies=settings.candidates * questions.count * settings.replies,
            prompt_tokens=questions.longest,
            batch_size=execution.slots,
            available=available,
            stage="search",
            what="of a generation",
            weights=settings.weights,
            extra_rows=settings.candidates * settings.prompt.length,
        )
    )


def search_program(
    problem: Problem, mesh: Mesh, execution: ExecutionPlan, first: bool = False
) -> Program:
    """Return one dispatch of generations of all countries' searches, or the first generation."""
    settings, config = problem.settings, problem.model.config
    generations = 0 if first else min(settings.save_every, settings.generations)
    entries = settings.entries
    # Of each device, in whole chunks.
    per_device = -(-settings.candidates // mesh.shape[POPULATION])
    computed = -(-per_device // execution.chunk) * execution.chunk
    flops = None
    if problem.settings.prompt.placement != "after":
        flops = computed * candidate_flops(config, problem.layout).total / mesh.shape[MODEL]
    return Program(
        name="first generation" if first else "generations of the search",
        stage="search",
        lower=lambda: lower_search(
            config,
            problem.layout,
            settings.strategy,
            settings.prompt,
            mesh,
            entries=entries,
            chunk=execution.chunk,
            generations=generations,
            kernel=execution.kernel,
            objective=problem.objective(),
            weights=settings.weights,
            read=problem.read,
        ),
        remedy=f"give a smaller `population`, or a `prompt.projection`; or {_SMALLER}",
        unit="generation",
        units=max(1, generations),
        formula_flops=flops,
    )


def _control_program(problem: Problem, mesh: Mesh, execution: ExecutionPlan) -> Program:
    settings, config = problem.settings, problem.model.config
    return Program(
        name="steps of the gradient control",
        stage="gradient control",
        lower=lambda: lower_control(
            config,
            problem.layout,
            settings.prompt,
            mesh,
            entries=control_entries(settings.prompt, settings.entries),
            steps=min(GRADIENT_STEPS_PER_DISPATCH, settings.gradient_steps),
            total_steps=settings.gradient_steps,
            learning_rate=settings.gradient_rate,
            kernel=execution.kernel,
            objective=problem.objective().differentiable(),
            weights=settings.weights,
            read=problem.read,
        ),
        remedy="`gradient_steps` 0 leaves the gradient control out",
        unit="step",
        units=min(GRADIENT_STEPS_PER_DISPATCH, settings.gradient_steps),
    )


def check_run(
    problem: Problem, mesh: Mesh, execution: ExecutionPlan, on_progress: OnProgress = ignore
) -> tuple[ExecutionPlan, tuple[Need, ...]]:
    """Compile and check every program of a run, before anything is loaded or written.

    Args:
        problem: What is searched.
        mesh: The devices.
        execution: How the search would be computed.
        on_progress: Called before each program.

    Returns:
        How the search is computed, with as many prompts at a time as fit; and what each program
        needs.

    Raises:
        UserError: One program does not fit; the message names it.
    """
    device = mesh.local_devices[0]
    # Process 0's memory counts for all: processes with different chunks would wait for each other.
    available = agreed(available_bytes(device) or 0)
    on_progress(Progress(CHECKING, 0, 1, "programs", fields={"compiling": "the search"}))
    search = fitting_search(problem, mesh, execution, available)
    programs = run_programs(problem, mesh, search, plan_answers(problem), available)
    needs = check_programs(programs, device, on_progress)
    return search.execution, needs
