"""Every attention kernel gives what plain XLA gives; which one runs is chosen by measuring.

Kernels for GPUs and TPUs run interpreted here: their arithmetic is tested, their speed is not. Of
cuDNN's only the mask is tested: XLA computes under it.
"""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxalign.answering import kernel_choice as choose
from jaxalign.answering.kernel_choice import available, choose_kernel, fastest, random_arrays
from jaxalign.answering.kernels import KERNELS, pallas_gpu, splash_tpu
from jaxalign.answering.kernels.spans import all_tokens, answers_only
from jaxalign.answering.options import attend, attention_tables, option_log_probs, prepare_items
from jaxalign.answering.plan import plan_layout
from jaxalign.answering.plan_suffix import plan_suffix_layout
from jaxalign.core.errors import UserError
from jaxalign.runtime.kernel_timing import agree
from tests.answering.test_options import CONFIG, PARAMS, assert_same, draw_prompts, plain, surveys

HALF = CONFIG.replace(dtype="bfloat16", param_dtype="bfloat16")
FUSED = ("cudnn", "pallas", "splash")


def some_layout(items=12, stem=40, before=(7, 8, 9)):
    """Longer than a tile, with branches and an option of two tokens."""
    texts = [[*range(1, stem), 10 + i, *range(20, 30 + i)] for i in range(items)]
    return plan_layout(before, 5, texts, [[[(40,)], [(41, 42)], [(43,)]]] * items)


def attended(layout, kernel, numbers, config=CONFIG):
    """What all tokens get, and what the answer nodes get."""
    q, k, v, *before = numbers
    first = layout.common_length
    found = []
    for tables, ask in zip(
        attention_tables(config, layout, kernel, interpret=True),
        (slice(None), first + layout.answers),
        strict=True,
    ):
        run = jax.jit(lambda tables, q: attend(tables, q, k, v, before))
        found.append(np.asarray(run(tables, q[:, ask]), np.float32))
    return found


@settings(max_examples=20, deadline=None)
@given(surveys())
def test_spans_are_the_rows_masks(survey):
    """Two independent descriptions of who sees whom in a tree, and an option's own branch."""
    layout = plan_layout([1, 2], 3, *survey)
    first = 2 + layout.common_length
    for spans, rows in (
        (all_tokens(layout), layout.rows),
        (answers_only(layout), layout.answer_rows),
    ):
        sees_TxS = np.zeros((rows.queries, first + len(layout.tree)), bool)
        sees_TxS[:, :first] = True
        L = rows.mask_RxLxS.shape[1]
        for query in range(rows.queries):
            r, row = divmod(query, L)
            keys = rows.keys_RxS[r][rows.mask_RxLxS[r, row]]
            sees_TxS[query, first + keys] = True
        np.testing.assert_array_equal(spans.mask()[-rows.queries :], sees_TxS)
    common = all_tokens(layout).mask()[: layout.common_length]
    np.testing.assert_array_equal(common, np.tri(*common.shape, k=2, dtype=bool))


def test_blocks_leave_out_what_nobody_sees():
    spans = all_tokens(some_layout(items=20)).padded(64, 64)
    table, mask = spans.blocks(64, 64), spans.mask()
    for i, (count, *keys) in enumerate(table.tolist()):
        seen = mask[64 * i : 64 * (i + 1)].reshape(64, -1, 64).any(axis=(0, 2))
        assert keys[:count] == np.flatnonzero(seen).tolist()
    assert table[:, 0].sum() < len(table) * (len(table) + 1) / 2, "no better than causal"


