"""Plans without a TPU: arithmetic and messages; and, with libtpu, a row of the table."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.cli import run_command
from jaxalign.commands.plan import PlanSettings, command, plan
from jaxalign.commands.plan.estimate import (
    TABLE_COLUMNS,
    DoesNotFitError,
    Estimate,
    make_estimate,
    read_refusal,
    report_rows,
    table_row,
)
from jaxalign.commands.plan.fit import largest_population, smallest_slice
from jaxalign.commands.plan.planning import check, compile_program, lower, read_model
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.mesh import MeshChoice, weight_bytes
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.lm.transformer import project
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.strategy import Strategy
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runtime.memory import Memory
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.program_facts import Collective, ProgramFacts, read_hlo, read_program
from jaxalign.runtime.sharding import make_mesh
from jaxalign.runtime.topology import CHIPS, described_devices, parse_topology
from jaxalign.runtime.traffic import memory_traffic_bytes
from jaxalign.training.step import TrainConfig

ROOT = Path(__file__).parents[2]
GIB = 2**30
V5E = parse_topology("v5e:16x16")
MESH = MeshChoice(128, 1, 2, "two parts")
# The pocket model's tokens, two layers, four heads.
TINY = LlamaConfig(2048, 32, 48, 2, 4, 2, 8)


def facts(temporaries: int = 2 * GIB, times: int = 10) -> ProgramFacts:
    """A program of two units: 788 TFLOP and two kinds of exchange."""
    return ProgramFacts(
        instructions=(),
        dots=(),
        collectives=(
            Collective("all-reduce", 1_000_000_000, times, 2, ""),
            Collective("all-gather", 4_000, 2, 4, ""),
        ),
        unknown_loops=(),
        other_calls=(),
        memory=Memory(8 * GIB, GIB, GIB, temporaries),
    )


def estimate(**changes) -> Estimate:
    made = make_estimate(V5E, "population", "generation", 2, MESH, facts(), 819 * 10**9, 2e14, 60.0)
    return dataclasses.replace(made, flops=394e12, **changes)


def test_topologies() -> None:
    assert (V5E.name, V5E.num_chips, V5E.is_tpu) == ("v5e:16x16", 256, True)
    assert parse_topology("V5P:4x4x8").num_chips == 128
    assert not parse_topology("h200:8").is_tpu
    for chip in CHIPS.values():
        sizes = [topology.num_chips for topology in chip.topologies()]
        assert sizes == sorted(sizes)
        assert all(parse_topology(topology.name) == topology for topology in chip.topologies())


def test_a_computer_without_an_accelerator() -> None:
    cpu = parse_topology("cpu:16")
    assert (cpu.name, cpu.num_chips, cpu.platform, cpu.is_tpu) == ("cpu:16", 1, "cpu", False)
    # The process and the compiler take some of the memory.
    assert 15 * GIB < cpu.program_bytes < 16 * GIB
    with pytest.raises(UserError, match="peak rates of a CPU are not known; give an `experiment`"):
        plan(topology="cpu:16")


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:16", "v5p:4x4", "v5e:0x4", "h200:2x4", ""])
def test_topologies_that_do_not_exist(name: str) -> None:
    with pytest.raises(UserError, match="topology"):
        parse_topology(name)


def test_roofline() -> None:
    """394 TFLOP at 197 a second, 410 GB at 819 a second, a ring's bytes over one link."""
    made = estimate()
    assert made.seconds == pytest.approx(
        # Five units of 1 GB all-reduced among two leave a chip once; 3/4 of 4 kB gathered.
        {"matrix products": 2.0, "memory traffic": 0.5, "exchanges": (5e9 + 3e3) / 50e9}
    )
    assert made.bound_by == "matrix products"
    assert (made.least_seconds, made.most_seconds) == pytest.approx((2.0, 2.60000006))
    assert made.chip_hours(1000, 0.5) == pytest.approx(256 * 1000 * 2 / 0.5 / 3600)
    assert made.needed_bytes == 10 * GIB
    assert [(e.kind, e.group_size, e.bytes) for e in made.exchanges] == [
        ("all-gather", 4, 4000.0),
        ("all-reduce", 2, 5e9),
    ]


