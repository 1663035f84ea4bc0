"""Run the programs of a soft-prompt run and of a training, and print how much memory each takes.

    python -m tests.support.program_memory FOLDER STAGE

Prints a line of JSON for each program of a stage: the bytes that its compiler reports, and
`measured`, the anonymous bytes that the process held more while it ran than before, with its
arguments there already.

The programs are those that a run lists (`run_programs`) and compiles before anything starts. Their
arguments are ones: so every loop whose length is an argument runs.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.sampling import Sampling
from jaxalign.methods.reply_programs import reply_programs
from jaxalign.methods.soft_prompt.problem import read_problem
from jaxalign.methods.soft_prompt.programs import fitting_search, plan_answers, run_programs
from jaxalign.methods.soft_prompt.search import choose_execution
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.memory import Memory
from jaxalign.runtime.programs import Program
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.program import expected_shape, train_program
from jaxalign.training.step import TrainConfig
from tests.support.memory_probe import PeakSampler, anonymous_bytes


def programs(folder: Path) -> Iterator[Program]:
    """Yield the programs: baselines, search, gradient control, scoring, decoding, training."""
    settings = Settings(
        model=folder,
        dtype="float32",
        countries=("USA", "CHN"),
        prompt=SoftPromptConfig(length=8),
        strategy=Strategy(population=4),
        generations=2,
        save_every=1,
        gradient_steps=2,
        icl_examples=2,
    )
    problem, mesh = read_problem(settings), make_mesh(jax.devices()[:1])
    execution = choose_execution(problem, mesh, {})
    search = fitting_search(problem, mesh, execution, None)
    yield from run_programs(problem, mesh, search, plan_answers(problem))
    yield from reply_programs(
        problem.model,
        mesh,
        Sampling(max_new_tokens=64),
        replies=64,
        prompt_tokens=200,
        batch_size=64,
        available=None,
        stage="write",
    )
    train = TrainConfig(
        batch=8, tokens_per_pass=2048, learning_rate=1e-3, remat=False, unroll=False
    )
    config, lora = problem.model.config, LoraConfig()
    for adapters in (1, 4):
        lengths = np.random.default_rng(0).integers(100, 200, 256)
        shape = expected_shape(config, train, lora, mesh, lengths, 2, adapters)
        jitted, arguments = train_program(config, train, lora, mesh, shape)
        name = f"training of {adapters} adapters"
        yield Program.of(name, "fine-tune", jitted, arguments)


def taken(program: Program) -> dict[str, int]:
    """Return what the compiler reports of a program, and what running it takes."""
    memory = Memory.of(program.compiled)
    for _ in range(2):  # the first run also starts threads, whose memory stays
        arguments = jax.tree.map(_ones, program.compiled.args_info)
        jax.block_until_ready(arguments)
        gc.collect()
        before = anonymous_bytes()
        with PeakSampler() as peak:
            args, kwargs = arguments
            jax.block_until_ready(program.compiled(*args, **kwargs))
        del args, kwargs, arguments
    return {
        **dataclasses.asdict(memory),
        "measured": peak.bytes - before,
    }


def _ones(argument: Any) -> jax.Array:
    return jax.device_put(np.ones(argument.shape, argument.dtype))


def main(folder: Path, stage: str) -> None:
    for program in programs(folder):
        if program.stage != stage:
            continue
        print(json.dumps({"name": program.name, **taken(program)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