@pytest.mark.long
@pytest.mark.parametrize("kernel", FUSED)
def test_a_kernel_gives_what_xla_gives(kernel):
    layout = some_layout()
    assert layout.tokens_computed > 2 * pallas_gpu.BLOCK
    assert layout.tokens_computed > splash_tpu.BLOCK
    numbers = random_arrays(CONFIG, layout, chunk=2)
    for found, expected in zip(
        attended(layout, kernel, numbers), attended(layout, "xla", numbers), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.long
@pytest.mark.parametrize("kernel", FUSED)
def test_in_bfloat16_to_its_rounding(kernel):
    layout = some_layout()
    numbers = random_arrays(HALF, layout, chunk=2)
    for found, expected in zip(
        attended(layout, kernel, numbers, HALF), attended(layout, "xla", numbers, HALF), strict=True
    ):
        assert agree(found, expected)
        assert not agree(found[:, ::-1], expected), "the bound would let anything pass"


@functools.cache
def log_probs_with(kernel, before):
    items = [[1, 2, 3, 10 + i, *range(20, 22 + i)] for i in range(6)]
    options = [[[(40,)], [(41, 42)], [(43,), (44,)]]] * 6
    prompts = draw_prompts(3, 2, 4)
    layout = plan_layout(before, 4, items, options)
    context = prepare_items(CONFIG, PARAMS, layout)
    tables = attention_tables(CONFIG, layout, kernel, interpret=True)
    context = dataclasses.replace(context, attention=tables[0], answer_attention=tables[1])
    expected = plain(before, prompts, items, options)
    return np.asarray(
        jax.jit(option_log_probs, static_argnums=0)(CONFIG, context, prompts)
    ), expected


@pytest.mark.long
@pytest.mark.parametrize("before", [(), (7, 8)])
@pytest.mark.parametrize("kernel", FUSED)
def test_answers_are_those_of_the_plain_forward(kernel, before):
    assert_same(*log_probs_with(kernel, before))


@pytest.mark.parametrize("kernel", FUSED)
def test_gradients_are_those_of_xla(kernel):
    """The gradient control reads the same objective as the search."""
    layout = some_layout(items=3, stem=4)
    q, k, v, *before = random_arrays(CONFIG, layout, chunk=1)

    def slope(kernel):
        tables, _ = attention_tables(CONFIG, layout, kernel, interpret=True)
        score = lambda *qkv: jnp.sum(jnp.sin(attend(tables, *qkv, before)))  # noqa: E731
        return jax.jit(jax.grad(score, argnums=(0, 1, 2)))(q, k, v)

    for found, expected in zip(slope(kernel), slope("xla"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_there_is_to_choose_from():
    layout = some_layout(items=2)
    kernels = lambda *args: available(*args)[0]  # noqa: E731
    assert kernels(HALF, layout, 1, "gpu") == ("xla", "cudnn", "pallas")
    assert kernels(HALF, layout, 1, "tpu") == ("xla", "splash")
    assert kernels(HALF, layout, 1, "cpu") == ("xla",)
    assert kernels(HALF, layout, 2, "tpu") == ("xla",)
    assert kernels(CONFIG, layout, 1, "gpu") == ("xla",)
    after = plan_suffix_layout([[1, 2]], 2, [[3]], [[[(40,)]]])
    assert kernels(HALF, after, 1, "gpu") == ("xla",)


def test_a_new_kernel_is_offered_where_it_can_run(monkeypatch):
    class Mine:
        platforms = ("cpu", "gpu")

    monkeypatch.setitem(KERNELS._entries, "mine", Mine)
    layout = some_layout(items=2)
    assert available(HALF, layout, 1, "gpu")[0] == ("xla", "cudnn", "mine", "pallas")
    assert available(HALF, layout, 1, "cpu", "mine")[0] == ("xla", "mine")


def test_kernels_are_imported_where_they_are_used():
    """Scoring a survey on a laptop loads no kernel library, nor does listing the kernels."""
    code = (
        "import sys, jaxalign.methods.ask, jaxalign.answering.kernel_choice as choice\n"
        "assert choice.KERNEL_OPTIONS == ('auto', 'xla', 'cudnn', 'pallas', 'splash')\n"
        "print([name for name in sys.modules if name.startswith('jax.experimental.pallas')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_on_cpu_it_is_xla_and_nothing_else_can_be_asked_for():
    layout = some_layout(items=2)
    assert choose_kernel(HALF, layout, 2, 1).kernel == "xla"
    assert choose_kernel(HALF, layout, 2, 1, "xla").describe() == "attention by xla: as asked"
    with pytest.raises(UserError, match="`attention` splash: cpu has xla alone"):
        choose_kernel(HALF, layout, 2, 1, "splash")


@pytest.fixture
def tried(monkeypatch):
    """Kernels with made-up outputs and seconds."""
    found = {}

    def attempt(config, layout, kernel, numbers):
        if isinstance(found[kernel], Exception):
            raise found[kernel]
        return found[kernel]

    monkeypatch.setattr(choose, "_time", attempt)
    return found


def test_the_fastest_that_agrees(tried):
    right, wrong = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    tried |= {"xla": (right, 3e-3), "cudnn": (right * 1.001, 2e-3), "pallas": (wrong, 1e-3)}
    choice = fastest(HALF, some_layout(items=2), 1, ("xla", "cudnn", "pallas"))
    assert choice.kernel == "cudnn"
    assert choice.describe() == (
        "attention by cudnn: ms a layer: cudnn 2.000, xla 3.000; pallas disagrees with xla"
    )


def test_a_kernel_that_fails_is_left_out_and_said(tried):
    right = np.ones((2, 3), np.float32)
    tried |= {"xla": (right, 1.0), "splash": ValueError("no such\nunit")}
    choice = fastest(HALF, some_layout(items=2), 1, ("xla", "splash"))
    assert choice.kernel == "xla"
    assert choice.reason.endswith("splash fails (no such unit)")


@pytest.mark.long
def test_kernels_are_really_tried():
    """What the made-up ones above stand for, on a small layout, interpreted."""
    layout = some_layout(items=2, stem=3)
    choice = fastest(HALF, layout, 1, ("xla", *FUSED), interpret=True)
    assert choice.kernel in ("xla", *FUSED)
    assert "fails" not in choice.reason
    assert "disagrees" not in choice.reason
