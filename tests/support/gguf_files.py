"""Tiny GGUF files of a Llama, written with the `gguf` package as llama.cpp's converter does.

The permutation of q and k is written here on its own, so that reading is checked against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize

from jaxalign.lm.config import LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=272,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rope_theta=100_000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    max_position_embeddings=512,
    dtype="float32",
    param_dtype="float32",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    "h e",
    "l l",
    "he ll",
    "hell o",
    "Ġ w",
    "o r",
    "Ġw or",
    "Ġwor l",
    "Ġworl d",
    "1 2",
)
TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Pieces of a small SentencePiece model, best first, as its BPE trainer made them of a few lines of
# text; the runs of spaces were added.
_PIECES_TEXT = """
he ▁t ▁the ▁a ▁o re ▁h ▁w ap le ou py se ▁i ▁an appy ▁happy en eo ld ne or ▁T ▁f ▁p ▁s eop her ▁ot
orld ▁The ▁and eople ▁other ▁there ▁world ▁people Di Gr Ho as ay ei gh it iv ix ni wo ße ▁y Die Grü
How ght hre ith ive lle our ▁▁ ▁▁▁▁ ▁ e h t o a r n p i s l w y . d f u , 1 T v 0 2 : ? D G H g m x
ß ü
"""
PIECES = _PIECES_TEXT.split()
SENTENCEPIECE_CONFIG = CONFIG.replace(vocab_size=3 + 256 + len(PIECES) + 2)
LLAMA2_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def fields(config: LlamaConfig = CONFIG, rule: str = "smollm") -> dict[str, Any]:
    """Return the metadata of a file; change or remove entries before `write`."""
    merges = list(MERGES)
    tokens = [*SPECIAL, *_byte_letters(), *(line.replace(" ", "") for line in merges)]
    tokens += [f"[PAD{i}]" for i in range(config.vocab_size - len(tokens))]
    kinds = [3] * len(SPECIAL) + [1] * (256 + len(merges))
    return {
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds + [5] * (len(tokens) - len(kinds)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
    }


def sentencepiece_fields() -> dict[str, Any]:
    """Return the metadata of a file with a tokenizer such as Llama 2's, and two added tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(PIECES))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(PIECES)
    changed = fields(SENTENCEPIECE_CONFIG, "default") | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*tokens, "happy world", "<pad>"],
        "tokenizer.ggml.scores": [*scores, -1000.0, -1000.0],
        "tokenizer.ggml.token_type": [*kinds, 4, 3],
        "tokenizer.ggml.padding_token_id": len(tokens) + 1,
        "tokenizer.chat_template": LLAMA2_TEMPLATE,
    }
    del changed["tokenizer.ggml.merges"]
    return changed


def write(
    path: Path,
    metadata: dict[str, Any],
    weights: dict[str, np.ndarray],
    kind: str = "F32",
    architecture: str = "llama",
    more: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a GGUF file.

    Args:
        path: File to write.
        metadata: What `fields` returned, changed or not.
        weights: Float32 tensors by their Hugging Face name.
        kind: Type of the matrices; norms stay float32.
        architecture: Value of `general.architecture`.
        more: Further tensors, by their name in the GGUF.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    quantised = gguf.GGMLQuantizationType[kind]
    heads = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}
    for name, value in weights.items():
        for part, count in heads.items():
            if part in name and architecture == "llama":
                value = permuted(value, count)
        if value.ndim == 2 and kind != "F32":
            writer.add_tensor(gguf_name(name), quantize(value, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(gguf_name(name), value)
    for name, value in (more or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of q or k in llama.cpp's order.

    Source: `LlamaModel.permute` of `convert_hf_to_gguf.py`.
    """
    rows = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return rows.swapaxes(1, 2).reshape(weights.shape)


def gguf_name(name: str) -> str:
    """Return the name in a GGUF of a tensor of a Hugging Face checkpoint."""
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_NAMES[module]}.{kind}"


def _byte_letters() -> list[str]:
    """Return the letter that byte-level BPE writes for each byte."""
    # Printable bytes stand for themselves, the others are moved up by 256.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = [byte for byte in range(256) if byte not in printable]
    return [chr(b) if b in printable else chr(256 + moved.index(b)) for b in range(256)]
