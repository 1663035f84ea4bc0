"""Read Hugging Face safetensors straight into sharded parameters, and write them back.

When reading, every device's shard is one buffer that is filled from the memory-mapped file a few
MiB at a time. A host's anonymous memory therefore peaks at little more than the shards it keeps: on
CPU, JAX adopts the buffer without a copy; elsewhere, the buffers of one parameter at a time are on
the host.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import ml_dtypes  # noqa: F401  teaches numpy, and so safetensors, bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxalign.core.errors import UserError
from jaxalign.core.files import staging_folder
from jaxalign.lm.config import LlamaConfig, config_to_hf
from jaxalign.lm.quantize import int8_scale
from jaxalign.lm.safetensors_io import (
    INDEX,
    ONE_FILE,
    STORED,
    find_files,
    read_spans,
    read_weight_map,
    tensor_bytes,
    weights_sha256,
    write_file,
    write_json,
)
from jaxalign.lm.weights import (
    Params,
    Weight,
    WeightFormat,
    input_dims,
    is_weight,
    weight_tree,
)

__all__ = ["load_checkpoint", "save_checkpoint", "weights_sha256"]

_CHUNK_BYTES = 8 * 2**20  # bytes read at a time
# Rows transposed at a time: they fit a core's cache, 2 to 3 times faster than all rows at once.
_BLOCK_ROWS = 64
_ALIGNMENT = 64  # bytes; JAX on CPU copies a buffer with a smaller alignment

_HEAD = "lm_head.weight"

Index = tuple[slice, ...]


class Place(NamedTuple):
    """Where one Hugging Face tensor goes in the tree of parameters.

    Attributes:
        keys: Keys of the parameter.
        layer: Index of the layer in a stacked parameter, else None.
        weight: The parameter, of one layer.
    """

    keys: tuple[str, ...]
    layer: int | None
    weight: Weight


class StoredTensor(Protocol):
    """A tensor in a file: a safetensors slice, or what reads another format in the same way."""

    def get_shape(self) -> list[int]:
        """Return the shape, as Hugging Face has it."""
        ...

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray:
        """Return the numbers of some rows, or of some rows and columns."""
        ...


def load_checkpoint(
    folder: Path,
    config: LlamaConfig,
    shardings: Params | None = None,
    weights: WeightFormat = "stored",
) -> Params:
    """Read the parameters of a model folder.

    Each process reads only what its own devices hold.

    Args:
        folder: Holds float32, bfloat16 or float16 tensors in safetensors files.
        config: The model; parameters are converted to `config.param_dtype`.
        shardings: One `jax.sharding.Sharding` per parameter (`weights.param_shardings`); default:
            everything on the first local device.
        weights: `"int8"` stores the linear layers in 8 bits, with the bits of `quantize`. They are
            converted as they are read, so little more than the 8-bit weights is ever in memory.

    Raises:
        UserError: If a tensor is missing, left over, of another shape or dtype, or truncated; the
            message names file and tensor.
    """
    with contextlib.ExitStack() as stack:
        # The files stay mapped until every parameter has been read.
        tensors = _open_tensors(folder, config, stack)
        return read_params(tensors, config, shardings, weights)


def read_tensor(folder: Path, config: LlamaConfig, name: str) -> np.ndarray:
    """Read one tensor of a model folder, by its Hugging Face name, in its own dtype.

    Raises:
        UserError: As `load_checkpoint`, for any tensor of the folder.
    """
    with contextlib.ExitStack() as stack:
        return _open_tensors(folder, config, stack)[name][:]


def read_params(
    tensors: Mapping[str, StoredTensor],
    config: LlamaConfig,
    shardings: Params | None = None,
    weights: WeightFormat = "stored",
) -> Params:
    """Read the parameters of a model from open tensors.

    Args:
        tensors: Every tensor of the model by its Hugging Face name, of the shape it has there.
        config: As for `load_checkpoint`.
        shardings: As for `load_checkpoint`.
        weights: As for `load_checkpoint`.

    Raises:
        UserError: If a number that is read is NaN or infinite; the message names the tensor.
    """
    tree = weight_tree(config, weights)
    if shardings is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, tree, is_leaf=is_weight)
    by_keys: dict[tuple[str, ...], list[StoredTensor]] = {}  # one per layer
    for name, place in tensor_places(config).items():
        by_keys.setdefault(place.keys, []).append(_Finite(name, tensors[name]))
    # A kernel and its scale read the same tensors; the scale of an output is computed once.
    quantisers = {
        keys: Quantiser(layers, config.param_dtype)
        for keys, layers in by_keys.items()
        if weights == "int8" and (*keys[:-1], f"{keys[-1]}_scale") in _paths(tree)
    }

    def read(path: tuple[Any, ...], weight: Weight, sharding: jax.sharding.Sharding):
        keys = tuple(key.key for key in path)
        kernel = (*keys[:-1], keys[-1].removesuffix("_scale"))
        if kernel in quantisers:
            read_shard = functools.partial(_read_int8, weight, quantisers[kernel])
        else:
            read_shard = functools.partial(
                _read_shard, weight, by_keys[keys], dtype=config.param_dtype
            )
        return _read_weight(weight, sharding, read_shard)

    return jax.tree_util.tree_map_with_path(read, tree, shardings, is_leaf=is_weight)


def save_checkpoint(
    folder: Path,
    params: Params,
    config: LlamaConfig,
    max_shard_bytes: float = 5e9,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write `config.json` and the weights as transformers reads them.

    Files are written to a staging folder and moved into place when complete, `config.json` last, so
    a new folder with a `config.json` holds a whole model. Other files in the folder (a tokenizer)
    are left alone.

    Args:
        folder: Where to write; made if missing.
        params: The parameters, on this host; written in `config.param_dtype`.
        config: The model.
        max_shard_bytes: Size of a weight file, which only a larger single tensor exceeds.
        more: Further fields of `config.json`, such as the ids of special tokens.

    Raises:
        UserError: If the folder holds weights already, if the parameters do not fit `config`, or if
            parts of them live in other processes.
    """
    _check_params(params, config)
    check_no_weights(folder)
    with staging_folder(folder, last="config.json") as aside:
        blocks = functools.partial(_hf_tensor, params, config)
        write_weights(aside, config, blocks, max_shard_bytes)
        write_json(aside / "config.json", config_to_hf(config) | dict(more))


