"""Run the JAX side of `experiments.bench.population`: jaxalign's method, and a plain `vmap`.

The `vmap` is what one would write first: the items of a candidate go through the same model as a
padded batch, with the output head at each item's last position, for the same number of candidates
at a time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.peers import serve
from experiments.bench.population.work import Method, Work
from jaxalign.answering.cost import matmul_peak, plan_report, plan_text
from jaxalign.answering.kernel_choice import choose_kernel
from jaxalign.answering.options import embed_tokens, option_log_probs, prepare_items
from jaxalign.answering.plan import plan_layout
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import Params, count_params, init_params
from jaxalign.runtime.memory import available_bytes, busy_chunk


class JaxSide:
    """Methods that the parent process calls by name."""

    def prepare(self, work: Work, copies: float, save: bool) -> dict[str, Any]:
        """Load the weights, or draw them at random, and draw the prompts.

        Args:
            work: What to compute.
            copies: Number of copies of the weights that all workers together will hold.
            save: Whether to save random weights for the other worker.

        Returns:
            Facts about the device and the choices made, and the prompts, float32 [P, M, D].

        Raises:
            UserError: If the weights do not fit into memory.
        """
        device = jax.devices()[0]
        refuse_short_memory(work.llama, copies, available_bytes(device))
        self._work = work
        if (work.folder / "config.json").is_file():
            self._params = load_checkpoint(work.folder, work.llama)
        else:
            self._params = jax.jit(init_params, static_argnums=0)(
                work.llama, jax.random.key(work.seed)
            )
            if save:
                save_checkpoint(work.folder, self._params, work.llama)
        self._prompts = random_prompts(work, self._params)
        self._layout = plan_layout(work.before, work.prompt_length, work.items, work.spellings())
        self._chunk = work.chunk or busy_chunk(self._layout.tokens_computed, device.platform)
        choice = choose_kernel(work.llama, self._layout, self._chunk, 1, work.attention)
        self._kernel = choice.kernel
        return {
            "platform": device.platform,
            "device": device.device_kind,
            "jax": jax.__version__,
            "chunk": self._chunk,
            "attention": choice.describe(),
            "plan": plan_text(plan_report(work.llama, self._layout, self._chunk)),
            "prompts_PxMxD": np.asarray(self._prompts),
        }

    def compile(self, method: Method) -> dict[str, float]:
        """Compile a method.

        Returns:
            The seconds taken (tracing included), the bytes it needs besides weights and prompts,
            and the number of prompts it computes at a time.
        """
        started = time.perf_counter()
        run, values = {"ours": self._ours, "jax_vmap": self._vmap}[method]()
        compiled = jax.jit(run).lower(values, self._prompts).compile()
        self._run = getattr(self, "_run", {}) | {method: (compiled, values)}
        seconds = time.perf_counter() - started
        temporary = compiled.memory_analysis().temp_size_in_bytes
        return {
            "compile_seconds": seconds,
            "temporary_bytes": temporary,
            "candidates_in_a_batch": self._chunk,
        }

    def run(self, method: Method) -> dict[str, Any]:
        """Evaluate all candidates once; return seconds and float32 [P, Q, O] log-probabilities."""
        compiled, values = self._run[method]
        started = time.perf_counter()
        log_probs_PxQxO = np.asarray(compiled(values, self._prompts))
        return {"seconds": time.perf_counter() - started, "log_probs": log_probs_PxQxO}

    def _ours(self) -> tuple[Callable, Any]:
        llama = self._work.llama
        context = prepare_items(llama, self._params, self._layout, self._kernel)
        return lambda values, x: option_log_probs(llama, values, x, self._chunk), context

    def _vmap(self) -> tuple[Callable, Any]:
        work, tables = self._work, plain_tables(self._work)
        one = lambda values, x: plain_log_probs(work.llama, *values, x)  # noqa: E731
        return _in_chunks(one, self._chunk), (self._params, tables)

    def reference(self, candidates: int) -> np.ndarray:
        """Evaluate the first `candidates` candidates in float32 with the same weights."""
        config = self._work.llama.replace(dtype="float32", param_dtype="float32")
        params = jax.tree.map(lambda w: w.astype(jnp.float32), self._params)
        run = _in_chunks(lambda values, x: plain_log_probs(config, *values, x), 1)
        return np.asarray(
            jax.jit(run)((params, plain_tables(self._work)), self._prompts[:candidates])
        )

    def peak(self) -> float:
        """Return the rate of the fastest matrix product that this process reaches, in FLOP/s."""
        return matmul_peak(self._work.llama.dtype)

    def bandwidth(self) -> float:
        """Measure memory bandwidth in bytes per second: a sum over an array beyond all caches."""
        x = jnp.ones(2**26, jnp.float32)  # 256 MiB
        add = jax.jit(jnp.sum)
        jax.block_until_ready(add(x))
        started = time.perf_counter()
        jax.block_until_ready([add(x) for _ in range(8)])
        return 8 * x.nbytes / (time.perf_counter() - started)

    def device_peak_bytes(self) -> int | None:
        """Return the peak device memory since the start; None if it is the process's own."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def plain_tables(work: Work) -> tuple[jax.Array, ...]:
    """Return the program's arguments: ids before the prompt, padded items, lengths, options."""
    tokens_QxT, lengths_Q = work.padded_items()
    tables = (np.array(work.before, np.int32), tokens_QxT, lengths_Q, work.options_QxOxS)
    return tuple(map(jnp.asarray, tables))


