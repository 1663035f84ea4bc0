"""Answers under several presentations, by number, letter and text: the meaning counts."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import zlib

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.answering.asked import asked_items
from jaxalign.answering.batch import ExactAnswers
from jaxalign.answering.conversations import option_spellings, soft_prompt_layout
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.core.errors import UserError
from jaxalign.lm.transformer import Llama
from jaxalign.methods import ask as ask_module
from jaxalign.methods.ask import Exact, Sampled, answer, ask, encode_conditions
from jaxalign.methods.conditions import InContext, Persona, Plain
from jaxalign.methods.culturespa.conditions import InStyle
from jaxalign.methods.culturespa.styles import StylePrompts, load_texts
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.pocket import MODEL_FOLDER, pocket_model
from jaxalign.pocket.society import held_out_survey
from jaxalign.prompts import load_prompts
from jaxalign.surveys.presentations import FORMS, present
from jaxalign.surveys.responses import NO_REPLY, UNREADABLE, Responses
from jaxalign.surveys.survey import Item, Survey, vsm

FOUR = Item(
    "q4", "Which matters most?", ("order", "a say", "low prices", "free speech"), (1, 2, 3, 4)
)
TWO = Item("q2", "Is it so?", ("yes", "no"), (0, 1), "nominal")
TENTHS = Item("q10", "How far?", tuple(f"step {n}" for n in range(1, 11)), tuple(range(1, 11)))
OTHER = held_out_survey()
PROMPTS = load_prompts(model_folder=MODEL_FOLDER)


def survey_of(*items: Item) -> Survey:
    return Survey("made up", "1", "test", "official", items)


@pytest.fixture(scope="module")
def lm():
    return pocket_model()


@pytest.fixture(scope="module")
def next_log_probs(lm):
    """Log-probabilities of what follows a text, by a plain forward pass."""

    @jax.jit
    def forward(params, ids_T, last):
        logits = Llama(lm.config).apply({"params": params}, ids_T[None])
        return jax.nn.log_softmax(logits[0, last])

    @functools.cache
    def of(ids: tuple[int, ...]) -> np.ndarray:
        filled = np.zeros(256, np.int32)  # causal, so the tail is unseen
        filled[: len(ids)] = ids
        return np.asarray(forward(lm.params, filled, len(ids) - 1), np.float64)

    return of


def by_plain_forward(lm, next_log_probs, shown, lead_in=(), weigh=lambda total, tokens: total):
    """Log-probabilities of an item's options as it is shown, spelling by spelling."""
    ids = tuple(lm.tokenizer.encode_chat([*lead_in, PROMPTS.user(shown)]))
    [options] = option_spellings(lm.tokenizer, [shown])
    found = []
    for spellings in options:
        weighed = []
        for s in spellings:
            total = sum(next_log_probs((*ids, *s[:n]))[s[n]] for n in range(len(s)))
            weighed.append(weigh(total, len(s)))
        found.append(np.logaddexp.reduce(weighed))
    return np.array(found) - np.logaddexp.reduce(found)


def test_all_orders_are_averaged_as_by_brute_force(lm, next_log_probs):
    answers = ask(lm, survey_of(FOUR, TWO), [Plain()], presentations=("orders",))
    for q, item in enumerate((FOUR, TWO)):
        by_order = []
        for order in itertools.permutations(range(len(item.options))):
            # A list in this order by itself, whose answers are put back by hand.
            listed = dataclasses.replace(
                item, options=tuple(item.options[o] for o in order), scale="nominal"
            )
            by_order.append(np.empty(len(order)))
            by_order[-1][list(order)] = by_plain_forward(lm, next_log_probs, present(listed))
        assert len({tuple(row) for row in np.round(by_order, 6)}) > 1
        expected = np.log(np.mean(np.exp(by_order), axis=0))
        np.testing.assert_allclose(answers.log_probs[0, q, : len(expected)], expected, atol=1e-5)
    assert len(answers.by_presentation) == 24


