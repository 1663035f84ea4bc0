"""CulturalBench: what is asked under which method, who is scored on what, and the record of it.

Only the long tests compute with a model. The others look at token ids and score made-up answers.
"""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from jaxalign.commands.reports import cultural_bench_report
from jaxalign.core.errors import UserError
from jaxalign.core.files import plain
from jaxalign.lm.lora import Adapter, LoraConfig, init_adapter
from jaxalign.lm.model import open_model
from jaxalign.methods.ask import Answers, Exact, Sampled, ask
from jaxalign.methods.conditions import Persona, Plain, WithAdapter
from jaxalign.methods.cultural_bench import cultural_bench, run
from jaxalign.methods.cultural_bench.questions import (
    ADAPTER,
    BASELINES,
    PROMPTS,
    _methods,
    ask_bench,
    prepare,
)
from jaxalign.methods.cultural_bench.result import make_result, question_records
from jaxalign.methods.cultural_bench.sets import read_set
from jaxalign.methods.cultural_bench.settings import Settings
from jaxalign.methods.soft_prompt import SoftPrompt
from jaxalign.pocket import pocket_model
from jaxalign.prompts import load_prompts, read_prompt
from jaxalign.surveys.survey import Survey
from tests.support.cultural_bench_files import sets as made_up_sets
from tests.support.cultural_bench_files import write_csv, write_sets
from tests.support.pages import check_report

COUNTRIES = ("United States", "Peru", "Japan")
CODES = ("USA", "PER", "JPN")
JUDGEMENT = read_prompt("judgement", None)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("bench"), countries=COUNTRIES, topics=4)


@pytest.fixture(scope="module")
def both(paths):
    easy, hard = paths
    return (
        read_set("easy", easy, JUDGEMENT, icl_examples=2),
        read_set("hard", hard, JUDGEMENT, icl_examples=2),
    )


def prompt(group: str | None, seed: int = 0, length: int = 3) -> SoftPrompt:
    embeddings = np.random.default_rng(seed).normal(size=(length, 128)).astype(np.float32)
    return SoftPrompt(0.05 * embeddings, group=group)


@pytest.fixture(scope="module")
def files():
    return open_model()


@pytest.fixture(scope="module")
def adapter(files):
    weights = init_adapter(files.config, LoraConfig(rank=2), jax.random.key(0))
    weights = jax.tree.map(lambda w: w + 0.02, weights)
    return Adapter(weights, LoraConfig(rank=2), files.config, "pocket")


@pytest.fixture(scope="module")
def bench(files, both, adapter):
    prompts = [prompt("USA"), prompt("JPN", 1)]
    return prepare(files, load_prompts(), both, soft_prompts=prompts, adapter=adapter)


# The sets


def test_rows_of_hard_become_questions_of_their_own(both):
    row = both[1].items[5]
    assert row.stem == ""
    assert row.options == ("true", "false")
    assert both[1].test.items[5].stem in row.text
    assert both[1].test.items[5].text in row.text


def test_examples_are_the_same_questions_in_both_sets_and_balanced(both):
    easy, hard = both
    assert easy.example_questions == hard.example_questions
    assert set(easy.examples) == set(CODES)
    for code in CODES:
        questions = {easy.test.groups[q] for q in easy.examples[code]}
        assert len(questions) == 2
        assert {easy.countries_Q[q] for q in easy.examples[code]} == {code}
        rows = hard.examples[code]
        assert sorted(hard.test.answers[q] for q in rows) == [0, 0, 1, 1]
        assert {hard.test.groups[q] for q in rows} == questions


def test_a_country_with_too_few_questions_shows_no_examples(tmp_path):
    easy, _ = made_up_sets(COUNTRIES, 4)
    path = write_csv(tmp_path / "easy.csv", [r for r in easy if r["country"] != "Peru"] + easy[4:6])
    assert set(read_set("easy", path, JUDGEMENT, icl_examples=2).examples) == {"USA", "JPN"}
    assert read_set("easy", path, JUDGEMENT, icl_examples=0).examples == {}


