"""Selected pairs as training data: a JSONL that other trainers read, and tokens for ours.

A line is {"messages": [{"role": "system", "content": ...}, {"role": "user", ...}, {"role":
"assistant", "content": "3"}]}. TRL's SFTTrainer takes the file as it is
(`load_dataset("json", ...)`; `assistant_only_loss=True` leaves the loss to the answer, as here).
LLaMA-Factory takes the folder as `dataset_dir`, with the `dataset_info.json` written beside it.

The target is the option's number and the end of the turn, nothing else, as in CultureSPA (Xu et
al. 2025). Its joint model trains on the "p1" prompts of all countries, a specific one on one
country's, its CCT variant on "p2". A prompt's tokens are those that answering uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxalign.answering.encode import encode
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.culturespa.encode_styles import encode_styles
from jaxalign.methods.culturespa.select import Pair
from jaxalign.methods.culturespa.styles import Interviews, Style
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
    pairs: Sequence[Pair], items: Sequence[Item], interviews: Interviews, style: Style = "p1"
) -> list[Row]:
    """One conversation per pair, ending in the assistant's number. Raises UserError for a pair
    whose item is not among `items`, or whose answer is none of its codes."""
    by_id = _checked(pairs, items)
    return [
        {
            "messages": [
                *interviews.conversation(style, pair.country, by_id[pair.item]),
                {"role": "assistant", "content": str(pair.answer)},
            ]
        }
        for pair in pairs
    ]


def to_examples(
    pairs: Sequence[Pair],
    items: Sequence[Item],
    interviews: Interviews,
    tokens: Tokenizer,
    style: Style = "p1",
) -> list[Example]:
    """The same conversations as tokens, in the order of `pairs`; the loss covers the number, as
    the tokenizer writes it after the assistant header, and the end of the turn."""
    by_id = _checked(pairs, items)
    if not pairs:
        return []
    asked = list({pair.item: by_id[pair.item] for pair in pairs}.values())
    place = {item.id: q for q, item in enumerate(asked)}
    lead_ins: dict[tuple[str, ...], int] = {}
    messages, places = [], []
    for pair in pairs:
        which = (pair.country, *_shown(interviews, style, by_id[pair.item]))
        if which not in lead_ins:
            lead_ins[which] = len(messages)
            messages.append(interviews.lead_in(style, pair.country, by_id[pair.item]))
        places.append((lead_ins[which], place[pair.item]))
    conversations = encode(tokens, interviews.texts.prompts, messages, asked, places)
    numbers = {codes: _numbers(tokens, codes) for codes in {item.codes for item in asked}}
    examples = []
    for n, pair in enumerate(pairs):
        prompt = conversations.tokens(n).tolist()
        number = numbers[by_id[pair.item].codes][pair.answer]
        examples.append(Example((*prompt, *number, tokens.eot_id), len(prompt)))
    return examples


def longest_examples(
    items: Sequence[Item],
    countries: Sequence[str],
    interviews: Interviews,
    tokens: Tokenizer,
    styles: Sequence[Style],
) -> list[int]:
    """Tokens of each item's longest example, whichever the style, the country and the answer."""
    asked = encode_styles(tokens, interviews, styles, countries, items)
    longest = [0] * len(items)
    for p, q in asked.pairs:
        longest[q] = max(longest[q], len(asked.lead_ins[p]) + len(asked.questions[q]))
    numbers = {codes: _numbers(tokens, codes) for codes in {item.codes for item in items}}
    answers = [max(map(len, numbers[item.codes].values())) + 1 for item in items]
    return [prompt + answer for prompt, answer in zip(longest, answers, strict=True)]


def write_dataset_info(folder: Path, files: Mapping[str, str]) -> None:
    """`dataset_info.json` for LLaMA-Factory: `files` maps a data set's name to its file there."""
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
    by_id = {item.id: item for item in items}
    for pair in pairs:
        if pair.item not in by_id:
            raise UserError(f"item {pair.item!r} of a pair is not among the {len(items)} questions")
        if pair.answer not in by_id[pair.item].codes:
            raise UserError(
                f"item {pair.item!r}: answer {pair.answer} of {pair.country} is none of its codes "
                f"{list(by_id[pair.item].codes)}"
            )
    return by_id


def _shown(interviews: Interviews, style: Style, item: Item) -> tuple[str, ...]:
    """Ids of the examples before an item, which make its lead-in another one."""
    if not style.endswith("p3"):
        return ()
    return tuple(example.id for example in interviews.examples_for(item))


def _numbers(tokens: Tokenizer, codes: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Tokens of each number: the first spelling that answering scores, which is the tokenizer's
    own, less the end of turn that tells 1 from 10 where digits are tokens."""
    found = {}
    for code, spellings in zip(codes, tokens.option_tokens(codes), strict=True):
        number = spellings[0]
        found[code] = number[:-1] if number[-1] == tokens.eot_id else number
    return found
