"""Train with jaxalign: one of the two workers of `experiments.bench.sft`."""

from __future__ import annotations

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp

from experiments.bench.peers import serve
from experiments.bench.sft.work import CLIP, LEARNING_RATE, Work
from jaxalign.answering.cost import device_name, matmul_peak
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.peft import load_lora
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.packing import Example
from jaxalign.training.trainer import TrainConfig, Trainer


class JaxSide:
    """Methods that the parent process calls by name."""

    def prepare(self, work: Work) -> dict[str, object]:
        """Load and compile.

        Returns:
            Facts about the device and the compiled step, and the examples of each step.
        """
        lora, adapter = load_lora(work.adapter, work.llama)
        train = TrainConfig(
            batch=work.batch,
            learning_rate=LEARNING_RATE,
            clip=CLIP,
            warm_up=0.0,
            tokens_per_pass=work.tokens_per_pass,
            remat=work.remat,
        )
        examples = {"all": [Example(*example) for example in work.examples]}
        mesh = make_mesh(jax.devices()[:1])
        began = time.perf_counter()
        self._trainer = Trainer(work.llama, train, lora, examples, mesh)
        compile_seconds = time.perf_counter() - began
        self._params = load_checkpoint(work.model, work.llama)
        # Start from the adapter that both sides share.
        state = self._trainer.start(self._params)
        self._state = dataclasses.replace(
            state, trained=jax.tree.map(lambda x: jnp.asarray(x)[None], adapter)
        )
        self._dtype = work.llama.dtype
        (data,) = self._trainer.groups
        return {
            "device": device_name(),
            "jax": jax.__version__,
            "useful": self._useful(),
            "compile_seconds": compile_seconds,
            "step": self._trainer.describe(),
            "remat": self._trainer.train.remat,
            "steps": [
                [(e.tokens, e.prompt_length) for e in data.examples(step)[0]]
                for step in range(data.steps)
            ],
        }

    def first_step(self) -> dict[str, float]:
        """Return loss and gradient norm of the first step, under the initial adapter.

        It also warms up.
        """
        _, batches, passes = next(self._trainer.batches(0))
        # `advance` consumes its state, so it is given a copy.
        copy = jax.tree.map(jnp.copy, self._state)
        _, metrics = self._trainer.advance(copy, self._params, batches, passes)
        return {name: float(metrics[name][0]) for name in ("loss", "gradient_norm")}

    def run(self) -> dict[str, float]:
        """Train all steps once; return seconds and processor seconds, packing included."""
        state = jax.block_until_ready(jax.tree.map(jnp.copy, self._state))
        began, busy = time.perf_counter(), time.process_time()
        for _, batches, passes in self._trainer.batches(0):
            state, _ = self._trainer.advance(state, self._params, batches, passes)
        jax.block_until_ready(state)
        return {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - busy,
        }

    def peak(self) -> float:
        """Return the FLOP/s of a large matrix product."""
        return matmul_peak(self._dtype)

    def _useful(self) -> float:
        """Return the share of computed tokens that are not padding."""
        (data,) = self._trainer.groups
        counts = [data.tokens(step) for step in range(data.steps)]
        return sum(useful for useful, _ in counts) / sum(computed for _, computed in counts)


if __name__ == "__main__":
    serve(JaxSide(), sys.argv)
