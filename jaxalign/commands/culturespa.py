"""CultureSPA, whole: write questions, answer them, keep what a culture changes, fine-tune, measure.

    python -m experiments.culturespa                                 # the pocket Llama
    python -m experiments.culturespa --model /path/to/Meta-Llama-3-8B-Instruct \\
        --survey culturespa_data/ --per-topic 1000 --seeds 1 --reading sampled --end-of-turn \\
        --train.batch 128 --train.learning-rate 1e-4 --train.remat --train.no-unroll \\
        --countries USA CAN BOL BRA GBR NLD DEU UKR CHN RUS IND THA KEN NGA ETH ZWE AUS NZL

Prints the cultural alignment score of the model asked plainly, under each prompt style, and after
fine-tuning on its own answers: jointly, one adapter per country, and with cross-culture thinking
(CCT). Method: Xu, Leng, Yu and Xiong, NAACL 2025 (CultureSPA, arXiv 2410.12971).

Everything that luck enters is done for each of `--seeds`. Steps keep what they have done in --out,
and --resume goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.commands.reports.culturespa import write_culturespa_report
from jaxalign.commands.reports.culturespa_plots import write_plots
from jaxalign.commands.reports.culturespa_tables import show_result
from jaxalign.core.errors import UserError
from jaxalign.lm.checkpoint import load_checkpoint
from jaxalign.lm.lora import AdapterWeights
from jaxalign.lm.weights import Params, param_shardings
from jaxalign.methods.culturespa.ask import Replies, ask, part, plan
from jaxalign.methods.culturespa.result import make_result
from jaxalign.methods.culturespa.select import Selection
from jaxalign.methods.culturespa.settings import Config
from jaxalign.methods.culturespa.step_measure import PROMPTED, SPECIFIC, Measured, measure
from jaxalign.methods.culturespa.step_select import (
    TRAINED,
    by_country,
    describe,
    examples,
    select,
    write_selected,
)
from jaxalign.methods.culturespa.step_tune import tune
from jaxalign.methods.culturespa.step_write import seed_folder, write_all
from jaxalign.methods.culturespa.study import Study, read_study
from jaxalign.runs import Run, check_run
from jaxalign.surveys.survey import Survey


def run_culturespa(config: Config) -> None:
    """The whole experiment; see the module's docstring."""
    out = _directory(config)
    check_run(out, config, config.resume)
    study = read_study(config)
    facts = study.facts()
    print(f"model {study.folder}: {study.llama.num_hidden_layers} layers, {study.llama.dtype}")
    print(f"survey: {study.survey.name}, {len(study.survey.items)} items; {config.seeds} seeds")
    shardings = param_shardings(study.llama, study.mesh)
    params = load_checkpoint(study.folder, study.llama, shardings)
    with Run.create(out, config, facts, config.resume) as run:
        for note in run.notes:
            print(note)
        questions, written = write_all(config, study, params, run)
        survey, by_seed = answer(config, study, params, run, questions)
        chosen = {s: select(config, questions[s], by_seed[s], s) for s in config.seed_numbers}
        selected = {}
        for seed, some in chosen.items():
            selected[seed] = describe(config, questions[seed], by_seed[seed], some)
            write_selected(study, questions[seed], some, run, seed_folder(out, seed).name)
        adapters = fine_tune(config, study, params, run, questions, chosen)
        measured = measure(config, study, params, run, adapters, survey)
        finish(config, study, run, measured, written, selected)


def _directory(config: Config) -> Path:
    if config.out is not None:
        return config.out
    if config.resume:
        raise UserError("--resume needs --out, the directory of the run to continue")
    return Path("runs") / time.strftime("culturespa-%Y%m%d-%H%M%S")


def answer(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    questions: Mapping[int, Survey],
) -> tuple[list[dict[str, Replies]], dict[int, dict[str, Replies]]]:
    """Step 2: the survey in every style, once for each seed whose luck enters; and each seed's
    questions in the styles that are trained on."""
    print("2 answer: the survey in every style")
    asking = plan(study, PROMPTED, config.countries, study.survey.items)
    survey = [
        ask(config, study, params, asking, run.out, "base", config.quiet, group[0])
        for group in config.seed_groups
    ]
    print("2 answer: the written questions")
    found = {}
    for group in config.seed_groups:
        items = [item for seed in group for item in questions[seed].items]
        asking = plan(study, ("unaware", "p1", "p2"), config.countries, items)
        replies = ask(config, study, params, asking, run.out, "base", config.quiet, group[0])
        at = 0
        for seed in group:
            here = slice(at, at + len(questions[seed].items))
            found[seed] = {style: part(replies[style], here) for style in replies}
            at = here.stop
    return survey, found


def fine_tune(
    config: Config,
    study: Study,
    params: Params,
    run: Run,
    questions: Mapping[int, Survey],
    chosen: Mapping[int, Mapping[str, Selection]],
) -> dict[tuple[int, str], AdapterWeights]:
    """Step 4: adapters by seed and name, those of single countries under "specific-" names."""
    shared, specific = {}, {}
    for seed, some in chosen.items():
        for method, style in TRAINED.items():
            shared[seed, method] = examples(config, study, questions[seed], some[method], style)
        for country, own in by_country(some["joint"]).items():
            specific[seed, SPECIFIC + country] = examples(config, study, questions[seed], own, "p1")
    print("4 fine-tune: joint, CCT and the selection's controls")
    found = tune(config, study, params, run, "shared", shared)
    print("4 fine-tune: one model for each country")
    return found | tune(config, study, params, run, "specific", specific)


def finish(
    config: Config,
    study: Study,
    run: Run,
    measured: Measured,
    written: Mapping[int, Mapping[str, Any]],
    selected: Mapping[int, Mapping[str, Any]],
) -> None:
    """`answers.json`, `result.json`, the plots, the report, and the tables on the screen."""
    result = make_result(config, study, measured, written, selected, study.facts())
    run.write("answers.json", _plain_answers(config, study, measured.answers))
    run.write("result.json", result)
    if run.writes:
        write_plots(run.out, result)
        write_culturespa_report(result, run.out)
    show_result(config, result)
    print(f"everything is in {run.out}")


def _plain_answers(
    config: Config, study: Study, answers: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Positions of options [seeds][runs][countries][items] by method; -1 for no answer."""
    return {
        "countries": config.countries,
        "items": [item.id for item in study.survey.items],
        "methods": {name: np.nan_to_num(a, nan=-1).astype(int) for name, a in answers.items()},
    }