def test_report_names_every_number() -> None:
    rows = dict(report_rows(estimate(), 1000, 0.5))
    assert rows["together"] == "10.00 GiB of 15.75 GiB"
    assert rows["output"] == "1.00 GiB, of which in place 1.00 GiB"
    assert rows["FLOPs a generation"] == "394.00 T compiled, 200.00 T by the formula (1.970)"
    assert rows["all-reduce among 2"] == "5.00 GB a generation"
    assert rows["all-gather among 4"] == "4.00 kB a generation"
    assert rows["memory traffic a generation"] == "409.50 GB"
    assert "bound by matrix products" in rows["roofline, a generation"]
    assert "142.2 chip-hours at the roofline; 284.4 at 50%" in rows["1,000 generations"]
    batches = dict(report_rows(estimate(unit="batch"), 3, 1.0))
    assert "3 batches" in batches


def test_table_row_has_a_cell_for_every_column() -> None:
    row = table_row("llama3-8b", estimate())
    assert row == (
        "| llama3-8b | v5e:16x16 | 128 × 1 × 2 | 8.00 GiB | 2.00 GiB | 63% | 394.0 | 200.0 "
        "| 5.00 GB | 2.000 s | matrix products |"
    )
    assert row.count("|") == len(TABLE_COLUMNS) + 1
    assert row.replace("63%", "64%") != table_row("llama3-8b", estimate(compile_seconds=1.0))[:-1]


def test_a_program_larger_than_the_chip_is_refused() -> None:
    with pytest.raises(DoesNotFitError, match=r"the program needs 18\.00 GiB .* has 15\.75 GiB"):
        make_estimate(V5E, "population", "generation", 2, MESH, facts(10 * GIB), 0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (17.58G) exceeds available HBM (15.75G).",
            r"v5e:16x16, population: out of memory: HLO temporaries needs 17\.58 GiB on each chip, "
            r"which has 15\.75 GiB .*`model_parallel`",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 512.50M of 15.75G hbm. Exceeded hbm capacity by 1.26G.",
            r"the program needs 0\.50 GiB on each chip, which has 15\.75 GiB",
        ),
    ],
)
def test_the_compilers_memory_message_is_made_readable(message: str, words: str) -> None:
    refusal = read_refusal(V5E, "population", message)
    assert isinstance(refusal, DoesNotFitError)
    with pytest.raises(UserError, match=words):
        raise refusal


def test_other_refusals_keep_the_compilers_first_line() -> None:
    refusal = read_refusal(V5E, "train", "UNIMPLEMENTED: no such thing\nsecond line")
    assert not isinstance(refusal, DoesNotFitError)
    assert str(refusal).endswith("train: the compiler refuses it: UNIMPLEMENTED: no such thing")


# What moves between a chip and its memory


def traffic(function, *arguments) -> int:
    compiled = jax.jit(function).lower(*arguments).compile()
    return memory_traffic_bytes(read_program(compiled), compiled.as_text())


def test_traffic_of_layers_is_each_layers_weights_once() -> None:
    """A loop over a stack of layers reads one layer in each iteration, not the whole stack."""
    stack = jax.ShapeDtypeStruct((16, 256, 256), jnp.float32)
    x = jax.ShapeDtypeStruct((8, 256), jnp.float32)

    def forward(x, stack):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    weights, activations = 16 * 256 * 256 * 4, 8 * 256 * 4
    moved = traffic(forward, x, stack)
    assert weights <= moved <= 3 * weights + 100 * activations  # a CPU copies the slice first


HLO = """HloModule small, is_scheduled=true

%fused (p0: f32[64,1024], p1: f32[1,1024], p2: s32[]) -> f32[64,1024] {
  %p0 = f32[64,1024]{1,0} parameter(0)
  %p1 = f32[1,1024]{1,0:T(8,128)S(1)} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %put = f32[64,1024]{1,0} dynamic-update-slice(%p0, %p1, %p2, %zero)
}

%slicing (q0: f32[64,1024], q1: s32[]) -> f32[1,1024] {
  %q0 = f32[64,1024]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %nought = s32[] constant(0)
  %row = f32[1,1024]{1,0} dynamic-slice(%q0, %q1, %nought), dynamic_slice_sizes={1,1024}
  ROOT %twice = f32[1,1024]{1,0} add(%row, %row)
}

ENTRY %main (a: f32[64,1024], i: s32[]) -> f32[64,1024] {
  %a = f32[64,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %taken = f32[1,1024]{1,0:T(8,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%slicing
  %room = f32[64,1024]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %out = f32[64,1024]{1,0} fusion(%a, %taken, %i), kind=kLoop, calls=%fused
}
"""