def test_countries_are_chosen_by_code_or_name(paths):
    easy = read_set("easy", paths[0], JUDGEMENT, countries=("PER", "United States"))
    assert set(easy.countries_Q) == {"PER", "USA"}
    with pytest.raises(UserError, match=r"`countries` CHN: .* no question about it; .* JPN"):
        read_set("easy", paths[0], JUDGEMENT, countries=("China",))
    with pytest.raises(UserError, match=r"`hard` .*this is CulturalBench Easy, not"):
        read_set("hard", paths[0], JUDGEMENT)


# What is asked


def texts(files, asked, condition: int) -> list[str]:
    items = len(asked.questions.items)
    conversations = asked.questions.conversations
    vocabulary = files.config.vocab_size
    return [
        files.tokenizer.decode([t for t in conversations.tokens(n).tolist() if t < vocabulary])
        for n in range(condition * items, (condition + 1) * items)
    ]


def test_every_item_is_asked_as_its_country_and_after_other_questions(files, bench, both):
    by_stage = {asked.stage: asked for asked in bench.asked}
    assert list(by_stage) == [BASELINES, PROMPTS, ADAPTER]
    asked = by_stage[BASELINES]
    assert asked.questions.conditions == ("naive", "persona", "icl")
    countries = [code for bench_set in both for code in bench_set.countries_Q]
    persona = load_prompts()
    for text, code in zip(texts(files, asked, 1), countries, strict=True):
        assert persona.system(code)["content"] in text
    shown_after = texts(files, asked, 2)
    first = 0
    for bench_set in both:
        for q, item in enumerate(bench_set.items):
            text, code = shown_after[first + q], bench_set.countries_Q[q]
            for example in bench_set.examples[code]:
                assert bench_set.items[example].text in text
            # No leak: the question stands there once, as the last, unless it is an example.
            if bench_set.test.groups[q] not in bench_set.example_questions:
                assert text.count(item.text) == 1
        first += len(bench_set.items)


def test_prompts_are_put_before_questions_of_their_countries_alone(files, bench, both):
    asked = bench.asked[1]
    countries = [code for bench_set in both for code in bench_set.countries_Q]
    assert {countries[q] for q in asked.positions} == {"USA", "JPN"}
    assert len(asked.positions) == 2 * (4 + 16)
    tokens = asked.questions.conversations.tokens(0)
    assert (tokens >= files.config.vocab_size).sum() == 3
    everywhere = prepare(files, load_prompts(), both, soft_prompts=[prompt(None)]).asked[1]
    assert len(everywhere.positions) == len(countries)


def test_a_prompt_for_another_model_is_refused(files, both):
    narrow = SoftPrompt(np.zeros((2, 64), np.float32), group="USA")
    with pytest.raises(UserError, match="64 wide and the model's 128"):
        prepare(files, load_prompts(), both, soft_prompts=[narrow])


# Scores, of made-up answers


def made_up_answers(bench, seed: int = 0) -> list[Answers]:
    random = np.random.default_rng(seed)
    found = []
    for asked in bench.asked:
        shape = len(asked.questions.conditions), len(asked.questions.items)
        log_probs = np.full((*shape, 4), -np.inf, np.float32)
        for q, item in enumerate(asked.questions.items):
            p = random.dirichlet(np.ones(len(item.options)), shape[0])
            log_probs[:, q, : len(item.options)] = np.log(p)
        mass = random.uniform(size=shape).astype(np.float32)
        found.append(Answers(asked.questions.conditions, log_probs, mass))
    return found


def by_methods(bench, answers):
    found = []
    first = 0
    for bench_set in bench.sets:
        columns = slice(first, first + len(bench_set.items))
        methods = {}
        for asked, given in zip(bench.asked, answers, strict=True):
            methods |= _methods(bench, bench_set, asked, given, columns)
        found.append(methods)
        first = columns.stop
    return found


