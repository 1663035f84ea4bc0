"""Ask a model surveys under any list of conditions: the one way in which every experiment asks.

    conditions, items --encode_conditions--> Questions --answer--> Answers --responses--> Responses

`ask` is all of it for one survey. Experiments take the steps one by one: what is asked is known as
token ids before anything is computed (`Questions`), so that programs can be compiled and checked
first, and several surveys can be asked together.

Answers are read in one of two ways. `Exact` computes the probability of each option, without
sampling noise: of its number, or of its text. `Sampled` draws replies and takes the first integer
of each.

Items may be shown in several presentations (`jaxalign.surveys.presentations`). Answers are then the
mean over them, and each can be had alone. Whatever is shown before a question, such as examples, is
shown in the question's presentation.

Letters: A condition, F presentation, Q item, O option, N conversation; of sampled answers, reply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxalign.answering.asked import AnswerForm, AskedItems, against_prior, asked_items
from jaxalign.answering.batch import answer_exact
from jaxalign.answering.block_plan import BlockPlan
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import LeadIn, SoftLeadIn, encode
from jaxalign.answering.partial import digest
from jaxalign.answering.reply_reader import ReplyReader, make_reader
from jaxalign.answering.sampled import Sampler, answer_sampled, model_sampler
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import LM, ModelFiles
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import Params
from jaxalign.methods.base import Condition
from jaxalign.prompts import Message, Prompts, load_prompts
from jaxalign.runtime.sharding import local_view
from jaxalign.stats.presentation_mean import mean_log_probs
from jaxalign.surveys.presentations import PUBLISHED, is_general
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item, Survey

ANSWERING = Sampling(max_new_tokens=16, temperature=0.6, top_p=0.9)
"""How CultureSPA samples answers (Xu et al. 2025); they publish no length."""


@dataclasses.dataclass(frozen=True)
class Exact:
    """Read the probability of each option as the reply; nothing is sampled.

    Attributes:
        block_tokens: Tokens computed together; default: follows the device.
        answer: What names an option: its "number" (or letter); or its text, which is asked for
            without listing the options: "label" by the sum of its tokens' log-probabilities,
            "label-per-token" by their mean, "label-against-prior" by their sum less that after a
            neutral question.

    >>> import jaxalign as ja
    >>> ja.Exact(answer="label").answer
    'label'
    """

    block_tokens: int | None = None
    answer: AnswerForm = "number"


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Draw replies, and read the first integer of each.

    Attributes:
        runs: Replies to each question.
        sampling: How replies are drawn; default: as CultureSPA does.
        seed: Seed of the replies.
        batch_size: Replies written at a time, at most; fewer if memory is short.
        whole: Whether replies are written to their end; if not, only until it is clear which option
            they name (`jaxalign.surveys.settled`), as in a search whose fitness is replies.

    >>> import jaxalign as ja
    >>> ja.Sampled(runs=5).sampling.temperature
    0.6
    """

    runs: int = 3
    sampling: Sampling = ANSWERING
    seed: int = 0
    batch_size: int = 64
    whole: bool = True


