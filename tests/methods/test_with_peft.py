"""Prompts and adapters, a run's and PEFT's own, mean the same to PEFT, to `ask` and in a chat."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxalign.answering.conversations import option_spellings
from jaxalign.commands.chat import Config, open_columns
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.transformer import Llama
from jaxalign.methods.ask import adapted_params, ask
from jaxalign.methods.chat import Chat
from jaxalign.pocket import pocket_model
from jaxalign.prompts import load_prompts
from jaxalign.surveys.survey import vsm

pytestmark = pytest.mark.reference

SURVEY = vsm().subset({"m01", "m07", "m15", "m20"})
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def lm():
    return pocket_model()


@pytest.fixture(scope="module")
def theirs(lm):
    """Return a function that makes the pocket model in torch, float32."""
    import torch
    import transformers

    def make():
        model = transformers.LlamaForCausalLM.from_pretrained(lm.folder, dtype=torch.float32)
        return model.eval()

    return make


def run_of_prompts(folder: Path, lm, theirs) -> tuple[Path, str]:
    """Tune a prompt in a run."""
    from jaxalign.methods.soft_prompt import Settings, SoftPromptConfig, run_soft_prompt
    from jaxalign.optim.strategy import Strategy

    settings = Settings(
        out=folder,
        countries=("CHN",),
        prompt=SoftPromptConfig(length=5),
        strategy=Strategy(population=4),
        generations=1,
        icl_examples=0,
        gradient_steps=0,
    )
    run_soft_prompt(settings)
    return folder / "peft" / "CHN", "prompt CHN"


def run_of_an_adapter(folder: Path, lm, theirs) -> tuple[Path, str]:
    """Fine-tune an adapter in a run."""
    from jaxalign.cli import run_command

    data = folder.parent / "data.jsonl"
    roles = ("user", "assistant")
    data.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": role, "content": text}
                        for role, text in zip(roles, (f"1 or {i}?", str(i)), strict=True)
                    ]
                }
            )
            + "\n"
            for i in range(2, 6)
        )
    )
    files = ["--data", str(data), "--out", str(folder)]
    training = ["--train.epochs", "3", "--train.learning-rate", "0.01", "--lora.rank", "4"]
    run_command("fine-tune", [*files, *training, "--quiet"])
    return folder / "adapter", "adapter tuned"


def prompt_of_peft(folder: Path, lm, theirs) -> tuple[Path, str]:
    import peft

    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(theirs(), settings).save_pretrained(folder)
    return folder, f"prompt {folder.name}"


def adapter_of_peft(folder: Path, lm, theirs) -> tuple[Path, str]:
    """Rank-stabilised, with other ranks and scales in some layers."""
    import peft
    import torch

    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=2,
        use_rslora=True,
        target_modules=r".*\.[1-3]\.(self_attn\.[qv]|mlp\.down)_proj",
        rank_pattern={r"layers\.2\..*": 5},
        alpha_pattern={"down_proj": 1},
        init_lora_weights=False,  # both matrices away from zero
        task_type="CAUSAL_LM",
    )
    peft.get_peft_model(theirs(), settings).save_pretrained(folder)
    return folder, f"adapter {folder.name}"


@pytest.mark.parametrize(
    "make", [run_of_prompts, run_of_an_adapter, prompt_of_peft, adapter_of_peft]
)
def test_the_same_logits_everywhere(lm, theirs, tmp_path, make):
    import peft
    import torch

    folder, heading = make(tmp_path / "made", lm, theirs)
    adapted = peft.PeftModel.from_pretrained(theirs(), folder).eval()
    # Through the command line's own reading: a run brings everything, a folder of PEFT is named.
    is_run = (tmp_path / "made" / "config.json").is_file()
    given = Config(target=str(tmp_path / "made")) if is_run else _named(heading, folder)
    columns = open_columns(given)
    assert list(columns.conditions) == ["plain", heading]
    condition = columns.conditions[heading]

    def their_logits(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return adapted(input_ids=torch.tensor([ids])).logits[0, -1].numpy()

    # Logits, by a plain forward over the prompt and the conversation.
    prompts = load_prompts(model_folder=lm.folder)
    chats = [lm.tokenizer.encode_chat([prompts.user(item)]) for item in SURVEY.items]
    expected = np.stack([their_logits(ids) for ids in chats])
    soft = condition.soft_prompt
    before = np.zeros((0, 128)) if soft is None else soft.embeddings_MxD
    params = adapted_params(lm, condition)
    found = np.stack([_logits(lm, params, before, ids) for ids in chats])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    plain = np.stack([_logits(lm, lm.params, np.zeros((0, 128)), ids) for ids in chats])
    assert np.abs(plain - expected).max() > 1e-3 * np.abs(expected).max()
    # Answers to a survey.
    answers = ask(lm, SURVEY, [condition], prompts=prompts)
    for i, logits_V in enumerate(expected.astype(np.float64)):
        probs_V = np.exp(logits_V - logits_V.max()) / np.exp(logits_V - logits_V.max()).sum()
        [spellings] = option_spellings(lm.tokenizer, [SURVEY.items[i]])
        options = np.array([sum(probs_V[s[0]] for s in {*option}) for option in spellings])
        np.testing.assert_allclose(answers.valid_mass[0, i], options.sum(), atol=2e-5)
        np.testing.assert_allclose(
            np.exp(answers.log_probs[0, i]), options / options.sum(), atol=2e-5
        )
    # Two turns of a chat.
    talk = Chat(lm, list(columns.conditions.values()), Sampling(NEW_TOKENS, 0.0))
    conversation = []
    for said in ("Is family important to you?", "Why?"):
        reply = talk.say(said)[1]
        conversation.append({"role": "user", "content": said})
        ids = torch.tensor([lm.tokenizer.encode_chat(conversation)])
        out = adapted.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=False,  # with its cache, PEFT 0.21.2 leaves the soft prompt's positions out
            eos_token_id=list(lm.tokenizer.stop_ids),
            pad_token_id=0,
        )
        new = [t for t in out[0, ids.shape[1] :].tolist() if t not in lm.tokenizer.stop_ids]
        assert reply.text == lm.tokenizer.decode(new)
        conversation.append({"role": "assistant", "content": reply.text})


def _named(heading: str, folder: Path) -> Config:
    kind = heading.split()[0]
    return dataclasses.replace(Config(), **{kind: ((str(folder),),)})


def _logits(lm, params, before_MxD: np.ndarray, ids: list[int]) -> np.ndarray:
    """Logits [V] of the last token, padded at the end to one shape for all."""
    x = np.concatenate([before_MxD, np.asarray(lm.params["embed"])[ids]])
    filled = np.zeros((256, x.shape[1]), np.float32)  # causal, so the tail is unseen
    filled[: len(x)] = x
    return np.asarray(_apply(lm.config, params, filled))[len(x) - 1]


@functools.partial(jax.jit, static_argnums=0)
def _apply(config, params, x_TxD):
    return Llama(config).apply({"params": params}, x_TxD[None])[0]