def test_traffic_of_slices_updates_and_what_stays_on_the_chip() -> None:
    """A row of 4 kB is read into VMEM and written from there in place, with an index each time."""
    assert memory_traffic_bytes(read_hlo(HLO), HLO) == 4096 + 4 + 4096 + 4


# The programs, compiled for simulated devices: the same code as for described ones


def program(name: str, dtype: str = "bfloat16", **sizes: int) -> tuple[Estimate, LlamaConfig]:
    settings = PlanSettings(
        program=(name,),
        items=3,
        strategy=Strategy(population=16),
        chunk=2,
        prompt=SoftPromptConfig(length=4),
        sampling=Sampling(max_new_tokens=4),
        decode_batch=2,
        decode_prompt=16,
        train=TrainConfig(batch=4, tokens_per_pass=256),
        lora=LoraConfig(rank=2),
    )
    vocabulary = Tokenizer.load(MODEL_FOLDER).vocab_size
    llama = TINY.replace(vocab_size=vocabulary, dtype=dtype, param_dtype=dtype)
    mesh = make_mesh(**sizes)
    choice = MeshChoice(mesh.shape["population"], mesh.shape["data"], mesh.shape["model"], "")
    return compile_program(V5E, choice, lower(settings, llama, name, mesh)), llama


@pytest.mark.long
@pytest.mark.parametrize("model", [1, 2])
def test_population_program(devices, model: int) -> None:
    """Compiled FLOPs match the formula; candidates exchange their fitness, and devices metrics."""
    # In bfloat16 a CPU computes attention in parts, which the formula, a chip's, does not count.
    made, llama = program("population", "float32", model=model)
    assert made.flops == pytest.approx(made.formula_flops, rel=0.02)
    across = [e for e in made.exchanges if e.group_size != model]
    fitness, metrics = 16 * 4, 5 * 4 * len(devices) / model
    assert sum(e.bytes for e in across) <= fitness + metrics
    assert made.memory.arguments >= weight_bytes(llama, model)
    among_model = [e for e in made.exchanges if e.group_size == model and model > 1]
    assert {e.kind for e in among_model} <= {"all-reduce"}  # never a weight gathered
    assert bool(among_model) == (model > 1)


@pytest.mark.long
@pytest.mark.parametrize("name", ["decode", "train"])
def test_other_programs(devices, name: str) -> None:
    made, _ = program(name, population=1, data=4, model=2)
    assert made.unit == "step"
    # The formula leaves out attention, which counts in a model this small, and in training counts
    # the last layer and all padding whole.
    assert 0.4 < made.flops / made.formula_flops < 2.0
    assert made.needed_bytes > 0


# Fitting


def fake(population: int, bytes_each: int = 2**20, topology=V5E) -> Estimate:
    m = Memory(8 * GIB, 0, 0, population * bytes_each)
    if 8 * GIB + m.temporaries > topology.chip.memory_bytes:
        raise DoesNotFitError(f"{population}")
    return estimate(memory=m, topology=topology)


def test_largest_population(caplog) -> None:
    """The limit is 7,936 candidates of 1 MiB beside 8 GiB; it is found in a few compilations."""
    caplog.set_level("INFO", "jaxalign")
    for start in (64, 4096, 100_000):
        tried: list[int] = []

        def attempt(population: int, tried=tried) -> Estimate:
            tried.append(population)
            return fake(population)

        found = largest_population(start, attempt)
        assert 0.94 * 7936 <= found.memory.temporaries / 2**20 <= 7936
        assert len(tried) <= 10
    assert "do not fit" in caplog.text


def test_population_without_an_edge_and_without_a_fit(caplog) -> None:
    caplog.set_level("INFO", "jaxalign")
    assert largest_population(4096, lambda p: fake(p, 1)).memory.temporaries == 2**20
    assert "memory hardly depends on the population" in caplog.text
    with pytest.raises(UserError, match="not even 64 candidates fit"):
        largest_population(4096, lambda p: fake(p, GIB))


def test_smallest_slice(caplog) -> None:
    caplog.set_level("INFO", "jaxalign")

    def attempt(topology) -> Estimate:
        if topology.num_chips < 16:
            raise DoesNotFitError("too few")
        return estimate(topology=topology)

    assert smallest_slice(V5E, attempt).topology.name == "v5e:4x4"
    assert caplog.text.count("is not enough: too few") == 3

    def never(topology) -> Estimate:
        raise UserError("no")

    with pytest.raises(UserError, match="no slice of v5e fits"):
        smallest_slice(V5E, never)


