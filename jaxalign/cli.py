"""The `jaxalign` program: one sub-command per task, each in a module of `jaxalign.commands`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from jaxalign.core.streams import replace_what_cannot_be_printed


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
    "sweep": Command("sweep.command", "sweep", "Run many searches described in one file."),
    "fine-tune": Command("fine_tune", "tune", "Fine-tune a model on your own conversations."),
    "write-questions": Command("write_questions", "run", "Let a model write survey questions."),
    "filter-questions": Command("filter_questions", "run", "Filter generated survey questions."),
    "chat": Command("chat", "chat", "Talk to a model under several conditions, side by side."),
    "inspect": Command("inspect", "show", "Show which tokens a tuned soft prompt is near."),
    "score": Command("score", "score", "Score replies from any tool against a survey."),
    "convert": Command("convert", "run", "Convert a GGUF file to a model folder."),
    "check": Command("check", "run", "Check whether a survey file can be used."),
    "plan": Command("plan.command", "run", "Plan a program for hardware you do not have."),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run `jaxalign COMMAND ...`; without a command, list the commands.

    Args:
        args: Command-line arguments; default: those of the process.
    """
    replace_what_cannot_be_printed()
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] == "--version":
        print(f"jaxalign {importlib.metadata.version('jaxalign')}")
        return
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        print(f"error: no command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    run_command(name, rest, program=f"jaxalign {name}")


def usage() -> str:
    """Return the list of sub-commands as text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    head = "usage: jaxalign COMMAND [options]   (jaxalign COMMAND --help lists the options)"
    return "\n".join([head, "       jaxalign --version", "", *lines])


def run_command(name: str, args: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run one sub-command.

    Args:
        name: Key of `COMMANDS`.
        args: Command-line arguments; default: those of the process.
        program: How the help text names the program; default: how the process was started.
    """
    from jaxalign.runs import console

    function, config_class = load(COMMANDS[name])
    console.main(function, config_class, args, program=program)


def load(command: Command) -> tuple[Callable[[Any], Any], type]:
    """Import a sub-command; return its function and the dataclass of its settings."""
    module = importlib.import_module(f"jaxalign.commands.{command.module}")
    function = getattr(module, command.function)
    hints = typing.get_type_hints(function)
    (config_class,) = (kind for name, kind in hints.items() if name != "return")
    return function, config_class
