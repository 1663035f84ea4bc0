"""Attention of rows by kernels made for devices gives what XLA gives; which one runs is measured.

The kernels run interpreted here, cuDNN's as XLA under the same lengths. What a device would run is
read from the lowered and compiled programs.
"""

from __future__ import annotations

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.core.errors import UserError
from jaxalign.core.seals import seal_of
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lanes import unit_lanes
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import init_params
from jaxalign.runtime.kernel_timing import KernelChoice
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.sharding import DATA, make_mesh
from jaxalign.runtime.topology import described_devices, parse_topology
from jaxalign.training import trainer
from jaxalign.training.attention import attend_in_units, attend_within
from jaxalign.training.fused import FUSED_KERNELS, Fused, splash_block
from jaxalign.training.kernel_choice import available_kernels, choose_kernel, measured_choice
from jaxalign.training.loss import loss_sum
from jaxalign.training.packing import Example, Examples, fill
from jaxalign.training.program import train_program
from jaxalign.training.shape import choose_shape, make_shape
from jaxalign.training.step import TrainConfig
from tests.training.test_attention import HEADS, KEY_HEADS, WIDTH, gradients, row

CONFIG = LlamaConfig(61, 16, 24, 2, 4, 2, 8, dtype="float32", param_dtype="float32")
HALF = CONFIG.replace(dtype="bfloat16", param_dtype="bfloat16")
KERNELS = ("splash", "cudnn")


def some_arrays(length: int, seed: int = 0) -> list[jax.Array]:
    random = np.random.default_rng(seed)
    return [
        jnp.asarray(random.normal(size=(1, length, n, WIDTH)), jnp.float32)
        for n in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    ]


def assert_same(mine, plain, used_T, q, k, v, g) -> None:
    """Values where they are used, and all gradients."""
    np.testing.assert_allclose(
        mine(q, k, v, None)[0, used_T], plain(q, k, v, None)[0, used_T], atol=2e-6
    )
    g = g * used_T[None, :, None, None]
    for found, expected in zip(
        gradients(mine, q, k, v, g), gradients(plain, q, k, v, g), strict=True
    ):
        assert float(jnp.abs(expected).max()) > 0.1
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("kernel", KERNELS)
def test_values_and_gradients_are_those_of_xla(kernel):
    """Of a row of two tiles, with padding and examples across the border."""
    segments = jnp.asarray(row(np.random.default_rng(0), 250, 60))
    examples = 30 if kernel == "cudnn" else 0
    mine = attend_within(segments, 60, examples, Fused(kernel, interpret=True))
    plain = attend_within(segments, 60)
    assert splash_block(250, 60) == 128
    assert_same(mine, plain, segments > 0, *some_arrays(250))


@pytest.mark.long
def test_units_are_computed_one_by_one():
    segments = jnp.asarray(row(np.random.default_rng(1), 150, 30))
    # Units end where examples do.
    borders = np.flatnonzero(np.diff(np.asarray(segments))) + 1
    cut, end = int(borders[borders < 80][-1]), int((segments > 0).sum())
    lanes = unit_lanes(jnp.array([cut, end - cut, 0]), 96, 150)
    mine, plain = (
        attend_in_units(segments, lanes, 30, fused)
        for fused in (Fused("splash", interpret=True), None)
    )
    assert_same(mine, plain, segments > 0, *some_arrays(150))


