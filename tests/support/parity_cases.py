"""The small models and inputs that parity with transformers is tested on.

Shared by `test_transformer.py` and by `make_parity_fixtures.py`, which freezes the logits. Weights
and tokens come from `numpy.random.RandomState`, whose stream never changes, so a fixture holds
nothing but logits.
"""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.lm.config import LlamaConfig, RopeScaling, config_to_hf
from jaxalign.lm.weights import block_weights, outer_weights

FIXTURES = Path(__file__).parents[1] / "fixtures"
BASE = LlamaConfig(
    vocab_size=64,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=512,
    dtype="float32",
    param_dtype="float32",
)
SCALING = RopeScaling(8.0, 1.0, 4.0, 64)


@dataclasses.dataclass(frozen=True)
class Case:
    """Inputs of one comparison, in rows of 12.

    Attributes:
        lengths: Number of tokens in each row.
        left: Whether padding stands before the tokens.
        first: Position of the first token.
        stride: Distance between positions. RoPE depends on distances, so far positions need both.
    """

    name: str
    config: LlamaConfig
    lengths: tuple[int, ...] = (12, 12)
    left: bool = False
    first: int = 0
    stride: int = 1

    def inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return tokens, positions and a 0/1 mask, int32 [B, 12]."""
        width = 12
        shape = len(self.lengths), width
        tokens = _random(self.name).randint(0, self.config.vocab_size, shape)
        lengths = np.array(self.lengths)[:, None]
        at = np.arange(width)[None]
        mask = at >= width - lengths if self.left else at < lengths
        positions = self.first + self.stride * np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        return tokens.astype(np.int32), positions.astype(np.int32), mask.astype(np.int32)


CASES = [
    Case("mha", BASE.replace(num_key_value_heads=6)),
    Case("gqa", BASE),
    Case("mqa", BASE.replace(num_key_value_heads=1)),
    Case("tied", BASE.replace(tie_word_embeddings=True)),
    Case("mha_tied", BASE.replace(num_key_value_heads=6, tie_word_embeddings=True)),
    Case("wide_heads", BASE.replace(head_dim=16)),  # head_dim is not hidden_size / heads
    Case("norm_eps", BASE.replace(rms_norm_eps=0.1)),
    Case("theta", BASE.replace(rope_theta=10_000.0)),
    Case("far", BASE, first=200, stride=17),
    Case("scaled_near", BASE.replace(rope_scaling=SCALING)),
    Case(
        "scaled_far", BASE.replace(rope_scaling=SCALING), first=200, stride=17
    ),  # original context: 64
    Case(
        "scaled_mqa_tied",
        BASE.replace(rope_scaling=SCALING, num_key_value_heads=1, tie_word_embeddings=True),
        first=56,
        stride=5,
    ),
    Case("left_padding", BASE, lengths=(12, 9, 3), left=True),
    Case("unequal", BASE, lengths=(12, 9, 1, 6)),
    Case(
        "scaled_left", BASE.replace(rope_scaling=SCALING), (12, 5), left=True, first=100, stride=3
    ),
]


def hf_weights(config: LlamaConfig, seed: str = "weights") -> dict[str, np.ndarray]:
    """Return float32 tensors by Hugging Face name: uniform values, norm scales around one."""
    outer, block = outer_weights(config), block_weights(config)
    shapes = {w.hf_name: w.hf_shape for w in outer.values()}
    for layer in range(config.num_hidden_layers):
        for w in block.values():
            shapes[f"model.layers.{layer}.{w.hf_name}"] = w.hf_shape
    return {name: _weight(f"{seed} {name}", shape) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the range of a weight: attention is then far from uniform, logits of order one."""
    values = _random(name).uniform(-1, 1, shape)
    if name.endswith(".bias"):
        return (0.3 * values).astype(np.float32)
    scaled = 1 + 0.3 * values if len(shape) == 1 else values * 3 / np.sqrt(shape[-1])
    return scaled.astype(np.float32)


def _random(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def transformers_model(config: LlamaConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
    """Return the family's model with these weights and `eager` attention. Needs torch."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    hf_config = AutoConfig.for_model(**config_to_hf(config))
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager")
    assert [type(model).__name__] == hf_config.architectures
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model.to(getattr(torch, dtype)).eval()


def transformers_logits(case: Case, dtype: str = "float32") -> np.ndarray:
    """Return the logits of transformers, float32 [B, T, V]."""
    import torch

    tokens, positions, mask = (torch.from_numpy(a).long() for a in case.inputs())
    model = transformers_model(case.config, hf_weights(case.config), dtype)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False)
    return out.logits.float().numpy()