def check_no_weights(folder: Path) -> None:
    """Raise UserError if the folder holds weights already."""
    if taken := sorted(p.name for p in folder.glob("*.safetensors*")):
        raise UserError(f"{folder}: holds {taken[0]} already; give another folder")


def write_weights(
    folder: Path,
    config: LlamaConfig,
    blocks: Callable[[Place], Iterable[np.ndarray]],
    max_shard_bytes: float = 5e9,
) -> None:
    """Write every weight of a model as safetensors, in the order of the model.

    Args:
        folder: Where to write; exists and holds no weights.
        config: The model; tensors are written in `config.param_dtype`.
        blocks: Yields the rows of one tensor as Hugging Face stores it, from first to last, as
            C-contiguous arrays of that dtype. Only one block is in memory at a time.
        max_shard_bytes: Size of a weight file, which only a larger single tensor exceeds.
    """
    places = tensor_places(config)
    files = _plan_files(config, max_shard_bytes)
    for file, shapes in files.items():
        rows = (block for name in shapes for block in blocks(places[name]))
        write_file(folder / file, shapes, config.param_dtype, rows)
    if len(files) > 1:
        write_json(folder / INDEX, _index_fields(files, config))


def tensor_places(config: LlamaConfig) -> dict[str, Place]:
    """Return where each tensor goes, by its Hugging Face name, in the order of the model."""
    tree, last = weight_tree(config), config.num_hidden_layers - 1
    places = {tree["embed"].hf_name: Place(("embed",), None, tree["embed"])}
    for i in range(last + 1):
        for name, weight in tree["last"].items():
            keys, layer = (("layers", name), i) if i < last else (("last", name), None)
            places[f"model.layers.{i}.{weight.hf_name}"] = Place(keys, layer, weight)
    for name in ("norm", "head"):
        if name in tree:
            places[tree[name].hf_name] = Place((name,), None, tree[name])
    return places


# Reading


