r"""Replies of one JSON form, token by token: {"TEXT": "...", "LIST": ["...", "...", ...]}.

An automaton over bytes accepts exactly the objects of that form on one line, with at most one space
after each colon, comma and opening bracket. Texts are UTF-8 or JSON escapes, are not empty, do not
begin with white space, and hold no control character but \n, \r and \t. From it follows a table
that says, for each state and token, the state after the token, or that the token is not allowed. In
the decode loop each reply then costs one gather of a row of that table, whatever the form.

The number of entries of the list is not part of the state. The states of an entry exist twice, for
entries with odd and with even numbers, so a counter beside the state knows from the two states
around a token whether an entry began. (A token that would begin two entries is not allowed.)

Source: the idea of indexing a vocabulary by the states of an automaton, Willard and Louf 2023.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Tokenizer

DEAD = 255  # the state after a byte or token that is not allowed

_HEX = b"0123456789abcdefABCDEF"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclasses.dataclass(frozen=True)
class ByteAutomaton:
    """The form as an automaton over bytes, which begins in state 0.

    Attributes:
        next_SxB: uint8 [S, 256], the state after each byte in each state, or `DEAD`.
        odd: First state of the list's entries with odd numbers; those with even numbers begin at
            `even`.
        even: See `odd`.
        after: First state behind the list.
        final: The state in which the object is complete.
        fewest: Least number of entries of the list.
        most: Largest number of entries.
    """

    next_SxB: np.ndarray
    odd: int
    even: int
    after: int
    final: int
    fewest: int
    most: int

    def ring(self, state: np.ndarray) -> np.ndarray:
        """Return 1 and 2 for states of entries with odd and even numbers, 0 for others."""
        return _ring(state, self.odd, self.even, self.after)

    def accepts(self, text: bytes) -> bool:
        """Return whether a text has the form, and its list a number of entries that is allowed."""
        state, entries = 0, 0
        for byte in text:
            after = int(self.next_SxB[state, byte])
            if after == DEAD:
                return False
            entries += self.ring(after) not in (0, self.ring(state))
            state = after
        return state == self.final and self.fewest <= entries <= self.most


def object_with_list(text_key: str, list_key: str, fewest: int, most: int) -> ByteAutomaton:
    """Make the automaton of an object with a text and a list of texts, in this order.

    Args:
        text_key: Key of the text.
        list_key: Key of the list.
        fewest: Least number of entries of the list, at least 1.
        most: Largest number of entries.

    Example:
        >>> form = object_with_list("question", "options", fewest=2, most=20)
        >>> form.accepts(b'{"question": "Is it?", "options": ["yes", "no"]}')
        True
        >>> form.accepts(b'{"question": "Is it?", "options": ["yes"]}')
        False
    """
    make = _Builder()
    colon = make.literal(0, b"{" + json.dumps(text_key).encode() + b":")
    comma = make.literal(make.text(make.opening_quote(colon)), b",")
    key = json.dumps(list_key).encode()
    name = make.literal(comma, key[:1])
    make.step(make.optional_space(comma), key[:1], name)
    colon = make.literal(name, key[1:] + b":")
    odd = make.state()
    make.step(make.optional_space(colon), b"[", odd)
    make.step(colon, b"[", odd)
    behind_odd = make.text(make.opening_quote(odd))
    even = make.state()
    behind_even = make.text(make.opening_quote(even))
    after = make.state()
    for behind, other in ((behind_odd, even), (behind_even, odd)):
        make.step(behind, b",", other)
        make.step(behind, b"]", after)
    final = make.literal(after, b"}")
    return ByteAutomaton(np.array(make.rows, np.uint8), odd, even, after, final, fewest, most)


class _Builder:
    """Rows of the table, state by state."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.state()

    def state(self) -> int:
        """Add a state that allows no byte yet, and return it."""
        self.rows.append([DEAD] * 256)
        return len(self.rows) - 1

    def step(self, state: int, bytes_: Sequence[int], after: int) -> None:
        """Let each of `bytes_` lead from one state to another."""
        for byte in bytes_:
            self.rows[state][byte] = after

    def literal(self, state: int, text: bytes) -> int:
        """Let a text lead from a state to new ones; return the last."""
        for byte in text:
            after = self.state()
            self.step(state, [byte], after)
            state = after
        return state

    def optional_space(self, state: int) -> int:
        """Add a state behind one space, from which the caller must lead on as from `state`."""
        return self.literal(state, b" ")

    def opening_quote(self, state: int) -> int:
        """Lead from a state over a quote, with at most one space before it, into a new one."""
        text = self.literal(state, b'"')
        self.step(self.optional_space(state), b'"', text)
        return text

    def text(self, start: int) -> int:
        """Add the states of a text's contents from `start` on; return the one behind the quote."""
        body, end = self.state(), self.state()
        plain = [byte for byte in range(0x21, 0x7F) if byte not in b'"\\']
        first_bytes = self._first_bytes(body)
        digits = self.state()
        self._escaped(digits, body)
        for state in (start, body):
            self.step(state, plain, body)
            for byte, after in first_bytes.items():
                self.step(state, [byte], after)
            escape = self.literal(state, b"\\")
            self.step(escape, b'"\\/', body)
            self.step(escape, b"u", digits)
        # White space and the end come in the body only, so no text is empty.
        self.step(body, b" ", body)
        self.step(body, b'"', end)
        self.step(escape, b"nrt", body)
        return end

    def _first_bytes(self, body: int) -> dict[int, int]:
        """Return the state behind each first byte of a character of several bytes (UTF-8)."""
        one, two, three = self.state(), self.state(), self.state()  # bytes that are still to come
        rest = range(0x80, 0xC0)
        self.step(one, rest, body)
        self.step(two, rest, one)
        self.step(three, rest, two)
        behind = {byte: one for byte in range(0xC3, 0xE0)}
        behind |= {byte: two for byte in (*range(0xE1, 0xED), 0xEE, 0xEF)}
        behind |= {byte: three for byte in (0xF1, 0xF2, 0xF3)}
        # First bytes after which not every continuation is a character: control characters,
        # overlong forms, surrogates, and what lies beyond Unicode.
        for byte, allowed, after in (
            (0xC2, range(0xA0, 0xC0), body),
            (0xE0, range(0xA0, 0xC0), one),
            (0xED, range(0x80, 0xA0), one),
            (0xF0, range(0x90, 0xC0), two),
            (0xF4, range(0x80, 0x90), two),
        ):
            behind[byte] = self.state()
            self.step(behind[byte], allowed, after)
        return behind

    def _escaped(self, state: int, body: int) -> None:
        r"""Lead from behind \u over its digits to `body`: no control character, whole pairs."""
        one, two, three = self.state(), self.state(), self.state()
        self.step(one, _HEX, body)
        self.step(two, _HEX, one)
        self.step(three, _HEX, two)
        self.step(state, _HEX, three)
        zero = self.state()
        self.step(state, b"0", zero)
        self.step(zero, _HEX, two)
        zeros, seven = self.state(), self.state()
        self.step(zero, b"0", zeros)
        self.step(zeros, b"23456abcdefABCDEF", one)
        self.step(zeros, b"7", seven)
        self.step(seven, [digit for digit in _HEX if digit not in b"fF"], body)
        d, high = self.state(), self.state()
        self.step(state, b"dD", d)
        self.step(d, b"01234567", two)
        self.step(d, b"89abAB", high)
        second = self.state()
        self.step(high, _HEX, second)
        slash = self.state()
        self.step(second, _HEX, slash)
        d = self.literal(slash, b"\\u")
        low = self.state()
        self.step(d, b"dD", low)
        self.step(low, b"cdefCDEF", two)


