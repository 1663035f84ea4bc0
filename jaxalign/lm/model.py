"""A model as one object: its files (config, tokenizer, hash) and its weights on a device mesh.

`open_model` reads and checks what is quick to read, so that a wrong folder is refused before any
long work starts. `load_model` reads the weights as well, each device's share straight into place.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from jaxalign.lm.checkpoint import load_checkpoint, read_params, read_tensor, weights_sha256
from jaxalign.lm.config import DType, LlamaConfig, read_config
from jaxalign.lm.gguf import gguf_sha256, open_gguf
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.source import POCKET_FOLDER, ModelSource, find_model
from jaxalign.lm.tokenizer import Tokenizer, check_vocabulary
from jaxalign.lm.weights import Params, WeightFormat, outer_weights, param_shardings

_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class ModelFiles:
    """A model folder, read and checked, without its weights.

    Attributes:
        folder: The folder, in Hugging Face layout.
        config: Shapes, constants and dtypes.
        tokenizer: The folder's tokenizer and chat template.
        source: Where they come from, if the user named them; by default the folder itself.
    """

    folder: Path
    config: LlamaConfig
    tokenizer: Tokenizer = dataclasses.field(repr=False)
    source: ModelSource | None = dataclasses.field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What results and adapters call the model: the path, hub id or name that was given."""
        return str(self.folder) if self.source is None else self.source.name

    @functools.cached_property
    def sha256(self) -> str:
        """A hash of the weights, as hexadecimal digits (`weights_sha256`); computed once."""
        if self.weights_file is not None:
            return gguf_sha256(self.weights_file, self.folder)
        return weights_sha256(self.folder)

    @property
    def weights_file(self) -> Path | None:
        """The GGUF file that holds the weights; None if the folder holds them."""
        return None if self.source is None else self.source.weights_file

    @property
    def revision(self) -> str | None:
        """The commit of a model from the hub; None for others."""
        return None if self.source is None else self.source.revision

    def facts(self) -> dict[str, str]:
        """Return what the record of a run says of the model: hashes, and the commit if any."""
        facts = {"model_sha256": self.sha256, "tokenizer_sha256": self.tokenizer.sha256}
        return facts if self.revision is None else facts | {"model_revision": self.revision}

    @property
    def is_pocket(self) -> bool:
        """Whether this is the pocket model that ships with the package."""
        return _is_pocket(self.folder)


