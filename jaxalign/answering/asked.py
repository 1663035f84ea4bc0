"""What is asked about items, and how its answers are read: in which presentations, by which mark.

An answer is read in one of four ways, from one set of numbers: the log-probabilities of the tokens
that a reply may begin with.

    number               the number (or letter) before the option
    label                the option's text, as the reply to a question that does not list the
                         options: the sum of its tokens' log-probabilities
    label-per-token      their mean, so that longer texts are not less likely for their length
    label-against-prior  their sum, less that of the same text after a neutral question under the
                         same conditions, so that common texts are not more likely in themselves

All four are normalised over an item's options, which stand in published order however they are
shown. Letters: F presentation, S shown item, R row that is asked (shown items, then neutral
questions), Q item, O option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.prompts import Prompts
from jaxalign.stats.presentation_mean import mean_log_probs
from jaxalign.surveys.presentations import PUBLISHED, Shown, show
from jaxalign.surveys.survey import Item

AnswerForm = Literal["number", "label", "label-per-token", "label-against-prior"]


@dataclasses.dataclass(frozen=True)
class AskedItems:
    """Items as they are asked.

    Attributes:
        rows: R shown items to encode: S items, then the neutral questions, if there are any.
        index_FxQ: int32, which row is item q under presentation f.
        presentations: F names.
        answer: How answers are read.
        neutral_S: int32, the row of each shown item's neutral question; None where none is asked.
    """

    rows: tuple[Shown, ...]
    index_FxQ: np.ndarray
    presentations: tuple[str, ...]
    answer: AnswerForm = "number"
    neutral_S: np.ndarray | None = None

    @property
    def per_token(self) -> bool:
        """Whether an option counts by the mean of its tokens; for layouts and programs."""
        return self.answer == "label-per-token"

    def shown_log_probs(self, log_probs_xRxO: Any) -> Any:
        """Return log-probabilities [..., S, O] of shown items from those of all rows [..., R, O].

        Differentiable; numpy for numpy and jax for jax.
        """
        if self.neutral_S is None:
            return log_probs_xRxO
        shown, neutral = np.arange(len(self.neutral_S)), self.neutral_S
        return against_prior(log_probs_xRxO[..., shown, :], log_probs_xRxO[..., neutral, :])

    def presentation_log_probs(self, log_probs_xRxO: Any) -> Any:
        """Return log-probabilities [..., F, Q, O] of each presentation from those of all rows."""
        return self.shown_log_probs(log_probs_xRxO)[..., self.index_FxQ, :]

    def mean_log_probs(
        self, log_probs_xRxO: Any, presentations: Sequence[int] | slice = slice(None)
    ) -> Any:
        """Return log-probabilities [..., Q, O], averaged over presentations as probabilities.

        Args:
            log_probs_xRxO: of all rows.
            presentations: which of the F presentations to average; default: all.
        """
        return mean_log_probs(self.shown_log_probs(log_probs_xRxO), self.index_FxQ[presentations])


def asked_items(
    prompts: Prompts,
    items: Sequence[Item],
    presentations: Sequence[str] = (PUBLISHED,),
    answer: AnswerForm = "number",
) -> AskedItems:
    """Return items as they are asked, in one or several presentations.

    Args:
        prompts: The texts that word a question.
        items: Q items.
        presentations: Names of presentations, each once; see `jaxalign.surveys.presentations`.
        answer: How answers are read. A text that does not list the options, like the package's for
            reading by label, asks the same in all presentations: once.

    Raises:
        UserError: If an item cannot be shown in a presentation, or a text is missing.
    """
    found = show(items, presentations, "mark" if answer == "number" else "label")
    rows, index_FxQ = found.shown, found.index_FxQ
    if answer == "number":
        return AskedItems(rows, index_FxQ, found.names)
    # Shown items that read alike to the model are asked once.
    item_S = np.empty(len(rows), int)
    item_S[index_FxQ] = np.arange(len(items))
    number: dict[tuple, int] = {}
    kept: list[Shown] = []
    number_S = np.empty(len(rows), np.int32)
    for s, shown in enumerate(rows):
        text = int(item_S[s]), prompts.user(shown)["content"]
        if text not in number:
            number[text] = len(kept)
            kept.append(shown)
        number_S[s] = number[text]
    rows, index_FxQ = tuple(kept), number_S[index_FxQ]
    if answer != "label-against-prior":
        return AskedItems(rows, index_FxQ, found.names, answer)
    neutral: dict[tuple, int] = {}
    questions: list[Shown] = []
    neutral_S = np.empty(len(rows), np.int32)
    for s, shown in enumerate(rows):
        question = prompts.neutral_question(shown)
        key = question.item.options, prompts.user(question)["content"]
        if key not in neutral:
            neutral[key] = len(rows) + len(questions)
            questions.append(question)
        neutral_S[s] = neutral[key]
    return AskedItems((*rows, *questions), index_FxQ, found.names, answer, neutral_S)


def against_prior(log_probs_xO: Any, prior_xO: Any) -> Any:
    """Return log-probabilities less those of the same options after a neutral question.

    Both are normalised over the options, and so is the result; what they were normalised by is the
    same for all options and cancels. Differentiable; numpy for numpy and jax for jax.

    >>> against_prior(np.log([0.5, 0.5]), np.log([0.8, 0.2])).round(3).tolist()
    [-1.609, -0.223]
    """
    if isinstance(log_probs_xO, np.ndarray):
        # Options that an item does not have are -inf in both.
        exists = np.isfinite(prior_xO)
        difference = np.where(exists, log_probs_xO, 0) - np.where(exists, prior_xO, 0)
        difference = np.where(exists, difference, -np.inf).astype(log_probs_xO.dtype)
        return difference - np.logaddexp.reduce(difference, axis=-1, keepdims=True)
    exists = jnp.isfinite(prior_xO)
    difference = jnp.where(exists, log_probs_xO, 0.0) - jnp.where(exists, prior_xO, 0.0)
    return jax.nn.log_softmax(jnp.where(exists, difference, -jnp.inf), axis=-1)
