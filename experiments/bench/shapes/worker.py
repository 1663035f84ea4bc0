"""Do one task of `experiments.bench.shapes` with a model that is read from its folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.bench.peers import serve
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.mesh import weight_bytes
from jaxalign.lm.model import LM, load_model
from jaxalign.lm.weights import weight_format
from jaxalign.methods.ask import ask
from jaxalign.methods.conditions import Plain
from jaxalign.methods.soft_prompt import tune_soft_prompt
from jaxalign.optim import DifferentialEvolution
from jaxalign.surveys.survey import vsm
from jaxalign.training.packing import Example
from jaxalign.training.step import TrainConfig
from jaxalign.training.trainer import Trainer

Stage = Literal["search", "answers", "train", "decode"]
CANDIDATES, GENERATIONS = 4, 2
EXAMPLES, ANSWER_TOKENS = 4, 2
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 64, 9  # the first new token is the prefill's


class Side:
    """Methods that the parent process calls by name."""

    def load(self, folder: Path, weights: str) -> dict[str, float]:
        """Read the weights; return the seconds and the bytes that they take as held."""
        started = time.perf_counter()
        self._lm: LM = load_model(folder, dtype="bfloat16", weights=weights)
        jax.block_until_ready(self._lm.params)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "weight_bytes": weight_bytes(self._lm.config, 1, weights)}

    def run(self, stage: Stage) -> dict[str, Any]:
        """Do a stage's work, compiling included; return its seconds and what came out."""
        started = time.perf_counter()
        found = {"search": search, "answers": answers, "train": train, "decode": decode}[stage](
            self._lm
        )
        return {"seconds": time.perf_counter() - started, **found}


def search(lm: LM) -> dict[str, Any]:
    """Search for a soft prompt with few candidates, on the 24 items."""
    optimizer = DifferentialEvolution(population=CANDIDATES)
    tune_soft_prompt(lm, countries=("USA",), optimizer=optimizer, generations=GENERATIONS)
    return {"work": f"{CANDIDATES} candidates x {GENERATIONS} generations"}


def answers(lm: LM) -> dict[str, Any]:
    """Answer the 24 items exactly, in one block."""
    found = ask(lm, vsm(), [Plain()])
    return {"work": "24 items", "valid_mass": float(np.mean(found.valid_mass))}


def train(lm: LM) -> dict[str, Any]:
    """Take one optimiser step of a low-rank adapter, from examples of 100 to 132 tokens."""
    rng = np.random.default_rng(0)
    examples = [
        Example(tuple(rng.integers(0, 1000, n).tolist()), int(n) - ANSWER_TOKENS)
        for n in rng.integers(100, 133, EXAMPLES)
    ]
    settings = TrainConfig(batch=EXAMPLES, remat=True, tokens_per_pass=256)
    trainer = Trainer(
        lm.config,
        settings,
        LoraConfig(),
        {"joint": examples},
        lm.mesh,
        weights=weight_format(lm.params),
    )
    state = trainer.start(lm.params)
    _, data, passes = next(iter(trainer.batches(0)))
    _, metrics = jax.block_until_ready(trainer.advance(state, lm.params, data, passes))
    return {"work": f"a step of {EXAMPLES} examples", "loss": float(metrics["loss"][0])}


def decode(lm: LM) -> dict[str, Any]:
    """Write replies of 8 decoded tokens."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, 1000, (PROMPTS, PROMPT_TOKENS)).tolist()
    sampling = Sampling(max_new_tokens=NEW_TOKENS, temperature=0.0)
    replies = generate(lm.config, lm.params, prompts, sampling, (), mesh=lm.mesh)
    return {
        "work": f"{NEW_TOKENS - 1} tokens for {PROMPTS} prompts of {PROMPT_TOKENS}",
        "tokens": sum(map(len, replies)),
    }


if __name__ == "__main__":
    serve(Side(), sys.argv)
