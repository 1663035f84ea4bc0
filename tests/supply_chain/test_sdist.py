"""The source distribution, unpacked somewhere else, runs its own tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.supply_chain.dependencies import ROOT

pytestmark = pytest.mark.long

# One of each kind: data in the package, fixtures, experiments, the documentation's pages.
SOME_TESTS = (
    "tests/test_public_api.py",
    "tests/core",
    "tests/surveys/test_reply_logs.py",
    "tests/surveys/formats/test_culturespa.py",
    "tests/supply_chain/test_supply_chain.py",
    "tests/experiments/test_bench_files.py",
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, made from a copy: setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("sdist")
    made = ("runs", "build", "dist", "site", "*.egg-info", "__pycache__")
    left_out = shutil.ignore_patterns(".*", *made)
    shutil.copytree(ROOT, folder / "copy", ignore=left_out)
    build = "from setuptools.build_meta import build_sdist; build_sdist('..')"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "copy", check=True, timeout=300)
    (archive,) = folder.glob("jaxalign-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return next(path for path in folder.glob("jaxalign-*") if path.is_dir())


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hidden = (".ci/", ".git", ".hypothesis")
    return [name for name in listed.stdout.splitlines() if not name.startswith(hidden)]


def test_it_holds_every_file_that_is_tracked(unpacked: Path) -> None:
    missing = [name for name in tracked() if not (unpacked / name).exists()]
    # Files that are deleted but not yet committed are not there either.
    assert not [name for name in missing if (ROOT / name).exists()]


def test_it_runs_its_tests(unpacked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", *SOME_TESTS]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=unpacked,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
