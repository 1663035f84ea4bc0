"""Questions as a model writes them: one JSON object a reply, read strictly, refused with a reason.

    {"question": "How often do you ...?", "options": ["Always", "Often", "Never"]}

Nothing that a model can write raises an exception. A reason is one of a few fixed phrases, so that
reasons can be counted. Method: Xu et al. 2025 (CultureSPA), step 1, which likewise takes a reply
whole or asks again; every option of its released questions is a text in a list.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.surveys.survey import Item

FEWEST_OPTIONS, MOST_OPTIONS = 2, 20  # released questions have 2 to 11
LONGEST_REPLY = 20_000  # characters; 256 tokens are about 1,000
LONGEST_TEXT = 1_000  # of a question or an option; the released questions stay below 500

# A model may put its reply in a fence; anything else around the object is a refusal.
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)
_MARKER = re.compile(r"<\|[^|<>\s]*\|>")  # would end a turn when the question is asked
_CUT = "\ufffd"  # what bytes that are no UTF-8 decode to


@dataclasses.dataclass(frozen=True)
class Written:
    """A question that a model wrote: texts on one line, `options` in the order written."""

    question: str
    options: tuple[str, ...]
    topic: str = ""
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a reply is no question."""

    reason: str


def parse_question(reply: str | bytes) -> Written | Refusal:
    """The question that `reply` spells, or why it is none. Never raises.

    The reply is one JSON object, alone or in a code fence, with a question and its options and
    nothing else. Keys may be capitalised and end in a colon, as released prompts spell them.
    """
    text = as_text(reply).strip()
    if len(text) > LONGEST_REPLY:
        return Refusal("reply too long")
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1].strip()
    if not text.startswith("{"):
        return Refusal("does not begin with a JSON object")
    try:
        # Pairs, so that a key that is there twice is seen; a tuple, which no JSON list becomes.
        pairs, end = json.JSONDecoder(object_pairs_hook=tuple).raw_decode(text)
    except RecursionError:
        return Refusal("nested too deeply")
    except ValueError:  # not JSON, cut short, or a number of thousands of digits
        return Refusal("not JSON, or cut short")
    if end < len(text):
        return Refusal("text after the JSON object")
    keys = [key.strip().rstrip(":").lower() for key, _ in pairs]
    if sorted(keys) != ["options", "question"]:
        return Refusal("keys other than one question and its options")
    fields = dict(zip(keys, (value for _, value in pairs), strict=True))
    found = check_question(fields["question"], fields["options"])
    if isinstance(found, Written) and len(set(found.options)) < len(found.options):
        return Refusal("an option twice")
    return found


def as_text(reply: str | bytes) -> str:
    """`reply` as text that can be written as UTF-8; what cannot becomes U+FFFD."""
    if isinstance(reply, str):
        reply = reply.encode("utf-8", "surrogatepass")
    return reply.decode("utf-8", "replace")


def check_question(question: Any, options: Any) -> Written | Refusal:
    """The texts on one line each if they make a question, else why not. Takes any values."""
    if not isinstance(question, str):
        return Refusal("question is not a text")
    if not isinstance(options, list):
        return Refusal("options are not a list")
    if not all(isinstance(option, str) for option in options):
        return Refusal("an option is not a text")
    if not FEWEST_OPTIONS <= len(options) <= MOST_OPTIONS:
        few = len(options) < FEWEST_OPTIONS
        return Refusal(f"fewer than {FEWEST_OPTIONS} options" if few
                       else f"more than {MOST_OPTIONS} options")  # fmt: skip
    question, *labels = (" ".join(text.split()) for text in (question, *options))
    if fault := next(filter(None, map(_fault, (question, *labels))), None):
        return Refusal(fault)
    return Written(question, tuple(labels))


def _fault(text: str) -> str | None:
    """What is wrong with a question's or an option's text, None if nothing."""
    if not text:
        return "an empty text"
    if len(text) > LONGEST_TEXT:
        return "a text too long"
    if _MARKER.search(text):
        return "a chat marker in a text"
    if _CUT in text or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        return "a control or half character in a text"
    return None


def from_item(item: Item) -> Written:
    """A survey's item, its stem and text as one question."""
    return Written(f"{item.stem} {item.text}".strip(), item.options, item.topic, item.id)


def read_generated(path: Path) -> tuple[list[Written], dict[str, int]]:
    """Questions of a file in CultureSPA's released form, and how many were refused, by reason.

    The file is a JSON list of `{"question": "", "option_lst": [""], "class": "topic", ...}`. Ids
    are given anew, as the released ones begin anew in every topic's file. Raises UserError where
    the file cannot be read or is no such list; a faulty entry is counted, and so never stops a run.
    """
    try:
        # Bytes that are no UTF-8 become lone surrogates, so only their own entry is refused.
        rows = json.loads(Path(path).read_bytes().decode("utf-8-sig", "surrogateescape"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: the top level must be a list of questions")
    written: list[Written] = []
    refused: dict[str, int] = {}
    for row in rows:
        found = _from_row(row)
        if isinstance(found, Refusal):
            refused[found.reason] = refused.get(found.reason, 0) + 1
        else:
            written.append(found)
    return number(written), refused


def _from_row(row: Any) -> Written | Refusal:
    if not isinstance(row, dict):
        return Refusal("not a JSON object")
    topic = row.get("class", "")
    if not isinstance(topic, str) or (topic and _fault(topic)):
        return Refusal("topic is not a text")
    found = check_question(row.get("question"), row.get("option_lst"))
    return found if isinstance(found, Refusal) else dataclasses.replace(found, topic=topic)


def number(written: list[Written]) -> list[Written]:
    """The same questions with ids: "social_values-0001" is the first of its topic."""
    counts: dict[str, int] = {}
    out = []
    for question in written:
        name = topic_id(question.topic)
        counts[name] = counts.get(name, 0) + 1
        out.append(dataclasses.replace(question, id=f"{name}-{counts[name]:04d}"))
    return out


def topic_id(topic: str) -> str:
    """`topic` as the beginning of an id: "Science & Technology" -> "science_technology"."""
    return re.sub(r"\W+", "_", topic.lower()).strip("_") or "question"
