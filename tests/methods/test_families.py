"""Surveys, searches and fine-tuning of every family, against transformers and PEFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import jaxalign as ja
from jaxalign.answering.conversations import option_spellings, soft_prompt_layout
from jaxalign.answering.options import option_log_probs, prepare_items
from jaxalign.methods.conditions import WithAdapter
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.prompts import load_prompts
from tests.support.family_cases import MODELS, write_speaking_model

SURVEY = ja.surveys.vsm().subset({"m01", "m02", "m03"})
TALK = [{"role": "user", "content": "1 or 2?"}, {"role": "assistant", "content": "2"}]


def by_transformers(lm, model, condition, soft_MxD=None) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the options and valid mass, from the logits of one conversation each."""
    import torch

    prompts, probs, mass = load_prompts(), [], []
    embed = model.get_input_embeddings()
    for item in SURVEY.items:
        ids = lm.tokenizer.encode_chat([*condition.lead_in(prompts), prompts.user(item)])
        with torch.no_grad():
            x = embed(torch.tensor([ids]))
            if soft_MxD is not None:
                x = torch.cat([torch.from_numpy(soft_MxD)[None], x], dim=1)
            logits_V = model(inputs_embeds=x).logits[0, -1]
        next_V = torch.softmax(logits_V, -1).numpy()
        [spellings] = option_spellings(lm.tokenizer, [item])
        options = [sum(next_V[s[0]] for s in {*option}) for option in spellings]
        probs.append(options / np.sum(options))
        mass.append(np.sum(options))
    return np.array(probs), np.array(mass)


@pytest.mark.long
@pytest.mark.reference
@pytest.mark.parametrize("family", MODELS)
def test_answers_search_and_fine_tuning(family: str, tmp_path: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    write_speaking_model(tmp_path / "model", family)
    lm = ja.load_model(tmp_path / "model", dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    soft = SoftPrompt(np.random.RandomState(0).normal(0, 1, (3, 48)).astype(np.float32))
    adapter = ja.fine_tune(lm, [TALK] * 8, lora=ja.training.LoraConfig(rank=2))
    adapter.save_peft(tmp_path / "adapter")
    # All ways of asking at once.
    conditions = [ja.Plain(), ja.Persona("CHN"), soft, WithAdapter(adapter)]
    answers = ja.ask(lm, SURVEY, conditions)
    expected = [
        by_transformers(lm, theirs, conditions[0]),
        by_transformers(lm, theirs, conditions[1]),
        by_transformers(lm, theirs, ja.Plain(), soft.embeddings_MxD),
    ]
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    expected.append(by_transformers(lm, adapted, ja.Plain()))
    for row, (probs, mass) in enumerate(expected):
        np.testing.assert_allclose(np.exp(answers.log_probs[row]), probs, atol=2e-5)
        np.testing.assert_allclose(answers.valid_mass[row], mass, rtol=2e-4, atol=1e-7)
    assert np.abs(answers.log_probs[3] - answers.log_probs[0]).max() > 1e-4
    # What the search evaluates is what `ask` says.
    layout = soft_prompt_layout(lm.tokenizer, load_prompts(), SURVEY.items, "front", 3)
    items = prepare_items(lm.config, lm.params, layout)
    found = option_log_probs(lm.config, items, soft.embeddings_MxD[None], chunk=1)[0]
    np.testing.assert_allclose(found, answers.log_probs[2], atol=1e-4)