@dataclasses.dataclass(frozen=True, eq=False)
class LM:
    """A language model, ready to use: files, weights, and the mesh that the weights lie on.

    Attributes:
        files: Config, tokenizer and folder.
        params: The weights, a tree with the structure of `jaxalign.lm.weights.weight_tree`.
        mesh: The devices, with the axes `population`, `data` and `model`.

    Example:
        >>> import jaxalign as ja
        >>> lm = ja.pocket_model()
        >>> lm.tokenizer.decode(lm.tokenizer.encode("How happy are you?"))
        'How happy are you?'
    """

    files: ModelFiles
    params: Params = dataclasses.field(repr=False)
    mesh: jax.sharding.Mesh = dataclasses.field(repr=False)

    @property
    def config(self) -> LlamaConfig:
        """Shapes, constants and dtypes."""
        return self.files.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer and chat template."""
        return self.files.tokenizer

    @property
    def folder(self) -> Path:
        """The folder with the config and the tokenizer."""
        return self.files.folder

    @property
    def name(self) -> str:
        """What results and adapters call the model: the path, hub id or name that was given."""
        return self.files.name

    @property
    def sha256(self) -> str:
        """A hash of the weights as stored in the folder, as hexadecimal digits."""
        return self.files.sha256


def open_model(
    path: str | Path | None = None,
    dtype: DType | Literal["auto"] = "auto",
    *,
    revision: str | None = None,
    with_weights: bool = True,
) -> ModelFiles:
    """Read and check a model without loading its weights.

    Args:
        path: A folder in Hugging Face layout (`config.json`, tokenizer, safetensors), a GGUF file,
            a hub id such as `meta-llama/Meta-Llama-3-8B-Instruct` (fetched if the hub's cache lacks
            it), or `smollm2`; None opens the pocket model that ships with the package.
        dtype: Dtype of weights and activations; `"auto"` is float32 for the pocket model and
            bfloat16 for every other.
        revision: Commit of a hub id that a resumed run has recorded.
        with_weights: Whether to fetch the weights of a hub id too.

    Returns:
        The model's config and tokenizer, and where its weights are.

    Raises:
        UserError: If a file is missing or damaged, if the config describes a model that is not
            handled, or if the tokenizer has ids that the model has no embeddings for.

    Example:
        >>> from jaxalign.lm.model import open_model
        >>> files = open_model()
        >>> files.config.num_hidden_layers, files.config.dtype
        (4, 'float32')
    """
    source = find_model(path, revision=revision, with_weights=with_weights)
    folder = source.folder
    if dtype == "auto":
        dtype = "float32" if _is_pocket(folder) else "bfloat16"
    config = read_config(folder, dtype)
    tokenizer = Tokenizer.load(folder)
    # Ids without an embedding would read another row's, silently.
    check_vocabulary(tokenizer, config)
    return ModelFiles(folder, config, tokenizer, source)


def load_model(
    path: str | Path | ModelFiles | None = None,
    *,
    dtype: DType | Literal["auto"] = "auto",
    weights: WeightFormat = "stored",
    model_parallel: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> LM:
    """Load a Llama onto the devices of this machine.

    Args:
        path: A folder, GGUF file, hub id or name, as for `open_model`, or what `open_model`
            returned for it (`dtype` is then ignored); None loads the pocket model.
        dtype: Dtype of weights and activations; `"auto"` is float32 for the pocket model and
            bfloat16 for every other.
        weights: `"int8"` stores the linear layers in 8 bits, which halves their memory. They are
            converted while they are read, so the model never lies anywhere in its stored dtype.
        model_parallel: Number of devices that share one copy of the weights; default: as few as
            memory allows.
        mesh: The mesh to put the weights on, instead of one chosen for all devices.

    Returns:
        The model, with its weights on the mesh.

    Raises:
        UserError: As `open_model`, and if weights are missing, damaged or too large for the
            devices.

    Example:
        >>> import jaxalign as ja
        >>> lm = ja.load_model()
        >>> lm.config.hidden_size, lm.params["embed"].shape
        (128, (1792, 128))
    """
    files = path if isinstance(path, ModelFiles) else open_model(path, dtype)
    # How many devices share a copy follows from the memory, unless it is given.
    if mesh is None:
        mesh, choice = device_mesh(
            files.config, None, model_parallel=model_parallel, weights=weights
        )
        _log.debug(choice.describe())
    shardings = param_shardings(files.config, mesh, weights)
    # Either way each device reads its own share, and converts it where it lies.
    if files.weights_file is None:
        params = load_checkpoint(files.folder, files.config, shardings, weights)
    else:
        tensors = open_gguf(files.weights_file, files.folder, files.config)
        params = read_params(tensors, files.config, shardings, weights)
    return LM(files, params, mesh)


def load_embeddings(files: ModelFiles) -> np.ndarray:
    """Read the embedding table of a model alone, [V, D] in the model's dtype.

    Raises:
        UserError: If the model's files are missing or damaged.
    """
    # The one tensor is read, not the file around it.
    name = outer_weights(files.config)["embed"].hf_name
    if files.weights_file is not None:
        table = open_gguf(files.weights_file, files.folder, files.config)[name][:]
    else:
        table = read_tensor(files.folder, files.config, name)
    return table.astype(files.config.param_dtype)


def _is_pocket(folder: Path) -> bool:
    return folder.resolve() == POCKET_FOLDER.resolve()