@pytest.mark.long
@pytest.mark.parametrize(
    "presentations", [FORMS, ("letters", "letters-reversed"), ("order-2413", "C")]
)
def test_every_presentation_answers_as_the_plain_forward(lm, next_log_probs, presentations):
    items = (FOUR,) if "order-2413" in presentations else (FOUR, TWO, TENTHS)
    persona = Persona("CHN")
    answers = ask(lm, survey_of(*items), [Plain(), persona], presentations=presentations)
    lead_ins = [[], persona.lead_in(PROMPTS)]
    for name, part in answers.by_presentation.items():
        for (a, lead_in), (q, item) in itertools.product(enumerate(lead_ins), enumerate(items)):
            expected = by_plain_forward(lm, next_log_probs, present(item, name), lead_in)
            found = part.log_probs[a, q, : len(expected)]
            np.testing.assert_allclose(found, expected, atol=1e-4)
    mean = np.mean([np.exp(part.log_probs) for part in answers.by_presentation.values()], axis=0)
    np.testing.assert_allclose(np.exp(answers.log_probs), mean, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("form", ["label", "label-per-token", "label-against-prior"])
def test_labels_answer_as_the_plain_forward(lm, next_log_probs, form):
    """Texts of several tokens that begin alike, one of which is the beginning of another."""
    degrees = Item("qd", "Do you?", ("agree", "agree a lot", "no", "not at all"), (1, 2, 3, 4))
    items = (FOUR, degrees, TWO)
    persona = Persona("CHN")
    answers = ask(lm, survey_of(*items), [Plain(), persona], reading=Exact(answer=form))
    for a, lead_in in enumerate([[], persona.lead_in(PROMPTS)]):
        for q, item in enumerate(items):
            shown = present(item, reply="label")
            weigh = (lambda t, n: t / n) if form == "label-per-token" else (lambda t, n: t)
            expected = by_plain_forward(lm, next_log_probs, shown, lead_in, weigh)
            if form == "label-against-prior":
                neutral = PROMPTS.neutral_question(shown)
                expected -= by_plain_forward(lm, next_log_probs, neutral, lead_in)
                expected -= np.logaddexp.reduce(expected)
            found = answers.log_probs[a, q, : len(expected)]
            np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("placement", ["front", "after"])
@pytest.mark.parametrize(
    ("presentations", "form"),
    [
        (FORMS, "number"),
        (("A",), "label"),
        (("A",), "label-per-token"),
        (("A", "B"), "label-against-prior"),
    ],
)
def test_the_search_reads_answers_as_ask_does(lm, placement, presentations, form):
    items = (FOUR, TWO, TENTHS)
    table = np.asarray(lm.params["embed"])
    soft = SoftPrompt(table[lm.tokenizer.encode("I live in a town by the sea")[:4]], placement)
    answers = ask(
        lm,
        survey_of(*items),
        [soft],
        presentations=presentations,
        reading=Exact(answer=form),
        prompts=PROMPTS,
    )
    asked = asked_items(PROMPTS, items, presentations, form)
    layout = soft_prompt_layout(
        lm.tokenizer, PROMPTS, asked.rows, placement, 4, per_token=asked.per_token
    )
    prepared = prepare_items(lm.config, lm.params, layout)
    log_probs_PxRxO = option_log_probs(lm.config, prepared, soft.embeddings_MxD[None], chunk=1)
    mean = asked.mean_log_probs(log_probs_PxRxO)[0]
    there = np.isfinite(answers.log_probs[0])
    np.testing.assert_allclose(mean[there], answers.log_probs[0][there], atol=1e-4)
    each = asked.presentation_log_probs(log_probs_PxRxO)[0]
    for name, found in zip(asked.presentations, each, strict=True):
        part = answers if len(presentations) == 1 else answers.by_presentation[name]
        np.testing.assert_allclose(found[there], part.log_probs[0][there], atol=1e-4)


# -- a model that answers by meaning ----------------------------------------------------------


LINE = re.compile(r"(-?\d+|[A-Z]) = (view \w+)")


def means(seed: int, asked: str, label: str) -> float:
    """How likely the text of an option is as the answer to a question, wherever it stands."""
    digits = zlib.crc32(f"{seed} {asked} {label}".encode())
    return 0.05 + digits % 1000


class ByMeaning:
    """Stands for a model whose answers do not depend on how options are shown."""

    def __init__(self, seed: int, tokenizer) -> None:
        self.seed, self.tokenizer = seed, tokenizer

    def _shown(self, conversations, n: int) -> tuple[dict[str, str], str]:
        text = self.tokenizer.decode(conversations.tokens(n).tolist())
        asked = text[text.rindex("This is asked:") :]
        return dict(LINE.findall(asked)), re.search(r"asked: (\w+)", asked)[1]

    def exact(self, config, params, conversations, mesh, **_):
        most = max(len(options) for options in conversations.options)
        log_probs = np.full((len(conversations), most), -np.inf, np.float32)
        for n in range(len(conversations)):
            labels, asked = self._shown(conversations, n)
            for o, option in enumerate(conversations.spellings(n)):
                ids = [t for t in option[0] if t != self.tokenizer.eot_id]
                label = labels[self.tokenizer.decode(ids).strip()]
                log_probs[n, o] = np.log(means(self.seed, asked, label))
        log_probs -= np.logaddexp.reduce(log_probs, axis=-1, keepdims=True)
        return ExactAnswers(log_probs, np.ones(len(conversations), np.float32))

    def sampler(self, *_):
        def sample(requests, replies, longest):
            for name, prompt, _id in requests:
                text = self.tokenizer.decode(np.asarray(prompt).tolist())
                asked = text[text.rindex("This is asked:") :]
                labels = dict(LINE.findall(asked))
                stem = re.search(r"asked: (\w+)", asked)[1]
                mark = max(labels, key=lambda m: means(self.seed, stem, labels[m]))
                yield name, self.tokenizer.encode(f"Option {mark}.")

        return sample


@st.composite
def surveys(draw) -> Survey:
    items = []
    for n in range(draw(st.integers(1, 4))):
        count, first = draw(st.integers(2, 5)), draw(st.integers(-1, 7))
        codes = tuple(range(first, first + count))
        codes = draw(st.sampled_from([codes, codes[::-1]]))
        options = tuple(f"view {'abcdefgh'[o]}" for o in range(count))
        scale = draw(st.sampled_from(["ordinal", "nominal"]))
        items.append(Item(f"i{n}", f"This is asked: q{n}", options, codes, scale))
    return survey_of(*items)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    survey=surveys(),
    chosen=st.lists(
        st.sampled_from([*FORMS, "letters", "letters-reversed", "orders"]),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    seed=st.integers(0, 1000),
    sampled=st.booleans(),
)
def test_answers_by_meaning_are_the_same_in_all_presentations(
    lm, monkeypatch, survey, chosen, seed, sampled
):
    """A model without a preference for numbers or places gets one score, however it is asked."""
    model = ByMeaning(seed, lm.tokenizer)
    monkeypatch.setattr(ask_module, "answer_exact", model.exact)
    monkeypatch.setattr(ask_module, "model_sampler", model.sampler)
    reading = Sampled(runs=2) if sampled else Exact()
    conditions = [Plain(), InContext("CHN", OTHER, examples=2)]
    published = ask(lm, survey, conditions, reading=reading)
    answers = ask(lm, survey, conditions, presentations=chosen, reading=reading)
    np.testing.assert_allclose(answers.expected(), published.expected(), rtol=1e-5)
    np.testing.assert_array_equal(answers.most_likely(), published.most_likely())
    np.testing.assert_array_equal(answers.valid_mass, published.valid_mass)
    for part in (answers.by_presentation or {"A": answers}).values():
        np.testing.assert_allclose(part.expected(), published.expected(), rtol=1e-5)
        assert part.counts()["out_of_range"] == 0


# -- what is asked ----------------------------------------------------------------------------


def test_published_questions_are_those_of_before(lm):
    """With one presentation, conversations and their order are what they have always been."""
    conditions = [Plain(), InContext("CHN", OTHER, examples=2), Plain()]
    questions = encode_conditions(lm.files, PROMPTS, conditions, vsm().items)
    assert len(questions.conversations) == 3 * 24
    assert questions.index_AxFxQ.tolist() == np.arange(72).reshape(3, 1, 24).tolist()
    for n in (0, 25, 71):
        a, q = divmod(n, 24)
        chat = [*conditions[a].lead_in(PROMPTS), PROMPTS.user(vsm().items[q])]
        assert questions.conversations.tokens(n).tolist() == lm.tokenizer.encode_chat(chat)


def test_what_is_asked_twice_is_asked_once(lm):
    conditions = [Plain(), Persona("CHN")]
    questions = encode_conditions(lm.files, PROMPTS, conditions, [FOUR, TWO], ("A", "orders"))
    assert len(questions.conversations) == 2 * (24 + 2)
    assert questions.index_AxFxQ.shape == (2, 25, 2)
    # The text before a question does not depend on its presentation.
    assert len(questions.conversations.lead_ins) == 2


@pytest.mark.parametrize("form", ["B", "D", "letters"])
@pytest.mark.parametrize("p3_form", ["turns", "one_message"])
def test_examples_are_shown_like_the_question(lm, form, p3_form):
    """If not, they would teach the model another numbering than the question's."""
    texts = StylePrompts(load_texts(), OTHER, ("USA", "CHN"), count=2, p3_form=p3_form)
    conditions = [InContext("CHN", OTHER, examples=1), InStyle("p3", texts, "CHN")]
    items = OTHER.items[:2]
    questions = encode_conditions(lm.files, PROMPTS, conditions, items, ("A", form))
    for a, condition in enumerate(conditions):
        shown = condition.examples if a == 0 else texts.examples_for(items[0])
        example = (condition.items() if a == 0 else shown)[0]
        published, other = (
            lm.tokenizer.decode(
                questions.conversations.tokens(questions.index_AxFxQ[a, f, 0]).tolist()
            )
            for f in (0, 1)
        )
        for text, name in ((published, "A"), (other, form)):
            mark, label = present(example, name).pairs[0]
            assert f"{mark} = {label}" in text
        answer_of = OTHER.majority("CHN")[example.id]
        mark = present(example, form).mark_of(answer_of)
        start = (
            "Answer: " if (a, p3_form) == (1, "one_message") else "assistant<|end_header_id|>\n\n"
        )
        assert f"{start}{mark}" in other
        # A text that names the reply by its label shows labels as replies.
    labels = encode_conditions(lm.files, PROMPTS, conditions[:1], items, answer="label")
    text = lm.tokenizer.decode(labels.conversations.tokens(0).tolist())
    example = conditions[0].items()[0]
    assert f"\n\n{example.options[OTHER.majority('CHN')[example.id]]}" in text


def test_questions_are_read_as_they_are_asked(lm):
    questions = encode_conditions(lm.files, PROMPTS, [Plain()], [TWO], answer="label")
    with pytest.raises(ValueError, match="answer='label' are read by 'number'"):
        answer(lm, questions, Exact())


def test_presentations_are_checked_before_anything_is_asked(lm):
    for presentations, message in ((("E",), "choose from"), (("orders",), "10 options")):
        with pytest.raises(UserError, match=message):
            ask(lm, survey_of(TENTHS), [Plain()], presentations=presentations)


# -- what is made of it -----------------------------------------------------------------------


def test_replies_count_by_presentation():
    """A presentation in which few replies can be read counts no less than another."""
    survey = survey_of(TWO)
    many = np.array([[[0]], [[0]], [[0]]])
    few = np.array([[[1]], [[UNREADABLE]], [[UNREADABLE]]])
    parts = {
        name: Responses.from_positions(survey, ["x"], positions)
        for name, positions in (("A", many), ("B", few))
    }
    both = Responses.from_presentations(parts)
    np.testing.assert_array_equal(both.distributions(), [[[0.5, 0.5]]])
    np.testing.assert_allclose(np.exp(both.log_probs), [[[0.5, 0.5]]])
    np.testing.assert_allclose(both.valid_mass, [[2 / 3]])
    assert both.positions.shape == (6, 1, 1)
    assert both.counts()["unreadable"] == 2
    # Where one presentation has no readable reply, the other is the answer.
    parts["B"] = Responses.from_positions(survey, ["x"], np.full((3, 1, 1), UNREADABLE))
    np.testing.assert_array_equal(
        Responses.from_presentations(parts).distributions(), [[[1.0, 0.0]]]
    )
    parts["A"] = Responses.from_positions(survey, ["x"], np.full((3, 1, 1), NO_REPLY))
    assert np.isnan(Responses.from_presentations(parts).expected()).all()


def test_parts_are_joined_and_chosen_under_every_presentation():
    survey = survey_of(TWO)
    rng = np.random.default_rng(0)

    def part(label):
        each = {
            name: Responses(
                survey,
                (label,),
                np.log(rng.dirichlet([1, 1], (1, 1))).astype(np.float32),
                np.ones((1, 1), np.float32),
            )
            for name in FORMS
        }
        return Responses.from_presentations(each)

    x, y = part("x"), part("y")
    both = Responses.join([x, y]).select(["y", "x"])
    np.testing.assert_array_equal(both.log_probs, np.concatenate([y.log_probs, x.log_probs]))
    np.testing.assert_array_equal(
        both.by_presentation["C"].log_probs[0], y.by_presentation["C"].log_probs[0]
    )
