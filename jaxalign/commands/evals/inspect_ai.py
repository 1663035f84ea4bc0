"""Our models as a provider of Inspect.

    inspect eval task.py --model jaxalign/path/to/Llama -M adapter=adapters/CHN -M prompt=CHN

`jaxalign/pocket` is the pocket model. `-M` takes `adapter`, `prompt`, `dtype` and `weights`.
Requests that come while others are decoded are decoded together next.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from jaxalign.answering.conversations import split_at_soft_prompt
from jaxalign.commands.evals.subject import Subject, open_subject
from jaxalign.core.errors import UserError
from jaxalign.lm.sampling import Sampling

if TYPE_CHECKING:
    from inspect_ai.model import ChatMessage
    from inspect_ai.tool import ToolChoice, ToolInfo
try:
    from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
except ImportError:  # the module can be imported, and documented, without Inspect
    ModelAPI = object


class JaxalignAPI(ModelAPI):
    """A model of ours, as Inspect asks it."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        import anyio

        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self._subject = open_subject(None if model_name == "pocket" else model_name, **model_args)
        self._waiting: list[tuple[list[int], Any, list[ModelOutput]]] = []
        self._lock = anyio.Lock()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Return the model's reply to a conversation."""
        import anyio.to_thread

        if tools:
            raise UserError("models of jaxalign use no tools; take a task without them")
        top_p = 1.0 if config.top_p is None else config.top_p
        sampling = Sampling(
            config.max_tokens or 256, config.temperature or 0.0, top_p, config.top_k or 0
        )
        how = sampling, tuple(config.stop_seqs or ()), config.seed or 0
        prompt = _encode(self._subject, input)
        if len(prompt) + sampling.max_new_tokens > self._subject.lm.config.max_position_embeddings:
            return ModelOutput.from_content(self.model_name, "", "model_length")
        reply: list[ModelOutput] = []
        self._waiting.append((prompt, how, reply))
        async with self._lock:  # whoever comes first decodes for all that wait like it
            if not reply:
                together = [waiting for waiting in self._waiting if waiting[1] == how]
                self._waiting = [waiting for waiting in self._waiting if waiting[1] != how]
                decode = functools.partial(_decode, self._subject, together, self.model_name)
                await anyio.to_thread.run_sync(decode)
        return reply[0]

    def max_connections(self) -> int:
        """Return how many requests may wait at a time."""
        return 64


def _encode(subject: Subject, messages: list[ChatMessage]) -> list[int]:
    chat = [{"role": message.role, "content": message.text} for message in messages]
    if (soft := subject.condition.soft_prompt) is None:
        return subject.lm.tokenizer.encode_chat(chat)
    before, after = split_at_soft_prompt(subject.lm.tokenizer, chat, soft.placement)
    return [*before, *subject.soft_ids, *after]


def _decode(subject: Subject, together: list[Any], name: str) -> None:
    prompts = [waiting[0] for waiting in together]
    for n, text, new, ended in subject.replies(prompts, *together[0][1]):
        read, reason = len(prompts[n]), "stop" if ended else "max_tokens"
        output = ModelOutput.from_content(name, text, reason)
        output.usage = ModelUsage(input_tokens=read, output_tokens=new, total_tokens=read + new)
        together[n][2].append(output)


if ModelAPI is not object:  # Inspect finds it by the package's entry point
    modelapi(name="jaxalign")(lambda: JaxalignAPI)
