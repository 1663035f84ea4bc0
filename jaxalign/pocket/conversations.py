"""Training conversations drawn from the simulated society, as rows of tokens with soft targets.

What the pocket model is to do, and the share of rows that teaches it (`MIX`):

    unaware     no or a neutral system message: home's distribution
    persona     a country is named: part of the way from home to the country
    described   a society is described by its dimensions: that society's distribution, in full
    context     earlier turns hold answers of a country's people: the more, the closer to it
    writing     new survey questions as JSON, after examples
    general     small tasks that have nothing to do with culture

Deterministic: batch n of a seed is a pure function of (seed, n).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxalign.pocket import phrases, society
from jaxalign.pocket.corpus import (
    Corpus,
    Question,
    as_json,
    encode,
    opening,
    question_request,
    user_turn,
)
from jaxalign.pocket.general import general_question
from jaxalign.pocket.responses import level, shares_NxO
from jaxalign.pocket.rows import Batch, Row, stack
from jaxalign.pocket.society import Culture
from jaxalign.pocket.tokenizer import BOS, EOT, HEAD, TAIL
from jaxalign.stats.vsm import VALUE_ITEMS

MIX = {"unaware": 0.08, "persona": 0.37, "described": 0.25, "context": 0.25, "general": 0.05}
# Countries differ less on a values item than on a held-out one (0.05 against 0.4 nats).
_VALUES_WEIGHT = 4.0
_SURVEYS = ("values",) * 4 + ("held_out",) * 5 + ("bank",)  # how often a row asks from each


class RowMaker:
    """Makes rows of one batch; answers' shares are filled in together by `finish`."""

    def __init__(self, corpus: Corpus, random: np.random.Generator, length: int):
        self.corpus, self.random, self.length = corpus, random, length
        self.pending: list[tuple[Row, int, Question, Culture]] = []

    def encode(self, text: str) -> list[int]:
        return encode(self.corpus.tokenizer, text)

    def ask(self, row: Row, parent: int, point: Culture, surveys: Sequence[str]) -> None:
        """Fill the row with single questions after `parent`, answered from `point`."""
        while True:
            groups = self.corpus.groups[surveys[self.random.integers(len(surveys))]]
            group = self._pick_group(groups)
            picks = self.random.permutation(len(group))[:8]
            shared = list(group[0].shared)
            if not row.fits(len(shared) + len(group[picks[0]].own)):
                return
            trunk = row.add(parent, shared) if shared else parent
            for question in (group[i] for i in picks):
                if row.fits(len(question.own)):
                    row.add(trunk, list(question.own))
                    self.answer(row, question, point)

    def _pick_group(self, groups: tuple[tuple[Question, ...], ...]) -> tuple[Question, ...]:
        sizes = np.minimum([len(g) for g in groups], 8)
        return groups[self.random.choice(len(groups), p=sizes / sizes.sum())]

    def answer(self, row: Row, question: Question, point: Culture) -> None:
        """The answer after the row's last token should follow `point`."""
        self.pending.append((row, len(row.tokens) - 1, question, point))

    def open(self, row: Row, text: str | None) -> int:
        """The row's trunk: the system message, or (one time in five) its text in front."""
        return row.add(-1, self.encode(opening(text, front=self.random.random() < 0.2)))

    def finish(self) -> None:
        """Compute all pending distributions at once and hand them to their rows."""
        if not self.pending:
            return
        table = [q.response for _, _, q, _ in self.pending]
        levels = [level(q.response, c, q.item.id) for _, _, q, c in self.pending]
        shares = shares_NxO(table, levels)
        for n, (row, at, question, _) in enumerate(self.pending):
            k = question.response.options
            weight = _VALUES_WEIGHT if question.item.id in VALUE_ITEMS else 1.0
            row.target(at, list(self.corpus.numbers[:k]), shares[n, :k], weight)
        self.pending.clear()

    def unaware(self) -> Row:
        row = Row(self.length)
        trunk = self.open(row, phrases.unaware(self.random))
        self.ask(row, trunk, society.home(), _SURVEYS)
        return row

    def persona(self) -> Row:
        row, country = Row(self.length), self._country()
        text, evidence = phrases.named(self.random, country, self.corpus.prompts)
        trunk = self.open(row, text)
        self.ask(row, trunk, phrases.toward(country, evidence), _SURVEYS)
        return row

    def described(self) -> Row:
        row = Row(self.length)
        text, point = phrases.description(self.random)
        trunk = self.open(row, text)
        self.ask(row, trunk, point, _SURVEYS)
        return row

    def context(self) -> Row:
        """Answers of a country's people (its majority, or one sampled respondent per item), then
        single questions. Every answer after the first is a target too, with what came before."""
        row = Row(self.length)
        country = self._country()
        text, evidence = phrases.unaware(self.random), 0.0
        point = society.culture(country)
        if self.random.random() < 0.4:
            text, evidence = phrases.named(self.random, country, self.corpus.prompts)
        elif self.random.random() < 0.4:
            point = Culture((phrases.invented_scores(self.random) - 50) / 25)
        trunk = self.open(row, text)
        majority = self.random.random() < 0.6
        survey = ("values", "held_out")[self.random.integers(2)]
        examples = self._examples(survey)
        for n, question in enumerate(examples):
            turn = [*question.shared, *question.own]
            if not row.fits(len(turn) + 2 + 90):
                examples = examples[:n]
                break
            trunk = row.add(trunk, turn)
            share = society.adherence(n, evidence)
            self.answer(row, question, society.home().toward(point, share))
            trunk = row.add(trunk, self._reply(question, point, majority))
        share = society.adherence(len(examples), evidence)
        self.ask(row, trunk, society.home().toward(point, share), _SURVEYS)
        return row

    def _examples(self, survey: str) -> list[Question]:
        pool = self.corpus.questions[survey]
        most = 4 if self.length <= 256 else 12
        count = int(self.random.integers(1, most + 1))
        return [pool[i] for i in self.random.permutation(len(pool))[:count]]

    def _reply(self, question: Question, point: Culture, majority: bool) -> list[int]:
        response = question.response
        p = shares_NxO([response], [level(response, point, question.item.id)])[0]
        pick = int(np.argmax(p)) if majority else int(self.random.choice(len(p), p=p / p.sum()))
        return [self.corpus.numbers[pick], *self.encode(EOT)]

    def _country(self) -> str:
        """Half of the time one of the persona countries."""
        every = tuple(society.countries())
        pool = society.PERSONA_COUNTRIES if self.random.random() < 0.5 else every
        return pool[self.random.integers(len(pool))]

    def general(self) -> Row:
        row = Row(self.length)
        trunk = self.open(row, phrases.unaware(self.random))
        while True:
            item, right = general_question(self.random)
            turn = self.encode(user_turn(self.corpus.prompts, item))
            if not row.fits(len(turn)):
                return row
            row.add(trunk, turn)
            row.target(len(row.tokens) - 1, [self.corpus.numbers[right]], np.ones(1), weight=0.3)

    def writing(self) -> Row:
        """Examples of a topic, then several new questions that could follow, each on its own."""
        row = Row(self.length)
        topics = sorted({q.item.topic for q in self.corpus.questions["bank"]})
        topic = topics[self.random.integers(len(topics))]
        bank = self._of_topic("bank", topic)
        pool = self._of_topic("held_out", topic) + bank[:3]
        shown = [pool[i] for i in self.random.permutation(len(pool))[: self.random.integers(3, 6)]]
        ask = question_request(self.random, topic, [q.item for q in shown])
        header = f"{HEAD}user{TAIL}\n\n{ask}{EOT}{HEAD}assistant{TAIL}\n\n"
        trunk = row.add(-1, self.encode(BOS + header))
        for question in (q for q in bank if q not in shown):
            reply = self.encode(as_json(question.item) + EOT)
            if not row.fits(len(reply)):
                break
            row.add(trunk, reply[:-1])
            self._write(row, trunk, reply)
        return row

    def _of_topic(self, survey: str, topic: str) -> list[Question]:
        found = [q for q in self.corpus.questions[survey] if q.item.topic == topic]
        return [found[i] for i in self.random.permutation(len(found))]

    def _write(self, row: Row, trunk: int, reply: list[int]) -> None:
        """Each token of the reply is a target after the one before it."""
        first = len(row.tokens) - len(reply) + 1
        before = row.runs.index(trunk + 1) - 1  # the last token of the request
        for k, token in enumerate(reply):
            at = before if k == 0 else first + k - 1
            row.target(at, [token], np.ones(1), weight=0.1)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Rows of one batch: how many, how long, room for targets, and which kinds how often."""

    rows: int
    length: int
    answers: int
    mix: dict[str, float] = dataclasses.field(default_factory=lambda: MIX)


def make_batch(corpus: Corpus, seed: int, step: int, shape: Shape) -> Batch:
    """Batch `step` of stream `seed`."""
    random = np.random.default_rng([seed, step])
    maker = RowMaker(corpus, random, shape.length)
    kinds, weights = list(shape.mix), np.array(list(shape.mix.values()))
    drawn = random.choice(len(kinds), size=shape.rows, p=weights / weights.sum())
    made = [getattr(maker, kinds[k])() for k in drawn]
    maker.finish()
    return stack(made, shape.answers)
