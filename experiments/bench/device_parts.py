"""What `experiments.bench.device` measures, one function a part; the package's own programs.

All parts share the weights, which are made on the device at their first use, and the layout of the
24 items of the values module under a prompt of 16 tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.bench.scaling import values_layout
from jaxalign.answering.batch import answer_exact
from jaxalign.answering.cost import candidate_flops, device_name, matmul_peak
from jaxalign.answering.encode import encode
from jaxalign.answering.kernel_choice import available, time_kernels
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.weights import (
    Params,
    block_weights,
    count_params,
    is_weight,
    param_shardings,
    weight_tree,
)
from jaxalign.methods.soft_prompt.fitness import FitnessInputs, make_fitness
from jaxalign.methods.soft_prompt.search import abstract_inputs
from jaxalign.methods.soft_prompt.space import SoftPromptConfig, initial_population
from jaxalign.optim.evolve import make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.runtime.memory import Memory, busy_chunk
from jaxalign.runtime.sharding import MODEL, place_whole, replicated
from jaxalign.surveys.survey import vsm
from jaxalign.training.packing import Example
from jaxalign.training.step import TrainConfig
from jaxalign.training.trainer import Trainer

PartName = Literal[
    "facts", "kernels", "chunks", "memory", "population", "answers", "train", "decode"
]
PROMPT = SoftPromptConfig(length=16)
# Assumed until they are measured: seconds to compile a program of a real or a tiny model.
_COMPILE_SECONDS = (40.0, 5.0)
_SHARE_OF_PEAK = 0.3  # that a program reaches, for the estimate of its time


@dataclasses.dataclass
class Bench:
    """What the parts share, and what they have learned so far.

    Attributes:
        config: The model.
        mesh: The devices; the model axis holds the weights if one device cannot.
        record: Takes each result: `record(part, name, **figures)`.
        ends_at: Reading of `time.monotonic` by which all is to be done.
        small: Whether this is a trial of the script with little work.
        peak: Measured FLOP/s of large matrix products on one device.
        compile_seconds: The longest compilation so far.
        chunk: Prompts at a time; the fastest so far.
        largest_chunk: The most prompts at a time that were tried.
        kernel: Attention kernel; the fastest so far.
        errors: Estimated bytes beside the allocator's peak, of each program that set a new peak.
    """

    config: LlamaConfig
    mesh: Mesh
    record: Callable[..., None]
    ends_at: float
    small: bool = False
    peak: float = 0.0
    compile_seconds: float = 0.0
    chunk: int = 0
    largest_chunk: int = 0
    kernel: str = "xla"
    errors: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def params(self) -> Params:
        """Random weights, made where they lie."""
        return random_params(self.config, self.mesh)

    @functools.cached_property
    def layout(self) -> Any:
        """The 24 items under the prompt, in the pocket model's tokens."""
        return values_layout(PROMPT.length)

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.mesh.devices.size

    def fits(self, part: str, name: str, flops: float, programs: int = 1) -> bool:
        """Return whether a measurement should end within the time; record it as skipped if not.

        Args:
            part: The part.
            name: The measurement.
            flops: What it computes, all repeats together.
            programs: Number of programs to compile.
        """
        compiling = 1.2 * (self.compile_seconds or _COMPILE_SECONDS[self.small])
        computing = flops / (_SHARE_OF_PEAK * self.devices * self.peak) if self.peak else 0.0
        needed, left = programs * compiling + computing, self.ends_at - time.monotonic()
        if needed > left:
            reason = f"about {needed:.0f} s for {max(0.0, left):.0f} s that are left"
            self.record(part, name, skipped=reason)
        return needed <= left

    def compile(self, lower: Callable[[], jax.stages.Lowered]) -> tuple[Any, dict[str, float]]:
        """Lower and compile a program; return it, its seconds and the bytes that it foresees."""
        began = time.monotonic()
        compiled = lower().compile()
        seconds = time.monotonic() - began
        self.compile_seconds = max(self.compile_seconds, seconds)
        memory = Memory.of(compiled)
        foreseen = (
            {}
            if memory is None
            else {
                "foreseen_gib": memory.total / 2**30,
                "temporaries_gib": memory.temporaries / 2**30,
            }
        )
        return compiled, {"compile_s": seconds, **foreseen}

    def watch(self, name: str, compiled: Any, before: int | None) -> dict[str, float]:
        """Return the allocator's peak after a program has run, if the program set a new one.

        The peak counts since the process began, so a program below an earlier peak shows nothing.
        """
        memory, peak = Memory.of(compiled), peak_bytes()
        if memory is None or peak is None or before is None or peak <= before:
            return {}
        self.errors.append((name, memory.total, peak))
        return {"peak_gib": peak / 2**30}


