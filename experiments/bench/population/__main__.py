"""How fast a population of soft prompts is asked, beside Hugging Face and torch in the same run.

    python -m experiments.bench.population                                # small, float32
    python -m experiments.bench.population --size pocket --population 8   # a minute
    python -m experiments.bench.population --dtype bfloat16 --json bench.json
    python -m experiments.bench.population --items stem-free              # nothing to share
    python -m experiments.bench.population --size 8b --dtype bfloat16 --items published   # a GPU

Five ways to the same option log-probabilities of 24 items under every prompt, on the same weights
and the same machine: ours; `LlamaForCausalLM` one item at a time as published code does it, as a
padded batch, and as a padded batch behind a cached prefix; and a plain `vmap` in JAX. Answers are
compared before any speed is shown. Each framework has a process of its own, one works at a time,
and all methods take turns in random order: a ratio is theirs over ours within one repeat, and what
is shown is the median over the repeats with its range. Fractions are of the fastest matrix product
that the same process did in the same repeat, counted in useful FLOPs: the least that exact answers
take (`jaxalign.answering.cost.lower_bound`), whatever a method really computes.

Needs torch, but for `--against jax_vmap`. Runs on the first GPU where both frameworks have one. At
the default size expect ten minutes or so on 2 idle cores. They must be idle: on a busy machine
threads of one product wait for each other, torch's longest, and ratios then flatter us (a line
after the tables says so).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from experiments.bench.population.items import (
    Kind,
    Size,
    ask_items,
    model_config,
    model_folder,
    option_table,
)
from experiments.bench.population.measure import framework, measure
from experiments.bench.population.plot import draw
from experiments.bench.population.report import make_result, show
from experiments.bench.population.worker import Work
from jaxalign.answering.kernel_choice import KernelOption
from jaxalign.answering.plan import plan_layout
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.config import DType, LlamaConfig
from jaxalign.runs import write_json
from jaxalign.runs.console import main

Baseline = Literal["hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Ask a population of soft prompts in five ways; compare answers, speed and memory."""

    size: Size = "small"
    """Of the model: pocket (ships with the package), small (8 layers of width 512), 1b and 8b
    (Llama-3's shapes); all but pocket with random weights."""
    dtype: DType = "float32"
    """Of weights and activations."""
    population: int = 32
    """Soft prompts; each is asked all items."""
    repeats: int = 5
    """Of every method, interleaved."""
    against: tuple[Baseline, ...] = ("hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap")
    """What to compare with; jax_vmap by itself needs no torch."""
    items: Kind = "module"
    """module (the package's 24 items, which share stems), stem-free (as many and as long, but no
    two begin alike) or published (stem-free too, at the lengths that goals for a GPU are given in:
    a header of 40 tokens, 24 items of 30 to 120, 1,888 in all)."""
    placement: Literal["front", "system"] = "system"
    """Where the soft prompt stands: system (in the system message) or front (before everything)."""
    prompt_length: int = 16
    """Soft prompt tokens."""
    chunk: int | None = None
    """Prompts computed at a time by ours and by vmap; default: by the rule of the experiments."""
    attention: KernelOption = "auto"
    """Kernel of ours; auto: the fastest here, measured first."""
    seed: int = 0
    """Of weights, prompts and the order of turns."""
    json: Path | None = None
    """Also write all figures to this file."""
    plot: Path = Path("bench_population.png")
    """The picture."""

    def __post_init__(self) -> None:
        for name in ("population", "repeats", "prompt_length", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if not self.against or len(set(self.against)) < len(self.against):
            raise UserError(f"against={list(self.against)}: name at least one, and none twice")
        check_new_file(self.json, "json")
        check_new_file(self.plot, "plot")


def run(config: Config) -> dict[str, Any]:
    """The whole benchmark; returns the figures. See the module's docstring."""
    return bench(config, model_config(config.size, config.dtype))


def bench(config: Config, llama: LlamaConfig) -> dict[str, Any]:
    """`run` with a model of any shape."""
    if any(framework(method) == "torch" for method in config.against):
        refuse_missing_torch()
    with tempfile.TemporaryDirectory(prefix="jaxalign-bench-") as scratch:
        work = make_work(config, llama, model_folder(config.size, Path(scratch)))
        layout = plan_layout(work.before, work.prompt_length, work.items, work.spellings())
        measured = measure(work, config.against, config.repeats, Path(scratch))
    result = make_result(config, work, layout, measured)
    show(result)
    draw(config.plot, result)
    print(f"picture: {config.plot}")
    if config.json is not None:
        write_json(config.json, result)
        print(f"figures: {config.json}")
    return result


def refuse_missing_torch() -> None:
    """UserError where torch cannot be imported."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "torch is not installed: pip install 'jaxalign[parity]', or use --against jax_vmap"
        )


def make_work(config: Config, llama: LlamaConfig, folder: Path) -> Work:
    """What both workers are told."""
    before, items, options = ask_items(config.items, config.placement)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return Work(
        llama=llama,
        folder=folder,
        before=before,
        items=items,
        options_QxOxS=option_table(options),
        prompt_length=config.prompt_length,
        population=config.population,
        chunk=config.chunk,
        attention=config.attention,
        seed=config.seed,
        threads=len(cores),
    )


if __name__ == "__main__":
    main(run, Config)
