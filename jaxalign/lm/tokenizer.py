"""A model folder's own tokenizer and chat template, through transformers.

Text is rendered by the template first and tokenised after, adding nothing to it: a Llama-3 template
writes `<|begin_of_text|>` itself, and a tokenizer that added its own would double it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.lm.config import LlamaConfig

BEGIN, END, TURN_END = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIAL = (BEGIN, END, "<|start_header_id|>", "<|end_header_id|>", TURN_END)  # for a new tokenizer
_MARKER = re.compile(r"<\|[^|<>\s]+\|>")
_STOPS = (TURN_END, END, "<|eom_id|>")
# Names of one class, which takes tokenizer.json as it is.
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HASHED = (*_FILES, "tokenizer_config.json", "special_tokens_map.json", "merges.txt")
# Llama 3.1's template prints this date when given none and 3.2's prints today's, which would make
# a run depend on the day it is resumed.
_DATE = "26 Jul 2024"

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. `template` is the chat template in use, as jinja source."""

    tokenizer: Any = dataclasses.field(repr=False)  # transformers.PreTrainedTokenizerBase
    template: str = dataclasses.field(repr=False)
    folder: Path
    sha256: str  # of the tokenizer's files and the template
    vocab_size: int  # one more than the largest id
    eot_id: int  # ends a turn
    bos_id: int | None
    stop_ids: tuple[int, ...]  # after these the model has said what it had to say

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model folder; nothing is downloaded.

        Raises UserError where there is none, where it does not load, where it lacks the special
        tokens of the chat template (the folder's, else ours), and where no token ends a turn.
        """
        folder = Path(folder)
        tokenizer = _load_tokenizer(folder)
        vocab, template = tokenizer.get_vocab(), _own_template(tokenizer, folder)
        template = default_template() if template is None else template
        eos, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
        eot = vocab.get(TURN_END, eos)
        if eot is None:
            raise UserError(f"{folder}: the tokenizer has neither {TURN_END} nor an eos_token")
        tokens = cls(
            tokenizer=tokenizer,
            template=template,
            folder=folder,
            sha256=_sha256(folder, template),
            vocab_size=max(vocab.values()) + 1,
            eot_id=eot,
            bos_id=vocab.get(BEGIN) if bos is None else bos,
            stop_ids=tuple(sorted(({vocab.get(name) for name in _STOPS} | {eos, eot}) - {None})),
        )
        tokens._check_markers(vocab)
        return tokens

    def _check_markers(self, vocab: dict[str, int]) -> None:
        """Every `<|marker|>` that the template writes must be one token."""
        written = _MARKER.findall(self.render([{"role": "user", "content": "?"}]))
        if unknown := [name for name in dict.fromkeys(written) if name not in vocab]:
            raise UserError(
                f"{self.folder}: the tokenizer lacks {', '.join(unknown)}, which the chat template "
                "writes; give the folder of a Llama-3 with its tokenizer"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone; special tokens only where the text spells them.

        UserError for half of a surrogate pair, as a broken "\\ud83d" in JSON leaves one.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            broken = text[max(0, error.start - 20) : error.end]
            raise UserError(f"text that is not Unicode: ...{broken!r}") from None
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the conversation as the template writes it.

        Raises:
            UserError: if the template fails, with its message.
        """
        import jinja2  # here, because only rendering needs it and it takes time to import

        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                return_dict=False,
                date_string=_DATE,
            )
        except (jinja2.TemplateError, KeyError, TypeError) as error:
            line = " ".join(str(error).split())
            raise UserError(f"{self.folder}: chat template: {line}") from None

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of a conversation, by default up to where the assistant begins to speak."""
        return self.encode(self.render(messages, add_generation_prompt))

    def encode_chat_split(
        self, messages: Sequence[Message], sentinel: str, add_generation_prompt: bool = True
    ) -> tuple[list[int], list[int]]:
        """Ids before and after `sentinel`, which stands once in some message's content.

        Each side is tokenised by itself, so this is how a soft prompt gets its place in a
        conversation. Raises UserError where the rendered text does not hold `sentinel` once.
        """
        text = self.render(messages, add_generation_prompt)
        if not sentinel or text.count(sentinel) != 1:
            found = text.count(sentinel) if sentinel else 0
            raise UserError(f"the chat holds {sentinel!r} {found} times; once is needed")
        before, after = text.split(sentinel)
        return self.encode(before), self.encode(after)

    def option_tokens(self, codes: Sequence[int]) -> list[list[tuple[int, ...]]]:
        """For every option number all its spellings, as token sequences that exclude each other.

        Spellings are the bare number, as the tokenizer writes it right after the assistant
        header, and every single token that reads as it, such as one with a space before it. (A
        space token and then the number's is left out: a rare way to the same reply that would cost
        one more position per item.) Where one
        option's sequence begins another's ("1" and "10" digit by digit), all sequences get the
        end of turn appended, so that they are comparable.
        Raises UserError for repeated codes and for a number that the tokenizer cannot write.
        """
        if repeated := [code for code in codes if list(codes).count(code) > 1]:
            raise UserError(f"option {repeated[0]} is there twice")
        single = self._number_tokens()
        numbers = [str(code) for code in codes]
        spellings = [self._spellings(n, single.get(n, [])) for n in numbers]
        options = [_without_extensions(some) for some in spellings]
        sequences = [sequence for option in options for sequence in option]
        if any(_begins(a, b) for a in sequences for b in sequences):
            return [[(*sequence, self.eot_id) for sequence in option] for option in options]
        return options

    def _spellings(self, number: str, tokens: list[int]) -> list[tuple[int, ...]]:
        """`tokens` are single tokens that decode to `number`."""
        bare, spaced = (self._after_header(text) for text in (number, f" {number}"))
        single = [ids for ids in (spaced, *((token,) for token in tokens)) if len(ids) == 1]
        found = [*dict.fromkeys([bare, *single])]
        found = [ids for ids in found if self.decode(ids).strip() == number]
        if not found:
            raise UserError(f"{self.folder}: the tokenizer cannot write option {number!r}")
        return found

    def _after_header(self, text: str) -> tuple[int, ...]:
        """Ids of `text` following the assistant header, or by itself where they would merge: the
        header's own ids are already fixed when the model begins to answer."""
        question = [{"role": "user", "content": "?"}]
        header = self.render(question)[len(self.render(question, add_generation_prompt=False)) :]
        before, whole = self.encode(header), self.encode(header + text)
        merged = whole[: len(before)] != before
        return tuple(self.encode(text) if merged else whole[len(before) :])

    def _number_tokens(self) -> dict[str, list[int]]:
        """Number -> single tokens that decode to it, with or without white space before it.

        Vocabularies write ASCII digits as themselves, so a token's name tells whether decoding it
        is worthwhile.
        """
        found: dict[str, list[int]] = {}
        for name, token in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if name[-1:].isdigit() and name.isprintable() and len(name) < 8:
                found.setdefault(self.decode([token]).strip(), []).append(token)
        return found


