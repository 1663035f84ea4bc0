"""The folder list is the architecture: which rooms there are, and which way imports point."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lowest first. A module imports from lower floors and from its own room; rooms on one floor do not
# know each other.
FLOORS = (
    {"core"},
    {"report", "runtime", "surveys"},
    {"prompts", "lm", "optim", "runs", "stats"},
    {"answering", "training", "pocket"},
    {"methods"},
    {"commands"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
NUMERIC = ("answering", "lm", "optim", "stats", "training", "methods/soft_prompt")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "jaxalign").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Project modules that a file imports; without `lazy`, those at its top level only."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_a_floor():
    folders = {p.name for p in (ROOT / "jaxalign").iterdir() if (p / "__init__.py").exists()}
    assert folders == set(FLOOR_OF) - {"cli"}


def test_at_most_three_loose_files():
    assert len(list((ROOT / "jaxalign").glob("*.py"))) <= 3


@pytest.mark.parametrize("name", [name for name in MODULES if room(name)])
def test_imports_point_down(name: str):
    for other in imports(MODULES[name]):
        if not other.startswith(("jaxalign", "experiments", "tpu", "tests")):
            continue
        assert other.startswith("jaxalign."), f"{name} imports {other}, which is not in the package"
        own, theirs = room(name), room(other)
        assert own == theirs or FLOOR_OF[theirs] < FLOOR_OF[own], f"{name} imports {other}"


def test_no_import_cycles():
    graph = {
        name: {other for other in imports(path, lazy=False) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


# Commands of other programs, which messages may give in full.
OTHER_PROGRAMS = re.compile(r"(pip install|inspect log convert|llama-gguf-split) .*")


@pytest.mark.parametrize("name", [n for n in MODULES if room(n) not in ("", "commands", "cli")])
def test_the_library_speaks_of_parameters_and_does_not_print(name: str):
    """Flags and terminals belong to the command line. Docstrings may say which option a command
    has for something."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in docstrings and room(name) not in ("runs", "report"):
            own = OTHER_PROGRAMS.sub("", node.value)
            flag = re.search(r"(?<![\w-])--[a-z][a-z-]+", own)
            assert not flag, f"{name}:{node.lineno} names the flag {flag and flag.group()}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            prints = node.func.id == "print" and name != "jaxalign.runs.console"
            assert not prints, f"{name}:{node.lineno} prints"


def test_few_places_switch_formatting_off():
    files = [
        p for d in ("jaxalign", "experiments", "tpu", "tests") for p in (ROOT / d).rglob("*.py")
    ]
    marks = [p for p in files for line in p.read_text("utf-8").splitlines() if "# fmt: " in line]
    assert len([p for p in marks if p != Path(__file__)]) <= 10


@pytest.mark.parametrize("folder", NUMERIC)
def test_numeric_code_explains_its_steps(folder: str):
    """At least four comment lines in a hundred."""
    lines = [
        line.strip()
        for path in (ROOT / "jaxalign" / folder).rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.strip()
    ]
    comments = sum("# " in line for line in lines)
    assert comments >= 0.04 * len(lines), f"{comments} comments in {len(lines)} lines"


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, jaxalign; print([m for m in ('jax', 'numpy', 'transformers', 'matplotlib') "
    assert python(code + "if m in sys.modules])").strip() == "[]"


def test_public_names_exist_and_start_no_device():
    code = """
import sys, jaxalign as ja
for name in ja.__all__:
    value = getattr(ja, name)
    assert value.__doc__, name
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
print(sorted(m for m in ("matplotlib", "torch", "jax.experimental.pallas") if m in sys.modules))
"""
    assert python(code).strip() == "[]"


def test_type_checkers_see_the_names_that_are_imported_lazily():
    import jaxalign

    tree = ast.parse((ROOT / "jaxalign" / "__init__.py").read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {a.name: node.module for node in block.body for a in node.names}
    assert seen == {name: f"jaxalign.{home}" for name, home in jaxalign._HOMES.items()}
