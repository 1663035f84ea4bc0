"""Test the population benchmark: equal answers, ratios within a repeat, bad input."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys

import numpy as np
import pytest

from experiments.bench.models import model_config
from experiments.bench.peers import Worker, machine_facts
from experiments.bench.population.__main__ import Config, bench, make_work, run
from experiments.bench.population.items import ask_items, without_shared_text
from experiments.bench.population.measure import Difference, Measured, check, difference
from experiments.bench.population.report import make_result, weight_passes
from experiments.bench.population.worker_jax import JaxSide, refuse_short_memory
from jaxalign.answering.cost import lower_bound
from jaxalign.answering.plan import plan_layout
from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig
from jaxalign.runs.console import main

TINY = LlamaConfig(
    1800, 64, 96, 2, 4, 2, 16, dtype="float32", param_dtype="float32", initializer_range=0.16
)


def small_work(folder, items=5, llama=TINY, **changes):
    config = Config(population=3, chunk=2, prompt_length=4, **changes)
    work = make_work(config, llama, folder / "model")
    chosen = work.items[:items]
    options = work.options_QxOxS[:items]
    return dataclasses.replace(work, items=chosen, options_QxOxS=options, threads=1)


def answers_of(side, methods):
    for method in methods:
        side.compile(method)
    return {method: side.run(method)["log_probs"] for method in methods}


@pytest.mark.reference
@pytest.mark.parametrize("placement", ["system", "front"])
def test_every_method_gives_the_same_answers(tmp_path, placement):
    from experiments.bench.population.worker_torch import TorchSide

    work, ours, theirs = small_work(tmp_path, placement=placement), JaxSide(), TorchSide()
    prompts = ours.prepare(work, 2, True)["prompts_PxMxD"]
    theirs.prepare(work, prompts)
    answers = answers_of(ours, ["ours", "jax_vmap"])
    answers |= answers_of(theirs, ["hf_per_item", "hf_padded", "hf_prefix_cache"])
    expected = answers.pop("hf_per_item")
    assert expected.shape == (3, 5, 5)
    assert expected.std() > 0.3, "nearly uniform answers would agree whatever was computed"
    for method, log_probs in answers.items():
        gap = difference(log_probs, expected)
        assert gap.most < 2e-5, f"{method} is off by {gap.most:.1e}"
        assert gap.same_answer == 1


@pytest.mark.reference
def test_batches_of_any_size_give_the_same_answers(tmp_path):
    import torch

    from experiments.bench.population.worker_torch import Survey, padded, per_item, prefix_cache

    work = small_work(tmp_path)
    prompts = torch.tensor(JaxSide().prepare(work, 2, True)["prompts_PxMxD"])
    survey = Survey(work, torch.float32, torch.device("cpu"))
    expected = torch.cat([per_item(survey, prompts[:1]), per_item(survey, prompts[1:])])
    for method in (padded, prefix_cache):
        for size in (1, 2, 3):
            actual = torch.cat([method(survey, part) for part in prompts.split(size)])
            torch.testing.assert_close(actual, expected, atol=2e-5, rtol=0)
    again = prefix_cache(survey, prompts)  # the cached header was left as it was
    torch.testing.assert_close(again, expected, atol=2e-5, rtol=0)


@pytest.mark.reference
def test_references_are_float32(tmp_path):
    from experiments.bench.population.worker_torch import TorchSide

    half = TINY.replace(dtype="bfloat16", param_dtype="bfloat16")
    work, ours, theirs = small_work(tmp_path, llama=half), JaxSide(), TorchSide()
    prompts = ours.prepare(work, 2, True)["prompts_PxMxD"]
    theirs.prepare(work, prompts)
    exact = ours.reference(2)
    np.testing.assert_allclose(theirs.reference(2), exact, atol=2e-5)
    theirs.compile("hf_padded")
    rough = theirs.run("hf_padded")["log_probs"][:2]
    assert 1e-4 < difference(rough, exact).most < 0.3


@pytest.mark.parametrize(("placement", "tokens"), [("system", 16 + 1_888), ("front", 56 + 1_888)])
def test_published_lengths_take_the_published_work(placement, tokens):
    before, items, options = ask_items("published", placement)
    layout = plan_layout(before, 16, items, options)
    assert layout.tokens_computed == tokens
    lengths = np.array([len(item) for item in items]) - (40 if placement == "front" else 0)
    assert (len(items), lengths.min(), lengths.max(), lengths.sum()) == (24, 30, 120, 1_888)
    if placement == "system":
        work = lower_bound(model_config("llama3-8b", "bfloat16"), layout).total
        assert work == pytest.approx(25.9e12, rel=0.005), "not the least work of the cost model"


def test_stem_free_items_share_nothing_and_are_as_long():
    before, items, options = ask_items("module", "system")
    assert len(before) > 0
    assert len(items) == 24
    other = without_shared_text(items)
    assert [len(i) for i in other] == [len(i) for i in items]
    assert len({i[0] for i in other}) == 24
    layout = plan_layout(before, 16, other, options)
    assert layout.tokens_computed == 16 + sum(map(len, items))


@pytest.mark.reference
def test_measures_prints_and_writes(tmp_path, capsys, monkeypatch):
    # One core: torch's threads wait for each other when other tests run beside this one.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    config = Config(
        population=2,
        repeats=2,
        chunk=1,
        json=tmp_path / "b.json",
        plot=tmp_path / "b.png",
        against=("hf_per_item", "hf_padded", "jax_vmap"),
    )
    result = bench(config, TINY)
    read = json.loads((tmp_path / "b.json").read_text())
    assert set(read["ratios"]) == {"hf_per_item", "hf_padded", "jax_vmap"}
    for ratio in read["ratios"].values():
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    assert 0 < read["max_abs_log_prob_difference"] <= 1e-4
    assert 0 < read["useful_flops_fraction"] < 1
    assert read["machine"]["processor"]
    ours = read["methods"]["ours"]
    fastest, own = (ours[f"fraction_of_{which}matmul_peak"] for which in ("fastest_", ""))
    assert fastest["median"] <= own["median"]
    assert read["candidates_per_second"] == result["candidates_per_second"] > 0
    assert read["settings"]["population"] == 2
    assert all(len(m["seconds"]) == 2 for m in read["methods"].values())
    assert read["methods"]["ours"]["compile_seconds"] > 0
    assert read["methods"]["hf_padded"]["candidates_in_a_batch"] in (1, 2)
    assert min(m["peak_bytes"] for m in read["methods"].values()) > 2**20
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "HF, one item at a time" in out
    assert "Matmul peak: jax" in out


def made_up(seconds, **changes):
    same = {name: Difference(1e-6, 1e-7, 1.0) for name in seconds}
    values = {
        "facts": {"jax": {"chunk": 2}},
        "warm_up": {name: {"candidates_in_a_batch": 2} for name in seconds},
        "reference": "jax_vmap",
        "differences": same,
        "seconds": seconds,
        "peak_bytes": dict.fromkeys(seconds, 1),
        "matmul_peak": {"jax": [4e9, 2e9, 1e9]},
        "device_peak_bytes": {"jax": None},
        "bytes_per_second": 1e9,
        "machine": machine_facts(),
        "idle_cpu_seconds": 0.0,
    }
    return Measured(**(values | changes))


def test_ratios_and_fractions_are_taken_within_a_repeat(tmp_path):
    work = small_work(tmp_path)
    layout = plan_layout(work.before, work.prompt_length, work.items, work.spellings())
    # The machine slows down: the ratio of medians would be 4 / 2; within repeats it is 3, 2, 1.
    measured = made_up({"ours": [1.0, 2.0, 4.0], "jax_vmap": [3.0, 4.0, 4.0]})
    result = make_result(Config(), work, layout, measured)
    assert result["ratios"] == {"jax_vmap": {"median": 2.0, "min": 1.0, "max": 3.0}}
    useful = 3 * lower_bound(TINY, layout).total
    np.testing.assert_allclose(result["useful_flops_fraction"], useful / 4e9)
    np.testing.assert_allclose(result["candidates_per_second"], 3 / 2)
    # torch's product is faster in the first two repeats, XLA's in the last.
    peaks = {"jax": [4e9, 2e9, 1e9], "torch": [8e9, 8e9, 0.5e9]}
    result = make_result(Config(), work, layout, dataclasses.replace(measured, matmul_peak=peaks))
    of_fastest = result["methods"]["ours"]["fraction_of_fastest_matmul_peak"]
    shares = {"median": useful / 8e9, "min": useful / 16e9, "max": useful / 4e9}
    assert of_fastest == pytest.approx(shares)


def test_weight_passes_of_each_method(tmp_path):
    work = small_work(tmp_path)  # 3 prompts, 5 items, chunks of 2
    assert weight_passes("ours", work, {"candidates_in_a_batch": 2}) == 2
    assert weight_passes("hf_per_item", work, {}) == 15
    assert weight_passes("hf_padded", work, {"candidates_in_a_batch": 1}) == 3
    assert weight_passes("hf_prefix_cache", work, {"candidates_in_a_batch": 4}) == 2


def test_answers_that_differ_stop_the_benchmark():
    good, bad = Difference(5e-5, 1e-6, 1.0), Difference(2e-4, 1e-6, 1.0)
    check("float32", "hf_per_item", {"ours": good, "hf_per_item": good})
    with pytest.raises(UserError, match=r"ours differs from hf_per_item by 0\.0002"):
        check("float32", "hf_per_item", {"ours": bad, "hf_per_item": good})
    rough, worse = Difference(0.2, 0.02, 0.97), Difference(0.2, 0.03, 0.97)
    check("bfloat16", "torch in float32", {"ours": rough, "hf_per_item": rough})
    with pytest.raises(UserError, match="ours differs"):
        check("bfloat16", "torch in float32", {"ours": worse, "hf_per_item": rough})


def test_options_that_one_side_lacks_are_a_bug():
    log_probs = np.log([[[0.5, 0.5, 1e-9]]])
    with pytest.raises(UserError, match="same options"):
        difference(log_probs, np.where([True, True, False], log_probs, -np.inf))


WORKER = """
import sys
from experiments.bench.peers import serve
from jaxalign.core.errors import UserError

