"""The facts of compiled programs, against FLOPs and bytes worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from jaxalign.runtime.memory import Memory
from jaxalign.runtime.program_facts import read_hlo, read_program
from jaxalign.runtime.sharding import make_mesh, replicated


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def program(function, *arguments, **options):
    return read_program(jax.jit(function).lower(*arguments).compile(), **options)


def matmul_scan(x, w):
    return jax.lax.scan(lambda x, layer: (x @ layer, None), x, w)[0]


def module(*lines, header=""):
    """Return a module's text with one ENTRY computation."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule jit_f{header}\n\nENTRY %main (a: f32[]) -> f32[] {{\n{body}\n}}\n"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matrix_product(dtype):
    facts = program(jnp.matmul, array(32, 64, dtype=dtype), array(64, 48, dtype=dtype))
    (dot,) = facts.dots
    assert (dot.flops, dot.times, dot.shape.dims) == (2 * 32 * 64 * 48, 1, (32, 48))
    assert dot.op_name.endswith("dot_general")
    assert facts.dot_flops == 2 * 32 * 64 * 48
    assert facts.unknown_loops == facts.collectives == facts.other_calls == ()


def test_einsum_with_batch_dimensions():
    facts = program(
        lambda q, k: jnp.einsum("brlkgh,brskh->bkgrls", q, k),
        array(2, 3, 8, 2, 2, 16),
        array(2, 3, 40, 2, 16),
    )
    assert facts.dot_flops == 2 * (2 * 3 * 8 * 2 * 2) * 40 * 16


def test_a_loop_counts_each_round_and_cost_analysis_does_not():
    compiled = jax.jit(matmul_scan).lower(array(16, 32), array(5, 32, 32)).compile()
    facts, once = read_program(compiled), 2 * 16 * 32 * 32
    assert [(d.flops, d.times) for d in facts.dots] == [(once, 5)]
    assert compiled.cost_analysis()["flops"] < 2 * once, "then this module is no longer needed"


def test_nested_loops_multiply():
    def outer(xs, w):
        return jax.lax.map(lambda x: matmul_scan(x, w), xs)

    facts = program(outer, array(7, 16, 32), array(5, 32, 32))
    assert facts.dot_flops == 7 * 5 * 2 * 16 * 32 * 32


def test_trip_count_from_the_condition():
    compiled = jax.jit(matmul_scan).lower(array(16, 32), array(5, 32, 32)).compile()
    text = compiled.as_text()
    stated = '"known_trip_count":{"n":"5"}'
    assert stated in text
    assert read_hlo(text.replace(stated, '"nothing":0')).dot_flops == 5 * 2 * 16 * 32 * 32


@given(st.integers(-3, 5), st.integers(2, 9), st.integers(1, 4))
@settings(deadline=None, max_examples=8)
def test_trip_count_with_start_and_step(start, rounds, step):
    """The step divides the distance: elsewhere XLA itself is wrong (openxla/xla#48454)."""

    def loop(x):
        def advance(carry):
            i, x = carry
            return i + step, x @ x

        end = start + rounds * step
        return jax.lax.while_loop(lambda carry: carry[0] < end, advance, (jnp.int32(start), x))

    text = jax.jit(loop).lower(array(16, 16)).compile().as_text()
    for found in (text, text.replace("known_trip_count", "nothing")):
        assert read_hlo(found).dot_flops == rounds * 2 * 16**3


