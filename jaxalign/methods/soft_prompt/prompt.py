"""A soft prompt as a value: its embeddings, where it stands, and what it was tuned for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np

from jaxalign.answering.conversations import Placement
from jaxalign.core.errors import UserError
from jaxalign.lm.peft import load_prompt, load_prompt_tuning, save_prompt, save_prompt_tuning
from jaxalign.methods.base import TUNED, Condition


@dataclasses.dataclass(frozen=True, eq=False)
class SoftPrompt(Condition):
    """Embeddings put before or into a conversation: a condition that a model can be asked under.

    Attributes:
        embeddings_MxD: float32 [M, D], one row per virtual token.
        placement: "front", "system" or "after", as in `jaxalign.answering.conversations`.
        group: The group that it was tuned for, such as a country's ISO 3166 code.
        start: The text that the search started from; None if it did not start from a text.
        seed: Seed of the search.
        model: Folder of the model that it was tuned for.
        model_sha256: Hash of that model's weights.

    >>> prompt = SoftPrompt(np.zeros((4, 128), np.float32), group="USA")
    >>> prompt.name, prompt.placement
    ('tuned USA', 'front')
    """

    embeddings_MxD: np.ndarray = dataclasses.field(repr=False)
    placement: Placement = "front"
    group: str | None = None
    start: str | None = None
    seed: int | None = None
    model: str | None = None
    model_sha256: str | None = None

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return TUNED.key if self.group is None else f"{TUNED.key} {self.group}"

    @property
    def soft_prompt(self) -> SoftPrompt:
        """The prompt itself: what makes it a condition."""
        return self

    def save(self, path: str | Path) -> None:
        """Write the prompt to a safetensors file, with what it was tuned for as metadata."""
        metadata = {
            "country": self.group,
            "placement": self.placement,
            "start": self.start,
            "seed": self.seed,
            "model": self.model,
            "model_sha256": self.model_sha256,
        }
        save_prompt(Path(path), self.embeddings_MxD, metadata)

    @classmethod
    def load(cls, path: str | Path) -> SoftPrompt:
        """Read a prompt that `save` wrote, or the folder of one that PEFT or `save_peft` wrote.

        What PEFT does not record is None: the group, and the seed. A prompt of PEFT always stands
        in front.

        Args:
            path: A safetensors file of ours, or a folder with `adapter_config.json`.

        Raises:
            UserError: naming the file, where it is missing, truncated or no soft prompt.
        """
        path = Path(path)
        if path.is_dir():
            embeddings_MxD, fields = load_prompt_tuning(path)
            return cls(
                embeddings_MxD,
                start=fields.get("prompt_tuning_init_text"),
                model=fields.get("base_model_name_or_path"),
            )
        embeddings_MxD, metadata = load_prompt(path)
        placement = metadata.get("placement", "front")
        if placement not in get_args(Placement):
            raise UserError(f"{path}: placement {placement!r} is none of {get_args(Placement)}")
        names = ("start", "seed", "model", "model_sha256")
        return cls(
            embeddings_MxD,
            placement,
            metadata.get("country"),
            **{name: metadata.get(name) for name in names},
        )

    def save_peft(self, folder: str | Path) -> None:
        """Write a folder that PEFT loads: `PeftModel.from_pretrained(model, folder)`.

        Raises:
            UserError: for a placement other than "front", which PEFT cannot express.
        """
        save_prompt_tuning(
            Path(folder),
            self.embeddings_MxD,
            self.model or "",
            self.embeddings_MxD.shape[1],
            self.placement,
        )
