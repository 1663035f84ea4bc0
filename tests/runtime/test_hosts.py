"""The same command on 2 processes x 4 devices, 1 x 8 and 1 x 1; killed and resumed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.core.errors import UserError
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.society import held_out_survey
from jaxalign.runs.checkpoints import latest_step
from jaxalign.runtime.hosts import read_hosts
from jaxalign.runtime.sharding import local_view, make_mesh, place_whole, replicated
from jaxalign.surveys.survey import to_json
from tests.support.processes import run, start

GENERATIONS = 12


def test_the_variable():
    assert read_hosts("auto") == {}
    assert read_hosts("10.0.0.1:1234/4/3") == {
        "coordinator_address": "10.0.0.1:1234",
        "num_processes": 4,
        "process_id": 3,
    }


@pytest.mark.parametrize("setting", ["10.0.0.1/4/3", "10.0.0.1:1234", "a:1/2/2", "a:1/2/-1", "yes"])
def test_a_setting_that_cannot_be_read(setting):
    with pytest.raises(UserError, match="JAXALIGN_HOSTS"):
        read_hosts(setting)


def test_place_and_view(devices):
    """An array is placed only once, and its view is the buffer of one device."""
    sharding = replicated(make_mesh(devices))
    placed = place_whole({"x": np.arange(6.0), "y": jax.numpy.ones(3)}, sharding)
    assert placed["x"].sharding == sharding
    assert place_whole(placed, sharding)["x"] is placed["x"]
    view = local_view(placed)
    assert view["x"].devices() == {devices[0]}
    shard = placed["x"].addressable_shards[0].data
    assert view["x"].unsafe_buffer_pointer() == shard.unsafe_buffer_pointer()
    split = jax.device_put(np.arange(8.0), make_split(devices))
    assert local_view(split) is split


def make_split(devices) -> jax.sharding.Sharding:
    from jaxalign.runtime.sharding import named_sharding

    return named_sharding(make_mesh(devices), ("members",), (8,))


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """Ten items of the held-out survey, to save time on what is not tested here."""
    whole = held_out_survey()
    path = tmp_path_factory.mktemp("survey") / "survey.json"
    few = whole.subset({item.id for item in whole.items[::8]})
    path.write_text(json.dumps(to_json(few)))
    return path


def command(out: Path, survey: Path, *more: str) -> list[str]:
    return [
        "-m",
        "experiments.soft_prompt",
        "--out",
        str(out),
        "--held-out",
        str(survey),
        "--countries",
        "USA",
        "CHN",
        "--population",
        "4",
        "--generations",
        str(GENERATIONS),
        "--save-every",
        "2",
        "--icl-examples",
        "2",
        "--gradient-steps",
        "0",
        *more,
    ]


def results(out: Path) -> dict[str, bytes]:
    """Return the bytes of every file that must not depend on where the run took place."""
    prompts = {path.name: path.read_bytes() for path in sorted(out.glob("prompts/*"))}
    assert len(prompts) == 2
    return prompts | {name: (out / name).read_bytes() for name in ("metrics.jsonl", "result.json")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, survey) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone") / "run"
    run(command(out, survey), processes=1, devices=1)
    return results(out)


@pytest.mark.long
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 4)])
def test_tuning_does_not_depend_on_the_devices(alone, survey, tmp_path, processes, devices):
    out = tmp_path / "run"
    said = run(command(out, survey), processes, devices)
    assert "generation 12/12" in said
    assert results(out) == alone


@pytest.mark.long
def test_killed_on_two_processes_resumed_on_one(alone, survey, tmp_path):
    out = tmp_path / "run"
    first, second = start(command(out, survey), 2, 4)
    while (latest_step(out / "checkpoints") or 0) < 4:
        assert second.poll() is None, second.communicate()[0]
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    said = first.communicate(timeout=200)[0]
    assert first.returncode != 0, said
    assert not (out / "result.json").exists()
    run(command(out, survey, "--resume"), processes=1, devices=2)
    assert results(out) == alone


@pytest.mark.long
def test_weights_split_over_two_devices(alone, survey, tmp_path):
    """Sums are taken in another order, so answers agree to rounding, not to the bit."""
    out = tmp_path / "run"
    run(command(out, survey, "--model-parallel", "2"), processes=1, devices=2)
    assert "model 2: model=2 as asked" in (out / "notes.log").read_text()
    found, expected = (
        json.loads(text)["countries"]["CHN"]
        for text in ((out / "result.json").read_bytes(), alone["result.json"])
    )
    for method, bound in (("naive", 0.01), ("tuned", 1.0)):  # a search may take another turn
        ours, theirs = (r[method]["expected"]["loss"] for r in (found, expected))
        assert ours == pytest.approx(theirs, abs=bound)


def test_each_host_reads_only_what_it_keeps(tmp_path):
    """A process reads half of every split weight, and the few others as a whole."""
    job = Path(__file__).parents[1] / "support" / "read_job.py"
    run([str(job), str(MODEL_FOLDER), str(tmp_path)], processes=2, devices=1)
    for process in (0, 1):
        found = json.loads((tmp_path / f"{process}.json").read_text())
        assert found["read"] == found["held"] < 0.51 * found["whole"]
        assert found["agreed"] == 5_000_000_000, "process 0's, whole: it is more than 32 bits"


# Answering


def answer(folder: Path, seconds: float = 0.0) -> list[str]:
    return [str(Path(__file__).parents[1] / "support" / "answer_job.py"), str(folder), str(seconds)]


@pytest.fixture(scope="module")
def answered_alone(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("answers")
    run(answer(folder), processes=1, devices=1)
    return (folder / "answers.npy").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (2, 4)])
def test_answers_do_not_depend_on_the_devices(answered_alone, tmp_path, processes, devices):
    run(answer(tmp_path), processes, devices)
    assert (tmp_path / "answers.npy").read_bytes() == answered_alone


@pytest.mark.long
def test_answering_killed_on_two_processes_goes_on_alone(answered_alone, tmp_path):
    first, second = start(answer(tmp_path, seconds=0.3), 2, 1)
    while not 0 < (kept := answers_kept(tmp_path)) < 60:
        assert second.poll() is None, second.communicate()[0]
        time.sleep(0.05)
    for process in (second, first):  # the first would notice after a minute or two
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kept <= answers_kept(tmp_path) < 60
    run(answer(tmp_path), processes=1, devices=2)
    assert (tmp_path / "answers.npy").read_bytes() == answered_alone


def answers_kept(folder: Path) -> int:
    files = list(folder.glob("exact-*.npy"))
    return int((np.load(files[0])["crc"] != 0).sum()) if files else 0
