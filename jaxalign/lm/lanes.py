"""Several adapters in one sequence: which tokens belong to which.

The tokens of one adapter stand next to each other and are a *unit*. Products with frozen weights
cover the whole sequence at once; low-rank products are computed unit by unit, each padded to the
same length, so that an adapter's numbers depend neither on where its unit stands nor on what stands
beside it. A token's place in its unit and back is a selection in both directions, so neither the
values nor their gradients are ever added up in an order that the hardware chooses.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LANES, PLACES = "lanes", "places"  # names beside a layer's kernels
# The same for the positions that alone leave the last layer.
KEPT_LANES, KEPT_PLACES = "kept_lanes", "kept_places"


def unit_lanes(sizes_U: jax.Array, longest: int, length: int) -> tuple[jax.Array, jax.Array]:
    """Return where the tokens of units stand, and where the units' places are.

    Args:
        sizes_U: int, the tokens of each unit; units stand one after the other.
        longest: Places of a unit.
        length: Tokens of the sequence.

    Returns:
        lanes int32 [U, longest], the token in each place of a unit, `length` where there is none;
        and places int32 [length], where each token stands in these, U * longest if nowhere.
    """
    units = len(sizes_U)
    ends_U = jnp.cumsum(sizes_U)
    starts_U = ends_U - sizes_U
    inside = jnp.arange(longest)[None]
    lanes = jnp.where(inside < sizes_U[:, None], starts_U[:, None] + inside, length)
    tokens = jnp.arange(length)
    unit_T = jnp.sum(tokens[:, None] >= ends_U[None], axis=1)  # of tokens after the last one: U
    own = jnp.minimum(unit_T, units - 1)
    places = jnp.where(unit_T < units, own * longest + tokens - starts_U[own], units * longest)
    return lanes.astype(jnp.int32), places.astype(jnp.int32)


@jax.custom_vjp
def to_lanes(x: jax.Array, lanes: jax.Array, places: jax.Array) -> jax.Array:
    """Return the rows of x [T, ...] unit by unit, [U, M, ...]; zeros where a unit is shorter."""
    return jnp.take(x, lanes, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def from_lanes(y: jax.Array, lanes: jax.Array, places: jax.Array) -> jax.Array:
    """Return the rows of y [U, M, ...] in the order of the sequence, [T, ...]; zeros elsewhere."""
    return jnp.take(y.reshape(-1, *y.shape[2:]), places, axis=0, mode="fill", fill_value=0)


# Each is the other's transpose, because a token has at most one place and a place one token.
to_lanes.defvjp(
    lambda x, lanes, places: (to_lanes(x, lanes, places), (lanes, places)),
    lambda index, g: (from_lanes(g, *index), None, None),
)
from_lanes.defvjp(
    lambda y, lanes, places: (from_lanes(y, lanes, places), (lanes, places)),
    lambda index, g: (to_lanes(g, *index), None, None),
)
