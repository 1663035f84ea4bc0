"""Training data: what other trainers read, and tokens that are exactly those of answering."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.dataset import (
    to_examples,
    to_rows,
    training_tokens,
    write_dataset_info,
    write_selected,
)
from jaxalign.methods.culturespa.select import Pair, Selection
from jaxalign.methods.culturespa.styles import StylePrompts, encode_styles, load_texts
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey

SURVEY = held_out_survey()
ITEMS = SURVEY.items[:12]
COUNTRIES = ("USA", "CHN", "BRA", "NGA", "DEU", "IND", "RUS")
PROMPTS = StylePrompts(load_texts(), SURVEY, COUNTRIES, count=2)
PAIRS = [
    Pair(country, item.id, item.codes[(n + c) % len(item.codes)])
    for c, country in enumerate(COUNTRIES[:3])
    for n, item in enumerate(ITEMS)
]


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return Tokenizer.load(MODEL_FOLDER)


@pytest.mark.parametrize("style", ["p1", "p2", "p1p3"])
def test_prompts_are_those_of_answering(tokens, style):
    examples = to_examples(PAIRS, ITEMS, PROMPTS, tokens, style)
    asked = encode_styles(tokens, PROMPTS, [style], COUNTRIES[:3], ITEMS)
    assert [list(e.tokens[: e.prompt_length]) for e in examples] == [
        asked.tokens(n).tolist() for n in range(len(PAIRS))
    ]


def test_answer_is_the_number_and_the_end_of_turn(tokens):
    for pair, example in zip(PAIRS, to_examples(PAIRS, ITEMS, PROMPTS, tokens), strict=True):
        assert tokens.decode(example.answer) == f"{pair.answer}<|eot_id|>"


def test_example_is_the_whole_conversation_as_the_template_writes_it(tokens):
    for row, example in zip(
        to_rows(PAIRS, ITEMS, PROMPTS),
        to_examples(PAIRS, ITEMS, PROMPTS, tokens),
        strict=True,
    ):
        whole = tokens.encode_chat(row["messages"], add_generation_prompt=False)
        assert list(example.tokens) == whole


def test_the_longest_example_is_of_any_style_country_and_answer(tokens):
    long = dataclasses.replace(ITEMS[0], id="long", options=("a", "b"), codes=(100, 9))
    items, who = (*ITEMS, long), COUNTRIES[:3]
    found = training_tokens(items, who, PROMPTS, tokens).longest()
    for item, length in zip(items, found, strict=True):
        pairs = [Pair(country, item.id, code) for country in who for code in item.codes]
        every = [to_examples(pairs, items, PROMPTS, tokens, s) for s in ("p1", "p2")]
        assert length == max(len(e.tokens) for some in every for e in some), item.id


def test_the_target_is_what_answering_scores(tokens):
    by_id = {item.id: item for item in ITEMS}
    for pair, example in zip(PAIRS, to_examples(PAIRS, ITEMS, PROMPTS, tokens), strict=True):
        codes = by_id[pair.item].codes
        spellings = tokens.option_tokens(codes)[codes.index(pair.answer)]
        assert any(example.answer[: len(s)] == s for s in spellings)


def test_the_target_can_be_the_number_alone(tokens):
    whole = to_examples(PAIRS, ITEMS, PROMPTS, tokens)
    numbers = to_examples(PAIRS, ITEMS, PROMPTS, tokens, end_of_turn=False)
    for with_end, number in zip(whole, numbers, strict=True):
        assert number.tokens == with_end.tokens[:-1]
        assert number.prompt_length == with_end.prompt_length
    who = COUNTRIES[:3]
    longest = training_tokens(ITEMS, who, PROMPTS, tokens, ("p1",)).longest()
    without_end = training_tokens(ITEMS, who, PROMPTS, tokens, ("p1",), end_of_turn=False).longest()
    assert without_end == [length - 1 for length in longest]


def test_rows_are_plain_conversations(tmp_path):
    rows = to_rows(PAIRS, ITEMS, PROMPTS)
    write_selected(tmp_path / "data", {"joint": Selection.of(PAIRS)}, ITEMS, PROMPTS)
    lines = (tmp_path / "data" / "joint.jsonl").read_text("utf-8").splitlines()
    read = [json.loads(line) for line in lines]
    assert read == rows
    by_id = {item.id: item for item in ITEMS}
    for pair, row in zip(PAIRS, read, strict=True):
        assert list(row) == ["messages"]
        assert row["messages"][:2] == PROMPTS.conversation("p1", pair.group, by_id[pair.item])
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
        assert all(set(m) == {"role", "content"} for m in row["messages"])
        assert row["messages"][2]["content"] == str(pair.answer)
    names = {"joint.jsonl", "dataset_info.json", "pairs.json"}
    found = {p.name: p.read_bytes() for p in (tmp_path / "data").iterdir() if p.name[0] != "."}
    assert set(found) == names
    for name in names:  # what is damaged is written again
        (tmp_path / "data" / name).write_bytes(b"x" + found[name][1:])
        write_selected(tmp_path / "data", {"joint": Selection.of(PAIRS)}, ITEMS, PROMPTS)
        assert (tmp_path / "data" / name).read_bytes() == found[name]
    pairs = json.loads((tmp_path / "data" / "pairs.json").read_text("utf-8"))
    assert [Pair(*row) for row in pairs["joint"]] == PAIRS


def test_examples_shown_before_a_question_are_in_its_rows():
    """Under p3 a lead-in depends on the question too, and is still rendered once for equal ones."""
    by_id = {item.id: item for item in ITEMS}
    for pair, row in zip(PAIRS, to_rows(PAIRS, ITEMS, PROMPTS, "p1p3"), strict=True):
        expected = PROMPTS.conversation("p1p3", pair.group, by_id[pair.item])
        assert row["messages"][:-1] == expected


def test_dataset_info_names_file_and_tags(tmp_path):
    write_dataset_info(tmp_path, {"joint": "joint.jsonl", "china": "CHN.jsonl"})
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert info["china"]["file_name"] == "CHN.jsonl"
    tags = info["joint"]["tags"]
    [row, *_] = to_rows(PAIRS, ITEMS, PROMPTS)
    column = info["joint"]["columns"]["messages"]
    roles = {message[tags["role_tag"]] for message in row[column]}
    assert roles == {tags["system_tag"], tags["user_tag"], tags["assistant_tag"]}
    assert all(tags["content_tag"] in message for message in row[column])
    assert info["joint"]["formatting"] == "sharegpt"


def test_pairs_are_shown_in_the_presentations_in_turn(tokens):
    """The target is the mark of the pair's option there, whatever its code is."""
    by_id = {item.id: item for item in ITEMS}
    forms = "A", "B", "D"
    rows = to_rows(PAIRS, ITEMS, PROMPTS, presentations=forms)
    examples = to_examples(PAIRS, ITEMS, PROMPTS, tokens, presentations=forms)
    for n, (pair, row, example) in enumerate(zip(PAIRS, rows, examples, strict=True)):
        item = by_id[pair.item]
        option, last = item.codes.index(pair.answer), len(item.codes) - 1
        # Published order of numbers, numbers the other way round, and both the other way round.
        number = item.codes[option if n % 3 == 0 else last - option]
        assert row["messages"][2]["content"] == str(number)
        labels = item.options[::-1] if n % 3 == 2 else item.options
        codes = item.codes[::-1] if n % 3 == 1 else item.codes
        lines = [line.strip() for line in row["messages"][1]["content"].splitlines()]
        listed = [f"{code} = {label}" for code, label in zip(codes, labels, strict=True)]
        assert [line for line in lines if line in listed] == listed
        assert list(example.tokens) == tokens.encode_chat(
            row["messages"], add_generation_prompt=False
        )
    assert rows[::3] == to_rows(PAIRS, ITEMS, PROMPTS)[::3]


def test_a_published_form_changes_nothing(tokens):
    who = COUNTRIES[:3]
    once = training_tokens(ITEMS, who, PROMPTS, tokens)
    twice = training_tokens(ITEMS, who, PROMPTS, tokens, presentations=("A", "B"))
    assert once.longest() == twice.longest()  # of numbers of one digit
    assert len(twice.question_FxQ) == 2
    # Numbers are held once, however often they are shown.
    assert len(twice.sizes) == len(once.sizes) + len(ITEMS)
    pairs = Selection.of(PAIRS)
    examples = [found.examples(pairs) for found in (once, twice)]
    same = [list(a.tokens) == list(b.tokens) for a, b in zip(*examples, strict=True)]
    assert same == [n % 2 == 0 for n in range(len(pairs))]


def test_bad_pairs_are_named(tokens):
    with pytest.raises(UserError, match="'nope' of a pair"):
        to_rows([Pair("USA", "nope", 1)], ITEMS, PROMPTS)
    with pytest.raises(UserError, match=f"{ITEMS[0].id}.*answer 99 of USA"):
        to_examples([Pair("USA", ITEMS[0].id, 99)], ITEMS, PROMPTS, tokens)
    assert not to_examples([], ITEMS, PROMPTS, tokens)
