"""What a run's programs take is within 15 % of what was announced before they started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import init_params
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.runtime.memory import Memory, scratch_bytes

pytestmark = pytest.mark.long

# Wide enough for its temporaries to be tens of MiB, beside which threads and buffers are little.
MODEL = LlamaConfig(1792, 256, 640, 3, 8, 4, 32, dtype="float32", param_dtype="float32")
WITHIN = 0.15
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL_FOLDER / name, folder)
    save_checkpoint(folder, init_params(MODEL, jax.random.key(0)), MODEL)
    return folder


@pytest.mark.parametrize("stage", ["tuned prompts", "gradient control", "write", "fine-tune"])
def test_a_stage_takes_what_was_announced(stage: str, folder: Path) -> None:
    """In a process of its own: memory that others have given back may be used again."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.program_memory", str(folder), stage],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # Freed at once, or what an earlier program has left would be used again unseen.
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "65536"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    for row in rows:
        memory = Memory(row["arguments"], row["outputs"], row["aliased"], row["temporaries"])
        announced = memory.total + scratch_bytes(memory, "cpu")
        taken = row["arguments"] + row["measured"]
        assert abs(taken - announced) <= WITHIN * announced, (row, announced)
