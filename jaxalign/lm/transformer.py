"""The decoder as a Flax Linen model: layers stacked by `nn.scan`, the last one separate.

Dimension letters in array names (`x_BxTxD`) and einsums, throughout the package:
    E evolved member   C culture (country)   Q question (item)   O option   M prompt token
    B batch   T query position   S key position   N query head   K key-value head
    G query heads per key-value head   H head dimension   D model   F feed-forward   V vocabulary
    L layer   A answer position   R row of an attention layout

The residual stream, norms, softmax, SwiGLU and RoPE are float32. A model in bfloat16 rounds in one
kind of place: what a matrix product reads (`rounded`). Products accumulate in float32 and return it
on CPU; an accelerator writes their results in bfloat16, which halves the traffic through its
memory. A plain forward, a packed population and decoding differ only in which keys a query sees, so
a layer takes its attention as an argument (`Attend`).

Source: Llama 3 (Grattafiori et al. 2024), RoPE (Su et al. 2021), GQA (Ainslie et al. 2023).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.lm.bits import from_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.lanes import KEPT_LANES, KEPT_PLACES, LANES, PLACES, from_lanes, to_lanes
from jaxalign.lm.weights import Weight, block_weights, outer_weights
from jaxalign.runtime.platform import target_platform

# Input and output axes of every linear map of a layer, as einsum letters.
AXES = MappingProxyType(
    {
        "q": ("d", "nh"),
        "k": ("d", "kh"),
        "v": ("d", "kh"),
        "o": ("nh", "d"),
        "gate": ("d", "f"),
        "up": ("d", "f"),
        "down": ("f", "d"),
    }
)

Rope = tuple[jax.Array, jax.Array]  # cos, sin: float32 [T, H/2] or [B, T, H/2]
KeyValue = tuple[jax.Array, jax.Array]  # keys, values: [B, S, K, H]
# attend(q_BxTxNxH, k_BxSxKxH, v_BxSxKxH, cache of this layer) -> o_BxTxNxH. A
# `jax.tree_util.Partial`, so that masks and index tables inside it reach `nn.scan` as arrays.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Return x / rms(x) * scale over the last axis, in float32."""
    x, scale = x.astype(jnp.float32), from_bits(scale).astype(jnp.float32)
    normed = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return normed * scale.reshape((1,) * (x.ndim - 1) + scale.shape)


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """Return x rounded to the dtype in which a matrix product reads it.

    On CPU, where products of bfloat16 may be computed in float32, XLA may leave out a conversion
    that is followed by one back ("excess precision"), in one program and not in another. It does
    not leave out `reduce_precision`. Accelerators read bfloat16; there it would only keep XLA from
    converting partial sums before they are exchanged.
    """
    dtype = jnp.dtype(dtype)
    if dtype == x.dtype or dtype == jnp.float32 or target_platform() != "cpu":
        return x.astype(dtype)
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant).astype(dtype)


def rope_frequencies(c: LlamaConfig) -> np.ndarray:
    """Return the frequencies of RoPE, float32 [H/2] in radians per position, after scaling."""
    exponents = np.arange(0, c.head_dim, 2, dtype=np.float32) / np.float32(c.head_dim)
    frequencies = (1.0 / np.float32(c.rope_theta) ** exponents).astype(np.float32)
    s = c.rope_scaling
    if s is None:
        return frequencies
    # Full turns within the original context: frequencies with many turns are kept, those with few
    # are divided by `factor`, and between the two limits they are interpolated.
    turns = s.original_max_position_embeddings * frequencies / (2 * math.pi)
    smooth = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    return ((1 - smooth) * frequencies / s.factor + smooth * frequencies).astype(np.float32)