class Side:
    def add(self, a, b):
        return a + b
    def refuse(self):
        raise UserError("too large")
    def die(self):
        raise RuntimeError("broken on purpose")

serve(Side(), sys.argv)
"""


def test_workers_answer_refuse_and_die(tmp_path, monkeypatch):
    (tmp_path / "bench_side.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(p for p in sys.path if p)}")
    with Worker("bench_side", tmp_path / "log") as worker:
        assert worker.call("add", 2, 3).value == 5
        with pytest.raises(UserError, match="too large"):
            worker.call("refuse")
        answer = worker.call("add", 1, 1)
        assert answer.value == 2
        assert answer.peak_bytes > 2**20
        assert answer.idle_cpu_seconds < 0.2, "a waiting worker used the processor"
        with pytest.raises(UserError, match=r"bench_side died in die: RuntimeError: broken on"):
            worker.call("die")


def test_weights_that_do_not_fit_are_refused():
    llama = model_config("llama3-8b", "bfloat16")
    with pytest.raises(UserError, match=r"need 30 GiB, but 20 GiB are free; take a smaller --size"):
        refuse_short_memory(llama, 2, 20 * 2**30)
    refuse_short_memory(llama, 2, 31 * 2**30)


def test_sizes():
    small = model_config("small", "float32")
    assert (small.num_hidden_layers, small.hidden_size) == (8, 512)
    assert model_config("pocket", "bfloat16").dtype == "bfloat16"
    assert model_config("llama3-8b", "bfloat16").initializer_range == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population", "0"], "population=0"),
        (["--against", "jax_vmap", "jax_vmap"], "none twice"),
        (["--json", "/nowhere/b.json"], "--json /nowhere/b.json: no such folder"),
        (["--plot", "/"], "--plot /: a folder; name a file in it"),
        (["--size", "huge"], "huge"),
        (["--model", "/nowhere"], "--model /nowhere: no config.json in it"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(run, Config, arguments)
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


def test_without_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )
    with pytest.raises(UserError, match=r"jaxalign\[parity\]"):
        bench(Config(), TINY)


@pytest.mark.long
def test_vmap_alone_needs_no_torch(tmp_path):
    work, side = small_work(tmp_path), JaxSide()
    side.prepare(work, 1, False)
    assert not (tmp_path / "model").exists()
    answers = answers_of(side, ["ours", "jax_vmap"])
    assert difference(answers["ours"], answers["jax_vmap"]).most < 2e-5
