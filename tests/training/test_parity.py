"""Optimiser steps equal those of PyTorch, transformers and PEFT.

Here rows are packed; there batches are padded and split into two micro-batches. The same numbers
are kept in this file for machines without torch.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jaxalign.lm.checkpoint import load_checkpoint, save_checkpoint
from jaxalign.lm.config import config_to_hf
from jaxalign.lm.lora import LoraConfig, abstract_adapter
from jaxalign.lm.peft import save_lora
from jaxalign.runtime.sharding import make_mesh
from jaxalign.training.packing import Example
from jaxalign.training.step import learning_rate, schedule
from jaxalign.training.trainer import TrainConfig, Trainer
from tests.support.parity_cases import BASE, hf_weights

HAS_PEFT = all(importlib.util.find_spec(name) for name in ("torch", "peft"))
LORA = LoraConfig(rank=4)
TRAIN = TrainConfig(
    batch=8,
    learning_rate=1e-3,
    warm_up=0.0,
    clip=0.5,
    weight_decay=0.1,
    tokens_per_pass=64,
)
# Of all weights a few elements have gradients of the size of their own rounding error (1e-8 of a
# norm of 0.5), and Adam's first step divides a gradient by its size: at epsilon 1e-8 rounding alone
# moves such an element by more than 1e-5. The gradients themselves are compared in
# `test_gradients_are_as_exact_as_those_of_torch`.
EPSILON = {"lora": 1e-8, "full": 1e-5}
# Losses and gradient norms of the three steps with torch 2.13.0, transformers 5.23.0, PEFT 0.21.2.
FROZEN = {
    "lora": [(6.262245, 18.143829), (5.380581, 23.218719), (5.495870, 18.859110)],
    "full": [(6.063557, 24.770821), (5.841346, 16.108536), (6.214263, 15.829129)],
}


def make_examples() -> list[Example]:
    """24 examples of 5 to 30 tokens, 1 to 3 of which are the answer."""
    random = np.random.RandomState(5)
    lengths, answers = random.randint(5, 31, 24), random.randint(1, 4, 24)
    tokens = [tuple(random.randint(0, BASE.vocab_size, n).tolist()) for n in lengths]
    return [Example(t, len(t) - a) for t, a in zip(tokens, answers.tolist(), strict=True)]


def start_adapter() -> dict:
    """An adapter with both matrices away from zero."""
    leaves, tree = jax.tree.flatten(abstract_adapter(BASE, LORA))
    random = np.random.RandomState(6)
    return tree.unflatten(
        [jnp.asarray(0.2 * random.uniform(-1, 1, x.shape), jnp.float32) for x in leaves]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text(json.dumps(config_to_hf(BASE)))
    save_file(hf_weights(BASE), path / "model.safetensors", metadata={"format": "pt"})
    return path


class Ours:
    """Our three steps: the `metrics` of each, and the tensors after each by their name in Hugging
    Face or PEFT."""

    def __init__(self, method: str, folder: Path, scratch: Path):
        train = dataclasses.replace(TRAIN, method=method, epsilon=EPSILON[method])
        examples = {"joint": make_examples()}
        mesh = make_mesh(jax.devices()[:1])
        self.trainer = Trainer(BASE, train, LORA, examples, mesh)
        params = load_checkpoint(folder, BASE)
        state = self.trainer.start(params)
        if method == "lora":
            trained = jax.tree.map(lambda x: x[None], start_adapter())
            state = dataclasses.replace(state, trained=trained)
        self.metrics, self.tensors = [], []
        for step, batches, passes in self.trainer.batches(0):
            state, metrics = self.trainer.advance(state, params, batches, passes)
            self.metrics.append((float(metrics["loss"][0]), float(metrics["gradient_norm"][0])))
            (trained,) = self.trainer.trained(state).values()
            self.tensors.append(self._named(method, trained, scratch / f"{method}{step}"))
            if step == 0:  # the first moment is a tenth of the clipped gradient
                moment = jax.tree.map(lambda x: x[0] / 0.1, optax.tree.get(state.optimizer, "mu"))
                self.gradients = self._named(method, moment, scratch / f"{method}-gradients")

    def _named(self, method: str, tree: dict, out: Path) -> dict[str, np.ndarray]:
        if method == "lora":
            save_lora(out, tree, BASE, LORA, "base")
            return load_file(out / "adapter_model.safetensors")
        save_checkpoint(out, tree, BASE)
        return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def ours(folder, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("ours")
    return {method: Ours(method, folder, scratch) for method in ("lora", "full")}


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full"])
def test_losses_and_gradient_norms_are_the_frozen_ones(ours, method):
    np.testing.assert_allclose(ours[method].metrics, FROZEN[method], rtol=2e-5)


@pytest.mark.long
def test_several_passes_and_rows_were_needed(ours):
    trainer = ours["lora"].trainer
    assert trainer.steps == 3
    for _, batches, passes in trainer.batches(0):
        assert passes.sum() > 1
        assert batches[0].segments_BxT.max() > 1


if HAS_PEFT:
    import torch
    import transformers

    def their_model(method: str, folder: Path, scratch: Path, dtype=torch.float32):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        )
        if method == "full":
            return model
        import peft

        save_lora(scratch, start_adapter(), BASE, LORA, str(folder))
        return peft.PeftModel.from_pretrained(model, scratch, is_trainable=True)

    def padded(examples: list[Example]) -> dict:
        """Ids padded on the right, attention mask, and labels with -100 where nothing is scored."""
        width = max(len(e.tokens) for e in examples)
        ids, mask = np.zeros((2, len(examples), width), np.int64)
        labels = np.full((len(examples), width), -100)
        for i, e in enumerate(examples):
            ids[i, : len(e.tokens)], mask[i, : len(e.tokens)] = e.tokens, 1
            labels[i, e.prompt_length : len(e.tokens)] = e.answer
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(a) for name, a in arrays.items()}

    def their_optimizer(method: str, model, steps: int):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in named if "norm" not in n], "weight_decay": 0.1},
            {"params": [p for n, p in named if "norm" in n], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=TRAIN.learning_rate, eps=EPSILON[method])
        rate = transformers.get_cosine_schedule_with_warmup(optimizer, 0, steps)
        return optimizer, rate, [p for _, p in named]

    def their_steps(method: str, folder: Path, scratch: Path, steps: list[list[Example]]):
        """Yield (loss, gradient norm) and tensors by name after each step."""
        model = their_model(method, folder, scratch).train()
        optimizer, rate, parameters = their_optimizer(method, model, len(steps))
        for examples in steps:
            count = sum(len(e.answer) for e in examples)
            loss = 0.0
            for part in (examples[:5], examples[5:]):
                out = model(**padded(part), num_items_in_batch=count)
                out.loss.backward()
                loss += float(out.loss.detach())
            norm = torch.nn.utils.clip_grad_norm_(parameters, TRAIN.clip)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            tensors = {
                n.replace(".default", ""): p.detach().numpy().copy()
                for n, p in model.named_parameters()
            }
            yield (loss, float(norm)), tensors

    @pytest.mark.reference
    @pytest.mark.parametrize("method", ["lora", "full"])
    def test_steps_equal_those_of_torch(ours, folder, tmp_path, method):
        """Every updated tensor differs by at most 1e-5 after each step."""
        mine = ours[method]
        steps = [mine.trainer.groups[0].examples(step)[0] for step in range(3)]
        theirs = list(their_steps(method, folder, tmp_path, steps))
        np.testing.assert_allclose(mine.metrics, [m for m, _ in theirs], rtol=1e-5)
        assert all(norm > TRAIN.clip for (_, norm), _ in theirs)  # clipping took part
        moved = 0.0
        for step in range(3):
            for name, value in mine.tensors[step].items():
                np.testing.assert_allclose(
                    value, theirs[step][1][name], atol=1e-5, rtol=0, err_msg=f"{step} {name}"
                )
                moved = max(moved, np.abs(value - mine.tensors[0][name]).max())
        assert moved > 50e-5

    def their_gradients(folder: Path, dtype, examples: list[Example]) -> dict[str, np.ndarray]:
        """Return the clipped gradients of all weights."""
        model = their_model("full", folder, folder, dtype).train()
        model(**padded(examples)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.clip)
        return {n: p.grad.numpy() for n, p in model.named_parameters()}

    @pytest.mark.reference
    def test_gradients_are_as_exact_as_those_of_torch(ours, folder):
        """Both are compared with float64. Where the steps of Adam at epsilon 1e-8 would differ by
        more than 1e-5, the gradients are no larger than their rounding errors."""
        mine, (examples,) = ours["full"].gradients, ours["full"].trainer.groups[0].examples(0)
        single, exact = (
            their_gradients(folder, dtype, examples) for dtype in (torch.float32, torch.float64)
        )
        errors = {n: np.abs(mine[n] - exact[n]) for n in mine}
        theirs = max(np.abs(single[n] - exact[n]).max() for n in mine)
        assert max(e.max() for e in errors.values()) < 3 * theirs < 1e-6 * TRAIN.clip
        first_step = lambda g: TRAIN.learning_rate * g / (np.abs(g) + 1e-8)  # noqa: E731
        apart = [
            np.abs(exact[n])[np.abs(first_step(mine[n]) - first_step(single[n])) > 1e-5]
            for n in mine
        ]
        assert 0 < sum(map(len, apart)) < 20
        assert np.concatenate(apart).max() < 3 * theirs

    @pytest.mark.reference
    def test_the_schedule_is_that_of_transformers():
        for steps, warm_up in [(3, 0.0), (7, 0.1), (70, 0.1), (10, 1.0)]:
            train = dataclasses.replace(TRAIN, warm_up=warm_up, learning_rate=0.3)
            arguments = transformers.TrainingArguments("unused", warmup_steps=warm_up)
            rise = arguments.get_warmup_steps(steps) if warm_up < 1 else steps
            optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
            theirs = transformers.get_cosine_schedule_with_warmup(optimizer, rise, steps)
            for step in range(steps):
                row = jnp.asarray(schedule(train, [steps])[0])
                ours = learning_rate(jnp.int32(step), row)
                assert float(ours) == pytest.approx(theirs.get_last_lr()[0], abs=1e-7)
                optimizer.step()
                theirs.step()