@pytest.mark.long
@pytest.mark.parametrize("kernel", KERNELS)
def test_devices_compute_their_own_rows(devices, kernel):
    """The loss and gradient of two rows on two devices; nothing of a row is exchanged."""
    random, mesh = np.random.default_rng(2), make_mesh(devices[:2], data=2)
    several = Examples.of(
        [Example(tuple(random.integers(0, 61, n).tolist()), n - 2) for n in (40, 35, 38, 33) * 2]
    )
    batch = fill([[(several, np.arange(3 * r, 3 * r + 3))] for r in range(2)], 2, 130, 6)
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(DATA)))
    params = jax.device_put(
        init_params(CONFIG, jax.random.key(0)), NamedSharding(mesh, PartitionSpec())
    )
    examples = 4 if kernel == "cudnn" else 0

    def run(fused):
        def loss(params):
            return loss_sum(Llama(CONFIG, remat=True), params, batch, 40, examples, fused)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(params).compile()
        return compiled(params), compiled.as_text()

    (found, slopes), text = run(Fused(kernel, mesh, DATA, interpret=True))
    (expected, plain), _ = run(None)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for mine, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5 * float(jnp.abs(other).max()) + 1e-7)
    for unwanted in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {unwanted}(" not in text, unwanted


@pytest.mark.long
def test_kernels_are_really_tried():
    choice = measured_choice(HALF, 130, 40, 4, ("xla", *KERNELS), interpret=True)
    assert choice.kernel in ("xla", *KERNELS)
    assert "fails" not in choice.reason
    assert "disagrees" not in choice.reason


def test_what_there_is_to_choose_from():
    kernels = lambda *args: available_kernels(*args)[0]  # noqa: E731
    assert kernels(HALF, 1, 0, "tpu") == ("xla", "splash")
    assert kernels(HALF, 1, 9, "gpu") == ("xla", "cudnn")
    assert kernels(HALF, 1, 0, "gpu") == ("xla",)
    assert kernels(HALF, 2, 9, "tpu") == ("xla",)
    assert kernels(HALF, 1, 9, "cpu") == ("xla",)
    assert kernels(CONFIG, 1, 9, "tpu") == ("xla",)


def test_on_cpu_it_is_xla_and_nothing_else_can_be_asked_for(devices):
    mesh = make_mesh(devices[:1])
    assert choose_kernel(HALF, mesh, 128, 60).describe() == "attention by xla: cpu has xla alone"
    assert choose_kernel(HALF, mesh, 128, 60, option="xla").reason == "as asked"
    with pytest.raises(UserError, match=r"`train\.attention` splash: cpu has xla alone"):
        choose_kernel(HALF, mesh, 128, 60, option="splash")


def test_chips_that_are_not_here_are_not_measured():
    chips = SimpleNamespace(devices=np.array(["a chip"]), shape={"model": 1})
    choose = choose_kernel.__wrapped__
    with lowering_for("tpu"):
        assert choose(HALF, chips, 128, 60).kernel == "xla"
        assert choose(HALF, chips, 128, 60, option="splash").kernel == "splash"
    with lowering_for("gpu"), pytest.raises(UserError, match="cannot be compiled without a GPU"):
        choose(HALF, chips, 128, 60, 9, "cudnn")


def test_a_gpu_has_rows_of_examples_one_by_one():
    steps = [[np.array([40, 90, 60, 130, 70] * 5)] for _ in range(3)]
    shapes = {}
    for platform in ("gpu", "tpu"):
        with lowering_for(platform):
            shapes[platform] = choose_shape(steps, 25, 1, 1, 132, 0.03, 4096)
    assert shapes["gpu"].examples >= shapes["gpu"].row_length / 78
    assert shapes["tpu"].examples == 0


def test_a_resumed_run_has_the_kernel_that_it_began_with(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(FUSED_KERNELS, "cpu", ("splash",))
    mesh = make_mesh(jax.devices()[:1])
    run = SimpleNamespace(
        config=HALF,
        mesh=mesh,
        train=TrainConfig(attention="xla"),
        shape=make_shape(4, 1, 32, 0.1, 64),
        attention=KernelChoice("splash", "measured"),
    )
    run.kernels = trainer.Trainer.kernels.fget(run)
    choose = lambda: trainer.Trainer._choose_attention(run, tmp_path)  # noqa: E731
    assert choose().kernel == "xla"
    trainer._record_attention(run, SimpleNamespace(directory=tmp_path))
    assert seal_of(tmp_path / "attention.json").exists()
    assert choose() == KernelChoice("splash", "as this run began")
    run.kernels = ("xla",)
    caplog.set_level("INFO", "jaxalign")
    assert choose().kernel == "xla"
    assert "attention began with splash, which these devices do not have" in caplog.text


def lowered_step(kernel: str, mesh, platform: str, units: bool = False):
    """A step with rows of 1,024 tokens, 1,024 being the size of nothing else."""
    config = LlamaConfig(96, 64, 160, 3, 4, 2, 64, dtype="bfloat16", param_dtype="bfloat16")
    rows = mesh.shape[DATA]
    if units:
        shape = make_shape(8, 3, 132, 0.03, 1024, rows, units=4, unit_length=512)
    else:
        shape = make_shape(8, 1, 132, 0.03, 1024, rows, examples=10 if kernel == "cudnn" else 0)
    train = TrainConfig(batch=8, tokens_per_pass=1024, remat=True, unroll=False)
    with lowering_for(platform):
        step, arguments = train_program(config, train, LoraConfig(), mesh, shape, kernel=kernel)
        return step.trace(*arguments)


def squares(text: str) -> set[str]:
    """Shapes with a row's tokens twice, in StableHLO and in HLO."""
    return set(re.findall(r"[\[<x,]1024[x,]1024[x,\]]\w*", text))


@pytest.mark.long
@pytest.mark.parametrize("units", [False, True])
def test_a_step_for_tpus_attends_by_splash(devices, units):
    """Forward, recomputed, and twice backward; no array of all queries and keys."""
    traced = lowered_step("splash", make_mesh(devices[:2], data=2), "tpu", units)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 4
    assert not squares(text)


@pytest.mark.long
def test_a_step_for_gpus_attends_by_cudnn(devices, monkeypatch):
    """As lowered where a GPU and cuDNN are found; heads that share keys are not repeated."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    traced = lowered_step("cudnn", make_mesh(devices[:2], data=2), "gpu")
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "__cudnn$fmhaSoftmax" in line]
    assert any("__cudnn$fmhaSoftmaxBackward" in line for line in calls)
    # 10 examples of a row in 136 places each: 4 query heads, 2 key-value heads.
    assert all("10x136x4x64xbf16" in line and "10x136x2x64xbf16" in line for line in calls)
    assert not squares(text)
    assert "136x136x" not in text


@pytest.mark.reference
@pytest.mark.long
def test_a_step_compiles_for_tpus():
    """For four chips of a v5e, by the chip's compiler."""
    mesh = make_mesh(described_devices(parse_topology("v5e:2x2")), population=1, data=4)
    text = lowered_step("splash", mesh, "tpu").lower().compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 4
    assert not squares(text)
    assert " all-gather(" not in text
