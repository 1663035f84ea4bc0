"""Run the torch side of `experiments.bench.population`: three methods with Hugging Face.

All use `LlamaForCausalLM` with fused attention ("sdpa") in `torch.inference_mode`, run eagerly on
all cores or the GPU, and all avoid what a careful user would avoid: item embeddings are looked up
beforehand, the output head sees only each item's last position, and padding is at the end, where
causal attention never looks, so that no mask is needed.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM

from experiments.bench.peers import serve, torch_matmul_peak
from experiments.bench.population.work import Method, Work

_BATCHES = (1, 2, 4)  # numbers of candidates in a padded batch to try; the fastest is taken


class TorchSide:
    """Methods that the parent process calls by name."""

    def prepare(self, work: Work, prompts_PxMxD: np.ndarray) -> dict[str, str]:
        """Load the weights that the other worker wrote; return facts about the device."""
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
        """Warm up, and find the number of candidates per padded batch that is fastest."""
        if method != "hf_per_item":
            trial = self._prompts[: max(_BATCHES)]
            self._ask(method, trial[:1], 1)
            sizes = [b for b in _BATCHES if b <= len(trial)]
            # Each size is timed on the largest number of candidates that it divides.
            seconds = {b: self._timed(method, trial[: len(trial) // b * b], b)[0] for b in sizes}
            per_candidate = {b: s / (len(trial) // b * b) for b, s in seconds.items()}
            self._batch[method] = min(sizes, key=per_candidate.__getitem__)
            return {"candidates_in_a_batch": self._batch[method]}
        self._ask(method, self._prompts[:1], 1)
        return {}

    def run(self, method: Method) -> dict[str, Any]:
        """Evaluate all candidates once; return seconds and float32 [P, Q, O] log-probabilities."""
        seconds, log_probs = self._timed(method, self._prompts, self._batch.get(method, 1))
        return {"seconds": seconds, "log_probs": log_probs}

    def _timed(self, method: Method, prompts: torch.Tensor, batch: int) -> tuple[float, np.ndarray]:
        started = time.perf_counter()
        log_probs_PxQxO = self._ask(method, prompts, batch).cpu().numpy()  # waits for the device
        return time.perf_counter() - started, log_probs_PxQxO

    def _ask(self, method: Method, prompts: torch.Tensor, batch: int) -> torch.Tensor:
        ask = {"hf_per_item": per_item, "hf_padded": padded, "hf_prefix_cache": prefix_cache}
        return torch.cat([ask[method](self._survey, part) for part in prompts.split(batch)])

    def reference(self, candidates: int) -> np.ndarray:
        """Evaluate the first `candidates` candidates in float32, one item at a time."""
        exact = Survey(self._work, torch.float32, self._prompts.device)
        rows = [per_item(exact, prompt) for prompt in self._prompts[:candidates].split(1)]
        return torch.cat(rows).cpu().numpy()

    def peak(self) -> float:
        """Return the rate of the fastest matrix product that this process reaches, in FLOP/s."""
        return torch_matmul_peak(self._work.llama.dtype)

    def device_peak_bytes(self) -> int | None:
        """Return the peak device memory since the start; None if it is the process's own."""
        return torch.cuda.max_memory_allocated() if self._prompts.is_cuda else None


class Survey:
    """The model and the embedded items: everything that does not depend on the candidate."""

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
        # Keys and values of the text before the prompt, which all candidates share.
        self.cache = DynamicCache(config=self.model.config)
        if work.before:
            self.model.model(inputs_embeds=self.before[None], past_key_values=self.cache)

    def log_probs(self, logits_PxQxV: torch.Tensor) -> torch.Tensor:
        """Return option log-probabilities, float32 [P, Q, O], from logits over the vocabulary."""
        index = self.options.clamp(min=0).flatten(1).expand(len(logits_PxQxV), -1, -1)
        picked = logits_PxQxV.gather(2, index).float().unflatten(2, self.options.shape[1:])
        picked = picked.masked_fill(self.options < 0, -torch.inf)
        return picked.logsumexp(-1).log_softmax(-1)

    def last_logits(self, hidden: torch.Tensor, lengths: torch.Tensor, start: int) -> torch.Tensor:
        """Apply the output head at each item's last position only.

        Args:
            hidden: Residual stream [P x Q, start + T, D].
            lengths: Number of tokens of each item, [Q].
            start: Number of positions before the items.

        Returns:
            Logits [P, Q, V].
        """
        rows = torch.arange(len(hidden), device=hidden.device)
        last = hidden[rows, start + lengths.repeat(len(hidden) // len(lengths)) - 1]
        return self.model.lm_head(last).unflatten(0, (-1, len(lengths)))


@torch.inference_mode()
def per_item(survey: Survey, prompts_PxMxD: torch.Tensor) -> torch.Tensor:
    """Call the model once per candidate and item, from the beginning, as published code does."""
    rows = []
    for prompt in prompts_PxMxD.to(survey.before.dtype):
        for item in survey.items:
            x = torch.cat([survey.before, prompt, item])[None]
            out = survey.model(inputs_embeds=x, use_cache=False, logits_to_keep=1)
            rows.append(out.logits[0, -1])
    return survey.log_probs(torch.stack(rows).unflatten(0, (len(prompts_PxMxD), -1)))


@torch.inference_mode()
def padded(survey: Survey, prompts_PxMxD: torch.Tensor) -> torch.Tensor:
    """Evaluate all items of the given candidates as one padded batch."""
    P, (Q, T, D) = len(prompts_PxMxD), survey.padded.shape
    prompts = prompts_PxMxD.to(survey.before.dtype)
    lead = torch.cat([survey.before.expand(P, -1, -1), prompts], dim=1)  # [P, S + M, D]
    rows = torch.cat([lead[:, None].expand(-1, Q, -1, -1), survey.padded.expand(P, Q, T, D)], dim=2)
    hidden = survey.model.model(inputs_embeds=rows.flatten(0, 1), use_cache=False)[0]
    return survey.log_probs(survey.last_logits(hidden, survey.lengths, lead.shape[1]))


@torch.inference_mode()
def prefix_cache(survey: Survey, prompts_PxMxD: torch.Tensor) -> torch.Tensor:
    """Compute the text before the prompt once for all, each prompt once, then padded items."""
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


if __name__ == "__main__":
    serve(TorchSide(), sys.argv)
