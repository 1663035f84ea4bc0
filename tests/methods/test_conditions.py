"""What stands before a question: nothing, a persona, or that and examples drawn fairly."""

from __future__ import annotations

import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.conditions import InContext, Persona, Plain, WithAdapter, draw_examples
from jaxalign.prompts import load_prompts
from jaxalign.surveys.survey import Item, Survey


def survey() -> Survey:
    items = (
        Item("a", "First?", ("no", "so", "yes"), (1, 2, 3), topic="x"),
        Item("b", "Second?", ("no", "yes"), (0, 1), scale="nominal", topic="x"),
        Item("c", "Third?", ("no", "yes"), (1, 2), topic="y"),
    )
    answers = {
        "USA": {"a": (1.0, 0.0, 0.0), "b": (0.25, 0.75), "c": (0.4, 0.6)},
        "CHN": {"a": (0.0, 0.0, 1.0), "b": (0.75, 0.25)},
    }
    return Survey("test", "1", "ours", "paraphrase", items, answers)


def test_examples_take_turns_among_topics_and_are_answered_by_all():
    examples = draw_examples(survey(), ("USA",), 2, seed=3)
    assert {item.topic for item in examples} == {"x", "y"}
    assert {i.id for i in draw_examples(survey(), ("USA", "CHN"), 2, seed=3)} == {"a", "b"}
    with pytest.raises(UserError, match="`icl_examples` 3"):
        draw_examples(survey(), ("USA", "CHN"), 3, seed=3)


def test_examples_show_the_groups_majority_answers_as_codes():
    turns = InContext("CHN", survey(), survey().items[:2]).lead_in(load_prompts())
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 2]
    assert "China" in turns[0]["content"]
    assert [turns[2]["content"], turns[4]["content"]] == ["3", "0"]
    assert Plain().lead_in(load_prompts()) == []


def test_all_who_share_examples_are_shown_the_same():
    shared = InContext("CHN", survey(), 2, shared_with=("USA",))
    other = InContext("USA", survey(), 2, shared_with=("CHN",))
    assert shared.items() == other.items()
    given = InContext("USA", survey(), shared.items())
    assert given.lead_in(load_prompts()) == other.lead_in(load_prompts())


def test_a_group_may_be_anybody():
    [line] = Persona("teachers", "Wales, as a teacher").lead_in(load_prompts())
    assert "Wales, as a teacher" in line["content"]
    with pytest.raises(UserError, match="'teachers' is unknown"):
        Persona("teachers").lead_in(load_prompts())


def test_an_adapter_adds_to_another_condition():
    adapted = WithAdapter({}, Persona("CHN"))
    assert adapted.name == "persona CHN, adapted"
    assert adapted.group == "CHN"
    assert adapted.soft_prompt is None
    assert adapted.lead_in(load_prompts()) == Persona("CHN").lead_in(load_prompts())
