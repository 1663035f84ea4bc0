"""Checkpoints of any pytree of arrays: saved whole or not at all, restored onto any devices.

Every save is complete when `save` returns, or, asynchronously, when the next one begins. The last
`keep` stay, and a process killed in the middle of a save leaves the one before as the latest: orbax
writes to a temporary directory and renames it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxalign.core.errors import UserError


class Checkpoints:
    """The numbered checkpoints in one directory; also a context manager.

    Every process of a distributed run makes its own, of the same shared directory, and calls the
    same methods in the same order.
    """

    def __init__(self, directory: Path | str, keep: int = 2, asynchronous: bool = False):
        """Open `directory`, made if missing, and remove what a killed save left in it.

        A local path, the same for all processes of a run, or a bucket's: `gs://bucket/folder`.

        `asynchronous`: `save` returns once the arrays are copied, and writes while others work.
        """
        self._asynchronous = asynchronous
        self._pending: Any = None  # the save still being written
        self.directory = location(directory)
        training = ocp.training
        self._checkpointer = training.Checkpointer(
            self.directory,
            context=_context(),
            # Save whenever asked: orbax's default skips a step while another is being written.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def wait(self) -> None:
        """Return when the last save is safe; raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, oldest first. Waits for the one being saved."""
        self.wait()
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, tree: Any) -> None:
        """Write `tree` as `step`, which must be later than those saved.

        Returns when it is safe, or, asynchronously, when the tree's buffers may be used again.
        """
        if self.steps and step <= self.steps[-1]:
            raise UserError(
                f"{self.directory} already holds step {self.steps[-1]}, not before {step}"
            )
        self._pending = self._checkpointer.save_async(step, tree)
        if not self._asynchronous:
            self.wait()

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any]:
        """The tree saved as `step` (default: the latest), with that step's number.

        Args:
          abstract: `jax.ShapeDtypeStruct`s in the tree's structure, each with the sharding that
            the array shall have; `abstract_tree` makes them from arrays.

        Raises UserError when there is no such step, or when the saved tree has other leaves,
        shapes or dtypes (it names the first of them), or cannot be read.
        """
        if step is None and self.steps:
            step = self.steps[-1]
        if step not in self.steps:
            wanted = "checkpoint" if step is None else f"step {step} (there are {self.steps})"
            raise UserError(f"no {wanted} in {self.directory}")
        path = f"{self.directory}/{step}"
        try:
            saved = self._checkpointer.metadata(step).metadata
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from None
        if _leaves(abstract) and not _leaves(saved):  # orbax finds nothing in files cut short
            raise _damaged(path, "it names no arrays")
        _compare(saved, abstract, path)
        try:
            return step, self._checkpointer.load(step, abstract)
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from None


def abstract_tree(tree: Any) -> Any:
    """The shapes, dtypes and shardings of a tree of arrays, as `Checkpoints.restore` wants them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def latest_step(directory: Path | str) -> int | None:
    """The newest step in `directory`, None if it has none; changes nothing there."""
    names = ocp.path.step.standard_name_format()
    found = names.find_all(Path(directory)) if Path(directory).is_dir() else ()
    return max((checkpoint.step for checkpoint in found), default=None)


def _context() -> ocp.Context:
    context = ocp.Context()
    # Six times faster, and tuned prompts and optimizer states hardly compress.
    context.array.saving.use_compression = False
    return context


def location(directory: Path | str) -> Path | str:
    """A local directory as an absolute path (orbax fails late on relative ones), a bucket's as is.

    UserError for a bucket of another kind, and for one out of reach for want of a package.
    """
    if "://" not in str(directory):
        return Path(directory).absolute()
    if not str(directory).startswith("gs://"):
        raise UserError(f"{directory}: checkpoints go to a directory or to gs://bucket/folder")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{directory}: checkpoints in gs:// need gcsfs; pip install 'jaxalign[gcs]'"
        )
    return str(directory)


def _damaged(path: str, error: Exception | str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"checkpoint {path} cannot be read ({reason}); delete that folder to go on from the step "
        "before it, or from the beginning where there is none"
    )


def _compare(saved: Any, abstract: Any, path: str) -> None:
    """Refuse a tree unlike the saved one in words; orbax's own errors do not say where."""
    saved, wanted = _leaves(saved), _leaves(abstract)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {path} does not fit this run: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here; "
                "use the settings it was saved with or another directory"
            )


def _leaves(tree: Any) -> dict[str, str]:
    """Path -> "dtype[shape]". Orbax gives records back as dicts and lists, so only names count."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(_name(key) for key in path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _name(key: Any) -> str:
    """A path entry of a field, a dict or a sequence in one spelling."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
