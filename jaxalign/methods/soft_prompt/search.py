"""The search for soft prompts: built once, compiled once, run with checkpoints.

`build_search` puts together what a search needs: the questions on the devices, the objective, the
search space, the number of prompts computed at a time, and the compiled program. `Search.run`
carries it through its generations, from its latest checkpoint if there is one. Everything that
searches uses it: `run_soft_prompt`, the cells of a sweep, the plans of `jaxalign plan` and the
scaling benchmark (the last two from shapes alone, with `lower_search`).

The mesh, the number of prompts computed at a time and the kernel of the attention are chosen before
anything is compiled. The last bits of results depend on the latter two, so a run records them, and
a run that is resumed keeps them.

Letters: C entry (a group under a seed), E member, Z search dimension, M prompt token, D model, Q
item, O option.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.cost import padding_text, plan_report, plan_text
from jaxalign.answering.kernel_choice import KERNEL_OPTIONS, choose_kernel
from jaxalign.answering.options import Kernel, PreparedItems, prepare_items
from jaxalign.answering.plan import Layout
from jaxalign.answering.plan_suffix import SuffixLayout
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Progress, ignore
from jaxalign.lm.bits import as_bits
from jaxalign.lm.config import LlamaConfig
from jaxalign.lm.mesh import ROOM, device_mesh, weight_bytes
from jaxalign.lm.model import LM, load_model
from jaxalign.lm.weights import WeightFormat, program_params
from jaxalign.methods.ask import Exact, Questions, answer, encode_conditions
from jaxalign.methods.base import Condition
from jaxalign.methods.conditions import Persona, Plain
from jaxalign.methods.soft_prompt.fitness import FitnessInputs, Read, make_fitness
from jaxalign.methods.soft_prompt.history import History
from jaxalign.methods.soft_prompt.problem import Problem, chosen_presentations, start_text
from jaxalign.methods.soft_prompt.sampled import SampledSearch, make_sampled_search
from jaxalign.methods.soft_prompt.settings import entry_labels
from jaxalign.methods.soft_prompt.space import (
    SoftPromptConfig,
    Space,
    decode,
    group_key,
    initial_population,
    initial_prompt,
    make_space,
)
from jaxalign.optim.api import Optimizer
from jaxalign.optim.evolve import Entry, Evolution, make_evolution
from jaxalign.optim.generation import State
from jaxalign.runs import Run, identity_of
from jaxalign.runs.checkpoints import Checkpoints
from jaxalign.runtime.hosts import agreed, agreed_choice
from jaxalign.runtime.memory import available_bytes, busy_chunk, fitting_chunk
from jaxalign.runtime.platform import target_platform
from jaxalign.runtime.sharding import MODEL, POPULATION, local_view, place_whole, replicated
from jaxalign.stats.objectives import Objective
from jaxalign.stats.objectives.vsm import VsmObjective
from jaxalign.stats.vsm import Scorer, anchor_constants, make_scorer
from jaxalign.surveys.hofstede import DIMENSIONS, targets

_log = logging.getLogger("jaxalign")

_LONGEST_UNSAVED_SECONDS = 60  # of generations that the host drives one by one


# -- before anything is compiled --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ExecutionPlan:
    """How a search is computed: what its last bits depend on besides its settings."""

    chunk: int  # prompts computed at a time, at most
    kernel: Kernel  # of the attention
    fixed: bool  # whether no other chunk will do
    slots: int | None = None  # replies written at a time; None: as many as suit the memory


def choose_search_mesh(problem: Problem, candidates: int | None = None, prefix: str = "") -> Mesh:
    """Choose the mesh that fits the model and the population.

    Args:
        problem: What is searched.
        candidates: Candidates per generation; default: those of a search per country and seed.
        prefix: Text before the reason that is logged.
    """
    settings, config = problem.settings, problem.model.config
    if candidates is None:
        candidates = settings.candidates
    mesh, choice = device_mesh(
        config,
        candidates,
        search_dims=settings.prompt.dims(config.hidden_size),
        searches=max(1, candidates // settings.strategy.population),
        model_parallel=settings.model_parallel,
        weights=settings.weights,
    )
    _log.debug("%s%s", prefix, choice.describe())
    return mesh


def choose_execution(
    problem: Problem, mesh: Mesh, recorded: Mapping[str, Any], searches: int | None = None
) -> ExecutionPlan:
    """Choose the number of prompts computed at a time, and the kernel. Needs no weights.

    Args:
        problem: What is searched.
        mesh: The devices.
        recorded: Facts of the run that is resumed, whose choices are kept; empty for a new one.
            Only process 0's counts.
        searches: Number of searches in all; default: one per country and seed.

    Raises:
        UserError: for a kernel that this device does not have.
    """
    settings = problem.settings
    kept = agreed(recorded.get("chunk", 0))
    chunk = kept or settings.chunk
    if not chunk:
        candidates = (searches or len(settings.entries)) * settings.strategy.population
        chunk = busy_chunk(problem.layout.tokens_computed, target_platform())
        # More than all candidates would be padding anywhere. A device's share is no such bound: the
        # last bits depend on the chunk, and must not depend on the number of devices.
        chunk = min(chunk, 1 << (candidates - 1).bit_length())
    wanted = agreed_choice(KERNEL_OPTIONS, recorded.get("attention", settings.attention))
    config, model_devices = problem.model.config, mesh.shape[MODEL]
    choice = choose_kernel(config, problem.layout, chunk, model_devices, wanted)
    if "attention" in recorded:
        choice = dataclasses.replace(choice, reason="as this run began")
    _log.debug(choice.describe())
    slots = agreed(recorded.get("reply_slots", 0)) or None
    return ExecutionPlan(chunk, choice.kernel, fixed=kept > 0, slots=slots)


def log_int8_change(problem: Problem, lm: LM) -> None:
    """Log what 8 bits do to the plain model's answers, where the stored model fits as well.

    Args:
        problem: What is searched; its model is loaded a second time, as stored.
        lm: The same model in int8.
    """
    settings, split = problem.settings, lm.mesh.shape[MODEL]
    both = sum(weight_bytes(lm.config, split, kind) for kind in ("stored", "int8"))
    available = agreed(available_bytes(jax.local_devices()[0]) or sys.maxsize)
    if both > (1 - ROOM) * available:
        _log.info(
            "int8 weights: what they change in the answers was not measured, because the stored "
            "model does not fit beside them"
        )
        return
    questions = _asked(problem, [Plain()])

    def probabilities(model: LM) -> np.ndarray:
        return np.exp(answer(model, questions, Exact(answer=settings.answer)).log_probs_AxQxO[0])

    # Exact probabilities before and after, so that the change is the quantisation's alone.
    before, after = probabilities(load_model(problem.model, mesh=lm.mesh)), probabilities(lm)
    change = np.abs(after - before)
    same = int((before.argmax(-1) == after.argmax(-1)).sum())
    _log.info(
        f"int8 weights: option probabilities change by {change[before > 0].mean():.4f} on average "
        f"and {change.max():.4f} at most; {same} of {len(before)} most likely answers stay"
    )


def score_constants(problem: Problem, lm: LM) -> np.ndarray:
    """Return C of each dimension, float32 [6]: as given, or fitted on the reference countries."""
    settings = problem.settings
    if not settings.anchor:
        return np.full(len(DIMENSIONS), settings.constant, np.float32)
    # Scores without C of the model speaking as each reference country ...
    personas = [Persona(country, problem.group_name(country)) for country in settings.anchor]
    questions = _asked(problem, personas)
    log_probs = answer(lm, questions, Exact(answer=settings.answer)).log_probs_AxQxO
    published_Rx6, used_6 = targets(settings.anchor, settings.edition, settings.dimensions)
    scorer = make_scorer(problem.tuned_survey, mas_weight=settings.mas_weight)
    raw_Rx6 = scorer.scores(log_probs)
    # ... and the C that brings them nearest to the published scores, dimension by dimension.
    fitted_6 = np.asarray(anchor_constants(raw_Rx6, published_Rx6))
    return np.where(used_6, fitted_6, 0.0).astype(np.float32)


def _asked(problem: Problem, conditions: Sequence[Condition]) -> Questions:
    """Return the tuned survey's questions in the presentations that are tuned on."""
    return encode_conditions(
        problem.model,
        problem.prompts,
        conditions,
        problem.tuned_survey.items,
        chosen_presentations(problem.settings, problem.model),
        problem.settings.answer,
    )


