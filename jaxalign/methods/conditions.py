"""Conditions without tuning: the question alone, in character, and with examples in context.

These are the baselines that a tuned prompt is compared with. `Plain` is the question under the
model's chat template; `Persona` adds a system message that names the group; `InContext` adds the
persona line and then questions of another survey with that group's majority answers.

Source: the Naive and ICL baselines of Masoud et al. 2025 (arXiv 2503.16094). Their ICL text is not
published, so ours are files (`jaxalign/prompts`) that every run keeps a copy of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.lm.lora import Adapter
from jaxalign.methods.base import ICL, NAIVE, PERSONA, Condition, PlacedPrompt
from jaxalign.prompts import Message, Prompts, icl_messages
from jaxalign.surveys.names import name_of_group
from jaxalign.surveys.survey import Item, Survey


@dataclasses.dataclass(frozen=True)
class Plain(Condition):
    """The question alone, as the user's message under the model's chat template.

    >>> from jaxalign.prompts import load_prompts
    >>> Plain().name, Plain().lead_in(load_prompts())
    ('naive', [])
    """

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return NAIVE.key


@dataclasses.dataclass(frozen=True)
class Persona(Condition):
    """A system message that asks the model to answer as a person of a group.

    Attributes:
        group: the group: a country's ISO 3166 code, or a group within one, such as `USA:female`.
        described_as: what the prompt calls the group; default: the country's name in English.

    >>> from jaxalign.prompts import load_prompts
    >>> persona = Persona("CHN")
    >>> persona.name, persona.lead_in(load_prompts())[0]["role"]
    ('persona CHN', 'system')
    >>> "China" in persona.lead_in(load_prompts())[0]["content"]
    True
    """

    group: str = dataclasses.field()  # required, whatever the protocol's default
    described_as: str | None = None

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return f"{PERSONA.key} {self.group}"

    def lead_in(self, prompts: Prompts) -> list[Message]:
        """Return the persona line as the system message."""
        return [prompts.system(self.described_as or name_of_group(self.group))]


@dataclasses.dataclass(frozen=True)
class InContext(Condition):
    """The persona line, then questions of a survey with the group's majority answers.

    Attributes:
        group: the group: a country's ISO 3166 code, or a group within one, such as `USA:female`.
        survey: where the examples and the group's answers come from. To measure what a model
            learned rather than read, ask another survey than this one.
        examples: how many questions to show, or the items themselves.
        seed: decides which questions are drawn.
        shared_with: other groups that must have answered the questions too. Give all groups of a
            comparison, and all of them are shown the same questions.
        described_as: what the prompt calls the group; default: the country's name in English.

    >>> from jaxalign.pocket.society import held_out_survey
    >>> from jaxalign.prompts import load_prompts
    >>> condition = InContext("CHN", held_out_survey(), examples=2)
    >>> [message["role"] for message in condition.lead_in(load_prompts())]
    ['system', 'user', 'assistant', 'user', 'assistant']
    """

    group: str = dataclasses.field()  # required, whatever the protocol's default
    survey: Survey = dataclasses.field(repr=False)
    examples: int | tuple[Item, ...] = 5
    seed: int = 0
    shared_with: tuple[str, ...] = ()
    described_as: str | None = None

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return f"{ICL.key} {self.group}"

    def items(self) -> tuple[Item, ...]:
        """Return the example questions, in the order in which they are shown.

        Raises:
            UserError: if the survey has fewer questions that the groups answered.
        """
        if isinstance(self.examples, int):
            groups = (self.group, *(g for g in self.shared_with if g != self.group))
            return draw_examples(self.survey, groups, self.examples, self.seed)
        return self.examples

    def lead_in(self, prompts: Prompts) -> list[Message]:
        """Return the persona line, then each example as a question and its answer."""
        answers = self.survey.majority(self.group)
        shown = icl_messages(prompts, [(item, answers[item.id]) for item in self.items()])
        return [prompts.system(self.described_as or name_of_group(self.group)), *shown]


@dataclasses.dataclass(frozen=True)
class WithAdapter(Condition):
    """Another condition, asked of the model with a low-rank adapter.

    Attributes:
        adapter: the adapter, from `fine_tune` or read from a file.
        condition: what the adapted model is asked under.
        label: name in results; default: that of `condition` and "adapted".
    """

    adapter: Adapter = dataclasses.field(repr=False)
    condition: Condition = Plain()
    label: str | None = None

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return self.label or f"{self.condition.name}, adapted"

    @property
    def group(self) -> str | None:
        """The group of the condition that is adapted."""
        return self.condition.group

    @property
    def soft_prompt(self) -> PlacedPrompt | None:
        """The soft prompt of the condition that is adapted."""
        return self.condition.soft_prompt

    def lead_in(self, prompts: Prompts) -> list[Message]:
        """Return the messages of the condition that is adapted."""
        return self.condition.lead_in(prompts)

    def lead_ins(
        self, prompts: Prompts, items: Sequence[Item]
    ) -> tuple[list[list[Message]], np.ndarray]:
        """Return what the condition that is adapted puts before each item."""
        return self.condition.lead_ins(prompts, items)


@dataclasses.dataclass(frozen=True)
class WithPrompt(Condition):
    """Another condition, asked with a soft prompt besides its messages.

    Attributes:
        prompt: the soft prompt, such as a `SoftPrompt`.
        condition: what stands between it and the question.
        label: name in results; default: that of `condition` and "with prompt".
    """

    prompt: PlacedPrompt = dataclasses.field(repr=False)
    condition: Condition = Plain()
    label: str | None = None

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return self.label or f"{self.condition.name}, with prompt"

    @property
    def group(self) -> str | None:
        """The group of the other condition."""
        return self.condition.group

    @property
    def soft_prompt(self) -> PlacedPrompt:
        """The soft prompt."""
        return self.prompt

    def lead_ins(
        self, prompts: Prompts, items: Sequence[Item]
    ) -> tuple[list[list[Message]], np.ndarray]:
        """Return what the other condition puts before each item."""
        return self.condition.lead_ins(prompts, items)


def draw_examples(survey: Survey, groups: Sequence[str], count: int, seed: int) -> tuple[Item, ...]:
    """Draw questions that all groups answered, taking turns between topics.

    Args:
        survey: the survey to draw from, with the groups' answers.
        groups: groups that must have answered a question for it to be drawn.
        count: how many questions to draw.
        seed: decides the draw.

    Returns:
        The questions in the order in which they are to be shown: one of each topic, in an order
        drawn at random, then another of each.

    Raises:
        UserError: if fewer than `count` questions were answered by all groups.
    """
    if refused := [group for group in groups if group in survey.refused]:
        raise UserError(f"survey {survey.name!r}: {survey.why_absent(refused[0])}")
    answered = [
        item
        for item in survey.items
        if all(item.id in survey.distributions.get(group, {}) for group in groups)
    ]
    if len(answered) < count:
        raise UserError(
            f"`icl_examples` {count}: survey {survey.name!r} has {len(answered)} items that "
            f"{', '.join(groups)} answered; ask for fewer, or give another `held_out`"
        )
    shuffled = [answered[i] for i in np.random.default_rng(seed).permutation(len(answered))]
    # turn[i]: how many items of the same topic come before the i-th in the shuffled order.
    drawn_of_topic: dict[str, int] = {}
    turn = []
    for item in shuffled:
        turn.append(drawn_of_topic.get(item.topic, 0))
        drawn_of_topic[item.topic] = turn[-1] + 1
    order = sorted(range(len(shuffled)), key=turn.__getitem__)  # stable: the draw within a turn
    return tuple(shuffled[i] for i in order[:count])
