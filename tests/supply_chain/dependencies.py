"""What `pyproject.toml` declares, what the code imports, and what is installed for it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONSTRAINTS = Path(__file__).with_name("constraints-3.11.txt")
LICENCES = ROOT / "docs" / "reference" / "licences.md"
EXTRAS = ("survey", "gguf", "test", "parity", "tpu", "docs")  # what continuous integration installs

# Modules that are not called as their package is.
PACKAGE_OF = {
    "huggingface_hub": "huggingface-hub",
    "ml_dtypes": "ml-dtypes",
    "orbax": "orbax-checkpoint",
    "yaml": "pyyaml",
    "inspect_ai": "inspect-ai",
    "lm_eval": "lm-eval",
}
# What a package is for that no code imports.
NOT_IMPORTED = {
    "gcsfs": "etils opens gs:// with it",
    "mkdocs-material": "the theme and the command of `make docs`",
    "mkdocstrings": "the API pages of `make docs`",
    "pytest-xdist": "the tests' option -n",
    "ruff": "`make lint`, and the signatures of the API pages",
    "setuptools": "builds the wheels that tests install",
}
# What is imported only beside a declared package that brings it, by that package.
BROUGHT_BY = {
    "anyio": "inspect-ai",
    "griffe": "mkdocstrings",
    "httpx2": "huggingface-hub",
    "packaging": "pytest",
    "tqdm": "lm-eval",
}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def declared(*extras: str) -> dict[str, list[Requirement]]:
    """Return the requirements of the package and of some extras, by canonical name."""
    lines = list(project()["dependencies"])
    for extra in extras:
        lines += project()["optional-dependencies"][extra]
    found: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def imported(*folders: str) -> dict[str, str]:
    """Return the packages that the code of some folders imports, each with a file that does."""
    own = {"jaxalign", "experiments", "tpu", "tests"} | sys.stdlib_module_names
    found = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - own:
                package = PACKAGE_OF.get(name, BROUGHT_BY.get(name, name))
                found.setdefault(canonicalize_name(package), str(path.relative_to(ROOT)))
    return found


def pinned() -> dict[str, str]:
    """Return the version of each package in the list of constraints."""
    lines = CONSTRAINTS.read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements_of(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """Yield what an installed package needs here, with some of its extras."""
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        wanted = [{"extra": extra} for extra in (*sorted(extras), "")]
        if requirement.marker is None or any(map(requirement.marker.evaluate, wanted)):
            yield requirement


def installed(*extras: str) -> dict[str, metadata.Distribution]:
    """Return all packages that the project needs with some extras, by canonical name.

    Raises:
        metadata.PackageNotFoundError: One of them is not installed.
    """
    waiting = [r for requirements in declared(*extras).values() for r in requirements]
    waiting = [r for r in waiting if r.marker is None or r.marker.evaluate({"extra": ""})]
    seen: set[tuple[str, frozenset[str]]] = set()
    found = {}
    while waiting:
        requirement = waiting.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        found[key[0]] = metadata.distribution(requirement.name)
        waiting += requirements_of(requirement.name, key[1])
    return dict(sorted(found.items()))


def licence_of(package: metadata.Distribution) -> str:
    """Return the licence that a package's metadata state, in a few words."""
    fields = package.metadata
    if expression := fields.get("License-Expression"):
        return expression
    stated = [
        line.rpartition("::")[2].strip()
        for line in fields.get_all("Classifier") or ()
        if line.startswith("License ::") and not line.endswith(":: OSI Approved")
    ]
    text = " ".join((fields.get("License") or "").split())
    if text and text != "UNKNOWN" and len(text) <= 60:
        return text
    return " or ".join(stated) or _named_in(text) or "not stated in its metadata"


def _named_in(text: str) -> str:
    """Return the name of a licence whose whole text is in the metadata."""
    found = re.search(r"Apache License|MIT License|BSD[ -][23]-Clause|BSD License", text)
    return found.group() if found else ""
