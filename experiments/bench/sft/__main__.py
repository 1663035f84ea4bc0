"""Measure fine-tuning speed against torch + PEFT on the same model and examples.

    python -m experiments.bench.sft                                       # tiny, a few minutes
    python -m experiments.bench.sft --model models/smollm2 --batch 16 --shortest 100 --longest 132
    python -m experiments.bench.sft --model models/smollm2 --batch 128 --micro-batch 16 --steps 1
    python -m experiments.bench.sft --size llama3.2-1b --dtype bfloat16 --json bench_sft.json

Both train LoRA of rank 8 on all linear layers of a Llama with AdamW. Answers are one or two tokens
long and follow prompts of unequal length, as in fine-tuning on survey answers. torch + PEFT runs as
people use it: batches padded to their longest example, labels of -100, `model(...).loss`. jaxalign
runs with its own defaults: it packs examples into rows and applies the output head at answer
positions only.

Each framework trains in its own process, the processes take turns in random order on the same
cores, and every repeat gives one ratio. Both report loss and gradient norm of the first step from
the same adapter, and no speed is reported unless they agree. Tokens are those of the examples,
without padding. FLOPs are those of `training_flops`, so that padding and unused logits count for
neither side; they are divided by the matmul peak that the same process has just measured, and by
the faster of both. Peak memory is that of a process while it trains, weights included.

The cores must be idle: see `experiments.bench.population`. On a busy machine, one core for all
(`taskset -c 0 python -m experiments.bench.sft --threads 1`) and the ratio by processor time say
more: threads that wait for each other use processor time too, a single one does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.bench.models import Size, model_config, model_folder, model_name
from experiments.bench.peers import (
    Worker,
    fastest_peaks,
    machine_facts,
    paired_ratios,
    spread,
    turns,
    warn_if_busy,
)
from experiments.bench.sft.work import Work
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.core.progress import Progress
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import DType, LlamaConfig
from jaxalign.lm.lora import LoraConfig, abstract_adapter
from jaxalign.lm.peft import save_lora
from jaxalign.lm.weights import init_params
from jaxalign.report.drawing import new_figure, save_figure
from jaxalign.runs import plain, versions, write_json
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.training.packing import Example

FRAMEWORKS = {"jax": "jaxalign", "torch": "torch + PEFT"}
# Relative differences of loss and gradient norm of the first step that are allowed.
_TOLERANCE = {
    "float32": {"loss": 1e-4, "gradient_norm": 1e-3},
    "bfloat16": {"loss": 3e-2, "gradient_norm": 1e-1},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Time LoRA fine-tuning with jaxalign and with torch + PEFT."""

    size: Size = "tiny"
    """Model size: pocket (ships with the package), tiny (6 layers of width 256), small (8 layers of
    width 512), or the shape of a real model. All but pocket have random weights."""
    model: Path | None = None
    """Folder of a model in the Hugging Face layout, in place of a size."""
    dtype: DType = "float32"
    """Data type of frozen weights and activations; adapters are float32."""
    batch: int = 32
    """Number of examples per optimiser step."""
    micro_batch: int | None = None
    """Number of examples that torch computes at a time; default: the whole batch."""
    shortest: int = 40
    """Fewest tokens of an example; lengths are uniform between shortest and longest."""
    longest: int = 160
    """Most tokens of an example."""
    steps: int = 2
    """Number of optimiser steps per repeat, over the same examples."""
    repeats: int = 5
    """Number of timed repeats."""
    threads: int | None = None
    """Number of torch threads; by default one per core."""
    tokens_per_pass: int | None = None
    """Most tokens that jaxalign computes at a time; default: its own."""
    remat: bool | None = None
    """Recompute layers in jaxalign's backward pass; default: its own choice."""
    seed: int = 0
    """Seed of weights, adapter, examples and turns."""
    json: Path | None = None
    """File to which all figures are also written (JSON)."""
    plot: Path | None = None
    """File for a plot of every repeat (PNG)."""

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "steps", "repeats", "threads", "tokens_per_pass"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` {value}: must be at least 1")
        if not 4 <= self.shortest <= self.longest:
            raise UserError(
                f"`shortest` {self.shortest}: must be at least 4 and at most `longest` "
                f"{self.longest}"
            )
        check_new_file(self.json, "json")
        check_new_file(self.plot, "plot")


def run(config: Config) -> None:
    """Measure both frameworks, print the table and write the files."""
    bench(config, model_config(config.size, config.dtype, config.model))


def bench(config: Config, llama: LlamaConfig) -> dict[str, Any]:
    """Run the benchmark with a model of any shape and return its figures.

    Raises:
        UserError: If torch or PEFT is missing, or loss or gradient of the two disagree.
    """
    for package in ("torch", "peft"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed; pip install 'jaxalign[parity]'")
    machine, examples = machine_facts(), make_examples(config, llama.vocab_size)
    with tempfile.TemporaryDirectory(prefix="jaxalign-bench-") as scratch:
        folder = Path(scratch)
        model = model_folder(config.size, folder, config.model)
        work = make_work(config, llama, examples, model, folder)
        facts, first_step, rows = measure(config, work, folder)
    result = make_result(config, llama, examples, rows) | {
        "first_step": first_step,
        "machine": machine | facts | {"versions": versions()},
    }
    show(result)
    if config.json is not None:
        write_json(config.json, result)
    if config.plot is not None:
        plot(config.plot, result)
    return result


def make_examples(config: Config, vocabulary: int) -> list[Example]:
    """Draw the examples of all steps of a repeat, with answers of one or two tokens."""
    random = np.random.default_rng(config.seed)
    count = config.batch * config.steps
    lengths = random.integers(config.shortest, config.longest + 1, count).tolist()
    answers = random.integers(1, 3, count).tolist()
    tokens = [tuple(random.integers(0, vocabulary, n).tolist()) for n in lengths]
    return [Example(t, len(t) - a) for t, a in zip(tokens, answers, strict=True)]


def training_flops(config: LlamaConfig, examples: list[Example]) -> float:
    """Return the FLOPs of one training pass over the examples with frozen weights.

    A linear layer costs twice its forward pass: outputs and the gradients of activations, but no
    gradients of weights. The backward pass of attention costs twice its forward pass. Counted are
    the linear layers at every token (the last layer's queries and MLP at answer tokens only),
    causal attention within each example, and the output head at answer tokens. Adapters and
    recomputation are not counted. A multiply-add is two FLOPs.
    """
    c, before = config, config.num_hidden_layers - 1
    key_value = 2 * c.hidden_size * c.num_key_value_heads * c.head_dim
    width = c.num_attention_heads * c.head_dim
    rest = 2 * c.hidden_size * width + 3 * c.hidden_size * c.intermediate_size
    tokens = sum(len(e.tokens) for e in examples)
    answers = sum(len(e.answer) for e in examples)
    # Query-key pairs of causal attention: a triangle with its diagonal.
    pairs = sum(len(e.tokens) * (len(e.tokens) + 1) // 2 for e in examples)
    # Two FLOPs per weight and token; the last layer's queries and MLP at answer tokens only.
    linear = 2 * (before * tokens * (key_value + rest) + tokens * key_value + answers * rest)
    head = 2 * answers * c.hidden_size * c.vocab_size
    # Backward: activations' gradients cost as much as the forward pass, attention's twice as much.
    return 2.0 * (linear + head) + 3.0 * 4 * width * before * pairs


def make_work(
    config: Config, llama: LlamaConfig, examples: list[Example], model: Path, scratch: Path
) -> Work:
    """Return the work of both workers, and write the files that it names.

    Args:
        config: Settings of the benchmark.
        llama: Shape of the model.
        examples: What is trained on.
        model: Folder of the weights; random ones are written if it is empty.
        scratch: Folder for the adapter.
    """
    if not (model / "config.json").is_file():
        params = jax.jit(init_params, static_argnums=0)(llama, jax.random.key(config.seed))
        save_checkpoint(model, params, llama)
    lora, random = LoraConfig(), np.random.default_rng(config.seed)
    # LoRA starts with one of its two matrices at zero; with both away from zero the first loss
    # depends on all of them, so that comparing it checks the whole adapter.
    bound = 1 / np.sqrt(llama.hidden_size)
    adapter = jax.tree.map(
        lambda x: random.uniform(-bound, bound, x.shape).astype(x.dtype),
        abstract_adapter(llama, lora),
    )
    save_lora(scratch / "adapter", adapter, llama, lora, str(model))
    return Work(
        llama=llama,
        model=model,
        adapter=scratch / "adapter",
        examples=tuple((e.tokens, e.prompt_length) for e in examples),
        batch=config.batch,
        micro_batch=config.micro_batch or config.batch,
        tokens_per_pass=config.tokens_per_pass,
        remat=config.remat,
        threads=config.threads or os.cpu_count() or 1,
    )


def measure(
    config: Config, work: Work, scratch: Path
) -> tuple[dict[str, Any], dict[str, dict[str, float]], dict[str, list[dict[str, float]]]]:
    """Start both workers, compare their first step, and let them take turns.

    Returns:
        Facts, and loss and gradient norm of the first step, by framework; and by framework one row
        per repeat: seconds, processor seconds, matmul peak, peak memory.

    Raises:
        UserError: If loss or gradient norm of the two disagree.
    """
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in FRAMEWORKS}
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(f"experiments.bench.sft.worker_{name}", scratch / f"{name}.log")
            )
            for name in FRAMEWORKS
        }
        facts = {"jax": workers["jax"].call("prepare", work).value}
        steps = facts["jax"].pop("steps")
        print(f"jaxalign: {facts['jax']['step']}")
        facts["torch"] = workers["torch"].call("prepare", work, steps).value
        first_step = {name: worker.call("first_step").value for name, worker in workers.items()}
        check_same(work.llama.dtype, first_step)
        on_progress = stack.enter_context(progress_bars())
        order = turns(tuple(FRAMEWORKS), config.repeats, config.seed)
        for done, (_, name) in enumerate(order):
            on_progress(Progress("run", done, 2 * config.repeats, "runs", fields={"now": name}))
            # Measured right before the run, because the machine's speed drifts.
            peak = workers[name].call("peak").value
            answer = workers[name].call("run")
            rows[name].append(
                {**answer.value, "matmul_peak_flops": peak, "peak_bytes": answer.peak_bytes}
            )
        on_progress(Progress("run", 2 * config.repeats, 2 * config.repeats, "runs"))
    return facts, first_step, rows


def check_same(dtype: str, first_step: dict[str, dict[str, float]]) -> None:
    """Raise UserError if loss or gradient norm differ by more than the dtype explains."""
    for name, tolerance in _TOLERANCE[dtype].items():
        ours, theirs = first_step["jax"][name], first_step["torch"][name]
        if not abs(ours - theirs) <= tolerance * abs(theirs):
            raise UserError(
                f"the two do not compute the same {name.replace('_', ' ')}: {ours} and {theirs}; "
                "no speed is reported"
            )


def make_result(
    config: Config,
    llama: LlamaConfig,
    examples: list[Example],
    rows: dict[str, list[dict[str, float]]],
) -> dict[str, Any]:
    """Return the figures of all repeats, and their medians and ranges."""
    tokens, flops = sum(len(e.tokens) for e in examples), training_flops(llama, examples)
    seconds, busy, peaks, memory = (
        {name: [row[field] for row in rows[name]] for name in FRAMEWORKS}
        for field in ("seconds", "processor_seconds", "matmul_peak_flops", "peak_bytes")
    )
    fastest = fastest_peaks(peaks)
    frameworks = {
        name: {
            "tokens_per_second": spread([tokens / s for s in seconds[name]]),
            "fraction_of_matmul_peak": spread(
                paired_ratios([flops / s for s in seconds[name]], peaks[name])
            ),
            "fraction_of_fastest_matmul_peak": spread(
                paired_ratios([flops / s for s in seconds[name]], fastest)
            ),
            "matmul_peak_flops": spread(peaks[name]),
            "peak_bytes": max(memory[name]),
        }
        for name in FRAMEWORKS
    }
    # Within a repeat both ran under the same load.
    ratios = paired_ratios(seconds["torch"], seconds["jax"])
    of_processor = paired_ratios(busy["torch"], busy["jax"])
    return {
        "ratio": spread(ratios),
        "ratios": ratios,
        "processor_ratio": spread(of_processor),
        "processor_ratios": of_processor,
        "frameworks": frameworks,
        "repeats": rows,
        "tokens": tokens,
        "model_flops": flops,
        "settings": plain(config)
        | {"model_name": model_name(config.size, config.model), "model": plain(llama)},
    }


def show(result: dict[str, Any]) -> None:
    """Print the table of both frameworks and the ratio."""
    settings, machine, rows = result["settings"], result["machine"], []
    for name, title in FRAMEWORKS.items():
        figures = result["frameworks"][name]
        speed = figures["tokens_per_second"]
        rows.append(
            [
                title,
                *(f"{speed[field]:,.0f}" for field in ("median", "min", "max")),
                float(100 * figures["fraction_of_matmul_peak"]["median"]),
                float(100 * figures["fraction_of_fastest_matmul_peak"]["median"]),
                f"{figures['peak_bytes'] / 2**20:,.0f}",
                float(100 * machine[name]["useful"]),
            ]
        )
    print_table(
        f"LoRA fine-tuning, {settings['model_name']}, {settings['dtype']}, steps of "
        f"{settings['batch']} examples of {settings['shortest']} to {settings['longest']} tokens, "
        f"{machine['processor']}",
        (
            "framework",
            "tokens/s (median)",
            "slowest",
            "fastest",
            "% of its matmul peak",
            "% of the faster",
            "peak, MiB",
            "% of computed tokens that are not padding",
        ),
        rows,
    )
    ratio, busy, first = result["ratio"], result["processor_ratio"], result["first_step"]
    print(
        f"jaxalign is {ratio['median']:.2f} times as fast ({ratio['min']:.2f} to "
        f"{ratio['max']:.2f} over {settings['repeats']} repeats; by processor time "
        f"{busy['median']:.2f}, {busy['min']:.2f} to {busy['max']:.2f}); loss of the first step "
        f"{first['jax']['loss']:.5f} and {first['torch']['loss']:.5f}, gradient norm "
        f"{first['jax']['gradient_norm']:.5f} and {first['torch']['gradient_norm']:.5f}"
    )
    warn_if_busy(machine)


def plot(path: Path, result: dict[str, Any]) -> None:
    """Save a plot of every repeat's speed, with the two frameworks of a repeat joined."""
    figure = new_figure((5, 3.2))
    axes, tokens = figure.subplots(), result["tokens"]
    pairs = zip(result["repeats"]["torch"], result["repeats"]["jax"], strict=True)
    for pair in pairs:
        values = [tokens / row["seconds"] for row in pair]
        axes.plot([0, 1], values, "o-", color="tab:blue", alpha=0.6)
    axes.set_xticks([0, 1], ["torch + PEFT", "jaxalign"])
    axes.set_xlim(-0.4, 1.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("useful tokens per second")
    axes.set_title(f"LoRA fine-tuning: {result['ratio']['median']:.2f} times as fast")
    save_figure(path, figure)


if __name__ == "__main__":
    main(run, Config)
