"""Fine-tuning gives the same results packed or not, alone or beside others, and on any mesh; the
compiled step does no work for frozen weights."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig, attach, init_adapter
from jaxalign.lm.quantize import quantize
from jaxalign.lm.transformer import AXES, Llama, product
from jaxalign.lm.weights import init_params, param_shardings
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.program_facts import read_program
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.data import Stream, adapter_key, epoch_order
from jaxalign.training.defaults import resolve_training
from jaxalign.training.loss import loss_sum
from jaxalign.training.packing import Batch, Example, Examples, fill, pack
from jaxalign.training.program import train_program
from jaxalign.training.shape import Shape
from jaxalign.training.step import gradient
from jaxalign.training.trainer import (
    HeldOutLoss,
    TrainConfig,
    Trainer,
    fit,
    measurement_steps,
)

CONFIG = LlamaConfig(
    62, 32, 48, 3, 4, 2, 8, dtype="float32", param_dtype="float32", initializer_range=0.15
)
PARAMS = init_params(CONFIG, jax.random.key(0))
LORA = LoraConfig(rank=4)
TRAIN = TrainConfig(
    batch=4, learning_rate=1e-2, longest_example=32, tokens_per_pass=32, remat=False
)


def make_examples(seed: int, count: int) -> list[Example]:
    random = np.random.default_rng(seed)
    lengths, answers = random.integers(4, 20, count), random.integers(1, 4, count)
    tokens = [tuple(random.integers(0, 61, n).tolist()) for n in lengths]
    return [Example(t, len(t) - a) for t, a in zip(tokens, answers.tolist(), strict=True)]


DATA = {"USA": make_examples(1, 11), "CHN": make_examples(2, 5), "IND": make_examples(3, 8)}


def some_adapter() -> dict:
    """An adapter with both matrices away from zero."""
    leaves, tree = jax.tree.flatten(init_adapter(CONFIG, LORA, jax.random.key(7)))
    keys = jax.random.split(jax.random.key(8), len(leaves))
    return tree.unflatten(
        [0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def packed(examples: list[Example], row_length: int, spare: int = 1) -> Batch:
    """Rows of examples, and `spare` empty ones."""
    several = Examples.of(examples)
    rows = [np.array(row) for row in pack(several.lengths, row_length)]
    answers = max(int(several.answers[row].sum()) for row in rows)
    return fill([[(several, row)] for row in rows], len(rows) + spare, row_length, answers)


def packed_loss(examples: list[Example], row_length: int, params=PARAMS) -> float:
    batch = packed(examples, row_length)
    return float(jax.jit(loss_sum, static_argnums=(0, 3))(Llama(CONFIG), params, batch, 20))


def largest_difference(a, b) -> float:
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_the_loss_is_cross_entropy_of_the_answers():
    """Compared with the logits of each example alone, at every position."""
    expected = 0.0
    for e in DATA["USA"][:4]:
        logits = jax.jit(Llama(CONFIG).apply)({"params": PARAMS}, jnp.array([e.tokens]))[0]
        log_p = jax.nn.log_softmax(logits)
        expected -= sum(
            float(log_p[at - 1, e.tokens[at]]) for at in range(e.prompt_length, len(e.tokens))
        )
    assert packed_loss(DATA["USA"][:4], 64) == pytest.approx(expected, rel=1e-5)


def test_examples_in_a_row_do_not_see_each_other():
    """The loss of a packed row is the sum of the losses of its examples alone."""
    alone = sum(packed_loss([e], 32) for e in DATA["CHN"])
    assert packed_loss(DATA["CHN"], 64) == pytest.approx(alone, rel=1e-5)
    assert packed_loss(DATA["CHN"] + DATA["IND"], 64) == pytest.approx(
        alone + packed_loss(DATA["IND"], 32), rel=1e-5
    )


def gradient_of(rows: int, passes: int, remat: bool):
    train = dataclasses.replace(TRAIN, remat=remat, unroll=False)
    used = packed(DATA["USA"][:8], 32, spare=0)
    needed = len(used.tokens_BxT)
    batch = packed(DATA["USA"][:8], 32, spare=rows * passes - needed)
    batch = jax.tree.map(lambda x: x.reshape(passes, rows, -1), batch)
    shape = Shape(1, passes, rows, 32, batch.at_BxA.shape[-1], 20)
    adapter = jax.tree.map(lambda x: x[None], some_adapter())
    run = jax.jit(gradient, static_argnums=(0, 1, 2, 3))
    counts = jnp.int32([-(-needed // rows), 0])
    loss, grads, answers = run(CONFIG, train, LORA, shape, adapter, PARAMS, (batch,), counts)
    return loss[0], grads, answers[0]


@pytest.mark.long
def test_passes_and_rematerialisation_change_nothing():
    loss, grads, answers = gradient_of(rows=6, passes=1, remat=False)
    assert answers == sum(len(e.answer) for e in DATA["USA"][:8])
    largest = [float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)]
    assert min(largest) > 0.0
    for rows, passes, remat in [(1, 7, False), (2, 4, True)]:
        other, others, _ = gradient_of(rows, passes, remat)
        assert other == pytest.approx(float(loss), rel=1e-6)
        assert largest_difference(grads, others) < 5e-6 * max(largest)


def test_epochs_show_every_example_once_in_an_order_of_their_own():
    stream = Stream(DATA["USA"], adapter_key(0, "USA"), batch=4, epochs=2)
    assert stream.steps == 6
    assert [len(stream.step(n)) for n in range(7)] == [4, 4, 3, 4, 4, 3, 0]
    epochs = [np.concatenate([stream.step(n) for n in steps]) for steps in (range(3), range(3, 6))]
    for epoch in epochs:
        assert sorted(epoch) == list(range(11))
    assert not np.array_equal(*epochs)
    again = Stream(DATA["USA"], adapter_key(0, "USA"), batch=4, epochs=2)
    np.testing.assert_array_equal(again.step(4), stream.step(4))
    other = epoch_order(adapter_key(1, "USA"), 0, 11)
    assert not np.array_equal(other, epoch_order(adapter_key(0, "USA"), 0, 11))


def test_the_frozen_order_of_an_epoch():
    """The order is part of what a seed means: changing it would break every recorded run."""
    assert epoch_order(adapter_key(0, "USA"), 0, 8).tolist() == [6, 7, 4, 3, 2, 1, 0, 5]


@pytest.mark.parametrize("count", [1, 2, 11, 5000])
def test_the_order_of_an_epoch_is_that_of_jax(count):
    key = adapter_key(3, "USA")
    own = jax.random.fold_in(jax.random.fold_in(key, 2), 7)
    np.testing.assert_array_equal(epoch_order(key, 7, count), jax.random.permutation(own, count))


def train(names: tuple[str, ...], mesh, **changes):
    """Return adapters by name, and the rows of metrics."""
    settings = dataclasses.replace(TRAIN, **changes)
    trainer = Trainer(CONFIG, settings, LORA, {name: DATA[name] for name in names}, mesh)
    rows: list[dict] = []
    params = jax.device_put(PARAMS, param_shardings(CONFIG, mesh))
    return jax.device_get(fit(trainer, params, log=rows.append)), rows


@pytest.fixture(scope="module")
def side_by_side():
    return train(("USA", "CHN", "IND"), make_mesh(jax.devices()[:1]))


@pytest.mark.long
def test_beside_others_an_adapter_becomes_what_it_does_alone(side_by_side):
    """China has the fewest examples: its adapter, moments and schedule stop after two steps."""
    together, rows = side_by_side
    assert [sorted(row.keys() - {"step"}) for row in rows] == [
        ["CHN", "IND", "USA"],
        ["CHN", "IND", "USA"],
        ["USA"],
    ]
    alone, alone_rows = train(("CHN",), make_mesh(jax.devices()[:1]))
    assert len(alone_rows) == 2
    for mine, row in zip(alone_rows, rows, strict=False):
        assert mine["CHN"]["loss"] == pytest.approx(float(row["CHN"]["loss"]), rel=1e-5)
        assert mine["CHN"]["learning_rate"] == row["CHN"]["learning_rate"]
    assert largest_difference(alone["CHN"], together["CHN"]) < 2e-5
    assert largest_difference(together["USA"], together["CHN"]) > 1e-2


@pytest.mark.long
def test_an_adapter_that_has_finished_keeps_its_bits(side_by_side):
    """China takes two of three steps: stopping everything after two gives the same bits."""
    mesh = make_mesh(jax.devices()[:1])
    trainer = Trainer(CONFIG, TRAIN, LORA, DATA, mesh)
    state = trainer.start(PARAMS)
    for step, batches, passes in trainer.batches(0):
        if step == 2:
            break
        state, _ = trainer.advance(state, PARAMS, batches, passes)
    stopped = jax.device_get(trainer.trained(state))
    together, _ = side_by_side
    jax.tree.map(np.testing.assert_array_equal, stopped["CHN"], together["CHN"])
    assert largest_difference(stopped["USA"], together["USA"]) > 0


def with_shape(shape: Shape, names: tuple[str, ...], side_by_side: int, checkpoints=None, **more):
    """Adapters trained in steps of a given shape, `side_by_side` at a time."""
    shape = dataclasses.replace(shape, adapters=side_by_side)
    mesh, examples = make_mesh(jax.devices()[:1]), {name: DATA[name] for name in names}
    trainer = Trainer(CONFIG, TRAIN, LORA, examples, mesh, shape=shape)
    assert trainer.shape == shape
    return trainer, jax.device_get(fit(trainer, PARAMS, checkpoints, **more))


@pytest.mark.long
def test_an_adapter_does_not_depend_on_its_group(tmp_path):
    """Beside China or beside India, in the first group or the second, and resumed in the second:
    the same bits. (Groups of another size are another program: the same up to rounding.)"""
    names = ("USA", "CHN", "IND")
    shape = Trainer(CONFIG, TRAIN, LORA, DATA, make_mesh(jax.devices()[:1])).shape
    assert shape.units
    rows: list[dict] = []
    trainer, together = with_shape(shape, names, 2, log=rows.append)
    other, apart = with_shape(shape, names[::-1], 2)
    assert [group.names for group in trainer.groups] == [("USA", "CHN"), ("IND",)]
    assert [group.names for group in other.groups] == [("USA", "IND"), ("CHN",)]
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(together))
    jax.tree.map(np.testing.assert_array_equal, apart, {n: together[n] for n in apart})

    before: list[dict] = []

    def stop(row):
        if row["step"] == 6:  # 3 steps of the first group, then the second of the second group
            raise KeyboardInterrupt
        before.append(row)

    with Checkpoints(tmp_path) as saved, pytest.raises(KeyboardInterrupt):
        with_shape(shape, names, 2, saved, log=stop, save_every=1)
    after, begun = [], []
    with Checkpoints(tmp_path) as saved:
        _, trained = with_shape(
            shape, names, 2, saved, log=after.append, begin=begun.append, save_every=1
        )
    assert begun == [5]
    jax.tree.map(np.testing.assert_array_equal, trained, together)
    assert before + after == rows
    assert [row["step"] for row in rows] == [1, 2, 3, 5, 6]
    # A trainer that is made for the folder puts as many side by side.
    train = dataclasses.replace(TRAIN, side_by_side=3)
    again = Trainer(CONFIG, train, LORA, DATA, make_mesh(jax.devices()[:1]), checkpoints=tmp_path)
    assert again.shape.adapters == 2


@pytest.mark.long
def test_rates_side_by_side_are_those_tried_alone():
    """In one program with the same examples, each adapter ends as if trained alone at its rate."""
    rates = {"low": 1e-4, "high": 3e-2}
    mesh = make_mesh(jax.devices()[:1])
    trainer = Trainer(CONFIG, TRAIN, LORA, dict.fromkeys(rates, DATA["CHN"]), mesh, rates)
    both = fit(trainer, PARAMS)
    for name, rate in rates.items():
        config = dataclasses.replace(TRAIN, learning_rate=rate)
        single = Trainer(CONFIG, config, LORA, {name: DATA["CHN"]}, mesh)
        alone = fit(single, PARAMS)[name]
        start = single.trained(single.start(PARAMS))[name]
        assert largest_difference(both[name], alone) < 1e-5 + 1e-3 * rate
        assert largest_difference(alone, start) > rate / 2


@pytest.mark.long
def test_adapters_drawn_alike_differ_in_their_rate_alone():
    names, mesh = ("a", "b", "c"), make_mesh(jax.devices()[:1])
    drawn_as = dict.fromkeys(names, "a")
    trainer = Trainer(
        CONFIG, TRAIN, LORA, dict.fromkeys(names, DATA["CHN"]), mesh, {"c": 1e-4}, drawn_as
    )
    found = fit(trainer, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, found["a"], found["b"])
    assert largest_difference(found["a"], found["c"]) > 1e-4


def held_out_rows(checkpoints=None, sizes=None, method="lora", **more) -> list[dict]:
    """Rows of a run of 3 steps on China's examples, with the first six of India's held out."""
    mesh = make_mesh(jax.devices()[:8] if sizes else jax.devices()[:1], **(sizes or {}))
    config = dataclasses.replace(TRAIN, method=method, batch=2)
    trainer = Trainer(CONFIG, config, LORA, {"CHN": DATA["CHN"]}, mesh)
    params = jax.device_put(PARAMS, param_shardings(CONFIG, mesh))
    held_out, rows = HeldOutLoss(trainer, {"CHN": DATA["IND"][:6]}), []
    more = {"log": rows.append} | more
    fit(trainer, params, checkpoints, held_out=held_out, **more)
    return rows


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full"])
def test_held_out_loss_is_the_mean_over_answer_tokens(method):
    """Before training, an adapter changes nothing, so it is the loss of the model alone."""
    rows = held_out_rows(method=method)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    examples = DATA["IND"][:6]
    count = sum(len(e.answer) for e in examples)
    expected = sum(packed_loss([e], 32) for e in examples) / count
    assert rows[0] == {"step": 0, "CHN": {"held_out_loss": pytest.approx(expected, rel=1e-5)}}
    looked = [row["CHN"]["held_out_loss"] for row in rows]
    assert all("loss" in row["CHN"] for row in rows[1:])
    assert len(set(looked[1:])) == 3, "the first step's rate may be 0, later ones change it"


@pytest.mark.long
def test_a_resumed_run_measures_held_out_examples_as_an_unbroken_one(tmp_path):
    whole, before = held_out_rows(), []

    def stop(row):
        if row["step"] == 3:
            raise KeyboardInterrupt
        before.append(row)

    with Checkpoints(tmp_path) as saved, pytest.raises(KeyboardInterrupt):
        held_out_rows(saved, save_every=1, log=stop)
    with Checkpoints(tmp_path) as saved:
        after = held_out_rows(saved, save_every=1)
    assert [row["step"] for row in after] == [3]
    assert before + after == whole


@pytest.mark.long
def test_held_out_loss_on_a_mesh(devices):
    one, many = held_out_rows(), held_out_rows(sizes={"data": 4, "model": 2})
    for a, b in zip(one, many, strict=True):
        assert a["CHN"]["held_out_loss"] == pytest.approx(b["CHN"]["held_out_loss"], rel=1e-4)


def test_held_out_examples_are_measured_ten_times():
    assert sorted(measurement_steps(100)) == list(range(10, 101, 10))
    assert sorted(measurement_steps(3)) == [1, 2, 3]
    assert all(
        max(measurement_steps(n)) == n and len(measurement_steps(n)) == min(n, 10)
        for n in range(1, 300)
    )


def test_an_adapter_without_held_out_examples_is_refused():
    trainer = Trainer(CONFIG, TRAIN, LORA, {"CHN": DATA["CHN"]}, make_mesh(jax.devices()[:1]))
    with pytest.raises(UserError, match="no examples held out for 'CHN'"):
        HeldOutLoss(trainer, {"USA": DATA["USA"]})


@pytest.mark.long
@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 4, "model": 2}])
def test_meshes_agree_with_one_device(devices, side_by_side, sizes):
    one, rows = side_by_side
    many, many_rows = train(("USA", "CHN", "IND"), make_mesh(devices, **sizes))
    for a, b in zip(rows, many_rows, strict=True):
        assert a["USA"]["loss"] == pytest.approx(float(b["USA"]["loss"]), rel=1e-5)
        assert a["USA"]["gradient_norm"] == pytest.approx(
            float(b["USA"]["gradient_norm"]), rel=1e-4
        )
    assert largest_difference(one, many) < 2e-4  # Adam divides by small gradients


@pytest.mark.long
def test_all_weights_can_be_trained_on_a_mesh(devices):
    one, _ = train(("IND",), make_mesh(devices[:1]), method="full")
    many, _ = train(("IND",), make_mesh(devices, data=4, model=2), method="full")
    assert largest_difference(one, many) < 2e-4
    assert largest_difference(one["IND"], PARAMS) > 1e-3
    with pytest.raises(UserError, match="`method` full trains one model, not 2 side by side"):
        train(("IND", "USA"), make_mesh(devices[:1]), method="full")


@pytest.mark.long
def test_bfloat16_keeps_float32_adapters():
    config = CONFIG.replace(dtype="bfloat16", param_dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    trainer = Trainer(config, TRAIN, LORA, {"IND": DATA["IND"]}, make_mesh(jax.devices()[:1]))
    trained = fit(trainer, params)
    assert {x.dtype for x in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    exact, _ = train(("IND",), make_mesh(jax.devices()[:1]))
    moved = largest_difference(exact["IND"], trainer.trained(trainer.start(params))["IND"])
    assert largest_difference(trained["IND"], exact["IND"]) < 2 * moved


@pytest.mark.long
def test_adapters_train_on_weights_in_8_bits():
    """The gradient equals that with the same rounded weights in float32."""
    small = quantize(CONFIG, PARAMS)
    written_out = dict(PARAMS)
    for part in ("layers", "last"):
        kernels = {name: (small[part][name], small[part][f"{name}_scale"]) for name in AXES}
        written_out[part] = PARAMS[part] | {
            name: kernel.astype(jnp.float32) * scale.reshape(_with_inputs(kernel, scale, part))
            for name, (kernel, scale) in kernels.items()
        }
    batch = packed(DATA["USA"][:4], 32, spare=0)

    @jax.jit
    def slopes(params, adapter):
        return jax.grad(lambda a: loss_sum(Llama(CONFIG), attach(params, a, LORA), batch, 20))(
            adapter
        )

    ours, expected = slopes(small, some_adapter()), slopes(written_out, some_adapter())
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    assert largest > 0.1
    assert largest_difference(ours, expected) < 1e-5 * largest


def _with_inputs(kernel: jax.Array, scale: jax.Array, part: str) -> tuple[int, ...]:
    """The shape of a scale with ones in place of the kernel's input axes."""
    lead = 1 if part == "layers" else 0
    return (*scale.shape[:lead], *(1,) * (kernel.ndim - scale.ndim), *scale.shape[lead:])


