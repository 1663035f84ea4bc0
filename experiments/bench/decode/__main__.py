"""Measure prefill and decoding in tokens per second against transformers' `generate`.

    python -m experiments.bench.decode
    python -m experiments.bench.decode --size 135m --dtype bfloat16 --batch 16 --prompt-tokens 256

Both tools decode greedily with the same random weights: as many prompts as there are slots, no stop
tokens. Each call is made twice, for one new token (the prefill) and for all of them, and the
difference is the decoding. The tools take turns on the same machine, the median rate is reported,
and the replies are compared. The first call of each is not counted, because it compiles our
programs. Needs torch; `tiny` takes a minute or two on two cores, `135m` about ten.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import check_new_file
from jaxalign.core.progress import Progress
from jaxalign.lm.checkpoint import save_checkpoint
from jaxalign.lm.config import DType, LlamaConfig
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.weights import init_params
from jaxalign.runs import write_json
from jaxalign.runs.console import main, print_table, progress_bars

# Shapes of a model of 7M parameters, and of SmolLM2-135M.
SIZES = {
    "tiny": LlamaConfig(4096, 256, 688, 6, 8, 4, 32, initializer_range=0.1),
    "135m": LlamaConfig(49_152, 576, 1536, 30, 9, 3, 64, rope_theta=1e5, tie_word_embeddings=True),
}
Replies = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample replies with this package and with transformers; compare tokens a second."""

    size: Literal["tiny", "135m"] = "tiny"
    """Shape of the model: hidden size 256 and 6 layers, or that of SmolLM2-135M."""
    dtype: DType = "float32"
    """Dtype of weights and activations, of both tools."""
    batch: int = 32
    """Number of prompts, all decoded together."""
    prompt_tokens: int | None = None
    """Number of tokens of each prompt. Default: 8 to 96, as in practice unequal."""
    new_tokens: int = 128
    """Number of tokens in each reply."""
    repeats: int = 5
    """Number of timed calls of each tool; the median is reported."""
    seed: int = 0
    """Seed of the weights and the prompts."""
    json: Path | None = None
    """File to which the figures are also written."""

    def __post_init__(self) -> None:
        if min(self.batch, self.new_tokens - 1, self.repeats, self.prompt_tokens or 1) < 1:
            raise UserError(
                "--batch, --repeats and --prompt-tokens must be at least 1, --new-tokens at least 2"
            )
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
    llama = SIZES[config.size].replace(dtype=config.dtype, param_dtype=config.dtype)
    params = init_params(llama, jax.random.key(config.seed))
    random = np.random.default_rng(config.seed)
    # Unequal lengths, as in practice: padding is part of what is compared.
    lengths = random.integers(8, 97, config.batch)
    if config.prompt_tokens is not None:
        lengths[:] = config.prompt_tokens
    prompts = [random.integers(0, llama.vocab_size, n).tolist() for n in lengths]

    def ours(new_tokens: int) -> Replies:
        sampling = Sampling(new_tokens, temperature=0.0)
        # The same caches for both numbers of new tokens.
        positions = int(lengths.max()) + config.new_tokens
        return generate(
            llama, params, prompts, sampling, (), batch_size=config.batch, positions=positions
        )

    theirs = _transformers(llama, params, prompts)
    tools = {
        (tool, new): functools.partial(call, new)
        for tool, call in (("jaxalign", ours), ("transformers", theirs))
        for new in (1, config.new_tokens)
    }
    seconds, replies = _take_turns(tools, config.repeats)
    # No stop tokens: every reply has its full length, so both tools produce the same number.
    median = {key: statistics.median(taken) for key, taken in seconds.items()}
    decoded = config.batch * (config.new_tokens - 1)
    rates = {
        tool: {
            "prefill": int(lengths.sum()) / median[tool, 1],
            "decode": decoded / (median[tool, config.new_tokens] - median[tool, 1]),
        }
        for tool in ("jaxalign", "transformers")
    }
    # Rounding may decide a tie between two tokens, so a few replies can differ.
    whole = [replies[tool, config.new_tokens] for tool in rates]
    same = sum(a == b for a, b in zip(*whole, strict=True))
    title = (
        f"Greedy replies, {config.size}, {config.batch} prompts x {config.new_tokens} tokens, "
        f"{config.dtype}"
    )
    rows = [[tool, rate["prefill"], rate["decode"]] for tool, rate in rates.items()]
    print_table(title, ("tool", "prefill, tokens/s", "decoding, tokens/s"), rows)
    ratio = {
        what: rates["jaxalign"][what] / rates["transformers"][what]
        for what in ("prefill", "decode")
    }
    print(
        f"jaxalign prefills {ratio['prefill']:.2f} times as fast as transformers and decodes "
        f"{ratio['decode']:.2f} times as fast; {same} of {config.batch} replies are identical"
    )
    figures = {
        "rates": rates,
        "ratio": ratio,
        "seconds": {f"{tool}, {new} new tokens": s for (tool, new), s in seconds.items()},
        "same_replies": same,
    }
    if config.json is not None:
        write_json(config.json, {"config": config, **figures})
    return figures


def _take_turns(
    tools: dict[tuple[str, int], Callable[[], Replies]], repeats: int
) -> tuple[dict[tuple[str, int], list[float]], dict[tuple[str, int], Replies]]:
    """Call the tools alternately, so that neither gets the quieter machine.

    Returns:
        The seconds of each timed call by tool, and the last replies by tool.
    """
    seconds: dict[tuple[str, int], list[float]] = {tool: [] for tool in tools}
    replies: dict[tuple[str, int], Replies] = {}
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


def _transformers(llama: LlamaConfig, params: Any, prompts: Replies) -> Callable[[int], Replies]:
    """Return a function that decodes with transformers' `generate` and the same weights.

    The prompts are padded on the left, as `generate` requires.
    """
    import torch
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory(prefix="jaxalign-bench-") as folder:
        save_checkpoint(Path(folder) / "model", params, llama)
        dtype = getattr(torch, llama.dtype)
        model = LlamaForCausalLM.from_pretrained(f"{folder}/model", dtype=dtype).eval()
    # Padding on the left: new tokens of all prompts then start at the same position.
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

    def call(new_tokens: int) -> Replies:
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
