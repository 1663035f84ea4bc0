"""Selected pairs as training data: a JSONL file that other trainers read, and tokens for ours.

A line is {"messages": [{"role": "system", "content": ...}, {"role": "user", ...}, {"role":
"assistant", "content": "3"}]}. TRL's SFTTrainer reads the file with `load_dataset("json", ...)`;
`assistant_only_loss=True` restricts the loss to the answer, as here. LLaMA-Factory takes the folder
as `dataset_dir`, with the `dataset_info.json` written beside the data.

The target is the option's number and the end of the turn, nothing else, as in CultureSPA (Xu et
al. 2025). Its joint model trains on the "p1" prompts of all groups, a specific model on those of
one group, the CCT variant on "p2" prompts. A prompt has exactly the tokens that answering uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxalign.answering.encode import encode
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json, write_json_lines
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.select import TRAINED_UNDER, Pair, Selection
from jaxalign.methods.culturespa.styles import Style, StylePrompts, encode_styles
from jaxalign.prompts import Message
from jaxalign.surveys.survey import Item
from jaxalign.training.packing import Example

Row = dict[str, list[Message]]

_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


def to_rows(
    pairs: Sequence[Pair], items: Sequence[Item], prompts: StylePrompts, style: Style = "p1"
) -> list[Row]:
    """Return one conversation per pair, ending in the assistant's number.

    Raises:
        UserError: If a pair's question is not among `items`, or its answer is not one of its codes.
    """
    by_id = _checked(pairs, items)
    return [
        {
            "messages": [
                *prompts.conversation(style, pair.group, by_id[pair.item]),
                {"role": "assistant", "content": str(pair.answer)},
            ]
        }
        for pair in pairs
    ]


def to_examples(
    pairs: Sequence[Pair],
    items: Sequence[Item],
    prompts: StylePrompts,
    tokens: Tokenizer,
    style: Style = "p1",
    end_of_turn: bool = True,
) -> list[Example]:
    """Return the conversations of `to_rows` as tokens, in the order of `pairs`.

    Args:
        pairs: Questions and answers to train on.
        items: The questions.
        prompts: What stands before a question.
        tokens: The model's tokenizer.
        style: The style that the questions are asked in.
        end_of_turn: Whether the loss covers the end of the turn besides the number, which is
            spelled as the tokenizer writes it after the assistant header.

    Raises:
        UserError: As `to_rows`.
    """
    by_id = _checked(pairs, items)
    if not pairs:
        return []
    asked = list({pair.item: by_id[pair.item] for pair in pairs}.values())
    question_of = {item.id: q for q, item in enumerate(asked)}
    # Pairs that share a group, and under p3 the examples shown, share a lead-in and its tokens.
    lead_in_of: dict[tuple[str, ...], int] = {}
    lead_ins, positions = [], []
    for pair in pairs:
        shared_by = (pair.group, *_shown(prompts, style, by_id[pair.item]))
        if shared_by not in lead_in_of:
            lead_in_of[shared_by] = len(lead_ins)
            lead_ins.append(prompts.lead_in(style, pair.group, by_id[pair.item]))
        positions.append((lead_in_of[shared_by], question_of[pair.item]))
    conversations = encode(tokens, prompts.texts.prompts, lead_ins, asked, positions)
    numbers = {codes: _numbers(tokens, codes) for codes in {item.codes for item in asked}}
    end = (tokens.eot_id,) if end_of_turn else ()
    examples = []
    for n, pair in enumerate(pairs):
        prompt = conversations.tokens(n).tolist()
        number = numbers[by_id[pair.item].codes][pair.answer]
        examples.append(Example((*prompt, *number, *end), len(prompt)))
    return examples


def longest_examples(
    items: Sequence[Item],
    groups: Sequence[str],
    prompts: StylePrompts,
    tokens: Tokenizer,
    styles: Sequence[Style],
    end_of_turn: bool = True,
) -> list[int]:
    """Return the number of tokens of each item's longest example, over styles, groups and answers.

    Equals the longest example that `to_examples` would make, without making them.
    """
    asked = encode_styles(tokens, prompts, styles, groups, items)
    longest = [0] * len(items)
    for p, q in asked.pairs:
        longest[q] = max(longest[q], len(asked.lead_ins[p]) + len(asked.questions[q]))
    numbers = {codes: _numbers(tokens, codes) for codes in {item.codes for item in items}}
    answers = [max(map(len, numbers[item.codes].values())) + end_of_turn for item in items]
    return [prompt + answer for prompt, answer in zip(longest, answers, strict=True)]


def write_selected(
    folder: Path,
    selected: Mapping[str, Selection],
    items: Sequence[Item],
    prompts: StylePrompts,
) -> None:
    """Write the training data of one seed, unless it is there already.

        folder/joint.jsonl, cct.jsonl, ...   conversations to train on
              /dataset_info.json             what LLaMA-Factory reads first
              /pairs.json                    group, question and answer of every pair

    `pairs.json` is written last: it marks the step as done.
    """
    if (folder / "pairs.json").exists():
        return
    for method, selection in selected.items():
        rows = to_rows(selection.pairs, items, prompts, TRAINED_UNDER[method])
        write_json_lines(folder / f"{method}.jsonl", rows)
    write_dataset_info(folder, {method: f"{method}.jsonl" for method in selected})
    pairs = {
        method: [dataclasses.astuple(pair) for pair in selection.pairs]
        for method, selection in selected.items()
    }
    write_json(folder / "pairs.json", pairs)


def write_dataset_info(folder: Path, files: Mapping[str, str]) -> None:
    """Write LLaMA-Factory's `dataset_info.json`; `files` maps a data set's name to its file."""
    entries = {
        name: {
            "file_name": file,
            "formatting": "sharegpt",
            "columns": {"messages": "messages"},
            "tags": _TAGS,
        }
        for name, file in files.items()
    }
    write_json(folder / "dataset_info.json", entries)


def _checked(pairs: Sequence[Pair], items: Sequence[Item]) -> dict[str, Item]:
    """Return the items by id, after checking every pair against them."""
    by_id = {item.id: item for item in items}
    for pair in pairs:
        if pair.item not in by_id:
            raise UserError(f"item {pair.item!r} of a pair is not among the {len(items)} questions")
        if pair.answer not in by_id[pair.item].codes:
            raise UserError(
                f"item {pair.item!r}: answer {pair.answer} of {pair.group} is none of its codes "
                f"{list(by_id[pair.item].codes)}"
            )
    return by_id


def _shown(prompts: StylePrompts, style: Style, item: Item) -> tuple[str, ...]:
    """Return the ids of the examples before an item, on which its lead-in depends."""
    if not style.endswith("p3"):
        return ()
    return tuple(example.id for example in prompts.examples_for(item))


def _numbers(tokens: Tokenizer, codes: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Return the tokens of each number, without the end of the turn.

    A number is spelled as the tokenizer spells it, the first spelling that answering scores. Where
    digits are tokens, that spelling ends with the end of the turn, to tell 1 from 10.
    """
    number_of = {}
    for code, spellings in zip(codes, tokens.option_tokens(codes), strict=True):
        number = spellings[0]
        number_of[code] = number[:-1] if number[-1] == tokens.eot_id else number
    return number_of
