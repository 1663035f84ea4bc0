"""Show what a tuned soft prompt has become: nearest tokens per position, and how far it has moved.

    jaxalign inspect runs/tuned                        # all prompts of a run
    jaxalign inspect runs/tuned/prompts/USA.safetensors --top 3
    jaxalign inspect path/to/PEFT/folder --model path/to/Llama

Only the embedding table of the model is read, so this takes seconds also for a large model. The
nearest tokens describe where a vector lies, not what it does: a prompt that works need not lie near
words that say so.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxalign.core.errors import UserError
from jaxalign.lm.model import ModelFiles, open_model
from jaxalign.methods.inspect import NearToken, PromptInspection, Vocabulary, inspect_prompt
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.tuned import load_prompts_by_name, names_of, other_model, read_tuned_run
from jaxalign.runs.console import print_table


@dataclasses.dataclass(frozen=True)
class Config:
    """Show what tuned soft prompts have become: nearest tokens, and how far they have moved."""

    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT|RUN")]
    """Soft prompt, a safetensors file of this package or a folder of PEFT; or the directory of a
    run, for all its prompts."""
    model: str | None = None
    """Model that the prompt belongs to, as for every command; default: the one that it was tuned
    for."""
    top: int = 3
    """Number of nearest tokens to name for each position."""


def show(config: Config) -> None:
    """Run the command: read prompts and the embedding table, and print a table for each prompt."""
    run = read_tuned_run(config.target)
    if run is not None and not run.prompts:
        raise UserError(f"`target` {config.target}: this run has saved no soft prompt")
    paths = names_of([config.target]) if run is None else run.prompts
    first = SoftPrompt.load(next(iter(paths.values())))
    files = _model(config, first if run is None else None, None if run is None else run.model)
    prompts = load_prompts_by_name(paths, files)
    vocabulary = Vocabulary.of(files)
    for name, prompt in prompts.items():
        if note := other_model(prompt, files):
            print(f"{name}: {note}")
        print_inspection(name, prompt, inspect_prompt(vocabulary, prompt, config.top))


def _model(config: Config, prompt: SoftPrompt | None, recorded: str | None) -> ModelFiles:
    """Open the model that was named, else the one that was tuned, if it is still there."""
    if config.model is not None:
        return open_model(config.model)
    if prompt is not None:
        # The name comes with a file that others may have written: nothing is fetched by it.
        recorded = prompt.model
        if recorded is None or not Path(recorded).exists():
            raise UserError(
                f"`target` {config.target}: tuned for {recorded or 'a model that it does not name'}"
                ", which is not here; name the model with `model`"
            )
    return open_model(recorded)


def print_inspection(name: str, prompt: SoftPrompt, found: PromptInspection) -> None:
    """Print one prompt: a row for each position, and the vocabulary's own measures below."""
    known_start = found.moved is not None
    columns = ["", "norm", "nearest by cosine", "nearest by distance"]
    rows = [
        [str(m), f"{p.norm:.2f}", _tokens(p.by_cosine), _tokens(p.by_distance)]
        for m, p in enumerate(found.positions)
    ]
    if known_start:
        columns[1:1] = ["started as", "moved"]
        for row, p in zip(rows, found.positions, strict=True):
            row[1:1] = [_shown(p.start.text), f"{p.start.value:.2f}"]
    print_table(f"{name}: {len(rows)} positions, placement {prompt.placement}", columns, rows)
    if known_start:
        print(
            f"moved {found.moved:.2f} on average; at {found.stayed} of {len(rows)} positions the "
            "token that it started as is still the nearest by cosine"
        )
    low, middle, high = found.norms
    print(
        f"embeddings of the vocabulary: norms {low:.2f}, {middle:.2f}, {high:.2f} (5 %, median, "
        f"95 %); the nearest other token is {found.apart:.2f} away (median)\n"
    )


def _tokens(tokens: tuple[NearToken, ...]) -> str:
    return " ".join(f"{_shown(token.text)}({token.value:.2f})" for token in tokens)


def _shown(text: str) -> str:
    """Return a token's text with its spaces and line breaks made visible."""
    return repr(text)[1:-1].replace(" ", "␣")
