"""Decode with transformers' `generate`: one of the two workers of `experiments.bench.decode`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.generation.stopping_criteria import StoppingCriteria

from experiments.bench.decode.work import Case, Timed, Work
from experiments.bench.peers import serve, torch_matmul_peak


class TorchSide:
    """Methods that the parent process calls by name."""

    def prepare(self, work: Work) -> dict[str, str]:
        """Load the weights; return facts about the device."""
        import transformers

        torch.set_num_threads(work.threads)
        self._work = work
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = self._load(getattr(torch, work.llama.dtype))
        name = torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu"
        platform = "gpu" if self._device.type == "cuda" else "cpu"
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {"platform": platform, "device": name, **versions}

    def run(self, method: str, case: Case) -> Timed:
        """Answer all prompts greedily.

        Args:
            method: "transformers" computes every prompt whole; "transformers_cached" what the
                prompts have in common once, whose cache it hands to `generate`.
            case: The prompts.
        """
        tokens = case.tokens(self._work.llama.vocab_size, self._work.seed)
        ids = torch.tensor(tokens, device=self._device)
        clock = Clock()
        began = time.perf_counter()
        with torch.inference_mode():
            cache = self._prefix(ids, case) if method == "transformers_cached" else None
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=case.new_tokens,
                min_new_tokens=case.new_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[clock],
            )
        replies = out[:, case.prompt_tokens :].tolist()
        ended = time.perf_counter()
        return Timed(clock.first - began, ended - clock.first, replies)

    def _prefix(self, ids: torch.Tensor, case: Case) -> Any:
        # The last token is left to `generate`, which wants something to compute.
        length = min(case.shared_tokens, case.prompt_tokens - 1)
        cache = DynamicCache(config=self._model.config)
        self._model(ids[:1, :length], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(case.prompts)
        return cache

    def shortfalls(self, prompts: np.ndarray, replies: Sequence[Sequence[int]]) -> np.ndarray:
        """Return how far below the best logit each new token is, in float32, float [n, new]."""
        if not hasattr(self, "_exact"):
            exact = self._work.llama.dtype == "float32"
            self._exact = self._model if exact else self._load(torch.float32)
        ids = torch.tensor(np.concatenate([prompts, replies], axis=1), device=self._device)
        new = np.shape(replies)[1]
        with torch.inference_mode():
            logits = self._exact(ids[:, :-1], use_cache=False, logits_to_keep=new).logits
            taken = logits.gather(2, ids[:, -new:, None])[..., 0]
            return (logits.max(-1).values - taken).cpu().numpy()

    def peak(self) -> float:
        """Return the FLOP/s of a large matrix product."""
        return torch_matmul_peak(self._work.llama.dtype)

    def _load(self, dtype: torch.dtype) -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            self._work.folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        return model.to(self._device).eval()


class Clock(StoppingCriteria):
    """Notes the time of the first token, and stops nothing."""

    first = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Return that no sequence ends; called after every token."""
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.first = self.first or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


if __name__ == "__main__":
    serve(TorchSide(), sys.argv)
