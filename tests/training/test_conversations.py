"""Examples of conversations: the reply and the end of its turn, whatever the chat template.

The templates are written after the structure of those that models bring.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from jaxalign.core.errors import UserError
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.pocket import MODEL_FOLDER
from jaxalign.training.conversations import to_example
from tests.lm.test_tokenizer import SPECIAL, write_tokenizer

HEADER = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim }}<|eot_id|>"
    "{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# The system message goes in front of the last message, if that is the user's.
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}"
    "{% endif %}{{ bos_token }}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
NO_PROMPT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|eot_id|>{% endfor %}"
FORGETS = (  # what a model thought is not repeated in later turns
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT_MARKS = ("<|im_start|>", "<|im_end|>", "</s>", "<|user|>", "<|assistant|>", "<|end|>")
CASES = {  # template, end of text, the answer to "3"
    "llama 3, first": (LLAMA3 + HEADER, "<|eot_id|>", "3<|eot_id|>"),
    "llama 3": (
        LLAMA3 + "{% if add_generation_prompt %}" + HEADER + "{% endif %}",
        "<|eot_id|>",
        "3<|eot_id|>",
    ),
    "chatml": (CHATML, "<|im_end|>", "3<|im_end|>"),
    "chatml, other end of text": (CHATML, "<|end_of_text|>", "3<|im_end|>"),
    "chatml, header always": (
        CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"),
        "<|im_end|>",
        "3<|im_end|>",
    ),
    "zephyr": (ZEPHYR, "</s>", "3</s>"),
    "llama 2": (LLAMA2, "</s>", " 3 </s>"),
    "mistral": (MISTRAL, "</s>", " 3</s>"),
    "phi": (PHI, "<|end_of_text|>", "3<|end|>"),
    "no end of turn": (NO_END, "</s>", " 3\n"),
    "no end of turn, header always": (
        NO_END.replace("{% if add_generation_prompt %}", "{% if true %}"),
        "</s>",
        " 3\n",
    ),
    "no header": (NO_PROMPT, "<|eot_id|>", "3<|eot_id|>"),
    "forgets": (FORGETS, "<|im_end|>", "3<|im_end|>"),
}
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "How many? 3 or 4?"}
REPLY = {"role": "assistant", "content": "3"}
EARLIER = [ASKED, {"role": "assistant", "content": "4"}]


def folder_of(case: str, folder: Path) -> Path:
    template, eos, _ = CASES[case]
    settings = {"bos_token": SPECIAL[0], "eos_token": eos, "chat_template": template}
    special = tuple(dict.fromkeys((*SPECIAL, *CHAT_MARKS, eos)))
    return write_tokenizer(folder, special, settings=settings)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("earlier", [[], [SYSTEM], EARLIER, [SYSTEM, *EARLIER]], ids=len)
def test_an_answer_is_the_reply_and_the_end_of_its_turn(
    case: str, earlier: list[dict[str, str]], tmp_path: Path
) -> None:
    """Case M4 is the first: 12 tokens were trained on, with the header of another turn."""
    tokens = Tokenizer.load(folder_of(case, tmp_path))
    messages = [*earlier, ASKED, REPLY]
    example = to_example(tokens, messages)
    assert tokens.decode(example.answer) == CASES[case][2]
    # The second implementation: all tokens of the conversation, and those of the prompt.
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    prompt = theirs.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    whole = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    before = list(example.tokens[: example.prompt_length])
    assert before[: len(prompt)] == prompt, "what the model is given when it is asked"
    if case != "no header":
        assert before == prompt
    if case != "mistral" or SYSTEM not in messages:  # there, the prompt is another one
        assert list(example.tokens) == whole[: len(example.tokens)]
    if "no end" not in case:
        assert example.answer[-1] == tokens.eot_id
        assert tokens.eot_id in tokens.stop_ids


def test_the_pocket_model_is_trained_on_two_tokens() -> None:
    tokens = Tokenizer.load(MODEL_FOLDER)
    example = to_example(tokens, [ASKED, REPLY])
    assert tokens.decode(example.answer) == "3<|eot_id|>"
    assert len(example.answer) == 2


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (" 3 \n", " 3 \n<|im_end|>"),
        ("The mark <|im_end|> ends turns", "The mark <|im_end|> ends turns<|im_end|>"),
        ("assistant", "assistant<|im_end|>"),
    ],
)
def test_replies_are_kept_as_the_template_writes_them(
    reply: str, answer: str, tmp_path: Path
) -> None:
    tokens = Tokenizer.load(folder_of("chatml", tmp_path))
    example = to_example(tokens, [ASKED, {"role": "assistant", "content": reply}])
    assert tokens.decode(example.answer) == answer


def test_a_reply_that_the_template_rewrites_is_trained_on_as_written(tmp_path: Path) -> None:
    tokens = Tokenizer.load(folder_of("forgets", tmp_path))
    reply = {"role": "assistant", "content": "<think>3 or 4?</think>4"}
    assert tokens.decode(to_example(tokens, [ASKED, reply]).answer) == "4<|im_end|>"


def test_a_prompt_that_changes_with_the_reply_is_refused(tmp_path: Path) -> None:
    thinks = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    settings = {"bos_token": SPECIAL[0], "eos_token": "<|im_end|>", "chat_template": thinks}
    write_tokenizer(tmp_path, (*SPECIAL, *CHAT_MARKS), settings=settings)
    with pytest.raises(UserError, match="differently once it has a reply"):
        to_example(Tokenizer.load(tmp_path), [ASKED, REPLY])


def test_what_ends_a_reply_is_what_the_template_and_the_configs_say(tmp_path: Path) -> None:
    """Case M5: `<|eot_id|>` is in the vocabulary, but a ChatML model never means it."""
    folder = folder_of("chatml, other end of text", tmp_path)
    vocab = Tokenizer.load(folder).tokenizer.get_vocab()

    def stops() -> set[int]:
        return set(Tokenizer.load(folder).stop_ids)

    ends = {vocab["<|im_end|>"], vocab["<|end_of_text|>"]}
    assert stops() == ends
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert stops() == ends | {7}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert stops() == ends | {8, 9}, "as in transformers, it is read instead of config.json"
    other = tmp_path / "llama"
    other.mkdir()
    assert vocab["<|eot_id|>"] in Tokenizer.load(folder_of("llama 3, first", other)).stop_ids
