"""The Flax Llama against `transformers.LlamaForCausalLM`: first the parts, then the whole model.

Frozen logits are compared always; the live model too, where torch is importable.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.transformer import (
    Llama,
    project,
    rms_norm,
    rope_frequencies,
    rope_tables,
    rotate,
    rounded,
)
from jaxalign.lm.weights import init_params
from jaxalign.runtime.platform import lowering_for
from tests.support.parity_cases import (
    BASE,
    CASES,
    FIXTURES,
    SCALING,
    Case,
    hf_weights,
    transformers_logits,
)

HAS_TORCH = importlib.util.find_spec("torch") is not None
SOURCES = ["frozen", "live"] if HAS_TORCH else ["frozen"]
TOLERANCE = 1e-5  # of the largest logit


def load(config: LlamaConfig, folder: Path) -> dict:
    save_file(hf_weights(config), folder / "model.safetensors")
    return load_checkpoint(folder, config)


def our_logits(case: Case, folder: Path, unroll: bool = False, **dtypes: str) -> np.ndarray:
    config = case.config.replace(**dtypes)
    params = load(config, folder)
    tokens, positions, mask = case.inputs()
    forward = jax.jit(Llama(config, unroll=unroll).apply)
    return np.asarray(forward({"params": params}, tokens, positions, mask))


@functools.cache
def frozen() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "parity_logits.npz") as file:
        return dict(file)


def difference(ours: np.ndarray, theirs: np.ndarray, case: Case) -> float:
    """The largest difference over real tokens, relative to the largest logit."""
    real = case.inputs()[2].astype(bool)
    return float(np.abs(ours - theirs)[real].max() / np.abs(theirs[real]).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_float32(case: Case, tmp_path: Path) -> None:
    ours = our_logits(case, tmp_path)
    for source in SOURCES:
        theirs = frozen()[case.name] if source == "frozen" else transformers_logits(case)
        assert difference(ours, theirs, case) <= TOLERANCE, source


@pytest.mark.parametrize("name", ["gqa", "scaled_far", "left_padding"])
def test_unrolled_equals_scanned(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    unrolled = our_logits(case, tmp_path, unroll=True)
    assert difference(unrolled, frozen()[name], case) <= TOLERANCE
    assert difference(our_logits(case, tmp_path), unrolled, case) <= 1e-6


@pytest.mark.parametrize("name", ["gqa", "scaled_mqa_tied"])
def test_bfloat16_is_as_close_as_bfloat16_is(name: str, tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits, so three layers differ from float32 by a few percent, in transformers
    and here. Our error may be at most 1.5 times theirs."""
    case = next(case for case in CASES if case.name == name)
    off = difference(
        our_logits(case, tmp_path, dtype="bfloat16", param_dtype="bfloat16"), frozen()[name], case
    )
    assert 1e-4 < off < 0.05
    if HAS_TORCH:
        theirs = difference(transformers_logits(case, "bfloat16"), frozen()[name], case)
        assert off < 1.5 * theirs


def test_unequal_rows_equal_single_rows(tmp_path: Path) -> None:
    """Padding does not change the logits of the tokens beside it."""
    case = next(case for case in CASES if case.name == "unequal")
    together = our_logits(case, tmp_path)
    params, model = load(case.config, tmp_path), Llama(case.config)
    row, length = 1, case.lengths[1]
    alone = jax.jit(model.apply)({"params": params}, case.inputs()[0][row : row + 1, :length])
    np.testing.assert_allclose(together[row, :length], alone[0], atol=1e-5)


def test_logits_at_chosen_positions(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "gqa")
    params, model = load(case.config, tmp_path), Llama(case.config)
    tokens, at = case.inputs()[0], np.array([[3, 11], [0, 5]])
    forward = jax.jit(model.apply)
    every, some = (forward({"params": params}, tokens, at_BxA=a) for a in (None, at))
    np.testing.assert_allclose(some, np.take_along_axis(every, at[:, :, None], 1), atol=1e-5)


def test_embeddings_as_input_equal_tokens(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "tied")
    params, model = load(case.config, tmp_path), Llama(case.config)
    tokens = case.inputs()[0]
    embedded = params["embed"][tokens]
    forward = jax.jit(model.apply)
    by_tokens, by_vectors = (forward({"params": params}, x) for x in (tokens, embedded))
    np.testing.assert_array_equal(by_tokens, by_vectors)


