"""What `experiments.bench.population` asks: sizes of models, and the items as token ids.

Every size is asked in the pocket Llama's tokens, whose ids all vocabularies hold: with random
weights only the number of tokens matters, and the text is at hand without a download.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.answering.conversations import option_spellings
from jaxalign.answering.prefix_tree import Spellings
from jaxalign.lm.config import PRESETS, DType, LlamaConfig, read_config
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.surveys.survey import vsm

Size = Literal["pocket", "small", "1b", "8b"]
Kind = Literal["module", "stem-free", "published"]

_RANDOM = {
    "small": LlamaConfig(32_000, 512, 1536, 8, 8, 4, 64),
    "1b": PRESETS["llama3.2-1b"],
    "8b": PRESETS["llama3-8b"],
}
_PROMPT = "[[soft prompt]]"  # stands for the prompt while the chat template renders
# Weights ~ N(0, s²) with s = 0.02 at width 4096, as Llama-3-8B is wide, give logits a deviation of
# 1.28; s grows with 1 / sqrt(width), so that answers of small models are as decided.
_LOGIT_DEVIATION = 0.02 * math.sqrt(4096)


def model_config(size: Size, dtype: DType) -> LlamaConfig:
    """The shape of a size; its weights are random but for the pocket Llama's."""
    if size == "pocket":
        return read_config(MODEL_FOLDER, dtype)
    shape = _RANDOM[size]
    scale = _LOGIT_DEVIATION / math.sqrt(shape.hidden_size)
    return shape.replace(initializer_range=scale, dtype=dtype, param_dtype=dtype)


def model_folder(size: Size, scratch: Path) -> Path:
    """Where the weights are, or will be: the pocket Llama's ship with the package."""
    return MODEL_FOLDER if size == "pocket" else scratch / "model"


def ask_items(
    kind: Kind, placement: Literal["front", "system"]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], list[Spellings]]:
    """Token ids before the soft prompt, each item's after it, and the options' spellings.

    module: the package's own 24 items, which share stems. stem-free: `without_shared_text`.
    published: `as_long_as_published`.
    """
    tokens, prompts, module = Tokenizer.load(MODEL_FOLDER), load_prompts(), vsm()
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
    """The same items with a first token of their own, so that no two share a prefix.

    Lengths stay as they are: every method computes as much as before, but a prefix tree finds
    nothing to share after the prompt.
    """
    return [(first, *item[1:]) for first, item in enumerate(items)]


def as_long_as_published(
    vocabulary: int,
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Header and items of random tokens, at the lengths that goals for a GPU are given in.

    A header of 40 tokens and 24 items of 30 to 120, 1,888 in all, no two of which begin alike.
    """
    chance = np.random.default_rng(0)
    lengths = np.rint(np.linspace(30, 120, 24)).astype(int)
    lengths[1:-1] += 4  # from a mean of 75 to the 78.7 of 1,888
    draw = lambda n: tuple(chance.integers(0, vocabulary, n).tolist())  # noqa: E731
    return draw(40), tuple(without_shared_text([draw(n) for n in lengths]))


def option_table(options: Sequence[Spellings]) -> np.ndarray:
    """int32 [Q, O, spellings]: token ids of options of one token; -1 where there is none.

    Raises ValueError for an option of several tokens: the baselines read one position.
    """
    if any(len(s) != 1 for item in options for option in item for s in option):
        raise ValueError("an option has several tokens; the baselines read one position an item")
    most = max(map(len, options))
    spellings = max(len(option) for item in options for option in item)
    table = np.full((len(options), most, spellings), -1, np.int32)
    for q, item in enumerate(options):
        for o, option in enumerate(item):
            table[q, o, : len(option)] = [s[0] for s in option]
    return table
