"""Read the tensors of a GGUF file as a Hugging Face checkpoint would have them.

A tensor stays on disk, mapped into memory, until some of its rows are asked for; only those are
turned back into numbers. Every quantised type stores rows one by one, in blocks of 32 to 256
numbers, so any rows and any columns can be read alone.

Source: the GGUF specification (github.com/ggml-org/ggml/blob/master/docs/gguf.md), and the writer
of such files, llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxalign.lm.checkpoint import Place, tensor_places
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.families import FAMILIES
from jaxalign.lm.safetensors_io import Span

# Names of a layer's weights: of `weights.block_weights`, and in a GGUF after `blk.{i}.`.
_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
OUTER_NAMES = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}


class GgufTensor:
    """One tensor of a GGUF file, with the part of a safetensors slice's interface that is used."""

    def __init__(self, file: np.ndarray, span: Span, order: np.ndarray | None = None) -> None:
        """Take the bytes of the file, where the tensor is, and which stored row is each row."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self._kind = GGMLQuantizationType[span.dtype]
        self._block, self._block_bytes = GGML_QUANT_SIZES[self._kind]
        self._shape, self._order = span.shape, order
        rows = math.prod(span.shape[:-1])
        self._bytes = file[span.begin : span.end].reshape(rows, -1)

    def get_shape(self) -> list[int]:
        """Return the shape, as Hugging Face has it."""
        return list(self._shape)

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray:
        """Return numbers of a vector [index], or of a matrix [rows] or [rows, columns], float32."""
        if len(self._shape) == 1:
            return self._values(slice(0, 1), index)[0]
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        return self._values(rows, columns)

    def _values(self, rows: slice, columns: slice) -> np.ndarray:
        from gguf.quants import dequantize

        start, stop, _ = columns.indices(self._shape[-1])
        first, last = start // self._block, -(-stop // self._block)
        part = slice(first * self._block_bytes, last * self._block_bytes)
        stored = self._bytes[rows] if self._order is None else self._bytes[self._order[rows]]
        values = dequantize(np.ascontiguousarray(stored[:, part]), self._kind)
        begin = first * self._block
        return values[:, start - begin : stop - begin]


def open_tensors(
    path: Path, spans: Mapping[str, Span], config: LlamaConfig
) -> dict[str, GgufTensor]:
    """Return the tensors of a model by their Hugging Face name; their values stay on disk.

    Args:
        path: The GGUF file.
        spans: Type, shape and bytes of each of its tensors, by the file's names.
        config: The model, as the file describes it.
    """
    file = np.memmap(path, np.uint8, mode="r")
    return {
        name: GgufTensor(file, spans[gguf_name(place, config)], row_order(place.keys[-1], config))
        for name, place in tensor_places(config).items()
    }


def gguf_name(place: Place, config: LlamaConfig) -> str:
    """Return the name of a tensor in a GGUF file."""
    if len(place.keys) == 1:
        return OUTER_NAMES[place.keys[0]]
    # The last layer is kept apart from the stack of the others.
    layer = config.num_hidden_layers - 1 if place.layer is None else place.layer
    name = place.keys[-1]
    kind = "bias" if name.endswith("_bias") else "weight"
    return f"blk.{layer}.{_LAYER_NAMES[name.removesuffix('_bias')]}.{kind}"


def row_order(name: str, config: LlamaConfig) -> np.ndarray | None:
    """Return which row of a GGUF matrix is each row of Hugging Face's; None if they agree.

    For Llamas, llama.cpp turns neighbouring pairs of dimensions, Hugging Face the first half of a
    head with the second: within each head, rows in the order [d/2, 2] become rows in the order
    [2, d/2].
    """
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name)
    if heads is None or not FAMILIES[config.family].gguf_pairs:
        return None
    rows = np.arange(heads * config.head_dim)
    return rows.reshape(heads, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def can_dequantize(kind: str) -> bool:
    """Whether the `gguf` package can turn tensors of a type into numbers."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    try:
        dequantize(np.zeros((1, block_bytes), np.uint8), GGMLQuantizationType[kind])
    except NotImplementedError:
        return False
    return True
