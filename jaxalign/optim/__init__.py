"""Black-box optimizers and a gradient control, over a population of search vectors.

`DifferentialEvolution` and `Evosax` are settings of optimizers; `api` says how to add another.
"""

from jaxalign.optim.algorithms.differential_evolution import DifferentialEvolution
from jaxalign.optim.algorithms.evosax_algorithms import Evosax
from jaxalign.optim.api import Algorithm, Optimizer, optimizers

__all__ = ["Algorithm", "DifferentialEvolution", "Evosax", "Optimizer", "optimizers"]
