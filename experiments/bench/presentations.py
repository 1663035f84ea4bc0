"""Time the search's evaluation of prompts with one, two and four presentations of the items.

    python -m experiments.bench.presentations --model smollm2

Forms of an item share what they begin with, so that two cost less than twice as much. The three
evaluations take turns in random order, and a ratio is of two times of one turn.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.bench.peers import machine_facts, paired_ratios, spread, turns, warn_if_busy
from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.cost import candidate_flops
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.answering.plan import Layout
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.lm.model import LM, load_model
from jaxalign.prompts import load_prompts
from jaxalign.runs import plain, versions, write_json
from jaxalign.runs.console import main, print_table
from jaxalign.runtime.memory import busy_chunk
from jaxalign.surveys.presentations import FORMS, show
from jaxalign.surveys.survey import vsm

GRID = {"one": FORMS[:1], "two": FORMS[:2], "four": FORMS}
_PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the evaluation of prompts with one, two and four presentations of the 24 items."""

    model: str | None = None
    """Model: a Hugging Face folder, a GGUF file, a hub id or smollm2; default: the pocket model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of weights and activations; auto is float32 for the pocket model and bfloat16 for
    others."""
    candidates: int = 16
    """Number of prompts that are evaluated together."""
    repeats: int = 5
    """Number of timed evaluations of each."""
    json: Path | None = None
    """File to which the figures are also written."""

    def __post_init__(self) -> None:
        if min(self.candidates, self.repeats) < 1:
            raise UserError("`candidates` and `repeats` must be at least 1")
        check_new_file(self.json, "json")


def bench(config: Config) -> None:
    """Measure, print a table, and write the figures."""
    machine = machine_facts()
    warn_if_busy(machine)
    lm = load_model(config.model, dtype=config.dtype)
    layouts = {name: _layout(lm, forms) for name, forms in GRID.items()}
    evaluations = {name: _evaluation(lm, x, config.candidates) for name, x in layouts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in GRID}
    for _, name in turns(list(GRID), config.repeats):
        began = time.perf_counter()
        jax.block_until_ready(evaluations[name]())
        seconds[name].append((time.perf_counter() - began) / config.candidates)
    result: dict[str, Any] = {
        "settings": plain(config),
        "model": Path(lm.name).name,
        "dtype": lm.config.dtype,
        "machine": machine,
        "versions": versions(),
        "presentations": {
            name: {
                "forms": forms,
                "tokens_asked": layouts[name].tokens_asked,
                "tokens_computed": layouts[name].tokens_computed,
                "flops": candidate_flops(lm.config, layouts[name]).total,
                "seconds_per_candidate": spread(seconds[name]),
                "times_as_long_as_one": spread(paired_ratios(seconds[name], seconds["one"])),
            }
            for name, forms in GRID.items()
        },
    }
    _show(result)
    if config.json is not None:
        write_json(config.json, result)


def _layout(lm: LM, forms: tuple[str, ...]) -> Layout:
    """Return the 24 items in several forms behind one soft prompt, as the search lays them out."""
    items = show(vsm().items, forms).shown
    return soft_prompt_layout(lm.tokenizer, load_prompts(None), items, "front", _PROMPT_TOKENS)


def _evaluation(lm: LM, layout: Layout, candidates: int) -> Callable[[], Any]:
    """Compile the evaluation of random prompts, and return it as a function without arguments."""
    prepared = prepare_items(lm.config, lm.params, layout)
    shape = candidates, layout.prompt_length, lm.config.hidden_size
    prompts_PxMxD = 0.02 * jax.random.normal(jax.random.key(0), shape)
    chunk = min(candidates, busy_chunk(layout.tokens_computed, jax.devices()[0].platform))
    jitted = jax.jit(option_log_probs, static_argnums=(0, 3))
    evaluate = functools.partial(jitted, lm.config, prepared, prompts_PxMxD, chunk)
    jax.block_until_ready(evaluate())
    return evaluate


def _show(result: dict[str, Any]) -> None:
    first = result["presentations"]["one"]
    rows = []
    for name, part in result["presentations"].items():
        seconds, ratio = part["seconds_per_candidate"], part["times_as_long_as_one"]
        rows.append(
            [
                f"{name}: {', '.join(part['forms'])}",
                f"{part['tokens_asked']:,}",
                f"{part['tokens_computed']:,}",
                f"{part['tokens_computed'] / first['tokens_computed']:.2f}",
                f"{part['flops'] / first['flops']:.2f}",
                f"{seconds['median']:.3f}",
                f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
            ]
        )
    print_table(
        f"A candidate on 24 items, {result['model']}, {result['dtype']}",
        ("presentations", "asked", "computed", "times one", "FLOPs", "s", "times as long"),
        rows,
    )


if __name__ == "__main__":
    main(bench, Config)
