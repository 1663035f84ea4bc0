"""CultureSPA from start to end: `run_culturespa`.

    1 write      questions on the survey's topics, for every seed, and filters them
    2 answer     the survey in every style, and the written questions in those that are compared
    3 select     the pairs of question and group whose answer changes when the group is named
    4 fine-tune  one adapter on all groups' pairs, one per group, and the controls
    5 measure    how every method answers the survey, and whether fine-tuning broke anything

Every step keeps its output in the run's directory:

    OUT/seed0/replies.jsonl        1: every reply, with the reason if it was refused
             /endpoint.jsonl       1: the replies of the server of the setting `generator`, if any
             /questions.json       1: what the filters left, as a survey
             /written.json         1: counts of requests, refusals and what each filter removed
       /answers/                   2, 5: answers
       /seed0/selected/            3: the training data (`dataset.write_selected`)
       /training/, seed0/adapters/ 4: checkpoints and adapters (`fine_tune`)
       /answers.json, result.json  5: every method's answers, and the result (`result`)
       /answers_by_option.csv      5: the probability of every option (`surveys.answer_table`)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import plain, write_json
from jaxalign.core.json_text import read_object
from jaxalign.core.progress import OnProgress, Progress, Stages, ignore
from jaxalign.core.seals import change, sealed
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.model import load_model, open_model
from jaxalign.methods.culturespa import training_steps
from jaxalign.methods.culturespa.ability import AbilityTest
from jaxalign.methods.culturespa.answer import answer_survey, answer_written
from jaxalign.methods.culturespa.dataset import write_selected
from jaxalign.methods.culturespa.filters import FilteredQuestions, filter_questions
from jaxalign.methods.culturespa.fine_tune import fine_tune_all, read_set_aside
from jaxalign.methods.culturespa.inputs import (
    Experiment,
    Inputs,
    example_lengths,
    read_inputs,
    seed_folder,
)
from jaxalign.methods.culturespa.measure import Answers, Measured, measure
from jaxalign.methods.culturespa.programs import check_run as check_memory
from jaxalign.methods.culturespa.programs import expected_steps, small_run, training_programs
from jaxalign.methods.culturespa.prompting import ask_in_other_styles, prompting_record
from jaxalign.methods.culturespa.questions import from_item, to_survey
from jaxalign.methods.culturespa.result import CultureSPAResult, make_record
from jaxalign.methods.culturespa.select import (
    Selection,
    describe_selection,
    pairs_by_topic,
    select_pairs,
)
from jaxalign.methods.culturespa.settings import (
    CultureSPASettings,
    check_settings,
    resolve_settings,
    setting_sources,
)
from jaxalign.methods.culturespa.styles import Style
from jaxalign.methods.culturespa.training_steps import Steps
from jaxalign.methods.culturespa.write import (
    WritingSettings,
    WrittenQuestions,
    collect_questions,
    model_writer,
    server_writer,
)
from jaxalign.methods.endpoint import Endpoint
from jaxalign.runs import Run, check_run, recorded_facts
from jaxalign.runs.checkpoints import checkpoint_bytes
from jaxalign.runtime.memory import available_bytes, log_peak
from jaxalign.runtime.programs import check_programs
from jaxalign.surveys.answer_table import AnswerTable
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey, load, to_json
from jaxalign.training.program import abstract_state

# Of a question for one group: its answers as numbers, and half of all pairs in two formats, for
# each of four selections.
_QUESTION_BYTES = 4096
STAGES = Stages("write", "answer", "select", "fine-tune", "measure")
_log = logging.getLogger("jaxalign")


def run_culturespa(
    settings: CultureSPASettings,
    on_progress: OnProgress = ignore,
    ability_test: AbilityTest | None = None,
) -> CultureSPAResult:
    """Run CultureSPA: write questions, answer, select, fine-tune and measure.

    Every random step is repeated for each seed. Steps keep their output in the run's directory, and
    a run with `settings.resume` continues there.

    Args:
        settings: All settings; their defaults run on the pocket model, about 4 minutes on 2 CPU
            cores.
        on_progress: Called by the long steps.
        ability_test: What measures general abilities, with `settings.guard_tasks`, such as
            `jaxalign.commands.evals.guard.HarnessTest`.

    Returns:
        The scores of all methods, the answers and the adapters.

    Raises:
        UserError: For bad settings or files, before any long step; for a directory that is in use
            or holds something else.

    Example:
        A run takes minutes. Settings that cannot be are refused at once:

        >>> import jaxalign as ja
        >>> from jaxalign.methods.culturespa import CultureSPASettings
        >>> settings = CultureSPASettings(countries=("USA", "CHN"), per_topic=4, seeds=1)
        >>> result = ja.run_culturespa(settings)  # doctest: +SKIP
        >>> print(result)  # doctest: +SKIP
        >>> ja.run_culturespa(CultureSPASettings(countries=("USA",)))
        Traceback (most recent call last):
        jaxalign.core.errors.UserError: `countries` USA: give two or more, each once
    """
    out = _directory(settings)
    check_settings(settings)
    if settings.guard_tasks and ability_test is None:
        raise UserError("`guard_tasks` needs `ability_test`, which measures them")
    recorded = recorded_facts(out, settings.resume)
    files = open_model(settings.model, settings.dtype, revision=recorded.get("model_revision"))
    settings, notes = resolve_settings(settings, files)
    check_run(out, settings, settings.resume)
    _log.info(f"run directory: {out}")
    for note in notes:
        _log.info(note)
    inputs = read_inputs(settings, files)
    _check_generator(settings, out)
    config, items = inputs.files.config, inputs.survey.items
    _log.info(f"model {inputs.files.name}: {config.num_hidden_layers} layers, {config.dtype}")
    _log.info(f"survey: {inputs.survey.name}, {len(items)} items; seeds: {settings.seeds}")
    mesh, choice = device_mesh(config, None, model_parallel=settings.model_parallel)
    _log.debug(choice.describe())
    steps = _check_programs(settings, inputs, mesh, out, on_progress)
    lm = load_model(inputs.files, mesh=mesh)
    facts = inputs.facts()
    writes_bytes = _written_bytes(settings, inputs, mesh)
    origin = setting_sources(settings, files)
    with Run.create(
        out, settings, facts, settings.resume, writes_bytes=writes_bytes, sources=origin
    ) as run:
        for note in run.notes:
            _log.info(note)
        test = ability_test if settings.guard_tasks else None
        experiment = Experiment(settings, inputs, lm, out, on_progress, test, run)
        if steps is not None:
            training_steps.write_steps(out, steps)
        STAGES.begin("write", f"questions for {_seeds_words(settings.seeds)}")
        questions, written = write_all(experiment)
        if steps is not None:
            steps = _fitting_steps(experiment, steps, questions)
        log_peak("1 write")
        count = sum(len(survey.items) for survey in questions.values())
        STAGES.begin("answer", f"the survey in every style, then {count:,} written questions")
        survey_replies = answer_survey(experiment)
        replies = answer_written(experiment, questions)
        log_peak("2 answer")
        STAGES.begin("select", "the pairs whose answer a culture changes")
        selections, selected = select_all(experiment, questions, replies)
        log_peak("3 select")
        STAGES.begin("fine-tune", f"{_pairs_words(selected)}, {_seeds_words(settings.seeds)}")
        adapters = fine_tune_all(experiment, questions, selections, steps, replies)
        log_peak("4 fine-tune")
        STAGES.begin("measure", f"the survey and the guard under {len(adapters)} adapters")
        measured = measure(experiment, adapters, survey_replies)
        record = make_record(settings, inputs, measured, written, selected, facts)
        if retrained := read_set_aside(out)[1]:
            record["retrained"] = retrained
        if settings.prompting:
            _log.info("the fine-tuned models under every prompt style")
            given = measured.answers, measured.by_presentation
            prompted = ask_in_other_styles(experiment, adapters, *given)
            record["prompting"] = prompting_record(
                settings, inputs, given[0], prompted, measured.unchanged, given[1]
            )
        log_peak("5 measure")
        record = plain(record)
        write_json(out / "answers.json", _answers_record(experiment, measured))
        _answer_table(experiment, measured).write(out)
        write_json(out / "result.json", record)
    return CultureSPAResult(out, record, measured.answers, adapters)


def _seeds_words(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def _pairs_words(selected: Mapping[int, Mapping[str, Any]]) -> str:
    pairs = sum(sum(counts["pairs"]["joint"].values()) for counts in selected.values())
    return f"{pairs:,} changed pairs"


def _check_programs(
    settings: CultureSPASettings,
    inputs: Inputs,
    mesh: jax.sharding.Mesh,
    out: Path,
    on_progress: OnProgress,
) -> Steps | None:
    """Compile and check every program of a run, before anything is loaded or written.

    Returns:
        The sizes of the training steps, by which the run trains in the programs that were checked.
        None on the pocket model, whose trainer chooses them for the examples, and for a run that
        began without.
    """
    if training_steps.has_chosen(out):
        steps = training_steps.read_steps(out)
    else:
        steps = None if inputs.files.is_pocket else expected_steps(settings, inputs, mesh)
    if inputs.files.is_pocket:
        available = available_bytes(mesh.local_devices[0])
        if (why := small_run(settings, inputs, mesh, available)) is not None:
            _log.debug(why)
            return steps
    check_memory(settings, inputs, mesh, steps, on_progress)
    return steps


def _written_bytes(settings: CultureSPASettings, inputs: Inputs, mesh: jax.sharding.Mesh) -> float:
    """Return about how much a run writes: adapters with their checkpoints, and text."""
    groups, topics = len(settings.countries), len({item.topic for item in inputs.survey.items})
    existing = inputs.existing
    questions = len(existing.questions) if existing else settings.per_topic * topics
    # Joint, CCT, two controls of the selection, and a model for each group. Two checkpoints are
    # kept and one is being written, each with both moments; the adapter itself is a third of one.
    adapters = settings.seeds * (4 + groups)
    state = abstract_state(inputs.files.config, settings.train, settings.lora, mesh, 1)
    trained = adapters * (checkpoint_bytes(state) + checkpoint_bytes(state, keep=0) / 3)
    texts = settings.seeds * questions * groups * _QUESTION_BYTES
    return trained + texts


def _fitting_steps(experiment: Experiment, steps: Steps, questions: Mapping[int, Survey]) -> Steps:
    """Return the sizes of the training steps; larger ones, checked, if the questions need them."""
    settings, inputs, mesh = experiment.settings, experiment.inputs, experiment.lm.mesh
    if training_steps.are_held(steps, settings, inputs, questions):
        return steps
    device = mesh.local_devices[0]
    found = training_steps.plan_steps(settings, inputs, mesh, available_bytes(device), questions)
    _log.info(
        f"some written questions are longer than the {steps.shared.window} tokens of an example "
        f"that training was planned for; planned again for {found.shared.window}"
    )
    check_programs(training_programs(settings, inputs, mesh, found), device, experiment.on_progress)
    training_steps.write_steps(experiment.out, found)
    return found


def _check_generator(settings: CultureSPASettings, out: Path) -> None:
    """Raise UserError if the server that still has something to write does not answer."""
    left = [seed_folder(out, seed) / "questions.json" for seed in settings.seed_numbers]
    if settings.generator_answers:
        left.append(out / "result.json")
    if not all(path.exists() for path in left):
        endpoint = Endpoint.of(settings.generator, settings.generator_model)
        if endpoint is not None:
            endpoint.check()


def _directory(settings: CultureSPASettings) -> Path:
    if settings.out is not None:
        return settings.out
    if settings.resume:
        raise UserError("`resume` needs `out`, the directory of the run to continue")
    return Path("runs") / time.strftime("culturespa-%Y%m%d-%H%M%S")


def write_all(experiment: Experiment) -> tuple[dict[int, Survey], dict[int, dict[str, Any]]]:
    """Write and filter the questions of every seed (step 1).

    Returns:
        By seed, the questions left as a survey, and the counts of `written.json`.
    """
    settings = experiment.settings
    topics = len({item.topic for item in experiment.inputs.survey.items})
    existing = experiment.inputs.existing
    per_seed = len(existing.questions) if existing else settings.per_topic * topics
    questions, counts = {}, {}

    def report(done: int, fields: Mapping[str, str]) -> None:
        total = per_seed * settings.seeds
        experiment.on_progress(
            Progress("1 write: question", done, total, "questions", fields=fields)
        )

    for n, seed in enumerate(settings.seed_numbers):
        done = n * per_seed
        report(done, {})
        folder = seed_folder(experiment.out, seed)
        if not _has_written(folder):
            folder.mkdir(exist_ok=True)
            _write_seed(experiment, seed, lambda p, done=done: report(done + p.done, p.fields))
        questions[seed] = load(folder / "questions.json")
        counts[seed] = read_object(folder / "written.json")
    report(per_seed * settings.seeds, {})
    return questions, counts


def _write_seed(experiment: Experiment, seed: int, on_progress: OnProgress) -> None:
    """Write the questions of one seed, filter them, and keep those that can be trained on."""
    settings, inputs, lm = experiment.settings, experiment.inputs, experiment.lm
    folder = seed_folder(experiment.out, seed)
    if inputs.existing is not None:
        written = inputs.existing.as_written
        asked_for = len(written.questions) + sum(written.refused.values())
        source = f"files with hash {inputs.existing.sha256[:12]}"
    else:
        writing = WritingSettings(per_topic=settings.per_topic, seed=seed)
        replies = folder / "replies.jsonl"
        if (endpoint := Endpoint.of(settings.generator, settings.generator_model)) is not None:
            writer = server_writer(
                endpoint, writing, settings.writing, replies, settings.batch_size
            )
            source = f"written by {endpoint.model}, seed {seed}"
        else:
            writer = model_writer(
                lm,
                inputs.survey,
                inputs.request,
                writing,
                settings.writing,
                settings.batch_size,
                constrain=settings.constrain,
            )
            source = f"written by a model, weights {lm.sha256[:12]}, seed {seed}"
        written = collect_questions(
            inputs.survey, writer, inputs.request, writing, replies, on_progress=on_progress
        )
        asked_for = settings.per_topic * len(written.topics)
    filtered = filter_questions(written.questions, map(from_item, inputs.survey.items))
    survey = to_survey(filtered.questions, f"questions after {inputs.survey.name}", source)
    fitting = _fitting(experiment, survey)
    counts = _counts(asked_for, written, filtered, len(fitting.items))
    replies = [path] if (path := folder / "replies.jsonl").exists() else []
    with sealed(*replies, folder / "written.json", folder / "questions.json"):
        write_json(folder / "written.json", counts)
        write_json(folder / "questions.json", to_json(fitting))  # last: marks the step as done


def _has_written(folder: Path) -> bool:
    """Return whether a seed's questions are there, as they were written."""
    paths = folder / "written.json", folder / "questions.json"
    for path in (folder / "replies.jsonl", *paths):
        if (what := change(path)) is not None:
            _log.info(f"{path}: {what}; made again from the replies")
            return False
    return all(path.exists() for path in paths)


