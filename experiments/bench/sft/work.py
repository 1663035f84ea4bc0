"""Describe what the two workers of `experiments.bench.sft` train, without any framework."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxalign.lm.config import LlamaConfig

LEARNING_RATE, CLIP = 1e-4, 1.0

TokensAndPrompt = tuple[tuple[int, ...], int]  # an example: token ids, length of its prompt


@dataclasses.dataclass(frozen=True)
class Work:
    """The weights, adapter and examples that both workers train on.

    Attributes:
        llama: Shape of the model.
        model: Folder of the weights in the Hugging Face layout.
        adapter: Folder of the adapter in the PEFT layout.
        examples: The examples of all steps.
        batch: Examples per optimiser step.
        micro_batch: Examples that torch computes at a time; gradients of a step are added up.
        tokens_per_pass: Most tokens that jaxalign computes at a time; None lets it choose.
        remat: Whether jaxalign recomputes layers in the backward pass; None lets it choose.
        threads: Number of threads for torch.
    """

    llama: LlamaConfig
    model: Path
    adapter: Path
    examples: tuple[TokensAndPrompt, ...]
    batch: int
    micro_batch: int
    tokens_per_pass: int | None
    remat: bool | None
    threads: int