def test_unknown_loops_are_reported_and_can_be_given():
    def loop(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    compiled = jax.jit(loop).lower(array(16, 16), array(dtype="int32")).compile()
    facts = read_program(compiled)
    assert facts.unknown_loops == ("jit(loop)/while",)
    assert facts.dots[0].times is None
    with pytest.raises(ValueError, match=r"unknown length.*jit\(loop\)/while"):
        _ = facts.dot_flops
    given_count = read_program(compiled, trips={"jit(loop)/while": 6})
    assert given_count.dot_flops == 6 * 2 * 16**3
    assert given_count.unknown_loops == ()


def test_a_known_length_is_not_taken_for_a_given_one():
    """Both loops share a name, like those over generations and chunks on a single chip."""

    def loops(x, n):
        for count in (n, 5):
            x = jax.lax.fori_loop(0, count, lambda _, x: x @ x, x)
        return x

    text = jax.jit(loops).lower(array(16, 16), array(dtype="int32")).compile().as_text()
    for found in (text, text.replace("known_trip_count", "nothing")):
        assert read_hlo(found, {"jit(loops)/while": 3}).dot_flops == (3 + 5) * 2 * 16**3


def test_a_counter_that_the_body_bends_is_not_trusted():
    def loop(x):
        def advance(carry):
            i, x = carry
            return i + (x[0, 0] > 0).astype(jnp.int32) + 1, x @ x

        return jax.lax.while_loop(lambda carry: carry[0] < 5, advance, (jnp.int32(0), x))

    assert program(loop, array(16, 16)).dots[0].times is None


def test_of_a_conditional_the_dearest_branch():
    facts = program(
        lambda p, x: jax.lax.cond(p, lambda x: x @ x, lambda x: x @ x @ x, x),
        array(dtype="bool"),
        array(16, 16),
    )
    assert facts.dot_flops == 2 * 2 * 16**3


def test_collectives_and_their_bytes(devices):
    mesh = make_mesh(devices)
    split, whole = jax.sharding.NamedSharding(mesh, PartitionSpec("population")), replicated(mesh)

    def gather(x):
        return jax.lax.with_sharding_constraint(x, whole)

    facts = program(gather, jax.ShapeDtypeStruct((64,), "float32", sharding=split))
    (gathered,) = facts.collectives
    assert (gathered.kind, gathered.bytes, gathered.times, gathered.group_size) == (
        "all-gather",
        4 * 64,
        1,
        8,
    )
    assert facts.collective_bytes == 4 * 64
    total = program(jnp.sum, jax.ShapeDtypeStruct((64,), "float32", sharding=split))
    assert [c.kind for c in total.collectives] == ["all-reduce"]


def test_memory_and_shapes():
    facts = program(lambda x, y: (x @ y, x.T + 1), array(32, 64), array(64, 48))
    assert facts.memory == Memory(
        arguments=4 * (32 * 64 + 64 * 48),
        outputs=4 * (32 * 48 + 32 * 64) + 16,
        aliased=0,
        temporaries=facts.memory.temporaries,
    )
    assert [i.opcode for i in facts.instructions_shaped((32, 64))] == ["parameter"]
    assert not facts.instructions_shaped((32, 64), frozenset(("copy",)))
    copies = facts.copies_of_shape((32, 64))
    assert copies, "the transposed sum has as many elements"
    assert "parameter" not in {i.opcode for i in copies}


def test_convolution_of_a_picture():
    # 3x3 taps on 8x8 positions, one ring of padding: 22 of 24 pairs along each axis are inside.
    facts = program(
        lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"), array(1, 3, 8, 8), array(4, 3, 3, 3)
    )
    assert facts.dot_flops == 2 * 22 * 22 * 3 * 4


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # What libtpu's compiler (v5e) writes for products of known size.
        (
            "%c = f32[256,256]{1,0:T(8,128)} convolution(%x, %y), dim_labels=bf_io->bf, "
            "operand_precision={highest,highest}",
            2 * 256 * 128 * 256,
        ),
        (
            "%c = f32[2,2,3,40,8,2]{3,4,5,2,1,0:T(8,128)} convolution(%k, %q), "
            "window={size=2x2x3x2 stride=1x1x2x1 pad=0_0x0_0x0_0x1_1 "
            "lhs_dilate=2x2x3x1 rhs_reversal=0x0x0x1}, "
            "dim_labels=02b1f3_02o13i->012bf3",
            2 * (2 * 3 * 8 * 2 * 2) * 40 * 128,
        ),
        # Grouped: 4 groups of features, each output feature sees 2 of 8; and 4 groups of batch.
        (
            "%c = f32[5,6,8]{2,1,0} convolution(%g, %h), window={size=1}, dim_labels=b0f_0io->b0f, "
            "feature_group_count=4",
            2 * 5 * 6 * 2 * 8,
        ),
        (
            "%c = f32[2,6,8]{2,1,0} convolution(%m, %n), window={size=1}, dim_labels=b0f_0io->b0f, "
            "batch_group_count=4",
            2 * 2 * 6 * 3 * 8,
        ),
        # GPU and CPU libraries.
        (
            "%c = (f32[4,32,48]{2,1,0}, s8[4194304]{0}) custom-call(%u, %v), "
            'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{'
            '"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],'
            '"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],'
            '"rhs_batch_dimensions":["0"]}}}',
            2 * 4 * 32 * 64 * 48,
        ),
        (
            '%c = f32[64,48]{1,0} custom-call(%s, %t), custom_call_target="__onednn$matmul", '
            'backend_config={"onednn_matmul_config":{"transpose_a":true,"transpose_b":false}}',
            2 * 64 * 32 * 48,
        ),
    ],
)
def test_products_of_other_compilers(line, flops):
    shapes = {
        "x": (256, 128),
        "y": (128, 256),
        "q": (2, 3, 8, 2, 2, 128),
        "k": (2, 3, 40, 2, 128, 1),
        "g": (5, 6, 8),
        "h": (1, 2, 8),
        "m": (8, 6, 3),
        "n": (1, 3, 8),
        "u": (4, 32, 64),
        "v": (4, 64, 48),
        "s": (32, 64),
        "t": (32, 48),
    }
    parameters = [
        f"%{name} = f32[{','.join(map(str, dims))}]{{0}} parameter({i})"
        for i, (name, dims) in enumerate(shapes.items())
    ]
    assert read_hlo(module(*parameters, line)).dot_flops == flops


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups={}", 8),
    ],
)
def test_group_sizes(groups, size):
    lines = (
        "%a = f32[16]{0} parameter(0)",
        f"%r = (f32[16]{{0}}, f32[128]{{0}}) all-gather-start(%a), {groups}, dimensions={{0}}",
        "%d = f32[128]{0} all-gather-done(%r)",
    )
    (found,) = read_hlo(module(*lines, header=", num_partitions=8")).collectives
    assert (found.kind, found.bytes, found.group_size) == ("all-gather", 4 * 128, size)


def test_library_calls_that_are_no_products_are_listed():
    text = module('%c = f32[] custom-call(), custom_call_target="__cudnn$fmhaSoftmax"')
    assert read_hlo(text).other_calls == ("__cudnn$fmhaSoftmax",)


def test_text_that_is_no_module():
    with pytest.raises(ValueError, match="no ENTRY"):
        read_hlo("hello")
