"""What a run leaves behind: its settings, its metrics, its checkpoints, its result.

run            the directory of one run: claimed by one process, resumed with the same settings
settings       settings by name, which of them may change, and how the command line spells them
checkpoints    saved trees of arrays, and which run they belong to
environment    versions, devices and the git revision that a run records
tracking       metrics sent on to Weights & Biases or TensorBoard
notes          what the library says: on the screen, and in the run's directory
console        the command line: arguments, errors, progress, tables
"""

from jaxalign.core.files import MetricsFile, finite_or_none, plain, write_json
from jaxalign.runs.environment import environment, versions
from jaxalign.runs.run import Run, check_run, recorded_facts, recorded_run
from jaxalign.runs.settings import identity_of, may_change, settings_of, with_flags

__all__ = [
    "MetricsFile",
    "Run",
    "check_run",
    "environment",
    "finite_or_none",
    "identity_of",
    "may_change",
    "plain",
    "recorded_facts",
    "recorded_run",
    "settings_of",
    "versions",
    "with_flags",
    "write_json",
]
