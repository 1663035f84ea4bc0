"""Replies as the fitness: what a search tunes when answers are read as users read them.

A candidate's prompt is put before every item, some replies are drawn, each is read for the option
that it names, and the shares of the options stand in for their probabilities:

    ask -> soft prompts -> replies -> options -> shares -> objective -> tell

No gradient goes through a reply, and no compiled program can read one. So the host drives every
generation (`jaxalign.optim.host_steps`) and writes all replies of it through one queue, whose
programs are compiled once. Replies to one question follow each other, as do the questions of one
candidate, so what they have in common is computed once.

A reply's random numbers depend on the entry's seed, the generation, the item as it is shown and the
number of the reply, but not on the candidate: candidates of a generation differ by their prompts
alone, not by chance (common random numbers, as in Glasserman and Yao 1992). Fitness is still a
noisy estimate, and the best of many noisy estimates is too good on average; what a run reports of a
prompt is therefore found from replies of its own.

Replies that name no option are counted. An item none of whose replies names one counts as answered
by a uniform choice: neither a reward for silence nor a failed candidate.

Letters: C entry, E member, P = C x E candidates, S item as it is shown, F presentation, Q item, O
option, R reply, Z search dimension, M prompt token, D model.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answering.asked import AskedItems
from jaxalign.answering.conversations import split_at_soft_prompt
from jaxalign.answering.reply_reader import ReplyReader, make_reader
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.decode_queue import DecodeQueue
from jaxalign.lm.generate import drain, open_queue
from jaxalign.lm.model import LM
from jaxalign.lm.sampling import Sampling
from jaxalign.methods.ask import ANSWERING
from jaxalign.methods.soft_prompt.fitness import FitnessInputs
from jaxalign.methods.soft_prompt.problem import Problem
from jaxalign.methods.soft_prompt.space import decode
from jaxalign.optim.evolve import Evolution
from jaxalign.optim.generation import State
from jaxalign.optim.host_steps import HostSteps, make_host_steps
from jaxalign.runtime.sharding import local_view


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a generation's replies say of its candidates.

    Attributes:
        fitness_CxE: float32.
        positions_CxExSxR: int8, the option that each reply names, in published order; negative
            where it names none.
        unreadable_C: int64, replies that name no option.
        unanswered_C: int64, items of all candidates, in all presentations, that count as uniform
            answers because none of their replies names an option.
    """

    fitness_CxE: np.ndarray
    positions_CxExSxR: np.ndarray
    unreadable_C: np.ndarray
    unanswered_C: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class SampledSearch:
    """A search whose fitness is replies: `init` and `run` stand in for those of `Evolution`.

    Attributes:
        evolution: The search: its entries, algorithm and mesh. Its own programs stay unused.
        questions: The tuned survey's items, as they are shown.
        replies: R, replies to each item in each presentation.
        dtype: Number format of the model's activations.
    """

    evolution: Evolution
    questions: Questions
    replies: int
    dtype: str
    _steps: HostSteps
    _queue: DecodeQueue
    _fitness: Callable

    @property
    def slots(self) -> int:
        """Number of replies that are written at a time, which a run records and keeps."""
        return self._queue.slots

    def describe(self) -> str:
        """Return one line for the log: what a generation decodes."""
        count = len(self.evolution.entries) * self.evolution.population
        return (
            f"replies are the fitness: {self.replies} to each of {self.questions.count} questions "
            f"for {count} candidates, {count * self.questions.count * self.replies:,} in each "
            f"generation, {self.slots} at a time"
        )

    def for_evolution(self, evolution: Evolution) -> SampledSearch:
        """Return the same compiled programs for other entries, as many as these."""
        steps = self._steps.for_evolution(evolution)
        return dataclasses.replace(self, evolution=evolution, _steps=steps)

    def init(
        self,
        initial: Callable[[int], jax.Array],
        inputs: FitnessInputs,
        on_progress: OnProgress = ignore,
    ) -> State:
        """Evaluate generation 0 and return the first state.

        Args:
            initial: A function from an entry's index to its population, [E, Z].
            inputs: The search space and the objective of the entries.
            on_progress: Called with the number of replies.
        """
        count = len(self.evolution.entries)
        members_CxExZ = np.stack([np.asarray(initial(c), np.float32) for c in range(count)])
        # Generation 0 is the initial population, evaluated as every other.
        found = self.evaluate(members_CxExZ, 0, inputs, on_progress)
        return self._steps.first(members_CxExZ.__getitem__, found.fitness_CxE)

    def run(
        self,
        state: State,
        generations: int,
        inputs: FitnessInputs,
        on_progress: OnProgress = ignore,
    ) -> tuple[State, dict[str, np.ndarray]]:
        """Run some generations.

        Args:
            state: The state to go on from. It is consumed.
            generations: Number of generations, T.
            inputs: The search space and the objective of the entries.
            on_progress: Called with the number of replies of each generation.

        Returns:
            The new state, and the metrics of `Evolution.run` by name, each [T, C], with
            `unreadable` and `unanswered` (see `Evaluation`) and `replies`, their whole number.
        """
        rows = []
        for _ in range(generations):
            # The state is that of the last generation; the number of the next is part of its draws.
            generation = int(jax.device_get(state.generation)) + 1
            # Ask on the device, reply on the host, tell on the device.
            asked = self._steps.ask(state)
            candidates_CxExZ = np.asarray(local_view(asked.candidates_CxExZ))
            found = self.evaluate(candidates_CxExZ, generation, inputs, on_progress)
            state, metrics = self._steps.tell(asked, found.fitness_CxE)
            replies = self.evolution.population * self.questions.count * self.replies
            rows.append(
                jax.device_get(metrics)
                | {
                    "replies": np.full(len(self.evolution.entries), replies),
                    "unreadable": found.unreadable_C,
                    "unanswered": found.unanswered_C,
                }
            )
        return state, {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def evaluate(
        self,
        candidates_CxExZ: np.ndarray,
        generation: int,
        inputs: FitnessInputs,
        on_progress: OnProgress = ignore,
    ) -> Evaluation:
        """Draw and read the replies of all candidates of a generation.

        Args:
            candidates_CxExZ: float32 search vectors.
            generation: Number of the generation, which the random numbers depend on.
            inputs: The search space and the objective of the entries.
            on_progress: Called with the number of replies.
        """
        C, E, Z = candidates_CxExZ.shape
        inputs = local_view(inputs.replace(items=None))
        # [C, E, M, D]: every candidate around the start of its own entry.
        prompts = np.asarray(_decode(inputs.space, candidates_CxExZ))
        # One table for all candidates: each one's ids beyond the vocabulary name its own rows.
        self._queue.renew(prompts.reshape(C * E * prompts.shape[2], -1).astype(self.dtype))
        positions_PxSxR = self._read(C * E, generation, on_progress)
        shares_PxSxO = self.questions.shares(positions_PxSxR)
        with np.errstate(divide="ignore"):
            log_probs_PxQxO = self.questions.asked.mean_log_probs(np.log(shares_PxSxO))
        # Candidates lie entry by entry.
        entry_P = np.repeat(np.arange(C, dtype=np.int32), E)
        fitness_P = self._fitness(
            inputs, candidates_CxExZ.reshape(C * E, Z), entry_P, log_probs_PxQxO
        )
        # An item counts as answered uniformly only where all of its replies fail.
        unread = positions_PxSxR.reshape(C, -1, self.replies) < 0
        return Evaluation(
            np.asarray(fitness_P).reshape(C, E),
            positions_PxSxR.reshape(C, E, *positions_PxSxR.shape[1:]),
            unread.sum(axis=(1, 2)),
            unread.all(axis=2).sum(axis=1),
        )

    def _read(self, candidates: int, generation: int, on_progress: OnProgress) -> np.ndarray:
        """Return the option that each reply names, int8 [P, S, R]; negative where it names none."""
        questions, E = self.questions, self.evolution.population
        S, R = questions.count, self.replies
        positions = np.zeros((candidates, S, R), np.int8)
        # The same for all candidates of an entry's generation: common random numbers.
        numbers = {
            seed: [reply_number(seed, generation, look) for look in questions.looks]
            for seed in {seed for _, seed in self.evolution.entries}
        }

        def requests() -> Iterator[tuple[tuple[int, int, int], np.ndarray, int, int]]:
            for p in range(candidates):
                _, seed = self.evolution.entries[p // E]
                for s in range(S):
                    # Replies to one question follow each other and share its computed prefix.
                    prompt = questions.prompt(p, s)
                    for r in range(R):
                        yield (p, s, r), prompt, numbers[seed][s], r

        def is_complete(name: tuple[int, int, int], tokens: Sequence[int]) -> bool:
            return questions.reader.is_settled(name[1], tokens)

        total = positions.size
        replies = drain(self._queue, requests(), is_complete)
        for done, (name, tokens) in enumerate(replies, start=1):
            positions[name] = questions.reader.read(name[1], tokens)
            if done % self._queue.slots == 0 or done == total:
                on_progress(Progress("reply", done, total, "replies"))
        return positions


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """The tuned survey's items as they are shown, behind a soft prompt, and how replies are read.

    Attributes:
        asked: S shown items, and which of them an item is in each presentation.
        prompts: Token ids of each conversation; those beyond the vocabulary stand for the prompt.
        vocabulary: Number of the model's own token ids.
        length: M, tokens of the soft prompt.
        reader: Reads the replies.
    """

    asked: AskedItems
    prompts: tuple[np.ndarray, ...]
    vocabulary: int
    length: int
    reader: ReplyReader

    @property
    def count(self) -> int:
        """S, the number of shown items."""
        return len(self.prompts)

    @functools.cached_property
    def looks(self) -> tuple[str, ...]:
        """What an item as it is shown is called, in words that random numbers are made of."""
        return tuple(f"{s.item.id} {s.order} {s.marks}" for s in self.asked.rows)

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return max(map(len, self.prompts))

    def prompt(self, candidate: int, s: int) -> np.ndarray:
        """Return the token ids of a conversation with the rows of a candidate's prompt, int32."""
        ids = self.prompts[s]
        return np.where(ids < self.vocabulary, ids, ids + candidate * self.length)

    def shares(self, positions_PxSxR: np.ndarray) -> np.ndarray:
        """Return the share of the replies that name each option, float32 [P, S, O].

        Of the replies that name one; uniform where none does.
        """
        # Options of an item as it is shown: presentations change their order, not their number.
        sizes_S = np.array([len(shown.order) for shown in self.asked.rows])
        options = np.arange(sizes_S.max())
        counts = (positions_PxSxR[..., None] == options).sum(axis=2)
        uniform_SxO = (options < sizes_S[:, None]) / sizes_S[:, None]
        readable = counts.sum(axis=-1, keepdims=True)
        shares = np.where(readable > 0, counts / np.maximum(readable, 1), uniform_SxO)
        return shares.astype(np.float32)


def make_sampled_search(
    problem: Problem,
    lm: LM,
    evolution: Evolution,
    *,
    sampling: Sampling = ANSWERING,
    slots: int | None = None,
) -> SampledSearch:
    """Build a search whose fitness is replies.

    Args:
        problem: What is searched.
        lm: The model, on the search's mesh.
        evolution: The search, made for any fitness: its entries, algorithm and mesh count.
        sampling: How replies are drawn.
        slots: Replies that are written at a time, as a run that is resumed has recorded it;
            default: as many as suit the memory.
    """
    questions, replies = make_questions(problem), problem.settings.replies
    candidates = len(evolution.entries) * evolution.population
    queue = open_queue(
        lm.config,
        lm.params,
        sampling,
        lm.tokenizer.stop_ids,
        0,
        replies=candidates * questions.count * replies,
        batch_size=slots,
        positions=questions.longest + sampling.max_new_tokens,
        mesh=lm.mesh,
    )
    return SampledSearch(
        evolution=evolution,
        questions=questions,
        replies=replies,
        dtype=lm.config.dtype,
        _steps=make_host_steps(evolution),
        _queue=queue,
        _fitness=jax.jit(_fitness),
    )


def make_questions(problem: Problem) -> Questions:
    """Return the tuned survey's items as a problem asks them, each behind a soft prompt."""
    prompt, tokenizer = problem.settings.prompt, problem.model.tokenizer
    vocabulary = problem.model.config.vocab_size
    # Ids past the vocabulary are rows of the prompts' own table.
    soft_ids = range(vocabulary, vocabulary + prompt.length)
    prompts = []
    for item in problem.asked.rows:
        chat = [problem.prompts.user(item)]
        before, after = split_at_soft_prompt(tokenizer, chat, prompt.placement)
        prompts.append(np.array([*before, *soft_ids, *after], np.int32))
    return Questions(
        asked=problem.asked,
        prompts=tuple(prompts),
        vocabulary=vocabulary,
        length=prompt.length,
        reader=make_reader(tokenizer, problem.asked.rows, prompts[0]),
    )


@jax.jit
def _decode(space: Any, z_CxExZ: jax.Array) -> jax.Array:
    return decode(space, z_CxExZ)


def _fitness(
    inputs: FitnessInputs, candidates_PxZ: jax.Array, entry_P: jax.Array, log_probs_PxQxO: jax.Array
) -> jax.Array:
    """Return the fitness of candidates whose answers are known, as `make_fitness` defines it."""
    loss_P = inputs.objective.loss(log_probs_PxQxO, entry_P)
    return loss_P + inputs.penalty * jnp.mean(jnp.square(candidates_PxZ), axis=-1)


def reply_number(seed: int, generation: int, look: str) -> int:
    """Return the number in [0, 2^32) that an item's replies in a generation are drawn with.

    Args:
        seed: The entry's seed.
        generation: The generation.
        look: The item as it is shown, one of `Questions.looks`.
    """
    return zlib.crc32(f"{seed} {generation} {look}".encode())