def accuracy_by_hand(bench, answers, bench_set, method: str, country: str | None) -> float:
    """Accuracy in loops: the voices of a method one by one, question by question."""
    offset = 0 if bench_set is bench.sets[0] else len(bench.sets[0].items)
    stage = {"tuned": 1, "permuted": 1, "adapted": 2, "adapted_persona": 2}.get(method, 0)
    asked, given = bench.asked[stage], answers[stage]
    groups = [p.group for p in bench.soft_prompts]
    scores = []
    for question in dict.fromkeys(bench_set.test.groups):
        rows = [q for q, g in enumerate(bench_set.test.groups) if g == question]
        code = bench_set.countries_Q[rows[0]]
        if country not in (None, code):
            continue
        if method == "icl" and question in bench_set.example_questions:
            continue
        if method in ("tuned", "permuted"):
            own = [n for n, g in enumerate(groups) if g == code]
            others = [n for n, g in enumerate(groups) if g != code and code in groups]
            voices = own if method == "tuned" else others
        else:
            names = {"adapted": "naive", "adapted_persona": "persona"}
            voices = [given.conditions.index(names.get(method, method))]
        right = []
        for voice in voices:
            good = True
            for q in rows:
                at = asked.positions.tolist().index(offset + q)
                probs = given.log_probs_AxQxO[voice, at]
                good &= int(np.argmax(probs)) == bench_set.test.answers[q]
            right.append(good)
        if right:
            scores.append(sum(right) / len(right))
    return sum(scores) / len(scores) if scores else math.nan


@pytest.fixture(scope="module")
def answers(bench):
    return made_up_answers(bench)


@pytest.fixture(scope="module")
def result(bench, answers):
    by_set = by_methods(bench, answers)
    return make_result(bench, by_set, reading="exact", resamples=200, seed=0, notes=["a note"])


METHODS = ("naive", "persona", "icl", "tuned", "permuted", "adapted", "adapted_persona")


@pytest.mark.parametrize("method", METHODS)
def test_accuracies_equal_those_counted_by_hand(bench, answers, result, method):
    for bench_set in bench.sets:
        record = result["sets"][bench_set.key]["methods"][method]
        hand = accuracy_by_hand(bench, answers, bench_set, method, None)
        assert record["accuracy"]["mean"] == pytest.approx(hand)
        codes = {"USA", "JPN"} if method in ("tuned", "permuted") else set(CODES)
        assert set(record["countries"]) == codes
        for code in codes:
            hand = accuracy_by_hand(bench, answers, bench_set, method, code)
            assert record["countries"][code]["mean"] == pytest.approx(hand)
        assert record["accuracy"]["questions"] == {"icl": 6}.get(method, 4 * len(codes))


def test_differences_are_taken_on_the_questions_that_both_have(bench, answers, result):
    for bench_set in bench.sets:
        methods = result["sets"][bench_set.key]["methods"]
        difference = methods["tuned"]["minus"]["naive"]
        tuned = accuracy_by_hand(bench, answers, bench_set, "tuned", None)
        naive = [
            accuracy_by_hand(bench, answers, bench_set, "naive", code) for code in ("USA", "JPN")
        ]
        assert difference["questions"] == 8
        assert difference["value"] == pytest.approx(tuned)
        assert difference["other"] == pytest.approx(np.mean(naive))
        assert difference["mean"] == pytest.approx(tuned - np.mean(naive))
        assert difference["low"] <= difference["mean"] <= difference["high"]
        assert set(methods["tuned"]["minus"]) == {"naive", "permuted"}
        assert set(methods["adapted_persona"]["minus"]) == {"naive", "persona"}
        assert methods["naive"]["minus"] == {}


