"""Ask a model many questions after many lead-ins, by sampling replies.

Replies are drawn at a temperature; the first integer of a reply is the answer, or the letter that
it names where letters are shown, and several replies are averaged. CultureSPA (Xu et al. 2025) uses
temperature 0.6, top-p 0.9 and three replies.
`jaxalign.answering.batch` computes the options' probabilities instead.

All replies go through one queue (`jaxalign.lm.generate.stream`): those to one conversation follow
each other, so it is computed once, and so is a lead-in that many conversations begin with. With a
`folder`, every answer is kept there as soon as it is known, in a file that is named after
everything the answers depend on, and a job that was killed continues where it stopped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxalign.answering.blocks import Conversations
from jaxalign.answering.partial import digest, open_partial
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.generate import stream
from jaxalign.lm.model import LM
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.surveys.presentations import Shown, present
from jaxalign.surveys.shown_replies import read_shown
from jaxalign.surveys.survey import Item

# Takes (name, prompt, id) of each reply, their number, and the largest number of tokens of a
# prompt; yields (name, tokens) as replies are finished. Equal ids stand for equal random keys.
Sampler = Callable[
    [Iterable[tuple[Hashable, Sequence[int], int]], int, int],
    Iterator[tuple[Hashable, Sequence[int]]],
]


def answer_sampled(
    sample: Sampler,
    tokenizer: Tokenizer,
    conversations: Conversations,
    items: Sequence[Item | Shown],
    *,
    asked_N: np.ndarray | None = None,
    runs: int = 3,
    key: str = "",
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
) -> np.ndarray:
    """Return which option each of several sampled replies names, int8 [conversations, runs].

    Args:
        sample: Writes the replies, such as `model_sampler`.
        tokenizer: Turns replies into text.
        conversations: What is asked.
        items: The questions, or questions as they are shown.
        asked_N: Which of them conversation n asks; default: all of them in this order, again and
            again.
        runs: Replies per conversation.
        key: Text that stands for whatever else the answers depend on: weights, sampling, seed.
        folder: Directory that keeps the answers; None keeps none.
        on_progress: Called with the number of replies.

    Returns:
        Positions of options, counted from 0 in the item's own order, or why a reply names none;
        see `jaxalign.surveys.replies.read_option`.

    Raises:
        UserError: If `runs` is below 1, or a file in `folder` cannot be continued.
    """
    if runs < 1:
        raise UserError(f"runs={runs}: ask at least once")
    name = digest("sampled", key, runs, conversations)
    replies = len(conversations) * runs
    out = open_partial(folder, f"sampled-{name}", replies, 1, np.int8)
    missing = np.flatnonzero(out.missing)  # run by run of each conversation
    done = replies - len(missing)
    on_progress(Progress("reply", done, replies, "replies"))
    if len(missing) == 0:
        return out.values.reshape(-1, runs)

    def requests() -> Iterator[tuple[tuple[int, int], np.ndarray, int]]:
        for row in missing.tolist():
            n, run = divmod(row, runs)
            prompt = conversations.tokens(n)
            yield (n, run), prompt, _sample_id(prompt, run)

    # Of all conversations, not of the missing ones: a job that continues needs the same programs.
    longest = max(
        len(conversations.lead_ins[p]) + len(conversations.questions[q])
        for p, q in conversations.pairs
    )
    for (n, run), reply in sample(requests(), len(missing), longest):
        text = tokenizer.decode(list(reply))
        asked = items[n % len(items) if asked_N is None else asked_N[n]]
        out.put([n * runs + run], read_shown(text, present(asked)))
        done += 1
        on_progress(Progress("reply", done, replies, "replies"))
    return out.values.reshape(-1, runs)


def model_sampler(
    lm: LM,
    sampling: Sampling,
    seed: int,
    batch_size: int | None,
    extra_ExD: np.ndarray | None = None,
    is_complete: Callable[[Hashable, Sequence[int]], bool] | None = None,
) -> Sampler:
    """Return what samples a model's replies for `answer_sampled`.

    Args:
        lm: The model.
        sampling: How tokens are drawn, and how many at most.
        seed: Seed of the replies.
        batch_size: Replies written at a time, at most.
        extra_ExD: Embeddings of the ids beyond the vocabulary: row i is `vocab_size + i`.
        is_complete: ((conversation, run), tokens so far) -> whether a reply needs no more tokens;
            None: each is written to its end.
    """

    def sample(
        requests: Iterable[tuple[Hashable, Sequence[int], int]], replies: int, longest: int
    ) -> Iterator[tuple[Hashable, Sequence[int]]]:
        return stream(
            lm.config,
            lm.params,
            requests,
            sampling,
            lm.tokenizer.stop_ids,
            seed,
            replies=replies,
            positions=longest + sampling.max_new_tokens,
            batch_size=batch_size,
            mesh=lm.mesh,
            extra_embeddings=extra_ExD if extra_ExD is not None and len(extra_ExD) else None,
            is_complete=is_complete,
        )

    return sample


def _sample_id(prompt: Sequence[int], run: int) -> int:
    """Return a number in [0, 2**31) that stands for a conversation's run."""
    return zlib.crc32(np.array([*prompt, run], "<i4").tobytes()) % 2**31
