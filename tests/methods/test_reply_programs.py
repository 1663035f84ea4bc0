"""The list of programs that write replies has the arguments that the queue will pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxalign.lm.generate import Sampling
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.mesh import weight_bytes
from jaxalign.lm.model import open_model
from jaxalign.methods.reply_programs import reply_programs
from jaxalign.runtime.programs import Program
from jaxalign.runtime.sharding import make_mesh


def programs(**changes) -> dict[str, Program]:
    given = {"replies": 100, "prompt_tokens": 90, "batch_size": 8, "available": None}
    given |= {"stage": "answer", **changes}
    mesh = make_mesh(jax.devices()[:1])
    listed = reply_programs(open_model(), mesh, Sampling(max_new_tokens=16), **given)
    return {program.name: program for program in listed}


def inputs(program: Program) -> list[tuple[tuple[int, ...], jnp.dtype]]:
    return [(x.shape, x.dtype) for x in jax.tree.leaves(program.lower().in_avals)]


def test_every_program_of_the_queue_is_listed():
    listed = programs(what="the survey")
    expected = ("prefill 1024 tokens", "prefill 128 tokens", "fork", "start", "decode 8 rows")
    assert {f"{name}, the survey" for name in expected} <= set(listed)
    held = weight_bytes(open_model().config)
    assert listed["fork, the survey"].beside_bytes == held
    assert listed["start, the survey"].beside_bytes == 0
    assert listed["decode 8 rows, the survey"].loop_trips == 15


def test_few_slots_where_memory_is_short_and_one_where_there_is_none():
    held = weight_bytes(open_model().config)
    assert "decode 1 rows" in programs(available=held // 2)
    assert "decode 8 rows" in programs(available=held + 2**30)


def test_weights_adapter_and_soft_prompts_are_arguments():
    """As they lie in memory: a program for other arguments would be compiled a second time."""
    plain = inputs(programs()["decode 8 rows"])
    small = inputs(programs(weights="int8")["decode 8 rows"])
    assert not any(dtype == jnp.int8 for _, dtype in plain)
    assert sum(dtype == jnp.int8 for _, dtype in small) > 5
    adapted = inputs(programs(lora=LoraConfig())["decode 8 rows"])
    assert len(adapted) > len(plain)
    width = open_model().config.hidden_size
    assert ((7, width), jnp.float32) in inputs(programs(extra_rows=7)["prefill 128 tokens"])
    assert ((7, width), jnp.float32) not in inputs(programs()["prefill 128 tokens"])
