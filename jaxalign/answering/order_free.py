"""Sums over keys whose bits do not depend on the order of the keys, for bfloat16 on a CPU.

A model in bfloat16 rounds in every layer, and a difference in the last digit of a float32 sum
decides some of these roundings otherwise. Each of those is a difference of a bfloat16 digit, and
after a few layers two programs that sum the same keys in another order are as far apart as two
roundings of the model: SmolLM2's losses differed by 2 points, although both programs rounded at the
same places. Products with weights do not bring such differences, because on CPU a row's bits depend
neither on the other rows nor on their number. Sums over keys do: a search keeps the text that all
questions share apart, and a block of conversations cuts its tree into other rows.

So queries, keys, weights and values are split into integers of 8 bits, high and low, as in
fixed-point arithmetic. Products of such integers and their sums are exact in float32 up to 2^24, in
whatever order and pieces they are computed, and everything else is multiplied by powers of two, so
that it does not matter either which products and sums a compiler contracts. That holds for 512 keys
of the largest weight, or any number of keys whose weights add up to as much; beyond, the last digit
may depend on the order.

Letters: Q query, S key, H head width, U = 2 H parts of a vector; leading axes are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

_FINE = 2**8  # low parts count steps that are finer by this factor
_STEPS = 2**7  # steps of vectors, which have a sign, below their scale
_WEIGHT_STEPS = 2**8  # of a weight
_TOTAL_STEPS = 2**17  # of a weight in the softmax's denominator, of which an int32 holds 16,384
_FRACTION = 2**14  # steps of an exponent of two
# 2^x of a fraction x, highest power first, in units of 2^-16; fitted to a relative error of 3e-5.
_POWER_OF_TWO = (892, 3389, 15842, 45411, 65536)


class Split(NamedTuple):
    """Vectors as integers; an entry is (high + low / 256) * scale / 128."""

    parts_SxU: jax.Array  # bfloat16 integers from -128 to 128: all high parts, then all low ones
    scale_S: jax.Array  # float32, a power of two for each vector


def split(x_SxH: jax.Array) -> Split:
    """Split vectors [..., S, H]; their parts hold 16 bits below a vector's largest entry."""
    x = x_SxH.astype(jnp.float32)
    scale_Sx1 = _power_above(jnp.abs(x).max(axis=-1, keepdims=True))
    parts = _high_and_low(x * (_STEPS / scale_Sx1))
    return Split(jnp.concatenate(parts, axis=-1), scale_Sx1[..., 0])


def products(equation: str, q: Split, k: Split) -> jax.Array:
    """Return the products of queries and keys, float32 [..., Q, S].

    Args:
        equation: einsum of the parts, which sums over the last axis of both.
        q: the queries.
        k: the keys; the leading axes of their scales must broadcast to those of the result.
    """
    high_q, _ = jnp.split(q.parts_SxU, 2, axis=-1)
    high_k, low_k = jnp.split(k.parts_SxU, 2, axis=-1)
    high = _multiply(equation, high_q, high_k)
    # The product of both low parts lies below the bits that are kept.
    mixed = _multiply(equation, q.parts_SxU, jnp.concatenate([low_k, high_k], axis=-1))
    scale = q.scale_S[..., :, None] * k.scale_S[..., None, :]
    return (high + mixed / _FINE) * (scale / _STEPS**2)


def softmax_sum(
    scores: Sequence[jax.Array], values: Sequence[Split], equations: Sequence[str]
) -> jax.Array:
    """Return softmax-weighted sums of values over several sets of keys together.

    Args:
        scores: of each set, float32 [..., Q, S]; the least float32 number where a key is not seen.
        values: of each set; the leading axes of their scales must broadcast to those of the scores.
        equations: of each set, the einsum of scores and parts of values, to [..., Q, U].

    Returns:
        float32 [..., Q, H].
    """
    largest = _largest(scores)
    weights = [_exp(score - largest) for score in scores]
    total = sum((w * _TOTAL_STEPS).astype(jnp.int32).sum(axis=-1, keepdims=True) for w in weights)
    # With a value's scale in its weight, all products count the same unit.
    weights = [w * v.scale_S[..., None, :] for w, v in zip(weights, values, strict=True)]
    unit = _power_above(_largest(weights))
    parts = [_high_and_low(w * (_WEIGHT_STEPS / unit)) for w in weights]
    high, low = (
        sum(
            _multiply(equation, weight[i], v.parts_SxU)
            for equation, weight, v in zip(equations, parts, values, strict=True)
        )
        for i in (0, 1)
    )
    (high_high, high_low), (low_high, low_low) = (jnp.split(x, 2, axis=-1) for x in (high, low))
    out = high_high + (high_low + low_high) / _FINE + low_low / _FINE**2
    # Steps of weights times steps of values, over steps of the denominator.
    steps = unit * (_TOTAL_STEPS / _WEIGHT_STEPS / _STEPS)
    return out * (steps / total.astype(jnp.float32))


def _multiply(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _exp(x: jax.Array) -> jax.Array:
    """Return exp(x) of x <= 0 to 15 bits; 0 below 2^-60.

    The last digit of XLA's own depends on what it is compiled with. Here a power of two, of steps
    of 2^-14, is computed in integers: a polynomial for the fraction, and an exponent.
    """
    steps = jnp.round(jnp.maximum(x, -45.0) * (_FRACTION / math.log(2))).astype(jnp.int32)
    fraction = steps & (_FRACTION - 1)
    power = jnp.int32(_POWER_OF_TWO[0])
    for coefficient in _POWER_OF_TWO[1:]:
        power = (power * fraction >> 14) + coefficient
    exponent = jax.lax.bitcast_convert_type(((steps >> 14) + (127 - 16)) << 23, jnp.float32)
    return jnp.where(x > -42.0, power.astype(jnp.float32) * exponent, 0.0)


def _largest(arrays: Sequence[jax.Array]) -> jax.Array:
    """Return the largest number over the last axis of all arrays together, [..., 1]."""
    return jax.tree.reduce(jnp.maximum, [x.max(axis=-1, keepdims=True) for x in arrays])


def _power_above(x: jax.Array) -> jax.Array:
    """Return the least power of two above each number from 2^-60 on, else 2^-59."""
    exponent = jax.lax.bitcast_convert_type(jnp.maximum(x, 2.0**-60), jnp.int32) & 0x7F800000
    return 2 * jax.lax.bitcast_convert_type(exponent, jnp.float32)


def _high_and_low(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the nearest integers, and what is left in 256ths; both fit a bfloat16."""
    high = jnp.round(x)
    low = jnp.round((x - high) * _FINE)
    return high.astype(jnp.bfloat16), low.astype(jnp.bfloat16)
