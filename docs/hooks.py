"""Generate two pages of the documentation at build time: the commands and the Python API."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# The groups of the API page. A public name that is in none of them ends in "Other".
GROUPS = {
    "Models": ("LM", "load_model", "pocket_model", "generate", "Adapter"),
    "Surveys": (
        "surveys.vsm",
        "read_survey",
        "check_survey",
        "Survey",
        "Item",
        "country_scores",
    ),
    "Asking": ("ask", "Plain", "Persona", "InContext", "Responses"),
    "Scores": (
        "vsm_scores",
        "alignment_score",
        "similarity",
        "stats.ScoreTable",
        "score_replies",
        "Interval",
    ),
    "Tuning prompts": (
        "tune_soft_prompt",
        "methods.soft_prompt.SoftPromptConfig",
        "run_soft_prompt",
        "SoftPrompt",
        "DifferentialEvolution",
        "Evosax",
    ),
    "Fine-tuning": ("fine_tune", "run_culturespa", "write_questions", "filter_questions"),
    "Planning and errors": ("plan", "UserError"),
}

# Names that are reached through a room, as in `ja.surveys.vsm()`.
ROOM_NAMES = ("surveys.vsm", "stats.ScoreTable", "methods.soft_prompt.SoftPromptConfig")

_DEFINED_IN = """
import functools, json, sys
import jaxalign
paths = {}
for name in sys.argv[1:]:
    value = functools.reduce(getattr, name.split("."), jaxalign)
    paths[name] = f"{value.__module__}.{value.__qualname__}"
print(json.dumps(paths))
"""

_HELP_OF_ALL = """
import contextlib, io, json
from jaxalign import cli
texts = {}
for name in cli.COMMANDS:
    # A UTF-8 stream: on any other the help is printed without its boxes.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main([name, "--help"])
    out.flush()
    texts[name] = [cli.COMMANDS[name].summary, out.buffer.getvalue().decode()]
print(json.dumps(texts))
"""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace the markers of the generated pages; called by mkdocs for every page."""
    if "<!-- commands -->" in markdown:
        return markdown.replace("<!-- commands -->", commands_page())
    if "<!-- api -->" in markdown:
        return markdown.replace("<!-- api -->", api_page())
    return markdown


def public_names() -> list[str]:
    """Return the public names in the order of `jaxalign/__init__.py`, without importing it."""
    tree = ast.parse((ROOT / "jaxalign" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_HOMES":
            return list(ast.literal_eval(node.value))
    raise ValueError("jaxalign/__init__.py has no _HOMES")


def api_page() -> str:
    """Return the API page: one mkdocstrings block for each public name, in groups."""
    names = [*public_names(), *ROOM_NAMES]
    paths = in_python(_DEFINED_IN, *names)
    grouped = {name for group in GROUPS.values() for name in group}
    groups = GROUPS | {"Other": tuple(name for name in names if name not in grouped)}
    lines = []
    for title, members in groups.items():
        if present := [name for name in members if name in names]:
            lines += [f"## {title}", ""]
            for name in present:
                lines += [f"<!-- jaxalign.{name} -->", f"::: {paths[name]}", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Return one section for each sub-command, made from its `--help`."""
    help_texts = in_python(_HELP_OF_ALL)
    return "\n".join(section(name, *texts) for name, texts in help_texts.items())


def in_python(code: str, *arguments: str) -> Any:
    """Return what a piece of Python prints as JSON, in a process that can import jaxalign."""
    environment = os.environ | {"COLUMNS": "100", "JAX_PLATFORMS": "cpu", "NO_COLOR": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"jaxalign could not be read: {done.stderr}")
    return json.loads(done.stdout)


def section(name: str, summary: str, text: str) -> str:
    """Return the Markdown section of one command as definition lists."""
    lines = [f"## jaxalign {name}", "", summary, ""]
    for box, options in read_help(text):
        if box not in ("options", "positional arguments"):
            lines += [f"### {name}: {box} {{ #{name}-{box.replace(' ', '-')} }}", ""]
        for option, description in options:
            if option.startswith("-h,"):
                continue
            lines += [f"`{option}`", f":   {escape(description) or '(no description)'}", ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Escape what Markdown or HTML would read as markup."""
    return re.sub(r"([<>*_\\])", r"\\\1", text).replace("\\<", "&lt;").replace("\\>", "&gt;")


def read_help(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Parse the help text of one command.

    Args:
        text: Help with boxes below each other, as it is printed in 100 columns.

    Returns:
        The title of each box, and its options with their descriptions.
    """
    boxes: list[tuple[str, list[tuple[str, str]]]] = []
    for line in text.splitlines():
        if match := re.match(r"╭─ (.*?) ─", line):
            boxes.append((match[1], []))
        elif boxes and (match := re.match(r"│ (.*?)\s*│?$", line)):
            content, options = match[1], boxes[-1][1]
            starts_option = not content.startswith(" ")
            is_positional = boxes[-1][0] == "positional arguments"
            if starts_option and (content.startswith("-") or is_positional):
                option, _, description = content.partition("  ")
                options.append((option.replace("{None}|", "").strip(), description.strip()))
            elif options and not starts_option:
                option, description = options[-1]
                options[-1] = (option, f"{description} {content.strip()}".strip())
    return [(title, options) for title, options in boxes if options]
