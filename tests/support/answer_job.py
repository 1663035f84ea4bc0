"""A job of several processes for `test_hosts`: answer 60 conversations, a block at a time.

python answer_job.py FOLDER SECONDS    SECONDS: how long to rest after each round of blocks
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import jax
import numpy as np

from jaxalign.answering.batch import answer_exact
from jaxalign.lm.weights import init_params, param_shardings
from jaxalign.runtime import hosts
from jaxalign.runtime.sharding import make_mesh
from tests.answering.test_batch import CONFIG, some_conversations


def main(folder: Path, seconds: float) -> None:
    hosts.join()
    mesh = make_mesh(population=1, data=jax.device_count())
    make = jax.jit(init_params, static_argnums=0, out_shardings=param_shardings(CONFIG, mesh))
    params = make(CONFIG, jax.random.key(0))
    found = answer_exact(
        CONFIG,
        params,
        some_conversations(),
        mesh,
        folder=folder,
        block_tokens=64,
        on_progress=lambda progress: time.sleep(seconds if progress.done else 0),
    )
    if jax.process_index() == 0:
        np.save(folder / "answers.npy", found.log_probs_NxO)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
