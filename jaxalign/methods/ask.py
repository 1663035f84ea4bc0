"""Ask a model surveys under any list of conditions: the one way in which every experiment asks.

    conditions, items --encode_conditions--> Questions --answer--> Answers --responses--> Responses

`ask` is all of it for one survey. Experiments take the steps one by one: what is asked is known as
token ids before anything is computed (`Questions`), so that programs can be compiled and checked
first, and several surveys can be asked together.

Answers are read in one of two ways. `Exact` computes the probability of each option, without
sampling noise. `Sampled` draws replies and takes the first integer of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxalign.answering.batch import answer_exact
from jaxalign.answering.block_plan import BlockPlan
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import LeadIn, SoftLeadIn, encode
from jaxalign.answering.partial import digest
from jaxalign.answering.sampled import answer_sampled, model_sampler
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import LM, ModelFiles
from jaxalign.lm.sampling import Sampling
from jaxalign.lm.weights import Params
from jaxalign.methods.base import Condition
from jaxalign.prompts import Prompts, load_prompts
from jaxalign.runtime.sharding import local_view
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Item, Survey

ANSWERING = Sampling(max_new_tokens=16, temperature=0.6, top_p=0.9)
"""How CultureSPA samples answers (Xu et al. 2025); they publish no length."""


@dataclasses.dataclass(frozen=True)
class Exact:
    """Read the probability of each option's number as the reply; nothing is sampled.

    Attributes:
        block_tokens: Tokens computed together; default: follows the device.

    >>> import jaxalign as ja
    >>> ja.Exact(block_tokens=4096)
    Exact(block_tokens=4096)
    """

    block_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Draw replies, and read the first integer of each.

    Attributes:
        runs: Replies to each question.
        sampling: How replies are drawn; default: as CultureSPA does.
        seed: Seed of the replies.
        batch_size: Replies written at a time, at most; fewer if memory is short.

    >>> import jaxalign as ja
    >>> ja.Sampled(runs=5).sampling.temperature
    0.6
    """

    runs: int = 3
    sampling: Sampling = ANSWERING
    seed: int = 0
    batch_size: int = 64


Reading = Exact | Sampled
"""How answers are read."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """Q items under each of A conditions, as token ids.

    Attributes:
        conversations: Condition by condition, item by item.
        items: The items.
        conditions: A labels.
        extra_ExD: float32, the embeddings of all soft prompts, one below the other.
        plan: The conversations cut into blocks, if that has been done.
    """

    conversations: Conversations
    items: tuple[Item, ...]
    conditions: tuple[str, ...]
    extra_ExD: np.ndarray
    plan: BlockPlan | None = None


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model answers to `Questions`.

    Attributes:
        conditions: A labels.
        log_probs_AxQxO: float32, of exact answers; None for sampled ones.
        valid_mass_AxQ: float32, of exact answers.
        positions_NxAxQ: int8, of sampled answers: the option that each of N replies names.
    """

    conditions: tuple[str, ...]
    log_probs_AxQxO: np.ndarray | None = None
    valid_mass_AxQ: np.ndarray | None = None
    positions_NxAxQ: np.ndarray | None = None

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
        reading: how answers are read: `Exact()`, by the probability of each option's number as the
            reply, in every way the tokenizer writes it; or `Sampled(...)`, from drawn replies.
        prompts: the texts that word questions and personas; default: the package's own.
        folder: directory that keeps the answers, from where a killed call continues with the same
            bits; None keeps none.
        on_progress: called with the number of answers, before the first and then again and again.

    Returns:
        The responses. Exact ones have `log_probs` float32 [A, Q, O], natural logarithms normalised
        over an item's options, and `valid_mass` float32 [A, Q], the probability that a reply begins
        with an option at all. Of sampled ones both are shares of the replies.

    Raises:
        UserError: if two conditions have the same name, a soft prompt is made for another model, or
            a question is longer than the model can read.

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
    asked = [
        encode_conditions(lm.files, prompts, [conditions[row] for row in rows], survey.items)
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
    # Back into the given order.
    order = np.argsort([row for rows in groups.values() for row in rows])
    if isinstance(reading, Sampled):
        positions = np.concatenate([part.positions for part in parts], axis=1)[:, order]
        return Responses.from_positions(survey, names, positions)
    log_probs = np.concatenate([part.log_probs for part in parts])[order]
    valid_mass = np.concatenate([part.valid_mass for part in parts])[order]
    return Responses(survey, names, log_probs, valid_mass)


def answer(
    lm: LM,
    questions: Questions,
    reading: Reading,
    *,
    key: str = "",
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
    task: str = "block",
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

    Raises:
        UserError: If the model answers NaN, or a file in `folder` cannot be continued.
    """
    conversations, shape = questions.conversations, (len(questions.conditions), -1)
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
            on_progress=on_progress,
            task=task,
        )
        log_probs = exact.log_probs_NxO
        return Answers(
            questions.conditions,
            log_probs.reshape(shape[0], len(questions.items), log_probs.shape[-1]),
            exact.valid_mass_N.reshape(shape),
        )
    key = f"{key} seed {reading.seed}"
    if len(questions.extra_ExD):
        key = f"{key} embeddings {digest(questions.extra_ExD)}"
    positions_AxQxN = answer_sampled(
        model_sampler(lm, reading.sampling, reading.seed, reading.batch_size, questions.extra_ExD),
        lm.tokenizer,
        conversations,
        questions.items,
        runs=reading.runs,
        key=key,
        folder=folder,
        on_progress=on_progress,
    ).reshape(*shape, reading.runs)
    return Answers(questions.conditions, positions_NxAxQ=np.moveaxis(positions_AxQxN, -1, 0))


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
    files: ModelFiles, prompts: Prompts, conditions: Sequence[Condition], items: Sequence[Item]
) -> Questions:
    """Return every item under every condition as token ids, condition by condition.

    Args:
        files: the model's config and tokenizer.
        prompts: the texts that word questions and personas.
        conditions: the conditions. Their adapters are left to the caller.
        items: the items.

    Raises:
        UserError: if a soft prompt is made for another model, or a question is longer than the
            model can read.
    """
    config = files.config
    lead_ins: list[LeadIn] = []
    pairs: list[np.ndarray] = []
    soft_prompts = [np.zeros((0, config.hidden_size), np.float32)]
    rows = 0
    for condition in conditions:
        different, number_Q = condition.lead_ins(prompts, items)
        pairs.append(np.stack([len(lead_ins) + number_Q, np.arange(len(items))], axis=1))
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
    conversations = encode(files.tokenizer, prompts, lead_ins, items, np.concatenate(pairs))
    names = tuple(condition.name for condition in conditions)
    longest_A = conversations.read_lengths_N.reshape(len(names), -1).max(axis=1)
    for name, tokens in zip(names, longest_A.tolist(), strict=True):
        if tokens > config.max_position_embeddings:
            raise UserError(
                f"condition {name!r}: its longest question has {tokens:,} tokens, but "
                f"the model has max_position_embeddings={config.max_position_embeddings}; show "
                "fewer examples or shorten the prompt"
            )
    return Questions(conversations, tuple(items), names, np.concatenate(soft_prompts))


def adapted_params(lm: LM, condition: Condition) -> Params:
    """Return the weights that a condition is asked of, on this process's first device if whole.

    An adapter is laid beside the weights: added into them, it would take a copy of the model, and
    weights in 8 bits would lose it.
    """
    adapted = lm if condition.adapter is None else condition.adapter.attach(lm)
    return local_view(adapted.params)
