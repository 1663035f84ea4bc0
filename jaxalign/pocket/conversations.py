"""Training conversations drawn from the simulated society, as rows of tokens with soft targets.

These kinds of rows teach the pocket model what it should do (`MIX` has their shares):

    unaware     no system message or a neutral one: answer like home
    persona     a country is named: answer part of the way from home to the country
    described   a society is described by its dimensions: answer like that society
    context     earlier turns hold answers of a country's people: the more, the closer to it
    writing     after examples, write new survey questions as JSON
    general     small tasks that have nothing to do with culture

Batch n of a seed is a pure function of (seed, n).
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
# Countries differ less on an item of the values module than on a held-out one (0.05 against 0.4
# nats), so its targets weigh more.
_VALUES_WEIGHT = 4.0
_SURVEYS = ("values",) * 4 + ("held_out",) * 5 + ("bank",)  # drawn from uniformly


class RowMaker:
    """Makes the rows of one batch; `finish` computes the shares of all answers at once."""

    def __init__(self, corpus: Corpus, random: np.random.Generator, length: int):
        """Make rows of `length` tokens from `corpus`."""
        self.corpus, self.random, self.length = corpus, random, length
        self.pending: list[tuple[Row, int, Question, Culture]] = []

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return encode(self.corpus.tokenizer, text)

    def ask(self, row: Row, parent: int, point: Culture, surveys: Sequence[str]) -> None:
        """Fill the row with separate questions after the run `parent`, answered from `point`."""
        while True:
            groups = self.corpus.groups[surveys[self.random.integers(len(surveys))]]
            group = self._pick_group(groups)
            picks = self.random.permutation(len(group))[:8]
            shared = list(group[0].shared)
            if not row.fits(len(shared) + len(group[picks[0]].rest)):
                return
            trunk = row.add(parent, shared) if shared else parent
            for question in (group[i] for i in picks):
                if row.fits(len(question.rest)):
                    row.add(trunk, list(question.rest))
                    self.answer(row, question, point)

    def _pick_group(self, groups: tuple[tuple[Question, ...], ...]) -> tuple[Question, ...]:
        """Draw a group with a probability in proportion to the questions used of it."""
        sizes = np.minimum([len(g) for g in groups], 8)
        return groups[self.random.choice(len(groups), p=sizes / sizes.sum())]

    def answer(self, row: Row, question: Question, point: Culture) -> None:
        """Add a target: the answer after the row's last token follows `point`."""
        self.pending.append((row, len(row.tokens) - 1, question, point))

    def open(self, row: Row, text: str | None) -> int:
        """Begin the row with a system message, one time in five in front of everything."""
        return row.add(-1, self.encode(opening(text, front=self.random.random() < 0.2)))

    def finish(self) -> None:
        """Compute all pending distributions at once and add them to their rows."""
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
        """Make a row of questions without a culture."""
        row = Row(self.length)
        trunk = self.open(row, phrases.unaware(self.random))
        self.ask(row, trunk, society.home(), _SURVEYS)
        return row

    def persona(self) -> Row:
        """Make a row of questions to a persona of a country."""
        row, country = Row(self.length), self._country()
        text, evidence = phrases.named(self.random, country, self.corpus.prompts)
        trunk = self.open(row, text)
        self.ask(row, trunk, phrases.toward(country, evidence), _SURVEYS)
        return row

    def described(self) -> Row:
        """Make a row of questions about a described society."""
        row = Row(self.length)
        text, point = phrases.description(self.random)
        trunk = self.open(row, text)
        self.ask(row, trunk, point, _SURVEYS)
        return row

    def context(self) -> Row:
        """Make a row with answers of a country's people, followed by separate questions.

        The answers are those of the majority, or of one sampled respondent per item. Each of them
        is also a target, given those before it.
        """
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
            turn = [*question.shared, *question.rest]
            # Room for the reply, and for a question after the examples.
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
        """Draw up to 4 questions, or up to 12 for longer rows."""
        pool = self.corpus.questions[survey]
        most = 4 if self.length <= 256 else 12
        count = int(self.random.integers(1, most + 1))
        return [pool[i] for i in self.random.permutation(len(pool))[:count]]

    def _reply(self, question: Question, point: Culture, majority: bool) -> list[int]:
        """Return the tokens of an answer: the most likely one, or one sampled."""
        response = question.response
        p = shares_NxO([response], [level(response, point, question.item.id)])[0]
        pick = int(np.argmax(p)) if majority else int(self.random.choice(len(p), p=p / p.sum()))
        return [self.corpus.numbers[pick], *self.encode(EOT)]

    def _country(self) -> str:
        """Draw a country; half of the time one of the persona countries."""
        all_countries = tuple(society.countries())
        pool = society.PERSONA_COUNTRIES if self.random.random() < 0.5 else all_countries
        return pool[self.random.integers(len(pool))]

    def general(self) -> Row:
        """Make a row of small tasks."""
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
        """Make a row with examples of a topic and several separate questions that may follow."""
        row = Row(self.length)
        topics = sorted({q.item.topic for q in self.corpus.questions["bank"]})
        topic = topics[self.random.integers(len(topics))]
        bank = self._of_topic("bank", topic)
        pool = self._of_topic("held_out", topic) + bank[:3]
        shown = [pool[i] for i in self.random.permutation(len(pool))[: self.random.integers(3, 6)]]
        request = question_request(self.random, topic, [q.item for q in shown])
        header = f"{HEAD}user{TAIL}\n\n{request}{EOT}{HEAD}assistant{TAIL}\n\n"
        trunk = row.add(-1, self.encode(BOS + header))
        for question in (q for q in bank if q not in shown):
            reply = self.encode(as_json(question.item) + EOT)
            if not row.fits(len(reply)):
                break
            row.add(trunk, reply[:-1])
            self._write(row, trunk, reply)
        return row

    def _of_topic(self, survey: str, topic: str) -> list[Question]:
        """Return the questions on a topic, in random order."""
        questions = [q for q in self.corpus.questions[survey] if q.item.topic == topic]
        return [questions[i] for i in self.random.permutation(len(questions))]

    def _write(self, row: Row, trunk: int, reply: list[int]) -> None:
        """Make each token of the reply a target after the one before it."""
        first = len(row.tokens) - len(reply) + 1
        before = row.runs.index(trunk + 1) - 1  # the last token of the request
        for k, token in enumerate(reply):
            at = before if k == 0 else first + k - 1
            row.target(at, [token], np.ones(1), weight=0.1)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The rows of a batch.

    Attributes:
        rows: Number of rows.
        length: Tokens of a row.
        answers: Targets of a row, at most.
        mix: Relative frequency of each kind of row.
    """

    rows: int
    length: int
    answers: int
    mix: dict[str, float] = dataclasses.field(default_factory=lambda: MIX)


def make_batch(corpus: Corpus, seed: int, step: int, shape: Shape) -> Batch:
    """Make batch `step` of stream `seed`."""
    random = np.random.default_rng([seed, step])
    maker = RowMaker(corpus, random, shape.length)
    kinds, weights = list(shape.mix), np.array(list(shape.mix.values()))
    drawn = random.choice(len(kinds), size=shape.rows, p=weights / weights.sum())
    made = [getattr(maker, kinds[k])() for k in drawn]
    maker.finish()
    return stack(made, shape.answers)
