"""Free-text replies to survey items, from this or any other tool, read as answers.

Three layouts are told apart by their content:

- CultureSPA result files: a JSON list of {"Q_id", "question", "option_lst", "answer"};
- lm-evaluation-harness 0.4 (`--log_samples`): one JSON object a line with "doc" and "resps", a list
  of lists of texts, or, without it, "filtered_resps". The item's id is one of ID_FIELDS in "doc".
  Where a task has several filters, each line of the first one is read. Repeats count as runs;
- inspect_ai logs, version 2, written as `.json` (an `.eval` archive is turned into one by
  `inspect log convert --to json`): "samples" with "output". The item's id is one of ID_FIELDS in a
  sample's "metadata", else the sample's "id". Epochs count as runs.

An id that is a whole number, where no field has a text, stands for its text.

Country and mode come from the caller, else from fields "country" and "mode" beside the item's id,
else from the file's name: `..._culture_aware_USA_0.json`, `..._culture_unaware_0.json`, where the
number is the run. One file may hold several countries, modes and runs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.surveys.formats.files import bad, read_text, shown
from jaxalign.surveys.formats.json_file import parse_json, read_json_lines

Mode = Literal["aware", "unaware"]

MODES: tuple[Mode, ...] = ("aware", "unaware")
ID_FIELDS = ("Q_id", "item_id", "item", "question_id", "id")

_NAME = re.compile(
    r"(?:^|[_\-.])(aware|unaware)(?:_([A-Z]{3}))?(?:_([0-9]{1,6})(?=$|[_.]))?(?=$|[_\-.])"
)


@dataclasses.dataclass(frozen=True)
class Replies:
    """One run of a survey: the text given to each item. `country` is None for unaware replies,
    which stand for no country."""

    source: Path
    mode: Mode
    country: str | None
    run: int
    texts: Mapping[str, str]  # by item id
    options: Mapping[str, tuple[str, ...]]  # those shown, by item id, where the file says


@dataclasses.dataclass(frozen=True)
class _Row:
    """One reply and what its file says about it."""

    item: str
    text: str
    run: int
    options: tuple[str, ...] = ()
    country: str | None = None
    mode: str | None = None


def read_replies(
    path: Path, country: str | None = None, mode: Mode | None = None
) -> tuple[Replies, ...]:
    """Every run in the file. `country` and `mode` overrule what the file says.

    Raises UserError with file and place for anything wrong, a file whose country or mode is not to
    be found, and an item replied to twice in one run.
    """
    groups: dict[tuple[str, str | None, int], list[_Row]] = {}
    named = _NAME.search(path.stem)
    for row in _rows(path):
        key = _where(path, row, named, country, mode)
        groups.setdefault(key, []).append(row)
    if not groups:
        raise bad(path, "no replies")
    return tuple(_replies(path, key, rows) for key, rows in groups.items())


def _replies(path: Path, key: tuple[Any, str | None, int], rows: Sequence[_Row]) -> Replies:
    texts: dict[str, str] = {}
    for row in rows:
        if row.item in texts:
            raise bad(path, f"item {row.item} is answered twice in one run")
        texts[row.item] = row.text
    mode, country, run = key
    return Replies(path, mode, country, run, texts, {r.item: r.options for r in rows if r.options})


def _where(
    path: Path, row: _Row, named: re.Match[str] | None, country: str | None, mode: str | None
) -> tuple[str, str | None, int]:
    """Mode, country and run of a reply."""
    mode = mode or row.mode or (named and named[1])
    if mode not in MODES:
        said = "the mode is not given" if mode is None else f"mode {shown(mode)}"
        raise bad(path, f"{said}; say --mode aware or --mode unaware")
    run = row.run + int((named and named[3]) or 0)
    if mode == "unaware":
        return mode, None, run
    country = country or row.country or (named and named[2])
    if not country:
        raise bad(path, "which country is this? say so with --country")
    return mode, country, run


def _rows(path: Path) -> Iterator[_Row]:
    """Told apart by what the file holds: a list, an object with samples, or lines of objects."""
    if path.suffix == ".eval":
        raise bad(path, "an archive; turn it into JSON: inspect log convert --to json")
    if path.suffix == ".jsonl":
        return _harness_rows(path)
    value = parse_json(read_text(path), str(path))
    if isinstance(value, list):
        return _culturespa_rows(value, path)
    if isinstance(value, dict) and isinstance(value.get("samples"), list):
        return _inspect_rows(value["samples"], path)
    raise bad(
        path,
        "neither CultureSPA replies (a list), nor an inspect log (an object with samples),"
        " nor samples of lm-evaluation-harness (.jsonl)",
    )


def _culturespa_rows(rows: Sequence[Any], path: Path) -> Iterator[_Row]:
    for n, row in enumerate(rows, start=1):
        where = f"{path}: entry {n}"
        fields = _object(row, where)
        options = fields.get("option_lst", [])
        if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
            raise bad(where, "'option_lst' must be a list of texts")
        text = _text(fields.get("answer"), f"{where}: 'answer'")
        item, country, mode = _labels(fields, where)
        yield _Row(item, text, 0, tuple(options), country, mode)


def _harness_rows(path: Path) -> Iterator[_Row]:
    first_filter: Any = None
    for n, (line, value) in enumerate(read_json_lines(path)):
        where = f"{path}, line {line}"
        fields = _object(value, where)
        first_filter = fields.get("filter") if n == 0 else first_filter
        if fields.get("filter") != first_filter:
            continue  # the same replies once more, filtered in another way
        item, country, mode = _labels(_object(fields.get("doc"), f"{where}: 'doc'"), where)
        for run, text in enumerate(_harness_texts(fields, where)):
            yield _Row(item, text, run, (), country, mode)


def _harness_texts(fields: Mapping[str, Any], where: str) -> list[str]:
    """One text per repeat. Scores of options, which multiple choice logs hold, are no replies."""
    name = "resps" if fields.get("resps") else "filtered_resps"
    value = fields.get(name)
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise bad(where, "'resps' or 'filtered_resps' must hold the texts of replies")
    return texts


def _inspect_rows(samples: Sequence[Any], path: Path) -> Iterator[_Row]:
    for n, value in enumerate(samples, start=1):
        where = f"{path}: sample {n}"
        sample = _object(value, where)
        epoch = sample.get("epoch", 1)
        if type(epoch) is not int or not 1 <= epoch <= 10**6:
            raise bad(where, f"epoch {shown(epoch)} is not a whole number from 1")
        metadata = sample.get("metadata")
        labels = {"id": sample.get("id")} | (metadata if isinstance(metadata, dict) else {})
        item, country, mode = _labels(labels, where)
        yield _Row(item, _completion(sample, where), epoch - 1, (), country, mode)


def _completion(sample: Mapping[str, Any], where: str) -> str:
    """Text of the first choice: "completion", which newer logs spell out, else the message."""
    output = _object(sample.get("output"), f"{where}: 'output'")
    if isinstance(output.get("completion"), str) and output["completion"]:
        return output["completion"]
    choices = output.get("choices")
    if not isinstance(choices, list):
        raise bad(where, "'output' has neither 'completion' nor 'choices'")
    if not choices:
        return ""  # the model gave nothing: unreadable, not an error
    message = _object(_object(choices[0], where).get("message"), f"{where}: 'message'")
    content = message.get("content")
    if isinstance(content, list):  # parts: text beside reasoning, images and others
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        content = "".join(p for p in parts if isinstance(p, str))
    return _text(content, f"{where}: 'content'")


def _labels(fields: Mapping[str, Any], where: str) -> tuple[str, str | None, str | None]:
    """Item id, country and mode, the latter two None where not given."""
    # A text before a number: tools number their samples beside the item's own id.
    given = [fields[name] for name in ID_FIELDS if type(fields.get(name)) in (str, int)]
    ids = [str(i) for i in sorted(given, key=lambda i: isinstance(i, int))]
    if not ids:
        raise bad(where, f"no item id; give one of {', '.join(ID_FIELDS)} as text")
    country, mode = fields.get("country"), fields.get("mode")
    return (
        ids[0],
        country if isinstance(country, str) and country else None,
        mode if isinstance(mode, str) and mode else None,
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise bad(where, "expected an object")
    return value


def _text(value: Any, where: str) -> str:
    """A reply; a number given as a number is as good as its text."""
    if type(value) is int:
        return str(value) if abs(value) < 10**9 else "999999999"
    if not isinstance(value, str):
        raise bad(where, f"must be text, not {type(value).__name__}")
    return value
