"""Every program that a CultureSPA run executes, from shapes alone.

What the model will write and what will be selected is not known when a run begins. Texts of the
survey's own lengths stand in for it (`stand_ins`): memory depends on the sizes of blocks, batches
and rows, which the settings fix, and hardly on the words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jaxalign.answering.block_plan import BlockPlan, plan_blocks
from jaxalign.answering.block_program import answer_program
from jaxalign.answering.blocks import Conversations
from jaxalign.answering.encode import encode
from jaxalign.core.progress import OnProgress, ignore
from jaxalign.lm.generate import Sampling, decode_programs, slots_of
from jaxalign.lm.lora import LoraConfig
from jaxalign.lm.mesh import weight_bytes
from jaxalign.methods.culturespa.dataset import training_tokens
from jaxalign.methods.culturespa.inputs import Inputs
from jaxalign.methods.culturespa.select import TRAINED_UNDER
from jaxalign.methods.culturespa.settings import CultureSPASettings
from jaxalign.methods.culturespa.styles import STYLES, encode_styles
from jaxalign.methods.culturespa.write import WritingSettings, longest_request, make_topics
from jaxalign.pocket.society import held_out_survey
from jaxalign.runtime.memory import available_bytes
from jaxalign.runtime.programs import Need, Program, check_programs
from jaxalign.runtime.sharding import MODEL
from jaxalign.surveys.formats import read_answered
from jaxalign.surveys.survey import Item, Survey
from jaxalign.training.program import expected_shape, train_program

# Stand-ins on each topic that are enough for the check before a run: they fill several blocks.
_FEW = 16


def survey_of(path: Path | None) -> Survey:
    """Return the survey of a path; the simulated society's if there is none."""
    return held_out_survey() if path is None else read_answered(path, "survey", None)


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
) -> tuple[Program, ...]:
    """Return the programs of a run, in the order in which it executes them.

    Args:
        settings: The run's settings, resolved.
        inputs: What they name.
        mesh: The devices, which may be only described.
        available: Bytes that programs may use on a device; None if that is not known.
        questions: The written questions by seed, or what stands in for them.
    """
    groups = settings.countries
    tokenizer, prompts = inputs.files.tokenizer, inputs.prompts
    programs = _writing_programs(settings, inputs, mesh, available)
    survey = encode_styles(tokenizer, prompts, STYLES, groups, inputs.survey.items)
    # The questions of all seeds that are answered alike are asked together.
    seeds = settings.seed_groups[0]
    items = [item for seed in seeds for item in questions[seed].items]
    written = encode_styles(tokenizer, prompts, ("unaware", "p1", "p2"), groups, items)
    for asked, what in ((survey, "the survey"), (written, "the written questions")):
        if settings.reading == "exact":
            programs.append(_exact_program(settings, inputs, mesh, asked, f"answers to {what}"))
        else:
            programs += _sampled_programs(settings, inputs, mesh, available, asked, what)
    programs += _training_programs(settings, inputs, mesh, available, questions)
    return (*programs, *_measuring_programs(settings, inputs, mesh, available))


def check_run(
    settings: CultureSPASettings, inputs: Inputs, mesh: Mesh, on_progress: OnProgress = ignore
) -> tuple[Need, ...]:
    """Compile and check every program of a run; UserError names one that does not fit."""
    device = mesh.local_devices[0]
    questions = stand_ins(inputs.survey, settings, _FEW)
    programs = run_programs(settings, inputs, mesh, available_bytes(device), questions)
    return check_programs(programs, device, on_progress)


def _writing_programs(
    settings: CultureSPASettings, inputs: Inputs, mesh: Mesh, available: int | None
) -> list[Program]:
    writing = WritingSettings(per_topic=settings.per_topic)
    longest = longest_request(inputs.files.tokenizer, inputs.survey, inputs.request, writing)
    replies = settings.per_topic * len(make_topics(inputs.survey))
    return _decoding(
        settings, inputs, mesh, available, settings.writing, replies, longest, "write", ""
    )


