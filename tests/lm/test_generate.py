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
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.lora import attach
from jaxalign.lm.peft import load_lora
from jaxalign.lm.transformer import Llama
from jaxalign.lm.weights import param_shardings
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
    decode_batch.clear_cache()
    plain = generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3)
    compiled = decode_batch._cache_size()
    assert generate(BASE, params, PROMPTS, DRAWN, STOP, seed=3, extra_embeddings=None) == plain
    assert decode_batch._cache_size() == compiled
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


# The program


def test_program_compiles_without_arrays_and_updates_its_cache_in_place(devices) -> None:
    mesh = make_mesh(devices[:2], population=1, data=2)
    arguments = (BASE, Sampling(48, 0.0), 6, 48, 2, mesh)
    program, abstract = decode_program(*arguments)
    text = program.lower(*abstract).compile().as_text()
    slots = 48 + 47
    assert f"f32[2,3,{slots},2,8]" in text  # the stacked layers' cache, half the rows a device
    assert not re.findall(rf"f32\[(?:2,)?3,{slots},2,8\]\S* copy\(", text)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 9))
def test_batches_hold_every_prompt_once(lengths: list[int], batch_size: int) -> None:
    found = list(_batches(lengths, batch_size, None))
    assert sorted(i for members, _, _ in found for i in members) == list(range(len(lengths)))
    for members, padded, rows in found:
        assert {padded_length(lengths[i]) for i in members} == {padded}
        assert len(members) <= rows <= min(batch_size, 2 * len(members))


def test_padding_stays_below_a_third() -> None:
    padded = [padded_length(n) for n in range(1, 3000)]
    assert all(p >= n for n, p in enumerate(padded, 1))
    assert all(3 * (p - n) < p for n, p in enumerate(padded, 1) if n >= 16)
    assert sorted(set(padded))[:6] == [16, 24, 32, 48, 64, 96]


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
        ({"ids": [1]}, "`ids` has 1 entries for 2 prompts"),
        ({"ids": [1, -1]}, "`ids` -1"),
        ({"seed": 2**32}, "`seed` 4294967296"),
        ({"batch_size": 0}, "`batch_size` 0"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    given = {"prompts": [[1], [2]], "sampling": DRAWN, "stop_tokens": ()} | changes
    with pytest.raises(UserError, match=message):
        generate(BASE, {}, **given)