Reading = Exact | Sampled
"""How answers are read."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """Q items under each of A conditions, as token ids.

    Attributes:
        conversations: N conversations, each asked once: condition by condition, presentation by
            presentation, item by item.
        items: Q items.
        conditions: A labels.
        extra_ExD: float32, the embeddings of all soft prompts, one below the other.
        asked: The items as they are asked.
        row_N: int32, which row of `asked` a conversation asks.
        index_AxFxQ: int32, which conversation asks an item under a condition and presentation.
        neutral_AxFxQ: int32, which one asks its neutral question; None where none is asked.
        plan: The conversations cut into blocks, if that has been done.
    """

    conversations: Conversations
    items: tuple[Item, ...]
    conditions: tuple[str, ...]
    extra_ExD: np.ndarray
    asked: AskedItems
    row_N: np.ndarray
    index_AxFxQ: np.ndarray
    neutral_AxFxQ: np.ndarray | None = None
    plan: BlockPlan | None = None


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model answers to `Questions`, in the mean over presentations.

    Attributes:
        conditions: A labels.
        log_probs_AxQxO: float32, of exact answers; None for sampled ones.
        valid_mass_AxQ: float32, of exact answers.
        positions_NxAxQ: int8, of sampled answers: the option that each of N replies names; those
            under several presentations follow each other.
        by_presentation: The answers under each presentation by its name, if there are several.
    """

    conditions: tuple[str, ...]
    log_probs_AxQxO: np.ndarray | None = None
    valid_mass_AxQ: np.ndarray | None = None
    positions_NxAxQ: np.ndarray | None = None
    by_presentation: Mapping[str, Answers] | None = None

    def responses(
        self,
        survey: Survey,
        first: int = 0,
        rows: Sequence[int] | slice = slice(None),
        labels: Sequence[str] | None = None,
    ) -> Responses:
        """Return the answers to one of the surveys that were asked together.

        Args:
            survey: The survey.
            first: Position of its first item among all items.
            rows: Positions of the conditions to return, which may repeat.
            labels: What to call them; default: as they are called.
        """
        if self.by_presentation is not None:
            each = self.by_presentation.items()
            return Responses.from_presentations(
                {name: part.responses(survey, first, rows, labels) for name, part in each}
            )
        columns = slice(first, first + len(survey.items))
        if labels is None:
            labels = np.array(self.conditions, object)[rows]
        if self.positions_NxAxQ is not None:
            return Responses.from_positions(survey, labels, self.positions_NxAxQ[:, rows, columns])
        # Option columns past the survey's longest item belong to items of other surveys.
        most = max(len(item.options) for item in survey.items)
        return Responses(
            survey,
            tuple(labels),
            self.log_probs_AxQxO[rows, columns, :most],
            self.valid_mass_AxQ[rows, columns],
        )


def ask(
    lm: LM,
    survey: Survey,
    conditions: Sequence[Condition],
    *,
    presentations: Sequence[str] = (PUBLISHED,),
    reading: Reading = Exact(),
    prompts: Prompts | None = None,
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
) -> Responses:
    """Ask every item of a survey under every condition.

    Conditions may mix plain questions, personas, examples, CultureSPA's styles, soft prompts and
    adapters. Those that need the same weights are computed together, in blocks of one shape, and
    text that neighbours share is computed once.

    Args:
        lm: the model.
        survey: the items to ask.
        conditions: A conditions, with different names.
        presentations: how items are shown, each once: "A" as published, "B" with the numbers
            assigned the other way round, and others (`jaxalign.surveys.presentations`). Answers are
            the mean over them; what comes before a question is shown like the question.
        reading: how answers are read: `Exact()`, by the probability of each option's number as the
            reply, in every way the tokenizer writes it; `Exact(answer="label")`, by that of its
            text; or `Sampled(...)`, from drawn replies.
        prompts: the texts that word questions and personas; default: the package's own.
        folder: directory that keeps the answers, from where a killed call continues with the same
            bits; None keeps none.
        on_progress: called with the number of answers, before the first and then again and again.

    Returns:
        The responses. Exact ones have `log_probs` float32 [A, Q, O], natural logarithms normalised
        over an item's options, and `valid_mass` float32 [A, Q], the probability that a reply begins
        with an option at all. Of sampled ones both are shares of the replies. With several
        presentations, `by_presentation` has the responses under each.

    Raises:
        UserError: if two conditions have the same name, a soft prompt is made for another model, a
            question is longer than the model can read, or an item cannot be shown in a
            presentation.

    >>> import jaxalign as ja
    >>> lm = ja.pocket_model()
    >>> answers = ja.ask(lm, ja.surveys.vsm(), [ja.Plain(), ja.Persona("CHN")])
    >>> answers.conditions
    ('naive', 'persona CHN')
    >>> answers.log_probs.shape, answers.valid_mass.shape
    ((2, 24, 5), (2, 24))
    """
    prompts = load_prompts(model_folder=lm.folder) if prompts is None else prompts
    names = tuple(condition.name for condition in conditions)
    if not names:
        raise UserError("`conditions`: give at least one condition to ask under")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"`conditions`: {repeated[0]!r} is there twice; names must differ")
    groups: dict[int, list[int]] = {}  # rows of the conditions with the same adapter
    for row, condition in enumerate(conditions):
        groups.setdefault(id(condition.adapter), []).append(row)
    # All are encoded and checked before the first is asked.
    form = reading.answer if isinstance(reading, Exact) else "number"
    asked = [
        encode_conditions(
            lm.files, prompts, [conditions[row] for row in rows], survey.items, presentations, form
        )
        for rows in groups.values()
    ]
    Q, parts, done = len(survey.items), [], 0
    for rows, questions in zip(groups.values(), asked, strict=True):

        def report(event: Progress, before: int = done, rows: list[int] = rows) -> None:
            now = before + len(rows) * Q * event.done // event.total
            on_progress(Progress("answer", now, len(names) * Q, "answers"))

        adapter = conditions[rows[0]].adapter
        answers = answer(
            lm if adapter is None else adapter.attach(lm),
            questions,
            reading,
            key=answers_key(lm, adapter),
            folder=folder,
            on_progress=report,
        )
        parts.append(answers.responses(survey))
        done += len(rows) * Q
    return Responses.join(parts).select(names)  # back in the given order


