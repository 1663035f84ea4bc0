"""A tiny model of every family, with weights from `parity_cases`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.numpy import save_file

from jaxalign.lm.config import LlamaConfig, config_to_hf
from jaxalign.lm.source import POCKET_FOLDER
from tests.support.decode_cases import DecodeCase
from tests.support.parity_cases import BASE, Case, hf_weights

# One tied head, one head wider than hidden_size / heads, and what only one of the families has.
MODELS: dict[str, LlamaConfig] = {
    "llama": BASE,
    "mistral": BASE.replace(family="mistral", sliding_window=512, num_key_value_heads=3),
    "qwen2": BASE.replace(family="qwen2", tie_word_embeddings=True, rms_norm_eps=1e-6),
    "qwen3": BASE.replace(family="qwen3", head_dim=16, rms_norm_eps=1e-6),
}


def logits_case(family: str) -> Case:
    """Return rows of unequal lengths, padded on the left, at positions far apart."""
    return Case(f"family {family}", MODELS[family], (12, 9, 3), left=True, first=100, stride=3)


def decode_case(family: str) -> DecodeCase:
    """Return prompts for greedy replies behind a soft prompt, with an adapter."""
    return DecodeCase(f"family {family}", MODELS[family], soft_tokens=5, lora=True)


def write_model(folder: Path, config: LlamaConfig) -> None:
    """Write a model's config and weights, without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    save_file(hf_weights(config), folder / "model.safetensors", metadata={"format": "pt"})


def write_speaking_model(folder: Path, family: str, weights: bool = True) -> None:
    """Write a tiny model that has the pocket model's tokenizer and chat template."""
    windows = {"sliding_window": 1024} if family == "mistral" else {}
    config = MODELS[family].replace(vocab_size=1792, max_position_embeddings=1024, **windows)
    if weights:
        write_model(folder, config)
    else:
        (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(POCKET_FOLDER / name, folder / name)
