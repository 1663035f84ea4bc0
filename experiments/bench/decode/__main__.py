"""Measure prefill and decoding in tokens per second against transformers' `generate`.

    python -m experiments.bench.decode                                       # tiny, a minute
    python -m experiments.bench.decode --model models/smollm2 --batch 16 64 --prompt-tokens 256 768
    python -m experiments.bench.decode --size smollm2-135m --dtype bfloat16  # random weights
    python -m experiments.bench.decode --model models/smollm2 --batch --requests 13 --runs 3

Both tools answer the same random prompts greedily with the same weights, without stop tokens: as
many prompts as there are slots. Each works in a process of its own, and they take turns in random
order. The time to the first token of all replies (prefill) and from there on (decoding) are read
from one call. With `--requests` prompts begin alike and end in 16 tokens of their own; with
`--runs` one prompt is answered several times. There transformers is measured twice: as `generate`
is called by everybody, which computes every prompt whole, and with a cache of what they share.

No speed is shown before the replies are compared. In float32 both tools must write the same
tokens, up to ties: none may be more than 0.001 below the best logit of torch in float32. In
bfloat16 the tokens of jaxalign may be at most a quarter further from the best ones than those of
transformers are. A ratio is transformers' time divided by jaxalign's time in the same repeat. The
share of peak divides the FLOPs of prefill, counted for every prompt, by the fastest matrix product
that either process reached in the same repeat; where prompts are shared it may exceed 1.

Needs torch and transformers. For SmolLM2-135M a case of 16 x 256 takes two minutes on two idle
cores; they must be idle.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.decode.work import OWN_TOKENS, Case, Timed, Work
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
from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.core.progress import OnProgress, Progress
from jaxalign.lm.config import DType
from jaxalign.runs import plain, versions, write_json
from jaxalign.runs.console import main, print_table, progress_bars

LABELS = {
    "jaxalign": "jaxalign",
    "transformers": "transformers",
    "transformers_cached": "transformers, cached beginning",
}
_CHECKED = 4  # replies of each case that are compared with torch in float32
# What rounding may decide between two tokens in float32; in bfloat16 the peer is the yardstick.
_TIE, _SLACK, _FLOOR = 1e-3, 1.25, 0.02


@dataclasses.dataclass(frozen=True)
class Config:
    """Answer prompts with this package and with transformers; compare tokens a second."""

    size: Size = "tiny"
    """Shape of a model with random weights, or the pocket model."""
    model: Path | None = None
    """Folder of a model in the Hugging Face layout, instead of `size`."""
    dtype: DType = "float32"
    """Dtype of weights and activations, of both tools."""
    batch: tuple[int, ...] = (16,)
    """Numbers of different prompts that are answered together."""
    requests: tuple[int, ...] = ()
    """Numbers of prompts that begin alike and are answered together."""
    runs: tuple[int, ...] = ()
    """Numbers of replies to a single prompt."""
    prompt_tokens: tuple[int, ...] = (256,)
    """Numbers of tokens of each prompt; every number of prompts is measured with each."""
    new_tokens: int = 32
    """Number of tokens in each reply."""
    repeats: int = 5
    """Number of timed calls of each tool."""
    seed: int = 0
    """Seed of random weights, prompts and turns."""
    json: Path | None = None
    """File to which the figures are also written."""

    def __post_init__(self) -> None:
        numbers = (*self.batch, *self.requests, *self.runs, *self.prompt_tokens, self.repeats)
        if min(numbers) < 1 or self.new_tokens < 2:
            raise UserError(
                "`batch`, `requests`, `runs`, `prompt_tokens` and `repeats` must be at least 1, "
                "`new_tokens` at least 2"
            )
        if self.requests and min(self.prompt_tokens, default=0) <= OWN_TOKENS:
            raise UserError(
                f"`prompt_tokens` {min(self.prompt_tokens)}: with `requests` more than "
                f"{OWN_TOKENS}, which are each prompt's own"
            )
        if not self.cases:
            raise UserError("nothing to measure: give `batch`, `requests` or `runs` a number")
        if self.seed < 0:
            raise UserError(f"`seed` {self.seed}: must be 0 or more")
        check_new_file(self.json, "json")

    @property
    def cases(self) -> list[Case]:
        """The grid."""
        kinds = {"batch": self.batch, "requests": self.requests, "runs": self.runs}
        return [
            Case(kind, prompts, tokens, self.new_tokens)
            for kind, numbers in kinds.items()
            for prompts in numbers
            for tokens in self.prompt_tokens
        ]


def bench(config: Config) -> dict[str, Any]:
    """Time both tools in every case, print tables and return the figures.

    Raises:
        UserError: If torch or transformers is missing, or the replies differ.
    """
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{package} is not installed; pip install 'jaxalign[parity]'")
    machine = machine_facts()
    llama = model_config(config.size, config.dtype, config.model)
    with tempfile.TemporaryDirectory(prefix="jaxalign-bench-") as scratch:
        folder = model_folder(config.size, Path(scratch), config.model)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        work = Work(llama, folder, config.seed, cores or 1)
        with contextlib.ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    Worker(f"experiments.bench.decode.worker_{name}", Path(scratch) / f"{name}.log")
                )
                for name in ("jax", "torch")
            }
            machine |= {n: worker.call("prepare", work).value for n, worker in workers.items()}
            on_progress = stack.enter_context(progress_bars())
            cases = [measure(config, work, case, workers, on_progress) for case in config.cases]
    result = {
        "model": model_name(config.size, config.model),
        "settings": plain(config) | {"llama": plain(llama)},
        "machine": machine | {"versions": versions()},
        "cases": cases,
    }
    for case in cases:
        show(result, case)
    warn_if_busy(machine)
    if config.json is not None:
        write_json(config.json, result)
    return result


def measure(
    config: Config, work: Work, case: Case, workers: dict[str, Worker], on_progress: OnProgress
) -> dict[str, Any]:
    """Warm up, compare the replies, then let the tools take turns.

    Returns:
        The figures of the case; lists have one entry per repeat.

    Raises:
        UserError: If the replies differ by more than rounding.
    """
    methods = ["jaxalign", "transformers"]
    if case.kind != "batch":
        methods.append("transformers_cached")
    done, calls = 0, len(methods) * (config.repeats + 1)

    def run(method: str) -> Timed:
        nonlocal done
        worker = workers["jax" if method == "jaxalign" else "torch"]
        on_progress(Progress(str(case), done, calls, "calls"))
        timed, done = worker.call("run", method, case).value, done + 1
        on_progress(Progress(str(case), done, calls, "calls"))
        return timed

    first = {method: run(method).replies for method in methods}
    comparison = compare(work, case, first, workers["torch"])
    calls_of: dict[str, list[Timed]] = {method: [] for method in methods}
    peaks: dict[str, list[float]] = {name: [] for name in workers}
    for _, name in turns([*methods, *workers], config.repeats, config.seed):
        if name in workers:
            peaks[name].append(workers[name].call("peak").value)
        else:
            calls_of[name].append(run(name))
    return figures(work, case, calls_of, peaks) | {"replies": comparison}


def compare(
    work: Work, case: Case, replies: dict[str, list[list[int]]], torch: Worker
) -> dict[str, Any]:
    """Compare the replies of all tools with the best tokens of torch in float32.

    Returns:
        By tool, how many replies are transformers' own, and the largest and mean shortfall.

    Raises:
        UserError: If a tool's tokens fall short by more than rounding explains.
    """
    theirs = replies["transformers"]
    # Replies that differ are looked at first.
    order = sorted(range(case.prompts), key=lambda i: replies["jaxalign"][i] == theirs[i])
    rows = order[:_CHECKED]
    prompts = case.tokens(work.llama.vocab_size, work.seed)[rows]
    found: dict[str, Any] = {}
    for method, tokens in replies.items():
        short = torch.call("shortfalls", prompts, [tokens[i] for i in rows]).value
        found[method] = {
            "same_as_transformers": sum(a == b for a, b in zip(tokens, theirs, strict=True)),
            "largest_shortfall": float(short.max()),
            "mean_shortfall": float(short.mean()),
        }
    for method, gap in found.items():
        check(work.llama.dtype, method, gap, found["transformers"])
    return found


def check(dtype: str, method: str, gap: dict[str, float], peer: dict[str, float]) -> None:
    """Raise UserError if a tool's tokens are further from the best ones than rounding explains."""
    name, most = "largest_shortfall", _TIE
    if dtype != "float32":
        name, most = "mean_shortfall", max(_FLOOR, _SLACK * peer["mean_shortfall"])
    if gap[name] > most:
        raise UserError(
            f"{LABELS[method]} takes tokens that are {gap[name]:.2g} below the best logit "
            f"({name.replace('_', ' ')}), more than {most:.2g}: this is a bug, so no speed is "
            "reported"
        )


