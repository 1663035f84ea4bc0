"""How much work answering is: FLOPs of the plan, of a lower bound, and of the usual ways to do it.

FLOPs are those of matrix products, two for each multiply and add; norms, softmax and RoPE are left
out, as everybody does. All are per candidate, which is one soft prompt answering the whole survey.
`jaxalign.runtime.program_facts` reads the same numbers out of the compiled program; the tests hold
the two
together.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.plan import Layout, Rows
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.lm.config import DType, LlamaConfig


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one candidate, by part."""

    linear: int
    """Products with the weights of layers 0...L-2."""
    last_layer: int
    """Products with the last layer's weights."""
    attention: int
    """Queries times keys and weights times values, all layers."""
    options: int
    """Output head: rows of option tokens, and the whole of it where an option has more tokens."""
    shared: int = 0
    """Done once for all candidates, not part of `total`: the text before the prompt."""

    @property
    def total(self) -> int:
        return self.linear + self.last_layer + self.attention + self.options


def candidate_flops(config: LlamaConfig, layout: Layout | SuffixLayout) -> Flops:
    """What `answer.option_log_probs` computes for one candidate, padding of attention included."""
    if isinstance(layout, SuffixLayout):
        return _flops(config, layout, layout.tokens_computed, _after_pairs(layout))
    common = layout.common_length * (len(layout.before) + layout.common_length)
    pairs = common + _row_pairs(layout, layout.rows), _row_pairs(layout, layout.answer_rows)
    return _flops(config, layout, layout.tokens_computed, pairs, layout.scored_AxY.size)


def lower_bound(config: LlamaConfig, layout: Layout | SuffixLayout) -> Flops:
    """The least that exact answers to these items, with the prompt in this place, take.

    Every distinct token of the prefix tree once through layers 0...L-2; in the last layer keys and
    values of every token, queries and MLP of answer positions alone; attention over exactly the
    (query, key) pairs that are visible; of the output head the rows of option tokens, and all rows
    only at the inner positions of options longer than one token, which cannot be normalised
    otherwise. Nothing is padded. The text before the prompt is computed once for all candidates.
    """
    scored = len(np.unique(layout.sequences[layout.sequences >= 0]))
    if isinstance(layout, SuffixLayout):
        tokens = int(layout.mask_QxTxT.any(-1).sum())
        return _flops(config, layout, tokens, _visible_after_pairs(layout), scored)
    return _flops(config, layout, layout.tokens_computed, _visible_pairs(layout), scored)


def padded_batch_flops(config: LlamaConfig, layout: Layout) -> Flops:
    """Items as rows of one batch padded to the longest, the output head at every position.

    What a plain `vmap` over candidates of a batched forward does; options of one token.
    """
    lengths = item_lengths(layout)
    tokens = len(lengths) * int(lengths.max())
    return _plain_flops(config, tokens, tokens * int(lengths.max()), tokens)


def one_by_one_flops(config: LlamaConfig, layout: Layout) -> Flops:
    """Each item's whole text by itself, the output head at its last position alone."""
    lengths = item_lengths(layout)
    return _plain_flops(config, int(lengths.sum()), int((lengths**2).sum()), len(lengths))


def item_lengths(layout: Layout) -> np.ndarray:
    """Tokens of each item from the first of the conversation to the last before the answer [Q]."""
    nodes_Q = layout.sequences[:, 0, 0, 0] // layout.scored_AxY.shape[1]
    last_Q = layout.common_length + layout.answers[nodes_Q]
    return layout.positions[last_Q].astype(np.int64) + 1


def attention_padding_percent(layout: Layout | SuffixLayout) -> float:
    """Of the (query, key) pairs computed in all layers but the last, how many nobody sees."""
    if isinstance(layout, SuffixLayout):
        return 100 * (1 - _visible_after_pairs(layout)[0] / _after_pairs(layout)[0])
    common = layout.common_length * (len(layout.before) + layout.common_length)
    computed = common + _row_pairs(layout, layout.rows)
    return 100 * (1 - _visible_pairs(layout)[0] / computed)


