"""Checkpoints of any pytree of arrays: saved whole or not at all, restored onto any devices.

A save is complete when `save` returns or, if it is asynchronous, when the next one begins. The
last `keep` steps stay. A process that is killed in the middle of a save leaves the step before as
the latest one, because orbax writes to a temporary directory and renames it.

A step is checked before it is restored (`jaxalign.runs.checksums`): one that is damaged, or not
this run's, is named and put aside, and the one before it is restored.

`Checkpoints` deletes older steps of its directory, whoever wrote them. A directory outside the
run's own folder therefore says whose it is: `owner.json` there names the run that saves in it, and
no other run may use it (`check_owner`, `claim`). All of this works on local paths and on gs://.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxalign.core.errors import UserError
from jaxalign.core.files import naming
from jaxalign.runs.checksums import damage, write_checksums
from jaxalign.runtime.hosts import agreed, agreed_text

if TYPE_CHECKING:
    from etils import epath

OWNER = "owner.json"
_log = logging.getLogger("jaxalign")


class Checkpoints:
    """The numbered checkpoints in one directory; also a context manager.

    Every process of a distributed run makes its own object for the same shared directory, and
    calls the same methods in the same order.
    """

    def __init__(
        self,
        directory: Path | str,
        keep: int = 2,
        asynchronous: bool = False,
        identity: str = "",
    ) -> None:
        """Open a directory and remove what a killed save left in it.

        Args:
            directory: A local path, the same for all processes of a run, or a folder of a bucket
                (`gs://bucket/folder`). It is made if it is missing.
            keep: How many of the latest steps are kept.
            asynchronous: Whether `save` returns as soon as the arrays are copied, and writes them
                while the program goes on.
            identity: Text that stands for whatever decides what is saved, such as a hash of the
                settings and the seed. Steps that were saved under another one are not restored.
        """
        from orbax.checkpoint import v1 as ocp

        from jaxalign.runs.literal_path import LiteralPath

        training = ocp.training
        self._keep, self._asynchronous, self._identity = keep, asynchronous, identity
        # What waits for the save that is still being written.
        self._pending: Callable[[], object] | None = None
        self.directory = location(directory)
        local = isinstance(self.directory, Path)
        self._checkpointer = training.Checkpointer(
            LiteralPath(self.directory) if local else self.directory,
            context=_context(),
            # Save whenever asked: orbax's default skips a step while another is being written.
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def part(self, name: str) -> Checkpoints:
        """Return the checkpoints in a folder of this one, kept in the same way, to be closed.

        For a run whose parts are trained one after the other, each with steps of its own.
        """
        return Checkpoints(
            f"{self.directory}/{name}", self._keep, self._asynchronous, self._identity
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the last save and release the directory."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def wait(self) -> None:
        """Return when the last save is safe; raise what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, oldest first. Waits for the one being saved."""
        self.wait()
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, step: int, tree: Any) -> None:
        """Write `tree` as `step`.

        Returns when the checkpoint is safe or, if saves are asynchronous, when the buffers of the
        tree may be used again.

        Raises:
            UserError: `step` is not later than those saved before.
        """
        if self.steps and step <= self.steps[-1]:
            raise UserError(
                f"{self.directory} already holds step {self.steps[-1]}; step {step} is not after it"
            )
        with naming(self._folder(step), always=False):
            response = self._checkpointer.save_async(step, tree)
        finish = functools.partial(self._finish, step, response)
        if self._asynchronous:
            thread = concurrent.futures.ThreadPoolExecutor(1)
            self._pending = thread.submit(finish).result
            thread.shutdown(wait=False)
        else:
            finish()

    @property
    def latest(self) -> int | None:
        """The latest step that is whole and this run's; None if there is none.

        Later ones are named in the log and put aside. Waits for the one being saved.
        """
        return self._latest_whole()

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any]:
        """Return the number of a step and the tree that was saved as it.

        Args:
            abstract: A tree of `jax.ShapeDtypeStruct` with the structure of the saved one, each
                with the sharding that the array shall have. `abstract_tree` makes it from arrays.
            step: Which step; default: the latest that is whole and this run's. Later ones are
                named in the log and put aside.

        Raises:
            UserError: There is no such step, it cannot be read, or the saved tree has other
                leaves, shapes or dtypes (the message names the first of them).
        """
        if step is None:
            step = self._latest_whole()
        elif step in self.steps and (reason := self._damage(step)):
            raise _damaged(f"{self.directory}/{step}", reason)
        if step not in self.steps:
            wanted = "checkpoint" if step is None else f"step {step} (there are {self.steps})"
            raise UserError(f"no {wanted} in {self.directory}")
        path = f"{self.directory}/{step}"
        try:
            saved = self._checkpointer.metadata(step).metadata
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from None
        if _leaves(abstract) and not _leaves(saved):  # orbax finds nothing in truncated files
            raise _damaged(path, "it names no arrays")
        _compare(saved, abstract, path)
        try:
            return step, self._checkpointer.load(step, abstract)
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(path, error) from None

    def _finish(self, step: int, response: Any) -> None:
        """Wait until a step is written, then list its files."""
        with naming(self._folder(step), always=False):
            response.result()
            if jax.process_index() == 0:
                write_checksums(self._folder(step), step, self._identity)

    def _folder(self, step: int) -> epath.Path:
        from etils import epath

        return epath.Path(self.directory) / str(step)

    def _damage(self, step: int) -> str:
        """Return what is wrong with a step in words, empty for nothing; process 0 looks."""
        found = ""
        if jax.process_index() == 0:
            found = damage(self._folder(step), step, self._identity) or ""
        return agreed_text(found)

    def _latest_whole(self) -> int | None:
        """Put aside the latest steps that are not whole; return the latest one left."""
        while self.steps:
            step = self.steps[-1]
            if not (reason := self._damage(step)):
                return step
            _log.info(
                f"checkpoint {self._folder(step)} is not used: {reason}; the one before it is, if "
                "there is one"
            )
            if jax.process_index() == 0:
                self._put_aside(step)
            agreed(0)  # every process waits until that is done
            self._checkpointer.reload()
        return None

    def _put_aside(self, step: int) -> None:
        """Rename a step so that another may take its number; delete it in a bucket."""
        folder = self._folder(step)
        if "://" in str(self.directory):
            folder.rmtree()
            return
        names = (f"damaged-{step}" + (f"-{n}" if n else "") for n in range(1_000_000))
        folder.rename(next(p for p in map(folder.parent.joinpath, names) if not p.exists()))


def abstract_tree(tree: Any) -> Any:
    """Return shapes, dtypes and shardings of a tree of arrays, as `Checkpoints.restore` takes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def checkpoint_bytes(abstract: Any, keep: int = 2) -> int:
    """Return how much of the disk the checkpoints of a tree take at most: one is being written
    while `keep` others are there.

    Args:
        abstract: A tree of arrays, or of anything with their shapes and dtypes.
        keep: How many steps are kept.
    """
    leaves = jax.tree.leaves(abstract)
    return (keep + 1) * sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def latest_step(directory: Path | str) -> int | None:
    """Return the newest step in a local directory, None if it has none; change nothing there."""
    from orbax.checkpoint import v1 as ocp

    names = ocp.path.step.standard_name_format()
    checkpoints = names.find_all(Path(directory)) if Path(directory).is_dir() else ()
    return max((checkpoint.step for checkpoint in checkpoints), default=None)