def answer(
    lm: LM,
    questions: Questions,
    reading: Reading,
    *,
    key: str = "",
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
    task: str = "block",
    sampler: Sampler | None = None,
) -> Answers:
    """Ask a model questions, and keep the answers as they come.

    Args:
        lm: The model: the unchanged one, or one with an adapter beside its weights.
        questions: What is asked.
        reading: How answers are read.
        key: Text that stands for what the answers depend on besides the questions and how they are
            read: the weights. Answers in `folder` are named after all of it.
        folder: Directory that keeps the answers, from where a killed call continues with the same
            bits; None keeps none.
        on_progress: Called with the number of blocks or replies that are done.
        task: What the progress calls a block.
        sampler: Writes sampled replies instead of the model; `key` must stand for it too.

    Raises:
        UserError: If the model answers NaN, or a file in `folder` cannot be continued.
        ValueError: If the questions are worded for another way of naming options.
    """
    conversations, asked, index_AxFxQ = (
        questions.conversations,
        questions.asked,
        questions.index_AxFxQ,
    )
    form = reading.answer if isinstance(reading, Exact) else "number"
    if form != asked.answer:
        raise ValueError(f"questions encoded for answer={asked.answer!r} are read by {form!r}")
    if isinstance(reading, Exact):
        exact = answer_exact(
            lm.config,
            lm.params,
            conversations,
            lm.mesh,
            extra_ExD=questions.extra_ExD,
            key=key,
            folder=folder,
            block_tokens=reading.block_tokens,
            plan=questions.plan,
            per_token=asked.per_token,
            on_progress=on_progress,
            task=task,
        )
        log_probs_AxFxQxO = exact.log_probs_NxO[index_AxFxQ]
        if questions.neutral_AxFxQ is not None:
            prior = exact.log_probs_NxO[questions.neutral_AxFxQ]
            log_probs_AxFxQxO = against_prior(log_probs_AxFxQxO, prior)
        return _exact_answers(questions, log_probs_AxFxQxO, exact.valid_mass_N[index_AxFxQ])
    key = f"{key} seed {reading.seed}"
    if len(questions.extra_ExD):
        key = f"{key} embeddings {digest(questions.extra_ExD)}"
    is_complete = None
    if not reading.whole:
        key = f"{key} until settled"
        is_complete = _settles(
            questions, make_reader(lm.tokenizer, asked.rows, conversations.tokens(0))
        )
    sampler = sampler or model_sampler(
        lm, reading.sampling, reading.seed, reading.batch_size, questions.extra_ExD, is_complete
    )
    positions_NxR = answer_sampled(
        sampler,
        lm.tokenizer,
        conversations,
        asked.rows,
        asked_N=questions.row_N,
        runs=reading.runs,
        key=key,
        folder=folder,
        on_progress=on_progress,
    )
    return _sampled_answers(questions, positions_NxR.T[:, index_AxFxQ])


