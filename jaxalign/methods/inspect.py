"""What a tuned soft prompt has become: its nearest vocabulary tokens, and how far it has moved.

A tuned prompt is a list of vectors that no text has. How they lie among the embeddings of the
vocabulary says whether they are still words (Lester et al. 2021, section 7; Khashabi et al. 2022
warn that the nearest words need not say what the prompt does). Two nearnesses are given, because
they disagree: by cosine, and by distance, which favours tokens with short embeddings.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.lm.model import LM, ModelFiles, load_embeddings
from jaxalign.methods.base import PlacedPrompt

_BLOCK_ROWS = 8192  # rows of the embedding table that are float32 at a time
_SAMPLED = 64  # tokens whose own nearest neighbour is looked for


@dataclasses.dataclass(frozen=True)
class NearToken:
    """A vocabulary token near a prompt's vector: its id and text, and cosine or distance."""

    id: int
    text: str
    value: float


@dataclasses.dataclass(frozen=True)
class PromptPosition:
    """One vector of a prompt.

    Attributes:
        norm: Its Euclidean norm.
        by_cosine: The tokens with the largest cosine, largest first.
        by_distance: The tokens with the smallest Euclidean distance, smallest first.
        start: The token that the search started from; None if that is not known.
        moved: Euclidean distance from that token's embedding.
    """

    norm: float
    by_cosine: tuple[NearToken, ...]
    by_distance: tuple[NearToken, ...]
    start: NearToken | None = None

    @property
    def moved(self) -> float | None:
        """Euclidean distance from the start; None if that is not known."""
        return None if self.start is None else self.start.value

    @property
    def stayed(self) -> bool:
        """Whether the token with the largest cosine is still the one of the start."""
        return self.start is not None and self.by_cosine[0].id == self.start.id


