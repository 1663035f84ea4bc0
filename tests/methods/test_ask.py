"""Any mix of conditions, asked together, answers as each does by itself."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxalign.answering import block_program
from jaxalign.answering.block_program import answer_blocks
from jaxalign.answering.conversations import option_spellings, split_at_soft_prompt
from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.lm.lora import Adapter, LoraConfig, init_adapter
from jaxalign.lm.quantize import quantize
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.transformer import Llama
from jaxalign.methods.ask import Sampled, ask
from jaxalign.methods.base import METHODS, Condition, soft_prompt_methods
from jaxalign.methods.conditions import InContext, Persona, Plain, WithAdapter
from jaxalign.methods.generate import generate
from jaxalign.pocket import pocket_model
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import load_prompts
from jaxalign.surveys.survey import vsm

SURVEY = vsm().subset({f"m{i:02}" for i in range(1, 7)})
OTHER = held_out_survey()


@dataclasses.dataclass(frozen=True)
class Soft(Condition):
    """A soft prompt that is one of the model's own texts, so that its answers are known."""

    embeddings_MxD: np.ndarray
    placement: str = "front"
    messages: tuple = ()
    label: str = "soft"

    @property
    def name(self) -> str:
        return self.label

    @property
    def soft_prompt(self):
        return self

    def lead_in(self, prompts):
        return [*self.messages]


@pytest.fixture(scope="module")
def lm():
    return pocket_model()


def embedded(lm, text: str) -> np.ndarray:
    return np.asarray(lm.params["embed"])[lm.tokenizer.encode(text)]


