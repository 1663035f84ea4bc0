"""Find the model that a user names: a folder, a GGUF file, a hub id or a packaged model."""

from __future__ import annotations

import dataclasses
from importlib import resources
from pathlib import Path

# The small trained model that ships with the package; `jaxalign.pocket` describes it.
POCKET_FOLDER = Path(str(resources.files("jaxalign"))) / "pocket" / "model"


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


def find_model(source: str | Path | None) -> ModelSource:
    """Return where the files of a model are.

    Args:
        source: A folder in Hugging Face layout; None is the pocket model.
    """
    if source is None:
        return ModelSource(POCKET_FOLDER)
    return ModelSource(Path(source), str(Path(source)))
