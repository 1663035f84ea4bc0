"""Replies held to a JSON form: what the automaton accepts, and what a model then writes."""

from __future__ import annotations

import dataclasses
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.lm.constrain import (
    DEAD,
    advance,
    begin,
    constrain,
    mask,
    object_with_list,
    token_bytes,
)
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.model import load_model, open_model
from jaxalign.lm.tokenizer import Tokenizer

FEWEST, MOST = 2, 5
FORM = object_with_list("question", "options", FEWEST, MOST)
ALIVE = [np.flatnonzero(row != DEAD).tolist() for row in FORM.next_SxB]

# A text that the form can hold: not empty, no white space in front, of control characters only \n,
# \r and \t, no half characters.
_CHARACTERS = st.characters(exclude_categories=("Cc", "Cs"), include_characters="\n\r\t")
TEXTS = st.text(_CHARACTERS, min_size=1, max_size=12).filter(lambda text: text[0] not in " \n\r\t")


@functools.cache
def pocket() -> Tokenizer:
    return open_model().tokenizer


@functools.cache
def table():
    return constrain(FORM, pocket(), pocket().vocab_size)


def check(text: str, complete: bool = True) -> None:
    """Parse a text and see that it is what was asked for."""
    value = json.loads(text)
    assert list(value) == ["question", "options"]
    assert FEWEST <= len(value["options"]) <= MOST
    for written in (value["question"], *value["options"]):
        assert isinstance(written, str)
        assert written.lstrip(" \n\r\t") == written != ""
        assert not any(
            (ord(c) < 32 and c not in "\n\r\t") or 0x7F <= ord(c) < 0xA0 for c in written
        )
        written.encode("utf-8")  # no half characters


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_everything_accepted_is_json_of_the_form(seed: int, most_bytes: int) -> None:
    """A random walk over bytes, which turns to the end once it has some length."""
    luck, text, state, entries = random.Random(seed), b"", 0, 0
    while state != FORM.final:
        assert len(text) < 5000
        choices = ALIVE[state]
        after = {byte: int(FORM.next_SxB[state, byte]) for byte in choices}
        if set(choices) == set(b",]") and not FEWEST <= entries < MOST:
            choices = [ord("]") if entries == MOST else ord(",")]
        elif len(text) > most_bytes and {ord('"'), ord("]")} & set(choices):
            choices = sorted({ord('"'), ord("]")} & set(choices))
        byte = luck.choice(choices)
        entries += FORM.ring(after[byte]) not in (0, FORM.ring(state))
        text, state = text + bytes([byte]), after[byte]
    assert FORM.accepts(text)
    check(text.decode("utf-8"))
    for broken in (text[:-1], text + b" ", text.replace(b":", b"", 1)):
        assert not FORM.accepts(broken)


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=0, max_size=MOST + 2), st.booleans(), st.booleans())
def test_all_json_of_the_form_is_accepted(
    question: str, options: list[str], escaped: bool, compact: bool
) -> None:
    text = json.dumps(
        {"question": question, "options": options},
        ensure_ascii=escaped,
        separators=(",", ":") if compact else None,
    )
    assert FORM.accepts(text.encode()) == (FEWEST <= len(options) <= MOST)


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "", "options": ["a", "b"]}',
        '{"question": " a", "options": ["a", "b"]}',
        '{"question": "\\na", "options": ["a", "b"]}',
        '{"question": "a", "options": ["a"]}',
        '{"question": "a", "options": []}',
        '{"question": "a", "options": ["a", "b", "c", "d", "e", "f"]}',
        '{"question": "a", "options": ["a", "b",]}',
        '{"question": "a", "options": ["a", 2]}',
        '{"question": "a\x01", "options": ["a", "b"]}',
        '{"question": "a\\u0001", "options": ["a", "b"]}',
        '{"question": "a\\ud800", "options": ["a", "b"]}',
        '{"question": "a\x85", "options": ["a", "b"]}',
        '{"options": ["a", "b"], "question": "a"}',
        '{"question": "a", "options": ["a", "b"], "x": 1}',
        '{"question":  "a", "options": ["a", "b"]}',
        ' {"question": "a", "options": ["a", "b"]}',
    ],
)
def test_other_texts_are_not_accepted(text: str) -> None:
    assert not FORM.accepts(text.encode())


