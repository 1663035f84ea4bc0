"""A job of several processes for `test_hosts`: read a model that is split over all devices.

Each process writes how much of the model it has read.

    python read_job.py MODEL FOLDER    writes FOLDER/PROCESS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from jaxalign.lm import checkpoint
from jaxalign.lm.config import read_config
from jaxalign.lm.weights import param_shardings
from jaxalign.runtime import hosts
from jaxalign.runtime.sharding import make_mesh


def main(model: Path, folder: Path) -> None:
    hosts.join()
    config = read_config(model, "float32")
    read, fill = [], checkpoint._fill

    def counting(part, *args):
        read.append(part.nbytes)
        fill(part, *args)

    checkpoint._fill = counting
    mesh = make_mesh(population=1, model=jax.device_count())
    loaded = checkpoint.load_checkpoint(model, config, param_shardings(config, mesh))
    params = jax.tree.leaves(loaded)
    held = sum(x.addressable_shards[0].data.nbytes for x in params)
    whole = sum(x.nbytes for x in params)
    said = {"read": sum(read), "held": held, "whole": whole}
    said["agreed"] = hosts.agreed(5_000_000_000 + jax.process_index())
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
