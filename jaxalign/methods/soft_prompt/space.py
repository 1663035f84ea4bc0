"""Soft prompts: where they start, where they stand, and the space in which they are searched.

A soft prompt is M embedding vectors put before or into a conversation. Lester et al. 2021 tune them
by gradients, starting from vocabulary rows or from the words of the task. Here a black-box
optimizer moves a search vector z of Z numbers, and `decode` turns z into a prompt: in the full
space of M * D numbers, along principal directions of the embeddings, or through a fixed random
projection (Sun et al. 2022, "Black-Box Tuning": 50 tokens from 500 dimensions). Their projection is
uniform with variance 1 / (3 Z), in absolute units; BBTv2 (Sun et al. 2022b) makes it normal, scaled
by the deviation of the embeddings over sqrt(Z), as here.

Letters: M prompt token, D model, V vocabulary, E evolved member, Z search dimension.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zlib
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.conversations import Placement
from jaxalign.core.errors import UserError
from jaxalign.surveys.names import GroupName

_START, _MEMBERS = 1, 2  # what a key is used for; folded in, so that the uses are independent


@dataclasses.dataclass(frozen=True)
class SoftPromptConfig:
    """A soft prompt and its search space. Raises UserError for impossible values."""

    length: int = 16
    """Number of prompt tokens, M: embedding vectors added to every question."""
    initialisation: Literal["text", "vocabulary", "gaussian"] = "text"
    """Start of the search: text (the embeddings of the initial text), vocabulary (embeddings of
    random tokens) or gaussian (random vectors with each dimension's mean and deviation over the
    embedding table)."""
    text: str | None = None
    """Initial text; default: the persona line of the run's prompt texts. {country} becomes the
    country's name, {article_country} the name with its article and {demonym} "American" or the
    like. Its first M tokens are used, so name the country early; a shorter text is repeated until
    there are M tokens."""
    vocabulary_top: int = 5000
    """Number of token ids, from 0 on, that initialisation vocabulary draws from. BPE ids run in the
    order of merging, so low ids are common tokens (Lester 2021 drew from the 5,000 most common)."""
    placement: Placement = "front"
    """Place of the prompt: front (before everything, even the begin-of-text token, as in PEFT),
    system (right after the header of the system message) or after (at the end of the user's
    message: another method, in which the question is read without knowledge of the prompt, so that
    it is computed once for all candidates). Only front can be exported to PEFT."""
    projection: Literal["none", "random", "principal"] = "none"
    """Space that is searched: none (all M x D numbers of the prompt), random (a fixed random
    projection, as in Black-Box Tuning) or principal (each token moves along the directions in which
    the model's own embeddings differ most)."""
    projection_dims: int = 64
    """Number of dimensions of a projected space (Black-Box Tuning used 500); principal divides them
    among the M tokens."""
    projection_seed: int = 0
    """Seed of a random projection, 0 to 4294967295. The matrix is computed from it, never stored,
    and is the same for all countries."""
    spread: float = 0.5
    """Standard deviation of the initial population around the start, per coordinate, in units of
    the embedding table's root mean square: 1 moves a token as far as a typical token is long."""

    def dims(self, hidden_size: int) -> int:
        """Return Z, the dimensions of the search space for a model of this width."""
        return self.length * hidden_size if self.projection == "none" else self.projection_dims

    def __post_init__(self) -> None:
        for name in ("length", "vocabulary_top", "projection_dims"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` {getattr(self, name)} must be at least 1")
        if self.projection == "principal" and self.projection_dims % self.length:
            raise UserError(
                f"`projection_dims` {self.projection_dims} cannot be divided among the "
                f"{self.length} tokens of `length`; give a multiple of it"
            )
        if not (math.isfinite(self.spread) and self.spread > 0):
            raise UserError(f"`spread` {self.spread} must be a positive number")
        if not 0 <= self.projection_seed < 2**32:
            raise UserError(
                f"`projection_seed` {self.projection_seed} must lie between 0 and 2**32 - 1"
            )
        known = {f"{{{field.name}}}" for field in dataclasses.fields(GroupName)}
        if unknown := set(re.findall(r"\{\w*\}", self.text or "")) - known:
            raise UserError(
                f"`text`: {min(unknown)} is not filled in; {', '.join(sorted(known))} are"
            )
        if self.initialisation == "text" and self.text is not None and not self.text.strip():
            raise UserError(
                "`text` is empty; give one, or another `initialisation`: vocabulary or gaussian"
            )

    @property
    def start_is_drawn(self) -> bool:
        """Whether the start of a group's search depends on the seed."""
        return self.initialisation != "text"


def prompt_text(text: str, name: GroupName) -> str:
    """Return an initial text with the names of a group filled in.

    Raises:
        UserError: If the text wants an adjective of nationality and the group has none.
    """
    for field, value in dataclasses.asdict(name).items():
        # Only countries have a demonym, and only in English.
        if value is None and f"{{{field}}}" in text:
            raise UserError(f"`text`: {name} has no {field}; name it by {{country}}")
        text = text.replace(f"{{{field}}}", value or "")
    return text


def group_key(key: jax.Array, group: str) -> jax.Array:
    """Return a group's own key, which depends on its name but not on the run's other groups."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(group.encode())))


def initial_prompt(
    config: SoftPromptConfig, embed_VxD: jax.Array, text_ids: Sequence[int], key: jax.Array
) -> jax.Array:
    """Return the prompt that the search starts from, float32 [M, D].

    Args:
        config: `initialisation` "text" takes the embeddings of `text_ids`, cut after M or repeated
            in order until there are M (as PEFT does); "vocabulary" the rows of distinct random ids
            below `vocabulary_top` (with repeats only if M exceeds it); "gaussian" draws each
            dimension with its mean and deviation over the table.
        embed_VxD: The model's embedding table.
        text_ids: Token ids of the initial text; read for "text" only.
        key: The group's key (`group_key`); used for the other two only.

    Raises:
        UserError: for an initial text without tokens, and for ids beyond the table.
    """
    M, V = config.length, embed_VxD.shape[0]
    # The start and the population draw from different streams of the group's key.
    key = jax.random.fold_in(key, _START)
    if config.initialisation == "gaussian":
        mean_D, deviation_D = _moments(embed_VxD)
        noise_MxD = jax.random.normal(key, (M, mean_D.size), jnp.float32)
        return mean_D[None] + deviation_D[None] * noise_MxD
    if config.initialisation == "vocabulary":
        top = min(V, config.vocabulary_top)
        ids_M = jax.random.choice(key, top, (M,), replace=top < M)
    else:
        ids_M = jnp.asarray(_cut_or_repeat(text_ids, M, V))
    return jnp.take(embed_VxD, ids_M, axis=0).astype(jnp.float32)


def _cut_or_repeat(text_ids: Sequence[int], length: int, vocabulary: int) -> np.ndarray:
    """Return `length` ids, int32: the first ones of the text, repeated if there are fewer."""
    ids = np.asarray(text_ids, np.int64).reshape(-1)
    if not ids.size:
        raise UserError("the initial text has no tokens; give another `text` or `initialisation`")
    if ids.min() < 0 or ids.max() >= vocabulary:
        worst = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(
            f"the initial text has token id {worst}, but the embedding table has {vocabulary} "
            "rows: the tokenizer belongs to another model"
        )
    return np.resize(ids, length).astype(np.int32)  # np.resize repeats from the beginning


@jax.jit
def _moments(embed_VxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and standard deviation of each dimension over the table, float32 [D] each."""
    table = embed_VxD.astype(jnp.float32)
    return jnp.mean(table, axis=0), jnp.std(table, axis=0)


@jax.jit
def _rms(embed_VxD: jax.Array) -> jax.Array:
    """Return the root mean square of the table, float32 [].

    Averaged row by row, because one float32 sum over the whole table would lose bits.
    """
    return jnp.sqrt(jnp.mean(jnp.mean(jnp.square(embed_VxD.astype(jnp.float32)), axis=1)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Space:
    """A search space around a start: prompt = start + scale * displacement(z).

    The displacement is z itself as [M, D] (full space), or the sum over Z of z * matrix. Either way
    a z of unit variance displaces each coordinate by `scale` (root mean square). The space is a
    pytree of arrays: pass it to a jitted function as an argument, not in a closure, or its matrix
    becomes a constant of the program. `start` may have leading axes (entries), which z then has
    too.
    """

    start: jax.Array  # float32 [..., M, D]
    scale: jax.Array  # float32 [], embedding units
    matrix: jax.Array | None  # float32 [Z, M, D], its rows' squares sum to 1; None: the full space

    @property
    def dims(self) -> int:
        """Z, the length of a search vector."""
        if self.matrix is not None:
            return self.matrix.shape[0]
        return math.prod(self.start.shape[-2:])

    def at_entry(self, entry: int | jax.Array) -> Space:
        """Return the space around the start of one entry, or of several by an array of indices."""
        return dataclasses.replace(self, start=self.start[entry])


def make_space(config: SoftPromptConfig, start_MxD: jax.Array, embed_VxD: jax.Array) -> Space:
    """Build the space around a start, in the subspace that the config names.

    Args:
        config: The projection, its dimensions and the spread.
        start_MxD: The start, [..., M, D].
        embed_VxD: The model's embedding table.

    Returns:
        The space; a projection's matrix takes 4 * Z * M * D bytes.

    Raises:
        UserError: if the projection has no fewer dimensions than the prompt has numbers.
    """
    M, D = start_MxD.shape[-2:]
    Z, matrix = config.projection_dims, None
    if config.projection != "none" and Z >= M * D:
        raise UserError(
            f"`projection_dims` {Z} is not below the prompt's {M} x {D} = {M * D} numbers; "
            "choose fewer, or `projection` none to search them all"
        )
    if config.projection == "random":
        matrix = _projection(np.uint32(config.projection_seed), Z, M, D)
    elif config.projection == "principal":
        matrix = _principal(embed_VxD, Z, M)
    scale = config.spread * _rms(embed_VxD)
    return Space(start_MxD.astype(jnp.float32), scale, matrix)


def _principal(embed_VxD: jax.Array, Z: int, M: int) -> jax.Array:
    """Return the matrix of principal directions, float32 [Z, M, D].

    Token m moves along the k = Z / M principal directions of the table. Each direction is scaled by
    the table's deviation along it, and all together so that a z of unit variance displaces a
    coordinate by 1 (root mean square). Along a random direction of the embedding space hardly any
    two tokens differ, and the model has little use for it.
    """
    D, k = embed_VxD.shape[1], Z // M
    # Eigenvalues come in ascending order; the last k directions vary most.
    variances_D, directions_DxD = np.linalg.eigh(np.asarray(_covariance(embed_VxD), np.float64))
    top_kxD = directions_DxD[:, ::-1].T[:k]
    largest = np.take_along_axis(top_kxD, np.abs(top_kxD).argmax(1, keepdims=True), 1)
    top_kxD *= np.sign(largest)  # an eigenvector's sign depends on the library
    # Step along each direction in proportion to how far the tokens spread along it.
    deviations_k = np.sqrt(np.maximum(variances_D[::-1][:k], 0))
    steps_kxD = deviations_k[:, None] * top_kxD
    # The squares of a direction sum to 1; sqrt(D) makes that a mean of 1 per coordinate.
    steps_kxD *= math.sqrt(D) / np.linalg.norm(deviations_k)
    # Every token has the same k directions, each as k rows of its own.
    return jnp.asarray(np.einsum("kd,mn->mknd", steps_kxD, np.eye(M)).reshape(Z, M, D), jnp.float32)


@jax.jit
def _covariance(embed_VxD: jax.Array) -> jax.Array:
    """Return the covariance of the table's rows, float32 [D, D], without a float32 copy of it."""
    second = jnp.einsum(
        "vd,ve->de",
        embed_VxD,
        embed_VxD,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    # E[x x'] - E[x] E[x]': one product over the table as it is stored.
    mean_D, _ = _moments(embed_VxD)
    return second / embed_VxD.shape[0] - mean_D[:, None] * mean_D[None]


def _projection(seed: np.uint32, Z: int, M: int, D: int) -> jax.Array:
    """Return a random projection, float32 [Z, M, D].

    The generator is named, so that a seed gives the same matrix on every machine.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.jit(_normal_rows, static_argnums=(1, 2))(key, Z, (M, D)) / math.sqrt(Z)


def _normal_rows(key: jax.Array, rows: int, shape: tuple[int, ...]) -> jax.Array:
    """Return independent normals, float32 [rows, *shape]; row i does not depend on `rows`."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32))(
        jnp.arange(rows, dtype=jnp.uint32)
    )


def decode(space: Space, z: jax.Array) -> jax.Array:
    """Turn search vectors into prompts.

    Under jit the bits do not depend on the number of members, entries or devices. Outside jit the
    last bit may differ (no fused multiply-add), so jit it wherever bits are compared.

    Args:
        space: The space around one start, or around several.
        z: Search vectors [..., Z]; the first axes are those of `space.start`.

    Returns:
        Prompts, float32 [..., M, D].

    Raises:
        UserError: for vectors of another length than the space's.
    """
    if z.shape[-1] != space.dims:
        raise UserError(
            f"z has {z.shape[-1]} numbers where the search space has {space.dims}: it belongs to "
            "another prompt length, model or projection"
        )
    M, D = space.start.shape[-2:]
    z = z.astype(jnp.float32)
    if space.matrix is None:
        displacement = z.reshape(*z.shape[:-1], M, D)
    else:
        displacement = _project(space.matrix, z)
    # Starts are broadcast over the members, whose axes follow those of the entries.
    entries = space.start.shape[:-2]
    members = (1,) * (z.ndim - 1 - len(entries))
    return space.start.reshape(*entries, *members, M, D) + space.scale * displacement


def _project(matrix_ZxMxD: jax.Array, z: jax.Array) -> jax.Array:
    """Return the sum over Z of z * matrix, [..., M, D], added up in one fixed order.

    A matrix product is four times faster on CPU, but its last bits change with the number of
    members, and a run on 8 devices must equal the run on 1. The model's forward pass dwarfs both.
    """
    batch = (1,) * (z.ndim - 1)

    def add(total: jax.Array, term: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        weight, direction_MxD = term
        direction = direction_MxD.reshape(*batch, *direction_MxD.shape)
        return total + weight[..., None, None] * direction, None

    # One direction after another, for all members at once.
    zeros = jnp.zeros((*z.shape[:-1], *matrix_ZxMxD.shape[1:]), jnp.float32)
    return jax.lax.scan(add, zeros, (jnp.moveaxis(z, -1, 0), matrix_ZxMxD))[0]


def initial_population(space: Space, key: jax.Array, population: int) -> jax.Array:
    """Draw the initial population, float32 [E, Z]: unit normal, but member 0 is the start itself.

    A member's draw depends on its index, not on E.

    Args:
        space: The search space.
        key: The group's key (`group_key`).
        population: Number of members, E.
    """
    if population < 1:
        raise UserError(f"`population` {population} must be at least 1")
    z_ExZ = _normal_rows(jax.random.fold_in(key, _MEMBERS), population, (space.dims,))
    return z_ExZ.at[0].set(0.0)
