"""Decode with jaxalign: one of the two workers of `experiments.bench.decode`."""

from __future__ import annotations

import sys
import time

import jax

from experiments.bench.decode.work import Case, Timed, Work
from experiments.bench.peers import serve
from jaxalign.answering.cost import device_name, matmul_peak
from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint
from jaxalign.lm.generate import Sampling, open_queue
from jaxalign.lm.weights import init_params


class JaxSide:
    """Methods that the parent process calls by name."""

    def prepare(self, work: Work) -> dict[str, str]:
        """Load the weights, or draw random ones and write them for the other worker."""
        self._work = work
        if not (work.folder / "config.json").is_file():
            draw = jax.jit(init_params, static_argnums=0)
            save_checkpoint(work.folder, draw(work.llama, jax.random.key(work.seed)), work.llama)
        self._params = load_checkpoint(work.folder, work.llama)
        device = jax.devices()[0]
        return {"platform": device.platform, "device": device_name(), "jax": jax.__version__}

    def run(self, method: str, case: Case) -> Timed:
        """Answer all prompts greedily, through a queue as `generate` makes it."""
        work, replies = self._work, {}
        prompts = case.tokens(work.llama.vocab_size, work.seed).tolist()
        began = time.perf_counter()
        queue = open_queue(
            work.llama,
            self._params,
            Sampling(case.new_tokens, temperature=0.0),
            (),
            work.seed,
            replies=case.prompts,
            batch_size=case.prompts,
            positions=case.prompt_tokens + case.new_tokens,
        )
        for i, prompt in enumerate(prompts):
            queue.add(i, prompt, i)
        queue.prefill()
        prefilled = time.perf_counter()
        while len(queue):
            replies |= dict(queue.step())
        ended = time.perf_counter()
        return Timed(prefilled - began, ended - prefilled, [replies[i] for i in sorted(replies)])

    def peak(self) -> float:
        """Return the FLOP/s of a large matrix product."""
        return matmul_peak(self._work.llama.dtype)


if __name__ == "__main__":
    serve(JaxSide(), sys.argv)
