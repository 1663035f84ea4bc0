"""Prompt texts as files. A user may read and replace them; a run keeps the ones it used.

Three places may hold a text, NAME.jinja, and the first that has it counts: the user's folder; the
folder `prompts` of a model that was trained on certain texts, as the pocket model was; and this
package, in the language asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from importlib import resources
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.core.files import check_path
from jaxalign.core.templates import names_used, render
from jaxalign.surveys.names import GroupName, group_name
from jaxalign.surveys.presentations import PUBLISHED, Reply, Shown, present
from jaxalign.surveys.survey import Item, Survey

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}
_NAMES = ("item", "persona")
_LABEL_NAMES = ("item_label", "neutral")  # needed only where options are read by their text
_FEW = 0.002  # share of a text's letters: names and loan words


class _MissingTextError(UserError):
    """No place has a text in the language asked for."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The texts of a question and of a persona, as jinja sources.

    Attributes:
        item: The question; it may use `item`, `options`, a list of pairs of number or letter and
            label from the top, and `letters`, whether they are letters.
        persona: The line that names a country; it may use `country` ("United States"),
            `article_country` ("the United States") and, for countries in English, `demonym`
            ("American"). Of a group below the country it must use `person` ("a woman aged 30 to 49
            from the United States"), `people` or `values`.
        language: Language of the country names.
        item_label: The question where the reply is an option's text; it may use what `item` may.
            The package's own does not list the options. None where there is none in the language.
        neutral: A question that says nothing about its subject, such as "What is your answer?".
        presentation: How `user` shows an item that is not `Shown` yet, such as an example in
            context; see `jaxalign.surveys.presentations`.
        reply: What answers such an item: an option's "mark" or its text, the "label".
    """

    item: str
    persona: str
    language: str = "en"
    item_label: str | None = None
    neutral: str | None = None
    presentation: str = PUBLISHED
    reply: Reply = "mark"

    def shown(self, item: Item | Shown) -> Shown:
        """Return an item as these texts show it; what is shown already stays as it is."""
        return present(item, self.presentation, self.reply)

    def user(self, item: Item | Shown) -> Message:
        """Return an item's question as the user's message."""
        shown = self.shown(item)
        name = "item" if shown.reply == "mark" else "item_label"
        text = render(
            f"{name}.jinja",
            self._text(name),
            item=shown.item,
            options=list(shown.pairs),
            letters=shown.has_letters,
        )
        return {"role": "user", "content": text}

    def neutral_question(self, shown: Shown) -> Shown:
        """Return the neutral question with the options of an item that is read by label.

        How likely a text is as an answer to it is the text's prior.
        """
        item = shown.item
        neutral = Item(
            "neutral", self._text("neutral").strip(), item.options, item.codes, "nominal"
        )
        return dataclasses.replace(shown, item=neutral)

    def _text(self, name: str) -> str:
        """Return one of the texts. Raise UserError where there is none in the language."""
        text = getattr(self, name)
        if text is None:
            raise UserError(
                f"`language` {self.language!r}: the package has no text {name}.jinja in it, which "
                "reading by label needs; give a folder with your own"
            )
        return text

    def system(self, group: str) -> Message:
        """Return the persona line as the system message.

        Args:
            group: A country's code or English name; a group within one, such as `USA:female`; or
                how the line calls another group.

        Raises:
            UserError: The text cannot be filled in, or would not say which group of a country is
                meant.
        """
        values = dataclasses.asdict(self.name_of(group))
        # There are no words for a person in some languages, so a text may use `person` in vain.
        telling = [name for name in ("person", "people", "values") if values[name] is not None]
        if telling and not names_used(self.persona) & set(telling):
            named = " or ".join(f"`{name}`" for name in telling)
            raise UserError(
                f"prompt text persona.jinja: says nothing of {group} but the country; use {named}"
            )
        region = (values["values"] or {}).get("region", "")
        if region.isdecimal():
            raise UserError(
                f"{group}: region {region} has no name in this file; read the survey's SPSS or "
                "Stata edition, which holds the names of regions"
            )
        # A text that needs an adjective is refused where there is none, instead of saying "None".
        values = {name: value for name, value in values.items() if value is not None}
        text = render("persona.jinja", self.persona, **values)
        if not text:
            raise UserError(
                f"prompt text persona.jinja: says nothing for {group}; correct the file"
            )
        return {"role": "system", "content": text}

    def name_of(self, group: str) -> GroupName:
        """Return what the texts call a group, given as for `system`."""
        return group_name(group, self.language)


def load_prompts(
    folder: Path | None = None, *, language: str = "en", model_folder: Path | None = None
) -> Prompts:
    """Return the texts of a question and of a persona, from the first place that has each.

    Args:
        folder: The user's own texts, `folder/NAME.jinja`.
        language: Language of the package's texts and of the country names.
        model_folder: Folder of the model that is asked. Texts in its folder `prompts` are preferred
            to the package's English ones.

    Raises:
        UserError: `folder` does not exist, a file in it cannot be read, or the package has no texts
            in the language.
    """
    if folder is not None:
        check_path(folder, "prompts")
    if folder is not None and not folder.is_dir():
        raise UserError(f"`prompts` {folder}: no such folder")
    group_name("USA", language)  # refuses a language that is unknown
    texts = {
        name: read_prompt(name, folder, language=language, model_folder=model_folder)
        for name in _NAMES
    }
    for name in _LABEL_NAMES:
        # A language of the user's own may do without these.
        with contextlib.suppress(_MissingTextError):
            texts[name] = read_prompt(name, folder, language=language, model_folder=model_folder)
    return Prompts(**texts, language=language)


def read_prompt(
    name: str, folder: Path | None, *, language: str = "en", model_folder: Path | None = None
) -> str:
    """Return the source of one text, from the first place that has it; see `load_prompts`.

    Raises:
        UserError: The file in `folder` cannot be read or is not UTF-8, or no place has the text in
            this language.
    """
    places = [folder]
    if model_folder is not None and language == "en":
        places.append(model_folder / "prompts")
    for place in places:
        if place is not None and (path := place / f"{name}.jinja").is_file():
            return _read_text(path)
    texts = resources.files("jaxalign.prompts")
    own = (texts if language == "en" else texts / language) / f"{name}.jinja"
    if not own.is_file():
        raise _MissingTextError(
            f"`language` {language!r}: the package has no prompt texts in it; give a folder with "
            f"your own {name}.jinja"
        )
    return own.read_text("utf-8")


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{path}: not a text (it holds a NUL character); save it as UTF-8")
    return text


def untranslated(language: str, survey: Survey) -> str | None:
    """Return a note where a survey's questions are in another language than the texts around them.

    A survey does not say its language. If hardly a letter of its questions lies outside ASCII, they
    are taken for English.

    Args:
        language: Language of the prompt texts.
        survey: What is asked.
    """
    if language == "en":
        return None
    texts = (t for item in survey.items for t in (item.stem, item.text, *item.options))
    letters = [c for text in texts for c in text if c.isalpha()]
    if sum(not c.isascii() for c in letters) > _FEW * len(letters):
        return None
    return (
        f"`language` {language}: the questions and options of {survey.name!r} seem to be in "
        f"English and are asked as they are; only the texts around them are in {language}"
    )


def icl_messages(prompts: Prompts, examples: list[tuple[Item, int]]) -> list[Message]:
    """Return answered example items as turns of a conversation.

    Args:
        prompts: The texts.
        examples: Items, each with the index of the option that is the answer. They are shown in
            the presentation of `prompts`.
    """
    turns: list[Message] = []
    for item, answer in examples:
        reply = {"role": "assistant", "content": prompts.shown(item).reply_of(answer)}
        turns += [prompts.user(item), reply]
    return turns
