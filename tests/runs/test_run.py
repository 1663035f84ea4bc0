"""Run directories: what they keep, which runs they refuse, and that kills leave nothing torn."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.runs import MetricsFile, Run, check_run, may_change, plain, versions, write_json
from jaxalign.runs.environment import describe_cpu, git_revision

FACTS = {"model_sha256": "ab" * 32, "survey_sha256": "cd" * 32}


@dataclasses.dataclass(frozen=True)
class Strategy:
    name: str = "DE"
    crossover: float = 0.9


@dataclasses.dataclass(frozen=True)
class Config:
    countries: tuple[str, ...] = ("USA", "CHN")
    population: int = 64
    model: Path | None = None
    noise_scale: float = 0.1
    strategy: Strategy = Strategy()
    flat: Annotated[Strategy, tyro.conf.arg(name="")] = Strategy()
    progress: bool = may_change(True)


def create(out: Path, config: Config | None = None, resume: bool = False, **facts: str) -> Run:
    return Run.create(out, config or Config(), FACTS | facts, resume)


# --- what config.json keeps


def test_config_holds_all_settings_and_surroundings(tmp_path: Path) -> None:
    with create(tmp_path / "runs" / "a", Config(model=Path("m"))) as run:
        fields = json.loads((run.out / "config.json").read_text())
        assert run.writes
        assert not run.resumed
    assert fields["settings"] == {
        "countries": ["USA", "CHN"],
        "population": 64,
        "model": "m",
        "noise_scale": 0.1,
        "strategy.name": "DE",
        "strategy.crossover": 0.9,
        "flat.name": "DE",
        "flat.crossover": 0.9,
        "progress": True,
    }
    assert fields["facts"] == FACTS
    assert "sources" not in fields
    origin = {"population": "given"}
    with Run.create(tmp_path / "b", Config(), FACTS, sources=origin) as run:
        assert json.loads((run.out / "config.json").read_text())["sources"] == origin
    assert fields["versions"] == versions()
    assert {"jax", "evosax", "numpy", "python"} <= fields["versions"].keys()
    assert fields["devices"]["count"] == 8
    assert {"platform", "git_revision", "started"} <= fields.keys()
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: A  Chip\nflags\t\t: avx avx2\n\nmodel name\t: B\nflags\t: avx\n")
    assert describe_cpu(info) == "A Chip, avx2"
    assert describe_cpu(tmp_path / "none") == platform.machine()
    assert fields["cpu"] == describe_cpu()


def test_git_revision_only_of_the_packages_own_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True)

    git("init", "-q")
    package = tmp_path / "jaxalign"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert git_revision(tmp_path) is None  # a stranger's repository
    git("add", ".")
    git("commit", "-qm", "one")
    revision = git_revision(tmp_path)
    assert revision is not None
    assert len(revision) == 40
    (package / "__init__.py").write_text("changed")
    assert git_revision(tmp_path) == revision + "-dirty"


# --- whom the directory refuses


def test_second_run_needs_resume(tmp_path: Path) -> None:
    create(tmp_path).close()
    with pytest.raises(UserError, match=r"holds a run already; continue it with `resume`") as said:
        create(tmp_path)
    assert str(tmp_path) in str(said.value)
    with create(tmp_path, resume=True) as run:
        assert run.resumed
        assert run.notes == ()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (Config(population=128), "`population` was 64 and is 128 now"),
        (Config(noise_scale=0.25), "`noise_scale` was 0.1 and is 0.25 now"),
        (Config(countries=("USA",)), r'`countries` was \["USA", "CHN"\] and is \["USA"\] now'),
        (Config(strategy=Strategy(crossover=0.5)), "`strategy.crossover` was 0.9 and is 0.5 now"),
        (Config(flat=Strategy(crossover=0.5)), "`flat.crossover` was 0.9 and is 0.5 now"),
        (Config(model=Path("/m")), '`model` was null and is "/m" now'),
        (
            Config(population=128, noise_scale=0.25),
            "`noise_scale` was 0.1 and is 0.25 now; `population` was 64 and is 128 now; "
            "give the old values",
        ),
    ],
)
def test_resume_refuses_a_changed_setting(tmp_path: Path, changed: Config, words: str) -> None:
    create(tmp_path).close()
    before = (tmp_path / "config.json").read_bytes()
    for refuse in (check_run, lambda out, config, resume: create(out, config, resume)):
        with pytest.raises(UserError, match=words):
            refuse(tmp_path, changed, True)
    assert (tmp_path / "config.json").read_bytes() == before
    create(tmp_path, Config(progress=False), resume=True).close()


def test_resume_refuses_other_weights(tmp_path: Path) -> None:
    create(tmp_path).close()
    with pytest.raises(UserError, match="model_sha256 was"):
        create(tmp_path, resume=True, model_sha256="00" * 32)


def test_resume_notes_other_versions(tmp_path: Path) -> None:
    create(tmp_path).close()
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    fields["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(fields))
    (tmp_path / ".config.json.sum").unlink()
    with create(tmp_path, resume=True) as run:
        assert len(run.notes) == 1
        assert "jax was 0.0.1" in run.notes[0]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "config.json"])
def test_foreign_directory_is_left_alone(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / name).write_text('{"model_type": "llama"}')
    for refuse in (check_run, lambda out, config, resume: create(out, config, resume)):
        with pytest.raises(UserError, match="give another `out`"):
            refuse(tmp_path, Config(), resume)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_config_that_lost_a_part_is_refused(tmp_path: Path) -> None:
    create(tmp_path).close()
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    del fields["facts"]
    path.write_text(json.dumps(fields))
    (tmp_path / ".config.json.sum").unlink()
    with pytest.raises(UserError, match="not a jaxalign run's"):
        check_run(tmp_path, Config(), resume=True)


def test_out_is_a_file_or_below_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for refuse in (check_run, create):
            with pytest.raises(UserError, match="give another `out`"):
                refuse(out, Config())


def test_check_writes_nothing(tmp_path: Path) -> None:
    check_run(tmp_path / "new", Config())
    check_run(tmp_path, Config(), resume=True)
    assert list(tmp_path.iterdir()) == []


def test_resume_begins_anew_where_a_kill_came_before_the_settings(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".config.json.x1.tmp").write_text('{"form')
    check_run(tmp_path, Config(), resume=True)
    with create(tmp_path, resume=True) as run:
        assert not run.resumed


# --- one process at a time

HOLDER = """
import sys, time
from pathlib import Path
from jaxalign.runs import Run
from tests.runs.test_run import Config, FACTS
run = Run.create(Path(sys.argv[1]), Config(), FACTS, False)
print("held", flush=True)
time.sleep(60)
"""


def test_directory_in_use_until_its_process_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for refuse in (check_run, lambda out, config, resume: create(out, config, resume)):
            with pytest.raises(UserError, match="in use by another process"):
                refuse(tmp_path, Config(), True)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with create(tmp_path, resume=True) as run:
        assert run.resumed


MEMBER = """
import sys, jax
from pathlib import Path
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from jaxalign.core.errors import UserError
from jaxalign.runs import Run
from tests.runs.test_run import Config, FACTS
out = Path(sys.argv[1]) / sys.argv[3]  # process 1 must not look at its disk, nor write there
try:
    with Run.create(out, Config(), FACTS, False) as run:
        run.log({"generation": 0})
        run.write("result.json", {"loss": 1.5})
        print("new", run.writes)
    Run.create(out, Config(), FACTS, False)
