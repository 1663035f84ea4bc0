"""A small part of a survey, for models and machines that the whole of it would take hours.

    python -m experiments.culturespa.small CULTURESPA_FOLDER small.json
    python -m experiments.culturespa.small CULTURESPA_FOLDER small.json --items 2

Writes a survey file with the shortest items of every topic, and how countries answered them. The
choice is by the number of characters of an item with its options, so that nobody has chosen items
for what came out of them. Ten-point scales and yes-or-no picks stay what they are.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

import jaxalign as ja
from jaxalign.commands.reproduce.jobs import shortest_items
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.runs.console import main
from jaxalign.surveys.survey import to_json


@dataclasses.dataclass(frozen=True)
class SmallSettings:
    """Write the shortest items of every topic of a survey as a survey."""

    survey: tyro.conf.Positional[Path]
    """The survey: a file or a folder that any command takes."""
    out: tyro.conf.Positional[Path]
    """The file to write."""
    items: int = 1
    """Number of items of each topic."""


def run(settings: SmallSettings) -> None:
    """Write the file, and print which items are in it."""
    if settings.items < 1:
        raise UserError(f"`items` {settings.items}: give at least 1")
    small = shortest_items(ja.read_survey(settings.survey), settings.items)
    write_json(settings.out, to_json(small))
    topics = len({item.topic for item in small.items})
    print(f"{settings.out}: {len(small.items)} items on {topics} topics")


if __name__ == "__main__":
    main(run, SmallSettings)
