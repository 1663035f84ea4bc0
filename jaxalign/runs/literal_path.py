"""A local path whose own characters are never taken for a pattern.

`epath.Path.glob` hands the whole path to `glob`, the folder's name included, so that below a folder
named `run[1]` nothing is ever found. Orbax looks for what its processes wrote in that way, finds
nothing, and leaves a checkpoint that looks finished and cannot be read. epath passes on paths of
its own classes as they are, and derives paths of the same class from them, so orbax keeps to this
one wherever it goes.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import Self

from etils import epath


class LiteralPath(type(epath.Path("/"))):
    """An absolute local path, to be given to libraries that use `epath`."""

    def glob(self, pattern: str) -> Iterator[Self]:
        """Yield what matches the pattern below this path."""
        for found in glob.glob(pattern, root_dir=self):
            yield self / found
