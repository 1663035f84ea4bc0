"""Measure fine-tuning speed against torch + PEFT on the same small model and examples.

    python -m experiments.bench.sft
    python -m experiments.bench.sft --vocabulary 32000    # a head larger than the layers

Both train LoRA of rank 8 on all linear layers of a random Llama with AdamW. Answers are one or two
tokens long and follow prompts of unequal length, as in fine-tuning on survey answers. torch + PEFT
runs as people use it: batches padded to their longest example, labels of -100, `model(...).loss`.
jaxalign packs examples into rows and applies the output head at answer positions only. Each
framework trains in its own process, the processes take turns on the same cores, and every repeat
gives one ratio. Both report the first loss of the same adapter, and no speed is reported unless the
losses agree. Tokens are those of the examples, without padding. FLOPs are those of
`training_flops`, so that padding and unused logits count for neither side; they are divided by the
matmul peak that the same process has just measured.

Takes 2 to 4 minutes on a CPU with 2 cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from experiments.bench.peers import Worker
from experiments.bench.sft.work import Work
from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, abstract_adapter
from jaxalign.lm.peft import save_lora
from jaxalign.lm.weights import init_params
from jaxalign.report.drawing import new_figure
from jaxalign.runs import settings_of, write_json
from jaxalign.runs.console import main, print_table, progress_bars
from jaxalign.training.packing import Example

FRAMEWORKS = ("jax", "torch")
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # relative difference of the first loss


@dataclasses.dataclass(frozen=True)
class Config:
    """Time LoRA fine-tuning with jaxalign and with torch + PEFT."""

    layers: int = 4
    """Number of layers of the random model."""
    hidden: int = 256
    """Width of the model, a multiple of 32."""
    feed_forward: int = 704
    """Width of the feed-forward layers."""
    vocabulary: int = 4096
    """Vocabulary size. The default makes the output head a quarter of the weights, close to
    Llama-3.2-1B (a fifth)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of frozen weights and activations; adapters are float32."""
    batch: int = 32
    """Number of examples per optimiser step."""
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
    remat: bool = False
    """Train jaxalign's side with rematerialisation, which a small model does not need."""
    unroll: bool = True
    """Unroll the layers on jaxalign's side, which is slow to compile for many layers."""
    out: Path | None = None
    """Folder for bench_sft.json and bench_sft.png."""
    json: bool = False
    """Print the numbers as JSON instead of a table."""
    seed: int = 0
    """Seed of weights, adapter and examples."""

    def __post_init__(self) -> None:
        sizes = (self.layers - 1, self.batch, self.steps, self.repeats, self.shortest - 3)
        if min(sizes) < 1 or self.longest < self.shortest:
            raise UserError(
                "--layers at least 2, --batch, --steps and --repeats at least 1, "
                "--shortest at least 4 and no more than --longest"
            )
        if self.hidden < 32 or self.hidden % 32:
            raise UserError(f"--hidden {self.hidden}: must be a multiple of 32, the heads' width")
        if min(self.feed_forward, self.vocabulary) < 1:
            raise UserError("--feed-forward and --vocabulary must be at least 1")

    @property
    def llama(self) -> LlamaConfig:
        """The model's shape: heads of width 32, four queries per key where that divides."""
        heads = self.hidden // 32
        return LlamaConfig(
            self.vocabulary,
            self.hidden,
            self.feed_forward,
            self.layers,
            heads,
            heads // 4 if heads % 4 == 0 else heads,
            32,
            dtype=self.dtype,
            param_dtype=self.dtype,
        )


def bench(config: Config) -> None:
    """Measure both frameworks, then print or write the figures.

    Raises:
        UserError: If torch or PEFT is missing, or the two losses disagree.
    """
    result = measure(config)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "bench_sft.json", result)
        plot(config.out / "bench_sft.png", result)
    if config.json:
        print(json.dumps(result, indent=1))
    else:
        show(config, result)


def make_examples(config: Config) -> list[Example]:
    """Draw the examples of all steps of a repeat, with answers of one or two tokens."""
    random = np.random.default_rng(config.seed)
    count = config.batch * config.steps
    lengths = random.integers(config.shortest, config.longest + 1, count).tolist()
    answers = random.integers(1, 3, count).tolist()
    tokens = [tuple(random.integers(0, config.vocabulary, n).tolist()) for n in lengths]
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


def make_work(config: Config, examples: list[Example], folder: Path) -> Work:
    """Write random weights, and an adapter with no zero matrix, as files for both workers."""
    llama, lora = config.llama, LoraConfig()
    params = jax.jit(init_params, static_argnums=0)(llama, jax.random.key(config.seed))
    save_checkpoint(folder / "model", params, llama)
    random = np.random.default_rng(config.seed)
    # LoRA starts with one of its two matrices at zero; with both away from zero the first loss
    # depends on all of them, so that comparing it checks the whole adapter.
    adapter = jax.tree.map(
        lambda x: random.uniform(-0.05, 0.05, x.shape).astype(x.dtype),
        abstract_adapter(llama, lora),
    )
    save_lora(folder / "adapter", adapter, llama, lora, str(folder / "model"))
    return Work(
        llama=llama,
        model=folder / "model",
        adapter=folder / "adapter",
        examples=tuple((e.tokens, e.prompt_length) for e in examples),
        batch=config.batch,
        threads=config.threads or os.cpu_count() or 1,
        remat=config.remat,
        unroll=config.unroll,
    )


