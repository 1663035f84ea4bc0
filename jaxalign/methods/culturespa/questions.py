"""A survey question as a model writes it: read strictly, checked, and put into a survey.

    {"question": "How often do you ...?", "options": ["Always", "Often", "Never"]}

`parse_question` reads one reply and either returns a `Question` or a `Refusal` with its reason. No
text that a model can write makes it raise. Reasons are a small set of fixed phrases, so that they
can be counted. Source: step 1 of CultureSPA (Xu et al. 2025), which likewise accepts a reply as a
whole or asks again; every option of its released questions is a text in a list.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Item, Survey

FEWEST_OPTIONS, MOST_OPTIONS = 2, 20  # the released questions have 2 to 11
_TEXT = {"type": "string"}
SCHEMA = json.dumps(  # what a request asks for
    {
        "type": "object",
        "properties": {
            "question": _TEXT,
            "options": {
                "type": "array",
                "items": _TEXT,
                "minItems": FEWEST_OPTIONS,
                "maxItems": MOST_OPTIONS,
            },
        },
        "required": ["question", "options"],
        "additionalProperties": False,
    }
)
LONGEST_REPLY = 20_000  # characters; 256 tokens are about 1,000
LONGEST_TEXT = 1_000  # characters of a question or an option; the released ones stay below 500

# A model may put its reply into a code fence; anything else around the object is refused.
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)
_CHAT_MARKER = re.compile(r"<\|[^|<>\s]*\|>")  # would end a turn when the question is asked
_REPLACEMENT = "\ufffd"  # what bytes that are not UTF-8 decode to
BARE_NUMBER = re.compile(r"[0-9]{1,3}")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question that a model wrote.

    Attributes:
        question: Its text, on one line.
        options: The options' texts in the order written, one line each.
        topic: Topic that the question was asked for; "" if unknown.
        id: Identifier within its set; "" before `with_ids`.
    """

    question: str
    options: tuple[str, ...]
    topic: str = ""
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a reply is not a question."""

    reason: str


def parse_question(reply: str | bytes) -> Question | Refusal:
    """Read the question in a reply. Never raises.

    The reply must be one JSON object, alone or in a code fence, with a question, its options and
    nothing else. Keys may be capitalised and end in a colon, as the released prompts spell them.

    Args:
        reply: The model's whole reply.

    Returns:
        The question, or a `Refusal` that says why the reply is not one.
    """
    text = as_text(reply).strip()
    if len(text) > LONGEST_REPLY:
        return Refusal("reply too long")
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1].strip()
    if not text.startswith("{"):
        return Refusal("does not begin with a JSON object")
    try:
        # Objects are read as pairs, so that a repeated key is noticed; as tuples of pairs, because
        # no JSON list becomes a tuple.
        pairs, end = json.JSONDecoder(object_pairs_hook=tuple).raw_decode(text)
    except RecursionError:
        return Refusal("nested too deeply")
    except json.JSONDecodeError as error:
        # A text without its closing quote, or nothing where more should be: the end is missing.
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(text)
        return Refusal("cut short" if cut else "not JSON")
    except ValueError:  # a number of thousands of digits
        return Refusal("not JSON")
    if end < len(text):
        return Refusal("text after the JSON object")
    keys = [key.strip().rstrip(":").lower() for key, _ in pairs]
    if sorted(keys) != ["options", "question"]:
        return Refusal("keys other than one question and its options")
    fields = dict(zip(keys, (value for _, value in pairs), strict=True))
    checked = check_question(fields["question"], fields["options"])
    if isinstance(checked, Question) and len(set(checked.options)) < len(checked.options):
        return Refusal("an option twice")
    return checked


def as_text(reply: str | bytes) -> str:
    """Return `reply` as text that can be written as UTF-8; U+FFFD replaces what cannot."""
    if isinstance(reply, str):
        reply = reply.encode("utf-8", "surrogatepass")
    return reply.decode("utf-8", "replace")


def check_question(question: Any, options: Any) -> Question | Refusal:
    """Check a question and its options, which may be values of any type.

    Returns:
        The question with each text on one line, or why these values are not a question.
    """
    if not isinstance(question, str):
        return Refusal("question is not a text")
    if not isinstance(options, list):
        return Refusal("options are not a list")
    if not all(isinstance(option, str) for option in options):
        return Refusal("an option is not a text")
    if len(options) < FEWEST_OPTIONS:
        return Refusal(f"fewer than {FEWEST_OPTIONS} options")
    if len(options) > MOST_OPTIONS:
        return Refusal(f"more than {MOST_OPTIONS} options")
    question, *labels = (" ".join(text.split()) for text in (question, *options))
    if fault := next(filter(None, map(_fault, (question, *labels))), None):
        return Refusal(fault)
    return Question(question, tuple(labels))


def _fault(text: str) -> str | None:
    """Return what is wrong with the text of a question or an option, None if nothing is."""
    if not text:
        return "an empty text"
    if len(text) > LONGEST_TEXT:
        return "a text too long"
    if _CHAT_MARKER.search(text):
        return "a chat marker in a text"
    if _REPLACEMENT in text or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        return "a control or half character in a text"
    return None


def from_item(item: Item) -> Question:
    """Return a survey's item as a question; its stem and its text become one text."""
    return Question(f"{item.stem} {item.text}".strip(), item.options, item.topic, item.id)


