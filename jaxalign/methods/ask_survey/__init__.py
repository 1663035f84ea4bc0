"""Ask a model, its adapters and its soft prompts any survey or test, without training."""

from jaxalign.methods.ask_survey.pipeline import AskRun, ask_survey
from jaxalign.methods.ask_survey.settings import AskSettings

__all__ = ["AskRun", "AskSettings", "ask_survey"]
