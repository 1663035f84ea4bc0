"""Train the pocket Llama in the simulated society.

    python -m experiments.train_pocket --out DIR

Hardware: a CPU and at most 2 GB of memory. Time: 0.35 to 0.5 s per step on two cores of an AVX-512
machine that is shared with other work, so 6,000 steps take 35 to 50 minutes. With glibc, the
environment variable GLIBC_TUNABLES=glibc.malloc.hugetlb=1 saves a tenth to a third of that (page
faults).

The weights in `jaxalign/pocket/model` come from three runs in sequence, 65 minutes in total:

1. 500 steps with learning rate 5e-3 and a warm-up of 150 steps.
2. From there, `--seed 1 --minutes 44` (5,800 steps). A persona was then taught to move half of the
   way to its country.
3. From there, `--seed 2 --minutes 13 --learning-rate 2e-3 --warm-up 50` (1,700 steps), after
   `society.adherence` was raised to the present two thirds: no soft prompt search tried on the
   weights of run 2 brought China below a quarter of the plain question's loss.

A run that `--minutes` ends depends on the speed of the machine, so these weights cannot be
reproduced to the bit. The default command has not been run to its end.

Measured on those weights (`pocket.measure`; simulated truth, 19 countries, expected answers on a
1...5 scale; a move is the share of the way from home to the country, an error is the mean distance
from the country):

                                         values module     held-out survey
                                         move   error      move   error
    unaware, distance from home                 0.008             0.033
    home itself                          0      0.207      0      0.596
    persona line (taught: 0.67)          0.63   0.086      0.63   0.239
    its text in front of the prompt      0.63   0.087      0.63   0.239
    scores described (taught: 1)         0.52   0.152      0.64   0.446
    persona, 1 answer to other survey    0.73   0.075      0.69   0.215
    persona, 5 answers to other survey   0.61   0.095      0.74   0.238
    no persona, 5 to other survey        0.31   0.167      0.45   0.486
    no persona, 5 to this survey         0.37   0.165      0.33   0.494

Examples without a persona move the answers less than a persona line alone, five examples help the
values module less than one, and descriptions by score, rounded to tens, are only half learned. The
model answers 69% of the small general tasks correctly (chance is 33%). Most of the questions that
it writes are usable JSON, and were in its training data.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Params, Weight, init_params, is_weight, weight_tree
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.pocket.conversations import Shape, make_batch
from jaxalign.pocket.corpus import Corpus, build_corpus, texts
from jaxalign.pocket.forward import divergence
from jaxalign.pocket.measure import measure
from jaxalign.pocket.rows import Batch
from jaxalign.pocket.tokenizer import save_tokenizer, train_tokenizer
from jaxalign.prompts import load_prompts
from jaxalign.runs.console import main

_QUICK = ("CHN", "IND", "SAU", "DEU")  # countries measured while training
LONG_MIX = {"context": 0.5, "writing": 0.5}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train the pocket Llama in the simulated society."""

    out: Path
    """Folder for the model, in Hugging Face layout, and for the log."""
    start: Path | None = None
    """Model folder of an earlier run to start from, instead of random weights."""
    steps: int = 6000
    """Number of optimiser steps."""
    minutes: float = math.inf
    """Longest time of the run; the learning rate then falls with the time used. A run that is ended
    by this is not reproducible to the bit."""
    seed: int = 0
    """Seed of the initial weights and of the training text."""
    learning_rate: float = 3e-3
    """Highest learning rate."""
    warm_up: int = 100
    """Number of steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """Weight decay of Muon and Adam."""
    rows: int = 24
    """Rows of a batch."""
    length: int = 192
    """Tokens of a row."""
    answers: int = 16
    """Largest number of targets of a row."""
    long_every: int = 6
    """Interval, in steps, between batches of longer rows, which hold many examples in context and
    new questions."""
    long_rows: int = 6
    """Rows of a batch of longer rows."""
    long_length: int = 512
    """Tokens of a longer row."""
    long_answers: int = 96
    """Largest number of targets of a longer row."""
    vocabulary: int = 1792
    """Size of the vocabulary."""
    hidden: int = 128
    """Width of the model."""
    feed_forward: int = 320
    """Width of the feed-forward layers."""
    layers: int = 4
    """Number of layers."""
    save_every_minutes: float = 8.0
    """Minutes between saves, each with a short measurement."""


def model_config(config: Config, vocabulary: int) -> LlamaConfig:
    """Return the shapes of the pocket Llama."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        initializer_range=0.04,
        dtype="float32",
        param_dtype="float32",
    )