def rope_tables(c: LlamaConfig, positions: jax.Array) -> Rope:
    """Return cos and sin, float32 [..., T, H/2], of integer positions [..., T]."""
    frequencies = jnp.asarray(rope_frequencies(c))
    angles = positions.astype(jnp.float32)[..., None] * frequencies.reshape(
        (1,) * positions.ndim + frequencies.shape
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BxTxNxH: jax.Array, rope: Rope) -> jax.Array:
    """Rotate each pair of dimensions (i, i + H/2) by its position's angle; returns float32."""
    # One angle for all heads, and for all sequences if the tables have no batch axis.
    cos, sin = (jnp.expand_dims(t, -2) for t in rope)
    if cos.ndim < x_BxTxNxH.ndim:
        cos, sin = cos[None], sin[None]
    first, second = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def causal_mask(segments_BxT: jax.Array) -> jax.Array:
    """Return which keys a query sees, bool [B, 1, T, T]: those up to it in its own segment.

    Segment 0 is padding and is seen by nobody.
    """
    T = segments_BxT.shape[1]
    earlier = jnp.tril(jnp.ones((T, T), bool))[None]
    same = segments_BxT[:, :, None] == segments_BxT[:, None, :]
    return (earlier & same & (segments_BxT > 0)[:, None, :])[:, None]


def masked_attention(
    mask_BxTxS: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, cache: None = None
) -> jax.Array:
    """Attend under a boolean mask [B or 1, 1, T, S]; softmax in float32."""
    with exact_products(q.dtype):
        return jax.nn.dot_product_attention(q, k, v, mask=mask_BxTxS)


def exact_products(dtype: Any) -> AbstractContextManager:
    """Return a context in which float32 products are exact on TPU and GPU too.

    For products that do not go through `product`.
    """
    return jax.default_matmul_precision("highest" if dtype == jnp.float32 else "default")