def test_the_record(result):
    easy, hard = result["sets"]["easy"], result["sets"]["hard"]
    assert (easy["questions"], easy["items"]) == (12, 12)
    assert (hard["questions"], hard["items"]) == (12, 48)
    assert hard["trivial"]["constant"] == [0, 0]
    assert hard["trivial"]["constant_items"] == [0.25, 0.75]
    assert easy["trivial"]["chance"] == 0.25
    assert hard["trivial"]["chance"] == 0.0625
    assert easy["countries"]["PER"]["name"] == "Peru"
    assert easy["countries"]["PER"]["region"] == "South America"
    assert easy["methods"]["naive"]["items"] is None
    assert 0 <= hard["methods"]["naive"]["items"]["mean"] <= 1
    likeliest = {key: method["picked"] for key, method in hard["methods"].items()}
    assert set(likeliest["tuned"]["minus"]) == {"naive", "permuted"}
    assert likeliest["tuned"]["questions"] == likeliest["tuned"]["minus"]["naive"]["questions"] == 8
    assert likeliest["tuned"]["minus"]["naive"]["value"] == likeliest["tuned"]["mean"]
    assert set(hard["methods"]["naive"]["regions"]) == {
        "East Asia",
        "North America",
        "South America",
    }
    json.dumps(plain(result), allow_nan=False)


def test_records_of_the_questions(bench, answers):
    for bench_set, methods in zip(bench.sets, by_methods(bench, answers), strict=True):
        records = question_records(bench_set, methods)
        assert [r["right"] - 1 for r in records] == list(bench_set.test.answers)
        peru = next(r for r in records if r["country"] == "PER")
        assert "tuned" not in peru["answers"]
        japan = next(r for r in records if r["country"] == "JPN")
        assert len(japan["answers"]["tuned"]) == len(japan["answers"]["permuted"]) == 1
        most = len(bench_set.items[0].options)
        assert all(1 <= r["answers"]["naive"] <= most for r in records)


