"""Read files of free-text replies to survey items, written by this or any other tool.

Three layouts are recognised by their content:

- CultureSPA result files: a JSON list of {"Q_id", "question", "option_lst", "answer"};
- samples that lm-evaluation-harness 0.4 writes with its option log_samples: one JSON object a line,
  with "doc" and "resps", a list of lists of texts, or else "filtered_resps". The item's id is one
  of ID_FIELDS in "doc". A task with several filters has a line for each of them: those of the first
  "filter" are read; older versions write no "filter", and a line that repeats the same replies to
  an item is passed over. Repeats count as runs;
- inspect_ai logs, version 2, written as `.json` (`inspect log convert` makes one from an `.eval`
  archive): "samples" with "output". The item's id is one of ID_FIELDS in a sample's "metadata", or
  else the sample's "id". Epochs count as runs. A log of a run that did not end well is read as far
  as it goes, with a note; a sample that ended in an error and has no reply is left out.

A reply of null is one in which the model said nothing: it is unreadable, not an error.

An id may be a whole number if no field holds a text; it is then read as text.

Country (or any other group) and mode come from the caller, or else from the fields "country" and
"mode" beside the item's id, or else from the file's name: `..._culture_aware_USA_0.json` or
`..._culture_unaware_0.json`, where the number is the run. A file's name can only hold a country's
three-letter code. One file may hold several countries, modes and runs.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.core.files import check_path
from jaxalign.surveys.formats.files import bad, parse_json, read_json_lines, read_text, shown

Mode = Literal["aware", "unaware"]

MODES: tuple[Mode, ...] = ("aware", "unaware")
# How inspect itself writes an archive as JSON.
_CONVERT = "inspect log convert {} --to json --output-dir json-logs"
ID_FIELDS = ("Q_id", "item_id", "item", "question_id", "id")

_NAME = re.compile(
    r"(?:^|[_\-.])(aware|unaware)(?:_([A-Z]{3}))?(?:_([0-9]{1,6})(?=$|[_.]))?(?=$|[_\-.])"
)


@dataclasses.dataclass(frozen=True)
class Replies:
    """The replies of one run of a survey.

    Attributes:
        source: The file.
        mode: "aware" if the model was told whom to answer for, else "unaware".
        country: The country or other group that it answered for; None for unaware replies.
        run: Number of the run.
        texts: The reply to each item, by id.
        options: The options that were shown, by item id, if the file says so.
        notes: What a reader of the scores should know about the file, a sentence each.
    """

    source: Path
    mode: Mode
    country: str | None
    run: int
    texts: Mapping[str, str]
    options: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Row:
    """One reply, with what its file says about it."""

    item: str
    text: str
    run: int
    options: tuple[str, ...] = ()
    country: str | None = None
    mode: str | None = None
    again: bool = False  # whether the file may hold the same reply several times


def read_replies(
    path: Path, country: str | None = None, mode: Mode | None = None
) -> tuple[Replies, ...]:
    """Read every run in a file of replies.

    Args:
        path: The file.
        country: The country or other group of all its replies; default: what the file says.
        mode: "aware" or "unaware", for all its replies; default: what the file says.

    Raises:
        UserError: Something is wrong with the file, nothing says which country or mode it holds,
            or an item has two replies in one run.
    """
    check_path(path, "replies")
    runs: dict[tuple[str, str | None, int], list[_Row]] = {}
    name = _NAME.search(path.stem)
    notes: list[str] = []
    for row in _rows(path, notes):
        key = _run_of(path, row, name, country, mode)
        runs.setdefault(key, []).append(row)
    if not runs:
        raise bad(path, "; ".join(["no replies", *notes]))
    return tuple(_replies(path, key, rows, tuple(notes)) for key, rows in runs.items())


def _replies(
    path: Path, key: tuple[Any, str | None, int], rows: Sequence[_Row], notes: tuple[str, ...]
) -> Replies:
    texts: dict[str, str] = {}
    for row in rows:
        if row.item in texts and not (row.again and row.text == texts[row.item]):
            raise bad(path, f"item {row.item} is answered twice in one run")
        texts[row.item] = row.text
    mode, country, run = key
    options = {row.item: row.options for row in rows if row.options}
    return Replies(path, mode, country, run, texts, options, notes)


def _run_of(
    path: Path, row: _Row, name: re.Match[str] | None, country: str | None, mode: str | None
) -> tuple[str, str | None, int]:
    """Return mode, country and run of a reply; `name` is the match in the file's name."""
    mode = mode or row.mode or (name and name[1])
    if mode not in MODES:
        problem = "the mode is not given" if mode is None else f"mode {shown(mode)}"
        raise bad(path, f"{problem}; give `mode` aware or `mode` unaware")
    run = row.run + int((name and name[3]) or 0)
    if mode == "unaware":
        return mode, None, run
    country = country or row.country or (name and name[2])
    if not country:
        raise bad(path, "the file does not say which country it is about; give `country`")
    return mode, country, run


