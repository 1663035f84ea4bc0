"""Load a checkpoint in a fresh process and print how much anonymous memory that takes.

    python -m tests.support.memory_probe FOLDER DEVICES [stored|int8]

Prints JSON: `kept`, bytes of the parameters on this host, and `peak`, anonymous bytes beyond those
that the process had before (RssAnon of /proc/self/status, sampled every millisecond; pages of the
mapped file are not counted).
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path

import jax

from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.config import read_config
from jaxalign.lm.weights import WeightFormat, param_shardings
from jaxalign.runtime.sharding import make_mesh


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) * 1024


class PeakSampler:
    """Measures the most anonymous memory while the `with` block runs.

    Attributes:
        bytes: The most that was seen, after the block.
    """

    def __enter__(self) -> PeakSampler:
        self.bytes, self._done = anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, anonymous_bytes())

    def _sample(self) -> None:
        while not self._done.is_set():
            self.bytes = max(self.bytes, anonymous_bytes())
            time.sleep(0.001)


def main(folder: Path, devices: int, weights: WeightFormat = "stored") -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    config = read_config(folder, "bfloat16")
    shardings = param_shardings(config, make_mesh(model=devices), weights)
    jax.block_until_ready(jax.numpy.ones(8) + 1)  # so that JAX's own memory is not counted
    before = anonymous_bytes()
    with PeakSampler() as peak:
        params = jax.block_until_ready(load_checkpoint(folder, config, shardings, weights))
    shards = [s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards]
    print(json.dumps({"kept": sum(shards), "peak": peak.bytes - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
