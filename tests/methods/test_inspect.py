"""A soft prompt among the vocabulary: nearest tokens and distances, as numpy's plain formulas."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.cli import run_command
from jaxalign.commands.reports.tuned_prompts import prompts_table
from jaxalign.core.errors import UserError
from jaxalign.lm.model import load_embeddings, open_model
from jaxalign.methods.inspect import inspect_prompt
from jaxalign.methods.soft_prompt import SoftPrompt
from jaxalign.pocket import pocket_model

TEXT = "How happy are you?"


@pytest.fixture(scope="module")
def files():
    return open_model()


@pytest.fixture(scope="module")
def table(files) -> np.ndarray:
    return load_embeddings(files)


def test_the_embeddings_are_the_models(table):
    np.testing.assert_array_equal(table, np.asarray(pocket_model().params["embed"]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), spread=st.sampled_from([1e-3, 0.1, 1.0]), top=st.integers(1, 6))
def test_as_the_plain_formulas(files, table, seed, spread, top):
    random = np.random.default_rng(seed)
    ids = random.integers(0, files.tokenizer.vocab_size, 4)
    prompt_MxD = (table[ids] + random.normal(0, spread, (4, 128))).astype(np.float32)
    found = inspect_prompt(files, SoftPrompt(prompt_MxD), top)
    known = table[: files.tokenizer.vocab_size].astype(np.float64)
    for vector, position in zip(prompt_MxD.astype(np.float64), found.positions, strict=True):
        distances = np.linalg.norm(known - vector, axis=1)
        norms = np.linalg.norm(known, axis=1) * np.linalg.norm(vector)
        cosines = known @ vector / np.maximum(norms, 1e-30)
        nearest = [token.value for token in position.by_distance]
        np.testing.assert_allclose(nearest, np.sort(distances)[:top], rtol=1e-4, atol=1e-5)
        largest = [token.value for token in position.by_cosine]
        np.testing.assert_allclose(largest, -np.sort(-cosines)[:top], rtol=1e-4, atol=1e-5)
        for token in position.by_distance:
            assert token.value == pytest.approx(distances[token.id], rel=1e-4, abs=1e-5)
            assert token.text == files.tokenizer.decode([token.id])
        assert position.start is None
    assert found.moved is None
    expected = np.quantile(np.linalg.norm(known, axis=1), (0.05, 0.5, 0.95))
    np.testing.assert_allclose(found.norms, expected, rtol=1e-4)


def test_distance_from_the_start(files, table):
    """The start is its text, cut off or repeated to the prompt's length."""
    ids = files.tokenizer.encode(TEXT)
    start_MxD = table[np.resize(ids, len(ids) + 2)]
    away = np.zeros(128, np.float32)
    away[5] = 0.25
    found = inspect_prompt(files, SoftPrompt(start_MxD + away, start=TEXT))
    assert [p.start.id for p in found.positions] == [*ids, *ids[:2]]
    np.testing.assert_allclose([p.moved for p in found.positions], 0.25, rtol=1e-5)
    assert found.moved == pytest.approx(0.25, rel=1e-5)
    here = inspect_prompt(files, SoftPrompt(start_MxD, start=TEXT))
    assert all(p.stayed for p in here.positions)
    assert here.moved == 0
    elsewhere = inspect_prompt(files, SoftPrompt(table[[7]], start="?"))
    assert not elsewhere.positions[0].stayed


def test_what_does_not_fit_is_refused(files):
    with pytest.raises(UserError, match="64 wide, the model 128"):
        inspect_prompt(files, SoftPrompt(np.zeros((2, 64), np.float32)))
    with pytest.raises(UserError, match="`top` 0"):
        inspect_prompt(files, SoftPrompt(np.zeros((2, 128), np.float32)), top=0)


def test_the_table_of_a_runs_report(files, table, tmp_path):
    ids = files.tokenizer.encode(TEXT)
    SoftPrompt(table[ids] + np.float32(0.5), start=TEXT).save(tmp_path / "prompts/USA.safetensors")
    assert prompts_table(tmp_path) is None  # no run's
    record = {"format": "jaxalign run 1", "settings": {"model": None}, "facts": {}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    [row] = prompts_table(tmp_path).rows
    assert row[:2] == ("USA", len(ids))
    assert row[2] == pytest.approx(0.5 * 128**0.5, rel=1e-5)
    assert 0 <= row[3] <= len(ids)
    record["settings"]["model"] = str(tmp_path / "moved")
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert prompts_table(tmp_path) is None


def test_the_command(files, table, tmp_path, capsys):
    ids = files.tokenizer.encode(TEXT)
    prompt = SoftPrompt(table[ids], start=TEXT, model=str(files.folder), group="USA")
    prompt.save(tmp_path / "USA.safetensors")
    run_command("inspect", [str(tmp_path / "USA.safetensors"), "--top", "2"])
    out = capsys.readouterr().out
    assert f"USA: {len(ids)} positions, placement front" in out
    assert f"at {len(ids)} of {len(ids)} positions the token" in out
    assert "␣happy(1.00)" in out
    assert "embeddings of the vocabulary: norms" in out
    # A prompt of PEFT names a model, but nothing is fetched by a name in a file.
    prompt = dataclasses.replace(prompt, model="somebody/llama")
    prompt.save_peft(tmp_path / "peft")
    with pytest.raises(SystemExit, match="2"):
        run_command("inspect", [str(tmp_path / "peft")])
    assert "tuned for somebody/llama, which is not here; name the model with --model" in (
        capsys.readouterr().err
    )
    run_command("inspect", [str(tmp_path / "peft"), "--model", str(files.folder)])
    assert "started as" not in capsys.readouterr().out
