"""How many questions each topic is asked for, after which examples, and what came of it."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.parsing import Refusal, Written, from_item, topic_id
from jaxalign.surveys.survey import Survey

MOST_REQUESTS = 1 << 20  # of a topic, so that topic and request number fit 32 bits together
_MOST_TOPICS = 1 << 11


@dataclasses.dataclass(frozen=True)
class Writing:
    """How many questions are asked for, and after which examples."""

    per_topic: int = 1000
    """Questions of each topic."""
    per_round: int = 32
    """Requests of a topic at a time; its examples are drawn from what came before these."""
    attempts: float = 5.0
    """Requests per question wanted, after which a topic ends short."""
    examples: int = 5
    """Examples in a request."""
    own_examples: int = 2
    """How many of them the model wrote itself, once it has written so many."""
    seed: int = 0
    """Of examples and replies."""

    def __post_init__(self) -> None:
        if not 1 <= self.per_topic <= 100_000:
            raise UserError(f"--per-topic {self.per_topic}: give 1 to 100000")
        if self.per_round < 1:
            raise UserError(f"--per-round {self.per_round}: give at least 1")
        if not self.per_topic <= self.most_requests < MOST_REQUESTS:
            raise UserError(
                f"--attempts {self.attempts}: give 1 to {MOST_REQUESTS // self.per_topic - 1} "
                f"for {self.per_topic} questions a topic"
            )
        if not 0 <= self.own_examples <= self.examples <= 50 or self.examples < 1:
            raise UserError(
                f"--examples {self.examples} --own-examples {self.own_examples}: give 1 to 50 "
                "examples, of which own ones are a part"
            )
        if not 0 <= self.seed < 1 << 32:
            raise UserError(f"--seed {self.seed}: give 0 to {(1 << 32) - 1}")

    @property
    def most_requests(self) -> float:
        return self.per_topic * self.attempts


@dataclasses.dataclass(frozen=True)
class TopicCount:
    """What became of one topic's requests; `refused` counts replies by reason."""

    topic: str
    requests: int
    accepted: int
    refused: dict[str, int]


@dataclasses.dataclass
class Topic:
    """Where a topic stands."""

    name: str
    index: int
    seeds: list[Written]
    accepted: list[Written] = dataclasses.field(default_factory=list)
    refused: Counter[str] = dataclasses.field(default_factory=Counter)
    requests: int = 0

    def next_requests(self, writing: Writing) -> int:
        """How many requests the next round sends; 0 when the topic has ended."""
        missing = writing.per_topic - len(self.accepted)
        before_own = writing.own_examples - len(self.accepted)
        at_once = before_own if before_own > 0 else writing.per_round
        return max(0, min(missing, at_once, int(writing.most_requests) - self.requests))

    def examples(self, writing: Writing, request: int) -> list[Written]:
        """Own ones once there are enough; where seeds are fewer than wanted, more own ones."""
        random = np.random.default_rng([writing.seed, zlib.crc32(self.name.encode()), request])
        own = writing.own_examples if len(self.accepted) >= writing.own_examples else 0
        seeds = min(writing.examples - own, len(self.seeds))
        if own:
            own = min(writing.examples - seeds, len(self.accepted))
        drawn = [*_draw(random, self.seeds, seeds), *_draw(random, self.accepted, own)]
        return _draw(random, drawn, len(drawn))

    def take(self, found: Written | Refusal) -> None:
        self.requests += 1
        if isinstance(found, Refusal):
            self.refused[found.reason] += 1
        else:
            self.accepted.append(dataclasses.replace(found, topic=self.name))


def _draw(random: np.random.Generator, some: Sequence[Written], count: int) -> list[Written]:
    return [some[i] for i in random.permutation(len(some))[:count]]


def make_topics(survey: Survey) -> list[Topic]:
    """Topics in the survey's order. UserError where an item has none or two would share ids."""
    by_name: dict[str, list[Written]] = {}
    for item in survey.items:
        if not item.topic.strip():
            raise UserError(f"survey {survey.name!r}, item {item.id!r}: a seed needs a topic")
        by_name.setdefault(item.topic, []).append(from_item(item))
    if len(by_name) > _MOST_TOPICS or len(set(map(topic_id, by_name))) < len(by_name):
        raise UserError(f"survey {survey.name!r}: topics {list(by_name)[:20]} are too alike")
    return [Topic(name, i, seeds) for i, (name, seeds) in enumerate(by_name.items())]
