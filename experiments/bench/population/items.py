"""Provide the items of `experiments.bench.population` as token ids.

A real model is asked as its own tokenizer writes the items. With random weights only the number of
tokens matters, so those models receive the pocket Llama's token ids, which exist in every
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.answering.conversations import option_spellings
from jaxalign.answering.prefix_tree import Spellings
from jaxalign.core.errors import UserError
from jaxalign.lm.config import read_config
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.surveys.survey import vsm

Kind = Literal["module", "stem-free", "published"]

_PROMPT = "[[soft prompt]]"  # marks the prompt's position while the chat template is rendered


def ask_items(
    kind: Kind, placement: Literal["front", "system"], folder: Path = MODEL_FOLDER
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], list[Spellings]]:
    """Return the token ids of the benchmark's items.

    Args:
        kind: "module" for the package's 24 items, which share stems; "stem-free" for
            `without_shared_text`; "published" for `as_long_as_published`.
        placement: Where the soft prompt stands.
        folder: The model whose tokenizer and chat template write the items.

    Returns:
        The token ids before the soft prompt, the token ids of each item after it, and the
        spellings of each item's options.
    """
    tokens, prompts, module = Tokenizer.load(folder), load_prompts(), vsm()
    if kind == "published":
        header, items = as_long_as_published(read_config(MODEL_FOLDER, "float32").vocab_size)
        if placement == "front":
            header, items = (), tuple(header + item for item in items)
        return header, items, option_spellings(tokens, module.items)
    questions = [prompts.user(item) for item in module.items]
    before: list[int] = []
    if placement == "front":
        items = [tuple(tokens.encode_chat([question])) for question in questions]
    else:
        system = {"role": "system", "content": _PROMPT}
        split = [tokens.encode_chat_split([system, q], _PROMPT) for q in questions]
        before, items = split[0][0], [tuple(after) for _, after in split]
    if kind == "stem-free":
        items = without_shared_text(items)
    return tuple(before), tuple(items), option_spellings(tokens, module.items)


def without_shared_text(items: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Replace the first token of each item by a distinct one, so that no two share a prefix.

    The lengths do not change: every other method computes as much as before, but a prefix tree
    finds nothing to share after the prompt.
    """
    return [(first, *item[1:]) for first, item in enumerate(items)]


def as_long_as_published(
    vocabulary: int,
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return a header and items of random tokens with the lengths of the cost model for GPUs.

    The header has 40 tokens; the 24 items have 30 to 120 tokens, 1,888 in all, and no two of them
    begin alike.
    """
    rng = np.random.default_rng(0)
    lengths = np.rint(np.linspace(30, 120, 24)).astype(int)
    lengths[1:-1] += 4  # raises the mean from 75 to 78.7, for a total of 1,888
    draw = lambda n: tuple(rng.integers(0, vocabulary, n).tolist())  # noqa: E731
    return draw(40), tuple(without_shared_text([draw(n) for n in lengths]))


def option_table(options: Sequence[Spellings]) -> np.ndarray:
    """Return the token ids of all options of one token as a table.

    Returns:
        int32 [Q, O, spellings]; -1 where there is no option or no further spelling.

    Raises:
        UserError: If an option has several tokens; the baselines read a single position.
    """
    if any(len(s) != 1 for item in options for option in item for s in option):
        raise UserError("an option has several tokens; the baselines read one position an item")
    most = max(map(len, options))
    spellings = max(len(option) for item in options for option in item)
    table = np.full((len(options), most, spellings), -1, np.int32)
    for q, item in enumerate(options):
        for o, option in enumerate(item):
            table[q, o, : len(option)] = [s[0] for s in option]
    return table
