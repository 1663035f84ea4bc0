"""Describe what the two workers of `experiments.bench.population` compute.

This module imports neither JAX nor torch, so that neither worker loads the other's framework.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.lm.config import LlamaConfig

Method = Literal["ours", "hf_per_item", "hf_padded", "hf_prefix_cache", "jax_vmap"]


@dataclasses.dataclass(frozen=True)
class Work:
    """Description of the computation: the same token ids, weights and prompts for every method.

    Attributes:
        llama: Shape of the model.
        folder: Folder of the weights in the Hugging Face layout.
        before: Token ids before the soft prompt.
        items: Token ids of each item after the soft prompt.
        options_QxOxS: int32 token ids of the spellings of each option; -1 where there is none.
        prompt_length: Number of soft prompt tokens.
        population: Number of soft prompts.
        chunk: Number of prompts that JAX computes at a time; None lets it choose.
        attention: Attention kernel of jaxalign, or "auto".
        seed: Seed of weights, prompts and the order of turns.
        threads: Number of threads for torch.
    """

    llama: LlamaConfig
    folder: Path
    before: tuple[int, ...]
    items: tuple[tuple[int, ...], ...]
    options_QxOxS: np.ndarray
    prompt_length: int
    population: int
    chunk: int | None
    attention: str
    seed: int
    threads: int

    def padded_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the items padded at the end by token 0, int32 [Q, T], and their lengths [Q]."""
        lengths_Q = np.array([len(item) for item in self.items], np.int32)
        tokens_QxT = np.zeros((len(self.items), lengths_Q.max()), np.int32)
        for row, item in zip(tokens_QxT, self.items, strict=True):
            row[: len(item)] = item
        return tokens_QxT, lengths_Q

    def spellings(self) -> list[list[list[tuple[int]]]]:
        """Return the option table in the form that `jaxalign.answering.plan` takes."""
        table = self.options_QxOxS.tolist()
        return [[[(t,) for t in o if t >= 0] for o in item if o[0] >= 0] for item in table]
