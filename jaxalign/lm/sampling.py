"""Choosing the next token: temperature, top-k and top-p, as transformers composes them.

The least logit that top-k or top-p keeps is found bit by bit: among the 2^32 float32 values it is
the largest one at which enough tokens (or enough probability) lie at or above it. That is 32 passes
over the logits where sorting 128,000 of them takes many more, and it needs no gather.

Source: top-k, Fan et al. 2018; top-p, Holtzman et al. 2020; order and conventions, transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxalign.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How replies are drawn."""

    max_new_tokens: int = 256
    """Tokens after which a reply is cut off."""
    temperature: float = 1.0
    """What logits are divided by; 0 takes the most likely token."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens whose probabilities add up to this; 1 is all."""
    top_k: int = 0
    """Draw from so many most likely tokens; 0 is all. Applied before top-p."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature={self.temperature}: must be 0 (most likely) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p}: must be above 0 and at most 1 (all tokens)")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: must be 0 (all tokens) or more")


def next_tokens(sampling: Sampling, keys_B: jax.Array, logits_BxV: jax.Array) -> jax.Array:
    """One token a sequence, int32 [B], each drawn by its own key from float32 logits [B, V].

    Equal logits: greedy takes the lowest token id.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    kept_BxV = kept_logits(sampling, logits_BxV)
    return jax.vmap(jax.random.categorical)(keys_B, kept_BxV).astype(jnp.int32)


def kept_logits(sampling: Sampling, logits_BxV: jax.Array) -> jax.Array:
    """Logits over the temperature (above 0), -inf for tokens that top-k or top-p leaves out.

    Tokens that tie with the least likely one kept are kept too. (transformers does so for top-k;
    in its top-p the order of sorting decides.) At least one token is kept.
    """
    logits = logits_BxV / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep(logits, jnp.ones_like(logits), sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep(logits, jax.nn.softmax(logits, axis=-1), sampling.top_p)
    return logits


def _keep(logits_BxV: jax.Array, weights_BxV: jax.Array, enough: float) -> jax.Array:
    """Keep the largest logits, as few as have `enough` weight together."""
    order_BxV = _ordered_bits(logits_BxV)

    def suffices(bits_Bx1: jax.Array) -> jax.Array:
        weight = jnp.sum(weights_BxV, axis=-1, where=order_BxV >= bits_Bx1, keepdims=True)
        return weight >= enough

    least_Bx1 = _largest_bits(suffices, logits_BxV.shape[0])
    return jnp.where(order_BxV >= least_Bx1, logits_BxV, -jnp.inf)


def _ordered_bits(x: jax.Array) -> jax.Array:
    """float32 -> uint32 in the same order (-0.0 counts as 0.0)."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.uint32)
    negative = bits >> 31 == 1
    return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _largest_bits(holds: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """The largest uint32 [rows, 1] that `holds`, which is true up to there; 0 if none."""

    def settle(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, found)

    return jax.lax.fori_loop(0, 32, settle, jnp.zeros((rows, 1), jnp.uint32))