def plan_report(
    config: LlamaConfig, layout: Layout | SuffixLayout, chunk: int
) -> dict[str, int | float]:
    """What a run computes and how near to the least that is; printed before it starts.

    `chunk`: candidates computed at a time on a device. Key and value bytes are those that exist at
    once: of one layer for a chunk, and of all layers for the text before the prompt.
    """
    least = lower_bound(config, layout).total
    plan = candidate_flops(config, layout)
    dtype_bytes = jnp.dtype(config.dtype).itemsize
    token_bytes = 2 * config.num_key_value_heads * config.head_dim * dtype_bytes
    before = layout.texts_QxS.size if isinstance(layout, SuffixLayout) else len(layout.before)
    report = {
        "tokens_asked_per_candidate": layout.tokens_asked,
        "tokens_computed_per_candidate": layout.tokens_computed,
        "teraflop_per_candidate": plan.total / 1e12,
        "teraflop_before_the_prompt_once": plan.shared / 1e12,
        "times_the_lower_bound": plan.total / least,
        "attention_padding_percent": attention_padding_percent(layout),
        "key_value_bytes_of_a_layer_for_a_chunk": chunk * layout.tokens_computed * token_bytes,
        "key_value_bytes_before_the_prompt": config.num_hidden_layers * before * token_bytes,
    }
    if isinstance(layout, Layout):
        padded, single = padded_batch_flops(config, layout), one_by_one_flops(config, layout)
        report["padded_batch_times_the_lower_bound"] = padded.total / least
        report["one_by_one_times_the_lower_bound"] = single.total / least
    return report


def plan_text(report: dict[str, int | float]) -> str:
    """`plan_report` as lines for people."""
    r = report
    lines = [
        f"plan: {r['tokens_asked_per_candidate']:,} tokens asked, "
        f"{r['tokens_computed_per_candidate']:,} computed per candidate; "
        f"{1e3 * r['teraflop_per_candidate']:,.2f} GFLOP, {r['times_the_lower_bound']:.3f} times "
        f"the least, {r['attention_padding_percent']:.0f} % of attention is padding",
        f"keys and values: {r['key_value_bytes_of_a_layer_for_a_chunk'] / 2**20:,.1f} MiB a layer "
        f"for a chunk, {r['key_value_bytes_before_the_prompt'] / 2**20:,.1f} MiB kept of the text "
        "before the prompt",
    ]
    if "one_by_one_times_the_lower_bound" in r:
        lines[0] += (
            f" (item by item: {r['one_by_one_times_the_lower_bound']:.2f} times, "
            f"padded batch: {r['padded_batch_times_the_lower_bound']:.2f})"
        )
    return "\n".join(lines)


