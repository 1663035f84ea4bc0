"""Write the list of constraints and the page of licences from what is installed."""

from __future__ import annotations

import platform
from importlib import metadata

from tests.supply_chain.dependencies import (
    CONSTRAINTS,
    EXTRAS,
    LICENCES,
    installed,
    licence_of,
)

_HEAD = """\
# Every package that the tests were run with, by pip on Python {version}.
# Made again by: python -m tests.supply_chain
# To install exactly these: make test CONSTRAINTS={path}
"""
_PAGE = """\
# Licences

jaxalign itself is under the Apache License 2.0. pip installs the packages below, each under its own
licence, as its metadata state it. This page is made by `python -m tests.supply_chain`.

## What jaxalign needs

With the extras `survey` and `gguf`.

{runtime}

## What the tests and the documentation need besides

{tools}

Three extras are not in these tables. `cuda` installs `jax[cuda13]` and with it libraries of NVIDIA,
which are under NVIDIA's own licence and not open source; `gcs` installs gcsfs (BSD), and `eval`
lm-evaluation-harness and Inspect (MIT), each with what it needs.
"""


def table(packages: dict[str, metadata.Distribution]) -> str:
    rows = [f"| {name} | {licence_of(package)} |" for name, package in packages.items()]
    return "\n".join(["| package | licence |", "| --- | --- |", *rows])


def main() -> None:
    everything = installed(*EXTRAS)
    runtime = installed("survey", "gguf")
    lines = [
        # A local build, such as 2.13.0+cpu, is the same release.
        f"{name}=={package.version.partition('+')[0]}"
        for name, package in everything.items()
    ]
    version = ".".join(platform.python_version_tuple()[:2])
    head = _HEAD.format(version=version, path=f"tests/supply_chain/{CONSTRAINTS.name}")
    CONSTRAINTS.write_text(head + "\n".join(lines) + "\n", "utf-8")
    tools = {name: package for name, package in everything.items() if name not in runtime}
    LICENCES.write_text(_PAGE.format(runtime=table(runtime), tools=table(tools)), "utf-8")
    print(f"{len(everything)} packages in {CONSTRAINTS} and {LICENCES}")


if __name__ == "__main__":
    main()
