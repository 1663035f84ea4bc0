"""The fitness that soft prompts evolve under: from search vectors to losses.

z [B, Z] --decode--> prompts [B, M, D] --chunk_log_probs--> [B, R, O] of the rows that are asked
--read--> [B, Q, O], averaged over presentations --objective--> loss [B]
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.answering.options import PreparedItems, chunk_log_probs, in_chunks
from jaxalign.lm.config import LlamaConfig
from jaxalign.methods.soft_prompt.space import Space, decode
from jaxalign.stats.objectives import Objective


@struct.dataclass
class FitnessInputs:
    """All that the fitness reads; an argument of the compiled program, whole on every device."""

    items: PreparedItems  # the questions, and the weights of the model that answers them
    objective: Objective  # of C entries' groups
    space: Space  # `start` has a leading axis of C entries
    penalty: jax.Array  # points per unit of mean squared z


Read = Callable[[jax.Array], jax.Array]
"""From log-probabilities [B, R, O] of the rows that are asked to those of the items, [B, Q, O]."""


def make_fitness(
    config: LlamaConfig, chunk: int, remat: bool = False, read: Read | None = None
) -> Callable:
    """Return (candidates_PxZ, entry_P, FitnessInputs) -> fitness_P; lower is better.

    fitness = the objective's loss + penalty * mean of z squared: the penalty keeps prompts near
    their start, in units of the spread they began with.

    Args:
        config: The model.
        chunk: Number of candidates evaluated at a time.
        remat: Whether a gradient recomputes each layer instead of keeping its activations.
        read: Averages the answers to items that are asked in several presentations; None where
            every row is an item.
    """

    def score(candidates: tuple[jax.Array, jax.Array], inputs: FitnessInputs) -> jax.Array:
        candidates_BxZ, entry_B = candidates
        # Every candidate is decoded around the start of its own entry.
        prompts_BxMxD = decode(inputs.space.at_entry(entry_B), candidates_BxZ)
        log_probs_BxQxO = chunk_log_probs(config, inputs.items, prompts_BxMxD, remat)
        if read is not None:
            log_probs_BxQxO = read(log_probs_BxQxO)
        loss_B = inputs.objective.loss(log_probs_BxQxO, entry_B)
        return loss_B + inputs.penalty * jnp.mean(jnp.square(candidates_BxZ), axis=-1)

    def fitness(candidates_PxZ: jax.Array, entry_P: jax.Array, inputs: FitnessInputs) -> jax.Array:
        # Everything in the chunk, decoding too: a product of other size may round otherwise.
        return in_chunks(lambda rows: score(rows, inputs), (candidates_PxZ, entry_P), chunk)

    return fitness
