"""A folder with a made-up survey and replies to it, whose scores are known by construction."""

from __future__ import annotations

from pathlib import Path

from jaxalign.surveys.formats import culturespa
from tests.support.culture_folder import OPTIONS, first_code, write_folder, write_replies


def write_scored_folder(folder: Path) -> Path:
    """Write a folder in which the persona of the USA is perfect, CHN's second run differs from its
    first and leaves two questions without an answer, and all unaware replies are 1."""
    write_folder(folder)
    write_replies(folder, "aware_USA_0", majority_texts(folder, "USA"))
    for number in (0, 1):
        texts = {i: str(first_code(i) + number) for i in OPTIONS}
        write_replies(folder, f"aware_CHN_{number}", texts | {"Q1": "refused", "Q48": "77"})
    write_replies(folder, "unaware_0", "1")
    return folder


def majority_texts(folder: Path, country: str) -> dict[str, str]:
    """Return the replies of a persona that knows its country perfectly."""
    majority = culturespa.read(folder).majority(country)
    return {i: str(position + first_code(i)) for i, position in majority.items()}
