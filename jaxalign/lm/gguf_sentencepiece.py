"""The SentencePiece tokenizer of a GGUF file (Llama 2, TinyLlama, Mistral) as byte-fallback BPE.

Such a file holds no merges. SentencePiece joins the two neighbours that give the piece of the
highest score, so the merges follow from the scores. A space is a letter of the vocabulary, "▁", and
a character that the vocabulary lacks is written as its bytes, `<0xE4>`.

Source: llama.cpp's `llama-vocab.cpp` for what a file means that does not say it; the published
`tokenizer.json` of Llama 2 for how Hugging Face writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError

# Ids of special tokens in a file that does not name them.
DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}
_SPACE = "\u2581"
_NORMAL = 1
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
# Not written by llama.cpp for these tokenizers, and not followed by it if it is there.
_CHANGES_TEXT = ("remove_extra_whitespaces", "precompiled_charsmap")
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_MISTRAL_MARKER = "[INST]"


def sentencepiece_parts(
    fields: Mapping[str, Any], vocabulary: Mapping[str, int], source: Path
) -> dict[str, Any]:
    """Return the parts of `tokenizer.json` between text and tokens, for SentencePiece.

    Args:
        fields: Metadata of the GGUF file by name.
        vocabulary: The id of every token.
        source: The GGUF file, for messages.

    Raises:
        UserError: If scores or tokens for bytes are missing, or text would be changed first.
    """
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    scores = fields.get("tokenizer.ggml.scores")
    if scores is None:
        raise UserError(f"{source}: the metadata lacks tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise UserError(f"{source}: {len(tokens)} tokens, but {len(scores)} scores")
    if lacking := [name for name in _BYTES if name not in vocabulary]:
        raise UserError(
            f"{source}: the vocabulary lacks {lacking[0]}; text outside it would be lost"
        )
    for name in _CHANGES_TEXT:
        if fields.get(f"tokenizer.ggml.{name}"):
            raise UserError(f"{source}: tokenizer.ggml.{name} is not handled; refusing to guess")
    # Merging makes normal pieces only: other tokens stand in the text as they are, or are bytes.
    normal = {
        token: score
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind == _NORMAL
    }
    unknown = fields.get("tokenizer.ggml.unknown_token_id", DEFAULT_IDS["unknown"])
    # Nothing in the file says where spaces go, but only these tokenizers have the marker.
    only_first = _MISTRAL_MARKER in vocabulary and _MISTRAL_MARKER not in normal
    spaced = fields.get("tokenizer.ggml.add_space_prefix", True)
    return {
        **_spaces(spaced, only_first),
        "decoder": _decoder(spaced),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[unknown],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": merges_by_score(normal),
        },
    }


def merges_by_score(scores: Mapping[str, float]) -> list[Sequence[str]]:
    """Return every way to put a piece together from two others, best piece first.

    Of several ways to the same piece, the one with the longer left part comes first, as in the
    tokenizers that Hugging Face derives from SentencePiece's files.

    Args:
        scores: Score of each piece that text may be cut into.
    """
    # Sorted by falling score of the whole, then falling length of the left part.
    ranked = [
        (-score, -at, piece)
        for piece, score in scores.items()
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    return [[piece[:-minus_at], piece[-minus_at:]] for _, minus_at, piece in sorted(ranked)]


def _spaces(spaced: bool, only_first: bool) -> dict[str, Any]:
    """Return where a space is put in front of a text.

    As SentencePiece was called on each piece of text between special tokens, llama.cpp and the
    published Llama 2 put one there as well. Mistral's tokenizers with a token `[INST]` (version 3)
    have one only in front of the whole text.
    """
    if spaced and only_first:
        first = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first"}
        return {"normalizer": None, "pre_tokenizer": first | {"split": False}}
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if spaced else []
    normalizer = {"type": "Sequence", "normalizers": [*prepend, _REPLACE]}
    return {"normalizer": normalizer, "pre_tokenizer": None}


def _decoder(spaced: bool) -> dict[str, Any]:
    # The space in front is taken off last, when bytes have become letters and all is one text.
    replace = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if spaced else []
    decoders = [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {"type": "Sequence", "decoders": decoders}
