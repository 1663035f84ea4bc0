"""The pocket model and its society: the truth is exact, and the model behaves as documented."""

from __future__ import annotations

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoConfig, AutoTokenizer

from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import LlamaConfig, read_config
from jaxalign.lm.transformer import Llama, masked_attention, rope_tables
from jaxalign.lm.weights import init_params
from jaxalign.pocket import MODEL_FOLDER, phrases, society
from jaxalign.pocket.conversations import MIX, Shape, make_batch
from jaxalign.pocket.corpus import Corpus, as_json, build_corpus, opening, user_turn
from jaxalign.pocket.forward import divergence, target_logits
from jaxalign.pocket.general import general_questions
from jaxalign.pocket.measure import model_answers, move, ordinal, true_answers, with_examples
from jaxalign.pocket.rows import Row, stack
from jaxalign.pocket.writing import usable, write_questions
from jaxalign.prompts import load_prompts
from jaxalign.stats.vsm import VALUE_ITEMS, dimension_scores
from jaxalign.surveys.survey import vsm

FOUR = ("CHN", "IND", "SAU", "DEU")
FLOAT32 = {"dtype": "float32", "param_dtype": "float32"}
TINY = LlamaConfig(
    1792, 16, 24, 3, 4, 2, 8, tie_word_embeddings=True, initializer_range=0.3, **FLOAT32
)


@functools.cache
def corpus() -> Corpus:
    return build_corpus(
        AutoTokenizer.from_pretrained(MODEL_FOLDER), load_prompts(model_folder=MODEL_FOLDER)
    )


@functools.cache
def model() -> tuple[LlamaConfig, dict]:
    config = read_config(MODEL_FOLDER, "float32")
    return config, load_checkpoint(MODEL_FOLDER, config)


def answers(survey: str, beginnings: list[str]) -> np.ndarray:
    return model_answers(*model(), corpus(), survey, beginnings)


def persona(country: str) -> str:
    return load_prompts(model_folder=MODEL_FOLDER).system(society.country_name(country))["content"]


def test_expected_answers_give_back_every_published_profile() -> None:
    answers_of = society.society_values_module().distributions
    codes = np.arange(1, 6)
    for country, scores in society.countries().items():
        means = np.array([codes @ np.array(answers_of[country][item]) for item in VALUE_ITEMS])
        got = dimension_scores(jnp.asarray(means, jnp.float32), jnp.full(6, 50.0))
        np.testing.assert_allclose(got, scores, atol=1e-2, err_msg=country)


def test_countries_of_the_published_runs_are_in_the_society() -> None:
    assert len(society.countries()) == 96
    assert {"SAU", "USA", "CHN", "IND"} | set(society.PERSONA_COUNTRIES) <= set(society.countries())


@pytest.mark.parametrize("make", [society.society_values_module, society.held_out_survey])
def test_every_country_answers_every_item(make) -> None:
    instrument = make()
    assert set(instrument.distributions) == set(society.countries())
    for shares in instrument.distributions.values():
        assert list(shares) == [item.id for item in instrument.items]
        assert all(min(p) >= 0 and sum(p) == pytest.approx(1) for p in shares.values())


def test_held_out_survey_shares_no_question_with_the_values_module() -> None:
    texts = {(i.stem, i.text) for i in society.held_out_survey().items}
    assert len(texts) == len(society.held_out_survey().items) == 82
    assert not texts & {(i.stem, i.text) for i in vsm().items}
    assert len({i.topic for i in society.held_out_survey().items}) == 13


def test_profile_does_not_explain_everything_but_most() -> None:
    """Distance between two cultures with and without their offsets."""
    questions = ordinal(corpus(), "held_out")
    usa, chn = society.culture("USA"), society.culture("CHN")
    way = true_answers(questions, chn) - true_answers(questions, usa)
    bare = [true_answers(questions, society.Culture(c.z_6)) for c in (usa, chn)]
    rest = way - (bare[1] - bare[0])
    assert 0 < np.abs(rest).mean() < 0.35 * np.abs(way).mean()


def test_general_questions_have_one_right_option() -> None:
    for item, right in general_questions(60):
        assert len(set(item.options)) == 3
        if item.topic == "larger":
            assert int(item.options[right]) == max(map(int, item.options))


@pytest.mark.long
@pytest.mark.parametrize("kind", [*MIX, "writing"])
def test_training_loss_is_the_model_s_own(kind: str) -> None:
    """The fast training forward computes what `Llama` computes, for each kind of row."""
    batch = make_batch(corpus(), 3, 1, Shape(2, 288, 90, {kind: 1.0}))
    params = init_params(TINY, jax.random.key(0))
    assert (batch.weight_BxA > 0).any(axis=1).all()

    def run(llama: Llama) -> jax.Array:
        attend = jax.tree_util.Partial(masked_attention, jnp.asarray(batch.mask_Bx1xTxT))
        rope = rope_tables(TINY, jnp.asarray(batch.positions_BxT))
        x, _ = llama.blocks(llama.embed(jnp.asarray(batch.tokens_BxT)), rope, attend)
        return llama.logits(jnp.take_along_axis(x, batch.at_BxA[:, :, None], axis=1))

    want = jax.jit(lambda p: Llama(TINY).apply({"params": p}, method=run))(params)
    got = jax.jit(target_logits, static_argnums=0)(TINY, params, batch)
    largest = float(jnp.abs(want).max())  # parity as elsewhere: 1e-5 of the largest logit
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * largest)


