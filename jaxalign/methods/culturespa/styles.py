"""The prompt styles of CultureSPA: whom the model speaks as, and what it reads before a question.

    unaware   a real person with values of their own, of no named culture
    p1        culture-aware: that person, from the country
    p2        cross-culture thinking: p1 and the countries most like it and most unlike it
    p3        self-alignment: `unaware`, then related questions with the country's majority answers
    p1p3      p1, then those questions           p2p3      p2, then those questions

P3's questions are those of the item's topic, or those most like it (`similar`). They are shown as
turns of the conversation, or, as published, all in the system message (`p3_form`), in the
presentation in which the item itself is shown.

A country may be any group that the survey has answers of. Which groups are alike (p2) and what most
people of a group answer (p3) are read from a survey. The paper reads them from the very survey that
the model is tested on. `examples="leak_free"` takes both from another survey, and never from the
topic of the question asked; `StylePrompts.leaks` tells which styles read the test.

Source: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv 2410.12971). The texts are this
package's own (`jaxalign/prompts`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import encode
from jaxalign.core.errors import UserError
from jaxalign.core.templates import render
from jaxalign.lm.tokenizer import Tokenizer
from jaxalign.methods.base import PROMPTED
from jaxalign.methods.conditions import draw_examples
from jaxalign.methods.culturespa.similar import Similarity
from jaxalign.prompts import Message, Prompts, icl_messages, load_prompts, read_prompt
from jaxalign.stats.alignment import between_countries
from jaxalign.surveys.names import country_name
from jaxalign.surveys.presentations import Shown, present
from jaxalign.surveys.survey import Item, Survey
from jaxalign.surveys.tables import make_tables

Style = Literal["unaware", "p1", "p2", "p3", "p1p3", "p2p3"]
Examples = Literal["paper", "leak_free"]
P3Form = Literal["turns", "one_message"]
P3_CHOICES = ("topics", "similar")  # or a file that ranks questions
STYLES: tuple[Style, ...] = tuple(method.key for method in PROMPTED)
NO_GROUP = ("",)  # the group of a style that names none


@dataclasses.dataclass(frozen=True)
class Texts:
    """Prompt texts as jinja sources.

    `cross_culture` may use `persona`, the rendered persona line, and `similar` and `different`,
    lists of `GroupName`; `unaware` uses no name. `self_alignment` is the one message of P3: it may
    use `persona`, the rendered text of the style that P3 is combined with, and `examples`, each
    with `question`, `options` (pairs of code and label), and `answer`, the code of the majority.
    Both may use `country`, `article_country` and `demonym` of the group, as `Prompts.persona` does;
    not so P3 by itself, which names no group.
    """

    prompts: Prompts
    unaware: str
    cross_culture: str
    self_alignment: str


def load_texts(
    folder: Path | None = None, *, language: str = "en", model_folder: Path | None = None
) -> Texts:
    """Return the texts of all styles; the places are those of `jaxalign.prompts.load_prompts`."""
    places = {"language": language, "model_folder": model_folder}
    prompts = load_prompts(folder, **places)  # refuses a folder that does not exist
    names = ("unaware", "cross_culture", "self_alignment")
    return Texts(prompts, *(read_prompt(name, folder, **places) for name in names))


def reads_answers(style: Style) -> bool:
    """Return whether prompts of this style depend on how groups answered a survey."""
    return style not in ("unaware", "p1")


def group_name(group: str) -> str:
    """Return a country's name in English, or the survey's own name of any other group."""
    try:
        return country_name(group)
    except UserError:
        return group


def similar_and_different(
    survey: Survey, group: str, groups: Sequence[str], count: int = 3
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the groups most like one group and those most unlike it, by majority answers.

    Equally similar groups stay in the order of `groups`. If fewer than 2 x `count` others have
    answers to the same items, the nearer half of them is similar and the rest is different.

    Args:
        survey: A survey that says how the groups answered.
        group: The group to compare with.
        groups: The groups to choose from; `group` itself is left out.
        count: Number of similar and of different groups.

    Returns:
        The similar groups, nearest first, and the different groups, farthest first, by alignment
        score of their majority answers.

    Raises:
        UserError: If the survey lacks a group, or there is no other group to compare with.
    """
    others = [other for other in groups if other != group]
    score = between_countries(make_tables(survey, [group, *others]))[0, 1:]
    known = int(np.sum(~np.isnan(score)))
    if not known:
        raise UserError(
            f"{group} and {', '.join(others) or 'others'} answered no item of {survey.name!r} in "
            f"common; leave {group} out"
        )
    nearest = np.argsort(-score, kind="stable")  # NaN comes last in either order
    farthest = np.argsort(score, kind="stable")
    near, far = min(count, (known + 1) // 2), min(count, known // 2)
    return tuple(others[i] for i in nearest[:near]), tuple(others[i] for i in farthest[:far])


@dataclasses.dataclass(frozen=True)
class StylePrompts:
    """The messages of every style, for any group and any question.

    Attributes:
        texts: The prompt texts.
        survey: The survey that the model is tested on.
        groups: The groups that may be asked for or named as neighbours.
        examples: Where p2 and p3 read answers of groups: "paper", the tested survey; "leak_free",
            `source`.
        source: The other survey; must share no question with `survey`.
        count: Number of examples that p3 shows.
        neighbours: Number of similar and of different groups that p2 names.
        seed: Seed of the order in which examples are drawn.
        similarity: Chooses the questions most like the item's as examples; None: those of the
            item's topic first (see `examples_for`).
        p3_form: How examples are shown: as "turns" of the conversation, or in "one_message", the
            system message.
    """

    texts: Texts
    survey: Survey
    groups: tuple[str, ...]
    examples: Examples = "paper"
    source: Survey | None = None
    count: int = 5
    neighbours: int = 3
    seed: int = 0
    similarity: Similarity | None = None
    p3_form: P3Form = "turns"

    def __post_init__(self) -> None:
        if self.examples not in ("paper", "leak_free"):
            raise UserError(f"`examples` {self.examples!r}; paper or leak_free")
        if self.examples == "leak_free":
            _check_source(self.survey, self.source)

    @property
    def shown(self) -> Survey:
        """The survey whose answers may appear in prompts."""
        return self.survey if self.examples == "paper" else self.source

    def leaks(self, style: Style) -> bool:
        """Return whether prompts of this style depend on answers of the tested survey."""
        return self.examples == "paper" and reads_answers(style)

    def lead_in(
        self, style: Style, group: str, item: Item, like: Prompts | None = None
    ) -> list[Message]:
        """Return the messages before `item`: the system message, and the examples of p3 in it or
        after it.

        Args:
            style: The style.
            group: The group; not used by a style that names none.
            item: The question.
            like: Texts in whose presentation examples are shown; default: those of `texts`.
        """
        if style not in STYLES:
            raise UserError(f"style {style!r} is unknown; choose from {', '.join(STYLES)}")
        if style != "unaware" and group not in self.groups:
            raise UserError(f"{group!r} is not among {' '.join(self.groups)}")
        system = self._system(style.removesuffix("p3") or "unaware", group)
        if not style.endswith("p3"):
            return [system]
        majority = self._majorities[group]
        answered = [(example, majority[example.id]) for example in self.examples_for(item)]
        # Examples are shown as the question is, or they would teach the model another numbering.
        prompts = self.texts.prompts
        if like is not None:
            prompts = dataclasses.replace(prompts, presentation=like.presentation, reply=like.reply)
        if self.p3_form == "turns":
            return [system, *icl_messages(prompts, answered)]
        shown = [(prompts.shown(example), answer) for example, answer in answered]
        return [self._one_message(system, shown, {} if style == "p3" else self._names(group))]

    def _one_message(
        self, system: Message, answered: list[tuple[Shown, int]], names: dict[str, str]
    ) -> Message:
        """Return the system message of p3 that holds examples with their answers."""
        examples = [
            {
                "question": f"{example.item.stem} {example.item.text}".strip(),
                "options": list(example.pairs),
                "answer": example.reply_of(answer),
            }
            for example, answer in answered
        ]
        content = render(
            "self_alignment.jinja",
            self.texts.self_alignment,
            persona=system["content"],
            examples=examples,
            **names,
        )
        return {"role": "system", "content": content}

    def conversation(self, style: Style, group: str, item: Item | Shown) -> list[Message]:
        """Return the messages before an item, and the question itself, shown as it is given."""
        return [*self.lead_in(style, group, present(item).item), self.texts.prompts.user(item)]

    def same_lead_in(self, style: Style, items: Sequence[Item]) -> list[list[int]]:
        """Group the positions in `items` that share a lead-in, whichever group it names."""
        if not style.endswith("p3"):
            return [list(range(len(items)))] if items else []
        positions: dict[tuple[str, ...], list[int]] = {}
        for q, item in enumerate(items):
            positions.setdefault(tuple(e.id for e in self.examples_for(item)), []).append(q)
        return list(positions.values())

    def examples_for(self, item: Item) -> tuple[Item, ...]:
        """Return the questions that p3 shows before `item`, the same for every group.

        paper: other questions of the tested survey. leak_free: questions of the other survey, of
        other topics. With a `similarity`, those most like the item; else those of the item's topic
        first, in one order of all questions that the seed draws, so that items of a topic share
        their examples. Fewer than `count` if there are no more.

        Raises:
            UserError: If there is none.
        """
        if item not in self._chosen:
            self._chosen[item] = self._choose(item)
        return self._chosen[item]

    def _choose(self, item: Item) -> tuple[Item, ...]:
        others = [e for e in self._order if (e.stem, e.text) != (item.stem, item.text)]
        if self.examples == "leak_free":
            others = [example for example in others if example.topic != item.topic]
        if self.similarity is not None:
            others = self.similarity.rank(item, others)
        elif self.examples == "paper":
            others.sort(key=lambda example: example.topic != item.topic)
        if not others:
            raise UserError(
                f"item {item.id!r}: {' '.join(self.groups)} all answered no question of "
                f"{self.shown.name!r} that may be shown before it; give a survey with more of them"
            )
        return tuple(others[: self.count])

    @functools.cached_property
    def _chosen(self) -> dict[Item, tuple[Item, ...]]:
        """The examples of each item that was asked so far."""
        return {}

    @functools.cached_property
    def _order(self) -> tuple[Item, ...]:
        """Every item that all groups answered, topics taking turns, in the order drawn."""
        answers = [self.shown.distributions.get(group, {}) for group in self.groups]
        answered = sum(all(item.id in given for given in answers) for item in self.shown.items)
        return draw_examples(self.shown, self.groups, answered, self.seed)

    @functools.cached_property
    def _majorities(self) -> dict[str, dict[str, int]]:
        return {group: self.shown.majority(group) for group in self.groups}

    @functools.cached_property
    def _neighbours(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        return {
            group: similar_and_different(self.shown, group, self.groups, self.neighbours)
            for group in self.groups
        }

    def _system(self, style: str, group: str) -> Message:
        """Return the system message of "unaware", "p1" or "p2", which is rendered once."""
        if (style, group) not in self._systems:
            self._systems[style, group] = self._render_system(style, group)
        return self._systems[style, group]

    @functools.cached_property
    def _systems(self) -> dict[tuple[str, str], Message]:
        return {}

    def _render_system(self, style: str, group: str) -> Message:
        if style == "unaware":
            return _system_message("unaware", self.texts.unaware)
        persona = self.texts.prompts.system(group_name(group))
        if style == "p1":
            return persona
        near, far = (
            list(map(self.texts.prompts.name_of, names)) for names in self._neighbours[group]
        )
        values = {"persona": persona["content"], "similar": near, "different": far}
        values |= self._names(group)
        return _system_message("cross_culture", self.texts.cross_culture, **values)

    def _names(self, group: str) -> dict[str, str]:
        """Return what texts may call a group: `country` and, where there are, the other forms."""
        names = dataclasses.asdict(self.texts.prompts.name_of(group))
        return {form: name for form, name in names.items() if name is not None}


def _system_message(name: str, source: str, **values: object) -> Message:
    content = render(f"{name}.jinja", source, trim_blocks=False, **values)
    return {"role": "system", "content": content}


def _check_source(survey: Survey, source: Survey | None) -> None:
    """Raise UserError unless `source` is another survey than the tested one."""
    if source is None:
        raise UserError("`examples` leak_free needs another survey, `source`, to take answers from")
    tested = {(item.stem, item.text) for item in survey.items}
    if shared := [item.id for item in source.items if (item.stem, item.text) in tested]:
        raise UserError(
            f"{source.name!r} shares {len(shared)} questions with the tested survey "
            f"{survey.name!r} ({shared[0]}, ...): examples from it would not be leak-free"
        )


def groups_asked(style: Style, groups: Sequence[str]) -> tuple[str, ...]:
    """Return whom a style asks for: every group, or nobody (once) if the style names none."""
    return NO_GROUP if style == "unaware" else tuple(groups)


def encode_styles(
    tokens: Tokenizer,
    prompts: StylePrompts,
    styles: Sequence[Style],
    groups: Sequence[str],
    items: Sequence[Item | Shown],
) -> Conversations:
    """Return the conversations of several styles as tokens.

    Every item is asked in every style for every group of `groups_asked`, style by style and group
    by group, so that the results of a style can be reshaped to [C, Q].
    """
    plain = [present(item).item for item in items]
    lead_ins, pairs = [], []
    for style in styles:
        same_lead_in = prompts.same_lead_in(style, plain)
        for group in groups_asked(style, groups):
            # Position of each item's lead-in, and of the item.
            pairs_Qx2 = np.zeros((len(items), 2), np.int32)
            pairs_Qx2[:, 1] = np.arange(len(items))
            for positions in same_lead_in:
                pairs_Qx2[positions, 0] = len(lead_ins)
                lead_ins.append(prompts.lead_in(style, group, plain[positions[0]]))
            pairs.append(pairs_Qx2)
    return encode(tokens, prompts.texts.prompts, lead_ins, items, np.concatenate(pairs))
