"""CultureSPA's prompt styles: what they say, what they read, and what they must not read."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.styles import (
    STYLES,
    StylePrompts,
    load_texts,
    similar_and_different,
)
from jaxalign.pocket import MODEL_FOLDER, phrases
from jaxalign.pocket.society import held_out_survey, society_values_module
from jaxalign.surveys.formats import culturespa as cs
from jaxalign.surveys.names import country_name
from tests.support.culture_folder import published_similarities

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
SURVEY, OTHER = held_out_survey(), society_values_module()
COUNTRIES = ("USA", "CHN", "BRA", "NGA", "DEU", "IND", "RUS", "SWE")
PAPER = StylePrompts(load_texts(), SURVEY, COUNTRIES)
LEAK_FREE = dataclasses.replace(PAPER, examples="leak_free", source=OTHER)


def examples_of(lead_in) -> list[tuple[str, str]]:
    """(question, answer) of the turns after the system message."""
    texts = [message["content"] for message in lead_in[1:]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_lines_are_those_the_pocket_model_knows():
    item = SURVEY.items[0]
    pocket = dataclasses.replace(PAPER, texts=load_texts(model_folder=MODEL_FOLDER))
    [unaware] = pocket.lead_in("unaware", "", item)
    assert unaware["content"] in phrases.UNAWARE
    [p1] = pocket.lead_in("p1", "CHN", item)
    assert p1 == pocket.texts.prompts.system("China")
    [p2] = pocket.lead_in("p2", "CHN", item)
    near, far = similar_and_different(SURVEY, "CHN", COUNTRIES)
    names = [", ".join(map(country_name, group)) for group in (near, far)]
    assert p2["content"] == p1["content"] + phrases.CROSS[0].format(s=names[0], d=names[1])


def test_similarity_is_the_alignment_of_majority_answers():
    near, far = similar_and_different(SURVEY, "BRA", COUNTRIES, count=3)
    length = np.array([len(item.options) - 1 for item in SURVEY.items])
    answers = {
        c: np.array([np.argmax(SURVEY.distributions[c][i.id]) for i in SURVEY.items])
        for c in COUNTRIES
    }
    score = {
        c: 1 - np.linalg.norm(answers[c] - answers["BRA"]) / np.linalg.norm(length)
        for c in COUNTRIES
        if c != "BRA"
    }
    ranked = sorted(score, key=score.__getitem__, reverse=True)
    assert near == tuple(ranked[:3])
    assert far == tuple(ranked[::-1][:3])


def test_p2_and_p3_take_the_majority_that_the_survey_names():
    """Of tied options the first is not always the published majority answer."""
    item = SURVEY.items[0]
    tie = (0.5, 0.5, *[0.0] * (len(item.options) - 2))
    answers = {c: SURVEY.distributions[c] | {item.id: tie} for c in COUNTRIES}
    second = {c: {item.id: 1} for c in COUNTRIES[:4]}
    tied = dataclasses.replace(SURVEY, distributions=answers).subset({item.id})
    named = dataclasses.replace(tied, majorities=second)
    near, far = similar_and_different(named, "USA", COUNTRIES)
    assert (near, far) == (COUNTRIES[1:4], COUNTRIES[4:7])
    asking = StylePrompts(load_texts(), named, COUNTRIES, count=1)
    other = dataclasses.replace(item, id="other", text="Another question?")
    shown = [asking.lead_in("p3", c, other)[-1]["content"] for c in ("USA", "DEU")]
    assert shown == [str(item.codes[1]), str(item.codes[0])]


if DATA:

    def test_p2_names_the_countries_that_the_released_similarities_do():
        survey, published = cs.read(Path(DATA)), published_similarities(Path(DATA))
        for country, row in published.items():
            points = {other: row[other] for other in cs.COUNTRIES if other != country}
            near, far = similar_and_different(survey, country, cs.COUNTRIES)
            ranked = sorted(points.values())
            assert sorted(points[c] for c in near) == ranked[-3:]
            assert sorted(points[c] for c in far) == ranked[:3]


def test_few_countries_are_shared_between_near_and_far():
    assert similar_and_different(SURVEY, "USA", ("USA", "CHN", "BRA")) == (("BRA",), ("CHN",))
    assert similar_and_different(SURVEY, "USA", ("USA", "CHN")) == (("CHN",), ())
    [p2] = dataclasses.replace(PAPER, groups=("USA", "CHN")).lead_in("p2", "USA", SURVEY.items[0])
    assert p2["content"].endswith("Cultures similar to yours: China.")
    with pytest.raises(UserError, match="ATL"):
        similar_and_different(SURVEY, "USA", ("USA", "ATL", "BRA"), count=1)


@pytest.mark.parametrize("style", ["p3", "p1p3", "p2p3"])
def test_examples_carry_the_countrys_majority_answers(style):
    item = SURVEY.items[5]
    lead_in = PAPER.lead_in(style, "NGA", item)
    before = {"p3": "unaware", "p1p3": "p1", "p2p3": "p2"}[style]
    assert lead_in[:1] == PAPER.lead_in(before, "NGA", item)
    shown = PAPER.examples_for(item)
    majority = SURVEY.majority("NGA")
    assert examples_of(lead_in) == [
        (PAPER.texts.prompts.user(e)["content"], str(e.codes[majority[e.id]])) for e in shown
    ]
    assert len(shown) == 5
    assert PAPER.conversation(style, "NGA", item) == [*lead_in, PAPER.texts.prompts.user(item)]


def test_paper_shows_the_items_topic_first_and_never_the_item():
    for item in SURVEY.items:
        shown = PAPER.examples_for(item)
        assert item not in shown
        related = [e.topic == item.topic for e in shown]
        of_topic = sum(other.topic == item.topic for other in SURVEY.items) - 1
        assert related == [True] * min(5, of_topic) + [False] * max(0, 5 - of_topic)


def test_leak_free_never_shows_the_evaluated_topic_or_survey():
    # A source that shares a topic's name with the test survey, which must then be left out.
    renamed = [dataclasses.replace(i, topic="trust") for i in OTHER.items[:10]]
    source = dataclasses.replace(OTHER, items=(*renamed, *OTHER.items[10:]))
    prompts = dataclasses.replace(LEAK_FREE, source=source)
    tested = {item.text for item in SURVEY.items}
    left_out = 0
    for item in SURVEY.items:
        shown = prompts.examples_for(item)
        assert not {e.text for e in shown} & tested
        assert item.topic not in {e.topic for e in shown}
        left_out += shown != prompts.examples_for(dataclasses.replace(item, topic="none"))
    assert left_out == sum(item.topic == "trust" for item in SURVEY.items)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("prompts", [PAPER, LEAK_FREE], ids=["paper", "leak_free"])
def test_leaky_is_whether_the_test_surveys_answers_matter(prompts, style):
    swapped = {c: SURVEY.distributions[COUNTRIES[n - 1]] for n, c in enumerate(COUNTRIES)}
    other_truth = dataclasses.replace(SURVEY, distributions=swapped)
    again = dataclasses.replace(prompts, survey=other_truth)
    reads_test = any(
        prompts.lead_in(style, c, i) != again.lead_in(style, c, i)
        for c in COUNTRIES
        for i in SURVEY.items[::20]
    )
    assert reads_test == prompts.leaks(style)


def test_leaky_styles_are_named():
    assert [s for s in STYLES if PAPER.leaks(s)] == ["p2", "p3", "p1p3", "p2p3"]
    assert not any(LEAK_FREE.leaks(s) for s in STYLES)


def test_leak_free_refuses_the_test_survey_as_its_source():
    with pytest.raises(UserError, match="needs another survey"):
        dataclasses.replace(PAPER, examples="leak_free")
    part = SURVEY.subset({item.id for item in SURVEY.items[:20]})
    with pytest.raises(UserError, match="shares 20 questions"):
        dataclasses.replace(LEAK_FREE, source=part)


@pytest.mark.parametrize("prompts", [PAPER, LEAK_FREE], ids=["paper", "leak_free"])
@pytest.mark.parametrize("style", ["p1", "p1p3"])
def test_groups_share_their_lead_in(prompts, style):
    items = SURVEY.items[:30]
    groups = prompts.same_lead_in(style, items)
    assert sorted(q for group in groups for q in group) == list(range(30))
    lead_ins = []
    for group in groups:
        found = [prompts.lead_in(style, "USA", items[q]) for q in group]
        assert all(lead_in == found[0] for lead_in in found)
        lead_ins.append(str(found[0]))
    assert len(set(lead_ins)) == len(groups)


def test_seed_draws_the_examples():
    item = SURVEY.items[0]
    again = StylePrompts(load_texts(), SURVEY, COUNTRIES)
    assert again.examples_for(item) == PAPER.examples_for(item)
    other = dataclasses.replace(PAPER, seed=1)
    assert any(other.examples_for(i) != PAPER.examples_for(i) for i in SURVEY.items)


def test_bad_input_is_named():
    item = SURVEY.items[0]
    with pytest.raises(UserError, match="style 'p4'"):
        PAPER.lead_in("p4", "USA", item)
    with pytest.raises(UserError, match="'FRA' is not among"):
        PAPER.lead_in("p1", "FRA", item)
    with pytest.raises(UserError, match=r"no question .* may be shown before it"):
        dataclasses.replace(PAPER, survey=SURVEY.subset({item.id})).examples_for(item)
    with pytest.raises(UserError, match="`examples` 'some'"):
        dataclasses.replace(PAPER, examples="some")


def test_own_texts_replace_the_packages(tmp_path):
    (tmp_path / "unaware.jinja").write_text("Answer as anyone.", "utf-8-sig")
    (tmp_path / "persona.jinja").write_text(PAPER.texts.prompts.persona, "utf-8-sig")
    (tmp_path / "cross_culture.jinja").write_text("{{ persona }} Near: {{ similar[0] }}.")
    own = dataclasses.replace(PAPER, texts=load_texts(tmp_path))
    item = SURVEY.items[0]
    assert own.lead_in("unaware", "", item)[0]["content"] == "Answer as anyone."
    near, _ = similar_and_different(SURVEY, "USA", COUNTRIES)
    assert own.lead_in("p2", "USA", item)[0]["content"].endswith(f" Near: {country_name(near[0])}.")
    assert own.texts.prompts == PAPER.texts.prompts
    (tmp_path / "unaware.jinja").write_text("{{ country }}")
    with pytest.raises(UserError, match="country"):
        dataclasses.replace(PAPER, texts=load_texts(tmp_path)).lead_in("unaware", "", item)
    with pytest.raises(UserError, match="no such folder"):
        load_texts(tmp_path / "missing")


def test_own_texts_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "unaware.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"unaware\.jinja: not UTF-8"):
        load_texts(tmp_path)
