"""Steps of CultureSPA that were done and are damaged: named, and done again."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxalign.core.files import write_text
from jaxalign.core.seals import sealed
from jaxalign.methods.culturespa.fine_tune import _is_whole
from jaxalign.methods.culturespa.pipeline import _has_written

STEPS = {
    "questions": (_has_written, ("written.json", "questions.json"), "again from the replies"),
    "adapter": (
        _is_whole,
        ("README.md", "adapter_model.safetensors", "adapter_config.json"),
        "again from the last checkpoint",
    ),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_is_damaged_is_named_and_done_again(step: str, tmp_path: Path, caplog) -> None:
    is_done, names, how = STEPS[step]
    assert not is_done(tmp_path)
    paths = [tmp_path / name for name in names]
    with sealed(*paths):
        for path in paths:
            write_text(path, path.name)
    assert is_done(tmp_path)
    for path in paths:
        path.write_text("something else")
        with caplog.at_level("INFO", "jaxalign"):
            assert not is_done(tmp_path)
        assert f"{path}: is not what was written" in caplog.messages[-1]
        assert caplog.messages[-1].endswith(how)
        path.write_text(path.name)
        path.with_name(f".{path.name}.sum").unlink()  # a run of an earlier version
        assert is_done(tmp_path)
        path.unlink()
        assert not is_done(tmp_path)
        write_text(path, path.name)


def test_damaged_replies_of_a_step_that_was_done_are_seen(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("replies.jsonl", "written.json", "questions.json")]
    with sealed(*paths):
        for path in paths:
            write_text(path, path.name)
    assert _has_written(tmp_path)
    paths[0].write_text("repl")
    assert not _has_written(tmp_path)
