"""Align language models to cultures in JAX: soft prompts tuned by evolution, and CultureSPA.

The names below are the public API. Each is imported when it is first used, so that
`import jaxalign` is quick and touches no device.

    import jaxalign as ja

    lm = ja.pocket_model()                        # or ja.load_model("path/to/a/Llama/folder")
    answers = ja.ask(lm, ja.surveys.vsm(), [ja.Plain(), ja.Persona("CHN")])
    print(ja.vsm_scores(answers))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxalign.commands.plan import plan
    from jaxalign.core.errors import UserError
    from jaxalign.lm.lora import Adapter
    from jaxalign.lm.model import LM, load_model
    from jaxalign.methods.ask import Exact, Sampled, ask
    from jaxalign.methods.ask_survey import ask_survey
    from jaxalign.methods.conditions import InContext, Persona, Plain
    from jaxalign.methods.cultural_bench import cultural_bench
    from jaxalign.methods.culturespa import filter_questions, run_culturespa, write_questions
    from jaxalign.methods.generate import generate
    from jaxalign.methods.soft_prompt import SoftPrompt, run_soft_prompt, tune_soft_prompt
    from jaxalign.optim import DifferentialEvolution, Evosax
    from jaxalign.pocket import pocket_model
    from jaxalign.stats import (
        Interval,
        alignment_score,
        check_validity,
        score_replies,
        similarity,
        vsm_scores,
    )
    from jaxalign.surveys import Item, Responses, Survey, check_survey, country_scores, read_survey
    from jaxalign.training import fine_tune

__version__ = "0.2.0"

# The module that defines each public name.
_HOMES = {
    # Models
    "LM": "lm.model",
    "load_model": "lm.model",
    "pocket_model": "pocket",
    "generate": "methods.generate",
    "Adapter": "lm.lora",
    # Surveys, and what countries scored and answered
    "Survey": "surveys",
    "Item": "surveys",
    "read_survey": "surveys",
    "check_survey": "surveys",
    "country_scores": "surveys",
    # Asking
    "ask": "methods.ask",
    "ask_survey": "methods.ask_survey",
    "Exact": "methods.ask",
    "Sampled": "methods.ask",
    "Plain": "methods.conditions",
    "Persona": "methods.conditions",
    "InContext": "methods.conditions",
    "Responses": "surveys",
    # Scores
    "vsm_scores": "stats",
    "alignment_score": "stats",
    "similarity": "stats",
    "check_validity": "stats",
    "score_replies": "stats",
    "Interval": "stats",
    "cultural_bench": "methods.cultural_bench",
    # Tuning
    "tune_soft_prompt": "methods.soft_prompt",
    "run_soft_prompt": "methods.soft_prompt",
    "SoftPrompt": "methods.soft_prompt",
    "DifferentialEvolution": "optim",
    "Evosax": "optim",
    "fine_tune": "training",
    "run_culturespa": "methods.culturespa",
    "write_questions": "methods.culturespa",
    "filter_questions": "methods.culturespa",
    "plan": "commands.plan",
    "UserError": "core.errors",
}
_ROOMS = ("surveys", "stats", "lm", "optim", "training", "methods", "pocket")

__all__ = [*_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    """Import a public name, or one of the rooms, when it is first asked for."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"jaxalign.{_HOMES[name]}"), name)
    elif name in _ROOMS:
        value = importlib.import_module(f"jaxalign.{name}")
    else:
        raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
