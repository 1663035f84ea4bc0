"""Describe what the two workers of `experiments.bench.sft` train, without any framework."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxalign.lm.config import LlamaConfig

LEARNING_RATE, CLIP = 1e-4, 1.0


@dataclasses.dataclass(frozen=True)
class Work:
    """The weights, adapter and examples that both workers train on.

    Attributes:
        llama: Shape of the model.
        model: Folder of the weights in the Hugging Face layout.
        adapter: Folder of the adapter in the PEFT layout.
        examples: Token ids of each example, and how many of them are the prompt.
        batch: Examples per optimiser step.
        threads: Number of threads for torch.
        remat: Whether jaxalign rematerialises activations.
        unroll: Whether jaxalign unrolls the layers.
    """

    llama: LlamaConfig
    model: Path
    adapter: Path
    examples: tuple[tuple[tuple[int, ...], int], ...]
    batch: int
    threads: int
    remat: bool
    unroll: bool

    @property
    def steps(self) -> int:
        """Number of optimiser steps in one pass over the examples."""
        return len(self.examples) // self.batch
