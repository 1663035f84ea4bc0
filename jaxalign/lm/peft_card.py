"""The README that goes with an adapter or soft prompt: what it is, and lines that use it.

It is a model card of the Hugging Face hub, so that a folder can be pushed there as it is.
"""

from __future__ import annotations

import json

_HEAD = """\
---
base_model: {base}
library_name: peft
tags:
- jaxalign
- {tag}
---

# {title}

{about}

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this one
tokenizer = AutoTokenizer.from_pretrained({base})
model = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(model, folder)
chat = [{{"role": "user", "content": "Is family important to you?"}}]
inputs = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
"""

_LORA = """\
output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
"""

_PROMPT = """\
output = model.generate(**inputs, max_new_tokens=40, do_sample=False, use_cache=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

`use_cache=False` is needed: with its cache, PEFT's `generate` (as of 0.21) counts positions without
those of the soft prompt, and writes other text. As right, and faster, is to give the embeddings to
the model itself, which may then use its cache:

```python
prompt = model.get_prompt(batch_size=1)
words = model.get_input_embeddings()(inputs["input_ids"])
embeddings = torch.cat([prompt.to(words.dtype), words], dim=1)
output = model.get_base_model().generate(
    inputs_embeds=embeddings,
    attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
    max_new_tokens=40,
    do_sample=False,
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```
"""


def lora_card(base_model: str, rank: int) -> str:
    """Return the README of a LoRA adapter.

    Args:
        base_model: Name or path of the model, as in the adapter's config.
        rank: Rank of the update.
    """
    about = f"A LoRA adapter of rank {rank} for {base_model}."
    return _filled(base_model, "lora", "LoRA adapter", about) + _LORA


def prompt_card(base_model: str, tokens: int) -> str:
    """Return the README of a soft prompt.

    Args:
        base_model: Name or path of the model, as in the prompt's config.
        tokens: Number of virtual tokens.
    """
    about = (
        f"A soft prompt of {tokens} virtual tokens for {base_model}. It stands before everything "
        "else, in front of the chat template's own beginning."
    )
    return _filled(base_model, "prompt-tuning", "Soft prompt", about) + _PROMPT


def _filled(base_model: str, tag: str, title: str, about: str) -> str:
    # A JSON string is one of YAML and of Python too.
    return _HEAD.format(base=json.dumps(base_model), tag=tag, title=title, about=about)
