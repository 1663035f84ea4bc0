"""JSON that is almost right, for fuzzing readers: a good value with one part replaced or cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from jaxalign.core.errors import UserError

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**6),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["Q1", "1", "0", "USA", "\ud800", 10**400]),
)
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@st.composite
def nearly(draw: st.DrawFn, good: Any) -> bytes:
    """Draw `good` as JSON with one part replaced or dropped, or its bytes cut or overwritten."""
    value = copy.deepcopy(good)
    if draw(st.booleans()):
        value = _swap(draw, value)
        return json.dumps(value).encode("utf-8", "surrogatepass")
    text = json.dumps(value).encode()
    at = draw(st.integers(0, len(text)))
    return (
        text[:at] + draw(st.binary(max_size=4)) + (text[at + 1 :] if draw(st.booleans()) else b"")
    )


def _swap(draw: st.DrawFn, value: Any) -> Any:
    """Follow a random path into `value` and replace what is at its end."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if _list(value) else ()
    if not keys or draw(st.integers(0, 3)) == 0:
        return draw(ANY)
    key = draw(st.sampled_from(list(keys)))
    if draw(st.integers(0, 5)) == 0:
        del value[key]
    else:
        value[key] = _swap(draw, value[key])
    return value


def _list(value: Any) -> bool:
    return isinstance(value, list)


def assert_valid_or_one_line(read: Callable[[], Any], kind: type) -> None:
    """Assert that `read` returns a `kind` or raises a UserError of one line."""
    try:
        value = read()
    except UserError as error:
        message = str(error)
    else:
        message = "" if isinstance(value, kind) else f"got\n{value!r}"
    assert "\n" not in message
