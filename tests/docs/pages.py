"""Find the pages of the documentation and the code blocks in them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "experiments" / "README.md",
    ROOT / "experiments" / "bench" / "results" / "README.md",
    ROOT / "tpu" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
NOT_RUN = "<!-- not run:"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: Path
    line: int
    language: str
    code: str
    runs: bool  # whether the tests run it: no comment before it says otherwise


def blocks(page: Path) -> list[Block]:
    """Return all fenced code blocks of a page, in order."""
    text, result = page.read_text(), []
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.M | re.S):
        before = text[: match.start()]
        last_line = (before.strip().splitlines() or [""])[-1]
        result.append(
            Block(
                page=page,
                line=before.count("\n") + 1,
                language=match[1],
                code=match[2],
                runs=not last_line.startswith(NOT_RUN),
            )
        )
    return result


def name(page: Path) -> str:
    """Return the path of a page below the repository, as the name of a test case."""
    return str(page.relative_to(ROOT))
