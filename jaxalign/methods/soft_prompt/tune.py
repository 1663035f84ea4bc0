"""Tune soft prompts: the whole run that `jaxalign soft-prompt` does, and the search alone.

`run_soft_prompt` reads the settings of a run, asks the baselines, searches, follows up with the
gradient control, asks the tuned prompts, and writes the run's directory. `tune_soft_prompt` is the
front door for Python: with `out` it is the same run, without it the search alone.

Method: Masoud, Ferianc, Treleaven and Rodrigues 2025 (arXiv 2503.16094).
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxalign.core.disk import check_space
from jaxalign.core.errors import UserError
from jaxalign.core.progress import OnProgress, Stages, ignore
from jaxalign.lm.model import LM, load_model
from jaxalign.lm.weights import param_shardings
from jaxalign.methods.soft_prompt.answers import (
    ask_baselines,
    ask_tuned,
    baseline_questions,
    kept_generations,
)
from jaxalign.methods.soft_prompt.checkpoint_dir import checkpoint_directory
from jaxalign.methods.soft_prompt.control import Control, control_directory, make_control
from jaxalign.methods.soft_prompt.history import History
from jaxalign.methods.soft_prompt.problem import (
    Problem,
    check_comparison,
    file_names,
    read_problem,
    recorded_start,
)
from jaxalign.methods.soft_prompt.programs import check_run as check_memory
from jaxalign.methods.soft_prompt.prompt import SoftPrompt
from jaxalign.methods.soft_prompt.result import make_result
from jaxalign.methods.soft_prompt.search import (
    Search,
    build_search,
    choose_execution,
    choose_search_mesh,
    log_int8_change,
)
from jaxalign.methods.soft_prompt.settings import (
    Settings,
    entry_labels,
    limited,
    pocket_defaults,
    setting_sources,
)
from jaxalign.methods.soft_prompt.space import SoftPromptConfig
from jaxalign.optim.algorithms.differential_evolution import DifferentialEvolution
from jaxalign.optim.api import Optimizer
from jaxalign.optim.strategy import Strategy
from jaxalign.runs import Run, check_run, recorded_run
from jaxalign.runs.checkpoints import checkpoint_bytes, claim
from jaxalign.runtime.memory import log_peak
from jaxalign.runtime.sharding import DATA
from jaxalign.surveys.answer_table import AnswerTable
from jaxalign.surveys.survey import Survey, vsm

_METRICS_BYTES = 256  # of an entry in a line of metrics
_log = logging.getLogger("jaxalign")


@dataclasses.dataclass(frozen=True)
class SoftPromptRun:
    """What a finished run found.

    Attributes:
        out: The run's directory.
        result: The content of its `result.json`.
        prompts: The tuned prompts, by country; with several seeds by country and seed ("USA s0").
        seconds: Seconds that the search took in this process; 0 where nothing was left to search.
        candidates: Number of candidates that the whole search evaluates, at most.
    """

    out: Path
    result: dict[str, Any]
    prompts: Mapping[str, SoftPrompt]
    seconds: float
    candidates: int


def tune_soft_prompt(
    lm: LM,
    survey: Survey | None = None,
    *,
    countries: Sequence[str] = ("USA", "CHN", "IND", "SAU"),
    optimizer: Optimizer | None = None,
    generations: int = 160,
    prompt: SoftPromptConfig | Mapping[str, Any] | None = None,
    objective: str = "vsm",
    seeds: Sequence[int] = (0,),
    seed: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = ignore,
    **settings: Any,
) -> dict[str, SoftPrompt]:
    """Tune one soft prompt per country until the model's survey answers give the country's scores.

    The numbers are those of `jaxalign soft-prompt` with the same settings.

    Args:
        lm: The model.
        survey: The survey whose answers are tuned; default: the 24 values items of the VSM 2013.
        countries: ISO 3166 alpha-3 codes, or other groups that `edition` names.
        optimizer: Settings of the optimizer; default: `DifferentialEvolution(population=16)`.
        generations: Number of generations after the initial population.
        prompt: The soft prompt and its search space, as a `SoftPromptConfig` or as a dict of its
            fields, such as `{"length": 8}`.
        objective: Name of the loss (`jaxalign.stats.objectives`).
        seeds: Seeds of the random draws; each country is tuned under each of them, side by side.
        seed: One seed, instead of `seeds`.
        out: Directory for a whole run: the prompts, and what the baselines, the gradient control
            and the held-out survey say of them (`result.json`). Without it the search alone runs,
            and nothing is written.
        resume: Whether to continue the run in `out`.
        on_progress: Called before the first dispatch of generations and after each.
        **settings: Any other field of `jaxalign.methods.soft_prompt.Settings`, such as
            `penalty=1.0` or `edition="matrix2015"`.

    Returns:
        The tuned prompts by country, and with several seeds by country and seed, such as "USA s0".
        Each can be saved, exported to PEFT, or passed to `ask` and `generate` as a condition.

    Raises:
        UserError: for settings that cannot be used, and for a search that does not fit into memory.

    Example:
        >>> import jaxalign as ja
        >>> tuned = ja.tune_soft_prompt(
        ...     ja.pocket_model(),
        ...     ja.surveys.vsm(),
        ...     countries=("CHN",),
        ...     optimizer=ja.DifferentialEvolution(population=4),
        ...     generations=1,
        ...     prompt={"length": 2},
        ... )
        >>> tuned["CHN"].name, tuned["CHN"].embeddings_MxD.shape
        ('tuned CHN', (2, 128))
    """
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else "see jaxalign.methods.soft_prompt"
            raise UserError(f"`{name}`: no such setting; {hint}")
    if optimizer is None:
        optimizer = DifferentialEvolution(population=16)
    if not isinstance(prompt, SoftPromptConfig):
        prompt = SoftPromptConfig(**(prompt or {}))
    config = Settings(
        out=None if out is None else Path(out),
        resume=resume,
        **_model_settings(lm),
        countries=tuple(countries),
        objective=objective,
        prompt=prompt,
        strategy=Strategy.of(optimizer),
        generations=generations,
        seeds=tuple(seeds) if seed is None else (seed,),
        **settings,
    )
    config = limited(config)
    if survey is not None and survey.sha256 == vsm().sha256:
        survey = None
    if out is not None:
        return dict(run_soft_prompt(config, on_progress, lm=lm, survey=survey).prompts)
    # Without a comparison nothing needs examples in context or a gradient control.
    config = dataclasses.replace(config, icl_examples=0, gradient_steps=0, held_out_points=0)
    problem = read_problem(config, lm.files, survey)
    lm = _on_search_mesh(problem, lm)
    search = build_search(problem, lm, choose_execution(problem, lm.mesh, {}))
    outcome = search.run(needs_loss=True, on_progress=on_progress)
    return soft_prompts(problem, search.prompts(outcome.best_CxZ))


def run_soft_prompt(
    settings: Settings,
    on_progress: OnProgress = ignore,
    *,
    lm: LM | None = None,
    survey: Survey | None = None,
) -> SoftPromptRun:
    """Tune one soft prompt per country and compare it with the baselines and the control.

    Writes into the run's directory: `config.json`, `metrics.jsonl`, `checkpoints/`, `prompts/`,
    `peft/`, `answers_by_option.csv` and `result.json`. What is worth reading while it runs is
    logged to "jaxalign".

    Args:
        settings: The run's settings.
        on_progress: Called before the first dispatch of generations and after each, then likewise
            for the steps of the gradient control.
        lm: The model; default: loaded from the folder that the settings name.
        survey: The survey that is tuned; default: the one that the settings name.

    Returns:
        The result, and the tuned prompts.

    Raises:
        UserError: for settings and files that cannot be used (before anything is written), and for
            a search that does not fit into memory.

    Example:
        >>> import jaxalign as ja
        >>> from jaxalign.methods.soft_prompt import Settings, SoftPromptConfig
        >>> from jaxalign.optim.strategy import Strategy
        >>> settings = Settings(
        ...     countries=("CHN",),
        ...     prompt=SoftPromptConfig(length=2),
        ...     strategy=Strategy(population=4),
        ...     generations=1,
        ...     gradient_steps=0,
        ... )
        >>> run = ja.run_soft_prompt(settings)
        >>> sorted(run.result["countries"]["CHN"])[:5]
        ['held_out', 'icl', 'naive', 'persona', 'seeds']
    """
    # Read and check everything that is quick, so that bad input is refused before anything is
    # loaded or written.
    settings = limited(settings)
    out = _directory(settings)
    recorded = check_run(out, settings, settings.resume)
    _log.info(f"run directory: {out}")
    stages = Stages(*_stage_names(settings))
    settings = dataclasses.replace(settings, checkpoints=checkpoint_directory(settings, out))
    given, revision = None if lm is None else lm.files, recorded.get("model_revision")
    problem = read_problem(settings, given, survey, revision)
    check_comparison(problem)
    # The mesh needs no weights; a model that is already loaded moves to it.
    if lm is None:
        mesh = choose_search_mesh(problem)
    else:
        lm = _on_search_mesh(problem, lm)
        mesh = lm.mesh
    execution = choose_execution(problem, mesh, recorded)
    config = problem.model.config
    _log.info(f"model {problem.model.name}: {config.num_hidden_layers} layers, {config.dtype}")
    if not problem.model.is_pocket and (note := pocket_defaults(settings)):
        _log.info(note)
    if cache := jax.config.jax_compilation_cache_dir:
        _log.debug(f"compiled programs are kept in {cache}")
    if settings.prompt.placement == "after":
        _log.info("placement after: another method than front and system, not a faster form of it")
    # Every program is compiled now, before anything is loaded or written.
    stages.begin("programs", "compiled, and held against the memory")
    execution, _ = check_memory(problem, mesh, execution, on_progress)
    stages.begin("model", "weights are read, the search is set up")
    if lm is None:
        lm = load_model(problem.model, weights=settings.weights, mesh=mesh)
        if settings.weights == "int8":
            log_int8_change(problem, lm)
    search = build_search(problem, lm, execution)
    control = make_control(search) if settings.gradient_steps else None
    facts = problem.facts() | search.facts
    described = (f"{name} {value}" for name, value in search.evolution.settings.items())
    _log.debug("search: " + "  ".join(described))
    saved_bytes, kept_bytes = _written_bytes(problem, search, control)
    if settings.checkpoints and jax.process_index() == 0:
        check_space(settings.checkpoints, saved_bytes, "checkpoints")
    writes_bytes = kept_bytes + (0 if settings.checkpoints else saved_bytes)
    origin = setting_sources(settings)
    with Run.create(
        out, settings, facts, settings.resume, writes_bytes=writes_bytes, sources=origin
    ) as run:
        for note in run.notes:
            _log.info(note)
        # The baselines come first: they take little, and a fault in them shows early.
        asked = sum(len(questions.conversations) for questions in baseline_questions(problem))
        stages.begin("baselines", f"{asked:,} questions")
        tuned, held_out = ask_baselines(problem, lm, run.out / "answers", on_progress)
        log_peak("baselines")
        checkpoints = settings.checkpoints or run.out / "checkpoints"
        if run.writes:
            claim(checkpoints, recorded_run(run.out)[0])
        searches = len(settings.entries)
        stages.begin(
            "search",
            f"{settings.generations:,} generations of {settings.candidates:,} candidates, "
            f"{searches} {'search' if searches == 1 else 'searches'} side by side",
        )
        history = History(run.out / "history", kept_generations(problem), run.writes)
        outcome = search.run(
            checkpoints,
            record=run,
            resume=run.resumed,
            history=history,
            needs_loss=True,
            on_progress=on_progress,
        )
        log_peak("search")
        # Saved before the follow-up, which may take long too.
        prompts = {"start": search.start_prompts, "tuned": search.prompts(outcome.best_CxZ)}
        found = soft_prompts(problem, prompts["tuned"])
        if run.writes:
            save_prompts(run.out, found)
        # Each method's prompts answer both surveys. The gradient control starts where the search
        # started, and always tunes the expected reading.
        if control is not None:
            stages.begin("gradient control", f"{settings.gradient_steps:,} steps of Adam")
            folder = control_directory(checkpoints, settings.gradient_steps)
            z_CxZ = control.run(folder, resume=run.resumed, on_progress=on_progress)
            prompts["gradient"] = search.prompts(z_CxZ)
            log_peak("gradient control")
        stages.begin("tuned prompts", "both surveys under each of them")
        on_the_way = history.read(outcome.best_CxZ.shape)
        earlier = {str(g): search.prompts(z_CxZ) for g, z_CxZ in on_the_way.items()}
        asked, answered_earlier = ask_tuned(
            problem, lm, prompts, run.out / "answers", on_progress, earlier
        )
        log_peak("tuned prompts")
        tuned, held_out = tuned.joined(asked[0]), held_out.joined(asked[1])
        stages.begin("scores and report")
        # Not among the settings that a resumed run must keep, yet the result depends on it.
        facts = facts | {"gradient_steps": settings.gradient_steps}
        result = make_result(
            problem,
            search.objective,
            facts,
            (tuned, held_out),
            outcome.fitness_C,
            answered_earlier,
            on_progress,
        )
        if run.writes:
            table = AnswerTable()
            tuned.fill(table, settings.countries, settings.seeds, "tuned survey")
            held_out.fill(table, settings.countries, settings.seeds, "held-out survey")
            table.add_people(held_out.survey, settings.countries, "held-out survey")
            table.write(run.out)
        run.write("result.json", result)
        candidates = (settings.generations + 1) * settings.candidates
        return SoftPromptRun(run.out, result, found, outcome.seconds, candidates)


def _stage_names(settings: Settings) -> list[str]:
    control = ["gradient control"] if settings.gradient_steps else []
    ends = ["tuned prompts", "scores and report"]
    return ["programs", "model", "baselines", "search", *control, *ends]


def _written_bytes(
    problem: Problem, search: Search, control: Control | None
) -> tuple[float, float]:
    """Return what a run writes: its checkpoints, and everything else."""
    settings, entries = problem.settings, len(problem.settings.entries)
    saved = checkpoint_bytes(search.evolution.abstract_state())
    if control is not None:
        saved += checkpoint_bytes(control.descent.abstract_state())
    # As safetensors and for PEFT; and the vectors of the history.
    prompt = 4 * settings.prompt.length * problem.model.config.hidden_size
    vector = 4 * settings.prompt.dims(problem.model.config.hidden_size)
    history = vector * len(kept_generations(problem))
    metrics = _METRICS_BYTES * (settings.generations + 1)
    return saved, entries * (2 * prompt + history + metrics)


def soft_prompts(problem: Problem, prompts_CxMxD: jax.Array) -> dict[str, SoftPrompt]:
    """Return the prompts as values that know what they were tuned for.

    Args:
        problem: What was searched.
        prompts_CxMxD: One prompt per entry, in the order of the settings' entries.

    Returns:
        Prompts by country; with several seeds by country and seed, such as "USA s0".
    """
    settings = problem.settings
    return {
        label: SoftPrompt(
            embeddings_MxD=prompt_MxD,
            placement=settings.prompt.placement,
            group=group,
            start=recorded_start(problem, group),
            seed=seed,
            model=problem.model.name,
            model_sha256=problem.model.sha256,
        )
        for label, (group, seed), prompt_MxD in zip(
            entry_labels(settings.entries),
            settings.entries,
            np.asarray(prompts_CxMxD),
            strict=True,
        )
    }


def save_prompts(out: Path, prompts: Mapping[str, SoftPrompt]) -> None:
    """Write prompts as safetensors and, where the placement is PEFT's, as PEFT adapters."""
    names = file_names(list(prompts))
    for group, prompt in prompts.items():
        prompt.save(out / "prompts" / f"{names[group]}.safetensors")
        if prompt.placement == "front":
            prompt.save_peft(out / "peft" / names[group])


