"""Run every Python example of the README and the documentation on the pocket model."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, Block, blocks, name

RUN = {
    page: [block for block in blocks(page) if block.language == "python" and block.runs]
    for page in PAGES
}
REGISTRIES = (
    ("jaxalign.optim.api", "optimizers"),
    ("jaxalign.stats.metrics", "METRICS"),
    ("jaxalign.stats.objectives", "objectives"),
    ("jaxalign.surveys.formats.base", "FORMATS"),
)


@pytest.fixture
def clean_registries():
    """Forget what an example has registered, so that other tests see the package alone."""
    registries = [getattr(importlib.import_module(module), name) for module, name in REGISTRIES]
    for registry in registries:
        registry.names()  # imports what the package registers itself
    before = [dict(registry._entries) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


def cases() -> list:
    """Return the pages with examples; those that tune prompts are long."""
    pages = [page for page, found in RUN.items() if found]
    tuning = [any("tune_soft_prompt(" in block.code for block in RUN[page]) for page in pages]
    return [
        pytest.param(
            page,
            marks=[pytest.mark.long] if tunes else [],
            id=name(page),
        )
        for page, tunes in zip(pages, tuning, strict=True)
    ]


@pytest.mark.parametrize("page", cases())
def test_the_examples_of_a_page_run_in_order(page: Path, tmp_path, monkeypatch, clean_registries):
    monkeypatch.chdir(tmp_path)  # what an example writes
    # A real module, since dataclasses look theirs up.
    module = types.ModuleType("documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in RUN[page]:
        exec(compile(padded(block), str(page), "exec"), module.__dict__)


def padded(block: Block) -> str:
    """Return the code with its line numbers in the page, so that a traceback points there."""
    return "\n" * block.line + block.code


def test_there_are_examples_to_run():
    assert len(RUN) > 20
    assert sum(map(len, RUN.values())) >= 10


def test_every_example_that_is_not_run_says_why():
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("<!-- not run:"):
                assert len(line) > len("<!-- not run: x -->"), f"{page}: {line}"
