"""Settings of a CulturalBench run: its command line, its record, and what `resume` must keep."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from jaxalign.core.errors import UserError
from jaxalign.lm.sampling import Sampling
from jaxalign.methods.ask import ANSWERING, Exact, Reading, Sampled
from jaxalign.runs import may_change
from jaxalign.surveys.options import take_as_declared


@dataclasses.dataclass(frozen=True)
class Settings:
    """Score a model on CulturalBench, plainly, in character, by example and with tuned prompts."""

    easy: Path | None = None
    """File of CulturalBench Easy, as published (kellycyy/CulturalBench) or as JSON or parquet."""
    hard: Path | None = None
    """File of CulturalBench Hard, likewise; a question is right only when all of its four rows
    are."""
    out: Path | None = may_change(None)
    """Directory of the run; default: runs/cultural_bench-<date>-<time>."""
    resume: bool = may_change(False)
    """Whether to continue the run in --out; it ends with the same bits as one never stopped."""
    model: str | None = None
    """Model folder, GGUF file, hub id such as meta-llama/Meta-Llama-3-8B-Instruct, or smollm2;
    default: the model of --run, else the pocket model that ships with the package."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of weights and activations; auto is float32 for the pocket Llama and bfloat16
    for every other model."""
    weights: Literal["stored", "int8"] = "stored"
    """Storage of the linear layers; int8 stores them in 8 bits."""
    run: Path | None = None
    """Directory of a soft-prompt run: each country's tuned prompt is put before the questions about
    that country, and before those about the run's other countries as a control."""
    prompt: tuple[str, ...] = ()
    """Further soft prompts: files of ours, or folders that PEFT wrote. COUNTRY=FILE says whose it
    is; one that neither says nor knows its country, as PEFT's, is put before every question."""
    adapter: Path | None = None
    """Folder of a low-rank adapter, ours or PEFT's: the adapted model is asked too, plainly and in
    character."""
    countries: tuple[str, ...] = ()
    """Countries whose questions are asked, as ISO 3166 alpha-3 codes or names in the file; default:
    all of them."""
    icl_examples: int = 3
    """Number of questions about the same country that stand before each question as examples, with
    their right answers; they do not count in the score of that method. 0 leaves it out."""
    reading: Literal["exact", "sampled"] = "exact"
    """How an answer is read. exact: the option whose number is the most likely reply; sampled: the
    first integer of each of --runs replies, each scored by itself."""
    runs: int = 3
    """Number of replies to each question if they are sampled."""
    answering: Sampling = ANSWERING
    """How replies are drawn if they are."""
    batch_size: int = may_change(64)
    """Number of replies written at a time, at most; fewer if memory is short."""
    prompts: Path | None = None
    """Folder with your own prompt texts (item.jinja, persona.jinja, judgement.jinja for the rows of
    Hard); default: the package's."""
    limit: int | None = None
    """For a quick look: ask this number of questions of each set, spread evenly over it."""
    resamples: int = 10_000
    """Number of resamples of the bootstrap over questions."""
    seed: int = 0
    """Seed of the examples, of sampled replies and of the bootstrap."""
    block_tokens: int | None = None
    """Number of tokens computed together; lower it if memory is short. Default: follows the
    device."""
    model_parallel: int | None = may_change(None)
    """Number of devices that share one copy of the weights; default: as few as memory allows."""
    quiet: bool = may_change(False)
    """Whether to hide the progress bar."""
    verbose: bool = may_change(False)
    """Whether to show plans, meshes, kernels and memory too; the run's notes.log has them."""

    def __post_init__(self) -> None:
        """Take a string for a path, as Python programs give them."""
        take_as_declared(self)

    def how(self) -> Reading:
        """Return how answers are read."""
        if self.reading == "exact":
            return Exact(self.block_tokens)
        return Sampled(self.runs, self.answering, self.seed, self.batch_size)


def check_settings(settings: Settings) -> None:
    """Raise UserError for values that cannot be used."""
    if settings.easy is None and settings.hard is None:
        raise UserError(
            "`easy`, `hard`: give one or both files; they are published as kellycyy/CulturalBench "
            "on the Hugging Face hub"
        )
    for name, least in (("icl_examples", 0), ("runs", 1), ("resamples", 1), ("batch_size", 1)):
        if getattr(settings, name) < least:
            raise UserError(f"`{name}` {getattr(settings, name)}: must be at least {least}")
    for name in ("block_tokens", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"`{name}` {value}: must be at least 1")
    if not 0 <= settings.seed < 2**32:
        raise UserError(f"`seed` {settings.seed}: must lie between 0 and 2**32 - 1")
