"""Read what a GGUF file of a Llama says about the model, and convert it to a model folder.

The file is read with the `gguf` package, which also knows how to turn every quantised type back
into numbers (`gguf_tensors`). Config, tokenizer and chat template come from the file's metadata;
whatever it does not say, or says in a way that cannot be written as a Hugging Face folder, is
refused by name.

To use a file as it is, only its description is written, once, to the user's cache: a few MB of
config, tokenizer and a table of tensors. Weights are read from the file itself.

Source: the GGUF specification (github.com/ggml-org/ggml/blob/master/docs/gguf.md), and the writer
of such files, llama.cpp's `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy bfloat16
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import cache_folder, staging_folder
from jaxalign.core.json_text import parse_json
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.checkpoint import Place, check_no_weights, tensor_places, write_weights
from jaxalign.lm.config import DType, LlamaConfig, RopeScaling, config_to_hf
from jaxalign.lm.families import FAMILIES
from jaxalign.lm.gguf_tensors import (
    OUTER_NAMES,
    GgufTensor,
    can_dequantize,
    gguf_name,
    open_tensors,
)
from jaxalign.lm.gguf_tokenizer import special_ids, write_tokenizer
from jaxalign.lm.safetensors_io import Span, tensors_sha256, write_json
from jaxalign.lm.tokenizer import Tokenizer, check_vocabulary

_INSTALL = "pip install 'gguf>=0.17'"
_BLOCK_VALUES = 4 * 2**20  # numbers that are dequantised at a time
_ROPE_FACTORS = "rope_freqs.weight"
_TABLE = "tensors.json"
# A description belongs to this many bytes at the start of a file. Metadata take about 8 MB.
_HEADER_BYTES = 2**26
_CACHE_FORMAT = 1  # another number makes every description anew

_log = logging.getLogger("jaxalign")

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
    file = GgufFile(source)
    config = file.config(dtype)
    tensors = open_tensors(source, file.spans, config)
    names = {place: name for name, place in tensor_places(config).items()}
    done = 0

    def blocks(place: Place) -> Iterator[np.ndarray]:
        nonlocal done
        yield from _rows(tensors[names[place]], config.param_dtype)
        done += 1
        on_progress(Progress("tensor", done, len(tensors), unit="tensors"))

    on_progress(Progress("tensor", 0, len(tensors), unit="tensors"))
    with staging_folder(out, last="config.json") as aside:
        file.write_description(aside, config)
        write_weights(aside, config, blocks, max_shard_bytes)
    return config


def describe_gguf(source: Path) -> Path:
    """Return a folder with what a GGUF file says about the model; it is made once.

    The folder holds `config.json`, the tokenizer and a table of the tensors. It is in the user's
    cache, under the hash of the file's size and first bytes.

    Raises:
        UserError: As `convert_gguf`, and if the cache cannot be written.
    """
    _library(source)
    folder = cache_folder("models") / f"gguf-{_header_sha256(source)[:32]}"
    try:
        if not _describes(folder, source):
            file = GgufFile(source)
            config = file.config("bfloat16")
            with staging_folder(folder, last="config.json") as aside:
                file.write_description(aside, config)
                write_json(aside / _TABLE, file.table())
    except OSError as error:
        raise UserError(
            f"{folder}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return folder


def open_gguf(source: Path, folder: Path, config: LlamaConfig) -> dict[str, GgufTensor]:
    """Return the tensors of a GGUF file by their Hugging Face name; their values stay on disk.

    Args:
        source: The GGUF file.
        folder: Its description (`describe_gguf`).
        config: The model, as read from that folder.
    """
    return open_tensors(source, _read_table(folder)[0], config)


def gguf_sha256(source: Path, folder: Path) -> str:
    """Return a hash that tells the weights of GGUF files apart, as `weights_sha256` does.

    Args:
        source: The GGUF file.
        folder: Its description (`describe_gguf`).
    """
    return _hash_of(source.resolve(), folder, source.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash_of(source: Path, folder: Path, _modified_ns: int) -> str:
    return tensors_sha256((name, source, span) for name, span in _read_table(folder)[0].items())


class GgufFile:
    """The metadata of a GGUF file, checked, and where its tensors are."""

    def __init__(self, path: Path) -> None:
        """Read the metadata of a file; UserError if that fails or it is not a Llama."""
        reader_class = _library(path)
        _log.info(f"reading the metadata of {path}; a vocabulary of 128,000 takes half a minute")
        try:
            reader = reader_class(path)
            self.fields = {name: field.contents() for name, field in reader.fields.items()}
        except (ValueError, KeyError, IndexError, UnicodeDecodeError, OSError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"{path}: not a whole GGUF file ({line}); download it again") from None
        if reader.byte_order != "I":
            raise UserError(f"{path}: written for a computer of the other byte order")
        self.path = path
        self.spans = {tensor.name: _span(tensor) for tensor in reader.tensors}
        self._header_bytes = reader.data_offset
        architecture = self._field("general.architecture")
        if architecture not in FAMILIES:
            raise UserError(
                f"{path}: general.architecture {architecture!r} is not handled; handled are "
                f"{', '.join(FAMILIES.names())}"
            )
        self.family = architecture
        if self.fields.get("split.count", 1) > 1:
            raise UserError(
                f"{path}: one of {self.fields['split.count']} parts of a model; join them first "
                "with llama.cpp: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf"
            )

    def config(self, dtype: DType) -> LlamaConfig:
        """Return the config that the metadata describes.

        Raises:
            UserError: If the model is not handled, or the tensors are not those of its family.
        """
        self._check_fields()
        width, heads = self._int("embedding_length"), self._int("attention.head_count")
        head_dim = self.fields.get(f"{self.family}.attention.key_length", width // max(1, heads))
        for name in ("attention.value_length", "rope.dimension_count"):
            if (value := self.fields.get(f"{self.family}.{name}", head_dim)) != head_dim:
                raise UserError(
                    f"{self.path}: {self.family}.{name} {value} is not the {head_dim} of a head"
                )
        vocabulary = self._tensor(OUTER_NAMES["embed"]).shape[0]
        if (said := self.fields.get(f"{self.family}.vocab_size", vocabulary)) != vocabulary:
            raise UserError(
                f"{self.path}: {self.family}.vocab_size {said}, but {vocabulary} embeddings"
            )
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=self._int("feed_forward_length"),
            num_hidden_layers=self._int("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._int("attention.head_count_kv"),
            head_dim=head_dim,
            rope_theta=_shortest(self._field(f"{self.family}.rope.freq_base")),
            rope_scaling=self._rope_scaling(head_dim),
            rms_norm_eps=_shortest(self._field(f"{self.family}.attention.layer_norm_rms_epsilon")),
            tie_word_embeddings=OUTER_NAMES["head"] not in self.spans,
            max_position_embeddings=self._int("context_length"),
            dtype=dtype,
            param_dtype=dtype,
            family=self.family,
        )
        self._check_tensors(config)
        return config

    def _check_tensors(self, config: LlamaConfig) -> None:
        """Raise UserError for a tensor that is missing, left over or of another shape."""
        places = tensor_places(config).values()
        expected = {gguf_name(place, config): place.weight.hf_shape for place in places}
        left_over = self.spans.keys() - expected.keys() - {_ROPE_FACTORS}
        if left_over:
            raise UserError(
                f"{self.path}: tensor {min(left_over)}; a {self.family} has no such weight"
            )
        for name, shape in expected.items():
            stored, kind = self._tensor(name).shape, self._tensor(name).dtype
            if stored != shape:
                raise UserError(f"{self.path}: {name} is {stored}; by the metadata it is {shape}")
            if not can_dequantize(kind):
                raise UserError(
                    f"{self.path}: {name} has type {kind}, which the gguf package cannot turn into "
                    "numbers; take a file of another type, such as Q8_0"
                )

    def write_description(self, folder: Path, config: LlamaConfig) -> None:
        """Write `config.json`, `generation_config.json` and the tokenizer to an empty folder.

        Raises:
            UserError: If something that the tokenizer needs is missing or wrong.
        """
        write_tokenizer(folder, self.fields, self.path, config.max_position_embeddings)
        _check_tokenizer(folder, self.path, config)
        ids = special_ids(self.fields)
        write_json(folder / "generation_config.json", ids)
        write_json(folder / "config.json", config_to_hf(config) | ids)

    def table(self) -> dict[str, Any]:
        """Return `tensors.json`: where the tensors are, and the bytes that the config came from."""
        if self._header_bytes > _HEADER_BYTES:
            raise UserError(
                f"{self.path}: metadata of {self._header_bytes} bytes; convert the file"
            )
        return {"tensors": self.spans, "rope": _rope_bytes(self.path, self.spans)}

    def _check_fields(self) -> None:
        """Raise UserError for a key of the architecture that may change the computation."""
        for name, value in self.fields.items():
            short = name.removeprefix(f"{self.family}.")
            if short == name or short in _READ:
                continue
            if value not in _REQUIRED.get(short, ()):
                allowed = " or ".join(repr(v) for v in _REQUIRED.get(short, ()))
                more = f" (only {allowed} is)" if allowed else "; refusing to guess"
                raise UserError(f"{self.path}: {name} {value!r} is not handled{more}")

    def _rope_scaling(self, head_dim: int) -> RopeScaling | None:
        """Return the llama3 rule that gives the factors of the file, None if it has none."""
        if _ROPE_FACTORS not in self.spans:
            return None
        file = np.memmap(self.path, np.uint8, mode="r")
        factors = GgufTensor(file, self.spans[_ROPE_FACTORS])[:]
        theta = _shortest(self._field(f"{self.family}.rope.freq_base"))
        original = self.fields.get(f"{self.family}.rope.scaling.original_context_length", _ORIGINAL)
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

    def _tensor(self, name: str) -> Span:
        if name not in self.spans:
            raise UserError(f"{self.path}: tensor {name} is missing")
        return self.spans[name]

    def _field(self, name: str) -> Any:
        if name not in self.fields:
            raise UserError(f"{self.path}: the metadata lacks {name}")
        return self.fields[name]

    def _int(self, name: str) -> int:
        value = self._field(f"{self.family}.{name}")
        if type(value) is not int:
            raise UserError(
                f"{self.path}: {self.family}.{name} {value!r}; one number for all layers is needed"
            )
        return value


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


def _span(tensor: Any) -> Span:
    """Return where a tensor is; GGUF lists the fastest dimension first."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    begin = int(tensor.data_offset)
    return Span(tensor.tensor_type.name, shape, begin, begin + int(tensor.n_bytes))


