"""One module per sub-command: read settings, call the library, print and write."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Command:
    """Where a sub-command lives. Its module is imported only when it is run.

    Attributes:
        module: Name of the module, below `jaxalign.commands`.
        function: Name of the function, whose only argument is a dataclass with the settings.
        summary: What the command does, in one sentence.
    """

    module: str
    function: str
    summary: str


COMMANDS = {
    "soft-prompt": Command("soft_prompt", "tune_prompts", "Tune one soft prompt per country."),
    "culturespa": Command("culturespa", "culturespa", "Run CultureSPA from start to end."),
    "cultural-bench": Command(
        "cultural_bench", "measure", "Score a model on CulturalBench under every method."
    ),
    "ask": Command("ask", "ask", "Ask a model any survey or test, without training."),
    "resume": Command(
        "resume", "resume", "Continue a run that was stopped, with its own settings."
    ),
    "report": Command("report", "report", "Write the report of a finished run anew."),
    "compare": Command("compare", "compare", "Compare runs by what they answered."),
    "list": Command("list", "show", "List runs: what they are and how far they have come."),
    "reproduce": Command(
        "reproduce.command", "reproduce", "Set what a paper reports beside what we measure."
    ),
    "sweep": Command("sweep.command", "sweep", "Run many searches described in one file."),
    "fine-tune": Command("fine_tune", "tune", "Fine-tune a model on your own conversations."),
    "write-questions": Command("write_questions", "run", "Let a model write survey questions."),
    "filter-questions": Command("filter_questions", "run", "Filter generated survey questions."),
    "chat": Command("chat", "chat", "Talk to a model under several conditions, side by side."),
    "inspect": Command("inspect", "show", "Show which tokens a tuned soft prompt is near."),
    "score": Command("score", "score", "Score replies from any tool against a survey."),
    "export": Command(
        "export", "export", "Write what a run has tuned so that another engine serves it."
    ),
    "convert": Command("convert", "run", "Convert a GGUF file to a model folder."),
    "check": Command("check", "run", "Check whether a survey file can be used."),
    "plan": Command("plan.command", "run", "Plan a program for hardware you do not have."),
}


def load(command: Command) -> tuple[Callable[[Any], Any], type]:
    """Import a sub-command; return its function and the dataclass of its settings."""
    module = importlib.import_module(f"jaxalign.commands.{command.module}")
    function = getattr(module, command.function)
    hints = typing.get_type_hints(function)
    (config_class,) = (kind for name, kind in hints.items() if name != "return")
    return function, config_class