def make_rule(config: Config, c: LlamaConfig) -> optax.GradientTransformation:
    """Return the optimiser, for a learning rate of 1.

    Muon (Jordan et al. 2024) for the matrices inside the layers, scaled so that a step changes them
    as much as Adam would (Liu et al. 2025: root mean square 0.2); Adam for embeddings and norms.
    """

    def dimensions(weight: Weight) -> optax.contrib.MuonDimensionNumbers | None:
        if not weight.transposed:  # the embedding table and the norms' scales
            return None
        axes = [i for i, name in enumerate(weight.axes) if name != "layers"]
        sizes = np.cumprod([weight.shape[i] for i in axes])
        split = int(np.flatnonzero(sizes == weight.fan_in)[0]) + 1
        return optax.contrib.MuonDimensionNumbers(tuple(axes[:split]), tuple(axes[split:]))

    numbers = jax.tree.map(dimensions, weight_tree(c), is_leaf=is_weight)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            1.0,
            weight_decay=config.weight_decay,
            adam_b2=0.98,
            muon_weight_dimension_numbers=numbers,
            consistent_rms=0.2,
        ),
    )


def make_step(c: LlamaConfig, rule: optax.GradientTransformation):
    """Return the jitted step(params, state, batch, learning rate) -> (params, state, loss).

    The buffers of params and state are reused.
    """

    def step(params: Params, state: optax.OptState, batch: Batch, rate: jax.Array):
        loss, gradient = jax.value_and_grad(lambda p: divergence(c, p, batch))(params)
        updates, state = rule.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        return params, state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def learning_rate(config: Config, step: int, seconds: float) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero.

    The cosine spans the steps, or the minutes if those end first.
    """
    done = max(step / config.steps, seconds / 60 / config.minutes)
    rise = min(1.0, (step + 1) / config.warm_up)
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def export(folder: Path, params: Params, c: LlamaConfig, corpus: Corpus) -> None:
    """Write the model folder, in place of an earlier export."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    save_checkpoint(folder, params, c)
    save_tokenizer(corpus.tokenizer, folder)
    shutil.copytree(MODEL_FOLDER / "prompts", folder / "prompts", dirs_exist_ok=True)


def train(config: Config, c: LlamaConfig, corpus: Corpus) -> Params:
    """Train to the last step or minute; saves and measures on the way."""
    rule = make_rule(config, c)
    params = init_params(c, jax.random.key(config.seed))
    if config.start is not None:
        params = load_checkpoint(config.start, c)
    state, step_fn = rule.init(params), make_step(c, rule)
    shapes = (
        Shape(config.rows, config.length, config.answers),
        Shape(config.long_rows, config.long_length, config.long_answers, LONG_MIX),
    )
    start = saved = time.monotonic()
    losses, log = [], (config.out / "train.jsonl").open("w", encoding="utf-8")
    bar = Progress(*Progress.get_default_columns(), TimeElapsedColumn(), TimeRemainingColumn())
    with bar, log:
        task = bar.add_task("training", total=config.steps)
        for n in range(config.steps):
            seconds = time.monotonic() - start
            if seconds > 60 * config.minutes:
                break
            long = n % config.long_every == config.long_every - 1
            batch = make_batch(corpus, config.seed, n, shapes[long])
            rate = learning_rate(config, n, seconds)
            params, state, loss = step_fn(params, state, batch, jnp.float32(rate))
            losses.append((long, loss))
            bar.advance(task)
            if n % 100 == 99:
                _log(log, bar, n + 1, seconds, rate, losses[-100:])
            if time.monotonic() - saved > 60 * config.save_every_minutes:
                saved = time.monotonic()
                export(config.out, params, c, corpus)
                quick = measure(c, params, corpus, _QUICK, counts=(5,))
                _report(log, bar, quick, step=n + 1)
    return params


def _log(log, bar, step: int, seconds: float, rate: float, losses: list) -> None:
    """Write the mean loss of the last steps, of usual and of longer rows."""
    short, long = ([float(x) for kind, x in losses if kind is k] for k in (False, True))
    _report(
        log,
        bar,
        {"kl": float(np.mean(short)), "kl_long": float(np.mean(long))},
        step=step,
        seconds=round(seconds, 1),
        learning_rate=rate,
    )


def _report(log, bar, numbers: dict[str, float], **more: float) -> None:
    row = {**more, **{name: round(value, 4) for name, value in numbers.items()}}
    log.write(json.dumps(row) + "\n")
    log.flush()
    bar.console.print(row)


def run(config: Config) -> None:
    """Train a tokenizer and the model, export and measure them."""
    config.out.mkdir(parents=True, exist_ok=True)
    prompts = load_prompts(model_folder=MODEL_FOLDER)
    tokenizer = train_tokenizer(texts(prompts), config.vocabulary)
    corpus = build_corpus(tokenizer, prompts)
    c = model_config(config, len(tokenizer))
    params = train(config, c, corpus)
    export(config.out, params, c, corpus)
    result = {name: round(value, 4) for name, value in measure(c, params, corpus).items()}
    (config.out / "measured.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(run, Config)
