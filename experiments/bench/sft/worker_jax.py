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

    def prepare(self, work: Work) -> dict[str, float | str]:
        """Load, compile, and train all steps once; return facts about the device and packing."""
        lora, adapter = load_lora(work.adapter, work.llama)
        train = TrainConfig(
            batch=work.batch,
            learning_rate=LEARNING_RATE,
            clip=CLIP,
            warm_up=0.0,
            tokens_per_pass=2048,
            remat=work.remat,
            unroll=work.unroll,
        )
        examples = {"all": [Example(*example) for example in work.examples]}
        mesh = make_mesh(jax.devices()[:1])
        self._trainer = Trainer(work.llama, train, lora, examples, mesh)
        self._params = load_checkpoint(work.model, work.llama)
        # Start from the adapter that both sides share; the order of the examples may differ.
        state = self._trainer.start(self._params)
        self._state = dataclasses.replace(
            state, trained=jax.tree.map(lambda x: jnp.asarray(x)[None], adapter)
        )
        self._dtype = work.llama.dtype
        self.run()
        return {
            "device": device_name(),
            "jax": jax.__version__,
            "useful": self._useful(),
        }

    def loss(self) -> float:
        """Return the mean loss over all answer tokens under the initial adapter."""
        total = count = 0.0
        for _, batches, passes in self._trainer.batches(0):
            # `advance` consumes its state; only the loss is wanted, so a copy is thrown away.
            copy = jax.tree.map(jnp.copy, self._state)
            _, metrics = self._trainer.advance(copy, self._params, batches, passes)
            # The batch's loss is a mean over its answer tokens: weigh it by their number.
            total += float(metrics["loss"][0] * metrics["answers"][0])
            count += float(metrics["answers"][0])
        return total / count

    def run(self) -> float:
        """Train all steps once; return the seconds, packing included."""
        state = jax.block_until_ready(jax.tree.map(jnp.copy, self._state))
        began = time.perf_counter()
        for _, batches, passes in self._trainer.batches(0):
            state, _ = self._trainer.advance(state, self._params, batches, passes)
        jax.block_until_ready(state)
        return time.perf_counter() - began

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