# -- the search -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search found."""

    best_CxZ: np.ndarray  # float32, each entry's best candidate
    fitness_C: np.ndarray  # float32, the fitness of it
    seconds: float  # spent on generations in this process, compilation included; 0 if none was left


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A compiled search of C entries, and everything that it reads."""

    problem: Problem
    execution: ExecutionPlan
    evolution: Evolution
    inputs: FitnessInputs  # of these entries, on the devices
    objective: Objective  # of all the problem's groups, on this process's first device
    embed_VxD: jax.Array  # the model's embedding table, which prompts start from
    sampled: SampledSearch | None = None  # what runs it where replies are the fitness

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Group and seed of each entry."""
        return self.evolution.entries

    @property
    def local_inputs(self) -> FitnessInputs:
        """The inputs on this process's first device, for work that each process does itself."""
        return local_view(self.inputs)

    @property
    def facts(self) -> dict[str, Any]:
        """What a run records of the search; a run that is resumed keeps it."""
        execution = self.execution
        return {
            "search": self.evolution.settings,
            "chunk": execution.chunk,
            "attention": execution.kernel,
            **({"reply_slots": self.sampled.slots} if self.sampled else {}),
        }

    def for_entries(self, entries: Sequence[Entry]) -> Search:
        """Return the same compiled programs for other entries, which must be as many as these."""
        evolution, inputs = self.evolution.for_entries(entries), self.inputs_for(entries)
        sampled = self.sampled and self.sampled.for_evolution(evolution)
        return dataclasses.replace(self, evolution=evolution, inputs=inputs, sampled=sampled)

    def inputs_for(self, entries: Sequence[Entry]) -> FitnessInputs:
        """Return the inputs of any entries, on the devices; weights and items are the same arrays.

        Args:
            entries: Group and seed of each entry, in any number.
        """
        starts_CxMxD = initial_prompts(self.problem, self.embed_VxD, entries)
        space = dataclasses.replace(self.inputs.space, start=starts_CxMxD)
        # The objective holds every group once; entries of one group under several seeds share it.
        rows = [self.problem.settings.countries.index(group) for group, _ in entries]
        inputs = self.inputs.replace(space=space, objective=self.objective.for_groups(rows))
        return place_whole(inputs, self.evolution.sharding)

    def first_members(self, entry: int) -> jax.Array:
        """Return an entry's initial population, float32 [E, Z], drawn from its own key."""
        group, seed = self.entries[entry]
        key = group_key(jax.random.key(seed), group)
        return initial_population(self.local_inputs.space, key, self.evolution.population)

    def run(
        self,
        checkpoints: Path | str | None = None,
        *,
        record: Run | None = None,
        resume: bool = True,
        save_last: bool = True,
        history: History | None = None,
        needs_loss: bool = False,
        on_progress: OnProgress = ignore,
    ) -> Outcome:
        """Run the search to its last generation.

        Args:
            checkpoints: Directory for a checkpoint per dispatch; None keeps none.
            record: The run whose `metrics.jsonl` gets a line per generation.
            resume: Whether to go on from the latest checkpoint, if there is one.
            save_last: Whether the last generation is saved too, so that a run that is resumed
                after its search need not repeat it.
            history: Keeps the best search vectors that were found on the way.
            needs_loss: Whether it is an error that no candidate of an entry has had a finite loss.
            on_progress: Called before the first dispatch and after each.

        Raises:
            UserError: With `needs_loss`, after the first dispatch in which that is so.
        """
        settings = self.problem.settings
        with contextlib.ExitStack() as stack:
            identity = identity_of(settings, [list(entry) for entry in self.entries])
            saved = checkpoints and stack.enter_context(Checkpoints(checkpoints, identity=identity))
            restored = bool(saved and resume and saved.latest is not None)
            if restored:
                done, state = saved.restore(self.evolution.abstract_state())
                state = self.evolution.to_devices(state)
            else:
                if record is not None and record.resumed and saved:
                    _log.info(f"no checkpoint found in {saved.directory}; starting at generation 0")
                done, state = 0, self._begin(on_progress)
            if record is not None:
                record.rewind(done if restored else -1)
            started, first = time.monotonic(), done
            saved_at = started  # of the last checkpoint
            failing = False  # whether a candidate without a finite loss has been spoken of
            on_progress(self._progress(done))
            while done < settings.generations:
                state, metrics = self._advance(state, done, on_progress)
                metrics = jax.device_get(metrics)
                failing = self._note_failures(done, metrics, failing, needs_loss)
                # The metrics first: a checkpoint without its metrics could not be made up for.
                if record is not None:
                    _log_generations(record, self._labels, done, metrics)
                done += len(metrics["best"])
                # Likewise before the checkpoint.
                if history is not None and done in history.generations:
                    history.keep(done, np.stack([z_Z for z_Z, _ in self.evolution.best(state)]))
                last = done == settings.generations
                if saved and (save_last if last else self._is_due(done, saved_at)):
                    saved.save(done, self.evolution.to_entries(state))
                    saved_at = time.monotonic()
                on_progress(self._progress(done, metrics))
        seconds = time.monotonic() - started
        best, fitness = zip(*self.evolution.best(state), strict=True)
        seconds = seconds if done > first else 0.0
        return Outcome(np.stack(best), np.array(fitness, np.float32), seconds)

    def _note_failures(
        self, done: int, metrics: Mapping[str, np.ndarray], noted: bool, needs_loss: bool
    ) -> bool:
        """Speak of the first candidates whose loss is not finite; return whether there were any."""
        remedy = "is the model's dtype too narrow, or `spread` too large?"
        lost_C = ~np.isfinite(metrics["best_so_far"][-1])
        if needs_loss and lost_C.any():
            label = self._labels[int(lost_C.argmax())]
            raise UserError(
                f"{label}: no candidate has a finite loss after generation "
                f"{done + len(metrics['failed'])}; {remedy}"
            )
        failed_TxC = metrics["failed"]
        if not noted and failed_TxC.any():
            t, c = (int(place[0]) for place in np.nonzero(failed_TxC))
            _log.warning(
                f"generation {done + t + 1}: the loss of {failed_TxC[t, c]} of "
                f"{self.evolution.population} candidates of {self._labels[c]} is not finite; they "
                f"lose every comparison. If it is many, {remedy}"
            )
        return noted or bool(failed_TxC.any())

    def _begin(self, on_progress: OnProgress) -> State:
        """Return the state after generation 0."""
        if self.sampled is None:
            return self.evolution.init(self.first_members, self.inputs)
        on_replies = self._reply_progress(0, on_progress)
        return self.sampled.init(self.first_members, self.inputs, on_replies)

    def _advance(
        self, state: State, done: int, on_progress: OnProgress
    ) -> tuple[State, dict[str, Any]]:
        """Return the state and the metrics after the generations of a dispatch.

        Where replies are the fitness, a dispatch is one generation.
        """
        settings = self.problem.settings
        if self.sampled is None:
            steps = min(settings.save_every, settings.generations - done)
            return self.evolution.run(state, steps, self.inputs)
        return self.sampled.run(state, 1, self.inputs, self._reply_progress(done, on_progress))

    def _is_due(self, done: int, saved_at: float) -> bool:
        """Return whether a checkpoint is due, before the last generation."""
        if self.sampled is None or done % self.problem.settings.save_every == 0:
            return True
        return agreed(int(time.monotonic() - saved_at > _LONGEST_UNSAVED_SECONDS)) > 0

    def _reply_progress(self, done: int, on_progress: OnProgress) -> OnProgress:
        """Return what shows the replies of a generation beside the number of generations."""

        def report(event: Progress) -> None:
            replies = f"{event.done:,} of {event.total:,}"
            on_progress(dataclasses.replace(self._progress(done), fields={"replies": replies}))

        return report

    def prompts(self, z_CxZ: jax.Array | np.ndarray) -> jax.Array:
        """Return the soft prompt of one search vector per entry, float32 [C, M, D]."""
        return jax.jit(decode)(self.local_inputs.space, jnp.asarray(z_CxZ)[:, None])[:, 0]

    @property
    def start_prompts(self) -> jax.Array:
        """The prompts that the entries start from, float32 [C, M, D]."""
        return self.local_inputs.space.start

    @property
    def _labels(self) -> tuple[str, ...]:
        """Names of the entries: their groups', with the seed where seeds differ."""
        return entry_labels(self.entries)

    def _progress(self, done: int, metrics: Mapping[str, np.ndarray] | None = None) -> Progress:
        fields = {}
        if metrics is not None:
            best_C, median_C = metrics["best_so_far"][-1], metrics["median"][-1]
            fields = {
                label: f"{best:.1f} (median {median:.1f})"
                for label, best, median in zip(self._labels, best_C, median_C, strict=True)
            }
        return Progress(
            "generation",
            done,
            self.problem.settings.generations,
            unit="candidates",
            units_per_step=len(self.entries) * self.evolution.population,
            fields=fields,
        )


