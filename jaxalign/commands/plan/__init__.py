"""What a program needs on hardware that this machine does not have.

planning   the settings, and the function `plan`
programs   the programs of this package, lowered for a mesh of described devices
estimate   memory, FLOPs, exchanges and a roofline time from a compiled program
experiments  every program of an experiment, with the sizes that its run would choose
fit        the largest population, or the smallest slice, that fits
command    the sub-command
"""

from jaxalign.commands.plan.estimate import DoesNotFitError, Estimate
from jaxalign.commands.plan.planning import PlanSettings, plan

__all__ = ["DoesNotFitError", "Estimate", "PlanSettings", "plan"]
