"""What a run leaves behind: its settings, a line of metrics per generation, its result."""

from jaxalign.runs.environment import environment, versions
from jaxalign.core.files import MetricsFile, finite_or_none, plain, write_json
from jaxalign.runs.run import Run, begun, check
from jaxalign.runs.settings import may_change, settings_of

__all__ = [
    "MetricsFile",
    "Run",
    "begun",
    "check",
    "environment",
    "finite_or_none",
    "may_change",
    "plain",
    "settings_of",
    "versions",
    "write_json",
]
