"""Train the pocket model's byte-level BPE tokenizer, with Llama-3's special tokens and turn format.

It is trained on the texts that it will read, so whole words of the surveys are single tokens. The
splitting rules follow those of the Llama-3 tokenizer: words with their leading space, up to three
digits together, line breaks apart. The number of an answer is thus a single token after the
assistant header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
HEAD, TAIL, PAD = "<|start_header_id|>", "<|end_header_id|>", "<|finetune_right_pad_id|>"
SPECIAL = (BOS, EOS, HEAD, TAIL, EOT, PAD)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# A turn is a header, a blank line, the trimmed text and an end of turn. Written for this package.
_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    f"{{{{- '{HEAD}' + message['role'] + '{TAIL}' + '\\n\\n' }}}}"
    f"{{{{- message['content'] | trim + '{EOT}' }}}}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    f"{{{{- '{HEAD}assistant{TAIL}' + '\\n\\n' }}}}"
    "{%- endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Learn BPE merges from `texts`; special tokens take the last ids, as in Llama-3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the files of a tokenizer.

    These are tokenizer.json, tokenizer_config.json with the chat template inside, and
    generation_config.json.
    """
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    ids = {
        "bos_token_id": tokenizer.convert_tokens_to_ids(BOS),
        "eos_token_id": [tokenizer.convert_tokens_to_ids(t) for t in (EOS, EOT)],
        "pad_token_id": tokenizer.convert_tokens_to_ids(PAD),
    }
    text = json.dumps({**ids, "do_sample": True, "temperature": 0.6, "top_p": 0.9}, indent=1)
    (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")
