"""What a run leaves behind: its settings, a line of metrics per generation, its result."""

from jaxalign.records.environment import environment, versions
from jaxalign.records.files import MetricsFile, finite_or_none, plain, write_json
from jaxalign.records.run import Run, begun, check
from jaxalign.records.settings import may_change, settings_of

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
