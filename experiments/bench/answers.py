"""Time exact answers to a whole survey, beside the search's evaluation of prompts.

    python -m experiments.bench.answers --model models/smollm2 --survey data/culturespa

A survey is asked of a model in CultureSPA's prompt styles: unaware, P1 and P2 for every country,
and a sample of the three styles with examples, whose prompts are several times longer. In the same
process the soft-prompt search evaluates candidates on the 24 items of the values module. Both are
measured in tokens that a device computes in a second. From the number of tokens, and the FLOPs of
the compiled block, the benchmark says how long the paper's 13,000 questions would take for Llama-3
of 8 billion weights on one H200; that is arithmetic on an assumed share of the chip's published
peak, not a measurement.
"""

from __future__ import annotations

import dataclasses
import itertools
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxalign.answering.batch import answer_exact, default_block_tokens
from jaxalign.answering.block_plan import BlockPlan, plan_blocks
from jaxalign.answering.block_program import answer_program
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.conversations import soft_prompt_layout
from jaxalign.answering.cost import candidate_flops, device_name, matmul_peak
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.core.progress import OnProgress, Progress
from jaxalign.lm.config import PRESETS
from jaxalign.lm.model import LM, load_model
from jaxalign.lm.weights import count_params
from jaxalign.methods.culturespa.inputs import Inputs, read_inputs
from jaxalign.methods.culturespa.programs import stand_ins
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.culturespa.styles import Style, encode_styles
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import load_prompts
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.runtime.memory import busy_chunk
from jaxalign.runtime.program_facts import read_program
from jaxalign.runtime.sharding import make_mesh
from jaxalign.surveys.formats import read_survey
from jaxalign.surveys.survey import Survey, vsm

WHOLE: tuple[Style, ...] = ("unaware", "p1", "p2")
WITH_EXAMPLES: tuple[Style, ...] = ("p3", "p1p3", "p2p3")
# What NVIDIA publishes for bfloat16 without sparsity, and the share that is assumed of it.
H200_PEAK, ASSUMED_SHARE = 989e12, 0.4


@dataclasses.dataclass(frozen=True)
class Config:
    """Time exact answers to a survey in every prompt style, beside the search."""

    model: str | None = None
    """Model: a Hugging Face folder, a GGUF file, a hub id or smollm2; default: the pocket model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of weights and activations; auto is float32 for the pocket model and bfloat16 for
    others."""
    survey: Path | None = None
    """Survey with answers by country; default: the simulated society's."""
    countries: int = 18
    """Number of countries, the first that the survey names."""
    sample: int = 500
    """Number of prompts of each style with examples."""
    candidates: int = 8
    """Number of prompts that the search evaluates, three times."""
    questions: int = 13_000
    """Number of questions of the projection; 0 leaves it out."""
    json: Path | None = None
    """File for the figures (JSON)."""

    def __post_init__(self) -> None:
        check_new_file(self.json, "json")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one part computed, in how long.

    Attributes:
        asked: Tokens of all conversations, each whole.
        distinct: Tokens that are computed: what neighbours share counts once.
        padded: Tokens of the blocks, padding too; what the device works on.
        flops: Of matrix products, padding too.
        seconds: By the clock, compilation apart.
        processor_seconds: Of all cores.
    """

    name: str
    conversations: int
    asked: int
    distinct: int
    padded: int
    flops: float
    seconds: float
    processor_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Distinct tokens in a second by the clock."""
        return self.distinct / self.seconds