# Bad input, before anything long starts


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topology": "v5e:16"}, "2 dimensions"),
        ({"model": "llama9"}, "llama9: no such folder or file; presets are llama3-8b"),
        ({"model": "llama3-70b"}, "weights do not fit"),
        ({"items": 0}, "`items` 0"),
        ({"program": ()}, "`program`"),
        ({"program": ("train",), "fit": "slice"}, "leave out `program`"),
        ({"model_parallel": 3}, "`model_parallel` 3 does not divide"),
        ({"prompt": SoftPromptConfig(placement="after")}, "cannot be planned yet"),
        ({"attention": "pallas"}, "`attention` pallas: weights split over devices leave"),
        (
            {"topology": "v5p:2x2x1", "attention": "pallas"},
            "`attention` pallas: tpu has xla, splash",
        ),
    ],
)
def test_bad_input(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(**changes)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--efficiency", "1.5"), "error: --efficiency 1.5: above 0"),
        (("--efficiency", "nan"), "error: --efficiency nan: above 0"),
        (("--generations", "0"), "error: --generations 0: at least 1"),
        (("--mesh-model", "3"), "error: --mesh-model 3 does not divide"),
        (("--decode-batch", "0"), "error: --decode-batch 0: at least 1"),
        (("--population", "1"), "error: --population 1"),
        (("--topology", "v5e:16"), "error: --topology 'v5e:16': v5e has 2 dimensions"),
    ],
)
def test_the_command_names_flags(flags: tuple[str, ...], said: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command("plan", flags)
    assert capsys.readouterr().err.startswith(said)


def test_the_command_prints_what_the_function_returns(monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "plans", lambda config: iter([estimate(), estimate(unit="step")]))
    run_command("plan", ("--generations", "3", "--table"))
    out = capsys.readouterr().out
    assert out.count("llama3-8b, population, v5e:16x16") == 2
    assert "3 generations" in out
    assert "3 steps" in out
    assert table_row("llama3-8b", estimate()) in out.splitlines()


def test_defaults_are_the_command_in_the_documentation() -> None:
    config = command.Config()
    check(config)
    assert (config.topology, config.strategy.population, config.items) == ("v5e:16x16", 4096, 24)
    assert read_model(config).num_hidden_layers == 32


@pytest.mark.reference
def test_a_kernel_compiles_for_its_device() -> None:
    """Splash attention, in the search's own program, for one TPU chip."""
    command = [
        sys.executable,
        "-m",
        "tpu.plan",
        "--topology",
        "v5e:1x1",
        "--model",
        str(MODEL_FOLDER),
        "--population",
        "8",
        "--attention",
        "splash",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert "by the formula (1.0" in done.stdout


@pytest.mark.reference
def test_partial_sums_are_exchanged_in_bfloat16() -> None:
    """Of a kernel whose inputs lie on four TPU chips: half the bytes of float32."""
    mesh = make_mesh(described_devices(parse_topology("v5e:2x2")), model=4)

    def abstract(shape: tuple[int, ...], dtype: jnp.dtype, *axes: str | None) -> jax.Array:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    stream = abstract((4, 256, 512), jnp.float32)
    x = abstract((4, 256, 1024), jnp.bfloat16, None, None, "model")
    kernel = abstract((1024, 512), jnp.bfloat16, "model")

    def layer(stream: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return stream + project(x, {"down": kernel}, "down")

    with lowering_for("tpu"):
        lowered = jax.jit(layer, out_shardings=stream.sharding).lower(stream, x, kernel)
        (exchange,) = read_program(lowered.compile()).collectives
    assert (exchange.kind, exchange.bytes) == ("all-reduce", 2 * stream.size)


# The table


@pytest.mark.reference
@pytest.mark.long
def test_row_of_the_table_is_what_the_command_prints() -> None:
    """Compiles 8B for 64 chips of v5p: the README's own command and line."""
    command = [sys.executable, "-m", "tpu.plan", "--topology", "v5p:4x4x4", "--table"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=900,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    row = done.stdout.splitlines()[-1]
    assert row.startswith("| llama3-8b | v5p:4x4x4 |")
    assert row in (ROOT / "tpu" / "README.md").read_text(encoding="utf-8")
