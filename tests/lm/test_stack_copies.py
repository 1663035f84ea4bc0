"""In bfloat16 on a CPU, no program copies or widens its weights or its cache.

Read from the compiled programs: nothing has the size of a stack of weights, of the output head or
of the cache but what passes on the parameter itself.
"""

from __future__ import annotations

import functools

import jax
import pytest

from experiments.bench.scaling import lower_search, values_layout
from jaxalign.answering.block_program import answer_program
from jaxalign.answering.blocks import Shape as BlockShape
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.decode_loop import decode_programs
from jaxalign.lm.lora import LoraConfig, abstract_adapter
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import program_params
from jaxalign.runtime.program_facts import ProgramFacts, read_program
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.program import train_program
from jaxalign.training.shape import Shape as RowShape
from jaxalign.training.step import TrainConfig

# Every matrix has its own number of elements, which no other array of the programs has.
CONFIG = LlamaConfig(1800, 192, 416, 6, 6, 2, 32, dtype="bfloat16", param_dtype="bfloat16")
ALONE = {(CONFIG.hidden_size, CONFIG.vocab_size), (CONFIG.vocab_size, CONFIG.hidden_size)}
LORA = LoraConfig(rank=3)
SLOTS, POSITIONS = 3, 128
FORMATS = [("stored", False), ("stored", True), ("int8", False)]

pytestmark = pytest.mark.long


@functools.cache
def decoding(weights: str, adapted: bool):
    params = program_params(CONFIG, mesh(), weights)
    if adapted:
        beside = abstract_adapter(CONFIG, LORA)
        params = params | {group: params[group] | beside[group] for group in beside}
    programs = decode_programs(
        CONFIG, Sampling(8), mesh(), slots=SLOTS, positions=POSITIONS, params=params
    )
    return params, programs


def mesh():
    return make_mesh(jax.devices()[:1])


def assert_no_copies(facts: ProgramFacts, arguments) -> None:
    """No instruction writes as many elements as a large matrix or stack among the arguments.

    A matrix that stands alone, such as the output head, is written once as bfloat16 where it is
    multiplied, like a layer's matrices; XLA has no free way from bits to numbers.
    """
    large = {x.shape for x in jax.tree.leaves(arguments) if x.ndim > 1 and x.size > 150_000}
    assert len(large) >= 4
    copies = [i for shape in large for i in facts.copies_of_shape(shape)]
    read = [i for i in copies if "bitcast-convert" in i.name and i.shapes[0].dims in ALONE]
    assert all(i.shapes[0].dtype == "bf16" for i in read)
    copies = [i for i in copies if i not in read]
    assert not copies, [(i.name, i.shapes, i.op_name) for i in copies]


@pytest.mark.parametrize(("weights", "adapted"), FORMATS)
def test_exact_answers(weights, adapted):
    shape = BlockShape(128, 192, 16, 96, 5, 16, 5, 1, 2)
    program, arguments = answer_program(
        CONFIG, mesh(), shape, weights=weights, lora=LORA if adapted else None
    )
    compiled = program.lower(*arguments).compile()
    assert_no_copies(read_program(compiled), arguments[2])


@pytest.mark.parametrize(("weights", "adapted"), FORMATS)
@pytest.mark.parametrize("name", ["prefill 128 tokens", f"decode {SLOTS} rows"])
def test_prefill_and_decoding(name, weights, adapted):
    """The cache is donated, and written in place."""
    params, programs = decoding(weights, adapted)
    program, arguments = programs[name]
    facts = read_program(program.lower(*arguments).compile(), {})
    assert_no_copies(facts, params)
    slots = next(x for x in arguments if hasattr(x, "replace") and hasattr(x, "keys"))
    caches = {x.shape for x in jax.tree.leaves(slots) if x.ndim >= 4}
    assert caches
    copies = [i for shape in caches for i in facts.copies_of_shape(shape)]
    written = ("dynamic-update-slice", "scatter")  # in place: a copy would be one more instruction
    copies = [i for i in copies if not any(name in i.name for name in written)]
    assert not copies, [(i.name, i.shapes, i.op_name) for i in copies]


def test_search():
    lowered = lower_search(CONFIG, values_layout(), mesh(), population=4, generations=2, chunk=2)
    assert_no_copies(read_program(lowered.compile()), program_params(CONFIG, mesh()))


def test_training_forward_and_backward():
    train = TrainConfig(batch=2, tokens_per_pass=256, remat=True)
    step, arguments = train_program(CONFIG, train, LORA, mesh(), RowShape(1, 2, 1, 80, 4, 80))
    assert_no_copies(read_program(step.lower(*arguments).compile()), arguments[1])
