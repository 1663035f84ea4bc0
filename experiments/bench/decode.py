"""Measure decoding speed in tokens per second against transformers' `generate`.

    python -m experiments.bench.decode
    python -m experiments.bench.decode --batch 8 --new-tokens 32 --repeats 3 --json decode.json

Both tools decode greedily in float32 with the same random model (hidden size 256, 6 layers,
vocabulary 4,096): prompts of 8 to 96 tokens in one batch, no stop tokens. They take turns on the
same machine, the median rate is reported, and the replies are compared. The first call of each tool
is not counted, because it compiles our program. Needs torch; takes a minute or two on two cores.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.core.progress import Progress
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.weights import init_params
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table, progress_bars

MODEL = LlamaConfig(
    4096, 256, 688, 6, 8, 4, 32, dtype="float32", param_dtype="float32", initializer_range=0.1
)
Replies = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample replies with this package and with transformers; compare tokens a second."""

    batch: int = 32
    """Number of prompts. transformers decodes all of them in one padded batch; jaxalign groups them
    by padded length."""
    new_tokens: int = 128
    """Number of tokens in each reply."""
    repeats: int = 5
    """Number of timed calls of each tool; the median is reported."""
    seed: int = 0
    """Seed of the weights and the prompts."""
    json: Path | None = None
    """File to which the figures are also written."""

    def __post_init__(self) -> None:
        if min(self.batch, self.new_tokens, self.repeats) < 1:
            raise UserError("--batch, --new-tokens and --repeats must be at least 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")
        check_new_file(self.json, "json")


def bench(config: Config) -> dict[str, Any]:
    """Time both tools, print the comparison and return its figures.

    Raises:
        UserError: If torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("the comparison needs torch: pip install torch==2.13.0")
    params = init_params(MODEL, jax.random.key(config.seed))
    random = np.random.default_rng(config.seed)
    # Unequal lengths, as in practice: padding is part of what is compared.
    lengths = random.integers(8, 97, config.batch)
    prompts = [random.integers(0, MODEL.vocab_size, n).tolist() for n in lengths]
    sampling = Sampling(config.new_tokens, temperature=0.0)
    tools = {
        "jaxalign": lambda: generate(MODEL, params, prompts, sampling, ()),
        "transformers": _transformers(params, prompts, config.new_tokens),
    }
    seconds, replies = _take_turns(tools, config.repeats)
    tokens = config.batch * config.new_tokens
    # No stop tokens: every reply has its full length, so both tools produce the same number.
    rates = {tool: tokens / statistics.median(taken) for tool, taken in seconds.items()}
    # Rounding may decide a tie between two tokens, so a few replies can differ.
    same = sum(a == b for a, b in zip(*replies.values(), strict=True))
    title = f"Greedy replies, {config.batch} prompts × {config.new_tokens} tokens, float32"
    rows = [[tool, rate, min(seconds[tool])] for tool, rate in rates.items()]
    print_table(title, ("tool", "tokens per second (median)", "fastest call, s"), rows)
    ratio = rates["jaxalign"] / rates["transformers"]
    print(
        f"jaxalign decodes {ratio:.2f} times as fast as transformers; "
        f"{same} of {config.batch} replies are identical"
    )
    figures = {"rates": rates, "ratio": ratio, "seconds": seconds, "same_replies": same}
    if config.json is not None:
        write_json(config.json, {"config": config, **figures})
    return figures


def _take_turns(
    tools: dict[str, Callable[[], Replies]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Replies]]:
    """Call the tools alternately, so that neither gets the quieter machine.

    Returns:
        The seconds of each timed call by tool, and the last replies by tool.
    """
    seconds: dict[str, list[float]] = {tool: [] for tool in tools}
    replies: dict[str, Replies] = {}
    # One round more than is counted: the first one compiles.
    calls = (repeats + 1) * len(tools)
    with progress_bars() as on_progress:
        on_progress(Progress("call", 0, calls, "calls"))
        for turn in range(calls):
            tool = list(tools)[turn % len(tools)]
            started = time.perf_counter()
            replies[tool] = tools[tool]()
            seconds[tool].append(time.perf_counter() - started)
            on_progress(Progress("call", turn + 1, calls, "calls"))
    return {tool: taken[1:] for tool, taken in seconds.items()}, replies


def _transformers(params: Any, prompts: Replies, new_tokens: int) -> Callable[[], Replies]:
    """Return a function that decodes with transformers' `generate` and the same weights.

    The prompts are padded on the left, as `generate` requires.
    """
    import torch
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory(prefix="jaxalign-bench-") as folder:
        save_checkpoint(Path(folder) / "model", params, MODEL)
        model = LlamaForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32).eval()
    # Padding on the left: new tokens of all prompts then start at the same position.
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def call() -> Replies:
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return out[:, width:].tolist()

    return call


if __name__ == "__main__":
    main(bench, Config)
