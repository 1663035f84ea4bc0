"""Every program that a CultureSPA run executes, from shapes alone.

What the model will write and what will be selected is not known when a run begins. Texts of the
survey's own lengths stand in for it (`stand_ins`): memory depends on the sizes of blocks, batches
and rows, which the settings fix, and hardly on the words.

JAX compiles a program once in a process. The programs that answer the survey and the guard, write,
train and measure are executed as they were checked, and are not compiled again; only the blocks of
the written questions have sizes of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.block_plan import BlockPlan, plan_blocks
from jaxalign.answering.block_program import answer_program
from jaxalign.answering.blocks import Conversations
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.generate import slots_of
from jaxalign.lm.lora import LoraConfig, abstract_adapter
from jaxalign.lm.mesh import weight_bytes
from jaxalign.methods.culturespa.answer import COMPARED, in_styles
from jaxalign.methods.culturespa.existing import few_of
from jaxalign.methods.culturespa.inputs import Inputs
from jaxalign.methods.culturespa.measure import Ways, conversations_to_measure
from jaxalign.methods.culturespa.prompting import prompted_ways
from jaxalign.methods.culturespa.select import TRAINED_UNDER
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.culturespa.styles import STYLES
from jaxalign.methods.culturespa.training_steps import (
    Steps,
    model_counts,
    plan_steps,
    train_settings,
)
from jaxalign.methods.culturespa.write import (
    WritingSettings,
    longest_request,
    make_topics,
    question_constraint,
)
from jaxalign.methods.reply_programs import reply_programs
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.programs import Need, Program, check_programs
from jaxalign.surveys.survey import Item, Survey
from jaxalign.training.kernel_choice import choose_kernel
from jaxalign.training.program import train_program
from jaxalign.training.shape import MOST_UNITS

# Stand-ins on each topic that are enough for the check before a run: they fill several blocks.
_FEW = 16
# A run that takes at most this share of the memory by estimate is not checked program by program.
_SMALL = 1 / 8
_PROMPT_TOKENS = 1024  # of a long request


def stand_ins(
    survey: Survey, settings: CultureSPASettings, most: int | None = None
) -> dict[int, Survey]:
    """Return texts that stand in for the written questions of each seed.

    They are the survey's own questions with their words in another order, so that no two share
    more than their first words.

    Args:
        survey: The survey whose questions the new ones are written after.
        settings: The run's settings, resolved.
        most: Number of questions on each topic, at most.
    """
    wanted = settings.per_topic if most is None else min(most, settings.per_topic)
    by_topic: dict[str, list[Item]] = {}
    for item in survey.items:
        by_topic.setdefault(item.topic, []).append(item)
    stand_in_of = {}
    for seed in settings.seed_numbers:
        random = np.random.default_rng(seed)
        items = []
        for topic, originals in by_topic.items():
            for n in range(wanted):
                original = originals[n % len(originals)]
                words = f"{original.stem} {original.text}".split()
                text = " ".join(words[i] for i in random.permutation(len(words)))
                items.append(dataclasses.replace(original, id=f"{topic} {n}", text=text, stem=""))
        stand_in_of[seed] = Survey("stand-ins", "", "", "paraphrase", tuple(items))
    return stand_in_of


def run_programs(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    available: int | None,
    questions: Mapping[int, Survey],
    steps: Steps | None = None,
    describe: Callable[[str], None] | None = None,
) -> tuple[Program, ...]:
    """Return the programs of a run, in the order in which it executes them.

    Args:
        settings: The run's settings, resolved.
        inputs: What they name.
        mesh: The devices, which may be only described.
        available: Bytes that programs may use on a device; None if that is not known.
        questions: The written questions by seed, or what stands in for them.
        steps: The sizes of the training steps; default: those that suit the questions.
        describe: Called with a line that says how much is asked, for a plan.
    """
    groups = settings.countries
    if steps is None:
        steps = plan_steps(settings, inputs, mesh, available, questions)
    programs = []
    if inputs.existing is None and settings.generator_model is None:
        programs += _writing_programs(settings, inputs, mesh, available)
    survey = in_styles(inputs, STYLES, groups, inputs.survey)
    # The questions of all seeds that are answered alike are asked together.
    surveys = [questions[seed] for seed in settings.seed_groups[0]]
    written = in_styles(inputs, COMPARED, groups, *surveys)
    for asked, what in ((survey, "the survey"), (written, "the written questions")):
        if settings.reading == "exact":
            plan = plan_blocks(asked.conversations, settings.block_tokens)
            programs.append(_exact_program(settings, inputs, mesh, plan, f"answers to {what}"))
            if describe is not None:
                describe(f"{what}: {plan.describe()}")
        else:
            conversations = asked.conversations
            programs += _sampled_programs(settings, inputs, mesh, available, conversations, what)
    programs += training_programs(settings, inputs, mesh, steps)
    return (*programs, *_measuring_programs(settings, inputs, mesh, available))


def check_run(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    steps: Steps | None = None,
    on_progress: OnProgress = ignore,
) -> tuple[Need, ...]:
    """Compile and check every program of a run; UserError names one that does not fit.

    Args:
        settings: The run's settings, resolved.
        inputs: What they name.
        mesh: The devices.
        steps: The sizes of the training steps, if they are fixed.
        on_progress: Called before the first program and after each.
    """
    device = mesh.local_devices[0]
    questions = expected_questions(settings, inputs)
    programs = run_programs(settings, inputs, mesh, available_bytes(device), questions, steps)
    return check_programs(programs, device, on_progress)


def expected_questions(
    settings: CultureSPASettings, inputs: Inputs, most: int | None = _FEW
) -> dict[int, Survey]:
    """Return by seed questions like those of the run; a few on each topic, or all with None."""
    if inputs.existing is None:
        return stand_ins(inputs.survey, settings, most)
    return dict.fromkeys(settings.seed_numbers, few_of(inputs.existing, most))


def expected_steps(settings: CultureSPASettings, inputs: Inputs, mesh: Mesh) -> Steps:
    """Return the sizes of the training steps that suit texts like the survey's own."""
    available = available_bytes(mesh.local_devices[0])
    return plan_steps(settings, inputs, mesh, available, expected_questions(settings, inputs))


