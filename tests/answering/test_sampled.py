"""Sampled answers: what a reply counts as, what it depends on, and that a killed job continues."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from jaxalign.answering.batch import answer_exact
from jaxalign.answering.encode import SoftLeadIn, encode
from jaxalign.answering.sampled import answer_sampled, model_sampler
from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.model import LM, load_model
from jaxalign.methods.culturespa.styles import NO_GROUP, StylePrompts, encode_styles, load_texts
from jaxalign.pocket.society import held_out_survey
from jaxalign.surveys.responses import OUT_OF_RANGE, UNREADABLE

SURVEY = held_out_survey()
COUNTRIES = ("USA", "CHN", "BRA", "NGA", "DEU", "IND", "RUS", "SWE")
PROMPTS = StylePrompts(load_texts(), SURVEY, COUNTRIES, count=2)


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_model()


def reply_in(tokens, texts, asked=None, order=1):
    """A model that says `texts` in turn by id, and remembers what it was asked."""

    def reply(requests, count, longest):
        requests = list(requests)
        assert len(requests) == count
        assert max(len(prompt) for _, prompt, _ in requests) <= longest
        for name, prompt, number in requests[::order]:
            if asked is not None:
                asked.append((tuple(prompt), number))
            yield name, tokens.encode(texts[number % len(texts)])

    return reply


def test_first_integer_counts_if_it_is_a_code(lm):
    tokens, items = lm.tokenizer, SURVEY.items[:2]
    conversations = encode_styles(tokens, PROMPTS, ["unaware"], NO_GROUP, items)
    said = {"2": 1, "I choose 1.": 0, "99 of 2": OUT_OF_RANGE, "no": UNREADABLE, "": UNREADABLE}
    for text, position in said.items():
        found = answer_sampled(reply_in(tokens, [text]), tokens, conversations, items)
        np.testing.assert_array_equal(found, np.full((2, 3), position))


def test_a_reply_is_read_by_the_options_of_its_question(lm):
    """Also behind a soft prompt after the question, where prompts are what is asked."""
    tokens, most = lm.tokenizer, max(len(item.codes) for item in SURVEY.items)
    long = next(item for item in SURVEY.items if len(item.codes) == most)
    short = next(item for item in SURVEY.items if long.codes[-1] not in item.codes)
    behind = SoftLeadIn([tokens.vocab_size], "after")
    for lead_ins in ([behind], [[], behind]):
        conversations = encode(tokens, PROMPTS.texts.prompts, lead_ins, [short, long, short])
        reply = reply_in(tokens, [str(long.codes[-1])])
        found = answer_sampled(reply, tokens, conversations, [short, long, short], runs=1)
        each = [OUT_OF_RANGE, most - 1, OUT_OF_RANGE]
        assert found[:, 0].tolist() == each * len(lead_ins)


def test_a_reply_is_random_by_conversation_and_run(lm):
    tokens, items = lm.tokenizer, SURVEY.items[:5]
    conversations = encode_styles(tokens, PROMPTS, ["p1"], COUNTRIES[:3], items)
    asked: list = []
    sampling = functools.partial(answer_sampled, tokenizer=tokens, items=items, runs=4)
    events: list[Progress] = []
    found = sampling(
        reply_in(tokens, ["1", "2", "x"], asked),
        conversations=conversations,
        on_progress=events.append,
    )
    assert [(event.done, event.total) for event in events] == [(n, 60) for n in range(61)]
    assert len(dict(asked)) == 15
    assert len({i for _, i in asked}) == 60
    again = sampling(reply_in(tokens, ["1", "2", "x"], order=-1), conversations=conversations)
    np.testing.assert_array_equal(found, again)
    turned = dataclasses.replace(conversations, pairs=conversations.pairs[::-1])
    other = sampling(reply_in(tokens, ["1", "2", "x"]), conversations=turned)
    np.testing.assert_array_equal(other[::-1], found)


def test_killed_sampling_continues(lm, tmp_path):
    tokens, items = lm.tokenizer, SURVEY.items[:5]
    conversations = encode_styles(tokens, PROMPTS, ["p1"], COUNTRIES[:3], items)
    asked: list = []
    whole = reply_in(tokens, ["1", "2", "x"], asked)

    def dying(requests, count, longest):
        for n, reply in enumerate(whole(requests, count, longest)):
            if n == 20:
                asked.pop()
                raise KeyboardInterrupt
            yield reply

    sampling = functools.partial(
        answer_sampled, tokenizer=tokens, conversations=conversations, items=items
    )
    unbroken = sampling(reply_in(tokens, ["1", "2", "x"]))
    with pytest.raises(KeyboardInterrupt):
        sampling(dying, folder=tmp_path)
    assert len(asked) == 20
    np.testing.assert_array_equal(sampling(whole, folder=tmp_path), unbroken)
    assert len(asked) == len(set(asked)) == 45
    with pytest.raises(UserError, match="runs=0"):
        sampling(whole, runs=0)


@pytest.mark.long
def test_the_queue_answers_as_generate_does(lm):
    """Lead-ins shared by many conversations, three runs of each, in 4 slots and in 32."""
    tokens, items = lm.tokenizer, SURVEY.items[:4]
    conversations = encode_styles(tokens, PROMPTS, ["p1", "unaware"], COUNTRIES[:2], items)
    sampling = Sampling(max_new_tokens=4, temperature=0.9, top_p=0.9)
    asked: list = []
    answer_sampled(reply_in(tokens, ["1"], asked), tokens, conversations, items)
    prompts, ids = zip(*asked, strict=True)
    replies = generate(lm.config, lm.params, prompts, sampling, tokens.stop_ids, 5, ids)
    said = dict(zip(asked, replies, strict=True))

    def again(requests, count, longest):
        for name, prompt, number in requests:
            yield name, said[tuple(prompt), number]

    expected = answer_sampled(again, tokens, conversations, items)
    for batch_size in (4, 32):
        sample = model_sampler(lm, sampling, 5, batch_size)
        found = answer_sampled(sample, tokens, conversations, items)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.long
def test_sampling_at_temperature_one_follows_the_exact_distribution(lm):
    items, runs = SURVEY.items[:1], 300
    conversations = encode_styles(lm.tokenizer, PROMPTS, ["unaware"], NO_GROUP, items)
    answers = answer_exact(lm.config, lm.params, conversations, lm.mesh)
    exact = np.exp(answers.log_probs_NxO[0])
    sample = model_sampler(lm, Sampling(max_new_tokens=4, temperature=1.0), 0, batch_size=300)
    found = answer_sampled(sample, lm.tokenizer, conversations, items, runs=runs)
    shares = np.bincount(found[0][found[0] >= 0], minlength=len(exact)) / (found[0] >= 0).sum()
    deviation = np.sqrt(exact * (1 - exact) / runs)
    assert (np.abs(shares - exact) < 4 * deviation + 0.005).all()
