"""The parts of decoding that a CPU computes in another way than a plain forward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.decode_layers import output_logits
from jaxalign.lm.sampling import most_likely


@pytest.mark.parametrize("tied", [False, True])
def test_logits_in_parts_of_the_vocabulary_are_the_logits(tied: bool) -> None:
    """Three parts of 1,024, because a part holds at most 2^20 numbers."""
    config = LlamaConfig(3 * 1024, 768, 8, 2, 1, 1, 8, tie_word_embeddings=tied)
    config = config.replace(dtype="bfloat16", param_dtype="bfloat16")
    random = np.random.default_rng(0)
    shape = (768, 3 * 1024)
    table = jnp.asarray(random.normal(size=shape[::-1] if tied else shape), jnp.bfloat16)
    params = {"embed" if tied else "head": table}
    stream = jnp.asarray(random.normal(size=(5, 768)), jnp.float32)
    expected = np.asarray(stream.astype(jnp.bfloat16), np.float32) @ np.asarray(
        table.T if tied else table, np.float32
    )
    run = jax.jit(output_logits, static_argnums=0).lower(config, as_bits(params), stream).compile()
    np.testing.assert_allclose(run(as_bits(params), stream), expected, rtol=1e-5, atol=1e-4)
    # The table is never read as a whole.
    assert "bf16[3072,768]" not in run.as_text()
    assert "bf16[768,3072]" not in run.as_text()
    assert "u16[" in run.as_text()


@pytest.mark.parametrize("width", [512, 96, 100])  # blocks of 256, 32, and none
def test_the_most_likely_token_is_the_first_of_equal_ones(width: int) -> None:
    random = np.random.default_rng(0)
    logits = random.integers(-3, 4, (50, width)).astype(np.float32)
    logits[0] = -np.inf
    np.testing.assert_array_equal(most_likely(jnp.asarray(logits)), logits.argmax(-1))