def _fitting(experiment: Experiment, questions: Survey) -> Survey:
    """Drop the questions whose examples would be longer than `train.longest_example`.

    Noticed in step 4 only, one of them would end a run whose long steps are done.

    Raises:
        UserError: If no question fits.
    """
    longest = experiment.settings.train.longest_example
    if longest is None:
        return questions
    lengths = example_lengths(experiment.settings, experiment.inputs, questions.items)
    fitting = {i.id for i, n in zip(questions.items, lengths, strict=True) if n <= longest}
    if not fitting:
        raise UserError(
            f"`train.longest_example` {longest}: fits none of the {len(lengths)} questions "
            f"written, whose examples have {min(lengths)} tokens or more; give more, or leave the "
            "option out"
        )
    return questions.subset(fitting)


def _counts(
    asked_for: int, written: WrittenQuestions, filtered: FilteredQuestions, left: int
) -> dict[str, Any]:
    """Return `written.json`; `left` counts the questions that also fit a row."""
    filters = filtered.counts
    return {
        "asked_for": asked_for,
        "requests": written.requests,
        "parsed": len(written.questions),
        "refused": written.refused,
        "removed": {name: count.removed for name, count in filters.items()}
        | {"too_long": len(filtered.questions) - left},
        "changed": {name: count.changed for name, count in filters.items()},
        "left": left,
        "notes": list(written.notes),
    }


