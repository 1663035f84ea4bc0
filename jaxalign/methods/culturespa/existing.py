"""Questions that exist already, in the place of those that a model would write (step 1).

Files are JSON as CultureSPA released its questions (`questions.read_questions`; one file a topic),
or surveys of any known format, such as the questions.json that `write_questions` leaves. They go
through the same filters as written ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxalign.core.errors import UserError
from jaxalign.methods.culturespa.filters import filter_questions
from jaxalign.methods.culturespa.questions import (
    Question,
    as_json,
    from_item,
    read_questions,
    to_survey,
    topic_id,
    with_ids,
)
from jaxalign.methods.culturespa.write import TopicCount, WrittenQuestions
from jaxalign.surveys.formats import read_questionnaire
from jaxalign.surveys.formats.files import read_text
from jaxalign.surveys.survey import Survey


@dataclasses.dataclass(frozen=True)
class ExistingQuestions:
    """What was read from files of questions.

    Attributes:
        paths: The files.
        sha256: Hash of their contents.
        questions: All questions, before any filter, with ids that are new.
        refused: Number of entries that are no questions, by reason.
        unknown_topics: Topics that the survey does not have.
    """

    paths: tuple[Path, ...]
    sha256: str
    questions: tuple[Question, ...]
    refused: dict[str, int]
    unknown_topics: tuple[str, ...]

    @property
    def as_written(self) -> WrittenQuestions:
        """The questions as if a model had written them without a request."""
        by_topic = Counter(question.topic for question in self.questions)
        topics = [TopicCount(topic, 0, count, {}) for topic, count in by_topic.items()]
        if self.refused:
            topics.append(TopicCount("", 0, 0, self.refused))
        return WrittenQuestions(self.questions, tuple(topics), ())

    def first(self, count: int) -> ExistingQuestions:
        """Return the first questions of every topic, `count` at most."""
        seen: Counter[str] = Counter()
        kept = []
        for question in self.questions:
            seen[question.topic] += 1
            if seen[question.topic] <= count:
                kept.append(question)
        return dataclasses.replace(self, questions=tuple(kept))

    def describe(self) -> str:
        """Return a line for the log: how many questions on which topics."""
        by_topic = Counter(question.topic or "no topic" for question in self.questions)
        topics = ", ".join(f"{topic} {count}" for topic, count in by_topic.items())
        files = f"{len(self.paths)} {'file' if len(self.paths) == 1 else 'files'}"
        line = f"questions: {len(self.questions)} in {files} ({topics})"
        if self.refused:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.refused.items())
            line += f"; {sum(self.refused.values())} entries refused ({reasons})"
        if self.unknown_topics:
            line += f"; the survey has no topic {', '.join(self.unknown_topics)}"
        return line


def read_existing(paths: Sequence[Path], survey: Survey) -> ExistingQuestions:
    """Read files of questions.

    A topic is spelled as the survey spells it, where the two differ in case or punctuation only.

    Args:
        paths: The files.
        survey: The survey that the model is tested on; copies of its questions are filtered out.

    Raises:
        UserError: If a file cannot be read, or the filters leave no question.
    """
    digest = hashlib.sha256()
    found: list[Question] = []
    refused: Counter[str] = Counter()
    for path in paths:
        text = read_text(path)
        digest.update(hashlib.sha256(text.encode()).digest())
        if text.lstrip().startswith("["):
            questions, reasons = read_questions(path)
            refused.update(reasons)
        else:
            questions = list(map(from_item, read_questionnaire(path, "questions").items))
        found += questions
    known = {topic_id(item.topic): item.topic for item in survey.items}
    found = [
        dataclasses.replace(q, topic=known.get(topic_id(q.topic), q.topic) if q.topic else "")
        for q in found
    ]
    topics = dict.fromkeys(question.topic for question in found)
    existing = ExistingQuestions(
        paths=tuple(paths),
        sha256=digest.hexdigest(),
        questions=tuple(with_ids(found)),
        refused=dict(refused),
        unknown_topics=tuple(t for t in topics if t and t not in known.values()),
    )
    if not filter_questions(existing.questions, map(from_item, survey.items)).questions:
        raise UserError(
            f"`questions` {' '.join(map(str, paths))}: the filters leave none of "
            f"{len(existing.questions)} questions; {existing.describe()}"
        )
    return existing


def few_of(existing: ExistingQuestions, per_topic: int | None) -> Survey:
    """Return the longest questions of each topic, or all, as a survey, to plan programs for."""
    by_topic: dict[str, list[Question]] = {}
    for question in sorted(existing.questions, key=lambda q: -len(as_json(q))):
        by_topic.setdefault(question.topic, []).append(question)
    few = [question for questions in by_topic.values() for question in questions[:per_topic]]
    return to_survey(few, "existing questions", "")
