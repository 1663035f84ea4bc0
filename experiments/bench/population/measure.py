"""Drive the workers of `experiments.bench.population`: warm up, compare answers, take turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.peers import Answer, Worker, machine_facts, turns
from experiments.bench.population.work import Method, Work
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress
from jaxalign.runs.console import progress_bars

_MODULES = {
    "jax": "experiments.bench.population.worker_jax",
    "torch": "experiments.bench.population.worker_torch",
}
_TRUSTED = ("hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap")  # the simplest first
_REFERENCE_CANDIDATES = 8  # candidates that are also evaluated in float32 if the dtype is another
FLOAT32_TOLERANCE = 1e-4
# How far bfloat16 may differ from float32 depends on the model, so the error of the simplest
# baseline is the yardstick. A maximum varies more than a mean over a thousand numbers and therefore
# gets more slack.
MEAN_SLACK, MOST_SLACK = 1.25, 2.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference between a method's option log-probabilities and the reference's.

    Attributes:
        most: Largest absolute difference.
        mean: Mean absolute difference.
        same_answer: Share of items whose most likely option is the same.
    """

    most: float
    mean: float
    same_answer: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """All measurements. Lists have one entry per repeat.

    Attributes:
        facts: By framework: device, versions and choices.
        warm_up: By method: what its first call returned.
        reference: Name of the answers that all methods are compared with.
        differences: By method: difference from the reference.
        seconds: By method: time of each repeat.
        peak_bytes: By method: peak resident memory of its process.
        matmul_peak: By framework: fastest matrix product in FLOP/s.
        device_peak_bytes: By framework: peak device memory, if known.
        bytes_per_second: Memory bandwidth measured by JAX.
        machine: The processor and the load average before the benchmark started.
        idle_cpu_seconds: Processor time of workers while they waited for their turn.
    """

    facts: dict[str, dict[str, Any]]
    warm_up: dict[str, dict[str, float]]
    reference: str
    differences: dict[str, Difference]
    seconds: dict[str, list[float]]
    peak_bytes: dict[str, int]
    matmul_peak: dict[str, list[float]]
    device_peak_bytes: dict[str, int | None]
    bytes_per_second: float
    machine: dict[str, Any]
    idle_cpu_seconds: float


def framework(method: str) -> str:
    """Return the framework that runs a method: "torch" or "jax"."""
    return "torch" if method.startswith("hf_") else "jax"


def measure(work: Work, against: Sequence[Method], repeats: int, scratch: Path) -> Measured:
    """Start the workers, warm up, compare the answers, then let all methods take turns.

    Args:
        work: What every method computes.
        against: Methods to compare with.
        repeats: Number of timed runs of each method.
        scratch: Folder for the workers' logs.

    Raises:
        UserError: If answers differ by more than the dtype explains, before any timing.
    """
    methods = ("ours", *against)
    calls, machine = len(methods) * (1 + repeats), machine_facts()
    with _workers(methods, scratch) as workers, progress_bars() as on_progress:
        on_progress(Progress("call", 0, calls, "calls"))
        facts = _prepare(work, workers)
        warm_up, answers = {}, {}
        for done, method in enumerate(methods, 1):
            worker = workers[framework(method)]
            warm_up[method] = worker.call("compile", method).value
            answers[method] = worker.call("run", method).value["log_probs"]
            on_progress(Progress("call", done, calls, "calls", fields={"warm-up": method}))
        reference, differences = _compare(work, answers, workers)
        check(work.llama.dtype, reference, differences)
        taken = list(_turns(methods, workers, repeats, work.seed, on_progress))
        by_name = lambda name: [answer for key, answer in taken if key == name]  # noqa: E731
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
            machine=machine,
            idle_cpu_seconds=sum(answer.idle_cpu_seconds for _, answer in taken),
        )