def plain_log_probs(
    config: LlamaConfig, params: Params, tables: tuple[jax.Array, ...], prompt_MxD: jax.Array
) -> jax.Array:
    """Compute option log-probabilities of one prompt, float32 [Q, O], from a padded batch."""
    before_S, tokens_QxT, lengths_Q, options_QxOxS = tables
    Q = tokens_QxT.shape[0]
    # The text before the items, and the prompt, in front of every item.
    lead = jnp.concatenate([embed_tokens(config, params, before_S), prompt_MxD])
    lead_QxSxD = jnp.broadcast_to(lead[None], (Q, *lead.shape))
    x_QxTxD = jnp.concatenate([lead_QxSxD, embed_tokens(config, params, tokens_QxT)], axis=1)
    # Padding is at the end, so the last real token of an item is at its own length.
    last_Q = lead.shape[0] + lengths_Q - 1
    logits_QxV = Llama(config).apply({"params": params}, x_QxTxD, at_BxA=last_Q[:, None])[:, 0]
    flat_QxN = jnp.maximum(options_QxOxS, 0).reshape(Q, -1)
    logits_QxOxS = jnp.take_along_axis(logits_QxV, flat_QxN, axis=1).reshape(options_QxOxS.shape)
    # An option's probability is the sum over its spellings; -inf where there is no spelling.
    logits_QxOxS = jnp.where(options_QxOxS >= 0, logits_QxOxS, -jnp.inf)
    return jax.nn.log_softmax(jax.nn.logsumexp(logits_QxOxS, axis=-1), axis=-1)


def _in_chunks(one: Callable, chunk: int) -> Callable:
    """Return `one` mapped over its second argument's leading axis, `chunk` rows at a time."""
    return lambda values, xs: jax.lax.map(lambda x: one(values, x), xs, batch_size=chunk)


def random_prompts(work: Work, params: Params) -> jax.Array:
    """Draw prompts whose vectors are as long as typical embeddings, float32 [P, M, D]."""
    table_VxD = params["embed"].astype(jnp.float32)
    # Prompts of another scale than the embeddings would saturate the first norm.
    rms = jnp.sqrt(jnp.mean(jnp.square(table_VxD)))
    shape = (work.population, work.prompt_length, work.llama.hidden_size)
    return rms * jax.random.normal(jax.random.key(work.seed + 1), shape)


def refuse_short_memory(config: LlamaConfig, copies: float, available: int | None) -> None:
    """Raise UserError if the weights of all workers do not fit into `available` bytes."""
    needed = copies * count_params(config) * jnp.dtype(config.param_dtype).itemsize
    if available is not None and needed > available:
        raise UserError(
            f"the weights alone need {needed / 2**30:.0f} GiB, but {available / 2**30:.0f} GiB are "
            "free; take a smaller --size, --dtype bfloat16 or fewer methods in --against"
        )


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)  # so that compile times are real
    serve(JaxSide(), sys.argv)
