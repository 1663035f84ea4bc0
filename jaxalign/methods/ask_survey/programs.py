"""Every program that asking a survey executes, from shapes alone, and the check that they fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from jaxalign.answering.batch import default_block_tokens
from jaxalign.answering.block_plan import plan_blocks, with_one_shape
from jaxalign.answering.block_program import answer_program
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.model import ModelFiles
from jaxalign.methods.ask_survey.inputs import Job
from jaxalign.methods.ask_survey.settings import AskSettings
from jaxalign.methods.reply_programs import reply_programs
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.programs import Need, Program, check_programs


def plan_jobs(settings: AskSettings, jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Return the jobs with their questions cut into blocks.

    Adapters that are asked for as many conditions share a shape, and so a compiled program.
    """
    block_tokens = settings.block_tokens or default_block_tokens(target_platform())
    plans = [plan_blocks(job.questions.conversations, block_tokens) for job in jobs]
    alike: dict[tuple[bool, int], list[int]] = {}
    for n, job in enumerate(jobs):
        alike.setdefault((job.adapter is None, len(job.asked)), []).append(n)
    for numbers in alike.values():
        shaped = with_one_shape([plans[n] for n in numbers])
        for n, plan in zip(numbers, shaped, strict=True):
            plans[n] = plan
    return tuple(
        dataclasses.replace(job, questions=dataclasses.replace(job.questions, plan=plan))
        for job, plan in zip(jobs, plans, strict=True)
    )


def check_memory(
    settings: AskSettings,
    files: ModelFiles,
    jobs: Sequence[Job],
    mesh: Mesh,
    on_progress: OnProgress = ignore,
) -> tuple[Need, ...]:
    """Compile and check every program of a run; UserError names one that does not fit."""
    device = mesh.local_devices[0]
    if settings.reading == "exact":
        programs = [_exact_program(settings, files, job, mesh) for job in jobs]
        # Jobs of one shape share a program: it is checked once.
        shapes = [(job.questions.plan.shape, job.lora) for job in jobs]
        programs = [program for n, program in enumerate(programs) if shapes.index(shapes[n]) == n]
    else:
        programs = _sampled_programs(settings, files, jobs, mesh, available_bytes(device))
    return check_programs(programs, device, on_progress)


def _exact_program(settings: AskSettings, files: ModelFiles, job: Job, mesh: Mesh) -> Program:
    jitted, arguments = answer_program(
        files.config,
        mesh,
        job.questions.plan.shape,
        extra_rows=len(job.questions.extra_ExD),
        lora=job.lora,
        weights=settings.weights,
        per_token=job.questions.asked.per_token,
    )
    what = "answers" if job.adapter is None else f"answers with adapter {job.adapter}"
    remedy = "lower `block_tokens`, or split the weights over more devices (`model_parallel`)"
    return Program.of(what, "answer", jitted, arguments, remedy=remedy, unit="block")


def _sampled_programs(
    settings: AskSettings,
    files: ModelFiles,
    jobs: Sequence[Job],
    mesh: Mesh,
    available: int | None,
) -> list[Program]:
    """Return the programs that write replies; those of the job with the longest questions."""
    job = max(jobs, key=lambda job: job.questions.conversations.lengths_N.max())
    conversations = job.questions.conversations
    return reply_programs(
        files,
        mesh,
        settings.answering,
        replies=len(conversations) * settings.runs,
        prompt_tokens=int(conversations.lengths_N.max()),
        batch_size=settings.batch_size,
        available=available,
        stage="answer",
        weights=settings.weights,
        lora=job.lora,
        extra_rows=len(job.questions.extra_ExD),
    )