def build_search(
    problem: Problem,
    lm: LM,
    execution: ExecutionPlan,
    *,
    entries: Sequence[Entry] | None = None,
    objective: Objective | None = None,
    prefix: str = "",
    remedy: str = "split the weights over more devices (`model_parallel`), or store them with "
    "`weights` int8",
) -> Search:
    """Build a search and compile it, to see whether it fits into memory.

    Args:
        problem: What is searched.
        lm: The model, on the mesh.
        execution: How it is computed; the chunk is halved until the program fits, unless fixed.
        entries: Group and seed of each entry; default: each country under each seed.
        objective: The objective of all groups; default: the problem's, with C as given or fitted.
        prefix: Text before each line that is logged.
        remedy: What to do where the program does not fit, for the message.

    Raises:
        UserError: where the program does not fit into memory.
    """
    settings, mesh = problem.settings, lm.mesh
    entries = settings.entries if entries is None else tuple(entries)
    local = local_view(lm.params)  # for the small work that each process does by itself
    if objective is None:
        objective = problem.objective(score_constants(problem, lm))
    # The space is drawn around each entry's start; its directions are shared by all entries.
    starts_CxMxD = initial_prompts(problem, local["embed"], entries)
    space = make_space(settings.prompt, starts_CxMxD, local["embed"])
    items = prepare_items(lm.config, local, problem.layout, execution.kernel)
    rows = [settings.countries.index(group) for group, _ in entries]
    # Only the weights may be split over devices; everything else is whole on each of them.
    inputs = FitnessInputs(
        items=dataclasses.replace(items, params=as_bits(lm.params)),
        objective=objective.for_groups(rows),
        space=space,
        penalty=jnp.float32(settings.penalty),
    )
    inputs = place_whole(inputs, replicated(mesh))
    steps = min(settings.save_every, settings.generations)

    @functools.cache  # so that what is compiled to see whether it fits is what runs
    def evolution(chunk: int) -> Evolution:
        fitness = make_fitness(lm.config, chunk, read=problem.read)
        return make_evolution(settings.strategy, space.dims, fitness, mesh, entries)

    if settings.reading == "sampled":
        # The host drives the generations: nothing but its steps and the decoding is compiled.
        driven = evolution(execution.chunk)
        sampled = make_sampled_search(problem, lm, driven, slots=execution.slots)
        _log.debug("%s%s", prefix, sampled.describe())
        return Search(problem, execution, driven, inputs, objective, local["embed"], sampled)

    # Halve the number of prompts computed at a time until the compiled program fits.
    chunk, needed = fitting_chunk(
        lambda chunk: evolution(chunk).lower(steps, inputs).compile(),
        execution.chunk,
        jax.local_devices()[0],
        remedy,
        execution.fixed,
    )
    lines = [
        plan_text(plan_report(lm.config, problem.layout, chunk)),
        padding_text(len(entries), settings.strategy.population, mesh.shape[POPULATION], chunk),
        f"{chunk} prompts at a time: a dispatch of {steps} generations needs "
        f"{needed / 2**20:,.0f} MiB per device",
    ]
    for line in filter(None, lines):
        _log.debug("%s%s", prefix, line)
    return Search(
        problem=problem,
        execution=dataclasses.replace(execution, chunk=chunk),
        evolution=evolution(chunk),
        inputs=inputs,
        objective=objective,
        embed_VxD=local["embed"],
    )


