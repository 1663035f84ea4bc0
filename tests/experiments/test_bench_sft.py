"""Test the fine-tuning benchmark: its FLOPs, what it refuses, and a tiny run from end to end."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.sft.__main__ import Config, bench, make_examples, training_flops
from jaxalign.core.errors import UserError
from jaxalign.lm.lora import LoraConfig, abstract_adapter, attach
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import abstract_params
from jaxalign.runtime.program_facts import read_program
from jaxalign.training.loss import loss_sum
from jaxalign.training.packing import Example
from jaxalign.training.shape import Shape

TINY = Config(
    layers=2,
    hidden=32,
    feed_forward=48,
    vocabulary=96,
    batch=4,
    steps=2,
    repeats=2,
    shortest=5,
    longest=12,
    threads=1,
)


def test_examples_are_the_same_every_time():
    examples = make_examples(TINY)
    assert examples == make_examples(TINY)
    assert len(examples) == 8
    assert all(5 <= len(e.tokens) <= 12 and len(e.answer) in (1, 2) for e in examples)


@pytest.mark.long
def test_training_flops_are_those_of_the_compiled_gradient():
    """The example fills its row, so nothing is padded. Beyond the formula the program computes full
    attention squares instead of triangles, the last layer's attention, and the adapters' products.
    """
    config = Config(layers=4, hidden=128, feed_forward=352, vocabulary=512).llama
    example = Example(tuple(range(64)), 63)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), Shape(1, 1, 1, 64, 1, 64).batch[0]
    )
    lora = LoraConfig(rank=1)

    def loss(adapter, params, batch):
        full = attach(params, adapter, lora)
        return loss_sum(Llama(config, unroll=True), full, batch, 64)

    abstract = (abstract_adapter(config, lora), abstract_params(config), batch)
    facts = read_program(jax.jit(jax.grad(loss)).lower(*abstract).compile())
    counted = training_flops(config, [example])
    assert 0.95 * counted < facts.dot_flops < 1.15 * counted


def test_flops_by_hand():
    """The model has 2 layers, width 32, 1 head: q, k, v, o of 32 x 32 each, MLP of 3 x 32 x 48."""
    config = TINY.llama
    assert (config.num_attention_heads, config.num_key_value_heads) == (1, 1)
    example = Example(tuple(range(10)), 9)
    layer = 4 * 32 * 32 + 3 * 32 * 48
    linear = 2 * (10 * layer + 10 * 2 * 32 * 32 + (layer - 2 * 32 * 32))
    head = 2 * 32 * 96
    attention = 4 * 32 * (10 * 11 // 2)
    assert training_flops(config, [example]) == 2 * (linear + head) + 3 * attention


@pytest.mark.parametrize(
    "settings", [{"layers": 1}, {"repeats": 0}, {"shortest": 9, "longest": 8}, {"hidden": 33}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        Config(**settings)


@pytest.mark.reference
def test_a_tiny_benchmark_end_to_end(tmp_path, capfd):
    """Both workers train, agree on the loss, and the file holds what the table shows."""
    bench(Config(**{**vars(TINY), "out": tmp_path}))
    shown = capfd.readouterr().out
    result = json.loads((tmp_path / "bench_sft.json").read_text())
    assert "times as fast" in shown
    assert "torch + PEFT" in shown
    assert result["first_loss"]["jax"] == pytest.approx(result["first_loss"]["torch"], rel=1e-4)
    assert len(result["ratios"]) == 2
    assert result["ratio_median"] == pytest.approx(np.median(result["ratios"]))
    rows = result["repeats"]["jax"] + result["repeats"]["torch"]
    assert all(row["tokens_per_second"] > 0 and row["matmul_peak_flops"] > 0 for row in rows)
    assert (tmp_path / "bench_sft.png").stat().st_size > 5_000
    assert jnp.isfinite(result["model_flops"])
