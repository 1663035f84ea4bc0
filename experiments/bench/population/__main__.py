"""Measure how fast a population of soft prompts is evaluated, against Hugging Face and torch.

    python -m experiments.bench.population                                # small, float32
    python -m experiments.bench.population --size pocket --population 8   # a minute
    python -m experiments.bench.population --dtype bfloat16 --json bench.json
    python -m experiments.bench.population --items stem-free              # nothing to share
    python -m experiments.bench.population --model models/smollm2 --dtype bfloat16 --population 8
    python -m experiments.bench.population --size llama3-8b --dtype bfloat16 --items published

Five methods compute the same option log-probabilities of 24 items under every prompt, with the same
weights on the same machine: jaxalign; `LlamaForCausalLM` with one item at a time (as published code
does it), with a padded batch, and with a padded batch behind a cached prefix; and a plain `vmap` in
JAX. The answers are compared before any speed is shown. Each framework runs in its own process,
only one works at a time, and the methods take turns in random order. A ratio is a method's time
divided by jaxalign's time in the same repeat; the median over the repeats and the range are shown.
The fraction of peak divides the rate of useful FLOPs by the fastest matrix product that the same
process reached in the same repeat; of the fastest, by the fastest of both processes. Useful FLOPs
are the least that exact answers take (`jaxalign.answering.cost.lower_bound`), whatever a method
really computes.

Needs torch, except with `--against jax_vmap`. Runs on the first GPU if both frameworks have one. At
the default size it takes about ten minutes on 2 idle cores. They must be idle: on a busy machine
the threads of one matrix product wait for each other, torch's longest, and the ratios then flatter
jaxalign (a warning after the tables says so).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

from experiments.bench.models import Size, model_config, model_folder
from experiments.bench.population.items import Kind, ask_items, option_table
from experiments.bench.population.measure import framework, measure
from experiments.bench.population.plot import draw
from experiments.bench.population.report import make_result, show
from experiments.bench.population.work import Work
from jaxalign.answering.kernel_choice import KernelOption
from jaxalign.answering.plan import plan_layout
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.config import DType, LlamaConfig
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runs import write_json
from jaxalign.runs.console import main

Baseline = Literal["hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Evaluate a population of soft prompts with five methods; compare answers and speed."""

    size: Size = "small"
    """Model size: pocket (ships with the package), small (8 layers of width 512), or the shape of a
    real model. All but pocket have random weights."""
    model: Path | None = None
    """Folder of a model in the Hugging Face layout, in place of a size."""
    dtype: DType = "float32"
    """Data type of weights and activations."""
    population: int = 32
    """Number of soft prompts; each is evaluated on all items."""
    repeats: int = 5
    """Number of timed runs of every method; the methods take turns."""
    against: tuple[Baseline, ...] = ("hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap")
    """Methods to compare with; jax_vmap alone needs no torch."""
    items: Kind = "module"
    """Items: module (the package's 24 items, which share stems), stem-free (the same number and
    lengths, but no two begin alike) or published (stem-free, with the lengths of the cost model for
    GPUs: a header of 40 tokens and 24 items of 30 to 120 tokens, 1,888 in all)."""
    placement: Literal["front", "system"] = "system"
    """Position of the soft prompt: system (in the system message) or front (before everything)."""
    prompt_length: int = 16
    """Number of soft prompt tokens."""
    chunk: int | None = None
    """Number of prompts that jaxalign and vmap compute at a time; by default chosen as in the
    experiments."""
    attention: KernelOption = "auto"
    """Attention kernel of jaxalign; auto measures all kernels first and takes the fastest."""
    seed: int = 0
    """Seed of the weights, the prompts and the order of turns."""
    json: Path | None = None
    """File to which all figures are also written (JSON)."""
    plot: Path = Path("bench_population.png")
    """File for the plot (PNG)."""

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
    """Run the benchmark with the configured model size and return its figures."""
    return bench(config, model_config(config.size, config.dtype, config.model))


def bench(config: Config, llama: LlamaConfig) -> dict[str, Any]:
    """Run the benchmark with a model of any shape and return its figures.

    Raises:
        UserError: If torch is needed and missing, memory is short, or the answers differ.
    """
    if any(framework(method) == "torch" for method in config.against):
        refuse_missing_torch()
    with tempfile.TemporaryDirectory(prefix="jaxalign-bench-") as scratch:
        work = make_work(config, llama, model_folder(config.size, Path(scratch), config.model))
        layout = plan_layout(work.before, work.prompt_length, work.items, work.spellings())
        measured = measure(work, config.against, config.repeats, Path(scratch))
    result = make_result(config, work, layout, measured)
    show(result)
    draw(config.plot, result)
    print(f"Wrote {config.plot}")
    if config.json is not None:
        write_json(config.json, result)
        print(f"Wrote {config.json}")
    return result


def refuse_missing_torch() -> None:
    """Raise UserError if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "torch is not installed: pip install 'jaxalign[parity]', or use --against jax_vmap"
        )


def make_work(config: Config, llama: LlamaConfig, folder: Path) -> Work:
    """Return the work that both worker processes receive."""
    before, items, options = ask_items(config.items, config.placement, config.model or MODEL_FOLDER)
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
