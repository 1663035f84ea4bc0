"""The fitness that soft prompts evolve under: how far six survey scores are from a country's.

Source of the objective: Masoud et al. 2025 (arXiv 2503.16094): the L1 distance between the model's
six VSM 2013 scores and the published ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.options import PreparedItems, chunk_log_probs, in_chunks
from jaxalign.lm.config import LlamaConfig
from jaxalign.methods.soft_prompt.space import Space, decode
from jaxalign.stats.vsm import Reading, Scorer, loss


@struct.dataclass
class Objective:
    """All that the fitness reads; an argument of the compiled program, whole on every device."""

    interview: PreparedItems
    scorer: Scorer
    space: Space  # `start` has a leading axis of C countries
    target_Cx6: jax.Array
    used_6: jax.Array
    penalty: jax.Array  # points per unit of mean squared z


def make_fitness(config: LlamaConfig, reading: Reading, chunk: int) -> Callable:
    """(candidates_PxZ, country_P, Objective) -> fitness_P, in points of score; lower is better.

    fitness = sum of |score - target| over the dimensions used + penalty * mean of z squared: the
    penalty keeps prompts near their start, in units of the spread they began with.
    """

    def score(part: tuple[jax.Array, jax.Array], objective: Objective) -> jax.Array:
        candidates_BxZ, country_B = part
        space = dataclasses.replace(objective.space, start=objective.space.start[country_B])
        prompts_BxMxD = decode(space, candidates_BxZ)
        log_probs_BxQxO = chunk_log_probs(config, objective.interview, prompts_BxMxD)
        scores_Bx6 = objective.scorer.scores(log_probs_BxQxO, reading)
        distance_B = loss(scores_Bx6, objective.target_Cx6[country_B], objective.used_6)
        return distance_B + objective.penalty * jnp.mean(jnp.square(candidates_BxZ), axis=-1)

    def fitness(candidates_PxZ: jax.Array, country_P: jax.Array, objective: Objective) -> jax.Array:
        # Everything in the chunk, decoding too: a product of other size may round otherwise.
        return in_chunks(lambda part: score(part, objective), (candidates_PxZ, country_P), chunk)

    return fitness
