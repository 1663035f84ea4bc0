"""Programs of a run: compiled once, counted with what lives beside them, refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxalign.core.errors import UserError
from jaxalign.runtime.programs import (
    Program,
    check_programs,
    measure_program,
    refusal_text,
    stated_memory,
)

MiB = 2**20
SQUARE = jax.ShapeDtypeStruct((256, 256), jnp.float32)  # a quarter of a MiB


def square(name: str, stage: str = "search", **rest) -> Program:
    return Program.of(name, stage, jax.jit(lambda x: x @ x), (SQUARE,), **rest)


def device(available: int | None) -> SimpleNamespace:
    stats = {} if available is None else {"bytes_limit": available}
    return SimpleNamespace(memory_stats=lambda: stats, platform="tpu", device_kind="a chip")


def test_what_else_lives_on_the_device_is_added():
    alone, beside = square("a"), square("b", beside_bytes=5 * MiB)
    needs = check_programs([alone, beside], device(None))
    assert needs[0].memory.arguments == MiB // 4
    assert needs[1].bytes - needs[0].bytes == 5 * MiB
    assert needs[1].largest_part == ("what else lives there", 5 * MiB)


def test_a_program_is_lowered_and_compiled_once():
    calls = []
    inner = square("a").lower
    program = Program("a", "search", lambda: calls.append(1) or inner())
    check_programs([program], device(None))
    assert program.compiled is program.compiled
    assert calls == [1]


def test_the_program_that_does_not_fit_is_named_in_one_line():
    fits = square("answers")
    does_not = square("generations", beside_bytes=8 * MiB, remedy="give a smaller `population`")
    with pytest.raises(UserError) as refused:
        check_programs([fits, does_not, square("never reached")], device(8 * MiB))
    message = str(refused.value)
    assert "\n" not in message
    assert "generations (stage 'search') needs 0.01 GiB on a chip, which has 0.01 GiB" in message
    assert "what else lives there" in message
    assert message.endswith("; give a smaller `population`")


def test_progress_names_the_program_that_is_being_compiled(caplog):
    seen = []
    with caplog.at_level("DEBUG", "jaxalign"):
        check_programs([square("a"), square("b")], device(2**30), seen.append)
    assert [(p.done, p.total, dict(p.fields)) for p in seen] == [
        (0, 2, {"compiling": "a"}),
        (1, 2, {"compiling": "b"}),
        (2, 2, {}),
    ]
    assert caplog.messages[0].startswith("2 programs compiled, all fit; the largest is a (stage")


def test_a_compilers_refusal_is_one_line():
    def lower():
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Used 20.0G of 15.75G hbm. Exceeded\nmore lines"
        )

    need = measure_program(Program("decode", "write", lower, remedy="buy more"))
    assert need.memory is None
    assert need.refused_bytes == 20 * 2**30
    text = refusal_text(need, "v5e", int(15.75 * 2**30))
    assert "decode (stage 'write') needs 20.00 GiB on v5e, which has 15.75 GiB" in text
    assert text.endswith("; buy more")


def test_other_refusals_keep_the_compilers_first_line():
    def lower():
        raise jax.errors.JaxRuntimeError("INTERNAL: no such thing\nmore lines")

    with pytest.raises(UserError, match=r"the compiler refuses it: INTERNAL: no such thing$"):
        check_programs([Program("decode", "write", lower)], device(1))
    assert stated_memory("INTERNAL: no such thing") is None