def _sampled_programs(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    available: int | None,
    asked: Conversations,
    what: str,
) -> list[Program]:
    lead_ins = np.array([len(tokens) for tokens in asked.lead_ins])
    questions = np.array([len(tokens) for tokens in asked.questions])
    longest = int((lead_ins[asked.pairs[:, 0]] + questions[asked.pairs[:, 1]]).max())
    replies = len(asked) * settings.runs
    return _decoding(
        settings,
        inputs,
        mesh,
        available,
        settings.answering,
        replies,
        longest,
        "answer",
        f", {what}",
    )


def _decoding(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    available: int | None,
    sampling: Sampling,
    replies: int,
    prompt_tokens: int,
    stage: str,
    what: str,
) -> list[Program]:
    """Return the programs that write replies to prompts of at most `prompt_tokens` tokens."""
    config = inputs.files.config
    weights = weight_bytes(config, mesh.shape[MODEL])
    positions = prompt_tokens + sampling.max_new_tokens
    free = available - weights if available else 0
    slots = slots_of(config, mesh, replies, settings.batch_size, positions, free)
    programs = decode_programs(
        config,
        sampling,
        mesh,
        slots=slots,
        positions=positions,
        stop_tokens=len(inputs.files.tokenizer.stop_ids),
    )
    remedy = "lower `batch_size`, or split the weights over more devices (`model_parallel`)"
    return [
        Program.of(
            f"{name}{what}",
            stage,
            jitted,
            arguments,
            # The weights stay where they are while the caches are copied.
            beside_bytes=weights if name == "fork" else 0,
            remedy=remedy,
            unit="batch",
            loop_trips=sampling.max_new_tokens - 1,
        )
        for name, (jitted, arguments) in programs.items()
    ]


def _exact_program(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    asked: Conversations,
    name: str,
    stage: str = "answer",
    lora: LoraConfig | None = None,
    beside_bytes: int = 0,
) -> Program:
    plan: BlockPlan = plan_blocks(asked, settings.block_tokens)
    jitted, arguments = answer_program(inputs.files.config, mesh, plan.shape, lora=lora)
    return Program.of(
        name,
        stage,
        jitted,
        arguments,
        beside_bytes=beside_bytes,
        remedy="lower `block_tokens`",
        unit="block",
    )


def _training_programs(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: Mesh,
    available: int | None,
    questions: Mapping[int, Survey],
) -> list[Program]:
    """Return one step of the models of all groups, and one of the models of single groups."""
    lengths, answers = [], 1
    for survey in questions.values():
        tokens = training_tokens(
            survey.items,
            settings.countries,
            inputs.prompts,
            inputs.files.tokenizer,
            end_of_turn=settings.end_of_turn,
        )
        number = int(tokens.sizes[tokens.number_QxO[tokens.number_QxO >= 0]].max())
        sizes_SxCxQ = tokens.sizes[tokens.lead_in_SxCxQ] + tokens.sizes[tokens.question_Q]
        lengths.append(sizes_SxCxQ.reshape(-1) + number)
        answers = max(answers, number)
    models = len(TRAINED_UNDER), len(settings.countries)
    batches = settings.train.batch, settings.specific_batch
    names = "models of all countries", "models of single countries"
    programs = []
    for count, batch, name in zip(models, batches, names, strict=True):
        train = dataclasses.replace(settings.train, batch=batch)
        config, adapters = inputs.files.config, count * settings.seeds
        shape = expected_shape(
            config,
            train,
            settings.lora,
            mesh,
            np.concatenate(lengths),
            answers,
            adapters,
            available,
        )
        jitted, arguments = train_program(config, train, settings.lora, mesh, shape)
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
    tokenizer, prompts, groups = inputs.files.tokenizer, inputs.prompts, settings.countries
    programs = []
    asked = encode_styles(tokenizer, prompts, ("p1",), groups, inputs.survey.items)
    what = "the survey, with an adapter"
    if settings.reading == "exact":
        programs.append(
            _exact_program(
                settings, inputs, mesh, asked, f"answers to {what}", "measure", settings.lora
            )
        )
    else:
        programs += _sampled_programs(settings, inputs, mesh, available, asked, what)
    guard = encode(tokenizer, prompts.texts.prompts, [[]], [item for item, _ in inputs.guard])
    programs.append(
        _exact_program(
            settings, inputs, mesh, guard, "answers to the guard", "measure", settings.lora
        )
    )
    return programs