@struct.dataclass
class Constraint:
    """The form as the decode loop uses it; see `ByteAutomaton` for the numbers."""

    next_SxV: jax.Array | np.ndarray  # uint8: the state after each token, or DEAD
    odd: int = struct.field(pytree_node=False)
    even: int = struct.field(pytree_node=False)
    after: int = struct.field(pytree_node=False)
    fewest: int = struct.field(pytree_node=False)
    most: int = struct.field(pytree_node=False)


@struct.dataclass
class Written:
    """What each reply has written so far, as far as the form is concerned."""

    state_B: jax.Array  # int32
    entries_B: jax.Array  # int32: entries of the list that were started


def constrain(form: ByteAutomaton, tokenizer: Tokenizer, vocab_size: int) -> Constraint:
    """Make the table of a form for a tokenizer.

    Args:
        form: The form.
        tokenizer: The model's tokenizer. Its stop tokens are allowed behind a complete object, and
            other special tokens nowhere.
        vocab_size: Number of the model's tokens, at least the tokenizer's.

    Returns:
        The table as a numpy array; uint8 [S, vocab_size], about 100 bytes a token.

    Raises:
        UserError: If it is not known which bytes the tokenizer's tokens stand for, or these cannot
            write the form.
    """
    tokens = token_bytes(tokenizer)
    ids = np.array([i for i, text in enumerate(tokens) if text], int)
    ids = ids[np.argsort([-len(tokens[i]) for i in ids], kind="stable")]  # the longest first
    sizes = np.array([len(tokens[i]) for i in ids])
    bytes_NxT = np.zeros((len(ids), int(sizes.max(initial=1))), np.uint8)
    for n, i in enumerate(ids):
        bytes_NxT[n, : sizes[n]] = np.frombuffer(tokens[i], np.uint8)
    S = len(form.next_SxB)
    next_SxV = np.full((S, vocab_size), DEAD, np.uint8)
    table = np.vstack([form.next_SxB, np.full((256 - S, 256), DEAD, np.uint8)])
    for start in range(S):
        alive, state = np.arange(len(ids)), np.full(len(ids), start, np.uint8)
        new = np.zeros(len(ids), np.int8)
        for t in range(bytes_NxT.shape[1]):
            longer = np.searchsorted(-sizes[alive], -t)  # tokens that have a byte t come first
            ended = ids[alive[longer:]]
            next_SxV[start, ended] = state[longer:]
            alive, before, new = alive[:longer], state[:longer], new[:longer]
            state = table[before, bytes_NxT[alive, t]]
            # Entries that the token starts: the state moves to the other copy.
            ring = form.ring(state)
            new = new + ~np.isin(ring, 0) * (ring != form.ring(before))
            goes_on = (state != DEAD) & (new <= 1)
            alive, state, new = alive[goes_on], state[goes_on], new[goes_on]
            if not len(alive):
                break
        next_SxV[start, ids[alive]] = state
    next_SxV[form.final] = DEAD
    next_SxV[form.final, list(tokenizer.stop_ids)] = form.final
    _check_complete(form, next_SxV, tokenizer)
    return Constraint(next_SxV, form.odd, form.even, form.after, form.fewest, form.most)


