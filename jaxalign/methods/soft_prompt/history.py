"""The best prompts that a search had found on the way, kept for a comparison at its end.

A tuned loss falls by its own construction; whether the prompt gets closer to people is another
question, and the answer may change over the generations. So the best search vectors so far are
written at some generations, before the checkpoint of the same dispatch: what a killed run needs is
then there. They are scored at the end, by the program that scores the final prompts.

Letters: P point, E entry, Z search dimension.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import write_array
from jaxalign.core.seals import change, sealed
from jaxalign.methods.soft_prompt.settings import Settings
from jaxalign.runtime.hosts import agreed, agreed_array

_log = logging.getLogger("jaxalign")


def points(settings: Settings) -> tuple[int, ...]:
    """Return the generations whose best prompts are kept, spread evenly; the last is the result.

    A dispatch cannot be looked into, so these are ends of dispatches.

    >>> points(Settings(generations=45, save_every=10, held_out_points=3))
    (10, 30, 45)
    """
    ends = list(range(settings.save_every, settings.generations, settings.save_every))
    ends.append(settings.generations)
    # Never more points than there are ends of dispatches.
    count = min(settings.held_out_points, len(ends))
    if count < 2:
        return tuple(ends[-1:]) * count
    return tuple(ends[i] for i in np.linspace(0, len(ends) - 1, count).round().astype(int))


@dataclasses.dataclass(frozen=True)
class History:
    """The files of a run's history.

    Attributes:
        folder: The folder; process 0 writes to it and reads from it.
        generations: The generations that are kept, without the last.
        writes: Whether this is process 0.
    """

    folder: Path
    generations: tuple[int, ...]
    writes: bool

    def keep(self, generation: int, z_ExZ: np.ndarray) -> None:
        """Write the best search vectors so far, if this generation is one to keep."""
        if self.writes and generation in self.generations:
            path = self._path(generation)
            with sealed(path):
                write_array(path, z_ExZ)

    def read(self, shape: tuple[int, int]) -> dict[int, np.ndarray]:
        """Return the search vectors by generation, float32 [E, Z]; without those that are lost."""
        # A bit for each point whose file is there; all processes take process 0's word for it.
        known = 0
        if self.writes:
            known = sum(1 << p for p, g in enumerate(self.generations) if self._is_whole(g))
        known = agreed(known)
        found = {}
        for p, generation in enumerate(self.generations):
            if known >> p & 1:
                # What the others hold does not matter: all get what process 0 reads.
                z_ExZ = np.zeros(shape, np.float32)
                if self.writes:
                    z_ExZ = _load(self._path(generation), shape)
                found[generation] = agreed_array(z_ExZ)
        return found

    def _is_whole(self, generation: int) -> bool:
        """Return whether the file of a generation is as it was written; say so if it is not."""
        path = self._path(generation)
        if (what := change(path)) is None:
            return path.is_file()
        _log.info(f"{path}: {what}; the result goes without generation {generation}")
        return False

    def _path(self, generation: int) -> Path:
        return self.folder / f"{generation:06d}.npy"


def _load(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the search vectors in a file; UserError if it is damaged."""
    try:
        z_ExZ = np.load(path)
    except Exception as error:  # numpy reads the header with Python's own tokenizer
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())}); delete it") from None
    if z_ExZ.shape != shape or z_ExZ.dtype != np.float32 or not np.isfinite(z_ExZ).all():
        raise UserError(f"{path}: not the search vectors of this run; delete it")
    return z_ExZ
