"""Logs that inspect and lm-evaluation-harness themselves wrote; see `support.make_reply_logs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.surveys.reply_files import read_replies
from tests.support.make_reply_logs import REPLIES

LOGS = Path(__file__).parent.parent / "fixtures" / "reply_logs"
FUZZ = settings(
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
IDS = ("Q1", "Q2", "Q3")
BY_EPOCH = [dict(zip(IDS, REPLIES[i : i + 3], strict=True)) for i in (0, 3)]
BY_ITEM = [dict(zip(IDS, REPLIES[i::2], strict=True)) for i in (0, 1)]
THREE_OF_SIX = "2 of 6 samples ended in an error without a reply; they count as not asked"


@pytest.mark.parametrize(
    ("name", "texts", "notes"),
    [
        ("inspect_success.json", BY_EPOCH, 0),
        ("inspect_error.json", [BY_EPOCH[0], {"Q1": "2"}], 2),
        ("inspect_failed_samples.json", [BY_EPOCH[0], {"Q1": "2"}], 1),
        ("inspect_reasoning.json", [{"Q1": "2", "Q2": "1", "Q3": "3"}], 0),
        ("lm_eval_0.4.13.jsonl", BY_ITEM, 0),
        ("lm_eval_0.4.5.jsonl", BY_ITEM, 0),  # from before filters were named
    ],
)
def test_replies_of_real_logs(name: str, texts: list[dict[str, str]], notes: int) -> None:
    runs = read_replies(LOGS / name)
    assert [run.texts for run in runs] == texts
    assert {(run.mode, run.country) for run in runs} == {("aware", "USA")}
    assert [run.run for run in runs] == list(range(len(texts)))
    assert len(runs[0].notes) == notes
    if notes:
        assert runs[0].notes[-1] == THREE_OF_SIX
    if notes == 2:
        assert "status error" in runs[0].notes[0]
        assert "ran out of values" in runs[0].notes[0]


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@FUZZ
@given(texts=st.lists(words, min_size=6, max_size=6), as_parts=st.booleans())
def test_any_reply_in_a_real_inspect_log(tmp_path: Path, texts: list[str], as_parts: bool) -> None:
    log: Any = json.loads((LOGS / "inspect_success.json").read_text("utf-8"))
    for sample, text in zip(log["samples"], texts, strict=True):
        message = sample["output"]["choices"][0]["message"]
        message["content"] = [{"type": "text", "text": text}] if as_parts else text
        sample["output"]["completion"] = text
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log), "utf-8")
    found = {
        (run.run, item): text for run in read_replies(path) for item, text in run.texts.items()
    }
    expected = {(s["epoch"] - 1, s["id"]): t for s, t in zip(log["samples"], texts, strict=True)}
    assert found == expected


@FUZZ
@given(texts=st.lists(words, min_size=6, max_size=6), with_filters=st.booleans())
def test_any_reply_in_real_samples_of_the_harness(
    tmp_path: Path, texts: list[str], with_filters: bool
) -> None:
    text = (LOGS / "lm_eval_0.4.13.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    for n, row in enumerate(rows):
        row["resps"] = [[texts[2 * (n % 3)], texts[2 * (n % 3) + 1]]]
        if not with_filters:  # as before filters were named: the same replies, twice
            del row["filter"]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    runs = read_replies(path)
    assert [list(run.texts.values()) for run in runs] == [texts[0::2], texts[1::2]]


def test_summaries_are_not_replies(tmp_path: Path) -> None:
    path = tmp_path / "results_2026-11-30.json"
    path.write_text(json.dumps({"results": {"survey": {}}, "configs": {}, "n-samples": {}}))
    with pytest.raises(UserError, match=r"scores of lm-evaluation-harness.*samples_TASK_DATE"):
        read_replies(path)