def initial_prompts(problem: Problem, embed_VxD: jax.Array, entries: Sequence[Entry]) -> jax.Array:
    """Return the prompts that the entries start from, float32 [C, M, D].

    Args:
        problem: What is searched.
        embed_VxD: The model's embedding table.
        entries: Group and seed of each entry.
    """
    prompt, starts = problem.settings.prompt, []
    for group, seed in entries:
        # Keys depend on seed and group alone, so an entry starts alike among any others.
        text = problem.model.tokenizer.encode(start_text(problem, group))
        key = group_key(jax.random.key(seed), group)
        starts.append(initial_prompt(prompt, embed_VxD, text, key))
    return jnp.stack(starts)


def _log_generations(
    record: Run, labels: Sequence[str], done: int, metrics: Mapping[str, np.ndarray]
) -> None:
    """Log a line per generation; no clock readings, so that a resumed run's file is the same."""
    for t in range(len(metrics["best"])):
        row = {
            label: {name: values[t, c] for name, values in metrics.items()}
            for c, label in enumerate(labels)
        }
        record.log({"generation": done + t + 1, **row})


# -- from shapes alone ------------------------------------------------------------------------


def lower_search(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    optimizer: Optimizer,
    prompt: SoftPromptConfig,
    mesh: Mesh,
    *,
    entries: Sequence[Entry],
    chunk: int,
    generations: int,
    kernel: Kernel = "xla",
    objective: Objective | None = None,
    weights: WeightFormat = "stored",
    read: Read | None = None,
) -> jax.stages.Lowered:
    """Lower one dispatch of a search from shapes alone.

    Args:
        config: The model.
        layout: The questions under a soft prompt.
        optimizer: The algorithm and its population.
        prompt: The soft prompt and its search space.
        mesh: The devices, which may be only described.
        entries: Group and seed of each entry. Only their number matters.
        chunk: Prompts evaluated at a time on each device.
        generations: Generations of the dispatch; 0 lowers the evaluation of generation 0.
        kernel: The attention kernel.
        objective: The objective of the entries' groups, in arrays or shapes; default: the VSM's.
        weights: Storage of the linear layers, as in `load_model`.
        read: Averages answers over presentations, as in `make_fitness`.
    """
    fitness = make_fitness(config, chunk, read=read)
    dims = prompt.dims(config.hidden_size)
    evolution = make_evolution(optimizer, dims, fitness, mesh, entries)
    inputs = abstract_inputs(
        config,
        layout,
        prompt,
        mesh,
        kernel,
        entries=len(entries),
        objective=objective,
        weights=weights,
    )
    return evolution.lower(generations, inputs) if generations else evolution.lower_first(inputs)


