"""The tokenizer and chat template of a model folder, through transformers.

A conversation is first rendered by the template and then tokenised without adding special tokens: a
Llama-3 template writes `<|begin_of_text|>` itself, and a second one from the tokenizer would double
it.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jaxalign.core.errors import UserError
from jaxalign.core.json_text import parse_json, reason
from jaxalign.core.templates import render_chat
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.families import FAMILIES
from jaxalign.lm.safetensors_io import check_not_pointer

BEGIN, END, TURN_END = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
_MARKER = re.compile(r"<\|[^|<>\s]+\|>")
# What some chat templates (Zephyr's, TinyLlama's) write as plain text.
_TEXT_MARKERS = {"<|system|>", "<|user|>", "<|assistant|>"}
# Other ends of a turn that a Llama 3 writes; of a model tuned with another template they are left
# overs of its vocabulary.
_LLAMA3_STOPS = (TURN_END, "<|eom_id|>")
_REPLY = "Fairly."  # a reply, behind which the chat template ends the turn
_MARK = "\u2045reply\u2046"  # a reply that no template rewrites
_AS_TEXT = "\ue0f7"  # behind the first character of a special token's name that is text
_COMPARED = 16  # characters before a reply by which a prompt is recognised
_SAMPLE = "How happy are you, from 1 to 10?"
_CAPITALS = frozenset(string.ascii_uppercase)
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_HASHED = (*_FILES, "tokenizer_config.json", "special_tokens_map.json", "merges.txt")
# Without a date, the template of Llama 3.1 prints this one, and that of 3.2 prints today's, which
# would make a run depend on the day it is resumed.
_DATE = datetime.date(2024, 7, 26)  # what templates take for today, so that no run depends on it

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Converts text and conversations to token ids and back.

    Attributes:
        tokenizer: The `transformers.PreTrainedTokenizerBase`.
        template: The chat template, as jinja source.
        folder: The model folder.
        sha256: A hash of the tokenizer's files and the template.
        vocab_size: One more than the largest id.
        eot_id: The id that ends a turn, as the chat template writes it.
        turn_end: What the chat template writes behind a reply, up to and including that id.
        bos_id: The id that begins a text, if there is one.
        stop_ids: Token ids that end a reply: the end of a turn, the end of text, and those that
            `generation_config.json` (without one, `config.json`) lists.
        template_values: What the chat template is told besides, by the model's family.
    """

    tokenizer: Any = dataclasses.field(repr=False)
    template: str = dataclasses.field(repr=False)
    folder: Path
    sha256: str
    vocab_size: int
    eot_id: int
    turn_end: str
    bos_id: int | None
    stop_ids: tuple[int, ...]
    template_values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Load the tokenizer of a model folder; nothing is downloaded.

        Raises:
            UserError: If there is none, if it does not load or loses text, if it lacks special
                tokens that the chat template (the folder's, else ours) writes, or if no token ends
                a turn.
        """
        folder = Path(folder)
        tokenizer = _load_tokenizer(folder)
        vocab, template = tokenizer.get_vocab(), _own_template(tokenizer, folder)
        template = default_template() if template is None else template
        eos, bos, values = tokenizer.eos_token_id, tokenizer.bos_token_id, _template_values(folder)
        tokens = cls(
            tokenizer=tokenizer,
            template=template,
            folder=folder,
            sha256=_sha256(folder, template, values),
            vocab_size=max(vocab.values()) + 1,
            eot_id=-1,  # these are known once the template has been rendered
            turn_end="",
            bos_id=vocab.get(BEGIN) if bos is None else bos,
            stop_ids=(),
            template_values=values,
        )
        tokens._check_markers(vocab)
        tokens._check_round_trip()
        turn_end, eot = tokens._end_of_turn(vocab, eos)
        stops = {vocab.get(END), eos, eot} | _generation_stops(folder)
        if eot == vocab.get(TURN_END):
            stops |= {vocab.get(name) for name in _LLAMA3_STOPS}
        stop_ids = tuple(sorted(stops - {None}))
        return dataclasses.replace(tokens, eot_id=eot, turn_end=turn_end, stop_ids=stop_ids)

    def _check_markers(self, vocab: dict[str, int]) -> None:
        """Check that every `<|marker|>` the template writes is one token, or meant as text."""
        written = _MARKER.findall(self.render([{"role": "user", "content": "?"}]))
        known = vocab.keys() | _TEXT_MARKERS
        if unknown := [name for name in dict.fromkeys(written) if name not in known]:
            raise UserError(
                f"{self.folder}: the tokenizer lacks {', '.join(unknown)}, which the chat template "
                "writes; give the folder of a Llama-3 with its tokenizer"
            )

    def _check_round_trip(self) -> None:
        """Check that text survives, spaces included.

        Raises:
            UserError: If decoding what was encoded does not give the text.
        """
        if (back := self.decode(self.encode(_SAMPLE))) != _SAMPLE:
            raise UserError(
                f"{self.folder}: the tokenizer turns {_SAMPLE!r} into {back!r}; "
                "its tokenizer.json is damaged or of another model"
            )

    def _end_of_turn(self, vocab: dict[str, int], eos: int | None) -> tuple[str, int]:
        """Return what the chat template writes behind a reply, and the token that it ends with.

        Where it writes none, the token is `<|eot_id|>`, else the end of text.

        Raises:
            UserError: If there is none of these.
        """
        end = self._behind_reply()
        for token in self.encode(end):
            if (added := self.tokenizer.added_tokens_decoder.get(token)) is not None:
                return end[: end.index(added.content) + len(added.content)], token
        if (eot := vocab.get(TURN_END, eos)) is None:
            raise UserError(
                f"{self.folder}: the chat template ends no turn, and the tokenizer has neither "
                f"{TURN_END} nor an eos_token"
            )
        return end, eot

    def _behind_reply(self) -> str:
        """Return what the template writes behind a reply, without the header of another turn.

        Some templates begin the assistant's next turn whether they are asked to or not. So what
        stands behind a reply that ends the chat is compared with what stands behind one that the
        user replies to.
        """
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}]
        text = self.render(chat, add_generation_prompt=False)
        _, found, behind = text.rpartition(_REPLY)
        if not found:
            return ""
        if self.render(chat) != text:  # the template begins no turn that it was not asked for
            return behind
        try:
            longer = self.render([*chat, {"role": "user", "content": "?"}], False)
        except UserError:
            return behind
        same = _common_beginning(behind, longer.rpartition(_REPLY)[2])
        if any(token in self.tokenizer.added_tokens_decoder for token in self.encode(same)):
            return same
        return behind if same == behind else same[: len(same) - len(same.lstrip())]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens only where the text spells them.

        Raises:
            UserError: If the text holds half of a surrogate pair, as a broken "\\ud83d" in JSON
                leaves behind.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            broken = text[max(0, error.start - 20) : error.end]
            raise UserError(f"text that is not Unicode: ...{broken!r}") from None
        if _AS_TEXT not in text:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids, end = [], 0
        for quoted in re.finditer(self._special_names.replace("<>", _AS_TEXT), text):
            ids += self.tokenizer(text[end : quoted.start()], add_special_tokens=False)["input_ids"]
            name = quoted[0].replace(_AS_TEXT, "", 1)
            ids += self.tokenizer(name, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
            end = quoted.end()
        return ids + self.tokenizer(text[end:], add_special_tokens=False)["input_ids"]

    @functools.cached_property
    def _special_names(self) -> str:
        """A pattern of the special tokens' names, with `<>` behind the first character."""
        added = self.tokenizer.added_tokens_decoder.values()
        names = sorted((str(token) for token in added if token.special), key=len, reverse=True)
        return "|".join(f"{re.escape(name[:1])}<>{re.escape(name[1:])}" for name in names if name)

    def _as_text(self, content: str) -> str:
        """Return a message in which the names of special tokens are marked as text."""
        if not (names := self._special_names):
            return content
        return re.sub(names.replace("<>", ""), lambda m: m[0][:1] + _AS_TEXT + m[0][1:], content)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, including special tokens."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the conversation as the template writes it.

        Whoever wrote a message did not write the conversation: the name of a special token in it,
        such as `<|eot_id|>` in a survey's text, is marked as text for `encode`.

        Raises:
            UserError: If the template fails, with its message.
        """
        messages = [m | {"content": self._as_text(m["content"])} for m in messages]
        try:
            return render_chat(
                self.template,
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                date_string=f"{_DATE:%d %b %Y}",
                today=_DATE,
                **self.template_values,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:  # a template may raise anything
            line = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.folder}: chat template: {line}") from None

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """Return the ids of a conversation, by default up to where the assistant's reply begins."""
        return self.encode(self.render(messages, add_generation_prompt))

    def split_reply(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Split a conversation that ends with a reply, as the template writes it.

        Returns:
            What stands before the reply: the prompt that the model is given, and whatever the
            template writes between that and a reply. And the reply with the template's own end of
            the turn, without what some templates write behind that, such as another header.

        Raises:
            UserError: If the template writes a prompt differently once it has been replied to, so
                that the beginning of the reply cannot be found.
        """
        prompt = self.render(messages[:-1])
        whole = self.render(messages, add_generation_prompt=False)
        reply = self._as_text(messages[-1]["content"]).strip()
        rest = whole.removeprefix(prompt)
        if not whole.startswith(prompt) or not rest.lstrip().startswith(reply):
            # Where a reply begins does not depend on what it says.
            marked = self.render([*messages[:-1], {**messages[-1], "content": _MARK}], False)
            before, found, _ = marked.partition(_MARK)
            blanks = len(before) - len(before.rstrip())
            ends = [len(before) - blank for blank in range(blanks + 1)]
            if before.startswith(prompt):
                start = max(len(prompt), len(before) - blanks)
                prompt = before[:start]
            else:
                near = prompt[-_COMPARED:]
                start = next((end for end in ends if before[:end].endswith(near)), -1)
            if not found or start < 0 or not whole.startswith(before):
                raise UserError(
                    f"{self.folder}: the chat template writes a prompt differently once it has a "
                    "reply, so the beginning of the reply cannot be found"
                )
            rest = whole[start:]
        blanks = len(rest) - len(rest.lstrip())
        at = blanks + len(reply) if rest.startswith(reply, blanks) else 0
        end = rest.find(self.turn_end, at)
        if end < 0:  # a turn that the template does not end
            return prompt, rest[:at] if at else rest
        return prompt, rest[: end + len(self.turn_end)]

    def encode_chat_split(
        self, messages: Sequence[Message], sentinel: str, add_generation_prompt: bool = True
    ) -> tuple[list[int], list[int]]:
        """Return the ids before and after `sentinel`, a text in the content of one message.

        The two sides are tokenised separately, so that a soft prompt can stand between them.

        Raises:
            UserError: If the rendered text does not hold `sentinel` exactly once.
        """
        text = self.render(messages, add_generation_prompt)
        if not sentinel or text.count(sentinel) != 1:
            count = text.count(sentinel) if sentinel else 0
            raise UserError(f"the chat holds {sentinel!r} {count} times; once is needed")
        before, after = text.split(sentinel)
        return self.encode(before), self._encode_inside(after)

    def _encode_inside(self, text: str) -> list[int]:
        """Return the ids of a text that does not begin the conversation.

        SentencePiece's tokenizers put a space in front of whatever they are given.
        """
        # Behind a line break, the added space is not at the text but at the break.
        before, whole = self.encode("\n"), self.encode(f"\n{text}")
        if not self.adds_space or whole[: len(before)] != before:
            return self.encode(text)
        return whole[len(before) :]

    @functools.cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space in front of a text."""
        return self.encode("x") != self.encode("\nx")[len(self.encode("\n")) :]

    def option_tokens(self, marks: Sequence[int | str]) -> list[list[tuple[int, ...]]]:
        """Return all spellings of every option's number or letter, as exclusive token sequences.

        Spellings are the bare mark, as the tokenizer writes it right after the assistant header,
        and every single token that reads as it, such as one with a space before it. (A space token
        followed by the mark's is left out, unless the chat template writes a space before a reply,
        as Llama 2's does: otherwise it is a rare way to the same reply and would cost one more
        position per item.) If one option's sequence is the beginning of another's ("1" and "10",
        digit by digit), the end of turn is appended to all sequences, so that they are comparable.

        Args:
            marks: Numbers or capital letters.

        Raises:
            UserError: If a mark is repeated, or cannot be written by the tokenizer.
        """
        if repeated := [mark for mark, count in Counter(marks).items() if count > 1]:
            raise UserError(f"option {repeated[0]} is there twice")
        # Candidates first, then without those that another spelling of the same option implies.
        texts = [str(mark) for mark in marks]
        single = self._letter_tokens if texts[0].isalpha() else self._number_tokens
        spellings = [self._spellings(text, single.get(text, [])) for text in texts]
        return self._comparable([_without_extensions(sequences) for sequences in spellings])

    def label_tokens(self, labels: Sequence[str]) -> list[list[tuple[int, ...]]]:
        """Return all spellings of every option's text as the reply to a question.

        Spellings are the text as it is given and, as replies begin with a capital letter more often
        than not, with one. As in `option_tokens`, the end of turn is appended to all where one text
        is the beginning of another, such as "agree" and "agree strongly".

        Raises:
            UserError: If a text is empty, or two options have the same.
        """
        spellings = [
            tuple(dict.fromkeys((t, t[:1].upper() + t[1:]))) for t in map(str.strip, labels)
        ]
        if repeated := [t for t, count in Counter(s[-1] for s in spellings).items() if count > 1]:
            raise UserError(f"option text {repeated[0]!r} is there twice")
        if not all(map(all, spellings)):
            raise UserError(f"an option of {list(labels)} has no text")
        space = " " if self._space_before_reply else ""
        return self._comparable(
            [[self._after_header(f"{space}{text}") for text in texts] for texts in spellings]
        )

    def _comparable(self, options: list[list[tuple[int, ...]]]) -> list[list[tuple[int, ...]]]:
        """Return spellings whose probabilities compare: none is the beginning of another."""
        sequences = [sequence for option in options for sequence in option]
        if any(_begins(a, b) for a in sequences for b in sequences):
            return [[(*sequence, self.eot_id) for sequence in option] for option in options]
        return options

    def _spellings(self, number: str, tokens: list[int]) -> list[tuple[int, ...]]:
        """Return the spellings of a number or letter, given the single tokens that decode to it."""
        bare, spaced = (self._after_header(text) for text in (number, f" {number}"))
        single = [ids for ids in (spaced, *((token,) for token in tokens)) if len(ids) == 1]
        written = [spaced] if self._space_before_reply else []
        distinct = dict.fromkeys([*written, bare, *single])
        spellings = [ids for ids in distinct if self.decode(ids).strip() == number]
        if not spellings:
            raise UserError(f"{self.folder}: the tokenizer cannot write option {number!r}")
        return spellings

    def _after_header(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text` after the assistant header.

        The header's ids are fixed before the model begins to answer. If its last token would merge
        with `text`, `text` is tokenised separately. Where a template has no header, the whole
        prompt stands in its place.
        """
        # If the header's ids change with the text behind them, the two have merged.
        header, before = self._header
        whole = self.encode(header + text)
        merged = whole[: len(before)] != before
        return tuple(self._encode_inside(text) if merged else whole[len(before) :])

    @functools.cached_property
    def _header(self) -> tuple[str, list[int]]:
        """What the chat template writes between the last message and a reply, and its ids."""
        question = [{"role": "user", "content": "?"}]
        prompt = self.render(question)
        header = prompt[len(self.render(question, add_generation_prompt=False)) :] or prompt
        return header, self.encode(header)

    @functools.cached_property
    def _space_before_reply(self) -> bool:
        """Whether the chat template writes a space between the prompt and a reply."""
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _REPLY}]
        try:
            return self.split_reply(chat)[1].startswith(f" {_REPLY}")
        except UserError:
            return False

    @functools.cached_property
    def _number_tokens(self) -> dict[str, list[int]]:
        """Return the single tokens that decode to each number, white space aside.

        Vocabularies write ASCII digits as themselves, so only tokens whose name ends with a digit
        need to be decoded.
        """
        by_number: dict[str, list[int]] = {}
        for name, token in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if name[-1:].isdigit() and name.isprintable() and len(name) < 8:
                by_number.setdefault(self.decode([token]).strip(), []).append(token)
        return by_number

    @functools.cached_property
    def _letter_tokens(self) -> dict[str, list[int]]:
        """Return the single tokens that decode to each capital letter, white space aside."""
        by_letter: dict[str, list[int]] = {}
        for name, token in sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1]):
            if name[-1:] in _CAPITALS and len(name) < 4:
                text = self.decode([token]).strip()
                if len(text) == 1:
                    by_letter.setdefault(text, []).append(token)
        return by_letter


def default_template() -> str:
    """Return our own Llama-3 chat template, for folders that have none."""
    return (resources.files("jaxalign") / "prompts" / "llama3_chat.jinja").read_text("utf-8")


def check_vocabulary(tokens: Tokenizer, config: LlamaConfig) -> None:
    """Raise UserError if the tokenizer has ids that the model has no embeddings for."""
    if tokens.vocab_size > config.vocab_size:
        raise UserError(
            f"{tokens.folder}: the tokenizer has ids up to {tokens.vocab_size - 1}, the model only "
            f"{config.vocab_size} embeddings; they do not belong together"
        )


def _load_tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in _FILES):
        raise UserError(f"{folder}: no tokenizer there (looked for {', '.join(_FILES)})")
    for name in _HASHED:
        check_not_pointer(folder / name)
    # Only tokenizers are used, so transformers need not warn that PyTorch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        return _tokenizer_class(folder).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged tokenizer raises a bare Exception from Rust
        line = " ".join(str(error).split())
        raise UserError(f"{folder}: the tokenizer does not load ({line})") from None


def _tokenizer_class(folder: Path) -> Any:
    """Return the class that reads the folder's `tokenizer.json` as it is, if there is one.

    Classes with the name of a model (`GPT2Tokenizer`, `LlamaTokenizerFast`) put the parts of that
    model's tokenizer in the place of what the file says: SmolLM2 loses its single digits, and a
    byte-level Llama its spaces with some versions of transformers. `AutoTokenizer` also imports
    the configuration of every model, and torch if it is installed, which takes seconds.
    """
    # Imported here, because shapes and weights do not need transformers.
    if (folder / "tokenizer.json").is_file() and not _own_code(folder):
        from transformers import PreTrainedTokenizerFast as Loader
    else:
        from transformers import AutoTokenizer as Loader
    return Loader


def _own_code(folder: Path) -> bool:
    """Whether the folder wants its tokenizer to be read by code of its own."""
    try:
        return "auto_map" in parse_json((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _own_template(tokenizer: Any, folder: Path) -> str | None:
    """Return the folder's chat template, or None; of several, the one named `default`."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            raise UserError(f"{folder}: chat templates {sorted(template)}, none named 'default'")
        return template["default"]
    return template


def _template_values(folder: Path) -> Mapping[str, Any]:
    """Return what the chat templates of the model's family are told; nothing without a family."""
    try:
        model_type = parse_json((folder / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, TypeError, KeyError):  # `read_config` reports what is wrong
        return {}
    known = isinstance(model_type, str) and model_type in FAMILIES
    return FAMILIES[model_type].template_values if known else {}


def _generation_stops(folder: Path) -> set[int]:
    """Return the tokens that end a reply by the folder's `generation_config.json`, if it has one.

    Without one, those of `config.json` count, as they do for transformers.

    Raises:
        UserError: If the file is damaged.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        path = folder / "config.json"
    if not path.is_file():
        return set()
    check_not_pointer(path)
    try:
        stops = parse_json(path.read_text("utf-8")).get("eos_token_id")
    except AttributeError:
        raise UserError(f"{path}: not a JSON object") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON object ({reason(error)})") from None
    listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if wrong := [stop for stop in listed if type(stop) is not int or stop < 0]:
        raise UserError(f"{path}: eos_token_id {wrong[0]!r} is not the id of a token")
    return set(listed)


def _sha256(folder: Path, template: str, values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(template.encode())
    if values:
        digest.update(f"\n{json.dumps(dict(values), sort_keys=True)}".encode())
    for name in _HASHED:
        if (folder / name).is_file():
            digest.update(f"\n{name}\n".encode() + (folder / name).read_bytes())
    return digest.hexdigest()


def _common_beginning(a: str, b: str) -> str:
    pairs = zip(a, b, strict=False)
    return a[: next((n for n, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))]


def _begins(short: tuple[int, ...], long: tuple[int, ...]) -> bool:
    """Whether `long` starts with `short` and is longer."""
    return len(short) < len(long) and long[: len(short)] == short


def _without_extensions(sequences: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Leave out sequences that extend another one: the option is already certain before them."""
    return [s for s in sequences if not any(_begins(other, s) for other in sequences)]