def facts(bench: Bench) -> None:
    """Record the device and the rate of large matrix products, which all shares refer to."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    bench.peak = matmul_peak("bfloat16", seconds=0.5 if bench.small else 3.0)
    bench.record(
        "facts",
        device_name(),
        platform=device.platform,
        devices=bench.devices,
        memory_gib=stats.get("bytes_limit", 0) / 2**30,
        jax=jax.__version__,
        matmul_tflops=bench.peak / 1e12,
        parameters=count_params(bench.config),
    )


def kernels(bench: Bench) -> None:
    """Attend by every kernel as in the search, compared with XLA."""
    chunk = bench.chunk or first_chunk(bench)
    platform = jax.local_devices()[0].platform
    names, reason = available(bench.config, bench.layout, bench.mesh.shape[MODEL], platform)
    if not bench.fits("kernels", ", ".join(names), 0.0, len(names)):
        return
    times = time_kernels(bench.config, bench.layout, chunk, names)
    for t in times:
        failure = {"failure": t.failure} if t.failure else {}
        figures = {} if np.isinf(t.seconds) else {"ms_a_layer": 1e3 * t.seconds}
        if not np.isnan(t.difference):
            figures["largest_difference"] = t.difference
        bench.record("kernels", t.kernel, chunk=chunk, **figures, **failure, offered=reason)
    bench.kernel = min((t for t in times if not t.failure), key=lambda t: t.seconds).kernel


def chunks(bench: Bench) -> None:
    """Score prompts, 4 to 64 at a time; the peaks of memory then grow from one to the next."""
    config, flops = bench.config, candidate_flops(bench.config, bench.layout).total
    inputs = prepared_items(bench)
    best = 0.0
    for chunk in (1, 2) if bench.small else (4, 8, 16, 32, 64):
        repeats = 3
        if not bench.fits("chunks", f"{chunk} prompts", flops * chunk * (repeats + 1)):
            break
        prompts = jnp.zeros((chunk, PROMPT.length, config.hidden_size), jnp.float32)
        prompts = place_whole(prompts, replicated(bench.mesh))
        scored = jax.jit(option_log_probs, static_argnums=(0, 3))
        compiled, figures = bench.compile(
            functools.partial(scored.lower, config, inputs, prompts, chunk)
        )
        before = peak_bytes()  # a compiler may try out kernels on the device
        seconds = timed(functools.partial(compiled, inputs, prompts), repeats)
        rate = chunk / seconds
        bench.record(
            "chunks",
            f"{chunk} prompts",
            tokens_a_pass=chunk * bench.layout.tokens_computed,
            candidates_a_s=rate,
            share_of_peak=share(bench, flops * rate),
            **figures,
            **bench.watch(f"chunk {chunk}", compiled, before),
        )
        bench.largest_chunk = chunk
        if rate > 1.02 * best:  # of nearly equal ones the smaller
            best, bench.chunk = rate, chunk
    rule = first_chunk(bench)
    bench.record("chunks", "rule", chosen_without_measuring=rule, fastest=bench.chunk or None)


def memory(bench: Bench) -> None:
    """Record by how much the compiler's estimates miss the allocator's peak."""
    if peak_bytes() is None:
        bench.record("memory", "estimates", note="this platform reports no peak")
        return
    # As large as the largest so far, or its peak would be hidden behind an earlier one.
    chunk = bench.largest_chunk or first_chunk(bench)
    _generation(bench, "memory", population=max(4, chunk), chunk=chunk)
    for name, foreseen, peak in bench.errors:
        bench.record(
            "memory",
            name,
            foreseen_gib=foreseen / 2**30,
            peak_gib=peak / 2**30,
            peak_over_foreseen=peak / foreseen,
        )


def population(bench: Bench) -> None:
    """Run generations of the search: ask, evaluate, tell."""
    for size in (4, 8) if bench.small else (64, 256):
        _generation(bench, "population", size, min(bench.chunk or first_chunk(bench), size))


def _generation(bench: Bench, part: str, population: int, chunk: int) -> None:
    """Time one generation of a search for one country by the search's own program."""
    config, mesh = bench.config, bench.mesh
    flops = candidate_flops(config, bench.layout).total * population
    # The first populations are evaluated by a program of their own.
    if not bench.fits(part, f"population {population}", 4 * flops, programs=2):
        return
    entries, dims = [("USA", 0)], PROMPT.dims(config.hidden_size)
    fitness = make_fitness(config, chunk)
    evolution = make_evolution(Strategy(population=population), dims, fitness, mesh, entries)
    inputs = search_inputs(bench)
    compiled, figures = bench.compile(lambda: evolution.lower(1, inputs))
    before = peak_bytes()
    members = initial_population(inputs.space, jax.random.key(0), population)
    state = evolution.init(members[None], inputs)
    state, metrics = jax.block_until_ready(evolution.run(state, 1, inputs))
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(evolution.run(state, 1, inputs))
    seconds = time.perf_counter() - began
    bench.record(
        part,
        f"population {population}",
        chunk=chunk,
        attention=bench.kernel,
        seconds_a_generation=seconds,
        candidates_a_s=population / seconds,
        share_of_peak=share(bench, flops / seconds),
        failed=int(np.sum(metrics["failed"])),
        **figures,
        **bench.watch(f"search {population}", compiled, before),
    )