def _rows(tensor: GgufTensor, dtype: str) -> Iterator[np.ndarray]:
    """Yield a tensor in blocks of rows, in a dtype."""
    shape = tensor.get_shape()
    step = max(1, _BLOCK_VALUES // math.prod(shape[1:]))
    for start in range(0, shape[0], step):
        rows = tensor[start : min(start + step, shape[0])]
        yield np.ascontiguousarray(rows.astype(dtype, copy=False))


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


# Descriptions in the cache


def _header_sha256(path: Path) -> str:
    """Return the hash of a file's size and of the bytes that hold its metadata."""
    digest = hashlib.sha256(f"{_CACHE_FORMAT} {path.stat().st_size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEADER_BYTES))
    return digest.hexdigest()


def _describes(folder: Path, source: Path) -> bool:
    """Whether a folder holds the whole description of a file."""
    if not (folder / "config.json").is_file():
        return False
    spans, rope = _read_table(folder)
    return _rope_bytes(source, spans) == rope


def _read_table(folder: Path) -> tuple[dict[str, Span], str]:
    fields = parse_json((folder / _TABLE).read_text("utf-8"))
    spans = {
        name: Span(dtype, tuple(shape), begin, end)
        for name, (dtype, shape, begin, end) in fields["tensors"].items()
    }
    return spans, fields["rope"]


def _rope_bytes(path: Path, spans: dict[str, Span]) -> str:
    """Return the bytes of the RoPE factors as hexadecimal digits.

    They are part of the config, but may lie anywhere in the file.
    """
    if _ROPE_FACTORS not in spans:
        return ""
    span = spans[_ROPE_FACTORS]
    with path.open("rb") as file:
        file.seek(span.begin)
        return file.read(span.end - span.begin).hex()
