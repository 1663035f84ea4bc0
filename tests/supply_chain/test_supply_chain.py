"""Every import is declared and nothing else is; what is installed is pinned and licensed."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.utils import canonicalize_name

from tests.supply_chain.dependencies import (
    CONSTRAINTS,
    EXTRAS,
    LICENCES,
    NOT_IMPORTED,
    declared,
    imported,
    pinned,
    project,
    requirements_of,
)

OPTIONAL = ("survey", "gguf", "gcs", "tensorboard", "wandb", "eval", "cuda", "tpu")


def test_the_package_declares_what_it_imports() -> None:
    known, used = declared(*OPTIONAL), imported("jaxalign")
    assert not {name: where for name, where in used.items() if name not in known}


def test_nothing_is_declared_that_the_package_does_not_import() -> None:
    unused = declared(*OPTIONAL).keys() - imported("jaxalign").keys() - NOT_IMPORTED.keys()
    assert not unused


def test_what_tests_and_experiments_import_is_declared_and_used() -> None:
    extras = project()["optional-dependencies"]
    used = imported("jaxalign", "experiments", "tpu", "tests", "docs")
    known = declared(*extras)
    assert not {name: where for name, where in used.items() if name not in known}
    assert not known.keys() - used.keys() - NOT_IMPORTED.keys()


def test_nothing_heavy_is_needed_by_default() -> None:
    """What only some users need is in an extra, and imported where it is used."""
    assert not declared().keys() & {"torch", "peft", "pyarrow", "pyreadstat", "pandas", "gguf"}


def test_everything_declared_is_pinned_to_a_version_that_is_allowed() -> None:
    versions, python = pinned(), {"python_version": "3.11", "python_full_version": "3.11.9"}
    for name, requirements in declared(*EXTRAS).items():
        for requirement in requirements:
            if requirement.marker is None or requirement.marker.evaluate(python):
                assert requirement.specifier.contains(versions[name]), (name, versions[name])


def test_the_pins_name_versions_and_no_place() -> None:
    lines = [line for line in CONSTRAINTS.read_text("utf-8").splitlines() if line[:1] != "#"]
    assert list(pinned()) == sorted(pinned())
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


def test_every_package_has_its_licence_on_the_page() -> None:
    page = LICENCES.read_text("utf-8")
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", page, re.MULTILINE)
    listed = {name: licence for name, licence in rows if name not in ("package", "---")}
    assert listed.keys() == pinned().keys()
    assert not [name for name, licence in listed.items() if "not stated" in licence]


@pytest.mark.long
def test_what_pinned_packages_need_is_pinned() -> None:
    """Of those that are installed here in the pinned version."""
    versions, checked = pinned(), 0
    for package in metadata.distributions():
        name = canonicalize_name(package.metadata["Name"])
        if versions.get(name) != package.version.partition("+")[0]:
            continue
        needed = requirements_of(name, frozenset())
        missing = {canonicalize_name(r.name) for r in needed} - versions.keys()
        assert not missing, f"{name} needs {', '.join(missing)}"
        checked += 1
    if not checked:
        pytest.skip("no package is installed in the pinned version")
