"""Tuned prompts and adapters on disk: in files that are named, and in the directory of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import ModelFiles
from jaxalign.lm.peft import CONFIG as PEFT_CONFIG
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.runs.run import CONFIG, FORMAT


@dataclasses.dataclass(frozen=True)
class TunedRun:
    """What a run has tuned, as far as it is written.

    Attributes:
        folder: The run's directory.
        settings: The settings that it began with.
        prompts: Files of soft prompts, by the name of their group.
        adapters: Folders of adapters, by name; those of several seeds with the seed.
        revision: Commit of the model that was tuned, if that came from the hub.
    """

    folder: Path
    settings: Mapping[str, Any]
    prompts: Mapping[str, Path]
    adapters: Mapping[str, Path]
    revision: str | None = None

    @property
    def model(self) -> str | None:
        """The model that was tuned, as `load_model` takes it: what the run was given.

        A hub id comes with the commit that the run opened. A run that tuned all weights has a model
        of its own.
        """
        if not self.prompts and not self.adapters and (self.folder / "model" / CONFIG).is_file():
            return str(self.folder / "model")
        given = self.settings.get("model")
        return given if self.revision is None else f"{given.partition('@')[0]}@{self.revision}"


def read_tuned_run(folder: str | Path) -> TunedRun | None:
    """Return what a run has tuned; None if the folder is no run's.

    Args:
        folder: The directory of a run of `jaxalign soft-prompt`, `sweep`, `culturespa` or
            `fine-tune`.
    """
    folder = Path(folder)
    if folder.is_file() and (folder.parent / CONFIG).is_file():
        folder = folder.parent  # a file of the run was named
    try:
        fields = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
        if fields["format"] != FORMAT:
            return None
        settings = dict(fields["settings"])
        revision = fields["facts"].get("model_revision")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    prompts = {path.stem: path for path in sorted((folder / "prompts").glob("*.safetensors"))}
    adapters = {path.parent.name: path.parent for path in _configs(folder, "adapters/*")}
    if (folder / "adapter" / PEFT_CONFIG).is_file():
        adapters["tuned"] = folder / "adapter"
    by_seed = _configs(folder, "seed*/adapters/*")
    several = len({path.parents[2] for path in by_seed}) > 1
    for path in by_seed:
        seed, name = path.parents[2].name, path.parent.name
        adapters[f"{seed}/{name}" if several else name] = path.parent
    return TunedRun(folder, settings, prompts, adapters, revision)


def _configs(folder: Path, pattern: str) -> list[Path]:
    """Return the configs of the adapters whose folders fit a pattern, in the order of names."""
    return sorted(folder.glob(f"{pattern}/{PEFT_CONFIG}"))


def load_prompts_by_name(paths: Mapping[str, Path], files: ModelFiles) -> dict[str, SoftPrompt]:
    """Read soft prompts, ours and PEFT's, and check that they fit a model.

    Raises:
        UserError: If a file is damaged, or its prompt is made for a model of another width.
    """
    prompts = {name: SoftPrompt.load(path) for name, path in paths.items()}
    for name, prompt in prompts.items():
        width = prompt.embeddings_MxD.shape[1]
        if width != files.config.hidden_size:
            raise UserError(
                f"{paths[name]}: the prompt is {width} wide, the model "
                f"{files.config.hidden_size}: it was made for another model"
            )
    return prompts


def load_adapters_by_name(paths: Mapping[str, Path], files: ModelFiles) -> dict[str, Adapter]:
    """Read low-rank adapters, ours and PEFT's, and check that they fit a model.

    Raises:
        UserError: As `Adapter.load`.
    """
    return {name: Adapter.load(path, files) for name, path in paths.items()}


def other_model(prompt: SoftPrompt, files: ModelFiles) -> str | None:
    """Say that a prompt was tuned for other weights than a model's; None where it was not.

    A prompt of PEFT does not say which weights it was tuned for.
    """
    if prompt.model_sha256 is None or prompt.model_sha256 == files.sha256:
        return None
    return (
        f"tuned for {prompt.model}; {files.name} holds other weights, or the same in another format"
    )


def named_paths(given: Sequence[str]) -> dict[str, Path]:
    """Return paths by name: NAME=PATH gives the name itself, others are named by their path.

    Raises:
        UserError: If two have the same name.

    >>> list(named_paths(["a/USA.safetensors", "mine=a/CHN.safetensors"]))
    ['USA', 'mine']
    """
    pairs = [_named(text) for text in given]
    by_path = {path: name for name, path in names_of([p for n, p in pairs if n is None]).items()}
    named: dict[str, Path] = {}
    for name, path in pairs:
        key = by_path[path] if name is None else name
        if named.setdefault(key, path) != path:
            raise UserError(f"{path}: another one is called {key!r} as well; name it by NAME=PATH")
    return named


def _named(text: str) -> tuple[str | None, Path]:
    name, _, path = text.rpartition("=")
    if not name or "/" in name or Path(text).exists():
        return None, Path(text)
    return name, Path(path)


def names_of(paths: Sequence[Path]) -> dict[str, Path]:
    """Return a short name for each path, which tells it from the others.

    >>> list(names_of([Path("a/USA.safetensors"), Path("b/USA.safetensors"), Path("c/tuned")]))
    ['a/USA', 'b/USA', 'tuned']
    """
    # A folder that is called like everybody's is known by the one it is in.
    named: dict[str, Path] = {}
    for path in paths:
        parts = [*path.absolute().parts[1:-1], path.name.removesuffix(".safetensors")]
        least = 2 if parts[-1] in ("adapter", "model", "prompt") and len(parts) > 1 else 1
        others = [p.absolute() for p in paths if p.absolute() != path.absolute()]
        for count in range(least, len(parts) + 1):
            name = "/".join(parts[-count:])
            if not any(_ends_alike(other, name) for other in others):
                break
        named[name] = path
    return named


def _ends_alike(path: Path, name: str) -> bool:
    whole = str(path.with_suffix("") if path.suffix == ".safetensors" else path)
    return f"/{whole}".endswith(f"/{name}")
