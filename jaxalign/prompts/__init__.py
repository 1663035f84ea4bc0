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
    """The texts, as jinja2 sources. `item` sees `item` and `options` (code, label pairs);
    `persona` sees `country`, a country's name in English."""

    item: str
    persona: str

    def user(self, item: Item) -> Message:
        """The question as the user's message."""
        options = list(zip(item.codes, item.options, strict=True))
        text = render("item.jinja", self.item, item=item, options=options)
        return {"role": "user", "content": text}

    def system(self, country: str) -> Message:
        """The persona line as the system message."""
        return {"role": "system", "content": render("persona.jinja", self.persona, country=country)}


def load_prompts(folder: Path | None = None) -> Prompts:
    """The package's texts, each replaced by `folder/NAME.jinja` where that file exists."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"`prompts` {folder}: no such folder")
    return Prompts(**{name: read_prompt(name, folder) for name in _NAMES})


def read_prompt(name: str, folder: Path | None) -> str:
    """The source of one text: `folder/NAME.jinja` where that file exists, else the package's."""
    own = folder / f"{name}.jinja" if folder else None
    if own is None or not own.is_file():
        return resources.files("jaxalign.prompts").joinpath(f"{name}.jinja").read_text("utf-8")
    try:
        return own.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{own}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{own}: not UTF-8 ({error.reason} at byte {error.start})") from None


def icl_messages(prompts: Prompts, examples: list[tuple[Item, int]]) -> list[Message]:
    """Example items with the answer's option index, as turns of a conversation."""
    turns: list[Message] = []
    for item, answer in examples:
        turns += [prompts.user(item), {"role": "assistant", "content": str(item.codes[answer])}]
    return turns