def _open_tensors(folder: Path, config: LlamaConfig, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Open the tensors of a model by name, and check them without reading their values."""
    places = tensor_places(config)
    opened: dict[str, Any] = {}
    heads: list[tuple[Path, Any]] = []  # that the config says are the embeddings
    for path in find_files(folder):
        for name, span in read_spans(path).items():
            if name not in places:
                _check_left_over(path, name, span.shape, config)
            if name in opened:
                raise UserError(f"{path}: tensor {name} is in another file as well")
        try:
            file = stack.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error})") from None
        for name in places.keys() & set(file.keys()):
            opened[name] = file.get_slice(name)
            _check_tensor(path, name, opened[name], places[name].weight.hf_shape)
        if config.tie_word_embeddings and _HEAD in file.keys():  # noqa: SIM118
            heads.append((path, file.get_slice(_HEAD)))
    _check_complete(folder, places, opened)
    for path, head in heads:
        _check_same(path, head, opened[weight_tree(config)["embed"].hf_name])
    return opened


def _check_left_over(path: Path, name: str, shape: tuple[int, ...], config: LlamaConfig) -> None:
    """Raise UserError for a tensor that the config has no use for, unless it says nothing new."""
    if config.tie_word_embeddings and name == _HEAD:
        return  # it is compared with the embeddings
    if not name.endswith("rotary_emb.inv_freq"):
        raise UserError(f"{path}: left-over tensor {name}; the config has no such weight")
    if shape != (config.head_dim // 2,):
        raise UserError(
            f"{path}: {name} has shape {shape}; by the config, heads of {config.head_dim} need "
            f"({config.head_dim // 2},)"
        )


def _check_same(path: Path, head: Any, embeddings: Any) -> None:
    """Raise UserError if a head that is tied by the config is not the embeddings."""
    shape = tuple(head.get_shape())
    step = max(1, _CHUNK_BYTES // (4 * shape[-1]))
    blocks = [slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]
    same = shape == tuple(embeddings.get_shape())
    if not (same and all(np.array_equal(head[rows], embeddings[rows]) for rows in blocks)):
        raise UserError(
            f"{path}: {_HEAD} differs from the embeddings, but the config says "
            "tie_word_embeddings; set that to false to use it"
        )


def _check_tensor(path: Path, name: str, tensor: Any, shape: tuple[int, ...]) -> None:
    stored, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
    if stored != shape:
        raise UserError(f"{path}: {name} has shape {stored}; by the config it is {shape}")
    if dtype not in STORED:
        raise UserError(f"{path}: {name} is stored as {dtype}; only {', '.join(STORED)} are read")


def _check_complete(folder: Path, places: dict[str, Place], opened: dict[str, Any]) -> None:
    """Raise UserError for missing tensors, with the file that should hold the first of them."""
    missing = [name for name in places if name not in opened]
    if not missing:
        return
    # The index says where a missing tensor should be.
    file = ONE_FILE
    if not (folder / ONE_FILE).is_file():
        file = read_weight_map(folder / INDEX).get(missing[0], INDEX)
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise UserError(f"{folder / file}: tensor {missing[0]}{more} missing")


def _paths(tree: Params) -> set[tuple[str, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_weight)
    return {tuple(key.key for key in path) for path, _ in leaves}


class _Finite:
    """A stored tensor that refuses to be read where it holds NaN or infinity."""

    def __init__(self, name: str, tensor: StoredTensor) -> None:
        self._name, self._tensor = name, tensor

    def get_shape(self) -> list[int]:
        """Return the shape, as Hugging Face has it."""
        return self._tensor.get_shape()

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray:
        """Return some of the numbers, or raise UserError."""
        numbers = self._tensor[index]
        if not _all_finite(numbers):
            # The names of stacked layers hold the layer's number.
            raise UserError(
                f"{self._name}: holds NaN or infinity, so nothing the model says would mean "
                "anything; the file is damaged, or its training went wrong: fetch it again"
            )
        return numbers


def _all_finite(numbers: np.ndarray) -> bool:
    """Return whether no number is NaN or infinite, many times faster than `np.isfinite`.

    Of such numbers all exponent bits are set, so without their sign they are the largest.
    """
    bits = numbers.view(f"u{numbers.dtype.itemsize}")
    without_sign = bits.dtype.type(2 ** (8 * bits.dtype.itemsize - 1) - 1)
    infinity = np.array(np.inf, numbers.dtype).view(bits.dtype)
    return bool(np.bitwise_and(bits, without_sign).max(initial=0) < infinity)


def _read_weight(
    weight: Weight, sharding: jax.sharding.Sharding, read_shard: Callable[[Index], np.ndarray]
) -> jax.Array:
    """Read one parameter, each shard once."""
    shards: dict[tuple[tuple[int, int], ...], np.ndarray] = {}  # replicas share one buffer

    # JAX calls this once for each local device, with the part of the array that it holds.

    def read(index: Index) -> np.ndarray:
        bounds = tuple(s.indices(n)[:2] for s, n in zip(index, weight.shape, strict=True))
        if bounds not in shards:
            shards[bounds] = read_shard(tuple(slice(*b) for b in bounds))
        return shards[bounds]

    return jax.make_array_from_callback(weight.shape, sharding, read)


def _read_shard(weight: Weight, layers: list[StoredTensor], index: Index, dtype: str) -> np.ndarray:
    """Read the part `index` of a parameter, layer by layer if it is a stack."""
    out = _aligned_empty(tuple(s.stop - s.start for s in index), dtype)
    if weight.axes[0] != "layers":
        _fill(out, layers[0], weight, index, weight.shape)
        return out
    for target, layer in zip(out, layers[index[0]], strict=True):
        _fill(target, layer, weight, index[1:], weight.shape[1:])
    return out


def _fill(
    out: np.ndarray, tensor: StoredTensor, weight: Weight, index: Index, shape: tuple[int, ...]
) -> None:
    """Read one layer's part `index` of a tensor into `out`; `shape` is the layer's."""
    if weight.fan_in is None:  # a vector in the file; a bias has heads here
        vector = tensor[_flat_range(index, shape)]
        out[...] = vector.astype(out.dtype, copy=False).reshape(out.shape)
    elif not weight.transposed:
        _copy(tensor, *index, out)
    else:
        # Hugging Face has [out, in]: flatten ours to [in, out] and transpose it.
        split = input_dims(shape, weight.fan_in)
        ins = _flat_range(index[:split], shape[:split])
        outs = _flat_range(index[split:], shape[split:])
        _copy(tensor, outs, ins, out.reshape(ins.stop - ins.start, outs.stop - outs.start).T)


def _read_int8(weight: Weight, quantiser: Quantiser, index: Index) -> np.ndarray:
    """Read the part `index` of an int8 kernel, or of its scale, layer by layer."""
    out = _aligned_empty(tuple(s.stop - s.start for s in index), weight.dtype)
    in_stack = weight.axes[0] == "layers"
    layers = range(index[0].start, index[0].stop) if in_stack else (0,)
    part, shape = (index[1:], weight.shape[1:]) if in_stack else (index, weight.shape)
    for target, layer in zip(out if in_stack else (out,), layers, strict=True):
        if weight.fan_in is None:  # the scale: it has the outputs as dimensions
            outs = _flat_range(part, shape)
            target[...] = quantiser.scale(layer, outs).reshape(target.shape)
            continue
        split = input_dims(shape, weight.fan_in)
        ins = _flat_range(part[:split], shape[:split])
        outs = _flat_range(part[split:], shape[split:])
        quantiser.fill(target.reshape(ins.stop - ins.start, -1).T, layer, outs, ins)
    return out


class Quantiser:
    """Reads one linear layer in 8 bits, in blocks of a few MiB, from its tensors in the file."""

    def __init__(self, layers: list[StoredTensor], dtype: str) -> None:
        """Take stored tensors [out, in], one per layer, and the dtype they are rounded to."""
        self._layers, self._dtype = layers, dtype
        self._scales: dict[tuple[int, int, int], np.ndarray] = {}

    def scale(self, layer: int, outs: slice) -> np.ndarray:
        """Return the scale of each output, float32 [outs].

        It needs every input of an output, also those that lie on other devices.
        """
        key = (layer, outs.start, outs.stop)
        if key not in self._scales:
            whole = slice(0, self._layers[layer].get_shape()[1])
            largest = [np.abs(rows).max(1) for _, rows in self._blocks(layer, outs, whole)]
            self._scales[key] = int8_scale(np.concatenate(largest))
        return self._scales[key]

    def fill(self, out: np.ndarray, layer: int, outs: slice, ins: slice) -> None:
        """Write the part [outs, ins] of a layer's int8 kernel to `out`."""
        per_unit = (1 / self.scale(layer, outs))[:, None]
        for rows, values in self._blocks(layer, outs, ins):
            values *= per_unit[rows]
            np.clip(np.rint(values, out=values), -127, 127, out=values)
            _copy_blocks(out[rows], values.astype(np.int8))

    def _blocks(self, layer: int, outs: slice, ins: slice) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield blocks of rows as float32, with where they are in `outs`."""
        # A quarter of what is read at a time elsewhere: a block has copies in several dtypes.
        step = max(_BLOCK_ROWS, _CHUNK_BYTES // (16 * (ins.stop - ins.start)))
        for start in range(outs.start, outs.stop, step):
            stop = min(start + step, outs.stop)
            values = self._layers[layer][start:stop, ins].astype(self._dtype, copy=False)
            yield slice(start - outs.start, stop - outs.start), values.astype(np.float32)


def _flat_range(index: Index, shape: tuple[int, ...]) -> slice:
    """Return the range that `index` covers when the dimensions of `shape` are flattened."""
    if any(s != slice(0, n) for s, n in zip(index[1:], shape[1:], strict=True)):
        raise UserError(f"only the first of dimensions {shape} may be sharded, found {index}")
    inner = math.prod(shape[1:])
    return slice(index[0].start * inner, index[0].stop * inner)


def _copy(tensor: StoredTensor, rows: slice, columns: slice, out: np.ndarray) -> None:
    """Copy tensor[rows, columns] to `out`, a few MiB of rows at a time."""
    # The file may store 4 bytes per number.
    step = max(_BLOCK_ROWS, _CHUNK_BYTES // (4 * (columns.stop - columns.start)))
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        chunk = tensor[start:stop, columns].astype(out.dtype, copy=False)
        _copy_blocks(out[start - rows.start : stop - rows.start], chunk)


def _copy_blocks(out: np.ndarray, source: np.ndarray) -> None:
    """Copy `source` to `out` in blocks of rows; one of the two is a transposed view."""
    for start in range(0, len(source), _BLOCK_ROWS):
        out[start : start + _BLOCK_ROWS] = source[start : start + _BLOCK_ROWS]


def _aligned_empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return an empty array at an address that JAX on CPU adopts without a copy."""
    size = tensor_bytes(shape, dtype)
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % _ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


# Writing


def _check_params(params: Params, config: LlamaConfig) -> None:
    expected, tree = jax.tree.flatten(weight_tree(config), is_leaf=is_weight)
    if jax.tree.structure(params) != tree:
        raise UserError("save_checkpoint: the parameters are not the tree of weights of the config")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), weight in zip(leaves, expected, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if leaf.shape != weight.shape:
            raise UserError(
                f"save_checkpoint: {name} is {leaf.shape}, by the config {weight.shape}"
            )
        if not getattr(leaf, "is_fully_addressable", True):
            raise UserError(f"save_checkpoint: {name} is spread over processes; gather it first")


def _plan_files(config: LlamaConfig, max_bytes: float) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return tensors and their shapes by file name, in the order of the model.

    A file is larger than `max_bytes` only if a single tensor is.
    """
    # A file is closed when the next tensor does not fit.
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = max_bytes
    for name, place in tensor_places(config).items():
        size = tensor_bytes(place.weight.hf_shape, config.param_dtype)
        if size > room and groups[-1]:
            groups.append({})
            room = max_bytes
        groups[-1][name] = place.weight.hf_shape
        room -= size
    if len(groups) == 1:
        return {ONE_FILE: groups[0]}
    total = len(groups)
    return {f"model-{i:05}-of-{total:05}.safetensors": g for i, g in enumerate(groups, start=1)}


def _index_fields(
    files: dict[str, dict[str, tuple[int, ...]]], config: LlamaConfig
) -> dict[str, Any]:
    shapes = [shape for group in files.values() for shape in group.values()]
    total = sum(tensor_bytes(shape, config.param_dtype) for shape in shapes)
    placed = {name: file for file, group in files.items() for name in group}
    return {"metadata": {"total_size": total}, "weight_map": placed}


def _hf_tensor(params: Params, config: LlamaConfig, place: Place) -> Iterator[np.ndarray]:
    """Yield one tensor as Hugging Face stores it, C-contiguous, in `param_dtype`."""
    keys, layer, weight = place
    value = params
    for key in keys:
        value = value[key]
    value = np.asarray(value if layer is None else value[layer])
    value = value.astype(config.param_dtype, copy=False)
    if weight.transposed:
        transposed = np.empty(weight.hf_shape, value.dtype)
        _copy_blocks(transposed.T, value.reshape(weight.fan_in, -1))
        value = transposed
    yield np.ascontiguousarray(value.reshape(weight.hf_shape))
