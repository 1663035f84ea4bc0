"""Test the fine-tuning benchmark: its FLOPs, what it refuses, and a tiny run from end to end."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.bench.sft.__main__ import (
    Config,
    bench,
    check_same,
    make_examples,
    training_flops,
)
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, abstract_adapter, attach
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import abstract_params
from jaxalign.runtime.program_facts import read_program
from jaxalign.training.loss import loss_sum
from jaxalign.training.packing import Example
from jaxalign.training.shape import Shape

TINY = Config(batch=4, micro_batch=3, steps=2, repeats=2, shortest=5, longest=12, threads=1)
LLAMA = LlamaConfig(96, 32, 48, 2, 1, 1, 32, dtype="float32", param_dtype="float32")


def test_examples_are_the_same_every_time():
    examples = make_examples(TINY, 96)
    assert examples == make_examples(TINY, 96)
    assert len(examples) == 8
    assert all(5 <= len(e.tokens) <= 12 and len(e.answer) in (1, 2) for e in examples)


@pytest.mark.long
def test_training_flops_are_those_of_the_compiled_gradient():
    """The example fills its row, so nothing is padded. Beyond the formula the program computes full
    attention squares instead of triangles, the last layer's attention, and the adapters' products.
    """
    config = LlamaConfig(512, 128, 352, 4, 4, 1, 32, dtype="float32", param_dtype="float32")
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
    example = Example(tuple(range(10)), 9)
    layer = 4 * 32 * 32 + 3 * 32 * 48
    linear = 2 * (10 * layer + 10 * 2 * 32 * 32 + (layer - 2 * 32 * 32))
    head = 2 * 32 * 96
    attention = 4 * 32 * (10 * 11 // 2)
    assert training_flops(LLAMA, [example]) == 2 * (linear + head) + 3 * attention


@pytest.mark.parametrize(
    "settings",
    [{"micro_batch": 0}, {"repeats": 0}, {"shortest": 9, "longest": 8}, {"shortest": 3}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError):
        Config(**settings)


def test_no_speed_where_loss_or_gradient_differ():
    torch = {"loss": 2.0, "gradient_norm": 1.0}
    check_same("float32", {"jax": {"loss": 2.0001, "gradient_norm": 1.0005}, "torch": torch})
    for name in torch:
        with pytest.raises(UserError, match=name.split("_")[0]):
            check_same("float32", {"jax": torch | {name: 1.01 * torch[name]}, "torch": torch})
    with pytest.raises(UserError, match="nan"):
        check_same("float32", {"jax": torch | {"loss": float("nan")}, "torch": torch})


@pytest.mark.reference
def test_a_tiny_benchmark_end_to_end(tmp_path, capfd):
    """Both workers train, agree on the first step, and the file holds what the table shows."""
    files = {"json": tmp_path / "sft.json", "plot": tmp_path / "sft.png"}
    bench(dataclasses.replace(TINY, **files), LLAMA)
    shown = capfd.readouterr().out
    result = json.loads(files["json"].read_text())
    assert "times as fast" in shown
    assert "torch + PEFT" in shown
    for name, tolerance in {"loss": 1e-4, "gradient_norm": 1e-3}.items():
        ours, theirs = (result["first_step"][side][name] for side in ("jax", "torch"))
        assert ours == pytest.approx(theirs, rel=tolerance)
    assert len(result["ratios"]) == 2
    assert result["ratio"]["median"] == pytest.approx(np.median(result["ratios"]))
    rows = result["repeats"]["jax"] + result["repeats"]["torch"]
    assert all(min(row.values()) > 0 for row in rows)
    assert files["plot"].stat().st_size > 5_000
    assert result["model_flops"] == training_flops(LLAMA, make_examples(TINY, 96))
