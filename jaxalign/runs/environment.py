"""What a run ran on: package versions, interpreter, devices, git revision."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    "jaxalign",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "evosax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def environment() -> dict[str, Any]:
    """Return versions, platform, devices and git revision, as `config.json` keeps them."""
    devices = jax.devices()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": describe_cpu(),
        "devices": {
            "backend": jax.default_backend(),
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
        },
        "git_revision": git_revision(Path(__file__).parents[2]),
    }


def describe_cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model of the CPU and its widest vectors, on which last bits depend.

    Args:
        info: Where Linux describes it; elsewhere the machine's architecture is all that is known.
    """
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    # Each core is described; the first one counts.
    pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {name.strip(): value.split() for name, value in pairs}
    flags = set(fields.get("flags", []))
    vectors = [name for name in ("avx2", "avx512f", "amx_bf16") if name in flags]
    model = " ".join(fields.get("model name", [])) or platform.machine()
    return f"{model}, {vectors[-1]}" if vectors else model


def git_revision(folder: Path) -> str | None:
    """Return the commit that `folder` is checked out at, with "-dirty" if tracked files differ.

    None where the package does not run from its own checkout: an installed copy may lie inside
    some other project's repository, whose revision would say nothing.
    """
    if _git(folder, "ls-files", "--error-unmatch", "jaxalign/__init__.py") is None:
        return None
    revision = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return revision and revision + ("-dirty" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command in `folder`; None where it fails or git is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
