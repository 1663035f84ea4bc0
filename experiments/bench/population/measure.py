"""Drives the workers of `experiments.bench.population`: warm up, compare answers, take turns."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.population.worker import Answer, Method, Work, Worker
from jaxalign.core.errors import UserError
from jaxalign.runs.console import Progress

_MODULES = {
    "jax": "experiments.bench.population.worker_jax",
    "torch": "experiments.bench.population.worker_torch",
}
_TRUSTED = ("hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap")  # the plainest first
_REFERENCE_CANDIDATES = 8  # whose answers are also computed in float32 where the dtype is not
FLOAT32_TOLERANCE = 1e-4
# How far bfloat16 may be from float32 depends on the model, so what the plainest baseline loses to
# it is the measure. A mean over a thousand numbers is steady, a maximum is not: hence the slack.
MEAN_SLACK, MOST_SLACK = 1.25, 2.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of a method's option log-probabilities from the reference's."""

    most: float
    mean: float
    same_answer: float  # share of items whose most likely option is the same


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything that was measured. Lists have one entry a repeat."""

    facts: dict[str, dict[str, Any]]  # by framework: what it runs on
    warm_up: dict[str, dict[str, float]]  # by method
    reference: str
    differences: dict[str, Difference]  # by method
    seconds: dict[str, list[float]]  # by method
    peak_bytes: dict[str, int]  # by method: resident memory of its process
    matmul_peak: dict[str, list[float]]  # by framework, FLOP/s
    device_peak_bytes: dict[str, int | None]  # by framework
    bytes_per_second: float  # read from memory, by JAX
    load_average_before: float  # of the last minute, before anything was started
    idle_cpu_seconds: float  # processor time of workers that were waiting for their turn


def framework(method: str) -> str:
    return "torch" if method.startswith("hf_") else "jax"


def measure(work: Work, against: Sequence[Method], repeats: int, scratch: Path) -> Measured:
    """Start the workers, warm up, compare answers, then let all methods take turns.

    `scratch` is a folder for the workers' logs.

    Raises UserError where answers differ by more than the dtype explains, before any timing.
    """
    methods = ("ours", *against)
    calls, load = len(methods) * (1 + repeats), os.getloadavg()[0]
    with _workers(methods, scratch) as workers, Progress(calls, step="call", unit="calls") as bar:
        facts = _prepare(work, workers)
        warm_up, answers = {}, {}
        for done, method in enumerate(methods, 1):
            worker = workers[framework(method)]
            warm_up[method] = worker.call("compile", method).value
            answers[method] = worker.call("run", method).value["log_probs"]
            bar.update(done, {"warming up": method})
        reference, differences = _compare(work, answers, workers)
        check(work.llama.dtype, reference, differences)
        turns = list(_turns(methods, workers, repeats, work.seed, bar))
        by_name = lambda name: [answer for key, answer in turns if key == name]  # noqa: E731
        return Measured(
            facts=facts,
            warm_up=warm_up,
            reference=reference,
            differences=differences,
            seconds={m: [a.value["seconds"] for a in by_name(m)] for m in methods},
            peak_bytes={m: max(a.peak_bytes for a in by_name(m)) for m in methods},
            matmul_peak={name: [a.value for a in by_name(name)] for name in workers},
            device_peak_bytes={n: w.call("device_peak_bytes").value for n, w in workers.items()},
            bytes_per_second=workers["jax"].call("bandwidth").value,
            load_average_before=load,
            idle_cpu_seconds=sum(answer.idle_cpu_seconds for _, answer in turns),
        )


@contextmanager
def _workers(methods: Sequence[Method], scratch: Path) -> Iterator[dict[str, Worker]]:
    """One worker per framework that any method needs, by framework."""
    with ExitStack() as stack:
        needed = dict.fromkeys(map(framework, methods))
        start = lambda name: Worker(_MODULES[name], scratch / f"{name}.log")  # noqa: E731
        yield {name: stack.enter_context(start(name)) for name in needed}


def _prepare(work: Work, workers: dict[str, Worker]) -> dict[str, dict[str, Any]]:
    """Weights into every worker. UserError where they run on different kinds of devices."""
    # In bytes of one copy of the weights; a float32 reference has twice those of bfloat16.
    copies = len(workers) + (0 if work.llama.dtype == "float32" else 2)
    facts = {"jax": workers["jax"].call("prepare", work, copies, "torch" in workers).value}
    prompts = facts["jax"].pop("prompts_PxMxD")
    print(facts["jax"].pop("plan"))
    print(facts["jax"]["attention"])
    if "torch" in workers:
        facts["torch"] = workers["torch"].call("prepare", work, prompts).value
        ours, theirs = (facts[name]["platform"] for name in ("jax", "torch"))
        if ours != theirs:
            raise UserError(
                f"jax runs on {ours}, torch on {theirs}: install both for the same device, or "
                "hide the other with JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES="
            )
    return facts


def _compare(
    work: Work, answers: dict[str, np.ndarray], workers: dict[str, Worker]
) -> tuple[str, dict[str, Difference]]:
    """Differences of all methods from the plainest baseline, or from its float32 answers."""
    plainest = next(m for m in _TRUSTED if m in answers)
    if work.llama.dtype == "float32":
        expected, name = answers[plainest], plainest
    else:
        worker = workers[framework(plainest)]
        expected = worker.call("reference", min(_REFERENCE_CANDIDATES, work.population)).value
        name = f"{framework(plainest)} in float32"
    found = {m: difference(a[: len(expected)], expected) for m, a in answers.items()}
    return name, found


def difference(found_PxQxO: np.ndarray, expected_PxQxO: np.ndarray) -> Difference:
    """Of the options that an item has; UserError where one side has an option the other lacks."""
    there = np.isfinite(expected_PxQxO)
    if not np.array_equal(np.isfinite(found_PxQxO), there):
        raise UserError("two methods do not give the same items the same options: a bug")
    gaps = np.abs(found_PxQxO[there] - expected_PxQxO[there])
    same = found_PxQxO.argmax(-1) == expected_PxQxO.argmax(-1)
    return Difference(float(gaps.max()), float(gaps.mean()), float(same.mean()))


def check(dtype: str, reference: str, differences: dict[str, Difference]) -> None:
    """UserError where a method's answers are not the reference's within the dtype's tolerance.

    float32: 1e-4. bfloat16: at most 1.25 times the mean and twice the largest difference from
    float32 that the plainest baseline itself has.
    """
    plainest = differences[next(m for m in _TRUSTED if m in differences)]
    for method, found in differences.items():
        mean, most = MEAN_SLACK * plainest.mean, MOST_SLACK * plainest.most
        if dtype == "float32":
            mean, most = FLOAT32_TOLERANCE, FLOAT32_TOLERANCE
        if found.mean > mean or found.most > most:
            raise UserError(
                f"{method} differs from {reference} by {found.most:.2g} at most and "
                f"{found.mean:.2g} on average, more than {most:.2g} and {mean:.2g}: a bug, and no "
                "reason to look at speed"
            )


def _turns(
    methods: Sequence[Method], workers: dict[str, Worker], repeats: int, seed: int, bar: Progress
) -> Iterator[tuple[str, Answer]]:
    """Every method and every framework's matrix product, once a repeat, in random order."""
    shuffle, done = random.Random(seed).shuffle, len(methods)
    for repeat in range(repeats):
        order = [*methods, *workers]
        shuffle(order)
        for name in order:
            if name in workers:
                yield name, workers[name].call("peak")
                continue
            answer = workers[framework(name)].call("run", name)
            done += 1
            seconds = f"{answer.value['seconds']:.1f} s"
            bar.update(done, {"repeat": str(repeat + 1), name: seconds})
            yield name, answer