def test_bfloat16_gradients_are_products_in_bfloat16():
    """Forward and backward products accumulate in float32."""

    def loss(x, kernel):
        return jnp.sum(jnp.square(product("btd,df->btf", x, kernel)))

    x, kernel = jnp.ones((2, 4, 8), jnp.bfloat16), jnp.ones((8, 16), jnp.bfloat16)
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 3
    assert all(line.count("xbf16>") == 2 and "xf32>" in line for line in dots)


@pytest.mark.long
def test_the_compiled_step_leaves_frozen_weights_alone():
    """No product has the shape of a weight (the weight's gradient would), no stack of weights is
    copied, and products with frozen weights cover the tokens of both adapters at once."""
    # Stacks of four layers have no factor of 3, as all that is computed for three units has.
    config = LlamaConfig(97, 64, 160, 5, 4, 2, 16, dtype="float32", param_dtype="float32")
    step, arguments = train_program(
        config,
        resolve_training(dataclasses.replace(TRAIN, remat=True))[0],
        LORA,
        make_mesh(jax.devices()[:1]),
        Shape(
            2,
            2,
            rows=1,
            row_length=144,
            answers=5,
            window=24,
            units=3,
            unit_length=96,
            unit_answers=5,
        ),
    )
    compiled = step.lower(*arguments).compile()
    facts = read_program(compiled)
    for shape in [(4, 64, 160), (4, 160, 64), (4, 64, 4, 16), (97, 64), (64, 97)]:
        assert not facts.copies_of_shape(shape)
    text = compiled.as_text()
    dots = [line.split(" dot(")[0] for line in text.splitlines() if " dot(" in line]
    assert any("[144,160]" in dot for dot in dots)  # all units of the row
    for gradient_shape in ("[64,160]", "[160,64]", "[64,64]", "[64,97]", "[97,64]"):
        assert not any(gradient_shape in dot for dot in dots)


