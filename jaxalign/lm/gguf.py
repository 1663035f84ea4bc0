"""Convert a GGUF file of a Llama, as llama.cpp uses them, to a model folder.

The file is read with the `gguf` package, which also knows how to turn every quantised type back
into numbers. Weights pass through memory a few MiB at a time. Whatever the file does not say, or
says in a way that cannot be written as a Hugging Face folder, is refused by name.

Source: the GGUF specification (github.com/ggml-org/ggml/blob/master/docs/gguf.md), and the writer
of such files, llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy bfloat16
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import staging_folder
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.checkpoint import Place, check_no_weights, tensor_places, write_weights
from jaxalign.lm.config import DType, LlamaConfig, RopeScaling, config_to_hf
from jaxalign.lm.gguf_tokenizer import special_ids, write_tokenizer
from jaxalign.lm.safetensors_io import write_json
from jaxalign.lm.tokenizer import Tokenizer, check_vocabulary

_INSTALL = "pip install 'gguf>=0.17'"
_BLOCK_VALUES = 4 * 2**20  # numbers that are dequantised at a time
_ROPE_FACTORS = "rope_freqs.weight"

_log = logging.getLogger("jaxalign")

# Names of a layer's weights: of `weights.block_weights`, and in a GGUF after `blk.{i}.`.
_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_OUTER_NAMES = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}

# Keys of the architecture that are read, and those that say nothing about the computation.
_READ_TEXT = """
block_count context_length embedding_length feed_forward_length vocab_size
attention.head_count attention.head_count_kv attention.key_length attention.value_length
attention.layer_norm_rms_epsilon rope.freq_base rope.dimension_count
rope.scaling.original_context_length
"""
_READ = frozenset(_READ_TEXT.split())
# Keys that must have one of these values, because no other is implemented.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none", "llama3"),
    "rope.scaling.factor": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.finetuned": (False,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "tensor_data_layout": ("Meta AI original pth",),  # the order of rows that is undone below
}
# Published settings of the llama3 rule, tried to explain a file's factors (`RopeScaling`).
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def convert_gguf(
    source: Path,
    out: Path,
    dtype: DType = "bfloat16",
    *,
    max_shard_bytes: float = 5e9,
    on_progress: OnProgress = ignore,
) -> LlamaConfig:
    """Write a GGUF file of a Llama as a model folder in Hugging Face layout.

    Args:
        source: The GGUF file; every quantised type that the `gguf` package reads.
        out: Folder to write; holds no weights yet. It has a `config.json` only once it is whole.
        dtype: Dtype of the weights that are written.
        max_shard_bytes: Size of a weight file, which only a larger single tensor exceeds.
        on_progress: Called for every tensor.

    Returns:
        The config of the model.

    Raises:
        UserError: If the `gguf` package is missing, the file is damaged, of another architecture or
            kind of tokenizer, or lacks something that the folder needs.
    """
    check_no_weights(out)
    _log.info(f"reading the metadata of {source}; a vocabulary of 128,000 takes half a minute")
    file = GgufFile(source)
    config = file.config(dtype)
    places = tensor_places(config)
    file.check_tensors(config)
    done = 0

    def blocks(place: Place) -> Iterator[np.ndarray]:
        nonlocal done
        yield from file.rows(place, config)
        done += 1
        on_progress(Progress("tensor", done, len(places), unit="tensors"))

    on_progress(Progress("tensor", 0, len(places), unit="tensors"))
    with staging_folder(out, last="config.json") as aside:
        write_tokenizer(aside, file.fields, source, config.max_position_embeddings)
        _check_tokenizer(aside, source, config)
        write_weights(aside, config, blocks, max_shard_bytes)
        ids = special_ids(file.fields)
        write_json(aside / "generation_config.json", ids)
        write_json(aside / "config.json", config_to_hf(config) | ids)
    return config


class GgufFile:
    """A GGUF file, opened and checked, whose tensors stay on disk until they are read."""

    def __init__(self, path: Path) -> None:
        """Read the metadata of a file; UserError if that fails or it is not a Llama."""
        reader_class = _library(path)
        try:
            reader = reader_class(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, KeyError, IndexError, UnicodeDecodeError, OSError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"{path}: not a whole GGUF file ({line}); download it again") from None
        self.path = path
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise UserError(f"{path}: general.architecture {architecture!r}; only llama is handled")
        if self.fields.get("split.count", 1) > 1:
            raise UserError(
                f"{path}: one of {self.fields['split.count']} parts of a model; join them first "
                "with llama.cpp's program gguf-split"
            )

    def config(self, dtype: DType) -> LlamaConfig:
        """Return the config that the metadata describes; UserError if it is not handled."""
        self._check_fields()
        width, heads = self._int("embedding_length"), self._int("attention.head_count")
        head_dim = self.fields.get("llama.attention.key_length", width // max(1, heads))
        for name in ("attention.value_length", "rope.dimension_count"):
            if (value := self.fields.get(f"llama.{name}", head_dim)) != head_dim:
                raise UserError(
                    f"{self.path}: llama.{name} {value} is not the {head_dim} of a head"
                )
        embed = self._tensor(_OUTER_NAMES["embed"])
        vocabulary = int(embed.shape[-1])
        if (said := self.fields.get("llama.vocab_size", vocabulary)) != vocabulary:
            raise UserError(f"{self.path}: llama.vocab_size {said}, but {vocabulary} embeddings")
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=self._int("feed_forward_length"),
            num_hidden_layers=self._int("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._int("attention.head_count_kv"),
            head_dim=head_dim,
            rope_theta=_shortest(self._field("llama.rope.freq_base")),
            rope_scaling=self._rope_scaling(head_dim),
            rms_norm_eps=_shortest(self._field("llama.attention.layer_norm_rms_epsilon")),
            tie_word_embeddings=_OUTER_NAMES["head"] not in self.tensors,
            max_position_embeddings=self._int("context_length"),
            dtype=dtype,
            param_dtype=dtype,
        )

    def check_tensors(self, config: LlamaConfig) -> None:
        """Raise UserError for a tensor that is missing, left over or of another shape."""
        places = tensor_places(config).values()
        expected = {_gguf_name(place, config): place.weight.hf_shape for place in places}
        left_over = self.tensors.keys() - expected.keys() - {_ROPE_FACTORS}
        if left_over:
            raise UserError(f"{self.path}: tensor {min(left_over)}; a Llama has no such weight")
        for name, shape in expected.items():
            # GGUF lists the fastest dimension first.
            stored = tuple(int(size) for size in reversed(self._tensor(name).shape))
            if stored != shape:
                raise UserError(f"{self.path}: {name} is {stored}; by the metadata it is {shape}")

    def rows(self, place: Place, config: LlamaConfig) -> Iterator[np.ndarray]:
        """Yield the rows of a tensor in blocks, as Hugging Face orders and stores them."""
        tensor = self._tensor(_gguf_name(place, config))
        shape = place.weight.hf_shape
        if len(shape) == 1:
            yield self._values(tensor, tensor.data).astype(config.param_dtype)
            return
        order = row_order(place.keys[-1], config)
        step = max(1, _BLOCK_VALUES // shape[1])
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            # Rows are quantised one by one, so any of them can be read alone, in any order.
            rows = tensor.data[start:stop] if order is None else tensor.data[order[start:stop]]
            values = self._values(tensor, rows).reshape(stop - start, shape[1])
            yield np.ascontiguousarray(values.astype(config.param_dtype, copy=False))

    def _values(self, tensor: Any, data: np.ndarray) -> np.ndarray:
        from gguf.quants import dequantize

        try:
            return dequantize(np.ascontiguousarray(data), tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise UserError(
                f"{self.path}: {tensor.name} has type {kind}, which the gguf package cannot "
                "turn into numbers; take a file of another type, such as Q8_0"
            ) from None

    def _check_fields(self) -> None:
        """Raise UserError for a key of the architecture that may change the computation."""
        for name, value in self.fields.items():
            short = name.removeprefix("llama.")
            if short == name or short in _READ:
                continue
            if value not in _REQUIRED.get(short, ()):
                allowed = " or ".join(repr(v) for v in _REQUIRED.get(short, ()))
                more = f" (only {allowed} is)" if allowed else "; refusing to guess"
                raise UserError(f"{self.path}: {name} {value!r} is not handled{more}")

    def _rope_scaling(self, head_dim: int) -> RopeScaling | None:
        """Return the llama3 rule that gives the factors of the file, None if it has none."""
        if _ROPE_FACTORS not in self.tensors:
            return None
        tensor = self.tensors[_ROPE_FACTORS]
        factors = self._values(tensor, tensor.data).reshape(-1)
        theta = _shortest(self._field("llama.rope.freq_base"))
        original = self.fields.get("llama.rope.scaling.original_context_length", _ORIGINAL)
        for length in dict.fromkeys((original, _ORIGINAL)):
            # The longest wavelength is stretched by the whole factor.
            rule = RopeScaling(_shortest(float(factors.max())), _LOW, _HIGH, length)
            expected = rope_factors(rule, theta, head_dim)
            if factors.shape == expected.shape and np.allclose(factors, expected, 1e-5, 0):
                return rule
        raise UserError(
            f"{self.path}: {_ROPE_FACTORS} follows no llama3 rule (low 1, high 4, original length "
            f"{original} or {_ORIGINAL}); it cannot be written to a config.json"
        )

    def _tensor(self, name: str) -> Any:
        if name not in self.tensors:
            raise UserError(f"{self.path}: tensor {name} is missing")
        return self.tensors[name]

    def _field(self, name: str) -> Any:
        if name not in self.fields:
            raise UserError(f"{self.path}: the metadata lacks {name}")
        return self.fields[name]

    def _int(self, name: str) -> int:
        value = self._field(f"llama.{name}")
        if type(value) is not int:
            raise UserError(
                f"{self.path}: llama.{name} {value!r}; one number for all layers is needed"
            )
        return value


def row_order(name: str, config: LlamaConfig) -> np.ndarray | None:
    """Return which row of a GGUF matrix is each row of Hugging Face's; None if they agree.

    llama.cpp turns neighbouring pairs of dimensions, Hugging Face the first half of a head with the
    second: within each head, rows in the order [d/2, 2] become rows in the order [2, d/2].
    """
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name)
    if heads is None:
        return None
    rows = np.arange(heads * config.head_dim)
    return rows.reshape(heads, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def rope_factors(rule: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    """Return what llama.cpp divides each frequency by, as its converter writes it [head_dim / 2].

    Source: `LlamaModel.generate_extra_tensors` in `convert_hf_to_gguf.py`.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    # 0 where the wavelength is stretched whole, 1 where it stays, a line in between.
    turns = rule.original_max_position_embeddings * frequencies / (2 * math.pi)
    smooth = (turns - rule.low_freq_factor) / (rule.high_freq_factor - rule.low_freq_factor)
    smooth = np.clip(smooth, 0, 1)
    return 1 / ((1 - smooth) / rule.factor + smooth)


def _gguf_name(place: Place, config: LlamaConfig) -> str:
    """Return the name of a tensor in a GGUF file."""
    if len(place.keys) == 1:
        return _OUTER_NAMES[place.keys[0]]
    # The last layer is kept apart from the stack of the others.
    layer = config.num_hidden_layers - 1 if place.layer is None else place.layer
    return f"blk.{layer}.{_LAYER_NAMES[place.keys[-1]]}.weight"


def _shortest(value: float) -> float:
    """Return the shortest decimal that is this number in float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _library(path: Path) -> Any:
    """Import the reader of the `gguf` package; UserError if it is not installed."""
    if not is_gguf(path):
        raise UserError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"{path}: reading GGUF needs the gguf package: {_INSTALL}") from None
    logging.getLogger("gguf").setLevel(logging.WARNING)
    return GGUFReader


def _check_tokenizer(folder: Path, source: Path, config: LlamaConfig) -> None:
    """Load the tokenizer that was written, as every later run will; UserError if that fails."""
    try:
        check_vocabulary(Tokenizer.load(folder), config)
    except UserError as error:
        raise UserError(str(error).replace(str(folder), str(source))) from None