def select_all(
    experiment: Experiment,
    questions: Mapping[int, Survey],
    replies: Mapping[int, Mapping[Style, Responses]],
) -> tuple[dict[int, dict[str, Selection]], dict[int, dict[str, Any]]]:
    """Select the training data of every seed and write them to its folder (step 3).

    Returns:
        By seed, the pairs of each model, and the counts for `result.json`.
    """
    groups, prompts = experiment.groups, experiment.inputs.prompts
    selections, counts = {}, {}
    experiment.on_progress(Progress("3 select: seed", 0, len(questions), "seeds"))
    for done, (seed, survey) in enumerate(questions.items(), 1):
        selections[seed] = select_pairs(replies[seed], groups, survey.items, seed)
        counts[seed] = describe_selection(replies[seed], groups, selections[seed])
        counts[seed]["topics"] = pairs_by_topic(selections[seed]["joint"], survey.items)
        folder = seed_folder(experiment.out, seed) / "selected"
        write_selected(
            folder, selections[seed], survey.items, prompts, experiment.inputs.presentations
        )
        experiment.on_progress(Progress("3 select: seed", done, len(questions), "seeds"))
    return selections, counts


def _answer_table(experiment: Experiment, measured: Measured) -> AnswerTable:
    """Return every method's answers, option by option.

    What is the same for all countries, as the unaware model, is there once and names none, and so
    it is with seeds.
    """
    table, names = AnswerTable(), experiment.inputs.presentations
    survey, seeds = experiment.inputs.survey, experiment.settings.seed_numbers
    for method, shares_RxFxCxQxO in measured.shares.items():
        mass_RxFxCxQ, replies_RxNxCxQ = measured.mass[method], measured.answers[method]
        is_alike = bool(
            np.array_equal(
                shares_RxFxCxQxO,
                np.broadcast_to(shares_RxFxCxQxO[:, :, :1], shares_RxFxCxQxO.shape),
                equal_nan=True,
            )
        )
        with np.errstate(divide="ignore"):
            log_probs_RxFxCxQxO = np.log(shares_RxFxCxQxO)
        sampled = experiment.settings.reading == "sampled" and len(names) == 1
        for r in range(len(shares_RxFxCxQxO)):
            for c, country in enumerate(experiment.groups[:1] if is_alike else experiment.groups):
                drawn = np.nan_to_num(replies_RxNxCxQ[r, :, c], nan=-1).astype(int)
                for f, name in enumerate(names):
                    table.add(
                        survey,
                        log_probs_RxFxCxQxO[r, f, c],
                        mass_RxFxCxQ[r, f, c],
                        drawn if sampled else None,
                        method=method,
                        country="" if is_alike else country,
                        seed=seeds[r] if len(shares_RxFxCxQxO) == len(seeds) > 1 else "",
                        presentation=name,
                    )
    table.add_people(survey, experiment.groups)
    return table


def _answers_record(experiment: Experiment, measured: Measured) -> dict[str, Any]:
    """Return `answers.json`: positions of options [seeds][runs][countries][items] by method, -1
    for no answer; and, if there are several presentations, the same in each alone."""

    def as_integers(answers: Mapping[str, Answers]) -> dict[str, np.ndarray]:
        return {name: np.nan_to_num(a, nan=-1).astype(int) for name, a in answers.items()}

    record = {
        "countries": experiment.groups,
        "items": [item.id for item in experiment.inputs.survey.items],
        "methods": as_integers(measured.answers),
    }
    if measured.by_presentation:
        alone = measured.by_presentation.items()
        record["presentations"] = {name: as_integers(answers) for name, answers in alone}
    return record
