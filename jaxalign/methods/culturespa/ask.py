"""How `experiments.culturespa` puts questions to a model: every style and country in one program.

Exact: the probability of each option. Sampled: the first integer of several replies. What is
answered is kept in OUT/answers, and a killed run goes on from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxalign.answering.batch import (
    OUT_OF_RANGE,
    UNREADABLE,
    Answered,
    answer_exact,
    answer_sampled,
    from_log_probs,
    from_runs,
)
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import encode
from jaxalign.lm.generate import generate
from jaxalign.lm.weights import Params
from jaxalign.methods.culturespa.encode_styles import asked_of, encode_styles
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.study import Study
from jaxalign.methods.culturespa.styles import Style
from jaxalign.runs import settings_of
from jaxalign.surveys.survey import Item


@dataclasses.dataclass(frozen=True)
class Replies:
    """What countries C (or the unaware model alone) answer to items Q in N runs."""

    answered: Answered
    position_NxCxQ: np.ndarray  # of the option, -1 without an answer; one run where exact

    @property
    def answers_NxCxQ(self) -> np.ndarray:
        """float32, NaN without an answer."""
        return np.where(self.position_NxCxQ < 0, np.nan, self.position_NxCxQ).astype(np.float32)

    @property
    def counts(self) -> dict[str, int]:
        """Replies, and those of them without an answer: no number, or one that no option has."""
        return {
            "replies": self.position_NxCxQ.size,
            "unreadable": int((self.position_NxCxQ == UNREADABLE).sum()),
            "out_of_range": int((self.position_NxCxQ == OUT_OF_RANGE).sum()),
        }


@dataclasses.dataclass(frozen=True)
class Asking:
    """Conversations of several styles with the items' places in them."""

    conversations: Conversations
    items: tuple[Item, ...]
    rows: tuple[tuple[Style, int], ...]  # style and number of its countries


def plan(
    study: Study, styles: Sequence[Style], countries: Sequence[str], items: Sequence[Item]
) -> Asking:
    """Every item in every style to every country; "unaware" names none and is asked once."""
    conversations = encode_styles(study.tokens, study.interviews, styles, countries, items)
    rows = tuple((style, len(asked_of(style, countries))) for style in styles)
    return Asking(conversations, tuple(items), rows)


def ask(
    config: Config,
    study: Study,
    params: Params,
    asking: Asking,
    out: Path,
    model: str,
    quiet: bool,
    seed: int,
) -> dict[Style, Replies]:
    """Replies by style, of the model `model` ("base" or an adapter's name) with these weights.
    seed: of sampled replies; exact answers do not depend on it."""
    shape = (len(asking.conversations) // len(asking.items), len(asking.items))
    key = f"{study.model_sha256} {model} {settings_of(config, fixed_only=True)}"
    folder = out / "answers"
    if config.reading == "exact":
        log_probs = answer_exact(
            study.llama, params, asking.conversations, study.mesh,
            key=key, folder=folder, block_tokens=config.block_tokens, quiet=quiet,
        )  # fmt: skip
        answered = from_log_probs(log_probs.reshape(*shape, -1))
        position_NxPxQ = answered.most_likely_CxQ[None]
    else:
        position = answer_sampled(
            _reply(config, study, params, seed), study.tokens, asking.conversations, asking.items,
            runs=config.runs, key=f"{key} seed {seed}", folder=folder, quiet=quiet,
        ).reshape(*shape, config.runs)  # fmt: skip
        answered = from_runs(position, asking.items)
        position_NxPxQ = np.moveaxis(position, -1, 0)
    found, at = {}, 0
    for style, count in asking.rows:
        part = slice(at, at + count)
        found[style] = Replies(Answered(answered.distribution_CxQxO[part]), position_NxPxQ[:, part])
        at += count
    return found


def _reply(config: Config, study: Study, params: Params, seed: int):
    def reply(prompts: list[list[int]], ids: list[int]) -> list[list[int]]:
        return generate(
            study.llama, params, prompts, config.answering, study.tokens.stop_ids,
            seed, ids, config.batch_size, mesh=study.mesh,
        )  # fmt: skip

    return reply


def part(replies: Replies, items: slice) -> Replies:
    """Of some of the items."""
    return Replies(
        Answered(replies.answered.distribution_CxQxO[:, items]),
        replies.position_NxCxQ[:, :, items],
    )


def right_answers(
    config: Config, study: Study, params: Params, out: Path, model: str
) -> np.ndarray:
    """bool, one for each of the guard's questions, put plainly: is the most likely option the right
    one?"""
    items = [item for item, _ in study.guard]
    conversations = encode(study.tokens, study.interviews.texts.prompts, [[]], items)
    log_probs = answer_exact(
        study.llama, params, conversations, study.mesh, key=f"{study.model_sha256} {model}",
        folder=out / "answers", block_tokens=config.block_tokens,
    )  # fmt: skip
    chosen_Q = from_log_probs(log_probs[None]).most_likely_CxQ[0]
    return chosen_Q == np.array([right for _, right in study.guard])
