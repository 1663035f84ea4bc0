"""Fine-tuning as one call: several adapters by name, all weights, checkpoints, what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jaxalign as ja
from jaxalign.core.errors import UserError
from jaxalign.lm.model import LM
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training import LoraConfig, TrainConfig
from jaxalign.training.fine_tune import merged_model

TRAIN = TrainConfig(batch=2, learning_rate=1e-2, remat=False)
LORA = LoraConfig(rank=2, targets=("q", "v"))


def talk(question: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


TALKS = [talk(f"What is {n}?", str(n)) for n in range(5)]


@pytest.fixture(scope="module")
def lm() -> LM:
    """The pocket model on one device, where programs compile fastest."""
    return ja.load_model(mesh=make_mesh(jax.devices()[:1]))


def differ(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in leaves)


@pytest.mark.long
def test_several_adapters_by_name_with_held_out_conversations(lm):
    rows: list[dict] = []
    groups = {"even": TALKS[::2], "odd": TALKS[1::2]}
    held_out = {"even": TALKS[1:2], "odd": TALKS[:1]}
    tuned = ja.fine_tune(lm, groups, train=TRAIN, lora=LORA, held_out=held_out, log=rows.append)
    assert list(tuned) == ["even", "odd"]
    assert all(a.config == LORA and a.base_model == str(lm.folder) for a in tuned.values())
    assert differ(tuned["even"].weights, tuned["odd"].weights)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(row["odd"]["held_out_loss"] > 0 for row in rows)


@pytest.mark.long
def test_a_model_in_8_bits_trains_an_adapter_but_not_its_weights():
    small = ja.load_model(weights="int8", mesh=make_mesh(jax.devices()[:1]))
    rows: list[dict] = []
    ja.fine_tune(small, TALKS, train=TRAIN, lora=LORA, held_out=TALKS[:2], log=rows.append)
    losses = [row["joint"]["held_out_loss"] for row in rows]
    assert losses[-1] < losses[0]
    with pytest.raises(UserError, match="`method` full cannot train weights in 8 bits"):
        ja.fine_tune(small, TALKS, train=TrainConfig(method="full"))


@pytest.mark.long
def test_a_call_continues_from_its_checkpoints(lm, tmp_path):
    whole = ja.fine_tune(lm, TALKS, train=TRAIN, lora=LORA)

    def stop(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ja.fine_tune(
            lm, TALKS, train=TRAIN, lora=LORA, checkpoints=tmp_path, save_every=1, log=stop
        )
    rows: list[dict] = []
    again = ja.fine_tune(lm, TALKS, train=TRAIN, lora=LORA, checkpoints=tmp_path, log=rows.append)
    assert [row["step"] for row in rows] == [2, 3]
    assert not differ(again.weights, whole.weights)


@pytest.mark.long
def test_all_weights_and_a_merged_adapter_are_models(lm):
    full = TrainConfig(method="full", batch=2, learning_rate=1e-3, remat=False)
    tuned = ja.fine_tune(lm, TALKS, train=full)
    assert tuned.files is lm.files
    assert differ(tuned.params, lm.params)
    assert not any(w.is_deleted() for w in jax.tree.leaves(lm.params)), "the base model stays"
    adapter = ja.fine_tune(lm, TALKS, train=TRAIN, lora=LORA)
    merged = merged_model(lm, adapter)
    for mine, other in zip(
        jax.tree.leaves(merged.params), jax.tree.leaves(adapter.merge(lm).params), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize(
    ("conversations", "message"),
    [
        ([], "no examples to train 'joint' on"),
        ([TALKS[0], TALKS[1][:1]], "`conversations`, joint 1: a conversation must end with"),
        ([["hello"]], "`conversations`, joint 0: not"),
        ({"a": [talk("word " * 5000, "b")]}, "`conversations`, a 0: .* reads at most 4096"),
    ],
)
def test_what_is_no_conversation_is_refused(lm, conversations, message):
    with pytest.raises(UserError, match=message):
        ja.fine_tune(lm, conversations)
