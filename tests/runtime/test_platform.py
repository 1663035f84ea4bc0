"""Programs that are traced for a platform that is not here."""

from __future__ import annotations

import jax

from jaxalign.runtime.platform import lowering_for, target_platform


def test_the_target_is_this_machine_unless_said_otherwise():
    assert target_platform() == jax.default_backend()
    with lowering_for("tpu"):
        assert target_platform() == "tpu"
        with lowering_for("cuda"):
            assert target_platform() == "gpu"
    assert target_platform() == jax.default_backend()


def test_a_function_is_traced_again_for_another_target():
    """A program that was compiled for this machine is not taken for another one's."""
    targets = []

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        targets.append(target_platform())
        return x + 1

    shape = jax.ShapeDtypeStruct((2,), "float32")
    for _ in range(2):
        program.lower(shape)
        with lowering_for("gpu"):
            program.lower(shape)
    assert targets == [jax.default_backend(), "gpu"]
