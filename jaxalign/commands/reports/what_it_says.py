"""The section of a report that shows answers in full, and says how to talk to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.report.document import Section, Table, Text, section
from jaxalign.report.wording import number
from jaxalign.surveys.answer_table import NAME

_LONGEST = 160  # characters of a question


def what_it_says(record: Mapping[str, Any], chat: str) -> Section:
    """Return a few answers from a result's `answer_examples`, and the command that opens a chat.

    Args:
        record: The content of `result.json`.
        chat: What `jaxalign chat` is given: a run's directory, or a model and its options.
    """
    return section(
        "What the model says",
        _table(record["answer_examples"]),
        Text(
            f"Every answer is in {NAME}.csv, option by option. To talk to the model, before and "
            f"after side by side: jaxalign chat {chat}".rstrip()
        ),
    )


CHAT_WITH_RUN = "RUN, where RUN is the folder of this report"
"""What `jaxalign chat` is given for a run that has tuned something. A report may be moved, so it
does not say where it lies."""


def chat_with_model(settings: Mapping[str, Any], countries: Sequence[str]) -> str:
    """Return what `jaxalign chat` is given for a run that has tuned nothing."""
    words = [_quoted(settings["model"])] if settings.get("model") else []
    codes = [country for country in countries if ":" not in country][:2]
    return " ".join([*words, *(["--persona", *codes] if codes else [])])


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


def _table(examples: Sequence[Mapping[str, Any]]) -> Table | None:
    if not examples:
        return None
    who = list(dict.fromkeys(name for example in examples for name in example["answers"]))
    several = len({example["survey"] for example in examples}) > 1
    rows = tuple(
        (
            ", ".join(filter(None, (example["country"], example["item"]))),
            *((example["survey"],) if several else ()),
            _cut(example["question"]),
            *(_answer(example["answers"].get(name)) for name in who),
        )
        for example in examples
    )
    heads = [name[0].upper() + name[1:] for name in who]
    columns = ("Country and item", *(("Survey",) if several else ()), "Question", *heads)
    return Table("A few answers: the most likely option, and its probability", columns, rows)


def _answer(answer: Mapping[str, Any] | None) -> str | None:
    if answer is None:
        return None
    code, label = str(answer["code"]), answer["label"]
    named = label if label == code else f"{code} {label}"
    return f"{named} ({number(100 * answer['probability'], 0)} %)"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
