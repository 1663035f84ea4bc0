"""What an evaluation tool asks: a model, perhaps with an adapter, perhaps behind a soft prompt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.lm.generate import drain, open_queue
from jaxalign.lm.model import LM, load_model, open_model
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import Params
from jaxalign.methods.base import Condition
from jaxalign.methods.conditions import Plain, WithAdapter
from jaxalign.methods.tuned import load_adapters_by_name, load_prompts_by_name

_BATCH_SIZE = 64  # replies written at a time


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        lm: The model.
        condition: The adapter and the soft prompt, if there are any.
        facts: What the record of an evaluation says of all three.
    """

    lm: LM
    condition: Condition = Plain()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def params(self) -> Params:
        """The weights, with the adapter beside them."""
        adapter = self.condition.adapter
        return (self.lm if adapter is None else adapter.attach(self.lm)).params

    @property
    def soft_prompt_MxD(self) -> np.ndarray | None:
        """The embeddings of the soft prompt."""
        soft = self.condition.soft_prompt
        return None if soft is None else np.asarray(soft.embeddings_MxD, np.float32)

    @property
    def soft_ids(self) -> list[int]:
        """The ids beyond the vocabulary that stand for the soft prompt."""
        soft_MxD, first = self.soft_prompt_MxD, self.lm.config.vocab_size
        return [] if soft_MxD is None else list(range(first, first + len(soft_MxD)))

    @property
    def most_tokens(self) -> int:
        """Largest number of tokens beside the soft prompt."""
        return self.lm.config.max_position_embeddings - len(self.soft_ids)

    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_texts: Sequence[str] = (),
        seed: int = 0,
    ) -> Iterator[tuple[int, str, int, bool]]:
        """Yield replies as soon as they are finished.

        Args:
            prompts: Token ids of each prompt, soft prompt included.
            sampling: How tokens are drawn, and how many at most.
            stop_texts: Texts that end a reply and do not belong to it.
            seed: Decides what is drawn.

        Yields:
            Number of the prompt, the reply's text without special tokens, the number of its tokens,
            and whether it was ended, rather than cut off at the largest number of tokens.
        """
        if not prompts:
            return
        tokenizer, lm = self.lm.tokenizer, self.lm
        stops = [text for text in stop_texts if text]
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        if longest > lm.config.max_position_embeddings:
            raise UserError(
                f"a prompt and its reply may have {longest} tokens, more than "
                f"max_position_embeddings={lm.config.max_position_embeddings}; shorten one of them"
            )
        queue = open_queue(
            lm.config,
            self.params,
            sampling,
            tokenizer.stop_ids,
            seed,
            replies=len(prompts),
            batch_size=_BATCH_SIZE,
            positions=longest,
            mesh=lm.mesh,
            extra_ExD=self.soft_prompt_MxD,
        )

        def has_stop(name: object, tokens: Sequence[int]) -> bool:
            text = tokenizer.decode(tokens)
            return any(stop in text for stop in stops)

        requests = ((n, prompt, n) for n, prompt in enumerate(prompts))
        is_complete: Callable[..., bool] | None = has_stop if stops else None
        for n, tokens in drain(queue, requests, is_complete):
            text, whole = self.text(tokens), tokenizer.decode(tokens)
            ended = len(tokens) < sampling.max_new_tokens or any(stop in whole for stop in stops)
            for stop in stops:
                text = text.split(stop)[0]
            yield int(n), text, len(tokens), ended

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a reply, without special tokens."""
        return self.lm.tokenizer.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def open_subject(
    model: str | None = None,
    adapter: str | None = None,
    prompt: str | None = None,
    dtype: str = "auto",
    weights: str = "stored",
    only_front: bool = False,
) -> Subject:
    """Load what is evaluated.

    Args:
        model: As for `jaxalign.load_model`; default: the pocket model.
        adapter: Folder of a low-rank adapter, ours or PEFT's.
        prompt: Soft prompt: a safetensors file of this package or a folder of PEFT.
        dtype: Dtype of weights and activations, or "auto".
        weights: "stored" or "int8".
        only_front: Whether the tool writes conversations itself, so that a soft prompt can only
            stand in front of them.

    Raises:
        UserError: If something is missing, damaged or made for another model.
    """
    for name, value, known in (
        ("dtype", dtype, ("auto", "float32", "bfloat16")),
        ("weights", weights, ("stored", "int8")),
    ):
        if value not in known:
            raise UserError(f"`{name}` {value}: choose from {', '.join(known)}")
    files = open_model(None if model is None else str(model), dtype)
    condition: Condition = Plain()
    facts = {"jaxalign_model": files.name, **files.facts()}
    if prompt is not None:
        condition = load_prompts_by_name({"prompt": Path(str(prompt))}, files)["prompt"]
        facts["jaxalign_prompt"] = str(prompt)
        if only_front and condition.placement != "front":
            raise UserError(
                f"`prompt` {prompt}: its place in a conversation is {condition.placement!r}, but "
                "this tool writes conversations itself; give one that stands in front"
            )
    if adapter is not None:
        loaded = load_adapters_by_name({"adapter": Path(str(adapter))}, files)["adapter"]
        condition = WithAdapter(loaded, condition)
        facts["jaxalign_adapter"] = str(adapter)
    return Subject(load_model(files, weights=weights), condition, facts)
