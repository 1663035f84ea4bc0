"""Registries: one new file is enough, and names that are not registered are refused."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.core.registry import Registry

_NAMES = (f"registry_case_{i}" for i in itertools.count())


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an importable package with two modules that register themselves."""
    name = next(_NAMES)
    folder = tmp_path / name
    folder.mkdir()
    register = "from tests.core.test_registry import REGISTRIES\n"
    register += f"@REGISTRIES[{name!r}].register('%s')\ndef entry(): return '%s'\n"
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text(register % ("first", 1))
    (folder / "two.py").write_text(register % ("second", 2))
    monkeypatch.syspath_prepend(str(tmp_path))
    REGISTRIES[name] = Registry("distance", name, parameter="metric")
    return name


REGISTRIES: dict[str, Registry] = {}


def test_the_first_lookup_imports_every_module(package: str) -> None:
    registry = REGISTRIES[package]
    assert f"{package}.one" not in sys.modules
    assert registry["second"]() == "2"
    assert registry.names() == ("first", "second")
    assert "first" in registry
    assert "third" not in registry


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed(package: str) -> None:
    message = "`metric` third: no such distance; choose from first, second"
    with pytest.raises(UserError, match=message):
        REGISTRIES[package]["third"]


def test_a_name_is_registered_once() -> None:
    registry: Registry[object] = Registry("distance", "jaxalign.core")
    first = registry.register("a")(object())
    assert registry.register("a")(first) is first
    with pytest.raises(ValueError, match="two distance entries are registered as 'a'"):
        registry.register("a")(object())