def answers(bench: Bench) -> None:
    """Answer the 24 items after some lead-ins, in blocks of one shape; planning is included."""
    config, tokenizer = bench.config, Tokenizer.load(MODEL_FOLDER)
    count = 2 if bench.small else 64
    lead_ins = [
        [{"role": "system", "content": f"You are person {n} of a survey. Answer as yourself."}]
        for n in range(count)
    ]
    conversations = encode(tokenizer, load_prompts(None), lead_ins, vsm().items)
    tokens = sum(len(conversations.tokens(n)) for n in range(len(conversations)))
    flops = 2 * count_params(config) * tokens  # at most: what neighbours share is computed once
    if not bench.fits("answers", f"{len(conversations)} answers", 2 * flops):
        return
    ask = functools.partial(answer_exact, config, bench.params, conversations, bench.mesh)
    began = time.perf_counter()
    ask()  # compiles
    first = time.perf_counter() - began
    began = time.perf_counter()
    ask()
    seconds = time.perf_counter() - began
    bench.compile_seconds = max(bench.compile_seconds, first - seconds)
    bench.record(
        "answers",
        f"{len(conversations)} answers",
        answers_a_s=len(conversations) / seconds,
        conversation_tokens_a_s=tokens / seconds,
        seconds=seconds,
        seconds_with_compiling=first,
    )


def train(bench: Bench) -> None:
    """Take steps of a low-rank adapter on examples of 100 to 132 tokens with short answers."""
    config, rng = bench.config, np.random.default_rng(0)
    batch = 4 if bench.small else 64
    steps = 3
    lengths = rng.integers(100, 133, steps * batch)
    examples = [Example(tuple(rng.integers(0, 1000, n).tolist()), int(n) - 2) for n in lengths]
    tokens = int(lengths.sum()) / steps
    # Forward, backward through frozen weights, and forward once more.
    flops = 3 * 2 * count_params(config) * tokens
    if not bench.fits("train", f"{batch} examples a step", (steps + 1) * flops):
        return
    settings = TrainConfig(batch=batch, remat=True, tokens_per_pass=1024 if bench.small else 8192)
    began = time.monotonic()
    trainer = Trainer(config, settings, LoraConfig(), {"joint": examples}, bench.mesh)
    bench.compile_seconds = max(bench.compile_seconds, time.monotonic() - began)
    state, seconds = trainer.start(bench.params), []
    for _, data, passes in trainer.batches(0):
        began = time.perf_counter()
        state, metrics = trainer.advance(state, bench.params, data, passes)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - began)
    best = min(seconds[1:])
    bench.record(
        "train",
        f"{batch} examples a step",
        useful_tokens_a_s=tokens / best,
        share_of_peak=share(bench, flops / best),
        seconds_a_step=best,
        loss=float(np.mean(metrics["loss"])),
        plan=trainer.describe(),
    )