def _rows(path: Path, notes: list[str]) -> Iterator[_Row]:
    """Yield the replies of a file that holds a list, an object with samples, or JSON lines.

    What a reader of the scores should know about the file is added to `notes`.
    """
    if path.suffix == ".eval":
        command = _CONVERT.format(shlex.quote(str(path)))
        raise bad(path, f"an archive; convert it with: {command}")
    if path.suffix == ".jsonl":
        return _harness_rows(path)
    value = parse_json(read_text(path), str(path))
    if isinstance(value, list):
        return _culturespa_rows(value, path)
    if isinstance(value, dict) and isinstance(value.get("samples"), list):
        _note_status(value, notes)
        return _inspect_rows(value["samples"], path)
    if isinstance(value, dict) and "status" in value and "eval" in value:
        _note_status(value, notes)
        raise bad(path, "; ".join(["an inspect log without samples", *notes]))
    if isinstance(value, dict) and "results" in value and "configs" in value:
        raise bad(
            path,
            "scores of lm-evaluation-harness, without replies; run it with log_samples and "
            "give the file samples_TASK_DATE.jsonl beside this one",
        )
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
        if "answer" not in fields:
            raise bad(where, "no 'answer'")
        text = _text(fields["answer"], f"{where}: 'answer'")
        item, country, mode = _labels(fields, where)
        yield _Row(item, text, 0, tuple(options), country, mode)


def _harness_rows(path: Path) -> Iterator[_Row]:
    first_filter: Any = None
    for n, (line, value) in enumerate(read_json_lines(path)):
        where = f"{path}, line {line}"
        fields = _object(value, where)
        first_filter = fields.get("filter") if n == 0 else first_filter
        if fields.get("filter") != first_filter:
            continue  # the same replies again, filtered in another way
        item, country, mode = _labels(_object(fields.get("doc"), f"{where}: 'doc'"), where)
        for run, text in enumerate(_harness_texts(fields, where)):
            yield _Row(item, text, run, (), country, mode, again=first_filter is None)


def _harness_texts(fields: Mapping[str, Any], where: str) -> list[str]:
    """Return one text for each repeat. Raise UserError for the scores of options, which the logs of
    multiple-choice tasks hold instead."""
    name = "resps" if fields.get("resps") else "filtered_resps"
    value = fields.get(name)
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(t is None or isinstance(t, str) for t in texts) or name not in fields:
        raise bad(where, "'resps' or 'filtered_resps' must hold the texts of replies")
    return [_text(t, where) for t in texts]


def _note_status(log: Mapping[str, Any], notes: list[str]) -> None:
    """Note that a run of inspect did not end well, and how many samples have no reply for it."""
    status, error = log.get("status"), log.get("error")
    if isinstance(status, str) and status != "success":
        said = error.get("message") if isinstance(error, dict) else None
        reason = f": {shown(said.splitlines()[0])}" if isinstance(said, str) and said else ""
        notes.append(f"inspect ended with status {status}{reason}; samples may be missing")
    samples = log.get("samples")
    failed = sum(map(_failed, samples)) if isinstance(samples, list) else 0
    if failed:
        notes.append(
            f"{failed} of {len(samples)} samples ended in an error without a reply; they count as "
            "not asked"
        )


def _failed(sample: Any) -> bool:
    """Return whether a sample ended in an error before the model replied."""
    if not isinstance(sample, dict) or not sample.get("error"):
        return False
    output = sample.get("output")
    return not (isinstance(output, dict) and (output.get("completion") or output.get("choices")))


def _inspect_rows(samples: Sequence[Any], path: Path) -> Iterator[_Row]:
    for n, value in enumerate(samples, start=1):
        where = f"{path}: sample {n}"
        sample = _object(value, where)
        if _failed(sample):
            continue
        epoch = sample.get("epoch", 1)
        if type(epoch) is not int or not 1 <= epoch <= 10**6:
            raise bad(where, f"epoch {shown(epoch)} is not a whole number from 1")
        metadata = sample.get("metadata")
        labels = {"id": sample.get("id")} | (metadata if isinstance(metadata, dict) else {})
        item, country, mode = _labels(labels, where)
        yield _Row(item, _completion(sample, where), epoch - 1, (), country, mode)


def _completion(sample: Mapping[str, Any], where: str) -> str:
    """Return the text of the first choice: "completion" in newer logs, else the message."""
    output = _object(sample.get("output"), f"{where}: 'output'")
    if isinstance(output.get("completion"), str) and output["completion"]:
        return output["completion"]
    choices = output.get("choices")
    if not isinstance(choices, list):
        raise bad(where, "'output' has neither 'completion' nor 'choices'")
    if not choices:
        return ""  # the model returned nothing: an unreadable reply, not an error
    message = _object(_object(choices[0], where).get("message"), f"{where}: 'message'")
    content = message.get("content")
    if isinstance(content, list):  # text parts beside reasoning, images and others
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        content = "".join(p for p in parts if isinstance(p, str))
    return _text(content, f"{where}: 'content'")


def _labels(fields: Mapping[str, Any], where: str) -> tuple[str, str | None, str | None]:
    """Return item id, country and mode; the latter two are None if they are not given."""
    # A text is preferred to a number: tools number their samples beside the item's own id.
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
    """Return a reply as text: a number as it is written, null as a reply that says nothing."""
    if value is None:
        return ""
    if type(value) is int:
        return str(value) if abs(value) < 10**9 else "999999999"
    if not isinstance(value, str):
        raise bad(where, f"must be text, not {type(value).__name__}")
    return value
