"""What the two workers of `experiments.bench.sft` are asked to train, without any framework."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxalign.lm.config import LlamaConfig

LEARNING_RATE, CLIP = 1e-4, 1.0


@dataclasses.dataclass(frozen=True)
class Work:
    """The same weights, adapter and examples for both."""

    llama: LlamaConfig
    model: Path  # Hugging Face layout
    adapter: Path  # PEFT layout
    examples: tuple[tuple[tuple[int, ...], int], ...]  # token ids, and how many are the prompt
    batch: int
    threads: int
    remat: bool

    @property
    def steps(self) -> int:
        return len(self.examples) // self.batch