def test_rms_norm_by_hand() -> None:
    x, scale = jnp.array([[3.0, -4.0]]), jnp.array([1.0, 2.0])
    rms = math.sqrt((9 + 16) / 2 + 0.5)
    np.testing.assert_allclose(rms_norm(x, scale, 0.5), [[3 / rms, -8 / rms]], rtol=1e-6)


def test_rms_norm_squares_in_float32() -> None:
    """The sum of 1024 equal squares would stall in bfloat16."""
    x = jnp.full((1, 1024), 3.0, jnp.bfloat16)
    out = rms_norm(x, jnp.ones(1024, jnp.bfloat16), 1e-5)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, 1.0, rtol=1e-6)


def test_what_a_product_reads_is_rounded_although_xla_may_keep_excess_precision() -> None:
    x = jnp.linspace(1, 2, 1000)
    found = jax.jit(lambda x: rounded(x, jnp.bfloat16).astype(jnp.float32))(x)
    np.testing.assert_array_equal(found, np.asarray(x).astype(jnp.bfloat16).astype(np.float32))


def test_rope_turns_pairs_and_keeps_distances() -> None:
    x = jax.random.normal(jax.random.key(0), (1, 3, 2, 8))
    near, far = (rotate(x, rope_tables(BASE, jnp.arange(3)[None] + start)) for start in (0, 40))
    np.testing.assert_allclose(jnp.sum(near**2), jnp.sum(x**2), rtol=1e-6)
    np.testing.assert_array_equal(near[:, 0], x[:, 0])  # position 0 is not turned
    products = [jnp.einsum("btnh,bsnh->bnts", y, y) for y in (near, far)]
    np.testing.assert_allclose(*products, atol=1e-5)


def test_rope_scaling_stretches_only_long_waves() -> None:
    config = BASE.replace(head_dim=16, rope_theta=10_000.0)
    plain = rope_frequencies(config)
    scaled = rope_frequencies(config.replace(rope_scaling=SCALING))
    waves = 2 * math.pi / plain  # in positions
    short, long = waves < 64 / 4, waves > 64 / 1
    assert short.any()
    assert long.any()
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert np.all((scaled < plain)[between] & (scaled > plain / 8)[between])


if HAS_TORCH:
    from tests.support.parity_cases import transformers_model

    @pytest.mark.parametrize("scaling", [None, SCALING])
    @pytest.mark.reference
    def test_rope_tables_equal_transformers(scaling) -> None:
        import torch

        config = BASE.replace(rope_scaling=scaling)
        model = transformers_model(config, hf_weights(config), "float32").model
        positions = np.array([[0, 1, 63, 64, 500]])
        cos, sin = model.rotary_emb(torch.zeros(1), torch.from_numpy(positions))
        for ours, theirs in zip(
            rope_tables(config, jnp.asarray(positions)), (cos, sin), strict=True
        ):
            np.testing.assert_allclose(ours, theirs[..., : config.head_dim // 2], atol=2e-5)

    @pytest.mark.reference
    def test_rms_norm_equals_transformers() -> None:
        import torch
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        x = np.random.RandomState(0).normal(size=(2, 3, 48)).astype(np.float32)
        scale = np.random.RandomState(1).normal(size=48).astype(np.float32)
        theirs = LlamaRMSNorm(48, eps=1e-3)
        theirs.weight.data = torch.from_numpy(scale)
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(rms_norm(x, scale, 1e-3), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "dtype", "written"),
    [("gpu", "bfloat16", "bf16"), ("gpu", "float32", "f32"), ("cpu", "bfloat16", "f32")],
)
def test_a_gpu_writes_products_in_the_dtype_that_is_read(platform, dtype, written):
    """If float32 results were rounded afterwards, cuBLAS would move each of them three times."""
    x, w = jnp.ones((2, 4, 8), dtype), {"gate": jnp.ones((8, 16), dtype)}
    with lowering_for(platform):
        text = jax.jit(lambda x, w: project(x, w, "gate")).lower(x, w).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 1, "one product, of the platform that it is lowered for"
    assert products[0].rstrip().endswith(f"tensor<2x4x16x{written}>")


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_every_product_of_a_float32_model_is_exact(dtype, precision):
    """On a TPU or GPU, where they are not exact by default; those of attention are included."""
    config = LlamaConfig(64, 32, 48, 2, 4, 2, 8, dtype=dtype, param_dtype=dtype)
    tokens = jnp.zeros((2, 7), jnp.int32)
    params = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    traced = jax.jit(Llama(config).apply).trace({"params": params}, tokens)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) > 9
    assert all(f"precision = [{precision}, {precision}]" in line for line in products)
