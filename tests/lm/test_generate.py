"""Replies equal those of transformers and PEFT, and do not depend on batches or devices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import PRESETS, LlamaConfig
from jaxalign.lm.decode_loop import choose_slots, prefill_program, rounded_positions
from jaxalign.lm.generate import Sampling, decode_programs, drain, generate, open_queue, slots_of
from jaxalign.lm.lora import attach
from jaxalign.lm.peft import load_lora
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import param_shardings
from jaxalign.runtime.platform import lowering_for
from jaxalign.runtime.sharding import make_mesh
from tests.support.decode_cases import (
    DECODE_CASES,
    FROZEN,
    NEW_TOKENS,
    STOP,
    DecodeCase,
    transformers_replies,
    write_lora,
)
from tests.support.parity_cases import BASE, hf_weights

SOURCES = ["frozen", pytest.param("live", marks=pytest.mark.reference)]
DRAWN = Sampling(max_new_tokens=12, temperature=1.2, top_p=0.9, top_k=30)
GREEDY = Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0)
NO_STOP = (-1, -1)
PROMPTS = [[5, 3, 8], [1], [9] * 13, [4, 4, 60, 2], [33, 12], [7, 0, 7, 0, 7]]


def load(config: LlamaConfig, folder: Path) -> dict:
    save_file(hf_weights(config), folder / "model.safetensors")
    return load_checkpoint(folder, config)


@pytest.fixture(scope="module")
def params(tmp_path_factory) -> dict:
    return load(BASE, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def drawn(params) -> list[list[int]]:
    return generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3)


@pytest.fixture(scope="module")
def unstopped(params) -> list[list[int]]:
    return generate(BASE, params, DECODE_CASES[0].prompts(), GREEDY, NO_STOP)


# Against transformers and PEFT


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("case", DECODE_CASES, ids=lambda case: case.name)
def test_greedy_token_for_token(case: DecodeCase, source: str, tmp_path: Path) -> None:
    """Prompts of 1 to 24 tokens, in batches here, one at a time there; both stop tokens occur."""
    params, adapter = load(case.config, tmp_path), tmp_path / "adapter"
    if source == "live":
        theirs, _ = transformers_replies(case, adapter)
    else:
        theirs = json.loads(FROZEN.read_text())[case.name]
        adapter.mkdir()
        write_lora(adapter, case.config)
    assert min(map(len, theirs)) < NEW_TOKENS <= max(map(len, theirs))
    if case.lora:
        lora, tensors = load_lora(adapter, case.config)
        params = attach(params, tensors, lora)
    soft_ids = [case.config.vocab_size + i for i in range(case.soft_tokens)]
    prompts = [soft_ids + prompt for prompt in case.prompts()]
    soft = case.soft_prompt() if case.soft_tokens else None
    replies = generate(case.config, params, prompts, GREEDY, STOP, extra_embeddings=soft)
    assert replies == theirs


# Embeddings beyond the vocabulary


@pytest.mark.long
def test_embeddings_of_tokens_say_the_same_as_the_tokens(params) -> None:
    """Prompts in which some tokens are replaced by their embeddings get the same replies."""
    words = [[1, 2, 7], [8, 3, 4, 9, 10], [11] * 9 + [5, 6], [12, 13]]
    by_tokens = generate(BASE, params, words, DRAWN, NO_STOP, seed=3)
    table = params["embed"][jnp.arange(1, 7)]
    V = BASE.vocab_size
    mixed = [[V + t - 1 if t < 7 else t for t in prompt] for prompt in words]
    assert sum(t >= V for prompt in mixed for t in prompt) == 6
    assert (
        generate(BASE, params, mixed, DRAWN, NO_STOP, seed=3, extra_embeddings=table) == by_tokens
    )


@pytest.mark.long
@pytest.mark.parametrize("place", ["front", "inside"])
def test_soft_prompts_as_in_a_plain_forward_on_embeddings(params, place: str) -> None:
    """With random embeddings, different for each prompt, each new token is the most likely one of
    a plain forward over the whole sequence of embeddings."""
    random = np.random.default_rng(0)
    soft_ExD = random.normal(0, 0.3, (8, BASE.hidden_size)).astype(np.float32)
    V, cut = BASE.vocab_size, 0 if place == "front" else 2
    rows = [[0, 1, 2], [3, 4, 5, 6, 7], [5, 0]]
    asked = [[7, 9, 5], [8, 9, 10, 11, 12, 3, 5], [11] * 14]
    prompts = [
        words[:cut] + [V + i for i in row] + words[cut:]
        for words, row in zip(asked, rows, strict=True)
    ]
    sampling = Sampling(max_new_tokens=9, temperature=0.0)
    replies = generate(BASE, params, prompts, sampling, NO_STOP, extra_embeddings=soft_ExD)
    plain = jax.jit(Llama(BASE).apply)
    table = np.concatenate([np.asarray(params["embed"]), soft_ExD])
    for prompt, reply in zip(prompts, replies, strict=True):
        assert len(reply) == 9
        embedded = table[np.array([prompt + reply])]
        logits = np.asarray(plain({"params": params}, embedded))[0, len(prompt) - 1 : -1]
        best_two = np.sort(logits, axis=-1)[:, -2:]
        assert (best_two[:, 1] - best_two[:, 0]).min() > 1e-4, "no tie that rounding could turn"
        assert logits.argmax(-1).tolist() == reply


@pytest.mark.long
def test_the_program_without_them_has_no_trace_of_them(params) -> None:
    """Prompts of tokens alone are decoded by the same program with and without the parameter."""
    prefill_program.clear_cache()
    plain = generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3)
    compiled = prefill_program._cache_size()
    assert generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3, extra_embeddings=None) == plain
    assert prefill_program._cache_size() == compiled
    table = np.ones((2, BASE.hidden_size))
    with_table = generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3, extra_embeddings=table)
    assert with_table == plain, "a table that no prompt reads changes nothing"


@pytest.mark.long
def test_soft_prompts_on_many_devices(params, devices) -> None:
    mesh = make_mesh(devices, population=1, data=4, model=2)
    placed = jax.device_put(params, param_shardings(BASE, mesh))
    table = np.random.default_rng(1).normal(0, 0.3, (3, BASE.hidden_size))
    prompts = [[BASE.vocab_size + i % 3, *prompt] for i, prompt in enumerate(PROMPTS)]
    alone = generate(BASE, params, prompts, DRAWN, STOP, extra_embeddings=table)
    spread = generate(BASE, placed, prompts, DRAWN, STOP, extra_embeddings=table, mesh=mesh)
    assert spread == alone


@pytest.mark.long
def test_bfloat16_takes_nearly_the_best_token(params) -> None:
    """Compared with a plain forward in bfloat16, whose rounding differs."""
    config, sampling = BASE.replace(dtype="bfloat16"), Sampling(NEW_TOKENS, 0.0)
    prompts = DECODE_CASES[1].prompts()
    replies = generate(config, params, prompts, sampling, NO_STOP)
    width = max(map(len, prompts)) + NEW_TOKENS
    rows = [(p + r + [0] * width)[:width] for p, r in zip(prompts, replies, strict=True)]
    logits = np.asarray(jax.jit(Llama(config).apply)({"params": params}, np.array(rows)))
    for prompt, reply, row in zip(prompts, replies, logits, strict=True):
        steps = row[len(prompt) - 1 :][: len(reply)]
        short = steps.max(-1) - steps[np.arange(len(reply)), reply]
        assert short.max() < 0.03 * np.abs(steps).max()


# What a reply depends on


@pytest.mark.long
def test_batch_size_changes_nothing(params, drawn) -> None:
    assert generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3, batch_size=3) == drawn


def test_order_and_neighbours_change_nothing(params, drawn) -> None:
    chosen = [4, 0, 3, 2]
    some = [PROMPTS[i] for i in chosen]
    replies = generate(BASE, params, some, DRAWN, STOP, seed=3, ids=chosen)
    assert replies == [drawn[i] for i in chosen]
    # Neighbours of another length and with other ids; the same batch shape.
    other = [[50, 51], PROMPTS[2], [52] * 16, [53]]
    assert generate(BASE, params, other, DRAWN, STOP, seed=3, ids=[90, 2, 91, 92])[1] == drawn[2]


def test_seed_and_id_change_replies(params, drawn) -> None:
    assert generate(BASE, params, PROMPTS, DRAWN, STOP, seed=4) != drawn
    same = generate(BASE, params, [PROMPTS[0]] * 6, DRAWN, STOP, seed=3)
    assert same[0] == drawn[0]
    assert len(set(map(tuple, same))) == 6


@pytest.mark.long
@pytest.mark.parametrize("model", [1, 2])
def test_devices_change_nothing(params, drawn, devices, model: int) -> None:
    """8 devices along the data axis; or 4, with heads and vocabulary split over 2."""
    mesh = make_mesh(devices, population=1, data=8 // model, model=model)
    placed = params if model == 1 else jax.device_put(params, param_shardings(BASE, mesh))
    assert generate(BASE, placed, PROMPTS, DRAWN, STOP, seed=3, mesh=mesh) == drawn


# Stopping


def test_every_stop_token_cuts_where_it_first_stands(params, unstopped) -> None:
    for stop in ((39, 17), (54, 36), (32, 22)):
        cut = [
            r[: min([i for i, t in enumerate(r) if t in stop], default=NEW_TOKENS)]
            for r in unstopped
        ]
        assert generate(BASE, params, DECODE_CASES[0].prompts(), GREEDY, stop) == cut


def test_a_reply_of_one_token_and_no_stop_tokens(params, unstopped) -> None:
    told: list[int] = []
    one = Sampling(max_new_tokens=1, temperature=0.0)
    prompts = [p for p in DECODE_CASES[0].prompts() if len(p) <= 16]
    replies = generate(BASE, params, prompts, one, (), batch_size=2, on_batch=told.append)
    expected = [
        r[:1] for p, r in zip(DECODE_CASES[0].prompts(), unstopped, strict=True) if len(p) <= 16
    ]
    assert replies == expected
    assert told == [2, 4]
    assert generate(BASE, params, [], one, ()) == []


# The queue


def mixed(count: int = 40) -> list[list[int]]:
    """Prompts of 1 to 150 tokens, in families that begin alike for up to 100 tokens."""
    random = np.random.default_rng(0)
    families = [random.integers(0, 64, n).tolist() for n in (0, 40, 100)]
    tails = random.integers(1, 51, count)
    return [families[i % 3] + random.integers(0, 64, n).tolist() for i, n in enumerate(tails)]


@pytest.mark.long
def test_slots_cache_size_and_queue_change_nothing(params) -> None:
    """40 prompts in 3, 8 and 40 slots; alone; in larger caches; in the opposite order."""
    prompts, sampling = mixed(), Sampling(max_new_tokens=20, temperature=1.2, top_p=0.9)
    whole = generate(BASE, params, prompts, sampling, STOP, seed=5, batch_size=40)
    assert len({len(reply) for reply in whole}) > 3, "slots are free at different times"
    for changes in ({"batch_size": 3}, {"batch_size": 8}, {"batch_size": 8, "positions": 512}):
        assert generate(BASE, params, prompts, sampling, STOP, seed=5, **changes) == whole
    ids = range(40)[::-1]
    turned = generate(BASE, params, prompts[::-1], sampling, STOP, seed=5, ids=ids, batch_size=8)
    assert turned[::-1] == whole
    for i in (0, 1, 2, 38):
        alone = generate(BASE, params, [prompts[i]], sampling, STOP, seed=5, ids=[i], batch_size=1)
        assert alone == [whole[i]]


@pytest.mark.long
def test_samples_of_one_prompt_are_prefilled_once(params, drawn) -> None:
    """The first sample is the reply without samples; ids for each reply give each its own key."""

    def reply(**changes: object) -> list[list[int]]:
        return generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3, **changes)

    three = reply(samples=3)
    assert three[::3] == drawn
    assert len(set(map(tuple, three[6:9]))) == 3, "another reply each time"
    assert reply(samples=3, batch_size=4) == three
    by_reply = np.arange(18).reshape(6, 3)
    assert reply(samples=3, ids=by_reply)[::3] == reply(ids=by_reply[:, 0])
    queue = open_queue(BASE, params, DRAWN, STOP, 3, replies=18, batch_size=16, positions=64)
    for i, prompt in enumerate(PROMPTS):
        for sample in range(3):
            queue.add((i, sample), prompt, i, sample)
    found = dict(reply for _ in range(20) for reply in queue.receive())
    assert [found[i, sample] for i in range(6) for sample in range(3)] == three
    tokens = sum(map(len, PROMPTS))
    assert (queue.counts.prefill_tokens, queue.counts.shared_tokens) == (tokens, 2 * tokens)


@pytest.mark.long
def test_common_beginnings_are_computed_once_and_slots_stay_busy(params) -> None:
    """256 prompts with 96 tokens in common, replies of 1 to 40 tokens, 64 slots."""
    random = np.random.default_rng(1)
    common = random.integers(10, 64, 100).tolist()
    prompts = [[*common, *random.integers(10, 64, 20).tolist()] for _ in range(256)]
    sampling = Sampling(max_new_tokens=40, temperature=1.0)
    queue = open_queue(BASE, params, sampling, (7, 9), 0, replies=256, batch_size=64, positions=160)
    for i, prompt in enumerate(prompts):
        queue.add(i, prompt, i)
    while len(queue):
        assert queue.receive()
    assert queue.receive() == []
    counts = queue.counts
    assert counts.prefill_tokens == 120 + 255 * 24
    assert counts.shared_tokens == 255 * 96
    assert counts.replies == 256
    assert counts.rows_useful >= 0.7 * counts.rows_decoded


# The programs


def test_programs_compile_without_arrays_and_update_the_cache_in_place(devices) -> None:
    """On 2 devices; nothing shaped like the cache is copied, nor in bfloat16 made float32."""
    mesh = make_mesh(devices[:2], population=1, data=2)
    config = BASE.replace(dtype="bfloat16", param_dtype="bfloat16")
    programs = decode_programs(config, Sampling(48, 0.0), mesh, slots=3, positions=200)
    assert len(programs) == 5  # of eight slots or more: seven, with decode for fewer rows
    for name, (program, arguments) in programs.items():
        if name == "start" or "128" in name:
            continue
        compiled = program.lower(*arguments).compile()
        # layers, blocks, a device's slots, key heads; then head, position and position, head
        for cache in ("[3,2,3,2,8,128]", "[3,2,3,2,128,8]"):
            assert f"u16{cache}" in compiled.as_text()
            assert not re.findall(rf"f32{re.escape(cache)}", compiled.as_text())
            assert not re.findall(rf"u16{re.escape(cache)}\S* copy\(", compiled.as_text())
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes >= 2 * 2 * 3 * 3 * 2 * 256 * 8


@given(st.integers(1, 20_000))
def test_few_cache_sizes_and_less_than_half_of_one_unused(tokens: int) -> None:
    positions = rounded_positions(tokens)
    assert positions >= tokens
    assert positions % 128 == 0
    assert 2 * (positions - tokens) < positions or positions == 128


def test_slots_follow_from_memory() -> None:
    """Llama-3-8B beside its weights on an H200 and on one of four v5e chips; a 1B laptop."""
    config = PRESETS["llama3-8b"]
    assert choose_slots(config, (139 - 16) * 2**30, 2048) == 256
    assert 20 <= choose_slots(config, 11 * 2**30, 2048) <= 40
    assert 64 <= choose_slots(PRESETS["llama3.2-1b"], 8 * 2**30, 2048) <= 128
    assert choose_slots(config, 0, 2048) == 1


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 64]]}, r"prompt 0 has a token id outside \[0, 64\)"),
        (
            {"prompts": [[1], [1] * 501]},
            "prompt 1: 501 tokens and `max_new_tokens` 12 .*=512",
        ),
        (
            {"prompts": [[66]], "extra_embeddings": np.zeros((2, 48))},
            r"prompt 0 has a token id outside \[0, 66\)",
        ),
        ({"extra_embeddings": np.zeros((2, 47))}, r"` of shape \(2, 47\): must be \[E, 48\]"),
        ({"extra_embeddings": np.zeros((3, 2, 48))}, r"` of shape \(3, 2, 48\)"),
        ({"ids": [1]}, r"`ids` of shape \(1,\) has no entry for each of 2 prompts"),
        ({"samples": 0}, "`samples` 0"),
        ({"ids": [1, -1]}, "`ids` -1"),
        ({"seed": 2**32}, "`seed` 4294967296"),
        ({"batch_size": 0}, "`batch_size` 0"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    given = {"prompts": [[1], [2]], "sampling": DRAWN, "stop_tokens": ()} | changes
    with pytest.raises(UserError, match=message):
        generate(BASE, {}, **given)


def test_memory_decides_how_many_replies_are_written_at_a_time(monkeypatch) -> None:
    """Each share of a mesh gets as many as suit its own memory, however many shares there are."""
    llama, gib = PRESETS["llama3-8b"], 2**30

    def slots(shares: int, free: int, batch_size: int | None = None) -> int:
        mesh = abstract_mesh(shares)
        return slots_of(llama, mesh, 10_000, batch_size, 1024, free)

    # A cache of 1,024 positions is 128 MiB.
    assert [slots(1, n * gib) for n in (2, 8, 90)] == [1, 4, 64]
    assert slots(8, 8 * gib) == slots(1, 8 * gib)
    with lowering_for("cuda"):
        assert slots(1, 100 * gib) == 128
        assert slots(1, 0) == 256
    # A number that is given is that of all shares, and memory only lowers it.
    assert slots(8, 90 * gib, 64) == 8
    assert slots(1, 4 * gib, 64) == choose_slots(llama, 4 * gib, 1024) < 64


def abstract_mesh(shares: int) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh((1, shares, 1), ("population", "data", "model"))


# Replies that are ended early, and other embeddings


def test_an_ended_reply_is_a_beginning_and_changes_no_other(params) -> None:
    """Some replies are ended after three tokens; their slots go to prompts that wait."""
    whole = generate(BASE, params, PROMPTS, DRAWN, NO_STOP, seed=3)
    arguments = {"replies": 6, "batch_size": 2, "positions": 30}
    queue = open_queue(BASE, params, DRAWN, NO_STOP, 3, **arguments)
    requests = [(i, prompt, i) for i, prompt in enumerate(PROMPTS)]
    short = {1, 3, 4}
    found = dict(drain(queue, requests, lambda name, tokens: name in short and len(tokens) > 2))
    assert len(queue) == 0
    assert found == {i: reply[: 3 if i in short else None] for i, reply in enumerate(whole)}


def test_a_renewed_queue_is_as_a_new_one(params) -> None:
    """A prompt that the slots hold is computed anew: its ids stand for other embeddings now."""
    random = np.random.default_rng(0)
    table_ExD, other_ExD = random.normal(0, 0.3, (2, 4, BASE.hidden_size)).astype(np.float32)
    prompt = [BASE.vocab_size + i for i in range(4)] + [7, 9, 5]
    arguments = {"replies": 1, "batch_size": 2, "positions": 30, "extra_ExD": table_ExD}
    queue = open_queue(BASE, params, DRAWN, NO_STOP, 3, **arguments)
    first = dict(drain(queue, [(0, prompt, 0)]))
    queue.add(1, prompt, 1)
    queue.step(1)  # a reply that nobody waits for any more
    queue.renew(other_ExD)
    second = dict(drain(queue, [(0, prompt, 0)]))
    alone = generate(BASE, params, [prompt], DRAWN, NO_STOP, seed=3, extra_embeddings=other_ExD)
    assert [second[0]] == alone
    assert second != first
