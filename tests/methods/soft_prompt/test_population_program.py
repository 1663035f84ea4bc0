"""What the compiled search computes, copies, holds and exchanges; read from the program itself.

The model has honest proportions (8 layers of width 512, a vocabulary of 32,000) and exists in
shapes only. These are the properties that make a population cheap; none is a matter of seconds.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from experiments.bench.evolve import first_coordinate
from experiments.bench.scaling import SMALL, lower_search, values_layout
from jaxalign.answering.cost import candidate_flops, lower_bound
from jaxalign.lm.weights import weight_tree
from jaxalign.methods.soft_prompt.fitness import make_fitness
from jaxalign.methods.soft_prompt.search import abstract_inputs
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.evolve import make_evolution
from jaxalign.optim.strategy import Strategy
from jaxalign.runtime.program_facts import ProgramFacts, read_program
from jaxalign.runtime.sharding import make_mesh

EXACT = SMALL.replace(dtype="float32", param_dtype="float32")
GENERATIONS, CHUNK = 3, 4
DTYPES = ("float32", "bfloat16")
layout = functools.cache(values_layout)


@functools.cache
def search(population: int, devices: int, dtype: str) -> ProgramFacts:
    config = SMALL.replace(dtype=dtype, param_dtype=dtype)
    mesh = make_mesh(jax.devices()[:devices])
    lowered = lower_search(config, layout(), mesh, population, GENERATIONS, CHUNK)
    return read_program(lowered.compile())


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
def test_hardly_more_work_than_the_least(dtype):
    found = search(64, 1, dtype).dot_flops / (64 * GENERATIONS)
    plan = candidate_flops(SMALL, layout())
    assert found <= 1.05 * lower_bound(SMALL, layout()).total
    assert found == pytest.approx(plan.total, rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_product_with_the_whole_vocabulary(dtype):
    dots = search(64, 1, dtype).dots
    assert len(dots) > 10
    assert not [dot for dot in dots if SMALL.vocab_size in dot.shape.dims]


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weight_stack_is_copied(dtype):
    """Neither as it is nor wider: in bfloat16 they enter a CPU's programs as bits."""
    facts = search(64, 1, dtype)
    shapes = {w.shape for n, w in weight_tree(SMALL)["layers"].items() if not n.endswith("norm")}
    copies = [i for shape in shapes for i in facts.copies_of_shape(shape)]
    assert not copies, [(i.name, i.shapes, i.op_name) for i in copies]


def test_weights_are_arguments_once():
    """Each stack enters the program as a parameter and nowhere as a constant."""
    for name, weight in weight_tree(SMALL)["layers"].items():
        found = [
            i for i in search(64, 1, "float32").instructions_shaped(weight.shape) if i.times == 1
        ]
        assert "parameter" in {i.opcode for i in found}, name
        assert "constant" not in {i.opcode for i in found}, name


@functools.cache
def evaluation_temporaries(population: int) -> int:
    """Of decoding, answering and scoring alone."""
    fitness = make_fitness(EXACT, CHUNK)
    candidates = jax.ShapeDtypeStruct((population, prompt_numbers()), jnp.float32)
    entry = jax.ShapeDtypeStruct((population,), jnp.int32)
    prompt = SoftPromptConfig(length=layout().prompt_length)
    inputs = abstract_inputs(EXACT, layout(), prompt, make_mesh(jax.devices()[:1]))
    lowered = jax.jit(fitness).lower(candidates, entry, inputs)
    return read_program(lowered.compile()).memory.temporaries


def test_weights_in_8_bits_are_planned_as_such():
    """From shapes, as the memory check sees them: int8 matrices with a scale for each output."""
    prompt = SoftPromptConfig(length=layout().prompt_length)
    mesh = make_mesh(jax.devices()[:1])
    inputs = abstract_inputs(SMALL, layout(), prompt, mesh, weights="int8")
    for part in (inputs.items.params["layers"], inputs.items.params["last"]):
        assert part["down"].dtype == jnp.int8
        assert part["down_scale"].shape[-1] == SMALL.hidden_size


def search_temporaries(population: int) -> int:
    """Of asking and telling alone."""
    mesh, strategy = make_mesh(jax.devices()[:1]), Strategy(population=population)
    evolution = make_evolution(strategy, prompt_numbers(), first_coordinate, mesh, [("USA", 0)])
    return read_program(evolution.lower(GENERATIONS).compile()).memory.temporaries


def prompt_numbers() -> int:
    return layout().prompt_length * SMALL.hidden_size


@pytest.mark.long
def test_evaluations_memory_does_not_grow_with_the_population():
    """Not by a byte: a chunk is decoded, answered and scored in the same buffers as the last."""
    assert evaluation_temporaries(8) == evaluation_temporaries(512)


@pytest.mark.long
def test_what_the_population_itself_takes():
    """Asking and telling hold 7 vectors of Z a candidate at their peak, as XLA:CPU's buffer
    assignment lists them: candidates, members before and after asking as the loop over countries
    carries them, and threefry's two words, each twice in the loop over its rounds. Beside them the
    chances of members to be partners, [E, E]."""
    for population in (64, 512):
        vectors = 4 * population * prompt_numbers()
        assert search_temporaries(population) < 7 * vectors * 1.02 + 4 * population**2


@pytest.mark.long
@pytest.mark.parametrize("population", [64, 512])
def test_the_search_holds_no_more_than_its_two_parts(population):
    """Evaluation's buffers, flat, and the population's; each may lie where the other has been."""
    together = search(population, 1, "float32").memory
    assert together.temporaries <= evaluation_temporaries(8) + search_temporaries(population)
    fewer = search(64, 1, "float32").memory
    grown = together.arguments - fewer.arguments
    assert grown <= (4 * prompt_numbers() + 8) * (population - 64)


def test_only_asking_and_telling_run_an_unknown_number_of_times():
    """The loops over countries, inside the one over generations; its name is JAX's affair."""
    facts = search(64, 1, "float32")
    (name,) = {name.removesuffix("/while") for name in facts.unknown_loops}
    assert name.removeprefix("jit(advance)/while/body/") in ("closed_call", "eval_jaxpr")
    assert None not in {dot.times for dot in facts.dots}


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_device_does_its_share_and_gathers_fitness_alone(devices, dtype):
    alone, among = search(64, 1, dtype), search(64, len(devices), dtype)
    assert among.dot_flops == pytest.approx(alone.dot_flops / 8, rel=0.005)
    # A gathering "among one device" is no exchange.
    assert {c.group_size for c in alone.collectives} <= {1}
    assert {c.kind for c in among.collectives} == {"all-gather"}
    # Four bytes a candidate and generation; five metrics an entry and generation, once a dispatch.
    fitness, metrics = 4 * 64 * GENERATIONS, 5 * 4 * len(devices) * GENERATIONS
    assert among.collective_bytes <= fitness + metrics
    assert {c.group_size for c in among.collectives} == {8}
