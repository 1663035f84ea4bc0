"""Measure how the pocket model answers, by exact option probabilities under the package's prompts.

Expected answers are mapped to one scale, 1...5, whatever the number of options; nominal items have
no expected answer and are left out. A move is the share of the way from home to a country's true
answers, by projection: 0 is home, 1 is the country.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.weights import Params
from jaxalign.pocket import phrases, society
from jaxalign.pocket.corpus import Corpus, Question, encode, opening, user_turn
from jaxalign.pocket.forward import target_logits
from jaxalign.pocket.general import general_questions
from jaxalign.pocket.responses import level, shares_NxO
from jaxalign.pocket.rows import Row, stack
from jaxalign.pocket.society import Culture
from jaxalign.pocket.tokenizer import EOT

_ROWS, _LENGTH, _ANSWERS = 8, 640, 40  # rows of a batch; tokens and answers of a row
SURVEYS = ("values", "held_out")


@functools.partial(jax.jit, static_argnums=0)
def _log_probabilities(config: LlamaConfig, params: Params, batch) -> jax.Array:
    return jax.nn.log_softmax(target_logits(config, params, batch))


def option_shares(
    config: LlamaConfig, params: Params, numbers: Sequence[int], conversations: list[tuple]
) -> list[np.ndarray]:
    """Compute the probabilities of option numbers, normalised over the options.

    Args:
        config: The model.
        params: Its weights.
        numbers: Token ids of the option numbers.
        conversations: (ids of a beginning, [(ids of a user turn, number of options), ...]). Each
            turn is asked separately after the beginning.

    Returns:
        For each conversation, float [questions, numbers].
    """
    rows, places = [], []
    for s, (beginning, turns) in enumerate(conversations):
        row = None
        for q, (turn, options) in enumerate(turns):
            if row is None or not row.fits(len(turn)) or len(row.targets) == _ANSWERS:
                row = Row(_LENGTH)
                trunk = row.add(-1, beginning)
                rows.append(row)
            row.add(trunk, turn)
            row.target(len(row.tokens) - 1, list(numbers[:options]), np.ones(options))
            places.append((len(rows) - 1, len(row.targets) - 1, s, q, options))
    logits = _run(config, params, rows)
    out = [np.zeros((len(turns), len(numbers))) for _, turns in conversations]
    for r, a, s, q, options in places:
        p = np.exp(logits[r, a, list(numbers[:options])])
        out[s][q, :options] = p / p.sum()
    return out


def _run(config: LlamaConfig, params: Params, rows: list[Row]) -> np.ndarray:
    """Return log-probabilities [rows, answers, V], in batches of one shape."""
    batches = []
    for start in range(0, len(rows), _ROWS):
        chunk = rows[start : start + _ROWS]
        batch = stack(chunk + [chunk[-1]] * (_ROWS - len(chunk)), _ANSWERS)
        batches.append(np.asarray(_log_probabilities(config, params, batch))[: len(chunk)])
    return np.concatenate(batches)


def expected(shares_QxO: np.ndarray, options_Q: np.ndarray) -> np.ndarray:
    """Return the expected answers [Q] on the 1...5 scale."""
    codes = np.arange(1, shares_QxO.shape[1] + 1)
    return 1 + 4 * (shares_QxO @ codes - 1) / (options_Q - 1)


def ordinal(corpus: Corpus, survey: str) -> list[Question]:
    """Return the questions of a survey whose options have an order."""
    return [q for q in corpus.questions[survey] if not q.response.nominal]


def true_answers(questions: list[Question], point: Culture) -> np.ndarray:
    """Return the expected answers [Q] of a culture, on the 1...5 scale."""
    table = [q.response for q in questions]
    levels = [level(q.response, point, q.item.id) for q in questions]
    return expected(shares_NxO(table, levels), np.array([r.options for r in table]))


def model_answers(
    config: LlamaConfig, params: Params, corpus: Corpus, survey: str, beginnings: list[str]
) -> np.ndarray:
    """Return the model's expected answers [beginnings, Q] after each beginning."""
    questions = ordinal(corpus, survey)
    options = np.array([q.response.options for q in questions])
    turns = [([*q.shared, *q.rest], q.response.options) for q in questions]
    conversations = [(encode(corpus.tokenizer, b), turns) for b in beginnings]
    shares = option_shares(config, params, corpus.numbers, conversations)
    return np.stack([expected(s, options) for s in shares])