def _settles(
    questions: Questions, reader: ReplyReader
) -> Callable[[tuple[int, int], Sequence[int]], bool]:
    """Return what tells of a (conversation, run) whether its reply needs no more tokens."""
    return lambda name, tokens: reader.is_settled(int(questions.row_N[name[0]]), tokens)


def _exact_answers(
    questions: Questions, log_probs_AxFxQxO: np.ndarray, valid_mass_AxFxQ: np.ndarray
) -> Answers:
    """Return exact answers: the mean over presentations, and each presentation's."""
    each = {
        name: Answers(questions.conditions, log_probs_AxFxQxO[:, f], valid_mass_AxFxQ[:, f])
        for f, name in enumerate(questions.asked.presentations)
    }
    if len(each) == 1:
        return next(iter(each.values()))
    A, F, Q, _ = log_probs_AxFxQxO.shape
    flat_AxFQxO = log_probs_AxFxQxO.reshape(A, F * Q, -1)
    return Answers(
        questions.conditions,
        mean_log_probs(flat_AxFQxO, np.arange(F * Q).reshape(F, Q)),
        valid_mass_AxFxQ.mean(axis=1, dtype=np.float32),
        by_presentation=each,
    )


def _sampled_answers(questions: Questions, positions_RxAxFxQ: np.ndarray) -> Answers:
    """Return sampled answers: the replies under all presentations, and each presentation's."""
    names = questions.asked.presentations
    each = {
        name: Answers(questions.conditions, positions_NxAxQ=positions_RxAxFxQ[:, :, f])
        for f, name in enumerate(names)
    }
    if len(each) == 1:
        return next(iter(each.values()))
    positions = np.concatenate([part.positions_NxAxQ for part in each.values()])
    return Answers(questions.conditions, positions_NxAxQ=positions, by_presentation=each)


def answers_key(lm: LM, adapter: Adapter | None = None) -> str:
    """Return the `key` of `answer` for a model and an adapter: hashes of all weights in use."""
    dtypes = f"{lm.config.dtype} {lm.params['last']['q'].dtype}"
    if adapter is None:
        return f"{lm.sha256} {dtypes}"
    return f"{lm.sha256} {dtypes} adapter {adapter_digest(adapter)}"


def adapter_digest(adapter: Adapter) -> str:
    """Return sixteen hexadecimal digits for the weights of an adapter and their scale."""
    leaves = [
        (group, name, np.asarray(weights[name]))
        for group, weights in sorted(adapter.weights.items())
        for name in sorted(weights)
    ]
    return digest(adapter.config.scale, *(part for leaf in leaves for part in leaf))


