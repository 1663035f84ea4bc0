"""Prompt texts as files. A user may read and replace them; a run keeps the ones it used."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.core.templates import render
from jaxalign.surveys.survey import Item

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
_NAMES = ("item", "persona")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The texts of a question and of a persona, as jinja sources.

    Attributes:
        item: The question; it may use `item` and `options`, a list of pairs of code and label.
        persona: The line that names a country; it may use `country`, the English name.
    """

    item: str
    persona: str

    def user(self, item: Item) -> Message:
        """Return an item's question as the user's message."""
        options = list(zip(item.codes, item.options, strict=True))
        text = render("item.jinja", self.item, item=item, options=options)
        return {"role": "user", "content": text}

    def system(self, country: str) -> Message:
        """Return the persona line as the system message."""
        return {"role": "system", "content": render("persona.jinja", self.persona, country=country)}


def load_prompts(folder: Path | None = None) -> Prompts:
    """Return the package's texts, each replaced by `folder/NAME.jinja` where that file exists.

    Raises:
        UserError: `folder` does not exist, or a file in it cannot be read.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"`prompts` {folder}: no such folder")
    return Prompts(**{name: read_prompt(name, folder) for name in _NAMES})


def read_prompt(name: str, folder: Path | None) -> str:
    """Return the source of one text: `folder/NAME.jinja` if it exists, else the package's.

    Raises:
        UserError: The file in `folder` cannot be read, or is not UTF-8.
    """
    replacement = folder / f"{name}.jinja" if folder else None
    if replacement is None or not replacement.is_file():
        return resources.files("jaxalign.prompts").joinpath(f"{name}.jinja").read_text("utf-8")
    try:
        return replacement.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{replacement}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{replacement}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def icl_messages(prompts: Prompts, examples: list[tuple[Item, int]]) -> list[Message]:
    """Return answered example items as turns of a conversation.

    Args:
        prompts: The texts.
        examples: Items, each with the index of the option that is the answer.
    """
    turns: list[Message] = []
    for item, answer in examples:
        turns += [prompts.user(item), {"role": "assistant", "content": str(item.codes[answer])}]
    return turns
