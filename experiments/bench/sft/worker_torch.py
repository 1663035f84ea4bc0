"""Train with torch, transformers and PEFT: one of the two workers of `experiments.bench.sft`.

It does what transformers' `Trainer` does, without its bookkeeping: each batch is padded to its
longest example, labels are -100 where nothing is scored, attention is fused ("sdpa"), the optimizer
is AdamW, and gradients are clipped. A step may be cut into micro-batches, whose gradients are added
up as with `gradient_accumulation_steps`.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import peft
import torch
from transformers import LlamaForCausalLM

from experiments.bench.peers import serve, torch_matmul_peak
from experiments.bench.sft.work import CLIP, LEARNING_RATE, TokensAndPrompt, Work


class TorchSide:
    """Methods that the parent process calls by name."""

    def prepare(self, work: Work, steps: list[list[TokensAndPrompt]]) -> dict[str, float | str]:
        """Load the model; return versions and the useful share.

        Args:
            work: What to train.
            steps: The examples of each step, in jaxalign's order.
        """
        torch.set_num_threads(work.threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = work.llama.dtype
        model = LlamaForCausalLM.from_pretrained(
            work.model, dtype=getattr(torch, self._dtype), attn_implementation="sdpa"
        )
        model = peft.PeftModel.from_pretrained(model, work.adapter, is_trainable=True)
        self._model = model.to(self._device).train()
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._start = [p.detach().clone() for p in self._trained]
        self._steps, self._micro_batch = steps, work.micro_batch
        return {"torch": torch.__version__, "peft": peft.__version__, "useful": self._useful()}

    def first_step(self) -> dict[str, float]:
        """Return loss and gradient norm of the first step, under the initial adapter.

        It also warms up.
        """
        self._restart()
        loss = self._gradient(0)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, CLIP)
        self._model.zero_grad()
        return {"loss": loss, "gradient_norm": float(norm)}

    def run(self) -> dict[str, float]:
        """Train all steps once; return seconds and processor seconds, padding included."""
        self._restart()
        optimizer = torch.optim.AdamW(self._trained, lr=LEARNING_RATE, weight_decay=0.0)
        began, busy = time.perf_counter(), time.process_time()
        for step in range(len(self._steps)):
            self._gradient(step)
            torch.nn.utils.clip_grad_norm_(self._trained, CLIP)
            optimizer.step()
            optimizer.zero_grad()
        float(self._trained[0].detach().sum())  # waits for the device
        return {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - busy,
        }

    def peak(self) -> float:
        """Return the FLOP/s of a large matrix product."""
        return torch_matmul_peak(self._dtype)

    def _restart(self) -> None:
        """Set the adapter back to its initial weights."""
        with torch.no_grad():
            for p, start in zip(self._trained, self._start, strict=True):
                p.copy_(start)

    def _gradient(self, step: int) -> float:
        """Add up the gradient of a step's micro-batches; return its mean loss."""
        batches = self._batches(step)
        answers = [int((batch["labels"] >= 0).sum()) for batch in batches]
        total = 0.0
        for batch, count in zip(batches, answers, strict=True):
            # The model's loss is a mean over answer tokens: weigh it by their number.
            loss = self._model(**batch).loss * (count / sum(answers))
            loss.backward()
            total += float(loss.detach())
        return total

    def _batches(self, step: int) -> list[dict[str, torch.Tensor]]:
        """Return the padded micro-batches of a step."""
        examples, size = self._steps[step], self._micro_batch
        return [self._padded(examples[n : n + size]) for n in range(0, len(examples), size)]

    def _padded(self, examples: list[TokensAndPrompt]) -> dict[str, torch.Tensor]:
        """Return examples padded to the longest of them."""
        size, width = len(examples), max(len(tokens) for tokens, _ in examples)
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
        masks = [b["attention_mask"] for n in range(len(self._steps)) for b in self._batches(n)]
        return float(sum(m.sum() for m in masks) / sum(m.numel() for m in masks))


if __name__ == "__main__":
    serve(TorchSide(), sys.argv)
