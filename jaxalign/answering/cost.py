"""How much work answering is: FLOPs of the plan, of a lower bound, and of the usual ways to do it.

FLOPs are those of matrix products, two for each multiply and add; norms, softmax and RoPE are left
out, as is usual. All are per candidate, which is one soft prompt answering the whole survey.
`jaxalign.runtime.program_facts` reads the same numbers out of the compiled program, and tests hold
the two together.
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
    """The text before the prompt, computed once for all candidates; not part of `total`."""

    @property
    def total(self) -> int:
        """FLOPs that are computed anew for each candidate."""
        return self.linear + self.last_layer + self.attention + self.options


def candidate_flops(config: LlamaConfig, layout: Layout | SuffixLayout) -> Flops:
    """Return what `options.option_log_probs` computes for a candidate, attention's padding too."""
    if isinstance(layout, SuffixLayout):
        return _flops(config, layout, layout.tokens_computed, _suffix_pairs(layout))
    common = layout.common_length * (len(layout.before) + layout.common_length)
    pairs = common + _row_pairs(layout, layout.rows), _row_pairs(layout, layout.answer_rows)
    return _flops(config, layout, layout.tokens_computed, pairs, layout.scored_AxY.size)


def lower_bound(config: LlamaConfig, layout: Layout | SuffixLayout) -> Flops:
    """Return the least work that exact answers to these items take, with the prompt in its place.

    Counted are: every distinct token of the prefix tree once through layers 0...L-2; in the last
    layer keys and values of every token, queries and MLP of answer positions alone; attention over
    exactly the (query, key) pairs that are visible; of the output head the rows of option tokens,
    and all rows only at the inner positions of options longer than one token, which cannot be
    normalised otherwise. Nothing is padded. The text before the prompt is computed once for all
    candidates.
    """
    # Rows of the output head that are read, each once; the table repeats them as padding.
    scored = len(np.unique(layout.sequences[layout.sequences >= 0]))
    if isinstance(layout, SuffixLayout):
        tokens = int(layout.mask_QxTxT.any(-1).sum())
        return _flops(config, layout, tokens, _visible_suffix_pairs(layout), scored)
    return _flops(config, layout, layout.tokens_computed, _visible_pairs(layout), scored)


def padded_batch_flops(config: LlamaConfig, layout: Layout) -> Flops:
    """Return the work of asking the items as a batch padded to the longest item.

    The output head is computed at every position: this is what a plain `vmap` over candidates of a
    batched forward does, for options of one token.
    """
    lengths = item_lengths(layout)
    tokens = len(lengths) * int(lengths.max())
    return _plain_flops(config, tokens, tokens * int(lengths.max()), tokens)


def one_by_one_flops(config: LlamaConfig, layout: Layout) -> Flops:
    """Return the work of asking each item by itself, with the output head at its last position."""
    lengths = item_lengths(layout)
    return _plain_flops(config, int(lengths.sum()), int((lengths**2).sum()), len(lengths))


def item_lengths(layout: Layout) -> np.ndarray:
    """Return how many tokens each item's conversation has up to the answer, int64 [Q]."""
    # The first token of an item's first option is read at the item's last token.
    nodes_Q = layout.sequences[:, 0, 0, 0] // layout.scored_AxY.shape[1]
    last_Q = layout.common_length + layout.answers[nodes_Q]
    return layout.positions[last_Q].astype(np.int64) + 1


def attention_padding_percent(layout: Layout | SuffixLayout) -> float:
    """Return the percentage of computed (query, key) pairs that are masked, last layer aside."""
    if isinstance(layout, SuffixLayout):
        return 100 * (1 - _visible_suffix_pairs(layout)[0] / _suffix_pairs(layout)[0])
    common = layout.common_length * (len(layout.before) + layout.common_length)
    computed = common + _row_pairs(layout, layout.rows)
    return 100 * (1 - _visible_pairs(layout)[0] / computed)