def measure(config: Config) -> dict:
    """Run both workers and return all figures.

    Raises:
        UserError: If torch or PEFT is missing, or the two losses disagree.
    """
    for package in ("torch", "peft"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed; pip install 'jaxalign[parity]'")
    examples = make_examples(config)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = Path(scratch)
        work = make_work(config, examples, folder)
        workers = {
            name: stack.enter_context(
                Worker(f"experiments.bench.sft.worker_{name}", folder / f"{name}.log")
            )
            for name in FRAMEWORKS
        }
        facts = {name: worker.call("prepare", work).value for name, worker in workers.items()}
        losses = {name: worker.call("loss").value for name, worker in workers.items()}
        if abs(losses["jax"] - losses["torch"]) > _TOLERANCE[config.dtype] * losses["torch"]:
            raise UserError(f"the two do not compute the same loss: {losses}; no speed is reported")
        rows = repeats(config, examples, workers)
    # Within a repeat both ran under the same load.
    ratios = [
        ours["tokens_per_second"] / theirs["tokens_per_second"]
        for ours, theirs in zip(rows["jax"], rows["torch"], strict=True)
    ]
    return {
        "settings": settings_of(config),
        "facts": facts,
        "first_loss": losses,
        "tokens": sum(len(e.tokens) for e in examples),
        "model_flops": training_flops(config.llama, examples),
        "repeats": rows,
        "ratios": ratios,
        "ratio_median": float(np.median(ratios)),
    }


def repeats(
    config: Config, examples: list[Example], workers: dict[str, Worker]
) -> dict[str, list[dict[str, float]]]:
    """Let both frameworks train all steps once per repeat, in random order.

    Returns:
        By framework, one row per repeat: tokens per second, matmul peak, fraction of the peak.
    """
    tokens = sum(len(e.tokens) for e in examples)
    flops = training_flops(config.llama, examples)
    order = np.random.default_rng(config.seed)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in FRAMEWORKS}
    with progress_bars(quiet=config.json) as on_progress:
        on_progress(Progress("repeat", 0, config.repeats, "repeats"))
        for repeat in range(config.repeats):
            for name in order.permutation(FRAMEWORKS).tolist():
                # Measured right before the run, because the machine's speed drifts.
                peak = workers[name].call("peak").value
                seconds = workers[name].call("run").value
                rows[name].append(
                    {
                        "tokens_per_second": tokens / seconds,
                        "matmul_peak_flops": peak,
                        "fraction_of_peak": flops / seconds / peak,
                    }
                )
            on_progress(Progress("repeat", repeat + 1, config.repeats, "repeats"))
    return rows


def show(config: Config, result: dict) -> None:
    """Print the table of both frameworks and the ratio."""
    rows = []
    for name, title in (("jax", "jaxalign"), ("torch", "torch + PEFT")):
        speeds = [row["tokens_per_second"] for row in result["repeats"][name]]
        share = np.median([row["fraction_of_peak"] for row in result["repeats"][name]])
        rows.append(
            [
                title,
                *(f"{f(speeds):,.0f}" for f in (np.median, min, max)),
                float(100 * share),
                float(100 * result["facts"][name]["useful"]),
            ]
        )
    print_table(
        f"LoRA fine-tuning, {config.layers} layers x {config.hidden}, vocabulary "
        f"{config.vocabulary:,}, {config.dtype}, {result['facts']['jax']['device']}",
        (
            "framework",
            "tokens/s (median)",
            "slowest",
            "fastest",
            "% of matmul peak",
            "% of computed tokens that are not padding",
        ),
        rows,
    )
    print(
        f"jaxalign is {result['ratio_median']:.2f} times as fast "
        f"({min(result['ratios']):.2f} to {max(result['ratios']):.2f} over {config.repeats} "
        f"repeats); first loss {result['first_loss']['jax']:.5f} and "
        f"{result['first_loss']['torch']:.5f}"
    )


def plot(path: Path, result: dict) -> None:
    """Save a plot of every repeat's speed, with the two frameworks of a repeat joined."""
    figure = new_figure((5, 3.2))
    axes = figure.subplots()
    pairs = zip(result["repeats"]["torch"], result["repeats"]["jax"], strict=True)
    for theirs, ours in pairs:
        values = [theirs["tokens_per_second"], ours["tokens_per_second"]]
        axes.plot([0, 1], values, "o-", color="tab:blue", alpha=0.6)
    axes.set_xticks([0, 1], ["torch + PEFT", "jaxalign"])
    axes.set_xlim(-0.4, 1.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("useful tokens per second")
    axes.set_title(f"LoRA fine-tuning: {result['ratio_median']:.2f} times as fast")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(bench, Config)
