"""GGUF files with a SentencePiece tokenizer: the same tokens as SentencePiece's, chats, options."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.core.errors import UserError
from jaxalign.lm.gguf import convert_gguf
from jaxalign.lm.gguf_sentencepiece import merges_by_score
from jaxalign.lm.gguf_tokenizer import write_tokenizer
from jaxalign.lm.tokenizer import Tokenizer
from tests.support.gguf_files import (
    PIECES,
    SENTENCEPIECE_CONFIG,
    sentencepiece_fields,
    write,
)
from tests.support.parity_cases import hf_weights

VOCAB = {name: i for i, name in enumerate(sentencepiece_fields()["tokenizer.ggml.tokens"])}
ZEPHYR_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
QUESTION = [{"role": "user", "content": "How happy?"}]
# What the sentencepiece library 0.2.3 makes of these pieces and scores.
FROZEN = {
    "How happy are the people?": "▁ How ▁happy ▁a re ▁the ▁people ?",
    "  two   spaces\n\tand      six ": (
        "▁▁ ▁t wo ▁▁ ▁s p a <0x63> e s <0x0A> <0x09> a n d ▁▁▁▁ ▁ ▁s ix ▁"
    ),
    " 10 or 2": "▁▁ 1 0 ▁o r ▁ 2",
    "你 🙂 Grüße": ("▁ <0xE4> <0xBD> <0xA0> ▁ <0xF0> <0x9F> <0x99> <0x82> ▁ Grü ße"),
    "": "",
}


def load(folder: Path, **changes: Any) -> Tokenizer:
    """Return the tokenizer of a file whose metadata are changed; None removes an entry."""
    changed = {f"tokenizer.{name.replace('__', '.')}": value for name, value in changes.items()}
    metadata = {k: v for k, v in (sentencepiece_fields() | changed).items() if v is not None}
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder, metadata, Path("model.gguf"), 512)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(tmp_path_factory.mktemp("tokenizer"))


def names(tokens: Tokenizer, ids: Sequence[int]) -> list[str]:
    return tokens.tokenizer.convert_ids_to_tokens(list(ids))


@functools.cache
def _scores() -> dict[str, int]:
    return {piece: -rank for rank, piece in enumerate(PIECES)}


def sentencepiece_names(text: str) -> list[str]:
    """Cut a text as SentencePiece does: join the best two neighbours, the leftmost of equals."""
    if not text:
        return []
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [a + b for a, b in itertools.pairwise(symbols)]
        pairs = [(-_scores()[new], i) for i, new in enumerate(joined) if new in _scores()]
        if not pairs:
            break
        _, i = min(pairs)
        symbols[i : i + 2] = [joined[i]]
    cut = ([s] if s in VOCAB else [f"<0x{byte:02X}>" for byte in s.encode()] for s in symbols)
    return [name for piece in cut for name in piece]


def test_frozen_tokens_of_the_library(tokens: Tokenizer) -> None:
    for text, expected in FROZEN.items():
        assert names(tokens, tokens.encode(text)) == expected.split(), text
        assert sentencepiece_names(text) == expected.split()
        assert tokens.decode(tokens.encode(text)) == text


_PARTS = [*(piece.replace("▁", " ") for piece in PIECES), "  ", "\n", "🙂", "你", "é"]
_WORDS = st.lists(st.sampled_from(_PARTS), max_size=14).map("".join)


@settings(max_examples=60, deadline=None)
@given(_WORDS | st.text("hept ow▁1\t🙂世", max_size=12))
def test_text_is_cut_by_the_scores(tokens: Tokenizer, text: str) -> None:
    chunks = text.split("happy world")  # a token that the file's author added
    expected = sentencepiece_names(chunks[0])
    for chunk in chunks[1:]:
        expected += ["happy world", *sentencepiece_names(chunk)]
    assert names(tokens, tokens.encode(text)) == expected
    if len(chunks) == 1:
        assert tokens.decode(tokens.encode(text)) == text.replace("▁", " ")


def test_better_pieces_and_longer_left_parts_are_merged_first() -> None:
    scores = {"a": -9, "b": -9, "ab": -2, "aba": -1, "ba": -3}
    pairs = merges_by_score(scores)
    assert pairs == [["ab", "a"], ["a", "ba"], ["a", "b"], ["b", "a"]]


def test_special_tokens_and_the_space_behind_them(tokens: Tokenizer, tmp_path: Path) -> None:
    assert (tokens.bos_id, tokens.eot_id, tokens.stop_ids) == (1, 2, (2,))
    text = "<s>he</s> he<unk>"
    expected = ["<s>", "▁", "he", "</s>", "▁▁", "he", "<unk>"]
    assert names(tokens, tokens.encode(text)) == expected
    assert tokens.tokenizer("he")["input_ids"][0] == 1
    without = load(tmp_path / "a", ggml__add_space_prefix=False, ggml__add_bos_token=False)
    assert names(without, without.encode("he</s>he")) == ["he", "</s>", "he"]
    assert without.tokenizer("he")["input_ids"] == [VOCAB["he"]]
    assert without.decode(without.encode(" he")) == " he"
    unnamed = {f"ggml__{name}_token_id": None for name in ("bos", "eos", "unknown")}
    default = load(tmp_path / "b", **unnamed)
    assert (default.bos_id, default.stop_ids) == (1, (2,))


def test_mistral_3_has_a_space_in_front_of_the_whole_text_only(tmp_path: Path) -> None:
    listed = [*VOCAB]
    listed[listed.index("<pad>")] = "[INST]"
    tokens = load(tmp_path, ggml__tokens=listed, ggml__padding_token_id=None)
    assert names(tokens, tokens.encode("he[INST] he")) == ["▁", "he", "[INST]", "▁", "he"]
    assert names(tokens, tokens.encode("[INST]he")) == ["[INST]", "he"]


def test_chat_of_llama_2(tokens: Tokenizer) -> None:
    prompt = names(tokens, tokens.encode_chat(QUESTION))
    assert prompt[:3] == ["<s>", "▁", "<0x5B>"]
    assert prompt[-3:] == ["<0x53>", "T", "<0x5D>"]
    assert tokens.turn_end == " </s>"
    replied = [*QUESTION, {"role": "assistant", "content": "people"}]
    assert tokens.split_reply(replied)[1] == " people </s>"
    # A reply begins with a space, which is a token of its own before a digit.
    one, two = tokens.option_tokens((1, 2))
    assert [names(tokens, ids) for ids in one] == [["▁", "1"], ["1"]]
    assert [names(tokens, ids) for ids in two] == [["▁", "2"], ["2"]]
    one, ten = tokens.option_tokens((1, 10))
    assert [names(tokens, ids) for ids in ten] == [["▁", "1", "0", "</s>"], ["1", "0", "</s>"]]
    assert [names(tokens, ids) for ids in one] == [["▁", "1", "</s>"], ["1", "</s>"]]
    # An option's text as a reply begins with that space too.
    [(small, capital), _] = tokens.label_tokens(("people", "he"))
    assert names(tokens, small) == ["▁people"]
    assert tokens.decode(capital).strip() == "People"


def test_no_space_is_added_behind_a_soft_prompt(tokens: Tokenizer) -> None:
    before, after = tokens.encode_chat_split([{"role": "user", "content": "he@@ the"}], "@@")
    assert names(tokens, before)[-1] == "he"
    assert names(tokens, after)[0] == "▁the"


def test_chat_of_zephyr(tmp_path: Path) -> None:
    tokens = load(tmp_path, chat_template=ZEPHYR_TEMPLATE)
    prompt = names(tokens, tokens.encode_chat(QUESTION))
    assert prompt.count("</s>") == 1
    assert prompt[-2:] == ["<0x3E>", "<0x0A>"]
    assert tokens.turn_end == "</s>"
    assert [names(tokens, ids) for (ids,) in tokens.option_tokens((1, 2))] == [["1"], ["2"]]


def test_a_number_with_its_space_as_one_piece(tmp_path: Path) -> None:
    listed, kinds = [*VOCAB], sentencepiece_fields()["tokenizer.ggml.token_type"]
    listed[listed.index("happy world")] = "▁1"
    tokens = load(tmp_path, ggml__tokens=listed, ggml__token_type=[*kinds[:-2], 1, 3])
    one, two = tokens.option_tokens((1, 2))
    assert [names(tokens, ids) for ids in one] == [["▁1"], ["1"]]
    assert [names(tokens, ids) for ids in two] == [["▁", "2"], ["2"]]


REFUSED = {
    "no scores": ({"ggml__scores": None}, "lacks tokenizer.ggml.scores"),
    "few scores": ({"ggml__scores": [0.0]}, "tokens, but 1 scores"),
    "no bytes": (
        {"ggml__tokens": [name.replace("<0x0A>", "newline") for name in VOCAB]},
        "the vocabulary lacks <0x0A>",
    ),
    "fewer spaces": (
        {"ggml__remove_extra_whitespaces": True},
        "remove_extra_whitespaces is not handled",
    ),
    "another kind": ({"ggml__model": "t5"}, "'t5'; only gpt2 .* and llama .SentencePiece. are"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(UserError, match=rf"model.gguf: .*{message}"):
        load(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_the_whole_file_is_converted(tmp_path: Path) -> None:
    weights = hf_weights(SENTENCEPIECE_CONFIG)
    path = write(tmp_path / "model.gguf", sentencepiece_fields(), weights)
    config = convert_gguf(path, tmp_path / "out", "float32")
    assert config == SENTENCEPIECE_CONFIG
    assert Tokenizer.load(tmp_path / "out").vocab_size == config.vocab_size


@pytest.mark.reference
def test_tokens_are_those_of_the_sentencepiece_library(tmp_path: Path) -> None:
    """A model that the library trains on our documentation, and random texts with its words."""
    import sentencepiece as library

    root = Path(__file__).parents[2]
    lines = (root / "README.md").read_text("utf-8").splitlines()
    file = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=file,
        model_type="bpe",
        vocab_size=1000,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    model = library.SentencePieceProcessor(model_proto=file.getvalue())
    ids = range(len(model))
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in ids
    ]
    tokens = load(
        tmp_path,
        ggml__tokens=[model.id_to_piece(i) for i in ids],
        ggml__scores=[model.get_score(i) for i in ids],
        ggml__token_type=kinds,
        ggml__padding_token_id=None,
    )
    parts = [
        *" ".join(lines).split(),
        " ",
        "   ",
        "\n",
        "\t",
        "🙂",
        "你好",
        "Grüße",
        "10",
        "2026",
        "é",
    ]
    random = np.random.default_rng(0)
    for _ in range(500):
        chunks = ["".join(random.choice(parts, random.integers(0, 12))) for _ in range(2)]
        expected = [*model.encode(chunks[0]), 2, *model.encode(chunks[1])]
        assert tokens.encode("</s>".join(chunks)) == expected, chunks
