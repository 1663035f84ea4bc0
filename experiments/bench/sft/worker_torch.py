"""Train with torch, transformers and PEFT: one of the two workers of `experiments.bench.sft`.

It does what transformers' `Trainer` does, without its bookkeeping: each batch is padded to its
longest example, labels are -100 where nothing is scored, attention is fused ("sdpa"), the optimizer
is AdamW, and gradients are clipped.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import peft
import torch
from transformers import LlamaForCausalLM

from experiments.bench.peers import serve
from experiments.bench.sft.work import CLIP, LEARNING_RATE, Work

_PEAK_SIZE = 2048


class TorchSide:
    """Methods that the parent process calls by name."""

    def prepare(self, work: Work) -> dict[str, float | str]:
        """Load the model and train all steps once; return versions and the useful share."""
        torch.set_num_threads(work.threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = getattr(torch, work.llama.dtype)
        model = LlamaForCausalLM.from_pretrained(
            work.model, dtype=self._dtype, attn_implementation="sdpa"
        )
        model = peft.PeftModel.from_pretrained(model, work.adapter, is_trainable=True)
        self._model = model.to(self._device).train()
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._trained]
        self._work = work
        self.run()
        return {"torch": torch.__version__, "peft": peft.__version__, "useful": self._useful()}

    def loss(self) -> float:
        """Return the mean loss over all answer tokens under the initial adapter."""
        self._restart()
        total = count = 0.0
        with torch.no_grad():
            for step in range(self._work.steps):
                batch = self._batch(step)
                # The model's loss is a mean over answer tokens: weigh it by their number.
                answers = int((batch["labels"] >= 0).sum())
                total += float(self._model(**batch).loss) * answers
                count += answers
        return total / count

    def run(self) -> float:
        """Train all steps once; return the seconds, padding included."""
        self._restart()
        optimizer = torch.optim.AdamW(self._trained, lr=LEARNING_RATE, weight_decay=0.0)
        began = time.perf_counter()
        for step in range(self._work.steps):
            self._model(**self._batch(step)).loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained, CLIP)
            optimizer.step()
            optimizer.zero_grad()
        float(self._trained[0].detach().sum())  # waits for the device
        return time.perf_counter() - began

    def peak(self) -> float:
        """Return the FLOP/s of a large matrix product, the best within about a second."""
        # The best of many products within a second is the least disturbed one.
        a, b = torch.randn(2, _PEAK_SIZE, _PEAK_SIZE, dtype=self._dtype, device=self._device)
        best, until = float("inf"), time.perf_counter() + 1
        while best == float("inf") or time.perf_counter() < until:
            began = time.perf_counter()
            float((a @ b)[0, 0])
            best = min(best, time.perf_counter() - began)
        return 2 * _PEAK_SIZE**3 / best

    def _restart(self) -> None:
        """Set the adapter back to its initial weights."""
        with torch.no_grad():
            for p, start in zip(self._trained, self._start, strict=True):
                p.copy_(start)

    def _batch(self, step: int) -> dict[str, torch.Tensor]:
        """Return the padded batch of a step."""
        size = self._work.batch
        examples = self._work.examples[step * size : (step + 1) * size]
        width = max(len(tokens) for tokens, _ in examples)
        # -100 marks positions without a loss: the prompt and the padding.
        ids, mask = np.zeros((2, size, width), np.int64)
        labels = np.full((size, width), -100)
        for row, (tokens, prompt) in enumerate(examples):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, prompt : len(tokens)] = tokens[prompt:]
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {n: torch.from_numpy(a).to(self._device) for n, a in arrays.items()}

    def _useful(self) -> float:
        """Return the share of computed tokens that are not padding."""
        masks = [self._batch(step)["attention_mask"] for step in range(self._work.steps)]
        return float(sum(m.sum() for m in masks) / sum(m.numel() for m in masks))


if __name__ == "__main__":
    serve(TorchSide(), sys.argv)
