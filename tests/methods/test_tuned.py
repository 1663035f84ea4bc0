"""Names that tell files apart, and folders that are no run's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.tuned import named_paths, names_of, read_tuned_run


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/USA.safetensors", "b/CHN.safetensors"], ["USA", "CHN"]),
        (["a/USA.safetensors", "b/USA.safetensors"], ["a/USA", "b/USA"]),
        (["x/a/USA.safetensors", "y/a/USA", "IND"], ["x/a/USA", "y/a/USA", "IND"]),
        (["runs/one/adapter", "runs/two/adapter/"], ["one/adapter", "two/adapter"]),
        (["runs/one/adapter"], ["one/adapter"]),
        (["v1.5", "v1.6"], ["v1.5", "v1.6"]),  # not the end of a file's name
        (["USA", "USA"], ["USA"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths, names):
    found = names_of([Path(path) for path in paths])
    assert list(found) == names
    assert [str(path) for path in found.values()] == [
        path.rstrip("/") for path in paths[: len(names)]
    ]


def test_names_of_ones_own():
    found = named_paths(["a/USA.safetensors", "mine=b/USA.safetensors", "./x=y/z"])
    assert found == {
        "USA": Path("a/USA.safetensors"),
        "mine": Path("b/USA.safetensors"),
        "z": Path("x=y/z"),
    }
    with pytest.raises(UserError, match="another one is called 'USA' as well"):
        named_paths(["a/USA.safetensors", "USA=b/USA.safetensors"])


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": "jaxalign run 1"}', '{"format": 2}'])
def test_a_folder_that_is_no_runs(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert read_tuned_run(tmp_path) is None


@pytest.mark.parametrize(
    ("model", "facts", "opened"),
    [
        ("org/llama@main", {"model_revision": "a" * 40}, "org/llama@" + "a" * 40),
        ("org/llama", {"model_revision": "b" * 40}, "org/llama@" + "b" * 40),
        ("models/llama", {}, "models/llama"),
        (None, {}, None),
    ],
)
def test_a_model_from_the_hub_is_opened_at_the_commit_of_the_run(tmp_path, model, facts, opened):
    fields = {"format": "jaxalign run 1", "settings": {"model": model}, "facts": facts}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_tuned_run(tmp_path).model == opened