def assert_alike(found, expected):
    there = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), there)
    np.testing.assert_allclose(found[there], expected[there], atol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def next_probs(config, params, x_TxD, last):
    return jax.nn.softmax(Llama(config).apply({"params": params}, x_TxD[None])[0, last])


def by_plain_forward(lm, condition) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the options and valid mass, by the full softmax of one conversation each."""
    prompts, soft = load_prompts(), condition.soft_prompt
    probs, mass = [], []
    for item in SURVEY.items:
        chat = [*condition.lead_in(prompts), prompts.user(item)]
        parts = [lm.tokenizer.encode_chat(chat)]
        if soft is not None:
            parts = split_at_soft_prompt(lm.tokenizer, chat, soft.placement)
        rows = [np.asarray(lm.params["embed"])[np.array(part, int)] for part in parts]
        x = np.concatenate(rows if soft is None else [rows[0], soft.embeddings_MxD, rows[1]])
        filled = np.zeros((384, x.shape[1]), np.float32)  # causal, so the tail is unseen
        filled[: len(x)] = x
        next_V = np.asarray(next_probs(lm.config, lm.params, filled, len(x) - 1))
        [spellings] = option_spellings(lm.tokenizer, [item])
        assert {len(s) for option in spellings for s in option} == {1}
        options = [sum(next_V[s[0]] for s in {*option}) for option in spellings]
        probs.append(options / np.sum(options))
        mass.append(np.sum(options))
    return np.array(probs), np.array(mass)


def test_conditions_answer_as_the_plain_forward(lm):
    """Whatever stands before, within or behind the question, all of it asked in one call."""
    rows = embedded(lm, "I live in a small town by the sea")[:6].reshape(2, 3, -1)
    conditions = [
        Plain(),
        Persona("CHN"),
        InContext("CHN", OTHER, examples=2),
        Soft(rows[0], label="front"),
        Soft(rows[1], "system", label="system"),
        Soft(rows[0], "after", label="after"),
        Soft(rows[1], "after", label="another after"),
    ]
    answers = ask(lm, SURVEY, conditions)
    assert answers.conditions[:3] == ("naive", "persona CHN", "icl CHN")
    assert answers.log_probs.dtype == answers.valid_mass.dtype == np.float32
    for row, condition in enumerate(conditions):
        probs, mass = by_plain_forward(lm, condition)
        np.testing.assert_allclose(np.exp(answers.log_probs[row]), probs, atol=2e-5)
        np.testing.assert_allclose(answers.valid_mass[row], mass, atol=2e-5)


@pytest.mark.long
def test_eight_bit_weights_answer_as_their_plain_forward(lm):
    lm = dataclasses.replace(lm, params=quantize(lm.config, lm.params))
    conditions = [Persona("CHN"), Soft(embedded(lm, "small town")[:2], "after")]
    answers = ask(lm, SURVEY, conditions)
    for row, condition in enumerate(conditions):
        probs, mass = by_plain_forward(lm, condition)
        np.testing.assert_allclose(np.exp(answers.log_probs[row]), probs, atol=2e-5)
        np.testing.assert_allclose(answers.valid_mass[row], mass, atol=2e-5)


@pytest.mark.long
def test_mixed_conditions_answer_as_each_alone(lm):
    M = 3
    rows = embedded(lm, "I live in a small town by the sea")[: 3 * M].reshape(3, M, -1)
    conditions = [
        Soft(rows[0], label="a"),
        Plain(),
        Soft(rows[1], label="b"),
        Soft(rows[2], "system", label="c"),
        Persona("IND"),
        Soft(rows[0], "after", label="d"),
        Soft(rows[0], messages=tuple(Persona("IND").lead_in(load_prompts())), label="e"),
    ]
    events: list[Progress] = []
    answers = ask(lm, SURVEY, conditions, on_progress=events.append)
    for row, condition in enumerate(conditions):
        alone = ask(lm, SURVEY, [condition])
        assert_alike(answers.log_probs[row], alone.log_probs[0])
        np.testing.assert_allclose(answers.valid_mass[row], alone.valid_mass[0], atol=1e-5)
    distinct = answers.log_probs[..., :2].reshape(len(conditions), -1).round(3)
    assert len(np.unique(distinct, axis=0)) == len(conditions)
    # Seven conditions of six questions, in one job.
    assert (events[0].done, events[-1].done) == (0, 42)
    assert {event.total for event in events} == {42}


@pytest.mark.long
def test_a_soft_prompt_of_a_persona_answers_as_the_persona(lm):
    """Embeddings of the persona's own text in the system message's place are the persona."""
    persona = Persona("CHN")
    text = persona.lead_in(load_prompts())[0]["content"]
    soft = Soft(embedded(lm, text), "system")
    answers = ask(lm, SURVEY, [persona, soft])
    assert_alike(answers.log_probs[1], answers.log_probs[0])
    for placed in ("front", "system", "after"):
        soft = Soft(embedded(lm, text), placed)
        assert isinstance(generate(lm, "How are you?", condition=soft, max_new_tokens=4), str)
    question = "Is family important to you?"
    soft = Soft(embedded(lm, text), "system")
    replies = {
        generate(lm, question, condition=condition, max_new_tokens=12)
        for condition in (persona, soft)
    }
    assert len(replies) == 1


@pytest.mark.long
def test_an_adapted_model_answers_as_with_merged_weights(lm):
    config = LoraConfig(rank=2)
    start = init_adapter(lm.config, config, jax.random.key(0))
    weights = jax.tree.map(lambda w: w + 0.05, start)
    adapter = Adapter(weights, config, lm.config, "pocket")
    persona = Persona("CHN")
    found = ask(lm, SURVEY, [WithAdapter(adapter, persona), persona, WithAdapter(adapter)])
    assert found.conditions == ("persona CHN, adapted", "persona CHN", "naive, adapted")
    merged = ask(adapter.merge(lm), SURVEY, [persona, Plain()])
    assert_alike(found.log_probs[[0, 2]], merged.log_probs)
    assert_alike(found.log_probs[[1]], ask(lm, SURVEY, [persona]).log_probs)
    assert np.abs(found.valid_mass[0] - found.valid_mass[1]).max() > 1e-3
    # Adapters of one structure share a program.
    programs = answer_blocks._cache_size()
    other = Adapter(jax.tree.map(lambda w: w + 0.1, start), config, lm.config, "pocket")
    again = ask(lm, SURVEY, [WithAdapter(other, persona), persona, WithAdapter(other)])
    assert answer_blocks._cache_size() == programs
    assert np.abs(again.log_probs[0, :, :2] - found.log_probs[0, :, :2]).max() > 1e-3


def test_what_cannot_be_asked_is_refused(lm):
    with pytest.raises(UserError, match="'naive' is there twice"):
        ask(lm, SURVEY, [Plain(), Plain()])
    with pytest.raises(UserError, match="give at least one"):
        ask(lm, SURVEY, [])
    with pytest.raises(UserError, match="embeddings are 7 wide and the model's 128"):
        ask(lm, SURVEY, [Soft(np.zeros((2, 7), np.float32))])
    short = dataclasses.replace(lm.files, config=lm.config.replace(max_position_embeddings=200))
    short = dataclasses.replace(lm, files=short)
    with pytest.raises(UserError, match=r"icl CHN.*max_position_embeddings=200"):
        ask(short, SURVEY, [Plain(), InContext("CHN", OTHER, examples=5)])
    with pytest.raises(UserError, match=r"soft.*max_position_embeddings=200"):
        ask(short, SURVEY, [Soft(np.zeros((200, 128), np.float32))])
    persona = tuple(Persona("IND").lead_in(load_prompts()))
    with pytest.raises(UserError, match="cannot be combined with a persona"):
        ask(lm, SURVEY, [Soft(np.zeros((2, 128), np.float32), "system", persona)])


@pytest.mark.long
def test_conversations_are_continued(lm):
    asked = "Is family important to you?"
    assert generate(lm, asked) == generate(lm, [{"role": "user", "content": asked}])
    drawn = [generate(lm, asked, temperature=1.0, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_methods_have_names_of_their_own():
    assert len({method.key for method in METHODS.values()}) == len(METHODS)
    assert [m.label for m in soft_prompt_methods("DifferentialEvolution", "expected").values()] == [
        "naive",
        "persona",
        "ICL",
        "start",
        "DE",
        "gradient",
    ]
    named = soft_prompt_methods("CMA_ES", "most_likely")
    assert named["tuned"].label == "CMA_ES"
    assert named["gradient"].title == "same prompt by gradients (expected reading)"


def test_a_killed_call_continues_and_depends_on_weights(lm, tmp_path, monkeypatch):
    """Answers are kept by what was asked and of which weights; an adapter is other weights."""
    start = init_adapter(lm.config, LoraConfig(rank=2), jax.random.key(0))
    adapter = Adapter(jax.tree.map(lambda w: w + 0.05, start), LoraConfig(rank=2), lm.config, "")
    conditions = [Plain(), WithAdapter(adapter), Persona("CHN")]
    asked = functools.partial(ask, lm, SURVEY, conditions, folder=tmp_path)
    first = asked()
    assert len(list(tmp_path.iterdir())) == 2  # of the unchanged model, and of the adapted one
    monkeypatch.setattr(block_program, "answer_blocks", None)  # nothing is computed again
    again = asked()
    np.testing.assert_array_equal(again.log_probs, first.log_probs)
    np.testing.assert_array_equal(again.valid_mass, first.valid_mass)
    assert again.conditions == ("naive", "naive, adapted", "persona CHN")
    other = dataclasses.replace(adapter, weights=start)
    with pytest.raises(TypeError):  # other weights: it would have to be computed
        ask(lm, SURVEY, [WithAdapter(other)], folder=tmp_path)


@pytest.mark.long
def test_sampled_replies_follow_the_probabilities_under_any_condition(lm):
    """Soft prompts and adapters enter drawn replies as they enter probabilities."""
    persona = Persona("CHN")
    text = persona.lead_in(load_prompts())[0]["content"]
    soft = Soft(embedded(lm, text), "system")  # the persona's own text, as embeddings
    sampling = Sampling(max_new_tokens=4, temperature=1.0)
    reading = Sampled(runs=200, sampling=sampling, batch_size=200)
    drawn = ask(lm, SURVEY, [soft, persona, Plain()], reading=reading)
    exact = ask(lm, SURVEY, [soft, persona, Plain()])
    assert drawn.positions.shape == (200, 3, 6)
    gap = np.abs(drawn.distributions() - exact.distributions())
    assert gap.max() < 0.15  # 200 replies: a standard error of at most 0.035
    greedy = Sampled(runs=1, sampling=Sampling(max_new_tokens=4, temperature=0.0))
    soft_reply, persona_reply = ask(lm, SURVEY, [soft, persona], reading=greedy).positions[0]
    np.testing.assert_array_equal(soft_reply, persona_reply)


def test_replies_need_not_be_written_beyond_what_is_read(lm, monkeypatch):
    """With `whole=False`, a reply ends once its number is clear, whatever would follow."""
    ends = {}

    def sampler(*arguments):
        *_, is_complete = arguments

        def sample(requests, replies, longest):
            for name, _, _ in requests:
                said = lm.tokenizer.encode("1 because I do")
                lengths = range(1, len(said)) if is_complete else ()
                enough = (n for n in lengths if is_complete(name, said[:n]))
                said = said[: next(enough, len(said))]
                ends[name] = lm.tokenizer.decode(said)
                yield name, said

        return sample

    monkeypatch.setattr("jaxalign.methods.ask.model_sampler", sampler)
    short = ask(lm, SURVEY, [Plain()], reading=Sampled(runs=1, whole=False))
    # A word is complete once something follows it.
    assert set(ends.values()) <= {"1 because", "1 because I"}
    whole = ask(lm, SURVEY, [Plain()], reading=Sampled(runs=1))
    assert set(ends.values()) == {"1 because I do"}
    np.testing.assert_array_equal(short.positions, whole.positions)
