"""A job of several processes for `test_hosts_training` and `test_train_resume`.

It fine-tunes two adapters of a small random Llama:

    python train_job.py OUT [DATA [MODEL]]    devices per axis of the mesh; DATA defaults to all

It writes OUT/metrics.jsonl, OUT/checkpoints, and at the end OUT/final.npz with every leaf of the
state. It prints "begin N" with the number of steps already done, and "step N" after each step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

from jaxalign.core.files import MetricsFile
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.weights import init_params, param_shardings
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime import hosts
from jaxalign.runtime.sharding import make_mesh, replicated
from jaxalign.training.packing import Example
from jaxalign.training.trainer import TrainConfig, Trainer, fit

STEPS, SAVE_EVERY = 30, 3
CONFIG = LlamaConfig(
    64, 32, 48, 3, 4, 2, 8, dtype="float32", param_dtype="float32", initializer_range=0.15
)
TRAIN = TrainConfig(batch=4, epochs=2, learning_rate=1e-2, longest_example=32, tokens_per_pass=64)


def make_examples() -> dict[str, list[Example]]:
    random = np.random.default_rng(0)
    return {
        name: [
            Example(tuple(random.integers(0, 61, int(n)).tolist()), int(n) - 1)
            for n in random.integers(4, 20, count)
        ]
        for name, count in (("USA", 60), ("CHN", 36))
    }


def main(out: Path, data: int | None = None, model: int = 1) -> None:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    hosts.join()
    mesh = make_mesh(population=None if data else 1, data=data or jax.device_count(), model=model)
    trainer = Trainer(CONFIG, TRAIN, LoraConfig(), make_examples(), mesh)
    make = jax.jit(init_params, static_argnums=0, out_shardings=param_shardings(CONFIG, mesh))
    params = make(CONFIG, jax.random.key(0))
    writes = jax.process_index() == 0
    metrics = MetricsFile(out / "metrics.jsonl", "step")

    def begin(done: int) -> None:
        if writes:
            metrics.rewind(done or -1)
        print("begin", done, flush=True)

    def log(row: dict) -> None:
        if writes:
            metrics.append(row)
        print("step", row["step"], flush=True)

    with Checkpoints(out / "checkpoints", asynchronous=True) as checkpoints:
        fit(trainer, params, checkpoints, SAVE_EVERY, begin, log)
        _, state = checkpoints.restore(trainer.abstract_state)
    whole = jax.jit(lambda x: x, out_shardings=replicated(mesh))(state)
    if writes:
        np.savez(out / "final.npz", *[np.asarray(x) for x in jax.tree.leaves(whole)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
