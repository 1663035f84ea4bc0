"""How much of what a step computes is padding, and how many adapters are trained side by side."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.data import TrainData, adapter_key, make_streams, shape_of_streams
from jaxalign.training.defaults import resolve_training
from jaxalign.training.packing import Examples
from jaxalign.training.program import adapters_side_by_side, expected_shape, state_bytes
from jaxalign.training.shape import choose_shape, estimated_steps, make_shape
from jaxalign.training.step import TrainConfig


def survey_lengths(random: np.random.Generator, count: int) -> np.ndarray:
    """Tokens of survey questions under a persona: log-normal between 60 and 250."""
    drawn = np.exp(random.normal(np.log(125), 0.33, 4 * count + 100)).astype(int)
    return drawn[(drawn >= 60) & (drawn <= 250)][:count]


def many(random: np.random.Generator, count: int) -> Examples:
    """Examples of such lengths with answers of one or two tokens."""
    lengths = survey_lengths(random, count)
    starts = np.zeros((count, 1), int)
    return Examples(
        np.zeros(250, np.int32), starts, lengths[:, None], lengths - random.integers(1, 3, count)
    )


def training_data(random: np.random.Generator, adapters: int, batch: int, devices: int = 1):
    """Adapters with between 6 and 20 steps."""
    sizes = random.integers(6 * batch, 20 * batch, adapters).tolist()
    examples = {str(k): many(random, n) for k, n in enumerate(sizes)}
    keys = [adapter_key(0, name) for name in examples]
    streams = make_streams(examples, keys, batch)
    shape = shape_of_streams([list(streams.values())], batch, 8192, devices=devices)
    return TrainData(list(streams), list(streams.values()), shape)


@pytest.mark.parametrize("batch", [8, 32, 128])
@pytest.mark.parametrize("adapters", [1, 2, 18, 90])
def test_at_most_15_percent_of_the_computed_tokens_are_padding(adapters, batch):
    """Counted over a whole epoch, with the last pass of every step, and the adapters that use up
    their examples earlier than others."""
    data = training_data(np.random.default_rng(batch), adapters, batch)
    useful, computed = np.sum([data.tokens(step) for step in range(data.steps)], axis=0)
    assert useful < computed
    assert 1 - useful / computed <= 0.15
    assert data.shape.row_length <= 8192
    assert data.shape.units <= 16


@given(st.integers(1, 4), st.sampled_from([2, 5]), st.sampled_from([1, 4]), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_every_step_fits_the_shape(adapters, batch, devices, seed):
    """Whatever the lengths are, the arrays hold every example of a step, and say so."""
    data = training_data(np.random.default_rng(seed), adapters, batch, devices)
    for step in range(0, data.steps, 5):
        batches, passes = data.batch(step)
        useful, computed = data.tokens(step)
        counted = sum(
            int(n) * batch.tokens_BxT[0].size for n, batch in zip(passes, batches, strict=False)
        )
        assert counted == computed
        assert sum(int((b.segments_BxT > 0).sum()) for b in batches) == useful
        for n, one, abstract in zip(passes, batches, data.shape.batch, strict=False):
            assert jax.tree.map(lambda x: (x.shape, x.dtype), one) == jax.tree.map(
                lambda x: (x.shape, x.dtype), abstract
            )
            assert not one.segments_BxT[int(n) :].any(), "passes that are not run hold nothing"


def test_units_say_what_they_hold():
    data = training_data(np.random.default_rng(0), 3, 4)
    (batch,), (passes, _) = data.batch(0)
    assert (batch.sizes_BxU.sum(axis=-1) == (batch.segments_BxT > 0).sum(axis=-1)).all()
    assert (batch.answers_BxU.sum(axis=-1) == batch.weight_BxA.sum(axis=-1)).all()
    of_adapters = [int(batch.sizes_BxU[batch.adapter_BxU == k].sum()) for k in range(3)]
    tokens = [sum(len(e.tokens) for e in examples) for examples in data.examples(0)]
    assert of_adapters == tokens
    assert 0 < passes <= data.shape.passes


@given(st.integers(1, 20), st.integers(1, 40), st.integers(10, 60), st.data())
@settings(deadline=None, max_examples=50)
def test_a_shape_holds_the_worst_step(adapters, batch, window, data):
    """The bound on the passes needs no packing: it holds for any lengths up to the window."""
    several = adapters > 1
    row_length = data.draw(st.integers(window, 4 * window))
    unit_length = data.draw(st.integers(window, row_length)) if several else 0
    units = data.draw(st.integers(2, 9)) if several else 0
    examples = 0 if several else data.draw(st.sampled_from([0, 1, 3, 7]))
    shape = make_shape(
        batch, adapters, window, 0.5, row_length, 1, units, unit_length, examples=examples
    )
    lengths = st.lists(st.integers(2, window), min_size=batch, max_size=batch)
    given_examples = {}
    for k in range(adapters):
        sizes = np.array(data.draw(lengths))[:, None]
        given_examples[str(k)] = Examples(
            np.zeros(window, np.int32), 0 * sizes, sizes, sizes[:, 0] - 1
        )
    keys = [adapter_key(0, name) for name in given_examples]
    streams = make_streams(given_examples, keys, batch)
    TrainData(list(streams), list(streams.values()), shape).batch(0)  # raises if it does not fit


def test_a_pass_is_within_the_budget_whatever_the_number_of_adapters():
    for adapters in (1, 18, 90):
        steps = estimated_steps(survey_lengths(np.random.default_rng(0), 500), 32, adapters)
        for budget in (512, 2048, 8192):
            shape = choose_shape(steps, 32, adapters, adapters, 250, 0.03, budget)
            assert shape.rows * shape.row_length <= budget
            assert shape.adapters == adapters


def one_adapter(shortest: int, longest: int, batch: int = 16) -> TrainData:
    lengths = np.random.default_rng(0).integers(shortest, longest + 1, 4 * batch)[:, None]
    examples = Examples(np.zeros(longest, np.int32), 0 * lengths, lengths, lengths[:, 0] - 1)
    streams = make_streams({"a": examples}, [adapter_key(0, "a")], batch)
    shape = shape_of_streams([list(streams.values())], batch, 2048)
    return TrainData(["a"], list(streams.values()), shape)


def test_attention_goes_example_by_example_where_lengths_hardly_differ():
    """On a CPU; on accelerators, and where padding every example to the longest costs more than
    blocks do, it goes in blocks."""
    data = one_adapter(100, 132)
    most = data.shape.examples
    assert 1.05 * data.shape.row_length / 116 <= most + 1
    for step in range(data.steps):
        (batch, *_), _ = data.batch(step)
        assert 0 < batch.segments_BxT.max() <= most
    assert one_adapter(20, 250).shape.examples == 0
    with lowering_for("tpu"):
        assert one_adapter(100, 132).shape.examples == 0


LLAMA_8B = LlamaConfig(
    128256, 4096, 14336, 32, 32, 8, 128, dtype="bfloat16", param_dtype="bfloat16"
)
PAPER = TrainConfig(batch=128, learning_rate=1e-4, tokens_per_pass=8192, remat=True, unroll=False)


def test_adapters_side_by_side_follow_from_memory():
    """Rank 8 on all layers of 8B: 21 million weights, of which a group holds weights, two moments,
    the gradient's sum and an update."""
    mesh, lora, gib = make_mesh(jax.devices()[:1]), LoraConfig(), 2**30
    assert 0.99 * 252e6 < state_bytes(LLAMA_8B, PAPER, lora, mesh) < 1.01 * 252e6
    count = lambda adapters, memory, train=PAPER: adapters_side_by_side(  # noqa: E731
        LLAMA_8B, train, lora, mesh, adapters, memory
    )
    assert count(1, 24 * gib) == 1
    assert count(90, None) == 90
    assert count(90, 140 * gib) == 90
    small = count(90, 32 * gib)
    assert 1 <= small < 18
    assert count(18, 32 * gib) <= small, "groups of about the same size"
    assert count(90, 140 * gib, dataclasses.replace(PAPER, side_by_side=40)) == 30
    assert count(90, 16 * gib) == 1, "at least one, whether it fits is for the compiler"