@jax.checkpoint
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Return silu(gate) * up in float32; a backward pass keeps only the inputs."""
    return nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)


def project(x: jax.Array, w: Mapping[str, jax.Array], name: str, merge: bool = False) -> jax.Array:
    """Apply the linear map `name` to the last axes of x, accumulating in float32.

    Beside a kernel there may be its adapter, `name_a` and `name_b` (`jaxalign.lm.lora`), or one for
    each unit of the sequence (`jaxalign.lm.lanes`), the scale of its outputs, `name_scale`, if it
    is stored in 8 bits (`jaxalign.lm.quantize`), and a bias, `name_bias`.

    Args:
        x: [B, T, inputs...], in the dtype that products read.
        w: The weights of one layer.
        name: A key of `AXES`.
        merge: Whether to add an adapter into its kernel first, where that is exact (in float32) and
            faster (on a CPU, for a long sequence). The kernel then has no gradient.

    Returns:
        [B, T, outputs...]: float32 on CPU; on accelerators rounded to x's dtype.
    """
    inputs, outputs = AXES[name]
    lead, merge = "bt", merge and _merges(x, w, name)
    beside = {f"{name}_scale", f"{name}_a", f"{name}_bias"} & set(w)
    written = jnp.float32 if target_platform() == "cpu" else x.dtype
    # With any of these, the result stays float32 until everything is added up.
    dtype = jnp.float32 if beside else written
    if merge:
        out = merged_product(AXES[name], x, w[name], w[f"{name}_a"], w[f"{name}_b"])
    else:
        out = product(f"{lead}{inputs},{inputs}{outputs}->{lead}{outputs}", x, w[name], dtype)
    if f"{name}_scale" in w:
        scale = w[f"{name}_scale"].astype(jnp.float32)
        out = out * scale.reshape((1,) * len(lead) + scale.shape)
    if f"{name}_a" in w and not merge:
        # (x A) B with the small rank in between; B contains the scale alpha / rank.
        a, b = w[f"{name}_a"], w[f"{name}_b"]
        if LANES not in w:
            low = product(f"{lead}{inputs},{inputs}r->{lead}r", x, a, x.dtype)
            out = out + product(f"{lead}r,r{outputs}->{lead}{outputs}", low, b)
        else:  # one adapter for each unit of a single sequence
            lanes = w[LANES], w[PLACES]
            units = to_lanes(x[0], *lanes)
            low = product(f"{lead}{inputs},b{inputs}r->{lead}r", units, a, x.dtype)
            update = product(f"{lead}r,br{outputs}->{lead}{outputs}", low, b)
            out = out + from_lanes(update, *lanes)[None]
    if f"{name}_bias" in w:
        bias = from_bits(w[f"{name}_bias"]).astype(jnp.float32)
        out = out + bias.reshape((1,) * len(lead) + bias.shape)
    return rounded(out, written)


def _heads(
    x: jax.Array,
    w: Mapping[str, jax.Array],
    name: str,
    rope: Rope,
    c: LlamaConfig,
    merge: bool = False,
) -> jax.Array:
    """Return queries ("q") or keys ("k") of all heads: normed if there is a norm, then rotated."""
    heads = project(x, w, name, merge)
    if f"{name}_norm" in w:
        heads = rms_norm(heads, w[f"{name}_norm"], c.rms_norm_eps)
    return rounded(rotate(heads, rope), c.dtype)


# With at least this many tokens, adding an adapter to its kernel is faster than a second product.
_MERGED_TOKENS = 256


def _merges(x: jax.Array, w: Mapping[str, jax.Array], name: str) -> bool:
    alone = f"{name}_a" in w and LANES not in w and f"{name}_scale" not in w
    exact = x.dtype == w[name].dtype == jnp.float32
    return alone and exact and x.shape[1] >= _MERGED_TOKENS and target_platform() == "cpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def merged_product(
    axes: tuple[str, str], x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array
) -> jax.Array:
    """Compute x (W + A B) of a frozen kernel W and an adapter, in float32.

    Beside x W, the product x A B writes and reads its outputs once more, which takes longer on a
    CPU than adding A B to W. The backward pass needs x A and the like, which are narrow, for the
    gradients of A and B alone.
    """
    inputs, outputs = axes
    return product(f"bt{inputs},{inputs}{outputs}->bt{outputs}", x, _merged(axes, kernel, a, b))


def _merged(axes: tuple[str, str], kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    inputs, outputs = axes
    return kernel + product(f"{inputs}r,r{outputs}->{inputs}{outputs}", a, b)


def _merged_forward(
    axes: tuple[str, str], x: jax.Array, kernel: jax.Array, a: jax.Array, b: jax.Array
) -> tuple[jax.Array, Any]:
    return merged_product(axes, x, kernel, a, b), (x, kernel, a, b)


def _merged_backward(
    axes: tuple[str, str], kept: Any, g: jax.Array
) -> tuple[jax.Array, None, jax.Array, jax.Array]:
    (x, kernel, a, b), (inputs, outputs) = kept, axes
    merged = _merged(axes, kernel, a, b)
    x_gradient = product(f"bt{outputs},{inputs}{outputs}->bt{inputs}", g, merged)
    low = product(f"bt{inputs},{inputs}r->btr", x, a)
    low_gradient = product(f"bt{outputs},r{outputs}->btr", g, b)
    a_gradient = product(f"bt{inputs},btr->{inputs}r", x, low_gradient)
    b_gradient = product(f"btr,bt{outputs}->r{outputs}", low, g)
    return x_gradient, None, a_gradient, b_gradient


merged_product.defvjp(_merged_forward, _merged_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(equation: str, x: jax.Array, kernel: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Compute an einsum of x and a kernel cast to x's dtype, accumulated in float32.

    The result has dtype `dtype`; float32 inputs are multiplied exactly, also on TPU and GPU. The
    same holds for the two products of the backward pass. By default, JAX would run them in float32
    after a float32 output, several times slower than in bfloat16. A kernel that is given as bits
    (`jaxalign.lm.bits`) is kept as bits for the backward pass.
    """
    precision = "highest" if x.dtype == jnp.float32 else "default"

    # Accelerators accumulate in float32 whatever they return, and a float32 result that is rounded
    # afterwards would go through memory once more, twice as wide; partial sums of a split kernel
    # would also be exchanged twice as wide. XLA on CPU is several times slower if it is not asked
    # for float32. (The choice is by back end, because `platform_dependent` made a bfloat16
    # evaluation on CPU 8 % slower.)
    result = jnp.float32 if target_platform() == "cpu" else dtype
    out = jnp.einsum(
        equation,
        x,
        from_bits(kernel).astype(x.dtype),
        precision=precision,
        preferred_element_type=result,
    )
    return rounded(out, dtype)