def default_template() -> str:
    """Our own Llama-3 chat template, for folders without one."""
    return (resources.files("jaxalign") / "prompts" / "llama3_chat.jinja").read_text("utf-8")


def check_vocabulary(tokens: Tokenizer, config: LlamaConfig) -> None:
    """Raises UserError when the tokenizer writes ids that the model has no embedding for."""
    if tokens.vocab_size > config.vocab_size:
        raise UserError(
            f"{tokens.folder}: the tokenizer has ids up to {tokens.vocab_size - 1}, the model only "
            f"{config.vocab_size} embeddings; they do not belong together"
        )


def _load_tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in _FILES):
        raise UserError(f"{folder}: no tokenizer there (looked for {', '.join(_FILES)})")
    # Only tokenizers are wanted: no advice on standard error that PyTorch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        return _tokenizer_class(folder).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged tokenizer raises a bare Exception from Rust
        line = " ".join(str(error).split())
        raise UserError(f"{folder}: the tokenizer does not load ({line})") from None


def _tokenizer_class(folder: Path) -> Any:
    """What `AutoTokenizer` would take for the folder. For Llama 3's the answer is known, and to ask
    imports every model's configuration, and torch where it is installed: seconds of every start."""
    try:
        fields = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        known = fields["tokenizer_class"] in _PLAIN and "auto_map" not in fields
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    # Imported here: shapes and weights do without it.
    if known and (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    return Loader


def _own_template(tokenizer: Any, folder: Path) -> str | None:
    """The folder's chat template, or None. Of several the one named `default`."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(f"{folder}: chat templates {sorted(template)}, none named 'default'")
        return template["default"]
    return template


def _sha256(folder: Path, template: str) -> str:
    digest = hashlib.sha256(template.encode())
    for name in _HASHED:
        if (folder / name).is_file():
            digest.update(f"\n{name}\n".encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def _begins(short: tuple[int, ...], long: tuple[int, ...]) -> bool:
    return len(short) < len(long) and long[: len(short)] == short


def _without_extensions(sequences: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Leave out what another sequence of the same option begins: it is the same event twice."""
    return [s for s in sequences if not any(_begins(other, s) for other in sequences)]
