"""The attention of blocks by kernels made for devices, under masks that are known at run time."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.answering import batch
from jaxalign.answering.block_attention import (
    block_attention,
    choose_block_kernel,
    example_tables,
    measured_choice,
)
from jaxalign.answering.block_plan import plan_blocks
from jaxalign.answering.block_program import answer_program
from jaxalign.answering.blocks import ROW, Shape
from jaxalign.answering.kernels import KERNELS
from jaxalign.answering.kernels.pallas_gpu import BLOCK, visible_blocks
from jaxalign.answering.kernels.spans import Spans
from jaxalign.answering.options import attend
from jaxalign.lm.config import LlamaConfig
from jaxalign.runtime.kernel_timing import KernelChoice
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.sharding import make_mesh
from jaxalign.runtime.topology import described_devices, parse_topology
from tests.answering.test_batch import some_conversations

CONFIG = LlamaConfig(61, 32, 48, 3, 4, 2, 16, dtype="float32", param_dtype="float32")
HALF = CONFIG.replace(dtype="bfloat16", param_dtype="bfloat16")
FUSED = ("cudnn", "pallas", "splash")


@pytest.fixture(scope="module")
def block():
    """The tables of a block, and which of its tokens and answers are no padding."""
    tables = plan_blocks(some_conversations(), 256).tables(0)
    tokens = [np.isin(t, tables.keys[t // ROW]) for t in range(len(tables.tree))]
    answers = np.arange(len(tables.answers)) < tables.answers.argmax() + 1
    return tables, np.array(tokens), answers


def attended(tables, kernel: str) -> list[np.ndarray]:
    """What all tokens get, and what the answer nodes get."""
    random, T = np.random.default_rng(0), len(tables.tree)
    q, k, v = (
        jnp.asarray(random.normal(size=(1, T, n, CONFIG.head_dim)), jnp.float32) for n in (4, 2, 2)
    )
    nothing = jnp.zeros((0, 2, CONFIG.head_dim))

    # Tables are arguments, as in the program: a kernel may not look at them while it is traced.
    @jax.jit
    def run(tables):
        everyone, answers = block_attention(CONFIG, tables, kernel, interpret=True)
        before = nothing, nothing
        return attend(everyone, q, k, v, before), attend(
            answers, q[:, tables.answers], k, v, before
        )

    return [np.asarray(x[0]) for x in run(jax.tree.map(jnp.asarray, tables))]


@pytest.mark.long
@pytest.mark.parametrize("kernel", FUSED)
def test_a_kernel_gives_what_xla_gives(block, kernel):
    tables, *real = block
    assert len(tables.tree) > 2 * BLOCK
    for found, expected, used in zip(
        attended(tables, kernel), attended(tables, "xla"), real, strict=True
    ):
        assert used.sum() > 20
        np.testing.assert_allclose(found[used], expected[used], atol=2e-6)


def test_visible_blocks_are_those_of_the_spans(block):
    tables, *_ = block
    spans = Spans(np.arange(len(tables.tree), dtype=np.int32), tables.end)
    found = np.asarray(visible_blocks(jnp.asarray(spans.asks_T), jnp.asarray(spans.until_S)))
    for (count, *keys), (expected, *others) in zip(
        found.tolist(), spans.blocks(BLOCK, BLOCK).tolist(), strict=True
    ):
        assert (count, keys[:count]) == (expected, others[:expected])


def test_the_example_fills_a_blocks_rows():
    tables = example_tables(Shape(320, 192, 16, 96, 5, 16, 5, 1, 2))
    assert tables.end[[0, 191, 192, 319]].tolist() == [192, 192, 320, 320]
    assert (tables.keys >= 0).sum(axis=1).tolist() == [64, 128, 192, 64, 128]


@pytest.mark.long
def test_kernels_are_really_tried():
    shape = Shape(256, 192, 16, 96, 5, 16, 5, 1, 2)
    choice = measured_choice(HALF, shape, ("xla", "cudnn"), interpret=True)
    assert "fails" not in choice.reason
    assert "disagrees" not in choice.reason


def test_on_cpu_it_is_xla(devices):
    choice = choose_block_kernel(HALF, make_mesh(devices[:1]), Shape(*[64] * 9))
    assert choice.describe() == "attention by xla: cpu has xla alone"


def test_answers_that_were_begun_continue_with_their_kernel(devices, tmp_path, monkeypatch):
    class Mine:
        platforms = ("cpu",)

    plan = SimpleNamespace(shape=None)

    def choose():
        mesh = make_mesh(devices[:1])
        return batch._kernel_and_file(HALF, mesh, plan, tmp_path, "exact-1")

    assert choose() == ("xla", "exact-1")
    monkeypatch.setitem(KERNELS._entries, "mine", Mine)
    monkeypatch.setattr(batch, "choose_block_kernel", lambda *_: KernelChoice("mine", "fastest"))
    assert choose() == ("mine", "exact-1-mine")
    (tmp_path / "exact-1.npy").touch()
    assert choose() == ("xla", "exact-1")


@pytest.mark.reference
@pytest.mark.long
def test_blocks_compile_for_tpus():
    """With splash under a mask that is known at run time, for four chips of a v5e."""
    mesh = make_mesh(described_devices(parse_topology("v5e:2x2")))
    shape = Shape(512, 192, 16, 96, 5, 16, 5, 1, 2)
    config = HALF.replace(head_dim=64)
    with lowering_for("tpu"):
        program, arguments = answer_program(config, mesh, shape, kernel="splash")
        text = program.lower(*arguments).compile().as_text()
    # Of the stacked layers, and of the answers in the last one.
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert answer_program(config, mesh, shape)[1][-1] == "xla"
