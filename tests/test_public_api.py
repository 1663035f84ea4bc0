"""The public API: every name is documented by an example, and every example runs."""

from __future__ import annotations

import doctest
import inspect

import pytest

import jaxalign


def examples(name: str) -> list[doctest.DocTest]:
    """Doctests of a public name, methods of a class included."""
    value = getattr(jaxalign, name)
    module = inspect.getmodule(value)
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(value, name, module=module) if test.examples]


# Their examples compile a search or a training step.
LONG = {"Adapter", "SoftPrompt", "fine_tune", "run_soft_prompt", "tune_soft_prompt"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in LONG else [])
        for name in sorted(jaxalign._HOMES)
    ],
)
def test_the_example_runs(name: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes
    tests = examples(name)
    assert tests, f"jaxalign.{name} has no example in its docstring"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    for test in tests:
        said: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
        assert not failed, "".join(said)


def test_about_thirty_names():
    assert 25 <= len(jaxalign._HOMES) <= 36


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'score_model'"):
        _ = jaxalign.score_model
    assert set(jaxalign.__all__) <= set(dir(jaxalign))