def small_run(
    settings: CultureSPASettings, inputs: Inputs, mesh: Mesh, available: int | None
) -> str | None:
    """Return a line that says why a run needs no check, or None if it does need one.

    By estimate: everything that any program of the run holds, added up as if all of it were held at
    once, takes a small part of the memory. Meant for the pocket model, whose programs take longer
    to compile than to run.

    Args:
        settings: The run's settings, resolved.
        inputs: What they name.
        mesh: The devices.
        available: Bytes that programs may use on a device; None if that is not known.
    """
    if available is None:
        return None
    config, train = inputs.files.config, settings.train
    widths = 6 * config.intermediate_size + 12 * config.hidden_size  # kept of a token and layer
    activations = 4 * config.num_hidden_layers * widths
    # Keys and values of every layer for each token of a reply and its prompt, and their copies.
    positions = _PROMPT_TOKENS + settings.writing.max_new_tokens
    slots = slots_of(config, mesh, 10**6, settings.batch_size, positions, available)
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    caches = 2 * slots * positions * values * jax.numpy.dtype(config.dtype).itemsize
    adapter = 4 * sum(x.size for x in jax.tree.leaves(abstract_adapter(config, settings.lora)))
    # An adapter, both moments, the gradient's sum and the update; and each unit's copy of one.
    adapters = 6 * adapter * max(model_counts(settings)) + 2 * MOST_UNITS * adapter
    tokens = max(train.tokens_per_pass, settings.block_tokens)
    logits = 8 * train.batch * max(model_counts(settings)) * config.vocab_size
    total = weight_bytes(config) + caches + adapters + 2 * tokens * activations + logits
    if total > _SMALL * available:
        return None
    return (
        f"memory: at most {total / 2**30:.2f} of {available / 2**30:.1f} GiB by estimate, so the "
        "programs are not compiled before the run"
    )


