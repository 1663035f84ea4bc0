"""The wheel holds `jaxalign` alone, with its data and its program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder), str(ROOT)], check=True, cwd=folder)
    (found,) = folder.glob("jaxalign-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """The wheel as pip would unpack it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def python(installed: Path, arguments: list[str], folder: Path) -> str:
    """Run Python in an empty folder, where the checkout is not on the path."""
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_holds_jaxalign_alone(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"jaxalign"}


def test_holds_every_file_that_is_tracked(wheel: Path):
    listed = subprocess.run(
        ["git", "ls-files", "jaxalign"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert set(listed.stdout.split()) <= set(zipfile.ZipFile(wheel).namelist())


def test_the_example_of_the_readme_runs(installed: Path, tmp_path: Path):
    readme = (ROOT / "README.md").read_text("utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))
    assert len(code.strip().splitlines()) >= 10
    check = f"import jaxalign; assert jaxalign.__file__.startswith({str(installed)!r})\n"
    (tmp_path / "example.py").write_text(check + code, "utf-8")
    python(installed, ["example.py"], tmp_path)


def test_the_program_runs(installed: Path, tmp_path: Path):
    (info,) = installed.glob("jaxalign-*.dist-info")
    (script,) = metadata.Distribution.at(info).entry_points
    assert (script.name, script.value) == ("jaxalign", "jaxalign.cli:main")
    run = "import sys; from jaxalign.cli import main; main(sys.argv[1:])"
    said = python(installed, ["-c", run], tmp_path)
    for command in ("soft-prompt", "culturespa", "sweep", "fine-tune", "score", "check", "plan"):
        assert command in said
        help_text = python(installed, ["-c", run, command, "--help"], tmp_path)
        assert f"jaxalign {command}" in help_text