def _product_forward(
    equation: str, x: jax.Array, kernel: jax.Array, dtype: Any
) -> tuple[jax.Array, Any]:
    return product(equation, x, kernel, dtype), (x, kernel)


def _product_backward(
    equation: str, dtype: Any, kept: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Return the gradients of x and kernel; XLA drops that of a frozen kernel as unused."""
    # Each gradient is an einsum with the letters of the forward product exchanged.
    (x, kernel), (inputs, out) = kept, equation.split("->")
    (lhs, rhs), g = inputs.split(","), g.astype(x.dtype)
    x_gradient = product(f"{out},{rhs}->{lhs}", g, kernel, x.dtype)
    if jnp.issubdtype(kernel.dtype, jnp.integer):  # in 8 bits, or as bits: always frozen
        return x_gradient, None
    return x_gradient, product(f"{lhs},{out}->{rhs}", x, g, kernel.dtype)


product.defvjp(_product_forward, _product_backward)


class Block(nn.Module):
    """One decoder layer; for `merge` see `project`."""

    config: LlamaConfig
    merge: bool = False

    @nn.compact
    def __call__(
        self,
        x_BxTxD: jax.Array,
        rope: Rope,
        attend: Attend,
        cache: Any = None,
        keep: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValue]:
        """Return the residual stream and this layer's keys and values.

        Args:
            x_BxTxD: Residual stream, float32.
            rope: Tables of cos and sin for the positions of x.
            attend: The attention.
            cache: What `attend` is given besides queries, keys and values.
            keep: int [A], the only positions whose outputs are computed; keys and values are
                computed for all.
        """
        c, linear = self.config, functools.partial(project, merge=self.merge)
        w = _declare(self, c, block_weights(c)) | self._beside_kernels()
        # Attention: keys and values of all positions, queries of those that are kept.
        h = rounded(rms_norm(x_BxTxD, w["attention_norm"], c.rms_norm_eps), c.dtype)
        k = _heads(h, w, "k", rope, c, self.merge)
        v = rounded(linear(h, w, "v"), c.dtype)
        x, rope_q = x_BxTxD, rope
        if keep is not None:
            x, h = x[:, keep], h[:, keep]
            rope_q = tuple(jnp.take(t, keep, axis=-2) for t in rope)
            if KEPT_LANES in w:
                w |= {LANES: w[KEPT_LANES], PLACES: w[KEPT_PLACES]}
        q = _heads(h, w, "q", rope_q, c, self.merge)
        x = x + linear(attend(q, k, v, cache), w, "o")
        # Feed-forward, for the positions that are kept.
        h = rounded(rms_norm(x, w["mlp_norm"], c.rms_norm_eps), c.dtype)
        h = rounded(swiglu(linear(h, w, "gate"), linear(h, w, "up")), c.dtype)
        x = x + linear(h, w, "down")
        return x, (k, v)

    def _beside_kernels(self) -> dict[str, jax.Array]:
        """Return adapters, units and scales that the parameters hold beside declared kernels."""
        names = [f"{name}_{part}" for name in AXES for part in ("a", "b", "scale")]
        names += [LANES, PLACES, KEPT_LANES, KEPT_PLACES]
        return {n: self.get_variable("params", n) for n in names if self.has_variable("params", n)}


class Llama(nn.Module):
    """The decoder. Parameters: `{"params": tree}` with the structure of `weights.weight_tree`.

    `unroll` unrolls the layer scan: faster steps on CPU for small models, slower compilation.
    `remat` recomputes each layer in the backward pass instead of keeping its activations.
    `merge` adds adapters into frozen kernels where that is faster (see `project`).
    """

    config: LlamaConfig
    unroll: bool = False
    remat: bool = False
    merge: bool = False

    def setup(self) -> None:
        c = self.config
        for name, value in _declare(self, c, outer_weights(c)).items():
            setattr(self, f"{name}_weight", value)  # perhaps as bits: read where it is used
        # Inside a scan, XLA cannot merge the recomputation with the forward pass anyway.
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        self.layers = nn.scan(
            block,
            variable_axes={"params": 0},  # layer i reads slice i of every stacked weight
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),  # rope and attend are shared, caches stacked
            length=c.num_hidden_layers - 1,
            unroll=c.num_hidden_layers - 1 if self.unroll else 1,
        )(c, self.merge)
        self.last = block(c, self.merge)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Return the embeddings [..., D] of token ids [...], float32."""
        return from_bits(jnp.take(self.embed_weight, tokens, axis=0)).astype(jnp.float32)

    def blocks(
        self,
        x_BxTxD: jax.Array,
        rope: Rope,
        attend: Attend,
        attend_last: Attend | None = None,
        cache: tuple[Any, Any] = (None, None),
        keep: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[KeyValue, KeyValue]]:
        """Run all layers and the final norm.

        Args:
            x_BxTxD: Embeddings, float32.
            rope: Tables of cos and sin for their positions.
            attend: The attention of every layer.
            attend_last: The attention of the last layer, if it is another one.
            cache: What each layer's `attend` is given: (leaves with a leading axis of L-1, leaves
                of the last layer).
            keep: int [A], the only positions that leave the last layer.

        Returns:
            The normed stream, float32 [B, T or A, D], and keys and values of all layers, (stacked
            [L-1, B, T, K, H], last [B, T, K, H]).
        """
        x, stacked = self.layers(x_BxTxD, rope, attend, cache[0])
        x, last = self.last(x, rope, attend_last or attend, cache[1], keep)
        x = rms_norm(x, self.norm_weight, self.config.rms_norm_eps)
        return x, (stacked, last)

    def logits(self, x: jax.Array) -> jax.Array:
        """Return the float32 logits [..., V] of the normed stream [..., D]."""
        x = rounded(x, self.config.dtype)
        # A tied head is the table of embeddings, [V, D]; a head of its own is stored as [D, V].
        equation, table = ("nd,vd->nv", self.embed_weight)
        if not self.config.tie_word_embeddings:
            equation, table = "nd,dv->nv", self.head_weight
        return product(equation, x.reshape(-1, x.shape[-1]), table).reshape(*x.shape[:-1], -1)

    def head_rows(self, tokens: jax.Array) -> jax.Array:
        """Return the rows [..., D] of the output head for token ids [...]."""
        if self.config.tie_word_embeddings:
            return from_bits(jnp.take(self.embed_weight, tokens, axis=0))
        return from_bits(jnp.moveaxis(jnp.take(self.head_weight, tokens, axis=1), 0, -1))

    def __call__(
        self,
        inputs: jax.Array,
        positions_BxT: jax.Array | None = None,
        segments_BxT: jax.Array | None = None,
        at_BxA: jax.Array | None = None,
    ) -> jax.Array:
        """Run a plain causal forward.

        Args:
            inputs: Token ids int [B, T], or embeddings [B, T, D].
            positions_BxT: RoPE positions int; default: 0...T-1.
            segments_BxT: int; tokens see only their own segment, and 0 is padding; default: all 1.
            at_BxA: int, the positions whose logits are wanted; default: all.

        Returns:
            float32 logits [B, T, V], or [B, A, V] with `at_BxA`.
        """
        B, T = inputs.shape[:2]
        # Integers are token ids, anything else embeddings.
        is_tokens = jnp.issubdtype(inputs.dtype, jnp.integer)
        x = self.embed(inputs) if is_tokens else inputs.astype(jnp.float32)
        positions = jnp.arange(T)[None] if positions_BxT is None else positions_BxT
        segments = jnp.ones((B, T), jnp.int32) if segments_BxT is None else segments_BxT
        attend = jax.tree_util.Partial(masked_attention, causal_mask(segments))
        x, _ = self.blocks(x, rope_tables(self.config, positions), attend)
        if at_BxA is not None:  # before the head, which is the largest product
            x = jnp.take_along_axis(x, at_BxA[:, :, None], axis=1)
        return self.logits(x)


def _declare(module: nn.Module, c: LlamaConfig, weights: dict[str, Weight]) -> dict[str, jax.Array]:
    """Declare the table's weights as parameters of a Linen module."""
    return {name: module.param(name, w.init, c) for name, w in weights.items()}
