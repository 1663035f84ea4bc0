"""Named objects that are extended by adding one file.

A registry belongs to a package. Each module of the package registers what it offers, and the first
lookup imports all of them, so that a new module is found without an edit anywhere else::

    metrics = Registry[Metric]("metric", "jaxalign.stats.metrics")

    @metrics.register("alignment")
    class Alignment: ...

    metrics["alignment"]
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from jaxalign.core.errors import UserError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping of names to objects that the modules of one package fill."""

    def __init__(self, kind: str, package: str, parameter: str | None = None) -> None:
        """Make an empty registry.

        Args:
            kind: What an entry is, in the singular, for messages: "metric".
            package: Dotted name of the package whose modules register entries.
            parameter: Name of the parameter that users choose an entry with, for messages;
                default: `kind`.
        """
        self._kind = kind
        self._package = package
        self._parameter = parameter or kind
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers an object as `name` and hands it back unchanged.

        Raises:
            ValueError: Another object is registered as `name`; that is a bug, not bad input.
        """

        def add(entry: T) -> T:
            if self._entries.setdefault(name, entry) is not entry:
                raise ValueError(f"two {self._kind} entries are registered as {name!r}")
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        self._load()
        return tuple(sorted(self._entries))

    def __getitem__(self, name: str) -> T:
        """Return the object registered as `name`.

        Raises:
            UserError: Nothing is registered as `name`; the message lists what is.
        """
        self._load()
        if name not in self._entries:
            known = ", ".join(self.names()) or "nothing"
            raise UserError(
                f"`{self._parameter}` {name}: no such {self._kind}; choose from {known}"
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        """Import every module of the package, once."""
        if self._loaded:
            return
        self._loaded = True  # first: the modules may look names up while they are imported
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
