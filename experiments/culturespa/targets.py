"""The most likely option or the distribution as the target, from the questions to the verdict.

    python -m experiments.culturespa.targets --countries USA CHN --per-topic 4 --seeds 2
    python -m experiments.culturespa.targets --model smollm2 --questions RUN/seed0/questions.json \\
        --survey RUN/survey.json --presentations A B C D --seeds 5 --out runs/targets

Does what `jaxalign culturespa` and `experiments.culturespa.studies.targets` do one after the other,
without what only the paper's tables need: the styles P2 and P3 on the survey, CCT, and the controls
of the selection. Questions, answers and pairs are made once; the joint and the specific models of
every seed are trained toward either target on the same pairs, from the same starts, with the
examples in the same order, and all are asked the survey in every presentation. Takes the options of
`jaxalign culturespa`, except that `--train.target` is both. Writes targets.json into `--out`; the
same command with --resume continues what was interrupted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.culturespa.studies.targets import TARGETS, compare, show, toward, train
from jaxalign.core.files import write_json
from jaxalign.lm.model import load_model, open_model
from jaxalign.methods.culturespa import CultureSPASettings
from jaxalign.methods.culturespa.answer import COMPARED, answer_survey, answer_written
from jaxalign.methods.culturespa.inputs import Experiment, read_inputs
from jaxalign.methods.culturespa.measure import measure
from jaxalign.methods.culturespa.pipeline import select_all, write_all
from jaxalign.methods.culturespa.settings import check_settings, resolve_settings
from jaxalign.runs import Run, check_run
from jaxalign.runs.console import main, progress_bars


@dataclasses.dataclass(frozen=True)
class BothTargetsSettings(CultureSPASettings):
    """Train toward the most likely option and toward the distribution, and compare."""


def run(settings: BothTargetsSettings) -> None:
    """Train toward both targets, and write and print the comparison."""
    check_settings(settings)
    files = open_model(settings.model, settings.dtype)
    settings, _ = resolve_settings(settings, files)
    out = settings.out or Path("runs/targets")
    check_run(out, settings, settings.resume)
    inputs = read_inputs(settings, files)
    lm = load_model(files)
    with (
        Run.create(out, settings, inputs.facts(), settings.resume),
        progress_bars(quiet=settings.quiet) as on_progress,
    ):
        experiment = Experiment(settings, inputs, lm, out, on_progress)
        questions, written = write_all(experiment)
        survey = answer_survey(experiment, COMPARED)
        answered = answer_written(experiment, questions)
        selections, selected = select_all(experiment, questions, answered)
        measured = {}
        for target in TARGETS:
            study = toward(experiment, target, out / target)
            study.out.mkdir(exist_ok=True)
            adapters = train(study, questions, selections, answered)
            measured[target] = measure(study, adapters, survey)
        record = compare(experiment, measured)
        record |= {"trained_in": list(inputs.presentations), "selected": selected}
        record["written"] = written
        write_json(out / "targets.json", record)
    show(record)


if __name__ == "__main__":
    main(run, BothTargetsSettings)