def location(directory: Path | str) -> Path | str:
    """Return a local directory as an absolute path, and the address of a bucket unchanged.

    Orbax accepts relative paths and fails on them much later.

    Raises:
        UserError: The address is of a bucket that is not gs://, or the package that reads gs:// is
            not installed.
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


# Which run a directory belongs to


def check_owner(directory: str, run: str | None) -> bool:
    """Check that a run may keep its checkpoints in a directory.

    Args:
        directory: A local path or a gs:// address.
        run: Name of the run (`jaxalign.runs.recorded_run`); None for a new run.

    Returns:
        Whether the directory is this run's already; False where it is empty or does not exist.

    Raises:
        UserError: The directory cannot hold checkpoints, or holds anything that is not this run's.
    """
    from etils import epath

    folder = epath.Path(location(directory))
    try:
        names, owner = _names(folder), _owner(folder)
    except UserError:
        raise
    except Exception as error:  # whatever the library of a bucket may raise
        raise UserError(f"`checkpoints` {directory}: {error}; give another directory") from None
    if names and run is None:
        raise UserError(
            f"`checkpoints` {directory}: holds {names[0]!r}, and a new run needs an empty "
            "directory; give another, or `resume` with the `out` of the run that saves there"
        )
    if names and owner != run:
        raise UserError(
            f"`checkpoints` {directory}: holds {names[0]!r} and is not this run's; give the "
            "directory that the run began with"
        )
    return bool(names)


def claim(directory: Path | str, run: str) -> None:
    """Write down that a directory belongs to `run`. Only process 0 may call this.

    Raises:
        UserError: Another run has claimed the directory in the meantime.
    """
    from etils import epath

    folder = epath.Path(location(directory))
    folder.mkdir(parents=True, exist_ok=True)
    owner = _owner(folder)
    if owner not in (None, run):
        raise UserError(
            f"`checkpoints` {directory}: another run saves there; give another directory"
        )
    if owner is None:
        # Under another name first: half a file would shut the run out of its own directory.
        partial = folder / f"{OWNER}.part"
        partial.write_text(json.dumps({"run": run}))
        partial.replace(folder / OWNER)


def _names(folder: epath.Path) -> list[str]:
    """Return the sorted names in a directory; raise UserError where there can be no directory."""
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"`checkpoints` {folder}: is no directory; give another path")
        names = sorted(path.name for path in folder.iterdir())
        return [name for name in names if name != f"{OWNER}.part"]  # left by a kill
    if "://" not in str(folder):
        local = Path(folder)
        nearest = next(parent for parent in local.parents if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UserError(
                f"`checkpoints` {folder}: {nearest} is no directory to write in; give another path"
            )
    return []


def _owner(folder: epath.Path) -> Any:
    """Return the run that `owner.json` names; None where it is missing or cannot be read."""
    path = folder / OWNER
    try:
        return json.loads(path.read_text())["run"] if path.exists() else None
    except (ValueError, KeyError, TypeError):
        return None


# What orbax is told, and what it has saved


def _context() -> Any:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    # Six times faster, and tuned prompts and optimizer states hardly compress.
    context.array.saving.use_compression = False
    return context


def _damaged(path: str, error: Exception | str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"checkpoint {path} cannot be read ({reason}); delete that folder to go on from the step "
        "before it, or from the beginning where there is none"
    )


def _compare(saved: Any, abstract: Any, path: str) -> None:
    """Raise UserError for a tree unlike the saved one; orbax's own errors do not say where."""
    saved, wanted = _leaves(saved), _leaves(abstract)
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"checkpoint {path} does not fit this run: {name} is "
                f"{saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} here; "
                "use the settings it was saved with, or another directory"
            )


def _leaves(tree: Any) -> dict[str, str]:
    """Return "dtype[shape]" of each leaf by its path.

    Orbax gives named tuples and dataclasses back as dicts and lists, so only names count.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(_name(key) for key in path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in leaves
    }


def _name(key: Any) -> str:
    """Return the entry of a path in one spelling, whether of a field, a dict or a sequence."""
    for attribute in ("name", "key", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
