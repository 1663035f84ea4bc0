"""A jinja environment for texts that strangers wrote: model folders, prompt folders, recorded runs.

A text can neither reach Python's internals nor change what it is given (jinja's own immutable
sandbox), nor run for long, nor fill the memory. One rendering has a limit of steps (turns of a loop
and calls) and of characters, which are counted where text grows: joins, sums, products, formats,
string methods and filters. The limits are far above what any conversation needs, and do not depend
on the clock, so that a text is refused on every machine or on none.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 300_000
MOST_CHARACTERS = 20_000_000
_LARGEST_NUMBER = 2**64
_WIDTH = re.compile(r"\d{5,}")  # of a field in a format; nobody pads to 10,000 characters
# They run regular expressions over their input, print internals, or make text out of nothing.
_REMOVED = {"filters": ("urlize", "wordwrap", "pprint"), "globals": ("lipsum",)}


class _Budget:
    """What one rendering has left."""

    def __init__(self) -> None:
        self.steps, self.characters = MOST_STEPS, MOST_CHARACTERS

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} steps")

    def write(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise SecurityError(f"it makes more than {MOST_CHARACTERS:,} characters")


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("budget")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Give the rendering inside the `with` block a budget of steps and characters."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


class Sandbox(ImmutableSandboxedEnvironment):
    """A sandbox whose templates stay within the budget of `bounded`.

    Outside `bounded` nothing that costs budget works; jinja's constant folding, which runs while a
    template is compiled, then leaves the expression to the rendering.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(extensions=[loopcontrols], **options)
        for name in _REMOVED["filters"]:
            self.filters.pop(name, None)
        for name in _REMOVED["globals"]:
            self.globals.pop(name, None)
        self.filters = {name: _bounded_filter(used) for name, used in self.filters.items()}
        self.filters |= {"_counted": _counted, "_joined": _joined}

    def add_filter(self, name: str, used: Callable) -> None:
        """Add a filter, bounded like all others."""
        self.filters[name] = _bounded_filter(used)

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the pieces of a template, a macro or a block."""
        return _joined(parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator whose result may be large."""
        budget = _budget.get()
        budget.step()
        if operator == "**":
            _check_power(left, right)
        elif operator == "*":
            budget.write(_length(left) * _times(right) + _length(right) * _times(left))
        elif operator == "+":
            budget.write(_length(left) + _length(right))
        elif isinstance(left, str):  # printf-style
            _check_format(left)
            budget.write(len(left) + _length_within(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function or a method of a value."""
        budget = _budget.get()
        budget.step()
        owner = getattr(called, "__self__", None)
        if isinstance(owner, str | bytes):
            _charge(owner, [*args, *kwargs.values()])
        return super().call(context, called, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable | None:
        """Return jinja's safe form of `str.format`, whose fields are not wide."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "_counted")
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [_filtered(nodes.List(joined.nodes), "_joined")]
        return tree


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None)


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the values of a loop, each a step."""
    budget = _budget.get()
    for value in values:
        budget.step()
        yield value


def _joined(parts: Iterable[Any]) -> str:
    """Join pieces of text, as the operator ~ does."""
    budget, texts = _budget.get(), []
    for part in parts:
        text = part if isinstance(part, str) else str(part)
        budget.write(len(text))
        texts.append(text)
    return "".join(texts)


def _bounded_filter(used: Callable) -> Callable:
    @functools.wraps(used)  # which also copies whether jinja passes its context
    def bounded_filter(*args: Any, **kwargs: Any) -> Any:
        _budget.get().step()
        given = [*args, *kwargs.values()]
        passed = [value for value in given if not isinstance(value, _PASSED)]
        if passed:
            if used.__name__ == "do_format":
                _check_format(passed[0])
            _charge(passed[0], passed[1:])
        return used(*args, **kwargs)

    return bounded_filter


_PASSED = (jinja2.Environment, jinja2.runtime.Context, nodes.EvalContext)


def _charge(value: Any, args: Sequence[Any]) -> None:
    """Charge what a string method or a filter may make of a value, at most about.

    Widths and counts count as characters; a replacement may stand at every character of the value,
    and so may the value between all parts that it joins.
    """
    lengths = [_length_within(arg) for arg in args]
    numbers = [abs(arg) for arg in args if isinstance(arg, int)]
    longest = max([1, *lengths])
    # Text is indented line by line, and lists and dicts part by part.
    lines = 1 + (value.count("\n") if isinstance(value, str) else _length_within(value))
    _budget.get().write(
        _length_within(value) * (1 if longest < 100 else longest)
        + sum(lengths)
        + lines * sum(number for number in numbers if number < _LARGEST_NUMBER)
    )
    if any(number >= _LARGEST_NUMBER for number in numbers):
        raise SecurityError("it uses a number that is too large")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _length_within(value: Any) -> int:
    """Return the characters of a value, or of all texts in a list or dict of them."""
    if isinstance(value, dict):
        return sum(_length_within(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return sum(_length_within(part) for part in value) + len(value)
    return _length(value)


def _times(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


def _check_power(base: Any, exponent: Any) -> None:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and exponent > 0 and base.bit_length() * exponent > 10_000:
        raise SecurityError("it computes a power that is too large")


def _check_format(text: Any) -> None:
    """Refuse a format with a field width of five digits or more, or one that is an argument."""
    for field in re.findall(r"%[^a-zA-Z%]*|\{[^}]*\}", str(text)):
        if _WIDTH.search(field) or "*" in field or field.count("{") > 1:
            raise SecurityError(f"it pads to the width of {field!r}")
