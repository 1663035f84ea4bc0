"""Which questions P3 shows: the most similar by words or by a file, in turns or in one message."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from math import log, sqrt
from pathlib import Path

import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.similar import WordSimilarity, read_ranking
from jaxalign.methods.culturespa.styles import StylePrompts, load_texts
from jaxalign.pocket.society import held_out_survey, society_values_module
from jaxalign.surveys.formats import culturespa as cs
from jaxalign.surveys.survey import Item

DATA = os.environ.get("JAXALIGN_CULTURESPA_DATA")
SURVEY, OTHER = held_out_survey(), society_values_module()
COUNTRIES = ("USA", "CHN", "BRA", "NGA")
SIMILAR = StylePrompts(
    load_texts(),
    SURVEY,
    COUNTRIES,
    similarity=WordSimilarity(SURVEY.items),
    p3_form="one_message",
)


def item(name: str, text: str) -> Item:
    return Item(name, text, ("yes", "no"), (1, 2))


FOUR = [
    item("a", "How important is family in your life?"),
    item("b", "How important is work, in your life as a whole?"),
    item("c", "Do you trust your family?"),
    item("d", "Do you think that most people can be trusted? Most people!"),
]


def test_similarity_is_scikit_learns():
    """Frozen from TfidfVectorizer of scikit-learn 1.7, rounded to 9 decimals."""
    expected = [
        [1, 0.677112512, 0.279676842, 0],
        [0.677112512, 1, 0.088235479, 0],
        [0.279676842, 0.088235479, 1, 0.182101352],
        [0, 0, 0.182101352, 1],
    ]
    words = WordSimilarity(FOUR)
    assert np.allclose([words.to_all(i) for i in FOUR], expected, rtol=0, atol=2e-9)
    new = item("e", "How much do you trust strangers in your life?")  # "strangers" is nowhere
    expected = [0.525722405, 0.418916838, 0.68956862, 0.155019192]
    assert np.allclose(words.to_all(new), expected, rtol=0, atol=2e-9)
    assert [i.id for i in words.rank(new, FOUR)] == ["c", "a", "b", "d"]
    assert [i.id for i in words.rank(new, [FOUR[3], FOUR[1]])] == ["b", "d"]


def test_similarity_is_the_cosine_of_weighted_words():
    texts = [i.text.lower().replace("?", "").split() for i in SURVEY.items[:12]]
    texts = [[w for w in (word.strip(",.") for word in text) if len(w) > 1] for text in texts]
    assert all(word.isalnum() for text in texts for word in text)
    having = Counter(word for text in texts for word in set(text))
    weighted = [
        {w: n * (log(13 / (1 + having[w])) + 1) for w, n in Counter(text).items()} for text in texts
    ]
    length = [sqrt(sum(v * v for v in row.values())) for row in weighted]
    items = [dataclasses.replace(i, stem="") for i in SURVEY.items[:12]]
    words = WordSimilarity(items)
    for a, first in enumerate(weighted):
        cosines = [
            sum(first.get(w, 0) * v for w, v in second.items()) / (length[a] * length[b])
            for b, second in enumerate(weighted)
        ]
        assert np.allclose(words.to_all(items[a]), cosines, atol=1e-8)


def test_a_question_that_shares_no_word_keeps_the_order_of_the_others():
    words = WordSimilarity(FOUR)
    assert words.rank(item("x", "??"), FOUR) == FOUR


def test_p3_shows_the_most_similar_questions():
    words = WordSimilarity(SURVEY.items)
    for asked in SURVEY.items[:20]:
        shown = SIMILAR.examples_for(asked)
        similarity = dict(zip(SURVEY.items, words.to_all(asked), strict=True))
        assert asked not in shown
        least = min(similarity[example] for example in shown)
        rest = [similarity[other] for other in SURVEY.items if other not in (*shown, asked)]
        assert least >= max(rest)
    lead_ins = SIMILAR.same_lead_in("p3", SURVEY.items)
    assert sorted(q for group in lead_ins for q in group) == list(range(len(SURVEY.items)))
    assert len(lead_ins) > len(
        StylePrompts(load_texts(), SURVEY, COUNTRIES).same_lead_in("p3", SURVEY.items)
    )  # an item has its own examples, not its topic's
    assert len(SIMILAR.same_lead_in("p1", SURVEY.items)) == 1


@pytest.mark.parametrize("style", ["p3", "p1p3", "p2p3"])
def test_one_message_holds_persona_questions_and_majority_answers(style):
    asked, majority = SURVEY.items[3], SURVEY.majority("NGA")
    [message] = SIMILAR.lead_in(style, "NGA", asked)
    before = {"p3": "unaware", "p1p3": "p1", "p2p3": "p2"}[style]
    assert message["role"] == "system"
    persona, _, *shown = message["content"].split("\n\n")
    assert [persona] == [m["content"] for m in SIMILAR.lead_in(before, "NGA", asked)]
    assert len(shown) == 5
    for text, example in zip(shown, SIMILAR.examples_for(asked), strict=True):
        question, *options, answer = text.split("\n")
        assert question == f"{example.stem} {example.text}".strip()
        pairs = zip(example.codes, example.options, strict=True)
        assert options == [f"{code} = {label}" for code, label in pairs]
        assert answer == f"Answer: {example.codes[majority[example.id]]}"


def test_leak_free_shows_similar_questions_of_other_topics_only():
    renamed = [dataclasses.replace(i, topic="trust") for i in OTHER.items[:10]]
    source = dataclasses.replace(OTHER, items=(*renamed, *OTHER.items[10:]))
    words = WordSimilarity(source.items)
    prompts = dataclasses.replace(SIMILAR, examples="leak_free", source=source, similarity=words)
    tested = {i.text for i in SURVEY.items}
    for asked in SURVEY.items:
        shown = prompts.examples_for(asked)
        assert len(shown) == 5
        assert asked.topic not in {e.topic for e in shown}
        assert not {e.text for e in shown} & tested
    assert not any(prompts.leaks(style) for style in ("p3", "p1p3", "p2p3"))


def test_a_text_of_ones_own_words_the_one_message(tmp_path):
    (tmp_path / "self_alignment.jinja").write_text("{{ persona }} {{ examples | length }}")
    prompts = dataclasses.replace(SIMILAR, texts=load_texts(tmp_path))
    [message] = prompts.lead_in("p3", "USA", SURVEY.items[0])
    [persona] = SIMILAR.lead_in("unaware", "", SURVEY.items[0])
    assert message["content"] == persona["content"] + " 5"
    (tmp_path / "self_alignment.jinja").write_text("{{ demonym }} in {{ article_country }}")
    (tmp_path / "cross_culture.jinja").write_text("{{ demonym }}, {{ country }}")
    prompts = dataclasses.replace(SIMILAR, texts=load_texts(tmp_path))
    [message] = prompts.lead_in("p1p3", "USA", SURVEY.items[0])
    assert message["content"] == "American in the United States"
    [message] = prompts.lead_in("p2", "USA", SURVEY.items[0])
    assert message["content"] == "American, United States"


def test_a_file_ranks_questions(tmp_path):
    ids = [i.id for i in SURVEY.items[:8]]
    ranked = {ids[0]: ["unknown", ids[3], ids[0], ids[1], ids[2], ids[5], ids[4], ids[6]]}
    (tmp_path / "ranking.json").write_text(json.dumps(ranked))
    rows = [f"{ids[0]};{other}" for other in ranked[ids[0]]]
    (tmp_path / "ranking.csv").write_text("\n".join(["item;similar", *rows]), "utf-8-sig")
    for name in ("ranking.json", "ranking.csv"):
        ranking = read_ranking(tmp_path / name)
        assert ranking.ranked == {ids[0]: tuple(ranked[ids[0]])}
        prompts = dataclasses.replace(SIMILAR, similarity=ranking)
        shown = [e.id for e in prompts.examples_for(SURVEY.items[0])]
        assert shown == [ids[3], ids[1], ids[2], ids[5], ids[4]]  # neither itself nor the unknown
        with pytest.raises(UserError, match=rf"{name}: no ranking for item '{ids[1]}'"):
            prompts.examples_for(SURVEY.items[1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('["Q1"]', "top level must be an object"),
        ('{"Q1": "Q2"}', "item 'Q1': must be a list"),
        ('{"Q1": [2]}', "item 'Q1': must be a list"),
        ('{"Q1": ["Q2", "Q3", "Q2"]}', "item 'Q1': ranks 'Q2' twice"),
        ("item,other\nQ1,Q2", "similar"),
        ("", "empty"),
    ],
)
def test_bad_rankings_are_named(tmp_path, content, said):
    path = tmp_path / "ranking.txt"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_ranking(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_ranking(tmp_path / "none.json")


if DATA:

    def test_the_released_ranking_is_read_and_words_agree_with_most_of_it():
        survey = cs.read(Path(DATA))
        ranking = read_ranking(Path(DATA) / "self_alignment_examples.json")
        words = WordSimilarity(survey.items)
        same = []
        for asked in survey.items:
            others = [other for other in survey.items if other is not asked]
            released, mine = (s.rank(asked, others)[:5] for s in (ranking, words))
            same.append(len(set(released) & set(mine)) / 5)
        assert len(same) == 259
        assert 0.70 < np.mean(same) < 0.73
