"""A sweep of 48 cells whole and in 2, 3 and 5 shards: the same table to the byte.

Each shard is a process of its own; some are killed and continued.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.pocket import MODEL_FOLDER
from tests.end_to_end.test_sweep_kill import recorded, wait_for

CELLS, SHARDS = 48, (2, 3, 5)
TINY = LlamaConfig(
    1792, 16, 24, 2, 2, 1, 8, dtype="float32", param_dtype="float32", initializer_range=0.3
)
FILE = """
countries = ["USA", "CHN", "IND", "SAU"]
seeds = 6
models = [{model!r}]
prompt_lengths = [2, 3]
generations = 4
save_every = 1
test_presentations = []
dtype = "float32"
[[strategies]]
name = "de4"
population = 4
"""


@pytest.fixture
def file(tmp_path) -> Path:
    """A sweep of a tiny model that has the pocket Llama's tokenizer."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(TINY, jax.random.key(0)), TINY)
    path = tmp_path / "sweep.toml"
    path.write_text(FILE.format(model=str(folder)))
    return path


def call(arguments: list[str]) -> None:
    """In a fork: what the command does, after its imports."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    from jaxalign.cli import main

    main(["sweep", *arguments])


class Caller:
    """Starts `jaxalign sweep` in processes of its own, from one that has the modules imported."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            [
                "jaxalign.commands.sweep.command",
                "transformers.models.auto.tokenization_auto",
                __name__,
            ]
        )

    def __call__(self, *arguments: object, killed: tuple[Path, int] | None = None) -> int:
        """Run to the end, or kill as soon as so many cells are on record; return the exit code."""
        process = self._context.Process(target=call, args=([str(a) for a in arguments],))
        process.start()
        if killed:
            wait_for(*killed, 0.05, process.is_alive)
            process.kill()
        process.join()
        return process.exitcode


@pytest.mark.long
def test_a_sweep_in_shards_has_the_table_of_a_whole_one(file, tmp_path):
    caller, seed = Caller(), random.randrange(2**32)
    print(f"kills: random.Random({seed})")
    chance = random.Random(seed)
    common = ["--quiet", "--save-prompts", "--cells-per-program", 5]
    assert caller(file, "--out", tmp_path / "whole", *common) == 0
    whole = outcome(tmp_path / "whole")
    assert len(whole) == 4 + CELLS

    def run(count: int, index: int, moments: list[int]) -> None:
        out = tmp_path / str(count)
        folder = out / "shards" / f"{index}-of-{count}"
        arguments = [file, "--out", out, *common, "--shard", f"{index}/{count}"]
        for cells in moments:
            code = caller(*arguments, killed=(folder, cells))
            assert code in (0, -signal.SIGKILL)
        assert caller(*arguments) == 0
        assert recorded(folder) >= CELLS // count - 1

    jobs = [(count, index) for count in SHARDS for index in range(1, count + 1)]
    stopped = {job: [chance.randrange(CELLS // job[0])] for job in chance.sample(jobs, 4)}
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(run, *job, stopped.get(job, [])) for job in jobs]
        for future in started:
            future.result()
    for count in SHARDS:
        out = tmp_path / str(count)
        assert caller(file, "--out", out, "--collect") == 0
        assert outcome(out) == whole, count

    shutil.rmtree(tmp_path / "3" / "shards" / "2-of-3")
    assert caller(file, "--out", tmp_path / "3", "--collect") == 2
    result = json.loads((tmp_path / "3" / "result.json").read_text("utf-8"))
    assert (result["cells"], len(result["missing"])) == (32, 16)


def outcome(out: Path) -> dict[str, bytes]:
    """All that a sweep decides, by file."""
    prompts = sorted((out / "prompts").glob("*.safetensors"))
    names = ("cells.jsonl", "result.json", "programs.json", "sweep.png")
    return {p.name: p.read_bytes() for p in (*(out / name for name in names), *prompts)}
