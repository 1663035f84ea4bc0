"""Run tasks of lm-evaluation-harness on a model of ours, an adapter or a soft prompt.

    python -m jaxalign.commands.evals.lm_eval run --model jaxalign --tasks hellaswag \\
        --model_args model=path/to/Llama,adapter=adapters/CHN,prompt=prompts/CHN.safetensors

That is the harness's own command line, with one more model in it. Versions of the harness that find
models of other packages by themselves know it as `lm_eval --model jaxalign`. `--model_args` takes
`model`, `adapter`, `prompt`, `dtype`, `weights` and `max_length`; a soft prompt stands before
everything, as PEFT puts it. Prompts, windows and stop texts are those of the harness's own model
for transformers, so both give the same figures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxalign.commands.evals.subject import Subject, open_subject
from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.lm.sampling import Sampling
from jaxalign.training.likelihood import answer_likelihoods
from jaxalign.training.packing import Example

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
try:
    from lm_eval.api.model import TemplateLM
except ImportError:  # the module can be imported, and documented, without the harness
    TemplateLM = object

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, context, continuation


class JaxalignLM(TemplateLM):
    """A model of ours, as lm-evaluation-harness asks it."""

    def __init__(
        self,
        model: str | None = None,
        adapter: str | None = None,
        prompt: str | None = None,
        dtype: str = "auto",
        weights: str = "stored",
        max_length: int | None = None,
        seed: int = 0,
        batch_size: object = None,
        max_batch_size: object = None,
        device: object = None,
    ) -> None:
        """Load what is evaluated (`open_subject`).

        Args:
            model: Folder, GGUF file, hub id or name; default: the pocket model.
            adapter: Folder of a low-rank adapter.
            prompt: A soft prompt.
            dtype: Dtype of weights and activations, or "auto".
            weights: "stored" or "int8".
            max_length: Most tokens of a text and its continuation; default: those of the model.
            seed: Decides what is drawn, where a task draws.
            batch_size: Not used: as much as suits the device is computed at a time.
            max_batch_size: Not used.
            device: Not used: JAX's devices are.
        """
        super().__init__()
        subject = open_subject(model, adapter, prompt, dtype, weights, only_front=True)
        self._open(subject, max_length, seed)

    @classmethod
    def of(cls, subject: Subject, max_length: int | None = None, seed: int = 0) -> JaxalignLM:
        """Return what is loaded already as the harness asks it; arguments as above."""
        model = cls.__new__(cls)
        super().__init__(model)
        model._open(subject, max_length, seed)
        return model

    def _open(self, subject: Subject, max_length: int | None, seed: int) -> None:
        self.subject, self._tokens = subject, subject.lm.tokenizer
        most, self._seed = self.subject.most_tokens, int(seed)
        self.max_length = min(most, int(max_length or most))
        # What the tokenizer writes before a text of its own accord.
        whole, bare = self._tokens.tokenizer("x")["input_ids"], self._tokens.encode("x")
        self._begin = whole[: max(0, len(whole) - len(bare))] if whole[-1] == bare[-1] else []

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._tokens.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        begin = self._tokens.bos_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """What caches of the harness tell tokenizers apart by."""
        return f"jaxalign__{self._tokens.sha256}"

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness records of the model."""
        return dict(self.subject.facts)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the chat template, or None if none is to be used."""
        return self._tokens.template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as text, up to where the assistant goes on."""
        text = self._tokens.render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        # The assistant goes on with its last message.
        before, found, _ = text.rpartition(said := chat_history[-1]["content"].strip())
        if not found:
            raise UserError(f"the chat template writes {said!r} differently; ask without it")
        return before + said

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Return the ids of a text, after what the tokenizer writes before one."""
        ids = self._tokens.encode(string)
        if add_special_tokens is False or ids[: len(self._begin)] == self._begin:
            return ids
        return self._begin + ids

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation, and whether it is the likeliest."""
        from tqdm import tqdm

        subject, soft, examples = self.subject, self.subject.soft_ids, []
        for _texts, context, continuation in requests:
            # The last token is predicted, not read.
            tokens = (context + continuation)[-(self.max_length + 1) :]
            examples.append(Example((*soft, *tokens), len(soft) + len(tokens) - len(continuation)))
        with tqdm(desc="jaxalign: rows", disable=disable_tqdm) as bar:

            def show(progress: Progress) -> None:
                bar.total = progress.total
                bar.update(progress.done - bar.n)

            found = answer_likelihoods(
                subject.lm.config,
                subject.params,
                examples,
                mesh=subject.lm.mesh,
                extra_embeddings=subject.soft_prompt_MxD,
                on_progress=show,
            )
        answers = [(float(p), bool(g)) for p, g in zip(*found, strict=True)]
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:  # windows of a long text have no entry of their own
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of whole texts, cut into windows where they are long."""
        from lm_eval import utils

        windows: list[Request] = []
        owners: list[int] = []
        for n, request in enumerate(requests):
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(utils.make_disjoint_window, cut):
                windows.append((None, context, continuation))
                owners.append(n)
        totals = [0.0] * len(requests)
        for n, (log_prob, _) in zip(
            owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True
        ):
            totals[n] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a reply to each context, up to the first of its stop texts."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
        from tqdm import tqdm

        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}  # requests that are decoded together
        for n, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(n)
        end = self._tokens.decode([self.eot_token_id])
        with tqdm(total=len(requests), desc="jaxalign: replies", disable=disable_tqdm) as bar:
            for group in groups.values():
                settings = normalize_gen_kwargs(requests[group[0]].args[1], 256)
                new = settings["max_gen_toks"]
                if (room := self.max_length - new) < 1:
                    raise UserError(
                        f"max_gen_toks {new} leaves no room for a prompt: the model has "
                        f"{self.max_length} positions"
                    )
                sampling = Sampling(
                    new,
                    settings["temperature"] if settings["do_sample"] else 0.0,
                    settings.get("top_p", 1.0),
                    settings.get("top_k", 0),
                )
                prompts = [
                    self.subject.soft_ids + self.tok_encode(requests[n].args[0])[-room:]
                    for n in group
                ]
                until = handle_stop_sequences(settings["until"], end)
                for place, text, _, _ in self.subject.replies(prompts, sampling, until, self._seed):
                    n = group[place]
                    texts[n] = text
                    self.cache_hook.add_partial("generate_until", requests[n].args, text)
                    bar.update()
        return texts


def main() -> None:
    """Run the harness's own command line, in which `--model jaxalign` is known."""
    if TemplateLM is object:
        sys.exit("error: lm-evaluation-harness is not installed: pip install 'jaxalign[eval]'")
    import lm_eval.models  # noqa: F401  registers its own models first
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    if "jaxalign" not in model_registry:
        model_registry.register("jaxalign", target="jaxalign.commands.evals.lm_eval:JaxalignLM")
    try:
        cli_evaluate()
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
