"""How shares of answers follow from a culture, for one item (the rules are in `society`)."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import numpy as np

from jaxalign.stats.vsm import FORMULAS
from jaxalign.surveys.hofstede import DIMENSIONS

SEED = 2013
_EDGE = 0.06  # expected codes keep this share of the scale away from either end
_SMALL = 0.05  # deviation of the seeded loadings, in fifths of a scale per 25 points


@dataclasses.dataclass(frozen=True)
class Culture:
    """`z_6`: (scores - 50) / 25. `own`: item id -> own part, one number or one per option."""

    z_6: np.ndarray
    own: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def toward(self, other: Culture, share: float) -> Culture:
        """The point `share` of the way from here to `other`."""
        ids = self.own.keys() | other.own.keys()
        zero = np.zeros(1)
        own = {i: (1 - share) * self.own.get(i, zero) + share * other.own.get(i, zero) for i in ids}
        return Culture((1 - share) * self.z_6 + share * other.z_6, own)


@dataclasses.dataclass(frozen=True)
class Response:
    """How an item's answers follow from a culture. Ordinal: `base` [1], `loadings` [1, 6] in
    codes counted from 1, `spread` in codes. Nominal: `base` [O], `loadings` [O, 6] in logits."""

    options: int
    nominal: bool
    base: np.ndarray
    loadings: np.ndarray
    spread: float = 1.0


def level(response: Response, culture: Culture, item_id: str = "") -> np.ndarray:
    """Expected code [1] of an ordinal item, kept off the scale's ends; logits [O] of a nominal."""
    own = culture.own.get(item_id, 0.0)
    raw = response.base + response.loadings @ culture.z_6 + own
    if response.nominal:
        return raw
    edge = _EDGE * (response.options - 1)
    return np.clip(raw, 1 + edge, response.options - edge)


def shares_NxO(responses: Sequence[Response], levels: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [N, most options]: shares per option at the given levels, zero past an item's own."""
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
    """Logistic shares [N, O] with these expected codes, by bisection on the location."""
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
    """A random stream of its own for whatever the names say, the same on every machine."""
    return np.random.default_rng([SEED, zlib.crc32("/".join(names).encode())])


def driven_response(
    name: str, options: int, drivers: dict[str, float] | list[dict[str, float]]
) -> Response:
    """The response of an item with these drivers: fifths of the scale per 25 points, or for a
    nominal item a list of them, one per option (doubled, they are logits)."""
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
    """Loadings that solve the score formulas exactly, shared evenly between an item pair."""
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
