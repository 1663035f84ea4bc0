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

from jaxalign.answer import Context, option_log_probs
from jaxalign.llama.config import LlamaConfig
from jaxalign.soft_prompt import Space, decode
from jaxalign.survey.score import Reading, Scorer, loss


@struct.dataclass
class Objective:
    """All that the fitness reads; an argument of the compiled program, whole on every device."""

    interview: Context
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

    def fitness(candidates_PxZ: jax.Array, country_P: jax.Array, objective: Objective) -> jax.Array:
        space = dataclasses.replace(objective.space, start=objective.space.start[country_P])
        prompts = decode(space, candidates_PxZ)
        log_probs = option_log_probs(config, objective.interview, prompts, chunk)
        scores = objective.scorer.scores(log_probs, reading)
        distance = loss(scores, objective.target_Cx6[country_P], objective.used_6)
        return distance + objective.penalty * jnp.mean(jnp.square(candidates_PxZ), axis=-1)

    return fitness