def _check_complete(form: ByteAutomaton, next_SxV: np.ndarray, tokenizer: Tokenizer) -> None:
    """Raise UserError if a reply could get to where no token is allowed."""

    def leads_on(row: np.ndarray, ring: int) -> tuple[bool, bool, bool]:
        """Return whether a state leads anywhere, to another entry, and behind the list."""
        reached = row[row != DEAD]
        another = ~np.isin(form.ring(reached), (0, ring))
        return len(reached) > 0, bool(another.any()), bool((reached >= form.after).any())

    for state in range(form.final):
        ring = form.ring(state)
        by_bytes = leads_on(form.next_SxB[state], ring)
        if any(b > t for b, t in zip(by_bytes, leads_on(next_SxV[state], ring), strict=True)):
            raise UserError(
                f"{tokenizer.folder}: the tokenizer has no tokens to write JSON with; leave "
                "`constrain` out"
            )


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """Return the bytes that each token stands for; None for special and other added tokens.

    Raises:
        UserError: If the tokenizer is neither byte-level (GPT-2, Llama 3) nor falls back to bytes
            (Llama 2).
    """
    backend = tokenizer.tokenizer.backend_tokenizer
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
    added = set(tokenizer.tokenizer.added_tokens_decoder)
    tokens: list[bytes | None] = [None] * tokenizer.vocab_size
    by_character = _bytes_by_character()
    for name, i in tokenizer.tokenizer.get_vocab().items():
        if i in added:
            continue
        if "ByteLevel" in kinds:
            tokens[i] = bytes(by_character[c] for c in name if c in by_character)
        elif "ByteFallback" in kinds:
            byte = _BYTE_TOKEN.fullmatch(name)
            text = name.replace("\u2581", " ").encode()
            tokens[i] = bytes([int(byte[1], 16)]) if byte else text
        else:
            raise UserError(
                f"{tokenizer.folder}: replies can be constrained with a byte-level tokenizer only, "
                "and this one is another kind; leave `constrain` out"
            )
    return tokens


def _bytes_by_character() -> dict[str, int]:
    """Return the byte of each character in the names of byte-level tokens, as in GPT-2.

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, for U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def begin(rows: int) -> Written:
    """Return the state of replies that have written nothing."""
    return Written(jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32))


def mask(constraint: Constraint, written: Written, logits_BxV: jax.Array) -> jax.Array:
    """Return the logits with -inf for every token that cannot go on with the reply."""
    after_BxV = constraint.next_SxV[written.state_B]
    entries_BxV = written.entries_B[:, None] + _began(
        constraint, written.state_B[:, None], after_BxV
    )
    allowed = (after_BxV != DEAD) & (entries_BxV <= constraint.most)
    allowed &= (after_BxV < constraint.after) | (entries_BxV >= constraint.fewest)
    return jnp.where(allowed, logits_BxV, -jnp.inf)


def advance(constraint: Constraint, written: Written, token_B: jax.Array) -> Written:
    """Return the state of the replies after a token that was allowed."""
    after_B = constraint.next_SxV[written.state_B, token_B]
    began_B = _began(constraint, written.state_B, after_B)
    return Written(after_B.astype(jnp.int32), written.entries_B + began_B)


def _began(constraint: Constraint, before: jax.Array, after: jax.Array) -> jax.Array:
    """Return 1 where an entry of the list began between two states, else 0; int32."""
    c = constraint
    ring = _ring(after, c.odd, c.even, c.after)
    return ((ring != 0) & (ring != _ring(before, c.odd, c.even, c.after))).astype(jnp.int32)


def _ring(state: jax.Array, odd: int, even: int, after: int) -> jax.Array:
    inside = (state >= odd) & (state < after)
    return inside * (1 + (state >= even))
