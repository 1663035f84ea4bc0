"""Choose the next token: temperature, top-k and top-p, composed as in transformers.

The least logit that top-k or top-p keeps is found bit by bit: of the 2^32 float32 values it is the
largest one at or above which there are enough tokens (or enough probability). That takes 32 passes
over the logits and no gather; sorting 128,000 logits takes many more passes.

Source: top-k, Fan et al. 2018; top-p, Holtzman et al. 2020; order and conventions, transformers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxalign.core.errors import UserError
from jaxalign.runtime.platform import target_platform


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of replies are drawn."""

    max_new_tokens: int = 256
    """Largest number of tokens of a reply."""
    temperature: float = 1.0
    """Divisor of the logits; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample only from the fewest most likely tokens whose probabilities reach this sum (1
    disables)."""
    top_k: int = 0
    """Sample only from the k most likely tokens (0 disables); applied before top-p."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"`max_new_tokens` {self.max_new_tokens}: must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"`temperature` {self.temperature}: must be 0 (most likely) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"`top_p` {self.top_p}: must be above 0 and at most 1 (all tokens)")
        if self.top_k < 0:
            raise UserError(f"`top_k` {self.top_k}: must be 0 (all tokens) or more")


def next_tokens(sampling: Sampling, keys_B: jax.Array, logits_BxV: jax.Array) -> jax.Array:
    """Draw one token for each sequence, by its own key.

    At temperature 0 the largest logit wins, and the lowest token id of several that are equal.

    Args:
        sampling: How to draw.
        keys_B: Random keys of the sequences.
        logits_BxV: float32.

    Returns:
        int32 [B].
    """
    if sampling.temperature == 0:
        return most_likely(logits_BxV)
    kept_BxV = kept_logits(sampling, logits_BxV)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BxV).astype(jnp.int32)


def most_likely(logits_BxV: jax.Array) -> jax.Array:
    """Return the token of the largest logit, the lowest of several that are equal, int32 [B]."""
    width = math.gcd(logits_BxV.shape[-1], 256)
    if target_platform() != "cpu" or width < 16:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    # XLA on CPU takes a maximum many times faster than its place: the best block, then in it.
    blocks_BxJxW = logits_BxV.reshape(len(logits_BxV), -1, width)
    best_B = jnp.argmax(blocks_BxJxW.max(axis=-1), axis=-1)
    block_BxW = jnp.take_along_axis(blocks_BxJxW, best_B[:, None, None], axis=1)[:, 0]
    return (best_B * width + jnp.argmax(block_BxW, axis=-1)).astype(jnp.int32)


def kept_logits(sampling: Sampling, logits_BxV: jax.Array) -> jax.Array:
    """Return the logits divided by the temperature, with -inf for tokens that are left out.

    The temperature must be above 0. Tokens that tie with the least likely one kept are kept too.
    (transformers does so for top-k; in its top-p the sorting order decides.) At least one token is
    kept.
    """
    logits = logits_BxV / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep(logits, jnp.ones_like(logits), sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep(logits, jax.nn.softmax(logits, axis=-1), sampling.top_p)
    return logits


def _keep(logits_BxV: jax.Array, weights_BxV: jax.Array, enough: float) -> jax.Array:
    """Keep the fewest largest logits whose weights add up to `enough`; others become -inf."""
    order_BxV = _ordered_bits(logits_BxV)

    def suffices(bits_Bx1: jax.Array) -> jax.Array:
        weight = jnp.sum(weights_BxV, axis=-1, where=order_BxV >= bits_Bx1, keepdims=True)
        return weight >= enough

    least_Bx1 = _largest_bits(suffices, logits_BxV.shape[0])
    return jnp.where(order_BxV >= least_Bx1, logits_BxV, -jnp.inf)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Map float32 to uint32 values of the same order (-0.0 counts as 0.0)."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)
    # Negative floats grow in magnitude with their bits, so theirs are inverted; positive ones are
    # moved above them by setting the top bit.
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _largest_bits(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """Return the largest uint32 [rows, 1] that `holds`, by bisection; 0 if none does.

    `holds` must be true up to some value and false above it.
    """

    def settle(i: jax.Array, settled: jax.Array) -> jax.Array:
        # Bits from the highest on: each is set if the value still holds with it.
        candidate = settled | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, settled)

    return jax.lax.fori_loop(0, 32, settle, jnp.zeros((rows, 1), jnp.uint32))
