"""Soft prompts tuned until survey answers give a group's scores (Masoud et al. 2025).

settings    the settings of a run
problem     what they name, read and checked
space       where a soft prompt starts, and the space it is searched in
fitness     from search vectors to losses
search      the compiled search, with its checkpoints
control     the gradient control that is compared with it
tune        the whole run, and the front door for Python
prompt      a tuned prompt as a value
result      the content of `result.json`
"""

from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.methods.soft_prompt.tune import SoftPromptRun, run_soft_prompt, tune_soft_prompt

__all__ = [
    "Settings",
    "SoftPrompt",
    "SoftPromptConfig",
    "SoftPromptRun",
    "run_soft_prompt",
    "tune_soft_prompt",
]