def abstract_inputs(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    prompt: SoftPromptConfig,
    mesh: Mesh,
    kernel: Kernel = "xla",
    *,
    entries: int = 1,
    objective: Objective | None = None,
    weights: WeightFormat = "stored",
) -> FitnessInputs:
    """Return what the fitness reads as `jax.ShapeDtypeStruct`s with their shardings.

    Weights lie as the sharding table says, everything else whole on every device.

    Args:
        config: The model.
        layout: The questions under a soft prompt.
        prompt: The soft prompt and its search space.
        mesh: The devices, which may be only described.
        kernel: The attention kernel.
        entries: Number of entries, C.
        objective: The objective of their groups, in arrays or shapes; default: the VSM's.
        weights: Storage of the linear layers, as in `load_model`.
    """
    whole = functools.partial(jax.ShapeDtypeStruct, sharding=replicated(mesh))
    floats = functools.partial(whole, dtype=jnp.float32)
    M, D, Z = prompt.length, config.hidden_size, prompt.projection_dims
    if objective is None:
        objective = _vsm_shapes(layout, entries)
    return FitnessInputs(
        items=abstract_items(config, layout, mesh, kernel, weights),
        objective=jax.tree.map(lambda x: whole(np.shape(x), dtype=x.dtype), objective),
        space=Space(
            start=floats((entries, M, D)),
            scale=floats(()),
            matrix=None if prompt.projection == "none" else floats((Z, M, D)),
        ),
        penalty=floats(()),
    )


def _vsm_shapes(layout: Layout | SuffixLayout, entries: int) -> VsmObjective:
    """Return the objective "vsm" of as many groups, in shapes."""
    shape = jax.ShapeDtypeStruct
    Q, O = layout.sequences.shape[:2]  # noqa: E741
    return VsmObjective(
        scorer=Scorer(
            valid=shape((Q, O), jnp.bool_),
            codes=shape((Q, O), jnp.float32),
            columns=shape((24,), jnp.int32),
            constants=shape((6,), jnp.float32),
        ),
        target_Cx6=shape((entries, 6), jnp.float32),
        used_6=shape((6,), jnp.bool_),
        reading="expected",
    )


def abstract_items(
    config: LlamaConfig,
    layout: Layout | SuffixLayout,
    mesh: Mesh,
    kernel: Kernel,
    weights: WeightFormat = "stored",
) -> PreparedItems:
    """Return `prepare_items` of a layout in shapes, with weights stored as in `load_model`."""
    params = program_params(config, mesh, weights)
    shapes = jax.eval_shape(lambda params: prepare_items(config, params, layout, kernel), params)
    items = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), shapes
    )
    return items.replace(params=params)