@contextmanager
def _workers(methods: Sequence[Method], scratch: Path) -> Iterator[dict[str, Worker]]:
    """Start one worker for each framework that the methods need; yield them by framework."""
    with ExitStack() as stack:
        needed = dict.fromkeys(map(framework, methods))
        start = lambda name: Worker(_MODULES[name], scratch / f"{name}.log")  # noqa: E731
        yield {name: stack.enter_context(start(name)) for name in needed}


def _prepare(work: Work, workers: dict[str, Worker]) -> dict[str, dict[str, Any]]:
    """Load the weights into every worker and return the facts of each framework.

    Raises:
        UserError: If the frameworks run on different kinds of devices.
    """
    # Copies of the weights in memory; a float32 reference counts as two copies in bfloat16.
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
                "hide the GPU from one of them with JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES="
            )
    return facts


def _compare(
    work: Work, answers: dict[str, np.ndarray], workers: dict[str, Worker]
) -> tuple[str, dict[str, Difference]]:
    """Compare all methods with the simplest baseline, or with its float32 answers.

    Returns:
        The name of the reference, and the difference of each method from it.
    """
    plainest = next(m for m in _TRUSTED if m in answers)
    if work.llama.dtype == "float32":
        expected, name = answers[plainest], plainest
    else:
        worker = workers[framework(plainest)]
        expected = worker.call("reference", min(_REFERENCE_CANDIDATES, work.population)).value
        name = f"{framework(plainest)} in float32"
    return name, {m: difference(a[: len(expected)], expected) for m, a in answers.items()}


def difference(actual_PxQxO: np.ndarray, expected_PxQxO: np.ndarray) -> Difference:
    """Compare two arrays of option log-probabilities where an item has an option.

    Raises:
        UserError: If one side has an option that the other lacks.
    """
    exists_PxQxO = np.isfinite(expected_PxQxO)
    if not np.array_equal(np.isfinite(actual_PxQxO), exists_PxQxO):
        raise UserError("two methods do not give the same items the same options: a bug")
    gaps = np.abs(actual_PxQxO[exists_PxQxO] - expected_PxQxO[exists_PxQxO])
    same = actual_PxQxO.argmax(-1) == expected_PxQxO.argmax(-1)
    return Difference(float(gaps.max()), float(gaps.mean()), float(same.mean()))


def check(dtype: str, reference: str, differences: dict[str, Difference]) -> None:
    """Raise UserError if a method's answers differ from the reference by more than the tolerance.

    The tolerance in float32 is 1e-4. In bfloat16 it is 1.25 times the mean difference and twice the
    largest difference that the simplest baseline itself has from float32.
    """
    plainest = differences[next(m for m in _TRUSTED if m in differences)]
    for method, gap in differences.items():
        mean, most = MEAN_SLACK * plainest.mean, MOST_SLACK * plainest.most
        if dtype == "float32":
            mean, most = FLOAT32_TOLERANCE, FLOAT32_TOLERANCE
        if gap.mean > mean or gap.most > most:
            raise UserError(
                f"{method} differs from {reference} by {gap.most:.2g} at most and "
                f"{gap.mean:.2g} on average, more than {most:.2g} and {mean:.2g}: this is a bug, "
                "so no speed is reported"
            )


def _turns(
    methods: Sequence[Method],
    workers: dict[str, Worker],
    repeats: int,
    seed: int,
    on_progress: OnProgress,
) -> Iterator[tuple[str, Answer]]:
    """Yield each method's run and each framework's matrix product, once per repeat."""
    done, total = len(methods), len(methods) * (1 + repeats)  # the warm-up included
    for repeat, name in turns([*methods, *workers], repeats, seed):
        if name in workers:
            yield name, workers[name].call("peak")
            continue
        answer = workers[framework(name)].call("run", name)
        done += 1
        fields = {"repeat": str(repeat + 1), name: f"{answer.value['seconds']:.1f} s"}
        on_progress(Progress("call", done, total, "calls", fields=fields))
        yield name, answer