def test_a_shape_is_known_before_the_examples():
    lengths = survey_lengths(np.random.default_rng(0), 260)
    mesh = make_mesh(jax.devices()[:1])
    shape = expected_shape(LLAMA_8B, PAPER, LoraConfig(), mesh, lengths, 2, 90, 140 * 2**30)
    assert (shape.adapters, shape.window) == (90, lengths.max())
    random = np.random.default_rng(1)
    examples = {str(k): many(random, 128) for k in range(90)}
    examples = {k: e.take(np.flatnonzero(e.lengths <= shape.window)) for k, e in examples.items()}
    streams = make_streams(examples, [adapter_key(0, k) for k in examples], 128)
    data = TrainData(list(streams), list(streams.values()), shape)
    useful, computed = data.tokens(0)
    assert 1 - useful / computed <= 0.15


def test_layers_are_recomputed_where_a_pass_would_keep_much():
    """4 GiB on a CPU are about 2,048 tokens of a model of 135 million weights."""
    small = LlamaConfig(49_152, 576, 1536, 30, 9, 3, 64)
    remat = lambda config, **given: resolve_training(TrainConfig(**given), config=config)[0].remat  # noqa: E731
    assert remat(LLAMA_8B)
    assert remat(None), "a model that is not known may be large"
    assert not remat(small)
    assert remat(small, tokens_per_pass=8192)
    assert remat(small, remat=True)
    assert not remat(LLAMA_8B, remat=False)
    with lowering_for("tpu"):
        train, notes = resolve_training(TrainConfig(), config=small)
    assert (train.tokens_per_pass, train.remat) == (8192, True)
    assert any("recompute layers in the backward pass yes (a pass would" in note for note in notes)
