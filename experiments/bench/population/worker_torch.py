"""The torch worker of `experiments.bench.population`: three ways to do it with Hugging Face.

All are `LlamaForCausalLM` with fused attention ("sdpa") in `torch.inference_mode`, run eagerly on
all cores or the GPU, and all are spared what a careful user would spare them: item embeddings are
looked up beforehand; the output head sees each item's last position alone; padding is at the end,
where causal attention never looks at it, so that no mask is needed.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM

from experiments.bench.population.worker import Method, Work, serve

_BATCHES = (1, 2, 4)  # candidates in a padded batch: the fastest is taken


class TorchSide:
    """What the parent calls, by name."""

    def prepare(self, work: Work, prompts_PxMxD: np.ndarray) -> dict[str, str]:
        """Load the weights that the other worker wrote. Returns what the worker runs on."""
        torch.set_num_threads(work.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = getattr(torch, work.llama.dtype)
        self._work, self._batch = work, dict[str, int]()
        self._prompts = torch.tensor(prompts_PxMxD, device=device)
        self._survey = Survey(work, dtype, device)
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        platform = "gpu" if device.type == "cuda" else "cpu"
        return {"platform": platform, "device": name, "torch": torch.__version__}

    def compile(self, method: Method) -> dict[str, int]:
        """Warm up, and find out how many candidates a padded batch should hold."""
        if method != "hf_per_item":
            some = self._prompts[: max(_BATCHES)]
            self._ask(method, some[:1], 1)
            fits = [b for b in _BATCHES if b <= len(some)]
            seconds = {b: self._timed(method, some[: len(some) // b * b], b)[0] for b in fits}
            per_candidate = {b: s / (len(some) // b * b) for b, s in seconds.items()}
            self._batch[method] = min(fits, key=per_candidate.__getitem__)
            return {"candidates_in_a_batch": self._batch[method]}
        self._ask(method, self._prompts[:1], 1)
        return {}

    def run(self, method: Method) -> dict[str, Any]:
        """All candidates once. Seconds, and float32 [P, Q, O] log-probabilities."""
        seconds, log_probs = self._timed(method, self._prompts, self._batch.get(method, 1))
        return {"seconds": seconds, "log_probs": log_probs}

    def _timed(self, method: Method, prompts: torch.Tensor, batch: int) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        log_probs_PxQxO = self._ask(method, prompts, batch).cpu().numpy()  # waits for the device
        return time.perf_counter() - started, log_probs_PxQxO

    def _ask(self, method: Method, prompts: torch.Tensor, batch: int) -> torch.Tensor:
        ask = {"hf_per_item": per_item, "hf_padded": padded, "hf_prefix_cache": prefix_cache}
        return torch.cat([ask[method](self._survey, some) for some in prompts.split(batch)])

    def reference(self, candidates: int) -> np.ndarray:
        """One item at a time in float32 on the same weights, for the first so many candidates."""
        exact = Survey(self._work, torch.float32, self._prompts.device)
        rows = [per_item(exact, prompt) for prompt in self._prompts[:candidates].split(1)]
        return torch.cat(rows).cpu().numpy()

    def peak(self) -> float:
        """Fastest matrix product of this process now, in FLOP/s."""
        return matmul_peak(self._survey.before.dtype, self._prompts.device)

    def device_peak_bytes(self) -> int | None:
        """Device memory at its highest since the start; None where it is the process's own."""
        return torch.cuda.max_memory_allocated() if self._prompts.is_cuda else None


