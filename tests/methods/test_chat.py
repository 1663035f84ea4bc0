"""Replies under several conditions at a time are those of each alone, in chat and in generate."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.lora import Adapter, LoraConfig, init_adapter
from jaxalign.lm.sampling import Sampling
from jaxalign.methods.chat import Chat, reply_side_by_side
from jaxalign.methods.conditions import Persona, Plain, WithAdapter
from jaxalign.methods.generate import generate
from jaxalign.methods.soft_prompt import SoftPrompt
from jaxalign.pocket import pocket_model

ASKED = "Is family important to you?"


@pytest.fixture(scope="module")
def lm():
    return pocket_model()


@pytest.fixture(scope="module")
def conditions(lm) -> list:
    config = LoraConfig(rank=2)
    start = init_adapter(lm.config, config, jax.random.key(0))
    adapter = Adapter(jax.tree.map(lambda w: w + 0.05, start), config, lm.config, "pocket")
    rows = np.asarray(lm.params["embed"])[lm.tokenizer.encode("I live in a small town by the sea")]
    return [
        WithAdapter(adapter, Persona("CHN")),
        Plain(),
        SoftPrompt(rows[:3]),
        WithAdapter(adapter),
        SoftPrompt(rows[2:7], "system"),
        Persona("USA"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_list_gives_the_replies_of_each_alone(lm, conditions, temperature):
    drawn = {"max_new_tokens": 10, "temperature": temperature, "seed": 4}
    together = generate(lm, ASKED, condition=conditions, **drawn)
    assert together == [generate(lm, ASKED, condition=c, **drawn) for c in conditions]
    assert len(set(together)) > 2


@pytest.mark.long
def test_each_column_keeps_its_conversation(lm, conditions):
    sampling = Sampling(10, 0.9)
    chat = Chat(lm, conditions, sampling, seed=4)
    seen: list[tuple[str, ...]] = []
    first = chat.say(ASKED, seen.append)
    assert [reply.text for reply in first] == list(seen[-1])
    grown = [texts[1] for texts in seen]
    assert all(late.startswith(early) for early, late in itertools.pairwise(grown))
    assert len(set(grown)) > 2
    second = chat.say("Why?")
    for column, condition in enumerate(conditions):
        conversation = [
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": first[column].text},
            {"role": "user", "content": "Why?"},
        ]
        [alone] = reply_side_by_side(
            lm, [conversation], [condition], sampling=sampling, seed=4, turn=1
        )
        assert alone == second[column]
        assert chat.conversations[column][:3] == conversation
    chat.reset()
    assert chat.say(ASKED) == first


def test_what_cannot_be_said_is_refused_and_forgotten(lm, conditions):
    chat = Chat(lm, conditions[1:2], Sampling(10, 0.0))
    with pytest.raises(UserError, match=r"condition 'naive': the conversation has [\d,]+ tokens"):
        chat.say("why " * 5000)
    assert chat.conversations == [[]]
    with pytest.raises(UserError, match="2 conversations for 1 conditions"):
        reply_side_by_side(lm, [[], []], [Plain()])
    with pytest.raises(UserError, match="64 wide and the model's 128"):
        reply_side_by_side(lm, ASKED, [SoftPrompt(np.zeros((2, 64), np.float32))])
    with pytest.raises(UserError, match="`turn` -1"):
        reply_side_by_side(lm, ASKED, [Plain()], turn=-1)