def as_json(question: Question) -> str:
    """Return a question as the JSON object that a reply should be."""
    fields = {"question": question.question, "options": list(question.options)}
    return json.dumps(fields, ensure_ascii=False)


def read_questions(path: Path) -> tuple[list[Question], dict[str, int]]:
    """Read a file of generated questions in the form that CultureSPA released.

    The file is a JSON list of `{"question": "", "option_lst": [""], "class": "topic", ...}`. The
    questions get new ids, because the released ones start again in every topic's file. A faulty
    entry is counted, not fatal.

    Args:
        path: The JSON file.

    Returns:
        The questions, and the number of refused entries by reason.

    Raises:
        UserError: If the file cannot be read or is not such a list.
    """
    try:
        # Bytes that are not UTF-8 become lone surrogates, so that only their entry is refused.
        rows = json.loads(Path(path).read_bytes().decode("utf-8-sig", "surrogateescape"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: the top level must be a list of questions")
    questions: list[Question] = []
    refused: dict[str, int] = {}
    for row in rows:
        entry = _from_row(row)
        if isinstance(entry, Refusal):
            refused[entry.reason] = refused.get(entry.reason, 0) + 1
        else:
            questions.append(entry)
    return with_ids(questions), refused


def _from_row(row: Any) -> Question | Refusal:
    if not isinstance(row, dict):
        return Refusal("not a JSON object")
    topic = row.get("class", "")
    if not isinstance(topic, str) or (topic and _fault(topic)):
        return Refusal("topic is not a text")
    checked = check_question(row.get("question"), row.get("option_lst"))
    return checked if isinstance(checked, Refusal) else dataclasses.replace(checked, topic=topic)


def with_ids(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with new ids: "social_values-0001" is the first of its topic."""
    counts: dict[str, int] = {}
    numbered = []
    for question in questions:
        prefix = topic_id(question.topic)
        counts[prefix] = counts.get(prefix, 0) + 1
        numbered.append(dataclasses.replace(question, id=f"{prefix}-{counts[prefix]:04d}"))
    return numbered


def topic_id(topic: str) -> str:
    """Return `topic` as the start of an id: "Science & Technology" -> "science_technology"."""
    return re.sub(r"\W+", "_", topic.lower()).strip("_") or "question"


def to_survey(questions: Sequence[Question], name: str, source: str) -> Survey:
    """Make a survey of generated questions.

    Every item is ordinal. Its codes are the options themselves if these are numbers in order, else
    1 ... n. Whether a model meant its options as a scale cannot be told from their texts with
    certainty, and the published data treat every question as one. Selection (step 3) asks only
    whether an answer changes.

    Args:
        questions: Questions with ids, such as those that `filter_questions` kept.
        name: The survey's name.
        source: Where the questions come from.

    Raises:
        UserError: If there is no question.
    """
    if not questions:
        raise UserError("no question is left; nothing to make a survey of")
    items = tuple(
        Item(q.id, q.question, q.options, _codes(q.options), "ordinal", q.topic) for q in questions
    )
    return Survey(name, "generated", source, "paraphrase", items)


def _codes(options: Sequence[str]) -> tuple[int, ...]:
    if all(map(BARE_NUMBER.fullmatch, options)):
        numbers = list(map(int, options))
        distinct = len(set(numbers)) == len(numbers)
        if distinct and sorted(numbers) in (numbers, numbers[::-1]):
            return tuple(numbers)
    return tuple(range(1, len(options) + 1))