def figures(
    work: Work,
    case: Case,
    calls: dict[str, Sequence[Timed]],
    peaks: dict[str, Sequence[float]],
) -> dict[str, Any]:
    """Return rates, ratios and shares of peak of one case."""
    prompt, new = case.prompts * case.prompt_tokens, case.prompts * (case.new_tokens - 1)
    flops, fastest = case.prefill_flops(work.llama), fastest_peaks(peaks)
    seconds = {
        method: {
            part: [getattr(timed, name) for timed in timed_calls]
            for part, name in (
                ("prefill", "prefill_seconds"),
                ("decode", "decode_seconds"),
                ("whole", "seconds"),
            )
        }
        for method, timed_calls in calls.items()
    }
    return {
        "case": plain(case),
        "title": str(case),
        "seconds": seconds,
        "tokens_per_second": {
            method: {
                "prefill": spread([prompt / s for s in parts["prefill"]]),
                "decode": spread([new / s for s in parts["decode"]]),
            }
            for method, parts in seconds.items()
        },
        "ratios": {
            method: {
                part: spread(paired_ratios(parts[part], seconds["jaxalign"][part]))
                for part in parts
            }
            for method, parts in seconds.items()
            if method != "jaxalign"
        },
        "prefill_share_of_fastest_peak": {
            method: spread(
                [flops / s / peak for s, peak in zip(parts["prefill"], fastest, strict=True)]
            )
            for method, parts in seconds.items()
        },
        "matmul_peak_flops_per_second": {name: spread(v) for name, v in peaks.items()},
    }


def show(result: dict[str, Any], case: dict[str, Any]) -> None:
    """Print the table of a case."""
    rows = []
    for method, rates in case["tokens_per_second"].items():
        ratio = case["ratios"].get(method)
        rows.append(
            [
                LABELS[method],
                *(f"{rates[part]['median']:,.0f}" for part in ("prefill", "decode")),
                f"{100 * case['prefill_share_of_fastest_peak'][method]['median']:.0f} %",
                *(_ratio(ratio[part]) if ratio else "" for part in ("prefill", "decode", "whole")),
                str(case["replies"][method]["same_as_transformers"]),
            ]
        )
    dtype, processor = result["settings"]["dtype"], result["machine"]["processor"]
    print_table(
        f"{result['model']}, {dtype}, {case['title']}, {processor}",
        (
            "tool",
            "prefill, tokens/s",
            "decoding, tokens/s",
            "of matmul peak",
            "prefill, times jaxalign",
            "decoding",
            "whole",
            "same replies",
        ),
        rows,
    )


def _ratio(spread_: dict[str, float]) -> str:
    return f"{spread_['median']:.2f} ({spread_['min']:.2f} to {spread_['max']:.2f})"


if __name__ == "__main__":
    main(bench, Config)
