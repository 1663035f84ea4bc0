"""Fetch a model from the Hugging Face hub, through `huggingface_hub` and its cache.

Files that are quick to fetch come first and are checked, so that a model that is not handled is
refused before its weights are downloaded. A token for gated models is taken from the environment
(`HF_TOKEN`) or from `hf auth login`. With `HF_HUB_OFFLINE=1`, only the cache is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.lm.config import read_config
from jaxalign.lm.safetensors_io import INDEX, ONE_FILE, find_files, read_weight_map

_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
# Everything that a model folder needs beside its weights.
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
)

_log = logging.getLogger("jaxalign")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id: `org/name`, or `org/name@revision`."""
    return _ID.fullmatch(text) is not None and not text.endswith(".gguf")


def fetch_model(
    given: str, revision: str | None = None, *, with_weights: bool = True
) -> tuple[Path, str]:
    """Return a model's folder in the hub's cache, and its commit; download what is missing.

    Args:
        given: The id, `org/name` or `org/name@revision`.
        revision: Branch, tag or commit in the place of the one in `given`.
        with_weights: Whether the weights are needed too.

    Raises:
        UserError: If there is no such model or revision, it is gated, the hub cannot be reached, or
            the model is not a Llama in safetensors; in one line.
    """
    match = _ID.fullmatch(given)
    name, revision = match["name"], revision or match["revision"]
    _log.info(f"no folder or file {given} here: taking it from the Hugging Face hub or its cache")
    folder = _download(given, name, revision, _SMALL_FILES)
    commit = folder.name
    read_config(folder)  # refuses what is not handled before the weights are fetched
    if with_weights:
        index = folder / INDEX
        files = sorted(set(read_weight_map(index).values())) if index.is_file() else [ONE_FILE]
        _download(given, name, commit, files)
        if not index.is_file() and not (folder / ONE_FILE).is_file():
            raise UserError(
                f"{given}: the hub's model has no {ONE_FILE} and no {INDEX}; only weights in "
                "safetensors are read, or one GGUF file that you download"
            )
        find_files(folder)
    return folder, commit


def _download(given: str, name: str, revision: str | None, files: tuple[str, ...] | list[str]):
    """Bring files of a model into the cache, as far as the hub has them; return their folder."""
    from huggingface_hub import snapshot_download

    with _one_line(given, revision):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))


@contextmanager
def _one_line(given: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's library raises into a UserError of one line."""
    from huggingface_hub import errors

    here = f"{given}: no such folder or file here, and"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{given}: a gated model of the hub; accept its terms on "
            f"https://huggingface.co/{given.partition('@')[0]} and set HF_TOKEN to your token"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{given}: the hub's model has no revision {revision!r}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{here} no such model on the hub (for a private one, set HF_TOKEN to your token)"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise UserError(
            f"{here} the hub cannot be reached (offline, or HF_HUB_OFFLINE is set) and its cache "
            "lacks the model or part of it"
        ) from None
    except Exception as error:  # of the network, of the disk, of the hub
        line = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{here} fetching it from the hub failed: {line}") from None
