"""Compute the shares of an item's answers from a culture; `society` states the rules."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import numpy as np

from jaxalign.stats.vsm import FORMULAS
from jaxalign.surveys.hofstede import DIMENSIONS

SEED = 2013
_EDGE = 0.06  # distance of expected codes from either end, as a share of the scale
_SMALL = 0.05  # standard deviation of the random loadings, in fifths of a scale per 25 points


@dataclasses.dataclass(frozen=True)
class Culture:
    """A point in the space of cultures.

    Attributes:
        z_6: (scores - 50) / 25 of the six dimensions.
        offsets: What the culture adds to single items besides, by item id: one number, or one per
            option.
    """

    z_6: np.ndarray
    offsets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def toward(self, other: Culture, share: float) -> Culture:
        """Return the point `share` of the way from this one to `other`."""
        mine, theirs, zero = self.offsets, other.offsets, np.zeros(1)
        offsets = {
            i: (1 - share) * mine.get(i, zero) + share * theirs.get(i, zero)
            for i in mine.keys() | theirs.keys()
        }
        return Culture((1 - share) * self.z_6 + share * other.z_6, offsets)


@dataclasses.dataclass(frozen=True)
class Response:
    """How an item's answers follow from a culture.

    Attributes:
        options: Number of options.
        nominal: Whether the options have no order.
        base: Ordinal: expected code [1] at a score of 50. Nominal: logits [O].
        loadings: Change per 25 points of each dimension, [1, 6] in codes or [O, 6] in logits.
        spread: Scale of the logistic distribution of an ordinal item, in codes.
    """

    options: int
    nominal: bool
    base: np.ndarray
    loadings: np.ndarray
    spread: float = 1.0


def level(response: Response, culture: Culture, item_id: str = "") -> np.ndarray:
    """Return where a culture stands on an item.

    Returns:
        The expected code [1] of an ordinal item, away from the ends of its scale; the logits [O] of
        a nominal one.
    """
    offset = culture.offsets.get(item_id, 0.0)
    raw = response.base + response.loadings @ culture.z_6 + offset
    if response.nominal:
        return raw
    edge = _EDGE * (response.options - 1)
    return np.clip(raw, 1 + edge, response.options - edge)


def shares_NxO(responses: Sequence[Response], levels: Sequence[np.ndarray]) -> np.ndarray:
    """Return the shares of the options at the given levels, float64 [N, most options].

    Beyond the last option of an item they are zero.
    """
    options = np.array([r.options for r in responses])
    codes = np.arange(1, options.max() + 1)
    out = np.zeros((len(options), len(codes)))
    is_nominal = np.array([r.nominal for r in responses])
    rows = np.flatnonzero(~is_nominal)
    if len(rows):
        means = np.array([levels[n][0] for n in rows])
        spreads = np.array([responses[n].spread for n in rows])
        out[rows] = _ordinal_shares(means, options[rows], spreads, codes)
    for n in np.flatnonzero(is_nominal):
        weights = np.exp(levels[n] - levels[n].max())
        out[n, : len(weights)] = weights / weights.sum()
    return out


def _ordinal_shares(
    mean_N: np.ndarray, options_N: np.ndarray, spread_N: np.ndarray, codes_O: np.ndarray
) -> np.ndarray:
    """Return logistic shares [N, O] that have these expected codes exactly.

    The location of each distribution is found by bisection.
    """
    cuts = codes_O[:-1] + 0.5
    inside = cuts < options_N[:, None]
    low, high = 1 - 12 * spread_N, options_N + 12 * spread_N
    for _ in range(50):
        middle = (low + high) / 2
        steps = np.clip((cuts - middle[:, None]) / spread_N[:, None], -40, 40)
        above = inside / (1 + np.exp(steps))
        too_low = 1 + above.sum(axis=1) < mean_N  # expected code = 1 + sum of P(code above a cut)
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    ends = np.ones((len(mean_N), 1)), np.zeros((len(mean_N), 1))
    return -np.diff(np.concatenate([ends[0], above, ends[1]], axis=1), axis=1)


def stream(*names: str) -> np.random.Generator:
    """Return a random generator for these names, the same on every machine."""
    return np.random.default_rng([SEED, zlib.crc32("/".join(names).encode())])


def driven_response(
    name: str, options: int, drivers: dict[str, float] | list[dict[str, float]]
) -> Response:
    """Return the response of an item to the given drivers.

    Args:
        name: Seeds the random part.
        options: Number of options.
        drivers: By dimension, the change in fifths of the scale per 25 points. For a nominal item,
            a list with one such table per option; doubled, the numbers are logits.
    """
    random = stream("response", name)
    nominal = isinstance(drivers, list)
    rows = drivers if nominal else [drivers]
    loadings = np.array([[row.get(d, 0.0) for d in DIMENSIONS] for row in rows])
    loadings += random.normal(0, _SMALL, loadings.shape)
    if nominal:
        return Response(options, True, random.normal(0, 0.4, options), 2 * loadings)
    unit = (options - 1) / 4
    base = np.array([1 + (options - 1) * random.uniform(0.35, 0.65)])
    return Response(options, False, base, unit * loadings, unit * random.uniform(0.4, 0.6))


@functools.cache
def values_responses() -> dict[str, Response]:
    """Return responses of the values module whose loadings solve the score formulas exactly.

    The loading of a pair of items is shared evenly between them.
    """
    out = {}
    for d, (first, second) in FORMULAS.items():
        random = stream("values", d)
        w1, w2 = first[0], second[0]
        base = random.uniform(2.1, 2.6, 4)
        base[1] = base[0] + random.uniform(-0.2, 0.2)
        base[3] = base[2] + w1 * (base[0] - base[1]) / w2  # a profile of 50 scores C
        for k, (w, plus, minus) in enumerate((first, second)):
            slope = 25 * w / (w1**2 + w2**2) / 2  # per unit of z, for each of the two items
            for sign, item, middle in ((1, plus, base[2 * k]), (-1, minus, base[2 * k + 1])):
                loadings = sign * slope * (np.array(DIMENSIONS) == d)
                spread = random.uniform(0.4, 0.6)
                out[f"m{item:02d}"] = Response(5, False, np.array([middle]), loadings[None], spread)
    return out
