"""Describe what the two workers of `experiments.bench.decode` do, without any framework."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import block_weights

Kind = Literal["batch", "requests", "runs"]
OWN_TOKENS = 16  # with which each of several requests goes on after what they share


@dataclasses.dataclass(frozen=True)
class Case:
    """Prompts that are answered together.

    Attributes:
        kind: Prompts that have nothing in common ("batch"), that begin alike and end in 16 tokens
            of their own ("requests"), or that are all the same ("runs").
        prompts: Number of prompts.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens of each reply.
    """

    kind: Kind
    prompts: int
    prompt_tokens: int
    new_tokens: int

    def __str__(self) -> str:
        """Return a title."""
        what = {"batch": "prompts", "requests": "requests with one beginning", "runs": "runs"}
        return (
            f"{self.prompts} {what[self.kind]} x {self.prompt_tokens} tokens, "
            f"{self.new_tokens} new tokens each"
        )

    @property
    def shared_tokens(self) -> int:
        """Number of tokens that all prompts begin with."""
        return {
            "batch": 0,
            "requests": self.prompt_tokens - OWN_TOKENS,
            "runs": self.prompt_tokens,
        }[self.kind]

    def tokens(self, vocabulary: int, seed: int) -> np.ndarray:
        """Return the prompts, int [prompts, prompt_tokens], drawn at random."""
        random = np.random.default_rng([seed, self.prompts, self.prompt_tokens])
        tokens = random.integers(0, vocabulary, (self.prompts, self.prompt_tokens))
        tokens[:, : self.shared_tokens] = tokens[0, : self.shared_tokens]
        return tokens

    def prefill_flops(self, config: LlamaConfig) -> int:
        """Return the FLOPs of computing every prompt, whatever they have in common.

        A multiply-add is two FLOPs; attention is causal, the head is applied once to a prompt.
        """
        c, T = config, self.prompt_tokens
        weights = sum(
            w.hf_shape[0] * w.hf_shape[1] for w in block_weights(c).values() if w.transposed
        )
        pairs = T * (T + 1) // 2 * c.num_attention_heads * c.head_dim
        layers = c.num_hidden_layers * (2 * T * weights + 4 * pairs)
        return self.prompts * (layers + 2 * c.hidden_size * c.vocab_size)


@dataclasses.dataclass(frozen=True)
class Work:
    """The model that both workers run.

    Attributes:
        llama: Shape of the model.
        folder: Folder of the weights in the Hugging Face layout.
        seed: Seed of random weights and prompts.
        threads: Number of threads for torch.
    """

    llama: LlamaConfig
    folder: Path
    seed: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Timed:
    """One call of a tool for a case.

    Attributes:
        prefill_seconds: From the call to the first token of every reply.
        decode_seconds: From there to the end.
        replies: The new tokens of every prompt.
    """

    prefill_seconds: float
    decode_seconds: float
    replies: list[list[int]]

    @property
    def seconds(self) -> float:
        """Time of the whole call."""
        return self.prefill_seconds + self.decode_seconds