def padding_text(searches: int, population: int, devices: int, chunk: int) -> str:
    """What a generation computes for nothing because each device's share is rounded up to whole
    chunks, and how to avoid it; "" where that is at most a tenth."""
    candidates = searches * population
    share = -(-candidates // devices)
    passes = -(-share // chunk)
    rows, better = devices * passes * chunk, -(-share // passes)
    if 10 * (rows - candidates) <= rows:
        return ""
    less = f"a chunk of {better} or " if better < chunk else ""
    return (
        f"padding: {rows - candidates} of {rows} rows a generation, for {candidates} candidates on "
        f"{devices} device{'s' if devices > 1 else ''} in chunks of {chunk}; {less}a population of "
        f"{rows // searches} has less"
    )


def matmul_peak(dtype: DType, seconds: float = 1.0, size: int | None = None) -> float:
    """FLOP/s of a large square matrix product on the first device: the best of several runs.

    Sums are float32; the result is written in float32, on a GPU in the inputs' dtype, as by
    `llama.model.product`. Repeats for about `seconds` after compiling; `size` is the matrices'
    width, by default one that keeps the device busy (2048 on CPU, 8192 elsewhere).
    """
    platform = jax.devices()[0].platform
    n = size or (2048 if platform == "cpu" else 8192)
    result = dtype if platform == "gpu" else "float32"
    precision = "highest" if dtype == "float32" else "default"
    product = jax.jit(
        lambda a, b: jnp.matmul(a, b, precision=precision, preferred_element_type=result)
    )
    a, b = jax.random.normal(jax.random.key(0), (2, n, n), jnp.dtype(dtype))
    jax.block_until_ready(product(a, b))
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        began = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def device_name() -> str:
    """The first device as its maker calls it; of a CPU what the operating system says."""
    device, cpuinfo = jax.devices()[0], Path("/proc/cpuinfo")
    if device.platform == "cpu" and cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return device.device_kind


def _flops(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    tokens: int,
    pairs: tuple[int, int],
    scored: int | None = None,
) -> Flops:
    """`tokens` through the layers, `pairs` of attention in a layer and in the last one, `scored`
    rows of the output head."""
    answers, before = len(layout.answers), config.num_hidden_layers - 1
    scored = layout.scored_AxY.size if scored is None else scored
    key_value, rest = _layer_weights(config)
    each_pair = 4 * config.num_attention_heads * config.head_dim
    S, text_pairs = _text(layout)
    return Flops(
        linear=2 * before * tokens * (key_value + rest),
        last_layer=2 * (tokens * key_value + answers * rest),
        attention=each_pair * (before * pairs[0] + pairs[1]),
        options=2 * config.hidden_size * (scored + len(layout.inner) * config.vocab_size),
        # The last layer of the shared text is wanted for its keys and values alone.
        shared=2 * S * (before * (key_value + rest) + key_value) + each_pair * before * text_pairs,
    )


def _text(layout: Layout | SuffixLayout) -> tuple[int, int]:
    """Tokens computed once for all candidates, and their (query, key) pairs, padding included."""
    if isinstance(layout, Layout):
        return len(layout.before), len(layout.before) ** 2
    Q, S = layout.texts_QxS.shape
    return Q * S, Q * S * S


def _plain_flops(config: LlamaConfig, tokens: int, pairs: int, heads: int) -> Flops:
    """A plain forward: full attention matrices, the output head at `heads` positions."""
    layers, weights = config.num_hidden_layers, sum(_layer_weights(config))
    return Flops(
        linear=2 * (layers - 1) * tokens * weights,
        last_layer=2 * tokens * weights,
        attention=4 * layers * config.num_attention_heads * config.head_dim * pairs,
        options=2 * config.hidden_size * config.vocab_size * heads,
    )


def _layer_weights(c: LlamaConfig) -> tuple[int, int]:
    """Weights of one layer's linear maps: of keys and values, and of all others."""
    key_value = 2 * c.hidden_size * c.num_key_value_heads * c.head_dim
    query_out = 2 * c.hidden_size * c.num_attention_heads * c.head_dim
    return key_value, query_out + 3 * c.hidden_size * c.intermediate_size


def _row_pairs(layout: Layout, rows: Rows) -> int:
    """(query, key) pairs computed for tree queries, padding included."""
    R, L, S = rows.mask_RxLxS.shape
    return R * L * (len(layout.before) + layout.common_length + S)


def _visible_pairs(layout: Layout) -> tuple[int, int]:
    """(query, key) pairs that exist: of all tokens, and of the answer positions."""
    S, W = len(layout.before), layout.common_length
    common = W * S + W * (W + 1) // 2
    tree = (
        rows.queries * (S + W) + int(rows.mask_RxLxS.sum())
        for rows in (layout.rows, layout.answer_rows)
    )
    pairs, answer_pairs = tree
    return common + pairs, answer_pairs


def _after_pairs(layout: SuffixLayout) -> tuple[int, int]:
    """(query, key) pairs computed for all block tokens and for the answers, padding included."""
    Q, T, _ = layout.mask_QxTxT.shape
    keys = layout.texts_QxS.shape[1] + T
    return Q * T * keys, len(layout.answers) * keys


def _visible_after_pairs(layout: SuffixLayout) -> tuple[int, int]:
    """(query, key) pairs that exist: of all block tokens, and of the answer positions."""
    own_QxT = layout.mask_QxTxT.sum(-1)
    seen_QxT = np.where(own_QxT > 0, own_QxT + layout.lengths_Q[:, None], 0)
    return int(seen_QxT.sum()), int(seen_QxT.reshape(-1)[layout.answers].sum())