@pytest.mark.long
def test_devices_share_the_work(devices):
    """Each of eight devices along the data axis does an eighth of the products with weights."""
    config = CONFIG.replace(vocab_size=64)

    def flops(mesh, rows: int) -> float:
        step, arguments = train_program(
            config, resolve_training(TRAIN)[0], LORA, mesh, Shape(1, 1, rows, 32, 4, 32)
        )
        return step.lower(*arguments).compile().cost_analysis()["flops"]

    whole, part = flops(make_mesh(devices[:1]), 8), flops(make_mesh(devices, data=8), 8)
    assert part < 1.5 * whole / 8


@pytest.mark.long
def test_the_loss_falls():
    """Trained on examples whose answer follows from their first token."""
    random = np.random.default_rng(0)
    examples = [
        Example((first, *random.integers(20, 60, 4).tolist(), 10 + first), 5)
        for first in random.integers(0, 4, 256).tolist()
    ]
    settings = dataclasses.replace(TRAIN, batch=16, epochs=3)
    trainer = Trainer(CONFIG, settings, LORA, {"all": examples}, make_mesh(jax.devices()[:1]))
    rows: list[dict] = []
    trained = fit(trainer, PARAMS, log=rows.append)
    losses = [row["all"]["loss"] for row in rows]
    assert np.mean(losses[-4:]) < 0.5 * losses[0]
    tuned = attach(PARAMS, trained["all"], LORA)
    assert packed_loss(examples[:8], 32, tuned) < packed_loss(examples[:8], 32)


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_the_run_in_words():
    params = PARAMS | {"norm": PARAMS["norm"] * jnp.nan}
    trainer = Trainer(CONFIG, TRAIN, LORA, {"IND": DATA["IND"]}, make_mesh(jax.devices()[:1]))
    with pytest.raises(UserError, match=r"step 1: the loss of 'IND' is nan .* lower the learning"):
        fit(trainer, params)
    failed: dict[str, int] = {}
    assert fit(trainer, params, set_aside=failed.__setitem__) == {}
    assert failed == {"IND": 1}