class Survey:
    """The model and the embedded items; what does not depend on the candidate."""

    @torch.inference_mode()
    def __init__(self, work: Work, dtype: torch.dtype, device: torch.device) -> None:
        self.model = LlamaForCausalLM.from_pretrained(
            work.folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
        self.model = self.model.to(device).eval()
        embed = self.model.get_input_embeddings()
        tokens_QxT, lengths_Q = work.padded_items()
        self.before = embed(torch.tensor(work.before, dtype=torch.long, device=device))  # [S, D]
        self.padded = embed(torch.from_numpy(tokens_QxT).long().to(device))  # [Q, T, D]
        self.lengths = torch.from_numpy(lengths_Q).long().to(device)  # [Q]
        self.items = [x[:n] for x, n in zip(self.padded, lengths_Q.tolist(), strict=True)]
        self.options = torch.from_numpy(work.options_QxOxS).long().to(device)  # [Q, O, spellings]
        self.cache = DynamicCache(config=self.model.config)  # of the text before the prompt
        if work.before:
            self.model.model(inputs_embeds=self.before[None], past_key_values=self.cache)

    def log_probs(self, logits_PxQxV: torch.Tensor) -> torch.Tensor:
        """Option log-probabilities, float32 [P, Q, O]."""
        index = self.options.clamp(min=0).flatten(1).expand(len(logits_PxQxV), -1, -1)
        picked = logits_PxQxV.gather(2, index).float().unflatten(2, self.options.shape[1:])
        picked = picked.masked_fill(self.options < 0, -torch.inf)
        return picked.logsumexp(-1).log_softmax(-1)

    def last_logits(self, hidden: torch.Tensor, lengths: torch.Tensor, start: int) -> torch.Tensor:
        """[P, Q, V] from the stream [P x Q, start + T, D]: the head at each last position alone."""
        rows = torch.arange(len(hidden), device=hidden.device)
        last = hidden[rows, start + lengths.repeat(len(hidden) // len(lengths)) - 1]
        return self.model.lm_head(last).unflatten(0, (-1, len(lengths)))


@torch.inference_mode()
def per_item(survey: Survey, prompts_PxMxD: torch.Tensor) -> torch.Tensor:
    """As published code does it: one call a candidate and item, everything from the beginning."""
    rows = []
    for prompt in prompts_PxMxD.to(survey.before.dtype):
        for item in survey.items:
            x = torch.cat([survey.before, prompt, item])[None]
            out = survey.model(inputs_embeds=x, use_cache=False, logits_to_keep=1)
            rows.append(out.logits[0, -1])
    return survey.log_probs(torch.stack(rows).unflatten(0, (len(prompts_PxMxD), -1)))


@torch.inference_mode()
def padded(survey: Survey, prompts_PxMxD: torch.Tensor) -> torch.Tensor:
    """All items of some candidates as one padded batch."""
    P, (Q, T, D) = len(prompts_PxMxD), survey.padded.shape
    prompts = prompts_PxMxD.to(survey.before.dtype)
    lead = torch.cat([survey.before.expand(P, -1, -1), prompts], dim=1)  # [P, S + M, D]
    rows = torch.cat([lead[:, None].expand(-1, Q, -1, -1), survey.padded.expand(P, Q, T, D)], dim=2)
    hidden = survey.model.model(inputs_embeds=rows.flatten(0, 1), use_cache=False)[0]
    return survey.log_probs(survey.last_logits(hidden, survey.lengths, lead.shape[1]))


@torch.inference_mode()
def prefix_cache(survey: Survey, prompts_PxMxD: torch.Tensor) -> torch.Tensor:
    """The text before the prompt once for all, a prompt once, then its items as a padded batch."""
    P, Q = len(prompts_PxMxD), len(survey.padded)
    cache = copy.deepcopy(survey.cache)
    if cache.get_seq_length():
        cache.batch_repeat_interleave(P)
    prompts = prompts_PxMxD.to(survey.before.dtype)
    survey.model.model(inputs_embeds=prompts, past_key_values=cache)
    cache.batch_repeat_interleave(Q)
    items = survey.padded.repeat(P, 1, 1)
    hidden = survey.model.model(inputs_embeds=items, past_key_values=cache)[0]
    return survey.log_probs(survey.last_logits(hidden, survey.lengths, 0))


@torch.inference_mode()
def matmul_peak(dtype: torch.dtype, device: torch.device, seconds: float = 1.0) -> float:
    """FLOP/s of a large square product, as `jaxalign.answering.cost.matmul_peak` measures XLA's."""
    n = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    torch.matmul(a, b)
    while best == float("inf") or time.perf_counter() < until:
        _wait(device)
        began = time.perf_counter()
        torch.matmul(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    serve(TorchSide(), sys.argv)