@dataclasses.dataclass(frozen=True)
class PromptInspection:
    """A prompt among the embeddings of the vocabulary.

    Attributes:
        positions: One for each of the prompt's vectors.
        norms: Norms of the vocabulary's embeddings: the 5 %, 50 % and 95 % quantiles.
        apart: Median distance from a token to the nearest other token, the scale of distances.
    """

    positions: tuple[PromptPosition, ...]
    norms: tuple[float, float, float]
    apart: float

    @property
    def stayed(self) -> int:
        """Positions whose nearest token by cosine is still the one of the start."""
        return sum(p.stayed for p in self.positions)

    @property
    def moved(self) -> float | None:
        """Mean distance of the vectors from their start; None if that is not known."""
        moved = [p.moved for p in self.positions if p.moved is not None]
        return float(np.mean(moved)) if moved else None


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The embeddings of a model's vocabulary, to compare any number of prompts with.

    Attributes:
        files: The model's files, for its tokenizer.
        embed_VxD: The embedding of every token; padding of the table is left out.
    """

    files: ModelFiles
    embed_VxD: np.ndarray = dataclasses.field(repr=False)

    @classmethod
    def of(cls, model: LM | ModelFiles) -> Vocabulary:
        """Take the embeddings of a model; of files alone, only those are read."""
        if isinstance(model, ModelFiles):
            files, embed_VxD = model, load_embeddings(model)
        else:
            files, embed_VxD = model.files, np.asarray(model.params["embed"])
        return cls(files, embed_VxD[: files.tokenizer.vocab_size])

    @functools.cached_property
    def norms_V(self) -> np.ndarray:
        """The norm of every embedding, float32 [V]."""
        return _norms(self.embed_VxD)

    @functools.cached_property
    def apart(self) -> float:
        """Median distance from a token to the nearest other one, over sampled tokens."""
        return _apart(self.embed_VxD, self.norms_V)


def inspect_prompt(
    model: LM | ModelFiles | Vocabulary, prompt: PlacedPrompt, top: int = 5
) -> PromptInspection:
    """Compare a prompt's vectors with the embeddings of the vocabulary.

    Args:
        model: The model; of files alone, only the embeddings are read. For several prompts, its
            `Vocabulary`.
        prompt: The soft prompt. One that knows the text it started from (`start`) is compared with
            that text's tokens as well, cut off or repeated as the search does.
        top: How many of the nearest tokens to name.

    Returns:
        Each vector's norm, nearest tokens and distance from its start, beside the vocabulary's own
        norms and distances.

    Raises:
        UserError: If the prompt is made for a model of another width.

    >>> import jaxalign as ja
    >>> from jaxalign.methods.soft_prompt import SoftPrompt
    >>> lm = ja.pocket_model()
    >>> ids = lm.tokenizer.encode("How happy are you?")
    >>> prompt = SoftPrompt(np.asarray(lm.params["embed"])[ids], start="How happy are you?")
    >>> found = inspect_prompt(lm, prompt, top=2)
    >>> [p.by_cosine[0].id for p in found.positions] == ids, found.moved
    (True, 0.0)
    """
    if top < 1:
        raise UserError(f"`top` {top}: must be at least 1")
    vocabulary = model if isinstance(model, Vocabulary) else Vocabulary.of(model)
    files, embed_VxD, norms_V = vocabulary.files, vocabulary.embed_VxD, vocabulary.norms_V
    prompt_MxD = np.asarray(prompt.embeddings_MxD, np.float32)
    if prompt_MxD.shape[1] != embed_VxD.shape[1]:
        raise UserError(
            f"the prompt is {prompt_MxD.shape[1]} wide, the model {embed_VxD.shape[1]}: it was "
            "made for another model"
        )

    def near(ids: np.ndarray, values: np.ndarray) -> tuple[NearToken, ...]:
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        return tuple(NearToken(i, files.tokenizer.decode([i]), value) for i, value in pairs)

    products_MxV = _products(prompt_MxD, embed_VxD)
    starts = _start_ids(files, prompt, len(prompt_MxD))
    positions = []
    for m, vector in enumerate(prompt_MxD):
        norm = float(np.linalg.norm(vector))
        cosine_V = products_MxV[m] / np.maximum(norms_V * norm, np.finfo(np.float32).tiny)
        by_cosine = _largest(cosine_V, top)
        # |p - v|^2 without |p|^2 orders the tokens; the few that are shown are computed exactly.
        near_few = _largest(2 * products_MxV[m] - norms_V**2, 4 * top)
        exact = np.linalg.norm(embed_VxD[near_few].astype(np.float32) - vector, axis=1)
        order = np.argsort(exact, kind="stable")[:top]
        start = None
        if starts is not None:
            moved = np.linalg.norm(embed_VxD[starts[m]].astype(np.float32) - vector)
            [start] = near(starts[m : m + 1], moved[None])
        positions.append(
            PromptPosition(
                norm,
                near(by_cosine, cosine_V[by_cosine]),
                near(near_few[order], exact[order]),
                start,
            )
        )
    low, middle, high = np.quantile(norms_V, (0.05, 0.5, 0.95)).tolist()
    return PromptInspection(tuple(positions), (low, middle, high), vocabulary.apart)


def _start_ids(files: ModelFiles, prompt: PlacedPrompt, length: int) -> np.ndarray | None:
    """Return the tokens that a prompt started from; None if it does not say."""
    text = getattr(prompt, "start", None)
    ids = files.tokenizer.encode(text) if text else []
    return np.resize(ids, length) if ids else None  # np.resize repeats from the beginning


def _norms(embed_VxD: np.ndarray) -> np.ndarray:
    """Return the norm of every row, float32 [V]."""
    blocks = range(0, len(embed_VxD), _BLOCK_ROWS)
    rows = (embed_VxD[i : i + _BLOCK_ROWS].astype(np.float32) for i in blocks)
    return np.concatenate([np.linalg.norm(block, axis=1) for block in rows])


def _products(vectors_MxD: np.ndarray, embed_VxD: np.ndarray) -> np.ndarray:
    """Return the products with every row of the table, float32 [M, V]."""
    blocks = range(0, len(embed_VxD), _BLOCK_ROWS)
    rows = (embed_VxD[i : i + _BLOCK_ROWS].astype(np.float32) for i in blocks)
    return np.concatenate([vectors_MxD @ block.T for block in rows], axis=1)


def _largest(values_V: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the largest values, largest first; of equal ones the first."""
    count = min(count, len(values_V))
    few = np.sort(np.argpartition(-values_V, count - 1)[:count])
    return few[np.argsort(-values_V[few], kind="stable")]


def _apart(embed_VxD: np.ndarray, norms_V: np.ndarray) -> float:
    """Return the median distance from a token to the nearest other one, over sampled tokens."""
    count = min(_SAMPLED, len(embed_VxD))
    sampled = np.random.default_rng(0).choice(len(embed_VxD), count, replace=False)
    tokens = embed_VxD[sampled].astype(np.float32)
    closeness = 2 * _products(tokens, embed_VxD) - norms_V**2
    closeness[np.arange(count), sampled] = -np.inf  # not the token itself
    nearest = embed_VxD[closeness.argmax(axis=1)].astype(np.float32)
    return float(np.median(np.linalg.norm(nearest - tokens, axis=1)))
