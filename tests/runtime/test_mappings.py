"""A process that compiles many programs does not run out of memory mappings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxalign.runtime import mappings
from jaxalign.runtime.programs import Program, check_programs


def test_programs_are_forgotten_near_the_limit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    double = jax.jit(lambda x: x * 2)
    first = double(jnp.arange(3))
    used = mappings.mapping_count()
    assert used > 0
    monkeypatch.setattr(mappings, "mapping_limit", lambda: 4 * used)
    assert not mappings.forget_programs_near_limit()
    assert double._cache_size() == 1
    monkeypatch.setattr(mappings, "mapping_limit", lambda: 2 * used - 2)
    assert mappings.forget_programs_near_limit()
    assert double._cache_size() == 0
    assert mappings.mapping_count() < used
    assert (double(jnp.arange(3)) == first).all()


def test_a_run_makes_room_before_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = jax.jit(lambda x: x + 1)
    earlier(jnp.arange(3))
    monkeypatch.setattr(mappings, "mapping_limit", mappings.mapping_count)
    program = Program.of("sum", "test", jax.jit(jnp.sum), [jax.ShapeDtypeStruct((3,), "float32")])
    check_programs([program], jax.devices()[0])
    assert earlier._cache_size() == 0


def test_where_the_system_tells_nothing_programs_stay(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(mappings, "_LIMIT", tmp_path / "absent")
    monkeypatch.setattr(mappings, "_OWN", tmp_path / "absent")
    assert mappings.mapping_count() == 0
    assert mappings.mapping_limit() is None
    assert not mappings.forget_programs_near_limit(0.0)