def test_the_report(tmp_path, result):
    extra = {"model": "m", "pocket": False, "settings": {"resamples": 200}, "facts": {}}
    hard = {"sets": {"hard": result["sets"]["hard"]}, "versions": {"jax": "1"}}
    cultural_bench_report(result | extra | hard, tmp_path)
    check_report(tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    for words in (
        "no model: always false",
        "own tuned − others' tuned",
        "a note.",
        "South America",
        "validity gate: not passed",  # the answers are random
        "points, instrument without signal on this model",
    ):
        assert words in text
    assert "no clear difference" not in text


def test_questions_that_an_untuned_model_answers_pass_the_gate(bench, answers):
    """Right answers pass; the same constant answer to everything does not, however often right."""

    def gates(answer):
        by_set = []
        for bench_set, methods in zip(bench.sets, by_methods(bench, answers), strict=True):
            said_Q = np.array([answer(right) for right in bench_set.test.answers])
            given = {}
            for key, method in methods.items():
                positions = np.where(method.positions_SxQ > -9, said_Q, method.positions_SxQ)
                first = np.where(positions == 0, 0.9, 0.1)  # of "true", the first option
                given[key] = dataclasses.replace(
                    method,
                    positions_SxQ=positions,
                    first_probs_SxQ=None if method.first_probs_SxQ is None else first,
                )
            by_set.append(given)
        sets = make_result(bench, by_set, reading="exact", resamples=10, seed=0)["sets"]
        return {key: record["gate"] for key, record in sets.items()}

    right = gates(lambda right: right)
    assert [gate["passes"] for gate in right.values()] == [True, True]
    # The true row of a question of Hard is the likeliest of four; of Easy, an option is constant.
    assert right["hard"]["best"] == 0.25
    assert right["easy"]["above"] == ["naive", "persona", "icl"]
    constant = gates(lambda right: 0)
    assert [gate["passes"] for gate in constant.values()] == [False, False]


def test_the_report_says_that_an_answer_is_constant(tmp_path, bench, answers):
    option_1 = np.where(np.arange(4) == 1, 0, -9.0)
    always = [
        dataclasses.replace(a, log_probs_AxQxO=np.broadcast_to(option_1, a.log_probs_AxQxO.shape))
        for a in answers
    ]
    by_set = by_methods(bench, always)
    result = make_result(bench, by_set, reading="exact", resamples=10, seed=0)
    record = result["sets"]["hard"]
    naive = record["methods"]["naive"]
    assert (naive["accuracy"]["mean"], naive["items"]["mean"]) == (0, 0.75)
    assert naive["answers"] == {"most_common": "false", "share": 1.0, "unreadable": 0.0}
    constant = [w["text"] for w in result["warnings"] if w["kind"] == "one_option"]
    assert f"option false to {record['items']} of {record['items']} items" in constant[1]
    assert {w["kind"] for w in result["warnings"]} >= {"identical", "few"}


def test_inputs_that_nothing_can_be_done_with(paths):
    lm = dataclasses.make_dataclass("Files", ["files", "mesh"])(open_model(), None)
    with pytest.raises(UserError, match="`easy`, `hard`: give one or both files"):
        cultural_bench(lm)
    with pytest.raises(UserError, match="`icl_examples` -1: must be at least 0"):
        cultural_bench(lm, paths[0], icl_examples=-1)


# With a model


@pytest.mark.long
def test_answers_equal_those_to_single_questions(files, both, bench, adapter):
    lm = pocket_model()
    found = ask_bench(lm, bench, Exact())
    for bench_set, methods in zip(both, found, strict=True):
        for code in ("USA", "PER"):
            where = [q for q, c in enumerate(bench_set.countries_Q) if c == code]
            items = tuple(bench_set.items[q] for q in where)
            survey = Survey("some", "1", "made up", "paraphrase", items)
            own = bench.soft_prompts[0]
            conditions = [
                Plain(),
                Persona(code),
                dataclasses.replace(own, group="x"),
                WithAdapter(adapter, Plain(), "adapted"),
            ]
            expected = ask(lm, survey, conditions, prompts=load_prompts()).distributions()[..., 0]
            for row, method in ((0, "naive"), (1, "persona"), (2, "tuned"), (3, "adapted")):
                probs = methods[method].first_probs_SxQ[0, where]
                if method == "tuned" and code == "PER":
                    assert np.isnan(probs).all()
                    continue
                np.testing.assert_allclose(probs, expected[row], atol=2e-5)


@pytest.mark.long
def test_sampled_replies_are_voices(paths):
    lm = pocket_model()
    result = cultural_bench(
        lm,
        paths[0],
        soft_prompts=[prompt("USA"), prompt("JPN", 1)],
        reading=Sampled(runs=2),
        icl_examples=0,
        resamples=100,
    )
    methods = result["sets"]["easy"]["methods"]
    assert set(methods) == {"naive", "persona", "tuned", "permuted"}
    # Two replies to each of 12 questions: halves are possible, thirds are not.
    assert (methods["naive"]["accuracy"]["mean"] * 24) % 1 == pytest.approx(0, abs=1e-9)
    assert methods["naive"]["valid_mass"] is None


def test_a_prompt_of_a_group_within_a_country_speaks_for_the_country(tmp_path):
    for group in ("USA:female:30-49", "PER", None):
        prompt(group).save(tmp_path / f"{(group or 'none')[:3]}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("USA", "PER", "non")]
    _, prompts = run._soft_prompts(Settings(prompt=(*files, f"JPN:male={files[0]}")))
    assert [p.group for p in prompts] == ["USA", "PER", None, "JPN"]


def test_a_quick_look_takes_whole_questions_from_all_over_a_set(paths):
    whole, few = (read_set("hard", paths[1], JUDGEMENT, limit=limit).test for limit in (None, 2))
    labels = list(dict.fromkeys(whole.groups))
    assert list(dict.fromkeys(few.groups)) == [labels[0], labels[len(labels) // 2]]
    assert len(few.items) == 2 * len(whole.items) // len(labels)
    assert set(zip(few.items, few.answers, few.countries, strict=True)) <= set(
        zip(whole.items, whole.answers, whole.countries, strict=True)
    )