def decode(bench: Bench) -> None:
    """Reply to prompts of one length; decoding is what replies take that do not end at once."""
    config, rng = bench.config, np.random.default_rng(0)
    batch, prompt, new = (4, 16, 8) if bench.small else (64, 256, 65)
    prompts = rng.integers(0, 1000, (batch, prompt)).tolist()
    flops = 2 * count_params(config) * batch * (2 * prompt + new)
    if not bench.fits("decode", f"{batch} replies", 2 * flops, programs=6):
        return
    sampling = Sampling(max_new_tokens=new, temperature=0.0)

    def reply(stop_tokens: Sequence[int]) -> list[list[int]]:
        return generate(
            config,
            bench.params,
            prompts,
            sampling,
            stop_tokens,
            batch_size=batch,
            mesh=bench.mesh,
        )

    # The same programs twice: no reply ends early, and every reply ends at its first token.
    none = [-1] * batch
    first = [tokens[0] for tokens in reply(none)]
    whole, prefill = (timed(functools.partial(reply, stop), repeats=2) for stop in (none, first))
    decoding = max(whole - prefill, 1e-9)
    bench.record(
        "decode",
        f"{batch} replies to {prompt} tokens",
        prefill_tokens_a_s=batch * prompt / prefill,
        decode_tokens_a_s=batch * (new - 1) / decoding,
        ms_a_step=1e3 * decoding / (new - 1),
        seconds_in_all=whole,
    )


PARTS: Mapping[PartName, Callable[[Bench], None]] = MappingProxyType(
    {
        name: part
        for name, part in zip(
            get_args(PartName),
            (facts, kernels, chunks, memory, population, answers, train, decode),
            strict=True,
        )
    }
)


# -- shared by the parts ----------------------------------------------------------------------


def random_params(config: LlamaConfig, mesh: Mesh) -> Params:
    """Return random weights, each made where it lies; a stack layer by layer, to save memory."""
    tree, blocks = weight_tree(config), block_weights(config)
    shardings = param_shardings(config, mesh)
    layers = config.num_hidden_layers - 1
    leaves, structure = jax.tree.flatten_with_path(tree, is_leaf=is_weight)
    made = []
    for i, ((path, weight), sharding) in enumerate(
        zip(leaves, jax.tree.leaves(shardings), strict=True)
    ):
        key = jax.random.fold_in(jax.random.key(0), i)
        make = functools.partial(weight.init, c=config)
        if path[0].key == "layers":
            one = functools.partial(blocks[path[1].key].init, c=config)
            make = functools.partial(_stack, one, layers)
        made.append(jax.jit(make, out_shardings=sharding)(key))
    return structure.unflatten(made)


def _stack(one: Callable, layers: int, key: jax.Array) -> jax.Array:
    return jax.lax.map(one, jax.random.split(key, layers))


def prepared_items(bench: Bench) -> Any:
    """Return the items ready to be scored, on the mesh."""
    items = prepare_items(bench.config, bench.params, bench.layout, bench.kernel)
    return place_whole(items, replicated(bench.mesh))


def search_inputs(bench: Bench) -> FitnessInputs:
    """Return what the search's fitness reads: the real items, an objective of zeros.

    Its values do not matter to what is computed.
    """
    shapes = abstract_inputs(bench.config, bench.layout, PROMPT, bench.mesh, bench.kernel)

    def fill(x: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.ones(x.shape, bool) if x.dtype == bool else np.zeros(x.shape, x.dtype)

    filled = jax.tree.map(fill, shapes.replace(items=None))
    space = dataclasses.replace(filled.space, scale=np.float32(0.02))
    inputs = filled.replace(items=prepared_items(bench), space=space)
    return place_whole(inputs, replicated(bench.mesh))


def first_chunk(bench: Bench) -> int:
    """Return the chunk that a search takes where nothing was measured."""
    tokens = bench.layout.tokens_computed
    return 1 if bench.small else busy_chunk(tokens, jax.local_devices()[0].platform)


def share(bench: Bench, flops_a_second: float) -> float | None:
    """Return a rate over the peak of all devices; None if it was not measured."""
    return flops_a_second / (bench.devices * bench.peak) if bench.peak else None


def peak_bytes() -> int | None:
    """Return the most memory that programs have held on a device so far, if the platform tells."""
    peaks: Sequence[int | None] = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    return None if None in peaks else max(peaks)


def timed(run: Callable[[], Any], repeats: int) -> float:
    """Return the least seconds of some calls after a first one that is not counted."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return min(seconds)