def _writing_programs(
    settings: CultureSPASettings, inputs: Inputs, mesh: Mesh, available: int | None
) -> list[Program]:
    writing = WritingSettings(per_topic=settings.per_topic)
    longest = longest_request(inputs.files.tokenizer, inputs.survey, inputs.request, writing)
    replies = settings.per_topic * len(make_topics(inputs.survey))
    constraint = None
    if settings.constrain:
        constraint = question_constraint(inputs.files.tokenizer, inputs.files.config.vocab_size)
    return reply_programs(
        inputs.files,
        mesh,
        settings.writing,
        replies=replies,
        prompt_tokens=longest,
        batch_size=settings.batch_size,
        available=available,
        stage="write",
        constraint=constraint,
    )


def _sampled_programs(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    available: int | None,
    asked: Conversations,
    what: str,
    stage: str = "answer",
    lora: LoraConfig | None = None,
) -> list[Program]:
    return reply_programs(
        inputs.files,
        mesh,
        settings.answering,
        replies=len(asked) * settings.runs,
        prompt_tokens=int(asked.lengths_N.max()),
        batch_size=settings.batch_size,
        available=available,
        stage=stage,
        what=what,
        lora=lora,
    )


def _exact_program(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    plan: BlockPlan,
    name: str,
    stage: str = "answer",
    lora: LoraConfig | None = None,
) -> Program:
    jitted, arguments = answer_program(inputs.files.config, mesh, plan.shape, lora=lora)
    remedy = "lower `block_tokens`"
    return Program.of(name, stage, jitted, arguments, remedy=remedy, unit="block")


def training_programs(
    settings: CultureSPASettings, inputs: Inputs, mesh: Mesh, steps: Steps
) -> list[Program]:
    """Return one step of the models of all groups, and one of the models of single groups."""
    names = "models of all countries", "models of single countries"
    programs = []
    for specific, (name, adapters) in enumerate(zip(names, model_counts(settings), strict=True)):
        shape = steps.specific if specific else steps.shared
        train = train_settings(settings, bool(specific))
        config = inputs.files.config
        choice = choose_kernel(
            config, mesh, shape.row_length, shape.window, shape.examples, train.attention
        )
        jitted, arguments = train_program(
            config, train, settings.lora, mesh, shape, kernel=choice.kernel
        )
        programs.append(
            Program.of(
                f"a step of the {name}, {shape.adapters} of {adapters} at a time",
                "fine-tune",
                jitted,
                arguments,
                remedy="lower `train.tokens_per_pass` or `train.side_by_side`",
                unit="step",
                loop_trips=shape.passes,
            )
        )
    return programs


def _measuring_programs(
    settings: CultureSPASettings, inputs: Inputs, mesh: Mesh, available: int | None
) -> list[Program]:
    """Return how the models with adapters answer the survey, and every model the guard."""
    lora, groups = settings.lora, settings.countries

    def survey(ways: Ways, what: str) -> list[Program]:
        programs = []
        # Models that are asked for as many groups share a program.
        for count, who in ((len(groups), "all countries"), (1, "a single country")):
            (asked, *_) = (way for (_, named), way in ways.items() if len(named) == count)
            name = f"{what}, a model of {who}"
            if settings.reading == "exact":
                programs.append(
                    _exact_program(
                        settings, inputs, mesh, asked.plan, f"answers to {name}", "measure", lora
                    )
                )
            else:
                programs += _sampled_programs(
                    settings, inputs, mesh, available, asked.conversations, name, "measure", lora
                )
        return programs

    asked_as = [((style,), groups) for style in TRAINED_UNDER.values()]
    asked_as += [((TRAINED_UNDER["joint"],), (group,)) for group in groups]
    ways = conversations_to_measure(inputs, asked_as, settings.block_tokens)
    programs = survey(ways, "the survey")
    if not settings.guard_tasks:  # another tool compiles what it needs
        guard = plan_blocks(inputs.guard_questions.conversations, settings.block_tokens)
        for adapter, who in ((None, "the unchanged model"), (lora, "a fine-tuned model")):
            name = f"answers to the guard, {who}"
            programs.append(_exact_program(settings, inputs, mesh, guard, name, "measure", adapter))
    if settings.prompting:
        ways = prompted_ways(inputs, groups, settings.block_tokens)
        programs += survey(ways, "the survey in the other styles")
    return programs
