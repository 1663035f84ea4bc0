"""Prompts and models on which greedy replies must equal transformers' and PEFT's `generate`.

Freeze the replies for `test_generate.py` after a change of this file (needs torch and peft):

    python -m tests.support.decode_cases
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import block_weights
from tests.support.parity_cases import BASE, FIXTURES, SCALING, hf_weights, transformers_model

FROZEN = FIXTURES / "decode_replies.json"
NEW_TOKENS, STOP = 28, (7, 9)
RANK, ALPHA = 3, 5.0
UNEQUAL = (3, 20, 16, 1, 24, 9)  # padded to 16 and 24
SHORT = (3, 11, 16, 1, 14, 9)  # to 16: one program


@dataclasses.dataclass(frozen=True)
class DecodeCase:
    name: str
    config: LlamaConfig
    soft_tokens: int = 0
    lora: bool = False
    lengths: tuple[int, ...] = SHORT

    def prompts(self) -> list[list[int]]:
        random = _random(self.name)
        return [random.randint(0, self.config.vocab_size, n).tolist() for n in self.lengths]

    def soft_prompt(self) -> np.ndarray:
        """A soft prompt float32 [M, D] of the size of embeddings."""
        shape = self.soft_tokens, self.config.hidden_size
        return _random(f"{self.name} soft").uniform(-0.4, 0.4, shape).astype(np.float32)


DECODE_CASES = [
    DecodeCase("plain", BASE, lengths=UNEQUAL),
    DecodeCase("lora", BASE, lora=True),
    DecodeCase("soft", BASE.replace(rope_scaling=SCALING, tie_word_embeddings=True), soft_tokens=5),
    DecodeCase("soft_lora", BASE.replace(num_key_value_heads=1), soft_tokens=5, lora=True),
]


def lora_tensors(config: LlamaConfig) -> dict[str, np.ndarray]:
    """Return A and B of every linear layer by PEFT's names, both away from zero."""
    tensors = {}
    for layer in range(config.num_hidden_layers):
        for weight in (w for w in block_weights(config).values() if w.transposed):
            stem = f"base_model.model.model.layers.{layer}.{weight.hf_name.removesuffix('.weight')}"
            out, inputs = weight.hf_shape
            for half, shape in (("A", (RANK, inputs)), ("B", (out, RANK))):
                name = f"{stem}.lora_{half}.weight"
                tensors[name] = _random(name).uniform(-0.3, 0.3, shape).astype(np.float32)
    return tensors


def write_lora(folder: Path, config: LlamaConfig) -> None:
    """Write the folder that PEFT would write, without PEFT."""
    from safetensors.numpy import save_file

    modules = {w.hf_name.split(".")[-2] for w in block_weights(config).values() if w.transposed}
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted(modules),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(lora_tensors(config), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def peft_model(case: DecodeCase, folder: Path) -> Any:
    """Return the case's torch model; with LoRA, save its adapter to `folder` as well."""
    import torch

    model = transformers_model(case.config, hf_weights(case.config), "float32")
    if not case.lora:
        return model
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, settings).eval()
    state = {
        name.replace(".weight", ".default.weight"): torch.from_numpy(value)
        for name, value in lora_tensors(case.config).items()
    }
    left_over = model.load_state_dict(state, strict=False).unexpected_keys
    assert not left_over, left_over
    model.save_pretrained(folder)
    return model


def transformers_replies(case: DecodeCase, folder: Path) -> tuple[list[list[int]], float]:
    """Generate greedy replies with transformers, one prompt at a time.

    Returns:
        The replies without their stop token, and the smallest distance between the best and the
        second-best logit.
    """
    model, margins, replies = peft_model(case, folder), [], []
    for prompt in case.prompts():
        out = model.generate(
            **_inputs(case, model, prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(STOP),
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        reply = out.sequences[0, -len(out.logits) :].tolist()
        replies.append(reply[:-1] if reply[-1] in STOP else reply)
        best_two = [np.sort(logits[0].numpy())[-2:] for logits in out.logits]
        margins += [high - low for low, high in best_two]
    return replies, float(min(margins))


def _inputs(case: DecodeCase, model: Any, prompt: list[int]) -> dict[str, Any]:
    import torch

    ids = torch.tensor([prompt])
    if not case.soft_tokens:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    soft = torch.from_numpy(case.soft_prompt())[None]
    embedded = torch.cat([soft, model.get_input_embeddings()(ids).detach()], dim=1)
    mask = torch.ones(embedded.shape[:2], dtype=torch.long)
    return {"inputs_embeds": embedded, "attention_mask": mask}


def _random(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def main() -> None:
    replies = {}
    for case in DECODE_CASES:
        with tempfile.TemporaryDirectory() as folder:
            replies[case.name], margin = transformers_replies(case, Path(folder))
        print(f"{case.name}: lengths {[len(r) for r in replies[case.name]]}, margin {margin:.4f}")
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in replies.items()]
    FROZEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