except UserError as error:
    print("refused", "`resume`" in str(error))
"""


def test_process_0_writes_and_all_heed_its_verdict(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = Path(__file__).parents[2]
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, str(tmp_path), address, str(i)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for i in range(2)
    ]
    try:
        said = [member.communicate(timeout=60)[0].splitlines()[-2:] for member in members]
    finally:
        for member in members:
            member.kill()
    assert said == [["new True", "refused True"], ["new False", "refused False"]]
    names = sorted(p.name for p in (tmp_path / "0").iterdir())
    assert [name for name in names if name[0] != "."] == [
        "config.json",
        "metrics.jsonl",
        "result.json",
    ]
    assert not (tmp_path / "1").exists()


# --- files that survive a kill


def rows(first: int, last: int) -> list[dict[str, object]]:
    return [
        {"generation": g, "best": {"USA": 1 / (g + 3), "الإمارات": 0.1}}
        for g in range(first, last + 1)
    ]


def test_metrics_torn_at_any_byte_end_equal(tmp_path: Path) -> None:
    whole = MetricsFile(tmp_path / "whole.jsonl")
    for row in rows(0, 6):
        whole.append(row)
    content = whole.path.read_bytes()
    checkpointed = sum(map(len, content.splitlines(keepends=True)[:4]))  # generations 0 to 3
    torn = MetricsFile(tmp_path / "torn.jsonl")
    for cut in range(checkpointed, len(content) + 1):
        torn.path.write_bytes(content[:cut])
        torn.rewind(3)
        for row in rows(4, 6):
            torn.append(row)
        assert torn.path.read_bytes() == content, cut
    assert torn.read() == rows(0, 6)


def test_metrics_rewind_to_the_start_and_of_no_file(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl", step="step")
    metrics.rewind(5)
    assert metrics.read() == []
    metrics.append({"step": 0})
    metrics.rewind(-1)
    assert metrics.path.read_bytes() == b""


def test_metrics_spoilt_in_the_middle_are_refused(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics.path.write_text('{"generation": 0}\nspoilt\n{"generation": 2}\n')
    with pytest.raises(UserError, match=r"m\.jsonl, line 2"):
        metrics.rewind(2)


def test_metrics_write_overflow_as_null_and_need_a_step(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics.append({"generation": 1, "median": jnp.array([np.inf, 0.5]), "best": float("nan")})
    assert metrics.read() == [{"generation": 1, "median": [None, 0.5], "best": None}]
    with pytest.raises(KeyError, match="generation"):
        metrics.append({"best": 1.0})
    with pytest.raises(TypeError, match=r"generation=1\.5"):
        metrics.append({"generation": 1.5})


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_json_keeps_float32_exactly(value: float) -> None:
    assert np.float32(json.loads(json.dumps(plain(np.float32(value))))) == np.float32(value)


def test_plain_types_and_refusals() -> None:
    assert plain({"a": (jnp.arange(2), np.int64(3), Path("p"), None, {"b", "a"})}) == {
        "a": [[0, 1], 3, "p", None, ["a", "b"]]
    }
    assert plain(Strategy()) == {"name": "DE", "crossover": 0.9}
    with pytest.raises(TypeError, match=r"value\.a: object"):
        plain({"a": object()})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.float32("nan"), jnp.inf])
def test_write_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"loss": 0.1})
    with pytest.raises(ValueError, match=r"result\.json\.countries\.USA\[1\] is (nan|inf)"):
        write_json(path, {"countries": {"USA": [0.0, bad]}})
    assert json.loads(path.read_text()) == {"loss": 0.1}


def test_write_json_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"loss": 0.1})

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"loss": 0.2})
    assert json.loads(path.read_text()) == {"loss": 0.1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


# --- disks and damage


def test_a_run_that_will_not_fit_on_the_disk_is_refused_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`out` .*/a: this run will write .* GiB there"):
        Run.create(tmp_path / "a", Config(), FACTS, writes_bytes=5e18)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", ".config.json.sum"])
def test_a_config_that_has_changed_is_named(tmp_path: Path, name: str) -> None:
    """Whatever has changed: what a run only repeats, such as its chunk, would go unnoticed."""
    create(tmp_path).close()
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"/config\.json: is not .* in \.config\.json\.sum"):
        create(tmp_path, resume=True)
    with pytest.raises(UserError, match=r"/config\.json: is not .* in \.config\.json\.sum"):
        check_run(tmp_path, Config(), True)