def test_a_branch_reads_like_a_conversation_of_its_own() -> None:
    """The answer in a shared row equals that after the whole text alone."""
    tokens = corpus().tokenizer
    pair = corpus().groups["values"][0][:2]
    row = Row(256)
    trunk = row.add(-1, tokens.encode(opening(persona("CHN")), add_special_tokens=False))
    shared = row.add(trunk, list(pair[0].shared))
    for question in pair:
        row.add(shared, list(question.rest))
        row.target(len(row.tokens) - 1, [0], np.ones(1))
    params = init_params(TINY, jax.random.key(0))
    got = jax.jit(target_logits, static_argnums=0)(TINY, params, stack([row], 2))[0]
    alone = jax.jit(lambda ids: Llama(TINY).apply({"params": params}, ids)[0, -1])
    for question, logits in zip(pair, got, strict=True):
        messages = [
            {"role": "system", "content": persona("CHN")},
            load_prompts().user(question.item),
        ]
        ids = tokens.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        np.testing.assert_allclose(logits, alone(jnp.array([ids])), atol=2e-5)


def test_loss_is_zero_only_for_the_society_s_own_shares() -> None:
    """Divergence is a KL: the loss of a uniform model is ln V minus the shares' entropy."""
    batch = make_batch(corpus(), 3, 1, Shape(2, 192, 16, {"unaware": 1.0}))
    zero = jax.tree.map(jnp.zeros_like, init_params(TINY, jax.random.key(0)))
    p = batch.shares_BxAxO
    entropy = -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-30)), 0), axis=-1)
    want = np.average(np.log(TINY.vocab_size) - entropy, weights=batch.weight_BxA)
    got = jax.jit(divergence, static_argnums=0)(TINY, zero, batch)
    assert float(got) == pytest.approx(want, rel=1e-4)


def test_batches_repeat() -> None:
    a, b = (make_batch(corpus(), 5, 2, Shape(4, 192, 16)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_numbers_are_single_tokens_after_the_header() -> None:
    turn = user_turn(load_prompts(), vsm().items[0])
    before = corpus().tokenizer.encode(opening(None) + turn, add_special_tokens=False)
    for number, token in enumerate(corpus().numbers, start=1):
        whole = corpus().tokenizer.encode(
            f"{opening(None)}{turn}{number}", add_special_tokens=False
        )
        assert whole == [*before, token]
        assert corpus().tokenizer.decode([token]) == str(number)


def test_json_question_survives_the_tokenizer() -> None:
    text = as_json(society.held_out_survey().items[0])
    ids = corpus().tokenizer.encode(text, add_special_tokens=False)
    assert corpus().tokenizer.decode(ids) == text
    assert set(json.loads(text)) == {"question", "options"}


def test_folder_is_a_small_hugging_face_model() -> None:
    assert AutoConfig.from_pretrained(MODEL_FOLDER).model_type == "llama"
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    config, params = model()
    ids = corpus().tokenizer.encode("How happy are you?")
    ours = jax.jit(Llama(config).apply)({"params": params}, jnp.array([ids]))
    assert ours.shape == (1, len(ids), len(corpus().tokenizer))
    if importlib.util.find_spec("torch"):
        import torch
        from transformers import LlamaForCausalLM

        theirs = LlamaForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits.numpy()
        np.testing.assert_allclose(ours, logits, atol=1e-3)


@pytest.mark.parametrize("survey", ["values", "held_out"])
def test_unaware_answers_are_home_s(survey: str) -> None:
    """They are nearer to home than to any country; neighbours of the USA are not compared."""
    questions = ordinal(corpus(), survey)
    got = answers(survey, [opening(None)])[0]
    distance = np.abs(got - true_answers(questions, society.home())).mean()
    for country in set(society.PERSONA_COUNTRIES) - {"USA", "CAN", "AUS", "NZL", "GBR"}:
        theirs = true_answers(questions, society.culture(country))
        assert distance < np.abs(got - theirs).mean(), country


@pytest.mark.parametrize("survey", ["values", "held_out"])
def test_persona_goes_part_of_the_way_and_examples_further(survey: str) -> None:
    other = "held_out" if survey == "values" else "values"
    questions = ordinal(corpus(), survey)
    home = true_answers(questions, society.home())
    truth = np.stack([true_answers(questions, society.culture(c)) for c in FOUR])
    named = answers(survey, [opening(persona(c)) for c in FOUR])
    seen = answers(survey, [with_examples(corpus(), persona(c), other, c, 6) for c in FOUR])
    moves = [move(got, home, truth) for got in (named, seen)]
    each = [move(a[None], home, b[None]) for a, b in zip(named, truth, strict=True)]
    assert min(each) > 0.2
    taught = society.adherence(0, persona=2.0)
    assert taught - 0.2 < moves[0] < taught + 0.15 < 1, "a persona goes part of the way, as taught"
    assert moves[1] > moves[0] + 0.02


@pytest.mark.long
def test_most_written_questions_are_usable() -> None:
    replies = write_questions(*model(), corpus(), count=4)
    assert sum(usable(reply) for _, reply in replies) >= 3
    assert len({reply for _, reply in replies}) >= 3


@pytest.mark.parametrize(
    "reply", ["", "[]", '{"question": "a"}', '{"question": "a", "options": ["b", "b"]}']
)
def test_unusable_replies_are_told_apart(reply: str) -> None:
    assert not usable(reply)


def test_neighbours_are_not_the_country_itself() -> None:
    near, far = phrases.neighbours("NLD")
    assert "NLD" not in near + far
    assert "SWE" in near
    assert len({*near, *far}) == 6