def bench(config: Config) -> None:
    """Measure all parts, print a table, and write the figures."""
    groups, settings = _countries(config)
    settings = dataclasses.replace(settings, countries=groups)
    # One device, as for the search: several answer a round of blocks at once, which has no first.
    lm = load_model(config.model, dtype=config.dtype, mesh=make_mesh(jax.devices()[:1]))
    inputs = read_inputs(settings, lm.files)
    block_tokens = default_block_tokens(jax.devices()[0].platform)
    parts = [search_part(lm, config.candidates)]
    asked = {"unaware, P1, P2": _in_styles(inputs, WHOLE, inputs.survey)}
    for style in WITH_EXAMPLES:
        conversations = _in_styles(inputs, (style,), inputs.survey)
        asked[f"{style.upper()}, a sample"] = _sample(conversations, config.sample)
    with progress_bars() as on_progress:
        for name, conversations in asked.items():
            plan = plan_blocks(conversations, block_tokens)
            parts.append(answers_part(lm, name, conversations, plan, on_progress))
    peak = matmul_peak(lm.config.dtype)
    show(parts, peak)
    result: dict[str, Any] = {
        "model": lm.folder.name,
        "dtype": lm.config.dtype,
        "device": device_name(),
        "matmul_peak": peak,
        "parts": parts,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if config.questions:
        result["projection"] = project(inputs, settings, config.questions, block_tokens)
        print(result["projection"]["text"])
    if config.json:
        write_json(config.json, result)


def search_part(lm: LM, candidates: int) -> Measured:
    """Evaluate random soft prompts on the 24 items, as a generation of the search does."""
    layout = soft_prompt_layout(lm.tokenizer, load_prompts(None), vsm().items, "front", 16)
    prepared = prepare_items(lm.config, lm.params, layout)
    shape = candidates, layout.prompt_length, lm.config.hidden_size
    prompts_PxMxD = 0.02 * jax.random.normal(jax.random.key(0), shape)
    chunk = min(candidates, busy_chunk(layout.tokens_computed, jax.devices()[0].platform))
    evaluate = jax.jit(option_log_probs, static_argnums=(0, 3))
    seconds, processor_seconds = _timed(
        lambda: evaluate(lm.config, prepared, prompts_PxMxD, chunk), repeats=3
    )
    tokens = candidates * layout.tokens_computed
    return Measured(
        name="search, 24 items",
        conversations=candidates * len(vsm().items),
        asked=candidates * layout.tokens_asked,
        distinct=tokens,
        padded=tokens,
        flops=candidates * candidate_flops(lm.config, layout).total,
        seconds=seconds,
        processor_seconds=processor_seconds,
    )


def answers_part(
    lm: LM, name: str, conversations: Conversations, plan: BlockPlan, on_progress: OnProgress
) -> Measured:
    """Answer conversations in blocks; the clock starts when the first block has been answered.

    Raises:
        UserError: If all conversations fit into one block.
    """
    if len(plan) < 2:
        raise UserError(f"{name}: {len(plan)} block is too little to time; ask more")
    jitted, arguments = answer_program(lm.config, lm.mesh, plan.shape)
    facts = read_program(jitted.lower(*arguments).compile())
    readings: list[tuple[float, float]] = []

    def watch(progress: Progress) -> None:
        if progress.done:
            readings.append((time.perf_counter(), time.process_time()))
        on_progress(progress)

    answer_exact(
        lm.config, lm.params, conversations, lm.mesh, plan=plan, on_progress=watch, task=name
    )
    seconds, processor_seconds = np.subtract(readings[-1], readings[0]).tolist()
    timed = (len(plan) - 1) / len(plan)  # blocks after the first
    return Measured(
        name=name,
        conversations=len(conversations),
        asked=round(plan.tokens_asked * timed),
        distinct=round(plan.tokens_distinct * timed),
        padded=(len(plan) - 1) * plan.shape.tokens,
        flops=(len(plan) - 1) * facts.dot_flops,
        seconds=seconds,
        processor_seconds=processor_seconds,
    )


def project(
    inputs: Inputs, settings: CultureSPASettings, questions: int, block_tokens: int
) -> dict[str, Any]:
    """Say how long an H200 would take for written questions under unaware, P1 and P2.

    The written questions are the survey's own with their words in another order.
    """
    topics = len({item.topic for item in inputs.survey.items})
    settings = dataclasses.replace(settings, per_topic=-(-questions // topics), seeds=1)
    survey = stand_ins(inputs.survey, settings)[settings.first_seed]
    began = time.process_time()
    plan = plan_blocks(_in_styles(inputs, WHOLE, survey), 4096)
    planning = time.process_time() - began
    llama = PRESETS["llama3-8b"]
    tokens = len(plan) * plan.shape.tokens
    # Attention over gathered keys of a row, and products with all weights but the embeddings.
    pairs = tokens * plan.shape.keys
    weights = count_params(llama) - 2 * llama.vocab_size * llama.hidden_size
    attention = 4 * llama.num_attention_heads * llama.head_dim * llama.num_hidden_layers
    flops = 2.0 * weights * tokens + float(attention) * pairs
    hours = flops / (ASSUMED_SHARE * H200_PEAK) / 3600
    conversations = len(plan.order_N)
    text = (
        f"projected, not measured: {len(survey.items):,} questions x "
        f"{conversations // len(survey.items)} conditions = {conversations:,} conversations, "
        f"{plan.tokens_distinct / 1e6:,.0f} of {plan.tokens_asked / 1e6:,.0f} million tokens "
        f"computed; Llama-3-8B on one H200 at {ASSUMED_SHARE:.0%} of its published "
        f"{H200_PEAK / 1e12:.0f} TFLOP/s: {hours:.1f} hours; "
        f"{planning:.0f} s of processor time to encode and plan"
    )
    return {
        "text": text,
        "conversations": conversations,
        "tokens": tokens,
        "flops": flops,
        "hours": hours,
        "planning_s": planning,
    }


def show(parts: Sequence[Measured], peak: float) -> None:
    """Print all parts in one table; the first is the search."""
    search = parts[0].distinct / parts[0].processor_seconds
    print_table(
        f"Exact answers beside the search (matrix products reach {peak / 1e9:,.0f} GFLOP/s here)",
        (
            "",
            "conversations",
            "computed",
            "padding",
            "s",
            "tokens/s",
            "a core",
            "of search",
            "GFLOP/s",
        ),
        [
            [
                part.name,
                f"{part.conversations:,}",
                f"{part.distinct:,}",
                f"{1 - part.distinct / part.padded:.0%}",
                f"{part.seconds:.1f}",
                f"{part.tokens_per_second:,.0f}",
                f"{part.distinct / part.processor_seconds:,.0f}",
                f"{part.distinct / part.processor_seconds / search:.2f}",
                f"{part.flops / part.seconds / 1e9:,.0f}",
            ]
            for part in parts
        ],
    )


def _countries(config: Config) -> tuple[tuple[str, ...], CultureSPASettings]:
    """Return the survey's first countries, and settings that name model and survey."""
    if config.countries < 1:
        raise UserError(f"`countries` {config.countries} must be at least 1")
    settings = CultureSPASettings(model=config.model, survey=config.survey, dtype=config.dtype)
    survey = held_out_survey() if config.survey is None else read_survey(config.survey)
    return tuple(survey.distributions)[: config.countries], settings


def _in_styles(inputs: Inputs, styles: Sequence[Style], survey: Survey) -> Conversations:
    groups = inputs.tables.countries
    return encode_styles(inputs.files.tokenizer, inputs.prompts, styles, groups, survey.items)


def _sample(conversations: Conversations, count: int) -> Conversations:
    """Return conversations spread evenly over all of them."""
    kept = np.unique(np.linspace(0, len(conversations) - 1, count).astype(int))
    return dataclasses.replace(conversations, pairs=conversations.pairs[kept])


def _timed(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return the median seconds and processor seconds of calls after one that is not counted."""
    jax.block_until_ready(run())
    readings = [(time.perf_counter(), time.process_time())]
    for _ in range(repeats):
        jax.block_until_ready(run())
        readings.append((time.perf_counter(), time.process_time()))
    each = [np.subtract(after, before) for before, after in itertools.pairwise(readings)]
    seconds, processor_seconds = np.median(each, axis=0).tolist()
    return seconds, processor_seconds


if __name__ == "__main__":
    main(bench, Config)
