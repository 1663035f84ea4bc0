"""Conversations to layouts with the package's own tokenizer: what is before, shared and asked."""

from __future__ import annotations

import numpy as np
import pytest

from jaxalign.answering.conversations import conversation_layout, soft_prompt_layout
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.surveys.survey import vsm

ITEMS = vsm().items


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return Tokenizer.load(MODEL_FOLDER)


def paths(layout) -> set[tuple[int, ...]]:
    """The token sequence that leads to each answer node."""
    keys, mask = layout.answer_rows.keys_RxS, layout.answer_rows.mask_RxLxS
    length = mask.shape[1]
    found = set()
    for a in range(len(layout.answers)):
        r, row_query = divmod(a, length)
        local = np.sort(keys[r][mask[r, row_query]])
        found.add((*layout.trunk.tolist(), *layout.tree[local].tolist()))
    return found


def test_front_prompt_stands_before_the_whole_conversation(tokens):
    layout = soft_prompt_layout(tokens, load_prompts(), ITEMS, "front", 8)
    assert len(layout.before) == 0
    asked = {tuple(tokens.encode_chat([load_prompts().user(item)])) for item in ITEMS}
    assert paths(layout) == asked
    assert layout.trunk[0] == tokens.bos_id


def test_system_prompt_stands_right_after_the_system_header(tokens):
    layout = soft_prompt_layout(tokens, load_prompts(), ITEMS, "system", 8)
    assert tokens.decode(layout.before).endswith("system<|end_header_id|>\n\n")
    assert tokens.decode(layout.trunk).startswith("<|eot_id|>")
    assert layout.positions[0] == len(layout.before)


def test_conversations_share_what_they_share(tokens):
    prompts = load_prompts()
    lead = [prompts.system("China")]
    layout = conversation_layout(tokens, [[*lead, prompts.user(i)] for i in ITEMS], ITEMS)
    whole = [tokens.encode_chat([*lead, prompts.user(i)]) for i in ITEMS]
    assert paths(layout) == set(map(tuple, whole))
    assert layout.tokens_computed < sum(map(len, whole)) / 2