def encode_conditions(
    files: ModelFiles,
    prompts: Prompts,
    conditions: Sequence[Condition],
    items: Sequence[Item],
    presentations: Sequence[str] = (PUBLISHED,),
    answer: AnswerForm = "number",
) -> Questions:
    """Return every item under every condition as token ids, condition by condition.

    Args:
        files: the model's config and tokenizer.
        prompts: the texts that word questions and personas.
        conditions: the conditions. Their adapters are left to the caller.
        items: the items.
        presentations: how items are shown, each once. What a condition puts before a question is
            shown like the question; examples before explicit orders, which are those of one item's
            options, as published.
        answer: what names an option, as in `Exact`.

    Raises:
        UserError: if a soft prompt is made for another model, a question is longer than the model
            can read, or an item cannot be shown in a presentation.
    """
    config = files.config
    asked = asked_items(prompts, items, presentations, answer)
    # One set of texts for each look of the examples, and which one a presentation has.
    looks = [name if is_general(name) else PUBLISHED for name in asked.presentations]
    reply = "mark" if answer == "number" else "label"
    texts = {
        look: dataclasses.replace(prompts, presentation=look, reply=reply)
        for look in dict.fromkeys(looks)
    }
    look_F = [list(texts).index(look) for look in looks]
    lead_ins: list[LeadIn] = []
    numbers_AxFxQ = np.empty((len(conditions), len(looks), len(items)), np.int64)
    soft_prompts = [np.zeros((0, config.hidden_size), np.float32)]
    rows = 0
    for a, condition in enumerate(conditions):
        different, number_LxQ = _lead_ins(condition, list(texts.values()), items)
        numbers_AxFxQ[a] = len(lead_ins) + number_LxQ[look_F]
        soft = condition.soft_prompt
        if soft is None:
            lead_ins.extend(different)
            continue
        length, width = np.shape(soft.embeddings_MxD)
        if width != config.hidden_size:
            raise UserError(
                f"soft prompt of condition {condition.name!r}: its embeddings are {width} wide "
                f"and the model's {config.hidden_size}; tune it for this model"
            )
        # Ids beyond the vocabulary stand for rows of the embeddings.
        first = config.vocab_size + rows
        ids = range(first, first + length)
        lead_ins.extend(SoftLeadIn(ids, soft.placement, messages) for messages in different)
        soft_prompts.append(np.asarray(soft.embeddings_MxD, np.float32))
        rows += length
    # Of each condition the items under every presentation, then their neutral questions.
    row_FxQ = [asked.index_FxQ]
    if asked.neutral_S is not None:
        row_FxQ.append(asked.neutral_S[asked.index_FxQ])
    row_KxFxQ = np.broadcast_to(np.stack(row_FxQ), (len(conditions), *np.shape(row_FxQ)))
    lead_in_AxKxFxQ = np.broadcast_to(numbers_AxFxQ[:, None], row_KxFxQ.shape)
    pairs, index_AxKxFxQ = _distinct(lead_in_AxKxFxQ, row_KxFxQ)
    conversations = encode(files.tokenizer, prompts, lead_ins, asked.rows, pairs)
    names = tuple(condition.name for condition in conditions)
    longest_A = conversations.read_lengths_N[index_AxKxFxQ].reshape(len(names), -1).max(axis=1)
    for name, tokens in zip(names, longest_A.tolist(), strict=True):
        if tokens > config.max_position_embeddings:
            raise UserError(
                f"condition {name!r}: its longest question has {tokens:,} tokens, but "
                f"the model has max_position_embeddings={config.max_position_embeddings}; show "
                "fewer examples or shorten the prompt"
            )
    return Questions(
        conversations,
        tuple(items),
        names,
        np.concatenate(soft_prompts),
        asked,
        row_N=pairs[:, 1],
        index_AxFxQ=index_AxKxFxQ[:, 0],
        neutral_AxFxQ=None if asked.neutral_S is None else index_AxKxFxQ[:, 1],
    )


def _lead_ins(
    condition: Condition, texts: Sequence[Prompts], items: Sequence[Item]
) -> tuple[list[list[Message]], np.ndarray]:
    """Return what a condition puts before items, in the words of each of several sets of texts.

    Returns:
        The lead-ins, those of equal texts once; and int [texts, Q], each item's among them.
    """
    lead_ins: list[list[Message]] = []
    known: list[tuple[list[list[Message]], int]] = []  # lead-ins, and where they begin
    numbers = []
    for prompts in texts:
        different, number_Q = condition.lead_ins(prompts, items)
        start = next((first for same, first in known if same == different), len(lead_ins))
        if start == len(lead_ins):
            known.append((different, start))
            lead_ins += different
        numbers.append(start + np.asarray(number_Q))
    return lead_ins, np.stack(numbers)


def _distinct(lead_in: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs of two arrays, int32 [N, 2] in order, and each place's among them.

    >>> [x.tolist() for x in _distinct(np.array([0, 0, 0]), np.array([2, 1, 2]))]
    [[[0, 2], [0, 1]], [0, 1, 0]]
    """
    key = lead_in.astype(np.int64) * (int(row.max()) + 1) + row
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by where a pair first stands, not by its numbers
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    at = first[order]
    pairs = np.stack([lead_in.reshape(-1)[at], row.reshape(-1)[at]], axis=1).astype(np.int32)
    return pairs, rank[inverse.reshape(key.shape)]


def adapted_params(lm: LM, condition: Condition) -> Params:
    """Return the weights that a condition is asked of, on this process's first device if whole.

    An adapter is laid beside the weights: added into them, it would take a copy of the model, and
    weights in 8 bits would lose it.
    """
    adapted = lm if condition.adapter is None else condition.adapter.attach(lm)
    return local_view(adapted.params)