def move(answers_CxQ: np.ndarray, home_Q: np.ndarray, countries_CxQ: np.ndarray) -> float:
    """Return the share of the way from home to the countries, by one projection over all of them.

    A mean of the countries' separate shares would be dominated by those that are close to home.
    """
    way = countries_CxQ - home_Q
    return float(np.sum((answers_CxQ - home_Q) * way) / np.sum(way * way))


def with_examples(corpus: Corpus, system: str | None, survey: str, country: str, count: int) -> str:
    """Return a conversation with the country's majority answers to `count` items of `survey`."""
    random = np.random.default_rng([7, count])
    point = society.culture(country)
    text = opening(system)
    pool = ordinal(corpus, survey)
    for question in (pool[i] for i in random.permutation(len(pool))[:count]):
        levels = [level(question.response, point, question.item.id)]
        answer = int(np.argmax(shares_NxO([question.response], levels)[0])) + 1
        text += f"{user_turn(corpus.prompts, question.item)}{answer}{EOT}"
    return text


def described(country: str, corpus: Corpus) -> str:
    """Return a description by the country's six scores, rounded to tens, without its name."""
    scores = zip(society.DIMENSIONS, society.countries()[country], strict=True)
    names = (f"{phrases.NAMES[d]} {round(s / 10) * 10}" for d, s in scores)
    return f"Your society: {', '.join(names)}."


def measure(
    config: LlamaConfig,
    params: Params,
    corpus: Corpus,
    named: Sequence[str] = tuple(c for c in society.PERSONA_COUNTRIES if c != "USA"),
    counts: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Measure the numbers in the docstring of `experiments.train_pocket`.

    Args:
        config: The model.
        params: Its weights.
        corpus: The questions.
        named: Countries to measure.
        counts: Numbers of examples in context to measure.

    Returns:
        Numbers by name. Errors are mean absolute differences of expected answers from the country's
        (`home_error`: from home's).
    """
    out: dict[str, float] = {}
    for survey in SURVEYS:
        questions = ordinal(corpus, survey)
        home = true_answers(questions, society.home())
        truth = [true_answers(questions, society.culture(c)) for c in named]
        answers = functools.partial(model_answers, config, params, corpus, survey)
        unaware = answers([opening(None)])[0]
        out[f"{survey}/home_error"] = _error(unaware, home)
        out[f"{survey}/home_to_country"] = float(np.mean([_error(home, t) for t in truth]))
        for form, beginnings in _forms(corpus, survey, named, counts).items():
            answers_CxQ = answers(beginnings)
            out[f"{survey}/{form}_move"] = move(answers_CxQ, home, np.stack(truth))
            pairs = zip(answers_CxQ, truth, strict=True)
            out[f"{survey}/{form}_error"] = float(np.mean([_error(a, t) for a, t in pairs]))
    out["general/accuracy"] = general_accuracy(config, params, corpus)
    return out


def _error(a_Q: np.ndarray, b_Q: np.ndarray) -> float:
    return float(np.abs(a_Q - b_Q).mean())


def _forms(
    corpus: Corpus, survey: str, named: Sequence[str], counts: Sequence[int]
) -> dict[str, list[str]]:
    """Return the beginnings before a question of `survey`, per country, in every form measured."""
    other = SURVEYS[1 - SURVEYS.index(survey)]
    system = [corpus.prompts.system(society.country_name(c))["content"] for c in named]
    forms = {
        "persona": [opening(text) for text in system],
        "persona_in_front": [opening(text, front=True) for text in system],
        "described": [opening(described(c, corpus)) for c in named],
    }
    for n in counts:
        pairs = list(zip(system, named, strict=True))
        forms[f"persona_and_{n}_of_the_other_survey"] = [
            with_examples(corpus, text, other, c, n) for text, c in pairs
        ]
        forms[f"{n}_of_the_other_survey"] = [
            with_examples(corpus, None, other, c, n) for c in named
        ]
        forms[f"{n}_of_this_survey"] = [with_examples(corpus, None, survey, c, n) for c in named]
    return forms


def general_accuracy(
    config: LlamaConfig, params: Params, corpus: Corpus, count: int = 120
) -> float:
    """Return the share of the small general tasks that are answered right, without a persona."""
    tasks = general_questions(count, seed=1)
    turns = [
        (encode(corpus.tokenizer, user_turn(corpus.prompts, i)), len(i.options)) for i, _ in tasks
    ]
    beginning = encode(corpus.tokenizer, opening(None))
    shares = option_shares(config, params, corpus.numbers, [(beginning, turns)])[0]
    return float(np.mean(shares.argmax(1) == [right for _, right in tasks]))
