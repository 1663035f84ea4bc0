"""Write the tokenizer of a GGUF file as a `tokenizer.json` and `tokenizer_config.json`.

For byte-level BPE, a GGUF holds the vocabulary, its merges, the kind of each token, and the *name*
of the rule by which text is cut before merging (`tokenizer.ggml.pre`). The rules behind the names
are written out here for the tokenizers that Llamas and Qwens have. For SentencePiece's tokenizers,
see `gguf_sentencepiece`.

Source: llama.cpp's `llama-vocab.cpp` for names and regular expressions; the published
`tokenizer.json` of Llama 3 and SmolLM2 for how Hugging Face writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.lm.gguf_sentencepiece import DEFAULT_IDS, sentencepiece_parts
from jaxalign.lm.safetensors_io import write_json

# Kinds of tokens in `tokenizer.ggml.token_type`.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_BPE, _SENTENCEPIECE = "gpt2", "llama"  # values of `tokenizer.ggml.model`

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = [
    {
        "type": "Split",
        "pattern": {"Regex": _LLAMA3_WORDS},
        "behavior": "Isolated",
        "invert": False,
    },
    _BYTES | {"use_regex": False},
]
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN2 = [_LLAMA3[0] | {"pattern": {"Regex": _QWEN2_WORDS}}, _LLAMA3[1]]
_SMOLLM = [{"type": "Digits", "individual_digits": True}, _BYTES]
# By name: how text is cut into words.
_PRE_TOKENIZERS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smollm": _SMOLLM,
    "qwen2": _QWEN2,
    "gpt-2": [_BYTES],
}
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # a word in the vocabulary is not merged up to

Fields = Mapping[str, Any]


def write_tokenizer(folder: Path, fields: Fields, source: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`.

    Args:
        folder: Where to write.
        fields: Metadata of the GGUF file by name.
        source: The GGUF file, for messages.
        max_length: Longest text of the model, in tokens.

    Raises:
        UserError: If the tokenizer is of another kind, or something it needs is missing.
    """
    tokenizer = _tokenizer_fields(fields, source)
    tokens = fields["tokenizer.ggml.tokens"]
    named = {f"{name}_token": tokens[i] for name, i in _named_ids(fields, source).items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        **{name: named[name] for name in named if name != "eot_token"},
    }
    if template := fields.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    text = json.dumps(tokenizer, ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)


def special_ids(fields: Fields) -> dict[str, Any]:
    """Return the ids of special tokens, as `config.json` and `generation_config.json` name them.

    A reply ends at the end of text and at the end of a turn, if the file names both.
    """
    ids = {name: _special_id(fields, name) for name in ("bos", "eos", "eot")}
    ends = [i for i in dict.fromkeys((ids["eos"], ids["eot"])) if i is not None]
    found = {"bos_token_id": ids["bos"], "eos_token_id": ends[0] if len(ends) == 1 else ends}
    pad = fields.get("tokenizer.ggml.padding_token_id")
    return {name: i for name, i in (found | {"pad_token_id": pad}).items() if i not in (None, [])}


def _tokenizer_fields(fields: Fields, source: Path) -> dict[str, Any]:
    """Return the content of `tokenizer.json`."""
    needed = ("model", "tokens", "token_type")
    if fields.get("tokenizer.ggml.model") == _BPE:
        needed = (*needed, "pre", "merges")
    for name in needed:
        if f"tokenizer.ggml.{name}" not in fields:
            raise UserError(f"{source}: the metadata lacks tokenizer.ggml.{name}")
    model = fields["tokenizer.ggml.model"]
    if model not in (_BPE, _SENTENCEPIECE):
        raise UserError(
            f"{source}: tokenizer.ggml.model {model!r}; only {_BPE} (BPE of bytes) and "
            f"{_SENTENCEPIECE} (SentencePiece) are read"
        )
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    if len(tokens) != len(kinds):
        raise UserError(f"{source}: {len(tokens)} tokens, but {len(kinds)} kinds of tokens")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise UserError(f"{source}: token {twice!r} is in the vocabulary twice")
    added = {_CONTROL, _USER_DEFINED} | ({_UNKNOWN} if model == _SENTENCEPIECE else set())
    parts = _bpe_parts if model == _BPE else sentencepiece_parts
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(i, tokens[i], kind != _USER_DEFINED)
            for i, kind in enumerate(kinds)
            if kind in added
        ],
        "post_processor": _post_processor(fields, source),
        **parts(fields, vocabulary, source),
    }


def _bpe_parts(fields: Fields, vocabulary: Mapping[str, int], source: Path) -> dict[str, Any]:
    """Return the parts of `tokenizer.json` between text and tokens, for BPE of bytes."""
    rule = fields["tokenizer.ggml.pre"]
    if rule not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise UserError(f"{source}: tokenizer.ggml.pre {rule!r} is not one of {known}")
    return {
        "normalizer": {"type": "NFC"} if rule == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[rule]},
        "decoder": _BYTES | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rule in _WHOLE_WORDS,
            "vocab": vocabulary,
            "merges": [
                _merge(line, vocabulary, source) for line in fields["tokenizer.ggml.merges"]
            ],
        },
    }


def _added_token(i: int, content: str, special: bool) -> dict[str, Any]:
    """Return a token that is found in a text before it is cut into words."""
    return {
        "id": i,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _merge(line: str, vocabulary: Mapping[str, int], source: Path) -> list[str]:
    pair = line.split(" ")
    if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
        raise UserError(f"{source}: tokenizer.ggml.merges: {line!r} does not merge two tokens")
    return pair


def _post_processor(fields: Fields, source: Path) -> dict[str, Any] | None:
    """Return what adds the first token to a text, where the model has one."""
    ids = _named_ids(fields, source)
    byte_level = fields["tokenizer.ggml.model"] == _BPE
    default = not byte_level or fields["tokenizer.ggml.pre"] in _WHOLE_WORDS
    if not fields.get("tokenizer.ggml.add_bos_token", default) or "bos" not in ids:
        return _BYTES | {"use_regex": False} if byte_level else None
    bos = fields["tokenizer.ggml.tokens"][ids["bos"]]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    second = {"SpecialToken": {"id": bos, "type_id": 1}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, a],
        "pair": [first, a, second, b],
        "special_tokens": {bos: {"id": bos, "ids": [ids["bos"]], "tokens": [bos]}},
    }
    return {"type": "Sequence", "processors": [_BYTES, template]} if byte_level else template


def _named_ids(fields: Fields, source: Path) -> dict[str, int]:
    """Return the ids of the special tokens that the file names; UserError if one is no token."""
    names = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}
    ids = {short: _special_id(fields, name) for short, name in names.items()}
    if ids["eos"] is None:
        raise UserError(f"{source}: the metadata lacks tokenizer.ggml.eos_token_id")
    count = len(fields["tokenizer.ggml.tokens"])
    for short, i in ids.items():
        if i is not None and not 0 <= i < count:
            raise UserError(f"{source}: {short} token {i} is not one of {count} tokens")
    return {short: i for short, i in ids.items() if i is not None}


def _special_id(fields: Fields, name: str) -> int | None:
    """Return the id of a special token, or None if the file has none."""
    default = DEFAULT_IDS.get(name) if fields["tokenizer.ggml.model"] == _SENTENCEPIECE else None
    return fields.get(f"tokenizer.ggml.{name}_token_id", default)
