"""Patterns that users write are taken, and those that take for ever are not."""

from __future__ import annotations

import pytest

from jaxalign.lm.patterns import check_pattern

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj)))"
)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(self_attn\.q|mlp\.down)_proj",
        r"layers\.1\.mlp.down_proj",
        r".*language_model.*\.(up_proj|down_proj)$",
        r"^(?!.*visual).*(q|v)_proj",
        r"(?P<layer>\d+)\.q[_*+?(){}]proj",
        UNSLOTH,
    ],
)
def test_what_users_write_is_taken(pattern):
    check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"(a*)*b", "repeats a group"),
        (r"(?:a|a)+b", "repeats a group"),
        (r"(a{1,9}){1,9}", "repeats a group"),
        (r".*.*.*.*.*\d", "in a row"),
        (r"(.*.*)(.*.*).*x", "in a row"),
        ("a?" * 30 + "a" * 30, "optional"),
        ("x" * 1001, "more than 1000 characters"),
        (r"((", "not a regular expression"),
        (r"a{99999999999}", "not a regular expression"),
    ],
)
def test_what_takes_for_ever_is_not(pattern, words):
    with pytest.raises(ValueError, match=words):
        check_pattern(pattern)
