"""The run that `jaxalign cultural-bench` does, and the same for Python.

Writes into the run's directory: `config.json`, `answers/`, `questions-easy.jsonl`,
`questions-hard.jsonl`, `answers_by_option.csv` and `result.json`. A run that was killed continues
with `resume` and ends with the bits of one that was not.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.answering.partial import digest
from jaxalign.core.errors import UserError
from jaxalign.core.files import write_json_lines
from jaxalign.core.progress import OnProgress, Stages, ignore
from jaxalign.lm.lora import Adapter
from jaxalign.lm.mesh import device_mesh
from jaxalign.lm.model import LM, ModelFiles, load_model, open_model
from jaxalign.methods.ask import Exact, Reading
from jaxalign.methods.base import PERMUTED, TUNED
from jaxalign.methods.cultural_bench.questions import (
    Bench,
    MethodAnswers,
    ask_bench,
    prepare,
    programs,
)
from jaxalign.methods.cultural_bench.result import make_result, question_records
from jaxalign.methods.cultural_bench.sets import BenchSet, read_set
from jaxalign.methods.cultural_bench.settings import Settings, check_settings
from jaxalign.methods.soft_prompt import SoftPrompt
from jaxalign.methods.tuned import other_model, read_tuned_run
from jaxalign.prompts import Prompts, load_prompts, read_prompt
from jaxalign.runs import Run, check_run, settings_of, versions
from jaxalign.runtime.memory import log_peak
from jaxalign.runtime.programs import check_programs
from jaxalign.stats.choice_scores import NOT_ASKED
from jaxalign.stats.result_warnings import POCKET, ResultWarning, quick_look, warning_records
from jaxalign.surveys.answer_table import AnswerTable
from jaxalign.surveys.formats.cultural_bench import country_code
from jaxalign.surveys.names import group_within
from jaxalign.surveys.responses import Responses
from jaxalign.surveys.survey import Survey

_log = logging.getLogger("jaxalign")
_EXACT = Exact()
_MOST_NAMES = 8  # countries that a note names


@dataclasses.dataclass(frozen=True)
class CulturalBenchRun:
    """What a finished run found.

    Attributes:
        out: The run's directory.
        result: The content of its `result.json`.
    """

    out: Path
    result: dict[str, Any]


def cultural_bench(
    lm: LM,
    easy: Path | str | None = None,
    hard: Path | str | None = None,
    *,
    soft_prompts: Sequence[SoftPrompt] = (),
    adapter: Adapter | None = None,
    countries: Sequence[str] = (),
    icl_examples: int = 3,
    reading: Reading = _EXACT,
    prompts: Path | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    folder: Path | None = None,
    on_progress: OnProgress = ignore,
) -> dict[str, Any]:
    """Score a model on CulturalBench under every method.

    Args:
        lm: The model.
        easy: File of CulturalBench Easy.
        hard: File of CulturalBench Hard.
        soft_prompts: Tuned prompts: each is put before the questions about its group, and before
            those about the other prompts' groups as a control. One without a group is put before
            every question.
        adapter: A low-rank adapter; the adapted model is asked too.
        countries: Codes or names of the countries to ask about; none asks about all.
        icl_examples: Number of questions about the same country that are shown as examples.
        reading: How answers are read, `Exact()` or `Sampled(...)`.
        prompts: Folder with prompt texts of your own.
        resamples: Number of resamples of the bootstrap over questions.
        seed: Seed of the examples and of the bootstrap.
        folder: Directory that keeps the answers, from where a killed call continues; None keeps
            none.
        on_progress: Called with the number of blocks or replies that are done.

    Returns:
        The scores, as `jaxalign.methods.cultural_bench.result` describes them.

    Raises:
        UserError: A file or a prompt cannot be used.

    Example:
        >>> import json
        >>> from pathlib import Path
        >>> import jaxalign as ja
        >>> options = {f"prompt_option_{letter}": f"thing {letter}" for letter in "abcd"}
        >>> rows = [
        ...     {"prompt_question": f"What is usual in {place}?", "answer": "A", "country": place}
        ...     for place in ("Peru", "Japan")
        ... ]
        >>> _ = Path("easy.json").write_text(json.dumps([row | options for row in rows]))
        >>> result = ja.cultural_bench(ja.pocket_model(), easy="easy.json", icl_examples=0)
        >>> list(result["sets"]["easy"]["methods"])
        ['naive', 'persona']
        >>> result["sets"]["easy"]["trivial"]["constant"]
        [1.0, 0.0, 0.0, 0.0]
    """
    reading_name = "exact" if isinstance(reading, Exact) else "sampled"
    settings = Settings(
        easy=None if easy is None else Path(easy),
        hard=None if hard is None else Path(hard),
        countries=tuple(countries),
        icl_examples=icl_examples,
        prompts=prompts,
        resamples=resamples,
        seed=seed,
    )
    check_settings(settings)
    texts, sets = _read(settings, lm.files)
    bench = _prepare(lm.files, texts, sets, soft_prompts, adapter, reading, lm.mesh)
    answers = ask_bench(lm, bench, reading, folder, on_progress)
    return make_result(
        bench,
        answers,
        reading=reading_name,
        resamples=resamples,
        seed=seed,
        notes=_notes(bench, lm.files),
    )


def run_cultural_bench(settings: Settings, on_progress: OnProgress = ignore) -> CulturalBenchRun:
    """Score a model on CulturalBench and write the run's directory.

    Args:
        settings: The run's settings.
        on_progress: Called with the number of blocks or replies that are done, stage by stage.

    Raises:
        UserError: for settings and files that cannot be used (before the model is loaded and
            anything is written), and for what does not fit into memory.
    """
    check_settings(settings)
    out = _directory(settings)
    recorded = check_run(out, settings, settings.resume)
    _log.info(f"run directory: {out}")
    stages = Stages("programs", "model", "answers", "scores and report")
    model, soft_prompts = _soft_prompts(settings)
    files = open_model(model, settings.dtype, revision=recorded.get("model_revision"))
    texts, sets = _read(settings, files)
    adapter = None if settings.adapter is None else Adapter.load(settings.adapter, files)
    mesh, choice = device_mesh(
        files.config, None, model_parallel=settings.model_parallel, weights=settings.weights
    )
    _log.debug(choice.describe())
    reading = settings.how()
    bench = _prepare(files, texts, sets, soft_prompts, adapter, reading, mesh)
    notes = _notes(bench, files)
    for note in notes:
        _log.info(note)
    stages.begin("programs", "compiled, and held against the memory")
    checked = programs(bench, files, mesh, reading, settings.weights)
    check_programs(checked, mesh.local_devices[0], on_progress)
    stages.begin("model", "weights are read")
    lm = load_model(files, weights=settings.weights, mesh=mesh)
    facts = _facts(bench, files, texts, adapter)
    with Run.create(out, settings, facts, settings.resume) as run:
        for note in run.notes:
            _log.info(note)
        asked = sum(len(each.questions.conversations) for each in bench.asked)
        stages.begin("answers", f"{asked:,} questions")
        answers = ask_bench(lm, bench, reading, run.out / "answers", on_progress)
        log_peak("answers")
        stages.begin("scores and report")
        result = make_result(
            bench,
            answers,
            reading=settings.reading,
            resamples=settings.resamples,
            seed=settings.seed,
            notes=notes,
        )
        if files.is_pocket:
            simulated = ResultWarning("simulated", f"{POCKET} It has read nothing about cultures.")
            result["warnings"].insert(0, simulated.record())
        look = quick_look(settings.limit, f"{settings.limit} questions of each set were asked")
        result["warnings"] = [*warning_records([look]), *result["warnings"]]
        result |= {
            "model": files.name,
            "pocket": files.is_pocket,
            "settings": settings_of(settings, fixed_only=True),
            "facts": facts,
            "versions": versions(),
        }
        if run.writes:
            for bench_set, by_method in zip(bench.sets, answers, strict=True):
                records = question_records(bench_set, by_method)
                write_json_lines(run.out / f"questions-{bench_set.key}.jsonl", records)
            _answer_table(bench, answers).write(run.out)
        run.write("result.json", result)
    return CulturalBenchRun(out, result)


def _answer_table(bench: Bench, answers: Sequence[Mapping[str, MethodAnswers]]) -> AnswerTable:
    """Return every method's answers to the items of all sets, option by option.

    A soft prompt's answers are under the country of the item; several voices of a method follow
    each other.
    """
    table = AnswerTable()
    for bench_set, by_method in zip(bench.sets, answers, strict=True):
        items = tuple(
            dataclasses.replace(item, id=f"{n + 1} {item.id}")  # ids may repeat between questions
            for n, item in enumerate(bench_set.items)
        )
        survey = Survey(bench_set.test.name, "", bench_set.test.source, "official", items)
        most = max(len(item.options) for item in items)
        for method, given in by_method.items():
            for s, positions_Q in enumerate(given.positions_SxQ):
                asked_Q = positions_Q != NOT_ASKED
                exact = given.log_probs_SxQxO is not None
                log_probs_QxO = (
                    given.log_probs_SxQxO[s, :, :most]
                    if exact
                    else Responses.from_positions(
                        survey, ["x"], np.minimum(positions_Q, most - 1)[None, None]
                    ).log_probs[0]
                )
                table.add(
                    survey,
                    log_probs_QxO,
                    given.valid_mass_SxQ[s] if exact else None,
                    None if exact else positions_Q[None],
                    method=method,
                    country=bench_set.countries_Q,
                    seed="" if len(given.positions_SxQ) == 1 else s,
                    asked_Q=asked_Q,
                )
    return table


# Inputs


def _directory(settings: Settings) -> Path:
    if settings.out is not None:
        return settings.out
    if settings.resume:
        raise UserError("`resume` needs `out`, the directory of the run to continue")
    return Path("runs") / time.strftime("cultural_bench-%Y%m%d-%H%M%S")


def _read(settings: Settings, files: ModelFiles) -> tuple[Prompts, tuple[BenchSet, ...]]:
    """Return the prompt texts and the sets."""
    texts = load_prompts(settings.prompts, model_folder=files.folder)
    judgement = read_prompt("judgement", settings.prompts, model_folder=files.folder)
    paths = {"easy": settings.easy, "hard": settings.hard}
    sets = tuple(
        read_set(
            key,
            path,
            judgement,
            countries=settings.countries,
            icl_examples=settings.icl_examples,
            seed=settings.seed,
            limit=settings.limit,
        )
        for key, path in paths.items()
        if path is not None
    )
    return texts, sets


def _soft_prompts(settings: Settings) -> tuple[str | None, tuple[SoftPrompt, ...]]:
    """Return the model that is asked, and the tuned prompts of a run and of single files."""
    model, prompts = settings.model, []
    if settings.run is not None:
        tuned = read_tuned_run(settings.run)
        if tuned is None or not tuned.prompts:
            raise UserError(
                f"`run` {settings.run}: no soft-prompt run that has ended (it lacks config.json or "
                "prompts/*.safetensors); give the directory of one, or name files by `prompt`, "
                "folders by `adapter`"
            )
        prompts += map(SoftPrompt.load, tuned.prompts.values())
        model = model or tuned.model
    for given in settings.prompt:
        group, found, path = given.rpartition("=")
        if not found or Path(given).exists():
            prompts.append(SoftPrompt.load(given))
        else:
            own = country_code(group) if group else None
            prompts.append(dataclasses.replace(SoftPrompt.load(path), group=own))
    # Questions are about countries, so a group within one speaks for its country.
    within = [group_within(prompt.group or "") for prompt in prompts]
    return model, tuple(
        dataclasses.replace(prompt, group=group.country) if group else prompt
        for prompt, group in zip(prompts, within, strict=True)
    )


def _prepare(
    files: ModelFiles,
    texts: Prompts,
    sets: tuple[BenchSet, ...],
    soft_prompts: Sequence[SoftPrompt],
    adapter: Adapter | None,
    reading: Reading,
    mesh: jax.sharding.Mesh,
) -> Bench:
    return prepare(
        files,
        texts,
        sets,
        soft_prompts=soft_prompts,
        adapter=adapter,
        reading=reading,
        platform=mesh.devices.flat[0].platform,
    )


def _facts(
    bench: Bench, files: ModelFiles, texts: Prompts, adapter: Adapter | None
) -> dict[str, Any]:
    """Return what the result depends on besides the settings."""
    facts: dict[str, Any] = dict(files.facts())
    for bench_set in bench.sets:
        facts[f"{bench_set.key}_sha256"] = bench_set.test.sha256
        # The wording of the rows is not part of the file.
        facts[f"{bench_set.key}_wording"] = digest(*(item.text for item in bench_set.items))
    facts["prompts"] = {"item": texts.item, "persona": texts.persona}
    facts["soft_prompts"] = [
        {"group": prompt.group, "digest": digest(prompt.placement, prompt.embeddings_MxD)}
        for prompt in bench.soft_prompts
    ]
    if adapter is not None:
        leaves = jax.tree.leaves(adapter.weights)
        facts["adapter"] = digest(adapter.config.scale, *map(jax.device_get, leaves))
    return facts


def _notes(bench: Bench, files: ModelFiles) -> list[str]:
    """Return what a reader of the result should know of its inputs."""
    notes = []
    for bench_set in bench.sets:
        name = bench_set.test.name
        notes += [f"{name}: {note}" for note in bench_set.test.notes]
        if unknown := bench_set.unknown_countries:
            notes.append(
                f"{name}: CulturalBench asks about no {_listed(unknown, 'or')}; the names are kept"
            )
        few = sorted(set(bench_set.countries_Q) - set(bench_set.examples))
        if bench_set.examples and few:
            notes.append(
                f"{name}: too few questions about {_listed(few)} to show any as examples; "
                "ICL is not scored there"
            )
    groups = [prompt.group for prompt in bench.soft_prompts]
    asked = {code for bench_set in bench.sets for code in bench_set.countries_Q}
    if unused := sorted({group for group in groups if group is not None} - asked):
        notes.append(f"no question about {_listed(unused)}: the prompts tuned for it are a control")
    if bench.soft_prompts and len({group for group in groups if group is not None}) < 2:
        notes.append(
            f"{TUNED.title}: no other country's prompt is given, so there is no control by "
            f"{PERMUTED.title}"
        )
    for prompt in bench.soft_prompts:
        if why := other_model(prompt, files):
            notes.append(f"soft prompt of {prompt.group or 'no country'}: {why}")
    return notes


def _listed(names: Sequence[str], last: str = "and") -> str:
    shown = [*names[:_MOST_NAMES], *(["others"] if len(names) > _MOST_NAMES else [])]
    return f" {last} ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