def test_texts_that_are_not_utf8_are_not_accepted() -> None:
    good = '{"question": "é€😀", "options": ["a", "b"]}'.encode()
    assert FORM.accepts(good)
    for bad in (b"\xff", b"\x80", b"\xc0\xaf", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"):
        assert not FORM.accepts(good.replace("é".encode(), bad))


def test_tokens_stand_for_the_bytes_of_their_texts() -> None:
    tokens = token_bytes(pocket())
    text = 'Is it 5 ½ "é"?\n日本 {"question": "a"}'
    assert b"".join(tokens[i] for i in pocket().encode(text)) == text.encode()
    assert all(tokens[i] is None for i in pocket().stop_ids)


def test_the_table_follows_the_bytes_of_a_token() -> None:
    tokens = token_bytes(pocket())
    next_SxV, luck = table().next_SxV, np.random.default_rng(0)
    inside = 0
    for state in range(len(FORM.next_SxB)):
        if state == FORM.final:
            continue
        for token in luck.choice(len(tokens), 60):
            after, begun = state, 0
            for byte in tokens[token] or b"":
                before, after = after, int(FORM.next_SxB[after, byte]) if after != DEAD else DEAD
                begun += after != DEAD and FORM.ring(after) not in (0, FORM.ring(before))
            expected = after if tokens[token] and begun <= 1 else DEAD
            assert next_SxV[state, token] == expected, (state, tokens[token])
            inside += expected != DEAD
    assert inside > 100
    allowed = np.flatnonzero(next_SxV[FORM.final] != DEAD)
    assert set(allowed) == set(pocket().stop_ids)


def test_a_random_walk_over_tokens_writes_the_form() -> None:
    """With every number of entries the walk ends, whatever the logits are."""
    tokens, V = token_bytes(pocket()), pocket().vocab_size
    form = jax.tree.map(jnp.asarray, table())
    pick, go = jax.jit(mask), jax.jit(advance)
    rows = 48
    written, texts, ended = begin(rows), [b""] * rows, np.zeros(rows, bool)
    luck = np.random.default_rng(1)
    # Quotes and brackets are likely, so that walks end; commas for half of the rows.
    wanted = np.array([(t or b"")[:1] in (b'"', b"]", b"}") for t in tokens]) * 6.0
    wanted += np.array([(t or b"")[:1] == b"," for t in tokens]) * 6.0
    for _ in range(400):
        logits = luck.gumbel(size=(rows, V)) + wanted
        masked = np.asarray(pick(form, written, jnp.asarray(logits, jnp.float32)))
        assert np.isfinite(masked).any(axis=1).all()
        token = masked.argmax(axis=1)
        for b in np.flatnonzero(~ended):
            if token[b] in pocket().stop_ids:
                ended[b] = True
            else:
                texts[b] += tokens[token[b]]
        written = go(form, written, jnp.asarray(token))
    assert ended.mean() > 0.9
    numbers = set()
    for b in np.flatnonzero(ended):
        assert FORM.accepts(texts[b]), texts[b]
        check(texts[b].decode())
        numbers.add(len(json.loads(texts[b])["options"]))
    assert {FEWEST, MOST} <= numbers


def test_a_tokenizer_that_cannot_write_json_is_refused() -> None:
    class NoQuotes:
        def __getattr__(self, name: str):
            return getattr(pocket().tokenizer, name)

        def get_vocab(self) -> dict[str, int]:
            return {n: i for n, i in pocket().tokenizer.get_vocab().items() if "]" not in n}

    other = dataclasses.replace(pocket(), tokenizer=NoQuotes())
    with pytest.raises(UserError, match="no tokens to write JSON with; leave `constrain` out"):
        constrain(FORM, other, other.vocab_size)


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_pocket_model_writes_nothing_else(temperature: float) -> None:
    """Hot enough that it would not by itself; prompts, and a number of slots that differs."""
    lm = load_model(open_model())
    form = constrain(FORM, lm.tokenizer, lm.config.vocab_size)
    prompts = [
        lm.tokenizer.encode_chat([{"role": "user", "content": f"Write about {topic}."}])
        for topic in ("trust", "science", "work", "family", "money")
    ]
    sampling = Sampling(192, temperature, 1.0 if temperature else 0.9)
    stops = lm.tokenizer.stop_ids
    found = generate(
        lm.config, lm.params, prompts, sampling, stops, batch_size=8, constraint=form, samples=2
    )
    again = generate(
        lm.config, lm.params, prompts, sampling, stops, batch_size=3, constraint=form, samples=2
    )
    assert found == again
    complete = [tokens for tokens in found if len(tokens) < sampling.max_new_tokens]
    assert complete
    for tokens in complete:
        text = lm.tokenizer.decode(tokens)
        assert FORM.accepts(text.encode()), text
        check(text)
    free = generate(lm.config, lm.params, prompts[:1], sampling, stops, batch_size=8)
    assert not FORM.accepts(lm.tokenizer.decode(free[0]).encode())
