"""What `experiments.culturespa` is asked to do.

Three settings of the default run are there because the pocket Llama is not the paper's model.
A step of 128 examples would be the whole epoch: it takes 8. The pocket Llama has never seen what
follows a number, and with the end of the turn among the targets the loss begins at 7.6 nats a
token, so the number alone is trained. The paper's learning rate of 1e-4 is for a model of 8
billion weights: 1e-2 is the one of 1e-4, 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2 with the lowest training
loss over the last quarter of the joint model's epoch (0.387; 0.529 at 3e-3, 0.802 at 1e-4), on the
selected pairs of seed 100, which the default run does not use. That rule was set before any tuned
score was seen; what it costs is in the README. The loss on questions held out picks the same rate
(`learning_rate.py`, seeds 100 to 104: 0.585; 0.643 at 3e-3).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from jaxalign.core.errors import UserError
from jaxalign.lm.generate import Sampling
from jaxalign.lm.lora import LoraConfig
from jaxalign.methods.culturespa.styles import Examples
from jaxalign.runs import may_change
from jaxalign.training.step import TrainConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """CultureSPA: write questions, answer them, keep what a culture changes, fine-tune, measure."""

    out: Path | None = may_change(None)
    """Directory of the run; default runs/culturespa-<date>-<time>."""
    resume: bool = may_change(False)
    """Continue the run in --out; steps that are done are not done again."""
    model: Path | None = None
    """Folder of a Hugging Face Llama; default: the pocket Llama that ships with the package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations; auto: float32 for the pocket Llama, bfloat16 for others."""
    survey: Path | None = None
    """Survey with topics and countries' answers: its questions are the seeds, and it is the test;
    default: the simulated society's."""
    distributions: Path | None = None
    """Of a --survey in a CSV of your own: the CSV with country, item, code and share."""
    countries: tuple[str, ...] = ("USA", "BRA", "DEU", "CHN", "IND", "NGA")
    """ISO 3166 alpha-3 codes."""
    per_topic: int = 12
    """Questions asked for on each topic."""
    seeds: int = 5
    """How often everything that luck enters is done: questions, selection, adapters, order."""
    first_seed: int = 0
    reading: Literal["exact", "sampled"] = "exact"
    """exact: the most likely option; sampled: the first integer of --runs replies."""
    runs: int = 3
    """Replies to each question when sampled."""
    examples: Examples = "paper"
    """Where P2 and P3 read countries' answers: the survey that is tested, or --source."""
    source: Path | None = None
    """Another survey, for --examples leak_free; default, without --survey: the simulated society's
    values module."""
    source_distributions: Path | None = None
    """Of a --source in a CSV of your own: the CSV with country, item, code and share."""
    texts: Path | None = None
    """Folder with your own prompt texts; default: the package's."""
    writing: Sampling = dataclasses.field(
        default_factory=lambda: Sampling(max_new_tokens=256, temperature=0.9, top_p=0.95)
    )
    answering: Sampling = dataclasses.field(
        default_factory=lambda: Sampling(max_new_tokens=16, temperature=0.6, top_p=0.9)
    )
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(
            batch=8, learning_rate=1e-2, remat=False, unroll=True, tokens_per_pass=2048
        )
    )
    """How to fine-tune. Written questions too long for a given --train.row-length are left out, and
    counted."""
    specific_batch: int = 8
    """Examples per optimiser step of the specific models; --train.batch is that of the others."""
    end_of_turn: bool = False
    """Also train the end of the turn after the number, as chat trainers do."""
    guard: Path | None = None
    """MMLU-style questions on which fine-tuning should break nothing; default: pocket tasks."""
    resamples: int = 4000
    """Of the question bootstrap."""
    batch_size: int = may_change(64)
    """Replies written at a time."""
    block_tokens: int = 4096
    """Tokens computed together when answering; lower it where memory is short."""
    model_parallel: int | None = may_change(None)
    """Devices that share one copy of the weights; default: as few as memory allows."""
    save_every: int = may_change(50)
    """Training steps per checkpoint."""
    quiet: bool = may_change(False)
    """No progress bars."""

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        return tuple(range(self.first_seed, self.first_seed + self.seeds))

    @property
    def seed_groups(self) -> tuple[tuple[int, ...], ...]:
        """Seeds that the model as it came answers alike: all of them where answers are exact, each
        by itself where replies are drawn."""
        if self.reading == "exact":
            return (self.seed_numbers,)
        return tuple((seed,) for seed in self.seed_numbers)


def check_settings(config: Config) -> None:
    """UserError for settings that no run can have, whatever they name."""
    if jax.process_count() > 1:
        raise UserError(
            f"{jax.process_count()} processes: this experiment uses all devices of one; on several "
            "run its steps by themselves (experiments.fine_tune)"
        )
    for name, least in (
        ("seeds", 1), ("per_topic", 2), ("runs", 1), ("resamples", 1), ("batch_size", 1),
        ("specific_batch", 1), ("block_tokens", 64), ("save_every", 1),
        ("first_seed", 0),
    ):  # fmt: skip
        if getattr(config, name) < least:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(config, name)}: give at least {least}")
    if len(config.countries) < 2 or len(set(config.countries)) < len(config.countries):
        raise UserError(f"--countries {' '.join(config.countries)}: give two or more, each once")
    if config.train.method != "lora":
        raise UserError("--train.method full: this experiment trains adapters side by side")
    for shares, survey in (("distributions", "survey"), ("source_distributions", "source")):
        if (path := getattr(config, shares)) is not None and getattr(config, survey) is None:
            option = "--" + shares.replace("_", "-")
            raise UserError(f"{option} {path}: goes with a --{survey} of your own")
    _check_source(config)


def _check_source(config: Config) -> None:
    """Examples of another survey than the one the user means would go unnoticed."""
    leak_free = config.examples == "leak_free"
    if config.source is not None and not leak_free:
        raise UserError(
            f"--source {config.source}: read with --examples leak_free alone; give both, or neither"
        )
    if config.survey is not None and config.source is None and leak_free:
        raise UserError(
            f"--examples leak_free with --survey {config.survey}: name the survey that countries' "
            "answers are shown from with --source; the default is made up"
        )