def _directory(settings: Settings) -> Path:
    if settings.out is not None:
        return settings.out
    if settings.resume:
        raise UserError("`resume` needs `out`, the directory of the run to continue")
    return Path("runs") / time.strftime("soft_prompt-%Y%m%d-%H%M%S")


def _model_settings(lm: LM) -> dict[str, Any]:
    """Return the settings that name a loaded model, as a command line would give them."""
    usual = "float32" if lm.files.is_pocket else "bfloat16"
    return {
        "model": None if lm.files.is_pocket else lm.name,
        "dtype": "auto" if lm.config.dtype == usual else lm.config.dtype,
        "weights": "int8" if _is_int8(lm) else "stored",
    }


def _is_int8(lm: LM) -> bool:
    # 8-bit kernels carry a scale beside them.
    return any(name.endswith("_scale") for name in lm.params["last"])


def _on_search_mesh(problem: Problem, lm: LM) -> LM:
    """Return the model on a mesh whose devices share out candidates.

    `load_model` shares out examples; with one device there is no difference.
    """
    if lm.mesh.shape[DATA] == 1:
        return lm
    mesh = choose_search_mesh(problem)
    shardings = param_shardings(problem.model.config, mesh, problem.settings.weights)
    return dataclasses.replace(lm, params=jax.device_put(lm.params, shardings), mesh=mesh)
