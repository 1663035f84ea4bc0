"""Ask a model, its adapters and its soft prompts a survey: `ask_survey`.

Everything is kept in the run's directory:

    OUT/config.json          settings, hashes, versions
       /answers/             what is answered so far, from where a killed run continues
       /answers.csv          every answer: model, style, country, item, code, expected code
       /answers_by_option.csv  the probability of every option (`surveys.answer_table`)
       /presentations.csv    the same under each presentation, if there are several
       /result.json          scores, intervals, or accuracies (`result`)
       /analyses/KEY/        the analysis of each way of asking, as of scored replies
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.core.errors import UserError
from jaxalign.core.files import plain, write_json, write_text
from jaxalign.core.progress import OnProgress, Progress, Stages, ignore
from jaxalign.lm.lora import Adapter
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.model import LM, load_model, open_model
from jaxalign.methods.ask import Exact, Reading, Sampled, answer, answers_key
from jaxalign.methods.ask_survey.inputs import AskInputs, Job, read_inputs
from jaxalign.methods.ask_survey.programs import check_memory, plan_jobs
from jaxalign.methods.ask_survey.result import ByRow, analyses_of, make_record
from jaxalign.methods.ask_survey.settings import AskSettings, check_settings
from jaxalign.runs import Run, check_run
from jaxalign.runtime.memory import log_peak
from jaxalign.surveys.answer_table import AnswerTable
from jaxalign.surveys.responses import Responses

_ANSWER_BYTES = 512  # of an answer in all files: as numbers, in tables and in the analyses
_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class AskRun:
    """What asking a survey found.

    Attributes:
        out: Directory of the run.
        record: The content of `result.json`.
        analyses: By key, the analysis of each way of asking; none for a survey without countries'
            answers.
        responses: The answers by row and group (None where no group is named).
    """

    out: Path
    record: dict[str, Any] = dataclasses.field(repr=False)
    analyses: dict[str, dict[str, Any]] = dataclasses.field(repr=False)
    responses: ByRow = dataclasses.field(repr=False)


def ask_survey(settings: AskSettings, on_progress: OnProgress = ignore) -> AskRun:
    """Ask a survey or a test under any prompt styles, without training, and score the answers.

    Answers are kept in the run's directory as they come, and a run with `settings.resume` continues
    there with the same bits.

    Args:
        settings: All settings; their defaults ask the pocket model the simulated society's survey.
        on_progress: Called with the number of answers.

    Returns:
        The scores, the analyses behind them, and the answers.

    Raises:
        UserError: For bad settings or files, before the long work; for programs that do not fit
            into memory; for a directory that is in use or holds something else.

    Example:
        >>> import jaxalign as ja
        >>> from jaxalign.methods.ask_survey import AskSettings
        >>> settings = AskSettings(countries=("USA", "CHN"), styles=("unaware", "p1"))
        >>> run = ja.ask_survey(settings)  # doctest: +SKIP
        >>> run.record["rows"]["model-p1"]["mean"]["value"]  # doctest: +SKIP
        >>> ja.ask_survey(AskSettings(styles=("p1", "p1")))
        Traceback (most recent call last):
        jaxalign.core.errors.UserError: `styles` p1 p1: give at least one, each once
    """
    out = _directory(settings)
    check_settings(settings)
    recorded = check_run(out, settings, settings.resume)
    _log.info(f"run directory: {out}")
    stages = Stages("model", "answers", "scores and report")
    files = open_model(settings.model, settings.dtype, revision=recorded.get("model_revision"))
    inputs = read_inputs(settings, files)
    config, items = files.config, inputs.survey.items
    _log.info(f"model {files.name}: {config.num_hidden_layers} layers, {config.dtype}")
    count = sum(len(job.questions.conversations) for job in inputs.jobs)
    _log.info(f"survey: {inputs.survey.name}, {len(items)} items; {count:,} conversations")
    if len(inputs.presentations) > 1:
        _log.info(f"presentations: {', '.join(inputs.presentations)}; answers are their mean")
    for note in inputs.notes:
        _log.info(note)
    mesh, choice = device_mesh(
        config, None, model_parallel=settings.model_parallel, weights=settings.weights
    )
    _log.debug(choice.describe())
    jobs = inputs.jobs
    if settings.reading == "exact":
        jobs = plan_jobs(settings, jobs)
        _log.debug(jobs[0].questions.plan.describe())
    # Every program is compiled now, before anything is loaded or written. Those of the pocket model
    # take megabytes.
    if not files.is_pocket:
        check_memory(settings, files, jobs, mesh, on_progress)
    stages.begin("model", "weights are read")
    lm = load_model(files, weights=settings.weights, mesh=mesh)
    writes_bytes = count * _ANSWER_BYTES
    with Run.create(out, settings, inputs.facts, settings.resume, writes_bytes=writes_bytes) as run:
        for note in run.notes:
            _log.info(note)
        stages.begin("answers", f"{count:,} questions")
        responses = _ask_all(settings, inputs, jobs, lm, out / "answers", on_progress)
        log_peak("answers")
        stages.begin("scores and report")
        analyses = analyses_of(settings, inputs, responses)
        record = plain(make_record(settings, inputs, responses, analyses))
        if run.writes:
            _write_answers(out / "answers.csv", responses)
            table = AnswerTable()
            for key, by_group in responses.items():
                for group, answers in by_group.items():
                    table.add_responses(answers, key, group or "")
            table.add_people(inputs.survey, inputs.countries)
            table.write(out)
            if len(jobs[0].questions.asked.presentations) > 1:
                _write_presentations(out / "presentations.csv", responses)
            for key, analysis in analyses.items():
                (out / "analyses" / key).mkdir(parents=True, exist_ok=True)
                write_json(out / "analyses" / key / "result.json", analysis)
        run.write("result.json", record)
    return AskRun(out, record, analyses, responses)


def _directory(settings: AskSettings) -> Path:
    if settings.out is not None:
        return settings.out
    if settings.resume:
        raise UserError("`resume` needs `out`, the directory of the run to continue")
    return Path("runs") / time.strftime("ask-%Y%m%d-%H%M%S")


def _reading(settings: AskSettings) -> Reading:
    if settings.reading == "exact":
        return Exact(settings.block_tokens, settings.answer)
    return Sampled(settings.runs, settings.answering, settings.seed, settings.batch_size)


def _ask_all(
    settings: AskSettings,
    inputs: AskInputs,
    jobs: tuple[Job, ...],
    lm: LM,
    folder: Path,
    on_progress: OnProgress,
) -> ByRow:
    """Ask every job, one after the other, so that one adapter is in memory at a time."""
    total = sum(len(job.questions.conversations) for job in jobs)
    done, responses = 0, {row.key: {} for row in inputs.rows}
    for job in jobs:
        count = len(job.questions.conversations)
        who = "the model" if job.adapter is None else job.adapter.name

        def report(event: Progress, before: int = done, count: int = count, who: str = who) -> None:
            now = before + count * event.done // max(1, event.total)
            fields = {"asked": who} if len(jobs) > 1 else {}
            on_progress(Progress("answer", now, total, "answers", fields=fields))

        adapter = None if job.adapter is None else Adapter.load(job.adapter, lm)
        answers = answer(
            lm if adapter is None else adapter.attach(lm),
            job.questions,
            _reading(settings),
            key=answers_key(lm, adapter),
            folder=folder,
            on_progress=report,
        )
        for n, asked in enumerate(job.asked):
            label = (asked.group or asked.row.style,)
            found = answers.responses(inputs.survey, rows=[n], labels=label)
            responses[asked.row.key][asked.group] = found
        done += count
    return responses


_COLUMNS = ("asked", "country", "item", "code", "expected", "valid_mass")


def _write_answers(path: Path, responses: ByRow) -> None:
    """Write every answer as a row: what was asked how, and the code that is its answer.

    `code` is the most likely or most frequent option's; `expected` the mean code.
    """
    rows = []
    for key, by_group in responses.items():
        for group, answers in by_group.items():
            rows += [[key, group or "", *cells] for cells in _cells(answers)]
    _write_csv(path, _COLUMNS, rows)


def _write_presentations(path: Path, responses: ByRow) -> None:
    """Write every answer under each presentation, as `_write_answers` writes their mean."""
    rows = []
    for key, by_group in responses.items():
        for group, answers in by_group.items():
            for name, alone in answers.by_presentation.items():
                rows += [[key, group or "", name, *cells] for cells in _cells(alone)]
    _write_csv(path, (*_COLUMNS[:2], "presentation", *_COLUMNS[2:]), rows)


def _cells(answers: Responses) -> Iterator[list[str]]:
    """Yield each item's id, code, mean code and valid mass; empty for what is not known."""
    codes, means = answers.most_likely()[0], answers.expected()[0]
    for q, item in enumerate(answers.survey.items):
        numbers = (codes[q], means[q], answers.valid_mass[0, q])
        yield [item.id, *("" if np.isnan(value) else f"{value:.6g}" for value in numbers)]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(columns)
    out.writerows(rows)
    write_text(path, text.getvalue())