def plan_report(
    config: LlamaConfig, layout: Layout | SuffixLayout, chunk: int
) -> dict[str, int | float]:
    """Return what a run computes and how close to the least work that is.

    Args:
        config: the model's shapes and dtypes.
        layout: the plan of the items.
        chunk: candidates computed at a time on a device.

    Returns:
        Figures by name. Bytes of keys and values are those that exist at once: of one layer for a
        chunk, and of all layers for the text before the prompt.
    """
    # A token leaves one key and one value per key-value head in every layer.
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
    """Return `plan_report` as lines to read."""
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
    """Return how many rows a generation computes for nothing, and how to avoid that.

    Each device's share of the candidates is rounded up to whole chunks, and the rest is padding.

    Args:
        searches: number of searches side by side.
        population: candidates of each search.
        devices: devices that share the candidates.
        chunk: candidates computed at a time on a device.

    Returns:
        One line; "" where at most a tenth of the rows is padding.

    >>> padding_text(searches=1, population=4, devices=4, chunk=1)
    ''
    >>> padding_text(searches=1, population=33, devices=1, chunk=32)[:40]
    'padding: 31 of 64 rows a generation, for'
    """
    # Rows that are computed: each device makes as many whole passes as its share takes.
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
    """Measure the FLOP/s of a large square matrix product on the first device.

    Sums are float32; the result is written in float32, on a GPU in the inputs' dtype, as by the
    model's own products.

    Args:
        dtype: of the matrices.
        seconds: how long to repeat, after compiling.
        size: width of the matrices; default: one that keeps the device busy (2048 on CPU, 8192
            elsewhere).

    Returns:
        The best of the runs.
    """
    platform = jax.devices()[0].platform
    n = size or (2048 if platform == "cpu" else 8192)
    result = dtype if platform == "gpu" else "float32"
    precision = "highest" if dtype == "float32" else "default"
    product = jax.jit(
        lambda a, b: jnp.matmul(a, b, precision=precision, preferred_element_type=result)
    )
    a, b = jax.random.normal(jax.random.key(0), (2, n, n), jnp.dtype(dtype))
    jax.block_until_ready(product(a, b))  # compiles
    best, until = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < until:
        start = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def device_name() -> str:
    """Return the name of the first device; of a CPU the one that the operating system gives."""
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
    """Return the FLOPs of a plan.

    Args:
        config: the model's shapes.
        layout: the plan.
        tokens: token positions that go through the layers.
        pairs: (query, key) pairs of attention in a layer, and in the last one.
        scored: rows of the output head; default: as many as the layout reads, padding included.
    """
    # In the last layer only answer positions go on to queries, output and MLP.
    answers, before = len(layout.answers), config.num_hidden_layers - 1
    scored = layout.scored_AxY.size if scored is None else scored
    key_value, rest = _layer_weights(config)
    # A pair costs a product with the key and one with the value, in every query head.
    each_pair = 4 * config.num_attention_heads * config.head_dim
    S, text_pairs = _text(layout)
    return Flops(
        linear=2 * before * tokens * (key_value + rest),
        last_layer=2 * (tokens * key_value + answers * rest),
        attention=each_pair * (before * pairs[0] + pairs[1]),
        options=2 * config.hidden_size * (scored + len(layout.inner) * config.vocab_size),
        # Of the shared text only the keys and values of the last layer are needed.
        shared=2 * S * (before * (key_value + rest) + key_value) + each_pair * before * text_pairs,
    )


def _text(layout: Layout | SuffixLayout) -> tuple[int, int]:
    """Return the tokens computed once for all candidates, and their pairs, padding included."""
    if isinstance(layout, Layout):
        return len(layout.before), len(layout.before) ** 2
    Q, S = layout.texts_QxS.shape
    return Q * S, Q * S * S


def _plain_flops(config: LlamaConfig, tokens: int, pairs: int, heads: int) -> Flops:
    """Return the FLOPs of a plain forward, with the output head at `heads` positions."""
    layers, weights = config.num_hidden_layers, sum(_layer_weights(config))
    return Flops(
        linear=2 * (layers - 1) * tokens * weights,
        last_layer=2 * tokens * weights,
        attention=4 * layers * config.num_attention_heads * config.head_dim * pairs,
        options=2 * config.hidden_size * config.vocab_size * heads,
    )


def _layer_weights(c: LlamaConfig) -> tuple[int, int]:
    """Return how many weights a layer's linear maps have: for keys and values, and all others."""
    key_value = 2 * c.hidden_size * c.num_key_value_heads * c.head_dim
    query_out = 2 * c.hidden_size * c.num_attention_heads * c.head_dim
    return key_value, query_out + 3 * c.hidden_size * c.intermediate_size


def _row_pairs(layout: Layout, rows: Rows) -> int:
    """Return the (query, key) pairs computed for tree queries, padding included."""
    R, L, S = rows.mask_RxLxS.shape
    return R * L * (len(layout.before) + layout.common_length + S)


def _visible_pairs(layout: Layout) -> tuple[int, int]:
    """Return the visible (query, key) pairs: of all tokens, and of the answer positions."""
    S, W = len(layout.before), layout.common_length
    common = W * S + W * (W + 1) // 2  # all text before, and causal among themselves
    tree = (
        rows.queries * (S + W) + int(rows.mask_RxLxS.sum())
        for rows in (layout.rows, layout.answer_rows)
    )
    pairs, answer_pairs = tree
    return common + pairs, answer_pairs


def _suffix_pairs(layout: SuffixLayout) -> tuple[int, int]:
    """Return the pairs computed for all block tokens and for the answers, padding included."""
    Q, T, _ = layout.mask_QxTxT.shape
    keys = layout.texts_QxS.shape[1] + T
    return Q * T * keys, len(layout.answers) * keys


def _visible_suffix_pairs(layout: SuffixLayout) -> tuple[int, int]:
    """Return the visible (query, key) pairs: of all block tokens, and of the answer positions."""
    # A real token sees its item's whole text besides; a padding token sees nothing.
    own_QxT = layout.mask_QxTxT.sum(-1)
    seen_QxT = np.where(own_QxT > 0, own_QxT + layout.lengths_Q[:, None], 0)
    return int(seen_QxT.sum()), int(seen_QxT.reshape(-1)[layout.answers].sum())
