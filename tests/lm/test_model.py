"""Opening and loading a model folder: dtypes, hash, weights in 8 bits, what is refused."""

from __future__ import annotations

import logging
import shutil

import jax
import numpy as np
import pytest

import jaxalign as ja
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint, weights_sha256
from jaxalign.lm.model import POCKET_FOLDER, load_model, open_model
from jaxalign.lm.quantize import quantize
from jaxalign.pocket import MODEL_FOLDER, pocket_model
from jaxalign.runtime.sharding import make_mesh


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The pocket model under another path, where it is a model like any other."""
    return shutil.copytree(POCKET_FOLDER, tmp_path_factory.mktemp("model") / "copy")


def test_auto_is_float32_for_the_pocket_model_and_bfloat16_for_others(copy):
    assert MODEL_FOLDER == POCKET_FOLDER
    assert open_model().config.dtype == open_model(str(MODEL_FOLDER)).config.dtype == "float32"
    assert open_model(MODEL_FOLDER, "bfloat16").config.param_dtype == "bfloat16"
    assert open_model(copy).config.dtype == open_model(copy).config.param_dtype == "bfloat16"
    assert open_model(copy, "float32").config == open_model().config
    assert open_model().is_pocket
    assert not open_model(copy).is_pocket


def test_a_model_is_its_files_and_its_weights_on_a_mesh(copy, caplog, devices):
    caplog.set_level(logging.DEBUG, logger="jaxalign")
    lm = load_model(copy, dtype="float32", model_parallel=2)
    assert "model=2 as asked" in caplog.text
    assert dict(lm.mesh.shape) == {"population": 1, "data": 4, "model": 2}
    assert lm.folder == copy
    assert lm.config == lm.files.config
    assert lm.tokenizer.decode(lm.tokenizer.encode("Hello")) == "Hello"
    assert lm.sha256 == weights_sha256(copy) == pocket_model().sha256
    for leaf, expected in zip(
        jax.tree.leaves(lm.params), jax.tree.leaves(load_checkpoint(copy, lm.config)), strict=True
    ):
        assert set(leaf.sharding.device_set) == set(devices)
        np.testing.assert_array_equal(leaf, expected)


def test_files_that_are_open_are_not_read_again(copy):
    files = open_model(copy)
    mesh = make_mesh(jax.devices()[:1])
    lm = load_model(files, dtype="float32", mesh=mesh)  # the dtype is that of the files
    assert lm.files is files
    assert lm.mesh is mesh
    assert lm.params["embed"].dtype == "bfloat16"


def test_weights_in_8_bits():
    lm, stored = load_model(weights="int8"), pocket_model()
    for leaf, expected in zip(
        jax.tree.leaves(lm.params),
        jax.tree.leaves(quantize(stored.config, stored.params)),
        strict=True,
    ):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


def test_a_folder_that_does_not_fit_together_is_refused(copy, tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        open_model(tmp_path)
    folder = shutil.copytree(copy, tmp_path / "model")
    text = (folder / "config.json").read_text("utf-8")
    (folder / "config.json").write_text(text.replace("1792", "1700"), "utf-8")
    with pytest.raises(UserError, match="do not belong together"):
        open_model(folder)


def test_public_names_are_these():
    assert ja.load_model is load_model
    assert ja.pocket_model is pocket_model
