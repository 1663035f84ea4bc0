"""Which questions are held out of a fine-tuning: whole questions, so that none is on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from jaxalign.core.errors import UserError


def held_out_questions(questions: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """`share` of the different questions, rounded to whole ones, by luck that depends on the seed
    and the question alone. UserError, which names the share, where a side would be empty."""
    different = set(questions)
    count = round(share * len(different))
    if not 0 < count < len(different):
        raise UserError(
            f"share {share} of {len(different)} different questions holds out {count}; both sides "
            "need one"
        )
    luck = lambda text: hashlib.sha256(f"hold out {seed}\n{text}".encode()).digest()  # noqa: E731
    return frozenset(sorted(different, key=luck)[:count])
