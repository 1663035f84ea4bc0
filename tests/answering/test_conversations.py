"""Conversations to layouts with the package's own tokenizer: what is before, shared and asked."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.answering.asked import AskedItems, asked_items
from jaxalign.answering.conversations import (
    conversation_layout,
    option_spellings,
    soft_prompt_layout,
    split_at_soft_prompt,
)
from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.prompts import load_prompts
from jaxalign.surveys.presentations import FORMS, present
from jaxalign.surveys.survey import Item, vsm

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


FOUR = Item("q4", "Which matters most?", ("order", "say", "prices", "speech"), (1, 2, 3, 4))
TENTHS = Item("q10", "How far?", tuple(f"step {n}" for n in range(1, 11)), tuple(range(1, 11)))
FROM_0 = Item("q0", "Is it so?", ("no", "yes"), (0, 1), "nominal", stem="Think of a job.")
MIXED = (FOUR, TENTHS, FROM_0)


@pytest.mark.parametrize("form", [*FORMS, "letters", "letters-reversed"])
def test_spellings_name_the_option_wherever_it_stands(tokens, form):
    """If not, a score under another presentation would be that of another answer."""
    found = option_spellings(tokens, [present(item, form) for item in MIXED])
    for item, options in zip(MIXED, found, strict=True):
        shown = present(item, form)
        for option, spellings in enumerate(options):
            texts = {tokens.decode([t for t in s if t != tokens.eot_id]).strip() for s in spellings}
            assert texts == {shown.mark_of(option)}
            assert (int(texts.pop()) if form in FORMS else texts.pop(), item.options[option]) in (
                shown.pairs
            )


@pytest.mark.parametrize("placement", ["front", "system"])
@pytest.mark.parametrize(
    ("presentations", "answer"),
    [
        (FORMS, "number"),
        (("A", "letters", "letters-reversed"), "number"),
        (FORMS, "label"),
        (FORMS, "label-against-prior"),
    ],
)
def test_presentations_need_no_more_tokens_than_a_prefix_tree_has(
    tokens, placement, presentations, answer
):
    """The fewest that sharing allows: one for each distinct beginning of what is read."""
    prompts = load_prompts()
    asked = asked_items(prompts, ITEMS[:6] + MIXED, presentations, answer)
    layout = soft_prompt_layout(tokens, prompts, asked.rows, placement, 8)
    beginnings = set()
    for shown, options in zip(asked.rows, option_spellings(tokens, asked.rows), strict=True):
        _, text = split_at_soft_prompt(tokens, [prompts.user(shown)], placement)
        for spelling in (s for option in options for s in option):
            read = (*text, *spelling[:-1])  # the last token is not read, only predicted
            beginnings |= {read[: n + 1] for n in range(len(read))}
    assert layout.tokens_computed - 8 == len(beginnings)


def test_labels_that_are_not_listed_are_asked_once_in_all_presentations(tokens):
    prompts = load_prompts()
    asked = asked_items(prompts, MIXED, FORMS, "label-against-prior")
    assert asked.index_FxQ.tolist() == [[0, 1, 2]] * 4
    # One neutral question for each set of labels, all with the same words.
    assert asked.neutral_S.tolist() == [3, 4, 5]
    assert len({prompts.user(shown)["content"] for shown in asked.rows[3:]}) == 1
    assert "order" not in prompts.user(asked.rows[0])["content"]
    listing = dataclasses.replace(prompts, item_label=prompts.item)
    asked = asked_items(listing, MIXED, FORMS, "label")
    assert len(asked.rows) == 4 * 3
    assert "4 = order" in listing.user(asked.rows[asked.index_FxQ[1, 0]])["content"]


def test_labels_are_replies(tokens):
    shown = present(FOUR, reply="label")
    [options] = option_spellings(tokens, [shown])
    for label, spellings in zip(FOUR.options, options, strict=True):
        assert [tokens.decode(ids) for ids in spellings] == [label, label.capitalize()]
    degrees = Item("q", "Do you?", ("agree", "agree strongly"), (1, 2))
    [options] = option_spellings(tokens, [present(degrees, reply="label")])
    assert all(ids[-1] == tokens.eot_id for spellings in options for ids in spellings)
    twice = Item("q", "Do you?", ("other", "Other "), (1, 2), "nominal")
    with pytest.raises(UserError, match="item 'q': option text 'Other' is there twice"):
        option_spellings(tokens, [present(twice, reply="label")])


def test_against_the_prior_a_common_text_gains_nothing():
    log_probs_SxO = np.log([[0.6, 0.4], [0.6, 0.4]])
    asked = AskedItems((), np.array([[0]]), ("A",), "label-against-prior", np.array([1]))
    np.testing.assert_allclose(np.exp(asked.mean_log_probs(log_probs_SxO)), [[0.5, 0.5]])
    padded = np.concatenate([log_probs_SxO, np.full((2, 1), -np.inf)], axis=1)
    for array in (padded, jnp.array(padded)):
        np.testing.assert_allclose(np.exp(asked.mean_log_probs(array)), [[0.5, 0.5, 0]], rtol=1e-6)


def test_a_language_of_ones_own_needs_label_texts_only_where_labels_are_read(tmp_path):
    for name in ("item", "persona"):
        (tmp_path / f"{name}.jinja").write_text("{{ item.text }}")
    prompts = load_prompts(tmp_path, language="de")
    assert asked_items(prompts, MIXED).rows
    with pytest.raises(UserError, match=r"no text item_label.jinja"):
        asked_items(prompts, MIXED, answer="label")