def exploding(names, shape=None, rates=None, checkpoints=None, **more):
    """Adapters trained for two epochs: India's at a rate at which its weights leave every range."""
    train, mesh = dataclasses.replace(TRAIN, epochs=2), make_mesh(jax.devices()[:1])
    examples, rates = {name: DATA[name] for name in names}, rates or {"IND": 1e30}
    trainer = Trainer(CONFIG, train, LORA, examples, mesh, rates, shape=shape)
    return trainer, jax.device_get(fit(trainer, PARAMS, checkpoints, **more))


@pytest.mark.long
def test_an_adapter_that_explodes_is_set_aside(tmp_path, caplog):
    """The others get the bits that they get beside one that does not explode, and without it."""
    rows, failed = [], {}
    trainer, others = exploding(DATA, log=rows.append, set_aside=failed.__setitem__)
    assert failed == {"IND": 3}, "the first step has rate 0, the second throws the weights out"
    assert others.keys() == {"USA", "CHN"}
    assert not np.isfinite(rows[2]["IND"]["loss"])
    assert [set(row) - {"step"} for row in rows[3:]] == [{"USA", "CHN"}, {"USA"}, {"USA"}]
    _, sound = exploding(DATA, trainer.shape, {"IND": 1e-2})
    _, without = exploding(("USA", "CHN"), trainer.shape)
    for name in others:
        jax.tree.map(np.testing.assert_array_equal, others[name], sound[name])
        jax.tree.map(np.testing.assert_array_equal, others[name], without[name])
    # By itself at the lower rate, in the same program, it becomes what it does beside the others.
    _, again = exploding(("IND",), trainer.shape, {"IND": 1e-2})
    jax.tree.map(np.testing.assert_array_equal, again["IND"], sound["IND"])

    def stop(row):
        if row["step"] == 5:
            raise KeyboardInterrupt

    with Checkpoints(tmp_path) as saved, pytest.raises(KeyboardInterrupt):
        exploding(DATA, trainer.shape, checkpoints=saved, log=stop, save_every=1)
    assert "step 3: the loss of 'IND' is nan" in caplog.text
    assert "It is set aside, and the others go on" in caplog.text
    after, failed = [], {}
    with Checkpoints(tmp_path) as saved:
        _, resumed = exploding(
            DATA, trainer.shape, checkpoints=saved, log=after.append, set_aside=failed.__setitem__
        )
    assert failed == {"IND": 3}
    assert [row["step"] for row in after] == [5, 6]
    jax.tree.map(np.testing.assert_array_equal, resumed, others)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "`batch` 0: must be at least 1"),
        ({"learning_rate": 0.0}, "`learning_rate` 0.0: must be above 0"),
        ({"warm_up": 1.5}, "`warm_up` 1.5: must be a share"),
        ({"learning_rate": float("nan")}, "`learning_rate` nan: must be above 0"),
        ({"weight_decay": -1.0}, "`weight_decay` -1.0: must be 0 or more"),
        ({"beta1": 2.0}, "`beta1` 2.0: must be at least 0 and below 1"),
        ({"longest_example": 0}, "`longest_example` 0: must be at least 1"),
        ({"seed": 10**20}, r"`seed` 1\d+: must be at least 0 and below 2"),
    ],
)
def test_bad_settings_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(TRAIN, **changes)


def test_no_examples_and_long_examples_are_refused():
    mesh = make_mesh(jax.devices()[:1])
    with pytest.raises(UserError, match="no examples to train 'NGA' on"):
        Trainer(CONFIG, TRAIN, LORA, {"NGA": []}, mesh)
    settings = dataclasses.replace(TRAIN, longest_example=8)
    with pytest.raises(UserError, match="longer than a row of 8"):
        Trainer(CONFIG, settings, LORA, DATA, mesh)
