"""What a CulturalBench run asks: every item of both sets under every method, as token ids.

Items of both sets are asked together, and each method is one condition whose lead-in follows the
country of the item. Three groups of conversations need programs of their own: the unchanged model,
the soft prompts (rows of embeddings besides the model's), and the adapted model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.batch import default_block_tokens
from jaxalign.answering.block_plan import plan_blocks
from jaxalign.answering.block_program import answer_program
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.lora import Adapter
from jaxalign.lm.model import LM, ModelFiles
from jaxalign.lm.weights import WeightFormat
from jaxalign.methods.ask import (
    Answers,
    Exact,
    Questions,
    Reading,
    Sampled,
    answer,
    answers_key,
    encode_conditions,
)
from jaxalign.methods.base import (
    ADAPTED,
    ADAPTED_PERSONA,
    ICL,
    NAIVE,
    PERMUTED,
    PERSONA,
    TUNED,
    Condition,
)
from jaxalign.methods.conditions import Plain
from jaxalign.methods.cultural_bench.sets import BenchSet
from jaxalign.methods.reply_programs import reply_programs
from jaxalign.methods.soft_prompt import SoftPrompt
from jaxalign.prompts import Message, Prompts, icl_messages
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.programs import Program
from jaxalign.stats.choice_scores import NOT_ASKED
from jaxalign.surveys.survey import Item

_EXACT = Exact()
BASELINES, PROMPTS, ADAPTER = "baselines", "tuned prompts", "adapter"


@dataclasses.dataclass(frozen=True)
class ByCountry(Condition):
    """A condition whose messages before an item follow the item's country.

    Attributes:
        key: Name in results.
        messages: The different lead-ins.
        number_Q: Which of them stands before each item.
    """

    key: str
    messages: tuple[tuple[Message, ...], ...] = dataclasses.field(repr=False)
    number_Q: tuple[int, ...] = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return self.key

    def lead_ins(
        self, prompts: Prompts, items: Sequence[Item]
    ) -> tuple[list[list[Message]], np.ndarray]:
        """Return the different lead-ins, and which of them stands before each item."""
        return [list(messages) for messages in self.messages], np.array(self.number_Q, int)


@dataclasses.dataclass(frozen=True)
class Numbered(Condition):
    """A soft prompt under a name of its own: several may be tuned for one country."""

    number: int
    prompt: SoftPrompt

    @property
    def name(self) -> str:
        """Label of the condition in results."""
        return f"{self.number} {self.prompt.name}"

    @property
    def soft_prompt(self) -> SoftPrompt:
        """The prompt."""
        return self.prompt


@dataclasses.dataclass(frozen=True)
class Asked:
    """Conversations that need the same weights and the same compiled program.

    Attributes:
        stage: What they are called in messages.
        questions: The conversations.
        positions: int, each item's position among the items of both sets.
        adapter: The adapter that is laid beside the weights.
    """

    stage: str
    questions: Questions
    positions: np.ndarray
    adapter: Adapter | None = None


@dataclasses.dataclass(frozen=True)
class Bench:
    """Everything that is asked.

    Attributes:
        sets: The sets, one after the other.
        asked: The conversations of both.
        soft_prompts: The tuned prompts.
    """

    sets: tuple[BenchSet, ...]
    asked: tuple[Asked, ...]
    soft_prompts: tuple[SoftPrompt, ...]


@dataclasses.dataclass(frozen=True)
class MethodAnswers:
    """What a method answered to the items of one set, by voice: a reply, or a soft prompt.

    Attributes:
        positions_SxQ: int, the option chosen; `NOT_ASKED` or another negative number for none.
        first_probs_SxQ: float, the probability of the first option, NaN where not asked; None for
            sampled replies.
        valid_mass: Mean probability that a reply begins with an option; None for sampled replies.
        log_probs_SxQxO: Log-probabilities of the options, NaN where not asked; None for sampled
            replies.
        valid_mass_SxQ: The probability that a reply to an item begins with an option, likewise.
    """

    positions_SxQ: np.ndarray
    first_probs_SxQ: np.ndarray | None = None
    valid_mass: float | None = None
    log_probs_SxQxO: np.ndarray | None = None
    valid_mass_SxQ: np.ndarray | None = None


def prepare(
    files: ModelFiles,
    prompts: Prompts,
    sets: Sequence[BenchSet],
    *,
    soft_prompts: Sequence[SoftPrompt] = (),
    adapter: Adapter | None = None,
    reading: Reading = _EXACT,
    platform: str = "cpu",
) -> Bench:
    """Encode everything that is asked, and cut it into blocks.

    Args:
        files: The model's config and tokenizer.
        prompts: The texts of a question and of a persona.
        sets: The sets.
        soft_prompts: Tuned prompts; one without a group goes with every country.
        adapter: A low-rank adapter of the model.
        reading: How answers are read.
        platform: JAX's name of the platform, which decides the default size of blocks.

    Raises:
        UserError: A soft prompt is made for another model, or a question is longer than the model
            can read.
    """
    items = tuple(item for bench_set in sets for item in bench_set.items)
    countries = tuple(code for bench_set in sets for code in bench_set.countries_Q)
    every = np.arange(len(items))
    persona = _persona(prompts, countries)
    conditions: list[Condition] = [Plain(), persona]
    if any(bench_set.examples for bench_set in sets):
        conditions.append(_in_context(prompts, sets))
    groups = [(BASELINES, conditions, every, None)]
    if soft_prompts:
        tuned = {prompt.group for prompt in soft_prompts}
        # A prompt without a group is asked everything, and so is any other beside it.
        positions = every[np.array([None in tuned or code in tuned for code in countries])]
        numbered = [Numbered(n, prompt) for n, prompt in enumerate(soft_prompts)]
        if len(positions):
            groups.append((PROMPTS, numbered, positions, None))
    if adapter is not None:
        groups.append((ADAPTER, [Plain(), persona], every, adapter))
    asked = []
    for stage, of_stage, positions, beside in groups:
        chosen = [items[q] for q in positions]
        questions = encode_conditions(files, prompts, of_stage, chosen)
        if isinstance(reading, Exact):
            tokens = reading.block_tokens or default_block_tokens(platform)
            plan = plan_blocks(questions.conversations, tokens)
            questions = dataclasses.replace(questions, plan=plan)
        asked.append(Asked(stage, questions, positions, beside))
    return Bench(tuple(sets), tuple(asked), tuple(soft_prompts))


def _persona(prompts: Prompts, countries: Sequence[str]) -> ByCountry:
    number = {code: n for n, code in enumerate(dict.fromkeys(countries))}
    messages = tuple((prompts.system(code),) for code in number)
    return ByCountry(PERSONA.key, messages, tuple(number[code] for code in countries))


def _in_context(prompts: Prompts, sets: Sequence[BenchSet]) -> ByCountry:
    """Return the persona line and the examples of each set and country."""
    messages: list[tuple[Message, ...]] = []
    number_Q: list[int] = []
    for bench_set in sets:
        number: dict[str, int] = {}
        for code in bench_set.countries_Q:
            if code not in number:
                number[code] = len(messages)
                shown = [
                    (bench_set.items[q], bench_set.test.answers[q])
                    for q in bench_set.examples.get(code, ())
                ]
                messages.append((prompts.system(code), *icl_messages(prompts, shown)))
            number_Q.append(number[code])
    return ByCountry(ICL.key, tuple(messages), tuple(number_Q))


def programs(
    bench: Bench,
    files: ModelFiles,
    mesh: Mesh,
    reading: Reading,
    weights: WeightFormat = "stored",
) -> tuple[Program, ...]:
    """Return the programs that asking executes, to be compiled and checked before anything else."""
    if isinstance(reading, Sampled):
        return tuple(_sampled_programs(bench, files, mesh, reading, weights))
    found = []
    for asked in bench.asked:
        jitted, arguments = answer_program(
            files.config,
            mesh,
            asked.questions.plan.shape,
            extra_rows=len(asked.questions.extra_ExD),
            lora=None if asked.adapter is None else asked.adapter.config,
            weights=weights,
        )
        found.append(
            Program.of(
                f"answers to CulturalBench, {asked.stage}",
                asked.stage,
                jitted,
                arguments,
                remedy="lower `block_tokens`, or split the weights (`model_parallel`)",
                unit="block",
            )
        )
    return tuple(found)


def _sampled_programs(
    bench: Bench, files: ModelFiles, mesh: Mesh, reading: Sampled, weights: WeightFormat
) -> list[Program]:
    """Return the programs that write the replies to the longest questions."""
    asked = max(bench.asked, key=lambda asked: asked.questions.conversations.lengths_N.max())
    conversations = asked.questions.conversations
    return reply_programs(
        files,
        mesh,
        reading.sampling,
        replies=len(conversations) * reading.runs,
        prompt_tokens=int(conversations.lengths_N.max()),
        batch_size=reading.batch_size,
        available=available_bytes(mesh.local_devices[0]),
        stage="answers",
        weights=weights,
        lora=None if asked.adapter is None else asked.adapter.config,
        extra_rows=len(asked.questions.extra_ExD),
    )


def ask_bench(
    lm: LM,
    bench: Bench,
    reading: Reading,
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
) -> tuple[dict[str, MethodAnswers], ...]:
    """Ask everything, and return each set's answers by the key of the method.

    Args:
        lm: The model.
        bench: What is asked.
        reading: How answers are read.
        folder: Directory that keeps the answers, from where a killed call continues; None keeps
            none.
        on_progress: Called with the number of blocks or replies that are done, stage by stage.
    """
    found: list[dict[str, MethodAnswers]] = [{} for _ in bench.sets]
    for asked in bench.asked:
        answers = answer(
            lm if asked.adapter is None else asked.adapter.attach(lm),
            asked.questions,
            reading,
            key=answers_key(lm, asked.adapter),
            folder=folder,
            on_progress=on_progress,
            task=f"{asked.stage}, block",
        )
        first = 0
        for bench_set, methods in zip(bench.sets, found, strict=True):
            columns = slice(first, first + len(bench_set.items))
            methods |= _methods(bench, bench_set, asked, answers, columns)
            first = columns.stop
    return tuple(found)


def _methods(
    bench: Bench, bench_set: BenchSet, asked: Asked, answers: Answers, columns: slice
) -> dict[str, MethodAnswers]:
    """Return the methods that one group of conversations answers, for one set."""
    # Which columns of the answers belong to the set, and where they stand in it.
    here = (asked.positions >= columns.start) & (asked.positions < columns.stop)
    at_Q = asked.positions[here] - columns.start
    Q = len(bench_set.items)

    def of(rows: Sequence[int], wanted_RxQ: np.ndarray) -> MethodAnswers:
        return _select(answers, here, at_Q, rows, wanted_RxQ)

    every = np.ones((1, Q), bool)
    if asked.stage == PROMPTS:
        return _prompt_methods(bench, bench_set, of)
    methods = {}
    for row, name in enumerate(answers.conditions):
        wanted = every
        if name == ICL.key:
            shown = bench_set.example_questions
            wanted = np.array(
                [
                    code in bench_set.examples and question not in shown
                    for code, question in zip(
                        bench_set.countries_Q, bench_set.test.groups, strict=True
                    )
                ]
            )[None]
            if not wanted.any():
                continue
        key = name
        if asked.stage == ADAPTER:
            key = {NAIVE.key: ADAPTED.key, PERSONA.key: ADAPTED_PERSONA.key}[name]
        methods[key] = of([row], wanted)
    return methods


def _prompt_methods(
    bench: Bench, bench_set: BenchSet, of: Callable[..., MethodAnswers]
) -> dict[str, MethodAnswers]:
    """Return each country's own prompts on its questions, and the other countries' prompts."""
    groups = [prompt.group for prompt in bench.soft_prompts]
    codes = bench_set.countries_Q
    own = np.array([[group is None or group == code for code in codes] for group in groups])
    # The control is for countries that have a prompt of their own.
    others = np.array(
        [
            [group is not None and group != code and code in groups for code in codes]
            for group in groups
        ]
    )
    rows = list(range(len(groups)))
    wanted = {TUNED.key: own, PERMUTED.key: others}
    return {key: of(rows, where) for key, where in wanted.items() if where.any()}


def _select(
    answers: Answers,
    here: np.ndarray,
    at_Q: np.ndarray,
    rows: Sequence[int],
    wanted_RxQ: np.ndarray,
) -> MethodAnswers:
    """Return some conditions' answers to a set, as one voice per condition and reply."""
    asked_RxQ = np.zeros_like(wanted_RxQ)
    asked_RxQ[:, at_Q] = wanted_RxQ[:, at_Q]
    if answers.positions_NxAxQ is not None:
        chosen_NxRxQ = answers.positions_NxAxQ[:, rows][..., here]
        positions = np.full((len(chosen_NxRxQ), *asked_RxQ.shape), NOT_ASKED)
        positions[..., at_Q] = chosen_NxRxQ
        positions = np.where(asked_RxQ, positions, NOT_ASKED)
        return MethodAnswers(positions.reshape(-1, asked_RxQ.shape[1]))
    log_probs_RxQxO = answers.log_probs_AxQxO[rows][:, here]
    positions = np.full(asked_RxQ.shape, NOT_ASKED)
    positions[:, at_Q] = log_probs_RxQxO.argmax(axis=-1)
    first = np.full(asked_RxQ.shape, np.nan)
    first[:, at_Q] = np.exp(log_probs_RxQxO[..., 0])
    mass = np.full(asked_RxQ.shape, np.nan)
    mass[:, at_Q] = answers.valid_mass_AxQ[rows][:, here]
    log_probs = np.full((*asked_RxQ.shape, log_probs_RxQxO.shape[-1]), np.nan)
    log_probs[:, at_Q] = log_probs_RxQxO
    return MethodAnswers(
        np.where(asked_RxQ, positions, NOT_ASKED),
        np.where(asked_RxQ, first, np.nan),
        float(mass[asked_RxQ].mean()),
        np.where(asked_RxQ[..., None], log_probs, np.nan),
        np.where(asked_RxQ, mass, np.nan),
    )
