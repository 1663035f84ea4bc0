"""Turn the measurements of `experiments.bench.population` into figures and tables."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.bench.models import model_name
from experiments.bench.peers import fastest_peaks, paired_ratios, spread, warn_if_busy
from experiments.bench.population.measure import Measured, framework
from experiments.bench.population.work import Work
from jaxalign.answering.cost import lower_bound, plan_report
from jaxalign.answering.plan import Layout
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import block_weights
from jaxalign.runs import plain, versions
from jaxalign.runs.console import print_table

LABELS = {
    "ours": "jaxalign",
    "hf_per_item": "HF, one item at a time",
    "hf_padded": "HF, padded batch",
    "hf_prefix_cache": "HF, cached prefix",
    "jax_vmap": "JAX, plain vmap",
}


def make_result(config: Any, work: Work, layout: Layout, measured: Measured) -> dict[str, Any]:
    """Return all figures, as `--json` writes them.

    Args:
        config: Settings of the benchmark.
        work: What every method computed.
        layout: Token plan of the items.
        measured: The measurements.

    Returns:
        A dictionary; a ratio is a method's time over jaxalign's in the same repeat.
    """
    useful = lower_bound(work.llama, layout).total * work.population
    methods = {m: _method(m, work, layout, measured, useful) for m in measured.seconds}
    ours, theirs = measured.seconds["ours"], [m for m in methods if m != "ours"]
    return {
        "ratios": {m: spread(paired_ratios(measured.seconds[m], ours)) for m in theirs},
        "useful_flops_fraction": methods["ours"]["fraction_of_matmul_peak"]["median"],
        "candidates_per_second": methods["ours"]["candidates_per_second"],
        "max_abs_log_prob_difference": max(d.most for d in measured.differences.values()),
        "reference": measured.reference,
        "methods": methods,
        "useful_flops_per_candidate": useful // work.population,
        "matmul_peak_flops_per_second": {n: spread(v) for n, v in measured.matmul_peak.items()},
        "memory_bytes_per_second": measured.bytes_per_second,
        "device_peak_bytes": measured.device_peak_bytes,
        "idle_cpu_seconds": measured.idle_cpu_seconds,
        "settings": plain(config)
        | {
            "model_name": model_name(config.size, config.model),
            "model": plain(work.llama),
            "layout": plan_report(work.llama, layout, measured.facts["jax"]["chunk"]),
            "threads": work.threads,
        },
        "machine": _machine(measured),
    }


def _method(
    method: str, work: Work, layout: Layout, measured: Measured, useful: int
) -> dict[str, Any]:
    """Return the figures of one method."""
    seconds = measured.seconds[method]
    median = statistics.median(seconds)
    # Each repeat against its own peak: the machine's speed drifts between repeats.
    rates = [useful / s for s in seconds]
    fractions = paired_ratios(rates, measured.matmul_peak[framework(method)])
    of_fastest = paired_ratios(rates, fastest_peaks(measured.matmul_peak))
    # FLOPs per byte of weights read: where the method stands under the roofline.
    passes = weight_passes(method, work, measured.warm_up[method])
    return {
        "seconds": seconds,
        "candidates_per_second": work.population / median,
        "useful_tokens_per_second": work.population * layout.tokens_computed / median,
        "useful_flops_per_second": useful / median,
        "fraction_of_matmul_peak": spread(fractions),
        "fraction_of_fastest_matmul_peak": spread(of_fastest),
        "useful_flops_per_weight_byte": useful / (passes * layer_bytes(work.llama)),
        "log_prob_difference": plain(measured.differences[method]),
        "peak_bytes": measured.peak_bytes[method],
        **measured.warm_up[method],
    }


def weight_passes(method: str, work: Work, warm_up: dict[str, Any]) -> int:
    """Return how often a method reads the weights of all layers for the whole population."""
    P = work.population
    if method == "hf_per_item":
        return P * len(work.items)
    # With a cached prefix the weights are read once for the prompts and once for the items.
    batches = -(-P // warm_up["candidates_in_a_batch"])
    return 2 * batches if method == "hf_prefix_cache" else batches


def layer_bytes(config: LlamaConfig) -> int:
    """Return the bytes of all layers' weights, without embeddings and output head."""
    sizes = [w.hf_shape[0] * w.hf_shape[1] for w in block_weights(config).values() if w.transposed]
    return config.num_hidden_layers * sum(sizes) * (4 if config.param_dtype == "float32" else 2)


def _machine(measured: Measured) -> dict[str, Any]:
    """Return the facts about the machine and the versions of the software."""
    return measured.machine | measured.facts | {"versions": versions()}


def show(result: dict[str, Any]) -> None:
    """Print two tables: speed, then memory and exactness."""
    settings, methods = result["settings"], result["methods"]
    title = (
        f"{settings['model_name']}, {settings['dtype']}, {settings['items']} items, "
        f"{settings['population']} prompts, median of {settings['repeats']}"
    )
    columns = (
        "method",
        "seconds",
        "times jaxalign",
        "range",
        "prompts/s",
        "useful tokens/s",
        "of its own matmul peak",
        "of the fastest",
    )
    print_table(title, columns, [_speed(result, m) for m in methods])
    columns = (
        "method",
        "compile, s",
        "process peak, MiB",
        "largest difference",
        "mean difference",
        "same answer",
    )
    title = f"Memory, and differences of log-probabilities from {result['reference']}"
    print_table(title, columns, [_cost(result, m) for m in methods])
    peaks = result["matmul_peak_flops_per_second"].items()
    print("Matmul peak: " + ", ".join(f"{n} {p['median'] / 1e9:,.0f} GFLOP/s" for n, p in peaks))
    # A busy machine makes the comparison unfair; say so.
    warn_if_busy(result["machine"])


def _speed(result: dict[str, Any], method: str) -> list[object]:
    """Return a row of the first table."""
    figures, ratio = result["methods"][method], result["ratios"].get(method)
    return [
        LABELS[method],
        f"{statistics.median(figures['seconds']):.3g}",
        f"{ratio['median']:.2f}" if ratio else "",
        f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else "",
        f"{figures['candidates_per_second']:.3g}",
        f"{figures['useful_tokens_per_second']:,.0f}",
        f"{100 * figures['fraction_of_matmul_peak']['median']:.0f} %",
        f"{100 * figures['fraction_of_fastest_matmul_peak']['median']:.0f} %",
    ]


def _cost(result: dict[str, Any], method: str) -> list[object]:
    """Return a row of the second table."""
    figures = result["methods"][method]
    gap = figures["log_prob_difference"]
    return [
        LABELS[method],
        figures.get("compile_seconds"),
        round(figures["peak_bytes"] / 2**20),
        f"{gap['most']:.1e}",
        f"{gap['mean']:.1e}",
        f"{100 * gap['same_answer']:.1f} %",
    ]
